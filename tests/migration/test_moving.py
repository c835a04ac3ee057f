"""Dumps, restores and moves, as docs/dump-and-restore.md has them: searched at once, and nothing is encoded again."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

import pgembed
from pgembed.embedded import binaries
from pgembed.errors import CatalogError
from tests.conftest import janitor, new_database, new_name
from tests.fakes import Connection, FakeEncoder, register, use_encoders, vector_of
from tests.full_server import FullServer
from tests.roles import role_of

pytestmark = pytest.mark.full_server

PAGE = (Path(__file__).parents[2] / "docs/dump-and-restore.md").read_text(encoding="utf-8")
BLOCKS = {
    title: {kind: re.findall(rf"^```{kind}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL) for kind in ("bash", "sql")}
    for title, text in re.findall(r"^## (.*?)$(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
}
WHOLE = BLOCKS["A whole database"]
WAYS = {
    "custom": WHOLE["bash"][0],
    "plain": WHOLE["bash"][1],
    "directory": WHOLE["bash"][2],
    "template": "createdb --template=shop shop_new",
    "one schema": BLOCKS["One schema"]["bash"][0].replace("-n goods", "-n goods -n nook"),
    "structure and rows": BLOCKS["The structure first, the rows later"]["bash"][0],
}
TABLES = {"goods.product": "column", "nook.beside": "side"}


def make(conn: Connection) -> None:
    """Two tables, a column and a side table of vectors; of each two rows have theirs and one waits."""
    encoder = FakeEncoder()
    conn.execute("DELETE FROM pgembed.token")  # nothing here uses the built-in encoder, and dumps are quick
    register(conn, "fake", encoder)
    conn.execute("CREATE SCHEMA goods; CREATE SCHEMA nook")
    for table, storage in TABLES.items():
        conn.execute(f"CREATE TABLE {table} (id integer PRIMARY KEY, title text, price integer)".encode())
        conn.execute(f"INSERT INTO {table} VALUES (1, 'a red apple', 3), (2, 'a dog', 4)".encode())
        conn.execute(
            "SELECT pgembed.attach(%s::regclass, 'embedding', 'fake', '{\"text\": \"title\"}', storage => %s)",
            [table, storage],
        )


@pytest.fixture
def encoder(monkeypatch: pytest.MonkeyPatch) -> FakeEncoder:
    """What workers of this process encode with, and what they encoded."""
    encoder = FakeEncoder()
    use_encoders(monkeypatch, {encoder.spec: encoder})
    return encoder


@pytest.fixture(scope="module")
def shop(full_server_dsn: str, full_template: str) -> Iterator[str]:
    """The name of the database that is dumped; no test changes it."""
    with pytest.MonkeyPatch.context() as patch, contextmanager(new_database)(full_server_dsn, full_template) as dsn:
        with psycopg.connect(dsn, autocommit=True) as conn:
            make(conn)
            use_encoders(patch, {FakeEncoder().spec: FakeEncoder()})
            with pgembed.connect(dsn) as db:
                db.work(until_idle=True)
            for table in TABLES:
                conn.execute(f"INSERT INTO {table} VALUES (3, 'a chair', 5)".encode())
        yield str(conninfo_to_dict(dsn)["dbname"])


@pytest.fixture
def own(full_server: FullServer, full_template: str, encoder: FakeEncoder) -> Iterator[tuple[Connection, str]]:
    """The same in a database of a test's own, with a vector for every row: a connection and its string."""
    with (
        contextmanager(new_database)(full_server.dsn(), full_template) as dsn,
        psycopg.connect(dsn, autocommit=True) as conn,
    ):
        make(conn)
        work(dsn)
        encoder.seen.clear()
        yield conn, dsn


@contextmanager
def named(full_server: FullServer) -> Generator[str]:
    """A name for a database that a test makes, and that is dropped after it."""
    cleaner = janitor(full_server.dsn(), new_name("moved"))
    try:
        yield cleaner.dbname
    finally:
        cleaner.drop()


def run(server: FullServer, commands: str, **names: str) -> None:
    """Run commands of the page in an empty folder, with other names for ``shop`` and ``shop_new``."""
    parts = conninfo_to_dict(server.dsn())
    env = {"PGHOST": parts["host"], "PGPORT": parts["port"], "PGUSER": parts["user"], "PGPASSWORD": parts["password"]}
    assert server.installation is not None
    for name in sorted(names, key=len, reverse=True):
        commands = re.sub(rf"(?<![\w.]){name}(?![\w.])", names[name], commands)
    own = f"PATH={server.installation.bin_dir}:$PATH; folder=$(mktemp -d); trap 'rm -rf $folder' EXIT; cd $folder"
    server.run("sh", "-ec", f"{own}\n{commands}", env={key: str(value) for key, value in env.items()})


