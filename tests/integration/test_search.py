"""Search in SQL: the nearest rows, a filter that never comes back short, and nothing left behind."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import psycopg
import pytest
from numpy.typing import NDArray
from psycopg import sql
from psycopg.types.json import Jsonb

from pgembed import plans, schema
from pgembed.inputs import Expression, Text, Vector
from pgembed.query import Column, SearchPlan, SearchRow, Statement, Target, compile_search, search_row_factory
from pgembed.rounds import Rounds, Trace
from pgembed.vectors import register_packed
from tests.conftest import connection_to, new_database

Connection = psycopg.Connection[tuple[Any, ...]]
Array = NDArray[np.float64]

DIM = 16
ROWS = 3000
RARE = 60
METRICS = {"cosine": "vector_cosine_ops", "ip": "vector_ip_ops", "l2": "vector_l2_ops"}


@dataclass(frozen=True)
class Shop:
    """A table ``product`` with vectors under an index: ROWS of them around ``query``, the last RARE opposed to it."""

    conn: Connection
    vectors: Array
    query: Array

    def target(self, metric: str = "cosine") -> Target:
        names = ("id", "title", "price", "photo", "embedding")
        return Target(
            "public", "product", "embedding", "test", "test", DIM,
            tuple(Column(name, name in ("photo", "embedding")) for name in names), ("id",), metric,
        )  # fmt: skip


def text(vector: Sequence[float] | Array) -> str:
    return "[" + ",".join(f"{x:.9g}" for x in vector) + "]"


def register(conn: Connection, metric: str = "cosine", name: str = "test", dim: int = DIM) -> None:
    conn.execute(
        "SELECT pgembed.add_encoder(%s, 'test:none', space => 'test', dim => %s, modalities => '{text}',"
        " fingerprint => 'none', metric => %s)",
        [name, dim, metric],
    )


def attach(conn: Connection, table: str, column: str = "embedding", encoder: str = "test") -> None:
    conn.execute("SELECT pgembed.attach(%s, %s, %s, %s)", [table, column, encoder, Jsonb({"text": "{title}"})])


def fill(conn: Connection, metric: str = "cosine", index: bool = True) -> Shop:
    random = np.random.default_rng(7)
    query = random.normal(size=DIM).astype(np.float32).astype(np.float64)  # so that text and binary are the same
    around = query / np.linalg.norm(query) + 0.25 * random.normal(size=(ROWS, DIM))
    around[-RARE:] -= 2 * query / np.linalg.norm(query)
    vectors = np.array([v / np.linalg.norm(v) for v in around])
    register(conn, metric)
    conn.execute("CREATE TABLE product (id integer PRIMARY KEY, title text, price integer, photo bytea)")
    attach(conn, "product")
    with conn.cursor().copy("COPY product (id, title, price, photo, embedding) FROM STDIN") as copy:
        for n, vector in enumerate(vectors):
            copy.write_row((n, "rare" if n >= ROWS - RARE else "plain", n % 100, b"picture", text(vector)))
    if index:
        conn.execute(f"CREATE INDEX product_index ON product USING hnsw (embedding {METRICS[metric]})".encode())
    conn.execute("ANALYZE product")
    return Shop(conn, vectors, query)


@pytest.fixture(scope="module")
def shop(server_dsn: str, template: str) -> Iterator[Shop]:
    """A shop that tests read and leave as it was."""
    for dsn in new_database(server_dsn, template):
        for conn in connection_to(dsn):
            yield fill(conn)


@pytest.fixture
def own_shop(database: Connection) -> Shop:
    """A shop that a test may change."""
    return fill(database)


def search(conn: Connection, query: Array | str, arguments: str = "", *params: object) -> list[tuple[Any, ...]]:
    """Rows of ``pgembed.search`` on ``product``: id and score."""
    statement = f"SELECT (item).id, score FROM pgembed.search(NULL::product, %s::vector{arguments})"
    return conn.execute(statement.encode(), [query if isinstance(query, str) else text(query), *params]).fetchall()


def fetch(conn: Connection, statement: Statement) -> list[SearchRow]:
    cursor = conn.cursor(row_factory=search_row_factory)
    register_packed(cursor.adapters, 0)
    return cursor.execute(statement.text, statement.values).fetchall()


def run(conn: Connection, plan: SearchPlan, trace: Trace | None = None) -> list[SearchRow]:
    """What the clients do with a plan."""
    register_packed(conn.adapters, 0)
    return plans.run(conn, Rounds().run(plan, trace))


def nearest(shop: Shop, metric: str, chosen: Array) -> list[int]:
    distances = {
        "cosine": -(shop.vectors @ shop.query),
        "ip": -(shop.vectors @ shop.query),
        "l2": np.linalg.norm(shop.vectors - shop.query, axis=1),
    }[metric]
    return [int(n) for n in np.argsort(distances) if chosen[n]]


def index_scans(conn: Connection, index: str = "product_index") -> int:
    """How often the index was read so far, in this transaction and in some before it: only differences count."""
    row = conn.execute("SELECT pg_stat_get_xact_numscans(%s::regclass)", [index]).fetchone()
    return int(row[0]) if row else 0


# What is found


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("exact", [False, True])
def test_nearest_rows_come_best_first_with_their_similarity(database: Connection, metric: str, exact: bool) -> None:
    shop = fill(database, metric)
    rows = search(database, shop.query, f", k => 20, exact => {exact}")
    expected = nearest(shop, metric, np.ones(ROWS, dtype=bool))[:20]
    assert len({n for n, _ in rows} & set(expected)) >= 19
    assert [n for n, _ in rows] == [n for n, _ in sorted(rows, key=lambda row: -row[1])]
    number, score = rows[0]
    v, q = shop.vectors[number], shop.query
    similarity = {"cosine": v @ q / np.linalg.norm(q), "ip": v @ q, "l2": -np.linalg.norm(v - q)}[metric]
    assert score == pytest.approx(similarity, abs=1e-5)


def test_index_serves_the_search_and_exact_uses_none(shop: Shop) -> None:
    with shop.conn.transaction():
        before = index_scans(shop.conn)
        search(shop.conn, shop.query)
        assert index_scans(shop.conn) == before + 1
        assert len(search(shop.conn, shop.query, ", exact => true")) == 10
        assert index_scans(shop.conn) == before + 1


def pretend(conn: Connection, rows: int) -> None:
    """Let the planner think that the table has so many rows."""
    conn.execute("UPDATE pg_class SET reltuples = %s WHERE oid = 'product'::regclass", [rows])


@pytest.mark.parametrize(
    ("rows", "where", "looks", "exact"),
    [
        (ROWS, "price < 50", 0, True),  # so few are compared sooner than a graph is read
        (1_000_000, "price < 50", 1, False),
        (1_000_000, "title <> 'rare'", 1, False),
        (1_000_000, "title = 'rare'", 1, True),  # what matches lies elsewhere
        (1_000_000, "id = 7", 0, True),
    ],
)
def test_filters_decide_how_far_the_index_is_read(
    own_shop: Shop, rows: int, where: str, looks: int, exact: bool
) -> None:
    conn = own_shop.conn
    pretend(conn, rows)
    expected = conn.execute(
        f"SELECT id FROM product WHERE {where} ORDER BY 0 + (embedding <=> %s::vector) LIMIT 10".encode(),
        [text(own_shop.query)],
    ).fetchall()
    trace = Trace()
    plan = compile_search(replace(own_shop.target(), rows=rows), Vector(own_shop.query), where=where)
    assert len({row["id"] for row in run(conn, plan, trace)} & {n for (n,) in expected}) >= 0.9 * len(expected)
    assert (len(trace.looks), trace.exact) == (looks, exact)
    with conn.transaction():
        before = index_scans(conn)
        found = search(conn, own_shop.query, f", filter => '{where.replace(chr(39), chr(39) * 2)}'")
        assert len({n for n, _ in found} & {n for (n,) in expected}) >= 0.9 * len(expected)
        assert index_scans(conn) == before + looks


def test_without_an_index_there_is_nothing_to_look_at(database: Connection) -> None:
    shop = fill(database, index=False)
    pretend(database, 1_000_000)
    trace = Trace()
    (row,) = database.execute(
        "SELECT g.rows, g.usable, g.partial FROM pgembed.embedding AS e, pgembed._graph_of(e, 'cosine') AS g"
    ).fetchall()
    assert row == (1_000_000, False, [])
    run(database, compile_search(replace(shop.target(), graph=False), Vector(shop.query), where="price < 50"), trace)
    assert trace.exact
    assert not trace.looks


def test_an_index_of_the_matching_rows_is_taken(own_shop: Shop) -> None:
    own_shop.conn.execute(
        "DROP INDEX product_index;"
        "CREATE INDEX product_cheap ON product USING hnsw (embedding vector_cosine_ops) WHERE price < 50"
    )
    pretend(own_shop.conn, 1_000_000)
    target = replace(own_shop.target(), rows=1_000_000, graph=False, partial=("product_cheap",))
    for where, partial in (("price < 50", True), ("price >= 50", False)):
        trace = Trace()
        found = run(own_shop.conn, compile_search(target, Vector(own_shop.query), where=where), trace)
        assert len(found) == 10
        assert trace.estimate is not None
        assert trace.estimate.partial == partial
        with own_shop.conn.transaction():
            before = index_scans(own_shop.conn, "product_cheap")
            assert len(search(own_shop.conn, own_shop.query, f", filter => '{where}'")) == 10
            assert index_scans(own_shop.conn, "product_cheap") == before + partial


def test_k_above_ef_search_is_served(shop: Shop) -> None:
    assert len(search(shop.conn, shop.query, ", k => 200")) == 200
    assert len(search(shop.conn, shop.query, ", k => 1500")) == 1500
    assert len(search(shop.conn, shop.query, ", k => 5000")) == ROWS
    for limit in (200, 1500, 5000):
        plan = compile_search(shop.target(), Vector(shop.query), limit=limit)
        assert len(run(shop.conn, plan)) == len(fetch(shop.conn, plan.portable)) == min(limit, ROWS)


def test_all_rows_of_a_filter_opposed_to_the_vector_are_found(shop: Shop) -> None:
    by_hand = "SELECT id FROM product WHERE title = 'rare' ORDER BY embedding <=> %s::vector LIMIT 60"
    shop.conn.execute("SET enable_seqscan = off")
    assert len(shop.conn.execute(by_hand, [text(shop.query)]).fetchall()) < RARE, "the data must be hard"
    shop.conn.execute("RESET enable_seqscan")
    expected = list(range(ROWS - RARE, ROWS))
    for k in (RARE, RARE + 40):
        rows = search(shop.conn, shop.query, ", k => %s, filter => 'title = ''rare'''", k)
        assert sorted(n for n, _ in rows) == expected
        assert rows == sorted(rows, key=lambda row: -row[1])
        plan = compile_search(shop.target(), Vector(shop.query), where="title = %s", params=["rare"], limit=k)
        for found in (run(shop.conn, plan), fetch(shop.conn, plan.portable), fetch(shop.conn, plan.exact)):
            assert [(row["id"], row.score) for row in found] == rows


def test_index_scan_that_gives_up_is_followed_by_an_exact_one(own_shop: Shop) -> None:
    own_shop.conn.execute("SET hnsw.max_scan_tuples = 100; SET enable_seqscan = off")
    rows = search(own_shop.conn, own_shop.query, ", k => 60, filter => 'title = ''rare'''")
    assert sorted(n for n, _ in rows) == list(range(ROWS - RARE, ROWS))


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("index", [False, True])
def test_null_and_zero_vectors_never_match(database: Connection, metric: str, index: bool) -> None:
    shop = fill(database, metric, index)
    database.execute("UPDATE product SET embedding = NULL WHERE id < 10")
    database.execute("UPDATE product SET embedding = array_fill(0, ARRAY[16])::vector WHERE id BETWEEN 10 AND 19")
    kept = list(range(20, 30))
    for query in (shop.query, -shop.query):
        rows = search(database, query, ", filter => 'id < 30', k => 20")
        assert sorted(n for n, _ in rows) == kept
        plan = compile_search(shop.target(metric), Vector(query), where="id < 30", limit=20)
        assert [(row["id"], row["score"]) for row in run(database, plan)] == rows
        assert [(row["id"], row["score"]) for row in fetch(database, plan.portable)] == rows


def test_ties_are_broken_by_the_key(database: Connection) -> None:
    register(database, dim=2)
    database.execute("CREATE TABLE product (title text, b integer, a integer, PRIMARY KEY (a, b))")
    attach(database, "product")
    database.execute("INSERT INTO product SELECT 't', g / 3, 9 - mod(g, 3), '[1,0]' FROM generate_series(0, 8) AS g")
    rows = database.execute(
        "SELECT (item).a, (item).b FROM pgembed.search(NULL::product, '[1,1]', k => 5, exact => true)"
    )
    assert rows.fetchall() == [(7, 0), (7, 1), (7, 2), (8, 0), (8, 1)]


def test_sql_and_python_give_the_same_rows(shop: Shop) -> None:
    random = np.random.default_rng(3)
    for n in range(20):
        query, top = random.normal(size=DIM).astype(np.float32), int(random.integers(1, 100))
        plan = compile_search(shop.target(), Vector(query), where="price < %s", params=[top], limit=5 + n)
        rows = search(shop.conn, query, ", k => %s, filter => 'price < $1', params => %s", 5 + n, Jsonb([top]))
        found = run(shop.conn, plan)
        assert [(row["id"], row.score) for row in found] == rows
        assert {row["price"] < top for row in found} == {True}


# What a row holds


def test_item_has_the_row_without_its_wide_columns_unless_asked(shop: Shop) -> None:
    statement = "SELECT (item).* FROM pgembed.search(NULL::product, %s::vector, k => 1, wide => {})"
    narrow = shop.conn.execute(statement.format(False).encode(), [text(shop.query)]).fetchone()
    wide = shop.conn.execute(statement.format(True).encode(), [text(shop.query)]).fetchone()
    assert narrow is not None
    assert wide is not None
    assert narrow[1:] == ("plain", narrow[0] % 100, None, None)
    assert wide[:4] == (*narrow[:3], b"picture")
    np.testing.assert_allclose(np.array(json.loads(wide[4])), shop.vectors[wide[0]], atol=1e-6)


def test_any_table_can_be_searched(database: Connection) -> None:
    """Other schema, odd names, dropped and generated columns, a domain, columns named as ours are."""
    register(database, dim=2)
    database.execute(
        'CREATE SCHEMA "My Schema"; CREATE DOMAIN size AS integer NOT NULL;'
        'CREATE TABLE "My Schema"."The ""Shop"" 1" ('
        '"The Id" uuid, gone text, title varchar(20), score text, distance integer, "%s {0}" numeric(6,2), c1 size,'
        ' "select" text GENERATED ALWAYS AS (upper(title)) STORED, photo bytea, PRIMARY KEY ("The Id"));'
        'ALTER TABLE "My Schema"."The ""Shop"" 1" DROP COLUMN gone'
    )
    attach(database, '"My Schema"."The ""Shop"" 1"', 'The "Vector"')
    database.execute(
        """INSERT INTO "My Schema"."The ""Shop"" 1" VALUES
        ('00000000-0000-0000-0000-000000000001', 'shoe', 'own', 5, 9.5, 3, DEFAULT, 'x', '[1,0]')"""
    )
    row = database.execute(
        b"""SELECT (item)."The Id"::text, (item).title, (item).score, (item).distance, (item)."%s {0}", (item).c1,
            (item)."select", s.score
        FROM pgembed.search(NULL::"My Schema"."The ""Shop"" 1", '[2,0]',
            filter => '"The ""Shop"" 1"."%s {0}" > 1 AND distance = 5 AND score = ''own''') AS s"""
    ).fetchone()
    assert row is not None
    assert [str(value) for value in row[1:]] == ["shoe", "own", "5", "9.50", "3", "SHOE", "1.0"]
    names = ("The Id", "title", "score", "distance", "%s {0}", "c1", "select")
    target = Target(
        "My Schema", 'The "Shop" 1', 'The "Vector"', "test", "test", 2, tuple(map(Column, names)), ("The Id",)
    )
    for limit in (1, 100):
        where, params = "distance = %s AND score = %s", [5, "own"]
        plan = compile_search(target, Vector([2, 0]), where=where, params=params, limit=limit)
        for statement in (plan.statement, plan.exact, plan.portable):
            (found,) = fetch(database, statement)
            assert found.score == 1
            assert (found.score_, found.distance, found["%s {0}"], found.c1) == ("own", 5, row[4], 3)


def test_encoder_is_taken_from_the_embedding_that_is_named(database: Connection) -> None:
    register(database, dim=2)
    register(database, dim=3, name="other")
    database.execute("CREATE TABLE product (id integer PRIMARY KEY, title text)")
    attach(database, "product", "one")
    attach(database, "product", "two", "other")
    database.execute("INSERT INTO product VALUES (1, 'a', '[1,0]', '[0,0,1]'), (2, 'b', '[0,1]', '[1,0,0]')")
    assert search(database, "[1,0]", ", embedding => 'one'")[0] == (1, 1.0)
    assert search(database, "[1,0,0]", ", embedding => 'two'")[0] == (2, 1.0)
    with pytest.raises(psycopg.Error, match="product has several embeddings: one, two") as raised:
        search(database, "[1,0]")
    assert raised.value.diag.message_hint == "Say which: embedding => 'one'."
    with pytest.raises(psycopg.Error, match="product has no embedding named 'three'") as raised:
        search(database, "[1,0]", ", embedding => 'three'")
    assert raised.value.diag.message_hint == "It has: one, two."


def test_table_is_found_by_name_where_its_oid_is_an_old_one(own_shop: Shop) -> None:
    own_shop.conn.execute("UPDATE pgembed.embedding SET relation = NULL")
    assert len(search(own_shop.conn, own_shop.query)) == 10
    own_shop.conn.execute("UPDATE pgembed.embedding SET relation = 4000000000")
    assert len(search(own_shop.conn, own_shop.query)) == 10


def test_renamed_table_is_found_by_its_oid(own_shop: Shop) -> None:
    own_shop.conn.execute("ALTER TABLE product RENAME TO thing; CREATE TABLE product (id integer PRIMARY KEY)")
    found = own_shop.conn.execute(
        "SELECT (item).id FROM pgembed.search(NULL::thing, %s::vector)", [text(own_shop.query)]
    )
    assert len(found.fetchall()) == 10
    with pytest.raises(psycopg.Error, match="product has no embedding"):
        search(own_shop.conn, own_shop.query)


def test_search_works_where_pgvector_is_in_a_schema_of_its_own(bare_database: Connection) -> None:
    bare_database.execute("CREATE SCHEMA ext; CREATE EXTENSION vector SCHEMA ext")
    schema.install(bare_database)
    register(bare_database, dim=2)
    bare_database.execute("CREATE TABLE product (id integer PRIMARY KEY, title text)")
    attach(bare_database, "product")
    bare_database.execute("INSERT INTO product VALUES (1, 'a', '[1,0]'), (2, 'b', '[0,1]')")
    statement = "SELECT (item).id FROM pgembed.search(NULL::product, '[1,1e-3]', filter => 'id > 0')"
    assert bare_database.execute(statement.encode()).fetchall() == [(1,), (2,)]
    target = Target("public", "product", "embedding", "test", "test", 2, (Column("id"),), ("id",), vector_schema="ext")
    for metric in METRICS:
        changed = Target(*[getattr(target, name) if name != "metric" else metric for name in target.__slots__])
        for query in (Vector([1, 0.001]), Vector([1, 0]) + 0.001 * Vector([0, 1])):
            plan = compile_search(changed, query, where="id > 0")
            assert [row["id"] for row in run(bare_database, plan)] == [1, 2]
            assert [row["id"] for row in fetch(bare_database, plan.portable)] == [1, 2]


def test_halfvec_column_is_searched_through_its_index(own_shop: Shop) -> None:
    own_shop.conn.execute(
        "DROP INDEX product_index; ALTER TABLE product ALTER embedding TYPE halfvec(16) USING embedding::halfvec(16);"
        "CREATE INDEX product_index ON product USING hnsw (embedding halfvec_cosine_ops); ANALYZE product"
    )
    full = own_shop.target()
    half = Target(*[getattr(full, name) if name != "half" else True for name in full.__slots__])
    with own_shop.conn.transaction():
        rows = search(own_shop.conn, own_shop.query)
        assert index_scans(own_shop.conn) == 1
        found = fetch(own_shop.conn, compile_search(half, Vector(own_shop.query)).statement)
        assert index_scans(own_shop.conn) == 2
    assert [(row["id"], row.score) for row in found] == rows
    assert len(set(nearest(own_shop, "cosine", np.ones(ROWS, dtype=bool))[:10]) & {n for n, _ in rows}) >= 9


# The search without a filter is kept as a function with a plan of its own


def kept(conn: Connection, query: Array) -> int:
    """How many rows the kept search of ``product`` gives: all, or none where search must look closer."""
    statement = sql.SQL("SELECT count(*) FROM pgembed.{}(%s::vector, 10, NULL, NULL::product)")
    name = sql.Identifier(f"search_{row_type(conn)}")
    return int(conn.execute(statement.format(name), [text(query)]).fetchall()[0][0])


def row_type(conn: Connection) -> int:
    """The number of ``product``'s row type."""
    return int(conn.execute("SELECT 'product'::regtype::oid").fetchall()[0][0])


