"""Queries that a trained composer has a part in: its vector takes the place of ``changed(…)`` before SQL is written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from pgembed.algebra import Changed, Equalized, Operation, Reject, Slerp, Unit
from pgembed.inputs import Expression, Input, Operand, Sum, Term, Vector
from pgembed.plans import Compute, Plan

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pgembed.encoders.composer import ComposerEncoder

VectorsOf = Callable[[Sequence[Expression]], Plan["list[NDArray[Any]]"]]
ComposerOf = Callable[[str], Plan["ComposerEncoder"]]


def holds_change(query: Expression) -> bool:
    """Whether a composer is needed for the query's vector."""
    if isinstance(query, Input):
        return False
    if isinstance(query, Operation):
        return isinstance(query, Changed) or any(map(holds_change, query.operands))
    return any(holds_change(term.input) for term in query.terms)


def without_changes(query: Expression, space: str, vectors: VectorsOf, composer: ComposerOf) -> Plan[Expression]:
    """The query with a Vector of ``space`` in place of each ``changed(…)``, the inner ones first.

    ``vectors`` gives the vectors of expressions without one, ``composer`` what ``by`` names.
    """
    if isinstance(query, Input):
        return query

    def settled(expression: Expression) -> Plan[Any]:
        return without_changes(expression, space, vectors, composer)

    match query:
        case Changed():
            operands: list[Expression] = []
            for operand in query.operands:
                operands.append((yield from settled(operand)))
            model = yield from composer(query.by)
            reference, new, *old = yield from vectors(operands)
            made: NDArray[Any] = yield Compute(
                lambda: model.compose(reference[None], new[None], old[0][None] if old else None)
            )
            return Vector(made[0], space=space)
        case Unit():
            return Unit((yield from settled(query.operand)))
        case Slerp():
            return Slerp((yield from settled(query.start)), (yield from settled(query.end)), query.t)
        case Reject():
            first = yield from settled(query.operand)
            directions: list[Expression] = []
            for direction in query.directions:
                directions.append((yield from settled(direction)))
            return Reject(first, tuple(directions))
        case Equalized():
            operands = []
            for operand in query.operands:
                operands.append((yield from settled(operand)))
            count = len(query.members)
            return Equalized(tuple(operands[:count]), tuple(operands[count:]), query.place)
        case _:
            terms: list[Term] = []
            for term in query.terms:
                made_of: Operand = yield from settled(term.input)
                terms.append(Term(term.weight, made_of))
            return Sum(tuple(terms))
