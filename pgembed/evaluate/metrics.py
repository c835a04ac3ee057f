"""What rankings are worth: the measures of ``ir-measures`` (extra ``eval``), a value for each query and their mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

import numpy as np

from pgembed.errors import InvalidInput, MissingExtra
from pgembed.evaluate.judgments import Qrels

MEASURES = ("nDCG@10", "R@10", "R@100", "RR@10", "AP@10")
Rankings = Mapping[str, Sequence[tuple[str, float]]]
"""Query id -> rows, best first: the row's id and its score."""


def cutoff(measures: Sequence[str]) -> int:
    """How many rows of a ranking these measures look at, the deepest of them; 0 where none has a cutoff.

    Raises InvalidInput for a measure that is none, MissingExtra without ir-measures.
    """
    found = [_parsed(measure).params.get("cutoff") for measure in measures]
    return max((depth for depth in found if depth), default=0)


def judged(qrels: Qrels, among: Sequence[str]) -> list[str]:
    """The queries that count: those for which a relevant row is known."""
    return [query for query in among if any(grade > 0 for grade in qrels.get(query, {}).values())]


def values(
    qrels: Qrels, rankings: Rankings, queries: Sequence[str], measures: Sequence[str] = MEASURES
) -> dict[str, dict[str, float]]:
    """Measure -> query -> value, as trec_eval computes them: nDCG with linear gains, AP@k over all relevant rows.

    ``queries`` are those that count; one that has no ranking has the value 0. Raises InvalidInput, MissingExtra.
    """
    tool = _tool()
    parsed = {_parsed(measure): measure for measure in measures}
    chosen = {query: dict(qrels[query]) for query in queries}
    found = {query: dict(strictly_falling(rankings.get(query, ()))) for query in queries}
    table: dict[str, dict[str, float]] = {measure: dict.fromkeys(queries, 0.0) for measure in measures}
    if queries:
        for value in tool.iter_calc(list(parsed), chosen, {query: run for query, run in found.items() if run}):
            table[parsed[value.measure]][value.query_id] = float(value.value)
    return table


def means(table: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """The mean of each measure over its queries; NaN where there are none."""
    return {measure: float(np.mean([*each.values()])) if each else float("nan") for measure, each in table.items()}


def strictly_falling(ranking: Sequence[tuple[str, float]]) -> list[tuple[str, float]]:
    """The ranking, each score a float32 at least below the one before: tools sort by score and break ties by id."""
    fallen: list[tuple[str, float]] = []
    last = np.float32(np.inf)
    for row, score in ranking:
        here = np.float32(score)
        last = here if here < last else np.nextafter(last, np.float32(-np.inf))
        fallen.append((row, float(last)))
    return fallen


def _tool() -> Any:  # noqa: ANN401
    try:
        return import_module("ir_measures")
    except ImportError as error:
        raise MissingExtra("Evaluation", "eval") from error


def _parsed(measure: str) -> Any:  # noqa: ANN401
    tool = _tool()
    try:
        parsed = tool.parse_measure(measure)
        if tool.DefaultPipeline.supports(parsed):
            return parsed
    except (ValueError, NameError, TypeError, KeyError, AttributeError, AssertionError):
        pass
    raise InvalidInput(
        f"'{measure}' is no measure that ir-measures computes here.",
        "Measures are written nDCG@10, R@100, RR@10, AP@10, P@5, AP, ERR@20 or P(rel=2)@5.",
    )
