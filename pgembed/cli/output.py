"""What the commands print: results on standard output, all else on standard error, JSON where it is asked for."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from datetime import timedelta
from typing import Any, cast

from rich.cells import cell_len
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from pgembed.cli.hints import as_commands

NARROWEST = 6  # columns of text that is cut
UNBOUNDED = 100_000  # columns of what is no terminal: lines are for other programs, and never broken


def _console(*, stderr: bool) -> Console:
    stream = sys.stderr if stderr else sys.stdout
    return Console(stderr=stderr, width=None if stream.isatty() else UNBOUNDED, highlight=False)


console = _console(stderr=False)
errors = _console(stderr=True)


class Remarks(logging.Handler):
    """Shows what this library logs, notices of the server above all, as lines on standard error."""

    def __init__(self, *, as_json: bool) -> None:
        super().__init__(logging.INFO)
        self._as_json = as_json

    def emit(self, record: logging.LogRecord) -> None:
        """One line, or one object of JSON."""
        remark(record.levelname.lower().replace("info", "notice"), record.getMessage(), as_json=self._as_json)


def remark(kind: str, message: str, hint: str | None = None, *, as_json: bool, style: str | None = None) -> None:
    """``kind: message`` and a hint on standard error, in the command line's words; with ``as_json`` as one object."""
    message, hint = as_commands(message), as_commands(hint) if hint else None
    if as_json:
        sys.stderr.write(json.dumps({kind: message, "hint": hint}, ensure_ascii=False) + "\n")
        return
    errors.print(f"{kind}: {message}", style=style, markup=False, soft_wrap=True)
    if hint:
        errors.print(f"hint: {hint}", markup=False, soft_wrap=True)


def say_done(sentence: str, *, as_json: bool, action: str, **facts: Any) -> None:  # noqa: ANN401
    """What a command has done: a sentence, or one JSON object with the action and its facts."""
    if as_json:
        print_json({"action": action, **facts})
    else:
        console.print(sentence, markup=False, soft_wrap=True)


def print_json(value: Any) -> None:  # noqa: ANN401
    """Dataclasses, rows and plain values as JSON on standard output."""
    sys.stdout.write(json.dumps(plain(value), ensure_ascii=False, default=str) + "\n")


def print_table(
    columns: Sequence[str], rows: Iterable[Sequence[Any]], *, right: Sequence[str] = (), cut: bool = False
) -> None:
    """A table on standard output; see ``table_of``."""
    console.print(table_of(columns, rows, right=right, cut=cut))


def table_of(
    columns: Sequence[str], rows: Iterable[Sequence[Any]], *, right: Sequence[str] = (), cut: bool = False
) -> Table:
    """A table that is as narrow as the terminal: columns named in ``right`` (numbers) stay whole, others are broken
    into lines or, with ``cut``, cut to one, the widest first."""
    cells = [["" if value is None else str(value) for value in row] for row in rows]
    widths = [max(map(cell_len, column)) for column in zip(columns, *cells, strict=True)]
    most = _most([(width, name in right) for name, width in zip(columns, widths, strict=True)]) if cut else None
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in columns:
        if name in right:
            table.add_column(name, justify="right", no_wrap=True)
        else:
            table.add_column(name, overflow="ellipsis" if cut else "fold", no_wrap=cut, max_width=most)
    for row in cells:
        table.add_row(*map(Text, row))
    return table


def _most(widths: Sequence[tuple[int, bool]]) -> int:
    """How wide the columns that may be cut can be, so that all fit beside each other with two spaces between."""
    free = console.width - 2 * (len(widths) - 1) - sum(width for width, whole in widths if whole)
    cuttable = [width for width, whole in widths if not whole]
    most = max(cuttable, default=1)
    while most > NARROWEST and sum(min(width, most) for width in cuttable) > free:
        most -= 1
    return most


def rows_are(count: int) -> str:
    """How many, and the verb that goes with it."""
    return "1 row is" if count == 1 else f"{count:,} rows are"


def progress_bar() -> Progress:
    """A bar on standard error, with rate and time left."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=errors,
    )


class _Rate(ProgressColumn):
    """Rows a second."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:,.0f}/s" if task.speed else "")


def plain(value: Any) -> Any:  # noqa: ANN401
    """Dataclasses as mappings, durations as seconds."""
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in cast("Mapping[Any, Any]", value).items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in cast("Sequence[Any]", value)]
    if isinstance(value, timedelta):
        return value.total_seconds()
    return value
