"""What a search costs in a model of SQLAlchemy's or Django's over the same SQL written by hand, in the same library.

Peers: the statement that pgvector's documentation shows, as ``text()`` in the same Session, and on Django's cursor and
by ``objects.raw()``; and the comparators of pgvector-python on the same models, which tell what the library itself
takes for a statement that is built. Rows: those of query_overhead, 512 dimensions under an HNSW index. The forms take
turns, so that whatever slows the machine slows them all.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import psycopg
from numpy.typing import NDArray
from pgvector import Vector as Numbers
from sqlalchemy import URL, create_engine, select, text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from benchmarks.common import Figure, Report, arguments, fresh_database, p50, p95
from benchmarks.query_overhead import BLOCK, QUERIES, ROUNDS, ROUNDS_QUICK, ROWS, ROWS_QUICK, fill
from pgembed.inputs import Vector
from pgembed.sqlalchemy import Vector as Stored
from pgembed.sqlalchemy import embedding_column

HAND = text(
    "SELECT id, title, price, 1 - (embedding <=> CAST(:query AS vector)) AS score FROM product"
    " ORDER BY embedding <=> CAST(:query AS vector) LIMIT 10"
)
WHOLE = text("SELECT id, title, price, embedding FROM product ORDER BY embedding <=> CAST(:query AS vector) LIMIT 10")

WHOLE_SCORED = text(
    "SELECT id, title, price, embedding, 1 - (embedding <=> CAST(:query AS vector)) AS score FROM product"
    " ORDER BY embedding <=> CAST(:query AS vector) LIMIT 10"
)


class Base(DeclarativeBase):
    """The models of this benchmark."""


class Product(Base):
    """The table that query_overhead fills."""

    __tablename__ = "product"
    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str]
    price: Mapped[float]
    embedding: Mapped[Stored] = embedding_column(encoder="bench", text="{title}")


def main() -> int:
    """Run it; gives the exit status."""
    options = arguments(__doc__)
    report = Report("orm_overhead", as_json=options.json)
    rows = ROWS_QUICK if options.quick else ROWS
    with fresh_database() as dsn:
        with psycopg.connect(dsn, autocommit=True) as conn:
            queries = fill(conn, rows)
        rounds = ROUNDS_QUICK if options.quick else ROUNDS
        engine = create_engine(url_of(dsn))
        with Session(engine) as session:
            times = take_turns(sqlalchemy_forms(session, queries), rounds, len(queries))
        engine.dispose()
        django = take_turns(django_forms(dsn, queries), rounds, len(queries))
    for library, taken_by in (("SQLAlchemy", times), ("Django", django)):
        report.table(
            f"A search for 10 of {rows:,} rows in {library}, ms",
            [{"query": name, "p50": p50(taken), "p95": p95(taken)} for name, taken in taken_by.items()],
        )
    return report.finish(
        Figure("sqlalchemy_rows", p50(times["columns, by a model"]) / p50(times["columns, by hand"]), 1.10),
        Figure(
            "beside_pgvector", p50(times["columns, by a model"]) / p50(times["columns, by pgvector's comparator"]), 1.10
        ),
        Figure("sqlalchemy_objects", p50(times["objects, by a model"]) / p50(times["objects, by hand"]), 1.10),
        Figure("django_rows", p50(django["columns, by a model"]) / p50(django["columns, by hand"]), 1.10),
        Figure(
            "django_beside_pgvector",
            p50(django["columns, by a model"]) / p50(django["columns, by pgvector's comparator"]),
            1.10,
        ),
        Figure("django_objects", p50(django["objects, by a model"]) / p50(django["objects, by hand"]), 1.10),
    )


def url_of(dsn: str) -> URL:
    """The address of a database for SQLAlchemy."""
    return URL.create("postgresql+psycopg", query=psycopg.conninfo.conninfo_to_dict(dsn))  # pyright: ignore[reportArgumentType]


Form = Callable[[int], Any]


def take_turns(forms: dict[str, Form], rounds: int, queries: int) -> dict[str, list[float]]:
    """Milliseconds of each form, block after block in turn, as in query_overhead."""
    times: dict[str, list[float]] = {name: [] for name in forms}
    for block in range(-2, rounds // BLOCK):
        for turn, (name, call) in enumerate(forms.items()):
            for number in range(block * BLOCK, (block + 1) * BLOCK):
                n = (number + turn * QUERIES // len(forms)) % queries
                start = time.perf_counter()
                call(n)
                if block >= 0:
                    times[name].append((time.perf_counter() - start) * 1000)
    return times


def sqlalchemy_forms(session: Session, queries: NDArray[np.float32]) -> dict[str, Form]:
    """The forms in SQLAlchemy."""
    expressions = [Vector(query) for query in queries]
    texts = [Numbers(query).to_text() for query in queries]

    def columns(n: int) -> Any:  # noqa: ANN401
        near = Product.embedding.distance(expressions[n])
        found = select(Product.id, Product.title, Product.price, (1 - near).label("score"))
        return session.execute(found.order_by(near).limit(10)).all()

    def objects(n: int) -> Any:  # noqa: ANN401
        session.expunge_all()
        near = Product.embedding.distance(expressions[n])
        return session.scalars(select(Product).order_by(near).limit(10)).all()

    def whole(n: int) -> Any:  # noqa: ANN401
        session.expunge_all()
        return session.scalars(select(Product).from_statement(WHOLE), {"query": texts[n]}).all()

    def peer(n: int) -> Any:  # noqa: ANN401
        near = Product.embedding.cosine_distance(queries[n])
        found = select(Product.id, Product.title, Product.price, (1 - near).label("score"))
        return session.execute(found.order_by(near).limit(10)).all()

    return {
        "columns, by hand": lambda n: session.execute(HAND, {"query": texts[n]}).all(),
        "columns, by pgvector's comparator": peer,
        "columns, by a model": columns,
        "objects, by hand": whole,
        "objects, by a model": objects,
    }


def django_forms(dsn: str, queries: NDArray[np.float32]) -> dict[str, Form]:
    """The forms in Django."""
    import django
    from django.conf import settings

    given = psycopg.conninfo.conninfo_to_dict(dsn)
    settings.configure(
        DATABASES={
            "default": {"ENGINE": "django.db.backends.postgresql", "NAME": given.pop("dbname"), "OPTIONS": given}
        },
        INSTALLED_APPS=["pgembed.django"],
    )
    django.setup()

    from django.db import connection, models
    from pgvector.django import CosineDistance

    from pgembed.django import EmbeddingField, EmbeddingManager

    class Product(models.Model):
        id = models.IntegerField(primary_key=True)
        title = models.TextField()
        price = models.FloatField()
        embedding = EmbeddingField(encoder="bench", text="{title}")
        objects: Any = EmbeddingManager()

        class Meta:
            app_label = "benchmark"
            db_table = "product"

    hand, whole = (str(one).replace(":query", "%(query)s") for one in (HAND, WHOLE_SCORED))
    expressions = [Vector(query) for query in queries]
    texts = [Numbers(query).to_text() for query in queries]
    columns = ("id", "title", "price", "score")

    def by_hand(n: int) -> Any:  # noqa: ANN401
        with connection.cursor() as cursor:
            cursor.execute(hand, {"query": texts[n]})
            return cursor.fetchall()

    def peer(n: int) -> Any:  # noqa: ANN401
        near = CosineDistance("embedding", queries[n])
        return list(Product.objects.annotate(score=1 - near).order_by(near).values_list(*columns)[:10])

    return {
        "columns, by hand": by_hand,
        "columns, by pgvector's comparator": peer,
        "columns, by a model": lambda n: list(Product.objects.search(expressions[n]).values_list(*columns)),
        "objects, by hand": lambda n: list(Product.objects.raw(whole, {"query": texts[n]})),
        "objects, by a model": lambda n: list(Product.objects.search(expressions[n])),
    }


if __name__ == "__main__":
    raise SystemExit(main())
