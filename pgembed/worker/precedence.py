"""Who calls an encoder first: queries, for which somebody waits, before the batches of rows."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Generator
from contextlib import contextmanager

from pgembed.worker.pipes import Stopped

LOOK_EVERY = 0.2  # seconds between looks whether the session is broken


class Precedence:
    """One call of an encoder at a time, by its registered name; queries that wait go first."""

    def __init__(self, broken: threading.Event) -> None:
        """``broken`` ends all waiting: the encoder may never return from the call before it."""
        self._broken = broken
        self._changed = threading.Condition()
        self._busy: set[str] = set()
        self._queries: dict[str, int] = defaultdict(int)

    @contextmanager
    def of_query(self, encoder: str) -> Generator[None]:
        """The next turn. Raises Stopped where the session is broken."""
        with self._changed:
            self._queries[encoder] += 1
            try:
                self._take(encoder, queries=True)
            finally:
                self._queries[encoder] -= 1
        try:
            yield
        finally:
            self._give_back(encoder)

    @contextmanager
    def of_rows(self, encoder: str) -> Generator[None]:
        """A turn when no query waits; or at once where the session is broken, and nothing that comes of it is kept."""
        with self._changed:
            self._take(encoder, queries=False)
        try:
            yield
        finally:
            self._give_back(encoder)

    def _take(self, encoder: str, *, queries: bool) -> None:
        while encoder in self._busy or (self._queries[encoder] and not queries):
            if self._broken.is_set():
                if queries:
                    raise Stopped
                break
            self._changed.wait(LOOK_EVERY)
        self._busy.add(encoder)

    def _give_back(self, encoder: str) -> None:
        with self._changed:
            self._busy.discard(encoder)
            self._changed.notify_all()
