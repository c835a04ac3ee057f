"""Commands about embeddings and their queues: attach, detach, worker, status, failures, retry, reconcile, index."""

from __future__ import annotations

import logging
import signal
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import psycopg
import structlog
import typer
from rich.live import Live
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text
from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_exponential

from pgembed.catalog import StatusRow
from pgembed.cli.app import Json, TableName, Target, app, console, database, errors, print_json, print_table
from pgembed.encoders import EncoderPolicy
from pgembed.errors import InvalidInput
from pgembed.media import MediaPolicy
from pgembed.worker import Progress as BatchDone
from pgembed.worker import Worker, WorkerOptions


@app.command(epilog="pgembed attach product embedding --encoder shop --text '{title}. {body}' --image photo")
def attach(
    table: TableName,
    target: Annotated[str, typer.Argument(help="The name of the vector column to add.")],
    encoder: Annotated[str, typer.Option(help="A registered encoder.")],
    text: Annotated[str | None, typer.Option(help="A text column, or a template: '{title}. {body}'.")] = None,
    image: Annotated[str | None, typer.Option(help="A picture column.")] = None,
    image_as: Annotated[str | None, typer.Option(help="What a text column of pictures holds: path or url.")] = None,
    screenshot: Annotated[str | None, typer.Option(help="A column of screenshots.")] = None,
    screenshot_as: Annotated[str | None, typer.Option(help="The same for screenshots: path or url.")] = None,
    stale: Annotated[
        str, typer.Option(help="A changed row's old vector: keep it until the new one is there, or null.")
    ] = "keep",
) -> None:
    """Attach an embedding: add a vector column and keep it true from now on. Workers fill it."""
    picture = {"column": image, "as": image_as} if image and image_as else image
    page = {"column": screenshot, "as": screenshot_as} if screenshot and screenshot_as else screenshot
    with database() as db:
        for attempt in _while_the_table_is_in_use():
            with attempt:
                db.attach(table, target, encoder=encoder, text=text, image=picture, screenshot=page, stale=stale)
    console.print(f"{table}.{target} is attached; fill it: pgembed worker --until-idle", markup=False)


@app.command()
def detach(table: TableName, target: Annotated[str | None, typer.Argument(help="The vector column.")] = None) -> None:
    """Detach an embedding: its vectors, queue and triggers go, and the table is as it was before."""
    with database() as db:
        for attempt in _while_the_table_is_in_use():
            with attempt:
                db.detach(table, target)
    console.print(f"{table} is as it was before.", markup=False)


@app.command(epilog="pgembed worker --until-idle --media-root /srv/pictures")
def worker(
    once: Annotated[bool, typer.Option("--once", help="One batch of each embedding, then leave.")] = False,
    until_idle: Annotated[bool, typer.Option("--until-idle", help="Leave when nothing waits.")] = False,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Rows claimed at once.")] = None,
    embedding: Annotated[
        list[str] | None, typer.Option(help="Only this table or table.target; may be repeated.")
    ] = None,
    media_root: Annotated[Path | None, typer.Option(help="Pictures given as paths must lie below this folder.")] = None,
    allow_urls: Annotated[bool, typer.Option("--allow-urls", help="Fetch pictures given as https URLs.")] = False,
    allow_encoder: Annotated[
        list[str] | None, typer.Option(help="Load only these kinds or specs; default: every kind installed.")
    ] = None,
    model_dir: Annotated[
        list[Path] | None, typer.Option(help="Local weights must lie below this folder; default: PGEMBED_MODEL_DIR.")
    ] = None,
    allow_host: Annotated[
        list[str] | None, typer.Option(help="Rows may be sent to this server; default: PGEMBED_ALLOW_HOSTS.")
    ] = None,
    allow_model_code: Annotated[
        bool, typer.Option("--allow-model-code", help="Load pickles, and models that bring code of their own.")
    ] = False,
    decode_threads: Annotated[int, typer.Option(min=1, help="Threads that decode pictures.")] = 4,
) -> None:
    """Encode what waits: a progress bar on a terminal, JSON lines elsewhere. SIGTERM finishes the batch in hand."""
    if once and until_idle:
        raise InvalidInput("--once and --until-idle exclude each other.", "Choose one of them.")
    options = WorkerOptions(
        batch_size=batch_size,
        embeddings=tuple(embedding or ()),
        media=MediaPolicy(media_root=media_root, allow_urls=allow_urls),
        encoders=_policy(allow_encoder, model_dir, allow_host, allow_model_code),
        decode_threads=decode_threads,
    )
    configure_logging()
    log: Any = structlog.get_logger("pgembed.worker")
    with database() as db, progress_of_batches(lambda: db.status()) as on_progress:
        running = db.worker(options, on_progress=on_progress)
        with _stopped_by_signals(running):
            log.info("worker starts", mode="once" if once else "until idle" if until_idle else "forever")
            summary = running.run("once" if once else "until_idle" if until_idle else "forever")
    log.info("worker leaves", written=summary.written, failed=summary.failed)


def _policy(
    kinds: list[str] | None, model_dirs: list[Path] | None, hosts: list[str] | None, code: bool
) -> EncoderPolicy:
    """What the options say, and the environment where they say nothing."""
    policy = EncoderPolicy.from_environment()
    return EncoderPolicy(
        kinds=tuple(kinds) if kinds else policy.kinds,
        model_dirs=tuple(model_dirs) if model_dirs else policy.model_dirs,
        hosts=tuple(hosts) if hosts else policy.hosts,
        code=code,
    )


