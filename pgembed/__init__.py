"""pgembed: search an existing Postgres database by words and pictures. The public names."""

from pgembed._distribution import refuse_the_other

refuse_the_other()

from pgembed.client import Pgembed, connect  # noqa: E402
from pgembed.client_async import AsyncPgembed, connect_async  # noqa: E402
from pgembed.encoders import EncoderPolicy  # noqa: E402
from pgembed.errors import PgembedError  # noqa: E402
from pgembed.inputs import Expression, Image, Screenshot, Text, Vector  # noqa: E402

__all__ = [
    "AsyncPgembed",
    "EncoderPolicy",
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
