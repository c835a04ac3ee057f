"""What a contact sheet shows: panels of hits, and the parts of a query. No drawing here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from PIL import Image

from pgembed.errors import MediaError
from pgembed.inputs import Expression, Row, Text, Vector
from pgembed.inputs import Image as ImageInput
from pgembed.inputs import Screenshot as ScreenshotInput
from pgembed.media import MediaReader, decode_picture
from pgembed.regions import cut

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

THUMBNAIL = 320  # pixels of the longer side: sharp at the size shown, on dense displays too


@dataclass(frozen=True)
class Part:
    """One input of a query: words, or a picture, and its weight."""

    content: str | Picture
    weight: float = 1.0


@dataclass(frozen=True)
class Hit:
    """One row that was found. ``picture``: a picture file's bytes, a decoded picture, or None where it has none."""

    picture: bytes | Picture | None
    caption: str
    score: float | None = None


@dataclass(frozen=True)
class Panel:
    """One search: what was asked, the SQL that ran, and what came back, best first."""

    title: str
    hits: Sequence[Hit]
    query: Sequence[Part] = ()
    sql: str = ""
    note: str = ""


def parts_of(expression: Expression, reader: MediaReader) -> list[Part]:
    """A query's inputs as parts to show. Raises MediaError for a picture that cannot be read."""
    parts: list[Part] = []
    for term in expression.terms:
        match term.input:
            case Text(text):
                parts.append(Part(text, term.weight))
            case ImageInput() | ScreenshotInput() as picture:
                opened = reader.open(picture.source, picture.kind)
                if picture.box or picture.mask:
                    mask = picture.mask and reader.open(picture.mask.source, picture.mask.kind)
                    opened = cut(opened, picture.box, mask)
                parts.append(Part(thumbnail(opened), term.weight))
            case Vector() as vector:
                parts.append(Part(f"a vector of {vector.dim}", term.weight))
            case Row(key):
                parts.append(Part(f"row {', '.join(map(str, key))}", term.weight))
            case other:
                parts.append(Part(repr(other), term.weight))
    return parts


def thumbnail(picture: bytes | Picture, size: int = THUMBNAIL) -> Picture:
    """A small RGB copy on white; what is decoded already counts as upright. Raises MediaError for other bytes."""
    small = decode_picture(picture) if isinstance(picture, bytes) else picture.copy()
    if "A" in small.getbands() or "transparency" in small.info:
        small = small.convert("RGBA")
        small = Image.alpha_composite(Image.new("RGBA", small.size, "white"), small)
    small = small.convert("RGB")
    small.thumbnail((size, size), Image.Resampling.LANCZOS)
    return small


def thumbnail_or_none(picture: bytes | Picture | None) -> Picture | None:
    """The thumbnail, or None where there is no picture or it cannot be shown."""
    try:
        return None if picture is None else thumbnail(picture)
    except MediaError:
        return None


def sign_of(part: Part, *, first: bool) -> str:
    """What stands before a part: ``+``, ``−``, a weight other than one, or nothing before the first."""
    weight = abs(part.weight)
    number = "" if weight == 1 else f"{weight:g} ×"
    sign = "−" if part.weight < 0 else "" if first else "+"
    return f"{sign} {number}".strip()
