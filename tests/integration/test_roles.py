"""What each kind of role may do, and nothing else: on a full server, with roles that log in."""

from __future__ import annotations

import asyncio
import re

import psycopg
import pytest

import pgembed
from pgembed import Text, View, reject, schema
from pgembed.errors import CatalogError, InvalidInput, PgembedError
from pgembed.worker import Worker, WorkerOptions
from tests.fakes import Connection, Log
from tests.full_server import FullServer
from tests.roles import KINDS, Shop, open_shop, role_of

pytestmark = pytest.mark.full_server

DENIED = r"permission denied|must be owner of"
SEARCH = "SELECT (item).id FROM pgembed.search(NULL::shop.product, (SELECT pgembed.encode_text('lite', 'red shoe')){})"
NEUTRAL = SEARCH.format(", 'odd'").replace("search", "search_neutral")
ATTACH = "SELECT pgembed.attach('shop.secret', 'embedding', 'lite', '{{\"text\": \"title\"}}')"

# Each statement, and the kinds that may run it; all others are told that they may not.
STATEMENTS = {
    # rows: the application's own rights, with no grant on pgembed
    "INSERT INTO shop.product (title) VALUES ('a dog')": "owner app writer",
    "UPDATE shop.product SET title = 'a dog' WHERE id = 1": "owner app writer",
    "DELETE FROM shop.product": "owner app writer",
    "TRUNCATE shop.product": "owner",
    "SELECT title FROM shop.product": "owner worker app writer reader",
    "SELECT price FROM shop.product": "owner app writer reader",
    "UPDATE shop.product SET price = 0": "owner app writer",
    "SELECT * FROM shop.secret": "owner",
    # searching
    SEARCH.format(""): "owner reader",
    SEARCH.format(", k => 30"): "owner reader",
    SEARCH.format(", filter => 'price < $1', params => '[50]'"): "owner reader",
    SEARCH.format(", exact => true, wide => true"): "owner reader",
    "SELECT pgembed.static_tokens('all-MiniLM-L6-v2', 'red')": "owner worker reader",
    "SELECT pgembed.encode_text('lite', 'red shoe', prefer => 'static')": "owner worker reader",
    "SELECT * FROM pgembed.distilled": "owner worker reader",
    "DELETE FROM pgembed.distilled": "owner",
    "SELECT pgembed._cached('lite', '\\x00')": "owner reader",
    "SELECT * FROM pgembed.encoders": "owner worker reader",
    "SELECT * FROM pgembed.views": "owner reader",
    "SELECT pgembed.view_directions('odd')": "owner reader",
    NEUTRAL: "owner reader",
    "SELECT pgembed.add_view('more', 'lite', ARRAY(SELECT pgembed.encode_text('lite', 'red')))": "owner",
    "SELECT pgembed.learn_view('more', 'shop.product', 'id = 1', 'id = 2')": "owner",
    "SELECT pgembed.drop_view('odd')": "owner",
    "DELETE FROM pgembed.direction": "owner",
    "SELECT * FROM pgembed.estimate('shop.product', 'more', 'lite', '{{\"text\": \"title\"}}')": "owner worker reader",
    # looking
    "SELECT * FROM pgembed.status": "owner worker writer reader",
    "SELECT * FROM pgembed.failures": "owner worker writer reader",
    "SELECT * FROM pgembed.failure_reasons": "owner worker writer reader",
    "SELECT * FROM pgembed.wait('shop.product', timeout => '1 s')": "owner writer reader",
    "SELECT pgembed._wait_for(1, now())": "owner writer reader",
    "SELECT * FROM pgembed.doctor()": "owner worker writer reader",
    "SELECT pgembed.index_sql('shop.product')": "owner worker reader",
    # the queue and the caches
    "SELECT * FROM pgembed.change_1": "owner worker",
    "SELECT * FROM pgembed.job_1": "owner worker",
    "SELECT * FROM pgembed.failure": "owner worker",
    "SELECT * FROM pgembed.written": "owner worker",
    "SELECT * FROM pgembed.backfill": "owner worker",
    "SELECT * FROM pgembed.missed": "owner worker",
    "DELETE FROM pgembed.missed": "owner",
    "SELECT * FROM pgembed._work": "owner worker",
    "SELECT * FROM pgembed.query_cache": "owner",
    "SELECT * FROM pgembed.request": "owner",
    "DELETE FROM pgembed.request": "owner",
    "SELECT * FROM pgembed.charged": "owner worker",
    "SELECT pgembed._request('lite', 'text', '\\x00', 0)": "owner reader",
    "SELECT pgembed._answer_of('lite', '\\x00')": "owner reader",
    "SELECT pgembed._take_requests('{{lite}}', 1)": "owner worker",
    "SELECT pgembed._note_requests('lite', 'x', true)": "owner worker",
    "SELECT pgembed._answer_request('lite', '\\x00', NULL, 'x')": "owner worker",
    "SELECT pgembed._charge('lite', 0, 0)": "owner worker",
    "SELECT pgembed._tidy_requests()": "owner worker",
    "SELECT pgembed._dblink_trouble()": "owner",
    "SELECT pgembed.disable_dblink()": "owner",
    "INSERT INTO pgembed.query_cache SELECT 'lite', '', '[1]'": "owner",
    "INSERT INTO pgembed.change_1 (key_1) VALUES (1)": "owner",
    "DELETE FROM pgembed.job_1": "owner worker",
    "DELETE FROM pgembed.failure": "owner worker",
    "SELECT pgembed._budget('lite')": "owner worker reader",
    # the catalog
    "UPDATE pgembed.embedding SET target = 'price'": "owner",
    "UPDATE pgembed.embedding SET inputs = '{{}}'": "owner",
    "DELETE FROM pgembed.embedding": "owner",
    "UPDATE pgembed.embedding SET state = 'ready'": "owner worker",
    "UPDATE pgembed.encoder SET settings = '{{}}'": "owner",
    "INSERT INTO pgembed.token SELECT model, 'qqq', '[1]' FROM pgembed.static_text": "owner",
    "INSERT INTO pgembed.granted VALUES ('x', 'worker')": "owner",
    "CREATE TABLE pgembed.mine (id integer)": "owner",
    "CREATE FUNCTION pgembed.search(text) RETURNS integer LANGUAGE sql RETURN 1": "owner",
    # calls
    ATTACH: "owner",
    "SELECT pgembed.detach('shop.product')": "owner",
    "SELECT pgembed.pause('shop.product')": "owner",
    "SELECT pgembed.resume('shop.product')": "owner",
    "SELECT pgembed.retry('shop.product')": "owner",
    "SELECT pgembed.reconcile('shop.product')": "owner",
    "SELECT pgembed.requeue('shop.product', '[[\"1\"]]')": "owner",
    "SELECT pgembed.sync()": "owner worker writer reader",  # nothing is out of date
    "SELECT pgembed._keep_searches()": "owner worker",
    "SELECT pgembed.sync('shop.product')": "owner",
    "SELECT pgembed.unhook('shop.product')": "owner",
    "SELECT pgembed.add_encoder('more', 'builtin:lite')": "owner",
    "SELECT pgembed.remove_encoder('lite2')": "owner",
    "SELECT * FROM pgembed.grant_role('reader', {other_name})": "owner",
    "SELECT * FROM pgembed.grant_role('owner', {other_name})": "",  # the owner is no member of that role
    "SELECT * FROM pgembed.revoke_role('worker', {worker_name})": "owner",
    "SELECT pgembed.uninstall(true)": "owner",
    "DROP SCHEMA pgembed CASCADE": "owner",
    "CREATE TRIGGER mine AFTER INSERT ON shop.product FOR EACH ROW EXECUTE FUNCTION pgembed.append_row_1()": "owner",
}
OF_SIDE = {
    "SELECT * FROM shop.product_embedding": "owner worker app writer reader",
    "DELETE FROM shop.product_embedding": "owner worker",
    "UPDATE shop.product SET id = 100 WHERE id = 1": "owner app worker writer",  # Postgres' right to lock rows
}
OF_COLUMN = {
    "SELECT embedding FROM shop.product": "owner worker app writer reader",
    "UPDATE shop.product SET embedding = NULL": "owner worker app writer",
    "UPDATE shop.product SET id = 100 WHERE id = 1": "owner app writer",
}


