"""pg_dump and pg_restore of a database with pgembed in it, by the programs of a full server."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest
from numpy.typing import NDArray

import pgembed
from pgembed import Text
from pgembed.encoders import load_encoder
from pgembed.errors import CatalogError
from tests.conftest import new_database
from tests.faults import assert_kept
from tests.full_server import FullServer

Connection = psycopg.Connection[tuple[Any, ...]]
pytestmark = pytest.mark.full_server

SEARCH = """
SELECT (item).title FROM pgembed.search(NULL::product, (SELECT pgembed.encode_text('lite', 'puppy')), k => 1)
"""


@pytest.fixture(scope="module", params=["column", "side"])
def storage(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def dump(full_server: FullServer, full_server_dsn: str, full_template: str, storage: str) -> bytes:
    """The dump of a database with an attached table: two rows with vectors, and one that waits in the queue."""
    with contextmanager(new_database)(full_server_dsn, full_template) as dsn:
        with psycopg.connect(dsn, autocommit=True) as conn:
            conn.execute(
                "CREATE TABLE product (gone text, id integer PRIMARY KEY, title text, note text DEFAULT 'a car')"
            )
            conn.execute("ALTER TABLE product DROP COLUMN gone")  # restored, the note has the number that the title had
            conn.execute("INSERT INTO product VALUES (1, 'a red apple'), (2, 'a dog in the snow')")
            db = pgembed.connect(conn)
            db.add_encoder("lite", "builtin:lite")
            db.attach("product", "embedding", encoder="lite", text="{title}", storage=storage)
            db.work(until_idle=True)
            db.learn_view("fruit", table="product", these="id = 1", those="id = 2")
            (statement,) = conn.execute("SELECT pgembed.neutral_index_sql('product', 'fruit')").fetchall()
            conn.execute(statement[0].encode())
            conn.execute("INSERT INTO product VALUES (3, 'a wooden chair')")
        return full_server.run("pg_dump", "-Fc", "-Z1", dsn).stdout


@pytest.fixture
def restored(full_server: FullServer, full_bare_dsn: str, dump: bytes) -> Iterator[Connection]:
    """The whole of it, restored."""
    full_server.run("pg_restore", "--exit-on-error", "-d", full_bare_dsn, input=dump)
    with psycopg.connect(full_bare_dsn, autocommit=True) as conn:
        yield conn


def test_restored_database_is_searched_and_its_queue_goes_on(restored: Connection) -> None:
    assert restored.execute(SEARCH).fetchone() == ("a dog in the snow",)
    restored.execute("UPDATE product SET title = 'a puppy' WHERE id = 1")
    assert restored.execute("SELECT key_1 FROM pgembed.change_1 ORDER BY seq").fetchall() == [(3,), (1,)]


def test_restored_database_is_kept_true(restored: Connection) -> None:
    db = pgembed.connect(restored)
    restored.execute("UPDATE product SET title = 'a puppy' WHERE id = 1")
    db.work(until_idle=True)
    assert restored.execute(SEARCH).fetchone() == ("a puppy",)
    assert db.search("product", Text("wooden furniture"), limit=1)[0].id == 3


def test_restored_views_and_their_indexes_serve(restored: Connection) -> None:
    db = pgembed.connect(restored)
    (view,) = db.views()
    assert (view.name, view.encoder, view.directions, view.learnt_from["rows"]) == ("fruit", "lite", 1, [1, 1])
    index = "SELECT pg_get_indexdef(indexrelid) FROM pg_index WHERE pg_get_indexdef(indexrelid) LIKE '%neutralize%'"
    assert len(restored.execute(index.encode()).fetchall()) == 1
    neutral = SEARCH.replace("pgembed.search(", "pgembed.search_neutral(").replace(", k", ", 'fruit', k")
    assert restored.execute(neutral.encode()).fetchone() is not None
    db.work(until_idle=True)  # which finds the tables again
    assert {row.id for row in db.search("product", Text("a dog"), neutral="fruit", limit=9)} == {1, 2, 3}


# Without triggers


def lite(texts: Sequence[str]) -> NDArray[np.float32]:
    return load_encoder("builtin:lite").encode_text(list(texts))


def restore_without_triggers(server: FullServer, dsn: str, dump: bytes) -> str:
    """Restore tables and rows, then keys and indexes; gives the statements of the triggers that were left out."""
    server.run("pg_restore", "--exit-on-error", "--section=pre-data", "--section=data", "-d", dsn, input=dump)
    rest = server.run("pg_restore", "--section=post-data", "-f", "-", input=dump).stdout.decode()
    a_trigger = re.compile(r"^CREATE TRIGGER .*?\(\);$", re.DOTALL | re.MULTILINE)
    server.run("psql", "-X", "-v", "ON_ERROR_STOP=1", "-d", dsn, input=a_trigger.sub("", rest).encode())
    return "\n".join(a_trigger.findall(rest))


def wrong(db: pgembed.Pgembed) -> list[tuple[str, str]]:
    """What doctor finds wrong, but for the workers that are not connected."""
    return [(one.finding, str(one.remedy)) for one in db.doctor() if not one.ok and "no worker" not in one.finding]


def test_a_database_that_was_restored_without_triggers_is_put_right_by_the_command_that_doctor_names(
    full_server: FullServer, full_bare_dsn: str, dump: bytes, storage: str
) -> None:
    triggers = restore_without_triggers(full_server, full_bare_dsn, dump)
    assert triggers.count("CREATE TRIGGER pgembed_1_") == (2 if storage == "column" else 4)
    with psycopg.connect(full_bare_dsn, autocommit=True) as conn:
        db = pgembed.connect(conn)
        conn.execute("UPDATE product SET title = 'a puppy' WHERE id = 1")
        conn.execute("DELETE FROM product WHERE id = 2")
        conn.execute("INSERT INTO product VALUES (4, 'a boat')")
        ((finding, remedy),) = wrong(db)
        assert finding == "The table is gone."  # that with the number of the old database
        (command,) = re.findall(r"SELECT pgembed\.sync\('[^']+'\);", remedy)
        assert conn.execute(command.encode()).fetchone() == (1,)
        db.work(until_idle=True)
        assert_kept(conn, storage=storage, encode=lite)
        assert wrong(db) == []
        assert dict(conn.execute("SELECT id, title FROM product").fetchall()) == {
            1: "a puppy", 3: "a wooden chair", 4: "a boat",
        }  # fmt: skip
        conn.execute("UPDATE product SET title = 'a dog', id = 5 WHERE id = 1")
        conn.execute("DELETE FROM product WHERE id = 3")
        assert conn.execute("SELECT key_1 FROM pgembed.change_1 ORDER BY seq").fetchall() == [(5,)]
        db.work(until_idle=True)
        assert_kept(conn, storage=storage, encode=lite)


def test_a_restore_that_ended_after_the_rows_goes_on_with_its_last_section(
    full_server: FullServer, full_bare_dsn: str, dump: bytes, storage: str
) -> None:
    """Before that no table has its key, pgembed's own neither, and sync refuses; workers do nothing."""
    restore = ("pg_restore", "--exit-on-error", "-d", full_bare_dsn)
    full_server.run(*restore, "--section=pre-data", "--section=data", input=dump)
    with psycopg.connect(full_bare_dsn, autocommit=True) as conn:
        db = pgembed.connect(conn)
        ((finding, remedy),) = wrong(db)
        assert "ended before its last section" in finding
        assert "pg_restore --section=post-data" in remedy
        with pytest.raises(CatalogError, match=r"product has no primary key"):
            db.sync("product")
        assert db.work(until_idle=True).written == 0
        assert conn.execute("SELECT count(*) FROM product").fetchone() == (3,)
    full_server.run(*restore, "--section=post-data", input=dump)
    with psycopg.connect(full_bare_dsn, autocommit=True) as conn:
        db = pgembed.connect(conn)
        conn.execute("UPDATE product SET title = 'a puppy' WHERE id = 1")
        db.work(until_idle=True)
        assert_kept(conn, storage=storage, encode=lite)
        assert wrong(db) == []


