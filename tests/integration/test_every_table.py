"""Every way that Postgres writes to every kind of table, for both storages and both modes, ends in true vectors."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest

import pgembed
from pgembed.encoders import load_encoder
from pgembed.worker import Worker, WorkerOptions
from tests.fakes import Connection
from tests.faults import assert_kept

WAYS = [("column", "queue"), ("side", "queue"), ("column", "instant"), ("side", "instant")]
QUEUED = [("column", "queue"), ("side", "queue")]
Texts = dict[Any, str | None]


class Kept:
    """Tables with an embedding of their texts, kept true by workers or by triggers."""

    def __init__(self, conn: Connection, dsn: str, storage: str, mode: str) -> None:
        self.conn = conn
        self.dsn = dsn
        self.storage = storage
        self.mode = mode
        self.db = pgembed.connect(conn)
        conn.execute("SELECT pgembed.add_encoder('lite', 'builtin:lite')")

    def run(self, *statements: str) -> None:
        """Run statements, each in a transaction of its own."""
        for statement in statements:
            self.conn.execute(statement.encode())

    def attach(self, table: str = "item", text: str = "{title}") -> None:
        """Attach, and let workers fill what is there."""
        self.db.attach(table, "embedding", encoder="lite", text=text, storage=self.storage, mode=self.mode)
        self.db.work(until_idle=True)

    def work(self) -> None:
        """Let a worker run until nothing waits; in instant mode nothing does."""
        if self.mode == "queue":
            self.db.work(until_idle=True)

    def check(self, expected: Texts, table: str = "item", *, key: str = "id", text: str = "title") -> None:
        """These are the rows with their texts; their vectors are true; nothing waits, failed or was left over."""
        self.work()
        self.assert_true(expected, table, key=key, text=text)

    def assert_true(self, expected: Texts, table: str = "item", *, key: str = "id", text: str = "title") -> None:
        rows = self.conn.execute(f"SELECT {key}, {text} FROM {table}".encode()).fetchall()
        assert dict(rows) == expected
        assert_kept(self.conn, storage=self.storage, table=table, encode=encode, key=key, text=text)
        assert self.vectors(table) == sum(value is not None for value in expected.values())

    def vectors(self, table: str = "item") -> int:
        """How many vectors there are, of rows or of none."""
        place = f"{table} WHERE embedding IS NOT NULL" if self.storage == "column" else f"{table}_embedding"
        return self.conn.execute(f"SELECT count(*) FROM {place}".encode()).fetchall()[0][0]

    def wrong(self, table: str = "item") -> list[str]:
        """The remedies of what doctor finds wrong with a table, but for workers that are not connected."""
        return [str(each.remedy) for each in self.db.doctor() if not each.ok and f".{table}." in each.subject]

    @contextmanager
    def working(self) -> Generator[None]:
        """A worker that runs for as long as the block."""
        worker = Worker(lambda: psycopg.connect(self.dsn), WorkerOptions(poll=0.02, sweep_every=3600))
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(worker.run)
            try:
                yield
            finally:
                worker.stop()
            running.result(30)


def encode(texts: Sequence[str]) -> Any:  # noqa: ANN401
    return load_encoder("builtin:lite").encode_text(list(texts))


@pytest.fixture(params=WAYS, ids="-".join)
def kept(request: pytest.FixtureRequest, database: Connection, database_dsn: str) -> Kept:
    return Kept(database, database_dsn, *request.param)


@pytest.fixture(params=QUEUED, ids="-".join)
def queued(request: pytest.FixtureRequest, database: Connection, database_dsn: str) -> Kept:
    return Kept(database, database_dsn, *request.param)


ITEM = "CREATE TABLE item (id integer PRIMARY KEY, title text)"


# Statements


def test_copy(kept: Kept) -> None:
    kept.run(ITEM, "INSERT INTO item VALUES (0, 'a boat')")
    kept.attach()
    with kept.conn.cursor().copy("COPY item (title, id) FROM STDIN") as copy:
        for row in (("a dog", 1), ("a red shoe", 2), (None, 3)):
            copy.write_row(row)
    kept.check({0: "a boat", 1: "a dog", 2: "a red shoe", 3: None})
    with (
        pytest.raises(psycopg.errors.UniqueViolation),
        kept.conn.cursor().copy("COPY item (id, title) FROM STDIN") as copy,
    ):
        copy.write("4\tof no avail\n1\tthere already\n")
    kept.check({0: "a boat", 1: "a dog", 2: "a red shoe", 3: None})


def test_merge(kept: Kept) -> None:
    kept.run(ITEM, "INSERT INTO item VALUES (1, 'a dog'), (2, 'a red shoe'), (3, 'a frog'), (4, NULL)")
    kept.attach()
    kept.run(
        "MERGE INTO item USING (VALUES (1, 'two dogs'), (2, NULL), (4, 'a boat'), (5, 'a cat'), (6, 'nothing'))"
        " AS v (id, title) ON item.id = v.id"
        " WHEN MATCHED AND v.title IS NULL THEN DELETE"
        " WHEN MATCHED THEN UPDATE SET title = v.title"
        " WHEN NOT MATCHED AND v.title = 'nothing' THEN DO NOTHING"
        " WHEN NOT MATCHED THEN INSERT VALUES (v.id, v.title)"
        " WHEN NOT MATCHED BY SOURCE THEN UPDATE SET id = item.id + 10, title = 'unmatched'"
    )
    kept.check({1: "two dogs", 4: "a boat", 5: "a cat", 13: "unmatched"})


def test_upserts(kept: Kept) -> None:
    kept.run(ITEM)
    kept.attach()
    upsert = "INSERT INTO item VALUES {} ON CONFLICT (id) DO UPDATE SET title = excluded.title"
    kept.run(
        upsert.format("(1, 'a dog'), (2, 'a cat')"),
        upsert.format("(2, 'two cats'), (3, 'a frog')"),
        upsert.format("(1, NULL)"),
        upsert.format("(3, 'not this') ") + " WHERE item.title IS NULL",
        upsert.format("(3, 'not this')").replace("title = excluded.title", "id = 30"),
        "INSERT INTO item VALUES (2, 'not this either'), (4, 'a boat') ON CONFLICT DO NOTHING",
    )
    kept.check({1: None, 2: "two cats", 30: "a frog", 4: "a boat"})


def test_keys_that_change(kept: Kept) -> None:
    kept.run(
        "CREATE TABLE item (id integer PRIMARY KEY DEFERRABLE, title text)",
        "INSERT INTO item VALUES (1, 'a dog'), (2, 'a red shoe'), (3, 'a frog'), (4, NULL)",
    )
    kept.attach()
    kept.run("UPDATE item SET id = id % 3 + 1 WHERE id < 4")
    kept.check({2: "a dog", 3: "a red shoe", 1: "a frog", 4: None})
    kept.run("UPDATE item SET id = 40, title = 'a boat' WHERE id = 4", "UPDATE item SET id = 30 WHERE id = 3")
    kept.check({2: "a dog", 30: "a red shoe", 1: "a frog", 40: "a boat"})
    with kept.conn.transaction():
        kept.run("DELETE FROM item WHERE id = 2", "UPDATE item SET id = 2 WHERE id = 30")
        kept.run("INSERT INTO item VALUES (30, 'a ship')")
    kept.check({2: "a red shoe", 30: "a ship", 1: "a frog", 40: "a boat"})


def test_keys_that_pass_to_another_row_in_the_same_statement(kept: Kept) -> None:
    kept.run(
        "CREATE TABLE item (id integer PRIMARY KEY DEFERRABLE, title text)",
        "INSERT INTO item VALUES (1, 'a dog'), (2, 'a red shoe'), (3, 'a frog')",
    )
    kept.attach()
    kept.run(
        "WITH gone AS (DELETE FROM item WHERE id = 3 RETURNING id) INSERT INTO item SELECT id, 'a cat' FROM gone",
        "MERGE INTO item USING (VALUES (1, NULL), (2, 1)) AS v (id, becomes) ON item.id = v.id"
        " WHEN MATCHED AND v.becomes IS NULL THEN DELETE WHEN MATCHED THEN UPDATE SET id = v.becomes",
    )
    kept.check({1: "a red shoe", 3: "a cat"})
    with kept.conn.transaction():
        kept.run(
            "SET CONSTRAINTS ALL DEFERRED",
            "UPDATE item SET id = 3 WHERE id = 1",
            "DELETE FROM item WHERE title = 'a cat'",
        )
    kept.check({3: "a red shoe"})


def test_truncate(kept: Kept) -> None:
    kept.run(ITEM, "INSERT INTO item VALUES (1, 'a dog'), (2, 'a red shoe')")
    kept.attach()
    with kept.conn.transaction(force_rollback=True):
        kept.run("TRUNCATE item", "INSERT INTO item VALUES (1, 'of no avail')")
    kept.check({1: "a dog", 2: "a red shoe"})
    with kept.conn.transaction():
        kept.run("INSERT INTO item VALUES (3, 'gone soon')", "TRUNCATE item", "INSERT INTO item VALUES (2, 'a cat')")
    kept.check({2: "a cat"})
    kept.run("TRUNCATE item")
    kept.check({})


# Foreign keys


def test_foreign_keys_that_change_inputs_and_keys(kept: Kept) -> None:
    kept.run(
        "CREATE TABLE word (title text PRIMARY KEY)",
        "CREATE TABLE place (id integer PRIMARY KEY)",
        "CREATE TABLE item (id integer PRIMARY KEY REFERENCES place ON UPDATE CASCADE ON DELETE CASCADE,"
        " title text REFERENCES word ON UPDATE CASCADE ON DELETE SET NULL)",
        "INSERT INTO word VALUES ('a dog'), ('a cat'), ('a frog')",
        "INSERT INTO place SELECT generate_series(1, 5)",
        "INSERT INTO item VALUES (1, 'a dog'), (2, 'a dog'), (3, 'a cat'), (4, 'a frog'), (5, NULL)",
    )
    kept.attach()
    kept.run("UPDATE word SET title = 'two dogs' WHERE title = 'a dog'")  # ON UPDATE CASCADE of an input
    kept.check({1: "two dogs", 2: "two dogs", 3: "a cat", 4: "a frog", 5: None})
    kept.run("DELETE FROM word WHERE title = 'a cat'")  # ON DELETE SET NULL of an input
    kept.check({1: "two dogs", 2: "two dogs", 3: None, 4: "a frog", 5: None})
    kept.run("UPDATE place SET id = 10 * id WHERE id <> 2")  # ON UPDATE CASCADE of the key
    kept.check({10: "two dogs", 2: "two dogs", 30: None, 40: "a frog", 50: None})
    kept.run("DELETE FROM place WHERE id IN (2, 40, 50)")  # ON DELETE CASCADE
    kept.check({10: "two dogs", 30: None})
    kept.run("TRUNCATE place CASCADE")
    kept.check({})


def test_a_foreign_key_to_the_table_itself(kept: Kept) -> None:
    """It changes rows again that the statement has changed already, before their triggers have seen that."""
    kept.run(
        "CREATE TABLE item (id integer PRIMARY KEY, name text UNIQUE, title text REFERENCES item (name)"
        " ON UPDATE CASCADE ON DELETE SET NULL)",
        "INSERT INTO item VALUES (1, 'dog', NULL), (2, 'puppy', 'dog'), (3, 'pup', 'puppy')",
    )
    kept.attach()
    kept.run("UPDATE item SET name = 'old ' || name, id = id + 10")
    kept.check({11: None, 12: "old dog", 13: "old puppy"})
    kept.run("DELETE FROM item WHERE id = 12")
    kept.check({11: None, 13: None})


# Columns


def test_stored_generated_columns_as_inputs(kept: Kept) -> None:
    kept.run(
        "CREATE TABLE item (id integer PRIMARY KEY, noun text,"
        " title text GENERATED ALWAYS AS ('a red ' || noun) STORED)",
        "INSERT INTO item VALUES (1, 'dog'), (2, 'shoe')",
    )
    if (kept.storage, kept.mode) == ("column", "instant"):
        with pytest.raises(pgembed.PgembedError, match=r"Generated columns of (public\.)?item \(title\) are computed"):
            kept.attach()
        kept.attach(text="a red {noun}")
    else:
        kept.attach()
    kept.run("INSERT INTO item VALUES (3, 'frog'), (4, NULL)", "UPDATE item SET noun = 'boat' WHERE id = 1")
    if (kept.storage, kept.mode) == ("column", "instant"):  # by words around it alone a row has a text there
        kept.run("DELETE FROM item WHERE id = 4", "INSERT INTO item VALUES (4, 'cat')", "DELETE FROM item WHERE id = 4")
        kept.check({1: "a red boat", 2: "a red shoe", 3: "a red frog"})
        return
    kept.check({1: "a red boat", 2: "a red shoe", 3: "a red frog", 4: None})
    kept.run("UPDATE item SET noun = NULL WHERE id = 2", "UPDATE item SET noun = 'cat' WHERE id = 4")
    kept.run("UPDATE item SET id = 10 WHERE id = 1")
    kept.check({10: "a red boat", 2: None, 3: "a red frog", 4: "a red cat"})


@pytest.mark.usefixtures("embedded_server")  # of PostgreSQL 18, which has virtual columns
def test_virtual_generated_columns_as_inputs(kept: Kept) -> None:
    kept.run(
        "CREATE TABLE item (id integer PRIMARY KEY, noun text, title text GENERATED ALWAYS AS ('a red ' || noun))",
        "INSERT INTO item VALUES (1, 'dog'), (2, 'shoe')",
    )
    assert kept.conn.execute("SELECT attgenerated FROM pg_attribute WHERE attname = 'title'").fetchone() == ("v",)
    if kept.mode == "instant":
        with pytest.raises(pgembed.PgembedError, match=r"Generated columns of (public\.)?item \(title\) are computed"):
            kept.attach()
        return
    kept.attach()
    kept.run(
        "INSERT INTO item VALUES (3, 'frog'), (4, NULL), (5, 'ship')",
        "UPDATE item SET noun = 'boat' WHERE id = 1",
        "UPDATE item SET noun = 'dog' WHERE id = 5",
        "DELETE FROM item WHERE id = 5",
    )
    kept.check({1: "a red boat", 2: "a red shoe", 3: "a red frog", 4: None})
    kept.run("UPDATE item SET noun = NULL WHERE id = 2", "UPDATE item SET noun = 'cat' WHERE id = 4")
    kept.run("UPDATE item SET id = 10 WHERE id = 1")
    kept.check({10: "a red boat", 2: None, 3: "a red frog", 4: "a red cat"})


def test_identity_keys(kept: Kept) -> None:
    kept.run("CREATE TABLE item (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, title text)")
    kept.run("INSERT INTO item (title) VALUES ('a dog'), ('a red shoe')")
    kept.attach()
    kept.run(
        "INSERT INTO item (title) VALUES ('a frog'), (NULL)",
        "INSERT INTO item OVERRIDING SYSTEM VALUE VALUES (70, 'a boat')",
        "UPDATE item SET id = DEFAULT WHERE id = 1",
    )
    kept.check({5: "a dog", 2: "a red shoe", 3: "a frog", 4: None, 70: "a boat"})
    kept.run("TRUNCATE item RESTART IDENTITY", "INSERT INTO item (title) VALUES ('a cat')")
    kept.check({1: "a cat"})


# Tables


def test_unlogged_tables(kept: Kept) -> None:
    kept.run(ITEM.replace("TABLE", "UNLOGGED TABLE"), "INSERT INTO item VALUES (1, 'a dog'), (2, 'a red shoe')")
    kept.attach()
    if kept.storage == "side":
        side = "SELECT relpersistence FROM pg_class WHERE oid = 'item_embedding'::regclass"
        assert kept.conn.execute(side).fetchone() == ("u",)
    kept.run("INSERT INTO item VALUES (3, 'a frog')", "UPDATE item SET title = 'a boat', id = 10 WHERE id = 1")
    kept.run("DELETE FROM item WHERE id = 2")
    kept.check({10: "a boat", 3: "a frog"})


TIDY = """
    CREATE FUNCTION tidy() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN NEW.title := 'tidy ' || NEW.title; RETURN NEW; END $$;
    CREATE TRIGGER zz_tidy BEFORE INSERT OR UPDATE OF title ON item FOR EACH ROW EXECUTE FUNCTION tidy();
