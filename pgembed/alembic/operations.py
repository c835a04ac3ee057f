"""The operations: what a migration may say of embeddings, and the SQL functions of pgembed that each calls."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from alembic.operations import MigrateOperation, Operations
from psycopg import sql
from sqlalchemy import text

from pgembed import catalog, schema, statements
from pgembed.catalog import InputSpec
from pgembed.declared import Declared, EncoderSpec, VectorIndex, inputs_of, registered
from pgembed.indexing import built
from pgembed.plans import Plan
from pgembed.sqlalchemy.ddl import AlterEmbedding, AttachEmbedding, DetachEmbedding, RegisterEncoder, RemoveEncoder
from pgembed.sqlalchemy.queries import install
from pgembed.sqlalchemy.running import qualified, run_plan


@dataclass(frozen=True)
class Place:
    """Where an embedding stands: a table, its schema where that is not the default one, and the target's name."""

    table: str
    target: str
    schema: str | None = None


class PgembedOp(MigrateOperation):
    """An operation of pgembed's."""

    def to_diff_tuple(self) -> tuple[Any, ...]:
        """What ``alembic check`` and ``compare_metadata`` tell: ``("attach_embedding", …)``, with what it is of."""
        words = re.findall("[A-Z][a-z]+", type(self).__name__.removesuffix("Op"))
        return ("_".join(words).lower(), *vars(self).values())


@Operations.register_operation("install_pgembed")
class InstallOp(PgembedOp):
    """Install the schema ``pgembed``, or upgrade it to what this library brings."""

    @classmethod
    def install_pgembed(cls, operations: Operations) -> None:
        """Install the schema ``pgembed`` in the migration's transaction, or upgrade it; again, it changes nothing."""
        operations.invoke(cls())

    def reverse(self) -> MigrateOperation:
        return UninstallOp()


@Operations.register_operation("uninstall_pgembed")
class UninstallOp(PgembedOp):
    """Remove the schema ``pgembed``."""

    def __init__(self, *, detach_all: bool = False) -> None:
        self.detach_all = detach_all

    @classmethod
    def uninstall_pgembed(cls, operations: Operations, *, detach_all: bool = False) -> None:
        """Remove the schema ``pgembed``; refused while embeddings are attached, unless ``detach_all``."""
        operations.invoke(cls(detach_all=detach_all))

    def reverse(self) -> MigrateOperation:
        return InstallOp()


@Operations.register_operation("add_encoder")
class AddEncoderOp(PgembedOp):
    """Register an encoder."""

    def __init__(self, encoder: EncoderSpec) -> None:
        self.encoder = encoder

    @classmethod
    def add_encoder(
        cls, operations: Operations, name: str, spec: str, *, settings: Mapping[str, Any] | None = None
    ) -> None:
        """Register an encoder; its model is loaded to learn its facts, unless it ships with pgembed. One that is there
        with the same spec and settings is left as it is."""
        operations.invoke(cls(EncoderSpec(name, spec, dict(settings or {}))))

    def reverse(self) -> MigrateOperation:
        return RemoveEncoderOp(self.encoder.name, self.encoder)


@Operations.register_operation("remove_encoder")
class RemoveEncoderOp(PgembedOp):
    """Remove an encoder that no embedding uses."""

    def __init__(self, name: str, was: EncoderSpec | None = None) -> None:
        self.name, self.was = name, was

    @classmethod
    def remove_encoder(cls, operations: Operations, name: str) -> None:
        """Remove an encoder; refused while an embedding uses it."""
        operations.invoke(cls(name))

    def reverse(self) -> MigrateOperation:
        if self.was is None:
            raise NotImplementedError(f"remove_encoder({self.name!r}) does not know what to register again.")
        return AddEncoderOp(self.was)


@Operations.register_operation("attach_embedding")
class AttachEmbeddingOp(PgembedOp):
    """Attach an embedding to a table, and build the indexes that went with it."""

    def __init__(self, place: Place, declared: Declared, indexes: Sequence[MigrateOperation] = ()) -> None:
        self.place, self.declared, self.indexes = place, declared, list(indexes)

    @classmethod
    def attach_embedding(
        cls,
        operations: Operations,
        table: str,
        target: str,
        *,
        encoder: str,
        text: InputSpec | None = None,
        image: InputSpec | None = None,
        screenshot: InputSpec | None = None,
        schema: str | None = None,
        **options: Any,  # noqa: ANN401
    ) -> None:
        """Attach an embedding, as ``Pgembed.attach`` does: the call returns at once, workers fill it. One that is there
        and is the same is left as it is.

        ``options`` are ``mode``, ``stale``, ``storage``, ``fusion`` and ``parts``.
        """
        operations.invoke(cls(Place(table, target, schema), _declared(encoder, text, image, screenshot, options)))

    def reverse(self) -> MigrateOperation:
        return DetachEmbeddingOp(self.place, self.declared)


