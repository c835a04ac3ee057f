"""Hybrid search: legs of vectors and of words fused as by hand, what words find, and the same from Python."""

from __future__ import annotations

import asyncio
import datetime
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import psycopg
import pytest
from numpy.typing import NDArray

import pgembed
from pgembed import Row, Text, Vector
from pgembed.errors import CatalogError, InvalidQuery, PgembedError
from tests.conftest import connection_to, new_database
from tests.fakes import Connection

Key = tuple[Any, ...]
Leg = dict[Key, float]  # scores
WORDS = ("red", "blue", "shoe", "boat", "dog", "lamp", "green", "door")
ROWS, DIMS = 300, {"title vec": 6, "photo": 4}
TABLE = 'shop."The ""Odd"" Table"'


@dataclass(frozen=True)
class Shop:
    """A table with a key of two columns, partitioned, with two embeddings, one of them in a side table; 20 rows have no
    vectors, 5 zero ones, and many have the same texts."""

    conn: Connection
    dsn: str
    vectors: Mapping[str, NDArray[np.float64]]
    queries: Mapping[str, NDArray[np.float64]]

    def hybrid(self, arguments: str, *params: object) -> list[tuple[Key, float]]:
        """Rows of pgembed.hybrid: keys and scores; in the arguments <title vec> and <photo> are the query vectors."""
        for name, query in self.queries.items():
            arguments = arguments.replace(f"<{name}>", f"'{text(query)}'::vector")
        statement = f'SELECT (item)."a key", (item).n, score FROM pgembed.hybrid(NULL::{TABLE}, {arguments})'
        return [(tuple(key), score) for *key, score in self.conn.execute(statement.encode(), params or None)]

    def of_vectors(self, name: str, matching: Sequence[int] = range(ROWS)) -> Leg:
        """The cosine of every row."""
        rows, query = self.vectors[name], self.queries[name]
        found = [n for n in matching if n >= 20 and rows[n].any()]
        return {key_of(n): float(rows[n] @ query / np.linalg.norm(rows[n]) / np.linalg.norm(query)) for n in found}

    def of_words(self, tsquery: str, condition: str = "true") -> Leg:
        """ts_rank of every row that matches."""
        rows = self.conn.execute(
            "SELECT \"a key\", n, ts_rank(to_tsvector('simple', title), q, 16)"
            f" FROM {TABLE}, to_tsquery('simple', %s) AS q"
            f" WHERE to_tsvector('simple', title) @@ q AND {condition}".encode(),
            [tsquery],
        )
        return {(first, n): score for first, n, score in rows}


def key_of(n: int) -> Key:
    return ("de" if n % 3 else "fr", n)


def text(vector: NDArray[np.float64]) -> str:
    return "[" + ",".join(f"{x:.9g}" for x in vector) + "]"


def ordered(leg: Leg) -> list[Key]:
    """Best first; rows of equal score by their keys."""
    return sorted(leg, key=lambda key: (-np.float32(leg[key]), key))


def by_rank(legs: Sequence[Leg], weights: Sequence[float], depth: int) -> Leg:
    """Every candidate has its place in every leg that it has a score in, among the candidates."""
    fused: Leg = {}
    candidates = {key for leg in legs for key in ordered(leg)[:depth]}
    for leg, weight in zip(legs, weights, strict=True):
        for place, key in enumerate([key for key in ordered(leg) if key in candidates], start=1):
            fused[key] = fused.get(key, 0.0) + weight / (60 + place)
    return fused


def by_score(legs: Sequence[Leg], weights: Sequence[float], depth: int) -> Leg:
    candidates = {key for leg in legs for key in ordered(leg)[:depth]}
    return {
        key: sum(weight * leg.get(key, 0.0) for leg, weight in zip(legs, weights, strict=True)) for key in candidates
    }


def assert_same(found: Sequence[tuple[Key, float]], fused: Leg, k: int = 10) -> None:
    expected = sorted(fused, key=lambda key: (-round(fused[key], 9), key))[:k]
    assert [score for _, score in found] == pytest.approx([fused[key] for key in expected], abs=1e-6)
    assert {key for key, _ in found} - set(expected) == set(), "rows of other keys"
    assert [key for key, _ in found] == sorted((key for key, _ in found), key=lambda key: (-dict(found)[key], key))


