"""A part of a query picture: what stands in a box or under a mask, and how it is weighed against the whole."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageOps

from pgembed.errors import InvalidQuery

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL.Image import Image as Picture

PART, WHOLE = 0.7, 0.3  # weights of the part and of the whole picture around it
PADDING = 0.1  # of the box's width and height, on each side: what is cut close is hard to tell
SLIP = 1e-6  # above 1, by which a share may be off
MARKED = 128  # the least light of a pixel of a mask that belongs to it
GREY = (128, 128, 128)  # in place of what a mask leaves out
LARGEST = 1024  # pixels of the square's side: no encoder sees more, and a long strip would become a huge square
Box = tuple[float, float, float, float]


def cut(picture: Picture, box: Box | None, mask: Picture | None) -> Picture:
    """The part of an RGB picture, padded, in a square of its own mean colour.

    ``box`` is left, top, width and height, in pixels, or in shares of the picture where none is above 1. ``mask`` is a
    picture of any size, light where the part is. Raises InvalidQuery where nothing of the picture is in them.
    """
    light: NDArray[np.bool_] | None = None
    if mask is not None:
        light = np.asarray(mask.convert("L").resize(picture.size, Image.Resampling.NEAREST)) >= MARKED
        rows, columns = np.flatnonzero(light.any(axis=1)), np.flatnonzero(light.any(axis=0))
        if not rows.size:
            raise InvalidQuery("The mask is dark everywhere.", "Make it light where the part is.")
        if box is None:
            box = (columns[0], rows[0], columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1)
        pixels = np.where(light[:, :, None], np.asarray(picture), np.array(GREY, dtype=np.uint8))
        picture = Image.fromarray(pixels.astype(np.uint8))
    assert box is not None
    edges = _pixels(picture, box)
    if light is not None and not light[edges[1] : edges[3], edges[0] : edges[2]].any():
        raise InvalidQuery(f"The mask is dark in all of the box {tuple(box)}.", "Make it light where the part is.")
    part = picture.crop(edges)
    part.thumbnail((LARGEST, LARGEST), Image.Resampling.BICUBIC)
    mean = tuple(int(channel) for channel in np.asarray(part).reshape(-1, 3).mean(axis=0))
    side = max(part.size)
    return ImageOps.pad(part, (side, side), color=mean)


def blend(part: NDArray[np.float32], whole: NDArray[np.float32]) -> NDArray[np.float32]:
    """The unit vector of a part within its picture, ``(dim,) float32``: 0.7 of its own and 0.3 of the whole."""
    total = PART * part / np.linalg.norm(part) + WHOLE * whole / np.linalg.norm(whole)
    return (total / np.linalg.norm(total)).astype(np.float32)


def _pixels(picture: Picture, box: Box) -> tuple[int, int, int, int]:
    """The box with its padding, cut off at the picture's edges: left, top, right, bottom."""
    left, top, width, height = box
    if max(box) <= 1 + SLIP:
        left, width = left * picture.width, width * picture.width
        top, height = top * picture.height, height * picture.height
    if left >= picture.width or top >= picture.height or left + width <= 0 or top + height <= 0:
        raise InvalidQuery(
            f"The box {tuple(box)} lies outside of the picture of {picture.width} x {picture.height} pixels.",
            "A box is left, top, width and height, in pixels or in shares of the picture.",
        )
    across, down = PADDING * width, PADDING * height
    right, bottom = round(left + width + across), round(top + height + down)
    left, top = max(0, round(left - across)), max(0, round(top - down))
    right, bottom = min(picture.width, right), min(picture.height, bottom)
    return left, top, max(right, left + 1), max(bottom, top + 1)
