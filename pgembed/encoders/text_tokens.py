"""Tokens of texts: how many a text has, where they start, and how many a model reads.

Splitters measure passages by them, late chunking pools by them, and what a model cuts off is known before it is cut.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pgembed.metering import BYTES_PER_TOKEN, rough_tokens

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Places = NDArray[np.int64]

_WORD = re.compile(r"\S+")


class TextTokens:
    """The tokens of an encoder's texts, roughly, where its tokenizer is not known: a quarter of the bytes.

    ``room`` is how many tokens of a row's text the model reads, less those that stand around it; None where it reads
    all, or nobody knows. ``characters`` is such a limit in characters.
    """

    characters: int | None = None

    def __init__(self, room: int | None = None) -> None:
        self.room = room

    def starts(self, text: str) -> Places:
        """The characters at which tokens start, in order: about so where the text is tokenized in another form."""
        points = np.frombuffer(text.encode("utf-32-le", errors="surrogatepass"), dtype=np.uint32)
        bytes_of = 1 + (points >= 0x80).astype(np.int64) + (points >= 0x800) + (points >= 0x10000)
        ends = np.cumsum(bytes_of)
        whole = int(ends[-1]) if len(ends) else 0
        return np.searchsorted(ends, np.arange(0, whole, BYTES_PER_TOKEN), side="right").astype(np.int64)

    def counts(self, texts: Sequence[str]) -> list[int]:
        """How many tokens each text has, those around it left out."""
        return [rough_tokens(text) for text in texts]

    def cut(self, texts: Sequence[str]) -> list[bool]:
        """Which texts are longer than the model reads. Cheap: only texts of more bytes than ``room`` are tokenized."""
        most, room = self.characters, self.room
        found = [most is not None and len(text) > most for text in texts]
        if room is not None:
            # A token has a byte at least.
            long = [place for place, text in enumerate(texts) if len(text.encode(errors="replace")) > room]
            for place, count in zip(long, self.counts([texts[place] for place in long]), strict=True):
                found[place] |= count > room
        return found


class CountedTokens(TextTokens):
    """Tokens that can be counted, while the text that they are of is not the one that is given: it is cleaned before.

    Where they start is estimated word by word.
    """

    def __init__(self, count: Callable[[Sequence[str]], list[int]], room: int | None) -> None:
        super().__init__(room)
        self._count = count

    def counts(self, texts: Sequence[str]) -> list[int]:
        """Exactly."""
        return self._count(texts)

    def starts(self, text: str) -> Places:
        """Each token of a word at the start of the word."""
        words = [(found.start(), found[0]) for found in _WORD.finditer(text)]
        each = list({word for _, word in words})
        count_of = dict(zip(each, self._count(each), strict=True)) if each else {}
        return np.repeat(
            np.array([start for start, _ in words], dtype=np.int64),
            np.array([count_of[word] for _, word in words], dtype=np.int64),
        )


@dataclass(frozen=True)
class Tokenized:
    """One text in tokens: their ids, and those that stand before and after it; ``spans`` ``(n, 2)`` are the characters
    of the text that each token is of, start and end."""

    before: list[int]
    ids: list[int]
    after: list[int]
    spans: Places


class TokenizerTokens(TextTokens):
    """The tokens of a ``tokenizer.json``, in a copy that neither cuts nor pads, which threads may share.

    ``before`` and ``after`` are the prompt around a text, ``special`` whether the tokenizer adds its own tokens, and
    ``clean`` what is done to a text first. ``limit`` is how many tokens the model reads in all.
    """

    def __init__(
        self,
        tokenizer_json: str,
        limit: int | None,
        *,
        before: str = "",
        after: str = "",
        special: bool = True,
        clean: Callable[[str], str] | None = None,
    ) -> None:
        from tokenizers import Tokenizer

        self._tokenizer = Tokenizer.from_str(tokenizer_json)
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._before, self._after, self._special = before, after, special
        self._clean = clean or str
        self.around = len(self._tokenizer.encode(before + after, add_special_tokens=special).ids)
        super().__init__(None if limit is None else max(limit - self.around, 0))

    def counts(self, texts: Sequence[str]) -> list[int]:
        """Exactly."""
        whole = [f"{self._before}{self._clean(text)}{self._after}" for text in texts]
        found = self._tokenizer.encode_batch_fast(whole, add_special_tokens=self._special)
        return [max(len(encoding.ids) - self.around, 0) for encoding in found]

    def starts(self, text: str) -> Places:
        """Exactly, unless cleaning changes the text's length: then word by word."""
        if len(self._clean(text)) != len(text):
            return CountedTokens(self.counts, self.room).starts(text)
        return np.maximum.accumulate(self.tokenized(text).spans[:, 0])

    def tokenized(self, text: str) -> Tokenized:
        """The whole text, however long, once cleaned."""
        text = self._clean(text)
        begin, end = len(self._before), len(self._before) + len(text)
        found = self._tokenizer.encode(f"{self._before}{text}{self._after}", add_special_tokens=self._special)
        ids: list[int] = found.ids
        spans = np.array(found.offsets, dtype=np.int64).reshape(-1, 2)
        own = np.flatnonzero((np.array(found.special_tokens_mask) == 0) & (spans[:, 1] > begin) & (spans[:, 0] < end))
        if not len(own):
            return Tokenized(ids, [], [], np.zeros((0, 2), dtype=np.int64))
        first, stop = int(own[0]), int(own[-1]) + 1
        return Tokenized(ids[:first], ids[first:stop], ids[stop:], np.clip(spans[first:stop] - begin, 0, len(text)))
