"""Autogenerate: what models declare of embeddings, against what the catalog of the database says."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import alembic.util
from alembic.autogenerate import comparators
from alembic.autogenerate.api import AutogenContext
from alembic.operations import ops
from psycopg.sql import Literal
from sqlalchemy import Column, Connection, Index, Table, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.schema import CreateIndex

from pgembed.alembic.operations import (
    AddEncoderOp,
    AlterEmbeddingOp,
    AttachEmbeddingOp,
    DetachEmbeddingOp,
    InstallOp,
    Place,
)
from pgembed.declared import EncoderSpec
from pgembed.sqlalchemy.columns import Embedding, EmbeddingColumn
from pgembed.sqlalchemy.ddl import is_installed
from pgembed.sqlalchemy.reflection import Attached, Side, attached_of
from pgembed.sqlalchemy.running import qualified
from pgembed.sqlalchemy.side import row_key
from pgembed.sqlalchemy.tables import embedding_columns, indexes_over

ALLOW_DROP = "allow-drop"  # alembic -x allow-drop
_OWN_INDEX = re.compile(r".*_hnsw_\d+")
_OF_A_VIEW = "(pgembed.neutralize("  # what pgembed.neutral_index_sql wrote
_OWN_SCHEMA = "pgembed"
_INDEX = text(
    "SELECT i.relname, pg_catalog.pg_get_indexdef(i.oid) AS definition FROM pg_catalog.pg_index x"
    " JOIN pg_catalog.pg_class i ON i.oid = x.indexrelid"
    " JOIN pg_catalog.pg_attribute a ON a.attrelid = x.indrelid AND a.attname = :target"
    " JOIN pg_catalog.pg_depend d ON d.objid = i.oid AND d.refobjid = x.indrelid AND d.refobjsubid = a.attnum"
    " WHERE x.indrelid = pg_catalog.to_regclass(CAST(:relation AS pg_catalog.text)) GROUP BY i.oid, i.relname"
)
_COPY = "pgembed_compared"


class DropVectorsIndexOp(ops.DropIndexOp):
    """Drop an index over an embedding; its reverse builds the very same again, as Postgres writes it."""

    def __init__(self, name: str, place: Place, building: ops.ExecuteSQLOp) -> None:
        super().__init__(name, place.table, schema=place.schema)
        self.building = building

    def reverse(self) -> Any:  # noqa: ANN401
        """The statement that built it."""
        return self.building


class RenamedOp(ops.ExecuteSQLOp):
    """Rename a side table, or a column of its key, as its table or that one's column is called now."""

    def __init__(self, statement: str, back: str) -> None:
        super().__init__(re.sub(r"(?<!:):(?=\w)", r"\\:", statement))
        self.statement, self.back = statement, back

    def reverse(self) -> Any:  # noqa: ANN401
        """The same back."""
        return RenamedOp(self.back, self.statement)


def register() -> None:
    """Have autogenerate compare embeddings, after all that it compares itself."""
    last: dict[str, Any] = {}
    if hasattr(alembic.util, "DispatchPriority"):  # Alembic 1.18
        last["priority"] = alembic.util.DispatchPriority.LAST
    cast(Any, comparators).dispatch_for("schema", **last)(compare_embeddings)


