"""Processes that decode pictures: a picture that kills its process fails alone, and the next one gets a new process."""

from __future__ import annotations

import json
import queue
import signal
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from PIL import Image

from pgembed.decoding.child import Child
from pgembed.decoding.picture import Limits
from pgembed.decoding.process import ANSWER, ARRAY, ERROR, REQUEST, SIZE, bands
from pgembed.decoding.turns import Places
from pgembed.errors import MediaError
from pgembed.media_errors import reason

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL.Image import Image as Picture


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


class _Process(Child):
    """One process that decodes."""

    def __init__(self) -> None:
        super().__init__("pgembed.decoding.process")

    def ask(self, request: bytes, data: bytes) -> None:
        self.ready = False
        self.write(request, data)

    def answer(self, announce: Callable[[int], object] | None) -> Picture | NDArray[Any]:
        kind, first, second = ANSWER.unpack(self.read(ANSWER.size))
        if kind == SIZE:
            if announce is not None:
                announce(first)
            self.write(b"\0")
            kind, first, second = ANSWER.unpack(self.read(ANSWER.size))
        if kind == ERROR:
            told = json.loads(self.read(first))
            self.ready = not told["transient"]
            raise MediaError(told["message"], told["hint"], transient=told["transient"])
        found = self._read_array(first, second) if kind == ARRAY else self._read_picture(first, second)
        self.ready = True
        return found

    def _read_array(self, description_length: int, length: int) -> NDArray[Any]:
        import numpy as np

        description = json.loads(self.read(description_length))
        return np.frombuffer(self.read(length), dtype=description["dtype"]).reshape(description["shape"])

    def _read_picture(self, width: int, height: int) -> Picture:
        picture = Image.new("RGB", (width, height))
        lines = bands(width, height)
        buffer = memoryview(bytearray(lines[0][1] * width * 3))
        for top, bottom in lines:
            part = buffer[: (bottom - top) * width * 3]
            self.fill(part)
            band = Image.frombytes("RGB", (width, bottom - top), part)
            if len(lines) == 1:
                return band
            picture.paste(band, (0, top))
        return picture


def _death(shown: str, code: int, seconds: float) -> MediaError:
    """The error of a picture in whose decoding the process ended."""
    if code == -signal.SIGPROF:
        return MediaError(f"The picture {shown} took more than {seconds:g} s to decode.", "Store it smaller.")
    name = signal.Signals(-code).name if code < 0 else f"exit status {code}"
    if code == -signal.SIGKILL:
        killed = f"The process that decoded the picture {shown} was killed ({name}), as for want of memory."
        return MediaError(killed, "Use fewer threads.", transient=True)
    return MediaError(f"The picture {shown} ended the process that decoded it ({name}).", "Store it again, as PNG.")
