"""Operations of migrations for what is no field: pgembed itself, encoders, tables without a model, indexes.

An EmbeddingField needs none of them: makemigrations writes ``AddField`` and its like, and these attach.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from django.db import NotSupportedError
from django.db.migrations.operations.base import Operation
from psycopg import sql

from pgembed import schema, statements
from pgembed.catalog import InputSpec
from pgembed.declared import OPTIONS, Declared, EncoderSpec, inputs_of, registered
from pgembed.django.running import begin, own_cursors, run_plan, told_by_django
from pgembed.errors import InvalidInput
from pgembed.indexing import built
from pgembed.parts import parts_of
from pgembed.plans import Call
from pgembed.told import in_own_words


class PgembedOperation(Operation):
    """An operation of pgembed's, which changes no model."""

    reduces_to_sql = True
    reversible = True

    def state_forwards(self, app_label: str, state: Any) -> None:  # noqa: ANN401
        """No model changes."""

    def _run(self, app_label: str, editor: Any, statement: sql.Composed) -> None:  # noqa: ANN401
        if self.allow_migrate_model_of(editor.connection.alias, app_label):
            with told_by_django():
                editor.execute(statement.as_string(None), None)

    def allow_migrate_model_of(self, alias: str, app_label: str) -> bool:
        """Whether the routers have an app migrated in a database."""
        from django.db import router

        return router.allow_migrate(alias, app_label)


class InstallPgembed(PgembedOperation):
    """Install the schema ``pgembed``, or upgrade it, in the migration's transaction; again, it changes nothing.

    ``migrate`` does it by itself before the first migration runs, unless ``PGEMBED["install"]`` is False.
    """

    def database_forwards(self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any) -> None:  # noqa: ANN401
        if not self.allow_migrate_model_of(schema_editor.connection.alias, app_label):
            return
        if schema_editor.collect_sql:
            schema_editor.collected_sql.append(schema.install_statements())
            return
        with own_cursors(schema_editor.connection) as raw, in_own_words():
            begin(raw)
            schema.install(raw)

    def database_backwards(self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any) -> None:  # noqa: ANN401
        self._run(app_label, schema_editor, sql.SQL("SELECT pgembed.uninstall()").format())

    def describe(self) -> str:
        return "Install pgembed"


class AddEncoder(PgembedOperation):
    """Register an encoder, one of ``PGEMBED["encoders"]`` or not; its model is loaded to learn its facts, unless it
    ships with pgembed. One that is there with the same spec and settings is left as it is."""

    def __init__(self, name: str, spec: str, settings: dict[str, Any] | None = None) -> None:
        self.encoder = EncoderSpec(name, spec, dict(settings or {}))

    def deconstruct(self) -> tuple[str, list[Any], dict[str, Any]]:
        encoder = self.encoder
        settings = {"settings": dict(encoder.settings)} if encoder.settings else {}
        return type(self).__name__, [encoder.name, encoder.spec], settings

    def database_forwards(self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any) -> None:  # noqa: ANN401
        if schema_editor.collect_sql:
            facts = statements.facts_for_script(self.encoder)
            self._run(app_label, schema_editor, statements.add_encoder(self.encoder, facts))
        elif self.allow_migrate_model_of(schema_editor.connection.alias, app_label):
            run_plan(schema_editor.connection, registered(self.encoder))

    def database_backwards(self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any) -> None:  # noqa: ANN401
        self._run(app_label, schema_editor, statements.remove_encoder(self.encoder.name))

    def describe(self) -> str:
        return f"Register encoder {self.encoder.name}"


