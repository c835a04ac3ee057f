"""Replication: a standby searches, takes no worker and is whole when it is promoted; a logical subscriber has no jobs
of its own, unless it is asked to."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psycopg
import pytest

import pgembed
from pgembed import Text
from pgembed.embedded import EmbeddedServer
from pgembed.encoders import load_encoder
from tests.conftest import new_database, new_template
from tests.fakes import Connection, until
from tests.faults import assert_kept

LOGGED = {"shared_buffers": "64MB", "wal_level": "logical", "autovacuum": False, "max_replication_slots": 20}


@pytest.fixture(params=["column", "side"])
def storage(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """One that the server's user may pass; pytest's own are closed to it."""
    with tempfile.TemporaryDirectory(prefix="pgembed-tests-") as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[EmbeddedServer]:
    with EmbeddedServer.start(folder / "primary", settings=LOGGED) as server:
        yield server


@pytest.fixture(scope="module")
def own_template(server: EmbeddedServer) -> Iterator[str]:
    yield from new_template(server.dsn())


@pytest.fixture
def dsn(server: EmbeddedServer, own_template: str) -> Iterator[str]:
    yield from new_database(server.dsn(), own_template)


@pytest.fixture
def other_dsn(server: EmbeddedServer, own_template: str) -> Iterator[str]:
    yield from new_database(server.dsn(), own_template)


def prepare(conn: Connection, storage: str, mode: str = "queue") -> None:
    """A table of three rows, attached."""
    conn.execute("SELECT pgembed.add_encoder('lite', 'builtin:lite')")
    conn.execute("CREATE TABLE product (id integer PRIMARY KEY, title text)")
    conn.execute(
        "SELECT pgembed.attach('product', 'embedding', 'lite', '{\"text\": \"title\"}', storage => %s, mode => %s)",
        [storage, mode],
    )


def assert_whole(conn: Connection, storage: str) -> None:
    lite = load_encoder("builtin:lite")
    assert_kept(conn, storage=storage, encode=lambda texts: np.asarray(lite.encode_text(list(texts))))


def standby_of(server: EmbeddedServer, folder: Path) -> EmbeddedServer:
    """A copy of the server that follows it."""
    folder.mkdir(parents=True)
    owner = server.data_dir.stat()
    subprocess.run(["chown", f"{owner.st_uid}:{owner.st_gid}", str(folder)], check=True)
    subprocess.run(
        [
            str(server.bin_dir / "pg_basebackup"),
            *("-D", str(folder / "data"), "-R", "-c", "fast", "-X", "stream", "-d", server.dsn()),
        ],
        check=True,
        capture_output=True,
        cwd="/",
        user=owner.st_uid,
        group=owner.st_gid,
        extra_groups=[],
    )
    for left in (folder / "data").glob(".s.PGSQL.*"):  # the primary's, which has its socket among its data
        left.unlink()
    return EmbeddedServer.start(folder / "data", settings=LOGGED)


@pytest.mark.parametrize(("storage", "mode"), [("column", "queue"), ("side", "instant")], indirect=["storage"])
def test_a_standby_searches_and_takes_over(
    server: EmbeddedServer, dsn: str, storage: str, mode: str, folder: Path
) -> None:
    with psycopg.connect(dsn, autocommit=True) as conn, pgembed.connect(dsn) as db:
        prepare(conn, storage, mode)
        conn.execute("INSERT INTO product VALUES (1, 'a red shoe'), (2, 'two dogs'), (3, 'a cat')")
        db.work(until_idle=True)
        with standby_of(server, folder / f"standby_{mode}") as standby:
            name = conn.info.dbname
            copy_dsn = standby.dsn(name)
            conn.execute("UPDATE product SET title = 'a blue boat' WHERE id = 3")
            conn.execute("SET synchronous_commit = on; INSERT INTO product VALUES (4, 'a green tree')")
            with psycopg.connect(copy_dsn, autocommit=True) as copy, pgembed.connect(copy_dsn) as there:
                until(lambda: copy.execute("SELECT count(*) FROM product").fetchone() == (4,))
                assert there.search("product", Text("red shoe"))[0].id == 1
                with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
                    there.work(until_idle=True)
                assert there.status()[0].failed == 0
                copy.execute("SELECT pg_promote()")
                until(lambda: copy.execute("SELECT pg_is_in_recovery()").fetchone() == (False,))
                copy.execute("UPDATE product SET title = 'three dogs' WHERE id = 2; DELETE FROM product WHERE id = 1")
                there.work(until_idle=True)
                assert_whole(copy, storage)


def follow(publisher: Connection, subscriber: Connection, tables: str) -> str:
    """Have one database of the server follow another; gives the subscription's name."""
    name = f"s_{subscriber.info.dbname}"
    publisher.execute(f"CREATE PUBLICATION p FOR TABLE {tables}".encode())
    publisher.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", [name])
    subscriber.execute(
        psycopg.sql.SQL("CREATE SUBSCRIPTION {} CONNECTION {} PUBLICATION p WITH (create_slot = false)").format(
            psycopg.sql.Identifier(name), psycopg.sql.Literal(publisher.info.dsn)
        )
    )
    return name


