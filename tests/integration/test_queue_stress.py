"""The queue under load: writers at three isolation levels on few rows, workers whose leases run out all the time.

The same writers run four times: without a worker, with workers, with workers and ``stale => 'null'``, and with workers
that write into a side table. A trigger of the test's own notes who changed which row in which transaction, so that each
serialization failure of a writer is laid at the door of another writer or of a worker.

PGEMBED_STRESS_SECONDS sets how long they write in all (default 16). PGEMBED_STRESS_WITHOUT=guard leaves out the NOT
EXISTS on the log of changes, and =lock the lock on the user's rows: the test must then fail, which shows that it can
(docs/queue.md).
"""

from __future__ import annotations

import math
import os
import random
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import psycopg
import pytest
from numpy.typing import NDArray
from psycopg import IsolationLevel, sql

from pgembed.encoders.builtin import LiteEncoder
from pgembed.static_text import StaticText
from pgembed.worker import Worker, WorkerOptions
from pgembed.worker.queue import Queue
from tests.fakes import Log, deadlocks, until, use_encoders

Connection = psycopg.Connection[tuple[Any, ...]]

SECONDS = float(os.environ.get("PGEMBED_STRESS_SECONDS", "16")) / 4
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

TABLES = """
CREATE TABLE product (id integer PRIMARY KEY, title text, other integer NOT NULL DEFAULT 0);
CREATE TABLE truth (title text PRIMARY KEY, vector vector(256) NOT NULL);
CREATE TABLE touched (id integer NOT NULL, xid xid8 NOT NULL DEFAULT pg_current_xact_id(), by_worker boolean NOT NULL);
CREATE TABLE wrong (id integer NOT NULL, title text);
CREATE FUNCTION audit() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    by_worker CONSTANT boolean := current_setting('application_name') = 'pgembed worker';
BEGIN
    INSERT INTO touched (id, by_worker) SELECT coalesce(OLD.id, NEW.id), by_worker;
    IF NEW.id <> OLD.id THEN
        INSERT INTO touched (id, by_worker) VALUES (NEW.id, by_worker);
    END IF;
    RETURN NULL;
END $$;
CREATE FUNCTION judge() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF current_setting('application_name') = 'pgembed worker' AND NEW.embedding IS NOT NULL AND NOT EXISTS (
        SELECT FROM truth AS t WHERE t.title = NEW.title AND t.vector <-> NEW.embedding < 0.001
    ) THEN
        INSERT INTO wrong VALUES (NEW.id, NEW.title);
    END IF;
    RETURN NULL;
END $$;
"""
# What a side table's vector is judged by is the row as the statement that writes it sees it, which a stable function
# sees too, but may not write down: an error does, since the worker records it.
SIDE_JUDGE = """
CREATE OR REPLACE FUNCTION judge() RETURNS trigger LANGUAGE plpgsql STABLE AS $$
BEGIN
    IF NOT EXISTS (
        SELECT FROM product AS p JOIN truth AS t USING (title)
        WHERE p.id = NEW.id AND t.vector <-> NEW.vector < 0.001
    ) THEN
        RAISE EXCEPTION 'row % is given the vector of another', NEW.id;
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER judge AFTER INSERT OR UPDATE ON product_embedding FOR EACH ROW EXECUTE FUNCTION judge()
"""
WITH_SIDE = "(SELECT r.*, s.vector AS embedding FROM product AS r LEFT JOIN product_embedding AS s USING (id)) AS p"
LEFT_OVER = "SELECT count(*) FROM product_embedding AS s WHERE NOT EXISTS (SELECT FROM product AS p WHERE p.id = s.id)"
# Rows whose vector is not their title's; those of them that nobody will mend; those that show a vector all the same.
UNTRUE = """
    SELECT count(*) FROM product AS p LEFT JOIN truth AS t USING (title)
    WHERE ((p.embedding IS NULL) <> (p.title IS NULL) OR p.embedding <-> t.vector > 0.001)
"""
LOST = f"""{UNTRUE}
    AND (SELECT state = 'ready' FROM pgembed.embedding)
    AND NOT EXISTS (SELECT FROM pgembed.change_{{0}} WHERE key_1 = p.id)
    AND NOT EXISTS (SELECT FROM pgembed.job_{{0}} WHERE key_1 = p.id)
"""
STALE = f"{UNTRUE} AND p.embedding IS NOT NULL"
# Whom a failure is owed to: who changed the row after the transaction began to see, and committed before it failed.
CAUSES = """
    SELECT CASE WHEN bool_or(NOT t.by_worker) THEN 'writer' WHEN bool_or(t.by_worker) THEN 'worker' ELSE 'nobody' END
    FROM unnest(%s::integer[], %s::pg_snapshot[], %s::pg_snapshot[]) WITH ORDINALITY AS f (id, began, failed, number)
    LEFT JOIN touched AS t
        ON t.id = f.id AND NOT pg_visible_in_snapshot(t.xid, f.began) AND pg_visible_in_snapshot(t.xid, f.failed)
    GROUP BY f.number
"""
Kind = Literal["keep", "null", "side"]


