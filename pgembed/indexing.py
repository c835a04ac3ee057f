"""Building an embedding's vector index without blocking writers, with progress."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, LiteralString, cast

import psycopg
from psycopg import sql

from pgembed.catalog import StatusRow
from pgembed.errors import CatalogError
from pgembed.plans import Call, Plan, run
from pgembed.pooling import PROCESS, require_session

Connect = Callable[[], psycopg.Connection[Any]]
USUAL: dict[str, Any] = {"m": 16, "ef_construction": 64}


def build_index(
    connect: Connect,
    table: str,
    target: str | None,
    statement: str,
    *,
    on_progress: Callable[[str, int, int], None] | None = None,
    memory: str | None = None,
) -> None:
    """Run a CREATE INDEX statement of ``pgembed.index_sql`` on a connection of its own; see ``built``.

    ``on_progress`` gets the phase, and how many units of it are done and in all (0: not known). ``memory`` is
    maintenance_work_mem ("512MB").
    """
    with connect() as conn:
        conn.autocommit = True
        if memory is not None:
            require_session(conn, connect, "An index build with memory of its own")
            conn.execute("SELECT pg_catalog.set_config('maintenance_work_mem', %s, false)", [memory])
        done = threading.Event()
        watcher = None
        if on_progress is not None:
            process = conn.execute(PROCESS).fetchall()[0][0]
            watcher = threading.Thread(target=_watch, args=(connect, process, on_progress, done))
            watcher.start()
        try:
            run(conn, built(table, target, statement))
        except psycopg.errors.LockNotAvailable as error:
            raise CatalogError(f"The index could not be built: {error}".strip(), "Try again in a moment.") from error
        finally:
            done.set()
            if watcher is not None:
                watcher.join()


def waiting(rows: Sequence[StatusRow], target: str | None) -> int:
    """How many rows wait before an index should be built; an unfinished backfill counts as one at least."""
    chosen = [row for row in rows if target is None or row.target == target]
    return sum((row.queued or 0) + (row.state == "backfill") for row in chosen)


def built(table: str, target: str | None, statement: str) -> Plan[None]:
    """Run a CREATE INDEX statement of ``pgembed.index_sql``, outside a transaction.

    An invalid index, left by a build that was broken off, is dropped first; and again if it was left by one that still
    went on, for which the statement has waited.
    """
    left = yield from _left(table, target)
    while True:
        if left is not None:
            yield _given(left)
        yield _given(statement)
        left = yield from _left(table, target)
        if left is None:
            return


def _left(table: str, target: str | None) -> Plan[str | None]:
    """The statement that drops what a broken build has left."""
    rows = yield Call(sql.SQL("SELECT pgembed._broken_index_sql(%s::regclass, %s) AS statement"), [table, target])
    return rows[0]["statement"]


def _given(statement: str) -> Call:
    return Call(sql.SQL(cast(LiteralString, statement.replace("%", "%%"))))


def _watch(connect: Connect, pid: int, on_progress: Callable[[str, int, int], None], done: threading.Event) -> None:
    with connect() as conn:
        conn.autocommit = True
        while not done.wait(0.3):
            row = conn.execute(
                "SELECT phase, coalesce(nullif(tuples_done, 0), blocks_done),"
                " coalesce(nullif(tuples_total, 0), blocks_total)"
                " FROM pg_catalog.pg_stat_progress_create_index WHERE pid = %s",
                [pid],
            ).fetchone()
            if row:
                on_progress(str(row[0]), int(row[1] or 0), int(row[2] or 0))
