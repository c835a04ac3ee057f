"""Where a text may be divided, and under which headings its places stand."""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING

import numpy as np

from pgembed.parts.sentences import sentence_starts

if TYPE_CHECKING:
    from numpy.typing import NDArray

DEEPEST = 6  # levels of headings

_LINE = re.compile(r"\n+")
_WORD = re.compile(r"[\s、，；：]+")


class Rank(IntEnum):
    """How good a place is to divide at; the lower, the better. Headings of level n have the rank n, 1 to 6."""

    BLOCK = DEEPEST + 1  # a paragraph, a definition of code
    ITEM = DEEPEST + 2  # of a list, a table; what blank lines divide in code
    SENTENCE = DEEPEST + 3
    LINE = DEEPEST + 4
    WORD = DEEPEST + 5


@dataclass(frozen=True)
class Heading:
    """A heading that starts at a character of the text; ``level`` is 1 to 6."""

    start: int
    level: int
    title: str


@dataclass
class Outline:
    """A text with its headings, and the places where it may be divided: ``places`` rise, each with its ``ranks``."""

    text: str
    headings: list[Heading]
    places: NDArray[np.int64]
    ranks: NDArray[np.int64]
    title: str | None = None  # of the whole, where it stands outside the text
    _paths: list[tuple[Heading, ...]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._paths = [()]
        open_headings: list[Heading] = []
        for heading in self.headings:
            open_headings = [each for each in open_headings if each.level < heading.level] + [heading]
            self._paths.append(tuple(each for each in open_headings if each.title))
        self._starts = [heading.start for heading in self.headings]

    def path(self, start: int, end: int) -> tuple[Heading, ...]:
        """The headings under which all that stands between two characters is, the outermost first."""
        first, last = bisect_right(self._starts, start), bisect_left(self._starts, end)
        path = self._paths[first]
        for other in self._paths[first + 1 : last + 1]:
            shared = 0
            while shared < min(len(path), len(other)) and path[shared] == other[shared]:
                shared += 1
            path = path[:shared]
        return path


def outline(text: str, headings: Iterable[Heading], places: Iterable[tuple[int, int]]) -> Outline:
    """An outline of a text from its headings and the places of its blocks, each with a rank.

    Sentences, lines and words are added. A heading holds what follows it: no block starts right after one, and where
    nothing stands between two headings, the text is not divided there.
    """
    best: dict[int, int] = {}
    for found, rank in (
        (_WORD.finditer(text), Rank.WORD),
        (_LINE.finditer(text), Rank.LINE),
    ):
        best.update((match.end(), int(rank)) for match in found)
    best.update((place, int(Rank.SENTENCE)) for place in sentence_starts(text))
    for place, rank in places:
        best[place] = min(rank, best.get(place, rank))
    best.pop(0, None)
    best.pop(len(text), None)
    order = np.array(sorted(best), dtype=np.int64)
    ranks = np.array([best[int(place)] for place in order], dtype=np.int64)
    return Outline(text, list(headings), order, ranks)
