"""``manage.py embed_status``: how the embeddings of a database stand."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import connections

from pgembed import catalog
from pgembed.catalog import StatusRow
from pgembed.django.management.examples import parser_with
from pgembed.django.running import run_plan
from pgembed.errors import PgembedError

_SHOWN = ("rows", "ready", "queued", "failed")


class Command(BaseCommand):
    """Shows the status of embeddings."""

    help = "Show how many rows of each embedding have their vector, how many wait, and how many were given up."

    def create_parser(self, prog_name: str, subcommand: str, **options: Any) -> CommandParser:  # noqa: ANN401
        examples = ("", "product", "--json", "--database archive")
        return parser_with(super().create_parser, examples, prog_name, subcommand, **options)

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("table", nargs="?", help="Only the embeddings of this table.")
        parser.add_argument("--database", default="default", help="The alias of a database; 'default'.")
        parser.add_argument("--json", action="store_true", help="One list of objects.")

    def handle(self, *_args: Any, **options: Any) -> None:  # noqa: ANN401
        try:
            rows: list[StatusRow] = run_plan(connections[options["database"]], catalog.status(options["table"]))
        except PgembedError as error:
            raise CommandError(str(error)) from error
        if options["json"]:
            self.stdout.write(json.dumps([asdict(row) for row in rows], default=lambda value: value.total_seconds()))
            return
        names = [f"{row.schema_name}.{row.table_name}.{row.target}" for row in rows]
        width = max(map(len, ["embedding", *names]))
        self.stdout.write("embedding".ljust(width) + "".join(name.rjust(10) for name in _SHOWN) + "  state")
        for name, row in zip(names, rows, strict=True):
            numbers = ["" if getattr(row, one) is None else f"{getattr(row, one):,}" for one in _SHOWN]
            self.stdout.write(name.ljust(width) + "".join(number.rjust(10) for number in numbers) + f"  {row.state}")
