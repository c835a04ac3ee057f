"""The command search: words and pictures in, a table, JSON or a contact sheet out."""

from __future__ import annotations

import sys
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pgembed.cli import completion
from pgembed.cli.allowed import loads_encoders
from pgembed.cli.app import Json, TableName, Target, WrongUsage, app, database, examples
from pgembed.cli.output import errors, print_json, print_table

if TYPE_CHECKING:
    from pgembed.inputs import Expression


@app.command(
    epilog=examples(
        'pgembed search product "a red shoe" --where "price < 50" --limit 20',
        'pgembed search product --image dress.jpg --minus "in blue" --contact-sheet found.html',
    )
)
@loads_encoders
def search(
    table: TableName,
    words: Annotated[str | None, typer.Argument(help="What to look for, in words.")] = None,
    image: Annotated[list[str] | None, typer.Option(help="A picture: path or https URL; may be repeated.")] = None,
    screenshot: Annotated[list[str] | None, typer.Option(help="A screenshot: path; may be repeated.")] = None,
    minus: Annotated[list[str] | None, typer.Option(help="Words to move away from; may be repeated.")] = None,
    words_weight: Annotated[float, typer.Option(help="Weight of the words; pictures weigh 1.")] = 1.0,
    minus_weight: Annotated[float, typer.Option(help="Weight of --minus.")] = 0.8,
    where: Annotated[str | None, typer.Option(help="SQL on the table's columns: price < 50.")] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="How many rows.")] = 10,
    target: Target = None,
    column: Annotated[
        list[str] | None,
        typer.Option(help="Show only these columns; may be repeated.", autocompletion=completion.column),
    ] = None,
    exact: Annotated[bool, typer.Option("--exact", help="Compare every row; use no vector index.")] = False,
    contact_sheet: Annotated[Path | None, typer.Option(help="Write the pictures found: out.html or out.png.")] = None,
    picture: Annotated[
        str | None,
        typer.Option(
            help="The column with the pictures for the sheet; default: the embedding's.",
            autocompletion=completion.column,
        ),
    ] = None,
    media_root: Annotated[
        Path | None, typer.Option(help="Where pictures given as paths lie, for the sheet; default: here.")
    ] = None,
    sql: Annotated[bool, typer.Option("--sql", help="Print the statement instead of running it.")] = False,
    as_json: Json = False,
) -> None:
    """Search a table by words and pictures; --minus takes something out: this picture, but not in blue."""
    query = _expression(words, image or [], screenshot or [], minus or [], words_weight, minus_weight)
    with database() as db:
        options: dict[str, Any] = {"where": where, "limit": limit, "embedding": target, "exact": exact}
        if sql:
            sys.stdout.write(db.query(table, query, columns=column, **options).compile().as_string() + "\n")
            return
        if contact_sheet is None:
            rows = [dict(row) for row in db.search(table, query, columns=column, **options)]
        else:
            from pgembed.cli.sheet import search_with_sheet

            rows, unread = search_with_sheet(
                db, table, query, contact_sheet, picture=picture, media_root=media_root, columns=column, **options
            )
            if unread:
                errors.print(f"{unread} pictures could not be read for the sheet; name their folder: --media-root DIR")
    if as_json:
        print_json(rows)
        return
    if rows:
        _print_rows(rows)
    else:
        errors.print("No row has a vector, or none matches.")
    if contact_sheet is not None:
        errors.print(f"Contact sheet: {contact_sheet}", markup=False, soft_wrap=True)


def _expression(
    words: str | None, images: list[str], screenshots: list[str], minus: list[str], weight: float, minus_weight: float
) -> Expression:
    from pgembed.inputs import Image, Screenshot, Text

    positive: list[Expression] = [*map(Image, images), *map(Screenshot, screenshots)]
    if words:
        positive.append(Text(words) if weight == 1 else weight * Text(words))
    if not positive:
        raise WrongUsage("There is nothing to search for.", 'Give words, or --image: pgembed search product "red shoe"')
    total = positive[0]
    for part in positive[1:]:
        total = total + part
    for part in minus:
        total = total - minus_weight * Text(part)
    return total


def _print_rows(rows: list[dict[str, Any]]) -> None:
    """The score first; on a terminal one line a row, each value cut to its share of the width."""
    names = ["score", *(name for name in rows[0] if name != "score")]
    numbers = [name for name in names if all(isinstance(row[name], int | float | Decimal | None) for row in rows)]
    print_table(names, [[_short(name, row[name]) for name in names] for row in rows], right=numbers, cut=True)


def _short(name: str, value: Any) -> str | None:  # noqa: ANN401
    if value is None:
        return None
    if name == "score":
        return f"{value:.3f}"
    if isinstance(value, datetime):
        return value.isoformat(" ", "seconds")
    return " ".join(str(value).split())