"""
MEND = """
    CREATE FUNCTION mend() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF EXISTS (SELECT FROM item WHERE title LIKE '%raw%') THEN
            UPDATE item SET title = replace(title, 'raw', 'done') WHERE title LIKE '%raw%';
        END IF;
        RETURN NULL;
    END $$;
    CREATE TRIGGER NAME AFTER INSERT OR UPDATE ON item FOR EACH LEVEL EXECUTE FUNCTION mend();
"""


def test_a_trigger_before_that_changes_inputs(kept: Kept) -> None:
    kept.run(ITEM)
    kept.run(TIDY)
    kept.attach()
    kept.run("INSERT INTO item VALUES (1, 'dog'), (2, 'cat'), (3, NULL)")
    kept.check({1: "tidy dog", 2: "tidy cat", 3: None})
    kept.run("UPDATE item SET title = 'frog' WHERE id = 2", "UPDATE item SET title = 'boat', id = 9 WHERE id = 3")
    kept.check({1: "tidy dog", 2: "tidy frog", 9: "tidy boat"})


@pytest.mark.parametrize(("name", "level"), [("aa_mend", "ROW"), ("zz_mend", "ROW"), ("aa_mend", "STATEMENT")])
def test_a_trigger_after_that_changes_inputs(kept: Kept, name: str, level: str) -> None:
    """It updates the row again, before or after the triggers of pgembed have seen the first change."""
    kept.run(ITEM)
    kept.run(MEND.replace("NAME", name).replace("LEVEL", level))
    kept.attach()
    kept.run("INSERT INTO item VALUES (1, 'raw dog'), (2, 'a cat'), (3, NULL)")
    kept.check({1: "done dog", 2: "a cat", 3: None})
    kept.run(
        "UPDATE item SET title = 'raw frog' WHERE id = 2", "UPDATE item SET title = 'raw boat', id = 9 WHERE id = 3"
    )
    kept.check({1: "done dog", 2: "done frog", 9: "done boat"})


def test_a_leaf_that_inherits(kept: Kept) -> None:
    kept.run("CREATE TABLE parent (id integer, title text)", "CREATE TABLE item (PRIMARY KEY (id)) INHERITS (parent)")
    kept.run("INSERT INTO item VALUES (1, 'a dog'), (2, 'a red shoe'), (3, 'a frog')")
    kept.attach()
    kept.run("INSERT INTO parent VALUES (1, 'of the parent alone')", "INSERT INTO item VALUES (4, 'a boat')")
    kept.run("UPDATE parent SET title = 'two dogs' WHERE id = 1", "UPDATE parent SET id = 20 WHERE id = 2")
    kept.check({1: "two dogs", 20: "a red shoe", 3: "a frog", 4: "a boat"})
    kept.run("DELETE FROM parent WHERE id IN (3, 4)")
    kept.check({1: "two dogs", 20: "a red shoe"})
    kept.run("TRUNCATE parent")
    kept.check({})


# Partitions


@pytest.mark.parametrize("level", ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"])
def test_partitions_are_written_at_every_level(kept: Kept, level: str) -> None:
    kept.run(
        "CREATE TABLE item (id integer PRIMARY KEY, title text) PARTITION BY RANGE (id)",
        "CREATE TABLE item_a PARTITION OF item FOR VALUES FROM (0) TO (100)",
        "CREATE TABLE item_b PARTITION OF item DEFAULT",
        "INSERT INTO item VALUES (1, 'a dog'), (2, 'a cat'), (201, 'a boat')",
        "ALTER TABLE item ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY",
        "CREATE POLICY anything ON item USING (true)",
    )
    kept.attach()
    kept.run("CREATE ROLE writer; GRANT SELECT, INSERT, UPDATE, DELETE ON item, item_a TO writer")
    try:
        for statement in (
            "INSERT INTO item VALUES (3, 'a red shoe'), (203, 'two frogs')",
            "INSERT INTO item_a VALUES (4, 'a tree')",
            "INSERT INTO item VALUES (1, 'a puppy') ON CONFLICT (id) DO UPDATE SET title = excluded.title",
            "MERGE INTO item USING (VALUES (2, 'a kitten'), (5, 'a lamp')) AS w (id, title) ON item.id = w.id "
            "WHEN MATCHED THEN UPDATE SET title = w.title WHEN NOT MATCHED THEN INSERT VALUES (w.id, w.title)",
            "UPDATE item SET id = 204 WHERE id = 4",
            "DELETE FROM item WHERE id = 201",
        ):
            with kept.conn.transaction():
                kept.run(f"SET LOCAL ROLE writer; SET LOCAL TRANSACTION ISOLATION LEVEL {level}", statement)
    finally:
        kept.run("DROP OWNED BY writer; DROP ROLE writer")
    kept.db.work(until_idle=True)  # above READ COMMITTED an instant side table leaves some to the queue
    kept.check(
        {1: "a puppy", 2: "a kitten", 3: "a red shoe", 5: "a lamp", 203: "two frogs", 204: "a tree"},
    )


def test_partitions_that_come_and_go_as_partition_managers_have_them(kept: Kept) -> None:
    """A new partition LIKE its parent that is filled before it is attached, rows out of the default one, and retention.

    No trigger sees what comes and goes with a whole table: reconcile does.
    """
    kept.run(
        "CREATE TABLE item (id integer PRIMARY KEY, title text, at timestamptz DEFAULT now()) PARTITION BY RANGE (id)",
        "CREATE TABLE item_p0 PARTITION OF item FOR VALUES FROM (0) TO (10)",
        "CREATE TABLE item_p1 PARTITION OF item FOR VALUES FROM (10) TO (20)",
        "CREATE TABLE item_default PARTITION OF item DEFAULT",
        "INSERT INTO item VALUES (1, 'a dog'), (11, 'a cat'), (21, 'a frog'), (22, NULL), (31, 'a boat')",
    )
    kept.attach()
    rows: Texts = {1: "a dog", 11: "a cat", 21: "a frog", 22: None, 31: "a boat"}
    kept.assert_true(rows)

    def settle() -> None:
        kept.db.wait("item", timeout=30)
        kept.assert_true(rows)

    def reconcile(found: int) -> None:
        assert kept.db.reconcile("item") == found
        settle()

    with kept.working():
        # a partition that is filled before it is attached
        kept.run(
            "CREATE TABLE item_p4 (LIKE item INCLUDING ALL)",
            "INSERT INTO item_p4 VALUES (41, 'a red shoe'), (42, NULL)",
            "ALTER TABLE item_p4 ADD CONSTRAINT part CHECK (id >= 40 AND id < 50)",
            "ALTER TABLE item ATTACH PARTITION item_p4 FOR VALUES FROM (40) TO (50)",
            "ALTER TABLE item_p4 DROP CONSTRAINT part",
        )
        rows |= {41: "a red shoe", 42: None}
        assert [one for one in kept.wrong() if "reconcile" in one] == ["SELECT pgembed.reconcile('item', 'embedding');"]
        reconcile(1)
        assert kept.wrong() == ["SELECT pgembed.sync('item_p4');"]  # doctor cannot know what was in it before
        kept.run(*kept.wrong())
        settle()
        assert kept.wrong() == []
        kept.run("UPDATE item_p4 SET title = 'two shoes' WHERE id = 41", "INSERT INTO item_p4 VALUES (43, 'a ship')")
        rows |= {41: "two shoes", 43: "a ship"}
        settle()

        # rows out of the default partition, which holds up the one that they belong to: straight into the new one
        kept.run("CREATE TABLE item_p2 (LIKE item INCLUDING ALL)")
        with kept.conn.transaction():
            kept.run(
                "WITH moved AS (DELETE FROM item_default WHERE id BETWEEN 20 AND 29 RETURNING id, title, at)"
                " INSERT INTO item_p2 (id, title, at) SELECT * FROM moved",
                "ALTER TABLE item ATTACH PARTITION item_p2 FOR VALUES FROM (20) TO (30)",
            )
        kept.db.wait("item", timeout=30)
        reconcile(1)
        # and by way of a table beside, through the parent
        with kept.conn.transaction():
            kept.run(
                "CREATE TEMP TABLE beside ON COMMIT DROP AS SELECT id, title, at FROM item_default WHERE id >= 30",
                "DELETE FROM item_default WHERE id >= 30",
                "CREATE TABLE item_p3 PARTITION OF item FOR VALUES FROM (30) TO (40)",
                "INSERT INTO item (id, title, at) SELECT * FROM beside",
            )
        settle()
        assert kept.conn.execute("SELECT id FROM item_p3").fetchall() == [(31,)]

        # retention: the default one goes, since none is detached concurrently beside it
        assert kept.conn.execute("SELECT count(*) FROM item_default").fetchone() == (0,)
        kept.run("ALTER TABLE item DETACH PARTITION item_default", "DROP TABLE item_default")
        settle()
        kept.run("ALTER TABLE item DETACH PARTITION item_p0 CONCURRENTLY")
        kept.run("INSERT INTO item_p0 (id, title) VALUES (2, 'a stray')", "UPDATE item_p0 SET title = 'a stray too'")
        kept.run(
            "DELETE FROM item_p0 WHERE id = 2"
        )  # it is a table of its own now, and no trigger of pgembed's is on it
        assert kept.conn.execute("SELECT count(*) FROM pg_trigger WHERE tgrelid = 'item_p0'::regclass").fetchone() == (
            0,
        )
        del rows[1]
        reconcile(1 if kept.storage == "side" else 0)
        kept.run("DROP TABLE item_p1")
        del rows[11]
        reconcile(1 if kept.storage == "side" else 0)
        # and comes back
        kept.run("ALTER TABLE item ATTACH PARTITION item_p0 FOR VALUES FROM (0) TO (10)")
        rows[1] = "a stray too"
        came = {f"SELECT pgembed.sync('{partition}');" for partition in ("item_p0", "item_p2")}
        assert came <= set(kept.wrong())  # what was in them before they came, doctor cannot know
        kept.run(*came)
        settle()
        kept.run("UPDATE item SET title = 'a dog again', id = 45 WHERE id = 1")
        del rows[1]
        rows[45] = "a dog again"
        settle()
    assert kept.wrong() == []