def caught_up(publisher: Connection, subscriber: Connection, query: str) -> None:
    until(lambda: publisher.execute(query.encode()).fetchall() == subscriber.execute(query.encode()).fetchall())


def test_a_subscriber_of_rows_with_vectors_has_no_jobs(dsn: str, other_dsn: str, storage: str) -> None:
    """What the publisher's workers wrote comes with the rows."""
    with psycopg.connect(dsn, autocommit=True) as conn, psycopg.connect(other_dsn, autocommit=True) as other:
        for database in (conn, other):
            prepare(database, storage)
        tables = "product" if storage == "column" else "product, product_embedding"
        name = follow(conn, other, tables)
        try:
            conn.execute("INSERT INTO product VALUES (1, 'a red shoe'), (2, 'two dogs'), (3, 'a cat')")
            conn.execute("UPDATE product SET title = 'a dog' WHERE id = 2")
            conn.execute("DELETE FROM product WHERE id = 3")
            with pgembed.connect(dsn) as db:
                db.work(until_idle=True)
            place = "product" if storage == "column" else "product_embedding"
            column = "embedding" if storage == "column" else "vector"
            caught_up(conn, other, f"SELECT id, {column}::text FROM {place} ORDER BY id")
            assert_whole(other, storage)
            with pgembed.connect(other_dsn) as there:
                assert there.search("product", Text("red shoe"))[0].id == 1
                assert there.work(until_idle=True).written == 0
            assert_whole(other, storage)
        finally:
            other.execute(f"DROP SUBSCRIPTION {name}".encode())


def test_a_subscriber_that_is_asked_to_makes_its_own_vectors(dsn: str, other_dsn: str, storage: str) -> None:
    """Rows that come are found by the sweep; triggers that are enabled always see what changes."""
    with psycopg.connect(dsn, autocommit=True) as conn, psycopg.connect(other_dsn, autocommit=True) as other:
        conn.execute("CREATE TABLE product (id integer PRIMARY KEY, title text)")
        prepare(other, storage)
        name = follow(conn, other, "product")
        try:
            with pgembed.connect(other_dsn) as there:
                there.work(until_idle=True)
                conn.execute("INSERT INTO product VALUES (1, 'a red shoe'), (2, 'two dogs'), (3, 'a cat')")
                rows = "SELECT id, title FROM product ORDER BY id"
                caught_up(conn, other, rows)
                assert other.execute("SELECT queued FROM pgembed.status").fetchone() == (0,)
                assert there.reconcile("product") == 3
                there.work(until_idle=True)
                assert_whole(other, storage)
                for (trigger,) in other.execute(
                    "SELECT quote_ident(tgname) FROM pg_trigger WHERE tgrelid = 'product'::regclass"
                    " AND tgfoid::regprocedure::text LIKE 'pgembed.%'"
                ).fetchall():
                    other.execute(f"ALTER TABLE product ENABLE ALWAYS TRIGGER {trigger}".encode())
                conn.execute("UPDATE product SET title = 'a blue boat' WHERE id = 2")
                conn.execute("UPDATE product SET id = 30 WHERE id = 3")
                conn.execute("DELETE FROM product WHERE id = 1")
                caught_up(conn, other, rows)
                until(lambda: other.execute("SELECT queued > 0 FROM pgembed.status").fetchone() == (True,))
                there.reconcile("product")  # a row that is deleted leaves a vector in a side table
                there.work(until_idle=True)
                assert_whole(other, storage)
        finally:
            other.execute(f"DROP SUBSCRIPTION {name}".encode())
