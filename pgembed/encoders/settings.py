"""The settings of a registration, checked before a model is loaded."""

from __future__ import annotations

from collections.abc import Mapping

from pgembed.encoders.base import Settings
from pgembed.errors import EncoderError

# What a setting takes: a type, or the words that it may be.
Known = Mapping[str, type | tuple[str, ...]]


def check_settings(spec: str, settings: Settings, known: Known) -> None:
    """Raises EncoderError for a setting that is not known, or whose value is of another type, or no such word.

    An int is at least 1; where a float is wanted, a whole number is one too.
    """
    for key, value in settings.items():
        wanted = known.get(key)
        if wanted is None:
            raise EncoderError(f"Encoder '{spec}' has no setting '{key}'.", f"Its settings: {', '.join(known)}.")
        if isinstance(wanted, tuple):
            if value not in wanted:
                raise EncoderError(f"The setting '{key}' of '{spec}' is {value!r}.", f"Use {', '.join(wanted)}.")
        elif not _fits(value, wanted):
            shown = {int: "a positive int", float: "a number", dict: "an object", list: "a list"}
            raise EncoderError(
                f"The setting '{key}' of '{spec}' takes {shown.get(wanted, wanted.__name__)}, not {value!r}."
            )


def _fits(value: object, wanted: type) -> bool:
    if wanted is float and type(value) is int:
        return True
    return type(value) is wanted and not (wanted is int and isinstance(value, int) and value < 1)
