"""Columns of every kind as text inputs: what of a row is encoded, by workers and in instant mode alike."""

from __future__ import annotations

import psycopg
import pytest

import pgembed
from tests.conftest import Connection

KINDS = {
    "varchar": ("varchar(20)", "'a red shoe'", "{it}", "a red shoe"),
    "char": ("char(20)", "'a red shoe'", "{it}", "a red shoe"),
    "domain": ("short", "'a red shoe'", "{it}", "a red shoe"),
    "domain over a domain": ("shorter", "'a red shoe'", "{it}", "a red shoe"),
    "enum": ("colour", "'red'", "a {it} shoe", "a red shoe"),
    "number": ("numeric(5, 2)", "3.5", "{it} shoes", "3.50 shoes"),
    "array": ("text[]", "'{red,\"dark blue\",NULL}'", "shoes in {it}", "shoes in red, dark blue"),
    "array of a domain": ("short[]", "'{red,blue}'", "shoes in {it}", "shoes in red, blue"),
    "json": ("json", """'{"color": "red", "of": ["leather", 3]}'""", "{it.color} {it.of.0}", "red leather"),
    "jsonb": ("jsonb", """'{"the color": {"en": "red"}}'""", "a {it.the color.en} shoe", "a red shoe"),
    "domain over jsonb": ("facts", """'{"color": "red"}'""", "a {it.color} shoe", "a red shoe"),
    "jsonb of arrays": ("jsonb", """'{"tags": ["red", "shoe"]}'""", "{it.tags}", '["red", "shoe"]'),
    "whole json": ("json", """'{"a": 1}'""", "{it}", '{"a": 1}'),
    "identity": ("bigint GENERATED ALWAYS AS IDENTITY", "DEFAULT", "number {it}", "number 1"),
}  # fmt: skip
FULL_KINDS = {
    "citext": ("citext", "'A Red Shoe'", "{it}", "A Red Shoe"),
    "xml": (
        "xml",
        "'<item><title>red &amp; blue</title><title>shoes</title></item>'",
        "{it/item/title}",
        "red & blue shoes",
    ),
}  # fmt: skip
TYPES = """
    CREATE DOMAIN short AS text CHECK (length(VALUE) < 30);
    CREATE DOMAIN shorter AS short CHECK (length(VALUE) < 20);
    CREATE DOMAIN facts AS jsonb;
    CREATE TYPE colour AS ENUM ('red', 'blue');
    SELECT pgembed.add_encoder('lite', 'builtin:lite');
"""


def check(conn: Connection, dsn: str, kind: tuple[str, str, str, str], mode: str, storage: str) -> None:
    type_sql, value, template, expected = kind
    conn.execute(f"CREATE TABLE item (id integer PRIMARY KEY, it {type_sql}, other text)".encode())
    if "IDENTITY" not in type_sql:
        conn.execute("INSERT INTO item (id) VALUES (0)")
    conn.execute(
        "SELECT pgembed.attach('item', 'embedding', 'lite', %s, mode => %s, storage => %s)",
        ['{"text": {"template": "' + template + '"}}', mode, storage],
    )
    conn.execute(f"INSERT INTO item VALUES (1, {value})".encode())
    with pgembed.connect(dsn) as db:
        db.work(until_idle=True)
    assert_encoded(conn, storage, expected)
    if "IDENTITY" not in type_sql:
        conn.execute("UPDATE item SET it = NULL")
        conn.execute(f"UPDATE item SET it = {value} WHERE id = 1".encode())
        with pgembed.connect(dsn) as db:
            db.work(until_idle=True)
        assert_encoded(conn, storage, expected)


def assert_encoded(conn: Connection, storage: str, expected: str) -> None:
    place = "embedding" if storage == "column" else "(SELECT s.vector FROM item_embedding s WHERE s.id = t.id)"
    found = conn.execute(
        f"SELECT id, {place} <-> pgembed.encode_text('lite', %s) FROM item t WHERE {place} IS NOT NULL".encode(),
        [expected],
    ).fetchall()
    assert [(key, pytest.approx(distance, abs=1e-5)) for key, distance in found] == [(1, 0.0)]
    assert conn.execute("SELECT error FROM pgembed.failures").fetchall() == []


