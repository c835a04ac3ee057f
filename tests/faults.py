"""What must hold once the queue is idle, whatever went wrong before; and workers as processes that can be killed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pgembed.embedded import EmbeddedServer
from tests.fakes import Connection, Table, until, vector_of

ROOT = Path(__file__).parents[1]
Encode = Callable[[Sequence[str]], NDArray[np.float32]]

AUDIT = {
    "column": """
        CREATE TRIGGER audit AFTER UPDATE OF embedding ON product FOR EACH ROW
        WHEN (NEW.embedding IS NOT NULL) EXECUTE FUNCTION audit('embedding')
    """,
    "side": """
        CREATE TRIGGER audit AFTER INSERT OR UPDATE ON product_embedding FOR EACH ROW
        EXECUTE FUNCTION audit('vector')
    """,
    "parts": """
        CREATE TRIGGER audit AFTER INSERT OR UPDATE ON product_embedding FOR EACH ROW WHEN (NEW.part = 1)
        EXECUTE FUNCTION audit('vector')
    """,
}


def fake(texts: Sequence[str]) -> NDArray[np.float32]:
    """The vectors of FakeEncoder, of texts that need not be different."""
    return np.stack([vector_of(text) for text in texts])


def audit(conn: Connection, storage: str) -> None:
    """Note each vector that is written to ``product``; its title would not do, which may have changed since."""
    conn.execute(
        "CREATE TABLE IF NOT EXISTS effect (id integer NOT NULL, vector text, at timestamptz DEFAULT clock_timestamp(),"
        " xact xid8 DEFAULT pg_current_xact_id(),"
        " by_worker boolean DEFAULT current_setting('application_name') = 'pgembed worker')"
    )
    conn.execute(
        "CREATE OR REPLACE FUNCTION audit() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " INSERT INTO public.effect (id, vector) VALUES (NEW.id, to_jsonb(NEW) ->> TG_ARGV[0]); RETURN NULL; END $$"
    )
    conn.execute(AUDIT[storage].encode())


def audit_jobs(conn: Connection, storage: str) -> None:
    """The same where an input may well come back, so that one vector is written twice: note each job that ends too."""
    audit(conn, storage)
    conn.execute("CREATE TABLE IF NOT EXISTS ended (id integer, xact xid8 DEFAULT pg_current_xact_id())")
    conn.execute(
        "CREATE OR REPLACE FUNCTION audit_job() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " INSERT INTO public.ended (id) VALUES (OLD.key_1); RETURN NULL; END $$"
    )
    for (number,) in conn.execute("SELECT id FROM pgembed.embedding").fetchall():
        conn.execute(
            f"CREATE TRIGGER audit AFTER DELETE ON pgembed.job_{number} FOR EACH ROW"
            " EXECUTE FUNCTION audit_job()".encode()
        )


def assert_kept(
    conn: Connection,
    *,
    storage: str = "column",
    table: str = "product",
    failed: Mapping[str, str] | None = None,
    encode: Encode = fake,
    key: str = "id",
    text: str = "title",
) -> None:
    """What must hold of a table with one embedding, ``embedding`` of its titles, once nothing waits.

    Every row's vector is the encoding of its present input, and one without input has none; every row that failed is
    in ``failure`` with its reason (``failed``, by key), and no other; no job is left, none is claimed; no vector is
    left of a row that is gone; where ``audit`` looked on, no input's vector was written twice; where ``audit_jobs``
    did, no worker wrote one but in the transaction that ended its job.
    """
    numbers = [number for (number,) in conn.execute("SELECT id FROM pgembed.embedding ORDER BY id").fetchall()]
    for number in numbers:
        for queue in (f"change_{number}", f"job_{number}"):
            assert conn.execute(f"SELECT * FROM pgembed.{queue}".encode()).fetchall() == []
    standing = conn.execute("SELECT queued, claimed FROM pgembed.status").fetchall()
    assert standing == [(0, 0)] * len(numbers)
    query = "SELECT key ->> 0, error FROM pgembed.failure f JOIN pgembed.embedding e ON e.id = f.embedding"
    reasons: dict[str, str] = dict(
        conn.execute(f"{query} WHERE e.relation = '{table}'::regclass::oid".encode()).fetchall()
    )
    assert reasons == dict(failed or {})
    if storage == "parts":
        assert_parts_kept(conn, table, failed or {}, encode, key, text)
    vector = (
        "t.embedding"
        if storage == "column"
        else f"(SELECT s.vector FROM {table}_embedding s WHERE s.{key} = t.{key} ORDER BY part LIMIT 1)"
        if storage == "parts"
        else f"(SELECT s.vector FROM {table}_embedding s WHERE s.{key} = t.{key})"
    )
    rows = conn.execute(f"SELECT t.{key}, t.{text}, {vector}::real[] FROM {table} t".encode()).fetchall()
    sound = [(row, title, found) for row, title, found in rows if str(row) not in reasons]
    assert {str(row) for row, _, _ in rows} >= set(reasons)
    empty = [row for row, title, _ in sound if title is None or not title.strip()]
    assert [row for row, _, found in sound if found is None] == empty
    full = [(row, title, found) for row, title, found in sound if found is not None]
    if full and storage != "parts":
        apart = np.abs(np.array([found for _, _, found in full]) - encode([title.strip() for _, title, _ in full])).max(
            axis=1
        )
        assert [row for (row, _, _), far in zip(full, apart, strict=True) if far > 1e-5] == []
    if storage != "column":
        left_over = f"SELECT s.{key} FROM {table}_embedding s WHERE NOT EXISTS"
        assert conn.execute(f"{left_over} (SELECT FROM {table} t WHERE t.{key} = s.{key})".encode()).fetchall() == []
    if audits := conn.execute("SELECT relname FROM pg_class WHERE relname IN ('effect', 'ended')").fetchall():
        twice = (
            "SELECT e.id, e.xact, count(*) FROM effect e WHERE by_worker GROUP BY 1, 2"
            " HAVING count(*) > (SELECT count(*) FROM ended d WHERE d.id = e.id AND d.xact = e.xact)"
            if len(audits) == 2
            else "SELECT id, vector, array_agg(at) FROM effect GROUP BY 1, 2 HAVING count(*) > 1"
        )
        assert conn.execute(twice.encode()).fetchall() == []


def assert_parts_kept(
    conn: Connection, table: str, failed: Mapping[str, str], encode: Encode, key: str, text: str
) -> None:
    """Every word of every row that did not fail is a part with its own vector and place, and nothing else is one."""
    titles = dict(conn.execute(f"SELECT {key}, {text} FROM {table} WHERE {text} ~ '\\S'".encode()).fetchall())
    parts = conn.execute(
        f"SELECT {key}, part, content, location, vector::real[] FROM {table}_embedding ORDER BY 1, 2".encode()
    ).fetchall()
    found: dict[Any, list[str]] = {}
    for row, number, content, location, _ in parts:
        found.setdefault(row, []).append(content)
        assert number == len(found[row])
        if str(row) not in failed:
            assert titles[row].strip()[location["start"] : location["end"]] == content
    sound = {row: words for row, words in found.items() if str(row) not in failed}
    assert sound == {row: title.split() for row, title in titles.items() if str(row) not in failed}
    if parts:
        apart = np.abs(np.array([vector for *_, vector in parts]) - encode([part[2] for part in parts])).max(axis=1)
        assert [part[:3] for part, far in zip(parts, apart, strict=True) if far > 1e-5] == []


def assert_table_kept(table: Table, failed: Mapping[str, str] | None = None) -> None:
    """The same for the table of tests/fakes.py."""
    assert_kept(table.conn, storage=table.storage, failed=failed)


LASTING = {"shared_buffers": "64MB", "max_connections": 60, "autovacuum": False}


@contextmanager
def lasting_server() -> Generator[EmbeddedServer]:
    """A server that writes its log as one in earnest does, so that a crash loses nothing that was committed."""
    with (
        tempfile.TemporaryDirectory(prefix="pgembed-tests-") as folder,  # pytest's own are closed to the server's user
        EmbeddedServer.start(Path(folder) / "data", settings=LASTING) as server,
    ):
        yield server


def restart(server: EmbeddedServer) -> None:
    """Stop it as an operator does, and start it again."""
    server.stop()
    EmbeddedServer.start(server.data_dir, settings=LASTING)


def crash(server: EmbeddedServer) -> None:
    """End the server as a loss of power would, and let it recover."""
    server._control("stop", "-m", "immediate")
    EmbeddedServer.start(server.data_dir, settings=LASTING)


class Workers:
    """Makes workers that are processes of their own: forked from one that has everything imported."""

    def __init__(self, forks: subprocess.Popen[str]) -> None:
        self._forks = forks
        self.running: set[int] = set()

    @classmethod
    @contextmanager
    def ready(cls) -> Generator[Workers]:
        """Gives what makes them; those that still run at the end are killed."""
        command = [sys.executable, "-m", "tests.forked_workers"]
        with subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        ) as forks:
            workers = cls(forks)
            try:
                yield workers
            finally:
                workers.kill_all()
                assert forks.stdin is not None
                forks.stdin.close()
                forks.wait(10)

    def start(self, dsn: str, **told: Any) -> int:  # noqa: ANN401
        """Start one; gives its process id. ``told`` are keys of tests/forked_workers.py."""
        assert self._forks.stdin is not None
        assert self._forks.stdout is not None
        self._forks.stdin.write(json.dumps({"dsn": dsn, **told}) + "\n")
        pid = int(self._forks.stdout.readline())
        self.running.add(pid)
        return pid

    def join(self, pid: int, seconds: float = 30) -> None:
        """Wait for its end."""
        until(lambda: not alive(pid), seconds)
        self.running.discard(pid)

    def kill_all(self) -> None:
        """Kill those that still run."""
        for pid in list(self.running):
            if alive(pid):
                self.kill(pid)

    def kill(self, pid: int) -> None:
        """Kill it with -9."""
        os.kill(pid, 9)
        self.join(pid)


def alive(pid: int) -> bool:
    """Whether a process is there, and not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def settle(table: Table, seconds: float = 20, **options: Any) -> None:  # noqa: ANN401
    """Have a worker run until nothing waits, or fail."""
    began = time.monotonic()
    table.work(**options)
    assert time.monotonic() - began < seconds
