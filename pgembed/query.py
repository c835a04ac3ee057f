"""A query expression, a filter and a limit -> SQL and its parameters. No I/O: the clients run what is compiled here.

A query vector is always written as a scalar subquery, ``<=> (SELECT …)``, so that it is computed once a statement; a
bare function there runs once for each row that is compared.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, LiteralString, cast

import numpy as np
from psycopg import sql

from pgembed.errors import InvalidQuery
from pgembed.inputs import Expression, Input, Text, Vector
from pgembed.vectors import PackedVector, pack_one

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from psycopg import AsyncCursor, Cursor

    from pgembed.encoders.base import Metric

Parameters = Sequence[Any] | Mapping[str, Any]
Values = tuple[Any, ...] | dict[str, Any]

EF_SEARCH = 40  # what an HNSW index gives at most in one round, by pgvector's default
_OPERATORS: dict[str, LiteralString] = {"cosine": "<=>", "ip": "<#>", "l2": "<->"}
_SCORES: dict[str, LiteralString] = {"cosine": "1 - ", "ip": "-", "l2": "-"}
_PLACEHOLDER = re.compile(r"%(?:\((?P<name>[^)]*)\)[sbt]|(?P<plain>[sbt])|(?P<percent>%))")
_QUOTED = re.compile(
    r"(?<![\w$])[eE]'(?:[^'\\]|\\.|'')*'|'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"|(?<![\w$])(\$(?:[^\W\d]\w*)?\$).*?\1",
    re.DOTALL,
)


@dataclass(frozen=True)
class Statement:
    """SQL and its parameters, for anybody's connection: ``conn.execute(statement.text, statement.params)``.

    ``values`` are the parameters with vectors in pgvector's binary form, which is quicker on connections that
    ``pgembed.vectors.register_packed`` has prepared; in ``params`` they are text, which every connection takes.
    """

    text: sql.Composed
    values: Values = ()

    @cached_property
    def params(self) -> Values:
        """The parameters, vectors as text: ``[0.1,0.2]``."""
        if isinstance(self.values, dict):
            return {name: _plain(value) for name, value in self.values.items()}
        return tuple(_plain(value) for value in self.values)

    def as_string(self) -> str:
        """The SQL with its parameters in place, to be read, or run in psql."""
        plain = iter(self.params.values() if isinstance(self.params, dict) else self.params)

        def literal(match: re.Match[str]) -> str:
            if match["percent"]:
                return "%"
            value = self.params[match["name"]] if isinstance(self.params, dict) else next(plain)
            return sql.Literal(value).as_string(None)

        return _PLACEHOLDER.sub(literal, self.text.as_string(None))


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a searched table; a wide one (bytea, vectors) is read only when asked for."""

    name: str
    wide: bool = False


@dataclass(frozen=True, slots=True)
class Target:
    """What is searched: an embedding, its table and its encoder, as the catalog has them.

    ``static_text`` tells that Postgres computes the vectors of texts itself. ``vector_schema`` is where the vector
    extension lives, or None where the search path finds it.
    """

    schema: str
    table: str
    column: str
    encoder: str
    space: str
    dim: int
    columns: tuple[Column, ...]
    keys: tuple[str, ...] = ()
    metric: Metric = "cosine"
    static_text: bool = False
    vector_schema: str | None = None
    half: bool = False  # the column is a halfvec
    row_security: bool = False  # policies filter what is read

    @property
    def name(self) -> str:
        """``product.embedding``, for messages."""
        return f"{self.table}.{self.column}"


