"""How well ``builtin:lite`` finds things:  python -m benchmarks.encoder_quality [--quick] [--json]

Photographs by their labels and by words for wider kinds (``wider_kinds.tsv``), openmoji's drawings (which training
never saw) by their names, by one search word and by another vendor's drawing, both in one table, drawings changed by
words, Cranfield's abstracts by their queries, the time a picture takes on one core, and the size of what is shipped.
The photographs are of ImageNet's classes: the tower may have seen some of them in its training. The pictures of noto,
twemoji and fluent are what training learns from: their figures say how much it kept. ``--quick`` leaves out what needs
more pictures than the photographs and openmoji's without skin tones.
"""

from __future__ import annotations

import csv
import itertools
import json
import re
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.common import Figure, Report, arguments, data
from pgembed.encoders.builtin import LiteEncoder, lite_files
from pgembed.errors import InvalidInput

Vectors = NDArray[np.float32]
Row = dict[str, Any]
BATCH = 64
WIDER_KINDS = Path(__file__).with_name("wider_kinds.tsv")
VENDORS = ("noto", "twemoji", "fluent")
TONES = ("light", "medium-light", "medium", "medium-dark", "dark")
GENDERED = re.compile(r"(man|woman) (.+)")
WEIGHTS = (0.25, 0.5, 1.0)  # of the words beside the picture
DISTILLED_NDCG = 0.264  # of the table as training/words.py distils it (model2vec, before any drawing is seen)


def pictures(encoder: LiteEncoder, files: Iterable[Path]) -> Vectors:
    """Encode picture files into ``(n, dim)``."""
    todo, out = list(files), []
    for start in range(0, len(todo), BATCH):
        out.append(encoder.encode_image([Image.open(file) for file in todo[start : start + BATCH]]))
    return np.concatenate(out)


def drawn(encoder: LiteEncoder, folder: Path, rows: Sequence[Row]) -> tuple[Vectors, NDArray[np.intp]]:
    """One vendor's pictures of these emoji, and the place in ``rows`` of each: not every vendor has all."""
    there = [(i, file) for i, row in enumerate(rows) if (file := folder / f"{row['id']}.png").exists()]
    return pictures(encoder, (file for _, file in there)), np.array([i for i, _ in there])


def recall(
    queries: Vectors, found: Vectors, right: NDArray[np.intp] | None = None, without: NDArray[np.intp] | None = None
) -> tuple[float, float]:
    """R@1 and R@10, where query i is after ``found[right[i]]`` (default: i) and not ``found[without[i]]``."""
    rows = np.arange(len(queries))
    scores = queries @ found.T
    own = scores[rows, rows if right is None else right]
    if without is not None:
        scores[rows, without] = -np.inf
    rank = (scores > own[:, None]).sum(axis=1)
    return float((rank < 1).mean()), float((rank < 10).mean())


def average_precision(queries: Vectors, found: Vectors, right: Sequence[set[int]], k: int = 10) -> NDArray[np.float64]:
    """Average precision at k of each query, of which the places in ``right`` are hits: 1 at best."""
    values = []
    for scores, wanted in zip(queries @ found.T, right, strict=True):
        hits = np.array([i in wanted for i in np.argsort(-scores, kind="stable")[:k]])
        values.append((hits.cumsum() / np.arange(1, len(hits) + 1) * hits).sum() / min(k, len(wanted)))
    return np.array(values)


def wider_kinds(files: Sequence[str]) -> dict[str, set[int]]:
    """Words for kinds of things, and the places of the photographs that show one."""
    classes = [file.split("_")[0] for file in files]
    lines = (line for line in WIDER_KINDS.read_text().splitlines() if not line.startswith("#"))
    return {
        row["word"]: {i for i, each in enumerate(classes) if each in row["classes"].split()}
        for row in csv.DictReader(lines, delimiter="\t")
    }


def by_tag(encoder: LiteEncoder, rows: Sequence[Row]) -> dict[str, set[int]]:
    """Every search word, and the places of the emoji that have it; not those that are signs alone ("✓")."""
    found: dict[str, set[int]] = defaultdict(set)
    for i, row in enumerate(rows):
        for tag in row["tags"]:
            found[tag].add(i)
    return {tag: places for tag, places in found.items() if encoder.text.split(tag)}


def changes(rows: Sequence[Row]) -> dict[str, list[tuple[int, int, str, str]]]:
    """By kind of change: reference, target, and the words for what was and for what shall be."""
    found: dict[str, list[tuple[int, int, str, str]]] = {"skin tone": [], "gender": [], "role": []}
    tones: dict[str, dict[str, int]] = defaultdict(dict)
    people: dict[tuple[str, str], int] = {}
    for i, row in enumerate(rows):
        if row["skin_tone"] is None and (match := GENDERED.fullmatch(row["name"])):
            people[match[1], match[2]] = i
        elif str(row["skin_tone"]) in "12345":
            tones[row["base"]][f"{TONES[int(row['skin_tone']) - 1]} skin tone"] = i
    for each in tones.values():
        found["skin tone"] += [(each[a], each[b], a, b) for a, b in itertools.permutations(each, 2)]
    for (gender, what), i in people.items():
        other = "woman" if gender == "man" else "man"
        if (other, what) in people:
            found["gender"].append((i, people[other, what], gender, other))
    roles = {key: i for key, i in people.items() if rows[i]["subgroup"] == "person-role"}
    for (a, old), (b, new) in itertools.permutations(roles, 2):
        if a == b:
            found["role"].append((roles[a, old], roles[b, new], old, new))
    return found


