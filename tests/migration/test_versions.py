"""From each earlier version of the schema to this one, with rows, queues, failures and open transactions in place."""

from __future__ import annotations

import asyncio
import lzma
import os
import re
from collections.abc import Callable, Sequence
from contextlib import contextmanager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo
from psycopg_pool import AsyncConnectionPool, ConnectionPool
from sqlalchemy import MetaData, Table, create_engine, select, text

import pgembed
from pgembed import schema
from pgembed.errors import CatalogError, NotInstalled
from tests.conftest import new_database
from tests.facts import facts_of_schema, facts_of_table
from tests.fakes import Connection, FakeEncoder, use_encoders, vector_of
from tests.integration.test_sqlalchemy import url_of
from tests.migration.keep_version import KEPT, make
from tests.psql import psql

EARLIER = [f"{number:04d}" for number in range(1, int(schema.head()))]
_OID = re.compile(r"(?<![0-9])[0-9]{5}(?![0-9])")  # of a table, in the functions that are made for it


def restore(dsn: str, version: str, folder: Path) -> None:
    """Make what ``keep_version`` kept of a version."""
    script = folder / "kept.sql"
    script.write_bytes(lzma.decompress((KEPT / f"{version}.sql.xz").read_bytes()))
    done = psql(dsn, script, "-v", "ON_ERROR_STOP=1")
    assert done.returncode == 0, done.stderr


def facts(conn: Connection) -> dict[str, list[str]]:
    """What there is in the schema and of the tables with embeddings; columns stand in the order of their history."""
    tables = conn.execute("SELECT relation::regclass::text FROM pgembed.embedding ORDER BY id").fetchall()
    found = facts_of_schema(conn)
    for (table,) in tables:
        found |= {f"{name} of {table}": rows for name, rows in facts_of_table(conn, table).items()}
    for name in ("tokens", "static text", "shipped"):  # the built-in encoder's, which upgrades leave and add to
        del found[name]
    found["columns"] = [row for row in found["columns"] if "pg.dropped" not in row[1]]
    return {name: sorted(_OID.sub("OID", repr(row)) for row in rows) for name, rows in found.items()}


@pytest.fixture(scope="module")
def fresh(server_dsn: str, template: str) -> Callable[[Sequence[str]], dict[str, list[str]]]:
    """The facts of a database in which this version has made tables and attached to them."""

    @cache
    def facts_of(tables: tuple[str, ...]) -> dict[str, list[str]]:
        with (
            contextmanager(new_database)(server_dsn, template) as dsn,
            psycopg.connect(dsn, autocommit=True) as conn,
        ):
            make(conn)
            for table in {"beside", "instant"} - set(tables):  # which came later
                conn.execute(f"SELECT pgembed.detach('{table}'); DROP TABLE {table}".encode())
            return facts(conn)

    return lambda tables: facts_of(tuple(tables))


def test_every_version_before_this_one_is_kept() -> None:
    """Whoever adds a migration runs ``python -m tests.migration.keep_version`` before."""
    assert [path.name for path in sorted(KEPT.glob("*"))] == [f"{version}.sql.xz" for version in EARLIER]


