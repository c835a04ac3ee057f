"""Migrations that were broken off, and are run again."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
from alembic import command

from tests.conftest import Connection
from tests.migration.test_alembic import BASE, EMBEDDING, ENV, PRODUCT, Project
from tests.migration.test_alembic import project as project  # a fixture

UPGRADE = """
from alembic import command
from alembic.config import Config
command.upgrade(Config("alembic.ini"), "head")
"""
INDEXES = "SELECT indisvalid FROM pg_index JOIN pg_class c ON c.oid = indexrelid WHERE c.relname LIKE '%hnsw%'"
BUILDING = "SELECT pid FROM pg_stat_progress_create_index WHERE datname = current_database()"


def comes(asked: Callable[[], Any], seconds: float = 30) -> Any:  # noqa: ANN401
    """What is asked for, once it is something."""
    until = time.monotonic() + seconds
    while not (found := asked()):
        assert time.monotonic() < until
        time.sleep(0.05)
    return found


def upgrading(project: Project) -> subprocess.Popen[bytes]:
    """``alembic upgrade head``, as a process of its own."""
    return subprocess.Popen([sys.executable, "-c", UPGRADE], cwd=project.folder, env={"PYTHONPATH": ":".join(sys.path)})


@pytest.mark.parametrize("storage", ["column", "side"])
def test_an_index_whose_build_was_killed_is_built_again(
    project: Project, database: Connection, database_dsn: str, storage: str
) -> None:
    models = PRODUCT + EMBEDDING.replace(", index=True", f', storage="{storage}"')
    project.models(models)
    project.revision()
    project.upgrade()
    (project.folder / "models.py").write_text(BASE + models)
    env = project.folder / "migrations" / "env.py"
    env.write_text(ENV.replace('config.attributes["url"]', repr(project.url)))
    script: Any = command.revision(project.config, message="index")
    text = Path(script.path).read_text()
    made = 'def upgrade() -> None:\n    op.create_vector_index("product", "embedding")\n'
    Path(script.path).write_text(text.split("def upgrade")[0] + made)
    with psycopg.connect(database_dsn) as writer:
        table = "product_embedding" if storage == "side" else "product"
        writer.execute(f"LOCK TABLE {table} IN ROW EXCLUSIVE MODE".encode())  # a build waits for whoever writes
        killed = upgrading(project)
        (builder,) = comes(lambda: database.execute(BUILDING).fetchone())
        killed.kill()
        killed.wait()
        assert database.execute(INDEXES).fetchall() == [(False,)]
        again = upgrading(project)  # waits for the build that still goes on
        comes(
            lambda: database.execute("SELECT pid FROM pg_locks WHERE NOT granted AND pid <> %s", [builder]).fetchone()
        )
        database.execute("SELECT pg_terminate_backend(%s)", [builder])
    assert again.wait(30) == 0
    assert database.execute(INDEXES).fetchall() == [(True,)]
    assert project.is_current()
    database.execute("UPDATE pg_index SET indisvalid = false FROM pg_class c WHERE c.oid = indexrelid"
                     " AND c.relname LIKE '%hnsw%'")  # fmt: skip
    command.stamp(project.config, script.down_revision)
    project.upgrade()
    assert database.execute(INDEXES).fetchall() == [(True,)]
