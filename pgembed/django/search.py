"""``search``: the nearest rows of a queryset, as many as match, in one statement where the index gives enough."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Self, cast

from django.db.models import Manager, Model, QuerySet
from django.db.models.lookups import IsNull
from django.db.models.sql.where import AND

from pgembed.django.compiling import SearchQuery
from pgembed.django.expressions import Distance, Score
from pgembed.django.fields import EmbeddingField
from pgembed.errors import InvalidQuery
from pgembed.inputs import Expression, Vector


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
        searching = SearchQuery.made_of(found.query, field, asked, limit, exact=exact)
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
