"""What pictures in a worker's hands take of memory: counted before they are decoded, and bounded."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from pgembed.cli.app import WrongUsage
from pgembed.cli.work import size_in_bytes
from pgembed.worker.batch import Row
from pgembed.worker.memory import PIXEL_DECODING, UNKNOWN, Memory, size_decoded, size_undecoded

MOST_PIXELS = 100_000_000


def picture(kind: str, size: tuple[int, int] = (300, 200)) -> bytes:
    out = BytesIO()
    Image.new("RGB", size, "red").save(out, kind)
    return out.getvalue()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF"])
def test_a_picture_is_counted_by_the_size_in_its_header(kind: str) -> None:
    data = picture(kind)
    assert size_undecoded(data, MOST_PIXELS) == len(data) + 300 * 200 * PIXEL_DECODING


def test_a_picture_without_a_known_header_is_counted_as_a_cameras() -> None:
    data = picture("WEBP")
    assert size_undecoded(data, MOST_PIXELS) == len(data) + UNKNOWN
    assert size_undecoded("https://example.com/a.jpg", MOST_PIXELS) > UNKNOWN


def test_a_picture_that_will_be_refused_is_counted_up_to_the_limit() -> None:
    data = picture("PNG", (3000, 2000))
    assert size_undecoded(data, 1000) == len(data) + 1000 * PIXEL_DECODING
    assert size_undecoded(b"\x89PNG\r\n\x1a\nbroken", MOST_PIXELS) == 14


def test_a_decoded_picture_is_counted_by_what_the_encoder_made_of_it() -> None:
    array = np.zeros((10, 20, 3), dtype=np.uint8)
    assert size_decoded(array) == 600
    assert size_decoded([array, {"pixels": array}]) == 1200
    assert size_decoded(Image.new("RGB", (10, 20))) == 800
    assert size_decoded("words") == 0


def test_no_more_is_held_than_the_limit_but_one_picture_always() -> None:
    memory = Memory(100)
    first, second, third = (Row(seq, 0) for seq in range(3))
    assert memory.take(first, [60])
    assert not memory.take(second, [60])
    memory.decoded(first, 60, 10)
    assert memory.take(second, [60])
    assert memory.held == 70
    memory.release([first, second])
    assert memory.held == 0
    assert memory.take(third, [1000])  # alone, whatever its size
    assert not memory.take(first, [1])
    assert memory.most == 1000


def test_a_row_of_two_pictures_is_decoded_when_both_are() -> None:
    memory = Memory(100)
    row = Row(1, 0)
    assert memory.take(row, [30, 40])
    memory.decoded(row, 30, 5)
    assert memory.is_decoding([row])
    memory.decoded(row, 40, 0)
    assert not memory.is_decoding([row])
    assert memory.held == 5


def test_what_was_given_back_is_not_counted_when_it_is_decoded() -> None:
    memory = Memory(100)
    row = Row(1, 0)
    assert memory.take(row, [30])
    memory.release([row])
    memory.decoded(row, 30, 20)
    assert memory.held == 0


@pytest.mark.parametrize(
    ("size", "count"),
    [("500MB", 500_000_000), ("2gb", 2_000_000_000), ("1.5 GiB", 1_610_612_736), ("4096", 4096), ("8k", 8_000)],
)
def test_sizes_are_read_as_people_write_them(size: str, count: int) -> None:
    assert size_in_bytes("--max-memory", size) == count


@pytest.mark.parametrize("size", ["", "much", "-1GB", "0", "1XB"])
def test_what_is_no_size_is_refused(size: str) -> None:
    with pytest.raises(WrongUsage, match="--max-memory"):
        size_in_bytes("--max-memory", size)
