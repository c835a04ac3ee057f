"""Hybrid search: queries and words as one search, by the SQL function ``pgembed.hybrid``, and a re-ranking after it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, LiteralString, cast

from psycopg import sql

from pgembed.errors import InvalidQuery
from pgembed.inputs import Expression, Text
from pgembed.plans import Call, Compute, Parameters, Plan
from pgembed.query import (
    PLACE,
    Chosen,
    Prefer,
    SearchRow,
    Statement,
    Target,
    chosen,
    quoted,
    reranked,
    search_row_factory,
    unused,
)
from pgembed.searching import Searcher

Method = Literal["rank", "score"]
Rerank = Callable[[str, Sequence[SearchRow]], Sequence[float]]
LegFilter = str | tuple[str, Parameters] | None  # a condition, without parameters or with them
_TYPES: dict[str, LiteralString] = {
    "weights": "::float8[]", "filters": "::text[]", "columns": "::text[]", "config": "::regconfig",
    "words_function": "::regproc",
}  # fmt: skip
_MANY = 2**31  # for which Postgres has no integer
_FOUND = quoted("pgembed found")
_ITEM, _SCORE, _ORDER = quoted("pgembed item"), quoted("pgembed score"), quoted("pgembed order")


@dataclass(frozen=True)
class Fused:
    """What a search with several legs asks for; the arguments are those of ``Pgembed.hybrid``.

    ``joins`` are SQL with the parameters ``joined``; with them ``where`` may name what is joined, and ``columns`` may
    be expressions with a name. ``least`` is the lowest score wanted, and ``places`` adds each row's key as text, in
    columns whose names begin with PLACE.
    """

    words: str | None
    queries: Sequence[Expression] | None = None
    embeddings: Sequence[str | None] | None = None
    where: str | None = None
    params: Parameters = ()
    filters: Sequence[LegFilter] | None = None
    limit: int = 10
    weights: Sequence[float] | None = None
    method: Method = "rank"
    depth: int = 100
    columns: Sequence[str] | None = None
    words_columns: Sequence[str] | None = None
    config: str | None = None
    words_function: str | None = None
    wide: bool = False
    exact: bool = False
    joins: Sequence[str] = ()
    joined: Parameters = ()
    least: float | None = None
    places: bool = False
    prefer: Prefer | None = None


@dataclass(frozen=True)
class FusedPlan:
    """The statement of a fused search, for anybody's connection; and that of ``pgembed.explain_hybrid`` with the same
    arguments, whose one more parameter is ``recall``, and whose one row holds JSON as told."""

    statement: Statement
    explained: Statement
    columns: tuple[str, ...]


def hybrid(searcher: Searcher, table: str, fused: Fused, rerank: Rerank | None) -> Plan[list[SearchRow]]:
    """The rows that ``Pgembed.hybrid`` gives, which says what the arguments are."""
    words, limit, depth = fused.words, fused.limit, fused.depth
    if rerank is not None and words is None:
        raise InvalidQuery("rerank compares rows with words, and there are none.", "Give words.")
    if rerank is not None and depth < limit:
        raise InvalidQuery(f"depth is {depth} and limit {limit}: too few rows are re-ranked.", "Give a greater depth.")
    plan = yield from prepared(searcher, table, replace(fused, limit=depth) if rerank else fused)
    rows = yield from run_fused(plan)
    if rerank is None or not rows or words is None:
        return rows
    scores: Sequence[float] = yield Compute(lambda: [float(score) for score in rerank(words, rows)])
    return reranked(rows, scores)[:limit]


def run_fused(plan: FusedPlan) -> Plan[list[SearchRow]]:
    """Its rows, best first."""
    return (yield Call(plan.statement.text, plan.statement.values, search_row_factory))


def prepared(searcher: Searcher, table: str, fused: Fused) -> Plan[FusedPlan]:
    """Look up the embeddings, encode the queries that need a model here, and write the statements."""
    words, queries, embeddings = fused.words, fused.queries, fused.embeddings
    if words is not None and not words.strip():
        raise InvalidQuery("The words to search for are empty.", "Give words, or None and a query.")
    if queries is None:
        if words is None:
            raise InvalidQuery("There are no words and no query to search with.", "Give words, query= or queries=.")
        queries = [Text(words)] * (1 if embeddings is None else len(embeddings))
    if embeddings is not None and len(embeddings) != len(queries) and queries:
        raise InvalidQuery(
            f"There are {len(embeddings)} embeddings ({', '.join(map(str, embeddings))}) and {len(queries)} queries.",
            "Name the embedding of each query, in their order.",
        )
    names = embeddings or [None] * max(1, len(queries))
    target = yield from searcher.target(table, names[0])
    vectors: list[Statement] = []
    targets: list[str] = []
    for query, name in zip(queries, names, strict=False):
        plan = yield from searcher.prepare(table, query, embedding=name, limit=fused.limit, prefer=fused.prefer)
        vectors.append(plan.vector)
        targets.append(plan.target.column)
    for of, number in (("limit", fused.limit), ("depth", fused.depth)):
        if number >= _MANY:
            raise InvalidQuery(f"{of} is {number}, which is no number of rows.", f"Give less than {_MANY}.")
    read = chosen(target, fused.columns, fused.wide)
    arguments = _arguments(target, fused, vectors, targets)
    explained = sql.SQL("SELECT pgembed.explain_hybrid(NULL::{}, {}, recall => %s) AS told").format(
        quoted(target.schema, target.table), arguments.text
    )
    return FusedPlan(
        _statement(target, fused, read, arguments),
        Statement(sql.Composed([explained]), arguments.values),
        tuple(item.name for item in read),
    )


def _arguments(target: Target, fused: Fused, queries: Sequence[Statement], embeddings: Sequence[str]) -> Statement:
    """The arguments of pgembed.hybrid after the first; those that are None are left out."""
    vector = sql.SQL("vector") if target.vector_schema is None else quoted(target.vector_schema, "vector")
    values: list[object] = [value for query in queries for value in query.values]
    written = [sql.SQL("queries => ARRAY[{}]::{}[]").format(sql.SQL(", ").join(q.text for q in queries), vector)]
    given: dict[str, object] = {
        "words": fused.words,
        "k": fused.limit,
        "embeddings": list(embeddings),
        "weights": None if fused.weights is None else list(map(float, fused.weights)),
        "method": fused.method,
        "filter": _filter(target, fused, _condition(fused.where, fused.params)),
        "filters": _filters(target, fused),
        "columns": None if fused.words_columns is None else list(fused.words_columns),
        "config": fused.config,
        "words_function": fused.words_function,
        "depth": fused.depth,
        "exact": fused.exact,
    }
    for name, value in given.items():
        if value is not None:
            written.append(sql.SQL("{} => %s{}").format(sql.Identifier(name), sql.SQL(_TYPES.get(name, ""))))
            values.append(value)
    return Statement(sql.Composed([sql.SQL(", ").join(written)]), tuple(values))


def _statement(target: Target, fused: Fused, read: Sequence[Chosen], arguments: Statement) -> Statement:
    """What asks pgembed.hybrid for these columns of its rows. Where there are joins or expressions, the table's row is
    read again by its key, so that these may name its columns."""
    again = bool(fused.joins) or any(item.sql is not None for item in read)
    wide = {column.name for column in target.columns if column.wide}
    needed = [*target.keys, *(item.name for item in read if not again)]
    names = [item.name for item in read]

    def column(name: str) -> sql.Composable:
        return quoted(target.table, name) if again else _of_item(name)

    output: list[sql.Composable] = [
        sql.SQL("{} AS {}").format(
            item.sql or column(item.name), quoted(unused("score", names) if item.name == "score" else item.name)
        )
        for item in read
    ]
    output.append(sql.SQL("{} AS score").format(_SCORE))
    if fused.places:
        output += [
            sql.SQL("{}::text AS {}").format(_of_item(key), quoted(f"{PLACE} {n}"))
            for n, key in enumerate(target.keys, start=1)
        ]
    parts: list[sql.Composable] = [
        sql.SQL("SELECT {} FROM pgembed.hybrid(NULL::{}, {}, wide => {}) WITH ORDINALITY AS {} ({}, {}, {})").format(
            sql.SQL(", ").join(output), quoted(target.schema, target.table), arguments.text,
            sql.Literal(not wide.isdisjoint(needed)), _FOUND, _ITEM, _SCORE, _ORDER,
        )
    ]  # fmt: skip
    conditions: list[sql.Composable] = []
    if again:
        same = sql.SQL(" AND ").join(
            sql.SQL("{} = {}").format(quoted(target.table, key), _of_item(key)) for key in target.keys
        )
        parts.append(sql.SQL(" JOIN {} ON {}").format(quoted(target.schema, target.table), same))
        parts += [sql.SQL(" "), _escaped(_joins(fused))]
        if fused.joins and (where := _condition(fused.where, fused.params)) is not None:
            conditions.append(sql.SQL("({})").format(_escaped(where)))
    if fused.least is not None:
        conditions.append(sql.SQL("{} >= {}").format(_SCORE, fused.least))
    if conditions:
        parts += [sql.SQL(" WHERE "), sql.SQL(" AND ").join(conditions)]
    parts.append(sql.SQL(" ORDER BY {}").format(_ORDER))
    if fused.joins:
        parts.append(sql.SQL(" LIMIT {}").format(fused.limit))
    return Statement(sql.Composed(parts), arguments.values)


def _of_item(name: str) -> sql.Composed:
    return sql.SQL("({}.{}).{}").format(_FOUND, _ITEM, quoted(name))


def _filters(target: Target, fused: Fused) -> list[str | None] | None:
    """The condition of each leg beside that of all."""
    if fused.filters is None:
        return None
    if isinstance(fused.filters, str):
        raise InvalidQuery(
            f"filters has one for each leg, which {fused.filters!r} is not.", 'For all legs: where="price < 50".'
        )
    pairs = [(one, ()) if one is None or isinstance(one, str) else one for one in fused.filters]
    return [None if where is None else _filter(target, fused, _condition(where, params)) for where, params in pairs]


def _filter(target: Target, fused: Fused, where: str | None) -> str | None:
    """A condition on the table's rows: with joins, that the key is one of those that join and match."""
    if not fused.joins:
        return where
    keys = sql.SQL(", ").join(map(sql.Identifier, target.keys)).as_string(None)
    own = sql.SQL(", ").join(sql.Identifier(target.table, key) for key in target.keys).as_string(None)
    table = sql.Identifier(target.schema, target.table).as_string(None)
    return f"({keys}) IN (SELECT {own} FROM {table} {_joins(fused)} WHERE {where or 'true'})"


