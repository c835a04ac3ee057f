"""What a search costs over the same search written by hand.

Peer: the statement that pgvector's documentation shows, through psycopg with pgvector's own adapter, on the same
connection. Rows: vectors of 512 dimensions around 1,000 centres under an HNSW index. The forms take turns, so that
whatever slows the machine slows them all.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import psycopg
from numpy.typing import NDArray
from pgvector.psycopg import register_vector

import pgembed
from benchmarks.common import Figure, Report, arguments, fresh_database, p50, p95
from pgembed.inputs import Vector

DIM = 512
ROWS, ROWS_QUICK = 50_000, 10_000
ROUNDS, ROUNDS_QUICK = 2000, 600
QUERIES = 200
BLOCK = 20

HAND = (
    "SELECT id, title, price, 1 - (embedding <=> %(query)s) AS score FROM product"
    " ORDER BY embedding <=> %(query)s LIMIT 10"
)
FUNCTION = "SELECT (item).id, (item).title, (item).price, score FROM pgembed.search(NULL::product, %(query)s, k => 10)"


def main() -> int:
    """Run it; gives the exit status."""
    options = arguments(__doc__)
    report = Report("query_overhead", as_json=options.json)
    rows = ROWS_QUICK if options.quick else ROWS
    with fresh_database() as dsn, psycopg.connect(dsn, autocommit=True) as conn:
        queries = fill(conn, rows)
        times = measure(conn, queries, ROUNDS_QUICK if options.quick else ROUNDS)
    report.table(
        f"A search for 10 of {rows:,} rows, ms",
        [{"query": name, "p50": p50(taken), "p95": p95(taken)} for name, taken in times.items()],
    )
    hand = p50(times["by hand"])
    return report.finish(
        Figure("ratio", p50(times["db.search"]) / hand, 1.10),
        Figure("builder", p50(times["db.query"]) / hand, 1.10),
        Figure("sql_fixed_ms", p50(times["pgembed.search"]) - hand, 0.15),
    )


def fill(conn: psycopg.Connection[Any], rows: int) -> NDArray[np.float32]:
    """Make the table, its vectors and its index; gives the query vectors."""
    random = np.random.default_rng(5)
    centres = random.normal(size=(1000, DIM))
    vectors = centres[random.integers(0, len(centres), rows + QUERIES)]
    vectors = vectors + 0.5 * random.normal(size=vectors.shape)
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    register_vector(conn)
    conn.execute(
        "SELECT pgembed.add_encoder('bench', 'bench:512', dim => %s, modalities => '{text}', fingerprint => 'bench')",
        [DIM],
    )
    conn.execute("CREATE TABLE product (id integer PRIMARY KEY, title text NOT NULL, price float8 NOT NULL)")
    conn.execute("""SELECT pgembed.attach('product', 'embedding', 'bench', '{"text": "{title}"}')""")
    with conn.cursor().copy("COPY product (id, title, price, embedding) FROM STDIN WITH (FORMAT binary)") as copy:
        copy.set_types(["int4", "text", "float8", "vector"])
        for number in range(rows):
            copy.write_row((number, f"product {number}", float(number % 100), vectors[number]))
    conn.execute("SET maintenance_work_mem = '512MB'")
    conn.execute("CREATE INDEX ON product USING hnsw (embedding vector_cosine_ops)")
    conn.execute("VACUUM (ANALYZE)")
    return vectors[rows:]


def measure(conn: psycopg.Connection[Any], queries: NDArray[np.float32], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each form, block after block in turn; the first blocks are not counted.

    All ask the same queries, but never the same one after another: the first would warm the caches for the next. Each
    is handed the query in its own form, an array or a Vector.
    """
    db = pgembed.connect(conn)
    expressions = [Vector(query) for query in queries]
    calls: dict[str, Callable[[int], object]] = {
        "no-op": lambda n: conn.execute("SELECT 1 WHERE %(query)s IS NULL", {"query": queries[n]}).fetchall(),
        "by hand": lambda n: conn.execute(HAND, {"query": queries[n]}).fetchall(),
        "db.search": lambda n: db.search("product", expressions[n], limit=10),
        "db.query": lambda n: db.query("product").near(expressions[n]).limit(10).rows(),
        "pgembed.search": lambda n: conn.execute(FUNCTION, {"query": queries[n]}).fetchall(),
    }
    times: dict[str, list[float]] = {name: [] for name in calls}
    for block in range(-2, rounds // BLOCK):
        for turn, (name, call) in enumerate(calls.items()):
            for number in range(block * BLOCK, (block + 1) * BLOCK):
                n = (number + turn * QUERIES // len(calls)) % len(queries)
                start = time.perf_counter()
                call(n)
                if block >= 0:
                    times[name].append((time.perf_counter() - start) * 1000)
    return times


if __name__ == "__main__":
    raise SystemExit(main())
