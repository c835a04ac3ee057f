"""Side tables in models: where an embedding's vectors stand if they are no column of the table they are of."""

from __future__ import annotations

from hashlib import md5
from typing import Any, cast

from sqlalchemy import (
    Column,
    ForeignKeyConstraint,
    FromClause,
    Index,
    Integer,
    MetaData,
    PrimaryKeyConstraint,
    Table,
    Text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.sql.elements import NamedColumn

from pgembed.declared import OPERATOR_CLASSES, Declared
from pgembed.errors import InvalidQuery

OF = "embedding of"  # in Column.info of a side table's vectors: the column of the embedding
PART = "part"  # the number of a part in its row, from 1 on
_LONGEST = 63  # bytes of a name in Postgres


def side_table(column: Column[Any], declared: Declared, kind: Any) -> Table:  # noqa: ANN401
    """The side table of an embedding, ``(<key>, vector)`` with the key of its own table; ``kind`` is the type of its
    vectors. Where it has parts, ``(<key>, part, kind, location, content, vector)``, a row for each. ``select(table)
    .join(side)`` needs no ON. It is in a MetaData of its own, so that ``create_all``, ``drop_all`` and autogenerate
    leave it to pgembed. Raises InvalidQuery where the table has no key."""
    table = column.table
    keys = list(table.primary_key.columns)
    if not keys:
        raise no_key(table)
    vector = Column("vector", kind, nullable=False, info={OF: column})
    parts: list[Column[Any]] = []
    if declared.parts is not None:
        parts = [
            Column(PART, Integer, nullable=False),
            Column("kind", Text, nullable=False),
            Column("location", JSONB, nullable=False),
            Column("content", Text),
        ]
    side = Table(
        side_name(table.name, column.name),
        MetaData(naming_convention=cast(Any, table.metadata.naming_convention)),
        *(Column(key.name, key.type) for key in keys),
        *parts,
        vector,
        PrimaryKeyConstraint(*(key.name for key in keys), *(part.name for part in parts[:1])),
        ForeignKeyConstraint([key.name for key in keys], keys),
        schema=table.schema,
    )
    if declared.index is not None:
        vector_index(vector, declared)
    return side


def row_key(side: FromClause, table: Table) -> list[NamedColumn[Any]]:
    """The columns of a side table, or of an alias of it, that are the key of a row of ``table``, of which it is: all of
    its own key, which may have the number of a part after them."""
    return [*side.primary_key][: len(table.primary_key)]


def no_key(table: Table) -> InvalidQuery:
    """What to raise where a table has no primary key, by which vectors are found."""
    return InvalidQuery(f"Table {table.name} has no primary key.", "Declare it, as the database has it.")


def side_name(table: str, target: str) -> str:
    """What pgembed calls a side table: ``<table>_<target>``, cut where that is longer than a name may be."""
    name = f"{table}_{target}"
    if len(name.encode()) <= _LONGEST:
        return name
    hashed = md5(name.encode(), usedforsecurity=False).hexdigest()
    return f"{table[:15]}_{target[:15]}_{hashed}".encode()[:_LONGEST].decode(errors="ignore")


def vector_index(column: Column[Any], declared: Declared) -> Index:
    """The HNSW index that an embedding declares, over the column that holds its vectors."""
    assert declared.index is not None
    return Index(
        None,
        column,
        postgresql_using="hnsw",
        postgresql_with={"m": declared.index.m, "ef_construction": declared.index.ef_construction},
        postgresql_ops={column.name: OPERATOR_CLASSES[declared.metric]},
        _column_flag=True,  # as of Column(index=True): a copy of the table has it by its column, not twice
    )
