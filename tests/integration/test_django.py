"""Models of Django with embeddings: made, filled, saved, searched, and tested as Django's own tests do."""

from __future__ import annotations

import asyncio
import io
import json
import shutil
import unittest
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest

from tests import django_project

django_project.set_up()

from asgiref.sync import sync_to_async  # noqa: E402
from django.apps import apps  # noqa: E402
from django.contrib import admin  # noqa: E402
from django.core import serializers  # noqa: E402
from django.core.exceptions import ValidationError  # noqa: E402
from django.core.management import call_command  # noqa: E402
from django.core.paginator import Paginator  # noqa: E402
from django.db import connection, connections, models, transaction  # noqa: E402
from django.db.models import Exists, F, OuterRef, Q  # noqa: E402
from django.test import RequestFactory, TestCase, TransactionTestCase, modify_settings, override_settings  # noqa: E402
from django.test.utils import CaptureQueriesContext, isolate_apps  # noqa: E402

import pgembed  # noqa: E402
from pgembed import Image, Row, Text, Vector  # noqa: E402
from pgembed.django import (  # noqa: E402
    Distance,
    EmbeddingField,
    EmbeddingIndex,
    EmbeddingManager,
    Score,
)
from pgembed.django.admin import EmbeddingAdmin  # noqa: E402
from pgembed.django.checks import check_model  # noqa: E402
from pgembed.django.testing import drain  # noqa: E402
from pgembed.encoders.builtin import LiteEncoder  # noqa: E402
from pgembed.errors import CatalogError, InvalidQuery, MediaError  # noqa: E402
from pgembed.media import MediaPolicy  # noqa: E402
from pgembed.worker import Summary  # noqa: E402

TITLES = ["a dog", "a red shoe", "a cat", "a blue shoe", "the harbour at night", "a bowl of fruit"]


class Brand(models.Model):
    name = models.TextField()

    class Meta:
        app_label = "tests"


class Product(models.Model):
    title = models.TextField(null=True)
    price = models.IntegerField(null=True, blank=True)
    brand = models.ForeignKey(Brand, models.CASCADE, null=True, blank=True)
    embedding = EmbeddingField(encoder="lite", text="{title}")
    objects = EmbeddingManager()

    class Meta:
        app_label = "tests"
        db_table = "product"
        indexes = [EmbeddingIndex(fields=["embedding"], name="product_near")]  # noqa: RUF012
        constraints = [models.CheckConstraint(condition=Q(price__lt=1000), name="product_cheap")]  # noqa: RUF012


class Note(models.Model):
    pk = models.CompositePrimaryKey("book", "page")
    book = models.TextField()
    page = models.IntegerField()
    body = models.TextField()
    beside = EmbeddingField(encoder="lite", text="body", storage="side")
    objects = EmbeddingManager()

    class Meta:
        app_label = "tests"
        db_table = "note"


class Base(models.Model):
    title = models.TextField()
    embedding = EmbeddingField(encoder="lite", text="{title}")
    objects = EmbeddingManager()

    class Meta:
        abstract = True
        app_label = "tests"


class Place(Base):
    class Meta(Base.Meta):
        abstract = False


class Harbour(Place):
    depth = models.IntegerField()

    class Meta:
        app_label = "tests"


def create(*kinds: type[models.Model], alias: str = "default") -> None:
    with connections[alias].schema_editor() as editor:
        for kind in kinds:
            editor.create_model(kind)


@pytest.fixture
def django(database_dsn: str) -> Iterator[str]:
    with django_project.database_of(database_dsn):
        yield database_dsn


@pytest.fixture
def filled(django: str) -> str:
    create(Brand, Product)
    Product.objects.bulk_create(Product(title=title, price=n) for n, title in enumerate(TITLES))
    drain()
    return django


def titles(found: Any) -> list[str]:  # noqa: ANN401
    return [row.title for row in found]


def test_searches_as_the_client_does(filled: str) -> None:
    for query in (
        Text("a red shoe"),
        Text("a shoe") - 0.5 * Text("blue"),
        Row(3),
        Vector(Product.objects.get(pk=4).embedding),
    ):
        found = list(Product.objects.search(query, 4))
        with pgembed.connect(filled) as db:
            expected = db.search("product", query, limit=4)
        assert titles(found) == titles(expected)
        assert np.allclose([row.score for row in found], [row.score for row in expected], atol=1e-6)


