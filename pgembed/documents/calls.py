"""Calls of functions in a process that may die of their arguments: both ends.

A request is REQUEST, JSON with the function's name and arguments, and bytes; an answer is ANSWER, JSON, and bytes.
The kernel ends a call that takes more seconds or memory than it may.
"""

from __future__ import annotations

import json
import signal
import struct
from collections.abc import Callable, Mapping
from typing import Any

from pgembed.decoding.child import Child
from pgembed.decoding.process import limit_memory, memory_in_use, pipes, read_exactly
from pgembed.errors import MediaError
from pgembed.media_errors import reason

REQUEST, ANSWER = struct.Struct("<dQQ"), struct.Struct("<QQ")  # seconds; lengths of the JSON and of the bytes
PATIENCE = 10  # times as long as a call may compute, it may last: others may have the processors
Function = Callable[..., tuple[Any, bytes]]


class Caller:
    """Calls functions in a process of its own, which starts with the first call and again after one that killed it."""

    def __init__(self, module: str) -> None:
        self._module = module
        self._child: Child | None = None

    def call(
        self, function: str, shown: str, seconds: float, data: bytes = b"", arguments: Mapping[str, Any] | None = None
    ) -> tuple[Any, bytearray]:
        """What the function returns. Raises the MediaError that it raises, or one that says how the process ended.

        ``shown`` is what messages call the thing that is read; ``seconds`` are of computing.
        """
        request = json.dumps({"function": function, "arguments": arguments or {}}).encode()
        child = self._child = self._child or self._start()
        try:
            child.ready = False
            child.write(REQUEST.pack(seconds, len(request), len(data)), request, data)
            length, data_length = ANSWER.unpack(child.read(ANSWER.size))
            answer: dict[str, Any] = json.loads(child.read(length))
            body = child.read(data_length)
            child.ready = True
        except (EOFError, BrokenPipeError):
            raise _death(shown, child.end(), seconds) from None
        finally:
            if not child.ready:
                self.close()
        if "message" in answer:
            raise MediaError(answer["message"], answer["hint"])
        if "reason" in answer:
            self.close()  # whatever it is in the middle of, the next call begins anew
            raise MediaError(f"{shown} cannot be read: {answer['reason']}.", "Store it anew, with another program.")
        return answer["result"], body

    @property
    def is_running(self) -> bool:
        """Whether the process of the last call is still there, and what it keeps."""
        return self._child is not None

    def _start(self) -> Child:
        try:
            return Child(self._module)
        except OSError as error:
            message = f"No process that reads documents could be started: {reason(error)}."
            raise MediaError(message, "Use fewer threads.", transient=True) from None

    def close(self) -> None:
        """End the process."""
        if self._child is not None:
            self._child.end(kill=True)
            self._child = None


def serve(functions: Mapping[str, Function], memory: int) -> None:
    """Answer calls on standard input and output until it ends, within so many bytes of memory beyond those in use.

    A function takes the bytes and named arguments, and returns what JSON takes, and bytes. It may raise MediaError.
    """
    requests, answers = pipes()
    limited = False
    while (head := read_exactly(requests, REQUEST.size)) is not None:
        seconds, length, data_length = REQUEST.unpack(head)
        request, data = read_exactly(requests, length), read_exactly(requests, data_length)
        if request is None or data is None:
            return
        if not limited and (used := memory_in_use()):
            limit_memory(used + memory)
            limited = True
        call = json.loads(request)
        _allow(seconds)
        try:
            result, body = functions[call["function"]](data, **call["arguments"])
            answer = {"result": result}
        except MediaError as error:
            answer, body = {"message": error.message, "hint": error.hint}, b""
        except MemoryError:
            answer, body = {"reason": "it takes more memory than it may"}, b""
        except Exception as error:  # a hostile file makes a library raise nearly anything
            answer, body = {"reason": reason(error)}, b""
        finally:
            _allow(0)
        told = json.dumps(answer).encode()
        for part in (ANSWER.pack(len(told), len(body)), told, body):
            left = memoryview(part)
            while left:
                left = left[answers.write(left) or 0 :]


def _allow(seconds: float) -> None:
    signal.setitimer(signal.ITIMER_PROF, seconds)
    signal.setitimer(signal.ITIMER_REAL, seconds * PATIENCE)


def _death(shown: str, code: int, seconds: float) -> MediaError:
    if code in {-signal.SIGPROF, -signal.SIGALRM}:
        return MediaError(f"{shown} took more than {seconds:g} s to read.", "Make it simpler, or split it.")
    name = signal.Signals(-code).name if code < 0 else f"exit status {code}"
    if code == -signal.SIGKILL:
        killed = f"The process that read {_lower(shown)} was killed ({name}), as for want of memory."
        return MediaError(killed, "Give the worker more memory.", transient=True)
    return MediaError(f"{shown} ended the process that read it ({name}).", "Store it anew, with another program.")


def _lower(shown: str) -> str:
    return shown[:1].lower() + shown[1:]