class SlowLite(LiteEncoder):
    """The built-in encoder, often slower than a lease."""

    def embed_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        time.sleep(random.random() * 2 * LEASE)
        return super().embed_texts(texts)


@dataclass(frozen=True)
class Failure:
    """A transaction that could not be serialized: the row it was at, what it saw, and what was there once it failed."""

    key: int
    isolation: IsolationLevel
    began: str
    failed: str
    by_reads: bool  # of its own and others', which workers have no part in: they are READ COMMITTED


@dataclass
class Load:
    """What the threads of one run share, and what they saw."""

    dsn: str
    looks_for: dict[str, str]
    over: threading.Event = field(default_factory=threading.Event)
    counts: Counter[str] = field(default_factory=Counter[str])
    errors: Counter[tuple[str, str]] = field(default_factory=Counter[tuple[str, str]])
    failures: list[Failure] = field(default_factory=list[Failure])
    guard: threading.Lock = field(default_factory=threading.Lock)

    def write(self, seed: int) -> None:
        """A client of the application: short transactions over rows in key order, so that no deadlock is theirs."""
        choose = random.Random(seed)
        with psycopg.connect(self.dsn) as conn:
            while not self.over.is_set():
                conn.isolation_level = isolation = choose.choice(list(IsolationLevel)[1:])
                began, here = _snapshot(conn), 0
                try:
                    for key in sorted(choose.sample(range(1, ROWS + 1), choose.randint(1, 4))):
                        here = choose.choice([key, key + MOVED])
                        _change(conn, choose, here)
                        time.sleep(choose.random() * 0.003)
                    conn.commit()
                    with self.guard:
                        self.counts["transactions"] += 1
                except psycopg.Error as error:
                    conn.rollback()
                    failed = _snapshot(conn)
                    conn.rollback()
                    by_reads = "read/write dependencies" in (error.diag.message_primary or "")
                    # what it had read doomed it; it hears of it at its next write, which may be a trigger's
                    in_trigger = "pgembed" in (error.diag.context or "") and not by_reads
                    with self.guard:
                        self.errors[type(error).__name__, "trigger" if in_trigger else "own statement"] += 1
                        if isinstance(error, psycopg.errors.SerializationFailure):
                            self.failures.append(Failure(here, isolation, began, failed, by_reads))
                with self.guard:
                    self.counts["may fail"] += isolation > IsolationLevel.READ_COMMITTED

    def watch(self) -> None:
        """Look for rows that must not be there, at any moment."""
        with psycopg.connect(self.dsn, autocommit=True) as conn:
            while not self.over.is_set():
                for what, query in self.looks_for.items():
                    (found,) = conn.execute(query.encode()).fetchone() or (0,)
                    self.counts[what] += found
                self.counts["looks"] += 1
                time.sleep(0.002)


def _snapshot(conn: Connection) -> str:
    (snapshot,) = conn.execute("SELECT pg_current_snapshot()::text").fetchall()[0]
    return snapshot


def _change(conn: Connection, choose: random.Random, here: int) -> None:
    title = choose.choice(TITLES) if choose.random() < 0.9 else None
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
    elif what < 0.90 or here > ROWS:
        conn.execute(
            "INSERT INTO product (id, title) VALUES (%s, %s) ON CONFLICT (id) DO UPDATE SET title = excluded.title",
            [here, title],
        )
    else:  # to the higher key only: two that swap would wait for each other
        conn.execute(
            "UPDATE product SET id = %(there)s WHERE id = %(here)s AND NOT EXISTS"
            " (SELECT FROM product WHERE id = %(there)s)",
            {"here": here, "there": here + MOVED},
        )