def test_another_version_of_the_schema_is_told_once(filled: str, caplog: pytest.LogCaptureFixture) -> None:
    with psycopg.connect(filled, autocommit=True) as conn:
        conn.execute("UPDATE pgembed.schema_version SET version_num = '9999'")
    for words in ("a red shoe", "a dog"):
        with transaction.atomic():
            assert titles(Product.objects.search(Text(words), 1)) == [words]
            assert Product.objects.count() == len(TITLES)
    assert ["is of another version: schema 9999" in message for message in caplog.messages] == [True]


def test_is_lazy_and_composes(filled: str) -> None:
    brand = Brand.objects.create(name="Acme")
    Product.objects.filter(title__contains="shoe").update(brand=brand)
    query = Text("a red shoe")
    with CaptureQueriesContext(connection) as sent:
        found = Product.objects.search(query, 3)
        assert len(sent) == 0
    assert titles(found.filter(price__gt=1))[:1] == ["a blue shoe"]
    assert titles(Product.objects.filter(price__gt=1).search(query, 3)) == titles(found.filter(price__gt=1))
    assert titles(found.exclude(title="a red shoe"))[0] == "a blue shoe"
    assert [row.brand.name for row in found.select_related("brand").filter(brand__name="Acme")] == ["Acme", "Acme"]
    assert list(found.values_list("title", flat=True)[1:2]) == ["a blue shoe"]
    assert found.values("title", "score")[0]["score"] == pytest.approx(1, abs=1e-6)
    assert found.first().title == "a red shoe"
    assert found.count() == 3
    assert found.filter(title="a cat").exists()
    pages = Paginator(Product.objects.search(query, None), 2)
    assert [len(page.object_list) for page in pages] == [2, 2, 2]
    assert pages.page(1).object_list[0].title == "a red shoe"
    nearest = Product.objects.search(query, 2).values("pk")
    assert set(titles(Product.objects.filter(pk__in=nearest))) == {"a red shoe", "a blue shoe"}
    assert titles(Product.objects.search(query, 2, exact=True)) == ["a red shoe", "a blue shoe"]
    with pytest.raises(TypeError, match="Cannot reorder"):
        found.order_by("price")


def test_expressions_in_annotations_filters_joins_and_subqueries(filled: str) -> None:
    shoe = Brand.objects.create(name="shoe")
    Product.objects.filter(title="a red shoe").update(brand=shoe)
    query = Text("a red shoe")
    near = Distance("embedding", query)
    assert titles(Product.objects.order_by(near)[:2]) == ["a red shoe", "a blue shoe"]
    assert titles(Product.objects.alias(near=near).filter(near__lt=0.5).order_by("near")) == [
        "a red shoe",
        "a blue shoe",
    ]
    scored = Product.objects.annotate(near=near, score=Score("embedding", query)).get(title="a cat")
    assert scored.score == pytest.approx(1 - scored.near)
    assert Brand.objects.annotate(near=Distance("product__embedding", query)).get().near == pytest.approx(0, abs=1e-6)
    same = Product.objects.annotate(near=Distance("embedding", OuterRef("embedding"))).filter(
        near__lt=0.5, pk__lt=OuterRef("pk")
    )
    assert titles(Product.objects.filter(Exists(same))) == ["a blue shoe"]
    assert Product.objects.aggregate(most=models.Max(near))["most"] > 0.5
    assert Product.objects.annotate(near=Distance(F("embedding"), [0.0] * 255 + [1.0])).first().near > 0
    assert Product.objects.filter(Q(embedding__isnull=True)).count() == 0
    assert [product.title for product in Product.objects.order_by(near).iterator(2)][:1] == ["a red shoe"]
    cheap = Product.objects.filter(price__in=[1, 2], title__startswith="a 100% 'red'")
    assert list(cheap.order_by(near)) == []


def test_what_a_statement_asks_is_one_call_of_the_encoder_outside_its_transaction(
    filled: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[list[str], psycopg.pq.TransactionStatus]] = []
    encode = LiteEncoder.encode_text

    def counted(self: LiteEncoder, texts: Any, **options: Any) -> Any:  # noqa: ANN401
        calls.append((list(texts), connection.connection.info.transaction_status))
        return encode(self, texts, **options)

    monkeypatch.setattr(LiteEncoder, "encode_text", counted)
    one, other = Distance("embedding", Text("a dog")), Distance("embedding", Text("a shoe"))
    with transaction.atomic():
        list(Product.objects.annotate(one=one, other=other, both=one + other).order_by("one", "other"))
    assert calls == [(["a dog", "a shoe"], psycopg.pq.TransactionStatus.IDLE)]


