"""A process that does for this one what it may die of: the end that asks."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress
from io import FileIO
from typing import cast

from pgembed.decoding.process import fill, read_exactly

# The path is handed over, so that the process finds what this one has found, and nothing of the folder it stands in.
_PROGRAM = "import sys; sys.path[:] = sys.argv[2:]; __import__(sys.argv[1], fromlist=['main']).main()"
_PIPE = 1024 * 1024
_SET_PIPE_SIZE = 1031  # F_SETPIPE_SZ, of Linux


class Child:
    """One process that runs ``main`` of a module; ``ready`` unless it died, or was left in the middle of an answer.

    Reading from it raises EOFError where it has ended, writing to it BrokenPipeError. Raises OSError where it cannot be
    started.
    """

    def __init__(self, module: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", _PROGRAM, module, *(os.path.abspath(folder) for folder in sys.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            process_group=0,  # what a terminal sends to the worker is for the worker
        )
        self._requests = cast(FileIO, self._process.stdin)
        self._answers = cast(FileIO, self._process.stdout)
        self.ready = True
        if sys.platform == "linux":
            import fcntl

            for pipe in (self._requests, self._answers):
                with suppress(OSError):  # as much as the system lets a user have
                    fcntl.fcntl(pipe, _SET_PIPE_SIZE, _PIPE)

    def write(self, *parts: bytes | bytearray | memoryview) -> None:
        """Send these bytes."""
        for part in parts:
            left = memoryview(part)
            while left:
                left = left[self._requests.write(left) or 0 :]

    def read(self, length: int) -> bytearray:
        """So many bytes."""
        data = read_exactly(self._answers, length)
        if data is None:
            raise EOFError
        return data

    def fill(self, view: memoryview) -> None:
        """Read until the buffer is full."""
        if not fill(self._answers, view):
            raise EOFError

    def end(self, *, kill: bool = False) -> int:
        """Wait until it has died, and say of what: a signal is below zero."""
        if kill:
            self._process.kill()
        code = self._process.wait()
        for pipe in (self._requests, self._answers):
            with suppress(OSError):
                pipe.close()
        return code