@pytest.fixture(params=["column", "side"])
def shop(request: pytest.FixtureRequest, shop_password: str, full_database_dsn: str, full_database: Connection) -> Shop:
    """The shop, with both storages."""
    return open_shop(full_database, full_database_dsn, shop_password, request.param)


@pytest.fixture
def column_shop(shop_password: str, full_database_dsn: str, full_database: Connection) -> Shop:
    """The shop, with vectors in its rows."""
    return open_shop(full_database, full_database_dsn, shop_password)


def outcome(conn: Connection, statement: object) -> str | None:
    """Run a statement and take it back: why it was denied, or None."""
    try:
        with conn.transaction(force_rollback=True):
            conn.execute(statement)  # pyright: ignore[reportArgumentType, reportCallIssue]
    except psycopg.errors.InsufficientPrivilege as error:
        return error.diag.message_primary
    return None


@pytest.mark.parametrize("kind", KINDS)
def test_a_role_may_do_what_its_kind_does_and_is_denied_all_else(shop: Shop, kind: str) -> None:
    with shop.db("owner") as db:
        db.add_encoder("lite2", "builtin:lite")
        db.learn_view("odd", encoder="lite", these=[Text("red")], those=[Text("blue")])
    statements = STATEMENTS | (OF_SIDE if shop.storage == "side" else OF_COLUMN)
    wrong: list[str] = []
    with shop.as_role(kind) as conn:
        for statement, kinds in statements.items():
            why = outcome(conn, shop.composed(statement))
            if kind in kinds.split() and why is not None:
                wrong.append(f"{statement}: {why}")
            elif kind not in kinds.split() and (why is None or not re.search(f"{DENIED}|is no member of", why)):
                wrong.append(f"{statement}: allowed ({why})")
    assert "\n".join(wrong) == ""


