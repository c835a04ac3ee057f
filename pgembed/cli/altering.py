"""The commands around a migration of a table: unhook, sync."""

from __future__ import annotations

from typing import Annotated

import typer

from pgembed.cli import completion
from pgembed.cli.app import Json, TableName, app, database, examples
from pgembed.cli.embedding import while_the_table_is_in_use
from pgembed.cli.output import say_done
from pgembed.cli.waiting import embeddings


@app.command(epilog=examples("pgembed unhook product"))
def unhook(table: TableName, as_json: Json = False) -> None:
    """Take the triggers off a table, for a migration that changes a column they name; sync puts them back."""
    with database() as db:
        count = while_the_table_is_in_use(lambda: db.unhook(table))
    say_done(
        f"{embeddings(count)} unhooked; after the migration: pgembed sync {table}",
        as_json=as_json, action="unhook", table=table, embeddings=count,
    )  # fmt: skip


@app.command(epilog=examples("pgembed sync product", "pgembed sync product --no-requeue", "pgembed sync"))
def sync(
    table: Annotated[
        str | None,
        typer.Argument(
            help="The table that was altered; without it, renames are followed.",
            autocompletion=completion.attached_table,
        ),
    ] = None,
    requeue: Annotated[bool, typer.Option(help="Have the table's rows encoded again: no trigger saw them.")] = True,
    as_json: Json = False,
) -> None:
    """Put a table's embeddings right after it was altered, replaced or restored: triggers, queue, vector column."""
    with database() as db:
        count = while_the_table_is_in_use(lambda: db.sync(table, requeue=requeue))
    if table is None:
        text = f"{embeddings(count)} had another name or place, and {'was' if count == 1 else 'were'} found again."
    else:
        text = f"{embeddings(count)} of {table} put right" + ("; its rows wait for a worker." if requeue else ".")
    say_done(text, as_json=as_json, action="sync", table=table, embeddings=count)
