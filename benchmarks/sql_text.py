"""Texts encoded for SQL by all routes: inside Postgres, by an encoder's own static side or one distilled from another;
from the query cache, by a worker that is asked or was asked before, and with the vector given (benchmarks.sql_queries).

Those encoded inside Postgres against the same tokenizer and table in Python: as fast as asked, and the same.

How long `pgembed.encode_text` takes for eight words with the round trip, beside a no-op's round trip; how many texts
get the same tokens as from the `tokenizers` library; the largest difference in any component of a vector.
The distilled side has the vectors of `builtin:lite` here: how near one comes to its encoder is for benchmarks.distill.
Texts: all of PGEMBED_DATA, and random Unicode strings.
"""

from __future__ import annotations

import csv
import json
import random
import unicodedata
from collections.abc import Iterator

import numpy as np
import psycopg

from benchmarks import sql_queries
from benchmarks.common import Figure, Report, arguments, data, fresh_database, milliseconds, p50, p95
from pgembed.encoders.builtin import lite_static_text
from pgembed.static_text import StaticText

WORDS = 8
SEED = 20240501
FUZZ, FUZZ_QUICK = 40_000, 8_000
BATCH = 500
DISTILLED = (
    "INSERT INTO pgembed.static_text SELECT 'distilled:benchmark', s.fingerprint, s.dim, s.settings"
    " FROM pgembed.static_text AS s JOIN pgembed.encoder AS e ON e.static_text = s.model",
    "INSERT INTO pgembed.token SELECT 'distilled:benchmark', t.token, t.vector"
    " FROM pgembed.token AS t JOIN pgembed.encoder AS e ON e.static_text = t.model",
    "SELECT pgembed.add_encoder('distilled', 'none:benchmark', dim => 256,"
    " modalities => '{text}', fingerprint => 'none')",
    "SELECT pgembed.set_distilled('distilled', 'distilled:benchmark', 'none', 1, '{}')",
    "VACUUM (ANALYZE) pgembed.token",
)
# What tokenizers get wrong: case that changes length or looks at its neighbours, marks, spaces and controls of all
# kinds, ligatures, joiners, ideographs, syllables that decompose, brackets and quotes.
AWKWARD = (
    "aeiouAEIOUİıẞßΣσςÅKſﬁñÇ\u0301\u0308\u0327\u0345"
    "\u00ad\u200b\u200d\ufeff\ufffd\t\n\r\x0b\x0c\x85\u2028\u00a0 .,-'’\"#[]中豈パ한각😀"
)


def texts_of_data() -> dict[str, list[str]]:
    """All texts of the data, by where they come from."""
    emoji, corpus, queries, labels = data(
        "emoji/emoji.jsonl", "cranfield/corpus.jsonl", "cranfield/queries.jsonl", "photos/labels.tsv"
    )
    rows = [json.loads(line) for line in emoji.read_text(encoding="utf-8").splitlines()]
    abstracts = [json.loads(line) for line in corpus.read_text(encoding="utf-8").splitlines()]
    with labels.open(encoding="utf-8", newline="") as file:
        photos = [row["label"] for row in csv.DictReader(file, delimiter="\t")]
    return {
        "emoji names": [row["name"] for row in rows],
        "emoji tags": sorted({tag for row in rows for tag in row["tags"]}),
        "abstracts": [part for row in abstracts for part in (row["title"], row["text"])],
        "queries": [json.loads(line)["text"] for line in queries.read_text(encoding="utf-8").splitlines()],
        "photo labels": photos,
    }


def random_texts(count: int, vocabulary: tuple[str, ...]) -> Iterator[str]:
    """Random strings over all assigned characters of all planes, over those below U+3000, over awkward ones, and over
    pieces of the vocabulary glued together."""
    chance = random.Random(SEED)
    assigned = [chr(i) for i in range(1, 0x110000) if unicodedata.category(chr(i)) not in ("Cn", "Co", "Cs")]
    pools = (assigned, [c for c in assigned if c < "\u3000"], list(AWKWARD), [t.removeprefix("##") for t in vocabulary])
    for _ in range(count):
        chosen = chance.sample(pools, chance.randint(1, len(pools)))
        yield "".join(
            chance.choice(chance.choice(chosen)) + " " * (chance.random() < 0.15) for _ in range(chance.randint(1, 60))
        )


