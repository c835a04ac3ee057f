"""Reading one's own writes: wait, and what has workers wait: pause and resume."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest

import pgembed
from pgembed.errors import CatalogError, WaitTimeout
from tests.fakes import Connection, Table, until


@pytest.fixture
def table(database: Connection, database_dsn: str, monkeypatch: pytest.MonkeyPatch, storage: str) -> Table:
    return Table(database, database_dsn, monkeypatch, storage)


def test_every_row_of_before_the_call_has_its_vector_after_it(table: Table) -> None:
    table.insert(*(f"title {n}" for n in range(50)))  # for the backfill
    with table.working(batch_size=7), pgembed.connect(table.conn) as db:
        assert db.wait("product", timeout=30) == []
        assert table.true_ids() == list(range(1, 51))
        for n in range(20):
            table.conn.execute("UPDATE product SET title = %s WHERE id = %s", [f"other {n}", n + 1])
            assert db.wait("product", "embedding", timeout=30) == []
            assert n + 1 in table.true_ids()


def test_a_row_that_is_changed_again_and_again_is_waited_for(table: Table) -> None:
    """Each change makes a new job of it; the wait goes by the first, so that it does not end before the row is true."""
    table.insert("red shoe")
    table.work()
    table.conn.execute("UPDATE product SET title = 'first'")
    changed: list[int] = []

    def change(texts: object) -> None:
        if len(changed) < 3:
            changed.append(1)
            with psycopg.connect(table.dsn, autocommit=True) as other:
                other.execute("UPDATE product SET title = title || ' again'")
            time.sleep(0.1)

    table.encoder.before = change
    with ThreadPoolExecutor(1) as pool, psycopg.connect(table.dsn, autocommit=True) as other:
        waiting = pool.submit(lambda: pgembed.connect(other).wait("product", timeout=30))
        time.sleep(0.1)
        with table.working():
            assert waiting.result(30) == []
            assert table.true_ids() == [1]
    assert len(changed) == 3


def test_failed_rows_are_given_with_their_reasons(table: Table) -> None:
    table.insert("good", "bad", "also good")

    def refuse(texts: object) -> None:
        if "bad" in list(texts):  # type: ignore[call-overload]
            raise ValueError("no such word")

    table.encoder.before = refuse
    with table.working(), pgembed.connect(table.conn) as db:
        (failed,) = db.wait("product", timeout=30)
    assert (failed.embedding, failed.key) == ("embedding", ["2"])
    assert "no such word" in failed.error
    assert table.true_ids() == [1, 3]


def test_when_the_time_is_over_it_says_what_it_waits_for(table: Table) -> None:
    table.insert("red shoe")
    with pgembed.connect(table.conn) as db:
        start = time.monotonic()
        with pytest.raises(
            WaitTimeout, match=r"product still wait .* after 00:00:00\.3: backfill.*no worker is connected"
        ):
            db.wait("product", timeout=0.3)
        assert time.monotonic() - start < 20
        table.work()
        table.conn.execute("UPDATE product SET title = 'blue car'")
        with pytest.raises(WaitTimeout, match="ready, 1 queued"):
            db.wait("product", timeout=0)
    assert table.conn.info.transaction_status == psycopg.pq.TransactionStatus.IDLE


def test_a_change_that_is_not_committed_is_not_waited_for(table: Table) -> None:
    table.insert("red shoe")
    table.work()
    with psycopg.connect(table.dsn) as other:
        other.execute("UPDATE product SET title = 'blue car'")
        assert pgembed.connect(table.conn).wait("product", timeout=0) == []
        with pytest.raises(CatalogError, match=r"transaction has changed \S*product itself"):
            pgembed.connect(other).wait("product", timeout=0)
        other.rollback()
        other.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        with pytest.raises(CatalogError, match="at REPEATABLE READ nothing"):
            pgembed.connect(other).wait("product", timeout=0)


@pytest.mark.column_only
def test_it_waits_in_asyncio_too(table: Table) -> None:
    async def written() -> list[int]:
        async with pgembed.connect_async(table.dsn) as db:
            await db.wait("product", timeout=30)
            return table.true_ids()

    table.insert("red shoe", "blue car")
    with table.working():
        assert asyncio.run(written()) == [1, 2]


@pytest.mark.column_only
def test_unknown_tables_and_targets_are_told(table: Table) -> None:
    with pgembed.connect(table.conn) as db:
        for call in (db.wait, db.pause, db.resume):
            with pytest.raises(CatalogError, match="has no embedding named 'other'"):
                call("product", "other")


def test_a_paused_embedding_is_left_alone_and_loses_nothing(table: Table) -> None:
    conn = table.conn
    conn.execute("CREATE TABLE thing (id int PRIMARY KEY, title text)")
    table.attach("thing")
    with pgembed.connect(conn) as db:
        assert db.pause("product") == 1
        assert db.pause("product") == 0
        table.insert("red shoe")
        conn.execute("INSERT INTO thing VALUES (1, 'blue car')")
        assert table.work().written == 1
        assert table.true_ids() == []
        assert [row.state for row in db.status()] == ["paused", "ready"]
        with pytest.raises(WaitTimeout, match="paused, 1 queued"):
            db.wait("product", timeout=0.05)
        assert db.resume("product") == 1
        assert [row.state for row in db.status("product")] == ["backfill"]
        table.work()
        assert table.true_ids() == [1]
        assert db.pause("product") == 1
        conn.execute("UPDATE product SET title = 'green tree'")
        table.work()
        assert table.true_ids() == []
        db.resume("product")
        assert [row.state for row in db.status("product")] == ["ready"]  # and not filled from the start
        with table.working():
            until(lambda: table.true_ids() == [1])
