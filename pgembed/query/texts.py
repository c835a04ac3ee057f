"""How a search is written in SQL.

A query vector is always a scalar subquery, ``<=> (SELECT …)``, so that it is computed once a statement; a bare function
there runs once for each row that is compared.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from functools import cached_property
from itertools import count
from typing import LiteralString, NamedTuple, cast

from psycopg import sql

from pgembed.errors import InvalidQuery
from pgembed.query.statement import Side, Target, quoted, unused

# How a vector is written: "vector", "text", "row", or the name of an SQL function and the kinds of its vectors.
Kind = str | tuple["Kind", ...]

SPARE = 1.25  # times the rows wanted are asked of an index that is read in rounds
CANDIDATES = "pgembed_candidates"  # the parameter of ``Texts.among``, where the caller's have names
MATCHES = "pgembed matches"
PLACE = "pgembed place"  # the columns that tell a row's place begin so
_SIDE_VECTOR = "pgembed vector"
_WANTED = {
    "filter": "Give one condition, as it could stand after WHERE.",
    "join": "Give one join, as it could stand after FROM: JOIN brand ON brand.id = product.brand_id",
    "expression": "Give one expression with its name: price * 2 AS double",
}
_NAMED_EXPRESSION = re.compile(r"(?s)(?P<expression>.+?)\s+[aA][sS]\s+(?P<name>\w+|\"(?:[^\"]|\"\")+\")\s*")

_OPERATORS: dict[str, LiteralString] = {"cosine": "<=>", "ip": "<#>", "l2": "<->"}
_SCORES: dict[str, LiteralString] = {"cosine": "1 - ", "ip": "-", "l2": "-"}
_NAMES_VALUE = re.compile(r"(?<!%)(?:%%)*%(?:\([^)]*\))?[sbt]")
# As Postgres has it, all that is not ASCII may stand in names, and a string goes on on the next line.
_IN_NAME = r"\w$\x80-\U0010ffff"
_TAG = r"\$(?:[A-Za-z_\x80-\U0010ffff][\w\x80-\U0010ffff]*)?\$"
_ESCAPED = r"'(?:[^'\\]|\\.|'')*'"
_QUOTED = re.compile(
    rf"(?<![{_IN_NAME}])[eE]{_ESCAPED}(?:\s*\n\s*{_ESCAPED})*|'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\""
    rf"|(?<![{_IN_NAME}])({_TAG}).*?\1",
    re.DOTALL,
)
_OPEN_QUOTE = re.compile(rf"['\"]|(?<![{_IN_NAME}])(?:[eE]\0|{_TAG})")  # what is left where one is not closed


class Neutral(NamedTuple):
    """A view that rows are compared without: its name, and its directions as Postgres writes an array of vectors."""

    view: str
    directions: str


class Shape(NamedTuple):
    """What the SQL of a search depends on, beside its target."""

    kind: Kind
    named: bool
    where: str | None
    has_params: bool
    limit: int
    columns: tuple[str, ...] | None
    wide: bool
    joins: tuple[str, ...] = ()
    joins_have_params: bool = False
    after: int | None = None  # rows before those wanted; what comes after a place that the last parameters name
    places: bool = False  # the rows tell theirs
    neutral: Neutral | None = None
    best: int = 1  # how many parts of a row count


class Texts:
    """The SQL of searches of one shape."""

    def __init__(self, target: Target, shape: Shape) -> None:
        self._target, self._shape, self._named = target, shape, shape.named
        wanted = chosen(target, shape.columns, shape.wide)
        self.columns = columns = tuple(item.name for item in wanted)
        read = {item.name: item.sql or self._own(item.name) for item in wanted}
        for key in target.keys:
            if read.setdefault(key, self._own(key)) != self._own(key):
                raise InvalidQuery(f"The key column {key!r} names pages; it cannot be the name of an expression.")
        score = unused("score", columns)
        self._page, self._wanted = sql.Literal(shape.limit), shape.limit + (shape.after or 0)
        self._limit = sql.Literal(self._wanted)
        self._vector = _vector(target, shape.kind, named=shape.named)
        self._distance = quoted(unused("distance", read))
        self._read_names = list(read)
        self._read: list[sql.Composable] = [
            expression if expression == quoted(name) else spelled(expression, " AS ", quoted(name))
            for name, expression in read.items()
        ]
        self._output: list[sql.Composable] = [  # a column named score gives that name up
            spelled(quoted(name), " AS ", quoted(score)) if name == "score" else quoted(name) for name in columns
        ]
        self._order = sql.SQL(", ").join([self._distance, *map(quoted, target.keys)])
        # by a sum: Postgres takes what an index gave in rounds for sorted, and would sort only what is equally near
        self._sorted = spelled("0 + ", self._order)
        places = [self._distance, *(spelled(quoted(key), "::text") for key in target.keys)]
        self._places = [
            spelled(place, " AS ", quoted(name)) for place, name in zip(places, _places(target), strict=True)
        ]
        self.joins = sql.SQL("").join(
            spelled("\n    ", check_condition(join, has_params=shape.joins_have_params, what="join"))
            for join in shape.joins
        )
        self._own_vector = quoted(_SIDE_VECTOR) if target.side else self._own(target.column)
        self._compared = self._own_vector
        if shape.neutral is not None:
            self._compared = _without(target, self._own_vector, shape.neutral)
        self._present = self._where = _present(target, self._own_vector)
        self._matches = sql.SQL("true")
        self.condition: sql.Composed | None = None
        if shape.where is not None:
            self.condition = spelled(check_condition(shape.where, has_params=shape.has_params))
            self._matches = spelled("(", self.condition, ")")
            self._where = spelled(self._present, " AND ", self._matches)

    @property
    def _operator(self) -> tuple[LiteralString | sql.Composable, ...]:
        return _operator(self._target)

    def _of_vector(self, name: LiteralString) -> sql.Composable:
        return _of_vector(self._target, name)

    @property
    def _paged(self) -> bool:
        return self._shape.places or self._shape.after is not None

    def _own(self, name: str) -> sql.Identifier:
        """A column of the table; with joins, others may have the same."""
        return quoted(self._target.table, name) if self._shape.joins else quoted(name)

    @cached_property
    def vector(self) -> sql.Composed:
        """The query's vector alone, as a scalar subquery."""
        return rendered(spelled("(SELECT ", self._vector, ")"))

    @cached_property
    def nearest(self) -> sql.Composed:
        """The rows nearest to the query, as the index has them."""
        return rendered(self._select(self._nearest(self._vector)))

    @cached_property
    def every(self) -> sql.Composed:
        """The rows nearest to the query, by comparing all."""
        return rendered(self._select(self._nearest(self._vector, exact=True)))

    @cached_property
    def nearest_or_every(self) -> sql.Composed:
        """The first, and where that is too few the second."""
        of_query = sql.SQL('vector FROM "pgembed query"')
        every = self._nearest(of_query, exact=True, unless=' AND NOT (SELECT enough FROM "pgembed enough")')
        both = spelled(
            '    SELECT * FROM "pgembed first" WHERE (SELECT enough FROM "pgembed enough")\n    UNION ALL (\n', every,
            "\n    )",
        )  # fmt: skip
        text = spelled(
            'WITH "pgembed query" AS MATERIALIZED (\n    SELECT ', self._vector,
            ' AS vector\n), "pgembed first" AS MATERIALIZED (\n', self._nearest(of_query),
            '\n), "pgembed enough" AS MATERIALIZED (\n    SELECT count(*) >= ', self._limit,
            ' AS enough FROM "pgembed first" WHERE ', self._distance, " < 'NaN'\n)\n", self._select(both),
        )  # fmt: skip
        return rendered(text)

    @cached_property
    def matching(self) -> sql.Composed:
        """The planner's estimate of how many rows match, and of the cost of finding them."""
        target = self._target
        return rendered(
            spelled(
                "EXPLAIN (FORMAT JSON) SELECT FROM ", quoted(target.schema, target.table), _side(target), self.joins,
                " WHERE ", self._where,
            )
        )  # fmt: skip

    @cached_property
    def planned(self) -> sql.Composed:
        """The plan of ``nearest``, which names the index that it would take."""
        return rendered(spelled("EXPLAIN (FORMAT JSON) ", self.nearest))

    @cached_property
    def among(self) -> sql.Composed:
        """The nearest of the matching rows among as many candidates of the index as the last parameter says. It is read
        in rounds, which give rows out of order, so that some more are taken than wanted; where these are found it is
        read no further."""
        place = parameter_place(self._named, CANDIDATES)
        spare = sql.Literal(math.ceil(SPARE * self._wanted))
        cut = sql.SQL("") if self._paged else spelled("\nLIMIT ", self._page)
        looked = self._nearest(self._vector, candidates=place)
        found = spelled("    SELECT * FROM (\n", looked, "\n    ) AS looked WHERE ", quoted(MATCHES), " LIMIT ", spare)
        return rendered(spelled(self._select(found), cut))

    @cached_property
    def settings(self) -> sql.Composed:
        """What lets an HNSW index go on until enough rows match."""
        return self._settings(self._limit, self._limit)

    @cached_property
    def of_part(self) -> sql.Composed:
        """The same for an index of the matching rows alone, with as many candidates as its two parameters, which are
        the same, say."""
        place = spelled(sql.Placeholder(), "::integer")
        return self._settings(place, place)

    @cached_property
    def bounded(self) -> sql.Composed:
        """What lets an HNSW index give so many candidates, in rounds of a quarter, as its two parameters, which are the
        same, say."""
        place = spelled(sql.Placeholder(), "::integer")
        return self._settings(spelled("greatest(", self._limit, ", ", place, " / 4)"), place)

    def _settings(self, in_rounds: sql.Composable, at_once: sql.Composable) -> sql.Composed:
        """Sets, and tells what was set before. Naming a vector loads pgvector and its settings. Before pgvector 0.8
        there is one round, of so many ``at_once``."""
        return rendered(
            spelled(
                "SELECT iterative_scan, ef_search, CASE WHEN iterative_scan IS NOT NULL"
                " THEN pg_catalog.set_config('hnsw.iterative_scan', 'relaxed_order', true) END,"
                " pg_catalog.set_config('hnsw.ef_search', least(greatest(ef_search::integer,"
                " CASE WHEN iterative_scan IS NULL THEN ", at_once, " ELSE ", in_rounds, " END), 1000)::text, true)",
                " FROM (SELECT '[0]'::", _of_vector(self._target, "vector"),
                ", pg_catalog.current_setting('hnsw.iterative_scan', true) AS iterative_scan,"
                " pg_catalog.current_setting('hnsw.ef_search', true) AS ef_search OFFSET 0) AS before",
            )
        )  # fmt: skip

    def _select(self, rows: sql.Composable) -> sql.Composed:
        """The rows found, sorted, with their scores; NaN is greater than every distance, and NULL is not less."""
        score = spelled(_SCORES[self._target.metric], self._distance, " AS score")
        output = [*self._output, score, *(self._places if self._shape.places else [])]
        after = page = sql.SQL("")
        if self._shape.after is not None:
            values = sql.SQL(", ").join(parameter_place(self._named, name) for name in after_names(self._target))
            after = spelled(" AND (", self._order, ") > (", values, ")")
        if self._paged:  # with joins a page ends with all rows of its last key
            page = (
                spelled("\nFETCH FIRST ", self._page, " ROWS WITH TIES")
                if self._shape.joins
                else spelled("\nLIMIT ", self._page)
            )
        return spelled(
            "SELECT ", sql.SQL(", ").join(output), "\nFROM (\n", rows, "\n) AS nearest\nWHERE ", self._distance,
            " < 'NaN'", after, "\nORDER BY ", self._sorted, page,
        )  # fmt: skip

    def _nearest(
        self,
        vector: sql.Composable,
        *,
        exact: bool = False,
        unless: LiteralString = "",
        candidates: sql.Composable | None = None,
    ) -> sql.Composed:
        """The nearest rows, at most ``limit``. A sum is no order that an index has, which makes it exact.

        With ``candidates``, so many rows of all, and for each whether it matches.
        """
        target = self._target
        half = ("::", _of_vector(target, "halfvec")) if target.half else ()
        distance = spelled(self._compared, *_operator(target), "(SELECT ", vector, ")", *half)
        if exact:
            distance = spelled("0 + (", distance, ")")
        read = [*self._read, spelled(distance, " AS ", self._distance)]
        if candidates is not None:
            read.append(spelled(self._matches, " AS ", quoted(MATCHES)))
        order = self._order if exact and not self._shape.joins else self._distance
        # What comes after a place is cut off from all, however many rows came before it since.
        every = exact and self._shape.after is not None
        first = sql.SQL("") if every else spelled("\n    ORDER BY ", order, *self._first(candidates))
        return spelled(
            "    SELECT ", sql.SQL(", ").join(read), "\n    FROM ", quoted(target.schema, target.table), _side(target),
            self.joins, "\n    WHERE ", self._where if candidates is None else self._present, unless, first,
        )  # fmt: skip

    def _first(self, candidates: sql.Composable | None) -> tuple[LiteralString | sql.Composable, ...]:
        """How many rows. A page ends in the middle of what is equally near only where all of that is known."""
        if candidates is None and self._paged:
            return "\n    FETCH FIRST ", self._limit, " ROWS WITH TIES"
        return "\n    LIMIT ", candidates or self._limit


