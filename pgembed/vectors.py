"""Vectors on the wire: pgvector's binary form, for COPY and for parameters, without touching the connection's adapters.

The form is two unsigned 16-bit integers (dimensions, unused) and then float32, all big-endian (pgvector's vector_recv).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from psycopg.adapt import AdaptersMap, Dumper
from psycopg.pq import Format

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from psycopg import Connection


class PackedVector(bytes):
    """A vector in pgvector's binary form."""


def pack(matrix: NDArray[np.float32]) -> Iterator[PackedVector]:
    """The rows of ``(n, dim) float32`` in binary form, in order."""
    header = struct.pack(">HH", matrix.shape[1], 0)
    for row in matrix.astype(">f4"):
        yield PackedVector(header + row.tobytes())


def pack_one(vector: NDArray[np.float32]) -> PackedVector:
    """One vector ``(dim,) float32`` in binary form."""
    return PackedVector(struct.pack(">HH", vector.shape[0], 0) + vector.astype(">f4").tobytes())


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


def register_packed(adapters: AdaptersMap, oid: int) -> None:
    """Let a cursor (or connection) with these adapters send PackedVector as type ``vector``."""
    adapters.register_dumper(PackedVector, _packed_dumper(oid))


def copy_header() -> bytes:
    """What a binary COPY begins with."""
    return b"PGCOPY\n\xff\r\n\x00" + bytes(8)


def copy_rows(seqs: NDArray[np.int64], vectors: NDArray[np.float32]) -> bytes:
    """Rows of a binary COPY into ``(seq bigint, vector, gone boolean)``; ``(n,)`` and ``(n, dim)``; none is gone."""
    dim = vectors.shape[1]
    row = np.dtype(
        [
            ("fields", ">i2"), ("seq_length", ">i4"), ("seq", ">i8"),
            ("vector_length", ">i4"), ("dim", ">u2"), ("unused", ">u2"), ("vector", ">f4", (dim,)),
            ("gone_length", ">i4"), ("gone", "u1"),
        ]
    )  # fmt: skip
    rows = np.zeros(len(seqs), dtype=row)
    rows["fields"] = 3
    rows["seq_length"] = 8
    rows["seq"] = seqs
    rows["vector_length"] = 4 + 4 * dim
    rows["dim"] = dim
    rows["vector"] = vectors
    rows["gone_length"] = 1
    return rows.tobytes()


def copy_row_without_vector(seq: int, *, gone: bool) -> bytes:
    """A row of a binary COPY whose vector is NULL: the row has no input, or is gone."""
    return struct.pack(">hiqiiB", 3, 8, seq, -1, 1, gone)


COPY_END = b"\xff\xff"
