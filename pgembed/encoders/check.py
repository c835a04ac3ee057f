"""``pgembed encoder test``: encode samples and look whether what comes out can be trusted."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageOps

from pgembed.encoders.base import Encoder

TEXTS = ("a red bicycle", "a bowl of fruit", "a dog on a beach", "an old wooden door")
REPEATS = 16


@dataclass(frozen=True)
class Check:
    """One check: its name, whether it went well, and what was found."""

    name: str
    ok: bool
    found: str


def check_encoder(encoder: Encoder) -> list[Check]:
    """Checks of shape, length, determinism, difference and throughput, for each modality the encoder takes."""
    checks = [Check("spec", True, f"{encoder.spec}, fingerprint {encoder.fingerprint[:12]}")]
    if "text" in encoder.modalities:
        checks += _checks("text", encoder, lambda: encoder.encode_text(list(TEXTS)), len(TEXTS))
    for modality, encode in (("image", encoder.encode_image), ("screenshot", encoder.encode_screenshot)):
        if modality in encoder.modalities:
            pictures = _pictures()
            checks += _checks(
                modality, encoder, lambda encode=encode, pictures=pictures: encode(pictures), len(pictures)
            )
            mirrored, different = _similarities(encode([pictures[0], ImageOps.mirror(pictures[0]), pictures[1]]))
            checks.append(
                Check(
                    f"{modality}: mirrored copy nearer than another picture",
                    mirrored > different,
                    f"cosine {mirrored:.3f} against {different:.3f}",
                )
            )
    return checks


def _checks(modality: str, encoder: Encoder, encode: Callable[[], Any], count: int) -> list[Check]:
    vectors = np.asarray(encode())
    again = np.asarray(encode())
    shape = vectors.shape == (count, encoder.dim)
    checks = [Check(f"{modality}: shape", shape, f"{vectors.shape}, {encoder.dim} dimensions registered")]
    if not shape:
        return checks
    finite = bool(np.isfinite(vectors).all())
    lengths = np.linalg.norm(vectors, axis=1)
    unit = bool(np.allclose(lengths, 1, atol=1e-3)) or not encoder.normalized
    nearest = float(np.max(vectors @ vectors.T / np.outer(lengths, lengths) - 2 * np.eye(count)))
    started = time.perf_counter()
    for _ in range(REPEATS):
        encode()
    rate = REPEATS * count / (time.perf_counter() - started)
    return [
        *checks,
        Check(f"{modality}: finite", finite, "no NaN, no infinity" if finite else "NaN or infinity"),
        Check(f"{modality}: length", unit, f"{lengths.min():.4f} to {lengths.max():.4f}"),
        Check(
            f"{modality}: the same twice",
            bool(np.allclose(vectors, again, atol=1e-5)),
            f"{abs(vectors - again).max():.1e}",
        ),
        Check(f"{modality}: different inputs differ", nearest < 0.9999, f"highest cosine {nearest:.3f}"),
        Check(f"{modality}: throughput", True, f"{rate:.0f} a second in batches of {count}"),
    ]


def _pictures() -> list[Image.Image]:
    """Two drawings that nobody would confuse, neither of them symmetric."""
    tree = Image.new("RGB", (256, 256), "skyblue")
    draw = ImageDraw.Draw(tree)
    draw.rectangle((0, 200, 256, 256), fill="green")
    draw.rectangle((70, 120, 90, 210), fill="saddlebrown")
    draw.ellipse((30, 40, 130, 140), fill="darkgreen")
    words = Image.new("RGB", (256, 256), "white")
    draw = ImageDraw.Draw(words)
    for line in range(12):
        draw.text((10, 10 + 20 * line), "lorem ipsum dolor sit amet " * 2, fill="black")
    return [tree, words]


def _similarities(vectors: Any) -> tuple[float, float]:  # noqa: ANN401
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return float(unit[0] @ unit[1]), float(unit[0] @ unit[2])
