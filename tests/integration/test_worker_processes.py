"""Workers as processes: killed, and asked to leave."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fakes import Connection, Table, until

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
def test_a_signal_lets_the_batch_in_hand_be_finished(database: Connection, database_dsn: str, number: int) -> None:
    database.execute("CREATE TABLE product (id integer PRIMARY KEY, title text)")
    database.execute("INSERT INTO product SELECT i, 'red shoe number ' || i FROM generate_series(1, 20000) AS i")
    database.execute("SELECT pgembed.add_encoder('shop', 'builtin:lite')")
    database.execute("""SELECT pgembed.attach('product', 'embedding', 'shop', '{"text": "title"}')""")
    command = [sys.executable, "-m", "pgembed.cli", "--dsn", database_dsn, "worker", "--batch-size", "50"]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as worker:
        until(lambda: _written(database) > 0, seconds=60)
        worker.send_signal(number)
        _, log = worker.communicate(timeout=20)
    assert worker.returncode == 0, log
    written = _written(database)
    assert written % 50 == 0
    assert written < 20000
    assert database.execute("SELECT claimed, failed FROM pgembed.status").fetchone() == (0, 0)


def _written(database: Connection) -> int:
    return database.execute("SELECT count(embedding) FROM product").fetchall()[0][0]
