"""Does anything grow? Writes and searches with two workers for some minutes: memory, queue, dead rows and latency.

    python -m benchmarks.soak [--minutes N] [--quick] [--json]

A table of 5,000 texts with an embedding by builtin:lite and its HNSW index. Two writers insert, change inputs and other
columns and delete, at a steady rate, so that the table keeps its size; two workers (`pgembed worker`, each a process)
encode; one client searches. 20 minutes, or one with ``--quick``, for which autovacuum looks every 2 seconds in place of
every minute. Each second is a sample. The last quarter is compared with the second, the first being the time in which
caches fill and tables get their size. A target is 10 % more. To small counts a batch or what autovacuum leaves alone is
added on both sides, since a queue of 3 rows is no longer than one of 1.

The latency is a search's 95th percentile in units of that of a statement which only computes, asked in turn with it on
the same connection, so that whatever else the machine does slows both.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg

from benchmarks.common import Figure, Report, arguments, fresh_database, p50, p95

MINUTES, QUICK_MINUTES = 20.0, 1.0
ROWS = 5_000
WRITES, SEARCHES = 25, 20  # transactions a second of each writer, and searches
WRITERS, WORKERS = 2, 2
GROWTH = 1.10
QUARTERS = ("first quarter", "second", "third", "last")
WORDS = ["red", "blue", "small", "large", "old", "wooden", "leather", "summer", "shoe", "dress", "lamp", "chair", "bag"]
SEARCH = "SELECT (item).id, score FROM pgembed.search(NULL::product, (SELECT pgembed.encode_text('lite', %s)), k => 10)"
REFERENCE = "SELECT sum(sqrt(i)) FROM generate_series(1, 4000) AS i"
QUEUE = """
    SELECT (SELECT count(*) FROM pgembed.change_1) + (SELECT count(*) FROM pgembed.job_1),
        (SELECT sum(n_dead_tup) FROM pg_stat_user_tables WHERE relname IN ('change_1', 'job_1')),
        pg_total_relation_size('pgembed.change_1') + pg_total_relation_size('pgembed.job_1')
"""


@dataclass
class Sample:
    """What was seen at one second."""

    at: float
    worker_mb: float = 0.0
    queued: int = 0
    dead: int = 0
    queue_mb: float = 0.0
    latency: float = 0.0  # of a search, in units of the reference
    search_ms: float = 0.0


@dataclass(frozen=True)
class Measure:
    """Something that must not grow: how a quarter's samples are summed up, and what is added to small counts."""

    name: str
    of: Callable[[Sample], float]
    sum_up: Callable[[list[float]], float] = p50
    floor: float = 0.0


MEASURES = (
    Measure("memory", lambda sample: sample.worker_mb),
    Measure("queue", lambda sample: sample.queued, floor=256),  # rows
    Measure("dead_rows", lambda sample: sample.dead, sum_up=max, floor=2_000),
    Measure("queue_size", lambda sample: sample.queue_mb, floor=1.0),  # MB
    Measure("search_p95", lambda sample: sample.latency),
)


@dataclass
class Latencies:
    """Milliseconds of searches and of the reference since they were last taken."""

    search: list[float] = field(default_factory=list[float])
    reference: list[float] = field(default_factory=list[float])

    def take(self) -> tuple[float, float]:
        """The 95th percentile of searches in units of that of the reference, and in milliseconds."""
        search, self.search = self.search, []
        reference, self.reference = self.reference, []
        if not search or not reference:
            return 0.0, 0.0
        return p95(search) / p95(reference), p95(search)


def main() -> int:
    """Run it; gives the exit status."""
    options = arguments(__doc__, minutes=MINUTES)
    minutes = QUICK_MINUTES if options.quick else options.minutes
    report = Report("soak", as_json=options.json)
    with fresh_database() as dsn:
        prepare(dsn, naptime=2 if options.quick else 60)
        samples = soak(dsn, minutes * 60)
        with psycopg.connect(dsn) as conn:
            status = conn.execute("SELECT rows, ready, failed FROM pgembed.status").fetchone()
    figures: list[Figure] = []
    rows: list[dict[str, Any]] = []
    for measure in (*MEASURES, Measure("search p95, ms", lambda sample: sample.search_ms)):
        values = [measure.sum_up([measure.of(one) for one in part]) for part in quarters(samples)]
        growth = (values[3] + measure.floor) / max(values[1] + measure.floor, 1e-9)
        rows.append({"what": measure.name, **dict(zip(QUARTERS, values, strict=True)), "times": growth})
        if measure in MEASURES:
            figures.append(Figure(measure.name, growth, GROWTH))
    report.table(f"{minutes:g} minutes; rows, with a vector, failed: {status}", rows)
    return report.finish(*figures)


def quarters(samples: list[Sample]) -> list[list[Sample]]:
    """The samples in four parts of one length, in order."""
    size = len(samples) // len(QUARTERS)
    return [samples[number * size : (number + 1) * size] for number in range(len(QUARTERS))]


