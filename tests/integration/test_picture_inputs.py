"""Where a row's pictures may be: in bytea, large objects, paths and data: URLs, one or a list of them."""

from __future__ import annotations

import base64
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest
from numpy.typing import NDArray

import pgembed
from pgembed.encoders import load_encoder
from pgembed.errors import CatalogError
from pgembed.media import Limits, MediaPolicy, open_picture
from pgembed.worker import WorkerOptions

PHOTOS = Path(__file__).parents[1] / "data/photos"
PANDA, FISH = ((PHOTOS / name).read_bytes() for name in ("panda.jpg", "goldfish.jpg"))
MEDIA = MediaPolicy(media_root=PHOTOS)
BOTH = pytest.mark.parametrize("storage", ["column", "side"], indirect=True)


@pytest.fixture(scope="module")
def vectors() -> dict[str, NDArray[np.float32]]:
    """What the encoder makes of the two photographs."""
    encoder = load_encoder("builtin:lite")
    found = encoder.encode_image([open_picture(data, "bytes") for data in (PANDA, FISH)])
    mean = found.mean(axis=0)
    return {"panda": found[0], "fish": found[1], "both": mean / np.linalg.norm(mean)}


class Shop:
    """A table with one column of pictures, and an embedding of it."""

    def __init__(self, database: psycopg.Connection, db: pgembed.Pgembed, storage: str) -> None:
        self.database = database
        self.db = db
        self.storage = storage

    def attach(self, column_type: str, form: str | None = None) -> None:
        self.database.execute(f"CREATE TABLE product (id int PRIMARY KEY, photo {column_type})")  # type: ignore[arg-type]
        image = {"column": "photo", **({"as": form} if form else {})}
        self.db.attach("product", "embedding", encoder="shop", image=image, storage=self.storage)

    def put(self, *rows: Any) -> None:  # noqa: ANN401
        for key, row in enumerate(rows):
            self.database.execute("INSERT INTO product VALUES (%s, %s)", [key, row])

    def work(self, media: MediaPolicy = MEDIA) -> dict[int, str]:
        """Encode what waits; the errors of rows by key."""
        self.db.work(WorkerOptions(media=media, max_attempts=1), until_idle=True)
        return {int(failure.key[0]): failure.error for failure in self.db.failures("product")}

    def vectors(self) -> list[NDArray[np.float32] | None]:
        place = "product" if self.storage == "column" else "product LEFT JOIN product_embedding USING (id)"
        column = "embedding" if self.storage == "column" else "vector"
        rows = self.database.execute(f"SELECT {column}::real[] FROM {place} ORDER BY id".encode()).fetchall()
        return [None if vector is None else np.asarray(vector, dtype=np.float32) for (vector,) in rows]


@pytest.fixture
def shop(database: psycopg.Connection, database_dsn: str, storage: str) -> Iterator[Shop]:
    with pgembed.connect(database_dsn) as db:
        db.add_encoder("shop", "builtin:lite")
        yield Shop(database, db, storage)


def same(found: NDArray[np.float32] | None, expected: NDArray[np.float32]) -> bool:
    return found is not None and bool(np.allclose(found, expected, atol=1e-5))


def large_object(database: psycopg.Connection, data: bytes) -> int:
    return database.execute("SELECT lo_from_bytea(0, %s)", [data]).fetchall()[0][0]


@BOTH
def test_pictures_in_data_urls_need_no_permission(shop: Shop, vectors: dict[str, Any]) -> None:
    shop.attach("text", "url")
    url = f"data:image/jpeg;base64,{base64.b64encode(PANDA).decode()}"
    shop.put(url, url[:-20], None, "data:image/png;base64,!!", "https://192.0.2.1/a.png")
    failures = shop.work()
    assert same(shop.vectors()[0], vectors["panda"])
    assert failures.keys() == {1, 3, 4}
    assert "'data:image/jpeg;base64,…' cannot be decoded" in failures[1]
    assert "not valid Base64" in failures[3]
    assert "URLs are switched off" in failures[4]


# Large objects


