"""``changed(…)``: a composer's part in a search, by name and by folder; the rights, spaces and files it is held to."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psycopg
import pytest

import pgembed
from pgembed import EncoderPolicy, Image, Row, Text, changed, slerp, unit
from pgembed.cli.main import main
from pgembed.composers.fitting import Weights, to_onnx
from pgembed.encoders.builtin import LiteEncoder
from pgembed.encoders.composer import ComposerManifest
from pgembed.errors import CatalogError, EncoderError, EncoderMismatch, InvalidQuery, PgembedError
from pgembed.inputs import Expression
from tests.fakes import Connection
from tests.roles import Shop, open_shop

PHOTOS = sorted((Path(__file__).parents[1] / "data/photos").glob("*.jpg"))
SPACE = LiteEncoder.load("lite", {}).space
COW = next(photo for photo in PHOTOS if photo.stem == "cow")
TO, WAS = Text("a fish"), Text("a cow")


def made(folder: Path, new: float, old: float, dim: int = 256, space: str = SPACE) -> str:
    """A composer that gives the plain sum of these weights, so that what a search finds is known."""
    folder.mkdir()
    one = np.eye(dim, dtype=np.float32)
    graph = to_onnx(Weights(np.concatenate([one, new * one, old * one])), dim)
    (folder / "composer.onnx").write_bytes(graph)
    ComposerManifest(dim, space, "builtin:lite", "f").write(folder)
    return f"composer:{folder}"


@pytest.fixture
def models(tmp_path: Path) -> Path:
    made(tmp_path / "sum", 0.75, -0.5)
    return tmp_path


@pytest.fixture
def db(database: psycopg.Connection, database_dsn: str, models: Path) -> Iterator[pgembed.Pgembed]:
    database.execute("CREATE TABLE product (id int PRIMARY KEY, title text, photo bytea)")
    for number, photo in enumerate(PHOTOS, start=1):
        database.execute("INSERT INTO product VALUES (%s, %s, %s)", [number, photo.stem, photo.read_bytes()])
    with pgembed.connect(database_dsn, encoders=EncoderPolicy(model_dirs=(models,))) as client:
        client.add_encoder("shop", "builtin:lite")
        client.add_encoder("sum", f"composer:{models / 'sum'}")
        client.attach("product", "embedding", encoder="shop", image="photo")
        client.work(until_idle=True)
        yield client


@pytest.fixture
def shop(shop_password: str, full_database_dsn: str, full_database: Connection) -> Shop:
    return open_shop(full_database, full_database_dsn, shop_password)


def scores(db: pgembed.Pgembed, query: Expression) -> dict[int, float]:
    return {row.id: row.score for row in db.search("product", query, limit=100, exact=True)}


def test_a_search_finds_what_the_composer_gives(
    db: pgembed.Pgembed, models: Path, database: psycopg.Connection
) -> None:
    cow = PHOTOS.index(COW) + 1
    for reference in (Row(cow), Image(COW), unit(Row(cow) + Row(1))):
        plain = unit(reference) + 0.75 * TO - 0.5 * WAS
        by_name = changed(reference, to=TO, was=WAS, by="sum")
        assert scores(db, by_name) == pytest.approx(scores(db, plain), abs=1e-3)
        by_folder = changed(reference, to=TO, by=f"composer:{models / 'sum'}")
        assert scores(db, by_folder) == pytest.approx(scores(db, unit(reference) + 0.75 * TO), abs=1e-3)
        within = slerp(by_name, Text("a lamp"), 0.3) - 0.2 * unit(by_name + TO)
        expected = slerp(plain, Text("a lamp"), 0.3) - 0.2 * unit(unit(plain) + TO)
        assert scores(db, within) == pytest.approx(scores(db, expected), abs=1e-3)
    twice = changed(changed(Row(cow), to=TO, by="sum"), to=WAS, by="sum")
    assert scores(db, twice) == pytest.approx(scores(db, unit(Row(cow) + 0.75 * TO) + 0.75 * WAS), abs=1e-3)
    statement = db.query("product").near(changed(Row(cow), to=TO, by="sum")).limit(3).compile()
    assert len(database.execute(statement.text, statement.params).fetchall()) == 3


async def _found(dsn: str, models: Path, query: Expression) -> list[int]:
    async with pgembed.connect_async(dsn, encoders=EncoderPolicy(model_dirs=(models,))) as client:
        return [row.id for row in await client.search("product", query, limit=4)]


def test_it_is_the_same_for_asyncio_and_typed(
    db: pgembed.Pgembed, database_dsn: str, models: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    query = changed(Row(2), to=TO, was=WAS, by="sum")
    wanted = [row.id for row in db.search("product", query, limit=4)]
    assert asyncio.run(_found(database_dsn, models, query)) == wanted
    monkeypatch.setenv("PGEMBED_DSN", database_dsn)
    words = ["search", "product", "--like", "2", "--to", "a fish", "--was", "a cow", "--by", "sum", "--limit", "4"]
    with pytest.raises(SystemExit) as ended:
        main([*words, "--model-dir", str(models), "--json"])
    assert not ended.value.code
    assert [row["id"] for row in json.loads(capsys.readouterr().out)] == wanted
    for wrong, message in (
        (["--like", "2", "--by", "sum"], "--by goes with --to"),
        (["a cow", "--to", "a fish", "--by", "sum"], "--to has nothing to change"),
    ):
        with pytest.raises(SystemExit, match="2"):
            main(["search", "product", *wrong])
        assert message in capsys.readouterr().err


def test_what_does_not_belong_together_is_refused(db: pgembed.Pgembed, models: Path, tmp_path: Path) -> None:
    other = made(models / "other", 1, 0, space="clip@1")
    narrow = made(models / "narrow", 1, 0, dim=8)
    db.add_encoder("named", other)
    outside = made(tmp_path.parent / f"{tmp_path.name}-outside", 1, 0)
    cases: list[tuple[Expression, type[PgembedError], str]] = [
        (changed(Row(1), to=TO, by="named"), EncoderMismatch, rf"space {SPACE}.*'named' is for space clip@1"),
        (changed(Row(1), to=TO, by=other), EncoderMismatch, "is for space clip@1"),
        (changed(Row(1), to=TO, by=narrow), EncoderMismatch, "256 dimensions; the composer .* is for 8"),
        (changed(Row(1), to=TO, by="shop"), InvalidQuery, "'shop' is an encoder, not a composer"),
        (changed(Row(1), to=TO, by="gone"), CatalogError, "No encoder named 'gone'"),
        (changed(Row(1), to=TO, by=outside), EncoderError, "outside of the model directory"),
        (changed(Row(99), to=TO, by="sum"), PgembedError, r"Row\(99\) is not in product, or has no vector yet"),
    ]
    for query, error, message in cases:
        with pytest.raises(error, match=message):
            db.search("product", query)
    with pytest.raises(PgembedError, match="'sum' is a composer: it changes the vectors of queries"):
        db.attach("product", "second", encoder="sum", image="photo")


@pytest.mark.full_server
def test_a_hidden_row_is_no_reference(shop: Shop, models: Path) -> None:
    """The vector of a row is read under the rights of whoever searches."""
    with shop.as_role("owner") as conn:
        conn.execute("ALTER TABLE shop.product ENABLE ROW LEVEL SECURITY")
        conn.execute("CREATE POLICY most ON shop.product USING (id <> 3)")
    policy = EncoderPolicy(model_dirs=(models,))
    with pgembed.connect(shop.dsn_of("reader"), encoders=policy) as client:
        by = f"composer:{models / 'sum'}"
        assert client.search("shop.product", changed(Row(2), to=TO, by=by), limit=1)
        with pytest.raises(PgembedError, match=r"Row\(3\) is not in product"):
            client.search("shop.product", changed(Row(3), to=TO, by=by))
