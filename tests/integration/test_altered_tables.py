"""What happens to tables behind the triggers' back: doctor names it, one command puts it right, no statement fails."""

from __future__ import annotations

import os
from collections.abc import Iterator

import psycopg
import pytest

import pgembed
from pgembed.errors import CatalogError
from tests.conftest import Connection
from tests.full_server import FullServer


@pytest.fixture(params=["column", "side"])
def kept(request: pytest.FixtureRequest) -> str:
    """Where vectors stand."""
    return request.param


@pytest.fixture(params=["queue", "instant"])
def mode(request: pytest.FixtureRequest) -> str:
    """Who encodes."""
    return request.param


@pytest.fixture
def db(database: Connection, database_dsn: str, kept: str, mode: str) -> pgembed.Pgembed:
    """A client of a database with a table of three rows that have their vectors."""
    database.execute("SELECT pgembed.add_encoder('lite', 'builtin:lite')")
    database.execute("CREATE TABLE item (id integer PRIMARY KEY, title text, other text, price int)")
    database.execute("INSERT INTO item VALUES (1, 'a dog'), (2, 'a red shoe'), (3, NULL)")
    client = pgembed.connect(database_dsn)
    client.attach("item", "embedding", encoder="lite", text="{title}", storage=kept, mode=mode)
    client.work(until_idle=True)
    assert_true(database)
    return client


def assert_true(conn: Connection, text: str = "title", *, rows: int = 2) -> None:
    """Every row with a text has the vector of it, no other has one, and nothing waits or failed."""
    ((storage,),) = conn.execute("SELECT storage FROM pgembed.embedding").fetchall()
    place = "embedding" if storage == "column" else "(SELECT s.vector FROM item_embedding s WHERE s.id = t.id)"
    found = conn.execute(
        f"SELECT id, {place} <-> pgembed.encode_text('lite', {text}) FROM item t WHERE {text} IS NOT NULL".encode()
    ).fetchall()
    assert len(found) == rows
    assert [distance for _, distance in found] == [pytest.approx(0, abs=1e-5)] * rows
    assert conn.execute(f"SELECT id FROM item t WHERE {text} IS NULL AND {place} IS NOT NULL".encode()).fetchall() == []
    assert conn.execute("SELECT queued, failed FROM pgembed.status").fetchall() == [(0, 0)]


def findings(db: pgembed.Pgembed) -> list[str]:
    """What doctor finds wrong with the embedding, but for the workers that are not connected."""
    return [
        f"{finding.finding} | {finding.remedy}"
        for finding in db.doctor()
        if not finding.ok and "item" in finding.subject
    ]


def obey(db: pgembed.Pgembed, conn: Connection, finding: str = "") -> None:
    """Run the command that doctor names first; then it finds nothing more."""
    first = findings(db)[0]
    assert finding in first
    command = first.split(" | ")[1].split(": ")[-1]
    assert command.startswith("SELECT pgembed.")
    conn.execute(command.encode())
    db.work(until_idle=True)
    assert findings(db) == []


def put_right(db: pgembed.Pgembed, conn: Connection, text: str = "title", *, rows: int = 2, finding: str = "") -> None:
    """Run the command that doctor names first; then all is well."""
    obey(db, conn, finding)
    assert_true(conn, text, rows=rows)


def test_a_column_changes_its_type_between_unhook_and_sync(db: pgembed.Pgembed, database: Connection) -> None:
    with pytest.raises(psycopg.errors.FeatureNotSupported, match="used in a trigger definition"):
        database.execute("ALTER TABLE item ALTER title TYPE varchar(5)")
    with database.transaction():
        database.execute("SELECT pgembed.unhook('item')")
        database.execute("ALTER TABLE item ALTER title TYPE varchar(5) USING left(title, 5)")
        database.execute("SELECT pgembed.sync('item')")
    db.work(until_idle=True)
    assert_true(database)
    db.unhook("item")
    database.execute("ALTER TABLE item ALTER title TYPE char(9)")
    put_right(db, database, finding="0 enabled")


def test_what_changes_while_unhooked_is_queued_by_sync(db: pgembed.Pgembed, database: Connection) -> None:
    assert db.unhook("item") == 1
    database.execute("UPDATE item SET title = 'a cat' WHERE id = 1")
    database.execute("INSERT INTO item VALUES (4, 'a frog')")
    database.execute("DELETE FROM item WHERE id = 2")
    assert "Make them anew" in findings(db)[0]
    put_right(db, database)


