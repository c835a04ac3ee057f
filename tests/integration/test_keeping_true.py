"""What an attached embedding watches and reads: keys, names, templates, joint inputs, and which changes count."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import numpy as np
import psycopg
import pytest
from PIL import Image
from psycopg.conninfo import make_conninfo

from tests.fakes import Connection, Table, until, vector_of


@pytest.fixture
def table(database: Connection, database_dsn: str, monkeypatch: pytest.MonkeyPatch) -> Table:
    return Table(database, database_dsn, monkeypatch)


def attach(conn: Connection, table: str, inputs: str, target: str = "vector", **more: str) -> str:
    """Attach with the fake encoder; gives the name of the log of changes."""
    (number,) = conn.execute(
        "SELECT pgembed.attach(%s::regclass, %s, 'fake', %s, %s, storage => %s)",
        [table, target, inputs, more.get("stale", "keep"), more.get("storage", "column")],
    ).fetchall()[0]
    return f"pgembed.change_{number}"


def changes(conn: Connection, log: str) -> list[tuple[Any, ...]]:
    """The keys in the log, in order; the log is emptied."""
    rows = conn.execute(f"SELECT * FROM {log} ORDER BY seq".encode()).fetchall()
    conn.execute(f"DELETE FROM {log}".encode())
    return [tuple(row[1:-1]) for row in rows]  # between seq and changed_at


# Keys and names

KEYS = {
    "smallint": ("id smallint PRIMARY KEY", "id", [(-3,), (7,)]),
    "integer": ("id integer PRIMARY KEY", "id", [(1,), (2,)]),
    "bigint": ("id bigint PRIMARY KEY", "id", [(2**40,), (2**41,)]),
    "uuid": ("id uuid PRIMARY KEY", "id", [("0" * 32,), ("f" * 32,)]),
    "text": ("id text PRIMARY KEY", "id", [('it\'s \\ {a}, "b"',), ("",), ("ü %s",)]),
    "text of a collation": ('id text COLLATE "C" PRIMARY KEY', "id", [("a",), ("B",)]),
    "varchar": ("id varchar(5) PRIMARY KEY", "id", [("abcde",), ("b",)]),
    "char": ("id char(5) PRIMARY KEY", "id", [("ab",), ("b    ",)]),
    "numeric": ("id numeric PRIMARY KEY", "id", [("1.50",), ("2",)]),
    "date": ("id date PRIMARY KEY", "id", [("2024-02-29",), ("infinity",)]),
    "timestamptz": ("id timestamptz PRIMARY KEY", "id", [("2024-02-29 12:00:00.123456+09",), ("1900-01-01 00:00+00",)]),
    "float": ("id float8 PRIMARY KEY", "id", [(0.1 + 0.2,), (1e300,)]),
    "bytea": ("id bytea PRIMARY KEY", "id", [(b"\x00\xff",), (b"",)]),
    "own enum": ("id app.size PRIMARY KEY", "id", [("small",), ("large",)]),
    "own domain": ("id app.code PRIMARY KEY", "id", [("X1",), ("X2",)]),
    "composite": ("b text, a integer, PRIMARY KEY (a, b)", "a, b", [(1, "x"), (1, "y"), (2, "x")]),
    "composite in another order": (
        "a integer, b date, PRIMARY KEY (b, a)",
        "b, a",
        [("2024-01-01", 1), ("2024-01-02", 1)],
    ),
}


@pytest.mark.parametrize("kind", KEYS)
def test_keys_of_many_types(table: Table, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With vectors in a column of the table, and beside it."""
    monkeypatch.setattr("pgembed.worker.keys.BACKFILL_LIMIT", 1)
    definition, names, values = KEYS[kind]
    conn = table.conn
    conn.execute("CREATE SCHEMA app; CREATE TYPE app.size AS ENUM ('small', 'large'); CREATE DOMAIN app.code AS text")
    conn.execute("SET search_path = app, public")
    conn.execute(f"CREATE TABLE item ({definition}, title text)".encode())
    insert = f"INSERT INTO item ({names}, title) VALUES ({', '.join(['%s'] * (len(values[0]) + 1))})".encode()
    for number, value in enumerate(values):
        conn.execute(insert, [*value, f"title {number}"])
    attach(conn, "item", '{"text": "title"}', "within")
    attach(conn, "item", '{"text": "title"}', "beside", storage="side")
    conn.execute("RESET search_path")

    def true() -> list[bool]:
        rows = conn.execute(
            f"SELECT title, within::real[], vector::real[] FROM app.item LEFT JOIN app.item_beside USING ({names})"
            " ORDER BY title".encode()
        ).fetchall()
        return [
            vector is not None and bool(np.allclose(vector, vector_of(title), atol=1e-6))
            for title, *vectors in rows
            for vector in vectors
        ]

    all_true = [True] * 2 * len(values)
    table.work()
    assert true() == all_true  # through the backfill
    conn.execute("UPDATE app.item SET title = title || ' again'")
    table.work()
    assert true() == all_true  # through the triggers

    def refuse(_: object) -> None:
        raise ValueError("bad")

    table.encoder.before = refuse
    conn.execute("UPDATE app.item SET title = 'z' || title")
    monkeypatch.setattr("pgembed.worker.batch.require_working", lambda *_: None)
    assert table.work().failed == len(all_true)
    conn.execute("SET TimeZone = 'Asia/Tokyo'; SET DateStyle = 'German'")
    table.encoder.before = lambda texts: None
    conn.execute("UPDATE app.item SET within = NULL; DELETE FROM app.item_beside")
    for target in ("within", "beside"):
        assert conn.execute("SELECT pgembed.reconcile('app.item', %s)", [target]).fetchone() == (0,)
        assert conn.execute("SELECT pgembed.retry('app.item', %s)", [target]).fetchone() == (len(values),)
    table.work()
    assert true() == all_true  # through failure and retry
    assert conn.execute("SELECT count(*) FROM pgembed.failure").fetchone() == (0,)


