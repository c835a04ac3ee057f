"""Texts encoded in SQL: the Python tokenizer's tokens, the same vectors, one call a query, and errors that help."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np
import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg import sql
from psycopg.conninfo import make_conninfo

from pgembed import schema
from pgembed.encoders.builtin import lite_static_text
from pgembed.static_text import StaticText

Connection = psycopg.Connection[tuple[object, ...]]

TEXTS = {
    "plain": "A red Shoe, size 42.",
    "pieces": "unbelievably kayaking zebrafishes",
    "repeated": "red red red shoe",
    "accents": "Café Ñandú crème brûlée Zoë ÅNGSTRÖM",
    "accents apart": "Cafe\u0301 cre\u0300me",
    "dotted i": "İSTANBUL ISTANBUL ıstanbul",
    "sharp s": "STRAẞE straße",
    "final sigma": "ΟΔΥΣΣΕΥΣ ὈΔΥΣΣΕΎΣ ς Σ",
    "Kelvin and long s": "300 K ſhip ﬁne Å",
    "Cyrillic": "Красный БОТИНОК ёлка",
    "Chinese": "红色的鞋 a 豈 𠀀",
    "Japanese": "赤い靴 パン ガラス ｶﾞ",
    "Korean": "빨간 신발",
    "Hindi": "लाल जूता",
    "emoji": "a 👩🏽‍🚒 and a ❤️",
    "spaces": "a\u00a0b\u2003c\u3000d\te\nf\r\ng\u2028h\u202fi",
    "controls": "r\u00aded sh\u200boe \x01\x7f\x85\ufeff\ufffdx\x0by\u200dz",
    "private use": "a\ue000b \U000f0000c",
    "unassigned": "a\u0378b \U0003fffdc",
    "punctuation": "it's (very) good—truly! «oui» $5 50% a_b c|d ¿qué? 「は」",
    "special names": "[UNK] [CLS] hello [MASK] ##ing",
    "100 characters": "a" * 100 + " b",
    "101 characters": "a" * 101 + " b",
    "101 characters with accents": "é" * 100 + " b",
    "unknown part": "red☃︎shoe 𝔁𝔂",
    "quotes and backslashes": r"a\b 'c' \u0041 \& %s {}",
    "empty": "",
    "only spaces": " \n\t ",
}


@pytest.fixture(scope="module")
def side() -> StaticText:
    """The static text side that install copies into the database."""
    return lite_static_text()


@pytest.fixture
def shop(database: Connection) -> Connection:
    """A database with two encoders: 'shop', whose text side is static, and 'clip', whose is not."""
    database.execute("SELECT pgembed.add_encoder('shop', 'builtin:lite')")
    database.execute(
        "SELECT pgembed.add_encoder('clip', 'open_clip:tiny', dim => 3, modalities => '{text,image}',"
        " fingerprint => 'f1')"
    )
    database.execute(
        "SELECT pgembed.add_encoder('eye', 'open_clip:eye', dim => 3, modalities => '{image}', fingerprint => 'f2')"
    )
    return database


@pytest.fixture(scope="module")
def plain_database(server_dsn: str) -> Iterator[Connection]:
    """A database whose lc_collate and lc_ctype are C, where lower() and POSIX classes know ASCII alone."""
    name = sql.Identifier("pgembed_lc_ctype_c")
    with psycopg.connect(server_dsn, autocommit=True) as server:
        server.execute(
            sql.SQL("CREATE DATABASE {} TEMPLATE template0 ENCODING 'UTF8' LOCALE_PROVIDER libc LOCALE 'C'").format(
                name
            )
        )
        with psycopg.connect(make_conninfo(server_dsn, dbname="pgembed_lc_ctype_c"), autocommit=True) as conn:
            conn.execute("CREATE EXTENSION vector")
            schema.install(conn)
            yield conn
        server.execute(sql.SQL("DROP DATABASE {}").format(name))


def tokens(conn: Connection, side: StaticText, text: str) -> object:
    return one(conn, "SELECT pgembed.static_tokens(%s, %s)", side.model, text)


def one(conn: Connection, statement: str, *params: object) -> object:
    """The only value of a statement's only row."""
    row = conn.execute(statement.encode(), params).fetchone()
    assert row is not None
    return row[0]


