"""The vectors of an answer, checked: as many as were asked for, each in its place, each of the right length."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pgembed.encoders.http.forms import Form, find

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Unusable(Exception):
    """An answer that does not hold what was asked for; says what is wrong, to go after 'The server …'."""


def vectors_in(answer: Any, form: Form, count: int, dim: int | None) -> list[NDArray[np.float32]]:  # noqa: ANN401
    """The ``count`` vectors of an answer in the order of the inputs, ``(dim,) float32`` each. Raises Unusable.

    Numbers may come as a list, or as base64 of little-endian float32. A vector that is not finite is given as it is.
    """
    try:
        raw = find(answer, form.vectors)
    except (LookupError, TypeError, ValueError):
        raise Unusable(f"gave an answer without vectors at '{form.vectors}'") from None
    if len(raw) != count:
        raise Unusable(f"gave {len(raw)} vectors for {count} inputs")
    found = [_vector(value) for value in raw]
    for vector in found:
        if vector.shape[0] != (dim or found[0].shape[0]):
            raise Unusable(f"gave a vector of {vector.shape[0]} dimensions, and {dim or found[0].shape[0]} are wanted")
    places = _places(answer, form, count)
    ordered = [found[0]] * count
    for place, vector in zip(places, found, strict=True):
        ordered[place] = vector
    return ordered


def _places(answer: Any, form: Form, count: int) -> Sequence[int]:  # noqa: ANN401
    """Which input each vector is for; in order, where the answer does not say."""
    if form.index is None:
        return range(count)
    try:
        places: list[Any] = find(answer, form.index)
    except (LookupError, TypeError, ValueError):
        return range(count)
    if any(type(place) is not int for place in places) or sorted(places) != list(range(count)):
        raise Unusable(f"numbered its vectors otherwise than from 0 to {count - 1}")
    return places


def _vector(value: object) -> NDArray[np.float32]:
    if isinstance(value, str):
        try:
            data = base64.b64decode(value, validate=True)
            vector = np.frombuffer(data, dtype="<f4").astype(np.float32)
        except (binascii.Error, ValueError):
            raise Unusable("gave a vector that is neither numbers nor base64 of float32") from None
    else:
        try:
            vector = np.asarray(value, dtype=np.float32)
        except (TypeError, ValueError):
            raise Unusable("gave a vector that is not a list of numbers") from None
    if vector.ndim != 1 or not vector.size:
        raise Unusable(f"gave a vector of shape {vector.shape}; one list of numbers an input is wanted")
    return vector
