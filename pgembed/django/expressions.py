"""Expressions of querysets: how far rows are from a query, and how near."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from django.db.models import Expression as DjangoExpression
from django.db.models import F, FloatField, Func, Value
from django.utils.functional import cached_property
from pgvector.django import VectorField

from pgembed.django.fields import EmbeddingField
from pgembed.django.queries import Waiting, checked, let_ask
from pgembed.encoders import Metric
from pgembed.errors import InvalidQuery
from pgembed.inputs import Expression

_OPERATORS: Mapping[Metric, str] = {"cosine": "<=>", "ip": "<#>", "l2": "<->"}


class Distance(Func):
    """How far rows are from a query, the nearest first: ``order_by(Distance("embedding", Text("a red shoe")))`` takes
    the vector index. A query is a Text, an Image or a sum of such, numbers, or another expression of vectors. Cosine
    distance is 1 - cosine, from 0 to 2. Of a row with parts it is that of the nearest one. Raises InvalidQuery."""

    output_field: Any = FloatField()
    template_of: Mapping[Metric, str] = {"cosine": "({})", "ip": "({})", "l2": "({})"}

    def __init__(self, embedding: str | DjangoExpression | F, query: object, **extra: Any) -> None:  # noqa: ANN401
        if not hasattr(query, "resolve_expression"):
            query = Value(checked(query))
        self._constructor_args = ((embedding, query), extra)
        super().__init__(embedding, query, **extra)

    @cached_property
    def identity(self) -> tuple[object, ...]:
        """What makes it equal to another one; Django's own way takes as long as a quick search."""
        embedding, query = self.get_source_expressions()
        return type(self), embedding, query.value if isinstance(query, Value) else query

    def as_sql(self, compiler: Any, connection: Any, **_: Any) -> tuple[str, Sequence[Any]]:  # noqa: ANN401
        """The comparison; a query in it is a parameter that waits to be encoded."""
        embedding, query = self.get_source_expressions()
        field = embedding.output_field
        own = field if isinstance(field, EmbeddingField) else None
        stored, params = _stored(embedding, own, compiler)
        if not isinstance(query, Value):
            asked, more = compiler.compile(query)
        elif isinstance(query.value, Expression):
            if own is None:
                raise InvalidQuery(
                    f"{query.value!r} is compared with what is no EmbeddingField.",
                    "Compare with the field of an embedding, or give a Vector's numbers.",
                )
            let_ask(connection)
            table = connection.ops.quote_name(own.model._meta.db_table)
            asked, more = "%s::vector", [Waiting(query.value, table, own.target)]
        else:
            asked, more = "%s::vector", [query.value]
        metric: Metric = own.declared.metric if own is not None else "cosine"
        compared = f"{stored} {_OPERATORS[metric]} {asked}"
        if own is not None and own.declared.parts is not None:
            compared = f"SELECT min({compared}){_of_row(embedding, own, compiler)}"
        return self.template_of[metric].format(compared), (*params, *more)


class Score(Distance):
    """How near rows are to a query, the higher the nearer, as ``row.score`` of ``db.search``: the cosine, the inner
    product, or the negative distance. Order by Distance, which has an index."""

    template_of: Mapping[Metric, str] = {"cosine": "(1 - ({}))", "ip": "(-({}))", "l2": "(-({}))"}


def _stored(embedding: Any, field: EmbeddingField | None, compiler: Any) -> tuple[str, Sequence[Any]]:  # noqa: ANN401
    """The vector of a row: its column, or where that is in a side table, a look into it."""
    if not isinstance(embedding.output_field, VectorField):
        raise InvalidQuery(f"{embedding!r} is no vector.", "Name the field of an embedding.")
    if field is None or field.declared.storage == "column":
        return compiler.compile(embedding)
    if field.declared.parts is not None:  # of which there are many, all of them compared
        return "side.vector", []
    return f"(SELECT side.vector{_of_row(embedding, field, compiler)})", []


def _of_row(embedding: Any, field: EmbeddingField, compiler: Any) -> str:  # noqa: ANN401
    """What comes after the SELECT of a look into a side table."""
    quote = compiler.connection.ops.quote_name
    keys = [key.column for key in field.model._meta.pk_fields]
    same = " AND ".join(f"side.{quote(key)} = {quote(embedding.alias)}.{quote(key)}" for key in keys)
    return f" FROM {_side_table(field, quote)} AS side WHERE {same}"


def _side_table(field: EmbeddingField, quote: Callable[[str], str]) -> str:
    """The name of a side table: that of the table, with the target's after it, in the same schema."""
    schema, separator, table = field.model._meta.db_table.strip('"').rpartition('"."')
    return f"{quote(schema)}.{quote(f'{table}_{field.target}')}" if separator else quote(f"{table}_{field.target}")
