"""The commands that give roles what they need, and take it back: grant, revoke."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from pgembed.cli import completion
from pgembed.cli.app import Json, app, database, examples
from pgembed.cli.output import console, print_json

if TYPE_CHECKING:
    from pgembed.catalog import LeftOver


class Kind(StrEnum):
    """The kinds of roles."""

    owner = "owner"
    worker = "worker"
    writer = "writer"
    reader = "reader"


KindOfRole = Annotated[
    Kind,
    typer.Argument(help="owner attaches, worker encodes, writer waits for its rows, reader searches.", metavar="KIND"),
]
RoleName = Annotated[
    str,
    typer.Argument(help="A role that is there.", autocompletion=completion.role, metavar="ROLE", show_default=False),
]


@app.command(epilog=examples("pgembed grant worker shop_worker", "pgembed grant reader shop_app"))
def grant(kind: KindOfRole, role: RoleName, as_json: Json = False) -> None:
    """Give a role what one of its kind needs, and no more. Exit status 1: some of it is for others to grant."""
    with database() as db:
        left = db.grant(kind.value, role)
    _tell(f"Role {role} has what {_a(kind)} needs.", "grant", kind, role, left, as_json=as_json)


@app.command(epilog=examples("pgembed revoke worker shop_worker"))
def revoke(kind: KindOfRole, role: RoleName, as_json: Json = False) -> None:
    """Take back what grant gave. Exit status 1: some of it is for others to take back."""
    with database() as db:
        left = db.revoke(kind.value, role)
    _tell(f"Role {role} is no {kind.value} any more.", "revoke", kind, role, left, as_json=as_json)


def _tell(done: str, action: str, kind: Kind, role: str, left: list[LeftOver], *, as_json: bool) -> None:
    if as_json:
        print_json({"action": action, "kind": kind.value, "role": role, "left": left})
    elif left:
        console.print("This is left for others to run:", markup=False)
        for one in left:
            console.print(f"  {one.statement}  -- as {one.ask}", markup=False, soft_wrap=True)
    else:
        console.print(done, markup=False, soft_wrap=True)
    if left:
        raise typer.Exit(1)


def _a(kind: Kind) -> str:
    return f"an {kind.value}" if kind is Kind.owner else f"a {kind.value}"
