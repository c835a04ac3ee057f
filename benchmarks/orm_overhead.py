"""What a search costs in a model of SQLAlchemy's over the same SQL written by hand, in the same library.

Peers: the statement that pgvector's documentation shows, as ``text()``, in the same Session, and the comparator of
pgvector-python on the same model, which tells what SQLAlchemy itself takes for a statement that is built. Rows: those
of query_overhead, 512 dimensions under an HNSW index. The forms take turns, so that whatever slows the machine slows
them all.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import psycopg
from numpy.typing import NDArray
from pgvector import Vector as Numbers
from sqlalchemy import URL, Engine, create_engine, select, text
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
        engine = create_engine(url_of(dsn))
        times = measure(engine, queries, ROUNDS_QUICK if options.quick else ROUNDS)
        engine.dispose()
    report.table(
        f"A search for 10 of {rows:,} rows, ms",
        [{"query": name, "p50": p50(taken), "p95": p95(taken)} for name, taken in times.items()],
    )
    return report.finish(
        Figure("sqlalchemy_rows", p50(times["columns, by a model"]) / p50(times["columns, by hand"]), 1.10),
        Figure(
            "beside_pgvector", p50(times["columns, by a model"]) / p50(times["columns, by pgvector's comparator"]), 1.10
        ),
        Figure("sqlalchemy_objects", p50(times["objects, by a model"]) / p50(times["objects, by hand"]), 1.10),
    )


def url_of(dsn: str) -> URL:
    """The address of a database for SQLAlchemy."""
    return URL.create("postgresql+psycopg", query=psycopg.conninfo.conninfo_to_dict(dsn))  # pyright: ignore[reportArgumentType]


def measure(engine: Engine, queries: NDArray[np.float32], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each form, block after block in turn, as in query_overhead."""
    expressions = [Vector(query) for query in queries]
    texts = [Numbers(query).to_text() for query in queries]

    def columns(session: Session, n: int) -> Any:  # noqa: ANN401
        near = Product.embedding.distance(expressions[n])
        found = select(Product.id, Product.title, Product.price, (1 - near).label("score"))
        return session.execute(found.order_by(near).limit(10)).all()

    def objects(session: Session, n: int) -> Any:  # noqa: ANN401
        near = Product.embedding.distance(expressions[n])
        return session.scalars(select(Product).order_by(near).limit(10)).all()

    def peer(session: Session, n: int) -> Any:  # noqa: ANN401
        near = Product.embedding.cosine_distance(queries[n])
        found = select(Product.id, Product.title, Product.price, (1 - near).label("score"))
        return session.execute(found.order_by(near).limit(10)).all()

    calls: dict[str, Callable[[Session, int], Any]] = {
        "columns, by hand": lambda session, n: session.execute(HAND, {"query": texts[n]}).all(),
        "columns, by pgvector's comparator": peer,
        "columns, by a model": columns,
        "objects, by hand": lambda session, n: session.scalars(
            select(Product).from_statement(WHOLE), {"query": texts[n]}
        ).all(),
        "objects, by a model": objects,
    }
    times: dict[str, list[float]] = {name: [] for name in calls}
    with Session(engine) as session:
        for block in range(-2, rounds // BLOCK):
            for turn, (name, call) in enumerate(calls.items()):
                for number in range(block * BLOCK, (block + 1) * BLOCK):
                    n = (number + turn * QUERIES // len(calls)) % len(queries)
                    start = time.perf_counter()
                    call(session, n)
                    if block >= 0:
                        times[name].append((time.perf_counter() - start) * 1000)
                    session.expunge_all()
    return times


if __name__ == "__main__":
    raise SystemExit(main())
