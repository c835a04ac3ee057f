"""Composed queries through the client: operations, rows as examples, parts of pictures; in SQL what numpy gives."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import psycopg
import pytest
from numpy.typing import NDArray

import pgembed
from pgembed import Image, Row, Text, Vector, centroid, reject, rocchio, slerp, swap, unit
from pgembed.encoders import load_encoder
from pgembed.errors import InvalidQuery, PgembedError
from pgembed.inputs import Expression, Input

PHOTOS = sorted((Path(__file__).parents[1] / "data/photos").glob("*.jpg"))
LITE = load_encoder("builtin:lite")
OTHER = next(photo.stem for photo in PHOTOS if photo.stem != "panda")
PANDA, BIRD, RED = Text("a panda"), Text("a bird"), Text("red")


@pytest.fixture(params=["column", "side"])
def db(request: pytest.FixtureRequest, database: psycopg.Connection, database_dsn: str) -> Iterator[pgembed.Pgembed]:
    """Photographs under a key of two columns, encoded, and one row that has none yet."""
    database.execute(
        'CREATE TABLE product ("a %% key" text, n int, title text, photo bytea, PRIMARY KEY ("a %% key", n))'
    )
    for number, photo in enumerate(PHOTOS):
        database.execute("INSERT INTO product VALUES ('de', %s, %s, %s)", [number, photo.stem, photo.read_bytes()])
    with pgembed.connect(database_dsn) as made:
        made.add_encoder("shop", "builtin:lite")
        made.attach("product", "embedding", encoder="shop", image="photo", storage=request.param)
        made.work(until_idle=True)
        database.execute("INSERT INTO product VALUES ('fr', 1, 'empty', NULL)")
        yield made


def stored(db: pgembed.Pgembed) -> dict[Input, NDArray[np.float32]]:
    rows = db.search("product", PANDA, limit=100, exact=True)
    vectors = {Row("de", row.n): np.empty(0, np.float32) for row in rows}
    for example in vectors:
        picture = PIL.Image.open(PHOTOS[example.key[1]]).convert("RGB")
        vectors[example] = LITE.encode_image([picture])[0]
    return dict(vectors)


OPERATIONS: list[Expression] = [
    Row("de", 2),
    Row("de", 2) + 0.5 * RED,
    unit(Row("de", 0) - Row("de", 1)) + PANDA,
    swap(Row("de", 3), BIRD, RED, 0.7),
    slerp(Row("de", 1), BIRD, 0.4),
    reject(PANDA, RED, Row("de", 2)),
    reject(Row("de", 2), PANDA + BIRD),
    centroid(Row("de", 1), Row("de", 4), Row("de", 5)),
    rocchio(BIRD, liked=[Row("de", 4)], disliked=[Row("de", 0), Row("de", 1)]),
    0.3 * slerp(PANDA, reject(BIRD, RED), 0.5) - 0.2 * RED,
    Vector(LITE.encode_text(["a hen"])[0]) + 0.2 * Row("de", 0),
]


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("query", OPERATIONS, ids=repr)
def test_postgres_finds_what_numpy_finds(db: pgembed.Pgembed, query: Expression, named: bool) -> None:
    known = stored(db)

    def encode(item: Input) -> NDArray[np.float32]:
        return LITE.encode_text([item.text])[0] if isinstance(item, Text) else known[item]

    def direction(expression: Expression) -> NDArray[np.float32]:
        return with_rows(expression, known).resolve(encode)

    wanted = direction(query)
    params: Any = {"low": 0} if named else [0]
    rows = db.search("product", query, where="n >= %(low)s" if named else "n >= %s", params=params, limit=100)
    assert len(rows) == len(PHOTOS)
    for row in rows:
        assert row.score == pytest.approx(float(wanted @ known[Row("de", row.n)]), abs=1e-5)
    compiled = db.query("product").near(query).limit(3).compile()
    assert re.sub(r"\s+", " ", compiled.as_string()).count("(SELECT") >= 1


def with_rows(expression: Expression, known: dict[Input, NDArray[np.float32]]) -> Expression:
    """The expression with the vectors of its rows in place of them."""
    scope = {
        name: getattr(pgembed, name) for name in ("Text", "Vector", "centroid", "reject", "rocchio", "slerp", "unit")
    }
    if any(isinstance(item, Vector) for item in expression.inputs):  # whose repr is shortened
        vector, *_ = (item for item in expression.inputs if isinstance(item, Vector))
        return vector + 0.2 * Vector(known[Row("de", 0)])
    return eval(repr(expression), {**scope, "Row": lambda *key: Vector(known[Row(*key)])})


def test_a_row_finds_itself_and_those_like_it(db: pgembed.Pgembed) -> None:
    number = [photo.stem for photo in PHOTOS].index("panda")
    rows = db.search("product", Row("de", number), limit=2)
    assert (rows[0].title, rows[0].score) == ("panda", pytest.approx(1, abs=1e-5))
    assert rows[1].score < 0.999


@pytest.mark.parametrize(
    ("query", "message"),
    [
        (Row("de", 4711), r"Row\('de', 4711\) is not in product, or has no vector yet"),
        (Row("fr", 1), "is not in product, or has no vector yet"),
        (slerp(Row("de", 4711), PANDA, 0.5), "is not in product, or has no vector yet"),
        (PANDA - 0.5 * Row("fr", 1), "is not in product, or has no vector yet"),
        (Row("de"), r"Row\('de'\) has 1 value\(s\), and the primary key of product has 2: a %% key, n"),
        (Row("de", "x"), "invalid input syntax for type integer"),
        (slerp(PANDA, -PANDA, 0.5), "opposite"),
        (reject(PANDA, PANDA), "nothing is left"),
    ],
)
def test_what_has_no_direction_is_an_error(db: pgembed.Pgembed, query: Expression, message: str) -> None:
    with pytest.raises(PgembedError, match=message):
        db.search("product", query)


def test_a_part_of_a_picture_finds_what_is_in_it(db: pgembed.Pgembed) -> None:
    panda, other = (PIL.Image.open(PHOTOS[0].parent / f"{name}.jpg").convert("RGB") for name in ("panda", OTHER))
    size = (300, 300)
    both = PIL.Image.new("RGB", (600, 300))
    both.paste(panda.resize(size), (0, 0))
    both.paste(other.resize(size), (300, 0))
    mask = PIL.Image.new("L", (60, 30))
    mask.paste(255, (30, 0, 60, 30))
    for query, title in (
        (Image(both, box=(0, 0, 300, 300)), "panda"),
        (Image(both, box=(0.5, 0, 0.5, 1)), OTHER),
        (Image(both, mask=mask), OTHER),
    ):
        assert db.search("product", query, limit=1)[0].title == title
    with pytest.raises(InvalidQuery, match="lies outside of the picture of 600 x 300 pixels"):
        db.search("product", Image(both, box=(700, 0, 10, 10)))


def test_a_row_stands_for_its_vector_as_it_is_and_shows_nothing_of_hidden_rows(
    db: pgembed.Pgembed, database: psycopg.Connection
) -> None:
    """Nobody searches by a row that is gone, or that policies hide, wherever its vector stands."""
    database.execute("SET session_replication_role = replica")
    database.execute("DELETE FROM product WHERE n = 3")  # no trigger takes its vector away
    database.execute("RESET session_replication_role")
    with pytest.raises(PgembedError, match="is not in product"):
        db.search("product", Row("de", 3))
    statement = db.query("product").near(Row("de", 2)).compile().as_string()
    assert "compose" not in statement
    assert statement.count("product") >= 2
