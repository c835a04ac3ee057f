"""Forks workers of FakeEncoder: one for each line of JSON on the standard input; prints its process id.

``dsn``; ``options`` of WorkerOptions; ``mode`` of Worker.run; ``name`` of the encoder; ``bad``, the text that it
refuses; ``hang``, the text at which it never returns; ``seconds`` that it takes for a batch; ``clock``, the seconds by
which its clock is wrong; ``spoilt``, what its first call does: raises, or gives another shape or count, or NaN.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from typing import Any

import numpy as np
import psycopg
from numpy.typing import NDArray

import pgembed.encoders
import pgembed.parts
from pgembed.worker import Worker, WorkerOptions
from pgembed.worker.run import SESSION_SETTINGS
from tests.fakes import FakeEncoder, Words, use_splitters


def main() -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody asks how they ended
    for line in sys.stdin:
        if (pid := os.fork()) == 0:
            try:
                os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # its log
                SESSION_SETTINGS["idle_in_transaction_session_timeout"] = "1s"  # of one that is stopped where it stands
                work(**json.loads(line))
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(0)
        print(pid, flush=True)


def work(
    dsn: str,
    *,
    options: dict[str, Any] | None = None,
    mode: Any = "forever",  # noqa: ANN401
    name: str = "plain",
    bad: str = "",
    hang: str = "",
    seconds: float = 0.0,
    clock: float = 0.0,
    spoilt: str = "",
) -> None:
    if clock:
        of_now, of_now_ns = time.time, time.time_ns
        time.time = lambda: of_now() + clock
        time.time_ns = lambda: of_now_ns() + int(clock * 1e9)
    encoder = FakeEncoder(name)

    def before(texts: Sequence[str]) -> None:
        time.sleep(seconds)
        if bad and bad in texts:
            raise ValueError(f"{bad} is refused")
        while hang and hang in texts:
            time.sleep(1)

    left = [spoilt] if spoilt else []

    def after(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        how = left.pop() if left else ""
        if how == "raises":
            raise RuntimeError("the model is not warm yet")
        spoil = {"shape": vectors[:, :-1], "count": vectors[:-1], "nan": vectors * np.nan}
        return spoil.get(how, vectors)

    encoder.before, encoder.after = before, after
    pgembed.parts.splitters = lambda: use_splitters(words=Words)
    pgembed.encoders.load_encoder = lambda *_, **__: encoder
    Worker(lambda: psycopg.connect(dsn), WorkerOptions(**{"poll": 0.02, **(options or {})})).run(mode)


if __name__ == "__main__":
    main()
