"""Instant mode: a row has its vector in the transaction that writes it, with no worker and no Python."""

from __future__ import annotations

import threading
from collections.abc import Collection
from typing import Any

import numpy as np
import psycopg
import pytest

import pgembed
from pgembed.encoders import load_encoder
from pgembed.errors import InvalidInput
from tests.conftest import Connection
from tests.fakes import deadlocks, until

TEXTS = ["a red shoe", "two dogs in the snow", "Grüße aus Köln", "fire-fighter, 3 trucks", "naïve café"]
INPUTS = '{"text": {"template": "{title} {body}"}}'


@pytest.fixture(params=["column", "side"])
def kept(request: pytest.FixtureRequest) -> str:
    """Where vectors stand."""
    return request.param


@pytest.fixture
def table(database: Connection, kept: str) -> Connection:
    """A table with an instant embedding over two columns."""
    database.execute("SELECT pgembed.add_encoder('lite', 'builtin:lite')")
    database.execute("CREATE TABLE item (id integer PRIMARY KEY, title text, body text, price numeric)")
    attach(database, kept)
    return database


def attach(conn: Connection, kept: str, table: str = "item", inputs: str = INPUTS) -> None:
    conn.execute(
        "SELECT pgembed.attach(%s::regclass, 'embedding', 'lite', %s, storage => %s, mode => 'instant')",
        [table, inputs, kept],
    )


def vectors(conn: Connection, kept: str, table: str = "item") -> dict[Any, tuple[str | None, Any]]:
    """Each row's text, as the template has it, and its vector or None."""
    place = "t.embedding" if kept == "column" else f"(SELECT s.vector FROM {table}_embedding s WHERE s.id = t.id)"
    rows = conn.execute(f"SELECT id, concat(title, ' ', body), {place}::real[] FROM {table} t").fetchall()
    return {row[0]: (str(row[1]), row[2]) for row in rows}


def assert_true(conn: Connection, kept: str, *, empty: Collection[int] = (), table: str = "item") -> None:
    """Every row but the empty ones has the vector of its text, by Python's account; and nothing waits."""
    found = vectors(conn, kept, table)
    assert {key for key, (_, vector) in found.items() if vector is None} == set(empty)
    full = [(text, vector) for text, vector in found.values() if vector is not None]
    if full:
        expected = load_encoder("builtin:lite").encode_text([str(text) for text, _ in full])
        assert np.abs(np.array([vector for _, vector in full]) - expected).max() < 1e-5
    assert queued(conn) == 0


def queued(conn: Connection) -> int:
    return int(str(conn.execute("SELECT sum(queued) FROM pgembed.status").fetchall()[0][0]))


def fill(conn: Connection, table: str = "item") -> None:
    conn.execute(f"CALL pgembed.fill('{table}')")


def test_every_way_of_writing_gives_the_vector_at_once(table: Connection, kept: str) -> None:
    table.execute(
        "INSERT INTO item SELECT n, text, 'plain' FROM unnest(%s::text[]) WITH ORDINALITY u (text, n)", [TEXTS]
    )
    fill(table)  # nothing waits but the end of the backfill
    assert_true(table, kept)
    with table.cursor().copy("COPY item (id, title) FROM STDIN") as copy:
        copy.write_row((6, "a green frog"))
    table.execute("UPDATE item SET title = title || ' again' WHERE id <= 3")
    table.execute("UPDATE item SET id = id + 100 WHERE id IN (1, 2)")
    table.execute("INSERT INTO item VALUES (3, 'a boat') ON CONFLICT (id) DO UPDATE SET title = excluded.title")
    table.execute("INSERT INTO item VALUES (3, 'not this one') ON CONFLICT DO NOTHING")
    table.execute(
        "MERGE INTO item USING (VALUES (4, 'merged'), (7, 'new')) AS v (id, title) ON item.id = v.id"
        " WHEN MATCHED THEN UPDATE SET title = v.title WHEN NOT MATCHED THEN INSERT (id, title) VALUES (v.id, v.title)"
    )
    table.execute("DELETE FROM item WHERE id = 5")
    assert_true(table, kept)
    assert len(vectors(table, kept)) == 7 - 1
    table.execute("UPDATE item SET title = NULL, body = NULL WHERE id = 3")
    table.execute("INSERT INTO item (id) VALUES (8)")
    assert_true(table, kept, empty={3, 8})
    table.execute("TRUNCATE item")
    table.execute("INSERT INTO item VALUES (3, 'after all')")
    assert_true(table, kept)


