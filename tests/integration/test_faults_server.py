"""The server under workers: restarted, crashed at any moment, and out of room on its disk."""

from __future__ import annotations

import os
import random
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import psycopg
import pytest

import pgembed
from pgembed.embedded import EmbeddedServer
from pgembed.encoders import load_encoder
from tests.conftest import NO_SMALL_DISK, new_database, new_template
from tests.fakes import Connection, Table, until
from tests.faults import assert_kept, assert_table_kept, audit, crash, lasting_server, restart


@pytest.fixture(params=["column", "side"])
def storage(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedServer]:
    with lasting_server() as server:
        yield server


@pytest.fixture(scope="module")
def own_template(server: EmbeddedServer) -> Iterator[str]:
    yield from new_template(server.dsn())


@pytest.fixture
def dsn(server: EmbeddedServer, own_template: str) -> Iterator[str]:
    yield from new_database(server.dsn(), own_template)


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pgembed.worker.run.TROUBLE_WAITS", (0.05, 0.1, 0.1, 0.2, 0.2))
    monkeypatch.setattr("pgembed.worker.state.TROUBLE_WAITS", (0.05, 0.1, 0.1, 0.2, 0.2))


def again(call: Callable[[], object], seconds: float = 30) -> None:
    """Do it until the server is there."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            call()
            return
        except psycopg.OperationalError:
            assert time.monotonic() < deadline
            time.sleep(0.05)


@contextmanager
def writing(dsn: str, seed: int) -> Generator[None]:
    """An application that inserts, changes and deletes, and goes on after each loss of its connection."""
    over = threading.Event()
    choose = random.Random(seed)

    def write() -> None:
        number = 0
        while not over.is_set():
            with suppress(psycopg.OperationalError), psycopg.connect(dsn, autocommit=True) as conn:
                while not over.is_set():
                    number += 1
                    key = choose.randint(1, 30)
                    what = choose.random()
                    if what < 0.15:
                        conn.execute("DELETE FROM product WHERE id = %s", [key])
                    else:
                        conn.execute(
                            "INSERT INTO product (id, title) VALUES (%(key)s, %(title)s)"
                            " ON CONFLICT (id) DO UPDATE SET title = excluded.title",
                            {"key": key, "title": f"a red shoe and {number} dogs" if what < 0.95 else None},
                        )
                    time.sleep(0.002)
            time.sleep(0.02)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(30)
        assert not thread.is_alive()


@pytest.mark.parametrize("end", [restart, crash])
def test_a_server_that_ends_in_the_middle_of_everything(
    server: EmbeddedServer,
    dsn: str,
    storage: str,
    end: Callable[[EmbeddedServer], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Three times under two workers and a writer; the catalog is whole after each, and at the end all is kept."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        table = Table(conn, dsn, monkeypatch, storage)
        audit(conn, storage)
    table.encoder.before = lambda texts: time.sleep(0.01)
    with table.working(batch_size=4, lease=0.5), table.working(batch_size=4, lease=0.5), writing(dsn, seed=1):
        for _ in range(3):
            time.sleep(0.4)
            end(server)
    with psycopg.connect(dsn, autocommit=True) as conn:
        table.conn = conn
        table.work()
        assert_table_kept(table)
        with pgembed.connect(dsn) as db:
            assert [finding for finding in db.doctor() if not finding.ok and "worker" not in finding.finding] == []
        assert conn.execute("SELECT count(*) > 5 FROM product").fetchone() == (True,)


def test_a_crash_takes_back_a_commit_that_a_worker_has_seen(
    server: EmbeddedServer, dsn: str, storage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers do not wait for the disk: what they wrote last may be undone, the vector together with its job's end."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        table = Table(conn, dsn, monkeypatch, storage)
        table.insert("red shoe", "blue car")
        conn.execute("ALTER SYSTEM SET wal_writer_delay = '10s'")
        conn.execute("SELECT pg_reload_conf()")
        time.sleep(0.1)
        table.work()
        assert table.true_ids() == [1, 2]
    crash(server)
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("ALTER SYSTEM RESET wal_writer_delay")
        table.conn = conn
        table.insert("green tree")
        table.work()
        assert_table_kept(table)


@pytest.mark.parametrize("end", [restart, crash])
def test_instant_mode_over_the_end_of_its_server(
    server: EmbeddedServer, dsn: str, storage: str, end: Callable[[EmbeddedServer], None]
) -> None:
    """A row that is committed has its vector, or a place in the queue; the application never meets pgembed's errors."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("SELECT pgembed.add_encoder('lite', 'builtin:lite')")
        conn.execute("CREATE TABLE product (id integer PRIMARY KEY, title text)")
        conn.execute(
            "SELECT pgembed.attach('product', 'embedding', 'lite', '{\"text\": \"title\"}', storage => %s,"
            " mode => 'instant')",
            [storage],
        )
    with writing(dsn, seed=2):
        for _ in range(2):
            time.sleep(0.4)
            end(server)
    lite = load_encoder("builtin:lite")
    with psycopg.connect(dsn, autocommit=True) as conn, pgembed.connect(dsn) as db:
        db.work(until_idle=True)
        assert_kept(conn, storage=storage, encode=lambda texts: np.asarray(lite.encode_text(list(texts))))


