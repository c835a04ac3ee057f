"""``pgembed eval`` as a user types it: judgments of real pictures, runs, a report, and a published dataset's layout."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import psycopg
import pytest

from pgembed import Text, connect
from pgembed.cli.main import main
from pgembed.encoders.builtin import LiteEncoder
from pgembed.media import MediaPolicy, open_picture
from tests.composed_datasets import cirr
from tests.open_clip_models import by_hand, make_model

DATA = Path(__file__).parents[1] / "data"
PHOTOS = sorted((DATA / "photos").glob("*.jpg"))
DRAWINGS = sorted((DATA / "emoji" / "noto").glob("*.png"))
PICTURES = [*PHOTOS, *DRAWINGS]
GRADES = {
    "words": {"cat": 2, "cow": 1, "sheep": 1},
    "picture": {"dog": 1},
    "both": {"tomato": 1, "macaw": 1},
    "composed": {"goldfish": 2, "car": 0},
}
Cli = Callable[..., str]


@pytest.fixture
def cli(database_dsn: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Cli:
    """Runs ``pgembed`` in this process; gives what it printed, or said where it fails."""
    log = logging.getLogger("pgembed")
    monkeypatch.setattr(log, "handlers", [*log.handlers])
    monkeypatch.setattr(log, "level", log.level)

    def run(*arguments: object, fails: int = 0) -> str:
        capfd.readouterr()
        with pytest.raises(SystemExit) as done:
            main(["--dsn", database_dsn, *map(str, arguments)])
        out, told = capfd.readouterr()
        assert (done.value.code or 0) == fails, f"{arguments}\n{out}\n{told}"
        return told if fails and "--json" not in arguments else out

    return run


@pytest.fixture
def shop(cli: Cli, database: psycopg.Connection[Any]) -> Cli:
    """Pictures and their names, with an embedding of each, filled; the key has two columns."""
    database.execute("CREATE TABLE product (kind text, n int, name text, photo bytea, PRIMARY KEY (kind, n))")
    for n, picture in enumerate(PICTURES):
        kind = picture.parent.name
        database.execute("INSERT INTO product VALUES (%s, %s, %s, %s)", [kind, n, picture.stem, picture.read_bytes()])
    cli("encoder", "add", "lite", "builtin:lite")
    cli("attach", "product", "looks", "--encoder", "lite", "--image", "photo")
    cli("attach", "product", "names", "--encoder", "lite", "--text", "name", "--storage", "side")
    cli("worker", "--until-idle")
    return cli


@pytest.fixture
def judgments(tmp_path: Path) -> Path:
    """Queries of every form, and grades by the names of pictures."""
    folder = tmp_path / "judgments"
    (folder / "qrels").mkdir(parents=True)
    (folder / "dog.png").write_bytes((DATA / "emoji/twemoji/dog.png").read_bytes())
    (folder / "tomato.png").write_bytes((DATA / "emoji/fluent/tomato.png").read_bytes())
    queries: list[dict[str, Any]] = [
        {"_id": "words", "text": "a cat"},
        {"_id": "picture", "image": "dog.png"},
        {"_id": "both", "text": "a red bird", "image": "tomato.png"},
        {"_id": "composed", "query": {"reject": [{"text": "a fish"}, {"image": "dog.png", "kind": "path"}]}},
    ]
    (folder / "queries.jsonl").write_text("".join(json.dumps(query) + "\n" for query in queries))
    lines = [f"{query}\t{row}\t{grade}\n" for query, rows in GRADES.items() for row, grade in rows.items()]
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(lines))
    return folder


def by_numpy(folder: Path) -> dict[str, list[str]]:
    """The names of all pictures for each query, best first, without the database."""
    encoder = LiteEncoder.load("lite", {})

    def words(text: str) -> np.ndarray:
        return encoder.encode_text([text])[0].astype(float)

    def look(path: Path) -> np.ndarray:
        picture = open_picture(str(path), "path", MediaPolicy(any_path=True))
        return encoder.encode_image([picture])[0].astype(float)

    dog, fish = look(folder / "dog.png"), words("a fish")
    vectors = {
        "words": words("a cat"),
        "picture": dog,
        "both": words("a red bird") + look(folder / "tomato.png"),
        "composed": fish - (fish @ dog) * dog,
    }
    rows = np.stack([look(picture) for picture in PICTURES])
    return {
        query: [PICTURES[place].stem for place in np.argsort(-(rows @ vector))] for query, vector in vectors.items()
    }


def ndcg(ranking: list[str], grades: dict[str, int]) -> float:
    """nDCG@10 with linear gains."""
    discounts = 1 / np.log2(np.arange(2, 12))
    gains = np.array([max(grades.get(row, 0), 0) for row in ranking[:10]])
    best = np.array(sorted(grades.values(), reverse=True)[:10])
    return float((gains * discounts).sum() / (best * discounts[: len(best)]).sum())


def test_figures_are_those_of_an_independent_computation_for_every_form_of_query(shop: Cli, judgments: Path) -> None:
    run = judgments / "looks.run"
    told = json.loads(
        shop(
            "eval", "run", "product", judgments, "--embedding", "looks", "--id-column", "name", "--run", run, "--json"
        )
    )  # fmt: skip
    (found,) = told["runs"]
    expected = by_numpy(judgments)
    assert found["queries"] == 4
    assert found["measures"]["nDCG@10"] == pytest.approx(
        np.mean([ndcg(expected[query], grades) for query, grades in GRADES.items()])
    )
    first = [next(n for n, row in enumerate(expected[q], 1) if GRADES[q].get(row, 0) > 0) for q in GRADES]
    assert found["measures"]["RR@10"] == pytest.approx(np.mean([1 / n if n <= 10 else 0 for n in first]))
    lines = [line.split() for line in run.read_text().splitlines()]
    assert [line[2] for line in lines if line[0] == "both"] == expected["both"]
    facts = json.loads((judgments / "looks.run.json").read_text())
    assert facts["fingerprint"] == found["fingerprint"] == LiteEncoder.load("lite", {}).fingerprint
    assert (facts["seed"], facts["spec"], facts["embedding"]) == (0, "builtin:lite", "looks")


def test_what_does_not_fit_is_told_and_stops_no_other(shop: Cli, judgments: Path) -> None:
    with (judgments / "queries.jsonl").open("a") as file:
        for identity, asked in (("empty", "text"), ("gone", "image"), ("loose", "text"), ("none", "text")):
            what = {"empty": " ", "gone": "none.png"}.get(identity, "a car")
            file.write(json.dumps({"_id": identity, asked: what}) + "\n")
    with (judgments / "qrels" / "test.tsv").open("a") as file:
        file.write(
            "".join(f"words\tunknown{n}\t1\n" for n in range(4)) + "gone\tcat\t1\nabsent\tcat\t1\nnone\tcat\t0\n"
        )
    asked = ["eval", "run", "product", judgments, "--embedding", "looks", "--id-column", "name"]
    told = shop(*asked, fails=1)
    assert "error: line 5, query empty: Text(' ') is empty." in told
    assert re.search(r"error: line 6, query gone: The picture '.*none.*' could not be opened", told)
    assert "judged ids that are no row's name: 4 (unknown0, unknown1, unknown2)" in told
    assert "queries without judgments, which do not count: 1 (loose)" in told
    assert "queries without a relevant row in the judgments, which do not count: 1 (none)" in told
    assert "judged queries that are not in the file of queries: 1 (absent)" in told
    (found,) = json.loads(shop(*asked, "--json", fails=1))["runs"]
    assert found["queries"] == 4
    assert [(fault["line"], fault["id"]) for fault in found["faults"]] == [(5, "empty"), (6, "gone")]
    assert found["unknown ids"] == {"count": 4, "first": ["unknown0", "unknown1", "unknown2"]}


def test_words_and_views_are_measured_too(shop: Cli, judgments: Path, database_dsn: str) -> None:
    run = judgments / "some.run"
    asked = ["eval", "run", "product", judgments, "--embedding", "names", "--id-column", "name", "--run", run, "--json"]

    def measured(*options: str) -> tuple[dict[str, Any], list[tuple[str, float]]]:
        """What is told, and the rows and scores of the query in words."""
        (told,) = json.loads(shop(*asked, *options))["runs"]
        lines = [line.split() for line in run.read_text().splitlines()]
        return told, [(line[2], float(line[4])) for line in lines if line[0] == "words"]

    found, fused = measured("--words", "--method", "score")
    assert found["without words"] == {"count": 2, "first": ["picture", "composed"]}
    facts = json.loads((judgments / "some.run.json").read_text())
    assert (facts["words"], facts["method"], facts["neutral"]) == (True, "score", None)
    shop("view", "learn", "size", "--encoder", "lite", "--these", "a big thing", "--those", "a small thing")
    plain, neutral = measured()[1], measured("--neutral", "size")[1]
    with connect(database_dsn) as db:
        start = db.query("product").near(Text("a cat"), embedding="names").select("name").limit(100)
        for ranking, same in (
            (plain, start), (fused, start.hybrid("a cat").fuse("score")), (neutral, start.neutral("size")),
        ):  # fmt: skip
            assert ranking == [(row.name, pytest.approx(row.score, abs=1e-5)) for row in same]
    assert len({score for (_, score), *_ in (plain, fused, neutral)}) == 3
    assert "--neutral takes a view out" in shop(*asked[:-1], "--words", "--neutral", "size", fails=2)
    page = judgments / "words.html"
    shop(*asked[:-1], "--words", "--report", page)
    assert re.search(r"<td>words</td><td>True</td>", page.read_text())


def test_ids_are_values_of_the_key_and_rows_may_be_filtered(shop: Cli, judgments: Path, tmp_path: Path) -> None:
    names = [picture.stem for picture in PICTURES]
    cat, car = names.index("cat"), names.index("car")
    (qrels := tmp_path / "keys.tsv").write_text(f'words\t["photos", "{cat}"]\t1\nwords\t["noto", "{car}"]\t1\n')
    asked = [
        "eval", "run", "product", judgments, "--embedding", "looks", "--qrels", qrels, "--measure", "R@1",
        "--measure", "R@20", "--json",
    ]  # fmt: skip
    assert json.loads(shop(*asked))["runs"][0]["measures"] == {"R@1": 0.5, "R@20": 1.0}
    filtered = json.loads(shop(*asked, "--where", "kind <> 'noto'"))
    assert filtered["runs"][0]["measures"] == {"R@1": 0.5, "R@20": 0.5}


def test_two_embeddings_are_compared_and_their_runs_give_the_same_test(shop: Cli, judgments: Path) -> None:
    files = [judgments / "looks.run", judgments / "names.run"]
    told = json.loads(
        shop(
            "eval", "run", "product", judgments, "--embedding", "looks", "--against", "names", "--id-column", "name",
            "--run", files[0], "--run", files[1], "--json",
        )
    )  # fmt: skip
    assert [run["embedding"] for run in told["runs"]] == ["looks", "names"]
    again = json.loads(shop("eval", "compare", *files, "--qrels", judgments / "qrels" / "test.tsv", "--json"))
    assert again["queries"] == 4
    assert again["measures"] == told["compared"]
    one = told["compared"][0]
    assert one["difference"] == pytest.approx(
        told["runs"][1]["measures"]["nDCG@10"] - told["runs"][0]["measures"]["nDCG@10"]
    )
    assert one["won"] + one["lost"] + one["equal"] == 4
    assert (one["p"] * 16).is_integer()  # the share of all ways to exchange four queries or fewer


def test_the_report_stands_alone_and_shows_figures_plots_and_pictures(shop: Cli, judgments: Path) -> None:
    shop("index", "product", "--embedding", "looks")
    with (judgments / "queries.jsonl").open("a") as file:
        file.write(json.dumps({"_id": "<b>", "text": "<script>alert(1)</script> a cat"}) + "\n")
    with (judgments / "qrels" / "test.tsv").open("a") as file:
        file.write("<b>\tcat\t1\n")
    page = judgments / "report.html"
    asked = ["eval", "run", "product", judgments, "--id-column", "name", "--report", page, "--embedding"]
    shop(*asked, "looks")
    text = page.read_text()
    assert not re.search(r'(src|href)="(?!data:)', text)
    assert "url(" not in text
    assert "<script" not in text
    assert "<b>" not in text
    assert "http" not in text
    assert "prefers-color-scheme: dark" in text
    assert text.count("<svg") == 2
    points = re.findall(r"<title>(\w+): recall ([\d.]+), ([\d.]+) ms", text)
    assert [name for name, _, _ in points] == ["exact", "10", "20", "40", "80", "160", "320"]
    assert points[0][1] == "1.000"
    assert float(points[-1][1]) == 1.0  # sixteen rows: 320 candidates are all of them
    assert len(re.findall(r"<title>query \w+: [\d.]+</title>", text)) == 4
    assert text.count('src="data:image/webp;base64,') == 5 * 8 + 2  # what is found, and in two queries
    assert 'class="right"' in text
    assert "relevant, 1: place " in text  # a sheep is none of the first eight that are like a cat
    shop(*asked, "names", "--against", "looks", "--where", "name NOT LIKE 'sh%'")
    both = page.read_text()
    assert "Gain of each query" in both
    assert "has no HNSW index" in both
    assert "<th>measure</th>" in both


def test_what_cannot_be_evaluated_is_an_error_that_says_what_to_do(shop: Cli, judgments: Path, tmp_path: Path) -> None:
    asked = ["eval", "run", "product", judgments, "--embedding", "looks"]
    told = shop(*asked, fails=1)
    assert "None of the 8 judged ids is a row's kind and n in product" in told
    assert "hint: Name the column that holds them: --id-column NAME" in told
    assert "no_column" in shop(*asked, "--id-column", "no_column", fails=1)
    assert "several embeddings: looks, names" in shop(
        "eval", "run", "product", judgments, "--id-column", "name", fails=1
    )
    assert "no measure" in shop(*asked, "--id-column", "name", "--measure", "Recall", fails=1)
    assert "too short" in shop(*asked, "--id-column", "name", "--depth", "5", fails=1)
    assert 'column "nothing" does not exist' in shop(*asked, "--id-column", "name", "--where", "nothing > 1", fails=1)
    assert "neither a folder nor --queries" in shop("eval", "run", "product", fails=2)
    assert "Name it .html" in shop(*asked, "--report", "report.pdf", fails=2)
    (tmp_path / "a.run").write_text("other Q0 cat 1 1.0 a\n")
    runs = [tmp_path / "a.run", tmp_path / "a.run"]
    assert "has a relevant row" in shop("eval", "compare", *runs, "--qrels", judgments / "qrels" / "test.tsv", fails=1)


def test_a_published_dataset_is_measured_with_a_model_of_open_clip(cli: Cli, tmp_path: Path) -> None:
    """What it finds is what the model finds where open_clip's own functions run it."""
    folder, model, mine = (
        cirr(tmp_path / "cirr"),
        make_model(tmp_path / "model", "clip-shallow"),
        tmp_path / "mine.json",
    )
    cirr(folder, split="test1")
    asked = [
        "eval", "cir", "cirr", folder, "--encoder", f"open_clip:local-dir:{model}", "--model-dir", tmp_path,
        "--cache", tmp_path / "cache", "--way", "sum", "--weight", "0.5", "--json",
    ]  # fmt: skip
    (figures,) = [part["figures"] for part in json.loads(cli(*asked))["parts"]]
    cli(*asked, "--split", "test", "--submission", mine)
    captions = ("one", "two")
    pictures = [PIL.Image.open(path) for path in sorted((folder / "img_raw" / "dev").glob("*.png"))]
    words, looks = by_hand(model, list(captions), pictures)
    ranked = [[int(n) for n in np.argsort(-(looks @ (looks[0] + 0.5 * word))) if n] for word in words]
    submitted = json.loads(mine.read_text())
    assert [submitted[pair] for pair in ("11", "12")] == [[f"test1-{n}-0-img0" for n in row] for row in ranked]
    places = [ranked[0].index(1), ranked[1].index(3)]
    assert figures["R@1"] == np.mean([place == 0 for place in places])
    among = [[n for n in row if n in (1, 2, 3)] for row in ranked]
    for k in (1, 2, 3):
        assert figures[f"Rsubset@{k}"] == np.mean([1 in among[0][:k], 3 in among[1][:k]])


