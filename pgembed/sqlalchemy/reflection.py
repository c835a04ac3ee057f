"""What the catalog of a database says of its embeddings, as models would declare them."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from pgvector.sqlalchemy import VECTOR
from sqlalchemy import Connection, Engine, Inspector, Table, event, text

from pgembed.declared import Declared, EncoderSpec, inputs_of
from pgembed.parts import parts_of
from pgembed.sqlalchemy.columns import Embedding
from pgembed.sqlalchemy.ddl import is_installed
from pgembed.sqlalchemy.tables import FOLLOWED_BY

Name = tuple[str, str, str]  # schema, table, target

_EMBEDDINGS = text(
    "SELECT n.nspname, c.relname, e.target, e.encoder, pgembed._renamed(c.oid, e.inputs) AS inputs, e.mode, e.stale,"
    " e.storage, coalesce(e.fusion ->> 'method', 'sum') AS fusion, e.parts,"
    " pgembed._metric(o.metric, e.fusion) AS metric,"
    " o.spec, o.settings, m.nspname AS side_schema, s.relname AS side_table,"
    " ARRAY(SELECT CAST(k.side_name AS text) FROM pgembed._side_keys(e) k ORDER BY k.ordinal) AS side_key,"
    " (SELECT a.attname FROM pg_catalog.pg_attribute a WHERE a.attrelid = c.oid AND NOT a.attisdropped"
    " ORDER BY a.attnum DESC LIMIT 1) AS last_column"
    " FROM pgembed.embedding e JOIN pgembed.encoder o ON o.name = e.encoder"
    " JOIN pg_catalog.pg_class c ON c.oid = e.relation JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace"
    " LEFT JOIN (pg_catalog.pg_class s JOIN pg_catalog.pg_namespace m ON m.oid = s.relnamespace) ON s.oid = e.side"
)


@dataclass(frozen=True)
class Side:
    """The side table of an embedding, with the columns of its key."""

    schema: str
    table: str
    key: list[str]


@dataclass(frozen=True)
class Attached:
    """An embedding of a database: what a model would declare, its side table, and the last column of its own table."""

    declared: Declared
    side: Side | None
    last_column: str


def attached(connection: Connection) -> dict[Name, Declared]:
    """The embeddings of a database; none where pgembed is not there, or its catalog not for us."""
    return {name: found.declared for name, found in _attached(connection).items()}


def attached_of(inspector: Inspector) -> dict[Name, Attached]:
    """The same, with where they stand, asked once by an Inspector."""
    known: dict[Any, Any] = inspector.info_cache
    if Attached not in known:
        with _connection(inspector.bind) as connection:
            known[Attached] = _attached(connection)
    return known[Attached]


def _attached(connection: Connection) -> dict[Name, Attached]:
    if not is_installed(connection, readable=True):
        return {}
    return {
        (row.nspname, row.relname, row.target): Attached(
            Declared(
                encoder=row.encoder,
                inputs=inputs_of(row.inputs),
                mode=row.mode,
                stale=row.stale,
                storage=row.storage,
                fusion=row.fusion,
                metric=row.metric,
                parts=parts_of(row.parts),
                registered_as=EncoderSpec(row.encoder, row.spec, row.settings),
            ),
            None if row.side_table is None else Side(row.side_schema, row.side_table, row.side_key),
            row.last_column,
        )
        for row in connection.execute(_EMBEDDINGS)
    }


@event.listens_for(Table, "column_reflect")
def _reflects(inspector: Inspector, table: Table, column: dict[str, Any]) -> None:
    """Give a column of vectors that pgembed fills back as what it is; one whose vectors stand in a side table follows
    the last column."""
    if inspector.dialect.name != "postgresql":
        return
    schema, name = table.schema or inspector.default_schema_name, column["name"]
    of_table = {
        target: found for (*place, target), found in attached_of(inspector).items() if place == [schema, table.name]
    }
    if name in of_table and of_table[name].side is None and isinstance(column["type"], VECTOR):
        column["type"] = Embedding(of_table[name].declared, column["type"].dim)
    follow = {
        target: found.declared
        for target, found in of_table.items()
        if found.side is not None and found.last_column == name
    }
    if follow:
        column["info"] = {**column.get("info", {}), FOLLOWED_BY: follow}


@contextmanager
def _connection(bind: Engine | Connection | Any) -> Generator[Connection]:  # noqa: ANN401
    if isinstance(bind, Connection):
        yield bind
        return
    with bind.connect() as connection:
        yield connection
