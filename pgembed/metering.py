"""What encoding costs: tokens of a text, calls and seconds of a server. For budgets, rate limits and estimates."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

BYTES_PER_TOKEN = 4  # of UTF-8: about right for English, and nearer to it for other scripts than characters are


@dataclass(frozen=True)
class Cost:
    """What encoding so many inputs comes to: requests, and seconds in all."""

    calls: int
    seconds: float


@runtime_checkable
class Metered(Protocol):
    """An encoder that is paid for, or waited for, by the call: a server's."""

    def count_tokens(self, texts: Iterable[str]) -> int:
        """The tokens of all texts together."""
        ...

    def cost_of(self, *, texts: int, tokens: int, pictures: int) -> Cost:
        """Calls and seconds for so many inputs, without sending anything."""
        ...


def rough_tokens(text: str) -> int:
    """About how many tokens a text has, without its tokenizer: a quarter of its bytes, one at least."""
    return max(1, -(-len(text.encode(errors="replace")) // BYTES_PER_TOKEN))


def count_tokens(encoder: object, texts: Iterable[str]) -> int:
    """The tokens of texts, as an encoder counts them where it can."""
    if isinstance(encoder, Metered):
        return encoder.count_tokens(texts)
    return sum(map(rough_tokens, texts))
