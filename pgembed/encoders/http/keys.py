"""The key of a server: read from the environment or a file, shown nowhere."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Generator, Mapping
from pathlib import Path

import httpx

from pgembed.encoders.http.config import Config
from pgembed.errors import EncoderError

MAX_KEY_BYTES = 16_384
_PARTS_OF_KEYS = re.compile(r"\b(?:Bearer|Basic)\s+\S+|\b(?:sk|pk|pa|hf|jina|gsk)[-_][\w*-]{4,}")


class Key(httpx.Auth):
    """Adds the key to requests for its own host, and takes it out of texts. Its repr does not hold it."""

    def __init__(self, value: str, *, source: str, header: str | None, url: httpx.URL) -> None:
        self.__value = value
        self._header = header
        self._origin = _origin(url)
        self.source = source  # in words, for errors

    def __repr__(self) -> str:
        return f"Key(from {self.source})"

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        """Called by httpx when a request is sent, and again if it were redirected."""
        if _origin(request.url) == self._origin:
            name, value = (
                ("Authorization", f"Bearer {self.__value}") if not self._header else (self._header, self.__value)
            )
            request.headers[name] = value
        yield request

    def is_in(self, text: str) -> bool:
        """Whether a text holds the key."""
        return self.__value in text

    def removed_from(self, text: str) -> str:
        """A text with the key, and what may be a part of one, taken out."""
        return _PARTS_OF_KEYS.sub("(key)", text.replace(self.__value, "(key)"))


def read_key(config: Config, environment: Mapping[str, str] = os.environ) -> Key | None:
    """The key that the settings name, or None where they name none. Raises EncoderError where it is not there."""
    if config.key_file is not None:
        source = "the file that key_file names"
        try:
            with Path(config.key_file).expanduser().open("rb") as file:
                value = file.read(MAX_KEY_BYTES).decode().strip()
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is not text"
            raise EncoderError(f"The key of '{config.spec}' cannot be read from {source}: {why}.") from None
    elif config.key_env is not None:
        source = f"the environment variable {config.key_env}"
        value = environment.get(config.key_env, "").strip()
    else:
        return None
    if not value:
        raise EncoderError(
            f"The key of '{config.spec}' is read from {source}, which is empty or not set.",
            "Set it where this runs: for workers as well as for queries.",
        )
    if not value.isascii() or not value.isprintable() or " " in value:
        raise EncoderError(f"The key of '{config.spec}' in {source} has characters that no header can hold.")
    key = Key(value, source=source, header=config.get("key_header", None), url=config.url)
    if key.is_in(json.dumps({**config.settings, "model": config.model})):
        raise EncoderError(
            f"The key of '{config.spec}' stands in its settings or its name.", "Take it out there: they are no secret."
        )
    return key


def _origin(url: httpx.URL) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port
