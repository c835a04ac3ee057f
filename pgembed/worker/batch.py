"""A batch of rows on its way through the worker: encode its inputs, find the row that spoils it, fuse what is there."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from PIL import Image as PillowImage

from pgembed.encoders import Encoder
from pgembed.errors import EncoderError, EncoderUnavailable, InvalidInput, MediaError, PgembedError
from pgembed.metering import count_tokens
from pgembed.worker.queue import Work

if TYPE_CHECKING:
    from numpy.typing import NDArray


Value = str | Future[Any]  # a text, or a picture that is being decoded
Call = Callable[[Sequence[Any]], "NDArray[np.float32]"]


@dataclass
class Row:
    """One claimed job: what the row holds, and then its vector ``(dim,) float32``, its pieces, or its own error.

    An input is one value, or a list of them, each with its place in the list. Where it is taken apart, ``known`` are
    the hashes of the parts that have a vector already.
    """

    seq: int
    attempts: int
    gone: bool = False
    inputs: dict[str, Value | list[tuple[int, Value]]] = field(default_factory=dict[str, Any])
    vector: NDArray[np.float32] | None = None
    error: Exception | None = None
    known: frozenset[bytes] = frozenset()
    pieces: list[Piece] | None = None
    cut: str | None = None  # what of it is in no vector

    @property
    def is_encoded(self) -> bool:
        """Whether it has what is to be written."""
        return self.vector is not None or bool(self.pieces)


@dataclass
class Piece:
    """One part of a row, with its vector ``(dim,) float32``; None where that is in the side table already."""

    kind: str
    location: str  # JSON
    content: str | None
    hash: bytes  # of what is encoded, and by what
    vector: NDArray[np.float32] | None = None
    error: Exception | None = None
    is_cut: bool = False

    def fail(self, error: Exception) -> None:
        """It is at fault."""
        self.error = error


@dataclass
class Batch:
    """Rows of one embedding that were claimed together; none where SQL encodes, and takes the rows that wait itself."""

    work: Work
    rows: list[Row]
    began_at: float  # when it was claimed, by time.monotonic()
    limit: int = 0  # rows to be encoded by SQL
    tokens: int = 0  # of the texts that were encoded, where a budget is counted in tokens


def encode(encoder: Encoder, batch: Batch) -> None:
    """Give each row its vector or its own error. Raises EncoderError where the encoder, not a row, is at fault."""
    fused: dict[int, NDArray[np.float64]] = {}
    many = len(batch.work.modalities) > 1
    side_by_side = batch.work.side_by_side
    weights = sum(float(facts["weight"]) for facts in batch.work.inputs.values())
    for modality in batch.work.modalities:
        parts, values = _collect(encoder, batch.rows, modality)
        facts = batch.work.inputs[modality]
        if modality == "text":
            for part, cut in zip(parts, encoder.is_cut(values), strict=True):
                if cut:
                    part.row.cut = too_long_a_text(encoder)
        if modality == "text" and batch.work.settings.get("tokens_per_day"):
            batch.tokens += count_tokens(encoder, values)
        vectors = encode_values(encoder, modality, parts, values)
        for seq, vector in (_means if facts.get("list") else _singles)(parts, vectors):
            if side_by_side:
                block = fused.setdefault(seq, np.zeros((len(side_by_side), encoder.dim)))
                block[side_by_side.index(modality)] = math.sqrt(facts["weight"] / weights) * _unit(vector)
                continue
            total = fused.setdefault(seq, np.zeros(encoder.dim))
            total += float(facts["weight"]) * _unit(vector) if many else vector
    normalize = not side_by_side and (  # side by side an input that is missing leaves the vector shorter
        encoder.normalized or many or any(facts.get("list") for facts in batch.work.inputs.values())
    )
    for row in batch.rows:
        if row.error is None and row.seq in fused:
            _finish(row, fused[row.seq].ravel(), normalize=normalize)


class Item(Protocol):
    """What a value is encoded for."""

    def fail(self, error: Exception) -> None:
        """The value is at fault."""
        ...


@dataclass(frozen=True)
class Part:
    """One value of a row's input: the only one, or that with this number in the list."""

    row: Row
    number: int | None

    def fail(self, error: Exception) -> None:
        """It is at fault, and so is its row; of several parts the first is told."""
        if self.row.error is None:
            self.row.error = error if self.number is None else _numbered(error, self.number)


def _numbered(error: Exception, number: int) -> Exception:
    """The error with the place of its value before it, as transient as it was."""
    place = f"Number {number} of the list:"
    if isinstance(error, MediaError):
        return MediaError(f"{place} {error.message}", error.hint, transient=error.transient)
    kind = InvalidInput if isinstance(error, InvalidInput | ValueError) else PgembedError
    numbered = kind(f"{place} {str(error) or type(error).__name__}")
    numbered.__cause__ = error
    return numbered


