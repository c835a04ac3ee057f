"""``ocr+KIND:NAME``: pictures by the words that stand on them, encoded with the text side of any other encoder.

``ocr+builtin:lite`` and ``ocr+sentence-transformers:all-MiniLM-L6-v2`` take screenshots, pages and pictures; texts, and
queries in words, go straight to the text side. Vectors live in the space of that encoder.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pgembed.documents.lines import text_of
from pgembed.documents.ocr import models_digest, ocr
from pgembed.encoders.base import Encoder, Modality, Needs, Settings, named_fingerprint
from pgembed.errors import EncoderError, InvalidInput

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

    from pgembed.encoders.base import Vectors
    from pgembed.static_text import StaticText

READ_AT = 1754  # pixels of a page's longest side: an A4 page at 150 dots an inch


class OcrEncoder(Encoder):
    """Texts as they are, pictures by their words. Settings are those of the encoder that it reads for."""

    scheme: ClassVar[str] = "ocr"
    page_pixels = READ_AT
    reads_words = True

    def __init__(self, text: Encoder) -> None:
        if "text" not in text.modalities:
            raise EncoderError(
                f"Encoder '{text.spec}' takes no text, so there is nothing to encode words with.",
                "Name one that does, for example ocr+builtin:lite.",
            )
        self.text = text
        self._ocr = ocr()
        self.spec = f"{self.scheme}+{text.spec}"
        self.modalities: frozenset[Modality] = frozenset(("text", "image", "screenshot"))
        self.dim = text.dim
        self.metric = text.metric
        self.normalized = text.normalized
        self.batch_size = text.batch_size

    @classmethod
    def load(cls, name: str, settings: Settings) -> Self:
        """Load the encoder ``name``, a whole spec, with these settings. Raises MissingExtra without rapidocr."""
        from pgembed.encoders import load_encoder

        return cls(load_encoder(name, settings))

    @classmethod
    def needs(cls, name: str, settings: Settings) -> Needs:
        """What the encoder that it reads for needs."""
        from pgembed.encoders import load_kind

        kind, rest = load_kind(name)
        return kind.needs(rest, settings)

    @cached_property
    def fingerprint(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Of the text side, and of the models that read."""
        return named_fingerprint(text=self.text.fingerprint, reading=models_digest())

    @property
    def space(self) -> str:
        """That of the encoder whose text side it is."""
        return self.text.space

    def static_side(self) -> StaticText | None:
        """The text side's token table, where it is no more than that."""
        return self.text.static_side()

    def tokenizer_json(self) -> str | None:
        """The text side's tokenizer."""
        return self.text.tokenizer_json()

    def preprocess(self, picture: Picture) -> str:
        """The words that stand on a picture, a line each. Raises InvalidInput where there are none, MediaError where
        the picture ended the process that read it."""
        words = text_of(self._ocr.words(picture))
        if not words:
            raise InvalidInput(
                f"The picture of {picture.width} x {picture.height} pixels has no words that '{self.spec}' could read.",
                "Use an encoder that sees pictures, such as builtin:lite, or leave the picture out.",
            )
        return words

    def embed_texts(self, texts: Sequence[str]) -> Vectors:
        """The text side: ``(n, dim) float32``."""
        return self.text.embed_texts(texts)

    def embed_query_texts(self, texts: Sequence[str]) -> Vectors:
        """The text side, of what is searched with: ``(n, dim) float32``."""
        return self.text.embed_query_texts(texts)

    def embed_pixels(self, pixels: Sequence[Any]) -> Vectors:
        """The words of n pictures: ``(n, dim) float32``."""
        return self.text.embed_texts(pixels)

    def embed_query_pixels(self, pixels: Sequence[Any]) -> Vectors:
        """The words of n pictures that are searched with: ``(n, dim) float32``."""
        return self.text.embed_query_texts(pixels)

    def is_cut(self, texts: Sequence[str]) -> list[bool]:
        """What the text side cuts off."""
        return self.text.is_cut(texts)

    def embed_spans(self, text: str, spans: Sequence[tuple[int, int]]) -> Vectors:
        """The text side's, in their context."""
        return self.text.embed_spans(text, spans)
