"""The demo's six searches: each runs, and gives a panel with the query, the SQL that ran, and what it found."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, LiteralString

import psycopg
from PIL import Image as Pictures
from PIL.Image import Image as Picture
from psycopg.rows import dict_row

from pgembed.building import Query
from pgembed.client import Pgembed
from pgembed.contact_sheet import Hit, Panel, Part, parts_of, thumbnail
from pgembed.demo.tables import KEPT_BACK, photograph, query_drawing
from pgembed.errors import PgembedError
from pgembed.inputs import Expression, Image, Text
from pgembed.media import MediaPolicy, MediaReader
from pgembed.worker import WorkerOptions

HITS = 8
REPLACED = "Plate"  # the photograph whose row is changed
CHANGE_TIMEOUT = 30.0  # seconds until a changed row must have been found
LONG_VECTOR = re.compile(r"\[(?:-?[\d.e+-]+,){8,}-?[\d.e+-]+\]")


@dataclass
class Demo:
    """What the searches need: the client, a connection of one's own, and the connection string for a worker."""

    db: Pgembed
    conn: psycopg.Connection[Any]
    media: MediaPolicy


def words_to_picture(demo: Demo) -> Panel:
    """Words find pictures; the words are encoded inside Postgres."""
    statement = """\
SELECT name, picture, 1 - (embedding <=> (SELECT pgembed.encode_text('demo', 'rainy weather'))) AS score
FROM emoji
ORDER BY embedding <=> (SELECT pgembed.encode_text('demo', 'rainy weather'))
LIMIT 8"""
    return Panel(
        "Words to picture",
        _hits(_rows(demo.conn, statement), "name"),
        [Part("rainy weather")],
        statement,
        "Plain SQL. Only pixels were encoded, no names; the words are encoded inside Postgres.",
    )


def picture_to_picture(demo: Demo) -> Panel:
    """A drawing finds the same thing drawn by other hands."""
    return _python_search(
        demo,
        "Picture to picture",
        "emoji",
        Image(query_drawing("automobile")),
        'db.search("emoji", Image("automobile.png"), limit=8). The query was drawn by another vendor than the table.',
    )


def picture_and_words(demo: Demo) -> Panel:
    """A picture, with something added and something taken away."""
    return _python_search(
        demo,
        "Picture + words − words",
        "emoji",
        Image(query_drawing("woman-firefighter")) + Text("astronaut") - Text("firefighter"),
        'db.search("emoji", Image("woman-firefighter.png") + Text("astronaut") - Text("firefighter"), limit=8)',
    )


def filtered(demo: Demo) -> Panel:
    """The nearest rows among those that an ordinary condition lets through."""
    statement = """\
SELECT (item).title, (item).picture, score
FROM pgembed.search(NULL::photograph, (SELECT pgembed.encode_text('demo', 'a castle')), k => 8,
                    filter => 'place = ''France''', wide => true)"""
    return Panel(
        "Filter and vector",
        _hits(_rows(demo.conn, statement), "title"),
        [Part("a castle")],
        statement,
        "Photographs, in France only. However rare the matching rows are, as many come back as match, up to k.",
    )


def joined(demo: Demo) -> Panel:
    """Words joined with two tables by meaning: for each, the photograph and the drawing nearest to it."""
    statement = """\
SELECT w.words, p.title, e.name, p.picture, e.picture AS drawing, p.score
FROM unnest(ARRAY['owl', 'castle', 'hammer', 'bridge', 'gorilla', 'camel', 'penguin', 'butterfly']) AS w (words)
CROSS JOIN LATERAL pgembed.encode_text('demo', w.words) AS query (vector)
CROSS JOIN LATERAL (
    SELECT title, picture, 1 - (embedding <=> query.vector) AS score
    FROM photograph ORDER BY embedding <=> query.vector LIMIT 1
) AS p
CROSS JOIN LATERAL (
    SELECT name, picture FROM emoji ORDER BY embedding <=> query.vector LIMIT 1
) AS e"""
    hits = [
        Hit(_pair(row["picture"], row["drawing"]), f"{row['words']}: {row['title']}, {row['name']}", row["score"])
        for row in _rows(demo.conn, statement)
    ]
    note = "For each word the nearest photograph and the nearest drawing: an ordinary join, in one statement."
    return Panel("SQL join", hits, sql=statement, note=note)


