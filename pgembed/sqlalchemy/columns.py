"""The column of an embedding: its type, what it compares with, and how it is written in a statement."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray
from pgvector.sqlalchemy import VECTOR
from sqlalchemy import (
    Alias,
    Column,
    Dialect,
    Float,
    FromClause,
    Insert,
    Table,
    TableSample,
    and_,
    func,
    literal_column,
    select,
    tuple_,
    type_coerce,
)
from sqlalchemy import cast as sql_cast
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql import operators
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.elements import BindParameter, ClauseElement, ColumnElement
from sqlalchemy.types import NullType

from pgembed.catalog import InputSpec
from pgembed.declared import OPERATOR_CLASSES, STORAGES, Declared, EncoderSpec, Storage, VectorIndex, inputs_of
from pgembed.encoders import Metric
from pgembed.errors import InvalidInput, InvalidQuery
from pgembed.inputs import Expression
from pgembed.parts import parts_of
from pgembed.shown import shortened
from pgembed.sqlalchemy.queries import Asked, QueryVector
from pgembed.sqlalchemy.side import OF, PART, no_key, row_key, side_table

Vector: TypeAlias = NDArray[np.float32] | list[float] | None
"""What an embedding's attribute holds: ``(dim,)`` numbers, or None until the row is encoded. It is read-only."""

_OPERATORS: Mapping[Metric, str] = {"cosine": "<=>", "ip": "<#>", "l2": "<->"}