def vector(value: object) -> np.ndarray:
    return np.array(str(value).strip("[]").split(","), dtype=np.float32)


# Tokens and vectors


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS.keys())
def test_tokens_are_those_of_python(database: Connection, side: StaticText, text: str) -> None:
    assert tokens(database, side, text) == side.split(text)


@pytest.mark.parametrize("text", [text for name, text in TEXTS.items() if name not in ("empty", "only spaces")])
def test_tokens_do_not_depend_on_lc_ctype(plain_database: Connection, side: StaticText, text: str) -> None:
    assert one(plain_database, "SELECT lower('É')") == "É"
    assert tokens(plain_database, side, text) == side.split(text)


def test_every_character_gives_the_tokens_of_python(database: Connection, side: StaticText) -> None:
    """All of Unicode. Postgres knows characters younger than the tables of the library, and decomposes or lower-cases
    them, so words may differ, but only words without tokens."""
    points = [chr(i) for i in range(1, 0x110000) if not 0xD800 <= i < 0xE000]
    texts = ["".join(f" a{c}b {c}" for c in points[start : start + 500]) for start in range(0, len(points), 500)]
    found = database.execute(
        "SELECT pgembed._words(t) FROM unnest(%s::text[]) WITH ORDINALITY AS x (t, n) ORDER BY n", [texts]
    )
    other = [text for text, (words,) in zip(texts, found, strict=True) if words != python_words(side, text)]
    assert len(other) < 50
    assert [text for text in other if tokens(database, side, text) != side.split(text)] == []


def python_words(side: StaticText, text: str) -> list[str]:
    normalizer, pre_tokenizer = side.tokenizer.normalizer, side.tokenizer.pre_tokenizer
    return [word for word, _ in pre_tokenizer.pre_tokenize_str(normalizer.normalize_str(text))]


def characters() -> st.SearchStrategy[str]:
    return st.characters(exclude_categories=["Cs"], exclude_characters="\0")


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(characters() | st.sampled_from("aeiouIİıẞΣσÅK\u0301\u0327\u00ad\u200d .,-'[]中豈パ한각"), max_size=60))
def test_any_text_gives_the_tokens_and_the_vector_of_python(database: Connection, side: StaticText, text: str) -> None:
    expected = side.split(text)
    assert tokens(database, side, text) == expected
    found = one(database, "SELECT pgembed.static_vector(%s, %s)", side.model, text)
    if expected:
        assert np.abs(vector(found) - side.encode([text])[0]).max() <= 1e-5
    else:
        assert found is None


def test_long_text_gives_the_vector_of_python(shop: Connection, side: StaticText) -> None:
    words = [token for token in side.vocabulary if token.isalpha()]
    text = " ".join(words[i % 7919] + words[i % 6841] for i in range(5000))
    found = vector(one(shop, "SELECT pgembed.encode_text('shop', %s)", text))
    assert np.abs(found - side.encode([text])[0]).max() <= 1e-5


def test_repeated_word_counts_as_often_as_it_occurs(shop: Connection) -> None:
    statement = (
        "SELECT pgembed.encode_text('shop', 'red red shoe')::text = pgembed.encode_text('shop', 'red shoe')::text"
    )
    assert one(shop, statement) is False


def test_text_with_a_collation_of_its_own_is_tokenized_alike(shop: Connection, side: StaticText) -> None:
    text = "Red SHOES Ñandú unbelievably"
    for collation in ("C", "C.utf8", "pg_c_utf8", "ucs_basic"):
        statement = sql.SQL("SELECT pgembed.static_tokens(%s, %s COLLATE {})").format(sql.Identifier(collation))
        assert shop.execute(statement, [side.model, text]).fetchone() == (side.split(text),)


@pytest.mark.full_server
def test_text_with_a_nondeterministic_collation_is_tokenized_alike(full_database: Connection, side: StaticText) -> None:
    full_database.execute("CREATE COLLATION blind (provider = icu, locale = 'und-u-ks-level1', deterministic = false)")
    text = "Red SHOES Ñandú unbelievably, ΣΑΣ."
    assert one(full_database, "SELECT pgembed.static_tokens(%s, %s COLLATE blind)", side.model, text) == side.split(
        text
    )


