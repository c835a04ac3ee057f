"""Bytes, a path or a URL -> a decoded RGB picture, as far as a policy lets it be read.

What a database holds is data: a path in it may point anywhere, a URL at the cloud's metadata server, bytes at a bomb.
So paths are opened only below a root, URLs only when switched on and never to a private address (pgembed.download), or
in a bucket that was named (pgembed.buckets), and the size of a picture is read from its header before its pixels are
(pgembed.decoding). Whatever goes wrong is one MediaError.
"""

from __future__ import annotations

import base64
import errno
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self, cast
from urllib.parse import unquote_to_bytes

from PIL import Image

from pgembed.buckets import BucketReader, is_in_a_store, place
from pgembed.decoding.picture import Limits, as_rgb, decode_picture
from pgembed.download import Downloader
from pgembed.errors import MediaError
from pgembed.inputs import SourceKind
from pgembed.media_errors import reason, too_long
from pgembed.shown import shown_source

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

_PLAIN_BASE64 = bytes.maketrans(b"-_", b"+/")
_LATER = {errno.ENOENT, errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EMFILE, errno.ENFILE, errno.EAGAIN}


@dataclass(frozen=True)
class Source:
    """Where one picture of a row comes from; ``number`` is its place in the row's list, from 1 on."""

    value: str | bytes
    kind: SourceKind
    number: int | None = None


def sources(value: object, facts: Mapping[str, Any]) -> list[Source]:
    """The pictures of an input, as a row holds it and the catalog describes it; of a list those that are not null."""
    kind: SourceKind = "bytes" if facts["as"] == "large_object" else facts["as"]
    if not facts.get("list"):
        return [Source(cast("str | bytes", value), kind)]
    return [
        Source(item, kind, number)
        for number, item in enumerate(_flat(value), start=1)
        if item is not None and (isinstance(item, bytes) or item.strip())
    ]


def _flat(value: object) -> Iterator[Any]:
    """The elements of an array, of however many dimensions."""
    if not isinstance(value, list):
        yield value
        return
    for item in cast("list[object]", value):
        yield from _flat(item)


@dataclass(frozen=True)
class MediaPolicy:
    """What may be read. The default is bytes alone, in data: URLs too.

    ``media_root`` is the folder below which paths may lie; ``any_path`` takes every path, as the person at the keyboard
    may: never set it for what comes from a database. ``allow_private`` lets URLs lead to this machine and its network.
    ``buckets`` are those of object stores that may be read: ``s3://shop``, ``gs://shop/photos``, ``az://shop``.
    Raises InvalidInput for one that is none.
    """

    media_root: Path | None = None
    any_path: bool = False
    allow_urls: bool = False
    allow_http: bool = False
    allow_private: bool = False
    buckets: tuple[str, ...] = ()
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        for bucket in self.buckets:
            place(bucket)


class Decode(Protocol):
    """What makes a picture of bytes: ``decode_picture``, or a pool of processes that do the same."""

    def __call__(
        self, data: bytes, limits: Limits, *, shown: str, announce: Callable[[int], object] | None
    ) -> Picture: ...


class MediaReader:
    """Reads pictures under one policy and keeps its connections; threads may share it. Close it, or use ``with``."""

    def __init__(self, policy: MediaPolicy | None = None, decode: Decode = decode_picture) -> None:
        self.policy = policy or MediaPolicy()
        self._decode = decode
        self._downloader = Downloader(
            allow_http=self.policy.allow_http,
            allow_private=self.policy.allow_private,
            max_bytes=self.policy.limits.max_bytes,
            timeout=self.policy.limits.timeout,
            max_redirects=self.policy.limits.max_redirects,
        )
        self._buckets = BucketReader(
            self.policy.buckets, max_bytes=self.policy.limits.max_bytes, timeout=self.policy.limits.timeout
        )

    def open(
        self,
        source: str | bytes | Picture,
        kind: SourceKind,
        announce: Callable[[int], object] | None = None,
    ) -> Picture:
        """Read and decode one picture, as RGB and upright. Raises MediaError.

        ``announce`` is told how many pixels a picture has before they are decoded, where it is large.
        """
        if isinstance(source, Image.Image):
            return as_rgb(source, self.policy.limits, shown_source(source))
        shown = shown_source(source, url=kind == "url")
        return self._decode(self.read(source, kind), self.policy.limits, shown=shown, announce=announce)

    def read(self, source: str | bytes, kind: SourceKind) -> bytes:
        """The bytes of one picture file, not decoded. Raises MediaError."""
        shown = shown_source(source, url=kind == "url")
        if kind == "bytes" and not isinstance(source, str):
            if len(source) > self.policy.limits.max_bytes:
                raise too_long(shown, len(source), self.policy.limits.max_bytes)
            return bytes(source)
        if isinstance(source, str) and kind == "path":
            return _read_path(source, self.policy, shown)
        if isinstance(source, str) and kind == "url":
            if source[:5].lower() == "data:":
                return _read_data_url(source, self.policy.limits.max_bytes, shown)
            if is_in_a_store(source):
                return self._buckets.get(source)
            if not self.policy.allow_urls:
                switched_off = f"The picture {shown} is a URL, and URLs are switched off."
                raise MediaError(switched_off, "Switch them on: --allow-urls")
            return self._downloader.get(source)
        raise MediaError(f"The picture {shown} is {type(source).__name__}, not {kind}.")

    def close(self) -> None:
        """Close the connections that are kept."""
        self._downloader.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_media(source: str | bytes, kind: SourceKind, policy: MediaPolicy | None = None) -> bytes:
    """The bytes of one picture file. Raises MediaError."""
    with MediaReader(policy) as reader:
        return reader.read(source, kind)


