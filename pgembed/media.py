"""Bytes, a path or a URL -> a decoded RGB picture. Every limit and guard against hostile media is here.

What a database holds is data: a path in it may point anywhere, a URL at the cloud's metadata server, bytes at a bomb.
So paths are opened only below a root, URLs only when switched on and never to a private address (pgembed.download), and
the size of a picture is read from its header before its pixels are. Whatever goes wrong is one MediaError.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from PIL import Image

from pgembed.download import Downloader, reason, too_long
from pgembed.errors import MediaError
from pgembed.inputs import SourceKind, shown_source

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "AVIF", "HEIF", "TIFF", "BMP", "JPEG2000", "PPM", "ICO", "QOI")  # no program
_TURNED = {  # EXIF orientation -> how to set the picture upright
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip
_ORIENTATION = 0x0112
_LOOKS_LIKE = (  # first bytes -> what to call it
    (rb"\x89PNG|\xff\xd8\xff|GIF8|RIFF....WEBP|II\*\0|MM\0\*", "a broken picture"),
    (rb"%PDF", "a PDF"), (rb"%!PS", "PostScript"), (rb"8BPS", "a Photoshop file"),
    (rb"....ftyp(heic|heix|mif1|hevc)", "a HEIC picture"), (rb"....ftyp|\x1aE\xdf\xa3", "a video"),
    (rb"PK\x03\x04", "a ZIP archive"), (rb"\x1f\x8b", "gzip"), (rb"version https://git-lfs", "a Git LFS pointer"),
    (rb"(?i)\s*(<\?xml.{0,1000}?)?(<!--.{0,1000}?-->\s*)?(<!doctype svg.{0,1000}?)?<svg", "an SVG drawing"),
    (rb"(?i)\s*<(!doctype )?html", "an HTML page"), (rb"data:[a-z]+/", "a data: URL"),
)  # fmt: skip
_HINTS = {
    "a HEIC picture": "Install pillow-heif and register it with Pillow.",
    "an SVG drawing": "Draw it to pixels first, as PNG.",
    "a PDF": "Draw its pages to pixels first, as PNG.",
}
_LATER = {errno.ENOENT, errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EMFILE, errno.ENFILE, errno.EAGAIN}


@dataclass(frozen=True)
class Limits:
    """What one picture may cost. Pillow's own limit of pixels (``Image.MAX_IMAGE_PIXELS``, twice) holds as well."""

    max_bytes: int = 64 * 1024 * 1024
    max_pixels: int = 100_000_000
    timeout: float = 20.0  # seconds, for the whole of a download
    max_redirects: int = 3


@dataclass(frozen=True)
class MediaPolicy:
    """What may be read. The default is bytes alone.

    ``media_root`` is the folder below which paths may lie; ``any_path`` takes every path, as the person at the keyboard
    may: never set it for what comes from a database. ``allow_private`` lets URLs lead to this machine and its network.
    """

    media_root: Path | None = None
    any_path: bool = False
    allow_urls: bool = False
    allow_http: bool = False
    allow_private: bool = False
    limits: Limits = field(default_factory=Limits)


