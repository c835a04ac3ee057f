"""The command ``pgembed demo``: an embedded Postgres, real pictures in it, and six searches of them."""

from __future__ import annotations

import logging
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psycopg
import structlog
from rich.console import Console

from pgembed.client import connect
from pgembed.contact_sheet import Panel
from pgembed.demo.own_pictures import FOLDER_DATABASE, search_own_pictures
from pgembed.demo.searches import SEARCHES, Demo, put_back
from pgembed.demo.steps import (
    POSTGRES,
    SHEETS,
    how_to_go_on,
    index,
    open_database,
    prepare,
    psql_program,
    python_lines,
    show_panel,
    start_server,
    step,
    work,
    write_sheets,
)
from pgembed.demo.tables import create_tables
from pgembed.embedded import EmbeddedServer
from pgembed.errors import InvalidInput
from pgembed.media import MediaPolicy

SAMPLE_DATABASE = "demo"
TABLES = ("emoji", "photograph")


def run(folder: Path | None, directory: Path, psql: bool, clean: bool, console: Console) -> None:
    """Run the demo in ``directory``: on the shipped pictures, or on those below ``folder``.

    ``psql`` opens a shell in its database instead, ``clean`` stops its server and removes what it made.
    Raises MissingExtra without the embedded server, InvalidInput for a folder that cannot be used.
    """
    # The worker's log is for operators; here the progress bar tells, and an error is raised.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    directory = directory.expanduser().absolute()
    if clean:
        _clean(directory, console)
    elif psql:
        _shell(directory, (FOLDER_DATABASE,) if folder else (SAMPLE_DATABASE, FOLDER_DATABASE))
    elif folder is None:
        _sample(directory, console)
    else:
        search_own_pictures(folder.expanduser(), directory, console)


def _sample(directory: Path, console: Console) -> None:
    start = time.monotonic()
    server = start_server(directory, console)
    dsn = open_database(server, SAMPLE_DATABASE)
    media = MediaPolicy(any_path=True)
    with psycopg.connect(dsn, autocommit=True) as conn, connect(dsn, media=media) as db:
        demo = Demo(db, conn, media)
        if conn.execute("SELECT to_regclass('photograph') IS NULL").fetchone() == (True,):
            with step(console, "Loading two tables, emoji and photograph") as done, conn.transaction():
                counts = create_tables(conn)
                done(", ".join(f"{count:,} rows in {table}" for table, count in counts.items()))
        prepare(db, console, TABLES, "picture")
        put_back(demo)
        work(db, console, TABLES, media)
        index(db, console, TABLES)
        panels: list[Panel] = []
        for number, search in enumerate(SEARCHES, start=1):
            panels.append(panel := search(demo))
            show_panel(console, panel, number)
    write_sheets(panels, directory, console, "pgembed: six searches in one Postgres")
    console.print(f"\nAll of it took {time.monotonic() - start:.0f} seconds. How to go on:\n", style="bold")
    _how_to_go_on(console, dsn, directory)


def _how_to_go_on(console: Console, dsn: str, directory: Path) -> None:
    lines = [
        "",
        "# In SQL",
        f'{psql_program()} "$PGEMBED_DSN" -c "SELECT (item).title, score FROM pgembed.search(NULL::photograph,'
        " (SELECT pgembed.encode_text('demo', 'a tool')), k => 5, filter => 'kind = ''tool''')\"",
        "",
        "# On the command line",
        'pgembed search photograph "a cat" --limit 5',
    ]
    search = '"photograph", Text("a fish"), where="kind = %s", params=["animal"], limit=5'
    how_to_go_on(console, dsn, directory, [*lines, *python_lines(dsn, search, "row.title")])


def _shell(directory: Path, wanted: Sequence[str]) -> None:
    """Open psql in the first of these databases that is there."""
    server = _existing(directory, "Make it first: pgembed demo")
    with psycopg.connect(server.dsn(), autocommit=True) as conn:
        there = {name for (name,) in conn.execute("SELECT datname FROM pg_database").fetchall()}
    database = next((name for name in wanted if name in there), None)
    if database is None:
        raise InvalidInput(
            f"The demo in '{directory}' has no such database ({', '.join(wanted)}).",
            "Make it first: pgembed demo, or pgembed demo --folder DIR",
        )
    sys.exit(subprocess.run([psql_program(), server.dsn(database)], check=False).returncode)


def _existing(directory: Path, hint: str) -> EmbeddedServer:
    """The server of a demo that was made before, running. Raises InvalidInput where there is none."""
    data = directory / POSTGRES
    if not (data / "PG_VERSION").exists():
        raise InvalidInput(f"There is no demo in '{directory}'.", hint)
    return EmbeddedServer.start(data, settings={"fsync": "off"}, until_exit=False)


def _clean(directory: Path, console: Console) -> None:
    """Remove what the demo made, and nothing else that may lie in the folder."""
    _existing(directory, "Name its folder: pgembed demo --clean --directory DIR").stop()
    shutil.rmtree(directory / POSTGRES)
    for name in SHEETS:
        (directory / name).unlink(missing_ok=True)
    if not any(directory.iterdir()):
        directory.rmdir()
    console.print(f"The demo in {directory} is removed.", markup=False, highlight=False, soft_wrap=True)
