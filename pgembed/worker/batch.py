"""A batch of rows on its way through the worker: encode its inputs, find the row that spoils it, fuse what is there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image as PillowImage

from pgembed.encoders import Encoder
from pgembed.errors import EncoderError, EncoderUnavailable, InvalidInput, PgembedError
from pgembed.metering import count_tokens
from pgembed.worker.queue import Work

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass
class Row:
    """One claimed job: what the row holds, and then its vector ``(dim,) float32`` or its own error."""

    seq: int
    attempts: int
    gone: bool = False
    inputs: dict[str, str | Future[Any]] = field(default_factory=dict[str, "str | Future[Any]"])
    vector: NDArray[np.float32] | None = None
    error: Exception | None = None


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
    for modality in batch.work.modalities:
        rows, values = _collect(encoder, batch.rows, modality)
        weight = float(batch.work.inputs[modality]["weight"])
        if modality == "text" and batch.work.settings.get("tokens_per_day"):
            batch.tokens += count_tokens(encoder, values)
        for row, vector in zip(rows, _encode_all(encoder, modality, rows, values), strict=True):
            if vector is not None:
                total = fused.setdefault(row.seq, np.zeros(encoder.dim))
                total += weight * _unit(vector) if len(batch.work.modalities) > 1 else vector
    for row in batch.rows:
        if row.error is None and row.seq in fused:
            _finish(row, fused[row.seq], normalize=encoder.normalized or len(batch.work.modalities) > 1)


def _collect(encoder: Encoder, rows: Sequence[Row], modality: str) -> tuple[list[Row], list[Any]]:
    """The rows that have this input, and the inputs, decoded; a picture that cannot be read is its row's error."""
    chosen: list[Row] = []
    values: list[Any] = []
    for row in rows:
        value = row.inputs.get(modality)
        if value is None or row.error is not None:
            continue
        if isinstance(value, Future):
            try:
                value = value.result()
            except PgembedError as error:
                row.error = error
                continue
            except Exception as error:
                _require_working(encoder, modality, error)
                row.error = error
                continue
        chosen.append(row)
        values.append(value)
    return chosen, values


def _encode_all(
    encoder: Encoder, modality: str, rows: Sequence[Row], values: Sequence[Any]
) -> list[NDArray[np.float32] | None]:
    """One vector a row, None where the row turned out to be at fault."""
    call: Callable[[Sequence[Any]], NDArray[np.float32]] = (
        encoder.embed_texts if modality == "text" else encoder.embed_pixels
    )
    out: list[NDArray[np.float32] | None] = []
    for start in range(0, len(values), encoder.batch_size):
        stop = start + encoder.batch_size
        try:
            out.extend(_checked(encoder, call, values[start:stop]))
        except EncoderUnavailable:
            raise
        except Exception as error:
            _require_working(encoder, modality, error)
            out.extend(_bisect(encoder, modality, call, rows[start:stop], values[start:stop], error))
    return out


def _checked(
    encoder: Encoder, call: Callable[[Sequence[Any]], NDArray[np.float32]], values: Sequence[Any]
) -> list[NDArray[np.float32] | None]:
    vectors = np.asarray(call(values), dtype=np.float32)
    if vectors.shape != (len(values), encoder.dim):
        raise EncoderError(
            f"Encoder '{encoder.spec}' returned an array of shape {vectors.shape} for {len(values)} inputs of"
            f" {encoder.dim} dimensions."
        )
    if not np.isfinite(vectors).all():
        raise _NotFinite("The encoder returned a vector that is not finite.")
    return list(vectors)


class _NotFinite(InvalidInput):
    """A vector with a NaN or an infinity: a row's fault, unless a plain input gives one too."""


def _is_declared(error: Exception) -> bool:
    """Whether an encoder says itself that an input is one it cannot encode."""
    return isinstance(error, InvalidInput) and not isinstance(error, _NotFinite)


def _require_working(encoder: Encoder, modality: str, error: Exception) -> None:
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
    call: Callable[[Sequence[Any]], NDArray[np.float32]],
    rows: Sequence[Row],
    values: Sequence[Any],
    error: Exception,
) -> list[NDArray[np.float32] | None]:
    """Halve a failing batch until the rows at fault stand alone; the others get their vectors."""
    if len(values) == 1:
        _require_working(encoder, modality, error)  # it may have broken meanwhile
        rows[0].error = error
        return [None]
    out: list[NDArray[np.float32] | None] = []
    middle = len(values) // 2
    for part in (slice(None, middle), slice(middle, None)):
        try:
            out.extend(_checked(encoder, call, values[part]))
        except EncoderUnavailable:
            raise
        except Exception as half_error:
            out.extend(_bisect(encoder, modality, call, rows[part], values[part], half_error))
    return out


def _unit(vector: NDArray[Any]) -> NDArray[np.float64]:
    wide = vector.astype(np.float64)
    length = float(np.linalg.norm(wide))
    return wide / length if length else wide


def _finish(row: Row, total: NDArray[Any], *, normalize: bool) -> None:
    length = float(np.linalg.norm(total))
    if length == 0:
        row.error = InvalidInput("The row's inputs give a zero vector.", "Change the inputs or their weights.")
    else:
        row.vector = (total / length if normalize else total).astype(np.float32)


class Abandoned(Exception):
    """A row's batch could not be encoded for no fault of the row's."""


def abandon(batch: Batch) -> None:
    """Mark every row of a batch so that the writer gives its job back."""
    for row in batch.rows:
        row.error = Abandoned()
