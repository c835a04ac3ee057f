"""A worker's health and figures over HTTP, for probes and Prometheus: ``/healthz`` and ``/metrics``."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import sql
from psycopg.rows import class_row

from pgembed.errors import MissingExtra, PgembedError
from pgembed.worker.queue import Queue, Work
from pgembed.worker.state import State

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

    from pgembed.worker.run import Connect

SILENCE = 60.0  # seconds without a look at the queue, after which a worker counts as stuck
ASK_TIMEOUT = "5s"  # of each statement that a scrape has the database run


@contextmanager
def serving_metrics(state: State, connect: Connect, host: str, port: int) -> Generator[int]:
    """Answer on a port for as long as the block; gives the port, which the system chooses where it is 0.

    Raises MissingExtra without the package prometheus_client, PgembedError where the port cannot be had.
    """
    render = _renderer(state, connect)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if path == "/metrics":
                self._answer(200, render(), "text/plain; version=0.0.4; charset=utf-8")
            elif path == "/healthz":
                healthy, facts = health(state)
                self._answer(200 if healthy else 503, json.dumps(facts).encode(), "application/json")
            else:
                self._answer(404, b"/metrics and /healthz are here\n", "text/plain")

        def _answer(self, status: int, body: bytes, kind: str) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: ANN401
            """Probes come each few seconds: nothing is logged."""

    try:
        server = ThreadingHTTPServer((host, port), Handler)
    except (OSError, OverflowError) as error:
        raise PgembedError(
            f"Port {port} of {host} cannot be had for metrics: {error}.", "Name another: --metrics-port."
        ) from error
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, name="pgembed-metrics", daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def health(state: State) -> tuple[bool, dict[str, Any]]:
    """Whether the worker comes round, and what there is to say of it.

    An embedding in trouble is told, but leaves it healthy: to start it again would mend nothing, and stop the others.
    """
    silent = time.monotonic() - state.seen_at
    status = "ok"
    if state.lost is not None:
        status = "no database"
    elif state.loading is not None:
        status = "loading"  # a model may take minutes
    elif silent > SILENCE:
        status = "stuck"
    facts: dict[str, Any] = {
        "status": status,
        "last_look_seconds": round(silent, 1),
        "in_hand": state.held_count(),
        "held_back": state.held_back,
        "loading": state.loading,
        "database": state.lost,
        "troubles": {name: str(error).strip() for name, error in state.troubles().items()},
    }
    return status in ("ok", "loading"), facts


def _renderer(state: State, connect: Connect) -> Callable[[], bytes]:
    try:
        from prometheus_client import CollectorRegistry, generate_latest
    except ImportError:
        raise MissingExtra("--metrics-port", "metrics") from None
    registry = CollectorRegistry()
    registry.register(Figures(state, connect))  # pyright: ignore[reportArgumentType]
    return lambda: generate_latest(registry)


class Figures:
    """What Prometheus collects: what this worker did, and how the queues of its embeddings stand."""

    def __init__(self, state: State, connect: Connect) -> None:
        self._state = state
        self._connect = connect

    def describe(self) -> list[Metric]:
        """Nothing ahead of time: it would ask the database."""
        return []

    def collect(self) -> Iterator[Metric]:
        """The figures of now."""
        yield from self._of_worker()
        yield from self._of_queues()

    def _of_worker(self) -> Iterator[Metric]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        state = self._state
        rows = CounterMetricFamily(
            "pgembed_worker_rows",
            "Rows this worker is done with, by what became of them.",
            labels=["embedding", "outcome"],
        )
        batches = CounterMetricFamily("pgembed_worker_batches", "Batches this worker wrote.", labels=["embedding"])
        for name, total in state.totals().items():
            batches.add_metric([name], total.batches)
            for outcome in ("written", "failed", "skipped"):
                rows.add_metric([name, outcome], getattr(total, outcome))
        yield rows
        yield batches
        yield CounterMetricFamily(
            "pgembed_worker_encode_seconds", "Seconds in which the encoder was at work.", value=state.encode_seconds
        )
        trouble = GaugeMetricFamily(
            "pgembed_worker_trouble", "1 where this worker leaves an embedding alone for now.", labels=["embedding"]
        )
        for name in state.troubles():
            trouble.add_metric([name], 1)
        yield trouble
        for name, what, value in (
            ("in_hand", "Rows claimed and not yet written.", state.held_count()),
            ("memory_bytes", "What pictures in hand take, as far as it is counted.", state.memory_held()),
            ("memory_limit_bytes", "What pictures in hand may take.", state.options.max_memory),
            ("held_back", "1 while others on the server are busy.", state.held_back),
            ("healthy", "1 while it comes round.", health(state)[0]),
        ):
            yield GaugeMetricFamily(f"pgembed_worker_{name}", what, value=value)

    def _of_queues(self) -> Iterator[Metric]:
        from prometheus_client.core import GaugeMetricFamily

        waiting = GaugeMetricFamily("pgembed_queue_rows", "Changes and jobs that wait.", labels=["embedding"])
        oldest = GaugeMetricFamily(
            "pgembed_queue_oldest_seconds", "How long the oldest of them has been due.", labels=["embedding"]
        )
        failed = GaugeMetricFamily("pgembed_failed_rows", "Rows that were given up.", labels=["embedding"])
        reached = True
        try:
            for name, (rows, seconds, failures) in self._ask():
                waiting.add_metric([name], rows)
                oldest.add_metric([name], seconds)
                failed.add_metric([name], failures)
        except psycopg.Error:
            reached = False
        yield GaugeMetricFamily("pgembed_database_up", "1 where the database answers.", value=reached)
        yield from (waiting, oldest, failed)

    def _ask(self) -> Iterator[tuple[str, tuple[int, float, int]]]:
        with self._connect() as conn:
            conn.autocommit = True
            conn.cursor_factory = psycopg.RawCursor
            conn.execute("SELECT pg_catalog.set_config('statement_timeout', $1, false)", [ASK_TIMEOUT])
            conn.execute("SELECT pg_catalog.set_config('application_name', 'pgembed worker', false)")
            with conn.cursor(row_factory=class_row(Work)) as cursor:
                works = cursor.execute("SELECT * FROM pgembed._work ORDER BY id").fetchall()
            for work in works:
                if work.present and work.is_named(self._state.options.embeddings):
                    yield work.name, conn.execute(Standing(work).now).fetchall()[0]


class Standing(Queue):
    """Composes how one embedding's queue stands."""

    @cached_property
    def now(self) -> sql.Composed:
        """Changes and jobs that wait, for how many seconds the oldest has been due, and how many rows were given up."""
        return sql.SQL(
            "SELECT (SELECT count(*) FROM {change}) + (SELECT count(*) FROM {job}),"
            " coalesce(extract(epoch FROM clock_timestamp() - least((SELECT min(changed_at) FROM {change}),"
            " (SELECT min(available_at) FROM {job} WHERE available_at <= clock_timestamp()))), 0)::float8,"
            " (SELECT count(*) FROM pgembed.failure WHERE embedding = {id})"
        ).format(change=self._change, job=self._job, id=self.work.id)
