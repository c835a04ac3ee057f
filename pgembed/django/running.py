"""Plans of the client on a connection of Django's: the same steps, on psycopg's connection below it."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, TypeVar

import psycopg
from django.db import DatabaseError, connections
from django.db.backends.base.base import BaseDatabaseWrapper
from psycopg.pq import TransactionStatus
from psycopg.types.json import JsonbLoader, JsonLoader

from pgembed import plans
from pgembed.errors import InvalidInput
from pgembed.plans import Plan
from pgembed.told import in_own_words
from pgembed.vectors import register_packed

T = TypeVar("T")


def run_plan(connection: BaseDatabaseWrapper, plan: Plan[T]) -> T:
    """Run a plan, in the transaction that the connection is in. Raises InvalidInput for another database."""
    with own_cursors(connection) as raw, in_own_words():
        begin(raw)
        return plans.run(raw, plan)


def run_before(connection: BaseDatabaseWrapper, plan: Plan[T]) -> T:
    """Run a plan that only reads; see ``plans.run_before``."""
    with own_cursors(connection) as raw, in_own_words():
        return plans.run_before(raw, plan)


def begin(raw: psycopg.Connection[Any]) -> None:
    """Have the transaction begun that Django is in: psycopg would take what comes first for one of its own."""
    if not raw.autocommit and raw.info.transaction_status is TransactionStatus.IDLE:
        raw.execute("SELECT")


@contextmanager
def own_cursors(
    connection: BaseDatabaseWrapper, factory: type[psycopg.Cursor[Any]] | None = None
) -> Generator[psycopg.Connection[Any]]:
    """The connection of psycopg below, whose cursors are psycopg's own for as long as the block."""
    connection.ensure_connection()
    raw: Any = connection.connection
    if not isinstance(raw, psycopg.Connection):
        raise InvalidInput(
            f"Database '{connection.alias}' is {connection.vendor}, or not used over psycopg 3.",
            "Embeddings need Postgres: 'ENGINE': 'django.db.backends.postgresql', and pip install psycopg.",
        )
    before, raw.cursor_factory = raw.cursor_factory, factory or OwnCursor
    try:
        yield raw
    finally:
        raw.cursor_factory = before


def new_connection(alias: str) -> psycopg.Connection[Any]:
    """A connection of psycopg's alone to a database of the settings, for a worker."""
    connection: Any = connections[alias]
    options = connection.get_connection_params()
    for of_django in ("context", "cursor_factory", "prepare_threshold"):
        options.pop(of_django, None)
    opened = psycopg.connect(**options)
    if role := connection.settings_dict["OPTIONS"].get("assume_role"):
        opened.execute("SELECT pg_catalog.set_config('role', %s, false)", [role])
        opened.commit()
    return opened


class OwnCursor(psycopg.Cursor[Any]):
    """A cursor as psycopg has it: parameters go to the server, and JSON comes decoded, which Django does by itself."""

    def __init__(self, *args: Any, **options: Any) -> None:  # noqa: ANN401
        super().__init__(*args, **options)
        self.adapters.register_loader("json", JsonLoader)
        self.adapters.register_loader("jsonb", JsonbLoader)
        register_packed(self.adapters)


class OwnRawCursor(psycopg.RawCursor[Any], OwnCursor):
    """The same, with ``$1`` as parameters."""


@contextmanager
def told_by_django() -> Generator[None]:
    """Raise an error of the database that Django wrapped as pgembed's own."""
    try:
        yield
    except DatabaseError as error:
        if not isinstance(error.__cause__, psycopg.Error):
            raise
        with in_own_words():
            raise error.__cause__ from None