def test_a_crash_empties_unlogged_tables_and_nothing_is_left_of_them(server: EmbeddedServer, dsn: str) -> None:
    """A side table is as its table was when it was made: where that was altered since, reconcile puts it right."""
    lite = load_encoder("builtin:lite")
    tables = [
        (f"{storage}_{mode}_{altered or 'as_made'}".lower(), storage, mode, altered)
        for storage in ("column", "side")
        for mode in ("queue", "instant")
        for altered in ("", "LOGGED", "UNLOGGED")
    ]
    with psycopg.connect(dsn, autocommit=True) as conn, pgembed.connect(dsn) as db:
        db.add_encoder("lite", "builtin:lite")
        for name, storage, mode, altered in tables:
            kind = "" if altered == "UNLOGGED" else "UNLOGGED"
            conn.execute(f"CREATE {kind} TABLE {name} (id integer PRIMARY KEY, title text)".encode())
            conn.execute(f"INSERT INTO {name} VALUES (1, 'a dog'), (2, 'a red shoe')".encode())
            db.attach(name, "embedding", encoder="lite", text="title", storage=storage, mode=mode)
        db.work(until_idle=True)
        for name, _, _, altered in tables:
            if altered:
                conn.execute(f"ALTER TABLE {name} SET {altered}".encode())
            conn.execute(f"INSERT INTO {name} VALUES (3, 'a boat')".encode())  # in queue mode it waits
        conn.execute("CHECKPOINT")  # what is logged is on the disk
    crash(server)
    with psycopg.connect(dsn, autocommit=True) as conn, pgembed.connect(dsn) as db:
        for name, _, _, altered in tables:
            rows = [(1,), (2,), (3,)] if altered == "LOGGED" else []
            assert conn.execute(f"SELECT id FROM {name} ORDER BY id".encode()).fetchall() == rows
        db.work(until_idle=True)  # the queue is logged
        missed = {name for name, *_ in tables if db.reconcile(name) > 0}
        assert missed == {name for name, storage, _, altered in tables if storage == "side" and altered}
        db.work(until_idle=True)
        for name, *_ in tables:
            conn.execute(f"INSERT INTO {name} VALUES (4, 'a cat')".encode())
        db.work(until_idle=True)
        for name, storage, _, altered in tables:
            assert_kept(
                conn, storage=storage, table=name, encode=lambda texts: np.asarray(lite.encode_text(list(texts)))
            )
            count = conn.execute(f"SELECT count(*) FROM {name}".encode()).fetchone()
            assert count == (4 if altered == "LOGGED" else 1,)
        assert [one.finding for one in db.doctor() if not one.ok] == []


# A disk that is full


@pytest.fixture
def small_disk(server: EmbeddedServer) -> Iterator[Path]:
    """A file system of 8 MB that the server may write to."""
    place = Path(tempfile.mkdtemp(prefix="pgembed-tests-"))
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(place)], capture_output=True, text=True, check=False
    )
    if mounted.returncode != 0:
        place.rmdir()
        pytest.skip(f"{NO_SMALL_DISK}{mounted.stderr.strip()}")
    owner = server.data_dir.stat()
    os.chown(place, owner.st_uid, owner.st_gid)
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)
    place.rmdir()


def fill(place: Path, room: int) -> Path:
    """Leave so many bytes of the file system."""
    full = place / "full"
    state = os.statvfs(place)
    full.write_bytes(b"x" * max(0, state.f_bavail * state.f_frsize - room))
    return full


@pytest.mark.parametrize("which", ["vectors", "jobs"])
def test_a_full_disk_costs_no_row(
    server: EmbeddedServer, dsn: str, storage: str, small_disk: Path, which: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where vectors are written, or the queue's jobs: nothing is marked failed, and with room again all goes on."""
    place = f"small_{os.getpid()}_{random.randrange(10**9)}"
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute(f"CREATE TABLESPACE {place} LOCATION '{small_disk}'")
        try:
            table = Table(conn, dsn, monkeypatch, storage)
            there = {"vectors": "product" if storage == "column" else "product_embedding", "jobs": "pgembed.job_1"}
            conn.execute(f"ALTER TABLE {there[which]} SET TABLESPACE {place}")
            conn.execute("INSERT INTO product SELECT i, 'shoe ' || i FROM generate_series(1, %s) AS i", [2000])
            full = fill(small_disk, room=60_000)
            with table.working() as worker:
                until(lambda: "No space left" in str(worker.state.any_trouble()))
                assert len(table.true_ids()) < 2000
                assert table.failures() == {}
                full.unlink()
                until(lambda: table.waiting() == 0)
            assert_table_kept(table)
        finally:
            _drop(conn, place)


def _drop(conn: Connection, place: str) -> None:
    for (name,) in conn.execute(
        "SELECT c.oid::regclass::text FROM pg_class c JOIN pg_tablespace s ON s.oid = c.reltablespace"
        " WHERE s.spcname = %s AND c.relkind = 'r'",
        [place],
    ).fetchall():
        conn.execute(f"ALTER TABLE {name} SET TABLESPACE pg_default".encode())
    conn.execute(f"DROP TABLESPACE {place}".encode())
