"""Migrations of Django: written by makemigrations from models with embeddings, run, unrun and written as scripts."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import Any

import pytest

from tests import django_project

django_project.set_up()

from django.apps.registry import Apps  # noqa: E402
from django.contrib.postgres.operations import AddIndexConcurrently  # noqa: E402
from django.db import migrations, models  # noqa: E402
from django.db.migrations import Migration  # noqa: E402
from django.db.migrations.autodetector import MigrationAutodetector  # noqa: E402
from django.db.migrations.graph import MigrationGraph  # noqa: E402
from django.db.migrations.optimizer import MigrationOptimizer  # noqa: E402
from django.db.migrations.questioner import MigrationQuestioner  # noqa: E402
from django.db.migrations.state import AppConfigStub, ProjectState  # noqa: E402
from django.db.migrations.writer import MigrationWriter  # noqa: E402

import pgembed  # noqa: E402
import pgembed.django  # noqa: E402
from pgembed.django import operations  # noqa: E402
from pgembed.errors import CatalogError, InvalidInput  # noqa: E402
from tests.conftest import Connection  # noqa: E402

PRODUCT = """
class Product(models.Model):
    title = models.CharField(max_length=100, null=True)
    class Meta(Shop):
        db_table = "product"
"""
EMBEDDED = PRODUCT.replace("    class", '    embedding = EmbeddingField(encoder="lite", text="{title}")\n    class')


class Project:
    """The app ``shop``: its models as they are written now, and its migrations."""

    def __init__(self, dsn: str, connection: Any) -> None:  # noqa: ANN401
        self.dsn, self.connection = dsn, connection
        self.source = ""
        self.state = ProjectState()
        self.done: list[tuple[ProjectState, Migration]] = []

    def models(self, source: str) -> Project:
        self.source = source
        return self

    def wanted(self) -> ProjectState:
        apps = Apps([AppConfigStub("shop")])
        shop = type("Shop", (), {"app_label": "shop", "apps": apps})
        namespace = {**vars(pgembed.django), "models": models, "Shop": shop, "__name__": "shop.models"}
        exec(textwrap.dedent(self.source), namespace)
        return ProjectState.from_apps(apps)

    def makemigrations(self) -> Migration | None:
        """The migration from the state of the last one to the models, by way of its file."""
        yes = MigrationQuestioner({"ask_initial": True, "ask_rename": True, "ask_rename_model": True})
        changes = MigrationAutodetector(self.state, self.wanted(), yes).changes(MigrationGraph())
        if not changes:
            return None
        (found,) = changes["shop"]
        namespace: dict[str, Any] = {}
        exec(MigrationWriter(found).as_string(), namespace)
        return namespace["Migration"](found.name, "shop")

    def migrate(self, migration: Migration | None = None) -> list[str]:
        """Run a migration, or make one and run it; gives the names of its operations."""
        migration = migration or self.makemigrations()
        assert migration is not None
        before = self.state.clone()
        with self.connection.schema_editor(atomic=migration.atomic) as editor:
            self.state = migration.apply(self.state.clone(), editor)
        self.done.append((before, migration))
        return [type(operation).__name__ for operation in migration.operations]

    def back(self) -> None:
        before, migration = self.done.pop()
        with self.connection.schema_editor(atomic=migration.atomic) as editor:
            migration.unapply(before.clone(), editor)
        self.state = before

    def script(self, migration: Migration, *, back: bool = False) -> str:
        with self.connection.schema_editor(collect_sql=True) as editor:
            (migration.unapply if back else migration.apply)(self.state.clone(), editor, collect_sql=True)
        return "\n".join(editor.collected_sql)

    def work(self) -> int:
        with pgembed.connect(self.dsn) as db:
            return db.work(until_idle=True).written

    def one(self, statement: str) -> Any:  # noqa: ANN401
        with self.connection.cursor() as cursor:
            cursor.execute(statement)
            return cursor.fetchone() if cursor.description else None

    def embeddings(self) -> list[tuple[str, str, str]]:
        with self.connection.cursor() as cursor:
            cursor.execute("SELECT relation::regclass::text, target, encoder FROM pgembed.embedding ORDER BY 1, 2")
            return cursor.fetchall()


@pytest.fixture
def project(database_dsn: str) -> Iterator[Project]:
    with django_project.database_of(database_dsn) as connection:
        yield Project(database_dsn, connection)


@pytest.fixture
def filled(project: Project) -> Project:
    """With a table of two products that are encoded."""
    project.models(EMBEDDED).migrate()
    project.one("INSERT INTO product (title) VALUES ('a dog'), ('a red shoe') RETURNING id")
    assert project.work() == 2
    return project


def nearest(project: Project, text: str = "a shoe") -> Any:  # noqa: ANN401
    with pgembed.connect(project.dsn) as db:
        return db.search("product", pgembed.Text(text), limit=1)[0]


def test_a_new_table_with_an_embedding_there_and_back(project: Project) -> None:
    source = EMBEDDED + '        indexes = [EmbeddingIndex(fields=["embedding"], name="near", m=8)]\n'
    assert project.models(source).migrate() == ["CreateModel"]
    assert project.embeddings() == [("product", "embedding", "lite")]
    assert "vector_cosine_ops" in project.one("SELECT indexdef FROM pg_indexes WHERE indexname = 'near'")[0]
    assert project.makemigrations() is None
    project.back()
    assert project.embeddings() == []
    assert project.one("SELECT to_regclass('product')") == (None,)


def test_an_embedding_comes_with_a_field_that_it_reads_and_goes(project: Project) -> None:
    project.models(PRODUCT).migrate()
    photo = "    z_photo = models.BinaryField(null=True)\n    class"
    project.models(EMBEDDED.replace("    class", photo).replace('"{title}"', '"{title}", image="z_photo"'))
    assert project.migrate() == ["AddField", "AddField"]
    assert project.makemigrations() is None
    project.back()
    assert project.embeddings() == []
    project.migrate()
    project.models(PRODUCT)
    assert sorted(project.migrate()) == ["RemoveField", "RemoveField"]
    assert project.embeddings() == []


def test_an_input_that_is_renamed_leaves_the_vectors_as_they_are(filled: Project) -> None:
    filled.models(EMBEDDED.replace("title", "name"))
    assert filled.migrate() == ["RenameField", "AlterField"]
    assert filled.makemigrations() is None
    assert filled.work() == 0
    assert nearest(filled)["name"] == "a red shoe"
    filled.one("UPDATE product SET name = 'a cat' WHERE name = 'a dog' RETURNING id")
    assert filled.work() == 1
    filled.back()
    assert filled.work() == 0
    assert nearest(filled, "a cat").title == "a cat"


def test_a_column_that_is_renamed_leaves_the_vectors_as_they_are(filled: Project) -> None:
    filled.models(EMBEDDED.replace("null=True", 'null=True, db_column="name"'))
    assert filled.migrate() == ["AlterField"]
    assert filled.makemigrations() is None
    assert filled.work() == 0
    filled.one("UPDATE product SET name = 'a cat' WHERE name = 'a dog' RETURNING id")
    assert filled.work() == 1
    assert nearest(filled, "a cat")["name"] == "a cat"


@pytest.mark.parametrize(
    ("source", "table"),
    [
        (EMBEDDED.replace('db_table = "product"', 'db_table = "goods"'), "goods"),
        (
            EMBEDDED.replace("class Product", "class Thing").replace(
                '        db_table = "product"\n', "        pass\n"
            ),
            "shop_thing",
        ),
    ],
    ids=["table", "model"],
)
def test_a_table_that_is_renamed_keeps_its_embedding(filled: Project, source: str, table: str) -> None:
    filled.models(source).migrate()
    assert filled.embeddings() == [(table, "embedding", "lite")]
    assert filled.makemigrations() is None
    with pgembed.connect(filled.dsn) as db:
        assert db.search(table, pgembed.Text("a shoe"), limit=1)[0].title == "a red shoe"
        assert db.status(table)[0].queued == 0
    filled.one(f"UPDATE {table} SET title = 'a cat' RETURNING id")
    assert filled.work() == 2
    filled.back()
    assert filled.embeddings() == [("product", "embedding", "lite")]


def test_an_embedding_that_is_renamed_keeps_its_vectors(filled: Project) -> None:
    filled.models(EMBEDDED.replace("embedding =", "meaning ="))
    assert filled.migrate() == ["RenameField"]
    assert filled.embeddings() == [("product", "meaning", "lite")]
    assert filled.work() == 0
    assert nearest(filled).title == "a red shoe"
    filled.one("UPDATE product SET title = 'a cat' RETURNING id")
    assert filled.work() == 2
    assert filled.makemigrations() is None


@pytest.mark.parametrize(
    ("source", "again"),
    [
        (EMBEDDED.replace("CharField(max_length=100, ", "TextField("), 0),
        (EMBEDDED.replace("100", "200"), 0),
        (EMBEDDED.replace("    title", "    id = models.IntegerField(primary_key=True)\n    title"), 0),
        (EMBEDDED.replace("CharField(max_length=100, ", "JSONField("), 2),
    ],
    ids=["type", "length", "key", "text"],
)
def test_the_type_of_an_input_or_a_key_changes(filled: Project, source: str, again: int) -> None:
    filled.one("""UPDATE product SET title = '"' || title || '"' RETURNING id""")
    assert filled.work() == 2
    filled.models(source).migrate()
    assert filled.makemigrations() is None
    assert filled.work() == again
    filled.one("""UPDATE product SET title = '"a cat"' WHERE title::text LIKE '%dog%' RETURNING id""")
    assert filled.work() == 1
    assert "a cat" in nearest(filled, "a cat").title
    with pgembed.connect(filled.dsn) as db:
        assert db.verify("product").ok
    filled.back()
    filled.work()
    assert "a red shoe" in nearest(filled).title


def test_the_key_that_another_table_refers_to_changes_its_type(project: Project) -> None:
    source = """
    class Brand(models.Model):
        id = models.{}(primary_key=True)
        class Meta(Shop): pass
    class Product(models.Model):
        title = models.TextField()
        brand = models.ForeignKey(Brand, models.CASCADE)
        embedding = EmbeddingField(encoder="lite", text="{{title}} {{brand}}")
        class Meta(Shop): db_table = "product"
    """
    project.models(source.format("AutoField")).migrate()
    assert project.one("SELECT inputs -> 'text' ->> 'template' FROM pgembed.embedding") == ("{title} {brand_id}",)
    project.models(source.format("BigAutoField")).migrate()
    kind = "SELECT data_type FROM information_schema.columns WHERE table_name = 'product' AND column_name = 'brand_id'"
    assert project.one(kind) == ("bigint",)


def test_an_input_goes_while_the_embedding_gets_another(project: Project) -> None:
    source = PRODUCT.replace(
        "    class", '    a = models.TextField()\n    embedding = EmbeddingField(encoder="lite", text="{a}")\n    class'
    )
    project.models(source).migrate()
    project.models(EMBEDDED)
    assert project.migrate() == ["RemoveField", "AlterField"]
    assert project.one("SELECT inputs -> 'text' ->> 'template' FROM pgembed.embedding") == ("{title}",)
    assert project.makemigrations() is None
    project.back()
    assert project.one("SELECT inputs -> 'text' ->> 'template' FROM pgembed.embedding") == ("{a}",)


def test_an_input_that_goes_alone_is_told_and_the_database_is_as_it_was(filled: Project) -> None:
    removed = Migration("removed", "shop")
    removed.operations = [migrations.RemoveField("product", "title")]
    with pytest.raises(Exception, match="no column 'title' any more"):
        filled.migrate(removed)
    assert nearest(filled).title == "a red shoe"
    filled.one("UPDATE product SET title = 'a cat' RETURNING id")
    assert filled.work() == 2


def test_what_would_drop_vectors_is_refused_unless_it_is_meant(
    filled: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled.models(PRODUCT)
    with pytest.raises(
        CatalogError, match=r"Removing the field embedding of shop\.Product would drop its vectors"
    ) as told:
        filled.migrate()
    assert "PGEMBED_ALLOW_DROP=1" in (told.value.hint or "")
    filled.models(EMBEDDED.replace('"{title}"', '"a {title}"'))
    with pytest.raises(CatalogError, match="would drop its vectors"):
        filled.migrate()
    assert nearest(filled).title == "a red shoe"
    monkeypatch.setenv("PGEMBED_ALLOW_DROP", "1")
    assert filled.migrate() == ["AlterField"]
    assert filled.work() == 2
    filled.models(PRODUCT).migrate()
    assert filled.embeddings() == []


def test_another_way_of_encoding_builds_the_index_again(project: Project) -> None:
    source = EMBEDDED + '        indexes = [EmbeddingIndex(fields=["embedding"], name="near")]\n'
    project.models(source).migrate()
    project.models(source.replace('"{title}"', '"{title}", mode="instant"'))
    assert project.migrate() == ["AlterField"]
    assert project.one("SELECT mode FROM pgembed.embedding") == ("instant",)
    assert project.one("SELECT count(*) FROM pg_indexes WHERE indexname = 'near'") == (1,)
    project.back()
    assert project.one("SELECT mode FROM pgembed.embedding") == ("queue",)
    assert project.one("SELECT count(*) FROM pg_indexes WHERE indexname = 'near'") == (1,)


def test_an_index_that_is_built_without_blocking_writers(filled: Project) -> None:
    index = pgembed.django.EmbeddingIndex(fields=["embedding"], name="near", m=8)
    built = Migration("built", "shop")
    built.operations, built.atomic = [AddIndexConcurrently("product", index)], False
    filled.migrate(built)
    definition = filled.one("SELECT indexdef FROM pg_indexes WHERE indexname = 'near'")[0]
    assert "hnsw (embedding vector_cosine_ops) WITH (m='8')" in definition
    filled.models(EMBEDDED + '        indexes = [EmbeddingIndex(fields=["embedding"], name="near", m=8)]\n')
    assert filled.makemigrations() is None
    filled.back()
    assert filled.one("SELECT count(*) FROM pg_indexes WHERE indexname = 'near'") == (0,)


def test_a_vector_field_is_no_embedding_yet(project: Project) -> None:
    project.models(PRODUCT.replace("    class", "    embedding = models.TextField(null=True)\n    class")).migrate()
    project.models(EMBEDDED)
    with pytest.raises(CatalogError, match="cannot become an embedding"):
        project.migrate()


def test_scripts_do_what_migrations_do(project: Project, database: Connection) -> None:
    renamed = EMBEDDED.replace("title", "name")
    steps = [
        EMBEDDED + '        indexes = [EmbeddingIndex(fields=["embedding"], name="near")]\n',
        renamed,
        renamed.replace("100", "200").replace("embedding =", "meaning ="),
        renamed.replace("100", "200").replace("embedding =", "meaning =").replace('"{name}"', '"100% {name}"'),
    ]
    states: list[tuple[ProjectState, Migration]] = []
    for source in steps:
        migration = project.models(source).makemigrations()
        assert migration is not None
        script = project.script(migration)
        database.execute(script.encode())
        states.append((project.state, migration))
        project.state = migration.mutate_state(project.state)
        database.execute("INSERT INTO product (id) SELECT count(*) FROM product")
    assert '-- Where it is not made so already, the vectors of "product".meaning go' in script
    catalog = "SELECT table_name, target, inputs -> 'text' ->> 'template' FROM pgembed.embedding"
    assert database.execute(catalog).fetchall() == [("product", "meaning", "100% {name}")]
    assert database.execute("SELECT count(*) FROM pg_indexes WHERE indexname = 'near'").fetchone() == (0,)
    for before, migration in reversed(states):
        project.state = before
        database.execute(project.script(migration, back=True).encode())
    assert database.execute("SELECT count(*) FROM pgembed.embedding").fetchone() == (0,)


def test_a_migration_that_fails_leaves_the_database_as_it_was(project: Project) -> None:
    project.models(EMBEDDED.replace("{title}", "{titel}"))
    with pytest.raises(CatalogError, match="no column 'titel'"):
        project.migrate()
    assert project.embeddings() == []
    assert project.one("SELECT to_regclass('product')") == (None,)
    project.models(EMBEDDED.replace('"lite"', '"none"'))
    with pytest.raises(CatalogError, match="'none'"):
        project.migrate()


def test_an_encoder_under_a_name_that_is_another_one_is_refused(project: Project, database: Connection) -> None:
    database.execute(
        "SELECT pgembed.add_encoder('lite', 'builtin:other', dim => 3, modalities => '{text}', fingerprint => 'x')"
    )
    project.models(EMBEDDED)
    with pytest.raises(CatalogError, match="'lite' is there, as builtin:other"):
        project.migrate()


def test_schemas_names_with_quotes_columns_of_other_names_and_a_table_beside(project: Project) -> None:
    project.one('CREATE SCHEMA "my shop"')
    source = """
    class Product(models.Model):
        title = models.TextField(db_column="the title")
        embedding = EmbeddingField(encoder="lite", text="{title}", db_column="mean ing")
        beside = EmbeddingField(encoder="lite", text="{title}", storage="side")
        class Meta(Shop):
            db_table = 'my shop"."pro duct'
    """
    project.models(source).migrate()
    table = '"my shop"."pro duct"'
    assert [target for _, target, _ in project.embeddings()] == ["beside", "mean ing"]
    project.one(f"INSERT INTO {table} (\"the title\") VALUES ('a dog') RETURNING id")
    assert project.work() == 2
    product = project.state.apps.get_model("shop", "Product")
    near = pgembed.django.Distance("beside", pgembed.Text("a dog"))
    assert product.objects.annotate(near=near).get().near == pytest.approx(0, abs=1e-6)
    assert project.makemigrations() is None
    project.back()
    assert project.embeddings() == []


def test_squashed_migrations_are_one_that_attaches(project: Project) -> None:
    steps = []
    for source in (
        PRODUCT,
        EMBEDDED,
        EMBEDDED.replace("title", "name"),
        EMBEDDED.replace("title", "name").replace("{name}", "a {name}"),
    ):
        migration = project.models(source).makemigrations()
        assert migration is not None
        steps += migration.operations
        project.state = migration.mutate_state(project.state)
    project.state = ProjectState()
    squashed = Migration("squashed", "shop")
    squashed.operations = MigrationOptimizer().optimize(steps, "shop")
    assert project.migrate(squashed) == ["CreateModel"]
    assert project.one("SELECT inputs -> 'text' ->> 'template' FROM pgembed.embedding") == ("a {name}",)
    assert project.makemigrations() is None


def test_tables_without_a_model_and_an_index_by_itself(project: Project) -> None:
    project.one("CREATE TABLE note (id int PRIMARY KEY, body text)")
    made, built = Migration("made", "shop"), Migration("built", "shop")
    made.operations = [
        operations.AddEncoder("other", "builtin:lite"),
        operations.AttachEmbedding("note", "embedding", encoder="other", text="body", stale="null"),
    ]
    built.operations, built.atomic = [operations.CreateVectorIndex("note", "embedding", m=8)], False
    for migration in (made, built):
        namespace: dict[str, Any] = {}
        exec(MigrationWriter(migration).as_string(), namespace)
        written = namespace["Migration"].operations
        assert [one.deconstruct() for one in written] == [one.deconstruct() for one in migration.operations]
        project.migrate(migration)
    assert project.embeddings() == [("note", "embedding", "other")]
    assert "m='8'" in project.one("SELECT indexdef FROM pg_indexes WHERE indexdef LIKE '%hnsw%'")[0]
    broken = "(SELECT indexname::regclass FROM pg_indexes WHERE indexdef LIKE '%hnsw%')"
    project.one(f"UPDATE pg_index SET indisvalid = false WHERE indexrelid = {broken}")  # as a killed build leaves it
    project.migrate(built)
    assert project.one(f"SELECT indisvalid FROM pg_index WHERE indexrelid = {broken}") == (True,)
    project.back()
    project.back()
    assert project.one("SELECT count(*) FROM pg_indexes WHERE indexdef LIKE '%hnsw%'") == (0,)
    built.atomic = True
    with pytest.raises(Exception, match="atomic = False"):
        project.migrate(built)
    gone = Migration("gone", "shop")
    gone.operations = [operations.DetachEmbedding("note", "embedding", encoder="other", text="body", stale="null")]
    project.migrate(gone)
    assert project.embeddings() == []
    project.back()
    assert project.one("SELECT stale FROM pgembed.embedding") == ("null",)
    project.back()
    assert project.one("SELECT count(*) FROM pgembed.encoder") == (0,)


def test_pgembed_is_installed_and_uninstalled(project: Project, bare_dsn: str) -> None:
    install = Migration("install", "shop")
    install.operations = [operations.InstallPgembed()]
    with django_project.database_of(bare_dsn) as connection:
        there = Project(bare_dsn, connection)
        there.migrate(install)
        there.models(EMBEDDED).migrate()
        there.back()
        there.back()
        assert there.one("SELECT to_regnamespace('pgembed')") == (None,)


def test_fields_that_make_no_sense_are_refused() -> None:
    field = pgembed.django.EmbeddingField
    with pytest.raises(InvalidInput, match="no input"):
        field(encoder="lite")
    with pytest.raises(InvalidInput, match="takes no db_index"):
        field(encoder="lite", text="title", db_index=True)
    with pytest.raises(InvalidInput, match="has null=True"):
        field(encoder="lite", text="title", null=False)
    with pytest.raises(InvalidInput, match="metric is 'cos'"):
        field(encoder="lite", text="title", metric="cos")  # pyright: ignore[reportArgumentType]
