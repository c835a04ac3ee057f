"""What is measured while choosing: a vendor never trained on. Openmoji is for ``benchmarks.encoder_quality``."""

from __future__ import annotations

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


def by_name(drawings: nn.Module, tower: nn.Module, words: Words, held_out: Set) -> str:
    """Name -> picture among the pictures of one set, skin tones left out."""
    plain = [row for row, one in enumerate(held_out.subjects) if not one.toned]
    pixels = np.stack([preprocess(Image.fromarray(held_out.pixels[row])) for row in plain])
    scores = words([held_out.subjects[row].name for row in plain]) @ vectors(drawings, tower, pixels).T
    rank = (scores > scores.diagonal()[:, None]).sum(axis=1)
    return f"{len(plain)} pictures left out: name -> picture R@1={(rank < 1).mean():.3f} R@10={(rank < 10).mean():.3f}"