@pytest.mark.parametrize("version", EARLIER)
def test_an_earlier_version_becomes_this_one_and_nothing_is_lost_or_done_again(
    version: str,
    bare_dsn: str,
    bare_database: Connection,
    fresh: Callable[[Sequence[str]], dict[str, list[str]]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    restore(bare_dsn, version, tmp_path)
    rows = "SELECT id, title, embedding::text FROM product ORDER BY id"
    before = bare_database.execute(rows).fetchall()
    tables = [
        table for (table,) in bare_database.execute("SELECT table_name FROM pgembed.embedding ORDER BY id").fetchall()
    ]

    with pgembed.connect(bare_dsn) as early, pytest.raises(NotInstalled, match=rf"schema {version}, .*pgembed install"):
        early.work(until_idle=True)

    assert schema.install(bare_database).schema == schema.head()

    assert bare_database.execute(rows).fetchall() == before
    assert facts(bare_database) == fresh(tables)

    encoder = FakeEncoder()
    use_encoders(monkeypatch, {encoder.spec: encoder})
    db = pgembed.connect(bare_dsn)
    assert [(row.key, row.error) for row in db.failures()] == [(["4"], "bad is refused")]
    db.work(until_idle=True)
    waited = {"product": ["a boat", "a cat", "a frog"], "filling": ["a boat", "a frog", "bad"], "beside": ["a cat"]}
    assert sorted(encoder.seen) == sorted(title for table in tables for title in waited.get(table, []))
    assert bare_database.execute(rows).fetchall()[0] == before[0]

    db.resume("paused")
    assert db.work(until_idle=True).written == 1
    assert [finding for finding in db.doctor() if not finding.ok and "failures" not in finding.subject] == []

    cached = bare_database.execute("SELECT pgembed.encode_text('fake', 'a shoe')::real[]").fetchone()
    assert cached == (pytest.approx(vector_of("a shoe").tolist()),)
    bare_database.execute("ALTER TABLE product RENAME id TO number")  # which the first versions' triggers do not bear
    bare_database.execute("INSERT INTO product VALUES (7, 'a ship')")
    db.work(until_idle=True)
    assert encoder.seen.count("a ship") == 1
    if "instant" in tables:
        bare_database.execute("INSERT INTO instant VALUES (7, 'dog')")
        own = "SELECT embedding <-> pgembed.encode_text('lite', 'dog') < 1e-5 FROM instant WHERE id = 7"
        assert bare_database.execute(own).fetchone() == (True,)
    db.close()


def test_functions_of_triggers_are_made_anew_while_an_application_writes(
    database: Connection, database_dsn: str
) -> None:
    """Only a migration that alters the logs waits for transactions, and for two seconds."""
    make(database)
    body = "SELECT prosrc FROM pg_proc WHERE oid = 'pgembed.append_row_4'::regproc"
    present = database.execute(body).fetchone()
    database.execute(
        "CREATE OR REPLACE FUNCTION pgembed.append_row_4() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER"
        " AS 'BEGIN RETURN NULL; END'"
    )
    with psycopg.connect(database_dsn) as application:
        application.execute("INSERT INTO beside VALUES (7, 'a ship')")
        database.execute("SET lock_timeout = '1s'")
        schema.install(database)
        assert database.execute(body).fetchone() == present
        application.execute("UPDATE beside SET title = 'a boat' WHERE id = 1")
    assert database.execute("SELECT key_1 FROM pgembed.change_4 ORDER BY seq DESC LIMIT 1").fetchone() == (1,)


@pytest.mark.parametrize(
    ("version", "remedy"), [("0001", "pgembed install"), ("9999", "pip install --upgrade pgembed-multimodal")]
)
def test_another_version_is_told_when_a_client_connects(
    version: str, remedy: str, database: Connection, database_dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    with pgembed.connect(database_dsn) as db:
        db.status()
    assert caplog.messages == []
    database.execute("UPDATE pgembed.schema_version SET version_num = %s", [version])
    with pgembed.connect(database_dsn) as db:
        db.status()
        db.status()
    with pytest.raises(NotInstalled) if version == "0001" else nullcontext(), pgembed.connect(database_dsn) as db:
        db.work(until_idle=True)

    async def look() -> None:
        async with pgembed.connect_async(database_dsn) as there:
            await there.status()

    asyncio.run(look())
    told = f"is of another version: schema {version}, functions {schema.library_version()}; the library has schema"
    assert [told in message and remedy in message for message in caplog.messages] == [True] * 2


def counted(conn: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """What is sent over a connection, from now on."""
    sent: list[object] = []
    execute = psycopg.Cursor.execute

    def noting(cursor: psycopg.Cursor[Any], query: Any, *more: Any, **options: Any) -> Any:  # noqa: ANN401
        if cursor.connection is conn:
            sent.append(query)
        return execute(cursor, query, *more, **options)

    monkeypatch.setattr(psycopg.Cursor, "execute", noting)
    return sent


@pytest.mark.parametrize("autocommit", [True, False])
def test_another_version_is_told_once_of_a_connection_of_the_callers(
    autocommit: bool,
    database: Connection,
    database_dsn: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    database.execute("CREATE TABLE product (id int PRIMARY KEY, title text)")
    database.execute("UPDATE pgembed.schema_version SET version_num = '9999'")
    with psycopg.connect(database_dsn, autocommit=autocommit) as conn:
        pgembed.connect(conn).add_encoder("lite", "builtin:lite")
        assert ["pip install --upgrade" in message for message in caplog.messages] == [True]
        conn.rollback()
        is_there = database.execute("SELECT 1 FROM pgembed.encoder").fetchone() is not None
        assert is_there == autocommit  # the look itself has committed nothing, and left nothing open
        sent = counted(conn, monkeypatch)
        for _ in range(2):
            pgembed.connect(conn).encoders()
        assert len(sent) == 2
        assert not any("schema_version" in str(query) for query in sent)
    assert len(caplog.messages) == 1


def test_another_version_is_told_once_of_a_pool_and_of_an_engine(
    database: Connection, database_dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    database.execute("CREATE TABLE product (id int PRIMARY KEY, title text)")
    with pgembed.connect(database) as db:
        db.add_encoder("lite", "builtin:lite")
        db.attach("product", "embedding", encoder="lite", text="title")
    database.execute("UPDATE pgembed.schema_version SET version_num = '9999'")
    assert caplog.messages == []
    with ConnectionPool(database_dsn, min_size=1, open=True) as pool:
        for _ in range(2):
            pgembed.connect(pool).status()
    assert len(caplog.messages) == 1

    async def look() -> None:
        async with AsyncConnectionPool(database_dsn, min_size=1, open=False) as pool:
            for _ in range(2):
                await pgembed.connect_async(pool).status()

    asyncio.run(look())
    assert len(caplog.messages) == 2
    engine = create_engine(url_of(database_dsn))
    table = Table("product", MetaData(), autoload_with=engine)
    for words in ("a dog", "a cat"):
        with engine.begin() as connection:
            connection.execute(select(table.c.id).order_by(table.c.embedding.distance(pgembed.Text(words)))).all()
            assert connection.scalar(text("SELECT 1")) == 1
    engine.dispose()
    assert len(caplog.messages) == 3
    assert all("the library has schema" in message for message in caplog.messages)


def test_a_look_at_the_version_spoils_no_transaction_of_the_callers(
    database: Connection, database_dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    database.execute("UPDATE pgembed.schema_version SET version_num = '9999'")
    with psycopg.connect(database_dsn) as conn:
        conn.execute("CREATE TABLE mine (id int)")
        assert pgembed.connect(conn).encoders() == []
        conn.execute("INSERT INTO mine VALUES (1)")
        conn.commit()
        assert conn.execute("SELECT id FROM mine").fetchall() == [(1,)]
    assert len(caplog.messages) == 1


def test_a_role_that_may_not_read_the_version_is_told_nothing(
    database: Connection, database_dsn: str, server_dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    database.execute("UPDATE pgembed.schema_version SET version_num = '9999'")
    role = f"pgembed_reads_little_{os.getpid()}"
    with psycopg.connect(server_dsn, autocommit=True) as admin:
        admin.execute(f"CREATE ROLE {role} LOGIN".encode())
        try:
            with (
                pgembed.connect(make_conninfo(database_dsn, user=role)) as db,
                pytest.raises(CatalogError, match="permission denied"),
            ):
                db.status()
        finally:
            admin.execute(f"DROP ROLE {role}".encode())
    assert caplog.messages == []
