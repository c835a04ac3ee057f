"""The worker: it empties queues, shares them, and writes no vector that is not its row's."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

import numpy as np
import psycopg
import pytest

from pgembed.errors import InvalidInput
from pgembed.worker import Progress, Worker, WorkerOptions
from tests.fakes import Connection, FakeEncoder, Log, Table, deadlocks, register, until, vector_of


@pytest.fixture
def table(database: Connection, database_dsn: str, monkeypatch: pytest.MonkeyPatch, storage: str) -> Table:
    return Table(database, database_dsn, monkeypatch, storage)


# Modes


def test_until_idle_embeds_every_row_and_returns(table: Table) -> None:
    table.insert("red shoe", "blue car", "green tree")
    summary = table.work()
    assert (summary.written, summary.failed) == (3, 0)
    assert table.true_ids() == [1, 2, 3]
    assert table.waiting() == 0


def test_rows_that_were_there_before_attach_are_embedded(table: Table) -> None:
    table.insert("red shoe", "blue car")
    register(table.conn, "other", other := FakeEncoder("other"))
    table.encoders[other.spec] = other
    table.conn.execute("""SELECT pgembed.attach('product', 'second', 'other', '{"text": "title"}')""")
    assert table.work().written == 4
    assert table.conn.execute("SELECT count(second) FROM product").fetchone() == (2,)
    assert table.conn.execute("SELECT DISTINCT state FROM pgembed.embedding").fetchall() == [("ready",)]


def test_once_embeds_one_batch_and_returns(table: Table) -> None:
    table.conn.execute("INSERT INTO product SELECT i, 'shoe ' || i FROM generate_series(1, 50) AS i")
    assert table.worker(batch_size=20).run("once").written == 20
    assert len(table.true_ids()) == 20
    assert table.waiting() == 30


def test_once_takes_rows_that_were_there_before_attach(table: Table) -> None:
    table.conn.execute("SELECT pgembed.detach('product')")
    table.insert("red shoe", "blue car")
    table.attach()
    assert table.worker().run("once").written == 2


def test_backfill_goes_over_a_table_in_steps(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pgembed.worker.keys.BACKFILL_LIMIT", 7)
    table.conn.execute("SELECT pgembed.detach('product')")
    table.conn.execute("INSERT INTO product SELECT i * 3, 'shoe ' || i FROM generate_series(-20, 20) AS i")
    table.attach()
    assert table.work(batch_size=5).written == 41
    assert len(table.true_ids()) == 41


def test_it_runs_until_it_is_stopped(table: Table) -> None:
    with table.working():
        table.insert("red shoe")
        until(lambda: table.true_ids() == [1])
        table.insert("blue car")
        until(lambda: table.true_ids() == [1, 2])


def test_an_unknown_embedding_is_refused_with_those_there_are(table: Table) -> None:
    with pytest.raises(InvalidInput, match=r"no embedding 'shop'.*public\.product\.embedding"):
        table.worker(embeddings=("shop",)).run("until_idle")


def test_only_the_embeddings_asked_for_are_worked_on(table: Table) -> None:
    table.conn.execute("CREATE TABLE page (id integer PRIMARY KEY, title text)")
    table.attach("page")
    table.conn.execute("INSERT INTO page VALUES (1, 'home')")
    table.insert("red shoe")
    assert table.work(embeddings=("page",)).written == 1
    assert table.true_ids() == []


def test_a_paused_embedding_is_left_alone(table: Table) -> None:
    table.insert("red shoe")
    table.conn.execute("SELECT pgembed.pause('product')")
    assert table.work().written == 0


def test_progress_is_told_after_each_batch(table: Table, database_dsn: str) -> None:
    table.conn.execute("INSERT INTO product SELECT i, 'shoe ' || i FROM generate_series(1, 25) AS i")
    told: list[Progress] = []
    Worker(lambda: psycopg.connect(database_dsn), WorkerOptions(batch_size=10), on_progress=told.append).run(
        "until_idle"
    )
    assert [(step.written, step.failed, step.skipped) for step in told] == [(10, 0, 0), (10, 0, 0), (5, 0, 0)]
    assert {step.embedding for step in told} == {"public.product.embedding"}


# What a row holds


def test_a_changed_row_is_embedded_again(table: Table) -> None:
    table.insert("red shoe", "blue car")
    table.work()
    table.conn.execute("UPDATE product SET title = 'green tree' WHERE id = 2")
    assert table.true_ids() == [1]
    assert table.work().written == 1
    assert table.true_ids() == [1, 2]


def test_a_row_that_loses_its_inputs_loses_its_vector(table: Table) -> None:
    table.insert("red shoe", None, "  \n")
    table.work()
    assert table.embedded_ids() == [1]
    table.conn.execute("UPDATE product SET title = NULL WHERE id = 1")
    table.work()
    assert table.embedded_ids() == []
    assert table.waiting() == 0


def test_rows_without_inputs_are_not_rewritten(table: Table) -> None:
    table.insert(None)
    before = table.conn.execute("SELECT ctid FROM product").fetchone()
    table.work()
    assert table.conn.execute("SELECT ctid FROM product").fetchone() == before


def test_a_renamed_table_and_renamed_inputs_are_followed(table: Table) -> None:
    table.conn.execute('ALTER TABLE product RENAME COLUMN title TO "The Title"')
    table.conn.execute("CREATE SCHEMA shop")
    table.conn.execute("ALTER TABLE product SET SCHEMA shop")
    table.conn.execute("ALTER TABLE shop.product RENAME TO goods")
    table.conn.execute("INSERT INTO shop.goods (id, \"The Title\") VALUES (1, 'red shoe')")
    assert table.work().written == 1
    assert table.conn.execute("SELECT schema_name, table_name, ready FROM pgembed.status").fetchone() == (
        "shop",
        "goods",
        1,
    )


# While a row is being encoded


def during(table: Table, statement: str) -> None:
    """Run a statement, in a session of its own, while the first batch is being encoded."""

    def interfere(texts: Sequence[str]) -> None:
        table.encoder.before = lambda texts: None
        with psycopg.connect(table.dsn, autocommit=True) as conn:
            for part in statement.split(";"):
                conn.execute(part.encode())

    table.encoder.before = interfere


def test_a_row_changed_while_it_is_encoded_gets_the_new_vector(table: Table) -> None:
    table.insert("red shoe", "blue car")
    during(table, "UPDATE product SET title = 'green tree' WHERE id = 1")
    table.work()
    assert table.true_ids() == [1, 2]
    assert table.encoder.seen.count("blue car") == 1


def test_a_row_deleted_while_it_is_encoded_leaves_nothing(table: Table) -> None:
    table.insert("red shoe", "blue car")
    during(table, "DELETE FROM product WHERE id = 1")
    table.work()
    assert table.true_ids() == [2]
    assert table.waiting() == 0
    assert table.failures() == {}


def test_a_row_deleted_and_put_back_while_it_is_encoded_gets_its_own_vector(table: Table) -> None:
    table.insert("red shoe")
    during(table, "DELETE FROM product; INSERT INTO product VALUES (1, 'blue car')")
    table.work()
    assert table.true_ids() == [1]


def test_a_row_deleted_and_put_back_without_inputs_stays_without_vector(table: Table) -> None:
    table.insert("red shoe")
    during(table, "DELETE FROM product; INSERT INTO product VALUES (1, NULL)")
    table.work()
    assert table.embedded_ids() == []
    assert table.waiting() == 0


def test_rows_that_change_keys_while_they_are_encoded_get_their_own_vectors(table: Table) -> None:
    table.insert("red shoe", "blue car")
    during(table, "UPDATE product SET id = id + 10; UPDATE product SET id = 13 - id % 10 - 10")
    table.work()
    assert table.conn.execute("SELECT id, title FROM product ORDER BY id").fetchall() == [
        (1, "blue car"),
        (2, "red shoe"),
    ]
    assert table.true_ids() == [1, 2]


@pytest.mark.column_only  # a side table is written beside it: test_side_tables.py
def test_a_change_that_is_not_committed_yet_is_waited_for(table: Table) -> None:
    table.insert("red shoe", "blue car")
    with psycopg.connect(table.dsn) as other, table.working():
        other.execute("UPDATE product SET title = 'green tree' WHERE id = 1")
        until(lambda: table.embedded_ids() == [2])
        time.sleep(0.7)
        assert table.embedded_ids() == [2]
        assert table.encoder.seen.count("red shoe") <= 5, "a held row is encoded in a circle"
        other.commit()
        until(lambda: table.true_ids() == [1, 2])
    assert table.waiting() == 0


# Several workers


def test_several_workers_share_one_queue_and_no_row_is_encoded_twice(table: Table) -> None:
    table.conn.execute("INSERT INTO product SELECT i, 'shoe ' || i FROM generate_series(1, 600) AS i")
    table.encoder.before = lambda texts: time.sleep(0.005)
    workers = [table.worker(batch_size=16) for _ in range(3)]
    threads = [threading.Thread(target=worker.run, args=("until_idle",)) for worker in workers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sum(worker.state.summary.written for worker in workers) == 600
    assert sorted(table.encoder.seen) == sorted(f"shoe {i}" for i in range(1, 601))
    assert sum(worker.state.summary.written > 0 for worker in workers) > 1
    assert len(table.true_ids()) == 600


def test_a_lease_is_renewed_while_a_slow_model_runs(table: Table) -> None:
    table.conn.execute("INSERT INTO product SELECT i, 'shoe ' || i FROM generate_series(1, 40) AS i")
    table.encoder.before = lambda texts: time.sleep(0.1)
    with table.working(batch_size=4, lease=0.5), table.working(batch_size=4, lease=0.5):
        until(lambda: len(table.true_ids()) == 40)
    assert len(table.encoder.seen) == 40


def test_an_embedding_attached_and_one_detached_while_a_worker_runs(
    table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pgembed.worker.load.REFRESH", 0.05)
    table.insert("red shoe")
    with table.working():
        until(lambda: table.true_ids() == [1])
        table.conn.execute("CREATE TABLE page (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), title text)")
        table.conn.execute("INSERT INTO page (title) VALUES ('home')")
        table.conn.execute("""SELECT pgembed.attach('page', 'vector', 'fake', '{"text": "title"}')""")
        until(lambda: table.conn.execute("SELECT count(vector) FROM page").fetchone() == (1,))
        table.insert("blue car")
        table.conn.execute("SELECT pgembed.detach('product')")
        table.conn.execute("INSERT INTO page (title) VALUES ('about')")
        until(lambda: table.conn.execute("SELECT count(vector) FROM page").fetchone() == (2,))
        table.attach()
        until(lambda: table.true_ids() == [1, 2])


def test_detach_and_a_working_worker_do_not_deadlock(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pgembed.worker.load.REFRESH", 0.01)
    log = Log()
    with table.working(batch_size=4) as worker:
        worker.state.log = log
        for _ in range(15):
            table.conn.execute("INSERT INTO product SELECT i, 'shoe ' || i FROM generate_series(1, 60) AS i")
            time.sleep(0.02)
            table.conn.execute("SELECT pgembed.detach('product')")
            table.conn.execute("TRUNCATE product")
            table.attach()
    assert log.lines == []
    assert deadlocks(table.conn) == 0


# Statements


def test_percent_signs_in_names_and_templates(table: Table) -> None:
    table.conn.execute('CREATE TABLE "100%s" ("id%" integer PRIMARY KEY, "off%s" text)')
    table.conn.execute("""SELECT pgembed.attach('"100%s"', 'vec%', 'fake', '{"text": "{off%s} % off %s {{}}"}')""")
    table.conn.execute("""INSERT INTO "100%s" VALUES (1, '50')""")
    table.work()
    (vector,) = table.conn.execute('SELECT "vec%"::real[] FROM "100%s"').fetchall()[0]
    np.testing.assert_allclose(vector, vector_of("50 % off %s {}"), atol=1e-6)


def test_a_database_that_is_repeatable_read_by_default(table: Table) -> None:
    table.conn.execute(
        "ALTER DATABASE " + table.conn.info.dbname + " SET default_transaction_isolation = 'serializable'"
    )
    table.insert("red shoe")
    during(table, "UPDATE product SET title = 'blue car' WHERE id = 1")
    table.work()
    assert table.true_ids() == [1]