@pytest.fixture(scope="module")
def shop(server_dsn: str, template: str) -> Iterator[Shop]:
    for dsn in new_database(server_dsn, template):
        for conn in connection_to(dsn):
            yield fill(conn, dsn)


def fill(conn: Connection, dsn: str) -> Shop:
    random = np.random.default_rng(3)
    conn.execute("CREATE SCHEMA shop")
    conn.execute(
        f'CREATE TABLE {TABLE} ("a key" text, n int, title text, price int, "100 %" int, PRIMARY KEY ("a key", n))'
        ' PARTITION BY LIST ("a key")'.encode()
    )
    conn.execute(f"CREATE TABLE shop.de PARTITION OF {TABLE} FOR VALUES IN ('de')".encode())
    conn.execute(f"CREATE TABLE shop.fr PARTITION OF {TABLE} FOR VALUES IN ('fr')".encode())
    vectors: dict[str, NDArray[np.float64]] = {}
    for name, dim in DIMS.items():
        conn.execute(
            "SELECT pgembed.add_encoder(%s, 'test:none', space => %s, dim => %s, modalities => '{text}',"
            " fingerprint => 'none')",
            [name, name, dim],
        )
        storage = "side" if name == "photo" else "column"
        conn.execute(
            'SELECT pgembed.attach(%s::regclass, %s, %s, \'{"text": "title"}\', storage => %s)',
            [TABLE, name, name, storage],
        )
        vectors[name] = random.normal(size=(ROWS, dim)).astype(np.float32).astype(np.float64)
        vectors[name][20:25] = 0
    for n in range(ROWS):
        words = " ".join(random.choice(WORDS, size=1 + n % 4))
        vector = None if n < 20 else text(vectors["title vec"][n])
        conn.execute(
            f"INSERT INTO {TABLE} VALUES (%s, %s, %s, %s, %s, %s)".encode(), [*key_of(n), words, n % 50, n, vector]
        )
    side = conn.execute("SELECT side::regclass::text FROM pgembed.embedding WHERE target = 'photo'").fetchone()
    assert side
    rows = [(*key_of(n), text(vectors["photo"][n])) for n in range(20, ROWS)]
    conn.cursor().executemany(f"INSERT INTO {side[0]} VALUES (%s, %s, %s)".encode(), rows)
    conn.execute("ANALYZE")
    queries = {name: random.normal(size=dim).astype(np.float32).astype(np.float64) for name, dim in DIMS.items()}
    return Shop(conn, dsn, vectors, queries)


# As by hand


@pytest.mark.parametrize("method", ["rank", "score"])
@pytest.mark.parametrize("depth", [15, 1000])
def test_legs_are_fused_as_by_hand(shop: Shop, method: str, depth: int) -> None:
    fuse = by_rank if method == "rank" else by_score
    title, photo, words = shop.of_vectors("title vec"), shop.of_vectors("photo"), shop.of_words("red | shoe")
    share = {key: score / max(words.values()) for key, score in words.items()}
    more = f"method => '{method}', depth => {depth}, config => 'simple', exact => true"
    both = "queries => ARRAY[<title vec>, <photo>], embeddings => '{title vec,photo}', "
    found = shop.hybrid(f"{both} weights => '{{0.3,0.7}}', method => '{method}', depth => {depth}, exact => true")
    assert_same(found, fuse([title, photo], [0.3, 0.7], depth))
    found = shop.hybrid(f"'red shoe', {both} weights => '{{0.3,0.7,0.2}}', {more}")
    assert_same(found, fuse([title, photo, words if method == "rank" else share], [0.3, 0.7, 0.2], depth))
    found = shop.hybrid(f"'red shoe', queries => '{{}}', k => 500, {more}")
    assert_same(found, fuse([words if method == "rank" else share], [1], max(depth, 500)), 500)
    found = shop.hybrid("'red shoe', queries => ARRAY[<photo>], embeddings => '{photo}', k => 40, " + more)
    assert_same(found, fuse([photo, words if method == "rank" else share], [1, 1], max(depth, 40)), 40)


