"""Pictures' sources as messages and logs may show them: short, and without what is secret in them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

_DATA_URL = re.compile(r"data:[^,]{0,200},", re.IGNORECASE)
URL = re.compile(rf"[A-Za-z][A-Za-z0-9+.-]*://|{_DATA_URL.pattern}", re.IGNORECASE)


def shown_source(source: str | bytes | Picture, limit: int = 80, *, url: bool = False) -> str:
    """A picture's source as messages and logs may show it: shortened, a URL without credentials, query and fragment.

    ``url`` says that a string is meant as a URL, even where it does not look like one.
    """
    if isinstance(source, str):
        of_url = url or URL.match(source)
        return repr(shortened(shown_url(source), limit) if of_url else _ends(source, limit))
    if isinstance(source, bytes):
        return f"<{len(source):,} bytes {source[:8].hex()}{'…' if len(source) > 8 else ''}>"
    return f"<PIL image {source.mode} {source.width} x {source.height}>"


def _ends(path: str, limit: int) -> str:
    """A path's beginning, and its end, where the file is named."""
    half = limit // 2
    return path if len(path) <= limit else f"{path[: limit - half - 1]}…{path[-half:]}"


def shown_url(url: str) -> str:
    """``https://me:secret@host/a.png?key=1`` -> ``https://host/a.png``; of a data: URL what comes before the data."""
    if data := _DATA_URL.match(url):
        return f"{data[0]}…"
    plain = re.split("[?#]", url, maxsplit=1)[0]
    scheme, mark, rest = plain.partition("://")
    if not mark:
        return plain.rpartition("@")[2]
    host, slash, path = rest.partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"


def shortened(text: str, limit: int = 80) -> str:
    """A text of at most so many characters, an ellipsis its last where it was longer."""
    return text if len(text) <= limit else f"{text[: limit - 1]}…"
