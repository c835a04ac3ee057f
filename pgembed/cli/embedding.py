"""Commands about embeddings and their queues: attach, detach, status, failures, retry, reconcile, index."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer
from rich.table import Table

from pgembed.cli import completion
from pgembed.cli.allowed import loads_encoders
from pgembed.cli.app import Json, NewTable, OnlyTable, TableName, Target, WrongUsage, app, database, examples
from pgembed.cli.keys import key_of
from pgembed.cli.output import console, errors, print_json, print_table, progress_bar, rows_are, say_done, table_of

if TYPE_CHECKING:
    from datetime import datetime

    from pgembed.catalog import CutRow, FailureReason, FailureRow, StatusRow

T = TypeVar("T")
WATCH_EVERY = 2.0  # seconds


@app.command(
    epilog=examples(
        "pgembed attach product embedding --encoder shop --image photo",
        "pgembed attach product embedding --encoder shop --text '{title}. {body}' --image photo --dry-run",
    )
)
@loads_encoders
def attach(
    table: NewTable,
    target: Annotated[str, typer.Argument(help="The embedding's name: of the vector column, or TABLE_NAME beside.")],
    encoder: Annotated[str, typer.Option(help="A registered encoder.", autocompletion=completion.encoder)],
    text: Annotated[
        str | None,
        typer.Option(help="A text column, or a template: '{title}. {body}'.", autocompletion=completion.column),
    ] = None,
    image: Annotated[str | None, typer.Option(help="A picture column.", autocompletion=completion.column)] = None,
    image_as: Annotated[str | None, typer.Option(help="What a text column of pictures holds: path or url.")] = None,
    screenshot: Annotated[
        str | None, typer.Option(help="A column of screenshots.", autocompletion=completion.column)
    ] = None,
    screenshot_as: Annotated[str | None, typer.Option(help="The same for screenshots: path or url.")] = None,
    stale: Annotated[
        str, typer.Option(help="A changed row's old vector: keep it until the new one is there, or null.")
    ] = "keep",
    storage: Annotated[
        str | None,
        typer.Option(
            help="Where vectors stand: in a column of the table, or in a side table, where writing them fires no"
            " trigger of yours. Default: column, and side with --parts."
        ),
    ] = None,
    mode: Annotated[
        str,
        typer.Option(
            help="Who encodes: workers, from the queue; or, for texts of an encoder such as builtin:lite, triggers in"
            " the transaction that writes the row: instant."
        ),
    ] = "queue",
    fusion: Annotated[
        str,
        typer.Option(
            help="Of several inputs: sum adds their vectors; concat puts them side by side, so that a query may say how"
            " much each counts."
        ),
    ] = "sum",
    parts: Annotated[
        str | None,
        typer.Option(
            help="Take the input apart, so that a row has many vectors: chunks of a text, pages, tiles; or with"
            ' options: \'{"kind": "chunks", "tokens": 200}\'.'
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Change nothing; tell rows, tokens, pictures, calls and time.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Attach an embedding: make a place for vectors and keep them true from now on. Workers fill it."""
    if not (text or image or screenshot):
        raise WrongUsage(
            f"Nothing to embed: {table}.{target} was given no input.",
            "Give --text, --image or --screenshot a column of the table.",
        )
    picture = {"column": image, "as": image_as} if image and image_as else image
    page = {"column": screenshot, "as": screenshot_as} if screenshot and screenshot_as else screenshot
    with database() as db:
        if dry_run:
            from pgembed.cli.dry_run import show as show_estimate

            found = db.estimate(
                table, target, encoder=encoder, fusion=fusion, text=text, image=picture, screenshot=page
            )
            show_estimate(found, as_json=as_json)
            return
        made = while_the_table_is_in_use(
            lambda: db.attach(
                table,
                target,
                encoder=encoder,
                text=text,
                image=picture,
                screenshot=page,
                stale=stale,
                storage=storage,
                mode=mode,
                fusion=fusion,
                parts=parts,
            )
        )
    say_done(
        f"{table}.{target} is attached; fill it: pgembed worker --until-idle",
        as_json=as_json,
        action="attach",
        table=table,
        target=target,
        id=made,
    )


