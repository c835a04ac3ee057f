"""The bytes of a picture file -> a decoded RGB picture, upright and on white. Whatever goes wrong is one MediaError.

The size of a picture is read from its header before its pixels are. What needs a program to be drawn (PostScript, PDF,
SVG) is named and refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from typing import TYPE_CHECKING, Any

from PIL import BmpImagePlugin, IcoImagePlugin, Image, PngImagePlugin

from pgembed.errors import MediaError
from pgembed.media_errors import reason

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image as Picture

_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "AVIF", "HEIF", "TIFF", "BMP", "JPEG2000", "PPM", "ICO", "QOI")  # no program
_TURNED = {  # EXIF orientation -> how to set the picture upright
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip
_ORIENTATION = 0x0112
_ICON, _PNG = b"\0\0\1\0", b"\x89PNG\r\n\x1a\n"
_HEIC = rb"....ftyp(hei[cxms]|hev[cxms]|mif1|msf1)"
_LOOKS_LIKE = (  # first bytes -> what to call it
    (rb"\x89PNG|\xff\xd8\xff|GIF8|RIFF....WEBP|II\*\0|MM\0\*", "a broken picture"),
    (rb"%PDF", "a PDF"), (rb"%!PS", "PostScript"), (rb"8BPS", "a Photoshop file"),
    (_HEIC, "a HEIC picture"), (rb"....ftypavi[fs]", "an AVIF picture"),
    (rb"\0\0\0\x0cJXL |\xff\x0a", "a JPEG XL picture"), (rb"....ftyp|\x1aE\xdf\xa3", "a video"),
    (rb"PK\x03\x04", "a ZIP archive"), (rb"\x1f\x8b", "gzip"), (rb"version https://git-lfs", "a Git LFS pointer"),
    (rb"(?i)\s*(<\?xml.{0,1000}?)?(<!--.{0,1000}?-->\s*)?(<!doctype svg.{0,1000}?)?<svg", "an SVG drawing"),
    (rb"(?i)\s*<(!doctype )?html", "an HTML page"), (rb"data:[a-z]+/", "a data: URL"),
)  # fmt: skip
_PICTURE = "Give a picture file: PNG, JPEG, WebP, GIF, AVIF or TIFF."
_HINTS = {
    "an SVG drawing": "Draw it to pixels first, as PNG.",
    "a PDF": "Draw its pages to pixels first, as PNG, or attach it with parts => 'pages'.",
    "an HTML page": "Attach it with parts => 'pages'.",
    "a JPEG XL picture": "Store it as PNG, JPEG, WebP or AVIF.",
    "text": _PICTURE,
    "unknown data": _PICTURE,
    "a data: URL": 'Keep it in a column of type text, and attach that with "as": "url".',
}
_BAND = 4_000_000  # pixels that are converted at once: a copy of them, not of the whole picture, lies in memory


@dataclass(frozen=True)
class Limits:
    """What one picture may cost. Pillow's own limit of pixels (``Image.MAX_IMAGE_PIXELS``, twice) holds as well."""

    max_bytes: int = 64 * 1024 * 1024
    max_pixels: int = 100_000_000
    timeout: float = 20.0  # seconds, for the whole of a download
    max_redirects: int = 3
    max_parts: int = 64  # pictures in one row's list


def decode_picture(
    data: bytes,
    limits: Limits | None = None,
    *,
    shown: str | None = None,
    announce: Callable[[int], object] | None = None,
) -> Picture:
    """Decode the bytes of a picture file to RGB: first frame, upright, transparent parts on white. Raises MediaError.

    ``shown`` is what messages call the picture. ``announce`` is told how many pixels it has, before they are decoded.
    """
    shown = shown or f"<{len(data):,} bytes {data[:8].hex()}{'…' if len(data) > 8 else ''}>"
    if not data:
        raise MediaError(f"The picture {shown} is empty.")
    limits = limits or Limits()
    Image.init()
    if re.match(_HEIC, data[:16], re.DOTALL):
        register_heic()
    formats = [name for name in _FORMATS if name in Image.OPEN]
    try:
        if data.startswith(_ICON):  # Pillow decodes it as it opens it
            _check_size(_size_in_icon(data), limits, shown)
        picture = Image.open(BytesIO(data), formats=formats)
    except MediaError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise MediaError(f"The picture {shown} has more pixels than Pillow opens.", "Store it smaller.") from None
    except MemoryError:
        raise _no_memory(shown) from None
    except Exception:  # a hostile file makes Pillow raise nearly anything
        looks = _looks_like(data)
        raise MediaError(f"The picture {shown} cannot be read: it looks like {looks}.", _hint(looks)) from None
    return as_rgb(picture, limits, shown, announce)


def as_rgb(picture: Picture, limits: Limits, shown: str, announce: Callable[[int], object] | None = None) -> Picture:
    """A picture that Pillow has opened, within the limits, as RGB and upright. Raises MediaError."""
    try:
        for announced in (announce, None):  # by its header, and as decoded: formats exist where these differ
            _check_size(picture.size, limits, shown)
            if announced is not None:
                announced(picture.width * picture.height)
            picture.load()
        turned = _TURNED.get(_orientation(picture))
        upright = picture if turned is None else picture.transpose(turned)
        flat = _flattened(upright)
        flat.info.clear()  # what else the file said, such as how to turn it, is no longer so
        return flat
    except MediaError:
        raise
    except MemoryError:
        raise _no_memory(shown) from None
    except Exception as error:  # a hostile file makes Pillow raise nearly anything
        raise MediaError(f"The picture {shown} cannot be decoded: {reason(error)}.") from error


