"""A picture and a change in words: which way of composing them finds the changed picture?

    python -m benchmarks.composed [--quick] [--json]

The emoji of one vendor, changed in skin tone, gender or role: the query is a picture and the words for what was and for
what shall be, ranked over all of the vendor's drawings, the picture itself left out. ``docs/composed.md`` has the ways.
The weight of each way is chosen on noto, which training saw, and the figures are those of openmoji, which nothing was
fitted on. "Near twin" is the share of the misses whose first answer is the drawing most like the picture itself.
``--quick`` takes every third drawing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.common import Figure, Report, arguments, data
from benchmarks.encoder_quality import Row, changes, drawn
from pgembed.encoders.builtin import LiteEncoder

Vectors = NDArray[np.float32]
CHOSEN_ON, MEASURED_ON = "noto", "openmoji"
GRID = (0.15, 0.25, 0.35, 0.5, 0.7, 1.0, 1.4, 2.0)
SHARES = (0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6)
TARGETS = {"skin tone": 0.55, "gender": 0.50, "role": 0.25}


@dataclass(frozen=True)
class Task:
    """One kind of change at one vendor: n pairs, their pictures and words, and all drawings ``(m, dim)``."""

    reference: NDArray[np.intp]
    target: NDArray[np.intp]
    old: Vectors
    new: Vectors
    drawings: Vectors

    @property
    def picture(self) -> Vectors:
        """The pictures that are changed, ``(n, dim)``."""
        return self.drawings[self.reference]


def unit(vectors: Vectors) -> Vectors:
    """Each row of unit length; one of no length stays."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(lengths > 0, lengths, 1)


def slerped(task: Task, t: float) -> Vectors:
    """Between picture and new words."""
    angle = np.arccos(np.clip((task.picture * task.new).sum(axis=1, keepdims=True), -1, 1))
    return (np.sin((1 - t) * angle) * task.picture + np.sin(t * angle) * task.new) / np.sin(angle)


def rejected(task: Task, weight: float) -> Vectors:
    """The old words projected out of the picture, then the new ones added."""
    rest = task.picture - (task.picture * task.old).sum(axis=1, keepdims=True) * task.old
    return unit(rest) + weight * task.new


WAYS: dict[str, tuple[Sequence[float], Callable[[Task, float], Vectors]]] = {
    "picture only": ((0.0,), lambda task, _: task.picture),
    "words only": ((0.0,), lambda task, _: task.new),
    "sum": (GRID, lambda task, weight: task.picture + weight * task.new),
    "minus and plus": (GRID, lambda task, weight: task.picture + weight * (task.new - task.old)),
    "swap": (GRID, lambda task, weight: task.picture + weight * unit(task.new - task.old)),
    "slerp": (SHARES, slerped),
    "reject and sum": (GRID, rejected),
}


def ranks(task: Task, queries: Vectors) -> NDArray[np.intp]:
    """How many drawings, the reference left out, come before the right one."""
    found: list[NDArray[np.intp]] = []
    for start in range(0, len(queries), 1_000):
        part = slice(start, start + 1_000)
        scores = queries[part] @ task.drawings.T
        own = scores[np.arange(len(scores)), task.target[part]]
        scores[np.arange(len(scores)), task.reference[part]] = -np.inf
        found.append((scores > own[:, None]).sum(axis=1))
    return np.concatenate(found)


def near_twins(task: Task, queries: Vectors, rank: NDArray[np.intp]) -> float:
    """Of the misses, the share whose first answer is what the picture alone finds first."""
    missed = np.flatnonzero(rank > 0)
    if not missed.size:
        return 0.0
    firsts = []
    for vectors in (queries[missed], task.picture[missed]):
        scores = vectors @ task.drawings.T
        scores[np.arange(len(missed)), task.reference[missed]] = -np.inf
        firsts.append(scores.argmax(axis=1))
    return float((firsts[0] == firsts[1]).mean())


def tasks(encoder: LiteEncoder, vendor: str, rows: Sequence[Row]) -> dict[str, Task]:
    """The changes between drawings that a vendor has, by kind."""
    (folder,) = data("emoji")
    drawings, places = drawn(encoder, folder / vendor, rows)
    found: dict[str, Task] = {}
    for kind, pairs in changes([rows[place] for place in places]).items():
        words = sorted({word for pair in pairs for word in pair[2:]})
        vectors = dict(zip(words, encoder.encode_text(words), strict=True))
        old, new = (np.stack([vectors[pair[side]] for pair in pairs]) for side in (2, 3))
        reference, target = (np.array([pair[side] for pair in pairs]) for side in (0, 1))
        found[kind] = Task(reference, target, old, new, drawings)
    return found


def main() -> int:
    """Measure and print."""
    options = arguments(__doc__)
    report, encoder = Report("composed", as_json=options.json), LiteEncoder.load("lite", {})
    (folder,) = data("emoji")
    rows: list[Row] = [json.loads(line) for line in (folder / "emoji.jsonl").read_text().splitlines()]
    if options.quick:
        kept = set(sorted({row["base"] or row["id"] for row in rows})[::3])
        rows = [row for row in rows if (row["base"] or row["id"]) in kept]
    chosen_on, measured_on = (tasks(encoder, vendor, rows) for vendor in (CHOSEN_ON, MEASURED_ON))
    weights: dict[str, float] = {}
    for way, (grid, compose) in WAYS.items():  # one weight for all kinds of change: who asks does not say which it is
        means = [
            np.mean([(ranks(task, compose(task, weight)) == 0).mean() for task in chosen_on.values()])
            for weight in grid
        ]
        weights[way] = grid[int(np.argmax(means))]
    best: dict[str, float] = {}
    for kind, task in measured_on.items():
        table: list[dict[str, Any]] = []
        for way, (_, compose) in WAYS.items():
            queries = compose(task, weights[way])
            rank = ranks(task, queries)
            table.append(
                {
                    "way": way,
                    "weight": weights[way] or "",
                    **{f"R@{k}": float((rank < k).mean()) for k in (1, 5, 10)},
                    "near twin": near_twins(task, queries, rank),
                    f"R@1 on {CHOSEN_ON}": float(
                        (ranks(chosen_on[kind], compose(chosen_on[kind], weights[way])) == 0).mean()
                    ),
                }
            )
        report.table(f"{kind}: {len(task.reference):,} changes among {len(task.drawings):,} drawings", table)
        best[kind] = max(row["R@1"] for row in table)
    return report.finish(
        *(
            Figure(kind.replace(" ", "_"), round(best[kind], 3), target, at_least=True)
            for kind, target in TARGETS.items()
        )
    )


if __name__ == "__main__":
    raise SystemExit(main())
