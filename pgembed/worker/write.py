"""The last stage: write vectors into the rows, take their jobs off the queue, and record what became of the others."""

from __future__ import annotations

import random
import time
from collections.abc import Collection, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg.pq import TransactionStatus
from psycopg.waiting import Ready, Wait

from pgembed.errors import PgembedError
from pgembed.vectors import bigint_array, sparse_vector_array, vector_array
from pgembed.worker.batch import Abandoned, Batch, Row
from pgembed.worker.faults import is_conflict, is_lost, is_rows_fault, is_transient
from pgembed.worker.part_queue import PartQueue
from pgembed.worker.pipes import Pipes
from pgembed.worker.queue import Queue, Work
from pgembed.worker.state import Progress

CONFLICT_TRIES = 3
MOST_PIECES = 10_000  # parts written in one transaction, unless one row has more
COUNT_EVERY = 1.0  # seconds


@dataclass
class Tally:
    """What was done of an embedding since it was last written down, and what was left in its queue then."""

    work: Work
    uncounted: int = 0
    tokens: int = 0
    counted_at: float = -COUNT_EVERY
    left: int = 0
    warned: bool = False
    written: int = 0
    busy: float = 0.0  # seconds in which some batch was in hand
    busy_until: float = 0.0

    def add(self, written: int, began_at: float) -> None:
        """Count a batch that is done, and the time since it began, but no second twice: batches overlap."""
        now = time.monotonic()
        self.busy += now - max(began_at, self.busy_until)
        self.busy_until = now
        self.written += written


