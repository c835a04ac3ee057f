"""The contact sheet of one search on the command line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pgembed.building import Query
from pgembed.client import Pgembed
from pgembed.contact_sheet import Hit, Panel, parts_of, require_sheet_suffix, write_contact_sheet
from pgembed.contact_sheet.stored import caption_of, read_stored
from pgembed.errors import InvalidInput
from pgembed.inputs import Expression
from pgembed.media import MediaPolicy, MediaReader


def search_with_sheet(
    db: Pgembed,
    asked: Query,
    table: str,
    query: Expression,
    path: Path,
    *,
    embedding: str | None,
    picture: str | None,
    media_root: Path | None,
    columns: Sequence[str] | None,
) -> tuple[list[dict[str, Any]], int]:
    """Search once, the pictures included, and write the sheet; returns the rows without them, and how many pictures
    could not be read. Raises InvalidInput without a picture column, or for a file that is no sheet's."""
    require_sheet_suffix(path)
    column = picture or _picture_column(db, table, embedding)
    shown_anyway = columns or asked.columns
    found = asked.select(*dict.fromkeys([*shown_anyway, column])).rows()
    root = MediaPolicy(media_root=media_root or Path.cwd(), allow_urls=True)
    with MediaReader(root) as stored, MediaReader(MediaPolicy(any_path=True, allow_urls=True)) as typed:
        pictures = [read_stored(stored, row[column]) for row in found]
        hits = [Hit(shown, caption_of(row, column), row.score) for row, shown in zip(found, pictures, strict=True)]
        panel = Panel(repr(query), hits, parts_of(query, typed), asked.compile().text.as_string(None))
        write_contact_sheet([panel], path, f"Search in {table}")
    unread = sum(shown is None and row[column] is not None for row, shown in zip(found, pictures, strict=True))
    hidden = column if column not in shown_anyway else None
    return [{name: value for name, value in row.items() if name != hidden} for row in found], unread


def _picture_column(db: Pgembed, table: str, embedding: str | None) -> str:
    column = db.picture_column(table, embedding)
    if column is None:
        raise InvalidInput(f"The embedding of {table} has no picture column.", "Name one: --picture photo")
    return column
