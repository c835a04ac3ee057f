"""How much at once and how fast: batches by count and by tokens, and rates a minute that threads share."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

BURST_SECONDS = 5.0  # of the rate, saved up while nothing is sent


class Rate:
    """So many units a minute, for all threads together; a call that needs more than is saved up goes into debt."""

    def __init__(
        self,
        per_minute: int | None,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._per_second = None if per_minute is None else per_minute / 60
        self._clock = clock
        self._sleep = sleep
        self._lock = threading.Lock()
        self._free_at = clock() - BURST_SECONDS  # when all that was taken so far has been earned

    def take(self, units: int) -> None:
        """Wait until the units that were taken before are earned, and take these."""
        if self._per_second is None:
            return
        with self._lock:
            now = self._clock()
            start = max(self._free_at, now - BURST_SECONDS)
            self._free_at = start + units / self._per_second
            wait = start - now
        if wait > 0:
            self._sleep(wait)

    def seconds_for(self, units: int) -> float:
        """How long so many units take."""
        return 0.0 if self._per_second is None else units / self._per_second


def batches(tokens: Sequence[int], *, most: int, most_tokens: int | None) -> list[list[int]]:
    """The places of inputs, in order, in batches of at most so many and of so many tokens; one input is never split."""
    found: list[list[int]] = []
    total = 0
    for place, count in enumerate(tokens):
        full = not found or len(found[-1]) >= most
        if full or (most_tokens is not None and total + count > most_tokens):
            found.append([])
            total = 0
        found[-1].append(place)
        total += count
    return found
