"""The program of a process that reads one PDF for another, and may die of it."""

from __future__ import annotations

import ctypes
import math
from typing import Any

from pgembed.documents.calls import serve
from pgembed.documents.lines import box_around
from pgembed.errors import MediaError

MEMORY = 1024 * 1024 * 1024  # bytes that a document may take
GRID = 1_000_000  # parts of a page's width and height, in which pdfium tells a place


class Reader:
    """One document, and what is asked of it."""

    def __init__(self) -> None:
        self._document: Any = None

    def open(self, data: bytearray, shown: str) -> tuple[int, bytes]:
        """Its number of pages."""
        import pypdfium2
        from pypdfium2.raw import FPDF_ERR_PASSWORD, FPDF_ERR_SECURITY

        try:
            self._document = pypdfium2.PdfDocument(bytes(data))
        except pypdfium2.PdfiumError as error:
            if error.err_code in {FPDF_ERR_PASSWORD, FPDF_ERR_SECURITY}:
                told = f"{shown} is encrypted, and opens with a password only."
                raise MediaError(told, "Store it without a password.") from None
            raise MediaError(f"{shown} is broken: pdfium cannot open it.", "Store it anew.") from None
        self._document.init_forms()  # what was filled in is drawn too
        return len(self._document), b""

    def draw(self, data: bytearray, page: int, pixels: int, max_pixels: int) -> tuple[tuple[int, int], bytes]:
        """Width and height, and three bytes a pixel."""
        opened = self._page(page)
        try:
            width, height = opened.get_size()
            if not (0 < width < math.inf and 0 < height < math.inf):
                raise MediaError(f"Page {page} of the PDF is {width:g} x {height:g} points: nothing to see.")
            scale = min(pixels / max(width, height), math.sqrt(max_pixels / (width * height)))
            while math.ceil(width * scale) * math.ceil(height * scale) > max_pixels:
                scale *= 0.99
            picture = opened.render(scale=scale, rev_byteorder=True, limit_image_cache=True).to_pil()
            return picture.size, picture.convert("RGB").tobytes()
        finally:
            opened.close()

    def words(self, data: bytearray, page: int) -> tuple[list[tuple[str, Any]], bytes]:
        """The lines of the text layer, each with its box."""
        opened = self._page(page)
        text = opened.get_textpage()
        try:
            return list(_lines(opened, text)), b""
        finally:
            text.close()
            opened.close()

    def _page(self, number: int) -> Any:  # noqa: ANN401
        import pypdfium2

        try:
            return self._document[number - 1]
        except pypdfium2.PdfiumError:
            raise MediaError(f"Page {number} of the PDF is broken: pdfium cannot load it.", "Store it anew.") from None


def _lines(page: Any, text: Any) -> Any:  # noqa: ANN401
    """Lines as the layer parts them: each its text and its box. Characters without a place, such as the spaces that
    pdfium puts between words, belong to the line they stand in."""
    from pypdfium2 import raw

    pdfium: Any = raw  # made of C's headers: its functions have no types
    units: list[int] = []
    edges: list[tuple[float, float, float, float]] = []
    count = text.count_chars()
    for index in range(count + 1):
        unit = int(pdfium.FPDFText_GetUnicode(text, index)) if index < count else ord("\n")
        if unit not in {ord("\r"), ord("\n")}:
            units.append(ord("-") if unit in {0x02, 0xFFFE} else unit)  # a hyphen at the end of a line
            if (edge := _edges(page, text, index)) is not None:
                edges.append(edge)
            continue
        line = " ".join(_decoded(units).split())
        if line and edges:
            lefts, tops, rights, bottoms = zip(*edges, strict=True)
            yield line, box_around(min(lefts), min(tops), max(rights), max(bottoms))
        units, edges = [], []


def _decoded(units: list[int]) -> str:
    """UTF-16, or code points above it, as text that Postgres keeps."""
    text = "".join(chr(unit) for unit in units if 0x20 <= unit <= 0x10FFFF)
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _edges(page: Any, text: Any, index: int) -> tuple[float, float, float, float] | None:  # noqa: ANN401
    """Left, top, right and bottom of a character, in shares of the page as it is shown, turned and cut."""
    from pypdfium2 import raw

    pdfium: Any = raw
    left, right, bottom, top = (ctypes.c_double() for _ in range(4))
    if pdfium.FPDFText_IsGenerated(text, index) == 1 or not pdfium.FPDFText_GetCharBox(
        text, index, left, right, bottom, top
    ):
        return None
    corners: list[tuple[float, float]] = []
    for x, y in ((left, top), (right, bottom)):
        across, down = ctypes.c_int(), ctypes.c_int()
        pdfium.FPDF_PageToDevice(page, 0, 0, GRID, GRID, 0, x, y, across, down)
        corners.append((across.value / GRID, down.value / GRID))
    (a, b), (c, d) = corners
    return min(a, c), min(b, d), max(a, c), max(b, d)


def main() -> None:
    """Serve on standard input and output."""
    reader = Reader()
    serve({"open": reader.open, "draw": reader.draw, "words": reader.words}, MEMORY)
