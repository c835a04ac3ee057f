"""Commands that measure retrieval: eval run, compare."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pgembed.cli import completion
from pgembed.cli.allowed import loads_encoders
from pgembed.cli.app import Json, Method, TableName, Target, WrongUsage, app, examples, settings
from pgembed.cli.output import console, print_json, print_table, progress_bar, remark

if TYPE_CHECKING:
    from pgembed.client import Pgembed
    from pgembed.evaluate import Comparison, Evaluation
    from pgembed.evaluate.asking import Some
    from pgembed.evaluate.target import Connection

evaluation = typer.Typer(
    help="Measure retrieval against judgments: an embedding, two runs, published datasets of composed retrieval.",
    epilog=examples(
        "pgembed eval run product judgments/",
        "pgembed eval compare lite.run shop.run --qrels judgments/qrels.tsv",
        "pgembed eval cir cirr data/cirr --encoder open_clip:ViT-B-32/openai",
    ),
    no_args_is_help=True,
)
app.add_typer(evaluation, name="eval")

Measures = Annotated[
    list[str] | None,
    typer.Option(
        "--measure",
        help="A measure of ir-measures, such as nDCG@10, R@100, P@5; may be repeated."
        " Default: nDCG@10, R@10, R@100, RR@10 and AP@10.",
        show_default=False,
    ),
]
Seed = Annotated[int, typer.Option(help="Of the randomization test, and of the queries that are timed.")]


@evaluation.command(
    "run",
    epilog=examples(
        "pgembed eval run product judgments/ --run lite.run --report lite.html",
        "pgembed eval run product judgments/ --embedding lite --against shop",
        'pgembed eval run product judgments/ --where "price < 50" --measure nDCG@10 --measure P@5',
        "pgembed eval run product judgments/ --words --method score",
    ),
)
@loads_encoders
def evaluate_table(
    table: TableName,
    folder: Annotated[
        Path | None,
        typer.Argument(help="A folder with queries.jsonl, and qrels.tsv or qrels/NAME.tsv.", show_default=False),
    ] = None,
    queries: Annotated[Path | None, typer.Option(help="The file of queries, where it stands elsewhere.")] = None,
    qrels: Annotated[Path | None, typer.Option(help="The file of judgments, where it stands elsewhere.")] = None,
    split: Annotated[
        str | None, typer.Option(help="Which of qrels/NAME.tsv; default: test, or the only one.", show_default=False)
    ] = None,
    target: Target = None,
    against: Annotated[
        str | None,
        typer.Option(help="A second embedding of the table, to be compared.", autocompletion=completion.embedding),
    ] = None,
    id_column: Annotated[
        str | None,
        typer.Option(help="The column whose values the judgments name; default: the key.", show_default=False),
    ] = None,
    where: Annotated[str | None, typer.Option(help="SQL on the table's columns: price < 50.")] = None,
    measure: Measures = None,
    depth: Annotated[
        int | None,
        typer.Option(
            min=1, help="Rows of each ranking; default: what the measures look at, at least 100.", show_default=False
        ),
    ] = None,
    exact: Annotated[bool, typer.Option("--exact", help="Compare every row; use no vector index.")] = False,
    by_words: Annotated[
        bool, typer.Option("--words", help="Look for the words of queries too, by full text search, and fuse both.")
    ] = False,
    method: Annotated[
        Method, typer.Option(help="How --words fuses: by ranks, or by the sum of the scores.")
    ] = Method.rank,
    neutral: Annotated[
        str | None,
        typer.Option(
            help="A view that is not to count: it is taken out of query and rows.", autocompletion=completion.view
        ),
    ] = None,
    ef_search: Annotated[
        int | None, typer.Option(min=1, max=1000, help="hnsw.ef_search of the searches.", show_default=False)
    ] = None,
    run: Annotated[
        list[Path] | None,
        typer.Option(help="Write the ranking in TREC's format, settings beside it; with --against a second one."),
    ] = None,
    report: Annotated[Path | None, typer.Option(help="Write a report: out.html.")] = None,
    picture: Annotated[
        str | None,
        typer.Option(help="The column with pictures, for the report; default: the embedding's.", show_default=False),
    ] = None,
    media_root: Annotated[
        Path | None, typer.Option(help="Where pictures given as paths lie, for the report; default: here.")
    ] = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Ask every query of a file of judgments and measure what comes back. Exit code 1 where a query cannot be asked."""
    from pgembed.evaluate import MEASURES, Options, compare, evaluate, find_qrels, read_qrels, read_queries, write_run

    if report is not None and report.suffix.lower() not in (".html", ".htm"):
        raise WrongUsage(f"A report cannot be written as '{report.name}'.", "Name it .html.")
    if run is not None and len(run) > 1 + (against is not None):
        raise WrongUsage(
            f"There are {len(run)} files for {1 + (against is not None)} runs.", "Give --run once for each."
        )
    questions = read_queries(_given(queries, folder and folder / "queries.jsonl", "--queries"))
    grades = read_qrels(_given(qrels, folder and find_qrels(folder, split), "--qrels"))
    measures = list(dict.fromkeys(measure or MEASURES))
    if by_words and neutral is not None:
        raise WrongUsage("--neutral takes a view out of vectors, and --words looks for words.", "Leave one out.")
    options = Options(
        where=where, depth=depth, exact=exact, ef_search=ef_search, seed=seed, words=by_words, method=method.value,
        neutral=neutral,
    )  # fmt: skip
    with connected() as (conn, db):
        found: list[Evaluation] = []
        for embedding in [target, *([against] if against else [])]:
            with progress(f"{table}.{embedding}" if embedding else table) as on_progress:
                found.append(
                    evaluate(
                        conn, db, table, questions, grades, embedding=embedding, id_column=id_column,
                        measures=measures, options=options, on_progress=on_progress,
                    )
                )  # fmt: skip
        for path, each in zip(run or [], found, strict=False):
            write_run(path, each.run)
        compared = compare(*_shared([dict(each.values) for each in found]), seed=seed) if against else []
        if report is not None:
            from pgembed.evaluate.report import write_report

            with progress("report") as on_progress:
                write_report(
                    conn, db, table, questions, grades, found, compared, report,
                    options=options, picture=picture, media_root=media_root, on_progress=on_progress,
                )  # fmt: skip
    _tell(table, found, compared, run or [], report, as_json=as_json)
    if any(each.faults for each in found):
        raise typer.Exit(1)


