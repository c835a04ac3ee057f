"""Texts and pictures made ready for ONNX graphs without torch, to the last number as open_clip does it."""

from __future__ import annotations

import html
import importlib
import string
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import ImageOps
from PIL.Image import Resampling

from pgembed.encoders.onnx_manifest import Cleanup, ImageSide
from pgembed.encoders.text_tokens import TokenizerTokens
from pgembed.errors import MissingExtra

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL.Image import Image as Picture

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def pixels(picture: Picture, side: ImageSide) -> NDArray[np.float32]:
    """One picture as ``(3, height, width) float32``."""
    height, width = side.size
    bilinear = side.interpolation == "bilinear"
    resampling = Resampling.BILINEAR if bilinear else Resampling.BICUBIC
    if side.resize == "squash":
        picture = picture.resize((width, height), resampling)
    elif side.resize == "longest":
        picture = _scaled(picture, max(picture.width / width, picture.height / height), resampling)
        picture = _cut(_filled(picture, width, height, side.fill), width, height)
    elif height == width:
        short, long = sorted(picture.size)
        scaled = int(height * long / short)
        picture = picture.resize((height, scaled) if picture.width <= picture.height else (scaled, height), resampling)
        picture = _cut(picture, width, height)
    else:  # open_clip takes no other interpolation here
        picture = _scaled(picture, min(picture.width / width, picture.height / height), Resampling.BICUBIC)
        picture = _cut(picture, width, height)
    values = np.asarray(picture.convert("RGB"), dtype=np.float32).transpose(2, 0, 1) / np.float32(255)
    mean, std = (np.array(three, dtype=np.float32)[:, None, None] for three in (side.mean, side.std))
    return np.ascontiguousarray((values - mean) / std)


def _scaled(picture: Picture, ratio: float, resampling: Resampling) -> Picture:
    return picture.resize((round(picture.width / ratio), round(picture.height / ratio)), resampling)


def _filled(picture: Picture, width: int, height: int, fill: int) -> Picture:
    across, down = max(width - picture.width, 0), max(height - picture.height, 0)
    border = (across // 2, down // 2, (across + 1) // 2, (down + 1) // 2)
    return ImageOps.expand(picture.convert("RGB"), border, (fill,) * 3) if any(border) else picture


def _cut(picture: Picture, width: int, height: int) -> Picture:
    left, top = round((picture.width - width) / 2), round((picture.height - height) / 2)
    return picture.crop((left, top, left + width, top + height))


def cleaner(spec: str, cleanup: Cleanup) -> Callable[[str], str]:
    """What is done to a text before its tokenizer sees it. Raises MissingExtra where open_clip's mending needs ftfy."""
    if cleanup == "none":
        return lambda text: text
    try:
        ftfy: Any = importlib.import_module("ftfy")
    except ImportError:
        raise MissingExtra(f"Encoder '{spec}'", "onnx") from None

    def mended(text: str) -> str:
        return html.unescape(html.unescape(ftfy.fix_text(text))).strip()

    if cleanup == "canonicalize":
        return lambda text: " ".join(mended(text).replace("_", " ").translate(_NO_PUNCTUATION).lower().split())
    if cleanup == "lower":
        return lambda text: " ".join(mended(text).split()).lower()
    return lambda text: " ".join(mended(text).split())


class Tokens:
    """A tokenizer of a manifest's text side."""

    def __init__(self, tokenizer: Any, clean: Callable[[str], str], replace: dict[int, int]) -> None:  # noqa: ANN401
        self._tokenizer = tokenizer
        self._clean = clean
        self._replace = replace

    @cached_property
    def places(self) -> TokenizerTokens:
        """Where the tokens of texts lie, and how many of them are read."""
        cutting = self._tokenizer.truncation
        return TokenizerTokens(self.json, cutting["max_length"] if cutting else None, clean=self._clean)

    @property
    def limit(self) -> int | None:
        """After how many tokens texts are cut, those around them included."""
        return None if self.places.room is None else self.places.room + self.places.around

    def replaced(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Ids as the graph takes them."""
        for old, new in self._replace.items():
            ids[ids == old] = new
        return ids

    @property
    def json(self) -> str:
        """The tokenizer alone, as its file has it."""
        return str(self._tokenizer.to_str())

    def ids(self, texts: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Ids ``(n, length)``, padded; and how many of each text's are no padding, ``(n,)``."""
        found = self._tokenizer.encode_batch([self._clean(text) for text in texts])
        ids = np.array([one.ids for one in found], dtype=np.int64)
        lengths = np.array([sum(one.attention_mask) for one in found], dtype=np.int64)
        return self.replaced(ids), lengths
