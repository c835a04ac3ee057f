"""For tests: what a worker does, in the transaction of the test."""

from __future__ import annotations

from typing import Any

from django.db import DEFAULT_DB_ALIAS, connections

from pgembed.django import settings
from pgembed.django.apps import app
from pgembed.django.running import OwnRawCursor, begin, own_cursors
from pgembed.told import in_own_words
from pgembed.worker import Summary, work_inline


def drain(using: str = DEFAULT_DB_ALIAS, *embeddings: str, **options: Any) -> Summary:  # noqa: ANN401
    """Encode all rows that wait, and tell how many were ``written`` and ``failed``.

    It works on the connection of the test, so that a TestCase sees the vectors of its rows, and its end takes all back.
    ``embeddings`` names tables or table.target, ``options`` are those of WorkerOptions. What may be read and loaded is
    as PGEMBED says. Raises what keeps an encoder from working.
    """
    chosen = settings.worker_options(using, embeddings=embeddings, **{"decode_in": "threads", **options})
    with own_cursors(connections[using], OwnRawCursor) as raw, in_own_words():
        begin(raw)
        return work_inline(raw, chosen, app().loaded)
