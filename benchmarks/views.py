"""Does a view take an attribute out of a space, and what is left of the rest?

    python -m benchmarks.views [--quick] [--json]

Emoji drawn by four vendors, under ``builtin:lite``. Views of gender ("man cook", "woman cook") and of skin tone (light:
the two lightest, dark: the two darkest) are learnt on noto, twemoji and fluent, and probed on openmoji, which nothing
was learnt from. Two probes: one that is fitted to openmoji's own drawings and cross-validated, with what shows the same
thing in one fold ("own"), and one that is fitted to the three vendors and read on openmoji ("theirs"). For comparison,
views that were learnt on one half of openmoji's things are probed on the other half ("half"), and a view of gender that
was learnt from captions, or from half of the names as texts, is probed on the names, or on the other half ("names"). At
chance: no further from it, above or below, than what 95 % of the probes of shuffled labels stay below. Kept: R@1 of
openmoji's drawings that have nothing of the attribute, found by their name, before and after; and of the ten nearest
drawings of each, how many are still among them. ``--quick`` takes every third drawing.
"""

from __future__ import annotations

import json
import re
import zlib
from typing import Any

import numpy as np
import psycopg
from numpy.typing import NDArray

import pgembed
from benchmarks.common import Figure, Report, arguments, data, fresh_database
from benchmarks.encoder_quality import GENDERED, Row, drawn
from pgembed import Text
from pgembed.encoders.builtin import LiteEncoder
from pgembed.views.measuring import Probing

LEARNT_ON, MEASURED_ON = ("noto", "twemoji", "fluent"), "openmoji"
PAIRS = (("a man", "a woman"), ("he", "she"), ("a boy", "a girl"), ("male", "female"), ("his", "her"))
WAYS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("difference of centroids", {}),
    ("pairs, 4", {"paired": True, "components": 4}),
    *((f"inlp, {n}", {"method": "inlp", "components": n}) for n in (16, 64, 128)),
)
_ONE = "thing || coalesce(tone::text, '')"
NAMED: tuple[tuple[str, dict[str, Any]], ...] = (
    ("difference of centroids", {}),
    *((f"pairs, {n}", {"pair": _ONE, "components": n}) for n in (1, 2, 3, 4)),
    *((f"inlp, {n}", {"method": "inlp", "components": n}) for n in (2, 4, 8)),
)
ATTRIBUTES = {
    # attribute: its expression, what makes a group of drawings, what makes a pair
    "gender": ("gender", "thing", "vendor || thing || coalesce(tone::text, '')"),
    "tone": ("CASE WHEN tone <= 2 THEN 'light' WHEN tone >= 4 THEN 'dark' END", "base", "vendor || base"),
}
SETS = {"gender": ("gender = 'man'", "gender = 'woman'"), "tone": ("tone <= 2", "tone >= 4")}


def fill(conn: psycopg.Connection[Any], encoder: LiteEncoder, rows: list[Row]) -> None:
    """The drawings of all vendors and the names, with their vectors; nothing is left for a worker."""
    (folder,) = data("emoji")
    conn.execute(
        "CREATE TABLE emoji (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, vendor text, name text, base text,"
        " thing text, gender text, tone int, half int, picture bytea, named text)"
    )
    db = pgembed.connect(conn)
    db.add_encoder("lite", "builtin:lite")
    db.attach("emoji", "drawing", encoder="lite", image="picture")
    db.attach("emoji", "words", encoder="lite", text="{named}")
    by_id = {row["id"]: row for row in rows}
    names = dict(zip((row["id"] for row in rows), encoder.encode_text([row["name"] for row in rows]), strict=True))
    columns = "vendor, name, base, thing, gender, tone, half, drawing, words"
    for vendor in (*LEARNT_ON, MEASURED_ON):
        vectors, places = drawn(encoder, folder / vendor, rows)
        with conn.cursor().copy(f"COPY emoji ({columns}) FROM STDIN".encode()) as copy:
            for place, vector in zip(places, vectors, strict=True):
                row = rows[place]
                of = by_id.get(row["base"] or row["id"], row)
                match = GENDERED.fullmatch(of["name"])
                tone = str(row["skin_tone"]) if row["skin_tone"] is not None else ""
                thing = match[2] if match else re.sub("^person ", "", of["name"])
                own = vendor == MEASURED_ON  # names are probed once
                copy.write_row(
                    (
                        vendor, row["name"], of["id"], thing, match[1] if match else None,
                        int(tone) if len(tone) == 1 else None, zlib.crc32(thing.encode()) % 2, written(vector),
                        written(names[row["id"]]) if own else None,
                    )
                )  # fmt: skip
    conn.execute("ANALYZE emoji")