def test_triggers_that_were_dropped(db: pgembed.Pgembed, database: Connection) -> None:
    for (name,) in database.execute("SELECT tgname FROM pg_trigger WHERE tgrelid = 'item'::regclass").fetchall():
        database.execute(f'DROP TRIGGER "{name}" ON item'.encode())
    database.execute("UPDATE item SET title = 'a cat' WHERE id = 1")
    put_right(db, database)


@pytest.mark.parametrize(
    "off", ["DISABLE TRIGGER USER", "DISABLE TRIGGER ALL", "ENABLE REPLICA TRIGGER pgembed_1_update"]
)
def test_triggers_that_are_off_while_rows_change(db: pgembed.Pgembed, database: Connection, off: str) -> None:
    database.execute(
        "CREATE FUNCTION own() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';"
        "CREATE TRIGGER own BEFORE UPDATE ON item FOR EACH ROW EXECUTE FUNCTION own()"
    )
    database.execute(f"ALTER TABLE item {off}".encode())
    database.execute("UPDATE item SET title = 'a cat' WHERE id = 1")
    database.execute("DELETE FROM item WHERE id = 2")
    database.execute("INSERT INTO item VALUES (4, 'a frog')")
    put_right(db, database, finding="enabled")
    (enabled,) = database.execute("SELECT tgenabled FROM pg_trigger WHERE tgname = 'own'").fetchall()
    assert enabled == ("D" if "DISABLE" in off else "O",)


def test_triggers_that_fire_always_do_so_after_sync(db: pgembed.Pgembed, database: Connection) -> None:
    database.execute("ALTER TABLE item ENABLE ALWAYS TRIGGER pgembed_1_update")
    assert findings(db) == []
    db.sync("item")
    firing = database.execute("SELECT tgname FROM pg_trigger WHERE tgenabled = 'A'").fetchall()
    assert firing == [("pgembed_1_update",)]


@pytest.mark.parametrize("gone", ["change_1", "job_1", "change_1, pgembed.job_1", "change_1, pgembed.missed"])
def test_a_queue_that_is_gone_fails_no_statement(db: pgembed.Pgembed, database: Connection, gone: str) -> None:
    database.execute(f"DROP TABLE pgembed.{gone}".encode())
    write(database)
    assert "are not both there" in findings(db)[0]
    if "missed" in gone:  # which belongs to no embedding: no sync makes it
        database.execute("CREATE TABLE pgembed.missed (embedding integer NOT NULL, at timestamptz DEFAULT now())")
    put_right(db, database, finding="pgembed.change_1 and pgembed.job_1 are not both there", rows=4)


def write(conn: Connection) -> None:
    """What an application does: each kind of statement, in all isolation levels."""
    conn.execute("INSERT INTO item VALUES (4, 'a frog'), (5, 'a fish'), (6, 'a boat')")
    conn.execute("UPDATE item SET title = 'a cat' WHERE id = 1")
    with conn.transaction():
        conn.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        conn.execute("UPDATE item SET id = 12 WHERE id = 2")
        conn.execute("DELETE FROM item WHERE id = 5")
    conn.execute("DELETE FROM item WHERE id = 3")


@pytest.fixture
def role(server_dsn: str) -> Iterator[str]:
    """A role that is made before the test's databases, and dropped after them."""
    name = f"pgembed_altered_{os.getpid()}"
    with psycopg.connect(server_dsn, autocommit=True) as admin:
        admin.execute(f"CREATE ROLE {name}".encode())
        yield name
        admin.execute(f"DROP ROLE {name}".encode())


