"""How much of an attribute a linear probe reads from vectors, and directions that it reads it by. Numpy alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pgembed.errors import InvalidInput

Vectors = NDArray[np.float64]
RIDGES = (1e-3, 1e-2, 1e-1, 1.0)  # of the mean variance of the vectors; the best counts, for the shuffled labels too
STEP_RIDGE = 0.1
FEWEST = 10  # rows of a class: fewer tell nothing


@dataclass(frozen=True)
class ProbeResult:
    """What a linear probe reads: its ``accuracy``, that of guessing (``chance``, 1 / classes), and ``bound``, which
    95 % of the probes of shuffled labels do not surpass. ``rows`` were told, as many of each class."""

    accuracy: float
    chance: float
    bound: float
    rows: int
    classes: tuple[str, ...]

    @property
    def at_chance(self) -> bool:
        """Whether it reads no more than from shuffled labels; what is far below chance is read too, the wrong way."""
        return abs(self.accuracy - self.chance) <= self.bound - self.chance


def linear_probe(
    vectors: Vectors,
    labels: Sequence[str],
    *,
    groups: Sequence[str] | None = None,
    fit: Sequence[bool] | None = None,
    folds: int = 5,
    shuffles: int = 200,
    seed: int = 0,
) -> ProbeResult:
    """How well a linear classifier tells the labels of n vectors ``(n, dim)``, on vectors that it was not fitted to.

    A ridge regression of one-hot labels, the strongest over ``RIDGES``; classes are cut to the size of the smallest. It
    is cross-validated, vectors of one of ``groups`` in one fold, or fitted where ``fit`` is true and measured on the
    others. The bound is that of the same with shuffled labels (a permutation test), the choice of the ridge included.
    Raises InvalidInput where there are fewer than two classes, or too few rows of one.
    """
    random = np.random.default_rng(seed)
    classes = sorted(set(labels))
    if len(classes) < 2:
        raise InvalidInput(
            f"A probe tells two classes or more, and the attribute has {len(classes)}: {', '.join(classes) or 'none'}.",
            "Give an expression with a value for each class, and NULL for rows that are not to be told.",
        )
    numbers = np.array([classes.index(label) for label in labels])
    parts = [np.ones(len(labels), dtype=bool)] if fit is None else [np.asarray(fit), ~np.asarray(fit)]
    kept = [_balanced(numbers, part, classes, random) for part in parts]
    chosen = np.concatenate(kept)
    if fit is not None:
        fold = np.repeat([1, 0], [len(part) for part in kept])
        tested = 1
    else:
        given = np.asarray(range(len(labels)) if groups is None else groups, dtype=object)[chosen]
        names = sorted(set(given))
        if len(names) < folds:
            raise InvalidInput(f"{len(names)} groups are too few for {folds} folds.", "Group by something finer.")
        of_group = dict(
            zip((names[i] for i in random.permutation(len(names))), np.arange(len(names)) % folds, strict=True)
        )
        fold = np.array([of_group[name] for name in given])
        tested = folds
    told = numbers[chosen]
    shuffled = np.stack(
        [told, *(_shuffled(told, fold if fit is not None else None, random) for _ in range(shuffles))], 1
    )
    hits = sum(_hits(vectors[chosen], shuffled, fold == number, len(classes)) for number in range(tested))
    accuracy = (np.asarray(hits) / sum(int((fold == number).sum()) for number in range(tested))).max(axis=0)
    return ProbeResult(
        accuracy=float(accuracy[0]),
        chance=1 / len(classes),
        bound=float(np.quantile(accuracy[1:], 0.95, method="higher")),
        rows=len(chosen),
        classes=tuple(classes),
    )


def nullspace(vectors: Vectors, labels: Sequence[bool], components: int) -> Vectors:
    """Directions ``(components, dim)``, orthonormal, by which linear classifiers tell two classes of n vectors.

    Each is that of a ridge regression on what those before it leave, both classes weighing the same: iterated nullspace
    projection (Ravfogel et al., ACL 2020). The first points to those that are true.
    """
    wanted: Vectors = np.where(np.asarray(labels), 1.0, -1.0)
    positive = float((wanted > 0).mean())
    weights: Vectors = np.where(wanted > 0, 0.5 / positive, 0.5 / (1 - positive)) / len(wanted)
    found: list[Vectors] = []
    rest = vectors
    while len(found) < components:
        centred: Vectors = rest - weights @ rest
        spread: Vectors = (centred * weights[:, None]).T @ centred
        towards: Vectors = (centred * weights[:, None]).T @ wanted
        ridge = STEP_RIDGE * float(np.trace(spread)) / len(spread)
        if float(np.linalg.norm(towards)) <= 1e-6:
            break
        axis: Vectors = np.linalg.solve(spread + ridge * np.eye(len(spread)), towards).astype(np.float64)
        for before in found:
            axis = axis - (axis @ before) * before
        axis /= np.linalg.norm(axis)
        found.append(axis)
        rest = without(vectors, np.stack(found))
    return np.stack(found) if found else np.empty((0, vectors.shape[1]))


def without(vectors: Vectors, directions: Vectors) -> Vectors:
    """Vectors ``(n, dim)`` without orthonormal directions ``(k, dim)``, of unit length; what lies in them is zero."""
    rest = vectors - (vectors @ directions.T) @ directions
    lengths = np.linalg.norm(rest, axis=1, keepdims=True)
    return np.where(lengths > 1e-6, rest / np.maximum(lengths, 1e-6), 0.0)


def _balanced(
    numbers: NDArray[Any], part: NDArray[np.bool_], classes: Sequence[str], random: np.random.Generator
) -> NDArray[np.intp]:
    """Places in a part of as many rows of each class."""
    places = [np.flatnonzero(part & (numbers == number)) for number in range(len(classes))]
    fewest = min(range(len(classes)), key=lambda number: len(places[number]))
    if len(places[fewest]) < FEWEST:
        raise InvalidInput(
            f"{len(places[fewest])} rows of '{classes[fewest]}' are too few to probe.",
            f"Give {FEWEST} of each class or more.",
        )
    return np.concatenate([random.permutation(some)[: len(places[fewest])] for some in places])


def _shuffled(told: NDArray[Any], fold: NDArray[Any] | None, random: np.random.Generator) -> NDArray[Any]:
    """The labels in another order; those that a probe is fitted to apart from those it is measured on."""
    if fold is None:
        return random.permutation(told)
    made = told.copy()
    for number in (0, 1):
        made[fold == number] = random.permutation(told[fold == number])
    return made


def _hits(vectors: Vectors, labels: NDArray[Any], tested: NDArray[np.bool_], classes: int) -> NDArray[Any]:
    """How many tested rows are told rightly, ``(ridges, columns)``, for each column of labels ``(n, columns)``."""
    fitted = vectors[~tested]
    mean = fitted.mean(axis=0)
    centred = fitted - mean
    variances, axes = np.linalg.eigh(centred.T @ centred / len(centred))
    wanted = (labels[~tested][:, :, None] == np.arange(classes)).astype(np.float64)
    usual = wanted.mean(axis=0)
    n, columns, _ = wanted.shape
    towards = (axes.T @ centred.T) @ (wanted - usual).reshape(n, -1) / n
    seen = (vectors[tested] - mean) @ axes
    hits: list[NDArray[Any]] = []
    for ridge in RIDGES:
        weights: Vectors = towards / (variances + ridge * max(float(variances.mean()), 1e-12))[:, None]
        scores: Vectors = (seen @ weights).reshape(len(seen), columns, classes) + usual
        told: NDArray[Any] = np.round(scores, 6).argmax(axis=2)  # what is less is float4's rounding
        hits.append((told == labels[tested]).sum(axis=0))
    return np.stack(hits)
