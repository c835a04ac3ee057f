"""The write step by itself, with batches larger than the buffers of a connection."""

from __future__ import annotations

import threading

import numpy as np
import psycopg
import pytest
from psycopg.rows import class_row

from pgembed.worker.batch import Row
from pgembed.worker.queue import Queue, Work
from pgembed.worker.run import session_connection
from pgembed.worker.write import write_rows
from tests.conftest import Connection

BATCH, DIM, BATCHES = 1024, 512, 4


@pytest.mark.parametrize("storage", ["column", "side"])
def test_a_batch_that_no_buffer_holds_is_written(database: Connection, database_dsn: str, storage: str) -> None:
    database.execute(
        "SELECT pgembed.add_encoder('wide', 'fake:wide', dim => %s, modalities => '{text}', fingerprint => 'f')", [DIM]
    )
    database.execute("CREATE TABLE product (id bigint PRIMARY KEY, title text)")
    database.execute(
        "SELECT pgembed.attach('product', 'embedding', 'wide', '{\"text\": \"title\"}', storage => %s)", [storage]
    )
    database.execute("INSERT INTO product SELECT i, 'x' FROM generate_series(1, %s) AS i", [BATCH * BATCHES])
    written: list[int] = []

    def write() -> None:
        vectors = np.random.default_rng(0).normal(size=(BATCH, DIM)).astype(np.float32)
        with session_connection(lambda: psycopg.connect(database_dsn)) as conn:
            with conn.cursor(row_factory=class_row(Work)) as cursor:
                work = cursor.execute("SELECT * FROM pgembed._work").fetchall()[0]
            conn.execute(Queue(work).fold)
            for _ in range(BATCHES):
                claimed = conn.execute(Queue(work).claim, [600.0, BATCH]).fetchall()
                rows = [Row(seq, attempts) for seq, attempts in claimed]
                for row, vector in zip(rows, vectors, strict=True):
                    row.vector = vector
                written.append(write_rows(conn, work, rows))

    writing = threading.Thread(target=write, daemon=True)
    writing.start()
    writing.join(60)
    assert written == [BATCH] * BATCHES