def items(conn: Connection, query: Array, arguments: str = "") -> list[tuple[Any, ...]]:
    """Whole rows of ``pgembed.search``, and what stands in the table for them with the wide columns NULL."""
    statement = f"""
        SELECT to_jsonb(item), (SELECT jsonb_object_agg(key, CASE WHEN key NOT IN ('photo', 'embedding') THEN value END)
            FROM product AS p CROSS JOIN jsonb_each(to_jsonb(p)) WHERE p.id = (item).id)
        FROM pgembed.search(NULL::product, %s::vector{arguments})"""
    return conn.execute(statement.encode(), [text(query)]).fetchall()


@pytest.mark.parametrize("metric", METRICS)
def test_kept_search_gives_the_same_as_any_other(database: Connection, metric: str) -> None:
    shop = fill(database, metric)
    random = np.random.default_rng(11)
    for k in (1, 10, 11):
        query = random.normal(size=DIM)
        assert search(database, query, ", k => %s", k) == search(database, query, ", k => %s, wide => true", k)
    assert kept(database, shop.query) == 10


def test_kept_searches_follow_the_catalog(database: Connection) -> None:
    def names() -> list[tuple[Any, ...]]:
        return database.execute(
            "SELECT proname FROM pg_proc WHERE pronamespace = 'pgembed'::regnamespace AND proname ~ '^search_[0-9]+$'"
        ).fetchall()

    register(database)
    database.execute("CREATE TABLE product (id integer PRIMARY KEY, title text)")
    attach(database, "product")
    database.execute(
        "INSERT INTO product SELECT g, 't', array_fill(g, ARRAY[16])::vector FROM generate_series(1, 10) AS g"
    )
    (first,) = names()
    query = np.ones(DIM)
    assert kept(database, query) == 10
    attach(database, "product", "two")
    assert names() == [first]
    assert kept(database, query) == 0  # it is not said which
    assert search(database, query, ", embedding => 'two'") == []
    assert len(search(database, query, ", embedding => 'embedding'")) == 10
    database.execute("SELECT pgembed.detach('product', 'two')")
    assert kept(database, query) == 10
    database.execute(
        "ALTER TABLE product RENAME TO thing; ALTER TABLE thing RENAME id TO number; SELECT pgembed.sync()"
    )
    assert names() == [first]
    found = database.execute("SELECT (item).number FROM pgembed.search(NULL::thing, %s::vector)", [text(query)])
    assert len(found.fetchall()) == 10
    database.execute("DROP TABLE thing; SELECT pgembed.forget(1)")
    assert names() == []


