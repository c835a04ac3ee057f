"""What published datasets of composed retrieval have in common: pictures, and queries of a picture and a change."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pgembed.errors import InvalidInput

SUFFIXES = (".jpg", ".png", ".jpeg", ".webp")
TOP = 50  # the deepest cutoff of any of the official metrics, and what their servers take


@dataclass(frozen=True)
class Photo:
    """A picture of a dataset: a file, or the crop of one (left, top, width, height in pixels)."""

    path: Path
    box: tuple[float, float, float, float] | None = None


@dataclass(frozen=True)
class Composed:
    """One query: a reference picture by name, and words for what is to change.

    ``targets`` are the right answers, none in a split whose answers are not published; ``members`` the pictures of a
    small gallery of its own, where the dataset has one.
    """

    id: str
    reference: str
    caption: str
    targets: tuple[str, ...] = ()
    members: tuple[str, ...] = ()


@dataclass(frozen=True)
class Part:
    """A part that has figures of its own: a category, a task, or the whole.

    ``gallery`` are the names ranked for every query; empty where each query has its own. ``without_reference`` leaves
    the reference out of the ranking.
    """

    name: str
    photos: Mapping[str, Photo]
    queries: tuple[Composed, ...]
    gallery: tuple[str, ...] = ()
    without_reference: bool = False


@dataclass(frozen=True)
class Found:
    """What a query finds, best first: ``top`` of the gallery, at most 50, and all its ``members``."""

    query: Composed
    top: Sequence[str]
    members: Sequence[str]


Figures = dict[str, float]


@dataclass(frozen=True)
class Dataset:
    """A published dataset: how it is read, what is measured, and what its server takes."""

    name: str
    splits: tuple[str, ...]
    layout: str
    read: Callable[[Path, str], list[Part]]
    measure: Callable[[Sequence[Found]], Figures]
    summary: Callable[[Sequence[Figures]], Figures]
    submissions: Callable[[Sequence[Found]], dict[str, dict[str, Any]]] | None = None
    remarks: list[str] = field(default_factory=list[str])


def load_json(path: Path, layout: str) -> Any:  # noqa: ANN401
    """A file of annotations. Raises InvalidInput, which tells the layout, where it is not there or no JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InvalidInput(f"{path} is not there.", f"The layout is: {layout}") from None
    except (OSError, ValueError) as error:
        raise InvalidInput(f"{path} cannot be read: {error}.") from None


def fields_of(record: Mapping[str, Any], path: Path, *names: str) -> list[Any]:
    """These fields of an annotation. Raises InvalidInput for one that it does not have."""
    if lacking := [name for name in names if name not in record]:
        raise InvalidInput(f"{path} holds an annotation without {lacking[0]}: {json.dumps(record)[:120]}.")
    return [record[name] for name in names]


def first_folder(candidates: Sequence[Path], layout: str) -> Path:
    """The first of these folders that is there. Raises InvalidInput."""
    for folder in candidates:
        if folder.is_dir():
            return folder
    tried = ", ".join(str(folder) for folder in candidates)
    raise InvalidInput(f"None of these folders of pictures is there: {tried}.", f"The layout is: {layout}")


def photo_named(name: str, folders: Sequence[Path]) -> Photo:
    """The picture of that name without its ending in one of the folders; in the first, where it is in none."""
    for folder in folders:
        for suffix in SUFFIXES:
            if (path := folder / f"{name}{suffix}").is_file():
                return Photo(path)
    return Photo(folders[0] / f"{name}{SUFFIXES[0]}")


def recall(found: Sequence[Found], k: int, *, members: bool = False) -> float:
    """The share of queries one of whose targets is among the first k."""
    if not found:
        return float("nan")
    hits = [not set(each.query.targets).isdisjoint((each.members if members else each.top)[:k]) for each in found]
    return sum(hits) / len(hits)


def mean_of(figures: Sequence[Figures]) -> Figures:
    """The mean of each figure over the parts."""
    return {name: sum(each[name] for each in figures) / len(figures) for name in figures[0]} if figures else {}