class AttachEmbedding(PgembedOperation):
    """Attach an embedding to a table that no managed model has, as ``Pgembed.attach`` does; columns are named as the
    database names them. ``table`` may have its schema before it: ``"shop.product"``."""

    def __init__(
        self,
        table: str,
        target: str,
        *,
        encoder: str,
        text: InputSpec | None = None,
        image: InputSpec | None = None,
        screenshot: InputSpec | None = None,
        mode: str = OPTIONS["mode"],
        stale: str = OPTIONS["stale"],
        storage: str = OPTIONS["storage"],
        fusion: str = OPTIONS["fusion"],
        parts: str | Mapping[str, Any] | None = None,
    ) -> None:
        self.table, self.target = table, target
        self.inputs = {"text": text, "image": image, "screenshot": screenshot}
        self.declared = Declared(encoder, inputs_of(self.inputs), mode, stale, storage, fusion, parts=parts_of(parts))

    def deconstruct(self) -> tuple[str, list[Any], dict[str, Any]]:
        given = {name: one for name, one in self.inputs.items() if one is not None}
        written = {"encoder": self.declared.encoder, **given, **self.declared.unusual}
        return type(self).__name__, [self.table, self.target], written

    def database_forwards(self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any) -> None:  # noqa: ANN401
        self._run(app_label, schema_editor, statements.attach(self.table, self.target, self.declared))

    def database_backwards(self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any) -> None:  # noqa: ANN401
        self._run(app_label, schema_editor, statements.detach(self.table, self.target))

    def describe(self) -> str:
        return f"Attach embedding {self.table}.{self.target}"


class DetachEmbedding(AttachEmbedding):
    """Detach what AttachEmbedding attached: its vectors go. It is told the same, to attach it again on the way back."""

    def database_forwards(self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any) -> None:  # noqa: ANN401
        super().database_backwards(app_label, schema_editor, from_state, to_state)

    def database_backwards(self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any) -> None:  # noqa: ANN401
        super().database_forwards(app_label, schema_editor, from_state, to_state)

    def describe(self) -> str:
        return f"Detach embedding {self.table}.{self.target}, whose vectors go"


class CreateVectorIndex(PgembedOperation):
    """Build the HNSW index of an embedding as ``pgembed index`` does: concurrently, in a migration with
    ``atomic = False``, best when the rows are encoded. An EmbeddingIndex in Meta.indexes needs none."""

    atomic = False

    def __init__(self, table: str, target: str, *, m: int = 16, ef_construction: int = 64) -> None:
        self.table, self.target, self.m, self.ef_construction = table, target, m, ef_construction

    def deconstruct(self) -> tuple[str, list[Any], dict[str, Any]]:
        options = {"m": self.m, "ef_construction": self.ef_construction}
        return type(self).__name__, [self.table, self.target], options

    def database_forwards(self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any) -> None:  # noqa: ANN401
        statement = sql.SQL("SELECT pgembed.index_sql({}, {}, {}, {})").format(
            statements.relation(self.table), self.target, self.m, self.ef_construction
        )
        if (given := self._given(app_label, schema_editor, statement)) is not None:
            run_plan(schema_editor.connection, built(self.table, self.target, given))

    def database_backwards(self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any) -> None:  # noqa: ANN401
        statement = sql.SQL(
            "SELECT pg_catalog.format('DROP INDEX CONCURRENTLY IF EXISTS %I.%I', e.schema_name, pgembed._index_name(e))"
            " FROM pgembed._embedding({}, {}) e"
        ).format(statements.relation(self.table), self.target)
        if (given := self._given(app_label, schema_editor, statement)) is not None:
            schema_editor.execute(given, None)

    def describe(self) -> str:
        return f"Build the vector index of {self.table}.{self.target}"

    def _given(self, app_label: str, editor: Any, query: sql.Composed) -> str | None:  # noqa: ANN401
        """The statement that a query gives; None where none is to be run, in a script since psql does that."""
        if not self.allow_migrate_model_of(editor.connection.alias, app_label):
            return None
        if editor.collect_sql:
            editor.collected_sql.append(f"{query.as_string(None)} \\gexec")  # for psql: its name has a number in it
            return None
        if editor.connection.in_atomic_block:
            raise NotSupportedError(
                f"{self.describe()}: it is built outside a transaction. Write atomic = False into the migration."
            )

        def given() -> Any:  # noqa: ANN401
            rows = yield Call(sql.SQL(query.as_string(None).replace("%", "%%")))  # pyright: ignore[reportArgumentType]
            return next(iter(rows[0].values()))

        statement = run_plan(editor.connection, given())
        if not isinstance(statement, str):
            raise InvalidInput(f"{self.table}.{self.target} has no index to be built.")
        return statement
