"""Vectors of several inputs side by side (fusion ``concat``), and queries that match them. sql/41_fusion.sql tells why.

The part of input i is its unit vector times ``sqrt(share i)``; shares are the weights over their sum.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np

from pgembed.errors import InvalidQuery

if TYPE_CHECKING:
    from numpy.typing import NDArray

Parts = tuple[tuple[str, float], ...]
"""The parts of a vector in their order: the input of each, and its share."""

_MOST = 1e30  # as in sql/41_fusion.sql


def padded(vector: NDArray[Any], shares: Sequence[float]) -> NDArray[Any]:
    """The direction of a vector ``(dim,)`` in every part, ``(n * dim,)`` of length 1 for n shares. Of zeros zeros."""
    length = float(np.linalg.norm(vector)) or 1.0
    return np.concatenate([math.sqrt(share) / length * vector for share in shares])


def folded(vector: NDArray[Any], shares: Sequence[float]) -> NDArray[Any]:
    """What ``padded`` made wide, and for a row's vector the sum of its inputs by their shares: ``(dim,)``."""
    blocks: NDArray[Any] = vector.reshape(len(shares), -1)
    return np.sqrt(np.asarray(shares, dtype=vector.dtype)) @ blocks


def factors(name: str, parts: Parts, weights: Mapping[str, float]) -> list[float]:
    """What the parts of a query are multiplied with, so that inputs count by these weights; one that is not named
    counts nothing. Raises InvalidQuery for an input that is not there, and for weights that are none."""
    inputs = [part for part, _ in parts]
    if not parts:
        raise InvalidQuery(
            f"The inputs of {name} cannot be weighted by a query: their vectors are summed.",
            "Attach it with fusion => 'concat', or leave the weights out.",
        )
    example = "{" + ", ".join(f'"{part}": {1 / len(inputs):.1g}' for part in inputs) + "}"
    if unknown := [part for part in weights if part not in inputs]:
        raise InvalidQuery(
            f"{name} has no input {', '.join(map(str, unknown))}.",
            f"Its inputs: {', '.join(inputs)}. For example: {example}",
        )
    for weight in weights.values():
        if isinstance(weight, bool) or not isinstance(weight, Real) or not 0 <= weight <= _MOST:
            raise InvalidQuery(
                f"The weight of an input is a number from 0 to {_MOST:g}, not {weight!r}.", f"For example: {example}"
            )
    total = float(sum(weights.values()))
    if not total:
        raise InvalidQuery(f"No input of {name} counts by the weights {dict(weights)}.", f"For example: {example}")
    return [float(weights.get(part, 0)) / total / share for part, share in parts]
