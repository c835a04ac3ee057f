"""Workers as processes: killed, and asked to leave."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import pgembed
from pgembed.encoders import load_encoder
from tests.fakes import Connection, Table, until
from tests.faults import assert_kept, audit

ROWS = 8_000
ROOT = Path(__file__).parents[2]
SLOW_WORKER = """
import sys, time
import psycopg
from pgembed.worker import Worker, WorkerOptions
import pgembed.encoders
from tests.fakes import FakeEncoder

encoder = FakeEncoder()
encoder.before = lambda texts: (print("encoding", flush=True), time.sleep(3600))
pgembed.encoders.load_encoder = lambda *_, **__: encoder
Worker(lambda: psycopg.connect(sys.argv[1]), WorkerOptions(batch_size=2, lease=1)).run()
"""


def test_the_rows_of_a_killed_worker_are_taken_up_after_its_lease(
    database: Connection, database_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = Table(database, database_dsn, monkeypatch)
    table.insert("red shoe", "blue car", "green tree")
    with subprocess.Popen(
        [sys.executable, "-c", SLOW_WORKER, database_dsn], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as killed:
        assert killed.stdout is not None
        assert killed.stdout.readline() == "encoding\n"
        assert database.execute("SELECT claimed FROM pgembed.status").fetchone() >= (2,)
        assert table.worker().run("once").written <= 1
        killed.kill()
    assert table.work().written >= 2
    assert table.true_ids() == [1, 2, 3]
    assert table.failures() == {}
    assert database.execute("SELECT max(attempts) FROM pgembed.job_1").fetchone() == (None,)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("storage", ["column", "side"], indirect=True)
def test_a_signal_lets_the_batch_in_hand_be_finished_and_the_next_worker_goes_on(
    database: Connection, database_dsn: str, number: int, storage: str
) -> None:
    database.execute("CREATE TABLE product (id integer PRIMARY KEY, title text)")
    database.execute("INSERT INTO product SELECT i, 'red shoe number ' || i FROM generate_series(1, %s) AS i", [ROWS])
    database.execute("SELECT pgembed.add_encoder('shop', 'builtin:lite')")
    began = time.monotonic()
    database.execute(
        """SELECT pgembed.attach('product', 'embedding', 'shop', '{"text": "title"}', storage => %s)""", [storage]
    )
    assert time.monotonic() - began < 5
    assert _queue(database) == (0, 0)  # attach enqueues nothing: workers do, step by step
    audit(database, storage)
    command = [sys.executable, "-m", "pgembed.cli", "--dsn", database_dsn, "worker", "--batch-size", "50"]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as worker:
        until(lambda: _written(database, storage) > 0, seconds=60)
        jobs = _queue(database)[1]
        worker.send_signal(number)
        _, log = worker.communicate(timeout=20)
    assert worker.returncode == 0, log
    assert jobs < ROWS
    written = _written(database, storage)
    assert written % 50 == 0
    assert 0 < written < ROWS
    batches = [line for line in map(json.loads, log.splitlines()) if line["event"] == "batch"]
    assert sum(batch["written"] for batch in batches) == written
    assert {(batch["failed"], batch["skipped"]) for batch in batches} == {(0, 0)}  # nothing was encoded in vain
    assert database.execute("SELECT claimed, failed FROM pgembed.status").fetchone() == (0, 0)
    with pgembed.connect(database_dsn) as db:
        assert db.work(until_idle=True).written == ROWS - written
    lite = load_encoder("builtin:lite")
    assert _written(database, storage) == ROWS
    assert_kept(database, storage=storage, encode=lambda texts: lite.encode_text(list(texts)))
    assert database.execute("SELECT count(*), count(DISTINCT id) FROM effect").fetchone() == (ROWS, ROWS)  # each once


def _written(database: Connection, storage: str) -> int:
    place = "product" if storage == "column" else "product_embedding"
    column = "embedding" if storage == "column" else "vector"
    return database.execute(f"SELECT count({column}) FROM {place}".encode()).fetchall()[0][0]


def _queue(database: Connection) -> tuple[int, int]:
    """Changes and jobs in the queue."""
    query = "SELECT (SELECT count(*) FROM pgembed.change_1), (SELECT count(*) FROM pgembed.job_1)"
    return database.execute(query.encode()).fetchall()[0]