def compare_embeddings(context: AutogenContext, upgrade: ops.UpgradeOps, schemas: Collection[str | None]) -> None:
    """Add to the upgrade what makes the database's embeddings those of the models; take out what is pgembed's own."""
    connection = context.connection
    if connection is None or connection.dialect.name != "postgresql":
        return
    default = context.inspector.default_schema_name
    by_table: dict[tuple[str | None, str], dict[str, Attached]] = {}
    own: set[tuple[str | None, str]] = set()
    for (schema, table, target), there in attached_of(context.inspector).items():
        by_table.setdefault((None if schema == default else schema, table), {})[target] = there
        if there.side is not None:
            own.add((None if there.side.schema == default else there.side.schema, there.side.table))
    compared = {
        (None if table.schema == default else table.schema, table.name): table for table in context.sorted_tables
    }
    dropped = _without_ours(upgrade, by_table, own, compared)
    first: list[ops.MigrateOperation] = []
    last: list[ops.MigrateOperation] = []
    for schema, name in dropped:
        for target, was in by_table.get((schema, name), {}).items():
            place = Place(name, target, schema)
            first.append(DetachEmbeddingOp(place, was.declared, indexes=_rebuilding(connection, place, was)))
    encoders: dict[str, EncoderSpec] = {}
    for (schema, name), table in compared.items():
        if schema not in schemas or (schema, name) in own:
            continue
        there = by_table.get((schema, name), {})
        for column, declared in embedding_columns(table):
            if not context.run_object_filters(column, cast(Any, column.name), "column", False, None):
                continue
            if declared.registered_as is not None:
                encoders[declared.encoder] = declared.registered_as
        changes = _of_table(context, connection, schema, table, there)
        first += changes.first
        last += changes.last
    dropped_after = _drops_after(
        upgrade, {(op.place.schema, op.place.table) for op in last if isinstance(op, AlterEmbeddingOp)}
    )
    install = [InstallOp()] if last and not is_installed(connection) else []
    known = _encoders(connection) if encoders else set[str]()
    added = [AddEncoderOp(encoder) for name, encoder in encoders.items() if name not in known]
    upgrade.ops[:] = [*first, *upgrade.ops, *install, *added, *last, *dropped_after]


@dataclass(frozen=True)
class _Changes:
    first: list[ops.MigrateOperation]
    last: list[ops.MigrateOperation]


def _of_table(
    context: AutogenContext,
    connection: Connection,
    schema: str | None,
    table: Table,
    there: dict[str, Attached],
) -> _Changes:
    changes = _Changes([], [])
    declared_here = dict(embedding_columns(table))
    names = {column.name for column in declared_here}
    for target, was in there.items():
        if target not in names and context.run_object_filters(
            Column(target, cast(Any, Embedding(was.declared))), cast(Any, target), "column", True, None
        ):
            place = Place(table.name, target, schema)
            indexes = _rebuilding(connection, place, was)
            changes.first.append(DetachEmbeddingOp(place, was.declared, asked=False, indexes=indexes))
    for column, declared in declared_here.items():
        if not context.run_object_filters(column, cast(Any, column.name), "column", False, None):
            continue
        place, was = Place(table.name, column.name, schema), there.get(column.name)
        wanted = indexes_over(column)
        if was is None:
            changes.last.append(AttachEmbeddingOp(place, declared))
            changes.last.extend(_created(index, schema) for index in wanted)
        elif was.declared.attached != declared.attached:
            anew, were = [_created(index, schema) for index in wanted], _rebuilding(connection, place, was)
            changes.last.append(AlterEmbeddingOp(place, declared, was.declared, anew, were))
        else:
            if was.side is not None:
                changes.last.extend(_following(connection, place, was.side, column))
            _compare_indexes(connection, _vectors(place, was), wanted, changes)
    return changes


def _following(connection: Connection, place: Place, side: Side, column: EmbeddingColumn) -> list[RenamedOp]:
    """What has a side table follow its table, which was renamed, or the columns of its key."""
    wanted = column.side
    now, then, table = (_quoted(connection, place.schema, name) for name in (side.table, wanted.name, place.table))
    renamed = [] if side.table == wanted.name else [(f"{now} RENAME TO", side.table, f"{then} RENAME TO", wanted.name)]
    for old, new in zip(side.key, row_key(wanted, column.table), strict=True):
        if old != new.name:
            names = [_quoted(connection, None, name) for name in (old, new.name)]
            renamed.append((f"{then} RENAME {names[0]} TO", old, f"{then} RENAME {names[1]} TO", new.name))
    made = [
        RenamedOp(*(f"ALTER TABLE {what} {_quoted(connection, None, name)}" for what, name in ((up, new), (down, old))))
        for up, old, down, new in renamed
    ]
    sync = f"SELECT pgembed.sync({Literal(table).as_string(None)})"
    return [*made, RenamedOp(sync, sync)] if made else []


