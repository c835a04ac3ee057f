"""Results in the terminal: a strip of pictures where it can show them, and their captions.

Terminals that draw pixels say so in the environment; any other that has colours gets half blocks, two pixels a
character. Where the output is no terminal, or NO_COLOR is set, there are captions alone.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import TYPE_CHECKING, Literal

import numpy as np
from PIL import Image, ImageOps
from rich.color import Color
from rich.console import Console
from rich.segment import Segment, Segments
from rich.style import Style
from rich.table import Table

from pgembed.contact_sheet import Hit, thumbnail_or_none

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

Protocol = Literal["kitty", "iterm", "sixel", "blocks"]

TILE = (14, 7)  # columns and rows of characters that one picture takes
BLOCKS_TILE = (20, 10)  # the same where half blocks must show it: few pixels, so more room
GAP = 2  # columns between pictures
CELL = (10, 20)  # pixels that one character is taken to have, where pixels are drawn
KITTY_CHUNK = 4096  # characters of base64 that one escape sequence may hold
SIXEL_TERMINALS = ("foot", "mlterm", "contour", "yaft", "sixel")


def protocol_of(console: Console, environment: Mapping[str, str] | None = None) -> Protocol | None:
    """How pictures can be shown on this console, or None."""
    known = os.environ if environment is None else environment
    if not console.is_terminal or console.no_color or console.is_dumb_terminal or console.color_system is None:
        return None
    term, program = known.get("TERM", ""), known.get("TERM_PROGRAM", "")
    if "TMUX" in known or term.startswith(("tmux", "screen")):  # pass no pixel protocol on by default
        return _blocks(console)
    if "KITTY_WINDOW_ID" in known or "kitty" in term or program == "ghostty" or "ghostty" in term:
        return "kitty"
    if program in {"iTerm.app", "WezTerm", "mintty", "WarpTerminal"}:
        return "iterm"
    if any(name in term for name in SIXEL_TERMINALS):
        return "sixel"
    return _blocks(console)


def show_hits(console: Console, hits: Sequence[Hit]) -> None:
    """Print the first hits side by side, as many as fit: pictures where they can be shown, scores and captions."""
    protocol = protocol_of(console)
    if protocol is None:
        _print_list(console, hits)
        return
    columns = (BLOCKS_TILE if protocol == "blocks" else TILE)[0]
    shown = hits[: max(1, (console.width + GAP) // (columns + GAP))]
    if any(hit.picture is not None for hit in shown):
        _print_strip(console, [thumbnail_or_none(hit.picture) for hit in shown], protocol)
    captions = Table.grid(padding=(0, GAP, 0, 0))
    for _ in shown:
        captions.add_column(width=columns, overflow="ellipsis", vertical="top")
    captions.add_row(*(_escaped(hit.caption) for hit in shown))
    captions.add_row(*("" if hit.score is None else f"[dim]{hit.score:.3f}[/]" for hit in shown))
    console.print(captions)


def _print_list(console: Console, hits: Sequence[Hit]) -> None:
    for hit in hits:
        score = "" if hit.score is None else f"{hit.score:.3f}  "
        console.print(f"  {score}{hit.caption}", markup=False, highlight=False)


def _print_strip(console: Console, pictures: Sequence[Picture | None], protocol: Protocol) -> None:
    if protocol == "blocks":
        console.print(half_blocks(strip(pictures, BLOCKS_TILE, (1, 2))), end="")
        return
    columns, rows = len(pictures) * (TILE[0] + GAP) - GAP, TILE[1]
    pixels = strip(pictures, TILE, CELL)
    # Written past rich, which would count the letters of an escape sequence as text.
    match protocol:
        case "kitty":
            console.file.write(kitty(pixels, columns, rows) + "\n")
        case "iterm":
            console.file.write(iterm(pixels, columns, rows) + "\n")
        case "sixel":
            console.file.write(sixel(pixels) + "\n")
    console.file.flush()


def strip(pictures: Sequence[Picture | None], tile: tuple[int, int], cell: tuple[int, int]) -> Picture:
    """The pictures side by side, transparent between them (RGBA); ``cell`` is the pixels of one character."""
    width, height, gap = tile[0] * cell[0], tile[1] * cell[1], GAP * cell[0]
    whole = Image.new("RGBA", (len(pictures) * (width + gap) - gap, height))
    for number, picture in enumerate(pictures):
        if picture is not None:
            fitted = ImageOps.contain(picture, (width, height), Image.Resampling.LANCZOS)
            left = number * (width + gap) + (width - fitted.width) // 2
            whole.paste(fitted, (left, (height - fitted.height) // 2))
    return whole


def half_blocks(picture: Picture) -> Segments:
    """One line of characters for two lines of pixels: the upper as colour of ▀, the lower as its ground."""
    pixels = np.asarray(picture.convert("RGBA"))
    segments: list[Segment] = []
    for upper, lower in zip(pixels[::2], pixels[1::2], strict=True):
        for above, below in zip(upper.tolist(), lower.tolist(), strict=True):
            segments.append(_half_block(above, below))
        segments.append(Segment.line())
    return Segments(segments)


def kitty(picture: Picture, columns: int, rows: int) -> str:
    """The kitty graphics protocol: PNG in chunks, scaled to so many characters."""
    data = _png(picture)
    chunks = [data[start : start + KITTY_CHUNK] for start in range(0, len(data), KITTY_CHUNK)]
    sequences: list[str] = []
    for number, chunk in enumerate(chunks):
        first = f"a=T,f=100,q=2,c={columns},r={rows}," if number == 0 else ""
        more = int(number < len(chunks) - 1)
        sequences.append(f"\x1b_G{first}m={more};{chunk}\x1b\\")
    return "".join(sequences)


def iterm(picture: Picture, columns: int, rows: int) -> str:
    """The inline pictures of iTerm2, which WezTerm and others know too."""
    return f"\x1b]1337;File=inline=1;width={columns};height={rows};preserveAspectRatio=1:{_png(picture)}\x07"


def sixel(picture: Picture) -> str:
    """DEC's sixel: a palette, then bands of six lines, in each one pass a colour, runs shortened."""
    alpha = np.asarray(picture.getchannel("A")) > 127
    flat = picture.convert("RGB").quantize(255, dither=Image.Dither.NONE)
    palette = flat.getpalette() or []
    indices = np.where(alpha, np.asarray(flat, dtype=np.int16), -1)
    height, width = indices.shape
    out = [f'\x1bP0;1;0q"1;1;{width};{height}']  # the second 1: pixels that are not named stay as they are
    for colour in range(len(palette) // 3):
        red, green, blue = (round(channel * 100 / 255) for channel in palette[3 * colour : 3 * colour + 3])
        out.append(f"#{colour};2;{red};{green};{blue}")
    bits = 1 << np.arange(6)
    for top in range(0, height, 6):
        band = indices[top : top + 6]
        passes: list[str] = []
        for colour in np.unique(band[band >= 0]).tolist():
            columns = ((band == colour) * bits[: len(band), None]).sum(axis=0) + 63
            passes.append(f"#{colour}{_runs(columns.tolist())}")
        out.append("$".join(passes) + "-")
    return "".join(out) + "\x1b\\"


def _runs(values: Sequence[int]) -> str:
    out: list[str] = []
    start = 0
    for end in range(1, len(values) + 1):
        if end == len(values) or values[end] != values[start]:
            length = end - start
            out.append(f"!{length}{chr(values[start])}" if length > 3 else chr(values[start]) * length)
            start = end
    return "".join(out)


def _half_block(above: Sequence[int], below: Sequence[int]) -> Segment:
    shown_above, shown_below = above[3] > 127, below[3] > 127
    if shown_above and shown_below:
        return Segment("▀", Style(color=_colour(above), bgcolor=_colour(below)))
    if shown_above:
        return Segment("▀", Style(color=_colour(above)))
    if shown_below:
        return Segment("▄", Style(color=_colour(below)))
    return Segment(" ")


def _colour(pixel: Sequence[int]) -> Color:
    return Color.from_rgb(pixel[0], pixel[1], pixel[2])


def _png(picture: Picture) -> str:
    data = BytesIO()
    picture.save(data, "PNG")
    return base64.b64encode(data.getvalue()).decode("ascii")


def _blocks(console: Console) -> Protocol | None:
    return "blocks" if console.color_system in {"truecolor", "256"} else None


def _escaped(text: str) -> str:
    return text.replace("[", r"\[")
