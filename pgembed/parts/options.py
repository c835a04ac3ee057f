"""The options of a splitter, checked before it takes anything apart."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pgembed.errors import InvalidInput

# What an option may be: words, or the least and the most of a number (a whole one where both are), or a type.
Known = Mapping[str, tuple[str, ...] | tuple[int, int] | tuple[float, float] | type]


def checked(kind: str, options: Mapping[str, Any], known: Known) -> dict[str, Any]:
    """The options, as they were given. Raises InvalidInput for one that there is not, or that cannot be so."""
    for name, value in options.items():
        if name not in known:
            raise InvalidInput(f"'{kind}' has no option '{name}'.", f"Its options: {', '.join(known)}.")
        if (wanted := _wanted(value, known[name])) is not None:
            raise InvalidInput(f"The option '{name}' of '{kind}' is {value!r}.", f"Give {wanted}.")
    return dict(options)


def _wanted(value: object, known: tuple[str, ...] | tuple[int, int] | tuple[float, float] | type) -> str | None:
    """What the option takes, in words, where the value is no such thing."""
    if isinstance(known, type):
        return None if type(value) is known else {bool: "true or false"}.get(known, known.__name__)
    if isinstance(known[0], str):
        return None if value in known else f"one of {', '.join(str(word) for word in known)}"
    least, most = known
    whole = isinstance(least, int) and isinstance(most, int)
    fits = type(value) is int if whole else type(value) in {int, float}
    if fits and least <= value <= most:  # pyright: ignore[reportOperatorIssue]
        return None
    return f"a {'whole ' if whole else ''}number from {least} to {most}"
