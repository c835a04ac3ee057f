"""How a search was run, and what gave each row its score: for people, and as facts for programs."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from pgembed.hybrid import FusedPlan, run_fused
from pgembed.input_shares import InputShare, input_shares
from pgembed.inputs import Expression, Row, Vector
from pgembed.plans import Call, Plan
from pgembed.query import PLACE, SearchPlan, SearchRow, among, search_row_factory
from pgembed.rounds import Look, Trace
from pgembed.searching import Searcher
from pgembed.view_scores import ViewScore, view_scores


@dataclass(frozen=True)
class Part:
    """What one term of a query gave to a row's score: its weight, the similarity of row and term, and the share of the
    score that both come to; the shares of a row add up to its score. ``share`` is None where the query is no sum."""

    term: str
    weight: float
    similarity: float
    share: float | None


@dataclass(frozen=True)
class Leg:
    """One leg of a fused search: the embedding's name, or ``words``; its weight, how many candidates it gave, and of
    vectors how these were found, as Explanation has it."""

    name: str
    weight: float
    candidates: int
    plan: Literal["index", "partial index", "exact"] | None = None
    looks: tuple[Look, ...] = ()
    matching: float | None = None
    postgres: str = ""
    index: str | None = None


@dataclass(frozen=True)
class LegShare:
    """What the leg of this number (from 1 on) gave to a row's score: the row's rank among all candidates, its score
    there, and the share of the whole; the shares of a row add up to its score."""

    leg: int
    rank: int
    score: float | None
    share: float | None


@dataclass(frozen=True)
class Explanation:
    """How a search was run.

    ``plan`` is ``exact`` where all matching rows were compared, after ``looks`` at the index that gave too few, or at
    once; ``index`` where a vector index answered, which ``index`` names, and ``partial index`` where that holds a part
    of the rows only; ``fused`` where there were several ``legs``, of which each has its own. ``matching`` is the
    planner's estimate of the rows that match the filter, None where it was not asked; ``total`` the rows of the table.
    ``milliseconds`` is the time without encoding. ``postgres`` is Postgres's own plan of the statement that answered.

    For each row ``parts`` tells what each term of the query gave to its score, where there are several; ``inputs`` what
    each input of the row gave, and ``views`` on which named views it scores high, where these were asked;
    ``leg_shares`` what each leg gave that has the row, and ``words`` which of the words asked for it has, as the text
    search configuration writes them. ``recall`` is the share of the rows that comparing all gives which was found,
    where that was asked and there are any.
    """

    plan: Literal["index", "partial index", "exact", "fused"]
    looks: tuple[Look, ...]
    matching: float | None
    total: float
    milliseconds: float
    rows: list[SearchRow]
    sql: str
    postgres: str
    parts: list[list[Part]] = field(default_factory=list[list[Part]])
    inputs: list[list[InputShare]] = field(default_factory=list[list[InputShare]])
    views: list[list[ViewScore]] = field(default_factory=list[list[ViewScore]])
    legs: tuple[Leg, ...] = ()
    leg_shares: list[list[LegShare]] = field(default_factory=list[list[LegShare]])
    words: list[list[str]] = field(default_factory=list[list[str]])
    method: str | None = None
    recall: float | None = None
    index: str | None = None

    def facts(self) -> dict[str, Any]:
        """All but the rows, for JSON."""
        return {
            "plan": self.plan, "index": self.index, "looks": [asdict(one) for one in self.looks],
            "matching": self.matching, "total": self.total, "milliseconds": round(self.milliseconds, 3),
            "rows": len(self.rows), "parts": _dicts(self.parts), "inputs": _dicts(self.inputs),
            "views": _dicts(self.views), "method": self.method,
            "legs": [asdict(leg) for leg in self.legs], "leg_shares": _dicts(self.leg_shares), "words": self.words,
            "recall": self.recall, "sql": self.sql, "postgres": self.postgres,
        }  # fmt: skip

    def cells(self) -> dict[str, list[str]]:
        """What gave each row its score, as columns of a table: by heading, a cell for each row."""
        names: list[str] = []
        rows: list[dict[str, str]] = [{} for _ in self.rows]
        for told in (self.parts, self.inputs):
            for row, parts in zip(rows, told, strict=False):
                for part in parts:
                    value = part.similarity if part.share is None else part.share
                    row[_unused(part.term if isinstance(part, Part) else f"its {part.input}", row)] = f"{value:+.3f}"
        for row, shares in zip(rows, self.leg_shares, strict=False):
            for share in shares:
                score = "" if share.score is None else f" ({share.score:.3f})"
                row[self._leg_heading(share.leg - 1)] = f"{share.rank}.{score}"
        if self.legs:
            names = [self._leg_heading(leg) for leg in range(len(self.legs))]
        if any(self.words):
            for row, words in zip(rows, self.words, strict=False):
                row["in common"] = " ".join(words)
        for row, high in zip(rows, self.views, strict=False):
            if high:
                row["high on"] = " ".join(f"{one.view} {one.score:+.3f}" for one in high)
        for row in rows:
            names += [name for name in row if name not in names]
        return {name: [row.get(name, "–") for row in rows] for name in names}

    def _leg_heading(self, leg: int) -> str:
        """The name of a leg (from 0), with its number where several have it."""
        name = self.legs[leg].name
        return name if sum(one.name == name for one in self.legs) == 1 else f"{name} {leg + 1}"

    def summary(self) -> str:
        """How it was run, in lines: all but the rows and Postgres's plan."""
        by = _by(self.plan, self.index)
        how = f"by {by}" if by else f"{len(self.legs)} legs fused by {self.method}"
        lines = [f"{len(self.rows)} rows in {self.milliseconds:.1f} ms, {how}."]
        lines += _found(self.matching, self.total, self.looks)
        for number, leg in enumerate(self.legs):
            by = f", by {how}" if (how := _by(leg.plan, leg.index)) else ""
            lines.append(f"Leg {self._leg_heading(number)}, weight {leg.weight:g}: {leg.candidates} candidates{by}.")
            lines += [f"  {line}" for line in _found(leg.matching, self.total, leg.looks)]
        if self.recall is not None:
            lines.append(f"Recall: {self.recall:.0%} of the rows that comparing all gives were found.")
        return "\n".join(lines)

    def __str__(self) -> str:
        lines = [self.summary()]
        digits = 4 if self.method == "rank" else 3
        columns = self.cells()
        for number, row in enumerate(self.rows if columns else ()):
            told = ", ".join(f"{name} {cells[number]}" for name, cells in columns.items() if cells[number] != "–")
            lines.append(f"{row.score:.{digits}f} = {told}")
        return "\n".join([*lines, "", self.postgres])


