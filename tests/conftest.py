"""Servers and databases for the tests: a fresh database a test, cloned from a template that is made once a session."""

from __future__ import annotations

import itertools
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import psycopg
import pytest
import structlog
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from pytest_postgresql.janitor import DatabaseJanitor

from pgembed import schema
from pgembed.embedded import EmbeddedServer
from tests.full_server import FullServer, NotAvailable
from tests.full_server import full_server as any_full_server
from tests.roles import roles

pytest.register_assert_rewrite("tests.faults")
Connection = psycopg.Connection[tuple[object, ...]]

QUICK = {"fsync": False, "synchronous_commit": False, "full_page_writes": False, "autovacuum": False}
SIZES = {"shared_buffers": "128MB", "max_wal_size": "4GB", "max_connections": 100, "max_prepared_transactions": 20}
_numbers = itertools.count(1)


class QuickJanitor(DatabaseJanitor):
    """Copies the template as files instead of page by page: 0.16 s against 0.22 s where it holds 41 MB of tokens."""

    def _build_create_database_sql(self) -> sql.Composed:
        return super()._build_create_database_sql() + sql.SQL(" STRATEGY FILE_COPY")


def janitor(dsn: str, dbname: str, template: str | None = None) -> DatabaseJanitor:
    """What creates the database ``dbname`` on the server of ``dsn``, and drops it."""
    server = conninfo_to_dict(dsn)
    return QuickJanitor(
        user=str(server["user"]),
        host=str(server["host"]),
        port=str(server["port"]),
        password=None if server.get("password") is None else str(server["password"]),
        dbname=dbname,
        template_dbname=template,
        maintenance_dbname=str(server.get("dbname") or "postgres"),
    )


def new_name(kind: str) -> str:
    """A database name that no other test and no other run on the same server uses."""
    return f"pgembed_{kind}_{os.getpid()}_{next(_numbers)}"


def new_template(dsn: str) -> Iterator[str]:
    """A database with the vector extension and pgembed in it; gives its name."""
    with janitor(dsn, name := new_name("template")):
        with psycopg.connect(make_conninfo(dsn, dbname=name), autocommit=True) as conn:
            conn.execute("CREATE EXTENSION vector")
            schema.install(conn)
            conn.execute("VACUUM (FREEZE, ANALYZE)")
        yield name


def new_database(dsn: str, template: str | None = None) -> Iterator[str]:
    """A fresh database; gives its connection string."""
    with janitor(dsn, name := new_name("test"), template):
        yield make_conninfo(dsn, dbname=name)


def connection_to(dsn: str) -> Iterator[Connection]:
    with psycopg.connect(dsn, autocommit=True) as conn:
        yield conn


@pytest.fixture(autouse=True)
def own_logging() -> Iterator[None]:
    """How a command that ran in this process logs ends with its test."""
    yield
    structlog.reset_defaults()


# The embedded PostgreSQL 18


@pytest.fixture(scope="session")
def embedded_server() -> Iterator[EmbeddedServer]:
    """The embedded server, tuned for tests: it may lose everything in a crash."""
    with (
        tempfile.TemporaryDirectory(prefix="pgembed-tests-") as folder,
        EmbeddedServer.start(Path(folder) / "data", settings=QUICK | SIZES) as server,
    ):
        yield server


@pytest.fixture(scope="session")
def server_dsn(embedded_server: EmbeddedServer) -> str:
    """The embedded server, as its superuser: to make roles and databases."""
    return embedded_server.dsn()


@pytest.fixture(scope="session")
def template(server_dsn: str) -> Iterator[str]:
    """The name of the database that ``database`` is cloned from."""
    yield from new_template(server_dsn)


# A database of one's own, on the embedded server; in the modules of CORE also on the full one

CORE = {"install", "attach", "keeping_true", "worker", "search", "algebra", "sql_text"}  # of tests/integration
ALL_CASES = {"keeping_true"}  # elsewhere the cases of parametrized tests run on the embedded server alone, to save time
BOTH_STORAGES = {
    "worker", "worker_faults", "faults_network", "faults_processes", "faults_transactions", "waiting",
}  # fmt: skip
ONE_SERVER = {"embedded_server", "server_dsn", "template"}  # a test that names one of them is about that server


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--long", type=float, default=0.0, metavar="HOURS", help="go on with random operations and faults for so long"
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run the core of the integration tests on both servers; on the full one as marked ``full_server``.

    Tests of the worker run for both storages too, unless they are marked ``column_only``.
    """
    folder, subject = metafunc.definition.path.parent.name, metafunc.definition.path.stem.removeprefix("test_")
    if (
        folder == "integration"
        and subject in BOTH_STORAGES
        and "table" in metafunc.fixturenames
        and not any(metafunc.definition.iter_markers("column_only"))
    ):
        metafunc.parametrize("storage", ["column", "side"], indirect=True)
    if folder != "integration" or subject not in CORE or "server_kind" not in metafunc.fixturenames:
        return
    cases = subject in ALL_CASES or not any(metafunc.definition.iter_markers("parametrize"))
    if cases and not ONE_SERVER & set(metafunc.fixturenames):
        full = pytest.param("full", marks=pytest.mark.full_server)
        metafunc.parametrize("server_kind", ["embedded", full], indirect=True)


LONGEST = {  # modules that take more than a minute, of which none should begin when the others end
    "test_onnx", "test_open_clip", "test_transformers", "test_demo", "test_infinity", "test_readme", "test_versions",
    "test_state_machine", "test_worker_media",
}  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Have the modules that take longest begin first: each runs in one process, and shorter ones fit in beside it."""
    items.sort(key=lambda item: item.path.stem not in LONGEST)