@pytest.mark.parametrize("by_hand", [False, True])
@pytest.mark.parametrize("closed", ["INSERT ON pgembed.change_1", "USAGE ON SCHEMA pgembed"])
def test_a_log_that_may_not_be_written_fails_no_statement(
    role: str, database: Connection, database_dsn: str, kept: str, mode: str, closed: str, by_hand: bool
) -> None:
    database.execute("SELECT pgembed.add_encoder('lite', 'builtin:lite')")
    database.execute("CREATE TABLE item (id integer PRIMARY KEY, title text, other text, price int)")
    database.execute("INSERT INTO item VALUES (1, 'a dog'), (2, 'a red shoe'), (3, NULL)")
    database.execute(f"ALTER TABLE item OWNER TO {role}".encode())
    database.execute("SELECT pgembed.grant_role('owner', %s)", [role])
    db = pgembed.connect(database_dsn)
    db.attach("item", "embedding", encoder="lite", text="{title}", storage=kept, mode=mode)
    db.work(until_idle=True)
    database.execute(f"REVOKE {closed} FROM {role}".encode())
    write(database)
    assert f"its triggers run as {role}, who may not write pgembed.change_1" in findings(db)[0]
    if by_hand:  # then nobody but a worker that may alter the table mends it
        database.execute("SELECT pgembed.sync()")
        assert database.execute("SELECT count(*) > 0 FROM pgembed.missed").fetchall() == [(True,)]
        db.work(until_idle=True)
        assert findings(db) == []
        assert_true(database, rows=4)
    else:
        put_right(db, database, rows=4)
    database.execute("SELECT pgembed.detach('item'); DROP TABLE item; DROP SCHEMA pgembed CASCADE")


def test_workers_keep_their_rights_on_a_queue_that_is_made_anew(
    role: str, db: pgembed.Pgembed, database: Connection
) -> None:
    assert db.grant("worker", role) == []
    database.execute("DROP TABLE pgembed.job_1")
    put_right(db, database)
    database.execute("SELECT pgembed.unhook('item'); ALTER TABLE item ALTER id TYPE text")
    obey(db, database)
    lacking = database.execute(
        "SELECT right_name FROM unnest('{SELECT,DELETE}'::text[]) AS right_name,"
        " (VALUES ('change_1'), ('job_1')) AS q (name)"
        " WHERE NOT has_table_privilege(%s, 'pgembed.' || q.name, right_name)",
        [role],
    ).fetchall()
    assert lacking == []


def test_a_column_that_is_dropped_and_added_again(db: pgembed.Pgembed, database: Connection) -> None:
    database.execute("ALTER TABLE item DROP title CASCADE")
    database.execute("INSERT INTO item VALUES (4, 'no trigger')")
    sentence = "Table item has no column 'title' any more, from which its vectors are made."
    (finding,) = findings(db)
    assert finding.startswith(sentence)
    with pytest.raises(CatalogError, match=r"has no column 'title' any more"):
        db.sync("item")
    database.execute("ALTER TABLE item ADD title text")
    database.execute("UPDATE item SET title = 'a boat'")
    assert db.sync("item") == 1
    db.work(until_idle=True)
    assert findings(db) == []
    assert_true(database, rows=4)
    database.execute("UPDATE item SET title = 'a ship' WHERE id = 1")
    db.work(until_idle=True)
    assert_true(database, rows=4)


def test_columns_that_are_renamed_keep_their_part(db: pgembed.Pgembed, database: Connection) -> None:
    database.execute("ALTER TABLE item RENAME title TO heading")
    database.execute("ALTER TABLE item RENAME other TO title")
    database.execute("UPDATE item SET title = 'not this', heading = 'a cat' WHERE id = 1")
    db.work(until_idle=True)
    assert_true(database, "heading")
    assert db.sync("item") == 1
    db.work(until_idle=True)
    assert_true(database, "heading")


def test_a_column_of_which_no_text_can_be_made(db: pgembed.Pgembed, database: Connection) -> None:
    db.unhook("item")
    database.execute("ALTER TABLE item ALTER title TYPE bytea USING title::bytea")
    with pytest.raises(CatalogError, match=r"Column 'title' of public.item is bytea now, of which no text can be made"):
        db.sync("item")
    assert any("is bytea now" in finding for finding in findings(db))
    database.execute("INSERT INTO item VALUES (4, '\\x00')")


def test_names_that_move_fail_no_statement_and_are_put_right_by_a_worker(
    db: pgembed.Pgembed, database: Connection, mode: str
) -> None:
    database.execute("ALTER TABLE item RENAME id TO number")
    database.execute("ALTER TABLE item RENAME price TO id")
    database.execute("INSERT INTO item (number, title) VALUES (4, 'a frog')")
    database.execute("UPDATE item SET title = 'a cat' WHERE number = 1")
    database.execute("UPDATE item SET number = 12 WHERE number = 2")
    database.execute("DELETE FROM item WHERE number = 3")
    database.execute("INSERT INTO item (number, title) VALUES (5, 'a fish'), (6, 'a boat')")
    assert any("changes were missed. | SELECT pgembed.sync(" in finding for finding in findings(db))
    db.work(until_idle=True)
    assert findings(db) == []
    ((storage,),) = database.execute("SELECT storage FROM pgembed.embedding").fetchall()
    place = "embedding" if storage == "column" else "(SELECT s.vector FROM item_embedding s WHERE s.id = t.number)"
    apart = database.execute(f"SELECT {place} <-> pgembed.encode_text('lite', title) FROM item t".encode()).fetchall()
    assert apart == [(pytest.approx(0, abs=1e-5),)] * 5
    if storage == "side":
        assert database.execute("SELECT count(*) FROM item_embedding").fetchall() == [(5,)]


