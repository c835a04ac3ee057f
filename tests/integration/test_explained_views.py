"""Explanations that tell on which named views rows score high."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator

import numpy as np
import psycopg
import pytest

import pgembed
from pgembed import Text, Vector
from pgembed.encoders import load_encoder
from pgembed.errors import InvalidQuery

THINGS = (
    "shoe", "car", "house", "dress", "apple", "boat", "bird", "flower", "hat", "chair", "door", "book", "bag", "bottle",
)  # fmt: skip
COLOURS = ("", "red ", "blue ", "green ", "yellow ", "old ", "new ", "small ", "big ", "cheap ")


@pytest.fixture(params=["column", "side"])
def db(request: pytest.FixtureRequest, database: psycopg.Connection, database_dsn: str) -> Iterator[pgembed.Pgembed]:
    database.execute("CREATE TABLE product (id int, part text, title text, PRIMARY KEY (part, id))")
    for number, (thing, colour) in enumerate((thing, colour) for thing in THINGS for colour in COLOURS):
        database.execute("INSERT INTO product VALUES (%s, 'a', %s)", [number, f"a {colour}{thing}"])
    database.execute("ANALYZE product")
    with pgembed.connect(database_dsn) as made:
        made.add_encoder("lite", "builtin:lite")
        made.attach("product", "embedding", encoder="lite", text="{title}", storage=request.param)
        made.work(until_idle=True)
        yield made


def test_the_views_on_which_a_row_scores_high(
    db: pgembed.Pgembed, database: psycopg.Connection, database_dsn: str
) -> None:
    query = db.query("product").near(Text("a red shoe")).select("title").limit(3)
    assert query.explain(views=True).views == [[], [], []]
    db.learn_view("red", encoder="lite", these=[Text("red"), Text("in red")], those=[Text("colour"), Text("thing")])
    db.learn_view("age", encoder="lite", these=[Text("old"), Text("ancient")], those=[Text("new"), Text("modern")])
    how = query.explain(views=True)
    red = next(n for n, row in enumerate(how.rows) if row.title == "a red shoe")
    assert how.views[red][0].view == "red"
    ((written,),) = database.execute("SELECT pgembed.view('red')::text").fetchall()
    direction = np.array(json.loads(written))
    own = load_encoder("builtin:lite").encode_text(["a red shoe"])[0]
    assert how.views[red][0].score == pytest.approx(float(own @ direction / np.linalg.norm(own)), abs=1e-5)
    assert how.views[red][0].above >= 0.9
    assert "high on red +" in str(how)
    assert how.facts()["views"][red][0]["view"] == "red"
    assert query.explain().views == []
    ((told,),) = database.execute(
        "SELECT pgembed.explain_search(NULL::product, (SELECT pgembed.encode_text('lite', 'a red shoe')), k => 3,"
        " views => true)"
    ).fetchall()
    assert [row["views"] for row in told["rows"]] == how.facts()["views"], "140 rows are all of the sample"
    assert (
        "views"
        not in database.execute(
            "SELECT pgembed.explain_search(NULL::product, pgembed.encode_text('lite', 'a red shoe')) -> 'rows' -> 0"
        ).fetchall()[0][0]
    )
    by_hand = np.array([one for (one,) in database.execute(
        "SELECT 1 - (v <=> pgembed.view('red')) FROM (SELECT pgembed.encode_text('lite', title) AS v FROM product) AS p"
    )], dtype=float)  # fmt: skip
    assert how.views[red][0].above == pytest.approx((by_hand < how.views[red][0].score - 1e-6).mean())

    async def same() -> list[list[str]]:
        async with pgembed.connect_async(database_dsn) as other:
            told = await other.query("product").near(Text("a red shoe")).select("title").limit(3).explain(views=True)
            return [[one.view for one in row] for row in told.views]

    assert [[one.view for one in row] for row in how.views] == asyncio.run(same())


def test_none_of_several_legs_and_none_of_another_space(db: pgembed.Pgembed, database: psycopg.Connection) -> None:
    with pytest.raises(InvalidQuery, match=r"explain\(views=True\) is for a query with one leg"):
        db.query("product").near(Text("a shoe")).hybrid("shoe").explain(views=True)
    database.execute(
        "SELECT pgembed.add_encoder('other', 'test:none', space => 'other', dim => 3, modalities => '{text}',"
        " fingerprint => 'none')"
    )
    db.add_view("elsewhere", "other", [[1.0, 0, 0]])
    assert db.query("product").near(Vector([1.0] * 256)).limit(1).explain(views=True).views == [[]]