def test_filters_hold_for_all_legs_and_for_one(shop: Shop) -> None:
    cheap = [n for n in range(ROWS) if n % 50 < 10]
    title, words = shop.of_vectors("title vec", cheap), shop.of_words("red", "price < 10")
    both = "'red', queries => ARRAY[<title vec>], embeddings => '{title vec}', config => 'simple', "
    found = shop.hybrid(both + "filter => 'price < $1', params => '[10]'")
    assert_same(found, by_rank([title, words], [1, 1], 100))
    fewer = {key: score for key, score in words.items() if key[0] == "de"}
    found = shop.hybrid(
        both + """filter => 'price < $1', filters => ARRAY[NULL, '"a key" = $2'], params => '[10, "de"]'"""
    )
    assert_same(found, by_rank([title, fewer], [1, 1], 100))


def test_scores_of_every_metric_in_half_precision_under_a_key_of_bytes(database: Connection) -> None:
    query, rows = np.array([1.0, 2.0, -1.0]), np.array([[1, 2, -1], [2, 0, 1], [-3, 1, 1], [0, 1, 0]], dtype=float)
    lengths = np.linalg.norm(rows, axis=1)
    expected = {
        "cosine": rows @ query / lengths / np.linalg.norm(query),
        "ip": rows @ query,
        "l2": 1 / (1 + np.linalg.norm(rows - query, axis=1)),
    }
    for metric, scores in expected.items():
        database.execute(
            "SELECT pgembed.add_encoder(%s, 'test:none', space => %s, dim => 3, modalities => '{text}',"
            " fingerprint => 'none', metric => %s)",
            [metric, metric, metric],
        )
        database.execute(f"CREATE TABLE {metric} (id bytea PRIMARY KEY, title text)".encode())
        database.execute(f"SELECT pgembed.attach('{metric}', 'v', '{metric}', '{{\"text\": \"title\"}}')".encode())
        database.execute(f"ALTER TABLE {metric} ALTER v TYPE halfvec(3)".encode())
        for n, row in enumerate(rows):
            database.execute(f"INSERT INTO {metric} VALUES (%s, 'dog', %s)".encode(), [bytes([n]), text(row)])
        database.execute(f"INSERT INTO {metric} VALUES ('no vector', 'a boat')".encode())
        statement = (
            f"SELECT (item).id, score FROM pgembed.hybrid(NULL::{metric}, 'boat', queries => ARRAY[%s::vector],"
            " embeddings => '{v}', method => 'score', weights => '{2,0.5}', wide => true)"
        )
        found = {bytes(key): score for key, score in database.execute(statement.encode(), [text(query)])}
        fused = {bytes([n]): 2 * score for n, score in enumerate(scores)} | {b"no vector": 0.5}
        assert found == pytest.approx(fused, abs=1e-6)


def test_pages_neither_repeat_nor_skip_rows_of_equal_score(shop: Shop) -> None:
    asked = "'red boat', queries => '{}', config => 'simple', method => 'score', k => "
    pages = [shop.hybrid(asked + str(k)) for k in (7, 20, 60)]
    assert len({score for _, score in pages[-1]}) < 30, "there are ties"
    assert pages[2][:20] == pages[1]
    assert pages[1][:7] == pages[0]


def test_who_may_not_see_a_row_does_not_find_it(shop: Shop) -> None:
    asked = "'red', queries => ARRAY[<photo>], embeddings => '{photo}', config => 'simple', k => 500, depth => 500"
    everything = shop.hybrid(asked)
    conn = shop.conn
    conn.execute("CREATE ROLE hybrid_visitor; GRANT USAGE ON SCHEMA pgembed, shop TO hybrid_visitor")
    try:
        conn.execute("GRANT SELECT ON ALL TABLES IN SCHEMA shop TO hybrid_visitor")
        conn.execute("SELECT pgembed.grant_role('reader', 'hybrid_visitor')")
        conn.execute(f"ALTER TABLE {TABLE} ENABLE ROW LEVEL SECURITY".encode())
        conn.execute(f"CREATE POLICY cheap ON {TABLE} USING (price < 10)".encode())
        conn.execute("SET ROLE hybrid_visitor")
        seen = shop.hybrid(asked)
        assert {key for key, _ in seen} == {key for key, _ in everything if key[1] % 50 < 10}
        assert len(seen) < len(everything)
    finally:
        conn.execute("RESET ROLE")
        conn.execute(f"DROP POLICY IF EXISTS cheap ON {TABLE}; ALTER TABLE {TABLE} DISABLE ROW LEVEL SECURITY".encode())
        conn.execute("SELECT pgembed.revoke_role('reader', 'hybrid_visitor')")
        conn.execute("DROP OWNED BY hybrid_visitor; DROP ROLE hybrid_visitor")