def test_a_filtered_search_does_not_come_back_short(django: str) -> None:
    create(Brand, Product)
    Product.objects.bulk_create(Product(title=f"a red shoe, number {n}", price=n) for n in range(300))
    Product.objects.bulk_create(Product(title=f"a bowl of fruit, number {n}", price=-n) for n in range(1, 6))
    drain()
    query = Text("a red shoe")
    with connection.cursor() as cursor:
        cursor.execute("SET enable_seqscan = off; SET enable_sort = off")
    matching = Product.objects.filter(price__lt=0)
    assert len(matching.order_by(Distance("embedding", query))[:5]) < 5, "the index alone would have done"
    found = list(matching.search(query, 5))
    with pgembed.connect(django) as db:
        assert titles(found) == titles(db.search("product", query, where="price < 0", limit=5))
    assert len(found) == 5
    assert titles(matching.search(query, 5)[1:3]) == titles(found)[1:3]
    assert len(Product.objects.search(query, 100)) == 100
    assert len(matching.search(query, 50)) == 5
    assert list(matching.search(query, 5).values_list("price", flat=True)) == [row.price for row in found]
    far = Product.objects.annotate(far=Distance("embedding", Text("a cat"))).filter(far__gt=0.1, price__lt=0)
    assert [row.far > 0.1 for row in far.search(query, 5)] == [True] * 5
    percent = Product.objects.filter(title__contains="100% 'of' it; -- /*")
    assert list(percent.search(query)) == []


def test_the_compiled_statement_is_kept_for_other_queries_of_the_same_shape(filled: str) -> None:
    product = Product.objects.get(title="a cat")
    product.brand = Brand.objects.create(name="Acme")
    product.save()
    statements = apps.get_app_config("pgembed").statements
    kept: set[int] = set()
    for query in (Text("a red shoe"), Text("a cat"), Text("a blue shoe")):
        assert Product.objects.search(query, 2)[0].title == query.text
        assert Product.objects.search(query, 2).values_list("title", flat=True)[0] == query.text
        (score,) = Product.objects.search(query, 1).values_list("score", flat=True)
        assert score == pytest.approx(1, abs=1e-6)
        (row,) = Product.objects.search(query, 1).annotate(double=F("price") * 2).values("title", "double")
        assert row["title"] == query.text
        assert row["double"] == 2 * Product.objects.get(title=query.text).price
        assert Product.objects.search(query, 1, score="near").defer("embedding").get().near == pytest.approx(
            1, abs=1e-6
        )
        assert Product.objects.filter(brand__name="Acme").search(query).get().title == "a cat"
        found = Product.objects.distinct().search(query, 1).select_related("brand")
        assert titles(found) == [query.text]
        assert Product.objects.search(query, 1, exact=True).get().title == query.text
        assert set(titles(Product.objects.filter(pk__in=Product.objects.search(query, 1).values("pk")))) == {query.text}
        kept.add(len(statements))
    assert len(kept) == 1
    assert kept != {0}
    assert "a red shoe" not in repr([vars(one) for one in statements.values()])


def test_a_wrapper_of_the_application_goes_as_it_came(filled: str) -> None:
    seen: list[str] = []

    def wrapper(execute: Any, statement: str, *rest: Any) -> Any:  # noqa: ANN401
        seen.append(statement)
        return execute(statement, *rest)

    connection.close()
    del connections["default"]
    with connection.execute_wrapper(wrapper):
        assert Product.objects.search(Text("a cat")).first().title == "a cat"
    assert any("<=>" in statement for statement in seen)
    seen.clear()
    assert Product.objects.search(Text("a dog")).first().title == "a dog"
    assert seen == []


def test_parameters_that_the_server_binds(filled: str, monkeypatch: pytest.MonkeyPatch) -> None:
    connection.close()
    monkeypatch.setitem(connection.settings_dict, "OPTIONS", {"server_side_binding": True})
    found = Product.objects.filter(price__gt=1, title__contains="shoe").search(Text("a red shoe"))
    assert titles(found) == ["a blue shoe"]
    assert Product.objects.search(Text("a cat"))[0].title == "a cat"
    connection.close()


