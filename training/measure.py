"""What is measured while choosing: a vendor that this run left out. Openmoji is for ``benchmarks.encoder_quality``."""

from __future__ import annotations

import numpy as np
import torch

from training.drawings import Emoji
from training.network import Head
from training.words import Words


def held_out(head: Head, words: Words, pictures: tuple[list[Emoji], np.ndarray]) -> str:
    """Name -> picture among the pictures of one vendor, skin tones left out of both sides."""
    plain = [row for row, one in enumerate(pictures[0]) if not one.toned]
    with torch.no_grad():
        vectors = head(torch.from_numpy(np.asarray(pictures[1][plain], dtype=np.float32))).numpy()
    scores = words([pictures[0][row].name for row in plain]) @ vectors.T
    rank = (scores > scores.diagonal()[:, None]).sum(axis=1)
    return f"{len(plain)} pictures left out: name -> picture R@1={(rank < 1).mean():.3f} R@10={(rank < 10).mean():.3f}"
