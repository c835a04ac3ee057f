"""Finds posters by words, as the view does."""

import json
from typing import Any

from django.core.management.base import BaseCommand, CommandParser
from django.test import Client


class Command(BaseCommand):
    help = "Find posters by words."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("words")
        parser.add_argument("--below", type=int, default=1000)

    def handle(self, *args: Any, **options: Any) -> None:  # noqa: ANN401
        found = Client(SERVER_NAME="localhost").get("/search", {"q": options["words"], "below": options["below"]})
        self.stdout.write(json.dumps(found.json(), indent=2))
