"""Commands for embeddings that stand in a file: plan, apply."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from pgembed.cli.app import Json, app, database, examples
from pgembed.cli.output import console, errors, print_json

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pgembed.configuration import Change

DIFFERS = 3
File = Annotated[Path, typer.Argument(help="The file that declares encoders and embeddings.")]
Prune = Annotated[
    bool, typer.Option("--prune", help="Remove embeddings, and encoders that none uses, that the file does not name.")
]
_MARKS = {"add": ("+", "green"), "alter": ("~", "yellow"), "remove": ("-", "red")}


@app.command(epilog=examples("pgembed plan", "pgembed plan deploy/pgembed.toml --prune", "pgembed plan --json"))
def plan(file: File = Path("pgembed.toml"), prune: Prune = False, as_json: Json = False) -> None:
    """Show how a database differs from a file. Exit code 0 where it does not, 3 where it does: for CI."""
    from pgembed.configuration import read

    wanted = read(file)
    with database() as db:
        changes = db.differences(wanted, prune=prune)
    if as_json:
        print_json([change.facts() for change in changes])
    else:
        _show(changes, file)
    if changes:
        raise typer.Exit(DIFFERS)


@app.command(epilog=examples("pgembed apply", "pgembed apply deploy/pgembed.toml --yes", "pgembed apply --prune"))
def apply(
    file: File = Path("pgembed.toml"),
    prune: Prune = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before vectors are lost.")] = False,
    as_json: Json = False,
) -> None:
    """Make a database what a file declares, in one transaction; then build indexes, without blocking writers."""
    from pgembed.configuration import read
    from pgembed.errors import InvalidInput

    wanted = read(file)
    with database() as db:
        changes = db.differences(wanted, prune=prune)
        if not as_json:
            _show(changes, file)
        if any(change.loses_vectors for change in changes) and not yes:
            if as_json or not sys.stdin.isatty():
                lost = ", ".join(change.name for change in changes if change.loses_vectors)
                raise InvalidInput(f"The vectors of {lost} would be lost.", "If that is meant: --yes")
            typer.confirm("Vectors will be lost where ~ and - stand. Go on?", abort=True, err=True)
        db.apply(wanted, changes, prune=prune)
    if as_json:
        print_json([change.facts() for change in changes])
    elif changes:
        errors.print("Done. Workers fill what is new: pgembed worker", markup=False)


def _show(changes: Sequence[Change], file: Path) -> None:
    if not changes:
        console.print(f"Nothing differs from {file}.", markup=False)
    for change in changes:
        mark, style = _MARKS[change.action]
        lost = "  (its vectors go)" if change.loses_vectors else ""
        console.print(Text.assemble((f"{mark} {change.kind} {change.name}", style), f": {change.told}{lost}"))
