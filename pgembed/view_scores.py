"""On which named views of the space rows score high, beside a sample of their table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from psycopg import sql

from pgembed.algebra import View
from pgembed.plans import Call, Plan
from pgembed.query import PLACE, SearchPlan, SearchRow, among
from pgembed.searching import Searcher

_HIGH = 0.9  # of the sample score less
_SAMPLE = 1000  # rows
_VIEWS = sql.SQL("SELECT v.name FROM pgembed.views AS v WHERE v.space = %s ORDER BY 1")


@dataclass(frozen=True)
class ViewScore:
    """How a row lies along a view: its similarity to the view's first direction, and the share of a sample of the table
    (1,000 rows or about so many) that has a lower one."""

    view: str
    score: float
    above: float


def view_scores(
    searcher: Searcher, table: str, plan: SearchPlan, keys: Sequence[tuple[str, ...]]
) -> Plan[list[list[ViewScore]]]:
    """For the row of each key, as text, the views of its space on which it scores high, the highest first: those on
    which nine in ten rows of a sample score less. Read under the caller's rights; nothing where there are no views."""
    target = plan.target
    found: list[dict[str, Any]] = (yield Call(_VIEWS, [target.space])) if keys else []
    told: list[list[ViewScore]] = [[] for _ in keys]
    where, params = among(target, keys)
    share = min(1.0, _SAMPLE / max(target.rows, 1.0))
    for name in (row["name"] for row in found):
        options: dict[str, Any] = {"embedding": target.column, "columns": [], "exact": True}
        scored: list[SearchRow] = yield from searcher.search(
            table, View(name), where=where, params=params, limit=len(keys), places=True, **options
        )
        sample: list[SearchRow] = yield from searcher.search(
            table, View(name), where="pg_catalog.random() < %s", params=[share], limit=2 * _SAMPLE, **options
        )
        by_key = {tuple(row[place] for place in row if place.startswith(PLACE))[1:]: row.score for row in scored}
        for scores, key in zip(told, keys, strict=True):
            if key not in by_key or not sample:
                continue
            above = sum(row.score < by_key[key] for row in sample) / len(sample)
            if above >= _HIGH:
                scores.append(ViewScore(name, by_key[key], above))
    for scores in told:
        scores.sort(key=lambda one: (-one.above, -one.score, one.view))
    return told
