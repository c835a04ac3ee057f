"""pgembed: search an existing Postgres database by words and pictures. The public names."""

import os
import sys
from contextlib import suppress
from importlib import import_module
from typing import TYPE_CHECKING


def _other_may_be_there() -> bool:
    """Whether a folder on the path has the other distribution's name: importlib.metadata takes ten times as long."""
    for folder in sys.path:
        with suppress(OSError):
            if any(name.lower().startswith(("pgembed-", "pgembed.egg-info")) for name in os.listdir(folder or ".")):
                return True
    return False


if _other_may_be_there():
    from pgembed._distribution import refuse_the_other

    refuse_the_other()

if TYPE_CHECKING:
    from pgembed.algebra import (
        View,
        centroid,
        changed,
        equalize,
        mmr,
        neutralize,
        reject,
        rocchio,
        slerp,
        swap,
        unit,
    )
    from pgembed.client import Pgembed, connect
    from pgembed.client_async import AsyncPgembed, connect_async
    from pgembed.encoders import EncoderPolicy
    from pgembed.errors import PgembedError
    from pgembed.inputs import Expression, Image, Row, Screenshot, Text, Vector
    from pgembed.query.wire import from_json, to_json

__all__ = [
    "AsyncPgembed",
    "EncoderPolicy",
    "Expression",
    "Image",
    "Pgembed",
    "PgembedError",
    "Row",
    "Screenshot",
    "Text",
    "Vector",
    "View",
    "centroid",
    "changed",
    "connect",
    "connect_async",
    "equalize",
    "from_json",
    "mmr",
    "neutralize",
    "reject",
    "rocchio",
    "slerp",
    "swap",
    "to_json",
    "unit",
]

# Loaded when first used: a command's --help, and the shell's Tab key, wait for none of it.
_HOMES = {
    "pgembed.client": {"Pgembed", "connect"},
    "pgembed.client_async": {"AsyncPgembed", "connect_async"},
    "pgembed.encoders": {"EncoderPolicy"},
    "pgembed.errors": {"PgembedError"},
    "pgembed.algebra": {
        "View",
        "centroid",
        "changed",
        "equalize",
        "mmr",
        "neutralize",
        "reject",
        "rocchio",
        "slerp",
        "swap",
        "unit",
    },
    "pgembed.inputs": {"Expression", "Image", "Row", "Screenshot", "Text", "Vector"},
    "pgembed.query.wire": {"from_json", "to_json"},
}


def __getattr__(name: str) -> object:
    for home, names in _HOMES.items():
        if name in names:
            found = globals()[name] = getattr(import_module(home), name)
            return found
    raise AttributeError(f"module 'pgembed' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
