"""The first stage: fold changes into jobs, claim a batch, read its rows, and decode pictures in threads."""

from __future__ import annotations

import sys
import time
from collections.abc import Collection, Sequence
from concurrent.futures import Future, wait
from typing import Any

import psycopg
from psycopg.rows import class_row
from psycopg.types.json import Jsonb

from pgembed.encoders import Encoder
from pgembed.errors import InvalidInput, NotInstalled, PgembedError
from pgembed.media_errors import too_long
from pgembed.worker.batch import Batch, Row
from pgembed.worker.decode import Decoder
from pgembed.worker.faults import is_lost
from pgembed.worker.pipes import Pipes
from pgembed.worker.queue import Queue, Work
from pgembed.worker.sweep import Sweep
from pgembed.worker.write import give_back, is_detached

READ_ROWS = 64  # read at once, so that no more pictures than these lie in memory undecoded, twice
LIST_ROWS = 32  # claimed at once, of rows that hold lists of pictures
LIST_FILES = 4  # of the largest size that one picture may have, all together in one row's list
READ_BYTES = 64 * 1024 * 1024  # the same; a row that has more is read alone
REFRESH = 2.0  # seconds between looks at the catalog


class Loader:
    """Folds, claims and reads; decodes pictures in threads."""

    def __init__(self, pipes: Pipes, conn: psycopg.Connection[Any]) -> None:
        self.pipes = pipes
        self.state = pipes.state
        self.options = pipes.options
        self.conn = conn
        self.decoder = Decoder(self.options.media, self.options.decode_threads, self.options.decode_in)
        self.sweep = Sweep(self.state, conn)
        self.renewed = time.monotonic()
        self.works: list[Work] = []

    def close(self) -> None:
        self.decoder.close()

    def run(self) -> None:
        self._give_back_from_before()
        self._sync()
        refreshed = -10.0
        while not self.state.stop.is_set() and not self.pipes.broken.is_set() and not self.state.is_done():
            if time.monotonic() - refreshed > REFRESH:
                self.works = self._works()
                refreshed = time.monotonic()
            busy = [self._serve(work) for work in self.works if not self.state.stop.is_set()]
            self._renew()
            if self.pipes.mode == "once":
                return
            if self.pipes.mode == "forever" and self.sweep.step(self.works):
                continue
            if any(busy):
                continue
            if self.pipes.mode == "until_idle":
                self.works = self._works()
                self._raise_lasting_trouble()
                if not any(self._unfinished(work) for work in self.works):
                    return
                self.state.stop.wait(min(self.options.poll, 0.05))
            else:
                self.state.stop.wait(self.options.poll)

    def _sync(self) -> None:
        """Have the catalog follow tables that were renamed, or restored from a dump.

        A role that may not change it works on by the names that the tables have, and says who must.
        """
        try:
            with self.conn.transaction():
                self.conn.execute("SELECT pgembed.sync()")
        except psycopg.errors.InsufficientPrivilege as error:
            self.state.log.warning(
                "catalog out of date", error=error.diag.message_primary, remedy="as its owner: SELECT pgembed.sync();"
            )

    def _works(self) -> list[Work]:
        try:
            with self.conn.transaction(), self.conn.cursor(row_factory=class_row(Work)) as cursor:
                works = cursor.execute("SELECT * FROM pgembed._work ORDER BY id").fetchall()
        except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName) as error:
            raise NotInstalled(
                f"pgembed is not installed in database '{self.conn.info.dbname}'.", "Run: pgembed install"
            ) from error
        chosen = [work for work in works if work.present and _matches(work, self.options.embeddings)]
        for name in self.options.embeddings:
            if not any(_matches(work, (name,)) for work in works):
                known = ", ".join(work.name for work in works) or "none"
                raise InvalidInput(f"There is no embedding '{name}'.", f"Embeddings: {known}.")
        return chosen

    def _serve(self, work: Work) -> bool:
        """One batch of one embedding; True where there was something to do."""
        room = self.state.room()
        if self.state.in_trouble(work) or self.state.is_resting(work) or work.state == "paused" or room == 0:
            return False
        rows: list[Row] = []
        try:
            encoder = self.state.encoder(work)
            limit = self.options.batch_size or (max(encoder.batch_size, 256) if not work.has_lists else LIST_ROWS)
            moved = self._claim(work, limit if room is None else min(limit, room), rows)
            if rows:
                batch = self._read(work, encoder, rows)
                self.pipes.put(self.pipes.loaded, batch, meanwhile=self._renew)
        except (psycopg.Error, PgembedError) as error:
            if is_lost(self.conn, error):
                raise
            seqs = [row.seq for row in rows]
            if is_detached(self.conn, work, error):
                self.state.let_go(work, seqs)
            else:
                self.state.note_trouble(work, error)
                self._give_back(work, seqs)
            return False
        return bool(rows) or moved

    def _claim(self, work: Work, limit: int, rows: list[Row]) -> bool:
        """Add the rows claimed to ``rows``, also where what comes after fails; returns whether the queue moved."""
        statements = Queue(work)
        with self.conn.transaction():
            self.conn.execute(statements.lock)
            moved = self.conn.execute(statements.fold).rowcount > 0
        rows += self._claim_some(work, limit)
        if len(rows) < limit and not self.state.is_resting(work) and self._backfill(work):
            moved = True
            rows += self._claim_some(work, limit - len(rows))
        return moved

    def _claim_some(self, work: Work, limit: int) -> list[Row]:
        statements = Queue(work)
        with self.conn.transaction():
            self.conn.execute(statements.lock)
            if work.has_budget and (limit := min(limit, self._left_of_budget(work))) == 0:
                return []
            claimed = self.conn.execute(statements.claim, [self.options.lease, limit]).fetchall()
        rows = [Row(seq, attempts) for seq, attempts in claimed]
        self.state.hold(work, [row.seq for row in rows])
        return rows

    def _left_of_budget(self, work: Work) -> int:
        """How many rows may be claimed; until the transaction ends, no other worker claims for this encoder."""
        self.conn.execute(Queue(work).lock_budget)
        rows, seconds = self.conn.execute(Queue(work).budget).fetchall()[0]
        if rows == 0 and seconds > 0:
            self.state.rest(work, seconds)
        elif rows != 0:
            self.state.end_rest(work)
        return sys.maxsize if rows is None else rows

    def _backfill(self, work: Work) -> bool:
        if work.state != "backfill":
            return False
        statements = Queue(work)
        with self.conn.transaction():
            self.conn.execute(statements.lock)
            state = self.conn.execute(
                "SELECT state, backfill_after FROM pgembed.embedding WHERE id = $1", [work.id]
            ).fetchone()
            if state is None or state[0] != "backfill":
                return False
            last = self.conn.execute(statements.backfill(state[1])).fetchone()
            if last is None:
                self.conn.execute("UPDATE pgembed.embedding SET state = 'ready' WHERE id = $1", [work.id])
            else:
                self.conn.execute(
                    "UPDATE pgembed.embedding SET backfill_after = $1 WHERE id = $2",
                    [Jsonb(last[0]), work.id],
                )
        return last is not None

    def _read(self, work: Work, encoder: Encoder, rows: list[Row]) -> Batch:
        """What the rows hold. A part at a time, so that pictures are decoded as they come."""
        began_at = time.monotonic()
        by_seq = {row.seq: row for row in rows}
        kept: list[Row] = []
        decoding: list[Future[Any]] = []
        for portion in self._portions(work, rows):
            before, decoding = decoding, []
            for seq, there, *values in self._fetch(work, portion):
                row = by_seq.pop(seq)
                row.gone = not there
                decoding += self.decoder.fill(work, encoder, row, values)
                kept.append(row)
            while wait(before, timeout=1).not_done:
                self._renew()  # they may come from far away
        spoiled = [row for row in by_seq.values() if row.error is not None]
        self.state.let_go(work, list(by_seq.keys() - {row.seq for row in spoiled}))  # changed again: a new seq
        return Batch(work, kept + spoiled, began_at)

    def _portions(self, work: Work, rows: Sequence[Row]) -> list[list[Row]]:
        """The rows in parts that may be read at once; one whose pictures are too large gets its error instead."""
        sizes: dict[int, int] = {}
        if (statement := Queue(work).sizes) is not None:
            try:
                with self.conn.transaction():
                    sizes = dict(self.conn.execute(statement, [[row.seq for row in rows]]).fetchall())
            except psycopg.DataError:  # a value that cannot be computed is found when it is read
                return [[row] for row in rows]
        most = self.options.media.limits.max_bytes * (LIST_FILES if work.has_lists else len(work.modalities))
        portions: list[list[Row]] = []
        taken = READ_BYTES + 1
        for row in rows:
            size = sizes.get(row.seq, 0)
            if size > most:
                row.error = too_long("of the row", size, most)
                continue
            if taken + size > READ_BYTES or len(portions[-1]) == READ_ROWS:
                portions.append([])
                taken = 0
            portions[-1].append(row)
            taken += size
        return portions

    def _fetch(self, work: Work, rows: Sequence[Row]) -> list[tuple[Any, ...]]:
        """Read rows; one whose values cannot be computed, by a generated column say, is found by halves."""
        try:
            with self.conn.transaction(), self.conn.cursor(binary=True) as cursor:
                return cursor.execute(Queue(work).read, [[row.seq for row in rows]]).fetchall()
        except psycopg.DataError as error:
            if len(rows) == 1:
                rows[0].error = error
                return []
            middle = len(rows) // 2
            return self._fetch(work, rows[:middle]) + self._fetch(work, rows[middle:])

    def _renew(self) -> None:
        if time.monotonic() - self.renewed < self.options.lease / 3:
            return
        self.renewed = time.monotonic()
        for work in self.works:
            if held := self.state.held_seqs(work.id):
                with self.conn.transaction():
                    self.conn.execute(Queue(work).lock)
                    self.conn.execute(Queue(work).renew, [self.options.lease, held])

    def _give_back_from_before(self) -> None:
        """After a lost connection: what the session before held is free again."""
        for work in self._works():
            self._give_back(work, self.state.held_seqs(work.id))

    def _give_back(self, work: Work, seqs: list[int]) -> None:
        give_back(self.conn, work, seqs)
        self.state.let_go(work, seqs)

    def _unfinished(self, work: Work) -> bool:
        if self.state.held_seqs(work.id):
            return True
        if work.state == "paused" or self.state.is_resting(work):
            return False
        if work.state == "backfill":
            return True
        with self.conn.transaction():
            row = self.conn.execute(Queue(work).any_left).fetchone()
            if row == (False,):
                self.conn.execute(Queue(work).forget_gone_failures)
        return row != (False,)

    def _raise_lasting_trouble(self) -> None:
        for work in self.works:
            if error := self.state.lasting_trouble(work):
                raise error


def _matches(work: Work, names: Collection[str]) -> bool:
    return not names or not {
        work.table_name, f"{work.schema_name}.{work.table_name}", f"{work.table_name}.{work.target}", work.name,
    }.isdisjoint(names)  # fmt: skip