def test_keys_that_change_places_keep_their_vectors(table: Connection, kept: str) -> None:
    table.execute("ALTER TABLE item DROP CONSTRAINT item_pkey, ADD PRIMARY KEY (id) DEFERRABLE")
    table.execute("INSERT INTO item VALUES (1, 'a dog'), (2, 'a cat')")
    table.execute("UPDATE item SET id = 3 - id")
    fill(table)
    assert_true(table, kept)


def test_returning_gives_the_vector(database: Connection) -> None:
    database.execute("SELECT pgembed.add_encoder('lite', 'builtin:lite')")
    database.execute("CREATE TABLE item (id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY, title text)")
    attach(database, "column", inputs='{"text": "title"}')
    ((distance,),) = database.execute(
        "INSERT INTO item (title) VALUES ('a red shoe') RETURNING"
        " embedding <=> pgembed.encode_text('lite', 'a red shoe')"
    ).fetchall()
    assert float(str(distance)) == pytest.approx(0, abs=1e-6)


def test_what_touches_no_text_is_left_alone(table: Connection, kept: str) -> None:
    table.execute("INSERT INTO item VALUES (1, 'a dog')")
    before = vectors(table, kept)
    table.execute(
        "CREATE OR REPLACE FUNCTION pgembed._row_vector(model text, input text) RETURNS vector"
        " LANGUAGE sql STABLE STRICT AS $$ SELECT NULL::vector $$"
    )
    table.execute("UPDATE item SET price = 3, title = title")
    assert vectors(table, kept) == before
    table.execute("UPDATE item SET title = 'a cat'")
    assert vectors(table, kept)[1][1] is None


def test_bulk_loads_may_go_to_the_queue(table: Connection, kept: str) -> None:
    table.execute("SET pgembed.instant = 'off'")
    table.execute("INSERT INTO item SELECT n, 'a dog ' || n FROM generate_series(1, 50) n")
    table.execute("UPDATE item SET title = 'a cat' WHERE id = 7")
    table.execute("RESET pgembed.instant")
    table.execute("INSERT INTO item VALUES (51, 'at once')")
    found = vectors(table, kept)
    assert {key for key, (_, vector) in found.items() if vector is not None} == {51}
    assert queued(table) > 0
    table.execute("UPDATE item SET title = 'changed meanwhile' WHERE id = 9")
    fill(table)
    assert_true(table, kept)


@pytest.mark.parametrize("by", ["sql", "worker"])
def test_rows_that_were_there_are_filled(database: Connection, database_dsn: str, kept: str, by: str) -> None:
    database.execute("SELECT pgembed.add_encoder('lite', 'builtin:lite')")
    database.execute("CREATE TABLE item (id integer PRIMARY KEY, title text, body text)")
    database.execute(
        "INSERT INTO item SELECT n, CASE WHEN n % 10 > 0 THEN 'dog number ' || n END FROM generate_series(1, 2500) n"
    )
    attach(database, kept)
    database.execute("INSERT INTO item VALUES (0, 'ᚠ', 'ᚠ')")
    if by == "sql":
        fill(database)
    else:
        with pgembed.connect(database_dsn) as db:
            summary = db.work(until_idle=True)
        assert summary.written == 2250
        assert summary.failed == 1
    assert_true(database, kept, empty={0, *range(10, 2501, 10)})
    ((key, error),) = database.execute("SELECT key, error FROM pgembed.failures").fetchall()
    assert key == ["0"]
    with pytest.raises(InvalidInput) as of_python:
        load_encoder("builtin:lite").encode_text(["ᚠ ᚠ"])
    assert str(of_python.value).startswith(str(error))