def test_what_is_for_the_owner_says_so(column_shop: Shop) -> None:
    with column_shop.db("reader") as db, pytest.raises(CatalogError) as refused:
        db.attach("shop.product", "more", encoder="lite", text="{title}")
    assert "permission denied: that is for the owner of pgembed" in str(refused.value)
    assert "have pgembed handed over: SELECT pgembed.grant_role('owner', 'Shop \"reader\"" in str(refused.value)


def test_a_role_that_was_granted_nothing_is_told_who_gives_it_what(column_shop: Shop) -> None:
    with column_shop.db("app") as db, pytest.raises(CatalogError) as refused:
        db.search("shop.product", Text("red shoe"))
    assert "permission denied for schema pgembed" in str(refused.value)
    assert "pgembed grant reader|writer|worker|owner ROLE" in str(refused.value)


def test_a_reader_searches_from_python_and_waits(shop: Shop) -> None:
    with shop.db("reader") as db:
        assert db.search("shop.product", Text("red shoe"), limit=1)[0].title == "red shoe"
        found = db.search("shop.product", Text("red shoe"), where="price < %s AND id > %s", params=[50, 1], limit=5)
        assert {row.id for row in found} == {2, 3}
        (status,) = db.status()
        assert (status.rows, status.ready, status.queued, status.claimed, status.failed) == (3, 3, None, None, 0)
        assert db.wait("shop.product") == []
        assert all(finding.ok for finding in db.doctor())


