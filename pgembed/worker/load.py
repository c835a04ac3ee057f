"""The first stage: fold changes into jobs, claim a batch, read its rows, and decode pictures in threads."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from typing import Any

import psycopg
from psycopg.types.json import Jsonb

from pgembed.compatibility import required
from pgembed.encoders import Encoder
from pgembed.errors import InvalidInput, NotInstalled, PgembedError
from pgembed.media import sources
from pgembed.media_errors import too_long
from pgembed.plans import run
from pgembed.worker.batch import Batch, Row
from pgembed.worker.catalog import Catalog
from pgembed.worker.decode import Decoder
from pgembed.worker.faults import is_conflict, is_lost
from pgembed.worker.keys import KeyQueue
from pgembed.worker.memory import READ_BYTES, largest_row, parts, size_decoded, size_undecoded
from pgembed.worker.part_queue import PartQueue
from pgembed.worker.pipes import Pipes, Stopped
from pgembed.worker.queue import Queue, Work
from pgembed.worker.restraint import Load, Rate
from pgembed.worker.sweep import Sweep
from pgembed.worker.write import give_back, is_detached

READ_ROWS = 64  # read at once, so that pictures are decoded as they come
LIST_ROWS = 32  # claimed at once, of rows that hold lists of pictures
PARTS_ROWS, DOCUMENTS = 64, 8  # claimed at once, of texts that have many vectors, and of files
FILL_ROWS = 1_000  # encoded by SQL in one transaction
TEXTS = 256  # in a batch, at least
FIRST_PICTURES = 8  # in the first batch after a rest; each one after it has twice as many
FIRST_WAIT = 1.0  # seconds for such batches to be decoded before more is read, which would take the cores for that
REFRESH = 2.0  # seconds between looks at the catalog
_NOT_INSTALLED = (psycopg.errors.UndefinedTable, psycopg.errors.UndefinedFunction, psycopg.errors.InvalidSchemaName)


class Loader:
    """Folds, claims and reads; decodes pictures in threads."""

    def __init__(self, pipes: Pipes, conn: psycopg.Connection[Any]) -> None:
        self.pipes = pipes
        self.state = pipes.state
        self.options = pipes.options
        self.conn = conn
        self.catalog = Catalog(self.state, conn)
        self.decoder = Decoder(self.options.media, self.options.decode_threads, self.options.decode_in)
        self.sweep = Sweep(self.state, conn)
        self.renewed = time.monotonic()
        self.served_at: dict[int, float] = {}  # when rows of an embedding were last claimed
        self.rate = Rate(self.options.max_rate)
        self.load = Load(self.state, conn)
        self.works: list[Work] = []
        self.unsynced: set[int] = set()  # tables that could not be put right: told once
        self.pace = FIRST_PICTURES

    def close(self) -> None:
        self.decoder.close()

    def run(self) -> None:
        if differs := run(self.conn, required()):
            self.state.log.warning("another version", found=differs.told, remedy=differs.remedy)
        self._sync()
        self.give_back_held(self._works())  # after a lost connection: by the session before
        refreshed = -10.0
        while not self.state.stop.is_set() and not self.pipes.broken.is_set() and not self.state.is_done():
            if time.monotonic() - refreshed > REFRESH:
                self._sync_missed()
                self.works = self._works()
                refreshed = time.monotonic()
            order = sorted(self.works, key=lambda work: self.served_at.get(work.id, 0.0))  # the longest without first
            busy = [self._serve(work) for work in order if not self.state.stop.is_set() and not self.load.is_high()]
            self._renew()
            held_back = self.load.is_high()
            if self.pipes.mode == "once" and not held_back:
                return
            if self.pipes.mode == "forever" and not held_back and self.sweep.step(self.works):
                continue
            if any(busy):
                continue
            if self.pipes.mode == "until_idle":
                self.works = self._works()
                self._raise_lasting_trouble()
                if not any(self._unfinished(work) for work in self.works):
                    if refused := self.state.any_refused():
                        raise refused
                    return
                self.state.stop.wait(self.options.poll if held_back else min(self.options.poll, 0.05))
            else:
                self.state.stop.wait(self.options.poll)

    def _sync(self) -> None:
        """Have the catalog follow tables that were renamed, or restored from a dump.

        A role that may not change it works on by the names that the tables have, and says who must.
        """
        for again in (True, False):
            try:
                with self.conn.transaction():
                    self.conn.execute("SELECT pgembed.sync()")
                return
            except psycopg.errors.InsufficientPrivilege as error:
                self.state.log.warning(
                    "catalog out of date",
                    error=error.diag.message_primary,
                    remedy="as its owner: SELECT pgembed.sync();",
                )
                return
            except (psycopg.DataError, psycopg.ProgrammingError, psycopg.errors.RaiseException) as error:
                if isinstance(error, _NOT_INSTALLED):
                    return
                if not again:  # somebody may have detached an embedding just then
                    self.state.log.warning(
                        "catalog out of order", error=error.diag.message_primary, remedy="pgembed doctor"
                    )

    def _sync_missed(self) -> None:
        """Put tables right whose triggers know a column by a name that it no longer has, where this role may."""
        statement = (
            "SELECT DISTINCT e.relation FROM pgembed.missed m JOIN pgembed.embedding e ON e.id = m.embedding"
            " JOIN pg_catalog.pg_class c ON c.oid = e.relation"
        )
        try:
            with self.conn.transaction():
                tables = [table for (table,) in self.conn.execute(statement).fetchall()]
        except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName, psycopg.errors.InsufficientPrivilege):
            return  # an older schema, or none, or a right that doctor names: what comes next says so
        for table in set(tables) - self.unsynced:
            try:
                with self.conn.transaction():
                    self.conn.execute("SELECT pgembed.sync($1::oid::regclass)", [table])
            except psycopg.Error as error:
                if is_lost(self.conn, error):
                    raise
                if is_conflict(error) or isinstance(error, psycopg.errors.LockNotAvailable):
                    continue  # in use: the next time
                self.unsynced.add(table)
                self.state.log.warning(
                    "a table was altered", error=error.diag.message_primary, remedy="as its owner: pgembed doctor"
                )

    def _works(self) -> list[Work]:
        try:
            works = self.catalog.read()
        except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName) as error:
            raise NotInstalled(
                f"pgembed is not installed in database '{self.conn.info.dbname}'.", "Run: pgembed install"
            ) from error
        chosen = [work for work in works if work.present and work.is_named(self.options.embeddings)]
        for name in self.options.embeddings:
            if not any(work.is_named((name,)) for work in works):
                known = ", ".join(work.name for work in works) or "none"
                raise InvalidInput(f"There is no embedding '{name}'.", f"Embeddings: {known}.")
        return chosen

    def _serve(self, work: Work) -> bool:
        """One batch of one embedding; True where there was something to do."""
        room = _least(self.state.room(), self.rate.allowed())
        if self.state.in_trouble(work) or self.state.is_resting(work) or work.state == "paused" or room == 0:
            return False
        rows: list[Row] = []
        handed_on: set[int] = set()
        try:
            if work.mode == "instant":
                return self._fill(work, self.options.batch_size or FILL_ROWS, room)
            encoder = self.state.encoder(work)
            limit = self._batch_size(work, encoder)
            begins = self.options.batch_size is None and self.pace < encoder.batch_size
            moved = self._claim(work, limit if room is None else min(limit, room), rows)
            for batch in self._batches(work, encoder, rows[:]):
                self.pipes.put(self.pipes.loaded, batch, meanwhile=self._renew)
                handed_on.update(row.seq for row in batch.rows)
            if begins:
                self._let_decode(rows)
        except (psycopg.Error, PgembedError) as error:
            if is_lost(self.conn, error):
                raise
            left = [row for row in rows if row.seq not in handed_on]
            seqs = [row.seq for row in left]
            self.pipes.memory.release(left)
            if is_detached(self.conn, work, error):
                self.state.let_go(work, seqs)
            else:
                self.state.note_trouble(work, error)
                self._give_back(work, seqs)
            return False
        return bool(rows) or moved

    def _let_decode(self, rows: Sequence[Row]) -> None:
        """Wait until the pictures of these rows are decoded, for a while: the encoder has little else to do."""
        until = time.monotonic() + FIRST_WAIT
        while self.pipes.memory.is_decoding(rows) and time.monotonic() < until:
            if self.pipes.broken.is_set() or self.state.stop.is_set():
                return
            self.pipes.memory.wait(0.05)

    def _fill(self, work: Work, limit: int, room: int | None) -> bool:
        """Where SQL encodes: see that there are jobs, and have the last stage take them."""
        with self.conn.transaction():
            moved = self.conn.execute("SELECT pgembed._fill_queue($1)", [work.id]).fetchone() == (True,)
        with self.conn.transaction():
            due = self.conn.execute(Queue(work).any_due).fetchone() == (True,)
        if due:
            limit = min(limit, room or limit)
            self.rate.spend(limit)
            self.served_at[work.id] = time.monotonic()
            self.pipes.put(self.pipes.loaded, Batch(work, [], time.monotonic(), limit))
        return moved or due

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
        rows: list[Row] = []
        try:
            with self.conn.transaction():
                self.conn.execute(statements.lock)
                if work.has_budget and (limit := min(limit, self._left_of_budget(work))) == 0:
                    return []
                claimed = self.conn.execute(statements.claim, [self.options.lease, limit]).fetchall()
                rows = [Row(seq, attempts) for seq, attempts in claimed]
                # before the commit: where its answer is lost, they may be claimed, and the next session gives them back
                self.state.hold(work, [row.seq for row in rows])
        except psycopg.Error as error:
            if not is_lost(self.conn, error):
                self.state.let_go(work, [row.seq for row in rows])
            raise
        self.rate.spend(len(rows))
        if rows:
            self.served_at[work.id] = time.monotonic()
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
        statements = KeyQueue(work)
        with self.conn.transaction():
            self.conn.execute(statements.lock)
            state = self.conn.execute(
                "SELECT e.state, b.after FROM pgembed.embedding e"
                " LEFT JOIN pgembed.backfill b ON b.embedding = e.id WHERE e.id = $1",
                [work.id],
            ).fetchone()
            if state is None or state[0] != "backfill":
                return False
            last = self.conn.execute(statements.backfill(state[1])).fetchone()
            if last is None:
                self.conn.execute("UPDATE pgembed.embedding SET state = 'ready' WHERE id = $1", [work.id])
            else:
                self.conn.execute(
                    "INSERT INTO pgembed.backfill (embedding, after) VALUES ($2, $1)"
                    " ON CONFLICT (embedding) DO UPDATE SET after = excluded.after",
                    [Jsonb(last[0]), work.id],
                )
        return last is not None

    def _batch_size(self, work: Work, encoder: Encoder) -> int:
        """How many rows to claim. Of pictures fewer than of texts, and few at first: the encoder waits for a batch to
        be decoded, and a change waits until the batches that were claimed before it are encoded.
        """
        if self.options.batch_size:
            return self.options.batch_size
        if work.parts is not None:
            return PARTS_ROWS if work.modalities == ["text"] else DOCUMENTS
        if work.modalities == ["text"]:
            return max(encoder.batch_size, TEXTS)
        self.pace = self.pace * 2 if self.state.holds_any() else FIRST_PICTURES
        self.pace = min(self.pace, encoder.batch_size)
        return min(self.pace, LIST_ROWS) if work.has_lists else self.pace

    def _batches(self, work: Work, encoder: Encoder, rows: list[Row]) -> Iterator[Batch]:
        """What the rows hold, in one batch, or in more where their pictures would take too much memory together."""
        began_at = time.monotonic()
        by_seq = {row.seq: row for row in rows}
        kept: list[Row] = []
        for part in self._parts(work, rows):
            if work.parts is not None:
                self._know_parts(work, part)
            for seq, there, *values in self._fetch(work, part):
                row = by_seq.pop(seq)
                row.gone = not there
                sizes = self._sizes(work, values)
                if not self._has_room(row, sizes, kept):
                    yield Batch(work, kept, began_at)
                    kept, began_at = [], time.monotonic()
                    self._has_room(row, sizes, kept)
                for future, size in zip(self.decoder.fill(work, encoder, row, values), sizes, strict=False):
                    future.add_done_callback(partial(self._decoded, row, size))
                kept.append(row)
        spoiled = [row for row in by_seq.values() if row.error is not None]
        self.state.let_go(work, list(by_seq.keys() - {row.seq for row in spoiled}))  # changed again: a new seq
        if kept or spoiled:
            yield Batch(work, kept + spoiled, began_at)

    def _know_parts(self, work: Work, rows: Sequence[Row]) -> None:
        """Note which of the rows' parts have a vector."""
        with self.conn.transaction(), self.conn.cursor(binary=True) as cursor:
            found = dict(cursor.execute(PartQueue(work).known_parts, [[row.seq for row in rows]]).fetchall())
        for row in rows:
            row.known = frozenset(map(bytes, found.get(row.seq, ())))

    def _parts(self, work: Work, rows: list[Row]) -> Iterator[list[Row]]:
        """The rows in parts that are read at once: as many as their pictures' files leave room for. One whose pictures
        are too large gets its error instead."""
        sizes = self._file_sizes(work, rows)
        most = largest_row(work, self.options.media.limits)
        for row in rows:
            if (size := sizes.get(row.seq, 0)) > most:
                row.error = too_long("of the row", size, most)
        fit = (row for row in rows if row.error is None)
        room = min(READ_BYTES, self.pipes.memory.limit // 4)
        return parts(fit, lambda row: sizes.get(row.seq, 0), most=READ_ROWS, room=room)

    def _file_sizes(self, work: Work, rows: list[Row]) -> dict[int, int]:
        """The bytes of the rows' pictures, by seq, where they stand in the database."""
        if not rows or (statement := Queue(work).sizes) is None:
            return {}
        try:
            with self.conn.transaction():
                return dict(self.conn.execute(statement, [[row.seq for row in rows]]).fetchall())
        except psycopg.DataError:  # a value that cannot be computed is found when it is read
            return dict.fromkeys((row.seq for row in rows), READ_BYTES)  # each alone

    def _sizes(self, work: Work, values: Sequence[Any]) -> list[int]:
        """What each picture of a row takes while it is decoded; none where a list is too long to be decoded."""
        limits = self.options.media.limits
        sizes: list[int] = []
        for modality, value in zip(work.modalities, values, strict=True):
            if modality != "text" and value is not None:
                found = sources(value, work.inputs[modality])
                if len(found) > limits.max_parts:
                    return []
                most = limits.max_pixels if work.parts is None else 0  # the file alone is read
                sizes += [size_undecoded(source.value, most) for source in found]
        return sizes

    def _has_room(self, row: Row, sizes: Sequence[int], kept: Sequence[Row]) -> bool:
        """Hold what a row's pictures will take. Waits for room; False where ``kept`` must be encoded before."""
        while sizes and not self.pipes.memory.take(row, sizes):
            if kept and not self.pipes.memory.is_decoding(kept):
                return False
            if self.pipes.broken.is_set():
                raise Stopped
            self.pipes.memory.wait(0.2)
            self._renew()
        return True

    def _decoded(self, row: Row, size: int, future: Future[Any]) -> None:
        """A picture is decoded, or its row has an error."""
        failed = future.cancelled() or future.exception() is not None
        self.pipes.memory.decoded(row, size, 0 if failed else size_decoded(future.result()))

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
        self.state.seen_at = time.monotonic()
        if time.monotonic() - self.renewed < self.options.lease / 3:
            return
        self.renewed = time.monotonic()
        for work in self.works:
            if held := self.state.held_seqs(work.id):
                self._renew_leases(work, held)

    def _renew_leases(self, work: Work, seqs: list[int]) -> None:
        """Of an embedding that may be detached by now, or whose queue somebody has locked for long."""
        try:
            with self.conn.transaction():
                self.conn.execute(Queue(work).lock)
                self.conn.execute(Queue(work).renew, [self.options.lease, seqs])
        except psycopg.Error as error:
            if is_lost(self.conn, error):
                raise
            if not is_detached(self.conn, work, error):
                self.state.note_trouble(work, error)

    def give_back_held(self, works: Sequence[Work]) -> None:
        """What is held of these embeddings is free again."""
        for work in works:
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
        try:
            with self.conn.transaction():
                row = self.conn.execute(Queue(work).any_left).fetchone()
            if row == (False,):
                with suppress(psycopg.DataError), self.conn.transaction():  # of a row whose input fails: it stays
                    self.conn.execute(Queue(work).forget_gone_failures)
        except psycopg.Error as error:
            if is_lost(self.conn, error) or not is_detached(self.conn, work, error):
                raise
            return False
        return row != (False,)

    def _raise_lasting_trouble(self) -> None:
        for work in self.works:
            if error := self.state.lasting_trouble(work):
                raise error


def _least(*bounds: int | None) -> int | None:
    return min((bound for bound in bounds if bound is not None), default=None)
