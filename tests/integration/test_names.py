"""Names are data: whatever a schema, table, column, target, key or encoder is called, it is quoted and never run."""

from __future__ import annotations

from dataclasses import dataclass

import psycopg
import pytest
from psycopg import sql

import pgembed
from pgembed import Vector
from tests.facts import facts_of_table
from tests.fakes import Connection, vector_of
from tests.fakes import Table as Fake

EVIL = 'we"ird; DROP TABLE x --'
WORSE = "it's $$ %s \\ '); DROP TABLE x; --"


@dataclass(frozen=True)
class Names:
    """What things are called."""

    schema: str
    table: str
    key: str
    second: str
    text: str
    target: str
    encoder: str

    def sql(self, text: str) -> sql.Composed:
        """SQL with names in place of ``{table}``, ``{key}``, …"""
        names = {name: sql.Identifier(value) for name, value in vars(self).items()}
        return sql.SQL(text).format(**names | {"table": sql.Identifier(self.schema, self.table)})  # pyright: ignore[reportArgumentType]

    @property
    def whole(self) -> str:
        """The table as SQL names it."""
        return sql.Identifier(self.schema, self.table).as_string()


NAMES = {
    "quotes and semicolons": Names(*(f"{EVIL} {n}" for n in range(7))),
    "apostrophes, dollars and percent signs": Names(*(f"{WORSE} {n}" for n in range(7))),
    "key words and spaces": Names("select", "table", "user", "order", "from", "where", "group"),
}


@pytest.fixture
def table(database: Connection, database_dsn: str, monkeypatch: pytest.MonkeyPatch) -> Fake:
    fake = Fake(database, database_dsn, monkeypatch)
    database.execute("SELECT pgembed.detach('product'); CREATE TABLE x (id integer)")
    return fake


