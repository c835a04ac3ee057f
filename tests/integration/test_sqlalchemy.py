"""Models of SQLAlchemy with embeddings: made, filled, searched, reflected and dropped."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Iterator, Sequence
from typing import Any, cast

import numpy as np
import psycopg
import pytest
from pgvector.sqlalchemy import VECTOR
from psycopg.conninfo import conninfo_to_dict
from psycopg.pq import TransactionStatus
from sqlalchemy import (
    URL,
    Column,
    Connection,
    Engine,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    bindparam,
    create_engine,
    create_mock_engine,
    event,
    func,
    inspect,
    lambda_stmt,
    select,
    text,
)
from sqlalchemy import Text as TextType
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import StatementError
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    MappedAsDataclass,
    Session,
    aliased,
    deferred,
    mapped_column,
    with_loader_criteria,
)
from sqlalchemy.pool import NullPool

import pgembed
from pgembed import Image, Row, Text, Vector, View, reject
from pgembed.encoders import Role
from pgembed.encoders.builtin import LiteEncoder
from pgembed.errors import InvalidInput, InvalidQuery, MediaError
from pgembed.inputs import Expression
from pgembed.sqlalchemy import Embedding, EncoderSpec, embedding_column
from pgembed.sqlalchemy import Vector as Stored
from tests.conftest import Connection as Database

LITE = EncoderSpec("lite", "builtin:lite")
TITLES = ["a dog", "a red shoe", "a cat", "a blue shoe", "the harbour at night", "a bowl of fruit"]


def url_of(dsn: str) -> URL:
    parts = conninfo_to_dict(dsn)
    return URL.create(
        "postgresql+psycopg",
        username=str(parts["user"]),
        password=parts.get("password"),  # pyright: ignore[reportArgumentType]
        database=str(parts["dbname"]),
        query={"host": str(parts["host"]), "port": str(parts["port"])},
    )


@pytest.fixture
def engine(database_dsn: str) -> Iterator[Engine]:
    engine = create_engine(url_of(database_dsn))
    yield engine
    engine.dispose()


class Base(DeclarativeBase):
    pass


class Titled:
    title: Mapped[str | None]
    embedding: Mapped[Stored] = embedding_column(encoder=LITE, text="{title}", index=True)


class Product(Titled, Base):
    __tablename__ = "product"
    id: Mapped[int] = mapped_column(primary_key=True)
    price: Mapped[int | None]


class TitledBeside:
    title: Mapped[str | None]
    embedding: Mapped[Stored] = embedding_column(encoder=LITE, text="{title}", index=True, storage="side")


class Beside(DeclarativeBase):
    pass


class ProductBeside(TitledBeside, Beside):
    __tablename__ = "product"
    id: Mapped[int] = mapped_column(primary_key=True)
    price: Mapped[int | None]


Model = type[Product] | type[ProductBeside]
both_storages = pytest.mark.parametrize("model", [Product, ProductBeside], ids=["column", "side"], indirect=True)


@pytest.fixture
def model(request: pytest.FixtureRequest) -> Model:
    """The model of ``filled``."""
    return getattr(request, "param", Product)


@pytest.fixture
def filled(engine: Engine, database_dsn: str, model: Model) -> Engine:
    model.metadata.create_all(engine)
    with Session(engine) as session:
        session.add_all(model(id=n, title=title, price=n) for n, title in enumerate(TITLES))
        session.commit()
    with pgembed.connect(database_dsn) as db:
        db.work(until_idle=True)
    return engine


@both_storages
def test_create_all_attaches_and_drop_all_detaches(filled: Engine, model: Model) -> None:
    with filled.connect() as conn:
        rows = conn.execute(text("SELECT target, encoder FROM pgembed.embedding")).all()
        assert [tuple(row) for row in rows] == [("embedding", "lite")]
        index = conn.execute(text("SELECT indexdef FROM pg_indexes WHERE indexdef LIKE '%hnsw%'")).scalar_one()
        assert "vector_cosine_ops" in index
    model.metadata.create_all(filled)  # nothing is there to be made
    model.metadata.drop_all(filled)
    with filled.connect() as conn:
        assert conn.execute(text("SELECT count(*) FROM pgembed.embedding")).scalar_one() == 0
    model.metadata.drop_all(filled)


@both_storages
def test_orders_by_distance(filled: Engine, model: Model, database_dsn: str) -> None:
    query = Text("a red shoe")
    with Session(filled) as session:
        near = session.scalars(select(model).order_by(model.embedding.distance(query)).limit(3)).all()
        assert near[0].title == "a red shoe"
        assert isinstance(near[0].embedding, list | np.ndarray)
        scores = session.execute(
            select(model.id, model.embedding.score(query)).order_by(model.embedding.distance(query)).limit(3)
        ).all()
    with pgembed.connect(database_dsn) as db:
        expected = db.search("product", query, limit=3)
    assert [row.id for row in expected] == [row[0] for row in scores]
    assert np.allclose([row.score for row in expected], [row[1] for row in scores], atol=1e-6)


def sent_by(engine: Engine | Connection) -> list[tuple[str, Any]]:
    """The statements that an engine sends from now on, with their parameters."""
    sent: list[tuple[str, Any]] = []
    event.listen(engine, "before_cursor_execute", lambda *given: sent.append((given[2], given[3])))
    return sent


def test_what_a_statement_asks_is_one_call_of_the_encoder_outside_its_transaction(
    filled: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[list[str], TransactionStatus]] = []
    encode = LiteEncoder.encode_text
    with filled.connect() as conn:
        raw = conn.connection.driver_connection
        assert isinstance(raw, psycopg.Connection)

        def noted(self: LiteEncoder, texts: Sequence[str], *, role: Role) -> Any:  # noqa: ANN401
            calls.append((list(texts), raw.info.transaction_status))
            return encode(self, texts, role=role)

        monkeypatch.setattr(LiteEncoder, "encode_text", noted)
        dogs, shoes = Text("a dog"), Text("a red shoe") - 0.5 * Text("blue")
        near, far = Product.embedding.distance(dogs), Product.embedding.distance(shoes)
        rows = conn.execute(select(Product.id, near, far).where(far < 2).order_by(near)).all()
        assert calls == [(["a dog", "a red shoe", "blue"], TransactionStatus.IDLE)]
        assert rows[0].id == 0
        assert len(rows) == len(TITLES)
        assert raw.info.transaction_status is TransactionStatus.INTRANS
        assert not raw.autocommit


@both_storages
def test_the_compiled_statement_is_kept_for_other_queries(filled: Engine, model: Model) -> None:
    sent = sent_by(filled)
    found = []
    with Session(filled) as session:
        for query in (Text("a dog"), Text("a red shoe") + Text("in red"), Text("a cat")):
            statement = select(model.title).order_by(model.embedding.distance(query)).limit(1)
            found.append(session.scalar(statement))
    assert found == ["a dog", "a red shoe", "a cat"]
    searches = [(statement, str(values)) for statement, values in sent if "<=>" in statement]
    assert len(searches) == 3
    assert len({statement for statement, _ in searches}) == 1
    assert "red shoe" not in str(searches)


@both_storages
def test_composes_with_joins_ctes_aliases_and_conditions(filled: Engine, model: Model) -> None:
    other = aliased(model)
    near = model.embedding.distance(Text("a shoe"))
    shoes = select(model.id, near.label("far")).order_by(near).limit(2).cte("shoes")
    with Session(filled) as session:
        rows = session.execute(select(model.title).join(shoes, shoes.c.id == model.id).order_by(shoes.c.far)).all()
        assert {row.title for row in rows} == {"a red shoe", "a blue shoe"}
        title = session.scalar(
            select(other.title)
            .where(other.price < 3, other.id != 1)
            .order_by(other.embedding.distance(Text("a red shoe")))
            .limit(1)
        )
        assert title in ("a dog", "a cat")
        within = select(model.id).where(model.embedding.within(Text("a dog"), 0.01))
        assert session.scalars(within).all() == [0]
        nearest = select(other.title).where(other.embedding.nearest(Text("a shoe"), 2), other.price > 1)
        assert session.scalars(nearest).all() == ["a blue shoe"]
        like = select(model.id).order_by(model.embedding.distance(Row(1) - 0.2 * Text("red"))).limit(2)
        assert 1 in session.scalars(like).all()
        between = select(func.count()).join_from(model, other, model.embedding.distance(other.embedding) < 0.01)
        assert session.scalar(between) == len(TITLES)
        mine = session.get_one(model, 3)
        assert session.scalar(select(model.id).order_by(model.embedding.distance(mine.embedding)).limit(1)) == 3


def test_a_vector_index_is_used(filled: Engine) -> None:
    with filled.connect() as conn:
        conn.execute(text("SET enable_seqscan = off; SET enable_sort = off"))
        statement = select(Product.id).order_by(Product.embedding.distance(Text("a dog"))).limit(2)
        sent = sent_by(conn)
        conn.execute(statement)
        plan = conn.exec_driver_sql(f"EXPLAIN {sent[-1][0]}", sent[-1][1]).all()
        assert any("Index Scan using ix_product_embedding" in line[0] for line in plan)


def test_an_orm_write_leaves_the_vector_alone(filled: Engine, model: Model, database_dsn: str) -> None:
    with Session(filled) as session:
        product = session.get_one(model, 0)
        before = np.asarray(product.embedding)
        product.price = 17
        session.commit()
        assert np.array_equal(np.asarray(product.embedding), before)
        product.title = "a violin"
        session.commit()
        with pgembed.connect(database_dsn) as db:
            db.work(until_idle=True)
        session.refresh(product)
        assert not np.array_equal(np.asarray(product.embedding), before)


@both_storages
def test_what_is_put_into_the_attribute_and_a_merge_of_an_older_object_leave_the_vector_alone(
    filled: Engine, model: Model, database_dsn: str
) -> None:
    with Session(filled) as session:
        older = session.get_one(model, 0)
        before = list(older.embedding or [])
        older.embedding = [0.5] * len(before)
        session.commit()
        assert list(older.embedding or []) == before
        session.refresh(older)
        session.expunge(older)
        session.get_one(model, 0).title = "a violin"
        session.commit()
        with pgembed.connect(database_dsn) as db:
            db.work(until_idle=True)
        session.expire_all()
        after = list(session.get_one(model, 0).embedding or [])
        assert after != before
        session.expire_all()
        older.price = 99
        merged = session.merge(older)
        session.commit()
        assert merged.price == 99
        assert list(merged.embedding or []) == after


def test_an_upsert_of_all_columns_leaves_the_vector_alone(filled: Engine) -> None:
    with Session(filled) as session:
        before = session.get_one(Product, 0).embedding
        upsert = insert(Product).values(
            [{"id": 0, "title": "a dog", "price": 50}, {"id": 9, "title": "a fox", "price": 1}]
        )
        taken = {column.name: column for column in upsert.excluded if not column.primary_key}
        assert "embedding" in taken
        session.execute(upsert.on_conflict_do_update(index_elements=[Product.id], set_=taken))
        session.commit()
        session.expire_all()
        assert session.get_one(Product, 0).price == 50
        assert session.get_one(Product, 0).embedding == before
        assert session.get_one(Product, 9).title == "a fox"


def test_a_dataclass_whose_vector_is_loaded_when_it_is_asked_for(engine: Engine, database_dsn: str) -> None:
    class Notes(MappedAsDataclass, DeclarativeBase):
        pass

    class Note(Notes):
        __tablename__ = "note"
        id: Mapped[int] = mapped_column(primary_key=True)
        body: Mapped[str]
        vector: Mapped[Stored] = deferred(embedding_column(encoder=LITE, text="body"), init=False, repr=False)
        pages: Mapped[int] = mapped_column(default=3)

    Notes.metadata.create_all(engine)
    with Session(engine) as session:
        session.add(Note(id=1, body="a dog"))
        session.commit()
        with pgembed.connect(database_dsn) as db:
            db.work(until_idle=True)
        near = Note.vector.distance(Text("a dog"))
        (note,) = session.scalars(select(Note).where(near < 0.01).order_by(near))
        assert "vector" in inspect(note).unloaded
        assert repr(note).endswith("Note(id=1, body='a dog', pages=3)")
        assert len(note.vector or []) == 256


@both_storages
def test_queries_in_variables_of_lambdas_and_in_bindparams(filled: Engine, model: Model) -> None:
    mixed, numbers = Text("a red shoe") + Text("in red"), [0.1] * 256
    with Session(filled) as session:

        def matching(query: Expression | list[float]) -> Sequence[str | None]:
            near = with_loader_criteria(model, lambda one: one.embedding.within(query, 0.01), include_aliases=True)
            return session.scalars(select(model.title).options(near)).all()

        def nearest(query: Expression | list[float]) -> str | None:
            by_lambda = lambda_stmt(lambda: select(model.title).order_by(model.embedding.distance(query)).limit(1))
            return session.scalar(by_lambda)

        asked = select(model.title).order_by(model.embedding.distance(bindparam("asked"))).limit(1)
        assert [matching(Text(title)) for title in TITLES] == [[title] for title in TITLES]
        assert [nearest(query) for query in (Text("a dog"), mixed, Row(2))] == ["a dog", "a red shoe", "a cat"]
        assert [session.scalar(asked, {"asked": Text(title)}) for title in TITLES] == TITLES
        by_hand = session.scalar(select(model.title).order_by(model.embedding.distance(numbers)).limit(1))
        assert nearest(numbers) == session.scalar(asked, {"asked": numbers}) == by_hand
        other = Table("other", MetaData(), embedding_column("e", encoder=LITE, text="title"))
        both = asked.join(other, other.c.e.distance(bindparam("asked")) < 1)
        with pytest.raises(InvalidQuery, match=r"product\.embedding"):
            session.execute(both, {"asked": Text("a dog")})


@both_storages
def test_asyncio(filled: Engine, model: Model) -> None:
    async def ask() -> list[Any]:
        engine = create_async_engine(filled.url.set(drivername="postgresql+psycopg"), poolclass=NullPool)
        async with AsyncSession(engine) as session:
            near = model.embedding.distance(Text("a red shoe"))
            titles = await session.scalars(select(model.title).order_by(near).limit(1))
            found = list(titles)
        await engine.dispose()
        return found

    assert asyncio.run(ask()) == ["a red shoe"]


def test_over_another_driver_numbers_are_compared_and_queries_refused(filled: Engine) -> None:
    numbers = LiteEncoder().encode_text(["a cat"], role="query")[0]

    async def ask(query: object) -> list[Any]:
        engine = create_async_engine(filled.url.set(drivername="postgresql+asyncpg"), poolclass=NullPool)
        try:
            async with AsyncSession(engine) as session:
                near = select(Product.title).order_by(Product.embedding.distance(query)).limit(1)
                return list(await session.scalars(near))
        finally:
            await engine.dispose()

    assert asyncio.run(ask(numbers)) == ["a cat"]
    with pytest.raises(InvalidInput, match=r"over psycopg, not over asyncpg.*postgresql\+psycopg://"):
        asyncio.run(ask(Text("a cat")))


@pytest.mark.parametrize("storage", ["column", "side"])
def test_core_tables_with_schemas_names_and_keys_of_all_kinds(engine: Engine, storage: Any) -> None:  # noqa: ANN401
    metadata = MetaData(naming_convention={"ix": "ix_%(table_name)s_%(column_0_name)s"})
    table = Table(
        "it's 100%",
        metadata,
        Column("shop", Integer, primary_key=True),
        Column("no", Integer, primary_key=True),
        Column("the title", TextType),
        embedding_column(
            "vec%tor",
            encoder=LITE,
            text={"column": "the title", "weight": 2},
            index=True,
            mode="instant",
            storage=storage,
        ),
        schema="tenant",
    )
    with engine.connect().execution_options(schema_translate_map={"tenant": "shop %1"}) as conn:
        conn.execute(text('CREATE SCHEMA "shop %1"'))
        metadata.create_all(conn)
        conn.execute(table.insert(), [{"shop": 1, "no": n, "the title": title} for n, title in enumerate(TITLES)])
        found = conn.execute(select(table.c.no).order_by(table.c["vec%tor"].distance(Text("a cat"))).limit(1))
        assert found.scalar_one() == 2
        nearest = select(table.c.no).where(table.c["vec%tor"].nearest(Text("a shoe"), 2)).order_by(table.c.no)
        assert conn.scalars(nearest).all() == [1, 3]
        conn.commit()
    reflected = Table("it's 100%", MetaData(), schema="shop %1", autoload_with=engine)
    declared, given = (cast(Embedding, one.c["vec%tor"].type).declared for one in (reflected, table))
    assert declared is not None
    assert given is not None
    assert declared.attached == given.attached
    assert declared.registered_as == LITE
    names = {"column": ["ix_it's 100%_vec%tor"], "side": []}
    assert [index.name for index in reflected.indexes] == names[storage]
    with engine.connect().execution_options(schema_translate_map={"tenant": "shop %1"}) as conn:
        metadata.drop_all(conn)
        conn.commit()
        assert conn.scalar(text("SELECT count(*) FROM pgembed.embedding")) == 0


def test_a_role_that_knows_nothing_of_pgembed_reflects_vectors(filled: Engine) -> None:
    with filled.connect() as conn, conn.begin() as begun:
        conn.execute(text("CREATE ROLE stranger; GRANT SELECT ON product TO stranger; SET LOCAL ROLE stranger"))
        assert isinstance(Table("product", MetaData(), autoload_with=conn).c.embedding.type, VECTOR)
        conn.execute(text("RESET ROLE; GRANT USAGE ON SCHEMA pgembed TO stranger; SET LOCAL ROLE stranger"))
        assert isinstance(Table("product", MetaData(), autoload_with=conn).c.embedding.type, VECTOR)
        begun.rollback()


def test_inputs_side_by_side_and_views(engine: Engine, database_dsn: str) -> None:
    metadata = MetaData()
    table = Table(
        "note",
        metadata,
        Column("id", Integer, primary_key=True),
        Column("title", TextType),
        Column("photo", LargeBinary),
        embedding_column("e", encoder=LITE, text="title", image="photo", fusion="concat", index=True),
    )
    metadata.create_all(engine)
    with engine.begin() as conn:
        conn.execute(table.insert(), [{"id": n, "title": title} for n, title in enumerate(TITLES)])
    query = reject(Text("a red shoe"), View("colour"))
    with pgembed.connect(database_dsn) as db:
        db.work(until_idle=True)
        db.learn_view("colour", encoder="lite", these=[Text("red"), Text("blue")], those=[Text("shoe"), Text("hat")])
        expected = db.search("note", query, limit=3)
    with engine.connect() as conn:
        near = table.c.e.distance(query)
        rows = conn.execute(select(table.c.id, table.c.e.score(query)).order_by(near).limit(3)).all()
    assert [row.id for row in expected] == [row[0] for row in rows]
    assert np.allclose([row.score for row in expected], [row[1] for row in rows], atol=1e-6)


@both_storages
def test_metadata_that_was_pickled_makes_and_drops_embeddings(filled: Engine, model: Model) -> None:
    kept = pickle.loads(pickle.dumps(model.metadata))

    def there() -> tuple[int, int]:
        with filled.connect() as conn:
            embeddings = conn.execute(text("SELECT count(*) FROM pgembed.embedding")).scalar_one()
            built = conn.execute(text("SELECT count(*) FROM pg_indexes WHERE indexdef LIKE '%hnsw%'")).scalar_one()
        return embeddings, built

    kept.drop_all(filled)
    assert there() == (0, 0)
    kept.create_all(filled)
    assert there() == (1, 1)


def test_drop_all_where_pgembed_is_gone(filled: Engine, model: Model) -> None:
    with filled.begin() as conn:
        conn.execute(text("SELECT pgembed.uninstall(true)"))
    model.metadata.drop_all(filled)
    assert not inspect(filled).has_table("product")


def test_a_role_without_rights_on_pgembed_reflects_vectors(filled: Engine) -> None:
    with filled.connect() as conn:  # and the role is never committed
        conn.execute(text("CREATE ROLE reflecting; SET LOCAL ROLE reflecting"))
        reflected = Table("product", MetaData(), autoload_with=conn)
        assert type(reflected.c.embedding.type) is VECTOR
        conn.rollback()


def test_a_script_instead_of_a_database(database: Database) -> None:
    lines: list[str] = []

    def write(statement: Any, *_: object, **__: object) -> None:  # noqa: ANN401
        lines.append(str(statement.compile(dialect=engine.dialect)))

    engine = create_mock_engine("postgresql+psycopg://", write)
    Base.metadata.create_all(engine, checkfirst=False)
    script = ";".join(lines)
    database.execute(script.replace("%%", "%").encode())
    assert database.execute("SELECT table_name, target FROM pgembed.embedding").fetchall() == [("product", "embedding")]


def test_bad_input(filled: Engine) -> None:
    with pytest.raises(InvalidInput, match="no input"):
        embedding_column(encoder="lite")
    with pytest.raises(InvalidInput, match="not 3"):
        embedding_column(encoder="lite", text=3)  # pyright: ignore[reportArgumentType]
    with pytest.raises(InvalidInput, match="metric is 'cos'"):
        embedding_column(encoder="lite", text="title", metric="cos")  # pyright: ignore[reportArgumentType]
    with pytest.raises(InvalidQuery, match="not 'a dog'"):
        Product.embedding.distance("a dog")
    for query, told in ((None, "is None"), (3, "not 3"), (Product(), "not <")):
        with pytest.raises(InvalidQuery, match=told):
            Product.embedding.distance(query)
    with filled.connect() as conn, pytest.raises(StatementError, match=r"Write \.distance"):
        conn.execute(select(Product.id).order_by(Product.embedding.cosine_distance(Text("a dog"))))
    with pytest.raises(InvalidQuery, match="k is 0"):
        Product.embedding.nearest(Text("a dog"), 0)
    with pytest.raises(InvalidQuery, match="k is '2'"):
        Product.embedding.nearest(Text("a dog"), "2")  # pyright: ignore[reportArgumentType]
    with pytest.raises(InvalidQuery, match=r"k is 2\.5"):
        Product.embedding.nearest(Text("a dog"), 2.5)
    with filled.connect() as conn, pytest.raises(InvalidQuery, match="holds vectors of 'lite'"):
        conn.execute(select(Product.id).order_by(Product.embedding.distance(Vector([1.0], space="other"))))
    with filled.connect() as conn, pytest.raises(MediaError, match=r"nowhere\.png"):
        conn.execute(select(Product.id).order_by(Product.embedding.distance(Image("nowhere.png"))))


def test_an_unknown_encoder_is_told_and_nothing_is_made(engine: Engine) -> None:
    metadata = MetaData()
    Table(
        "note",
        metadata,
        Column("id", Integer, primary_key=True),
        Column("body", TextType),
        embedding_column("e", encoder="nobody", text="body"),
    )
    with pytest.raises(Exception, match="nobody"), engine.begin() as conn:
        metadata.create_all(conn)
    assert not inspect(engine).has_table("note")