class Writer:
    """Writes vectors, and what became of the rows that have none."""

    def __init__(self, pipes: Pipes, conn: psycopg.Connection[Any]) -> None:
        self.pipes = pipes
        self.state = pipes.state
        self.conn = conn
        self.tallies: dict[int, Tally] = {}

    def run(self) -> None:
        for batch in self.pipes.take(self.pipes.encoded):
            abandoned = any(isinstance(row.error, Abandoned) for row in batch.rows)
            seqs = [row.seq for row in batch.rows]
            written = failed = 0
            try:
                if batch.work.mode == "instant":
                    written, failed = self._fill(batch)
                else:
                    if batch.work.has_budget:
                        self._spend(batch)
                    written = self._write(batch.work, batch.rows)
                    failed = self._settle(batch.work, [row for row in batch.rows if row.error is not None])
            except psycopg.Error as error:
                if is_lost(self.conn, error):
                    raise  # what is held stays held, until the next session gives it back
                if not is_detached(self.conn, batch.work, error):
                    self.state.note_trouble(batch.work, error)
                    give_back(self.conn, batch.work, seqs)
            else:
                if not abandoned:
                    self.state.note_success(batch.work)
            self._report(batch, written, failed)
            self.state.let_go(batch.work, seqs)  # after they are counted: what is neither held nor counted is free
        for tally in self.tallies.values():
            self._count(tally)

    def _fill(self, batch: Batch) -> tuple[int, int]:
        """Have SQL encode rows that wait, and count them."""
        statement = "SELECT written, failed FROM pgembed._fill_rows($1, $2)"
        for left in reversed(range(CONFLICT_TRIES)):
            try:
                with self.conn.transaction():
                    return self.conn.execute(statement, [batch.work.id, batch.limit]).fetchall()[0]
            except psycopg.Error as error:
                if not is_conflict(error) or not left:
                    raise
                time.sleep(random.uniform(0, 0.1))
        return 0, 0

    def _write(self, work: Work, rows: Sequence[Row]) -> int:
        """Write the rows that have no error; where one row spoils the write, find it by halves."""
        rows = [row for row in rows if row.error is None]
        if not rows:
            return 0
        if work.parts is not None and len(rows) > 1 and sum(len(row.pieces or ()) for row in rows) > MOST_PIECES:
            middle = len(rows) // 2
            return self._write(work, rows[:middle]) + self._write(work, rows[middle:])
        try:
            return self._write_together(work, rows)
        except psycopg.Error as error:
            if not is_rows_fault(error):
                raise
            if len(rows) == 1:
                rows[0].error = error
                return 0
            middle = len(rows) // 2
            return self._write(work, rows[:middle]) + self._write(work, rows[middle:])

    def _write_together(self, work: Work, rows: Sequence[Row]) -> int:
        for left in reversed(range(CONFLICT_TRIES)):
            try:
                return write_rows(self.conn, work, rows)
            except psycopg.Error as error:
                if not is_conflict(error) or not left:
                    raise
                time.sleep(random.uniform(0, 0.1))
        return 0

    def _settle(self, work: Work, rows: Sequence[Row]) -> int:
        """Rows with an error of their own: later again, or given up. Abandoned rows are released."""
        give_back(self.conn, work, [row.seq for row in rows if isinstance(row.error, Abandoned)])
        rows = [row for row in rows if not isinstance(row.error, Abandoned)]
        if not rows:
            return 0
        statements = Queue(work)
        given_up = 0
        with self.conn.transaction():
            self.conn.execute(statements.lock)
            for row in rows:
                if row.error and is_transient(row.error) and row.attempts + 1 < self.pipes.options.max_attempts:
                    wait = 2.0**row.attempts * random.uniform(0.5, 1.5)
                    self.conn.execute(statements.postpone, [_sentence(row.error), wait, row.seq])
                else:
                    given_up += self.conn.execute(statements.give_up, [row.seq, _sentence(row.error)]).rowcount
        return given_up

    def _report(self, batch: Batch, written: int, failed: int) -> None:
        self.state.summary.written += written
        self.state.summary.failed += failed
        tally = self.tallies.setdefault(batch.work.id, Tally(batch.work))
        tally.add(written, batch.began_at)
        tally.left = max(0, tally.left - written - failed)
        if not batch.work.has_budget and batch.work.mode == "queue":
            tally.uncounted += written
        if time.monotonic() - tally.counted_at > COUNT_EVERY:
            self._count(tally)
        skipped = max(0, sum(1 for row in batch.rows if row.error is None) - written)
        rate = round(tally.written / tally.busy, 1) if tally.busy else 0.0
        step = Progress(batch.work.name, written, failed, skipped, tally.left, rate)
        self.state.count(step)
        if self.state.on_progress is not None:
            self.state.on_progress(step)

    def _spend(self, batch: Batch) -> None:
        """Count what was encoded against the budget, before it is written: it is paid for, whatever becomes of it.

        What cannot be counted is not written: the budget would be overrun, and nobody told.
        """
        tally = self.tallies.setdefault(batch.work.id, Tally(batch.work))
        tally.uncounted += sum(row.is_encoded for row in batch.rows)
        tally.tokens += batch.tokens
        self._add_up(tally)

    def _count(self, tally: Tally) -> None:
        """Add to the rate that status shows, and look how much is left: now and then, since both take time. Of an
        embedding that may be detached by now, or that the role may not count for: neither keeps the work."""
        try:
            (tally.left,) = self.conn.execute(Queue(tally.work).depth).fetchall()[0]
        except psycopg.Error as error:
            if is_lost(self.conn, error):
                raise
            tally.left = 0
        try:
            self._add_up(tally)
        except psycopg.Error as error:
            if is_lost(self.conn, error):
                raise
            if isinstance(error, psycopg.errors.InsufficientPrivilege) and not tally.warned:
                tally.warned = True
                self.state.log.warning(
                    "rows are not counted", embedding=tally.work.name, error=_sentence(error), remedy="pgembed doctor"
                )
            tally.uncounted = tally.tokens = 0
        tally.counted_at = time.monotonic()

    def _add_up(self, tally: Tally) -> None:
        """Write down what was done since the last time."""
        statements = Queue(tally.work)
        with self.conn.transaction():
            self.conn.execute(statements.lock)
            self.conn.execute(statements.count_written, [tally.uncounted, tally.tokens])
        tally.uncounted = tally.tokens = 0