def work(dsn: str) -> int:
    with pgembed.connect(dsn) as db:
        return db.work(until_idle=True).written


def wrong(conn: Connection) -> list[str]:
    """What doctor finds wrong, but for workers that are not connected."""
    found = [one for one in pgembed.connect(conn).doctor() if not one.ok and "no worker" not in one.finding]
    return [f"{one.subject}: {one.finding} | {one.remedy}" for one in found]


def nearest(conn: Connection, table: str, title: str) -> object:
    """The row that a search by a text's own vector finds first."""
    query = f"SELECT (item).id FROM pgembed.search(NULL::{table}, %s::text::vector, k => 1)"
    rows = conn.execute(query.encode(), [str(vector_of(title).tolist())]).fetchall()
    return rows[0][0] if rows else None


def assert_goes_on(dsn: str, encoder: FakeEncoder, *, waited: int = 1) -> None:
    """A copy is searched before anything else is done; then workers encode what waited and no more, and what changes.

    ``waited`` rows do in each table.
    """
    with psycopg.connect(dsn, autocommit=True) as conn:
        for table in TABLES:
            assert (nearest(conn, table, "a dog"), nearest(conn, table, "a red apple")) == (2, 1)
        work(dsn)
        assert encoder.seen == ["a chair"] * waited * len(TABLES)
        assert wrong(conn) == []
        for table in TABLES:
            conn.execute(f"UPDATE {table} SET title = 'a boat', price = 9 WHERE id = 1".encode())
            conn.execute(f"UPDATE {table} SET price = 9 WHERE id = 2".encode())
            conn.execute(f"DELETE FROM {table} WHERE id = 3".encode())
        work(dsn)
        assert encoder.seen[waited * len(TABLES) :] == ["a boat"] * len(TABLES)
        for table in TABLES:
            assert nearest(conn, table, "a boat") == 1
        assert wrong(conn) == []
        assert conn.execute("SELECT id FROM nook.beside_embedding ORDER BY id").fetchall() == [(1,), (2,)]


# A database


@pytest.mark.parametrize("way", WAYS)
def test_a_copy_of_a_database_goes_on(full_server: FullServer, shop: str, encoder: FakeEncoder, way: str) -> None:
    with named(full_server) as new:
        run(full_server, WAYS[way], shop=shop, shop_new=new)
        assert_goes_on(full_server.dsn(new), encoder)


@pytest.mark.parametrize("way", ["plain", "custom"])
def test_a_dump_of_17_goes_into_18(
    full_server: FullServer, shop: str, encoder: FakeEncoder, bare_dsn: str, bare_database: Connection, way: str
) -> None:
    assert bare_database.info.server_version >= 180000
    if way == "plain":
        dump = full_server.run("pg_dump", full_server.dsn(shop)).stdout
        command = [binaries() / "psql", "-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", bare_dsn]
    else:
        dump = full_server.run("pg_dump", "-Fc", full_server.dsn(shop)).stdout
        command = [binaries() / "pg_restore", "--exit-on-error", "-d", bare_dsn]
    subprocess.run(command, input=dump, capture_output=True, check=True)
    (command_of_page,) = WHOLE["sql"]
    findings = wrong(bare_database)
    assert len(findings) == len(TABLES)
    assert all(finding.endswith("it was restored. | SELECT pgembed.sync();") for finding in findings)
    bare_database.execute(command_of_page.encode())
    assert wrong(bare_database) == []
    assert_goes_on(bare_dsn, encoder)


def test_rows_that_are_loaded_with_triggers_on_are_queued(
    full_server: FullServer, shop: str, encoder: FakeEncoder
) -> None:
    commands = WAYS["structure and rows"].replace(" --disable-triggers", "")
    assert commands != WAYS["structure and rows"]
    with named(full_server) as new:
        run(full_server, commands, shop=shop, shop_new=new)
        work(full_server.dsn(new))
        assert sorted(encoder.seen) == sorted(["a red apple", "a dog", "a chair"] * 2)


