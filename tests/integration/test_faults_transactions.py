"""Transactions of the application beside workers: uncommitted, in another order, serializable, long; and one row that
is changed a thousand times."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

import numpy as np
import psycopg
import pytest
from numpy.typing import NDArray

from pgembed.errors import EncoderError
from tests.fakes import Connection, Table, deadlocks, until
from tests.faults import assert_table_kept, audit_jobs


@pytest.fixture
def table(database: Connection, database_dsn: str, monkeypatch: pytest.MonkeyPatch, storage: str) -> Table:
    made = Table(database, database_dsn, monkeypatch, storage)
    audit_jobs(database, storage)
    return made


def test_a_row_that_is_changed_a_thousand_times(table: Table) -> None:
    """Under two workers; its vector is the last one's, and it was encoded at most once a change."""
    table.insert("shoe 0")
    with table.working(lease=0.2), table.working(lease=0.2):
        for number in range(1, 1001):
            table.conn.execute("UPDATE product SET title = %s WHERE id = 1", [f"shoe {number}"])
        until(lambda: table.waiting() == 0)
    assert_table_kept(table)
    assert table.true_ids() == [1]
    assert len(table.encoder.seen) <= 1001


def test_a_change_that_commits_while_its_row_is_written(table: Table) -> None:
    """It is made before the worker reads, and is committed after: at any moment from there to the write."""
    table.insert(*(f"shoe {number}" for number in range(1, 9)))
    with psycopg.connect(table.dsn) as other:
        for wait in (0.0, 0.002, 0.005, 0.01, 0.02, 0.05):
            for key in range(1, 9):
                other.execute("UPDATE product SET title = %s WHERE id = %s", [f"{key} after {wait}", key])
            table.conn.execute("SELECT pgembed.reconcile('product', \"where\" => 'true')")
            encoding = threading.Event()
            table.encoder.before = lambda texts, encoding=encoding: encoding.set()
            with table.working():
                assert encoding.wait(10)
                time.sleep(wait)
                other.commit()
                until(lambda: table.waiting() == 0)
            assert_table_kept(table)


def test_transactions_that_lock_rows_in_another_order_meet_no_deadlock(table: Table) -> None:
    """A worker locks what it can have at once: nobody waits for it who it waits for."""
    table.conn.execute("INSERT INTO product SELECT i, 'shoe ' || i FROM generate_series(1, 40) AS i")
    before = deadlocks(table.conn)
    errors: list[Exception] = []

    def write(step: int) -> None:
        try:
            with psycopg.connect(table.dsn) as conn:
                for number in range(25):
                    for key in list(range(1, 41))[::step]:
                        conn.execute("UPDATE product SET title = %s WHERE id = %s", [f"{key} {number}", key])
                    conn.commit()
        except psycopg.Error as error:
            errors.append(error)

    with table.working(batch_size=7), table.working(batch_size=40):
        for step in (1, -1):  # one after the other: two that cross would meet a deadlock of their own
            thread = threading.Thread(target=write, args=(step,))
            thread.start()
            thread.join(60)
        until(lambda: table.waiting() == 0)
    assert errors == []
    assert deadlocks(table.conn) == before
    assert_table_kept(table)


@pytest.mark.parametrize("level", [psycopg.IsolationLevel.SERIALIZABLE, psycopg.IsolationLevel.REPEATABLE_READ])
def test_a_long_transaction_holds_up_only_its_own_rows(table: Table, level: psycopg.IsolationLevel) -> None:
    """It reads the table, and changes two rows, while workers write all the others."""
    table.insert("red shoe", "blue car", "green tree", "white dog")
    with psycopg.connect(table.dsn) as long, table.working():
        long.isolation_level = level
        long.execute("SELECT count(*) FROM product")
        long.execute("UPDATE product SET title = 'black cat' WHERE id = 1")
        long.execute("INSERT INTO product VALUES (9, 'lamp')")
        expected = [2, 3, 4] if table.storage == "column" else [1, 2, 3, 4]
        until(lambda: table.true_ids() == expected)
        for number in range(20):
            table.conn.execute("UPDATE product SET title = %s WHERE id > 2", [f"dog {number}"])
            time.sleep(0.02)
        until(lambda: set(table.true_ids()) >= {2, 3, 4})
        long.commit()
        until(lambda: table.waiting() == 0)
    assert table.true_ids() == [1, 2, 3, 4, 9]
    assert_table_kept(table)


MANY = "returned an array of shape"


@pytest.mark.parametrize("change", ["too many", "too few", "none", "flat"])
def test_an_encoder_that_returns_another_number_of_vectors(table: Table, change: str) -> None:
    table.insert("red shoe", "blue car")

    def after(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        return {"too many": np.vstack([vectors, vectors]), "too few": vectors[:-1], "none": vectors[:0],
                "flat": vectors.ravel()}[change]  # fmt: skip

    table.encoder.after = after
    with pytest.raises(EncoderError, match=MANY):
        table.worker().run("once")
    assert table.failures() == {}
    assert table.embedded_ids() == []
    table.encoder.after = lambda vectors: vectors
    table.work()
    assert_table_kept(table)


def test_a_row_of_which_the_encoder_makes_no_number(table: Table) -> None:
    """Only for this row: the others have theirs, and the reason is told."""

    def after(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.where(np.array([text == "odd" for text in texts_of])[:, None], np.nan, vectors)

    texts_of: list[str] = []

    def before(texts: Sequence[str]) -> None:
        texts_of[:] = texts

    table.encoder.before, table.encoder.after = before, after
    table.insert("red shoe", "odd", "blue car")
    table.work(max_attempts=1)
    assert_table_kept(table, failed={"2": "The encoder returned a vector that is not finite."})
