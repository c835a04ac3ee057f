"""A contact sheet as one picture, drawn with Pillow alone."""

from __future__ import annotations

import textwrap
import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw, ImageFont

from pgembed.contact_sheet.panel import Hit, Panel, Part, sign_of, thumbnail, thumbnail_or_none

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

WIDTH = 1760
MARGIN, PADDING, GAP = 48, 32, 20
COLUMNS = 8
CELL = (WIDTH - 2 * MARGIN - 2 * PADDING - (COLUMNS - 1) * GAP) // COLUMNS
CAPTION_HEIGHT, CAPTION_LINE = 78, 23  # two lines of caption, one of score
WORDS_HEIGHT, PICTURES_HEIGHT = 52, 96
MAX_SQL_LINES = 14
GROUND, CARD, INK, SOFT, LINE, ACCENT = "#f6f6f4", "#ffffff", "#1c1c1a", "#6b6b66", "#e2e2dd", "#1d63b8"
SYSTEM_FACES = ("NotoSans-Regular.ttf", "DejaVuSans.ttf", "Arial Unicode.ttf", "Arial.ttf")
SYSTEM_FIXED_FACES = ("DejaVuSansMono.ttf", "LiberationMono-Regular.ttf", "Menlo.ttc", "consola.ttf")

Face = ImageFont.FreeTypeFont | ImageFont.ImageFont


def draw(panels: Sequence[Panel], title: str = "Search results") -> Picture:
    """The whole sheet, 1760 pixels wide and as high as it needs."""
    canvas = _Canvas(_Faces(_all_text(panels, title)))
    canvas.write(title, MARGIN, 40, INK)
    canvas.down(80)
    for panel in panels:
        canvas.panel(panel)
    return canvas.finished()


