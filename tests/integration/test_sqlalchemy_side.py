"""Models whose vectors stand in side tables: where they are like others, and where not. What is the same for both
storages is in test_sqlalchemy.py."""

from __future__ import annotations

from typing import Any, ClassVar, cast

import numpy as np
import pytest
from psycopg.errors import UndefinedTable
from sqlalchemy import (
    Column,
    Engine,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    Table,
    bindparam,
    func,
    insert,
    inspect,
    select,
    text,
    update,
)
from sqlalchemy import Text as TextType
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.exc import ProgrammingError
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    aliased,
    deferred,
    joinedload,
    make_transient,
    mapped_column,
    relationship,
)

import pgembed
from pgembed import Text
from pgembed.errors import InvalidInput, InvalidQuery
from pgembed.sqlalchemy import Embedding, embedding_column
from pgembed.sqlalchemy import Vector as Stored
from tests.integration.test_sqlalchemy import (
    LITE,
    TITLES,
    Model,
    Product,
    ProductBeside,
    both_storages,
    sent_by,
)
from tests.integration.test_sqlalchemy import engine as engine  # fixtures
from tests.integration.test_sqlalchemy import filled as filled
from tests.integration.test_sqlalchemy import model as model

beside = pytest.mark.parametrize("model", [ProductBeside], ids=["side"], indirect=True)


@beside
def test_a_joined_side_table_takes_its_vector_index(filled: Engine) -> None:
    side = ProductBeside.embedding.side
    near = side.c.vector.distance(Text("a red shoe"))
    statement = select(ProductBeside).join(side).where(ProductBeside.price < 3).order_by(near).limit(1)
    with Session(filled) as session:
        assert [product.title for product in session.scalars(statement)] == ["a red shoe"]
        other = aliased(ProductBeside)
        assert session.scalar(select(other.title).join(side).order_by(near).limit(1)) == "a red shoe"
        assert session.scalars(select(side.c.id).where(side.c.vector.nearest(Text("a red shoe"), 1))).all() == [1]
    for asked in (statement, select(ProductBeside.id).where(ProductBeside.embedding.nearest(Text("a dog"), 2))):
        with filled.connect() as conn:
            conn.execute(text("SET enable_seqscan = off; SET enable_sort = off"))
            sent = sent_by(conn)
            conn.execute(asked)
            plan = conn.exec_driver_sql(f"EXPLAIN {sent[-1][0]}", sent[-1][1]).all()
            assert any("Index Scan using ix_product_embedding_vector" in line[0] for line in plan)


@beside
def test_a_side_table_may_be_mapped_and_be_a_relationship(filled: Engine) -> None:
    class Base(DeclarativeBase):
        pass

    class Vectors(Base):
        __table__ = ProductBeside.embedding.side
        product: Mapped[ProductBeside] = relationship(ProductBeside, viewonly=True)

    near = Vectors.vector.distance(Text("a cat"))
    with Session(filled) as session:
        rows = session.scalars(select(Vectors).options(joinedload(Vectors.product)).order_by(near).limit(2)).all()
        assert rows[0].product.title == "a cat"
        assert rows[0].vector == rows[0].product.embedding


@both_storages
def test_rows_without_a_vector(filled: Engine, model: Model) -> None:
    with Session(filled) as session:
        session.add(model(id=99, price=0))
        session.commit()
        assert session.get_one(model, 99).embedding is None
        assert session.scalars(select(model.id).where(model.embedding.is_(None))).all() == [99]
        assert session.scalar(select(model.embedding.distance(Text("a dog"))).where(model.id == 99)) is None
        rows = select(model.id).order_by(model.embedding.distance(Text("a dog")))
        assert session.scalars(rows).all()[-1] == 99


