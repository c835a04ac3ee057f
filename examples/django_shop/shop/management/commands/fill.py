"""Fills the table with the photographs that travel with pgembed; yours come from anywhere."""

from itertools import islice
from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from pgembed.demo.tables import photograph_rows
from shop.models import Poster


class Command(BaseCommand):
    help = "Fill the table with photographs."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--limit", type=int, help="So many photographs; all.")

    def handle(self, *args: Any, **options: Any) -> None:  # noqa: ANN401
        Poster.objects.bulk_create(
            Poster(title=row["title"], kind=row["kind"], price=10 + number % 60, photo=row["picture"])
            for number, row in enumerate(islice(photograph_rows(), options["limit"]))
        )
