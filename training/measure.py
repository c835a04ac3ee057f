"""What is measured while choosing: a vendor never trained on. Openmoji is for ``benchmarks.encoder_quality``."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import nn

from pgembed.encoders.builtin import preprocess
from training.icons import Set
from training.network import features
from training.words import Words

BATCH = 8


def vectors(drawings: nn.Module, tower: nn.Module, pixels: np.ndarray) -> np.ndarray:
    """Pictures ``(n, 224, 224, 3) uint8`` -> their vectors as of drawings ``(n, 256)``."""
    out = []
    with torch.no_grad():
        for start in range(0, len(pixels), BATCH):
            batch = torch.from_numpy(pixels[start : start + BATCH])
            out.append(drawings(batch, features(tower, batch)).numpy())
    return np.concatenate(out)


@dataclass(frozen=True)
class HeldOut:
    """The pictures of one set, skin tones left out, ``(n, 224, 224, 3) uint8``, and their names."""

    pixels: np.ndarray
    names: list[str]

    @classmethod
    def of(cls, held_out: Set) -> HeldOut:
        """Those of a set."""
        plain = [row for row, one in enumerate(held_out.subjects) if not one.toned]
        pixels = np.stack([preprocess(Image.fromarray(held_out.pixels[row])) for row in plain])
        return cls(pixels, [held_out.subjects[row].name for row in plain])

    def recall(self, words: Words, pictures: np.ndarray, k: int = 1) -> float:
        """Name -> picture: the share of names whose own picture is among the first k."""
        scores = words(self.names) @ pictures.T
        return float(((scores > scores.diagonal()[:, None]).sum(axis=1) < k).mean())
