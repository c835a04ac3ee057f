"""Photographs that teach the gate what a photograph is: under CC0, CC-BY or in the public domain.

They are some twenty landscapes, textures, people and things, so each gives many cuts of all sizes. They decide nothing
but the gate's 1,281 numbers. The 238 photographs of the data folder are never read: they are for measuring.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from training.drawings import preprocess
from training.paths import WORK, missing

BACKGROUNDS = "lomiri-wallpapers-16.04"  # a Debian package; these ten of its photographs are not share-alike
CHOSEN = (
    "aitzgorri_by_Aitzol_Berasategi", "friends_by_Aitzol_Berasategi", "life_by_Aitzol_Berasategi",
    "picosdeeuropa_by_Aitzol_Berasategi", "sunset_by_Aitzol_Berasategi", "Picture_0B_by_freespace",
    "Picture_1A_by_freespace", "seeding_by_Clements_Engelhardt", "umang_by_Abhishek_Mudgal", "Wine_by_Jakkub_Mede",
)  # fmt: skip
OF_SCIKIT_IMAGE = (
    "astronaut.png", "brick.png", "camera.png", "chelsea.png", "coffee.png", "grass.png", "gravel.png",
    "hubble_deep_field.jpg", "rocket.jpg",
)  # fmt: skip
OF_SCIKIT_LEARN = ("china.jpg", "flower.jpg")
CUTS = 60


def files() -> list[Path]:
    """The photographs, fetched and unpacked once."""
    import skimage
    import sklearn.datasets

    folder = WORK / "photographs" / BACKGROUNDS
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        command = ["apt-get", "download", BACKGROUNDS]
        try:
            got = subprocess.run(command, cwd=folder.parent, capture_output=True, text=True)
        except FileNotFoundError:
            missing("apt-get", f"Unpack the Debian package {BACKGROUNDS} into {folder}.")
        if got.returncode:
            missing(f"the Debian package {BACKGROUNDS}", f"Run: apt-get update. ({got.stderr.strip()})")
        archive = next(folder.parent.glob(f"{BACKGROUNDS}_*.deb"))
        subprocess.run(["dpkg-deb", "-x", str(archive), str(folder)], check=True)
    return [
        *(folder / "usr/share/backgrounds" / f"{name}.jpg" for name in CHOSEN),
        *(Path(skimage.__file__).parent / "data" / name for name in OF_SCIKIT_IMAGE),
        *(Path(sklearn.datasets.__file__).parent / "images" / name for name in OF_SCIKIT_LEARN),
    ]


def whole() -> Iterator[np.ndarray]:
    """Each photograph as the encoder would see it, ``(224, 224, 3) uint8``."""
    for file in files():
        yield preprocess(Image.open(file).convert("RGB"))


def cuts(seed: int = 0) -> Iterator[np.ndarray]:
    """From each photograph, square cuts from a third of its shorter side to all of it, some mirrored."""
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
            yield preprocess(cut.resize((256, 256), Image.Resampling.BICUBIC))
