"""The application, and what all its commands share."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from datetime import timedelta
from typing import Annotated, Any, cast

import typer
from rich.console import Console
from rich.table import Table

from pgembed.client import Pgembed, connect
from pgembed.media import MediaPolicy
from pgembed.schema import library_version

app = typer.Typer(
    name="pgembed",
    help="Search the Postgres you already have by words and pictures: vectors kept true beside your rows.",
    epilog="Start here: pgembed demo. Then: pgembed install, pgembed encoder add, pgembed attach, pgembed worker.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)
console = Console()
errors = Console(stderr=True)

Json = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
TableName = Annotated[str, typer.Argument(help="The table, as SQL names it: product, shop.product.")]
Target = Annotated[
    str | None, typer.Option("--embedding", help="The vector column, where the table has several embeddings.")
]


class Settings:
    """What the options before the command say."""

    dsn: str | None = None


settings = Settings()


def _print_version(wanted: bool) -> None:
    if wanted:
        console.print(library_version(), highlight=False)
        raise typer.Exit


@app.callback()
def options(
    dsn: Annotated[
        str | None,
        typer.Option(
            "--dsn",
            help="The database: postgresql://… or key=value pairs."
            " Default: PGEMBED_DSN, DATABASE_URL, or libpq's own variables.",
            show_default=False,
        ),
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", help="Print the library's version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Options that stand before the command."""
    _ = version
    settings.dsn = dsn


def database() -> Pgembed:
    """The client for the database that the options name."""
    return connect(settings.dsn, media=MediaPolicy(any_path=True, allow_urls=True))


def print_json(value: Any) -> None:  # noqa: ANN401
    """Dataclasses, rows and plain values as JSON on standard output."""
    sys.stdout.write(json.dumps(_plain(value), ensure_ascii=False, default=str) + "\n")


def print_table(columns: Sequence[str], rows: Iterable[Sequence[Any]], *, right: Sequence[str] = ()) -> None:
    """A table; columns named in ``right`` are aligned to the right."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*("" if value is None else str(value) for value in row))
    console.print(table)


def _plain(value: Any) -> Any:  # noqa: ANN401
    if is_dataclass(value) and not isinstance(value, type):
        return _plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in cast("Mapping[Any, Any]", value).items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in cast("Sequence[Any]", value)]
    if isinstance(value, timedelta):
        return value.total_seconds()
    return value
