"""What the catalog of a database says of its embeddings, as models would declare them."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from pgvector.sqlalchemy import VECTOR
from sqlalchemy import Connection, Engine, Inspector, Table, event, text

from pgembed.declared import Declared, EncoderSpec, inputs_of
from pgembed.sqlalchemy.columns import Embedding
from pgembed.sqlalchemy.ddl import is_installed
from pgembed.sqlalchemy.tables import FOLLOWED_BY

Name = tuple[str, str, str]  # schema, table, target

_EMBEDDINGS = text(
    "SELECT n.nspname, c.relname, e.target, e.encoder, pgembed._renamed(c.oid, e.inputs) AS inputs, e.mode, e.stale,"
    " e.storage, coalesce(e.fusion ->> 'method', 'sum') AS fusion, pgembed._metric(o.metric, e.fusion) AS metric,"
    " o.spec, o.settings"
    " FROM pgembed.embedding e JOIN pgembed.encoder o ON o.name = e.encoder"
    " JOIN pg_catalog.pg_class c ON c.oid = e.relation JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace"
)
_LAST = text(
    "SELECT DISTINCT ON (c.oid) n.nspname, c.relname, a.attname FROM pgembed.embedding e"
    " JOIN pg_catalog.pg_class c ON c.oid = e.relation JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace"
    " JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND NOT a.attisdropped ORDER BY c.oid, a.attnum DESC"
)


def attached(connection: Connection) -> dict[Name, Declared]:
    """The embeddings of a database; none where pgembed is not there, or its catalog not for us."""
    if not is_installed(connection, readable=True):
        return {}
    return {
        (row.nspname, row.relname, row.target): Declared(
            encoder=row.encoder,
            inputs=inputs_of(row.inputs),
            mode=row.mode,
            stale=row.stale,
            storage=row.storage,
            fusion=row.fusion,
            metric=row.metric,
            registered_as=EncoderSpec(row.encoder, row.spec, row.settings),
        )
        for row in connection.execute(_EMBEDDINGS)
    }


@event.listens_for(Table, "column_reflect")
def _reflects(inspector: Inspector, table: Table, column: dict[str, Any]) -> None:
    """Give a column of vectors that pgembed fills back as what it is; one whose vectors stand in a side table follows
    the last column."""
    if inspector.dialect.name != "postgresql":
        return
    there = _embeddings(inspector).get((table.schema or inspector.default_schema_name, table.name))
    if there is None:
        return
    declared = there.of.get(column["name"])
    if declared is not None and declared.storage == "column" and isinstance(column["type"], VECTOR):
        column["type"] = Embedding(declared, column["type"].dim)
    if column["name"] == there.last:
        beside = {target: declared for target, declared in there.of.items() if declared.storage == "side"}
        column["info"] = {**column.get("info", {}), FOLLOWED_BY: beside}


@dataclass
class _There:
    """The embeddings of a table, and its last column."""

    of: dict[str, Declared]
    last: str


def _embeddings(inspector: Inspector) -> dict[tuple[str | None, str], _There]:
    """The embeddings of a database by their tables, asked once by an Inspector."""
    known: dict[Any, Any] = inspector.info_cache
    if _There not in known:
        found: dict[tuple[str | None, str], _There] = {}
        with _connection(inspector.bind) as connection:
            for (schema, table, target), declared in attached(connection).items():
                found.setdefault((schema, table), _There({}, "")).of[target] = declared
            for row in connection.execute(_LAST) if found else ():
                if (there := found.get((row.nspname, row.relname))) is not None:
                    there.last = row.attname
        known[_There] = found
    return known[_There]


@contextmanager
def _connection(bind: Engine | Connection | Any) -> Generator[Connection]:  # noqa: ANN401
    if isinstance(bind, Connection):
        yield bind
        return
    with bind.connect() as connection:
        yield connection
