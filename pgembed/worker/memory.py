"""What the pictures in a worker's hands may take of memory, from the moment a row is read until it is encoded.

A picture is counted before it is decoded by the size that its header tells, and by what it really takes once it is.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from io import BytesIO
from typing import Any, TypeVar, cast

from PIL import Image, ImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile

from pgembed.decoding.picture import Limits
from pgembed.worker.batch import Row
from pgembed.worker.queue import Work

T = TypeVar("T")

PIXEL_DECODED, PIXEL_DECODING = 4, 8  # bytes: Pillow's RGB, and with the copy that makes it so
UNKNOWN = 12_000_000 * PIXEL_DECODING  # what a picture is taken for whose size no header tells: a camera's
READ_BYTES = 64 * 1024 * 1024  # of pictures' files, read at once; a row that has more is read alone
LIST_FILES = 4  # of the largest size that one picture may have, all together in one row's list
TEXT = 100  # bytes of a path or URL, which does not matter
_HEADERS: tuple[
    tuple[bytes, Callable[[BytesIO], ImageFile.ImageFile]], ...
] = (  # those that Python reads, no C decoder
    (b"\xff\xd8\xff", JpegImageFile),
    (b"\x89PNG\r\n\x1a\n", PngImageFile),
    (b"GIF8", GifImageFile),
)


def parts(items: Iterable[T], size_of: Callable[[T], int], *, most: int, room: int) -> Iterator[list[T]]:
    """Rows in parts that are read at once: at most so many, and as many as their pictures' files leave room for. One
    that has more than there is room is alone."""
    part: list[T] = []
    total = 0
    for item in items:
        size = size_of(item)
        if part and (len(part) == most or total + size > room):
            yield part
            part, total = [], 0
        part.append(item)
        total += size
    if part:
        yield part


def largest_row(work: Work, limits: Limits) -> int:
    """The bytes that a row's pictures may have, all together: one each, or a list."""
    return limits.max_bytes * (LIST_FILES if work.has_lists else len(work.modalities))


class Memory:
    """A bound in bytes, shared by the stages of a session; every method may be called from any thread."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.most = 0  # the most that was held at once
        self._held: dict[int, int] = {}  # bytes by seq
        self._decoding: dict[int, int] = {}  # how many pictures of a seq are not decoded yet
        self._total = 0
        self._changed = threading.Condition()

    def take(self, row: Row, sizes: Sequence[int]) -> bool:
        """Hold so many bytes for each of a row's pictures, which will be decoded now; False where there is no room.

        What is larger than the limit has room where nothing else is held.
        """
        with self._changed:
            if self._total and self._total + sum(sizes) > self.limit:
                return False
            self._decoding[row.seq] = len(sizes)
            self._add(row.seq, sum(sizes))
            return True

    def decoded(self, row: Row, before: int, after: int) -> None:
        """One of a row's pictures is decoded: of what was held for it, so much stays."""
        with self._changed:
            if row.seq in self._decoding:  # it may have been given back meanwhile
                self._decoding[row.seq] -= 1
                self._add(row.seq, after - before)

    def release(self, rows: Iterable[Row]) -> None:
        """Nothing of these rows' inputs is held any more."""
        with self._changed:
            for row in rows:
                self._decoding.pop(row.seq, None)
                self._add(row.seq, -self._held.pop(row.seq, 0))

    def is_decoding(self, rows: Iterable[Row]) -> bool:
        """Whether a picture of these rows is not decoded yet: there will be more room when it is."""
        with self._changed:
            return any(self._decoding.get(row.seq) for row in rows)

    def wait(self, seconds: float) -> None:
        """Wait until there may be more room."""
        with self._changed:
            self._changed.wait(seconds)

    @property
    def held(self) -> int:
        """The bytes that are held."""
        return self._total

    def _add(self, seq: int, size: int) -> None:
        if seq in self._decoding:
            self._held[seq] = self._held.get(seq, 0) + size
        self._total += size
        self.most = max(self.most, self._total)
        self._changed.notify_all()


def size_undecoded(value: str | bytes, most_pixels: int) -> int:
    """What a picture takes while it is decoded, by the header of its file; pictures of more pixels are refused."""
    if isinstance(value, str):
        return TEXT + UNKNOWN
    pixels = _pixels(value)
    return len(value) + (UNKNOWN if pixels is None else min(pixels, most_pixels) * PIXEL_DECODING)


def size_decoded(value: Any) -> int:  # noqa: ANN401
    """What stays of a picture: what an encoder's preprocessing made of it, or the file that is to be taken apart."""
    if isinstance(value, bytes):
        return len(value)
    if isinstance(value, Image.Image):
        return value.width * value.height * PIXEL_DECODED
    if isinstance(value, dict):
        return sum(map(size_decoded, cast("dict[Any, Any]", value).values()))
    if isinstance(value, list | tuple):
        return sum(map(size_decoded, cast("Sequence[Any]", value)))
    return int(getattr(value, "nbytes", 0))


def _pixels(data: bytes) -> int | None:
    """Width times height, where the file's header can be read without a decoder."""
    for start, kind in _HEADERS:
        if data.startswith(start):
            try:
                width, height = kind(BytesIO(data)).size
            except Exception:  # broken: the decoder says so
                return 0
            return width * height
    return None
