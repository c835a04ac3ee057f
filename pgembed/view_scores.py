"""On which named views of the space rows score high, beside a sample of their table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from psycopg import sql
from psycopg.types.json import Jsonb

from pgembed.plans import Call, Plan
from pgembed.query import SearchPlan

_SCORES = sql.SQL("SELECT pgembed._view_scores(%s::regclass, %s, %s) AS told")


@dataclass(frozen=True)
class ViewScore:
    """How a row lies along a view: its similarity to the view's first direction, and the share of a sample of the table
    (1,000 rows or about so many) that has a lower one."""

    view: str
    score: float
    above: float


def view_scores(plan: SearchPlan, keys: Sequence[tuple[str, ...]]) -> Plan[list[list[ViewScore]]]:
    """For the row of each key, as text, the views of its space on which it scores high, the highest first: those on
    which nine in ten rows of a sample score less. Read under the caller's rights; nothing where there are no views."""
    if not keys:
        return []
    target = plan.target
    found = yield Call(_SCORES, [target.relation, target.column, Jsonb([list(key) for key in keys])])
    return [[ViewScore(**one) for one in row] for row in found[0]["told"]]
