"""What the catalog of a database says of its embeddings, as models would declare them."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from pgvector.sqlalchemy import VECTOR
from sqlalchemy import Connection, Engine, Inspector, Table, event, text
from sqlalchemy.engine.interfaces import ReflectedColumn

from pgembed.declared import Declared, EncoderSpec, inputs_of
from pgembed.sqlalchemy.columns import Embedding
from pgembed.sqlalchemy.ddl import is_installed
from pgembed.sqlalchemy.running import qualified

Name = tuple[str, str, str]  # schema, table, target

_EMBEDDINGS = text(
    "SELECT n.nspname, c.relname, e.target, e.encoder, pgembed._renamed(c.oid, e.inputs) AS inputs, e.mode, e.stale,"
    " e.storage, coalesce(e.fusion ->> 'method', 'sum') AS fusion, pgembed._metric(o.metric, e.fusion) AS metric,"
    " o.spec, o.settings"
    " FROM pgembed.embedding e JOIN pgembed.encoder o ON o.name = e.encoder"
    " JOIN pg_catalog.pg_class c ON c.oid = e.relation JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace"
    " WHERE CAST(:relation AS pg_catalog.text) IS NULL"
    " OR c.oid = pg_catalog.to_regclass(CAST(:relation AS pg_catalog.text))"
)


def attached(connection: Connection, relation: str | None = None) -> dict[Name, Declared]:
    """The embeddings of a database, or of one table; none where pgembed is not there, or its catalog not for us."""
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
        for row in connection.execute(_EMBEDDINGS, {"relation": relation})
    }


@event.listens_for(Table, "column_reflect")
def _reflects(inspector: Inspector, table: Table, column: ReflectedColumn) -> None:
    """Give a column of vectors that pgembed fills back as what it is."""
    if not isinstance(column["type"], VECTOR) or inspector.dialect.name != "postgresql":
        return
    schema = table.schema or inspector.default_schema_name
    relation = qualified(inspector.dialect.identifier_preparer, schema, table.name)
    with _connection(inspector.bind) as connection:
        found = {name[2]: declared for name, declared in attached(connection, relation).items()}
    if (declared := found.get(column["name"])) is not None:
        column["type"] = Embedding(declared, column["type"].dim)


@contextmanager
def _connection(bind: Engine | Connection | Any) -> Generator[Connection]:  # noqa: ANN401
    if isinstance(bind, Connection):
        yield bind
        return
    with bind.connect() as connection:
        yield connection
