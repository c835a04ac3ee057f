"""A picture and a change in words: which way of composing them finds the changed picture?

    python -m benchmarks.composed [--quick] [--json] [--ceiling]

The emoji of one vendor, changed in skin tone, gender or role: the query is a picture and the words for what was and for
what shall be, ranked over all of the vendor's drawings, the picture itself left out. ``docs/composed.md`` has the ways.
The weight of each way is chosen on noto, which training saw, and the figures are those of openmoji, which nothing was
fitted on; the composer that ships was trained on noto, twemoji and fluent (training/composer.py). "Near
twin" is the share of the misses whose first answer is the drawing most like the picture itself.
``--quick`` takes every third drawing. ``--ceiling`` also fits a network to half of openmoji's things and measures it on
the other half: what could be had of these vectors by one that knows the vendor's hand. Nothing of it is kept.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from benchmarks.common import Figure, Report, arguments, data
from benchmarks.encoder_quality import Row, changes, drawn
from pgembed.composers import ways
from pgembed.composers.fitting import Pairs, Plan, fit
from pgembed.encoders.builtin import LiteEncoder
from pgembed.encoders.composer import SHIPPED, ComposerEncoder

Vectors = NDArray[np.float32]
LEARNED = "changed (composer:lite)"
CHOSEN_ON, MEASURED_ON = "noto", "openmoji"
TARGETS = {"skin tone": 0.55, "gender": 0.50, "role": 0.25}


@dataclass(frozen=True)
class Task:
    """One kind of change at one vendor: n pairs, their pictures and words, and all drawings ``(m, dim)``."""

    reference: NDArray[np.intp]
    target: NDArray[np.intp]
    old: Vectors
    new: Vectors
    drawings: Vectors
    half: NDArray[np.intp]  # of each drawing, by what it shows, whatever the tone or gender: 0 or 1

    @property
    def picture(self) -> Vectors:
        """The pictures that are changed, ``(n, dim)``."""
        return self.drawings[self.reference]


def ranks(task: Task, queries: Vectors) -> NDArray[np.intp]:
    """How many drawings, the reference left out, come before the right one, or are as near: some are drawn alike."""
    return ways.ranks(queries, task.drawings, task.reference, task.target)


def of_ties(task: Task, queries: Vectors) -> dict[str, float]:
    """R@1 where a tie of the right drawing with others is broken at random, and where it is won."""
    at_random, won = [], []
    for query, reference, target in zip(queries, task.reference, task.target, strict=True):
        scores = task.drawings @ query
        own = scores[target]
        scores[[reference, target]] = -np.inf
        is_first = not (scores > own).any()
        won.append(is_first)
        at_random.append(is_first / (1 + (scores == own).sum()))
    return {"broken at random": round(float(np.mean(at_random)), 3), "won": _share(won)}


def composed(way: str, task: Task, weight: float) -> Vectors:
    """The queries of one way, or of the composer that ships."""
    if way == LEARNED:
        return ComposerEncoder.load(SHIPPED, {}).compose(task.picture, task.new, task.old)
    return ways.WAYS[way][1](task.picture, task.old, task.new, weight)


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
    return _share(firsts[0] == firsts[1])


def _share(of: ArrayLike) -> float:
    return round(float(np.mean(of)), 3)


def tasks(encoder: LiteEncoder, vendor: str, rows: Sequence[Row]) -> dict[str, Task]:
    """The changes between drawings that a vendor has, by kind."""
    (folder,) = data("emoji")
    drawings, places = drawn(encoder, folder / vendor, rows)
    named = {row["id"]: row["name"] for row in rows}
    half = np.array([zlib.crc32(_thing(rows[place], named).encode()) % 2 for place in places])
    found: dict[str, Task] = {}
    for kind, pairs in changes([rows[place] for place in places]).items():
        words = sorted({word for pair in pairs for word in pair[2:]})
        vectors = dict(zip(words, encoder.encode_text(words), strict=True))
        old, new = (np.stack([vectors[pair[side]] for pair in pairs]) for side in (2, 3))
        reference, target = (np.array([pair[side] for pair in pairs]) for side in (0, 1))
        found[kind] = Task(reference, target, old, new, drawings, half)
    return found


def _thing(row: Row, named: dict[str, str]) -> str:
    name = named.get(row["base"] or row["id"], row["name"])
    return name.removeprefix("man ").removeprefix("woman ").removeprefix("person ")


def ceiling(measured: dict[str, Task]) -> dict[str, float]:
    """By kind of change: R@1 on one half of the things, of a network that was fitted to the other half."""
    halves: list[list[Pairs]] = [[], []]
    for task in measured.values():
        for number, half in enumerate(halves):
            inside = np.flatnonzero((task.half[task.reference] == number) & (task.half[task.target] == number))
            some = (task.reference[inside], task.target[inside], task.new[inside], task.old[inside])
            half.append(Pairs(ways.unit(task.drawings), *some, np.full(len(inside), 1 / max(1, len(inside)))))
    parts = [
        np.concatenate([getattr(each, name) for each in halves[0]]) for name in ("reference", "target", "new", "old")
    ]
    chance = np.concatenate([each.chance for each in halves[0] if each.chance is not None]) / len(measured)
    fitted = Pairs(halves[0][0].gallery, *parts, chance)
    weights = fit([fitted], halves[0], (0.7, -0.7), Plan(steps=300, hidden=128, every=150))
    return {
        kind: float(
            (
                ways.ranks(weights.compose(p.gallery[p.reference], p.new, p.old), p.gallery, p.reference, p.target) == 0
            ).mean()
        )
        for kind, p in zip(measured, halves[1], strict=True)
    }


def main() -> int:
    """Measure and print."""
    options = arguments(__doc__, flags={"--ceiling": "fit to half of openmoji, measure on the other: minutes"})
    report, encoder = Report("composed", as_json=options.json), LiteEncoder.load("lite", {})
    (folder,) = data("emoji")
    rows: list[Row] = [json.loads(line) for line in (folder / "emoji.jsonl").read_text().splitlines()]
    if options.quick:
        kept = set(sorted({row["base"] or row["id"] for row in rows})[::3])
        rows = [row for row in rows if (row["base"] or row["id"]) in kept]
    chosen_on, measured_on = (tasks(encoder, vendor, rows) for vendor in (CHOSEN_ON, MEASURED_ON))
    weights: dict[str, float] = {}
    for way, (grid, _) in ways.WAYS.items():  # one for all kinds of change: who asks does not say which it is
        means = [
            np.mean([(ranks(task, composed(way, task, weight)) == 0).mean() for task in chosen_on.values()])
            for weight in grid
        ]
        weights[way] = grid[int(np.argmax(means))]
    best: dict[str, float] = {}
    ties: list[dict[str, Any]] = []
    for kind, task in measured_on.items():
        table: list[dict[str, Any]] = []
        for way in (*ways.WAYS, LEARNED):
            queries = composed(way, task, weights.get(way, 0.0))
            rank = ranks(task, queries)
            table.append(
                {
                    "way": way,
                    "weight": weights.get(way) or "",
                    **{f"R@{k}": _share(rank < k) for k in (1, 5, 10)},
                    "near twin": near_twins(task, queries, rank),
                    f"R@1 on {CHOSEN_ON}": _share(
                        ranks(chosen_on[kind], composed(way, chosen_on[kind], weights.get(way, 0.0))) == 0
                    ),
                }
            )
        report.table(f"{kind}: {len(task.reference):,} changes among {len(task.drawings):,} drawings", table)
        best[kind] = max(row["R@1"] for row in table)
        ties.append({"change": kind, "lost": table[-1]["R@1"], **of_ties(task, composed(LEARNED, task, 0.0))})
    report.table(f"R@1 of {LEARNED} by what becomes of a tie", ties)
    if options.ceiling:
        report.table("Fitted to half of openmoji's things, R@1 on the other half", [ceiling(measured_on)])
    return report.finish(
        *(
            Figure(kind.replace(" ", "_"), round(best[kind], 3), target, at_least=True)
            for kind, target in TARGETS.items()
        )
    )


if __name__ == "__main__":
    raise SystemExit(main())
