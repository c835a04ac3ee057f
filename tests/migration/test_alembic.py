"""A project's own migrations: operations, autogenerate against models, scripts, and back again."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy.exc import DBAPIError

from pgembed.errors import CatalogError
from tests.conftest import Connection
from tests.integration.test_sqlalchemy import url_of

ENV = """
from alembic import context
from sqlalchemy import create_engine
import pgembed.alembic
import models

def include_object(object, name, type_, reflected, compare_to):
    return name != "legacy"

config = context.config
target_metadata = models.Base.metadata
options = dict(target_metadata=target_metadata, include_schemas=True, include_object=include_object)
if context.is_offline_mode():
    context.configure(url=config.get_main_option("sqlalchemy.url"), literal_binds=True,
                      dialect_opts={"paramstyle": "named"}, **options)
    with context.begin_transaction():
        context.run_migrations()
else:
    engine = create_engine(config.attributes["url"])
    with engine.connect() as connection:
        context.configure(connection=connection, **options)
        with context.begin_transaction():
            context.run_migrations()
    engine.dispose()
"""

BASE = """
from sqlalchemy import Index, Integer, LargeBinary, Text, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from pgembed.sqlalchemy import EncoderSpec, Vector, VectorIndex, embedding_column

class Base(DeclarativeBase):
    pass
"""
PRODUCT = """
class Product(Base):
    __tablename__ = "product"
    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str | None]
    price: Mapped[int | None]
    photo: Mapped[bytes | None]
"""
EMBEDDING = """    embedding: Mapped[Vector] = embedding_column(
        encoder=EncoderSpec("lite", "builtin:lite"), text="{title}", index=True)
"""


class Project:
    """A folder with models and migrations, as `alembic init` makes it."""

    def __init__(self, folder: Path, dsn: str) -> None:
        self.folder, self.dsn = folder, dsn
        self.config = Config(folder / "alembic.ini")
        command.init(self.config, str(folder / "migrations"))
        self.config = Config(folder / "alembic.ini")
        self.config.set_main_option("sqlalchemy.url", "postgresql+psycopg://")
        self.config.attributes["url"] = url_of(dsn)
        (folder / "migrations" / "env.py").write_text(ENV)

    def models(self, text: str) -> None:
        """Declare the models anew."""
        module = ModuleType("models")
        sys.modules["models"] = module
        exec(compile(BASE + text, "models.py", "exec"), module.__dict__)

    def revision(self, *, allow_drop: bool = False) -> str:
        """Autogenerate a migration; gives its text."""
        self.config.cmd_opts = _Given(["allow-drop"] if allow_drop else [])  # pyright: ignore[reportAttributeAccessIssue]
        script: Any = command.revision(self.config, autogenerate=True)
        return Path(script.path).read_text()

    def upgrade(self, revision: str = "head") -> None:
        command.upgrade(self.config, revision)

    def downgrade(self, revision: str = "-1") -> None:
        command.downgrade(self.config, revision)

    def is_current(self) -> bool:
        """Whether autogenerate finds nothing more."""
        text = self.revision()
        (newest,) = [
            path for path in (self.folder / "migrations" / "versions").glob("*.py") if path.read_text() == text
        ]
        newest.unlink()
        return body(text, "upgrade") == ["pass"]


class _Given:
    def __init__(self, x: list[str]) -> None:
        self.x = x


def body(text: str, function: str) -> list[str]:
    """The lines of a migration's upgrade or downgrade."""
    lines = text.split(f"def {function}() -> None:")[1].split("\ndef ")[0].splitlines()
    return [line.strip() for line in lines if line.strip() and "###" not in line and not line.strip().startswith('"""')]


@pytest.fixture
def project(tmp_path: Path, database_dsn: str) -> Iterator[Project]:
    yield Project(tmp_path, database_dsn)
    sys.modules.pop("models", None)


def embeddings(database: Connection) -> list[tuple[object, ...]]:
    return database.execute(
        "SELECT schema_name, table_name, target, encoder FROM pgembed.embedding ORDER BY 1, 2, 3"
    ).fetchall()