def test_a_structure_without_rows_is_told_of_and_begun_anew(
    full_server: FullServer, shop: str, encoder: FakeEncoder
) -> None:
    with named(full_server) as new:
        run(full_server, WAYS["structure and rows"].rsplit("\n", 2)[0], shop=shop, shop_new=new)
        with psycopg.connect(full_server.dsn(new), autocommit=True) as conn:
            (finding,) = wrong(conn)
            assert "its tables are empty: a dump was restored without its data" in finding
            with pytest.raises(CatalogError, match="are empty: a dump was restored without its data"):
                pgembed.connect(conn).install()
            conn.execute("INSERT INTO goods.product VALUES (1, 'a dog')")  # no statement fails meanwhile
            (commands,) = BLOCKS["The structure first, the rows later"]["sql"]
            conn.execute(commands.replace("product", "goods.product").encode())
            pgembed.connect(conn).install()
            conn.execute("DROP SCHEMA goods, nook CASCADE")
            make(conn)
        assert work(full_server.dsn(new)) == 4
        encoder.seen.clear()
        assert_goes_on(full_server.dsn(new), encoder, waited=0)


# A table


def test_a_table_goes_to_another_database_with_its_vectors(
    full_server: FullServer, full_template: str, shop: str, encoder: FakeEncoder
) -> None:
    load, _ = BLOCKS["One table"]["bash"]
    with contextmanager(new_database)(full_server.dsn(), full_template) as dsn:
        new = str(conninfo_to_dict(dsn)["dbname"])
        with psycopg.connect(dsn, autocommit=True) as conn:
            make(conn)
            conn.execute("DELETE FROM goods.product; DELETE FROM nook.beside")
        run(full_server, load.replace("-t product", "-t goods.product"), shop=shop, shop_new=new)
        run(full_server, load.replace("-t product", "-t nook.beside -t nook.beside_embedding"), shop=shop, shop_new=new)
        work(dsn)
        assert encoder.seen == ["a chair"] * 2  # which had no vector there
        encoder.seen.clear()
        assert_goes_on(dsn, encoder, waited=0)


def test_rows_are_loaded_between_unhook_and_sync(
    full_server: FullServer, full_template: str, shop: str, encoder: FakeEncoder
) -> None:
    load = BLOCKS["One table"]["bash"][0].replace(" --disable-triggers", "")
    (statements,) = BLOCKS["One table"]["sql"]
    before, after = statements.replace("product", "goods.product").splitlines()
    with (
        contextmanager(new_database)(full_server.dsn(), full_template) as dsn,
        psycopg.connect(dsn, autocommit=True) as conn,
    ):
        make(conn)
        conn.execute("DELETE FROM goods.product")
        conn.execute(before.encode())
        new = str(conninfo_to_dict(dsn)["dbname"])
        run(full_server, load.replace("-t product", "-t goods.product"), shop=shop, shop_new=new)
        conn.execute(after.encode())
        work(dsn)
        assert sorted(encoder.seen) == ["a chair", "a dog", "a red apple"]  # the last two of the other table
        assert nearest(conn, "goods.product", "a dog") == 2
        assert wrong(conn) == []


@pytest.mark.parametrize("table", TABLES)
def test_a_table_is_put_back_as_it_was(
    full_server: FullServer, own: tuple[Connection, str], encoder: FakeEncoder, table: str
) -> None:
    conn, dsn = own
    _, commands = BLOCKS["One table"]["bash"]
    if TABLES[table] == "side":
        commands = commands.replace("-t product", "-t nook.beside -t nook.beside_embedding")
        commands = commands.replace("TABLE product", "TABLE nook.beside, nook.beside_embedding")
    else:
        commands = re.sub("(-t|TABLE) product", rf"\1 {table}", commands)
    run(full_server, commands, shop=str(conninfo_to_dict(dsn)["dbname"]))
    assert wrong(conn) == []
    assert_goes_on(dsn, encoder, waited=0)


@pytest.mark.parametrize("table", TABLES)
def test_a_copy_of_a_table_beside_it_does_no_harm_and_is_told_of(
    full_server: FullServer, own: tuple[Connection, str], encoder: FakeEncoder, table: str
) -> None:
    """Its triggers came along with it, and call the functions of the embedding that has its number here."""
    conn, dsn = own
    dump = full_server.run("pg_dump", "-t", table, dsn).stdout
    place = f"{table.split('.')[0]}.item"
    conn.execute(f"ALTER TABLE {table} RENAME TO item; ALTER INDEX {table}_pkey RENAME TO item_pkey".encode())
    work(dsn)
    full_server.run("psql", "-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", dsn, input=dump)
    conn.execute(f"UPDATE {table} SET title = 'a boat' WHERE id = 1; DELETE FROM {table} WHERE id = 2".encode())
    conn.execute(f"TRUNCATE {table}".encode())
    work(dsn)
    assert (nearest(conn, place, "a dog"), nearest(conn, place, "a red apple")) == (2, 1)
    assert conn.execute("SELECT pgembed.sync()").fetchone() == (0,)
    findings = wrong(conn)
    assert len(findings) == 1
    assert f"{table} has its triggers too" in findings[0]
    conn.execute(findings[0].split(" | ")[1].encode())
    assert wrong(conn) == []
    conn.execute(f"DROP TABLE {table}".encode())
    assert encoder.seen in ([], ["a red apple"])  # of a key that the copy's log row named


