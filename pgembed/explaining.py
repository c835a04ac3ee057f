"""How a search was run: for people, and as facts for programs."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Literal

from pgembed.plans import Call, Plan
from pgembed.query import SearchPlan, SearchRow
from pgembed.rounds import Trace
from pgembed.searching import Searcher


@dataclass(frozen=True)
class Look:
    """One reading of the vector index: of so many candidates (None: until enough were found), and the rows it gave."""

    candidates: int | None
    found: int


@dataclass(frozen=True)
class Explanation:
    """How a search was run.

    ``plan`` is ``exact`` where all matching rows were compared, after ``looks`` at the index that gave too few, or at
    once; ``index`` where a vector index answered. ``matching`` is the planner's estimate of the rows that match the
    filter, None where it was not asked; ``total`` the rows of the table. ``milliseconds`` is the time without encoding.
    ``postgres`` is Postgres's own plan of the statement that answered.
    """

    plan: Literal["index", "exact"]
    looks: tuple[Look, ...]
    matching: float | None
    total: float
    milliseconds: float
    rows: list[SearchRow]
    sql: str
    postgres: str

    def facts(self) -> dict[str, Any]:
        """All but the rows, for JSON."""
        return {
            "plan": self.plan, "looks": [{"candidates": one.candidates, "found": one.found} for one in self.looks],
            "matching": self.matching, "total": self.total, "milliseconds": round(self.milliseconds, 3),
            "rows": len(self.rows), "sql": self.sql, "postgres": self.postgres,
        }  # fmt: skip

    def __str__(self) -> str:
        lines = [f"{len(self.rows)} rows in {self.milliseconds:.1f} ms, by {_PLANS[self.plan]}."]
        if self.matching is not None:
            lines.append(f"The filter: about {self.matching:,.0f} of {self.total:,.0f} rows match.")
        for one in self.looks:
            bound = "until enough were found" if one.candidates is None else f"as far as {one.candidates:,} candidates"
            lines.append(f"The index was read {bound}: {one.found} matching rows.")
        return "\n".join([*lines, "", self.postgres])


_PLANS = {"index": "the vector index", "exact": "comparing all matching rows"}


def explained(searcher: Searcher, plan: SearchPlan) -> Plan[Explanation]:
    """Run a search, and tell how."""
    trace = Trace()
    start = time.perf_counter()
    rows = yield from searcher.rounds.run(plan, trace)
    took = (time.perf_counter() - start) * 1000
    last = trace.looks[-1][0] if trace.looks else None
    statement = plan.exact if trace.exact else plan.among(last) if last else plan.statement
    planned = yield Call(plan.explained(statement).text, statement.values)
    postgres = "\n".join(row["QUERY PLAN"] for row in planned)
    estimate = trace.estimate
    return Explanation(
        plan="exact" if trace.exact or "Order By: " not in postgres else "index",  # as Postgres tells of an index
        looks=tuple(Look(candidates, found) for candidates, found in trace.looks),
        matching=estimate.matching if estimate else None,
        total=plan.target.rows,
        milliseconds=took,
        rows=rows,
        sql=statement.text.as_string(None),
        postgres=postgres,
    )