@app.command(epilog=examples("pgembed detach product", "pgembed detach product embedding"))
def detach(
    table: TableName,
    target: Annotated[
        str | None, typer.Argument(help="The vector column.", autocompletion=completion.embedding)
    ] = None,
    embedding: Target = None,
    as_json: Json = False,
) -> None:
    """Detach an embedding: its vectors, queue and triggers go, and the table is as it was before."""
    with database() as db:
        while_the_table_is_in_use(lambda: db.detach(table, target or embedding))
    say_done(f"{table} is as it was before.", as_json=as_json, action="detach", table=table, target=target or embedding)


@app.command(epilog=examples("pgembed status", "pgembed status product --watch", "pgembed status --watch --json"))
def status(
    table: OnlyTable = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Look again every two seconds, until Ctrl-C; with --json a line each.")
    ] = False,
    as_json: Json = False,
) -> None:
    """How every embedding stands: rows, vectors, what waits, what failed."""
    with database() as db:
        if watch and as_json:
            _watch_as_json(lambda: db.status(table))
        elif watch:
            from rich.live import Live

            with Live(console=console, auto_refresh=False) as live:
                while True:
                    live.update(_status_table(db.status(table)), refresh=True)
                    time.sleep(WATCH_EVERY)
        elif as_json:
            print_json(db.status(table))
        else:
            console.print(_status_table(db.status(table)))


def _watch_as_json(look: Callable[[], object]) -> None:
    """A line each look, for as long as somebody reads them."""
    try:
        while True:
            print_json(look())
            sys.stdout.flush()
            time.sleep(WATCH_EVERY)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python flushes at its end


@app.command(
    epilog=examples(
        "pgembed failures",
        "pgembed failures product --rows --limit 1000",
        "pgembed failures product --cut",
        "pgembed failures product --json",
    )
)
def failures(
    table: OnlyTable = None,
    rows: Annotated[bool, typer.Option("--rows", help="Every row with its own error.")] = False,
    cut: Annotated[
        bool, typer.Option("--cut", help="Instead, rows that have their vectors and were cut, and what is left out.")
    ] = False,
    limit: Annotated[int, typer.Option(min=1, help="Of --rows and --cut the latest so many.")] = 100,
    as_json: Json = False,
) -> None:
    """Why rows were given up: each reason with how many rows have it, or every row."""
    with database() as db:
        if cut:
            found = db.cuts(table, limit=limit)
            if as_json:
                print_json(found)
            else:
                print_table(
                    ["embedding", "key", "what is left out", "at"],
                    [(_name(r), ", ".join(r.key), r.told, _time(r.at)) for r in found],
                )
        elif as_json:
            print_json(db.failures(table, limit=limit) if rows else db.failure_reasons(table))
        elif rows:
            each = db.failures(table, limit=limit)
            print_table(
                ["embedding", "key", "error", "attempts", "failed at"],
                [(_name(r), ", ".join(r.key), r.error, r.attempts, _time(r.failed_at)) for r in each],
                right=["attempts"],
            )
        else:
            reasons = db.failure_reasons(table)
            print_table(
                ["embedding", "rows", "reason", "latest key", "failed at"],
                [(_name(r), r.rows, r.reason, ", ".join(r.latest_key), _time(r.last_failed_at)) for r in reasons],
                right=["rows"],
            )


