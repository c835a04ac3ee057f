"""Install, again and at once with another; what a failed one leaves, and what uninstall leaves: nothing."""

from __future__ import annotations

import threading

import psycopg
import pytest
from alembic.config import Config
from alembic.script import ScriptDirectory
from psycopg import Connection

import pgembed
from pgembed import schema
from pgembed.errors import CatalogError

OBJECTS = """
SELECT 'function', p.oid::regprocedure::text, md5(p.prosrc || coalesce(p.prosqlbody::text, '') || p.proacl::text)
FROM pg_proc AS p WHERE p.pronamespace = to_regnamespace('pgembed') AND p.prokind <> 'a'
UNION ALL
SELECT 'column', attrelid::regclass || '.' || attname, format_type(atttypid, atttypmod) || attnotnull
FROM pg_attribute WHERE attnum > 0
    AND attrelid IN (SELECT oid FROM pg_class WHERE relnamespace = to_regnamespace('pgembed') AND relkind IN ('r', 'v'))
UNION ALL
SELECT 'constraint', conrelid::regclass || '.' || conname, pg_get_constraintdef(oid)
FROM pg_constraint WHERE connamespace = to_regnamespace('pgembed')
"""
PRODUCT = """
CREATE TABLE product (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, title text, price numeric DEFAULT 1);
CREATE INDEX ON product (price);
INSERT INTO product (title) VALUES ('a red apple'), ('a dog'), (NULL)
"""
TABLE = """
SELECT attname, format_type(atttypid, atttypmod), attnotnull, attnum FROM pg_attribute
WHERE attrelid = 'product'::regclass AND attnum > 0 AND NOT attisdropped
UNION ALL SELECT tgname, pg_get_triggerdef(oid), tgisinternal, 0 FROM pg_trigger WHERE tgrelid = 'product'::regclass
UNION ALL SELECT indexrelid::regclass::text, pg_get_indexdef(indexrelid), indisvalid, 0 FROM pg_index
    WHERE indrelid = 'product'::regclass
ORDER BY 4, 1
"""


def facts(conn: Connection, query: str = OBJECTS) -> list[tuple[object, ...]]:
    return sorted(conn.execute(query).fetchall(), key=repr)


def test_migrations_are_one_line_without_gaps() -> None:
    config = Config()
    config.set_main_option("script_location", str(schema._directory("migrations")))
    config.set_main_option("path_separator", "os")
    revisions = [script.revision for script in ScriptDirectory.from_config(config).walk_revisions()]
    assert sorted(revisions) == [f"{number:04d}" for number in range(1, len(revisions) + 1)]


def test_second_install_changes_nothing(database: Connection) -> None:
    db = pgembed.connect(database)
    db.add_encoder("lite", "builtin:lite")
    database.execute(PRODUCT)
    db.attach("product", "embedding", encoder="lite", text="{title}")
    before = facts(database), facts(database, TABLE), facts(database, "SELECT * FROM pgembed.embedding")
    assert before[0]
    schema.install(database)
    assert (facts(database), facts(database, TABLE), facts(database, "SELECT * FROM pgembed.embedding")) == before


def test_two_installs_at_once_both_succeed(bare_dsn: str) -> None:
    with psycopg.connect(bare_dsn, autocommit=True) as conn:
        conn.execute("CREATE EXTENSION vector")
    failures: list[Exception] = []

    def install() -> None:
        try:
            with psycopg.connect(bare_dsn, autocommit=True) as conn:
                schema.install(conn)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=install) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_failed_install_leaves_nothing(bare_database: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ConnectionAbortedError

    monkeypatch.setattr(schema, "_load_static_text", fail)
    with pytest.raises(ConnectionAbortedError):
        schema.install(bare_database)
    query = "SELECT to_regnamespace('pgembed'), (SELECT count(*) FROM pg_extension WHERE extname = 'vector')"
    assert bare_database.execute(query).fetchone() == (None, 0)


def test_vector_may_live_in_any_schema(bare_database: Connection) -> None:
    bare_database.execute('CREATE SCHEMA "Odd name"; CREATE EXTENSION vector SCHEMA "Odd name"')
    schema.install(bare_database)
    db = pgembed.connect(bare_database)
    db.add_encoder("lite", "builtin:lite")
    bare_database.execute(PRODUCT)
    db.attach("product", "embedding", encoder="lite", text="{title}")
    db.work(until_idle=True)
    assert db.search("product", pgembed.Text("puppy"), limit=1)[0].title == "a dog"


def test_uninstall_refuses_while_embeddings_are_attached(database: Connection) -> None:
    db = pgembed.connect(database)
    db.add_encoder("lite", "builtin:lite")
    database.execute(PRODUCT)
    db.attach("product", "embedding", encoder="lite", text="{title}")
    with pytest.raises((CatalogError, psycopg.Error), match="product"):
        schema.uninstall(database)
    assert database.execute("SELECT count(*) FROM pgembed.embedding").fetchone() == (1,)


def test_uninstall_puts_the_users_table_back_as_it_was(database: Connection) -> None:
    database.execute(PRODUCT)
    before = facts(database, TABLE), facts(database, "SELECT * FROM product")
    db = pgembed.connect(database)
    db.add_encoder("lite", "builtin:lite")
    db.attach("product", "embedding", encoder="lite", text="{title}")
    db.work(until_idle=True)
    assert facts(database, TABLE) != before[0]
    schema.uninstall(database, detach_all=True)
    assert (facts(database, TABLE), facts(database, "SELECT * FROM product")) == before
    assert database.execute("SELECT to_regnamespace('pgembed')").fetchone() == (None,)
