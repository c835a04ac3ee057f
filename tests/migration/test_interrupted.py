"""Installs, upgrades and migrations that are killed with -9 or lose their session at any step: run again, they end."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from alembic import command
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy.exc import DBAPIError

import pgembed
from pgembed import schema
from pgembed.configuration import read
from tests.conftest import Connection, new_database
from tests.fakes import until
from tests.integration.test_sqlalchemy import url_of
from tests.migration.test_alembic import PRODUCT, Project
from tests.migration.test_versions import EARLIER, facts, restore

Act = Callable[[], object]
WAYS = ("killed", "cut off")
CUT_OFF = ("terminating connection", "connection is", "until invalid transaction is rolled back")
ENDED, FAILED = 0, 7  # how a child leaves: it came to its end, or its session was taken from it


def in_child(act: Act, dsn: str, how: str = "", at: int = 0) -> tuple[int | None, int]:
    """Do something in a process of its own, which ends itself by SIGKILL, or its sessions, at its ``at``-th word to the
    server. Gives its exit code, None where it was killed, and how many words there were."""
    reading, writing = os.pipe()
    if (pid := os.fork()) == 0:
        code = FAILED
        try:
            os.close(reading)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            words = 0
            wait = psycopg.Connection.wait

            def counting(conn: psycopg.Connection[Any], generator: Any, *more: Any) -> Any:  # noqa: ANN401
                nonlocal words
                if generator.__name__ != "copy_to":  # a COPY is one word, however long
                    words += 1
                    if words == at and how == "killed":
                        os.kill(os.getpid(), signal.SIGKILL)
                    if words == at:
                        end_sessions(dsn)
                return wait(conn, generator, *more)

            psycopg.Connection.wait = counting  # pyright: ignore[reportAttributeAccessIssue]
            act()
            os.write(writing, str(words).encode())
            code = ENDED
        except psycopg.Error:
            pass
        except BaseException as error:
            if not any(told in str(error) for told in CUT_OFF):
                os.write(writing, traceback.format_exc()[-2000:].encode())
        finally:
            os._exit(code)
    os.close(writing)
    _, status = os.waitpid(pid, 0)
    with os.fdopen(reading) as told:
        said = told.read()
    assert said.isdigit() or not said, said
    return (None if os.WIFSIGNALED(status) else os.waitstatus_to_exitcode(status)), int(said or 0)


def end_sessions(dsn: str) -> None:
    """End the sessions that this process has on a database, as an administrator may."""
    with psycopg.connect(dsn, autocommit=True, application_name="ends others") as conn:
        conn.execute(ALONE.replace("count(*)", "count(pg_terminate_backend(pid))").encode())


ALONE = (
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    " AND application_name <> 'the test' AND backend_type = 'client backend'"
)


@pytest.fixture
def watching(bare_dsn: str) -> Iterator[Connection]:
    """A connection that is left alone when sessions are ended."""
    with psycopg.connect(bare_dsn, autocommit=True, application_name="the test") as conn:
        yield conn


def steps(words: int, most: int) -> list[int]:
    """At which words to break something off: the first and the last ones, and some between."""
    some = {1 + number * (words - 1) // (most - 1) for number in range(most)}
    return sorted(some | {words - 1})


def break_off(act: Act, conn: Connection, dsn: str, words: int, most: int) -> Iterator[str]:
    """Break it off at some of its words, in both ways in turn; each time, tell how once the server has seen it."""
    for number, at in enumerate(steps(words, most)):
        how = WAYS[number % 2]
        code, _ = in_child(act, dsn, how, at)
        assert code != ENDED or at > words - 5, (how, at)  # the number of its words is not always quite the same
        until(lambda: conn.execute(ALONE).fetchone() == (0,))
        yield f"{how} at {at} of {words}"


def install(dsn: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as conn:
        schema.install(conn)


def test_an_install_that_is_broken_off_leaves_nothing(
    bare_dsn: str, watching: Connection, database: Connection
) -> None:
    watching.execute("CREATE EXTENSION vector")
    _, words = in_child(lambda: install(bare_dsn), bare_dsn)
    watching.execute("DROP SCHEMA pgembed CASCADE")
    for when in break_off(lambda: install(bare_dsn), watching, bare_dsn, words, 4):
        if watching.execute("SELECT to_regnamespace('pgembed')").fetchone() != (
            None,
        ):  # it was committed, and is whole
            assert facts(watching) == facts(database), when
    install(bare_dsn)
    assert facts(watching) == facts(database)


def test_an_upgrade_that_is_broken_off_changes_nothing(
    bare_dsn: str, watching: Connection, database_dsn: str, tmp_path: Path
) -> None:
    _, words = in_child(lambda: install(database_dsn), database_dsn)
    restore(bare_dsn, EARLIER[-1], tmp_path)
    rows = "SELECT * FROM pgembed.job_1, pgembed.change_2, product, paused"
    before, rows_before = facts(watching), watching.execute(rows).fetchall()
    versions: list[str] = []
    for when in break_off(lambda: install(bare_dsn), watching, bare_dsn, words, 6):
        ((version,),) = watching.execute("SELECT version_num FROM pgembed.schema_version").fetchall()
        versions.append(str(version))
        assert (facts(watching) == before) == (version == EARLIER[-1]), when
    assert versions == sorted(versions)
    assert versions[0] == EARLIER[-1]
    install(bare_dsn)
    assert watching.execute("SELECT version_num FROM pgembed.schema_version").fetchall() == [(schema.head(),)]
    assert watching.execute(rows).fetchall() == rows_before


# Embeddings in a file

FILE = """
[encoders.lite]
spec = "builtin:lite"

