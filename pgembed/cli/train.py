"""``pgembed train composer``."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pgembed.cli.allowed import loads_encoders
from pgembed.cli.app import Json, WrongUsage, app, database, examples
from pgembed.cli.encoder import json_object
from pgembed.cli.output import console, errors, print_json, print_table, progress_bar, remark

if TYPE_CHECKING:
    from pgembed.composers import Trained
    from pgembed.encoders import Encoder

train = typer.Typer(
    help="Train what makes queries better on your own data.",
    epilog=examples("pgembed train composer triplets.csv models/recolour --encoder lite"),
    no_args_is_help=True,
)
app.add_typer(train, name="train")


@train.command(
    "composer",
    epilog=examples(
        "pgembed train composer triplets.csv models/recolour --encoder lite",
        "pgembed train composer triplets.csv models/recolour --encoder open_clip:ViT-B-32/laion2b_s34b_b79k",
    ),
)
@loads_encoders
def train_composer(
    triplets: Annotated[
        Path, typer.Argument(help="A CSV with the columns reference, target, new and, where there is one, old.")
    ],
    folder: Annotated[Path, typer.Argument(help="A new folder.", file_okay=False)],
    encoder: Annotated[str, typer.Option(help="A registered encoder, or a spec: KIND:NAME.")],
    settings: Annotated[str | None, typer.Option(help="With a spec, its settings as JSON.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="At most so many steps; default: 1,200.")] = None,
    seed: Annotated[int, typer.Option(help="Of all that is drawn at random.")] = 0,
    as_json: Json = False,
) -> None:
    """Train a composer: "this picture, but in red", learnt from pictures that were changed so.

    REFERENCE and TARGET are pictures, by their paths from the CSV's folder; NEW says what shall be and OLD what was. A
    fifth of the references is held out; what the composer finds of them stands beside what sums of vectors find, so
    that you see whether it helps. Stored vectors stay as they are. A run that was cut off goes on when it is started
    again. Lines that cannot be used are told by their number. Needs the extra composer.
    """
    from pgembed.composers import train_composer
    from pgembed.composers.fitting import Plan

    with errors.status("loading the encoder"):
        model, space = _encoder(encoder, settings)
    plan = Plan(seed=seed) if steps is None else Plan(seed=seed, steps=steps)
    with progress_bar() as bar:
        tasks: dict[str, int] = {}

        def say(step: str, done: int, of: int) -> None:
            if step not in tasks:
                tasks[step] = bar.add_task(step, total=of)
            bar.update(tasks[step], completed=done, total=of)  # pyright: ignore[reportArgumentType]

        found = train_composer(triplets, model, folder, space=space, plan=plan, say=say)
    for line in found.bad:
        remark("warning", f"{triplets}, {line}: left out", as_json=as_json)
    name = folder.absolute().name
    command = shlex.join(["pgembed", "encoder", "add", name, f"composer:{folder.absolute()}"])
    if as_json:
        print_json(
            {
                "action": "train composer", "folder": str(folder), "manifest": found.manifest, "helps": found.helps,
                "best_untrained": found.best_untrained, "bad_lines": found.bad, "command": command,
            }
        )  # fmt: skip
        return
    _print(found)
    console.print(f"Register it:\n{command}", markup=False, soft_wrap=True)


def _encoder(named: str, settings: str | None) -> tuple[Encoder, str | None]:
    """The encoder and, where it is registered, its space."""
    from pgembed.encoders import load_encoder

    given = json_object(settings)
    if ":" in named:
        return load_encoder(named, given), None
    if given:
        raise WrongUsage("--settings go with a spec; a registered encoder has its own.", "Leave them out.")
    with database() as db:
        return db.load_encoder(named), db.encoder(named).space


def _print(found: Trained) -> None:
    rows = [
        ("the composer", None, found.composer),
        *((way, each.weight, each) for way, each in found.untrained.items()),
    ]
    print_table(
        [f"{found.held_out} held-out triplets", "weight", "R@1", "R@5", "R@10"],
        [
            (way, f"{weight:g}" if weight else None, *(f"{value:.3f}" for value in each.recall.values()))
            for way, weight, each in rows
        ],
        right=["weight", "R@1", "R@5", "R@10"],
    )
    best = found.untrained[found.best_untrained]
    if found.helps:
        console.print(
            f"It helps: R@1 is {found.composer.recall[1]:.3f}, without training {best.recall[1]:.3f} at best."
        )
    else:
        console.print(
            f"It does not help: R@1 is {found.composer.recall[1]:.3f}, and {best.recall[1]:.3f} by"
            f" '{found.best_untrained}'. Search by that, or collect more triplets."
        )