@pytest.mark.parametrize("storage", ["column", "side"])
@pytest.mark.parametrize("mode", ["queue", "instant"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_text_of(database: Connection, database_dsn: str, kind: str, mode: str, storage: str) -> None:
    database.execute(TYPES)
    check(database, database_dsn, KINDS[kind], mode, storage)


@pytest.mark.full_server
@pytest.mark.parametrize("storage", ["column", "side"])
@pytest.mark.parametrize("mode", ["queue", "instant"])
@pytest.mark.parametrize("kind", FULL_KINDS)
def test_the_text_of_types_of_contrib(
    full_database: Connection, full_database_dsn: str, kind: str, mode: str, storage: str
) -> None:
    full_database.execute("CREATE EXTENSION citext")
    full_database.execute(TYPES)
    check(full_database, full_database_dsn, FULL_KINDS[kind], mode, storage)


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("{title.x}", "Column 'title' is text, which has no part '.x'."),
        ("{facts/x}", "Column 'facts' is jsonb, which has no part '/x'."),
        ("{nothing.x}", "Table public.item has no column 'nothing.x'."),
        ("{photo}", "Column 'photo' of public.item is bytea, which is not text."),
    ],
)
def test_what_has_no_such_part_is_refused(database: Connection, written: str, message: str) -> None:
    database.execute("SELECT pgembed.add_encoder('lite', 'builtin:lite')")
    database.execute("CREATE DOMAIN bytes AS bytea")
    database.execute("CREATE TABLE item (id integer PRIMARY KEY, title text, facts jsonb, photo bytes)")
    with pytest.raises(psycopg.Error) as error:
        database.execute(
            "SELECT pgembed.attach('item', 'embedding', 'lite', %s)", ['{"text": {"template": "' + written + '"}}']
        )
    assert str(error.value.diag.message_primary).startswith(message)


def test_a_column_with_a_dot_in_its_name_comes_first_and_follows_renames(
    database: Connection, database_dsn: str
) -> None:
    database.execute("SELECT pgembed.add_encoder('lite', 'builtin:lite')")
    database.execute('CREATE TABLE item (id integer PRIMARY KEY, facts jsonb, "facts.color" text, other text)')
    database.execute(
        "SELECT pgembed.attach('item', 'embedding', 'lite', %s)",
        ['{"text": {"template": "{facts.color} {facts.kind}"}}'],
    )
    database.execute('ALTER TABLE item RENAME "facts.color" TO hue')
    database.execute("ALTER TABLE item RENAME facts TO attributes")
    database.execute("""INSERT INTO item VALUES (1, '{"color": "blue", "kind": "shoe"}', 'red')""")
    with pgembed.connect(database_dsn) as db:
        db.work(until_idle=True)
    assert_encoded(database, "column", "red shoe")


@pytest.mark.parametrize("storage", ["column", "side"])
def test_a_table_that_inherits_is_kept_true_under_either_name(
    database: Connection, database_dsn: str, storage: str
) -> None:
    database.execute("SELECT pgembed.add_encoder('lite', 'builtin:lite')")
    database.execute("CREATE TABLE parent (id integer PRIMARY KEY, it text)")
    database.execute("CREATE TABLE item (PRIMARY KEY (id), other text) INHERITS (parent)")
    database.execute(
        "SELECT pgembed.attach('item', 'embedding', 'lite', '{\"text\": \"it\"}', storage => %s)", [storage]
    )
    database.execute("INSERT INTO parent VALUES (1, 'of the parent alone')")
    database.execute("INSERT INTO item VALUES (1, 'a dog')")
    database.execute("UPDATE parent SET it = 'a red shoe'")
    with pgembed.connect(database_dsn) as db:
        db.work(until_idle=True)
        assert_encoded(database, storage, "a red shoe")
        assert all(finding.ok for finding in db.doctor() if "inheritance" in finding.subject)
        database.execute("CREATE TABLE lower_still () INHERITS (item)")
        (finding,) = [finding for finding in db.doctor() if "inheritance" in finding.subject]
        assert not finding.ok
        assert finding.remedy == (
            "Take them off (ALTER TABLE ... NO INHERIT item), or detach it and attach to each of them."
        )
        database.execute("ALTER TABLE lower_still NO INHERIT item")
        assert [finding for finding in db.doctor() if "inheritance" in finding.subject] == []
        database.execute("INSERT INTO item VALUES (2, 'a dog')")
        db.work(until_idle=True)
        assert [finding.finding for finding in db.doctor() if not finding.ok] == []