def test_a_published_dataset_is_measured_without_a_database_and_its_submission_written(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGEMBED_DSN", "host=/nowhere")
    folder = cirr(tmp_path / "cirr")
    cirr(folder, split="test1")
    asked = ["eval", "cir", "cirr", folder, "--encoder", "builtin:lite", "--cache", tmp_path / "cache"]
    told = json.loads(cli(*asked, "--way", "sum", "--weight", "0.5", "--json"))
    (part,) = told["parts"]
    assert (part["queries"], part["gallery"], told["way"], told["weight"]) == (2, 6, "sum", 0.5)
    assert part["figures"]["R@10"] == 1.0
    printed = cli(*asked, "--split", "test", "--submission", tmp_path / "mine.json")
    assert "its server computes the figures" in printed
    assert json.loads((tmp_path / "mine.json").read_text())["metric"] == "recall"
    assert len(json.loads((tmp_path / "mine_subset.json").read_text())["11"]) == 3
    (folder / "img_raw" / "dev" / "dev-5-0-img0.png").unlink()
    assert re.search(r"1 pictures cannot be read: .*dev-5-0-img0.png", cli(*asked, fails=1))
    assert "no server" in cli(
        "eval", "cir", "fashioniq", folder, "--encoder", "builtin:lite", "--submission", "x", fails=2
    )
