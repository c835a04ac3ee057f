"""The pictures below a folder, with what their files tell: the rows of ``pgembed demo --folder DIR``."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import ExifTags, Image

from pgembed.errors import InvalidInput, MediaError
from pgembed.media import Limits, decode_picture

SUFFIXES = frozenset(
    ".jpg .jpeg .jpe .jfif .png .webp .gif .bmp .tif .tiff .avif .heic .heif .jp2 .j2k .ppm .pgm .qoi".split()  # noqa: SIM905
)
DRAFT = (320, 320)  # pixels that are enough to see that a JPEG is whole
LYING_ON_A_SIDE = {5, 6, 7, 8}  # EXIF orientations that swap width and height
BATCH = 64


@dataclass(frozen=True)
class FolderPicture:
    """One picture file. ``path`` is relative to the folder; the size is that of the upright picture."""

    path: str
    taken_at: datetime | None
    width: int
    height: int
    bytes: int
    camera: str | None


@dataclass(frozen=True)
class Skipped:
    """A file that looked like a picture and is none, or cannot be taken, and why."""

    path: str
    reason: str


def picture_files(folder: Path, leave_out: Path | None = None) -> list[str]:
    """Paths, relative to the folder, of all files below it that are named like pictures, in order.

    Hidden folders and ``leave_out`` are left out, and links to folders are not followed. Raises InvalidInput where it
    is no folder.
    """
    if not folder.is_dir():
        raise InvalidInput(f"'{folder}' is not a folder.", "Give one that holds pictures.")
    found: list[str] = []
    for place, folders, files in os.walk(folder):
        inner = (name for name in folders if not name.startswith("."))
        folders[:] = sorted(name for name in inner if leave_out is None or not _same(Path(place, name), leave_out))
        for name in sorted(files):
            if Path(name).suffix.lower() in SUFFIXES and not name.startswith("."):
                found.append(os.path.relpath(os.path.join(place, name), folder))
    return found


def _same(one: Path, other: Path) -> bool:
    return os.path.realpath(one) == os.path.realpath(other)


def scan(folder: Path, files: list[str], limits: Limits | None = None) -> Iterator[FolderPicture | Skipped]:
    """Read each file, in threads, and yield what it is, in order."""
    root, bounds = Path(os.path.realpath(folder)), limits or Limits()
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as threads:
        for start in range(0, len(files), BATCH):  # a caller who stops early should not wait for all the rest
            yield from threads.map(partial(_read, root, bounds), files[start : start + BATCH])


def _read(root: Path, limits: Limits, path: str) -> FolderPicture | Skipped:
    try:
        path.encode()
    except UnicodeEncodeError:
        return Skipped(os.fsencode(path).decode(errors="replace"), "its name is not UTF-8")
    real = Path(os.path.realpath(root / path))
    if not real.is_relative_to(root):
        return Skipped(path, "a link that leads out of the folder")
    try:
        if not real.is_file():
            return Skipped(path, "not a file, or a link to nothing")
        size = real.stat().st_size
        if size > limits.max_bytes:
            return Skipped(path, f"{size:,} bytes, more than {limits.max_bytes:,}")
        data = real.read_bytes()
    except OSError as error:
        return Skipped(path, error.strerror or str(error))
    try:
        return _facts(path, data, limits)
    except MediaError as error:
        return Skipped(path, error.message.removeprefix(f"The picture '{path}' ").rstrip("."))


def _facts(path: str, data: bytes, limits: Limits) -> FolderPicture:
    """Raises MediaError where a worker could not decode it either."""
    try:
        with Image.open(BytesIO(data)) as picture:
            width, height = picture.size
            if width * height > limits.max_pixels:
                raise ValueError("too many pixels")
            exif = picture.getexif()
            picture.draft("RGB", DRAFT)
            picture.load()
    except Exception:  # a broken file makes Pillow raise nearly anything: the reader's own words say what is wrong
        upright = decode_picture(data, limits, shown=f"'{path}'")
        return FolderPicture(path, None, upright.width, upright.height, len(data), None)
    if exif.get(ExifTags.Base.Orientation) in LYING_ON_A_SIDE:
        width, height = height, width
    return FolderPicture(path, _taken_at(exif), width, height, len(data), _camera(exif))


def _taken_at(exif: Image.Exif) -> datetime | None:
    details: dict[int, Any] = {}
    with suppress(Exception):  # broken EXIF says nothing about the pixels
        details = exif.get_ifd(ExifTags.IFD.Exif)
    for value in (details.get(ExifTags.Base.DateTimeOriginal), exif.get(ExifTags.Base.DateTime)):
        with suppress(ValueError):
            return datetime.strptime(_text(value)[:19], "%Y:%m:%d %H:%M:%S")
    return None


def _camera(exif: Image.Exif) -> str | None:
    """Maker and model, the maker once: ``Canon EOS R6``."""
    maker, model = _text(exif.get(ExifTags.Base.Make)), _text(exif.get(ExifTags.Base.Model))
    name = model if not maker or model.lower().startswith(maker.lower().split()[0]) else f"{maker} {model}"
    return name.strip() or None


def _text(value: object) -> str:
    """EXIF text without the zero bytes that some cameras fill it up with, and which Postgres does not take."""
    return str(value or "").replace("\0", " ").strip()
