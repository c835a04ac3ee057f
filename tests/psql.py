"""Run a script with psql, as an administrator does."""

from __future__ import annotations

import subprocess
from pathlib import Path

from pgembed.embedded import binaries


def psql(dsn: str, script: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """``psql -f script`` with options, and no settings of the machine's."""
    command = [binaries() / "psql", "-X", "-q", *options, "-f", script, dsn]
    return subprocess.run(command, capture_output=True, text=True, env={"LC_ALL": "C"}, check=False)