def open_picture(source: str | bytes | Picture, kind: SourceKind, policy: MediaPolicy | None = None) -> Picture:
    """Read and decode one picture to RGB, upright: ``open_picture(image.source, image.kind)``. Raises MediaError."""
    with MediaReader(policy) as reader:
        return reader.open(source, kind)


def _read_data_url(source: str, max_bytes: int, shown: str) -> bytes:
    """The bytes that a data: URL holds (RFC 2397). It needs no permission: nobody is asked for anything."""
    head, comma, data = source.partition(",")
    if not comma:
        raise MediaError(f"The picture {shown} is a data: URL without a comma.", "Write data:image/png;base64,…")
    if len(data) > 3 * max_bytes:  # as long as it may be, each byte written as %41
        raise too_long(shown, len(data) // 3, max_bytes)
    found = unquote_to_bytes(data)
    if head.lower().endswith(";base64"):
        try:
            letters = b"".join(found.split()).translate(_PLAIN_BASE64).rstrip(b"=")
            found = base64.b64decode(letters + b"=" * (-len(letters) % 4), validate=True)
        except ValueError as error:
            raise MediaError(f"The picture {shown} is not valid Base64: {reason(error)}.") from None
    if len(found) > max_bytes:
        raise too_long(shown, len(found), max_bytes)
    return found


def _read_path(source: str, policy: MediaPolicy, shown: str) -> bytes:
    try:
        descriptor = _open_path(source, policy, shown)
        with os.fdopen(descriptor, "rb") as file:
            facts = os.fstat(descriptor)
            if not stat.S_ISREG(facts.st_mode):
                raise MediaError(f"The picture {shown} is not a file but a folder, a pipe or a device.")
            if facts.st_size > policy.limits.max_bytes:
                raise too_long(shown, facts.st_size, policy.limits.max_bytes)
            data = file.read(policy.limits.max_bytes + 1)
    except (OSError, ValueError) as error:
        later = isinstance(error, OSError) and error.errno in _LATER
        raise MediaError(f"The picture {shown} could not be opened: {reason(error)}.", transient=later) from None
    if len(data) > policy.limits.max_bytes:
        raise too_long(shown, len(data), policy.limits.max_bytes)
    return data


def _open_path(source: str, policy: MediaPolicy, shown: str) -> int:
    """A descriptor of the file, which lies below the media root however links are changed meanwhile."""
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
    if policy.any_path:
        _require_file(os.stat(source), shown)
        return os.open(source, flags)
    if policy.media_root is None:
        raise MediaError(f"The picture {shown} is a path, and no media root is set.", "Set one: --media-root DIR")
    outside = MediaError(f"The picture {shown} is outside the media root '{policy.media_root}'.")
    if ".." in Path(source).parts:
        raise outside
    root = os.path.realpath(policy.media_root)
    resolved = os.path.realpath(os.path.join(root, source))
    if os.path.commonpath([root, resolved]) != root:
        raise outside
    _require_file(os.stat(resolved), shown)
    # The resolved path holds no links: one that is met now was put there since, and the opening fails.
    *folders, name = Path(resolved).relative_to(root).parts
    at = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for folder in folders:
            inner = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=at)
            os.close(at)
            at = inner
        return os.open(name, flags | os.O_NOFOLLOW, dir_fd=at)
    finally:
        os.close(at)


def _require_file(facts: os.stat_result, shown: str) -> None:
    """Opening a device may already do something, so it is asked before, too."""
    if not stat.S_ISREG(facts.st_mode):
        raise MediaError(f"The picture {shown} is not a file but a folder, a pipe or a device.")
