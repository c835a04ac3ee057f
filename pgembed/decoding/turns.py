"""Turns: places that are given in order, and large pictures, of which a few at once would fill the memory."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Generator
from contextlib import contextmanager

from pgembed.decoding.process import LARGE


class Places:
    """A semaphore that serves in order: of threading's, whoever gives a place back may take it again before those that
    wait, and a picture that waits holds up its whole batch."""

    def __init__(self, size: int) -> None:
        self._free = size
        self._waiting: deque[threading.Event] = deque()
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        with self._lock:
            if self._free:
                self._free -= 1
                return
            handed_over = threading.Event()
            self._waiting.append(handed_over)
        handed_over.wait()

    def __exit__(self, *_: object) -> None:
        with self._lock:
            if self._waiting:
                self._waiting.popleft().set()
            else:
                self._free += 1


class Turns:
    """So many pixels of large pictures may be in hand at once; one that is larger by itself waits until it is alone."""

    def __init__(self, pixels: int) -> None:
        self._pixels = pixels
        self._used = 0
        self._changed = threading.Condition()

    @contextmanager
    def hold(self, pixels: int) -> Generator[None]:
        """Wait for the turn of a picture of so many pixels, and keep it."""
        if pixels <= LARGE:
            yield
            return
        with self._changed:
            self._changed.wait_for(lambda: self._used == 0 or self._used + pixels <= self._pixels)
            self._used += pixels
        try:
            yield
        finally:
            with self._changed:
                self._used -= pixels
                self._changed.notify_all()