def as_arrays(target: Target, kinds: Sequence[Kind]) -> sql.Composed:
    """The statement that reads vectors of these kinds, each as an array of numbers."""
    read = [spelled("(", _vector(target, kind, named=False), ")::pg_catalog.float4[]") for kind in kinds]
    named = [spelled(each, " AS ", quoted(f"vector_{number}")) for number, each in enumerate(read, start=1)]
    return rendered(spelled("SELECT ", sql.SQL(", ").join(named)))


def parameter_place(named: bool, name: str) -> sql.Placeholder:
    return sql.Placeholder(name) if named else sql.Placeholder()


def _vector(target: Target, kind: Kind, *, named: bool) -> sql.Composed:
    """The SQL of the query's vector, with placeholders for its values."""
    numbers = count(1)

    def place() -> sql.Placeholder:
        return sql.Placeholder(_parameter(next(numbers))) if named else sql.Placeholder()

    def written(kind: Kind) -> sql.Composed:
        match kind:
            case "vector":
                return spelled(place(), "::", _of_vector(target, "vector"))
            case "text":
                prefer = () if target.prefer is None else (", prefer => ", sql.Literal(target.prefer))
                text = spelled("pgembed.encode_text(", place(), ", ", place(), *prefer, ")")
                return spelled("pgembed._padded(", text, ", ", _shares(target), ")") if target.parts else text
            case "row":
                return _stored(target, place)
            case ("weighted", operand):
                return spelled("pgembed._weighted(", written(operand), ", ", place(), "::float8[])")
            case ("slerp", *operands):
                start, end = map(written, operands)
                return spelled("pgembed.slerp(", start, ", ", end, ", ", place(), "::float8)")
            case ("reject", operand, *directions):
                first = written(operand)
                return spelled("pgembed.reject(", first, ", ARRAY[", sql.SQL(", ").join(map(written, directions)), "])")
            case ("equalize", *lists):
                members, directions = map(written, lists)
                return spelled("(pgembed.equalize(", members, ", ", directions, "))[", place(), "::integer]")
            case ("list", *items):
                return spelled("ARRAY[", sql.SQL(", ").join(map(written, items)), "]")
            case (_, *operands):
                terms = sql.SQL(", ").join([written(operand) for operand in operands])
                return spelled("pgembed.compose(ARRAY[", terms, "], ", place(), "::float8[])")
            case _:
                raise AssertionError(kind)

    return written(kind)


