"""From which score on a row is an answer: chosen by queries that a table has no answer to."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pgembed.errors import InvalidInput
from pgembed.inputs import Expression
from pgembed.plans import Plan
from pgembed.searching import Searcher


@dataclass(frozen=True)
class Calibration:
    """``score`` is what ``at_least`` takes. ``answered`` is the share of the queries with an answer whose best row
    reaches it, None where there were none of these; ``absent`` and ``present`` are the best scores, in order."""

    score: float
    answered: float | None
    absent: tuple[float, ...]
    present: tuple[float, ...]


def calibrate(
    searcher: Searcher,
    table: str,
    absent: Sequence[Expression],
    present: Sequence[Expression],
    *,
    alpha: float,
    embedding: str | None,
    where: str | None,
    weights: Mapping[str, float] | None = None,
) -> Plan[Calibration]:
    """The lowest score that a query like the ``absent`` reaches with a probability of at most ``alpha``.

    That is the ceil((n + 1) (1 - alpha))-th smallest of their best scores, the quantile of split conformal prediction
    (Papadopoulos et al. 2002; Angelopoulos and Bates 2021, section 1.1), which holds for any encoder where new queries
    are drawn like these. Raises InvalidInput where there are too few for this alpha.
    """
    if not 0 < alpha < 1:
        raise InvalidInput(f"alpha is a probability above 0 and below 1, not {alpha!r}.", "For example 0.1.")
    rank = math.ceil((len(absent) + 1) * (1 - alpha))
    if rank > len(absent):
        raise InvalidInput(
            f"{len(absent)} queries without an answer are too few for an alpha of {alpha:g}.",
            f"Give {math.ceil(1 / alpha) - 1} or more, or a larger alpha.",
        )
    without = yield from _best(searcher, table, absent, embedding, where, weights)
    having = yield from _best(searcher, table, present, embedding, where, weights)
    score = math.nextafter(without[rank - 1], math.inf)
    answered = sum(best >= score for best in having) / len(having) if having else None
    return Calibration(score, answered, tuple(without), tuple(having))


def _best(
    searcher: Searcher,
    table: str,
    queries: Sequence[Expression],
    embedding: str | None,
    where: str | None,
    weights: Mapping[str, float] | None,
) -> Plan[list[float]]:
    found: list[float] = []
    for query in queries:
        rows = yield from searcher.search(
            table, query, embedding=embedding, where=where, limit=1, columns=[], weights=weights
        )
        found.append(rows[0].score if rows else -math.inf)
    return sorted(found)
