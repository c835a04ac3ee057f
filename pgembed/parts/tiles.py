"""``tiles``: a picture as a whole, and in squares over it that overlap, for what is small on it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pgembed.decoding.picture import Limits
from pgembed.decoding.pool import ProcessPool
from pgembed.documents.lines import Word, box_around, text_of
from pgembed.documents.ocr import Ocr, ocr
from pgembed.encoders.base import Encoder, Modality
from pgembed.errors import InvalidInput
from pgembed.parts.base import Part, Splitter
from pgembed.parts.options import Known, checked

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

SECONDS = 60.0  # of computing, for decoding one picture
SMALLEST = 64  # pixels of a tile's side: less shows nothing, and a strip would have one for each of its pixels
GRID: Known = {"across": (1, 16), "overlap": (0.0, 0.75)}


@dataclass(frozen=True)
class Grid:
    """Squares over a picture: ``across`` of them along its shorter side, each over ``overlap`` of the next one.

    The longer side has as many as it needs: a tall screenshot has squares down its length. Three with half of each
    shared cut a square into nine.
    """

    across: int = 3
    overlap: float = 0.5

    def boxes(self, width: int, height: int) -> list[tuple[int, int, int, int]]:
        """Left, top, right and bottom of each in pixels, row by row; none where one would be the whole picture."""
        shorter = min(width, height)
        side = max(SMALLEST, math.ceil(shorter / (self.across - (self.across - 1) * self.overlap)))
        lefts, tops = (self._starts(length, side) for length in (width, height))
        if len(lefts) * len(tops) == 1:
            return []
        return [(left, top, min(left + side, width), min(top + side, height)) for top in tops for left in lefts]

    def _starts(self, length: int, side: int) -> list[int]:
        count = 1 if length <= side else 1 + math.ceil((length - side) / (side * (1 - self.overlap)) - 1e-6)
        return [round(number * (length - side) / (count - 1)) for number in range(count)] if count > 1 else [0]


class TileSplitter(Splitter):
    """A picture: a part ``whole``, and a part ``tile`` for each square, with its ``box`` on the picture.

    Options: ``across`` (3) and ``overlap`` (0.5) of the grid, and ``words``: ``ocr`` reads what stands on it, ``none``
    (the default) does not.
    """

    modalities: ClassVar[frozenset[Modality]] = frozenset(("image", "screenshot"))

    def __init__(self, grid: Grid, reader: Ocr | None) -> None:
        self._grid = grid
        self._ocr = reader
        self._pictures = ProcessPool(1, SECONDS)

    @classmethod
    def load(cls, options: Mapping[str, Any]) -> Self:
        """Raises InvalidInput for an option that there is not, MissingExtra where words are read without rapidocr."""
        given = checked("tiles", options, {**GRID, "words": ("none", "ocr")})
        reader = ocr() if given.pop("words", "none") == "ocr" else None
        return cls(Grid(**given), reader)

    def split(self, value: str | bytes, encoder: Encoder, limits: Limits) -> Iterator[Part]:
        """The whole, then the squares row by row."""
        if isinstance(value, str):
            raise InvalidInput(
                "'tiles' takes pictures apart, and the input is a text.", "For texts: parts => 'chunks'."
            )
        picture = self._pictures.decode(value, limits)
        words = self._ocr.words(picture) if self._ocr is not None else ()
        yield with_words("whole", {"box": [0, 0, 1, 1]}, picture, words, encoder)
        yield from tiles(picture, self._grid, words, encoder)


def tiles(
    picture: Picture, grid: Grid, words: Sequence[Word], encoder: Encoder, place: Mapping[str, Any] | None = None
) -> Iterator[Part]:
    """The parts ``tile`` of a picture, at its own resolution; ``place`` says of which page it is."""
    width, height = picture.size
    for left, top, right, bottom in grid.boxes(width, height):
        box = box_around(left / width, top / height, right / width, bottom / height)
        inside = [word for word in words if _is_in(word, box)]
        if inside or not (words and encoder.reads_words):
            location = {**(place or {}), "box": list(box)}
            yield with_words("tile", location, picture.crop((left, top, right, bottom)), inside, encoder)


def with_words(
    kind: str, location: Mapping[str, Any], picture: Picture | None, words: Sequence[Word], encoder: Encoder
) -> Part:
    """A part that keeps its words, with the box of each line; its encoder gets the picture, or the words where it reads
    those (a picture is not needed then)."""
    content = text_of(words) or None
    told = location if content is None else {**location, "lines": [list(word.box) for word in words]}
    if content is not None and encoder.reads_words:
        return Part(kind, told, content, content)
    assert picture is not None
    return Part(kind, told, content, shrunk(picture, encoder))


def shrunk(picture: Picture, encoder: Encoder) -> Picture:
    """A picture no larger than its encoder needs it: several wait in memory."""
    longest = max(picture.size)
    if longest <= encoder.page_pixels:
        return picture
    width, height = (max(1, round(side * encoder.page_pixels / longest)) for side in picture.size)
    return picture.resize((width, height), reducing_gap=2.0)


def _is_in(word: Word, box: tuple[float, float, float, float]) -> bool:
    """Whether the middle of a line stands in the box."""
    left, top, width, height = word.box
    return box[0] <= left + width / 2 <= box[0] + box[2] and box[1] <= top + height / 2 <= box[1] + box[3]
