"""Row-level security: two tenants of one table, each of whom finds, counts and waits for rows of his own alone."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from itertools import product

import psycopg
import pytest

import pgembed
from pgembed import Text
from tests.fakes import Connection, Words, use_splitters
from tests.roles import Shop, open_shop, role_of

pytestmark = pytest.mark.full_server

TENANTS = ("reader", "other")
POLICY = """
ALTER TABLE shop.product ADD COLUMN tenant text DEFAULT current_user;
UPDATE shop.product SET tenant = CASE WHEN id % 2 = 0 THEN {reader_name} ELSE {other_name} END;
CREATE POLICY own ON shop.product USING (tenant = current_user);
ALTER TABLE shop.product ENABLE ROW LEVEL SECURITY;
GRANT SELECT ON shop.product TO {other};
GRANT USAGE ON SCHEMA shop TO {other};
"""
QUERY = "(SELECT pgembed.encode_text('lite', 'red shoe'))"
SEARCHES = [
    f"SELECT (item).id FROM pgembed.search(NULL::shop.product, {QUERY}{{}})".format(more)
    for more in (
        "",
        ", k => 1",
        ", k => 100",
        ", filter => 'true OR price > 0'",
        ", filter => 'price < $1 OR true', params => '[50]', k => 50",
        ", exact => true, k => 100",
        ", wide => true, k => 100",
        ", wide => true, exact => true",
        ", embedding => 'embedding', k => 5",
    )
] + [
    f"SELECT (item).id FROM pgembed._kept_search({QUERY}, 10, NULL, NULL::shop.product)",
    f"SELECT (item).id FROM pgembed.search_neutral(NULL::shop.product, {QUERY}, 'size', k => 100)",
    f"SELECT (item).id FROM pgembed.search_neutral(NULL::shop.product, {QUERY}, 'size', exact => true)",
    "SELECT (item).id FROM pgembed.hybrid(NULL::shop.product, 'red OR blue OR green', k => 100)",
    f"SELECT (item).id FROM pgembed.hybrid(NULL::shop.product, queries => ARRAY[{QUERY}], exact => true)",
    'SELECT (item).id FROM pgembed.search_several(NULL::shop.product, \'{"embedding": "shoe"}\', k => 100)',
    *(
        f"SELECT (r -> 'key' ->> 0)::integer FROM jsonb_array_elements(pgembed.explain_{call} -> 'rows') AS r"
        for call in (
            f"search(NULL::shop.product, {QUERY}, k => 100, recall => true)",
            f"hybrid(NULL::shop.product, 'shoe', queries => ARRAY[{QUERY}], k => 100, recall => true)",
            'several(NULL::shop.product, \'{"embedding": "shoe"}\', k => 100)',
        )
    ),
    "SELECT id FROM shop.product",
]
FAILURES = (
    "INSERT INTO pgembed.failure SELECT 1, jsonb_build_array(i::text), 'title ' || i, 1 FROM generate_series(1, 7) AS i"
)
EVEN, ODD = {2, 4, 6}, {1, 3, 5, 7}


@pytest.fixture(params=["column", "side", "parts"])
def shop(
    request: pytest.FixtureRequest,
    shop_password: str,
    full_database_dsn: str,
    full_database: Connection,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Shop]:
    """Seven rows, those of even ids of one tenant; row-level security was switched on after attach."""
    monkeypatch.setattr("pgembed.parts.splitters", lambda: use_splitters(words=Words))
    shop = open_shop(full_database, full_database_dsn, shop_password, request.param)
    with shop.as_role("owner") as conn:
        conn.execute("INSERT INTO shop.product (title) SELECT 'red shoe ' || i FROM generate_series(1, 4) AS i")
        conn.execute(shop.composed(POLICY))
    shop.run("ALTER ROLE {worker} BYPASSRLS")
    with shop.db("owner") as db:
        assert db.grant("reader", role_of("other")) == []
        db.learn_view("size", encoder="lite", these=[Text("large")], those=[Text("small")])
    with shop.as_role("owner") as conn:
        conn.execute("SELECT pgembed.sync()")
    assert shop.work().written == 4
    yield shop
    shop.run("ALTER ROLE {worker} NOBYPASSRLS")


@pytest.fixture
def indexed(shop: Shop) -> Shop:
    """The same with a vector index."""
    with shop.db("owner") as db:
        db.build_index("shop.product")
    return shop


def rows_of(tenant: str) -> set[int]:
    return EVEN if tenant == "reader" else ODD


@pytest.mark.parametrize("tenant", TENANTS)
def test_every_search_gives_a_tenant_his_own_rows(indexed: Shop, tenant: str) -> None:
    with indexed.as_role(tenant) as conn:
        for statement in SEARCHES:
            found = {number for (number,) in conn.execute(statement.encode())}
            assert found <= rows_of(tenant), statement
            assert found or "_kept_search" in statement, statement
            if "k => 1)" not in statement and "_kept_search" not in statement:
                assert found == rows_of(tenant), statement


@pytest.mark.parametrize("tenant", TENANTS)
def test_every_search_from_python_too(indexed: Shop, tenant: str) -> None:
    forms = (
        {},
        {"limit": 1},
        {"limit": 100},
        {"where": "true OR price > %s", "params": [0]},
        {"exact": True},
        {"wide": True},
        {"columns": ["id"]},
    )

    async def ask() -> list[set[int]]:
        async with pgembed.connect_async(indexed.dsn_of(tenant)) as db:
            return [{row.id for row in await db.search("shop.product", Text("red shoe"), **form)} for form in forms]

    with indexed.db(tenant) as db:
        found = [{row.id for row in db.search("shop.product", Text("red shoe"), **form)} for form in forms]
    assert found == asyncio.run(ask())
    for form, ids in zip(forms, found, strict=True):
        assert len(ids) == min(len(rows_of(tenant)), form.get("limit", 10)), form
        assert ids <= rows_of(tenant), form


@pytest.mark.parametrize("tenant", TENANTS)
def test_counts_and_failures_are_of_his_own_rows(shop: Shop, tenant: str) -> None:
    shop.run(FAILURES)
    shop.run("INSERT INTO pgembed.failure VALUES (1, '[\"99\"]', 'of a row that is gone', 1)")
    own = sorted(rows_of(tenant))
    with shop.db(tenant) as db:
        (status,) = db.status()
        assert (status.rows, status.ready, status.failed) == (len(own), len(own), len(own))
        assert (status.queued, status.claimed, status.oldest_wait, status.rows_per_second) == (None,) * 4
        assert sorted(int(row.key[0]) for row in db.failures()) == own
        assert sum(row.rows for row in db.failure_reasons()) == len(own)
        assert sorted(int(row.key[0]) for row in db.wait("shop.product")) == own
        sample = db.estimate("shop.product", "more", encoder="lite", text="{title}")
        assert sample.rows == len(own)
    with shop.db("owner") as db:
        assert db.status()[0].failed == 8


@pytest.mark.parametrize("tenant", TENANTS)
def test_a_function_of_his_is_shown_no_other_rows(shop: Shop, tenant: str) -> None:
    """One that costs nothing would be called before the policy, where views had no barrier."""
    shop.run(FAILURES)
    seen: list[str] = []
    with shop.as_role(tenant) as conn:
        conn.add_notice_handler(lambda notice: seen.append(str(notice.message_primary)))
        conn.execute(
            "CREATE FUNCTION pg_temp.leak(anyelement) RETURNS boolean LANGUAGE plpgsql COST 0.0000001"
            " AS 'BEGIN RAISE NOTICE ''%'', $1; RETURN true; END'"
        )
        for statement in (
            "SELECT count(*) FROM pgembed.failures WHERE pg_temp.leak(error)",
            "SELECT count(*) FROM pgembed.failure_reasons WHERE pg_temp.leak(latest_key)",
            "SELECT count(*) FROM pgembed._seen_failure WHERE pg_temp.leak(error)",
            "SELECT count(*) FROM pgembed.status WHERE pg_temp.leak(failed)",
            f"SELECT FROM pgembed.search(NULL::shop.product, {QUERY}, k => 100, filter => 'pg_temp.leak(title)')",
        ):
            conn.execute(statement.encode())
    told = {line for line in seen if line.startswith("title ")}
    assert told == {f"title {number}" for number in rows_of(tenant)}
    keys = {line for line in seen if line.startswith("[")}  # all rows failed of one reason
    assert keys
    assert keys <= {f'["{number}"]' for number in rows_of(tenant)}
    titles = {title for (title,) in shop.run("SELECT title FROM shop.product WHERE tenant = " + f"{{{tenant}_name}}")}
    assert {line for line in seen if "shoe" in line or "car" in line or "tree" in line} <= titles


@pytest.mark.parametrize("tenant", TENANTS)
def test_vectors_beside_the_table_are_hidden_with_their_rows(shop: Shop, tenant: str) -> None:
    if shop.storage == "side":
        with shop.as_role(tenant) as conn:
            ids = {number for (number,) in conn.execute("SELECT id FROM shop.product_embedding")}
            assert ids == rows_of(tenant)


def test_a_side_table_that_shows_what_is_hidden_is_told_of(shop: Shop) -> None:
    if shop.storage == "column":
        return
    shop.run("ALTER TABLE shop.product_embedding DISABLE ROW LEVEL SECURITY")
    with shop.db("owner") as db:
        (finding,) = [one for one in db.doctor() if not one.ok]
        assert finding.subject == "shop.product.embedding side table"
        assert "row-level security was switched on" in finding.finding
        with shop.as_role("owner") as conn:
            conn.execute(str(finding.remedy).encode())
        assert [one for one in db.doctor() if not one.ok] == []


@pytest.mark.parametrize("tenant", TENANTS)
def test_a_hash_answers_only_who_knows_the_input(shop: Shop, tenant: str) -> None:
    shop.run(
        "INSERT INTO pgembed.encoder (name, spec, space, dim, modalities, fingerprint)"
        " VALUES ('other', 'x:y', 'z', 3, ARRAY['text'], 'f');"
    )
    shop.run(
        "INSERT INTO pgembed.query_cache VALUES ('other', pgembed.input_hash('other', 'f', 'text', 'cat'), '[1,2,3]')"
    )
    with shop.as_role(tenant) as conn:
        assert conn.execute("SELECT pgembed.encode_text('other', 'cat')::text").fetchone() == ("[1,2,3]",)
        with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState, match="no vector cached"):
            conn.execute("SELECT pgembed.encode_text('other', 'dog')")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            conn.execute("SELECT * FROM pgembed.query_cache")


def test_an_owner_whom_policies_bind_finds_his_own_rows_and_rows_go_with_their_vectors(shop: Shop) -> None:
    """FORCE ROW LEVEL SECURITY: the application logs in as the table's owner."""
    with shop.as_role("owner") as conn:
        conn.execute("ALTER TABLE shop.product FORCE ROW LEVEL SECURITY")
        conn.execute("SELECT pgembed.sync()")
        conn.execute("INSERT INTO shop.product (title) VALUES ('a dog'), ('a cat')")
    assert shop.work().written == 2
    with shop.db("owner") as db:
        assert {row.title for row in db.search("shop.product", Text("dog"))} == {"a dog", "a cat"}
    with shop.as_role("owner") as conn:
        conn.execute("DELETE FROM shop.product WHERE title = 'a dog'")
    shop.work()
    if shop.storage == "side":
        assert shop.run("SELECT count(*) FROM shop.product_embedding") == [(8,)]


