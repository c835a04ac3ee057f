"""Migrations of Django that are killed with -9 or lose their session at any step: all is as before or as after."""

from __future__ import annotations

from typing import Any

import pytest

from tests import django_project

django_project.set_up()

from django.db.migrations import Migration  # noqa: E402
from django.db.migrations.recorder import MigrationRecorder  # noqa: E402
from django.db.migrations.state import ProjectState  # noqa: E402

from tests.conftest import Connection  # noqa: E402
from tests.fakes import until  # noqa: E402
from tests.migration.test_django_migrations import EMBEDDED, PRODUCT, Project  # noqa: E402
from tests.migration.test_interrupted import ALONE, STANDING, WAYS, faults, in_child, steps, watched  # noqa: E402

INDEXED = EMBEDDED + '        indexes = [EmbeddingIndex(fields=["embedding"], name="product_near")]\n'


def run(connection: Any, migration: Migration, state: ProjectState, *, back: bool = False) -> None:  # noqa: ANN401
    """Run a migration and record it, as ``manage.py migrate`` does: in one transaction."""
    recorder = MigrationRecorder(connection)
    with connection.schema_editor(atomic=migration.atomic) as editor:
        if back:
            migration.unapply(state.clone(), editor)
            recorder.record_unapplied("shop", migration.name)
        else:
            migration.apply(state.clone(), editor)
            recorder.record_applied("shop", migration.name)


def there(conn: Connection) -> tuple[object, ...]:
    """The embeddings with their triggers, the valid and the other vector indexes, encoders, and migrations recorded."""
    ((standing,),) = conn.execute(STANDING).fetchall()
    indexes = "SELECT indisvalid FROM pg_index WHERE pg_get_indexdef(indexrelid) LIKE '%hnsw%'"
    return (
        standing,
        [valid for (valid,) in conn.execute(indexes).fetchall()],
        [name for (name,) in conn.execute("SELECT name FROM pgembed.encoder").fetchall()],
        [name for (name,) in conn.execute("SELECT name FROM django_migrations ORDER BY id").fetchall()],
    )


@pytest.mark.parametrize("way", ["up", "down"])
def test_a_migration_that_is_broken_off_leaves_all_as_before_or_as_after(
    way: str, server_dsn: str, template: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGEMBED_ALLOW_DROP", "1")

    def begun(dsn: str, connection: Any) -> tuple[Migration, ProjectState]:  # noqa: ANN401
        """A database in which the migration is to be run, or unrun; its connection is closed, for a child is forked."""
        MigrationRecorder(connection).ensure_schema()
        project = Project(dsn, connection)
        project.models(PRODUCT).migrate()
        migration = project.models(INDEXED).makemigrations()
        assert migration is not None
        assert [type(one).__name__ for one in migration.operations] == ["AddField", "AddIndex"]
        if way == "down":
            run(connection, migration, project.state)
        connection.close()
        return migration, project.state

    with watched(server_dsn, template) as (dsn, conn), django_project.database_of(dsn) as connection:
        migration, state = begun(dsn, connection)
        before = there(conn)
        code, words = in_child(lambda: run(connection, migration, state, back=way == "down"), dsn)
        assert code == 0
        after = there(conn)
    attached = (["embedding 2"], [True], ["lite"], [migration.name])
    unattached = (None, [], before[2], [])
    assert (before, after[:2]) == ((unattached, attached[:2]) if way == "up" else (attached, unattached[:2]))

    seen: list[bool] = []
    for number, at in enumerate(steps(words, 9)):
        with watched(server_dsn, template) as (dsn, conn), django_project.database_of(dsn) as connection:
            migration, state = begun(dsn, connection)

            def act(connection: Any = connection, migration: Any = migration, state: Any = state) -> None:  # noqa: ANN401
                run(connection, migration, state, back=way == "down")

            in_child(act, dsn, WAYS[number % 2], at)
            until(lambda conn=conn: conn.execute(ALONE).fetchone() == (0,))
            assert there(conn) in (before, after), at
            assert faults(conn) == []
            seen.append(there(conn) == after)
            if not seen[-1]:
                act()
            assert there(conn) == after, at
    assert seen == sorted(seen)  # what is not committed is not there
    assert not seen[0]