def write_rows(conn: psycopg.Connection[Any], work: Work, rows: Sequence[Row]) -> int:
    """Write the vectors of claimed rows in one READ COMMITTED transaction, and take their jobs off the queue.

    ``conn`` is a connection of ``session_connection``. Rows that another transaction holds, or whose key is in the log
    again, are given back; a row that a trigger of its table kept as it was gets an error. Returns the jobs done.

    Each round trip ends with a Sync, and no Flush follows: otherwise a server would not count as idle in a transaction,
    and hold the rows and the queue for as long as it does not notice that this worker is cut off.
    """
    if work.parts is not None:
        return _write_parts(conn, work, rows)
    statements = Queue(work)
    vectors = {row.seq: row.vector for row in rows if row.vector is not None and not row.gone}
    there = [row.seq for row in rows if not row.gone]
    gone = [row.seq for row in rows if row.gone]
    done = set(gone)
    with _pipelined_transaction(conn) as pipeline:
        locking = conn.execute(statements.lock_rows, [bigint_array(there)], binary=True)
        conn.execute(statements.lock)
        packed = vector_array(list(vectors.values()), work.vector_oid) if vectors else None  # while the server locks
        _sync(conn, pipeline)
        locked, placeless = (set(seqs or ()) for seqs in locking.fetchall()[0])
        _note_cuts(conn, statements, rows, locked)
        for part in (vectors.keys() & placeless, vectors.keys() & locked - placeless):
            if part:
                full = [seq for seq in vectors if seq in part]
                if packed is None or len(full) < len(vectors):
                    packed = vector_array([vectors[seq] for seq in full], work.vector_oid)
                statement = statements.insert if part <= placeless else statements.write
                done.update(_array(conn, pipeline, conn.execute(statement, [bigint_array(full), packed], binary=True)))
                packed = None
        if empty := locked.difference(vectors):
            done.update(_array(conn, pipeline, conn.execute(statements.clear, [bigint_array(empty)], binary=True)))
        if gone:
            conn.execute(statements.finish, [gone])
        refused: list[int] = []
        if (unwritten := locked - done) and work.side is None:
            refused = _array(conn, pipeline, conn.execute(statements.refused, [bigint_array(unwritten)], binary=True))
        if skipped := [seq for seq in there if seq not in done]:
            conn.execute(statements.put_off, [skipped])
    for row in rows:
        if row.seq in refused:
            row.error = DatabaseRefusal(f"A trigger of {work.schema_name}.{work.table_name} kept the row as it was.")
    return len(done)


def _write_parts(conn: psycopg.Connection[Any], work: Work, rows: Sequence[Row]) -> int:
    """The same for rows with parts: all of a row's are replaced at once, and who reads sees the old or the new."""
    statements = PartQueue(work)
    there = {row.seq: row for row in rows if not row.gone}
    gone = [row.seq for row in rows if row.gone]
    done = set(gone)
    with _pipelined_transaction(conn) as pipeline:
        locking = conn.execute(statements.lock_rows, [bigint_array(there)], binary=True)
        conn.execute(statements.lock)
        _sync(conn, pipeline)
        locked: set[int] = set(locking.fetchall()[0][0] or ())
        _note_cuts(conn, statements, rows, locked)
        if full := [row for seq, row in there.items() if seq in locked and row.pieces]:
            pieces = [
                (row.seq, number, piece) for row in full for number, piece in enumerate(row.pieces or (), start=1)
            ]
            seqs, numbers, made = zip(*pieces, strict=True)
            values = [
                bigint_array(seqs), list(numbers), [piece.kind for piece in made],
                [piece.location for piece in made],
                [None if piece.content is None else _text(piece.content) for piece in made],
                [piece.hash for piece in made], sparse_vector_array([piece.vector for piece in made], work.vector_oid),
            ]  # fmt: skip
            done.update(_array(conn, pipeline, conn.execute(statements.write_parts, values, binary=True)))
        if empty := [seq for seq, row in there.items() if seq in locked and not row.pieces]:
            done.update(_array(conn, pipeline, conn.execute(statements.clear, [bigint_array(empty)], binary=True)))
        if gone:
            conn.execute(statements.finish, [gone])
        if skipped := [seq for seq in there if seq not in done]:
            conn.execute(statements.put_off, [skipped])
    return len(done)


