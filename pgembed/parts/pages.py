"""``pages``: the pages of a PDF, a picture of one, or an HTML page as a screen shows it.

Each is a part ``page``, seen and read: its picture is encoded, its words are its content, and the box of each line
stands in its location.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pgembed.decoding.picture import Limits
from pgembed.decoding.pool import ProcessPool
from pgembed.documents.html import HtmlLimits, is_html, printed, screens
from pgembed.documents.lines import Word, text_of
from pgembed.documents.ocr import ocr
from pgembed.documents.pdf import Pdf, PdfLimits, is_pdf
from pgembed.encoders.base import Encoder, Modality
from pgembed.parts.base import Part, Splitter
from pgembed.parts.options import checked
from pgembed.parts.tiles import GRID, SECONDS, Grid, tiles, with_words

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

Words = Literal["auto", "layer", "ocr", "none"]
READ_AT = 1754  # pixels of the longest side of a page that is read: A4 at 150 dots an inch
CUT_AT = 2200  # and of one that is cut into tiles
SHORT = 50  # letters: a text layer of fewer may be a stamp on a scan, so that the page is read too


@dataclass(frozen=True)
class PageOptions:
    """What attach(parts => …) says.

    ``words`` are those of a PDF's text layer (``layer``), read from the page's picture (``ocr``), the layer's where it
    says more than a few (``auto``), or ``none``. ``tiles`` adds the tiles of each page, in a grid as ``across`` and
    ``overlap`` say. ``html`` is what a ``screen`` shows that is ``width`` pixels wide, or what a ``print`` has.
    """

    words: Words = "auto"
    tiles: bool = False
    across: int = Grid.across
    overlap: float = Grid.overlap
    max_pages: int = PdfLimits.max_pages
    html: Literal["screen", "print"] = "screen"
    width: int = HtmlLimits.width


class PageSplitter(Splitter):
    """PDFs, pictures and HTML: a part ``page`` for each page, and with ``tiles`` the parts ``tile`` of each.

    A document has all of its pages, or the row fails and says why.
    """

    modalities: ClassVar[frozenset[Modality]] = frozenset(("text", "image", "screenshot"))

    def __init__(self, options: PageOptions) -> None:
        self._options = options
        self._grid = Grid(options.across, options.overlap) if options.tiles else None
        self._ocr = ocr() if options.words in {"auto", "ocr"} else None
        self._pictures = ProcessPool(1, SECONDS)

    @classmethod
    def load(cls, options: Mapping[str, Any]) -> Self:
        """Raises InvalidInput for an option that there is not, MissingExtra where words are read without rapidocr."""
        known = {
            "words": ("auto", "layer", "ocr", "none"),
            "tiles": bool,
            **GRID,
            "max_pages": (1, 50_000),
            "html": ("screen", "print"),
            "width": (200, 4000),
        }
        return cls(PageOptions(**checked("pages", options, known)))

    def split(self, value: str | bytes, encoder: Encoder, limits: Limits) -> Iterator[Part]:
        """The pages in their order, each followed by its tiles. A text is HTML."""
        if isinstance(value, str) or is_html(value):
            page = HtmlLimits(width=self._options.width, max_bytes=min(HtmlLimits.max_bytes, limits.max_bytes))
            if self._options.html == "print":
                yield from self._pdf(printed(value, page), encoder, limits)
                return
            for number, screen in enumerate(screens(value, page), start=1):
                yield from self._picture(number, screen, encoder, limits)
        elif is_pdf(value):
            yield from self._pdf(value, encoder, limits)
        else:
            yield from self._picture(1, value, encoder, limits)

    def _picture(self, number: int, data: bytes, encoder: Encoder, limits: Limits) -> Iterator[Part]:
        picture = self._pictures.decode(data, limits)
        return self._page(number, lambda _: picture, [], encoder)

    def _pdf(self, data: bytes, encoder: Encoder, limits: Limits) -> Iterator[Part]:
        allowed = PdfLimits(limits.max_bytes, self._options.max_pages, min(PdfLimits.max_pixels, limits.max_pixels))
        with Pdf(data, allowed) as document:
            for number in range(1, document.pages + 1):
                layer = document.words(number) if self._options.words in {"auto", "layer"} else []
                yield from self._page(number, partial(document.draw, number), layer, encoder)

    def _page(
        self, number: int, draw: Callable[[int], Picture], layer: Sequence[Word], encoder: Encoder
    ) -> Iterator[Part]:
        """One page: ``draw`` gives its picture, whose longest side has so many pixels."""
        pixels = max(encoder.page_pixels, CUT_AT if self._grid is not None else 0)
        words, picture = layer, None
        if self._ocr is not None and (self._options.words == "ocr" or _letters(layer) < SHORT):
            picture = draw(max(pixels, READ_AT))
            words = max(self._ocr.words(picture, shown=f"of page {number}"), layer, key=_letters)
        if picture is None and (self._grid is not None or not (words and encoder.reads_words)):
            picture = draw(pixels)
        place = {"page": number}
        yield with_words("page", place, picture, words, encoder)
        if self._grid is not None and picture is not None:
            yield from tiles(picture, self._grid, words, encoder, place)


def _letters(words: Sequence[Word]) -> int:
    """How many letters and digits there are; those of a font that says nothing about them are none."""
    return sum(unicodedata.category(character)[0] in "LN" for character in text_of(words))
