"""Distilled static sides: trained, stored, asked for, refused where they are stale, taken away."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import psycopg
import pytest
from numpy.typing import NDArray
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from typer.testing import CliRunner

import pgembed
from pgembed import Text
from pgembed.cli.main import app
from pgembed.distilling.wordpiece import wordpiece_of
from pgembed.encoders import Encoder, EncoderPolicy, Modality, Settings, load_encoder
from pgembed.errors import CatalogError, EncoderMismatch, InvalidInput, PgembedError
from tests.full_server import FullServer
from tests.roles import open_shop

Connection = psycopg.Connection[tuple[Any, ...]]

COLOURS = ("red", "blue", "green", "black", "white", "brown")
THINGS = ("shoe", "dog", "chair", "cafe", "tower", "lamp", "boat", "tree")
STYLES = ("old", "new", "small", "large", "wooden", "plastic")
OTHERS = ("a", "the", "in", "##s", "##es", ".", "!", "zebra")
WORDS = (*COLOURS, *THINGS, *STYLES, *OTHERS)
DIM = 16


class WordEncoder(Encoder):
    """``word:NAME``: each word has a vector, and its place in the text a weight, which no sum of tokens has."""

    scheme: ClassVar[str] = "word"
    modalities: frozenset[Modality] = frozenset({"text"})
    dim = DIM

    def __init__(self, name: str = "small", tokenizer: str | None = "wordpiece") -> None:
        self.spec = f"word:{name}"
        self.fingerprint = f"{name} of sixteen dimensions"
        self.tokenizer = tokenizer
        self.roles: set[str] = set()
        if name == "pictures":
            self.modalities = frozenset({"image"})

    @classmethod
    def load(cls, name: str, settings: Settings) -> Self:
        return cls(name)

    def tokenizer_json(self) -> str | None:
        if self.tokenizer is None:
            return None
        vocabulary = {word: i for i, word in enumerate(("[PAD]", "[UNK]", "[CLS]", *WORDS))}
        tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
        tokenizer.add_special_tokens(["[PAD]", "[UNK]", "[CLS]"])
        tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        return tokenizer.to_str()

    def embed_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        self.roles.add("document")
        return np.stack([self._vector(text) for text in texts])

    def embed_query_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        self.roles.add("query")
        return np.stack([self._vector(f"the {text}") for text in texts])

    def _vector(self, text: str) -> NDArray[np.float32]:
        total = np.zeros(DIM)
        for place, word in enumerate(text.lower().split()):
            own = np.random.default_rng(list(word.encode())).normal(size=DIM)
            total += own * (0.2 if len(word) < 4 else 1.0) / (1 + 0.1 * place)
        return (total / np.linalg.norm(total)).astype(np.float32)


TITLES = [f"the {style} {colour} {thing}" for style, colour, thing in product(STYLES, COLOURS, THINGS)]


@pytest.fixture
def encoders(monkeypatch: pytest.MonkeyPatch) -> dict[str, WordEncoder]:
    """What is loaded, by spec."""
    found = {f"word:{name}": WordEncoder(name) for name in ("small", "other", "pictures")}
    found["word:free"] = WordEncoder("free", tokenizer=None)

    def load(spec: str, settings: Settings | None = None, *, policy: EncoderPolicy | None = None) -> Encoder:
        return found[spec] if spec.startswith("word:") else load_encoder(spec, settings, policy=policy)

    monkeypatch.setattr("pgembed.catalog.load_encoder", load)
    monkeypatch.setattr("pgembed.encoders.load_encoder", load)
    return found


def filled(conn: Connection) -> pgembed.Pgembed:
    """288 products with their vectors, and an encoder that no static side was distilled from yet."""
    conn.execute("CREATE TABLE product (id integer PRIMARY KEY, title text)")
    with conn.cursor() as cursor:
        cursor.executemany("INSERT INTO product VALUES (%s, %s)", list(enumerate(TITLES)))
    db = pgembed.connect(conn)
    db.add_encoder("small", "word:small")
    db.attach("product", "embedding", encoder="small", text="title")
    db.work(until_idle=True)
    return db


@pytest.fixture
def db(database: Connection, encoders: dict[str, WordEncoder]) -> pgembed.Pgembed:
    assert encoders
    return filled(database)


def encoded(conn: Connection, query: str, prefer: str | None = "static", encoder: str = "small") -> NDArray[np.float32]:
    rows = conn.execute("SELECT pgembed.encode_text(%s, %s, prefer => %s)::text", [encoder, query, prefer]).fetchall()
    return np.array(json.loads(rows[0][0]), np.float32)


def test_sql_makes_nearly_the_vectors_of_the_encoder_where_it_is_asked_to(
    db: pgembed.Pgembed, database: Connection, encoders: dict[str, WordEncoder]
) -> None:
    steps: dict[str, tuple[int, int]] = {}
    found = db.distill_encoder("small", on_progress=lambda step, done, of: steps.update({step: (done, of)}))
    assert found.tokenizer == "word:small"
    assert found.tokens == len(WORDS)
    assert found.agreement.held_out > 20
    assert found.agreement.mean_cosine > 0.95
    assert found.agreement.mean_cosine > found.agreement.untrained_mean_cosine
    assert found.agreement.overlap_at_10 > 0.5
    assert list(steps) == ["encoding the vocabulary", "encoding texts", "training"]
    assert steps["encoding texts"][0] == steps["encoding texts"][1]
    exact = encoders["word:small"].encode_text(["Wooden LAMPS in a boat"], role="query")[0]
    assert (
        float(encoded(database, "wooden lamp") @ encoders["word:small"].encode_text(["wooden lamp"], role="query")[0])
        > 0.9
    )
    assert np.linalg.norm(encoded(database, "Wooden LAMPS in a boat")) == pytest.approx(1, abs=1e-5)
    assert float(encoded(database, "Wooden LAMPS in a boat") @ exact) > 0.3
    with pytest.raises(psycopg.Error, match="no vector cached"):  # never unless asked
        encoded(database, "wooden lamp", None)
    with pytest.raises(psycopg.Error, match="no vector cached"):
        encoded(database, "wooden lamp", "exact")
    with pytest.raises(psycopg.Error, match="no vector cached"):
        database.execute("SELECT pgembed.encode_text('small', 'wooden lamp')")


def test_it_is_trained_as_queries_are_encoded(db: pgembed.Pgembed, encoders: dict[str, WordEncoder]) -> None:
    encoders["word:small"].roles.clear()
    db.distill_encoder("small")
    assert encoders["word:small"].roles == {"query"}


def test_the_same_seed_gives_the_same_side_and_another_replaces_it(db: pgembed.Pgembed, database: Connection) -> None:
    first = db.distill_encoder("small", seed=1)
    assert db.distill_encoder("small", seed=1).model == first.model
    second = db.distill_encoder("small", seed=2)
    assert second.model != first.model
    assert database.execute("SELECT model FROM pgembed.static_text WHERE model LIKE 'distilled:%'").fetchall() == [
        (second.model,)
    ]
    assert database.execute("SELECT DISTINCT model FROM pgembed.token WHERE model LIKE 'distilled:%'").fetchall() == [
        (second.model,)
    ]


def test_a_session_may_prefer_it(db: pgembed.Pgembed, database: Connection) -> None:
    db.distill_encoder("small")
    database.execute("SET pgembed.prefer = 'Static'")
    own = encoded(database, "red shoe", None)
    assert own == pytest.approx(encoded(database, "red shoe"))
    (two,) = database.execute("SELECT pgembed.encode_text('small', 'red shoe')::text").fetchall()[0]
    assert json.loads(two) == pytest.approx(own.tolist())
    with pytest.raises(psycopg.Error, match="no vector cached"):  # the argument goes before the setting
        encoded(database, "red shoe", "exact")
    found = database.execute(
        "SELECT (h.item).title FROM pgembed.hybrid(NULL::product, words => 'wooden lamp', k => 3) AS h"
    ).fetchall()
    assert "wooden" in found[0][0]
    assert "lamp" in found[0][0]
    database.execute("SET pgembed.prefer = 'quick'")
    with pytest.raises(psycopg.Error, match=r"The setting pgembed\.prefer is 'quick', which is no way"):
        encoded(database, "red shoe", None)
    with pytest.raises(psycopg.Error, match=r"^prefer is 'slow', which is no way"):
        encoded(database, "red shoe", "slow")


def test_python_searches_by_it_without_loading_a_model(
    db: pgembed.Pgembed, database_dsn: str, encoders: dict[str, WordEncoder]
) -> None:
    db.distill_encoder("small")
    encoders.clear()
    query = Text("a wooden lamp")
    with pgembed.connect(database_dsn) as other:
        rows = other.search("product", query, prefer="static", limit=6)
        assert "wooden" in rows[0].title
        assert "lamp" in rows[0].title
        with pytest.raises(KeyError, match="word:small"):
            other.search("product", query, limit=6)
    with pgembed.connect(database_dsn, prefer="static") as other:
        assert [row.id for row in other.search("product", query, limit=6)] == [row.id for row in rows]
        assert [row.id for row in other.query("product").near(query).limit(6)] == [row.id for row in rows]
        mixed = other.search("product", query - 0.8 * Text("black"), limit=2)
        assert not any("black" in row.title for row in mixed)
        with pytest.raises(KeyError, match="word:small"):
            other.search("product", query, prefer="exact", limit=6)
        with pytest.raises(KeyError, match="word:small"):
            other.query("product").near(query).prefer("exact").rows()
    with pgembed.connect(database_dsn) as other:
        stepwise = other.query("product").near(query).prefer("static").limit(6)
        assert [row.id for row in stepwise] == [row.id for row in rows]
        assert [len(parts) for parts in stepwise.near(query).explain().leg_shares] == [2] * 6
        fused = stepwise.hybrid("wooden lamp").rows()
        assert fused == other.hybrid("product", "wooden lamp", query=query, prefer="static", limit=6)
        parts = other.query("product").near(query - Text("black")).prefer("static").explain().parts
        assert [part.term for part in parts[0]] == ["Text('a wooden lamp')", "Text('black')"]
        with pytest.raises(InvalidInput, match="prefer is 'fast', which is no way"):
            other.query("product").prefer("fast")  # pyright: ignore[reportArgumentType]
    with pytest.raises(InvalidInput, match="prefer is 'fast', which is no way"):
        pgembed.connect(database_dsn, prefer="fast")  # pyright: ignore[reportArgumentType]


def test_an_encoder_that_is_static_by_itself_is_exact_and_used_either_way(
    db: pgembed.Pgembed, database: Connection
) -> None:
    db.add_encoder("lite", "builtin:lite")
    assert encoded(database, "a dog", "static", "lite") == pytest.approx(encoded(database, "a dog", "exact", "lite"))
    with pytest.raises(CatalogError, match=r"'lite' .builtin:lite. is static already, and exact"):
        db.distill_encoder("lite")


def test_who_prefers_what_is_not_there_is_told_how_to_make_it(db: pgembed.Pgembed, database: Connection) -> None:
    with pytest.raises(psycopg.Error, match="Encoder 'small' has no static side to prefer") as caught:
        encoded(database, "red shoe")
    assert "pgembed encoder distill small" in str(caught.value.diag.message_hint)
    with pytest.raises(CatalogError, match="no static side to prefer"):
        db.search("product", Text("red shoe"), prefer="static")


def test_a_stale_one_is_refused(db: pgembed.Pgembed, database: Connection) -> None:
    db.distill_encoder("small")
    assert [finding.ok for finding in db.doctor() if finding.subject == "encoder 'small' static side"] == [True]
    database.execute("UPDATE pgembed.encoder SET fingerprint = 'f00 of other weights' WHERE name = 'small'")
    with pytest.raises(
        psycopg.Error, match=r"stale: it was distilled from fingerprint small of six, and .* f00"
    ) as caught:
        encoded(database, "red shoe")
    assert "pgembed encoder distill small" in str(caught.value.diag.message_hint)
    (finding,) = [finding for finding in db.doctor() if finding.subject == "encoder 'small' static side"]
    assert (finding.ok, "pgembed encoder distill small" in (finding.remedy or "")) == (False, True)
    stale = db.encoder("small").distilled
    assert stale is not None
    assert stale["stale"] is True
    with pytest.raises(EncoderMismatch):  # the model that is loaded is not the registered one
        db.distill_encoder("small")
    with pytest.raises(psycopg.Error, match="has fingerprint f00 of other, and the static side was distilled from old"):
        database.execute("SELECT pgembed.set_distilled('small', %s, 'old', 1, '{}')", [stale["model"]])


def test_an_encoder_without_text_has_none(db: pgembed.Pgembed, database: Connection) -> None:
    db.add_encoder("pictures", "word:pictures")
    with pytest.raises(CatalogError, match="Encoder 'pictures' takes no text, and a static side is made of words"):
        db.distill_encoder("pictures")
    with pytest.raises(psycopg.Error, match="Encoder 'pictures' takes no text"):
        encoded(database, "red shoe", "static", "pictures")


def test_only_finished_sides_of_the_right_size_are_taken(db: pgembed.Pgembed, database: Connection) -> None:
    statement = "SELECT pgembed.set_distilled('small', %s, 'small of sixteen dimensions', 10, '{}')"
    with pytest.raises(psycopg.Error, match="There is no static text side 'distilled:x', or it has no tokens"):
        database.execute(statement, ["distilled:x"])
    (shipped,) = database.execute("SELECT static_text FROM pgembed.shipped_encoder").fetchall()[0]
    with pytest.raises(psycopg.Error, match="has 256 dimensions, and encoder 'small' has 16"):
        database.execute(statement, [shipped])
    assert db.encoder("small").distilled is None


def test_instant_mode_refuses_it(db: pgembed.Pgembed, database: Connection) -> None:
    db.distill_encoder("small")
    with pytest.raises(psycopg.Error, match="keeps vectors exact, and the static side of encoder 'small' is distilled"):
        database.execute("SELECT pgembed.attach('product', 'now', 'small', '{\"text\": \"title\"}', mode => 'instant')")


def test_taken_away_and_with_its_encoder(db: pgembed.Pgembed, database: Connection) -> None:
    db.distill_encoder("small")
    db.drop_distilled("small")
    assert db.encoder("small").distilled is None
    with pytest.raises(CatalogError, match="Encoder 'small' has no distilled static side"):
        db.drop_distilled("small")
    db.distill_encoder("small")
    database.execute("UPDATE pgembed.encoder SET name = 'tiny' WHERE name = 'small'")
    assert encoded(database, "red shoe", "static", "tiny").shape == (DIM,)
    db.detach("product")
    db.remove_encoder("tiny")
    left = "SELECT count(*) FROM pgembed.{} WHERE model LIKE 'distilled:%'"
    for table in ("distilled", "static_text", "token"):
        assert database.execute(left.format(table).encode()).fetchone() == (0,)


def test_texts_come_from_where_they_are_named(db: pgembed.Pgembed, database: Connection) -> None:
    database.execute('CREATE TABLE "Odd 100%s" ("b %" text)')
    database.execute("INSERT INTO \"Odd 100%s\" SELECT title FROM product WHERE title ~ 'red' UNION ALL SELECT ' '")
    assert db.distill_encoder("small", texts="product.title").texts > 100
    few = db.distill_encoder("small", texts='"Odd 100%s"."b %"')
    assert 0 < few.texts < 200
    assert db.distill_encoder("small", embedding="product.embedding").texts > 100
    queries = [f"{colour} {thing}" for colour, thing in product((*COLOURS, *STYLES), THINGS)] + ["", "zebra"] * 3
    by_log = db.distill_encoder("small", log=queries)
    assert by_log.texts + by_log.agreement.held_out < 97
    assert db.distill_encoder("small", words=[*COLOURS, *THINGS, *STYLES]).texts > 30
    assert db.distill_encoder("small", limit=100).texts < 100


def test_templates_with_a_percent_sign_are_read(db: pgembed.Pgembed) -> None:
    db.attach("product", "more", encoder="small", text="100% {title}")
    assert db.distill_encoder("small", embedding="product.more").texts > 100


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"log": ["red shoe"]}, "There are 1 texts to distill 'small' from; at least 50 are needed"),
        ({"texts": "product"}, "texts is 'product', which is not TABLE.COLUMN"),
        ({"embedding": "product."}, "embedding is 'product.', which is not TABLE.TARGET"),
        ({"limit": 3}, "limit is 3; at least 50"),
        ({"held_out": 0.9}, "held_out is 0.9, and must be above 0 and at most 0.5"),
    ],
)
def test_bad_input_is_told(db: pgembed.Pgembed, arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InvalidInput, match=sentence):
        db.distill_encoder("small", **arguments)
    assert db.encoder("small").distilled is None


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"texts": "nothing.title"}, 'relation "nothing" does not exist'),
        ({"texts": "product.colour"}, "Table product has no column 'colour'"),
        ({"texts": "product.title; DROP TABLE product"}, "has no column 'title; DROP TABLE product'"),
        ({"embedding": "product.other"}, "other"),
    ],
)
def test_what_is_not_in_the_database_is_told(db: pgembed.Pgembed, arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(PgembedError, match=sentence):
        db.distill_encoder("small", **arguments)


def test_unknown_words_are_told(db: pgembed.Pgembed, database: Connection) -> None:
    db.distill_encoder("small")
    with pytest.raises(psycopg.Error, match="The text '☃' has no word that 'distilled:small@") as caught:
        encoded(database, "☃")
    assert "exact" in str(caught.value.diag.message_hint)
    notices: list[str] = []
    database.add_notice_handler(lambda diagnostic: notices.append(str(diagnostic.message_primary)))
    encoded(database, "a krasnye tufli")
    assert notices == ["The static side of encoder 'small' does not know most words of this query."]


def test_an_encoder_of_another_tokenizer_takes_the_words_of_the_shipped_one(
    db: pgembed.Pgembed, database: Connection, encoders: dict[str, WordEncoder]
) -> None:
    db.add_encoder("free", "word:free")
    found = db.distill_encoder("free", texts="product.title")
    assert (found.tokenizer, found.tokens > 20_000) == ("builtin:lite", True)
    exact = encoders["word:free"].encode_text(["old boat"], role="query")[0]
    assert float(encoded(database, "old boat", "static", "free") @ exact) > 0.8


@pytest.mark.usefixtures("db")
def test_the_asynchronous_client_does_the_same(database_dsn: str) -> None:
    async def distilled() -> list[int]:
        async with pgembed.connect_async(database_dsn, prefer="static") as asynchronous:
            assert (await asynchronous.distill_encoder("small")).agreement.mean_cosine > 0.9
            rows = await asynchronous.search("product", Text("wooden lamp"), limit=3)
            await asynchronous.drop_distilled("small")
            return [row.id for row in rows]

    assert {"wooden", "lamp"} <= set(TITLES[asyncio.run(distilled())[0]].split())


@pytest.mark.usefixtures("db")
def test_the_command_makes_shows_and_drops_it(database_dsn: str, tmp_path: Path) -> None:
    def run(*words: str) -> tuple[int, str]:
        done = CliRunner().invoke(app, ["--dsn", database_dsn, *words])
        return done.exit_code, done.stdout

    code, text = run("encoder", "distill", "small")
    assert (code, "Ask for it: pgembed.encode_text('small', '…', prefer => 'static')" in text) == (0, True)
    log = tmp_path / "log.txt"
    log.write_text("\n".join(TITLES), encoding="utf-8")
    code, text = run("encoder", "distill", "small", "--log", str(log), "--held-out", "0.2", "--json")
    made = json.loads(text)
    assert (code, made["action"], made["agreement"]["held_out"]) == (0, "encoder distill", 58)
    (listed,) = json.loads(run("encoder", "list", "--json")[1])
    assert (listed["distilled"]["model"], listed["distilled"]["stale"]) == (made["model"], False)
    assert listed["distilled"]["agreement"]["mean_cosine"] == pytest.approx(made["agreement"]["mean_cosine"])
    assert made["model"] in run("encoder", "show", "small")[1].replace("\n", "")
    code, text = run("search", "product", "wooden lamp", "--prefer", "static", "--json")
    assert (code, "wooden" in json.loads(text)[0]["title"]) == (0, True)
    assert run("encoder", "distill", "small", "--drop")[0] == 0
    assert json.loads(run("encoder", "list", "--json")[1])[0]["distilled"] is None


def test_the_tokenizer_is_taken_only_where_sql_can_follow_it() -> None:
    own = json.loads(str(WordEncoder().tokenizer_json()))
    found = wordpiece_of(json.dumps(own), "word:small")
    assert found is not None
    assert found.vocabulary == ("[UNK]", *WORDS)
    assert found.settings["strip_accents"] is True
    cased = {**own, "normalizer": {**own["normalizer"], "lowercase": False}}
    kept = wordpiece_of(json.dumps(cased), "word:small")
    assert kept is not None
    assert (kept.settings["lowercase"], kept.settings["strip_accents"]) == (False, False)
    for part, other in (
        ("model", {**own["model"], "type": "BPE"}),
        ("normalizer", {"type": "NFC"}),
        ("normalizer", None),
        ("pre_tokenizer", {"type": "Whitespace"}),
    ):
        assert wordpiece_of(json.dumps({**own, part: other}), "word:small") is None


# On a full server: rights, dumps


@pytest.mark.full_server
def test_readers_ask_by_it_and_change_nothing(
    shop_password: str, full_database_dsn: str, full_database: Connection, encoders: dict[str, WordEncoder]
) -> None:
    assert encoders
    shop = open_shop(full_database, full_database_dsn, shop_password)
    with shop.as_role("owner") as conn:
        db = pgembed.connect(conn)
        db.add_encoder("small", "word:small")
        db.distill_encoder("small", log=TITLES)
    with shop.as_role("reader") as conn:
        assert encoded(conn, "red shoe").shape == (DIM,)
        with pytest.raises(psycopg.Error, match="no vector cached"):
            encoded(conn, "red shoe", "exact")
        for statement in (
            "DELETE FROM pgembed.distilled",
            "UPDATE pgembed.token SET vector = vector",
            "SELECT pgembed.drop_distilled('small')",
            "SELECT pgembed.set_distilled('small', (SELECT model FROM pgembed.distilled),"
            " 'small of sixteen dimensions', 1, '{}')",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                conn.execute(statement.encode())
    for kind in ("writer", "app"):
        with shop.as_role(kind) as conn, pytest.raises(psycopg.errors.InsufficientPrivilege):
            encoded(conn, "red shoe")


@pytest.mark.full_server
def test_it_comes_through_a_dump_and_a_restore(
    full_server: FullServer,
    full_database_dsn: str,
    full_database: Connection,
    full_bare_dsn: str,
    encoders: dict[str, WordEncoder],
) -> None:
    assert encoders
    db = filled(full_database)
    db.distill_encoder("small")
    before = encoded(full_database, "red shoe")
    dump = full_server.run("pg_dump", "-Fc", "-Z1", full_database_dsn).stdout
    full_server.run("pg_restore", "--exit-on-error", "-d", full_bare_dsn, input=dump)
    with psycopg.connect(full_bare_dsn, autocommit=True) as conn:
        assert encoded(conn, "red shoe") == pytest.approx(before)
        restored = pgembed.connect(conn)
        assert restored.encoder("small").distilled == db.encoder("small").distilled
        restored.drop_distilled("small")


def test_views_that_call_encode_text_outlast_an_upgrade(db: pgembed.Pgembed, database: Connection) -> None:
    db.add_encoder("lite", "builtin:lite")
    database.execute("CREATE VIEW dog AS SELECT pgembed.encode_text('lite', 'a dog') AS vector")
    before = database.execute("SELECT vector::text FROM dog").fetchall()
    db.install()
    assert database.execute("SELECT vector::text FROM dog").fetchall() == before


def test_an_upgrade_keeps_it(db: pgembed.Pgembed, database: Connection) -> None:
    made = db.distill_encoder("small").model
    before = encoded(database, "red shoe")
    db.install()
    assert encoded(database, "red shoe") == pytest.approx(before)
    kept = db.encoder("small").distilled
    assert kept is not None
    assert kept["model"] == made
