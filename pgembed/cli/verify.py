"""The command verify: encodes rows again, and says which vectors are not theirs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pgembed.cli.allowed import loads_encoders
from pgembed.cli.app import Json, TableName, Target, WrongUsage, app, database, examples
from pgembed.cli.output import console, print_json, print_table, progress_bar, rows_are

if TYPE_CHECKING:
    from pgembed.worker import Verification


@app.command(epilog=examples("pgembed verify product", "pgembed verify product --all --repair"))
@loads_encoders
def verify(
    table: TableName,
    target: Target = None,
    sample: Annotated[
        int | None, typer.Option(min=1, help="Rows to look at, drawn at random. Default: 1000.", show_default=False)
    ] = None,
    all_rows: Annotated[bool, typer.Option("--all", help="Look at every row.")] = False,
    repair: Annotated[
        bool, typer.Option("--repair", help="Queue what does not match, for workers to put right.")
    ] = False,
    media_root: Annotated[
        Path | None, typer.Option(help="Pictures given as paths must lie below this folder, as for the worker.")
    ] = None,
    allow_urls: Annotated[bool, typer.Option("--allow-urls", help="Fetch pictures given as https URLs.")] = False,
    allow_bucket: Annotated[
        list[str] | None,
        typer.Option(help="Fetch pictures from this bucket: s3://NAME, gs://NAME or az://NAME; may be repeated."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Encode rows again and compare them with their vectors. Exit status 1: something does not match."""
    if all_rows and sample is not None:
        raise WrongUsage("--sample and --all exclude each other.", "Choose one of them.")
    from pgembed.media import MediaPolicy
    from pgembed.worker.verification import SAMPLE

    media = MediaPolicy(media_root=media_root, allow_urls=allow_urls, buckets=tuple(allow_bucket or ()))
    with database() as db, _progress(table) as on_progress:
        found = db.verify(
            table,
            target,
            sample=None if all_rows else sample or SAMPLE,
            repair=repair,
            media=media,
            on_progress=on_progress,
        )
    if as_json:
        facts = {"ok": found.ok, "repair": repair, **vars(found)}
        print_json({"action": "verify", "table": table, "target": target, **facts})
    else:
        again = [
            "pgembed verify",
            table,
            *(["--embedding", target] if target else []),
            *(["--all"] if all_rows else []),
        ]
        _tell(found, " ".join([*again, "--repair"]), repair=repair)
    if not found.ok:
        raise typer.Exit(1)


def _tell(found: Verification, remedy: str, *, repair: bool) -> None:
    apart = [(found.waiting, "waiting in the queue"), (found.failed, "given up: pgembed failures")]
    kinds = [
        ("differing", found.differing, "the vector is not that of the inputs"),
        ("missing", found.missing, "inputs and no vector"),
        ("unfounded", found.unfounded, "a vector and no input"),
        ("left over", found.left_over, "a vector in the side table and no row"),
        ("unchecked", found.unchecked, "; ".join(found.reasons)),
    ]
    lines = [f"{found.embedding}: {found.rows:,} looked at, {found.matching:,} match ({found.tolerance})."]
    lines += [f"{rows_are(count)} {what}." for count, what in apart if count]
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)
    if found.ok:
        return
    print_table(
        ["what", "rows", "which", "keys"],
        [
            (name, f"{kind.count:,}", meaning, " ".join(",".join(key) for key in kind.keys))
            for name, kind, meaning in kinds
            if kind.count
        ],
        right=["rows"],
    )
    if repair:
        console.print(f"{rows_are(found.repaired)} in the queue now.", markup=False, soft_wrap=True)
    elif found.differing.count + found.missing.count + found.unfounded.count + found.left_over.count:
        console.print(f"Put it right: {remedy}", markup=False, soft_wrap=True)


@contextmanager
def _progress(table: str) -> Generator[Callable[[int, int], None] | None]:
    """A bar on a terminal, nothing elsewhere."""
    if not sys.stderr.isatty():
        yield None
        return
    with progress_bar() as bar:
        task = bar.add_task(table, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