def _shares(target: Target) -> sql.Composed:
    return spelled("ARRAY[", sql.SQL(", ").join(map(sql.Literal, target.shares)), "]::float8[]")


def _stored(target: Target, place: Callable[[], sql.Placeholder]) -> sql.Composed:
    """The vector of the row whose key the next placeholders hold, as it is, or the mean of its parts; the one after
    them is the error where there is none. A side table's is read with its row, whose policies hold."""
    of_vector = _of_vector(target, "vector")
    same = sql.SQL(" AND ").join([spelled(quoted(key), " = ", place()) for key in target.keys])
    stored = spelled(_vector_column(target), "::", of_vector)
    if target.split:
        stored = spelled(_of_vector(target, "avg"), "(", stored, ")")
    vector = spelled(
        "SELECT ", stored, " FROM ", quoted(target.schema, target.table),
        _side(target), " WHERE ", same,
    )  # fmt: skip
    return spelled(
        "coalesce((", vector, "), pgembed._raise(", place(),
        ", 'Search by a row that is there and encoded.', NULL::", of_vector, "))",
    )  # fmt: skip


def _without(target: Target, column: sql.Composable, neutral: Neutral) -> sql.Composed:
    """The vector of a row without a view, as ``pgembed._neutral_sql`` writes it: as it is indexed."""
    vector, kind = _of_vector(target, "vector"), _of_vector(target, "halfvec" if target.half else "vector")
    plain = spelled(column, "::", vector) if target.half else spelled(column)
    return spelled(
        "(pgembed.neutralize(", plain, ", ", sql.Literal(neutral.directions), "::", vector, "[])::", kind, "(",
        sql.Literal(target.dim), "))",
    )  # fmt: skip