def test_session_settings_change_nothing(shop: Connection, side: StaticText) -> None:
    text = "Red SHOES Ñandú, unbelievably\u00a0中"
    before = one(shop, "SELECT pgembed.encode_text('shop', %s)::text", text)
    shop.execute("SET standard_conforming_strings = off")
    shop.execute("SET search_path = ''")
    shop.execute("SET plan_cache_mode = force_custom_plan")
    assert one(shop, "SELECT pgembed.encode_text('shop', %s)::text", text) == before
    assert tokens(shop, side, text) == side.split(text)


def test_functions_of_the_caller_are_not_called(shop: Connection) -> None:
    """No name in the bodies is looked up where a caller could have put something else."""
    before = one(shop, "SELECT pgembed.encode_text('shop', 'red shoe')::text")
    shop.execute("CREATE SCHEMA trap")
    for name in ("sum", "l2_normalize", "vector_norm"):
        shop.execute(
            sql.SQL(
                "CREATE FUNCTION trap.{}(public.vector) RETURNS public.vector LANGUAGE plpgsql"
                " AS $$BEGIN RAISE EXCEPTION 'trapped'; END$$"
            ).format(sql.Identifier(name))
        )
    shop.execute("SET search_path = trap, public")
    assert one(shop, "SELECT pgembed.encode_text('shop', 'red shoe')::text") == before


def test_older_servers_use_a_collation_that_lower_cases(database: Connection) -> None:
    collation = str(one(database, "SELECT pgembed._lowercase_collation(160000)"))
    assert collation == '"C.utf8"'
    assert one(database, "SELECT lower('ÉÑЖΩÅ' COLLATE \"C.utf8\")") == "éñжωå"


@pytest.mark.full_server
@pytest.mark.parametrize("collation", ["C.utf8", "und-x-icu"])
def test_collations_of_older_servers_give_the_tokens_of_python(
    full_database: Connection, side: StaticText, collation: str
) -> None:
    full_database.execute(
        sql.SQL(
            "CREATE OR REPLACE FUNCTION pgembed._lowercase_collation(server_version integer) RETURNS regcollation"
            " LANGUAGE sql STABLE RETURN {}::regcollation"
        ).format(sql.Literal(f'pg_catalog."{collation}"'))
    )
    wrong = [name for name, text in TEXTS.items() if tokens(full_database, side, text) != side.split(text)]
    assert wrong == []


@pytest.mark.usefixtures("embedded_server")  # a full server has more of them
def test_server_without_such_a_collation_says_so(database: Connection) -> None:
    database.execute('DROP COLLATION pg_catalog."C.utf8"')
    with pytest.raises(psycopg.errors.FeatureNotSupported) as raised:
        database.execute("SELECT pgembed._lowercase_collation(160000)")
    assert "no collation that lower-cases UTF-8" in str(raised.value.diag.message_primary)
    assert raised.value.diag.message_hint


# encode_text


def test_static_text_is_encoded_without_a_worker(shop: Connection, side: StaticText) -> None:
    found = vector(one(shop, "SELECT pgembed.encode_text('shop', 'a red shoe')"))
    assert np.abs(found - side.encode(["a red shoe"])[0]).max() <= 1e-5


@pytest.mark.parametrize(
    ("query", "told"),
    [
        ("a red shoe", False),
        ("two dogs on a beach, at night", False),
        ("der Schmetterling fliegt", True),
        ("пример текста", True),
        ("東京タワー", True),
        ("a red shoe by xyzzyx", False),
        ("firefighter", False),
        ("skateboarder", False),
        ("kubernetes", True),
    ],
)
def test_a_query_of_mostly_unknown_words_raises_a_notice(shop: Connection, query: str, told: bool) -> None:
    notices: list[str] = []
    shop.add_notice_handler(lambda notice: notices.append(f"{notice.message_primary} {notice.message_hint}"))
    shop.execute("SELECT pgembed.encode_text('shop', %s)", [query])
    assert [("English" in notice, query in notice) for notice in notices] == [(True, False)] * told


