"""Django in this process: its settings, which a process has once, and databases of tests in the place of those."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import django
from django.apps import AppConfig, apps
from django.conf import settings
from django.db import connections
from psycopg.conninfo import conninfo_to_dict


class TestsConfig(AppConfig):
    """The app of the models that tests declare."""

    name = "tests.django_project"
    label = "tests"

    def import_models(self) -> None:
        super().import_models()
        self.models_module = self.module  # that there is one has its tables made without migrations


def set_up() -> None:
    """Configure Django, once."""
    if settings.configured:
        return
    settings.configure(
        INSTALLED_APPS=[
            "django.contrib.contenttypes",
            "django.contrib.auth",
            "django.contrib.messages",
            "django.contrib.admin",
            "pgembed.django",
            "tests.django_project.TestsConfig",
        ],
        DATABASES={
            "default": {"ENGINE": "django.db.backends.postgresql", "NAME": "none"},
            "other": {"ENGINE": "django.db.backends.postgresql", "NAME": "none"},
            "plain": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"},
        },
        PGEMBED={"encoders": {"lite": "builtin:lite"}},
        DATABASE_ROUTERS=[],
        DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
        SECRET_KEY="tests",
        ROOT_URLCONF="tests.django_project",
        USE_TZ=True,
        TEMPLATES=[
            {
                "BACKEND": "django.template.backends.django.DjangoTemplates",
                "APP_DIRS": True,
                "OPTIONS": {
                    "context_processors": [
                        "django.template.context_processors.request",
                        "django.contrib.auth.context_processors.auth",
                        "django.contrib.messages.context_processors.messages",
                    ]
                },
            }
        ],
    )
    django.setup()


urlpatterns: list[Any] = []


@contextmanager
def database_of(dsn: str, alias: str = "default") -> Iterator[Any]:
    """A connection of an alias to this database, for as long as the block."""
    parts = conninfo_to_dict(dsn)
    settings_of_alias = connections.settings[alias]
    before = dict(settings_of_alias)
    settings_of_alias.update(
        NAME=parts["dbname"], USER=parts["user"], HOST=parts["host"], PORT=str(parts["port"]),
        PASSWORD=parts.get("password") or "",
    )  # fmt: skip
    apps.get_app_config("pgembed").forget()
    try:
        yield connections[alias]
    finally:
        connections[alias].close()
        del connections[alias]
        settings_of_alias.update(before)
