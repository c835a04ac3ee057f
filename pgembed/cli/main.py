"""The entry point: every command is registered, and every error is a sentence."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from typing import NoReturn

import typer

from pgembed.cli import (
    altering,
    configuration,
    embedding,
    encoder,
    encoder_distill,
    encoder_export,
    evaluate,
    evaluate_cir,
    manage,
    roles,
    search,
    train,
    tune,
    verify,
    view,
    waiting,
    work,
)
from pgembed.cli.app import WrongUsage, app
from pgembed.cli.output import Remarks, remark
from pgembed.errors import PgembedError

COMMANDS = (
    manage,
    roles,
    encoder,
    encoder_distill,
    encoder_export,
    search,
    train,
    embedding,
    waiting,
    altering,
    verify,
    view,
    work,
    evaluate,
    evaluate_cir,
    tune,
    configuration,
)  # importing them registers them
PARSING_FAILED = typer.BadParameter.__mro__[2]  # ClickException, which typer itself has under no public name


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command. Exit codes: 0 done, 1 something is wrong or was refused, 2 wrong usage, 130 interrupted."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    as_json = "--json" in (words[: words.index("--")] if "--" in words else words)
    log = logging.getLogger("pgembed")
    log.setLevel(logging.INFO)
    log.addHandler(Remarks(as_json=as_json))
    try:
        sys.exit(app(args=words, prog_name="pgembed", standalone_mode=False))
    except PgembedError as error:
        _fail(error.message, error.hint, 2 if isinstance(error, WrongUsage) else 1, as_json=as_json)
    except (typer.Abort, KeyboardInterrupt):
        sys.exit(130)
    except Exception as error:
        if isinstance(error, PARSING_FAILED):
            _wrong_usage(error, as_json=as_json)
        _database_failed(error, as_json=as_json)
        raise


def _database_failed(error: Exception, *, as_json: bool) -> None:
    """End with what the database says, where it is its error; any other is the caller's."""
    import psycopg  # here: --help and the Tab key do without it

    from pgembed.told import is_connection_trouble

    if not isinstance(error, psycopg.Error):
        return
    if is_connection_trouble(error):
        hint = "Name the database: pgembed --dsn postgresql://… COMMAND, or set PGEMBED_DSN."
        _fail(str(error).strip(), hint, as_json=as_json)
    _fail(error.diag.message_primary or str(error).strip(), error.diag.message_hint, as_json=as_json)


def _wrong_usage(error: Exception, *, as_json: bool) -> NoReturn:
    """What the parser says of the words that were typed, and where to read of the right ones."""
    message = str(getattr(error, "format_message", error.__str__)())
    command = getattr(getattr(error, "ctx", None), "command_path", "pgembed")
    if type(error).__name__ == "NoArgsIsHelpError":  # nothing was typed, and the help stands above
        sys.exit(2)
    _fail(message, f"See {command} --help", 2, as_json=as_json)


def _fail(message: str, hint: str | None, code: int = 1, *, as_json: bool) -> NoReturn:
    remark("error", message, hint, as_json=as_json, style="red")
    sys.exit(code)
