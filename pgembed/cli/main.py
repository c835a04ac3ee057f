"""The entry point: every command is registered, and every error is a sentence."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import psycopg

from pgembed.cli import manage, search, work
from pgembed.cli.app import app, errors
from pgembed.client import is_connection_trouble
from pgembed.errors import PgembedError

COMMANDS = (manage, search, work)  # importing them registers them


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command. Exit codes: 0 done, 1 it could not be done (the reason on standard error), 2 wrong usage."""
    try:
        app(args=list(arguments) if arguments is not None else None)
    except PgembedError as error:
        _fail(error.message, error.hint)
    except psycopg.Error as error:
        if is_connection_trouble(error):
            _fail(str(error).strip(), "Name the database: pgembed --dsn postgresql://… COMMAND, or set PGEMBED_DSN.")
        _fail(error.diag.message_primary or str(error).strip(), error.diag.message_hint)
    except KeyboardInterrupt:
        sys.exit(130)


def _fail(message: str, hint: str | None) -> None:
    errors.print(f"error: {message}", style="red", markup=False, highlight=False, soft_wrap=True)
    if hint:
        errors.print(f"hint: {hint}", markup=False, highlight=False, soft_wrap=True)
    sys.exit(1)
