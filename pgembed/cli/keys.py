"""Primary keys as they are typed."""

from __future__ import annotations

import json

from pgembed.cli.app import WrongUsage


def key_of(text: str, option: str = "--key") -> list[str]:
    """A primary key: of one column its text, of several a JSON array. Raises WrongUsage."""
    if not text.startswith("["):
        return [text]
    try:
        return [part if isinstance(part, str) else json.dumps(part) for part in json.loads(text)]
    except ValueError as error:
        raise WrongUsage(f"{option} {text} is not a JSON array: {error}.", """Write it as '["17", "2"]'.""") from None
