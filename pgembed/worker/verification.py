"""Verify: rows are read, decoded and encoded again as the worker does it, and compared with the vectors they have.

Nothing is locked and nothing written, but the log where ``repair`` asks for it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import psycopg
from psycopg.rows import class_row
from psycopg.types.json import Jsonb

from pgembed.encoders import Encoder, EncoderPolicy
from pgembed.errors import CatalogError, InvalidInput
from pgembed.media import MediaPolicy
from pgembed.media_errors import too_long
from pgembed.worker.batch import Batch, Row
from pgembed.worker.catalog import READ, fault_of
from pgembed.worker.decode import Decoder
from pgembed.worker.keys import Key, KeyQueue
from pgembed.worker.memory import READ_BYTES, largest_row, parts
from pgembed.worker.queue import Work
from pgembed.worker.run import Connect, session_connection
from pgembed.worker.splitting import encode_rows
from pgembed.worker.state import State, WorkerOptions

if TYPE_CHECKING:
    from numpy.typing import NDArray

COSINE = 0.999  # as far as half precision and other hardware may move a vector; another input is far below it
DISTANCE = math.sqrt(2 * (1 - COSINE))  # the same for vectors compared by length too, of the longer one's length
SAMPLE = 1_000
SHOWN = 20  # keys of each kind that a report has
PAGE = 64  # rows read at once: their pictures are in memory, twice
KEYS = 5_000  # keys read at once
OVERSAMPLE = 20  # a large table's sample is drawn from pages that hold so many times more rows: pages are not random


@dataclass
class Found:
    """How many rows of one kind there are, and the keys, as texts, of the first 20."""

    count: int = 0
    keys: list[Key] = field(default_factory=list[Key])

    def add(self, key: Key) -> None:
        """Count one more."""
        self.count += 1
        if len(self.keys) < SHOWN:
            self.keys.append(key)


@dataclass
class Verification:
    """What ``verify`` found of one embedding.

    ``rows`` were looked at. Of these ``waiting`` are in the queue and ``failed`` were given up: neither is compared.
    ``differing`` have a vector that is not that of their inputs, ``missing`` inputs and no vector, ``unfounded`` a
    vector and no input. ``left_over`` are vectors of a side table without a row. ``unchecked`` could not be encoded
    now, for ``reasons``. ``repaired`` were put into the queue.
    """

    embedding: str
    tolerance: str
    rows: int = 0
    matching: int = 0
    waiting: int = 0
    failed: int = 0
    differing: Found = field(default_factory=Found)
    missing: Found = field(default_factory=Found)
    unfounded: Found = field(default_factory=Found)
    left_over: Found = field(default_factory=Found)
    unchecked: Found = field(default_factory=Found)
    reasons: list[str] = field(default_factory=list[str])
    repaired: int = 0

    @property
    def ok(self) -> bool:
        """Whether every row that was looked at, and neither waits nor failed, was found to be true."""
        kinds = (self.differing, self.missing, self.unfounded, self.left_over, self.unchecked)
        return not any(kind.count for kind in kinds)


@dataclass(frozen=True)
class VerifyOptions:
    """What to look at: ``sample`` rows at random, or all where it is None; and what rows may name, as for a worker."""

    sample: int | None = SAMPLE
    repair: bool = False
    media: MediaPolicy = field(default_factory=MediaPolicy)
    encoders: EncoderPolicy = field(default_factory=EncoderPolicy.from_environment)
    decode_threads: int = 4


def verify(
    connect: Connect,
    embedding: int,
    options: VerifyOptions,
    on_progress: Callable[[int, int], None] | None = None,
) -> Verification:
    """Compare the vectors of an embedding with fresh ones. ``on_progress`` is told of rows done, and about of how many.

    Raises EncoderMismatch where the loaded model is not the registered one, and EncoderError where it does not work.
    """
    if options.sample is not None and options.sample < 1:
        raise InvalidInput(f"A sample has one row at least, not {options.sample}.", "Give None for all rows.")
    with session_connection(connect, "A verification") as conn:
        conn.execute("SELECT pg_catalog.set_config('application_name', 'pgembed verify', false)")
        conn.execute("SELECT pg_catalog.set_config('synchronous_commit', 'on', false)")
        work = _work(conn, embedding)
        encoder = State(WorkerOptions(encoders=options.encoders), None).encoder(work)
        decoder = Decoder(options.media, options.decode_threads)
        try:
            return Verifier(conn, work, encoder, decoder, options).run(on_progress)
        finally:
            decoder.close()


def _work(conn: psycopg.Connection[Any], embedding: int) -> Work:
    with conn.cursor(row_factory=class_row(Work)) as cursor:
        work = cursor.execute(f"{READ} WHERE id = $1".encode(), [embedding]).fetchone()
    if work is not None and (fault := fault_of(work)):
        raise CatalogError(f"{work.name} cannot be verified. {fault}", "Run pgembed doctor.")
    if work is None or not work.present:
        raise CatalogError(
            "The embedding's table, its triggers or its side table are not there.",
            "Run pgembed doctor, which tells what is missing; a table that was just attached must be committed.",
        )
    return work


@dataclass
class Look:
    """A page of rows as one statement saw it; ``rows`` are those that are to be compared, by their number."""

    keys: Sequence[Key]
    batch: Batch
    vectors: dict[int, NDArray[np.float32] | None] = field(default_factory=dict[int, "NDArray[np.float32] | None"])
    waiting: int = 0
    failed: int = 0
    gone: int = 0


class Verifier:
    """One verification on one connection of ``session_connection``."""

    def __init__(
        self,
        conn: psycopg.Connection[Any],
        work: Work,
        encoder: Encoder,
        decoder: Decoder,
        options: VerifyOptions,
    ) -> None:
        self.conn = conn
        self.work = work
        self.encoder = encoder
        self.decoder = decoder
        self.options = options
        self.statements = KeyQueue(work)
        tolerance = f"cosine >= {COSINE}" if work.metric == "cosine" else f"relative distance <= {DISTANCE:.3f}"
        self.report = Verification(work.name, tolerance)

    def run(self, on_progress: Callable[[int, int], None] | None) -> Verification:
        total = self._estimate(side=False)
        if self.options.sample is not None:
            total = min(self.options.sample, total or self.options.sample)
        before: Look | None = None
        for keys in self._parts():
            look = self._look(keys)  # its pictures are decoded while the page before is encoded
            if before is not None:
                self._judge(before)
            before = look
            if on_progress is not None:
                on_progress(self.report.rows, max(total, self.report.rows))
        if before is not None:
            self._judge(before)
        if on_progress is not None:
            on_progress(self.report.rows, self.report.rows)
        if self.work.side is not None:
            for keys in self._pages(side=True, size=KEYS):
                self._judge_left_over(keys)
        return self.report

    def _parts(self) -> Iterator[Sequence[Key]]:
        """The keys of the rows to look at, as many at once as their pictures leave room for."""
        for keys in self._pages(side=False, size=PAGE):
            sizes = self._sizes(keys)
            for part in parts(range(len(keys)), lambda place, sizes=sizes: sizes[place], most=PAGE, room=READ_BYTES):
                yield keys[part[0] : part[-1] + 1]

    def _sizes(self, keys: Sequence[Key]) -> list[int]:
        """The bytes of the rows' pictures, where they stand in the database."""
        if self.statements.sizes_of_keys is None:
            return [0] * len(keys)
        try:
            with self.conn.transaction():
                found = dict(self.conn.execute(self.statements.sizes_of_keys, [Jsonb(keys)]).fetchall())
        except psycopg.DataError:  # a value that cannot be computed is found when it is read
            return [READ_BYTES] * len(keys)  # each alone
        return [found.get(n, 0) for n in range(1, len(keys) + 1)]

    def _pages(self, *, side: bool, size: int) -> Iterator[Sequence[Key]]:
        """The keys to look at, so many at once."""
        if self.options.sample is not None:
            keys = self._sample(self.options.sample, side=side)
            yield from (keys[start : start + size] for start in range(0, len(keys), size))
            return
        after: Key | None = None
        while keys := self._keys(self.statements.next_keys(after, KEYS, side=side)):
            after = keys[-1]
            yield from (keys[start : start + size] for start in range(0, len(keys), size))

    def _sample(self, count: int, *, side: bool) -> list[Key]:
        """Keys at random: of a large table from a share of its pages, of which there are many more than keys."""
        estimate = self._estimate(side=side)
        with self.conn.transaction():
            self.conn.execute("SELECT pg_catalog.set_config('enable_seqscan', 'on', true)")
            if (wanted := count * OVERSAMPLE) < estimate / 2:
                keys = self._keys(self.statements.random_keys(count, 100 * wanted / estimate, side=side))
                if len(keys) == count:
                    return keys
            return self._keys(self.statements.random_keys(count, None, side=side))

    def _keys(self, statement: Any) -> list[Key]:  # noqa: ANN401
        return [key for (key,) in self.conn.execute(statement).fetchall()]

    def _estimate(self, *, side: bool) -> int:
        return int(self.conn.execute(self.statements.estimate(side=side)).fetchall()[0][0])

    def _look(self, keys: Sequence[Key]) -> Look:
        """What the rows hold, and which of them wait."""
        look = Look(keys, Batch(self.work, [], time.monotonic()))
        most = max(READ_BYTES, largest_row(self.work, self.options.media.limits))
        if len(keys) == 1 and (size := self._sizes(keys)[0]) > most:  # it was given a part of its own
            look.batch.rows.append(Row(1, 0, error=too_long("of the row", size, most)))
            look.vectors[1] = None
            return look
        for n, there, waits, failed, vector, *values in self._fetch(keys, 0, look):
            if not there:
                look.gone += 1
            elif waits:
                look.waiting += 1
            elif failed:
                look.failed += 1
            else:
                row = Row(n, 0)
                self.decoder.fill(self.work, self.encoder, row, values)
                look.vectors[n] = None if vector is None else np.asarray(vector, dtype=np.float32)
                look.batch.rows.append(row)
        return look

    def _fetch(self, keys: Sequence[Key], first: int, look: Look) -> list[tuple[Any, ...]]:
        """Read rows, numbered from ``first`` + 1 on; one whose values cannot be computed is found by halves."""
        try:
            with self.conn.transaction(), self.conn.cursor(binary=True) as cursor:
                found = cursor.execute(self.statements.look, [Jsonb(keys)]).fetchall()
            return [(first + n, *values) for n, *values in found]
        except psycopg.DataError as error:
            if len(keys) == 1:
                look.batch.rows.append(Row(first + 1, 0, error=error))
                look.vectors[first + 1] = None
                return []
            middle = len(keys) // 2
            return self._fetch(keys[:middle], first, look) + self._fetch(keys[middle:], first + middle, look)

    def _judge(self, look: Look) -> None:
        """Compare; what is not true is read and compared once more, since it may have been mended meanwhile."""
        verdicts = self._verdicts(look)
        self._count(look)
        doubtful = [n for n, kind in verdicts.items() if kind != "matching"]
        self.report.matching += len(verdicts) - len(doubtful)
        if not doubtful:
            return
        again = self._look([look.keys[n - 1] for n in doubtful])
        self.report.rows -= len(doubtful)
        verdicts = self._verdicts(again)
        self._count(again)
        wrong: list[Key] = []
        for row in again.batch.rows:
            key, kind = again.keys[row.seq - 1], verdicts[row.seq]
            if kind == "matching":
                self.report.matching += 1
                continue
            getattr(self.report, kind).add(key)
            if kind != "unchecked":
                wrong.append(key)
            elif (reason := _reason(row.error)) not in self.report.reasons and len(self.report.reasons) < SHOWN:
                self.report.reasons.append(reason)
        self._repair(wrong)

    def _count(self, look: Look) -> None:
        self.report.rows += len(look.keys) - look.gone
        self.report.waiting += look.waiting
        self.report.failed += look.failed

    def _verdicts(self, look: Look) -> dict[int, str]:
        """By number, which part of the report a row belongs to."""
        rows, batch = look.batch.rows, look.batch
        compared = [row for row in rows if row.error or (row.inputs and look.vectors[row.seq] is not None)]
        fresh = Batch(batch.work, compared, batch.began_at)
        encode_rows(self.encoder, fresh, self.options.media.limits)
        verdicts: dict[int, str] = {}
        for row in rows:
            vector = look.vectors[row.seq]
            if row.error is not None:
                verdicts[row.seq] = "unchecked"
            elif not row.inputs:
                verdicts[row.seq] = "matching" if vector is None else "unfounded"
            elif vector is None:
                verdicts[row.seq] = "missing"
            else:
                same = _are_same(vector, row, self.work.metric)
                verdicts[row.seq] = "matching" if same else "differing"
        return verdicts

    def _judge_left_over(self, keys: Sequence[Key]) -> None:
        found = self._left_over(keys)
        wrong = [key for key, waits in self._left_over([key for key, waits in found if not waits]) if not waits]
        for key in wrong:
            self.report.left_over.add(key)
        self._repair(wrong)

    def _left_over(self, keys: Sequence[Key]) -> list[tuple[Key, bool]]:
        if not keys:
            return []
        found = self.conn.execute(self.statements.left_over, [Jsonb(keys)]).fetchall()
        return [(keys[n - 1], waits) for n, waits in found]

    def _repair(self, keys: Sequence[Key]) -> None:
        if keys and self.options.repair:
            self.report.repaired += self.conn.execute(self.statements.requeue, [Jsonb(keys)]).fetchall()[0][0]


