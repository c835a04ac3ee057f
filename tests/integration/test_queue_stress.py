"""The queue under load: writers at three isolation levels on few rows, workers whose leases run out all the time.

PGEMBED_STRESS_SECONDS sets how long (default 15). PGEMBED_STRESS_WITHOUT=guard leaves out the NOT EXISTS on the log of
changes, and =lock the lock on the user's rows: the test must then fail, which shows that it can (docs/queue.md).
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import psycopg
import pytest
from numpy.typing import NDArray
from psycopg import IsolationLevel, sql

from pgembed.encoders.builtin import LiteEncoder
from pgembed.static_text import StaticText
from pgembed.worker import Worker, WorkerOptions
from pgembed.worker.queue import Queue
from tests.fakes import Log, deadlocks, use_encoders

Connection = psycopg.Connection[tuple[Any, ...]]

SECONDS = float(os.environ.get("PGEMBED_STRESS_SECONDS", "15"))
WITHOUT = os.environ.get("PGEMBED_STRESS_WITHOUT", "")
ROWS, MOVED, WRITERS, WORKERS, LEASE = 30, 100, 5, 3, 0.02
ADJECTIVES = ["red", "blue", "green", "yellow", "black", "white", "small", "large", "old", "new", "wooden", "golden"]
NOUNS = [
    "shoe",
    "dress",
    "house",
    "car",
    "dog",
    "cat",
    "bird",
    "fish",
    "tree",
    "table",
    "chair",
    "lamp",
    "clock",
    "boat",
]
TITLES = [f"{adjective} {noun}" for adjective in ADJECTIVES for noun in NOUNS]
STALE = """
    SELECT count(*) FROM product AS p LEFT JOIN truth AS t USING (title)
    WHERE p.embedding IS NOT NULL AND coalesce(p.embedding <-> t.vector, 1) > 0.001
"""
UNTRUE = """
    SELECT count(*) FROM product AS p LEFT JOIN truth AS t USING (title)
    WHERE (p.embedding IS NULL) <> (p.title IS NULL) OR p.embedding <-> t.vector > 0.001
"""


class SlowLite(LiteEncoder):
    """The built-in encoder, often slower than a lease."""

    def embed_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        time.sleep(random.random() * 2 * LEASE)
        return super().embed_texts(texts)


@dataclass
class Load:
    """What the threads of one run share, and what they saw."""

    dsn: str
    over: threading.Event = field(default_factory=threading.Event)
    counts: Counter[str] = field(default_factory=Counter[str])
    errors: Counter[tuple[str, str]] = field(default_factory=Counter[tuple[str, str]])
    guard: threading.Lock = field(default_factory=threading.Lock)

    def write(self, seed: int) -> None:
        """A client of the application: short transactions over rows in key order, so that no deadlock is theirs."""
        choose = random.Random(seed)
        with psycopg.connect(self.dsn) as conn:
            while not self.over.is_set():
                conn.isolation_level = choose.choice(list(IsolationLevel)[1:])
                try:
                    for key in sorted(choose.sample(range(1, ROWS + 1), choose.randint(1, 4))):
                        _change(conn, choose, key)
                        time.sleep(choose.random() * 0.003)
                    conn.commit()
                    with self.guard:
                        self.counts["transactions"] += 1
                except psycopg.Error as error:
                    conn.rollback()
                    in_trigger = "pgembed" in (error.diag.context or "") and not _was_doomed(error)
                    where = "trigger" if in_trigger else "own statement"
                    with self.guard:
                        self.errors[type(error).__name__, where] += 1

    def watch(self) -> None:
        """Look for a vector that is not its row's, at any moment."""
        with psycopg.connect(self.dsn, autocommit=True) as conn:
            while not self.over.is_set():
                (stale,) = conn.execute(STALE).fetchone() or (0,)
                self.counts["stale"] += stale
                self.counts["looks"] += 1
                time.sleep(0.002)


def _was_doomed(error: psycopg.Error) -> bool:
    """Whether what the transaction had read doomed it; it hears of it at its next write, which may be a trigger's."""
    return "read/write dependencies" in (error.diag.message_primary or "")


