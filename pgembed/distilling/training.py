"""From texts and an encoder to a static side with its agreement: what is encoded, held out, trained and measured."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pgembed.distilling.fitting import Bags, cosines, fit, normalized, weights_of
from pgembed.distilling.pieces import bags_of, pieces_of
from pgembed.distilling.wordpiece import WordPiece, wordpiece_for
from pgembed.encoders import Encoder
from pgembed.encoders.base import fingerprint_of
from pgembed.errors import InvalidInput
from pgembed.static_text import StaticText

Vectors = NDArray[np.float32]
Say = Callable[[str, int, int], None]  # the step, how much of it is done, of how much

LIMIT = 20_000
LEAST = 50  # texts
MOST_PIECES = 16  # of one text
BAGS = 200  # texts that are made of a list of words, at least
WORD_SHARE = 0.2  # of the texts that are bags of words of the vocabulary, where nothing was named to learn from
NEAREST = 10
COMPARED, AMONG = 500, 5_000  # texts whose nearest are compared, and among how many
ENCODED = 256  # texts at once


@dataclass(frozen=True)
class Texts:
    """What to learn from: ``long`` texts are cut into pieces, ``queries`` stay as they are, ``words`` are put together.

    ``own_words`` adds words of the tokenizer's vocabulary.
    """

    long: Sequence[str] = ()
    queries: Sequence[str] = ()
    words: Sequence[str] = ()
    own_words: bool = False


@dataclass(frozen=True)
class Agreement:
    """How near a static side comes to its encoder, on ``held_out`` texts that it was neither trained nor chosen on.

    ``mean_cosine`` with the encoder's vectors, and the share of texts ``above_0_9``; of the ten nearest among other
    texts by the encoder's vectors, the share that is among the ten by the static side's, ``overlap_at_10``. Before the
    training, sums of what the encoder makes of tokens alone, rare ones weighing more, had ``untrained_mean_cosine``.
    """

    held_out: int
    mean_cosine: float
    above_0_9: float
    overlap_at_10: float
    untrained_mean_cosine: float


@dataclass(frozen=True)
class Trained:
    """A static side that is not stored yet, how many texts it was trained on, whose tokenizer it has, and how near it
    comes; ``untrained`` is its table of token vectors before the training."""

    side: StaticText
    texts: int
    tokenizer: str
    agreement: Agreement
    untrained: Vectors = field(repr=False)


def train(
    encoder: Encoder,
    name: str,
    texts: Texts,
    *,
    limit: int = LIMIT,
    held_out: float = 0.1,
    seed: int = 0,
    say: Say | None = None,
) -> Trained:
    """Train the static side of an encoder that is registered as ``name``.

    At most ``limit`` texts are encoded, as queries, and the share ``held_out`` of the sources is kept for the
    agreement; as much again, half at most, chooses the best round. Raises InvalidInput where there are too few texts.
    """
    _check(limit, held_out)
    pieces = wordpiece_for(encoder)
    groups = _groups(texts, pieces, limit, random.Random(seed))
    parts = _parts(groups, held_out, random.Random(seed + 1))
    number = {token: place for place, token in enumerate(pieces.vocabulary)}
    unknown = number[pieces.settings["unknown"]]
    chosen = [_known(part, pieces, unknown) for part in parts]
    if min(map(len, chosen)) == 0 or sum(map(len, chosen)) < LEAST:
        raise InvalidInput(
            f"There are {sum(map(len, chosen))} texts to distill '{name}' from; at least {LEAST} are needed.",
            "Name more: a column (texts), an embedding, a query log (log), or a list of words (words).",
        )
    say = say or (lambda step, done, of: None)
    alone = _encoded(encoder, pieces.alone, "encoding the vocabulary", say)
    alone[unknown] = 0
    every = [text for part in chosen for text, _ in part]
    vectors = _encoded(encoder, every, "encoding texts", say)
    ends = np.cumsum([0, *map(len, chosen)])
    bags = [Bags.of([tokens for _, tokens in part]) for part in chosen]
    wanted = [vectors[start:end] for start, end in pairwise(ends)]
    untrained = alone * weights_of(bags[0], len(alone))[:, None]
    table = fit(
        alone, bags[0], wanted[0], (bags[1], wanted[1]), seed=seed,
        told=lambda done, of, _: say("training", done, of),
    )  # fmt: skip
    table[unknown] = 0
    side = _side(name, pieces, table)
    return Trained(side, len(chosen[0]), pieces.origin, _agreement(bags, wanted, table, untrained, seed), untrained)


def _check(limit: int, held_out: float) -> None:
    if limit < LEAST:
        raise InvalidInput(f"limit is {limit}; at least {LEAST} texts are needed.", f"Leave it out for {LIMIT:,}.")
    if not 0 < held_out <= 0.5:
        raise InvalidInput(f"held_out is {held_out}, and must be above 0 and at most 0.5.", "Leave it out for 0.1.")


def _groups(texts: Texts, pieces: WordPiece, limit: int, chance: random.Random) -> list[list[str]]:
    """What comes from one source, together: a text and its pieces are held out or trained on as a whole."""
    long = list(dict.fromkeys(text for text in texts.long if text.strip()))
    queries = list(dict.fromkeys(" ".join(text.split()) for text in texts.queries if text.strip()))
    words = list(dict.fromkeys(word.strip() for word in texts.words if word.strip()))
    chance.shuffle(long)
    chance.shuffle(queries)
    chance.shuffle(words)
    own = [token for token in pieces.vocabulary if token.isalpha() and len(token) > 2] if texts.own_words else []
    room = limit
    bags: list[str] = []
    if own:
        bags = bags_of(own, int(limit * WORD_SHARE) if long or queries or words else limit, chance)
        room -= len(bags)
    if words:
        bags += words[:room]
        bags += bags_of(words, min(max(BAGS, 2 * len(words)), max(0, room - len(words))), chance)
    groups = [[text] for text in dict.fromkeys([*queries[: max(0, room)], *bags])]
    room = limit - len(groups)
    if long and room > 0:
        most = min(MOST_PIECES, max(1, room // len(long)))
        groups += [found for text in long[:room] if (found := pieces_of(text, most, chance))]
    return groups


def _parts(groups: list[list[str]], held_out: float, chance: random.Random) -> list[list[str]]:
    """Texts to train on, to choose by, and to measure on."""
    chance.shuffle(groups)
    measured = max(1, round(len(groups) * held_out))
    chosen = max(1, round(len(groups) * min(held_out, 0.1) / 2))
    split = (groups[measured + chosen :], groups[measured : measured + chosen], groups[:measured])
    seen: set[str] = set()
    parts: list[list[str]] = []
    for part in reversed(split):  # a text that two sources have counts for the measure
        own = [text for text in dict.fromkeys(text for group in part for text in group) if text not in seen]
        seen.update(own)
        parts.insert(0, own)
    return parts


def _known(texts: Sequence[str], pieces: WordPiece, unknown: int) -> list[tuple[str, list[int]]]:
    """The texts that have a token, with the numbers of theirs."""
    found = pieces.tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
    known = ((text, [n for n in one.ids if n != unknown]) for text, one in zip(texts, found, strict=True))
    return [(text, tokens) for text, tokens in known if tokens]


def _encoded(encoder: Encoder, texts: Sequence[str], step: str, say: Say) -> Vectors:
    """Vectors of queries, of length 1; texts of like length together, which takes less time."""
    order = sorted(range(len(texts)), key=lambda place: len(texts[place]))
    vectors = np.empty((len(texts), encoder.dim), dtype=np.float32)
    for first in range(0, len(order), ENCODED):
        some = order[first : first + ENCODED]
        vectors[some] = encoder.encode_text([texts[place] for place in some], role="query")
        say(step, first + len(some), len(order))
    return normalized(vectors)


def _side(name: str, pieces: WordPiece, table: Vectors) -> StaticText:
    fingerprint = fingerprint_of(table.tobytes(), "\n".join(pieces.vocabulary), repr(sorted(pieces.settings.items())))
    return StaticText(
        model=f"distilled:{name}@{fingerprint[:12]}",
        fingerprint=fingerprint,
        settings=pieces.settings,
        vocabulary=pieces.vocabulary,
        table=table,
        tokenizer=pieces.tokenizer,
    )


def _agreement(
    bags: Sequence[Bags], wanted: Sequence[Vectors], table: Vectors, untrained: Vectors, seed: int
) -> Agreement:
    found = cosines(bags[2], table, wanted[2])
    chance = np.random.default_rng(seed)
    some = chance.permutation(len(bags[2]))[:COMPARED]
    others = wanted[0][chance.permutation(len(bags[0]))[:AMONG]]
    exact = _nearest(wanted[2][some], others)
    static = _nearest(normalized(bags[2].some(some).sums(table)), others)
    shared = [len(set(a) & set(b)) / len(a) for a, b in zip(exact, static, strict=True)]
    return Agreement(
        held_out=len(found),
        mean_cosine=float(found.mean()),
        above_0_9=float((found > 0.9).mean()),
        overlap_at_10=float(np.mean(shared)),
        untrained_mean_cosine=float(cosines(bags[2], untrained, wanted[2]).mean()),
    )


def _nearest(vectors: Vectors, others: Vectors) -> NDArray[Any]:
    most = min(NEAREST, len(others))
    return np.argsort(-(vectors @ others.T), axis=1, kind="stable")[:, :most]
