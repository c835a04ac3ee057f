"""The picture of README's "Pages and screenshots": this project's pages, printed, a question, and where it is answered.

    python -m tools.found_page [--question "..."]

Each page under docs/ is printed by Chromium as a PDF and put into a table; `ocr+builtin:lite` embeds each printed page
by the words of its text layer. The page found is drawn, with boxes around the lines that have a word of the question.
"""

from __future__ import annotations

import argparse
import os
import re
import tempfile
from contextlib import ExitStack
from pathlib import Path

import psycopg
from markdown_it import MarkdownIt
from PIL import Image, ImageDraw

import pgembed
from pgembed import Text
from pgembed.documents import matching_boxes
from pgembed.documents.html import printed
from pgembed.documents.pdf import Pdf
from pgembed.embedded import EmbeddedServer
from tests.chromium import chromium

ROOT = Path(__file__).parents[1]
TO = ROOT / "docs/images/found-page.png"
QUESTION = "Which rights does the role of a worker need?"
STYLE = (
    "body { font: 11pt/1.45 sans-serif; margin: 2em } code, pre { font-family: monospace; font-size: 9.5pt }"
    " pre { background: #f4f4f4; padding: .7em; white-space: pre-wrap } table { border-collapse: collapse }"
    " td, th { border: 1px solid #ccc; padding: .2em .5em; text-align: left; vertical-align: top }"
)
PIXELS = 1400  # along the longer side of the page that is shown
MARK = (255, 196, 0)


def main() -> None:
    """Draw it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--question", default=QUESTION)
    question: str = parser.parse_args().question
    os.environ.setdefault("PGEMBED_CHROMIUM", chromium())
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        server = stack.enter_context(EmbeddedServer.start(Path(folder) / "data"))
        conn = stack.enter_context(psycopg.connect(server.dsn(), autocommit=True))
        db = stack.enter_context(pgembed.connect(server.dsn()))
        db.install()
        conn.execute("CREATE TABLE page (name text PRIMARY KEY, file bytea)")
        for path in sorted((ROOT / "docs").glob("*.md")):
            conn.execute("INSERT INTO page VALUES (%s, %s)", [path.name, pdf_of(path)])
        db.add_encoder("words", "ocr+builtin:lite")
        db.attach("page", "said", encoder="words", screenshot="file", parts="pages")
        db.work(until_idle=True)
        rows = db.search("page", Text(question), limit=3)
        for row in rows:
            print(f"{row.score:.3f} {row.name}, page {row.location['page']}")
        best = rows[0]
        (file,) = conn.execute("SELECT file FROM page WHERE name = %s", [best.name]).fetchall()[0]
    with Pdf(file) as pdf:
        picture = pdf.draw(best.location["page"], PIXELS)
    telling = " ".join(re.findall(r"\w{5,}", question.lower().replace("which", "")))  # "the" stands in every line
    marked(picture, matching_boxes(best.content, best.location, telling)).save(TO, optimize=True)


def pdf_of(path: Path) -> bytes:
    """A page of documentation, printed."""
    body = MarkdownIt().enable("table").render(path.read_text(encoding="utf-8"))
    return printed(f"<!doctype html><meta charset=utf-8><style>{STYLE}</style>{body}")


def marked(picture: Image.Image, boxes: list[tuple[float, float, float, float]]) -> Image.Image:
    """The picture with frames around boxes, each left, top, width and height in shares of it."""
    drawing = ImageDraw.Draw(picture)
    for left, top, width, height in boxes:
        edges = [left * picture.width - 4, top * picture.height - 3]
        edges += [(left + width) * picture.width + 4, (top + height) * picture.height + 3]
        drawing.rectangle(edges, outline=MARK, width=3)
    return picture


if __name__ == "__main__":
    main()
