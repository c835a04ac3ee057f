"""The contact sheet of one search on the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pgembed.client import Pgembed
from pgembed.contact_sheet import Hit, Panel, parts_of, write_contact_sheet
from pgembed.errors import InvalidInput
from pgembed.inputs import Expression
from pgembed.media import MediaPolicy, MediaReader


def write_sheet(
    db: Pgembed,
    table: str,
    query: Expression,
    path: Path,
    *,
    picture: str | None,
    **options: Any,  # noqa: ANN401
) -> None:
    """Search again with the pictures themselves, and write the sheet. Raises InvalidInput without a picture column."""
    column = picture or _picture_column(db, table, options["embedding"])
    rows = db.search(table, query, wide=True, **options)
    hits: list[Hit] = []
    for row in rows:
        data = row.get(column)
        if isinstance(data, str):
            data = Path(data).read_bytes() if Path(data).is_file() else None
        words = [str(value) for name, value in row.items() if isinstance(value, str) and name not in ("score", column)]
        hits.append(Hit(bytes(data) if data is not None else None, " · ".join(words[:2])[:80], row.score))
    sql = db.query(table, query, **options).compile().text.as_string(None)
    with MediaReader(MediaPolicy(any_path=True)) as reader:
        panel = Panel(repr(query), hits, parts_of(query, reader), sql)
        write_contact_sheet([panel], path, f"Search in {table}")


def _picture_column(db: Pgembed, table: str, embedding: str | None) -> str:
    column = db.picture_column(table, embedding)
    if column is None:
        raise InvalidInput(f"The embedding of {table} has no picture column.", "Name one: --picture photo")
    return column
