"""A team's triplets: a CSV of pictures and words, read whole, so that every bad line is told at once.

    reference,target,new,old
    photos/17.jpg,photos/23.jpg,in red,in blue
    photos/4.jpg,photos/9.jpg,with long sleeves,

``change`` may stand for ``new``, and ``old`` may be left out. Paths are those of the CSV's folder.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pgembed.errors import InvalidInput
from pgembed.shown import shortened

COLUMNS = ("reference", "target", "new")
MOST_TOLD = 20


@dataclass(frozen=True)
class Triplet:
    """One line: two pictures, what shall be in words, and what was, or nothing."""

    line: int
    reference: Path
    target: Path
    new: str
    old: str = ""


@dataclass(frozen=True)
class BadLine:
    """A line that cannot be used, by its number in the file, and why."""

    line: int
    reason: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.reason}"


def read_triplets(file: Path) -> tuple[list[Triplet], list[BadLine]]:
    """The lines that can be used and those that cannot. Raises InvalidInput where it is no CSV with these columns."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{file} cannot be read: {error}.", "Give a CSV in UTF-8.") from error
    reader = csv.DictReader(text.splitlines(keepends=True), restkey="")
    header = reader.fieldnames or ()
    named = {name.strip().lower().replace("change", "new"): name for name in header}
    if missing := [name for name in COLUMNS if name not in named]:
        raise InvalidInput(
            f"{file} has no column '{missing[0]}'; its first line is {shortened(','.join(header))!r}.",
            "Its columns: reference, target, new and, where there is one, old.",
        )
    good: list[Triplet] = []
    bad: list[BadLine] = []
    for row in reader:
        line = reader.line_num
        values = {key: (row.get(name) or "").strip() for key, name in named.items()}
        fault = _fault(values, file.parent, extra="" in row)
        if fault:
            bad.append(BadLine(line, fault))
        else:
            reference, target = (file.parent / values[key] for key in ("reference", "target"))
            good.append(Triplet(line, reference, target, values["new"], values.get("old", "")))
    return good, bad


def _fault(values: dict[str, str], folder: Path, *, extra: bool) -> str | None:
    if extra:
        return "it has more fields than the first line; words with a comma stand in quotes"
    for name in COLUMNS:
        if not values[name]:
            return f"'{name}' is empty"
    for name in ("reference", "target"):
        if not (folder / values[name]).is_file():
            return f"the {name} {values[name]} is not there"
    if values["reference"] == values["target"]:
        return "reference and target are the same picture"
    return None


def told(bad: Iterable[BadLine]) -> str:
    """Bad lines for an error: the first of them, one a line."""
    lines = [str(each) for each in bad]
    more = [f"and {len(lines) - MOST_TOLD} more"] if len(lines) > MOST_TOLD else []
    return "\n".join([*lines[:MOST_TOLD], *more])