class MediaReader:
    """Reads pictures under one policy and keeps its connections; threads may share it. Close it, or use ``with``."""

    def __init__(self, policy: MediaPolicy | None = None) -> None:
        self.policy = policy or MediaPolicy()
        self._downloader = Downloader(
            allow_http=self.policy.allow_http,
            allow_private=self.policy.allow_private,
            max_bytes=self.policy.limits.max_bytes,
            timeout=self.policy.limits.timeout,
            max_redirects=self.policy.limits.max_redirects,
        )

    def open(self, source: str | bytes | Picture, kind: SourceKind) -> Picture:
        """Read and decode one picture, as RGB and upright. Raises MediaError."""
        if isinstance(source, Image.Image):
            return _as_rgb(source, self.policy.limits, shown_source(source))
        return decode_picture(
            self.read(source, kind), self.policy.limits, shown=shown_source(source, url=kind == "url")
        )

    def read(self, source: str | bytes, kind: SourceKind) -> bytes:
        """The bytes of one picture file, not decoded. Raises MediaError."""
        shown = shown_source(source, url=kind == "url")
        if kind == "bytes" and not isinstance(source, str):
            if len(source) > self.policy.limits.max_bytes:
                raise too_long(shown, len(source), self.policy.limits.max_bytes)
            return bytes(source)
        if isinstance(source, str) and kind == "path":
            return _read_path(source, self.policy, shown)
        if isinstance(source, str) and kind == "url":
            if not self.policy.allow_urls:
                switched_off = f"The picture {shown} is a URL, and URLs are switched off."
                raise MediaError(switched_off, "Switch them on: --allow-urls")
            return self._downloader.get(source)
        raise MediaError(f"The picture {shown} is {type(source).__name__}, not {kind}.")

    def close(self) -> None:
        """Close the connections that are kept."""
        self._downloader.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_media(source: str | bytes, kind: SourceKind, policy: MediaPolicy | None = None) -> bytes:
    """The bytes of one picture file. Raises MediaError."""
    with MediaReader(policy) as reader:
        return reader.read(source, kind)


def open_picture(source: str | bytes | Picture, kind: SourceKind, policy: MediaPolicy | None = None) -> Picture:
    """Read and decode one picture to RGB, upright: ``open_picture(image.source, image.kind)``. Raises MediaError."""
    with MediaReader(policy) as reader:
        return reader.open(source, kind)


def decode_picture(data: bytes, limits: Limits | None = None, *, shown: str | None = None) -> Picture:
    """Decode the bytes of a picture file to RGB: first frame, upright, transparent parts on white. Raises MediaError.

    ``shown`` is what messages call the picture.
    """
    shown = shown or shown_source(data)
    if not data:
        raise MediaError(f"The picture {shown} is empty.")
    Image.init()
    formats = [name for name in _FORMATS if name in Image.OPEN]
    try:
        picture = Image.open(BytesIO(data), formats=formats)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise MediaError(f"The picture {shown} has more pixels than Pillow opens.", "Store it smaller.") from None
    except MemoryError:
        raise _no_memory(shown) from None
    except Exception:  # a hostile file makes Pillow raise nearly anything
        looks = _looks_like(data)
        raise MediaError(f"The picture {shown} cannot be read: it looks like {looks}.", _HINTS.get(looks)) from None
    return _as_rgb(picture, limits or Limits(), shown)


def _as_rgb(picture: Picture, limits: Limits, shown: str) -> Picture:
    try:
        for _ in ("by its header", "as decoded"):
            if not picture.width or not picture.height:
                raise MediaError(f"The picture {shown} is {picture.width} x {picture.height} pixels: nothing to see.")
            if picture.width * picture.height > limits.max_pixels:
                size = f"{picture.width} x {picture.height} pixels, more than {limits.max_pixels:,}"
                raise MediaError(f"The picture {shown} has {size}.", "Store it smaller, or raise the limit of pixels.")
            picture.load()
        turned = _TURNED.get(_orientation(picture))
        upright = picture if turned is None else picture.transpose(turned)
        return _flattened(upright)
    except MediaError:
        raise
    except MemoryError:
        raise _no_memory(shown) from None
    except Exception as error:  # a hostile file makes Pillow raise nearly anything
        raise MediaError(f"The picture {shown} cannot be decoded: {reason(error)}.") from error


def _flattened(picture: Picture) -> Picture:
    """Any mode -> RGB, of full range and on white."""
    if picture.mode.startswith("I") or picture.mode == "F":
        return Image.fromarray(_as_bytes(np.asarray(picture))).convert("RGB")
    if picture.mode in {"RGBA", "LA", "PA", "RGBa", "La"} or "transparency" in picture.info:
        if picture.mode == "La":
            picture = picture.convert("LA")
        picture = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
    return picture.convert("RGB")