def names(number: int) -> list[str]:
    """The names of our own parameters, where the caller's have names."""
    return [_parameter(n) for n in range(1, number + 1)]


def _parameter(number: int) -> str:
    return f"pgembed_{number}"


class Chosen(NamedTuple):
    """What a row of the answer holds under a name: a column of the table, or an expression."""

    name: str
    sql: sql.Composable | None = None


def chosen(target: Target, columns: Sequence[str] | None, wide: bool) -> list[Chosen]:
    """What rows hold beside their score. Raises InvalidQuery for a column that is not there."""
    if isinstance(columns, str):
        raise InvalidQuery(f"columns is a list of names, not {columns!r}.", f"Write columns=[{columns!r}].")
    if columns is None:
        return [Chosen(column.name) for column in target.columns if wide or not column.wide]
    there = {column.name for column in target.columns}
    found: dict[str, Chosen] = {}
    unknown: list[str] = []
    for column in columns:
        if column in there:
            found.setdefault(column, Chosen(column))
        elif named := _NAMED_EXPRESSION.fullmatch(column):
            expression = spelled("(", check_condition(named["expression"], has_params=False, what="expression"), ")")
            name = named["name"][1:-1].replace('""', '"') if named["name"][0] == '"' else named["name"].lower()
            found.setdefault(name, Chosen(name, expression))
        else:
            unknown.append(column)
    if unknown:
        raise InvalidQuery(
            f"Table {target.table} has no column {', '.join(map(repr, unknown))}.",
            f"Its columns: {', '.join(column.name for column in target.columns)}. An expression has a name:"
            " 'price * 2 AS double'.",
        )
    return list(found.values())


