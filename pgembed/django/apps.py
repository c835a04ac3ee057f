"""The app: has schema editors know embeddings, installs pgembed before migrations run, and keeps the searchers."""

from __future__ import annotations

import threading
from collections.abc import Hashable
from typing import Any, cast

from django.apps import AppConfig, apps
from django.core import checks
from django.db import connections, router
from django.db.models.signals import pre_migrate
from django.db.utils import load_backend

from pgembed import schema
from pgembed.django import settings
from pgembed.django.checks import check_embeddings
from pgembed.django.fields import embeddings_of
from pgembed.django.running import begin, own_cursors
from pgembed.django.schema_editor import extend
from pgembed.searching import Searcher
from pgembed.told import in_own_words
from pgembed.worker.inline import Loaded


class PgembedConfig(AppConfig):
    """``pgembed.django`` in INSTALLED_APPS."""

    name = "pgembed.django"
    label = "pgembed"
    verbose_name = "pgembed"

    def __init__(self, *args: Any) -> None:  # noqa: ANN401
        super().__init__(*args)
        self._searchers: dict[str, Searcher] = {}
        self.loaded: Loaded = {}  # encoders of tests
        self.statements: dict[Hashable, Any] = {}  # of searches, as compiling.py has them
        self._lock = threading.Lock()

    def ready(self) -> None:
        for engine in {database["ENGINE"] for database in connections.settings.values()}:
            wrapper: Any = load_backend(engine).DatabaseWrapper
            if wrapper.vendor == "postgresql":
                wrapper.SchemaEditorClass = extend(wrapper.SchemaEditorClass)
        pre_migrate.connect(install_before, sender=self)
        checks.register(check_embeddings, checks.Tags.models)

    def searcher(self, alias: str) -> Searcher:
        """What looks up embeddings of a database and encodes queries to them; models are loaded once a process."""
        with self._lock:
            if alias not in self._searchers:
                self._searchers[alias] = Searcher(settings.media(alias), settings.load(alias))
            return self._searchers[alias]

    def forget(self) -> None:
        """Look all up anew, as after the databases of the settings were others."""
        with self._lock:
            self._searchers.clear()
            self.loaded.clear()
            self.statements.clear()


def app() -> PgembedConfig:
    """The app, which must be among INSTALLED_APPS."""
    return cast(PgembedConfig, apps.get_app_config("pgembed"))


def searcher(alias: str) -> Searcher:
    """The searcher of a database."""
    return app().searcher(alias)


def install_before(using: str, **_told: Any) -> None:  # noqa: ANN401
    """Install pgembed, or upgrade it, where models with embeddings may be migrated to a database."""
    connection = connections[using]
    wanted = connection.vendor == "postgresql" and settings.installs(using)
    if wanted and any(embeddings_of(model) and router.allow_migrate_model(using, model) for model in apps.get_models()):
        with own_cursors(connection) as raw, in_own_words():
            found = schema.versions(raw)
            if (found.schema, found.code) != (schema.head(), found.library):
                begin(raw)
                schema.install(raw)
