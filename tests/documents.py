"""PDFs, made by fpdf2, and screenshots for the tests."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence

from fpdf import FPDF
from PIL import Image, ImageDraw
from PIL.Image import Image as Picture


def pdf(
    pages: Sequence[str | Picture], *, password: str | None = None, size: tuple[float, float] | None = None
) -> bytes:
    """A PDF of A4, or of a size in points: each page has a text, or a picture and no text layer."""
    made = FPDF(unit="pt", format=size or "A4")
    made.set_auto_page_break(False)
    if password is not None:
        made.set_encryption(owner_password="owner", user_password=password)
    made.set_font("helvetica", size=14)
    for page in pages:
        made.add_page()
        if isinstance(page, str):
            made.multi_cell(0, 20, page, new_x="LMARGIN", new_y="NEXT")
        else:
            made.image(page, x=0, y=0, w=made.w)
    return bytes(made.output())


def pdf_of_grey(side: int) -> bytes:
    """A PDF of one page with a grey picture of so many pixels a side, which is small only as it is packed."""
    packer = zlib.compressobj(1)
    packed = b"".join(packer.compress(b"\xc8" * side) for _ in range(side)) + packer.flush()
    content = b"q 500 0 0 500 0 0 cm /I Do Q"
    objects = [
        b"<</Type/Catalog/Pages 2 0 R>>",
        b"<</Type/Pages/Kids[3 0 R]/Count 1>>",
        b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 500 500]/Resources<</XObject<</I 4 0 R>>>>/Contents 5 0 R>>",
        b"<</Type/XObject/Subtype/Image/Width %d/Height %d/ColorSpace/DeviceGray/BitsPerComponent 8/Filter/FlateDecode"
        b"/Length %d>>stream\n%s\nendstream" % (side, side, len(packed), packed),
        b"<</Length %d>>stream\n%s\nendstream" % (len(content), content),
    ]
    body = b"".join(b"%d 0 obj%s endobj\n" % (number, each) for number, each in enumerate(objects, start=1))
    return b"%PDF-1.4\n" + body + b"trailer<</Root 1 0 R>>\n%%EOF"  # pdfium finds the objects by itself


def screen(width: int, height: int, words: Mapping[tuple[int, int], str]) -> Picture:
    """A screenshot in white with words at places in pixels, and a coloured bar at its foot."""
    made = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(made)
    draw.rectangle((0, height - height // 20, width, height), fill="steelblue")
    for place, text in words.items():
        draw.text(place, text, fill="black", font_size=24)
    return made
