"""A full PostgreSQL server (17 or newer, with contrib, pgvector and its programs) for the tests marked ``full_server``.

Taken from ``PGEMBED_TEST_DSN``, else started from binaries found on the machine, else from a Debian tree that
debootstrap makes once, below ~/.cache/pgembed. A server that is started here has its data in a temporary folder,
listens on the loopback address, and stops with this process, however the process ends.
"""

from __future__ import annotations

import fcntl
import os
import pwd
import re
import secrets
import shlex
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
from psycopg.conninfo import make_conninfo

MINIMAL_MAJOR = 17
DEBIAN_SUITE = "trixie"
DEBIAN_PACKAGES = ("postgresql-17", "postgresql-17-pgvector", "pgbouncer")
SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "dynamic_shared_memory_type": "mmap",  # a changed root may have no /dev/shm
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "wal_level": "logical",
    "max_prepared_transactions": "20",
    "max_connections": "200",  # 50 clients that each have a second one
    "shared_buffers": "128MB",
    "jit": "off",
}
PROGRAM_TIMEOUT = 300  # seconds


class NotAvailable(Exception):
    """No full server can be had here; the message says why."""


@dataclass(frozen=True)
class Installation:
    """Programs of one PostgreSQL, run as ``user`` (None: the caller), in the tree ``root`` (None: the machine's)."""

    bin_dir: Path
    root: Path | None = None
    user: str | None = None

    def command(self, program: str, *arguments: str) -> list[str]:
        """The command line that runs a program of this installation, or any other program of its tree."""
        own = self.bin_dir / program
        path = str(own) if Path(f"{self.root or ''}{own}").exists() else program
        if self.root is not None:
            return ["chroot", f"--userspec={self.user}:{self.user}", str(self.root), path, *arguments]
        return [path, *arguments]

    def run(
        self, program: str, *arguments: str, input: bytes | None = None, env: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a program to its end; output is captured. Raises RuntimeError with the program's own words."""
        with (
            tempfile.TemporaryFile() as output,
            tempfile.TemporaryFile() as errors,
        ):  # pipes: pg_ctl's server keeps them
            result = subprocess.run(
                self.command(program, *arguments),
                input=input,
                stdin=subprocess.DEVNULL if input is None else None,
                stdout=output,
                stderr=errors,
                timeout=PROGRAM_TIMEOUT,
                check=False,
                **self.identity(env),
            )
            output.seek(0)
            errors.seek(0)
            done = subprocess.CompletedProcess(result.args, result.returncode, output.read(), errors.read())
        if done.returncode != 0:
            raise RuntimeError(
                f"{program} exited with {done.returncode}: {done.stderr.decode(errors='replace')[-2000:]}"
            )
        return done

    def identity(self, env: dict[str, str] | None = None) -> dict[str, Any]:
        """The arguments of subprocess that say who runs a program, where, and with which environment."""
        clean = {key: value for key, value in os.environ.items() if not key.startswith(("PG", "LC_", "LANG"))}
        path = "/usr/sbin:/usr/bin:/sbin:/bin"
        arguments: dict[str, Any] = {"cwd": "/", "env": clean | {"LC_ALL": "C.UTF-8", "PATH": path} | (env or {})}
        if self.root is None and self.user is not None:
            entry = pwd.getpwnam(self.user)
            arguments |= {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
        return arguments


class FullServer:
    """A running server: ``dsn`` names its databases, ``run`` runs psql, pg_dump, pg_restore … of the same version."""

    def __init__(self, dsn: str, installation: Installation | None, data_dir: Path | None = None) -> None:
        self._dsn = dsn
        self.installation = installation
        self._data_dir = data_dir
        self._watchdog: subprocess.Popen[bytes] | None = None

    def dsn(self, dbname: str = "postgres", **parameters: str) -> str:
        """The connection string of a database; ``user=``, ``password=`` and so on replace the superuser's."""
        return make_conninfo(self._dsn, dbname=dbname, **parameters)

    def run(
        self, program: str, *arguments: str, input: bytes | None = None, env: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[bytes]:
        """Run one of the server's programs: ``server.run("pg_dump", "-Fc", server.dsn("shop")).stdout``.

        It may see another file system: give it input and take its output as bytes, not as files.
        """
        if self.installation is None:
            raise NotAvailable(f"{program} of the server's version is not on this machine.")
        return self.installation.run(program, *arguments, input=input, env=env)

    def stop(self) -> None:
        """Stop the server and remove its data, if it was started here."""
        if self._watchdog is not None and self._watchdog.stdin is not None:
            self._watchdog.stdin.close()
            self._watchdog.wait(timeout=PROGRAM_TIMEOUT)
            self._watchdog = None

    def watch(self) -> None:
        """Have a shell stop the server and remove its data when this process ends, even by SIGKILL."""
        assert self.installation is not None
        assert self._data_dir is not None
        inside = inside_of(self.installation.root, self._data_dir)
        stop = shlex.join(self.installation.command("pg_ctl", "stop", "-w", "-m", "immediate", "-D", inside))
        clean = shlex.join(["rm", "-rf", str(self._data_dir.parent)])
        self._watchdog = subprocess.Popen(
            ["/bin/sh", "-c", f"cat >/dev/null; {stop}; {clean}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            **self.installation.identity(),
        )


def full_server() -> FullServer:
    """A full server, by the first way that works. Raises NotAvailable."""
    if dsn := os.environ.get("PGEMBED_TEST_DSN"):
        return named_server(dsn)
    if (found := found_installation()) is not None:
        return start(found)
    return start(debian_installation())


def named_server(dsn: str) -> FullServer:
    """The server that ``PGEMBED_TEST_DSN`` names. Raises NotAvailable where it lacks what the tests need."""
    try:
        with psycopg.connect(dsn) as conn:
            major = conn.info.server_version // 10000
            query = "SELECT name FROM pg_available_extensions WHERE name IN ('vector', 'dblink')"
            extensions = {name for (name,) in conn.execute(query)}
    except psycopg.Error as error:
        reason = " ".join(str(error).split())
        raise NotAvailable(f"PGEMBED_TEST_DSN names a server that cannot be reached: {reason}") from error
    if major < MINIMAL_MAJOR or extensions != {"vector", "dblink"}:
        found = ", ".join(sorted(extensions)) or "neither"
        raise NotAvailable(
            f"PGEMBED_TEST_DSN names PostgreSQL {major} with {found} of vector and dblink; 17 has to be."
        )
    program = shutil.which("pg_dump")
    usable = program is not None and major_of(Path(program)) >= major
    return FullServer(dsn, Installation(Path(program).resolve().parent) if program and usable else None)


def found_installation() -> Installation | None:
    """The newest PostgreSQL on this machine that has contrib and pgvector, if there is one."""
    user: str | None = None
    if os.geteuid() == 0:
        try:
            user = pwd.getpwnam("postgres").pw_name
        except KeyError:
            return None
    patterns = ("usr/lib/postgresql/*/bin", "usr/pgsql-*/bin", "opt/homebrew/opt/postgresql@*/bin")
    folders = [path for pattern in patterns for path in Path("/").glob(pattern)]
    if on_path := shutil.which("initdb"):
        folders.append(Path(on_path).resolve().parent)
    usable = [(major_of(folder / "postgres"), folder) for folder in folders if has_extensions(folder)]
    usable = [(major, folder) for major, folder in usable if major >= MINIMAL_MAJOR]
    return Installation(max(usable)[1], user=user) if usable else None


def has_extensions(bin_dir: Path) -> bool:
    """Whether the server of this folder has the control files of vector and dblink."""
    shared = [Path("/usr/share/postgresql") / bin_dir.parent.name, bin_dir.parent / "share"]
    if (bin_dir / "pg_config").exists():
        answer = subprocess.run([bin_dir / "pg_config", "--sharedir"], capture_output=True, text=True, check=False)
        shared.append(Path(answer.stdout.strip() or "/nonexistent"))
    return (bin_dir / "initdb").exists() and any(
        all((folder / "extension" / f"{name}.control").exists() for name in ("vector", "dblink")) for folder in shared
    )


def major_of(program: Path) -> int:
    """The major version that a program of PostgreSQL tells of itself; 0 where it tells none."""
    with suppress(OSError):
        answer = subprocess.run([program, "--version"], capture_output=True, text=True, check=False).stdout
        if match := re.search(r"\b(\d+)(\.|devel|beta|rc)", answer):
            return int(match[1])
    return 0


def debian_installation() -> Installation:
    """The Debian tree with PostgreSQL 17 and pgvector, made on first use. Raises NotAvailable."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pgembed"
    tree = cache / "postgresql-17"
    installation = Installation(Path("/usr/lib/postgresql/17/bin"), root=tree, user="postgres")
    if os.geteuid() != 0:
        raise NotAvailable("no PostgreSQL 17 with contrib and pgvector was found, and only root can make one here")
    try:
        with locked(cache / "postgresql-17.lock"):
            if not tree.exists():
                make_debian_tree(tree)
    except OSError as error:
        raise NotAvailable(f"a Debian tree could not be made in '{cache}': {error}") from error
    return installation


def make_debian_tree(tree: Path) -> None:
    """Make the tree with debootstrap, beside its place, and put it there when it is whole."""
    print(f"\nMaking a full PostgreSQL 17 in {tree}: once, a minute or so.", flush=True)
    if shutil.which("debootstrap", path="/usr/sbin:/usr/bin:/sbin:/bin") is None:
        install_debootstrap()
    partial = tree.with_name(f"{tree.name}.partial")
    remove_tree(partial)
    include = f"--include={','.join(DEBIAN_PACKAGES)}"
    command = ["debootstrap", "--variant=minbase", include, DEBIAN_SUITE, str(partial), *debian_mirror()]
    result = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        tail = "; ".join((result.stdout + result.stderr).strip().splitlines()[-3:])
        remove_tree(partial)
        raise NotAvailable(f"debootstrap failed with exit code {result.returncode}: {tail}")
    shutil.rmtree(partial / "var/cache/apt", ignore_errors=True)
    shutil.rmtree(partial / "var/lib/postgresql/17", ignore_errors=True)
    partial.rename(tree)


def install_debootstrap() -> None:
    """Install debootstrap with apt. Raises NotAvailable."""
    if shutil.which("apt-get") is None:
        raise NotAvailable("no PostgreSQL 17 with contrib and pgvector was found, nor debootstrap or apt to make one")
    install = ["apt-get", "install", "--yes", "--no-install-recommends", "debootstrap", "debian-archive-keyring"]
    for command in (["apt-get", "update"], install):
        env = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
        result = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, env=env)
    if result.returncode != 0:
        raise NotAvailable(f"debootstrap could not be installed: {result.stderr.strip()[-300:]}")


def debian_mirror() -> list[str]:
    """The mirror that this machine's apt uses, if the machine is a Debian; else debootstrap's own choice."""
    command = ["apt-get", "indextargets", "--format", "$(REPO_URI) $(ORIGIN) $(LABEL)", "Created-By: Packages"]
    with suppress(OSError):
        for line in subprocess.run(command, capture_output=True, text=True, check=False).stdout.splitlines():
            if (match := re.fullmatch(r"(\S+/debian/?) Debian Debian", line)) is not None:
                return [match[1]]
    return []


def remove_tree(tree: Path) -> None:
    """Remove a tree, after whatever an interrupted debootstrap left mounted in it."""
    for line in reversed(Path("/proc/mounts").read_text().splitlines()):
        place = line.split()[1]
        if Path(place).is_relative_to(tree):
            subprocess.run(["umount", "--lazy", place], check=True)
    shutil.rmtree(tree, ignore_errors=True)


def start(installation: Installation) -> FullServer:
    """Start a server of its own on a free port of the loopback address, with an empty data directory."""
    password = secrets.token_urlsafe(16)
    folder = Path(tempfile.mkdtemp(prefix="pgembed-test-", dir=f"{installation.root or ''}/tmp"))
    data_dir = folder / "data"
    (folder / "password").write_text(password)
    if (owner := owner_of(installation)) is not None:
        os.chown(folder, *owner)
        os.chown(folder / "password", *owner)
    inside = inside_of(installation.root, data_dir)
    locale = ("--encoding=UTF8", "--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8")
    access = ("-U", "postgres", "--auth=scram-sha-256", "--pwfile", str(Path(inside).parent / "password"))
    try:
        installation.run("initdb", *locale, *access, "--no-sync", "--no-instructions", "-D", inside)
        port = launch(installation, inside)
    except (RuntimeError, OSError, subprocess.TimeoutExpired) as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise NotAvailable(
            f"PostgreSQL of '{installation.root or installation.bin_dir}' does not start: {error}"
        ) from error
    dsn = make_conninfo(host="127.0.0.1", port=port, user="postgres", password=password, dbname="postgres")
    server = FullServer(dsn, installation, data_dir)
    server.watch()
    return server


def launch(installation: Installation, data_dir: str) -> int:
    """Start the server of a data directory; a port that somebody takes meanwhile is tried again with another."""
    for attempt in range(3):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
        options = " ".join(f"-c {name}={shlex.quote(value)}" for name, value in {**SETTINGS, "port": str(port)}.items())
        log = str(Path(data_dir).parent / "log")
        try:
            installation.run("pg_ctl", "start", "-w", "-t", "60", "-l", log, "-o", options, "-D", data_dir)
        except RuntimeError:
            if attempt == 2:
                raise
        else:
            return port
    raise AssertionError


def owner_of(installation: Installation) -> tuple[int, int] | None:
    """User and group number of the installation's user; numbers in a tree of its own are that tree's."""
    if installation.user is None:
        return None
    if installation.root is None:
        entry = pwd.getpwnam(installation.user)
        return entry.pw_uid, entry.pw_gid
    for line in (installation.root / "etc/passwd").read_text().splitlines():
        name, _, uid, gid, *_ = line.split(":")
        if name == installation.user:
            return int(uid), int(gid)
    raise NotAvailable(f"'{installation.root}' has no user '{installation.user}': remove it, and it is made again")


def inside_of(root: Path | None, path: Path) -> str:
    """A path as it is seen inside the tree."""
    return str(path) if root is None else f"/{path.relative_to(root)}"


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """One process at a time holds the lock of this file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