[embeddings.product.embedding]
encoder = "lite"
text = "{title}"
index = true

[embeddings.product.beside]
encoder = "lite"
text = "title"
storage = "side"
"""


@pytest.fixture(scope="module")
def ready(server_dsn: str, template: str) -> Iterator[str]:
    """The name of a template with a table in it."""
    with contextmanager(new_database)(server_dsn, template) as dsn:
        with psycopg.connect(dsn, autocommit=True) as conn:
            conn.execute("CREATE TABLE product (id int PRIMARY KEY, title text, price int, photo bytea)")
            conn.execute("INSERT INTO product VALUES (1, 'a dog')")
        yield str(conninfo_to_dict(dsn)["dbname"])


@contextmanager
def watched(server_dsn: str, template: str) -> Generator[tuple[str, Connection]]:
    """A database of that template: its connection string, and a connection that is left alone."""
    with (
        contextmanager(new_database)(server_dsn, template) as dsn,
        psycopg.connect(dsn, autocommit=True, application_name="the test") as conn,
    ):
        yield dsn, conn


def apply(dsn: str, path: Path) -> None:
    with pgembed.connect(dsn) as db:
        wanted = read(path)
        db.apply(wanted, db.differences(wanted))


def left_to_do(dsn: str, path: Path) -> list[str]:
    with pgembed.connect(dsn) as db:
        return [f"{one.action} {one.kind}" for one in db.differences(read(path))]


STANDING = """
SELECT array_agg(e.target || ' ' || (SELECT count(*) FROM pg_trigger WHERE tgname LIKE 'pgembed_' || e.id || '_%')
    ORDER BY e.id) FROM pgembed.embedding AS e
"""


def faults(conn: Connection) -> list[str]:
    """What doctor finds wrong, but for workers that are not connected."""
    return [one.subject for one in pgembed.connect(conn).doctor() if not one.ok and "no worker" not in one.finding]


def test_a_file_whose_application_is_broken_off_is_applied_again(server_dsn: str, ready: str, tmp_path: Path) -> None:
    path = tmp_path / "pgembed.toml"
    path.write_text(FILE)
    with contextmanager(new_database)(server_dsn, ready) as whole:
        _, words = in_child(lambda: apply(whole, path), whole)
    for number, at in enumerate(steps(words, 7)):
        with watched(server_dsn, ready) as (dsn, conn):
            in_child(lambda dsn=dsn: apply(dsn, path), dsn, WAYS[number % 2], at)
            until(lambda conn=conn: conn.execute(ALONE).fetchone() == (0,))
            ((standing,),) = conn.execute(STANDING).fetchall()
            assert standing in (None, ["embedding 2", "beside 4"])
            todo = ["add encoder", "add embedding", "add index", "add embedding"] if standing is None else ["add index"]
            assert left_to_do(dsn, path) in (todo, [])
            apply(dsn, path)
            assert left_to_do(dsn, path) == []
            assert faults(conn) == []


# A project's migrations

MIGRATION = """
def upgrade() -> None:
    op.add_encoder("lite", "builtin:lite")
    op.attach_embedding("product", "embedding", encoder="lite", text="{title}")
    op.create_vector_index("product", "embedding")

def downgrade() -> None:
    op.drop_vector_index("product", "embedding")
    op.detach_embedding("product", "embedding")
    op.remove_encoder("lite")