def test_quoted_and_mixed_case_names_in_any_schema(table: Table) -> None:
    conn = table.conn
    conn.execute('CREATE SCHEMA "My ""Shop"""')
    conn.execute(
        'CREATE TABLE "My ""Shop"""."Order" ("Id" integer, "select" text, "a b" text, "key_1" text,'
        ' PRIMARY KEY ("Id", "key_1"))'
    )
    conn.execute(
        'SELECT pgembed.attach(\'"My ""Shop"""."Order"\', \'The "Vector"\', \'fake\', %s)',
        ['{"text": {"template": "{select}/{a b}"}}'],
    )
    conn.execute('INSERT INTO "My ""Shop"""."Order" VALUES (1, \'x\', \'y\', \'k\')')
    table.work()
    (vector,) = conn.execute('SELECT "The ""Vector"""::real[] FROM "My ""Shop"""."Order"').fetchall()[0]
    np.testing.assert_allclose(vector, vector_of("x/y"), atol=1e-6)
    conn.execute('SELECT pgembed.detach(\'"My ""Shop"""."Order"\')')


# Templates and joint inputs


@pytest.mark.parametrize(
    ("form", "rendered"),
    [
        ("{title}. {body}", "red shoe. of leather"),
        ("{body}{body}", "of leatherof leather"),
        ("{title} ({price}, {sold_on}, {sold_at})", "red shoe (1.50, 2024-02-29, 2024-02-29 03:00:00+00)"),
        ("{{{title}}} 'q' \\n %s $1", "{red shoe} 'q' \\n %s $1"),
        ("{nothing}: {title}", ": red shoe"),
        ("  {title}\n", "red shoe"),
        ("{facts}", '{"a": [1, 2]}'),
    ],
)
def test_templates(table: Table, form: str, rendered: str) -> None:
    conn = table.conn
    conn.execute("SET TimeZone = 'Asia/Tokyo'; SET DateStyle = 'German'")
    conn.execute(
        "CREATE TABLE item (id integer PRIMARY KEY, title text, body text, price numeric, sold_on date,"
        " sold_at timestamptz, facts json, nothing text)"
    )
    conn.execute(
        "INSERT INTO item VALUES (1, 'red shoe', 'of leather', 1.50, '2024-02-29', '2024-02-29 12:00+09', %s)",
        ['{"a": [1, 2]}'],
    )
    conn.execute("SELECT pgembed.attach('item', 'vector', 'fake', jsonb_build_object('text', %s::text))", [form])
    table.work()
    assert table.encoder.seen == [rendered]


