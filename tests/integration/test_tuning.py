"""``pgembed tune``: what it ranks is what searches find, what it chooses on one half it tells of the other."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest

import pgembed
from pgembed import Vector
from pgembed.cli.main import main
from pgembed.errors import InvalidInput
from pgembed.evaluate import read_qrels, read_queries
from pgembed.evaluate.parts import Fused, Parts, fused_inputs, read_parts
from pgembed.evaluate.tuning import Rankings, Tuning, tune
from pgembed.media import MediaPolicy, open_picture
from tests.conftest import new_database
from tests.fakes import Connection

DATA = Path(__file__).parents[1] / "data"
PICTURES = [*sorted((DATA / "photos").glob("*.jpg")), *sorted((DATA / "emoji" / "noto").glob("*.png"))]
NO_NAME, NO_PHOTO, BROKEN = 3, 4, 5
WORDS = (
    "a cat",
    "a cow",
    "a fish",
    "birds",
    "a bear",
    "a lamp",
    "a red panda",
    "a tool",
    "wool",
    "tea",
    "a car",
    "rain",
)
INPUTS: dict[str, Any] = {"text": {"template": "{name}", "weight": 1}, "image": {"column": "photo", "weight": 3}}


@dataclass(frozen=True)
class Shop:
    conn: Connection
    dsn: str
    db: pgembed.Pgembed

    def fused(self, embedding: str | None = None) -> Fused:
        if embedding is not None:
            return fused_inputs(self.conn, "product", embedding, None, {}, None)
        return fused_inputs(self.conn, "product", None, "lite", {"text": "{name}", "image": "photo"}, None)

    def parts(self, fused: Fused, judged: Sequence[str], others: int = 100) -> Parts:
        encoder = self.db.load_encoder("lite")
        row = self.db.encoder("lite")
        return read_parts(self.conn, fused, row, encoder, judged, others=others, seed=0, media=MediaPolicy())


@pytest.fixture(scope="module")
def shop(server_dsn: str, template: str) -> Iterator[Shop]:
    """Pictures and their names, under a key of two columns: side by side, summed, and apart."""
    with contextmanager(new_database)(server_dsn, template) as dsn, psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("CREATE TABLE product (kind text, n int, name text, photo bytea, PRIMARY KEY (kind, n))")
        for n, picture in enumerate(PICTURES):
            name = None if n == NO_NAME else picture.stem.replace("-", " ")
            photo = None if n == NO_PHOTO else b"no picture" if n == BROKEN else picture.read_bytes()
            conn.execute("INSERT INTO product VALUES (%s, %s, %s, %s)", [picture.parent.name, n, name, photo])
        with pgembed.connect(conn) as db:
            db.add_encoder("lite", "builtin:lite")
            db.attach("product", "summed", encoder="lite", **INPUTS)
            db.attach("product", "beside", encoder="lite", storage="side", fusion="concat", **INPUTS)
            db.attach("product", "names", encoder="lite", text="name", storage="side")
            db.attach("product", "looks", encoder="lite", image="photo")
            db.work(until_idle=True)
            yield Shop(conn, dsn, db)


def key(n: int) -> str:
    return json.dumps([PICTURES[n].parent.name, str(n)])


IDS = [key(n) for n in range(len(PICTURES))]


@pytest.fixture
def judgments(tmp_path: Path) -> Path:
    """A query of words for each of some pictures, and one by a picture."""
    (tmp_path / "dog.png").write_bytes((DATA / "emoji/twemoji/dog.png").read_bytes())
    dog = next(n for n, picture in enumerate(PICTURES) if picture.stem == "dog")
    right = {
        query: [n for n, picture in enumerate(PICTURES) if query.split()[-1].rstrip("s") in picture.stem] or [dog]
        for query in WORDS
    }
    lines: list[dict[str, str]] = [{"_id": f"q{n}", "text": query} for n, query in enumerate(WORDS)]
    (tmp_path / "queries.jsonl").write_text(
        "".join(json.dumps(line) + "\n" for line in [*lines, {"_id": "dog", "image": "dog.png"}])
    )
    judged = [(f"q{n}", row) for n, query in enumerate(WORDS) for row in right[query]]
    (tmp_path / "qrels.tsv").write_text("".join(f"{q}\t{IDS[n]}\t1\n" for q, n in [*judged, ("dog", dog)]))
    return tmp_path


def tuned(shop: Shop, folder: Path, embedding: str | None = None, **options: Any) -> Tuning:  # noqa: ANN401
    questions, qrels = read_queries(folder / "queries.jsonl"), read_qrels(folder / "qrels.tsv")
    return tune(shop.conn, shop.db, shop.fused(embedding), questions, qrels, **options)


# What is ranked


def test_vectors_are_read_where_an_embedding_has_them_apart_and_encoded_elsewhere(shop: Shop) -> None:
    read = shop.parts(shop.fused(), IDS)
    assert (read.encoded, read.failed) == (1, 1)  # of the row whose picture is broken, which has no vector
    assert read.read == 2 * len(IDS) - 4
    fused = shop.fused()
    encoded = shop.parts(replace(fused, stored={}), IDS)
    assert (encoded.read, encoded.encoded) == (0, read.read + 1)
    assert encoded.ids == read.ids
    for modality in ("text", "image"):
        assert np.allclose(encoded.units[modality], read.units[modality], atol=2e-6)
    beside = {modality: stored for modality, stored in shop.fused("beside").stored.items() if stored.target == "beside"}
    assert {modality: stored.part for modality, stored in beside.items()} == {"text": 0, "image": 1}
    apart = shop.parts(replace(fused, stored=beside), IDS)
    for modality in ("text", "image"):
        places = [read.ids.index(identity) for identity in apart.ids]
        there = apart.units[modality].any(axis=1)
        assert np.allclose(apart.units[modality][there], read.units[modality][places][there], atol=2e-6)


def test_an_input_that_cannot_be_read_is_told_and_stops_no_other(shop: Shop) -> None:
    found = shop.parts(replace(shop.fused(), stored={}), IDS)
    assert found.failed == 1
    assert found.unread[0].startswith(f"image of row {IDS[BROKEN]}: ")
    assert not found.units["image"][found.ids.index(IDS[BROKEN])].any()


def test_others_are_drawn_beside_the_judged_rows(shop: Shop) -> None:
    found = shop.parts(shop.fused(), IDS[:2], others=3)
    assert len(found.ids) == 5
    assert set(IDS[:2]) < set(found.ids)
    assert found.ids == shop.parts(shop.fused(), IDS[:2], others=3).ids


@pytest.mark.parametrize("method", ["sum", "concat", "apart, by score", "apart, by rank"])
def test_rankings_are_those_of_searches(shop: Shop, method: Any) -> None:  # noqa: ANN401
    queries = dict(zip(WORDS, shop.db.load_encoder("lite").encode_text(list(WORDS)), strict=True))
    found = Rankings(shop.parts(shop.fused(), IDS), queries).of(method, {"text": 0.25, "image": 0.75}, WORDS)
    for words, vector in queries.items():
        query = Vector(vector)
        if method in ("sum", "concat"):
            embedding = {"sum": "summed", "concat": "beside"}[method]
            rows = shop.db.search("product", query, embedding=embedding, limit=100, exact=True)
        else:
            rows = shop.db.hybrid(
                "product", None, queries=[query, query], embeddings=["names", "looks"], weights=[0.25, 0.75],
                method="score" if method == "apart, by score" else "rank", limit=100, exact=True,
            )  # fmt: skip
        expected = {json.dumps([row["kind"], str(row["n"])]): row.score for row in rows}
        ours = dict(found[words])
        if method in ("sum", "concat"):  # a picture that cannot be read fails its row there
            ours.pop(IDS[BROKEN])
        assert ours.keys() == expected.keys()
        assert all(ours[row] == pytest.approx(score, abs=2e-6) for row, score in expected.items())


# What is chosen


def test_halves_share_no_query_and_depend_on_the_seed_alone(shop: Shop, judgments: Path) -> None:
    found = tuned(shop, judgments)
    assert set(found.tuned_on) | set(found.held_out) == {*(f"q{n}" for n in range(len(WORDS))), "dog"}
    assert not set(found.tuned_on) & set(found.held_out)
    lines = (judgments / "queries.jsonl").read_text().splitlines()
    (judgments / "queries.jsonl").write_text("\n".join(reversed(lines)))
    again = tuned(shop, judgments)
    assert again.held_out == found.held_out
    assert [(way.name, way.weights, way.held_out) for way in again.ways] == [
        (way.name, way.weights, way.held_out) for way in found.ways
    ]
    assert tuned(shop, judgments, seed=1).held_out != found.held_out


def test_weights_are_the_best_of_the_first_half(shop: Shop, judgments: Path) -> None:
    found = tuned(shop, judgments, steps=4, metric="RR@10")
    by_name = {way.name: way for way in found.ways}
    best = by_name["concat, best weights"]
    questions, qrels = read_queries(judgments / "queries.jsonl"), read_qrels(judgments / "qrels.tsv")
    queries = {one.id: one.query.resolve(lambda item: shop.db.encode("lite", [item])[item]) for one in questions.asked}
    rankings = Rankings(shop.parts(shop.fused(), IDS), queries)
    reached: dict[float, float] = {}
    for weight in (0.25, 0.5, 0.75):
        rows = rankings.of("concat", {"text": weight, "image": 1 - weight}, found.tuned_on)
        first = [
            next((1 / place for place, (row, _) in enumerate(ranking[:10], start=1) if row in qrels[query]), 0.0)
            for query, ranking in rows.items()
        ]
        reached[weight] = float(np.mean(first))
    assert best.tuned == pytest.approx(max(reached.values()))
    assert reached[best.weights["text"]] == pytest.approx(best.tuned)
    assert set(best.values) == set(found.held_out)
    assert found.single.held_out == max(by_name["text alone"].held_out, by_name["image alone"].held_out)


def test_fusion_that_helps_is_told_so_and_attached(database: Connection, tmp_path: Path) -> None:
    """Five pictures, each in five rows with a colour: a query has both, and only one row has."""
    database.execute("CREATE TABLE product (id int PRIMARY KEY, colour text, photo bytea)")
    colours = ("red", "green", "blue", "yellow", "black")
    photos = sorted((DATA / "photos").glob("*.jpg"))[:5]
    rows = [(photo, colour) for photo in photos for colour in colours]
    for n, (photo, colour) in enumerate(rows):
        database.execute("INSERT INTO product VALUES (%s, %s, %s)", [n, colour, photo.read_bytes()])
    with pgembed.connect(database) as db:
        db.add_encoder("lite", "builtin:lite")
        lines = [{"_id": str(n), "text": colour, "image": str(photo)} for n, (photo, colour) in enumerate(rows)]
        (tmp_path / "queries.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        (tmp_path / "qrels.tsv").write_text("".join(f"{n}\t{n}\t1\n" for n in range(25)))
        fused = fused_inputs(database, "product", None, "lite", {"text": "colour", "image": "photo"}, None)
        questions, qrels = read_queries(tmp_path / "queries.jsonl"), read_qrels(tmp_path / "qrels.tsv")
        found = tune(database, db, fused, questions, qrels)
        assert found.verdict == "helps"
        assert found.sentence.startswith("Fusion helps: on the 13 held-out queries ")
        assert found.chosen.p < 0.05
        database.execute(found.attach.encode())
        db.work(until_idle=True)
        hits = [db.search("product", one.query, limit=1)[0].id == int(one.id) for one in questions.asked]
        assert np.mean(hits) > 0.5
        (row,) = database.execute("SELECT target, inputs FROM pgembed.embedding").fetchall()
        assert row[0] == "fused"
        assert {m: facts["weight"] for m, facts in row[1].items()} == dict(found.chosen.weights)


def test_fusion_that_hurts_is_told_so_and_the_better_input_attached(database: Connection, tmp_path: Path) -> None:
    """Each picture has another's name, and beside it stands one that is nearly the same and has its name."""
    database.execute("CREATE TABLE product (id int PRIMARY KEY, fused text, photo bytea)")
    names = [picture.stem.replace("-", " ") for picture in PICTURES]
    for n, picture in enumerate(PICTURES):
        shown = open_picture(str(picture), "path", MediaPolicy(any_path=True))
        shown.crop((4, 4, *shown.size)).save(nearly := io.BytesIO(), "PNG")
        other = names[(n + 5) % len(names)]
        database.execute("INSERT INTO product VALUES (%s, %s, %s)", [2 * n, other, picture.read_bytes()])
        database.execute("INSERT INTO product VALUES (%s, %s, %s)", [2 * n + 1, names[n], nearly.getvalue()])
    with pgembed.connect(database) as db:
        db.add_encoder("lite", "builtin:lite")
        lines = [{"_id": str(n), "image": str(picture)} for n, picture in enumerate(PICTURES)]
        (tmp_path / "queries.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        (tmp_path / "qrels.tsv").write_text("".join(f"{n}\t{2 * n}\t1\n" for n in range(len(PICTURES))))
        fused = fused_inputs(database, "product", None, "lite", {"text": "fused", "image": "photo"}, None)
        found = tune(
            database, db, fused, read_queries(tmp_path / "queries.jsonl"), read_qrels(tmp_path / "qrels.tsv"),
            metric="RR@10", steps=2,
        )  # fmt: skip
    assert found.single.name == "image alone"
    assert found.single.held_out == 1
    assert found.chosen.difference <= 0
    assert found.verdict == "hurts"
    assert found.chosen.p < 0.05
    assert found.sentence.startswith("Fusion does not help, it hurts: ")
    assert found.attach == (
        "SELECT pgembed.attach('product', 'fused_2', encoder => 'lite',"
        ' inputs => \'{"image": {"column": "photo"}}\');'
    )


# What is refused, and the command


def test_too_few_queries_are_refused(shop: Shop, judgments: Path) -> None:
    lines = (judgments / "queries.jsonl").read_text().splitlines()
    (judgments / "queries.jsonl").write_text("\n".join(lines[:9]))
    with pytest.raises(InvalidInput, match="9 can be asked"):
        tuned(shop, judgments)


def test_what_cannot_be_tuned_is_refused(shop: Shop, judgments: Path) -> None:
    with pytest.raises(InvalidInput, match="text is the only input of product"):
        shop.fused("names")
    with pytest.raises(InvalidInput, match="has no column 'nothing'"):
        fused_inputs(shop.conn, "product", "beside", None, {}, "nothing")
    with pytest.raises(InvalidInput, match="looks at 200 rows"):
        tuned(shop, judgments, metric="R@200")
    with pytest.raises(InvalidInput, match="leave none for some"):
        tuned(shop, judgments, steps=1)
    (judgments / "qrels.tsv").write_text("".join(f"q{n}\tnobody\t1\n" for n in range(12)))
    with pytest.raises(InvalidInput, match="None of the 1 judged ids"):
        tuned(shop, judgments)


def test_a_query_that_cannot_be_asked_is_a_fault(shop: Shop, judgments: Path) -> None:
    with (judgments / "queries.jsonl").open("a") as file:
        file.write('{"_id": "row", "query": {"row": ["photos", 1]}}\n{"_id": "gone", "image": "gone.png"}\n')
    with (judgments / "qrels.tsv").open("a") as file:
        file.write(f"row\t{IDS[0]}\t1\ngone\t{IDS[0]}\t1\n")
    found = tuned(shop, judgments)
    assert [fault.id for fault in found.faults] == ["row", "gone"]
    assert "It names a row" in found.faults[0].reason


def run(shop: Shop, capfd: pytest.CaptureFixture[str], *arguments: object, fails: int = 0) -> str:
    capfd.readouterr()
    with pytest.raises(SystemExit) as done:
        main(["--dsn", shop.dsn, "tune", *map(str, arguments)])
    out, told = capfd.readouterr()
    assert (done.value.code or 0) == fails, f"{out}\n{told}"
    return told if fails else out


def test_the_command_prints_a_table_a_sentence_and_the_sql(
    shop: Shop, judgments: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    said = run(shop, capfd, "product", "--judgments", judgments, "--embedding", "beside")
    for expected in ("text alone", "mean", "concat, best weights", "apart, by rank", "held-out queries", "weights={"):
        assert expected in said
    assert "SELECT pgembed.attach('product', 'fused', encoder => 'lite'" in said
    facts = json.loads(
        run(shop, capfd, "product", "--judgments", judgments, "--encoder", "lite", "--text", "{name}", "--image",
            "photo", "--json")
    )  # fmt: skip
    assert facts["action"] == "tune"
    assert [way["name"] for way in facts["ways"]][:3] == ["text alone", "image alone", "mean"]
    assert facts["verdict"] in ("helps", "hurts", "cannot tell")
    assert facts["at_query_time"] is None


def test_the_command_says_what_is_wrong(shop: Shop, judgments: Path, capfd: pytest.CaptureFixture[str]) -> None:
    here = ("product", "--judgments", judgments)
    assert "inputs and no --encoder" in run(shop, capfd, *here, "--text", "name", fails=2)
    assert "has no inputs" in run(shop, capfd, *here, "--encoder", "lite", fails=2)
    assert "exclude each other" in run(
        shop, capfd, *here, "--encoder", "lite", "--text", "name", "--embedding", "names", fails=2
    )
    assert "has several embeddings" in run(shop, capfd, *here, fails=1)
    assert "cannot be read" in run(shop, capfd, "product", "--judgments", judgments / "none", fails=1)
    with (judgments / "queries.jsonl").open("a") as file:
        file.write('{"_id": "q0", "text": "again"}\n')
    assert "its id stands in line" in run(shop, capfd, *here, "--embedding", "beside", fails=1)
