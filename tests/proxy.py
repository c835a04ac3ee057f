"""A TCP proxy before a server: it cuts connections, or lets nothing through, at a moment that a test chooses."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Literal, Self

from psycopg.conninfo import conninfo_to_dict, make_conninfo

When = Literal["before", "after"]


@dataclass(frozen=True)
class Moment:
    """Statements that one connection sends one after the other; and whether it is before the last of them reaches the
    server, or after the server has answered and before the client hears of it."""

    name: str
    when: When
    statements: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.when}-{self.name}".replace(" ", "-")


@dataclass(eq=False)
class Pair:
    """A connection of a client, and the one to the server that stands for it."""

    client: socket.socket
    server: socket.socket
    seen: int = 0  # of the moment's statements
    answer_due: bool = False  # the moment comes with the server's next word

    def cut(self) -> None:
        """End both, as a router does that is switched off."""
        for end in (self.client, self.server):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


@dataclass
class Proxy:
    """Listens on a port of the loopback address for the server of ``server_dsn``."""

    server_dsn: str
    flowing: threading.Event = field(default_factory=threading.Event)
    reached: threading.Event = field(default_factory=threading.Event)  # the moment has come
    _moment: Moment | None = None
    _act: Callable[[Pair], None] | None = None
    _pairs: list[Pair] = field(default_factory=list[Pair])
    _guard: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    @contextmanager
    def before(cls, server_dsn: str) -> Generator[Self]:
        """A proxy for as long as the block."""
        proxy = cls(server_dsn)
        proxy.flowing.set()
        with socket.create_server(("127.0.0.1", 0)) as listening:
            proxy._listening = listening
            threading.Thread(target=proxy._accept, daemon=True).start()
            try:
                yield proxy
            finally:
                with suppress(OSError):
                    listening.shutdown(socket.SHUT_RDWR)
                proxy.flowing.set()
                proxy.cut_all()

    _listening: socket.socket = field(init=False)

    @property
    def dsn(self) -> str:
        """The server's connection string, by way of this proxy."""
        port = self._listening.getsockname()[1]
        return make_conninfo(self.server_dsn, host="127.0.0.1", port=port, sslmode="disable", gssencmode="disable")

    def at(self, moment: Moment, act: Callable[[Pair], None]) -> None:
        """Do something once, when the moment comes, with the connection that it comes to."""
        with self._guard:
            self.reached.clear()
            self._moment, self._act = moment, act
            for pair in self._pairs:
                pair.seen, pair.answer_due = 0, False

    def stall(self, pair: Pair | None = None) -> None:
        """Let nothing through, either way, and keep all connections."""
        self.flowing.clear()

    def cut_all(self) -> None:
        """End every connection."""
        for pair in self._pairs:
            pair.cut()

    def _accept(self) -> None:
        where = conninfo_to_dict(self.server_dsn)
        while True:
            try:
                client, _ = self._listening.accept()
            except OSError:
                return
            host, port = str(where["host"]), str(where.get("port") or "5432")
            if host.startswith("/"):
                server = socket.socket(socket.AF_UNIX)
                address: object = f"{host}/.s.PGSQL.{port}"
            else:
                server = socket.socket()
                address = (host, int(port))
            try:
                server.connect(address)
            except OSError:  # it is down: so is the way to it
                client.close()
                continue
            self._pairs.append(pair := Pair(client, server))
            for pump in (self._to_server, self._to_client):
                threading.Thread(target=pump, args=(pair,), daemon=True).start()

    def _to_server(self, pair: Pair) -> None:
        with suppress(OSError):
            while data := pair.client.recv(1 << 16):
                self.flowing.wait()
                if self._comes(pair, data):
                    self._do(pair)
                    self.flowing.wait()
                pair.server.sendall(data)
        pair.cut()

    def _to_client(self, pair: Pair) -> None:
        with suppress(OSError):
            while data := pair.server.recv(1 << 16):
                if pair.answer_due:
                    pair.answer_due = False
                    self._do(pair)
                self.flowing.wait()
                pair.client.sendall(data)
        pair.cut()

    def _comes(self, pair: Pair, data: bytes) -> bool:
        """Whether the moment is here; notes how far the connection has come towards it."""
        with self._guard:
            moment = self._moment
            if moment is None:
                return False
            while pair.seen < len(moment.statements):
                if (found := re.search(moment.statements[pair.seen].encode(), data)) is None:
                    return False
                data = data[found.end() :]
                pair.seen += 1
            self._moment = None
            pair.answer_due = moment.when == "after"
            return moment.when == "before"

    def _do(self, pair: Pair) -> None:
        assert self._act is not None
        self._act(pair)
        self.reached.set()


# Between every two things that a worker says to the database

WRITE = "WITH (written|given) AS"
MOMENTS = [
    Moment("the fold", "before", ("WITH moved AS",)),
    Moment("the fold's commit", "before", ("WITH moved AS", "COMMIT")),
    Moment("the fold's commit", "after", ("WITH moved AS", "COMMIT")),
    Moment("the backfill's step", "after", ("WITH step AS", "COMMIT")),
    Moment("the claim", "before", ("WITH fresh AS",)),
    Moment("the claim's commit", "before", ("WITH fresh AS", "COMMIT")),
    Moment("the claim's commit", "after", ("WITH fresh AS", "COMMIT")),
    Moment("reading", "after", ("RIGHT JOIN",)),
    Moment("locking rows", "before", (r"SKIP LOCKED\) AS locked",)),
    Moment("locking rows", "after", (r"SKIP LOCKED\) AS locked",)),
    Moment("the write", "after", (WRITE,)),
    Moment("the write's commit", "before", (WRITE, "COMMIT")),
    Moment("the write's commit", "after", (WRITE, "COMMIT")),
    Moment("giving up a row", "before", ("WITH gone AS",)),
    Moment("giving up a row's commit", "before", ("WITH gone AS", "COMMIT")),
    Moment("giving up a row's commit", "after", ("WITH gone AS", "COMMIT")),
    Moment("counting", "before", ("INSERT INTO pgembed.written",)),
    Moment("counting's commit", "after", ("INSERT INTO pgembed.written", "COMMIT")),
]
