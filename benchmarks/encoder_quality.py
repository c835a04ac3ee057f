"""How well ``builtin:lite`` finds things:  python -m benchmarks.encoder_quality [--quick] [--json]

Photographs by their labels, openmoji's drawings (which training never saw) by their names and by another vendor's
drawing, Cranfield's abstracts by their queries, and the time a picture takes on one core. The photographs are of
ImageNet's classes: the tower may have seen some of them in its training.
"""

from __future__ import annotations

import csv
import json
import time
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.common import Figure, Report, arguments, data
from pgembed.encoders.builtin import LiteEncoder
from pgembed.errors import InvalidInput

Vectors = NDArray[np.float32]
BATCH = 64
LEAST_PHOTOGRAPHS, LEAST_DRAWINGS = 0.85, 0.20


def pictures(encoder: LiteEncoder, files: Iterable[Path]) -> Vectors:
    """Encode picture files into ``(n, dim)``."""
    todo, out = list(files), []
    for start in range(0, len(todo), BATCH):
        out.append(encoder.encode_image([Image.open(file) for file in todo[start : start + BATCH]]))
    return np.concatenate(out)


def recall(queries: Vectors, found: Vectors, right: NDArray[np.intp] | None = None) -> tuple[float, float]:
    """R@1 and R@10, where query i is after ``found[right[i]]`` (default: ``found[i]``)."""
    scores = queries @ found.T
    own = scores[np.arange(len(queries)), np.arange(len(queries)) if right is None else right]
    rank = (scores > own[:, None]).sum(axis=1)
    return float((rank < 1).mean()), float((rank < 10).mean())


def ndcg(folder: Path, encoder: LiteEncoder, k: int = 10) -> float:
    """nDCG@k with linear gains (Järvelin and Kekäläinen 2002, as trec_eval computes it) of one static text side."""
    documents: dict[str, Vectors] = {}
    for line in (folder / "corpus.jsonl").read_text().splitlines():
        row = json.loads(line)
        try:
            documents[row["_id"]] = encoder.encode_text([f"{row['title']} {row['text']}"])[0]
        except InvalidInput:
            continue  # two of the abstracts are empty
    grades: dict[str, dict[str, int]] = defaultdict(dict)
    for row in csv.DictReader((folder / "qrels.tsv").open(), delimiter="\t"):
        grades[row["query-id"]][row["corpus-id"]] = int(row["score"])
    names, table = list(documents), np.stack(list(documents.values()))
    discount = 1 / np.log2(np.arange(2, k + 2))
    values = []
    for line in (folder / "queries.jsonl").read_text().splitlines():
        query = json.loads(line)
        judged = grades.get(query["_id"], {})
        best = sorted((grade for grade in judged.values() if grade > 0), reverse=True)[:k]
        if best:
            order = np.argsort(-(table @ encoder.encode_text([query["text"]])[0]), kind="stable")[:k]
            gains = np.array([max(0, judged.get(names[i], 0)) for i in order])
            values.append((gains * discount).sum() / (best * discount[: len(best)]).sum())
    return float(np.mean(values))


def milliseconds_a_picture(files: list[Path]) -> dict[str, float]:
    """On one core, one picture at a time, decoded before: shrinking it, and the network."""
    encoder = LiteEncoder.load("lite", {"threads": 1})
    decoded = [Image.open(file).convert("RGB") for file in files]
    encoder.encode_image(decoded[:1])
    start = time.perf_counter()
    pixels = [encoder.preprocess(picture) for picture in decoded]
    middle = time.perf_counter()
    for each in pixels:
        encoder.embed_pixels([each])
    end = time.perf_counter()
    scale = 1000 / len(files)
    return {
        "shrink ms": (middle - start) * scale,
        "network ms": (end - middle) * scale,
        "sum ms": (end - start) * scale,
    }


def main() -> int:
    """Measure and print."""
    options = arguments(__doc__)
    photos, emoji, cranfield = data("photos", "emoji", "cranfield")
    report, encoder = Report("encoder_quality", as_json=options.json), LiteEncoder.load("lite", {})

    labelled = list(csv.DictReader((photos / "labels.tsv").open(), delimiter="\t"))
    photographs = pictures(encoder, (photos / row["file"] for row in labelled))
    labels = encoder.encode_text([row["label"] for row in labelled])
    rows = [json.loads(line) for line in (emoji / "emoji.jsonl").read_text().splitlines()]
    rows = [row for row in rows if row["skin_tone"] is None and (emoji / "openmoji" / f"{row['id']}.png").exists()]
    drawings = pictures(encoder, (emoji / "openmoji" / f"{row['id']}.png" for row in rows))
    names = encoder.encode_text([row["name"] for row in rows])

    both = np.concatenate([photographs, drawings])
    measured = {
        f"{len(labelled)} photographs, by label": recall(labels, photographs),
        f"{len(rows)} openmoji drawings, by name": recall(names, drawings),
        "photographs among both, by label": recall(labels, both),
        "drawings among both, by name": recall(names, both, np.arange(len(names)) + len(labels)),
    }
    if not options.quick:
        twice = [(i, file) for i, row in enumerate(rows) if (file := emoji / "noto" / f"{row['id']}.png").exists()]
        noto = pictures(encoder, (file for _, file in twice))
        measured["openmoji drawings, by noto's"] = recall(noto, drawings, np.array([i for i, _ in twice]))
    report.table("Found", [{"what": what, "R@1": one, "R@10": ten} for what, (one, ten) in measured.items()])
    report.table("Words", [{"what": "Cranfield, 150 queries", "nDCG@10": ndcg(cranfield, encoder)}])
    sample = [photos / row["file"] for row in labelled[::12]]
    report.table("One core, a photograph", [milliseconds_a_picture(sample)])

    found = list(measured.values())
    return report.finish(
        Figure("photographs", round(found[0][0], 3), LEAST_PHOTOGRAPHS, at_least=True),
        Figure("drawings", round(found[1][0], 3), LEAST_DRAWINGS, at_least=True),
    )


if __name__ == "__main__":
    raise SystemExit(main())