@pytest.mark.parametrize(("type_sql", "key"), [("bigint", "5000000000"), ("text", "'five'"), ("numeric", "5.5")])
def test_a_key_of_another_type(db: pgembed.Pgembed, database: Connection, type_sql: str, key: str) -> None:
    db.unhook("item")
    database.execute(f"ALTER TABLE item ALTER id TYPE {type_sql}".encode())
    database.execute("UPDATE item SET title = 'a cat' WHERE title = 'a dog'")
    put_right(db, database)
    database.execute(f"INSERT INTO item VALUES ({key}, 'a frog')".encode())
    db.work(until_idle=True)
    assert_true(database, rows=3)


def test_another_key_altogether(db: pgembed.Pgembed, database: Connection, kept: str) -> None:
    db.unhook("item")
    database.execute("ALTER TABLE item DROP CONSTRAINT item_pkey, ADD lot int DEFAULT 7, ADD PRIMARY KEY (lot, id)")
    put_right(db, database, finding="The key has another type than its queue.")
    database.execute("INSERT INTO item VALUES (4, 'a frog')")
    db.work(until_idle=True)
    assert_true(database, rows=3)


def test_the_catalog_takes_the_new_names_of_inputs(database: Connection) -> None:
    database.execute("SELECT pgembed.add_encoder('lite', 'builtin:lite')")
    database.execute('CREATE TABLE item (id int PRIMARY KEY, title text, facts jsonb, photo bytea, "od.d" text)')
    database.execute(
        "SELECT pgembed.attach('item', 'embedding', 'lite', %s::jsonb)",
        ['{"text": "{{a}} {title}: {facts.title}, {od.d} {title}", "image": "photo"}'],
    )
    database.execute("ALTER TABLE item RENAME title TO heading; ALTER TABLE item RENAME facts TO title")
    database.execute("ALTER TABLE item RENAME photo TO picture")
    (before,) = database.execute(
        "SELECT pgembed._input_sql(relation, inputs, 'text') FROM pgembed.embedding"
    ).fetchall()
    assert database.execute("SELECT pgembed.sync(), pgembed.sync()").fetchall() == [(1, 0)]
    ((text, picture, text_columns, picture_columns),) = database.execute(
        "SELECT inputs -> 'text' ->> 'template', inputs -> 'image' ->> 'column', inputs -> 'text' -> 'columns',"
        " inputs -> 'image' -> 'columns' FROM pgembed.embedding"
    ).fetchall()
    assert (text, picture) == ("{{a}} {heading}: {title.title}, {od.d} {heading}", "picture")
    assert (text_columns, picture_columns) == ({"heading": 2, "title": 3, "od.d": 5}, {"picture": 4})
    assert database.execute(
        "SELECT pgembed._input_sql(relation, inputs, 'text') FROM pgembed.embedding"
    ).fetchall() == [before]
    database.execute("UPDATE pgembed.embedding SET inputs = pgembed._renumbered(relation, inputs)")  # as of a restore
    assert database.execute(
        "SELECT pgembed._input_sql(relation, inputs, 'text') FROM pgembed.embedding"
    ).fetchall() == [before]
    database.execute('ALTER TABLE item RENAME heading TO "a{b}"')
    assert database.execute("SELECT pgembed.sync()").fetchall() == [(0,)]