def _prepare(database: Connection, text: StaticText, kind: Kind) -> int:
    database.execute(TABLES.encode())
    vectors = text.encode(TITLES)
    apart = np.linalg.norm(vectors[:, None] - vectors[None], axis=2) + np.eye(len(TITLES))
    assert apart.min() > 0.1
    with database.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO truth VALUES (%s, %s::real[]::vector)",
            [(title, vector.tolist()) for title, vector in zip(TITLES, vectors, strict=True)],
        )
    database.execute("INSERT INTO product SELECT i, %s FROM generate_series(1, %s) AS i", [TITLES[0], ROWS])
    ((number,),) = database.execute(
        """SELECT pgembed.attach('product', 'embedding', 'shop', '{"text": "title"}', stale => %s, storage => %s)""",
        ["keep", "side"] if kind == "side" else [kind, "column"],
    ).fetchall()
    database.execute(
        "CREATE TRIGGER audit AFTER INSERT OR UPDATE OR DELETE ON product FOR EACH ROW EXECUTE FUNCTION audit()"
    )
    database.execute(
        SIDE_JUDGE
        if kind == "side"
        else "CREATE TRIGGER judge AFTER INSERT OR UPDATE ON product FOR EACH ROW EXECUTE FUNCTION judge()"
    )
    return number


def _of(kind: Kind, query: str) -> str:
    """A query over rows with their vectors, wherever these stand."""
    return query.replace("product AS p", WITH_SIDE) if kind == "side" else query


def _leave_out(monkeypatch: pytest.MonkeyPatch) -> None:
    if WITHOUT == "guard":
        monkeypatch.setattr(Queue, "_unchanged", lambda self: sql.SQL("true"))
    elif WITHOUT == "lock":
        with_lock = Queue.lock_rows.func
        clause = re.compile(r" FOR (NO KEY UPDATE|KEY SHARE) OF t SKIP LOCKED")
        monkeypatch.setattr(Queue, "lock_rows", property(lambda self: _without(with_lock(self), clause)))


def _without(statement: sql.Composed, clause: re.Pattern[str]) -> sql.SQL:
    return sql.SQL(clause.sub("", statement.as_string()))


@dataclass
class Outcome:
    """What one run came to: how often each thing was done, and what its serialization failures are owed to."""

    counts: Counter[str]
    errors: Counter[tuple[str, str]]
    failures: list[Failure]
    causes: Counter[str]

    @property
    def share(self) -> float:
        """Of the transactions that may fail, and that no worker failed, those that the writers failed themselves."""
        return (self.causes["writer"] + self.causes["reads"]) / self.left

    @property
    def left(self) -> int:
        return self.counts["may fail"] - self.causes["worker"]

    def __str__(self) -> str:
        return f"{dict(self.counts)}, failed by: {dict(self.causes)}, by writers: {self.share:.3f}"


def _run(database: Connection, dsn: str, text: StaticText, kind: Kind, workers: int) -> Outcome:
    """Writers, a watcher and so many workers for a while; then the workers go on until nothing waits."""
    number = _prepare(database, text, kind)
    looks_for = {"lost": _of(kind, LOST.format(number))} | ({"stale": STALE} if kind == "null" else {})
    load = Load(dsn, looks_for)
    log = Log()
    options = WorkerOptions(batch_size=8, lease=LEASE, poll=0.005)
    at_work = [Worker(lambda: psycopg.connect(dsn), options) for _ in range(workers)]
    for worker in at_work:
        worker.state.log = log
    running = _start([worker.run for worker in at_work])
    others = _start([lambda seed=seed: load.write(seed) for seed in range(WRITERS)] + [load.watch])
    time.sleep(SECONDS)
    load.over.set()
    _join(others)
    if workers:
        until(lambda: database.execute("SELECT queued = 0 FROM pgembed.status").fetchone() == (True,), seconds=60)
    for worker in at_work:
        worker.stop()
    _join(running)

    outcome = Outcome(load.counts, load.errors, load.failures, _causes(database, load.failures))
    outcome.counts["written"] = sum(worker.state.summary.written for worker in at_work)
    (outcome.counts["changes"],) = database.execute("SELECT count(*) FROM touched WHERE NOT by_worker").fetchall()[0]
    assert log.lines == []
    assert outcome.counts["looks"] > 10 * SECONDS
    assert outcome.counts["transactions"] > 10 * SECONDS
    return outcome


