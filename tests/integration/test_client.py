"""The Python client: the same plans, synchronous and asynchronous, on a connection string, a connection or a pool."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import psycopg
import pytest
from psycopg.pq import TransactionStatus
from psycopg_pool import AsyncConnectionPool, ConnectionPool

import pgembed
from pgembed import Image, Text
from pgembed.connections import conninfo
from pgembed.errors import CatalogError, InvalidInput, InvalidQuery, MediaError, NotInstalled

PHOTOS = sorted((Path(__file__).parents[1] / "data/photos").glob("*.jpg"))


@pytest.fixture
def shop(database: psycopg.Connection, database_dsn: str) -> str:
    """A table of photographs, encoded."""
    database.execute("CREATE TABLE product (id int PRIMARY KEY, title text, price numeric, photo bytea)")
    for number, photo in enumerate(PHOTOS):
        database.execute(
            "INSERT INTO product VALUES (%s, %s, %s, %s)", [number, photo.stem, number * 10, photo.read_bytes()]
        )
    with pgembed.connect(database_dsn) as db:
        db.add_encoder("shop", "builtin:lite")
        db.attach("product", "embedding", encoder="shop", image="photo")
        db.work(until_idle=True)
    return database_dsn


def test_words_and_pictures_find_rows(shop: str) -> None:
    with pgembed.connect(shop) as db:
        assert db.search("product", Text("a panda"), limit=1)[0].title == "panda"
        by_picture = db.search("product", Image(PHOTOS[0]), limit=1)[0]
        assert by_picture.title == PHOTOS[0].stem
        assert by_picture.score == pytest.approx(1, abs=1e-5)
        few = db.search("product", Text("a bird") - 0.5 * Text("a hen"), where="price < %s", params=[30], limit=10)
        assert {row.title for row in few} == {photo.stem for photo in PHOTOS[:3]}


def test_the_same_rows_in_asyncio(shop: str) -> None:
    async def ask() -> list[str]:
        async with pgembed.connect_async(shop) as db:
            several = await asyncio.gather(
                *(db.search("product", Text("a panda") + 0.1 * Image(photo), limit=3) for photo in PHOTOS[:4])
            )
            filtered = await db.search("product", Text("a panda"), where="price >= %(low)s", params={"low": 0}, limit=3)
            (status,) = await db.status()
            assert status.ready == len(PHOTOS)
            assert (await db.work(until_idle=True)).written == 0
            assert all(rows[0].title for rows in several)
            return [row.title for row in filtered]

    with pgembed.connect(shop) as db:
        expected = [row.title for row in db.search("product", Text("a panda"), limit=3)]
    assert asyncio.run(ask()) == expected


def test_a_cancelled_asynchronous_worker_leaves(shop: str) -> None:
    async def cancel() -> None:
        async with pgembed.connect_async(shop) as db:
            task = asyncio.create_task(db.work())
            await asyncio.sleep(0.5)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asyncio.wait_for(task, 20)

    asyncio.run(cancel())


def test_connections_and_pools_of_the_caller_are_used_and_left_open(shop: str) -> None:
    with psycopg.connect(shop) as conn, pgembed.connect(conn) as db:
        conn.execute("INSERT INTO product (id, title) VALUES (1000, 'mine')")
        assert db.search("product", Text("a panda"), limit=1)[0].title == "panda"
        db.close()
        conn.rollback()
        assert conn.execute("SELECT 1").fetchone() == (1,)
    with ConnectionPool(shop, min_size=1) as pool:
        with pgembed.connect(pool) as db:
            assert db.search("product", Text("a panda"), limit=1)[0].title == "panda"
        with pool.connection() as conn:
            assert conn.execute("SELECT 1").fetchone() == (1,)

    async def with_pool() -> str:
        async with AsyncConnectionPool(shop, min_size=1, open=False) as pool, pgembed.connect_async(pool) as db:
            return (await db.search("product", Text("a panda"), limit=1))[0].title

    assert asyncio.run(with_pool()) == "panda"


def test_the_settings_of_the_callers_transaction_are_as_they_were_after_a_filtered_search(shop: str) -> None:
    with psycopg.connect(shop) as conn, pgembed.connect(conn) as db:
        conn.execute("SELECT '[1]'::vector; SET hnsw.ef_search = 77")
        db.search("product", Text("a panda"), where="price < 50", limit=60)
        assert conn.execute("SHOW hnsw.ef_search").fetchone() == ("77",)
        assert conn.execute("SHOW hnsw.iterative_scan").fetchone() == ("off",)


def test_a_compiled_query_runs_on_anybodys_connection(shop: str, database: psycopg.Connection) -> None:
    with pgembed.connect(shop) as db:
        statement = db.query("product").near(Text("a panda")).where("price < %s", 1000).limit(3).compile()
        expected = [row.title for row in db.search("product", Text("a panda"), where="price < 1000", limit=3)]
    cursor = database.execute(statement.text, statement.params)
    assert cursor.description is not None
    title = [column.name for column in cursor.description].index("title")
    assert [row[title] for row in cursor.fetchall()] == expected


def test_vectors_are_given_and_taken(shop: str, database: psycopg.Connection) -> None:
    text = database.execute("SELECT embedding::text FROM product WHERE title = 'panda'").fetchone()
    assert text is not None
    vector = pgembed.Vector(np.fromstring(str(text[0]).strip("[]"), sep=",", dtype=np.float32))
    with pgembed.connect(shop) as db:
        assert db.search("product", vector, limit=1)[0].title == "panda"
        (row,) = db.search("product", vector, limit=1, wide=True)
        assert isinstance(row.photo, bytes)


def test_an_index_is_built_on_the_callers_connection_whatever_its_mode(shop: str) -> None:
    with psycopg.connect(shop) as conn:
        db = pgembed.connect(conn)
        assert db.status("product")[0].ready == len(PHOTOS)
        with pytest.raises(InvalidInput, match="has a transaction open"):
            db.build_index("product")
        conn.commit()
        conn.execute("SET lock_timeout = '10s'")
        conn.commit()
        db.build_index("product")
        assert conn.info.transaction_status == TransactionStatus.IDLE
        built = "SELECT indisvalid FROM pg_index WHERE indrelid = 'product'::regclass AND NOT indisprimary"
        assert conn.execute(built).fetchall() == [(True,)]


def test_errors_are_pgembeds_own(shop: str, bare_dsn: str) -> None:
    with pgembed.connect(shop) as db:
        with pytest.raises(InvalidQuery, match="prise"):
            db.search("product", Text("a"), where="prise < 3")
        with pytest.raises(CatalogError, match="has no embedding named 'other'"):
            db.search("product", Text("a panda"), embedding="other")
        with pytest.raises(MediaError, match="nowhere"):
            db.search("product", Image("/nowhere.jpg"))
        with pytest.raises(InvalidInput, match="no input"):
            db.attach("product", "second", encoder="shop")
        with pytest.raises(CatalogError, match="already"):
            db.attach("product", "embedding", encoder="shop", image="photo")
    with pgembed.connect(bare_dsn) as db, pytest.raises(NotInstalled, match="not installed"):
        db.status()


def test_the_address_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgres://somebody@host/other")
    assert conninfo(None) == "postgresql://somebody@host/other"
    monkeypatch.setenv("PGEMBED_DSN", "postgresql+psycopg://somebody@host/mine")
    assert conninfo(None) == "postgresql://somebody@host/mine"
    with pytest.raises(InvalidInput) as caught:
        conninfo("postgresql://user:secret@host/x?no=such")
    assert "secret" not in str(caught.value)


def test_a_later_schema_may_have_more_columns(database: psycopg.Connection, database_dsn: str) -> None:
    """As while a database is upgraded under workers and clients that are not yet."""
    with pgembed.connect(database_dsn) as db:
        db.add_encoder("lite", "builtin:lite")
        database.execute(
            "CREATE TABLE later (id integer PRIMARY KEY, title text); INSERT INTO later VALUES (1, 'a dog')"
        )
        db.attach("later", "embedding", encoder="lite", text="title")
        database.execute("ALTER TABLE pgembed.encoder ADD COLUMN later integer")
        for view in ("_work", "status", "failures", "failure_reasons", "cuts"):
            database.execute(f"ALTER VIEW pgembed.{view} RENAME TO {view}_before".encode())
            database.execute(f"CREATE VIEW pgembed.{view} AS SELECT *, 1 AS later FROM pgembed.{view}_before".encode())
        assert db.work(until_idle=True).written == 1
        assert db.verify("later").ok
        assert [row.ready for row in db.status()] == [1]
        assert [row.name for row in db.encoders()] == ["lite"]
        assert (db.failures(), db.failure_reasons(), db.cuts()) == ([], [], [])
        assert db.search("later", pgembed.Text("a dog"))[0].id == 1
