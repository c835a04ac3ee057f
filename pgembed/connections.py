"""Where connections come from: a connection string, the environment, or a connection or pool that the caller has."""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncGenerator, Generator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager, nullcontext
from typing import Any, TypeVar, cast

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.errors import Diagnostic
from psycopg.pq import TransactionStatus
from psycopg_pool import AsyncConnectionPool, ConnectionPool

from pgembed.compatibility import told_before, told_once
from pgembed.errors import InvalidInput
from pgembed.plans import Plan
from pgembed.pooling import unprepared, unprepared_async
from pgembed.vectors import register_packed

T = TypeVar("T")
_log = logging.getLogger("pgembed")
POOL_SIZE = 4
# Of connections that last: without them one that is cut off is noticed after hours, if ever.
NOTICED_SOON: dict[str, Any] = {
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 60_000,
}
SyncSource = str | psycopg.Connection[Any] | ConnectionPool[Any]
AsyncSource = str | psycopg.AsyncConnection[Any] | AsyncConnectionPool[Any]


def conninfo(dsn: str | None) -> str:
    """The connection string to use: the one given, PGEMBED_DSN, DATABASE_URL, or '' for libpq's own variables.

    Spellings of SQLAlchemy and Django (``postgresql+psycopg://``, ``postgres://``) are understood.
    """
    text = dsn or os.environ.get("PGEMBED_DSN") or os.environ.get("DATABASE_URL") or ""
    scheme, separator, rest = text.partition("://")
    if separator and scheme.split("+")[0] in ("postgresql", "postgres"):
        text = f"postgresql://{rest}"
    try:
        return make_conninfo(text)
    except psycopg.ProgrammingError as error:
        shown = scheme if separator else "what is given"
        raise InvalidInput(
            f"The database's address cannot be read ({shown}): {str(error).strip()}.",
            "Write postgresql://user@host/database, or host=… dbname=….",
        ) from error


class Connections:
    """Gives connections in autocommit, from a pool of its own, or the caller's connection or pool as it is."""

    def __init__(self, source: SyncSource, *, told: bool = False) -> None:
        self._source = source
        self._pool: ConnectionPool[Any] | None = None
        self._told = told  # of a database whose schema is of another version
        if isinstance(source, psycopg.Connection):
            register_packed(source.adapters)

    def get(self) -> AbstractContextManager[psycopg.Connection[Any]]:
        """A connection for one call."""
        if isinstance(self._source, psycopg.Connection):
            return nullcontext(self._source)
        return _prepared(self._opened(self._source) if isinstance(self._source, str) else self._source)

    def _opened(self, address: str) -> ConnectionPool[Any]:
        if self._pool is None:
            psycopg.connect(address).close()  # a pool would hide why it cannot connect
            self._pool = ConnectionPool(
                address, min_size=1, max_size=POOL_SIZE, open=True, kwargs={"autocommit": True}, configure=_listen
            )
        return self._pool

    def first(self, plan: Plan[T]) -> Plan[T]:
        """The plan; before the first of all, the log is told where the database's schema is of another version."""
        self._told, told = True, self._told
        return plan if told else _first(self._source, plan)

    def new(self) -> psycopg.Connection[Any]:
        """A connection to the same database that the caller closes: for workers and index builds."""
        return _new(self._source)

    def refuse_open_transaction(self) -> None:
        """Raise InvalidInput where the caller's own connection is in the middle of a transaction."""
        _refuse_open_transaction(self._source)

    def close(self) -> None:
        """Close what was opened here; the caller's own connection or pool stays open."""
        if self._pool is not None:
            self._pool.close()
            self._pool = None


@contextmanager
def _prepared(pool: ConnectionPool[Any]) -> Generator[psycopg.Connection[Any]]:
    with pool.connection() as conn:
        register_packed(conn.adapters)
        yield conn


