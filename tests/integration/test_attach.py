"""Attach and detach: what is refused, which keys and names work, and that the table is left as it was."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from tests.facts import facts_of_table
from tests.fakes import Connection, Table

SHOP = "SELECT pgembed.add_encoder('shop', 'builtin:lite')"
TEXT = '{"text": "title"}'


@pytest.fixture
def shop(database: Connection) -> Connection:
    """A database with tables, a view and encoders, to attach to or not."""
    database.execute(SHOP)
    database.execute(
        """
        SELECT pgembed.add_encoder('words', 'open_clip:words', dim => 512, modalities => '{text}', fingerprint => 'f');
        SELECT pgembed.add_encoder('wide', 'open_clip:wide', dim => 2048, modalities => '{text}', fingerprint => 'f');
        CREATE TABLE product (id integer PRIMARY KEY, title text, photo bytea, price numeric, path text);
        CREATE TABLE keyless (title text);
        CREATE VIEW shown AS SELECT * FROM product;
        CREATE MATERIALIZED VIEW kept AS SELECT * FROM product;
        CREATE TABLE whole (id integer PRIMARY KEY, title text) PARTITION BY RANGE (id);
        CREATE TABLE part PARTITION OF whole FOR VALUES FROM (0) TO (10);
        CREATE TABLE parent (id integer PRIMARY KEY, title text);
        CREATE TABLE child (PRIMARY KEY (id)) INHERITS (parent);
        CREATE TEMPORARY TABLE fleeting (id integer PRIMARY KEY, title text);
        CREATE TABLE derived (id integer PRIMARY KEY, a text, title text GENERATED ALWAYS AS (upper(a)) STORED)
        """
    )
    return database


REFUSED = {
    "no primary key": (
        "keyless",
        {},
        "Table public.keyless has no primary key, by which its rows could be found again.",
    ),
    "unknown column": (
        "product",
        {"inputs": '{"text": "titel"}'},
        "Table public.product has no column 'titel'.",
    ),
    "unknown column in a template": (
        "product",
        {"inputs": '{"text": "{title}. {body}"}'},
        "Table public.product has no column 'body'.",
    ),
    "number as a picture": (
        "product",
        {"inputs": '{"image": "price"}'},
        "Column 'price' of public.product is numeric, which cannot be read as a picture.",
    ),
    "text as a picture without its form": (
        "product",
        {"inputs": '{"image": "path"}'},
        "Column 'path' of public.product is text, which cannot be read as a picture.",
    ),
    "bytes as a path": (
        "product",
        {"inputs": '{"image": {"column": "photo", "as": "path"}}'},
        "Column 'photo' of public.product is bytea as 'path', which cannot be read as a picture.",
    ),
    "picture as text": (
        "product",
        {"inputs": '{"text": "photo"}'},
        "Column 'photo' of public.product is bytea, which is not text.",
    ),
    "name taken": ("product", {"target": "title"}, "Table public.product has a column 'title' already."),
    "no name": ("product", {"target": ""}, "The target is the name of the new vector column, not ''."),
    "name too long": (
        "product",
        {"target": "e" * 64},
        f"The target is the name of the new vector column, not '{'e' * 64}'.",
    ),
    "encoder without that modality": (
        "product",
        {"encoder": "words", "inputs": '{"image": "photo"}'},
        "Encoder 'words' takes no image.",
    ),
    "no modality at all": ("product", {"inputs": '{"sound": "title"}'}, "Encoder 'shop' takes no sound."),
    "unknown encoder": ("product", {"encoder": "shoop"}, "No encoder named 'shoop' is registered."),
    "too many dimensions": (
        "product",
        {"encoder": "wide"},
        "Encoder 'wide' has 2048 dimensions; an HNSW index over vector holds at most 2000.",
    ),
    "view": ("shown", {}, "public.shown is a view; an embedding needs an ordinary table."),
    "materialized view": ("kept", {}, "public.kept is a materialized view; an embedding needs an ordinary table."),
    "system table": (
        "pg_class",
        {"inputs": '{"text": "relname"}'},
        "pg_class is a system table; an embedding needs an ordinary table.",
    ),
    "own table": (
        "pgembed.encoder",
        {"inputs": '{"text": "name"}'},
        "pgembed.encoder is a system table; an embedding needs an ordinary table.",
    ),
    "partition": ("part", {}, "public.part is a partition; an embedding needs an ordinary table."),
    "inheritance": (
        "parent",
        {},
        "public.parent is a table that others inherit from; an embedding needs an ordinary table.",
    ),
    "temporary table": ("fleeting", {}, "fleeting is a temporary table; an embedding needs an ordinary table."),
    "lone brace": (
        "product",
        {"inputs": '{"text": {"template": "{title"}}'},
        "The template '{title' has a brace without its partner.",
    ),
    "template without columns": (
        "product",
        {"inputs": '{"text": {"template": "title"}}'},
        "The template 'title' names no column.",
    ),
    "template for a picture": (
        "product",
        {"inputs": '{"image": "{photo}"}'},
        'The image input is a template, "{photo}"; a picture comes from one column.',
    ),
    "column and template": (
        "product",
        {"inputs": '{"text": {"column": "title", "template": "{title}"}}'},
        "names neither one column nor one template.",
    ),
    "neither": ("product", {"inputs": '{"text": 5}'}, "The text input 5 names neither one column nor one template."),
    "unknown key": (
        "product",
        {"inputs": '{"text": {"column": "title", "wieght": 2}}'},
        "The text input has an unknown key: wieght.",
    ),
    "form of a text": (
        "product",
        {"inputs": '{"text": {"column": "path", "as": "path"}}'},
        "The text input has an unknown key: as.",
    ),
    "weight of zero": (
        "product",
        {"inputs": '{"text": {"column": "title", "weight": 0}}'},
        "The weight of the text input is 0, not a number above zero.",
    ),
    "weight in words": (
        "product",
        {"inputs": '{"text": {"column": "title", "weight": "much"}}'},
        'The weight of the text input is "much", not a number above zero.',
    ),
    "no inputs": ("product", {"inputs": "{}"}, "with at least one of text, image and screenshot, not {}."),
    "inputs as a list": ("product", {"inputs": "[]"}, "with at least one of text, image and screenshot, not []."),
    "stale": ("product", {"stale": "drop"}, "stale is 'keep' or 'null', not 'drop'."),
    "generated and cleared": (
        "derived",
        {"stale": "null"},
        "Generated columns of public.derived (title) cannot be watched with stale => 'null'.",
    ),
}


def attach(conn: Connection, table: str, **given: str) -> int:
    arguments = {"target": "embedding", "encoder": "shop", "inputs": TEXT, "stale": "keep", **given}
    return conn.execute("SELECT pgembed.attach(%s::regclass, %s, %s, %s, %s)", [table, *arguments.values()]).fetchall()[
        0
    ][0]


@pytest.mark.parametrize("case", REFUSED)
def test_attach_refuses_in_one_sentence_and_changes_nothing(shop: Connection, case: str) -> None:
    table, given, message = REFUSED[case]
    before = (facts_of_table(shop, table), _catalog(shop))
    with pytest.raises(psycopg.Error) as refused:
        attach(shop, table, **given)
    primary = refused.value.diag.message_primary or ""
    assert message in primary
    assert primary.count(". ") <= message.count(". ")
    assert "\n" not in primary
    assert refused.value.diag.message_hint
    assert (facts_of_table(shop, table), _catalog(shop)) == before


def _catalog(conn: Connection) -> list[tuple[Any, ...]]:
    return conn.execute(
        "SELECT relname FROM pg_class WHERE relnamespace = 'pgembed'::regnamespace UNION ALL"
        " SELECT proname FROM pg_proc WHERE pronamespace = 'pgembed'::regnamespace UNION ALL"
        " SELECT target FROM pgembed.embedding ORDER BY 1"
    ).fetchall()


def test_the_same_target_cannot_be_attached_twice(shop: Connection) -> None:
    attach(shop, "product")
    with pytest.raises(psycopg.errors.DuplicateColumn, match="has a column 'embedding' already"):
        attach(shop, "product")
    assert attach(shop, "product", target="second") > 0


def test_attach_and_detach_give_up_soon_on_a_table_in_use(shop: Connection, database_dsn: str) -> None:
    with psycopg.connect(database_dsn) as other:
        other.execute("SELECT * FROM product")
        with pytest.raises(
            psycopg.errors.LockNotAvailable,
            match=r"public\.product is in use by a transaction that did not end within 2s\.",
        ):
            attach(shop, "product")
        other.rollback()
        attach(shop, "product")
        other.execute("SELECT * FROM product")
        with pytest.raises(psycopg.errors.LockNotAvailable, match=r"public\.product is in use"):
            shop.execute("SELECT pgembed.detach('product')")
    assert shop.execute("SELECT count(*) FROM pgembed.embedding").fetchone() == (1,)


# Leaving no trace


def _rich_table(conn: Connection) -> None:
    conn.execute(
        """
        CREATE TABLE rich (
            id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, title text NOT NULL DEFAULT 'none' COLLATE "C",
            photo bytea, price numeric(8, 2) CHECK (price > 0), owner integer REFERENCES product (id),
            UNIQUE (title, price)
        ) WITH (fillfactor = 80);
        CREATE INDEX ON rich (price) WHERE price > 5;
        COMMENT ON TABLE rich IS 'kept';
        COMMENT ON COLUMN rich.title IS 'kept too';
        GRANT SELECT ON rich TO PUBLIC;
        ALTER TABLE rich ALTER COLUMN photo SET STORAGE EXTERNAL;
        CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
        CREATE TRIGGER touch BEFORE UPDATE ON rich FOR EACH ROW EXECUTE FUNCTION touch();
        CREATE VIEW rich_titles AS SELECT title FROM rich;
        INSERT INTO rich (title, photo, price) SELECT 't' || i, 'x', i FROM generate_series(1, 5) AS i
        """
    )


@pytest.mark.parametrize("stale", ["keep", "null"])
def test_detach_leaves_the_table_as_it_was(shop: Connection, stale: str) -> None:
    _rich_table(shop)
    before = (facts_of_table(shop, "rich"), _catalog(shop))
    rows = shop.execute("SELECT * FROM rich ORDER BY id").fetchall()
    attach(shop, "rich", stale=stale, inputs='{"text": "{title} {price}", "image": "photo"}')
    shop.execute("CREATE INDEX ON rich USING hnsw (embedding vector_cosine_ops)")
    assert facts_of_table(shop, "rich") != before[0]
    shop.execute("SELECT pgembed.detach('rich')")
    assert (facts_of_table(shop, "rich"), _catalog(shop)) == before
    assert shop.execute("SELECT * FROM rich ORDER BY id").fetchall() == rows
    shop.execute("UPDATE rich SET title = title || '!'")


def test_uninstall_refuses_while_embeddings_are_attached(shop: Connection) -> None:
    attach(shop, "product")
    with pytest.raises(psycopg.Error, match=r"^Embeddings are attached: public\.product\.embedding\."):
        shop.execute("SELECT pgembed.uninstall()")


def test_uninstall_leaves_the_tables_as_they_were(shop: Connection) -> None:
    _rich_table(shop)
    before = facts_of_table(shop, "rich")
    attach(shop, "rich")
    attach(shop, "rich", target="second", stale="null")
    shop.execute("CREATE TABLE dropped (id integer PRIMARY KEY, title text)")
    attach(shop, "dropped")
    shop.execute("DROP TABLE dropped")
    shop.execute("CREATE TABLE renamed (id integer PRIMARY KEY, title text)")
    renamed = facts_of_table(shop, "renamed")
    attach(shop, "renamed")
    shop.execute("ALTER TABLE renamed RENAME TO other")
    shop.execute("SELECT pgembed.uninstall(true)")
    assert facts_of_table(shop, "rich") == before
    shop.execute("ALTER TABLE other RENAME TO renamed")
    assert facts_of_table(shop, "renamed") == renamed
    assert shop.execute("SELECT to_regnamespace('pgembed')").fetchone() == (None,)


@pytest.mark.parametrize(
    ("name", "statement"),
    [
        ("view public.v", "CREATE VIEW v AS SELECT pgembed.version()"),
        ("view public.v", "CREATE VIEW v AS SELECT * FROM pgembed.status"),
        ("materialized view public.v", "CREATE MATERIALIZED VIEW v AS SELECT name FROM pgembed.encoders"),
        ("function public.f()", "CREATE FUNCTION f() RETURNS text BEGIN ATOMIC SELECT pgembed.version(); END"),
        ("default value for column v of table public.t", "CREATE TABLE t (v text DEFAULT pgembed.version())"),
        ("column e of table public.t", "CREATE TABLE t (e pgembed.encoder)"),
        ("index public.product_version_idx", "CREATE INDEX ON product (pgembed.version())"),
    ],
)
def test_uninstall_refuses_while_something_outside_uses_it(shop: Connection, name: str, statement: str) -> None:
    shop.execute(statement.encode())
    with pytest.raises(psycopg.Error, match=r"^Objects outside the schema pgembed use it: ") as refused:
        shop.execute("SELECT pgembed.uninstall()")
    assert name in str(refused.value)
    assert shop.execute("SELECT pgembed.version() IS NOT NULL").fetchone() == (True,)


def test_an_embedding_of_a_dropped_table_is_forgotten(shop: Connection) -> None:
    number = attach(shop, "product")
    with pytest.raises(psycopg.Error, match=r"Table public\.product of embedding \d+ is still there"):
        shop.execute("SELECT pgembed.forget(%s)", [number])
    shop.execute("DROP TABLE product CASCADE")
    assert shop.execute("SELECT table_name, rows FROM pgembed.status").fetchall() == [("product", None)]
    shop.execute("SELECT pgembed.forget(%s)", [number])
    assert _catalog(shop) == sorted(_catalog(shop))
    assert shop.execute("SELECT count(*) FROM pgembed.embedding").fetchone() == (0,)


# Several embeddings of one table


def test_one_of_several_embeddings_must_be_named(
    database: Connection, database_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = Table(database, database_dsn, monkeypatch)
    attach(database, "product", target="second", encoder="fake")
    with pytest.raises(psycopg.Error, match=r"public\.product has several embeddings: embedding, second"):
        database.execute("SELECT pgembed.detach('product')")
    database.execute("SELECT pgembed.detach('product', 'embedding')")
    table.insert("red shoe")
    table.work()
    assert database.execute("SELECT count(second) FROM product").fetchone() == (1,)