def _as_bytes(values: np.ndarray[Any, Any]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """16 bits, 32 bits or floats -> 8 bits: integers over 255 count as 16 bits, floats over 1 by their range."""
    if values.dtype.kind == "f":
        finite = np.nan_to_num(values.astype(np.float32), nan=0.0, posinf=0.0, neginf=0.0)
        low, high = min(float(finite.min()), 0.0), max(float(finite.max()), 1.0)
        return ((finite - low) * (255 / (high - low))).round().astype(np.uint8)
    wide = values.dtype.itemsize == 2 or int(values.max()) > 255
    return np.clip(values >> 8 if wide else values, 0, 255).astype(np.uint8)


def _orientation(picture: Picture) -> int:
    try:
        return picture.getexif().get(_ORIENTATION, 1)
    except Exception:  # broken EXIF says nothing about the pixels
        return 1


def _read_path(source: str, policy: MediaPolicy, shown: str) -> bytes:
    try:
        descriptor = _open_path(source, policy, shown)
        with os.fdopen(descriptor, "rb") as file:
            facts = os.fstat(descriptor)
            if not stat.S_ISREG(facts.st_mode):
                raise MediaError(f"The picture {shown} is not a file but a folder, a pipe or a device.")
            if facts.st_size > policy.limits.max_bytes:
                raise too_long(shown, facts.st_size, policy.limits.max_bytes)
            data = file.read(policy.limits.max_bytes + 1)
    except (OSError, ValueError) as error:
        later = isinstance(error, OSError) and error.errno in _LATER
        raise MediaError(f"The picture {shown} could not be opened: {reason(error)}.", transient=later) from None
    if len(data) > policy.limits.max_bytes:
        raise too_long(shown, len(data), policy.limits.max_bytes)
    return data


def _open_path(source: str, policy: MediaPolicy, shown: str) -> int:
    """A descriptor of the file, which lies below the media root however links are changed meanwhile."""
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
    if policy.any_path:
        _require_file(os.stat(source), shown)
        return os.open(source, flags)
    if policy.media_root is None:
        raise MediaError(f"The picture {shown} is a path, and no media root is set.", "Set one: --media-root DIR")
    outside = MediaError(f"The picture {shown} is outside the media root '{policy.media_root}'.")
    if ".." in Path(source).parts:
        raise outside
    root = os.path.realpath(policy.media_root)
    resolved = os.path.realpath(os.path.join(root, source))
    if os.path.commonpath([root, resolved]) != root:
        raise outside
    _require_file(os.stat(resolved), shown)
    # The resolved path holds no links: one that is met now was put there since, and the opening fails.
    *folders, name = Path(resolved).relative_to(root).parts
    at = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for folder in folders:
            inner = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=at)
            os.close(at)
            at = inner
        return os.open(name, flags | os.O_NOFOLLOW, dir_fd=at)
    finally:
        os.close(at)


def _require_file(facts: os.stat_result, shown: str) -> None:
    """Opening a device may already do something, so it is asked before, too."""
    if not stat.S_ISREG(facts.st_mode):
        raise MediaError(f"The picture {shown} is not a file but a folder, a pipe or a device.")


def _looks_like(data: bytes) -> str:
    for pattern, name in _LOOKS_LIKE:
        if re.match(pattern, data[:2048], re.DOTALL):
            return name
    try:
        text = data[:512].decode()
    except UnicodeDecodeError as error:
        text = data[: error.start].decode() if error.start > 500 else "\0"
    return "text" if all(character.isprintable() or character.isspace() for character in text) else "unknown data"


def _no_memory(shown: str) -> MediaError:
    return MediaError(f"The picture {shown} does not fit into memory.", "Use fewer threads.", transient=True)
