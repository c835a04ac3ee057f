"""Documents in a table: their pages and tiles are encoded, found by look and by words, and each answer says where."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

import pgembed
from pgembed import Screenshot, Text
from pgembed.documents import chromium
from pgembed.documents.lines import matching_boxes
from tests.chromium import chromium as any_chromium
from tests.conftest import NO_CHROMIUM, Connection, cannot_be_had
from tests.documents import pdf, screen
from tests.full_server import NotAvailable

PHOTOS = Path(__file__).parents[1] / "data/photos"
SHOP = screen(900, 500, {(40, 60): "A pair of red shoes", (40, 160): "Add to the basket"})
TRAINS = screen(900, 500, {(40, 60): "The museum of steam engines", (40, 160): "is open on Sunday"})


def png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def conn(database: Connection) -> Connection:
    database.execute("CREATE TABLE document (id bigint PRIMARY KEY, file bytea, html text)")
    return database


@pytest.fixture
def db(conn: Connection, database_dsn: str) -> Iterator[pgembed.Pgembed]:
    with pgembed.connect(database_dsn) as db:
        db.add_encoder("lite", "builtin:lite")
        db.add_encoder("words", "ocr+builtin:lite")
        yield db


def add(conn: Connection, key: int, file: bytes) -> None:
    conn.execute("INSERT INTO document (id, file) VALUES (%s, %s)", [key, file])


def stored(conn: Connection, table: str) -> list[tuple[object, ...]]:
    query = f"SELECT id, kind, location - 'lines', content FROM {table} ORDER BY id, part"
    return conn.execute(query.encode()).fetchall()


def test_pages_of_a_pdf_are_found_with_their_words_in_their_place(db: pgembed.Pgembed, conn: Connection) -> None:
    add(conn, 1, pdf(["Boats in the harbour and a lamp\nthat burns all night long, and longer", "A red shoe\n" * 9]))
    add(conn, 2, pdf(["How to repair a steam engine\nin a hundred and twenty easy steps, or more"]))
    db.attach("document", "pages", encoder="words", screenshot="file", parts="pages")
    assert db.work(until_idle=True)
    assert [row[:3] for row in stored(conn, "document_pages")] == [
        (1, "page", {"page": 1}), (1, "page", {"page": 2}), (2, "page", {"page": 1}),
    ]  # fmt: skip
    best = db.search("document", Text("a steam engine"), limit=1)[0]
    assert (best.id, best.kind, best.location["page"]) == (2, "page", 1)
    (box,) = matching_boxes(best.content, best.location, "engine")
    assert box[1] == pytest.approx(0.05, abs=0.03)
    assert db.search("document", Text("shoes"), limit=1)[0].location["page"] == 2
    assert db.hybrid("document", "harbour lamp", limit=1)[0].id == 1


def test_a_screenshot_finds_screenshots(db: pgembed.Pgembed, conn: Connection) -> None:
    add(conn, 1, png(SHOP))
    add(conn, 2, png(TRAINS))
    add(conn, 3, png(Image.new("RGB", (300, 200), "grey")))
    db.attach("document", "look", encoder="lite", screenshot="file", parts={"kind": "tiles", "words": "ocr"})
    db.attach("document", "words", encoder="words", screenshot="file")
    db.work(until_idle=True)
    assert [row.key for row in db.failures("document")] == [["3"]]
    assert "has no words that 'ocr+builtin:lite' could read" in db.failures("document")[0].error
    for embedding in ("look", "words"):
        found = db.search("document", Screenshot(png(TRAINS)), embedding=embedding, limit=2)
        assert found[0].id == 2
        assert found[0].score == pytest.approx(1, abs=1e-3)
    by_words = db.search("document", Text("buy shoes"), embedding="words", limit=1)
    assert [row.id for row in by_words] == [1]
    assert {kind for _, kind, _, _ in stored(conn, "document_look")} == {"whole", "tile"}
    (row,) = db.search("document", Text("steam engines") + Screenshot(png(TRAINS)), embedding="words", limit=1)
    assert row.id == 2


def test_one_bad_document_stops_no_other(db: pgembed.Pgembed, conn: Connection) -> None:
    good = pdf(["A long text about boats in the harbour, and about a lamp that burns"])
    for key, file in enumerate([good, pdf(["x"], password="secret"), good[:300], b"words", png(SHOP)], start=1):
        add(conn, key, file)
    db.attach("document", "pages", encoder="lite", image="file", parts={"kind": "pages", "words": "layer"})
    db.work(until_idle=True)
    assert sorted({int(str(row[0])) for row in stored(conn, "document_pages")}) == [1, 5]
    told = {failure.key[0]: failure.error for failure in db.failures("document")}
    assert sorted(told) == ["2", "3", "4"]
    assert "is encrypted, and opens with a password only" in told["2"]
    assert "is broken: pdfium cannot open it" in told["3"]
    assert "it looks like text" in told["4"]


def test_a_changed_document_has_its_new_pages(db: pgembed.Pgembed, conn: Connection) -> None:
    add(conn, 1, pdf([f"page {number} is about number {number}, and about little else" for number in range(1, 6)]))
    db.attach("document", "pages", encoder="lite", image="file", parts={"kind": "pages", "words": "layer"})
    db.work(until_idle=True)
    assert len(stored(conn, "document_pages")) == 5
    conn.execute("UPDATE document SET file = %s", [pdf(["one page, which is all that there is left of it now"])])
    db.work(until_idle=True)
    assert [(location, content) for _, _, location, content in stored(conn, "document_pages")] == [
        ({"page": 1}, "one page, which is all that there is left of it now")
    ]
    assert db.verify("document", sample=None).ok


@pytest.fixture
def real_chromium(monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        monkeypatch.setenv(chromium.VARIABLE, any_chromium())
    except NotAvailable as reason:
        cannot_be_had(NO_CHROMIUM, reason)


@pytest.mark.usefixtures("real_chromium")
def test_html_is_found_by_its_look_and_its_words(db: pgembed.Pgembed, conn: Connection) -> None:
    page = "<!doctype html><body style='font: 30px sans-serif'><p>A pair of red shoes</p></body>"
    other = "<!doctype html><body style='background: black; color: white'><h1>The steam engine museum</h1></body>"
    for key, html in ((1, page), (2, other)):
        conn.execute("INSERT INTO document VALUES (%s, %s, %s)", [key, html.encode(), html])
    db.attach("document", "pages", encoder="lite", text="html", parts="pages")
    db.work(until_idle=True)
    assert [(row[0], row[3]) for row in stored(conn, "document_pages")] == [
        (1, "A pair of red shoes"), (2, "The steam engine museum"),
    ]  # fmt: skip
    assert db.search("document", Text("a dark picture") + Text("steam engine"), limit=2)
    assert db.hybrid("document", "museum", limit=1)[0].id == 2
    db.attach("document", "files", encoder="lite", screenshot="file", parts="pages")
    db.work(until_idle=True)
    assert [row[3] for row in stored(conn, "document_files")] == ["A pair of red shoes", "The steam engine museum"]
