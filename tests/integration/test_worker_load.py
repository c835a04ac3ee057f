"""A worker under load: bounded memory, fresh changes first, embeddings side by side."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO

import psycopg
import pytest
from PIL import Image

from pgembed.worker.pipes import STAGE_DEPTH
from pgembed.worker.run import Session
from tests.fakes import Connection, Log, Table, until

PEAK = """
import resource, sys
import psycopg
import pgembed.encoders
from pgembed.worker import Worker, WorkerOptions
from tests.fakes import FakeEncoder

encoder = FakeEncoder()
encoder.batch_size = 64
pgembed.encoders.load_encoder = lambda *_, **__: encoder
worker = Worker(lambda: psycopg.connect(sys.argv[1]), WorkerOptions(max_memory=int(sys.argv[2]), decode_threads=4))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert worker.run("until_idle").written == int(sys.argv[3])
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.fixture
def table(database: Connection, database_dsn: str, monkeypatch: pytest.MonkeyPatch) -> Table:
    return Table(database, database_dsn, monkeypatch)


def with_pictures(table: Table, count: int, size: tuple[int, int]) -> None:
    out = BytesIO()
    Image.effect_noise(size, 50).convert("RGB").resize(size).save(out, "JPEG", quality=20)
    table.conn.execute("SELECT pgembed.detach('product')")
    table.conn.execute("ALTER TABLE product ADD COLUMN photo bytea")
    table.conn.execute(
        "INSERT INTO product (id, photo) SELECT i, %s FROM generate_series(1, %s) AS i", [out.getvalue(), count]
    )
    table.conn.execute("""SELECT pgembed.attach('product', 'embedding', 'fake', '{"image": {"column": "photo"}}')""")


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss counts something else there")
def test_large_pictures_take_no_more_memory_than_allowed(table: Table) -> None:
    """48 pictures of 9 million pixels, 36 MB each where they are decoded: 1.7 GB, if all were held."""
    with_pictures(table, 48, (3000, 3000))
    ran = subprocess.run(
        [sys.executable, "-c", PEAK, table.dsn, "200000000", "48"], capture_output=True, text=True, check=True
    )
    assert int(ran.stdout) < 450  # MB; what the libraries of pictures take besides stands in it too


