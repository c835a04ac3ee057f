"""What holds a worker back: a bound on rows a second, and other sessions that are busy on the same server."""

from __future__ import annotations

import time
from typing import Any

import psycopg

from pgembed.worker.state import State

LOOK_EVERY = 1.0  # seconds between looks at what the server does
BUSY = (
    "SELECT count(*) FILTER (WHERE state = 'active'), pg_catalog.pg_has_role('pg_read_all_stats', 'USAGE')"
    " FROM pg_catalog.pg_stat_activity WHERE backend_type = 'client backend' AND application_name <> 'pgembed worker'"
)


class Rate:
    """At most so many rows a second: what a second allows may be claimed at once, and nothing is saved up for later."""

    def __init__(self, rows_per_second: float | None) -> None:
        self._rate = rows_per_second
        self._saved = self._most = max(1.0, rows_per_second or 0.0)
        self._seen = time.monotonic()

    def allowed(self) -> int | None:
        """How many rows may be claimed now; None where there is no bound."""
        if self._rate is None:
            return None
        now = time.monotonic()
        self._saved = min(self._most, self._saved + (now - self._seen) * self._rate)
        self._seen = now
        return int(self._saved)

    def spend(self, rows: int) -> None:
        """So many were claimed."""
        self._saved -= rows


class Load:
    """How many sessions of others are at work on the server: above ``max_load``, nothing more is claimed."""

    def __init__(self, state: State, conn: psycopg.Connection[Any]) -> None:
        self._state = state
        self._conn = conn
        self._looked = -LOOK_EVERY
        self._high = False
        self._sees_all = True

    def is_high(self) -> bool:
        """Whether to leave the server to others for now; looks once a second."""
        most = self._state.options.max_load
        if most is None:
            return False
        if time.monotonic() - self._looked >= LOOK_EVERY:
            busy, sees_all = self._conn.execute(BUSY).fetchall()[0]
            if not sees_all and self._sees_all:
                self._state.log.warning(
                    "sessions of other roles are not seen", remedy="as a superuser: GRANT pg_read_all_stats TO the role"
                )
            self._sees_all = sees_all
            if (high := busy > most) != self._high:
                self._state.log.warning(
                    "worker holds back" if high else "worker goes on", active_sessions=busy, max_load=most
                )
            self._high = self._state.held_back = high
            self._looked = time.monotonic()
        return self._high
