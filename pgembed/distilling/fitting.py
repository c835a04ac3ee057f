"""Token vectors whose normalized sums come near an encoder's own vectors, trained with numpy alone.

A token's vector is ``weight * alone @ turn + own``: what the encoder makes of the token by itself (as model2vec
begins), weighted by how rare it is (smooth inverse frequency, Arora, Liang and Ma 2017: ``a / (a + p)``), turned by one
matrix that all tokens share, and a part of its own. The turn carries over to words that no text has; the part of its
own is held small by a penalty, so that words of few texts stay near where they began. The turn begins as that of least
squares; both are trained by Adam (Kingma and Ba 2015) on the cosine with the encoder's vectors, and the best round on
texts of ``chosen_on`` is kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.float32]
Whole = NDArray[np.int64]

SMOOTH = 1e-3  # a of a / (a + p)
ROUNDS = 24
PATIENCE = 4  # rounds without a better one
BATCH, SMALLEST_BATCH, STEPS = 256, 16, 32  # few texts are taken in smaller batches: so many a round
RIDGE = 0.1  # of the mean square of a direction
RATE_TURN, RATE_OWN = 1e-3, 2e-3
PENALTY = 1e-3  # of the parts of their own, for each time that a token is seen
DROPPED = 0.1  # of the tokens of a text, so that no word leans on another
DECAY, DECAY_SQUARE, TINY = 0.9, 0.999, 1e-8


@dataclass(frozen=True)
class Bags:
    """n texts as numbers of tokens, one text after another; ``starts`` says where each begins. None is empty."""

    tokens: Whole
    starts: Whole

    @classmethod
    def of(cls, texts: Sequence[Sequence[int]]) -> Bags:
        """From a list of numbers for each text."""
        lengths = np.array([len(text) for text in texts], dtype=np.int64)
        tokens = np.array([number for text in texts for number in text], dtype=np.int64)
        return cls(tokens, np.concatenate(([0], np.cumsum(lengths)[:-1])) if len(lengths) else lengths)

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def lengths(self) -> Whole:
        """How many tokens each text has."""
        return np.diff(np.append(self.starts, len(self.tokens)))

    def some(self, rows: Whole) -> Bags:
        """These texts, in this order."""
        lengths = self.lengths[rows]
        starts = np.concatenate(([0], np.cumsum(lengths)[:-1]))
        within: Whole = np.arange(int(lengths.sum()), dtype=np.int64) - np.repeat(starts, lengths)
        return Bags(self.tokens[np.repeat(self.starts[rows], lengths) + within], starts)

    def renumbered(self) -> tuple[Whole, Bags]:
        """The tokens that occur, in order, and the texts with their numbers among these."""
        seen, numbers = np.unique(self.tokens, return_inverse=True)
        return seen, Bags(numbers, self.starts)

    def sums(self, table: Vectors) -> Vectors:
        """The sum of the vectors of each text's tokens: ``(n, dim)``."""
        return np.add.reduceat(table[self.tokens], self.starts, axis=0)


def weights_of(bags: Bags, vocabulary: int) -> Vectors:
    """``a / (a + p)`` of every token, ``(vocabulary,)``. Where no text tells, p is by Zipf's law over the vocabulary's
    order, which in WordPiece is that of frequency."""
    zipf = 1 / (np.arange(vocabulary) + 10.0)
    zipf /= zipf.sum()
    seen = np.bincount(bags.tokens, minlength=vocabulary)
    # the vocabulary's own order counts as much as ten thousand words of text
    p = (seen + 10_000 * zipf) / (seen.sum() + 10_000)
    return (SMOOTH / (SMOOTH + p)).astype(np.float32)


def normalized(vectors: Vectors) -> Vectors:
    """Each of length 1; a zero vector stays zero."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def cosines(bags: Bags, table: Vectors, wanted: Vectors) -> Vectors:
    """The cosine of each text's sum with the vector it is to have, of length 1: ``(n,)``."""
    return np.einsum("nd,nd->n", normalized(bags.sums(table)), wanted)


class _Adam:
    """Adam of rows of a table, each with its own count of steps."""

    def __init__(self, shape: tuple[int, int], rate: float) -> None:
        self._mean, self._square = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
        self._steps = np.zeros(shape[0], np.int64)
        self._rate = rate

    def step(self, table: Vectors, rows: Any, slope: Vectors, rate: float) -> None:  # noqa: ANN401
        self._steps[rows] += 1
        self._mean[rows] = mean = DECAY * self._mean[rows] + (1 - DECAY) * slope
        self._square[rows] = square = DECAY_SQUARE * self._square[rows] + (1 - DECAY_SQUARE) * slope * slope
        steps = self._steps[rows][:, None]
        length = (self._rate * rate / (1 - DECAY**steps)).astype(np.float32)
        unbiased = (1 / (1 - DECAY_SQUARE**steps)).astype(np.float32)
        table[rows] -= length * mean / (np.sqrt(unbiased * square) + TINY)


