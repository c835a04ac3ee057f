"""Search with a filter: does the plan that pgembed chooses keep up with the best of all plans, and find as much?

    python -m benchmarks.filtered [--quick] [--json]

50,000 and 500,000 rows (``--quick``: 50,000) of 256 dimensions under an HNSW index, and filters that let 50, 10, 1, 0.1
and 0.01 % of them through, on columns with an index: chosen at random (independent), those that lie along a direction
in which the query lies too (correlated), or the other way (opposed). Plans: all matching rows compared; the graph as
pgvector's documentation recommends for filters (iterative scan in relaxed order), by hand and with every other plan
forbidden; and what ``db.search`` and ``pgembed.search`` choose. Then all once more beside an HNSW index of the matching
rows alone, taken by hand too. The best plan is the fastest that finds at least 95 % of the 10 nearest; the ratio is of
the medians, each form against its own exact one and those by hand. All take turns.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import product
from random import shuffle
from typing import Any

import numpy as np
import psycopg
from numpy.typing import NDArray
from pgvector.psycopg import register_vector

import pgembed
from benchmarks.common import Figure, Report, arguments, fresh_database, p50
from pgembed.inputs import Vector

Vectors = NDArray[np.float32]
DIM, LATENT, CENTRES = 256, 32, 1000
SIZES, SIZES_QUICK = (50_000, 500_000), (50_000,)
SHARES = (0.5, 0.1, 0.01, 0.001, 0.0001)
COLUMNS = {"apart": ("independent",), "along": ("correlated", "opposed")}
QUERIES, QUERIES_QUICK = 40, 20
LEAST_RECALL, MOST_RATIO = 0.95, 1.2
K = 10

NEAREST = "SELECT id FROM product WHERE {} ORDER BY embedding <=> %s LIMIT 10"
ALONE = (
    "SET LOCAL hnsw.iterative_scan = relaxed_order; SET LOCAL enable_seqscan = off; SET LOCAL enable_bitmapscan = off;"
    "SET LOCAL enable_sort = off"
)
FUNCTION = "SELECT (item).id FROM pgembed.search(NULL::product, %s, k => 10, filter => %s, exact => {})"


@dataclass(frozen=True)
class Space:
    """Where vectors come from: around centres that differ in LATENT of DIM directions, the first more than the last."""

    centres: NDArray[np.float64]
    directions: NDArray[np.float64]

    @classmethod
    def drawn(cls, random: np.random.Generator) -> Space:
        """One with its centres in the order of the first direction."""
        centres = random.normal(size=(CENTRES, LATENT)) * np.linspace(2, 0.5, LATENT)
        directions = np.linalg.qr(random.normal(size=(DIM, LATENT)))[0].T
        return cls(centres[np.argsort(centres[:, 0])], directions)

    def vectors(self, random: np.random.Generator, centres: NDArray[np.intp]) -> tuple[Vectors, NDArray[np.float64]]:
        """A vector around each of these centres, and its place along the first direction."""
        latent = self.centres[centres] + 0.5 * random.normal(size=(len(centres), LATENT))
        vectors = latent @ self.directions + 0.03 * random.normal(size=(len(centres), DIM))
        return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32), latent[:, 0]


def main() -> int:
    """Run it; gives the exit status."""
    options = arguments(__doc__)
    report = Report("filtered", as_json=options.json)
    ratios, recalls = [0.0], [1.0]
    for rows in SIZES_QUICK if options.quick else SIZES:
        with fresh_database() as dsn, psycopg.connect(dsn, autocommit=True) as conn:
            register_vector(conn)
            random = np.random.default_rng(5)
            space = Space.drawn(random)
            fill(conn, space, random, rows)
            queries = QUERIES_QUICK if options.quick else QUERIES
            for by_hand in ("graph", "partial"):
                lines: list[dict[str, Any]] = []
                for share, (column, kinds) in product(SHARES, COLUMNS.items()):
                    with partial_index(conn, column, rows, share) if by_hand == "partial" else nullcontext():
                        lines += [measure(conn, space, random, rows, share, kind, queries, by_hand) for kind in kinds]
                ratios += [line[form] for line in lines for form in ("db ratio", "sql ratio")]
                recalls += [line[form] for line in lines for form in ("db recall", "sql recall")]
                beside = " beside an index of the matching rows" if by_hand == "partial" else ""
                report.table(f"A search for 10 of {rows:,} rows{beside}, p50 in ms", lines)
    return report.finish(
        Figure("worst_ratio", max(ratios), MOST_RATIO),
        Figure("least_recall", min(recalls), LEAST_RECALL, at_least=True),
    )


def fill(conn: psycopg.Connection[Any], space: Space, random: np.random.Generator, rows: int) -> None:
    """Make the table, its vectors and its indexes."""
    vectors, along = space.vectors(random, random.integers(0, CENTRES, rows))
    conn.execute(
        "SELECT pgembed.add_encoder('bench', 'bench:256', dim => %s, modalities => '{text}', fingerprint => 'bench')",
        [DIM],
    )
    conn.execute("CREATE TABLE product (id integer PRIMARY KEY, title text, apart integer, along integer)")
    conn.execute("""SELECT pgembed.attach('product', 'embedding', 'bench', '{"text": "{title}"}')""")
    apart, order = random.permutation(rows), np.argsort(np.argsort(along))
    with conn.cursor().copy(
        "COPY product (id, title, apart, along, embedding) FROM STDIN WITH (FORMAT binary)"
    ) as copy:
        copy.set_types(["int4", "text", "int4", "int4", "vector"])
        for number in range(rows):
            copy.write_row((number, f"product {number}", int(apart[number]), int(order[number]), vectors[number]))
    conn.execute("SET maintenance_work_mem = '1500MB'")
    conn.execute("CREATE INDEX ON product USING hnsw (embedding vector_cosine_ops)")
    conn.execute("CREATE INDEX ON product (apart)")
    conn.execute("CREATE INDEX ON product (along)")
    conn.execute("VACUUM (ANALYZE)")


def condition(column: str, rows: int, share: float) -> str:
    """The filter that lets this share of the rows through."""
    return f"{column} < {max(1, int(rows * share))}"


@contextmanager
def partial_index(conn: psycopg.Connection[Any], column: str, rows: int, share: float) -> Generator[None]:
    """An HNSW index of the rows that a filter lets through, while the block runs."""
    where = condition(column, rows, share)
    conn.execute(f"CREATE INDEX of_some ON product USING hnsw (embedding vector_cosine_ops) WHERE {where}".encode())
    yield
    conn.execute("DROP INDEX of_some")


def measure(
    conn: psycopg.Connection[Any],
    space: Space,
    random: np.random.Generator,
    rows: int,
    share: float,
    kind: str,
    number: int,
    by_hand: str,
) -> dict[str, Any]:
    """One filter, by all plans; the one by hand is the graph, or that of a partial index where there is one."""
    near = max(1, int(CENTRES * share))
    centres = {
        "independent": random.integers(0, CENTRES, number),
        "correlated": random.integers(0, near, number),
        "opposed": random.integers(CENTRES - 100, CENTRES, number),
    }[kind]
    queries, _ = space.vectors(random, centres)
    where = condition("apart" if kind == "independent" else "along", rows, share)
    times, found = timed(plans(conn, where, by_hand), queries)
    recall = {
        name: float(np.mean([len(set(a) & set(b)) / len(b) for a, b in zip(rows_of, found["db exact"], strict=True)]))
        for name, rows_of in found.items()
    }
    p50s = {name: p50(taken) for name, taken in times.items()}
    graph = p50s[by_hand] if recall[by_hand] >= LEAST_RECALL else float("inf")
    return {
        "filter": kind, "%": 100 * share, "db exact": p50s["db exact"], "sql exact": p50s["sql exact"],
        by_hand: p50s[by_hand], f"{by_hand} recall": recall[by_hand],
        "db.search": p50s["db.search"], "db recall": recall["db.search"],
        "db ratio": p50s["db.search"] / min(p50s["db exact"], graph),
        "pgembed.search": p50s["pgembed.search"], "sql recall": recall["pgembed.search"],
        "sql ratio": p50s["pgembed.search"] / min(p50s["sql exact"], graph),
    }  # fmt: skip


def plans(conn: psycopg.Connection[Any], where: str, name: str) -> dict[str, Callable[[Vectors], Sequence[int]]]:
    """The plans, each from a query's vector to the ids that it finds; ``name`` is that of the one by hand."""
    db = pgembed.connect(conn)

    def search(query: Vectors, exact: bool) -> Sequence[int]:
        rows = db.search("product", Vector(query), where=where, limit=K, columns=["id"], exact=exact)
        return [row.id for row in rows]

    def by_hand(query: Vectors) -> Sequence[int]:
        with conn.transaction():
            conn.execute(ALONE)
            return ids(conn.execute(NEAREST.format(where).encode(), [query]))

    return {
        "db exact": lambda query: search(query, True),
        "sql exact": lambda query: ids(conn.execute(FUNCTION.format("true").encode(), [query, where])),
        name: by_hand,
        "db.search": lambda query: search(query, False),
        "pgembed.search": lambda query: ids(conn.execute(FUNCTION.format("false").encode(), [query, where])),
    }


def ids(cursor: psycopg.Cursor[Any]) -> list[int]:
    """The first column."""
    return [row[0] for row in cursor]


def timed(
    plans: dict[str, Callable[[Vectors], Sequence[int]]], queries: Vectors
) -> tuple[dict[str, list[float]], dict[str, list[Sequence[int]]]]:
    """Milliseconds and answers of each plan, query after query, in any order; the first two are not counted."""
    times: dict[str, list[float]] = {name: [] for name in plans}
    found: dict[str, list[Sequence[int]]] = {name: [] for name in plans}
    for number, query in enumerate([*queries[:2], *queries]):
        order = list(plans.items())
        shuffle(order)
        for name, plan in order:
            start = time.perf_counter()
            rows = plan(query)
            if number >= 2:
                times[name].append((time.perf_counter() - start) * 1000)
                found[name].append(rows)
    return times, found


if __name__ == "__main__":
    raise SystemExit(main())