def test_a_reader_uses_views_and_probes_them_on_rows_that_it_sees(shop: Shop) -> None:
    with shop.db("owner") as db:
        db.learn_view("colour", table="shop.product", these="id = 1", those="id = 2")
    with shop.as_role("owner") as conn:
        conn.execute(
            "ALTER TABLE shop.product ENABLE ROW LEVEL SECURITY; CREATE POLICY few ON shop.product USING (id < 3)"
        )
    with shop.db("reader") as db:
        assert [row.name for row in db.views()] == ["colour"]
        assert {row.id for row in db.search("shop.product", Text("red shoe"), neutral="colour", limit=9)} == {1, 2}
        assert db.search("shop.product", reject(Text("red shoe"), View("colour")), limit=1)[0].id == 1
        with pytest.raises(InvalidInput, match="1 rows of '1' are too few"):
            db.probe_view("colour", "shop.product", "id")
        for refused in (
            lambda: db.learn_view("more", table="shop.product", these="id = 1", those="id = 2"),
            lambda: db.learn_view("more", encoder="lite", these=[Text("red")], those=[Text("blue")]),
            lambda: db.drop_view("colour"),
        ):
            with pytest.raises(CatalogError, match="that is for the owner of pgembed"):
                refused()
        for attribute in ("(SELECT title FROM shop.secret)", "pg_read_file('/etc/passwd')"):
            with pytest.raises(CatalogError, match="permission denied"):
                db.probe_view("colour", "shop.product", attribute)


def test_a_writer_waits_for_its_rows(shop: Shop) -> None:
    with shop.db("writer") as db:
        with shop.as_role("writer") as conn:
            conn.execute("INSERT INTO shop.product (title) VALUES ('a dog')")
        with pytest.raises(PgembedError, match=r"still wait for their vectors after 00:00:00.*: ready"):
            db.wait("shop.product", timeout=0)
        shop.work()
        assert db.wait("shop.product", timeout=5) == []
        with pytest.raises(CatalogError, match="permission denied for table encoder"):
            db.search("shop.product", Text("dog"))


def test_what_is_attached_later_is_granted_to_whom_was_granted_before(shop: Shop) -> None:
    with shop.as_role("owner") as conn:
        conn.execute("INSERT INTO shop.secret VALUES (1, 'a wooden chair')")
        conn.execute(shop.composed("GRANT SELECT ON shop.secret TO {reader}"))
    shop.attach("shop.secret")
    assert shop.work().written == 1
    with shop.db("reader") as db:
        assert db.search("shop.secret", Text("chair"), limit=1)[0].id == 1
    with shop.db("owner") as db:
        assert [finding.subject for finding in db.doctor() if not finding.ok] == []


def test_detach_takes_the_rights_on_a_table_back(shop: Shop) -> None:
    with shop.db("owner") as db:
        db.attach("shop.product", "second", encoder="lite", text="{title}", storage=shop.storage)
        db.detach("shop.product", "embedding")
    with shop.as_role("app") as conn:
        conn.execute("INSERT INTO shop.product (title) VALUES ('a dog')")
    assert shop.work().written == 4  # the second one's rights are all there
    with shop.db("owner") as db:
        db.detach("shop.product")
    acl = "SELECT attname FROM pg_attribute WHERE attrelid = 'shop.product'::regclass AND attacl IS NOT NULL"
    assert shop.admin.execute(acl.encode()).fetchall() == []
    with shop.as_role("worker") as conn, pytest.raises(psycopg.errors.InsufficientPrivilege):
        conn.execute("SELECT id FROM shop.product")


