"""What an encoder is: a class with a few facts and one method per modality. A new kind is one file."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pgembed.errors import UnsupportedModality

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image as Picture

    Vectors = NDArray[np.float32]

Modality = Literal["text", "image", "screenshot"]
Metric = Literal["cosine", "ip", "l2"]
Settings = Mapping[str, Any]
MODALITIES: tuple[Modality, ...] = ("text", "image", "screenshot")


class Encoder(ABC):
    """A model that turns inputs of one or more modalities into vectors of one space.

    A kind is a subclass, registered under its scheme in the entry-point group ``pgembed.encoders``; ``load`` makes an
    instance from what follows the scheme in a spec (``open_clip:ViT-B-32/laion2b_s34b_b79k``) and the settings.
    Implement ``embed_texts`` and/or ``embed_pixels``; callers use ``encode_text``, ``encode_image`` and
    ``encode_screenshot``.
    """

    scheme: ClassVar[str]
    spec: str
    modalities: frozenset[Modality]
    dim: int
    fingerprint: str  # of weights, preprocessing and normalization: equal fingerprints give equal vectors
    metric: Metric = "cosine"
    normalized: bool = True
    batch_size: int = 64
    static_text: str | None = None  # the name of its token table where the text side is static, see static_text.py

    @property
    def space(self) -> str:
        """The space its vectors live in, unless the registration names another: spec and fingerprint."""
        return f"{self.spec}@{self.fingerprint[:12]}"

    @classmethod
    @abstractmethod
    def load(cls, name: str, settings: Settings) -> Self:
        """Load the model ``name``. Raises EncoderError where it cannot be loaded, MissingExtra without its packages."""

    def encode_text(self, texts: Sequence[str]) -> Vectors:
        """Encode n texts into ``(n, dim) float32``. Raises UnsupportedModality."""
        self._require("text")
        return self.embed_texts(texts)

    def encode_image(self, pictures: Sequence[Picture]) -> Vectors:
        """Encode n decoded pictures into ``(n, dim) float32``. Raises UnsupportedModality."""
        self._require("image")
        return self.embed_pixels([self.preprocess(picture) for picture in pictures])

    def encode_screenshot(self, pictures: Sequence[Picture]) -> Vectors:
        """Encode n decoded screenshots into ``(n, dim) float32``. Raises UnsupportedModality."""
        self._require("screenshot")
        return self.embed_pixels([self.preprocess(picture) for picture in pictures])

    def preprocess(self, picture: Picture) -> Any:  # noqa: ANN401
        """Turn one decoded RGB picture into what ``embed_pixels`` takes; called in threads, off the model's path."""
        return picture

    def embed_texts(self, texts: Sequence[str]) -> Vectors:
        """The model's text side: ``(n, dim) float32``."""
        raise UnsupportedModality(f"Encoder '{self.spec}' takes no text.")

    def embed_pixels(self, pixels: Sequence[Any]) -> Vectors:
        """The model's picture side, on preprocessed pictures: ``(n, dim) float32``."""
        raise UnsupportedModality(f"Encoder '{self.spec}' takes no pictures.")

    def _require(self, modality: Modality) -> None:
        if modality not in self.modalities:
            raise UnsupportedModality(
                f"Encoder '{self.spec}' takes {', '.join(sorted(self.modalities))}, not {modality}.",
                f"Use an encoder whose modalities include {modality}.",
            )


def fingerprint_of(*parts: bytes | str) -> str:
    """SHA-256 over the parts, in order, each with its length before it: what a fingerprint is made with."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "big"))
        digest.update(data)
    return digest.hexdigest()
