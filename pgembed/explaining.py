"""How a search was run: for people, and as facts for programs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from psycopg import sql

from pgembed.inputs import Expression
from pgembed.plans import Call, Plan
from pgembed.query import PLACE, SearchPlan, SearchRow, quoted
from pgembed.rounds import Look, Trace
from pgembed.searching import Searcher


@dataclass(frozen=True)
class Part:
    """What one term of a query gave to a row's score: its weight, the similarity of row and term, and the share of the
    score that both come to; the shares of a row add up to its score. ``share`` is None where the query is no sum."""

    term: str
    weight: float
    similarity: float
    share: float | None


@dataclass(frozen=True)
class Explanation:
    """How a search was run.

    ``plan`` is ``exact`` where all matching rows were compared, after ``looks`` at the index that gave too few, or at
    once; ``index`` where a vector index answered. ``matching`` is the planner's estimate of the rows that match the
    filter, None where it was not asked; ``total`` the rows of the table. ``milliseconds`` is the time without encoding.
    ``postgres`` is Postgres's own plan of the statement that answered. ``parts`` tells for each row what each term of
    the query gave to its score, where there are several.
    """

    plan: Literal["index", "exact"]
    looks: tuple[Look, ...]
    matching: float | None
    total: float
    milliseconds: float
    rows: list[SearchRow]
    sql: str
    postgres: str
    parts: list[list[Part]] = field(default_factory=list[list[Part]])

    def facts(self) -> dict[str, Any]:
        """All but the rows, for JSON."""
        return {
            "plan": self.plan, "looks": [asdict(one) for one in self.looks],
            "matching": self.matching, "total": self.total, "milliseconds": round(self.milliseconds, 3),
            "rows": len(self.rows), "parts": [[asdict(part) for part in parts] for parts in self.parts],
            "sql": self.sql, "postgres": self.postgres,
        }  # fmt: skip

    def __str__(self) -> str:
        lines = [f"{len(self.rows)} rows in {self.milliseconds:.1f} ms, by {_PLANS[self.plan]}."]
        if self.matching is not None:
            lines.append(f"The filter: about {self.matching:,.0f} of {self.total:,.0f} rows match.")
        for one in self.looks:
            bound = "until enough were found" if one.candidates is None else f"as far as {one.candidates:,} candidates"
            lines.append(f"The index was read {bound}: {one.found} matching rows.")
        for row, parts in zip(self.rows, self.parts, strict=False):
            told = (f"{part.term} {part.similarity if part.share is None else part.share:+.3f}" for part in parts)
            lines.append(f"{row.score:.3f} = {', '.join(told)}")
        return "\n".join([*lines, "", self.postgres])


_PLANS = {"index": "the vector index", "exact": "comparing all matching rows"}


def explained(searcher: Searcher, table: str, query: Expression, plan: SearchPlan) -> Plan[Explanation]:
    """Run a search whose rows tell their places, and tell how."""
    trace = Trace()
    start = time.perf_counter()
    rows = yield from searcher.rounds.run(plan, trace)
    took = (time.perf_counter() - start) * 1000
    last = trace.looks[-1].candidates if trace.looks else None
    statement = plan.exact if trace.exact else plan.among(last) if last else plan.statement
    planned = yield Call(plan.explained(statement).text, statement.values)
    postgres = "\n".join(row["QUERY PLAN"] for row in planned)
    estimate = trace.estimate
    return Explanation(
        plan="exact" if trace.exact or "Order By: " not in postgres else "index",  # as Postgres tells of an index
        looks=tuple(trace.looks),
        matching=estimate.matching if estimate else None,
        total=plan.target.rows,
        milliseconds=took,
        rows=[row.without(PLACE) for row in rows],
        sql=statement.text.as_string(None),
        postgres=postgres,
        parts=(yield from _parts(searcher, table, query, plan, rows)),
    )


def _parts(
    searcher: Searcher, table: str, query: Expression, plan: SearchPlan, rows: Sequence[SearchRow]
) -> Plan[list[list[Part]]]:
    """What each term gave to each row, by a search for each among the rows found.

    A sum's direction is the weighted sum of its terms' over its length, and so is its similarity to a row under cosine;
    the length is what makes the shares of the best row add up.
    """
    terms = query.terms
    neutral = plan.shape.neutral
    # without a view, a sum is longer or shorter than its terms without it add up to
    is_sum = len(terms) > 1 and plan.target.metric == "cosine" and neutral is None
    told = [(repr(term.input), term.weight, term.input) for term in terms] if is_sum else [
        (repr(one), 1.0, one) for one in dict.fromkeys(query.inputs)
    ]  # fmt: skip
    if len(told) < 2 or not rows:
        return []
    places = [name for name in rows[0] if name.startswith(PLACE)][1:]
    keys = [tuple(row[name] for name in places) for row in rows]  # as text, whatever their types
    one = sql.SQL(" AND ").join(sql.SQL("{} = %s").format(quoted(key)) for key in plan.target.keys)
    options: dict[str, Any] = {
        "embedding": plan.target.column, "where": sql.SQL(" OR ").join([sql.SQL("({})").format(one)] * len(keys)),
        "params": [value for key in keys for value in key], "limit": len(keys), "columns": [], "exact": True,
        "places": True, "neutral": neutral and neutral.view,
    }  # fmt: skip
    similar: list[dict[tuple[Any, ...], float]] = []
    for _, _, term in told:
        found: list[SearchRow] = yield from searcher.search(table, term, **options)
        similar.append({tuple(row[name] for name in places): row.score for row in found})
    first = max(range(len(rows)), key=lambda n: abs(rows[n].score))
    total = sum(weight * by_key[keys[first]] for (_, weight, _), by_key in zip(told, similar, strict=True))
    length = total / rows[first].score if rows[first].score else 0.0
    return [
        [
            Part(name, weight, by_key[key], weight * by_key[key] / length if is_sum and length else None)
            for (name, weight, _), by_key in zip(told, similar, strict=True)
        ]
        for key in keys
    ]
