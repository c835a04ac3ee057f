"""The network between a worker and its server: connections cut at every moment, and partitions."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest

import pgembed
from pgembed.worker import Worker, WorkerOptions
from pgembed.worker.run import SESSION_SETTINGS
from tests.fakes import Connection, Table, until
from tests.faults import assert_table_kept, audit
from tests.proxy import MOMENTS, Moment, Proxy


@pytest.fixture
def table(database: Connection, database_dsn: str, monkeypatch: pytest.MonkeyPatch, storage: str) -> Table:
    made = Table(database, database_dsn, monkeypatch, storage)
    made.insert("red shoe", "blue car", "bad", None)
    audit(database, storage)

    def refuse(texts: Sequence[str]) -> None:
        if "bad" in texts:
            raise ValueError("bad is refused")

    made.encoder.before = refuse
    return made


@pytest.fixture
def proxy(database_dsn: str) -> Iterator[Proxy]:
    with Proxy.before(database_dsn) as proxy:
        yield proxy


@contextmanager
def by_way_of(proxy: Proxy, table: Table, **options: Any) -> Generator[Worker]:  # noqa: ANN401
    """A worker behind the proxy, for as long as the block; at its end everything flows."""
    worker = table.worker(**options)
    worker.connect = lambda: psycopg.connect(proxy.dsn)
    with table.running(worker):
        try:
            yield worker
        finally:
            proxy.flowing.set()


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lost connection is sought again at once, and one that stands still in a transaction is ended after a second."""
    monkeypatch.setitem(SESSION_SETTINGS, "idle_in_transaction_session_timeout", "1s")
    monkeypatch.setattr("pgembed.worker.run.TROUBLE_WAITS", (0.01, 0.02, 0.05, 0.05, 0.05))


@pytest.mark.parametrize("moment", MOMENTS, ids=str)
def test_a_connection_that_is_cut_costs_no_row_and_no_second_write(table: Table, proxy: Proxy, moment: Moment) -> None:
    proxy.at(moment, lambda pair: pair.cut())
    worker = Worker(lambda: psycopg.connect(proxy.dsn), WorkerOptions(poll=0.02, lease=60))
    began = time.monotonic()
    worker.run("until_idle")  # with a lease of a minute: what was in hand must be given back
    assert time.monotonic() - began < 20
    assert proxy.reached.is_set()
    assert_table_kept(table, failed={"3": "bad is refused"})


WRITING = [moment for moment in MOMENTS if moment.name in {"locking rows", "the write", "the write's commit"}]


@pytest.mark.parametrize("moment", WRITING, ids=str)
def test_a_partition_in_the_write_frees_the_rows_and_others_go_on(table: Table, proxy: Proxy, moment: Moment) -> None:
    """What the server holds for a worker that is cut off ends by itself: the application's rows, and the queue. Whether
    it was told of its commit or not, nothing is written twice."""
    proxy.at(moment, proxy.stall)
    with by_way_of(proxy, table, lease=0.3):
        assert proxy.reached.wait(10)
        table.conn.execute("SET lock_timeout = '5s'; UPDATE product SET title = 'green tree' WHERE id = 1")
        table.work()
        assert_table_kept(table, failed={"3": "bad is refused"})
        proxy.flowing.set()
        table.insert("white dog")
        until(lambda: 5 in table.true_ids())
    assert_table_kept(table, failed={"3": "bad is refused"})


def test_what_a_partition_held_back_is_not_written_twice(table: Table, proxy: Proxy) -> None:
    """The vectors come back when another worker has long written them, and changed titles since."""
    proxy.at(WRITING[0], proxy.stall)
    with by_way_of(proxy, table, lease=0.3):
        assert proxy.reached.wait(10)
        table.work()
        assert_table_kept(table, failed={"3": "bad is refused"})
        table.conn.execute(
            "UPDATE product SET title = title || ' again' WHERE id = 1; DELETE FROM product WHERE id = 2"
        )
        proxy.flowing.set()
        until(lambda: table.waiting() == 0)
    assert_table_kept(table, failed={"3": "bad is refused"})


def test_a_server_that_cannot_be_reached_for_a_while(table: Table, proxy: Proxy) -> None:
    with by_way_of(proxy, table):
        until(lambda: table.waiting() == 0)
        proxy.cut_all()
        for number in range(5):
            table.conn.execute("UPDATE product SET title = 'car ' || %s WHERE id = 2", [str(number)])
            proxy.cut_all()
        until(lambda: table.waiting() == 0)
    assert_table_kept(table, failed={"3": "bad is refused"})


def test_a_worker_notices_soon_that_it_is_cut_off(database: Connection, database_dsn: str) -> None:
    with pgembed.connect(f"{database_dsn} keepalives_idle=7") as db, db.worker().connect() as conn:
        told = conn.info.get_parameters()
    assert (told["keepalives_idle"], told["keepalives_interval"], told["tcp_user_timeout"]) == ("7", "10", "60000")
