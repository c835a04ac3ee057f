"""Hostile pictures in a table: each fails alone, with its reason, and the worker lives."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import PIL.Image
import psycopg
import pytest

import pgembed
from pgembed.worker import WorkerOptions, decode
from tests import deadly

PHOTOS = Path(__file__).parents[1] / "data/photos"


def saved(picture: PIL.Image.Image, form: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    picture.save(file, form, **options)
    return file.getvalue()


@pytest.fixture
def shop(database: psycopg.Connection, database_dsn: str) -> Iterator[pgembed.Pgembed]:
    """A table for pictures, with an embedding."""
    database.execute("CREATE TABLE product (id int PRIMARY KEY, photo bytea)")
    with pgembed.connect(database_dsn) as db:
        db.add_encoder("shop", "builtin:lite")
        db.attach("product", "embedding", encoder="shop", image="photo")
        yield db


def insert(database: psycopg.Connection, pictures: list[bytes]) -> None:
    with database.cursor() as cursor:
        cursor.executemany("INSERT INTO product VALUES (%s, %s)", list(enumerate(pictures)))


def written(database: psycopg.Connection) -> set[int]:
    return {key for (key,) in database.execute("SELECT id FROM product WHERE embedding IS NOT NULL")}


@pytest.mark.parametrize("prepared", ["there", "here"])
def test_a_picture_that_kills_what_decodes_it_fails_alone(
    database: psycopg.Connection,
    shop: pgembed.Pgembed,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    prepared: str,
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
    assert written(database) == set(range(12)) - set(deeds)
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
