"""One request to an embedding server: tried again where that may help, and every failure told in one sentence."""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, cast
from urllib.parse import quote

import httpx
from tenacity import RetryCallState, Retrying, retry_if_exception_type

from pgembed.encoders.http.config import Config
from pgembed.encoders.http.keys import Key
from pgembed.encoders.http.limits import Rate
from pgembed.errors import EncoderUnavailable

REFUSED = frozenset({400, 413, 414, 422})  # the request is at fault: its size, or an input
LATER = frozenset({408, 409, 423, 424, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524, 529})
TRIES_OF_500 = 2  # an error in the server's own code seldom goes away
MAX_ANSWER_BYTES = 256 * 1024 * 1024
WORDS_AT = ("error", "message", "detail", "msg", "error_message")
MAX_WORDS = 240  # of what a server says


class Refused(Exception):
    """The server refuses this request, and would again: 400, 413, 422; 500 after a second try. Has its words."""

    def __init__(self, status: int, words: str) -> None:
        super().__init__(words)
        self.status = status
        self.words = words


class Busy(EncoderUnavailable):
    """The server asks to be left alone for ``retry_after`` seconds."""

    def __init__(self, message: str, hint: str | None = None, *, retry_after: float) -> None:
        super().__init__(message, hint)
        self.retry_after = retry_after


class _Later(Exception):
    """A failure that may pass: what is raised when the tries are used up, and how long the server asks to wait."""

    def __init__(self, error: EncoderUnavailable | Refused, *, wait: float | None = None, tries: int = 100) -> None:
        super().__init__(str(error))
        self.error = error
        self.wait = wait
        self.tries = tries


