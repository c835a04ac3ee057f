"""The command ``pgembed`` as tests call it: in this process, or in one of its own where that is what is tested."""

from __future__ import annotations

import io
import logging
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from unittest.mock import patch

import structlog

from pgembed.cli.main import main

Done = subprocess.CompletedProcess[str]


class Cli:
    """Runs ``pgembed`` on one database."""

    def __init__(self, dsn: str) -> None:
        self.environment = {**os.environ, "PGEMBED_DSN": dsn, "NO_COLOR": "1", "COLUMNS": "200"}

    def run(self, *arguments: str, process: bool = False) -> Done:
        """What came of a command: its exit code and what it printed. Raises what ``pgembed`` raises in this process."""
        if process:
            return subprocess.run(
                [sys.executable, "-m", "pgembed.cli", *arguments],
                env=self.environment, capture_output=True, text=True, check=False, timeout=120,
            )  # fmt: skip
        return in_this_process(arguments, self.environment)

    def __call__(self, *arguments: str, fails: int = 0, process: bool = False) -> str:
        """What it printed, or told on standard error where it is to fail with that exit code."""
        done = self.run(*arguments, process=process)
        assert done.returncode == fails, f"{arguments}\n{done.stdout}\n{done.stderr}"
        return done.stdout if fails == 0 else done.stderr


def in_this_process(arguments: Sequence[str], environment: Mapping[str, str]) -> Done:
    """``pgembed`` with these arguments and variables: libraries that take seconds to load are loaded once for all."""
    out, told = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2))
    code: object = 0
    with patch.dict(os.environ, environment, clear=True), own_logging(), redirect_stdout(out), redirect_stderr(told):
        try:
            main(arguments)
        except SystemExit as end:
            code = end.code or 0
    assert isinstance(code, int), code
    return Done(["pgembed", *arguments], code, *(text.buffer.getvalue().decode() for text in (out, told)))


@contextmanager
def own_logging() -> Iterator[None]:
    """Leaves logging as it was: a process has what a command sets up once, this one would have it many times."""
    log = logging.getLogger("pgembed")
    handlers, level = [*log.handlers], log.level
    try:
        yield
    finally:
        log.handlers[:] = handlers
        log.setLevel(level)
        logging.captureWarnings(capture=False)
        structlog.reset_defaults()