def test_a_joint_vector_uses_the_inputs_that_are_there(table: Table) -> None:
    def picture(colour: str) -> bytes:
        data = BytesIO()
        Image.new("RGB", (4, 4), colour).save(data, "PNG")
        return data.getvalue()

    conn = table.conn
    conn.execute("CREATE TABLE item (id integer PRIMARY KEY, title text, photo bytea, page bytea)")
    attach(
        conn,
        "item",
        '{"text": {"column": "title", "weight": 0.4}, "image": {"column": "photo", "weight": 0.6},'
        ' "screenshot": "page"}',
    )
    red, blue = picture("red"), picture("blue")
    rows = [
        (1, "shoe", red, blue),
        (2, "shoe", red, None),
        (3, "shoe", None, None),
        (4, None, red, None),
        (5, None, None, None),
    ]
    with conn.cursor() as cursor:
        cursor.executemany("INSERT INTO item VALUES (%s, %s, %s, %s)", rows)
    table.work()
    text, image, screen = vector_of("shoe"), vector_of("(255, 0, 0)"), vector_of("(0, 0, 255)")
    wanted = [0.4 * text + 0.6 * image + screen, 0.4 * text + 0.6 * image, text, image]
    found = conn.execute("SELECT vector::real[] FROM item ORDER BY id").fetchall()
    for (vector,), total in zip(found[:4], wanted, strict=True):
        np.testing.assert_allclose(vector, total / np.linalg.norm(total), atol=1e-6)
    assert found[4] == (None,)
    assert table.waiting() == 0


# Which changes count


def test_an_update_of_other_columns_appends_nothing(table: Table) -> None:
    conn = table.conn
    conn.execute("CREATE TABLE item (id integer PRIMARY KEY, title text, other integer)")
    log = attach(conn, "item", '{"text": "title"}')
    conn.execute("INSERT INTO item VALUES (1, 'a', 1), (2, NULL, 1)")
    assert changes(conn, log) == [(1,), (2,)]
    conn.execute("UPDATE item SET other = other + 1")
    conn.execute("UPDATE item SET title = title")
    conn.execute("INSERT INTO item VALUES (1, 'a', 9) ON CONFLICT (id) DO UPDATE SET other = excluded.other")
    assert changes(conn, log) == []
    conn.execute("UPDATE item SET title = 'b' WHERE id = 1")
    conn.execute("INSERT INTO item VALUES (1, 'c', 9) ON CONFLICT (id) DO UPDATE SET title = excluded.title")
    conn.execute("UPDATE item SET id = 5 WHERE id = 2")
    conn.execute("DELETE FROM item WHERE id = 5")
    conn.execute("TRUNCATE item")
    assert changes(conn, log) == [(1,), (1,), (5,)]


def test_a_column_that_a_users_trigger_changes_counts(table: Table) -> None:
    conn = table.conn
    conn.execute("CREATE TABLE item (id integer PRIMARY KEY, title text, other integer)")
    log = attach(conn, "item", '{"text": "title"}')
    conn.execute(
        """
        CREATE FUNCTION derive() RETURNS trigger LANGUAGE plpgsql
        AS 'BEGIN NEW.title := ''t'' || NEW.other; RETURN NEW; END';
        CREATE TRIGGER derive BEFORE UPDATE ON item FOR EACH ROW EXECUTE FUNCTION derive();
        INSERT INTO item VALUES (1, 't1', 1)
        """
    )
    assert changes(conn, log) == [(1,)]
    conn.execute("UPDATE item SET other = 2")
    assert changes(conn, log) == [(1,)]


@pytest.mark.parametrize(
    ("type", "before", "after"),
    [
        ("numeric", "1.0", "1.00"),
        ("json", '{"a":1}', '{"a": 1}'),
        ("jsonb", '{"a":1}', '{"a":2}'),
        ("text", "a", "a "),
        ("varchar(9)", "a", None),
        ("text[]", "{a}", "{a,b}"),
        ("timestamptz", "2024-01-01 00:00+00", "2024-01-01 00:01+00"),
        ("point", "(1,1)", "(1,1.0000000001)"),
    ],
)
def test_values_are_compared_as_they_are_stored(table: Table, type: str, before: str, after: str | None) -> None:
    conn = table.conn
    conn.execute(f"CREATE TABLE item (id integer PRIMARY KEY, value {type})".encode())
    log = attach(conn, "item", '{"text": "value"}', stale="null")
    conn.execute("INSERT INTO item VALUES (1, %s)", [before])
    table.work()
    assert conn.execute("SELECT count(vector) FROM item").fetchone() == (1,)
    conn.execute("UPDATE item SET value = value")
    assert changes(conn, log) == []
    conn.execute("UPDATE item SET value = %s", [after])
    assert changes(conn, log) == [(1,)]
    assert conn.execute("SELECT count(vector) FROM item").fetchone() == (0,)


