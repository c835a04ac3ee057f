"""Runs a compiled search: the index first, as far as it is worth it, and all matching rows where it gave too few."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, cast

import psycopg
from psycopg import sql

from pgembed.errors import InvalidQuery
from pgembed.plans import Call, Plan, Restore, Within
from pgembed.query import EF_SEARCH, SearchPlan, SearchRow, Statement, search_row_factory

PARTS = 3  # times the rows wanted, the parts that are first asked of an index
REMEMBERED = 5.0  # seconds that catalog and planner are not asked again: half the cost of a quick search
_MOST_REMEMBERED = 1000

QUIETEN = sql.SQL(
    "SELECT pg_catalog.current_setting('client_min_messages') AS told, pg_catalog.set_config('client_min_messages',"
    " CASE pg_catalog.current_setting('client_min_messages') WHEN 'error' THEN 'error' ELSE 'warning' END, true)"
)
NEXT = sql.SQL(
    "SELECT pgembed._next_round(%s::float8, %s::float8, %s::float8, %s, %s, %s::integer, %s, %s) AS candidates"
)
OF_PART = sql.SQL("SELECT pgembed._partial_candidates(%s::float8, %s::float8, %s, %s, %s::integer) AS candidates")
TELL = sql.SQL("SELECT pg_catalog.set_config('client_min_messages', %s, true)")


@dataclass(frozen=True, slots=True)
class Estimate:
    """What the planner thinks of a filter: the rows that match, the cost of finding them, and whether it would take an
    index that holds the matching rows only; and the candidates to look at first (None: compare all that match)."""

    matching: float
    cost: float
    partial: bool
    first: int | None


# how many candidates to look at next, after so many, among which so many rows were found
NextRound = Callable[[SearchPlan, Estimate, int, int], Plan[int | None]]


@dataclass(frozen=True, slots=True)
class Look:
    """One reading of the vector index: of so many candidates (None: until enough were found), and the rows it gave."""

    candidates: int | None
    found: int


@dataclass
class Trace:
    """How a search was run, for those who ask: the planner's estimate, each look at the index, and the last step."""

    estimate: Estimate | None = None
    looks: list[Look] = field(default_factory=list[Look])
    exact: bool = False


class Rounds:
    """Runs searches; remembers for some seconds what the planner thinks of a filter with its parameters."""

    def __init__(self) -> None:
        self._estimates: dict[Any, tuple[float, Estimate]] = {}

    def run(self, plan: SearchPlan, trace: Trace | None = None) -> Plan[list[SearchRow]]:
        """The rows of a search. Raises InvalidQuery where its filter is at fault, and Postgres's error otherwise."""
        try:
            return (yield from self._rows(plan, trace or Trace()))
        except (psycopg.ProgrammingError, psycopg.DataError, psycopg.NotSupportedError) as error:
            if not isinstance(error, psycopg.errors.InsufficientPrivilege):
                yield from _check_filter(plan, error)
            raise

    def _rows(self, plan: SearchPlan, trace: Trace) -> Plan[list[SearchRow]]:
        if plan.statement is plan.exact:
            return (yield from _exact(plan, trace))
        if plan.target.split:
            return (yield from self._by_parts(plan, trace))
        if not plan.needs_rounds:
            rows: list[SearchRow] = yield _call(plan.statement)
            trace.looks.append(Look(None, len(rows)))
            if len(rows) < plan.limit:
                rows = yield Within(_run_again(plan, trace))
            return rows
        if not plan.filtered:
            return (yield Within(_until_enough(plan, trace)))
        if not plan.target.graph and not plan.target.partial:
            return (yield from _exact(plan, trace))
        trace.estimate = estimate = yield from self._estimate(plan)
        if estimate.first is None:
            return (yield from _exact(plan, trace))
        if estimate.partial:
            return (yield Within(_until_enough(plan, trace, estimate.first)))
        if plan.shape.joins:
            return (yield Within(_until_enough(plan, trace)))
        if estimate.first > EF_SEARCH:
            return (yield Within(_by_rounds(plan, trace, estimate, estimate.first)))
        rows = yield _call(plan.among(estimate.first))  # what the index gives at once, whatever the settings are
        trace.looks.append(Look(estimate.first, len(rows)))
        if len(rows) >= plan.limit:
            return rows
        following = yield from _next_round(plan, estimate, estimate.first, len(rows))
        if following is None and not plan.tells:
            return (yield from _exact(plan, trace))
        return (yield Within(_by_rounds(plan, trace, estimate, following)))

    def _by_parts(self, plan: SearchPlan, trace: Trace) -> Plan[list[SearchRow]]:
        """With as many parts of the index as should hold so many rows, and more while that is worth it."""
        if not plan.target.graph:
            return (yield from _exact(plan, trace))
        trace.estimate = estimate = yield from self._estimate(plan, PARTS * plan.spread * plan.reach)
        return (yield Within(_by_rounds(plan, trace, estimate, estimate.first, _next_part_round)))

    def _estimate(self, plan: SearchPlan, reach: int | None = None) -> Plan[Estimate]:
        reach = reach or plan.reach
        key = (plan.target.schema, plan.target.name, plan.shape.joins, plan.shape.where, reach, plan.given_key)
        known = self._estimates.get(key) if plan.given_key is not None else None
        if known is not None and time.monotonic() - known[0] < REMEMBERED:
            return known[1]
        partial = False
        if plan.target.partial:
            planned = yield Call(plan.planned.text, plan.planned.values)
            partial = not _index_names(planned[0]["QUERY PLAN"]).isdisjoint(plan.target.partial)
        matching = yield Call(plan.matching.text, plan.matching.values)
        top = matching[0]["QUERY PLAN"][0]["Plan"]
        cost = top["Total Cost"] + top["Plan Rows"] * plan.target.split  # each row looks its parts up
        estimate = Estimate(top["Plan Rows"], cost, partial, None)
        if partial:
            values = (estimate.matching, estimate.cost, plan.target.dim, plan.target.half, min(plan.reach, 2**31 - 1))
            first = (yield Call(OF_PART, values))[0]["candidates"]
        else:
            first = (yield from _next_round(plan, estimate, 0, 0, reach)) if plan.target.graph else None
        estimate = replace(estimate, first=first)
        if plan.given_key is not None:
            if len(self._estimates) >= _MOST_REMEMBERED:
                self._estimates.clear()
            self._estimates[key] = time.monotonic(), estimate
        return estimate