@dataclass(frozen=True)
class SearchPlan:
    """What a client runs.

    Where ``settings`` is given it is run first, in the same transaction: its one row tells what was set before, for
    ``restore`` where the transaction is the caller's. Then ``statement``; where that gives fewer than ``limit`` rows,
    ``exact``, which compares all matching rows and is the answer. ``portable`` is both in one statement, for those who
    run only one.
    """

    statement: Statement
    limit: int
    _parts: _Parts
    _only_exact: bool
    _filtered: bool

    @cached_property
    def exact(self) -> Statement:
        """Without an index: the same as ``statement`` where that was asked for."""
        return self.statement if self._only_exact else self._parts.statement(exact=True)

    @cached_property
    def portable(self) -> Statement:
        """One statement that asks the index, and compares all rows only where that gave too few."""
        return self._parts.nearest_or_every() if self._needs_rounds else self.statement

    @cached_property
    def settings(self) -> Statement | None:
        """What lets the index go on until enough rows match, where one round of it may not do."""
        return self._parts.settings() if self._needs_rounds else None

    @property
    def _needs_rounds(self) -> bool:
        return not self._only_exact and (self._filtered or self.limit > EF_SEARCH)

    def starves(self, before: Mapping[str, Any]) -> bool:
        """Whether this pgvector (older than 0.8, by the row of ``settings``) cannot go on where a filter starves the
        index, so that ``exact`` should be run at once."""
        return before["iterative_scan"] is None

    def restore(self, before: Mapping[str, Any]) -> Statement:
        """What sets the settings back to the row that ``settings`` gave."""
        names = {"hnsw.iterative_scan": before["iterative_scan"], "hnsw.ef_search": before["ef_search"]}
        calls = [
            sql.SQL("pg_catalog.set_config({}, {}, true)").format(name, value)
            for name, value in names.items()
            if value is not None
        ]
        return Statement(sql.SQL("SELECT {}").format(sql.SQL(", ").join(calls)))


class SearchRow(Mapping[str, Any]):
    """A row that was found: ``row.score``, ``row.title``; ``row["odd name"]`` for any name; ``dict(row)`` for all."""

    __slots__ = ("_index", "_values")

    def __init__(self, index: Mapping[str, int], values: Sequence[Any]) -> None:
        self._index = index
        self._values = values

    def __getitem__(self, name: str) -> Any:  # noqa: ANN401
        return self._values[self._index[name]]

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        if not name.startswith("__") and name not in SearchRow.__slots__ and name in self._index:
            return self[name]
        raise AttributeError(f"This row has no column '{name}'; it has {', '.join(self._index)}.", name=name, obj=self)

    def __iter__(self) -> Iterator[str]:
        return iter(self._index)

    def __len__(self) -> int:
        return len(self._index)

    def __dir__(self) -> Iterable[str]:
        return [*super().__dir__(), *(name for name in self._index if name.isidentifier())]

    def __repr__(self) -> str:
        return f"SearchRow({', '.join(f'{name}={value!r}' for name, value in self.items())})"


def search_row_factory(cursor: Cursor[Any] | AsyncCursor[Any]) -> Callable[[Sequence[Any]], SearchRow]:
    """A row factory of psycopg that makes SearchRows."""
    index = {column.name: number for number, column in enumerate(cursor.description or ())}
    return lambda values: SearchRow(index, values)


def to_encode(target: Target, query: Expression) -> tuple[Input, ...]:
    """The inputs whose vectors ``compile_search`` must be given: what is no vector, and no text that SQL encodes."""
    inputs = dict.fromkeys(term.input for term in query.terms)
    return tuple(i for i in inputs if not isinstance(i, Vector) and not (isinstance(i, Text) and target.static_text))


