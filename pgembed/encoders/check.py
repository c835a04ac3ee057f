"""``pgembed encoder test``: encode samples, and look whether what comes out can be trusted."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw, ImageOps

from pgembed.encoders.base import Encoder, Modality
from pgembed.errors import InvalidInput

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL.Image import Image as Picture

BATCH_SIZES = (1, 8, 32)
SECONDS = 0.5  # a batch size is measured for at least so long
SAME, BATCHED = 1e-5, 1e-3  # largest difference of a number, again and in another batch
NARROW = 0.6  # mean cosine of unlike samples, above which scores tell little
TEXTS = (
    "a red bicycle", "a bowl of fruit", "a dog on a beach", "an old wooden door", "rain at night",
    "a map of the world", "somebody playing the violin", "fresh bread", "a mountain lake", "a yellow taxi",
    "interest rates rose again", "how to repair a bicycle tube", "the history of Rome", "a cup of coffee",
)  # fmt: skip


@dataclass(frozen=True)
class Samples:
    """What is encoded: texts, pictures and screenshots (decoded)."""

    texts: Sequence[str] = ()
    pictures: Sequence[Picture] = ()
    screenshots: Sequence[Picture] = ()


@dataclass(frozen=True)
class Check:
    """One check: its name, whether it went well, what was found, and what to do where it could be better."""

    name: str
    ok: bool
    found: str
    hint: str | None = None


@dataclass(frozen=True)
class Rate:
    """Inputs encoded in a second, in batches of one size."""

    modality: Modality
    batch_size: int
    per_second: float


@dataclass(frozen=True)
class Neighbour:
    """The sample that is nearest to another one; pictures are told by their number, from 1."""

    modality: Modality
    sample: str
    nearest: str
    cosine: float


@dataclass
class EncoderReport:
    """What a test of an encoder found."""

    spec: str
    fingerprint: str
    dim: int
    modalities: list[Modality]
    checks: list[Check] = field(default_factory=list[Check])
    rates: list[Rate] = field(default_factory=list[Rate])
    neighbours: list[Neighbour] = field(default_factory=list[Neighbour])

    @property
    def ok(self) -> bool:
        """Whether every check went well."""
        return all(check.ok for check in self.checks)


def own_samples() -> Samples:
    """Everyday texts, and drawings that nobody would confuse, none of them symmetric."""
    drawings = _drawings()
    return Samples(TEXTS, drawings, drawings)


def check_encoder(encoder: Encoder, samples: Samples | None = None) -> EncoderReport:
    """Encode samples and check them: shape, length, determinism, batches, likeness; and measure the throughput."""
    own = samples is None
    samples = samples or own_samples()
    report = EncoderReport(encoder.spec, encoder.fingerprint, encoder.dim, sorted(encoder.modalities))
    given: dict[Modality, tuple[Sequence[Any], Callable[[Sequence[Any]], Any]]] = {
        "text": (samples.texts, encoder.encode_text),
        "image": (samples.pictures, encoder.encode_image),
        "screenshot": (samples.screenshots, encoder.encode_screenshot),
    }
    for modality in report.modalities:
        inputs, encode = given[modality]
        if not inputs:
            continue
        try:
            _check(report, encoder, modality, list(inputs), encode)
        except InvalidInput as error:
            if not own:
                raise
            hint = "It takes other inputs than pgembed's samples: test it with rows of a table of yours (--table)."
            report.checks.append(Check(f"{modality}: samples", False, error.message, hint))
    return report


def _check(
    report: EncoderReport,
    encoder: Encoder,
    modality: Modality,
    inputs: list[Any],
    encode: Callable[[Sequence[Any]], Any],
) -> None:
    vectors = np.asarray(encode(inputs), dtype=np.float32)

    def say(name: str, ok: bool, found: str, hint: str | None = None) -> None:
        report.checks.append(Check(f"{modality}: {name}", bool(ok), found, None if ok else hint))

    shape = vectors.shape == (len(inputs), encoder.dim)
    say("shape", shape, f"{vectors.shape}", f"It should be ({len(inputs)}, {encoder.dim}).")
    if not shape:
        return
    finite = bool(np.isfinite(vectors).all())
    say("finite", finite, "no NaN, no infinity" if finite else "NaN or infinity", "Try precision fp32.")
    if not finite:
        return
    lengths = np.linalg.norm(vectors, axis=1)
    say(
        "length",
        not encoder.normalized or np.allclose(lengths, 1, atol=1e-3),
        f"{lengths.min():.4f} to {lengths.max():.4f}",
        "It says that its vectors have length 1.",
    )
    again = float(np.abs(np.asarray(encode(inputs)) - vectors).max())
    say("the same twice", again <= SAME, f"largest difference {again:.1e}", "Is something random left on (dropout)?")
    alone = float(np.abs(np.concatenate([encode([one]) for one in inputs[:8]]) - vectors[:8]).max())
    say("the same alone", alone <= BATCHED, f"largest difference {alone:.1e}", "Does padding reach the vectors?")
    _check_likeness(report, modality, inputs, vectors, say)
    if modality != "text":
        _check_mirrored(inputs, encode, say)
    for size in BATCH_SIZES:
        report.rates.append(Rate(modality, size, _rate([inputs[i % len(inputs)] for i in range(size)], encode)))


def _check_likeness(
    report: EncoderReport,
    modality: Modality,
    inputs: list[Any],
    vectors: NDArray[np.float32],
    say: Callable[[str, bool, str, str | None], None],
) -> None:
    """Different inputs differ, and not all vectors point one way: the mean cosine, as Ethayarajh (2019) measures it."""
    names = [str(one) if modality == "text" else f"picture {n}" for n, one in enumerate(inputs, 1)]
    apart = [n for n, one in enumerate(inputs) if not any(_same(one, other) for other in inputs[:n])]
    if len(apart) < 2:
        return
    unit = vectors[apart] / np.linalg.norm(vectors[apart], axis=1, keepdims=True)
    cosines = unit @ unit.T
    off_diagonal = cosines[~np.eye(len(apart), dtype=bool)]
    highest = float(off_diagonal.max())
    say("different inputs differ", highest < 0.9999, f"highest cosine {highest:.3f}", "Two inputs have one vector.")
    mean = float(off_diagonal.mean())
    narrow = "All vectors lie in a narrow cone, so scores differ little; subtracting the mean vector (whitening) helps."
    found = f"mean cosine of unlike samples {mean:.3f}"
    report.checks.append(Check(f"{modality}: directions", True, found, narrow if mean > NARROW else None))
    np.fill_diagonal(cosines, -2)
    for row, nearest in enumerate(int(n) for n in cosines.argmax(axis=1)):
        cosine = float(cosines[row, nearest])
        report.neighbours.append(Neighbour(modality, names[apart[row]], names[apart[nearest]], cosine))


def _check_mirrored(
    pictures: Sequence[Picture],
    encode: Callable[[Sequence[Any]], Any],
    say: Callable[[str, bool, str, str | None], None],
) -> None:
    if len(pictures) < 2:
        return
    few = list(pictures[:8])
    vectors = np.asarray(encode([*few, *(ImageOps.mirror(one) for one in few)]), dtype=np.float64)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    plain, mirrored = unit[: len(few)], unit[len(few) :]
    own = float((plain * mirrored).sum(axis=1).mean())
    others = float((plain @ plain.T)[~np.eye(len(few), dtype=bool)].mean())
    close = own - others > 0.1 * (1 - others)
    hint = "It seems not to see what is in a picture: are the weights loaded, is the preprocessing the model's own?"
    say("a mirrored copy is close", close, f"cosine {own:.3f}, another picture {others:.3f}", hint)


def _rate(inputs: list[Any], encode: Callable[[Sequence[Any]], Any]) -> float:
    done, start = 0, time.perf_counter()
    while (taken := time.perf_counter() - start) < SECONDS:
        encode(inputs)
        done += len(inputs)
    return done / taken


def _same(one: Any, other: Any) -> bool:  # noqa: ANN401
    return one is other or one == other


def _drawings() -> list[Picture]:
    pictures: list[Picture] = []
    for paint in (_tree, _words, _house, _fish, _stripes, _night):
        picture = Image.new("RGB", (256, 256), "white")
        paint(ImageDraw.Draw(picture))
        pictures.append(picture)
    return pictures


def _tree(draw: ImageDraw.ImageDraw) -> None:
    draw.rectangle((0, 0, 256, 200), fill="skyblue")
    draw.rectangle((0, 200, 256, 256), fill="green")
    draw.rectangle((70, 120, 90, 210), fill="saddlebrown")
    draw.ellipse((30, 40, 130, 140), fill="darkgreen")


def _words(draw: ImageDraw.ImageDraw) -> None:
    for line in range(12):
        draw.text((10, 10 + 20 * line), "lorem ipsum dolor sit amet " * 2, fill="black")


def _house(draw: ImageDraw.ImageDraw) -> None:
    draw.rectangle((60, 120, 200, 230), fill="firebrick", outline="black", width=4)
    draw.polygon([(40, 120), (130, 40), (220, 120)], fill="dimgrey", outline="black")
    draw.rectangle((80, 160, 115, 230), fill="gold", outline="black", width=3)


def _fish(draw: ImageDraw.ImageDraw) -> None:
    draw.rectangle((0, 0, 256, 256), fill="deepskyblue")
    draw.ellipse((50, 90, 190, 170), fill="orange")
    draw.polygon([(175, 130), (235, 85), (235, 175)], fill="orange")
    draw.ellipse((80, 115, 92, 127), fill="black")


def _stripes(draw: ImageDraw.ImageDraw) -> None:
    for left in range(-256, 256, 32):
        draw.polygon([(left, 256), (left + 256, 0), (left + 272, 0), (left + 16, 256)], fill="purple")


def _night(draw: ImageDraw.ImageDraw) -> None:
    draw.rectangle((0, 0, 256, 256), fill="midnightblue")
    draw.ellipse((150, 30, 220, 100), fill="lightyellow")
    for x, y in ((30, 40), (90, 80), (60, 150), (200, 180), (120, 220)):
        draw.ellipse((x, y, x + 5, y + 5), fill="white")
