"""The tokenizer of a distilled static side: the encoder's own where SQL follows it, else that of ``builtin:lite``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pgembed.encoders import Encoder

if TYPE_CHECKING:
    from tokenizers import Tokenizer


@dataclass(frozen=True)
class WordPiece:
    """A tokenizer that ``sql/30_text.sql`` follows, as ``StaticText`` has it. ``origin`` tells whose it is."""

    origin: str
    settings: Mapping[str, Any]
    vocabulary: tuple[str, ...] = field(repr=False)
    tokenizer: Tokenizer = field(repr=False)

    @property
    def alone(self) -> list[str]:
        """Each token as a text: without what marks a piece that goes on with a word."""
        prefix = self.settings["continuing_prefix"]
        return [token.removeprefix(prefix) or token for token in self.vocabulary]


def wordpiece_for(encoder: Encoder) -> WordPiece:
    """The tokenizer for an encoder's static side."""
    own = encoder.tokenizer_json()
    found = wordpiece_of(own, encoder.spec) if own is not None else None
    return found or _shipped()


def wordpiece_of(tokenizer_json: str, origin: str) -> WordPiece | None:
    """A ``tokenizer.json`` without what it adds around a text and cuts off; None where SQL cannot follow it: BERT's
    WordPiece with BERT's own normalizer and splitting, it follows."""
    facts: dict[str, Any] = json.loads(tokenizer_json)
    model: dict[str, Any] = facts.get("model") or {}
    normalizer = _only(facts.get("normalizer"), "normalizers")
    splitter = _only(facts.get("pre_tokenizer"), "pretokenizers")
    if (
        model.get("type") != "WordPiece"
        or normalizer.get("type") != "BertNormalizer"
        or splitter.get("type") != "BertPreTokenizer"
    ):
        return None
    unknown, vocabulary = model["unk_token"], model["vocab"]
    special = {token["content"] for token in facts.get("added_tokens", []) if token.get("special")}
    tokens = [
        token
        for token in sorted(vocabulary, key=vocabulary.__getitem__)
        if token not in special and not (token.startswith("[") and token.endswith("]") and len(token) > 1)
    ]
    lowercase = bool(normalizer.get("lowercase", True))
    strip = normalizer.get("strip_accents")
    settings: dict[str, Any] = {
        "tokenizer": "wordpiece",
        "unknown": unknown,
        "max_word_chars": model.get("max_input_chars_per_word", 100),
        "continuing_prefix": model.get("continuing_subword_prefix", "##"),
        "clean_text": bool(normalizer.get("clean_text", True)),
        "split_cjk": bool(normalizer.get("handle_chinese_chars", True)),
        "strip_accents": lowercase if strip is None else bool(strip),
        "lowercase": lowercase,
        "pooling": "sum",
        "normalize": True,
    }
    return _made(origin, settings, (unknown, *tokens))


def _only(step: dict[str, Any] | None, name: str) -> dict[str, Any]:
    """A step, or the only one of a sequence."""
    while step is not None and step.get("type") == "Sequence" and len(step.get(name, [])) == 1:
        step = step[name][0]
    return step or {}


def _shipped() -> WordPiece:
    from pgembed.encoders.builtin import lite_static_text

    side = lite_static_text()
    settings = {name: value for name, value in side.settings.items() if name != "language"}
    unknown = settings["unknown"]
    tokens = (token for token in side.vocabulary if token != unknown)
    return _made("builtin:lite", settings, (unknown, *tokens))


def _made(origin: str, settings: Mapping[str, Any], vocabulary: tuple[str, ...]) -> WordPiece:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    tokenizer = Tokenizer(
        models.WordPiece(
            {token: number for number, token in enumerate(vocabulary)},
            unk_token=settings["unknown"],
            max_input_chars_per_word=settings["max_word_chars"],
            continuing_subword_prefix=settings["continuing_prefix"],
        )
    )
    tokenizer.normalizer = normalizers.BertNormalizer(
        clean_text=settings["clean_text"],
        handle_chinese_chars=settings["split_cjk"],
        strip_accents=settings["strip_accents"],
        lowercase=settings["lowercase"],
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return WordPiece(origin, settings, vocabulary, tokenizer)
