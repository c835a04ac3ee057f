"""FashionIQ (Wu et al., CVPR 2021): dresses, shirts and tops, and two captions each of how another differs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pgembed.evaluate.cir.dataset import (
    Composed,
    Dataset,
    Figures,
    Found,
    Part,
    fields_of,
    first_folder,
    load_json,
    mean_of,
    photo_named,
    recall,
)

CATEGORIES = ("dress", "shirt", "toptee")
LAYOUT = "captions/cap.dress.val.json, image_splits/split.dress.val.json, images/B0….jpg, the same of shirt and toptee."
_ENDS = ".?, "


def read(folder: Path, split: str) -> list[Part]:
    """A part a category; the gallery is the split's list of pictures, the reference among them. Raises InvalidInput."""
    images = first_folder([folder / name for name in ("images", "image_data", "resized_image")], LAYOUT)
    parts: list[Part] = []
    for category in CATEGORIES:
        folders = [images, images / category]
        names: list[str] = load_json(folder / "image_splits" / f"split.{category}.{split}.json", LAYOUT)
        path = folder / "captions" / f"cap.{category}.{split}.json"
        queries: list[Composed] = []
        for number, record in enumerate(load_json(path, LAYOUT)):
            reference, captions, target = fields_of(record, path, "candidate", "captions", "target")
            queries.append(Composed(str(number), reference, joined(captions), (target,)))
        wanted = dict.fromkeys([*names, *(query.reference for query in queries)])
        photos = {name: photo_named(name, folders) for name in wanted}
        parts.append(Part(category, photos, tuple(queries), tuple(dict.fromkeys(names))))
    return parts


def joined(captions: Sequence[str]) -> str:
    """The captions of a pair as one: "is red and has long sleeves"."""
    return " and ".join(caption.strip(_ENDS) for caption in captions if caption.strip(_ENDS))


def measure(found: Sequence[Found]) -> Figures:
    """R@10, R@50 and their mean."""
    ten, fifty = recall(found, 10), recall(found, 50)
    return {"R@10": ten, "R@50": fifty, "mean": (ten + fifty) / 2}


FASHIONIQ = Dataset("fashioniq", ("val",), LAYOUT, read, measure, mean_of)
