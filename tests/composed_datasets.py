"""Small copies of published datasets of composed retrieval, in their layouts, of real photographs; and an encoder that
knows each picture by its width, and gives a caption the vector that a test wrote down: how much it likes each picture.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pgembed.encoders import Encoder, Modality, Settings
from pgembed.errors import InvalidInput

PHOTOS = sorted((Path(__file__).parent / "data" / "photos").glob("*.jpg"))
FIRST_WIDTH = 40
DIM = 64


class ByWidth(Encoder):
    """Picture n, 40 + n pixels wide, is the unit vector n; a caption is the likings it was given."""

    scheme: ClassVar[str] = "by-width"
    spec = "by-width:test"
    fingerprint = "by-width 1"
    modalities: frozenset[Modality] = frozenset(("text", "image"))
    dim = DIM

    def __init__(self, likings: dict[str, Sequence[float]]) -> None:
        self.likings = likings
        self.encoded = 0

    @classmethod
    def load(cls, name: str, settings: Settings) -> Self:
        raise NotImplementedError

    def embed_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        if "" in texts:
            raise InvalidInput("There are no words.")
        rows = [[*self.likings[text], *[0.0] * DIM][:DIM] for text in texts]
        return np.array(rows, dtype=np.float32)

    def embed_pixels(self, pixels: Sequence[Any]) -> NDArray[np.float32]:
        self.encoded += len(pixels)
        return np.stack([np.eye(DIM, dtype=np.float32)[picture.width - FIRST_WIDTH] for picture in pixels])


def photo(path: Path, number: int) -> None:
    """A real photograph, 40 + ``number`` pixels wide."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with Image.open(PHOTOS[number % len(PHOTOS)]) as picture:
        picture.resize((FIRST_WIDTH + number, 30)).save(path)


def written(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def cirr(folder: Path, *, split: str = "val") -> Path:
    """Six pictures; two queries on the first three and two more."""
    part = "dev" if split == "val" else "test1"
    names = [f"{part}-{n}-0-img0" for n in range(6)]
    for n, name in enumerate(names):
        photo(folder / "img_raw" / part / f"{name}.png", n)
    written(folder / f"image_splits/split.rc2.{split}.json", {name: f"./{part}/{name}.png" for name in names})
    group = {"id": 1, "members": [names[n] for n in (0, 1, 2, 3)], "reference_rank": 1}
    queries: list[dict[str, Any]] = [
        {"pairid": 11, "reference": names[0], "target_hard": names[1], "caption": "one", "img_set": group},
        {"pairid": 12, "reference": names[0], "target_hard": names[3], "caption": "two", "img_set": group},
    ]
    if split == "test1":
        for query in queries:
            del query["target_hard"]
    written(folder / f"captions/cap.rc2.{split}.json", queries)
    return folder


def fashioniq(folder: Path) -> Path:
    """Sixty pictures a category; the likings of its caption fall from the first to the last."""
    places = {"dress": (9, 10), "shirt": (49, 50), "toptee": (0, 59)}
    for category, targets in places.items():
        names = [f"B{category}{n}" for n in range(60)]
        for n, name in enumerate(names):
            photo(folder / "images" / f"{name}.{'png' if n % 2 else 'jpg'}", n)
        written(folder / f"image_splits/split.{category}.val.json", names)
        queries = [{"candidate": names[0], "target": names[n], "captions": ["is red.", "has dots?"]} for n in targets]
        written(folder / f"captions/cap.{category}.val.json", queries)
    return folder


def circo(folder: Path) -> Path:
    ids = [101, 102, 103, 104, 105, 106]
    coco = folder / "COCO2017_unlabeled"
    for n, number in enumerate(ids):
        photo(coco / "unlabeled2017" / f"{number:012d}.jpg", n)
    images = [{"id": number, "file_name": f"{number:012d}.jpg"} for number in ids]
    written(coco / "annotations/image_info_unlabeled2017.json", {"images": images})
    query = {"id": 0, "reference_img_id": 101, "relative_caption": "one", "shared_concept": "a thing"}
    right = {"target_img_id": 103, "gt_img_ids": [103, 105, 106]}
    written(folder / "annotations/val.json", [query | right])
    written(folder / "annotations/test.json", [query])
    return folder


def genecis(folder: Path) -> Path:
    for n in range(6):
        photo(folder / "val2017" / f"{n + 1:012d}.jpg", n)
        photo(folder / "VG_100K" / f"{n + 1}.jpg", n)

    def coco(n: int) -> dict[str, Any]:
        return {"val_image_id": n}

    def genome(n: int) -> dict[str, Any]:  # the whole picture: its crop is as wide
        return {"image_id": n, "instance_bbox": [0, 0, FIRST_WIDTH + n - 1, 30]}

    for task in ("focus_attribute", "change_attribute", "focus_object", "change_object"):
        of = genome if "attribute" in task else coco
        usual = {"reference": of(1), "target": of(2), "gallery": [of(3), of(4), of(5)], "condition": task}
        another = usual | {"target": of(5), "gallery": [of(2), of(3), of(4)]}
        smaller = usual | {"gallery": [of(3)]}
        written(folder / "genecis" / f"{task}.json", [usual, another, smaller])
    return folder
