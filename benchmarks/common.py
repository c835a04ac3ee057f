"""What every benchmark shares: its arguments, its data, its database, its table and its last line."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import psycopg

MISSED, MISSING = 1, 2
FILE_WIDTH = 160  # columns of a table that goes to a file


@dataclass(frozen=True)
class Figure:
    """A measured value and its target, which it must reach (``at_least``) or stay under."""

    name: str
    value: float
    target: float
    at_least: bool = False

    @property
    def met(self) -> bool:
        """Whether the target is met; a value that is not a number misses it."""
        return self.value >= self.target if self.at_least else self.value <= self.target

    def __str__(self) -> str:
        return f"{self.name}={self.value:.4g} target={self.target:.4g}"


class Report:
    """Collects the tables and figures of one benchmark, then prints them: for people, or as one JSON object."""

    def __init__(self, name: str, *, as_json: bool) -> None:
        self.name = name
        self.as_json = as_json
        self._tables: dict[str, list[dict[str, Any]]] = {}

    def table(self, title: str, rows: Sequence[dict[str, Any]]) -> None:
        """Print rows of the same keys as a table; numbers stand to the right."""
        self._tables[title] = list(rows)
        if self.as_json:
            return
        from rich.console import Console
        from rich.table import Table

        table = Table(title=title, title_justify="left")
        for column, value in rows[0].items():
            table.add_column(column, justify="left" if isinstance(value, str) else "right")
        for row in rows:
            table.add_row(*(f"{value:.4g}" if isinstance(value, float) else str(value) for value in row.values()))
        console = Console()
        console.width = console.width if console.is_terminal else FILE_WIDTH
        console.print(table)

    def finish(self, *figures: Figure) -> int:
        """Print the last line; gives the exit status: 1 where a target is missed."""
        line = f"{self.name}: {' '.join(map(str, figures))}"
        if self.as_json:
            found = [{"name": f.name, "value": f.value, "target": f.target, "met": f.met} for f in figures]
            print(json.dumps({"benchmark": self.name, "tables": self._tables, "figures": found}))
            print(line, file=sys.stderr)
        else:
            print(line)
        return 0 if all(figure.met for figure in figures) else MISSED


def arguments(
    description: str | None, *, minutes: float | None = None, flags: Mapping[str, str] | None = None
) -> argparse.Namespace:
    """``--quick`` (under a minute) and ``--json``; ``--minutes`` where a benchmark runs for so many, unless told; and
    ``flags`` of its own, each with its help."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="a smaller run, under a minute")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of tables; last line on stderr")
    if minutes is not None:
        parser.add_argument("--minutes", type=float, default=minutes, help="how long it runs (default: %(default)g)")
    for flag, told in (flags or {}).items():
        parser.add_argument(flag, action="store_true", help=told)
    return parser.parse_args()


def data(*names: str) -> list[Path]:
    """These files or folders below PGEMBED_DATA; ends the program with status 2 where one is missing."""
    folder = os.environ.get("PGEMBED_DATA")
    if not folder:
        missing("PGEMBED_DATA is not set; it names the folder of the benchmarks' data.")
    paths = [Path(folder) / name for name in names]
    for path in paths:
        if not path.exists():
            missing(f"{path} is missing; PGEMBED_DATA is {folder}.")
    return paths


def missing(what: str) -> NoReturn:
    """End the program because something it needs is not there."""
    print(what, file=sys.stderr)
    raise SystemExit(MISSING)


@contextmanager
def fresh_database() -> Iterator[str]:
    """The connection string of a database with pgembed installed, on an embedded server that ends with the block."""
    from pgembed import schema
    from pgembed.embedded import EmbeddedServer

    with (
        tempfile.TemporaryDirectory(prefix="pgembed-benchmark-") as folder,
        EmbeddedServer.start(Path(folder) / "data") as server,
    ):
        with psycopg.connect(server.dsn(), autocommit=True) as conn:
            conn.execute("CREATE EXTENSION IF NOT EXISTS vector")
            schema.install(conn)
            conn.execute("VACUUM (ANALYZE)")
        yield server.dsn()


def milliseconds(call: Callable[[], object], times: int, warm_up: int = 5) -> list[float]:
    """How long each of so many calls took, in order, after some that are not counted."""
    for _ in range(warm_up):
        call()
    out: list[float] = []
    for _ in range(times):
        start = time.perf_counter()
        call()
        out.append((time.perf_counter() - start) * 1000)
    return out


def p50(values: Sequence[float]) -> float:
    """The median."""
    return statistics.median(values)


def undisturbed(values: Sequence[float]) -> float:
    """The mean of the quickest quarter: what else a machine does makes times longer, never shorter."""
    return statistics.mean(sorted(values)[: max(1, len(values) // 4)])


def p95(values: Sequence[float]) -> float:
    """The value that 95 % stay under."""
    return sorted(values)[int(len(values) * 0.95)]
