"""Contact sheets: results of searches as one picture or one HTML file that needs nothing beside it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pgembed.contact_sheet.html import to_html
from pgembed.contact_sheet.panel import Hit, Panel, Part, parts_of, thumbnail, thumbnail_or_none
from pgembed.contact_sheet.png import draw
from pgembed.errors import InvalidInput

__all__ = [
    "Hit",
    "Panel",
    "Part",
    "draw",
    "parts_of",
    "require_sheet_suffix",
    "thumbnail",
    "thumbnail_or_none",
    "to_html",
    "write_contact_sheet",
]

SUFFIXES = (".html", ".htm", ".png")


def write_contact_sheet(panels: Sequence[Panel], path: Path, title: str = "Search results") -> None:
    """Write ``path``: HTML or PNG by its suffix. Raises InvalidInput for another one."""
    require_sheet_suffix(path)
    if path.suffix.lower() == ".png":
        draw(panels, title).save(path, optimize=True)
    else:
        path.write_text(to_html(panels, title), encoding="utf-8")


def require_sheet_suffix(path: Path) -> None:
    """Raise InvalidInput where ``path`` is named like no kind of sheet."""
    if path.suffix.lower() not in SUFFIXES:
        raise InvalidInput(f"A contact sheet cannot be written as '{path.name}'.", "Name it .html or .png.")
