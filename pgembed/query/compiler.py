"""A query expression, a filter and a limit -> the statements of a search."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from psycopg import sql

from pgembed.algebra import Changed, Equalized, Reject, Slerp, Unit, View
from pgembed.errors import InvalidQuery
from pgembed.fusing import factors, padded
from pgembed.inputs import Expression, Input, Row, Text, Vector
from pgembed.query.part_texts import PartTexts
from pgembed.query.statement import Parameters, Statement, Target, Values
from pgembed.query.texts import CANDIDATES, Kind, Neutral, Shape, Texts, after_names, as_arrays, names
from pgembed.vectors import PackedVector, pack_one, unpack_one

if TYPE_CHECKING:
    from numpy.typing import NDArray

MOST_AT_ONCE = 1000  # candidates that an HNSW index gives in one round, by pgvector's bound of hnsw.ef_search
EF_SEARCH = 40  # what an HNSW index gives at most in one round, by pgvector's default
_FILTER_CHECK = sql.Composed([sql.SQL("SELECT pgembed._filter_condition(%s::regclass::text || %s, %s, NULL)")])
_REMEMBERED = 200  # shapes of searches whose SQL is kept


@dataclass(frozen=True)
class Place:
    """Where a row stands among all that a search finds: its distance, its key, as text, and how many come before and
    with it."""

    distance: float
    key: tuple[str, ...]
    shown: int


@dataclass(frozen=True)
class SearchPlan:
    """What a client runs; ``pgembed.searching`` runs it.

    ``statement`` asks the index. Where one round of it may not do, ``rounds`` gives the settings under which it is run,
    in one transaction. Where it gives fewer than ``limit`` rows, ``exact``, which compares all matching rows, is the
    answer. ``portable`` is both in one statement, for those who run only one.
    """

    limit: int
    target: Target
    shape: Shape
    _texts: Texts
    _vector: Values
    _given: Values
    _only_exact: bool
    filtered: bool
    _joined: int  # how many of the given values are those of joins, where they have no names
    _after: Values = ()
    weights: Mapping[str, float] | None = None  # of the inputs of a row

    @property
    def reach(self) -> int:
        """The rows that the index must give: those wanted, and those before them."""
        return self.limit + (self.shape.after or 0)

    @property
    def spread(self) -> int:
        """Times the rows wanted, the rows to be found by their nearest part: more where several parts of each count, or
        where the index is coarse. As in ``pgembed.search_parts``."""
        quantization = self.target.quantization
        return 10 if quantization == "binary" else 4 if self.shape.best > 1 else 2 if quantization == "half" else 1

    @property
    def columns(self) -> tuple[str, ...]:
        """The table's columns that are read."""
        return self._texts.columns

    @property
    def vector(self) -> Statement:
        """The query's vector as an SQL expression, with its parameters."""
        return Statement(self._texts.vector, self._vector)

    @cached_property
    def statement(self) -> Statement:
        """What is run first: the index's answer, or the exact one where that was asked for."""
        return self.exact if self._only_exact else Statement(self._texts.nearest, self._values())

    @cached_property
    def exact(self) -> Statement:
        """The nearest of all matching rows, without an index."""
        return Statement(self._texts.every, self._values())

    @cached_property
    def portable(self) -> Statement:
        """One statement that asks the index, and compares all rows only where that gave too few; what comes after a
        place is found by comparing all."""
        if self._only_exact or self.shape.after is not None:
            return self.exact
        again = () if isinstance(self._given, dict) else self._given
        return Statement(self._texts.nearest_or_every, self._values(last=again))

    @property
    def needs_rounds(self) -> bool:
        """Whether one round of the index may not give enough rows."""
        return not self._only_exact and (self.filtered or self.target.split or self.reach > EF_SEARCH)

    @property
    def matching(self) -> Statement:
        """What asks the planner how many rows match: its one row is a plan in JSON."""
        return Statement(self._texts.matching, self._given)

    @property
    def filter_check(self) -> Statement | None:
        """What has ``pgembed._filter_condition`` say what is wrong with the filter, in the words of ``pgembed.search``;
        None without a filter."""
        if (where := self._texts.condition) is None:
            return None
        of_joins, of_where = self._given, self._given
        if isinstance(self._given, tuple):
            of_joins, of_where = self._given[: self._joined], self._given[self._joined :]
        joins = Statement(self._texts.joins, of_joins).as_string()
        return Statement(_FILTER_CHECK, (self.target.relation, joins, Statement(where, of_where).as_string()))

    def explained(self, statement: Statement) -> Statement:
        """What asks for Postgres's plan of one of these statements."""
        return Statement(sql.SQL("EXPLAIN ") + statement.text, statement.values)

    @property
    def planned(self) -> Statement:
        """What asks the planner for the plan of ``statement``, likewise."""
        return Statement(self._texts.planned, self._values())

    def among(self, candidates: int) -> Statement:
        """The nearest of the rows that match among so many candidates of the index, under ``settings(candidates)``."""
        last: Values = {CANDIDATES: candidates} if isinstance(self._given, dict) else (candidates,)
        return Statement(self._texts.among, self._values(last=last))

    def _values(self, last: Values = ()) -> Values:
        """The parameters in the order in which statements have them: the query's, the filter's, the page's."""
        if isinstance(self._given, dict):
            return {**dict(self._vector), **self._given, **dict(last), **dict(self._after)}
        return (*self._vector, *self._given, *last, *self._after)

    def settings(self, candidates: int | None = None, *, partial: bool = False) -> Statement:
        """What is set before ``among``; before ``statement``, to go on until enough rows match, and with ``partial``
        where an index of the matching rows alone is taken, which is asked for so many.

        Its one row tells what was set before, for ``restore``.
        """
        if candidates is None:
            return Statement(self._texts.settings)
        return Statement(self._texts.of_part if partial else self._texts.bounded, (candidates,) * 2)

    @property
    def tells(self) -> bool:
        """Whether its statements may give notices, of words that an encoder does not know."""
        return _has_text(self.shape.kind)

    @cached_property
    def given_key(self) -> Hashable | None:
        """The filter's parameters as the key of a dictionary; None where they are none."""
        given = tuple(self._given.items()) if isinstance(self._given, dict) else self._given
        try:
            hash(given)
        except TypeError:
            return None
        return given

    def starves(self, before: Mapping[str, Any], candidates: int | None = None) -> bool:
        """Whether this pgvector (older than 0.8, by the row of ``settings``) cannot go on where a filter starves the
        index, so that ``exact`` should be run at once."""
        return before["iterative_scan"] is None and (candidates is None or candidates > MOST_AT_ONCE)

    def restore(self, before: Mapping[str, Any]) -> Statement:
        """What sets the settings back to the row that ``settings`` gave."""
        calls = [
            sql.SQL("pg_catalog.set_config({}, {}, true)").format(f"hnsw.{name}", before[name])
            for name in ("iterative_scan", "ef_search")
            if before[name] is not None
        ]
        return Statement(sql.SQL("SELECT {}").format(sql.SQL(", ").join(calls)))