def test_whoever_is_granted_it_may_bring_the_kept_searches_up_to_date(own_shop: Shop) -> None:
    conn = own_shop.conn
    conn.execute(
        "CREATE ROLE visitor; GRANT USAGE ON SCHEMA pgembed TO visitor; GRANT SELECT ON product TO visitor;"
        "GRANT SELECT, UPDATE ON pgembed.embedding, pgembed.encoder TO visitor;"
        "GRANT EXECUTE ON FUNCTION pgembed._keep_searches() TO visitor;"
        "ALTER TABLE product ADD note text; SET ROLE visitor"
    )
    try:
        with pytest.raises(psycopg.Error):
            kept(conn, own_shop.query)
        assert len(search(conn, own_shop.query)) == 10  # the long way
        conn.execute("SELECT pgembed.sync()")
        assert kept(conn, own_shop.query) == 10
        assert len(search(conn, own_shop.query)) == 10
        owner = "SELECT pg_get_userbyid(proowner) = session_user FROM pg_proc WHERE proname = %s"
        assert conn.execute(owner, [f"search_{row_type(conn)}"]).fetchall() == [(True,)]
    finally:
        conn.execute("RESET ROLE; DROP OWNED BY visitor; DROP ROLE visitor")


def test_search_asks_the_kept_search_first(database: Connection) -> None:
    """Of several tables each finds its own function, and what install applies again does not lose them."""
    register(database)
    for table in ("product", "thing"):
        database.execute(f"CREATE TABLE {table} (id integer PRIMARY KEY, title text)".encode())
        attach(database, table)
        database.execute(
            f"INSERT INTO {table} SELECT g, 't', array_fill(g, ARRAY[16])::vector"
            " FROM generate_series(1, 10) AS g".encode()
        )
    schema.install(database)
    database.execute("SET track_functions = 'pl'")
    for table in ("product", "thing", "thing"):
        statement = f"SELECT count(*) FROM pgembed.search(NULL::{table}, array_fill(1, ARRAY[16])::vector)"
        assert database.execute(statement.encode()).fetchall() == [(10,)]
    database.execute("SELECT pg_stat_force_next_flush()")
    found = dict(
        database.execute(
            "SELECT typrelid::regclass::text, calls FROM pg_stat_user_functions AS f"
            " JOIN pg_type AS t ON f.funcname = 'search_' || t.oid WHERE f.schemaname = 'pgembed'"
        ).fetchall()
    )
    assert found == {"product": 1, "thing": 2}


