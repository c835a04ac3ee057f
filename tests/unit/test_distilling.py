"""How a static side is trained: pieces of texts, sums of token vectors, and what is kept."""

from __future__ import annotations

import random

import numpy as np
import pytest

from pgembed.cli import encoder_distill
from pgembed.distilling import LIMIT
from pgembed.distilling.fitting import Bags, cosines, fit, normalized, weights_of
from pgembed.distilling.pieces import bags_of, pieces_of

TEXT = """An old lighthouse. It stands on a rock in the sea, and ships pass it at night! Who built it?
Nobody knows that today."""


def test_pieces_are_sentences_and_runs_of_words() -> None:
    pieces = pieces_of(TEXT, 12, random.Random(1))
    assert pieces[0] == "An old lighthouse."
    assert "Nobody knows that today." in pieces
    assert len(pieces) == len(set(pieces)) == 12
    words = " ".join(TEXT.split())
    assert all(piece in words for piece in pieces)
    assert all(3 <= len(piece.split()) <= 17 for piece in pieces)


@pytest.mark.parametrize(
    ("text", "pieces"), [("", []), (" \n", []), ("shoe", ["shoe"]), ("a  red shoe", ["a red shoe"])]
)
def test_short_texts_stay_whole(text: str, pieces: list[str]) -> None:
    assert pieces_of(text, 8, random.Random(1)) == pieces


def test_a_long_text_without_sentences_gives_runs_alone() -> None:
    pieces = pieces_of("word " * 200 + "end", 4, random.Random(1))
    assert all(3 <= len(piece.split()) <= 12 for piece in pieces)


def test_words_are_put_together() -> None:
    found = bags_of(["red", "shoe", "dog"], 50, random.Random(1))
    assert {len(text.split()) for text in found} == {1, 2, 3}
    assert {word for text in found for word in text.split()} == {"red", "shoe", "dog"}


def test_bags_sum_the_vectors_of_their_tokens_and_can_be_chosen() -> None:
    bags = Bags.of([[0, 1, 1], [2], [1, 2]])
    table = np.array([[1, 0], [0, 1], [5, 5]], np.float32)
    assert bags.sums(table).tolist() == [[1, 2], [5, 5], [5, 6]]
    assert bags.some(np.array([2, 0])).sums(table).tolist() == [[5, 6], [1, 2]]
    seen, inner = Bags.of([[7, 3], [3]]).renumbered()
    assert (seen.tolist(), inner.tokens.tolist()) == ([3, 7], [1, 0, 0])


def test_frequent_tokens_weigh_less() -> None:
    weights = weights_of(Bags.of([[5] * 900 + [900] * 3]), 1000)
    assert weights[5] < weights[900]
    assert weights[20] < weights[999]  # of tokens that no text has, those at the end of the vocabulary are rarer
    assert (weights > 0).all()
    assert (weights <= 1).all()


def test_training_finds_vectors_whose_sums_are_wanted() -> None:
    chance = np.random.default_rng(3)
    true = chance.normal(size=(60, 12)).astype(np.float32)
    bags = Bags.of([chance.integers(0, 50, size=chance.integers(1, 6)).tolist() for _ in range(1500)])
    wanted = normalized(bags.sums(true))
    alone = normalized(true @ np.linalg.qr(chance.normal(size=(12, 12)))[0].astype(np.float32))  # turned away
    judged = Bags.of([chance.integers(0, 50, size=3).tolist() for _ in range(100)])
    told: list[float] = []
    table = fit(
        alone,
        bags,
        wanted,
        (judged, normalized(judged.sums(true))),
        seed=0,
        told=lambda done, of, mean: told.append(mean),
    )
    assert table.shape == alone.shape
    unseen = Bags.of([[50, 55], [51], [59, 52]])  # in no text: the turn alone carries over
    assert cosines(unseen, table, normalized(unseen.sums(true))).mean() > 0.5
    assert cosines(unseen, alone, normalized(unseen.sums(true))).mean() < 0.5
    assert max(told) > 0.97
    assert cosines(judged, table, normalized(judged.sums(true))).mean() == pytest.approx(max(told), abs=1e-5)


def test_the_command_has_the_limit_of_the_library() -> None:
    assert encoder_distill.LIMIT == LIMIT  # the command does not import it, which would take its time for --help
