"""How a search of an embedding with parts is written: each row once, with its nearest part."""

from __future__ import annotations

from functools import cached_property
from typing import LiteralString

from psycopg import sql

from pgembed.query.statement import Target, quoted, unused
from pgembed.query.texts import (
    CANDIDATES,
    MATCHES,
    Shape,
    Texts,
    parameter_place,
    rendered,
    same_row,
    side_rows,
    spelled,
)

PART_COLUMNS = ("part", "kind", "location", "content")  # of the part that answers, in each row
_AT_ONCE = 4  # times the rows wanted, the parts that are asked of an index in one statement
_DISTANCE = "pgembed distance"


class PartTexts(Texts):
    """The SQL of searches of one shape."""

    def __init__(self, target: Target, shape: Shape) -> None:
        super().__init__(target, shape)
        taken = set(self.columns)
        self._own_parts = [(f"pgembed {name}", unused(name, taken)) for name in PART_COLUMNS]
        self._read += [quoted(own) for own, _ in self._own_parts]
        self._output += [spelled(quoted(own), " AS ", quoted(name)) for own, name in self._own_parts]

    @cached_property
    def among(self) -> sql.Composed:
        """The nearest of the matching rows among as many parts of the index as the last parameter says."""
        looked = self._nearest(self._vector, candidates=parameter_place(self._named, CANDIDATES))
        cut = sql.SQL("") if self._paged else spelled("\nLIMIT ", self._page)
        return rendered(spelled(self._select(looked), cut))

    @property
    def _source(self) -> sql.Identifier:
        return quoted(self._target.schema, self._target.table)

    def _side(self) -> sql.Composed:
        assert self._target.side is not None
        return side_rows(self._target.side, *PART_COLUMNS)

    def _nearest(
        self,
        vector: sql.Composable,
        *,
        exact: bool = False,
        unless: LiteralString = "",
        candidates: sql.Composable | None = None,
    ) -> sql.Composed:
        """The nearest rows, at most ``limit``; with ``candidates``, those that match among so many parts."""
        distance = spelled(self._compared, *self._operator, "(SELECT ", vector, ")")
        read = sql.SQL(", ").join(self._read)
        if exact:
            part = spelled(
                "SELECT *, 0 + (", distance, ") AS ", quoted(_DISTANCE), " FROM (", self._side(), ") AS p WHERE ",
                same_row(self._target), " ORDER BY ", quoted(_DISTANCE), ", ", quoted("pgembed part"), " LIMIT 1",
            )  # fmt: skip
            every = self._shape.after is not None
            order = self._distance if self._shape.joins else self._order
            last = sql.SQL("") if every else spelled("\n    ORDER BY ", order, *self._first(None))
            return spelled(
                "    SELECT ", read, ", ", quoted(_DISTANCE), " AS ", self._distance, "\n    FROM ", self._source,
                "\n    CROSS JOIN LATERAL (", part, ') AS "pgembed side"', self.joins, "\n    WHERE ", self._where,
                unless, last,
            )  # fmt: skip
        keys = sql.SQL(", ").join(map(quoted, self._target.keys))
        looked = spelled(
            "SELECT ", read, ", ", distance, " AS ", self._distance, ", ", self._matches, " AS ", quoted(MATCHES),
            "\n    FROM ", self._source, "\n    JOIN (", self._side(), ') AS "pgembed side" ON ',
            same_row(self._target), "\n    WHERE ", self._present, "\n    ORDER BY ", self._distance, "\n    LIMIT ",
            candidates or sql.Literal(max(40, _AT_ONCE * self._wanted)),
        )  # fmt: skip
        best = spelled(
            "SELECT DISTINCT ON (", keys, ") *\n    FROM (", looked, ") AS looked WHERE ", quoted(MATCHES), unless,
            "\n    ORDER BY ", keys, ", ", self._distance,
        )  # fmt: skip
        columns = [quoted(name) for name in self._read_names] + [quoted(own) for own, _ in self._own_parts]
        return spelled(
            "    SELECT ", sql.SQL(", ").join([*columns, self._distance]), " FROM (", best, ") AS best\n    ORDER BY ",
            self._distance, *self._first(None),
        )  # fmt: skip
