"""How fast are vectors written? The worker's write step against COPY of the same vectors into a bare table.

    python -m benchmarks.write_path [--quick] [--json]

512 dimensions, batches of 1,024, for vectors in a column of the rows and for those in a side table. The write step is
all of it: locks on the user's rows, the queue's lock, the UPDATE or INSERT, and the end of the jobs. COPY and it run in
turn on one session with the worker's settings; what one leaves to be written to the log is written before the other
begins. The ratios are the medians of those of the pairs.
"""

from __future__ import annotations

import struct
import sys
import time
from dataclasses import dataclass, field

import numpy as np
import psycopg
from numpy.typing import NDArray
from psycopg.rows import class_row

from benchmarks.common import Figure, Report, arguments, fresh_database, p50
from pgembed.worker.batch import Row
from pgembed.worker.queue import Queue, Work
from pgembed.worker.run import session_connection
from pgembed.worker.write import write_rows

DIM, BATCH = 512, 1_024
TARGETS = {"column": 0.55, "side": 0.75}
SETUP = """
    CREATE TABLE bare (id bigint, vector vector(512));
    CREATE TABLE product (id bigint PRIMARY KEY, title text NOT NULL, price numeric NOT NULL);
    INSERT INTO product SELECT i, 'product number ' || i, i % 100 FROM generate_series(1, {rows}) AS i;
    SELECT pgembed.add_encoder('bench', 'bench:bench', dim => 512, modalities => '{{text}}', fingerprint => 'bench');
    SELECT pgembed.attach('product', 'embedding', 'bench', '{{"text": "title"}}', storage => '{storage}');
    INSERT INTO pgembed.job_1 (key_1) SELECT id FROM product ORDER BY id;
    UPDATE pgembed.embedding SET state = 'ready';
    ANALYZE;
    CHECKPOINT
"""


@dataclass
class Times:
    """Seconds of each batch."""

    copy: list[float] = field(default_factory=list[float])
    write: list[float] = field(default_factory=list[float])


def main() -> int:
    options = arguments(__doc__)
    batches = 60 if options.quick else 200
    report = Report("write_path", as_json=options.json)
    figures: list[Figure] = []
    for storage, target in TARGETS.items():
        with fresh_database() as dsn, session_connection(lambda dsn=dsn: psycopg.connect(dsn)) as conn:
            for statement in SETUP.format(rows=batches * BATCH, storage=storage).split(";\n"):
                conn.execute(statement.encode())
            times = _measure(conn, batches)
            written = conn.execute("SELECT sum(ready) FROM pgembed.status").fetchone()
            assert written == (batches * BATCH,), written
        steps = (("COPY into a bare table", times.copy), (f"the worker's write step, {storage}", times.write))
        report.table(
            f"Writing {batches} batches of {BATCH:,} vectors of {DIM} dimensions",
            [
                {"how": how, "rows/s": BATCH / p50(taken), "p50 ms a batch": p50(taken) * 1000, "total s": sum(taken)}
                for how, taken in steps
            ],
        )
        ratios = [copy / write for copy, write in zip(times.copy, times.write, strict=True)]
        name = "ratio" if storage == "column" else storage
        figures.append(Figure(name, p50(ratios), target, at_least=True))
    return report.finish(*figures)


def _measure(conn: psycopg.Connection[tuple[object, ...]], batches: int) -> Times:
    with conn.cursor(row_factory=class_row(Work)) as cursor:
        work = cursor.execute("SELECT * FROM pgembed._work").fetchall()[0]
    generator = np.random.default_rng(0)
    times = Times()
    for _ in range(batches):
        claimed = conn.execute(Queue(work).claim, [600.0, BATCH]).fetchall()
        rows = [Row(seq, attempts) for seq, attempts in claimed]
        vectors = generator.normal(size=(BATCH, DIM)).astype(np.float32)
        for row, vector in zip(rows, vectors, strict=True):
            row.vector = vector
        _flush(conn)
        start = time.perf_counter()
        _copy(conn, vectors)
        times.copy.append(time.perf_counter() - start)
        _flush(conn)
        start = time.perf_counter()
        assert write_rows(conn, work, rows) == BATCH
        times.write.append(time.perf_counter() - start)
    return times


def _flush(conn: psycopg.Connection[tuple[object, ...]]) -> None:
    with conn.transaction():
        conn.execute("SET LOCAL synchronous_commit = on")
        conn.execute("SELECT pg_logical_emit_message(true, '', '')")


def _copy(conn: psycopg.Connection[tuple[object, ...]], vectors: NDArray[np.float32]) -> None:
    with conn.transaction(), conn.cursor().copy("COPY bare (id, vector) FROM STDIN WITH (FORMAT binary)") as copy:
        copy.write(b"PGCOPY\n\xff\r\n\x00" + bytes(8) + _packed(vectors) + b"\xff\xff")


def _packed(vectors: NDArray[np.float32]) -> bytes:
    """Rows of ``(id bigint, vector)`` in the binary form of COPY."""
    count, dim = vectors.shape
    size = 4 + 4 * dim
    rows = np.zeros(count, np.dtype([("head", "V14"), ("length", ">i4"), ("facts", "V4"), ("vector", ">f4", (dim,))]))
    rows["head"] = np.array([struct.pack(">hiq", 2, 8, number) for number in range(count)], "V14")
    rows["length"] = size
    rows["facts"] = np.void(struct.pack(">HH", dim, 0))
    rows["vector"] = vectors
    return rows.tobytes()


if __name__ == "__main__":
    sys.exit(main())