def _compare_indexes(connection: Connection, place: Place, wanted: Sequence[Index], changes: _Changes) -> None:
    """Build and drop indexes over vectors, which stand at ``place``. Two are the same if Postgres writes them alike;
    one that ``pgembed index`` built is left alone, as are those of views, and does for one of the model that is like
    it."""
    there = _definitions(connection, place)
    built = {_tail(definition) for name, definition in there.items() if _OWN_INDEX.fullmatch(name)}
    as_built = _as_built(connection, place, wanted) if there else {}
    for index in wanted:
        name = str(index.name)
        definition = as_built.get(name)
        if definition is not None and (definition == _tail(there.get(name, "")) or definition in built):
            continue
        if name in there:
            changes.first.append(DropVectorsIndexOp(name, place, _rebuilt(connection, place, name, there[name])))
        changes.last.append(_created(index, place.schema))
    known = {str(index.name) for index in wanted}
    for name, definition in there.items():
        if name not in known and not _OWN_INDEX.fullmatch(name) and _OF_A_VIEW not in definition:
            changes.first.append(DropVectorsIndexOp(name, place, _rebuilt(connection, place, name, definition)))


def _created(index: Index, schema: str | None) -> ops.CreateIndexOp:
    made = ops.CreateIndexOp.from_index(index)
    made.schema = schema
    return made


def _rebuilt(connection: Connection, place: Place, name: str, definition: str) -> ops.ExecuteSQLOp:
    """The statement that builds an index as Postgres has it, in which single colons are no parameters. The table is
    named as in the other operations: without its schema where that is the default one."""
    relation = _quoted(connection, place.schema, place.table)
    statement = f"CREATE INDEX {_quoted(connection, None, name)} ON {relation} USING {_tail(definition)}"
    return ops.ExecuteSQLOp(re.sub(r"(?<!:):(?=\w)", r"\\:", statement))


def _rebuilding(connection: Connection, place: Place, was: Attached) -> list[ops.ExecuteSQLOp]:
    """What builds the indexes over an embedding again, but for those of ``pgembed index``."""
    vectors = _vectors(place, was)
    there = _definitions(connection, vectors)
    return [
        _rebuilt(connection, vectors, name, definition)
        for name, definition in there.items()
        if not _OWN_INDEX.fullmatch(name)
    ]


def _drops_after(upgrade: ops.UpgradeOps, altered: Collection[tuple[str | None, str]]) -> list[ops.MigrateOperation]:
    """Take out of an upgrade the drops of columns of tables whose embeddings change: one may be an input until then."""
    drops: list[ops.MigrateOperation] = []
    for operation in upgrade.ops:
        if not isinstance(operation, ops.ModifyTableOps) or (operation.schema, operation.table_name) not in altered:
            continue
        columns = [one for one in operation.ops if isinstance(one, ops.DropColumnOp)]
        operation.ops[:] = [one for one in operation.ops if one not in columns]
        if columns:
            drops.append(ops.ModifyTableOps(operation.table_name, columns, schema=operation.schema))
    upgrade.ops[:] = [one for one in upgrade.ops if not isinstance(one, ops.ModifyTableOps) or one.ops]
    return drops


def _vectors(place: Place, was: Attached) -> Place:
    """Where an embedding's vectors stand: a table and its column."""
    return place if was.side is None else Place(was.side.table, "vector", place.schema)


def _definitions(connection: Connection, place: Place) -> dict[str, str]:
    relation = _quoted(connection, place.schema, place.table)
    rows = connection.execute(_INDEX, {"relation": relation, "target": place.target})
    return {row.relname: row.definition for row in rows}