def _check_filter(plan: SearchPlan, error: psycopg.Error) -> Plan[None]:
    """Raise InvalidQuery where the filter is why a search failed, in the words of ``pgembed.search``; where that can no
    more be asked, since the caller's transaction failed with it, the filter is named beside what Postgres said."""
    # what functions raise has a context, and psycopg's own errors have no code: neither is about the filter's text
    if (check := plan.filter_check) is None or error.sqlstate is None or error.diag.context:
        return
    try:
        yield Call(check.text, check.values)
    except psycopg.errors.InFailedSqlTransaction:
        message = error.diag.message_primary or str(error)
        hint = f"Look at the filter {plan.shape.where!r}: it is one condition, as it could stand after WHERE."
        raise InvalidQuery(f"{message}.", hint) from error
    except psycopg.errors.SyntaxError as told:  # which the check raises, whatever Postgres said
        raise InvalidQuery(str(told.diag.message_primary), told.diag.message_hint) from error
    except psycopg.Error:
        return  # what the check needs is not there, which the search says better


def _next_round(
    plan: SearchPlan, estimate: Estimate, seen: int, matched: int, reach: int | None = None
) -> Plan[int | None]:
    """How many candidates to look at, by ``pgembed._next_round``."""
    target = plan.target
    reach = min(reach or plan.reach, 2**31 - 1)
    values = (estimate.matching, estimate.cost, target.rows, target.dim, target.half, reach, seen, matched)
    return (yield Call(NEXT, values))[0]["candidates"]


def _next_part_round(plan: SearchPlan, estimate: Estimate, candidates: int, matched: int) -> Plan[int | None]:
    """How many parts to look at, as ``pgembed.search_parts`` has it: by how many rows the last ones had."""
    if candidates >= plan.target.rows:
        return None
    wanted = math.ceil(2 * candidates * plan.spread * plan.reach / max(matched, 1))
    following = yield from _next_round(plan, estimate, 0, 0, min(wanted, 100_000))
    return following if following is not None and following > candidates else None


def _by_rounds(
    plan: SearchPlan, trace: Trace, estimate: Estimate, candidates: int | None, next_round: NextRound = _next_round
) -> Plan[list[SearchRow]]:
    """With so many candidates at first, and more while that is worth it; the caller's settings are put back."""
    before: dict[str, Any] | None = None
    rows: list[SearchRow] = []
    while candidates is not None:
        changed = plan.settings(candidates)
        found: dict[str, Any] = (yield Call(changed.text, changed.values))[0]
        before = before or found
        if plan.starves(found, candidates):
            break
        rows = yield _call(plan.among(candidates))
        trace.looks.append(Look(candidates, len(rows)))
        if len(rows) >= plan.limit:
            break
        candidates = yield from next_round(plan, estimate, candidates, len(rows))
    if len(rows) < plan.limit:
        rows = yield from _run_again(plan, trace)
    if before is not None:
        yield Restore(Call(plan.restore(before).text))
    return rows


def _until_enough(plan: SearchPlan, trace: Trace, of_part: int | None = None) -> Plan[list[SearchRow]]:
    """With the index told to go on until enough rows are found, or one ``of_part`` of the rows asked for so many; the
    caller's settings are put back."""
    changed = plan.settings(of_part, partial=of_part is not None)
    before: dict[str, Any] = (yield Call(changed.text, changed.values))[0]
    rows: list[SearchRow] = []
    if not plan.starves(before):
        rows = yield _call(plan.statement)
        trace.looks.append(Look(None, len(rows)))
    if len(rows) < plan.limit:
        rows = yield from _run_again(plan, trace)
    yield Restore(Call(plan.restore(before).text))
    return rows


def _run_again(plan: SearchPlan, trace: Trace) -> Plan[list[SearchRow]]:
    """All matching rows compared, within a transaction, without the notices that the first run gave: of a query's
    unknown words, say."""
    if not trace.looks or not plan.tells:
        return (yield from _exact(plan, trace))
    told: str = (yield Call(QUIETEN))[0]["told"]
    rows = yield from _exact(plan, trace)
    yield Restore(Call(TELL, [told]))
    return rows


def _exact(plan: SearchPlan, trace: Trace) -> Plan[list[SearchRow]]:
    trace.exact = True
    return (yield _call(plan.exact))


def _call(statement: Statement) -> Call:
    return Call(statement.text, statement.values, search_row_factory)


def _index_names(plan: object) -> set[str]:
    """The names of the indexes in a plan in JSON, at any depth."""
    found: set[str] = set()
    if isinstance(plan, dict):
        node = cast("dict[str, object]", plan)
        found |= {str(name) for key, name in node.items() if key == "Index Name"}
        plan = list(node.values())
    if isinstance(plan, list):
        for part in cast("list[object]", plan):
            found |= _index_names(part)
    return found