def test_cached_vector_is_found_by_its_hash(shop: Connection) -> None:
    digest = hashlib.sha256(b"clip\0f1\0text\0" + "ein röter Schuh".encode()).digest()
    shop.execute(
        "INSERT INTO pgembed.query_cache (encoder, input_hash, vector) VALUES ('clip', %s, '[1,2,3]')", [digest]
    )
    assert one(shop, "SELECT pgembed.encode_text('clip', 'ein röter Schuh')::text") == "[1,2,3]"


@pytest.mark.parametrize("modality", ["image", "screenshot"])
def test_cached_picture_is_found_by_its_hash(shop: Connection, modality: str) -> None:
    shop.execute("UPDATE pgembed.encoder SET modalities = '{image,screenshot}' WHERE name = 'eye'")
    digest = hashlib.sha256(f"eye\0f2\0{modality}\0".encode() + b"\x00\xff").digest()
    shop.execute(
        "INSERT INTO pgembed.query_cache (encoder, input_hash, vector) VALUES ('eye', %s, '[1,2,3]')", [digest]
    )
    assert one(shop, f"SELECT pgembed.encode_{modality}('eye', '\\x00ff')::text") == "[1,2,3]"


def test_cached_vector_of_another_fingerprint_is_not_used(shop: Connection) -> None:
    shop.execute(
        "INSERT INTO pgembed.query_cache (encoder, input_hash, vector)"
        " VALUES ('clip', pgembed.input_hash('clip', 'f1', 'text', 'shoe'), '[1,2,3]')"
    )
    assert one(shop, "SELECT pgembed.encode_text('clip', 'shoe')::text") == "[1,2,3]"
    shop.execute("UPDATE pgembed.encoder SET fingerprint = 'f9' WHERE name = 'clip'")
    with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState):
        shop.execute("SELECT pgembed.encode_text('clip', 'shoe')")


@pytest.mark.parametrize(
    ("call", "sqlstate", "message", "hint"),
    [
        ("encode_text('shap', 'shoe')", "42704", "No encoder named 'shap' is registered.", "clip, eye, shop"),
        ("encode_text(NULL, 'shoe')", "42704", "No encoder named", "clip, eye, shop"),
        ("encode_text('eye', 'shoe')", "0A000", "Encoder 'eye' takes no text.", "It takes: image."),
        ("encode_text('shop', '')", "22023", "The text to encode with 'shop' is empty.", "ORDER BY"),
        ("encode_text('shop', '  ')", "22023", "The text to encode with 'shop' is empty.", "ORDER BY"),
        ("encode_text('shop', NULL)", "22023", "The text to encode with 'shop' is null.", "ORDER BY"),
        ("encode_text('clip', NULL)", "22023", "The text to encode with 'clip' is null.", "ORDER BY"),
        ("encode_text('shop', '𝔁𝔂')", "22023", "The text '𝔁𝔂' has no word that", "English words"),
        ("encode_text('clip', 'shoe')", "55000", "Encoder 'clip' (open_clip:tiny) has no vector", "in Python"),
        ("encode_image('eye', '\\x00')", "55000", "for the picture of 1 bytes", "in Python"),
        ("encode_image('eye', NULL)", "22023", "The image to encode with 'eye' is null.", "ORDER BY"),
        ("encode_image('eye', '')", "22023", "The image to encode with 'eye' is empty.", "ORDER BY"),
        ("encode_screenshot('eye', '\\x00')", "0A000", "Encoder 'eye' takes no screenshot.", "It takes: image."),
    ],
)
def test_what_cannot_be_encoded_is_an_error_with_a_hint(
    shop: Connection, call: str, sqlstate: str, message: str, hint: str
) -> None:
    with pytest.raises(psycopg.Error) as raised:
        shop.execute(f"SELECT pgembed.{call}".encode())
    assert raised.value.sqlstate == sqlstate
    assert message in str(raised.value.diag.message_primary)
    assert hint in str(raised.value.diag.message_hint)