# Words


@pytest.fixture
def notes(database: Connection) -> Connection:
    """Notes with vectors of builtin:lite, which have no full text index yet."""
    database.execute("CREATE TABLE note (id int PRIMARY KEY, title text, body text, day date)")
    database.execute("SELECT pgembed.add_encoder('lite', 'builtin:lite')")
    database.execute("SELECT pgembed.attach('note', 'embedding', 'lite', '{\"text\": \"title\"}', mode => 'instant')")
    texts = [("red shoes", "for running"), ("a blue shoe", "for walking"), ("Häuser", "am Hafen"), ("dogs", "red ones")]
    for n, (title, body) in enumerate(texts):
        database.execute("INSERT INTO note VALUES (%s, %s, %s, %s)", [n, title, body, datetime.date(2024, 1, n + 1)])
    return database


def words_find(conn: Connection, words: str, more: str = "") -> list[int]:
    statement = f"SELECT (item).id FROM pgembed.hybrid(NULL::note, %s, queries => '{{}}'{more})"
    return [row[0] for row in conn.execute(statement.encode(), [words])]


def documents(conn: Connection, columns: str = "NULL", config: str = "NULL") -> list[tuple[str, str]]:
    statement = f"SELECT document, used::text FROM pgembed._words_documents('note'::regclass, {columns}, {config})"
    return conn.execute(statement.encode()).fetchall()


def test_words_are_read_as_web_searches_read_them(notes: Connection) -> None:
    told: list[str] = []
    notes.add_notice_handler(lambda notice: told.append(str(notice.message_primary)))
    assert words_find(notes, "the shoe of a red") == [0, 1]
    assert words_find(notes, "shoe -blue") == [0]
    assert words_find(notes, '"red shoe" or dog') == [0, 3] or words_find(notes, '"red shoe" or dog') == [3, 0]
    assert words_find(notes, "red", ", columns => '{body}'") == [3]
    assert words_find(notes, "the of") == words_find(notes, "-red") == words_find(notes, "zebra") == []
    assert not told, "stop words are no news"
    row = notes.execute("SELECT (item).id, score FROM pgembed.hybrid(NULL::note, 'blue shoe', k => 1)").fetchone()
    assert row == (1, pytest.approx(2 / 61))


def test_the_configuration_is_that_of_what_is_stored_or_indexed(notes: Connection) -> None:
    in_pieces = "pg_catalog.to_tsvector('english'::pg_catalog.regconfig, {}::pg_catalog.text)"
    assert documents(notes) == [(in_pieces.format("title"), "english")]
    notes.execute("CREATE INDEX ON note USING gin (to_tsvector('german', title || ' ' || body))")
    assert documents(notes, "'{title}'") == [(in_pieces.format("title"), "english")]
    ((document, config),) = documents(notes, "'{title,body}'")
    assert (document, config) == ("to_tsvector('german'::regconfig, ((title || ' '::text) || body))", "german")
    assert words_find(notes, "Haus", ", columns => '{title,body}'") == [2], "Häuser and Haus have one stem in German"
    notes.execute("CREATE INDEX titles ON note USING gin (to_tsvector('german', title))")
    assert documents(notes) == [("to_tsvector('german'::regconfig, title)", "german")]
    assert documents(notes, config="'simple'")[0][1] == "simple"
    notes.execute("ALTER TABLE note ADD lexemes tsvector, ADD made tsvector")
    notes.execute(
        "CREATE TRIGGER t BEFORE INSERT OR UPDATE ON note FOR EACH ROW EXECUTE FUNCTION"
        " tsvector_update_trigger(lexemes, 'pg_catalog.french', title)"
    )
    assert ("lexemes", "french") in documents(notes)
    notes.execute("ALTER TABLE note DROP made, DROP lexemes")
    notes.execute("ALTER TABLE note ADD made tsvector GENERATED ALWAYS AS (to_tsvector('simple', title)) STORED")
    assert documents(notes) == [("made", "simple")]


