"""The demo's tables and the rows that ship for them."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import sql

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

KEPT_BACK = "Koala"  # the photograph that replaces another one in the search after a change

EMOJI = """
CREATE TABLE emoji (
    id text PRIMARY KEY, -- the code points
    name text NOT NULL,
    tags text[] NOT NULL,
    category text NOT NULL,
    subcategory text NOT NULL,
    skin_tone smallint, -- 1 to 5, light to dark
    picture bytea NOT NULL
)"""
EMOJI_COLUMNS = ("id", "name", "tags", "category", "subcategory", "skin_tone", "picture")

PHOTOGRAPH = """
CREATE TABLE photograph (
    id integer PRIMARY KEY,
    title text NOT NULL,
    kind text NOT NULL,
    place text,
    width integer NOT NULL,
    height integer NOT NULL,
    credit text NOT NULL,
    licence text NOT NULL,
    source text NOT NULL,
    picture bytea NOT NULL
)"""
PHOTOGRAPH_COLUMNS = ("id", "title", "kind", "place", "width", "height", "credit", "licence", "source", "picture")


def shipped() -> Traversable:
    """The folder of the demo's data."""
    return files("pgembed.demo") / "data"


def query_drawing(name: str) -> bytes:
    """A drawing of noto, another vendor than the one whose emoji fill the table."""
    return (shipped() / "noto" / f"{name}.png").read_bytes()


def emoji_rows() -> Iterator[dict[str, Any]]:
    """Rows of the table emoji."""
    with (shipped() / "emoji.zip").open("rb") as file, zipfile.ZipFile(file) as archive:
        for line in archive.read("emoji.jsonl").splitlines():
            row = json.loads(line)
            yield {**row, "picture": archive.read(f"{row['id']}.webp")}


def photograph_rows() -> Iterator[dict[str, Any]]:
    """Rows of the table photograph, without the one that is kept back."""
    return (row for row in _photographs() if row["title"] != KEPT_BACK)


def photograph(title: str) -> dict[str, Any]:
    """One shipped photograph, kept back or not."""
    return next(row for row in _photographs() if row["title"] == title)


def _photographs() -> Iterator[dict[str, Any]]:
    lines = (shipped() / "photographs.jsonl").read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, start=1):
        row = json.loads(line)
        yield {**row, "id": number, "picture": (shipped() / "photographs" / row["file"]).read_bytes()}


def create_tables(conn: psycopg.Connection[Any]) -> dict[str, int]:
    """Make and fill both tables; returns how many rows each has."""
    conn.execute(EMOJI)
    conn.execute(PHOTOGRAPH)
    return {
        "emoji": copy_rows(conn, "emoji", EMOJI_COLUMNS, emoji_rows()),
        "photograph": copy_rows(conn, "photograph", PHOTOGRAPH_COLUMNS, photograph_rows()),
    }


def copy_rows(
    conn: psycopg.Connection[Any], table: str, columns: tuple[str, ...], rows: Iterator[dict[str, Any]]
) -> int:
    """COPY the named columns of the rows into a table; returns how many."""
    statement = sql.SQL("COPY {} ({}) FROM STDIN").format(
        sql.Identifier(table), sql.SQL(", ").join(map(sql.Identifier, columns))
    )
    count = 0
    with conn.cursor() as cursor, cursor.copy(statement) as copy:
        for row in rows:
            copy.write_row([row[column] for column in columns])
            count += 1
    return count
