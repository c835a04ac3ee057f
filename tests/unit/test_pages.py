"""Pages and tiles: every page of a document once, tiles over all of a picture, and each word findable in its place."""

from __future__ import annotations

import io
from collections.abc import Iterator
from importlib.metadata import entry_points

import numpy as np
import pytest
from PIL import Image

from pgembed.decoding.picture import Limits
from pgembed.documents import chromium
from pgembed.documents.lines import matching_boxes
from pgembed.documents.ocr import Ocr
from pgembed.encoders import Encoder, load_encoder
from pgembed.errors import InvalidInput, MediaError, MissingExtra
from pgembed.parts import Part, load_splitter
from pgembed.parts.pages import PageSplitter
from pgembed.parts.tiles import Grid, TileSplitter
from tests.chromium import chromium as any_chromium
from tests.conftest import NO_CHROMIUM, cannot_be_had
from tests.documents import pdf, screen
from tests.full_server import NotAvailable

LONG = "The harbour at night, with two boats and a lamp that burns until the morning comes"


@pytest.fixture(scope="module")
def lite() -> Encoder:
    return load_encoder("builtin:lite", {"threads": 1})


@pytest.fixture(scope="module")
def reading() -> Encoder:
    return load_encoder("ocr+builtin:lite", {"threads": 1})


@pytest.fixture
def unread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading words off a picture is an error."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError

    monkeypatch.setattr(Ocr, "words", refuse)


def png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def parts(value: str | bytes, encoder: Encoder, limits: Limits | None = None, **options: object) -> list[Part]:
    return list(load_splitter({"kind": "pages", **options}).split(value, encoder, limits or Limits()))


def picture_of(part: Part) -> Image.Image:
    assert isinstance(part.input, Image.Image)
    return part.input


def test_both_splitters_are_installed() -> None:
    installed = {entry.name: entry.load() for entry in entry_points(group="pgembed.splitters", name="pages")}
    installed |= {entry.name: entry.load() for entry in entry_points(group="pgembed.splitters", name="tiles")}
    assert installed == {"pages": PageSplitter, "tiles": TileSplitter}


@pytest.mark.usefixtures("unread")
def test_every_page_of_a_pdf_is_a_part_with_the_words_of_its_layer(lite: Encoder) -> None:
    found = parts(pdf([f"{LONG}\nand page one", f"{LONG}\nand page two"]), lite)
    assert [(part.kind, part.location["page"], part.content) for part in found] == [
        ("page", 1, f"{LONG}\nand page one"), ("page", 2, f"{LONG}\nand page two"),
    ]  # fmt: skip
    assert picture_of(found[0]).height == lite.page_pixels
    (box,) = matching_boxes(found[1].content, found[1].location, "PAGE")
    picture = picture_of(found[1])
    left, top, width, height = (round(share * side) for share, side in zip(box, picture.size * 2, strict=True))
    assert np.asarray(picture.convert("L"))[top : top + height, left : left + width].min() < 128


@pytest.mark.usefixtures("unread")
def test_an_encoder_that_reads_gets_the_words_of_a_layer(reading: Encoder) -> None:
    found = parts(pdf([LONG]), reading)
    assert [(part.content, part.input) for part in found] == [(LONG, LONG)]


def test_a_page_without_a_layer_is_read(lite: Encoder, reading: Encoder) -> None:
    scan = pdf([screen(800, 1100, {(60, 300): "The museum of steam engines"})])
    for encoder in (lite, reading):
        (part,) = parts(scan, encoder)
        assert part.content == "The museum of steam engines"
        (box,) = matching_boxes(part.content, part.location, "museum")
        assert box[0] == pytest.approx(60 / 800, abs=0.02)
    assert part.input == part.content
    (silent,) = parts(scan, lite, words="layer")
    assert silent.content is None
    assert silent.location == {"page": 1}


