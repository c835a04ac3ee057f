"""Where training reads and writes, and what it says when something it needs is not there."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = ROOT / "pgembed" / "encoders" / "lite"
WORK = Path(os.environ.get("PGEMBED_TRAINING_DIR") or Path.home() / ".cache" / "pgembed" / "training")
EMOJIBASE = "emojibase-data@17.0.0"


def missing(what: str, how: str) -> NoReturn:
    """Say what is missing and how to get it, and exit with status 2."""
    print(f"training: {what} is missing. {how}", file=sys.stderr)
    raise SystemExit(2)


def data() -> Path:
    """The data folder that PGEMBED_DATA names, with the emoji pictures in it."""
    named = os.environ.get("PGEMBED_DATA")
    if not named:
        missing("PGEMBED_DATA", "Set it to the folder of the data for training and benchmarks.")
    if not (Path(named) / "emoji").is_dir():
        missing(f"the folder {Path(named) / 'emoji'}", "PGEMBED_DATA names the folder that it should be in.")
    return Path(named)


def npm(package: str, folder: Path) -> Path:
    """The archive of an npm package (``name@version``), fetched into the folder once."""
    name, _, version = package.removeprefix("@").replace("/", "-").rpartition("@")
    archive = folder / f"{name}-{version}.tgz"
    if not archive.exists():
        program = shutil.which("npm")
        if program is None:
            missing("npm", f"Install it, or put the archive of the npm package {package} there: {archive}.")
        folder.mkdir(parents=True, exist_ok=True)
        packed = subprocess.run([program, "pack", package], cwd=folder, capture_output=True, text=True)
        if packed.returncode:
            missing(f"the npm package {package}", packed.stderr.strip())
    return archive


def emojibase() -> Path:
    """Unicode's CLDR names and search words in English, from the npm package emojibase-data (MIT, Unicode licence)."""
    found = WORK / "emojibase" / "package" / "en" / "data.json"
    if not found.exists():
        with tarfile.open(npm(EMOJIBASE, found.parents[2])) as archive:
            archive.extractall(found.parents[2], filter="data")
    return found
