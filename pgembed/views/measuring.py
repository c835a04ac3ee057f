"""What a view takes away, and what it leaves: a probe for an attribute, and recall, before and after."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from psycopg import sql
from psycopg.types.json import Jsonb

from pgembed import catalog
from pgembed.errors import InvalidInput
from pgembed.inputs import Text
from pgembed.plans import Call, Compute, Plan
from pgembed.views.probing import ProbeResult, Vectors, linear_probe, without
from pgembed.views.resolving import found_views

if TYPE_CHECKING:
    from pgembed.searching import Searcher

SAMPLE = 5000
NEIGHBOURS = 10
_AT_ONCE = 1000
_ROWS = sql.SQL("SELECT * FROM pgembed._view_sample(%s::regclass, %s::text[], %s, %s, %s, %s, %s)")
Similar = NDArray[np.float64]


@dataclass(frozen=True)
class Kept:
    """One measure of what is kept, from 0 to 1, without the view and with it in place; ``rows`` were asked."""

    measure: str
    rows: int
    before: float
    after: float


@dataclass(frozen=True)
class Probing:
    """What ``probe_view`` found: what a probe reads ``before`` and ``after`` the view is taken out; what is ``kept``.

    ``rows`` were looked at; the probe was told those with a value of the attribute.
    """

    view: str
    directions: int
    table: str
    embedding: str
    attribute: str
    rows: int
    before: ProbeResult
    after: ProbeResult
    kept: tuple[Kept, ...]


def probe_view(
    searcher: Searcher,
    name: str,
    table: str,
    attribute: str,
    *,
    embedding: str | None,
    where: str | None,
    params: Sequence[Any],
    group: str | None,
    fit: str | None,
    same: str | None,
    ask: str | None,
    sample: int,
    seed: int,
) -> Plan[Probing]:
    """What ``Pgembed.probe_view`` does, which says what the arguments are."""
    if group is not None and fit is not None:
        raise InvalidInput(
            "group= and fit= both say which rows a probe is fitted to.", "Give group= for folds, or fit= for one split."
        )
    if isinstance(sample, bool) or sample < 1:
        raise InvalidInput(f"sample is the number of rows to look at, at least 1, not {sample!r}.")
    target = yield from searcher.target(table, embedding)
    found = (yield from found_views(target, [name]))[name]
    asked = {"attribute": attribute, "group": group, "fit": fit, "same": same, "ask": ask}
    given = {key: expression for key, expression in asked.items() if expression is not None}
    rows = yield Call(
        _ROWS,
        [table, list(given.values()), embedding, where, Jsonb(list(params)) if params else None, sample, seed],
    )
    if not rows:
        raise InvalidInput(f"No row of {table} with a vector matches.", "Probe rows that have their vectors.")
    told = {key: [row["told"][place] for row in rows] for place, key in enumerate(given)}
    vectors = np.array([row["numbers"] for row in rows], dtype=np.float64)
    directions = np.stack([vector.values for vector in found.vectors]).astype(np.float64)
    queries: dict[int, NDArray[np.float64]] = {}
    if ask is not None:
        texts = {n: Text(words) for n, words in enumerate(told["ask"]) if words and words.strip()}
        encoder = yield from catalog.encoder(target.encoder)
        encoded = yield from searcher.encoded(encoder, list(dict.fromkeys(texts.values())))
        queries = {n: np.asarray(encoded[text], dtype=np.float64) for n, text in texts.items()}
    return (
        yield Compute(
            lambda: _measured(name, table, target.column, attribute, vectors, directions, told, queries, seed)
        )
    )


def _measured(
    name: str,
    table: str,
    embedding: str,
    attribute: str,
    vectors: Vectors,
    directions: Vectors,
    told: dict[str, list[str | None]],
    queries: dict[int, NDArray[np.float64]],
    seed: int,
) -> Probing:
    neutral = without(vectors, directions)
    probed = [n for n, value in enumerate(told["attribute"]) if value is not None]
    labels = [str(told["attribute"][n]) for n in probed]
    groups = [str(told["group"][n]) for n in probed] if "group" in told else None
    fit = [told["fit"][n] == "true" for n in probed] if "fit" in told else None
    before, after = (
        linear_probe(some[probed], labels, groups=groups, fit=fit, seed=seed) for some in (vectors, neutral)
    )
    has_value = np.array([value is not None for value in told["attribute"]])
    kept = [Kept(f"overlap@{NEIGHBOURS} of neighbours", len(vectors), 1.0, _overlap(vectors, neutral))]
    values = told["same"] if "same" in told else [str(n) for n in range(len(vectors))]
    numbers = {value: number for number, value in enumerate(dict.fromkeys(values))}
    same = np.array([-1 if value is None else numbers[value] for value in values])
    parts = ((f"without {attribute}", ~has_value), (f"with {attribute}", has_value))
    for part, chosen in parts:
        places = np.array([n for n in np.flatnonzero(chosen) if same[n] >= 0], dtype=np.intp)
        if "same" in told and len(places):
            found = [_nearest_same(some, same, places) for some in (vectors, neutral)]
            kept.append(Kept(f"nearest row has the same value of same, rows {part}", len(places), *found))
        places = np.array([n for n in places if n in queries], dtype=np.intp)
        if len(places):
            words = np.stack([queries[n] / max(float(np.linalg.norm(queries[n])), 1e-12) for n in places])
            ranks = [_ranks(vectors, words, same, places), _ranks(neutral, without(words, directions), same, places)]
            for k in (1, 10):
                kept.append(Kept(f"R@{k} by words, rows {part}", len(places), *(float((r < k).mean()) for r in ranks)))
    return Probing(name, len(directions), table, embedding, attribute, len(vectors), before, after, tuple(kept))


def _blocks(
    queries: Vectors, rows: Vectors, own: NDArray[np.intp] | None = None
) -> Iterator[tuple[NDArray[np.intp], Similar]]:
    """The similarities of some queries at a time to all rows, and their places; to their ``own`` row it is least."""
    for first in range(0, len(queries), _AT_ONCE):
        places = np.arange(first, min(first + _AT_ONCE, len(queries)))
        similar = queries[places] @ rows.T
        if own is not None:
            similar[np.arange(len(places)), own[places]] = -np.inf
        yield places, similar


def _overlap(before: Vectors, after: Vectors) -> float:
    """How many of the nearest rows of a row are still among its nearest, on average."""
    k = min(NEIGHBOURS, len(before) - 1)
    if k < 1:
        return 1.0
    own, shared = np.arange(len(before)), 0
    for (places, one), (_, other) in zip(_blocks(before, before, own), _blocks(after, after, own), strict=True):
        nearest = [np.argpartition(-similar, k - 1, axis=1)[:, :k] for similar in (one, other)]
        shared += sum(len(set(nearest[0][n]) & set(nearest[1][n])) for n in range(len(places)))
    return shared / (k * len(before))


def _nearest_same(vectors: Vectors, same: NDArray[Any], places: NDArray[np.intp]) -> float:
    """Of how many rows the nearest other one has the same value."""
    right = 0
    for some, similar in _blocks(vectors[places], vectors, places):
        right += int((same[similar.argmax(axis=1)] == same[places[some]]).sum())
    return right / len(places)


def _ranks(rows: Vectors, words: Vectors, same: NDArray[Any], places: NDArray[np.intp]) -> NDArray[np.intp]:
    """How many rows with another value come before the first with the right one, or are as near."""
    ranks: list[int] = []
    for some, similar in _blocks(words, rows):
        for scores, place in zip(similar, places[some], strict=True):
            right = same == same[place]
            ranks.append(int((scores[~right] >= scores[right].max()).sum()))
    return np.array(ranks)
