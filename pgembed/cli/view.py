"""Commands about views of a space: view learn, list, show, probe, drop."""

from __future__ import annotations

import json
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pgembed.cli import completion
from pgembed.cli.allowed import loads_encoders
from pgembed.cli.app import Json, Target, WrongUsage, app, database, examples
from pgembed.cli.output import console, print_json, print_table, say_done

if TYPE_CHECKING:
    from pgembed.views.learning import ViewRow

view = typer.Typer(
    help="Learn, list, show, probe and drop views of a space: directions that searches take out or go along.",
    epilog=examples(
        'pgembed view learn gender --encoder lite --these "a man" --those "a woman"',
        "pgembed view list",
    ),
    no_args_is_help=True,
)
app.add_typer(view, name="view")
ViewName = Annotated[str, typer.Argument(help="A view.", autocompletion=completion.view)]


class LearningMethod(StrEnum):
    """How a view is learnt."""

    centroids = "centroids"
    pairs = "pairs"
    inlp = "inlp"


@view.command(
    "learn",
    epilog=examples(
        'pgembed view learn gender --encoder lite --these "a man" --those "a woman" --these he --those she --paired',
        "pgembed view learn tone --table emoji --these 'tone <= 2' --those 'tone >= 4' --pair base --components 2",
    ),
)
@loads_encoders
def view_learn(
    name: Annotated[str, typer.Argument(help="The name you will use.")],
    these: Annotated[
        list[str], typer.Option(help="With --table an SQL condition; with --encoder words, may be repeated.")
    ],
    those: Annotated[list[str], typer.Option(help="The other set; the view points from it to --these.")],
    table: Annotated[
        str | None, typer.Option(help="Learn from rows of this table.", autocompletion=completion.attached_table)
    ] = None,
    embedding: Target = None,
    encoder: Annotated[
        str | None,
        typer.Option(help="Learn from words, with this registered encoder.", autocompletion=completion.encoder),
    ] = None,
    pair: Annotated[
        str | None, typer.Option(help="With --table: an SQL expression that is equal for the rows of a pair.")
    ] = None,
    paired: Annotated[
        bool, typer.Option("--paired", help="With --encoder: the words are pairs, in their order.")
    ] = False,
    components: Annotated[int, typer.Option(min=1, help="How many directions; several come from pairs or inlp.")] = 1,
    method: Annotated[
        LearningMethod | None,
        typer.Option(help="Default: pairs where there are some, else centroids, the difference of the two means."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Learn a view from two sets of rows or of words, and keep it under a name."""
    from pgembed.inputs import Text

    if (table is None) == (encoder is None):
        raise WrongUsage("A view is learnt from rows or from words.", "Give --table TABLE or --encoder NAME.")
    if table is not None and (len(these) > 1 or len(those) > 1 or paired):
        raise WrongUsage(
            "Rows are chosen by one condition for each set, and paired by --pair.", "Join conditions with OR."
        )
    if encoder is not None and (pair is not None or embedding is not None):
        raise WrongUsage("--pair and --embedding go with --table.", "Words are paired in their order: --paired.")
    with database() as db:
        row = db.learn_view(
            name,
            these=these[0] if table is not None else [Text(words) for words in these],
            those=those[0] if table is not None else [Text(words) for words in those],
            table=table,
            embedding=embedding,
            encoder=encoder,
            pair=pair if table is not None else paired,
            components=components,
            method=None if method is None else method.value,
        )
    directions = "1 direction" if row.directions == 1 else f"{row.directions} directions"
    say_done(
        f"View '{row.name}': {directions} in the space of '{row.encoder}', by {row.method}; from {_source(row)}.",
        as_json=as_json,
        action="view learn",
        **vars(row),
    )


@view.command("list", epilog=examples("pgembed view list", "pgembed view list --json"))
def view_list(as_json: Json = False) -> None:
    """The views."""
    with database() as db:
        rows = db.views()
    if as_json:
        print_json(rows)
        return
    print_table(
        ["name", "encoder", "directions", "method", "learnt from"],
        [(row.name, row.encoder, row.directions, row.method, _source(row)) for row in rows],
        right=["directions"],
    )


@view.command("show", epilog=examples("pgembed view show gender"))
def view_show(name: ViewName, as_json: Json = False) -> None:
    """All that is known of one view."""
    with database() as db:
        row = db.view(name)
    if as_json:
        print_json(row)
        return
    facts: dict[str, Any] = {**vars(row), "created_at": row.created_at.isoformat(" ", "seconds")}
    facts["learnt_from"] = json.dumps(row.learnt_from, ensure_ascii=False)
    print_table(["fact", "value"], list(facts.items()))


@view.command("drop", epilog=examples("pgembed view drop gender"))
def view_drop(name: ViewName, as_json: Json = False) -> None:
    """Forget a view."""
    with database() as db:
        db.drop_view(name)
    say_done(f"View '{name}' is dropped.", as_json=as_json, action="view drop", name=name)


@view.command(
    "probe",
    epilog=examples(
        "pgembed view probe tone --table emoji --attribute tone --group base --same base",
        "pgembed view probe tone --table emoji --attribute tone --fit \"vendor <> 'openmoji'\" --ask name",
    ),
)
@loads_encoders
def view_probe(
    name: ViewName,
    table: Annotated[str, typer.Option(help="The table to probe on.", autocompletion=completion.attached_table)],
    attribute: Annotated[
        str, typer.Option(help="SQL expression: its values are told apart; rows where it is NULL are not probed.")
    ],
    embedding: Target = None,
    where: Annotated[str | None, typer.Option(help="SQL on the table's columns: only these rows.")] = None,
    group: Annotated[
        str | None, typer.Option(help="SQL expression: rows where it is equal are in one fold of the cross-validation.")
    ] = None,
    fit: Annotated[
        str | None, typer.Option(help="SQL condition: the probe is fitted to these rows and measured on the others.")
    ] = None,
    same: Annotated[str | None, typer.Option(help="SQL expression of what should be kept.")] = None,
    ask: Annotated[str | None, typer.Option(help="SQL expression of words by which a row is looked for.")] = None,
    sample: Annotated[int, typer.Option(min=1, help="How many rows to read at most.")] = 5000,
    seed: Annotated[int, typer.Option(help="Decides which rows, folds and shuffles.")] = 0,
    as_json: Json = False,
) -> None:
    """Probe a view: what a linear classifier reads of an attribute before and after it is taken out, and what is kept.

    At chance means that the accuracy is no further from chance, above or below, than what 95 % of shuffles stay below.
    """
    with database() as db:
        found = db.probe_view(
            name, table, attribute, embedding=embedding, where=where, group=group, fit=fit, same=same, ask=ask,
            sample=sample, seed=seed,
        )  # fmt: skip
    if as_json:
        results = {part: {"at_chance": getattr(found, part).at_chance} for part in ("before", "after")}
        print_json({**vars(found), **{part: {**vars(getattr(found, part)), **more} for part, more in results.items()}})
        return
    print_table(
        ["linear probe", "rows", "classes", "accuracy", "chance", "95 % of shuffles", "at chance"],
        [
            (
                label, result.rows, len(result.classes), f"{result.accuracy:.3f}", f"{result.chance:.3f}",
                f"{result.bound:.3f}", "yes" if result.at_chance else "no",
            )
            for label, result in (("before", found.before), (f"without {name} ({found.directions})", found.after))
        ],
        right=["rows", "classes", "accuracy", "chance", "95 % of shuffles"],
    )  # fmt: skip
    console.print()
    print_table(
        ["kept", "rows", "before", "after"],
        [(one.measure, one.rows, f"{one.before:.3f}", f"{one.after:.3f}") for one in found.kept],
        right=["rows", "before", "after"],
    )


def _source(row: ViewRow) -> str:
    """What a view was learnt from, in short."""
    facts = row.learnt_from
    numbers = facts.get("rows") or facts.get("vectors") or [len(facts.get(side, ())) for side in ("these", "those")]
    if numbers == [0, 0]:
        return "given directions"
    pairs = f", {facts['pairs']} pairs" if "pairs" in facts else ""
    what = f"rows of {facts['table']}" if "table" in facts else "vectors"
    return f"{numbers[0]} and {numbers[1]} {what}{pairs}"
