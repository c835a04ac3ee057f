"""Whether one run is better than another, or only luckier: a paired randomization test over queries."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pgembed.errors import InvalidInput

ROUNDS = 100_000
EXACT = 16  # queries that differ: up to so many, all ways of exchanging the runs are counted
_BLOCK = 2_000  # rounds at once
_SAME = 1e-12


@dataclass(frozen=True)
class Comparison:
    """One measure of two runs: their means, the mean of second minus first, how likely a difference as large is where
    the runs are alike, and for how many queries the second is better (won), worse (lost) and equal."""

    measure: str
    first: float
    second: float
    difference: float
    p: float
    won: int
    lost: int
    equal: int


def compare(
    first: Mapping[str, Mapping[str, float]],
    second: Mapping[str, Mapping[str, float]],
    *,
    rounds: int = ROUNDS,
    seed: int = 0,
) -> list[Comparison]:
    """Compare the values, measure -> query -> value, of two runs over the same queries. Raises InvalidInput."""
    found: list[Comparison] = []
    for measure, ours in first.items():
        theirs = second.get(measure, {})
        if ours.keys() != theirs.keys() or not ours:
            raise InvalidInput(f"The runs share no queries to be compared by {measure}.")
        queries = sorted(ours)  # the signs drawn for a query are then the same wherever the values come from
        a = np.array([ours[query] for query in queries])
        b = np.array([theirs[query] for query in queries])
        difference = b - a
        found.append(
            Comparison(
                measure=measure,
                first=float(a.mean()),
                second=float(b.mean()),
                difference=float(difference.mean()),
                p=randomization_test(difference, rounds=rounds, seed=seed),
                won=int((difference > _SAME).sum()),
                lost=int((difference < -_SAME).sum()),
                equal=int((np.abs(difference) <= _SAME).sum()),
            )
        )
    return found


def randomization_test(difference: NDArray[np.float64], *, rounds: int = ROUNDS, seed: int = 0) -> float:
    """The two-sided p of Fisher's paired randomization test on the differences ``(n,)`` of n queries.

    Where the runs are alike, each difference could as well have the other sign: p is the share of sign patterns whose
    mean is as far from 0 as the one observed (Smucker, Allan and Carterette, CIKM 2007). With up to 16 differences that
    are not 0 every pattern is counted; with more, ``rounds`` random ones, and ``p = (b + 1) / (rounds + 1)`` for the b
    that are as far (Phipson and Smyth 2010), so that it is never 0.
    """
    values = np.asarray(difference, dtype=np.float64)
    values = values[np.abs(values) > _SAME]
    if not values.size:
        return 1.0
    observed = abs(values.sum()) - _SAME * values.size
    if values.size <= EXACT:
        signs = np.array([*itertools.product((-1.0, 1.0), repeat=values.size)])
        return float((np.abs(signs @ values) >= observed).mean())
    random = np.random.default_rng(seed)
    far = 0
    for start in range(0, rounds, _BLOCK):
        drawn = random.integers(0, 2, size=(min(_BLOCK, rounds - start), values.size), dtype=np.int8)
        far += int((np.abs((2.0 * drawn - 1.0) @ values) >= observed).sum())
    return (far + 1) / (rounds + 1)
