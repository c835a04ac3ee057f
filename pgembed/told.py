"""Errors of the database as pgembed's own: the sentence and the hint that its SQL functions raised."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import psycopg

from pgembed.errors import CatalogError, InvalidQuery, NotInstalled, WaitTimeout


def is_connection_trouble(error: psycopg.Error) -> bool:
    """Whether the server was not reached or went away, rather than refused a statement."""
    state = error.sqlstate or ""
    return isinstance(error, psycopg.OperationalError | psycopg.InterfaceError) and state[:3] in ("", "080", "57P")


@contextmanager
def in_own_words() -> Generator[None]:
    """Raise an error of the database as pgembed's own; one of the connection stays as it is."""
    try:
        yield
    except psycopg.Error as error:
        mine = _told(error)
        raise mine from (None if mine is error else error)


def _told(error: psycopg.Error) -> Exception:
    if is_connection_trouble(error):
        return error
    message = error.diag.message_primary or str(error).strip()
    if isinstance(error, _NOT_THERE) and _SCHEMA in message:
        return NotInstalled(
            f"pgembed is not installed in this database, or in another version ({message}).",
            "Install or upgrade it: pgembed install",
        )
    if error.sqlstate == "PE001":
        return WaitTimeout(message, error.diag.message_hint)
    denied = isinstance(error, psycopg.errors.InsufficientPrivilege)
    of_the_query = isinstance(error, psycopg.ProgrammingError | psycopg.DataError) and not denied
    kind = InvalidQuery if of_the_query and "pgembed." not in (error.diag.context or "") else CatalogError
    hint = error.diag.message_hint
    if denied and hint is None and message.endswith(f"schema {_SCHEMA}"):
        hint = "Let the owner of pgembed grant what the role is for: pgembed grant reader|writer|worker|owner ROLE"
    return kind(message if message.endswith((".", "?")) else f"{message}.", hint)


_SCHEMA = "pgembed"
_NOT_THERE = (
    psycopg.errors.InvalidSchemaName,
    psycopg.errors.UndefinedTable,
    psycopg.errors.UndefinedFunction,
    psycopg.errors.UndefinedColumn,
)
