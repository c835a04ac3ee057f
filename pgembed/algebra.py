"""What else than a sum a query can be: operations on expressions, each the SQL function of its name in Python.

``swap(Image("dress.jpg"), Text("blue"), Text("red"))`` is a value like the inputs it is made of: immutable, hashable,
printed as the Python that makes it. ``mmr`` works on what a search gave.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from pgembed.errors import InvalidQuery
from pgembed.inputs import Expression, Input, InputModality, Operand, Sum, Term

ALPHA, BETA, GAMMA = 1.0, 0.75, 0.15  # Rocchio's weights, as Manning, Raghavan and Schütze 2008 give them (9.1.1)
SWAP_WEIGHT = 1.0
LAMBDA = 0.5
SHIPPED_COMPOSER = "composer:lite"
_OPPOSITE = 1e-6  # of an angle to pi
_TINY = 1e-6  # of an angle: the arc is a line
_DEPENDENT = 1e-5  # of the length of a unit vector: what is left of a direction that depends on others
_NOTHING = 1e-6
Encode = Callable[[Input], NDArray[Any]]


class Operation(Operand):
    """An operation on expressions. Its operands are normalized first, its result at the end."""

    __slots__ = ()

    @property
    def operands(self) -> tuple[Expression, ...]:
        """What it works on, in the order of its arguments."""
        raise NotImplementedError

    @property
    def inputs(self) -> tuple[Input, ...]:
        return tuple(input for operand in self.operands for input in operand.inputs)

    def direction(self, encode: Encode) -> NDArray[np.float64]:
        """Its vector, of unit length, ``(dim,) float64``. Raises InvalidQuery where it has none."""
        directions = [operand.direction(encode) for operand in self.operands]
        for operand, vector in zip(self.operands, directions, strict=True):
            if vector.size != directions[0].size:
                raise InvalidQuery(
                    f"{self.operands[0]!r} has {directions[0].size} dimensions, {operand!r} has {vector.size}.",
                    "Vectors of one query must come from one space.",
                )
        return self.of(directions)

    def of(self, directions: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
        """The result for unit vectors of the operands, ``(dim,) float64`` each."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True, repr=False)
