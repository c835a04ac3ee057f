"""What a text is, plain text, Markdown, HTML or code, and its outline as that."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Literal

from pgembed.parts.markdown import markdown
from pgembed.parts.outline import Outline, Rank, outline

Structure = Literal["markdown", "html", "code", "plain"]
STRUCTURES: tuple[Structure, ...] = ("markdown", "html", "code", "plain")

_BLANK_LINES = re.compile(r"\n[^\S\n]*\n\s*")
_LINE = re.compile(r"\n+")
_TOP_LEVEL = re.compile(
    r"\n[^\S\n]*\n(?=\S)|\n(?=(?:def|class|async|func|function|fn|pub|impl|type|struct|interface|CREATE|create)\b)"
)
_PAGE = re.compile(r"\s*(?:<\?xml|<!doctype|<html)", re.IGNORECASE)
_TAG = re.compile(r"<(/?)(p|div|h[1-6]|ul|ol|table|article|section|body)\b", re.IGNORECASE)
_CODE_LINE = re.compile(
    r"[;{}]\s*$|^\s*(?:def|class|import|from|return|if|for|while|else|elif|try|except|with|func|fn|let|const|var|public"
    r"|private|static|package|using|#include|#define|@\w+|raise|yield|async|await)\b.*[:;({),]\s*$"
    r"|^\s*(?:import|from|return|#include|package|using)\b[^.]*(?:\.\w[^.]*)*$"
    r"|^\s*[\w.\[\]]+\s*(?:[-+*/|&]?=)[^=].*$|^\s*[\w.]+\(.*\)\s*$"
)
_MARKDOWN = re.compile(
    r"^ {0,3}(?:#{1,6}\s+\S|```|~~~|[-*+]\s+\S|\d+[.)]\s+\S|\|.*\|\s*$|\S.*\n {0,3}(?:=+|-{3,})\s*$)", re.MULTILINE
)
_COMMENT = ("#", "//", "*", "/*")
_SEEN = 20_000  # characters by which a structure is recognized
_CODE_SHARE, _CODE_LINES = 0.5, 3


def paragraphs(text: str) -> Iterator[tuple[int, int]]:
    """What blank lines divide."""
    return ((match.end(), int(Rank.BLOCK)) for match in _BLANK_LINES.finditer(text))


def outline_of(text: str, structure: Structure) -> Outline:
    """The outline of a text in one of the structures but HTML, whose text is not its source."""
    if structure == "markdown":
        headings, places, title = markdown(text)
        found = outline(text, headings, places)
        found.title = title
        return found
    if structure == "code":
        return outline(text, [], _code(text))
    return outline(text, [], paragraphs(text))


def _code(text: str) -> Iterator[tuple[int, int]]:
    """Definitions at the left margin; within them, what blank lines divide, then lines."""
    yield from ((match.end(), int(Rank.SENTENCE)) for match in _LINE.finditer(text))
    for match in _BLANK_LINES.finditer(text):
        # The line's own indentation belongs to it.
        yield text.rfind("\n", match.start(), match.end()) + 1, int(Rank.ITEM)
    yield from ((match.end(), int(Rank.BLOCK)) for match in _TOP_LEVEL.finditer(text))


def recognize(text: str) -> Structure:
    """What a text seems to be, by its beginning: HTML by its tags, code by what its lines end and begin with, Markdown
    by headings, lists, tables and fences; else plain."""
    seen = text[:_SEEN]
    tags = {(closing, name.lower()) for closing, name in _TAG.findall(seen)}
    if _PAGE.match(seen) or any(closing and ("", name) in tags for closing, name in tags):
        return "html"
    marked = _MARKDOWN.search(seen) is not None
    lines = [line for line in seen.splitlines() if line.strip() and not line.lstrip().startswith(_COMMENT)]
    coded = sum(_CODE_LINE.search(line) is not None for line in lines)
    if len(lines) >= _CODE_LINES and coded >= _CODE_SHARE * len(lines):
        return "code"
    return "markdown" if marked else "plain"