@pytest.mark.parametrize("form", ["column", "side", "null"])
@pytest.mark.parametrize("case", NAMES)
def test_the_whole_path_with_names_that_would_do_harm(table: Fake, case: str, form: str) -> None:
    conn, names = table.conn, NAMES[case]
    raw = psycopg.RawCursor(conn)  # since names hold percent signs
    db = pgembed.connect(conn)
    conn.execute(names.sql("CREATE SCHEMA {schema}"))
    conn.execute(
        names.sql("CREATE TABLE {table} ({key} integer, {second} text, {text} text, PRIMARY KEY ({key}, {second}))")
    )
    before = facts_of_table(conn, names.whole)
    conn.execute("UPDATE pgembed.encoder SET name = %s WHERE name = 'fake'", [names.encoder])
    column = "{" + names.text + "}"
    assert db.estimate(names.whole, names.target, encoder=names.encoder, text=column).rows == 0
    db.attach(
        names.whole,
        names.target,
        encoder=names.encoder,
        text=column,
        storage="side" if form == "side" else "column",
        stale="null" if form == "null" else "keep",
    )
    row = f"{names.schema}.{names.table}.{names.target}"
    conn.execute(names.sql("INSERT INTO {table} VALUES (1, 'a', 'red shoe'), (2, 'b', 'blue car'), (3, 'c', 'dog')"))
    assert table.work().written == 3
    assert db.wait(names.whole, names.target) == []

    # searches
    shoe = str([float(x) for x in vector_of("red shoe")])
    for more in ("", ", k => 100", ", exact => true", ", wide => true"):
        statement = names.sql(f"SELECT (item).{{key}} FROM pgembed.search(NULL::{{table}}, $1::vector{more})")
        assert raw.execute(statement, [shoe]).fetchall()[0] == (1,)
    statement = names.sql(
        "SELECT (item).{second} FROM pgembed.search(NULL::{table}, $1::vector, filter => $2, params => $3,"
        " embedding => $4)"
    )
    condition = names.sql("{key} > $1 AND {second} = ANY ($2)").as_string()
    found = raw.execute(statement, [shoe, condition, '[1, ["b", "; DROP TABLE x"]]', names.target]).fetchall()
    assert found == [("b",)]
    vector = Vector(vector_of("red shoe"))
    assert getattr(db.search(names.whole, vector, limit=1)[0], names.key) == 1
    where = names.sql("{second} = %s").as_string().replace("%s", "\0").replace("%", "%%").replace("\0", "%s")
    if "%s" not in names.second:
        found = db.search(names.whole, vector, where=where, params=["b"], limit=1, embedding=names.target, wide=True)
        assert getattr(found[0], names.key) == 2

    # keeping true
    conn.execute(names.sql("UPDATE {table} SET {text} = 'red shoe' WHERE {key} = 2"))
    conn.execute(names.sql("UPDATE {table} SET {second} = 'z' WHERE {key} = 3; DELETE FROM {table} WHERE {key} = 1"))
    table.work()
    report = db.verify(names.whole, names.target, sample=None)
    assert (report.ok, report.rows) == (True, 2)
    conn.execute("SET session_replication_role = replica")
    conn.execute(names.sql("INSERT INTO {table} VALUES (4, 'it''s 4', 'dog')"))
    conn.execute("RESET session_replication_role")
    assert db.reconcile(names.whole, names.target) == 1
    assert db.reconcile(names.whole, where=names.sql("{key} = 2").as_string()) == 1
    assert db.requeue(names.whole, [["2", "b"], ["9", EVIL]], names.target) == 1
    assert db.pause(names.whole, names.target) == 1
    assert db.resume(names.whole, names.target) == 1
    conn.execute("INSERT INTO pgembed.failure SELECT id, jsonb_build_array('2', 'b'), 'x', 1 FROM pgembed.embedding")
    assert [failure.key for failure in db.failures(names.whole)] == [["2", "b"]]
    assert db.retry(names.whole, names.target) == 1
    table.work()
    (status,) = db.status(names.whole)
    assert (status.rows, status.ready, status.queued) == (3, 3, 0)
    assert f"{status.schema_name}.{status.table_name}.{status.target}" == row
    assert [finding for finding in db.doctor() if not finding.ok] == []

    # the index, and what people are told to run
    db.build_index(names.whole, names.target)
    conn.execute("SET enable_seqscan = off")
    assert getattr(db.search(names.whole, vector, limit=1)[0], names.key) == 2
    conn.execute("RESET enable_seqscan")
    conn.execute(names.sql("ALTER TABLE {table} DISABLE TRIGGER USER"))
    (finding,) = [finding for finding in db.doctor() if not finding.ok]
    conn.execute(str(finding.remedy).removeprefix("Make them anew: ").encode())
    table.work()
    assert [finding for finding in db.doctor() if not finding.ok] == []

    # names follow
    conn.execute(names.sql("ALTER TABLE {table} RENAME {text} TO {encoder}"))
    conn.execute(names.sql("ALTER TABLE {table} RENAME TO {target}"))
    assert db.status()[0].table_name == names.target
    conn.execute("SELECT pgembed.sync()")
    moved = sql.Identifier(names.schema, names.target)
    conn.execute(sql.SQL("UPDATE {} SET {} = 'cat'").format(moved, sql.Identifier(names.encoder)))
    assert table.work().written == 3
    conn.execute(sql.SQL("ALTER TABLE {} RENAME TO {}").format(moved, sql.Identifier(names.table)))
    conn.execute(names.sql("ALTER TABLE {table} RENAME {encoder} TO {text}"))
    conn.execute("SELECT pgembed.sync()")

    db.detach(names.whole, names.target)
    assert facts_of_table(conn, names.whole) == before
    db.remove_encoder(names.encoder)
    conn.execute("SELECT * FROM x")
    with pytest.raises(psycopg.errors.UndefinedObject, match="No encoder named"):
        conn.execute("SELECT pgembed.encode_text(%s, 'x')", [EVIL])
    db.uninstall()


def test_a_role_of_any_name_is_granted_and_revoked(table: Fake) -> None:
    conn = table.conn
    for name in (EVIL, WORSE):
        role = sql.Identifier(name)
        conn.execute(sql.SQL("CREATE ROLE {}").format(role))
        try:
            with pgembed.connect(conn) as db:
                for kind in ("worker", "reader", "writer"):
                    assert db.grant(kind, name) == []
                table.attach()
                assert len([finding for finding in db.doctor() if finding.finding == "has what it needs"]) == 3
                for kind in ("worker", "reader", "writer"):
                    assert db.revoke(kind, name) == []
                db.detach("product")
            assert conn.execute(
                "SELECT count(*) FROM pg_shdepend WHERE refobjid = (SELECT oid FROM pg_roles WHERE rolname = %s)",
                [name],
            ).fetchone() == (0,)
        finally:
            conn.execute(sql.SQL("DROP ROLE {}").format(role))
    conn.execute("SELECT * FROM x")
