"""A headless Chromium without network, driven over its DevTools protocol through two pipes.

Every request that a page makes is stopped in Chromium and answered here, or not at all. What went past that would meet
a proxy that is not there, and names that do not resolve. Its profile is a folder of its own, which goes with it; it is
sandboxed unless root runs it, for whom Chromium has no sandbox.
"""

from __future__ import annotations

import json
import math
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from io import FileIO
from pathlib import Path
from typing import Any, Self, cast

from pgembed.errors import MediaError
from pgembed.media_errors import reason

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
VARIABLE = "PGEMBED_CHROMIUM"
MEMORY = 1536 * 1024 * 1024  # bytes of data in each of its processes; an empty page has 0.6 GB set aside
MOST_BYTES = 256 * 1024 * 1024  # of one answer
_FLAGS = (
    "--headless=new", "--remote-debugging-pipe", "--no-first-run", "--no-default-browser-check", "--disable-gpu",
    "--disable-extensions", "--disable-sync", "--disable-background-networking", "--disable-component-update",
    "--disable-dev-shm-usage", "--disable-breakpad", "--hide-scrollbars", "--mute-audio", "--no-pings",
    "--disable-features=MediaRouter", "--force-webrtc-ip-handling-policy=disable_non_proxied_udp",
    "--proxy-server=http://127.0.0.1:9", "--proxy-bypass-list=<-loopback>", "--host-resolver-rules=MAP * ~NOTFOUND",
    "--password-store=basic", "--lang=en-US",
)  # fmt: skip
# Limits the memory, moves the pipes to where Chromium looks for them, and becomes Chromium.
_LAUNCH = """
import os, resource, sys
for what, most in ((resource.RLIMIT_DATA, int(sys.argv[1])), (resource.RLIMIT_CORE, 0)):
    hard = resource.getrlimit(what)[1]
    resource.setrlimit(what, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))
os.dup2(0, 3)
os.dup2(1, 4)
silent = os.open(os.devnull, os.O_RDWR)
os.dup2(silent, 0)
os.dup2(silent, 1)
os.execv(sys.argv[2], sys.argv[2:])
"""
Handler = Callable[[Mapping[str, Any]], None]


def found_chromium() -> str:
    """The path of Chromium. Raises MediaError where there is none."""
    named = os.environ.get(VARIABLE)
    if named is not None:
        if shutil.which(named) is None:
            told = f"{VARIABLE} is '{named}', which is no program."
            raise MediaError(told, "Name the path of Chromium.", transient=True)
        return named
    for name in NAMES:
        if (path := shutil.which(name)) is not None:
            return path
    raise MediaError(
        "HTML is shown by Chromium, which was not found.",
        f"Install it, on Debian: apt-get install chromium; or name its path in {VARIABLE}.",
        transient=True,
    )


class Chromium:
    """One Chromium with one empty page; use ``with``. After ``seconds`` its calls raise MediaError."""

    def __init__(self, shown: str, seconds: float) -> None:
        self._shown = shown
        self._seconds = seconds
        self._until = time.monotonic() + seconds
        self._handlers: dict[str, Handler] = {}
        self._unread = b""
        self._last = 0
        self._session: str | None = None
        path = found_chromium()
        self._folder = tempfile.TemporaryDirectory(prefix="pgembed-chromium-", ignore_cleanup_errors=True)
        folder = self._folder.name
        flags = [*_FLAGS, f"--user-data-dir={folder}/profile", *(["--no-sandbox"] if os.geteuid() == 0 else [])]
        try:
            with Path(folder, "log").open("wb") as log:
                self._process = subprocess.Popen(
                    [sys.executable, "-I", "-c", _LAUNCH, str(MEMORY), path, *flags, "about:blank"],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    bufsize=0,
                    start_new_session=True,
                    env={
                        "HOME": folder,
                        "TMPDIR": folder,
                        "PATH": os.environ.get("PATH", os.defpath),
                        "LANG": "C.UTF-8",
                    },
                )
        except OSError as error:
            self._folder.cleanup()
            raise MediaError(f"Chromium could not be started: {reason(error)}.", transient=True) from None
        self._requests = cast(FileIO, self._process.stdin)
        self._answers = cast(FileIO, self._process.stdout)

    def __enter__(self) -> Self:
        try:
            self.frame: str = self.call("Target.createTarget", url="about:blank")["targetId"]  # also of its main frame
            self._session = self.call("Target.attachToTarget", targetId=self.frame, flatten=True)["sessionId"]
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def on(self, event: str, handler: Handler) -> None:
        """Call this with what the event says, whenever a call waits for its answer."""
        self._handlers[event] = handler

    def send(self, method: str, **parameters: Any) -> int:  # noqa: ANN401
        """Ask, without waiting for the answer."""
        self._last += 1
        message: dict[str, Any] = {"id": self._last, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        left = memoryview(json.dumps(message).encode() + b"\0")
        try:
            while left:
                left = left[self._requests.write(left) or 0 :]
        except BrokenPipeError:
            raise self._death() from None
        return self._last

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:  # noqa: ANN401
        """Ask, and give the answer."""
        asked = self.send(method, **parameters)
        while True:
            message = self._read(self._until)
            assert message is not None
            if message.get("id") == asked:
                if "error" in message:
                    told = message["error"].get("message", method)
                    raise MediaError(f"{self._shown} could not be shown: {told}.", "Make it simpler.")
                return message["result"]

    def wait(self, done: Callable[[], bool], seconds: float = math.inf) -> None:
        """Handle events until it is done, or for so many seconds."""
        until = min(self._until, time.monotonic() + seconds)
        while not done() and self._read(until) is not None:
            pass

    def _read(self, until: float) -> dict[str, Any] | None:
        """The next message; an event's handler was called. None where there is none until then."""
        while b"\0" not in self._unread:
            ready, _, _ = select.select([self._answers], [], [], max(0.0, until - time.monotonic()))
            if not ready:
                if time.monotonic() >= self._until:
                    raise MediaError(
                        f"{self._shown} was not shown within {self._seconds:g} s.", "Take out scripts that never end."
                    )
                return None
            more = self._answers.read(1024 * 1024)
            if not more:
                raise self._death()
            self._unread += more
            if len(self._unread) > MOST_BYTES:
                raise MediaError(f"{self._shown} is too large as it is shown.", "Make it simpler.")
        text, _, self._unread = self._unread.partition(b"\0")
        message: dict[str, Any] = json.loads(text)
        if message.get("method") in {"Inspector.targetCrashed", "Target.targetCrashed"}:
            raise MediaError(f"{self._shown} ended the process of Chromium that showed it.", "Make it simpler.")
        if (handler := self._handlers.get(message.get("method", ""))) is not None:
            handler(message["params"])
        return message

    def _death(self) -> MediaError:
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(5)
        log = Path(self._folder.name, "log").read_text(errors="replace")
        if "No usable sandbox" in log:
            return MediaError(
                "Chromium finds no sandbox on this machine, and does not run without one.",
                "Let it make user namespaces (sysctl kernel.unprivileged_userns_clone=1), or install chromium-sandbox.",
                transient=True,
            )
        lines = [line for line in log.splitlines() if line.strip()]
        last = f": {lines[-1].strip()[-200:]}" if lines else ""
        return MediaError(f"Chromium ended while it showed {self._shown[:1].lower()}{self._shown[1:]}{last}")

    def close(self) -> None:
        """Kill it with all of its processes, and remove its folder."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for pipe in (self._requests, self._answers):
            with suppress(OSError):
                pipe.close()
        self._folder.cleanup()
