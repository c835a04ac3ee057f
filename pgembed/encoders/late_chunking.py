"""Late chunking: a text is encoded whole, and the outputs of each passage's tokens are averaged (arXiv 2409.04701).

A text of more tokens than the model reads is encoded in windows that overlap by half. A token is taken from the window
whose middle is nearest, so that a quarter of a window at least stands on either side of it, the text's ends apart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import TYPE_CHECKING

import numpy as np

from pgembed.encoders.text_tokens import TokenizerTokens
from pgembed.errors import InvalidInput, UnsupportedModality

if TYPE_CHECKING:
    from pgembed.encoders.base import Vectors
    from pgembed.encoders.text_tokens import Places

    Run = Callable[[Sequence[Sequence[int]]], Vectors]

ANY_LENGTH = 2048  # tokens of a window of a model that reads texts of any length


def no_token_outputs(spec: str, why: str) -> UnsupportedModality:
    """The error of an encoder that cannot chunk late."""
    return UnsupportedModality(
        f"Encoder '{spec}' {why}, so it cannot chunk late.",
        'Use {"context": "prefix"}, or an encoder that averages its tokens, such as'
        " sentence-transformers:all-MiniLM-L6-v2.",
    )


@dataclass(frozen=True)
class Window:
    """Tokens ``start`` to ``stop`` are encoded together, and the outputs of ``first`` to ``last`` are taken."""

    start: int
    stop: int
    first: int
    last: int


def windows(count: int, size: int) -> list[Window]:
    """Windows of ``size`` of ``count`` tokens; the last ends where they end, so that all are of one length."""
    if count <= size:
        return [Window(0, count, 0, count)]
    step = max(size - size // 2, 1)
    starts = [*range(0, count - size, step), count - size]
    edges = [0, *((left + size + right) // 2 for left, right in pairwise(starts)), count]
    return [
        Window(start, start + size, first, last) for start, first, last in zip(starts, edges, edges[1:], strict=False)
    ]


def span_means(
    text: str,
    spans: Sequence[tuple[int, int]],
    tokens: TokenizerTokens,
    run: Run,
    *,
    dim: int,
    batch: int,
    prompt_counts: bool = True,
) -> Vectors:
    """The mean of the outputs of each span's tokens, ``(n, dim) float32``; zero where a span has no token.

    ``run`` gives the outputs ``(b, m, dim)`` of b windows of m token ids, at most ``batch`` at once. What stands before
    and after a text, such as [CLS], counts with its first and its last token, so that the span of a whole text is the
    text's own mean; what stands before does not where ``prompt_counts`` is false. Raises InvalidInput for a span that
    is not in the text.
    """
    for start, end in spans:
        if not 0 <= start <= end <= len(text):
            raise InvalidInput(
                f"The span {start} to {end} is not in a text of {len(text)} characters.",
                "Give start and end in characters of the text, the end excluded.",
            )
    found = tokens.tokenized(text)
    count = len(found.ids)
    if not spans or not count:
        return np.zeros((len(spans), dim), dtype=np.float32)
    first, stop = _token_ranges(found.spans, np.array(spans, dtype=np.int64), len(text))
    totals = np.zeros((len(spans), dim))
    counts = np.maximum(stop - first, 0)
    head, tail = len(found.before), len(found.after)
    every = windows(count, tokens.room or ANY_LENGTH)
    for window, outputs in zip(every, _outputs(found.before, found.ids, found.after, every, run, batch), strict=True):
        sums = np.zeros((window.last - window.first + 1, dim))
        begin = head + window.first - window.start
        np.cumsum(outputs[begin : begin + window.last - window.first], axis=0, dtype=np.float64, out=sums[1:])
        low, high = (np.clip(places, window.first, window.last) - window.first for places in (first, stop))
        met = high > low
        totals[met] += sums[high[met]] - sums[low[met]]
        if window is every[0] and head and prompt_counts:
            starting = (first == 0) & (counts > 0)
            totals[starting] += outputs[:head].sum(axis=0, dtype=np.float64)
            counts[starting] += head
        if window is every[-1] and tail:
            ending = (stop == count) & (counts > 0)
            totals[ending] += outputs[len(outputs) - tail :].sum(axis=0, dtype=np.float64)
            counts[ending] += tail
    return (totals / np.maximum(counts, 1)[:, None]).astype(np.float32)


def _token_ranges(places: Places, spans: Places, length: int) -> tuple[Places, Places]:
    """The first token of each span and the one after its last: those that share a character with it."""
    starts = np.maximum.accumulate(np.minimum(places[:, 0], length - 1))
    ends = np.maximum.accumulate(np.maximum(places[:, 1], starts + 1))
    return np.searchsorted(ends, spans[:, 0], side="right"), np.searchsorted(starts, spans[:, 1], side="left")


def _outputs(
    before: list[int], ids: list[int], after: list[int], every: Sequence[Window], run: Run, batch: int
) -> Iterator[Vectors]:
    remaining = iter(every)
    while some := list(islice(remaining, batch)):
        yield from run([[*before, *ids[window.start : window.stop], *after] for window in some])
