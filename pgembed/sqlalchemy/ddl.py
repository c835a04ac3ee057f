"""The statements that a model's embeddings come to: calls of pgembed's SQL functions, as DDL that can also be written
into a script."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from psycopg import sql
from sqlalchemy import Connection, text
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.schema import ExecutableDDLElement
from sqlalchemy.sql.compiler import DDLCompiler

from pgembed import catalog, statements
from pgembed.declared import Declared, EncoderSpec
from pgembed.sqlalchemy.running import has_doubled_percents, qualified, run_plan

_CATALOG = (
    "SELECT FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace"
    " WHERE n.nspname = 'pgembed' AND c.relname = 'embedding'"
)
_MAY_READ = " AND pg_catalog.has_schema_privilege(n.oid, 'USAGE') AND pg_catalog.has_table_privilege(c.oid, 'SELECT')"


class AttachEmbedding(ExecutableDDLElement):
    """``SELECT pgembed.attach(…)`` for a table that is there."""

    def __init__(self, schema: str | None, table: str, embedding: str, declared: Declared) -> None:
        self.schema, self.table, self.embedding, self.declared = schema, table, embedding, declared


class AlterEmbedding(AttachEmbedding):
    """``SELECT pgembed.alter(…)``: another embedding in the place of the one that is there, unless it is the same."""


class DetachEmbedding(ExecutableDDLElement):
    """``SELECT pgembed.detach(…)``; with ``if_attached`` nothing happens where there is nothing to detach."""

    def __init__(self, schema: str | None, table: str, embedding: str, *, if_attached: bool = False) -> None:
        self.schema, self.table, self.embedding, self.if_attached = schema, table, embedding, if_attached


def is_installed(connection: Connection, *, readable: bool = False) -> bool:
    """Whether a database has pgembed's catalog; with ``readable``, one that the connection's role may read. Whoever
    may not, may not ask by the catalog's name either."""
    where = _MAY_READ if readable else ""
    return bool(connection.scalar(text(f"SELECT EXISTS ({_CATALOG}{where})")))


def register_encoder(connection: Connection, encoder: EncoderSpec) -> None:
    """Register an encoder that a model declares, unless one of that name is there."""
    if not hasattr(connection, "connection"):  # a script is written: no model is loaded for it
        connection.execute(RegisterEncoder(encoder))
        return
    if encoder.name not in {row.name for row in run_plan(connection, catalog.encoders())}:
        run_plan(connection, catalog.add_encoder(encoder.name, encoder.spec, encoder.settings, None))


class RegisterEncoder(ExecutableDDLElement):
    """``SELECT pgembed.add_encoder(…)``. ``facts`` are those of a model that SQL does not know by itself."""

    def __init__(self, encoder: EncoderSpec, facts: Mapping[str, Any] | None = None) -> None:
        self.encoder, self.facts = encoder, dict(facts or {})


class RemoveEncoder(ExecutableDDLElement):
    """``SELECT pgembed.remove_encoder(…)``."""

    def __init__(self, name: str) -> None:
        self.name = name


@compiles(AttachEmbedding)
def _attach(element: AttachEmbedding, compiler: DDLCompiler, **_: Any) -> str:  # noqa: ANN401
    table = qualified(compiler.preparer, element.schema, element.table)
    return _written(statements.attach(table, element.embedding, element.declared), compiler)


@compiles(AlterEmbedding)
def _alter(element: AlterEmbedding, compiler: DDLCompiler, **_: Any) -> str:  # noqa: ANN401
    table = qualified(compiler.preparer, element.schema, element.table)
    return _written(statements.alter(table, element.embedding, element.declared), compiler)


@compiles(DetachEmbedding)
def _detach(element: DetachEmbedding, compiler: DDLCompiler, **_: Any) -> str:  # noqa: ANN401
    table = qualified(compiler.preparer, element.schema, element.table)
    return _written(statements.detach(table, element.embedding, if_attached=element.if_attached), compiler)


@compiles(RegisterEncoder)
def _register(element: RegisterEncoder, compiler: DDLCompiler, **_: Any) -> str:  # noqa: ANN401
    return _written(statements.add_encoder(element.encoder, element.facts), compiler)


@compiles(RemoveEncoder)
def _remove(element: RemoveEncoder, compiler: DDLCompiler, **_: Any) -> str:  # noqa: ANN401
    return _written(statements.remove_encoder(element.name), compiler)


def _written(statement: sql.Composed, compiler: DDLCompiler) -> str:
    """A statement as SQLAlchemy hands it on: where a driver has percent signs doubled, with that."""
    text = statement.as_string(None)
    return text.replace("%", "%%") if has_doubled_percents(compiler.preparer) else text
