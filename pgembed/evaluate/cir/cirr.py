"""CIRR (Liu, Rodriguez-Opazo, Teney, Gould, ICCV 2021): photographs of NLVR2, each query among a set of six alike."""

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

VERSION = "rc2"
LAYOUT = (
    f"captions/cap.{VERSION}.val.json, image_splits/split.{VERSION}.val.json, img_raw/dev/….png (or dev/….png),"
    " in the folder, or in cirr/ below it."
)


def read(folder: Path, split: str) -> list[Part]:
    """One part; the gallery is the whole split, the reference left out. Raises InvalidInput."""
    split = "test1" if split == "test" else split
    annotations = folder / "cirr" if (folder / "cirr" / "captions").is_dir() else folder
    places = load_json(annotations / "image_splits" / f"split.{VERSION}.{split}.json", LAYOUT)
    roots = [annotations / "img_raw", annotations, folder / "img_raw", folder, folder / "images"]
    photos = {name: _photo(place, roots) for name, place in places.items()}
    path = annotations / "captions" / f"cap.{VERSION}.{split}.json"
    queries: list[Composed] = []
    for record in load_json(path, LAYOUT):
        pair, reference, caption, group = fields_of(record, path, "pairid", "reference", "caption", "img_set")
        target = (record["target_hard"],) if "target_hard" in record else ()
        members = tuple(name for name in group["members"] if name != reference)
        queries.append(Composed(str(pair), reference, caption, target, members))
    return [Part(split, photos, tuple(queries), tuple(photos), without_reference=True)]


def measure(found: Sequence[Found]) -> Figures:
    """R@k over the split, R_subset@k over the five others of a query's set, and the mean of R@5 and R_subset@1."""
    figures = {f"R@{k}": recall(found, k) for k in (1, 5, 10, 50)}
    figures |= {f"Rsubset@{k}": recall(found, k, members=True) for k in (1, 2, 3)}
    return figures | {"mean": (figures["R@5"] + figures["Rsubset@1"]) / 2}


def submissions(found: Sequence[Found]) -> dict[str, dict[str, Any]]:
    """The two files that the server of the test split takes, by what their names end in."""
    heads = {"": "recall", "_subset": "recall_subset"}
    files: dict[str, dict[str, Any]] = {end: {"version": VERSION, "metric": metric} for end, metric in heads.items()}
    for each in found:
        files[""][each.query.id] = [*each.top[:TOP]]
        files["_subset"][each.query.id] = [*each.members[:3]]
    return files


def _photo(place: str, roots: Sequence[Path]) -> Photo:
    """``./dev/dev-1-0-img0.png`` below the first root that has it."""
    return next((Photo(root / place) for root in roots if (root / place).is_file()), Photo(roots[0] / place))


CIRR = Dataset("cirr", ("val", "test"), LAYOUT, read, measure, mean_of, submissions)