@evaluation.command(
    "compare",
    epilog=examples(
        "pgembed eval compare lite.run shop.run --qrels judgments/qrels.tsv",
        "pgembed eval compare lite.run shop.run --qrels judgments/qrels.tsv --measure nDCG@10 --json",
    ),
)
def compare_runs(
    first: Annotated[Path, typer.Argument(metavar="RUN1", help="A run in TREC's format.")],
    second: Annotated[Path, typer.Argument(metavar="RUN2", help="The run that is compared with it.")],
    qrels: Annotated[Path, typer.Option(help="The file of judgments.")],
    measure: Measures = None,
    rounds: Annotated[int, typer.Option(min=1000, help="Random exchanges of the two runs.")] = 100_000,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Compare two runs query by query, with a paired randomization test."""
    from pgembed.errors import InvalidInput
    from pgembed.evaluate import MEASURES, compare, read_qrels, read_run
    from pgembed.evaluate.metrics import judged, values

    grades, runs = read_qrels(qrels), [read_run(first), read_run(second)]
    among = judged(grades, sorted({query for run in runs for query in run.rankings}))
    if not among:
        raise InvalidInput(
            f"No query of {first} or {second} has a relevant row in {qrels}.", "Give the judgments of these queries."
        )
    for path, run in zip((first, second), runs, strict=True):
        if missing := [query for query in among if query not in run.rankings]:
            message = f"{path} has nothing for {len(missing):,} queries ({', '.join(missing[:3])}): they count as 0."
            remark("warning", message, as_json=as_json)
    tables = [values(grades, run.rankings, among, list(dict.fromkeys(measure or MEASURES))) for run in runs]
    compared = compare(*tables, rounds=rounds, seed=seed)
    if as_json:
        facts = {"first": str(first), "second": str(second), "queries": len(among), "seed": seed, "rounds": rounds}
        print_json({"action": "eval compare", **facts, "measures": [vars(each) for each in compared]})
        return
    console.print(f"{len(among):,} queries: {first} and {second}.", markup=False, soft_wrap=True)
    _print_comparison(compared)


@contextmanager
def connected() -> Generator[tuple[Connection, Pgembed]]:
    """One connection, whose settings a search can be made with, and a client on it."""
    import psycopg

    from pgembed.client import connect
    from pgembed.connections import conninfo
    from pgembed.media import MediaPolicy

    with psycopg.connect(conninfo(settings.dsn), autocommit=True) as conn:
        media = MediaPolicy(any_path=True, allow_urls=True)
        yield conn, connect(conn, media=media, encoders=settings.encoders)


def _given(named: Path | None, default: Path | None, option: str) -> Path:
    path = named or default
    if path is None:
        raise WrongUsage(f"There is neither a folder nor {option}.", "Give a folder in BEIR's layout, or both files.")
    return path


def _shared(tables: Sequence[dict[str, Any]]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Both tables of values, over the queries that both have."""
    first, second = tables
    both = {measure: first[measure].keys() & second[measure].keys() for measure in first}
    return tuple(  # pyright: ignore[reportReturnType]
        {name: {query: value for query, value in each.items() if query in both[name]} for name, each in table.items()}
        for table in (first, second)
    )


def _tell(
    table: str,
    found: Sequence[Evaluation],
    compared: Sequence[Comparison],
    runs: Sequence[Path],
    report: Path | None,
    *,
    as_json: bool,
) -> None:
    if as_json:
        print_json(
            {
                "action": "eval run",
                "table": table,
                "runs": [_facts(each) for each in found],
                "compared": [vars(each) for each in compared],
                "run files": [str(path) for path in runs],
                "report": report and str(report),
            }
        )
        return
    for each in found:
        target = each.target
        median, late = each.milliseconds
        line = (
            f"{target.table}.{target.embedding}, encoder '{target.encoder}' ({target.spec}): {len(each.queries):,}"
            f" queries, {median:.1f} ms a search (median; 95th percentile {late:.1f})."
        )
        console.print(line, markup=False, soft_wrap=True)
        for what, some in _told(each).items():
            if some.count:
                remark("warning", f"{what}: {some.count:,} ({', '.join(some.first)})", as_json=False)
        if each.waiting:
            message = f"{each.waiting:,} rows have no vector of their present inputs: pgembed status {target.table}"
            remark("warning", message, as_json=False)
        for fault in each.faults:
            remark("error", str(fault), as_json=False, style="red")
    if compared:
        _print_comparison(compared)
    else:
        names = [*found[0].means]
        print_table(["measure", "mean"], [(name, f"{found[0].means[name]:.4f}") for name in names], right=["mean"])
    for path in [*runs, *([report] if report else [])]:
        console.print(f"Written: {path}", markup=False, soft_wrap=True)


def _told(each: Evaluation) -> dict[str, Some]:
    return {
        f"judged ids that are no row's {' and '.join(each.target.ids)}": each.unknown_ids,
        "queries without judgments, which do not count": each.unjudged,
        "queries without a relevant row in the judgments, which do not count": each.irrelevant,
        "judged queries that are not in the file of queries": each.unasked,
        "queries without words, asked by their vectors alone": each.wordless,
    }


def _facts(each: Evaluation) -> dict[str, Any]:
    return {
        **each.target.facts,
        "queries": len(each.queries),
        "measures": dict(each.means),
        "milliseconds": {"median": each.milliseconds[0], "95th percentile": each.milliseconds[1]},
        "unknown ids": vars(each.unknown_ids),
        "without judgments": vars(each.unjudged),
        "without relevant rows": vars(each.irrelevant),
        "judged, not in the file": vars(each.unasked),
        "without words": vars(each.wordless),
        "rows that wait": each.waiting,
        "faults": [vars(fault) for fault in each.faults],
    }


def _print_comparison(compared: Sequence[Comparison]) -> None:
    columns = ["measure", "first", "second", "difference", "p", "won", "lost", "equal"]
    rows = [
        (one.measure, f"{one.first:.4f}", f"{one.second:.4f}", f"{one.difference:+.4f}", f"{one.p:.4f}",
         one.won, one.lost, one.equal)
        for one in compared
    ]  # fmt: skip
    print_table(columns, rows, right=columns[1:])


@contextmanager
def progress(what: str) -> Generator[Callable[[int, int], None] | None]:
    """A bar on a terminal, nothing elsewhere."""
    if not sys.stderr.isatty():
        yield None
        return
    with progress_bar() as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
