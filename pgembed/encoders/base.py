"""What an encoder is: a class with a few facts and one method per modality. A new kind is one file."""

from __future__ import annotations

import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pgembed.encoders.late_chunking import no_token_outputs
from pgembed.encoders.text_tokens import TextTokens
from pgembed.errors import UnsupportedModality

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image as Picture

    from pgembed.static_text import StaticText

    Vectors = NDArray[np.float32]

Modality = Literal["text", "image", "screenshot"]
Metric = Literal["cosine", "ip", "l2"]
Role = Literal["document", "query"]  # a row's input, or what is searched with: some models prompt them differently
Settings = Mapping[str, Any]
MODALITIES: tuple[Modality, ...] = ("text", "image", "screenshot")
PART_DIGITS = 16


@dataclass(frozen=True)
class Needs:
    """What loading a model reaches for beyond installed packages; an EncoderPolicy says whether it may.

    ``files`` are local paths, ``hosts`` names of servers (with the port where it is not the scheme's own), and ``code``
    says in a few words why code that comes with the model would run, as from a pickle; None where none does.
    """

    files: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    code: str | None = None


class Encoder(ABC):
    """A model that turns inputs of one or more modalities into vectors of one space.

    A kind is a subclass, registered under its scheme in the entry-point group ``pgembed.encoders``; ``load`` makes an
    instance from what follows the scheme in a spec (``open_clip:ViT-B-32/laion2b_s34b_b79k``) and the settings.
    Implement ``embed_texts`` and/or ``embed_pixels``, and their ``embed_query_…`` forms where a query is encoded in
    another way than a row; callers use ``encode_text``, ``encode_image`` and ``encode_screenshot``.
    """

    scheme: ClassVar[str]
    spec: str
    modalities: frozenset[Modality]
    dim: int
    fingerprint: str  # of weights, preprocessing and normalization: equal fingerprints give equal vectors
    metric: Metric = "cosine"
    normalized: bool = True
    batch_size: int = 64
    page_pixels: int = 1024  # the longest side at which pages and parts of pictures are handed to it
    reads_words: bool = False  # a picture is to it the words on it: where these are known already, it gets them instead
    preparation: str | None = None
    """``package.module:function``, where ``preprocess`` is that function, returns an array, and needs no model: workers
    then call it in the process that decodes, and whole pictures need not be handed on."""

    def static_side(self) -> StaticText | None:
        """The text side as a table of token vectors, where it is no more than that: SQL then encodes texts too."""
        return None

    def tokenizer_json(self) -> str | None:
        """The tokenizer of its texts as the package ``tokenizers`` writes it, where it has one; ``pgembed encoder
        distill`` takes it for the words of a static side."""
        return None

    def text_tokens(self) -> TextTokens:
        """Where the tokens of rows' texts lie, and how many of them it reads; roughly, where it cannot tell."""
        return TextTokens()

    @property
    def static_text(self) -> str | None:
        """The name of the static text side in the database."""
        side = self.static_side()
        return side.model if side is not None else None

    @property
    def space(self) -> str:
        """The space its vectors live in, unless the registration names another: spec and fingerprint."""
        return f"{self.spec}@{self.fingerprint[:12]}"

    @classmethod
    @abstractmethod
    def load(cls, name: str, settings: Settings) -> Self:
        """Load the model ``name``. Raises EncoderError where it cannot be loaded, MissingExtra without its packages."""

    @classmethod
    def needs(cls, name: str, settings: Settings) -> Needs:
        """What ``load`` with these arguments reaches for; tells without loading."""
        _ = name, settings
        return Needs()

    def differs_from(self, fingerprint: str) -> str | None:
        """What of this encoder is not as a registration's fingerprint has it, in words; None where all of it is."""
        return None if fingerprint == self.fingerprint else what_differs(fingerprint, self.fingerprint)

    def encode_text(self, texts: Sequence[str], *, role: Role = "document") -> Vectors:
        """Encode n texts into ``(n, dim) float32``. Raises UnsupportedModality."""
        self._require("text")
        return self.embed_query_texts(texts) if role == "query" else self.embed_texts(texts)

    def encode_image(self, pictures: Sequence[Picture], *, role: Role = "document") -> Vectors:
        """Encode n decoded pictures into ``(n, dim) float32``. Raises UnsupportedModality."""
        self._require("image")
        return self._encode_pictures(pictures, role)

    def encode_screenshot(self, pictures: Sequence[Picture], *, role: Role = "document") -> Vectors:
        """Encode n decoded screenshots into ``(n, dim) float32``. Raises UnsupportedModality."""
        self._require("screenshot")
        return self._encode_pictures(pictures, role)

    def preprocess(self, picture: Picture) -> Any:  # noqa: ANN401
        """Turn one decoded RGB picture into what ``embed_pixels`` takes; called in threads, off the model's path."""
        return picture

    def embed_texts(self, texts: Sequence[str]) -> Vectors:
        """The model's text side: ``(n, dim) float32``."""
        raise UnsupportedModality(f"Encoder '{self.spec}' takes no text.")

    def embed_pixels(self, pixels: Sequence[Any]) -> Vectors:
        """The model's picture side, on preprocessed pictures: ``(n, dim) float32``."""
        raise UnsupportedModality(f"Encoder '{self.spec}' takes no pictures.")

    def is_cut(self, texts: Sequence[str]) -> list[bool]:
        """Which of these texts of rows are longer than the model reads, so that their end is left out."""
        return self.text_tokens().cut(texts)

    def embed_spans(self, text: str, spans: Sequence[tuple[int, int]]) -> Vectors:
        """Characters ``start`` to ``end`` of one text, each encoded in its context: ``(n, dim) float32``, the mean of
        the span's token outputs; zero where it has no token. Raises UnsupportedModality where the model gives no
        outputs of single tokens, for no spans too, and InvalidInput for a span that is not in the text."""
        raise no_token_outputs(self.spec, "gives no outputs of single tokens")

    def embed_query_texts(self, texts: Sequence[str]) -> Vectors:
        """``embed_texts`` for what is searched with."""
        return self.embed_texts(texts)

    def embed_query_pixels(self, pixels: Sequence[Any]) -> Vectors:
        """``embed_pixels`` for what is searched with."""
        return self.embed_pixels(pixels)

    def _encode_pictures(self, pictures: Sequence[Picture], role: Role) -> Vectors:
        pixels = [self.preprocess(picture) for picture in pictures]
        return self.embed_query_pixels(pixels) if role == "query" else self.embed_pixels(pixels)

    def _require(self, modality: Modality) -> None:
        if modality not in self.modalities:
            raise UnsupportedModality(
                f"Encoder '{self.spec}' takes {', '.join(sorted(self.modalities))}, not {modality}.",
                f"Use an encoder whose modalities include {modality}.",
            )


def fingerprint_of(*parts: bytes | str) -> str:
    """SHA-256 over the parts, in order, each with its length before it: what a fingerprint is made with."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "big"))
        digest.update(data)
    return digest.hexdigest()


def named_fingerprint(**parts: str) -> str:
    """A fingerprint that can tell what differs: SHA-256 over the parts, then each part's own, ``weights=1f0c…``."""
    digests = {name: fingerprint_of(part) for name, part in parts.items()}
    whole = fingerprint_of(*(text for pair in digests.items() for text in pair))
    return " ".join([whole, *(f"{name}={digest[:PART_DIGITS]}" for name, digest in digests.items())])


def what_differs(registered: str, loaded: str) -> str:
    """Which parts of two fingerprints differ, in words: ``weights``, or ``fingerprint`` where they name no parts."""
    ours, theirs = (dict(re.findall(r"(\S+)=(\S+)", fingerprint)) for fingerprint in (registered, loaded))
    names = [name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name)]
    return " and ".join(names) or "fingerprint"