def test_a_rename_that_no_sync_saw_before_a_dump_is_told(database: Connection) -> None:
    database.execute("SELECT pgembed.add_encoder('lite', 'builtin:lite')")
    database.execute("CREATE TABLE item (id int PRIMARY KEY, title text)")
    database.execute("""SELECT pgembed.attach('item', 'embedding', 'lite', '{"text": "title"}')""")
    database.execute("ALTER TABLE item RENAME title TO heading")
    database.execute("UPDATE pgembed.embedding SET inputs = pgembed._renumbered(relation, inputs)")  # as of a restore
    with pytest.raises(psycopg.errors.UndefinedColumn, match=r"reads a column that .*item does not have: 'title'"):
        database.execute("SELECT pgembed._input_sql(relation, inputs, 'text') FROM pgembed.embedding")
    found = [row for row in database.execute("SELECT ok, finding FROM pgembed.doctor()").fetchall() if not row[0]]
    assert any("title" in str(finding) for _, finding in found), found


def test_a_vector_column_that_is_dropped_or_renamed(database: Connection, database_dsn: str) -> None:
    database.execute("SELECT pgembed.add_encoder('lite', 'builtin:lite')")
    database.execute("CREATE TABLE item (id integer PRIMARY KEY, title text)")
    database.execute("INSERT INTO item VALUES (1, 'a dog'), (2, 'a red shoe')")
    db = pgembed.connect(database_dsn)
    db.attach("item", "embedding", encoder="lite", text="{title}")
    db.work(until_idle=True)
    database.execute("ALTER TABLE item RENAME embedding TO vec")
    with pytest.raises(CatalogError, match=r"has no column 'embedding' any more; renamed, it may be 'vec'"):
        db.sync("item")
    database.execute("INSERT INTO item VALUES (3, 'a frog')")
    database.execute("ALTER TABLE item DROP vec")
    assert any("The vector column 'embedding' is gone." in finding for finding in findings(db))
    put_right(db, database, rows=3)


def test_a_table_that_takes_the_place_of_another(db: pgembed.Pgembed, database: Connection) -> None:
    database.execute("CREATE TABLE fresh (price int, title text, id integer PRIMARY KEY)")
    database.execute("INSERT INTO fresh (id, title) SELECT id + 10, title || ' indeed' FROM item")
    with database.transaction():
        database.execute("DROP TABLE item")
        database.execute("ALTER TABLE fresh RENAME TO item")
    (finding,) = findings(db)
    assert finding.startswith("The table is gone. | Another has its name: SELECT pgembed.sync('public.item');")
    database.execute("SELECT pgembed.sync('public.item')")
    db.work(until_idle=True)
    assert findings(db) == []
    assert_true(database)


@pytest.fixture
def lots(database: Connection, database_dsn: str, kept: str, mode: str) -> pgembed.Pgembed:
    """A client of a database with a table in two partitions, one of them in two again; every row has its vector."""
    database.execute("SELECT pgembed.add_encoder('lite', 'builtin:lite')")
    database.execute(
        """
        CREATE TABLE item (id integer PRIMARY KEY, title text) PARTITION BY RANGE (id);
        CREATE TABLE low PARTITION OF item FOR VALUES FROM (0) TO (100);
        CREATE TABLE high PARTITION OF item FOR VALUES FROM (100) TO (300) PARTITION BY RANGE (id);
        CREATE TABLE higher PARTITION OF high FOR VALUES FROM (100) TO (200);
        INSERT INTO item VALUES (1, 'a dog'), (2, 'a red shoe'), (101, 'a boat')
        """
    )
    client = pgembed.connect(database_dsn)
    client.attach("item", "embedding", encoder="lite", text="{title}", storage=kept, mode=mode)
    database.execute("CREATE TABLE highest PARTITION OF high FOR VALUES FROM (200) TO (300)")
    database.execute("INSERT INTO item VALUES (201, 'a frog')")
    client.work(until_idle=True)
    assert findings(client) == []
    assert_true(database, rows=4)
    return client


def test_a_partition_that_comes_with_rows(lots: pgembed.Pgembed, database: Connection) -> None:
    database.execute("CREATE TABLE lot (LIKE item)")
    database.execute("INSERT INTO lot (id, title) VALUES (301, 'a dog'), (302, 'a cat')")
    database.execute("ALTER TABLE item ATTACH PARTITION lot FOR VALUES FROM (300) TO (400)")
    assert findings(lots)[1].startswith("2 without a vector that do not wait")
    put_right(lots, database, rows=6, finding="partition lot came with rows")
    database.execute("UPDATE lot SET title = 'a frog' WHERE id = 301")
    lots.work(until_idle=True)
    assert_true(database, rows=6)


