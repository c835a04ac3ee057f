"""Embeddings in Django's models: declared like fields, made by migrations, searched by querysets.

    class Product(models.Model):
        title = models.CharField(max_length=200)
        photo = models.BinaryField(null=True)
        embedding = EmbeddingField(encoder="lite", text="{title}", image="photo")
        objects = EmbeddingManager()

    Product.objects.filter(price__lt=50).search(Text("a red shoe"), limit=10)

``"pgembed.django"`` stands in INSTALLED_APPS, and the encoders in the setting PGEMBED. Databases are Postgres with
psycopg 3, on Django 5.2 and later.
"""

from pgembed.declared import EncoderSpec
from pgembed.django.expressions import Distance, Score
from pgembed.django.fields import EmbeddingField
from pgembed.django.indexes import EmbeddingIndex
from pgembed.django.search import EmbeddingManager, EmbeddingQuerySet

__all__ = [
    "Distance",
    "EmbeddingField",
    "EmbeddingIndex",
    "EmbeddingManager",
    "EmbeddingQuerySet",
    "EncoderSpec",
    "Score",
]
