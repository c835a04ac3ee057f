"""Commands about the installation and the encoders: install, uninstall, version, doctor, encoder …, demo."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from pgembed import schema
from pgembed.cli.app import Json, app, console, database, print_json, print_table
from pgembed.errors import InvalidInput

encoder = typer.Typer(help="Register, list, show, remove and test encoders.", no_args_is_help=True)
app.add_typer(encoder, name="encoder")


@app.command(epilog="pgembed --dsn postgresql://localhost/shop install")
def install(
    sql: Annotated[bool, typer.Option("--sql", help="Print the script instead, for an administrator to run.")] = False,
    vector_schema: Annotated[
        str, typer.Option(help="With --sql: the schema that holds, or shall hold, the vector extension.")
    ] = "public",
) -> None:
    """Install or upgrade pgembed in a database: one schema, one transaction, safe to run again.

    Example of a script for somebody else to run: pgembed install --sql > pgembed.sql; psql -1 -f pgembed.sql
    """
    if sql:
        sys.stdout.write(schema.install_script(vector_schema))
        return
    with database() as db:
        versions = db.install()
    console.print(f"pgembed {versions.library} is installed (schema {versions.schema}, pgvector {versions.pgvector}).")


@app.command()
def uninstall(
    detach_all: Annotated[bool, typer.Option("--detach-all", help="Detach every embedding first.")] = False,
) -> None:
    """Remove pgembed from a database; your tables are as they were before."""
    with database() as db:
        db.uninstall(detach_all=detach_all)
    console.print("pgembed is removed.")


@app.command()
def version(as_json: Json = False) -> None:
    """Versions of the library, the schema, the server and pgvector."""
    with database() as db:
        versions = db.versions()
    if as_json:
        print_json(versions)
        return
    print_table(
        ["part", "version"],
        [
            ("library", versions.library),
            ("schema", versions.schema or "not installed"),
            ("functions", versions.code or "not installed"),
            ("server", versions.server),
            ("pgvector", versions.pgvector or "not installed"),
        ],
    )


@app.command()
def doctor(as_json: Json = False) -> None:
    """Look for what is wrong, and say what to do. Exit code 1 where something is."""
    with database() as db:
        findings = db.doctor()
    if as_json:
        print_json(findings)
    else:
        for finding in findings:
            mark = "[green]ok[/]" if finding.ok else "[red]no[/]"
            console.print(f"{mark}  [bold]{finding.subject}[/]: ", end="")
            console.print(finding.finding, markup=False, highlight=False)
            if finding.remedy:
                console.print(f"    → {finding.remedy}", markup=False, highlight=False)
    if not all(finding.ok for finding in findings):
        raise typer.Exit(1)


@encoder.command("add", epilog="pgembed encoder add shop open_clip:ViT-B-32/laion2b_s34b_b79k")
def encoder_add(
    name: Annotated[str, typer.Argument(help="The name you will use.")],
    spec: Annotated[str, typer.Argument(help="KIND:NAME, for example builtin:lite.")],
    settings: Annotated[
        str | None, typer.Option(help='JSON, for example \'{"checkpoint": "/models/a.safetensors"}\'.')
    ] = None,
    space: Annotated[str | None, typer.Option(help="The space of its vectors; default: spec and fingerprint.")] = None,
) -> None:
    """Register an encoder under a name; its model is loaded once to learn its facts."""
    with database() as db:
        row = db.add_encoder(name, spec, settings=_json_object(settings), space=space)
    console.print(f"Encoder '{row.name}': {row.spec}, {row.dim} dimensions, takes {', '.join(row.modalities)}.")


@encoder.command("list")
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


@encoder.command("show")
def encoder_show(name: str, as_json: Json = False) -> None:
    """All that is known of one encoder."""
    with database() as db:
        row = db.encoder(name)
    if as_json:
        print_json(row)
        return
    print_table(["fact", "value"], [(key, value) for key, value in vars(row).items()])


@encoder.command("remove")
def encoder_remove(name: str) -> None:
    """Remove an encoder that no embedding uses."""
    with database() as db:
        db.remove_encoder(name)
    console.print(f"Encoder '{name}' is removed.")


@encoder.command("test")
def encoder_test(name: str, as_json: Json = False) -> None:
    """Load an encoder, encode samples, and check what comes out. Exit code 1 where a check fails."""
    from pgembed.encoders.check import check_encoder

    with database() as db:
        report = check_encoder(db.load_encoder(name))
    if as_json:
        print_json(report)
    else:
        print_table(
            ["check", "ok", "found"], [(check.name, "yes" if check.ok else "no", check.found) for check in report]
        )
    if not all(check.ok for check in report):
        raise typer.Exit(1)


@app.command(epilog="pgembed demo --folder ~/Pictures")
def demo(
    folder: Annotated[
        Path | None, typer.Option(help="Use your own pictures: every picture below this folder becomes a row.")
    ] = None,
    directory: Annotated[Path, typer.Option(help="Where the demo's Postgres lives.")] = Path("demo"),
    psql: Annotated[bool, typer.Option("--psql", help="Open an SQL shell in the demo's database.")] = False,
    clean: Annotated[bool, typer.Option("--clean", help="Stop the demo's Postgres and remove its folder.")] = False,
) -> None:
    """Search thousands of real pictures in an embedded Postgres: nothing of yours is touched."""
    from pgembed.demo import run

    run(folder=folder, directory=directory, psql=psql, clean=clean, console=console)


def _json_object(text: str | None) -> dict[str, object] | None:
    if text is None:
        return None
    try:
        value = json.loads(text)
    except ValueError as error:
        raise InvalidInput(
            f"--settings is not JSON: {error}.", 'Write an object, for example {"threads": 2}.'
        ) from error
    if not isinstance(value, dict):
        raise InvalidInput(f"--settings is {text}, not a JSON object.", 'Write, for example, {"threads": 2}.')
    return {str(key): item for key, item in value.items()}  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