def test_a_failure_is_forgotten_when_the_text_is_mended(table: Connection, kept: str) -> None:
    table.execute("INSERT INTO item VALUES (1, 'ᚠ'), (2, 'a dog')")
    assert vectors(table, kept)[1][1] is None
    assert queued(table) == 1
    fill(table)
    assert table.execute("SELECT key FROM pgembed.failures").fetchall() == [(["1"],)]
    table.execute("INSERT INTO item VALUES (1, 'not this one') ON CONFLICT DO NOTHING")
    assert table.execute("SELECT key FROM pgembed.failures").fetchall() == [(["1"],)]
    table.execute("UPDATE item SET title = 'a cat' WHERE id = 1")
    assert table.execute("SELECT key FROM pgembed.failures").fetchall() == []
    assert_true(table, kept)
    table.execute("UPDATE item SET title = 'ᚠ' WHERE id = 1")
    assert vectors(table, kept)[1][1] is None
    assert queued(table) == 1
    fill(table)
    table.execute("DELETE FROM item WHERE id = 1")
    table.execute("INSERT INTO item VALUES (1, 'a cat')")
    assert table.execute("SELECT key FROM pgembed.failures").fetchall() == []
    assert_true(table, kept)


def test_a_failure_is_forgotten_when_the_text_goes(table: Connection, kept: str) -> None:
    for end in ("UPDATE item SET title = NULL", "DELETE FROM item; INSERT INTO item (id) VALUES (1)"):
        table.execute("INSERT INTO item (id, title) VALUES (1, 'ᚠ') ON CONFLICT (id) DO UPDATE SET title = 'ᚠ'")
        table.execute("CALL pgembed.fill('item')")
        assert table.execute("SELECT key FROM pgembed.failure").fetchall() == [(["1"],)]
        table.execute(end.encode())
        table.execute("CALL pgembed.fill('item')")
        assert table.execute("SELECT key FROM pgembed.failure").fetchall() == []
        assert_true(table, kept, empty=[1])


@pytest.mark.parametrize("end", ["UPDATE item SET title = NULL", "UPDATE item SET title = 'a cat'"])
def test_a_failure_that_a_writer_cannot_see_is_forgotten_later(
    table: Connection, database_dsn: str, kept: str, end: str
) -> None:
    table.execute("INSERT INTO item (id, title) VALUES (1, 'ᚠ')")
    with psycopg.connect(database_dsn) as writer:
        writer.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        writer.execute("SELECT 1")
        table.execute("CALL pgembed.fill('item')")
        writer.execute(end.encode())
    with pgembed.connect(database_dsn) as db:
        db.work(until_idle=True)
        assert db.failures("item") == []
    assert_true(table, kept, empty=[1] if "NULL" in end else [])


def test_detach_and_a_backfill_wait_for_each_other_in_one_order(
    table: Connection, database_dsn: str, kept: str
) -> None:
    """Both take the user's table first, and then the queue's: else each would have what the other wants."""
    table.execute("SELECT pgembed.detach('item')")
    table.execute("INSERT INTO item SELECT i, 'a dog' FROM generate_series(1, 10) AS i")
    attach(table, kept)
    (number,) = table.execute("SELECT id FROM pgembed.embedding").fetchall()[0]
    with psycopg.connect(database_dsn) as detaching:
        detaching.execute("LOCK TABLE item IN ACCESS EXCLUSIVE MODE")
        filling = threading.Thread(target=fill_queue, args=(database_dsn, number))
        filling.start()
        blocked = "SELECT count(*) FROM pg_locks WHERE relation = 'item'::regclass AND NOT granted"
        until(lambda: table.execute(blocked.encode()).fetchall() == [(1,)])
        detaching.execute("SET lock_timeout = '1s'")
        detaching.execute("SELECT pgembed.detach('item')")
    filling.join()
    assert deadlocks(table) == 0
    assert table.execute("SELECT count(*) FROM pgembed.embedding").fetchall() == [(0,)]