@pytest.mark.parametrize("kind", ["worker", "writer", "reader"])
def test_revoke_takes_back_all_that_grant_gave(shop: Shop, kind: str) -> None:
    with shop.db("owner") as db:
        assert db.revoke(kind, role_of(kind)) == []
        assert db.revoke(kind, role_of(kind)) == []  # again: nothing
    held = (
        "SELECT count(*) FROM pg_shdepend WHERE refclassid = 'pg_authid'::regclass"
        " AND refobjid = {%s_name}::regrole::oid"
        " AND (classid, objid) NOT IN (SELECT 'pg_namespace'::regclass, 'shop'::regnamespace::oid"
        " UNION SELECT 'pg_class'::regclass, 'shop.product'::regclass::oid"
        " UNION SELECT 'pg_class'::regclass, to_regclass('shop.product_embedding')::oid)"
    ).replace("{%s_name}", "quote_ident({" + kind + "_name})")
    assert shop.run(held) == [(0,)]
    with shop.as_role(kind) as conn, pytest.raises(psycopg.errors.InsufficientPrivilege):
        conn.execute("SELECT * FROM pgembed.status")


def test_a_role_of_two_kinds_keeps_what_the_other_needs(column_shop: Shop) -> None:
    with column_shop.db("owner") as db:
        db.grant("writer", role_of("reader"))
        db.revoke("reader", role_of("reader"))
    with column_shop.db("reader") as db:
        assert db.wait("shop.product") == []
        with pytest.raises(CatalogError, match="permission denied"):
            db.search("shop.product", Text("dog"))


def test_pgembed_is_handed_over_and_back(shop: Shop) -> None:
    owners = (
        "SELECT DISTINCT pg_get_userbyid(owner) FROM (SELECT relowner FROM pg_class WHERE relnamespace ="
        " 'pgembed'::regnamespace UNION SELECT proowner FROM pg_proc WHERE pronamespace = 'pgembed'::regnamespace"
        " UNION SELECT typowner FROM pg_type WHERE typnamespace = 'pgembed'::regnamespace"
        " UNION SELECT nspowner FROM pg_namespace WHERE nspname = 'pgembed') AS o (owner)"
    )
    assert shop.run(owners) == [(role_of("owner"),)]
    with shop.as_role("owner") as conn, pytest.raises(psycopg.errors.InsufficientPrivilege, match="is no member of it"):
        conn.execute(shop.composed("SELECT * FROM pgembed.grant_role('owner', {other_name})"))
    with pytest.raises(psycopg.errors.InvalidParameterValue, match="The owner of pgembed is"):
        shop.run("SELECT * FROM pgembed.revoke_role('owner', {reader_name})")
    shop.run("SELECT * FROM pgembed.revoke_role('owner', {owner_name})")
    assert (role_of("owner"),) not in shop.run(owners) or shop.storage == "side"  # whose triggers run as its owner
    with shop.as_role("owner") as conn, pytest.raises(psycopg.errors.InsufficientPrivilege):
        conn.execute("SELECT pgembed.detach('shop.product')")
    with shop.as_role("app") as conn:
        conn.execute("INSERT INTO shop.product (title) VALUES ('a dog')")
        conn.execute("UPDATE shop.product SET id = 50 WHERE id = 1; DELETE FROM shop.product WHERE id = 2")
    assert shop.work().written == 2
    shop.run("SELECT * FROM pgembed.grant_role('owner', {owner_name})")
    with shop.db("owner") as db:
        db.detach("shop.product")


def test_the_owner_who_is_no_superuser_installs_upgrades_and_uninstalls(shop: Shop) -> None:
    with shop.as_role("owner") as conn:
        schema.install(conn)
    schema.install(shop.admin)  # as a superuser: what is made belongs to the owner all the same
    (role,) = shop.admin.execute("SELECT current_user").fetchall()[0]
    assert role == shop.admin.info.user
    others = (
        "SELECT p.oid::regprocedure FROM pg_proc AS p WHERE pronamespace = 'pgembed'::regnamespace"
        " AND proowner <> (SELECT nspowner FROM pg_namespace WHERE nspname = 'pgembed')"
    )
    assert shop.run(others) == []
    with shop.db("reader") as db:
        assert db.search("shop.product", Text("red shoe"), limit=1)[0].id == 1
    with shop.db("owner") as db:
        db.uninstall(detach_all=True)
    assert shop.run("SELECT to_regnamespace('pgembed')") == [(None,)]