def test_a_stamp_on_a_scan_does_not_stand_for_its_words(lite: Encoder) -> None:
    from fpdf import FPDF

    made = FPDF(unit="pt", format="A4")
    made.add_page()
    made.image(
        screen(800, 1100, {(60, 300): "The museum of steam engines", (60, 400): "is open daily"}), x=0, y=0, w=made.w
    )
    made.set_font("helvetica", size=8)
    made.text(20, 20, "Scan 7")
    data = bytes(made.output())
    (part,) = parts(data, lite)
    assert part.content is not None
    assert "The museum of steam engines\nis open daily" in part.content
    (part,) = parts(data, lite, words="layer")
    assert part.content == "Scan 7"


def test_a_screenshot_is_one_page(lite: Encoder) -> None:
    (part,) = parts(png(screen(800, 300, {(30, 40): "Sign in"})), lite)
    assert (part.kind, part.content, part.location["page"]) == ("page", "Sign in", 1)
    assert picture_of(part).size == (800, 300)
    (part,) = parts(png(screen(800, 300, {(30, 40): "Sign in"})), lite, words="none")
    assert (part.content, part.location) == (None, {"page": 1})


def test_tiles_of_a_page_say_where_they_are_and_what_stands_there(lite: Encoder, reading: Encoder) -> None:
    data = pdf([LONG + "\n" * 38 + "The second half speaks of locomotives"])
    page, *tiles = parts(data, lite, tiles=True, across=1, overlap=0.25)
    assert page.kind == "page"
    assert [(tile.kind, tile.location["page"]) for tile in tiles] == [("tile", 1)] * 2
    assert [tile.location["box"][1] for tile in tiles] == [0, pytest.approx(1 - 1 / 2**0.5, abs=0.01)]
    assert [tile.content for tile in tiles] == [LONG, "The second half speaks of locomotives"]
    assert all(tile.location["lines"] == page.location["lines"][n : n + 1] for n, tile in enumerate(tiles))
    assert all(max(picture_of(tile).size) == lite.page_pixels for tile in tiles)
    assert [part.input for part in parts(data, reading, tiles=True, across=1, overlap=0.25)] == [
        f"{LONG}\nThe second half speaks of locomotives", LONG, "The second half speaks of locomotives",
    ]  # fmt: skip


def test_tiles_of_a_picture_are_cut_at_its_own_resolution(lite: Encoder) -> None:
    picture = Image.effect_noise((900, 600), 80).convert("RGB")
    whole, *tiles = TileSplitter.load({"across": 2, "overlap": 0.5}).split(png(picture), lite, Limits())
    assert (whole.kind, whole.location, whole.content) == ("whole", {"box": [0, 0, 1, 1]}, None)
    assert len(tiles) == 8  # squares of 400 pixels, in rows of 4
    for tile in tiles:
        left, top, width, height = (
            round(share * side) for share, side in zip(tile.location["box"], picture.size * 2, strict=True)
        )
        assert picture_of(tile).tobytes() == picture.crop((left, top, left + width, top + height)).tobytes()
        assert (width, height) == (400, 400)


def test_a_tall_screenshot_has_squares_down_its_length(lite: Encoder) -> None:
    picture = screen(400, 2000, {(30, 40): "At the top", (30, 1800): "At the foot"})
    splitter = load_splitter({"kind": "tiles", "across": 1, "overlap": 0.2, "words": "ocr"})
    whole, *tiles = splitter.split(png(picture), lite, Limits())
    assert whole.content == "At the top\nAt the foot"
    assert picture_of(whole).height == lite.page_pixels
    assert [picture_of(tile).size for tile in tiles] == [(400, 400)] * 6
    assert [tile.content for tile in tiles] == ["At the top", *[None] * 4, "At the foot"]


