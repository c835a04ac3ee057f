"""Embeddings in Alembic's migrations: operations, each with its reverse, and autogenerate.

``import pgembed.alembic`` in ``env.py`` is all it takes. Then migrations may say ``op.attach_embedding(…)``, and
``alembic revision --autogenerate`` compares the embeddings, encoders and vector indexes of the models with those of the
database, and leaves alone what pgembed keeps there for itself.
"""

from pgembed.alembic import compare, render
from pgembed.alembic.operations import (
    AddEncoderOp,
    AlterEmbeddingOp,
    AttachEmbeddingOp,
    CreateVectorIndexOp,
    DetachEmbeddingOp,
    DropVectorIndexOp,
    InstallOp,
    RemoveEncoderOp,
    UninstallOp,
)

compare.register()
render.register()

__all__ = [
    "AddEncoderOp",
    "AlterEmbeddingOp",
    "AttachEmbeddingOp",
    "CreateVectorIndexOp",
    "DetachEmbeddingOp",
    "DropVectorIndexOp",
    "InstallOp",
    "RemoveEncoderOp",
    "UninstallOp",
]