@pytest.fixture
def storage(request: pytest.FixtureRequest) -> str:
    """Where the vectors of ``table`` stand: ``column`` or ``side``."""
    return getattr(request, "param", "column")


@pytest.fixture
def server_kind(request: pytest.FixtureRequest) -> str:
    """Which server ``database`` and ``bare_database`` are on: ``embedded`` or ``full``."""
    return getattr(request, "param", "embedded")


@pytest.fixture
def own_server_dsn(request: pytest.FixtureRequest, server_kind: str) -> str:
    """The server that ``database`` and ``bare_database`` are on, as its superuser."""
    return request.getfixturevalue("full_server_dsn" if server_kind == "full" else "server_dsn")


@pytest.fixture
def database_dsn(request: pytest.FixtureRequest, server_kind: str, own_server_dsn: str) -> Iterator[str]:
    """A fresh database with pgembed installed: its connection string, for programs and for more connections."""
    template = request.getfixturevalue("full_template" if server_kind == "full" else "template")
    yield from new_database(own_server_dsn, template)


@pytest.fixture
def database(database_dsn: str) -> Iterator[Connection]:
    """A connection, in autocommit, to a fresh database with pgembed installed; the same one as ``database_dsn``."""
    yield from connection_to(database_dsn)


@pytest.fixture
def bare_dsn(own_server_dsn: str) -> Iterator[str]:
    """A fresh database with nothing in it: its connection string."""
    yield from new_database(own_server_dsn)


@pytest.fixture
def bare_database(bare_dsn: str) -> Iterator[Connection]:
    """A connection, in autocommit, to a fresh database with nothing in it; the same one as ``bare_dsn``."""
    yield from connection_to(bare_dsn)


# The full server: for tests marked full_server

NO_FULL_SERVER = "no full server: "
NO_POOLER = "no pooler: "
NO_SMALL_DISK = "no small file system: "
NO_CHROMIUM = "no Chromium: "


def cannot_be_had(want: str, reason: NotAvailable) -> NoReturn:
    """Skip a test of the full server for want of something, or fail where PGEMBED_REQUIRE_FULL_SERVER is set."""
    if os.environ.get("PGEMBED_REQUIRE_FULL_SERVER"):
        pytest.fail(f"PGEMBED_REQUIRE_FULL_SERVER is set, and there is {want}{reason}", pytrace=False)
    pytest.skip(f"{want}{reason}")


@pytest.fixture(scope="session")
def full_server() -> Iterator[FullServer]:
    """A full server: roles, contrib, and ``full_server.run("pg_dump", ...)``. Skips where none can be had."""
    try:
        server = any_full_server()
    except NotAvailable as reason:
        cannot_be_had(NO_FULL_SERVER, reason)
    yield server
    server.stop()


@pytest.fixture(scope="session")
def full_server_dsn(full_server: FullServer) -> str:
    """The full server, as its superuser: to make roles and databases."""
    return full_server.dsn()


@pytest.fixture(scope="session")
def full_template(full_server_dsn: str) -> Iterator[str]:
    """The name of the database that ``full_database`` is cloned from."""
    yield from new_template(full_server_dsn)


@pytest.fixture
def full_database_dsn(full_server_dsn: str, full_template: str) -> Iterator[str]:
    """A fresh database on the full server with pgembed installed: its connection string."""
    yield from new_database(full_server_dsn, full_template)


@pytest.fixture
def full_database(full_database_dsn: str) -> Iterator[Connection]:
    """A connection, in autocommit, to a fresh database on the full server with pgembed installed."""
    yield from connection_to(full_database_dsn)


@pytest.fixture
def full_bare_dsn(full_server_dsn: str) -> Iterator[str]:
    """A fresh database on the full server with nothing in it: its connection string."""
    yield from new_database(full_server_dsn)


@pytest.fixture
def shop_password(full_server_dsn: str) -> Iterator[str]:
    """The roles of tests/roles.py on the full server; gives their password. Named before a database, gone after it."""
    with roles(full_server_dsn) as password:
        yield password


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say loudly which tests did not run for want of something, here and, for the end of the run, in a file."""
    skipped = terminalreporter.stats.get("skipped", [])
    told: list[str] = []
    for want, kind in (
        (NO_FULL_SERVER, "full-server tests"),
        (NO_POOLER, "tests behind PgBouncer"),
        (NO_SMALL_DISK, "tests with a full disk"),
        (NO_CHROMIUM, "tests of HTML in Chromium"),
    ):
        missing = [report for report in skipped if want in str(report.longrepr)]
        if not missing:
            continue
        reason = str(missing[0].longrepr[-1]).split(want)[-1]  # the tests may have run in other processes
        line = f"NOT RUN: {len(missing)} {kind}: {reason}"
        names = [f"  {report.nodeid}" for report in missing]
        terminalreporter.write_sep("=", line, red=True, bold=True)
        terminalreporter.write_line("\n".join(names))
        told += [line, *names]
    if told and (file := os.environ.get("PGEMBED_NOT_RUN_FILE")):
        Path(file).write_text("\n".join([*told, ""]))
