"""Words on a picture, with their boxes: rapidocr reads them, in a process that may die of it.

Its models (PP-OCRv6: Chinese, Japanese and Latin letters) come in its package: nothing is downloaded. A picture on
which the process dies, or that takes too long, raises MediaError; the next one is read by a new process.
"""

from __future__ import annotations

import hashlib
import math
import threading
from collections.abc import Iterator
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from pgembed.documents.calls import Caller
from pgembed.documents.lines import Word, box_around, in_reading_order
from pgembed.errors import MissingExtra
from pgembed.shown import shown_source

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

WIDEST = 2000  # pixels at which lines are looked for; what is wider is looked at smaller, and read as it is
LARGEST = 4096  # pixels of the width at which words are read
BAND_PIXELS = 800_000  # of a tall picture, read at once: the memory of looking for lines grows with them
SHORTEST_BAND = 400
MARGIN = 1 / 8  # of a band's height, above and below it, which is read with it: a line may stand across its edge


class Ocr:
    """Reads words; threads may share it, and wait for one another. Its process starts with the first picture.

    Raises MissingExtra without rapidocr. ``seconds`` are of computing, for a band of a picture.
    """

    def __init__(self, seconds: float = 120.0) -> None:
        if find_spec("rapidocr") is None:
            raise MissingExtra("Reading the words on a picture", "ocr")
        self._seconds = seconds
        self._caller = Caller("pgembed.documents.ocr_process")
        self._lock = threading.Lock()

    def words(self, picture: Picture, *, shown: str | None = None) -> list[Word]:
        """The lines that stand on an RGB picture, in reading order, each with its box and how sure it is; none where
        there are none. Raises MediaError where its process died of the picture."""
        shown = f"The picture {shown or shown_source(picture)}"
        picture = picture.convert("RGB") if picture.mode != "RGB" else picture
        if picture.width > LARGEST:
            height = max(1, round(picture.height * LARGEST / picture.width))
            picture = picture.resize((LARGEST, height), reducing_gap=2.0)
        found: list[Word] = []
        for top, bottom, upper, lower in bands(*picture.size):
            band = picture.crop((0, upper, picture.width, lower))
            with self._lock:
                lines, _ = self._caller.call("words", shown, self._seconds, band.tobytes(), {"width": band.width})
            for text, confidence, (left, above, right, below) in lines:
                middle = upper + (above + below) / 2
                if top <= middle < bottom:  # else the band in which it stands has read it
                    edges = (above + upper) / picture.height, right / picture.width, (below + upper) / picture.height
                    found.append(Word(text, box_around(left / picture.width, *edges), confidence))
        return in_reading_order(found, picture.size)

    def close(self) -> None:
        """End its process."""
        with self._lock:
            self._caller.close()


@cache
def ocr() -> Ocr:
    """The one of this process: splitters and encoders share it, as its models take hundreds of megabytes."""
    return Ocr()


@cache
def models_digest() -> str:
    """SHA-256 of rapidocr's version and models: what decides which words it reads. Raises MissingExtra."""
    found = find_spec("rapidocr")
    if found is None or found.origin is None:
        raise MissingExtra("Reading the words on a picture", "ocr")
    digest = hashlib.sha256(version("rapidocr").encode())
    for file in sorted((Path(found.origin).parent / "models").glob("*.onnx")):
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def bands(width: int, height: int) -> Iterator[tuple[int, float, int, int]]:
    """The bands of a picture from top to bottom: where each begins and ends, and where what is read with it does."""
    scale = max(1.0, width / WIDEST)
    high = max(SHORTEST_BAND * scale, BAND_PIXELS * scale * scale / width)
    count = max(1, round(height / high))
    for number in range(count):
        top, bottom = round(height * number / count), round(height * (number + 1) / count)
        margin = round((bottom - top) * MARGIN)
        last = number + 1 == count
        yield top, math.inf if last else bottom, max(0, top - margin), min(height, bottom + margin)
