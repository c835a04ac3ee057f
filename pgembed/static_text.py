"""A static text side: a table of token vectors and a tokenizer, so that a text needs no model, in Python or in SQL.

A text's vector is the normalized sum of its tokens' vectors, each as often as it occurs. ``install`` copies
``tokens()`` into ``pgembed.token`` and ``settings`` into ``pgembed.static_text``. Then ``sql/30_text.sql`` does in
plain SQL what ``split`` and ``encode`` do here, and must give the same tokens for every text:

1. **Clean** (``clean_text``). Drop U+0000, U+FFFD and every character of Unicode category C (control, format, private
   use, unassigned) except tab, newline and carriage return; turn every whitespace character into a space.
2. **Ideographs** (``split_cjk``). Put a space on either side of each of U+4E00-9FFF, U+3400-4DBF, U+20000-2A6DF,
   U+2A700-2B73F, U+2B740-2B81F, U+2B920-2CEAF, U+F900-FAFF and U+2F800-2FA1F.
3. **Accents** (``strip_accents``). Decompose (NFD), then drop every character of category Mn.
4. **Case** (``lowercase``). Lower each character by itself (no final sigma: Σ is always σ).
5. **Words.** Split at whitespace, which is dropped; each punctuation character (ASCII 33-47, 58-64, 91-96, 123-126, or
   category P) is a word of its own.
6. **Pieces.** A word of more than ``max_word_chars`` characters is unknown. Otherwise take the longest piece in the
   vocabulary from the left, pieces after the first written with ``continuing_prefix``; where no piece fits, the *whole*
   word is unknown.
7. **Unknown words are dropped.** ``unknown`` names the placeholder; it has no vector, is not in ``tokens()``, and
   ``split`` leaves it out. Nothing is added at the ends, nothing is cut off, and names such as ``[UNK]`` written in a
   text are ordinary characters.
8. **Sum** the vectors of the pieces with multiplicity, and normalize to length 1. A text without any known token (an
   empty one too) has no vector: Python raises InvalidInput with the text, SQL an error of the same words.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from pgembed.errors import InvalidInput

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from tokenizers import Tokenizer

SHOWN_CHARS = 80


@dataclass(frozen=True)
class StaticText:
    """A tokenizer, its vocabulary and one vector a token; immutable.

    ``model`` is its name in the database (``builtin:lite@<12 hex of the fingerprint>``). ``table`` is
    ``(len(vocabulary), dim) float32`` in the order of the vocabulary; the placeholder's row is not used.
    """

    model: str
    fingerprint: str
    settings: Mapping[str, Any]
    vocabulary: tuple[str, ...] = field(repr=False)
    table: NDArray[np.float32] = field(repr=False)
    tokenizer: Tokenizer = field(repr=False)

    @property
    def dim(self) -> int:
        """The number of dimensions of a token's vector."""
        return int(self.table.shape[1])

    def tokens(self) -> Iterator[tuple[str, NDArray[np.float32]]]:
        """Every token that has a vector, with its vector ``(dim,) float32``; what ``pgembed.token`` holds."""
        unknown = self.settings["unknown"]
        for token, vector in zip(self.vocabulary, self.table, strict=True):
            if token != unknown:
                yield token, vector

    def split(self, text: str) -> list[str]:
        """The known tokens of a text, in order, each as often as it occurs."""
        return [self.vocabulary[i] for i in self._ids([text])[0]]

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Encode n texts into ``(n, dim) float32`` of length 1. Raises InvalidInput for a text without known tokens."""
        totals = np.empty((len(texts), self.dim), dtype=np.float32)
        for row, ids in enumerate(self._ids(texts)):
            self.table[ids].sum(axis=0, out=totals[row])
        lengths = np.linalg.norm(totals, axis=1, keepdims=True)
        if not lengths.all():
            raise self._unknown(texts[int(np.flatnonzero(lengths == 0)[0])])
        return totals / lengths

    def _unknown(self, text: str) -> InvalidInput:
        shown = text if len(text) <= SHOWN_CHARS else f"{text[:SHOWN_CHARS]}…"
        return InvalidInput(
            f"The text '{shown}' has no word that '{self.model}' knows.",
            f"Write it in {self.settings.get('language', 'other')} words, or use an encoder for its language.",
        )

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        unknown = self.tokenizer.token_to_id(self.settings["unknown"])
        found = self.tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [[i for i in encoding.ids if i != unknown] for encoding in found]
