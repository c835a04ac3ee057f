"""The rows that a search gives."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from pgembed.errors import InvalidQuery

if TYPE_CHECKING:
    from psycopg import AsyncCursor, Cursor


class SearchRow(Mapping[str, Any]):
    """A row that was found: ``row.score``, ``row.title``; ``row["odd name"]`` for any name; ``dict(row)`` for all."""

    __slots__ = ("_index", "_values")

    def __init__(self, index: Mapping[str, int], values: Sequence[Any]) -> None:
        self._index = index
        self._values = values

    def __getitem__(self, name: str) -> Any:  # noqa: ANN401
        return self._values[self._index[name]]

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        if name in SearchRow.__slots__ or name.startswith("__"):  # being copied, or asked for by a protocol
            raise AttributeError(name)
        if name in self._index:
            return self[name]
        raise AttributeError(f"This row has no column '{name}'; it has {', '.join(self._index)}.", name=name, obj=self)

    def __iter__(self) -> Iterator[str]:
        return iter(self._index)

    def __len__(self) -> int:
        return len(self._index)

    def __dir__(self) -> Iterable[str]:
        return [*super().__dir__(), *(name for name in self._index if name.isidentifier())]

    def without(self, prefix: str) -> SearchRow:
        """The same without the columns whose names begin so."""
        return SearchRow({name: n for name, n in self._index.items() if not name.startswith(prefix)}, self._values)

    def scored(self, score: float) -> SearchRow:
        """The same with another score."""
        values = [*self._values]
        values[self._index["score"]] = score
        return SearchRow(self._index, values)

    def __repr__(self) -> str:
        return f"SearchRow({', '.join(f'{name}={value!r}' for name, value in self.items())})"


def reranked(rows: Sequence[SearchRow], scores: Sequence[float]) -> list[SearchRow]:
    """The rows by these scores, which become theirs; equal ones stay in their order. Raises InvalidQuery where there is
    not one finite score for each."""
    finite = sum(map(math.isfinite, scores))
    if len(scores) != len(rows) or finite != len(rows):
        raise InvalidQuery(
            f"rerank gave {len(scores)} scores for {len(rows)} rows, of which {finite} are finite.",
            "Return a finite number for each row, in their order.",
        )
    return [rows[n].scored(scores[n]) for n in sorted(range(len(rows)), key=lambda n: -scores[n])]


def search_row_factory(cursor: Cursor[Any] | AsyncCursor[Any]) -> Callable[[Sequence[Any]], SearchRow]:
    """A row factory of psycopg that makes SearchRows."""
    result = cursor.pgresult
    if result is None or not result.nfields:
        return partial(SearchRow, {})
    encoding = cursor.connection.info.encoding  # names from the result itself: a description costs as much as the rows
    names = [(result.fname(number) or b"").decode(encoding) for number in range(result.nfields)]
    return partial(SearchRow, {name: number for number, name in enumerate(names)})
