"""The data that ships for the demo: whole, credited, free to pass on, and small enough."""

from __future__ import annotations

import json
import re
from io import BytesIO
from pathlib import Path

from PIL import Image as Pictures

import pgembed.demo
from pgembed.demo.searches import shortened
from pgembed.demo.tables import KEPT_BACK, emoji_rows, photograph, photograph_rows

DATA = Path(pgembed.demo.__file__).parent / "data"
LICENCES = {"Public domain", "CC0-1.0", "CC-BY-2.0", "CC-BY-3.0", "CC-BY-4.0", "CC-BY-SA-3.0", "CC-BY-SA-4.0"}


def test_each_emoji_has_a_name_a_place_among_the_others_and_a_picture() -> None:
    rows = list(emoji_rows())
    assert len(rows) >= 3_000
    assert len({row["id"] for row in rows}) == len(rows)
    assert all(row["name"] and row["category"] and row["subcategory"] for row in rows)
    assert all(Pictures.open(BytesIO(row["picture"])).size == (128, 128) for row in rows[::50])
    assert {row["skin_tone"] for row in rows} == {None, 1, 2, 3, 4, 5}


def test_each_photograph_is_there_and_credited() -> None:
    rows = [json.loads(line) for line in (DATA / "photographs.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(rows) >= 100
    assert {row["file"] for row in rows} == {path.name for path in (DATA / "photographs").iterdir()}
    for row in rows:
        assert row["licence"] in LICENCES
        assert row["title"]
        assert row["credit"]
        assert row["source"]
        with Pictures.open(DATA / "photographs" / row["file"]) as picture:
            assert picture.size == (row["width"], row["height"])
            assert max(picture.size) <= 640


def test_licence_texts_travel_with_the_data() -> None:
    text = (DATA / "LICENSES.txt").read_text(encoding="utf-8")
    for needed in (
        "Permission is hereby granted",
        "UNICODE LICENSE V3",
        "Microsoft",
        "Google",
        *LICENCES - {"Public domain"},
    ):
        assert needed in text


def test_one_photograph_is_kept_back_for_the_changed_row() -> None:
    assert KEPT_BACK not in {row["title"] for row in photograph_rows()}
    assert photograph(KEPT_BACK)["picture"]


def test_data_stays_small() -> None:
    assert sum(path.stat().st_size for path in DATA.rglob("*") if path.is_file()) < 15_000_000


def test_long_vectors_are_cut_in_what_is_shown() -> None:
    vector = "[" + ",".join(["0.25", "-1e-05"] * 128) + "]"
    assert (
        shortened(f"SELECT '{vector}'::vector, '[1,2]'")
        == "SELECT '[0.250, -0.000, 0.250, … 256 numbers]'::vector, '[1,2]'"
    )
    assert not re.search(r"\d,-?\d", shortened(vector))