def fill_queue(dsn: str, number: object) -> None:
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("SELECT pgembed._fill_queue(%s)", [number])


def test_an_error_while_encoding_fails_no_statement(table: Connection, kept: str) -> None:
    definition = table.execute("SELECT pg_get_functiondef('pgembed._row_vector'::regproc)").fetchall()[0][0]
    table.execute(
        "CREATE OR REPLACE FUNCTION pgembed._row_vector(model text, input text) RETURNS vector LANGUAGE plpgsql STABLE"
        " STRICT AS $$ BEGIN IF input LIKE '%bad%' THEN RAISE EXCEPTION 'no such luck'; END IF;"
        " RETURN pgembed.static_vector(model, input); END $$"
    )
    table.execute("INSERT INTO item VALUES (1, 'a bad dog'), (2, 'a cat')")
    table.execute("INSERT INTO item VALUES (3, 'a frog')")
    table.execute("UPDATE item SET title = 'a bad frog' WHERE id = 3")
    assert vectors(table, kept)[3][1] is None
    fill(table)
    failures = table.execute("SELECT key ->> 0, error FROM pgembed.failures ORDER BY 1").fetchall()
    assert failures == [("1", "no such luck"), ("3", "no such luck")]
    assert_true(table, kept, empty={1, 3})
    table.execute(str(definition).encode())
    table.execute("SELECT pgembed.retry('item')")
    fill(table)
    assert_true(table, kept)


def test_triggers_of_the_table_come_first(table: Connection, kept: str) -> None:
    table.execute("CREATE FUNCTION tidy() RETURNS trigger LANGUAGE plpgsql AS"
                  " $$ BEGIN NEW.title := 'a ' || NEW.title; RETURN NEW; END $$")  # fmt: skip
    table.execute("CREATE TRIGGER zz_tidy BEFORE INSERT OR UPDATE ON item FOR EACH ROW EXECUTE FUNCTION tidy()")
    table.execute("INSERT INTO item VALUES (1, 'dog')")
    table.execute("UPDATE item SET price = 2")
    fill(table)
    assert vectors(table, kept)[1][0] == "a a dog "
    assert_true(table, kept)


def test_values_are_rendered_alike_in_every_session(database: Connection, kept: str) -> None:
    database.execute("SELECT pgembed.add_encoder('lite', 'builtin:lite')")
    database.execute("CREATE TABLE item (id integer PRIMARY KEY, seen timestamptz, title text DEFAULT '')")
    database.execute("INSERT INTO item VALUES (1, '2026-03-01 12:00+00')")
    attach(database, kept, inputs='{"text": {"template": "seen {seen}"}}')
    fill(database)
    database.execute("SET timezone = 'Asia/Tokyo'; SET datestyle = 'German'")
    database.execute("INSERT INTO item VALUES (2, '2026-03-01 12:00+00')")
    place = "item" if kept == "column" else "item_embedding"
    column = "embedding" if kept == "column" else "vector"
    ((same,),) = database.execute(f"SELECT count(DISTINCT {column}) FROM {place}").fetchall()
    assert same == 1