def _causes(database: Connection, failures: Sequence[Failure]) -> Counter[str]:
    """How many failures are owed to another writer's change, to what was read, to a worker's write, to nobody."""
    over_rows = [one for one in failures if not one.by_reads]
    database.execute("CREATE INDEX ON touched (id); ANALYZE touched")
    rows = database.execute(
        CAUSES, [[getattr(one, name) for one in over_rows] for name in ("key", "began", "failed")]
    ).fetchall()
    return Counter(cause for (cause,) in rows) + Counter(reads=len(failures) - len(over_rows))


def _assert_true(database: Connection, outcome: Outcome, kind: Kind) -> None:
    """Every vector was true when it was written, and is; nothing waits; no trigger of pgembed failed a writer."""
    assert (outcome.counts["stale"], outcome.counts["lost"]) == (0, 0)
    assert database.execute("SELECT * FROM wrong").fetchall() == []
    assert outcome.counts["written"] > 10 * SECONDS
    assert database.execute(_of(kind, UNTRUE).encode()).fetchone() == (0,)
    if kind == "side":
        assert database.execute(LEFT_OVER).fetchone() == (0,)
    assert database.execute("SELECT queued, claimed, failed FROM pgembed.status").fetchone() == (0, 0, 0)


def _assert_no_more_failures(alone: Outcome, outcome: Outcome) -> None:
    """The writers fail one another no more often than without a worker, and a worker only by writing their rows.

    Compared are shares of transactions. A slow machine does not change them: each writer is always in a transaction,
    so that one that takes twice as long meets as many others. The margin is four standard deviations of the difference
    of two shares, each a count of independent trials (seen over many runs: they scatter no more than that). By chance
    alone it is passed once in 30,000 comparisons of equal shares.
    """
    both = (alone.share * alone.left + outcome.share * outcome.left) / (alone.left + outcome.left)
    deviation = math.sqrt(both * (1 - both) * (1 / alone.left + 1 / outcome.left))
    assert outcome.share <= alone.share + 4 * deviation
    # A vector written is a change of the row, and fails about as many as another client's change of it would have
    # failed: seen were 1.2 to 1.8 times as many, since it meets all writers, and a writer only the others.
    as_changes = outcome.counts["written"] * alone.share * alone.left / alone.counts["changes"]
    assert outcome.causes["worker"] <= 3 * as_changes + 4 * math.sqrt(3 * as_changes)


@pytest.mark.slow
def test_no_vector_is_stale_and_nobody_fails_under_load(
    database: Connection, database_dsn: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    encoder = SlowLite()
    use_encoders(monkeypatch, {"builtin:lite": encoder})
    _leave_out(monkeypatch)
    conflicts: list[str] = []
    monkeypatch.setattr("pgembed.worker.write.is_conflict", lambda error: conflicts.append(str(error)))
    database.execute("SELECT pgembed.add_encoder('shop', 'builtin:lite')")
    outcomes: list[Outcome] = []
    runs: list[tuple[Kind, int]] = [("keep", 0), ("keep", WORKERS), ("null", WORKERS), ("side", WORKERS)]
    for kind, workers in runs:
        outcomes.append(outcome := _run(database, database_dsn, encoder.text, kind, workers))
        with capsys.disabled():
            print(f"\n{kind}, {workers} workers: {outcome}", end="")
        assert [error for error, where in outcome.errors if where == "trigger"] == []
        assert {error for error, _ in outcome.errors} <= {"SerializationFailure", "UniqueViolation"}
        assert not any(failure.isolation is IsolationLevel.READ_COMMITTED for failure in outcome.failures)
        in_rows = workers and kind != "side"
        assert set(outcome.causes) <= ({"writer", "reads", "worker"} if in_rows else {"writer", "reads"})
        if workers:
            _assert_true(database, outcome, kind)
            _assert_no_more_failures(outcomes[0], outcome)
        database.execute(
            "SELECT pgembed.detach('product'); DROP TABLE product, truth, touched, wrong; DROP FUNCTION audit, judge"
        )
    assert conflicts == []
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
