"""The pipes between a worker's stages: bounded, and given up by all where one stage is broken."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator

from pgembed.worker.batch import Batch
from pgembed.worker.memory import Memory
from pgembed.worker.state import Mode, State

STAGE_DEPTH = 2  # batches that may wait between two stages
Pipe = queue.Queue[Batch | None]  # None ends it


class Stopped(Exception):
    """Raised in a stage to leave it."""


class Pipes:
    """What the stages of one session share: the worker's state, and the pipes between them."""

    def __init__(self, state: State, mode: Mode) -> None:
        self.state = state
        self.options = state.options
        self.mode = mode
        self.loaded: Pipe = queue.Queue(STAGE_DEPTH)
        self.encoded: Pipe = queue.Queue(STAGE_DEPTH)
        self.broken = threading.Event()
        self.memory = Memory(state.options.max_memory)

    def put(
        self,
        to: Pipe,
        batch: Batch | None,
        *,
        force: bool = False,
        meanwhile: Callable[[], None] | None = None,
    ) -> None:
        """Hand a batch on; gives up where a stage is broken (``force``: only once nobody takes from the queue).
        ``meanwhile`` is called again and again while there is no room."""
        while True:
            try:
                to.put(batch, timeout=0.2)
                return
            except queue.Full:
                if self.broken.is_set():
                    if force:
                        return
                    raise Stopped from None
                if meanwhile is not None:
                    meanwhile()

    def take(self, source: Pipe) -> Iterator[Batch]:
        """The batches of a stage before, until it ends or one is broken."""
        while True:
            try:
                batch = source.get(timeout=0.2)
            except queue.Empty:
                if self.broken.is_set():
                    return
                continue
            if batch is None:
                return
            yield batch