class Unit(Operation):
    """The direction of a sum as one operand of another: its length, which depends on its terms, counts no more."""

    operand: Expression

    @property
    def operands(self) -> tuple[Expression, ...]:
        return (self.operand,)

    def of(self, directions: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
        return directions[0]

    def __repr__(self) -> str:
        return f"unit({self.operand!r})"


@dataclass(frozen=True, slots=True, repr=False)
class Slerp(Operation):
    """The direction at share ``t`` of the way from ``start`` to ``end`` on the great circle. See ``slerp``."""

    start: Expression
    end: Expression
    t: float

    @property
    def operands(self) -> tuple[Expression, ...]:
        return (self.start, self.end)

    def of(self, directions: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
        a, b = directions
        angle = 2 * math.atan2(float(np.linalg.norm(a - b)), float(np.linalg.norm(a + b)))
        if math.pi - angle < _OPPOSITE:
            raise InvalidQuery(
                f"The ends of {self!r} are opposite to each other: there is no single way between them.",
                "Go through a third one, or use a weighted sum.",
            )
        if angle < _TINY:
            point = a + self.t * (b - a)
        else:
            point = (math.sin((1 - self.t) * angle) * a + math.sin(self.t * angle) * b) / math.sin(angle)
        return point / np.linalg.norm(point)

    def __repr__(self) -> str:
        return f"slerp({self.start!r}, {self.end!r}, {self.t!r})"


@dataclass(frozen=True, slots=True, repr=False)
class Reject(Operation):
    """What is left of an expression without its parts along ``directions``. See ``reject``."""

    operand: Expression
    directions: tuple[Expression, ...]

    @property
    def operands(self) -> tuple[Expression, ...]:
        return (self.operand, *self.directions)

    def of(self, directions: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
        rest, basis = directions[0], orthonormal(directions[1:])
        for _ in range(2):
            for axis in basis:
                rest = rest - (rest @ axis) * axis
        if (length := float(np.linalg.norm(rest))) <= _NOTHING:
            raise InvalidQuery(
                f"{self.operand!r} lies in the directions that are rejected: nothing is left of it.",
                "Reject fewer directions.",
            )
        return rest / length

    def __repr__(self) -> str:
        return f"reject({', '.join(map(repr, self.operands))})"


@dataclass(frozen=True, slots=True, repr=False)
class Equalized(Operation):
    """One member of a set that was evened out over ``directions``. See ``equalize``."""

    members: tuple[Expression, ...]
    directions: tuple[Expression, ...]
    place: int

    @property
    def operands(self) -> tuple[Expression, ...]:
        return (*self.members, *self.directions)

    def of(self, directions: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
        members, basis = np.stack(directions[: len(self.members)]), orthonormal(directions[len(self.members) :])
        mean = members.mean(axis=0)
        shared = mean - sum((mean @ axis) * axis for axis in basis)
        sides = [sum(((member - mean) @ axis) * axis for axis in basis) for member in members]
        for member, side in zip(self.members, sides, strict=True):  # of all: what SQL computes, it computes for all
            if float(np.linalg.norm(side)) <= _NOTHING:
                raise InvalidQuery(
                    f"{member!r} does not differ from the others of {self!r} in the directions.",
                    'Give members on different sides, like Text("he") and Text("she").',
                )
        side = sides[self.place]
        point = shared + math.sqrt(max(0.0, 1 - float(shared @ shared))) * side / np.linalg.norm(side)
        return point / np.linalg.norm(point)

    def __repr__(self) -> str:
        directions = "".join(f", {each!r}" for each in self.directions)
        return f"equalize([{', '.join(map(repr, self.members))}]{directions})[{self.place}]"


@dataclass(frozen=True, slots=True, repr=False)
class View(Input):
    """A view of the space that is searched, by its name; the catalog has its directions.

    ``reject(query, View("gender"))`` takes all of them out, ``query + 0.4 * View("gender")`` goes along the first.
    """

    modality: ClassVar[InputModality] = "view"
    name: str

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name.strip():  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InvalidQuery(f"View({self.name!r}) names no view.", "Give the name that it was learnt under.")

    def direction(self, encode: Encode) -> NDArray[np.float64]:
        raise InvalidQuery(f"{self!r} has its directions only in the database.", "Search with it: db.search(…).")

    def __repr__(self) -> str:
        return f"View({self.name!r})"


@dataclass(frozen=True, slots=True, repr=False)
class Changed(Operation):
    """What a trained composer makes of a reference and a change. See ``changed``."""

    reference: Expression
    to: Expression
    was: Expression | None
    by: str

    @property
    def operands(self) -> tuple[Expression, ...]:
        return (self.reference, self.to) if self.was is None else (self.reference, self.to, self.was)

    def direction(self, encode: Encode) -> NDArray[np.float64]:
        raise InvalidQuery(f"{self!r} has a vector only where its composer is loaded.", "Search with it: db.search(…).")

    def __repr__(self) -> str:
        was = "" if self.was is None else f", was={self.was!r}"
        return f"changed({self.reference!r}, to={self.to!r}{was}, by={self.by!r})"


def unit(expression: Expression) -> Expression:
    """The direction of a sum as one operand: ``image + 0.8 * unit(Text("red") - Text("blue"))``."""
    _require(expression, "unit")
    return expression if isinstance(expression, Operand) else Unit(expression)


def slerp(start: Expression, end: Expression, t: float) -> Expression:
    """The direction at share ``t`` of the way from ``start`` to ``end`` on the great circle: 0 is the start, 1 the end.

    Shoemake 1985. Raises InvalidQuery for a share that is not finite; ends that are opposite have no way between them.
    """
    _require(start, "slerp")
    _require(end, "slerp")
    return Slerp(start, end, _finite(t, "The share t of slerp"))


def reject(expression: Expression, *directions: Expression) -> Expression:
    """``expression`` without what it has of ``directions``: "not short", "whatever the colour".

    The directions are made orthonormal first; one that depends on those before it is passed over.
    """
    for each in (expression, *directions):
        _require(each, "reject")
    return Reject(expression, directions) if directions else unit(expression)


def neutralize(expression: Expression, *directions: Expression) -> Expression:
    """``reject`` under the name that Bolukbasi et al. 2016 gave it: what has nothing of the directions."""
    return reject(expression, *directions)


def equalize(members: Sequence[Expression], *directions: Expression) -> tuple[Expression, ...]:
    """The members of a set ("he", "she") as directions that differ in ``directions`` alone, each by the same length.

    What has nothing of the directions is then equally near to all of them. Bolukbasi et al. 2016. Raises InvalidQuery
    for fewer than two members or no direction; members that do not differ in the directions cannot be evened out.
    """
    for each in (*_several(members, "equalize"), *directions):
        _require(each, "equalize")
    if len(members) < 2 or not directions:
        raise InvalidQuery(
            f"equalize was given {len(members)} members and {len(directions)} directions.",
            "Give it two members at least, and a direction.",
        )
    return tuple(Equalized(tuple(members), directions, place) for place in range(len(members)))


def orthonormal(directions: Sequence[NDArray[np.float64]]) -> list[NDArray[np.float64]]:
    """An orthonormal basis of directions ``(dim,)``; one that depends on those before it is passed over.

    Modified Gram-Schmidt, each projection twice.
    """
    basis: list[NDArray[np.float64]] = []
    for direction in directions:
        rest = direction / np.linalg.norm(direction)
        for _ in range(2):  # once more takes away what rounding left
            for axis in basis:
                rest = rest - (rest @ axis) * axis
        if (length := float(np.linalg.norm(rest))) > _DEPENDENT:
            basis.append(rest / length)
    return basis


def swap(expression: Expression, old: Expression, new: Expression, weight: float = SWAP_WEIGHT) -> Expression:
    """This, but ``new`` in place of ``old``: the expression, and ``weight`` times the direction from old to new."""
    for each in (expression, old, new):
        _require(each, "swap")
    return unit(expression) + _finite(weight, "The weight of swap") * unit(new - old)


def changed(
    reference: Expression, *, to: Expression, was: Expression | None = None, by: str = SHIPPED_COMPOSER
) -> Expression:
    """This, but as ``to`` says, in place of ``was``: a trained composer's answer, where ``swap`` adds and subtracts.

    ``by`` is the name of a registered composer or a spec, ``composer:FOLDER``; default: the one that ships with
    ``builtin:lite``. Raises InvalidQuery for an empty name.
    """
    for each in (reference, to, *(() if was is None else (was,))):
        _require(each, "changed")
    if not isinstance(by, str) or not by.strip():  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InvalidQuery(f"changed(by={by!r}) names no composer.", "Give its registered name, or composer:FOLDER.")
    return Changed(reference, to, was, by)


def centroid(*expressions: Expression) -> Expression:
    """The direction of the mean of what has unit length: "like all of these"."""
    if not expressions:
        raise InvalidQuery("centroid was given nothing.", "Give it one expression at least.")
    for each in expressions:
        _require(each, "centroid")
    return Sum(tuple(Term(1 / len(expressions), _operand(each)) for each in expressions))


def rocchio(
    query: Expression | None = None,
    *,
    liked: Sequence[Expression] = (),
    disliked: Sequence[Expression] = (),
    alpha: float = ALPHA,
    beta: float = BETA,
    gamma: float = GAMMA,
) -> Expression:
    """A query after feedback: ``alpha`` of it, ``beta`` of the mean of what was liked, less ``gamma`` of the other.

    Without a query it is "more like these, unlike those". Rocchio 1971. Raises InvalidQuery where nothing is given.
    """
    for each in (*(() if query is None else (query,)), *_several(liked, "rocchio"), *_several(disliked, "rocchio")):
        _require(each, "rocchio")
    terms: list[Term] = []
    if query is not None:
        terms.append(Term(_finite(alpha, "alpha"), _operand(query)))
    for weight, expressions in ((_finite(beta, "beta"), liked), (-_finite(gamma, "gamma"), disliked)):
        terms += [Term(weight / len(expressions), _operand(each)) for each in expressions]
    if not terms:
        raise InvalidQuery("rocchio was given neither a query nor what was liked or disliked.", "Give one of them.")
    return Sum(tuple(terms))


def mmr(
    vectors: NDArray[Any] | Sequence[Sequence[float]],
    relevance: Sequence[float] | NDArray[Any],
    k: int,
    lambda_: float = LAMBDA,
) -> list[int]:
    """The places, from 0, of ``k`` of n vectors ``(n, dim)`` that are relevant and unlike each other, best first.

    Greedy: each time the largest ``lambda_ * relevance - (1 - lambda_) * (greatest cosine to one chosen before)``; of
    equals the first. Maximal marginal relevance, Carbonell and Goldstein, SIGIR 1998. Raises InvalidQuery.
    """
    rows, scores = np.asarray(vectors, dtype=np.float64), np.asarray(relevance, dtype=np.float64)
    if not len(rows) and not len(scores):
        return []
    if rows.ndim != 2 or scores.shape != (len(rows),):
        raise InvalidQuery(f"mmr was given vectors of shape {rows.shape} and {scores.size} scores.", "One for each.")
    if isinstance(k, bool) or k < 1:
        raise InvalidQuery(f"mmr is asked for {k} rows.", "Ask for one at least.")
    if not 0 <= lambda_ <= 1:
        raise InvalidQuery(f"The lambda of mmr is {lambda_}.", "Give a number from 0 (unlike) to 1 (relevant).")
    lengths = np.linalg.norm(rows, axis=1)
    if not (np.isfinite(scores).all() and np.isfinite(lengths).all() and lengths.all()):
        raise InvalidQuery(
            "mmr was given a score that is not finite, or a vector that is zero or not finite.",
            "Leave out the rows that have no vector or no score.",
        )
    rows = rows / lengths[:, None]
    chosen: list[int] = []
    nearest = np.zeros(len(rows))
    left = np.ones(len(rows), dtype=bool)
    while len(chosen) < min(k, len(rows)):
        value = np.where(left, lambda_ * scores - (1 - lambda_) * nearest, -np.inf)
        best = int(value.argmax())
        likeness = rows @ rows[best]
        nearest = likeness if not chosen else np.maximum(nearest, likeness)
        chosen.append(best)
        left[best] = False
    return chosen


def _several(expressions: Sequence[Expression], name: str) -> Sequence[Expression]:
    if isinstance(expressions, Expression):
        raise TypeError(f"{name} takes lists of expressions: [{expressions!r}].")
    return expressions


def _operand(expression: Expression) -> Operand:
    found = unit(expression)
    assert isinstance(found, Operand)
    return found


def _require(value: object, name: str) -> None:
    if not isinstance(value, Expression):
        raise TypeError(
            f"{name} takes expressions, not {type(value).__name__}: say what it is with Text(…), Image(…),"
            " Screenshot(…), Row(…) or Vector(…)."
        )


def _finite(value: float, name: str) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise InvalidQuery(f"{name} is {number}.", "Use a finite number.")
    return number
