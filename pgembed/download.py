"""Pictures from URLs: over https, from public addresses only, within limits of bytes, time and redirects.

A URL comes from a table, so it is somebody's wish, not ours. The address that is checked is the one connected to (no
second look-up in between), at every redirect again. Proxies are not used: they would connect to what nobody checked.
A picture that was fetched before is asked for with its ETag or date, and not sent again where it is unchanged.
Certificates are checked against certifi's authorities, or against those of the file that SSL_CERT_FILE names, or of the
folder that SSL_CERT_DIR names.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import ssl
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import httpcore
import httpx

from pgembed.errors import MediaError
from pgembed.media_errors import reason, too_long
from pgembed.shown import shown_source

_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_REFUSED = [  # what ipaddress calls global, and is not: IETF assignments, 6to4, Azure's metadata
    ipaddress.ip_network(network) for network in ("192.0.0.0/24", "192.88.99.0/24", "2002::/16", "168.63.129.16/32")
]
_OTHER_NAME, _EXPIRED = {62, 64}, 10  # of OpenSSL's x509_vfy.h: a host name, an address; the date
_KEPT_BYTES = 64 * 1024 * 1024  # of pictures that may be asked for again
_KEPT_SHARE = 8  # a picture that takes more than this part of it is not kept


@dataclass(frozen=True)
class _Known:
    """A picture as a URL gave it, and the headers that ask whether it still does."""

    body: bytes
    conditions: dict[str, str]


class Downloader:
    """Gets pictures from URLs and keeps its connections, and the pictures it got last; threads may share it.

    ``timeout`` is in seconds and for the whole of a download, redirects and all. ``allow_private`` lets URLs lead to
    this machine and its network.
    """

    def __init__(
        self, *, allow_http: bool, allow_private: bool, max_bytes: int, timeout: float, max_redirects: int
    ) -> None:
        self._allow_http = allow_http
        self._max_bytes = max_bytes
        self._timeout = timeout
        self._max_redirects = max_redirects
        self._lock = threading.Lock()
        self._backend = _GuardedBackend(allow_private=allow_private)
        self._pool: httpcore.ConnectionPool | None = None
        self._known: OrderedDict[str, _Known] = OrderedDict()
        self._known_bytes = 0

    def get(self, source: str) -> bytes:
        """The body at a URL. Raises MediaError, transient where trying again may help."""
        shown = shown_source(source, url=True)
        self._backend.start(self._timeout)
        try:
            url = httpx.URL(source)
            for _ in range(self._max_redirects + 1):
                answer = self._get(url, shown)
                if isinstance(answer, bytes):
                    return answer
                url = answer
        except (httpx.InvalidURL, ValueError):
            raise MediaError(f"The picture {shown} is not a valid URL, or leads to one that is not.") from None
        except httpcore.TimeoutException:
            late = f"The picture {shown} did not arrive within {self._timeout:g} s."
            raise MediaError(late, transient=True) from None
        except (httpcore.NetworkError, httpcore.ProtocolError, OSError) as error:
            raise MediaError(f"The picture {shown} could not be fetched: {reason(error)}.", transient=True) from None
        raise MediaError(f"The picture {shown} is redirected more than {self._max_redirects} times.")

    def _get(self, url: httpx.URL, shown: str) -> bytes | httpx.URL:
        """One request: the body, or where it is redirected to."""
        if url.scheme != "https" and not (url.scheme == "http" and self._allow_http):
            raise MediaError(f"The picture {shown} is at {url.scheme or 'no scheme'}:, and only https: is read.")
        if not url.host:
            raise MediaError(f"The picture {shown} is a URL without a host.")
        if url.userinfo:
            raise MediaError(f"The picture {shown} is a URL with a user name or password, which is not sent.")
        headers = {
            "Host": url.netloc.decode("ascii"),
            "Accept": "image/*",
            "Accept-Encoding": "identity",
            "User-Agent": "pgembed",
        }
        with self._lock:
            known = self._known.get(str(url))
        if known is not None:
            headers |= known.conditions
        timeout = dict.fromkeys(("connect", "read", "write", "pool"), self._timeout)
        target = httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path)
        with self._connections().stream(
            "GET", target, headers=list(headers.items()), extensions={"timeout": timeout}
        ) as response:
            fields = {name.lower(): value for name, value in response.headers}
            if response.status in {301, 302, 303, 307, 308} and b"location" in fields:
                return url.join(fields[b"location"].decode("latin-1"))
            if response.status == 304 and known is not None:
                return known.body
            if response.status != 200:
                later = response.status in {404, 408, 425, 429} or response.status >= 500
                raise MediaError(f"The picture {shown} was answered with HTTP {response.status}.", transient=later)
            announced = fields.get(b"content-length", b"0")
            if announced.isdigit() and int(announced) > self._max_bytes:
                raise too_long(shown, int(announced), self._max_bytes)
            body = bytearray()
            for chunk in response.iter_stream():
                body += chunk
                if len(body) > self._max_bytes:
                    raise too_long(shown, len(body), self._max_bytes)
            found = bytes(body)
            self._keep(str(url), found, fields)
            return found

    def _keep(self, url: str, body: bytes, fields: dict[bytes, bytes]) -> None:
        """Remember a picture, unless it says no more about itself than its pixels, or says that nobody should."""
        conditions = {
            condition: fields[field].decode("latin-1")
            for field, condition in ((b"etag", "If-None-Match"), (b"last-modified", "If-Modified-Since"))
            if field in fields
        }
        if b"no-store" in fields.get(b"cache-control", b"").lower() or len(body) > _KEPT_BYTES // _KEPT_SHARE:
            conditions = {}
        with self._lock:
            if (before := self._known.pop(url, None)) is not None:
                self._known_bytes -= len(before.body)
            if conditions:
                self._known[url] = _Known(body, conditions)
                self._known_bytes += len(body)
            while self._known_bytes > _KEPT_BYTES:
                self._known_bytes -= len(self._known.popitem(last=False)[1].body)

    def _connections(self) -> httpcore.ConnectionPool:
        with self._lock:
            if self._pool is None:  # no proxy: it would connect to addresses that are not checked here
                self._pool = httpcore.ConnectionPool(
                    _ssl_context(), max_connections=64, keepalive_expiry=15, network_backend=self._backend
                )
            return self._pool

    def close(self) -> None:
        """Close the connections that are kept."""
        with self._lock:
            if self._pool is not None:
                self._pool.close()
            self._known.clear()
            self._known_bytes = 0


class _GuardedBackend(httpcore.SyncBackend):
    """Connects to public addresses only: the checked one is the one connected to. Knows each call's deadline."""

    def __init__(self, *, allow_private: bool) -> None:
        self._allow_private = allow_private
        self._call = threading.local()

    def start(self, seconds: float) -> None:
        """Begin a call of this thread, which must be over in so many seconds."""
        self._call.deadline = time.monotonic() + seconds

    def remaining(self, error: type[httpcore.TimeoutException]) -> float:
        seconds: float = self._call.deadline - time.monotonic()
        if seconds <= 0:
            raise error
        return seconds

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        found = _addresses(host, port, self.remaining(httpcore.ConnectTimeout))
        allowed = [address for address in found if self._allow_private or is_public(address)]
        if not allowed:
            raise MediaError(f"The host '{host}' is at the address {found[0]}, which is private or reserved.")
        failed: Exception | None = None
        for address in allowed:
            left = self.remaining(httpcore.ConnectTimeout)
            try:
                stream = super().connect_tcp(address, port, left / 2, local_address, socket_options)
                return _TimedStream(stream, self)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failed = error
        raise failed or httpcore.ConnectError(f"no address of {host}")


