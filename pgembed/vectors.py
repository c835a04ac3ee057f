"""Vectors on the wire: pgvector's binary form, for COPY and for parameters.

The form is two unsigned 16-bit integers (dimensions, unused) and then float32, all big-endian (pgvector's vector_recv).
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from psycopg.adapt import AdaptersMap, Dumper
from psycopg.pq import Format

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from psycopg import Connection


_BIGINT_OID = 20


class PackedVector(bytes):
    """A vector in pgvector's binary form."""


def pack_one(vector: NDArray[np.float32]) -> PackedVector:
    """One vector ``(dim,) float32`` in binary form."""
    return PackedVector(struct.pack(">HH", vector.shape[0], 0) + vector.astype(">f4").tobytes())


def unpack_one(packed: PackedVector) -> NDArray[np.float32]:
    """What ``pack_one`` packed, ``(dim,) float32``."""
    return np.frombuffer(packed, dtype=">f4", offset=4).astype(np.float32)


def vector_oid(conn: Connection[Any]) -> int:
    """The oid of pgvector's type ``vector`` in this database; 0 where the extension is missing."""
    row = conn.execute(
        "SELECT t.oid FROM pg_catalog.pg_type t JOIN pg_catalog.pg_extension e ON e.extnamespace = t.typnamespace"
        " WHERE e.extname = 'vector' AND t.typname = 'vector'"
    ).fetchone()
    return int(row[0]) if row else 0


@cache
def _packed_dumper(oid: int) -> type[Dumper]:
    class PackedDumper(Dumper):
        format = Format.BINARY

        def dump(self, obj: PackedVector) -> bytes:
            return obj

    PackedDumper.oid = oid
    return PackedDumper


def register_packed(adapters: AdaptersMap, oid: int = 0) -> None:
    """Let a connection or cursor with these adapters send PackedVector: as the type ``oid``, or as what the statement
    says where that is 0."""
    adapters.register_dumper(PackedVector, _packed_dumper(oid))


class BinaryParameter(bytearray):
    """A parameter in the binary form of its type, which the statement names (``$1::bigint[]``)."""


class BinaryParameterDumper(Dumper):
    """Sends a BinaryParameter as it is."""

    format = Format.BINARY
    oid = 0

    def dump(self, obj: BinaryParameter) -> BinaryParameter:
        return obj


def vector_array(vectors: Sequence[NDArray[np.float32]], oid: int) -> BinaryParameter:
    """Vectors ``(dim,) float32`` as a parameter of type ``vector[]``; ``oid`` is that of the type ``vector`` there."""
    dim = len(vectors[0])
    element = np.dtype([("length", ">i4"), ("dim", ">u2"), ("unused", ">u2"), ("numbers", ">f4", (dim,))])
    parameter, elements = _array(len(vectors), element, oid)
    elements["length"] = 4 + 4 * dim
    elements["dim"] = dim
    np.stack(vectors, out=elements["numbers"], casting="same_kind")
    return parameter


def sparse_vector_array(vectors: Sequence[NDArray[np.float32] | None], oid: int) -> BinaryParameter:
    """The same where some are NULL."""
    header = struct.pack(">iiIii", 1, 1, oid, len(vectors), 1)
    missing = struct.pack(">i", -1)
    packed = [missing if v is None else struct.pack(">i", 4 + 4 * len(v)) + pack_one(v) for v in vectors]
    return BinaryParameter(b"".join([header, *packed]))


def bigint_array(numbers: Collection[int]) -> BinaryParameter:
    """Integers as a parameter of type ``bigint[]``."""
    parameter, elements = _array(len(numbers), np.dtype([("length", ">i4"), ("number", ">i8")]), _BIGINT_OID)
    elements["length"] = 8
    elements["number"] = list(numbers)
    return parameter


def _array(count: int, element: np.dtype[Any], oid: int) -> tuple[BinaryParameter, NDArray[Any]]:
    """An array of one dimension in Postgres's binary form, and its elements, to be filled in."""
    header = struct.pack(">iiIii", 1, 0, oid, count, 1)
    parameter = BinaryParameter(len(header) + count * element.itemsize)
    parameter[: len(header)] = header
    return parameter, np.frombuffer(parameter, element, offset=len(header))