def changed_row(demo: Demo) -> Panel:
    """A row's picture is replaced, and the row is found by what it shows now."""
    statement = """\
SELECT title, picture, 1 - (embedding <=> (SELECT pgembed.encode_text('demo', 'a koala'))) AS score
FROM photograph
ORDER BY embedding <=> (SELECT pgembed.encode_text('demo', 'a koala'))
LIMIT 8"""
    before, after = photograph(REPLACED), photograph(KEPT_BACK)
    update = "UPDATE photograph SET title = %(title)s, picture = %(picture)s WHERE id = %(id)s"
    wait = "SELECT embedding IS DISTINCT FROM %(old)s::text::vector FROM photograph WHERE id = %(id)s"
    old = _rows(demo.conn, "SELECT embedding::text AS old FROM photograph WHERE id = %(id)s", before)[0]["old"]
    with _worker(demo):
        start = time.monotonic()
        demo.conn.execute(update, {**after, "id": before["id"]})
        while demo.conn.execute(wait, {"old": old, "id": before["id"]}).fetchone() != (True,):
            if time.monotonic() - start > CHANGE_TIMEOUT:
                raise PgembedError(
                    f"The changed row {before['id']} of photograph was not encoded within {CHANGE_TIMEOUT:.0f} s.",
                    "See why: pgembed status; pgembed failures photograph.",
                )
            time.sleep(0.02)
        seconds = time.monotonic() - start
    hits = _hits(_rows(demo.conn, statement), "title")
    shown = f"UPDATE photograph SET title = 'Koala', picture = … WHERE id = {before['id']};\n\n{statement}"
    note = f"The row '{REPLACED}' was given another picture; a worker saw it, and {seconds:.1f} s later it is found."
    return Panel("A changed row, a moment later", hits, [Part("a koala")], shown, note)


SEARCHES: tuple[Callable[[Demo], Panel], ...] = (
    words_to_picture,
    picture_to_picture,
    picture_and_words,
    filtered,
    joined,
    changed_row,
)


def put_back(demo: Demo) -> None:
    """Undo the change of ``changed_row`` of an earlier run."""
    row = photograph(REPLACED)
    demo.conn.execute(
        "UPDATE photograph SET title = %(title)s, picture = %(picture)s WHERE id = %(id)s AND title <> %(title)s", row
    )


def _rows(conn: psycopg.Connection[Any], statement: LiteralString, params: Any = None) -> list[dict[str, Any]]:  # noqa: ANN401
    with conn.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(statement, params).fetchall()


def _hits(rows: list[dict[str, Any]], caption: str) -> list[Hit]:
    return [Hit(row["picture"], row[caption], row["score"]) for row in rows]


def _python_search(demo: Demo, title: str, table: str, query: Expression, note: str) -> Panel:
    asked = demo.db.query(table).near(query).select("name", "picture").limit(HITS)
    rows = asked.rows()
    with MediaReader(demo.media) as reader:
        parts = parts_of(query, reader)
    statement = sql_of(demo.conn, asked)
    return Panel(title, [Hit(row["picture"], row["name"], row.score) for row in rows], parts, statement, note)


def sql_of(conn: psycopg.Connection[Any], asked: Query) -> str:
    """The statement that a search from Python runs, its parameters filled in, long vectors cut."""
    statement = asked.compile()
    return shortened(psycopg.ClientCursor(conn).mogrify(statement.text, statement.params))


def shortened(statement: str) -> str:
    """A statement with its long vectors cut."""
    return LONG_VECTOR.sub(_shortened_vector, statement).replace("::float8[]::float8[]", "::float8[]")


def _shortened_vector(match: re.Match[str]) -> str:
    numbers = match[0][1:-1].split(",")
    first = ", ".join(f"{float(number):.3f}" for number in numbers[:3])
    return f"[{first}, … {len(numbers)} numbers]"


def _pair(left: bytes, right: bytes) -> Picture:
    """Two pictures side by side."""
    pictures = [thumbnail(data) for data in (left, right)]
    height = min(picture.height for picture in pictures)
    fitted = [picture.resize((round(picture.width * height / picture.height), height)) for picture in pictures]
    whole = Pictures.new("RGB", (sum(picture.width for picture in fitted), height), "white")
    whole.paste(fitted[0])
    whole.paste(fitted[1], (fitted[0].width, 0))
    return whole


@contextmanager
def _worker(demo: Demo) -> Generator[None]:
    """A worker beside this thread."""
    worker = demo.db.worker(WorkerOptions(media=demo.media, embeddings=("photograph",)))
    thread = threading.Thread(target=worker.run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        worker.stop()
        thread.join()