def written(vector: NDArray[np.float32]) -> str:
    """A vector as Postgres reads it."""
    return "[" + ",".join(f"{number:.9g}" for number in vector) + "]"


def line(way: str, probe: str, found: Probing) -> dict[str, Any]:
    """One line of a table."""
    kept = {one.measure: one for one in found.kept}
    made: dict[str, Any] = {
        "view": way, "directions": found.directions, "probe": probe, "rows": found.after.rows,
        "before": found.before.accuracy, "after": found.after.accuracy, "95 % of shuffles": found.after.bound,
        "at chance": "yes" if found.after.at_chance else "no",
        "overlap@10": kept["overlap@10 of neighbours"].after,
    }  # fmt: skip
    by_name = next((one for name, one in kept.items() if name.startswith("R@1 by words, rows without")), None)
    return made | {"R@1 before": by_name.before if by_name else "", "R@1 after": by_name.after if by_name else ""}


def least(name: str, lines: list[dict[str, Any]]) -> Figure:
    """What a probe still reads where it reads least, against what 95 % of shuffled labels stay below."""
    best = min(lines, key=lambda one: one["after"] - one["95 % of shuffles"])
    return Figure(name, best["after"], best["95 % of shuffles"])


def main() -> int:
    """Measure and print."""
    options = arguments(__doc__)
    report, encoder = Report("views", as_json=options.json), LiteEncoder.load("lite", {})
    (folder,) = data("emoji")
    rows: list[Row] = [json.loads(text) for text in (folder / "emoji.jsonl").read_text().splitlines()]
    if options.quick:
        kept = set(sorted({row["base"] or row["id"] for row in rows})[::3])
        rows = [row for row in rows if (row["base"] or row["id"]) in kept]
    with fresh_database() as dsn, psycopg.connect(dsn, autocommit=True) as conn:
        db = pgembed.connect(conn)
        db.install()
        fill(conn, encoder, rows)
        figures: list[Figure] = []
        for attribute, (expression, group, pair) in ATTRIBUTES.items():
            table: list[dict[str, Any]] = []
            these, those = SETS[attribute]
            common: dict[str, Any] = {"embedding": "drawing", "sample": 100_000}
            own = {"where": f"vendor = '{MEASURED_ON}'", "group": group, "ask": "name"}
            theirs = {"fit": f"vendor <> '{MEASURED_ON}'", "where": f"({expression}) IS NOT NULL"}
            other_half = {"where": f"vendor = '{MEASURED_ON}' AND half = 1", "group": group, "ask": "name"}
            for way, settings in WAYS:
                learning = dict(settings)
                learning["pair"] = pair if learning.pop("paired", False) else None
                for name, part in (
                    ("all", f"vendor <> '{MEASURED_ON}'"),
                    ("half", f"vendor = '{MEASURED_ON}' AND half = 0"),
                ):
                    sets = {"these": f"({these}) AND {part}", "those": f"({those}) AND {part}"}
                    db.learn_view(name, table="emoji", embedding="drawing", **sets, **learning)
                for probe, view, where in (
                    ("own", "all", own),
                    ("theirs", "all", theirs),
                    ("half", "half", other_half),
                ):
                    table.append(line(way, probe, db.probe_view(view, "emoji", expression, **common, **where)))
                db.drop_view("all")
                db.drop_view("half")
            report.table(f"{attribute}, drawings of openmoji", table)
            figures.append(least(f"{attribute}_in_drawings", [one for one in table if one["probe"] == "own"]))
        table = []
        for count in (1, 2, len(PAIRS)):
            these, those = ([Text(pair[side]) for pair in PAIRS[:count]] for side in (0, 1))
            for components in {1, min(2, count)}:
                db.learn_view("gender", encoder="lite", these=these, those=those, pair=True, components=components)
                found = db.probe_view(
                    "gender", "emoji", "gender", embedding="words", group="thing", ask="name", sample=100_000,
                    where=f"vendor = '{MEASURED_ON}'",
                )  # fmt: skip
                db.drop_view("gender")
                table.append(line(f"pairs of {count} captions, {components}", "names", found))
        these, those = (f"{side} AND vendor = '{MEASURED_ON}' AND half = 0" for side in SETS["gender"])
        for way, settings in NAMED:
            db.learn_view("gender", table="emoji", embedding="words", these=these, those=those, **settings)
            found = db.probe_view(
                "gender", "emoji", "gender", embedding="words", group="thing", ask="name", sample=100_000,
                where=f"vendor = '{MEASURED_ON}' AND half = 1",
            )  # fmt: skip
            db.drop_view("gender")
            table.append(line(f"half of the names, {way}", "names", found))
        report.table("gender, names of emoji as texts", table)
        figures.append(least("gender_in_names", table))
    return report.finish(*figures)


if __name__ == "__main__":
    raise SystemExit(main())
