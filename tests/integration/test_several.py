"""Several embeddings of one table in one query, and explanations in SQL: by hand, both storages, rights, bad input."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from tests.conftest import connection_to, new_database
from tests.fakes import Connection
from tests.integration.test_hybrid import ROWS, TABLE, Shop, assert_same, by_rank, by_score, fill, key_of, text


@pytest.fixture(scope="module")
def shop(server_dsn: str, template: str) -> Iterator[Shop]:
    """One embedding is a column, the other in a side table; the vectors of the column have an index."""
    for dsn in new_database(server_dsn, template):
        for conn in connection_to(dsn):
            yield fill(conn, dsn)


def several(shop: Shop, queries: object, more: str = "") -> list[tuple[Any, float]]:
    call = f"pgembed.search_several(NULL::{TABLE}, $1::jsonb, {more or 'k => 10'})"
    statement = f'SELECT (item)."a key", (item).n, score FROM {call}'
    return [(tuple(key), score) for *key, score in raw(shop.conn, statement, json.dumps(queries))]


def raw(conn: Connection, statement: str, *params: object) -> list[tuple[Any, ...]]:
    return psycopg.RawCursor(conn).execute(statement.encode(), params).fetchall()


def vector(shop: Shop, name: str) -> list[float]:
    return shop.queries[name].tolist()


@pytest.mark.parametrize("method", ["rank", "score"])
@pytest.mark.parametrize("depth", [12, 1000])
def test_each_leg_gives_candidates_and_every_candidate_counts_in_each(shop: Shop, method: str, depth: int) -> None:
    legs = [shop.of_vectors("title vec"), shop.of_vectors("photo")]
    fuse = by_rank if method == "rank" else by_score
    asked = {"title vec": {"vector": vector(shop, "title vec"), "weight": 0.3}, "photo": vector(shop, "photo")}
    found = several(shop, asked, f"method => '{method}', depth => {depth}, exact => true")
    assert_same(found, fuse(legs, [0.3, 1], depth))
    twice = [{"embedding": "photo", "vector": vector(shop, "photo")}, {"embedding": "photo", "row": ["de", 37]}]
    other = shop.vectors["photo"][37]
    shop.queries["photo"], kept = other, shop.queries["photo"]  # type: ignore[index]
    like_row = shop.of_vectors("photo")
    shop.queries["photo"] = kept  # type: ignore[index]
    found = several(shop, twice, f"method => '{method}', depth => {depth}, exact => true")
    assert_same(found, fuse([legs[1], like_row], [1, 1], depth))


def test_filters_hold_for_all_and_for_one_and_as_many_come_as_match(shop: Shop) -> None:
    asked = {"title vec": vector(shop, "title vec"), "photo": vector(shop, "photo")}
    cheap = [n for n in range(25, ROWS) if n % 50 < 1]
    found = several(shop, asked, "k => 100, filter => 'price < $1', params => '[1]'")
    assert {key for key, _ in found} == {key_of(n) for n in cheap}
    alone = {
        "title vec": {"vector": vector(shop, "title vec"), "filter": "price < 1"},
        "photo": {"vector": vector(shop, "photo"), "filter": "price = 1"},
    }
    found = several(shop, alone, "k => 100, method => 'score'")
    legs = [shop.of_vectors("title vec", cheap), shop.of_vectors("photo", [n for n in range(ROWS) if n % 50 == 1])]
    assert_same(found, by_score(legs, [1, 1], 100), 100)


def test_a_row_that_lacks_one_vector_is_found_by_the_other(shop: Shop) -> None:
    key = key_of(40)
    title = shop.of_vectors("title vec")
    photo = {k: score for k, score in shop.of_vectors("photo").items() if k != key}
    with shop.conn.transaction(force_rollback=True):
        side = shop.conn.execute("SELECT side::regclass::text FROM pgembed.embedding WHERE target = 'photo'").fetchone()
        assert side
        shop.conn.execute(f"DELETE FROM {side[0]} WHERE n = 40".encode())
        asked = {"title vec": vector(shop, "title vec"), "photo": vector(shop, "photo")}
        found = several(shop, asked, "k => 500, depth => 500, method => 'score', exact => true")
        assert_same(found, by_score([title, photo], [1, 1], 500), 500)
        assert dict(found)[key] == pytest.approx(title[key])


def test_queries_are_rows_and_sums_too(shop: Shop) -> None:
    one, two = vector(shop, "photo"), text(shop.vectors["photo"][37])
    found = several(shop, {"photo": {"sum": [[1, {"vector": one}], [-0.5, {"row": ["de", 37]}]]}}, "method => 'score'")
    expected = raw(
        shop.conn,
        f'SELECT (item)."a key", (item).n, score FROM pgembed.search(NULL::{TABLE},'
        " pgembed.compose(ARRAY[$1::vector, $2::vector], '{1,-0.5}'), embedding => 'photo')",
        str(one),
        two,
    )
    assert [(key, pytest.approx(score)) for key, score in found] == [((a, n), score) for a, n, score in expected]


def test_words_are_encoded_by_each_embedding(database: Connection) -> None:
    database.execute("SELECT pgembed.add_encoder('lite', 'builtin:lite')")
    database.execute("CREATE TABLE note (id int PRIMARY KEY, title text, body text)")
    database.execute("INSERT INTO note VALUES (1, 'a boat', 'the harbour at night'), (2, 'a dog', 'on the beach')")
    for column in ("title", "body"):
        database.execute(
            "SELECT pgembed.attach('note', %s, 'lite', jsonb_build_object('text', %s::text), mode => 'instant')",
            [f"{column}_vector", column],
        )
        database.execute("CALL pgembed.fill('note')")
    rows = raw(
        database,
        """SELECT (item).id, score FROM pgembed.search_several(NULL::note,
            '{"title_vector": "dog", "body_vector": {"text": "beach", "weight": 2}}', method => 'score')""",
    )
    by_hand = raw(
        database,
        """SELECT id, 1 - (title_vector <=> pgembed.encode_text('lite', 'dog'))
            + 2 * (1 - (body_vector <=> pgembed.encode_text('lite', 'beach'))) FROM note ORDER BY 2 DESC""",
    )
    assert rows == [(key, pytest.approx(score, abs=1e-6)) for key, score in by_hand]
    assert rows[0][0] == 2


REFUSED = [
    (None, "queries says what to look for in which embedding, which NULL does not."),
    ({}, "which {} does not."),
    ("shoe", 'which "shoe" does not.'),
    ({"nope": "shoe"}, "has no embedding named 'nope'"),
    ([{"vector": [1, 2]}], "has several embeddings: title vec, photo."),
    ({"photo": [1, 2]}, "with 4 dimensions; the query has 2."),
    ({"photo": ["a"]}, '["a"] is no vector'),
    ({"photo": [0, 0, 0, 0]}, "The query vector is zero"),
    ({"photo": {"vector": [1, 0, 0, 0], "weight": "much"}}, '"weight" is a number'),
    ({"photo": {"vector": [1, 0, 0, 0], "filter": 1}}, '"filter" a text'),
    ({"photo": {"vector": [1, 0, 0, 0], "row": 1}}, "is no query of photo."),
    ({"photo": {"like": 1}}, "is no query of photo."),
    ({"photo": 3}, "3 is no query of photo."),
    ({"photo": {"sum": []}}, "is no query of photo."),
    ({"photo": {"sum": [["1", [1, 0, 0, 0]]]}}, "is no query of photo."),
    ({"photo": {"row": 3}}, "[3] is no key of"),
    ({"photo": {"row": ["de", 99999]}}, 'The row ["de", 99999] is not in'),
    ({"photo": {"vector": [1, 0, 0, 0], "filter": "true) OR (true"}}, "is not one condition on"),
    ({"photo": {"vector": [1, 0, 0, 0], "filter": "true; DROP TABLE x"}}, "holds a semicolon"),
]


def test_what_cannot_be_is_told_in_a_sentence(shop: Shop) -> None:
    for queries, told in REFUSED:
        with pytest.raises(psycopg.Error) as error:
            raw(
                shop.conn,
                f"SELECT * FROM pgembed.search_several(NULL::{TABLE}, $1::jsonb)",
                None if queries is None else json.dumps(queries),
            )
        assert told in str(error.value.diag.message_primary), queries
        assert error.value.diag.message_hint, queries


def test_who_may_not_see_a_row_neither_finds_it_nor_asks_with_it(shop: Shop) -> None:
    asked = {"title vec": vector(shop, "title vec"), "photo": vector(shop, "photo")}
    everything = several(shop, asked, "k => 500, depth => 500")
    conn = shop.conn
    conn.execute("CREATE ROLE several_visitor; GRANT USAGE ON SCHEMA shop TO several_visitor")
    try:
        conn.execute("SET ROLE several_visitor")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            several(shop, asked)
        conn.execute("RESET ROLE")
        conn.execute("GRANT SELECT ON ALL TABLES IN SCHEMA shop TO several_visitor")
        conn.execute("SELECT pgembed.grant_role('reader', 'several_visitor')")
        conn.execute(f"ALTER TABLE {TABLE} ENABLE ROW LEVEL SECURITY".encode())
        conn.execute(f"CREATE POLICY cheap ON {TABLE} USING (price < 10)".encode())
        conn.execute("SET ROLE several_visitor")
        seen = several(shop, asked, "k => 500, depth => 500")
        assert {key for key, _ in seen} == {key for key, _ in everything if key[1] % 50 < 10}
        with pytest.raises(psycopg.Error, match=r'The row \["de", 37\] is not in'):
            several(shop, {"photo": {"row": ["de", 37]}})
        told = explained(shop, f"explain_several(NULL::{TABLE}, '{json.dumps(asked)}', recall => true)")
        assert {int(row["key"][1]) % 50 < 10 for row in told["rows"]} == {True}
        assert told["recall"] == 1
    finally:
        conn.execute("RESET ROLE")
        conn.execute(f"DROP POLICY IF EXISTS cheap ON {TABLE}; ALTER TABLE {TABLE} DISABLE ROW LEVEL SECURITY".encode())
        conn.execute("SELECT pgembed.revoke_role('reader', 'several_visitor')")
        conn.execute("DROP OWNED BY several_visitor; DROP ROLE several_visitor")


# Explanations


def explained(shop: Shop, call: str, *params: object) -> dict[str, Any]:
    return raw(shop.conn, f"SELECT pgembed.{call}", *params)[0][0]


def test_explain_search_tells_the_plan_and_what_each_term_gave(shop: Shop) -> None:
    one, two = (text(shop.queries["photo"]), text(shop.vectors["photo"][37]))
    call = f"explain_search(NULL::{TABLE}, embedding => 'photo', terms => ARRAY[$1::vector, $2::vector], "
    told = explained(shop, call + "weights => '{1,-0.5}', names => '{shoe,boat}', recall => true)", one, two)
    assert (told["embedding"], told["plan"], told["recall"]) == ("photo", "exact", 1)
    assert told["total"] == ROWS
    assert told["looks"] == [{"candidates": None, "found": 10}], "Postgres was free to take an index"
    assert any("Limit" in line for line in told["postgres"])
    expected = several(
        shop,
        {"photo": {"sum": [[1, {"vector": shop.queries["photo"].tolist()}], [-0.5, {"row": ["de", 37]}]]}},
        "method => 'score'",
    )
    assert [tuple(row["key"]) for row in told["rows"]] == [(a, str(n)) for (a, n), _ in expected]
    for row, (_, score) in zip(told["rows"], expected, strict=True):
        assert row["score"] == pytest.approx(score)
        assert [(term["term"], term["weight"]) for term in row["terms"]] == [("shoe", 1), ("boat", -0.5)]
        assert sum(term["share"] for term in row["terms"]) == pytest.approx(row["score"], abs=1e-6)
    again = raw(shop.conn, "SELECT current_setting('pgembed.trace', true)")
    assert not again[0][0], "nothing is traced afterwards"


def test_explain_search_tells_what_the_filter_called_for(shop: Shop) -> None:
    with shop.conn.transaction(force_rollback=True):
        shop.conn.execute(f'CREATE INDEX ON {TABLE} USING hnsw ("title vec" vector_cosine_ops)'.encode())
        shop.conn.execute("SET LOCAL enable_seqscan = off")
        query = text(shop.queries["title vec"])
        call = f"explain_search(NULL::{TABLE}, $1::vector, embedding => 'title vec'"
        told = explained(shop, call + ")", query)
        assert (told["plan"], told["looks"]) == ("index", [{"candidates": None, "found": 10}])
        assert [row["terms"] for row in told["rows"]] == [None] * 10
        told = explained(shop, call + ", filter => 'price < $2', params => '[0, 2]')", query)
        assert (told["plan"], told["looks"]) == ("exact", [])
        assert 0 < told["matching"] < 60
        assert {int(row["key"][1]) % 50 < 2 for row in told["rows"]} == {True}
    with pytest.raises(psycopg.Error, match="The query is not the sum of the terms") as error:
        explained(shop, call + ", terms => ARRAY['[1,0,0,0,0,0]'::vector])", query)
    assert error.value.diag.message_hint


@pytest.mark.parametrize("method", ["rank", "score"])
def test_explain_hybrid_tells_ranks_scores_and_words_in_common(shop: Shop, method: str) -> None:
    arguments = (
        "'red shoe', queries => ARRAY[<title vec>, <photo>], embeddings => '{title vec,photo}',"
        f" weights => '{{0.3,0.7,0.2}}', config => 'simple', method => '{method}', depth => 15"
    )
    found = shop.hybrid(arguments)
    for name, query in shop.queries.items():
        arguments = arguments.replace(f"<{name}>", f"'{text(query)}'::vector")
    told = explained(shop, f"explain_hybrid(NULL::{TABLE}, {arguments}, recall => true)")
    assert [((a, int(n)), row["score"]) for row in told["rows"] for a, n in [row["key"]]] == found
    assert [(leg["leg"], leg.get("embedding"), leg["weight"]) for leg in told["legs"]] == [
        (1, "title vec", 0.3), (2, "photo", 0.7), (3, None, 0.2),
    ]  # fmt: skip
    assert told["legs"][2]["words"] == "red shoe"
    assert [leg["candidates"] for leg in told["legs"]] == [15, 15, 15]
    assert [leg["plan"] for leg in told["legs"][:2]] == ["exact", "exact"]
    assert told["recall"] == 1
    legs = [shop.of_vectors("title vec"), shop.of_vectors("photo")]
    titles = dict(raw(shop.conn, f"SELECT n, title FROM {TABLE}"))
    for row in told["rows"]:
        key = (row["key"][0], int(row["key"][1]))
        assert sum(leg["share"] for leg in row["legs"]) == pytest.approx(row["score"])
        for leg in row["legs"]:
            weight = [0.3, 0.7, 0.2][leg["leg"] - 1]
            assert leg["share"] == pytest.approx(
                weight * (leg["score"] if method == "score" else 1 / (60 + leg["rank"]))
            )
            if leg["leg"] < 3:
                assert leg["score"] == pytest.approx(legs[leg["leg"] - 1][key], abs=1e-6)
        assert row["words"] == sorted({"red", "shoe"} & set(titles[key[1]].split()))
        assert bool(row["words"]) == (3 in [leg["leg"] for leg in row["legs"]])
