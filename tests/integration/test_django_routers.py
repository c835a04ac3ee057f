"""Several databases and routers: what is migrated where, and in which of them a search looks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests import django_project

django_project.set_up()

from django.db import connections  # noqa: E402
from django.db.migrations import Migration  # noqa: E402
from django.test import override_settings  # noqa: E402

import pgembed  # noqa: E402
from pgembed import Row, Text  # noqa: E402
from pgembed.django import Distance, operations  # noqa: E402
from pgembed.django.apps import install_before  # noqa: E402
from pgembed.django.testing import drain  # noqa: E402
from tests.conftest import Connection, new_database  # noqa: E402
from tests.integration.test_django import Brand, Note, Product, create, titles  # noqa: E402
from tests.migration.test_django_migrations import EMBEDDED, Project  # noqa: E402


class OnlyOther:
    """Apps of models with embeddings live in ``other`` alone."""

    def allow_migrate(self, db: str, app_label: str, model_name: str | None = None, **hints: Any) -> bool:  # noqa: ANN401
        return db == "other"


class ReadsOther:
    """``other`` is read, ``default`` is written."""

    def db_for_read(self, model: type, **hints: Any) -> str:  # noqa: ANN401
        return "other"

    def db_for_write(self, model: type, **hints: Any) -> str:  # noqa: ANN401
        return "default"


@pytest.fixture
def other_dsn(server_dsn: str, template: str) -> Iterator[str]:
    yield from new_database(server_dsn, template)


@contextmanager
def routed(router: type) -> Iterator[None]:
    with override_settings(DATABASE_ROUTERS=[router()]):
        yield


def test_operations_run_where_the_routers_have_the_app(
    bare_dsn: str, bare_database: Connection, other_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGEMBED_ALLOW_DROP", "1")
    install, by_hand, index = (Migration(name, "shop") for name in ("install", "by_hand", "index"))
    install.operations = [operations.InstallPgembed()]
    by_hand.operations = [
        operations.AddEncoder("second", "builtin:lite"),
        operations.AttachEmbedding("product", "beside", encoder="second", text="title", storage="side"),
    ]
    index.operations, index.atomic = [operations.CreateVectorIndex("product", "embedding")], False
    bare_database.execute("CREATE EXTENSION vector")
    with (
        django_project.database_of(bare_dsn) as default,
        django_project.database_of(other_dsn, "other") as other,
        routed(OnlyOther),
    ):
        for connection, expected in (
            (default, []),
            (other, [("product", "beside", "second"), ("product", "embedding", "lite")]),
        ):
            install_before(connection.alias)
            project = Project(bare_dsn if connection is default else other_dsn, connection)
            project.migrate(install)
            project.models(EMBEDDED).migrate()
            project.migrate(by_hand)
            project.migrate(index)
            tables = "SELECT to_regclass('product')::text, to_regnamespace('pgembed')::text"
            assert project.one(tables) == (("product", "pgembed") if expected else (None, None))
            if expected:
                assert project.embeddings() == expected
                assert project.one("SELECT count(*) FROM pg_indexes WHERE indexdef LIKE '%hnsw%'") == (1,)
            for _ in (index, by_hand, "models", install):
                project.back()
            assert project.one(tables) == (None, None)


def test_a_search_goes_to_the_database_that_is_read(database_dsn: str, other_dsn: str) -> None:
    with django_project.database_of(database_dsn), django_project.database_of(other_dsn, "other"):
        for alias, shoe in (("default", "a blue shoe"), ("other", "a red shoe")):
            create(Brand, Product, Note, alias=alias)
            Product.objects.using(alias).bulk_create(
                [Product(pk=1, title="a cat", price=1), Product(pk=2, title=shoe, price=2)]
            )
            Note.objects.using(alias).bulk_create(
                [Note(book="one", page=1, body="a cat"), Note(book="one", page=2, body=shoe)]
            )
            assert drain(alias).written == 4
        query = Text("a shoe")
        with routed(ReadsOther):
            assert titles(Product.objects.search(query, 1)) == ["a red shoe"]
            assert titles(Product.objects.filter(price=2).search(query, 2)) == ["a red shoe"]
            assert titles(Product.objects.search(Row(2), 1)) == ["a red shoe"]
            assert titles(Product.objects.order_by(Distance("embedding", query))[:1]) == ["a red shoe"]
            assert [note.body for note in Note.objects.search(query, 1)] == ["a red shoe"]
            assert titles(Product.objects.using("default").search(query, 1)) == ["a blue shoe"]
            assert [note.body for note in Note.objects.using("default").search(query, 1)] == ["a blue shoe"]
            connections["default"].close()
            assert titles(Product.objects.search(query, 1)) == ["a red shoe"]
            assert connections["default"].connection is None  # a search asks the other one for nothing
        assert titles(Product.objects.search(query, 1)) == ["a blue shoe"]
    with pgembed.connect(other_dsn) as db:
        assert [row.title for row in db.search("product", query, limit=1)] == ["a red shoe"]
