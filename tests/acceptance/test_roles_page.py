"""docs/roles.md and the commands grant and revoke, as a person would type them."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from tests.command_line import Cli

PAGE = (Path(__file__).parents[2] / "docs/roles.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NAMES = ("shop_owner", "shop_worker", "shop_app", "shop_web")


@pytest.fixture
def own_names(server_dsn: str) -> Iterator[dict[str, str]]:
    """The roles of the page under names of this run; made before the test's database, and dropped after it."""
    names = {name: f"{name}_{os.getpid()}" for name in NAMES}
    with psycopg.connect(server_dsn, autocommit=True) as admin:
        for name in names.values():
            admin.execute(f"CREATE ROLE {name} LOGIN".encode())
        yield names
        for name in names.values():
            admin.execute(f"DROP ROLE {name}".encode())


def test_what_the_page_says_runs(own_names: dict[str, str], database: psycopg.Connection, database_dsn: str) -> None:
    cli = Cli(database_dsn)
    database.execute("CREATE TABLE product (id integer PRIMARY KEY, title text)")
    cli("encoder", "add", "lite", "builtin:lite")
    cli("attach", "product", "embedding", "--encoder", "lite", "--text", "title")
    ran = 0
    for kind, block in BLOCK.findall(PAGE):
        text = re.sub("|".join(NAMES), lambda found: own_names[found[0]], block)
        for line in text.splitlines():
            ran += 1
            if kind == "sql":
                assert database.execute(line.encode()).fetchall() == [], line
            else:
                assert "has what" in (said := cli(*shlex.split(line)[1:])) or "any more" in said
    assert ran == 9
    owner = "SELECT pg_get_userbyid(nspowner) FROM pg_namespace WHERE nspname = 'pgembed'"
    assert database.execute(owner.encode()).fetchone() == (own_names["shop_owner"],)


def test_what_is_left_to_others_is_printed(
    own_names: dict[str, str], database: psycopg.Connection, database_dsn: str
) -> None:
    cli = Cli(database_dsn)
    database.execute("CREATE TABLE product (id integer PRIMARY KEY, title text)")
    cli("encoder", "add", "lite", "builtin:lite")
    cli("attach", "product", "embedding", "--encoder", "lite", "--text", "title")
    assert json.loads(cli("grant", "owner", own_names["shop_owner"], "--json")) == {
        "action": "grant",
        "kind": "owner",
        "role": own_names["shop_owner"],
        "left": [],
    }
    theirs = Cli(make_conninfo(database_dsn, user=own_names["shop_owner"]))
    worker = own_names["shop_worker"]
    done = theirs.run("grant", "worker", worker)
    assert done.returncode == 1
    grant = f"GRANT SELECT (id, title, embedding), UPDATE (embedding) ON public.product TO {worker};"
    assert done.stdout.splitlines() == ["This is left for others to run:", f"  {grant}  -- as {database.info.user}"]
    database.execute(grant.encode())
    assert theirs("grant", "worker", worker) == f"Role {worker} has what a worker needs.\n"
    done = theirs.run("revoke", "worker", worker, "--json")
    (left,) = json.loads(done.stdout)["left"]
    assert left["statement"].startswith("REVOKE SELECT (id, title, embedding), UPDATE (embedding) ON public.product")


def test_a_wrong_kind_and_a_role_that_is_not_there(database_dsn: str) -> None:
    cli = Cli(database_dsn)
    assert "'admin' is not one of 'owner', 'worker', 'writer', 'reader'" in cli("grant", "admin", "x", fails=2)
    said = cli("grant", "reader", "nobody at all", fails=1)
    assert "There is no role 'nobody at all'." in said
