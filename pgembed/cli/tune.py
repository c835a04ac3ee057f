"""The command tune: whether the inputs of a table's rows are better together, and by which weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pgembed.cli import completion
from pgembed.cli.allowed import loads_encoders
from pgembed.cli.app import Json, NewTable, Target, WrongUsage, app, examples
from pgembed.cli.evaluate import connected, progress
from pgembed.cli.output import console, print_json, print_table, remark

if TYPE_CHECKING:
    from pgembed.evaluate.tuning import Tuning


@app.command(
    epilog=examples(
        "pgembed tune product --judgments judgments/",
        "pgembed tune product --judgments judgments/ --embedding lite --metric R@10",
        "pgembed tune product --judgments judgments/ --encoder shop --text '{title}' --image photo",
    )
)
@loads_encoders
def tune(
    table: NewTable,
    judgments: Annotated[
        Path, typer.Option(help="A folder with queries.jsonl, and qrels.tsv or qrels/NAME.tsv, as of pgembed eval.")
    ],
    target: Target = None,
    encoder: Annotated[
        str | None,
        typer.Option(
            help="A registered encoder, for inputs that no embedding has yet.", autocompletion=completion.encoder
        ),
    ] = None,
    text: Annotated[
        str | None, typer.Option(help="With --encoder: a text column or template.", autocompletion=completion.column)
    ] = None,
    image: Annotated[
        str | None, typer.Option(help="With --encoder: a picture column.", autocompletion=completion.column)
    ] = None,
    image_as: Annotated[str | None, typer.Option(help="What a text column of pictures holds: path or url.")] = None,
    screenshot: Annotated[
        str | None, typer.Option(help="With --encoder: a column of screenshots.", autocompletion=completion.column)
    ] = None,
    screenshot_as: Annotated[str | None, typer.Option(help="The same for screenshots: path or url.")] = None,
    split: Annotated[
        str | None, typer.Option(help="Which of qrels/NAME.tsv; default: test, or the only one.", show_default=False)
    ] = None,
    id_column: Annotated[
        str | None,
        typer.Option(help="The column whose values the judgments name; default: the key.", show_default=False),
    ] = None,
    metric: Annotated[str, typer.Option(help="A measure of ir-measures, of at most 100 rows.")] = "nDCG@10",
    steps: Annotated[
        int | None,
        typer.Option(
            min=2,
            max=100,
            help="Weights are multiples of 1/STEPS; default: 20, of three inputs 10.",
            show_default=False,
        ),
    ] = None,
    others: Annotated[int, typer.Option(min=0, help="Rows to rank beside the judged ones, drawn at random.")] = 10_000,
    seed: Annotated[int, typer.Option(help="Of the halves, the rows drawn, and the randomization test.")] = 0,
    media_root: Annotated[
        Path | None, typer.Option(help="Pictures given as paths must lie below this folder, as for the worker.")
    ] = None,
    allow_urls: Annotated[bool, typer.Option("--allow-urls", help="Fetch pictures given as https URLs.")] = False,
    as_json: Json = False,
) -> None:
    """Find out whether a row's inputs are better together, and by which weights. Nothing is changed.

    Each input is encoded once, or read where an embedding has it apart. Fusions and weights are chosen on one half of
    the queries and told of the other: each input alone, their mean, the best sum, side by side (concat), and embeddings
    kept apart and fused by score or by rank. It ends with whether fusion helps, by a paired randomization test against
    the best single input, and with the SQL that attaches the winner. Exit code 1 where a query cannot be asked.
    """
    inputs = {
        "text": text,
        "image": {"column": image, "as": image_as} if image and image_as else image,
        "screenshot": {"column": screenshot, "as": screenshot_as} if screenshot and screenshot_as else screenshot,
    }
    given = any(value is not None for value in inputs.values())
    if given and encoder is None:
        raise WrongUsage("There are inputs and no --encoder.", "Name it, or leave the inputs to --embedding.")
    if encoder is not None and not given:
        raise WrongUsage(f"--encoder {encoder} has no inputs.", "Give it several: --text '{title}' --image photo")
    if encoder is not None and target is not None:
        raise WrongUsage("--encoder and --embedding exclude each other.", "Choose one of them.")
    from pgembed.evaluate import find_qrels, read_qrels, read_queries
    from pgembed.evaluate.parts import fused_inputs
    from pgembed.evaluate.tuning import tune as run
    from pgembed.media import MediaPolicy

    questions = read_queries(judgments / "queries.jsonl")
    grades = read_qrels(find_qrels(judgments, split))
    with connected() as (conn, db):
        fused = fused_inputs(conn, table, target, encoder, inputs, id_column)
        with progress("queries") as on_queries, progress("rows") as on_rows:
            found = run(
                conn, db, fused, questions, grades,
                metric=metric, steps=steps, seed=seed, others=others,
                media=MediaPolicy(media_root=media_root, allow_urls=allow_urls), on_rows=on_rows, on_queries=on_queries,
            )  # fmt: skip
    _tell(found, as_json=as_json)
    if found.faults:
        raise typer.Exit(1)


def _tell(found: Tuning, *, as_json: bool) -> None:
    if as_json:
        print_json({"action": "tune", **_facts(found)})
        return
    inputs = ", ".join(f"{count:,} with {modality}" for modality, count in found.with_input.items())
    line = (
        f"{found.table}, encoder '{found.encoder}': {found.rows:,} rows ({inputs}); {found.read:,} vectors read,"
        f" {found.encoded:,} encoded; {len(found.tuned_on):,} queries to choose on, {len(found.held_out):,} held out."
    )
    console.print(line, markup=False, soft_wrap=True)
    if found.failed:
        remark("warning", f"{found.failed:,} inputs could not be read: {'; '.join(found.unread)}", as_json=False)
    for fault in found.faults:
        remark("error", str(fault), as_json=False, style="red")
    numbers = ["chosen on", "held out", "difference", "p"]
    print_table(
        [f"{found.metric}", "weights", *numbers],
        [
            (
                way.name,
                ""
                if way.method == "alone"
                else ", ".join(f"{name} {weight:g}" for name, weight in way.weights.items()),
                f"{way.tuned:.4f}",
                f"{way.held_out:.4f}",
                "" if way is found.single else f"{way.difference:+.4f}",
                "" if way is found.single else f"{way.p:.4f}",
            )
            for way in found.ways
        ],
        right=numbers,
    )
    console.print(f"\n{found.sentence}\n\n{found.attach}", markup=False, soft_wrap=True)
    if found.at_query_time is not None:
        line = f"The embedding that is there takes these weights from a query: {found.at_query_time}"
        console.print(line, markup=False, soft_wrap=True)


def _facts(found: Tuning) -> dict[str, Any]:
    facts = {**vars(found), "ways": [vars(way) for way in found.ways]}
    return facts | {
        "single": found.single.name,
        "chosen": found.chosen.name,
        "faults": [vars(fault) for fault in found.faults],
    }
