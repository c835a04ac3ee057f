"""Vectors in a table beside the user's: what attach makes, what keeps it true, what reads it, and what it leaves."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import psycopg
import pytest

import pgembed
from pgembed import Vector
from pgembed.errors import CatalogError
from tests.facts import facts_of_table
from tests.fakes import Connection, Table, until, vector_of


@pytest.fixture
def table(database: Connection, database_dsn: str, monkeypatch: pytest.MonkeyPatch) -> Table:
    made = Table(database, database_dsn, monkeypatch)
    database.execute("SELECT pgembed.detach('product')")
    database.execute(
        """SELECT pgembed.attach('product', 'embedding', 'fake', '{"text": "title"}', storage => 'side')"""
    )
    return made


def true(conn: Connection) -> list[int]:
    """The ids whose vector is the one of their title; a row of the side table without its row is an error."""
    rows = conn.execute(
        "SELECT s.id, p.title, s.vector::real[] FROM product_embedding s LEFT JOIN product p USING (id) ORDER BY s.id"
    ).fetchall()
    assert all(title is not None for _, title, _ in rows)
    return [key for key, title, vector in rows if np.allclose(vector, vector_of(title), atol=1e-6)]


def facts(conn: Connection, table: str = "product") -> list[Any]:
    """Everything that a dump would tell of a table, and of what is beside it."""
    beside = (
        "SELECT relname, relkind FROM pg_class WHERE relnamespace IN ('public'::regnamespace, 'pgembed'::regnamespace)"
    )
    return [facts_of_table(conn, table), conn.execute(f"{beside} ORDER BY 1, 2".encode()).fetchall()]


def test_rows_are_kept_true_and_the_table_is_never_written(table: Table) -> None:
    conn = table.conn
    table.insert("red shoe", "blue car", None, " ")
    versions = conn.execute("SELECT id, xmin, ctid FROM product ORDER BY id").fetchall()
    assert table.work() == pgembed.worker.Summary(written=4, failed=0)
    assert true(conn) == [1, 2]
    assert conn.execute("SELECT id, xmin, ctid FROM product ORDER BY id").fetchall() == versions
    conn.execute("UPDATE product SET title = 'green tree' WHERE id IN (1, 3)")
    conn.execute("UPDATE product SET title = NULL WHERE id = 2")
    table.work()
    assert true(conn) == [1, 3]
    conn.execute("UPDATE product SET id = 30 WHERE id = 3")
    assert true(conn) == [1]
    table.work()
    assert true(conn) == [1, 30]
    conn.execute("DELETE FROM product WHERE id = 1")
    assert true(conn) == [30]
    assert table.waiting() == 0
    conn.execute("TRUNCATE product")
    assert true(conn) == []


@pytest.mark.parametrize("level", [psycopg.IsolationLevel.REPEATABLE_READ, psycopg.IsolationLevel.SERIALIZABLE])
def test_writers_at_other_levels_do_not_fail_and_leave_no_vector(table: Table, level: psycopg.IsolationLevel) -> None:
    """Not even where the vector came, or came anew, after their snapshot."""
    conn = table.conn
    table.insert("red shoe", "blue car", "green tree", "white dog")
    table.work()
    conn.execute("INSERT INTO product VALUES (5, 'black cat')")
    with psycopg.connect(table.dsn) as other:
        other.isolation_level = level
        other.execute("SELECT FROM product")
        conn.execute("DELETE FROM pgembed.backfill; UPDATE pgembed.embedding SET state = 'backfill'")
        conn.execute("SELECT pgembed.reconcile('product', \"where\" => 'true')")
        table.work()
        assert true(conn) == [1, 2, 3, 4, 5]
        other.execute("DELETE FROM product WHERE id IN (1, 5)")
        other.execute("UPDATE product SET id = 20 WHERE id = 2")
        other.commit()
    rows = "SELECT count(*) FROM pgembed.search(NULL::product, '[1,0,0,0,0,0,0,0]')"
    assert conn.execute(rows).fetchone() == (2,)  # what is left over is found by nobody
    table.work()
    assert true(conn) == [3, 4, 20]


def test_a_truncate_waits_for_no_reader_of_the_vectors(table: Table) -> None:
    conn = table.conn
    table.insert("red shoe", "blue car")
    table.work()
    with psycopg.connect(table.dsn) as other:
        other.execute("SELECT FROM product_embedding")
        conn.execute("SET lock_timeout = '5s'; TRUNCATE product")
        assert true(conn) == []


def test_vectors_without_rows_are_found(table: Table) -> None:
    conn = table.conn
    table.insert("red shoe", "blue car")
    table.work()
    conn.execute("SET session_replication_role = replica; DELETE FROM product WHERE id = 1")
    conn.execute("RESET session_replication_role")
    assert conn.execute("SELECT pgembed.reconcile('product')").fetchone() == (1,)
    table.work()
    assert true(conn) == [2]
    assert conn.execute("SELECT pgembed.reconcile('product')").fetchone() == (0,)


def test_partitions(table: Table) -> None:
    conn = table.conn
    conn.execute(
        """
        CREATE TABLE item (id integer, area text, title text, PRIMARY KEY (id, area)) PARTITION BY LIST (area);
        CREATE TABLE item_north PARTITION OF item FOR VALUES IN ('north');
        CREATE TABLE item_south (title text, area text NOT NULL, id integer NOT NULL);
        ALTER TABLE item ATTACH PARTITION item_south FOR VALUES IN ('south');
        INSERT INTO item VALUES (1, 'north', 'a'), (2, 'south', 'b'), (3, 'south', 'c')
        """
    )
    conn.execute("SELECT pgembed.attach('item', 'vector', 'fake', '{\"text\": \"title\"}', storage => 'side')")

    def found() -> list[tuple[Any, ...]]:
        rows = conn.execute(
            "SELECT id, area, title, vector::real[] FROM item_vector LEFT JOIN item USING (id, area) ORDER BY id"
        ).fetchall()
        return [(key, area) for key, area, title, v in rows if np.allclose(v, vector_of(title), atol=1e-6)]

    table.work()
    assert found() == [(1, "north"), (2, "south"), (3, "south")]
    conn.execute("DELETE FROM item_south WHERE id = 2; UPDATE item SET area = 'south' WHERE id = 1")
    conn.execute("UPDATE item_south SET id = 30 WHERE id = 3")
    assert found() == []
    table.work()
    assert found() == [(1, "south"), (30, "south")]
    conn.execute("TRUNCATE item_south")  # no trigger sees it
    conn.execute("SELECT pgembed.reconcile('item')")
    table.work()
    assert conn.execute("SELECT count(*) FROM item_vector").fetchone() == (0,)
    conn.execute("SELECT pgembed.detach('item')")


def test_backfill_and_reconcile_find_the_rows_without_a_vector(table: Table) -> None:
    conn = table.conn
    table.insert("red shoe", "blue car", None)
    table.work()
    conn.execute("DELETE FROM product_embedding WHERE id = 1")
    assert conn.execute("SELECT pgembed.reconcile('product')").fetchone() == (1,)
    table.work()
    assert true(conn) == [1, 2]
    conn.execute("DELETE FROM product_embedding")
    conn.execute("DELETE FROM pgembed.backfill; UPDATE pgembed.embedding SET state = 'backfill'")
    assert table.work().written == 2
    assert true(conn) == [1, 2]


def test_a_row_that_is_being_deleted_holds_up_nothing(table: Table) -> None:
    conn = table.conn
    table.insert("red shoe", "blue car")
    with psycopg.connect(table.dsn) as other:
        other.execute("DELETE FROM product WHERE id = 1")
        with table.working():
            until(lambda: true(conn) == [2])
            other.commit()
            until(lambda: table.waiting() == 0)
    assert true(conn) == [2]


def test_a_row_that_is_being_updated_is_written_and_then_written_anew(table: Table) -> None:
    """A writer at REPEATABLE READ does not fail: nobody touches his row."""
    conn = table.conn
    table.insert("red shoe")
    with psycopg.connect(table.dsn) as other:
        other.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        other.execute("SELECT FROM product")
        with table.working():
            until(lambda: true(conn) == [1])
            other.execute("UPDATE product SET title = 'green tree'")
            other.commit()
            until(lambda: true(conn) == [1] and table.waiting() == 0)
    assert conn.execute("SELECT title FROM product").fetchone() == ("green tree",)


def test_rows_changed_while_they_are_encoded_are_not_written(table: Table) -> None:
    conn = table.conn
    table.insert("red shoe")
    seen = threading.Event()

    def change(texts: Any) -> None:  # noqa: ANN401
        if not seen.is_set():
            seen.set()
            with psycopg.connect(table.dsn, autocommit=True) as other:
                other.execute("UPDATE product SET title = 'green tree', id = 2")

    table.encoder.before = change
    table.work()
    assert true(conn) == [2]


def test_searches_of_every_form_find_the_rows(table: Table) -> None:
    conn = table.conn
    table.insert(*(f"title {number}" for number in range(60)))
    table.work()
    db = pgembed.connect(conn)
    query = vector_of("title 6")
    found = [row.id for row in db.search("product", Vector(query), limit=5)]
    assert found[0] == 7
    text = str([float(x) for x in query])
    assert [row.id for row in db.search("product", Vector(query), limit=5, where="id <> 7")] == [
        key for (key,) in conn.execute(
            "SELECT p.id FROM product p JOIN product_embedding s USING (id) WHERE id <> 7"
            " ORDER BY s.vector <=> %s::vector LIMIT 5", [text],
        )
    ]  # fmt: skip
    for arguments in ("", ", filter => 'true'", ", exact => true", ", k => 60"):
        rows = conn.execute(
            f"SELECT (item).id, (item).title, score FROM pgembed.search(NULL::product, %s::vector{arguments})".encode(),
            [text],
        ).fetchall()
        assert rows[0][:2] == (7, "title 6")
        assert [key for key, _, _ in rows[:5]] == found
    statement = db.query("product").near(Vector(query)).where("title LIKE %s", "title%").limit(5).compile()
    assert [row[0] for row in conn.execute(statement.text, statement.params)] == found


def test_the_index_serves_searches(table: Table) -> None:
    conn = table.conn
    conn.execute("INSERT INTO product SELECT g, 'title ' || g FROM generate_series(1, 3000) AS g")
    table.work()
    db = pgembed.connect(conn)
    db.build_index("product")
    conn.execute("ANALYZE")
    text = str([float(x) for x in vector_of("title 6")])
    scans = "SELECT sum(idx_scan) FROM pg_stat_user_indexes WHERE indexrelname LIKE '%hnsw%'"
    for n in range(1, 9):
        rows = conn.execute("SELECT (item).id FROM pgembed.search(NULL::product, %s::vector)", [text]).fetchall()
        assert rows[0] == (6,)
        assert db.search("product", Vector(vector_of("title 6")))[0].id == 6
        conn.execute("SELECT pg_stat_force_next_flush()")
        assert conn.execute(scans).fetchone() == (2 * n,)
    findings = {each.subject: each for each in db.doctor()}
    assert findings["public.product.embedding index"].ok
    assert findings["public.product.embedding index"].finding == "vector index there"


def test_it_is_read_by_those_who_read_the_table(table: Table) -> None:
    conn = table.conn
    table.insert("mine", "yours")
    table.work()
    conn.execute("SELECT pgembed.detach('product')")
    conn.execute("CREATE ROLE side_reader; GRANT SELECT ON product TO side_reader")
    conn.execute("ALTER TABLE product ENABLE ROW LEVEL SECURITY")
    conn.execute("CREATE POLICY mine ON product TO side_reader USING (title = 'mine')")
    try:
        conn.execute(
            """SELECT pgembed.attach('product', 'embedding', 'fake', '{"text": "title"}', storage => 'side')"""
        )
        table.work()
        assert true(conn) == [1, 2]
        conn.execute("SET ROLE side_reader")
        assert conn.execute("SELECT id FROM product_embedding").fetchall() == [(1,)]
    finally:
        conn.execute("RESET ROLE; DROP OWNED BY side_reader; DROP ROLE side_reader")


def test_detach_and_forget_leave_nothing(table: Table) -> None:
    conn = table.conn
    conn.execute("SELECT pgembed.detach('product')")
    before = facts(conn)
    for _ in range(2):
        conn.execute(
            """SELECT pgembed.attach('product', 'embedding', 'fake', '{"text": "title"}', storage => 'side')"""
        )
        conn.execute("SELECT pgembed.detach('product')")
        assert facts(conn) == before
    (number,) = conn.execute(
        """SELECT pgembed.attach('product', 'embedding', 'fake', '{"text": "title"}', storage => 'side')"""
    ).fetchall()[0]
    conn.execute("DROP TABLE product")
    conn.execute("SELECT pgembed.forget(%s)", [number])
    assert conn.execute("SELECT to_regclass('product_embedding')").fetchone() == (None,)


def test_names_are_followed(table: Table) -> None:
    conn = table.conn
    table.insert("red shoe")
    conn.execute("ALTER TABLE product RENAME id TO number; ALTER TABLE product RENAME TO thing")
    conn.execute("CREATE SCHEMA other; ALTER TABLE product_embedding SET SCHEMA other")
    conn.execute("ALTER TABLE other.product_embedding RENAME TO vectors")
    conn.execute("SELECT pgembed.sync()")
    table.work()
    assert conn.execute("SELECT id FROM other.vectors").fetchall() == [(1,)]
    text = str([float(x) for x in vector_of("red shoe")])
    rows = conn.execute("SELECT (item).number FROM pgembed.search(NULL::thing, %s::vector)", [text]).fetchall()
    assert rows == [(1,)]


@pytest.mark.parametrize(
    ("setup", "more", "told"),
    [
        ("CREATE TABLE thing (vector int PRIMARY KEY, title text)", "", "has a column 'vector'"),
        ("CREATE TABLE thing (id int PRIMARY KEY, title text); CREATE VIEW thing_embedding AS SELECT 1", "", "already"),
        ("CREATE TABLE thing (id int PRIMARY KEY, title text)", ", stale => 'null'", "does not have"),
        ("CREATE TABLE thing (id int PRIMARY KEY, title text)", ", storage => 'row'", "'column' or 'side', not 'row'"),
    ],
)
def test_what_cannot_be_is_refused(database: Connection, setup: str, more: str, told: str, table: Table) -> None:
    database.execute(setup.encode())
    before = facts(database, "thing")
    storage = "" if "storage" in more else ", storage => 'side'"
    with pytest.raises(psycopg.Error, match=told):
        database.execute(
            f"""SELECT pgembed.attach('thing', 'embedding', 'fake', '{{"text": "title"}}'{storage}{more})""".encode()
        )
    assert facts(database, "thing") == before


@pytest.mark.parametrize("storage", ["column", "side"])
def test_attach_tells_which_storage_suits_the_table(database: Connection, storage: str, table: Table) -> None:
    database.execute(
        """
        CREATE TABLE thing (id int PRIMARY KEY, title text);
        CREATE FUNCTION touched() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
        CREATE TRIGGER touch BEFORE UPDATE ON thing FOR EACH ROW EXECUTE FUNCTION touched();
        CREATE PUBLICATION changes FOR TABLE thing
        """
    )
    notices: list[str] = []
    database.add_notice_handler(lambda notice: notices.append(f"{notice.message_primary} {notice.message_hint}"))
    database.execute(
        "SELECT pgembed.attach('thing', 'embedding', 'fake', '{\"text\": \"title\"}', storage => %s)", [storage]
    )
    told = " ".join(notices)
    assert ("fires its triggers: touch" in told, "is published: changes" in told) == (storage == "column",) * 2
    assert ("storage => 'side'" in told) == (storage == "column")


@pytest.mark.parametrize(
    ("published", "partition"),
    [("FOR TABLE thing_all", True), ("FOR TABLES IN SCHEMA public", True), ("FOR TABLES IN SCHEMA public", False),
     ("FOR TABLE thing WITH (publish_via_partition_root)", True), ("FOR ALL TABLES", False)],
)  # fmt: skip
def test_attach_looks_at_partitions_and_at_publications_of_schemas(
    database: Connection, table: Table, published: str, partition: bool
) -> None:
    by, rows = (" PARTITION BY HASH (id)", "thing_all") if partition else ("", "thing")
    database.execute(f"CREATE TABLE thing (id int PRIMARY KEY, title text){by}".encode())
    if partition:
        database.execute("CREATE TABLE thing_all PARTITION OF thing FOR VALUES WITH (MODULUS 1, REMAINDER 0)")
    database.execute("CREATE FUNCTION touched() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'")
    database.execute(f"CREATE TRIGGER touch BEFORE UPDATE ON {rows} FOR EACH ROW EXECUTE FUNCTION touched()".encode())
    database.execute(f"CREATE PUBLICATION changes {published}".encode())
    notices: list[str] = []
    database.add_notice_handler(lambda notice: notices.append(str(notice.message_primary)))
    database.execute("SELECT pgembed.attach('thing', 'embedding', 'fake', '{\"text\": \"title\"}')")
    assert [notice.split(", which ")[1] for notice in notices] == [
        "fires its triggers: touch.",
        "is published: changes.",
    ]


def test_long_names_and_unlogged_tables(database: Connection, table: Table) -> None:
    name = "n" * 60
    database.execute(f"CREATE UNLOGGED TABLE {name} (id int PRIMARY KEY, title text)".encode())
    database.execute(
        "SELECT pgembed.attach(%s::regclass, 'embedding', 'fake', '{\"text\": \"title\"}', storage => 'side')", [name]
    )
    database.execute(f"INSERT INTO {name} VALUES (1, 'red shoe')".encode())
    assert table.work().written == 1
    kind = (
        "SELECT relpersistence FROM pg_class WHERE oid = (SELECT side FROM pgembed.embedding ORDER BY id DESC LIMIT 1)"
    )
    assert database.execute(kind).fetchone() == ("u",)


def test_doctor_tells_what_is_wrong_with_a_side_table(table: Table) -> None:
    conn = table.conn
    table.insert("red shoe")
    table.work()

    def wrong() -> dict[str, tuple[str, str | None]]:
        return {each.subject: (each.finding, each.remedy) for each in pgembed.connect(conn).doctor() if not each.ok}

    assert wrong() == {}
    conn.execute("ALTER TABLE product DISABLE TRIGGER pgembed_2_delete")
    assert list(wrong()) == ["public.product.embedding triggers"]
    conn.execute("ALTER TABLE product ENABLE TRIGGER pgembed_2_delete")
    conn.execute("DROP TABLE product_embedding")
    (finding, remedy) = wrong()["public.product.embedding side table"]
    assert "not where the catalog has it" in finding
    assert remedy == "SELECT pgembed.sync('product');"
    assert pgembed.connect(conn).status()[0].ready == 0
    assert table.work().written == 0  # workers leave it alone
    for search in (
        lambda: pgembed.connect(conn).search("product", Vector(vector_of("red shoe"))),
        lambda: conn.execute("SELECT pgembed.search(NULL::product, '[1,0,0,0,0,0,0,0]')"),
    ):
        with pytest.raises((CatalogError, psycopg.Error), match="gone"):
            search()
    conn.execute("SELECT pgembed.detach('product')")


def test_sync_finds_a_side_table_that_was_put_back(table: Table) -> None:
    conn = table.conn
    table.insert("red shoe")
    table.work()
    conn.execute("CREATE TABLE kept (LIKE product_embedding INCLUDING ALL)")
    conn.execute("INSERT INTO kept TABLE product_embedding; DROP TABLE product_embedding")
    conn.execute("ALTER TABLE kept RENAME TO product_embedding")
    conn.execute("ALTER INDEX kept_pkey RENAME TO pgembed_2_key")
    (remedy,) = [each.remedy for each in pgembed.connect(conn).doctor() if "side table" in each.subject]
    assert remedy is not None
    conn.execute(remedy.encode())
    conn.execute("UPDATE product SET title = 'blue car'")
    table.work()
    assert true(conn) == [1]
