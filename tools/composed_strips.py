"""Draw docs/images/composed.png: a strip of pictures for each way of composing a query, found in the demo's drawings.

python -m tools.composed_strips
"""

from __future__ import annotations

import json
import tempfile
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
from PIL import Image as Pictures
from PIL import ImageDraw

import pgembed
from pgembed import Image, Row, Text, centroid, changed, mmr, reject, rocchio, slerp, swap
from pgembed.contact_sheet import Hit, Panel, Part, draw
from pgembed.demo.tables import create_tables, query_drawing
from pgembed.embedded import EmbeddedServer
from pgembed.inputs import Expression
from pgembed.media import decode_picture

OUT = Path(__file__).parents[1] / "docs/images/composed.png"
HITS = 8


def main() -> None:
    """Fill a table with the demo's drawings, ask, and draw what came back."""
    with tempfile.TemporaryDirectory() as folder, EmbeddedServer.start(Path(folder) / "data") as server:
        with psycopg.connect(server.dsn(), autocommit=True) as conn, pgembed.connect(server.dsn()) as db:
            db.install()
            create_tables(conn)
            db.add_encoder("lite", "builtin:lite")
            db.attach("emoji", "embedding", encoder="lite", image="picture")
            db.work(until_idle=True)
            strips = [strip(db, conn, *each) for each in queries(conn)]
            strips += [diverse(db, conn), neutral(db, conn)]
        sheet = draw(strips, "Composed search: drawings found by pixels alone")
        small = sheet.resize((sheet.width * 5 // 8, sheet.height * 5 // 8), Pictures.Resampling.LANCZOS)
        small.quantize(128).save(OUT, optimize=True)


def queries(conn: psycopg.Connection[Any]) -> list[tuple[str, Expression, list[str | bytes], str]]:
    """What is asked: a title, the query, what it is made of, and a note."""
    firefighter, car = query_drawing("woman-firefighter"), query_drawing("automobile")
    cook, heart, dog, cat = (row_of(conn, name) for name in ("woman cook", "red heart", "dog face", "cat face"))
    both = beside(picture_of(conn, dog), car)
    return [
        (
            "minus: words and their opposite",
            Text("a vehicle") - 0.7 * Text("a car"),
            ["a vehicle", "minus a car"],
            'Text("a vehicle") - 0.7 * Text("a car")',
        ),
        ("sum: picture + words", Image(car) + 0.7 * Text("police"), [car, "police"], 'image + 0.7 * Text("police")'),
        (
            "swap: the same, but …",
            swap(Image(firefighter), old=Text("firefighter"), new=Text("astronaut")),
            [firefighter, "firefighter -> astronaut"],
            'swap(image, old=Text("firefighter"), new=Text("astronaut"))',
        ),
        (
            "changed: by a network that has learnt how",
            changed(Row(cook), to=Text("pilot"), was=Text("cook")),
            [picture_of(conn, cook), "cook -> pilot"],
            'changed(Row("1f469-200d-1f373"), to=Text("pilot"), was=Text("cook"))',
        ),
        (
            "swap, from a row",
            swap(Row(heart), old=Text("red"), new=Text("blue")),
            [picture_of(conn, heart), "red -> blue"],
            'swap(Row("2764"), old=Text("red"), new=Text("blue"))',
        ),
        (
            "slerp: between two",
            slerp(Row(dog), Row(cat), 0.5),
            [picture_of(conn, dog), picture_of(conn, cat)],
            "slerp(Row(dog), Row(cat), 0.5)",
        ),
        (
            "reject: not this",
            reject(Text("an animal"), Text("a bird"), Text("a fish")),
            ["an animal", "neither a bird nor a fish"],
            'reject(Text("an animal"), Text("a bird"), Text("a fish"))',
        ),
        (
            "centroid: like all of these",
            centroid(Row(cook), Row(row_of(conn, "man farmer")), Row(row_of(conn, "woman mechanic"))),
            [picture_of(conn, row_of(conn, name)) for name in ("woman cook", "man farmer", "woman mechanic")],
            "centroid(Row(…), Row(…), Row(…))",
        ),
        (
            "rocchio: more like this, less like that",
            rocchio(Text("fruit"), liked=[Row(row_of(conn, "lemon"))], disliked=[Row(row_of(conn, "red apple"))]),
            ["fruit", picture_of(conn, row_of(conn, "lemon")), "unlike", picture_of(conn, row_of(conn, "red apple"))],
            'rocchio(Text("fruit"), liked=[Row(lemon)], disliked=[Row(apple)])',
        ),
        (
            "a part of a picture",
            Image(both, box=(0.5, 0.0, 0.5, 1.0)),
            [both, "the right half"],
            'Image("both.png", box=(0.5, 0.0, 0.5, 1.0))',
        ),
        (
            "a part of any shape",
            Image(both, mask=Image(left_half())),
            [both, left_half()],
            'Image("both.png", mask=Image("mask.png"))',
        ),
    ]


def strip(
    db: pgembed.Pgembed,
    conn: psycopg.Connection[Any],
    title: str,
    query: Expression,
    parts: list[str | bytes],
    note: str,
) -> Panel:
    """One way of asking, and what it found."""
    rows = db.query("emoji").near(query).select("name", "picture").limit(HITS).rows()
    return Panel(
        title, [Hit(row.picture, row.name, row.score) for row in rows], [part(one) for one in parts], note=note
    )


def diverse(db: pgembed.Pgembed, conn: psycopg.Connection[Any]) -> Panel:
    """The first hits for words, chosen so that they are unlike each other."""
    rows = db.query("emoji").near(Text("a cat")).select("name", "picture", "embedding").limit(40).rows()
    vectors = np.array([json.loads(row.embedding) for row in rows])
    chosen = mmr(vectors, [row.score for row in rows], HITS, 0.5)
    hits = [Hit(rows[place].picture, rows[place].name, rows[place].score) for place in chosen]
    return Panel("mmr: unlike each other", hits, [part("a cat")], note="mmr(vectors, scores, 8, 0.5) of the first 40")


def neutral(db: pgembed.Pgembed, conn: psycopg.Connection[Any]) -> Panel:
    """What a row is near to where a view does not count."""
    db.learn_view("gender", table="emoji", these="name ~ '^man '", those="name ~ '^woman '")
    cook = row_of(conn, "woman cook")
    rows = db.query("emoji").near(Row(cook)).neutral("gender").select("name", "picture").limit(HITS).rows()
    hits = [Hit(row.picture, row.name, row.score) for row in rows]
    return Panel("neutral: whatever the gender", hits, [part(picture_of(conn, cook))], note='.neutral("gender")')


def part(content: str | bytes) -> Part:
    """Words or a picture of the query."""
    return Part(content if isinstance(content, str) else decode_picture(content))


def beside(left: bytes, right: bytes) -> bytes:
    """One picture of two."""
    pictures = [Pictures.open(BytesIO(one)).convert("RGBA").resize((128, 128)) for one in (left, right)]
    whole = Pictures.new("RGB", (256, 128), "white")
    for number, picture in enumerate(pictures):
        whole.paste(picture, (128 * number, 0), picture)
    out = BytesIO()
    whole.save(out, "PNG")
    return out.getvalue()


def left_half() -> bytes:
    """A mask for ``beside``, with a round edge."""
    mask = Pictures.new("L", (256, 128), 0)
    ImageDraw.Draw(mask).ellipse((0, 0, 127, 127), fill=255)
    out = BytesIO()
    mask.save(out, "PNG")
    return out.getvalue()


def row_of(conn: psycopg.Connection[Any], name: str) -> str:
    """The key of the drawing of this name."""
    row = conn.execute("SELECT id FROM emoji WHERE name = %s", [name]).fetchone()
    if row is None:
        raise SystemExit(f"There is no drawing named {name!r}.")
    return row[0]


def picture_of(conn: psycopg.Connection[Any], key: str) -> bytes:
    """The drawing of a row."""
    row = conn.execute("SELECT picture FROM emoji WHERE id = %s", [key]).fetchone()
    assert row is not None
    return row[0]


if __name__ == "__main__":
    main()
