"""Every query of a file asked of an embedding, and what came back measured against the judgments."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from pgembed.building import Query
from pgembed.client import Pgembed
from pgembed.errors import CatalogError, InvalidInput, MediaError
from pgembed.evaluate import metrics
from pgembed.evaluate.judgments import Fault, Qrels, Question, Questions
from pgembed.evaluate.runs import Run
from pgembed.evaluate.target import Connection, Evaluated, look_up, set_ef_search, unknown_ids
from pgembed.hybrid import Method

LEAST_DEPTH = 100
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Options:
    """How the queries are asked: which rows may be found, how many of them, and with which index settings."""

    where: str | None = None
    depth: int | None = None  # rows of each ranking; None: what the measures look at, and 100 at least
    exact: bool = False
    ef_search: int | None = None
    seed: int = 0
    words: bool = False  # also look for a query's words, and fuse both by the method
    method: Method = "rank"
    neutral: str | None = None  # a view that is not to count


@dataclass(frozen=True)
class Some:
    """How many there are of something that should not be, and the first three."""

    count: int
    first: tuple[str, ...]

    @classmethod
    def of(cls, items: Sequence[str]) -> Some:
        """All of them, to be told in short."""
        return cls(len(items), tuple(items[:3]))


@dataclass(frozen=True)
class Evaluation:
    """What one embedding is worth on a file of judgments.

    ``values`` has measure -> query -> value for the queries that count: asked, and with a relevant row known.
    """

    target: Evaluated
    run: Run
    values: Mapping[str, Mapping[str, float]]
    means: Mapping[str, float]
    faults: tuple[Fault, ...]
    unknown_ids: Some  # judged, and no row's
    unjudged: Some  # queries without a judgment
    irrelevant: Some  # queries whose judgments hold nothing relevant
    unasked: Some  # judged queries that the file of queries does not have
    wordless: Some  # queries asked by their vectors alone, where words are looked for too
    waiting: int  # rows that wait for their vectors, or were given up: what is found may still change
    milliseconds: tuple[float, float]  # of one search, encoding included: median, 95th percentile

    @property
    def queries(self) -> list[str]:
        """The queries that count."""
        return [query for values in [*self.values.values()][:1] for query in values]


def evaluate(
    conn: Connection,
    db: Pgembed,
    table: str,
    questions: Questions,
    qrels: Qrels,
    *,
    embedding: str | None = None,
    id_column: str | None = None,
    measures: Sequence[str] = metrics.MEASURES,
    options: Options | None = None,
    on_progress: Progress | None = None,
) -> Evaluation:
    """Ask every query, by ``search_of``, and measure; ``db`` is a client on ``conn``.

    A query that cannot be asked is a fault and stops no other. Raises InvalidInput where no judged id is a row's, or no
    query counts, CatalogError, and MissingExtra without ir-measures.
    """
    options = options or Options()
    depth = options.depth or max(metrics.cutoff(measures), LEAST_DEPTH)
    if depth < metrics.cutoff(measures):
        raise InvalidInput(
            f"Rankings of {depth} rows are too short for {', '.join(measures)}.",
            f"Ask for more: --depth {metrics.cutoff(measures)}",
        )
    target = look_up(conn, table, embedding, id_column)
    ids = list(dict.fromkeys(row for rows in qrels.values() for row in rows))
    unknown = unknown_ids(conn, target, ids)
    if len(unknown) == len(ids):
        raise InvalidInput(
            f"None of the {len(ids):,} judged ids is a row's {' and '.join(target.ids)} in {table}: {_some(unknown)}.",
            "Name the column that holds them: --id-column NAME",
        )
    judged = [question for question in questions.asked if question.id in qrels]
    counting = set(metrics.judged(qrels, [question.id for question in judged]))
    if not counting:
        raise InvalidInput(
            f"Of the {len(questions.asked):,} queries of {questions.path} none has a relevant row in the judgments.",
            "Their ids must be those of the file of queries.",
        )
    if options.ef_search is not None:
        set_ef_search(conn, options.ef_search)
    chosen = [question for question in judged if question.id in counting]
    try:
        rankings, faults, times = _ask(db, table, target, chosen, depth, options, on_progress)
    finally:
        if options.ef_search is not None:
            set_ef_search(conn, None)
    table_of_values = metrics.values(qrels, rankings, [*rankings], measures)
    asked = {question.id for question in questions.asked} | {fault.id for fault in questions.faults}
    facts = {
        **target.facts, **asdict(options), "depth": depth,
        "queries": str(questions.path), "queries counted": len(rankings),
    }  # fmt: skip
    return Evaluation(
        target=target,
        run=Run(f"{target.table}.{target.embedding}", rankings, facts | {"measures": metrics.means(table_of_values)}),
        values=table_of_values,
        means=metrics.means(table_of_values),
        faults=(*questions.faults, *faults),
        unknown_ids=Some.of(unknown),
        unjudged=Some.of([question.id for question in questions.asked if question.id not in qrels]),
        irrelevant=Some.of([question.id for question in judged if question.id not in counting]),
        unasked=Some.of([query for query in qrels if query not in asked]),
        wordless=Some.of([question.id for question in chosen if options.words and question.words is None]),
        waiting=sum((row.queued or 0) + row.failed for row in db.status(table) if row.target == target.embedding),
        milliseconds=times,
    )


def search_of(db: Pgembed, table: str, embedding: str, question: Question, options: Options) -> Query:
    """The search that a question is under these options, but for its depth and columns."""
    asked = db.query(table).near(question.query, embedding=embedding)
    asked = asked if options.where is None else asked.where(options.where)
    asked = asked.exact() if options.exact else asked
    asked = asked if options.neutral is None else asked.neutral(options.neutral)
    return asked.hybrid(question.words).fuse(options.method) if options.words and question.words else asked


def _ask(
    db: Pgembed,
    table: str,
    target: Evaluated,
    questions: Sequence[Question],
    depth: int,
    options: Options,
    on_progress: Progress | None,
) -> tuple[dict[str, list[tuple[str, float]]], list[Fault], tuple[float, float]]:
    """The rankings by query, in the order of the file, what could not be asked, and the times. Raises the last
    fault where nothing could."""
    rankings: dict[str, list[tuple[str, float]]] = {}
    faults: list[Fault] = []
    times: list[float] = []
    for number, question in enumerate(questions, start=1):
        began = time.perf_counter()
        try:
            asked = search_of(db, table, target.embedding, question, options)
            rows = asked.select(*target.ids).limit(depth).rows()
        except (InvalidInput, MediaError, CatalogError) as error:
            faults.append(Fault(question.line, question.id, error.message))
            if len(faults) == len(questions):
                raise
        else:
            times.append(1000 * (time.perf_counter() - began))
            rankings[question.id] = _best([(target.id_of(row), float(row["score"])) for row in rows])
        if on_progress is not None:
            on_progress(number, len(questions))
    return rankings, faults, (float(np.median(times)), float(np.percentile(times, 95)))


def _best(ranking: Sequence[tuple[str, float]]) -> list[tuple[str, float]]:
    """Each id once, at its best place: a column of ids that is no key may name several rows."""
    found: dict[str, float] = {}
    for identity, score in ranking:
        found.setdefault(identity, score)
    return [*found.items()]


def _some(items: Sequence[str]) -> str:
    return ", ".join(items[:3]) + (" …" if len(items) > 3 else "")