@BOTH
@pytest.mark.parametrize("column_type", ["oid", "reference"])
def test_large_objects_are_read(
    database: psycopg.Connection, shop: Shop, vectors: dict[str, Any], column_type: str
) -> None:
    database.execute("CREATE DOMAIN reference AS oid")
    shop.attach(column_type)
    panda, fish, words = (large_object(database, data) for data in (PANDA, FISH, b"words"))
    shop.put(panda, fish, None, 0, words, 4_000_000_000)
    failures = shop.work()
    found = shop.vectors()
    assert same(found[0], vectors["panda"])
    assert same(found[1], vectors["fish"])
    assert found[2:] == [None] * 4
    assert failures.keys() == {4, 5}
    assert "looks like text" in failures[4]
    assert failures[5] == ("The large object 4000000000 is not there: store it again, or set the column to NULL.")
    assert shop.db.verify("product", sample=None, media=MEDIA).ok


def test_a_large_object_that_is_too_large_is_not_read(database: psycopg.Connection, shop: Shop) -> None:
    shop.attach("oid")
    shop.put(large_object(database, PANDA), large_object(database, b"x" * 1_000_000))
    failures = shop.work(MediaPolicy(limits=Limits(max_bytes=200_000)))
    assert failures == {
        1: "The picture of the row has 1,000,000 bytes or more, and the limit is 200,000."
        " Store it smaller, or raise the limit of bytes."
    }
    assert shop.vectors()[0] is not None


def test_a_large_object_that_may_not_be_read_says_who_must_grant_what(database: psycopg.Connection) -> None:
    role = f"reader_{os.getpid()}"
    found = large_object(database, PANDA)
    with database.transaction(force_rollback=True):
        database.execute(f"CREATE ROLE {role}")  # type: ignore[arg-type]
        database.execute(f"GRANT USAGE ON SCHEMA pgembed TO {role}")  # type: ignore[arg-type]
        database.execute(f"SET LOCAL ROLE {role}")  # type: ignore[arg-type]
        with pytest.raises(psycopg.DataError) as caught, database.transaction():
            database.execute("SELECT pgembed._large_object(%s::oid)", [found])
        assert caught.value.diag.message_primary == (
            f"The role {role} may not read the large object {found}; as its owner:"
            f" GRANT SELECT ON LARGE OBJECT {found} TO {role};"
        )
        assert database.execute("SELECT pgembed._large_object_bytes(%s::oid)", [found]).fetchone() == (0,)
        database.execute("RESET ROLE")
        database.execute(f"GRANT SELECT ON LARGE OBJECT {found} TO {role}")  # type: ignore[arg-type]
        database.execute(f"SET LOCAL ROLE {role}")  # type: ignore[arg-type]
        assert database.execute("SELECT pgembed._large_object(%s::oid)", [found]).fetchone() == (PANDA,)


@BOTH
def test_a_large_object_that_changed_is_encoded_again_when_its_row_is_asked_for(
    database: psycopg.Connection, shop: Shop, vectors: dict[str, Any]
) -> None:
    shop.attach("oid")
    found = large_object(database, PANDA)
    shop.put(found)
    shop.work()
    database.execute("SELECT lo_put(%s, 0, %s)", [found, FISH + bytes(max(0, len(PANDA) - len(FISH)))])
    shop.work()
    assert same(shop.vectors()[0], vectors["panda"])  # no trigger sees what happens to a large object
    assert shop.db.verify("product", sample=None, repair=True, media=MEDIA).repaired == 1
    shop.work()
    assert same(shop.vectors()[0], vectors["fish"])


# Lists


def lists(database: psycopg.Connection, kind: str) -> tuple[str, str | None, Any, Any]:
    """A type of column, its form, and the two photographs as such a column holds them."""
    if kind == "bytes":
        return "bytea[]", None, PANDA, FISH
    if kind == "path":
        return "varchar(80)[]", "path", "panda.jpg", "goldfish.jpg"
    if kind == "url":
        return "text[]", "url", *(f"data:;base64,{base64.b64encode(data).decode()}" for data in (PANDA, FISH))
    return "oid[]", None, large_object(database, PANDA), large_object(database, FISH)


@BOTH
@pytest.mark.parametrize("kind", ["bytes", "path", "url", "large object"])
def test_a_list_is_the_mean_of_its_parts(
    database: psycopg.Connection, shop: Shop, vectors: dict[str, Any], kind: str
) -> None:
    column_type, form, panda, fish = lists(database, kind)
    shop.attach(column_type, form)
    shop.put([panda, fish], [panda], [fish, fish, fish], [None, panda, None, fish], [], [None, None], None)
    assert shop.work() == {}
    found = shop.vectors()
    for vector, name in zip(found, ("both", "panda", "fish", "both"), strict=False):
        assert same(vector, vectors[name])
    assert found[4:] == [None] * 3
    assert shop.db.verify("product", sample=None, media=MEDIA).ok
    database.execute("UPDATE product SET photo = %s WHERE id = 0", [[fish]])
    database.execute("UPDATE product SET photo = %s WHERE id = 1", [[]])
    assert shop.work() == {}
    assert same(shop.vectors()[0], vectors["fish"])
    assert shop.vectors()[1] is None


