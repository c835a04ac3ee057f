"""WordNet 3.0's nouns, of which ImageNet's classes are synsets (Debian package wordnet-base, WordNet licence)."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

from training.paths import WORK, missing

PACKAGE = "wordnet-base"


@dataclass(frozen=True)
class Synset:
    """A synset of nouns: its words, the key of each word in this sense, and what it is a kind of."""

    words: tuple[str, ...]
    keys: tuple[str, ...]
    kinds: tuple[str, ...]


def folder() -> Path:
    """WordNet's files, fetched and unpacked once."""
    unpacked = WORK / "wordnet" / PACKAGE
    if not unpacked.is_dir():
        unpacked.parent.mkdir(parents=True, exist_ok=True)
        command = ["apt-get", "download", PACKAGE]
        try:
            got = subprocess.run(command, cwd=unpacked.parent, capture_output=True, text=True)
        except FileNotFoundError:
            missing("apt-get", f"Unpack the Debian package {PACKAGE} into {unpacked}.")
        if got.returncode:
            missing(f"the Debian package {PACKAGE}", f"Run: apt-get update. ({got.stderr.strip()})")
        archive = next(unpacked.parent.glob(f"{PACKAGE}_*.deb"))
        subprocess.run(["dpkg-deb", "-x", str(archive), str(unpacked)], check=True)
    return unpacked / "usr" / "share" / "wordnet"


def nouns() -> dict[str, Synset]:
    """The synsets by their offsets, which are ImageNet's numbers without the n (format: wndb(5WN), senseidx(5WN))."""
    found = {}
    for line in (folder() / "data.noun").read_text(encoding="latin-1").splitlines():
        if line.startswith(" "):
            continue  # the licence
        fields = line.split(" | ")[0].split()
        end = 4 + 2 * int(fields[3], 16)
        words, numbers, pointers = fields[4:end:2], fields[5:end:2], fields[end + 1 :]
        kinds = tuple(pointers[i + 1] for i in range(0, len(pointers) - 3, 4) if pointers[i] in ("@", "@i"))
        keys = (f"{word.lower()}%1:{fields[1]}:{int(n, 16):02}::" for word, n in zip(words, numbers, strict=True))
        found[fields[0]] = Synset(tuple(word.replace("_", " ") for word in words), tuple(keys), kinds)
    return found


def ancestors(synset: str, known: dict[str, Synset]) -> set[str]:
    """Everything that a synset is a kind of."""
    found: set[str] = set()
    todo = [*known[synset].kinds]
    while todo:
        one = todo.pop()
        if one not in found:
            found.add(one)
            todo += known[one].kinds
    return found
