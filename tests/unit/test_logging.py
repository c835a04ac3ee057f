"""Logs of commands that run inside another program."""

from __future__ import annotations

import io
import json

import pytest
import structlog

from pgembed.cli.work import configure_logging


def test_logs_go_to_the_standard_error_of_the_moment(monkeypatch: pytest.MonkeyPatch):
    with io.StringIO() as first, monkeypatch.context() as patched:
        patched.setattr("sys.stderr", first)
        configure_logging()
        log = structlog.get_logger("pgembed.worker")
        log.info("one")
        assert json.loads(first.getvalue())["event"] == "one"
    second = io.StringIO()
    monkeypatch.setattr("sys.stderr", second)
    log.info("two")
    assert json.loads(second.getvalue())["event"] == "two"
