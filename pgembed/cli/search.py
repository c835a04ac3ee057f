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
from pgembed.cli.app import Json, Method, Prefer, TableName, Target, WrongUsage, app, database, examples
from pgembed.cli.keys import key_of
from pgembed.cli.output import console, errors, print_json, print_table

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pgembed.explaining import Explanation
    from pgembed.inputs import Expression

SCORE_DIGITS = 3


@app.command(
    epilog=examples(
        'pgembed search product "a red shoe" --where "price < 50" --limit 20',
        'pgembed search product "red shoe" --words',
        'pgembed search product --image dress.jpg --minus "in blue" --contact-sheet found.html',
        'pgembed search product --like 17 --like 23 --unlike 4 --without "a person"',
        'pgembed search product "a doctor" --neutral gender',
        'pgembed search product --image dress.jpg --to "in red" --was "in blue" --by recolour',
        "pgembed search product --query query.json",
        'pgembed search product "a red shoe" --minus "in blue" --where "price < 50" --explain',
        'pgembed search product "red shoe" --words --explain --recall',
        'pgembed search product "a red shoe" --at-least 0.3 --page',
    )
)
@loads_encoders
def search(
    table: TableName,
    words: Annotated[str | None, typer.Argument(help="What to look for, in words.")] = None,
    image: Annotated[list[str] | None, typer.Option(help="A picture: path or https URL; may be repeated.")] = None,
    screenshot: Annotated[list[str] | None, typer.Option(help="A screenshot: path; may be repeated.")] = None,
    minus: Annotated[list[str] | None, typer.Option(help="Words to move away from; may be repeated.")] = None,
    like: Annotated[list[str] | None, typer.Option(help="A row of the table, by its key; may be repeated.")] = None,
    unlike: Annotated[list[str] | None, typer.Option(help="A row to move away from; may be repeated.")] = None,
    without: Annotated[
        list[str] | None, typer.Option(help="Words that are not to count at all, either way; may be repeated.")
    ] = None,
    without_view: Annotated[
        list[str] | None,
        typer.Option(
            help="A view that is not to count in the query; rows keep theirs. May be repeated.",
            autocompletion=completion.view,
        ),
    ] = None,
    neutral: Annotated[
        str | None,
        typer.Option(
            help="A view that is not to count at all: it is taken out of query and rows.",
            autocompletion=completion.view,
        ),
    ] = None,
    to: Annotated[
        str | None, typer.Option(help="What the picture or row shall become, in words: a composer changes it.")
    ] = None,
    was: Annotated[str | None, typer.Option(help="With --to: what it was, in words.")] = None,
    by: Annotated[
        str | None,
        typer.Option(help="With --to: a registered composer, or composer:FOLDER.", autocompletion=completion.encoder),
    ] = None,
    query_file: Annotated[
        Path | None,
        typer.Option("--query", help="A query as JSON, as pgembed.to_json writes it; - for standard input."),
    ] = None,
    by_words: Annotated[
        bool, typer.Option("--words", help="Look for the words themselves too, by full text search, and fuse both.")
    ] = False,
    method: Annotated[
        Method, typer.Option(help="How --words fuses: by ranks, or by the sum of the scores.")
    ] = Method.rank,
    words_weight: Annotated[float, typer.Option(help="Weight of the words; pictures weigh 1.")] = 1.0,
    input_weight: Annotated[
        list[str] | None,
        typer.Option(
            help="How much an input of the rows counts, image=0.7; may be repeated. For embeddings with fusion concat."
        ),
    ] = None,
    minus_weight: Annotated[float, typer.Option(help="Weight of --minus and --unlike.")] = 0.8,
    where: Annotated[str | None, typer.Option(help="SQL on the table's columns: price < 50.")] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", help="How many rows.")] = 10,
    at_least: Annotated[
        float | None,
        typer.Option(help="Only rows with this score or a higher one; none is an answer too.", show_default=False),
    ] = None,
    paged: Annotated[
        bool, typer.Option("--page", help="Tell how to go on; with --json an object of rows and next.")
    ] = False,
    after: Annotated[
        str | None, typer.Option(help="Go on after a page: what --page told as next.", show_default=False)
    ] = None,
    target: Target = None,
    column: Annotated[
        list[str] | None,
        typer.Option(help="Show only these columns; may be repeated.", autocompletion=completion.column),
    ] = None,
    exact: Annotated[bool, typer.Option("--exact", help="Compare every row; use no vector index.")] = False,
    best: Annotated[
        int, typer.Option(min=1, help="Of an embedding with parts: how many of a row's count together.")
    ] = 1,
    prefer: Annotated[
        Prefer | None,
        typer.Option(help="static: words are encoded in Postgres, by what encoder distill made. Default: exact."),
    ] = None,
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
    explain: Annotated[
        bool, typer.Option("--explain", help="Tell how the rows were found, and what each part of the query gave.")
    ] = False,
    recall: Annotated[
        bool, typer.Option("--recall", help="With --explain: also compare all rows, and tell how many were found.")
    ] = False,
    inputs: Annotated[
        bool, typer.Option("--inputs", help="With --explain: encode each row's inputs apart; tell what each gave.")
    ] = False,
    views: Annotated[
        bool, typer.Option("--views", help="With --explain: tell the named views on which each row scores high.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Search a table by words and pictures; --minus takes something out: this picture, but not in blue."""
    query = _from_file(query_file) if query_file else None
    positive = [*_pictures(image or [], screenshot or []), *_rows(like, "--like")]
    if to is not None or was is not None or by is not None:
        positive = [_changed(positive, to, was, by)]
    if words is not None:
        positive.append(_weighted(words_weight, _text(words)))
    negative = [*map(_text, minus or []), *_rows(unlike, "--unlike")]
    query = _composed(
        query,
        positive,
        [minus_weight * part for part in negative],
        [*map(_text, without or []), *map(_view, without_view or [])],
    )
    with database("static" if prefer is Prefer.static else None) as db:
        if by_words and not words:
            raise WrongUsage("--words looks for words, and there are none.", 'Give some: "red shoe" --words')
        paged = paged or after is not None
        more = {"--recall": recall, "--inputs": inputs, "--views": views}
        if any(more.values()) and not explain:
            asked_for = next(option for option, given in more.items() if given)
            raise WrongUsage(f"{asked_for} tells more of --explain.", "Give --explain too.")
        if contact_sheet is not None and paged:
            raise WrongUsage("A contact sheet is of one search, and --page and --after go on.", "Leave one out.")
        if by_words and input_weight:
            raise WrongUsage("--words takes no --input-weight.", "Leave one of them out.")
        if by_words and neutral is not None:
            raise WrongUsage("--neutral takes a view out of vectors, and --words looks for words.", "Leave one out.")
        asked = db.query(table).near(query, embedding=target).limit(limit)
        asked = asked.where(where) if where is not None else asked
        asked = asked.select(*column) if column else asked
        asked = asked.exact() if exact else asked
        asked = asked.hybrid(words).fuse(method.value) if by_words and words else asked
        asked = asked.weighing(**_input_weights(input_weight)) if input_weight else asked
        asked = asked.best(best) if best > 1 else asked
        asked = asked.neutral(neutral) if neutral is not None else asked
        asked = asked.at_least(at_least) if at_least is not None else asked
        asked = asked.after(after)
        if sql:
            sys.stdout.write(asked.compile().as_string() + "\n")
            return
        if explain:
            _print_explained(asked.explain(recall=recall, inputs=inputs, views=views), as_json=as_json)
            return
        following = None
        if paged:
            page = asked.page()
            rows, following = [dict(row) for row in page], page.next
        elif contact_sheet is None:
            rows = [dict(row) for row in asked]
        else:
            from pgembed.cli.sheet import search_with_sheet

            rows, unread = search_with_sheet(
                db, asked, table, query, contact_sheet,
                embedding=target, picture=picture, media_root=media_root, columns=column,
            )  # fmt: skip
            if unread:
                errors.print(f"{unread} pictures could not be read for the sheet; name their folder: --media-root DIR")
    if as_json:
        print_json({"rows": rows, "next": following} if paged else rows)
        return
    if rows:
        _print_rows(rows)
    else:
        errors.print("No row has a vector, or none matches." if at_least is None else "No row is an answer.")
    if following is not None:
        errors.print(f"Go on: --after {following}", markup=False, soft_wrap=True)
    if contact_sheet is not None:
        errors.print(f"Contact sheet: {contact_sheet}", markup=False, soft_wrap=True)


def _input_weights(given: list[str]) -> dict[str, float]:
    found: dict[str, float] = {}
    for one in given:
        name, _, weight = one.partition("=")
        try:
            found[name] = float(weight)
        except ValueError:
            raise WrongUsage(
                f"--input-weight {one} is not NAME=NUMBER.", "For example: --input-weight image=0.7"
            ) from None
    return found


def _print_explained(how: Explanation, *, as_json: bool) -> None:
    """Rows with what gave each its score beside it, then how they were found."""
    rows = [dict(row) for row in how.rows]
    if as_json:
        print_json({**how.facts(), "found": rows})
        return
    if rows:
        _print_rows(rows, beside=how.cells(), digits=4 if how.method == "rank" else 3)
    console.print(f"\n{how.summary()}\n\n{how.postgres}", markup=False, highlight=False, soft_wrap=True)


def _composed(
    query: Expression | None, positive: list[Expression], negative: list[Expression], without: list[Expression]
) -> Expression:
    """All that was given, as one expression. Raises WrongUsage where that is nothing."""
    from pgembed.algebra import reject, unit

    parts = [*([unit(query) if positive or negative else query] if query else []), *positive]
    if not parts:
        raise WrongUsage("There is nothing to search for.", 'Give words, or --image: pgembed search product "red shoe"')
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    for part in negative:
        total = total - part
    return reject(total, *without) if without else total


def _changed(positive: list[Expression], to: str | None, was: str | None, by: str | None) -> Expression:
    """The pictures and rows, as a composer changes them. Raises WrongUsage without them, or without --to."""
    from pgembed.algebra import SHIPPED_COMPOSER, centroid, changed

    if to is None:
        raise WrongUsage(f"{'--was' if by is None else '--by'} goes with --to.", 'Say what shall be: --to "in red".')
    if not positive:
        raise WrongUsage("--to has nothing to change.", "Give a picture, --image FILE, or a row, --like KEY.")
    reference = positive[0] if len(positive) == 1 else centroid(*positive)
    return changed(reference, to=_text(to), was=None if was is None else _text(was), by=by or SHIPPED_COMPOSER)


def _text(words: str) -> Expression:
    from pgembed.inputs import Text

    return Text(words)


def _view(name: str) -> Expression:
    from pgembed.algebra import View

    return View(name)


def _weighted(weight: float, expression: Expression) -> Expression:
    return expression if weight == 1 else weight * expression


def _pictures(images: list[str], screenshots: list[str]) -> list[Expression]:
    from pgembed.inputs import Image, Screenshot

    return [*map(Image, images), *map(Screenshot, screenshots)]


def _rows(keys: list[str] | None, option: str) -> list[Expression]:
    from pgembed.inputs import Row

    return [Row(*key_of(key, option)) for key in keys or []]


def _from_file(path: Path) -> Expression:
    """Who types the command may read any file, and so may the query that he gives."""
    from pgembed.query.wire import from_json

    try:
        text = sys.stdin.read() if str(path) == "-" else path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise WrongUsage(f"--query {path} cannot be read: {error}.", "Give a file of JSON, or -.") from None
    return from_json(text, paths=True)


def _print_rows(
    rows: list[dict[str, Any]], beside: Mapping[str, Sequence[str]] | None = None, digits: int = SCORE_DIGITS
) -> None:
    """The score first, then what is told ``beside`` it; on a terminal one line a row, each value cut to its share of
    the width."""
    beside = beside or {}
    names = [name for name in rows[0] if name != "score"]
    numbers = [name for name in names if all(isinstance(row[name], int | float | Decimal | None) for row in rows)]
    table = [
        [f"{row['score']:.{digits}f}", *(cells[n] for cells in beside.values()), *(_short(row[name]) for name in names)]
        for n, row in enumerate(rows)
    ]
    print_table(["score", *beside, *names], table, right=["score", *beside, *numbers], cut=True)


def _short(value: Any) -> str | None:  # noqa: ANN401
    if value is None:
        return None
    if isinstance(value, datetime):
        return value.isoformat(" ", "seconds")
    return " ".join(str(value).split())
