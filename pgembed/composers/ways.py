"""The ways of changing a picture's vector by words that need no training, over arrays: what a composer must beat.

Each takes the vectors of n pictures, of the old words and of the new ones, ``(n, dim)`` of unit length each (zeros
where no old words are given), and a weight, and gives queries ``(n, dim)``, of any length.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[Any]
Way = Callable[[Vectors, Vectors, Vectors, float], Vectors]
GRID = (0.15, 0.25, 0.35, 0.5, 0.7, 1.0, 1.4, 2.0)
SHARES = (0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6)
_CHUNK = 1_000  # queries that are compared at once


def unit(vectors: Vectors) -> Vectors:
    """Each row of unit length; one of no length stays."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(lengths > 0, lengths, 1)


def slerped(picture: Vectors, old: Vectors, new: Vectors, t: float) -> Vectors:
    """Between picture and new words (Shoemake 1985)."""
    _ = old
    angle = np.arccos(np.clip((picture * new).sum(axis=1, keepdims=True), -1, 1))
    return (np.sin((1 - t) * angle) * picture + np.sin(t * angle) * new) / np.maximum(np.sin(angle), 1e-6)


def rejected(picture: Vectors, old: Vectors, new: Vectors, weight: float) -> Vectors:
    """The old words projected out of the picture, then the new ones added."""
    return unit(picture - (picture * old).sum(axis=1, keepdims=True) * old) + weight * new


WAYS: dict[str, tuple[Sequence[float], Way]] = {
    "picture only": ((0.0,), lambda picture, old, new, weight: picture),
    "words only": ((0.0,), lambda picture, old, new, weight: new),
    "sum": (GRID, lambda picture, old, new, weight: picture + weight * new),
    "minus and plus": (GRID, lambda picture, old, new, weight: picture + weight * (new - old)),
    "swap": (GRID, lambda picture, old, new, weight: picture + weight * unit(new - old)),
    "slerp": (SHARES, slerped),
    "reject and sum": (GRID, rejected),
}


def ranks(
    queries: Vectors, gallery: Vectors, reference: NDArray[np.intp], target: NDArray[np.intp]
) -> NDArray[np.intp]:
    """How many of the gallery ``(m, dim)``, a query's reference left out, come before its target, or are as near as it:
    0 is first, and a tie is lost."""
    found: list[NDArray[Any]] = []
    for start in range(0, len(queries), _CHUNK):
        part = slice(start, start + _CHUNK)
        scores = queries[part] @ gallery.T
        own = scores[np.arange(len(scores)), target[part]]
        scores[np.arange(len(scores)), reference[part]] = -np.inf
        found.append((scores >= own[:, None]).sum(axis=1) - 1)
    return np.concatenate(found) if found else np.zeros(0, dtype=np.intp)
