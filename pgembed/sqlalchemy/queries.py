"""Queries as parameters: what a statement asks is encoded once, all of it together, just before it is sent."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, cast
from weakref import WeakKeyDictionary, WeakSet

import psycopg
from pgvector import Vector as PgVector
from pgvector.sqlalchemy import VECTOR
from sqlalchemy import Connection, Engine, event
from sqlalchemy.engine.interfaces import Dialect
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.pool import ConnectionPoolEntry, Pool
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.elements import BindParameter, TypeCoerce
from sqlalchemy.types import UserDefinedType
from sqlalchemy.util import await_only

from pgembed import schema
from pgembed.compatibility import told_once
from pgembed.encoders import EncoderPolicy
from pgembed.errors import InvalidQuery
from pgembed.inputs import Expression
from pgembed.media import MediaPolicy
from pgembed.searching import Searcher
from pgembed.sqlalchemy.running import driver_connection, qualified, run_before
from pgembed.told import in_own_words
from pgembed.vectors import PackedVector, pack_one, register_packed

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine  # which needs greenlet

_searchers: WeakKeyDictionary[Engine, Searcher] = WeakKeyDictionary()
_packed: WeakSet[Any] = WeakSet()  # connections of psycopg that take vectors in binary form
_lock = threading.Lock()


def configure(
    engine: Engine | AsyncEngine, *, media: MediaPolicy | None = None, encoders: EncoderPolicy | None = None
) -> None:
    """Say which pictures the queries of an engine may name and which encoders they may load; see ``pgembed.connect``,
    whose defaults hold where nothing was said."""
    with _lock:
        _searchers[_sync(engine)] = Searcher(media, encoders)


def install(connection: Connection) -> None:
    """Install the schema ``pgembed``, or upgrade it, in the transaction of a connection. Raises CatalogError."""
    raw = driver_connection(connection)
    with in_own_words():
        if isinstance(raw, psycopg.AsyncConnection):
            await_only(raw.execute(schema.install_statements().encode()))
        else:
            schema.install(raw)


@dataclass(frozen=True)
class Waiting:
    """A query that has to be encoded before its statement is sent."""

    query: Expression
    schema: str | None
    table: str
    column: str


class QueryVector(UserDefinedType[Any]):
    """The type of a parameter that is a query to the embedding ``column`` of a table, or the numbers of a vector."""

    cache_ok = True

    def __init__(self, schema: str | None, table: str, column: str) -> None:
        self.schema, self.table, self.column = schema, table, column

    @property
    def place(self) -> tuple[str | None, str, str]:
        """The embedding that is asked."""
        return self.schema, self.table, self.column

    def get_col_spec(self, **_options: Any) -> str:  # noqa: ANN401
        """What the database takes it for."""
        return "VECTOR"

    def bind_processor(self, dialect: Dialect) -> Callable[..., Any]:
        """Leave the query as it is, with what it is asked of."""
        numbers = VECTOR().bind_processor(dialect)

        def wait(value: object) -> Any:  # noqa: ANN401
            if not isinstance(value, Expression):
                return numbers(value)
            return Waiting(value, self.schema, self.table, self.column)

        return wait

    def literal_processor(self, dialect: Dialect) -> Callable[..., str]:
        """A query has no literal form: its vector is known as the statement is sent."""

        def refuse(value: Expression) -> str:
            raise InvalidQuery(f"{value!r} cannot be written into a statement.", "Give the numbers of its vector.")

        return refuse


class Asked(TypeCoerce[Any]):
    """A parameter whose value comes later, as that of a ``bindparam`` or of a lambda's variable, as a query."""

    inherit_cache = True


@compiles(Asked)
def _asked(element: Asked, compiler: SQLCompiler, **options: Any) -> str:  # noqa: ANN401
    """Refuse one value for two embeddings: it would be encoded for one of them alone."""
    parameter, asked = cast("BindParameter[Any]", element.typed_expression), cast(QueryVector, element.type)
    for other in compiler.binds.values():
        known = other.type
        if other.key == parameter.key and isinstance(known, QueryVector) and known.place != asked.place:
            raise InvalidQuery(
                f"One parameter is asked of {known.table}.{known.column} and of {asked.table}.{asked.column}.",
                "Give each a variable of its lambda, or a bindparam, of its own.",
            )
    return compiler.process(parameter, **options)


@event.listens_for(Engine, "before_cursor_execute", retval=True)
def _encode_queries(
    connection: Connection,
    _cursor: object,
    statement: str,
    parameters: Any,  # noqa: ANN401
    _context: object,
    executemany: bool,
) -> tuple[str, Any]:
    """Put vectors in the place of queries. All that a statement asks of one embedding is one call of its encoder."""
    rows: list[Any] = list(parameters) if executemany else [parameters]
    waiting = dict.fromkeys(value for row in rows for value in _values(row) if isinstance(value, Waiting))
    if not waiting:
        return statement, parameters
    vectors = _vectors(connection, list(waiting))
    given = [_replaced(row, vectors) for row in rows]
    return statement, given if executemany else given[0]


@event.listens_for(Pool, "connect")
def _prepare(_connection: object, entry: ConnectionPoolEntry) -> None:
    """Let new connections send vectors in binary form, which is quicker."""
    raw: Any = entry.driver_connection
    if isinstance(raw, psycopg.Connection | psycopg.AsyncConnection):
        register_packed(raw.adapters)
        _packed.add(raw)


def _vectors(connection: Connection, waiting: list[Waiting]) -> dict[Waiting, PackedVector | str]:
    searcher = _searcher(connection.engine)
    binary = driver_connection(connection) in _packed
    asked: dict[tuple[str, str], list[Waiting]] = defaultdict(list)
    for one in waiting:
        asked[_name(connection, one), one.column].append(one)
    found: dict[Waiting, PackedVector | str] = {}
    for (table, column), those in asked.items():
        plan = told_once(connection.engine, searcher.vectors(table, [one.query for one in those], embedding=column))
        for one, vector in zip(those, run_before(connection, plan), strict=True):
            found[one] = pack_one(vector) if binary else PgVector(vector).to_text()
    return found


def _name(connection: Connection, waiting: Waiting) -> str:
    """The table's name, as the connection's ``schema_translate_map`` has it."""
    names: Mapping[str | None, str | None] = connection.get_execution_options().get("schema_translate_map") or {}
    space = names.get(waiting.schema, waiting.schema)
    return qualified(connection.dialect.identifier_preparer, space, waiting.table)


def _searcher(engine: Engine) -> Searcher:
    with _lock:
        if engine not in _searchers:
            _searchers[engine] = Searcher(None, None)
        return _searchers[engine]


Row: TypeAlias = "Mapping[str, object] | Sequence[object] | None"


def _values(row: Row) -> Iterable[object]:
    return row.values() if isinstance(row, Mapping) else row or ()


def _replaced(row: Row, vectors: Mapping[Waiting, PackedVector | str]) -> Row:
    def one(value: object) -> object:
        return vectors[value] if isinstance(value, Waiting) else value

    return {name: one(value) for name, value in row.items()} if isinstance(row, Mapping) else [*map(one, row or ())]


def _sync(engine: Engine | AsyncEngine) -> Engine:
    return engine if isinstance(engine, Engine) else engine.sync_engine