@BOTH
def test_one_bad_picture_of_a_list_fails_its_row_and_is_named(
    database: psycopg.Connection, shop: Shop, vectors: dict[str, Any]
) -> None:
    shop.attach("bytea[]")
    shop.put([PANDA, None, b"words", b"more"], [PANDA, FISH], [b""], [PANDA] * 65)
    failures = shop.work()
    assert failures[0].startswith("Number 3 of the list: The picture <5 bytes 776f726473> cannot be read")
    assert failures[2].startswith("Number 1 of the list: The picture <0 bytes > is empty.")
    assert failures[3] == "The list has 65 pictures, more than 64. Choose some of them."
    assert same(shop.vectors()[1], vectors["both"])
    assert failures.keys() == {0, 2, 3}


def test_blank_paths_of_a_list_are_none(shop: Shop, vectors: dict[str, Any]) -> None:
    shop.attach("text[]", "path")
    shop.put(["", "panda.jpg", "  "], ["", " "], ["panda.jpg", "../panda.jpg"])
    failures = shop.work()
    assert same(shop.vectors()[0], vectors["panda"])
    assert shop.vectors()[1] is None
    assert failures.keys() == {2}
    assert failures[2].startswith("Number 2 of the list: The picture '../panda.jpg' is outside the media root")


def test_lists_of_lists_and_domains_are_lists(
    database: psycopg.Connection, shop: Shop, vectors: dict[str, Any]
) -> None:
    database.execute("CREATE DOMAIN picture AS bytea")
    database.execute("CREATE DOMAIN gallery AS picture[] CHECK (cardinality(VALUE) < 9)")
    shop.attach("gallery")
    database.execute("INSERT INTO product VALUES (1, ARRAY[ARRAY[%s], ARRAY[%s]]::bytea[])", [PANDA, FISH])
    assert shop.work() == {}
    assert same(shop.vectors()[0], vectors["both"])


@BOTH
def test_a_list_beside_a_text_weighs_as_one_picture(
    database: psycopg.Connection, shop: Shop, vectors: dict[str, Any]
) -> None:
    database.execute("CREATE TABLE product (id int PRIMARY KEY, title text, photo bytea[])")
    shop.db.attach("product", "embedding", encoder="shop", text="title", image="photo", storage=shop.storage)
    database.execute("INSERT INTO product VALUES (1, 'a panda', %s)", [[PANDA, FISH]])
    assert shop.work() == {}
    text = load_encoder("builtin:lite").encode_text(["a panda"])[0]
    total = text + vectors["both"]
    assert same(shop.vectors()[0], total / np.linalg.norm(total))


@pytest.mark.parametrize(
    ("column_type", "form", "shown"),
    [
        ("text[]", None, "text[]"),
        ("int[]", None, "integer[]"),
        ("oid", "path", "oid as 'path'"),
        ("json", "url", "json"),
    ],
)
def test_what_is_no_picture_is_refused_with_what_would_be(
    shop: Shop, column_type: str, form: str | None, shown: str
) -> None:
    with pytest.raises(CatalogError, match="an oid column names a large object") as caught:
        shop.attach(column_type, form)
    assert f"Column 'photo' of product is {shown}" in str(caught.value).replace("public.", "")


def test_samples_and_estimates_know_lists_and_large_objects(database: psycopg.Connection, shop: Shop) -> None:
    for number, kind in enumerate(("bytes", "large object", "url")):
        column_type, form, panda, fish = lists(database, kind)
        shop.attach(column_type, form)
        shop.put([panda, fish], [None])
        image = {"column": "photo", **({"as": form} if form else {})}
        estimate = shop.db.estimate("product", f"other_{number}", encoder="shop", image=image)
        assert estimate.rows == 2
        assert (estimate.inputs[0].mean_bytes or 0) > 1_000 or kind != "bytes"
        shop.db.test_encoder("shop", table="product")
        shop.db.detach("product")
        database.execute("DROP TABLE product")
