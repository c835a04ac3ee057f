"""Queries and judgments in BEIR's layout: ``queries.jsonl`` and ``qrels/test.tsv``, or ``qrels.tsv``.

A line of queries has ``_id`` and what is asked: ``text``, ``image``, ``screenshot`` (paths relative to the file),
several of these, which are summed, or ``query``, a composed query as JSON (pgembed.query.wire). The rows stand in the
table, so ``corpus.jsonl`` is not read: the ids of the judgments are those of rows.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any, cast

from pgembed.errors import InvalidInput, PgembedError
from pgembed.inputs import URL, Expression, Image, Screenshot, Text
from pgembed.query.wire import from_json
from pgembed.shown import shortened

Qrels = Mapping[str, Mapping[str, int]]
"""Query id -> row id -> grade: 0 or less is not relevant."""

_FORMS = '"text", "image", "screenshot" or "query"'
_PLACES = ("qrels", "qrels.tsv", "qrels.txt")


@dataclass(frozen=True)
class Fault:
    """A query that was not asked: its line in the file, its id as far as it has one, and why."""

    line: int
    id: str
    reason: str

    def __str__(self) -> str:
        return f"line {self.line}, query {self.id}: {self.reason}"


@dataclass(frozen=True)
class Question:
    """One query of a file."""

    id: str
    line: int
    query: Expression
    words: str | None = None  # the line's text, where it has one


@dataclass(frozen=True)
class Questions:
    """The queries of a file, in its order, and those that cannot be asked."""

    path: Path
    asked: tuple[Question, ...]
    faults: tuple[Fault, ...] = field(default=())


def read_queries(path: Path) -> Questions:
    """Read ``queries.jsonl``. A line at fault stops no other. Raises InvalidInput where no query is left."""
    asked: dict[str, Question] = {}
    faults: list[Fault] = []
    for number, line in _lines(path):
        identity = "?"
        try:
            fields = _object(line)
            identity = _id_of(fields)
            if identity in asked:
                raise InvalidInput(f"its id stands in line {asked[identity].line} too.")
            asked[identity] = Question(identity, number, _query(fields, path.parent), fields.get("text"))
        except PgembedError as error:
            faults.append(Fault(number, identity, error.message))
    if not asked:
        first = f" First fault: {faults[0]}" if faults else ""
        raise InvalidInput(f"{path} holds no query that can be asked.{first}", f"A line has _id and {_FORMS}.")
    return Questions(path, tuple(asked.values()), tuple(faults))


def read_qrels(path: Path) -> dict[str, dict[str, int]]:
    """Read judgments: BEIR's three columns under a header, or TREC's four. Raises InvalidInput, with the line."""
    grades: dict[str, dict[str, int]] = {}
    for number, line in _lines(path):
        parts = line.rstrip("\r\n").split("\t") if "\t" in line else line.split()
        if number == 1 and parts[0] in ("query-id", "query_id", "qid"):
            continue
        if len(parts) not in (3, 4):
            raise InvalidInput(
                f"{path}, line {number}: {shortened(line.strip())!r} has {len(parts)} columns.",
                "Write query id, row id and grade, with tabs between (BEIR), or query id, 0, row id and grade (TREC).",
            )
        query, row, grade = parts[0], parts[-2], parts[-1]
        try:
            grades.setdefault(query, {})[row] = int(grade)
        except ValueError:
            raise InvalidInput(f"{path}, line {number}: the grade {grade!r} is not a whole number.") from None
    if not grades:
        raise InvalidInput(f"{path} holds no judgment.")
    return grades


def find_qrels(folder: Path, split: str | None = None) -> Path:
    """The file of judgments in a folder of BEIR's layout: of one split, of the test split, or the only one there is.

    Raises InvalidInput.
    """
    there = [folder / name for name in _PLACES if (folder / name).exists()]
    if not there:
        raise InvalidInput(f"{folder} has neither {' nor '.join(_PLACES)}.", "Name the judgments: --qrels FILE")
    if there[0].is_file():
        return there[0]
    splits = {file.stem: file for file in sorted(there[0].glob("*.tsv"))}
    chosen = split or ("test" if "test" in splits else next(iter(splits)) if len(splits) == 1 else None)
    if chosen not in splits:
        named = ", ".join(splits) or "none"
        raise InvalidInput(f"{there[0]} has no split {chosen or 'test'}; it has {named}.", "Choose one: --split NAME")
    return splits[chosen]


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines that are not empty, with their numbers from 1 on."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, line
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{path} cannot be read: {error}.", "Give a file of text in UTF-8.") from None


def _object(line: str) -> Mapping[str, Any]:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise InvalidInput(f"it is not JSON: {error}.") from None
    if not isinstance(value, dict):
        raise InvalidInput("it is not a JSON object.")
    return cast("Mapping[str, Any]", value)


def _id_of(fields: Mapping[str, Any]) -> str:
    value = fields.get("_id", fields.get("id"))
    if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
        raise InvalidInput("it has no _id.")
    return str(value)


def _query(fields: Mapping[str, Any], folder: Path) -> Expression:
    composed = fields.get("query")
    parts: list[Expression] = []
    if composed is not None:
        parts.append(from_json(cast("Mapping[str, Any]", _with_folder(composed, folder)), paths=True))
    for name, kind in (("text", Text), ("image", Image), ("screenshot", Screenshot)):
        if (value := fields.get(name)) is None:
            continue
        if not isinstance(value, str):
            raise InvalidInput(f"its {name} is {shortened(repr(value), 40)}, not text.")
        parts.append(kind(value if kind is Text else _placed(value, folder)))
    if not parts:
        raise InvalidInput(f"it asks nothing: {_FORMS} says what.")
    return reduce(add, parts)


def _with_folder(value: object, folder: Path) -> object:
    """A query as JSON, with the files that it names below the folder of the file that holds it."""
    if isinstance(value, list):
        return [_with_folder(item, folder) for item in cast("list[object]", value)]
    if not isinstance(value, dict):
        return value
    fields = {name: _with_folder(item, folder) for name, item in cast("dict[str, object]", value).items()}
    if fields.get("kind") == "path":
        for name in ("image", "screenshot"):
            if isinstance(source := fields.get(name), str):
                fields[name] = _placed(source, folder)
    return fields


def _placed(source: str, folder: Path) -> str:
    return source if URL.match(source) else str(folder / source)
