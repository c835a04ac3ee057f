"""The worker: three stages side by side with bounded queues between them, so that the encoder never waits for the
database, the disk or the network. No lock is held while a model runs."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import Any

import psycopg

from pgembed.errors import EncoderError, EncoderTimeout, PgembedError
from pgembed.pooling import require_session
from pgembed.vectors import BinaryParameter, BinaryParameterDumper
from pgembed.worker.batch import Batch, abandon
from pgembed.worker.load import Loader
from pgembed.worker.pipes import Pipe, Pipes, Stopped
from pgembed.worker.precedence import Precedence
from pgembed.worker.requests import Requests
from pgembed.worker.splitting import encode_rows
from pgembed.worker.state import TROUBLE_WAITS, Mode, Progress, State, Summary, WorkerOptions
from pgembed.worker.watch import Watch
from pgembed.worker.write import Writer, give_back

LOOK_EVERY = 0.2  # seconds between looks whether the encoder is still at work
Connect = Callable[[], psycopg.Connection[Any]]
SESSION_SETTINGS = {
    "application_name": "pgembed worker",
    "row_security": "off",  # a filtered read would lose jobs silently; off, it raises
    "timezone": "UTC",  # templates render values; they must render alike wherever the worker runs
    "datestyle": "ISO, YMD",
    "intervalstyle": "postgres",
    "extra_float_digits": "1",
    "bytea_output": "hex",
    "lock_timeout": "10s",
    "statement_timeout": "10min",
    "idle_in_transaction_session_timeout": "1min",  # no step stops in the middle; if one does, its locks end
    "tcp_keepalives_idle": "30",  # seconds; a worker that is cut off loses its locks in a minute, not in two hours
    "tcp_keepalives_interval": "10",
    "tcp_keepalives_count": "3",
    "synchronous_commit": "off",  # a crash loses a vector together with the end of its job, and it is made again
    "plan_cache_mode": "force_generic_plan",  # a batch of vectors as a constant would be copied again and again
    "jit": "off",
    "enable_seqscan": "off",  # by index is right for a batch, whatever is known of the size of a queue
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "work_mem": "64MB",  # a batch of vectors stays in memory
}


class Worker:
    """Works on the queues of a database until told to stop. One process may run several; so may several machines."""

    def __init__(
        self,
        connect: Connect,
        options: WorkerOptions | None = None,
        *,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> None:
        self.connect = connect
        self.state = State(options or WorkerOptions(), on_progress)

    def stop(self) -> None:
        """Ask it to finish the batch in hand and leave; safe from signal handlers and other threads."""
        self.state.stop.set()

    def run(self, mode: Mode = "forever") -> Summary:
        """Work. ``until_idle`` returns when nothing waits in any queue, ``once`` after one batch of each embedding.

        Raises InvalidInput for an embedding that is not there, and EncoderTimeout where an encoder does not return; in
        ``until_idle`` and ``once`` an error of an encoder or the database that does not go away after a few tries is
        raised, otherwise it is logged and tried again.
        """
        failures = 0
        self.state.start()
        while True:
            done = self.state.summary.written
            try:
                Session(self.connect, self.state, mode).run()
                if mode == "once" and (trouble := self.state.any_trouble()):
                    raise trouble
                return self.state.summary
            except (psycopg.OperationalError, psycopg.InterfaceError) as error:
                failures = 1 if self.state.summary.written > done else failures + 1
                if mode != "forever" and failures >= len(TROUBLE_WAITS) - 1:
                    raise
                wait = TROUBLE_WAITS[min(failures, len(TROUBLE_WAITS)) - 1]
                self.state.lost = str(error).strip()
                self.state.log.warning("database trouble", error=str(error).strip(), retry_in=wait)
                if self.state.stop.wait(wait):
                    return self.state.summary


class Session(Pipes):
    """One run of the stages on one pair of connections; it ends when the work, the patience or a connection does."""

    def __init__(self, connect: Connect, state: State, mode: Mode) -> None:
        super().__init__(state, mode)
        self.connect = connect
        self.errors: list[BaseException] = []
        self.watch = Watch(state.options.encode_timeout)
        self.overdue: Batch | None = None  # from which the encoder did not return
        self.turns = Precedence(self.broken)
        state.memory_held = lambda: self.memory.held

    def run(self) -> None:
        with ExitStack() as stack:
            reader = stack.enter_context(session_connection(self.connect))
            writer = stack.enter_context(session_connection(self.connect))
            self.state.lost = None
            loader = Loader(self, reader)
            stack.callback(loader.close)
            requests = self._requests(stack, loader)
            threads = [
                threading.Thread(target=self._stage, args=(loader.run, self.loaded), name="pgembed-load"),
                threading.Thread(target=self._stage, args=(Writer(self, writer).run, None), name="pgembed-write"),
            ]
            encoding = threading.Thread(target=self._stage, args=(self._encode, self.encoded), daemon=True)
            answering = (
                threading.Thread(target=self._stage, args=(requests.run, None), daemon=True) if requests else None
            )
            for thread in (*threads, encoding, *([answering] if answering else [])):
                thread.start()
            while encoding.is_alive() and not self.broken.is_set():
                if overdue := self.watch.overdue():
                    self.overdue = overdue
                    self._leave(self.watch.error(overdue), overdue.work.name)
                elif requests and (error := requests.overdue(self.options.encode_timeout)):
                    self._leave(error)
                encoding.join(LOOK_EVERY)
            for thread in threads:
                thread.join()
            if self.errors and isinstance(self.errors[0], EncoderTimeout):
                if self.overdue is not None:
                    self._give_back(loader, self.overdue)
                else:
                    self._free(loader)
            else:
                encoding.join()
                if answering is not None and requests is not None:
                    requests.leaving.set()
                    answering.join()
            if self.errors:
                if not isinstance(self.errors[0], (psycopg.OperationalError, psycopg.InterfaceError, EncoderTimeout)):
                    self._free(loader)
                raise self.errors[0]

    def _free(self, loader: Loader) -> None:
        """The session ends with an error that another one would not mend: what is in hand need not wait for its
        lease. After a lost connection the next session does this."""
        with suppress(psycopg.Error):
            loader.give_back_held(loader.works)

    def _requests(self, stack: ExitStack, loader: Loader) -> Requests | None:
        """The stage that answers queries, where the worker stays."""
        if self.mode != "forever":
            return None
        named = self.options.embeddings
        return Requests(
            self,
            stack.enter_context(session_connection(self.connect)),
            self.turns,
            loader.decoder.open,
            lambda: {work.encoder for work in loader.works} if named else None,
        )

    def _leave(self, error: EncoderTimeout, embedding: str | None = None) -> None:
        """An encoder does not return: the other stages end, and the thread that it holds is left alone."""
        self.state.log.error("encoder does not return", embedding=embedding, error=error.message)
        self.errors.append(error)
        self.broken.set()

    def _give_back(self, loader: Loader, overdue: Batch) -> None:
        """Rows that are in hand are free again; those that the encoder has not returned from, later."""
        self.watch.put_off(loader.conn, overdue, self.options.max_attempts)
        for work in loader.works:
            held = set(self.state.held_seqs(work.id))
            if work.id == overdue.work.id:
                held -= {row.seq for row in overdue.rows}
            give_back(loader.conn, work, sorted(held))

    def _stage(self, run: Callable[[], None], following: Pipe | None) -> None:
        try:
            run()
        except Stopped:
            pass
        except BaseException as error:  # the other stages must not wait for this one
            self.errors.append(error)
            self.broken.set()
        if following is not None:
            self.put(following, None, force=True)

    def _encode(self) -> None:
        leaving = False
        for batch in self.take(self.loaded):
            if leaving:
                abandon(batch)  # asked to stop: one batch was finished, the others are given back
            elif batch.rows:  # none where SQL encodes
                began_at = time.monotonic()
                try:
                    self.watch.batch = batch
                    turn = partial(self.turns.of_rows, batch.work.encoder)
                    encoder = self.watch.over(self.state.encoder(batch.work), turn)
                    encode_rows(encoder, batch, self.options.media.limits)
                except Exception as error:  # an encoder may raise anything, and must not stop the others' work
                    self.state.note_trouble(batch.work, _as_own(batch, error))
                    abandon(batch)
                self.state.encode_seconds += time.monotonic() - began_at
                leaving = self.state.stop.is_set()
            for row in batch.rows:
                row.inputs.clear()
            self.memory.release(batch.rows)
            self.put(self.encoded, batch)


def _as_own(batch: Batch, error: Exception) -> PgembedError:
    if isinstance(error, PgembedError):
        return error
    wrapped = EncoderError(f"Encoder '{batch.work.spec}' fails: {error or type(error).__name__}")
    wrapped.__cause__ = error
    return wrapped


@contextmanager
def session_connection(connect: Connect, what: str = "A worker") -> Generator[psycopg.Connection[Any]]:
    """A connection as the stages need it: READ COMMITTED whatever the default, ``$1`` parameters, its own settings.

    Raises InvalidInput where a pooler would give these settings to others.
    """
    with connect() as conn:
        conn.autocommit = True
        require_session(conn, connect, what)
        conn.isolation_level = psycopg.IsolationLevel.READ_COMMITTED
        conn.cursor_factory = psycopg.RawCursor
        conn.adapters.register_dumper(BinaryParameter, BinaryParameterDumper)
        for name, value in SESSION_SETTINGS.items():
            conn.execute("SELECT pg_catalog.set_config($1, $2, false)", [name, value])
        yield conn
