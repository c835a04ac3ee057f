"""The migrations: from nothing to the newest version, in one line of steps, and refused where they cannot go."""

from __future__ import annotations

from pathlib import Path

import psycopg
import pytest
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory

from pgembed import schema
from pgembed.errors import CatalogError
from tests.facts import facts_of_schema
from tests.fakes import Connection

MIGRATIONS = Path(__file__).parents[2] / "migrations"


@pytest.fixture(scope="module")
def scripts() -> ScriptDirectory:
    return ScriptDirectory(str(MIGRATIONS))


def test_the_versions_are_one_line_and_its_end_is_what_install_leaves(
    scripts: ScriptDirectory, database: Connection
) -> None:
    revisions = [script.revision for script in scripts.walk_revisions()][::-1]
    assert len(scripts.get_heads()) == len(scripts.get_bases()) == 1
    assert revisions == sorted(revisions)  # versions are compared as text, to know which is newer
    assert {len(revision) for revision in revisions} == {4}
    assert revisions[-1] == scripts.get_current_head() == schema.head()
    assert database.execute("SELECT version_num FROM pgembed.schema_version").fetchall() == [(schema.head(),)]
    assert schema.versions(database).schema == schema.head()


def test_every_file_of_the_folder_is_a_version(scripts: ScriptDirectory) -> None:
    files = {path.name for path in (MIGRATIONS / "versions").glob("*.py")}
    assert files == {Path(script.path).name for script in scripts.walk_revisions()}
    for script in scripts.walk_revisions():
        assert Path(script.path).name.startswith(f"{script.revision}_")
        assert script.doc


def test_from_any_version_on_the_steps_end_in_the_same_schema(
    scripts: ScriptDirectory, bare_database: Connection, database: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare_database.execute("CREATE EXTENSION vector")
    bare_database.execute("CREATE SCHEMA pgembed")
    before: str | None = None
    for script in reversed(list(scripts.walk_revisions())):  # one step at a time
        monkeypatch.setattr(schema, "head", lambda revision=script.revision: revision)
        sql = schema._migrations(before)
        assert sql.count("INSERT INTO pgembed.schema_version") + sql.count("UPDATE pgembed.schema_version") == 1
        bare_database.execute(sql.replace("@extschema:vector@", "public").encode())
        before = script.revision
    monkeypatch.undo()
    schema.install(bare_database)
    assert facts_of_schema(bare_database) == facts_of_schema(database)


def test_at_the_newest_version_there_is_nothing_to_do(database: Connection) -> None:
    assert schema._migrations(schema.head()) == ""


def test_a_database_is_not_needed_to_write_the_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("it connects")

    monkeypatch.setattr(psycopg, "connect", refuse)
    assert "CREATE TABLE pgembed.embedding" in schema._migrations(None)


def test_a_downgrade_is_refused_with_the_reason(database: Connection) -> None:
    before = facts_of_schema(database)
    database.execute("UPDATE pgembed.schema_version SET version_num = '9999'")
    with pytest.raises(
        CatalogError, match=r"The schema pgembed in this database is version 9999; this library knows up"
    ):
        schema.install(database)
    database.execute("UPDATE pgembed.schema_version SET version_num = %s", [schema.head()])
    assert facts_of_schema(database) == before


def test_no_version_can_be_taken_back(scripts: ScriptDirectory) -> None:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.set_main_option("path_separator", "os")
    for script in scripts.walk_revisions():
        assert not hasattr(script.module, "downgrade")
    with pytest.raises(AttributeError, match="downgrade"):
        command.downgrade(config, f"{schema.head()}:base", sql=True)
