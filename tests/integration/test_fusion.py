"""Several inputs of a row side by side in one vector: what is stored, what a query becomes, and everything that reads
either."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import psycopg
import pytest
from numpy.typing import NDArray

import pgembed
from pgembed import Image, Row, Text, Vector, changed, reject, slerp
from pgembed.cli.main import main
from pgembed.encoders import load_encoder
from pgembed.encoders.composer import ComposerEncoder
from pgembed.errors import CatalogError, InvalidQuery
from pgembed.fusing import folded, padded
from pgembed.inputs import Expression
from pgembed.regions import blend, cut
from tests.conftest import new_database
from tests.fakes import Connection

PHOTOS = sorted((Path(__file__).parents[1] / "data/photos").glob("*.jpg"))
LITE = load_encoder("builtin:lite")
DIM = LITE.dim
SHARES = (0.4, 0.6)
NO_TEXT, NO_PHOTO = 1, 2
RED, PANDA = Text("red"), Text("a panda")


def text_of(words: str) -> NDArray[np.float32]:
    return LITE.encode_text([words])[0]


def picture_of(path: Path) -> NDArray[np.float32]:
    return LITE.encode_image([PIL.Image.open(path).convert("RGB")])[0]


@dataclass(frozen=True)
class Shop:
    """A table of photographs with their names side by side; row 1 has no name, row 2 no photograph."""

    conn: Connection
    db: pgembed.Pgembed
    texts: NDArray[np.float32]
    photos: NDArray[np.float32]
    storage: str
    dsn: str

    @property
    def stored(self) -> NDArray[np.float64]:
        """What should be stored: ``(n, 2 * dim)``."""
        return np.hstack([np.sqrt(SHARES[0]) * self.texts, np.sqrt(SHARES[1]) * self.photos]).astype(np.float64)

    def vectors(self) -> NDArray[np.float64]:
        """What is stored."""
        source = "product" if self.storage == "column" else "product_embedding"
        name = "embedding" if self.storage == "column" else "vector"
        rows = self.conn.execute(f"SELECT {name}::float4[] FROM {source} ORDER BY id".encode()).fetchall()
        return np.array([row[0] for row in rows])

    def scores(self, query: NDArray[Any]) -> dict[int, float]:
        """The inner product of a wide query and each row."""
        return dict(enumerate(self.stored @ query))

    def search(self, query: Expression, **options: Any) -> dict[int, float]:  # noqa: ANN401
        rows = self.db.search("product", query, limit=len(PHOTOS), exact=True, **options)
        return {row.id: row.score for row in rows}


def wide(query: NDArray[Any], weights: tuple[float, float] = SHARES) -> NDArray[np.float64]:
    """A query in both parts, by weights that sum up to 1."""
    return np.concatenate([w / np.sqrt(share) * query for w, share in zip(weights, SHARES, strict=True)])


def new_shop(database: Connection, storage: str, dsn: str) -> Iterator[Shop]:
    database.execute("CREATE TABLE product (id integer PRIMARY KEY, title text, photo bytea)")
    for number, photo in enumerate(PHOTOS):
        title = None if number == NO_TEXT else photo.stem.replace("-", " ")
        content = None if number == NO_PHOTO else photo.read_bytes()
        database.execute("INSERT INTO product VALUES (%s, %s, %s)", [number, title, content])
    with pgembed.connect(database) as db:
        db.add_encoder("shop", "builtin:lite")
        db.attach(
            "product", "embedding", encoder="shop", fusion="concat", storage=storage,
            text={"template": "{title}", "weight": 2}, image={"column": "photo", "weight": 3},
        )  # fmt: skip
        db.work(until_idle=True)
        texts, photos = vectors_apart()
        yield Shop(database, db, texts, photos, storage, dsn)


@cache
def vectors_apart() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    none = np.zeros(DIM, np.float32)
    texts = [none if n == NO_TEXT else text_of(photo.stem.replace("-", " ")) for n, photo in enumerate(PHOTOS)]
    photos = [none if n == NO_PHOTO else picture_of(photo) for n, photo in enumerate(PHOTOS)]
    return np.array(texts), np.array(photos)


@pytest.fixture(scope="module", params=["column", "side"])
def storage(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def shop(storage: str, server_dsn: str, template: str) -> Iterator[Shop]:
    """For tests that change nothing."""
    with contextmanager(new_database)(server_dsn, template) as dsn, psycopg.connect(dsn, autocommit=True) as conn:
        yield from new_shop(conn, storage, dsn)


@pytest.fixture
def own_shop(storage: str, database: Connection, database_dsn: str) -> Iterator[Shop]:
    yield from new_shop(database, storage, database_dsn)


def same(found: dict[int, float], expected: dict[int, float]) -> bool:
    return found.keys() == expected.keys() and all(abs(found[key] - expected[key]) < 2e-6 for key in expected)


# What is stored


def test_inputs_stand_side_by_side_by_the_root_of_their_shares(shop: Shop) -> None:
    assert np.allclose(shop.vectors(), shop.stored, atol=1e-6)
    lengths = np.linalg.norm(shop.vectors(), axis=1)
    missing = {NO_TEXT: SHARES[1] ** 0.5, NO_PHOTO: SHARES[0] ** 0.5}
    assert np.allclose(lengths, [missing.get(number, 1) for number in range(len(PHOTOS))], atol=1e-6)
    assert not shop.vectors()[NO_TEXT, :DIM].any()
    assert not shop.vectors()[NO_PHOTO, DIM:].any()


def test_the_catalog_tells_the_order_of_the_parts(shop: Shop) -> None:
    row = shop.conn.execute("SELECT fusion FROM pgembed.embedding").fetchone()
    assert row == ({"method": "concat", "parts": ["text", "image"]},)


def test_a_changed_row_is_encoded_again_and_verified(own_shop: Shop) -> None:
    assert own_shop.db.verify("product", sample=None).ok
    own_shop.conn.execute("UPDATE product SET title = NULL, photo = NULL WHERE id = 3")
    own_shop.conn.execute("UPDATE product SET title = 'a red boat' WHERE id = 4")
    own_shop.db.work(until_idle=True)
    assert 3 not in own_shop.search(RED)
    assert own_shop.db.query("product").near(Text("a red boat")).weighing(text=1).first()["id"] == 4  # pyright: ignore[reportOptionalSubscript]
    assert own_shop.db.verify("product", sample=None).ok


def test_verify_finds_parts_in_the_wrong_order(own_shop: Shop) -> None:
    source, name = ("product", "embedding") if own_shop.storage == "column" else ("product_embedding", "vector")
    turned = f"subvector({name}, {DIM + 1}, {DIM}) || subvector({name}, 1, {DIM})"
    own_shop.conn.execute(f"UPDATE {source} SET {name} = {turned} WHERE id = 5".encode())
    found = own_shop.db.verify("product", sample=None)
    assert found.differing.count == 1


def test_status_and_doctor_find_nothing_wrong(shop: Shop) -> None:
    (status,) = shop.db.status("product")
    assert (status.ready, status.failed) == (len(PHOTOS), 0)
    assert all(one.ok or "no worker" in one.finding for one in shop.db.doctor())


def test_a_lost_place_comes_back_as_wide(own_shop: Shop) -> None:
    own_shop.conn.execute(
        b"ALTER TABLE product DROP COLUMN embedding"
        if own_shop.storage == "column"
        else b"DROP TABLE product_embedding"
    )
    own_shop.conn.execute("SELECT pgembed.sync('product')")
    own_shop.db.work(until_idle=True)
    assert np.allclose(own_shop.vectors(), own_shop.stored, atol=1e-6)


# What a query becomes


def test_a_score_is_the_mean_of_the_cosines_by_the_shares(shop: Shop) -> None:
    query = text_of("red")
    found = shop.search(RED)
    assert same(found, shop.scores(wide(query)))
    means = SHARES[0] * shop.texts @ query + SHARES[1] * shop.photos @ query
    assert same(found, dict(enumerate(map(float, means))))


@pytest.mark.parametrize("weights", [(0.3, 0.7), (1.0, 0.0), (0.0, 1.0)])
def test_a_query_says_how_much_each_input_counts(shop: Shop, weights: tuple[float, float]) -> None:
    given = {"text": 10 * weights[0], "image": 10 * weights[1]}
    expected = shop.scores(wide(text_of("red"), weights))
    assert same(shop.search(RED, weights=given), expected)
    statement = (
        "SELECT (item).id, score FROM pgembed.search(NULL::product, (SELECT pgembed.padded('product',"
        " pgembed.encode_text('shop', 'red'), %s)), k => 100)"
    )
    assert same(dict(shop.conn.execute(statement, [psycopg.types.json.Jsonb(given)]).fetchall()), expected)


def test_an_input_that_does_not_count_changes_no_score(shop: Shop) -> None:
    photo = Image(PHOTOS[7])
    found = shop.search(photo, weights={"image": 1})
    assert same(found, dict(enumerate(map(float, shop.photos @ picture_of(PHOTOS[7])))))
    assert next(iter(found)) == 7


def test_sql_searches_with_a_vector_of_either_width(shop: Shop) -> None:
    expected = shop.scores(wide(text_of("red")))
    narrow = "(SELECT pgembed.encode_text('shop', 'red'))"
    broad = f"(SELECT pgembed.padded('product', {narrow}))"
    for query in (narrow, broad):
        for options in ("k => 100", "k => 100, exact => true", "k => 100, filter => 'true'"):
            found = shop.conn.execute(
                f"SELECT (item).id, score FROM pgembed.search(NULL::product, {query}, {options})".encode()
            ).fetchall()
            assert same(dict(found), expected)
        quick = shop.conn.execute(f"SELECT (item).id FROM pgembed.search(NULL::product, {query}, k => 3)".encode())
        assert [row[0] for row in quick.fetchall()] == sorted(expected, key=lambda n: -expected[n])[:3]


Made = Callable[[Any, Any, Any], Expression]
BOAT = text_of("a boat")
EXPRESSIONS: dict[str, Made] = {
    "sum": lambda row, text, vector: text("red") + text("a panda"),
    "row": lambda row, text, vector: row(5),
    "row and words": lambda row, text, vector: row(5) + 0.5 * text("red"),
    "row without a text": lambda row, text, vector: row(NO_TEXT) - 0.3 * text("a panda"),
    "slerp": lambda row, text, vector: slerp(row(4), text("a panda"), 0.4),
    "reject": lambda row, text, vector: reject(text("a panda"), text("red"), row(3)),
    "vector": lambda row, text, vector: vector(BOAT) + text("red"),
    "vectors": lambda row, text, vector: reject(vector(BOAT), vector(text_of("red"))),
    "wide vector": lambda row, text, vector: vector(padded(BOAT, SHARES)),
}


@pytest.mark.parametrize("made", EXPRESSIONS.values(), ids=EXPRESSIONS.keys())
def test_every_expression_finds_what_numpy_finds(shop: Shop, made: Made) -> None:
    query = made(Row, Text, Vector)
    same_query = made(
        lambda number: Vector(shop.stored[number]),
        lambda words: Vector(wide(text_of(words))),
        lambda values: Vector(values if values.size == 2 * DIM else wide(values)),
    )
    whole = same_query.direction(lambda item: np.empty(0))
    assert same(shop.search(query), shop.scores(whole))
    by_picture = np.concatenate([0 * whole[:DIM], whole[DIM:] / SHARES[1]])
    assert same(shop.search(query, weights={"image": 1}), shop.scores(by_picture))


def test_a_part_of_a_picture_is_searched(shop: Shop) -> None:
    picture = PIL.Image.open(PHOTOS[3]).convert("RGB")
    whole, part = picture_of(PHOTOS[3]), cut(picture, (0.2, 0.2, 0.5, 0.5), None)
    query = Image(PHOTOS[3], box=(0.2, 0.2, 0.5, 0.5))
    assert same(shop.search(query), shop.scores(wide(blend(LITE.encode_image([part])[0], whole))))


def test_a_row_is_nearest_to_itself(shop: Shop) -> None:
    assert next(iter(shop.search(Row(5)).items())) == (5, pytest.approx(1, abs=1e-6))


def test_a_composer_changes_the_sum_of_a_rows_inputs(shop: Shop) -> None:
    model = load_encoder("composer:lite")
    assert isinstance(model, ComposerEncoder)
    reference = folded(shop.stored[5].astype(np.float32), SHARES)
    made = model.compose(reference[None], text_of("red")[None], None)[0]
    assert same(shop.search(changed(Row(5), to=RED)), shop.scores(wide(made)))


def test_hybrid_takes_vectors_of_either_width(shop: Shop) -> None:
    for method in ("rank", "score"):
        statement = (
            "SELECT (item).id, score FROM pgembed.hybrid(NULL::product, 'panda', k => 5, queries =>"
            " ARRAY[(SELECT pgembed.padded('product', pgembed.encode_text('shop', 'panda')))], method => %s)"
        )
        by_hand = shop.conn.execute(statement, [method]).fetchall()
        by_words = shop.conn.execute(
            "SELECT (item).id, score FROM pgembed.hybrid(NULL::product, 'panda', k => 5, method => %s)", [method]
        ).fetchall()
        found = shop.db.hybrid("product", "panda", limit=5, method=method)  # pyright: ignore[reportArgumentType]
        assert by_hand == by_words
        assert [(row.id, pytest.approx(row.score)) for row in found] == by_hand


def test_explanations_tell_what_each_input_gave(shop: Shop) -> None:
    plain = shop.db.query("product").near(PANDA).limit(len(PHOTOS))
    query = text_of("a panda").astype(float)
    cosines = {"text": shop.texts @ query, "image": shop.photos @ query}
    weighed = dict(zip(cosines, (0.25, 0.75), strict=True))
    for asked, weights in (
        (plain, dict(zip(cosines, SHARES, strict=True))),
        (plain.weighing(text=1, image=3), weighed),
    ):
        how = asked.explain(inputs=True)
        assert len(how.rows) == len(PHOTOS)
        for row, inputs in zip(how.rows, how.inputs, strict=True):
            lacks = {NO_TEXT: "text", NO_PHOTO: "image"}.get(row.id)
            assert [one.input for one in inputs] == [name for name in cosines if name != lacks]
            assert sum(one.share or 0 for one in inputs) == pytest.approx(row.score, abs=1e-5)
            for one in inputs:
                similar = cosines[one.input][row.id]
                assert (one.weight, one.similarity) == pytest.approx((weights[one.input], similar), abs=1e-5)
                assert one.share == pytest.approx(weights[one.input] * similar, abs=1e-5)
    statement = "SELECT pgembed.explain_search(NULL::product, (SELECT pgembed.encode_text('shop', 'a panda')), k => 5)"
    ((told,),) = shop.conn.execute(statement).fetchall()
    with shop.conn.transaction(force_rollback=True):  # as it is after a restore
        shop.conn.execute("UPDATE pgembed.embedding SET relation = NULL")
        assert shop.conn.execute(statement).fetchall()[0][0]["rows"] == told["rows"]
    in_python = plain.limit(5).explain(inputs=True).facts()["inputs"]
    assert [row["inputs"] for row in told["rows"]] == [
        [
            {**one, **{name: pytest.approx(one[name], abs=1e-6) for name in ("weight", "similarity", "share")}}
            for one in row
        ]
        for row in in_python
    ]
    assert "its image" in plain.explain(inputs=True).cells()


def test_an_index_serves_it(own_shop: Shop) -> None:
    own_shop.db.build_index("product")
    own_shop.conn.execute("SET enable_seqscan = off")
    how = own_shop.db.query("product").near(RED + PANDA).weighing(image=1).limit(3).explain()
    assert how.plan == "index"
    assert [sum(part.share or 0 for part in parts) for parts in how.parts] == [
        pytest.approx(row.score, abs=1e-5) for row in how.rows
    ]


def test_pages_and_calibration_know_the_weights(shop: Shop) -> None:
    asked = shop.db.query("product").near(RED).exact().limit(4)
    first = asked.weighing(image=1).page()
    with pytest.raises(InvalidQuery, match="belongs to another query"):
        asked.after(first.next).page()
    second = asked.weighing(image=1).after(first.next).page()
    expected = [*shop.search(RED, weights={"image": 1})]
    assert [row.id for row in (*first, *second)] == expected[:8]
    absent = [Text(f"word {number} train") for number in range(9)]
    calibration = shop.db.calibrate("product", absent, weights={"text": 1})
    best = sorted(max(shop.search(query, weights={"text": 1}).values()) for query in absent)
    assert calibration.absent == pytest.approx(best, abs=1e-6)


def test_the_statement_is_for_any_connection(shop: Shop) -> None:
    statement = shop.db.query("product").near(RED + Row(4)).weighing(text=1, image=3).limit(5).compile()
    rows = shop.conn.execute(statement.text, statement.params).fetchall()
    assert [row[0] for row in rows] == list(shop.search(RED + Row(4), weights={"text": 1, "image": 3}))[:5]
    assert shop.conn.execute(statement.as_string().encode()).fetchall() == rows


def test_asyncio_does_the_same(shop: Shop) -> None:
    async def ask() -> dict[int, float]:
        async with pgembed.connect_async(shop.dsn) as db:
            assert np.allclose((await db.encode("shop", [RED]))[RED], text_of("red"), atol=1e-6)
            rows = await db.search("product", RED, limit=100, exact=True, weights={"image": 1})
            return {row.id: row.score for row in rows}

    assert same(asyncio.run(ask()), shop.search(RED, weights={"image": 1}))


def test_a_reader_may_search_and_weigh(shop: Shop) -> None:
    reader = f"fusion_reader_{os.getpid()}"
    shop.conn.execute(f"CREATE ROLE {reader}".encode())
    try:
        shop.conn.execute(f"GRANT SELECT ON product TO {reader}".encode())
        shop.db.grant("reader", reader)
        expected = shop.search(RED, weights={"image": 1})
        shop.conn.execute(f"SET ROLE {reader}".encode())
        assert same(shop.search(RED, weights={"image": 1}), expected)
        found = shop.conn.execute(
            "SELECT (item).id, score FROM pgembed.search(NULL::product, (SELECT pgembed.padded('product',"
            " pgembed.encode_text('shop', 'red'), '{\"image\": 1}')), k => 100)"
        ).fetchall()
        assert same(dict(found), expected)
    finally:
        shop.conn.execute("RESET ROLE")
        shop.db.revoke("reader", reader)
        shop.conn.execute(f"DROP OWNED BY {reader}; DROP ROLE {reader}".encode())


# What is refused


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"title": 1}, "product.embedding has no input title."),
        ({"text": -1}, "The weight of an input is a number from 0 to 1e30, not -1."),
        ({"text": 0}, "No input of product.embedding counts by the weights"),
        ({}, "No input of product.embedding counts by the weights"),
        ({"text": "much"}, "The weight of an input is a number from 0 to 1e30, not"),
        ({"text": True}, "The weight of an input is a number from 0 to 1e30, not"),
        ({"text": 1e31}, "The weight of an input is a number from 0 to 1e30, not"),
    ],
)
def test_weights_that_are_none_are_refused_in_one_sentence(shop: Shop, weights: Any, message: str) -> None:  # noqa: ANN401
    with pytest.raises(InvalidQuery) as python:
        shop.search(RED, weights=weights)
    with pytest.raises(psycopg.errors.InvalidParameterValue) as sql:
        shop.conn.execute(
            "SELECT pgembed.padded('product', pgembed.encode_text('shop', 'red'), %s)",
            [psycopg.types.json.Jsonb(weights)],
        )
    assert python.value.message.replace("1e+30", "1e30").startswith(message)
    assert str(sql.value.diag.message_primary).startswith(message)
    assert python.value.hint
    assert sql.value.diag.message_hint


def test_vectors_of_other_widths_are_refused(shop: Shop) -> None:
    with pytest.raises(InvalidQuery, match=f"with {DIM * 2} dimensions"):
        shop.search(Vector([1.0, 2.0]))
    for statement in ("pgembed.padded('product', '[1,2]')", "pgembed.search(NULL::product, '[1,2]')"):
        with pytest.raises(psycopg.errors.InvalidParameterValue, match=str(DIM * 2)):
            shop.conn.execute(f"SELECT {statement}".encode())


@pytest.fixture
def table(database: Connection) -> Connection:
    database.execute("CREATE TABLE product (id integer PRIMARY KEY, title text, photo bytea, page bytea)")
    database.execute("SELECT pgembed.add_encoder('lite', 'builtin:lite')")
    return database


@pytest.mark.parametrize(
    ("fusion", "inputs", "message"),
    [
        ("mean", '{"text": "title", "image": "photo"}', "fusion is 'sum' or 'concat', not 'mean'."),
        ("concat", '{"text": "title"}', "puts inputs side by side, and there is only text."),
        ("concat", '{"text": "title", "image": {"column": "photo", "weight": 1e-7}}', "less than a millionth of all."),
    ],
)
def test_attach_refuses_what_cannot_be_fused(table: Connection, fusion: str, inputs: str, message: str) -> None:
    for function in ("attach", "estimate"):
        with pytest.raises(psycopg.errors.InvalidParameterValue) as raised:
            table.execute(
                f"SELECT pgembed.{function}('product', 'e', 'lite', %s, fusion => %s)".encode(), [inputs, fusion]
            )
        assert message in str(raised.value.diag.message_primary)
        assert raised.value.diag.message_hint


def test_attach_refuses_more_than_an_index_can_hold(table: Connection) -> None:
    table.execute(
        "SELECT pgembed.add_encoder('broad', 'fake:broad', dim => 1024, modalities => '{text,image}',"
        " fingerprint => 'x')"
    )
    with pytest.raises(psycopg.errors.FeatureNotSupported) as raised:
        table.execute(
            "SELECT pgembed.attach('product', 'e', 'broad', '{\"text\": \"title\", \"image\": \"photo\"}',"
            " fusion => 'concat')"
        )
    assert "side by side have 2048 dimensions" in str(raised.value.diag.message_primary)


def test_instant_mode_has_one_input_and_nothing_to_put_beside_it(table: Connection) -> None:
    with pytest.raises(psycopg.errors.InvalidParameterValue, match="there is only text"):
        table.execute(
            "SELECT pgembed.attach('product', 'e', 'lite', '{\"text\": \"title\"}', mode => 'instant',"
            " fusion => 'concat')"
        )


def test_three_inputs_stand_in_their_order_however_they_were_written(table: Connection) -> None:
    with pgembed.connect(table) as db:
        db.attach(
            "product", "e", encoder="lite", fusion="concat", screenshot="page", text="title", image="photo"
        )  # fmt: skip
        table.execute("INSERT INTO product VALUES (1, 'a boat', %s, NULL)", [PHOTOS[0].read_bytes()])
        db.work(until_idle=True)
        ((vector,),) = table.execute("SELECT e::float4[] FROM product").fetchall()
    expected = np.concatenate([text_of("a boat"), picture_of(PHOTOS[0]), np.zeros(DIM)]) / np.sqrt(3)
    assert np.allclose(vector, expected, atol=1e-6)


def test_a_sum_takes_no_weights_and_is_not_padded(table: Connection) -> None:
    with pgembed.connect(table) as db:
        db.attach("product", "e", encoder="lite", text="title", image="photo")
        with pytest.raises(InvalidQuery, match="their vectors are summed"):
            db.search("product", RED, weights={"text": 1})
    row = table.execute(
        "SELECT pgembed.padded('product', v) = v FROM (SELECT pgembed.encode_text('lite', 'red') AS v) AS q"
    ).fetchone()
    assert row == (True,)
    with pytest.raises(psycopg.errors.FeatureNotSupported, match="their vectors are summed"):
        table.execute("SELECT pgembed.padded('product', pgembed.encode_text('lite', 'red'), '{\"text\": 1}')")


def test_a_catalog_whose_parts_are_not_the_inputs_is_refused_and_stops_no_other(table: Connection) -> None:
    with pgembed.connect(table) as db:
        db.attach("product", "e", encoder="lite", fusion="concat", text="title", image="photo")
        db.attach("product", "other", encoder="lite", text="title")
        table.execute("INSERT INTO product (id, title) VALUES (1, 'a boat')")
        for wrong in ('{"method": "concat", "parts": ["text"]}', '{"method": "concat"}', "[]", '"concat"'):
            table.execute("UPDATE pgembed.embedding SET fusion = %s WHERE target = 'e'", [wrong])
            table.execute("UPDATE product SET title = title || '!'")
            with pytest.raises(CatalogError, match="whose parts are not its inputs"):
                db.work(until_idle=True)
            assert db.search("product", Text("a boat"), embedding="other")[0].id == 1


def test_the_command_line_attaches_and_weighs(
    table: Connection, database_dsn: str, capfd: pytest.CaptureFixture[str]
) -> None:
    def run(*words: str, fails: int = 0) -> str:
        capfd.readouterr()
        with pytest.raises(SystemExit) as done:
            main(["--dsn", database_dsn, *words])
        out, told = capfd.readouterr()
        assert (done.value.code or 0) == fails, told
        return told if fails else out

    attach = ("attach", "product", "e", "--encoder", "lite", "--text", "title", "--fusion", "concat")
    assert "there is only text" in run(*attach, fails=1)
    assert "there is only text" in run(*attach, "--dry-run", fails=1)
    run(*attach, "--image", "photo")
    table.execute("INSERT INTO product (id, title) VALUES (1, 'a red boat'), (2, 'a dog')")
    table.execute("INSERT INTO product (id, photo) VALUES (3, %s)", [PHOTOS[0].read_bytes()])
    run("worker", "--until-idle")
    found = json.loads(run("search", "product", "a dog", "--input-weight", "text=1", "--json"))
    assert [row["id"] for row in found][:2] == [2, 1]
    assert "is not NAME=NUMBER" in run("search", "product", "a dog", "--input-weight", "text", fails=2)
    assert "has no input title" in run("search", "product", "a dog", "--input-weight", "title=1", fails=1)
