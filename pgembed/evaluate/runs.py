"""Runs: what was found for each query, as a file in TREC's format with a JSON file of settings beside it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from pgembed.errors import InvalidInput
from pgembed.evaluate.metrics import Rankings, strictly_falling
from pgembed.shown import shortened


@dataclass(frozen=True)
class Run:
    """Rankings under a name, and the facts with which they were made: encoder, fingerprint, seed, settings."""

    name: str
    rankings: Rankings
    facts: dict[str, Any] = field(default_factory=dict[str, Any])


def write_run(path: Path, run: Run) -> None:
    """Write ``query Q0 row rank score name`` lines, and the facts to ``<path>.json``: tools that read runs take no
    comments. Scores of equals differ by a float32, so that every tool keeps the order. Raises InvalidInput for an id
    with a space in it, which the format cannot hold."""
    name = "_".join(run.name.split()) or "run"
    lines: list[str] = []
    for query, ranking in run.rankings.items():
        for rank, (row, score) in enumerate(strictly_falling(ranking), start=1):
            if odd := [identity for identity in (query, row) if not identity or len(identity.split()) != 1]:
                raise InvalidInput(
                    f"A run file cannot hold the id {odd[0]!r}: spaces stand between its columns.",
                    "Name a column of ids without spaces: --id-column NAME",
                )
            lines.append(f"{query} Q0 {row} {rank} {score:.9g} {name}\n")
    path.write_text("".join(lines), encoding="utf-8")
    facts = json.dumps({"run": run.name, **run.facts}, ensure_ascii=False, indent=1, default=str)
    settings_of(path).write_text(facts + "\n", encoding="utf-8")


def read_run(path: Path) -> Run:
    """Read a run in TREC's format, ordered by score as trec_eval does, and its facts where they stand beside it.

    Raises InvalidInput, with the line.
    """
    found: dict[str, list[tuple[str, float]]] = {}
    name = path.stem
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"The run {path} cannot be read: {error}.") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        parts = line.split()
        try:
            query, _, row, _, score, name = parts
            found.setdefault(query, []).append((row, float(score)))
        except ValueError:
            raise InvalidInput(
                f"{path}, line {number}: {shortened(line)!r} is no line of a run.",
                "A line is: query Q0 row rank score name.",
            ) from None
    if not found:
        raise InvalidInput(f"The run {path} is empty.")
    rankings = {query: sorted(rows, key=lambda each: -each[1]) for query, rows in found.items()}
    try:
        facts = cast("dict[str, Any]", json.loads(settings_of(path).read_text(encoding="utf-8")))
    except (OSError, ValueError):
        facts = dict[str, Any]()
    return Run(str(facts.get("run", name)), rankings, facts)


def settings_of(path: Path) -> Path:
    """Where the settings of a run stand: ``lite.run.json`` beside ``lite.run``."""
    return path.with_name(f"{path.name}.json")