def compile_search(
    target: Target,
    query: Expression,
    vectors: Mapping[Input, NDArray[Any]] | None = None,
    *,
    where: str | sql.Composable | None = None,
    params: Parameters = (),
    limit: int = 10,
    columns: Sequence[str] | None = None,
    wide: bool = False,
    exact: bool = False,
) -> SearchPlan:
    """The statements that find the ``limit`` rows nearest to ``query``, best first.

    ``vectors`` holds the vectors ``(dim,)`` of the inputs that ``to_encode`` names. ``where`` is one SQL condition on
    the table's columns with psycopg's placeholders for ``params``; without params its percent signs are taken as they
    are. A row has the chosen ``columns`` (default: all that are not wide, or all) and ``score``, the higher the nearer:
    cosine similarity, inner product, or minus the distance; a chosen column of that name is called ``score_``. A NULL
    or zero vector never matches. Raises InvalidQuery.
    """
    if isinstance(limit, bool) or not isinstance(limit, int) or limit <= 0:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InvalidQuery(
            f"The limit is the number of rows wanted, at least 1, not {limit!r}.", "Leave it out for 10."
        )
    chosen = _chosen(target, columns, wide)
    condition = None if where is None else _condition(where, params)
    given: Values = dict(params) if isinstance(params, Mapping) else tuple(params)
    vector, values = _query_vector(target, query, vectors or {}, named=isinstance(given, dict))
    if given and where is None:
        raise InvalidQuery(f"There are params, {params!r}, but no filter that names them.", "Give where='price < %s'.")
    if isinstance(given, dict) and (clash := [name for name in given if name in values]):
        raise InvalidQuery(f"Parameters may not be named {', '.join(clash)}: pgembed names its own so.")
    parts = _Parts(target, chosen, vector, values, condition, given, limit)
    filtered = condition is not None or target.row_security
    return SearchPlan(parts.statement(exact=exact), limit, parts, exact, filtered)


class _Parts:
    """The pieces of one search's statements."""

    def __init__(
        self,
        target: Target,
        columns: Sequence[str],
        vector: sql.Composable,
        vector_values: Values,
        condition: sql.Composable | None,
        condition_values: Values,
        limit: int,
    ) -> None:
        self._target = target
        self._vector = vector
        self._values = vector_values, condition_values
        self._limit = sql.Literal(limit)
        read = dict.fromkeys([*columns, *target.keys])
        self._distance = sql.Identifier(_unused("distance", read))
        self._read = _sql(*(part for name in read for part in (sql.Identifier(name), ", ")))
        score = _unused("score", columns)
        self._output = _sql(*(part for name in columns for part in (_renamed(name, score), ", ")))
        self._order = _sql(self._distance, *(part for name in target.keys for part in (", ", sql.Identifier(name))))
        self._where = _present(target)
        if condition is not None:
            self._where += _sql(" AND (", condition, ")")

    def statement(self, *, exact: bool) -> Statement:
        """The rows nearest to the query: as the index has them, or by comparing all."""
        return Statement(self._select(self._nearest(self._vector, exact=exact)), _joined(*self._values))

    def nearest_or_every(self) -> Statement:
        """One statement that asks the index, and compares all rows only where that gave too few."""
        of_query = sql.SQL("vector FROM query")
        every = self._nearest(of_query, exact=True, unless=" AND NOT (SELECT enough FROM enough)")
        text = _sql(
            "WITH query AS MATERIALIZED (\n    SELECT ", self._vector, " AS vector\n), first AS MATERIALIZED (\n",
            self._nearest(of_query), "\n), enough AS MATERIALIZED (\n    SELECT count(*) >= ", self._limit,
            " AS enough FROM first WHERE ", self._distance, " < 'NaN'\n)\n",
            self._select(_sql("    SELECT * FROM first WHERE (SELECT enough FROM enough)\n    UNION ALL (\n", every, "\n    )")),
        )  # fmt: skip
        return Statement(text, _joined(_joined(*self._values), self._values[1]))

    def settings(self) -> Statement:
        """What lets an HNSW index go on until enough rows match. Naming a vector loads pgvector and its settings."""
        text = _sql(
            "SELECT iterative_scan, ef_search, CASE WHEN iterative_scan IS NOT NULL"
            " THEN pg_catalog.set_config('hnsw.iterative_scan', 'relaxed_order', true) END,"
            " pg_catalog.set_config('hnsw.ef_search', least(greatest(ef_search::integer, ", self._limit, "), 1000)::text,"
            " true) FROM (SELECT '[0]'::", _of_vector(self._target, "vector"),
            ", pg_catalog.current_setting('hnsw.iterative_scan', true) AS iterative_scan,"
            " pg_catalog.current_setting('hnsw.ef_search', true) AS ef_search OFFSET 0) AS before",
        )  # fmt: skip
        return Statement(text)

    def _select(self, rows: sql.Composable) -> sql.Composed:
        """The rows found, sorted, with their scores; NaN is greater than every distance, and NULL is not less."""
        return _sql(
            "SELECT ", self._output, _SCORES[self._target.metric], self._distance, " AS score\nFROM (\n", rows,
            "\n) AS nearest\nWHERE ", self._distance, " < 'NaN'\nORDER BY ", self._order,
        )  # fmt: skip

    def _nearest(self, vector: sql.Composable, *, exact: bool = False, unless: LiteralString = "") -> sql.Composed:
        """The nearest rows, at most ``limit``. A sum is no order that an index has, which makes it exact."""
        target = self._target
        return _sql(
            "    SELECT ", self._read, "0 + (" if exact else "", sql.Identifier(target.column), *_operator(target),
            "(SELECT ", vector, ")", *(("::", _of_vector(target, "halfvec")) if target.half else ()),
            ")" if exact else "", " AS ", self._distance, "\n    FROM ", sql.Identifier(target.schema, target.table),
            "\n    WHERE ", self._where, unless, "\n    ORDER BY ", self._order if exact else self._distance,
            "\n    LIMIT ", self._limit,
        )  # fmt: skip


