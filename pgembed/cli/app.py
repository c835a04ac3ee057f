"""The application, and what all its commands share."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from pgembed.cli import completion
from pgembed.cli.output import console
from pgembed.errors import InvalidInput

if TYPE_CHECKING:
    from pgembed.client import Pgembed
    from pgembed.encoders import EncoderPolicy
    from pgembed.query import Prefer as Preference


class WrongUsage(InvalidInput):
    """The words of a command do not go together: exit code 2."""


def examples(*lines: str) -> str:
    """The end of a command's help: lines to type."""
    return "\n".join(["[bold]Examples[/]", *(f"[dim]$[/] {escape(line)}" for line in lines)])


app = typer.Typer(
    name="pgembed",
    help="Search the Postgres you already have by words and pictures: vectors kept true beside your rows.",
    epilog=examples(
        "pgembed demo",
        "export PGEMBED_DSN=postgresql://localhost/shop",
        "pgembed install",
        "pgembed encoder add lite builtin:lite",
        "pgembed attach product embedding --encoder lite --image photo",
        "pgembed worker --until-idle",
        'pgembed search product "a red shoe"',
    )
    + "\n\n[bold]Exit codes[/]\n0  done\n1  something is wrong or was refused; standard error says what, and what"
    " to do\n2  wrong usage\n130  interrupted",
    no_args_is_help=True,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)

_TABLE = "The table, as SQL names it: product, shop.product."
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts; errors too, on standard error.")]
NewTable = Annotated[str, typer.Argument(help=_TABLE, autocompletion=completion.any_table)]
TableName = Annotated[str, typer.Argument(help=_TABLE, autocompletion=completion.attached_table)]
OnlyTable = Annotated[
    str | None, typer.Argument(help="Only this table.", autocompletion=completion.attached_table, show_default=False)
]
EncoderName = Annotated[str, typer.Argument(help="A registered encoder.", autocompletion=completion.encoder)]
Target = Annotated[
    str | None,
    typer.Option(
        "--embedding",
        help="The vector column, where the table has several embeddings.",
        autocompletion=completion.embedding,
    ),
]


class Prefer(StrEnum):
    """How words are encoded, where there are two ways."""

    exact = "exact"
    static = "static"


class Method(StrEnum):
    """How the ranks or scores of vectors and of words become one."""

    rank = "rank"
    score = "score"


class Settings:
    """What the options before the command say, and those of commands that load encoders."""

    dsn: str | None = None
    encoders: EncoderPolicy | None = None


settings = Settings()


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version  # pgembed.schema has it too, and loads the database's driver

        console.print(version("pgembed-multimodal"))
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
    settings.encoders = None


def database(prefer: Preference | None = None) -> Pgembed:
    """The client for the database that the options name; it loads the encoders that they allow."""
    from pgembed.client import connect  # here, as all that takes long to load: --help and the Tab key do without it
    from pgembed.media import MediaPolicy

    return connect(
        settings.dsn, media=MediaPolicy(any_path=True, allow_urls=True), encoders=settings.encoders, prefer=prefer
    )