def test_what_is_for_others_to_grant_is_told(column_shop: Shop) -> None:
    shop = column_shop
    shop.run("CREATE TABLE public.note (id integer PRIMARY KEY, title text)")
    shop.run("INSERT INTO public.note VALUES (1, 'a dog')")
    shop.run("SELECT pgembed.attach('public.note', 'embedding', 'lite', '{{\"text\": \"title\"}}')")
    with shop.db("owner") as db:
        left = db.grant("worker", role_of("other"))
        assert {one.ask for one in left} == {shop.admin.info.user}
        (finding,) = [one for one in db.doctor() if one.subject.startswith("worker") and "other" in one.subject]
        assert not finding.ok
        assert "lacks SELECT (id, title, embedding), UPDATE (embedding) on public.note" in finding.finding
        assert left[0].statement in str(finding.remedy)
    for one in left:
        shop.admin.execute(one.statement.encode())
    assert shop.work("other").written == 1
    with shop.db("owner") as db:
        assert db.grant("worker", role_of("other")) == []
        assert [one.subject for one in db.doctor() if not one.ok and "other" in one.subject] == []


def test_a_worker_that_policies_filter_is_told_of(column_shop: Shop) -> None:
    shop = column_shop
    with shop.as_role("owner") as conn:
        conn.execute("ALTER TABLE shop.product ENABLE ROW LEVEL SECURITY")
    with shop.db("owner") as db:
        (left,) = db.grant("worker", role_of("worker"))
        assert left.ask == "a superuser"
        (finding,) = [one for one in db.doctor() if not one.ok]
        assert "sight of all rows of shop.product" in finding.finding
    shop.admin.execute(left.statement.encode())
    with shop.db("owner") as db:
        assert db.grant("worker", role_of("worker")) == []


def test_roles_that_are_not_there_are_refused_or_forgotten(column_shop: Shop) -> None:
    with column_shop.db("owner") as db:
        for kind, role, message in (
            ("reader", "nobody at all", "There is no role 'nobody at all'"),
            ("reader", "public", "There is no role 'public'"),
            ("admin", role_of("reader"), "There is no kind of role 'admin'"),
        ):
            with pytest.raises(CatalogError, match=message):
                db.grant(kind, role)  # pyright: ignore[reportArgumentType]
        column_shop.run("INSERT INTO pgembed.granted VALUES ('gone', 'reader')")
        (finding,) = [one for one in db.doctor() if not one.ok]
        assert (finding.subject, finding.finding) == ("reader gone", "there is no such role any more")
        assert db.revoke("reader", "gone") == []
        assert [one for one in db.doctor() if not one.ok] == []


def test_rights_are_there_after_a_restore(shop: Shop, full_server: FullServer, full_bare_dsn: str) -> None:
    dump = full_server.run("pg_dump", "-Fc", shop.dsn).stdout
    full_server.run("pg_restore", "--exit-on-error", "-d", full_bare_dsn, input=dump)
    with psycopg.connect(full_bare_dsn, autocommit=True) as admin:
        again = Shop(admin, full_bare_dsn, shop.password, shop.storage)
        with again.as_role("app") as conn:
            conn.execute("INSERT INTO shop.product (id, title) VALUES (9, 'a dog')")
            conn.execute("DELETE FROM shop.product WHERE id = 2")
        with again.as_role("owner") as conn:
            conn.execute("SELECT pgembed.sync()")
        assert again.work().written == 1
        with again.db("reader") as db:
            assert db.search("shop.product", Text("dog"), limit=1)[0].id == 9


