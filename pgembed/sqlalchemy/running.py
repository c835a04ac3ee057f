"""Plans of the client on a connection of SQLAlchemy's: the same steps, on psycopg's connection below it."""

from __future__ import annotations

from typing import Any, TypeVar, cast

import psycopg
from sqlalchemy import Connection
from sqlalchemy.sql.compiler import IdentifierPreparer
from sqlalchemy.util import await_only

from pgembed import plans
from pgembed.errors import InvalidInput
from pgembed.plans import Plan, run, run_async
from pgembed.told import in_own_words

T = TypeVar("T")


def run_plan(connection: Connection, plan: Plan[T]) -> T:
    """Run a plan below a Connection, in its transaction. Raises InvalidInput for another driver than psycopg."""
    raw = driver_connection(connection)
    with in_own_words():
        return await_only(run_async(raw, plan)) if isinstance(raw, psycopg.AsyncConnection) else run(raw, plan)


def run_before(connection: Connection, plan: Plan[T]) -> T:
    """Run a plan that only reads; see ``plans.run_before``."""
    raw = driver_connection(connection)
    with in_own_words():
        if isinstance(raw, psycopg.AsyncConnection):
            return await_only(plans.run_before_async(raw, plan))
        return plans.run_before(raw, plan)


def qualified(preparer: IdentifierPreparer, schema: str | None, table: str) -> str:
    """The name of a table, quoted, as the database reads it: where a driver has percent signs doubled, without that."""
    name = ".".join(preparer.quote_identifier(part) for part in (schema, table) if part)
    return name.replace("%%", "%") if has_doubled_percents(preparer) else name


def has_doubled_percents(preparer: IdentifierPreparer) -> bool:
    """Whether a driver reads two percent signs as one."""
    return bool(getattr(preparer, "_double_percents", False))


def driver_connection(connection: Connection) -> psycopg.Connection[Any] | psycopg.AsyncConnection[Any]:
    """The connection of psycopg below a Connection. Raises InvalidInput for another driver's."""
    raw: Any = connection.connection.driver_connection
    if not isinstance(raw, psycopg.Connection | psycopg.AsyncConnection):
        raise InvalidInput(
            f"Queries are encoded, and encoders registered, over psycopg, not over {connection.dialect.driver}.",
            "Make the engine with postgresql+psycopg://, or give the numbers of a vector.",
        )
    return cast("psycopg.Connection[Any] | psycopg.AsyncConnection[Any]", raw)
