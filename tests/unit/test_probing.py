"""Linear probes and the nullspaces that they leave, on vectors whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from pgembed.errors import InvalidInput
from pgembed.views.probing import ProbeResult, linear_probe, nullspace, without

RANDOM = np.random.default_rng(7)
NOISE = RANDOM.normal(size=(200, 16))
LABELS = np.arange(200) % 2 == 0
NAMES = ["a" if label else "b" for label in LABELS]


def marked(strength: float, axis: int = 3) -> NDArray[np.float64]:
    vectors = NOISE.copy()
    vectors[:, axis] += np.where(LABELS, strength, -strength)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_a_probe_reads_what_is_there_and_nothing_from_noise() -> None:
    found = linear_probe(marked(3.0), NAMES)
    assert found.accuracy > 0.95
    assert not found.at_chance
    assert (found.chance, found.rows, found.classes) == (0.5, 200, ("a", "b"))
    assert linear_probe(marked(0.0), NAMES).at_chance
    assert 0.5 < found.bound < 0.65


def test_what_is_read_the_wrong_way_is_not_at_chance() -> None:
    assert not ProbeResult(0.4, 0.5, 0.55, 100, ("a", "b")).at_chance
    assert ProbeResult(0.46, 0.5, 0.55, 100, ("a", "b")).at_chance


def test_classes_are_cut_to_the_smallest_and_groups_stay_together() -> None:
    names = ["a"] * 40 + ["b"] * 160
    assert linear_probe(NOISE, names).rows == 80
    # two rows of a group are the same: with one of them fitted, the other would be known by heart
    twice = np.repeat(NOISE[:100], 2, axis=0)
    labels = [name for name in RANDOM.permutation(["a", "b"] * 50) for _ in (0, 1)]
    groups = [str(n // 2) for n in range(200)]
    assert linear_probe(twice, labels, groups=groups).accuracy < linear_probe(twice, labels).accuracy


def test_a_probe_that_is_fitted_elsewhere_is_measured_on_the_rest() -> None:
    fit = [n < 100 for n in range(200)]
    found = linear_probe(marked(3.0), NAMES, fit=fit)
    assert (found.rows, found.accuracy > 0.9) == (200, True)
    turned = marked(3.0)
    turned[100:, 3] *= -1
    assert linear_probe(turned, NAMES, fit=fit).accuracy < 0.1


def test_rounding_alone_is_not_read() -> None:
    same = np.repeat(NOISE[:100], 2, axis=0)
    same[::2] += 1e-8
    fit = [n < 100 for n in range(200)]
    assert linear_probe(same, NAMES, fit=fit).accuracy == 0.5


@pytest.mark.parametrize(
    ("names", "message"),
    [(["a"] * 200, "has 1: a"), ([], "has 0: none"), (["a"] * 195 + ["b"] * 5, "5 rows of 'b' are too few")],
)
def test_what_cannot_be_probed_is_refused(names: list[str], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        linear_probe(NOISE[: len(names)], names)


def test_a_nullspace_leaves_nothing_to_read() -> None:
    vectors = marked(2.0)
    axes = nullspace(vectors, list(LABELS), 2)
    np.testing.assert_allclose(axes @ axes.T, np.eye(2), atol=1e-9)
    assert axes[0][3] > 0.9
    rest = without(vectors, axes)
    np.testing.assert_allclose(rest @ axes.T, 0, atol=1e-9)
    np.testing.assert_allclose(np.linalg.norm(rest, axis=1), 1)
    fresh = np.random.default_rng(8).normal(size=(200, 16))
    fresh[:, 3] += np.where(LABELS, 2.0, -2.0)
    assert not linear_probe(fresh, NAMES).at_chance
    assert linear_probe(without(fresh, axes), NAMES).at_chance


def test_a_nullspace_ends_where_nothing_differs() -> None:
    assert nullspace(np.ones((4, 3)), [True, True, False, False], 2).shape == (0, 3)
    assert without(np.array([[0.0, 2.0]]), np.array([[0.0, 1.0]])).tolist() == [[0.0, 0.0]]
