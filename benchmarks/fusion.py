"""Whether a row's inputs are better together:  python -m benchmarks.fusion [--quick] [--json]

What ``pgembed tune`` finds with ``builtin:lite``, nDCG@10, on three tasks: openmoji's drawings with their names (which
training never saw) by search words, where a word has up to 20 drawings and the name alone would not do; the same by
another vendor's drawing of one; and photographs with their labels by words for wider kinds. Weights are chosen on one
half of the queries. On the other half the fusion that was chosen must be at least as good as the better of the two
inputs alone, and p is that of a paired randomization test against it. ``--quick`` has 500 drawings and fewer queries.
"""

from __future__ import annotations

import csv
import json
import random
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psycopg

import pgembed
from benchmarks.common import Figure, Report, arguments, data, fresh_database, missing
from pgembed import Pgembed
from pgembed.evaluate import read_qrels, read_queries
from pgembed.evaluate.parts import fused_inputs
from pgembed.evaluate.tuning import Tuning, tune

WIDER_KINDS = Path(__file__).with_name("wider_kinds.tsv")
MOST_RIGHT = 20  # drawings that a search word may have
SEED = 20240501
Judged = dict[
    str, tuple[dict[str, str], Sequence[str]]
]  # query id -> its line of queries.jsonl, the rows that are right


def main() -> int:
    """Tune on each task."""
    options = arguments(__doc__)
    emoji, photos = data("emoji", "photos")
    try:
        import ir_measures  # noqa: F401  # pyright: ignore[reportUnusedImport]
    except ImportError:
        missing('The package ir-measures is not installed: pip install "pgembed-multimodal[eval]"')
    rows = [json.loads(line) for line in (emoji / "emoji.jsonl").read_text(encoding="utf-8").splitlines()]
    rows = [row for row in rows if row["skin_tone"] is None and (emoji / "openmoji" / f"{row['id']}.png").exists()]
    if options.quick:
        rows = sorted(random.Random(SEED).sample(rows, 500), key=lambda row: row["id"])
    report = Report("fusion", as_json=options.json)
    figures: list[Figure] = []
    with (
        tempfile.TemporaryDirectory() as folder,
        fresh_database() as dsn,
        psycopg.connect(dsn, autocommit=True) as conn,
        pgembed.connect(conn) as db,
    ):
        db.add_encoder("lite", "builtin:lite")
        conn.execute("CREATE TABLE drawing (id text PRIMARY KEY, name text, picture bytea)")
        conn.cursor().executemany(
            "INSERT INTO drawing VALUES (%s, %s, %s)",
            [(row["id"], row["name"], (emoji / "openmoji" / f"{row['id']}.png").read_bytes()) for row in rows],
        )
        # side by side: so each input is encoded once for both tasks, and read apart
        db.attach("drawing", "fused", encoder="lite", fusion="concat", text="name", image="picture")
        db.work(until_idle=True)
        photographs(conn, photos)
        most = 100 if options.quick else 600
        tasks = {
            "words": ("drawing", by_words(rows, most)),
            "drawings": ("drawing", by_drawings(rows, emoji / "noto", most)),
            "kinds": ("photo", by_kinds(photos)),
        }
        for name, (table, judged) in tasks.items():
            found = tuned(conn, db, table, judged, Path(folder) / name)
            report.table(f"{name}, {found.rows:,} rows. {found.sentence}", lines(found))
            figures.append(Figure(f"fusion_{name}", found.chosen.held_out, found.single.held_out, at_least=True))
    return report.finish(*figures)


def photographs(conn: psycopg.Connection[Any], folder: Path) -> None:
    """A table of photographs with their labels."""
    conn.execute("CREATE TABLE photo (id text PRIMARY KEY, label text, picture bytea)")
    with (folder / "labels.tsv").open(encoding="utf-8", newline="") as file:
        values = [
            (row["file"], row["label"], (folder / row["file"]).read_bytes())
            for row in csv.DictReader(file, delimiter="\t")
        ]
    conn.cursor().executemany("INSERT INTO photo VALUES (%s, %s, %s)", values)


def by_words(rows: Sequence[Mapping[str, Any]], most: int) -> Judged:
    """Search words, and the drawings that have them."""
    found: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        for tag in row["tags"]:
            if any(map(str.isalpha, tag)):
                found[tag].add(row["id"])
    words = sorted(tag for tag, ids in found.items() if len(ids) <= MOST_RIGHT)
    chosen = random.Random(SEED).sample(words, min(most, len(words)))
    return {f"w{n}": ({"text": word}, sorted(found[word])) for n, word in enumerate(chosen)}


def by_drawings(rows: Sequence[Mapping[str, Any]], folder: Path, most: int) -> Judged:
    """Drawings of another vendor, each of one emoji."""
    there = [row["id"] for row in rows if (folder / f"{row['id']}.png").exists()]
    chosen = random.Random(SEED).sample(there, min(most, len(there)))
    return {f"d{each}": ({"image": str(folder / f"{each}.png")}, [each]) for each in chosen}


def by_kinds(folder: Path) -> Judged:
    """Words for wider kinds of things, and the photographs that show one."""
    files: dict[str, list[str]] = defaultdict(list)
    for file in sorted(folder.glob("*.jpg")):
        files[file.name.split("_")[0]].append(file.name)
    kinds = (line for line in WIDER_KINDS.read_text(encoding="utf-8").splitlines() if not line.startswith("#"))
    return {
        f"k{n}": ({"text": row["word"]}, [name for each in row["classes"].split() for name in files[each]])
        for n, row in enumerate(csv.DictReader(kinds, delimiter="\t"))
    }


def tuned(conn: psycopg.Connection[Any], db: Pgembed, table: str, judged: Judged, folder: Path) -> Tuning:
    """What ``pgembed tune`` finds on these judgments."""
    folder.mkdir()
    queries, qrels = folder / "queries.jsonl", folder / "qrels.tsv"
    queries.write_text(
        "".join(json.dumps({"_id": q} | line) + "\n" for q, (line, _) in judged.items()), encoding="utf-8"
    )
    qrels.write_text("".join(f"{q}\t{row}\t1\n" for q, (_, right) in judged.items() for row in right), encoding="utf-8")
    inputs = {"text": "label", "image": "picture"} if table == "photo" else {}
    fused = fused_inputs(conn, table, None, "lite" if inputs else None, inputs, None)
    return tune(conn, db, fused, read_queries(queries), read_qrels(qrels), seed=SEED)


def lines(found: Tuning) -> list[dict[str, Any]]:
    """The ways as rows of a table."""
    return [
        {
            "way": way.name,
            "weights": "" if way.method == "alone" else ", ".join(f"{m} {w:g}" for m, w in way.weights.items()),
            "chosen on": f"{way.tuned:.3f}",
            "held out": f"{way.held_out:.3f}",
            "p": "" if way is found.single else f"{way.p:.4f}",
        }
        for way in found.ways
    ]


if __name__ == "__main__":
    raise SystemExit(main())