def test_a_new_table_with_an_embedding_up_and_down(project: Project, database: Connection) -> None:
    project.models(PRODUCT + EMBEDDING)
    text = project.revision()
    upgrade, downgrade = body(text, "upgrade"), body(text, "downgrade")
    assert "import pgembed.alembic" in text
    assert "op.attach_embedding('product', 'embedding', encoder='lite', text='{title}')" in upgrade
    assert "op.add_encoder('lite', 'builtin:lite')" in upgrade
    assert "op.detach_embedding('product', 'embedding')" in downgrade
    project.upgrade()
    assert embeddings(database) == [("public", "product", "embedding", "lite")]
    assert project.is_current()
    project.downgrade("base")
    assert embeddings(database) == []
    assert database.execute("SELECT to_regclass('product')").fetchone() == (None,)
    assert database.execute("SELECT count(*) FROM pgembed.encoder").fetchone() == (0,)
    project.upgrade()
    assert project.is_current()


def test_an_embedding_of_a_table_that_is_there_with_a_new_column_and_an_index(
    project: Project, database: Connection
) -> None:
    project.models(PRODUCT.replace("    title: Mapped[str | None]\n", ""))
    project.revision()
    project.upgrade()
    database.execute("INSERT INTO product (id) VALUES (1)")
    project.models(PRODUCT + EMBEDDING)
    upgrade = body(project.revision(), "upgrade")
    kinds = [line.split("(")[0] for line in upgrade if line.startswith("op.")]
    assert kinds == ["op.add_column", "op.add_encoder", "op.attach_embedding", "op.create_index"]
    project.upgrade()
    assert project.is_current()
    project.downgrade()
    assert embeddings(database) == []
    assert database.execute("SELECT id FROM product").fetchall() == [(1,)]


def test_what_would_drop_vectors_is_written_commented_out_unless_asked_for(
    project: Project, database: Connection
) -> None:
    project.models(PRODUCT + EMBEDDING)
    project.revision()
    project.upgrade()
    project.models(PRODUCT)
    text = project.revision()
    assert [line for line in body(text, "upgrade") if line.startswith("op.")] == []
    assert "# op.detach_embedding('product', 'embedding')" in text
    project.upgrade()
    assert embeddings(database) == [("public", "product", "embedding", "lite")]
    project.models(PRODUCT + EMBEDDING.replace('text="{title}"', 'image={"column": "photo", "weight": 2}'))
    text = project.revision()
    assert "# op.alter_embedding('product', 'embedding'" in text
    project.upgrade()
    text = project.revision(allow_drop=True)
    altered = "op.alter_embedding('product', 'embedding', encoder='lite', image={'column': 'photo', 'weight': 2})"
    assert altered in body(text, "upgrade")
    assert any("op.create_index" in line for line in body(text, "upgrade"))
    assert (
        "op.alter_embedding('product', 'embedding', encoder='lite', text='{title}')" in text.split("def downgrade")[1]
    )
    project.upgrade()
    assert project.is_current()
    project.models(PRODUCT)
    text = project.revision(allow_drop=True)
    assert "op.detach_embedding('product', 'embedding')" in body(text, "upgrade")
    project.upgrade()
    assert embeddings(database) == []
    assert project.is_current()
    project.downgrade()
    assert len(embeddings(database)) == 1


@pytest.mark.parametrize(
    "index",
    [
        "index=VectorIndex(m=8, ef_construction=100)",
        'index=False); __table_args__ = (Index("some", "embedding", postgresql_using="hnsw",'
        ' postgresql_ops={"embedding": "vector_cosine_ops"}, postgresql_where=text("price  < (40+2)")),',
        'index=False); __table_args__ = (Index("some", text("(embedding::halfvec(256)) halfvec_cosine_ops"),'
        ' postgresql_using="hnsw"),',
    ],
    ids=["options", "partial", "expression"],
)
def test_indexes_are_the_same_where_postgres_writes_them_alike(project: Project, index: str) -> None:
    project.models(PRODUCT + EMBEDDING.replace("index=True", index))
    project.revision()
    project.upgrade()
    assert project.is_current()


