"""What the messages of picture errors have in common."""

from __future__ import annotations

import re

from pgembed.errors import MediaError


def reason(error: BaseException) -> str:
    """Why, in a few words: what goes after the colon of a message that names the picture."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return re.sub(r"\s+", " ", str(error)).strip().rstrip(".")[:120] or type(error).__name__


def too_long(shown: str, size: int, limit: int) -> MediaError:
    """The error of a picture file that is too large."""
    hint = "Store it smaller, or raise the limit of bytes."
    return MediaError(f"The picture {shown} has {size:,} bytes or more, and the limit is {limit:,}.", hint)
