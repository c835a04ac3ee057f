"""Commands about the installation: install, uninstall, version, doctor, demo."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.padding import Padding
from rich.text import Text

from pgembed.cli.app import Json, app, database, examples
from pgembed.cli.hints import as_commands
from pgembed.cli.output import console, print_json, print_table, say_done


@app.command(epilog=examples("pgembed install", "pgembed install --sql > pgembed.sql; psql -f pgembed.sql"))
def install(
    sql: Annotated[bool, typer.Option("--sql", help="Print the script instead, for an administrator to run.")] = False,
    as_json: Json = False,
) -> None:
    """Install or upgrade pgembed in a database: one schema, one transaction, safe to run again."""
    if sql:
        from pgembed import schema

        sys.stdout.buffer.write(schema.install_script().encode())
        return
    with database() as db:
        versions = db.install()
    done = f"pgembed {versions.library} is installed (schema {versions.schema}, pgvector {versions.pgvector})."
    say_done(done, as_json=as_json, action="install", **vars(versions))


@app.command(epilog=examples("pgembed uninstall", "pgembed uninstall --detach-all"))
def uninstall(
    detach_all: Annotated[bool, typer.Option("--detach-all", help="Detach every embedding first.")] = False,
    as_json: Json = False,
) -> None:
    """Remove pgembed from a database; your tables are as they were before."""
    with database() as db:
        db.uninstall(detach_all=detach_all)
    say_done("pgembed is removed.", as_json=as_json, action="uninstall", detach_all=detach_all)


@app.command(epilog=examples("pgembed version", "pgembed version --json"))
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


@app.command(epilog=examples("pgembed doctor", "pgembed doctor --json"))
def doctor(as_json: Json = False) -> None:
    """Look for what is wrong, and say what to do. Exit code 1 where something is."""
    with database() as db:
        findings = [replace(one, remedy=as_commands(one.remedy)) if one.remedy else one for one in db.doctor()]
    if as_json:
        print_json(findings)
    else:
        for finding in findings:
            mark = ("ok", "green") if finding.ok else ("no", "red")
            console.print(Text.assemble(mark, "  ", (finding.subject, "bold"), ": ", finding.finding))
            if finding.remedy:
                console.print(Padding(Text(f"→ {finding.remedy}"), (0, 0, 0, 4), expand=False))
    if not all(finding.ok for finding in findings):
        raise typer.Exit(1)


@app.command(epilog=examples("pgembed demo", "pgembed demo --folder ~/Pictures", "pgembed demo --clean"))
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