@pytest.mark.parametrize("leaf", ["low", "higher", "highest", "item"])
def test_triggers_of_a_partition_that_are_off_while_rows_change(
    lots: pgembed.Pgembed, database: Connection, leaf: str
) -> None:
    database.execute(f"ALTER TABLE {leaf} DISABLE TRIGGER USER".encode())
    database.execute("UPDATE item SET title = title || ' indeed'")
    finding = "0 enabled" if leaf == "item" else f"the triggers of partition {leaf} are off"
    put_right(lots, database, rows=4, finding=finding)
    database.execute("UPDATE item SET title = title || ' again'")
    lots.work(until_idle=True)
    assert_true(database, rows=4)


def test_triggers_of_a_partition_that_were_off_and_are_on_again(lots: pgembed.Pgembed, database: Connection) -> None:
    database.execute("ALTER TABLE low DISABLE TRIGGER USER")
    database.execute("UPDATE item SET title = 'a cat' WHERE id = 1")
    database.execute("ALTER TABLE low ENABLE TRIGGER USER")
    put_right(lots, database, rows=4, finding="partition low came with rows, or its triggers were off")


@pytest.mark.parametrize(
    ("parent", "part", "bounds"),
    [("item", "low", "0) TO (100"), ("high", "higher", "100) TO (200"), ("item", "high", "100) TO (300")],
)
def test_a_partition_that_is_taken_out_changed_and_put_back(
    lots: pgembed.Pgembed, database: Connection, parent: str, part: str, bounds: str
) -> None:
    for title in ("a cat", "a fish"):  # also the second time
        database.execute(f"ALTER TABLE {parent} DETACH PARTITION {part}".encode())
        database.execute(f"UPDATE {part} SET title = '{title}'".encode())
        database.execute(f"ALTER TABLE {parent} ATTACH PARTITION {part} FOR VALUES FROM ({bounds})".encode())
        found = [finding for finding in findings(lots) if "came with rows" in finding]
        assert len(found) == (2 if part == "high" else 1)
        for finding in found[1:]:
            database.execute(finding.split(" | ")[1].encode())
        put_right(lots, database, rows=4, finding="came with rows")


@pytest.mark.full_server
@pytest.mark.parametrize("storage", ["column", "side"])
def test_partitions_are_trusted_after_a_restore(
    full_server: FullServer, full_database_dsn: str, full_bare_dsn: str, storage: str
) -> None:
    with psycopg.connect(full_database_dsn, autocommit=True) as conn:
        conn.execute("SELECT pgembed.add_encoder('lite', 'builtin:lite')")
        conn.execute(
            """
            CREATE TABLE item (id integer PRIMARY KEY, title text) PARTITION BY RANGE (id);
            CREATE TABLE low PARTITION OF item FOR VALUES FROM (0) TO (100);
            INSERT INTO item VALUES (1, 'a dog')
            """
        )
        db = pgembed.connect(conn)
        db.attach("item", "embedding", encoder="lite", text="{title}", storage=storage, mode="instant")
        conn.execute("CREATE TABLE high (LIKE item); INSERT INTO high (id, title) VALUES (101, 'a cat')")
        conn.execute("ALTER TABLE item ATTACH PARTITION high FOR VALUES FROM (100) TO (200)")
        conn.execute("SELECT pgembed.sync('high')")
        conn.execute("CALL pgembed.fill('item')")
        assert findings(db) == []
    dump = full_server.run("pg_dump", "-Fc", full_database_dsn).stdout
    full_server.run("pg_restore", "--exit-on-error", "-d", full_bare_dsn, input=dump)
    with psycopg.connect(full_bare_dsn, autocommit=True) as conn:
        conn.execute("SELECT pgembed.sync()")
        assert findings(pgembed.connect(conn)) == []
        conn.execute("DROP TABLE pgembed.change_1")  # it has another number here than when its triggers were made
        conn.execute("UPDATE item SET title = 'a frog'")
        conn.execute("SELECT pgembed.sync('item')")
        conn.execute("CALL pgembed.fill('item')")
        assert_true(conn)


def test_sync_of_a_partition_leaves_the_rows_of_others(lots: pgembed.Pgembed, database: Connection) -> None:
    assert lots.sync("low") == 1
    assert database.execute("SELECT key_1 FROM pgembed.change_1 ORDER BY key_1").fetchall() == [(1,), (2,)]
    assert lots.sync("high") == 1
    assert database.execute("SELECT count(*) FROM pgembed.change_1").fetchall() == [(4,)]
    lots.work(until_idle=True)
    assert_true(database, rows=4)


