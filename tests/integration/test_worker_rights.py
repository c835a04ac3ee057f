"""A worker whose role has the rights that it needs, or not all of them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from pgembed.worker import Worker, WorkerOptions
from tests.fakes import Log, Table, until

ROLE = f"pgembed_worker_{os.getpid()}"
RIGHTS = f"""
    GRANT USAGE ON SCHEMA pgembed TO {ROLE};
    GRANT SELECT ON ALL TABLES IN SCHEMA pgembed TO {ROLE};
    GRANT INSERT, UPDATE, DELETE ON pgembed.failure, pgembed.cut, pgembed.written, pgembed.change_1, pgembed.job_1
        TO {ROLE};
    GRANT EXECUTE ON FUNCTION pgembed._take_requests, pgembed._tidy_requests TO {ROLE};
    GRANT SELECT, UPDATE ON product TO {ROLE};
"""


@pytest.fixture(autouse=True)
def _role(server_dsn: str) -> Iterator[None]:
    """A role, made before the test's database and dropped after it."""
    with psycopg.connect(server_dsn, autocommit=True) as admin:
        admin.execute(f"CREATE ROLE {ROLE} LOGIN".encode())
        yield
        admin.execute(f"DROP ROLE {ROLE}".encode())


@pytest.fixture
def table(database: psycopg.Connection, database_dsn: str, monkeypatch: pytest.MonkeyPatch) -> Table:
    """The table of a role that may do a worker's work, and not change the catalog."""
    table = Table(database, database_dsn, monkeypatch)
    table.conn.execute("UPDATE pgembed.embedding SET state = 'ready'")
    table.conn.execute(RIGHTS.encode())
    return table


def worker(table: Table, batch_size: int | None = None, sweep_every: float = 0) -> tuple[Worker, Log]:
    """A worker that runs as the role, and what it logs."""
    options = WorkerOptions(poll=0.02, batch_size=batch_size, sweep_every=sweep_every)
    running = Worker(lambda: psycopg.connect(make_conninfo(table.dsn, user=ROLE)), options)
    running.state.log = log = Log()
    return running, log


def test_a_role_that_may_not_change_the_catalog_works_while_nothing_in_it_is_out_of_date(table: Table) -> None:
    table.conn.execute(f"GRANT UPDATE (state) ON pgembed.embedding TO {ROLE}".encode())  # takes FOR KEY SHARE
    table.insert("red shoe", "blue car")
    running, log = worker(table)
    assert running.run("until_idle").written == 2
    assert (table.true_ids(), log.lines) == ([1, 2], [])
    assert table.conn.execute("SELECT sum(rows) FROM pgembed.written").fetchone() == (2,)


def test_a_renamed_table_is_worked_on_by_a_role_that_may_not_put_its_name_into_the_catalog(table: Table) -> None:
    table.insert("red shoe")
    table.conn.execute(f"GRANT UPDATE (state) ON pgembed.embedding TO {ROLE}".encode())
    table.conn.execute("ALTER TABLE product RENAME TO goods")
    running, log = worker(table)
    assert running.run("until_idle").written == 1
    assert table.conn.execute("SELECT count(embedding) FROM goods").fetchone() == (1,)
    (line,) = log.lines
    assert "permission denied for table embedding" in line
    assert "as its owner: SELECT pgembed.sync();" in line


def test_a_role_that_may_not_count_rows_writes_them_and_says_so_once(
    table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pgembed.worker.write.COUNT_EVERY", 0.0)
    table.insert("red shoe", "blue car", "green tree")
    running, log = worker(table, batch_size=1)
    assert running.run("until_idle").written == 3
    (line,) = log.lines
    assert "rows are not counted" in line
    assert "permission denied for table embedding" in line


def test_a_budget_is_not_overrun_by_a_role_that_may_not_count(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pgembed.worker.state.TROUBLE_WAITS", (0.01,))
    table.conn.execute("""UPDATE pgembed.encoder SET settings = '{"rows_per_day": 1}'""")
    table.insert("red shoe", "blue car")
    running, _ = worker(table)
    with pytest.raises(psycopg.errors.InsufficientPrivilege, match="permission denied for table embedding"):
        running.run("until_idle")
    assert (table.embedded_ids(), table.failures()) == ([], {})
    table.conn.execute(f"GRANT UPDATE (state) ON pgembed.embedding TO {ROLE}".encode())
    running, _ = worker(table)
    assert running.run("until_idle").written == 1


def test_the_sweep_needs_no_right_to_write_the_log(table: Table) -> None:
    table.conn.execute(f"REVOKE INSERT ON pgembed.change_1 FROM {ROLE}".encode())
    table.conn.execute(f"GRANT UPDATE (state) ON pgembed.embedding TO {ROLE}".encode())
    table.conn.execute("SET session_replication_role = replica; INSERT INTO product VALUES (1, 'red shoe')")
    running, log = worker(table, sweep_every=0.1)
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(running.run)
        try:
            until(lambda: table.true_ids() == [1])
        finally:
            running.stop()
        done.result(30)
    assert [line for line in log.lines if "sweep found" not in line] == []
