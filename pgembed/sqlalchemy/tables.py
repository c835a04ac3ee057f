"""What happens to embeddings as their tables are declared, mapped, created and dropped."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, cast

from sqlalchemy import Column, Connection, Index, Table, event, inspect
from sqlalchemy.orm import InstanceState, Mapper
from sqlalchemy.schema import CreateIndex, FetchedValue

from pgembed.declared import Declared
from pgembed.sqlalchemy.columns import Embedding, EmbeddingColumn
from pgembed.sqlalchemy.ddl import AttachEmbedding, DetachEmbedding, is_installed, register_encoder
from pgembed.sqlalchemy.side import OF, vector_index

FOLLOWED_BY = "embeddings that follow"  # in Column.info of a reflected column: those to be put into its table, by name


def embedding_columns(table: Table) -> Iterator[tuple[EmbeddingColumn, Declared]]:
    """The embeddings that a table declares."""
    for column in table.columns:
        if isinstance(column, EmbeddingColumn):
            yield column, column.declared


@event.listens_for(Column, "after_parent_attach")
def _joins_table(column: Column[Any], table: Table) -> None:
    """Make a column of an embedding what it is: no part of CREATE TABLE, and written by nobody but pgembed."""
    for name, followed_by in column.info.pop(FOLLOWED_BY, {}).items():
        table.append_column(Column(name, cast(Any, Embedding(followed_by))))
    if not isinstance(column.type, Embedding) or column.type.declared is None or OF in column.info:
        return
    declared = column.type.declared
    column.__class__ = EmbeddingColumn
    column.type = Embedding(declared, column.type.dim, f"{table.fullname}.{column.name}")
    column.system = True  # attach adds it
    if column.server_default is None:
        column.server_default = FetchedValue()  # so that INSERTs leave it alone
    in_table = declared.storage == "column"  # and in a side table the index is that table's
    if in_table and declared.index is not None and not any(is_over(index, column) for index in table.indexes):
        vector_index(column, declared)


@event.listens_for(Mapper, "after_mapper_constructed")
def _is_mapped(mapper: Mapper[Any], _class: type) -> None:
    """Have objects inserted without the vectors that they hold: those of a copy of another row, or of one merged."""
    ours = {key: column.declared for key, column in mapper.columns.items() if isinstance(column, EmbeddingColumn)}
    # RETURNING does not see what a trigger puts into a side table
    later = [key for key, declared in ours.items() if (declared.storage, declared.mode) == ("side", "instant")]

    def leave_out(_mapper: Mapper[Any], _connection: Connection, target: Any) -> None:  # noqa: ANN401
        for key in ours:
            target.__dict__.pop(key, None)

    def load_when_asked(_mapper: Mapper[Any], _connection: Connection, target: Any) -> None:  # noqa: ANN401
        for key in later:
            target.__dict__.pop(key, None)
        cast("InstanceState[Any]", inspect(target)).expired_attributes.update(later)

    if ours:
        event.listen(mapper, "before_insert", leave_out)
    if later:
        event.listen(mapper, "after_insert", load_when_asked)


def is_over(index: Index, column: Column[Any]) -> bool:
    """Whether an index holds a column."""
    return any(column is one or getattr(one, "name", None) == column.name for one in index.expressions)


def indexes_over(column: EmbeddingColumn) -> Sequence[Index]:
    """The indexes over an embedding, whose column is not there when the others of its table are built."""
    own = [index for index in column.table.indexes if is_over(index, column)]
    return own if column.vectors is column else [*own, *column.side.indexes]


def late_indexes(table: Table) -> Sequence[Index]:
    """The indexes over the embeddings of a table, each once."""
    return list(dict.fromkeys(index for column, _ in embedding_columns(table) for index in indexes_over(column)))


# of all tables, since one that was pickled has no listeners of its own any more
@event.listens_for(Table, "before_create")
def _creates(table: Table, connection: Connection, **_options: Any) -> None:  # noqa: ANN401
    for index in late_indexes(table):
        index.ddl_if(callable_=_never)


@event.listens_for(Table, "after_create")
def _created(table: Table, connection: Connection, **_options: Any) -> None:  # noqa: ANN401
    schema = connection.schema_for_object(table)
    for column, declared in embedding_columns(table):
        if declared.registered_as is not None:
            register_encoder(connection, declared.registered_as)
        connection.execute(AttachEmbedding(schema, table.name, column.name, declared))
    for index in late_indexes(table):
        connection.execute(CreateIndex(index))


@event.listens_for(Table, "before_drop")
def _drops(table: Table, connection: Connection, **_options: Any) -> None:  # noqa: ANN401
    declared = [column for column, _ in embedding_columns(table)]
    if declared and hasattr(connection, "connection") and not is_installed(connection):
        return
    schema = connection.schema_for_object(table)
    for column in declared:
        connection.execute(DetachEmbedding(schema, table.name, column.name, if_attached=True))


def _never(*_args: Any, **_options: Any) -> bool:  # noqa: ANN401
    return False
