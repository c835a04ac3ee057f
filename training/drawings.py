"""The drawings that training sees: emoji of three vendors, with CLDR's names and search words, and changed copies.

Openmoji's pictures, names and tags are never read here: they are what the result is measured on. An emoji's id is its
code points without FE0F, as the pictures are named.
"""

from __future__ import annotations

import functools
import json
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from pgembed.encoders.builtin import preprocess
from training.paths import data, emojibase

VENDORS = ("noto", "twemoji", "fluent")  # Apache-2.0, CC-BY-4.0, MIT
ALL_TONES = range(1, 6)


@dataclass(frozen=True)
class Emoji:
    """One emoji with what Unicode calls it."""

    id: str
    name: str
    tags: tuple[str, ...]
    toned: bool


@functools.cache
def emoji() -> dict[str, Emoji]:
    """Every emoji of CLDR by id."""
    found = {}
    for entry in json.loads(emojibase().read_text()):
        tags = tuple(entry.get("tags", ()))
        for each in (entry, *entry.get("skins", ())):
            key = each["hexcode"].lower().replace("-fe0f", "")
            found[key] = Emoji(key, each["label"].lower(), tags, each is not entry)
    return found


def drawings(vendor: str) -> list[tuple[Emoji, Path]]:
    """The pictures of one vendor whose emoji CLDR knows, in a fixed order."""
    known = emoji()
    files = sorted((data() / "emoji" / vendor).glob("*.png"))
    return [(known[file.stem], file) for file in files if file.stem in known]


def caption(one: Emoji, rng: random.Random) -> str:
    """What somebody may call it: its name, some of its tags, or both."""
    chance = rng.random()
    if chance < 0.6 or not one.tags:
        return one.name
    tags = " ".join(rng.sample(one.tags, min(len(one.tags), rng.randint(1, 3))))
    return tags if chance < 0.85 else f"{one.name} {tags}"


def pixels(files: list[Path]) -> np.ndarray:
    """The pictures as the encoder sees them: ``(n, 224, 224, 3) uint8``."""
    return np.stack([preprocess(Image.open(file)) for file in files])


def changed(pictures: np.ndarray, generator: torch.Generator) -> np.ndarray:
    """A copy of each, moved, turned, recoloured, on another ground, or redrawn as dark edges over faded fills."""
    x = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255
    n = len(x)
    some = lambda *shape: torch.rand(shape, generator=generator)  # noqa: E731
    angle, scale = (some(n) - 0.5) * 0.5, 1 + (some(n) - 0.4) * 0.5
    cos, sin, shift = torch.cos(angle) * scale, torch.sin(angle) * scale, (some(n, 2) - 0.5) * 0.25
    theta = torch.stack(
        [torch.stack([cos, -sin, shift[:, 0]], 1), torch.stack([sin, cos, shift[:, 1]], 1)], 1
    )  # fmt: skip
    x = 1 - F.grid_sample(1 - x, F.affine_grid(theta, list(x.shape), align_corners=False), align_corners=False)
    step = x.shape[-1] // 64
    edge = (x - x.roll(step, 3)).abs().amax(1, True) + (x - x.roll(step, 2)).abs().amax(1, True)
    drawn, fade = (some(n, 1, 1, 1) < 0.3).float(), some(n, 1, 1, 1)
    x = x * (1 - drawn) + drawn * (x * (1 - fade) + fade) * (1 - (3 * edge).clamp(0, 1))
    ground = (x.min(1, True).values > 0.96).float() * (some(n, 1, 1, 1) < 0.25).float()
    x = x * (1 - ground) + some(n, 3, 1, 1) * ground
    x = (x + (some(n, 1, 1, 1) - 0.5) * 0.2) * (0.8 + 0.4 * some(n, 1, 1, 1))
    grey = x.mean(1, True)
    x = (grey + (x - grey) * (0.3 + 1.2 * some(n, 1, 1, 1))).clamp(0, 1)
    return (x * 255).round().byte().permute(0, 2, 3, 1).contiguous().numpy()
