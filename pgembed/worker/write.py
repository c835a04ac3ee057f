"""The last stage: write vectors into the rows, take their jobs off the queue, and record what became of the others."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import psycopg

from pgembed.vectors import COPY_END, copy_header, copy_row_without_vector, copy_rows
from pgembed.worker.batch import Abandoned, Batch, Row, is_transient
from pgembed.worker.queue import Queue, Work
from pgembed.worker.state import Progress

if TYPE_CHECKING:
    from pgembed.worker.run import Session


class Writer:
    """Writes vectors, and what became of the rows that have none."""

    def __init__(self, session: Session, conn: psycopg.Connection[Any]) -> None:
        self.session = session
        self.state = session.state
        self.conn = conn
        self.made: set[int] = set()
        self.counted: dict[int, tuple[float, int]] = {}

    def run(self) -> None:
        for batch in self.session.take(self.session.encoded):
            seqs = [row.seq for row in batch.rows]
            try:
                written = self._write(batch.work, batch.rows)
                failed = self._settle(batch.work, [row for row in batch.rows if row.error is not None])
            except (psycopg.OperationalError, psycopg.InterfaceError):
                raise
            except psycopg.Error as error:  # the table or the queue is not what it was: dropped, or changed by DDL
                self.state.note_trouble(batch.work, error)
                continue
            finally:
                self.state.let_go(batch.work, seqs)
            self._report(batch, written, failed)

    def _write(self, work: Work, rows: Sequence[Row]) -> int:
        """Write the rows that have no error; where one row spoils the write, find it by halves."""
        rows = [row for row in rows if row.error is None]
        if not rows:
            return 0
        try:
            return self._write_once(work, rows)
        except (psycopg.errors.UndefinedTable, psycopg.errors.UndefinedColumn, psycopg.OperationalError):
            raise
        except (psycopg.IntegrityError, psycopg.DataError, psycopg.InternalError, psycopg.ProgrammingError) as error:
            if len(rows) == 1:
                rows[0].error = error
                return 0
            middle = len(rows) // 2
            return self._write(work, rows[:middle]) + self._write(work, rows[middle:])

    def _write_once(self, work: Work, rows: Sequence[Row]) -> int:
        return write_rows(self.conn, work, rows, make_temporary=self._first_time(work))

    def _first_time(self, work: Work) -> bool:
        first = work.id not in self.made
        self.made.add(work.id)
        return first

    def _settle(self, work: Work, rows: Sequence[Row]) -> int:
        """Rows with an error of their own: later again, or given up. Abandoned rows are released."""
        if not rows:
            return 0
        statements = Queue(work)
        given_up = 0
        with self.conn.transaction():
            self.conn.execute(statements.lock)
            for row in rows:
                if isinstance(row.error, Abandoned):
                    self.conn.execute(statements.release, [[row.seq]])
                elif row.error and is_transient(row.error) and row.attempts + 1 < self.session.options.max_attempts:
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


def write_rows(conn: psycopg.Connection[Any], work: Work, rows: Sequence[Row], *, make_temporary: bool = True) -> int:
    """Write the vectors of claimed rows in one READ COMMITTED transaction, and take their jobs off the queue.

    Rows that another transaction holds, or whose key is in the log again, are given back. Returns the jobs done.
    """
    statements = Queue(work)
    with conn.transaction():
        if make_temporary:
            conn.execute(statements.make_temporary)
        with conn.cursor().copy(statements.copy) as copy:
            for data in _copy_data(rows):
                copy.write(data)
        locked = [seq for (seq,) in conn.execute(statements.lock_rows).fetchall()]
        conn.execute(statements.lock)
        written = [seq for (seq,) in conn.execute(statements.write, [locked]).fetchall()] if locked else []
        done = written + [row.seq for row in rows if row.gone]
        conn.execute(statements.finish, [done])
        skipped = sorted({row.seq for row in rows} - set(done))
        if skipped:
            conn.execute(statements.release, [skipped])
        if written:
            conn.execute(statements.count_written, [len(written)])
    return len(done)


def _copy_data(rows: Sequence[Row]) -> Iterator[bytes]:
    yield copy_header()
    full = [row for row in rows if row.vector is not None and not row.gone]
    if full:
        yield copy_rows(
            np.array([row.seq for row in full]), np.stack([row.vector for row in full if row.vector is not None])
        )
    for row in rows:
        if row.gone or row.vector is None:
            yield copy_row_without_vector(row.seq, gone=row.gone)
    yield COPY_END


def _sentence(error: Exception | None) -> str:
    """An error as it stands in pgembed.failure: one line, of bounded length."""
    return " ".join(str(error).split())[:1000] or type(error).__name__
