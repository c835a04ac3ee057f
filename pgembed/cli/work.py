"""The command worker: encodes what waits, and tells how it goes."""

from __future__ import annotations

import logging
import re
import signal
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from pgembed.cli.allowed import loads_encoders
from pgembed.cli.app import Json, WrongUsage, app, database, examples, settings
from pgembed.cli.output import errors, print_json, progress_bar, rows_are

if TYPE_CHECKING:
    from rich.progress import TaskID

    from pgembed.catalog import StatusRow
    from pgembed.worker import Progress as BatchDone
    from pgembed.worker import Worker


DecodeIn = Literal["processes", "threads"]


@app.command(
    epilog=examples(
        "pgembed worker",
        "pgembed worker --until-idle --media-root /srv/pictures",
        "pgembed worker --max-memory 500MB --decode-threads 2",
        "pgembed worker --max-load 8 --max-rate 50",
        "pgembed worker --metrics-port 9464",
    )
)
@loads_encoders
def worker(
    once: Annotated[bool, typer.Option("--once", help="One batch of each embedding, then leave.")] = False,
    until_idle: Annotated[bool, typer.Option("--until-idle", help="Leave when nothing waits.")] = False,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Rows claimed at once.")] = None,
    embedding: Annotated[
        list[str] | None, typer.Option(help="Only this table or table.target; may be repeated.")
    ] = None,
    media_root: Annotated[Path | None, typer.Option(help="Pictures given as paths must lie below this folder.")] = None,
    allow_urls: Annotated[bool, typer.Option("--allow-urls", help="Fetch pictures given as https URLs.")] = False,
    allow_bucket: Annotated[
        list[str] | None,
        typer.Option(help="Fetch pictures from this bucket: s3://NAME, gs://NAME or az://NAME; may be repeated."),
    ] = None,
    max_rows: Annotated[int | None, typer.Option(min=1, help="Leave once so many rows are written.")] = None,
    decode_threads: Annotated[int, typer.Option(min=1, help="Threads that read and prepare pictures.")] = 4,
    decode: Annotated[
        DecodeIn, typer.Option(help="Where pictures are decoded: a hostile one may kill what decodes it.")
    ] = "processes",
    max_memory: Annotated[
        str, typer.Option(metavar="SIZE", help="What pictures in hand may take, besides the model: 500MB, 2GB.")
    ] = "1GB",
    max_rate: Annotated[float | None, typer.Option(min=0.01, help="Rows a second, at most.")] = None,
    max_load: Annotated[
        int | None, typer.Option(min=0, help="Hold back while more sessions of others are at work on the server.")
    ] = None,
    encode_timeout: Annotated[
        float,
        typer.Option(min=0, help="Seconds that the encoder may take for one call, then the worker leaves; 0: any."),
    ] = 600.0,
    sweep_every: Annotated[
        float,
        typer.Option(
            min=0, help="Seconds between looks for rows that no trigger saw; 0: never. Only one that runs on."
        ),
    ] = 300.0,
    metrics_port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Answer /metrics (Prometheus) and /healthz on this port.")
    ] = None,
    metrics_host: Annotated[str, typer.Option(help="The address of that port; 0.0.0.0 for all.")] = "127.0.0.1",
    as_json: Json = False,
) -> None:
    """Encode what waits: a progress bar on a terminal, JSON lines elsewhere. SIGTERM finishes the batch in hand."""
    if once and until_idle:
        raise WrongUsage("--once and --until-idle exclude each other.", "Choose one of them.")
    import structlog

    from pgembed.encoders import EncoderPolicy
    from pgembed.media import MediaPolicy
    from pgembed.worker import WorkerOptions

    options = WorkerOptions(
        batch_size=batch_size,
        embeddings=tuple(embedding or ()),
        media=MediaPolicy(media_root=media_root, allow_urls=allow_urls, buckets=tuple(allow_bucket or ())),
        encoders=settings.encoders or EncoderPolicy.from_environment(),
        max_rows=max_rows,
        decode_threads=decode_threads,
        max_memory=size_in_bytes("--max-memory", max_memory),
        max_rate=max_rate,
        max_load=max_load,
        decode_in=decode,
        encode_timeout=encode_timeout,
        sweep_every=sweep_every,
    )
    configure_logging()
    log: Any = structlog.get_logger("pgembed.worker")
    with database() as db, progress_of_batches(lambda: db.status()) as on_progress:
        running = db.worker(options, on_progress=on_progress)
        with _stopped_by_signals(running), metrics(running, metrics_host, metrics_port):
            log.info("worker starts", mode="once" if once else "until idle" if until_idle else "forever")
            summary = running.run("once" if once else "until_idle" if until_idle else "forever")
    log.info("worker leaves", written=summary.written, failed=summary.failed)
    if as_json:
        print_json({"action": "worker", **vars(summary)})
    elif sys.stderr.isatty():
        given_up = f", {rows_are(summary.failed)} given up: pgembed failures" if summary.failed else ""
        errors.print(f"{rows_are(summary.written)} encoded{given_up}.")


