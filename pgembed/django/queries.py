"""Queries as parameters: what a statement asks is encoded once, all of it together, just before it is sent."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import psycopg
from django.db.backends.base.base import BaseDatabaseWrapper
from numpy.typing import NDArray
from pgvector import Vector as PgVector
from psycopg.adapt import Dumper

from pgembed.compatibility import told_once
from pgembed.django.apps import searcher
from pgembed.django.running import own_cursors, run_before
from pgembed.errors import InvalidQuery
from pgembed.inputs import Expression, Vector
from pgembed.shown import shortened
from pgembed.vectors import pack_one, register_packed


class Waiting(str):
    """A query that has to be encoded before its statement is sent, and the embedding that is asked. Where a statement
    is shown it stands as what it is."""

    query: Expression
    place: tuple[str, str]  # the table, quoted, and the target

    def __new__(cls, query: Expression, table: str, target: str) -> Waiting:
        waiting = super().__new__(cls, "Vector(…)" if isinstance(query, Vector) else repr(query))
        waiting.query, waiting.place = query, (table, target)
        return waiting

    def __eq__(self, other: object) -> bool:
        return type(other) is Waiting and (self.query, self.place) == (other.query, other.place)

    def __hash__(self) -> int:
        return hash((self.query, self.place))


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
    """Have a connection encode what its statements ask: before the wrappers of others, which go as the last of all."""
    if encode_queries not in connection.execute_wrappers:
        connection.execute_wrappers.insert(0, encode_queries)


def encode_queries(
    execute: Callable[..., Any],
    statement: str,
    params: Sequence[Any] | None,
    many: bool,
    context: dict[str, Any],
) -> Any:  # noqa: ANN401
    """Put vectors in the place of queries. All that a statement asks of one embedding is one call of its encoder."""
    waiting = [] if many else dict.fromkeys(value for value in params or () if type(value) is Waiting)
    if not waiting:
        return execute(statement, params, many, context)
    connection, cursor = context["connection"], context["cursor"]
    if not isinstance(getattr(cursor, "cursor", None), psycopg.ClientCursor):  # the server binds, or keeps the rows
        return execute(statement, with_vectors(connection, params or ()), many, context)
    vectors = _vectors(connection, list(waiting))
    places = {one: Place(f"${number}") for number, one in enumerate(waiting, start=1)}
    given = [places.get(one, one) if type(one) is Waiting else one for one in params or ()]
    if all(type(one) is Place for one in given):
        written = _PARAMETER.sub(lambda found: "%" if found[0] == "%%" else given.pop(0), statement)
    else:
        cursor.cursor.adapters.register_dumper(Place, PlaceDumper)
        written = cursor.cursor.mogrify(statement, given)
    with own_cursors(connection, VectorCursor):
        cursor.cursor = connection.create_cursor()
    return execute(written, [pack_one(vectors[one]) for one in waiting], many, context)


def with_vectors(connection: BaseDatabaseWrapper, params: Sequence[Any]) -> list[Any]:
    """Parameters with vectors as Postgres writes them in the place of queries."""
    vectors = _vectors(connection, list(dict.fromkeys(one for one in params if type(one) is Waiting)))
    return [PgVector(vectors[one]).to_text() if type(one) is Waiting else one for one in params]


_PARAMETER = re.compile("%%|%s")


class Place(str):
    """Where a vector stands in a statement whose other parameters are written into it, as Django has it: its number."""


class PlaceDumper(Dumper):
    """Writes it as it is."""

    def dump(self, obj: Place) -> bytes:
        return obj.encode()

    quote = dump


class VectorCursor(psycopg.RawCursor[Any]):
    """A cursor of Django's connection that sends vectors in binary form, which is quicker."""

    def __init__(self, *args: Any, **options: Any) -> None:  # noqa: ANN401
        super().__init__(*args, **options)
        register_packed(self.adapters)


def _vectors(connection: BaseDatabaseWrapper, waiting: Sequence[Waiting]) -> dict[Waiting, NDArray[np.float32]]:
    asked: dict[tuple[str, str], list[Waiting]] = defaultdict(list)
    for one in waiting:
        asked[one.place].append(one)
    found: dict[Waiting, NDArray[np.float32]] = {}
    for (table, target), those in asked.items():
        searching = searcher(connection.alias)
        plan = told_once(searching, searching.vectors(table, [one.query for one in those], embedding=target))
        found.update(zip(those, run_before(connection, plan), strict=True))
    return found
