"""Run the published tests of SQLAlchemy, Alembic and pgvector-python with pgembed beside them.

    python -m tools.foreign_suites [--suite NAME ...]

Each suite runs twice on a full server, from the source distribution of the version that is installed here: in a
database that knows nothing of pgembed, and in one where it is installed and embeddings of all storages and modes are
attached, in a process that has imported ``pgembed.sqlalchemy`` and ``pgembed.alembic``. Prints how many tests passed,
names those that passed only without pgembed, and exits with 1 if there is one. Needs a package index, and the full
server that tests are run on.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy import URL

from pgembed import schema
from tests.full_server import FullServer, full_server

# What the tests of pgvector-python import beside what `make` installs; without what these need, which would bring
# other versions of what is tested.
DRIVERS = ("psycopg2-binary", "pg8000", "scramp", "asn1crypto", "python-dateutil", "six", "pytest-asyncio")
# Its source distribution leaves this file of its tests out.
CONFTEST = "import numpy\n"
PREPARED = """
CREATE EXTENSION vector;
CREATE SCHEMA test_schema;
CREATE SCHEMA test_schema_2;
CREATE SCHEMA shop;
CREATE TABLE shop.product (id int PRIMARY KEY, title text);
"""
ATTACHED = """
SELECT pgembed.add_encoder('lite', 'builtin:lite');
SELECT pgembed.attach('shop.product', 'embedding', 'lite', '{"text": "title"}');
SELECT pgembed.attach('shop.product', 'beside', 'lite', '{"text": "title"}', storage => 'side');
SELECT pgembed.attach('shop.product', 'at_once', 'lite', '{"text": "title"}', mode => 'instant');
"""
# What may pass without pgembed alone, and why.
EXCUSED = {
    "test_fk_to_filtered_table_cross_schema": "it knows of dropped tables alone, not of what is detached before",
}


@dataclass(frozen=True)
class Suite:
    """A distribution, and those of its tests that have to do with what pgembed adds to it."""

    name: str
    tests: tuple[str, ...]
    takes_url: bool  # as SQLAlchemy's plugin for pytest; others find the database by libpq's variables

    @property
    def database(self) -> str:
        """What its tests expect their database to be called."""
        return "test" if self.takes_url else "pgvector_python_test"


SUITES = (
    Suite(
        "sqlalchemy",
        (
            "test/dialect/postgresql/test_on_conflict.py",
            "test/dialect/postgresql/test_reflection.py",
            "test/sql/test_type_expressions.py",
            "test/orm/dml/test_bulk.py",
            "test/orm/test_merge.py",
        ),
        takes_url=True,
    ),
    Suite(
        "alembic",
        (
            "tests/test_autogen_composition.py",
            "tests/test_autogen_diffs.py",
            "tests/test_autogen_indexes.py",
            "tests/test_autogen_render.py",
            "tests/test_postgresql.py",
            "tests/test_suite.py",
        ),
        takes_url=True,
    ),
    Suite(
        "pgvector",
        ("tests/test_sqlalchemy.py", "tests/test_sqlmodel.py", "tests/test_psycopg.py", "tests/test_asyncpg.py"),
        takes_url=False,
    ),
)


def main() -> int:
    """Run it; gives the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", action="append", choices=[suite.name for suite in SUITES])
    chosen: list[str] | None = parser.parse_args().suite
    lost: list[str] = []
    with tempfile.TemporaryDirectory(prefix="pgembed-suites-") as name:
        folder = Path(name)
        drivers = folder / "drivers"
        pip("install", "--no-deps", "--target", str(drivers), *DRIVERS)
        server = full_server()
        try:
            for suite in SUITES:
                if chosen is None or suite.name in chosen:
                    lost += compared(suite, unpacked(suite, folder), server, drivers)
        finally:
            server.stop()
    return 1 if lost else 0


def compared(suite: Suite, source: Path, server: FullServer, drivers: Path) -> list[str]:
    """Run a suite without and with pgembed; gives the tests that passed without it alone."""
    without = passed(suite, source, server, drivers, with_pgembed=False)
    beside = passed(suite, source, server, drivers, with_pgembed=True)
    lost = sorted(without - beside)
    print(f"{source.name}: {len(without)} passed without pgembed, {len(without & beside)} of them with it", flush=True)
    for test in lost:
        print(f"  only without: {test}{f' ({why})' if (why := excuse(test)) else ''}")
    lost = [test for test in lost if not excuse(test)]
    if not without:
        print(f"  no test of {suite.name} passed: nothing was compared")
    return lost or ([] if without else [suite.name])


def excuse(test: str) -> str | None:
    """Why a test need not pass with pgembed, None where it must."""
    return EXCUSED.get(test.rsplit("::", 1)[-1])


def passed(suite: Suite, source: Path, server: FullServer, drivers: Path, *, with_pgembed: bool) -> set[str]:
    """The tests that pass."""
    report = source / f"report-{with_pgembed}.xml"
    fresh_database(server, suite.database, with_pgembed=with_pgembed)
    place = conninfo_to_dict(server.dsn(suite.database))
    modules = ["pgembed.sqlalchemy", "pgembed.alembic"] if with_pgembed else ["sqlalchemy", "alembic"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *suite.tests, f"--junitxml={report}", "--maxfail=0", "--tb=no"]
        + [word for module in modules for word in ("-p", module)]
        + (["--dburi", url_of(place)] if suite.takes_url else []),
        cwd=source,
        env={
            **os.environ,
            **{f"PG{name.upper()}": str(place[name]) for name in ("host", "port", "user", "password") if name in place},
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), str(drivers)]),
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if not report.exists():
        raise SystemExit(f"pytest did not run the tests of {suite.name}:\n{done.stdout[-3000:]}")
    return {
        f"{case.get('classname')}::{case.get('name')}"
        for case in ElementTree.parse(report).iter("testcase")
        if not any(case.find(what) is not None for what in ("failure", "error", "skipped"))
    }


def fresh_database(server: FullServer, name: str, *, with_pgembed: bool) -> None:
    """Make a database of this name anew, with pgembed in it or without."""
    with psycopg.connect(server.dsn(), autocommit=True) as conn:
        conn.execute(sql.SQL("DROP DATABASE IF EXISTS {} (FORCE)").format(sql.Identifier(name)))
        conn.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    with psycopg.connect(server.dsn(name)) as conn:
        conn.execute(PREPARED)
        if with_pgembed:
            schema.install(conn)
            conn.execute(ATTACHED)


def url_of(place: Mapping[str, Any]) -> str:
    """The address of a database, as SQLAlchemy has it."""
    user, password = place["user"], place.get("password")
    url = URL.create("postgresql+psycopg", user, password, str(place["host"]), int(place["port"]), str(place["dbname"]))
    return url.render_as_string(hide_password=False)


def unpacked(suite: Suite, folder: Path) -> Path:
    """The source distribution of the version that is installed here, unpacked."""
    where = folder / suite.name
    given = f"{suite.name}=={version(suite.name)}"
    pip("download", "--no-deps", "--no-binary", suite.name, "--dest", str(where), given)
    (archive,) = where.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        tar.extractall(where, filter="data")
    (source,) = (path for path in where.iterdir() if path.is_dir())
    if suite.name == "pgvector":
        (source / "tests" / "__init__.py").touch()
        (source / "tests" / "conftest.py").write_text(CONFTEST)
    return source


def pip(*words: str) -> None:
    """Run pip; ends the program where it fails."""
    done = subprocess.run([sys.executable, "-m", "pip", "-q", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"pip {' '.join(words)} failed: {done.stderr.strip()}")


if __name__ == "__main__":
    sys.exit(main())
