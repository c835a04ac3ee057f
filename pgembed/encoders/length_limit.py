"""The longest text that a model reads: what is cut off is counted, and told once, so that nothing is cut in silence."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pgembed.encoders.text_tokens import TextTokens

_log = logging.getLogger("pgembed.encoders")
_NO_LIMIT = 10**6  # tokenizers without a limit say a number near 1e30


class CutTexts:
    """Counts the texts that are longer than ``limit`` tokens; None is no limit."""

    def __init__(self, spec: str, limit: int | None) -> None:
        self.limit = limit if limit is not None and limit < _NO_LIMIT else None
        self.cut_texts = 0
        self._spec = spec

    def note(self, length: int) -> None:
        """Count a text of so many tokens where they are too many; the first one is told."""
        if self.limit is None or length <= self.limit:
            return
        self.cut_texts += 1
        if self.cut_texts == 1:
            _log.warning(
                "Encoder '%s' reads %d tokens of a text; one of %d tokens was cut there, and longer ones will be.",
                self._spec,
                self.limit,
                length,
            )

    def look(self, texts: Sequence[str], tokens: TextTokens) -> None:
        """Count those of the texts that are about to be cut."""
        if self.limit is not None and tokens.room is not None:
            cut = [text for text, is_cut in zip(texts, tokens.cut(texts), strict=True) if is_cut]
            for count in tokens.counts(cut):
                self.note(count + self.limit - tokens.room)


class LengthLimit(CutTexts):
    """The same, and cuts."""

    def __init__(self, spec: str, tokenizer: Any, limit: int | None) -> None:  # noqa: ANN401
        # Only tokenizers of the kind called fast, which are nearly all, tell which character a token ends at.
        super().__init__(spec, limit if getattr(tokenizer, "is_fast", False) else None)
        self._tokenizer = tokenizer

    def cut(self, texts: Sequence[str], reserved: int) -> list[str]:
        """The texts, each cut where its tokens and the reserved ones are too many; the first one is told."""
        if self.limit is None:
            return list(texts)
        room = max(self.limit - reserved, 0)
        fitting = list(texts)
        for number, text in enumerate(texts):
            if len(text.encode()) > room:  # a token has a byte at least, so most texts need no second look
                found = self._tokenizer(
                    text, add_special_tokens=False, truncation=False, return_offsets_mapping=True, verbose=False
                )
                offsets: list[tuple[int, int]] = found["offset_mapping"]
                if len(offsets) > room:
                    fitting[number] = text[: offsets[room][0]]
                    self.note(len(offsets) + reserved)
        return fitting