def test_tables_attached_at_the_same_time_are_searched_and_kept_after_the_next_sync(
    database: Connection, database_dsn: str
) -> None:
    register(database)
    database.execute(
        "CREATE TABLE product (id int PRIMARY KEY, title text); CREATE TABLE thing (LIKE product INCLUDING ALL)"
    )
    with psycopg.connect(database_dsn) as other:
        attach(other, "thing")
        attach(database, "product")  # waits for nothing
        other.commit()
    database.execute(
        "INSERT INTO product SELECT g, 't', array_fill(g, ARRAY[16])::vector FROM generate_series(1, 10) AS g"
    )
    assert len(search(database, np.ones(DIM))) == 10
    with pytest.raises(psycopg.errors.UndefinedFunction):
        kept(database, np.ones(DIM))
    database.execute("SELECT pgembed.sync()")  # as workers do when they start
    assert kept(database, np.ones(DIM)) == 10
    assert len(search(database, np.ones(DIM))) == 10


def test_kept_plan_reads_the_index_whenever_there_is_one(own_shop: Shop) -> None:
    conn = own_shop.conn
    with conn.transaction():
        for _ in range(12):
            search(conn, own_shop.query)
        assert index_scans(conn) == 12
    before = search(conn, own_shop.query)
    conn.execute("DROP INDEX product_index")
    assert {n for n, _ in search(conn, own_shop.query)} >= {n for n, _ in before[:8]}
    conn.execute("CREATE INDEX product_index ON product USING hnsw (embedding vector_cosine_ops)")
    with conn.transaction():
        search(conn, own_shop.query)
        assert index_scans(conn) == 1


