"""CIRCO (Baldrati et al., ICCV 2023): COCO's unlabelled pictures, several right answers a query."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pgembed.evaluate.cir.dataset import (
    TOP,
    Composed,
    Dataset,
    Figures,
    Found,
    Part,
    Photo,
    fields_of,
    load_json,
    mean_of,
    recall,
)

LAYOUT = (
    "annotations/val.json, COCO2017_unlabeled/annotations/image_info_unlabeled2017.json,"
    " COCO2017_unlabeled/unlabeled2017/000000….jpg."
)
CUTOFFS = (5, 10, 25, 50)


def read(folder: Path, split: str) -> list[Part]:
    """One part; the gallery is all of COCO's unlabelled photographs, the reference among them. Raises InvalidInput."""
    coco = folder / "COCO2017_unlabeled"
    listed = coco / "annotations" / "image_info_unlabeled2017.json"
    photos = {
        str(record["id"]): Photo(coco / "unlabeled2017" / record["file_name"])
        for record in load_json(listed, LAYOUT)["images"]
    }
    path = folder / "annotations" / f"{split}.json"
    queries: list[Composed] = []
    for record in load_json(path, LAYOUT):
        number, reference, caption = fields_of(record, path, "id", "reference_img_id", "relative_caption")
        targets = tuple(map(str, record.get("gt_img_ids", ())))
        queries.append(Composed(str(number), str(reference), caption, targets))
    return [Part(split, photos, tuple(queries), tuple(photos))]


def average_precision(each: Found, k: int) -> float:
    """AP@k, over the number of targets or k, whichever is less: 1 where the first places are all targets."""
    targets, hits, total = set(each.query.targets), 0, 0.0
    for rank, name in enumerate(each.top[:k], start=1):
        if name in targets:
            hits += 1
            total += hits / rank
    return total / min(len(targets), k)


def measure(found: Sequence[Found]) -> Figures:
    """mAP@k over all targets, and R@k of the target that the caption was written for, the first."""
    figures = {f"mAP@{k}": sum(average_precision(each, k) for each in found) / len(found) for k in CUTOFFS}
    first = [Found(_of_first(each.query), each.top, ()) for each in found]
    return figures | {f"R@{k}": recall(first, k) for k in CUTOFFS}


def submissions(found: Sequence[Found]) -> dict[str, dict[str, Any]]:
    """The file that the server of the test split takes."""
    return {"": {each.query.id: [int(name) for name in each.top[:TOP]] for each in found}}


def _of_first(query: Composed) -> Composed:
    return Composed(query.id, query.reference, query.caption, query.targets[:1])


CIRCO = Dataset("circo", ("val", "test"), LAYOUT, read, measure, mean_of, submissions)
