"""Evaluation without a database: files of judgments and runs, measures, and the randomization test."""

from __future__ import annotations

import itertools
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest

from pgembed import Image, Text
from pgembed.errors import InvalidInput, MissingExtra
from pgembed.evaluate import compare, find_qrels, randomization_test, read_qrels, read_queries, read_run, write_run
from pgembed.evaluate.metrics import MEASURES, cutoff, means, values
from pgembed.evaluate.runs import Run


def queries(folder: Path, *lines: object) -> Path:
    path = folder / "queries.jsonl"
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def test_a_query_is_words_pictures_both_or_a_composed_query_and_paths_lie_beside_the_file(tmp_path: Path) -> None:
    path = queries(
        tmp_path,
        {"_id": "words", "text": "a cat", "metadata": {}},
        {"_id": 2, "image": "cat.jpg"},
        {"_id": "both", "text": "in red", "image": "https://example.org/cat.jpg"},
        {"_id": "composed", "query": {"sum": [[1, {"image": "a/cat.jpg", "kind": "path"}], [-0.5, {"text": "fur"}]]}},
    )
    found = read_queries(path)
    assert not found.faults
    assert {question.id: question.query for question in found.asked} == {
        "words": Text("a cat"),
        "2": Image(str(tmp_path / "cat.jpg")),
        "both": Text("in red") + Image("https://example.org/cat.jpg"),
        "composed": Image(str(tmp_path / "a/cat.jpg")) - 0.5 * Text("fur"),
    }


def test_a_query_at_fault_is_told_by_line_and_id_and_stops_no_other(tmp_path: Path) -> None:
    path = queries(
        tmp_path,
        {"_id": "a", "text": "a cat"}, {"_id": "b", "text": " "}, "{", {"text": "no id"}, {"_id": "c"}, "",
        {"_id": "a", "text": "again"}, {"_id": "d", "query": {"text": 7}}, {"_id": "e", "image": ["x"]},
    )  # fmt: skip
    found = read_queries(path)
    assert [question.id for question in found.asked] == ["a"]
    assert [(fault.line, fault.id) for fault in found.faults] == [
        (2, "b"), (3, "?"), (4, "?"), (5, "c"), (7, "a"), (8, "d"), (9, "e"),
    ]  # fmt: skip
    assert "is empty" in found.faults[0].reason
    assert "line 1 too" in found.faults[4].reason


def test_a_file_without_a_query_and_one_that_is_not_there_are_errors(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"holds no query.*line 1"):
        read_queries(queries(tmp_path, {"_id": "a", "text": ""}))
    with pytest.raises(InvalidInput, match="cannot be read"):
        read_queries(tmp_path / "none.jsonl")


def test_judgments_are_read_in_the_layouts_of_beir_and_of_trec(tmp_path: Path) -> None:
    expected = {"q1": {"d 1": 2, "d2": 0}, "q2": {"d2": 1}}
    (tmp_path / "qrels").mkdir()
    beir = tmp_path / "qrels" / "test.tsv"
    beir.write_text("query-id\tcorpus-id\tscore\nq1\td 1\t2\nq1\td2\t0\nq2\td2\t1\n")
    assert find_qrels(tmp_path) == beir
    assert read_qrels(beir) == expected
    (trec := tmp_path / "trec.txt").write_text("q1 0 d1 2\nq1 0 d2 0\nq2 0 d2 1\n")
    assert read_qrels(trec) == {"q1": {"d1": 2, "d2": 0}, "q2": {"d2": 1}}
    (tmp_path / "qrels" / "dev.tsv").write_text(beir.read_text())
    assert find_qrels(tmp_path, "dev").name == "dev.tsv"
    with pytest.raises(InvalidInput, match="no split train; it has dev, test"):
        find_qrels(tmp_path, "train")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("q1\td1\n", "line 1: .* has 2 columns"),
        ("q1\td1\t1\nq1\td2\tgood\n", "line 2: the grade 'good'"),
        ("", "no judg"),
    ],
)
def test_a_judgment_that_cannot_be_read_is_an_error_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    (path := tmp_path / "qrels.tsv").write_text(text)
    with pytest.raises(InvalidInput, match=message):
        read_qrels(path)


QRELS = {"q1": {"a": 3, "b": 1, "c": 0, "z": 1}, "q2": {"d": 1}}
RANKINGS = {"q1": [("c", 0.9), ("a", 0.9), ("x", 0.9), ("b", 0.5)], "q2": [("e", 0.1)]}


