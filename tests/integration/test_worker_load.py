"""A worker under load: bounded memory, fresh changes first, embeddings side by side."""

from __future__ import annotations

import subprocess
import sys
from io import BytesIO

import pytest
from PIL import Image

from pgembed.worker.run import Session
from tests.fakes import Connection, Table

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
