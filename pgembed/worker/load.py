"""The first stage: fold changes into jobs, claim a batch, read its rows, and decode pictures in threads."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg.rows import class_row
from psycopg.types.json import Jsonb

from pgembed.encoders import Encoder
from pgembed.errors import InvalidInput, PgembedError
from pgembed.media import MediaReader
from pgembed.worker.batch import Batch, Row
from pgembed.worker.queue import Queue, Work

if TYPE_CHECKING:
    from pgembed.inputs import SourceKind
    from pgembed.worker.run import Session


class Loader:
    """Folds, claims and reads; decodes pictures in threads."""

    def __init__(self, session: Session, conn: psycopg.Connection[Any]) -> None:
        self.session = session
        self.state = session.state
        self.options = session.options
        self.conn = conn
        self.media = MediaReader(self.options.media)
        self.pool = ThreadPoolExecutor(self.options.decode_threads, thread_name_prefix="pgembed-decode")
        self.renewed = time.monotonic()

    def close(self) -> None:
        self.pool.shutdown(wait=False, cancel_futures=True)
        self.media.close()

    def run(self) -> None:
        self._give_back_from_before()
        refreshed = -10.0
        works: list[Work] = []
        while not self.state.stop.is_set() and not self.session.broken.is_set():
            if time.monotonic() - refreshed > 2:
                works = self._works()
                refreshed = time.monotonic()
            busy = [self._serve(work) for work in works]
            self._renew(works)
            if self.session.mode == "once":
                self._raise_lasting_trouble(works)
                return
            if any(busy):
                continue
            if self.session.mode == "until_idle":
                works = self._works()
                self._raise_lasting_trouble(works)
                if not any(self._unfinished(work) for work in works):
                    return
                self.state.stop.wait(min(self.options.poll, 0.05))
            else:
                self.state.stop.wait(self.options.poll)

    def _works(self) -> list[Work]:
        with self.conn.transaction(), self.conn.cursor(row_factory=class_row(Work)) as cursor:
            works = cursor.execute("SELECT * FROM pgembed._work ORDER BY id").fetchall()
        chosen = [work for work in works if work.present and _matches(work, self.options.embeddings)]
        for name in self.options.embeddings:
            if not any(_matches(work, (name,)) for work in works):
                known = ", ".join(work.name for work in works) or "none"
                raise InvalidInput(f"There is no embedding '{name}'.", f"Embeddings: {known}.")
        return chosen

    def _serve(self, work: Work) -> bool:
        """One batch of one embedding; True where there was something to do."""
        if self.state.in_trouble(work) or work.state == "paused":
            return False
        try:
            encoder = self.state.encoder(work)
            limit = self.options.batch_size or max(encoder.batch_size, 256)
            rows, folded = self._claim(work, limit)
            moved = len(rows) < limit and self._backfill(work)
            if rows:
                self.session.put(self.session.loaded, self._read(work, encoder, rows))
            return bool(rows) or folded or moved
        except (psycopg.OperationalError, psycopg.InterfaceError):
            raise
        except (psycopg.Error, PgembedError) as error:
            self.state.note_trouble(work, error)
            return False

    def _claim(self, work: Work, limit: int) -> tuple[list[Row], bool]:
        statements = Queue(work)
        with self.conn.transaction():
            self.conn.execute(statements.lock)
            folded = self.conn.execute(statements.fold).rowcount > 0
        with self.conn.transaction():
            self.conn.execute(statements.lock)
            claimed = self.conn.execute(statements.claim, [self.options.lease, limit]).fetchall()
        rows = [Row(seq, attempts) for seq, attempts in claimed]
        self.state.hold(work, [row.seq for row in rows])
        return rows, folded

    def _backfill(self, work: Work) -> bool:
        if work.state != "backfill":
            return False
        statements = Queue(work)
        with self.conn.transaction():
            self.conn.execute(statements.lock)
            state = self.conn.execute(
                "SELECT state, backfill_after FROM pgembed.embedding WHERE id = %s", [work.id]
            ).fetchone()
            if state is None or state[0] != "backfill":
                return False
            last = self.conn.execute(statements.backfill(state[1])).fetchone()
            if last is None:
                self.conn.execute("UPDATE pgembed.embedding SET state = 'ready' WHERE id = %s", [work.id])
            else:
                self.conn.execute(
                    "UPDATE pgembed.embedding SET backfill_after = %s WHERE id = %s",
                    [Jsonb(last[0]), work.id],
                )
        return last is not None

    def _read(self, work: Work, encoder: Encoder, rows: list[Row]) -> Batch:
        by_seq = {row.seq: row for row in rows}
        with self.conn.transaction():
            cursor = self.conn.cursor(binary=True)
            found = cursor.execute(Queue(work).read, [list(by_seq)]).fetchall()
        kept: list[Row] = []
        for seq, there, *values in found:
            row = by_seq.pop(seq)
            row.gone = not there
            for modality, value in zip(work.modalities, values, strict=True):
                if value is not None:
                    row.inputs[modality] = value if modality == "text" else self._decode(work, encoder, modality, value)
            kept.append(row)
        self.state.let_go(work, list(by_seq))  # these rows changed again; they have a new seq
        return Batch(work, kept)

    def _decode(self, work: Work, encoder: Encoder, modality: str, value: str | bytes) -> Any:  # noqa: ANN401
        kind: SourceKind = work.inputs[modality]["as"]
        return self.pool.submit(lambda: encoder.preprocess(self.media.open(value, kind)))

    def _renew(self, works: Sequence[Work]) -> None:
        if time.monotonic() - self.renewed < self.options.lease / 3:
            return
        self.renewed = time.monotonic()
        for work in works:
            if held := self.state.held_seqs(work.id):
                with self.conn.transaction():
                    self.conn.execute(Queue(work).renew, [self.options.lease, held])

    def _give_back_from_before(self) -> None:
        """After a lost connection: what the session before held is free again."""
        for work in self._works():
            if held := self.state.held_seqs(work.id):
                with self.conn.transaction():
                    self.conn.execute(Queue(work).lock)
                    self.conn.execute(Queue(work).release, [held])
                self.state.let_go(work, held)

    def _unfinished(self, work: Work) -> bool:
        if work.state == "paused":
            return False
        if work.state == "backfill" or self.state.held_seqs(work.id):
            return True
        with self.conn.transaction():
            row = self.conn.execute(Queue(work).any_left).fetchone()
            if row == (False,):
                self.conn.execute(Queue(work).forget_gone_failures)
        return row != (False,)

    def _raise_lasting_trouble(self, works: Sequence[Work]) -> None:
        for work in works:
            if error := self.state.lasting_trouble(work):
                raise error


def _matches(work: Work, names: Collection[str]) -> bool:
    return not names or not {
        work.table_name, f"{work.schema_name}.{work.table_name}", f"{work.table_name}.{work.target}", work.name,
    }.isdisjoint(names)  # fmt: skip
