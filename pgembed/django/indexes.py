"""The index over an embedding, for ``Meta.indexes``."""

from __future__ import annotations

from typing import Any

from django.db.models import Model
from pgvector.django import HnswIndex

from pgembed.declared import OPERATOR_CLASSES
from pgembed.django.fields import EmbeddingField


class EmbeddingIndex(HnswIndex):
    """An HNSW index over an embedding, with the operator class of its metric:
    ``EmbeddingIndex(fields=["embedding"], name="product_embedding")``. ``m`` and ``ef_construction`` are pgvector's.

    It is quickest built when the rows are encoded: in a later migration, by AddIndexConcurrently.
    """

    def create_sql(self, model: type[Model], schema_editor: Any, using: str = "", **options: Any) -> Any:  # noqa: ANN401
        index = self
        if not self.opclasses:
            index = self.clone()
            fields = [model._meta.get_field(name) for name, _ in self.fields_orders]
            embeddings = [field for field in fields if isinstance(field, EmbeddingField)]
            index.opclasses = [OPERATOR_CLASSES[field.declared.metric] for field in embeddings]
        return super(EmbeddingIndex, index).create_sql(model, schema_editor, using=using, **options)

    def deconstruct(self) -> tuple[Any, Any, Any]:
        _, args, kwargs = super().deconstruct()
        return "pgembed.django.EmbeddingIndex", args, kwargs
