"""The vector of one plain input in a few characters, kept with a registration to see that a server still gives it.

64 sums of the vector's numbers, each number with a fixed random sign, in 8 bits each: distances survive that to about a
tenth (Johnson and Lindenstrauss, 1984; with signs, Achlioptas, 2003), so a cosine of 0.999 of two sketches means one of
their vectors between 0.9988 and 0.9992. Rounding and batching move a vector by far less, other weights by far more.
"""

from __future__ import annotations

import base64
import hashlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

SUMS = 64
SAME = 0.999


def sketch(vector: NDArray[np.float32]) -> str:
    """The sketch of a vector ``(dim,) float32``; empty for one that is zero or not finite."""
    wide = vector.astype(np.float64)
    bits = np.frombuffer(hashlib.shake_256(b"pgembed").digest(SUMS * wide.size // 8), dtype=np.uint8)
    sums = (np.unpackbits(bits).reshape(SUMS, wide.size).astype(np.float64) * 2 - 1) @ wide
    largest = float(np.abs(sums).max())
    if not np.isfinite(largest) or not largest:
        return ""
    return base64.urlsafe_b64encode(np.rint(127 * sums / largest).astype(np.int8).tobytes()).decode().rstrip("=")


def same(one: str, other: str) -> bool:
    """Whether two sketches are of one vector, up to rounding; where there is none, nothing speaks against it."""
    if not one or not other:
        return True
    first, second = (
        np.frombuffer(base64.urlsafe_b64decode(text + "=="), dtype=np.int8).astype(np.float64) for text in (one, other)
    )
    return float(first @ second) >= SAME * float(np.linalg.norm(first) * np.linalg.norm(second))