class Embedding(VECTOR):
    """The type of a column whose vectors pgembed writes. ``embedding_column`` makes such a column."""

    cache_ok = True

    def __init__(self, declared: Declared | None = None, dim: int | None = None, place: str = "an embedding") -> None:
        super().__init__(dim)
        self.declared = declared
        self.place = place  # what the column is called in errors

    @property
    def metric(self) -> Metric:
        """How vectors of this column are compared."""
        return self.declared.metric if self.declared is not None else "cosine"

    def compare_values(self, x: object, y: object) -> bool:
        """Whether an object has nothing new to be written: always, so that ``merge`` of an older one, and whatever is
        put into the attribute, never overwrite what a worker wrote."""
        return self.declared is not None or super().compare_values(x, y)

    def bind_expression(self, bindvalue: BindParameter[Any]) -> ColumnElement[Any]:
        """Refuse a value that an INSERT or UPDATE sets. Raises InvalidInput as the statement is compiled."""
        if self.declared is not None:
            raise InvalidInput(
                f"A statement sets {self.place}, whose vectors pgembed writes.",
                "Leave it out: a row is encoded as its inputs change, and again by pgembed.reconcile.",
            )
        return bindvalue

    def coerce_compared_value(self, op: object, value: object) -> Embedding:
        """The type of what is compared with a column, which no statement sets."""
        return Embedding()

    def bind_processor(self, dialect: Dialect) -> Callable[[Any], Any]:
        """As of a vector; a query needs ``distance``, which knows its column."""
        numbers = super().bind_processor(dialect)

        def process(value: object) -> Any:  # noqa: ANN401
            if isinstance(value, Expression):
                raise InvalidQuery(
                    f"{value!r} is compared by an operator for numbers.", "Write .distance(…), .score(…) or .within(…)."
                )
            return numbers(value)

        return process

    class Comparator(VECTOR.Comparator):
        """Comparisons with a pgembed query, with vectors, and with other columns of vectors."""

        def distance(self, query: object) -> ColumnElement[float]:
            """How far rows are from a query, the nearest first: ``order_by(Product.embedding.distance(query))`` uses
            the vector index. ``query`` is a Text, an Image or a sum of such, numbers, or another expression of
            vectors. Cosine distance is 1 - cosine, from 0 to 2. Of a row with parts it is that of the nearest one;
            all are compared. Raises InvalidQuery."""
            if (embedding := self._with_parts) is not None:
                return _of_nearest_part(embedding, query)
            operator = _OPERATORS[self._metric]
            return cast("ColumnElement[float]", self.expr.op(operator, return_type=Float())(self._operand(query)))

        def score(self, query: object) -> ColumnElement[float]:
            """How near rows are to a query, the higher the nearer, as ``row.score`` of ``db.search``: the cosine, the
            inner product, or the negative distance."""
            # no unary minus, whose result SQLAlchemy 2.0 takes for a vector
            return (1 if self._metric == "cosine" else 0) - self.distance(query)

        def within(self, query: object, distance: float) -> ColumnElement[bool]:
            """Rows at most this distance from a query."""
            return self.distance(query) <= distance

        def nearest(self, query: object, k: int = 10) -> ColumnElement[bool]:
            """The ``k`` rows of the whole table that are nearest to a query, as a condition, in no order. Other
            conditions leave fewer of these; for ``k`` rows that match, order by ``distance`` and limit."""
            if not isinstance(cast(object, k), int) or isinstance(k, bool) or k < 1:
                raise InvalidQuery(f"k is {k!r}: ask for one row at least.")
            (column,) = self._column.base_columns
            vectors = column.vectors if isinstance(column, EmbeddingColumn) else cast("Column[Any]", column)
            table, mine = cast(Table, column.table), cast(Any, self._column.table)
            if not table.primary_key.columns:
                raise no_key(table)
            inner = vectors.table.alias()
            there = cast(Any, inner.c[vectors.name])
            near: ColumnElement[float] = there.distance(query)
            keys = row_key(inner, table)
            found = inner.select().with_only_columns(*keys).where(there.is_not(None)).limit(k)
            # a row with parts stands there once for each
            found = found.order_by(near) if self._with_parts is None else found.group_by(*keys).order_by(func.min(near))
            own = [mine.corresponding_column(key) for key in table.primary_key.columns]
            return (own[0] if len(own) == 1 else tuple_(*own)).in_(found)

        def operate(self, op: Any, *other: Any, **options: Any) -> Any:  # noqa: ANN401
            """As of a vector; a parameter whose value comes later is one that is compared, too. Raises InvalidQuery
            where a row has many vectors, which no operator compares."""
            embedding = self._with_parts
            if embedding is not None and op not in (operators.is_, operators.is_not):
                raise InvalidQuery(
                    f"{embedding.type.place} has a vector for each part of a row, and an operator compares one.",
                    "Write .distance(…), .score(…) or .within(…), or join its side table: .side.c.vector.",
                )
            return super().operate(op, *map(_compared, other), **options)

        @property
        def _metric(self) -> Metric:
            return cast(Embedding, self.type).metric

        @property
        def _with_parts(self) -> EmbeddingColumn | None:
            """The column of the embedding, where that has many vectors a row."""
            column = cast(object, self.expr)
            return column if isinstance(column, EmbeddingColumn) and column.declared.parts is not None else None

        @property
        def _column(self) -> Column[Any]:
            if not isinstance(self.expr, Column) or getattr(self.expr, "table", None) is None:
                raise InvalidQuery("nearest() is asked of the column of an embedding, not of an expression of it.")
            return self.expr

        def _operand(self, query: object) -> Any:  # noqa: ANN401
            asked = self._asked
            if isinstance(query, Expression):
                if asked is None:
                    raise InvalidQuery(
                        f"{query!r} is compared with what is no column of a table.",
                        "Compare with the column of an embedding, or give a Vector's numbers.",
                    )
                return sql_cast(BindParameter(None, query, type_=asked, unique=True), VECTOR())
            if isinstance(query, str | bytes):
                raise InvalidQuery(
                    f"A query is a Text, an Image or the like, not {shortened(repr(query))}.", "Write Text(…)."
                )
            in_lambda = getattr(query, "_py_wrapper_literal", None)
            if in_lambda is not None:  # a variable of a lambda, which SQLAlchemy runs once for all its values
                query = in_lambda()
            later = cast("BindParameter[Any] | None", query if isinstance(query, BindParameter) else None)
            if later is not None and isinstance(later.type, NullType):
                return sql_cast(later if asked is None else Asked(later, asked), VECTOR())
            if isinstance(query, ClauseElement) or hasattr(query, "__clause_element__"):
                return cast(Any, query)
            if query is None:
                raise InvalidQuery("The query is None, as the vector of a row is before it is encoded.")
            if not isinstance(query, list | np.ndarray) and not hasattr(query, "to_numpy"):
                raise InvalidQuery(
                    f"A query is a Text, an Image or the like, or numbers, not {shortened(repr(query))}.",
                    "Give a list of numbers, or the attribute of an object: product.embedding.",
                )
            return sql_cast(BindParameter(None, cast(Any, query), type_=VECTOR(), unique=True), VECTOR())

        @property
        def _asked(self) -> QueryVector | None:
            """The type of a query to the column, None where the expression is of no table's column alone."""
            bases = [column for column in self.expr.base_columns if isinstance(column, Column)]
            if len(bases) != 1 or getattr(bases[0], "table", None) is None:
                return None
            column = cast("Column[Any]", bases[0].info.get(OF, bases[0]))
            return QueryVector(column.table.schema, column.table.name, column.name)

    comparator_factory: Any = Comparator


