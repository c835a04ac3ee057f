"""infinity-emb, an embedding server from PyPI, on loopback: what ``http:`` meets outside of stubs.

It asks for older numpy and transformers than pgembed's other extras, so it has a virtual environment of its own, made
once below ~/.cache/pgembed; torch, which is large, is taken from the environment that runs the tests. Half a gigabyte.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
import venv
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path

import httpx

WITHOUT_THEIRS = ("infinity-emb==0.0.78", "sentence-transformers==3.4.1")  # both ask for torch, which is there
OTHERS = (
    "aiohttp>=3", "click<8.2", "fastapi>=0.103", "numpy<2", "orjson", "pillow", "posthog",
    "prometheus-fastapi-instrumentator>=6.1", "pydantic>=2.4,<3", "rich<14", "scikit-learn", "scipy",
    "transformers>=4.47,<5", "typer<0.13", "uvicorn[standard]<0.33",
)  # fmt: skip
PROGRAM = "import sys; sys.path.append(sys.argv.pop(1)); from infinity_emb.cli import cli; cli()"
INSTALL_SECONDS = 600
START_SECONDS = 180


class NotAvailable(Exception):
    """The server cannot be installed or does not start here; the message says why."""


@contextmanager
def infinity_server(models: Mapping[str, Path], *, key: str) -> Generator[str]:
    """Serves model folders by name until the block ends; gives its address. Raises NotAvailable."""
    python = _installed()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [python, "-c", PROGRAM, sysconfig.get_paths()["purelib"], "v2", "--engine", "torch", "--device", "cpu"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--no-model-warmup"]
    for name, folder in models.items():
        command += ["--served-model-name", name, "--model-id", folder]
    quiet = {"HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1", "INFINITY_ANONYMOUS_USAGE_STATS": "0", "NO_COLOR": "1"}
    environment = {**os.environ, **quiet, "INFINITY_API_KEY": key}
    with tempfile.TemporaryFile("w+") as log:
        running = subprocess.Popen([*map(str, command)], env=environment, stdout=log, stderr=log)
        try:
            _wait_for(running, f"http://127.0.0.1:{port}/health", log)
            yield f"http://127.0.0.1:{port}"
        finally:
            running.terminate()
            try:
                running.wait(20)
            except subprocess.TimeoutExpired:
                running.kill()
                running.wait()


def _wait_for(running: subprocess.Popen[bytes], address: str, log: tempfile._TemporaryFileWrapper[str]) -> None:
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until and running.poll() is None:
        try:
            if httpx.get(address, timeout=5).status_code == 200:
                return
        except httpx.RequestError:
            pass
        time.sleep(0.3)
    log.seek(0)
    said = [line.strip() for line in log.read().splitlines() if line.strip()]
    raise NotAvailable(f"infinity-emb does not start: {' / '.join(said[-3:])[-500:]}")


def _installed() -> Path:
    """The interpreter of the server's environment, made where it is not there. Raises NotAvailable."""
    facts = "\n".join((*WITHOUT_THEIRS, *OTHERS, sys.version))
    name = f"infinity-emb-{hashlib.sha256(facts.encode()).hexdigest()[:12]}"
    cache = Path.home() / ".cache" / "pgembed"
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with (cache / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # another run may be making it
            if not (cache / name).exists():
                _install(cache / f"{name}.part")
                (cache / f"{name}.part").rename(cache / name)
    except OSError as error:
        raise NotAvailable(f"infinity-emb cannot be installed: {error}") from error
    return cache / name / "bin" / "python"


def _install(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    venv.create(folder)
    pip = [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python"), "install", "--quiet"]
    for arguments in ([*OTHERS], ["--no-deps", *WITHOUT_THEIRS]):
        try:
            done = subprocess.run(
                [*pip, *arguments], capture_output=True, text=True, check=False, timeout=INSTALL_SECONDS
            )
        except subprocess.TimeoutExpired:
            raise NotAvailable(f"pip did not install infinity-emb in {INSTALL_SECONDS} s") from None
        if done.returncode:
            errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
            raise NotAvailable(f"pip cannot install infinity-emb: {' / '.join(errors) or done.stderr[-300:]}")
