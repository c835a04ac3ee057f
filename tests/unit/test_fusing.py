"""Vectors side by side: what a query becomes, and back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgembed.errors import InvalidQuery
from pgembed.fusing import factors, folded, padded

WEIGHT = st.floats(0.01, 100)
WEIGHTS = st.lists(WEIGHT, min_size=2, max_size=3)
SEED = st.integers(0, 1000)
NAMES = ("text", "image", "screenshot")


def units(seed: int, count: int) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(count, 6))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def shares_of(weights: list[float]) -> list[float]:
    return [weight / sum(weights) for weight in weights]


@given(SEED, WEIGHTS)
def test_padded_has_length_1_and_folded_takes_it_back(seed: int, weights: list[float]) -> None:
    (query,) = units(seed, 1)
    wide = padded(3 * query, shares_of(weights))
    assert np.linalg.norm(wide) == pytest.approx(1)
    assert np.allclose(folded(wide, shares_of(weights)), query)


@given(SEED, WEIGHTS, st.data())
def test_the_inner_product_is_the_mean_of_the_cosines_by_the_weights_asked_for(
    seed: int, weights: list[float], data: st.DataObject
) -> None:
    count, shares = len(weights), shares_of(weights)
    query, *inputs = units(seed, count + 1)
    row = np.concatenate([np.sqrt(share) * each for share, each in zip(shares, inputs, strict=True)])
    cosines = np.array(inputs) @ query
    assert row @ padded(query, shares) == pytest.approx(float(np.dot(shares, cosines)))
    asked = data.draw(st.lists(WEIGHT, min_size=count, max_size=count))
    parts = tuple(zip(NAMES, shares, strict=False))
    scaled = factors("product.pair", parts, dict(zip(NAMES, asked, strict=False)))
    wide = (padded(query, shares).reshape(count, -1) * np.array(scaled)[:, None]).ravel()
    assert row @ wide == pytest.approx(float(np.dot(shares_of(asked), cosines)))


def test_zeros_stay_zeros() -> None:
    assert not padded(np.zeros(3), [0.5, 0.5]).any()


def test_weights_of_a_sum_are_refused() -> None:
    with pytest.raises(InvalidQuery, match="their vectors are summed"):
        factors("product.embedding", (), {"text": 1.0})