def _has_text(kind: Kind) -> bool:
    return kind == "text" if isinstance(kind, str) else any(map(_has_text, kind))


def to_encode(target: Target, query: Expression) -> tuple[Input, ...]:
    """The inputs whose vectors ``compile_search`` must be given: what is no vector, and no text that SQL encodes."""
    if isinstance(query, Vector):
        return ()
    return tuple(
        input
        for input in dict.fromkeys(query.inputs)
        if not isinstance(input, Vector | Row) and not (isinstance(input, Text) and target.static_text)
    )


def check_limit(limit: int) -> None:
    """Raise InvalidQuery where that is no number of rows that a search can give."""
    if isinstance(limit, bool) or not isinstance(limit, int) or limit <= 0:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InvalidQuery(f"limit is the number of rows wanted, at least 1, not {limit!r}.", "For example: limit=10.")


class Compiler:
    """Compiles searches of one target; the SQL of a search that differs only in its values is made once."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self._texts: dict[Shape, Texts] = {}

    def compile(
        self,
        query: Expression,
        vectors: Mapping[Input, NDArray[Any]] | None = None,
        *,
        where: str | sql.Composable | None = None,
        params: Parameters = (),
        limit: int = 10,
        columns: Sequence[str] | None = None,
        wide: bool = False,
        exact: bool = False,
        joins: Sequence[str] = (),
        joined: Parameters = (),
        after: Place | None = None,
        places: bool = False,
        weights: Mapping[str, float] | None = None,
        neutral: Neutral | None = None,
        best: int = 1,
    ) -> SearchPlan:
        """The statements that find the ``limit`` rows nearest to ``query``, best first.

        ``vectors`` holds the vectors ``(dim,)`` of the inputs that ``to_encode`` names. ``where`` is one SQL condition
        on the table's columns with psycopg's placeholders for ``params``; without params its percent signs are taken as
        they are. A row has the chosen ``columns`` (default: all that are not wide, or all) and ``score``, the higher
        the nearer: cosine similarity, inner product, or minus the distance; a chosen column of that name is called
        ``score_``. A NULL or zero vector never matches.

        ``joins`` are SQL, ``JOIN brand ON …``, with the parameters ``joined``; then ``columns`` may hold expressions
        with a name, ``brand.name AS brand``, as they may without. ``after`` gives the rows that come after a place, and
        ``places`` that of each row, in columns whose names begin with PLACE. ``weights`` say how much each input of a
        row counts, where these stand side by side. ``best`` parts of a row count, where it has many vectors: their
        similarities are added up. ``neutral`` is taken out of every row; out of the query it has been
        taken before. An index serves that only without a filter, for as many rows as one round gives. Raises
        InvalidQuery.
        """
        check_limit(limit)
        if isinstance(columns, str):
            raise InvalidQuery(f"columns is a list of names, not {columns!r}.", f"Write columns=[{columns!r}].")
        given: Values = dict(params) if isinstance(params, Mapping) else tuple(params)
        if given and where is None:
            raise InvalidQuery("There are params, but no filter that names them.", "Give where='price < %s'.")
        has_params = bool(given)
        if joined:
            given = {**dict(joined), **dict(given)} if isinstance(joined, Mapping) else (*joined, *given)
        named = isinstance(given, dict)
        kind, values = _query_vector(self.target, query, vectors or {})
        if weights is not None:
            kind, values = ("weighted", kind), [*values, factors(self.target.name, self.target.parts, weights)]
        shape = Shape(
            kind=kind,
            named=named,
            where=where if where is None or isinstance(where, str) else where.as_string(None),
            has_params=has_params,
            limit=limit,
            columns=None if columns is None else tuple(columns),
            wide=wide,
            joins=tuple(joins),
            joins_have_params=bool(joined),
            after=None if after is None else after.shown,
            places=places,
            neutral=neutral,
            best=_checked_best(self.target, best),
        )
        texts = self._texts.get(shape)
        if texts is None:
            if len(self._texts) >= _REMEMBERED:
                self._texts.clear()
            texts = self._texts[shape] = (PartTexts if self.target.split else Texts)(self.target, shape)
        bound: Values = dict(zip(names(len(values)), values, strict=True)) if named else tuple(values)
        last: Values = ()
        if after is not None:
            if len(after.key) != len(self.target.keys):
                raise InvalidQuery(f"The page was asked of another table than {self.target.table}.")
            last = (after.distance, *after.key)
            last = dict(zip(after_names(self.target), last, strict=True)) if named else last
        if isinstance(given, dict) and (taken := given.keys() & {*bound, CANDIDATES, *after_names(self.target)}):
            raise InvalidQuery(f"Parameters may not be named {', '.join(sorted(taken))}: pgembed names its own so.")
        filtered = where is not None or bool(joins) or self.target.row_security
        exact = exact or (neutral is not None and (filtered or limit + (shape.after or 0) > EF_SEARCH))
        exact = exact or (self.target.split and bool(joins or neutral))  # each row of a join has its nearest part
        return SearchPlan(limit, self.target, shape, texts, bound, given, exact, filtered, len(joined), last, weights)

    def vectors(self, queries: Sequence[Expression], vectors: Mapping[Input, NDArray[Any]]) -> Statement:
        """The statement whose one row holds the vector of each query as an array of numbers. Raises InvalidQuery."""
        written = [_query_vector(self.target, query, vectors) for query in queries]
        text = as_arrays(self.target, [kind for kind, _ in written])
        return Statement(text, tuple(value for _, values in written for value in values))

    def vector(self, query: Expression, vectors: Mapping[Input, NDArray[Any]]) -> NDArray[np.float32] | None:
        """The vector of a query ``(dim,)``; None where a row of the database is part of it. Raises InvalidQuery."""
        kind, values = _query_vector(self.target, query, vectors)
        return unpack_one(cast(PackedVector, values[0])) if kind == "vector" else None


def _checked_best(target: Target, best: int) -> int:
    if isinstance(best, bool) or not isinstance(best, int) or not 1 <= best <= 1000:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InvalidQuery(f"best is the number of parts that count, 1 to 1000, not {best!r}.", "For example: best=3.")
    if best > 1 and not target.split:
        raise InvalidQuery(f"{target.name} holds one vector a row, and no parts.", "Leave best out.")
    return best


def compile_search(
    target: Target,
    query: Expression,
    vectors: Mapping[Input, NDArray[Any]] | None = None,
    **options: Any,  # noqa: ANN401
) -> SearchPlan:
    """Compile one search of a target: takes what ``Compiler.compile`` takes."""
    return Compiler(target).compile(query, vectors, **options)


def _query_vector(
    target: Target, query: Expression, vectors: Mapping[Input, NDArray[Any]]
) -> tuple[Kind, list[object]]:
    """How the query's vector is written, and its parameters: what is all vectors is computed here, the rest by SQL."""
    if others := query.spaces - {target.space}:
        raise InvalidQuery(
            f"{target.name} holds vectors of '{target.encoder}' (space {target.space}); the query has vectors of space "
            f"{' and '.join(sorted(others))}.",
            f"Encode them with '{target.encoder}'.",
        )
    return _written(target, query, {input: _known(target, input, vectors) for input in query.inputs})