@app.command()
def status(
    table: Annotated[str | None, typer.Argument(help="Only this table.")] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Look again every two seconds.")] = False,
    as_json: Json = False,
) -> None:
    """How every embedding stands: rows, vectors, what waits, what failed."""
    with database() as db:
        if as_json:
            print_json(db.status(table))
            return
        if not watch:
            _print_status(db.status(table))
            return
        with Live(console=console, auto_refresh=False) as live:
            while True:
                with console.capture() as captured:
                    _print_status(db.status(table))
                live.update(captured.get(), refresh=True)
                time.sleep(2)


@app.command()
def failures(
    table: Annotated[str | None, typer.Argument(help="Only this table.")] = None,
    limit: Annotated[int, typer.Option(min=1)] = 100,
    as_json: Json = False,
) -> None:
    """Rows that were given up, with the reason."""
    with database() as db:
        rows = db.failures(table, limit=limit)
    if as_json:
        print_json(rows)
        return
    print_table(
        ["table", "key", "error", "attempts", "failed at"],
        [
            (f"{r.table_name}.{r.target}", ", ".join(r.key), r.error, r.attempts, r.failed_at.isoformat(" ", "seconds"))
            for r in rows
        ],
    )


@app.command()
def retry(
    table: TableName,
    target: Target = None,
    reason: Annotated[str | None, typer.Option(help="Only errors like this: an SQL LIKE pattern.")] = None,
) -> None:
    """Put failed rows back into the queue."""
    with database() as db:
        count = db.retry(table, target, reason=reason)
    console.print(f"{count} rows are back in the queue.")


@app.command(epilog="pgembed reconcile product --where 'updated_at > now() - interval ''1 day'''")
def reconcile(
    table: TableName,
    target: Target = None,
    where: Annotated[str | None, typer.Option(help="Rows to encode again; default: those without a vector.")] = None,
) -> None:
    """Queue rows that no trigger saw, after a restore or a bulk load with triggers off."""
    with database() as db:
        count = db.reconcile(table, target, where=where)
    console.print(f"{count} rows are in the queue.")


@app.command()
def index(
    table: TableName,
    target: Target = None,
    m: Annotated[int, typer.Option(min=2, max=100, help="HNSW: connections a node.")] = 16,
    ef_construction: Annotated[int, typer.Option(min=4, max=1000, help="HNSW: candidates while building.")] = 64,
    memory: Annotated[str | None, typer.Option(help="maintenance_work_mem for the build, e.g. 1GB.")] = None,
    now: Annotated[bool, typer.Option("--now", help="Do not wait for the queue to be empty.")] = False,
    sql: Annotated[bool, typer.Option("--sql", help="Print the statement instead.")] = False,
) -> None:
    """Build the vector index without blocking writers, once the queue is empty."""
    with database() as db:
        if sql:
            sys.stdout.write(db.index_statement(table, target, m=m, ef_construction=ef_construction) + ";\n")
            return
        with _bar() as bar:
            task = bar.add_task("waiting for the queue", total=None)

            def show(phase: str, done: int, total: int) -> None:
                bar.update(task, description=phase, completed=done, total=total or None)

            db.build_index(
                table, target, m=m, ef_construction=ef_construction, memory=memory, wait=not now, on_progress=show
            )
    console.print(f"The vector index of {table} is there.", markup=False)


def configure_logging() -> None:
    """Logs to standard error: for people on a terminal, JSON lines elsewhere."""
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
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )


@contextmanager
def progress_of_batches(read_status: Callable[[], list[StatusRow]]) -> Generator[Callable[[BatchDone], None]]:
    """Show what a worker does: one bar an embedding on a terminal, one JSON line a batch elsewhere."""
    if not sys.stderr.isatty():
        log: Any = structlog.get_logger("pgembed.worker")
        yield lambda batch: log.info("batch", **vars(batch))
        return
    with _bar() as bar:
        tasks: dict[str, TaskID] = {}
        waiting = {
            f"{row.schema_name}.{row.table_name}.{row.target}": max(row.queued, (row.rows or 0) - (row.ready or 0))
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


class _Rate(ProgressColumn):
    """Rows a second."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:,.0f}/s" if task.speed else "")


def _bar() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=errors,
    )


def _while_the_table_is_in_use() -> Retrying:
    """Try again while somebody holds the table: the functions wait two seconds at most, not to block its readers."""

    def in_use(error: BaseException) -> bool:
        return isinstance(error.__cause__, psycopg.errors.LockNotAvailable)

    return Retrying(
        retry=retry_if_exception(in_use),
        stop=stop_after_attempt(5),
        wait=wait_exponential(min=1, max=8),
        before_sleep=lambda _: errors.print("The table is in use; trying again.", markup=False),
        reraise=True,
    )


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


def _print_status(rows: list[StatusRow]) -> None:
    about = {True: "", False: "~", None: ""}
    print_table(
        ["embedding", "encoder", "state", "rows", "ready", "queued", "claimed", "failed", "oldest wait", "rows/s"],
        [
            (
                f"{row.schema_name}.{row.table_name}.{row.target}",
                row.encoder,
                row.state,
                f"{about[row.exact]}{row.rows}" if row.rows is not None else "table is gone",
                f"{about[row.exact]}{row.ready}" if row.ready is not None else "",
                row.queued,
                row.claimed,
                row.failed,
                str(row.oldest_wait).split(".")[0] if row.oldest_wait else "",
                row.rows_per_second,
            )
            for row in rows
        ],
        right=["rows", "ready", "queued", "claimed", "failed", "rows/s"],
    )
