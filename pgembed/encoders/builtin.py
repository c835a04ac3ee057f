"""``builtin:lite``: a small encoder of everyday things that ships with pgembed, works offline and needs no torch.

Pictures go through one ONNX graph (EfficientNet-Lite0, and what ``training/`` adds to it); texts through a static table
of token vectors, which ``install`` copies into Postgres so that SQL encodes them too.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cached_property
from importlib.resources import files
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from PIL import Image, ImageOps
from PIL.Image import Resampling

from pgembed.encoders.base import Encoder, Modality, Settings, fingerprint_of, named_fingerprint
from pgembed.encoders.text_tokens import TextTokens, TokenizerTokens
from pgembed.errors import EncoderError, InvalidInput, UnknownEncoder
from pgembed.static_text import StaticText

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

    from numpy.typing import NDArray
    from onnxruntime import InferenceSession
    from PIL.Image import Image as Picture

NAME = "lite"
DIM = 256
PIXELS = 224
SHRUNK = 256  # the shorter side before the middle is cut out, as the tower was trained
CHUNK = 8  # pictures at once in the network: more of them leave the processor's caches, and each takes longer
BORDER_PIXELS, GROUND_TOLERANCE, GROUND_SHARE = 64, 16, 0.75
PREPROCESSING = (
    f"rgb; ground {BORDER_PIXELS} {GROUND_TOLERANCE} {GROUND_SHARE}: whole {PIXELS} bicubic; "
    f"else short side {SHRUNK} bicubic, middle {PIXELS}"
)
TEXT_FILES = ("tokenizer.json", "tokens.npy", "token_scales.npy")
PICTURE_FILE = "picture.onnx"
TEXT_SETTINGS: dict[str, Any] = {
    "language": "English",
    "tokenizer": "wordpiece",
    "unknown": "[UNK]",
    "max_word_chars": 100,
    "continuing_prefix": "##",
    "clean_text": True,
    "split_cjk": True,
    "strip_accents": True,
    "lowercase": True,
    "pooling": "sum",
    "normalize": True,
}


def lite_files() -> Traversable:
    """The folder of the shipped weights."""
    return files("pgembed.encoders") / NAME


def lite_static_text(folder: Traversable | None = None) -> StaticText:
    """The text side of ``builtin:lite``, without its picture side. Raises EncoderError where a file is missing."""
    from tokenizers import Tokenizer

    folder = folder or lite_files()
    tokenizer_json, rows, scales = (_read(folder, name) for name in TEXT_FILES)
    fingerprint = fingerprint_of(tokenizer_json, rows, scales)
    tokenizer = Tokenizer.from_buffer(tokenizer_json)
    vocabulary = tokenizer.get_vocab()
    table = _array(rows).astype(np.float32) * _array(scales)[:, None]
    return StaticText(
        model=f"builtin:{NAME}@{fingerprint[:12]}",
        fingerprint=fingerprint,
        settings=TEXT_SETTINGS,
        vocabulary=tuple(sorted(vocabulary, key=vocabulary.__getitem__)),
        table=table,
        tokenizer=tokenizer,
    )


class LiteEncoder(Encoder):
    """Texts, pictures and screenshots in one space of 256 dimensions. English; everyday kinds of things.

    Settings: ``threads``, the cores one call may use for pictures (default: all).
    """

    scheme: ClassVar[str] = "builtin"
    spec = f"builtin:{NAME}"
    modalities: frozenset[Modality] = frozenset(("text", "image", "screenshot"))
    dim = DIM
    preparation = f"{__name__}:preprocess"

    def __init__(self, folder: Traversable | None = None, *, threads: int | None = None) -> None:
        self._folder = folder or lite_files()
        self._threads = threads or os.cpu_count() or 1
        self.text = lite_static_text(self._folder)

    @classmethod
    def load(cls, name: str, settings: Settings) -> Self:
        """Load ``builtin:lite``. Raises UnknownEncoder for another name, InvalidInput for an unknown setting."""
        if name != NAME:
            raise UnknownEncoder(f"There is no built-in encoder '{name}'.", f"The built-in one is builtin:{NAME}.")
        unknown = sorted(set(settings) - {"threads"})
        if unknown:
            raise InvalidInput(f"builtin:{NAME} has no setting '{unknown[0]}'.", "Its only setting is threads.")
        threads: Any = settings.get("threads")
        if threads is not None and (not isinstance(threads, int) or isinstance(threads, bool) or threads < 1):
            raise InvalidInput(f"threads is {threads!r}.", "Give a whole number of 1 or more, or leave it out.")
        return cls(threads=threads)

    def static_side(self) -> StaticText:
        """Its token table, which ``install`` copies into Postgres."""
        return self.text

    def text_tokens(self) -> TextTokens:
        """Those of the token table. It reads texts of any length."""
        return self._text_tokens

    @cached_property
    def _text_tokens(self) -> TextTokens:
        return TokenizerTokens(self.text.tokenizer.to_str(), None, special=False)

    @cached_property
    def fingerprint(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Of every shipped file and of the preprocessing."""
        return named_fingerprint(
            words=self.text.fingerprint,
            weights=fingerprint_of(_read(self._folder, PICTURE_FILE)),
            preprocessing=PREPROCESSING,
        )

    def embed_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Encode n texts into ``(n, 256) float32`` of length 1. Raises InvalidInput for a text without a known word."""
        return self.text.encode(texts)

    def preprocess(self, picture: Picture) -> NDArray[np.uint8]:
        """One picture as ``(224, 224, 3) uint8``: its middle, or the whole of it where its ground is plain."""
        return preprocess(picture)

    def embed_pixels(self, pixels: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """Encode n preprocessed pictures into ``(n, 256) float32`` of length 1."""
        if not pixels:
            return np.empty((0, DIM), dtype=np.float32)
        chunks = (np.stack(pixels[start : start + CHUNK]) for start in range(0, len(pixels), CHUNK))
        found: list[Any] = [self._session.run(None, {"pixels": chunk})[0] for chunk in chunks]
        return np.concatenate(found)

    @cached_property
    def _session(self) -> InferenceSession:
        import onnxruntime

        options: Any = onnxruntime.SessionOptions()  # pyright: ignore[reportAttributeAccessIssue, reportUnknownVariableType]
        options.intra_op_num_threads = self._threads
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # Postgres wants the cores too
        weights = _read(self._folder, PICTURE_FILE)
        return onnxruntime.InferenceSession(weights, options, providers=["CPUExecutionProvider"])


def preprocess(picture: Picture) -> NDArray[np.uint8]:
    """One picture as ``(224, 224, 3) uint8``: its middle, or the whole of it where its ground is plain."""
    picture = on_white(picture)
    ground = plain_ground(picture)
    if ground is not None:
        whole = ImageOps.contain(picture, (PIXELS, PIXELS), Resampling.BICUBIC)
        square = Image.new("RGB", (PIXELS, PIXELS), ground)
        square.paste(whole, ((PIXELS - whole.width) // 2, (PIXELS - whole.height) // 2))
        return np.asarray(square)
    scale = SHRUNK / min(picture.size)
    width, height = (max(SHRUNK, round(side * scale)) for side in picture.size)
    left, top = (width - PIXELS) // 2, (height - PIXELS) // 2
    picture = picture.resize((width, height), Resampling.BICUBIC)
    return np.asarray(picture.crop((left, top, left + PIXELS, top + PIXELS)))


def on_white(picture: Picture) -> Picture:
    """A picture in RGB, where it is transparent white; pictures read through pgembed.media are so already."""
    if picture.mode == "RGB":
        return picture
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    white = Image.new("RGBA", picture.size, "white")
    white.alpha_composite(picture.convert("RGBA"))
    return white.convert("RGB")


def plain_ground(picture: Picture) -> tuple[int, int, int] | None:
    """The colour that a picture stands on, where most of its border has one: drawings, products, icons."""
    small = np.asarray(picture.resize((BORDER_PIXELS, BORDER_PIXELS), Resampling.BOX)).astype(np.int16)
    border = np.concatenate((small[0], small[-1], small[1:-1, 0], small[1:-1, -1]))
    ground = np.median(border, axis=0)
    apart = np.abs(border - ground).max(axis=1)
    if (apart <= GROUND_TOLERANCE).mean() < GROUND_SHARE:
        return None
    red, green, blue = (int(channel) for channel in ground)
    return red, green, blue


def _read(folder: Traversable, name: str) -> bytes:
    try:
        return (folder / name).read_bytes()
    except OSError as error:
        raise EncoderError(
            f"The weights of builtin:{NAME} are not there: {name} in {folder}.", "Install pgembed again."
        ) from error


def _array(data: bytes) -> NDArray[Any]:
    from io import BytesIO

    return np.load(BytesIO(data), allow_pickle=False)
