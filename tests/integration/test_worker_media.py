"""Hostile pictures in a table: each fails alone, with its reason, and the worker lives."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import psycopg
import pytest

import pgembed
from pgembed.worker import WorkerOptions, decode, load, verification
from pgembed.worker.batch import Row
from pgembed.worker.keys import Key
from pgembed.worker.load import Loader
from pgembed.worker.queue import Work
from pgembed.worker.verification import Look, Verifier
from tests import deadly
from tests.unit.test_media_fuzz import SEEDS, mutated, readable

ROOT = Path(__file__).parents[2]
PHOTOS = ROOT / "tests/data/photos"


@pytest.fixture
def shop(database: psycopg.Connection, database_dsn: str, storage: str) -> Iterator[pgembed.Pgembed]:
    """A table for pictures, with an embedding."""
    database.execute("CREATE TABLE product (id int PRIMARY KEY, photo bytea)")
    with pgembed.connect(database_dsn) as db:
        db.add_encoder("shop", "builtin:lite")
        db.attach("product", "embedding", encoder="shop", image="photo", storage=storage)
        yield db


def insert(database: psycopg.Connection, pictures: list[bytes]) -> None:
    with database.cursor() as cursor:
        cursor.executemany("INSERT INTO product VALUES (%s, %s)", list(enumerate(pictures)))


def written(database: psycopg.Connection, storage: str = "column") -> set[int]:
    rows = "product WHERE embedding IS NOT NULL" if storage == "column" else "product_embedding"
    return {key for (key,) in database.execute(f"SELECT id FROM {rows}".encode())}


@pytest.mark.parametrize(("prepared", "storage"), [("there", "column"), ("here", "side")], indirect=["storage"])
def test_a_picture_that_kills_what_decodes_it_fails_alone(
    database: psycopg.Connection,
    shop: pgembed.Pgembed,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    prepared: str,
    storage: str,
) -> None:
    deadly.arm(tmp_path, monkeypatch)
    monkeypatch.setattr(decode, "SECONDS", 1.0)
    if prepared == "here":
        monkeypatch.setattr("pgembed.encoders.builtin.LiteEncoder.preparation", None)
    photo = (PHOTOS / "panda.jpg").read_bytes()
    deeds = {2: "SEGV", 5: "LOOP", 7: "SEGV", 8: "KILL", 9: "FULL"}
    insert(database, [deadly.picture(deeds[n]) if n in deeds else photo for n in range(12)])
    summary = shop.work(WorkerOptions(max_attempts=1), until_idle=True)
    assert (summary.written, summary.failed) == (7, 5)
    assert written(database, storage) == set(range(12)) - set(deeds)
    failures = {int(failure.key[0]): failure.error for failure in shop.failures("product")}
    assert failures.keys() == deeds.keys()
    assert "ended the process that decoded it (SIGSEGV). Store it again, as PNG." in failures[2]
    assert "took more than 1 s to decode" in failures[5]
    assert "was killed (SIGKILL)" in failures[8]
    assert "does not fit into memory" in failures[9]


def test_pictures_decoded_in_threads_get_the_same_vectors(database: psycopg.Connection, shop: pgembed.Pgembed) -> None:
    insert(database, [path.read_bytes() for path in sorted(PHOTOS.glob("*.jpg"))[:4]] + [b"no picture"])
    shop.work(WorkerOptions(max_attempts=1), until_idle=True)
    before = database.execute("SELECT id, embedding::text FROM product ORDER BY id").fetchall()
    database.execute("UPDATE product SET embedding = NULL")
    shop.reconcile("product")
    shop.retry("product")
    shop.work(WorkerOptions(max_attempts=1, decode_in="threads"), until_idle=True)
    assert database.execute("SELECT id, embedding::text FROM product ORDER BY id").fetchall() == before
    assert [failure.key for failure in shop.failures("product")] == [["4"]]


def test_no_more_is_read_at_once_than_fits_and_what_is_too_large_is_not_read(
    database: psycopg.Connection, shop: pgembed.Pgembed, monkeypatch: pytest.MonkeyPatch
) -> None:
    photo = (PHOTOS / "panda.jpg").read_bytes()
    insert(database, [photo] * 6)
    database.execute("INSERT INTO product VALUES (6, decode(repeat('00', 70000000), 'hex'))")
    read: list[int] = []
    fetch = Loader._fetch  # pyright: ignore[reportPrivateUsage]

    def counted(self: Loader, work: Work, rows: Sequence[Row]) -> list[tuple[object, ...]]:
        read.append(len(rows))
        return fetch(self, work, rows)

    monkeypatch.setattr(Loader, "_fetch", counted)
    monkeypatch.setattr(load, "READ_BYTES", 2 * len(photo))
    summary = shop.work(WorkerOptions(), until_idle=True)
    assert (summary.written, summary.failed) == (6, 1)
    assert read == [2, 2, 2]
    (failure,) = shop.failures("product")
    assert failure.error.startswith("The picture of the row has 70,000,000 bytes or more, and the limit is 67,108,864.")


def test_verify_reads_as_many_rows_at_once_as_their_pictures_leave_room_for(
    database: psycopg.Connection, shop: pgembed.Pgembed, monkeypatch: pytest.MonkeyPatch
) -> None:
    photo = (PHOTOS / "panda.jpg").read_bytes()
    insert(database, [photo] * 6)
    shop.work(until_idle=True)
    database.execute("SET session_replication_role = replica")  # no trigger sees it
    database.execute("INSERT INTO product VALUES (6, decode(repeat('00', 70000000), 'hex'))")
    read: list[int] = []
    fetch = Verifier._fetch  # pyright: ignore[reportPrivateUsage]

    def counted(self: Verifier, keys: Sequence[Key], first: int, look: Look) -> list[tuple[object, ...]]:
        read.append(len(keys))
        return fetch(self, keys, first, look)

    monkeypatch.setattr(Verifier, "_fetch", counted)
    monkeypatch.setattr(verification, "READ_BYTES", 2 * len(photo))
    found = shop.verify("product", sample=None)
    assert (found.rows, found.matching, found.unchecked.keys) == (7, 6, [["6"]])
    assert read == [2, 2, 2]
    assert found.reasons == [
        "The picture of the row has 70,000,000 bytes or more, and the limit is 67,108,864. "
        "Store it smaller, or raise the limit of bytes."
    ]


def test_a_thousand_broken_pictures_fail_row_by_row(database: psycopg.Connection, shop: pgembed.Pgembed) -> None:
    corpus = [mutated(form, seed) for form in readable() for seed in range(100)]
    insert(database, [*corpus, (PHOTOS / "panda.jpg").read_bytes()])
    summary = shop.work(WorkerOptions(max_attempts=1), until_idle=True)
    failures = {int(failure.key[0]): failure.error for failure in shop.failures("product", limit=len(corpus))}
    assert summary.failed == len(failures) > len(corpus) // 4
    assert written(database) == set(range(len(corpus) + 1)) - failures.keys()
    for error in failures.values():
        assert error.startswith("The picture <"), error
        assert "ended the process" not in error, error


@pytest.mark.slow
@pytest.mark.usefixtures("shop")
def test_a_worker_that_meets_many_bombs_stays_below_two_gigabytes(
    database: psycopg.Connection, database_dsn: str
) -> None:
    insert(database, [deadly.bomb(9_000, 9_000)] * 4 + [(PHOTOS / "panda.jpg").read_bytes()] * 4)
    assert 2**27 < most_memory(database_dsn) < 2**31
    assert written(database) == set(range(8))


@pytest.mark.slow
def test_a_worker_that_meets_all_broken_pictures_stays_below_two_gigabytes(
    database: psycopg.Connection, database_dsn: str, shop: pgembed.Pgembed
) -> None:
    corpus = [mutated(form, seed) for form in readable() for seed in SEEDS]
    insert(database, [*corpus, (PHOTOS / "panda.jpg").read_bytes()])
    assert 2**27 < most_memory(database_dsn) < 2**31
    failures = {int(failure.key[0]) for failure in shop.failures("product", limit=len(corpus))}
    assert len(failures) > len(corpus) // 4
    assert written(database) == set(range(len(corpus) + 1)) - failures


def most_memory(dsn: str) -> int:
    """The most bytes that a worker and its processes have while it empties the queue."""
    command = [sys.executable, "-m", "pgembed.cli", "--dsn", dsn, "worker", "--until-idle"]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL) as worker:
        most = looks = 0
        processes: list[int] = []
        while worker.poll() is None:
            if looks % 10 == 0:  # to read of every process fifty times a second would take a core from the worker
                processes = [worker.pid, *started_by(worker.pid)]
            most = max(most, sum(map(memory, processes)))
            looks += 1
            time.sleep(0.02)
        assert worker.returncode == 0
    return most


def started_by(pid: int) -> list[int]:
    """The processes that a process started."""
    found: list[int] = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended
            _, _, facts = (folder / "stat").read_text().rpartition(")")
            if int(facts.split()[1]) == pid:
                found.append(int(folder.name))
    return found


def memory(pid: int) -> int:
    """Bytes of a process as they lie in memory now; 0 where it has ended."""
    with suppress(OSError):
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0
