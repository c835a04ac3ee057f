"""The embedded server: it starts anywhere, is joined by a second caller, and does not outlive its process."""

from __future__ import annotations

import importlib.util
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from pgembed.embedded import EmbeddedServer, binaries
from pgembed.errors import MissingExtra, PgembedError
from tests.fakes import until

PROGRAM = """
import os, sys
from pgembed.embedded import EmbeddedServer
print(EmbeddedServer.start(sys.argv[1]).dsn(), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """A folder outside of pytest's own, which another run of pytest closes for the user who runs the server."""
    with tempfile.TemporaryDirectory(prefix="pgembed-test-") as folder:
        yield Path(folder)


def wait_until_stopped(dsn: str) -> bool:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            psycopg.connect(dsn).close()
        except psycopg.OperationalError:
            return True
        time.sleep(0.1)
    return False


def test_server_has_pgvector_and_case_rules_of_unicode(tmp_path: Path) -> None:
    with EmbeddedServer.start(tmp_path / "data") as server, psycopg.connect(server.dsn()) as conn:
        conn.execute("CREATE EXTENSION vector")
        assert conn.execute("SELECT lower('É'), '[1,2]'::vector::text").fetchone() == ("é", "[1,2]")


def test_folder_too_deep_for_a_socket_is_no_obstacle(tmp_path: Path) -> None:
    with EmbeddedServer.start(tmp_path / ("deep" * 20) / "with a space, and é" / "data") as server:
        psycopg.connect(server.dsn()).close()
        assert not server.socket_dir.is_relative_to(tmp_path)
    assert not server.socket_dir.exists()


def test_socket_is_open_to_nobody_else(tmp_path: Path) -> None:
    with EmbeddedServer.start(tmp_path / ("deep" * 30)) as server:
        for folder in (server.socket_dir, server.data_dir):
            assert not folder.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO)


def test_second_caller_joins_and_leaves_the_server_running(tmp_path: Path) -> None:
    with EmbeddedServer.start(tmp_path / "data") as first:
        with EmbeddedServer.start(tmp_path / "data") as second:
            assert second.dsn() == first.dsn()
        psycopg.connect(first.dsn()).close()
    assert not first.running


def test_data_outlive_the_server(tmp_path: Path) -> None:
    with EmbeddedServer.start(tmp_path / "data") as server, psycopg.connect(server.dsn()) as conn:
        conn.execute("CREATE TABLE kept AS SELECT 1 AS one")
    server = EmbeddedServer.start(tmp_path / "data", settings={"work_mem": "5MB"})
    with server, psycopg.connect(server.dsn()) as conn:
        assert conn.execute("SELECT one, current_setting('work_mem') FROM kept").fetchone() == (1, "5MB")


def test_server_stops_when_its_process_is_killed(tmp_path: Path) -> None:
    program = [sys.executable, "-c", PROGRAM, str(tmp_path / "data")]
    with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        dsn = process.stdout.readline().strip()
        psycopg.connect(dsn).close()
        process.send_signal(signal.SIGKILL)
    assert wait_until_stopped(dsn)
    until(lambda: not (tmp_path / "data/postmaster.pid").exists())  # it still writes, after it has closed its socket


def test_server_may_outlive_its_process(tmp_path: Path) -> None:
    program = PROGRAM.replace("sys.argv[1])", "sys.argv[1], until_exit=False)").replace("sys.stdin.read()", "")
    result = subprocess.run(
        [sys.executable, "-c", program, tmp_path / "data"], capture_output=True, text=True, check=True
    )
    psycopg.connect(result.stdout.strip()).close()
    server = EmbeddedServer.start(tmp_path / "data")
    assert not server.started
    server.stop()
    assert not server.running


def test_folder_with_other_files_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("mine")
    before = tmp_path.stat()
    with pytest.raises(PgembedError, match="is no data directory"):
        EmbeddedServer.start(tmp_path)
    assert (tmp_path.stat().st_uid, tmp_path.stat().st_mode) == (before.st_uid, before.st_mode)


def test_data_of_another_version_is_refused(tmp_path: Path) -> None:
    (tmp_path / "PG_VERSION").write_text("16\n")
    with pytest.raises(PgembedError, match="made by PostgreSQL 16"):
        EmbeddedServer.start(tmp_path)


def test_server_that_does_not_start_says_why(tmp_path: Path) -> None:
    with pytest.raises(PgembedError, match="no_such_setting"):
        EmbeddedServer.start(tmp_path / "data", settings={"no_such_setting": 1})


def test_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"pgembed-multimodal\[embedded\]"):
        binaries()
