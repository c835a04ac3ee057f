"""The steps that both forms of the demo take, each with a line that tells of it."""

from __future__ import annotations

import shlex
import shutil
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.syntax import Syntax

from pgembed.client import Pgembed
from pgembed.contact_sheet import Panel, write_contact_sheet
from pgembed.demo.thumbnails import show_hits
from pgembed.embedded import EmbeddedServer, binaries
from pgembed.encoders import load_encoder
from pgembed.media import MediaPolicy
from pgembed.worker import Progress as BatchDone
from pgembed.worker import WorkerOptions

DIRECTORY = Path("demo")  # where the demo lives unless told otherwise
POSTGRES = "postgres"  # the folder of the server, in the demo's own
SHEETS = ("contact-sheet.html", "contact-sheet.png")
ENCODER, SPEC = "demo", "builtin:lite"


def start_server(directory: Path, console: Console) -> EmbeddedServer:
    """The demo's server, which runs on after the demo, so that what it prints can be tried."""
    with step(console, "Starting an embedded PostgreSQL 18") as done:
        server = EmbeddedServer.start(directory / POSTGRES, settings={"fsync": "off"}, until_exit=False)
        done(f"in {server.data_dir}")
    return server


def open_database(server: EmbeddedServer, name: str) -> str:
    """The connection string of a database, made where it is not there, and made anew after an upgrade of pgembed."""
    dsn = server.dsn(name)
    with psycopg.connect(server.dsn(), autocommit=True) as conn:
        there = conn.execute("SELECT FROM pg_database WHERE datname = %s", [name]).fetchone() is not None
        if there and not _of_this_version(dsn):
            conn.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))
            there = False
        if not there:
            conn.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    return dsn


def _of_this_version(dsn: str) -> bool:
    with psycopg.connect(dsn, autocommit=True) as conn:
        if conn.execute("SELECT to_regclass('pgembed.encoder') IS NULL").fetchone() == (True,):
            return True
        registered = conn.execute("SELECT fingerprint FROM pgembed.encoder WHERE name = %s", [ENCODER]).fetchone()
    return registered is None or registered[0] == load_encoder(SPEC, {}).fingerprint


def prepare(db: Pgembed, console: Console, tables: tuple[str, ...], image: Any) -> None:  # noqa: ANN401
    """Install, register the encoder, and attach an embedding of the picture column to each table."""
    with step(console, "Installing pgembed and the encoder builtin:lite") as done:
        versions = db.install()
        if ENCODER not in {row.name for row in db.encoders()}:
            db.add_encoder(ENCODER, SPEC)
        done(f"pgembed {versions.library}, pgvector {versions.pgvector}")
    attached = {row.table_name for row in db.status()}
    for table in tables:
        if table not in attached:
            db.attach(table, "embedding", encoder=ENCODER, image=image)
            console.print(f'  db.attach("{table}", "embedding", encoder="{ENCODER}", image={image!r})', style="dim")


def work(db: Pgembed, console: Console, tables: tuple[str, ...], media: MediaPolicy) -> None:
    """Let a worker encode all that waits, with a progress bar."""
    status = [row for row in db.status() if row.table_name in tables]
    total = sum(max((row.queued or 0) + (row.claimed or 0), (row.rows or 0) - (row.ready or 0)) for row in status)
    columns = (
        TextColumn("  {task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    start = time.monotonic()
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("Encoding pictures", total=total, rate="")
        handled = 0

        def progress(batch: BatchDone) -> None:
            nonlocal handled
            handled += batch.written + batch.failed
            rate = f"{handled / max(time.monotonic() - start, 0.001):.0f}/s"
            bar.update(task, completed=handled, total=max(total, handled), rate=rate)

        summary = db.work(WorkerOptions(media=media), until_idle=True, on_progress=progress)
    seconds = time.monotonic() - start
    if summary.written:
        rate = summary.written / max(seconds, 0.001)
        console.print(f"✓ {summary.written:,} pictures encoded by a worker ({seconds:.1f} s, {rate:.0f} a second)")
    for failure in db.failures(limit=10) if summary.failed else ():
        console.print(f"  could not be encoded: {', '.join(failure.key)}: {failure.error}", markup=False)


def index(db: Pgembed, console: Console, tables: tuple[str, ...]) -> None:
    """Build each table's vector index."""
    with step(console, "Building vector indexes"):
        for table in tables:
            db.build_index(table)


@contextmanager
def step(console: Console, what: str) -> Generator[_Note]:
    """A line that says what is being done and, once it is, how long it took."""
    start, note = time.monotonic(), _Note()
    with console.status(what):
        yield note
    seconds = time.monotonic() - start
    console.print(f"✓ {what}: {escape(note.text)} ({seconds:.1f} s)" if note.text else f"✓ {what} ({seconds:.1f} s)")


class _Note:
    """What a step has to say at its end: ``done("3,000 rows")``."""

    text = ""

    def __call__(self, text: str) -> None:
        self.text = text


def show_panel(console: Console, panel: Panel, number: int) -> None:
    """One search: title, what was asked, the SQL, the hits."""
    console.print()
    console.rule(f"[bold]{number}. {escape(panel.title)}[/]", align="left")
    if panel.note:
        console.print(panel.note, markup=False, highlight=False)
    if panel.sql and console.is_terminal:
        console.print(Syntax(panel.sql, "sql", theme="ansi_dark", background_color="default", word_wrap=True))
    elif panel.sql:
        say(console, panel.sql)
    console.print()
    show_hits(console, panel.hits)


def write_sheets(panels: list[Panel], directory: Path, console: Console, title: str) -> None:
    """The contact sheet, as a page and as a picture."""
    console.print()
    for name in SHEETS:
        write_contact_sheet(panels, directory / name, title)
    for name in SHEETS:
        console.print(f"Contact sheet: {directory / name}", markup=False, highlight=False, soft_wrap=True)


def say(console: Console, *lines: str) -> None:
    """Lines to be copied: neither wrapped nor coloured."""
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def how_to_go_on(console: Console, dsn: str, directory: Path, lines: list[str], *, options: str = "") -> None:
    """The end of a demo, to be copied: what a shell needs, ``lines``, and how to open and remove the demo.

    ``options`` are those with which ``--psql`` finds this demo's database.
    """
    where = "" if directory == DIRECTORY.absolute() else f" --directory {shlex.quote(str(directory))}"
    say(
        console,
        *shell_lines(dsn),
        *lines,
        "",
        "# An SQL shell; and stop the server, remove the demo",
        f"pgembed demo --psql{where}{options}",
        f"pgembed demo --clean{where}",
    )


def python_lines(dsn: str, search: str, shown: str) -> list[str]:
    """A search in Python, for the interpreter that this shell finds."""
    return [
        "",
        "# In Python (python, in this shell)",
        "import pgembed",
        "from pgembed import Text",
        f'with pgembed.connect("{dsn}") as db:',
        f"    for row in db.search({search}):",
        f"        print(round(row.score, 3), {shown})",
    ]


def shell_lines(dsn: str) -> list[str]:
    """What a shell needs for the lines that follow: the database, and this environment's programs on its path."""
    programs = Path(sys.executable).parent
    on_path = shutil.which("pgembed") == str(programs / "pgembed")
    return ([] if on_path else [f"export PATH='{programs}':\"$PATH\""]) + [f"export PGEMBED_DSN='{dsn}'"]


def psql_program() -> str:
    """The psql on the path, or the packaged one."""
    return shutil.which("psql") or str(binaries() / "psql")