@pytest.mark.parametrize("storage", ["column", "side"])
def test_subclasses(engine: Engine, database_dsn: str, storage: Any) -> None:  # noqa: ANN401
    class Base(DeclarativeBase):
        pass

    class Thing(Base):
        __tablename__ = "thing"
        id: Mapped[int] = mapped_column(primary_key=True)
        kind: Mapped[str]
        title: Mapped[str]
        embedding: Mapped[Stored] = embedding_column(encoder=LITE, text="title", storage=storage, index=True)
        __mapper_args__: ClassVar = {"polymorphic_on": "kind", "polymorphic_identity": "thing"}

    class Toy(Thing):
        __mapper_args__: ClassVar = {"polymorphic_identity": "toy"}

    class Dress(Thing):
        __tablename__ = "dress"
        id: Mapped[int] = mapped_column(ForeignKey("thing.id"), primary_key=True)
        fabric: Mapped[str]
        cloth: Mapped[Stored] = embedding_column(encoder=LITE, text="fabric", storage=storage, mode="instant")
        __mapper_args__: ClassVar = {"polymorphic_identity": "dress"}

    Base.metadata.create_all(engine)
    with Session(engine) as session:
        session.add_all([Toy(id=1, title="a red shoe"), Dress(id=2, title="a blue dress", fabric="wool")])
        session.add_all([Dress(id=3, title="a shoe", fabric="a dog"), Thing(id=4, title="a dog")])
        session.commit()
        with pgembed.connect(database_dsn) as db:
            db.work(until_idle=True)
        query = Text("a red shoe")
        order = select(Thing).order_by(Thing.embedding.distance(query))
        assert [type(thing).__name__ for thing in session.scalars(order.limit(2))] == ["Toy", "Dress"]
        dresses = session.scalars(select(Dress).order_by(Dress.embedding.distance(query))).all()
        assert [dress.id for dress in dresses] == [3, 2]
        assert (
            session.scalar(select(Dress.title).order_by(Dress.cloth.distance(Text("wool"))).limit(1)) == "a blue dress"
        )
        other = aliased(Dress, flat=True)
        assert session.scalar(select(other.title).order_by(other.cloth.distance(Text("a dog"))).limit(1)) == "a shoe"
        assert session.scalar(select(Toy.id).where(Toy.embedding.within(query, 0.01))) == 1
        assert len(dresses[0].cloth or []) == len(dresses[0].embedding or []) == 256


@pytest.mark.parametrize("storage", ["column", "side"])
def test_an_instant_vector_is_there_in_its_own_transaction(engine: Engine, storage: Any) -> None:  # noqa: ANN401
    class Base(DeclarativeBase):
        pass

    class Note(Base):
        __tablename__ = "note"
        id: Mapped[int] = mapped_column(primary_key=True)
        body: Mapped[str]
        embedding: Mapped[Stored] = embedding_column(encoder=LITE, text="body", storage=storage, mode="instant")

    Base.metadata.create_all(engine)
    with Session(engine) as session:
        note = Note(body="a dog")
        session.add(note)
        session.flush()
        assert session.scalar(select(Note.id).where(Note.embedding.within(Text("a dog"), 0.01))) == note.id
        assert len(note.embedding or []) == 256


@both_storages
def test_a_statement_that_sets_a_vector_is_refused(filled: Engine, model: Model) -> None:
    numbers, table = [0.1] * 256, cast(Table, model.__table__)
    statements: list[tuple[Any, Any]] = [
        (update(model).values(embedding=numbers), {}),
        (update(model), [{"id": 1, "embedding": numbers}]),
        (update(model).values(embedding=bindparam("given")), {"given": numbers}),
        (insert(model).values(id=50, embedding=numbers), {}),
        (insert(model), [{"id": 50, "embedding": numbers}]),
        (table.insert(), [{"id": 50, "embedding": numbers}, {"id": 51, "embedding": numbers}]),
        (upsert(model).values(id=1).on_conflict_do_update(index_elements=["id"], set_={"embedding": numbers}), {}),
    ]
    with Session(filled) as session:
        before = session.get_one(model, 1).embedding
        for statement, values in statements:
            with pytest.raises(InvalidInput, match=r"sets product\.embedding, whose vectors pgembed writes"):
                session.execute(statement, values)
            session.rollback()
        assert session.get_one(model, 1).embedding == before
        compared = select(model.id).where(model.embedding.cosine_distance(bindparam("given")) < 0.01)
        assert session.scalars(compared, {"given": before}).all() == [1]
        assert session.scalars(select(model.id).where(model.embedding == before)).all() == [1]


@both_storages
def test_a_copy_of_a_row_is_inserted_without_the_vector(filled: Engine, model: Model) -> None:
    with Session(filled) as session:
        product = session.get_one(model, 1)
        assert product.embedding is not None
        make_transient(product)
        product.id = 50
        session.add(product)
        session.flush()
        assert product.embedding is None
        session.merge(model(id=51, title="a fox", embedding=[0.5] * 256))
        session.commit()
        assert session.get_one(model, 51).embedding is None


