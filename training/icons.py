"""Drawings of emoji and things by many hands: icon sets under open licences, all from one npm package.

A set is used only where its own ``info`` names one of ``LICENCES``. OpenMoji's set and those drawn after it are never
unpacked. A picture belongs to an emoji where its code point or its name says so; else its name is its caption.
"""

from __future__ import annotations

import functools
import io
import json
import re
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from pgembed.encoders.builtin import on_white
from training.drawings import Emoji, emoji
from training.paths import WORK, npm

PACKAGE = "@iconify/json@2.2.535"
LICENCES = ("Apache-2.0", "MIT", "ISC", "CC0-1.0", "CC-BY-3.0", "CC-BY-4.0")
VENDORS = (
    "noto", "twemoji", "fluent-emoji-flat", "noto-v1", "emojione", "emojione-monotone", "fluent-emoji-high-contrast",
    "streamline-emojis",
)  # fmt: skip
HELD_OUT = "fxemoji"  # a vendor that is never trained on: what choices are made by
FLAGS = ("circle-flags", "flag", "flagpack", "cif")  # named by the code of the country
THINGS = (
    "game-icons", "icon-park", "flat-color-icons", "streamline-ultimate-color", "streamline-plump-color",
    "streamline-freehand-color", "streamline-kameleon-color", "streamline-color", "glyphs-poly", "mdi",
)  # fmt: skip
SIDE = 128  # pixels kept
STYLE = re.compile(
    r"-(outline|outlined|filled|fill|bold|thin|light|duotone|line|flat|solid|negative|alt|duo|\d+(px|x\d+)?)$"
)
TONES = re.compile(r"-((medium-)?(light|dark)|medium)$")


@dataclass(frozen=True)
class Set:
    """Drawings of one set: what each is of, and its pixels ``(n, 128, 128, 3) uint8``."""

    name: str
    subjects: list[Emoji]
    pixels: np.ndarray


def plain(name: str) -> str:
    """A name as it is compared: letters and digits only."""
    return re.sub("[^a-z0-9]", "", name.lower().replace("flag-for-", "flag-").replace("&", "and"))


@functools.cache
def by_name() -> dict[str, Emoji]:
    """Emoji by their names, as they are compared."""
    return {plain(one.name): one for one in emoji().values()}


@functools.cache
def spoken() -> frozenset[str]:
    """The words of which emoji's names and search words are made."""
    return frozenset(
        word for one in emoji().values() for text in (one.name, *one.tags) for word in re.findall("[a-z]+", text)
    )


def subject(set_name: str, icon: str, codes: dict[str, str]) -> Emoji | None:
    """What an icon is of; None where its name says nothing that training could use."""
    if icon in codes and (found := emoji().get(codes[icon].lower().replace("-fe0f", ""))):
        return found
    if set_name in FLAGS:
        country = icon.removesuffix("-4x3")
        return emoji().get("-".join(f"{ord(c) - 97 + 0x1F1E6:x}" for c in country)) if len(country) == 2 else None
    names = by_name()
    if found := names.get(plain(icon)) or names.get(plain(TONES.sub(r"-\1-skin-tone", icon))):
        return found
    if set_name in (*VENDORS, HELD_OUT) and set_name != "streamline-emojis":
        return None
    while (shorter := STYLE.sub("", icon)) != icon:
        icon = shorter
    if found := names.get(plain(icon)) or (set_name in VENDORS and names.get(plain(f"flag-{icon}"))):
        return found
    words = icon.split("-")
    if len(words) > 3 or not all(word in spoken() for word in words) or len(icon) < 3:
        return None
    return Emoji(f"word:{' '.join(words)}", " ".join(words), (), False)


def unpacked(name: str) -> Path:
    """One set's file, taken out of the package."""
    file = WORK / "icons" / f"{name}.json"
    if not file.exists():
        with tarfile.open(npm(PACKAGE, WORK / "icons")) as archive:
            for each in (*VENDORS, HELD_OUT, *FLAGS, *THINGS):
                member = archive.extractfile(f"package/json/{each}.json")
                assert member is not None
                (WORK / "icons" / f"{each}.json").write_bytes(member.read())
    return file


def drawn(svg: str) -> np.ndarray:
    """An icon on white: ``(128, 128, 3) uint8``."""
    import resvg_py

    picture = Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=svg, skip_system_fonts=True))))
    picture = ImageOps.contain(on_white(picture), (SIDE, SIDE), Image.Resampling.BICUBIC)
    square = Image.new("RGB", (SIDE, SIDE), "white")
    square.paste(picture, ((SIDE - picture.width) // 2, (SIDE - picture.height) // 2))
    return np.asarray(square)


def _icons(name: str) -> Iterator[tuple[Emoji, str]]:
    kept = json.loads(unpacked(name).read_text())
    if kept["info"]["license"]["spdx"] not in LICENCES:
        raise ValueError(f"The licence of the icon set {name} is {kept['info']['license']}, which is not open enough.")
    codes = {icon: code for code, icon in kept.get("chars", {}).items()} if name in VENDORS else {}
    seen: set[str] = set()
    for icon, entry in sorted(kept["icons"].items(), key=lambda item: (len(item[0]), item[0])):
        one = subject(name, icon, codes)
        if one is None or (name in THINGS and one.id in seen and not STYLE.search(icon)):
            continue
        seen.add(one.id)
        width, height = (entry.get(side, kept.get(side, 16)) for side in ("width", "height"))
        box = f"{entry.get('left', 0)} {entry.get('top', 0)} {width} {height}"
        scale = SIDE * 1.25 / max(width, height)
        yield (
            one,
            (
                f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="{box}" '
                f'width="{width * scale:.0f}" height="{height * scale:.0f}">{entry["body"]}</svg>'
            ),
        )


def load(name: str) -> Set:
    """One set, drawn once and kept in the working folder."""
    file = WORK / "icons" / f"{name}.npy"
    about = file.with_suffix(".subjects.json")
    if not file.exists():
        subjects, pixels = [], []
        for one, svg in _icons(name):
            try:
                pixels.append(drawn(svg))
            except (ValueError, OSError) as error:
                print(f"icons {name}: {one.name} cannot be drawn: {error}", file=sys.stderr)
                continue
            subjects.append(one)
        about.write_text(json.dumps([[one.id, one.name] for one in subjects]))
        np.save(file.with_suffix(".part.npy"), np.stack(pixels))
        file.with_suffix(".part.npy").rename(file)
        print(f"icons {name}: {len(subjects)} drawn", file=sys.stderr)
    known = emoji()
    subjects = [known.get(key) or Emoji(key, name, (), False) for key, name in json.loads(about.read_text())]
    return Set(name, subjects, np.load(file, mmap_mode="r"))


def sets() -> list[Set]:
    """All sets that are trained on."""
    return [load(name) for name in (*VENDORS, *FLAGS, *THINGS)]
