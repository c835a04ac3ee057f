"""``dna:kN``: DNA sequences as counts of their k-mers, and an exact re-ranker for the candidates found by them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import ClassVar, Self

import edlib
import numpy as np
from numpy.typing import NDArray

from pgembed import Pgembed, Text
from pgembed.encoders import Encoder, Modality, Settings, named_fingerprint
from pgembed.encoders.settings import check_settings
from pgembed.errors import EncoderError, InvalidInput
from pgembed.query import SearchRow

COMPLEMENT = str.maketrans("ACGT", "TGCA")


class KmerEncoder(Encoder):
    """How often each word of k letters occurs, a word and its reverse complement being one.

    A sequence and its opposite strand have one vector. Counts are rooted, so that the cosine of two vectors is the
    Bhattacharyya coefficient of the two distributions. Letters other than A, C, G, T break a sequence in two.
    """

    scheme: ClassVar[str] = "dna"
    modalities: frozenset[Modality] = frozenset({"text"})

    def __init__(self, k: int) -> None:
        words = sorted({_canonical("".join(letters)) for letters in product("ACGT", repeat=k)})
        self.k = k
        self.places = {word: place for place, word in enumerate(words)}
        self.spec = f"dna:k{k}"
        self.dim = len(words)
        self.fingerprint = named_fingerprint(words=f"canonical {k}-mers", weights="square root of counts")

    @classmethod
    def load(cls, name: str, settings: Settings) -> Self:
        """Load ``k2`` to ``k6``; there are no settings. Raises EncoderError for another name."""
        check_settings(f"dna:{name}", settings, {})
        if name not in {"k2", "k3", "k4", "k5", "k6"}:
            raise EncoderError(f"There is no encoder 'dna:{name}'.", "Use dna:k2 to dna:k6; k4 has 136 dimensions.")
        return cls(int(name[1:]))

    def embed_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Encode n sequences into ``(n, dim) float32`` of length 1. Raises InvalidInput for one without a k-mer."""
        vectors = np.zeros((len(texts), self.dim), dtype=np.float32)
        for row, text in enumerate(texts):
            sequence = _letters(text)
            for start in range(len(sequence) - self.k + 1):
                place = self.places.get(_canonical(sequence[start : start + self.k]))
                if place is not None:
                    vectors[row, place] += 1
            if not vectors[row].any():
                raise InvalidInput(f"'{text[:40]}' has no {self.k} letters of DNA in a row.", "Write A, C, G and T.")
        vectors = np.sqrt(vectors)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def search(
    db: Pgembed, table: str, sequence: str, *, column: str = "sequence", limit: int = 10, candidates: int = 200
) -> list[tuple[SearchRow, float]]:
    """The rows whose sequence holds the nearest match of ``sequence``, best first, each with its identity (0 to 1).

    The index gives ``candidates`` rows by their k-mers; these are aligned exactly, on both strands, and the best are
    kept. Identity is one minus edits per letter of the best infix alignment (Šošić and Šikić 2017, edlib).
    """
    rows = db.search(table, Text(sequence), limit=candidates)
    scored = [(row, identity(sequence, row[column])) for row in rows]
    return sorted(scored, key=lambda pair: -pair[1])[:limit]


def identity(query: str, target: str) -> float:
    """How much of ``query`` stands somewhere in ``target`` or in its opposite strand: 1 for all of it."""
    query, target = _letters(query), _letters(target)
    edits = min(
        edlib.align(strand, target, mode="HW", task="distance")["editDistance"]
        for strand in (query, query.translate(COMPLEMENT)[::-1])
    )
    return max(0.0, 1 - edits / len(query))


def _letters(text: str) -> str:
    """A sequence as one line of capitals: files wrap it, and write repeats small."""
    return "".join(text.split()).upper()


def _canonical(word: str) -> str:
    return min(word, word.translate(COMPLEMENT)[::-1])