@pytest.mark.parametrize(
    "change",
    [
        "ADD new text DEFAULT 'new'",
        "ADD new bytea DEFAULT 'new'",
        "DROP title",
        "DROP photo",
        "DROP title, ADD title text DEFAULT 'new'",
        "DROP photo, ADD photo bytea DEFAULT 'new'",
        "DROP price, DROP title, ADD title integer DEFAULT 1, ADD price text DEFAULT '2'",
        "ALTER title TYPE varchar(9)",
        "ALTER price TYPE bigint",
        "ALTER photo TYPE text USING 'text'",
        "RENAME title TO name",
        "RENAME title TO t; ALTER TABLE product RENAME price TO title; ALTER TABLE product RENAME t TO price",
    ],
)
def test_rows_are_right_after_the_table_was_changed(database: Connection, change: str) -> None:
    register(database)
    database.execute("CREATE TABLE product (id integer PRIMARY KEY, title text, price integer, photo bytea)")
    attach(database, "product")
    database.execute(
        "DROP TRIGGER pgembed_1_update ON product;"  # it holds the columns that it looks at
        "ALTER TABLE product ADD note text DEFAULT 'note', ADD size integer DEFAULT 5;"
        "SELECT pgembed._keep_searches();"
        "INSERT INTO product SELECT g, 'title ' || g, g, 'photo', array_fill(g, ARRAY[16])::vector"
        " FROM generate_series(1, 20) AS g"
    )
    query = np.ones(DIM)
    for _ in range(7):
        assert search(database, query)
    database.execute(f"ALTER TABLE product {change}".encode())
    wide = "photo" if "photo TYPE text" in change else None
    for _ in range(2):
        for arguments in ("", ", filter => 'true'"):
            rows = items(database, query, arguments)
            assert len(rows) == 10
            for item, stored in rows:
                if wide:
                    assert item.pop(wide) == "text"
                    del stored[wide]
                if "new" in stored and "bytea" in change:
                    stored["new"] = None
                assert item == stored


