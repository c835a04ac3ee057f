"""A published dataset of composed retrieval, one encoder, one way of composing: the official figures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pgembed.encoders import Encoder
from pgembed.errors import InvalidInput
from pgembed.evaluate.cir.circo import CIRCO
from pgembed.evaluate.cir.cirr import CIRR
from pgembed.evaluate.cir.dataset import TOP, Composed, Dataset, Figures, Found, Part
from pgembed.evaluate.cir.fashioniq import FASHIONIQ
from pgembed.evaluate.cir.genecis import GENECIS
from pgembed.evaluate.cir.vectors import Progress, Store, Vectors
from pgembed.evaluate.cir.ways import Way
from pgembed.inputs import Input, Vector

DATASETS = {dataset.name: dataset for dataset in (FASHIONIQ, CIRR, CIRCO, GENECIS)}
_BLOCK = 256  # queries scored at once: with CIRCO's 123,403 photographs 126 MB
Bar = Callable[[str], AbstractContextManager[Progress | None]]


@dataclass(frozen=True)
class Asking:
    """How a query is made of a picture and a caption: the way, its weight, what stands around the caption (``{}``), and
    the words that ``swap`` takes out."""

    way: Way
    weight: float
    prompt: str = "{}"
    old: str | None = None

    def words(self, query: Composed) -> str:
        """The caption as it is encoded."""
        return self.prompt.replace("{}", query.caption)


@dataclass(frozen=True)
class PartResult:
    """One part's figures; ``figures`` is empty where the answers are not published."""

    name: str
    queries: int
    gallery: int
    figures: Figures


@dataclass(frozen=True)
class Result:
    """The figures of all parts, their summary, the files for the dataset's server, and what could not be read."""

    parts: tuple[PartResult, ...]
    summary: Figures
    submissions: Mapping[str, Mapping[str, Any]]
    unread: tuple[str, ...]  # pictures, and why
    left_out: tuple[str, ...]  # queries that could not be composed, and why


def dataset_named(name: str, split: str | None) -> tuple[Dataset, str]:
    """The dataset, and its split: the one named, or its first. Raises InvalidInput."""
    if name not in DATASETS:
        raise InvalidInput(f"'{name}' is no dataset that is known here.", f"Datasets: {', '.join(DATASETS)}.")
    dataset = DATASETS[name]
    chosen = split or dataset.splits[0]
    if chosen not in dataset.splits:
        raise InvalidInput(
            f"'{chosen}' is no split of {name} to be measured on.", f"Splits: {', '.join(dataset.splits)}."
        )
    return dataset, chosen


