"""PgBouncer before a full server, for tests: Debian's package, from the same tree as the server."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from tests.full_server import FullServer, NotAvailable, inside_of, owner_of

CONFIGURATION = """\
[databases]
* = host={host} port={port}

[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {own_port}
unix_socket_dir =
auth_type = plain
auth_file = {folder}/users
pool_mode = {mode}
default_pool_size = 5
max_prepared_statements = {prepared}
logfile = {folder}/log
"""


@contextmanager
def pgbouncer(
    server: FullServer, users: Mapping[str, str], *, mode: str = "transaction", prepared: int = 0
) -> Generator[dict[str, str]]:
    """A pooler before the server; gives its host and port, for connection strings. Raises NotAvailable without it."""
    installation = server.installation
    if installation is None or (installation.root is None and shutil.which("pgbouncer") is None):
        raise NotAvailable("there is no pgbouncer on this machine")
    address = conninfo_to_dict(server.dsn())
    folder = Path(tempfile.mkdtemp(prefix="pgembed-pool-", dir=f"{installation.root or ''}/tmp"))
    inside = inside_of(installation.root, folder)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    (folder / "ini").write_text(
        CONFIGURATION.format(
            host=address["host"], port=address["port"], own_port=port, folder=inside, mode=mode, prepared=prepared
        )
    )
    quoted = {name.replace('"', '""'): password for name, password in users.items()}
    (folder / "users").write_text("".join(f'"{name}" "{password}"\n' for name, password in quoted.items()))
    if (owner := owner_of(installation)) is not None:
        for path in (folder, *folder.iterdir()):
            os.chown(path, *owner)
    process = subprocess.Popen(
        installation.command("pgbouncer", f"{inside}/ini"),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        **installation.identity(),
    )
    try:
        place = {"host": "127.0.0.1", "port": str(port)}
        _wait(make_conninfo(server.dsn(), **place), process, folder)
        yield place
    finally:
        process.terminate()
        process.wait(timeout=30)
        shutil.rmtree(folder, ignore_errors=True)


def _wait(dsn: str, process: subprocess.Popen[bytes], folder: Path) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            psycopg.connect(dsn).close()
        except psycopg.OperationalError as error:
            if process.poll() is not None or time.monotonic() > deadline:
                log = folder / "log"
                raise RuntimeError(f"pgbouncer: {error} {log.read_text() if log.exists() else ''}") from error
            time.sleep(0.05)
        else:
            return
