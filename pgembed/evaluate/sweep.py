"""Recall against time: the exact search, and the vector index with more and more candidates."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from psycopg import sql
from psycopg.rows import dict_row

from pgembed.client import Pgembed
from pgembed.evaluate.judgments import Question
from pgembed.evaluate.target import Connection, Evaluated, set_ef_search
from pgembed.query import Statement
from pgembed.told import in_own_words

EF_SEARCH = (10, 20, 40, 80, 160, 320)
K = 10
SAMPLE = 50  # queries
EQUAL = 1e-6  # of a score
RUNS = 3  # of each statement, of which the quickest counts: the first also reads pages and makes plans


@dataclass(frozen=True)
class Point:
    """One way of searching: the exact one, where ``ef_search`` is None, or the index with so many candidates.

    ``recall`` is the share of its first ``K`` rows that are no farther than the last of the exact search's, so that it
    does not count which of two equals is found (Aumüller, Bernhardsson and Faithfull 2020). The times of a statement
    are in milliseconds.
    """

    ef_search: int | None
    recall: float
    median: float
    late: float  # the 95th percentile


def sweep(
    conn: Connection,
    db: Pgembed,
    table: str,
    target: Evaluated,
    questions: Sequence[Question],
    *,
    where: str | None = None,
    seed: int = 0,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[Point]:
    """Time the statements of up to 50 queries, drawn with ``seed``: the exact ones, and where the embedding has an HNSW
    index those of the index for several values of ``hnsw.ef_search``.

    A time is that of the statement alone, the quickest of three runs: pictures, and texts that SQL does not encode,
    are encoded before. The index is used even where the planner would rather read a small table.
    """
    chosen = _drawn(questions, seed)
    asked = db.query(table).select(*target.ids).limit(K)
    asked = asked.where(where) if where is not None else asked
    steps: list[int | None] = [None, *(EF_SEARCH if target.index else ())]
    points: list[Point] = []
    farthest: list[float] = []
    wanted: list[int] = []
    for number, ef_search in enumerate(steps):
        exact = ef_search is None
        built = [asked.near(each.query, embedding=target.embedding) for each in chosen]
        statements = [(one.exact() if exact else one).compile() for one in built]
        with in_own_words(), _settings(conn, ef_search):
            if not exact and not _uses(conn, statements[0], target.index):
                break
            found, times = zip(*(_timed(conn, statement) for statement in statements), strict=True)
        if exact:
            wanted, farthest = [len(scores) for scores in found], [min(scores, default=0.0) for scores in found]
        shares = [
            sum(score >= least - EQUAL for score in scores) / most
            for scores, least, most in zip(found, farthest, wanted, strict=True)
            if most
        ]
        recall = float(np.mean(shares)) if shares else 1.0
        points.append(Point(ef_search, recall, float(np.median(times)), float(np.percentile(times, 95))))
        if on_progress is not None:
            on_progress(number + 1, len(steps))
    return points


def _drawn(questions: Sequence[Question], seed: int) -> list[Question]:
    places = np.random.default_rng(seed).permutation(len(questions))[:SAMPLE]
    return [questions[place] for place in sorted(places)]


@contextmanager
def _settings(conn: Connection, ef_search: int | None) -> Generator[None]:
    """The index with so many candidates, whatever the planner thinks of it; as before at the end."""
    if ef_search is None:
        yield
        return
    set_ef_search(conn, ef_search)
    conn.execute("SET enable_seqscan = off")
    try:
        yield
    finally:
        conn.execute("RESET enable_seqscan")
        set_ef_search(conn, None)


def _uses(conn: Connection, statement: Statement, index: str | None) -> bool:
    (plan,) = conn.execute(sql.SQL("EXPLAIN (FORMAT JSON) ") + statement.text, statement.params).fetchall()
    return f"'Index Name': {index!r}" in str(plan[0])


def _timed(conn: Connection, statement: Statement) -> tuple[list[float], float]:
    """The scores of what a statement finds, and the milliseconds of its quickest run."""
    times: list[float] = []
    found: list[float] = []
    with conn.cursor(row_factory=dict_row) as cursor:
        for _ in range(RUNS):
            began = time.perf_counter()
            rows = cursor.execute(statement.text, statement.params).fetchall()
            times.append(1000 * (time.perf_counter() - began))
            found = [row["score"] for row in rows]
    return found, min(times)
