"""``chunks``: a text in passages of so many tokens, divided where its structure allows.

{"kind": "chunks"}                                            as the text's structure and the encoder's limit have it
{"kind": "chunks", "structure": "markdown", "tokens": 200, "overlap": 20}
{"kind": "chunks", "context": "late"}                         each passage encoded within the whole text
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal, Self

import numpy as np

from pgembed.decoding.picture import Limits
from pgembed.encoders.base import Encoder, Modality
from pgembed.encoders.text_tokens import TextTokens
from pgembed.errors import InvalidInput
from pgembed.parts.base import Part, Span, Splitter
from pgembed.parts.html import read_page
from pgembed.parts.outline import DEEPEST, Outline, Rank, outline
from pgembed.parts.structures import STRUCTURES, Structure, outline_of, recognize

Context = Literal["none", "prefix", "late"]
CONTEXTS: tuple[Context, ...] = ("none", "prefix", "late")
TOKENS = 256  # of a passage, where the encoder reads as many
LEAST_TOKENS, MOST_TOKENS = 16, 100_000
LEAST_FILLED = 4  # a passage ends at the best place in it, unless less than this part of it would be full
CHARACTERS_PER_TOKEN = 16  # at most: what a tokenizer takes for one unknown word may be a whole picture in base64
CONTEXT_SHARE = 4  # this part of the tokens is the prefix's


class ChunkSplitter(Splitter):
    """Passages of one text.

    Options: ``structure`` (auto, markdown, html, code or plain), ``tokens`` (of what is encoded at a time, those that
    the encoder adds left out; default 256, or what it reads), ``overlap`` (tokens that a passage repeats of the one
    before it, where it was divided within a section; default an eighth of ``tokens``, and 0 with context), ``context``
    (none, prefix or late).
    """

    modalities: ClassVar[frozenset[Modality]] = frozenset({"text"})

    def __init__(
        self,
        structure: Structure | Literal["auto"] = "auto",
        tokens: int | None = None,
        overlap: int | None = None,
        context: Context = "none",
    ) -> None:
        self.structure: Structure | Literal["auto"] = structure
        self.tokens = tokens
        self.overlap = overlap
        self.context = context

    @classmethod
    def load(cls, options: Mapping[str, Any]) -> Self:
        """Raises InvalidInput for an option that there is not, or that cannot be so."""
        known = {"structure": ("auto", *STRUCTURES), "tokens": None, "overlap": None, "context": CONTEXTS}
        for name, value in options.items():
            if name not in known:
                raise InvalidInput(f"chunks has no option {name!r}.", f"Its options: {', '.join(known)}.")
            words = known[name]
            if words is not None and value not in words:
                raise InvalidInput(f"The option {name} of chunks is {value!r}.", f"Use one of {', '.join(words)}.")
            if words is None and type(value) is not int:
                raise InvalidInput(f"The option {name} of chunks is {value!r}.", "Give a whole number of tokens.")
        tokens, overlap = options.get("tokens"), options.get("overlap")
        if tokens is not None and not LEAST_TOKENS <= tokens <= MOST_TOKENS:
            raise InvalidInput(
                f"The option tokens of chunks is {tokens}.", f"Give {LEAST_TOKENS} to {MOST_TOKENS:,}, or leave it out."
            )
        most = (tokens or TOKENS) // 2
        if overlap is not None and not 0 <= overlap <= most:
            raise InvalidInput(f"The option overlap of chunks is {overlap}.", f"Give 0 to {most}, half of the tokens.")
        return cls(**options)

    def split(self, value: str | bytes, encoder: Encoder, limits: Limits) -> Iterator[Part]:
        """The passages of a text, in order.

        ``location`` has ``start`` and ``end`` in characters of the text as given, for HTML of its source; and
        ``heading``, a list, the outermost first, where there is one. ``content`` is the passage as it is read. No
        passage with its prefix is longer than ``encoder`` reads. Raises InvalidInput where ``tokens`` is more than
        that, UnsupportedModality where an encoder cannot chunk late.
        """
        if not isinstance(value, str):
            raise InvalidInput("chunks takes texts apart, not files.", 'For files there is "pages".')
        if self.context == "late":
            encoder.embed_spans("", [])
        measure = encoder.text_tokens()
        budget = self._budget(encoder, measure)
        structure = recognize(value) if self.structure == "auto" else self.structure
        if structure == "html":
            page = read_page(value)
            whole = outline(page.text, page.headings, page.places)
            whole.title = page.title
            passages = self._passages(whole, measure, budget)
            for part in self._parts(whole, passages, measure, budget):
                start, end = part.location["start"], part.location["end"]
                location: dict[str, Any] = {**part.location, "start": page.starts[start], "end": page.ends[end - 1]}
                yield Part(part.kind, location, part.content, part.input)
        else:
            whole = outline_of(value, structure)
            yield from self._parts(whole, self._passages(whole, measure, budget), measure, budget)

    def _budget(self, encoder: Encoder, measure: TextTokens) -> int:
        room = measure.room
        if room is None:
            return self.tokens or TOKENS
        if self.tokens is not None and self.tokens > room:
            raise InvalidInput(
                f"Chunks of {self.tokens} tokens are too long for encoder '{encoder.spec}', which reads {room}.",
                f"Give at most {room} tokens, or leave the option out.",
            )
        return self.tokens or min(room, TOKENS)

    def _passages(self, whole: Outline, measure: TextTokens, budget: int) -> list[tuple[int, int]]:
        overlap = self.overlap
        if overlap is None:
            overlap = budget // 8 if self.context == "none" else 0
        own = budget - budget // CONTEXT_SHARE if self.context == "prefix" else budget
        return list(_Divider(whole, measure, own, min(overlap, own // 2)).passages())

    def _parts(
        self, whole: Outline, passages: list[tuple[int, int]], measure: TextTokens, budget: int
    ) -> Iterator[Part]:
        prefixes = _Prefixes(whole, passages, measure, budget) if self.context == "prefix" else None
        for number, (start, end) in enumerate(passages):
            location: dict[str, Any] = {"start": start, "end": end}
            path = [heading.title for heading in whole.path(start, end)]
            if path:
                location["heading"] = path
            content = whole.text[start:end]
            given: str | Span = content
            if prefixes is not None:
                given = prefixes.before(number) + content
            elif self.context == "late":
                given = Span(whole.text, start, end)
            yield Part("chunk", location, content, given)


class _Ruler:
    """Distances in a text by the tokens that start in it."""

    def __init__(self, text: str, measure: TextTokens) -> None:
        self._starts = measure.starts(text)
        self._length = len(text)

    def after(self, start: int, tokens: int) -> int:
        """The character before which so many tokens lie, from one on."""
        place = int(np.searchsorted(self._starts, start)) + tokens
        return int(self._starts[place]) if place < len(self._starts) else self._length

    def before(self, end: int, tokens: int) -> int:
        """The character from which on so many tokens lie before another."""
        place = int(np.searchsorted(self._starts, end)) - tokens
        return int(self._starts[place]) if place > 0 else 0


class _Divider:
    """Divides a text: each passage ends at the best place among those that the budget reaches."""

    def __init__(self, whole: Outline, measure: TextTokens, budget: int, overlap: int) -> None:
        self._text = whole.text
        self._places, self._ranks = whole.places, whole.ranks
        self._sections = whole.places[whole.ranks <= DEEPEST]
        self._measure = measure
        self._ruler = _Ruler(whole.text, measure)
        self._budget = budget
        self._overlap = overlap

    def passages(self) -> Iterator[tuple[int, int]]:
        """Their first characters, and those after their last; without the spaces around."""
        start = self._skip(0)
        covered = 0  # characters that have been in a passage
        while covered < len(self._text) and start < len(self._text):
            end = self._end(start, covered)
            if end is None:  # with what it would repeat, it could not go on
                start = self._skip(covered)
                continue
            stop = end
            while stop > start and self._text[stop - 1].isspace():
                stop -= 1
            if stop > start:
                yield start, stop
            covered = self._skip(end)
            start = self._skip(self._again(start, covered))

    def _skip(self, place: int) -> int:
        text = self._text
        while place < len(text) and text[place].isspace():
            place += 1
        return place

    def _end(self, start: int, covered: int) -> int | None:
        """Where a passage from ``start`` ends; beyond what was covered, None where it cannot."""
        reach = min(self._ruler.after(start, self._budget), start + CHARACTERS_PER_TOKEN * self._budget)
        if reach <= start:  # a word of more tokens than the budget has
            reach = start + self._budget
        reach = min(reach, self._section_end(start))
        least = max(start, covered)
        while reach > least:
            end = self._best(start, least, min(reach, len(self._text)))
            passage = self._text[start:end].rstrip()
            count = self._measure.counts([passage])[0]
            if end == start + 1 or (count <= self._budget and not self._measure.cut([passage])[0]):
                return end
            shorter = start + int((end - start) * min(self._budget / max(count, 1), 0.95))
            reach = max(min(shorter, end - 1), start + 1)
        return None

    def _section_end(self, start: int) -> int:
        """The rest of a section that was divided is not put together with the next ones; whole sections may be."""
        number = int(np.searchsorted(self._sections, start, side="right"))
        begin = int(self._sections[number - 1]) if number else 0
        if number == len(self._sections) or not self._text[begin:start].strip():
            return len(self._text)
        return int(self._sections[number])

    def _best(self, start: int, least: int, reach: int) -> int:
        if reach == len(self._text):
            return reach
        first, last = np.searchsorted(self._places, [least, reach], side="right")
        places, ranks = self._places[first:last], self._ranks[first:last]
        filled = self._ruler.after(start, self._budget // LEAST_FILLED)
        good = (ranks <= DEEPEST) | (places >= filled)
        if good.any():
            return int(places[good & (ranks == ranks[good].min())][-1])
        if len(places):
            return int(places[-1])
        return self._whole_characters(least, reach)

    def _whole_characters(self, least: int, reach: int) -> int:
        """The place before ``reach`` where a character as people see it ends, if there is one."""
        place = reach
        while place > least + 1 and _joined(self._text[place - 1], self._text[place]):
            place -= 1
        return reach if _joined(self._text[place - 1], self._text[place]) else place

    def _again(self, start: int, covered: int) -> int:
        """Where the next passage starts: a sentence before the end of the last one, or a word where that ended within
        a sentence."""
        number = int(np.searchsorted(self._places, covered))
        at_place = number < len(self._places) and self._places[number] == covered
        if not self._overlap or (at_place and self._ranks[number] <= DEEPEST):
            return covered
        back = max(self._ruler.before(covered, self._overlap), start + 1)
        first = int(np.searchsorted(self._places, back))
        places, ranks = self._places[first:number], self._ranks[first:number]
        if not len(places):
            return covered
        sentences = places[ranks <= Rank.SENTENCE]
        if len(sentences):
            return int(sentences[0])
        within = not at_place or self._ranks[number] > Rank.SENTENCE
        return int(places[0]) if within else covered


class _Prefixes:
    """What stands before each passage where it is encoded: the title and headings over it, and the first sentences of
    the passages before and after it."""

    def __init__(self, whole: Outline, passages: list[tuple[int, int]], measure: TextTokens, budget: int) -> None:
        self._whole = whole
        self._passages = passages
        self._headings = {heading.start for heading in whole.headings}
        self._measure = measure
        self._budget = budget
        self._most = budget // CONTEXT_SHARE // 3  # tokens of each of the three

    def before(self, number: int) -> str:
        """The prefix of a passage; so much of it as fits."""
        start, end = self._passages[number]
        content = self._whole.text[start:end]
        near = [self._sentence(other) for other in (number - 1, number + 1) if 0 <= other < len(self._passages)]
        chosen: list[str] = []
        for piece in (self._title(number), *near):
            if piece and piece not in chosen:
                given = _prefix([*chosen, piece]) + content
                if self._measure.counts([given])[0] <= self._budget and not self._measure.cut([given])[0]:
                    chosen.append(piece)
        return _prefix(chosen)

    def _title(self, number: int) -> str:
        start, end = self._passages[number]
        above = [heading.title for heading in self._whole.path(start, end) if heading.start < start]
        if self._whole.title:
            above = [self._whole.title, *above]
        if above:
            return self._shortened(" > ".join(dict.fromkeys(above)))
        return self._sentence(0) if number > 0 and not self._whole.headings else ""

    def _sentence(self, number: int) -> str:
        start, end = self._passages[number]
        if start in self._headings:  # which stand before it already
            start = self._first(start, end, Rank.LINE)
        return self._shortened(self._whole.text[start : self._first(start, end, Rank.SENTENCE)])

    def _first(self, start: int, end: int, rank: Rank) -> int:
        """The first place of so good a rank after ``start``, or the end."""
        first, last = np.searchsorted(self._whole.places, [start, end], side="right")
        found = self._whole.places[first:last][self._whole.ranks[first:last] <= rank]
        return int(found[0]) if len(found) else end

    def _shortened(self, text: str) -> str:
        text = " ".join(text[: CHARACTERS_PER_TOKEN * self._most].split())
        reach = _Ruler(text, self._measure).after(0, self._most)
        if reach < len(text):
            text = text[: max(text.rfind(" ", 0, reach + 1), 0) or reach]
        return text.strip()


def _prefix(pieces: list[str]) -> str:
    return "\n".join(pieces) + "\n\n" if pieces else ""


def _joined(left: str, right: str) -> bool:
    """Whether two characters of Unicode belong to one that people see: accents, joiners, skin tones, line ends."""
    return (
        unicodedata.category(right) in ("Mn", "Mc", "Me")
        or "\u200d" in (left, right)
        or "\U0001f3fb" <= right <= "\U0001f3ff"
        or left + right == "\r\n"
        or ("\U0001f1e6" <= left <= "\U0001f1ff" and "\U0001f1e6" <= right <= "\U0001f1ff")
    )
