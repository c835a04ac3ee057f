"""The text of an HTML page as it is read, and where each of its characters stands in the source."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from pgembed.parts.outline import Heading, Rank

_TAG = re.compile(r"<(/?)([a-zA-Z][^\s/>]*)")
_CHARACTER = re.compile(r"&(?:#[0-9]+;?|#[xX][0-9a-fA-F]+;?|[a-zA-Z][a-zA-Z0-9]{0,31};?)")
_QUOTE = re.compile(r"[>\"']")
_HEADING = re.compile(r"h[1-6]")
_UNSEEN = {"script", "style", "title", "template", "noscript", "svg", "iframe", "object"}
_RAW = {"script", "style", "title", "iframe"}  # what stands in them is no markup, so that they end at their own name
_BLOCKS = {
    "address", "article", "aside", "blockquote", "body", "dd", "details", "dialog", "div", "dl", "dt", "fieldset",
    "figcaption", "figure", "footer", "form", "header", "hr", "main", "nav", "ol", "p", "pre", "section", "summary",
    "table", "ul", *(f"h{level}" for level in range(1, 7)),
}  # fmt: skip
_ITEMS = {"li", "tr", "dt", "dd", "option"}
_APART = {"td", "th"}


@dataclass
class Page:
    """A page's text. Character i of it is of the characters ``starts[i]`` to ``ends[i]`` of the source."""

    characters: list[str] = field(default_factory=list[str])
    starts: list[int] = field(default_factory=list[int])
    ends: list[int] = field(default_factory=list[int])
    headings: list[Heading] = field(default_factory=list[Heading])
    places: list[tuple[int, int]] = field(default_factory=list[tuple[int, int]])
    title: str | None = None
    _heading: tuple[int, int] | None = None  # where the open one starts, and its level
    _written: int = 0  # the characters up to the last that is no space
    _glued: int = -1  # up to where a heading came last

    @property
    def text(self) -> str:
        """All of it."""
        return "".join(self.characters)

    def add(self, text: str, start: int, end: int) -> None:
        """Text that stands for the source from start to end: a character reference, or space between blocks."""
        self.characters.extend(text)
        self.starts.extend([start] * len(text))
        self.ends.extend([end] * len(text))
        if text.strip():
            self._written = len(self.characters)

    def run(self, source: str, start: int, end: int, *, preformatted: bool) -> None:
        """Text without markup; of spaces in a row one is kept, unless it is preformatted."""
        place = start
        for found in _CHARACTER.finditer(source, start, end):
            self._plain(source, place, found.start(), preformatted=preformatted)
            self.add(html.unescape(found[0]), found.start(), found.end())
            place = found.end()
        self._plain(source, place, end, preformatted=preformatted)

    def _plain(self, source: str, start: int, end: int, *, preformatted: bool) -> None:
        for place in range(start, end):
            sign = source[place]
            if not sign.isspace():
                self._written = len(self.characters) + 1
            elif not preformatted:
                if not self.characters or self.characters[-1].isspace():
                    continue
                sign = " "
            self.characters.append(sign)
            self.starts.append(place)
            self.ends.append(place + 1)

    def divide(self, name: str, place: int, *, closing: bool) -> None:
        """A tag of a block, an item or a heading: space between what stands before and after it."""
        if self._heading is not None and (_HEADING.fullmatch(name) or name in _BLOCKS):
            start, level = self._heading
            self._heading = None
            title = " ".join("".join(self.characters[start:]).split())
            if title:
                self.headings.append(Heading(start, level, title))
                self._glued = self._written
        space = "\n" if name in _ITEMS else "\n\n"
        if self._written:
            missing = len(space) - sum(sign == "\n" for sign in self.characters[self._written :])
            self.add("\n" * missing, place, place)
        here = len(self.characters)
        glued = self._glued == self._written
        if _HEADING.fullmatch(name) and not closing:
            self._heading = (here, int(name[1]))
            if not glued:
                self.places.append((here, int(name[1])))
        elif not glued:
            self.places.append((here, int(Rank.ITEM if name in _ITEMS else Rank.BLOCK)))


def read_page(source: str) -> Page:
    """The text of a page, in time linear in its length, however it is broken."""
    page = Page()
    preformatted = 0
    for start, end, name, closing in _pieces(source):
        if name is None:
            page.run(source, start, end, preformatted=preformatted > 0)
        elif name == "title" and page.title is None and not closing:
            inside = html.unescape(source[end : max(source.find("<", end), 0)])
            page.title = " ".join(inside.split()) or None
        elif name == "br":
            page.add("\n", start, start)
        elif name in _APART:
            page.add(" ", start, start)
        elif name in _BLOCKS or name in _ITEMS:
            page.divide(name, start, closing=closing)
        if name == "pre":
            preformatted = max(preformatted + (-1 if closing else 1), 0)
    page.divide("body", len(source), closing=True)
    return page


def _pieces(source: str) -> Iterator[tuple[int, int, str | None, bool]]:
    """Runs of text (name None) and tags: start, end, name, whether it is an end tag. Comments are left out, and what
    is unseen."""
    place = 0
    tags = True  # false once one was not closed
    unclosed: set[str] = set()  # of what is unseen, and not looked for again
    while place < len(source):
        mark = source.find("<", place) if tags else -1
        if mark < 0:
            yield place, len(source), None, False
            return
        if source.startswith("<!--", mark):
            end = source.find("-->", mark + 4)
            yield place, mark, None, False
            place = len(source) if end < 0 else end + 3
            continue
        found = _TAG.match(source, mark)
        if found is None and source[mark + 1 : mark + 2] not in ("!", "?"):
            yield place, mark + 1, None, False
            place = mark + 1
            continue
        end = _tag_end(source, found.end() if found else mark + 2)
        if end is None:
            tags = False
            continue
        yield place, mark, None, False
        place = end
        if found is not None:
            name, closing = found[2].lower(), bool(found[1])
            yield mark, end, name, closing
            if name in _UNSEEN - unclosed and not closing and source[end - 2] != "/":
                close = re.compile(f"</{name}\\b[^>]*>?", re.IGNORECASE).search(source, end)
                if close is not None:
                    place = close.end()
                elif name in _RAW:
                    place = len(source)
                else:
                    unclosed.add(name)


def _tag_end(source: str, place: int) -> int | None:
    """Behind the > that closes a tag; those in quotes do not."""
    while (found := _QUOTE.search(source, place)) is not None:
        if found[0] == ">":
            return found.end()
        place = source.find(found[0], found.end()) + 1
        if not place:
            return None
    return None
