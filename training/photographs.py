"""Photographs that teach the gate what a photograph is: desktop backgrounds of Debian and scikit-learn's two.

They are no more than about fifty landscapes, flowers and animals, so each gives many cuts of all sizes; they decide
nothing but the gate's 1,281 numbers, and none of them ships. The 238 photographs of the data folder are never read.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from training.drawings import _ANY, LiteEncoder
from training.paths import WORK, missing

PACKAGES = {
    "mate-backgrounds": ("usr/share/backgrounds/mate/nature/*.jpg",),
    "lomiri-wallpapers-16.04": ("usr/share/backgrounds/*.jpg",),
    "lomiri-wallpapers-20.04": ("usr/share/backgrounds/*.jpg",),
    "palapeli-data": ("usr/share/palapeli/collection/*.jpg",),
}
CUTS = 40


def files() -> list[Path]:
    """The photographs, fetched and unpacked once."""
    found: list[Path] = []
    for package, patterns in PACKAGES.items():
        folder = WORK / "photographs" / package
        if not folder.is_dir():
            folder.parent.mkdir(parents=True, exist_ok=True)
            got = subprocess.run(["apt-get", "download", package], cwd=folder.parent, capture_output=True, text=True)
            if got.returncode:
                missing(f"the Debian package {package}", got.stderr.strip())
            archive = next(folder.parent.glob(f"{package}_*.deb"))
            subprocess.run(["dpkg-deb", "-x", str(archive), str(folder)], check=True)
        found += [file for pattern in patterns for file in sorted(folder.glob(pattern))]
    import sklearn.datasets

    return found + sorted((Path(sklearn.datasets.__file__).parent / "images").glob("*.jpg"))


def cuts(seed: int = 0) -> Iterator[np.ndarray]:
    """From each photograph, square cuts from a tenth of its shorter side to all of it, some turned around."""
    rng = np.random.default_rng(seed)
    for file in files():
        picture = Image.open(file).convert("RGB")
        picture.thumbnail((1600, 1600))
        for _ in range(CUTS):
            side = int(min(picture.size) * rng.uniform(0.1, 1) ** 0.5)
            left, top = (int(rng.integers(0, length - side + 1)) for length in picture.size)
            cut = picture.crop((left, top, left + side, top + side))
            if rng.random() < 0.5:
                cut = cut.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            yield LiteEncoder.preprocess(_ANY, cut.resize((256, 256), Image.Resampling.BICUBIC))