@pytest.mark.parametrize("size", [(1, 1), (10, 3000), (64, 64), (900, 600), (1200, 20_000), (1, 100_000), (333, 1000)])
@pytest.mark.parametrize("grid", [Grid(), Grid(1, 0.0), Grid(2, 0.25), Grid(16, 0.75)])
def test_tiles_cover_all_of_a_picture(size: tuple[int, int], grid: Grid) -> None:
    covered = np.zeros(size[::-1], dtype=bool)
    boxes = grid.boxes(*size)
    for left, top, right, bottom in boxes:
        assert 0 <= left < right <= size[0]
        assert 0 <= top < bottom <= size[1]
        covered[top:bottom, left:right] = True
    assert covered.all() or not boxes
    assert len(set(boxes)) == len(boxes) != 1
    if size == (900, 600) and grid == Grid():
        assert len(boxes) == 15  # squares of 300 pixels, five in a row


@pytest.fixture
def real_chromium(monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        monkeypatch.setenv(chromium.VARIABLE, any_chromium())
    except NotAvailable as reason:
        cannot_be_had(NO_CHROMIUM, reason)


@pytest.mark.usefixtures("real_chromium")
def test_html_is_shown_screen_by_screen_or_printed(lite: Encoder) -> None:
    page = f"<!doctype html><body><h1>{LONG}</h1><div style='height:1200px'></div><h1>At the foot</h1>"
    for value in (page, page.encode()):
        top, foot = parts(value, lite)
        assert [part.location["page"] for part in (top, foot)] == [1, 2]
        assert (top.content or "").replace("\n", " ") == LONG
        assert foot.content == "At the foot"
    printed = parts(page, lite, html="print", words="layer")
    assert "At the foot" in "\n".join(part.content or "" for part in printed)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("pages", {"size": 3}, "'pages' has no option 'size'. Its options: words, tiles, across, overlap, max_pages"),
        ("pages", {"words": "all"}, "The option 'words' of 'pages' is 'all'. Give one of auto, layer, ocr, none."),
        ("pages", {"tiles": 1}, "The option 'tiles' of 'pages' is 1. Give true or false."),
        ("pages", {"max_pages": 0}, "The option 'max_pages' of 'pages' is 0. Give a whole number from 1 to 50000."),
        ("tiles", {"across": True}, "The option 'across' of 'tiles' is True. Give a whole number from 1 to 16."),
        ("tiles", {"across": 2.5}, "The option 'across' of 'tiles' is 2.5. Give a whole number from 1 to 16."),
        ("tiles", {"overlap": 0.9}, "The option 'overlap' of 'tiles' is 0.9. Give a number from 0.0 to 0.75."),
        ("tiles", {"overlap": float("nan")}, "The option 'overlap' of 'tiles' is nan"),
    ],
)
def test_options_that_cannot_be_are_refused(kind: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        load_splitter({"kind": kind, **options})
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("value", "limits", "options", "message"),
    [
        (b"words", Limits(), {}, "it looks like text"),
        (b"", Limits(), {}, "is empty"),
        (pdf(["a", "b"]), Limits(), {"max_pages": 1}, "has 2 pages, and the limit is 1"),
        (pdf(["a"], password="secret"), Limits(), {}, "is encrypted"),
        (png(Image.new("L", (20_000, 20_000))), Limits(), {}, "has more pixels than Pillow opens"),
        (pdf(["a"]), Limits(max_bytes=500), {}, "the limit is 500"),
    ],
)
def test_what_cannot_be_read_is_told(
    value: bytes, limits: Limits, options: dict[str, object], message: str, lite: Encoder
) -> None:
    with pytest.raises(MediaError, match=message):
        parts(value, lite, limits, **options)


def test_tiles_take_no_text(lite: Encoder) -> None:
    with pytest.raises(InvalidInput, match="'tiles' takes pictures apart, and the input is a text"):
        list(TileSplitter.load({}).split("words", lite, Limits()))


def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch, lite: Encoder) -> None:
    monkeypatch.setattr("pgembed.documents.pdf.find_spec", lambda _: None)
    with pytest.raises(MissingExtra, match=r"needs the extra 'pages'.*pgembed-multimodal\[pages\]"):
        parts(pdf(["a"]), lite)


@pytest.fixture(autouse=True, scope="module")
def closed() -> Iterator[None]:
    yield
    from pgembed.documents.ocr import ocr

    ocr().close()
