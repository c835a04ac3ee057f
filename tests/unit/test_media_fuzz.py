"""A thousand pictures of each format, broken in every way: each gives pixels or one MediaError, and no process dies.

The corpus is made here from seeds: a picture that fails is made again by ``mutated(form, seed)``.
"""

from __future__ import annotations

import importlib
import io
import random
import re
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib.util import find_spec

import pytest
from PIL import Image, features

from pgembed.decoding.picture import Limits
from pgembed.decoding.pool import ProcessPool
from pgembed.errors import MediaError

FORMS = ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "AVIF", "JPEG2000", "ICO", "PPM", "QOI", "HEIF")
SEEDS = range(1_000)  # of each format
LIMITS = Limits(max_pixels=1_000_000)
SIZES = ("00", "ff", "7f", "80", "ffff", "7fffffff", "ffffffff", "00000000", "0000ffff")  # hex, as headers may say


def readable() -> list[str]:
    """The formats that this installation reads."""
    missing = {"AVIF": not features.check("avif"), "HEIF": find_spec("pillow_heif") is None}
    return [form for form in FORMS if not missing.get(form)]


@cache
def originals(form: str) -> tuple[bytes, ...]:
    """Sound pictures of a format: of several modes, with EXIF, several frames, several ways to compress."""
    noise = Image.effect_noise((24, 20), 90)
    gradient = Image.merge("RGB", [Image.linear_gradient("L").resize((24, 20)), noise, noise.transpose(3)])
    exif = Image.Exif()
    exif[0x0112] = 6
    kinds: list[tuple[Image.Image, dict[str, object]]] = [(gradient, {})]
    if form == "HEIF":
        importlib.import_module("pillow_heif").register_heif_opener()
    if form in {"PNG", "TIFF", "WEBP", "AVIF", "JPEG", "HEIF"}:
        kinds.append((gradient, {"exif": exif}))
    if form in {"PNG", "GIF", "WEBP", "TIFF"}:
        kinds.append((gradient, {"save_all": True, "append_images": [gradient.rotate(90), gradient.rotate(180)]}))
    if form in {"PNG", "WEBP", "TIFF", "AVIF", "ICO", "JPEG2000", "QOI", "HEIF"}:
        kinds.append((gradient.convert("RGBA"), {}))
    if form in {"PNG", "TIFF", "BMP", "GIF"}:
        kinds += [(gradient.quantize(16), {}), (noise.convert("1"), {})]
    if form in {"PNG", "TIFF", "PPM"}:
        kinds.append((noise.convert("I").point(lambda value: value * 257).convert("I;16"), {}))
    if form == "TIFF":
        kinds += [(gradient, {"compression": name}) for name in ("tiff_lzw", "jpeg", "tiff_adobe_deflate", "packbits")]
        kinds += [(noise.convert("F"), {}), (gradient.convert("CMYK"), {})]
    if form == "JPEG":
        kinds += [(gradient, {"progressive": True}), (gradient.convert("CMYK"), {}), (noise, {})]
    if form == "WEBP":
        kinds.append((gradient, {"lossless": True}))
    made: list[bytes] = []
    for picture, options in kinds:
        file = io.BytesIO()
        picture.save(file, form, **options)
        made.append(file.getvalue())
    return tuple(made)


def mutated(form: str, seed: int) -> bytes:
    """A picture of a format, broken in one to four places or ways; the same for the same seed."""
    chance = random.Random(f"{form} {seed}")
    data = bytearray(chance.choice(originals(form)))
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(min(len(data), chance.choice((64, 400, 10**6))))  # headers more often than pixels
        match chance.randrange(7):
            case 0:
                data[at] ^= 1 << chance.randrange(8)
            case 1:
                data[at] = chance.randrange(256)
            case 2:
                number = bytes.fromhex(chance.choice(SIZES))
                data[at : at + len(number)] = number[:: chance.choice((1, -1))]
            case 3:
                del data[at : at + chance.randint(1, 40)]
            case 4:
                data[at:at] = chance.randbytes(chance.randint(1, 40))
            case 5:
                other = chance.choice(originals(chance.choice(FORMS[:7])))
                data[at : at + 40] = other[at % len(other) :][:40]
            case _:
                del data[max(at, 8) :]
        if not data:
            data = bytearray(b"\0")
    return bytes(data)


@pytest.fixture(scope="module")
def pool() -> Iterator[ProcessPool]:
    made = ProcessPool(2, seconds=10)
    yield made
    made.close()


@pytest.mark.parametrize("form", FORMS)
def test_mutated_pictures_fail_with_their_reason_and_kill_nobody(pool: ProcessPool, form: str) -> None:
    if form not in readable():
        pytest.skip(f"{form} is not read here.")

    def decode(seed: int) -> str:
        began = time.monotonic()
        try:
            picture = pool.decode(mutated(form, seed), LIMITS, shown=f"{form} {seed}")
        except MediaError as error:
            reason = str(error)
            if not reason.startswith(f"The picture {form} {seed} ") or re.search("ended the process|took more", reason):
                raise
            return "failed"
        assert picture.mode == "RGB"
        assert picture.width * picture.height <= LIMITS.max_pixels
        assert time.monotonic() - began < 10
        return "read"

    with ThreadPoolExecutor(2) as threads:
        found = Counter(threads.map(decode, SEEDS))
    assert found.total() == len(SEEDS)
    assert found["failed"] >= len(SEEDS) // 10, "the mutations do not reach the parser"


def test_the_corpus_is_the_same_every_time() -> None:
    assert [mutated("PNG", seed) for seed in range(20)] == [mutated("PNG", seed) for seed in range(20)]