@pytest.mark.parametrize("stored", [True, False])
def test_the_full_text_index_serves(notes: Connection, stored: bool) -> None:
    notes.execute("INSERT INTO note SELECT n, 'lamp', 'door' FROM generate_series(10, 3000) AS n")
    if stored:
        notes.execute("ALTER TABLE note ADD made tsvector GENERATED ALWAYS AS (to_tsvector('english', title)) STORED")
    indexed = "made" if stored else "to_tsvector('english', title)"
    notes.execute(f"CREATE INDEX words ON note USING gin ({indexed})".encode())
    notes.execute("ANALYZE note")
    scans = "SELECT pg_stat_get_xact_numscans('words'::regclass)"
    with notes.transaction():
        (before,) = notes.execute(scans).fetchone() or (0,)
        assert words_find(notes, "red shoe", ", filter => 'id < 100'") == [0, 1]
        assert (notes.execute(scans).fetchone() or (0,))[0] > int(str(before))


def test_a_function_of_ones_own_finds_words(notes: Connection) -> None:
    notes.execute(
        "CREATE FUNCTION public.bm25(words text, depth integer) RETURNS TABLE (id int, score float8) LANGUAGE sql AS"
        " $$SELECT id, id - 1.5 FROM note WHERE words = 'anything' ORDER BY id DESC LIMIT depth$$"
    )
    more = ", words_function => 'public.bm25', depth => 3, k => 3"
    assert words_find(notes, "anything", more) == [3, 2, 1]
    assert words_find(notes, "anything", more + ", filter => 'id <> 2'") == [3, 1]
    scored = "SELECT (item).id, score FROM pgembed.hybrid(NULL::note, 'anything', queries => '{}', method => 'score'"
    rows = notes.execute(f"{scored}{more})".encode()).fetchall()
    assert rows == [(3, 1.0), (2, pytest.approx(1 / 3)), (1, 0.0)]


@pytest.mark.full_server
def test_where_full_text_finds_nothing_trigrams_do(full_database: Connection) -> None:
    full_database.execute('CREATE SCHEMA "The Ext"; CREATE EXTENSION pg_trgm SCHEMA "The Ext"')
    full_database.execute("CREATE TABLE note (id int PRIMARY KEY, title text, price int)")
    full_database.execute("SELECT pgembed.add_encoder('lite', 'builtin:lite')")
    full_database.execute(
        "SELECT pgembed.attach('note', 'embedding', 'lite', '{\"text\": \"title\"}', mode => 'instant')"
    )
    full_database.execute("INSERT INTO note VALUES (1, 'the harbour', 1), (2, 'a dog', 1), (3, 'harbours', 9)")
    assert words_find(full_database, "harbor") == [1, 3], "harbour is another stem"
    assert words_find(full_database, "harbor", ", filter => 'price > 5'") == [3]
    assert words_find(full_database, "harbour") == [1, 3], "found by full text, which has both"
    assert words_find(full_database, "zebra") == []


# What cannot be


REFUSED = [
    ("NULL", "There are no words and no query vectors"),
    ("queries => '{}'", "There are no words and no query vectors"),
    ("E' \\n'", "The words to search for are empty."),
    ("'x', k => 0", "k is the number of rows wanted, at least 1, not 0."),
    ("'x', k => NULL", "k is the number of rows wanted, at least 1, not NULL."),
    ("'x', depth => -1", "depth is a number of rows, at least 1, not -1."),
    ("'x', method => 'sum'", "method is 'rank' or 'score', not 'sum'."),
    ("'x', weights => '{1}'", "weights has 1 and there are 2 legs: 1 of vectors and 1 of words."),
    ("'x', weights => '{1,NaN}'", "A weight is not a finite number: {1,NaN}."),
    ("'x', weights => '{1,NULL}'", "A weight is not a finite number"),
    ("'x', columns => '{nope}'", "Table note has no column 'nope'."),
    ("'x', columns => '{embedding}'", "Column 'embedding' of note is vector(256), in which there are no words."),
    ("'x', columns => '{}'", "There is no column of note to look for words in."),
    ("'x', embeddings => '{nope}'", "Table note has no embedding named 'nope'."),
    ("'x', embeddings => '{a,b}', queries => ARRAY['[1]'::vector]", "embeddings names 2 (a, b), and there are 1"),
    ("'x', filters => '{id > 1}'", "There are 1 filters, and 2 legs."),
    ("'x', filter => 'id > 1) OR (true'", "The filter 'id > 1) OR (true' is not one condition on note"),
    (
        "'x', filters => ARRAY['id > 1) OR (true', NULL]",
        "The filter 'id > 1) OR (true' is not one condition on note",
    ),
    ("'x', filter => 'true; DROP TABLE note'", "holds a semicolon"),
    ("'x', params => '[1]'", "There are params, but no filter that names them."),
    ("'x', words_function => 'now'", "The words function now is not one of (text, integer)"),
    ("queries => ARRAY[NULL::vector]", "The query vector is NULL"),
    ("queries => ARRAY['[1,2]'::vector]", "holds vectors of encoder 'lite' with 256 dimensions; the query has 2."),
    ("queries => ARRAY['[1,2]'::vector], columns => '{title}'", "are for the words, and there are none."),
]


