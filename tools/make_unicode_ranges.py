"""Write sql/29_unicode.sql: the character classes of the BERT tokenizer, asked of the `tokenizers` library itself.

The library's Unicode tables are older than those of Postgres and Python, so its classes are found by trying every
character.
`python tools/make_unicode_ranges.py` writes the file; with `--check` it only says whether the file is up to date.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer

TARGET = Path(__file__).parent.parent / "sql" / "29_unicode.sql"
WIDTH = 112
HEAD = """\
-- Character classes of the static text side's tokenizer, as code-point ranges: POSIX classes depend on lc_ctype.
-- Written by tools/make_unicode_ranges.py from the classes of the Python library `tokenizers`; do not edit by hand.
-- SQL-standard bodies: their backslashes mean the same whatever standard_conforming_strings is.
"""
FUNCTION = """
-- {comment} Called by {caller}.
CREATE OR REPLACE FUNCTION pgembed.{name}() RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN '['
{lines}    ']';
"""


def code_points() -> Iterator[int]:
    """Every code point that a Postgres text can hold."""
    yield from range(1, 0xD800)
    yield from range(0xE000, 0x110000)


def normalizer(step: str | None) -> Callable[[str], str]:
    """The library's normalizer with one step alone."""
    steps = ("clean_text", "handle_chinese_chars", "strip_accents", "lowercase")
    return BertNormalizer(**{name: name == step for name in steps}).normalize_str


def ranges(points: Iterable[int]) -> list[tuple[int, int]]:
    """Sorted code points as closed ranges."""
    out: list[tuple[int, int]] = []
    for point in points:
        if out and out[-1][1] == point - 1:
            out[-1] = (out[-1][0], point)
        else:
            out.append((point, point))
    return out


def escape(point: int) -> str:
    """A code point as an escape of Postgres's regular expressions."""
    return f"\\u{point:04X}" if point <= 0xFFFF else f"\\U{point:08X}"


def function(name: str, comment: str, caller: str, points: list[int]) -> str:
    """One SQL function that gives a bracket expression."""
    lines = [""]
    for low, high in ranges(points):
        item = escape(low) if low == high else f"{escape(low)}-{escape(high)}"
        if len(lines[-1]) + len(item) > WIDTH:
            lines.append("")
        lines[-1] += item
    body = "".join(f"    '{line}'\n" for line in lines)
    return FUNCTION.format(name=name, comment=comment, caller=caller, lines=body)


def script() -> str:
    """The whole SQL file."""
    clean, ideograph, accent = map(normalizer, ("clean_text", "handle_chinese_chars", "strip_accents"))
    split = BertPreTokenizer().pre_tokenize_str
    points = [(point, chr(point)) for point in code_points()]
    caller = "_normalize_text"
    return HEAD + "".join(
        [
            function(
                "_dropped_characters",
                "What cleaning drops: control, format and private-use characters, U+FFFD.",
                caller,
                [point for point, x in points if clean(x) == ""],
            ),
            function(
                "_space_characters",
                "What cleaning turns into a space.",
                caller,
                [point for point, x in points if clean(x) == " "],
            ),
            function(
                "_ideographs",
                "What stands between spaces.",
                caller,
                [point for point, x in points if ideograph(x) == f" {x} "],
            ),
            function(
                "_accents",
                "What is dropped after decomposition: nonspacing marks.",
                caller,
                [point for point, x in points if accent(x) == ""],
            ),
            function(
                "_punctuation",
                "What is a word of its own.",
                "_words",
                [point for point, x in points if len(split(f"a{x}a")) == 3],
            ),
        ]
    )


def main() -> int:
    """Write or check the file; 1 where the check fails."""
    text = script()
    if "--check" not in sys.argv[1:]:
        TARGET.write_text(text, encoding="utf-8")
        return 0
    if TARGET.exists() and TARGET.read_text(encoding="utf-8") == text:
        return 0
    print(f"{TARGET.name} is not what tools/make_unicode_ranges.py writes; run it.", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
