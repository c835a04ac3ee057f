"""The column of an embedding: its type, what it compares with, and what happens as its table is created or dropped."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from typing import Any, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray
from pgvector.sqlalchemy import VECTOR
from sqlalchemy import (
    Column,
    Connection,
    Dialect,
    Float,
    Index,
    Table,
    event,
    tuple_,
)
from sqlalchemy import cast as sql_cast
from sqlalchemy.dialects.postgresql.dml import OnConflictDoUpdate
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.schema import CreateIndex, FetchedValue
from sqlalchemy.sql.elements import BindParameter, ClauseElement, ColumnElement
from sqlalchemy.types import NullType

from pgembed.catalog import InputSpec
from pgembed.declared import OPERATOR_CLASSES, Declared, EncoderSpec, VectorIndex, inputs_of
from pgembed.encoders import Metric
from pgembed.errors import InvalidInput, InvalidQuery
from pgembed.inputs import Expression
from pgembed.shown import shortened
from pgembed.sqlalchemy.ddl import AttachEmbedding, DetachEmbedding, is_installed, register_encoder
from pgembed.sqlalchemy.queries import Asked, QueryVector

Vector: TypeAlias = NDArray[np.float32] | list[float] | None
"""What an embedding's attribute holds: ``(dim,)`` numbers, or None until the row is encoded. It is read-only."""

_OPERATORS: Mapping[Metric, str] = {"cosine": "<=>", "ip": "<#>", "l2": "<->"}


