"""How many inputs a model takes at once: what the settings say, or what is found by doubling on the first real work."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from pgembed.encoders.base import Vectors

T = TypeVar("T")

AUTO = "auto"
FIRST = 4  # inputs at once, to begin with
MOST = 256  # inputs that one call of an encoder is handed, and at most taken at once
GAIN = 1.05  # a size twice as large must give this many times the throughput
log = logging.getLogger("pgembed.encoders")


def chosen_size(settings: Mapping[str, Any]) -> int | None:
    """The setting batch_size; None where it is left out or ``auto``."""
    size = settings.get("batch_size", AUTO)
    return None if size == AUTO else size


def without_auto(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings without ``"batch_size": "auto"``, which says what leaving it out says."""
    return {key: value for key, value in settings.items() if (key, value) != ("batch_size", AUTO)}


class Batcher:
    """Hands a model its inputs in batches, and finds their size meanwhile.

    Without a size it begins with FIRST inputs and doubles as long as that pays; only inputs that have to be encoded
    anyway are timed, so nothing is done twice. A batch that does not fit into memory is halved, with a size or without.
    """

    def __init__(
        self,
        spec: str,
        size: int | None = None,
        *,
        out_of_memory: Callable[[Exception], bool] = lambda _: False,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.size = size or FIRST
        self.found = size is not None
        self._spec = spec
        self._out_of_memory = out_of_memory
        self._clock = clock
        self._best = 0.0  # work a second, at half of the present size
        self._tries: list[float] | None = None  # the same at the present size; None before the first call

    def run(
        self, inputs: Sequence[T], encode: Callable[[Sequence[T]], Vectors], work: Callable[[Sequence[T]], float] = len
    ) -> list[Vectors]:
        """The vectors of all inputs, a batch each; ``work`` says how much a batch is where inputs differ in length."""
        vectors: list[Vectors] = []
        start = 0
        while start < len(inputs):
            batch = inputs[start : start + self.size]
            began = self._clock()
            try:
                vectors.append(encode(batch))
            except Exception as error:
                if len(batch) == 1 or not self._out_of_memory(error):
                    raise
                self._shrink(len(batch))
                continue
            start += len(batch)
            if not self.found and len(batch) == self.size:
                self._note(work(batch) / max(self._clock() - began, 1e-9))
        return vectors

    def _note(self, rate: float) -> None:
        if self._tries is None:  # the first call also makes buffers and picks kernels
            self._tries = []
            return
        self._tries.append(rate)
        if max(self._tries) >= self._best * GAIN:
            self._best = max(self._tries)
            self.found = self.size >= MOST
            self.size = min(self.size * 2, MOST)
            self._tries = []
        elif len(self._tries) == 2:  # one slow try may be somebody else's
            self.size = max(self.size // 2, FIRST)
            self.found = True

    def _shrink(self, failed: int) -> None:
        self.size, self.found = failed // 2, True
        log.warning(
            "Encoder '%s' ran out of memory on %d inputs at once; it takes %d from now on.",
            self._spec,
            failed,
            self.size,
        )