def test_partitions_by_either_name(database: Connection, kept: str) -> None:
    database.execute("SELECT pgembed.add_encoder('lite', 'builtin:lite')")
    database.execute("CREATE TABLE item (id integer PRIMARY KEY, title text, body text) PARTITION BY RANGE (id)")
    database.execute("CREATE TABLE item_low PARTITION OF item FOR VALUES FROM (0) TO (100)")
    attach(database, kept)
    database.execute("CREATE TABLE item_high PARTITION OF item FOR VALUES FROM (100) TO (200)")
    database.execute("INSERT INTO item VALUES (1, 'a dog'), (101, 'a cat')")
    database.execute("INSERT INTO item_low VALUES (2, 'a frog'), (3, NULL)")
    database.execute("UPDATE item_high SET title = 'two cats'")
    database.execute("UPDATE item SET id = 102 WHERE id = 1")
    database.execute("SET pgembed.instant = off")
    database.execute("INSERT INTO item_high VALUES (150, 'later')")
    database.execute("UPDATE item SET title = 'later too' WHERE id = 2")
    fill(database)
    assert_true(database, kept, empty={3})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"inputs": '{"text": "title", "image": "photo"}'}, "does texts and no other input: image."),
        ({"encoder": "other"}, "the texts of encoder 'other' (http:x) are encoded in Python"),
        ({"stale": "null"}, "stale => 'null' has no meaning with mode => 'instant'"),
        ({"inputs": '{"text": "loud"}'}, "Generated columns of public.item (loud) are computed after"),
        ({"mode": "soon"}, "mode is 'queue' or 'instant', not 'soon'."),
    ],
)  # fmt: skip
def test_what_cannot_be_instant_is_refused(database: Connection, change: dict[str, str], message: str) -> None:
    database.execute("SELECT pgembed.add_encoder('lite', 'builtin:lite')")
    database.execute(
        "SELECT pgembed.add_encoder('other', 'http:x', dim => 4, space => 's', metric => 'cosine',"
        " modalities => '{text}', fingerprint => 'f')"
    )
    database.execute(
        "CREATE TABLE item (id integer PRIMARY KEY, title text, photo bytea,"
        " loud text GENERATED ALWAYS AS (upper(title)) STORED)"
    )
    given = {"encoder": "lite", "inputs": '{"text": "title"}', "stale": "keep", "mode": "instant"} | change
    with pytest.raises(psycopg.Error) as error:
        database.execute(
            "SELECT pgembed.attach('item', 'embedding', %(encoder)s, %(inputs)s, stale => %(stale)s, mode => %(mode)s)",
            given,
        )
    assert message in str(error.value)
    assert database.execute("SELECT count(*) FROM pgembed.embedding").fetchall() == [(0,)]


def test_fill_says_what_workers_do(database: Connection) -> None:
    database.execute("SELECT pgembed.add_encoder('lite', 'builtin:lite')")
    database.execute("CREATE TABLE item (id integer PRIMARY KEY, title text)")
    database.execute("SELECT pgembed.attach('item', 'embedding', 'lite', '{\"text\": \"title\"}')")
    with pytest.raises(psycopg.errors.FeatureNotSupported, match="embedding of item is encoded by workers, not in SQL"):
        fill(database)


def test_rows_that_others_hold_wait(table: Connection, kept: str, database_dsn: str) -> None:
    table.execute("SET pgembed.instant = off")
    table.execute("INSERT INTO item VALUES (1, 'a dog'), (2, 'a cat')")
    notices: list[str] = []
    table.add_notice_handler(lambda notice: notices.append(str(notice.message_primary)))
    with psycopg.connect(database_dsn) as other:
        other.execute("SELECT FROM item WHERE id = 1 FOR UPDATE")
        fill(table)
        assert notices == ["1 row(s) of item are held by other transactions and wait for embedding still."]
        other.execute("UPDATE item SET title = 'a frog' WHERE id = 1")
    table.execute("SELECT pg_sleep(0.6)")
    fill(table)
    assert_true(table, kept)


def test_all_else_takes_it_as_any_embedding(table: Connection, kept: str, database_dsn: str) -> None:
    table.execute("INSERT INTO item VALUES (1, 'a dog'), (2, 'a red shoe')")
    fill(table)
    with pgembed.connect(database_dsn) as db:
        assert db.wait("item") == []
        assert [row.id for row in db.search("item", pgembed.Text("footwear"), limit=1)] == [2]
        found = db.verify("item")
        assert (found.rows, found.matching) == (2, 2)
        assert all(finding.ok for finding in db.doctor() if "trigger" in finding.subject)
    table.execute("SELECT pgembed.detach('item')")
    assert table.execute("SELECT count(*) FROM pg_trigger WHERE NOT tgisinternal").fetchall() == [(0,)]
    assert table.execute("SELECT count(*) FROM pg_proc WHERE proname ~ '(append|instant|drop|empty).*_[0-9]+$'"
                         " AND pronamespace = 'pgembed'::regnamespace").fetchall() == [(0,)]  # fmt: skip


