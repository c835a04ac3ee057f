"""An upgrade: from an older schema, with a table attached, to one with more versions and other functions."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest

import pgembed
from pgembed import Text, schema
from pgembed.encoders.builtin import lite_static_text
from tests.facts import facts_of_schema
from tests.fakes import Connection, Table, until
from tests.psql import psql

ROOT = Path(__file__).parents[2]
OLD = schema.head()
SECOND, THIRD = (f"{int(OLD) + step:04d}" for step in (1, 2))
VERSION = '''"""A later version."""

from alembic import op

revision = "{revision}"
down_revision = "{before}"


def upgrade() -> None:
    op.execute("""{statement}""")
'''
TABLE = "CREATE TABLE pgembed.note (body text DEFAULT $$it's$$, vector @extschema:vector@.vector)"
ROWS = "INSERT INTO pgembed.note (body) SELECT name FROM pgembed.encoder"
FUNCTIONS = """
-- A function that takes one argument more than before.
DROP FUNCTION IF EXISTS pgembed.forget(integer);
CREATE OR REPLACE FUNCTION pgembed.forget(embedding_id integer, quietly boolean DEFAULT false) RETURNS void
LANGUAGE sql
AS $$ DELETE FROM pgembed.embedding WHERE id = embedding_id $$;

-- A new one.
CREATE OR REPLACE FUNCTION pgembed.notes() RETURNS bigint
LANGUAGE sql STABLE
RETURN (SELECT count(*) FROM pgembed.note);
"""

Upgrade = Callable[[str], None]


@pytest.fixture
def newer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library of two versions later, with few tokens."""
    for name in ("migrations", "sql"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for revision, before, statement in ((SECOND, OLD, TABLE), (THIRD, SECOND, ROWS)):
        text = VERSION.format(revision=revision, before=before, statement=statement)
        (tmp_path / f"migrations/versions/{revision}_later.py").write_text(text)
    (tmp_path / "sql/90_later.sql").write_text(FUNCTIONS)
    side = lite_static_text()
    settings = {**side.settings, "since": "9.9"}
    few = replace(side, vocabulary=side.vocabulary[:300], table=side.table[:300], settings=settings)
    monkeypatch.setattr(schema, "_directory", lambda name: tmp_path / name)
    monkeypatch.setattr(schema, "_static_texts", lambda: iter([few]))
    monkeypatch.setattr(schema, "library_version", lambda: "9.9")


def by_install(dsn: str, _: Path) -> None:
    with psycopg.connect(dsn, autocommit=True) as conn:
        assert schema.install(conn).schema == THIRD


def by_script(dsn: str, folder: Path) -> None:
    script = folder / "pgembed.sql"
    script.write_text(schema.install_script(), encoding="utf-8")
    done = psql(dsn, script)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.fixture(params=[by_install, by_script])
def upgrade(request: pytest.FixtureRequest, tmp_path: Path) -> Upgrade:
    return lambda dsn: request.param(dsn, tmp_path)


@pytest.fixture
def attached(database: Connection, database_dsn: str) -> pgembed.Pgembed:
    """A table with one vector, and one row that waits, in the schema of this version."""
    database.execute("CREATE TABLE product (id integer PRIMARY KEY, title text)")
    database.execute("INSERT INTO product VALUES (1, 'a red apple')")
    db = pgembed.connect(database)
    db.add_encoder("lite", "builtin:lite")
    db.attach("product", "embedding", encoder="lite", text="{title}")
    db.work(until_idle=True)
    database.execute("INSERT INTO product VALUES (2, 'a dog')")
    return db


def test_an_older_schema_becomes_what_a_first_install_makes(
    attached: pgembed.Pgembed,
    newer: None,
    upgrade: Upgrade,
    database: Connection,
    database_dsn: str,
    bare_dsn: str,
    bare_database: Connection,
) -> None:
    before = database.execute("SELECT id, embedding FROM product ORDER BY id").fetchall()
    upgrade(database_dsn)
    assert database.execute("SELECT version_num, pgembed.version() FROM pgembed.schema_version").fetchall() == [
        (THIRD, "9.9")
    ]
    assert database.execute("SELECT body FROM pgembed.note").fetchall() == [("lite",)]
    assert database.execute("SELECT id, embedding FROM product ORDER BY id").fetchall() == before
    attached.work(until_idle=True)
    assert attached.search("product", Text("puppy"), limit=1)[0].id == 2
    attached.detach("product")

    upgrade(bare_dsn)
    fresh, upgraded = facts_of_schema(bare_database), facts_of_schema(database)
    for facts in (fresh, upgraded):
        del facts["tokens"]  # the older schema has all of them
    assert upgraded == fresh


def test_from_halfway_only_what_is_missing_runs(
    newer: None, upgrade: Upgrade, bare_dsn: str, bare_database: Connection
) -> None:
    upgrade(bare_dsn)
    facts = facts_of_schema(bare_database)
    bare_database.execute("INSERT INTO pgembed.note VALUES ('kept')")
    bare_database.execute("UPDATE pgembed.schema_version SET version_num = %s", [SECOND])
    for _ in range(2):
        upgrade(bare_dsn)
        assert facts_of_schema(bare_database) == facts
        assert bare_database.execute("SELECT body FROM pgembed.note").fetchall() == [("kept",)]


def test_a_changed_signature_takes_the_place_of_the_old_one(
    database: Connection, newer: None, upgrade: Upgrade, database_dsn: str
) -> None:
    upgrade(database_dsn)
    assert database.execute(
        "SELECT oid::regprocedure::text FROM pg_proc WHERE pronamespace = 'pgembed'::regnamespace"
        " AND proname = 'forget'"
    ).fetchall() == [("pgembed.forget(integer,boolean)",)]


def test_an_upgrade_that_fails_changes_nothing(
    attached: pgembed.Pgembed, newer: None, database: Connection, tmp_path: Path
) -> None:
    before = facts_of_schema(database)
    (tmp_path / "sql/91_wrong.sql").write_text("SELECT pgembed.no_such_function();\n")
    with pytest.raises(psycopg.errors.UndefinedFunction):
        schema.install(database)
    assert facts_of_schema(database) == before
    assert attached.search("product", Text("apple"), limit=1)[0].id == 1


def test_a_return_type_that_changed_without_a_drop_is_refused_by_postgres(
    database: Connection, newer: None, tmp_path: Path
) -> None:
    wrong = "CREATE OR REPLACE FUNCTION pgembed.version() RETURNS integer LANGUAGE sql RETURN 1;\n"
    (tmp_path / "sql/91_wrong.sql").write_text(wrong)
    with pytest.raises(psycopg.errors.InvalidFunctionDefinition, match="cannot change return type"):
        schema.install(database)
    assert schema.versions(database).schema == OLD


@pytest.mark.parametrize("storage", ["column", "side"])
def test_workers_that_run_go_on_over_an_upgrade(
    storage: str,
    database: Connection,
    database_dsn: str,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    table = Table(database, database_dsn, monkeypatch, storage)
    titles = [f"thing {number}" for number in range(60)]
    with table.working(), psycopg.connect(database_dsn, autocommit=True) as upgrading, ThreadPoolExecutor(1) as pool:
        writing = pool.submit(table.insert, *titles)
        until(table.embedded_ids)
        request.getfixturevalue("newer")
        assert schema.install(upgrading).schema == THIRD
        writing.result()
        table.insert("after it")
        until(lambda: len(table.true_ids()) == 61)
    assert table.failures() == {}
    assert sorted(table.encoder.seen) == sorted([*titles, "after it"])