def test_the_vector_index_is_used(filled: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SET enable_seqscan = off; SET enable_sort = off")
    assert "product_near" in Product.objects.search(Text("a dog"), 3).explain()
    assert "product_near" not in Product.objects.search(Text("a dog"), 3, exact=True).explain()


def test_no_write_touches_the_vector(filled: str) -> None:
    product = Product.objects.get(title="a dog")
    stored = product.embedding
    product.embedding = [1.0] * 256
    product.price = 9
    with CaptureQueriesContext(connection) as sent:
        product.save()
        product.save(update_fields=["price"])
        Product.objects.bulk_update([product], ["price", "embedding"])
        Product.objects.filter(pk=product.pk).update(price=F("price") + 1, embedding=None)
        made, _ = Product.objects.get_or_create(title="a tree", defaults={"embedding": [1.0] * 256})
        Product.objects.update_or_create(pk=made.pk, defaults={"title": "an oak"}, create_defaults={})
        Product.objects.bulk_create(
            [Product(pk=product.pk, title="a dog", price=1)],
            update_conflicts=True, unique_fields=["id"], update_fields=["price"],
        )  # fmt: skip
    assert not any('"embedding" =' in one["sql"] for one in sent.captured_queries)
    product.refresh_from_db()
    assert np.allclose(product.embedding, stored)
    assert product.price == 1
    assert made.embedding == [1.0] * 256  # as it was put; what is stored is None
    assert Product.objects.get(pk=made.pk).embedding is None
    assert drain().written == 1
    made.refresh_from_db(fields=["embedding"])
    assert len(made.embedding) == 256


def test_what_an_instance_reads(filled: str) -> None:
    product = Product(title="a dog")
    assert product.embedding is None
    product.full_clean()
    with pytest.raises(ValidationError, match="product_cheap"):
        Product(title="a palace", price=9000).full_clean()
    product.save()
    assert product.embedding is None
    with CaptureQueriesContext(connection) as sent:
        deferred = Product.objects.defer("embedding").get(title="a cat")
        assert "embedding" not in sent.captured_queries[0]["sql"]
        assert len(deferred.embedding) == 256
        deferred.save()
    assert len(sent) == 3
    (plain,) = json.loads(serializers.serialize("json", [deferred]))
    assert "embedding" not in plain["fields"]


def test_a_vector_in_a_table_beside_and_a_key_of_two_columns(django: str) -> None:
    create(Note)
    Note.objects.bulk_create(Note(book="b", page=n, body=title) for n, title in enumerate(TITLES))
    drain()
    query = Text("a red shoe")
    assert [note.body for note in Note.objects.search(query, 2)] == ["a red shoe", "a blue shoe"]
    assert [note.body for note in Note.objects.filter(page__gt=1).search(query, 1)] == ["a blue shoe"]
    near = Note.objects.annotate(near=Distance("beside", query)).order_by("near")
    assert [note.body for note in near[:2]] == ["a red shoe", "a blue shoe"]
    note = Note.objects.get(page=0)
    note.body = "a red shoe"
    note.save()
    drain()
    assert {note.page for note in Note.objects.search(query, 2)} == {0, 1}


def test_abstract_models_and_inheritance(django: str) -> None:
    create(Place, Harbour)
    Harbour.objects.create(title="the harbour at night", depth=9)
    Place.objects.create(title="a castle")
    assert drain().written == 2
    assert titles(Place.objects.search(Text("ships"), 1)) == ["the harbour at night"]
    assert titles(Harbour.objects.search(Text("a castle"), 3)) == ["the harbour at night"]
    assert titles(Harbour.objects.filter(depth__gt=3).search(Text("a castle"), 3)) == ["the harbour at night"]
    with connection.cursor() as cursor:
        cursor.execute("SELECT table_name FROM pgembed.embedding")
        assert cursor.fetchall() == [("tests_place",)]


def test_asynchronous_code(filled: str) -> None:
    async def search() -> tuple[list[str], list[str], Any]:
        try:
            found = [row.title async for row in Product.objects.search(Text("a red shoe"), 2)]
            listed = titles(await Product.objects.filter(price__gt=1).asearch(Text("a red shoe"), 1))
            return found, listed, await Product.objects.search(Text("a cat")).afirst()
        finally:
            await sync_to_async(connections.close_all)()

    found, listed, first = asyncio.run(search())
    assert (found, listed, first.title) == (["a red shoe", "a blue shoe"], ["a blue shoe"], "a cat")


def test_bad_input(filled: str) -> None:
    with pytest.raises(InvalidQuery, match="Text"):
        Product.objects.order_by(Distance("embedding", "a dog"))
    with pytest.raises(InvalidQuery, match="is None"):
        Distance("embedding", None)
    with pytest.raises(InvalidQuery, match="not 0"):
        Product.objects.search(Text("a dog"), 0)
    with pytest.raises(InvalidQuery, match=r"no embedding 'vector'\. It has: embedding"):
        Product.objects.search(Text("a dog"), embedding="vector")
    with pytest.raises(InvalidQuery, match="is no vector"):
        list(Product.objects.order_by(Distance("title", Text("a dog"))))
    with pytest.raises(InvalidQuery, match="holds vectors of 'lite'"):
        list(Product.objects.search(Vector([1.0], space="other")))
    with pytest.raises(MediaError, match=r"nowhere\.png"):
        list(Product.objects.search(Image("nowhere.png")))
    Product.objects.get(title="a dog")  # the connection goes on


def test_checks_tell_what_is_wrong() -> None:
    def told(given: type[models.Model], *databases: str) -> dict[str | None, str]:
        return {one.id: one.msg for one in check_model(given, databases)}

    assert told(Product, "default") == {}
    assert told(Product, "plain") == {"pgembed.E005": "Database 'plain' is SQLite, and embeddings need Postgres."}
    with isolate_apps("tests.integration"):

        class Wrong(models.Model):
            title = models.TextField()
            shown = models.GeneratedField(expression=F("title"), output_field=models.TextField(), db_persist=True)
            one = EmbeddingField(encoder="none", text="{titel}", db_column="two")
            two = EmbeddingField(encoder="lite", text="{shown}", mode="instant", db_column="two")

            class Meta:
                app_label = "tests"

        found = told(Wrong)
        assert set(found) == {"pgembed.E002", "pgembed.E003", "pgembed.E004", "pgembed.E006"}
        assert "which has: lite" in found["pgembed.E002"]
        assert "'titel' is no field of tests.Wrong" in found["pgembed.E003"]

        class Child(Place):
            deep = EmbeddingField(encoder="lite", text="{title}")

            class Meta:
                app_label = "tests"

        assert "of a table that it inherits from" in told(Child)["pgembed.E003"]
    with modify_settings(INSTALLED_APPS={"remove": "pgembed.django"}):
        assert [one.id for one in Product._meta.get_field("embedding").check()] == ["pgembed.E001"]
    with override_settings(PGEMBED={"encoder": {}}):
        assert "no option 'encoder'" in told(Product)["pgembed.E002"]


def test_several_databases(filled: str, full_or_other: str) -> None:
    with django_project.database_of(full_or_other, "other"):
        create(Brand, Product, alias="other")
        Product.objects.using("other").create(title="a castle")
        assert drain("other").written == 1
        assert drain().written == 0
        assert titles(Product.objects.using("other").search(Text("a red shoe"))) == ["a castle"]
        assert titles(Product.objects.search(Text("a castle"), 1)) != ["a castle"]
        with override_settings(
            PGEMBED={"encoders": {}, "databases": {"other": {"encoders": {"lite": "builtin:lite"}}}}
        ):
            assert [one.id for one in check_model(Product, ())] == ["pgembed.E002"]


@pytest.fixture
def full_or_other(server_dsn: str, template: str) -> Iterator[str]:
    """A second database."""
    from tests.conftest import new_database

    yield from new_database(server_dsn, template)


class Kept(TestCase):
    __test__ = False  # as far as pytest is concerned

    def test_rows_are_searched_in_the_transaction_of_the_test(self) -> None:
        Product.objects.create(title="a castle")
        assert drain().written == 1
        assert titles(Product.objects.search(Text("a castle"), 1)) == ["a castle"]

    def test_and_are_gone_with_it(self) -> None:
        assert Product.objects.count() == 0
        assert drain().written == 0
        Product.objects.create(title="a tree")


class Flushed(TransactionTestCase):
    __test__ = False

    def test_rows_that_are_committed(self) -> None:
        Product.objects.create(title="a castle")
        assert drain().written == 1
        Product.objects.create(title="a tree")  # waits as the table is emptied


def test_migrate_installs_pgembed_and_djangos_own_tests_drain_the_queue(bare_dsn: str) -> None:
    with django_project.database_of(bare_dsn):
        call_command("migrate", verbosity=0, run_syncdb=True)
        call_command("migrate", verbosity=0, run_syncdb=True)
        told = io.StringIO()
        for case in (Kept, Flushed):
            result = unittest.TextTestRunner(told).run(unittest.defaultTestLoader.loadTestsFromTestCase(case))
            assert result.wasSuccessful(), told.getvalue()
            assert Product.objects.count() == 0
        drain()  # takes the row off the queue that was emptied away
        assert drain() == Summary(0, 0)


def test_drain_tells_failures_and_leaves_the_connection_as_it_was(django: str) -> None:
    class Picture(models.Model):
        photo = models.BinaryField()
        embedding = EmbeddingField(encoder="lite", image="photo")

        class Meta:
            app_label = "tests"

    create(Picture)
    Picture.objects.create(photo=b"no picture")
    shown = "SELECT name, setting FROM pg_settings ORDER BY 1"
    with connection.cursor() as cursor:
        cursor.execute(shown)
        before = cursor.fetchall()
        with transaction.atomic():
            assert drain().failed == 1
            transaction.set_rollback(True)
        summary = drain("default", "tests_picture")
        assert (summary.written, summary.failed) == (0, 1)
        cursor.execute(shown)
        assert cursor.fetchall() == before
    with pytest.raises(Exception, match="no embedding 'nothing'"):
        drain("default", "nothing")


def test_pictures_in_files_below_the_media_root(django: str, tmp_path: Path) -> None:
    class Photo(models.Model):
        file = models.FileField()
        embedding = EmbeddingField(encoder="lite", image={"column": "file", "as": "path"})
        objects = EmbeddingManager()

        class Meta:
            app_label = "tests"

    create(Photo)
    pictures = Path(pgembed.__file__).parent / "demo" / "data" / "noto"
    for name in ("fox.png", "pizza.png"):
        shutil.copy(pictures / name, tmp_path / name)
        Photo.objects.create(file=name)
    with override_settings(PGEMBED={"encoders": {"lite": "builtin:lite"}, "media": MediaPolicy(media_root=tmp_path)}):
        assert drain() == Summary(2, 0)
    assert Photo.objects.search(Image(pictures / "pizza.png"), 1).get().file.name == "pizza.png"
    assert [photo.file.name for photo in Photo.objects.search(Text("a fox"), 1)] == ["fox.png"]


def test_commands_work_and_tell(filled: str) -> None:
    Product.objects.create(title="a castle")
    told = io.StringIO()
    call_command("embed_status", "--json", stdout=told)
    (row,) = json.loads(told.getvalue())
    assert (row["table_name"], row["rows"], row["ready"], row["queued"]) == ("product", 7, 6, 1)
    told = io.StringIO()
    call_command("embed_worker", "--until-idle", stdout=told)
    assert "public.product.embedding: 1 written" in told.getvalue()
    assert "1 rows encoded" in told.getvalue()
    told = io.StringIO()
    call_command("embed_status", "product", stdout=told)
    assert told.getvalue().splitlines()[1].split() == ["public.product.embedding", "7", "7", "0", "0", "ready"]
    with pytest.raises(Exception, match="no embedding 'nothing'"):
        call_command("embed_worker", "--once", "--embedding", "nothing")


class ProductAdmin(EmbeddingAdmin, admin.ModelAdmin):
    list_display = ("title",)


def test_the_admin_searches_and_shows_the_status(filled: str) -> None:
    from django.contrib.auth.models import User

    site = ProductAdmin(Product, admin.AdminSite())
    Product.objects.create(title="a castle")

    def get(**asked: str) -> str:
        request = RequestFactory().get("/", asked)
        request.user = User(is_superuser=True, is_active=True, is_staff=True)  # pyright: ignore[reportAttributeAccessIssue]
        view = site.changelist_view(request)
        request.resolver_match = None
        return [row.title for row in view.context_data["cl"].result_list], view

    listed, view = get(q="a red shoe")
    assert listed[:2] == ["a red shoe", "a blue shoe"]
    (status,) = view.context_data["embeddings"]
    assert (status.rows, status.ready, status.queued) == (7, 6, 1)
    assert len(get()[0]) == 7
    assert site.get_search_fields(RequestFactory().get("/")) == ["embedding"]
    request = RequestFactory().post("/")
    assert site.get_search_results(request, Product.objects.all(), "a shoe")[0].count() == 7


def test_pgembed_that_is_missing_is_told(bare_dsn: str) -> None:
    with django_project.database_of(bare_dsn):
        with pytest.raises(CatalogError, match="pgembed is not installed"):
            create(Brand, Product)
        with pytest.raises(CatalogError, match="pgembed is not installed"):
            drain()