class Embedding(VECTOR):
    """The type of a column whose vectors pgembed writes. ``embedding_column`` makes such a column."""

    cache_ok = True

    def __init__(self, declared: Declared | None = None, dim: int | None = None) -> None:
        super().__init__(dim)
        self.declared = declared

    @property
    def metric(self) -> Metric:
        """How vectors of this column are compared."""
        return self.declared.metric if self.declared is not None else "cosine"

    def compare_values(self, x: object, y: object) -> bool:
        """Whether an object has nothing new to be written: always, so that ``merge`` of an older one, and whatever is
        put into the attribute, never overwrite what a worker wrote."""
        return self.declared is not None or super().compare_values(x, y)

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
            vectors. Cosine distance is 1 - cosine, from 0 to 2. Raises InvalidQuery."""
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
            table, mine = cast(Table, column.table), self._column.table
            if not table.primary_key.columns:
                raise InvalidQuery(f"Table {table.name} has no primary key.", "Declare it, as the database has it.")
            inner = table.alias()
            there = cast(Any, inner.c[column.name])
            near: ColumnElement[float] = there.distance(query)
            keys = [inner.c[key.name] for key in table.primary_key.columns]
            found = inner.select().with_only_columns(*keys).where(there.is_not(None)).order_by(near).limit(k)
            own = [cast(Any, mine).corresponding_column(key) for key in table.primary_key.columns]
            return (own[0] if len(own) == 1 else tuple_(*own)).in_(found)

        @property
        def _metric(self) -> Metric:
            return cast(Embedding, self.type).metric

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
            table = bases[0].table
            return QueryVector(table.schema, table.name, bases[0].name)

    comparator_factory: Any = Comparator


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
    fusion: str = "sum",
    metric: Metric | None = None,
) -> Any:  # noqa: ANN401
    """The column of an embedding, for a declarative model, a mixin or a ``Table``; pgembed fills it.

    ``encoder`` is the name of one that is registered, or an EncoderSpec, which ``create_all`` registers. The inputs,
    ``mode``, ``stale`` and ``fusion`` are those of ``Pgembed.attach``. ``index`` builds an HNSW index. ``metric`` is
    the encoder's, cosine where nothing is said; inputs side by side compare by inner product. Raises InvalidInput
    where there is no input.
    """
    metric = metric or ("ip" if fusion == "concat" else "cosine")
    if metric not in OPERATOR_CLASSES:
        raise InvalidInput(f"The metric is {metric!r}.", f"It is one of {', '.join(OPERATOR_CLASSES)}.")
    declared = Declared(
        encoder=encoder if isinstance(encoder, str) else encoder.name,
        inputs=inputs_of({"text": text, "image": image, "screenshot": screenshot}),
        mode=mode,
        stale=stale,
        fusion=fusion,
        metric=metric,
        index=VectorIndex() if index is True else index or None,
        registered_as=None if isinstance(encoder, str) else encoder,
    )
    return Column(name, cast(Any, Embedding(declared)))


def embedding_columns(table: Table) -> Iterator[tuple[Column[Any], Declared]]:
    """The embeddings that a table declares."""
    for column in table.columns:
        if isinstance(column.type, Embedding) and column.type.declared is not None:
            yield column, column.type.declared


@event.listens_for(Column, "after_parent_attach")
def _joins_table(column: Column[Any], table: Table) -> None:
    """Make a column of an embedding what it is: no part of CREATE TABLE, and written by nobody but pgembed."""
    if not isinstance(column.type, Embedding) or column.type.declared is None:
        return
    declared = column.type.declared
    column.system = True  # attach adds it
    if column.server_default is None:
        column.server_default = FetchedValue()  # so that INSERTs leave it alone
    if declared.index is not None and not any(is_over(index, column) for index in table.indexes):
        Index(
            None,
            column,
            postgresql_using="hnsw",
            postgresql_with={"m": declared.index.m, "ef_construction": declared.index.ef_construction},
            postgresql_ops={column.name: OPERATOR_CLASSES[declared.metric]},
            _column_flag=True,  # as of Column(index=True): a copy of the table has it by its column, not twice
        )


def is_over(index: Index, column: Column[Any]) -> bool:
    """Whether an index holds a column."""
    return any(column is one or getattr(one, "name", None) == column.name for one in index.expressions)


def late_indexes(table: Table) -> Sequence[Index]:
    """The indexes over embeddings, whose columns are not there when the others are built."""
    columns = [column for column, _ in embedding_columns(table)]
    return [index for index in table.indexes if any(is_over(index, column) for column in columns)]


# of all tables, since one that was pickled has no listeners of its own any more
@event.listens_for(Table, "before_create")
def _creates(table: Table, connection: Connection, **_options: Any) -> None:  # noqa: ANN401
    for index in late_indexes(table):
        index.ddl_if(callable_=_never)


@event.listens_for(Table, "after_create")
def _created(table: Table, connection: Connection, **_options: Any) -> None:  # noqa: ANN401
    schema = connection.schema_for_object(table)
    for column, declared in embedding_columns(table):
        if declared.registered_as is not None:
            register_encoder(connection, declared.registered_as)
        connection.execute(AttachEmbedding(schema, table.name, column.name, declared))
    for index in late_indexes(table):
        connection.execute(CreateIndex(index))


@event.listens_for(Table, "before_drop")
def _drops(table: Table, connection: Connection, **_options: Any) -> None:  # noqa: ANN401
    declared = [column for column, _ in embedding_columns(table)]
    if declared and hasattr(connection, "connection") and not is_installed(connection):
        return
    schema = connection.schema_for_object(table)
    for column in declared:
        connection.execute(DetachEmbedding(schema, table.name, column.name, if_attached=True))


def _never(*_args: Any, **_options: Any) -> bool:  # noqa: ANN401
    return False


@compiles(OnConflictDoUpdate, "postgresql")
def _upserts(clause: OnConflictDoUpdate, compiler: Any, **options: Any) -> str:  # noqa: ANN401
    """Leave vectors alone where an upsert takes all columns of ``excluded``, whose vector is NULL."""
    values: dict[Any, Any] = dict(clause.update_values_to_set)
    kept = {key: value for key, value in values.items() if not _is_excluded_vector(value)}
    if kept and len(kept) < len(values):
        clause = copy(clause)
        clause.update_values_to_set = kept
    return compiler.visit_on_conflict_do_update(clause, **options)


def _is_excluded_vector(value: object) -> bool:
    column = cast("Column[Any] | None", value if isinstance(value, Column) else None)
    if column is None or not isinstance(column.type, Embedding) or column.type.declared is None:
        return False
    return getattr(column.table, "name", None) == "excluded"
