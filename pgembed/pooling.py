"""Poolers such as PgBouncer: whether one stands between, and whether it keeps a connection's session."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg

from pgembed.errors import InvalidInput

PROCESS = "SELECT pg_catalog.pg_backend_pid()"
LOOKS = 3


def unprepared(conn: psycopg.Connection[Any]) -> psycopg.Connection[Any]:
    """The connection, in autocommit, with no statement prepared by itself where a pooler might lose it again."""
    if _is_pooled(_process(conn), conn):
        conn.prepare_threshold = None
    return conn


async def unprepared_async(conn: psycopg.AsyncConnection[Any]) -> psycopg.AsyncConnection[Any]:
    """The same for asyncio."""
    row = await (await conn.execute(PROCESS)).fetchone()
    if _is_pooled(row[0] if row else 0, conn):
        conn.prepare_threshold = None
    return conn


def require_session(conn: psycopg.Connection[Any], connect: Callable[[], psycopg.Connection[Any]], what: str) -> None:
    """Raise InvalidInput where each transaction of ``conn``, in autocommit, may meet another session of the server.

    Settings and temporary tables would be another client's then. ``connect`` makes a second connection, which holds a
    session in a transaction: one that is given from hand to hand is seen by that.
    """
    if not _is_pooled(first := _process(conn), conn):
        return
    with connect() as other:
        other.autocommit = True
        for _ in range(LOOKS):
            with other.transaction():
                moved = _process(other) == first or _process(conn) != first
            if moved:
                raise InvalidInput(
                    f"{what} needs a session of its own, and this connection goes through a pooler that gives it"
                    " another one with each transaction.",
                    "Connect to Postgres itself, or to a pool in session mode: --dsn, or PGEMBED_DSN.",
                )
            first = _process(conn)


def _process(conn: psycopg.Connection[Any]) -> int:
    return conn.execute(PROCESS).fetchall()[0][0]


def _is_pooled(process: int, conn: psycopg.Connection[Any] | psycopg.AsyncConnection[Any]) -> bool:
    """Whether something answers for the server: a pooler tells its clients numbers of its own."""
    return process != conn.info.backend_pid
