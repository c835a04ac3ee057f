"""The migrations: from nothing to the newest version, in one line of steps, and refused where they cannot go."""

from __future__ import annotations

from pathlib import Path

import psycopg
import pytest
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory

import pgembed
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


def test_each_step_is_for_the_version_before(scripts: ScriptDirectory, bare_database: Connection) -> None:
    schema._prepare(bare_database)
    revisions = [script.revision for script in scripts.walk_revisions()][::-1]
    steps = list(schema._migrations())
    bare_database.execute("SET search_path = pg_catalog; SET pgembed.vector_schema = 'public'")
    for revision, step in zip(revisions, steps, strict=True):
        for again in (step, *steps[: steps.index(step)]):  # the second time, and all that came before: nothing
            bare_database.execute(again.encode())
            assert bare_database.execute("SELECT version_num FROM pgembed.schema_version").fetchall() == [(revision,)]


def test_a_database_is_not_needed_to_write_the_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("it connects")

    monkeypatch.setattr(psycopg, "connect", refuse)
    assert "CREATE TABLE pgembed.embedding" in schema._migrations()[0]


def test_a_downgrade_is_refused_with_the_reason(database: Connection) -> None:
    before = facts_of_schema(database)
    database.execute("UPDATE pgembed.schema_version SET version_num = '9999'")
    with pytest.raises(CatalogError, match=r"The schema pgembed in this database is version 9999; pgembed .* knows up"):
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


# One step by itself, with rows in place


def step(conn: Connection, revision: str) -> None:
    """Run one migration as an upgrade from the version before does, and say that the newest is there."""
    scripts = ScriptDirectory(str(MIGRATIONS))
    revisions = [script.revision for script in scripts.walk_revisions()][::-1]
    chosen = list(schema._migrations())[revisions.index(revision)]
    with conn.transaction():
        conn.execute("SET LOCAL search_path = pg_catalog; SET LOCAL pgembed.vector_schema = 'public'")
        conn.execute("UPDATE pgembed.schema_version SET version_num = %s", [revisions[revisions.index(revision) - 1]])
        conn.execute(chosen.encode())
        conn.execute("UPDATE pgembed.schema_version SET version_num = %s", [schema.head()])


def test_0003_gives_the_logs_that_are_there_the_time_of_each_change(database: Connection, database_dsn: str) -> None:
    db = pgembed.connect(database)
    db.add_encoder("lite", "builtin:lite")
    database.execute("CREATE TABLE product (id integer PRIMARY KEY, title text)")
    db.attach("product", "embedding", encoder="lite", text="{title}")
    columns = (
        "SELECT attname, format_type(atttypid, atttypmod), attnotnull, pg_get_expr(d.adbin, d.adrelid)"
        " FROM pg_attribute AS a LEFT JOIN pg_attrdef AS d ON d.adrelid = a.attrelid AND d.adnum = a.attnum"
        " WHERE attrelid = 'pgembed.change_1'::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attnum"
    )
    attached = database.execute(columns).fetchall()
    database.execute("INSERT INTO product VALUES (1, 'a dog')")
    database.execute("ALTER TABLE pgembed.change_1 DROP COLUMN changed_at")
    with psycopg.connect(database_dsn) as writer:
        writer.execute("INSERT INTO product VALUES (2, 'a cat')")
        with pytest.raises(psycopg.errors.LockNotAvailable):
            step(database, "0003")
    step(database, "0003")
    assert database.execute(columns).fetchall() == attached
    assert database.execute("SHOW lock_timeout").fetchone() == ("0",)
    database.execute("INSERT INTO product VALUES (3, 'a bird')")
    assert database.execute("SELECT bool_and(changed_at <= now()) FROM pgembed.change_1").fetchone() == (True,)
    assert db.work(until_idle=True).written == 3