@app.command(
    epilog=examples(
        "pgembed retry product",
        "pgembed retry product --reason '%cannot be read%'",
        "pgembed retry product --key 17 --key 18",
        """pgembed retry order_line --key '["17", "2"]'""",
    )
)
def retry(
    table: TableName,
    target: Target = None,
    reason: Annotated[
        str | None, typer.Option(help="Only errors like this: an SQL LIKE pattern, as failures prints them.")
    ] = None,
    key: Annotated[
        list[str] | None,
        typer.Option(help="Only the row with this primary key, one of several columns as a JSON array; repeatable."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Put failed rows back into the queue."""
    with database() as db:
        count = db.retry(table, target, reason=reason, keys=[key_of(text) for text in key] if key else None)
    say_done(
        f"{rows_are(count)} back in the queue.", as_json=as_json, action="retry", table=table, target=target, rows=count
    )


@app.command(
    epilog=examples(
        "pgembed reconcile product", "pgembed reconcile product --where \"updated_at > now() - interval '1 day'\""
    )
)
def reconcile(
    table: TableName,
    target: Target = None,
    where: Annotated[str | None, typer.Option(help="Rows to encode again; default: those without a vector.")] = None,
    as_json: Json = False,
) -> None:
    """Queue rows that no trigger saw, after a restore or a bulk load with triggers off."""
    with database() as db:
        count = db.reconcile(table, target, where=where)
    say_done(
        f"{rows_are(count)} in the queue.", as_json=as_json, action="reconcile", table=table, target=target, rows=count
    )


@app.command(epilog=examples("pgembed index product", "pgembed index product --memory 1GB --now"))
def index(
    table: TableName,
    target: Target = None,
    m: Annotated[int, typer.Option(min=2, max=100, help="HNSW: connections a node.")] = 16,
    ef_construction: Annotated[int, typer.Option(min=4, max=1000, help="HNSW: candidates while building.")] = 64,
    quantization: Annotated[
        str,
        typer.Option(help="Of an embedding with parts: none, half or binary, for a smaller index; answers are exact."),
    ] = "none",
    memory: Annotated[str | None, typer.Option(help="maintenance_work_mem for the build, e.g. 1GB.")] = None,
    now: Annotated[bool, typer.Option("--now", help="Do not wait for the queue to be empty.")] = False,
    sql: Annotated[bool, typer.Option("--sql", help="Print the statement instead.")] = False,
    as_json: Json = False,
) -> None:
    """Build the vector index without blocking writers, once the queue is empty."""
    with database() as db:
        if sql:
            written = db.index_statement(table, target, m=m, ef_construction=ef_construction, quantization=quantization)
            sys.stdout.write(written + ";\n")
            return
        with progress_bar() as bar:
            task = bar.add_task("vector index", total=None)
            told = False

            def show(phase: str, done: int, total: int) -> None:
                nonlocal told
                if phase.startswith("waiting") and not told:
                    errors.print("Waiting until a worker has encoded all rows; --now builds at once.")
                    told = True
                bar.update(task, description=phase, completed=done, total=total or None)

            db.build_index(
                table,
                target,
                m=m,
                ef_construction=ef_construction,
                quantization=quantization,
                memory=memory,
                wait=not now,
                on_progress=show,
            )
    say_done(f"The vector index of {table} is there.", as_json=as_json, action="index", table=table, target=target)


def while_the_table_is_in_use(call: Callable[[], T]) -> T:
    """Try again while somebody holds the table: the functions wait two seconds at most, not to block its readers."""
    import psycopg
    from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_exponential

    retrying = Retrying(
        retry=retry_if_exception(lambda error: isinstance(error.__cause__, psycopg.errors.LockNotAvailable)),
        stop=stop_after_attempt(5),
        wait=wait_exponential(min=1, max=8),
        before_sleep=lambda _: errors.print("The table is in use; trying again."),
        reraise=True,
    )
    return retrying(call)


def _status_table(rows: list[StatusRow]) -> Table:
    """For people: what is empty in every row is left out, since terminals are narrow; ``--json`` has all."""
    columns = ["embedding", "encoder", "state", "ready", "queued", "failed", "cut", "waits", "rows/s"]
    cells = [
        (
            _name(row),
            row.encoder,
            row.state,
            _ready(row),
            "?" if row.queued is None else f"{row.queued:,}",
            f"{row.failed:,}",
            f"{row.cut:,}" if row.cut else "",
            str(row.oldest_wait).split(".")[0] if row.oldest_wait else "",
            "" if row.rows_per_second is None else f"{row.rows_per_second:,g}",
        )
        for row in rows
    ]
    shown = [number for number in range(len(columns)) if number < 6 or any(row[number] for row in cells)]
    return table_of(
        [columns[number] for number in shown],
        [[row[number] for number in shown] for row in cells],
        right=["ready", "queued", "failed", "cut", "waits", "rows/s"],
    )


def _ready(row: StatusRow) -> str:
    if row.rows is None or row.ready is None:
        return "table is gone" if row.queued is not None else "?"
    about = "" if row.exact else "~"
    return f"{about}{row.ready:,}/{about}{row.rows:,}"


def _time(at: datetime) -> str:
    return at.isoformat(" ", "seconds")


def _name(row: StatusRow | FailureRow | FailureReason | CutRow) -> str:
    """As a person would write it: without the schema where that is public."""
    schema = "" if row.schema_name == "public" else f"{row.schema_name}."
    return f"{schema}{row.table_name}.{row.target}"
