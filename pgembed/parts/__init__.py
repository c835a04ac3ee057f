"""Splitters: many vectors a row. The protocol, and the registry of kinds (entry-point group ``pgembed.splitters``)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from pgembed.errors import InvalidInput
from pgembed.parts.base import Part, Span, Splitter

__all__ = ["Part", "Span", "Splitter", "load_splitter", "parts_of", "splitters"]

GROUP = "pgembed.splitters"


def splitters() -> dict[str, EntryPoint]:
    """The splitters that are installed, by name."""
    return {entry.name: entry for entry in entry_points(group=GROUP)}


def parts_of(given: str | Mapping[str, Any] | None) -> str | None:
    """How an input is taken apart in its one form: ``chunks``, or JSON with options. Raises InvalidInput."""
    if given is None:
        return None
    options: Any = given
    if isinstance(given, str):
        try:
            options = json.loads(given) if given.lstrip().startswith("{") else {"kind": given}
        except ValueError as error:
            raise InvalidInput(
                f"parts is not valid JSON: {error}.", 'For example: {"kind": "chunks", "tokens": 200}.'
            ) from None
    try:
        options = dict(options)
        written = json.dumps(options, sort_keys=True)
    except (TypeError, ValueError):
        options, written = {}, ""
    if not isinstance(options.get("kind"), str):
        raise InvalidInput(
            f"parts is the name of a splitter, or a mapping with its kind, not {given!r}.",
            'For example: "chunks", or {"kind": "chunks", "tokens": 200}.',
        )
    return options["kind"] if options.keys() == {"kind"} else written


def load_splitter(options: Mapping[str, Any]) -> Splitter:
    """The splitter that ``{"kind": "chunks", "tokens": 200}`` names, with its options. Raises InvalidInput."""
    given = dict(options)
    kind = given.pop("kind", None)
    installed = splitters()
    if kind not in installed:
        known = ", ".join(sorted(installed)) or "none"
        raise InvalidInput(f"There is no splitter {kind!r}.", f"Installed: {known}.")
    found: type[Splitter] = installed[kind].load()
    return found.load(given)