def _change(conn: Connection, choose: random.Random, key: int) -> None:
    title = choose.choice(TITLES) if choose.random() < 0.9 else None
    here = choose.choice([key, key + MOVED])
    what = choose.random()
    if what < 0.5:
        conn.execute("UPDATE product SET title = %s WHERE id = %s", [title, here])
    elif what < 0.62:
        conn.execute("UPDATE product SET other = other + 1 WHERE id = %s", [here])
    elif what < 0.72:
        conn.execute("DELETE FROM product WHERE id = %s", [here])
    elif what < 0.80:
        conn.execute("DELETE FROM product WHERE id = %s", [here])
        conn.execute("INSERT INTO product (id, title) VALUES (%s, %s) ON CONFLICT DO NOTHING", [here, title])
    elif what < 0.92:
        conn.execute(
            "INSERT INTO product (id, title) VALUES (%s, %s) ON CONFLICT (id) DO UPDATE SET title = excluded.title",
            [here, title],
        )
    else:  # to the higher key only: two that swap would wait for each other
        conn.execute(
            "UPDATE product SET id = %(there)s WHERE id = %(here)s AND NOT EXISTS"
            " (SELECT FROM product WHERE id = %(there)s)",
            {"here": key, "there": key + MOVED},
        )


def _prepare(database: Connection, text: StaticText) -> None:
    database.execute("CREATE TABLE product (id integer PRIMARY KEY, title text, other integer NOT NULL DEFAULT 0)")
    database.execute("CREATE TABLE truth (title text PRIMARY KEY, vector vector(256) NOT NULL)")
    vectors = text.encode(TITLES)
    apart = np.linalg.norm(vectors[:, None] - vectors[None], axis=2) + np.eye(len(TITLES))
    assert apart.min() > 0.1
    with database.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO truth VALUES (%s, %s::real[]::vector)",
            [(title, vector.tolist()) for title, vector in zip(TITLES, vectors, strict=True)],
        )
    database.execute("INSERT INTO product SELECT i, %s FROM generate_series(1, %s) AS i", [TITLES[0], ROWS])
    database.execute("SELECT pgembed.add_encoder('shop', 'builtin:lite')")
    database.execute("""SELECT pgembed.attach('product', 'embedding', 'shop', '{"text": "title"}', stale => 'null')""")


def _leave_out(monkeypatch: pytest.MonkeyPatch) -> None:
    if WITHOUT == "guard":
        monkeypatch.setattr(Queue, "_unchanged", lambda self: sql.SQL("true"))
    elif WITHOUT == "lock":
        with_lock = Queue.lock_rows.func
        clause = sql.SQL(" FOR NO KEY UPDATE OF t SKIP LOCKED")
        monkeypatch.setattr(Queue, "lock_rows", property(lambda self: _without(with_lock(self), clause.as_string())))


def _without(statement: sql.Composed, clause: str) -> sql.SQL:
    return sql.SQL(statement.as_string().replace(clause, ""))


@pytest.mark.slow
def test_no_vector_is_stale_and_nobody_fails_under_load(
    database: Connection, database_dsn: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    encoder = SlowLite()
    _prepare(database, encoder.text)
    use_encoders(monkeypatch, {"builtin:lite": encoder})
    _leave_out(monkeypatch)
    conflicts: list[str] = []
    monkeypatch.setattr("pgembed.worker.write.is_conflict", lambda error: conflicts.append(str(error)))
    load = Load(database_dsn)
    log = Log()
    options = WorkerOptions(batch_size=8, lease=LEASE, poll=0.005)
    workers = [Worker(lambda: psycopg.connect(database_dsn), options) for _ in range(WORKERS)]
    for worker in workers:
        worker.state.log = log
    running = _start([worker.run for worker in workers])
    others = _start([lambda seed=seed: load.write(seed) for seed in range(WRITERS)] + [load.watch])

    time.sleep(SECONDS)
    load.over.set()
    _join(others)
    _until(lambda: database.execute("SELECT queued = 0 FROM pgembed.status").fetchone() == (True,))
    for worker in workers:
        worker.stop()
    _join(running)

    written = sum(worker.state.summary.written for worker in workers)
    with capsys.disabled():
        print(f"\n{dict(load.counts)}, written: {written}, writers' errors: {dict(load.errors)}, workers': {log.lines}")
    assert load.counts["stale"] == 0
    assert load.counts["looks"] > 10 * SECONDS
    assert load.counts["transactions"] > 10 * SECONDS
    assert written > 10 * SECONDS
    assert [error for error, where in load.errors if where == "trigger"] == []
    assert {error for error, _ in load.errors} <= {"SerializationFailure", "UniqueViolation"}
    assert (log.lines, conflicts) == ([], [])
    assert database.execute(UNTRUE).fetchone() == (0,)
    assert database.execute("SELECT queued, claimed, failed FROM pgembed.status").fetchone() == (0, 0, 0)
    assert deadlocks(database) == 0


def _start(calls: Sequence[Callable[[], Any]]) -> list[threading.Thread]:
    threads = [threading.Thread(target=call, daemon=True) for call in calls]
    for thread in threads:
        thread.start()
    return threads


def _join(threads: Sequence[threading.Thread]) -> None:
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()


def _until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)
