"""Published datasets of composed retrieval: small copies of their layouts, of real pictures, and figures by hand.

The encoder knows each picture by its width, and gives a caption the vector that a test wrote down: how much it likes
each picture. So the caption alone orders the gallery as its numbers say, and figures can be worked out on paper.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from pgembed.encoders import Encoder, Modality, Settings
from pgembed.errors import InvalidInput, UnsupportedModality
from pgembed.evaluate.cir import Asking, Result, dataset_named, evaluate_composed, way_named
from pgembed.evaluate.cir.dataset import recall
from pgembed.evaluate.cir.fashioniq import joined
from pgembed.evaluate.cir.vectors import dilated

PHOTOS = sorted((Path(__file__).parents[1] / "data" / "photos").glob("*.jpg"))
FIRST_WIDTH = 40
DIM = 8


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
    with Image.open(PHOTOS[number]) as picture:
        picture.resize((FIRST_WIDTH + number, 30)).save(path)


def written(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


@contextmanager
def no_bar(what: str) -> Iterator[None]:
    yield None


def run(
    name: str,
    folder: Path,
    encoder: Encoder,
    *,
    way: str = "text",
    weight: float = 1.0,
    split: str | None = None,
    **more: Any,  # noqa: ANN401
) -> Result:
    dataset, split = dataset_named(name, split)
    asking = Asking(way_named(way), weight, **more)
    return evaluate_composed(dataset, folder, split, encoder, asking, folder / "cache", no_bar)


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


CIRR_LIKINGS = {
    "one": (0.9, 0.8, 0.1, 0.2, 0.3, 0.0),  # without the reference: 1 4 3 2 5; of its set: 1 3 2
    "two": (0.9, 0.5, 0.6, 0.4, 0.7, 0.8),  # without the reference: 5 4 2 1 3; of its set: 2 1 3
}


def test_cirr_leaves_the_reference_out_and_ranks_the_set_of_a_query_apart(tmp_path: Path) -> None:
    found = run("cirr", cirr(tmp_path), ByWidth(CIRR_LIKINGS))
    (part,) = found.parts
    assert (part.queries, part.gallery) == (2, 6)
    assert part.figures == {
        "R@1": 0.5, "R@5": 1.0, "R@10": 1.0, "R@50": 1.0, "Rsubset@1": 0.5, "Rsubset@2": 0.5, "Rsubset@3": 1.0,
        "mean": 0.75,
    }  # fmt: skip
    assert found.summary == {}


def test_cirr_writes_the_two_files_of_the_test_split(tmp_path: Path) -> None:
    found = run("cirr", cirr(tmp_path, split="test1"), ByWidth(CIRR_LIKINGS), split="test")
    assert found.parts[0].figures == {}
    one = ["test1-1-0-img0", "test1-4-0-img0", "test1-3-0-img0", "test1-2-0-img0", "test1-5-0-img0"]
    files = found.submissions
    assert files[""]["11"] == one
    assert (files[""]["version"], files[""]["metric"]) == ("rc2", "recall")
    assert files["_subset"]["12"] == ["test1-2-0-img0", "test1-1-0-img0", "test1-3-0-img0"]
    assert (files["_subset"]["version"], files["_subset"]["metric"]) == ("rc2", "recall_subset")


@pytest.mark.parametrize("root", ["", "cirr"])
def test_cirr_is_found_in_the_folder_and_in_one_of_its_name_below(tmp_path: Path, root: str) -> None:
    assert run("cirr", cirr(tmp_path / root) and tmp_path, ByWidth(CIRR_LIKINGS)).parts[0].figures["R@1"] == 0.5


def fashioniq(folder: Path) -> Path:
    for place, category in enumerate(("dress", "shirt", "toptee")):
        names = [f"B{category}{n}" for n in range(6)]
        for n, name in enumerate(names):
            photo(folder / "images" / f"{name}.{'png' if n % 2 else 'jpg'}", n)
        written(folder / f"image_splits/split.{category}.val.json", names)
        query = {"candidate": names[0], "target": names[place], "captions": ["is red.", "has dots?"]}
        written(folder / f"captions/cap.{category}.val.json", [query, query | {"target": names[5]}])
    return folder


def test_fashioniq_joins_captions_keeps_the_reference_and_has_a_mean_of_its_categories(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # of six pictures all are among the first ten: a cutoff of two shows what is found
    monkeypatch.setattr("pgembed.evaluate.cir.fashioniq.recall", lambda found, k: recall(found, 2 if k == 10 else k))
    encoder = ByWidth({"is red and has dots": (0.5, 0.6, 0.4, 0.3, 0.2, 0.1)})  # 1 0 2 3 4 5
    found = run("fashioniq", fashioniq(tmp_path), encoder)
    assert [(part.name, part.queries, part.gallery) for part in found.parts] == [
        ("dress", 2, 6), ("shirt", 2, 6), ("toptee", 2, 6),
    ]  # fmt: skip
    assert [part.figures for part in found.parts] == [
        {"R@10": 0.5, "R@50": 1.0, "mean": 0.75},  # the reference itself is the target, and second
        {"R@10": 0.5, "R@50": 1.0, "mean": 0.75},
        {"R@10": 0.0, "R@50": 1.0, "mean": 0.5},
    ]
    assert found.summary == {"R@10": pytest.approx(1 / 3), "R@50": 1.0, "mean": pytest.approx(2 / 3)}
    assert joined([" Is red, ", ""]) == "Is red"


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


def test_circo_has_the_precision_over_all_right_answers_and_the_recall_of_the_first(tmp_path: Path) -> None:
    encoder = ByWidth({"one": (0.6, 0.5, 0.4, 0.3, 0.7, 0.1)})  # 105 101 102 103 104 106
    figures = run("circo", circo(tmp_path), encoder).parts[0].figures
    at_5, later = (1 / 1 + 2 / 4) / 3, (1 / 1 + 2 / 4 + 3 / 6) / 3
    assert figures == {
        "mAP@5": pytest.approx(at_5), "mAP@10": pytest.approx(later), "mAP@25": pytest.approx(later),
        "mAP@50": pytest.approx(later), "R@5": 1.0, "R@10": 1.0, "R@25": 1.0, "R@50": 1.0,
    }  # fmt: skip
    found = run("circo", tmp_path, encoder, split="test")
    assert found.submissions == {"": {"0": [105, 101, 102, 103, 104, 106]}}


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


def test_genecis_ranks_the_gallery_of_each_query_for_its_four_tasks(tmp_path: Path) -> None:
    likings = {
        "focus_attribute": (1, 0.4, 0.3, 0.2, 0.1),  # 2 first of its gallery; 5 last
        "change_attribute": (0, 0.3, 0.4, 0.1, 0.2),  # 2 second; 5 third
        "focus_object": (0, 0.1, 0.2, 0.3, 0.4),  # 2 last; 5 first
        "change_object": (0, 0.4, 0.1, 0.1, 0.3),  # 2 first; 5 second
    }
    found = run("genecis", genecis(tmp_path), ByWidth(likings))
    assert [(part.name, part.queries, part.gallery) for part in found.parts] == [(task, 2, 4) for task in likings]
    assert [[*part.figures.values()] for part in found.parts] == [
        [0.5, 0.5, 0.5], [0.0, 0.5, 1.0], [0.5, 0.5, 0.5], [0.5, 1.0, 1.0],
    ]  # fmt: skip
    assert found.summary == {"R@1": 0.375, "R@2": 0.625, "R@3": 0.75}


def test_a_genecis_crop_begins_earlier_by_0_7_of_the_box_and_is_padded_with_black() -> None:
    picture = Image.new("RGB", (200, 100), "white")
    cut = dilated(picture, (100.0, 50.0, 40.0, 20.0))  # from 72, 36 on, 68 x 34
    assert cut.size == (68, 68)
    assert cut.getpixel((34, 34)) == (255, 255, 255)
    assert cut.getpixel((34, 2)) == (0, 0, 0)


def test_pictures_and_captions_are_composed_as_the_way_says(tmp_path: Path) -> None:
    folder = cirr(tmp_path)
    # towards the target, 1, and away from 4, which the caption likes more: only the picture of 0 and weights tell
    encoder = ByWidth({"one": (0, 0.6, 0, 0, 0.8), "two": (0, 0, 0, 1.0), "old": (0, 0, 0, 0, 1.0)})
    ranks = {
        way: run("cirr", folder, encoder, way=way, **more).parts[0].figures["R@1"]
        for way, more in {"text": {}, "sum": {"weight": 0.5}, "slerp": {"weight": 0.9}, "swap": {"old": "old"}}.items()
    }
    assert ranks == {"text": 0.5, "sum": 0.5, "slerp": 0.5, "swap": 1.0}
    assert run("cirr", folder, encoder, way="image").parts[0].figures["R@1"] == 0.5  # equals: 1 comes first
    prompted = ByWidth({"a photo, one": (0, 1.0), "a photo, two": (0, 0, 0, 1.0)})
    assert run("cirr", folder, prompted, prompt="a photo, {}").parts[0].figures["R@1"] == 1.0


def test_vectors_are_kept_and_a_run_that_was_broken_off_goes_on(tmp_path: Path) -> None:
    folder, encoder = cirr(tmp_path), ByWidth(CIRR_LIKINGS)
    expected = run("cirr", folder, encoder).parts
    assert encoder.encoded == 6
    (kept,) = (folder / "cache").glob("*/pictures-document.f32")
    with kept.open("r+b") as file:  # as if it had been killed in the middle of the fourth vector
        file.truncate(3 * 4 * DIM + 5)
    again = ByWidth(CIRR_LIKINGS)
    assert run("cirr", folder, again).parts == expected
    assert again.encoded == 3
    photo(folder / "img_raw/dev/dev-5-0-img0.png", 4)  # another picture under the same name
    assert run("cirr", folder, again).parts[0].queries == 2
    assert again.encoded == 4
    other = ByWidth(CIRR_LIKINGS)
    other.fingerprint = "by-width 2"
    run("cirr", folder, other)
    assert other.encoded == 6


def test_pictures_and_captions_that_cannot_be_read_are_told_and_stop_no_other(tmp_path: Path) -> None:
    folder = cirr(tmp_path)
    (folder / "img_raw/dev/dev-5-0-img0.png").unlink()
    (folder / "img_raw/dev/dev-4-0-img0.png").write_text("no picture")
    queries = json.loads((folder / "captions/cap.rc2.val.json").read_text())
    queries[1]["caption"] = ""
    written(folder / "captions/cap.rc2.val.json", queries)
    found = run("cirr", folder, ByWidth(CIRR_LIKINGS))
    assert found.parts[0].figures["R@1"] == 1.0
    assert found.parts[0].gallery == 4
    assert sorted("img_raw" in fault and ("dev-4" in fault, "dev-5" in fault) for fault in found.unread) == [
        (False, True), (True, False),
    ]  # fmt: skip
    assert found.left_out == ("val, query 12: There are no words.",)


def test_what_is_missing_or_wrong_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    encoder = ByWidth(CIRR_LIKINGS)
    with pytest.raises(InvalidInput, match=r"split.rc2.val.json is not there. The layout is: captions"):
        run("cirr", tmp_path, encoder)
    with pytest.raises(InvalidInput, match=r"needs words to take out. Give them: --old"):
        run("cirr", tmp_path, encoder, way="swap")
    with pytest.raises(InvalidInput, match=r"no dataset.*fashioniq, cirr, circo, genecis"):
        dataset_named("coco", None)
    with pytest.raises(InvalidInput, match="'test' is no split of fashioniq"):
        dataset_named("fashioniq", "test")
    with pytest.raises(InvalidInput, match="no way of composing"):
        way_named("add")
    written(cirr(tmp_path) / "captions/cap.rc2.val.json", [{"pairid": 1, "reference": "a"}])
    with pytest.raises(InvalidInput, match="annotation without caption"):
        run("cirr", tmp_path, encoder)
    blind = ByWidth(CIRR_LIKINGS)
    blind.modalities = frozenset(("text",))
    with pytest.raises(UnsupportedModality, match="takes no image"):
        run("circo", circo(tmp_path / "circo"), blind)