# Inputs side by side


@pytest.fixture(scope="module")
def dump_of_parts(full_server: FullServer, full_server_dsn: str, full_template: str, storage: str) -> bytes:
    """The dump of a table whose texts and pictures stand side by side: one row has both, one no picture."""
    photo = Path(__file__).parents[1] / "data/photos/panda.jpg"
    with contextmanager(new_database)(full_server_dsn, full_template) as dsn:
        with psycopg.connect(dsn, autocommit=True) as conn:
            conn.execute("CREATE TABLE product (id integer PRIMARY KEY, title text, photo bytea)")
            conn.execute("INSERT INTO product VALUES (1, 'a boat', %s), (2, 'a panda', NULL)", [photo.read_bytes()])
            db = pgembed.connect(conn)
            db.add_encoder("lite", "builtin:lite")
            db.attach(
                "product", "embedding", encoder="lite", fusion="concat", storage=storage,
                text={"template": "{title}", "weight": 1}, image={"column": "photo", "weight": 3},
            )  # fmt: skip
            db.work(until_idle=True)
        return full_server.run("pg_dump", "-Fc", "-Z1", dsn).stdout


def test_inputs_side_by_side_are_searched_and_kept_true_after_a_restore(
    full_server: FullServer, full_bare_dsn: str, dump_of_parts: bytes
) -> None:
    full_server.run("pg_restore", "--exit-on-error", "-d", full_bare_dsn, input=dump_of_parts)
    by_one = """
        SELECT (item).id FROM pgembed.search(NULL::product, (SELECT pgembed.padded('product',
            pgembed.encode_text('lite', 'a panda'), %s)), k => 1)
    """
    unweighted = (
        "SELECT (item).id FROM pgembed.search(NULL::product, (SELECT pgembed.encode_text('lite', 'a panda')), k => 1)"
    )
    with psycopg.connect(full_bare_dsn, autocommit=True) as conn:
        db = pgembed.connect(conn)
        assert conn.execute(unweighted).fetchone() is not None  # before anything looked the table up by its name
        conn.execute("SELECT pgembed.sync()")
        for weights, row in (('{"text": 1}', 2), ('{"image": 1}', 1)):
            assert conn.execute(by_one, [weights]).fetchone() == (row,)
        assert [row.id for row in db.search("product", Text("a panda"), weights={"image": 1})] == [1, 2]
        conn.execute("UPDATE product SET title = 'a panda' WHERE id = 1")
        db.work(until_idle=True)
        assert db.verify("product", sample=None).ok
        assert [row.id for row in db.search("product", Text("a panda"))] == [1, 2]
        assert wrong(db) == []
