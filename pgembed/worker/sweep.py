"""The sweep: rows that no trigger saw get into the queue all the same, a step at a time between batches."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg.types.json import Jsonb

from pgembed.worker.faults import is_lost
from pgembed.worker.keys import Key, KeyQueue
from pgembed.worker.queue import Queue, Work
from pgembed.worker.state import State
from pgembed.worker.write import is_detached

STEP = 10_000  # rows looked at in one statement


@dataclass
class Course:
    """A way over one embedding's table by key, or over its side table's."""

    id: int
    side: bool
    after: Key | None = None
    found: int = 0


class Sweep:
    """Looks over every embedding's table each ``sweep_every`` seconds, for what ``pgembed.reconcile`` looks for."""

    def __init__(self, state: State, conn: psycopg.Connection[Any]) -> None:
        self.state = state
        self.conn = conn
        self.courses: deque[Course] = deque()

    def step(self, works: Sequence[Work]) -> bool:
        """One step, where a sweep is due or under way; True while there is more to look at.

        An embedding that is paused is left alone, and one whose backfill has not ended: that finds the same rows.
        """
        now = time.monotonic()
        if not self.courses:
            if not self.state.options.sweep_every or now - self.state.swept_at < self.state.options.sweep_every:
                return False
            self.state.swept_at = now
            for work in works:
                self.courses += [Course(work.id, side) for side in ((False, True) if work.side else (False,))]
        if self.courses:
            course = self.courses[0]
            work = next((work for work in works if work.id == course.id and work.state == "ready"), None)
            if work is None or not self._advance(work, course):
                self.courses.popleft()
        return bool(self.courses)

    def _advance(self, work: Work, course: Course) -> bool:
        """Look at the next rows; True where there may be more after them."""
        try:
            last, keys = self._look(work, course)
            if keys:
                course.found += self._queue(work, course, keys)
        except psycopg.Error as error:
            if is_lost(self.conn, error):
                raise
            if not is_detached(self.conn, work, error):
                self.state.log.warning(
                    "sweep failed", embedding=work.name, error=error.diag.message_primary, remedy="pgembed doctor"
                )
            return False
        course.after = last
        if last is None and not course.side:
            self._forget(work)
        if last is None and course.found:
            what = "vectors without rows" if course.side else "rows without vectors"
            self.state.log.warning(f"sweep found {what}", embedding=work.name, found=course.found)
        return last is not None

    def _forget(self, work: Work) -> None:
        """Failures of rows that are gone; a row whose input fails keeps them all until it is mended."""
        with suppress(psycopg.DataError), self.conn.transaction():
            self.conn.execute(Queue(work).forget_gone_failures)

    def _look(self, work: Work, course: Course) -> tuple[Key | None, list[Key] | None]:
        for plain in (False, True):
            try:
                with self.conn.transaction():
                    self.conn.execute(KeyQueue(work).touch)
                    statement = KeyQueue(work).sweep(course.after, STEP, side=course.side, plain=plain)
                    return self.conn.execute(statement).fetchall()[0]
            except psycopg.DataError:  # of a generated column, say: the worker finds the row that has it
                if plain:
                    raise
        raise AssertionError

    def _queue(self, work: Work, course: Course, keys: list[Key]) -> int:
        with self.conn.transaction():
            self.conn.execute(KeyQueue(work).touch)
            self.conn.execute(Queue(work).lock)
            return self.conn.execute(KeyQueue(work).queue_swept(side=course.side), [Jsonb(keys)]).rowcount
