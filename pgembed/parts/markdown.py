"""The headings and blocks of Markdown, by their places in its source."""

from __future__ import annotations

import re

from markdown_it import MarkdownIt

from pgembed.parts.outline import Heading, Rank

_NEWLINE = re.compile(r"\r\n?|\n")  # as markdown-it counts lines
_NOT_NEWLINE = re.compile(r"[^\r\n]+")
_FRONT = re.compile(r"\A---[ \t]*\r?\n(?:[^\n]*\n){0,200}?---[ \t]*\r?\n")
_TITLE = re.compile(r"^title:[ \t]*(\S.*?)\s*$", re.MULTILINE)
_BLOCKS = {
    "paragraph_open", "fence", "code_block", "blockquote_open", "bullet_list_open", "ordered_list_open", "table_open",
    "html_block", "hr",
}  # fmt: skip
_ITEMS = {"list_item_open", "tr_open"}


def markdown(text: str) -> tuple[list[Heading], list[tuple[int, int]], str | None]:
    """Headings, where blocks start with their ranks, and the title of the front matter, where there is one."""
    parser = MarkdownIt("commonmark").enable("table").disable(["inline", "text_join", "reference"])
    front = _FRONT.match(text)
    title = front and _TITLE.search(front[0])
    lines = [0, *(match.end() for match in _NEWLINE.finditer(text))]
    headings: list[Heading] = []
    places: list[tuple[int, int]] = []
    glued = False  # a heading came right before
    # Front matter is no Markdown: its lines are empty to the parser.
    tokens = parser.parse(_NOT_NEWLINE.sub("", front[0]) + text[front.end() :] if front else text)
    for number, token in enumerate(tokens):
        if token.map is None:
            continue
        place = lines[min(token.map[0], len(lines) - 1)]
        if token.type == "heading_open" and token.level == 0:
            level = int(token.tag[1:])
            headings.append(Heading(place, level, " ".join(tokens[number + 1].content.split())))
            if not glued:
                places.append((place, level))
            glued = True
        elif token.type in _ITEMS or (token.type in _BLOCKS and token.level > 0):
            if not glued:
                places.append((place, int(Rank.ITEM)))
            glued = False
        elif token.type in _BLOCKS:
            if not glued:
                places.append((place, int(Rank.BLOCK)))
            if not token.type.endswith("list_open"):
                glued = False
    return headings, places, title[1].strip("\"' ") if title else None
