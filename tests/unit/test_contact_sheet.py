"""Contact sheets: what stands in them, and that nothing a row holds can break them."""

from __future__ import annotations

import re
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image as Pictures

from pgembed import Image, Text, Vector
from pgembed.contact_sheet import Hit, Panel, Part, draw, parts_of, thumbnail, to_html, write_contact_sheet
from pgembed.contact_sheet.panel import sign_of
from pgembed.contact_sheet.png import WIDTH
from pgembed.errors import InvalidInput
from pgembed.media import MediaPolicy, MediaReader

CAT = Path(__file__).parent.parent / "data" / "photos" / "cat.jpg"


def panel(**changes: object) -> Panel:
    given: dict[str, object] = {
        "title": "Words to picture",
        "hits": [Hit(CAT.read_bytes(), "Chelsea the cat", 0.8765)],
        "query": [Part("a cat")],
        "sql": "SELECT title FROM photograph",
    }
    return Panel(**{**given, **changes})  # type: ignore[arg-type]


def png(mode: str, colour: object, size: tuple[int, int] = (40, 20)) -> bytes:
    data = BytesIO()
    Pictures.new(mode, size, colour).save(data, "PNG")  # type: ignore[arg-type]
    return data.getvalue()


def test_html_shows_title_query_hits_scores_and_sql() -> None:
    page = to_html([panel()], "Results")
    for expected in ("<title>Results</title>", "Words to picture", "a cat", "Chelsea the cat", "0.876", "SELECT title"):
        assert expected in page


def test_html_needs_no_other_file_and_no_network() -> None:
    page = to_html([panel(query=[Part(Pictures.new("RGB", (9, 9)))])])
    assert page.count('src="data:image/webp;base64,') == 2
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert "url(" not in page
    assert "@import" not in page


def test_html_escapes_all_that_comes_from_rows_and_people() -> None:
    nasty = '<script>alert("x")</script>'
    page = to_html(
        [panel(title=nasty, note=nasty, sql=nasty, query=[Part(nasty)], hits=[Hit(CAT.read_bytes(), nasty, 1.0)])],
        nasty,
    )
    assert "<script" not in page
    assert 'alert("' not in page


def test_html_has_a_dark_and_a_print_form() -> None:
    page = to_html([panel()])
    assert "prefers-color-scheme: dark" in page
    assert "@media print" in page


@pytest.mark.parametrize("form", [to_html, draw])
def test_a_row_without_picture_or_with_a_broken_one_is_still_shown(form: object) -> None:
    hits = [Hit(None, "none"), Hit(b"no picture at all", "broken", 0.5), Hit(CAT.read_bytes(), "cat", 0.4)]
    sheet = form([panel(hits=hits)], "Results")  # type: ignore[operator]
    if isinstance(sheet, str):
        assert "no picture" in sheet
        assert "cannot be shown" in sheet


@pytest.mark.parametrize("hits", [0, 1, 8, 9, 40])
def test_picture_is_as_high_as_its_hits_need(hits: int) -> None:
    data = CAT.read_bytes()
    sheet = draw([panel(hits=[Hit(data, f"cat {number}", 0.5) for number in range(hits)])], "Results")
    rows = -(-hits // 8)
    assert sheet.width == WIDTH
    assert rows * 200 < sheet.height < 700 + rows * 320


def test_picture_shows_the_hits_pixels() -> None:
    sheet = draw([panel(hits=[Hit(png("RGB", (200, 0, 0), (50, 50)), "red", 1.0)])], "Results")
    assert sum(count for count, colour in sheet.getcolors(1 << 24) or [] if colour == (200, 0, 0)) > 10_000


def test_picture_writes_letters_its_face_lacks_without_failing() -> None:
    sheet = draw([panel(title="Château − Łódź × 東京", hits=[Hit(CAT.read_bytes(), "Ω" * 300, 1.0)])], "größer")
    assert sheet.width == WIDTH


def test_thumbnail_is_small_upright_and_on_white() -> None:
    assert thumbnail(png("RGBA", (0, 0, 0, 0))).getpixel((5, 5)) == (255, 255, 255)
    assert max(thumbnail(png("RGB", "red", (2000, 1000))).size) == 320
    turned = BytesIO()
    exif = Pictures.Exif()
    exif[0x0112] = 6
    Pictures.new("RGB", (40, 20), "red").save(turned, "JPEG", exif=exif)
    assert thumbnail(turned.getvalue()).size == (20, 40)


def test_query_is_shown_as_it_was_composed() -> None:
    query = Image(CAT) + 0.8 * Text("in the snow") - Text("asleep")
    with MediaReader(MediaPolicy(any_path=True)) as reader:
        parts = parts_of(query, reader)
    assert isinstance(parts[0].content, Pictures.Image)
    assert [part.content for part in parts[1:]] == ["in the snow", "asleep"]
    assert [sign_of(part, first=number == 0) for number, part in enumerate(parts)] == ["", "+ 0.8 ×", "−"]


def test_a_vector_in_a_query_is_named_by_its_length() -> None:
    with MediaReader() as reader:
        assert parts_of(Vector([1.0, 0.0, 0.0]), reader) == [Part("a vector of 3", 1.0)]


def test_sheet_is_written_as_its_suffix_says(tmp_path: Path) -> None:
    write_contact_sheet([panel()], tmp_path / "out.html")
    write_contact_sheet([panel()], tmp_path / "out.PNG")
    assert (tmp_path / "out.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    assert Pictures.open(tmp_path / "out.PNG").format == "PNG"


def test_another_suffix_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"out\.pdf"):
        write_contact_sheet([panel()], tmp_path / "out.pdf")
    assert not list(tmp_path.iterdir())
