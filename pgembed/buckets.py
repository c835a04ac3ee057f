"""Pictures from object stores: s3://, gs:// and az:// URLs, through fsspec (extra `cloud`).

Which buckets may be read is said where the worker is started, never in the database; so are credentials and endpoints,
which each store's own library takes from the environment. One request a picture, for no more bytes than one may have.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any, Self

from pgembed.errors import InvalidInput, MediaError, MissingExtra
from pgembed.media_errors import reason, too_long
from pgembed.shown import shown_source

SCHEMES = ("s3", "gs", "az")
_OPTIONS: dict[str, Any] = {"use_listings_cache": False, "skip_instance_cache": True}


@dataclass(frozen=True)
class Place:
    """A bucket, and a key in it or the beginning of keys: ``s3://bucket/key``."""

    scheme: str
    bucket: str
    key: str

    @classmethod
    def of(cls, url: str) -> Self | None:
        """What a URL names; None where it is not of an object store, or names no bucket."""
        scheme, mark, rest = url.partition("://")
        bucket, _, key = rest.partition("/")
        return cls(scheme.lower(), bucket, key) if mark and scheme.lower() in SCHEMES and bucket else None

    def holds(self, other: Place) -> bool:
        """Whether the other lies in this bucket, below this key."""
        if (other.scheme, other.bucket) != (self.scheme, self.bucket):
            return False
        return not self.key or other.key == self.key or other.key.startswith(f"{self.key.rstrip('/')}/")


def is_in_a_store(url: str) -> bool:
    """Whether a URL is one of an object store."""
    return url.partition("://")[0].lower() in SCHEMES


def place(allowed: str) -> Place:
    """What ``--allow-bucket`` names. Raises InvalidInput."""
    found = Place.of(allowed)
    if found is None or ".." in found.key.split("/"):
        raise InvalidInput(
            f"'{allowed}' names no bucket.", "Write s3://NAME, gs://NAME or az://NAME, or s3://NAME/FOLDER."
        )
    return found


class BucketReader:
    """Reads pictures from the buckets that are allowed; threads may share it. ``timeout`` is in seconds, a picture."""

    def __init__(self, allowed: tuple[str, ...], *, max_bytes: int, timeout: float) -> None:
        self._allowed = [place(url) for url in allowed]
        self._max_bytes = max_bytes
        self._timeout = timeout
        self._lock = threading.Lock()
        self._stores: dict[str, Any] = {}

    def get(self, source: str) -> bytes:
        """The object at a URL. Raises MediaError, transient where trying again may help."""
        shown = shown_source(source, url=True)
        found = Place.of(source)
        if found is None or not found.key or {"..", "."} & set(found.key.split("/")):
            raise MediaError(f"The picture {shown} names no object in a bucket.", f"Write {source[:2]}://BUCKET/KEY.")
        if not any(allowed.holds(found) for allowed in self._allowed):
            hint = f"Allow it: --allow-bucket {found.scheme}://{found.bucket}"
            raise MediaError(f"The picture {shown} is in a bucket that is not allowed.", hint)
        store = self._store(found.scheme, shown)
        try:
            data = self._read(store, f"{found.bucket}/{found.key}")
        except FileNotFoundError:
            raise MediaError(f"The picture {shown} is not there.", transient=True) from None
        except PermissionError as error:
            hint = "Give the worker credentials that may read it."
            raise MediaError(f"The picture {shown} may not be read: {reason(error)}.", hint) from None
        except TimeoutError:  # fsspec's own is one
            late = f"The picture {shown} did not arrive within {self._timeout:g} s."
            raise MediaError(late, transient=True) from None
        except Exception as error:  # each store has errors of its own
            raise MediaError(f"The picture {shown} could not be fetched: {reason(error)}.", transient=True) from None
        if len(data) > self._max_bytes:
            raise too_long(shown, len(data), self._max_bytes)
        return data

    def _store(self, scheme: str, shown: str) -> Any:  # noqa: ANN401
        with self._lock:
            if scheme not in self._stores:
                try:
                    import fsspec  # pyright: ignore[reportMissingTypeStubs]

                    self._stores[scheme] = fsspec.filesystem(scheme, **_OPTIONS)  # pyright: ignore[reportUnknownMemberType]
                except ImportError:
                    missing = MissingExtra(f"The picture {shown}", "cloud")
                    raise MediaError(missing.message, missing.hint) from None
                except Exception as error:
                    message = f"The store of the picture {shown} cannot be used: {reason(error)}."
                    raise MediaError(message, "Set what its library needs.", transient=True) from None
            return self._stores[scheme]

    def _read(self, store: Any, path: str) -> bytes:  # noqa: ANN401
        from fsspec.asyn import sync  # pyright: ignore[reportMissingTypeStubs, reportUnknownVariableType]

        end = self._max_bytes + 1
        try:
            found: Any = sync(store.loop, store._cat_file, path, start=0, end=end, timeout=self._timeout)
        except OSError as error:
            if "range" in str(error).lower():  # an empty object has none
                return b""
            raise
        return bytes(found)
