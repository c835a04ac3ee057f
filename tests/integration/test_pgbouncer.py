"""PgBouncer in transaction mode stands between: all but workers go through it, and these say so."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

import pgembed
from pgembed import Text
from pgembed.errors import InvalidInput
from pgembed.worker import Worker, WorkerOptions
from tests.conftest import NO_POOLER, cannot_be_had
from tests.fakes import Connection
from tests.full_server import FullServer, NotAvailable
from tests.pgbouncer import pgbouncer
from tests.roles import KINDS, Shop, open_shop, role_of

pytestmark = pytest.mark.full_server

SETTINGS = (
    "SELECT current_setting('enable_seqscan'), current_setting('row_security'), current_setting('role'),"
    " coalesce(current_setting('hnsw.ef_search', true), '40'), current_setting('search_path')"
)


@dataclass
class Pooled:
    """A shop, and the way to it through the pooler."""

    shop: Shop
    place: dict[str, str]

    def dsn(self, kind: str | None = None) -> str:
        return make_conninfo(self.shop.dsn_of(kind) if kind else self.shop.dsn, **self.place)


def users(dsn: str, password: str) -> dict[str, str]:
    parts = conninfo_to_dict(dsn)
    return {str(parts["user"]): str(parts["password"])} | {role_of(kind): password for kind in KINDS}


@pytest.fixture(params=[0, 100], ids=["without prepared statements", "with prepared statements"])
def pooled(
    request: pytest.FixtureRequest,
    full_server: FullServer,
    shop_password: str,
    full_database_dsn: str,
    full_database: Connection,
) -> Iterator[Pooled]:
    """The shop through PgBouncer in transaction mode, which may know prepared statements, or not."""
    shop = open_shop(full_database, full_database_dsn, shop_password)
    try:
        with pgbouncer(full_server, users(full_database_dsn, shop_password), prepared=request.param) as place:
            yield Pooled(shop, place)
    except NotAvailable as reason:
        cannot_be_had(NO_POOLER, reason)


def test_searches_from_many_threads_and_tasks(pooled: Pooled) -> None:
    def ask(db: pgembed.Pgembed, n: int) -> set[str]:
        where = {"where": "id > %s", "params": [n % 3]} if n % 2 else {}
        return {row.title for row in db.search("shop.product", Text("red shoe"), limit=1 + n % 3, **where)}

    with pgembed.connect(pooled.dsn("reader")) as db, ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda n: ask(db, n), range(60)))
        assert all(len(found[n]) == min(1 + n % 3, 3 - (n % 3 if n % 2 else 0)) for n in range(60))
        assert all("red shoe" in found[n] for n in range(0, 60, 2))

    async def ask_all() -> list[str]:
        async with pgembed.connect_async(pooled.dsn("reader")) as db:
            rows = await asyncio.gather(
                *(db.search("shop.product", Text("red shoe"), where="id < %s", params=[9]) for _ in range(40))
            )
            return [found[0].title for found in rows]

    assert asyncio.run(ask_all()) == ["red shoe"] * 40
    with psycopg.connect(pooled.dsn("reader"), autocommit=True, prepare_threshold=None) as conn:
        for _ in range(12):
            statement = (
                "SELECT (item).id FROM pgembed.search(NULL::shop.product, (SELECT pgembed.encode_text('lite', %s)))"
            )
            assert conn.execute(statement, ["red shoe"]).fetchone() == (1,)
            assert conn.execute(statement.replace("%s)))", "%s)), filter => 'id < 9')"), ["dog"]).fetchone() is not None


def test_what_is_set_for_a_search_is_not_left_to_the_next_client(pooled: Pooled) -> None:
    with psycopg.connect(pooled.dsn("reader"), autocommit=True, prepare_threshold=None) as conn:
        before = conn.execute(SETTINGS.encode()).fetchone()
    with pgembed.connect(pooled.dsn("reader")) as db:
        for _ in range(8):
            db.search("shop.product", Text("red shoe"), where="id > 1", limit=100)
            with psycopg.connect(pooled.dsn("reader"), autocommit=True, prepare_threshold=None) as conn:
                assert conn.execute(SETTINGS.encode()).fetchone() == before


def test_a_client_installs_attaches_waits_and_detaches_through_it(pooled: Pooled) -> None:
    with pgembed.connect(pooled.dsn()) as db:
        db.install()
    with pgembed.connect(pooled.dsn("owner")) as db, pgembed.connect(pooled.dsn("writer")) as writer:
        db.attach("shop.secret", "embedding", encoder="lite", text="{title}", storage="side")
        with psycopg.connect(pooled.dsn("owner")) as conn:
            conn.execute("INSERT INTO shop.secret VALUES (1, 'a dog')")
        with psycopg.connect(pooled.dsn("app")) as conn:
            conn.execute("INSERT INTO shop.product (title) VALUES ('a cat')")
        with ThreadPoolExecutor(2) as pool:
            waits = [
                pool.submit(db.wait, "shop.secret", timeout=30),
                pool.submit(writer.wait, "shop.product", timeout=30),
            ]
            assert pooled.shop.work().written == 2
            assert [wait.result() for wait in waits] == [[], []]
        assert db.search("shop.secret", Text("dog"))[0].id == 1
        assert [row.ready for row in db.status()] == [4, 1]
        assert db.reconcile("shop.product") == 0
        assert [finding for finding in db.doctor() if not finding.ok] == []
        db.build_index("shop.product", on_progress=lambda *_: None)
        with pytest.raises(InvalidInput, match="An index build with memory of its own needs a session"):
            db.build_index("shop.product", memory="64MB")
        db.detach("shop.secret")


def test_a_worker_and_a_verification_say_that_they_need_a_session(pooled: Pooled) -> None:
    with psycopg.connect(pooled.dsn("worker"), autocommit=True, prepare_threshold=None) as conn:
        before = conn.execute(SETTINGS.encode()).fetchone()
    for _ in range(3):
        with pytest.raises(InvalidInput, match="A worker needs a session of its own, and this connection goes through"):
            Worker(lambda: psycopg.connect(pooled.dsn("worker")), WorkerOptions(poll=0.02)).run("until_idle")
    with psycopg.connect(pooled.dsn("worker"), autocommit=True, prepare_threshold=None) as conn:
        assert conn.execute(SETTINGS.encode()).fetchone() == before
    with (
        pgembed.connect(pooled.dsn("owner")) as db,
        pytest.raises(InvalidInput, match="A verification needs a session"),
    ):
        db.verify("shop.product")


def test_a_worker_works_through_a_pool_in_session_mode(
    full_server: FullServer, shop_password: str, full_database_dsn: str, full_database: Connection
) -> None:
    shop = open_shop(full_database, full_database_dsn, shop_password)
    with shop.as_role("app") as conn:
        conn.execute("INSERT INTO shop.product (title) VALUES ('a cat')")
    try:
        with pgbouncer(full_server, users(full_database_dsn, shop_password), mode="session") as place:
            dsn = make_conninfo(shop.dsn_of("worker"), **place)
            assert Worker(lambda: psycopg.connect(dsn), WorkerOptions(poll=0.02)).run("until_idle").written == 1
    except NotAvailable as reason:
        cannot_be_had(NO_POOLER, reason)