def test_nothing_stale_is_ever_seen(table: Connection, kept: str, database_dsn: str) -> None:
    """Writers at three levels, bulk loads to the queue, and two that fill, over the same rows; a reader checks all."""
    words = ["dog", "cat", "frog", "boat", "shoe", "house", "tree", "fish"]
    table.execute("INSERT INTO item SELECT n, 'a dog' FROM generate_series(1, 12) n")
    stop = threading.Event()
    errors: list[BaseException] = []
    failed: list[str] = []

    def write(level: str, seed: int) -> None:
        chance = np.random.default_rng(seed)
        with psycopg.connect(database_dsn, autocommit=True) as conn:
            conn.isolation_level = psycopg.IsolationLevel[level]
            for n in range(250):
                key, word = int(chance.integers(1, 13)), words[chance.integers(0, 8)]
                try:
                    with conn.transaction():
                        if chance.random() < 0.3:
                            conn.execute("SET LOCAL pgembed.instant = off")
                        if chance.random() < 0.1:
                            conn.execute("DELETE FROM item WHERE id = %s", [key])
                        elif chance.random() < 0.1:
                            conn.execute("UPDATE item SET id = id + 12 WHERE id = %s AND NOT EXISTS"
                                         " (SELECT FROM item WHERE id = %s)", [key, key + 12])  # fmt: skip
                        conn.execute(
                            "INSERT INTO item VALUES (%s, %s) ON CONFLICT (id) DO UPDATE SET title = excluded.title",
                            [key, f"a {word} {n}"],
                        )
                except (psycopg.errors.SerializationFailure, psycopg.errors.UniqueViolation) as error:
                    failed.append(f"{level}: {error.diag.message_primary}")

    def filling() -> None:
        with psycopg.connect(database_dsn, autocommit=True) as conn:
            while not stop.is_set():
                conn.execute("CALL pgembed.fill('item', batch => 3)")

    def reading() -> None:
        place = "embedding" if kept == "column" else "(SELECT s.vector FROM item_embedding s WHERE s.id = t.id)"
        queue = "" if kept == "column" else (
            " AND NOT EXISTS (SELECT FROM pgembed.change_1 c WHERE c.key_1 = t.id)"
            " AND NOT EXISTS (SELECT FROM pgembed.job_1 j WHERE j.key_1 = t.id)"
        )  # fmt: skip
        with psycopg.connect(database_dsn, autocommit=True) as conn:
            while not stop.is_set():
                stale = conn.execute(
                    f"SELECT id, title FROM item t WHERE {place} IS NOT NULL{queue}"
                    f" AND {place} <-> pgembed.static_vector((SELECT static_text FROM pgembed.encoder), title) > 1e-4"
                ).fetchall()
                assert stale == []
                lost = conn.execute(
                    f"SELECT id FROM item t WHERE {place} IS NULL"
                    " AND NOT EXISTS (SELECT FROM pgembed.change_1 c WHERE c.key_1 = t.id)"
                    " AND NOT EXISTS (SELECT FROM pgembed.job_1 j WHERE j.key_1 = t.id)"
                    " AND NOT (SELECT state = 'backfill' FROM pgembed.embedding)"
                ).fetchall()
                assert lost == []

    def kept_error(run: Any, *arguments: Any) -> None:  # noqa: ANN401
        try:
            run(*arguments)
        except BaseException as error:
            errors.append(error)

    writers = [
        threading.Thread(target=kept_error, args=(write, level, seed))
        for seed, level in enumerate(["READ_COMMITTED", "READ_COMMITTED", "REPEATABLE_READ", "SERIALIZABLE"])
    ]
    others = [threading.Thread(target=kept_error, args=(run,)) for run in (filling, filling, reading)]
    for thread in writers + others:
        thread.start()
    for thread in writers:
        thread.join()
    stop.set()
    for thread in others:
        thread.join()
    assert errors == []
    assert not any(text.startswith("READ_COMMITTED: could not") for text in failed)
    table.execute("SELECT pg_sleep(0.6)")
    fill(table)
    assert_true(table, kept)
