"""Whose fault an error is: the row's, the embedding's (its encoder, table or queue), or the connection's."""

from __future__ import annotations

import psycopg

from pgembed.errors import InvalidInput, MediaError

# SQLSTATE classes that one row's values or the table's own triggers raise: data, integrity, WITH CHECK, PL/pgSQL.
ROW_CLASSES = frozenset({"22", "23", "38", "39", "44", "P0"})
NOT_THE_ROWS = frozenset({"22000"})  # pgvector's "expected 256 dimensions, not 512": the column is not what it was
LOST_STATES = frozenset({"57P01", "57P02", "57P03", "57P05", "25P03"})  # the server ended the session, or shuts down
CONFLICTS = frozenset({"40001", "40P01"})  # another transaction was in the way; the same again may work at once


def is_transient(error: Exception) -> bool:
    """Whether trying the row again later may help: network and storage troubles, not bad content."""
    if isinstance(error, MediaError):
        return error.transient
    return not isinstance(error, InvalidInput | ValueError)


def is_rows_fault(error: psycopg.Error) -> bool:
    """Whether a row's values, not the embedding's table or the server, made a statement fail."""
    state = error.sqlstate or ""
    return state[:2] in ROW_CLASSES and state not in NOT_THE_ROWS


def is_conflict(error: psycopg.Error) -> bool:
    """Whether the transaction lost against another one."""
    return error.sqlstate in CONFLICTS


def is_lost(conn: psycopg.Connection[object], error: Exception) -> bool:
    """Whether the connection, not one embedding, is in trouble."""
    if not isinstance(error, psycopg.OperationalError | psycopg.InterfaceError):
        return False
    state = error.sqlstate
    return conn.closed or conn.broken or state is None or state[:2] == "08" or state in LOST_STATES