_PLANS = {
    "index": "the vector index {}", "partial index": "the vector index {}, which holds a part of the rows",
    "exact": "comparing all matching rows",
}  # fmt: skip
# How Postgres tells of an index that gives an order; likewise in sql/69_rounds.sql.
_INDEX = re.compile(r'Index Scan using (?:"(?P<quoted>(?:[^"]|"")+)"|(?P<plain>\S+)) on [^\n]*\n\s+Order By: ')


def _by(plan: str | None, index: str | None) -> str | None:
    """What a plan is, in words; None of what has none of its own."""
    return _PLANS[plan].format(index) if plan in _PLANS else None


def _index_in(postgres: str) -> str | None:
    """The name of the vector index in Postgres's plan."""
    found = _INDEX.search(postgres)
    return found and (found["plain"] or found["quoted"].replace('""', '"'))


def _dicts(told: Sequence[Sequence[Any]]) -> list[list[dict[str, Any]]]:
    return [[asdict(one) for one in row] for row in told]


def _unused(name: str, taken: Mapping[str, str]) -> str:
    """The name, with a number where a term comes twice."""
    number = 2
    unused = name
    while unused in taken:
        unused, number = f"{name} {number}", number + 1
    return unused


def _found(matching: float | None, total: float, looks: Sequence[Look]) -> list[str]:
    lines = [] if matching is None else [f"The filter: about {matching:,.0f} of {total:,.0f} rows match."]
    for one in looks:
        bound = "until enough were found" if one.candidates is None else f"as far as {one.candidates:,} candidates"
        lines.append(f"The index was read {bound}: {one.found} matching rows.")
    return lines