def check_condition(text: str, *, has_params: bool, what: str = "filter") -> sql.SQL:
    """The filter, as one condition, or a join or expression. It is the caller's SQL; this refuses what would reach
    beyond it."""
    plain = _QUOTED.sub("\0", text)
    depth = lowest = 0
    for bracket in re.findall(r"[()]", plain):
        depth += 1 if bracket == "(" else -1
        lowest = min(lowest, depth)
    fault = (
        "is empty" if not text.strip()
        else "holds a comment" if "--" in plain or "/*" in plain
        else "holds a semicolon" if ";" in plain
        else "does not close its parentheses" if depth or lowest
        else "does not close its quotes" if _OPEN_QUOTE.search(plain)
        else "has placeholders, but there are no params" if not has_params and _NAMES_VALUE.search(plain)
        else None
    )  # fmt: skip
    if fault:
        raise InvalidQuery(f"The {what} {text!r} {fault}.", _WANTED[what])
    return sql.SQL(cast(LiteralString, text if has_params else re.sub("%%|%", "%%", text)))


def _vector_column(target: Target) -> sql.Identifier:
    """The column of vectors, in what FROM names."""
    return quoted(_SIDE_VECTOR if target.side else target.column)


def _places(target: Target) -> list[str]:
    """What the columns are called that tell the place of a row among all: its distance, then its key."""
    return [PLACE, *(f"{PLACE} {number}" for number in range(1, len(target.keys) + 1))]