def prepare(dsn: str, naptime: int) -> None:
    """A table whose rows have their vectors, and an index on them."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute(f"ALTER SYSTEM SET autovacuum_naptime = {naptime}".encode())
        conn.execute("SELECT pg_reload_conf()")
        conn.execute("CREATE TABLE product (id bigint PRIMARY KEY, title text NOT NULL, price integer NOT NULL)")
        with conn.cursor().copy("COPY product FROM STDIN") as copy:
            for number in range(ROWS):
                copy.write_row((number, title(random), number % 100))
        conn.execute("SELECT pgembed.add_encoder('lite', 'builtin:lite')")
        conn.execute("""SELECT pgembed.attach('product', 'embedding', 'lite', '{"text": "{title}"}')""")
        subprocess.run([*command(), "--until-idle"], env=environment(dsn), check=True, stderr=subprocess.DEVNULL)
        conn.execute("CREATE INDEX ON product USING hnsw (embedding vector_cosine_ops)")
        conn.execute("VACUUM (ANALYZE)")


def soak(dsn: str, seconds: float) -> list[Sample]:
    """Do all of it at once for so long; gives a sample a second."""
    stop = threading.Event()
    latencies = Latencies()
    samples: list[Sample] = []
    tasks = [threading.Thread(target=keep_writing, args=(dsn, number, stop)) for number in range(WRITERS)]
    tasks.append(threading.Thread(target=keep_searching, args=(dsn, latencies, stop)))
    with ExitStack() as stack:
        workers = [stack.enter_context(worker(dsn)) for _ in range(WORKERS)]
        conn = stack.enter_context(psycopg.connect(dsn, autocommit=True))
        for task in tasks:
            task.start()
        try:
            start = time.monotonic()
            while (now := time.monotonic() - start) < seconds:
                time.sleep(max(0.0, len(samples) + 1 - now))
                queued, dead, size = conn.execute(QUEUE).fetchall()[0]
                latency, search_ms = latencies.take()
                memory = sum(resident_mb(one.pid) for one in workers)
                samples.append(
                    Sample(now, memory, queued, int(dead or 0), size / 1e6, latency or samples[-1].latency, search_ms)
                )
        finally:
            stop.set()
            for task in tasks:
                task.join()
        assert all(one.poll() is None for one in workers), "a worker left"
    return samples


def keep_writing(dsn: str, number: int, stop: threading.Event) -> None:
    """Insert, change and delete rows at a steady rate; each writer has keys of its own."""
    choose = random.Random(number)
    newest = ROWS + number
    with psycopg.connect(dsn, autocommit=True) as conn:
        for _ in ticks(WRITES, stop):
            kind = choose.randrange(4)
            some = choose.randrange(max(0, newest - ROWS), newest)
            if kind == 0:
                newest += WRITERS
                conn.execute("INSERT INTO product VALUES (%s, %s, 1)", [newest, title(choose)])
                conn.execute("DELETE FROM product WHERE id = %s", [newest - ROWS])
            elif kind == 1:
                conn.execute("UPDATE product SET price = price + 1 WHERE id BETWEEN %s AND %s", [some, some + 9])
            else:
                conn.execute(
                    "UPDATE product SET title = %s WHERE id BETWEEN %s AND %s", [title(choose), some, some + 4]
                )


def keep_searching(dsn: str, latencies: Latencies, stop: threading.Event) -> None:
    """Search, and ask for the reference in turn."""
    choose = random.Random(0)
    with psycopg.connect(dsn, autocommit=True) as conn:
        for _ in ticks(SEARCHES, stop):
            start = time.perf_counter()
            conn.execute(SEARCH, [title(choose)]).fetchall()
            between = time.perf_counter()
            conn.execute(REFERENCE).fetchall()
            latencies.search.append((between - start) * 1000)
            latencies.reference.append((time.perf_counter() - between) * 1000)


def ticks(rate: float, stop: threading.Event) -> Iterator[None]:
    """So many times a second until told to stop; what was late is not made up for."""
    following = time.monotonic()
    while not stop.is_set():
        yield
        following = max(following + 1 / rate, time.monotonic())
        stop.wait(following - time.monotonic())


@contextmanager
def worker(dsn: str) -> Iterator[subprocess.Popen[bytes]]:
    """A worker in a process of its own, for as long as the block."""
    with subprocess.Popen(command(), env=environment(dsn), stderr=subprocess.DEVNULL) as process:
        try:
            yield process
        finally:
            process.terminate()


def command() -> list[str]:
    """The command line's worker."""
    return [sys.executable, "-m", "pgembed.cli", "worker"]


def environment(dsn: str) -> dict[str, str]:
    """What it finds its database by."""
    return {**os.environ, "PGEMBED_DSN": dsn}


def resident_mb(pid: int) -> float:
    """Megabytes that a process holds in memory."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def title(choose: Any) -> str:  # noqa: ANN401
    """Some words: ``choose`` is a random.Random, or the module."""
    return " ".join(choose.sample(WORDS, 4))


if __name__ == "__main__":
    sys.exit(main())