def _joins(fused: Fused) -> str:
    return _inlined(" ".join(fused.joins), fused.joined)


def _condition(where: str | None, params: Parameters) -> str | None:
    """A filter with its parameters written into it as psycopg writes literals, so that their types are those of
    ``search``. Raises InvalidQuery where it names other parameters than there are."""
    if where is None:
        if params:
            raise InvalidQuery("There are params, but no filter that names them.", "Give where='price < %s'.")
        return None
    places = re.findall(r"%(?:\(([^)]*)\))?[sbt]", where.replace("%%", ""))
    if params and (set(places) - params.keys() if isinstance(params, Mapping) else len(places) != len(params)):
        raise InvalidQuery(
            f"The filter {where!r} names other parameters than params has: {params!r}.",
            "Give one value for each %s, or %(name)s.",
        )
    return _inlined(where, params)


def _inlined(text: str, params: Parameters) -> str:
    """SQL with its parameters in place. Without any, percent signs are taken as they are, or are doubled."""
    if not params:
        return text.replace("%%", "%")
    composed = sql.Composed([sql.SQL(cast(LiteralString, text))])
    return Statement(composed, dict(params) if isinstance(params, Mapping) else tuple(params)).as_string()


def _escaped(text: str) -> sql.SQL:
    return sql.SQL(cast(LiteralString, text.replace("%", "%%")))