def test_vectors_of_a_partition_that_is_taken_out_are_taken_away(
    lots: pgembed.Pgembed, database: Connection, kept: str
) -> None:
    database.execute("ALTER TABLE item DETACH PARTITION low")
    if kept == "side":
        obey(lots, database, "2 without a row: no trigger saw it go")
        assert database.execute("SELECT id FROM item_embedding ORDER BY id").fetchall() == [(101,), (201,)]
    assert findings(lots) == []
    assert_true(database, rows=2)


def test_vectors_whose_rows_went_unseen(db: pgembed.Pgembed, database: Connection, kept: str) -> None:
    with database.transaction():
        database.execute("SET LOCAL session_replication_role = replica")
        database.execute("DELETE FROM item WHERE id = 1")
    if kept == "side":
        obey(db, database, "1 without a row: no trigger saw it go")
        assert database.execute("SELECT id FROM item_embedding").fetchall() == [(2,)]
    assert findings(db) == []
    assert_true(database, rows=1)


def test_a_table_that_becomes_a_partition(db: pgembed.Pgembed, database: Connection, kept: str, mode: str) -> None:
    vector = ", embedding vector(256)" if kept == "column" else ""
    database.execute(
        f"CREATE TABLE whole (id integer PRIMARY KEY, title text, other text, price int{vector})"
        " PARTITION BY RANGE (id); ALTER TABLE whole ATTACH PARTITION item DEFAULT".encode()
    )
    database.execute("INSERT INTO whole VALUES (4, 'a frog')")
    found = next(finding for finding in findings(db) if finding.startswith("it is a partition of whole now"))
    assert "ALTER TABLE whole DETACH PARTITION item;" in found
    database.execute("ALTER TABLE whole DETACH PARTITION item")
    assert "SELECT pgembed.detach('item', 'embedding');" in found
    database.execute("SELECT pgembed.detach('item', 'embedding')")
    if kept == "column":
        database.execute("ALTER TABLE whole DROP embedding")
    database.execute("ALTER TABLE whole ATTACH PARTITION item DEFAULT")
    db.attach("whole", "embedding", encoder="lite", text="{title}", storage=kept, mode=mode)
    db.work(until_idle=True)
    assert db.search("whole", pgembed.Text("a frog"), limit=1)[0].id == 4


@pytest.mark.parametrize("change", ["ALTER TABLE item_embedding RENAME TO beside", "DROP TABLE item_embedding"])
def test_a_side_table_that_is_renamed_or_dropped(
    database: Connection, database_dsn: str, mode: str, change: str
) -> None:
    database.execute("SELECT pgembed.add_encoder('lite', 'builtin:lite')")
    database.execute("CREATE TABLE item (id integer PRIMARY KEY, title text)")
    database.execute("INSERT INTO item VALUES (1, 'a dog'), (2, 'a red shoe'), (3, 'a frog')")
    db = pgembed.connect(database_dsn)
    db.attach("item", "embedding", encoder="lite", text="{title}", storage="side", mode=mode)
    db.work(until_idle=True)
    database.execute(change.encode())
    database.execute("CREATE VIEW another AS SELECT id, title FROM item")
    database.execute("DELETE FROM item WHERE id = 3")
    database.execute("UPDATE item SET title = 'a cat' WHERE id = 1")
    database.execute("UPDATE item SET id = 7 WHERE id = 2")
    database.execute("INSERT INTO item VALUES (4, 'a boat')")
    obey(db, database, "SELECT pgembed.sync('item');")
    side = "beside" if "RENAME" in change else "item_embedding"
    apart = database.execute(
        "SELECT t.id, s.vector <-> pgembed.encode_text('lite', t.title)"
        f" FROM item t FULL JOIN {side} s USING (id)".encode()
    ).fetchall()
    assert sorted(apart) == [(key, pytest.approx(0, abs=1e-5)) for key in (1, 4, 7)]
    database.execute("TRUNCATE item CASCADE")
    assert database.execute(f"SELECT count(*) FROM {side}".encode()).fetchall() == [(0,)]


