"""What the catalog of a database says of its embeddings, as models would declare them."""

from __future__ import annotations

import re
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

from pgvector.sqlalchemy import VECTOR
from sqlalchemy import Connection, Engine, Inspector, Table, event, text
from sqlalchemy.engine.interfaces import ReflectedColumn

from pgembed.declared import Declared, EncoderSpec, inputs_of
from pgembed.sqlalchemy.columns import Embedding
from pgembed.sqlalchemy.ddl import is_installed

Name = tuple[str, str, str]  # schema, table, target
_PART = re.compile(r"\{\{|\}\}|\{([^{}]+)\}")  # of a template, as pgembed._template_parts takes it apart

_EMBEDDINGS = text(
    "SELECT n.nspname, c.relname, e.target, e.encoder, e.inputs, e.mode, e.stale, e.storage,"
    " coalesce(e.fusion ->> 'method', 'sum') AS fusion, pgembed._metric(o.metric, e.fusion) AS metric, o.spec,"
    " o.settings, (SELECT pg_catalog.jsonb_object_agg(a.attnum, a.attname) FROM pg_catalog.pg_attribute a"
    " WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped) AS present"
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
            inputs=inputs_of(_renamed(row.inputs, row.present)),
            mode=row.mode,
            stale=row.stale,
            storage=row.storage,
            fusion=row.fusion,
            metric=row.metric,
            registered_as=EncoderSpec(row.encoder, row.spec, row.settings),
        )
        for row in connection.execute(_EMBEDDINGS, {"relation": relation})
    }


def _renamed(inputs: Mapping[str, Any], present: Mapping[str, str]) -> dict[str, Any]:
    """Inputs with the names that their columns have now. The catalog has those of the attach, with their numbers."""
    found: dict[str, Any] = {}
    for modality, facts in inputs.items():
        columns: dict[str, int] = facts.get("columns") or {}  # NULL where a restore found none of them
        names = {name: present.get(str(number), name) for name, number in columns.items()}
        new = {**facts, "columns": {names[name]: number for name, number in columns.items()}}
        if modality == "text":
            new["template"] = _PART.sub(partial(_part_renamed, names), facts["template"])
        else:
            new["column"] = names.get(facts["column"], facts["column"])
        found[modality] = new
    return found


def _part_renamed(names: Mapping[str, str], part: re.Match[str]) -> str:
    """``{attrs.color}`` with the new name of ``attrs``, unless a column has the whole as its name."""
    written = part[1]
    if written is None:
        return part[0]
    split = len(written) if written in names else _column_ends(written)
    return f"{{{names.get(written[:split], written[:split])}{written[split:]}}}"


def _column_ends(written: str) -> int:
    found = re.search("[./]", written)
    return len(written) if found is None else found.start()


@event.listens_for(Table, "column_reflect")
def _reflects(inspector: Inspector, table: Table, column: ReflectedColumn) -> None:
    """Give a column of vectors that pgembed fills back as what it is."""
    if not isinstance(column["type"], VECTOR) or inspector.dialect.name != "postgresql":
        return
    schema = table.schema or inspector.default_schema_name
    quote = inspector.dialect.identifier_preparer.quote_identifier
    relation = ".".join(quote(part).replace("%%", "%") for part in (schema, table.name) if part)
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