class Server:
    """Sends requests with the key, and keeps the connections. Threads may share it."""

    def __init__(
        self,
        config: Config,
        key: Key | None,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._config = config
        self._key = key
        self._clock = clock
        self._sleep = sleep
        self._lock = threading.Lock()
        self._client: httpx.Client | None = None
        self._not_before = 0.0  # the server asked to be left alone until then
        self._requests = Rate(config.get("requests_per_minute", None), clock=clock, sleep=sleep)
        self._tokens = Rate(config.get("tokens_per_minute", None), clock=clock, sleep=sleep)
        self._timeout = float(config.get("timeout", 120))
        self._patience = float(config.get("patience", 60))
        self._tries = int(config.get("retries", 5))

    @property
    def who(self) -> str:
        """The server, as errors name it."""
        return f"The server {self._config.host} of '{self._config.spec}'"

    def post(self, body: Mapping[str, Any], *, tokens: int = 0) -> Any:  # noqa: ANN401
        """Send a request of so many tokens. Raises Refused, or EncoderUnavailable once the tries are used up."""
        content = json.dumps(body, ensure_ascii=False, allow_nan=False).encode(errors="replace")
        return self._tried("POST", self._config.form.path, content, tokens)

    def get(self, path: str) -> Any:  # noqa: ANN401
        """Ask for what the server says of itself. Raises Refused, or EncoderUnavailable."""
        return self._tried("GET", path, None, 0)

    def unusable(self, why: str) -> EncoderUnavailable:
        """The error for an answer that cannot be read: no row is at fault."""
        return EncoderUnavailable(
            f"{self.who} {self._clean(why)}.",
            "See whether it is the server and the preset that were meant: pgembed encoder test.",
        )

    def seconds_for(self, calls: int, tokens: int) -> float:
        """The least that so many requests and tokens take under the rate limits."""
        return max(self._requests.seconds_for(calls), self._tokens.seconds_for(tokens))

    def close(self) -> None:
        """Close the connections that are kept."""
        with self._lock:
            if self._client is not None:
                self._client.close()
                self._client = None

    def _tried(self, method: str, path: str, content: bytes | None, tokens: int) -> Any:  # noqa: ANN401
        rest = self._not_before - self._clock()
        if rest > 0:
            raise Busy(f"{self.who} asked to be left alone for another {rest:.0f} s.", retry_after=rest)
        started = self._clock()

        def give_up(state: RetryCallState) -> bool:
            late = _failure(state)
            waited = self._clock() - started
            return state.attempt_number >= min(self._tries, late.tries) or waited + self._wait(state) > self._patience

        def raise_it(state: RetryCallState) -> Any:  # noqa: ANN401
            late = _failure(state)
            if late.wait is not None and isinstance(late.error, EncoderUnavailable):
                self._not_before = self._clock() + late.wait
                raise Busy(late.error.message, late.error.hint, retry_after=late.wait)
            raise late.error

        retrying = Retrying(
            retry=retry_if_exception_type(_Later),
            stop=give_up,
            wait=self._wait,
            sleep=self._sleep,
            retry_error_callback=raise_it,
        )
        return retrying(self._once, method, path, content, tokens)

    def _wait(self, state: RetryCallState) -> float:
        """Seconds before the next try: what the server asks for, else doubling; with jitter, so that not all come at
        once."""
        asked = _failure(state).wait
        if asked is not None:
            return asked + random.uniform(0, 0.1 * asked)
        return min(20.0, 0.5 * 2.0 ** (state.attempt_number - 1)) * random.uniform(0.75, 1.25)

    def _once(self, method: str, path: str, content: bytes | None, tokens: int) -> Any:  # noqa: ANN401
        self._requests.take(1)
        self._tokens.take(tokens)
        host = self._config.host
        try:
            status, headers, body = self._exchange(method, path, content)
        except httpx.TimeoutException:
            late = EncoderUnavailable(
                f"{self.who} did not answer in time.",
                "See whether it is up, or give it more: read_timeout, timeout, or a smaller max_batch.",
            )
            raise _Later(late) from None
        except (httpx.RequestError, OSError) as error:
            gone = EncoderUnavailable(
                f"{self.who} cannot be reached: {self._clean(str(error)) or type(error).__name__}.",
                "See whether it is up, and whether url is right.",
            )
            raise _Later(gone) from None
        if status == 200:
            try:
                return json.loads(body)
            except (ValueError, RecursionError):
                kind = self._clean(headers.get("content-type", "").partition(";")[0])
                raise _Later(self.unusable(f"answered with {kind or 'something'} that is not JSON"), tries=2) from None
        words = self._clean(_words(body))
        told = f"{host} answers HTTP {status}" + (f": {words}" if words else "")
        if status in REFUSED:
            raise Refused(status, told)
        if status in LATER:
            wait = _retry_after(headers) if status in (429, 503) else None
            if status == 500:
                raise _Later(Refused(status, told), tries=TRIES_OF_500)
            raise _Later(self._later(status, told, wait), wait=wait)
        raise self._refused_for_all(status, headers, told)

    def _later(self, status: int, told: str, wait: float | None) -> EncoderUnavailable:
        asks = "" if wait is None else f", and asks to wait {wait:.0f} s"
        hint = "It is not up, or has too much to do; the rows wait."
        if status == 429:
            hint = (
                "Send less at once: requests_per_minute, tokens_per_minute, concurrency; or see to the account's limit."
            )
        return EncoderUnavailable(f"'{self._config.spec}': {told}{asks}.", hint)

    def _refused_for_all(self, status: int, headers: httpx.Headers, told: str) -> EncoderUnavailable:
        """What no other input would mend: the key, the model, the address."""
        spec, host = self._config.spec, self._config.host
        if status in (401, 403):
            if self._key is None:
                return EncoderUnavailable(
                    f"'{spec}': {host} asks for a key (HTTP {status}), and the settings name none.",
                    'Register it with the setting {"key_env": "NAME"} or {"key_file": "/path"}.',
                )
            return EncoderUnavailable(
                f"'{spec}': {host} refuses the key from {self._key.source} (HTTP {status}).",
                f"See that it is whole, valid, and may use '{self._config.model}'.",
            )
        if status == 404:
            return EncoderUnavailable(
                f"'{spec}': {told}: it knows no model '{self._config.model}', or not the path"
                f" {self._path(self._config.form.path)}.",
                "See the model's name, and url and path.",
            )
        if 300 <= status < 400:
            try:
                there = httpx.URL(headers.get("location", "")).host
            except (httpx.InvalidURL, ValueError):
                there = ""
            return EncoderUnavailable(
                f"'{spec}': {host} redirects to {there or 'somewhere else'} (HTTP {status}), which is not followed.",
                "Register the address that answers itself.",
            )
        return EncoderUnavailable(f"'{spec}': {told}.", "See whether url, path and preset are right.")

    def _exchange(self, method: str, path: str, content: bytes | None) -> tuple[int, httpx.Headers, bytes]:
        """Send and read the whole answer, within the time and the size that are allowed."""
        deadline = self._clock() + self._timeout
        url = self._config.url.copy_with(path=self._path(path))
        parameters: Mapping[str, str] = self._config.get("query_string", {})
        with self._open().stream(
            method, url, content=content, params=dict(parameters) or None, auth=self._key
        ) as response:
            body = bytearray()
            for chunk in response.iter_bytes():
                body += chunk
                if self._clock() > deadline:
                    raise httpx.ReadTimeout("too slow")
                if len(body) > MAX_ANSWER_BYTES:
                    raise self.unusable(f"answered with more than {MAX_ANSWER_BYTES:,} bytes")
            return response.status_code, response.headers, bytes(body)

    def _path(self, path: str) -> str:
        return self._config.url.path.rstrip("/") + path.replace("{model}", quote(self._config.model, safe="/"))

    def _open(self) -> httpx.Client:
        with self._lock:
            if self._client is None:
                concurrency = int(self._config.get("concurrency", 4))
                connect = float(self._config.get("connect_timeout", 10))
                read = min(float(self._config.get("read_timeout", 60)), self._timeout)
                headers: Mapping[str, str] = self._config.get("headers", {})
                self._client = httpx.Client(
                    headers={"User-Agent": "pgembed", "Accept": "application/json", **headers}
                    | {"Content-Type": "application/json"},
                    timeout=httpx.Timeout(read, connect=connect, pool=None),
                    limits=httpx.Limits(max_connections=concurrency, max_keepalive_connections=concurrency),
                    follow_redirects=False,
                    trust_env=self._config.url.scheme == "https",  # a proxy would read what is sent without TLS
                )
            return self._client

    def _clean(self, text: str) -> str:
        """A server's or a library's words for a sentence of ours: one line, not long, and without the key."""
        text = " ".join(text.split())
        if self._key is not None:
            text = self._key.removed_from(text)
        return text[:MAX_WORDS].rstrip(".: ")


def _failure(state: RetryCallState) -> _Later:
    error = state.outcome.exception() if state.outcome else None
    assert isinstance(error, _Later)
    return error


def _words(body: bytes) -> str:
    """What a server says went wrong: the message in its JSON, wherever it puts it, or the start of its text."""
    text = body[:10_000].decode(errors="replace")
    try:
        found: Any = json.loads(body[:4_000_000])
    except (ValueError, RecursionError):
        return "" if "<html" in text[:200].lower() else text[:MAX_WORDS]
    for _ in range(4):
        if isinstance(found, list):
            found = next(iter(cast(list[Any], found)), "")
        if isinstance(found, dict):
            fields = cast(dict[str, Any], found)
            found = next((fields[name] for name in WORDS_AT if fields.get(name)), "")
    return found if isinstance(found, str) else ""


def _retry_after(headers: httpx.Headers) -> float | None:
    """Retry-After in seconds: a number, or a date."""
    text = headers.get("retry-after", "").strip()
    try:
        return min(max(0.0, float(text)), 86_400.0)
    except ValueError:
        pass
    try:
        when = parsedate_to_datetime(text)
    except (TypeError, ValueError):
        return None
    when = when if when.tzinfo else when.replace(tzinfo=UTC)
    return min(max(0.0, (when - datetime.now(UTC)).total_seconds()), 86_400.0)