@Operations.register_operation("detach_embedding")
class DetachEmbeddingOp(PgembedOp):
    """Detach an embedding: its vectors go."""

    def __init__(
        self,
        place: Place,
        was: Declared | None = None,
        *,
        asked: bool = True,
        indexes: Sequence[MigrateOperation] = (),
    ) -> None:
        self.place, self.was, self.asked = place, was, asked
        self.indexes = list(indexes)  # what builds those that go with it

    @classmethod
    def detach_embedding(cls, operations: Operations, table: str, target: str, *, schema: str | None = None) -> None:
        """Detach an embedding: its vectors, its queue and its triggers go, and the table is as it was before."""
        operations.invoke(cls(Place(table, target, schema)))

    def reverse(self) -> MigrateOperation:
        if self.was is None:
            raise NotImplementedError(f"detach_embedding({self.place}) does not know what to attach again.")
        return AttachEmbeddingOp(self.place, self.was, self.indexes)


@Operations.register_operation("alter_embedding")
class AlterEmbeddingOp(PgembedOp):
    """Give an embedding another encoder, other inputs or options: its vectors are encoded anew."""

    def __init__(
        self,
        place: Place,
        declared: Declared,
        was: Declared | None = None,
        indexes: Sequence[MigrateOperation] = (),
        were: Sequence[MigrateOperation] = (),
    ) -> None:
        self.place, self.declared, self.was = place, declared, was
        self.indexes, self.were = list(indexes), list(were)  # what builds those that go with its vectors, and did

    @classmethod
    def alter_embedding(
        cls,
        operations: Operations,
        table: str,
        target: str,
        *,
        encoder: str,
        text: InputSpec | None = None,
        image: InputSpec | None = None,
        screenshot: InputSpec | None = None,
        schema: str | None = None,
        **options: Any,  # noqa: ANN401
    ) -> None:
        """Attach an embedding anew with another encoder, other inputs or options, in the migration's transaction.

        Its vectors and its index go, and workers encode all rows again; one that is there and is the same is left as it
        is. ``options`` are those of attach_embedding.
        """
        operations.invoke(cls(Place(table, target, schema), _declared(encoder, text, image, screenshot, options)))

    def reverse(self) -> MigrateOperation:
        if self.was is None:
            raise NotImplementedError(f"alter_embedding({self.place}) does not know what was there before.")
        return AlterEmbeddingOp(self.place, self.was, self.declared, self.were, self.indexes)


@Operations.register_operation("create_vector_index")
class CreateVectorIndexOp(PgembedOp):
    """Build the HNSW index of an embedding, without blocking writers."""

    def __init__(self, place: Place, index: VectorIndex) -> None:
        self.place, self.index = place, index

    @classmethod
    def create_vector_index(
        cls,
        operations: Operations,
        table: str,
        target: str,
        *,
        m: int = 16,
        ef_construction: int = 64,
        schema: str | None = None,
    ) -> None:
        """Build the vector index of an embedding, concurrently and outside the migration's transaction, as
        ``pgembed index`` does. It is best built when the rows are encoded: in a later migration than the attach."""
        operations.invoke(cls(Place(table, target, schema), VectorIndex(m, ef_construction)))

    def reverse(self) -> MigrateOperation:
        return DropVectorIndexOp(self.place, self.index)


@Operations.register_operation("drop_vector_index")
class DropVectorIndexOp(PgembedOp):
    """Drop the index that create_vector_index built."""

    def __init__(self, place: Place, was: VectorIndex | None = None) -> None:
        self.place, self.was = place, was

    @classmethod
    def drop_vector_index(cls, operations: Operations, table: str, target: str, *, schema: str | None = None) -> None:
        """Drop the vector index that ``create_vector_index`` or ``pgembed index`` built, concurrently."""
        operations.invoke(cls(Place(table, target, schema)))

    def reverse(self) -> MigrateOperation:
        return CreateVectorIndexOp(self.place, self.was or VectorIndex())


@Operations.implementation_for(InstallOp)
def _install(operations: Operations, _operation: InstallOp) -> None:
    if _is_script(operations):
        operations.get_context().impl.static_output(schema.install_statements())
    else:
        install(operations.get_bind())