def evaluate_composed(
    dataset: Dataset, folder: Path, split: str, encoder: Encoder, asking: Asking, cache: Path, bar: Bar
) -> Result:
    """Encode what is not in ``cache`` yet, rank, and measure. ``bar`` gives a progress callback for what it is told.

    Raises InvalidInput where the folder has another layout, UnsupportedModality where the encoder takes no pictures or
    no text.
    """
    if asking.way.takes_old and asking.old is None:
        raise InvalidInput(f"The way {asking.way.name} needs words to take out.", 'Give them: --old "a photo"')
    if "{}" not in asking.prompt:
        raise InvalidInput(
            f"The prompt {asking.prompt!r} has no place for the caption.", 'Write --prompt "a photo, {}"'
        )
    parts = dataset.read(folder, split)
    store = Store(encoder, cache)
    unread: dict[str, None] = {}
    results: list[PartResult] = []
    all_found: list[Found] = []
    left_out: list[str] = []
    words = [asking.words(query) for part in parts for query in part.queries]
    with bar("captions") as on_progress:
        texts, wordless = store.texts([*words, *([asking.old] if asking.old else [])], on_progress)
    if asking.old in wordless:
        raise InvalidInput(wordless[asking.old], "Take out other words: --old WORDS")
    for part in parts:
        with bar(f"{part.name}: pictures") as on_progress:
            rows, faults = store.photos([*part.photos.values()], "document", on_progress)
        unread.update(dict.fromkeys(faults.values()))
        asked = [part.photos[query.reference] for query in part.queries if query.reference in part.photos]
        with bar(f"{part.name}: references") as on_progress:
            references, _ = store.photos(asked, "query", on_progress)
        vectors = {name: rows[photo] for name, photo in part.photos.items() if photo in rows}
        kept: list[Composed] = []
        queries: list[Vectors] = []
        for query in part.queries:
            photo = part.photos.get(query.reference)
            try:
                if photo not in references:
                    raise InvalidInput(f"the reference {query.reference} cannot be read.")
                if (fault := wordless.get(asking.words(query))) is not None:
                    raise InvalidInput(fault)
                queries.append(_vector(query, references[photo], texts, asking))
                kept.append(query)
            except InvalidInput as error:
                left_out.append(f"{part.name}, query {query.id}: {error.message}")
        if not kept:
            raise InvalidInput(
                f"No query of {part.name} can be composed; {left_out[0] if left_out else 'there is none'}",
                f"The layout is: {dataset.layout}",
            )
        found = rank(part, kept, np.stack(queries), vectors)
        all_found += found
        known = all(query.targets for query in kept)
        figures = dataset.measure(found) if known else {}
        gallery = sum(name in vectors for name in part.gallery) or max(len(query.members) for query in kept)
        results.append(PartResult(part.name, len(kept), gallery, figures))
    figures = [result.figures for result in results if result.figures]
    return Result(
        parts=tuple(results),
        summary=dataset.summary(figures) if len(figures) > 1 else {},
        submissions=dataset.submissions(all_found) if dataset.submissions else {},
        unread=tuple(unread),
        left_out=tuple(left_out),
    )


def rank(part: Part, queries: Sequence[Composed], vectors: NDArray[Any], photos: Mapping[str, Vectors]) -> list[Found]:
    """What unit vectors ``(n, dim)`` of the queries find by cosine; of equals the first of the gallery."""
    names = [name for name in part.gallery if name in photos]
    places = {name: place for place, name in enumerate(names)}
    gallery = _unit(np.stack([photos[name] for name in names])) if names else None
    found: list[Found] = []
    for start in range(0, len(queries), _BLOCK):
        block = queries[start : start + _BLOCK]
        scores = None if gallery is None else vectors[start : start + _BLOCK] @ gallery.T
        for number, query in enumerate(block):
            top: list[str] = []
            if scores is not None:
                row = scores[number]
                if part.without_reference and query.reference in places:
                    row[places[query.reference]] = -np.inf
                top = [names[place] for place in _first(row, TOP) if np.isfinite(row[place])]
            members: list[str] = [name for name in query.members if name in photos]
            if members:
                own = _unit(np.stack([photos[name] for name in members])) @ vectors[start + number]
                members = [members[place] for place in np.argsort(-own, kind="stable")]
            found.append(Found(query, top, members))
    return found


def _first(scores: NDArray[Any], k: int) -> NDArray[np.intp]:
    """The places of the k highest scores, highest first, of equals the first."""
    if scores.size <= 4 * k:
        return np.argsort(-scores, kind="stable")[:k]
    least = np.partition(scores, -k)[-k]
    candidates = np.flatnonzero(scores >= least)
    return candidates[np.argsort(-scores[candidates], kind="stable")][:k]


def _vector(query: Composed, reference: Vectors, texts: Mapping[str, Vectors], asking: Asking) -> Vectors:
    words = Vector(texts[asking.words(query)])
    old = Vector(texts[asking.old]) if asking.old else None
    composed = asking.way.compose(Vector(reference), words, old, asking.weight)
    return composed.resolve(_itself)


def _itself(vector: Input) -> NDArray[np.float32]:
    assert isinstance(vector, Vector)
    return vector.values


def _unit(vectors: NDArray[Any]) -> NDArray[np.float32]:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / np.where(lengths > 0, lengths, 1)).astype(np.float32)
