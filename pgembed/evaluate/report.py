"""An evaluation as one HTML file that needs nothing beside it: figures, plots, and queries with what they found."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from psycopg import sql

from pgembed.client import Pgembed
from pgembed.contact_sheet import Part, parts_of, thumbnail, thumbnail_or_none
from pgembed.contact_sheet.html import STYLE, data_uri
from pgembed.contact_sheet.panel import sign_of
from pgembed.contact_sheet.stored import caption_of, read_stored
from pgembed.errors import PgembedError
from pgembed.evaluate import plots
from pgembed.evaluate.asking import Evaluation, Options, search_of
from pgembed.evaluate.compare import Comparison
from pgembed.evaluate.judgments import Qrels, Question, Questions
from pgembed.evaluate.sweep import K, Point, sweep
from pgembed.evaluate.target import Connection, Evaluated
from pgembed.media import MediaPolicy, MediaReader

EXAMPLES = 4  # queries of each kind that are shown
HITS = 8
SMALL = 200  # pixels of a thumbnail's longer side
Progress = Callable[[int, int], None]

_OWN_STYLE = """
:root { --second: #b4541a; --right: #2c7a3f; }
@media (prefers-color-scheme: dark) { :root { --second: #f0a067; --right: #7fce93; } }
table { border-collapse: collapse; margin: 0 0 1rem; font-variant-numeric: tabular-nums; }
.hits { grid-template-columns: repeat(8, minmax(0, 1fr)); }
@media (max-width: 48rem) { .hits { grid-template-columns: repeat(4, minmax(0, 1fr)); } }
th, td { padding: .25rem 1.1rem .25rem 0; text-align: left; vertical-align: top; }
th { color: var(--soft); font-weight: 500; }
td.number, th.number { text-align: right; }
td { overflow-wrap: anywhere; }
.hits li.right img, .hits li.right .none { border: 2px solid var(--right); }
.hits li.missed img, .hits li.missed .words-only { border-style: dashed; }
.grade { color: var(--right); font-weight: 600; }
.hits .words-only { aspect-ratio: 1; margin-bottom: .3rem; padding: .5rem; border: 1px solid var(--line);
  border-radius: 10px; background: var(--ground); overflow: hidden; font-size: .78rem; line-height: 1.35;
  overflow-wrap: break-word; }
.hits li.right .words-only { border: 2px solid var(--right); }
h3 { margin: 1.4rem 0 .5rem; font-size: .95rem; }
h3 span { color: var(--soft); font-weight: 400; }
.of { margin: .2rem 0 .4rem; color: var(--soft); font-size: .85rem; }
@media print { :root { --second: #b4541a; --right: #2c7a3f; } }
"""


@dataclass(frozen=True)
class _Shelf:
    """What rows are shown with: a column of pictures, and who reads them."""

    column: str | None
    stored: MediaReader
    typed: MediaReader


def write_report(
    conn: Connection,
    db: Pgembed,
    table: str,
    questions: Questions,
    qrels: Qrels,
    found: Sequence[Evaluation],
    compared: Sequence[Comparison],
    path: Path,
    *,
    options: Options,
    picture: str | None = None,
    media_root: Path | None = None,
    on_progress: Progress | None = None,
) -> None:
    """Write the report of one evaluation, or of two that were compared; ``db`` is a client on ``conn``.

    It searches again: for the plot of recall and time, and for the pictures of what a few queries find.
    """
    by_id = {question.id: question for question in questions.asked}
    counted = [by_id[query] for query in found[0].queries]
    swept = {
        each.target.embedding: sweep(
            conn, db, table, each.target, counted, where=options.where, seed=options.seed, on_progress=on_progress
        )
        for each in found
    }
    stored = MediaPolicy(media_root=media_root or Path.cwd(), allow_urls=True)
    with MediaReader(stored) as rows, MediaReader(MediaPolicy(any_path=True, allow_urls=True)) as typed:
        shelf = _Shelf(picture or db.picture_column(table, found[0].target.embedding), rows, typed)
        sections = [
            _figures(found, compared),
            *(_plot(each, swept[each.target.embedding]) for each in found),
            _gains(found),
            *_examples(db, table, found, by_id, qrels, options, shelf),
            _settings(found),
        ]
    names = " and ".join(f"{each.target.table}.{each.target.embedding}" for each in found)
    path.write_text(_page(f"Evaluation of {names}", sections), encoding="utf-8")


def _page(title: str, sections: Sequence[str]) -> str:
    body = "\n".join(f"<section>\n{section}\n</section>" for section in sections if section)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}{_OWN_STYLE}{plots.STYLE}</style>\n</head>\n<body>\n"
        f"<h1>{escape(title)}</h1>\n{body}\n</body>\n</html>\n"
    )


def _figures(found: Sequence[Evaluation], compared: Sequence[Comparison]) -> str:
    queries = len(found[0].queries)
    if not compared:
        rows = [(name, f"{value:.4f}") for name, value in found[0].means.items()]
        return f"<h2>Measures, mean of {queries:,} queries</h2>" + _table(("measure", "mean"), rows, numbers=1)
    first, second = (each.target.embedding for each in found)
    rows = [
        (one.measure, f"{one.first:.4f}", f"{one.second:.4f}", f"{one.difference:+.4f}", f"{one.p:.4f}",
         str(one.won), str(one.lost), str(one.equal))
        for one in compared
    ]  # fmt: skip
    columns = ("measure", first, second, "difference", "p", "won", "lost", "equal")
    note = (
        f"Won are the queries for which {escape(second)} is better. p is that of a two-sided paired randomization test"
        " of each measure by itself."
    )
    return f"<h2>Measures, mean of {queries:,} queries</h2>" + _table(columns, rows, 1) + f'<p class="note">{note}</p>'


def _plot(each: Evaluation, points: Sequence[Point]) -> str:
    target = each.target
    title = f"<h2>Recall and time of {escape(target.embedding)}</h2>"
    rows = [
        ("exact" if point.ef_search is None else f"hnsw.ef_search = {point.ef_search}",
         f"{point.recall:.3f}", f"{point.median:.2f}", f"{point.late:.2f}")
        for point in points
    ]  # fmt: skip
    table = _table(("search", f"recall@{K}", "median ms", "95th percentile ms"), rows, numbers=1)
    if len(points) < 2:
        why = "has no HNSW index" if target.index is None else "has an HNSW index that these searches cannot use"
        return f'{title}<p class="note">The embedding {why}: only the exact search was timed.</p>{table}'
    note = (
        "Times of the statement, the quickest of three runs; the index is used even where the planner would rather"
        " read all of a small table."
    )
    return f'{title}{plots.recall_latency(points)}<p class="note">{note}</p>{table}'


def _gains(found: Sequence[Evaluation]) -> str:
    measure = next(iter(found[0].values))
    first = found[0].values[measure]
    if len(found) == 1:
        plot = plots.bars([*first.items()], title=measure, signed=False)
        return f"<h2>{escape(measure)} of each query</h2>{plot}"
    names = [each.target.embedding for each in found]
    gains = _differences(found, measure)
    plot = plots.bars([*gains.items()], title=f"{measure} of {names[1]} less {names[0]}", signed=True)
    return f"<h2>Gain of each query</h2>{plot}"


def _differences(found: Sequence[Evaluation], measure: str) -> dict[str, float]:
    first, second = (each.values[measure] for each in found)
    return {query: second[query] - first[query] for query in first if query in second}


def _examples(
    db: Pgembed,
    table: str,
    found: Sequence[Evaluation],
    by_id: Mapping[str, Question],
    qrels: Qrels,
    options: Options,
    shelf: _Shelf,
) -> list[str]:
    """The queries that gained and lost most or, of one run, those that do worst and best, with what they find."""
    measure = next(iter(found[0].values))
    values = found[0].values[measure] if len(found) == 1 else _differences(found, measure)
    ordered = sorted(values, key=lambda query: (values[query], query))
    if len(found) == 1:
        kinds = {"Lowest": ordered[:EXAMPLES], "Highest": ordered[::-1][:EXAMPLES]}
        kinds["Highest"] = [query for query in kinds["Highest"] if query not in kinds["Lowest"]]
    else:
        second = found[1].target.embedding
        kinds = {
            f"{second} gains most": [query for query in ordered[::-1][:EXAMPLES] if values[query] > 0],
            f"{second} loses most": [query for query in ordered[:EXAMPLES] if values[query] < 0],
        }
    sections: list[str] = []
    for kind, queries in kinds.items():
        shown = [_example(db, table, found, by_id[query], qrels, measure, options, shelf) for query in queries]
        if shown:
            sections.append(f"<h2>{escape(kind)}, by {escape(measure)}</h2>" + "".join(shown))
    return sections


def _example(
    db: Pgembed,
    table: str,
    found: Sequence[Evaluation],
    question: Question,
    qrels: Qrels,
    measure: str,
    options: Options,
    shelf: _Shelf,
) -> str:
    grades = qrels.get(question.id, {})
    right = sum(grade > 0 for grade in grades.values())
    pieces = [f"<h3>Query {escape(question.id)} <span>{right:,} relevant</span></h3>", _query(question, shelf)]
    for each in found:
        ranking = [identity for identity, _ in each.run.rankings[question.id]]
        place = next((n for n, identity in enumerate(ranking, start=1) if grades.get(identity, 0) > 0), None)
        where = f"place {place}" if place else f"not among the first {len(ranking):,}"
        value = f"{measure} {each.values[measure][question.id]:.3f}, first relevant row: {where}"
        pieces.append(f'<p class="of">{escape(each.target.embedding)}: {escape(value)}</p>')
        pieces.append(_hits(db, table, each, question, grades, options, shelf))
    return "".join(pieces)


def _query(question: Question, shelf: _Shelf) -> str:
    try:
        parts = parts_of(question.query, shelf.typed)
    except (PgembedError, OSError) as error:
        parts = [Part(str(error))]
    shown: list[str] = []
    for number, part in enumerate(parts):
        if sign := sign_of(part, first=number == 0):
            shown.append(f'<span class="sign">{escape(sign)}</span>')
        if isinstance(part.content, str):
            shown.append(f'<span class="words">{escape(part.content)}</span>')
        else:
            shown.append(f'<img src="{data_uri(thumbnail(part.content, SMALL))}" alt="a picture">')
    return f'<div class="query">{"".join(shown)}</div>'


def _hits(
    db: Pgembed,
    table: str,
    each: Evaluation,
    question: Question,
    grades: Mapping[str, int],
    options: Options,
    shelf: _Shelf,
) -> str:
    """The first rows; the last tile is for the best relevant row that is not among them, where there is one."""
    target = each.target
    asked = search_of(db, table, target.embedding, question, options)
    named: list[str] = [*asked.columns, *target.ids, *([shelf.column] if shelf.column else [])]
    asked = asked.select(*dict.fromkeys(named))
    rows = asked.limit(HITS).rows()
    shown = {target.id_of(row) for row in rows[: HITS - 1]}
    missed = sorted(
        (row for row, grade in grades.items() if grade > 0 and row not in shown), key=lambda row: -grades[row]
    )
    tiles = [_tile(row, target.id_of(row), grades, shelf) for row in rows]
    if missed:
        condition, values = _only(target, missed[0])
        found = asked.where(condition, *values).first()
        if found:
            scores = dict(each.run.rankings[question.id])
            place = f"place {[*scores].index(missed[0]) + 1}" if missed[0] in scores else "not found"
            # alone it is the first of each leg, which says nothing of its score among all
            score = scores.get(missed[0], 0.0 if options.words else found.score)
            tiles = [*tiles[: HITS - 1], _tile({**found, "score": score}, missed[0], grades, shelf, missed=place)]
    return '<ol class="hits">' + "".join(tiles) + "</ol>" if tiles else '<p class="note">Nothing was found.</p>'


def _only(target: Evaluated, identity: str) -> tuple[str, list[str]]:
    """The filter that one row alone passes, and its parameters."""
    values = [identity] if len(target.ids) == 1 else json.loads(identity)
    names = [sql.Identifier(name).as_string(None) for name in target.ids]
    return " AND ".join(name.replace("%", "%%") + "::text = %s" for name in names), values


def _tile(row: Mapping[str, Any], identity: str, grades: Mapping[str, int], shelf: _Shelf, *, missed: str = "") -> str:
    grade = grades.get(identity, 0)
    caption = escape(caption_of(row, shelf.column) or identity)
    picture = None
    if shelf.column is not None:
        picture = thumbnail_or_none(read_stored(shelf.stored, row[shelf.column]))
    if picture is not None:
        picture.thumbnail((SMALL, SMALL))
        shown = f'<img src="{data_uri(picture)}" alt="{caption}" loading="lazy">'
        shown += f'<div class="caption" title="{caption}">{caption}</div>'
    else:
        shown = f'<div class="words-only">{caption}</div>'
    mark = f' <span class="grade">relevant, {grade}{f": {missed}" if missed else ""}</span>' if grade > 0 else ""
    kind = ' class="right missed"' if missed else ' class="right"' if grade > 0 else ""
    return f'<li{kind}>{shown}<div class="score">{row["score"]:.3f}{mark}</div></li>'


def _settings(found: Sequence[Evaluation]) -> str:
    pieces = ["<h2>Settings</h2>"]
    for each in found:
        facts = {name: value for name, value in each.run.facts.items() if name != "measures"}
        facts["milliseconds a search, encoding included"] = "median {:.1f}, 95th percentile {:.1f}".format(
            *each.milliseconds
        )
        for what, some in (
            ("judged ids of no row", each.unknown_ids),
            ("queries without judgments", each.unjudged),
            ("queries without a relevant row", each.irrelevant),
            ("judged queries that are not in the file", each.unasked),
        ):
            if some.count:
                facts[what] = f"{some.count:,}: {', '.join(some.first)}"
        for fault in each.faults:
            facts[f"not asked, line {fault.line}"] = f"{fault.id}: {fault.reason}"
        pieces.append(_table(("setting", "value"), [(name, _said(value)) for name, value in facts.items()]))
    return "".join(pieces)


def _said(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else "–" if value is None else str(value)  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]], numbers: int | None = None) -> str:
    """A table whose columns from ``numbers`` on are numbers."""

    def cells(tag: str, values: Sequence[str]) -> str:
        kinds = [' class="number"' if numbers is not None and place >= numbers else "" for place in range(len(values))]
        return "".join(f"<{tag}{kind}>{escape(value)}</{tag}>" for kind, value in zip(kinds, values, strict=True))

    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    return f"<table><thead><tr>{cells('th', columns)}</tr></thead><tbody>{body}</tbody></table>"
