"""Decoding of pictures, in threads: what a row holds becomes what its encoder takes.

The threads read (from files, from the network) and prepare; the decoding itself is done in processes, unless it is
asked for in the threads: a hostile picture may kill what decodes it, and that shall not be the worker.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from pgembed.decoding.picture import decode_picture
from pgembed.decoding.pool import ProcessPool
from pgembed.decoding.turns import Turns
from pgembed.encoders import Encoder
from pgembed.errors import MediaError
from pgembed.media import MediaPolicy, MediaReader, Source, sources
from pgembed.shown import shown_source
from pgembed.worker.batch import Row
from pgembed.worker.priority import give_way
from pgembed.worker.queue import Work

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

DecodeIn = Literal["processes", "threads"]
SECONDS = 60.0  # of computing, for one picture


class Decoder:
    """Reads pictures under one policy and prepares them for an encoder."""

    def __init__(self, media: MediaPolicy, threads: int, decode_in: DecodeIn = "processes") -> None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self._processes = ProcessPool(min(threads, cores), SECONDS) if decode_in == "processes" else None
        self._media = MediaReader(media, self._processes.decode if self._processes else decode_picture)
        self._turns = Turns(media.limits.max_pixels)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="pgembed-decode", initializer=give_way)

    def close(self) -> None:
        """Drop what is not begun yet."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        if self._processes is not None:
            self._processes.close()
        self._media.close()

    def fill(self, work: Work, encoder: Encoder, row: Row, values: Sequence[Any]) -> list[Future[Any]]:
        """Give a row its inputs, one value a modality; returns the pictures that are being decoded."""
        decoding: list[Future[Any]] = []
        for modality, value in zip(work.modalities, values, strict=True):
            if value is None:
                continue
            if modality == "text":
                row.inputs[modality] = value
                continue
            found = sources(value, work.inputs[modality])
            if len(found) > (most := self._media.policy.limits.max_parts):
                row.error = MediaError(f"The list has {len(found)} pictures, more than {most}.", "Choose some of them.")
                break
            prepare = partial(self._prepare, encoder) if work.parts is None else self._read
            pictures = [(source.number or 0, self._pool.submit(prepare, source)) for source in found]
            decoding += [picture for _, picture in pictures]
            row.inputs[modality] = [*pictures] if work.inputs[modality].get("list") else pictures[0][1]
        return decoding

    def open(self, data: bytes) -> Picture:
        """Decode one picture from the bytes of its file. Raises MediaError."""
        with ExitStack() as turn:
            return self._media.open(data, "bytes", lambda pixels: turn.enter_context(self._turns.hold(pixels)))

    def _read(self, source: Source) -> bytes:
        """What a splitter takes apart is not decoded yet."""
        return self._media.read(source.value, source.kind)

    def _prepare(self, encoder: Encoder, source: Source) -> Any:  # noqa: ANN401
        value, kind = source.value, source.kind
        with ExitStack() as turn:

            def announce(pixels: int) -> None:
                turn.enter_context(self._turns.hold(pixels))

            if self._processes is None or encoder.preparation is None:
                return encoder.preprocess(self._media.open(value, kind, announce))
            data, limits = self._media.read(value, kind), self._media.policy.limits
            shown = shown_source(value, url=kind == "url")
            return self._processes.prepare(data, limits, encoder.preparation, shown=shown, announce=announce)