WRITES = (
    (
        "DELETE FROM {table}",
        "INSERT INTO {table} VALUES ({key}, 'a dog'), ({key} + 1, 'a cat'), ({key} + 2, 'a frog')",
    ),
    (
        "UPDATE {table} SET title = 'a boat' WHERE id = {key}",
        "UPDATE {table} SET id = {key} + 60 WHERE id = {key} + 1",
        "INSERT INTO {table} VALUES ({key}, 'a shoe') ON CONFLICT (id) DO UPDATE SET title = excluded.title",
        "DELETE FROM {table} WHERE id = {key} + 2",
    ),
    (
        "DELETE FROM {table} WHERE id = {key}",
        "INSERT INTO {table} VALUES ({key}, 'a bird')",
    ),
)
PARTITIONS = """
CREATE TABLE {table}_low PARTITION OF {table} FOR VALUES FROM (0) TO (50);
CREATE TABLE {table}_high PARTITION OF {table} DEFAULT;
"""
TENANTED = """
GRANT ALL ON {table} TO {app};
CREATE POLICY own ON {table} USING (tenant = current_user);
ALTER TABLE {table} ENABLE ROW LEVEL SECURITY;
"""


def test_what_tenants_write_keeps_every_kind_of_table_true(
    shop_password: str, full_database_dsn: str, full_database: Connection
) -> None:
    """In both storages and modes, partitioned or not, at low and high isolation, with policies for the owner or not."""
    shop = open_shop(full_database, full_database_dsn, shop_password)
    shop.run("ALTER ROLE {worker} BYPASSRLS")
    tables: dict[str, str] = {}
    with shop.as_role("owner") as conn:
        kinds = product(("column", "side"), ("queue", "instant"), (False, True), (False, True))
        for number, (storage, mode, forced, partitioned) in enumerate(kinds):
            tables[table := f"shop.kind_{number}"] = storage
            columns = "(id integer PRIMARY KEY, title text, tenant text DEFAULT current_user)"
            conn.execute(f"CREATE TABLE {table} {columns}{' PARTITION BY RANGE (id)' * partitioned}".encode())
            conn.execute(PARTITIONS.replace("{table}", table).encode() if partitioned else b"")
            conn.execute(shop.composed(TENANTED.replace("{table}", table)))
            conn.execute(f"ALTER TABLE {table} {'' if forced else 'NO '}FORCE ROW LEVEL SECURITY".encode())
            conn.execute(
                "SELECT pgembed.attach(%s::regclass, 'embedding', 'lite', '{\"text\": \"title\"}', storage => %s,"
                " mode => %s)",
                [table, storage, mode],
            )
    levels = (psycopg.IsolationLevel.READ_COMMITTED, psycopg.IsolationLevel.SERIALIZABLE)
    for level, statements in product(levels, WRITES):
        for kind, key in (("app", 1), ("owner", 100)):
            with psycopg.connect(shop.dsn_of(kind)) as conn:
                conn.isolation_level = level
                for table, statement in product(tables, statements):
                    conn.execute(statement.format(table=table, key=key).encode())
                    conn.commit()
        shop.work()
        for table, storage in tables.items():
            vector = "embedding" if storage == "column" else "s.vector"
            beside = "" if storage == "column" else f" FULL JOIN {table}_embedding AS s USING (id)"
            untrue = (
                f"SELECT id, t.title FROM {table} AS t{beside}"
                f" WHERE NOT coalesce({vector} <-> pgembed.encode_text('lite', t.title) < 1e-5, false)"
            )
            assert shop.run(untrue) == [], (table, level, statements)
    assert shop.run("SELECT DISTINCT queued, failed FROM pgembed.status") == [(0, 0)]
    shop.run("ALTER ROLE {worker} NOBYPASSRLS")