def test_error_shows_the_beginning_of_a_long_text(shop: Connection) -> None:
    with pytest.raises(psycopg.errors.InvalidParameterValue) as raised:
        shop.execute("SELECT pgembed.encode_text('shop', %s)", ["𝔁" * 500])
    assert f"'{'𝔁' * 80}…'" in str(raised.value.diag.message_primary)


def test_functions_that_read_tables_are_never_immutable(database: Connection) -> None:
    found = database.execute(
        "SELECT proname, provolatile, proparallel FROM pg_proc WHERE pronamespace = 'pgembed'::regnamespace"
        " AND proname IN ('static_tokens', 'static_vector', 'encode_text', 'encode_image', 'encode_screenshot')"
    ).fetchall()
    assert sorted(found) == [
        ("encode_image", "s", "r"),
        ("encode_screenshot", "s", "r"),
        ("encode_text", "s", "r"),
        ("encode_text", "s", "r"),  # with what is preferred
        ("static_tokens", "s", "s"),
        ("static_vector", "s", "s"),
    ]


def test_static_vector_runs_in_parallel_workers(shop: Connection, side: StaticText) -> None:
    shop.execute("CREATE TABLE line AS SELECT 'red shoe ' || n AS words FROM generate_series(1, 500) AS n")
    shop.execute("ANALYZE line")
    statement = "SELECT sum(vector_norm(pgembed.static_vector(%s, words))) FROM line"
    alone = one(shop, statement, side.model)
    shop.execute("SET parallel_setup_cost = 0; SET parallel_tuple_cost = 0; SET min_parallel_table_scan_size = 0")
    shop.execute("SET debug_parallel_query = on")
    plan = shop.execute(f"EXPLAIN {statement}".encode(), [side.model]).fetchall()
    assert "Gather" in str(plan)
    assert one(shop, statement, side.model) == pytest.approx(alone)


# One call a query, and the column's index


@pytest.fixture
def product(shop: Connection) -> Connection:
    """A table of 2,000 vectors."""
    shop.execute("CREATE TABLE product (id integer PRIMARY KEY, embedding vector(256))")
    shop.execute("SELECT setseed(0.5)")
    shop.execute(
        "INSERT INTO product SELECT n, ARRAY(SELECT random() - 0.5 + n * 0 FROM generate_series(1, 256))::vector"
        " FROM generate_series(1, 2000) AS n"
    )
    shop.execute("ANALYZE product")
    return shop


SEARCH = "SELECT id FROM product ORDER BY embedding <=> (SELECT pgembed.encode_text('shop', 'a red shoe')) LIMIT 10"


def calls(conn: Connection, statement: str) -> object:
    """How often a statement calls encode_text."""
    conn.execute("SET track_functions = 'all'")
    conn.execute("SELECT pg_stat_reset_single_function_counters('pgembed.encode_text(text, text)'::regprocedure)")
    conn.execute(statement.encode()).fetchall()
    conn.execute("SELECT pg_stat_force_next_flush()")
    return one(
        conn,
        "SELECT coalesce(sum(calls), 0)::integer FROM pg_stat_user_functions"
        " WHERE funcid = 'pgembed.encode_text(text, text)'::regprocedure",
    )


def test_query_uses_the_index_and_calls_the_function_once(product: Connection) -> None:
    product.execute("CREATE INDEX product_embedding ON product USING hnsw (embedding vector_cosine_ops)")
    plan = str(product.execute(f"EXPLAIN {SEARCH}".encode()).fetchall())
    assert "Index Scan using product_embedding" in plan
    assert calls(product, SEARCH) == 1
    assert calls(product, f"{SEARCH} OFFSET 30") == 1


def test_query_without_an_index_calls_the_function_once(product: Connection) -> None:
    plan = str(product.execute(f"EXPLAIN {SEARCH}".encode()).fetchall())
    assert "Seq Scan on product" in plan
    assert calls(product, SEARCH) == 1


def test_bare_call_is_what_the_counter_would_see(product: Connection) -> None:
    """The counter works: without the subquery the function runs for every row."""
    bare = SEARCH.replace("(SELECT ", "").replace("shoe'))", "shoe')")
    assert int(str(calls(product, bare))) >= 2000
