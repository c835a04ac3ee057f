"""The admin: a search box that searches by meaning, and the status of a model's embeddings above its rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from django.contrib import admin
from django.db import connections, router
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse

from pgembed import catalog
from pgembed.django.fields import EmbeddingField, embeddings_of
from pgembed.django.running import run_plan
from pgembed.django.search import EmbeddingQuerySet
from pgembed.errors import PgembedError
from pgembed.inputs import Text

if TYPE_CHECKING:
    _Base = admin.ModelAdmin
else:
    _Base = object


class EmbeddingAdmin(_Base):
    """Mixed in before ModelAdmin: ``class ProductAdmin(EmbeddingAdmin, admin.ModelAdmin)``.

    ``search_embedding`` names the field that the box searches (default: the first), ``search_limit`` how many rows it
    shows.
    """

    model: Any
    change_list_template: Any = "pgembed/change_list.html"
    search_embedding: str | None = None
    search_limit = 50

    def get_search_fields(self, request: HttpRequest) -> Any:  # noqa: ANN401
        """Any at all has the box shown."""
        return super().get_search_fields(request) or [self._searched()]

    def get_search_results(self, request: HttpRequest, queryset: QuerySet[Any], search_term: str) -> Any:  # noqa: ANN401
        """The nearest rows. An action, which is posted, is for the rows that are ticked."""
        if not search_term.strip() or cast(str, request.method) == "POST":
            return queryset, False
        searchable = EmbeddingQuerySet(queryset.model, queryset.query.chain(), queryset.db)
        found = searchable.search(Text(search_term), self.search_limit, embedding=self._searched())
        return found, False

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        context = {"embeddings": self._status(), **(extra_context or {})}
        return super().changelist_view(request, context)

    def _searched(self) -> str:
        return self.search_embedding or embeddings_of(self.model)[0].name

    def _status(self) -> list[catalog.StatusRow]:
        """How the model's embeddings stand; none where that is not for this role to see."""
        fields: list[EmbeddingField] = list(embeddings_of(self.model))
        connection = connections[router.db_for_read(self.model)]
        try:
            rows = run_plan(connection, catalog.status(connection.ops.quote_name(self.model._meta.db_table)))
        except PgembedError:
            return []
        return [row for row in rows if row.target in {field.target for field in fields}]
