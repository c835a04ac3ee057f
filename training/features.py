"""The tower's features of every picture that training uses, computed once and kept.

One file a vendor and copy, so that a run that was cut off goes on where it stopped.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
import onnxruntime
import torch
from PIL import Image
from torch import nn

from pgembed.encoders.builtin import preprocess
from training import icons, photographs
from training.drawings import VENDORS, Emoji, changed, drawings, emoji, pixels
from training.export import export_features
from training.network import imagenet_tower
from training.paths import WORK

T = TypeVar("T")
COPIES, TONED_COPIES, BATCH = 2, 0, 8  # changed copies of an emoji, and of one with a skin tone
SET_COPIES = 2  # of an emoji of an icon set
SETS = tuple(
    name
    for name in (*icons.VENDORS, *icons.FLAGS, *icons.THINGS)
    if name not in ("noto", "twemoji", "fluent-emoji-flat")
)  # the three are among the vendors


def session(tower: nn.Module, name: str) -> onnxruntime.InferenceSession:
    """The tower alone, in ONNX: several times faster than torch on a processor, and rounded as it will ship."""
    file = WORK / name / "features.onnx"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        export_features(tower, file)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])


def run(tower: onnxruntime.InferenceSession, pictures: np.ndarray) -> np.ndarray:
    """``(n, 224, 224, 3) uint8`` -> ``(n, 1280) float16``."""
    return tower.run(None, {"pixels": pictures})[0].astype(np.float16)


def batches(items: Iterable[T], size: int = BATCH) -> Iterator[list[T]]:
    """The items in lists of at most ``size``."""
    rest = iter(items)
    while batch := list(islice(rest, size)):
        yield batch


def _kept(file: Path, parts: Iterable[np.ndarray], of: int) -> np.ndarray:
    if not file.exists():
        done, out = 0, []
        for part in parts:
            out.append(part)
            done += len(part)
            print(f"\rfeatures {file.stem}: {done}/{of}", end="", file=sys.stderr)
        print(file=sys.stderr)
        file.parent.mkdir(parents=True, exist_ok=True)
        np.save(file.with_suffix(".part.npy"), np.concatenate(out))
        file.with_suffix(".part.npy").rename(file)
    return np.load(file, mmap_mode="r")


def of_drawings(name: str = "imagenet", few: int | None = None) -> list[tuple[list[Emoji], np.ndarray]]:
    """For every vendor and copy: the emoji, and their features ``(n, 1280) float16``. Copy 0 is unchanged.

    ``few`` takes so many of each, as a quick run does; these are kept under another name.
    """
    tower, out = session(imagenet_tower(), name), []
    for copy in range(COPIES + 1):
        for number, vendor in enumerate(VENDORS):
            chosen = [(e, file) for e, file in drawings(vendor) if not e.toned or copy <= TONED_COPIES][:few]
            generator = torch.Generator().manual_seed(100 * copy + number)

            def parts(chosen=chosen, copy=copy, generator=generator) -> Iterable[np.ndarray]:
                for batch in batches(chosen):
                    pictures = pixels([file for _, file in batch])
                    yield run(tower, changed(pictures, generator) if copy else pictures)

            file = WORK / name / f"{vendor}_{copy}{_few(few)}.npy"
            out.append(([e for e, _ in chosen], _kept(file, parts(), len(chosen))))
    return out


def of_sets(name: str = "imagenet", few: int | None = None) -> list[tuple[list[Emoji], np.ndarray]]:
    """The same for the emoji without skin tone among the icon sets."""
    tower, out = session(imagenet_tower(), name), []
    for copy in range(SET_COPIES + 1):
        for number, each in enumerate(map(icons.load, SETS)):
            rows = [row for row, one in enumerate(each.subjects) if one.id in emoji() and not one.toned][:few]
            generator = torch.Generator().manual_seed(100 * copy + 50 + number)

            def parts(each=each, rows=rows, copy=copy, generator=generator) -> Iterable[np.ndarray]:
                for batch in batches(rows):
                    pictures = np.stack([preprocess(Image.fromarray(each.pixels[row])) for row in batch])
                    yield run(tower, changed(pictures, generator) if copy else pictures)

            file = WORK / name / f"set_{each.name}_{copy}{_few(few)}.npy"
            out.append(([each.subjects[row] for row in rows], _kept(file, parts(), len(rows))))
    return out


def _few(few: int | None) -> str:
    return "" if few is None else f"_of_{few}"


def of_photographs(name: str = "imagenet") -> np.ndarray:
    """The features of the photographs' cuts ``(n, 1280) float16``."""
    tower = session(imagenet_tower(), name)
    parts = (run(tower, np.stack(batch)) for batch in batches(photographs.cuts()))
    return _kept(WORK / name / "photographs.npy", parts, len(photographs.files()) * photographs.CUTS)