def test_measures_are_those_computed_by_hand() -> None:
    found = values(QRELS, RANKINGS, ["q1", "q2"])
    ideal = 3 / math.log2(2) + 1 / math.log2(3) + 1 / math.log2(4)
    by_hand = {
        "nDCG@10": (3 / math.log2(3) + 1 / math.log2(5)) / ideal,
        "R@10": 2 / 3,
        "R@100": 2 / 3,
        "RR@10": 1 / 2,
        "AP@10": (1 / 2 + 2 / 4) / 3,
    }
    assert tuple(by_hand) == MEASURES
    for measure, expected in by_hand.items():
        assert found[measure] == {"q1": pytest.approx(expected), "q2": 0.0}
    assert means(found)["RR@10"] == pytest.approx(0.25)
    assert cutoff([*MEASURES, "AP"]) == 100


def test_what_is_no_measure_is_an_error_that_shows_some() -> None:
    for wrong in ("nDCG@", "Recall", "__import__('os')", "P(rel=2", "SetF(beta=x)"):
        with pytest.raises(InvalidInput, match="no measure"):
            cutoff([wrong])


def test_without_ir_measures_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ir_measures", None)
    with pytest.raises(MissingExtra, match=r"extra 'eval'.*pgembed-multimodal\[eval\]"):
        cutoff(MEASURES)


def test_a_run_comes_back_in_its_order_ties_too_and_other_tools_read_the_same(tmp_path: Path) -> None:
    import ir_measures

    run = Run("shop lite", RANKINGS, {"fingerprint": "f00", "seed": 7})
    write_run(path := tmp_path / "lite.run", run)
    back = read_run(path)
    assert {query: [row for row, _ in rows] for query, rows in back.rankings.items()} == {
        "q1": ["c", "a", "x", "b"], "q2": ["e"],
    }  # fmt: skip
    assert back.name == "shop lite"
    assert (back.facts["fingerprint"], back.facts["seed"]) == ("f00", 7)
    assert values(QRELS, back.rankings, ["q1", "q2"]) == values(QRELS, RANKINGS, ["q1", "q2"])
    measure = ir_measures.parse_measure("nDCG@10")
    told = ir_measures.calc_aggregate([measure], QRELS, ir_measures.read_trec_run(str(path)))
    assert told[measure] == pytest.approx(means(values(QRELS, RANKINGS, ["q1", "q2"]))["nDCG@10"])


def test_an_id_that_a_run_file_cannot_hold_and_a_broken_run_are_errors(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="cannot hold the id 'a b'"):
        write_run(tmp_path / "a.run", Run("a", {"q": [("a b", 1.0)]}))
    (path := tmp_path / "b.run").write_text("q Q0 a 1 0.5 name\nq Q0 b 2 name\n")
    with pytest.raises(InvalidInput, match="line 2"):
        read_run(path)


def test_the_randomization_test_counts_every_exchange_of_few_queries_and_draws_of_many() -> None:
    few = np.array([0.3, 0.2, -0.1, 0.25, 0.05, 0.4, 0.0])
    signs = itertools.product((-1, 1), repeat=7)
    by_hand = np.mean([abs(np.dot(each, few)) >= abs(few.sum()) - 1e-9 for each in signs])
    assert randomization_test(few) == pytest.approx(by_hand)
    assert randomization_test(np.zeros(5)) == 1.0
    many = np.random.default_rng(1).normal(0.1, 0.5, 200)
    p = randomization_test(many, seed=3)
    assert p == randomization_test(many, seed=3)
    normal = math.erfc(abs(many.sum()) / math.sqrt((many**2).sum()) / math.sqrt(2))  # what it tends to, by its variance
    assert p == pytest.approx(normal, abs=0.005)
    assert randomization_test(many + 1) == pytest.approx(1 / 100_001)  # never 0


def test_a_comparison_counts_queries_won_and_lost() -> None:
    first = {"nDCG@10": {"a": 0.5, "b": 0.5, "c": 1.0}}
    second = {"nDCG@10": {"c": 0.9, "a": 0.7, "b": 0.5}}
    (found,) = compare(first, second)
    assert (found.won, found.lost, found.equal) == (1, 1, 1)
    assert found.difference == pytest.approx(0.1 / 3)
    assert (found.first, found.second) == (pytest.approx(2 / 3), pytest.approx(0.7))
    assert found.p == 1.0  # of the four ways to sign 0.2 and 0.1, the two with the larger sum and these two
    with pytest.raises(InvalidInput, match="share no queries"):
        compare(first, {"nDCG@10": {"a": 1.0}})
