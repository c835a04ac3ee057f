"""An encoder of a third party whose text side is a table of token vectors: SQL takes it over, or refuses it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, ClassVar, Self

import numpy as np
import psycopg
import pytest
from numpy.typing import NDArray
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

import pgembed
from pgembed import Text
from pgembed.encoders import Encoder, Modality, Settings
from pgembed.encoders.builtin import TEXT_SETTINGS
from pgembed.errors import EncoderError, InvalidInput
from pgembed.static_text import StaticText

Connection = psycopg.Connection[tuple[Any, ...]]

WORDS = (
    "a",
    "b",
    "c",
    "cafe",
    "red",
    "shoe",
    "dog",
    "dogs",
    "two",
    "one",
    "##s",
    "##es",
    "1",
    "2",
    "3",
    ".",
    "!",
    "東",
)


class TableEncoder(Encoder):
    """``table:NAME``: a small vocabulary with random vectors."""

    scheme: ClassVar[str] = "table"
    modalities: frozenset[Modality] = frozenset({"text"})
    dim = 8

    def __init__(
        self,
        *,
        lowercase: bool = True,
        kind: str = "wordpiece",
        prompt: str = "",
        document_prompt: str = "",
        pooling: str = "sum",
    ) -> None:
        self.spec = "table:small"
        self.fingerprint = f"{lowercase} {kind} {prompt} {document_prompt} {pooling}"
        self.prompt, self.document_prompt = prompt, document_prompt
        tokenizer = Tokenizer(
            models.WordPiece({word: i for i, word in enumerate(("[UNK]", *WORDS))}, unk_token="[UNK]")
        )
        tokenizer.normalizer = normalizers.BertNormalizer(strip_accents=True, lowercase=lowercase)
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        self.side = StaticText(
            model=f"table:small@{self.fingerprint}",
            fingerprint=self.fingerprint,
            settings={**TEXT_SETTINGS, "tokenizer": kind, "language": "Lilliputian", "pooling": pooling},
            vocabulary=("[UNK]", *WORDS),
            table=np.random.default_rng(1).normal(size=(len(WORDS) + 1, self.dim)).astype(np.float32),
            tokenizer=tokenizer,
        )

    @classmethod
    def load(cls, name: str, settings: Settings) -> Self:
        return cls(**settings)

    def static_side(self) -> StaticText:
        return self.side

    def embed_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        return self.side.encode([self.prompt + self.document_prompt + text for text in texts])

    def embed_query_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        return self.side.encode([self.prompt + text for text in texts])


@pytest.fixture
def db(database: Connection, monkeypatch: pytest.MonkeyPatch) -> pgembed.Pgembed:
    def load(spec: str, settings: Settings | None = None, **_: object) -> Encoder:
        return TableEncoder.load(spec, settings or {})

    monkeypatch.setattr("pgembed.catalog.load_encoder", load)
    monkeypatch.setattr("pgembed.encoders.load_encoder", load)
    return pgembed.connect(database)


def sides(conn: Connection) -> list[str]:
    return [model for (model,) in conn.execute("SELECT model FROM pgembed.static_text WHERE model LIKE 'table%'")]


def test_sql_encodes_its_texts_after_it_is_registered(db: pgembed.Pgembed, database: Connection) -> None:
    row = db.add_encoder("small", "table:small")
    assert row.static_text == TableEncoder().side.model
    (found,) = database.execute("SELECT pgembed.encode_text('small', 'Two red DOGS!')::text").fetchall()[0]
    expected = TableEncoder().encode_text(["Two red DOGS!"])[0]
    assert np.array(found[1:-1].split(","), np.float32) == pytest.approx(expected, abs=1e-6)
    assert db.encoder("small").languages == "Lilliputian"
    with pytest.raises(psycopg.DataError, match="Write it in Lilliputian words"):
        database.execute("SELECT pgembed.encode_text('small', '☃')")
    with pytest.raises(InvalidInput, match="Lilliputian words"):
        TableEncoder().encode_text(["☃"])
    assert "its words are Lilliputian" in [finding.finding for finding in db.doctor()]
    assert db.add_encoder("small", "table:small") == row  # again changes nothing
    db.add_encoder("same", "table:small")
    db.remove_encoder("small")
    assert sides(database) == [row.static_text]
    db.remove_encoder("same")
    assert sides(database) == []


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (
            {"lowercase": False},
            r"same in SQL: for the query 'Two Dogs, one CAT', .*dogs.* in SQL and \['one'\]",
        ),
        (
            {"prompt": "red "},
            r"same in SQL: for the query 'a red shoe', the vectors differ by 0\.\d+\. Correct",
        ),
        ({"document_prompt": "red "}, r"for the document 'a red shoe', the vectors differ by 0\.\d+\. Correct"),
        ({"pooling": "max"}, r"cannot be computed in SQL: its pooling is 'max', and SQL makes"),
        ({"kind": "unigram"}, r"cannot be computed in SQL: its tokenizer is 'unigram', not WordPiece"),
    ],
)
def test_a_text_side_that_sql_cannot_follow_is_refused_with_the_first_text_that_differs(
    db: pgembed.Pgembed, database: Connection, settings: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(EncoderError, match=sentence):
        db.add_encoder("small", "table:small", settings=settings)
    assert sides(database) == []
    assert db.encoders() == []


@pytest.mark.parametrize("where", [None, "id > 0"])
def test_unknown_words_are_told_once_a_search_though_it_runs_twice(
    database: Connection, database_dsn: str, caplog: pytest.LogCaptureFixture, where: str | None
) -> None:
    database.execute("CREATE TABLE product (id integer PRIMARY KEY, title text)")
    database.execute("INSERT INTO product VALUES (1, 'red shoe')")
    database.execute("SELECT pgembed.add_encoder('lite', 'builtin:lite')")
    database.execute("SELECT pgembed.attach('product', 'v', 'lite', '{\"text\": \"title\"}')")
    with pgembed.connect(database_dsn) as db:
        db.work(until_idle=True)
        caplog.set_level("INFO", "pgembed")
        for searches in (1, 2):  # the next search tells it again
            assert len(db.search("product", Text("krasnye tufli"), where=where, limit=3)) == 1
            assert caplog.text.count("does not know most words") == searches
    with psycopg.connect(database_dsn) as conn, pgembed.connect(conn) as db:  # the caller's own transaction
        conn.execute("SET LOCAL client_min_messages = debug1")
        db.search("product", Text("krasnye tufli"), where=where, limit=3)
        assert conn.execute("SHOW client_min_messages").fetchone() == ("debug1",)


@pytest.mark.usefixtures("db")
def test_the_asynchronous_client_does_the_same(database_dsn: str) -> None:
    async def register() -> str | None:
        async with pgembed.connect_async(database_dsn) as asynchronous:
            return (await asynchronous.add_encoder("small", "table:small")).static_text

    assert asyncio.run(register()) == TableEncoder().side.model
