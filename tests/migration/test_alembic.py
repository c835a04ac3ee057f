"""A project's own migrations: operations, autogenerate against models, scripts, and back again."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import psycopg
import pytest
from alembic import command
from alembic.config import Config

from tests.conftest import Connection
from tests.integration.test_sqlalchemy import url_of

ENV = '''
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
    context.configure(url=config.get_main_option("sqlalchemy.url"), literal_binds=True, **options)
    with context.begin_transaction():
        context.run_migrations()
else:
    engine = create_engine(config.attributes["url"])
    with engine.connect() as connection:
        context.configure(connection=connection, **options)
        with context.begin_transaction():
            context.run_migrations()
    engine.dispose()
'''

BASE = '''
from sqlalchemy import Index, Integer, LargeBinary, Text, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from pgembed.sqlalchemy import EncoderSpec, Vector, VectorIndex, embedding_column

class Base(DeclarativeBase):
    pass
'''
PRODUCT = '''
class Product(Base):
    __tablename__ = "product"
    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str | None]
    price: Mapped[int | None]
    photo: Mapped[bytes | None]
'''
EMBEDDING = '''    embedding: Mapped[Vector] = embedding_column(
        encoder=EncoderSpec("lite", "builtin:lite"), text="{title}", index=True)
'''


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
        (newest,) = [path for path in (self.folder / "migrations" / "versions").glob("*.py") if path.read_text() == text]
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
    return database.execute("SELECT schema_name, table_name, target, encoder FROM pgembed.embedding ORDER BY 1, 2, 3").fetchall()


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
