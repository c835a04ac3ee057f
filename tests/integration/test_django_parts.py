"""Models of Django whose rows have many vectors, one for each part: made, searched, checked and migrated."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests import django_project

django_project.set_up()

from django.db import connections, models  # noqa: E402
from django.test.utils import isolate_apps  # noqa: E402

import pgembed  # noqa: E402
from pgembed import Text  # noqa: E402
from pgembed.django import Distance, EmbeddingField, EmbeddingManager, Score  # noqa: E402
from pgembed.django.checks import check_model  # noqa: E402
from pgembed.django.testing import drain  # noqa: E402
from pgembed.errors import InvalidInput  # noqa: E402
from tests.integration.test_parts import OTHER, STORY  # noqa: E402
from tests.integration.test_parts import lines as lines  # noqa: E402
from tests.migration.test_django_migrations import Project  # noqa: E402
from tests.migration.test_django_migrations import project as project  # noqa: E402

VIOLIN = Text("a violin")
BODIES = [STORY, OTHER, None, "a violin\na violin in a case\na violin and a bow", "the harbour at night"]


class Story(models.Model):
    body = models.TextField(null=True)
    price = models.IntegerField(default=0)
    passages = EmbeddingField(encoder="lite", text="body", parts="lines")
    objects = EmbeddingManager()

    class Meta:
        app_label = "tests"
        db_table = "story"


@pytest.fixture
def filled(database_dsn: str) -> Iterator[str]:
    with django_project.database_of(database_dsn):
        with connections["default"].schema_editor() as editor:
            editor.create_model(Story)
        Story.objects.bulk_create(Story(body=body, price=n) for n, body in enumerate(BODIES, start=1))
        drain()
        yield database_dsn


def test_a_search_gives_each_row_once_as_the_client_does(filled: str) -> None:
    found = list(Story.objects.search(VIOLIN, 4))
    with pgembed.connect(filled) as db:
        expected = db.search("story", VIOLIN, limit=4)
    assert [story.pk for story in found] == [row.id for row in expected]
    assert [story.pk for story in found][:2] == [4, 1]
    assert [story.score for story in found] == pytest.approx([row.score for row in expected], abs=1e-6)
    assert [story.pk for story in Story.objects.search(VIOLIN, 2, exact=True)] == [4, 1]
    assert [story.pk for story in Story.objects.filter(price__lt=4).search(VIOLIN, 1)] == [1]
    assert next(story.pk for story in Story.objects.search(VIOLIN, 2).filter(price__lt=4)) == 1
    assert Story.objects.search(VIOLIN, 3).count() == 3


def test_rows_are_as_far_as_their_nearest_part(filled: str) -> None:
    near = Distance("passages", VIOLIN)
    by_distance = Story.objects.annotate(far=near, score=Score("passages", VIOLIN)).order_by("far", "pk")
    found = {story.pk: (story.far, story.score) for story in by_distance}
    assert [*found][:2] == [4, 1]
    assert found[3] == (None, None)
    with connections["default"].cursor() as cursor:
        cursor.execute(
            "SELECT id, min(vector <=> pgembed.encode_text('lite', 'a violin')) FROM story_passages GROUP BY id"
        )
        by_hand = dict(cursor.fetchall())
    assert {pk: far for pk, (far, _) in found.items() if pk != 3} == pytest.approx(by_hand, abs=1e-6)
    assert found[4] == pytest.approx((0, 1), abs=1e-6)
    assert [*Story.objects.alias(far=near).filter(far__lt=0.01).values_list("pk", flat=True)] == [4]


def test_the_field_is_written_into_migrations(filled: str) -> None:
    options = {"kind": "lines", "size": 3}
    for given, written in (("lines", "lines"), (options, '{"kind": "lines", "size": 3}'), ({"kind": "lines"}, "lines")):
        field = EmbeddingField(encoder="lite", text="body", parts=given)
        kept = field.deconstruct()[3]
        assert kept == {"encoder": "lite", "text": "body", "parts": written}
        assert EmbeddingField(**kept).declared == field.declared
    with pytest.raises(InvalidInput, match="parts is the name of a splitter, or a mapping with its kind, not 3"):
        EmbeddingField(encoder="lite", text="body", parts=3)  # pyright: ignore[reportArgumentType]


WHOLE = """
class Story(models.Model):
    body = models.TextField(null=True)
    passages = EmbeddingField(encoder="lite", text="body", storage="side")
    class Meta(Shop):
        db_table = "story"
"""
PARTS = WHOLE.replace('storage="side"', 'parts="lines"')


def test_changed_parts_are_a_change_and_unchanged_ones_none(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGEMBED_ALLOW_DROP", "1")

    def standing() -> tuple[Any, ...]:
        return project.one("SELECT parts ->> 'kind', storage FROM pgembed.embedding")

    assert project.models(WHOLE).migrate() == ["CreateModel"]
    project.one("INSERT INTO story (body) VALUES (E'a dog\\na violin') RETURNING id")
    assert project.work() == 1
    assert standing() == (None, "side")
    assert project.models(PARTS).migrate() == ["AlterField"]
    assert standing() == ("lines", "side")
    assert project.models(PARTS.replace('"lines"', '{"kind": "lines"}')).makemigrations() is None
    assert project.work() == 1
    assert project.one("SELECT count(*) FROM story_passages") == (2,)
    migration = project.models(PARTS.replace('"lines"', '{"kind": "lines", "size": 3}')).makemigrations()
    assert migration is not None
    assert """"parts" => '{"kind": "lines", "size": 3}'""" in project.script(migration)
    project.back()
    assert standing() == (None, "side")


@isolate_apps("tests")
def test_checks_tell_what_cannot_be_taken_apart() -> None:
    class Shop:
        app_label = "tests"

    class Wrong(models.Model):
        body = models.TextField()
        photo = models.BinaryField()
        unknown = EmbeddingField(encoder="lite", text="body", parts="verses")
        options = EmbeddingField(encoder="lite", text="body", parts={"kind": "lines", "size": 3})
        both = EmbeddingField(encoder="lite", text="body", image="photo", parts="lines")
        instant = EmbeddingField(encoder="lite", text="body", parts="lines", mode="instant")
        right = EmbeddingField(encoder="lite", text="body", parts="lines")

        class Meta(Shop):
            pass

    found = {error.obj.name: (error.id, error.msg) for error in check_model(Wrong, ())}
    assert found == {
        "unknown": ("pgembed.E007", "There is no splitter 'verses'."),
        "options": ("pgembed.E007", "lines has no option 'size'."),
        "both": ("pgembed.E007", "parts takes one input apart, and there are 2: image, text."),
        "instant": ("pgembed.E007", "mode='instant' encodes in Postgres, which takes no input apart."),
    }
