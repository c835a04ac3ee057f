"""GeneCIS (Vaze, Carion, Misra, CVPR 2023): what is like a picture by a condition, in a gallery of the query's own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pgembed.evaluate.cir.dataset import (
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

TASKS = ("focus_attribute", "change_attribute", "focus_object", "change_object")
LAYOUT = (
    "genecis/focus_attribute.json and the three others (or in the folder itself); VG_100K/ and VG_100K_2/, or VG_All/,"
    " with Visual Genome's photographs; val2017/ (or coco2017/val2017/) with COCO's."
)
_GENOME = ("VG_All", "VG_100K_all", "VG_100K", "VG_100K_2", "visual_genome")
_COCO = ("val2017", "coco2017/val2017", "COCO/val2017", "coco/val2017")


def read(folder: Path, split: str) -> list[Part]:
    """A part a task. Queries whose gallery has another size than most have are left out, as the authors' own program
    leaves them out. Raises InvalidInput."""
    _ = split
    annotations = folder / "genecis" if (folder / "genecis").is_dir() else folder
    parts: list[Part] = []
    for task in TASKS:
        path = annotations / f"{task}.json"
        records = load_json(path, LAYOUT)
        usual = Counter(len(record["gallery"]) for record in records).most_common(1)
        size = usual[0][0] if usual else 0
        photos: dict[str, Photo] = {}
        queries: list[Composed] = []
        for number, record in enumerate(records):
            reference, target, gallery, words = fields_of(record, path, "reference", "target", "gallery", "condition")
            if len(gallery) != size:
                continue
            names = [_add(photos, each, folder, path) for each in (reference, target, *gallery)]
            queries.append(Composed(str(number), names[0], words, (names[1],), tuple(names[1:])))
        parts.append(Part(task, photos, tuple(queries)))
    return parts


def measure(found: Sequence[Found]) -> Figures:
    """R@1, R@2 and R@3 within the gallery of each query."""
    return {f"R@{k}": recall(found, k, members=True) for k in (1, 2, 3)}


def _add(photos: dict[str, Photo], record: dict[str, Any], folder: Path, path: Path) -> str:
    """The name of a picture, which is put among the others: of COCO whole, of Visual Genome a crop."""
    if "val_image_id" in record:
        name = f"{int(record['val_image_id']):012d}"
        photos.setdefault(name, Photo(_place(folder, _COCO, f"{name}.jpg")))
        return name
    image, box = fields_of(record, path, "image_id", "instance_bbox")
    left, top, width, height = map(float, box)
    name = f"{image} {left:g},{top:g},{width:g},{height:g}"
    photos.setdefault(name, Photo(_place(folder, _GENOME, f"{image}.jpg"), (left, top, width, height)))
    return name


def _place(folder: Path, names: Sequence[str], file: str) -> Path:
    return next((path for name in names if (path := folder / name / file).is_file()), folder / names[0] / file)


GENECIS = Dataset("genecis", ("val",), LAYOUT, read, measure, mean_of)