# A query vector is computed once


@pytest.fixture
def counted(own_shop: Shop) -> Iterator[Callable[[], int]]:
    """``encode_text`` counts its calls; gives how many there were since the last time."""
    vector = text(own_shop.query)
    own_shop.conn.execute("CREATE SEQUENCE calls; SELECT nextval('calls')")
    own_shop.conn.execute(
        sql.SQL(
            "CREATE OR REPLACE FUNCTION pgembed.encode_text(encoder text, query text) RETURNS vector"
            " LANGUAGE plpgsql STABLE AS $$ BEGIN PERFORM nextval('calls'); RETURN {}; END $$"
        ).format(sql.Literal(vector))
    )
    last = 1

    def calls() -> int:
        nonlocal last
        row = own_shop.conn.execute("SELECT last_value FROM calls").fetchone()
        assert row is not None
        since, last = row[0] - last, row[0]
        return since

    return calls


@pytest.mark.parametrize("index", [True, False])
@pytest.mark.parametrize("where", [None, "price < 50", "title = 'rare'"])
def test_compiled_query_encodes_each_text_once(
    own_shop: Shop, counted: Callable[[], int], index: bool, where: str | None
) -> None:
    if not index:
        own_shop.conn.execute("DROP INDEX product_index")
    plain = own_shop.target()
    target = Target(*[getattr(plain, name) if name != "static_text" else True for name in plain.__slots__])
    queries: dict[Expression, int] = {
        Text("red"): 1,
        Text("red") - 0.5 * Text("blue"): 2,
        Vector(own_shop.query) + Text("red"): 1,
        Vector(own_shop.query): 0,
    }
    for query, expected in queries.items():
        for limit in (10, 70):
            plan = compile_search(target, query, where=where, limit=limit)
            for statement in (plan.statement, plan.exact, plan.portable):
                fetch(own_shop.conn, statement)
                assert counted() == expected, statement.as_string()


def test_search_in_sql_encodes_its_text_once(own_shop: Shop, counted: Callable[[], int]) -> None:
    for arguments in ("", ", filter => 'price < 50'", ", k => 70, filter => 'title = ''rare'''", ", exact => true"):
        query = "(SELECT pgembed.encode_text('test', 'red'))"
        own_shop.conn.execute(f"SELECT score FROM pgembed.search(NULL::product, {query}{arguments})".encode())
        assert counted() == 1


