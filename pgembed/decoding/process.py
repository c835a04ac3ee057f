"""The program of a process that decodes pictures for another one, and may die of it.

It reads requests from its standard input and answers on its standard output, one at a time. A request is REQUEST, what
messages call the picture, the function that prepares it (or nothing), and the picture. An answer begins with ANSWER:
the kind, and two numbers. "size" comes first where the picture is LARGE, and waits for a byte before it is decoded.
Then comes "pixels" with width and height, and three bytes a pixel; or, of a function, "array" with the length of a
description, as JSON, and of the numbers; or "error" with the length of its JSON.

A picture may take so much memory as its pixels explain, and so much time; the kernel ends what takes more.
"""

from __future__ import annotations

import json
import os
import signal
import struct
import sys
import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from importlib import import_module
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from pgembed.decoding.picture import Limits, decode_picture
from pgembed.errors import MediaError
from pgembed.media_errors import reason

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

REQUEST = struct.Struct(
    "<QQdII"
)  # bytes of the picture, pixels and seconds allowed, bytes of its and a function's name
ANSWER = struct.Struct("<BQQ")
SIZE, PIXELS, ARRAY, ERROR = range(4)
LARGE = 4_000_000  # pixels: one that has more waits for its turn
BAND = 250_000  # pixels sent at once: more do not stay in the processor's cache
_BYTES_A_PIXEL = 16  # what decoding, turning and flattening take at their peak
_BYTES_BESIDES = 128 * 1024 * 1024
NICENESS = 7
_KEPT_BLOCKS = 4  # of Pillow's, 16 MB each, for the next picture: asking the kernel again costs a fifth of decoding


class Server:
    """Answers requests until its input ends."""

    def __init__(self, requests: FileIO, answers: FileIO) -> None:
        self._requests = requests
        self._answers = answers
        self._memory: int | None = None

    def run(self) -> None:
        while (head := read_exactly(self._requests, REQUEST.size)) is not None:
            length, max_pixels, seconds, *name_lengths = REQUEST.unpack(head)
            shown, prepare = (read_exactly(self._requests, name_length) for name_length in name_lengths)
            data = read_exactly(self._requests, length)
            if shown is None or prepare is None or data is None:
                return
            prepared_by = _function(prepare.decode()) if prepare else None
            if self._memory is None:  # once all is loaded
                self._memory = memory_in_use()
            self._allow(seconds, length)
            try:
                self._answer(bytes(data), Limits(max_pixels=max_pixels), shown.decode(), prepared_by)
            except MediaError as error:
                told = {"message": error.message, "hint": error.hint, "transient": error.transient}
                body = json.dumps(told).encode()
                self._write(ANSWER.pack(ERROR, len(body), 0), body)
                if error.transient:
                    return  # no memory was left: another process begins with all of it
            finally:
                self._allow(0)

    def _answer(self, data: bytes, limits: Limits, shown: str, prepare: Callable[[Picture], Any] | None) -> None:
        picture = decode_picture(data, limits, shown=shown, announce=lambda pixels: self._announce(pixels, len(data)))
        if prepare is not None:
            try:
                array = prepare(picture)
                numbers = array.tobytes()
            except Exception as error:
                raise MediaError(f"The picture {shown} cannot be prepared: {reason(error)}.") from error
            description = json.dumps({"dtype": array.dtype.str, "shape": array.shape}).encode()
            self._write(ANSWER.pack(ARRAY, len(description), len(numbers)), description, numbers)
            return
        width, height = picture.size
        self._write(ANSWER.pack(PIXELS, width, height))
        for top, bottom in bands(width, height):
            whole = (top, bottom) == (0, height)
            self._write((picture if whole else picture.crop((0, top, width, bottom))).tobytes())

    def _announce(self, pixels: int, length: int) -> None:
        if pixels > LARGE:
            self._write(ANSWER.pack(SIZE, pixels, 0))
            if not self._requests.read(1):
                raise SystemExit(0)
        self._limit(length + pixels * _BYTES_A_PIXEL)

    def _write(self, *parts: bytes) -> None:
        for part in parts:
            left = memoryview(part)
            while left:
                left = left[self._answers.write(left) or 0 :]

    def _allow(self, seconds: float, length: int = 0) -> None:
        """Seconds of computing until the kernel ends this process; 0 for no end."""
        signal.setitimer(signal.ITIMER_PROF, seconds)
        self._limit(length)

    def _limit(self, bytes_: int) -> None:
        if self._memory:
            limit_memory(self._memory + _BYTES_BESIDES + bytes_)


@cache
def _function(name: str) -> Callable[[Picture], Any]:
    """``package.module:function``, as the process that asks names it."""
    module, _, function = name.partition(":")
    return getattr(import_module(module), function)


def bands(width: int, height: int) -> list[tuple[int, int]]:
    """The lines, from the first to the one after the last, that are sent at once."""
    step = max(1, BAND // width)
    return [(top, min(top + step, height)) for top in range(0, height, step)]


def read_exactly(file: FileIO, length: int) -> bytearray | None:
    """So many bytes, or None where the file ends before."""
    data = bytearray(length)
    return data if fill(file, memoryview(data)) else None


def fill(file: FileIO, view: memoryview) -> bool:
    """Read until the buffer is full; False where the file ends before."""
    while view:
        count = file.readinto(view)
        if not count:
            return False
        view = view[count:]
    return True


def memory_in_use() -> int:
    """Bytes of data, as RLIMIT_DATA counts them; 0 where the system does not tell."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmData:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


def limit_memory(bytes_: int) -> None:
    """Let this process have so many bytes of data, as far as it may say so itself."""
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    soft = bytes_ if hard == resource.RLIM_INFINITY else min(bytes_, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def pipes() -> tuple[FileIO, FileIO]:
    """Standard input and output, which nothing else gets hold of; makes this process one that works for another."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # it ends with its input: whoever asked gets an answer before
    with suppress(ImportError):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(OSError, AttributeError):
        os.nice(NICENESS)  # what works ahead of the encoder takes no core from it
    warnings.simplefilter("ignore")
    requests, answers = FileIO(os.dup(0), "r"), FileIO(os.dup(1), "w")
    silent = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(silent, descriptor)
    return requests, answers


def main() -> None:
    """Serve on standard input and output."""
    requests, answers = pipes()
    Image.init()
    with suppress(ImportError):
        from PIL import AvifImagePlugin

        AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # there is one such process a core
    Image.core.set_blocks_max(_KEPT_BLOCKS)
    try:
        Server(requests, answers).run()
    except (BrokenPipeError, KeyboardInterrupt):
        sys.exit(1)
