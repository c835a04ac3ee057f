"""Whether the inputs of a row are better together: fusions and their weights, chosen on one half of the queries and
told of the other.

All rankings are exact, of vectors that are encoded once, input by input: what a fusion with other weights would find
follows from the cosines of queries and inputs, and for sums from those of the inputs among each other.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING, Literal

import numpy as np

from pgembed.algebra import Changed
from pgembed.client import Pgembed
from pgembed.errors import InvalidInput, PgembedError
from pgembed.evaluate import metrics
from pgembed.evaluate.compare import compare
from pgembed.evaluate.judgments import Fault, Qrels, Question, Questions
from pgembed.evaluate.parts import Fused, Parts, read_parts
from pgembed.evaluate.target import Connection
from pgembed.inputs import Row
from pgembed.media import MediaPolicy

if TYPE_CHECKING:
    from numpy.typing import NDArray

LEAST_QUERIES = 10
DEPTH = 100  # rows of each ranking, and of each leg of a search of embeddings kept apart, as pgembed.hybrid has it
RANKS = 60  # of reciprocal rank fusion, as pgembed.hybrid has it
SURE = 0.05  # from which p on a difference may be chance
OTHERS = 10_000  # rows that are ranked beside the judged ones
METRIC = "nDCG@10"

Method = Literal["alone", "sum", "concat", "apart, by score", "apart, by rank"]
Verdict = Literal["helps", "hurts", "cannot tell"]
Weights = Mapping[str, float]


@dataclass(frozen=True)
class Way:
    """One way to make a ranking of the inputs: ``tuned`` is the mean of the measure over the half of the queries that
    weights were chosen on, ``held_out`` over the other half, ``values`` its value of each of these.

    ``difference`` is held_out minus that of the best single input, and ``p`` that of the paired randomization test.
    """

    name: str
    method: Method
    weights: Weights
    tuned: float
    held_out: float
    values: Mapping[str, float]
    difference: float = 0.0
    p: float = 1.0


@dataclass(frozen=True)
class Tuning:
    """What fusing the inputs of a table is worth on a file of judgments.

    ``single`` is the input that alone is best on the held-out half, ``chosen`` the fusion that is best on the other, of
    those that one vector column can hold. ``attach`` is the SQL that makes it, or ``single`` where fusion hurts.
    """

    table: str
    encoder: str
    metric: str
    seed: int
    steps: int
    rows: int
    with_input: Mapping[str, int]
    read: int
    encoded: int
    failed: int
    unread: tuple[str, ...]
    tuned_on: tuple[str, ...]
    held_out: tuple[str, ...]
    faults: tuple[Fault, ...]
    ways: tuple[Way, ...]
    single: Way
    chosen: Way
    verdict: Verdict
    sentence: str
    attach: str
    at_query_time: str | None


def tune(
    conn: Connection,
    db: Pgembed,
    fused: Fused,
    questions: Questions,
    qrels: Qrels,
    *,
    metric: str = METRIC,
    steps: int | None = None,
    seed: int = 0,
    others: int = OTHERS,
    media: MediaPolicy | None = None,
    on_rows: Callable[[int, int], None] | None = None,
    on_queries: Callable[[int, int], None] | None = None,
) -> Tuning:
    """Encode the judged rows and so many ``others``, rank them in each way, and choose.

    Weights are multiples of 1/``steps`` (default: 20 for two inputs, 10 for more). A query that cannot be asked is a
    fault and stops no other. Raises InvalidInput for fewer than 10 queries that count, MissingExtra, CatalogError.
    """
    cutoff = metrics.cutoff([metric])
    if cutoff > DEPTH:
        raise InvalidInput(f"{metric} looks at {cutoff} rows; a leg that is kept apart gives {DEPTH}.", "Take nDCG@10.")
    steps = steps or (20 if len(fused.modalities) == 2 else 10)
    if steps < len(fused.modalities):
        raise InvalidInput(
            f"Weights in {steps} steps leave none for some of the {len(fused.modalities)} inputs.",
            f"Take {len(fused.modalities)} or more.",
        )
    counting = metrics.judged(qrels, [question.id for question in questions.asked])
    _require_enough(len(counting), questions)
    row = db.encoder(fused.encoder)
    encoder = db.load_encoder(fused.encoder)
    wanted = set(counting)
    vectors, faults = _queries(db, fused, [one for one in questions.asked if one.id in wanted], on_queries)
    _require_enough(len(vectors), questions, faults)
    judged = list(dict.fromkeys(identity for query in vectors for identity in qrels[query]))
    media = media or MediaPolicy()
    parts = read_parts(
        conn, fused, row, encoder, judged, others=others, seed=seed, media=media, on_progress=on_rows
    )  # fmt: skip
    order = sorted(vectors)  # so that the halves do not depend on the order of the file
    random.Random(seed).shuffle(order)
    half = len(order) // 2
    halves = (tuple(sorted(order[:half])), tuple(sorted(order[half:])))
    ways = _ways(Rankings(parts, vectors), qrels, halves, metric, steps, fused.modalities)
    single = max((way for way in ways if way.method == "alone"), key=lambda way: way.held_out)
    ways = [_compared(way, single, metric, seed) for way in ways]
    chosen = max((way for way in ways if way.method in ("sum", "concat")), key=lambda way: way.tuned)
    verdict: Verdict = "cannot tell" if chosen.p >= SURE else "helps" if chosen.difference > 0 else "hurts"
    best = single if chosen.difference <= 0 else chosen
    return Tuning(
        table=fused.shown, encoder=fused.encoder, metric=metric, seed=seed, steps=steps, rows=len(parts.ids),
        with_input={modality: int(units.any(axis=1).sum()) for modality, units in parts.units.items()},
        read=parts.read, encoded=parts.encoded, failed=parts.failed, unread=tuple(parts.unread),
        tuned_on=halves[0], held_out=halves[1], faults=(*questions.faults, *faults), ways=tuple(ways), single=single,
        chosen=chosen, verdict=verdict, sentence=_sentence(metric, single, chosen, verdict),
        attach=fused.attach(best.weights, best.method),
        at_query_time=_at_query_time(fused, ways),
    )  # fmt: skip


def _require_enough(count: int, questions: Questions, faults: Sequence[Fault] = ()) -> None:
    if count < LEAST_QUERIES:
        first = f" First fault: {faults[0]}" if faults else ""
        raise InvalidInput(
            f"Of the {len(questions.asked):,} queries of {questions.path} {count} can be asked and have a relevant row"
            f" in the judgments; tuning on a half and looking at the other needs {LEAST_QUERIES}.{first}",
            "Judge more queries; their ids must be those of the file of queries.",
        )


def _queries(
    db: Pgembed, fused: Fused, questions: Sequence[Question], on_progress: Callable[[int, int], None] | None
) -> tuple[dict[str, NDArray[np.float32]], list[Fault]]:
    """The vector of each query, and what could not be asked."""
    vectors: dict[str, NDArray[np.float32]] = {}
    faults: list[Fault] = []
    for number, question in enumerate(questions, start=1):
        try:
            query = question.query
            if any(isinstance(item, Row) for item in query.inputs):
                raise InvalidInput("It names a row, whose vector is already that of all inputs.")
            if any(isinstance(term.input, Changed) for term in query.terms):
                raise InvalidInput("It asks a composer.")
            encoded = db.encode(fused.encoder, tuple(dict.fromkeys(query.inputs)))
            vectors[question.id] = query.resolve(lambda item, encoded=encoded: encoded[item])
        except PgembedError as error:
            faults.append(Fault(question.line, question.id, error.message))
        if on_progress is not None:
            on_progress(number, len(questions))
    return vectors, faults


class Rankings:
    """The rankings of every way, of queries ``(q, dim)`` over rows that have their inputs apart."""

    def __init__(self, parts: Parts, queries: Mapping[str, NDArray[np.float32]]) -> None:
        self._ids = parts.ids
        self._place = {query: number for number, query in enumerate(queries)}
        asked = np.array([*queries.values()], dtype=np.float32)
        self._cosines = {modality: asked @ units.T for modality, units in parts.units.items()}
        self._there = {modality: units.any(axis=1) for modality, units in parts.units.items()}
        self._among = {
            (one, other): np.einsum("nd,nd->n", parts.units[one], parts.units[other])
            for one, other in product(parts.units, repeat=2)
        }
        self._legs = {modality: self._leg(modality) for modality in parts.units}

    def _leg(self, modality: str) -> NDArray[np.intp]:
        """The place of each row, from 1 on, for each query ``(q, n)``: 0 beyond the first 100."""
        scores = np.where(self._there[modality], self._cosines[modality], -np.inf)
        best = np.argsort(-scores, axis=1, kind="stable")[:, :DEPTH]
        places = np.zeros(scores.shape, dtype=np.intp)
        ranks = np.broadcast_to(np.arange(1, best.shape[1] + 1, dtype=np.intp), best.shape)
        np.put_along_axis(places, best, ranks, axis=1)
        return np.where(self._there[modality], places, 0)

    def of(self, method: Method, weights: Weights, queries: Sequence[str]) -> dict[str, list[tuple[str, float]]]:
        """The first 100 rows of each query, best first; a row without any of the inputs is never one."""
        scores = self._scores(method, weights, [self._place[query] for query in queries])
        found: dict[str, list[tuple[str, float]]] = {}
        for query, row in zip(queries, scores, strict=True):
            best = np.argsort(-row, kind="stable")[:DEPTH]
            found[query] = [(self._ids[n], float(row[n])) for n in best if math.isfinite(row[n])]
        return found

    def _scores(self, method: Method, weights: Weights, chosen: Sequence[int]) -> NDArray[np.float64]:
        """``(queries, n)``; minus infinity where a row cannot be found."""
        total = sum(weights.values())
        shares = {modality: weight / total for modality, weight in weights.items()}
        there = np.any([self._there[modality] for modality in shares], axis=0)
        mean = sum(share * self._cosines[modality][chosen].astype(np.float64) for modality, share in shares.items())
        match method:
            case "sum":  # over the length of the sum of unit vectors
                squares = sum(
                    shares[one] * shares[other] * self._among[one, other] for one in shares for other in shares
                )
                mean = mean / np.sqrt(np.maximum(squares, 1e-12))
            case "apart, by score":  # among the rows that any leg gives
                there = there & np.any([self._legs[modality][chosen] > 0 for modality in shares], axis=0)
            case "apart, by rank":
                places = {modality: self._legs[modality][chosen] for modality in shares}
                mean = sum(np.where(p > 0, shares[m] / (RANKS + np.maximum(p, 1)), 0.0) for m, p in places.items())
                there = there & np.any([place > 0 for place in places.values()], axis=0)
            case _:
                pass
        return np.where(there, mean, -np.inf)


def _ways(
    rankings: Rankings,
    qrels: Qrels,
    halves: tuple[Sequence[str], Sequence[str]],
    metric: str,
    steps: int,
    modalities: Sequence[str],
) -> list[Way]:
    def values(method: Method, weights: Weights, queries: Sequence[str]) -> dict[str, float]:
        return metrics.values(qrels, rankings.of(method, weights, queries), queries, [metric])[metric]

    def way(name: str, method: Method, weights: Weights) -> Way:
        tuned, held_out = (values(method, weights, half) for half in halves)
        return Way(name, method, weights, _mean(tuned), _mean(held_out), held_out)

    def best(method: Method) -> Weights:
        """Those that are best on the first half; of equals the ones nearest to equal weights."""
        return max(grid, key=lambda w: (round(_mean(values(method, w, halves[0])), 9), -np.ptp([*w.values()])))

    grid = list(_grid(modalities, steps))
    equal = dict.fromkeys(modalities, 1.0)
    return [
        *(way(f"{modality} alone", "alone", {modality: 1.0}) for modality in modalities),
        way("mean", "sum", equal),
        way("sum, best weights", "sum", best("sum")),
        way("concat, equal weights", "concat", equal),
        way("concat, best weights", "concat", best("concat")),
        way("apart, by score, best weights", "apart, by score", best("apart, by score")),
        way("apart, by rank, best weights", "apart, by rank", best("apart, by rank")),
    ]


def _grid(modalities: Sequence[str], steps: int) -> Iterator[dict[str, float]]:
    """Every split of 1 among the inputs, in multiples of 1/steps, that leaves none out."""
    for counts in product(range(1, steps), repeat=len(modalities) - 1):
        if (last := steps - sum(counts)) > 0:
            yield {m: round(n / steps, 6) for m, n in zip(modalities, (*counts, last), strict=True)}


def _compared(way: Way, single: Way, metric: str, seed: int) -> Way:
    if way is single:
        return way
    (found,) = compare({metric: single.values}, {metric: way.values}, seed=seed)
    return replace(way, difference=found.difference, p=found.p)


def _sentence(metric: str, single: Way, chosen: Way, verdict: Verdict) -> str:
    """Whether fusion helps."""
    weights = ", ".join(f"{modality} {weight:g}" for modality, weight in chosen.weights.items())
    p = f"= {chosen.p:.4f}" if chosen.p >= 0.0001 else "< 0.0001"
    figures = (
        f"on the {len(chosen.values):,} held-out queries {chosen.name.split(',')[0]} ({weights}) has {metric}"
        f" {chosen.held_out:.4f}, {single.name} {single.held_out:.4f} ({chosen.difference:+.4f}, p {p})"
    )
    if verdict == "cannot tell":
        return f"Whether fusion helps these queries cannot tell: {figures}."
    return f"Fusion {'helps' if verdict == 'helps' else 'does not help, it hurts'}: {figures}."


def _at_query_time(fused: Fused, ways: Sequence[Way]) -> str | None:
    """What says the same weights to an embedding whose vectors have parts already."""
    if fused.concat is None:
        return None
    weights = next(way.weights for way in ways if way.name == "concat, best weights")
    return f"weights={dict(weights)}"


def _mean(values: Mapping[str, float]) -> float:
    return float(np.mean([*values.values()]))
