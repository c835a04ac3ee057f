"""Rows that are taken apart: what is new of their parts is encoded, and what stayed as it was keeps its vector."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import groupby
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from pgembed.decoding.picture import Limits
from pgembed.encoders import Encoder
from pgembed.errors import EncoderUnavailable, InvalidInput, PgembedError
from pgembed.metering import count_tokens
from pgembed.parts import Part, Span, Splitter, load_splitter
from pgembed.worker.batch import Batch, Piece, Row, encode, encode_values, finished, require_working
from pgembed.worker.queue import Work

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL.Image import Image as Picture

MOST_PARTS = 50_000  # of one row: a book of pages with their tiles
MOST_PIXELS = 25_000_000  # of pictures that wait to be encoded together: 75 MB


def encode_rows(encoder: Encoder, batch: Batch, limits: Limits) -> None:
    """Give each row its vector, or its pieces, or its own error. Raises EncoderError where the encoder, not a row, is
    at fault, and InvalidInput for a splitter that is not there."""
    if batch.work.parts is None:
        encode(encoder, batch)
    else:
        encode_parts(encoder, batch, _splitter(json.dumps(batch.work.parts, sort_keys=True)), limits)


@lru_cache(maxsize=64)
def _splitter(options: str) -> Splitter:
    return load_splitter(json.loads(options))


def encode_parts(encoder: Encoder, batch: Batch, splitter: Splitter, limits: Limits) -> None:
    """Give each row its pieces or its own error. Raises EncoderError where the encoder, not a row, is at fault.

    Parts are made and encoded some at a time, so that of a long document little is in memory. A part that cannot be
    encoded, a line of dashes say, is left out where the row has others.
    """
    waiting = _Waiting(encoder, batch)
    for row in batch.rows:
        if row.error is not None or not row.inputs:
            continue
        row.pieces = []
        for piece, part in _parts(row, encoder, batch, splitter, limits):
            row.pieces.append(piece)
            if piece.hash not in row.known:
                waiting.add(piece, part)
    waiting.encode()
    for row in batch.rows:
        if row.pieces is not None and row.error is None:
            _settle(row, batch.work)


def _parts(
    row: Row, encoder: Encoder, batch: Batch, splitter: Splitter, limits: Limits
) -> Iterator[tuple[Piece, Part]]:
    """The parts of a row; what the splitter raises, or gives that is no part, is the row's error."""
    told = _told(encoder, batch.work)
    try:
        for number, part in enumerate(splitter.split(_value(row), encoder, limits), start=1):
            if number > MOST_PARTS:
                raise InvalidInput(
                    f"The row has more than {MOST_PARTS:,} parts.", "Have larger parts, or split the row."
                )
            location = json.dumps(dict(part.location), allow_nan=False)
            yield Piece(part.kind, location, part.content, _hash(told, part.input)), part
    except EncoderUnavailable:
        raise
    except PgembedError as error:
        row.error = error
    except Exception as error:  # a splitter may raise anything
        row.error = InvalidInput(f"The splitter '{_kind(batch.work)}' fails: {error or type(error).__name__}")


