"""What does an embedding of a large table cost, long before its rows have their vectors?

    python -m benchmarks.large_table [--rows N] [--quick] [--json]

Five million rows of a key and a title (100,000 with --quick), with vectors of builtin:lite in a column and in a side
table. It takes the time to attach; has a worker fill the table for some seconds and stops it; looks how many rows stand
in the queue meanwhile, and how soon a row that is changed then has its new vector, though the backfill is far from it;
has another worker go on where the first one stopped, and counts whether any row was encoded twice; and detaches. None
of that may depend on the size of the table: it does not wait for all of the vectors, which come at "rows/s".
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psycopg

from benchmarks.common import Figure, Report, arguments, fresh_database
from pgembed.worker import Summary, Worker

ROWS, ROWS_QUICK = 5_000_000, 100_000
SECONDS, SECONDS_QUICK = 20.0, 3.0  # that each worker runs for
LOOK_EVERY = 0.05
ATTACH_TARGET, STOP_TARGET, FRESH_TARGET, DETACH_TARGET = 1.0, 2.0, 2.0, 1.0  # seconds
QUEUE_TARGET = 10_000  # rows
STORAGES = ("column", "side")


@dataclass
class Filling:
    """What a worker did of a table while it ran."""

    written: int = 0
    seconds: float = 0.0
    most_queued: int = 0
    stopping: float = 0.0  # seconds from the word to its end


def main() -> int:
    """Run it; gives the exit status."""
    options = arguments(__doc__, rows=ROWS)
    rows: int = ROWS_QUICK if options.quick else options.rows
    seconds = SECONDS_QUICK if options.quick else SECONDS
    report = Report("large_table", as_json=options.json)
    with fresh_database() as dsn, psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("SELECT pgembed.add_encoder('lite', 'builtin:lite')")
        conn.execute("CREATE TABLE product (id bigint PRIMARY KEY, title text NOT NULL)")
        conn.execute(
            "INSERT INTO product SELECT i, 'a red shoe, number ' || i FROM generate_series(1, %s) AS i", [rows]
        )
        conn.execute("VACUUM (ANALYZE) product")
        found = {storage: measure(dsn, conn, storage, rows, seconds) for storage in STORAGES}
    report.table(f"{rows:,} rows", [{"storage": storage, **facts} for storage, facts in found.items()])
    worst = {name: max(facts[name] for facts in found.values()) for name in found["column"]}
    return report.finish(
        Figure("attach", worst["attach s"], ATTACH_TARGET),
        Figure("queue", worst["most queued"], QUEUE_TARGET),
        Figure("fresh", worst["fresh s"], FRESH_TARGET),
        Figure("stop", worst["stop s"], STOP_TARGET),
        Figure("twice", worst["twice"], 0),
        Figure("detach", worst["detach s"], DETACH_TARGET),
    )


def measure(dsn: str, conn: psycopg.Connection[Any], storage: str, rows: int, seconds: float) -> dict[str, float]:
    """Attach, fill for a while, go on for a while, and detach; what each came to."""
    attaching = time.perf_counter()
    (number,) = conn.execute(
        "SELECT pgembed.attach('product', 'embedding', 'lite', '{\"text\": \"title\"}', storage => %s)", [storage]
    ).fetchall()[0]
    attach = time.perf_counter() - attaching
    place = "product WHERE embedding IS NOT NULL" if storage == "column" else "product_embedding"
    with filling(dsn, number) as first:
        time.sleep(seconds)
        fresh = freshness(conn, storage, rows)
    with filling(dsn, number) as second:
        time.sleep(seconds)
    (ready,) = conn.execute(f"SELECT count(*) FROM {place}".encode()).fetchall()[0]
    written = first.written + second.written
    detaching = time.perf_counter()
    conn.execute("SELECT pgembed.detach('product')")
    return {
        "attach s": attach,
        "rows/s": written / (first.seconds + second.seconds),
        "written": written,
        "most queued": max(first.most_queued, second.most_queued),
        "fresh s": fresh,
        "stop s": max(first.stopping, second.stopping),
        "twice": written - ready,
        "detach s": time.perf_counter() - detaching,
    }


@contextmanager
def filling(dsn: str, number: int) -> Iterator[Filling]:
    """A worker that fills the table until the block ends, and is stopped then."""
    facts, worker, summaries = Filling(), Worker(lambda: psycopg.connect(dsn)), list[Summary]()
    running = threading.Thread(target=lambda: summaries.append(worker.run()))
    looking = threading.Thread(target=look, args=(dsn, number, running, facts))
    started = time.perf_counter()
    running.start()
    looking.start()
    try:
        yield facts
    finally:
        told = time.perf_counter()
        worker.stop()
        running.join()
        facts.stopping = time.perf_counter() - told
        looking.join()
    facts.seconds = time.perf_counter() - started
    facts.written = summaries[0].written


def look(dsn: str, number: int, running: threading.Thread, facts: Filling) -> None:
    """See how many rows stand in the queue for as long as the worker runs."""
    count = f"SELECT (SELECT count(*) FROM pgembed.change_{number}) + (SELECT count(*) FROM pgembed.job_{number})"
    with psycopg.connect(dsn, autocommit=True) as conn:
        while running.is_alive():
            (queued,) = conn.execute(count.encode()).fetchall()[0]
            facts.most_queued = max(facts.most_queued, queued)
            time.sleep(LOOK_EVERY)


def freshness(conn: psycopg.Connection[Any], storage: str, key: int) -> float:
    """Seconds from a change of the last row, which the backfill comes to last, to its vector."""
    place = "product WHERE embedding IS NOT NULL AND" if storage == "column" else "product_embedding WHERE"
    conn.execute("UPDATE product SET title = title || ', reduced' WHERE id = %s", [key])
    changed = time.perf_counter()
    while not conn.execute(f"SELECT FROM {place} id = %s".encode(), [key]).fetchall():
        time.sleep(LOOK_EVERY / 5)
    return time.perf_counter() - changed


if __name__ == "__main__":
    sys.exit(main())