def test_an_index_with_other_options_is_built_anew_and_one_of_pgembed_does(
    project: Project, database: Connection
) -> None:
    project.models(PRODUCT + EMBEDDING)
    project.revision()
    project.upgrade()
    project.models(PRODUCT + EMBEDDING.replace("index=True", "index=VectorIndex(m=8)"))
    upgrade = body(project.revision(), "upgrade")
    kinds = [line.split("(")[0] for line in upgrade if line.startswith("op.")]
    assert kinds == ["op.drop_index", "op.create_index"]
    project.upgrade()
    assert project.is_current()
    database.execute("DROP INDEX ix_product_embedding")
    (statement,) = database.execute("SELECT pgembed.index_sql('product', 'embedding', 8)").fetchone() or ("",)
    database.execute(str(statement).encode())
    assert project.is_current()
    project.models(PRODUCT + EMBEDDING.replace(", index=True", ""))
    assert project.is_current()
    database.execute("CREATE INDEX by_hand ON product USING hnsw (embedding vector_cosine_ops)")
    assert [line.split("(")[0] for line in body(project.revision(), "upgrade")] == ["op.drop_index"]


def test_the_index_of_a_view_is_left_alone(project: Project, database: Connection) -> None:
    project.models(PRODUCT + EMBEDDING)
    project.revision()
    project.upgrade()
    numbers = [1.0] + [0.0] * 255
    database.execute("SELECT pgembed.add_view('colour', 'lite', ARRAY[%s::vector])", [str(numbers)])
    (statement,) = database.execute("SELECT pgembed.neutral_index_sql('product', 'colour')").fetchone() or ("",)
    database.execute(str(statement).encode())
    assert project.is_current()


def test_other_schemas_and_what_is_left_out(project: Project, database: Connection) -> None:
    database.execute("CREATE SCHEMA shop; CREATE TABLE legacy (id int PRIMARY KEY, title text)")
    placed = EMBEDDING + '    legacy: Mapped[Vector] = embedding_column(encoder="lite", text="title")\n'
    project.models(PRODUCT.replace('"product"', '"pro duct"') + placed + '    __table_args__ = {"schema": "shop"}\n')
    text = project.revision()
    assert "schema='shop'" in text
    assert "legacy" not in text
    project.upgrade()
    assert embeddings(database) == [("shop", "pro duct", "embedding", "lite")]
    database.execute(
        """SELECT pgembed.attach('shop."pro duct"', 'beside', 'lite', '{"text": "title"}', storage => 'side')"""
    )
    text = project.revision()  # a side table and pgembed's own schema are nobody's to drop
    assert [line for line in body(text, "upgrade") if "drop_table" in line] == []
    assert "# op.detach_embedding('pro duct', 'beside', schema='shop')" in text


def test_a_vector_index_by_itself_and_one_that_is_there(project: Project, database: Connection) -> None:
    project.models(PRODUCT + EMBEDDING.replace(", index=True", ""))
    project.revision()
    script: Any = command.revision(project.config, message="index")
    path = Path(script.path)
    written = path.read_text()
    up = "".join(
        (
            "def upgrade() -> None:\n",
            '    op.create_vector_index("product", "embedding", m=8)\n',
            '    op.add_encoder("lite", "builtin:lite")\n',
        )
    )
    down = 'def downgrade() -> None:\n    op.drop_vector_index("product", "embedding")\n'
    path.write_text(written.split("def upgrade")[0] + up + down)
    project.upgrade()
    (made,) = database.execute("SELECT indexdef FROM pg_indexes WHERE indexdef LIKE '%hnsw%'").fetchone() or ("",)
    assert "m='8'" in str(made)
    assert project.is_current()
    project.downgrade()
    assert database.execute("SELECT count(*) FROM pg_indexes WHERE indexdef LIKE '%hnsw%'").fetchone() == (0,)


