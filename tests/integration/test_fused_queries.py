"""Queries with several legs, built step by step: by hand, joins and expressions, explanations, both clients."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest

import pgembed
from pgembed import Image, Pgembed, Row, Text, Vector
from pgembed.building import Query
from pgembed.errors import InvalidQuery, PgembedError
from tests.conftest import connection_to, new_database
from tests.fakes import Connection

ROWS, DIMS = 200, {"title": 6, "photo": 4}
TITLE, PHOTO = Vector([1.0, 0, 0, 0, 0, 0]), Vector([0, 1.0, 0, 0])
WORDS = ("red", "blue", "shoe", "boat", "dog")
PHOTOS = sorted((Path(__file__).parents[1] / "data/photos").glob("*.jpg"))


@pytest.fixture(scope="module")
def dsn(server_dsn: str, template: str) -> Iterator[str]:
    """A shop with brands; title vectors are a column with an index, photo vectors stand in a side table."""
    for dsn in new_database(server_dsn, template):
        for conn in connection_to(dsn):
            fill(conn)
        yield dsn


def fill(conn: Connection) -> None:
    conn.execute(
        "CREATE TABLE brand (id int PRIMARY KEY, name text, price int);"
        "INSERT INTO brand SELECT n, 'brand ' || n || ' 100%', n FROM generate_series(0, 4) AS n;"
        "CREATE TABLE product (id int PRIMARY KEY, item text, price int, brand_id int, image bytea)"
    )
    for name, dim in DIMS.items():
        conn.execute(
            "SELECT pgembed.add_encoder(%s, 'test:none', space => %s, dim => %s, modalities => '{text}',"
            " fingerprint => 'none')",
            [name, name, dim],
        )
        conn.execute(
            "SELECT pgembed.attach('product', %s, %s, '{\"text\": \"item\"}', storage => %s)",
            [name, name, "side" if name == "photo" else "column"],
        )
    random = np.random.default_rng(5)
    for n in range(ROWS):
        words = " ".join(random.choice(WORDS, size=1 + n % 3))
        conn.execute(
            "INSERT INTO product VALUES (%s, %s, %s, %s, %s, %s)",
            [n, words, n % 50, n % 5, b"x" * n, str(random.normal(size=DIMS["title"]).tolist())],
        )
        if n % 10:  # every tenth has no photo vector yet
            conn.execute("INSERT INTO product_photo VALUES (%s, %s)", [n, str(random.normal(size=4).tolist())])
    conn.execute('CREATE INDEX ON product USING hnsw ("title" vector_cosine_ops); ANALYZE')


@pytest.fixture
def db(dsn: str) -> Iterator[Pgembed]:
    with pgembed.connect(dsn) as db:
        yield db


def both(db: Pgembed) -> Query:
    start = db.query("product").near(TITLE, embedding="title", weight=0.3).near(PHOTO, embedding="photo", weight=0.7)
    return start.fuse("score").select("id", "item")


def fetched(dsn: str, asked: Query) -> list[tuple[Any, ...]]:
    """The rows of the compiled statement on a connection that knows nothing of pgembed."""
    statement = asked.compile()
    with psycopg.connect(dsn) as conn:
        found = conn.execute(statement.text, statement.params).fetchall()
        assert conn.execute(statement.as_string().encode()).fetchall() == found, "as it is shown"
        return found


def test_a_leg_may_have_a_filter_of_its_own_on_joined_tables(db: Pgembed, dsn: str) -> None:
    start = db.query("product").join("JOIN brand ON brand.id = product.brand_id").select("id").limit(ROWS)
    start = start.near(TITLE, embedding="title", where="brand.price < %s", params=[2]).fuse("score", depth=ROWS)
    asked = start.near(PHOTO, embedding="photo").hybrid("red", columns=["item"], where="brand.price = 4")
    with psycopg.connect(dsn) as conn:
        by_hand = conn.execute(
            "SELECT * FROM (SELECT p.id, CASE WHEN p.brand_id < 2 THEN 1 - (p.title <=> %s) END AS title,"
            " 1 - (s.vector <=> %s) AS photo, p.brand_id = 4 AND item LIKE '%%red%%' AS has_word"
            " FROM product p LEFT JOIN product_photo s ON s.id = p.id) AS f"
            " WHERE title IS NOT NULL OR photo IS NOT NULL OR has_word",
            ["[1,0,0,0,0,0]", "[0,1,0,0]"],
        ).fetchall()
    rows = asked.rows()
    assert {row.id for row in rows} == {id for id, *_ in by_hand}
    of_vectors = {id: (title or 0) + (photo or 0) for id, title, photo, has_word in by_hand if not has_word}
    assert {row.id: row.score for row in rows if row.id in of_vectors} == pytest.approx(of_vectors, abs=1e-6)
    assert [(row.id, row.score) for row in rows] == fetched(dsn, asked)


@pytest.mark.parametrize("exact", [False, True])
def test_scores_are_those_by_hand_and_rows_without_a_vector_are_found(db: Pgembed, dsn: str, exact: bool) -> None:
    with psycopg.connect(dsn) as conn:
        by_hand = conn.execute(
            "SELECT p.id, 0.3 * (1 - (p.title <=> %s)) + 0.7 * coalesce(1 - (s.vector <=> %s), 0) AS score"
            " FROM product p LEFT JOIN product_photo s ON s.id = p.id ORDER BY score DESC, p.id",
            ["[1,0,0,0,0,0]", "[0,1,0,0]"],
        ).fetchall()
    asked = both(db).fuse("score", depth=ROWS).limit(ROWS)
    asked = asked.exact() if exact else asked
    rows = asked.rows()
    assert [(row.id, pytest.approx(row.score, abs=1e-6)) for row in rows] == by_hand
    assert set(rows[0]) == {"id", "item", "score"}
    assert {row.id for row in rows if row.id % 10 == 0}, "found by their titles"
    assert [(row.id, row.item, row.score) for row in rows] == fetched(dsn, asked)


def test_ranks_are_the_default_and_a_leg_of_weight_0_decides_nothing(db: Pgembed) -> None:
    asked = db.query("product").near(TITLE, embedding="title").near(PHOTO, embedding="photo", weight=0).limit(5)
    alone = db.search("product", TITLE, embedding="title", limit=5)
    assert [row.id for row in asked] == [row.id for row in alone]
    assert [row.score for row in asked] == pytest.approx([1 / (60 + n) for n in range(1, 6)])
    same = db.hybrid("product", None, queries=[TITLE, PHOTO], embeddings=["title", "photo"], weights=[1, 0], limit=5)
    assert [dict(row) for row in asked] == [dict(row) for row in same]


def test_words_are_a_leg_too(db: Pgembed, dsn: str) -> None:
    asked = both(db).hybrid("red shoe", weight=0.5, columns=["item"], config="simple").where("price < %s", 10)
    same = db.hybrid(
        "product",
        "red shoe",
        queries=[TITLE, PHOTO],
        embeddings=["title", "photo"],
        weights=[0.3, 0.7, 0.5],
        method="score",
        words_columns=["item"],
        config="simple",
        where="price < 10",
        columns=["id", "item"],
    )
    assert [dict(row) for row in asked] == [dict(row) for row in same]
    assert [(row.id, row.item, row.score) for row in asked] == fetched(dsn, asked)
    assert all(row.id % 50 < 10 for row in asked)
    assert "hybrid('red shoe')" in repr(asked)
    assert asked.first() == asked.rows()[0]
    assert asked.columns == ("id", "item")


def test_joins_and_expressions_give_conditions_and_columns(db: Pgembed, dsn: str) -> None:
    start = both(db).limit(7)
    asked = (
        start.join("JOIN brand ON brand.id = product.brand_id AND brand.name LIKE %s", "%0%")
        .where("brand.name <> %s AND brand.name LIKE '%% 100%%'", "brand 3 100%")
        .where("product.price < 5")
        .select("id", "product.price * 2 AS double", "brand.name AS brand", "item", "octet_length(image) AS bytes")
    )
    rows = asked.rows()
    plain = start.where("price < 5 AND brand_id <> 3").rows()
    assert [row.id for row in rows] == [row.id for row in plain], "seven rows, since seven match"
    assert len(rows) == 7
    for row in rows:
        assert row.double == 2 * (row.id % 50)
        assert (row.brand, row.bytes) == (f"brand {row.id % 5} 100%", row.id)
    assert [tuple(row.values()) for row in rows] == fetched(dsn, asked)
    named = start.join("JOIN brand b ON b.id = product.brand_id").where("b.id = %(brand)s", brand=2).rows()
    assert len(named) == 7
    assert {row.id % 5 for row in named} == {2}
    twice = start.join("JOIN generate_series(1, 2) AS copy ON true").select("id", "copy AS copy").limit(4).rows()
    assert [row.id for row in twice] == [row.id for row in start.limit(2) for _ in (1, 2)]
    assert start.select("id").wide().first() is not None
    assert both(db).select("image", "id").limit(1).rows()[0].image == b"x" * start.rows()[0].id


def test_a_score_at_least_and_a_function_of_ones_own_choose(db: Pgembed, dsn: str) -> None:
    asked = both(db).limit(20)
    scores = [row.score for row in asked]
    good = asked.at_least(scores[4])
    assert [row.score for row in good] == scores[:5]
    assert len(fetched(dsn, good)) == 5
    assert [row.id for row in good.explain().rows] == [row.id for row in good]
    assert len(good.explain().leg_shares) == 5
    again = asked.rerank(lambda rows: [-row.id for row in rows], depth=20).limit(3)
    assert [row.id for row in again] == sorted(row.id for row in asked)[:3]


@pytest.mark.parametrize(
    ("built", "message"),
    [
        (lambda asked: asked.at_least(0.5).fuse("rank"), "fused by rank a score only tells the place"),
        (lambda asked: asked.after("abc"), "A query with several legs has no pages"),
        (lambda asked: asked.hybrid(" "), "hybrid takes words to look for, not ' '"),
        (lambda asked: asked.hybrid("x", columns="item"), "columns is a list of names"),
        (lambda asked: asked.hybrid("x", columns=["nope"]), "no column 'nope'"),
        (lambda asked: asked.hybrid("x", weight=float("nan")), "The weight nan is not a finite number"),
        (lambda asked: asked.near(TITLE, embedding="title", weight="much"), "The weight 'much' is not a finite number"),
        (lambda asked: asked.fuse("sum"), "by rank or by score, not 'sum'"),
        (lambda asked: asked.fuse("rank", depth=0), "depth is a number of rows, at least 1, not 0"),
        (lambda asked: asked.near(TITLE, embedding="nope"), "no embedding named 'nope'"),
        (lambda asked: asked.near(TITLE), "has several embeddings: title, photo"),
        (lambda asked: asked.near(PHOTO, embedding="title"), "with 6 dimensions"),
        (lambda asked: asked.select("price * 2"), "no column 'price . 2'.*AS double"),
        (lambda asked: asked.where("price < 1) OR (true"), "does not close its parentheses"),
        (lambda asked: asked.join("JOIN brand ON true; SELECT 1"), "holds a semicolon"),
        (lambda asked: asked.where("price < %s", 1).join("JOIN brand b ON b.id = %(n)s", n=2), "Some parameters have"),
        (lambda asked: asked.limit(0), "at least 1, not 0"),
        (lambda asked: asked.limit(2**31), "limit is 2147483648, which is no number of rows"),
        (lambda asked: asked.fuse("rank", depth=2**40), "depth is 1099511627776, which is no number of rows"),
        (lambda asked: asked.rerank(lambda _: [1.0]), "gave 1 scores for 50 rows"),
    ],
)
def test_what_cannot_be_asked_is_told(db: Pgembed, built: Any, message: str) -> None:  # noqa: ANN401
    with pytest.raises(PgembedError, match=message):
        built(both(db)).rows()


def test_pages_and_inputs_of_several_legs_are_refused(db: Pgembed) -> None:
    with pytest.raises(InvalidQuery, match="several legs has no pages"):
        both(db).page()
    with pytest.raises(InvalidQuery, match=r"inputs=True\) is for a query with one leg"):
        both(db).explain(inputs=True)
    with pytest.raises(InvalidQuery, match="rerank cannot be explained"):
        both(db).rerank(len).explain()  # type: ignore[arg-type]


@pytest.mark.parametrize("method", ["rank", "score"])
def test_explain_tells_ranks_and_scores_in_each_leg_and_words_in_common(db: Pgembed, method: Any) -> None:  # noqa: ANN401
    asked = both(db).hybrid("red shoe -dog", weight=0.5, columns=["item"], config="simple").fuse(method, depth=20)
    how = asked.join("JOIN brand ON brand.id = product.brand_id").where("brand.id < 4").explain(recall=True)
    assert [(leg.name, leg.weight) for leg in how.legs] == [("title", 0.3), ("photo", 0.7), ("words", 0.5)]
    assert (how.plan, how.method, how.recall, how.total) == ("fused", method, 1.0, ROWS)
    assert all(leg.candidates == 20 for leg in how.legs[:2])
    assert [leg.plan for leg in how.legs] == ["exact", "exact", None]
    assert len(how.rows) == len(how.leg_shares) == len(how.words) == 10
    for row, shares, words in zip(how.rows, how.leg_shares, how.words, strict=True):
        assert sum(share.share or 0 for share in shares) == pytest.approx(row.score)
        found = {"red", "shoe"} & set(row.item.split()) if "dog" not in row.item else set()
        assert set(words) == found or "dog" in row.item
        assert (3 in [share.leg for share in shares]) == bool(found)
        assert (2 in [share.leg for share in shares]) == bool(row.id % 10)
    facts = json.loads(json.dumps(how.facts()))
    assert facts["leg_shares"][0][0]["rank"] == how.leg_shares[0][0].rank
    cells = how.cells()
    assert list(cells) == ["title", "photo", "words", "in common"]
    assert cells["title"][0].startswith(f"{how.leg_shares[0][0].rank}. (")
    said = str(how)
    assert f"3 legs fused by {method}." in said
    assert "Leg photo, weight 0.7: 20 candidates" in said
    assert "Recall: 100%" in said


def test_explain_tells_the_recall_of_an_index_that_misses(dsn: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as conn, pgembed.connect(conn) as db:
        conn.execute("SET enable_seqscan = off; SET hnsw.ef_search = 1")
        conn.execute("CREATE TABLE many (id int PRIMARY KEY, item text)")
        conn.execute("SELECT pgembed.attach('many', 'title', 'title', '{\"text\": \"item\"}')")
        random = np.random.default_rng(1)
        with conn.cursor().copy("COPY many FROM STDIN") as copy:
            for n in range(3000):
                copy.write_row((n, "x", str(random.normal(size=6).tolist())))
        conn.execute('CREATE INDEX ON many USING hnsw ("title" vector_cosine_ops) WITH (m = 2, ef_construction = 4)')
        conn.execute("ANALYZE many")
        query = Vector(random.normal(size=6))
        asked = db.query("many").near(query).limit(1)
        found = [db.query("many").near(Vector(random.normal(size=6))).limit(1) for _ in range(20)]
        recalls = [one.explain(recall=True) for one in found]
        assert {how.plan for how in recalls} == {"index"}
        missed = [how.rows != one.exact().explain().rows for how, one in zip(recalls, found, strict=True)]
        assert any(missed), "an index this poor misses some"
        assert [how.recall for how in recalls] == [0.0 if miss else 1.0 for miss in missed]
        assert asked.exact().explain(recall=True).recall == 1
        assert asked.at_least(2).explain(recall=True).recall is None
        assert asked.explain().recall is None


def test_explain_honours_the_least_score(db: Pgembed) -> None:
    asked = db.query("product").near(TITLE - 0.5 * Row(3), embedding="title").limit(10)
    scores = [row.score for row in asked]
    how = asked.at_least(scores[3]).explain(recall=True)
    assert [row.score for row in how.rows] == scores[:4]
    assert (len(how.parts), how.recall) == (4, 1.0)


def test_async_queries_give_the_same(db: Pgembed, dsn: str) -> None:
    async def ask() -> None:
        async with pgembed.connect_async(dsn) as other:
            asked = other.query("product").near(TITLE, embedding="title", weight=0.3)
            asked = asked.near(PHOTO, embedding="photo", weight=0.7).fuse("score").select("id", "item")
            assert await asked.rows() == both(db).rows()
            assert (await asked.compile()).params == both(db).compile().params
            assert (await asked.explain(recall=True)).leg_shares == both(db).explain(recall=True).leg_shares

    asyncio.run(ask())


# What each input of a row gave


@pytest.fixture(params=["column", "side"])
def joint(database: Connection, database_dsn: str, request: pytest.FixtureRequest) -> Iterator[Pgembed]:
    """Photographs with titles; the text weighs 2, one row has no photograph and one no title."""
    database.execute("CREATE TABLE product (id int PRIMARY KEY, title text, photo bytea)")
    for n, photo in enumerate(PHOTOS[:6]):
        values = [n, None if n == 4 else photo.stem, None if n == 5 else photo.read_bytes()]
        database.execute("INSERT INTO product VALUES (%s, %s, %s)", values)
    with pgembed.connect(database_dsn) as db:
        db.add_encoder("lite", "builtin:lite")
        inputs = '{"text": {"template": "{title}", "weight": 2}, "image": {"column": "photo", "weight": 1}}'
        database.execute(
            "SELECT pgembed.attach('product', 'joint', 'lite', %s::jsonb, storage => %s)", [inputs, request.param]
        )
        database.execute("SELECT pgembed.attach('product', 'alone', 'lite', '{\"image\": \"photo\"}')")
        db.work(until_idle=True)
        yield db


def test_explain_tells_what_each_input_of_a_row_gave(joint: Pgembed) -> None:
    query = Text("a panda") - 0.3 * Image(PHOTOS[0])
    how = joint.query("product").near(query, embedding="joint").explain(inputs=True)
    assert len(how.rows) == 6
    for row, shares in zip(how.rows, how.inputs, strict=True):
        present = [*(["image"] if row.id != 5 else []), *(["text"] if row.id != 4 else [])]
        assert [(share.input, share.weight) for share in shares] == [(m, 2 if m == "text" else 1) for m in present]
        assert sum(share.share or 0 for share in shares) == pytest.approx(row.score, abs=1e-5)
    of_pictures = {row.id: row.score for row in joint.search("product", query, embedding="alone")}
    for row, shares in zip(how.rows, how.inputs, strict=True):
        if shares[0].input == "image":
            assert shares[0].similarity == pytest.approx(of_pictures[row.id], abs=1e-5)
    assert f"{how.rows[0].score:.3f} = " in str(how)
    assert "its text" in how.cells()
    alone = joint.query("product").near(query, embedding="alone").explain(inputs=True)
    assert alone.inputs == [[]] * 5
    assert joint.query("product").near(query, embedding="joint").explain().inputs == []


def test_who_may_only_read_is_told_too(joint: Pgembed, database: Connection, database_dsn: str) -> None:
    database.execute("CREATE ROLE input_reader; GRANT SELECT ON ALL TABLES IN SCHEMA public TO input_reader")
    try:
        database.execute("SELECT pgembed.grant_role('reader', 'input_reader')")
        with psycopg.connect(database_dsn, autocommit=True) as conn, pgembed.connect(conn) as reader:
            conn.execute("SET ROLE input_reader")
            asked = reader.query("product").near(Text("a panda"), embedding="joint")
            assert asked.explain(inputs=True).inputs == (
                joint.query("product").near(Text("a panda"), embedding="joint").explain(inputs=True).inputs
            )
    finally:
        database.execute("SELECT pgembed.revoke_role('reader', 'input_reader')")
        database.execute("DROP OWNED BY input_reader; DROP ROLE input_reader")
