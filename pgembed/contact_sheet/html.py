"""A contact sheet as one HTML file that needs nothing beside it."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from io import BytesIO
from typing import TYPE_CHECKING

from pgembed.contact_sheet.panel import Hit, Panel, Part, sign_of, thumbnail, thumbnail_or_none

if TYPE_CHECKING:
    from PIL.Image import Image as Picture


def to_html(panels: Sequence[Panel], title: str = "Search results") -> str:
    """The sheet as one HTML document: pictures inside it, light and dark by the reader's setting, fit to be printed."""
    body = "\n".join(_panel(panel) for panel in panels)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        f"<h1>{escape(title)}</h1>\n{body}\n</body>\n</html>\n"
    )


def _panel(panel: Panel) -> str:
    query = "".join(_part(part, first=number == 0) for number, part in enumerate(panel.query))
    pieces = [
        f"<h2>{escape(panel.title)}</h2>",
        f'<div class="query">{query}</div>' if query else "",
        f'<p class="note">{escape(panel.note)}</p>' if panel.note else "",
        '<ol class="hits">' + "".join(_hit(hit) for hit in panel.hits) + "</ol>"
        if panel.hits
        else '<p class="note">Nothing was found.</p>',
        f"<pre><code>{escape(panel.sql.strip())}</code></pre>" if panel.sql.strip() else "",
    ]
    return "<section>\n" + "\n".join(piece for piece in pieces if piece) + "\n</section>"


def _part(part: Part, *, first: bool) -> str:
    sign = sign_of(part, first=first)
    sign = f'<span class="sign">{escape(sign)}</span>' if sign else ""
    if isinstance(part.content, str):
        return f'{sign}<span class="words">{escape(part.content)}</span>'
    return f'{sign}<img src="{data_uri(thumbnail(part.content))}" alt="a picture">'


def _hit(hit: Hit) -> str:
    picture = thumbnail_or_none(hit.picture)
    caption = escape(hit.caption)
    shown = (
        f'<img src="{data_uri(picture)}" alt="{caption}" loading="lazy">'
        if picture is not None
        else f'<div class="none">{"no picture" if hit.picture is None else "cannot be shown"}</div>'
    )
    score = "" if hit.score is None else f'<div class="score">{hit.score:.3f}</div>'
    return f'<li>{shown}<div class="caption" title="{caption}">{caption}</div>{score}</li>'


def data_uri(picture: Picture) -> str:
    """A picture as a page holds it: WebP in a data: URL."""
    data = BytesIO()
    picture.save(data, "WEBP", quality=82)
    return f"data:image/webp;base64,{base64.b64encode(data.getvalue()).decode('ascii')}"


STYLE = """
:root { --ground: #f6f6f4; --card: #fff; --ink: #1c1c1a; --soft: #6b6b66; --line: #e2e2dd; --accent: #1d63b8; }
@media (prefers-color-scheme: dark) {
  :root { --ground: #171716; --card: #21211f; --ink: #ecece8; --soft: #9d9d96; --line: #363632; --accent: #84b8f5; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2.5rem 1.5rem 4rem; max-width: 76rem; background: var(--ground); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; }
h1 { margin: 0 0 1.5rem; font-size: 1.6rem; letter-spacing: -.01em; }
section { margin: 0 0 1.5rem; padding: 1.3rem 1.5rem 1.5rem; background: var(--card); border: 1px solid var(--line);
  border-radius: 14px; }
h2 { margin: 0 0 .7rem; font-size: 1.1rem; }
.query { display: flex; flex-wrap: wrap; align-items: center; gap: .6rem; margin: 0 0 1rem; }
.query img { width: 72px; height: 72px; object-fit: contain; background: #fff; border: 1px solid var(--line);
  border-radius: 10px; }
.words { padding: .3rem .8rem; border: 1px solid var(--line); border-radius: 999px; background: var(--ground); }
.sign { color: var(--accent); font-weight: 600; font-size: 1.05rem; }
.note { margin: 0 0 1rem; color: var(--soft); }
.hits { display: grid; grid-template-columns: repeat(auto-fill, minmax(118px, 1fr)); gap: 1rem .9rem; margin: 0;
  padding: 0; list-style: none; }
.hits li { min-width: 0; }
.hits img, .none { display: block; width: 100%; aspect-ratio: 1; border-radius: 10px; border: 1px solid var(--line); }
.hits img { object-fit: contain; background: var(--ground); }
.none { display: grid; place-items: center; color: var(--soft); font-size: .8rem; }
.caption { margin-top: .35rem; font-size: .82rem; line-height: 1.3; overflow: hidden; display: -webkit-box;
  -webkit-box-orient: vertical; -webkit-line-clamp: 2; overflow-wrap: break-word; }
.score { color: var(--soft); font-size: .78rem; font-variant-numeric: tabular-nums; }
pre { margin: 1.2rem 0 0; padding: .8rem 1rem; white-space: pre-wrap; overflow-wrap: anywhere;
  background: var(--ground); border-radius: 10px;
  font: 12.5px/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; }
@media print {
  :root { --ground: #fff; --card: #fff; --ink: #000; --soft: #555; --line: #ccc; --accent: #1d63b8; }
  body { max-width: none; padding: 0; font-size: 11px; }
  section { padding: 0 0 1rem; border: 0; break-inside: avoid; }
  .hits { grid-template-columns: repeat(8, 1fr); }
  pre { padding: 0; font-size: 9px; }
}
"""
