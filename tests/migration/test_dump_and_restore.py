"""pg_dump and pg_restore of a database with pgembed in it, by the programs of a full server."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest
from psycopg import Connection

import pgembed
from pgembed import Text
from tests.full_server import FullServer

pytestmark = pytest.mark.full_server

SEARCH = """
SELECT (item).title FROM pgembed.search(NULL::product, (SELECT pgembed.encode_text('lite', 'puppy')), k => 1)
"""


@pytest.fixture(params=["column", "side"])
def restored(
    request: pytest.FixtureRequest, full_server: FullServer, full_database_dsn: str, full_bare_dsn: str
) -> Iterator[Connection]:
    """A restored database with an attached table: two rows with vectors, and one that waits in the queue."""
    with psycopg.connect(full_database_dsn, autocommit=True) as conn:
        conn.execute("CREATE TABLE product (id integer PRIMARY KEY, title text)")
        conn.execute("INSERT INTO product VALUES (1, 'a red apple'), (2, 'a dog in the snow')")
        db = pgembed.connect(conn)
        db.add_encoder("lite", "builtin:lite")
        db.attach("product", "embedding", encoder="lite", text="{title}", storage=request.param)
        db.work(until_idle=True)
        conn.execute("INSERT INTO product VALUES (3, 'a wooden chair')")
    dump = full_server.run("pg_dump", "-Fc", full_database_dsn).stdout
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
