"""Where sentences start, in texts of any script."""

from __future__ import annotations

import re
from collections.abc import Iterator

# After the full stop of a script with spaces, and what closes with it, then a space; or after one of a script without.
_STOPS = ".!?\u2026\u061f\u06d4\u0964\u0965\u0589\u1362\u17d4\u104b"
_CLOSING = "\"'”’»›)\\]}」』）】"
_END = re.compile(f"(?<![{_STOPS}])(?P<stop>[{_STOPS}]++)(?P<close>[{_CLOSING}]*+)\\s+|[。！？｡．]+[{_CLOSING}]*\\s*")
_INITIAL = re.compile(
    r"(?:^|[\s(])(?:[^\W\d_]|[^\W\d_]\.[^\W\d_]|Mr|Mrs|Ms|Dr|Prof|St|vs|cf|etc|[Ff]igs?|[Ee]q|[Nn]os?|al)$"
)


def sentence_starts(text: str) -> Iterator[int]:
    """The characters at which a sentence begins, but for the first, in order.

    A full stop ends no sentence after an initial or a usual abbreviation, nor before a small letter, unless it stands
    by itself.
    """
    for found in _END.finditer(text):
        place = found.end()
        if place >= len(text):
            continue
        if found["stop"] == "." and not found["close"]:
            before = text[max(0, found.start() - 6) : found.start()]
            if before[-1:].strip() and (text[place].islower() or _INITIAL.search(before)):
                continue
        yield place