def _query_vector(
    target: Target, query: Expression, vectors: Mapping[Input, NDArray[Any]], *, named: bool
) -> tuple[sql.Composable, Values]:
    """The SQL of the query's vector and its parameters. What is all vectors is summed here, the rest by compose."""
    if others := query.spaces - {target.space}:
        raise InvalidQuery(
            f"{target.name} holds vectors of '{target.encoder}' (space {target.space}); the query has vectors of space "
            f"{' and '.join(sorted(others))}.",
            f"Encode them with '{target.encoder}'.",
        )
    known = {term.input: _known(target, term.input, vectors) for term in query.terms}
    bound: list[Any] = []

    def bind(value: object) -> sql.Composable:
        bound.append(value)
        return sql.Placeholder(f"pgembed_{len(bound)}") if named else sql.Placeholder()

    def vector(numbers: NDArray[Any]) -> sql.Composable:
        packed = pack_one(numbers.astype(np.float32))
        return _sql(bind(packed), "::", _of_vector(target, "vector"))

    def term(input: Input) -> sql.Composable:
        numbers = known[input]
        if numbers is not None:
            return vector(numbers)
        text = cast(Text, input).text
        return _sql("pgembed.encode_text(", bind(target.encoder), ", ", bind(text), ")")

    if all(numbers is not None for numbers in known.values()):
        resolved = query.resolve(lambda input: cast("NDArray[Any]", known[input]))
        form = term(query) if isinstance(query, Input) else vector(resolved)
    elif isinstance(query, Input):
        form = term(query)
    else:
        vectors_sql = sql.SQL(", ").join([term(each.input) for each in query.terms])
        form = _sql(
            "pgembed.compose(ARRAY[", vectors_sql, "], ", bind([each.weight for each in query.terms]), "::float8[])"
        )
    values = {f"pgembed_{number}": value for number, value in enumerate(bound, 1)} if named else tuple(bound)
    return form, values


def _known(target: Target, input: Input, vectors: Mapping[Input, NDArray[Any]]) -> NDArray[Any] | None:
    """The vector of an input, checked; None for a text that SQL encodes."""
    if input in vectors:
        vector = np.asarray(vectors[input])
    elif isinstance(input, Vector):
        vector = input.values
    elif isinstance(input, Text) and target.static_text:
        return None
    else:
        raise InvalidQuery(f"{input!r} has no vector yet.", f"Encode it with '{target.encoder}'.")
    if vector.shape != (target.dim,):
        raise InvalidQuery(
            f"{target.name} holds vectors of '{target.encoder}' with {target.dim} dimensions; {input!r} has "
            f"{'x'.join(map(str, vector.shape))}.",
            f"Encode it with '{target.encoder}'.",
        )
    return vector


