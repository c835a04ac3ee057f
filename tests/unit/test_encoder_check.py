"""What `pgembed encoder test` sees: each check goes wrong for an encoder that is wrong in that way, and only then."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, ClassVar, Self

import numpy as np
import pytest
from numpy.typing import NDArray

from pgembed.encoders import Encoder, Modality, Settings
from pgembed.encoders.builtin import LiteEncoder
from pgembed.encoders.check import Samples, check_encoder

DIM = 64


class WrongEncoder(Encoder):
    """Texts and pictures by their hash, but for one fault."""

    scheme: ClassVar[str] = "wrong"
    modalities: frozenset[Modality] = frozenset({"text", "image"})
    dim = DIM
    spec = "wrong:one"
    fingerprint = "0" * 64

    def __init__(self, fault: str = "none") -> None:
        self.fault = fault
        self.calls = 0

    @classmethod
    def load(cls, name: str, settings: Settings) -> Self:
        return cls(name)

    def embed_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        return self._spoilt(np.stack([_vector(text.encode()) for text in texts]))

    def embed_pixels(self, pixels: Sequence[Any]) -> NDArray[np.float32]:
        """By what colours there are, so that a mirrored copy is the same."""
        if self.fault == "blind to colour":
            vectors = [_vector(one.tobytes()) for one in pixels]
        else:
            vectors = [_vector(repr(sorted(one.histogram())).encode()) for one in pixels]
        return self._spoilt(np.stack(vectors))

    def _spoilt(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        self.calls += 1
        match self.fault:
            case "short":
                return vectors[:, :-1]
            case "not finite":
                vectors[0, 0] = np.nan
            case "long":
                vectors *= 3
            case "random":
                vectors[:, 0] += 0.01 * self.calls
            case "batch":
                vectors[:, 0] += 0.01 * len(vectors)
            case "constant":
                vectors[:] = vectors[0] = _vector(b"")
            case "narrow":
                vectors = vectors + 3 * _vector(b"")
                vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        return vectors.astype(np.float32)


def _vector(content: bytes) -> NDArray[np.float32]:
    seed = int.from_bytes(hashlib.sha256(content).digest()[:8], "big")
    vector = np.random.default_rng(seed).normal(size=DIM)
    return (vector / np.linalg.norm(vector)).astype(np.float32)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pgembed.encoders.check.SECONDS", 0.01)


@pytest.mark.parametrize(
    ("fault", "failing"),
    [
        ("none", set()),
        ("short", {"shape"}),
        ("not finite", {"finite"}),
        ("long", {"length"}),
        ("random", {"length", "the same twice", "the same alone"}),
        ("batch", {"length", "the same alone"}),
        ("constant", {"different inputs differ", "a mirrored copy is close"}),
        ("narrow", set()),
        ("blind to colour", {"a mirrored copy is close"}),
    ],
)
def test_a_fault_is_seen(fault: str, failing: set[str]) -> None:
    report = check_encoder(WrongEncoder(fault))
    assert {check.name.partition(": ")[2] for check in report.checks if not check.ok} - {"length"} == failing - {
        "length"
    }
    assert all(check.hint for check in report.checks if not check.ok)
    assert report.ok == (not failing)


def test_narrow_spaces_are_to_be_whitened() -> None:
    (check, *_) = [check for check in check_encoder(WrongEncoder("narrow")).checks if "directions" in check.name]
    assert "mean cosine of unlike samples 0.9" in check.found
    assert "whitening" in (check.hint or "")
    (check, *_) = [check for check in check_encoder(WrongEncoder()).checks if "directions" in check.name]
    assert check.hint is None


def test_the_built_in_encoder_passes_and_tells_neighbours_and_rates() -> None:
    report = check_encoder(LiteEncoder.load("lite", {}))
    assert [check for check in report.checks if not check.ok] == []
    nearest = {found.sample: found.nearest for found in report.neighbours if found.modality == "text"}
    assert nearest["a red bicycle"] == "how to repair a bicycle tube"
    assert {(rate.modality, rate.batch_size) for rate in report.rates} == {
        (modality, size) for modality in ("text", "image", "screenshot") for size in (1, 8, 32)
    }
    assert all(rate.per_second > 0 for rate in report.rates)


def test_samples_of_somebodys_own_may_repeat() -> None:
    report = check_encoder(LiteEncoder.load("lite", {}), Samples(texts=["red shoe", "red shoe", "blue hat"]))
    assert report.ok
    assert {found.sample for found in report.neighbours} == {"red shoe", "blue hat"}
    assert {rate.modality for rate in report.rates} == {"text"}
