"""Models whose rows have many vectors, one for each part: declared, asked for the nearest part, and read as rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from sqlalchemy import Engine, MetaData, Table, func, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, aliased, mapped_column, relationship, selectinload

import pgembed
from pgembed import Text
from pgembed.errors import InvalidInput, InvalidQuery
from pgembed.sqlalchemy import Vector, embedding_column
from tests.conftest import Connection
from tests.integration.test_parts import OTHER, STORY
from tests.integration.test_parts import lines as lines  # fixtures
from tests.integration.test_sqlalchemy import LITE, sent_by
from tests.integration.test_sqlalchemy import engine as engine

VIOLIN = Text("a violin")


class Base(DeclarativeBase):
    pass


class Story(Base):
    __tablename__ = "story"
    book: Mapped[int] = mapped_column(primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    body: Mapped[str | None]
    passages: Mapped[Vector] = embedding_column(encoder=LITE, text="body", parts="lines", index=True)


class Passage(Base):
    __table__ = Story.passages.side
    story: Mapped[Story] = relationship(Story, viewonly=True)


Story.parts = relationship(Passage, viewonly=True, order_by=Passage.part)  # pyright: ignore


@pytest.fixture
def filled(engine: Engine, database_dsn: str) -> Engine:
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        bodies = [STORY, OTHER, None, "a violin\na violin in a case\na violin and a bow", "the harbour at night"]
        session.add_all(Story(book=1, number=n, body=body) for n, body in enumerate(bodies, start=1))
        session.commit()
    with pgembed.connect(database_dsn) as db:
        db.work(until_idle=True)
    return engine


@pytest.fixture
def session(filled: Engine) -> Iterator[Session]:
    with Session(filled) as session:
        yield session


def test_the_side_table_is_as_the_database_has_it(filled: Engine) -> None:
    found = Table("story_passages", MetaData(), autoload_with=filled)
    side = Story.passages.side
    assert (
        [key.name for key in side.primary_key] == [key.name for key in found.primary_key] == ["book", "number", "part"]
    )
    for column in side.columns:
        assert str(found.c[column.name].type) == str(column.type) or column.name == "vector"
        assert found.c[column.name].nullable == column.nullable
    assert set(found.columns.keys()) - set(side.columns.keys()) == {"hash"}


def test_rows_are_as_far_as_their_nearest_part(session: Session, database: Connection) -> None:
    near = Story.passages.distance(VIOLIN)
    found = session.execute(select(Story.number, near, Story.passages.score(VIOLIN)).order_by(near)).all()
    by_hand = database.execute(
        "SELECT number, min(vector <=> pgembed.encode_text('lite', 'a violin')) FROM story_passages"
        " GROUP BY number ORDER BY 2"
    ).fetchall()
    assert [row[0] for row in found] == [*(number for number, _ in by_hand), 3]  # which has no part
    assert [row[1] for row in found[:-1]] == pytest.approx([distance for _, distance in by_hand], abs=1e-6)
    assert [row[2] for row in found[:-1]] == pytest.approx([1 - row[1] for row in found[:-1]])
    assert found[-1][1] is None
    assert [story.number for story in session.scalars(select(Story).order_by(near).limit(2))] == [4, 1]


def test_as_conditions(session: Session) -> None:
    far = session.scalar(select(Story.passages.distance(VIOLIN)).where(Story.number == 1))
    assert far is not None
    within = select(Story.number).where(Story.passages.within(VIOLIN, far + 1e-6)).order_by(Story.number)
    assert session.scalars(within).all() == [1, 4]
    for k, numbers in ((1, [4]), (2, [1, 4])):  # its three parts are one row
        nearest = select(Story.number).where(Story.passages.nearest(VIOLIN, k)).order_by(Story.number)
        assert session.scalars(nearest).all() == numbers
    assert session.scalars(select(Story.number).where(Story.passages.is_(None))).all() == [3]


def test_in_aliases_joins_and_updates(session: Session) -> None:
    one, other = aliased(Story), aliased(Story)
    pairs = (
        select(one.number, other.number)
        .join(other, other.number != one.number)
        .where(one.number == 2)
        .order_by(other.passages.distance(VIOLIN), other.number)
    )
    assert [tuple(row) for row in session.execute(pairs.limit(2))] == [(2, 4), (2, 1)]
    inner = select(Story.number, Story.passages.distance(VIOLIN).label("far")).subquery()
    assert session.scalar(select(inner.c.number).order_by(inner.c.far).limit(1)) == 4
    session.execute(Story.__table__.update().values(body="changed").where(Story.passages.within(VIOLIN, 1e-3)))
    assert session.scalars(select(Story.number).where(Story.body == "changed")).all() == [4]


def test_all_that_a_statement_asks_is_one_call_of_its_encoder(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pgembed.encoders.builtin import LiteEncoder

    calls: list[list[str]] = []
    embed = LiteEncoder.embed_texts
    monkeypatch.setattr(LiteEncoder, "embed_texts", lambda self, texts: calls.append([*texts]) or embed(self, texts))
    asked = select(Story.number, Story.passages.distance(Text("a moon"))).order_by(Story.passages.distance(VIOLIN))
    assert session.execute(asked).first() is not None
    assert [sorted(texts) for texts in calls] == [["a moon", "a violin"]]


def test_the_attribute_is_the_vector_of_the_first_part(session: Session) -> None:
    stories = {story.number: story for story in session.scalars(select(Story))}
    first = session.scalar(select(Passage.vector).where(Passage.number == 1, Passage.part == 1))
    assert np.array_equal(stories[1].passages, first)
    assert stories[3].passages is None


def test_parts_appear_as_relationships(session: Session) -> None:
    near = Passage.vector.distance(VIOLIN)
    passage = session.scalars(select(Passage).order_by(near).limit(1)).one()
    assert (passage.story.number, passage.part, passage.kind, passage.content) == (4, 1, "line", "a violin")
    story: Any = session.scalars(select(Story).where(Story.number == 1).options(selectinload(Story.parts))).one()  # pyright: ignore
    assert [part.content for part in story.parts] == STORY.split("\n")
    for part in story.parts:
        assert story.body[part.location["start"] : part.location["end"]] == part.content
    counted = select(Story.number, func.count()).join(Passage).group_by(Story.number).order_by(Story.number)
    assert [tuple(row) for row in session.execute(counted)] == [(1, 3), (2, 2), (4, 3), (5, 1)]


def test_a_joined_side_table_takes_its_vector_index(filled: Engine) -> None:
    side = Story.passages.side
    statement = select(Story.number, side.c.content).join(side).order_by(side.c.vector.distance(VIOLIN)).limit(1)
    with filled.connect() as conn:
        conn.exec_driver_sql("SET enable_seqscan = off; SET enable_sort = off")
        sent = sent_by(conn)
        assert tuple(conn.execute(statement).one()) == (4, "a violin")
        plan = conn.exec_driver_sql(f"EXPLAIN {sent[-1][0]}", sent[-1][1]).all()
        assert any("Index Scan using ix_story_passages_vector" in line[0] for line in plan)


def test_what_would_compare_one_vector_is_refused(session: Session) -> None:
    for compared in (
        lambda: Story.passages.cosine_distance([0.0] * 256),
        lambda: Story.passages.op("<->")([0.0] * 256),
        lambda: Story.passages == [0.0] * 256,
    ):
        with pytest.raises(InvalidQuery, match=r"story\.passages has a vector for each part of a row"):
            compared()
    with pytest.raises(InvalidQuery, match="A query is a Text"):
        Story.passages.distance("words")
    session.add(Story(book=1, number=9, passages=[0.0] * 256, body="x"))
    session.commit()
    assert session.get_one(Story, (1, 9)).passages is None


@pytest.mark.parametrize("parts", [3, {"tokens": 3}, {"kind": 3}, "{", {"kind": "lines", "size": {1}}])
def test_parts_that_are_none(parts: Any) -> None:  # noqa: ANN401
    with pytest.raises(InvalidInput, match="parts is"):
        embedding_column(encoder="lite", text="body", parts=parts)


def test_reflected(filled: Engine) -> None:
    table = Table("story", MetaData(), autoload_with=filled)
    near = table.c.passages.distance(VIOLIN)
    with filled.connect() as conn:
        assert conn.scalar(select(table.c.number).order_by(near).limit(1)) == 4
