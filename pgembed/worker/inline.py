"""All of a worker's work on one connection, in the transaction that it is in: for tests, whose rows none else sees."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import psycopg

from pgembed.encoders import Encoder
from pgembed.vectors import BinaryParameter, BinaryParameterDumper
from pgembed.worker.batch import Batch, abandon
from pgembed.worker.load import Loader
from pgembed.worker.pipes import Pipe, Pipes
from pgembed.worker.run import SESSION_SETTINGS
from pgembed.worker.splitting import encode_rows
from pgembed.worker.state import State, Summary, WorkerOptions
from pgembed.worker.write import Writer

_SET = "SELECT pg_catalog.set_config($1, $2, false)"
Loaded = dict[str, tuple[Encoder, str]]


def work_inline(conn: psycopg.Connection[Any], options: WorkerOptions, loaded: Loaded | None = None) -> Summary:
    """Encode all that waits, as the connection sees it, and leave its transaction and its settings as they were.

    ``conn`` gives RawCursors. ``loaded`` keeps encoders from one call to the next. An error of an encoder or of the
    database is raised.
    """
    state = State(options, None, loaded)
    state.start()
    conn.adapters.register_dumper(BinaryParameter, BinaryParameterDumper)
    with _settings(conn):
        loader = Loader(_Stages(state, conn), conn)
        try:
            loader.run()
        finally:
            loader.close()
    if trouble := state.any_trouble():
        raise trouble
    return state.summary


class _Stages(Pipes):
    """The stages one after another, in one thread: what is loaded is encoded and written at once."""

    def __init__(self, state: State, conn: psycopg.Connection[Any]) -> None:
        super().__init__(state, "until_idle")
        self.writer = Writer(self, conn)
        self.ready: list[Batch] = []

    def put(self, to: Pipe, batch: Batch | None, **_options: Any) -> None:  # noqa: ANN401
        if batch is None:
            return
        if batch.rows:
            try:
                encode_rows(self.state.encoder(batch.work), batch, self.options.media.limits)
            except Exception as error:  # an encoder may raise anything; it is raised when the others are done
                self.state.note_trouble(batch.work, error)
                abandon(batch)
        for row in batch.rows:
            row.inputs.clear()
        self.memory.release(batch.rows)
        self.ready.append(batch)
        self.writer.run()

    def take(self, source: Pipe) -> Iterator[Batch]:
        while self.ready:
            yield self.ready.pop()


@contextmanager
def _settings(conn: psycopg.Connection[Any]) -> Generator[None]:
    """The settings of a worker's session, for as long as the block. What a transaction has failed for it rolls back."""
    names = list(SESSION_SETTINGS)
    before = conn.execute(
        "SELECT name, pg_catalog.current_setting(name) FROM pg_catalog.unnest($1::text[]) AS name", [names]
    ).fetchall()
    for name, value in SESSION_SETTINGS.items():
        conn.execute(_SET, [name, value])
    try:
        yield
    finally:
        with suppress(psycopg.errors.InFailedSqlTransaction):
            for name, value in before:
                conn.execute(_SET, [name, value])
