"""Ways to compose a picture and words into one query, each with its weight: the operations of pgembed.algebra."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pgembed.algebra import slerp, swap
from pgembed.errors import InvalidInput
from pgembed.inputs import Expression

Compose = Callable[[Expression, Expression, Expression | None, float], Expression]


@dataclass(frozen=True)
class Way:
    """How a picture and the words for its change become one query; ``weight`` where none is given."""

    name: str
    compose: Compose
    weight: float = 1.0
    takes_old: bool = False


def _swap(picture: Expression, words: Expression, old: Expression | None, weight: float) -> Expression:
    assert old is not None
    return swap(picture, old, words, weight)


WAYS = {
    way.name: way
    for way in (
        Way("image", lambda picture, words, old, weight: picture),
        Way("text", lambda picture, words, old, weight: words),
        Way("sum", lambda picture, words, old, weight: picture + weight * words),
        Way("slerp", lambda picture, words, old, weight: slerp(picture, words, weight), 0.5),
        Way("swap", _swap, takes_old=True),
    )
}


def way_named(name: str) -> Way:
    """Raises InvalidInput for a name that is none."""
    if name not in WAYS:
        raise InvalidInput(f"'{name}' is no way of composing.", f"Ways: {', '.join(WAYS)}.")
    return WAYS[name]