@contextmanager
def metrics(running: Worker, host: str, port: int | None) -> Generator[None]:
    """Answer on a port for as long as the block, where one is asked for."""
    if port is None:
        yield
        return
    import structlog

    from pgembed.worker.metrics import serving_metrics

    with serving_metrics(running.state, running.connect, host, port) as chosen:
        log: Any = structlog.get_logger("pgembed.worker")
        log.info("metrics", host=host, port=chosen)
        yield


def size_in_bytes(option: str, size: str) -> int:
    """``500MB`` as bytes; a plain number is bytes already. Raises WrongUsage."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(?:([KMGT])(I)?)?B?", size.strip().upper())
    if found is None or float(found[1]) == 0:
        raise WrongUsage(f"{option} is '{size}', which is no size.", "Write it as 500MB or 2GB.")
    power = " KMGT".index(found[2] or " ")
    return int(float(found[1]) * (1024 if found[3] else 1000) ** power)


def configure_logging() -> None:
    """Logs to standard error: for people on a terminal, JSON lines elsewhere."""
    import structlog

    logging.captureWarnings(capture=True)  # Pillow warns of odd pictures; their rows tell it where it matters
    people = sys.stderr.isatty()
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.format_exc_info,
            structlog.dev.ConsoleRenderer() if people else structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING if people else logging.INFO),
        logger_factory=lambda *_args: structlog.PrintLogger(sys.stderr),  # the one at hand, if it is exchanged later
    )


@contextmanager
def progress_of_batches(read_status: Callable[[], list[StatusRow]]) -> Generator[Callable[[BatchDone], None]]:
    """Show what a worker does: one bar an embedding on a terminal, one JSON line a batch elsewhere."""
    if not sys.stderr.isatty():
        import structlog

        log: Any = structlog.get_logger("pgembed.worker")
        yield lambda batch: log.info("batch", **vars(batch))
        return
    with progress_bar() as bar:
        tasks: dict[str, TaskID] = {}
        waiting = {
            f"{row.schema_name}.{row.table_name}.{row.target}": max(row.queued or 0, (row.rows or 0) - (row.ready or 0))
            for row in read_status()
        }
        done: dict[str, int] = {}

        def show(batch: BatchDone) -> None:
            name = batch.embedding
            done[name] = done.get(name, 0) + batch.written + batch.failed
            total = max(waiting.get(name, 0), done[name] + batch.left)
            if name not in tasks:
                tasks[name] = bar.add_task(name, total=total)
            bar.update(tasks[name], completed=done[name], total=total)

        yield show


@contextmanager
def _stopped_by_signals(running: Worker) -> Generator[None]:
    def leave(_number: int, _frame: FrameType | None) -> None:
        running.stop()

    before = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
