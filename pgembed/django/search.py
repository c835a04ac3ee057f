"""``search``: the nearest rows of a queryset, as many as match, in one statement where the index gives enough."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, Self, cast

from django.db.models import Manager, Model, Q, QuerySet
from django.db.models.lookups import IsNull
from django.db.models.sql import Query
from django.db.models.sql.constants import GET_ITERATOR_CHUNK_SIZE, MULTI
from django.db.models.sql.where import AND
from psycopg import sql

from pgembed.django.apps import searcher
from pgembed.django.expressions import Distance, Score
from pgembed.django.fields import EmbeddingField
from pgembed.django.running import run_plan
from pgembed.errors import InvalidQuery
from pgembed.inputs import Expression, Vector
from pgembed.query import SearchRow

if TYPE_CHECKING:
    from django.db.models.sql.compiler import SQLCompiler

Key = tuple[Any, ...]


class SearchQuery(Query):
    """A query for the rows nearest to something; its limit may be followed by more filters."""

    embedding: EmbeddingField
    asked: Expression
    limit: int | None

    def get_compiler(self, *args: Any, **options: Any) -> SQLCompiler:  # noqa: ANN401
        """One that fetches as many rows as match."""
        compiler: Any = super().get_compiler(*args, **options)
        compiler.__class__ = _searching(type(compiler))
        return compiler

    @property
    def is_open(self) -> bool:
        """Whether it is sliced by nothing but its own limit."""
        return self.low_mark == 0 and self.high_mark == self.limit

    @property
    def is_filtered(self) -> bool:
        """Whether rows must match more than that they have a vector."""
        tables = [alias for alias, count in self.alias_refcount.items() if count]
        own = 1 if self.embedding.declared.storage == "column" else 0
        return self.where.negated or len(self.where.children) > own or len(tables) > 1 or bool(self.group_by)


class EmbeddingQuerySet(QuerySet[Any]):
    """A queryset that can be searched by meaning."""

    def search(
        self,
        query: object,
        limit: int | None = 10,
        *,
        embedding: str | None = None,
        exact: bool = False,
        score: str = "score",
    ) -> Self:
        """The ``limit`` rows nearest to a query, best first, each with its ``score``, the higher the nearer.

        It is a queryset like others: filters may come before and after it, as many rows come back as match, and what
        is asked is encoded when it is evaluated. None leaves the limit to a slice. ``embedding`` names one of several
        fields, ``exact`` uses no vector index, and ``score`` is what the annotation is called. Raises InvalidQuery.
        """
        if limit is not None and (not isinstance(limit, int) or isinstance(limit, bool) or limit < 1):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InvalidQuery(f"The limit is the number of rows wanted, at least 1, not {limit!r}.")
        field = _embedding(cast("type[Model]", self.model), embedding)
        asked = query if isinstance(query, Expression) else Vector(cast(Any, query))
        found = self._chain()
        found.query = searching = found.query.chain(SearchQuery)
        searching.embedding, searching.asked, searching.limit = field, asked, limit
        vector, distance = searching.resolve_ref(field.name), Distance(field.name, asked)
        searching.add_annotation(Score(vector, asked), score)
        searching.clear_ordering(force=True)
        searching.add_ordering(0.0 + distance if exact else distance)
        if field.declared.storage == "column":
            searching.where.add(IsNull(vector, False), AND)
        if limit is not None:
            searching.set_limits(high=limit)
        return found

    async def asearch(self, query: object, limit: int | None = 10, **options: Any) -> list[Any]:  # noqa: ANN401
        """The rows of ``search``, in a list."""
        return [row async for row in self.search(query, limit, **options)]

    def filter(self, *args: Any, **kwargs: Any) -> Self:  # noqa: ANN401
        return self._among_all(lambda every: super().filter(*args, **kwargs))

    def exclude(self, *args: Any, **kwargs: Any) -> Self:  # noqa: ANN401
        return self._among_all(lambda every: super().exclude(*args, **kwargs))

    def _among_all(self, chosen: Callable[[Self], Self]) -> Self:
        """Choose among all rows, and limit these."""
        if not isinstance(self.query, SearchQuery) or not self.query.is_open:
            return chosen(self)
        every = self._chain()
        every.query.clear_limits()
        found = chosen(every)
        if self.query.limit is not None:
            found.query.set_limits(high=self.query.limit)
        return found


class EmbeddingManager(Manager.from_queryset(EmbeddingQuerySet)):
    """``objects = EmbeddingManager()`` gives a model ``objects.search(…)``."""


@cache
def _searching(compiler: type[SQLCompiler]) -> type[SQLCompiler]:
    return type("SearchCompiler", (_SearchCompiler, compiler), {})


class _SearchCompiler:
    """Sends the statement as it is; where the index gave too few rows, the package's own search says which they are."""

    query: SearchQuery
    connection: Any
    using: Any

    def execute_sql(
        self,
        result_type: str = MULTI,
        chunked_fetch: bool = False,
        chunk_size: int = GET_ITERATOR_CHUNK_SIZE,
    ) -> Any:  # noqa: ANN401
        parent = cast(Any, super())
        query = self.query
        if result_type != MULTI or query.explain_info or query.high_mark is None or query.is_empty():
            return parent.execute_sql(result_type, chunked_fetch, chunk_size)
        if query.embedding.declared.storage == "side":  # which only that search has an index for
            parent.as_sql()  # for what is read of each row
            return self._only(self._nearest()).execute_sql(MULTI, chunked_fetch, chunk_size)
        chunks: list[Sequence[Any]] = list(parent.execute_sql(MULTI, False, chunk_size))
        found = query.low_mark + sum(map(len, chunks))
        if found >= query.high_mark or len(keys := self._nearest()) <= found:
            return chunks
        return self._only(keys).execute_sql(MULTI, chunked_fetch, chunk_size)

    def _nearest(self) -> list[Key]:
        """The keys of the rows wanted and of those before them, by the search that never comes back short."""
        query, opts = self.query, self.query.embedding.model._meta
        columns = [field.column for field in opts.pk_fields]
        plan = searcher(self.connection.alias).search(
            self.connection.ops.quote_name(opts.db_table),
            query.asked,
            embedding=query.embedding.target,
            limit=query.high_mark,
            columns=columns,
            where=self._where(columns) if query.is_filtered else None,
        )
        rows: list[SearchRow] = run_plan(self.connection, plan)
        return [tuple(row[column] for column in columns) for row in rows]

    def _where(self, columns: Sequence[str]) -> str:
        """What rows must match: that their key is among those of the query without order and limits."""
        matching = self.query.chain(Query)
        matching.clear_limits()
        matching.clear_ordering(force=True)
        matching.clear_select_clause()
        matching.add_fields([field.name for field in self.query.embedding.model._meta.pk_fields])
        statement, params = matching.get_compiler(connection=self.connection).as_sql()
        written = self.connection.ops.compose_sql(statement, params)
        keys = sql.SQL(", ").join(map(sql.Identifier, columns)).as_string(None)
        return f"({keys}) IN ({written})"

    def _only(self, keys: Sequence[Key]) -> SQLCompiler:
        """The same query, of these rows alone, all of which are compared."""
        query = self.query.chain(Query)
        low, high = query.low_mark, query.high_mark
        query.clear_limits()
        opts = query.embedding.model._meta
        name = "pk" if len(opts.pk_fields) > 1 else opts.pk.name
        query.add_q(Q((f"{name}__in", [key[0] if len(key) == 1 else key for key in keys])))
        query.clear_ordering(force=True)
        query.add_ordering(0.0 + Distance(self.query.embedding.name, self.query.asked))
        query.set_limits(low, high)
        return query.get_compiler(connection=self.connection)


def _embedding(model: type[Model], name: str | None) -> EmbeddingField:
    """The embedding of a model that is named, or its only one. Raises InvalidQuery."""
    fields: Iterable[Any] = model._meta.get_fields()
    there = {field.name: field for field in fields if isinstance(field, EmbeddingField)}
    known = ", ".join(there) or "none"
    if name is None and len(there) != 1:
        raise InvalidQuery(f"{model._meta.label} has {len(there)} embeddings: {known}.", 'Say which: embedding="…".')
    field = next(iter(there.values())) if name is None else there.get(name)
    if field is None:
        raise InvalidQuery(f"{model._meta.label} has no embedding '{name}'.", f"It has: {known}.")
    return field