def composed(encoder: LiteEncoder, rows: Sequence[Row], found: Vectors) -> list[dict[str, Any]]:
    """R@1 over all drawings, the reference left out, of the picture alone, with words added, and with words changed."""
    table = []
    for kind, pairs in changes(rows).items():
        reference, target = (np.array([pair[side] for pair in pairs]) for side in (0, 1))
        words = sorted({word for pair in pairs for word in pair[2:]})
        vectors = dict(zip(words, encoder.encode_text(words), strict=True))
        old, new = (np.stack([vectors[pair[side]] for pair in pairs]) for side in (2, 3))
        line: dict[str, Any] = {"change": kind, "pairs": len(pairs)}
        ways = {"picture": np.zeros_like(old)}
        ways |= {f"+ {weight} new": weight * new for weight in WEIGHTS}
        ways |= {f"+ {weight} (new - old)": weight * (new - old) for weight in WEIGHTS}
        for way, change in ways.items():
            line[way] = recall(found[reference] + change, found, target, without=reference)[0]
        table.append(line)
    return table


def megabytes() -> float:
    """What is shipped."""
    return sum(len(file.read_bytes()) for file in lite_files().iterdir() if file.is_file()) / 2**20


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

    with (photos / "labels.tsv").open() as file:
        labelled = list(csv.DictReader(file, delimiter="\t"))
    everything = [json.loads(line) for line in (emoji / "emoji.jsonl").read_text().splitlines()]
    everything = [row for row in everything if (emoji / "openmoji" / f"{row['id']}.png").exists()]
    rows = [row for row in everything if row["skin_tone"] is None]
    labels = encoder.encode_text([row["label"] for row in labelled])
    names = encoder.encode_text([row["name"] for row in rows])
    photographs = pictures(encoder, (photos / row["file"] for row in labelled))
    drawings, _ = drawn(encoder, emoji / "openmoji", rows)

    both = np.concatenate([photographs, drawings])
    among = np.arange(len(names)) + len(labels)
    named = {row["name"].lower(): i for i, row in enumerate(rows)}
    same = [(i, named[row["label"].lower()]) for i, row in enumerate(labelled) if row["label"].lower() in named]
    shown, things = (np.array([pair[side] for pair in same]) for side in (0, 1))
    found = {
        f"{len(labelled)} photographs, by label": (by_label := recall(labels, photographs)),
        "the same among both kinds": (by_label_among_both := recall(labels, both, np.arange(len(labels)))),
        f"{len(rows)} openmoji drawings, by name": (by_name := recall(names, drawings)),
        "the same among both kinds, by name": (by_name_among_both := recall(names, both, among)),
        f"drawings, by a photograph ({len(same)} things)": recall(photographs[shown], drawings, things),
        f"photographs, by a drawing ({len(same)} things)": recall(drawings[things], photographs, shown),
    }
    kinds, tags = wider_kinds([row["file"] for row in labelled]), by_tag(encoder, rows)
    by_kind = average_precision(encoder.encode_text(list(kinds)), photographs, list(kinds.values()))
    by_word = average_precision(encoder.encode_text(list(tags)), drawings, list(tags.values()))
    precise = [
        {"what": f"photographs, by {len(kinds)} words for wider kinds", "mAP@10": float(by_kind.mean())},
        {"what": f"openmoji drawings, by one of {len(tags)} search words", "mAP@10": float(by_word.mean())},
    ]
    kept = ndcg(cranfield, encoder)
    speed = milliseconds_a_picture([photos / row["file"] for row in labelled[::12]])
    figures = [
        Figure("photographs", round(by_label[0], 3), 0.90, at_least=True),
        Figure("photographs@10", round(by_label[1], 3), 0.97, at_least=True),
        Figure("wider_kinds", round(float(by_kind.mean()), 3), 0.60, at_least=True),
        Figure("drawings", round(by_name[0], 3), 0.45, at_least=True),
        Figure("drawings@10", round(by_name[1], 3), 0.78, at_least=True),
        Figure("photographs_lost", round(by_label[0] - by_label_among_both[0], 3), 0.03),
        Figure("drawings_lost", round(by_name[0] - by_name_among_both[0], 3), 0.03),
        Figure("words_lost", round(DISTILLED_NDCG - kept, 3), 0.01),
        Figure("ms", round(speed["sum ms"], 1), 40),
        Figure("MB", round(megabytes(), 1), 30),
    ]
    if not options.quick:
        for vendor in VENDORS:
            theirs, place = drawn(encoder, emoji / vendor, rows)
            found[f"{len(place)} of {vendor} (trained on), by name"] = recall(names[place], theirs)
            across = found[f"openmoji drawings, by {vendor}'s (trained on)"] = recall(theirs, drawings, place)
            if vendor == "noto":
                figures.insert(5, Figure("noto_to_openmoji", round(across[0], 3), 0.50, at_least=True))
    report.table("Found", [{"what": what, "R@1": one, "R@10": ten} for what, (one, ten) in found.items()])
    report.table("Found by one word", precise)
    ranked = sorted(zip(kinds, by_kind, strict=True), key=lambda each: -each[1])
    report.table(
        "Wider kinds",
        [{"word": word, "photographs": len(kinds[word]), "AP@10": float(value)} for word, value in ranked],
    )
    if not options.quick:
        toned = [row for row in everything if row["skin_tone"] is not None]
        changed = np.concatenate([drawings, drawn(encoder, emoji / "openmoji", toned)[0]])
        report.table("Picture and words: R@1 among all of openmoji", composed(encoder, [*rows, *toned], changed))
    report.table("Words", [
        {"what": "Cranfield, 150 queries", "nDCG@10": kept},
        {"what": "the distilled table before training (a constant)", "nDCG@10": DISTILLED_NDCG},
    ])  # fmt: skip
    report.table("One core, a photograph", [speed])
    return report.finish(*figures)


if __name__ == "__main__":
    raise SystemExit(main())
