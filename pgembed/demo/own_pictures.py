"""``pgembed demo --folder DIR``: a person's own pictures as rows of a table, found by words and by picture."""

from __future__ import annotations

import shlex
import sys
import time
from pathlib import Path
from typing import Any

import psycopg
from rich.console import Console
from rich.progress import Progress

from pgembed.client import Pgembed, connect
from pgembed.contact_sheet import Hit, Panel, parts_of
from pgembed.demo.folder import FolderPicture, Skipped, picture_files, scan
from pgembed.demo.searches import sql_of
from pgembed.demo.steps import (
    how_to_go_on,
    index,
    open_database,
    prepare,
    psql_program,
    python_lines,
    show_panel,
    start_server,
    work,
    write_sheets,
)
from pgembed.demo.tables import copy_rows
from pgembed.errors import InvalidInput, MediaError
from pgembed.inputs import Expression, Image, Text
from pgembed.media import MediaPolicy, MediaReader

FOLDER_DATABASE = "pictures"
PICTURE = """
CREATE TABLE IF NOT EXISTS picture (
    path text PRIMARY KEY,
    taken_at timestamp, -- EXIF tells no time zone
    width integer NOT NULL,
    height integer NOT NULL,
    bytes bigint NOT NULL,
    camera text
)"""
COLUMNS = ("path", "taken_at", "width", "height", "bytes", "camera")
WORDS = ("an animal", "a car", "food", "a house", "the sea")
SHOWN_SKIPPED = 20
HITS = 8


def search_own_pictures(folder: Path, directory: Path, console: Console) -> None:
    """Make a row of every picture below the folder, encode them, and search them."""
    start = time.monotonic()
    files = picture_files(folder, leave_out=directory)  # its contact sheets are not the person's
    if not files:
        raise InvalidInput(f"There are no pictures below '{folder}'.", "Give a folder that holds some.")
    folder = folder.resolve()
    pictures = _scan(folder, files, console)
    server = start_server(directory, console)
    dsn = open_database(server, FOLDER_DATABASE)
    media = MediaPolicy(media_root=folder)
    with psycopg.connect(dsn, autocommit=True) as conn, connect(dsn) as db:
        with conn.transaction():
            added = _store(conn, folder, pictures)
        console.print(f"✓ Table picture: {len(pictures):,} rows, {added:,} of them new or changed")
        prepare(db, console, ("picture",), {"column": "path", "as": "path"})
        work(db, console, ("picture",), media)
        index(db, console, ("picture",))
        panels = _searches(db, conn, folder)
        for number, panel in enumerate(panels, start=1):
            show_panel(console, panel, number)
        write_sheets(panels, directory, console, f"Pictures in {folder.name}")
        console.print(f"\nAll of it took {time.monotonic() - start:.0f} seconds.", style="bold")
        if sys.stdin.isatty() and console.is_terminal:
            _ask(db, conn, folder, console)
    console.print("\nHow to go on:\n", style="bold")
    _how_to_go_on(console, dsn, folder, directory)


def _scan(folder: Path, files: list[str], console: Console) -> list[FolderPicture]:
    pictures: list[FolderPicture] = []
    skipped: list[Skipped] = []
    with Progress(console=console, disable=not console.is_terminal, transient=True) as bar:
        for found in bar.track(scan(folder, files), total=len(files), description="  Reading pictures"):
            if isinstance(found, FolderPicture):
                pictures.append(found)
            else:
                skipped.append(found)
    console.print(f"✓ {len(pictures):,} pictures below {folder}", markup=False, highlight=False)
    for one in skipped[:SHOWN_SKIPPED]:
        console.print(f"  skipped: {one.path}: {one.reason}", markup=False, highlight=False, style="yellow")
    if len(skipped) > SHOWN_SKIPPED:
        console.print(f"  and {len(skipped) - SHOWN_SKIPPED:,} more", style="yellow")
    if not pictures:
        raise InvalidInput(f"No picture below '{folder}' can be read.", "The reasons stand above.")
    return pictures


def _store(conn: psycopg.Connection[Any], folder: Path, pictures: list[FolderPicture]) -> int:
    """Make the table hold these pictures and no others; returns how many rows are new. A changed file is a new row."""
    conn.execute(PICTURE)
    conn.execute("CREATE TEMPORARY TABLE found (LIKE picture) ON COMMIT DROP")
    rows = ({**vars(picture), "path": str(folder / picture.path)} for picture in pictures)
    copy_rows(conn, "found", COLUMNS, rows)
    conn.execute(
        "DELETE FROM picture AS p WHERE NOT EXISTS (SELECT FROM found AS f WHERE f.path = p.path AND f.bytes = p.bytes"
        " AND f.width = p.width AND f.height = p.height AND f.taken_at IS NOT DISTINCT FROM p.taken_at)"
    )
    added = conn.execute(
        "INSERT INTO picture (path, taken_at, width, height, bytes, camera)"
        " SELECT path, taken_at, width, height, bytes, camera FROM found ON CONFLICT (path) DO NOTHING"
    )
    return added.rowcount


def _searches(db: Pgembed, conn: psycopg.Connection[Any], folder: Path) -> list[Panel]:
    panels = [_search(db, conn, folder, Text(words), f"“{words}”") for words in WORDS]
    latest = conn.execute("SELECT path FROM picture ORDER BY taken_at DESC NULLS LAST, path DESC LIMIT 1").fetchone()
    if latest is not None:
        title = f"Like {Path(latest[0]).name}, the latest picture"
        panels.append(_search(db, conn, folder, Image(latest[0]), title))
    return panels


def _search(db: Pgembed, conn: psycopg.Connection[Any], folder: Path, query: Expression, title: str) -> Panel:
    asked = db.query("picture").near(query).select("path", "taken_at").limit(HITS)
    with MediaReader(MediaPolicy(media_root=folder)) as reader:
        hits = [Hit(_picture(reader, row["path"]), _caption(row["path"], row["taken_at"]), row.score) for row in asked]
        return Panel(title, hits, parts_of(query, reader), sql_of(conn, asked))


def _picture(reader: MediaReader, path: str) -> bytes | None:
    try:
        return reader.read(path, "path")
    except MediaError:
        return None


def _caption(path: str, taken_at: Any) -> str:  # noqa: ANN401
    return Path(path).name if taken_at is None else f"{Path(path).name}, {taken_at:%Y-%m-%d}"


def _ask(db: Pgembed, conn: psycopg.Connection[Any], folder: Path, console: Console) -> None:
    """Words from the person at the terminal, until they give none."""
    console.print("\nSearch them yourself; an empty line ends.")
    while words := console.input("[bold]words:[/] ").strip():
        show_panel(console, _search(db, conn, folder, Text(words), f"“{words}”"), 1)


def _how_to_go_on(console: Console, dsn: str, folder: Path, directory: Path) -> None:
    shown = shlex.quote(str(folder))
    lines = [
        "",
        "# In SQL",
        f'{psql_program()} "$PGEMBED_DSN" -c "SELECT (item).path, score FROM pgembed.search(NULL::picture,'
        " (SELECT pgembed.encode_text('demo', 'a dog')), k => 10, filter => 'width > height')\"",
        "",
        "# On the command line",
        f'pgembed search picture "a dog" --limit 10 --contact-sheet dogs.html --media-root {shown}',
    ]
    search = '"picture", Text("a dog"), where="width > height", limit=10'
    after = ["", "# A worker, which keeps new rows searchable", f"pgembed worker --media-root {shown}"]
    lines += python_lines(dsn, search, "row.path") + after
    how_to_go_on(console, dsn, directory, lines, options=f" --folder {shown}")
