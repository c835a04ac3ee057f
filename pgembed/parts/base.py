"""What a splitter is: it takes one input of a row apart, into parts that each get a vector of their own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pgembed.decoding.picture import Limits
from pgembed.encoders.base import Encoder, Modality

if TYPE_CHECKING:
    from PIL.Image import Image as Picture


@dataclass(frozen=True)
class Span:
    """Characters ``start`` to ``end`` of a text, encoded in their context: late chunking."""

    text: str
    start: int
    end: int


@dataclass(frozen=True)
class Part:
    """One part of a row's input.

    ``location`` says where it stands, as JSON: ``{"start": 0, "end": 512}`` in a text (characters, the end excluded),
    ``{"page": 3}`` of a document (from 1 on), ``{"box": [x, y, width, height]}`` on a picture or a page, in shares of
    its width and height. ``content`` is the words that stand there, kept for full text search and for answers;
    ``input`` is what is encoded, which may have more around it.
    """

    kind: str
    location: Mapping[str, Any]
    content: str | None
    input: str | Span | Picture


class Splitter(ABC):
    """Takes inputs apart. A kind is a subclass, registered in the entry-point group ``pgembed.splitters``.

    ``load`` makes an instance from options, as ``attach(parts => …)`` has them; it holds no state of a row, and threads
    may share it.
    """

    modalities: ClassVar[frozenset[Modality]]  # of the inputs that it takes apart

    @classmethod
    @abstractmethod
    def load(cls, options: Mapping[str, Any]) -> Self:
        """Raises InvalidInput for an option that there is not, or that cannot be so; MissingExtra without packages."""

    @abstractmethod
    def split(self, value: str | bytes, encoder: Encoder, limits: Limits) -> Iterator[Part]:
        """The parts of a text, or of the bytes of a file, in their order, made as they are asked for.

        Raises InvalidInput or MediaError where the value is at fault.
        """
