"""``manage.py embed_worker``: encodes what waits in a database of the settings."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from pgembed.django import settings
from pgembed.django.management.examples import parser_with
from pgembed.django.running import new_connection
from pgembed.errors import PgembedError
from pgembed.media import MediaPolicy
from pgembed.worker import Progress, Worker


class Command(BaseCommand):
    """Encodes what waits."""

    help = (
        "Encode the rows that wait for their vectors, until it is stopped: SIGTERM finishes the batch in hand. Several"
        " may run side by side. What rows may name, and which encoders are loaded, is said in the setting PGEMBED."
    )

    def create_parser(self, prog_name: str, subcommand: str, **options: Any) -> CommandParser:  # noqa: ANN401
        examples = ("", "--until-idle", "--database archive", "--embedding product --max-rate 50")
        return parser_with(super().create_parser, examples, prog_name, subcommand, **options)

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--database", default="default", help="The alias of a database; 'default'.")
        leaves = parser.add_mutually_exclusive_group()
        leaves.add_argument("--until-idle", action="store_true", help="Leave when nothing waits.")
        leaves.add_argument("--once", action="store_true", help="One batch of each embedding, then leave.")
        parser.add_argument("--embedding", action="append", default=[], help="Only this table or table.target.")
        parser.add_argument("--batch-size", type=int, help="Rows claimed at once.")
        parser.add_argument("--max-rows", type=int, help="Leave once so many rows are written.")
        parser.add_argument("--max-rate", type=float, help="Rows a second, at most.")
        parser.add_argument("--media-root", type=Path, help="Pictures given as paths must lie below this folder.")
        parser.add_argument("--json", action="store_true", help="A line of JSON for each batch.")

    def handle(self, *_args: Any, **options: Any) -> None:  # noqa: ANN401
        alias: str = options["database"]
        try:
            root: Path | None = options["media_root"]
            chosen = settings.worker_options(
                alias,
                embeddings=tuple(options["embedding"]),
                **{name: options[name] for name in ("batch_size", "max_rows", "max_rate")},
                **({} if root is None else {"media": MediaPolicy(media_root=root)}),
            )
            worker = Worker(
                lambda: new_connection(alias), chosen, on_progress=self._tell_json if options["json"] else self._tell
            )
            before = {number: signal.signal(number, lambda *_: worker.stop()) for number in _SIGNALS}
            try:
                summary = worker.run(
                    "once" if options["once"] else "until_idle" if options["until_idle"] else "forever"
                )
            finally:
                for number, handler in before.items():
                    signal.signal(number, handler)
        except PgembedError as error:
            raise CommandError(str(error)) from error
        if not options["json"]:
            self.stdout.write(f"{summary.written} rows encoded, {summary.failed} given up.")

    def _tell(self, batch: Progress) -> None:
        self.stdout.write(f"{batch.embedding}: {batch.written} written, {batch.failed} failed, {batch.left} left")

    def _tell_json(self, batch: Progress) -> None:
        self.stdout.write(json.dumps(vars(batch)))


_SIGNALS = (signal.SIGTERM, signal.SIGINT)