class _Canvas:
    """A sheet that grows downwards: ``y`` is where the next thing goes."""

    def __init__(self, faces: _Faces) -> None:
        self._faces = faces
        self._image = Image.new("RGB", (WIDTH, 1200), GROUND)
        self._pen = ImageDraw.Draw(self._image)
        self.y: int = MARGIN

    def finished(self) -> Picture:
        return self._image.crop((0, 0, WIDTH, self.y + MARGIN - GAP))

    def down(self, height: int) -> None:
        self.y += height

    def write(self, text: str, x: int, size: int, colour: str, *, fixed: bool = False) -> int:
        """Write one line at ``y``; the x where it ends."""
        text, face = self._faces.writable(text), self._faces.face(size, fixed)
        self._pen.text((x, self.y), text, fill=colour, font=face)
        return x + round(face.getlength(text))

    def panel(self, panel: Panel) -> None:
        sql = self._sql_lines(panel.sql)
        rows = max(1, -(-len(panel.hits) // COLUMNS)) if panel.hits else 0
        height = 2 * PADDING + 42
        height += _query_height(panel.query) + GAP if panel.query else 0
        height += 40 if panel.note or not panel.hits else 0
        height += rows * (CELL + CAPTION_HEIGHT + GAP)
        height += len(sql) * 26 + 20 if sql else 0
        self._grow(height)
        self._pen.rounded_rectangle((MARGIN, self.y, WIDTH - MARGIN, self.y + height), 20, CARD, LINE, 2)
        end, left = self.y + height + GAP, MARGIN + PADDING

        self.down(PADDING)
        self.write(self._faces.fitting(panel.title, 26, WIDTH - 2 * left), left, 26, INK)
        self.down(46)
        if panel.query:
            self._query(panel.query, left)
        note = panel.note or ("" if panel.hits else "Nothing was found.")
        if note:
            self.write(self._faces.fitting(note, 20, WIDTH - 2 * left), left, 20, SOFT)
            self.down(40)
        for start in range(0, len(panel.hits), COLUMNS):
            for column, hit in enumerate(panel.hits[start : start + COLUMNS]):
                self._hit(hit, left + column * (CELL + GAP))
            self.down(CELL + CAPTION_HEIGHT + GAP)
        for line in sql:
            self.write(self._faces.fitting(line, 17, WIDTH - 2 * left, fixed=True), left, 17, SOFT, fixed=True)
            self.down(26)
        self.y = end

    def _sql_lines(self, sql: str) -> list[str]:
        """The lines of a statement, long ones broken, all cut where they are many."""
        width = 100 * (WIDTH - 2 * MARGIN - 2 * PADDING) // max(100, self._faces.width("M" * 100, 17, fixed=True))
        lines: list[str] = []
        for line in sql.strip().splitlines():
            code = line.expandtabs(4).rstrip()
            indent = " " * (len(code) - len(code.lstrip()) + 4)
            lines += textwrap.wrap(code, width, subsequent_indent=indent, drop_whitespace=False) or [""]
        return lines if len(lines) <= MAX_SQL_LINES else [*lines[: MAX_SQL_LINES - 1], "…"]

    def _grow(self, height: int) -> None:
        needed = self.y + height + 2 * MARGIN
        if needed > self._image.height:
            taller = Image.new("RGB", (WIDTH, max(needed, 2 * self._image.height)), GROUND)
            taller.paste(self._image)
            self._image, self._pen = taller, ImageDraw.Draw(taller)

    def _query(self, parts: Sequence[Part], x: int) -> None:
        top, height = self.y, _query_height(parts)
        middle = top + height // 2
        for number, part in enumerate(parts):
            if sign := sign_of(part, first=number == 0):
                self.y = middle - 16
                x = self.write(sign, x, 26, ACCENT) + 14
            if isinstance(part.content, str):
                words = self._faces.fitting(part.content, 22, max(120, WIDTH - MARGIN - PADDING - 40 - x))
                right = x + self._faces.width(words, 22) + 40
                self._pen.rounded_rectangle((x, middle - 24, right, middle + 24), 24, GROUND, LINE, 2)
                self.y = middle - 14
                self.write(words, x + 20, 22, INK)
                x = right + 16
            else:
                self._tile(thumbnail(part.content, height - 8), x, top, height)
                x += height + 16
        self.y = top + height + GAP

    def _hit(self, hit: Hit, x: int) -> None:
        top = self.y
        picture = thumbnail_or_none(hit.picture)
        self._tile(picture, x, top, CELL)
        if picture is None:
            self.y = top + CELL // 2 - 10
            self.write("no picture" if hit.picture is None else "cannot be shown", x + 24, 18, SOFT)
        self.y = top + CELL + 8
        first, *rest = self._faces.wrapped(hit.caption, 18, CELL)
        self.write(first, x, 18, INK)
        self.down(CAPTION_LINE)
        if rest:
            self.write(self._faces.fitting(" ".join(rest), 18, CELL), x, 18, INK)
            self.down(CAPTION_LINE)
        if hit.score is not None:
            self.write(f"{hit.score:.3f}", x, 17, SOFT)
        self.y = top

    def _tile(self, picture: Picture | None, x: int, y: int, size: int) -> None:
        self._pen.rounded_rectangle((x, y, x + size - 1, y + size - 1), 14, "white", LINE, 2)
        if picture is None:
            return
        inner = size - 8
        scale = inner / max(picture.size)
        fitted = picture.resize(
            (max(1, round(picture.width * scale)), max(1, round(picture.height * scale))), Image.Resampling.LANCZOS
        )
        self._image.paste(fitted, (x + (size - fitted.width) // 2, y + (size - fitted.height) // 2))


def _query_height(parts: Sequence[Part]) -> int:
    return WORDS_HEIGHT if all(isinstance(part.content, str) for part in parts) else PICTURES_HEIGHT


def _all_text(panels: Sequence[Panel], title: str) -> str:
    words = [part.content for panel in panels for part in panel.query if isinstance(part.content, str)]
    captions = [hit.caption for panel in panels for hit in panel.hits]
    return "".join([title, *words, *captions, *(panel.title + panel.note for panel in panels)])


class _Faces:
    """The faces of one sheet: Pillow's own where it has all the letters (ASCII), else a system's."""

    def __init__(self, text: str) -> None:
        self._names = () if text.translate(_SIGNS).isascii() else SYSTEM_FACES
        self._loaded: dict[tuple[int, bool], Face] = {}
        self._ascii_only = not isinstance(_first_face(self._names, 20), ImageFont.FreeTypeFont)

    def face(self, size: int, fixed: bool = False) -> Face:
        if (size, fixed) not in self._loaded:
            found = _first_face(SYSTEM_FIXED_FACES if fixed else self._names, size)
            self._loaded[size, fixed] = found or ImageFont.load_default(size)
        return self._loaded[size, fixed]

    def writable(self, text: str) -> str:
        """The text with what the face lacks written otherwise."""
        if not self._ascii_only:
            return text
        bare = unicodedata.normalize("NFKD", text.translate(_SIGNS))
        return "".join(c if c.isascii() else "?" for c in bare if not unicodedata.combining(c))

    def width(self, text: str, size: int, fixed: bool = False) -> int:
        return round(self.face(size, fixed).getlength(self.writable(text)))

    def wrapped(self, text: str, size: int, width: int) -> list[str]:
        """At least one line; the first fits into the width, a second holds the rest."""
        words = text.split() or [""]
        line = words[0]
        if self.width(line, size) > width:  # a file's name, for example: broken anywhere
            end = next(end for end in range(len(line), 0, -1) if end == 1 or self.width(line[:end], size) <= width)
            return [line[:end], " ".join([line[end:], *words[1:]])]
        for number, word in enumerate(words[1:], start=1):
            if self.width(f"{line} {word}", size) > width:
                return [self.fitting(line, size, width), " ".join(words[number:])]
            line = f"{line} {word}"
        return [self.fitting(line, size, width)]

    def fitting(self, text: str, size: int, width: int, fixed: bool = False) -> str:
        """The text, cut with an ellipsis where it is wider than that."""
        if self.width(text, size, fixed) <= width:
            return text
        low, high = 0, len(text)
        while low < high:
            middle = (low + high + 1) // 2
            fits = self.width(f"{text[:middle]}…", size, fixed) <= width
            low, high = (middle, high) if fits else (low, middle - 1)
        return f"{text[:low].rstrip()}…"


_SIGNS = str.maketrans({"−": "-", "×": "x", "–": "-", "—": "-", "…": "...", "’": "'", "‘": "'", "“": '"', "”": '"'})


def _first_face(names: Sequence[str], size: int) -> ImageFont.FreeTypeFont | None:
    for name in names:
        try:
            return ImageFont.truetype(name, size)
        except OSError:
            continue
    return None
