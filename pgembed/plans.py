"""Plans: what a call does, step by step, without saying how it waits.

A plan is a generator that yields steps and is sent their results, so that the synchronous and the asynchronous client
run the same one. An error of a step is raised in the plan, where it waits for the step.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, TypeVar

import psycopg
from psycopg import sql
from psycopg.pq import TransactionStatus
from psycopg.rows import dict_row

from pgembed.query.statement import Parameters

T = TypeVar("T")


@dataclass(frozen=True)
class Call:
    """Run a statement; the plan is sent its rows, dictionaries unless ``row_factory`` makes others."""

    query: sql.SQL | sql.Composed
    params: Parameters = ()
    row_factory: Any = dict_row


@dataclass(frozen=True)
class Compute:
    """Call a function that takes a while, a model's for example; the plan is sent what it returns."""

    function: Callable[[], Any]


@dataclass(frozen=True)
class Within:
    """Run another plan in one transaction; the plan is sent what that returns."""

    plan: Generator[Any, Any, Any]


@dataclass(frozen=True)
class Restore:
    """Run a statement that puts settings back, within a transaction of the caller's; ours puts them back as it ends."""

    call: Call


Plan = Generator[Call | Compute | Within | Restore, Any, T]


def run(conn: psycopg.Connection[Any], plan: Plan[T], *, own: bool = False) -> T:
    """Run a plan's steps on a connection; ``own`` tells that the transaction was begun for it."""
    answer: Any = None
    failed: Exception | None = None
    while True:
        try:
            step = plan.send(answer) if failed is None else plan.throw(failed)
        except StopIteration as end:
            return end.value
        answer = failed = None
        try:
            match step:
                case Call():
                    cursor: psycopg.Cursor[Any] = conn.cursor(row_factory=step.row_factory)
                    cursor.execute(step.query, step.params)
                    answer = cursor.fetchall() if cursor.pgresult and cursor.pgresult.nfields else []
                case Compute():
                    answer = step.function()
                case Within():
                    begun = conn.info.transaction_status is TransactionStatus.IDLE
                    with conn.transaction():
                        answer = run(conn, step.plan, own=begun)
                case Restore(call):
                    answer = None if own else conn.execute(call.query, call.params)
        except Exception as error:
            failed = error


async def run_async(conn: psycopg.AsyncConnection[Any], plan: Plan[T], *, own: bool = False) -> T:
    """Run a plan's steps on an asynchronous connection; computing is done in a thread. See ``run``."""
    answer: Any = None
    failed: Exception | None = None
    while True:
        try:
            step = plan.send(answer) if failed is None else plan.throw(failed)
        except StopIteration as end:
            return end.value
        answer = failed = None
        try:
            match step:
                case Call():
                    cursor: psycopg.AsyncCursor[Any] = conn.cursor(row_factory=step.row_factory)
                    await cursor.execute(step.query, step.params)
                    answer = await cursor.fetchall() if cursor.pgresult and cursor.pgresult.nfields else []
                case Compute():
                    answer = await asyncio.to_thread(step.function)
                case Within():
                    begun = conn.info.transaction_status is TransactionStatus.IDLE
                    async with conn.transaction():
                        answer = await run_async(conn, step.plan, own=begun)
                case Restore(call):
                    answer = None if own else await conn.execute(call.query, call.params)
        except Exception as error:
            failed = error


def run_before(conn: psycopg.Connection[Any], plan: Plan[T]) -> T:
    """Run a plan that only reads, and where no transaction has begun in the database, begin none: what it waits for
    is waited for before."""
    if conn.autocommit or conn.info.transaction_status is not TransactionStatus.IDLE:
        return run(conn, plan)
    conn.autocommit = True
    try:
        return run(conn, plan)
    finally:
        conn.autocommit = False


async def run_before_async(conn: psycopg.AsyncConnection[Any], plan: Plan[T]) -> T:
    """See ``run_before``."""
    if conn.autocommit or conn.info.transaction_status is not TransactionStatus.IDLE:
        return await run_async(conn, plan)
    await conn.set_autocommit(True)
    try:
        return await run_async(conn, plan)
    finally:
        await conn.set_autocommit(False)
