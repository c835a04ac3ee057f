"""Queries built step by step: what each step does, pages, joins, explanations, and the same from both clients."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import psycopg
import pytest

import pgembed
from pgembed import Pgembed, Text, Vector, slerp
from pgembed.building import Query
from pgembed.errors import InvalidInput, InvalidQuery
from pgembed.query import SearchRow
from tests.conftest import connection_to, new_database

DIM, ROWS = 8, 400
QUERY = Vector([1.0] + [0.0] * (DIM - 1))


@pytest.fixture(scope="module")
def dsn(server_dsn: str, template: str) -> Iterator[str]:
    """A shop with brands: two equal vectors in a row throughout, so that keys break ties."""
    for dsn in new_database(server_dsn, template):
        for conn in connection_to(dsn):
            fill(conn)
        yield dsn


def fill(conn: psycopg.Connection[Any]) -> None:
    conn.execute(
        "SELECT pgembed.add_encoder('test', 'test:none', space => 'test', dim => %s, modalities => '{text}',"
        " fingerprint => 'none')",
        [DIM],
    )
    conn.execute(
        "CREATE TABLE brand (id integer PRIMARY KEY, name text, price integer);"
        "INSERT INTO brand SELECT n, 'brand ' || n, n FROM generate_series(0, 4) AS n;"
        "CREATE TABLE product (id integer, part text, title text, price integer, brand_id integer REFERENCES brand,"
        " PRIMARY KEY (part, id))"
    )
    conn.execute("""SELECT pgembed.attach('product', 'embedding', 'test', '{"text": "{title}"}')""")
    random = np.random.default_rng(3)
    with conn.cursor().copy("COPY product (id, part, title, price, brand_id, embedding) FROM STDIN") as copy:
        for n in range(ROWS):
            if n % 2 == 0:
                vector = random.normal(size=DIM)
            copy.write_row((n, "ab"[n % 2], f"product {n}", n % 100, n % 5, str([float(x) for x in vector])))
    conn.execute("CREATE INDEX product_index ON product USING hnsw (embedding vector_cosine_ops); ANALYZE product")


@pytest.fixture
def db(dsn: str) -> Iterator[Pgembed]:
    with pgembed.connect(dsn) as db:
        yield db


@pytest.fixture
def own_db(server_dsn: str, template: str) -> Iterator[Pgembed]:
    """A shop that a test may change; ``dsn`` is its database."""
    for dsn in new_database(server_dsn, template):
        for conn in connection_to(dsn):
            fill(conn)
        with pgembed.connect(dsn) as db:
            db.dsn = dsn  # type: ignore[attr-defined]
            yield db


def keys(rows: Sequence[SearchRow] | Query) -> list[tuple[str, int]]:
    return [(row.part, row.id) for row in rows]


def test_steps_say_what_search_takes(db: Pgembed) -> None:
    start = db.query("product").near(QUERY)
    cheap = start.where("price < %s", 50).where("title LIKE 'product %'").limit(7)
    expected = db.search("product", QUERY, where="price < 50", limit=7)
    assert cheap.rows() == expected == list(cheap)
    assert cheap.first() == expected[0]
    assert cheap.select("id").exact().columns == ("id",)
    assert [dict(row) for row in cheap.select("id")] == [{"id": row.id, "score": row.score} for row in expected]
    assert start.where("price < %(top)s", top=50).where("price >= %(low)s", low=0).limit(7).rows() == expected
    assert len(start.rows()) == 10, "what was built from a query leaves it as it is"
    assert (
        repr(cheap)
        == f"query('product').near({QUERY!r}).where('price < %s').where(\"title LIKE 'product %%'\").limit(7)"
    )


def test_a_compiled_query_gives_the_same_rows(db: Pgembed, dsn: str) -> None:
    asked = (
        db.query("product").near(QUERY).join("JOIN brand ON brand.id = product.brand_id AND brand.price > %s", 1)
        .where("product.price < %s", 50).select("part", "id", "brand.name AS brand").limit(5)
    )  # fmt: skip
    statement = asked.compile()
    with psycopg.connect(dsn) as conn:
        found = conn.execute(statement.text, statement.params).fetchall()
    assert found == [tuple(row.values()) for row in asked]


@pytest.mark.parametrize("rows", [ROWS, 1_000_000])
@pytest.mark.parametrize("exact", [False, True])
def test_joins_give_conditions_and_columns(db: Pgembed, dsn: str, rows: int, exact: bool) -> None:
    """Also where the index is read in rounds, which a table that is thought to be large makes worth it."""
    with psycopg.connect(dsn) as conn:
        conn.execute("UPDATE pg_class SET reltuples = %s WHERE oid = 'product'::regclass", [rows])
        conn.commit()
        asked = (
            db.query("product").near(QUERY).join("JOIN brand ON brand.id = product.brand_id")
            .where("brand.name = ANY (%s)", ["brand 1", "brand 2"]).where("product.price < %s", 80)
            .select("id", "part", "product.price", "brand.name AS brand", 'product.price * 2 AS "the double"')
        )  # fmt: skip
        with pytest.raises(InvalidQuery, match=r"no column 'product\.price'"):
            asked.rows()
        asked = asked.select("id", "part", "price", "brand.name AS brand", 'product.price * 2 AS "the double"')
        found = (asked.exact() if exact else asked).rows()
        expected = conn.execute(
            "SELECT p.id, p.part, p.price, b.name, p.price * 2 FROM product p JOIN brand b ON b.id = p.brand_id"
            " WHERE b.id IN (1, 2) AND p.price < 80 ORDER BY p.embedding <=> %s::vector, p.part, p.id LIMIT 10",
            [str([float(x) for x in QUERY.values])],
        ).fetchall()
        assert [tuple(row.values())[:-1] for row in found][:9] == expected[:9], "the tenth is as near as the eleventh"
        how = asked.explain()
        assert how.plan == ("exact" if rows == ROWS else "index")
        conn.execute("UPDATE pg_class SET reltuples = %s WHERE oid = 'product'::regclass", [ROWS])


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("where", [None, "price < 50"])
@pytest.mark.parametrize("size", [1, 7, 30])
def test_pages_neither_repeat_nor_skip(db: Pgembed, exact: bool, where: str | None, size: int) -> None:
    asked = db.query("product").near(QUERY).select("id", "part").limit(size)
    asked = asked.exact() if exact else asked
    asked = asked.where(where) if where else asked
    wanted = keys(asked.limit(60))  # equal rows come in twos
    found: list[tuple[str, int]] = []
    page = asked.page()
    while page.next and len(found) + len(page) < 60:
        found += keys(page.rows)
        page = asked.after(page.next).page()
        assert all(set(row) == {"id", "part", "score"} for row in page)
    found += keys(page.rows)
    assert found[:60] == wanted


def test_the_last_page_has_no_next(db: Pgembed) -> None:
    asked = db.query("product").near(QUERY).where("price < 3").select("id", "part").limit(8)
    first = asked.page()
    second = asked.after(first.next).page()
    assert (len(first), len(second), second.next) == (8, 4, None)
    assert asked.after(None).page() == first
    assert keys(asked.after(first.next)) == keys(second.rows), "rows() goes on after a page too"
    assert asked.after(first.next).where("price < %s", 2).limit(3).near(QUERY) is not None


@pytest.mark.parametrize(
    ("token", "message"),
    [
        ("nonsense", "'nonsense' is no page"),
        ("WyJhYiIsMSwyLDNd", "belongs to another query of product"),
        ("", "'' is no page"),
        (5, "5 is no page"),
        ("WyJhYiIsMSwxZTk5OSwzXQ==", "is no page"),
        ("W1tbW1tb" * 10_000, "is no page"),
        ("WyJhYiIsMSwtMiwzXQ==", "is no page"),
    ],
)
def test_a_page_of_something_else_is_refused(db: Pgembed, token: str, message: str) -> None:
    with pytest.raises(InvalidQuery, match=message):
        db.query("product").near(QUERY).after(token).page()


def test_a_page_of_the_same_table_with_another_filter_is_refused(db: Pgembed) -> None:
    page = db.query("product").near(QUERY).where("price < 50").page()
    with pytest.raises(InvalidQuery, match="belongs to another query"):
        db.query("product").near(QUERY).where("price < 60").after(page.next).page()


@pytest.mark.parametrize("exact", [False, True])
def test_rows_that_are_written_meanwhile_shift_no_page(own_db: Pgembed, exact: bool) -> None:
    asked = own_db.query("product").near(QUERY).select("id", "part").limit(30)
    asked = asked.exact() if exact else asked
    with psycopg.connect(own_db.dsn, autocommit=True) as conn:  # type: ignore[attr-defined]
        found: list[tuple[str, int]] = []
        page = asked.page()
        for number in range(100):
            found += keys(page.rows)
            if page.next is None:
                break
            if number < 3:
                conn.execute(
                    "INSERT INTO product SELECT 10000 * %s + n, 'a', 'new', 1, 1, %s FROM generate_series(1, 50) AS n",
                    [number + 1, str([1.0, 0.001] + [0.0] * (DIM - 2))],
                )
            page = asked.after(page.next).page()
    old = [key for key in found if key[1] < ROWS]
    assert len(found) == len(set(found))
    assert len(set(old)) == ROWS if exact else len(set(old)) > 0.95 * ROWS


def test_pages_of_a_join_that_gives_rows_several_times(db: Pgembed) -> None:
    asked = (
        db.query("product").near(QUERY).join("JOIN brand ON brand.id < 3").where("product.price < 20")
        .select("id", "part", "brand.id AS b").limit(7)
    )  # fmt: skip
    found: list[tuple[Any, ...]] = []
    page = asked.page()
    while True:
        found += [(row.part, row.id, row.b) for row in page]
        if page.next is None:
            break
        page = asked.after(page.next).page()
    assert len(found) == len(set(found)) == 3 * ROWS // 5


@pytest.mark.parametrize(
    "value", ["decode(lpad(to_hex(n), 4, '0'), 'hex')", "ARRAY[n, 1]", "n::real / 7", "n::numeric"]
)
def test_pages_and_explanations_whatever_the_key_is(own_db: Pgembed, value: str) -> None:
    with psycopg.connect(own_db.dsn, autocommit=True) as conn:  # type: ignore[attr-defined]
        kind = conn.execute(f"SELECT pg_typeof({value}) FROM generate_series(1, 1) AS n".encode()).fetchone()
        assert kind is not None
        conn.execute(
            f'CREATE TABLE odd ("score" {kind[0]}, "a%b" integer, title text, PRIMARY KEY ("score", "a%b"))'.encode()
        )
        conn.execute("""SELECT pgembed.attach('odd', 'embedding', 'test', '{"text": "{title}"}')""")
        conn.execute(
            f"INSERT INTO odd SELECT {value}, n, 't', (SELECT embedding FROM product WHERE id = n LIMIT 1)"
            " FROM generate_series(1, 50) AS n".encode()
        )
    asked = own_db.query("odd").near(QUERY - 0.3 * Vector([0.0, 1.0] + [0.0] * (DIM - 2))).select("a%b").limit(8)
    found: list[int] = []
    page = asked.page()
    while page.next:
        found += [row["a%b"] for row in page]
        page = asked.after(page.next).page()
    found += [row["a%b"] for row in page]
    assert sorted(found) == list(range(1, 51))
    for row, parts in zip(asked.explain().rows, asked.explain().parts, strict=True):
        assert sum(part.share or 0 for part in parts) == pytest.approx(row.score, abs=1e-6)


def test_a_compiled_query_finds_rows_where_deleted_ones_fill_the_index(own_db: Pgembed) -> None:
    with psycopg.connect(own_db.dsn, autocommit=True) as conn:  # type: ignore[attr-defined]
        nearest = [row.id for row in own_db.query("product").near(QUERY).select("id").limit(200)]
        conn.execute("DELETE FROM product WHERE id = ANY (%s)", [nearest])
        conn.execute("SET enable_seqscan = off")
        statement = own_db.query("product").near(QUERY).limit(5).compile()
        assert len(conn.execute(statement.text, statement.params).fetchall()) == 5


def test_rerank_orders_the_first_rows_anew(db: Pgembed) -> None:
    asked = db.query("product").near(QUERY).rerank(lambda rows: [-row.id for row in rows], depth=30).limit(5)
    pool = db.search("product", QUERY, limit=30)
    assert [row.id for row in asked] == sorted(row.id for row in pool)[:5]
    assert [row.score for row in asked] == sorted((-row.id for row in pool), reverse=True)[:5]
    with pytest.raises(InvalidQuery, match="gave 1 scores for 50 rows, of which 1 are finite"):
        db.query("product").near(QUERY).rerank(lambda _: [1.0]).rows()
    with pytest.raises(InvalidQuery, match="of which 0 are finite"):
        db.query("product").near(QUERY).rerank(lambda rows: [float("nan")] * len(rows)).rows()
    for run, message in ((asked.page, "has no pages"), (asked.compile, "compiled"), (asked.explain, "explained")):
        with pytest.raises(InvalidQuery, match=message):
            run()


@pytest.mark.parametrize(
    ("built", "message"),
    [
        (lambda asked: asked, r"near to nothing yet.*near\(Text"),
        (lambda asked: asked.near("a red shoe"), "not 'a red shoe'"),
        (lambda asked: asked.near(QUERY).where("price < 1; DROP TABLE product"), "holds a semicolon"),
        (lambda asked: asked.near(QUERY).where("price < 1) OR (true"), "does not close its parentheses"),
        (
            lambda asked: asked.near(QUERY).where("price < 5) OR (true").where("id = -1"),
            "does not close its parentheses",
        ),
        (lambda asked: asked.near(QUERY).where("price < %s"), "has placeholders, but there are no params"),
        (lambda asked: asked.near(QUERY).where("(SELECT false AS a€$$)) OR true --$$)"), "filter .* holds a comment"),
        (lambda asked: asked.near(QUERY).where("title = E'a'\n'\\'') OR true -- '"), "filter .* holds a comment"),
        (
            lambda asked: asked.near(QUERY).where("prise < %s", 3),
            "The filter 'prise < 3' is not one condition on product",
        ),
        (lambda asked: asked.near(QUERY).join("JOIN brand ON true --"), "The join .* holds a comment.*JOIN brand ON"),
        (lambda asked: asked.near(QUERY).select("1; x AS y"), "The expression '1; x' holds a semicolon"),
        (lambda asked: asked.near(QUERY).select("price * 2"), "no column 'price . 2'.*AS double"),
        (lambda asked: asked.near(QUERY).select("title AS id"), "key column 'id'"),
        (lambda asked: asked.near(QUERY).limit(0), "at least 1, not 0"),
        (lambda asked: asked.near(QUERY).where("price < %s", 1).where("id < %(n)s", n=2), "Some parameters have names"),
        (lambda asked: asked.near(QUERY).where("price < %(n)s", n=1).where("id < %(n)s", n=2), "'n' was given before"),
        (lambda asked: asked.near(QUERY).join("JOIN brand ON brand.id = %s", 1).where("price < %(n)s", n=2), "Some"),
        (
            lambda asked: asked.near(QUERY).where("price < %(pgembed_candidates)s", pgembed_candidates=1),
            "named pgembed_",
        ),
    ],
)
def test_what_cannot_be_asked_is_told(db: Pgembed, built: Any, message: str) -> None:  # noqa: ANN401
    with pytest.raises(InvalidQuery, match=message):
        built(db.query("product")).rows()


def test_explain_tells_how(db: Pgembed, dsn: str) -> None:
    how = db.query("product").near(QUERY).explain()
    assert (how.plan, how.matching, how.total) == ("exact", None, ROWS), "Postgres itself compares so few rows"
    assert len(how.rows) == 10
    with psycopg.connect(dsn, autocommit=True) as conn, pgembed.connect(conn) as other:
        conn.execute("SET enable_seqscan = off")
        how = other.query("product").near(QUERY).explain()
        assert (how.plan, how.index) == ("index", "product_index")
        assert "by the vector index product_index." in str(how)
        assert "product_index" in how.postgres
        assert "The index was read until enough were found: 10 matching rows." in str(how)
    filtered = db.query("product").near(QUERY).where("price < %s", 2).explain()
    assert (filtered.plan, filtered.looks) == ("exact", ())
    assert filtered.matching == pytest.approx(8, abs=4)
    assert "comparing all matching rows" in str(filtered)
    assert json.loads(json.dumps(filtered.facts()))["plan"] == "exact"


def test_explain_tells_what_each_term_gave(db: Pgembed) -> None:
    other = Vector([0.0, 1.0] + [0.0] * (DIM - 2))
    how = db.query("product").near(QUERY - 0.5 * other).where("price < 50").select("id").explain()
    assert [len(parts) for parts in how.parts] == [2] * 10
    for row, parts in zip(how.rows, how.parts, strict=True):
        assert set(row) == {"id", "score"}
        assert [part.weight for part in parts] == [1.0, -0.5]
        assert sum(part.share or 0 for part in parts) == pytest.approx(row.score, abs=1e-6)
        length = 1.25**0.5
        assert [part.share for part in parts] == pytest.approx(
            [part.weight * part.similarity / length for part in parts], abs=1e-6
        )
    assert f"{how.rows[0].score:.3f} = Vector(" in str(how)
    apart = db.query("product").near(slerp(QUERY, other, 0.5)).explain()
    assert {part.share for parts in apart.parts for part in parts} == {None}
    assert apart.parts[0][0].similarity > 0.3
    assert db.query("product").near(QUERY).explain().parts == []


def test_rows_below_a_score_are_no_answer(db: Pgembed, dsn: str) -> None:
    asked = db.query("product").near(QUERY).select("id", "part").limit(20)
    scores = [row.score for row in asked]
    good = asked.at_least(scores[7])
    assert keys(good) == keys([row for row in asked if row.score >= scores[7]])
    assert len(good.page()) == len(good.rows()) < 20
    assert good.page().next is None
    assert good.at_least(1.1).rows() == []
    statement = good.compile()
    with psycopg.connect(dsn) as conn:
        assert len(conn.execute(statement.text, statement.params).fetchall()) == len(good.rows())
    with pytest.raises(InvalidQuery, match="finite score, not nan"):
        asked.at_least(float("nan"))


def test_a_score_is_calibrated_by_queries_without_an_answer(db: Pgembed) -> None:
    random = np.random.default_rng(1)
    absent = [Vector(random.normal(size=DIM)) for _ in range(39)]
    found = db.calibrate("product", absent, present=[QUERY, absent[0]], alpha=0.1)
    best = sorted(db.search("product", one, limit=1)[0].score for one in absent)
    assert found.absent == pytest.approx(best)
    assert best[35] < found.score <= best[36], "the 36th of 39: at most a tenth of new ones, of 40, lie above"
    assert found.answered in {0.0, 0.5, 1.0}
    assert found.present == pytest.approx(sorted(db.search("product", q, limit=1)[0].score for q in (QUERY, absent[0])))
    assert db.calibrate("product", absent[:9], alpha=0.1).answered is None
    with pytest.raises(InvalidInput, match=r"8 queries without an answer are too few for an alpha of 0\.1.*Give 9"):
        db.calibrate("product", absent[:8], alpha=0.1)
    with pytest.raises(InvalidInput, match="probability above 0 and below 1, not 1"):
        db.calibrate("product", absent, alpha=1)


def test_async_queries_give_the_same(db: Pgembed, dsn: str) -> None:
    async def ask() -> None:
        async with pgembed.connect_async(dsn) as other:
            asked = other.query("product").near(QUERY).where("price < %s", 50).limit(4)
            same = db.query("product").near(QUERY).where("price < %s", 50).limit(4)
            with pytest.raises(InvalidQuery, match=r"The filter '.*price <\)' is not one condition on product: syntax"):
                await asked.where("price <").rows()
            assert await asked.rows() == same.rows() == [row async for row in asked]
            assert await asked.first() == same.first()
            page = await asked.page()
            assert page == same.page()
            assert (await asked.after(page.next).page()).rows == same.after(page.next).page().rows
            assert (await asked.compile()).params == same.compile().params
            assert (await asked.explain()).plan == same.explain().plan
            assert await other.calibrate("product", [QUERY] * 9) == db.calibrate("product", [QUERY] * 9)

    asyncio.run(ask())


def test_words_need_the_encoder_only_when_it_runs(db: Pgembed) -> None:
    asked = db.query("product").near(Text("a red shoe"))
    assert "red shoe" in repr(asked)
    with pytest.raises(pgembed.PgembedError):
        asked.rows()
