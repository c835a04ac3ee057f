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
_TOGETHER: dict[str, LiteralString] = {  # of the distances of several parts one, whose score is the sum of theirs
    "cosine": '1 - sum(1 - "pgembed distance") OVER ()', "ip": 'sum("pgembed distance") OVER ()',
    "l2": '- sum(1 / (1 + "pgembed distance")) OVER ()',
}  # fmt: skip


class PartTexts(Texts):
    """The SQL of searches of one shape."""

    def __init__(self, target: Target, shape: Shape) -> None:
        super().__init__(target, shape)
        taken = set(self.columns)
        self._own_parts = [(f"pgembed {name}", unused(name, taken)) for name in PART_COLUMNS]
        self._read += [quoted(own) for own, _ in self._own_parts]
        self._output += [spelled(quoted(own), " AS ", quoted(name)) for own, name in self._own_parts]

    @cached_property
    def nearest(self) -> sql.Composed:
        """The rows nearest to the query, as the index has them."""
        return rendered(spelled(self._asked, self._select(self._nearest(self._query))))

    @cached_property
    def among(self) -> sql.Composed:
        """The nearest of the matching rows among as many parts of the index as the last parameter says."""
        looked = self._nearest(self._query, candidates=parameter_place(self._named, CANDIDATES))
        cut = sql.SQL("") if self._paged else spelled("\nLIMIT ", self._page)
        return rendered(spelled(self._asked, self._select(looked), cut))

    @property
    def _is_coarse(self) -> bool:
        return self._target.quantization in ("half", "binary")

    @property
    def _compares_twice(self) -> bool:
        return self._is_coarse or self._shape.best > 1

    @property
    def _query(self) -> sql.Composable:
        """The query's vector; where it is compared twice it is computed before."""
        return sql.SQL('vector FROM "pgembed query"') if self._compares_twice else self._vector

    @property
    def _asked(self) -> sql.Composed:
        if not self._compares_twice:
            return sql.Composed([])
        return spelled('WITH "pgembed query" AS MATERIALIZED (\n    SELECT ', self._vector, " AS vector\n)\n")

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
        if exact:
            return self._every(distance, spelled(self._where, unless), paged=self._shape.after is not None)
        keys = sql.SQL(", ").join(map(quoted, self._target.keys))
        near = self._coarse(vector) if self._is_coarse else distance
        looked = spelled(
            "SELECT ", sql.SQL(", ").join(self._read), ", ", near, " AS ", self._distance, ", ", self._matches, " AS ",
            quoted(MATCHES), "\n    FROM ", self._source, "\n    JOIN (", self._side(), ') AS "pgembed side" ON ',
            same_row(self._target), "\n    WHERE ", self._present, "\n    ORDER BY ", self._distance, "\n    LIMIT ",
            candidates or sql.Literal(max(40, _AT_ONCE * self._wanted)),
        )  # fmt: skip
        if self._compares_twice:  # of the rows found all parts are compared, by their vectors
            found = spelled("SELECT ", keys, " FROM (", looked, ") AS looked WHERE ", quoted(MATCHES))
            return self._every(distance, spelled("(", keys, ") IN (", found, ")", unless))
        best = spelled(
            "SELECT DISTINCT ON (", keys, ") *\n    FROM (", looked, ") AS looked WHERE ", quoted(MATCHES), unless,
            "\n    ORDER BY ", keys, ", ", self._distance,
        )  # fmt: skip
        columns = [quoted(name) for name in self._read_names] + [quoted(own) for own, _ in self._own_parts]
        return spelled(
            "    SELECT ", sql.SQL(", ").join([*columns, self._distance]), " FROM (", best, ") AS best\n    ORDER BY ",
            self._distance, *self._first(None),
        )  # fmt: skip

    def _every(self, distance: sql.Composable, where: sql.Composable, *, paged: bool = False) -> sql.Composed:
        """The rows, each compared by its nearest part, or by as many as count; all that come after a place where they
        are ``paged``."""
        near = spelled(
            "SELECT *, 0 + (", distance, ") AS ", quoted(_DISTANCE), " FROM (", self._side(), ") AS p WHERE ",
            same_row(self._target), " ORDER BY ", quoted(_DISTANCE), ", ", quoted("pgembed part"), " LIMIT ",
            sql.Literal(self._shape.best),
        )  # fmt: skip
        compared: sql.Composable = quoted(_DISTANCE)
        if self._shape.best > 1:
            together = spelled(_TOGETHER[self._target.metric], " AS ", quoted("pgembed together"))
            near = spelled(
                "SELECT *, ", together, " FROM (", near, ") AS counted ORDER BY ", quoted(_DISTANCE), ", ",
                quoted("pgembed part"), " LIMIT 1",
            )  # fmt: skip
            compared = quoted("pgembed together")
        order = self._distance if self._shape.joins else self._order
        last = sql.SQL("") if paged else spelled("\n    ORDER BY ", order, *self._first(None))
        return spelled(
            "    SELECT ", sql.SQL(", ").join(self._read), ", ", compared, " AS ", self._distance, "\n    FROM ",
            self._source, "\n    CROSS JOIN LATERAL (", near, ') AS "pgembed side"', self.joins, "\n    WHERE ", where,
            last,
        )  # fmt: skip

    def _coarse(self, vector: sql.Composable) -> sql.Composed:
        """The distance by what an index of less than full precision holds, as ``pgembed._coarse_sql`` writes it."""
        target, dim = self._target, sql.Literal(self._target.dim)
        stored, asked = quoted("pgembed vector"), spelled("(SELECT ", vector, ")")
        if target.quantization == "half":
            kind = spelled("::", self._of_vector("halfvec"), "(", dim, ")")
            return spelled(stored, kind, *self._operator, asked, kind)
        signs, kind = self._of_vector("binary_quantize"), spelled("::bit(", dim, ")")
        nearer = spelled(" OPERATOR(", quoted(target.vector_schema), ".<~>) ") if target.vector_schema else " <~> "
        return spelled(signs, "(", stored, ")", kind, nearer, signs, "(", asked, ")", kind)