@dataclass
class _Waiting:
    """Parts that are to be encoded together."""

    encoder: Encoder
    batch: Batch
    parts: list[tuple[Piece, Part]] = field(default_factory=list[tuple[Piece, Part]])
    pixels: int = 0

    def add(self, piece: Piece, part: Part) -> None:
        if isinstance(part.input, Span):  # all of one text at once
            if self.parts and not (isinstance(last := self.parts[-1][1].input, Span) and last.text is part.input.text):
                self.encode()
        elif len(self.parts) >= self.encoder.batch_size or self.pixels >= MOST_PIXELS:
            self.encode()
        self.parts.append((piece, part))
        if not isinstance(part.input, str | Span):
            self.pixels += part.input.width * part.input.height

    def encode(self) -> None:
        parts, self.parts, self.pixels = self.parts, [], 0
        for kind, some in groupby(parts, lambda pair: type(pair[1].input)):
            pieces, values = zip(*((piece, part.input) for piece, part in some), strict=True)
            if self.batch.work.settings.get("tokens_per_day") and (texts := _texts(values)):
                self.batch.tokens += count_tokens(self.encoder, texts)
            if kind is str:
                for piece, cut in zip(pieces, self.encoder.is_cut(values), strict=True):
                    piece.is_cut = cut
                vectors = encode_values(self.encoder, "text", pieces, values)
            elif kind is Span:
                vectors = encode_values(self.encoder, "text", pieces, values, _in_context(self.encoder))
            else:
                given = self.batch.work.modalities[0]
                modality = "image" if given == "text" else given  # of HTML
                pieces, values = self._prepared(modality, pieces, values)
                vectors = encode_values(self.encoder, modality, pieces, values)
            for piece, vector in zip(pieces, vectors, strict=True):
                if vector is not None:
                    piece.vector = finished(vector, normalize=self.encoder.normalized)
                    if piece.vector is None:
                        piece.fail(InvalidInput("The part gives a zero vector."))

    def _prepared(
        self, modality: str, pieces: Sequence[Piece], pictures: Sequence[Picture]
    ) -> tuple[list[Piece], list[Any]]:
        """Pictures as the encoder takes them, without those that it cannot prepare."""
        kept: list[Piece] = []
        pixels: list[Any] = []
        for piece, picture in zip(pieces, pictures, strict=True):
            try:
                pixels.append(self.encoder.preprocess(picture))
                kept.append(piece)
            except EncoderUnavailable:
                raise
            except Exception as error:
                require_working(self.encoder, modality, error)
                piece.fail(error)
        return kept, pixels


def _texts(values: Sequence[str | Span | Picture]) -> list[str]:
    """What is read of these as text: spans as their texts, each once."""
    texts = [value for value in values if isinstance(value, str)]
    return texts + [text for text, _ in groupby(value.text for value in values if isinstance(value, Span))]


def _in_context(encoder: Encoder) -> Callable[[Sequence[Span]], NDArray[np.float32]]:
    def embed(spans: Sequence[Span]) -> NDArray[np.float32]:
        return np.concatenate(
            [
                encoder.embed_spans(text, [(span.start, span.end) for span in some])
                for text, some in groupby(spans, lambda span: span.text)
            ]
        )

    return embed


def _settle(row: Row, work: Work) -> None:
    """Keep the parts that were encoded, or tell why there are none."""
    pieces = row.pieces or []
    sound = [piece for piece in pieces if piece.error is None]
    if sound:
        row.pieces = sound
        lost, cut = len(pieces) - len(sound), sum(piece.is_cut for piece in sound)
        if lost:
            first = next(piece.error for piece in pieces if piece.error is not None)
            row.cut = f"{lost} of {len(pieces)} parts could not be encoded and are left out: {first}"
        elif cut:
            row.cut = f"{cut} of {len(pieces)} parts are longer than the encoder reads: their end is left out."
    elif pieces:
        row.error = pieces[0].error
    else:
        row.error = InvalidInput(f"The splitter '{_kind(work)}' found no part in the row.", "Change its input.")


def _value(row: Row) -> str | bytes:
    """The one input of a row. Raises MediaError where it could not be read."""
    ((_, value),) = row.inputs.items()
    return cast("str | bytes", value.result() if isinstance(value, Future) else value)


def _kind(work: Work) -> str:
    return str((work.parts or {}).get("kind"))


def _told(encoder: Encoder, work: Work) -> bytes:
    """What decides a part's vector beside its input."""
    return json.dumps([encoder.fingerprint, work.space, work.modalities]).encode()


@lru_cache(maxsize=2)
def _digest(text: str) -> bytes:
    """Of a text that many spans are of, one after the other."""
    return hashlib.sha256(text.encode(errors="replace")).digest()


def _hash(told: bytes, value: str | Span | Picture) -> bytes:
    digest = hashlib.sha256(told)
    if isinstance(value, str):
        digest.update(b"text\0" + value.encode(errors="replace"))
    elif isinstance(value, Span):
        digest.update(f"span\0{value.start}\0{value.end}\0".encode() + _digest(value.text))
    else:
        digest.update(f"{value.mode}\0{value.width}\0{value.height}\0".encode() + value.tobytes())
    return digest.digest()
