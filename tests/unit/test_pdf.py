"""PDFs: pages and their words, and the refusals; a document costs what it may, and no more."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pytest
from fpdf import FPDF
from PIL import Image

from pgembed.documents.lines import Word
from pgembed.documents.pdf import Pdf, PdfLimits, is_pdf
from pgembed.errors import InvalidInput, MediaError
from tests.documents import pdf, pdf_of_grey

TWO = pdf(["The harbour at night\nTwo boats and a lamp", "steam engine"])
ON_LINUX = pytest.mark.skipif(sys.platform != "linux", reason="Only Linux tells how much memory a process had.")


def ink(picture: Image.Image, word: Word) -> tuple[float, float]:
    """The share of dark pixels inside of a word's box, and in the whole of the rest."""
    dark = np.asarray(picture.convert("L")) < 128
    left, top, width, height = (round(share * side) for share, side in zip(word.box, picture.size * 2, strict=True))
    inside = dark[top : top + height, left : left + width]
    return float(inside.mean()), float((dark.sum() - inside.sum()) / (dark.size - inside.size))


def peak_memory(document: Pdf) -> int:
    """The most bytes that the document's process had in memory."""
    child = document._caller._child  # pyright: ignore[reportPrivateUsage]
    assert child is not None
    status = Path(f"/proc/{child._process.pid}/status").read_text()  # pyright: ignore[reportPrivateUsage]
    (kilobytes,) = re.findall(r"VmHWM:\s+(\d+) kB", status)
    return int(kilobytes) * 1024


def test_pages_are_drawn_at_the_size_that_is_asked_for() -> None:
    with Pdf(TWO) as document:
        assert document.pages == 2
        picture = document.draw(1, 900)
        assert picture.mode == "RGB"
        assert picture.height == 900
        assert picture.width == pytest.approx(900 / 2**0.5, abs=2)
        assert document.draw(1, 1800).height == 1800
    with Pdf(TWO, PdfLimits(max_pixels=10_000)) as document:
        picture = document.draw(2, 5000)
        assert 9_000 < picture.width * picture.height <= 10_000


def test_words_stand_in_their_boxes() -> None:
    with Pdf(TWO) as document:
        assert [word.text for word in document.words(1)] == ["The harbour at night", "Two boats and a lamp"]
        (word,) = document.words(2)
        assert word.text == "steam engine"
        inside, outside = ink(document.draw(2, 1600), word)
        assert inside > 0.1
        assert outside < 0.0001


@pytest.mark.parametrize("turned", [90, 180, 270])
def test_words_of_a_turned_page_stand_in_their_boxes(turned: int) -> None:
    made = FPDF(unit="pt", format=(300, 500))
    made.set_font("helvetica", size=20)
    made.add_page()
    made.text(30, 100, "a steam engine")
    data = bytes(made.output()).replace(b"/Type /Page\n", b"/Type /Page /Rotate %d\n" % turned)
    with Pdf(data) as document:
        picture = document.draw(1, 1000)
        assert (picture.width > picture.height) is (turned != 180)
        (word,) = document.words(1)
        inside, outside = ink(picture, word)
        assert inside > 0.1
        assert outside < 0.0001


def test_letters_of_all_languages_come_back() -> None:
    made = FPDF()
    made.add_page()
    made.set_font("helvetica", size=14)
    made.cell(text="Größe, façade, 50 £")
    with Pdf(bytes(made.output())) as document:
        assert [word.text for word in document.words(1)] == ["Größe, façade, 50 £"]


def test_a_page_without_a_text_layer_has_no_words() -> None:
    with Pdf(pdf([Image.new("RGB", (100, 100), "red")])) as document:
        assert document.words(1) == []
        assert document.draw(1, 200).getpixel((100, 20)) == (255, 0, 0)


@pytest.mark.parametrize(
    ("data", "limits", "message"),
    [
        (pdf(["x"], password="secret"), PdfLimits(), "encrypted, and opens with a password only"),
        (TWO[:400], PdfLimits(), "broken: pdfium cannot open it"),
        (b"%PDF-1.7 no more", PdfLimits(), "broken: pdfium cannot open it"),
        (TWO, PdfLimits(max_pages=1), "has 2 pages, and the limit is 1. Split it, or raise max_pages"),
        (TWO, PdfLimits(max_bytes=1000), r"bytes or more, and the limit is 1,000"),
    ],
)
def test_what_cannot_be_read_is_refused_with_its_reason(data: bytes, limits: PdfLimits, message: str) -> None:
    with pytest.raises(MediaError, match=message):
        Pdf(data, limits)


def test_a_page_that_is_not_there_is_refused() -> None:
    with Pdf(TWO) as document, pytest.raises(InvalidInput, match=r"has no page 3. Its pages are 1 to 2"):
        document.draw(3, 100)


def test_what_is_no_pdf_is_told_apart() -> None:
    assert is_pdf(TWO)
    assert is_pdf(b"\n\n" + TWO)
    assert not is_pdf(b"\x89PNG\r\n\x1a\n")


def test_a_page_that_takes_too_long_fails_alone() -> None:
    made = FPDF(unit="pt")
    made.add_page()
    made._out("0 0 m 500 800 l 20 700 500 30 60 400 c S\n" * 1_000_000)  # pyright: ignore[reportPrivateUsage]
    made.add_page()
    made.set_font("helvetica", size=14)
    made.cell(text="the second page")
    with Pdf(bytes(made.output()), PdfLimits(seconds=1)) as document:
        with pytest.raises(MediaError, match=r"Page 1 of the PDF .* took more than 1 s"):
            document.draw(1, 3000)
        assert [word.text for word in document.words(2)] == ["the second page"]


@ON_LINUX
def test_an_enormous_picture_on_a_page_is_drawn_in_bounded_memory() -> None:
    with Pdf(pdf_of_grey(20_000)) as document:
        assert document.draw(1, 1000).getpixel((300, 300)) == (200, 200, 200)
        assert peak_memory(document) < 300e6


@ON_LINUX
def test_a_page_that_takes_more_memory_than_it_may_fails_alone() -> None:
    with Pdf(TWO, PdfLimits(max_pixels=700_000_000)) as document:
        with pytest.raises(MediaError, match=r"Page 1 of the PDF .* memory"):
            document.draw(1, 28_000)
        assert [word.text for word in document.words(2)] == ["steam engine"]


@ON_LINUX
@pytest.mark.slow
def test_two_thousand_pages_are_read_in_bounded_memory() -> None:
    data = pdf([f"page {number} of a long book\n" + "words and more words\n" * 5 for number in range(1, 2001)])
    with Pdf(data) as document:
        assert document.pages == 2000
        document.draw(1, 256)
        before = peak_memory(document)
        for page in range(1, 2001):
            assert document.words(page)[0].text == f"page {page} of a long book"
            if page % 10 == 0:
                assert document.draw(page, 256).height == 256
        assert peak_memory(document) < before + 60e6