def _of_nearest_part(column: EmbeddingColumn, query: object) -> ColumnElement[float]:
    """How far the nearest part of a row is: the least distance among its rows in the side table."""
    side = column.side.alias()
    near: ColumnElement[float] = cast(Any, side.c.vector).distance(query)
    return select(func.min(near)).where(_same_row(side, column)).correlate_except(side).scalar_subquery()


def _same_row(side: FromClause, column: EmbeddingColumn) -> ColumnElement[bool]:
    """That a row of a side table is of the row of a column's table, or alias."""
    mine = cast(Any, column.table)
    table = _of_table(column).table
    own = [mine.corresponding_column(key) for key in table.primary_key]
    return and_(*(key == there for key, there in zip(row_key(side, table), own, strict=True)))


def _compared(other: Any) -> Any:  # noqa: ANN401
    if isinstance(other, BindParameter) and isinstance(cast("BindParameter[Any]", other).type, NullType):
        return type_coerce(cast("BindParameter[Any]", other), VECTOR())
    return cast(object, other)


class EmbeddingColumn(Column[Any]):
    """The column of an embedding in a table, and in aliases of the table; elsewhere it is a column like others.

    With ``storage="side"`` the table has no such column: where a statement names it, its vector is looked up in the
    side table; of a row with parts, that of the first one.
    """

    inherit_cache = True
    type: Embedding  # pyright: ignore[reportIncompatibleVariableOverride]
    # copies become one of these as they are put into a table
    _constructor = Column  # pyright: ignore[reportAssignmentType, reportIncompatibleMethodOverride]

    @property
    def declared(self) -> Declared:
        """What was said of the embedding."""
        return cast(Declared, self.type.declared)

    @property
    def side(self) -> Table:
        """The side table of the embedding, to be joined: ``select(Product).join(Product.embedding.side)``. Raises
        InvalidQuery where vectors are a column of the table."""
        if self.declared.storage != "side":
            raise InvalidQuery(
                f"The vectors of {self.type.place} are a column of the table itself.", "Ask that column."
            )
        return _of_table(self)._side

    @property
    def vectors(self) -> Column[Any]:
        """The column that holds the vectors: this one, or that of the side table."""
        return self.side.c.vector if self.declared.storage == "side" else self

    @cached_property
    def _side(self) -> Table:
        return side_table(self, self.declared, self.type)

    def _make_proxy(self, selectable: Any, *args: Any, **options: Any) -> Any:  # noqa: ANN401
        key, made = super()._make_proxy(selectable, *args, **options)
        if isinstance(selectable, Alias | TableSample) and isinstance(selectable.element, Table):
            made.__class__ = EmbeddingColumn
        return key, made


