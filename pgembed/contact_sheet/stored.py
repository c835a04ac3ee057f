"""What a row shows on a sheet: its picture, as the table has it, and a few words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from pgembed.errors import MediaError
from pgembed.media import MediaReader


def read_stored(reader: MediaReader, value: Any) -> bytes | None:  # noqa: ANN401
    """A picture as the table has it: its bytes, a path below the root, a URL, or the first of a list of these; None
    where it is not read."""
    if isinstance(value, list):
        value = next((item for item in cast("list[Any]", value) if item), None)
    if isinstance(value, int):
        return None  # a large object: what it holds is not among the columns
    if not isinstance(value, str):
        return bytes(value) if value is not None else None
    try:
        return reader.read(value, "url" if "://" in value or value[:5].lower() == "data:" else "path")
    except MediaError:
        return None


def caption_of(row: Mapping[str, Any], column: str | None) -> str:
    """The first two texts of a row, but for the column of its pictures."""
    words = [str(value) for name, value in row.items() if isinstance(value, str) and name not in ("score", column)]
    return " · ".join(words[:2])[:80]
