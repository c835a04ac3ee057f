"""Processes that decode pictures: a picture that kills its process fails alone, and the next one gets a new process."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from io import FileIO
from typing import TYPE_CHECKING, Any, cast

from PIL import Image

from pgembed.decoding.picture import Limits
from pgembed.decoding.process import ANSWER, ARRAY, ERROR, REQUEST, SIZE, bands, fill, read_exactly
from pgembed.decoding.turns import Places
from pgembed.errors import MediaError
from pgembed.media_errors import reason

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL.Image import Image as Picture

# The path is handed over, so that the process finds what this one has found, and nothing of the folder it stands in.
_PROGRAM = "import sys; sys.path[:] = sys.argv[1:]; from pgembed.decoding.process import main; main()"
_PIPE = 1024 * 1024
_SET_PIPE_SIZE = 1031  # F_SETPIPE_SZ, of Linux


class ProcessPool:
    """Decodes pictures in processes of its own, which start when they are needed; threads may share it. Close it."""

    def __init__(self, size: int, seconds: float) -> None:
        self._seconds = seconds
        self._places = Places(size)
        self._idle: queue.LifoQueue[_Process] = queue.LifoQueue()
        self._all: set[_Process] = set()
        self._lock = threading.Lock()
        self._closed = False

    def decode(
        self,
        data: bytes,
        limits: Limits | None = None,
        *,
        shown: str | None = None,
        announce: Callable[[int], object] | None = None,
    ) -> Picture:
        """The same as ``decode_picture``. Raises MediaError, also where the process died of the picture."""
        return self._ask(data, limits or Limits(), shown or f"<{len(data):,} bytes>", announce, "")

    def prepare(
        self, data: bytes, limits: Limits, function: str, *, shown: str, announce: Callable[[int], object] | None
    ) -> NDArray[Any]:
        """Decode, and call a function with the picture there: ``package.module:function``, which returns an array."""
        return self._ask(data, limits, shown, announce, function)

    def _ask(
        self, data: bytes, limits: Limits, shown: str, announce: Callable[[int], object] | None, function: str
    ) -> Any:  # noqa: ANN401
        names = [shown.encode(), function.encode()]
        head = REQUEST.pack(len(data), limits.max_pixels, self._seconds, *map(len, names)) + b"".join(names)
        with self._places:
            process = self._take()
            try:
                try:
                    process.ask(head, data)
                except BrokenPipeError:  # it died at rest, which is not the fault of this picture
                    self._forget(process)
                    process = self._start()
                    process.ask(head, data)
                return process.answer(announce)
            except (EOFError, BrokenPipeError):
                raise _death(shown, process.end(), self._seconds) from None
            finally:
                self._give_back(process)

    def close(self) -> None:
        """End the processes, also those that are at work."""
        with self._lock:
            self._closed = True
            for process in self._all:
                process.end(kill=True)
            self._all.clear()

    def _take(self) -> _Process:
        try:
            return self._idle.get_nowait()
        except queue.Empty:
            return self._start()

    def _start(self) -> _Process:
        with self._lock:
            if self._closed:
                raise MediaError("The pictures are no longer decoded: the worker leaves.", transient=True)
            try:
                process = _Process()
            except OSError as error:
                message = f"No process that decodes pictures could be started: {reason(error)}."
                raise MediaError(message, "Or decode in threads: --decode threads", transient=True) from None
            self._all.add(process)
            return process

    def _give_back(self, process: _Process) -> None:
        if process.ready:
            self._idle.put(process)
        else:
            self._forget(process)

    def _forget(self, process: _Process) -> None:
        process.end(kill=True)
        with self._lock:
            self._all.discard(process)


class _Process:
    """One process; ``ready`` unless it died, or was left in the middle of an answer."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", _PROGRAM, *(os.path.abspath(folder) for folder in sys.path)],
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

    def ask(self, request: bytes, data: bytes) -> None:
        self.ready = False
        for part in (request, data):
            left = memoryview(part)
            while left:
                left = left[self._requests.write(left) or 0 :]

    def answer(self, announce: Callable[[int], object] | None) -> Picture | NDArray[Any]:
        kind, first, second = ANSWER.unpack(self._read(ANSWER.size))
        if kind == SIZE:
            if announce is not None:
                announce(first)
            self._requests.write(b"\0")
            kind, first, second = ANSWER.unpack(self._read(ANSWER.size))
        if kind == ERROR:
            told = json.loads(self._read(first))
            self.ready = not told["transient"]
            raise MediaError(told["message"], told["hint"], transient=told["transient"])
        found = self._read_array(first, second) if kind == ARRAY else self._read_picture(first, second)
        self.ready = True
        return found

    def _read_array(self, description_length: int, length: int) -> NDArray[Any]:
        import numpy as np

        description = json.loads(self._read(description_length))
        return np.frombuffer(self._read(length), dtype=description["dtype"]).reshape(description["shape"])

    def _read_picture(self, width: int, height: int) -> Picture:
        picture = Image.new("RGB", (width, height))
        lines = bands(width, height)
        buffer = memoryview(bytearray(lines[0][1] * width * 3))
        for top, bottom in lines:
            part = buffer[: (bottom - top) * width * 3]
            if not fill(self._answers, part):
                raise EOFError
            band = Image.frombytes("RGB", (width, bottom - top), part)
            if len(lines) == 1:
                return band
            picture.paste(band, (0, top))
        return picture

    def _read(self, length: int) -> bytearray:
        data = read_exactly(self._answers, length)
        if data is None:
            raise EOFError
        return data

    def end(self, *, kill: bool = False) -> int:
        """Wait until it has died, and say of what: a signal is below zero."""
        if kill:
            self._process.kill()
        code = self._process.wait()
        for pipe in (self._requests, self._answers):
            with suppress(OSError):
                pipe.close()
        return code


def _death(shown: str, code: int, seconds: float) -> MediaError:
    """The error of a picture in whose decoding the process ended."""
    if code == -signal.SIGPROF:
        return MediaError(f"The picture {shown} took more than {seconds:g} s to decode.", "Store it smaller.")
    name = signal.Signals(-code).name if code < 0 else f"exit status {code}"
    if code == -signal.SIGKILL:
        killed = f"The process that decoded the picture {shown} was killed ({name}), as for want of memory."
        return MediaError(killed, "Use fewer threads.", transient=True)
    return MediaError(f"The picture {shown} ended the process that decoded it ({name}).", "Store it again, as PNG.")