class AsyncConnections:
    """The same for asyncio."""

    def __init__(self, source: AsyncSource) -> None:
        self._source = source
        self._pool: AsyncConnectionPool[Any] | None = None
        self._told = False

    @asynccontextmanager
    async def get(self) -> AsyncGenerator[psycopg.AsyncConnection[Any]]:
        """A connection for one call."""
        if isinstance(self._source, psycopg.AsyncConnection):
            register_packed(self._source.adapters)
            yield self._source
            return
        if isinstance(self._source, str):
            if self._pool is None:
                await (await psycopg.AsyncConnection.connect(self._source)).close()
                self._pool = AsyncConnectionPool(
                    self._source,
                    min_size=1,
                    max_size=POOL_SIZE,
                    open=False,
                    kwargs={"autocommit": True},
                    configure=_listen_async,
                )
                await self._pool.open()
            pool = self._pool
        else:
            pool = self._source
        async with pool.connection() as conn:
            register_packed(conn.adapters)
            yield conn

    def first(self, plan: Plan[T]) -> Plan[T]:
        """See Connections.first."""
        self._told, told = True, self._told
        return plan if told else _first(self._source, plan)

    def new(self) -> psycopg.Connection[Any]:
        """A synchronous connection to the same database, for workers and index builds, which run in threads."""
        return _new(self._source)

    def refuse_open_transaction(self) -> None:
        """Raise InvalidInput where the caller's own connection is in the middle of a transaction."""
        _refuse_open_transaction(self._source)

    async def close(self) -> None:
        """Close what was opened here."""
        if self._pool is not None:
            await self._pool.close()
            self._pool = None


def _first(source: SyncSource | AsyncSource, plan: Plan[T]) -> Plan[T]:
    return told_before(plan) if isinstance(source, str) else told_once(source, plan)


def _refuse_open_transaction(source: SyncSource | AsyncSource) -> None:
    if isinstance(source, psycopg.Connection | psycopg.AsyncConnection):
        status = source.info.transaction_status
        if status not in (TransactionStatus.IDLE, TransactionStatus.UNKNOWN):
            raise InvalidInput(
                "The connection has a transaction open, and building an index would wait for its end.",
                "Commit or roll back first.",
            )


def _new(source: SyncSource | AsyncSource) -> psycopg.Connection[Any]:
    address = make_conninfo("", **(NOTICED_SOON | conninfo_to_dict(_address(source))))
    conn = unprepared(psycopg.connect(address, autocommit=True))
    conn.autocommit = False
    return conn


def _listen(conn: psycopg.Connection[Any]) -> None:
    """What pgembed's functions say by the way is logged; what a user's own triggers say is not."""
    unprepared(conn).add_notice_handler(_log_notice)


async def _listen_async(conn: psycopg.AsyncConnection[Any]) -> None:
    (await unprepared_async(conn)).add_notice_handler(_log_notice)


def _log_notice(notice: Diagnostic) -> None:
    if "pgembed." in (notice.context or "") and notice.source_function == "exec_stmt_raise":
        level = logging.WARNING if notice.severity_nonlocalized == "WARNING" else logging.INFO
        hint = f" {notice.message_hint}" if notice.message_hint else ""
        _log.log(level, "%s%s", notice.message_primary, hint)


def _address(source: SyncSource | AsyncSource) -> str:
    if isinstance(source, str):
        return source
    if isinstance(source, psycopg.Connection | psycopg.AsyncConnection):
        return make_conninfo(source.info.dsn, **({"password": source.info.password} if source.info.password else {}))
    if not isinstance(source.conninfo, str):
        raise InvalidInput("The pool makes its connection string by a function.", "Give pgembed a connection string.")
    kwargs = cast("dict[str, Any]", source.kwargs if isinstance(source.kwargs, dict) else {})
    return make_conninfo(source.conninfo, **{key: value for key, value in kwargs.items() if key in _LIBPQ})


_LIBPQ = frozenset(("host", "hostaddr", "port", "dbname", "user", "password", "sslmode", "sslrootcert", "service"))
