"""Lines of text with their boxes: what a PDF's text layer and a reader of pictures give alike."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Box = tuple[float, float, float, float]
DIGITS = 4  # of a share: a tenth of a pixel of a screen
SLACK = 0.3  # of its height, by which a line may reach into the one above it


@dataclass(frozen=True)
class Word:
    """What stands in one line, or in one column of it: its text, its box (left, top, width and height, in shares of the
    page or picture), and how sure it is, from 0 to 1."""

    text: str
    box: Box
    confidence: float = 1.0


def box_around(left: float, top: float, right: float, bottom: float) -> Box:
    """The box within these edges, in shares, cut off at those of the page."""
    left, top, right, bottom = (min(max(edge, 0.0), 1.0) for edge in (left, top, right, bottom))
    return tuple(round(share, DIGITS) for share in (left, top, right - left, bottom - top))  # pyright: ignore[reportReturnType]


def in_reading_order(words: Sequence[Word], shape: tuple[int, int]) -> list[Word]:
    """Pieces joined to lines, and lines in the order in which they are read: column by column where there are columns.

    ``shape`` is the picture's width and height in pixels. Pieces of one line are those that stand beside each other at
    a distance of less than twice their height. The order is that of a recursive X-Y cut (Nagy and Seth, 1984) at the
    widest gap: what one from side to side parts is read from top to bottom, what one from top to bottom parts from left
    to right.
    """
    aspect = shape[0] / shape[1]
    return _cut(_joined(words, aspect), aspect) if words else []


def _joined(words: Sequence[Word], aspect: float) -> list[Word]:
    lines: list[Word] = []
    for word in sorted(words, key=lambda word: word.box[0]):
        left, top, _, height = word.box
        for number, line in enumerate(lines):
            line_left, line_top, line_width, line_height = line.box
            overlap = min(top + height, line_top + line_height) - max(top, line_top)
            gap = (left - line_left - line_width) * aspect
            if overlap > 0.5 * max(height, line_height) and abs(gap) < 2 * min(height, line_height):
                lines[number] = _pair(line, word)
                break
        else:
            lines.append(word)
    return lines


def _pair(first: Word, second: Word) -> Word:
    (a, b, c, d), (e, f, g, h) = first.box, second.box
    box = box_around(min(a, e), min(b, f), max(a + c, e + g), max(b + d, f + h))
    return Word(f"{first.text} {second.text}", box, min(first.confidence, second.confidence))


def _cut(words: list[Word], aspect: float) -> list[Word]:
    gaps = {axis: _gaps(words, axis) for axis in (0, 1)}
    across, down = (max((gap for gap, _ in gaps[axis]), default=-1.0) for axis in (0, 1))
    axis, widest = (0, across) if across * aspect > max(down, 0.0) else (1, down)
    places = sorted(place for gap, place in gaps[axis] if gap >= widest / 2 or widest <= 0)
    if not places:
        return sorted(words, key=lambda word: (word.box[1], word.box[0]))
    groups: list[list[Word]] = [[] for _ in range(len(places) + 1)]
    for word in words:
        groups[bisect_right(places, word.box[axis])].append(word)
    return [word for group in groups for word in _cut(group, aspect)]


def _gaps(words: list[Word], axis: int) -> list[tuple[float, float]]:
    """The gaps along an axis, 0 from left to right and 1 from top to bottom: how wide, and where each ends.

    One is below zero where boxes overlap a little, as those of narrow lines do.
    """
    found: list[tuple[float, float]] = []
    ordered = sorted(words, key=lambda word: word.box[axis])
    end = ordered[0].box[axis] + ordered[0].box[axis + 2]
    for word in ordered[1:]:
        start, length = word.box[axis], word.box[axis + 2]
        gap = start - end
        if start > ordered[0].box[axis] and (gap >= 0 or (axis == 1 and -gap < SLACK * length)):
            found.append((gap, start))
        end = max(end, start + length)
    return found


def text_of(words: Sequence[Word]) -> str:
    """The lines as one text, a line each: what a part keeps as its content."""
    return "\n".join(re.sub(r"\s+", " ", word.text) for word in words)


def matching_boxes(content: str | None, location: Mapping[str, Any], words: str) -> list[Box]:
    """Where on its page an answer has one of these words: the boxes of those lines, in shares of the page.

    ``content`` and ``location`` are those of the answer, whose ``lines`` are the boxes of the content's lines. Words
    are compared without regard to case, as wholes.
    """
    wanted = {word.casefold() for word in re.findall(r"\w+", words)}
    lines: Sequence[Box] = location.get("lines") or ()
    return [
        (box[0], box[1], box[2], box[3])
        for line, box in zip((content or "").split("\n"), lines, strict=False)
        if wanted & {word.casefold() for word in re.findall(r"\w+", line)}
    ]
