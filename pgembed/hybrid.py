"""Hybrid search: queries and words as one search, by the SQL function ``pgembed.hybrid``, and a re-ranking after it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, LiteralString, cast

from psycopg import sql

from pgembed.errors import InvalidQuery
from pgembed.inputs import Expression, Text
from pgembed.plans import Call, Compute, Parameters, Plan
from pgembed.query import (
    SearchPlan,
    SearchRow,
    Statement,
    Target,
    quoted,
    reranked,
    search_row_factory,
    unused,
)
from pgembed.searching import Searcher

Method = Literal["rank", "score"]
Rerank = Callable[[str, Sequence[SearchRow]], Sequence[float]]
_TYPES: dict[str, LiteralString] = {
    "weights": "::float8[]", "columns": "::text[]", "config": "::regconfig", "words_function": "::regproc"
}  # fmt: skip


def hybrid(
    searcher: Searcher,
    table: str,
    words: str | None,
    *,
    queries: Sequence[Expression] | None,
    embeddings: Sequence[str] | None,
    where: str | None,
    params: Parameters,
    limit: int,
    weights: Sequence[float] | None,
    method: Method,
    depth: int,
    columns: Sequence[str] | None,
    words_columns: Sequence[str] | None,
    config: str | None,
    words_function: str | None,
    wide: bool,
    exact: bool,
    rerank: Rerank | None,
) -> Plan[list[SearchRow]]:
    """The rows that ``Pgembed.hybrid`` gives, which says what the arguments are."""
    if words is not None and not words.strip():
        raise InvalidQuery("The words to search for are empty.", "Give words, or None and a query.")
    if queries is None:
        if words is None:
            raise InvalidQuery("There are no words and no query to search with.", "Give words, query= or queries=.")
        queries = [Text(words)] * (1 if embeddings is None else len(embeddings))
    if embeddings is not None and len(embeddings) != len(queries) and queries:
        raise InvalidQuery(
            f"There are {len(embeddings)} embeddings ({', '.join(embeddings)}) and {len(queries)} queries.",
            "Name the embedding of each query, in their order.",
        )
    if rerank is not None and words is None:
        raise InvalidQuery("rerank compares rows with words, and there are none.", "Give words.")
    if rerank is not None and depth < limit:
        raise InvalidQuery(f"depth is {depth} and limit {limit}: too few rows are re-ranked.", "Give a greater depth.")

    names = embeddings or [None] * max(1, len(queries))
    target = yield from searcher.target(table, names[0])
    plans: list[SearchPlan] = []
    for query, name in zip(queries, names, strict=False):
        plans.append((yield from searcher.prepare(table, query, embedding=name, limit=limit)))
    rows = yield from _rows(
        target,
        plans,
        _chosen(target, columns, wide),
        {
            "words": words,
            "k": depth if rerank else limit,
            "embeddings": [plan.target.column for plan in plans],
            "weights": None if weights is None else list(map(float, weights)),
            "method": method,
            "filter": _filter(where, params),
            "columns": None if words_columns is None else list(words_columns),
            "config": config,
            "words_function": words_function,
            "depth": depth,
            "exact": exact,
        },
    )
    if rerank is None or not rows or words is None:
        return rows
    scores: Sequence[float] = yield Compute(lambda: [float(score) for score in rerank(words, rows)])
    return reranked(rows, scores)[:limit]


def _rows(
    target: Target,
    plans: Sequence[SearchPlan],
    columns: Sequence[str],
    arguments: Mapping[str, object],
) -> Plan[list[SearchRow]]:
    """Ask pgembed.hybrid for these columns of its rows; arguments that are None are left out."""
    queries = [plan.vector for plan in plans]
    vector = sql.SQL("vector") if target.vector_schema is None else quoted(target.vector_schema, "vector")
    values: list[object] = [value for query in queries for value in query.values]
    written = [sql.SQL("queries => ARRAY[{}]::{}[]").format(sql.SQL(", ").join(q.text for q in queries), vector)]
    for name, value in arguments.items():
        if value is not None:
            written.append(sql.SQL("{} => %s{}").format(sql.Identifier(name), sql.SQL(_TYPES.get(name, ""))))
            values.append(value)
    wide = {column.name for column in target.columns if column.wide}
    output = [
        sql.SQL("(h.item).{} AS {}").format(quoted(name), quoted(unused("score", columns) if name == "score" else name))
        for name in columns
    ]
    text = sql.SQL("SELECT {} FROM pgembed.hybrid(NULL::{}, {}, wide => {}) AS h").format(
        sql.SQL(", ").join([*output, sql.SQL("h.score")]),
        quoted(target.schema, target.table),
        sql.SQL(", ").join(written),
        sql.Literal(not wide.isdisjoint(columns)),
    )
    return (yield Call(text, values, search_row_factory))


def _chosen(target: Target, columns: Sequence[str] | None, wide: bool) -> list[str]:
    """The columns to read. Raises InvalidQuery for one that is not there."""
    present = [column.name for column in target.columns]
    if columns is None:
        return [column.name for column in target.columns if wide or not column.wide]
    if isinstance(columns, str):
        raise InvalidQuery(f"columns is a list of names, not {columns!r}.", f"Write columns=[{columns!r}].")
    for name in columns:
        if name not in present:
            raise InvalidQuery(f"{target.table} has no column '{name}'.", f"It has: {', '.join(present)}.")
    return list(columns)


def _filter(where: str | None, params: Parameters) -> str | None:
    """The filter with its parameters written into it as psycopg writes literals, so that their types are those of
    ``search``. Raises InvalidQuery where it names other parameters than there are."""
    if not params:
        return where
    if where is None:
        raise InvalidQuery("There are params, but no filter that names them.", "Give where='price < %s'.")
    places = re.findall(r"%(?:\(([^)]*)\))?[sbt]", where.replace("%%", ""))
    if set(places) - params.keys() if isinstance(params, Mapping) else len(places) != len(params):
        raise InvalidQuery(
            f"The filter {where!r} names other parameters than params has: {params!r}.",
            "Give one value for each %s, or %(name)s.",
        )
    text = sql.Composed([sql.SQL(cast(LiteralString, where))])
    return Statement(text, dict(params) if isinstance(params, Mapping) else tuple(params)).as_string()