def _chosen(target: Target, columns: Sequence[str] | None, wide: bool) -> tuple[str, ...]:
    if columns is None:
        return tuple(column.name for column in target.columns if wide or not column.wide)
    if isinstance(columns, str):
        raise InvalidQuery(f"columns is a list of names, not {columns!r}.", f"Write columns=[{columns!r}].")
    there = {column.name for column in target.columns}
    if unknown := [name for name in columns if name not in there]:
        raise InvalidQuery(
            f"Table {target.table} has no column {', '.join(map(repr, unknown))}.",
            f"Its columns: {', '.join(column.name for column in target.columns)}.",
        )
    return tuple(dict.fromkeys(columns))


def _condition(where: str | sql.Composable, params: Parameters) -> sql.Composable:
    """The filter, as one condition. It is the caller's SQL; this refuses what would reach beyond it."""
    text = where if isinstance(where, str) else where.as_string(None)
    plain = _QUOTED.sub("''", text)
    depth = lowest = 0
    for bracket in re.findall(r"[()]", plain):
        depth += 1 if bracket == "(" else -1
        lowest = min(lowest, depth)
    fault = (
        "is empty" if not text.strip()
        else "holds a comment" if "--" in plain or "/*" in plain
        else "holds a semicolon" if ";" in plain
        else "does not close its parentheses" if depth or lowest
        else "does not close its quotes" if "'" in plain.replace("''", "") or '"' in plain
        else "has placeholders, but there are no params" if not params and _PLACEHOLDER.search(plain.replace("%%", ""))
        else None
    )  # fmt: skip
    if fault:
        raise InvalidQuery(f"The filter {text!r} {fault}.", "Give one condition, as it could stand after WHERE.")
    if not isinstance(where, str):
        return where
    return sql.SQL(cast(LiteralString, where if params else re.sub("%%|%", "%%", where)))


def _present(target: Target) -> sql.Composed:
    """That a row has a vector. Under cosine a zero one has no distance; under the other metrics it must be told apart."""
    column = sql.Identifier(target.column)
    if target.metric == "cosine":
        return _sql(column, " IS NOT NULL")
    return _sql(_of_vector(target, "l2_norm" if target.half else "vector_norm"), "(", column, ") > 0")


def _operator(target: Target) -> tuple[LiteralString | sql.Composable, ...]:
    """The operator of the metric, with its schema where the search path may not have it."""
    operator = _OPERATORS[target.metric]
    if target.vector_schema is None:
        return " ", operator, " "
    return " OPERATOR(", sql.Identifier(target.vector_schema), ".", operator, ") "


def _renamed(name: str, score: str) -> sql.Composable:
    """A column of the answer; one that is called ``score`` gives that name up."""
    return sql.Identifier(name) if name != "score" else _sql(sql.Identifier(name), " AS ", sql.Identifier(score))


def _sql(*parts: LiteralString | sql.Composable) -> sql.Composed:
    """Parts one after another; quicker than a format, which a search would feel."""
    return sql.Composed([sql.SQL(part) if isinstance(part, str) else part for part in parts])


def _of_vector(target: Target, name: LiteralString) -> sql.Composable:
    """A name of the vector extension."""
    return sql.SQL(name) if target.vector_schema is None else sql.Identifier(target.vector_schema, name)


def _joined(first: Values, second: Values) -> Values:
    if isinstance(first, dict):
        return first | dict(second)
    return (*first, *second)


def _unused(name: str, taken: Iterable[str]) -> str:
    """``name``, with underscores at its end until it is not taken."""
    names = set(taken)
    while name in names:
        name += "_"
    return name


def _plain(value: object) -> object:
    if not isinstance(value, PackedVector):
        return value
    (dim,) = struct.unpack_from(">H", value)
    return "[" + ",".join(f"{number:.9g}" for number in struct.unpack_from(f">{dim}f", value, 4)) + "]"


__all__ = [
    "Column", "Parameters", "SearchPlan", "SearchRow", "Statement", "Target", "compile_search", "search_row_factory",
    "to_encode",
]  # fmt: skip