def _as_built(connection: Connection, place: Place, indexes: Sequence[Index]) -> dict[str, str]:
    """How Postgres writes the model's indexes, by name: built on an empty copy of the table, and rolled back."""
    found: dict[str, str] = {}
    with connection.begin_nested() as begun:
        connection.exec_driver_sql(
            f"CREATE TEMPORARY TABLE {_COPY} (LIKE {_quoted(connection, place.schema, place.table).replace('%', '%%')})"
        )
        for index in indexes:
            written = str(CreateIndex(index).compile(dialect=connection.dialect))
            statement = f"CREATE INDEX {_COPY}_index ON pg_temp.{_COPY} USING {written.split(' USING ', 1)[-1]}"
            try:
                with connection.begin_nested() as one:
                    connection.exec_driver_sql(statement)
                    definition = connection.scalar(
                        text(f"SELECT pg_catalog.pg_get_indexdef(CAST('pg_temp.{_COPY}_index' AS regclass))")
                    )
                    found[str(index.name)] = _tail(str(definition))
                    one.rollback()
            except DBAPIError:
                continue  # it is of columns that the table does not have yet
        begun.rollback()
    return found


def _tail(definition: str) -> str:
    """A definition of an index from its method on, without its name and its table."""
    return definition.split(" USING ", 1)[-1]


def _without_ours(
    upgrade: ops.UpgradeOps,
    by_table: dict[tuple[str | None, str], dict[str, Attached]],
    own: Collection[tuple[str | None, str]],
    compared: dict[tuple[str | None, str], Table],
) -> list[tuple[str | None, str]]:
    """Take out of an upgrade what is pgembed's own, and what is compared here. Returns the tables that are dropped."""
    dropped: list[tuple[str | None, str]] = []
    kept: list[ops.MigrateOperation] = []
    for operation in upgrade.ops:
        match operation:
            case ops.DropTableOp() | ops.ModifyTableOps() if (
                operation.schema == _OWN_SCHEMA or (operation.schema, operation.table_name) in own
            ):
                continue
            case ops.DropTableOp():
                place = (operation.schema, str(operation.table_name))
                dropped.append(place)
                kept.append(_dropped_without(operation, by_table.get(place, {})))
            case ops.CreateTableOp():
                operation.columns = [column for column in operation.columns if not _is_embedding(column)]
                kept.append(operation)
            case ops.ModifyTableOps():
                place = (operation.schema, str(operation.table_name))
                targets = set(by_table.get(place, {}))
                if place in compared:
                    targets |= {column.name for column, _ in embedding_columns(compared[place])}
                operation.ops[:] = [one for one in operation.ops if not _is_about(one, targets)]
                if operation.ops:
                    kept.append(operation)
            case _:
                kept.append(operation)
    upgrade.ops[:] = kept
    return dropped


def _dropped_without(operation: ops.DropTableOp, there: Collection[str]) -> ops.DropTableOp:
    """The same, so that its reverse makes the table without its embeddings, which are attached then."""
    reverse = operation._reverse  # pyright: ignore[reportPrivateUsage]
    if reverse is not None:
        reverse.columns = [column for column in reverse.columns if getattr(column, "name", None) not in there]
    return operation


def _is_embedding(item: object) -> bool:
    return isinstance(item, Column) and isinstance(item.type, Embedding) and item.type.declared is not None


def _is_about(operation: ops.MigrateOperation, targets: Collection[str]) -> bool:
    """Whether an operation adds, drops or changes a column of embeddings, or an index over one."""
    match operation:
        case ops.AddColumnOp():
            return _is_embedding(operation.column)
        case ops.DropColumnOp():
            return operation.column_name in targets
        case ops.AlterColumnOp():
            return operation.column_name in targets
        case ops.CreateIndexOp():
            return any(name in targets for name in _columns_of(operation.to_index()))
        case ops.DropIndexOp():
            return operation._reverse is not None and any(  # pyright: ignore[reportPrivateUsage]
                name in targets for name in _columns_of(operation.to_index())
            )
        case _:
            return False


def _columns_of(index: Index) -> Iterator[str]:
    for expression in index.expressions:
        if isinstance(expression, str):
            yield expression
        elif isinstance(expression, Column):
            yield expression.name
        else:
            yield from re.findall(r"\w+", str(expression))


def _encoders(connection: Connection) -> set[str]:
    if not is_installed(connection, readable=True):
        return set()
    return set(connection.scalars(text("SELECT name FROM pgembed.encoder")))


def _quoted(connection: Connection, schema: str | None, table: str) -> str:
    return qualified(connection.dialect.identifier_preparer, schema, table)
