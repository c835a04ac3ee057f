"""The statement of a search, and how it is run: as it is, and where too few rows come, for those that belong there."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, cast

from django.db.models import FloatField, Q, Value
from django.db.models.sql import Query
from django.db.models.sql.constants import GET_ITERATOR_CHUNK_SIZE, MULTI
from psycopg import sql

from pgembed.django.apps import app, searcher
from pgembed.django.expressions import Distance
from pgembed.django.fields import EmbeddingField
from pgembed.django.queries import Waiting, let_ask, with_vectors
from pgembed.django.running import run_plan
from pgembed.inputs import Expression
from pgembed.query import SearchRow

if TYPE_CHECKING:
    from django.db.models.sql.compiler import SQLCompiler

_REMEMBERED = 500  # statements
Key = tuple[Any, ...]


class SearchQuery(Query):
    """A query for the rows nearest to something; its limit may be followed by more filters."""

    embedding: EmbeddingField
    asked: Expression
    limit: int | None
    exact: bool

    @classmethod
    def made_of(
        cls, query: Query, embedding: EmbeddingField, asked: Expression, limit: int | None, *, exact: bool
    ) -> SearchQuery:
        """Have a query, which is nobody else's, be one of these."""
        query.__class__ = cls
        search = cast(SearchQuery, query)
        search.embedding, search.asked, search.limit, search.exact = embedding, asked, limit, exact
        return search

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
        return self._has_own_where or len(tables) > 1 or bool(self.group_by)

    @property
    def _has_own_where(self) -> bool:
        own = 1 if self.embedding.declared.storage == "column" else 0
        return self.where.negated or len(self.where.children) > own

    @property
    def shape(self) -> Hashable | None:
        """What the statement of a search of a whole table depends on, beside what is asked; None of any other one, and
        where the query has something that is not known here."""
        state = self.__dict__
        others = [name for name in state if name not in _KNOWN]
        if (
            self._has_own_where
            or len(self.annotations) != 1
            or len(self.alias_map) != 1
            or self.group_by is not None
            or any(state[name] or getattr(Query, name, None) for name in others)
        ):
            return None
        mask, selected = self.annotation_select_mask, cast("dict[str, Any] | None", self.selected)
        return (
            self.model, self.embedding, self.exact, *self.alias_map, *self.annotations, self.low_mark, self.high_mark,
            self.select, self.default_cols, self.deferred_loading, self.values_select,
            None if mask is None else frozenset(mask), None if selected is None else tuple(selected.items()),
        )  # fmt: skip


_KNOWN = frozenset(
    {
        "model", "alias_refcount", "alias_map", "alias_cols", "external_aliases", "table_map", "used_aliases", "where",
        "annotations", "_filtered_relations", "embedding", "asked", "limit", "exact", "order_by", "low_mark",
        "high_mark", "default_cols", "annotation_select_mask", "_annotation_select_cache", "select", "values_select",
        "selected", "deferred_loading", "base_table", "default_ordering", "extra_order_by", "_extra_select_cache",
    }
)  # fmt: skip


@dataclass(frozen=True)
class Compiled:
    """A statement without what was asked, which may be a large picture; and what its compiler knows of its rows."""

    statement: str
    params: Sequence[Any]
    places: Sequence[tuple[str, str] | None]  # of params: the embedding that is asked there
    known: Mapping[str, Any]

    @classmethod
    def by(cls, compiler: Any, statement: str, params: Sequence[Any]) -> Compiled:  # noqa: ANN401
        """What a compiler has written."""
        known = {name: getattr(compiler, name) for name in _OF_A_COMPILER}
        number = Value(0.0, output_field=FloatField())
        known["select"] = [
            (number if isinstance(expression, Distance) else expression, ("", ()), alias)
            for expression, _, alias in known["select"]
        ]
        places = [one.place if type(one) is Waiting else None for one in params]
        return cls(statement, [None if type(one) is Waiting else one for one in params], places, known)

    def asking(self, query: Expression) -> Sequence[Any]:
        """Its parameters, for a query."""
        return tuple(
            one if place is None else Waiting(query, *place)
            for one, place in zip(self.params, self.places, strict=True)
        )


_OF_A_COMPILER = ("select", "klass_info", "annotation_col_map", "col_count", "has_extra_select")


@cache
def _searching(compiler: type[SQLCompiler]) -> type[SQLCompiler]:
    return type("SearchCompiler", (SearchCompiler, compiler), {})


class SearchCompiler:
    """Sends the statement as it is; where the index gave too few rows, the package's own search says which they are."""

    query: SearchQuery
    connection: Any
    using: Any

    def as_sql(self, *args: Any, **options: Any) -> tuple[str, Sequence[Any]]:  # noqa: ANN401
        """The statement; that of a search of a whole table is written once, and kept for other queries."""
        parent, query = cast(Any, super()), self.query
        shape = query.shape if not args and not options else None
        if shape is None:
            return parent.as_sql(*args, **options)
        statements, key = app().statements, (self.connection.alias, shape)
        compiled = statements.get(key)
        if compiled is None:
            statement, params = parent.as_sql()
            if len(statements) >= _REMEMBERED:
                statements.clear()
            statements[key] = Compiled.by(self, statement, params)
            return statement, params
        let_ask(self.connection)
        vars(self).update(compiled.known)
        return compiled.statement, compiled.asking(query.asked)

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
        written = self.connection.ops.compose_sql(statement, with_vectors(self.connection, params))
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