def fit(
    alone: Vectors,
    bags: Bags,
    wanted: Vectors,
    chosen_on: tuple[Bags, Vectors],
    *,
    seed: int,
    told: Callable[[int, int, float], None] | None = None,
) -> Vectors:
    """The table of token vectors, ``(vocabulary, dim) float32``.

    ``alone`` has the encoder's vector of each token by itself, ``(vocabulary, dim)``; ``wanted`` the encoder's vectors
    of the texts of ``bags``, of length 1. ``told`` hears of rounds done, of how many, and of the mean cosine on
    ``chosen_on``.
    """
    chance = np.random.default_rng(seed)
    base = alone * weights_of(bags, len(alone))[:, None]
    seen, inner = bags.renumbered()
    seen_base = base[seen]
    turn = _turn(normalized(inner.sums(seen_base)), wanted)
    batch = min(BATCH, max(SMALLEST_BATCH, len(bags) // STEPS))
    own = np.zeros((len(seen) + 1, alone.shape[1]), dtype=np.float32)  # the last row is of tokens that no text has
    by_turn, by_own = _Adam(turn.shape, RATE_TURN), _Adam(own.shape, RATE_OWN)
    judged_fixed, since = chosen_on[0].sums(base), 0
    place = np.full(len(alone), len(seen))
    place[seen] = np.arange(len(seen))
    judged = Bags(place[chosen_on[0].tokens], chosen_on[0].starts)
    best, best_turn, best_own = -1.0, turn, own
    for done in range(1, ROUNDS + 1):
        rate = 0.5 * (1 + math.cos(math.pi * (done - 1) / ROUNDS))
        order = chance.permutation(len(bags))
        for first in range(0, len(order), batch):
            rows = order[first : first + batch]
            some = _thinned(inner.some(rows), chance)
            fixed = some.sums(seen_base)
            sums = fixed @ turn + some.sums(own)
            lengths = np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-6)
            found = sums / lengths
            agreed = np.einsum("nd,nd->n", found, wanted[rows])[:, None]
            slope = (agreed * found - wanted[rows]) / lengths  # of 1 - cosine, by the sum
            by_turn.step(turn, slice(None), (fixed.T @ slope / len(rows)).astype(np.float32), rate)
            tokens, of_tokens = _gathered(some, slope)
            pull = of_tokens / len(rows) + PENALTY * own[tokens]
            by_own.step(own, tokens, pull.astype(np.float32, copy=False), rate)
        made = normalized(judged_fixed @ turn + judged.sums(own))
        mean = float(np.einsum("nd,nd->n", made, chosen_on[1]).mean())
        if told is not None:
            told(done, ROUNDS, mean)
        if mean > best:
            best, best_turn, best_own, since = mean, turn.copy(), own.copy(), 0
        else:
            since += 1
            if since == PATIENCE:
                break
    table: Vectors = (base @ best_turn).astype(np.float32, copy=False)
    table[seen] += best_own[:-1]
    return table


def _turn(sums: Vectors, wanted: Vectors) -> Vectors:
    """The matrix that turns sums of length 1 into what is wanted, by least squares, held near to none (ridge)."""
    held = RIDGE * len(sums) / sums.shape[1] * np.eye(sums.shape[1])
    turn: Vectors = np.asarray(np.linalg.solve(sums.T @ sums + held, sums.T @ wanted + held), dtype=np.float32)
    return turn


def _thinned(bags: Bags, chance: np.random.Generator) -> Bags:
    """Without some tokens, of texts that have several; each text keeps its first."""
    kept = chance.random(len(bags.tokens)) >= DROPPED
    kept[bags.starts] = True
    lengths = np.add.reduceat(kept.astype(np.int64), bags.starts)
    return Bags(bags.tokens[kept], np.concatenate(([0], np.cumsum(lengths)[:-1])))


def _gathered(bags: Bags, slope: Vectors) -> tuple[Whole, Vectors]:
    """The tokens of texts, each once, and the sum of the slopes of the texts that have it."""
    order = np.argsort(bags.tokens, kind="stable")
    tokens, starts = np.unique(bags.tokens[order], return_index=True)
    texts = np.repeat(np.arange(len(bags)), bags.lengths)[order]
    return tokens, np.add.reduceat(slope[texts], starts, axis=0)
