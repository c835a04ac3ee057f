"""What the README and docs/sqlalchemy.md say of models and migrations, done as printed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest

import pgembed
from tests.integration.test_sqlalchemy import url_of
from tests.migration.test_alembic import ENV

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PAGE = BLOCK.findall((ROOT / "docs" / "sqlalchemy.md").read_text(encoding="utf-8"))
DIFFS = [block for kind, block in BLOCK.findall((ROOT / "README.md").read_text(encoding="utf-8")) if kind == "diff"]
MODEL, ENV_DIFF = (next(diff for diff in DIFFS if told in diff) for told in ("pgembed.sqlalchemy", "pgembed.alembic"))
URL = "postgresql+psycopg://localhost/shop"
HEAD = """
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

class Base(DeclarativeBase):
    pass

"""


class Project:
    """A folder of an application, with Alembic's environment."""

    def __init__(self, folder: Path, dsn: str) -> None:
        self.folder, self.dsn = folder, dsn
        self.run("-m", "alembic", "init", "migrations")
        self.url = url_of(dsn).render_as_string(hide_password=False)

    def run(self, *words: str) -> str:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(self.folder), *sys.path])}
        done = subprocess.run(
            [sys.executable, *words],
            cwd=self.folder, env=environment, capture_output=True, text=True, check=False, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def env(self, *, imports: bool) -> None:
        text = ENV if imports else ENV.replace("import pgembed.alembic\n", "").replace("include_schemas=True, ", "")
        (self.folder / "migrations" / "env.py").write_text(text.replace('config.attributes["url"]', repr(self.url)))

    def migrate(self) -> None:
        self.run("-m", "alembic", "revision", "--autogenerate")
        self.run("-m", "alembic", "upgrade", "head")

    def work(self) -> None:
        with pgembed.connect(self.dsn) as db:
            db.work(until_idle=True)


@pytest.fixture
def project(tmp_path: Path, database_dsn: str) -> Project:
    return Project(tmp_path, database_dsn)


def side(diff: str, mark: str) -> str:
    """The text before (``-``) or after (``+``) a diff."""
    return "".join(f"{line[1:]}\n" for line in diff.splitlines() if line[:1] in (" ", mark))


def test_the_diffs_of_the_readme(project: Project, database: psycopg.Connection) -> None:
    assert "import pgembed.alembic" in side(ENV_DIFF, "+")
    (project.folder / "models.py").write_text(HEAD + side(MODEL, "-"))
    project.env(imports=False)
    project.migrate()
    database.execute("INSERT INTO product (title) VALUES ('a dog'), ('a red shoe')")
    (project.folder / "models.py").write_text(HEAD + side(MODEL, "+"))
    project.env(imports=True)
    project.migrate()
    assert database.execute("SELECT target FROM pgembed.embedding").fetchall() == [("embedding",)]
    project.work()
    asked = "import models, pgembed\nfrom sqlalchemy import *\n" + (
        "near = models.Product.embedding.distance(pgembed.Text('a shoe'))\n"
        f"connection = create_engine({project.url!r}).connect()\n"
        "print(connection.scalar(select(models.Product.title).order_by(near).limit(1)))"
    )
    assert project.run("-c", asked).strip() == "a red shoe"


def test_every_block_of_the_page(project: Project, database: psycopg.Connection) -> None:
    models, made, wrapped, asked, beside, parts, migration = (block.replace(URL, project.url) for _, block in PAGE)
    (project.folder / "models.py").write_text(models)
    project.run("-c", made)
    signature = "import inspect\nprint(*inspect.signature(Note).parameters)"
    assert project.run("-c", wrapped + signature).strip() == "id body"
    database.execute("INSERT INTO product (title, price) VALUES ('a dog', 5), ('a red shoe', 6), ('a shoe', 90)")
    project.work()
    assert project.run("-c", asked).splitlines()[0] == "2 a red shoe"
    assert project.run("-c", beside).splitlines() == ["a dog on the beach"]
    assert project.run("-c", parts) == ""
    body = "A wing bends the air that streams past it.\n\nAt a steep angle the air parts from it: the wing stalls.\n\nA"
    body += " river carries stones from the mountains down to the sea, and lays them where it is slow."
    database.execute("INSERT INTO article (body) VALUES ('The harbour at night.'), (%s)", [body])
    project.work()
    *articles, passage = project.run("-c", parts).splitlines()
    counts = "SELECT id || ' ' || count(*) FROM article_embedding GROUP BY id ORDER BY id DESC"
    assert articles == [told for (told,) in database.execute(counts.encode()).fetchall()]
    assert articles[1] == "1 1" != articles[0].replace("2", "1", 1)
    assert passage.startswith("2 {")
    assert "stalls" in passage
    database.execute("DROP TABLE product, note, article; SELECT pgembed.uninstall(true)")
    database.execute("CREATE TABLE product (id int PRIMARY KEY, title text, photo bytea)")
    project.env(imports=True)
    project.run("-m", "alembic", "revision")
    (version,) = (project.folder / "migrations" / "versions").glob("*.py")
    version.write_text(version.read_text().split("def upgrade")[0] + migration)
    project.run("-m", "alembic", "upgrade", "head")
    assert database.execute("SELECT target FROM pgembed.embedding").fetchall() == [("embedding",)]
    project.run("-m", "alembic", "downgrade", "base")
    assert database.execute("SELECT to_regnamespace('pgembed')").fetchone() == (None,)
