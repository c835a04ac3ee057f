"""Pictures in the terminal: which way is taken where, and that what is written is what the protocol says."""

from __future__ import annotations

import base64
import re
from io import BytesIO, StringIO

import pytest
from PIL import Image as Pictures
from rich.console import Console

from pgembed.contact_sheet import Hit
from pgembed.demo.thumbnails import BLOCKS_TILE, half_blocks, iterm, kitty, protocol_of, show_hits, sixel, strip


def terminal(**options: object) -> Console:
    given: dict[str, object] = {"force_terminal": True, "color_system": "truecolor", "width": 100, "file": StringIO()}
    return Console(**{**given, "_environ": {}, **options})  # type: ignore[arg-type]


def picture(size: tuple[int, int] = (30, 30), colour: str = "red") -> Pictures.Image:
    return Pictures.new("RGB", size, colour)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"TERM": "xterm-kitty", "KITTY_WINDOW_ID": "1"}, "kitty"),
        ({"TERM": "xterm-ghostty", "TERM_PROGRAM": "ghostty"}, "kitty"),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "iTerm.app"}, "iterm"),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "WezTerm"}, "iterm"),
        ({"TERM": "foot"}, "sixel"),
        ({"TERM": "xterm-256color"}, "blocks"),
        ({"TERM": "tmux-256color", "TMUX": "/tmp/tmux", "KITTY_WINDOW_ID": "1"}, "blocks"),
    ],
)
def test_the_terminal_says_what_it_shows(environment: dict[str, str], expected: str) -> None:
    assert protocol_of(terminal(), environment) == expected


@pytest.mark.parametrize(
    "console",
    [
        terminal(force_terminal=False),
        terminal(no_color=True),
        terminal(color_system=None),
        terminal(color_system="standard"),
        terminal(_environ={"TERM": "dumb"}),
    ],
)
def test_no_pictures_where_they_would_be_noise(console: Console) -> None:
    assert protocol_of(console, {"TERM": "xterm-256color"}) is None


def test_without_a_terminal_there_are_captions_alone() -> None:
    console = terminal(force_terminal=False, color_system=None)
    show_hits(console, [Hit(b"", "a [bold] cat", 0.5), Hit(None, "a dog")])
    assert console.file.getvalue() == "  0.500  a [bold] cat\n  a dog\n"  # type: ignore[attr-defined]


def test_half_blocks_show_two_lines_of_pixels_in_one() -> None:
    two = Pictures.new("RGBA", (1, 2), (255, 0, 0, 255))
    two.putpixel((0, 1), (0, 0, 255, 255))
    block, line = half_blocks(two).segments
    assert (block.text, line.text) == ("▀", "\n")
    assert block.style is not None
    assert block.style.color is not None
    assert block.style.bgcolor is not None
    assert block.style.color.get_truecolor() == (255, 0, 0)
    assert block.style.bgcolor.get_truecolor() == (0, 0, 255)


def test_a_strip_is_as_wide_as_its_pictures_and_clear_between_them() -> None:
    whole = strip([picture(), None, picture((60, 20))], (10, 5), (1, 2))
    assert whole.size == (3 * 10 + 2 * 2, 2 * 5)
    assert whole.getpixel((10, 0))[3] == 0  # type: ignore[index]


def test_kitty_chunks_hold_the_whole_picture() -> None:
    noise = Pictures.effect_noise((200, 60), 90).convert("RGBA")
    written = kitty(noise, 20, 3)
    sequences = re.findall(r"\x1b_G([^;]*);([^\x1b]*)\x1b\\", written)
    assert all(len(data) <= 4096 for _, data in sequences)
    assert "c=20,r=3" in sequences[0][0]
    assert [control.endswith("m=1") for control, _ in sequences] == [True] * (len(sequences) - 1) + [False]
    shown = Pictures.open(BytesIO(base64.b64decode("".join(data for _, data in sequences))))
    assert shown.tobytes() == noise.tobytes()


def test_iterm_is_one_inline_file() -> None:
    match = re.fullmatch(r"\x1b\]1337;File=inline=1;width=20;height=3;[^:]*:(.*)\x07", iterm(picture(), 20, 3))
    assert match is not None
    assert Pictures.open(BytesIO(base64.b64decode(match[1]))).size == (30, 30)


def test_sixel_draws_the_same_picture() -> None:
    drawn = Pictures.new("RGBA", (10, 13), (255, 0, 0, 255))
    drawn.paste((0, 0, 255, 255), (3, 2, 7, 11))
    drawn.putpixel((0, 0), (0, 0, 0, 0))
    assert decode_sixel(sixel(drawn)) == {
        (x, y): drawn.getpixel((x, y))[:3]  # type: ignore[index]
        for x in range(10)
        for y in range(13)
        if (x, y) != (0, 0)
    }


def decode_sixel(data: str) -> dict[tuple[int, int], tuple[int, int, int]]:
    """A reader of sixel written for this test from the standard's words."""
    body = data.removeprefix("\x1bP0;1;0q").removesuffix("\x1b\\")
    palette: dict[int, tuple[int, int, int]] = {}
    pixels: dict[tuple[int, int], tuple[int, int, int]] = {}
    x = top = colour = 0
    for token in re.findall(r'"[\d;]+|#\d+;2;\d+;\d+;\d+|#\d+|!\d+.|[$-]|[?-~]', body):
        if token[0] == '"':
            continue
        if ";2;" in token:
            number, _, *channels = (int(part) for part in token[1:].split(";"))
            palette[number] = tuple(round(channel * 255 / 100) for channel in channels)  # type: ignore[assignment]
        elif token[0] == "#":
            colour = int(token[1:])
        elif token == "$":
            x = 0
        elif token == "-":
            x, top = 0, top + 6
        else:
            count = int(token[1:-1]) if token[0] == "!" else 1
            for column in range(x, x + count):
                for bit in range(6):
                    if (ord(token[-1]) - 63) >> bit & 1:
                        pixels[column, top + bit] = palette[colour]
            x += count
    return pixels


def test_hits_are_shown_with_captions_below_them(monkeypatch: pytest.MonkeyPatch) -> None:
    data = BytesIO()
    picture().save(data, "PNG")
    monkeypatch.setattr("os.environ", {"TERM": "xterm-256color"})
    console = terminal(width=2 * BLOCKS_TILE[0] + 2, _environ={"TERM": "xterm-256color"})
    show_hits(console, [Hit(data.getvalue(), "one", 0.9), Hit(b"broken", "two", 0.8), Hit(None, "three")])
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "one" in text
    assert "two" in text
    assert "three" not in text  # no room for a third
    assert "▀" in text