def test_sync_grants_again_what_a_dump_without_rights_left_out(
    shop: Shop, full_server: FullServer, full_bare_dsn: str
) -> None:
    dump = full_server.run("pg_dump", "-Fc", "--no-acl", shop.dsn).stdout
    full_server.run("pg_restore", "--exit-on-error", "-d", full_bare_dsn, input=dump)
    with psycopg.connect(full_bare_dsn, autocommit=True) as admin:
        again = Shop(admin, full_bare_dsn, shop.password, shop.storage)
        with again.as_role("owner") as conn:
            conn.execute("SELECT pgembed.sync()")
            conn.execute(
                again.composed("GRANT USAGE ON SCHEMA shop TO {reader}; GRANT SELECT ON shop.product TO {reader}")
            )
            conn.execute("INSERT INTO shop.product (id, title) VALUES (9, 'a dog')")
            conn.execute("SELECT pgembed.sync()")
        assert again.work().written == 1
        with again.db("reader") as db:
            assert db.search("shop.product", Text("dog"), limit=1)[0].id == 9


def test_a_role_that_is_no_superuser_installs_attaches_and_grants(
    shop_password: str, full_bare_dsn: str, full_server: FullServer
) -> None:
    """As on a managed server: somebody else made the extension and the roles."""
    with psycopg.connect(full_bare_dsn, autocommit=True) as admin:
        shop = Shop(admin, full_bare_dsn, shop_password)
        shop.run("CREATE EXTENSION vector")
        name = psycopg.sql.Identifier(admin.info.dbname).as_string()
        shop.run(f"GRANT CREATE ON DATABASE {name} TO {{owner}}")
        with shop.db("owner") as db, shop.as_role("owner") as conn:
            db.install()
            conn.execute("CREATE SCHEMA shop; CREATE TABLE shop.product (id integer PRIMARY KEY, title text)")
            conn.execute(
                shop.composed(
                    "GRANT USAGE ON SCHEMA shop TO {reader}, {app}; GRANT SELECT ON shop.product TO {reader};"
                    "GRANT INSERT ON shop.product TO {app}"
                )
            )
            db.add_encoder("lite", "builtin:lite")
            shop.attach()
            for kind in ("worker", "reader"):
                assert db.grant(kind, role_of(kind)) == []
        with shop.as_role("app") as conn:
            conn.execute("INSERT INTO shop.product VALUES (1, 'a dog')")
        assert shop.work().written == 1
        with shop.db("reader") as db:
            assert db.search("shop.product", Text("dog"))[0].id == 1
        with shop.db("owner") as db:
            assert [finding for finding in db.doctor() if not finding.ok] == []
            db.uninstall(detach_all=True)


def test_a_worker_that_may_not_put_the_catalog_right_leaves_another_table_alone(column_shop: Shop) -> None:
    shop = column_shop
    shop.run("INSERT INTO shop.secret VALUES (1, 'a dog')")
    shop.run("UPDATE pgembed.embedding SET relation = 'shop.secret'::regclass")
    with shop.as_role("app") as conn:
        conn.execute("INSERT INTO shop.product (title) VALUES ('a cat')")
    dsn = shop.dsn_of("worker")
    worker = Worker(lambda: psycopg.connect(dsn), WorkerOptions(poll=0.02))
    worker.state.log = log = Log()
    assert worker.run("until_idle").written == 0
    (line,) = log.lines
    assert "as its owner: SELECT pgembed.sync();" in line
    shop.run("SELECT pgembed.sync()")
    assert shop.work().written == 1


def test_the_same_in_asyncio(column_shop: Shop) -> None:
    async def grant_and_revoke() -> None:
        async with pgembed.connect_async(column_shop.dsn_of("owner")) as db:
            assert await db.grant("writer", role_of("other")) == []
            assert await db.revoke("writer", role_of("other")) == []

    asyncio.run(grant_and_revoke())
