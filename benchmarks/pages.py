"""What documents cost a worker: time a page, and the most memory that it and its processes have at once.

A book of 2,000 pages with a text layer; scanned pages, whose words are read; a picture of 100 million pixels in tiles,
read too; and HTML, where there is a Chromium. Each is a row of its own, encoded with builtin:lite.
"""

from __future__ import annotations

import io
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
from fpdf import FPDF
from PIL import Image, ImageDraw

import pgembed
from benchmarks.common import Figure, Report, arguments, fresh_database
from pgembed.documents.chromium import found_chromium
from pgembed.errors import MediaError

MOST_MB = 2000  # a worker stays under 2 GB
LINE = "the quick brown fox jumps over the lazy dog near the harbour, number {}"


@dataclass(frozen=True)
class Document:
    """A file, how it is taken apart, and how many pages it has."""

    name: str
    make: Callable[[int], bytes]
    options: Mapping[str, Any]
    pages: int
    quick: int


DOCUMENTS = (
    Document("PDF with a text layer", lambda pages: book(pages), {"words": "layer"}, 2000, 200),
    Document("the same, with 15 tiles a page", lambda pages: book(pages), {"words": "layer", "tiles": True}, 40, 4),
    Document("scanned PDF, read", lambda pages: scans(pages), {"words": "ocr"}, 10, 2),
    Document("picture of 10,000 x 10,000, read", lambda _: large(), {"words": "ocr", "tiles": True}, 1, 1),
    Document("HTML", lambda _: html(), {"words": "none"}, 1, 1),
)


def main() -> int:
    args = arguments(__doc__)
    report = Report("pages", as_json=args.json)
    rows: list[dict[str, Any]] = []
    with fresh_database() as dsn, pgembed.connect(dsn) as db:
        db.add_encoder("lite", "builtin:lite")
        for document in DOCUMENTS:
            if document.name == "HTML" and not has_chromium():
                continue
            pages = document.quick if args.quick else document.pages
            seconds, parts, peak = work(db, dsn, document.make(pages), document.options)
            rows.append(
                {
                    "document": document.name,
                    "pages": pages,
                    "parts": parts,
                    "s a page": seconds / pages,
                    "peak MB": round(peak),
                }
            )
    report.table("Documents in a worker, with builtin:lite", rows)
    return report.finish(Figure("peak_mb", max(row["peak MB"] for row in rows), MOST_MB))


def work(db: pgembed.Pgembed, dsn: str, file: bytes, options: Mapping[str, Any]) -> tuple[float, int, float]:
    """Seconds until a document has its parts, how many there are, and the most megabytes meanwhile."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("CREATE TABLE document (id int PRIMARY KEY, file bytea)")
        conn.execute("INSERT INTO document VALUES (1, %s)", [file])
        db.attach("document", "pages", encoder="lite", image="file", parts={"kind": "pages", **options})
        began = time.perf_counter()
        with measured() as peak:
            db.work(until_idle=True)
        took = time.perf_counter() - began
        failures = db.failures("document")
        assert not failures, failures
        ((parts,),) = conn.execute("SELECT count(*) FROM document_pages").fetchall()
        db.detach("document")
        conn.execute("DROP TABLE document")
    return took, parts, max(peak)


@contextmanager
def measured() -> Iterator[list[float]]:
    """Megabytes that this process and its children have in memory, every 50 ms; the database server is not counted."""
    found: list[float] = []
    over = threading.Event()

    def sample() -> None:
        while not over.wait(0.05):
            found.append(sum(resident(pid) for pid in family()))

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield found
    finally:
        over.set()
        thread.join()


def family() -> set[int]:
    """This process and those that descend from it, but for Postgres."""
    parents: dict[int, int] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            name, rest = (folder / "stat").read_text().rsplit(")", 1)
        except OSError:
            continue
        if "(postgres" not in name:
            parents[int(folder.name)] = int(rest.split()[1])
    found = {os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found


def resident(pid: int) -> float:
    """Megabytes that a process has in memory, its share of what it has in common with others."""
    try:
        told = re.search(r"^Pss:\s+(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
    except OSError:
        return 0.0
    return int(told[1]) / 1000 if told else 0.0


def book(pages: int) -> bytes:
    """A PDF with 30 lines of text a page."""
    made = FPDF()
    made.set_font("helvetica", size=12)
    for page in range(pages):
        made.add_page()
        made.multi_cell(0, 8, "\n".join(LINE.format(f"{page}.{line}") for line in range(30)))
    return bytes(made.output())


def scans(pages: int) -> bytes:
    """A PDF of pictures of such pages, at 150 dots an inch."""
    made = FPDF()
    for page in range(pages):
        picture = Image.new("RGB", (1240, 1754), "white")
        draw = ImageDraw.Draw(picture)
        for line in range(30):
            draw.text((90, 100 + 50 * line), LINE.format(f"{page}.{line}"), fill="black", font_size=24)
        made.add_page()
        made.image(picture, x=0, y=0, w=made.w)
    return bytes(made.output())


def large() -> bytes:
    """A PNG of 100 million pixels with words all over it."""
    picture = Image.new("RGB", (10_000, 10_000), "white")
    draw = ImageDraw.Draw(picture)
    for line in range(50):
        draw.text((300, 200 + 190 * line), LINE.format(line) * 2, fill="navy", font_size=110)
    file = io.BytesIO()
    picture.save(file, "PNG", compress_level=1)
    return file.getvalue()


def html() -> bytes:
    """A page of two screens."""
    lines = "".join(f"<p>{LINE.format(line)}" for line in range(50))
    return f"<!doctype html><body style='font-family: sans-serif'><h1>A page</h1>{lines}".encode()


def has_chromium() -> bool:
    """Whether HTML can be shown here."""
    try:
        found_chromium()
    except MediaError:
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