def test_a_side_table_that_is_dropped_is_told_of_before_anything_is_missed(
    database: Connection, database_dsn: str, mode: str
) -> None:
    database.execute("SELECT pgembed.add_encoder('lite', 'builtin:lite')")
    database.execute("CREATE TABLE item (id integer PRIMARY KEY, title text)")
    database.execute("INSERT INTO item VALUES (1, 'a dog'), (2, 'a red shoe')")
    db = pgembed.connect(database_dsn)
    db.attach("item", "embedding", encoder="lite", text="{title}", storage="side", mode=mode)
    db.work(until_idle=True)
    database.execute("DROP TABLE item_embedding")
    put_right(db, database, finding="the table of its vectors is not where the catalog has it")


@pytest.mark.parametrize("type_sql", ["bytea", "bytea[]", "oid", "oid[]"])
def test_pictures_are_known_by_the_form_that_they_had(database: Connection, database_dsn: str, type_sql: str) -> None:
    database.execute("SELECT pgembed.add_encoder('lite', 'builtin:lite')")
    database.execute(f"CREATE TABLE item (id integer PRIMARY KEY, photo {type_sql})".encode())
    db = pgembed.connect(database_dsn)
    db.attach("item", "embedding", encoder="lite", image="photo")
    db.work(until_idle=True)
    assert db.sync("item") == 1
    assert findings(db) == []
    db.unhook("item")
    database.execute("ALTER TABLE item ALTER photo TYPE text USING NULL")
    with pytest.raises(
        CatalogError, match=r"Column 'photo' of (public\.)?item is text now, of which no image can be made"
    ):
        db.sync("item")


def test_uninstall_while_unhooked_leaves_the_table_as_it_was(db: pgembed.Pgembed, database: Connection) -> None:
    db.unhook("item")
    db.uninstall(detach_all=True)
    columns = database.execute("SELECT attname FROM pg_attribute WHERE attrelid = 'item'::regclass AND attnum > 0"
                               " AND NOT attisdropped").fetchall()  # fmt: skip
    assert columns == [("id",), ("title",), ("other",), ("price",)]
    assert database.execute("SELECT to_regclass('item_embedding')").fetchall() == [(None,)]


def test_alter_attaches_anew_only_what_differs(db: pgembed.Pgembed, database: Connection, kept: str, mode: str) -> None:
    same = """'item', 'embedding', 'lite', '{"text": "{title}"}'"""
    options = f"storage => '{kept}', mode => '{mode}'"
    assert database.execute(f"SELECT pgembed.alter({same}, {options})".encode()).fetchone() == (False,)
    assert database.execute("SELECT pgembed.has_vectors('item', 'embedding')").fetchone() == (True,)
    assert_true(database)
    database.execute("ALTER TABLE item RENAME title TO name")
    renamed = same.replace("title", "name")
    assert database.execute(f"SELECT pgembed.is_attached({renamed}, {options})".encode()).fetchone() == (True,)
    other = same.replace("{title}", "a {name}")
    assert database.execute(f"SELECT pgembed.alter({other}, {options})".encode()).fetchone() == (True,)
    assert database.execute("SELECT pgembed.has_vectors('item')").fetchone() == (False,)
    db.work(until_idle=True)
    assert_true(database, "'a ' || name")
    with pytest.raises(psycopg.errors.UndefinedColumn, match="no column 'title'"):
        database.execute(f"SELECT pgembed.alter({same}, {options})".encode())
    assert_true(database, "'a ' || name")


def test_an_embedding_gets_another_name(db: pgembed.Pgembed, database: Connection, kept: str) -> None:
    if kept == "side":
        with pytest.raises(psycopg.errors.FeatureNotSupported, match="whose name goes with it"):
            database.execute("SELECT pgembed.rename('item', 'embedding', 'meaning')")
        return
    with pytest.raises(psycopg.errors.DuplicateColumn, match="has a column 'other' already"):
        database.execute("SELECT pgembed.rename('item', 'embedding', 'other')")
    database.execute("SELECT pgembed.rename('item', 'embedding', 'meaning')")
    assert db.work(until_idle=True).written == 0
    database.execute("UPDATE item SET title = 'a cat' WHERE id = 1")
    db.work(until_idle=True)
    assert db.search("item", pgembed.Text("a cat"), limit=1)[0].id == 1
    database.execute("SELECT pgembed.detach('item')")
    assert database.execute("SELECT count(*) FROM information_schema.columns WHERE table_name = 'item'").fetchone() == (
        4,
    )
