"""Calls in another process: answers come back, and what kills that process fails alone, with its reason."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from pgembed.documents.calls import Caller
from pgembed.errors import MediaError

PROGRAM = """
import ctypes, os, signal, time
from pgembed.documents.calls import serve
from pgembed.errors import MediaError

def twice(data, times):
    return {"length": len(data)}, bytes(data) * times

def crash(data):
    ctypes.string_at(0)

def kill(data):
    os.kill(os.getpid(), signal.SIGKILL)

def loop(data):
    while True:
        pass

def sleep(data):
    time.sleep(600)

def fill(data):
    bytearray(2**30)

def refuse(data):
    raise MediaError("It is no good.", "Mend it.")

def fail(data):
    raise KeyError("x")

def main():
    serve({f.__name__: f for f in (twice, crash, kill, loop, sleep, fill, refuse, fail)}, 256 * 2**20)
"""


@pytest.fixture
def caller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Caller]:
    (tmp_path / "deadly_calls.py").write_text(PROGRAM)
    monkeypatch.syspath_prepend(tmp_path)
    made = Caller("deadly_calls")
    yield made
    made.close()


def test_answers_come_back(caller: Caller) -> None:
    data = bytes(range(256)) * 20_000
    result, body = caller.call("twice", "The thing", 5, data, {"times": 2})
    assert result == {"length": len(data)}
    assert body == data * 2


@pytest.mark.parametrize(
    ("function", "message", "transient"),
    [
        ("crash", rf"The thing ended the process that read it \({signal.Signals.SIGSEGV.name}\)", False),
        ("kill", r"The process that read the thing was killed \(SIGKILL\), as for want of memory", True),
        ("loop", r"The thing took more than 0.2 s to read", False),
        ("sleep", r"The thing took more than 0.2 s to read", False),
        ("fill", r"The thing cannot be read: it takes more memory than it may", False),
        ("refuse", r"It is no good\. Mend it\.", False),
        ("fail", r"The thing cannot be read: 'x'\.", False),
    ],
)
def test_what_goes_wrong_is_told_and_the_next_call_works(
    caller: Caller, function: str, message: str, transient: bool
) -> None:
    with pytest.raises(MediaError, match=message) as caught:
        caller.call(function, "The thing", 0.2)
    assert caught.value.transient is transient
    assert caller.call("twice", "The thing", 5, b"ab", {"times": 1}) == ({"length": 2}, b"ab")