@Operations.implementation_for(UninstallOp)
def _uninstall(operations: Operations, operation: UninstallOp) -> None:
    operations.execute(f"SELECT pgembed.uninstall({str(operation.detach_all).lower()})")


@Operations.implementation_for(AddEncoderOp)
def _add_encoder(operations: Operations, operation: AddEncoderOp) -> None:
    encoder = operation.encoder
    if _is_script(operations):
        operations.execute(RegisterEncoder(encoder, statements.facts_for_script(encoder)))
    else:
        _run(operations, registered(encoder))


@Operations.implementation_for(RemoveEncoderOp)
def _remove_encoder(operations: Operations, operation: RemoveEncoderOp) -> None:
    operations.execute(RemoveEncoder(operation.name))


@Operations.implementation_for(AttachEmbeddingOp)
def _attach(operations: Operations, operation: AttachEmbeddingOp) -> None:
    place = operation.place
    if not _stands(operations, place, operation.declared):
        operations.execute(AttachEmbedding(place.schema, place.table, place.target, operation.declared))
    for index in operation.indexes:
        operations.invoke(index)


@Operations.implementation_for(DetachEmbeddingOp)
def _detach(operations: Operations, operation: DetachEmbeddingOp) -> None:
    place = operation.place
    operations.execute(DetachEmbedding(place.schema, place.table, place.target))


@Operations.implementation_for(AlterEmbeddingOp)
def _alter(operations: Operations, operation: AlterEmbeddingOp) -> None:
    place = operation.place
    operations.execute(AlterEmbedding(place.schema, place.table, place.target, operation.declared))
    for index in operation.indexes:
        operations.invoke(index)


@Operations.implementation_for(CreateVectorIndexOp)
def _create_index(operations: Operations, operation: CreateVectorIndexOp) -> None:
    index, place = operation.index, operation.place
    relation = _relation(operations, place)
    if _is_script(operations):
        embedding = _embedding(operations, place)
        _write(operations, f"SELECT pgembed._broken_index_sql({embedding})")
        _write(operations, f"SELECT pgembed.index_sql({embedding}, {index.m}, {index.ef_construction})")
        return
    statement = _run(operations, catalog.index_statement(relation, place.target, index.m, index.ef_construction))
    with operations.get_context().autocommit_block():
        _run(operations, built(relation, place.target, statement))


@Operations.implementation_for(DropVectorIndexOp)
def _drop_index(operations: Operations, operation: DropVectorIndexOp) -> None:
    query = (
        "SELECT pg_catalog.format('DROP INDEX CONCURRENTLY IF EXISTS %I.%I', e.schema_name, pgembed._index_name(e))"
        f" FROM pgembed._embedding({_embedding(operations, operation.place)}) e"
    )
    if _is_script(operations):
        _write(operations, query)
        return
    statement = operations.get_bind().scalar(text(query.replace(":", "\\:")))
    with operations.get_context().autocommit_block():
        operations.execute(text(str(statement).replace(":", "\\:")))  # its colons are no parameters


def _stands(operations: Operations, place: Place, declared: Declared) -> bool:
    """Whether an embedding is there as it is declared: a migration that was broken off in the building of an index,
    which commits what was done before, is run again from its beginning."""
    if _is_script(operations):
        return False
    bind = operations.get_bind()
    relation = qualified(bind.dialect.identifier_preparer, place.schema, place.table)
    statement = statements.is_attached(relation, place.target, declared).as_string(None)
    return bool(bind.scalar(text(statement.replace(":", "\\:"))))


def _declared(
    encoder: str,
    text: InputSpec | None,
    image: InputSpec | None,
    screenshot: InputSpec | None,
    options: Mapping[str, Any],
) -> Declared:
    return Declared(encoder, inputs_of({"text": text, "image": image, "screenshot": screenshot}), **options)


def _run(operations: Operations, plan: Plan[Any]) -> Any:  # noqa: ANN401
    return run_plan(operations.get_bind(), plan)


def _write(operations: Operations, query: str) -> None:
    """Write into a script what has psql run the statement that a query gives, outside the transaction: an index's name
    has its embedding's number in it."""
    context = operations.get_context()
    with context.autocommit_block():
        context.impl.static_output(f"{query} \\gexec")


def _is_script(operations: Operations) -> bool:
    return bool(operations.get_context().as_sql)


def _relation(operations: Operations, place: Place) -> str:
    return qualified(operations.get_context().dialect.identifier_preparer, place.schema, place.table)


def _embedding(operations: Operations, place: Place) -> str:
    """The table and the target, as the first arguments of pgembed's functions."""
    return ", ".join(sql.Literal(name).as_string(None) for name in (_relation(operations, place), place.target))