@pytest.mark.parametrize("limit", [30, 60])
def test_rows_are_in_order_where_the_index_is_read_on_past_deleted_ones(own_shop: Shop, limit: int) -> None:
    own_shop.conn.execute("SET hnsw.ef_search = 20; SET hnsw.iterative_scan = relaxed_order")
    own_shop.conn.execute("DELETE FROM product WHERE id % 8 <> 0")  # the index keeps them till the table is vacuumed
    random = np.random.default_rng(3)
    for query in random.normal(size=(20, DIM)):
        plan = compile_search(own_shop.target(), Vector(query), limit=limit)
        for scores in (
            [score for _, score in search(own_shop.conn, query, f", k => {limit}")],
            [row.score for row in run(own_shop.conn, plan)],
            [row.score for row in fetch(own_shop.conn, plan.portable)],
        ):
            assert scores == sorted(scores, reverse=True)
            assert len(scores) == limit


# Nothing is left behind, and the rights are the caller's


def current(conn: Connection) -> tuple[Any, ...] | None:
    return conn.execute("SELECT current_setting('hnsw.iterative_scan'), current_setting('hnsw.ef_search')").fetchone()


def test_settings_are_as_before_also_after_an_error(shop: Shop) -> None:
    with shop.conn.transaction():
        shop.conn.execute("SET LOCAL hnsw.iterative_scan = 'strict_order'; SET LOCAL hnsw.ef_search = 77")
        search(shop.conn, shop.query, ", k => 300, filter => 'price < 50'")
        assert current(shop.conn) == ("strict_order", "77")
        with pytest.raises(psycopg.errors.DivisionByZero), shop.conn.transaction():
            search(shop.conn, shop.query, ", filter => '1 / (price - price) = 1'")
        assert current(shop.conn) == ("strict_order", "77")
        plan = compile_search(shop.target(), Vector(shop.query), limit=300)
        (before,) = fetch(shop.conn, plan.settings())
        assert current(shop.conn) == ("relaxed_order", "300")
        assert not plan.starves(before)
        fetch(shop.conn, plan.restore(before))
        assert current(shop.conn) == ("strict_order", "77")
    assert current(shop.conn) == ("off", "40")


def test_search_works_in_a_read_only_transaction(shop: Shop) -> None:
    with shop.conn.transaction():
        shop.conn.execute("SET TRANSACTION READ ONLY")
        assert len(search(shop.conn, shop.query, ", filter => 'price < 50'")) == 10


