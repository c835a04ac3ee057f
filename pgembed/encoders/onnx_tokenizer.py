"""A tokenizer of open_clip as a ``tokenizer.json``, which the package tokenizers reads, with the same ids."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pgembed.encoders.onnx_manifest import Cleanup
from pgembed.errors import EncoderError

_CLEANUPS: dict[str, Cleanup] = {
    "_clean_lower": "lower",
    "_clean_whitespace": "whitespace",
    "_clean_canonicalize": "canonicalize",
}


@dataclass(frozen=True)
class ExportedTokenizer:
    """What a manifest's text side says of its tokenizer, and the file."""

    json: str
    cleanup: Cleanup
    replace: dict[str, int]


def export_tokenizer(spec: str, tokenizer: Any) -> ExportedTokenizer:  # noqa: ANN401
    """Raises EncoderError for a tokenizer that draws lots, or that tokenizers cannot follow."""
    kind = type(tokenizer).__name__
    if kind == "SimpleTokenizer" and tokenizer.reduction_fn is None:
        return ExportedTokenizer(_clip_bpe(tokenizer), _cleanup(spec, tokenizer), {})
    if kind == "HFTokenizer" and not tokenizer.tokenizer_mode:
        separator = tokenizer.tokenizer.sep_token_id
        replace = {str(separator): 0} if tokenizer.strip_sep_token else {}
        return ExportedTokenizer(_hugging_face(spec, tokenizer), _cleanup(spec, tokenizer), replace)
    if kind == "SigLipTokenizer":
        return ExportedTokenizer(_hugging_face(spec, tokenizer), "canonicalize", {})
    raise EncoderError(f"The tokenizer of '{spec}', a {kind}, has a mode that cannot be exported.")


def _cleanup(spec: str, tokenizer: Any) -> Cleanup:  # noqa: ANN401
    name = tokenizer.clean_fn.__name__
    if name not in _CLEANUPS:
        raise EncoderError(f"The tokenizer of '{spec}' cleans texts by '{name}', which cannot be exported.")
    return _CLEANUPS[name]


def _hugging_face(spec: str, tokenizer: Any) -> str:  # noqa: ANN401
    tokenizers: Any = importlib.import_module("tokenizers")
    inner = tokenizer.tokenizer
    backend: Any = getattr(inner, "backend_tokenizer", None)
    if not isinstance(backend, tokenizers.Tokenizer):
        raise EncoderError(f"The tokenizer of '{spec}', a {type(inner).__name__}, has no form for tokenizers.")
    copy = tokenizers.Tokenizer.from_str(backend.to_str())
    copy.enable_truncation(tokenizer.context_length, direction=inner.truncation_side)
    copy.enable_padding(
        direction=inner.padding_side,
        pad_id=inner.pad_token_id,
        pad_token=inner.pad_token,
        length=tokenizer.context_length,
    )
    return copy.to_str()


def _clip_bpe(tokenizer: Any) -> str:  # noqa: ANN401
    """CLIP's byte-level BPE. Its classes of characters are written out: libraries know different Unicodes."""
    tokenizers: Any = importlib.import_module("tokenizers")
    start, end = (tokenizer.decoder[token] for token in (tokenizer.sot_token_id, tokenizer.eot_token_id))
    copy = tokenizers.Tokenizer(
        tokenizers.models.BPE(
            vocab=dict(tokenizer.encoder), merges=list(tokenizer.bpe_ranks), end_of_word_suffix="</w>"
        )
    )
    letter, number, other = (_characters(kind) for kind in (r"[\p{L}]", r"[\p{N}]", r"[^\s\p{L}\p{N}]"))
    endings = r"'(?:[sS\x{17F}]|[tT]|[rR][eE]|[vV][eE]|[mM]|[lL][lL]|[dD])"
    words = tokenizers.Regex(f"{endings}|{letter}+|{number}|{other}+")
    copy.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [
            tokenizers.pre_tokenizers.Split(words, "removed", invert=True),
            tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    special = [tokenizer.decoder[token] for token in tokenizer.all_special_ids]
    copy.add_special_tokens([tokenizers.AddedToken(token, special=True, normalized=False) for token in special])
    copy.post_processor = tokenizers.processors.TemplateProcessing(
        single=f"{start} $A {end}", special_tokens=[(start, tokenizer.sot_token_id), (end, tokenizer.eot_token_id)]
    )
    copy.enable_truncation(tokenizer.context_length)
    copy.enable_padding(length=tokenizer.context_length, pad_id=0, pad_token=tokenizer.decoder[0])
    return copy.to_str()


def _characters(kind: str) -> str:
    """A class of characters as the module regex knows it where case is ignored, as ranges for another one."""
    regex: Any = importlib.import_module("regex")
    runs = regex.compile(f"{kind}+", regex.IGNORECASE)

    def ranges() -> Iterator[str]:
        every = "".join(map(chr, (*range(0xD800), *range(0xE000, 0x110000))))
        for found in runs.finditer(every):
            first, last = found[0][0], found[0][-1]
            if first < "\ud800" <= last:  # the surrogates between them are no characters
                yield rf"\x{{{ord(first):X}}}-\x{{D7FF}}"
                first = "\ue000"
            yield rf"\x{{{ord(first):X}}}-\x{{{ord(last):X}}}"

    return f"[{''.join(ranges())}]"


def probes() -> tuple[str, ...]:
    """Texts on which a tokenizer is compared with its export."""
    return (
        "",
        "a",
        "a red dress",
        "A Photo of TWO cats.",
        "  spaces \t and\nlines  ",
        "it's they're we'll I'd don't I'm you've",
        "naïve café, Ünïcödé Straße ŒUVRE ﬁne",
        "“curly” ‘quotes’ — dash…",
        "cafÃ© and itâ€™s mended",
        "&lt;b&gt; &amp;amp; &eacute;",
        "日本語のテキスト、漢字かな交じり",
        "Привет, мир! Ёлка",
        "مرحبا بالعالم",
        "नमस्ते दुनिया",
        "한국어 텍스트",
        "ภาษาไทย",
        "👩‍👩‍👧‍👦 family 🇫🇷 flags 👍🏽",
        "１２３ ４５６ ½ Ⅷ ² 3.14",
        "http://example.org/a_b?c=d&e=f#g",
        "snake_case CamelCase kebab-case",
        "!?.,;:()[]{}<>@#$%^&*-+=/\\|~`\"'",
        "\u200bzero\u200dwidth\ufeff",
        "e\u0301 decomposed Å ǅ ẞ İ ı ſ 'ſ",
        "\x00\x07 control \x1b[31mred",
        "<start_of_text> in a text <end_of_text>",
        "word " * 100,
        "x" * 400,
        "12345678901234567890",
        "a" * 30 + " " + "ß" * 30,
        json.dumps({"key": ["a", 1, None]}),
    )