def after_names(target: Target) -> list[str]:
    """The parameters that name a place, where the caller's have names."""
    return [f"pgembed_after_{number}" for number in range(len(target.keys) + 1)]


def _side(target: Target) -> sql.Composable:
    """The join with the table that holds the vectors. Its columns have names that a filter does not mean."""
    if target.side is None:
        return sql.SQL("")
    return spelled("\n    JOIN (", side_rows(target.side), ') AS "pgembed side" ON ', same_row(target))


def side_rows(side: Side, *columns: str) -> sql.Composed:
    """The rows of a side table, each column under a name that a filter does not mean."""
    named = {name: f"pgembed key {n}" for n, name in enumerate(side.keys, start=1)}
    named |= {"vector": _SIDE_VECTOR} | {name: f"pgembed {name}" for name in columns}
    read = sql.SQL(", ").join(spelled(quoted(name), " AS ", quoted(own)) for name, own in named.items())
    return spelled("SELECT ", read, " FROM ", quoted(side.schema, side.table))


def same_row(target: Target) -> sql.Composed:
    """That a row of the table is that of a row of its side table."""
    return sql.SQL(" AND ").join(
        spelled(quoted(name), " = ", quoted(f"pgembed key {n}")) for n, name in enumerate(target.keys, start=1)
    )


def _present(target: Target, column: sql.Composable) -> sql.Composed:
    """That a row has a vector. Under cosine a zero one has no distance; under other metrics it must be told apart."""
    if target.metric == "cosine":
        return spelled(column, " IS NOT NULL")
    return spelled(_of_vector(target, "l2_norm" if target.half else "vector_norm"), "(", column, ") > 0")


def _operator(target: Target) -> tuple[LiteralString | sql.Composable, ...]:
    """The operator of the metric, with its schema where the search path may not have it."""
    operator = _OPERATORS[target.metric]
    if target.vector_schema is None:
        return " ", operator, " "
    return " OPERATOR(", quoted(target.vector_schema), ".", operator, ") "


def _of_vector(target: Target, name: LiteralString) -> sql.Composable:
    """A name of the vector extension."""
    return sql.SQL(name) if target.vector_schema is None else quoted(target.vector_schema, name)


def rendered(text: sql.Composed) -> sql.Composed:
    """The same in one piece, which is quicker to send."""
    return sql.Composed([sql.SQL(cast(LiteralString, text.as_string(None)))])


def spelled(*parts: LiteralString | sql.Composable) -> sql.Composed:
    """Parts one after another."""
    return sql.Composed([sql.SQL(part) if isinstance(part, str) else part for part in parts])