# What an owner does to a table


CHANGES = (
    "ALTER TABLE {table} ADD COLUMN more text DEFAULT random()::text",
    "ALTER TABLE {table} DROP COLUMN price",
    "ALTER TABLE {table} ALTER more TYPE varchar(40)",
    "VACUUM FULL {table}",
    "CLUSTER {table} USING {name}_pkey",
    "ALTER TABLE {table} SET UNLOGGED",
    "ALTER SCHEMA {schema} RENAME TO former",
    "ALTER SCHEMA former RENAME TO {schema}",
    "ALTER TABLE {table} SET SCHEMA attic",
    "ALTER TABLE attic.{name} RENAME TO moved",
)


@pytest.mark.parametrize("table", TABLES)
def test_a_table_that_is_moved_or_rewritten_is_not_encoded_again(
    own: tuple[Connection, str], encoder: FakeEncoder, table: str
) -> None:
    conn, dsn = own
    conn.execute("CREATE SCHEMA attic")
    schema, name = table.split(".")
    for change in CHANGES:
        conn.execute(change.format(table=table, schema=schema, name=name).encode())
        assert conn.execute("SELECT sum(queued) FROM pgembed.status").fetchone() == (0,), change
    assert nearest(conn, "attic.moved", "a dog") == 2
    assert work(dsn) == 0
    conn.execute("UPDATE attic.moved SET title = 'a boat' WHERE id = 1")
    assert work(dsn) == 1
    assert encoder.seen == ["a boat"]
    assert nearest(conn, "attic.moved", "a boat") == 1
    assert wrong(conn) == []


@pytest.mark.parametrize(
    "drop",
    ["DROP TABLE {table}", "DROP SCHEMA {schema} CASCADE", "DROP OWNED BY {role}"],
)
@pytest.mark.parametrize("table", TABLES)
def test_nothing_is_left_of_a_table_that_is_dropped_once_doctor_is_obeyed(
    shop_password: str, own: tuple[Connection, str], table: str, drop: str
) -> None:
    conn, dsn = own
    schema = table.split(".")[0]
    role = sql.Identifier(role_of("owner")).as_string()
    conn.execute(f"ALTER TABLE {table} OWNER TO {role}".encode())
    if table == "nook.beside":
        conn.execute(f"ALTER TABLE nook.beside_embedding OWNER TO {role}".encode())
    conn.execute(drop.format(table=table, schema=schema, role=role).encode())
    others = [one for one in TABLES if one != table]
    work(dsn)
    findings = wrong(conn)
    assert len(findings) == 1
    assert "The table is gone." in findings[0]
    conn.execute(findings[0].split(" | ")[1].encode())
    assert wrong(conn) == []
    number = list(TABLES).index(table) + 1
    left = (
        "SELECT relname FROM pg_class WHERE relname ~ %(of)s"
        " UNION ALL SELECT proname FROM pg_proc WHERE proname ~ %(of)s"
        " UNION ALL SELECT 'trigger' FROM pg_trigger WHERE tgname ~ %(of)s"
        " UNION ALL SELECT table_name FROM pgembed.embedding WHERE id = %(id)s"
        " UNION ALL SELECT 'failure' FROM pgembed.failure WHERE embedding = %(id)s"
    )
    pattern = rf"^(change|job|append_row|append_rows|drop|empty)_{number}(_|$)|^pgembed_{number}_"
    assert conn.execute(left, {"of": pattern, "id": number}).fetchall() == []
    if table == "nook.beside":
        assert conn.execute("SELECT to_regclass('nook.beside_embedding')").fetchone() == (None,)
    for other in others:
        assert nearest(conn, other, "a dog") == 2


def test_without_the_schema_pgembed_tables_keep_their_vectors_and_no_statement_fails(
    own: tuple[Connection, str],
) -> None:
    conn, _ = own
    conn.execute("DROP SCHEMA pgembed CASCADE")
    for table in TABLES:
        conn.execute(f"INSERT INTO {table} VALUES (5, 'a boat'); UPDATE {table} SET title = 'x' WHERE id = 1".encode())
        conn.execute(f"DELETE FROM {table} WHERE id = 2".encode())
    assert conn.execute("SELECT count(embedding) FROM goods.product").fetchone() == (1,)
    assert conn.execute("SELECT count(*) FROM nook.beside_embedding").fetchone() == (2,)