def test_a_script_makes_what_the_migrations_make(
    project: Project, bare_database: Connection, database: Connection, capsys: pytest.CaptureFixture[str]
) -> None:
    project.models(PRODUCT + EMBEDDING)
    revision = project.revision()
    first = next((project.folder / "migrations" / "versions").glob("*.py"))
    first.write_text(
        revision.replace("def upgrade() -> None:\n", "def upgrade() -> None:\n    op.install_pgembed()\n", 1)
    )
    bare_database.execute("CREATE EXTENSION vector")
    project.config.output_buffer = buffer = io.StringIO()
    command.upgrade(project.config, "head", sql=True)
    bare_database.execute(buffer.getvalue().encode())
    assert embeddings(bare_database) == [("public", "product", "embedding", "lite")]
    assert bare_database.execute("SELECT count(*) FROM pg_indexes WHERE indexdef LIKE '%hnsw%'").fetchone() == (1,)
    buffer.truncate(0)
    command.downgrade(project.config, "head:base", sql=True)
    project.config.output_buffer = sys.stdout
    bare_database.execute(buffer.getvalue().replace("\0", "").encode())
    assert embeddings(bare_database) == []


def test_a_migration_that_fails_leaves_the_database_as_it_was(project: Project, database: Connection) -> None:
    project.models(PRODUCT + EMBEDDING.replace("{title}", "{titel}"))
    project.revision()
    with pytest.raises(DBAPIError, match="titel"):
        project.upgrade()
    assert embeddings(database) == []
    assert database.execute("SELECT to_regclass('product')").fetchone() == (None,)


def test_an_encoder_under_a_name_that_is_another_one_is_refused(project: Project, database: Connection) -> None:
    database.execute(
        "SELECT pgembed.add_encoder('lite', 'builtin:other', dim => 3, modalities => '{text}', fingerprint => 'x')"
    )
    project.models(PRODUCT)
    script: Any = command.revision(project.config, message="encoder")
    path = Path(script.path)
    path.write_text(
        path.read_text().split("def upgrade")[0]
        + 'def upgrade() -> None:\n    op.add_encoder("lite", "builtin:lite")\n'
    )
    with pytest.raises(CatalogError, match="not as builtin:lite"):
        project.upgrade()
    with pytest.raises(CatalogError, match="not as builtin:lite"):
        project.upgrade()
    assert database.execute("SELECT spec FROM pgembed.encoder").fetchall() == [("builtin:other",)]


def test_an_asynchronous_environment(project: Project, database: Connection) -> None:
    env = ENV.replace(
        "from sqlalchemy import create_engine", "import asyncio\nfrom sqlalchemy.ext.asyncio import create_async_engine"
    )
    start = env.index("    engine = create_engine")
    env = (
        env[:start]
        + """
    def migrate(connection):
        context.configure(connection=connection, **options)
        with context.begin_transaction():
            context.run_migrations()

    async def main():
        engine = create_async_engine(config.attributes["url"])
        async with engine.connect() as connection:
            await connection.run_sync(migrate)
        await engine.dispose()

    asyncio.run(main())
"""
    )
    (project.folder / "migrations" / "env.py").write_text(env)
    project.models(PRODUCT + EMBEDDING)
    project.revision()
    project.upgrade()
    assert embeddings(database) == [("public", "product", "embedding", "lite")]
    assert project.is_current()


def test_branches_with_heads_of_their_own(project: Project, database: Connection) -> None:
    project.models(PRODUCT)
    base: Any = command.revision(project.config, autogenerate=True)
    project.upgrade()
    side: Any = command.revision(project.config, message="side", head=base.revision)
    project.models(PRODUCT + EMBEDDING)
    command.upgrade(project.config, "heads")
    other: Any = command.revision(project.config, autogenerate=True, head=side.revision)
    splice: Any = command.revision(project.config, message="other", head=base.revision, splice=True)
    command.upgrade(project.config, "heads")
    assert embeddings(database) == [("public", "product", "embedding", "lite")]
    command.merge(project.config, [other.revision, splice.revision])
    command.upgrade(project.config, "head")
    assert project.is_current()


def test_inputs_side_by_side(project: Project, database: Connection) -> None:
    project.models(PRODUCT + EMBEDDING.replace('text="{title}"', 'text="{title}", image="photo", fusion="concat"'))
    assert "fusion='concat'" in project.revision()
    project.upgrade()
    (index,) = database.execute("SELECT indexdef FROM pg_indexes WHERE indexdef LIKE '%hnsw%'").fetchone() or ("",)
    assert "vector_ip_ops" in str(index)
    assert project.is_current()
