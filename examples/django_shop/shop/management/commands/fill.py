"""Fills the table with the photographs that travel with pgembed; yours come from anywhere."""

from django.core.management.base import BaseCommand

from pgembed.demo.tables import photograph_rows
from shop.models import Poster


class Command(BaseCommand):
    help = "Fill the table with photographs."

    def handle(self, *args: object, **options: object) -> None:
        Poster.objects.bulk_create(
            Poster(title=row["title"], kind=row["kind"], price=10 + number % 60, photo=row["picture"])
            for number, row in enumerate(photograph_rows())
        )