@pytest.mark.full_server
def test_what_a_collation_calls_equal_is_compared_as_stored_and_is_one_key(
    full_database: Connection, full_database_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    table, conn = Table(full_database, full_database_dsn, monkeypatch), full_database
    conn.execute("CREATE COLLATION caseless (provider = icu, locale = 'und-u-ks-level2', deterministic = false)")
    conn.execute("CREATE TABLE item (id text COLLATE caseless PRIMARY KEY, value text COLLATE caseless, page xml)")
    log = attach(conn, "item", '{"text": "{value} {page}"}')
    conn.execute("INSERT INTO item VALUES ('k', 'a', '<a/>')")
    table.work()
    conn.execute("UPDATE item SET value = 'A', id = 'K'")
    conn.execute(f"INSERT INTO {log} (key_1) VALUES ('k')".encode())
    table.work()
    conn.execute("UPDATE item SET page = '<b/>'")
    table.work()
    assert table.encoder.seen == ["a <a/>", "A <a/>", "A <b/>"]
    assert table.waiting() == 0


def test_a_large_value_that_is_not_touched_is_not_read(table: Table) -> None:
    conn = table.conn
    if conn.info.server_version < 170000:
        pytest.skip("pg_column_toast_chunk_id came with PostgreSQL 17")
    conn.execute("CREATE TABLE item (id integer PRIMARY KEY, photo bytea, price integer)")
    conn.execute("ALTER TABLE item ALTER COLUMN photo SET STORAGE EXTERNAL")
    log = attach(conn, "item", '{"image": "photo"}')
    conn.execute("INSERT INTO item SELECT i, decode(repeat('ab', 2000000), 'hex'), 1 FROM generate_series(1, 20) AS i")
    changes(conn, log)
    explained = conn.execute("EXPLAIN (ANALYZE, BUFFERS) UPDATE item SET price = price + 1").fetchall()
    assert changes(conn, log) == []
    (buffers,) = [int(line.split("hit=")[1].split()[0]) for (line,) in explained if "Buffers: shared hit" in line][:1]
    assert buffers < 1000, explained  # the pictures fill 5,000 pages
    conn.execute("UPDATE item SET photo = photo || '\\x00' WHERE id = 3")
    conn.execute("UPDATE item SET photo = NULL WHERE id = 4")
    conn.execute("UPDATE item SET photo = 'small' WHERE id = 4")
    assert changes(conn, log) == [(3,), (4,), (4,)]


def test_a_stale_vector_is_cleared_at_once_where_asked(table: Table) -> None:
    conn = table.conn
    conn.execute("CREATE TABLE item (id integer PRIMARY KEY, title text, other integer)")
    attach(conn, "item", '{"text": "title"}', stale="null")
    conn.execute("INSERT INTO item VALUES (1, 'a', 1), (2, 'b', 1)")
    table.work()
    conn.execute("UPDATE item SET other = 2")
    conn.execute("UPDATE item SET title = 'c' WHERE id = 1")
    assert conn.execute("SELECT id FROM item WHERE vector IS NULL").fetchall() == [(1,)]


# Rights


@pytest.mark.usefixtures("embedded_server")  # where roles need no password
def test_an_application_role_needs_no_grant_on_pgembed(table: Table) -> None:
    conn = table.conn
    conn.execute("CREATE ROLE pgembed_app LOGIN")
    try:
        conn.execute("GRANT SELECT, INSERT, UPDATE, DELETE ON product TO pgembed_app")
        with psycopg.connect(make_conninfo(table.dsn, user="pgembed_app"), autocommit=True) as app:
            app.execute("SET search_path = ''")
            app.execute("INSERT INTO public.product VALUES (1, 'red shoe'), (2, 'blue car')")
            app.execute("UPDATE public.product SET title = 'green tree' WHERE id = 2")
            app.execute("DELETE FROM public.product WHERE id = 1")
            for forbidden in (
                "SELECT * FROM pgembed.embedding", "SELECT * FROM pgembed.change_1", "SELECT pgembed.version()",
                "CREATE TRIGGER t AFTER INSERT ON public.product FOR EACH ROW EXECUTE FUNCTION pgembed.append_row_1()",
            ):  # fmt: skip
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    app.execute(forbidden.encode())
        table.work()
        assert table.true_ids() == [2]
    finally:
        conn.execute("DROP OWNED BY pgembed_app")
        conn.execute("DROP ROLE pgembed_app")


def test_trigger_functions_cannot_be_called_by_others(table: Table) -> None:
    rows = table.conn.execute(
        "SELECT proname, prosecdef, proconfig, has_function_privilege('public', oid, 'EXECUTE') FROM pg_proc"
        " WHERE proname LIKE 'append%' ORDER BY proname"
    ).fetchall()
    pinned = ["search_path=pg_catalog, pg_temp"]
    assert rows == [("append_row_1", True, pinned, False), ("append_rows_1", True, pinned, False)]


def test_attach_tells_what_writing_sets_off(table: Table) -> None:
    told: list[str] = []
    conn = table.conn
    conn.add_notice_handler(lambda notice: told.append(notice.message_primary or ""))
    conn.execute(
        """
        CREATE TABLE item (id integer PRIMARY KEY, title text);
        CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
        CREATE TRIGGER touch BEFORE UPDATE ON item FOR EACH ROW EXECUTE FUNCTION touch();
        ALTER TABLE item ENABLE ROW LEVEL SECURITY
        """
    )
    attach(conn, "item", '{"text": "title"}')
    assert [message for message in told if "touch" in message]
    assert [message for message in told if "BYPASSRLS" in message]


# What no trigger sees


def test_reconcile_queues_what_no_trigger_saw(table: Table) -> None:
    conn = table.conn
    table.insert("red shoe", "blue car")
    table.work()
    conn.execute("SET session_replication_role = replica")
    conn.execute("INSERT INTO product VALUES (3, 'green tree'), (4, NULL)")
    conn.execute("UPDATE product SET title = 'black cat' WHERE id = 1")
    conn.execute("RESET session_replication_role")
    table.work()
    assert table.true_ids() == [2]
    assert conn.execute("SELECT pgembed.reconcile('product')").fetchone() == (1,)
    assert conn.execute("SELECT pgembed.reconcile('product')").fetchone() == (0,)
    table.work()
    assert table.true_ids() == [2, 3]
    assert conn.execute(
        "SELECT pgembed.reconcile('product', \"where\" => 'title LIKE ''black%'' -- why')"
    ).fetchone() == (1,)
    table.work()
    assert table.true_ids() == [1, 2, 3]


def test_reconcile_and_retry_in_a_long_transaction_hold_up_nobody(table: Table) -> None:
    table.insert("red shoe", "blue car")
    table.work()
    with psycopg.connect(table.dsn) as other, table.working():
        other.execute("SELECT pgembed.reconcile('product', \"where\" => 'true'), pgembed.retry('product')")
        table.insert("green tree")
        table.conn.execute("UPDATE product SET title = 'black cat' WHERE id = 1")
        until(lambda: table.true_ids() == [1, 2, 3])
        other.execute("UPDATE product SET title = 'white dog' WHERE id = 1")
        other.commit()
        until(lambda: table.true_ids() == [1, 2, 3])


# Partitions


def test_a_partitioned_table_and_statements_that_name_a_partition(table: Table) -> None:
    conn = table.conn
    conn.execute(
        """
        CREATE TABLE item (id integer, area text, title text, PRIMARY KEY (id, area)) PARTITION BY LIST (area);
        CREATE TABLE item_north PARTITION OF item FOR VALUES IN ('north');
        INSERT INTO item VALUES (1, 'north', 'a')
        """
    )
    log = attach(conn, "item", '{"text": "title"}', stale="null")
    conn.execute("CREATE TABLE item_south PARTITION OF item FOR VALUES IN ('south')")
    conn.execute("INSERT INTO item_south VALUES (2, 'south', 'b')")
    conn.execute("INSERT INTO item VALUES (3, 'south', 'c')")

    def true() -> list[int]:
        rows = conn.execute("SELECT id, title, vector::real[] FROM item ORDER BY id").fetchall()
        return [key for key, title, vector in rows if vector and np.allclose(vector, vector_of(title), atol=1e-6)]

    table.work()
    assert true() == [1, 2, 3]
    conn.execute("UPDATE item_north SET title = 'd'")
    conn.execute("UPDATE item SET area = 'north' WHERE id = 2")
    assert sorted(changes(conn, log)) == [(1, "north"), (2, "north")]
    assert conn.execute("SELECT pgembed.reconcile('item')").fetchone() == (2,)
    table.work()
    assert true() == [1, 2, 3]
    conn.execute("SELECT pgembed.detach('item')")
