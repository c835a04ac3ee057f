"""Whether the schema in a database is that of this library: told when a client connects, and asked by workers."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass
from typing import Any, TypeVar
from weakref import WeakSet

from psycopg import sql
from psycopg.rows import class_row

from pgembed.errors import NotInstalled
from pgembed.plans import Call, Plan, Within
from pgembed.schema import compared, head

T = TypeVar("T")
_log = logging.getLogger("pgembed")
_lock = threading.Lock()
_looked_at: WeakSet[Any] = WeakSet()  # whose database's version was looked at
_READABLE = """
SELECT pg_catalog.has_schema_privilege(n.oid, 'USAGE') AND pg_catalog.has_table_privilege(c.oid, 'SELECT') AS readable
FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
WHERE n.nspname = 'pgembed' AND c.relname = 'schema_version'
"""
_VERSIONS = """
SELECT version_num AS schema, pgembed.version() AS code, pg_catalog.current_database()::text AS database
FROM pgembed.schema_version
"""


@dataclass(frozen=True)
class _Versions:
    schema: str
    code: str
    database: str


@dataclass(frozen=True)
class Difference:
    """How a database's schema differs from this library, in a sentence, and what to do."""

    told: str
    remedy: str
    is_older: bool


def told_before(plan: Plan[T]) -> Plan[T]:
    """The plan, and before it a warning in the log where the database's schema is older or newer than this library.
    Both may work all the same while one is upgraded after the other."""
    differs: Difference | None = yield Within(difference())  # which leaves no transaction open that the plan would find
    if differs:
        _log.warning("%s %s", differs.told, differs.remedy)
    return (yield from plan)


def told_once(source: object, plan: Plan[T]) -> Plan[T]:
    """The same before the first plan of a connection, a pool or an engine that the caller has, or of what stands for
    one, however many clients are made of it; from then on the plan alone."""
    with _lock:
        if source in _looked_at:
            return plan
        _looked_at.add(source)
    return told_before(plan)


def required() -> Plan[Difference | None]:
    """The same for a worker: raises NotInstalled where the schema is older than this library, and returns what else is
    different."""
    differs = yield from difference()
    if differs and differs.is_older:
        raise NotInstalled(differs.told, differs.remedy)
    return differs


def difference() -> Plan[Difference | None]:
    """How the database's schema differs; None where it does not, is not there, or is not this role's to read."""
    rows = yield Call(sql.SQL(_READABLE))
    if not rows or not rows[0]["readable"]:
        return None
    for found in (yield Call(sql.SQL(_VERSIONS), row_factory=class_row(_Versions))):
        finding, remedy = compared(found.schema, found.code)
        if remedy:
            told = f"pgembed in database '{found.database}' is of another version: {finding}."
            return Difference(told, remedy, found.schema < head())
    return None
