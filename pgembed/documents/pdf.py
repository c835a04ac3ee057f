"""PDFs: how many pages, a page as a picture, and the words of its own text layer. pypdfium2 reads them, in a process.

A document has a process to itself, so that a hostile one harms neither the worker nor another document.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Self

from PIL import Image

from pgembed.documents.calls import Caller
from pgembed.documents.lines import Word
from pgembed.errors import InvalidInput, MediaError, MissingExtra
from pgembed.media_errors import too_long
from pgembed.shown import shown_source

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

SIGNATURE = b"%PDF-"
WITHIN = 1024  # bytes at the beginning, somewhere in which the signature stands


@dataclass(frozen=True)
class PdfLimits:
    """What one PDF may cost. ``seconds`` are of computing, for opening it and for each page of it."""

    max_bytes: int = 64 * 1024 * 1024
    max_pages: int = 5000
    max_pixels: int = 25_000_000  # of one page
    seconds: float = 30.0


def is_pdf(data: bytes) -> bool:
    """Whether the bytes of a file are those of a PDF."""
    return SIGNATURE in data[:WITHIN]


class Pdf:
    """An open PDF; close it, or use ``with``. Pages are numbered from 1 on.

    Raises MediaError where it is encrypted, broken or too large, MissingExtra without pypdfium2.
    """

    def __init__(self, data: bytes, limits: PdfLimits | None = None, *, shown: str | None = None) -> None:
        if find_spec("pypdfium2") is None:
            raise MissingExtra("Reading a PDF", "pages")
        self._limits = limits or PdfLimits()
        self._shown = f"The PDF {shown or shown_source(data)}"
        if len(data) > self._limits.max_bytes:
            raise too_long(shown or shown_source(data), len(data), self._limits.max_bytes)
        self._data = data
        self._caller = Caller("pgembed.documents.pdf_process")
        try:
            self.pages = self._open()
            if self.pages > self._limits.max_pages:
                raise MediaError(
                    f"{self._shown} has {self.pages:,} pages, and the limit is {self._limits.max_pages:,}.",
                    "Split it, or raise max_pages.",
                )
        except BaseException:
            self.close()
            raise

    def draw(self, page: int, pixels: int) -> Picture:
        """A page as an RGB picture on white whose longest side has so many pixels, or fewer where the whole would have
        more than the limit. Raises MediaError."""
        arguments = {"pixels": pixels, "max_pixels": self._limits.max_pixels}
        size, data = self._call("draw", page, arguments)
        return Image.frombytes("RGB", (size[0], size[1]), bytes(data))

    def words(self, page: int) -> list[Word]:
        """The lines of the page's text layer with their boxes, in the order of the file. Raises MediaError."""
        found, _ = self._call("words", page, {})
        return [Word(text, (box[0], box[1], box[2], box[3])) for text, box in found]

    def _call(self, function: str, page: int, arguments: dict[str, Any]) -> tuple[Any, bytearray]:
        if not 1 <= page <= self.pages:
            raise InvalidInput(f"{self._shown} has no page {page}.", f"Its pages are 1 to {self.pages}.")
        if not self._caller.is_running:  # another page ended it
            self._open()
        shown = f"Page {page} of the {self._shown.removeprefix('The ')}"
        return self._caller.call(function, shown, self._limits.seconds, b"", {"page": page, **arguments})

    def _open(self) -> int:
        pages, _ = self._caller.call("open", self._shown, self._limits.seconds, self._data, {"shown": self._shown})
        return pages

    def close(self) -> None:
        """End its process."""
        self._caller.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
