"""An encoder for tests that does as it is told: slow, broken, or with something happening while it encodes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Self

import numpy as np
import pytest
from numpy.typing import NDArray

from pgembed.encoders import Encoder, Modality, Settings

DIM = 8


def vector_of(value: str) -> NDArray[np.float32]:
    """The unit vector ``(8,) float32`` that FakeEncoder gives for a text, by its hash."""
    seed = int.from_bytes(hashlib.sha256(value.encode()).digest()[:8], "big")
    vector = np.random.default_rng(seed).normal(size=DIM)
    return (vector / np.linalg.norm(vector)).astype(np.float32)


class FakeEncoder(Encoder):
    """``fake:NAME``, 8 dimensions. ``before`` is called with each batch of texts; it may wait, write or raise."""

    scheme: ClassVar[str] = "fake"
    modalities: frozenset[Modality] = frozenset(("text", "image", "screenshot"))
    dim = DIM
    batch_size = 16

    def __init__(self, name: str = "plain") -> None:
        self.spec = f"fake:{name}"
        self.fingerprint = hashlib.sha256(name.encode()).hexdigest()
        self.seen: list[str] = []
        self.before: Callable[[Sequence[str]], None] = lambda texts: None
        self.after: Callable[[NDArray[np.float32]], NDArray[np.float32]] = lambda vectors: vectors

    @classmethod
    def load(cls, name: str, settings: Settings) -> Self:
        return cls(name)

    def embed_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        self.before(texts)
        self.seen.extend(texts)
        return self.after(np.stack([vector_of(text) for text in texts]))

    def embed_pixels(self, pixels: Sequence[Any]) -> NDArray[np.float32]:
        return np.stack([vector_of(str(picture.getpixel((0, 0)))) for picture in pixels])


def use_encoders(monkeypatch: pytest.MonkeyPatch, encoders: Mapping[str, Encoder]) -> None:
    """Have workers in this process load these encoders, by spec."""

    def load(spec: str, settings: Settings | None = None, *, allow: object = None) -> Encoder:
        return encoders[spec]

    monkeypatch.setattr("pgembed.worker.state.load_encoder", load)
