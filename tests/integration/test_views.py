"""Views of a space: learnt from rows and captions, used in queries, taken out of rows, probed; and what is refused."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import psycopg
import pytest
from numpy.typing import NDArray

import pgembed
from pgembed import Row, Text, View, equalize, reject, slerp, unit
from pgembed.encoders import load_encoder
from pgembed.errors import CatalogError, InvalidInput, InvalidQuery, PgembedError
from pgembed.inputs import Expression, Vector

LITE = load_encoder("builtin:lite")
COLOURS = ("red", "blue")
THINGS = (
    "shoe", "car", "house", "dress", "apple", "boat", "bird", "flower", "hat", "chair", "door", "book", "bag", "bottle",
    "cup", "lamp", "pen", "phone", "clock", "train", "bicycle", "guitar", "ball", "table",
)  # fmt: skip
RED, BLUE = "colour = 'red'", "colour = 'blue'"


@pytest.fixture(params=["column", "side"])
def db(request: pytest.FixtureRequest, database: psycopg.Connection, database_dsn: str) -> Iterator[pgembed.Pgembed]:
    """Things in two colours and some in none, encoded by their words, and one row that has no vector."""
    database.execute("CREATE TABLE product (id int PRIMARY KEY, title text, colour text, thing text)")
    rows = [(f"a {colour} {thing}", colour, thing) for thing in THINGS for colour in COLOURS]
    rows += [(f"a {thing}", None, thing) for thing in THINGS]
    for number, row in enumerate(rows):
        database.execute("INSERT INTO product VALUES (%s, %s, %s, %s)", [number, *row])
    with pgembed.connect(database_dsn) as made:
        made.add_encoder("lite", "builtin:lite")
        made.attach("product", "embedding", encoder="lite", text="{title}", storage=request.param)
        made.work(until_idle=True)
        database.execute("INSERT INTO product VALUES (1000, NULL, 'red', 'shoe')")
        yield made


@pytest.fixture
def column_db(database: psycopg.Connection, database_dsn: str) -> Iterator[pgembed.Pgembed]:
    """A few things, with vectors in their rows."""
    database.execute("CREATE TABLE product (id int PRIMARY KEY, title text, colour text, thing text)")
    for number, (thing, colour) in enumerate((thing, colour) for thing in THINGS[:6] for colour in COLOURS):
        database.execute("INSERT INTO product VALUES (%s, %s, %s, %s)", [number, f"a {colour} {thing}", colour, thing])
    with pgembed.connect(database_dsn) as made:
        made.add_encoder("lite", "builtin:lite")
        made.attach("product", "embedding", encoder="lite", text="{title}")
        made.work(until_idle=True)
        yield made


def encoded(*titles: str) -> NDArray[np.float64]:
    vectors = LITE.encode_text(list(titles)).astype(np.float64)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def of_colour(colour: str) -> NDArray[np.float64]:
    return encoded(*(f"a {colour} {thing}" for thing in THINGS))


def directions(database: psycopg.Connection, name: str) -> NDArray[np.float64]:
    (found,) = database.execute("SELECT vectors::text[] FROM pgembed.direction WHERE name = %s", [name]).fetchall()
    return np.array([json.loads(vector) for vector in found[0]])


def along(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


# Learning


def test_a_view_of_rows_is_the_difference_of_their_centroids(db: pgembed.Pgembed, database: psycopg.Connection) -> None:
    row = db.learn_view("colour", table="product", these=RED, those=BLUE)
    (axis,) = directions(database, "colour")
    expected = of_colour("red").mean(axis=0) - of_colour("blue").mean(axis=0)
    assert np.linalg.norm(axis) == pytest.approx(1, abs=1e-6)
    assert along(axis, expected) == pytest.approx(1, abs=1e-5)
    assert (row.encoder, row.method, row.directions) == ("lite", "centroids", 1)
    assert row.learnt_from == {
        "table": "product", "embedding": "embedding", "these": RED, "those": BLUE, "rows": [len(THINGS), len(THINGS)]
    }  # fmt: skip
    assert db.views() == [row] == [db.view("colour")]


def test_a_view_of_pairs_is_the_first_components_of_their_differences(
    db: pgembed.Pgembed, database: psycopg.Connection
) -> None:
    row = db.learn_view(
        "colour", table="product", these="colour = $1", those="colour = $2", params=["red", "blue"], pair="thing",
        components=3,
    )  # fmt: skip
    found = directions(database, "colour")
    _, sizes, axes = np.linalg.svd(of_colour("red") - of_colour("blue"), full_matrices=False)
    np.testing.assert_allclose(found @ found.T, np.eye(3), atol=1e-5)
    for number in (0, 1, 2):
        assert abs(along(found[number], axes[number])) > 0.999
    assert found[0] @ (of_colour("red") - of_colour("blue")).mean(axis=0) > 0
    shares = sizes**2 / (sizes**2).sum()
    assert row.learnt_from["shares"] == pytest.approx(shares[:3], abs=1e-3)
    assert (row.method, row.learnt_from["pairs"], row.learnt_from["params"]) == ("pairs", len(THINGS), ["red", "blue"])


def test_a_view_of_captions_is_that_of_their_vectors(column_db: pgembed.Pgembed, database: psycopg.Connection) -> None:
    these, those = [Text("red"), Text("crimson")], [Text("blue"), Text("azure")]
    column_db.learn_view("means", encoder="lite", these=these, those=those)
    expected = encoded("red", "crimson").mean(axis=0) - encoded("blue", "azure").mean(axis=0)
    assert along(directions(database, "means")[0], expected) == pytest.approx(1, abs=1e-5)
    row = column_db.learn_view("pairs", encoder="lite", these=these, those=those, pair=True, components=2)
    found = directions(database, "pairs")
    differences = encoded("red", "crimson") - encoded("blue", "azure")
    np.testing.assert_allclose(found.T @ found @ differences.T, differences.T, atol=1e-5)  # all of both
    assert row.learnt_from["these"] == ["Text('red')", "Text('crimson')"]


def test_a_view_by_inlp_holds_so_many_directions(db: pgembed.Pgembed, database: psycopg.Connection) -> None:
    row = db.learn_view("colour", table="product", these=RED, those=BLUE, method="inlp", components=5)
    found = directions(database, "colour")
    assert (row.directions, row.method) == (5, "inlp")
    np.testing.assert_allclose(found @ found.T, np.eye(5), atol=1e-5)
    assert (of_colour("red") @ found[0]).min() > (of_colour("blue") @ found[0]).max()


def test_sql_learns_and_uses_views_without_python(column_db: pgembed.Pgembed, database: psycopg.Connection) -> None:
    database.execute(
        "SELECT pgembed.learn_view('colour', 'product', $$colour = 'red'$$, $$colour = 'blue'$$);"
        "SELECT pgembed.learn_view_from('same', 'lite', ARRAY[pgembed.encode_text('lite', 'red')],"
        " ARRAY[pgembed.encode_text('lite', 'blue')])"
    )
    (axis,) = directions(database, "colour")
    one = database.execute("SELECT pgembed.view('colour')::text, pgembed.view_directions('colour')::text").fetchone()
    assert one is not None
    np.testing.assert_allclose(json.loads(one[0]), axis)
    assert one[1].count("[") == 1
    rest = database.execute(
        "SELECT pgembed.without(pgembed.encode_text('lite', 'a red shoe'), 'colour')::text,"
        " pgembed.without(NULL, 'colour')::text"
    ).fetchone()
    assert rest is not None
    assert json.loads(rest[0]) @ axis == pytest.approx(0, abs=1e-6)
    assert rest[1] is None
    assert [row.name for row in column_db.views()] == ["colour", "same"]
    column_db.drop_view("same")
    assert [row.name for row in column_db.views()] == ["colour"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda db: db.learn_view("v", table="product", these="false", those=BLUE), "No row of product .* 'false'"),
        (lambda db: db.learn_view("v", table="product", these=RED, those="id = 1000"), "No row .* 'id = 1000'"),
        (lambda db: db.learn_view("v", table="product", these=RED, those=RED), "Both sets have the same centroid"),
        (
            lambda db: db.learn_view("v", table="product", these=RED, those=RED, pair="thing"),
            "Both members of every pair have the same vector",
        ),
        (lambda db: db.learn_view("v", table="product", these=RED, those=BLUE, pair="title"), "No value of 'title'"),
        (
            lambda db: db.learn_view("v", table="product", these=RED, those=BLUE, pair="thing", components=7),
            "The pairs differ in 6 directions only, and 7 were wanted",
        ),
        (
            lambda db: db.learn_view("v", table="product", these=RED, those=BLUE, components=2),
            "is one direction, not 2",
        ),
        (lambda db: db.learn_view("v", table="product", these=RED, those=BLUE, components=0), "at least 1, not 0"),
        (lambda db: db.learn_view(" ", table="product", these=RED, those=BLUE), "A view needs a name"),
        (lambda db: db.learn_view("taken", table="product", these=RED, those=BLUE), "a view named 'taken' already"),
        (lambda db: db.learn_view("v", table="product", these="colour = ", those=BLUE), "is not one condition"),
        (lambda db: db.learn_view("v", table="product", these=RED, those="true; DELETE FROM product"), "a semicolon"),
        (lambda db: db.learn_view("v", table="product", these="true) OR (true", those=BLUE), "is not one condition"),
        (lambda db: db.learn_view("v", table="product", these=RED, those=BLUE, pair="thing -- x"), "holds a comment"),
        (lambda db: db.learn_view("v", table="product", these=RED, those=BLUE, pair="a) || (b"), "not one expression"),
        (lambda db: db.learn_view("v", table="product", these=RED, those=BLUE, pair="nothing"), '"nothing" does not'),
        (lambda db: db.learn_view("v", table="product", these=RED, those="colour = $1"), r"names \$1"),
        (lambda db: db.learn_view("v", table="product", these=[Text("a")], those=BLUE), "learnt from filters"),
        (lambda db: db.learn_view("v", encoder="lite", these="a", those="b"), "from rows, table= .* or from captions"),
        (lambda db: db.learn_view("v", encoder="lite", these=[], those=[Text("a")]), "captions is empty"),
        (
            lambda db: db.learn_view("v", encoder="lite", these=[Text("a dog")] * 2, those=[Text("a dog")]),
            "same centroid",
        ),
        (
            lambda db: db.learn_view("v", encoder="lite", these=[Text("red")] * 2, those=[Text("blue")], pair=True),
            "as many of these as of those, not 2 and 1",
        ),
        (
            lambda db: db.learn_view("v", encoder="none", these=[Text("a")], those=[Text("b")]),
            "No encoder named 'none'",
        ),
        (lambda db: db.learn_view("v", encoder="lite", these=[Row(1)], those=[Text("b")]), "only in the database"),
        (
            lambda db: db.learn_view("v", encoder="lite", these=[Text("dog")], those=[Text("dog")], method="inlp"),
            "differ in 0 directions only",
        ),
        (
            lambda db: db.learn_view("v", table="product", these="false", those=BLUE, method="inlp"),
            "No row of product with a vector matches 'false'",
        ),
        (lambda db: db.learn_view("v", table="product", these=RED, those=BLUE, method="guess"), "no method 'guess'"),
        (lambda db: db.learn_view("v", table="product", these=RED, those=BLUE, method="pairs"), "pairs needs pairs"),
        (lambda db: db.add_view("v", "lite", [[1.0, 0.0]]), "directions of 2 dimensions; .* have 256"),
        (lambda db: db.add_view("v", "lite", [[0.0] * 256]), "Direction 1 of 1 is zero"),
        (lambda db: db.add_view("v", "lite", [[1.0, 2.0], [3.0]]), "are no directions of a view"),
        (lambda db: db.add_view("v", "lite", "abc"), "are no directions of a view"),  # pyright: ignore[reportArgumentType]
        (lambda db: db.add_view("v", "lite", []), "are no directions of a view"),
        (lambda db: db.drop_view("v"), "no view named 'v'"),
        (lambda db: db.view("v"), "no view named 'v'"),
        (lambda db: db.remove_encoder("lite"), "is used by"),
    ],
)
def test_what_cannot_be_learnt_is_a_sentence(
    column_db: pgembed.Pgembed, database: psycopg.Connection, call: Callable[[pgembed.Pgembed], object], message: str
) -> None:
    column_db.add_view("taken", "lite", np.eye(256)[:1].tolist())
    database.execute("INSERT INTO product VALUES (1000, NULL, 'red', 'shoe')")
    with pytest.raises(PgembedError, match=message) as raised:
        call(column_db)
    assert isinstance(raised.value, InvalidInput | InvalidQuery | CatalogError)
    assert [row.name for row in column_db.views()] == ["taken"]


def test_a_view_of_no_directions_is_refused_by_sql(column_db: pgembed.Pgembed, database: psycopg.Connection) -> None:
    for vectors, message in (("'{}'", "was given no direction"), ("NULL", "was given no direction")):
        with pytest.raises(psycopg.errors.InvalidParameterValue, match=message):
            database.execute(f"SELECT pgembed.add_view('v', 'lite', {vectors})".encode())
    assert column_db.views() == []


def test_an_encoder_with_views_stays(database: psycopg.Connection) -> None:
    db = pgembed.connect(database)
    db.add_encoder("lite", "builtin:lite")
    db.learn_view("colour", encoder="lite", these=[Text("red")], those=[Text("blue")])
    with pytest.raises(CatalogError, match="Views were learnt with encoder 'lite': colour"):
        db.remove_encoder("lite")
    db.drop_view("colour")
    db.remove_encoder("lite")
    assert db.encoders() == []


# Queries


def test_queries_with_views_find_what_numpy_finds(db: pgembed.Pgembed, database: psycopg.Connection) -> None:
    db.learn_view("colour", table="product", these=RED, those=BLUE, pair="thing", components=3)
    found = [Vector(axis) for axis in directions(database, "colour")]
    first, shoe, he, she = found[0], Text("a shoe"), Text("a red shoe"), Text("a blue hat")
    pairs: list[tuple[Expression, Expression]] = [
        (View("colour"), first),
        (shoe + 0.4 * View("colour"), shoe + 0.4 * first),
        (reject(Text("a red shoe"), View("colour")), reject(Text("a red shoe"), *found)),
        (
            reject(unit(shoe - View("colour")), View("colour"), Text("car")),
            reject(unit(shoe - first), *found, Text("car")),
        ),
        (slerp(shoe, View("colour"), 0.3), slerp(shoe, first, 0.3)),
        (equalize([he, she], View("colour"))[1], equalize([he, she], *found)[1]),
        (0.5 * reject(Row(0), View("colour")) + shoe, 0.5 * reject(Row(0), *found) + shoe),
    ]
    for query, plain in pairs:
        rows, expected = (db.search("product", each, limit=100) for each in (query, plain))
        assert len(rows) == 3 * len(THINGS)
        scores = {row.id: row.score for row in expected}
        assert all(row.score == pytest.approx(scores[row.id], abs=1e-5) for row in rows)


def test_a_view_of_another_space_is_refused(column_db: pgembed.Pgembed, database: psycopg.Connection) -> None:
    database.execute(
        "SELECT pgembed.add_encoder('other', 'http:x', space => 'far', dim => 256, modalities => '{text}',"
        " fingerprint => 'f')"
    )
    column_db.add_view("odd", "other", np.eye(256)[:1].tolist())
    for call in (
        lambda: column_db.search("product", reject(Text("a shoe"), View("odd"))),
        lambda: column_db.search("product", Text("a shoe"), neutral="odd"),
        lambda: column_db.probe_view("odd", "product", "colour"),
    ):
        with pytest.raises(
            InvalidQuery, match=r"The view 'odd' is one of space far; product.embedding holds vectors of"
        ):
            call()
    with pytest.raises(psycopg.errors.InvalidParameterValue, match="The view 'odd' is one of space far"):
        database.execute(
            "SELECT * FROM pgembed.search_neutral(NULL::product, pgembed.encode_text('lite', 'a shoe'), 'odd')"
        )


def test_an_unknown_view_is_told_with_those_there_are(column_db: pgembed.Pgembed) -> None:
    with pytest.raises(CatalogError, match=r"no view named 'gender'.* none; learn one"):
        column_db.search("product", Text("a shoe"), neutral="gender")
    column_db.learn_view("colour", table="product", these=RED, those=BLUE)
    with pytest.raises(CatalogError, match=r"no view named 'gender'.*There are: colour"):
        column_db.search("product", Text("a shoe") + View("gender"))


# Search without a view


def test_rows_that_differ_in_the_view_alone_have_the_same_score(
    db: pgembed.Pgembed, database: psycopg.Connection
) -> None:
    db.learn_view("colour", table="product", these=RED, those=BLUE, pair="thing", components=8)
    axes = directions(database, "colour")

    def neutral(vector: NDArray[np.float64]) -> NDArray[np.float64]:
        rest = vector - axes.T @ (axes @ vector)
        return rest / np.linalg.norm(rest)

    query = neutral(encoded("a red shoe")[0])
    rows = db.search("product", Text("a red shoe"), neutral="colour", limit=100)
    assert len(rows) == 3 * len(THINGS)
    for row in rows:
        assert row.score == pytest.approx(float(query @ neutral(encoded(row.title)[0])), abs=1e-5)
    assert {row.title for row in rows[:3]} == {"a red shoe", "a blue shoe", "a shoe"}
    by_query_alone = db.search("product", reject(Text("a red shoe"), View("colour")), limit=100)
    apart = [{row.title: row.score for row in some} for some in (rows, by_query_alone)]
    gaps = [abs(scores["a red shoe"] - scores["a blue shoe"]) for scores in apart]
    assert gaps[0] < gaps[1]  # the rows' own parts are in their lengths
    in_sql = database.execute(
        "SELECT (item).id, score FROM pgembed.search_neutral(NULL::product,"
        " (SELECT pgembed.encode_text('lite', 'a red shoe')), 'colour', k => 100)"
    ).fetchall()
    assert {i: pytest.approx(score, abs=1e-5) for i, score in in_sql} == {row.id: row.score for row in rows}
    some = db.query("product").near(Text("a red shoe")).neutral("colour").where("colour = %s", "blue").limit(2).rows()
    filtered = database.execute(
        "SELECT (item).id, score FROM pgembed.search_neutral(NULL::product,"
        " (SELECT pgembed.encode_text('lite', 'a red shoe')), 'colour', 2, 'colour = $1', '[\"blue\"]')"
    ).fetchall()
    assert [row.id for row in some] == [i for i, _ in filtered]
    assert some[0].title == "a blue shoe"


def test_a_search_without_a_view_goes_by_pages_and_is_explained(db: pgembed.Pgembed) -> None:
    db.learn_view("colour", table="product", these=RED, those=BLUE)
    query = db.query("product").near(Text("a shoe") + 0.5 * Text("a car")).neutral("colour").limit(7)
    page, seen = query.page(), list[int]()
    while True:
        seen += [row.id for row in page]
        if page.next is None:
            break
        page = query.after(page.next).page()
    assert len(seen) == len(set(seen)) == 3 * len(THINGS)
    assert seen == [row.id for row in db.search("product", query._asked.known, neutral="colour", limit=100)]
    how = query.explain()
    assert [row.id for row in how.rows] == seen[:7]
    assert all(part.share is None for parts in how.parts for part in parts)
    with pytest.raises(InvalidQuery, match="belongs to another query"):
        db.query("product").near(Text("a shoe") + 0.5 * Text("a car")).limit(7).after(query.page().next).page()
    statement = query.compile()
    assert "neutralize" in statement.as_string()


@pytest.mark.parametrize("half", [False, True])
def test_an_index_serves_a_search_without_a_view(db: pgembed.Pgembed, database: psycopg.Connection, half: bool) -> None:
    db.learn_view("colour", table="product", these=RED, those=BLUE, pair="thing", components=2)
    side = database.execute("SELECT to_regclass('product_embedding')::text").fetchone()
    table, column = ("product_embedding", "vector") if side and side[0] else ("product", "embedding")
    if half and column == "vector":
        return  # a side table's is changed nowhere
    if half:
        database.execute(f"ALTER TABLE {table} ALTER {column} TYPE halfvec(256)".encode())
    everything = db.search("product", Text("a red shoe"), neutral="colour", limit=5, exact=True)
    (statement,) = database.execute("SELECT pgembed.neutral_index_sql('product', 'colour')").fetchall()
    database.execute(statement[0].encode())
    database.execute(
        "SET enable_seqscan = off; SET enable_sort = off; SET enable_hashjoin = off; SET enable_mergejoin = off"
    )
    with pgembed.connect(database) as own:
        query = own.query("product").near(Text("a red shoe")).neutral("colour").limit(5)
        how = query.explain()
        assert how.plan == "index", how.postgres
        assert {row.id for row in how.rows} == {row.id for row in everything}
        filtered = query.where("colour = 'blue'").explain()
        assert filtered.plan == "exact"
    found = database.execute(
        "SELECT (item).id FROM pgembed.search_neutral(NULL::product,"
        " (SELECT pgembed.encode_text('lite', 'a red shoe')), 'colour', k => 5)"
    ).fetchall()
    assert {i for (i,) in found} == {row.id for row in everything}  # what differs in the view alone is equally near


def test_a_row_that_lies_in_the_view_is_not_found_and_stops_nobody(
    column_db: pgembed.Pgembed, database: psycopg.Connection
) -> None:
    column_db.learn_view("colour", table="product", these=RED, those=BLUE)
    (statement,) = database.execute("SELECT pgembed.neutral_index_sql('product', 'colour')").fetchall()
    database.execute(statement[0].encode())
    database.execute("UPDATE product SET embedding = pgembed.view('colour') WHERE id = 0")
    database.execute("UPDATE product SET embedding = pgembed.scale(embedding, 0) WHERE id = 1")
    for exact in (False, True):
        rows = column_db.search("product", Text("a shoe"), neutral="colour", limit=100, exact=exact)
        assert {row.id for row in rows} == set(range(2, 12))
    found = database.execute(
        "SELECT count(*) FROM pgembed.search_neutral(NULL::product,"
        " (SELECT pgembed.encode_text('lite', 'a shoe')), 'colour', k => 100)"
    ).fetchone()
    assert found == (10,)
    with pytest.raises(PgembedError, match="nothing is left"):
        column_db.search("product", View("colour"), neutral="colour")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ("pgembed.search_neutral(NULL::product, pgembed.view('colour'), 'colour', k => 0)", "at least 1, not 0"),
        ("pgembed.search_neutral(NULL::product, NULL, 'colour')", "query vector is NULL"),
        ("pgembed.search_neutral(NULL::product, '[1,2]', 'colour')", "256 dimensions; the query has 2"),
        ("pgembed.search_neutral(NULL::product, pgembed.view('colour'), 'colour')", "nothing is left"),
        ("pgembed.search_neutral(NULL::product, pgembed.view('colour'), NULL)", "no view named NULL"),
        ("pgembed.search_neutral(NULL::product, '[1,2]', 'colour', filter => 'x')", "256 dimensions"),
        ("pgembed.neutral_index_sql('product', 'none')", "no view named 'none'"),
    ],
)
def test_what_a_search_without_a_view_refuses(
    column_db: pgembed.Pgembed, database: psycopg.Connection, call: str, message: str
) -> None:
    column_db.learn_view("colour", table="product", these=RED, those=BLUE)
    with pytest.raises(psycopg.Error, match=message):
        database.execute(f"SELECT * FROM {call}".encode())


# Probing


def test_a_probe_tells_that_the_attribute_is_gone_and_the_rest_kept(db: pgembed.Pgembed) -> None:
    db.learn_view("colour", encoder="lite", these=[Text("red")], those=[Text("blue")])
    options: dict[str, Any] = {"where": "id < 1000", "group": "thing", "same": "thing", "ask": "title"}
    found = db.probe_view("colour", "product", "colour", **options)
    assert (found.rows, found.directions, found.before.rows) == (3 * len(THINGS), 1, 2 * len(THINGS))
    assert found.before.classes == ("blue", "red")
    assert found.before.accuracy == 1
    assert not found.before.at_chance
    assert found.after.at_chance
    assert found.after.chance == 0.5 < found.after.bound < 0.75
    kept = {one.measure: one for one in found.kept}
    assert kept["overlap@10 of neighbours"].before == 1
    assert 0.3 < kept["overlap@10 of neighbours"].after < 1
    rest = kept["R@1 by words, rows without colour"]
    assert (rest.rows, rest.before, rest.after) == (len(THINGS), 1, 1)
    nearest = kept["nearest row has the same value of same, rows with colour"]
    assert nearest.after >= nearest.before
    assert found == db.probe_view("colour", "product", "colour", **options)  # the seed decides
    fewer = db.probe_view("colour", "product", "colour", sample=50, where="id < $1", params=[1000])
    assert fewer.rows == 50


def test_a_probe_can_be_fitted_to_some_rows_and_read_on_others(column_db: pgembed.Pgembed, database: Any) -> None:  # noqa: ANN401
    for number, (thing, colour) in enumerate((thing, colour) for thing in THINGS[6:] for colour in COLOURS):
        database.execute(
            "INSERT INTO product VALUES (%s, %s, %s, %s)", [12 + number, f"a {colour} {thing}", colour, thing]
        )
    column_db.work(until_idle=True)
    column_db.learn_view("colour", encoder="lite", these=[Text("red")], those=[Text("blue")])
    found = column_db.probe_view("colour", "product", "colour", fit="id % 4 < 2")
    assert (found.before.rows, found.before.accuracy > 0.9) == (2 * len(THINGS), True)
    assert found.after.accuracy < 0.75 < found.before.accuracy


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attribute": "nothing"}, '"nothing" does not exist'),
        ({"attribute": "colour) FROM product; --"}, "comment or a semicolon"),
        ({"attribute": "'one'"}, "the attribute has 1: one"),
        ({"attribute": "NULL"}, "the attribute has 0: none"),
        ({"attribute": "id"}, "rows of '.*' are too few to probe"),
        ({"where": "colour ="}, "is not one condition"),
        ({"where": "false"}, "No row of product with a vector matches"),
        ({"group": "1"}, "1 groups are too few for 5 folds"),
        ({"group": "1", "fit": "true"}, "both say which rows"),
        ({"sample": 0}, "at least 1, not 0"),
        ({"ask": "1 +"}, "is not one expression"),
        ({"name": "none"}, "no view named 'none'"),
    ],
)
def test_what_a_probe_refuses(db: pgembed.Pgembed, options: dict[str, Any], message: str) -> None:
    db.learn_view("colour", table="product", these=RED, those=BLUE)
    arguments: dict[str, Any] = {"name": "colour", "table": "product", "attribute": "colour", **options}
    with pytest.raises(PgembedError, match=message):
        db.probe_view(**arguments)


def test_the_asynchronous_client_has_the_same(column_db: pgembed.Pgembed, database_dsn: str) -> None:
    async def use() -> None:
        async with pgembed.connect_async(database_dsn) as db:
            await db.learn_view("colour", table="product", these=RED, those=BLUE)
            await db.add_view("other", "lite", np.eye(256)[:2].tolist())
            assert [row.name for row in await db.views()] == ["colour", "other"]
            assert (await db.view("other")).directions == 2
            rows = await db.search("product", Text("a red shoe"), neutral="colour", limit=2)
            assert {row.title for row in rows} == {"a red shoe", "a blue shoe"}
            with pytest.raises(InvalidInput, match="too few to probe"):
                await db.probe_view("colour", "product", "colour")
            await db.drop_view("other")

    asyncio.run(use())
    assert [row.name for row in column_db.views()] == ["colour"]
