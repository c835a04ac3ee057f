"""Verify: vectors are compared with fresh encodings; what does not match is told, and queued where asked."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest
from PIL import Image

import pgembed
from pgembed.cli.main import main
from pgembed.errors import CatalogError, EncoderMismatch, InvalidInput
from pgembed.media import MediaPolicy
from pgembed.worker import Verification
from pgembed.worker.verification import DISTANCE, is_same
from tests.fakes import DIM, Connection, Table, vector_of

OTHER = "[1,0,0,0,0,0,0,0]"


@pytest.fixture(params=["column", "side"])
def table(request: pytest.FixtureRequest, table_of_columns: Table) -> Table:
    made = table_of_columns
    if request.param == "side":
        made.conn.execute("SELECT pgembed.detach('product')")
        made.conn.execute(
            """SELECT pgembed.attach('product', 'embedding', 'fake', '{"text": "title"}', storage => 'side')"""
        )
    return made


@pytest.fixture
def table_of_columns(database: Connection, database_dsn: str, monkeypatch: pytest.MonkeyPatch) -> Table:
    return Table(database, database_dsn, monkeypatch)


def is_side(table: Table) -> bool:
    return table.conn.execute("SELECT to_regclass('product_embedding') IS NOT NULL").fetchone() == (True,)


def unseen(conn: Connection, *statements: str) -> None:
    """Run statements that no trigger sees."""
    conn.execute("SET session_replication_role = replica")
    for statement in statements:
        conn.execute(statement.encode())
    conn.execute("RESET session_replication_role")


def spoil(table: Table, key: int) -> None:
    """Give a row another vector."""
    if is_side(table):
        table.conn.execute("UPDATE product_embedding SET vector = %s WHERE id = %s", [OTHER, key])
    else:
        table.conn.execute("UPDATE product SET embedding = %s WHERE id = %s", [OTHER, key])


def drop_vector(table: Table, key: int) -> None:
    if is_side(table):
        table.conn.execute("DELETE FROM product_embedding WHERE id = %s", [key])
    else:
        table.conn.execute("UPDATE product SET embedding = NULL WHERE id = %s", [key])


def verify(table: Table, **options: Any) -> Verification:  # noqa: ANN401
    with pgembed.connect(table.dsn) as db:
        return db.verify("product", **options)


def test_true_vectors_match(table: Table) -> None:
    table.insert("red shoe", "blue car", None, "  ")
    table.work()
    found = verify(table)
    assert found.ok
    assert (found.rows, found.matching, found.waiting, found.failed) == (4, 4, 0, 0)


def test_each_kind_is_told_apart_and_repaired(table: Table) -> None:
    conn = table.conn
    table.insert("red shoe", "blue car", "green tree", "white dog", "black cat")
    table.work()
    unseen(conn, "UPDATE product SET title = 'grey cat' WHERE id = 1", "UPDATE product SET title = NULL WHERE id = 2")
    drop_vector(table, 3)
    unseen(conn, "DELETE FROM product WHERE id = 4")
    found = verify(table, sample=None)
    assert not found.ok
    assert (found.rows, found.matching) == (4, 1)
    assert (found.differing.count, found.differing.keys) == (1, [["1"]])
    assert (found.unfounded.count, found.unfounded.keys) == (1, [["2"]])
    assert (found.missing.count, found.missing.keys) == (1, [["3"]])
    assert found.left_over.keys == ([["4"]] if is_side(table) else [])
    assert found.repaired == 0
    assert table.waiting() == 0
    assert verify(table).left_over.keys == found.left_over.keys

    repaired = verify(table, sample=None, repair=True)
    assert repaired.repaired == (4 if is_side(table) else 3)
    assert table.waiting() == repaired.repaired
    waiting = verify(table, sample=None)
    assert (waiting.ok, waiting.waiting) == (True, 3)
    table.work()
    mended = verify(table)
    assert (mended.ok, mended.matching, mended.waiting) == (True, 4, 0)
    if is_side(table):
        assert conn.execute("SELECT id FROM product_embedding ORDER BY id").fetchall() == [(1,), (3,), (5,)]


def test_rows_that_wait_or_failed_are_no_mismatches(table: Table) -> None:
    table.insert("red shoe", "bad", "blue car", "green tree", "white dog")

    def refuse(texts: Sequence[str]) -> None:
        if "bad" in texts:
            raise InvalidInput("The word is bad.")

    table.encoder.before = refuse
    table.work()
    assert list(table.failures()) == ["2"]
    table.conn.execute("UPDATE product SET title = title || '!' WHERE id IN (1, 3)")  # in the log
    number = table.conn.execute("SELECT id FROM pgembed.embedding").fetchall()[0][0]
    fold = (
        f"WITH moved AS (DELETE FROM pgembed.change_{number} WHERE key_1 = 3 RETURNING key_1)"
        f" INSERT INTO pgembed.job_{number} (key_1) SELECT key_1 FROM moved"
    )
    table.conn.execute(fold.encode())
    found = verify(table)
    assert (found.ok, found.rows, found.matching, found.waiting, found.failed) == (True, 5, 2, 2, 1)


def test_rows_that_the_backfill_has_not_reached_wait(table: Table) -> None:
    table.insert("red shoe", "blue car", "green tree")
    table.work()
    drop_vector(table, 1)
    drop_vector(table, 3)
    table.conn.execute("UPDATE pgembed.embedding SET state = 'backfill'")
    table.conn.execute("UPDATE pgembed.backfill SET after = '[\"2\"]'")
    found = verify(table)
    assert (found.waiting, found.missing.keys) == (1, [["1"]])


def test_a_row_that_changes_meanwhile_is_not_reported(table: Table) -> None:
    table.insert("red shoe", "blue car", "green tree")
    table.work()

    def change(texts: Sequence[str]) -> None:
        table.encoder.before = lambda texts: None
        with psycopg.connect(table.dsn, autocommit=True) as other:
            other.execute("UPDATE product SET title = 'white dog' WHERE id = 1")
            other.execute("DELETE FROM product WHERE id = 2")
        table.work()

    table.encoder.before = change
    assert verify(table).ok


def test_a_row_that_differs_is_looked_at_once_more(table: Table) -> None:
    """It was mended while it was encoded, or waits now."""
    table.insert("red shoe", "blue car", "green tree")
    table.work()
    for key in (1, 2, 3):
        spoil(table, key)

    def mend(texts: Sequence[str]) -> None:
        table.encoder.before = lambda texts: None
        table.conn.execute("SELECT pgembed.reconcile('product', \"where\" => 't.id = 1')")
        table.work()
        table.conn.execute("SELECT pgembed.reconcile('product', \"where\" => 't.id = 2')")

    table.encoder.before = mend
    found = verify(table)
    assert (found.differing.keys, found.rows, found.matching, found.waiting) == ([["3"]], 3, 1, 1)


def test_keys_are_counted_and_twenty_are_shown(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pgembed.worker.verification.KEYS", 70)
    table.conn.execute("INSERT INTO product SELECT i * 3, 'shoe ' || i FROM generate_series(-100, 99) AS i")
    table.work()
    unseen(table.conn, "UPDATE product SET title = title || '!' WHERE id % 2 = 0")
    told: list[tuple[int, int]] = []
    found = verify(table, sample=None, repair=True, on_progress=lambda done, total: told.append((done, total)))
    assert (found.rows, found.matching, found.differing.count, len(found.differing.keys)) == (200, 100, 100, 20)
    assert (found.repaired, table.waiting()) == (100, 100)
    assert told[-1] == (200, 200)
    assert all(done <= total for done, total in told)


def test_a_sample_is_drawn_at_random(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pgembed.worker.verification.OVERSAMPLE", 2)
    table.conn.execute("INSERT INTO product SELECT i, repeat('x', 500) || i FROM generate_series(1, 3000) AS i")
    table.conn.execute("ANALYZE product")
    table.encoder.seen.clear()
    drawn: list[set[str]] = []
    table.conn.execute("UPDATE pgembed.embedding SET state = 'ready'")
    table.conn.execute("SELECT pgembed.reconcile('product')")
    table.work(batch_size=1000)
    for _ in range(2):
        table.encoder.seen.clear()
        found = verify(table, sample=50)
        assert (found.rows, found.matching) == (50, 50)
        drawn.append(set(table.encoder.seen))
    assert len(drawn[0]) == 50
    assert drawn[0] != drawn[1]


def test_composite_keys_joint_inputs_and_odd_names(
    database: Connection, database_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Table(database, database_dsn, monkeypatch)
    pictures = []
    for colour in ("red", "blue"):
        Image.new("RGB", (4, 4), colour).save(file := io.BytesIO(), "PNG")
        pictures.append(file.getvalue())
    database.execute(
        'CREATE TABLE "The %s" (a text, "b c" timestamptz, title text, photo bytea, PRIMARY KEY (a, "b c"))'
    )
    for storage in ("column", "side"):
        database.execute(
            """SELECT pgembed.attach('"The %%s"', %s, 'fake', '{"text": "title", "image": "photo"}', storage => %s)""",
            [storage, storage],
        )
    rows = [("x'\"", "2020-01-01 01:02:03.456789+05", "one", pictures[0]), ("y", "infinity", "two", pictures[1])]
    for row in [*rows, ("y", "2021-01-01", None, pictures[1]), ("z", "2021-01-01", "three", None)]:
        database.execute('INSERT INTO "The %%s" VALUES (%s, %s, %s, %s)', row)
    made.work()
    with pgembed.connect(database_dsn) as db:
        for storage in ("column", "side"):
            for sample in (None, 10):
                found = db.verify('"The %s"', storage, sample=sample)
                assert (found.ok, found.matching) == (True, 4)
        unseen(database, "UPDATE \"The %s\" SET photo = 'broken' WHERE a LIKE 'x%'")
        unseen(database, "UPDATE \"The %s\" SET title = 'other' WHERE a = 'z'")
        for storage in ("column", "side"):
            found = db.verify('"The %s"', storage, sample=None, repair=True)
            assert found.differing.keys == [["z", "2021-01-01 00:00:00+00"]]
            assert found.unchecked.keys == [["x'\"", "2019-12-31 20:02:03.456789+00"]]
            assert not found.ok
            assert len(found.reasons) == 1
            assert found.repaired == 1
        with pytest.raises(CatalogError, match="embeddings"):
            db.verify('"The %s"')


def test_paths_are_read_below_the_root_alone(
    table_of_columns: Table, database: Connection, database_dsn: str, tmp_path: Path
) -> None:
    Image.new("RGB", (4, 4), "red").save(tmp_path / "red.png")
    database.execute("CREATE TABLE picture (id integer PRIMARY KEY, file text)")
    database.execute("INSERT INTO picture VALUES (1, %s)", [str(tmp_path / "red.png")])
    database.execute(
        """SELECT pgembed.attach('picture', 'embedding', 'fake', '{"image": {"column": "file", "as": "path"}}')"""
    )
    media = MediaPolicy(media_root=tmp_path)
    table_of_columns.work(media=media)
    with pgembed.connect(database_dsn) as db:
        assert db.verify("picture", media=media).matching == 1
        refused = db.verify("picture")
        assert (refused.ok, refused.unchecked.keys) == (False, [["1"]])


def test_a_row_that_cannot_be_computed_is_unchecked_and_spoils_no_other(table: Table) -> None:
    conn = table.conn
    if conn.info.server_version < 180000:
        pytest.skip("virtual columns are of PostgreSQL 18")
    conn.execute(
        "CREATE TABLE item (id integer PRIMARY KEY, n integer, m integer GENERATED ALWAYS AS (1000 / n) VIRTUAL)"
    )
    conn.execute(
        """SELECT pgembed.attach('item', 'e', 'fake', '{"text": "{m}"}', storage => %s)""",
        ["side" if is_side(table) else "column"],
    )
    conn.execute("INSERT INTO item (id, n) SELECT i, i FROM generate_series(1, 9) AS i")
    table.work()
    unseen(conn, "UPDATE item SET n = 0 WHERE id = 6", "UPDATE item SET n = 77 WHERE id = 8")
    with pgembed.connect(table.dsn) as db:
        found = db.verify("item", sample=None)
    assert (found.unchecked.keys, found.differing.keys, found.matching) == ([["6"]], [["8"]], 7)
    assert found.reasons == ["division by zero"]


def test_another_model_is_refused(table: Table) -> None:
    table.insert("red shoe")
    table.work()
    table.encoder.fingerprint = "other"
    with pytest.raises(EncoderMismatch):
        verify(table)


def test_noise_is_tolerated_and_another_length_where_length_counts_is_not() -> None:
    one = vector_of("red shoe")
    assert is_same(one, one.astype(np.float16).astype(np.float32), "cosine")
    assert is_same(one, 3 * one, "cosine")
    assert not is_same(one, vector_of("red shoes"), "cosine")
    assert not is_same(np.zeros(DIM, np.float32), one, "cosine")
    assert not is_same(one, np.append(one, np.float32(0)), "cosine")
    for metric in ("l2", "ip"):
        assert is_same(100 * one, 100 * one.astype(np.float16).astype(np.float32), metric)
        assert is_same(one, np.float32(1 - DISTANCE / 2) * one, metric)
        assert not is_same(one, np.float32(1 - DISTANCE * 2) * one, metric)


def test_async_does_the_same(table: Table) -> None:
    table.insert("red shoe", "blue car")
    table.work()
    spoil(table, 2)

    async def run() -> Verification:
        async with pgembed.connect_async(table.dsn) as db:
            found = await db.verify("product", sample=None, repair=True)
            assert await db.requeue("product", [["1"]]) == 1
            return found

    found = asyncio.run(run())
    assert (found.differing.keys, found.repaired) == ([["2"]], 1)
    assert table.waiting() == 2


def test_the_command_says_what_does_not_match(
    table: Table, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGEMBED_DSN", table.dsn)
    table.insert("red shoe", "blue car")
    table.work()

    def run(*words: str) -> tuple[int, str]:
        with pytest.raises(SystemExit) as left:
            main(["verify", "product", *words])
        return int(left.value.code or 0), capsys.readouterr().out

    code, out = run("--all")
    assert code == 0
    assert "2 looked at, 2 match (cosine >= 0.999)" in out
    spoil(table, 2)
    code, out = run()
    assert code == 1
    assert "differing" in out
    assert "pgembed verify product --repair" in out
    code, out = run("--repair", "--json")
    report = json.loads(out)
    assert code == 1
    assert (report["ok"], report["repaired"], report["differing"]) == (False, 1, {"count": 1, "keys": [["2"]]})
    assert run("--sample", "5", "--all")[0] == 2
    table.work()
    assert run("--sample", "5")[0] == 0


def test_keys_of_another_width_are_refused(table: Table) -> None:
    with pgembed.connect(table.dsn) as db:
        for wrong in ([["1", "2"]], [[]], [[None]]):
            with pytest.raises(CatalogError, match="is no key of"):
                db.requeue("product", wrong)  # pyright: ignore[reportArgumentType]
        table.insert("red shoe")
        assert db.requeue("product", [["1"], ["1"], ["7"]]) == 1  # 1 waits
