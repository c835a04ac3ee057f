"""Commands about encoders: encoder add, list, show, remove, test."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Annotated, Any, cast

import typer

from pgembed.cli.allowed import loads_encoders
from pgembed.cli.app import EncoderName, Json, Target, WrongUsage, app, database, examples
from pgembed.cli.output import print_json, print_table, say_done

SHOWN_NEIGHBOURS = 10

encoder = typer.Typer(
    help="Register, list, show, remove and test encoders.",
    epilog=examples("pgembed encoder add lite builtin:lite", "pgembed encoder list"),
    no_args_is_help=True,
)
app.add_typer(encoder, name="encoder")


@encoder.command(
    "add",
    epilog=examples(
        "pgembed encoder add lite builtin:lite", "pgembed encoder add shop open_clip:ViT-B-32/laion2b_s34b_b79k"
    ),
)
def encoder_add(
    name: Annotated[str, typer.Argument(help="The name you will use.")],
    spec: Annotated[str, typer.Argument(help="KIND:NAME, for example builtin:lite.")],
    settings: Annotated[
        str | None, typer.Option(help='JSON, for example \'{"checkpoint": "/models/a.safetensors"}\'.')
    ] = None,
    space: Annotated[str | None, typer.Option(help="The space of its vectors; default: spec and fingerprint.")] = None,
    as_json: Json = False,
) -> None:
    """Register an encoder under a name; its model is loaded once to learn its facts."""
    with database() as db:
        row = db.add_encoder(name, spec, settings=json_object(settings), space=space)
    say_done(
        f"Encoder '{row.name}': {row.spec}, {row.dim} dimensions, takes {', '.join(row.modalities)}.",
        as_json=as_json,
        action="encoder add",
        **vars(row),
    )


@encoder.command("list", epilog=examples("pgembed encoder list", "pgembed encoder list --json"))
def encoder_list(as_json: Json = False) -> None:
    """The registered encoders."""
    with database() as db:
        rows = db.encoders()
    if as_json:
        print_json(rows)
        return
    print_table(
        ["name", "spec", "dim", "takes", "metric", "space"],
        [(row.name, row.spec, row.dim, ", ".join(row.modalities), row.metric, row.space) for row in rows],
        right=["dim"],
    )


@encoder.command("show", epilog=examples("pgembed encoder show lite"))
def encoder_show(name: EncoderName, as_json: Json = False) -> None:
    """All that is known of one encoder."""
    with database() as db:
        row = db.encoder(name)
    if as_json:
        print_json(row)
        return
    print_table(["fact", "value"], [(fact, _readable(value)) for fact, value in vars(row).items()])


@encoder.command("remove", epilog=examples("pgembed encoder remove lite"))
def encoder_remove(name: EncoderName, as_json: Json = False) -> None:
    """Remove an encoder that no embedding uses."""
    with database() as db:
        db.remove_encoder(name)
    say_done(f"Encoder '{name}' is removed.", as_json=as_json, action="encoder remove", name=name)


@encoder.command("test", epilog=examples("pgembed encoder test lite", "pgembed encoder test lite --table product"))
@loads_encoders
def encoder_test(
    name: EncoderName,
    table: Annotated[
        str | None, typer.Option(help="Take the samples from this table, as an embedding of it reads them.")
    ] = None,
    embedding: Target = None,
    rows: Annotated[int, typer.Option(min=2, help="How many rows of it.")] = 32,
    as_json: Json = False,
) -> None:
    """Load an encoder, encode samples, and check what comes out. Exit code 1 where a check fails.

    Shows shape, lengths, whether the same input has the same vector alone and in a batch, whether different inputs
    differ, how many are encoded in a second by batch size, and which samples are nearest to one another.
    """
    with database() as db:
        report = db.test_encoder(name, table=table, embedding=embedding, rows=rows)
    if as_json:
        print_json({**vars(report), "ok": report.ok})
    else:
        print_table(
            ["check", "ok", "found", "what to do"],
            [(check.name, "yes" if check.ok else "no", check.found, check.hint) for check in report.checks],
        )
        print_table(
            ["throughput", "batch", "a second"],
            [(rate.modality, rate.batch_size, f"{rate.per_second:,.0f}") for rate in report.rates],
            right=["batch", "a second"],
        )
        print_table(
            ["sample", "nearest", "cosine"],
            [(one.sample, one.nearest, f"{one.cosine:.3f}") for one in report.neighbours[:SHOWN_NEIGHBOURS]],
            right=["cosine"],
            cut=True,
        )
    if not report.ok:
        raise typer.Exit(1)


def _readable(value: Any) -> str | None:  # noqa: ANN401
    if isinstance(value, list):
        return ", ".join(map(str, cast("list[Any]", value)))
    if isinstance(value, datetime):
        return value.isoformat(" ", "seconds")
    return json.dumps(value) if isinstance(value, dict | bool) else value


def json_object(text: str | None) -> dict[str, object] | None:
    """The object of ``--settings``. Raises WrongUsage."""
    if text is None:
        return None
    try:
        value = json.loads(text)
    except ValueError as error:
        raise WrongUsage(f"--settings is not JSON: {error}.", 'Write an object, for example {"threads": 2}.') from error
    if not isinstance(value, dict):
        raise WrongUsage(f"--settings is {text}, not a JSON object.", 'Write, for example, {"threads": 2}.')
    return {str(key): item for key, item in value.items()}  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