def test_what_cannot_be_is_told_in_a_sentence(notes: Connection) -> None:
    for arguments, told in REFUSED:
        with pytest.raises(psycopg.Error) as error:
            notes.execute(f"SELECT * FROM pgembed.hybrid(NULL::note, {arguments})".encode())
        assert told in str(error.value.diag.message_primary)
        assert error.value.diag.message_hint, arguments


def test_a_table_with_several_embeddings_asks_which(shop: Shop) -> None:
    with pytest.raises(psycopg.Error, match="has several embeddings: title vec, photo") as error:
        shop.hybrid("'red'")
    assert error.value.diag.message_hint == "Say which: embeddings => '{\"title vec\"}'."


# From Python


def test_python_gives_the_rows_of_sql(notes: Connection, database_dsn: str) -> None:
    query = Text("a dog") + 0.5 * Row(1)
    with pgembed.connect(database_dsn) as db:
        plain = db.hybrid("note", "blue shoe")
        assert [(row.id, row.score) for row in plain] == notes.execute(
            "SELECT (item).id, score FROM pgembed.hybrid(NULL::note, 'blue shoe')"
        ).fetchall()
        assert list(plain[0]) == ["id", "title", "body", "day", "score"]
        near = {row.id: row.score for row in db.search("note", query, exact=True)}
        alone = db.hybrid("note", None, query=query, method="score", weights=[2], columns=["id"])
        assert {row.id: row.score for row in alone} == pytest.approx(
            {n: 2 * score for n, score in near.items()}, abs=1e-6
        )
        where, params = (
            "day > %(day)s AND title <> %(odd)s AND id %% 2 = 1",
            {"day": datetime.date(2024, 1, 1), "odd": "it's; -- $1 \\"},
        )
        filtered = db.hybrid("note", "red shoe", where=where, params=params)
        found = db.search("note", Text("red shoe"), where=where, params=params)
        assert {row.id for row in filtered} == {row.id for row in found} == {1, 3}
        assert [row.id for row in db.hybrid("note", "shoe", queries=[], where="id % 2 = 1")] == [1]
        notes.execute(
            "CREATE FUNCTION last_first(words text, depth integer) RETURNS TABLE (id integer, score float8) STABLE"
            " LANGUAGE sql AS 'SELECT n.id, n.id FROM note n WHERE strpos(n.body, $1) > 0 ORDER BY 1 DESC LIMIT $2'"
        )
        by_function = notes.execute(
            "SELECT (item).id, score FROM pgembed.hybrid(NULL::note, 'shoe', words_function => 'last_first')"
        ).fetchall()
        assert [(row.id, row.score) for row in db.hybrid("note", "shoe", words_function="last_first")] == by_function
        stepwise = db.query("note").hybrid("shoe", words_function="last_first")
        assert [(row.id, row.score) for row in stepwise] == by_function != [(row.id, row.score) for row in plain]

    async def ask() -> list[Any]:
        async with pgembed.connect_async(database_dsn) as db:
            return await db.hybrid("note", "blue shoe")

    assert asyncio.run(ask()) == plain


