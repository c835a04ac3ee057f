"""Queries as parameters: what a statement asks is encoded once, all of it together, just before it is sent."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from django.db.backends.base.base import BaseDatabaseWrapper
from pgvector import Vector as PgVector

from pgembed.django.apps import searcher
from pgembed.django.running import run_before
from pgembed.errors import InvalidQuery
from pgembed.inputs import Expression
from pgembed.shown import shortened


class Waiting(str):
    """A query that has to be encoded before its statement is sent, and the embedding that is asked. Where a statement
    is shown it stands as what it is."""

    query: Expression
    place: tuple[str, str]  # the table, quoted, and the target

    def __new__(cls, query: Expression, table: str, target: str) -> Waiting:
        waiting = super().__new__(cls, repr(query))
        waiting.query, waiting.place = query, (table, target)
        return waiting


def checked(query: object) -> Expression | str:
    """A query, or the numbers of a vector as Postgres reads them. Raises InvalidQuery for what is neither."""
    if isinstance(query, Expression):
        return query
    if query is None:
        raise InvalidQuery("The query is None, as the vector of a row is before it is encoded.")
    if not isinstance(query, list | np.ndarray | PgVector):
        raise InvalidQuery(
            f"A query is a Text, an Image or the like, or numbers, not {shortened(repr(query))}.",
            'Write Text("…"), or give the attribute of an object: product.embedding.',
        )
    return (query if isinstance(query, PgVector) else PgVector(query)).to_text()


def let_ask(connection: BaseDatabaseWrapper) -> None:
    """Have a connection encode what its statements ask."""
    if encode_queries not in connection.execute_wrappers:
        connection.execute_wrappers.append(encode_queries)


def encode_queries(
    execute: Callable[..., Any],
    statement: str,
    params: Sequence[Any] | None,
    many: bool,
    context: dict[str, Any],
) -> Any:  # noqa: ANN401
    """Put vectors in the place of queries. All that a statement asks of one embedding is one call of its encoder."""
    waiting = [] if many else [value for value in params or () if type(value) is Waiting]
    if not waiting:
        return execute(statement, params, many, context)
    vectors = _vectors(context["connection"], waiting)
    given = [vectors[value.query, value.place] if type(value) is Waiting else value for value in params or ()]
    return execute(statement, given, many, context)


def _vectors(
    connection: BaseDatabaseWrapper, waiting: Sequence[Waiting]
) -> dict[tuple[Expression, tuple[str, str]], str]:
    asked: dict[tuple[str, str], dict[Expression, None]] = defaultdict(dict)
    for one in waiting:
        asked[one.place][one.query] = None
    found: dict[tuple[Expression, tuple[str, str]], str] = {}
    for (table, target), queries in asked.items():
        plan = searcher(connection.alias).vectors(table, list(queries), embedding=target)
        for query, vector in zip(queries, run_before(connection, plan), strict=True):
            found[query, (table, target)] = PgVector(vector).to_text()
    return found