"""


@pytest.fixture
def project(tmp_path: Path, server_dsn: str) -> Iterator[Project]:
    """One with a migration that attaches and builds an index."""
    project = Project(tmp_path, server_dsn)
    project.models(PRODUCT)
    script: Any = command.revision(project.config, message="embedding")
    path = Path(script.path)
    path.write_text(path.read_text().split("def upgrade")[0] + MIGRATION)
    yield project
    sys.modules.pop("models", None)


def there(conn: Connection) -> tuple[object, ...]:
    """The embeddings with their triggers, the valid and the other vector indexes, and how many migrations ran."""
    ((standing,),) = conn.execute(STANDING).fetchall()
    indexes = (
        "SELECT coalesce(array_agg(indisvalid), '{}') FROM pg_index WHERE pg_get_indexdef(indexrelid) LIKE '%hnsw%'"
    )
    ((valid,),) = conn.execute(indexes.encode()).fetchall()
    ran = 0
    if conn.execute("SELECT to_regclass('alembic_version')").fetchone() != (None,):
        ran = len(conn.execute("SELECT * FROM alembic_version").fetchall())
    return standing, valid, ran


ATTACHED = ["embedding 2"]
NOTHING, ALL = (None, [], 0), (ATTACHED, [True], 1)


@pytest.mark.parametrize("way", ["up", "down"])
def test_a_migration_that_is_broken_off_is_run_again(way: str, project: Project, server_dsn: str, ready: str) -> None:
    """To build an index concurrently commits what was done before: that much may be there, and no more."""

    def act() -> None:
        if way == "up":
            project.upgrade()
        else:
            project.downgrade("base")

    def begin(dsn: str) -> None:
        project.config.attributes["url"] = url_of(dsn)
        if way == "down":
            project.upgrade()

    before, after = (NOTHING, ALL) if way == "up" else (ALL, NOTHING)
    with contextmanager(new_database)(server_dsn, ready) as whole:
        begin(whole)
        _, words = in_child(act, whole)
    for number, at in enumerate(steps(words, 7)):
        with watched(server_dsn, ready) as (dsn, conn):
            begin(dsn)
            in_child(act, dsn, WAYS[number % 2], at)
            until(lambda conn=conn: conn.execute(ALONE).fetchone() == (0,))
            assert there(conn) in (before, (ATTACHED, [], before[2]), (ATTACHED, [True], before[2]), after), at
            assert faults(conn) == []
            act()
            assert there(conn) == after, at


@pytest.mark.parametrize("how", WAYS)
def test_an_index_whose_building_is_broken_off_is_told_of_and_built_anew(
    how: str, project: Project, server_dsn: str, ready: str
) -> None:
    with watched(server_dsn, ready) as (dsn, conn), psycopg.connect(dsn, application_name="the test") as application:
        project.config.attributes["url"] = url_of(dsn)
        project.upgrade()
        conn.execute("DROP INDEX product_embedding_hnsw_1; DELETE FROM alembic_version")
        application.execute("UPDATE product SET price = 1")  # the build waits for the end of this transaction
        if (child := os.fork()) == 0:
            try:
                os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
                project.upgrade()
            finally:
                os._exit(0)
        until(lambda: conn.execute("SELECT 1 FROM pg_stat_progress_create_index WHERE lockers_total > 0").fetchone())
        if how == "killed":
            os.kill(child, signal.SIGKILL)
        else:
            conn.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_progress_create_index")
        os.waitpid(child, 0)
        application.rollback()
        until(lambda: conn.execute(ALONE).fetchone() == (0,))
        if how == "killed":  # the server goes on without its client
            assert there(conn) == (ATTACHED, [True], 0)
        else:
            assert there(conn) == (ATTACHED, [False], 0)
            assert faults(conn) == ["public.product.embedding index"]
        project.upgrade()
        assert there(conn) == ALL
        assert faults(conn) == []


def test_an_embedding_that_is_there_and_is_another_is_refused(project: Project, server_dsn: str, ready: str) -> None:
    with watched(server_dsn, ready) as (dsn, conn):
        project.config.attributes["url"] = url_of(dsn)
        conn.execute("SELECT pgembed.add_encoder('lite', 'builtin:lite')")
        conn.execute("""SELECT pgembed.attach('product', 'embedding', 'lite', '{"text": "{title}: {price}"}')""")
        with pytest.raises(DBAPIError, match="has a column 'embedding' already"):
            project.upgrade()
        assert there(conn) == (ATTACHED, [], 0)
