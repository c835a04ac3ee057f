"""For tests of the worker: an encoder that does as it is told, and a table with an embedding by it."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self, cast

import numpy as np
import psycopg
import pytest
from numpy.typing import NDArray

from pgembed.decoding.picture import Limits
from pgembed.encoders import Encoder, Modality, Settings
from pgembed.parts import Part, Splitter
from pgembed.worker import Summary, Worker, WorkerOptions

Connection = psycopg.Connection[tuple[Any, ...]]

DIM = 8


def vector_of(value: str) -> NDArray[np.float32]:
    """The unit vector ``(8,) float32`` that FakeEncoder gives for a text, by its hash."""
    seed = int.from_bytes(hashlib.sha256(value.encode()).digest()[:8], "big")
    vector = np.random.default_rng(seed).normal(size=DIM)
    return (vector / np.linalg.norm(vector)).astype(np.float32)


class FakeEncoder(Encoder):
    """``fake:NAME``, 8 dimensions. ``before`` is called with each batch of texts; it may wait, write or raise."""

    scheme: ClassVar[str] = "fake"
    modalities: frozenset[Modality] = frozenset(("text", "image", "screenshot"))
    dim = DIM
    batch_size = 16

    def __init__(self, name: str = "plain") -> None:
        self.spec = f"fake:{name}"
        self.fingerprint = hashlib.sha256(name.encode()).hexdigest()
        self.seen: list[str] = []
        self.before: Callable[[Sequence[str]], None] = lambda texts: None
        self.after: Callable[[NDArray[np.float32]], NDArray[np.float32]] = lambda vectors: vectors

    @classmethod
    def load(cls, name: str, settings: Settings) -> Self:
        return cls(name)

    def embed_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        self.before(texts)
        self.seen.extend(texts)
        return self.after(np.stack([vector_of(text) for text in texts]))

    def embed_pixels(self, pixels: Sequence[Any]) -> NDArray[np.float32]:
        return np.stack([vector_of(str(picture.getpixel((0, 0)))) for picture in pixels])


class Words(Splitter):
    """A part for each word of a text."""

    modalities = frozenset(("text",))

    @classmethod
    def load(cls, options: Mapping[str, Any]) -> Self:
        return cls()

    def split(self, value: str | bytes, encoder: Encoder, limits: Limits) -> Iterator[Part]:
        for found in re.finditer(r"\S+", cast(str, value)):
            yield Part("word", {"start": found.start(), "end": found.end()}, found[0], found[0])


@dataclass
class Installed:
    """Stands for the entry point of a splitter that is installed."""

    kind: type[Splitter]

    def load(self) -> type[Splitter]:
        return self.kind


def use_splitters(**kinds: type[Splitter]) -> Mapping[str, Installed]:
    """What to put in the place of ``pgembed.parts.splitters()``."""
    return {name: Installed(kind) for name, kind in kinds.items()}


def use_encoders(monkeypatch: pytest.MonkeyPatch, encoders: Mapping[str, Encoder]) -> None:
    """Have workers in this process load these encoders, by spec."""

    def load(spec: str, settings: Settings | None = None, *, policy: object = None) -> Encoder:
        return encoders[spec]

    monkeypatch.setattr("pgembed.encoders.load_encoder", load)


class Table:
    """A table ``product(id, title)`` with an embedding of its titles by a FakeEncoder, and workers for it."""

    def __init__(self, conn: Connection, dsn: str, monkeypatch: pytest.MonkeyPatch, storage: str = "column") -> None:
        self.conn = conn
        self.dsn = dsn
        self.storage = storage
        self.encoder = FakeEncoder()
        self.encoders: dict[str, Encoder] = {self.encoder.spec: self.encoder}
        use_encoders(monkeypatch, self.encoders)
        register(conn, "fake", self.encoder)
        conn.execute("CREATE TABLE product (id integer PRIMARY KEY, title text)")
        self.attach()

    def attach(self, table: str = "product", target: str = "embedding", text: str = "title") -> None:
        """Attach the fake encoder, with the storage of this table."""
        self.conn.execute(
            "SELECT pgembed.attach(%s::regclass, %s, 'fake', jsonb_build_object('text', %s::text), storage => %s)",
            [table, target, text, self.storage],
        )

    def rows(self, table: str = "product", target: str = "embedding") -> str:
        """What FROM names to read a table's rows with their vectors, wherever these stand."""
        if self.storage == "column":
            return table
        return f"(SELECT r.*, s.vector AS {target} FROM {table} r LEFT JOIN {table}_{target} s USING (id)) AS r"

    def insert(self, *titles: str | None) -> None:
        """Add rows, with ids that count from 1 on."""
        for title in titles:
            self.conn.execute("INSERT INTO product SELECT coalesce(max(id), 0) + 1, %s FROM product", [title])

    def worker(self, **options: Any) -> Worker:  # noqa: ANN401
        """A worker of this database; looks at an empty queue often."""
        return Worker(lambda: psycopg.connect(self.dsn), WorkerOptions(**{"poll": 0.02, **options}))

    def work(self, **options: Any) -> Summary:  # noqa: ANN401
        """Run a worker until the queue is empty."""
        return self.worker(**options).run("until_idle")

    @contextmanager
    def working(self, **options: Any) -> Iterator[Worker]:  # noqa: ANN401
        """A worker that runs in a thread for as long as the block; its own error, if any, is raised at the end."""
        with self.running(self.worker(**options)) as worker:
            yield worker

    @contextmanager
    def running(self, worker: Worker) -> Iterator[Worker]:
        """The same with a worker that was made before."""
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(worker.run)
            try:
                yield worker
            finally:
                worker.stop()
            running.result(30)

    def true_ids(self) -> list[int]:
        """The ids of rows whose vector is the one of their title."""
        query = f"SELECT id, title, embedding::real[] FROM {self.rows()} ORDER BY id"
        rows = self.conn.execute(query.encode()).fetchall()
        return [
            key
            for key, title, vector in rows
            if vector is not None and np.allclose(vector, vector_of(title), atol=1e-6)
        ]

    def embedded_ids(self) -> list[int]:
        """The ids of rows that have a vector at all."""
        query = f"SELECT id FROM {self.rows()} WHERE embedding IS NOT NULL ORDER BY id"
        rows = self.conn.execute(query.encode()).fetchall()
        return [key for (key,) in rows]

    def failures(self) -> dict[str, str]:
        """The errors of failed rows, by key."""
        rows = self.conn.execute("SELECT key ->> 0, error FROM pgembed.failure ORDER BY key").fetchall()
        return dict(rows)

    def waiting(self) -> int:
        """Changes and jobs in the queue."""
        return self.conn.execute("SELECT sum(queued)::integer FROM pgembed.status").fetchall()[0][0]


@dataclass
class Log:
    """Takes the place of a worker's log, where nothing should be written."""

    lines: list[str] = field(default_factory=list[str])

    def warning(self, event: str, **facts: object) -> None:
        self.lines.append(f"{event} {facts}")

    error = warning


def deadlocks(conn: Connection) -> int:
    """The deadlocks that this database has seen."""
    conn.execute("SELECT pg_stat_force_next_flush()")
    return conn.execute("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()").fetchall()[0][0]


def register(conn: Connection, name: str, encoder: Encoder) -> None:
    """Register an encoder in the catalog under a name."""
    conn.execute(
        "SELECT pgembed.add_encoder(%s, %s, dim => %s, modalities => %s, fingerprint => %s)",
        [name, encoder.spec, encoder.dim, sorted(encoder.modalities), encoder.fingerprint],
    )


def until(true: Callable[[], object], seconds: float = 30) -> None:
    """Wait until something is true."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.01)