def _written(
    target: Target, query: Expression, known: Mapping[Input, NDArray[Any] | None]
) -> tuple[Kind, list[object]]:
    """One expression within a query: a kind, which names its SQL, and the values of its placeholders in order."""
    if isinstance(query, Input):
        if (vector := known[query]) is not None:
            return "vector", [pack_one(np.asarray(vector, dtype=np.float32))]  # as it is: its length may count
    elif all(_is_computed(input, known[input]) for input in query.inputs):
        return "vector", [pack_one(query.resolve(lambda input: cast("NDArray[Any]", known[input])))]
    match query:
        case Text():
            return "text", [target.encoder, query.text]
        case Row():
            if len(query.key) != len(target.keys):
                raise InvalidQuery(
                    f"{query!r} has {len(query.key)} value(s), and the primary key of {target.table} has"
                    f" {len(target.keys)}: {', '.join(target.keys)}."
                )
            return "row", [*query.key, f"{query!r} is not in {target.table}, or has no vector yet."]
        case Unit():
            return _written(target, query.operand, known)
        case Slerp():
            return _call("slerp", target, query.operands, known, query.t)
        case Reject():
            return _call("reject", target, query.operands, known)
        case Equalized():
            parts = [_call("list", target, some, known) for some in (query.members, query.directions)]
            values = [value for _, some in parts for value in some]
            return ("equalize", *(kind for kind, _ in parts)), [*values, query.place + 1]
        case Changed():
            query.resolve(lambda input: cast("NDArray[Any]", known[input]))  # raises: pgembed.composing goes before
            raise AssertionError(query)
        case _:
            terms = query.terms
            return _call("compose", target, [t.input for t in terms], known, [t.weight for t in terms])