def _singles(
    parts: Sequence[Part], vectors: Sequence[NDArray[np.float32] | None]
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    return ((part.row.seq, vector) for part, vector in zip(parts, vectors, strict=True) if vector is not None)


def _means(
    parts: Sequence[Part], vectors: Sequence[NDArray[np.float32] | None]
) -> Iterator[tuple[int, NDArray[np.float64]]]:
    """By seq, the mean of each list's normalized vectors."""
    lists: dict[int, list[NDArray[np.float64]]] = {}
    for seq, vector in _singles(parts, vectors):
        lists.setdefault(seq, []).append(_unit(vector))
    return ((seq, np.mean(units, axis=0)) for seq, units in lists.items())


def _collect(encoder: Encoder, rows: Sequence[Row], modality: str) -> tuple[list[Part], list[Any]]:
    """The values that rows have for this input, decoded; a picture that cannot be read is its row's error."""
    chosen: list[tuple[Part, Any]] = []
    for row in rows:
        given = row.inputs.get(modality)
        if given is None or row.error is not None:
            continue
        for number, value in given if isinstance(given, list) else [(None, given)]:
            part = Part(row, number)
            if isinstance(value, Future):
                try:
                    value = value.result()
                except PgembedError as error:
                    part.fail(error)
                    break
                except Exception as error:
                    require_working(encoder, modality, error)
                    part.fail(error)
                    break
            chosen.append((part, value))
    sound = [(part, value) for part, value in chosen if part.row.error is None]
    return [part for part, _ in sound], [value for _, value in sound]


def encode_values(
    encoder: Encoder, modality: str, parts: Sequence[Item], values: Sequence[Any], call: Call | None = None
) -> list[NDArray[np.float32] | None]:
    """One vector a value, None where it turned out to be at fault; by ``call``, all at once, where it is given."""
    size = encoder.batch_size if call is None else len(values)
    call = call or (encoder.embed_texts if modality == "text" else encoder.embed_pixels)
    out: list[NDArray[np.float32] | None] = []
    for start in range(0, len(values), max(size, 1)):
        stop = start + size
        try:
            out.extend(_checked(encoder, call, values[start:stop]))
        except EncoderUnavailable:
            raise
        except Exception as error:
            require_working(encoder, modality, error)
            out.extend(_bisect(encoder, modality, call, parts[start:stop], values[start:stop], error))
    return out


def _checked(encoder: Encoder, call: Call, values: Sequence[Any]) -> list[NDArray[np.float32] | None]:
    vectors = np.asarray(call(values), dtype=np.float32)
    if vectors.shape != (len(values), encoder.dim):
        raise EncoderError(
            f"Encoder '{encoder.spec}' returned an array of shape {vectors.shape} for {len(values)} inputs of"
            f" {encoder.dim} dimensions.",
            "Mend it, and see: pgembed encoder test.",
        )
    if not np.isfinite(vectors).all():
        raise _NotFinite("The encoder returned a vector that is not finite.")
    return list(vectors)


class _NotFinite(InvalidInput):
    """A vector with a NaN or an infinity: a row's fault, unless a plain input gives one too."""


def _is_declared(error: Exception) -> bool:
    """Whether an encoder says itself that an input is one it cannot encode."""
    return isinstance(error, InvalidInput) and not isinstance(error, _NotFinite)


def require_working(encoder: Encoder, modality: str, error: Exception) -> None:
    """Raise EncoderError unless a row is at fault: the encoder says so, or it still does a plain input."""
    if _is_declared(error):
        return
    try:
        if modality == "text":
            _checked(encoder, encoder.embed_texts, ["a photo"])
        else:
            pixels = encoder.preprocess(PillowImage.new("RGB", (64, 64), "grey"))
            _checked(encoder, encoder.embed_pixels, [pixels])
    except Exception as plain:
        if _is_declared(plain):
            return  # it works, and takes other inputs than a plain one
        reason = str(error) or type(error).__name__
        raise EncoderError(f"Encoder '{encoder.spec}' fails, on a plain {modality} too: {reason}") from error


def _bisect(
    encoder: Encoder,
    modality: str,
    call: Call,
    parts: Sequence[Item],
    values: Sequence[Any],
    error: Exception,
) -> list[NDArray[np.float32] | None]:
    """Halve a failing batch until the values at fault stand alone; the others get their vectors."""
    if len(values) == 1:
        if not _is_declared(error):
            try:
                return _checked(encoder, call, values)  # what failed once, as a model may while it warms up
            except EncoderUnavailable:
                raise
            except Exception as again:
                error = again
        require_working(encoder, modality, error)  # it may have broken meanwhile
        parts[0].fail(error)
        return [None]
    out: list[NDArray[np.float32] | None] = []
    middle = len(values) // 2
    for half in (slice(None, middle), slice(middle, None)):
        try:
            out.extend(_checked(encoder, call, values[half]))
        except EncoderUnavailable:
            raise
        except Exception as half_error:
            out.extend(_bisect(encoder, modality, call, parts[half], values[half], half_error))
    return out


def _unit(vector: NDArray[Any]) -> NDArray[np.float64]:
    wide = vector.astype(np.float64)
    length = float(np.linalg.norm(wide))
    return wide / length if length else wide


def too_long_a_text(encoder: Encoder) -> str:
    """What to tell of a text that was cut."""
    return f"Its text is longer than encoder '{encoder.spec}' reads: the end is left out."


def _finish(row: Row, total: NDArray[Any], *, normalize: bool) -> None:
    row.vector = finished(total, normalize=normalize)
    if row.vector is None:
        row.error = InvalidInput("The row's inputs give a zero vector.", "Change the inputs or their weights.")


def finished(total: NDArray[Any], *, normalize: bool) -> NDArray[np.float32] | None:
    """A vector ``(dim,)`` as it is written; None where it is zero."""
    length = float(np.linalg.norm(total))
    return (total / length if normalize else total).astype(np.float32) if length else None


class Abandoned(Exception):
    """A row's batch could not be encoded for no fault of the row's."""


def abandon(batch: Batch) -> None:
    """Mark every row of a batch so that the writer gives its job back."""
    for row in batch.rows:
        row.error = Abandoned()
