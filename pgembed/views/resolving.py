"""Views within queries: their directions take the place of ``View(…)`` before SQL is written."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from psycopg import sql

from pgembed.algebra import Changed, Equalized, Operation, Reject, Slerp, Unit, View, unit
from pgembed.errors import InvalidQuery
from pgembed.inputs import Expression, Input, Operand, Sum, Term, Vector
from pgembed.plans import Call, Plan
from pgembed.query import Neutral, Target

_FOUND = sql.SQL(
    "SELECT v.name, v.encoder, e.space, v.vectors::text[] AS vectors FROM pg_catalog.unnest(%s::text[]) AS n (name)"
    " CROSS JOIN LATERAL pgembed._view(n.name) AS v JOIN pgembed.encoder AS e ON e.name = v.encoder"
)


@dataclass(frozen=True)
class Found:
    """A view of the space that is searched: its directions as vectors, and as Postgres writes them."""

    name: str
    vectors: tuple[Vector, ...]
    written: str


def views_in(query: Expression, neutral: str | None = None) -> list[str]:
    """The names of the views that a query needs, each once."""
    names = [item.name for item in query.inputs if isinstance(item, View)]
    return list(dict.fromkeys([*names, *([] if neutral is None else [neutral])]))


def found_views(target: Target, names: Sequence[str]) -> Plan[dict[str, Found]]:
    """The views of these names, from the catalog. Raises CatalogError for an unknown one, InvalidQuery for one that is
    not of the target's space."""
    rows = yield Call(_FOUND, [list(names)])
    for row in rows:
        if row["space"] != target.space:
            raise InvalidQuery(
                f"The view '{row['name']}' is one of space {row['space']}; {target.name} holds vectors of"
                f" '{target.encoder}' (space {target.space}).",
                f"Learn a view with '{target.encoder}'.",
            )
    return {
        row["name"]: Found(
            row["name"],
            tuple(Vector(json.loads(vector), space=row["space"]) for vector in row["vectors"]),
            "{" + ",".join(f'"{vector}"' for vector in row["vectors"]) + "}",
        )
        for row in rows
    }


def without_view(query: Expression, view: Found) -> tuple[Expression, Neutral]:
    """The query without the view, and what takes it out of rows."""
    return Reject(unit(query), view.vectors), Neutral(view.name, view.written)


def with_views(query: Expression, views: Mapping[str, Found]) -> Expression:
    """The query with directions in place of each view: all where they are taken out or evened out, else the first."""

    def settled(expression: Expression) -> Expression:
        return with_views(expression, views)

    def all_of(directions: Sequence[Expression]) -> tuple[Expression, ...]:
        return tuple(
            each
            for direction in directions
            for each in (views[direction.name].vectors if isinstance(direction, View) else (settled(direction),))
        )

    match query:
        case View():
            return views[query.name].vectors[0]
        case Input():
            return query
        case Unit():
            return Unit(settled(query.operand))
        case Slerp():
            return Slerp(settled(query.start), settled(query.end), query.t)
        case Reject():
            return Reject(settled(query.operand), all_of(query.directions))
        case Equalized():
            return Equalized(tuple(map(settled, query.members)), all_of(query.directions), query.place)
        case Changed():
            was = None if query.was is None else settled(query.was)
            return Changed(settled(query.reference), settled(query.to), was, query.by)
        case Operation():
            raise AssertionError(query)
        case _:
            terms: list[Term] = []
            for term in query.terms:
                operand = settled(term.input)
                assert isinstance(operand, Operand)
                terms.append(Term(term.weight, operand))
            return Sum(tuple(terms))
