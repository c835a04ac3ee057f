"""Words on pictures: they are read where they stand, in reading order, and what kills the reader fails alone."""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from pgembed.documents.lines import Word, in_reading_order, matching_boxes, text_of
from pgembed.documents.ocr import Ocr, bands, ocr
from pgembed.errors import MediaError
from tests.documents import screen


@pytest.fixture(scope="module")
def reader() -> Iterator[Ocr]:
    made = Ocr()
    yield made
    made.close()


def pid(reader: Ocr) -> int:
    child = reader._caller._child  # pyright: ignore[reportPrivateUsage]
    assert child is not None
    return child._process.pid  # pyright: ignore[reportPrivateUsage]


def test_words_are_read_where_they_stand(reader: Ocr) -> None:
    picture = screen(800, 600, {(40, 50): "Sign in to the shop", (500, 400): "Forgotten password?"})
    first, second = reader.words(picture)
    assert (first.text, second.text) == ("Sign in to the shop", "Forgotten password?")
    for word, (left, top) in ((first, (40, 50)), (second, (500, 400))):
        assert word.box[0] * 800 == pytest.approx(left, abs=8)
        assert word.box[1] * 600 == pytest.approx(top, abs=12)
        assert 0.8 < word.confidence <= 1


def test_a_picture_without_words_has_none(reader: Ocr) -> None:
    assert reader.words(Image.new("RGB", (64, 64), "grey")) == []
    assert reader.words(Image.new("RGB", (1, 1))) == []


def test_every_line_of_a_tall_screenshot_is_read_once(reader: Ocr) -> None:
    places = {(30, 20 + 90 * number): f"Entry number {number} of the list" for number in range(40)}
    picture = screen(700, 3700, places)
    assert len(list(bands(*picture.size))) > 1
    words = reader.words(picture)
    assert [word.text for word in words] == list(places.values())
    for word, (_, top) in zip(words, places, strict=True):
        assert word.box[1] * 3700 == pytest.approx(top, abs=12)


def test_bands_cover_a_picture_once() -> None:
    for width, height in ((1, 1), (700, 3700), (1200, 20_000), (4000, 9000), (20_000, 300)):
        found = list(bands(width, height))
        edges = [0, *(band[1] for band in found)]
        assert [band[0] for band in found] == edges[:-1]
        assert found[-1][1] >= height
        assert all(0 <= upper <= top < lower <= height for top, _, upper, lower in found)
        assert (found[0][2], found[-1][3]) == (0, height)


def test_columns_are_read_one_after_the_other() -> None:
    def line(text: str, left: float, top: float, width: float = 0.3) -> Word:
        return Word(text, (left, top, width, 0.02))

    words = [
        line("title", 0.1, 0.02, 0.8),
        *(line(f"right {number}", 0.6, 0.1 + number * 0.025) for number in range(3)),
        *(line(f"left {number}", 0.1, 0.1 + number * 0.025) for number in range(3)),
        line("foot", 0.1, 0.9, 0.1),
        line("note", 0.22, 0.9, 0.1),
    ]
    assert [word.text for word in in_reading_order(words, (1000, 1000))] == [
        "title", "left 0", "left 1", "left 2", "right 0", "right 1", "right 2", "foot note",
    ]  # fmt: skip


def test_many_lines_are_put_in_order() -> None:
    words = [Word(str(number), (0.1, number / 2000, 0.5, 0.0004)) for number in range(1999)]
    assert in_reading_order(words[::-1], (1000, 40_000)) == words
    apart = [Word(str(number), (number % 3 / 3, number / 2000, 0.3, 0.0001 * (number % 7))) for number in range(1999)]
    assert sorted(in_reading_order(apart, (1000, 40_000)), key=lambda word: int(word.text)) == apart
    assert in_reading_order([], (10, 10)) == []


def test_an_answer_tells_where_its_words_stand() -> None:
    words = [Word("The harbour", (0.1, 0.2, 0.3, 0.1)), Word("at NIGHT", (0.1, 0.4, 0.3, 0.1))]
    location = {"page": 1, "lines": [list(word.box) for word in words]}
    assert matching_boxes(text_of(words), location, "a night") == [(0.1, 0.4, 0.3, 0.1)]
    assert matching_boxes(text_of(words), location, "har") == []
    assert matching_boxes(None, {"page": 1}, "night") == []


def test_a_reader_that_died_is_replaced(reader: Ocr) -> None:
    picture = screen(300, 80, {(10, 20): "Welcome"})
    reader.words(picture)
    before = pid(reader)
    os.kill(before, signal.SIGSEGV)
    with pytest.raises(MediaError, match=r"ended the process that read it \(SIGSEGV\)"):
        reader.words(picture, shown="'a.png'")
    assert text_of(reader.words(picture)) == "Welcome"
    assert pid(reader) != before


def test_a_picture_that_takes_too_long_is_given_up() -> None:
    hasty = Ocr(seconds=0.05)
    with pytest.raises(MediaError, match=r"The picture 'a.png' took more than 0.05 s to read"):
        hasty.words(Image.effect_noise((900, 900), 90).convert("RGB"), shown="'a.png'")
    hasty.close()


@pytest.mark.skipif(sys.platform != "linux", reason="Only Linux tells how much memory a process had.")
def test_a_large_picture_is_read_in_bounded_memory(reader: Ocr) -> None:
    picture = Image.effect_noise((1500, 9000), 60).convert("RGB")
    ImageDraw.Draw(picture).rectangle((100, 4000, 1400, 4200), fill="white")
    reader.words(picture)
    (kilobytes,) = re.findall(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid(reader)}/status").read_text())
    assert int(kilobytes) < 900_000


def test_one_reader_is_shared() -> None:
    assert ocr() is ocr()