def _note_cuts(conn: psycopg.Connection[Any], statements: Queue, rows: Sequence[Row], locked: Collection[int]) -> None:
    """Note which rows are not whole in their vectors, while they have their jobs."""
    if cut := {row.seq: row.cut for row in rows if row.cut is not None and row.is_encoded and row.seq in locked}:
        conn.execute(statements.note_cuts, [bigint_array(cut), list(cut.values())], binary=True)


@contextmanager
def _pipelined_transaction(conn: psycopg.Connection[Any]) -> Generator[psycopg.Pipeline]:
    """A pipeline that is one transaction, or part of the one that is open, as in a test.

    ``conn.transaction()`` in a pipeline waits once more before it commits, and asks for that with a Flush.
    """
    if conn.info.transaction_status is not TransactionStatus.IDLE:
        with conn.transaction(), conn.pipeline() as pipeline:
            yield pipeline
        return
    try:
        with conn.pipeline() as pipeline:
            conn.execute("BEGIN ISOLATION LEVEL READ COMMITTED", prepare=False)
            yield pipeline
            conn.execute("COMMIT", prepare=False)
    except BaseException:
        if not conn.closed:
            conn.rollback()
        raise


def _array(conn: psycopg.Connection[Any], pipeline: psycopg.Pipeline, cursor: psycopg.Cursor[Any]) -> list[int]:
    """The seqs that a statement returned as one array."""
    _sync(conn, pipeline)
    (found,) = cursor.fetchall()[0]
    return found or []


def _sync(conn: psycopg.Connection[Any], pipeline: psycopg.Pipeline) -> None:
    """End a round trip. What is large is sent to its end first: psycopg would wait for an answer to a part of it."""
    conn.wait(_sent(conn.pgconn))
    pipeline.sync()


def _sent(pgconn: psycopg.pq.abc.PGconn) -> Generator[Wait, Ready | int, None]:
    while pgconn.flush():
        if (yield Wait.RW) & Ready.R:
            pgconn.consume_input()


def give_back(conn: psycopg.Connection[Any], work: Work, seqs: Sequence[int]) -> None:
    """Release claimed jobs, for whoever comes next; where the queue is not what it was, their leases run out."""
    if not seqs:
        return
    try:
        with conn.transaction():
            conn.execute(Queue(work).lock)
            conn.execute(Queue(work).release, [list(seqs)])
    except psycopg.Error as error:
        if is_lost(conn, error):
            raise


def is_detached(conn: psycopg.Connection[Any], work: Work, error: Exception) -> bool:
    """Whether a statement failed because the embedding was detached meanwhile, which is no trouble."""
    if not isinstance(error, psycopg.errors.UndefinedTable | psycopg.errors.UndefinedColumn):
        return False
    return conn.execute(Queue(work).attached).fetchone() == (False,)


class DatabaseRefusal(PgembedError):
    """The database did not take a row's vector, and raised no error."""


def _sentence(error: Exception | None) -> str:
    """An error as it stands in pgembed.failure: one line, of bounded length."""
    primary = error.diag.message_primary if isinstance(error, psycopg.Error) else None
    return " ".join(_text(primary or str(error)).split())[:1000] or type(error).__name__


def _text(text: str) -> str:
    """A text as Postgres takes it: without what it has no character for."""
    return text.replace("\x00", "").encode(errors="replace").decode()
