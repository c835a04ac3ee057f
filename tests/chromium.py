"""A real Chromium for the tests: the machine's, or Debian's packages unpacked once, below ~/.cache/pgembed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

from pgembed.documents.chromium import VARIABLE, found_chromium
from pgembed.errors import MediaError
from tests.full_server import NotAvailable, locked

PACKAGES = ("chromium", "fonts-liberation")
_WRAPPER = """#!/bin/sh
export LD_LIBRARY_PATH={libraries}
export FONTCONFIG_FILE={tree}/fonts.conf
exec {tree}/usr/lib/chromium/chromium "$@"
"""
_FONTS = """<?xml version="1.0"?>
<fontconfig><dir>{tree}/usr/share/fonts</dir><dir>/usr/share/fonts</dir><cachedir>{tree}/fonts-cache</cachedir></fontconfig>
"""


def chromium() -> str:
    """The path of a Chromium. Raises NotAvailable."""
    try:
        return found_chromium()
    except MediaError:
        if VARIABLE in os.environ:
            raise
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pgembed"
    tree = cache / "chromium"
    with locked(cache / "chromium.lock"):
        if not tree.exists():
            make_tree(tree)
    return str(tree / "run")


def make_tree(tree: Path) -> None:
    """Fetch the packages that this Debian lacks with its apt, and unpack them beside their place. No root is needed."""
    for program in ("apt-get", "dpkg-deb"):
        if shutil.which(program) is None:
            raise NotAvailable(f"no Chromium was found, nor {program} to fetch Debian's")
    print(f"\nUnpacking Debian's Chromium in {tree}: once, a minute or so.", flush=True)
    partial = tree.with_name(f"{tree.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    (partial / "packages").mkdir(parents=True)
    names = re.findall(r"^Inst (\S+)", apt("install", "--simulate", "--no-install-recommends", *PACKAGES), re.MULTILINE)
    if names:
        apt("download", *names, folder=partial / "packages")
    for package in sorted((partial / "packages").glob("*.deb")):
        subprocess.run(["dpkg-deb", "--extract", package, partial], check=True)
    shutil.rmtree(partial / "packages")
    if not (partial / "usr/lib/chromium/chromium").exists():
        raise NotAvailable("Debian's package chromium has no /usr/lib/chromium/chromium")
    folders = {str(tree / file.parent.relative_to(partial)) for file in (partial / "usr/lib").rglob("lib*.so*")}
    (partial / "fonts.conf").write_text(_FONTS.format(tree=tree))
    (partial / "run").write_text(_WRAPPER.format(tree=tree, libraries=":".join(sorted(folders))))
    (partial / "run").chmod(0o755)
    partial.rename(tree)


def apt(*arguments: str, folder: Path | None = None) -> str:
    """Run apt-get; where it knows no such package, after fetching its lists. Raises NotAvailable."""
    for attempt in range(2):
        command = ["apt-get", "--quiet", *arguments]
        result = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False
        )
        if result.returncode == 0:
            return result.stdout
        if attempt == 0:
            subprocess.run(["apt-get", "--quiet", "update"], capture_output=True, stdin=subprocess.DEVNULL, check=False)
    raise NotAvailable(f"no Chromium was found, and apt-get does not fetch Debian's: {result.stderr.strip()[-300:]}")
