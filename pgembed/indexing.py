"""Building an embedding's vector index without blocking writers, with progress."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import psycopg
from psycopg import sql

from pgembed.errors import CatalogError
from pgembed.plans import Call, Plan, run
from pgembed.pooling import PROCESS, require_session

Connect = Callable[[], psycopg.Connection[Any]]


def build_index(
    connect: Connect,
    statement: str,
    *,
    on_progress: Callable[[str, int, int], None] | None = None,
    memory: str | None = None,
) -> None:
    """Run a CREATE INDEX statement of ``pgembed.index_sql`` on a connection of its own.

    An invalid index of that name, left by a build that was broken off, is dropped first. ``on_progress`` gets the
    phase, and how many units of it are done and in all (0: not known). ``memory`` is maintenance_work_mem ("512MB").
    """
    with connect() as conn:
        conn.autocommit = True
        if memory is not None:
            require_session(conn, connect, "An index build with memory of its own")
            conn.execute("SELECT pg_catalog.set_config('maintenance_work_mem', %s, false)", [memory])
        run(conn, drop_invalid(statement))
        done = threading.Event()
        watcher = None
        if on_progress is not None:
            process = conn.execute(PROCESS).fetchall()[0][0]
            watcher = threading.Thread(target=_watch, args=(connect, process, on_progress, done))
            watcher.start()
        try:
            conn.execute(statement.encode())
        except psycopg.errors.LockNotAvailable as error:
            raise CatalogError(f"The index could not be built: {error}".strip(), "Try again in a moment.") from error
        finally:
            done.set()
            if watcher is not None:
                watcher.join()


def drop_invalid(statement: str) -> Plan[None]:
    """Drop what a build of this statement left that was broken off, and that Postgres would take for the index."""
    rows = yield Call(
        sql.SQL(
            "SELECT n.nspname, c.relname FROM pg_catalog.pg_index i JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid"
            " JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace"
            " WHERE NOT i.indisvalid AND strpos(%s, ' IF NOT EXISTS ' || quote_ident(c.relname) || ' ON ') > 0"
            " AND c.relname ~ '_hnsw_[0-9]+$'"
            " AND NOT EXISTS (SELECT FROM pg_catalog.pg_stat_progress_create_index p WHERE p.index_relid = c.oid)"
        ),
        [statement],
    )
    for row in rows:
        yield Call(sql.SQL("DROP INDEX CONCURRENTLY {}").format(sql.Identifier(row["nspname"], row["relname"])))


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
