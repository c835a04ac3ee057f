"""Large pictures take turns, so that a few of them at once do not fill the memory."""

from __future__ import annotations

import threading
from collections.abc import Generator
from contextlib import contextmanager

from pgembed.decoding.process import LARGE


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