class _TimedStream(httpcore.NetworkStream):
    """A connection whose every step ends with its call, so that a server that drips bytes holds no worker."""

    def __init__(self, stream: httpcore.NetworkStream, backend: _GuardedBackend) -> None:
        self._stream = stream
        self._backend = backend

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, self._backend.remaining(httpcore.ReadTimeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, self._backend.remaining(httpcore.WriteTimeout))

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        left = self._backend.remaining(httpcore.ConnectTimeout)
        try:
            return _TimedStream(self._stream.start_tls(ssl_context, server_hostname, left), self._backend)
        except httpcore.ConnectError as error:
            if isinstance(error.__cause__, ssl.SSLCertVerificationError):
                raise _not_trusted(server_hostname or "", error.__cause__) from None
            raise

    def get_extra_info(self, info: str) -> Any:  # noqa: ANN401
        return self._stream.get_extra_info(info)


def _ssl_context() -> ssl.SSLContext:
    try:
        return httpx.create_ssl_context()
    except OSError as error:  # an ssl.SSLError too
        name = "SSL_CERT_FILE" if os.environ.get("SSL_CERT_FILE") else "SSL_CERT_DIR"
        raise MediaError(
            f"{name} is '{os.environ.get(name, '')}', where no certificates can be read: {reason(error)}.",
            "Name a file of certificates in PEM, or leave the variable out, and start the worker again.",
            transient=True,
        ) from None


def _not_trusted(host: str, error: ssl.SSLCertVerificationError) -> MediaError:
    """What a certificate that does not hold costs: its row, until somebody mends one or the other."""
    if error.verify_code in _OTHER_NAME:
        why, hint = "is for another name", "Write the URL with the name that the certificate is for."
    elif error.verify_code == _EXPIRED:
        why, hint = "has expired", "Whoever runs the host must renew it; then put the rows back: pgembed retry."
    else:
        why = f"is not trusted ({error.verify_message})"
        hint = "If you trust it, start the worker with SSL_CERT_FILE=FILE, a file of all authorities that you trust."
    return MediaError(f"The certificate of the host '{host}' {why}.", hint)


def _addresses(host: str, port: int, seconds: float) -> list[str]:
    """The host's addresses; the resolver knows no timeout, so it runs in a thread that may be left behind."""
    answer: list[str] = []
    failure: list[str] = []

    def ask() -> None:
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            answer.extend(dict.fromkeys(str(address[0]) for *_, address in found))
        except (OSError, UnicodeError) as error:
            failure.append(reason(error))

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds)
    if failure or (not answer and not thread.is_alive()):
        raise httpcore.ConnectError(f"host '{host}': {failure[0] if failure else 'no address'}")
    if not answer:
        raise httpcore.ConnectTimeout
    return answer


def is_public(address: str) -> bool:
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is not None or ip in _NAT64:
            return is_public(str(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)))
        if ip.is_site_local:
            return False
    refused = any(ip in network for network in _REFUSED)
    return ip.is_global and not (ip.is_multicast or ip.is_reserved or ip.is_unspecified or refused)
