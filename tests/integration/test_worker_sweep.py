"""The sweep: workers that run for ever find by themselves what no trigger saw."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import psycopg
import pytest

from pgembed.errors import InvalidInput
from pgembed.worker import Worker, WorkerOptions
from pgembed.worker.run import session_connection
from pgembed.worker.state import State
from pgembed.worker.sweep import Course, Sweep
from pgembed.worker.verification import _work
from tests.fakes import Connection, FakeEncoder, Log, Table, deadlocks, register, until, vector_of

SWEEP = {"sweep_every": 0.1}


@pytest.fixture(params=["column", "side"])
def table(
    request: pytest.FixtureRequest, database: Connection, database_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> Table:
    made = Table(database, database_dsn, monkeypatch)
    database.execute("SELECT pgembed.detach('product')")
    database.execute(
        """SELECT pgembed.attach('product', 'embedding', 'fake', '{"text": "title"}', storage => %s)""",
        [request.param],
    )
    made.work()  # the backfill has ended
    return made


def unseen(conn: Connection, statement: str) -> None:
    """Run a statement that no trigger sees."""
    conn.execute("SET session_replication_role = replica")
    conn.execute(statement.encode())
    conn.execute("RESET session_replication_role")


def is_side(table: Table) -> bool:
    return table.conn.execute("SELECT to_regclass('product_embedding') IS NOT NULL").fetchone() == (True,)


def embedded(table: Table) -> list[int]:
    """The ids that have a vector."""
    place = "product_embedding" if is_side(table) else "product WHERE embedding IS NOT NULL"
    return sorted(key for (key,) in table.conn.execute(f"SELECT id FROM {place}".encode()).fetchall())


@contextmanager
def working(table: Table, **options: Any) -> Iterator[tuple[Worker, Log]]:  # noqa: ANN401
    with table.working(**options) as worker:
        worker.state.log = log = Log()
        yield worker, log


def test_rows_that_no_trigger_saw_are_found_and_told(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pgembed.worker.sweep.STEP", 7)
    table.insert("red shoe")
    table.work()
    unseen(table.conn, "INSERT INTO product SELECT i, 'shoe ' || i FROM generate_series(-20, 20) AS i WHERE i <> 1")
    with working(table, **SWEEP) as (_, log):
        until(lambda: embedded(table) == list(range(-20, 21)))
        until(lambda: log.lines)
    assert len(log.lines) == 1
    assert "sweep found rows without vectors" in log.lines[0]
    assert "'found': 40" in log.lines[0]


def test_vectors_without_rows_are_taken_away(table: Table) -> None:
    if not is_side(table):
        pytest.skip("only a side table has them")
    table.insert("red shoe", "blue car", "green tree")
    table.work()
    unseen(table.conn, "DELETE FROM product WHERE id <> 2")
    with working(table, **SWEEP) as (_, log):
        until(lambda: embedded(table) == [2])
        until(lambda: log.lines)
    assert "sweep found vectors without rows" in log.lines[0]
    assert "'found': 2" in log.lines[0]


def test_what_has_no_input_or_failed_is_left_alone(table: Table) -> None:
    table.insert("bad", None, "  ")

    def refuse(texts: Sequence[str]) -> None:
        raise InvalidInput("The word is bad.")

    table.encoder.before = refuse
    table.work()
    seen: list[str] = []
    table.encoder.before = lambda texts: seen.extend(texts)
    with working(table, **SWEEP) as (worker, log):
        swept = worker.state.swept_at
        until(lambda: worker.state.swept_at > swept + 0.35)  # three times
        assert table.waiting() == 0
    assert (seen, log.lines) == ([], [])
    assert list(table.failures()) == ["1"]


def test_what_waits_already_is_not_queued_again(table: Table) -> None:
    """Neither by its change, nor by its job that another worker holds."""
    table.insert("red shoe", "blue car")
    number = table.conn.execute("SELECT id FROM pgembed.embedding").fetchall()[0][0]
    change, job = f"pgembed.change_{number}", f"pgembed.job_{number}"
    table.conn.execute(f"DELETE FROM {change}".encode())
    table.conn.execute(f"INSERT INTO {job} (key_1, claimed_until) SELECT id, now() + '1 hour' FROM product".encode())
    before = table.conn.execute(f"SELECT key_1, seq FROM {job} ORDER BY 1".encode()).fetchall()
    with working(table, **SWEEP) as (worker, log):
        swept = worker.state.swept_at
        until(lambda: worker.state.swept_at > swept + 0.25)
    assert table.conn.execute(f"SELECT key_1, seq FROM {job} ORDER BY 1".encode()).fetchall() == before
    assert log.lines == []


@pytest.mark.parametrize("mode", ["until_idle", "once"])
def test_a_worker_that_leaves_does_not_sweep(table: Table, mode: Any) -> None:  # noqa: ANN401
    unseen(table.conn, "INSERT INTO product VALUES (1, 'red shoe')")
    assert table.worker(sweep_every=1e-9).run(mode).written == 0
    assert embedded(table) == []


def test_it_can_be_switched_off_and_waits_its_time(table: Table) -> None:
    unseen(table.conn, "INSERT INTO product VALUES (1, 'red shoe')")
    for never in (0, 300):
        with working(table, sweep_every=never):
            time.sleep(0.5)
    assert embedded(table) == []


def test_a_paused_embedding_is_not_swept(table: Table) -> None:
    unseen(table.conn, "INSERT INTO product VALUES (1, 'red shoe')")
    table.conn.execute("SELECT pgembed.pause('product')")
    with working(table, **SWEEP) as (worker, _):
        swept = worker.state.swept_at
        until(lambda: worker.state.swept_at > swept + 0.15)
        assert table.waiting() == 0


def test_composite_keys_and_two_embeddings(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pgembed.worker.sweep.STEP", 2)
    conn = table.conn
    register(conn, "other", other := FakeEncoder("other"))
    table.encoders[other.spec] = other
    conn.execute("CREATE TABLE item (a text, b uuid, title text, PRIMARY KEY (a, b))")
    for target, storage in (("one", "column"), ("two", "side")):
        conn.execute(
            """SELECT pgembed.attach('item', %s, 'other', '{"text": "{title}, 100%%"}', storage => %s)""",
            [target, storage],
        )
    table.work()
    unseen(conn, "INSERT INTO item SELECT 'a' || i % 2, gen_random_uuid(), 't' || i FROM generate_series(1, 5) AS i")
    count = "SELECT count(i.one), count(t.vector) FROM item i LEFT JOIN item_two t USING (a, b)"
    with working(table, **SWEEP):
        until(lambda: conn.execute(count.encode()).fetchone() == (5, 5))
    rows = conn.execute("SELECT i.title, i.one::real[], t.vector::real[] FROM item i JOIN item_two t USING (a, b)")
    for title, one, two in rows.fetchall():
        assert one == pytest.approx(vector_of(f"{title}, 100%").tolist(), abs=1e-6)
        assert one == two


def test_an_input_that_cannot_be_computed_becomes_a_failure(table: Table, database_dsn: str) -> None:
    conn = table.conn
    if conn.info.server_version < 180000:
        pytest.skip("virtual columns are of PostgreSQL 18")
    conn.execute(
        "CREATE TABLE item (id integer PRIMARY KEY, n integer, m integer GENERATED ALWAYS AS (10 / n) VIRTUAL)"
    )
    storage = "side" if is_side(table) else "column"
    conn.execute("""SELECT pgembed.attach('item', 'e', 'fake', '{"text": "{m}"}', storage => %s)""", [storage])
    table.work()
    unseen(conn, "INSERT INTO item (id, n) VALUES (1, 0), (2, 5)")
    ready = "SELECT ready FROM pgembed.status WHERE table_name = 'item'"
    with working(table, **SWEEP) as (_, log), psycopg.connect(database_dsn, autocommit=True):
        until(lambda: conn.execute(ready.encode()).fetchone() == (1,))
        until(lambda: list(table.failures()) == ["1"])
    assert not any("sweep failed" in line for line in log.lines)


def test_a_sweep_locks_in_the_order_of_detach(table: Table, database_dsn: str) -> None:
    """It waits for the user's table before it has the side table, which whoever detaches will want."""
    if not is_side(table):
        pytest.skip("only a side table is locked after")
    table.insert("red shoe")
    table.work()
    (number,) = table.conn.execute("SELECT id FROM pgembed.embedding").fetchall()[0]
    with psycopg.connect(database_dsn) as detaching:
        detaching.execute("LOCK TABLE product IN ACCESS EXCLUSIVE MODE")
        sweeping = threading.Thread(target=look, args=(database_dsn, number))
        sweeping.start()
        blocked = "SELECT count(*) > 0 FROM pg_locks WHERE relation = 'product'::regclass AND NOT granted"
        until(lambda: table.conn.execute(blocked.encode()).fetchall() == [(True,)])
        detaching.execute("SELECT pgembed.detach('product')")
    sweeping.join()
    assert deadlocks(table.conn) == 0


def look(dsn: str, embedding: int) -> None:
    with session_connection(lambda: psycopg.connect(dsn)) as conn:
        sweep = Sweep(State(WorkerOptions(), None), conn)
        with suppress(psycopg.errors.UndefinedTable):  # it is gone when it is looked at
            sweep._look(_work(conn, embedding), Course(embedding, side=True))
