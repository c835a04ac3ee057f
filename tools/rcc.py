"""Reads Qt resource archives (.rcc), in which GCompris keeps its pictures and their credits."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

COMPRESSED, DIRECTORY, ZSTANDARD = 1, 2, 4


def read_rcc(archive: Path) -> Iterator[tuple[str, bytes]]:
    """Yield path and content of each file in the archive."""
    data = archive.read_bytes()
    magic, version, tree, contents, names = struct.unpack_from(">4sIIII", data)
    if magic != b"qres":
        raise ValueError(f"{archive} is not a Qt resource archive.")
    node_size = 22 if version >= 2 else 14

    def name_at(offset: int) -> str:
        (length,) = struct.unpack_from(">H", data, names + offset)
        start = names + offset + 6  # the length, then a hash of the name
        return data[start : start + 2 * length].decode("utf-16-be")

    def content_at(offset: int, flags: int) -> bytes:
        if flags & ZSTANDARD:
            raise ValueError(f"{archive} is compressed with Zstandard, which this reader does not know.")
        (length,) = struct.unpack_from(">I", data, contents + offset)
        content = data[contents + offset + 4 : contents + offset + 4 + length]
        return zlib.decompress(content[4:]) if flags & COMPRESSED else content

    def walk(index: int, parents: tuple[str, ...]) -> Iterator[tuple[str, bytes]]:
        node = tree + index * node_size
        name_offset, flags = struct.unpack_from(">IH", data, node)
        path = (*parents, name_at(name_offset)) if index else ()
        if flags & DIRECTORY:
            count, first = struct.unpack_from(">II", data, node + 6)
            for child in range(first, first + count):
                yield from walk(child, path)
        else:
            (offset,) = struct.unpack_from(">I", data, node + 10)
            yield "/".join(path), content_at(offset, flags)

    yield from walk(0, ())
