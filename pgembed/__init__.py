"""pgembed: search an existing Postgres database by words and pictures. The public names."""

from pgembed.client import AsyncPgembed, Pgembed, connect, connect_async
from pgembed.errors import PgembedError
from pgembed.inputs import Expression, Image, Screenshot, Text, Vector

__all__ = [
    "AsyncPgembed",
    "Expression",
    "Image",
    "Pgembed",
    "PgembedError",
    "Screenshot",
    "Text",
    "Vector",
    "connect",
    "connect_async",
]
