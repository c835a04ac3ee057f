"""The commands that wait for workers, and have them wait: wait, prepare, pause, resume."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from pgembed.cli.app import EncoderName, Json, TableName, Target, app, database, examples
from pgembed.cli.output import print_json, print_table, say_done


@app.command(epilog=examples("pgembed wait product", "pgembed wait product --timeout 5"))
def wait(
    table: TableName,
    target: Target = None,
    timeout: Annotated[float, typer.Option(min=0, help="Seconds to wait at most.")] = 60.0,
    as_json: Json = False,
) -> None:
    """Wait until every row that is committed now has its vector. Exit status 1: the time is over, or rows failed."""
    with database() as db:
        failed = db.wait(table, target, timeout=timeout)
    if as_json:
        print_json({"action": "wait", "table": table, "target": target, "failed": failed})
    elif failed:
        print_table(["embedding", "key", "error"], [(row.embedding, ", ".join(row.key), row.error) for row in failed])
    else:
        say_done(f"Every row of {table} has its vector.", as_json=False, action="wait", table=table, target=target)
    if failed:
        raise typer.Exit(1)


@app.command(epilog=examples('pgembed prepare shop "a red shoe" "a blue car"', "pgembed prepare shop < queries.txt"))
def prepare(
    encoder: EncoderName,
    texts: Annotated[
        list[str] | None, typer.Argument(help="Query texts; without any, the lines of standard input.")
    ] = None,
    timeout: Annotated[float, typer.Option(min=0, help="Seconds to wait at most.")] = 60.0,
    as_json: Json = False,
) -> None:
    """Have workers encode query texts, so that pgembed.encode_text finds them in SQL."""
    if not texts:
        texts = [line for line in sys.stdin.read().splitlines() if line.strip()]
    with database() as db:
        db.prepare(encoder, texts, timeout=timeout)
    say_done(
        f"{len(texts)} prepared; in SQL pgembed.encode_text('{encoder}', …) finds them.",
        as_json=as_json, action="prepare", encoder=encoder, texts=len(texts),
    )  # fmt: skip


@app.command(epilog=examples("pgembed pause product", "pgembed pause product --embedding embedding"))
def pause(table: TableName, target: Target = None, as_json: Json = False) -> None:
    """Have workers leave a table's embeddings alone, until resume; what changes meanwhile waits."""
    with database() as db:
        count = db.pause(table, target)
    say_done(
        f"{embeddings(count)} paused; go on: pgembed resume {table}",
        as_json=as_json, action="pause", table=table, target=target, embeddings=count,
    )  # fmt: skip


@app.command(epilog=examples("pgembed resume product"))
def resume(table: TableName, target: Target = None, as_json: Json = False) -> None:
    """Go on with what was paused."""
    with database() as db:
        count = db.resume(table, target)
    say_done(
        f"{embeddings(count)} resumed.",
        as_json=as_json, action="resume", table=table, target=target, embeddings=count,
    )  # fmt: skip


def embeddings(count: int) -> str:
    """So many embeddings, in words."""
    return "1 embedding" if count == 1 else f"{count} embeddings"