def test_a_batch_ends_where_there_is_no_room_for_another_picture(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    sessions: list[Session] = []
    run = Session.run
    monkeypatch.setattr(Session, "run", lambda session: (sessions.append(session), run(session))[1])
    with_pictures(table, 20, (500, 500))  # 2 MB while it is decoded, 1 MB then
    sizes: list[int] = []
    worker = table.worker(max_memory=5_000_000, batch_size=64)
    worker.state.on_progress = lambda step: sizes.append(step.written)
    assert worker.run("until_idle").written == 20
    assert max(sizes) <= 5
    assert sessions[0].memory.most <= 5_000_000
    assert sessions[0].memory.held == 0


def test_a_picture_larger_than_the_bound_is_encoded_alone(table: Table) -> None:
    with_pictures(table, 3, (500, 500))
    assert table.work(max_memory=1000).written == 3


# Which rows come first


def backfill_of(table: Table, rows: int, name: str = "product") -> None:
    """A table with rows that were there before its embedding."""
    table.conn.execute(f"INSERT INTO {name} SELECT i, '{name} ' || i FROM generate_series(1, {rows}) AS i".encode())


def test_a_fresh_change_is_encoded_before_a_long_backfill_is_done(table: Table) -> None:
    table.conn.execute("SELECT pgembed.detach('product')")
    backfill_of(table, 400)
    table.attach()

    def change(_: Sequence[str]) -> None:
        if len(table.encoder.seen) == 30:
            with psycopg.connect(table.dsn, autocommit=True) as other:
                other.execute("INSERT INTO product VALUES (1000, 'fresh')")
                other.execute("UPDATE product SET title = 'changed' WHERE id = 390")

    table.encoder.before = change
    assert table.work(batch_size=10).written == 401
    assert len(table.true_ids()) == 401
    places = {title: table.encoder.seen.index(title) for title in ("fresh", "changed")}
    assert max(places.values()) < 30 + 10 * (STAGE_DEPTH + 4)  # what was claimed before it goes first


def test_rows_that_a_sweep_finds_come_after_changes(table: Table) -> None:
    table.conn.execute("UPDATE pgembed.embedding SET state = 'ready'")
    table.conn.execute("ALTER TABLE product DISABLE TRIGGER USER")
    backfill_of(table, 50)
    table.conn.execute("ALTER TABLE product ENABLE TRIGGER USER")
    worker = table.worker(batch_size=10, sweep_every=0.01, max_rows=51)
    written = threading.Event()

    def change(_: Sequence[str]) -> None:
        if not written.is_set():
            written.set()
            with psycopg.connect(table.dsn, autocommit=True) as other:
                other.execute("INSERT INTO product VALUES (1000, 'fresh')")

    table.encoder.before = change
    assert worker.run().written == 51
    assert table.encoder.seen.index("fresh") < 50


def test_backfills_of_two_embeddings_go_side_by_side(table: Table) -> None:
    table.conn.execute("SELECT pgembed.detach('product')")
    table.conn.execute("CREATE TABLE page (id integer PRIMARY KEY, title text)")
    for name in ("product", "page"):
        backfill_of(table, 200, name)
        table.attach(name)
    assert table.work(batch_size=10).written == 400
    first_half = table.encoder.seen[:200]
    assert sum(title.startswith("page") for title in first_half) in range(80, 121)


def test_a_change_of_one_embedding_does_not_wait_for_the_backfill_of_another(table: Table) -> None:
    table.conn.execute("CREATE TABLE page (id integer PRIMARY KEY, title text)")
    table.attach("page")
    table.work()
    table.conn.execute("SELECT pgembed.detach('product')")
    backfill_of(table, 400)
    table.attach()

    def change(_: Sequence[str]) -> None:
        if len(table.encoder.seen) == 30:
            with psycopg.connect(table.dsn, autocommit=True) as other:
                other.execute("INSERT INTO page VALUES (1, 'fresh page')")

    table.encoder.before = change
    assert table.work(batch_size=10).written == 401
    assert table.encoder.seen.index("fresh page") < 30 + 10 * (STAGE_DEPTH + 4)


# The queue's tables


def settings_of(conn: Connection, name: str) -> set[str]:
    rows = conn.execute(
        "SELECT unnest(reloptions) FROM pg_class WHERE oid = ('pgembed.' || %s)::regclass", [name]
    ).fetchall()
    return {row[0] for row in rows}


TUNED = {"autovacuum_vacuum_scale_factor=0", "autovacuum_vacuum_threshold=1000", "autovacuum_vacuum_cost_delay=0"}


def test_autovacuum_looks_after_the_queues_tables_by_their_dead_rows(table: Table) -> None:
    assert settings_of(table.conn, "change_1") == TUNED
    assert settings_of(table.conn, "job_1") == TUNED | {"fillfactor=70"}


def test_sync_sets_it_on_tables_of_an_older_version_and_leaves_what_somebody_set(table: Table) -> None:
    names = sorted(setting.split("=")[0] for setting in TUNED)
    table.conn.execute(f"ALTER TABLE pgembed.change_1 RESET ({', '.join(names)})".encode())
    table.conn.execute(f"ALTER TABLE pgembed.job_1 RESET ({', '.join(names)})".encode())
    table.conn.execute("ALTER TABLE pgembed.job_1 SET (autovacuum_vacuum_threshold = 77)")
    table.conn.execute("SELECT pgembed.sync()")
    assert settings_of(table.conn, "change_1") == TUNED
    assert settings_of(table.conn, "job_1") == {"fillfactor=70", "autovacuum_vacuum_threshold=77"}


# Holding back


def test_no_more_rows_are_claimed_in_a_second_than_the_rate_allows(table: Table) -> None:
    backfill_of(table, 60)
    start = time.monotonic()
    assert table.work(max_rate=20).written == 60
    assert time.monotonic() - start > 1.8  # 20 at once, 40 in two seconds


def test_a_rate_is_shared_between_embeddings(table: Table) -> None:
    table.conn.execute("CREATE TABLE page (id integer PRIMARY KEY, title text)")
    for name in ("product", "page"):
        backfill_of(table, 40, name)
    table.attach("page")
    assert table.work(max_rate=10, max_rows=30).written == 30
    counts = [sum(title.startswith(name) for title in table.encoder.seen) for name in ("product", "page")]
    assert min(counts) >= 8


def test_a_worker_holds_back_while_the_server_is_busy(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pgembed.worker.restraint.LOOK_EVERY", 0.02)
    with psycopg.connect(table.dsn, autocommit=True) as other, ThreadPoolExecutor(1) as pool:
        sleeping = pool.submit(other.execute, "SELECT pg_sleep(100)")
        busy = "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query LIKE 'SELECT pg_sleep%'"
        until(lambda: table.conn.execute(busy).fetchone() == (1,))
        with table.working(max_load=0) as worker:
            worker.state.log = log = Log()
            backfill_of(table, 5)
            until(lambda: worker.state.held_back)
            time.sleep(0.3)
            assert table.true_ids() == []
            other.cancel()
            until(lambda: len(table.true_ids()) == 5)
        assert any("goes on" in line for line in log.lines)
        with pytest.raises(psycopg.errors.QueryCanceled):
            sleeping.result()


def test_a_worker_that_is_to_leave_leaves_a_busy_server_where_nothing_waits(table: Table) -> None:
    table.work()
    with psycopg.connect(table.dsn, autocommit=True) as other, ThreadPoolExecutor(1) as pool:
        sleeping = pool.submit(other.execute, "SELECT pg_sleep(100)")
        try:
            assert table.work(max_load=0).written == 0
        finally:
            other.cancel()
        with pytest.raises(psycopg.errors.QueryCanceled):
            sleeping.result()


def test_other_workers_are_no_load(table: Table) -> None:
    backfill_of(table, 50)
    with table.working(max_load=0, batch_size=5), table.working(max_load=0, batch_size=5):
        until(lambda: len(table.true_ids()) == 50)