def test_0005_gives_the_jobs_that_are_there_since_when_they_wait(database: Connection) -> None:
    db = pgembed.connect(database)
    db.add_encoder("lite", "builtin:lite")
    database.execute("CREATE TABLE product (id integer PRIMARY KEY, title text)")
    db.attach("product", "embedding", encoder="lite", text="{title}")
    database.execute("INSERT INTO product VALUES (1, 'a dog')")
    before = facts_of_schema(database)
    database.execute("ALTER TABLE pgembed.job_1 DROP COLUMN first_seq")
    database.execute("ALTER TABLE pgembed.embedding DROP COLUMN paused CASCADE")
    database.execute("UPDATE pgembed.embedding SET state = 'paused'")
    step(database, "0005")
    schema.install(database)
    assert {name: facts for name, facts in facts_of_schema(database).items() if name != "columns"} == {
        name: facts for name, facts in before.items() if name != "columns"
    }
    assert [(row.state, row.queued) for row in db.status()] == [("paused", 1)]
    db.resume("product")
    assert db.work(until_idle=True).written == 1
    assert db.wait("product", timeout=0) == []


def test_0006_keeps_how_far_a_backfill_is(database: Connection) -> None:
    db = pgembed.connect(database)
    db.add_encoder("lite", "builtin:lite")
    database.execute("CREATE TABLE product (id integer PRIMARY KEY, title text)")
    database.execute("INSERT INTO product SELECT i, 'dog ' || i FROM generate_series(1, 5) AS i")
    db.attach("product", "embedding", encoder="lite", text="{title}")
    before = facts_of_schema(database)
    database.execute("DROP TABLE pgembed.granted, pgembed.backfill")
    database.execute("ALTER TABLE pgembed.embedding ADD COLUMN backfill_after jsonb")
    database.execute("UPDATE pgembed.embedding SET backfill_after = '[\"3\"]'")
    step(database, "0006")
    schema.install(database)
    after = facts_of_schema(database)
    for facts in (before, after):
        del facts["columns"]  # those that were dropped too
    assert after == before
    assert database.execute("SELECT * FROM pgembed.backfill").fetchall() == [(1, ["3"])]
    assert db.work(until_idle=True).written == 2  # the rows beyond


def test_0008_tells_the_jobs_that_are_there_from_those_of_a_backfill(database: Connection) -> None:
    db = pgembed.connect(database)
    db.add_encoder("lite", "builtin:lite")
    database.execute("CREATE TABLE product (id integer PRIMARY KEY, title text)")
    db.attach("product", "embedding", encoder="lite", text="{title}")
    database.execute("INSERT INTO pgembed.job_1 (key_1) VALUES (1)")
    database.execute("INSERT INTO product VALUES (1, 'a dog')")
    before = facts_of_schema(database)
    database.execute("ALTER TABLE pgembed.job_1 DROP COLUMN backfill")
    step(database, "0008")
    assert {name: facts for name, facts in facts_of_schema(database).items() if name != "columns"} == {
        name: facts for name, facts in before.items() if name != "columns"
    }
    assert database.execute("SELECT key_1, backfill FROM pgembed.job_1").fetchall() == [(1, False)]
    assert db.work(until_idle=True).written == 1


def test_the_oldest_wait_begins_with_the_change(database: Connection) -> None:
    db = pgembed.connect(database)
    db.add_encoder("lite", "builtin:lite")
    database.execute("CREATE TABLE product (id integer PRIMARY KEY, title text)")
    db.attach("product", "embedding", encoder="lite", text="{title}")
    wait = "SELECT queued, oldest_wait BETWEEN interval '1 hour' AND interval '1 hour 1 minute' FROM pgembed.status"
    assert database.execute("SELECT queued, oldest_wait FROM pgembed.status").fetchone() == (0, None)
    database.execute("INSERT INTO product VALUES (1, 'a dog'), (2, 'a cat')")
    database.execute("UPDATE pgembed.change_1 SET changed_at = now() - interval '1 hour' WHERE key_1 = 1")
    assert database.execute(wait).fetchone() == (2, True)
    db.work(until_idle=True)
    assert database.execute("SELECT queued, oldest_wait FROM pgembed.status").fetchone() == (0, None)
