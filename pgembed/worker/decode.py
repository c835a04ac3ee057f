"""Decoding of pictures, in threads: what a row holds becomes what its encoder takes."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from pgembed.encoders import Encoder
from pgembed.media import MediaPolicy, MediaReader
from pgembed.worker.batch import Row
from pgembed.worker.priority import give_way
from pgembed.worker.queue import Work

if TYPE_CHECKING:
    from pgembed.inputs import SourceKind


class Decoder:
    """Reads pictures under one policy and prepares them for an encoder."""

    def __init__(self, media: MediaPolicy, threads: int) -> None:
        self._media = MediaReader(media)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="pgembed-decode", initializer=give_way)

    def close(self) -> None:
        """Drop what is not begun yet."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._media.close()

    def fill(self, work: Work, encoder: Encoder, row: Row, values: Sequence[Any]) -> list[Future[Any]]:
        """Give a row its inputs, one value a modality; returns the pictures that are being decoded."""
        decoding: list[Future[Any]] = []
        for modality, value in zip(work.modalities, values, strict=True):
            if value is None:
                continue
            if modality == "text":
                row.inputs[modality] = value
            else:
                decoding.append(future := self._decode(work, encoder, modality, value))
                row.inputs[modality] = future
        return decoding

    def _decode(self, work: Work, encoder: Encoder, modality: str, value: str | bytes) -> Future[Any]:
        kind: SourceKind = work.inputs[modality]["as"]
        return self._pool.submit(lambda: encoder.preprocess(self._media.open(value, kind)))