def explained(
    searcher: Searcher,
    table: str,
    query: Expression,
    plan: SearchPlan,
    *,
    good: Callable[[list[SearchRow]], list[SearchRow]],
    recall: bool,
    inputs: bool,
    views: bool,
) -> Plan[Explanation]:
    """Run a search whose rows tell their places, and tell how; ``good`` chooses those of its rows that are answers."""
    trace = Trace()
    start = time.perf_counter()
    rows = good((yield from searcher.rounds.run(plan, trace)))
    took = (time.perf_counter() - start) * 1000
    last = trace.looks[-1].candidates if trace.looks else None
    statement = plan.exact if trace.exact else plan.among(last) if last else plan.statement
    planned = yield Call(plan.explained(statement).text, statement.values)
    postgres = "\n".join(row["QUERY PLAN"] for row in planned)
    index = None if trace.exact else _index_in(postgres)
    estimate = trace.estimate
    found: float | None = None
    if recall:
        best = good((yield Call(plan.exact.text, plan.exact.values, search_row_factory)))
        # rows as near as the last count, whichever of them a tie left out
        found = min(1.0, sum(row.score >= best[-1].score for row in rows) / len(best)) if best else None
    return Explanation(
        plan="exact" if index is None else "partial index" if index in plan.target.partial else "index",
        looks=tuple(trace.looks),
        matching=estimate.matching if estimate else None,
        total=plan.target.rows,
        milliseconds=took,
        rows=[row.without(PLACE) for row in rows],
        sql=statement.text.as_string(None),
        postgres=postgres,
        parts=(yield from _parts(searcher, table, query, plan, rows)),
        inputs=(yield from input_shares(searcher, table, plan, [_key(row)[1:] for row in rows])) if inputs else [],
        views=(yield from view_scores(plan, [_key(row)[1:] for row in rows])) if views else [],
        recall=found,
        index=index,
    )


def explained_fused(plan: FusedPlan, *, recall: bool) -> Plan[Explanation]:
    """Run a fused search whose rows tell their keys, and tell how, by ``pgembed.explain_hybrid``."""
    start = time.perf_counter()
    rows = yield from run_fused(plan)
    took = (time.perf_counter() - start) * 1000
    values = (*plan.explained.values, recall)
    told: dict[str, Any] = (yield Call(plan.explained.text, values))[0]["told"]
    legs = tuple(
        Leg(
            leg.get("embedding") or "words", leg["weight"], leg["candidates"], leg.get("plan"),
            tuple(Look(**look) for look in leg.get("looks", ())), leg.get("matching"),
            "\n".join(leg.get("postgres", ())), leg.get("index"),
        )
        for leg in told["legs"]
    )  # fmt: skip
    by_key = {tuple(row["key"]): row for row in told["rows"]}
    about = [by_key.get(_key(row), {}) for row in rows]  # nothing of a row that came between the two statements
    return Explanation(
        plan="fused",
        looks=(),
        matching=None,
        total=next((leg["total"] for leg in told["legs"] if leg.get("total") is not None), 0.0),
        milliseconds=took,
        rows=[row.without(PLACE) for row in rows],
        sql=plan.statement.text.as_string(None),
        postgres="\n\n".join(f"{leg.name}:\n{leg.postgres}" for leg in legs if leg.postgres),
        legs=legs,
        leg_shares=[
            [LegShare(one["leg"], one["rank"], one["score"], one["share"]) for one in row.get("legs", ())]
            for row in about
        ],
        words=[row.get("words") or [] for row in about],
        method=told["method"],
        recall=told["recall"],
    )


def _key(row: SearchRow) -> tuple[str, ...]:
    """What tells the place of a row: the distance where it is told, then its key, as text."""
    return tuple(row[name] for name in row if name.startswith(PLACE))


def _parts(
    searcher: Searcher, table: str, query: Expression, plan: SearchPlan, rows: Sequence[SearchRow]
) -> Plan[list[list[Part]]]:
    """What each term gave to each row, by a search for each among the rows found.

    A sum's direction is the weighted sum of its terms' over its length, and so is its similarity to a row under cosine;
    the length is what makes the shares of the best row add up.
    """
    terms = query.terms
    neutral = plan.shape.neutral
    # side by side all terms have one length, whatever the weights, but for rows and vectors given
    even = bool(plan.target.parts) and not any(isinstance(one, Row | Vector) for one in query.inputs)
    # without a view, a sum is longer or shorter than its terms without it add up to
    # and of parts each term finds the one that is nearest to it
    is_sum = len(terms) > 1 and (plan.target.metric == "cosine" or even) and neutral is None and not plan.target.split
    told = [(repr(term.input), term.weight, term.input) for term in terms] if is_sum else [
        (repr(one), 1.0, one) for one in dict.fromkeys(query.inputs)
    ]  # fmt: skip
    if len(told) < 2 or not rows:
        return []
    places = [name for name in rows[0] if name.startswith(PLACE)][1:]
    keys = [tuple(row[name] for name in places) for row in rows]  # as text, whatever their types
    where, params = among(plan.target, keys)
    options: dict[str, Any] = {
        "embedding": plan.target.column, "where": where, "params": params, "limit": len(keys), "columns": [],
        "exact": True,
        "places": True, "weights": plan.weights, "neutral": neutral and neutral.view,
        "prefer": plan.target.prefer or "exact",
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
