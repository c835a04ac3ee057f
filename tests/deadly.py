"""Pictures that do to the process which decodes them what no library is known to do today, and some will tomorrow."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import PIL.Image
import pytest

_HOOK = """
import ctypes, os, signal
import PIL.Image

def opening(file, *rest, _open=PIL.Image.open, **options):
    end = file.getvalue()[-6:]
    if end == b"<SEGV>":
        ctypes.string_at(0)
    if end == b"<KILL>":
        os.kill(os.getpid(), signal.SIGKILL)
    while end == b"<LOOP>":
        pass
    if end == b"<FULL>":
        bytearray(2**40)
    if end == b"<MORE>":
        bytearray(2**30)
    return _open(file, *rest, **options)

PIL.Image.open = opening
"""


def arm(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have every Python process that starts from now on fall for such pictures; this one does not."""
    (folder / "sitecustomize.py").write_text(_HOOK)
    monkeypatch.setenv("PYTHONPATH", str(folder), prepend=":")


def picture(deed: str, colour: str = "red") -> bytes:
    """A PNG whose decoding comes to SEGV, KILL, LOOP, FULL or MORE, where somebody is armed."""
    file = io.BytesIO()
    PIL.Image.new("RGB", (40, 30), colour).save(file, "PNG")
    return file.getvalue() + f"<{deed}>".encode()


def png(width: int, height: int, pixels: bytes, colour_type: int = 2) -> bytes:
    """A PNG that says it is so large, of 8 bits a channel; ``pixels`` are compressed already, and may be too few."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, 8, colour_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def bomb(width: int, height: int) -> bytes:
    """A PNG with an alpha channel, nothing but zeros: a thousandth of its pixels' size."""
    packer = zlib.compressobj(1)
    packed = b"".join(packer.compress(bytes(1 + 4 * width)) for _ in range(height)) + packer.flush()
    return png(width, height, packed, 6)