def _are_same(stored: NDArray[np.float32], row: Row, metric: str) -> bool:
    """Whether what a row has stored, ``(dim,)`` or of parts ``(n, dim)``, is what was encoded now."""
    if row.vector is not None:
        return is_same(stored, row.vector, metric)
    fresh = [piece.vector for piece in row.pieces or ()]
    return len(stored) == len(fresh) and all(
        new is not None and is_same(old, new, metric) for old, new in zip(stored, fresh, strict=True)
    )


def is_same(stored: NDArray[np.float32], fresh: NDArray[np.float32], metric: str) -> bool:
    """Whether two vectors ``(dim,) float32`` are one but for noise: of precision, and of the hardware."""
    if stored.shape != fresh.shape:
        return False
    one, other = stored.astype(np.float64), fresh.astype(np.float64)
    lengths = float(np.linalg.norm(one)), float(np.linalg.norm(other))
    if metric == "cosine":
        return min(lengths) > 0 and float(one @ other) >= COSINE * lengths[0] * lengths[1]
    return float(np.linalg.norm(one - other)) <= DISTANCE * max(lengths)


def _reason(error: Exception | None) -> str:
    primary = error.diag.message_primary if isinstance(error, psycopg.Error) else None
    return primary or str(error) or type(error).__name__