def test_rights_and_policies_are_the_caller_s(own_shop: Shop) -> None:
    conn = own_shop.conn
    conn.execute(
        "CREATE ROLE visitor; GRANT USAGE ON SCHEMA pgembed TO visitor;"
        "GRANT SELECT ON pgembed.embedding, pgembed.encoder TO visitor"
    )
    try:
        conn.execute("SET ROLE visitor")
        for arguments in ("", ", filter => 'price < 50'"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                search(conn, own_shop.query, arguments)
        conn.execute(
            "RESET ROLE; GRANT SELECT ON product TO visitor; ALTER TABLE product ENABLE ROW LEVEL SECURITY;"
            "CREATE POLICY only_rare ON product FOR SELECT TO visitor USING (title = 'rare'); SET ROLE visitor"
        )
        for arguments in (", k => 60", ", k => 60, filter => 'true OR price < 0'"):
            assert sorted(n for n, _ in search(conn, own_shop.query, arguments)) == list(range(ROWS - RARE, ROWS))
    finally:
        conn.execute("RESET ROLE; DROP OWNED BY visitor; DROP ROLE visitor")


def test_columns_that_may_be_read_are_enough(own_shop: Shop) -> None:
    conn = own_shop.conn
    conn.execute(
        "CREATE ROLE visitor; GRANT USAGE ON SCHEMA pgembed TO visitor;"
        "GRANT SELECT ON pgembed.embedding, pgembed.encoder TO visitor;"
        "GRANT SELECT (id, title, price, embedding) ON product TO visitor; SET ROLE visitor"
    )
    try:
        assert len(search(conn, own_shop.query)) == 10
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            search(conn, own_shop.query, ", wide => true")
    finally:
        conn.execute("RESET ROLE; DROP OWNED BY visitor; DROP ROLE visitor")


# Filters and parameters


@pytest.mark.parametrize(
    ("filter", "params", "python"),
    [
        ("price < $1", [5], lambda n: n % 100 < 5),
        ("price < $1", [4.5], lambda n: n % 100 < 4.5),
        ("price = ANY ($1) AND title = $2", [[3, 4], "plain"], lambda n: n % 100 in (3, 4) and n < ROWS - RARE),
        ("price = ANY ($1)", [[3, 4.5]], lambda n: n % 100 == 3),
        ("title = ANY ($2) AND price < $1", [9, ["rare"]], lambda n: n % 100 < 9 and n >= ROWS - RARE),
        ("price = ANY ($1)", [[]], lambda _: False),
        ("$1 AND price = 7", [True], lambda n: n % 100 == 7),
        ("price = 7 AND $1 IS NULL", [None], lambda n: n % 100 == 7),
        ("price = 7 AND '$1' = '$' || 1 AND title <> '--;/*'", None, lambda n: n % 100 == 7),
        ("price = $10 - $1", [2, *[0] * 8, 9], lambda n: n % 100 == 7),
        ("jsonb_build_object('p', price) @> $1", [{"p": 7}], lambda n: n % 100 == 7),
        ("price = $1::text::integer", ["7"], lambda n: n % 100 == 7),
        ("title = $1", ["'; DROP TABLE product; --"], lambda _: False),
        ("title || $2 = $1", ["rare'\\", "'\\"], lambda n: n >= ROWS - RARE),
        ("product.price IN (SELECT 7) AND EXISTS (SELECT WHERE id > 9)", None, lambda n: n % 100 == 7 and n > 9),
        ("price\n=\n7", None, lambda n: n % 100 == 7),
        ("CASE WHEN price = 7 THEN true END", None, lambda n: n % 100 == 7),
        ("title ~ '^r.re$' AND title LIKE '%r%' AND price % 2 = 0", None, lambda n: n >= ROWS - RARE and n % 2 == 0),
        ("title = E'\\x72are' AND U&'\\0061' = 'a' AND $$;$$ = ';'::text", None, None),
    ],
)  # fmt: skip
def test_filters_and_their_parameters(
    shop: Shop, filter: str, params: list[Any] | None, python: Callable[[int], bool] | None
) -> None:
    if python is None:  # refused for its look; what is in it is allowed in other forms
        with pytest.raises(psycopg.errors.SyntaxError, match="holds a comment or a semicolon"):
            search(shop.conn, shop.query, ", filter => %s", filter)
        return
    expected = {n for n in range(ROWS) if python(n)}
    rows = search(
        shop.conn, shop.query, ", k => 3000, filter => %s, params => %s", filter,
        None if params is None else Jsonb(params),
    )  # fmt: skip
    assert {n for n, _ in rows} == expected


@pytest.mark.parametrize(
    ("filter", "words"),
    [
        ("", "it is empty|syntax error"),
        ("  \n", "it is empty|syntax error"),
        ("price <", "syntax error"),
        ("prise < 5", 'column "prise" does not exist'),
        ("price", "must be type boolean"),
        ("price < 5 -- and no more", "comment"),
        ("price < 5 /* and no more", "comment"),
        ("price < 5; DROP TABLE product", "semicolon"),
        ("true) OR (true", "syntax error"),
        ("true) LIMIT 0; DROP TABLE product; SELECT (true", "semicolon"),
        ("true THEN true END OR CASE WHEN true", "syntax error"),
        ("true THEN true WHEN true", "syntax error"),
        ("(true", "syntax error"),
        ("true)", "syntax error"),
        ("true, true", "syntax error"),
        ("SELECT true", "syntax error"),
        ("true ORDER BY 1", "syntax error"),
        ("true LIMIT 1", "syntax error"),
        ("true UNION SELECT 1", "syntax error"),
        ("title = 'a", "unterminated"),
        ('"title = 1', "unterminated"),
        ("title = $$a", "unterminated"),
        ("E'\\' = ' OR true) LIMIT 0) AS nearest; DROP TABLE product; SELECT ('", "one condition"),
        ("count(*) > 1", "aggregate"),
        ("price < 'abc'", "invalid input syntax"),
        ("price < $1", "names \\$1; params holds 0"),
    ],
)
def test_filter_that_is_not_one_condition_is_refused(shop: Shop, filter: str, words: str) -> None:
    with pytest.raises(psycopg.Error, match=words) as raised:
        search(shop.conn, shop.query, ", filter => %s", filter)
    assert raised.value.diag.message_hint
    assert str(raised.value.diag.message_primary).startswith("The filter")
    assert shop.conn.execute("SELECT count(*) FROM product").fetchone() == (ROWS,)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (", k => 0", "at least 1, not 0"),
        (", k => -3", "at least 1, not -3"),
        (", k => NULL", "at least 1, not NULL"),
        (", params => '[1]'", "no filter that names them"),
        (", filter => 'price < $1', params => '{\"a\": 1}'", "JSON array"),
        (", filter => 'price < $2', params => '[1]'", "names \\$2; params holds 1"),
        (", filter => 'price < $0', params => '[1]'", "names \\$0"),
        (", filter => 'price < $99999999999', params => '[1]'", "names \\$99999999999"),
        (", filter => 'title < $1', params => '[1]'", "operator does not exist"),
    ],
)
def test_wrong_arguments_are_told(shop: Shop, arguments: str, words: str) -> None:
    with pytest.raises(psycopg.Error, match=words) as raised:
        search(shop.conn, shop.query, arguments)
    assert raised.value.diag.message_hint


def test_wrong_queries_are_told(shop: Shop) -> None:
    wrong = {
        "(SELECT embedding FROM product WHERE id = -1)": "query vector is NULL",
        f"'{text(np.zeros(DIM))}'": "query vector is zero",
        "'[1,2,3]'": "product.embedding holds vectors of encoder 'test' with 16 dimensions; the query has 3",
    }
    for query, words in wrong.items():
        with pytest.raises(psycopg.errors.InvalidParameterValue, match=words) as raised:
            shop.conn.execute(f"SELECT pgembed.search(NULL::product, {query})".encode())
        assert raised.value.diag.message_hint


def test_wrong_tables_are_told(database: Connection) -> None:
    database.execute('CREATE TABLE "Bare" (id integer PRIMARY KEY)')
    with pytest.raises(psycopg.errors.UndefinedObject, match='Table "Bare" has no embedding') as raised:
        database.execute("SELECT pgembed.search(NULL::\"Bare\", '[1]')")
    assert "pgembed.attach('\"Bare\"'" in str(raised.value.diag.message_hint)
    with pytest.raises(psycopg.errors.DatatypeMismatch, match="row type, which integer is not") as raised:
        database.execute("SELECT pgembed.search(1, '[1]')")
    assert raised.value.diag.message_hint == "For example: pgembed.search(NULL::product, ...)."
