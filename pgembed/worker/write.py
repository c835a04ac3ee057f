"""The last stage: write vectors into the rows, take their jobs off the queue, and record what became of the others."""

from __future__ import annotations

import random
import time
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import sql

from pgembed.errors import PgembedError
from pgembed.vectors import bigint_array, vector_array
from pgembed.worker.batch import Abandoned, Batch, Row
from pgembed.worker.faults import is_conflict, is_lost, is_rows_fault, is_transient
from pgembed.worker.queue import Queue, Work
from pgembed.worker.state import Progress

if TYPE_CHECKING:
    from pgembed.worker.run import Session


CONFLICT_TRIES = 3


class Writer:
    """Writes vectors, and what became of the rows that have none."""

    def __init__(self, session: Session, conn: psycopg.Connection[Any]) -> None:
        self.session = session
        self.state = session.state
        self.conn = conn
        self.counted: dict[int, tuple[float, int]] = {}

    def run(self) -> None:
        for batch in self.session.take(self.session.encoded):
            abandoned = any(isinstance(row.error, Abandoned) for row in batch.rows)
            seqs = [row.seq for row in batch.rows]
            try:
                written = self._write(batch.work, batch.rows)
                failed = self._settle(batch.work, [row for row in batch.rows if row.error is not None])
            except psycopg.Error as error:
                if is_lost(self.conn, error):
                    raise  # what is held stays held, until the next session gives it back
                self.state.note_trouble(batch.work, error)
                give_back(self.conn, batch.work, seqs)
            else:
                if not abandoned:
                    self.state.note_success(batch.work)
                self._report(batch, written, failed)
            self.state.let_go(batch.work, seqs)

    def _write(self, work: Work, rows: Sequence[Row]) -> int:
        """Write the rows that have no error; where one row spoils the write, find it by halves."""
        rows = [row for row in rows if row.error is None]
        if not rows:
            return 0
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
                if row.error and is_transient(row.error) and row.attempts + 1 < self.session.options.max_attempts:
                    wait = 2.0**row.attempts * random.uniform(0.5, 1.5)
                    self.conn.execute(statements.postpone, [_sentence(row.error), wait, row.seq])
                else:
                    given_up += self.conn.execute(statements.give_up, [row.seq, _sentence(row.error)]).rowcount
        return given_up

    def _report(self, batch: Batch, written: int, failed: int) -> None:
        self.state.summary.written += written
        self.state.summary.failed += failed
        skipped = sum(1 for row in batch.rows if row.error is None) - written
        if self.state.on_progress is not None:
            left = self._left(batch.work)
            self.state.on_progress(Progress(batch.work.name, written, failed, skipped, left))

    def _left(self, work: Work) -> int:
        """The queue's depth; counted at most once a second, since counting a long queue takes time."""
        at, left = self.counted.get(work.id, (-10.0, 0))
        if time.monotonic() - at > 1:
            with self.conn.transaction():
                row = self.conn.execute(Queue(work).depth).fetchone()
            left = int(row[0]) if row else 0
            self.counted[work.id] = (time.monotonic(), left)
        return left


def write_rows(conn: psycopg.Connection[Any], work: Work, rows: Sequence[Row]) -> int:
    """Write the vectors of claimed rows in one READ COMMITTED transaction, and take their jobs off the queue.

    ``conn`` is a connection of ``session_connection``. Rows that another transaction holds, or whose key is in the log
    again, are given back; a row that a trigger of its table kept as it was gets an error. Returns the jobs done.
    """
    statements = Queue(work)
    there = {row.seq: row for row in rows if not row.gone}
    gone = [row.seq for row in rows if row.gone]
    with conn.transaction():
        locked = _seqs(conn, statements.lock_rows, there)
        conn.execute(statements.lock)
        full = [seq for seq in locked if there[seq].vector is not None]
        written = _write_vectors(conn, work, statements, full, there)
        done = written.union(_seqs(conn, statements.clear, [seq for seq in locked if there[seq].vector is None]), gone)
        if gone:
            conn.execute(statements.finish, [gone])
        refused = _seqs(conn, statements.refused, [seq for seq in locked if seq not in done])
        if skipped := there.keys() - done:
            conn.execute(statements.put_off, [list(skipped)])
        if written:
            conn.execute(statements.count_written, [len(written)])
    for seq in refused:
        there[seq].error = DatabaseRefusal(f"A trigger of {work.schema_name}.{work.table_name} kept the row as it was.")
    return len(done)


def _write_vectors(
    conn: psycopg.Connection[Any], work: Work, statements: Queue, seqs: Sequence[int], rows: Mapping[int, Row]
) -> set[int]:
    if not seqs:
        return set()
    vectors = [vector for seq in seqs if (vector := rows[seq].vector) is not None]
    parameters = [bigint_array(seqs), vector_array(vectors, work.vector_oid)]
    (written,) = conn.execute(statements.write, parameters, binary=True).fetchall()[0]
    return set(written or ())


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


class DatabaseRefusal(PgembedError):
    """The database did not take a row's vector, and raised no error."""


def _seqs(conn: psycopg.Connection[Any], statement: sql.Composed, among: Collection[int]) -> list[int]:
    """The seqs that a statement returns, as one array, out of those it is given."""
    if not among:
        return []
    (found,) = conn.execute(statement, [bigint_array(among)], binary=True).fetchall()[0]
    return found or []


def _sentence(error: Exception | None) -> str:
    """An error as it stands in pgembed.failure: one line, of bounded length."""
    primary = error.diag.message_primary if isinstance(error, psycopg.Error) else None
    text = (primary or str(error)).replace("\x00", "").encode(errors="replace").decode()
    return " ".join(text.split())[:1000] or type(error).__name__
