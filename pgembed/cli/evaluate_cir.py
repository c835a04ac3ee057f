"""The command eval cir: published datasets of composed retrieval, from a local copy."""

from __future__ import annotations

import json
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pgembed.cli.allowed import loads_encoders
from pgembed.cli.app import Json, WrongUsage, database, examples
from pgembed.cli.encoder import json_object
from pgembed.cli.evaluate import evaluation, progress
from pgembed.cli.output import console, print_json, print_table, remark

if TYPE_CHECKING:
    from pgembed.encoders import Encoder
    from pgembed.evaluate.cir import Result
    from pgembed.evaluate.cir.vectors import Progress

CACHE = Path("~/.cache/pgembed/eval")
FIRST = 3


@evaluation.command(
    "cir",
    epilog=examples(
        "pgembed eval cir cirr data/cirr --encoder open_clip:ViT-B-32/openai",
        "pgembed eval cir fashioniq data/fashion-iq --encoder open_clip:ViT-B-32/openai --way sum --weight 1.2",
        'pgembed eval cir circo data/CIRCO --encoder shop --way swap --old "a photo" --weight 0.8',
        "pgembed eval cir cirr data/cirr --encoder shop --split test --submission cirr.json",
    ),
)
@loads_encoders
def evaluate_cir(
    dataset: Annotated[str, typer.Argument(help="fashioniq, cirr, circo or genecis.")],
    folder: Annotated[Path, typer.Argument(help="The local copy, in its published layout.")],
    encoder: Annotated[str, typer.Option(help="KIND:NAME, or the name of a registered encoder.")],
    encoder_settings: Annotated[
        str | None, typer.Option("--settings", help="Settings of a KIND:NAME, as JSON.", show_default=False)
    ] = None,
    way: Annotated[
        str, typer.Option(help="How picture and caption are composed: image, text, sum, slerp, swap.")
    ] = "sum",
    weight: Annotated[
        float | None,
        typer.Option(
            help="Of the caption in a sum or swap; the share of slerp. Default: 1, of slerp 0.5.", show_default=False
        ),
    ] = None,
    prompt: Annotated[str, typer.Option(help="What stands around a caption, {} in its place.")] = "{}",
    old: Annotated[str | None, typer.Option(help="The words that swap takes out: a photo.", show_default=False)] = None,
    split: Annotated[
        str | None,
        typer.Option(help="val, or test of cirr and circo, whose answers are not published.", show_default=False),
    ] = None,
    submission: Annotated[
        Path | None, typer.Option(help="Write what the dataset's server takes; of cirr two files.", show_default=False)
    ] = None,
    cache: Annotated[Path, typer.Option(help="Where vectors are kept, by the encoder's fingerprint.")] = CACHE,
    as_json: Json = False,
) -> None:
    """Measure an encoder on a published dataset of composed retrieval, with the dataset's own metrics.

    Figures are in percent, in JSON shares. Vectors are kept: a run that was broken off goes on where it was. Exit code
    1 where a picture or a query cannot be read, since the figures are then not the published ones.
    """
    from pgembed.evaluate.cir import Asking, dataset_named, evaluate_composed, way_named

    chosen, split = dataset_named(dataset, split)
    how = way_named(way)
    asking = Asking(how, how.weight if weight is None else weight, prompt, old)
    if submission is not None and chosen.submissions is None:
        raise WrongUsage(f"{dataset} has no server that takes submissions.", "Leave --submission out.")
    model = _loaded(encoder, json_object(encoder_settings))
    found = evaluate_composed(chosen, folder, split, model, asking, cache.expanduser(), _bar)
    written: list[Path] = []
    if submission is not None:
        for end, content in found.submissions.items():
            path = submission.with_name(f"{submission.stem}{end}{submission.suffix or '.json'}")
            path.write_text(json.dumps(content), encoding="utf-8")
            written.append(path)
    if as_json:
        print_json(
            {
                "action": "eval cir", "dataset": dataset, "split": split, "folder": str(folder), "encoder": model.spec,
                "fingerprint": model.fingerprint, "way": way, "weight": asking.weight, "prompt": prompt, "old": old,
                "parts": [vars(part) for part in found.parts], "mean": found.summary,
                "unread": {"count": len(found.unread), "first": found.unread[:FIRST]},
                "left out": {"count": len(found.left_out), "first": found.left_out[:FIRST]},
                "submissions": [str(path) for path in written],
            }
        )  # fmt: skip
    else:
        _tell(found, written)
    if found.unread or found.left_out:
        raise typer.Exit(1)


def _loaded(name: str, settings: dict[str, object] | None) -> Encoder:
    """What a spec names, for whom everything is allowed that he types, or a registered encoder of the database."""
    from pgembed.encoders import load_encoder

    if ":" in name:
        return load_encoder(name, settings)
    if settings is not None:
        raise WrongUsage(f"--settings are of a KIND:NAME; '{name}' is registered with its own.", "Leave them out.")
    with database() as db:
        return db.load_encoder(name)


def _tell(found: Result, written: list[Path]) -> None:
    names = [*found.parts[0].figures]
    rows: list[list[Any]] = [
        [part.name, f"{part.queries:,}", f"{part.gallery:,}", *(f"{100 * part.figures[name]:.2f}" for name in names)]
        for part in found.parts
    ]
    if found.summary:
        rows.append(["mean", "", "", *(f"{100 * found.summary[name]:.2f}" for name in names)])
    print_table(["part", "queries", "gallery", *names], rows, right=["queries", "gallery", *names])
    if not names:
        console.print("The answers of this split are not published: its server computes the figures.", markup=False)
    for what, faults in (("pictures cannot be read", found.unread), ("queries are left out", found.left_out)):
        if faults:
            remark("error", f"{len(faults):,} {what}: {'; '.join(faults[:FIRST])}", as_json=False, style="red")
    for path in written:
        console.print(f"Written: {path}", markup=False, soft_wrap=True)


@contextmanager
def _bar(what: str) -> Generator[Progress | None]:
    with progress(what) as on_progress:
        yield on_progress
