"""SQL with its parameters, and what is searched: what the rest of this package makes and is told."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from psycopg import sql

from pgembed.fusing import Parts
from pgembed.vectors import PackedVector

if TYPE_CHECKING:
    from pgembed.encoders.base import Metric

Parameters = Sequence[Any] | Mapping[str, Any]
Values = tuple[Any, ...] | dict[str, Any]
Prefer = Literal["exact", "static"]

_PLACEHOLDER = re.compile(r"%(?:\((?P<name>[^)]*)\)[sbt]|(?P<plain>[sbt])|(?P<percent>%))")


@dataclass(frozen=True)
class Statement:
    """SQL and its parameters, for anybody's connection: ``conn.execute(statement.text, statement.params)``.

    ``values`` are the parameters with vectors in pgvector's binary form, which is quicker on connections that
    ``pgembed.vectors.register_packed`` has prepared; in ``params`` they are text, which every connection takes.
    """

    text: sql.Composed
    values: Values = ()

    @cached_property
    def params(self) -> Values:
        """The parameters, vectors as text: ``[0.1,0.2]``."""
        if isinstance(self.values, dict):
            return {name: _plain(value) for name, value in self.values.items()}
        return tuple(_plain(value) for value in self.values)

    def as_string(self) -> str:
        """The SQL with its parameters in place, to be read, or run in psql."""
        plain = iter(self.params.values() if isinstance(self.params, dict) else self.params)

        def literal(match: re.Match[str]) -> str:
            if match["percent"]:
                return "%"
            value = self.params[match["name"]] if isinstance(self.params, dict) else next(plain)
            return sql.Literal(value).as_string(None)

        return _PLACEHOLDER.sub(literal, self.text.as_string(None))


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a searched table; a wide one (bytea, vectors) is read only when asked for."""

    name: str
    wide: bool = False


@dataclass(frozen=True, slots=True)
class Side:
    """A table that holds vectors, in its column ``vector``, beside the rows; its key's columns in order."""

    schema: str
    table: str
    keys: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Target:
    """What is searched: an embedding, its table and its encoder, as the catalog has them.

    ``static_text`` tells that Postgres computes the vectors of texts itself. ``vector_schema`` is where the vector
    extension lives, or None where the search path finds it.
    """

    schema: str
    table: str
    column: str
    encoder: str
    space: str
    dim: int  # of a stored vector
    columns: tuple[Column, ...]
    keys: tuple[str, ...] = ()
    metric: Metric = "cosine"
    static_text: bool = False
    prefer: Prefer | None = None  # how it computes them, where there are two ways
    vector_schema: str | None = None
    half: bool = False  # the column is a halfvec
    side: Side | None = None  # where the vectors do not stand in the rows
    row_security: bool = False  # policies filter what is read
    rows: float = 0.0  # about how many there are
    graph: bool = True  # an HNSW index holds all vectors
    partial: tuple[str, ...] = ()  # names of the indexes that hold a part of the rows only
    parts: Parts = ()  # of a stored vector in which inputs stand side by side
    split: bool = False  # a row has many vectors, one for each part
    quantization: str | None = None  # of the index over them: "none", "half" or "binary"

    @property
    def name(self) -> str:
        """``product.embedding``, for messages."""
        return f"{self.table}.{self.column}"

    @property
    def relation(self) -> str:
        """The table as a text that is a regclass."""
        return sql.Identifier(self.schema, self.table).as_string(None)

    @property
    def encoder_dim(self) -> int:
        """How many dimensions the encoder's vectors have."""
        return self.dim // max(1, len(self.parts))

    @property
    def shares(self) -> tuple[float, ...]:
        """The shares of the parts of a vector."""
        return tuple(share for _, share in self.parts)


def quoted(*parts: str) -> sql.Identifier:
    """A name, in which psycopg must not see placeholders."""
    return sql.Identifier(*(part.replace("%", "%%") for part in parts))


def among(
    target: Target, keys: Sequence[Sequence[Any]], table: sql.Composable | None = None
) -> tuple[sql.Composed, list[Any]]:
    """That a row has one of these keys, and the parameters of that condition; ``table`` is what FROM calls the table,
    where it must be said."""
    names = [quoted(name) if table is None else sql.SQL(".").join([table, quoted(name)]) for name in target.keys]
    one = sql.SQL("({})").format(sql.SQL(" AND ").join(sql.SQL("{} = %s").format(name) for name in names))
    return sql.SQL(" OR ").join([one] * len(keys)), [part for key in keys for part in key]


def unused(name: str, taken: Iterable[str]) -> str:
    """``name``, with underscores at its end until it is not taken."""
    names = set(taken)
    while name in names:
        name += "_"
    return name


def _plain(value: object) -> object:
    if not isinstance(value, PackedVector):
        return value
    (dim,) = struct.unpack_from(">H", value)
    return "[" + ",".join(f"{number:.9g}" for number in struct.unpack_from(f">{dim}f", value, 4)) + "]"
