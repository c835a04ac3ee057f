"""Migrations of embeddings whose vectors stand in a side table."""

from __future__ import annotations

import pgembed
from tests.conftest import Connection
from tests.integration.test_parts import lines as lines  # a fixture
from tests.migration.test_alembic import EMBEDDING, PRODUCT, Project, body
from tests.migration.test_alembic import project as project  # a fixture

SIDE = EMBEDDING.replace("index=True", 'index=True, storage="side"')


def test_vectors_in_a_side_table_up_and_down(project: Project, database: Connection) -> None:
    def indexes() -> list[tuple[object, ...]]:
        return database.execute("SELECT indexdef FROM pg_indexes WHERE indexdef LIKE '%hnsw%'").fetchall()

    project.models(PRODUCT + SIDE)
    text = project.revision()
    assert "op.attach_embedding('product', 'embedding', encoder='lite', text='{title}', storage='side')" in text
    assert "sa.Column('embedding'" not in text
    project.upgrade()
    assert database.execute("SELECT side::regclass::text FROM pgembed.embedding").fetchall() == [("product_embedding",)]
    (index,) = indexes()
    assert "ON public.product_embedding USING hnsw (vector vector_cosine_ops)" in str(index)
    assert project.is_current()
    project.models(PRODUCT + SIDE.replace("index=True", "index=VectorIndex(m=8)"))
    kinds = [line.split("(")[0] for line in body(project.revision(), "upgrade") if line.startswith("op.")]
    assert kinds == ["op.drop_index", "op.create_index"]
    project.upgrade()
    assert project.is_current()
    project.downgrade()
    assert indexes() == [index]
    project.downgrade("base")
    assert database.execute("SELECT count(*) FROM pg_class WHERE relname LIKE 'product%'").fetchone() == (0,)


def test_vectors_that_move_between_column_and_side_table(project: Project, database: Connection) -> None:
    def where() -> list[tuple[object, ...]]:
        found = (
            "SELECT e.storage, i.tablename::text FROM pgembed.embedding e, pg_indexes i WHERE indexdef LIKE '%hnsw%'"
        )
        return database.execute(found).fetchall()

    project.models(PRODUCT + EMBEDDING)
    project.revision()
    project.upgrade()
    project.models(PRODUCT + SIDE)
    text = project.revision()
    assert "# op.alter_embedding('product', 'embedding', encoder='lite', text='{title}', storage='side')" in text
    assert "Vectors would go, and be encoded again." in text
    project.upgrade()
    project.revision(allow_drop=True)
    project.upgrade()
    assert where() == [("side", "product_embedding")]
    assert project.is_current()
    project.downgrade()
    assert where() == [("column", "product")]
    project.upgrade()
    project.models(PRODUCT)
    project.revision(allow_drop=True)
    project.upgrade()
    assert where() == []
    project.downgrade()
    assert where() == [("side", "product_embedding")]


def test_a_side_table_follows_its_table_that_was_renamed(project: Project, database: Connection) -> None:
    project.models(PRODUCT + SIDE)
    project.revision()
    project.upgrade()
    database.execute("INSERT INTO product (id, title) VALUES (1, 'a dog')")
    database.execute("ALTER TABLE product RENAME TO item; ALTER TABLE item RENAME id TO number")
    project.models((PRODUCT + SIDE).replace('"product"', '"item"').replace("    id:", "    number:"))
    upgrade = body(project.revision(), "upgrade")
    assert 'op.execute(\'ALTER TABLE "product_embedding" RENAME TO "item_embedding"\')' in upgrade
    project.upgrade()
    assert project.is_current()
    columns = "SELECT attname::text FROM pg_attribute WHERE attrelid = %s::regclass AND attnum > 0 ORDER BY attnum"
    assert database.execute(columns, ["item_embedding"]).fetchall() == [("number",), ("vector",)]
    with pgembed.connect(project.dsn) as db:
        db.work(until_idle=True)
    database.execute("DELETE FROM item")
    assert database.execute("SELECT count(*) FROM item_embedding").fetchone() == (0,)
    project.downgrade()
    assert database.execute(columns, ["product_embedding"]).fetchall() == [("id",), ("vector",)]


def test_parts_that_come_change_and_go(project: Project, database: Connection) -> None:
    def standing() -> list[tuple[object, ...]]:
        return database.execute("SELECT parts, storage FROM pgembed.embedding").fetchall()

    def embedding(parts: str) -> str:
        return PRODUCT + EMBEDDING.replace("index=True", f"index=True, parts={parts}")

    project.models(embedding('"lines"'))
    text = project.revision()
    assert "op.attach_embedding('product', 'embedding', encoder='lite', text='{title}', parts='lines')" in text
    project.upgrade()
    assert standing() == [({"kind": "lines"}, "side")]
    database.execute("INSERT INTO product (title) VALUES (E'a dog\\na cat')")
    with pgembed.connect(project.dsn) as db:
        db.work(until_idle=True)
    assert database.execute("SELECT part, content FROM product_embedding ORDER BY part").fetchall() == [
        (1, "a dog"), (2, "a cat"),
    ]  # fmt: skip
    assert project.is_current()
    project.models(embedding('{"kind": "lines"}'))
    assert project.is_current()
    project.models(embedding('{"size": 3, "kind": "lines"}'))
    text = project.revision(allow_drop=True)
    call = "op.alter_embedding('product', 'embedding', encoder='lite', text='{title}', parts="
    assert call + "{'kind': 'lines', 'size': 3})" in text
    assert call + "'lines')" in text  # on the way back
    project.upgrade()
    assert standing() == [({"kind": "lines", "size": 3}, "side")]
    assert project.is_current()
    project.downgrade()
    assert standing() == [({"kind": "lines"}, "side")]
    project.models(PRODUCT + EMBEDDING)
    project.upgrade()
    project.revision(allow_drop=True)
    project.upgrade()
    assert standing() == [(None, "column")]
    assert project.is_current()
    project.downgrade("base")
    assert database.execute("SELECT count(*) FROM pg_class WHERE relname LIKE 'product%'").fetchone() == (0,)