def _call(
    name: str,
    target: Target,
    operands: Sequence[Expression],
    known: Mapping[Input, NDArray[Any] | None],
    *more: object,
) -> tuple[Kind, list[object]]:
    written = [_written(target, operand, known) for operand in operands]
    return (name, *(kind for kind, _ in written)), [*(value for _, some in written for value in some), *more]


def _is_computed(input: Input, known: NDArray[Any] | None) -> bool:
    """Whether an input's vector is there, and is its own: one that was made wide stands in no expression but SQL's."""
    return known is not None and (not isinstance(input, Vector) or input.dim == known.size)


def _known(target: Target, input: Input, vectors: Mapping[Input, NDArray[Any]]) -> NDArray[Any] | None:
    """The vector of an input, checked; None for a text that SQL encodes."""
    given = vectors.get(input) if vectors else None
    if given is not None:
        vector = np.asarray(given)
    elif isinstance(input, Vector):
        vector = input.values
    elif isinstance(input, View):
        raise InvalidQuery(f"{input!r} has its directions only in the database.", "Search with it: db.search(…).")
    elif isinstance(input, Row) or (isinstance(input, Text) and target.static_text):
        return None
    else:
        raise InvalidQuery(f"{input!r} has no vector yet.", f"Encode it with '{target.encoder}'.")
    if vector.shape == (target.encoder_dim,) and target.parts:
        vector = padded(vector, target.shares)
    elif vector.shape != (target.dim,):
        raise InvalidQuery(
            f"{target.name} holds vectors of '{target.encoder}' with {target.dim} dimensions; {input!r} has "
            f"{'x'.join(map(str, vector.shape))}.",
            f"Encode it with '{target.encoder}'.",
        )
    # a Vector is finite; its bytes are looked at without numpy, whose calls a quick search would feel
    if not (vector.any() and np.isfinite(vector).all() if given is not None else any(cast(Vector, input).content)):
        raise InvalidQuery(
            f"The vector of {input!r} is {'not finite' if vector.any() else 'zero'}, to which no row is near.",
            "If it was read from a table: there is no such row, or it is not encoded yet."
            if given is None
            else f"The encoder made it: see pgembed encoder test {target.encoder}",
        )
    return vector
