"""An encoder that does not return: noticed from outside, and what it had in hand goes back to the queue.

No thread can be ended from another, so the worker leaves: who looks after it starts a new one. Until then the rows
that were at the encoder wait, each for another time, so that the one that it cannot do comes with others or alone.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any, cast

import psycopg

from pgembed.encoders import Encoder
from pgembed.errors import EncoderTimeout
from pgembed.worker.batch import Batch
from pgembed.worker.queue import Queue

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


Turn = Callable[[], AbstractContextManager[None]]


class Watch:
    """Since when the encoder has been at work on a batch."""

    def __init__(self, seconds: float) -> None:
        """``seconds`` that one call of an encoder may take; 0: as long as it likes."""
        self.seconds = seconds
        self.batch: Batch | None = None
        self._since: float | None = None

    def over(self, encoder: Encoder, turn: Turn) -> Encoder:
        """The same encoder, and each call of it waits for its turn and is noticed."""
        return cast("Encoder", Watched(encoder, self, turn))

    @contextmanager
    def noticed(self) -> Generator[None]:
        """Around a call of the encoder."""
        self._since = time.monotonic()
        try:
            yield
        finally:
            self._since = None

    def overdue(self) -> Batch | None:
        """The batch from which the encoder should have returned long ago."""
        since = self._since
        return self.batch if self.seconds and since is not None and time.monotonic() - since > self.seconds else None

    def error(self, batch: Batch) -> EncoderTimeout:
        """What to say of it."""
        rows = f"{len(batch.rows)} row{'s' * (len(batch.rows) > 1)}"
        return EncoderTimeout(
            f"Encoder '{batch.work.spec}' has not returned from a batch of {rows} of {batch.work.name}"
            f" for {self.seconds:g} seconds; the worker leaves.",
            "Start it again; where the encoder is only slow, allow it more: --encode-timeout SECONDS.",
        )

    def put_off(self, conn: psycopg.Connection[Any], batch: Batch, max_attempts: int) -> None:
        """Have the rows of an overdue batch wait; one that was alone, and was so late each time, is given up."""
        statements = Queue(batch.work)
        told = f"The encoder did not return within {self.seconds:g} seconds."
        with conn.transaction():
            conn.execute(statements.lock)
            for row in batch.rows:
                if len(batch.rows) == 1 and row.attempts + 1 >= max_attempts:
                    conn.execute(statements.give_up, [row.seq, told])
                else:
                    wait = self.seconds * 2.0 ** min(row.attempts, 10) * random.uniform(0.5, 1.5)
                    conn.execute(statements.postpone, [told, wait, row.seq])


class Watched:
    """Stands for an encoder, and notes when it is called and when it returns."""

    def __init__(self, encoder: Encoder, watch: Watch, turn: Turn) -> None:
        self._encoder = encoder
        self._watch = watch
        self._turn = turn

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        return getattr(self._encoder, name)

    def embed_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        with self._turn(), self._watch.noticed():
            return self._encoder.embed_texts(texts)

    def embed_pixels(self, pixels: Sequence[Any]) -> NDArray[np.float32]:
        with self._turn(), self._watch.noticed():
            return self._encoder.embed_pixels(pixels)

    def embed_spans(self, text: str, spans: Sequence[tuple[int, int]]) -> NDArray[np.float32]:
        with self._turn(), self._watch.noticed():
            return self._encoder.embed_spans(text, spans)