@compiles(EmbeddingColumn)
def _written(column: EmbeddingColumn, compiler: SQLCompiler, **options: Any) -> str:  # noqa: ANN401
    text = compiler.visit_column(column, **options)  # which also notes it among the columns of the result
    is_excluded = _is_excluded(column, compiler)
    if column.declared.storage == "column":
        # an upsert of all columns keeps the vector, since that of the row that it did not insert is NULL
        return compiler.process(_of_table(column), **options) if is_excluded else text
    if is_excluded or not options.get("include_table", True):
        raise InvalidInput(
            f"{column.type.place} is no column of the table: its vectors stand in {column.side}.",
            "Leave it out of what is set; an index over it is declared by index=True.",
        )
    side = column.side.alias()
    same = _same_row(side, column)
    if column.declared.parts is not None:
        same = and_(same, side.c[PART] == literal_column("1"))
    vector, name = compiler.process(side.c.vector), compiler.preparer.quote(column.name)
    return f"(SELECT {vector} AS {name} FROM {compiler.process(side, asfrom=True)} WHERE {compiler.process(same)})"


def _is_excluded(column: EmbeddingColumn, compiler: SQLCompiler) -> bool:
    """Whether a column is that of the row which an upsert did not insert."""
    inserting = bool(compiler.stack) and isinstance(compiler.stack[-1].get("selectable"), Insert)
    return inserting and isinstance(column.table, Alias) and column.table.name == "excluded"


def _of_table(column: EmbeddingColumn) -> EmbeddingColumn:
    """The column of the table, of which one of an alias or a statement is made."""
    (base,) = column.base_columns
    return cast(Any, base).table.c[cast(Any, base).key]


def embedding_column(
    name: str | None = None,
    /,
    *,
    encoder: str | EncoderSpec,
    text: InputSpec | None = None,
    image: InputSpec | None = None,
    screenshot: InputSpec | None = None,
    index: bool | VectorIndex = False,
    mode: str = "queue",
    stale: str = "keep",
    storage: Storage = "column",
    fusion: str = "sum",
    parts: str | Mapping[str, Any] | None = None,
    metric: Metric | None = None,
) -> Any:  # noqa: ANN401
    """The column of an embedding, for a declarative model, a mixin or a ``Table``; pgembed fills it.

    ``encoder`` is the name of one that is registered, or an EncoderSpec, which ``create_all`` registers. The inputs,
    ``mode``, ``stale``, ``storage``, ``fusion`` and ``parts`` are those of ``Pgembed.attach``. ``index`` builds an HNSW
    index. ``metric`` is the encoder's, cosine where nothing is said; inputs side by side compare by inner product.
    With ``parts``, such as ``"chunks"``, a row has many vectors, which stand in its side table in any case.
    Raises InvalidInput where there is no input.
    """
    if storage not in STORAGES:
        raise InvalidInput(f"The storage is {storage!r}.", f"It is one of {', '.join(STORAGES)}.")
    metric = metric or ("ip" if fusion == "concat" else "cosine")
    if metric not in OPERATOR_CLASSES:
        raise InvalidInput(f"The metric is {metric!r}.", f"It is one of {', '.join(OPERATOR_CLASSES)}.")
    declared = Declared(
        encoder=encoder if isinstance(encoder, str) else encoder.name,
        inputs=inputs_of({"text": text, "image": image, "screenshot": screenshot}),
        mode=mode,
        stale=stale,
        storage=storage,
        fusion=fusion,
        parts=parts_of(parts),
        metric=metric,
        index=VectorIndex() if index is True else index or None,
        registered_as=None if isinstance(encoder, str) else encoder,
    )
    return Column(name, cast(Any, Embedding(declared)))
