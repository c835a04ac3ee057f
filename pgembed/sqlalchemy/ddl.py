"""The statements that a model's embeddings come to: calls of pgembed's SQL functions, as DDL that can also be written
into a script."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, cast

from sqlalchemy import Connection, String, literal, text
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.schema import ExecutableDDLElement
from sqlalchemy.sql.compiler import DDLCompiler

from pgembed import catalog
from pgembed.declared import Declared, EncoderSpec
from pgembed.sqlalchemy.running import qualified, run_plan

_CATALOG = (
    "SELECT FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace"
    " WHERE n.nspname = 'pgembed' AND c.relname = 'embedding'"
)
_MAY_READ = " AND pg_catalog.has_schema_privilege(n.oid, 'USAGE') AND pg_catalog.has_table_privilege(c.oid, 'SELECT')"


class AttachEmbedding(ExecutableDDLElement):
    """``SELECT pgembed.attach(…)`` for a table that is there."""

    def __init__(self, schema: str | None, table: str, embedding: str, declared: Declared) -> None:
        self.schema, self.table, self.embedding, self.declared = schema, table, embedding, declared


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
    declared = element.declared
    arguments = [
        _relation(element.schema, element.table, compiler),
        _text(element.embedding, compiler),
        _text(declared.encoder, compiler),
        _text(declared.inputs, compiler),
        *(f"{name} => {_text(value, compiler)}" for name, value in declared.unusual.items()),
    ]
    return f"SELECT pgembed.attach({', '.join(arguments)})"


@compiles(DetachEmbedding)
def _detach(element: DetachEmbedding, compiler: DDLCompiler, **_: Any) -> str:  # noqa: ANN401
    relation, target = _relation(element.schema, element.table, compiler), _text(element.embedding, compiler)
    statement = f"SELECT pgembed.detach({relation}, {target})"
    if element.if_attached:
        statement += (
            f" WHERE EXISTS (SELECT FROM pgembed.embedding WHERE relation = {relation}::oid AND target = {target})"
        )
    return statement


@compiles(RegisterEncoder)
def _register(element: RegisterEncoder, compiler: DDLCompiler, **_: Any) -> str:  # noqa: ANN401
    encoder = element.encoder
    named: dict[str, Any] = {**({"settings": encoder.settings} if encoder.settings else {}), **element.facts}
    told = "".join(f", {name} => {_value(value, compiler)}" for name, value in named.items())
    return f"SELECT pgembed.add_encoder({_text(encoder.name, compiler)}, {_text(encoder.spec, compiler)}{told})"


@compiles(RemoveEncoder)
def _remove(element: RemoveEncoder, compiler: DDLCompiler, **_: Any) -> str:  # noqa: ANN401
    return f"SELECT pgembed.remove_encoder({_text(element.name, compiler)})"


def _value(value: object, compiler: DDLCompiler) -> str:
    match value:
        case None:
            return "NULL"
        case bool() | int():
            return str(value).lower()
        case str():
            return _text(value, compiler)
        case list():
            return f"ARRAY[{', '.join(_value(each, compiler) for each in cast('list[object]', value))}]"
        case _:
            return _text(json.dumps(value), compiler)


def _relation(schema: str | None, table: str, compiler: DDLCompiler) -> str:
    return f"{_text(qualified(compiler.preparer, schema, table), compiler)}::regclass"


def _text(value: str, compiler: DDLCompiler) -> str:
    return compiler.sql_compiler.process(literal(value, String()), literal_binds=True)