def _check_size(size: tuple[int, int], limits: Limits, shown: str) -> None:
    width, height = size
    if not width or not height:
        raise MediaError(f"The picture {shown} is {width} x {height} pixels: nothing to see.")
    if width * height > limits.max_pixels:
        told = f"{width} x {height} pixels, more than {limits.max_pixels:,}"
        raise MediaError(f"The picture {shown} has {told}.", "Store it smaller, or raise the limit of pixels.")


def _size_in_icon(data: bytes) -> tuple[int, int]:
    """How large the largest picture in an icon says that it is, whatever the icon says."""
    inner = data[IcoImagePlugin.IcoFile(BytesIO(data)).entry[0].offset :]
    if inner.startswith(_PNG):
        return PngImagePlugin.PngImageFile(BytesIO(inner)).size
    width, height = BmpImagePlugin.DibImageFile(BytesIO(inner)).size
    return width, height // 2  # above its mask


@cache
def register_heic() -> bool:
    """Have Pillow open HEIC, where pillow-heif is there; returns whether it is."""
    try:
        import pillow_heif  # pyright: ignore[reportMissingTypeStubs]
    except ImportError:
        return False
    pillow_heif.options.DECODE_THREADS = 1
    pillow_heif.register_heif_opener()  # pyright: ignore[reportUnknownMemberType]
    return True


def _flattened(picture: Picture) -> Picture:
    """Any mode -> RGB, of full range and on white."""
    if picture.mode.startswith("I") or picture.mode == "F":
        return Image.fromarray(_as_bytes(picture)).convert("RGB")
    if picture.mode in {"RGBA", "LA", "PA", "RGBa", "La"} or "transparency" in picture.info:
        return _on_white(picture)
    if picture.mode == "LAB":
        from PIL import ImageCms

        lab, rgb = (ImageCms.ImageCmsProfile(ImageCms.createProfile(space)) for space in ("LAB", "sRGB"))  # pyright: ignore[reportUnknownArgumentType]
        converted = ImageCms.profileToProfile(picture, lab, rgb, outputMode="RGB")
        assert converted is not None
        return converted
    return picture.convert("RGB")


def _on_white(picture: Picture) -> Picture:
    flat = Image.new("RGB", picture.size)
    for top, bottom in _bands(picture.size):
        part = picture.crop((0, top, picture.width, bottom))
        part = (part.convert("LA") if part.mode == "La" else part).convert("RGBA")
        flat.paste(Image.alpha_composite(Image.new("RGBA", part.size, "white"), part).convert("RGB"), (0, top))
    return flat


def _as_bytes(picture: Picture) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """16 bits, 32 bits or floats -> 8 bits: integers over 255 count as 16 bits, floats over 1 by their range."""
    import numpy as np

    values = np.asarray(picture)
    shown = np.empty(values.shape, dtype=np.uint8)
    bands = [slice(top, bottom) for top, bottom in _bands(picture.size)]
    if values.dtype.kind == "f":
        low, high = 0.0, 1.0
        for band in bands:
            part = np.nan_to_num(values[band], nan=0.0, posinf=0.0, neginf=0.0)
            low, high = min(low, float(part.min())), max(high, float(part.max()))
        for band in bands:
            part = np.nan_to_num(values[band], nan=0.0, posinf=0.0, neginf=0.0)
            shown[band] = ((part - low) * (255 / (high - low))).round()
        return shown
    wide = values.dtype.itemsize == 2 or int(values.max()) > 255
    for band in bands:
        shown[band] = np.clip(values[band] >> 8 if wide else values[band], 0, 255)
    return shown


def _bands(size: tuple[int, int]) -> Iterator[tuple[int, int]]:
    """The first and the last line, which is no more part of it, of each band of a picture."""
    width, height = size
    step = max(1, _BAND // width)
    return ((top, min(top + step, height)) for top in range(0, height, step))


def _orientation(picture: Picture) -> int:
    try:
        return picture.getexif().get(_ORIENTATION, 1)
    except Exception:  # broken EXIF says nothing about the pixels
        return 1


def _looks_like(data: bytes) -> str:
    for pattern, name in _LOOKS_LIKE:
        if re.match(pattern, data[:2048], re.DOTALL):
            return name
    try:
        text = data[:512].decode()
    except UnicodeDecodeError as error:
        text = data[: error.start].decode() if error.start > 500 else "\0"
    return "text" if all(character.isprintable() or character.isspace() for character in text) else "unknown data"


def _hint(looks: str) -> str | None:
    if looks == "a HEIC picture":
        return "It is broken." if register_heic() else 'Install the extra: pip install "pgembed-multimodal[heic]"'
    if looks == "an AVIF picture":
        return "It is broken." if "AVIF" in Image.OPEN else "Install a Pillow that reads AVIF: 11.3 or newer."
    return _HINTS.get(looks)


def _no_memory(shown: str) -> MediaError:
    return MediaError(f"The picture {shown} does not fit into memory.", "Use fewer threads.", transient=True)
