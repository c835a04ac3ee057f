"""docs/parts.md: its SQL, in psql's order, and its Python find what they say."""

from __future__ import annotations

import re
from pathlib import Path

import psycopg
import pytest

PAGE = (Path(__file__).parents[2] / "docs/parts.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def test_what_the_page_says_runs(
    database: psycopg.Connection[tuple[object, ...]],
    database_dsn: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("PGEMBED_DSN", database_dsn)
    (_, attach), (_, search), (_, by_function) = BLOCK.findall(PAGE)
    database.execute(attach.encode())
    exec(search, {})
    told = capsys.readouterr().out.splitlines()
    assert len(told) == 2
    assert told[0].startswith("1 2 {")
    assert "At a steep angle the air parts from the wing." in told[0]
    rows = database.execute(by_function.encode()).fetchall()
    assert [row[0] for row in rows] == [1, 2]
    assert f"{rows[0][0]} {rows[0][2]} {rows[0][3]} {rows[0][4]!r}" == told[0]