def test_python_gives_each_leg_a_filter_of_its_own_as_sql_does(notes: Connection, database_dsn: str) -> None:
    expected = notes.execute(
        "SELECT (item).id, score FROM pgembed.hybrid(NULL::note, 'blue shoe', filter => 'title LIKE ''%e%''',"
        " filters => ARRAY['id < $1', 'day > $2::date AND title <> ''100%'''], params => '[2, \"2024-01-01\"]')"
    ).fetchall()
    assert expected
    day = datetime.date(2024, 1, 1)
    with pgembed.connect(database_dsn) as db:
        filters = [("id < %s", [2]), ("day > %(day)s AND title <> '100%%'", {"day": day})]
        rows = db.hybrid("note", "blue shoe", where="title LIKE '%e%'", filters=filters)
        assert [(row.id, row.score) for row in rows] == expected
        asked = db.query("note").near(Text("blue shoe"), where="id < 2")
        asked = asked.hybrid("blue shoe", where="day > %s AND title <> '100%%'", params=[day])
        asked = asked.where("title LIKE '%e%'")
        assert [(row.id, row.score) for row in asked] == expected
        assert [row.id for row in db.hybrid("note", "blue shoe", where="title LIKE '%e%'")] != [n for n, _ in expected]
        assert [leg["score"] for leg in asked.explain().facts()["leg_shares"][0]]
        one = db.query("note").near(Text("blue shoe"), where="id < %s", params=[3]).where("id > %s", 1)
        assert [row.id for row in one] == [2], "of a single leg it is one more condition"
        for filters, message in (
            ([("id < %s", [3])], "There are 1 filters, and 2 legs"),
            (["id <", None], "The filter 'id <' is not one condition on note"),
            (["id < %s", None], "The filter 'id < %s' is not one condition on note"),
            ("id < 3", "filters has one for each leg, which 'id < 3' is not"),
        ):
            with pytest.raises(PgembedError, match=message):
                db.hybrid("note", "blue shoe", filters=filters)
        with pytest.raises(InvalidQuery, match="holds a semicolon"):
            db.query("note").hybrid("shoe", where="true; DROP TABLE note")
        with pytest.raises(InvalidQuery, match="params, but no filter"):
            db.query("note").near(Text("shoe"), params=[3])


def test_python_searches_several_embeddings_of_odd_names(shop: Shop) -> None:
    queries = [Vector(shop.queries[name], space=name) for name in DIMS]
    with pgembed.connect(shop.dsn) as db:
        rows = db.hybrid(
            TABLE, None, queries=queries, embeddings=list(DIMS), weights=[0.3, 0.7], method="score", exact=True
        )
    both = "queries => ARRAY[<title vec>, <photo>], embeddings => '{title vec,photo}', weights => '{0.3,0.7}'"
    expected = shop.hybrid(both + ", method => 'score', exact => true")
    assert [((row["a key"], row.n), row.score) for row in rows] == expected
    assert [row["100 %"] for row in rows] == [row.n for row in rows]


def test_the_first_rows_are_ranked_again(notes: Connection, database_dsn: str) -> None:
    seen: list[tuple[str, int]] = []

    def rerank(words: str, rows: Sequence[Mapping[str, Any]]) -> list[float]:
        seen.append((words, len(rows)))
        return [float(row["id"] % 3) for row in rows]

    with pgembed.connect(database_dsn) as db:
        rows = db.hybrid("note", "red shoe", limit=2, depth=4, rerank=rerank)
        assert seen == [("red shoe", 4)]
        assert [(row.id, row.score) for row in rows] == [(2, 2.0), (1, 1.0)]
        with pytest.raises(InvalidQuery, match="rerank gave 1 scores for 4 rows"):
            db.hybrid("note", "red shoe", rerank=lambda words, rows: [1.0])
        for wrong, told in (
            ({"words": None}, "no words and no query"),
            ({"words": " "}, "empty"),
            ({"words": None, "query": Text("x"), "rerank": rerank}, "there are none"),
            ({"words": "x", "limit": 0}, "at least 1, not 0"),
            ({"words": "x", "limit": 5, "depth": 2, "rerank": rerank}, "too few rows"),
            ({"words": "x", "columns": ["nope"]}, "no column 'nope'"),
            ({"words": "x", "queries": [Text("x")], "embeddings": ["a", "b"]}, "2 embeddings"),
            ({"words": "x", "where": "id = %(b)s", "params": {"a": 1}}, "names other parameters"),
            ({"words": "x", "where": "id = %s", "params": [1, 2]}, "names other parameters"),
            ({"words": "x", "params": [1]}, "no filter"),
        ):
            with pytest.raises(InvalidQuery, match=told):
                db.hybrid("note", **wrong)  # type: ignore[arg-type]
        with pytest.raises(CatalogError, match="A weight is not a finite number"):
            db.hybrid("note", "x", weights=[1, float("inf")])