def compare(conn: psycopg.Connection, side: StaticText, texts: list[str]) -> tuple[int, float]:
    """How many texts have the same tokens on both sides, and the largest difference between their vectors."""
    agreed, difference = 0, 0.0
    for start in range(0, len(texts), BATCH):
        some = texts[start : start + BATCH]
        rows = conn.execute(
            "SELECT pgembed.static_tokens(%s, t), pgembed.static_vector(%s, t)::real[]"
            " FROM unnest(%s::text[]) WITH ORDINALITY AS x (t, n) ORDER BY n",
            [side.model, side.model, some],
            binary=True,
        )
        for text, (tokens, vector) in zip(some, rows, strict=True):
            expected = side.split(text)
            agreed += tokens == expected and (vector is not None) == bool(expected)
            if vector is not None and expected:
                difference = max(difference, float(np.abs(np.array(vector) - side.encode([text])[0]).max()))
    return agreed, difference


def main() -> int:
    """Run it; gives the exit status."""
    options = arguments(__doc__)
    report = Report("sql_text", as_json=options.json)
    sources = texts_of_data()
    side = lite_static_text()
    sources["random Unicode"] = list(random_texts(FUZZ_QUICK if options.quick else FUZZ, side.vocabulary))
    with fresh_database() as dsn:
        speed = measure_speed(dsn, sources, 200 if options.quick else 1000)
        report.table("Round trip of one text, ms", speed)
        same: list[dict[str, object]] = []
        with psycopg.connect(dsn, autocommit=True) as conn:
            for source, texts in sources.items():
                agreed, difference = compare(conn, side, texts)
                same.append({"texts": source, "number": len(texts), "same tokens": agreed, "difference": difference})
        report.table("SQL and Python", same)
    routes = sql_queries.measure(report, quick=options.quick)
    eight = next(row["p50"] for row in speed if row["query"] == f"{WORDS} words")
    # The worse of the real texts and the random ones, so that neither hides behind the other.
    random_row, real = same[-1], same[:-1]
    agreed = min(
        sum(row["same tokens"] for row in real) / sum(row["number"] for row in real),
        random_row["same tokens"] / random_row["number"],
    )
    return report.finish(
        Figure("ms", eight, 1.0),
        Figure("agreed", agreed, 0.999, at_least=True),
        Figure("difference", max(row["difference"] for row in same), 1e-5),
        *routes,
    )


def measure_speed(dsn: str, sources: dict[str, list[str]], times: int) -> list[dict[str, object]]:
    """p50 and p95 of `encode_text` by length of the text, the first call of a session, and a no-op's."""
    queries = [query.split() for query in sources["queries"]]
    words = " ".join(sources["abstracts"]).split()
    lengths = {length: [" ".join(q[:length]) for q in queries if len(q) >= length] for length in (2, WORDS)}
    lengths |= {length: [" ".join(words[:length])] for length in (100, 1000, 10_000)}
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("SELECT pgembed.add_encoder('benchmark', 'builtin:lite')")
        for statement in DISTILLED:
            conn.execute(statement)
    rows: list[dict[str, object]] = []

    def measure(name: str, statement: str, texts: list[str], times: int) -> None:
        with psycopg.connect(dsn, autocommit=True) as conn:
            turn = iter(range(1 << 30))

            def call() -> None:
                conn.execute(statement, [texts[next(turn) % len(texts)]]).fetchone()

            first = milliseconds(call, 1, warm_up=0)[0]
            taken = milliseconds(call, times)
        rows.append({"query": name, "p50": p50(taken), "p95": p95(taken), "first of a session": first})

    measure("no-op", "SELECT %s::text", [lengths[WORDS][0]], times)
    for length, texts in lengths.items():
        measure(f"{length} words", "SELECT pgembed.encode_text('benchmark', %s)", texts, times if length < 100 else 10)
    distilled = "SELECT pgembed.encode_text('distilled', %s, prefer => 'static')"
    measure(f"{WORDS} words, distilled", distilled, lengths[WORDS], times)
    return rows


if __name__ == "__main__":
    raise SystemExit(main())
