"""Embeddings in SQLAlchemy's models: declared like columns, made by ``create_all``, searched in ordinary statements.

    class Product(Base):
        __tablename__ = "product"
        id: Mapped[int] = mapped_column(primary_key=True)
        title: Mapped[str]
        photo: Mapped[bytes | None]
        embedding: EmbeddingMapped[Vector] = embedding_column(encoder="shop", text="{title}", image="photo", index=True)

    session.scalars(select(Product).order_by(Product.embedding.distance(Text("a red shoe"))).limit(10))

Engines use psycopg (``postgresql+psycopg://``), synchronously or with asyncio.
"""

from pgembed.declared import Declared, EncoderSpec, VectorIndex
from pgembed.sqlalchemy.annotations import EmbeddingMapped
from pgembed.sqlalchemy.columns import Embedding, Vector, embedding_column
from pgembed.sqlalchemy.queries import configure, install
from pgembed.sqlalchemy.reflection import attached
from pgembed.sqlalchemy.tables import embedding_columns

__all__ = [
    "Declared",
    "Embedding",
    "EmbeddingMapped",
    "EncoderSpec",
    "Vector",
    "VectorIndex",
    "attached",
    "configure",
    "embedding_column",
    "embedding_columns",
    "install",
]
