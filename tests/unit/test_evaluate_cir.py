"""Published datasets of composed retrieval: small copies of their layouts, and figures that can be worked out on paper,
since the likings of a caption order the gallery."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pgembed.encoders import Encoder
from pgembed.errors import InvalidInput, UnsupportedModality
from pgembed.evaluate.cir import Asking, Result, dataset_named, evaluate_composed, way_named
from pgembed.evaluate.cir.circo import average_precision
from pgembed.evaluate.cir.dataset import Composed, Found
from pgembed.evaluate.cir.fashioniq import joined
from pgembed.evaluate.cir.vectors import dilated
from tests.composed_datasets import ByWidth, circo, cirr, fashioniq, genecis, photo, written


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


def test_fashioniq_joins_captions_keeps_the_reference_and_has_a_mean_of_its_categories(tmp_path: Path) -> None:
    encoder = ByWidth({"is red and has dots": [1 - n / 60 for n in range(60)]})
    found = run("fashioniq", fashioniq(tmp_path), encoder)
    assert [(part.name, part.queries, part.gallery, part.figures) for part in found.parts] == [
        ("dress", 2, 60, {"R@10": 0.5, "R@50": 1.0, "mean": 0.75}),  # targets in place 10 and 11
        ("shirt", 2, 60, {"R@10": 0.0, "R@50": 0.5, "mean": 0.25}),  # 50 and 51
        ("toptee", 2, 60, {"R@10": 0.5, "R@50": 0.5, "mean": 0.5}),  # the reference itself, and the last
    ]
    assert found.summary == {"R@10": pytest.approx(1 / 3), "R@50": pytest.approx(2 / 3), "mean": 0.5}
    assert joined([" Is red, ", ""]) == "Is red"


def test_circo_has_the_precision_over_all_right_answers_and_the_recall_of_the_first(tmp_path: Path) -> None:
    encoder = ByWidth({"one": (0.6, 0.5, 0.4, 0.3, 0.7, 0.1)})  # 105 101 102 103 104 106
    figures = run("circo", circo(tmp_path), encoder).parts[0].figures
    at_5, later = (1 / 1 + 2 / 4) / 3, (1 / 1 + 2 / 4 + 3 / 6) / 3
    assert figures == {
        "mAP@5": pytest.approx(at_5), "mAP@10": pytest.approx(later), "mAP@25": pytest.approx(later),
        "mAP@50": pytest.approx(later), "R@5": 1.0, "R@10": 1.0, "R@25": 1.0, "R@50": 1.0,
    }  # fmt: skip
    many = Composed("1", "a", "more right answers than places", tuple("abcdef"))
    assert average_precision(Found(many, list("abcde"), ()), 5) == 1.0
    found = run("circo", tmp_path, encoder, split="test")
    assert found.submissions == {"": {"0": [105, 101, 102, 103, 104, 106]}}


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


def test_vectors_are_kept_and_a_run_that_was_broken_off_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pgembed.evaluate.cir.vectors.BATCH", 2)
    folder, encoder = cirr(tmp_path), ByWidth(CIRR_LIKINGS)
    expected = run("cirr", folder, encoder).parts
    assert encoder.encoded == 6
    first, second, _ = (folder / "cache").glob("*/pictures-document/*.npz")
    first.rename(first.with_suffix(".part"))  # as a run that is killed while it writes leaves it
    second.write_bytes(second.read_bytes()[:100])
    again = ByWidth(CIRR_LIKINGS)
    assert run("cirr", folder, again).parts == expected
    assert again.encoded == 4
    photo(folder / "img_raw/dev/dev-5-0-img0.png", 4)  # another picture under the same name
    assert run("cirr", folder, again).parts[0].queries == 2
    assert again.encoded == 5
    os.utime(folder / "img_raw/dev/dev-0-0-img0.png", (1, 1))  # as large as before, and written since
    run("cirr", folder, again)
    assert again.encoded == 6
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