@both_storages
def test_bulk_saves_of_objects_and_returned_rows(filled: Engine, model: Model) -> None:
    with Session(filled) as session:
        added = session.scalars(insert(model).returning(model), [{"id": 60, "title": "a fox"}, {"id": 61}]).all()
        assert [product.embedding for product in added] == [None, None]
        changed = update(model).where(model.id == 1).values(price=7).returning(model.price, model.embedding)
        price, vector = session.execute(changed).one()
        assert price == 7
        assert len(vector) == 256
        session.bulk_save_objects([model(id=70, title="a bird")])
        session.commit()
        assert session.get_one(model, 70).title == "a bird"


@beside
def test_what_a_side_table_cannot(filled: Engine) -> None:
    given = upsert(ProductBeside).values(id=0, title="a dog")
    taken = {column.name: column for column in given.excluded if not column.primary_key}
    with filled.connect() as conn, pytest.raises(InvalidInput, match=r"embedding is no column of .* product_embedding"):
        conn.execute(given.on_conflict_do_update(index_elements=["id"], set_=taken))
    with pytest.raises(InvalidQuery, match=r"product\.embedding are a column"):
        _ = Product.embedding.side
    with pytest.raises(InvalidInput, match="storage is 'beside'"):
        embedding_column(encoder="lite", text="title", storage=cast(Any, "beside"))
    metadata = MetaData()
    column = embedding_column("e", encoder=LITE, text="title", storage="side")
    keyed = Column("id", Integer, primary_key=True)
    note = Table(
        "note", metadata, keyed, Column("title", TextType), column, Index("mine", "e", postgresql_using="hnsw")
    )
    with filled.connect() as conn, pytest.raises(InvalidInput, match="declared by index=True"):
        metadata.create_all(conn)
    bare = Table(
        "bare", MetaData(), Column("id", Integer), embedding_column("e", encoder=LITE, text="t", storage="side")
    )
    with pytest.raises(InvalidQuery, match="bare has no primary key"):
        select(bare).compile()
    with filled.connect() as conn, pytest.raises(ProgrammingError) as told:
        conn.execute(select(note))
    assert isinstance(told.value.orig, UndefinedTable)


def test_names_that_are_too_long_for_a_side_table(engine: Engine, database_dsn: str) -> None:
    metadata = MetaData()
    table = Table(
        "é" * 31,
        metadata,
        Column("id", Integer, primary_key=True),
        Column("body", TextType),
        embedding_column("vectors_of_the_body", encoder=LITE, text="body", storage="side", index=True),
    )
    metadata.create_all(engine)
    with engine.begin() as conn:
        conn.execute(table.insert(), [{"body": title} for title in TITLES])
    with pgembed.connect(database_dsn) as db:
        db.work(until_idle=True)
    with engine.connect() as conn:
        near = table.c.vectors_of_the_body.distance(Text("a cat"))
        assert conn.scalar(select(table.c.body).order_by(near).limit(1)) == "a cat"


def test_vectors_of_a_side_table_may_be_deferred_and_reflected(engine: Engine, database_dsn: str) -> None:
    class Base(DeclarativeBase):
        pass

    class Note(Base):
        __tablename__ = "note"
        id: Mapped[int] = mapped_column(primary_key=True)
        body: Mapped[str]
        vector: Mapped[Stored] = deferred(embedding_column(encoder=LITE, text="body", storage="side"))

    Base.metadata.create_all(engine)
    with Session(engine) as session:
        session.add(Note(id=1, body="a dog"))
        session.commit()
        with pgembed.connect(database_dsn) as db:
            db.work(until_idle=True)
        note = session.scalars(select(Note)).one()
        assert "vector" in inspect(note).unloaded
        assert len(note.vector or []) == 256
        reflected = Table("note", MetaData(), autoload_with=session.connection())
        assert [column.name for column in reflected.columns] == ["id", "body", "vector"]
        given, found = (cast(Embedding, table.c.vector.type).declared for table in (Note.__table__, reflected))
        assert found is not None
        assert given is not None
        assert found.attached == given.attached
        near = select(reflected.c.id, func.vector_dims(reflected.c.vector)).order_by(
            reflected.c.vector.distance(Text("a dog"))
        )
        assert session.execute(near).one() == (1, 256)
        assert np.allclose(session.scalars(select(reflected.c.vector)).one(), cast(Any, note.vector))
    everything = MetaData()
    everything.reflect(engine)
    everything.drop_all(engine, tables=[everything.tables["note"]])
    assert not inspect(engine).has_table("note_vector")
