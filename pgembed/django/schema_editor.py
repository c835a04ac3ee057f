"""What migrations do beside columns: attach, alter and detach embeddings as models and fields come, change and go.

Django's own operations stay what they are: ``AddField`` of an EmbeddingField attaches, ``AlterField`` alters,
``RemoveField`` detaches, ``CreateModel`` and ``DeleteModel`` likewise, in migrations, in ``sqlmigrate`` and where
tables are made without any. Renames and changes of types of fields that embeddings read leave these true.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Self, cast

from django.db.backends.postgresql.schema import DatabaseSchemaEditor
from django.db.models import Field, Model
from psycopg import sql

from pgembed import statements
from pgembed.declared import EncoderSpec, registered
from pgembed.django import settings
from pgembed.django.fields import EmbeddingField, embeddings_of, local_fields
from pgembed.django.running import run_plan, told_by_django
from pgembed.errors import CatalogError
from pgembed.plans import Call

if TYPE_CHECKING:
    _Base = DatabaseSchemaEditor
else:
    _Base = object


class EmbeddingSchemaEditor(_Base):
    """Mixed into the schema editor of every Postgres backend in use."""

    def __enter__(self) -> Self:
        self.latest: dict[str, type[Model]] = {}  # as the operations so far have left them, by their labels
        self.put_off: list[Callable[[], None]] = []
        return super().__enter__()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: Any) -> None:  # noqa: ANN401
        try:
            for step in self.put_off if kind is None else ():
                step()
        except BaseException as fault:
            super().__exit__(type(fault), fault, fault.__traceback__)
            raise
        super().__exit__(kind, error, tb)

    def column_sql(self, model: type[Model], field: Field, include_default: bool = False) -> Any:  # noqa: ANN401
        """None for an embedding, whose column attach makes."""
        if isinstance(field, EmbeddingField):
            return None, None
        return super().column_sql(model, field, include_default)

    def create_model(self, model: type[Model]) -> None:
        super().create_model(model)
        for field in embeddings_of(model):
            self._attach(model, field)

    def delete_model(self, model: type[Model]) -> None:
        for field in embeddings_of(model):
            self._detach(model, field)
        super().delete_model(model)

    def add_field(self, model: type[Model], field: Field) -> None:
        self.latest[model._meta.label_lower] = field.model
        if isinstance(field, EmbeddingField):
            self._attach(model, field)
        else:
            super().add_field(model, field)

    def remove_field(self, model: type[Model], field: Field) -> None:
        if isinstance(field, EmbeddingField):
            self._allow_drop(model, field.target, f"Removing the field {field.name}")
            self._detach(model, field)
        elif _reads(model, field):
            # An operation to come may say what is read instead; where none does, sync says what is missing.
            self._run(sql.SQL("SELECT pgembed.unhook({})").format(self._table(model)))
            super().remove_field(model, field)
            put_right = sql.SQL("SELECT pgembed.sync({})").format(self._table(model))
            self.put_off.append(lambda: self._run(put_right))
        else:
            super().remove_field(model, field)

    def alter_field(self, model: type[Model], old_field: Field, new_field: Field, strict: bool = False) -> None:
        self.latest[model._meta.label_lower] = new_field.model
        if isinstance(old_field, EmbeddingField) and isinstance(new_field, EmbeddingField):
            self._alter(model, old_field, new_field)
            return
        if isinstance(old_field, EmbeddingField) or isinstance(new_field, EmbeddingField):
            raise CatalogError(
                f"{model._meta.label}.{old_field.name} cannot become an embedding, or cease to be one.",
                "Remove the field in one migration, and add it in the next.",
            )
        touched = self._touched(model, old_field, new_field)
        for one in touched:
            self._run(sql.SQL("SELECT pgembed.unhook({})").format(self._table(one)))
        super().alter_field(model, old_field, new_field, strict)
        requeue = not _reads_alike(self._type(old_field)[0], self._type(new_field)[0])
        for one in touched:
            self._run(sql.SQL("SELECT pgembed.sync({}, {})").format(self._table(one), requeue))
        if not touched and old_field.column != new_field.column and _reads(model, old_field):
            self._follow(model._meta.db_table)

    def alter_db_table(self, model: type[Model], old_db_table: str, new_db_table: str) -> None:
        super().alter_db_table(model, old_db_table, new_db_table)
        if old_db_table != new_db_table and embeddings_of(model):
            self._follow(new_db_table)

    def _attach(self, model: type[Model], field: EmbeddingField) -> None:
        declared = field.declared_for(model)
        self._register(declared.encoder)
        self._run(statements.attach(self._name(model), field.target, declared))

    def _detach(self, model: type[Model], field: EmbeddingField) -> None:
        if self.collect_sql or self._ask(sql.SQL("SELECT pg_catalog.to_regclass('pgembed.embedding') IS NOT NULL")):
            self._run(statements.detach(self._name(model), field.target, if_attached=True))

    def _alter(self, model: type[Model], old_field: EmbeddingField, new_field: EmbeddingField) -> None:
        """Give an embedding its other name, and what else is new of it once its inputs are there: on the way back these
        come, and get their names, after it."""
        target = old_field.target
        if old_field.column is not None and new_field.column is not None and target != new_field.target:
            names = (self._table(model), target, new_field.target)
            self._run(sql.SQL("SELECT pgembed.rename({}, {}, {})").format(*names))
            target = new_field.target
        if old_field.deconstruct()[3] == new_field.deconstruct()[3]:
            return
        there = {name for field in local_fields(new_field.model) for name in (field.name, field.column)}
        if there.issuperset(new_field.input_names):
            self._attach_anew(model, target, old_field, new_field)
        else:
            self.put_off.insert(0, lambda: self._attach_anew(model, target, old_field, new_field))

    def _attach_anew(
        self, model: type[Model], target: str, old_field: EmbeddingField, new_field: EmbeddingField
    ) -> None:
        """Attach an embedding as it is declared, where it is not; its indexes go, and are built again."""
        latest = self.latest[model._meta.label_lower]
        table, declared = self._name(latest), new_field.declared_for(latest)
        self._register(declared.encoder)
        if not self.collect_sql:
            if target == new_field.target and self._ask(statements.is_attached(table, target, declared)):
                return
            self._allow_drop(latest, target, f"Another way of making the field {new_field.name}")
        self._comment(f"Where it is not made so already, the vectors of {table}.{target} go, and are encoded again.")
        if target == new_field.target:
            self._run(statements.alter(table, target, declared))
        else:
            self._run(statements.detach(table, target))
            self._run(statements.attach(table, new_field.target, declared))
        for index in model._meta.indexes:
            if old_field.name in [name for name, _ in index.fields_orders]:
                written = str(index.create_sql(latest, self))
                self.execute(written.replace("CREATE INDEX ", "CREATE INDEX IF NOT EXISTS ", 1), None)

    def _register(self, name: str) -> None:
        """Register an encoder as PGEMBED has it; one that stands only in the database is there already, or missed."""
        encoder = settings.encoders(self.connection.alias).get(name)
        if encoder is None:
            return
        if self.collect_sql:
            self._run(
                statements.add_encoder(encoder, statements.facts_for_script(encoder))
                + sql.SQL(" WHERE NOT EXISTS (SELECT FROM pgembed.encoder WHERE name = {})").format(name)
            )
        else:
            run_plan(self.connection, registered(EncoderSpec(encoder.name, encoder.spec, encoder.settings)))

    def _allow_drop(self, model: type[Model], target: str, what: str) -> None:
        """Refuse what would drop vectors, unless it is meant. Raises CatalogError; a script has a comment."""
        if self.collect_sql:
            self._comment(f"The vectors of {self._name(model)}.{target} go.")
            return
        has_vectors = sql.SQL(
            "SELECT pgembed.has_vectors(e.relation, e.target) FROM pgembed.embedding e"
            " WHERE e.relation = {}::oid AND e.target = {}"
        ).format(self._table(model), target)
        if not settings.allows_drop(self.connection.alias) and self._ask(has_vectors):
            raise CatalogError(
                f"{what} of {model._meta.label} would drop its vectors.",
                f"Where that is meant, run it again with {settings.ALLOW_DROP}=1 in the environment.",
            )

    def _touched(self, model: type[Model], old_field: Field, new_field: Field) -> Sequence[type[Model]]:
        """The models with embeddings that read a column whose type changes: Postgres leaves none as it is that a
        trigger names. A key's type goes on to those that refer to it."""
        if self._type(old_field) == self._type(new_field):
            return []
        read = [(model, old_field)] + [
            (cast(type[Model], relation.related_model), cast(Field, relation.field))
            for relation in cast("Sequence[Any]", model._meta.related_objects)
            if old_field in getattr(relation.field, "foreign_related_fields", ())
        ]
        return list(dict.fromkeys(one for one, field in read if _reads(one, field)))

    def _type(self, field: Field) -> Any:  # noqa: ANN401
        parameters = field.db_parameters(connection=self.connection)
        return parameters["type"], parameters.get("collation")

    def _follow(self, table: str) -> None:
        """Have the catalog and the triggers know what was renamed."""
        self._run(sql.SQL("SELECT pgembed.sync({}, false)").format(statements.relation(self.quote_name(table))))

    def _name(self, model: type[Model]) -> str:
        return self.quote_name(model._meta.db_table)

    def _table(self, model: type[Model]) -> sql.Composed:
        return statements.relation(self._name(model))

    def _run(self, statement: sql.Composed) -> None:
        with told_by_django():
            self.execute(statement.as_string(None), None)

    def _ask(self, statement: sql.Composed | sql.SQL) -> Any:  # noqa: ANN401
        def asked() -> Any:  # noqa: ANN401
            rows = yield Call(statement)
            return next(iter(rows[0].values())) if rows else None

        return run_plan(self.connection, asked())

    def _comment(self, text: str) -> None:
        if self.collect_sql:
            self.collected_sql.append(f"-- {text}")


def _reads(model: type[Model], field: Field) -> bool:
    """Whether an embedding of a model's table is made from a field, or knows rows by it."""
    embeddings = embeddings_of(model)
    names = {name for embedding in embeddings for name in embedding.input_names}
    is_key = field.primary_key or field in getattr(model._meta, "pk_fields", ())
    return bool(embeddings) and (is_key or not names.isdisjoint((field.name, field.column)))


def _reads_alike(old: str, new: str) -> bool:
    """Whether values have the same text when their column has got another type, so that vectors of it stay true."""
    kinds = old.split("(")[0], new.split("(")[0]
    return kinds in (("varchar", "varchar"), ("varchar", "text")) or _WHOLE_NUMBERS.issuperset(kinds)


_WHOLE_NUMBERS = frozenset({"smallint", "integer", "bigint"})


def extend(editor: type[DatabaseSchemaEditor]) -> type[DatabaseSchemaEditor]:
    """A schema editor that knows embeddings, made of one that may not."""
    if issubclass(editor, EmbeddingSchemaEditor):
        return editor
    return type(editor.__name__, (EmbeddingSchemaEditor, editor), {})
