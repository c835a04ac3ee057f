"""Several embeddings, explanations, inputs side by side and views of one table with odd names, in both storages."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import psycopg
import pytest
from psycopg import sql

from pgembed import Vector, View, schema, to_json
from tests.fakes import DIM as FAKE
from tests.fakes import Connection, vector_of

TABLE = '"my %s"."10% off"'
SUM, CONCAT = "100% sum", "side by side %I"
KEY = '"k %s"'
ONE, OTHER = "[1,0,0,0,0,0,0,1]", "[0,1,0,0,1,0,0,0]"


@dataclass(frozen=True)
class Shop:
    """Rows 0 to 11, of which 10 has no vector and 11 zeros."""

    conn: Connection
    storage: str
    vector: str = "vector"

    def run(self, statement: str, *params: object) -> list[tuple[Any, ...]]:
        return psycopg.RawCursor(self.conn).execute(statement.encode(), params).fetchall()

    def told(self, call: str, *params: object) -> dict[str, Any]:
        return self.run(f"SELECT pgembed.{call}", *params)[0][0]


def fill(conn: Connection, storage: str, vector: str = "vector") -> Shop:
    conn.execute('CREATE SCHEMA "my %s"')
    conn.execute(f"CREATE TABLE {TABLE} ({KEY} varchar(3) PRIMARY KEY, title text, photo bytea)".encode())
    conn.execute(f"INSERT INTO {TABLE} SELECT g, 'a shoe ' || g FROM generate_series(0, 11) AS g".encode())
    conn.execute(
        "SELECT pgembed.add_encoder('f %s', 'fake:x', dim => 8, modalities => '{text,image}', fingerprint => 'x')"
    )
    for target, fusion in ((SUM, "sum"), (CONCAT, "concat")):
        conn.execute(
            "SELECT pgembed.attach(%s::regclass, %s, 'f %%s', %s, storage => %s, fusion => %s)",
            [TABLE, target, '{"text": {"column": "title", "weight": 1}, "image": "photo"}', storage, fusion],
        )
        for n in range(12):
            parts = [vector_of(f"{fusion} {n} {part}") for part in range(1 + (fusion == "concat"))]
            numbers = [float(x) * (n < 11) for part in parts for x in part]
            if n == 10:
                continue
            name = sql.Identifier(target).as_string(None)
            side = sql.Identifier("my %s", f"10% off_{target}").as_string(None)
            if storage == "column":
                statement = f"UPDATE {TABLE} SET {name} = $1::{vector} WHERE {KEY} = $2"
            else:
                statement = f"INSERT INTO {side} ({KEY}, vector) VALUES ($2, $1::{vector})"
            psycopg.RawCursor(conn).execute(statement.encode(), [str(numbers), str(n)])
    return Shop(conn, storage, vector)


@pytest.fixture(params=["column", "side"])
def shop(request: pytest.FixtureRequest, database: Connection) -> Shop:
    return fill(database, request.param)


def cosine(a: Any, b: Any) -> float:  # noqa: ANN401
    return float(sum(x * y for x, y in zip(a, b, strict=True)) / (sum(x * x for x in a) * sum(y * y for y in b)) ** 0.5)


def test_names_with_percent_signs_are_explained(shop: Shop) -> None:
    call = f"explain_search(NULL::{TABLE}, $1::vector, embedding => $2"
    for target in (SUM, CONCAT):
        told = shop.told(call + ", filter => 'title LIKE ''%s%''')", ONE, target)
        assert len(told["rows"]) == 10
        assert told["recall"] is None
        assert shop.told(call + ", recall => true)", ONE, target)["recall"] == 1


def test_terms_are_explained_where_inputs_stand_side_by_side(shop: Shop) -> None:
    call = f"explain_search(NULL::{TABLE}, terms => ARRAY[$1::vector, $2::vector], weights => '{{1,-0.5}}', "
    told = shop.told(call + "embedding => $3)", ONE, OTHER, CONCAT)
    found = shop.run(
        f'SELECT (item).{KEY}, score FROM pgembed.search(NULL::{TABLE}, '
        "pgembed.compose(ARRAY[$1::vector, $2::vector], '{1,-0.5}'), embedding => $3)", ONE, OTHER, CONCAT
    )  # fmt: skip
    assert [(row["key"][0], pytest.approx(row["score"], abs=1e-6)) for row in told["rows"]] == found
    for row in told["rows"]:
        n = row["key"][0]
        similar = [
            sum(cosine(json.loads(one), vector_of(f"concat {n} {part}")) for part in (0, 1)) for one in (ONE, OTHER)
        ]
        # the parts of these rows are of length 1 each, and each counts by the root of its share, a half
        assert [term["similarity"] for term in row["terms"]] == pytest.approx(
            [one / 2**0.5 for one in similar], abs=1e-5
        )
        assert sum(term["share"] for term in row["terms"]) == pytest.approx(row["score"], abs=1e-5)
    with pytest.raises(psycopg.errors.InvalidParameterValue, match="with 8 dimensions; the query has 2"):
        shop.told(call + "embedding => $3)", "[1,0]", "[0,1]", SUM)


def test_an_empty_table_is_explained(shop: Shop) -> None:
    shop.conn.execute(f"DELETE FROM {TABLE}".encode())
    told = shop.told(f"explain_search(NULL::{TABLE}, $1::vector, embedding => $2, recall => true)", ONE, SUM)
    assert (told["plan"], told["rows"], told["recall"]) == ("exact", [], None)


def several(shop: Shop, queries: object) -> list[tuple[Any, ...]]:
    text = queries if isinstance(queries, str) else json.dumps(queries)
    return shop.run(f"SELECT (item).{KEY}, score FROM pgembed.search_several(NULL::{TABLE}, $1, k => 3)", text)


def test_a_sum_of_a_row_and_numbers_where_inputs_stand_side_by_side(shop: Shop) -> None:
    found = several(shop, {CONCAT: {"sum": [[1, {"row": "3"}], [1e-6, json.loads(ONE)]]}})
    assert found[0][0] == "3"


def test_what_to_json_writes_of_vectors_and_views_is_a_query(shop: Shop) -> None:
    shop.conn.execute("SELECT pgembed.add_view('v', 'f %s', ARRAY[%s::vector])".replace("f %s", "f %%s"), [ONE])
    (space,) = shop.run("SELECT space FROM pgembed.encoder")[0]
    plain = several(shop, {SUM: json.loads(ONE), CONCAT: json.loads(ONE)})
    spaced = to_json(Vector(json.loads(ONE), space=space))
    assert several(shop, {SUM: spaced, CONCAT: to_json(View("v"))}) == plain
    with pytest.raises(
        psycopg.errors.InvalidParameterValue, match=r"holds vectors of .*; the query has vectors of space other"
    ):
        several(shop, {SUM: to_json(Vector([1.0], space="other"))})
    with pytest.raises(psycopg.errors.UndefinedObject, match="no view named 'w'"):
        several(shop, {SUM: {"view": "w"}})


@pytest.mark.parametrize(
    ("query", "fault"),
    [
        ('{"100% sum": {"row": "1", "weight": 1e400}}', '"weight" is a number'),
        ('{"100% sum": {"row": "1", "weight": 1e-400}}', '"weight" is a number'),
        ('{"100% sum": {"sum": [[1e400, {"row": "1"}]]}}', "is no query of"),
        ('{"100% sum": {"row": "1234"}}', "is not in"),  # and not row 123
    ],
)
def test_numbers_out_of_range_and_keys_too_long_are_told(shop: Shop, query: str, fault: str) -> None:
    shop.conn.execute(f"UPDATE {TABLE} SET {KEY} = '123' WHERE {KEY} = '5'".encode())
    with pytest.raises(psycopg.errors.InvalidParameterValue, match=fault):
        several(shop, query)


def test_a_key_of_another_type_is_told(database: Connection) -> None:
    database.execute("CREATE TABLE product (id integer PRIMARY KEY, title text)")
    database.execute("SELECT pgembed.add_encoder('lite', 'builtin:lite')")
    database.execute("""SELECT pgembed.attach('product', 'embedding', 'lite', '{"text": "title"}')""")
    with pytest.raises(psycopg.errors.InvalidParameterValue, match=r'\["x"\] is no key of product: invalid input'):
        database.execute("""SELECT pgembed.search_several(NULL::product, '{"embedding": {"row": "x"}}')""")


def test_views_of_rows_whose_inputs_stand_side_by_side_are_refused(shop: Shop) -> None:
    shop.conn.execute("SELECT pgembed.add_view('v %s', 'f %s', ARRAY['[0,0,1,0,0,0,0,0]'::vector])")
    for call in (
        f"pgembed.search_neutral(NULL::{TABLE}, '{ONE}', 'v %s', embedding => $1)",
        f"pgembed.search_neutral(NULL::{TABLE}, '{ONE}'::vector || '{OTHER}', 'v %s', embedding => $1)",
        f"pgembed.neutral_index_sql('{TABLE}', 'v %s', $1)",
        f"pgembed.learn_view('w', '{TABLE}', 'true', 'false', embedding => $1)",
        f"pgembed._view_sample('{TABLE}', '{{title}}', $1)",  # what Python probes
    ):
        with pytest.raises(psycopg.errors.FeatureNotSupported, match="stand side by side, and no view is"):
            shop.run(f"SELECT {call}", CONCAT)
    assert len(shop.run(f"SELECT pgembed.search_neutral(NULL::{TABLE}, '{ONE}', 'v %s', embedding => $1)", SUM)) == 10


def test_what_is_no_set_and_no_expression_of_a_row_is_no_source_of_a_view(shop: Shop) -> None:
    learn = f"SELECT pgembed.learn_view('w', '{TABLE}', $1, 'true', embedding => $2, pair => $3)"
    with pytest.raises(psycopg.errors.InvalidParameterValue, match='"these" is NULL'):
        shop.run(learn, None, SUM, None)
    for pair in ("count(*)", "row_number() OVER ()", "generate_series(1, 2)"):
        with pytest.raises(psycopg.errors.SyntaxError, match="is not one expression on"):
            shop.run(learn, "true", SUM, pair)
    with pytest.raises(psycopg.errors.SyntaxError, match="is not one condition on"):
        shop.run(learn, "generate_series(1, 2) > 1", SUM, None)


def test_a_query_of_zeros_is_told_where_a_view_is_taken_out(shop: Shop) -> None:
    shop.conn.execute("SELECT pgembed.add_view('v', 'f %s', ARRAY['[0,0,1,0,0,0,0,0]'::vector])")
    with pytest.raises(psycopg.errors.InvalidParameterValue, match="The query vector is zero"):
        shop.run(
            f"SELECT pgembed.search_neutral(NULL::{TABLE}, $1::vector, 'v', embedding => $2)", str([0] * FAKE), SUM
        )


def test_a_side_table_that_is_gone_is_told_by_every_search(database: Connection) -> None:
    shop = fill(database, "side")
    database.execute(f'DROP TABLE "my %s"."10% off_{SUM}"'.encode())
    for call in (
        f"pgembed.hybrid(NULL::{TABLE}, queries => ARRAY['{ONE}'::vector], embeddings => ARRAY['{SUM}'])",
        f"pgembed.explain_hybrid(NULL::{TABLE}, queries => ARRAY['{ONE}'::vector], embeddings => ARRAY['{SUM}'])",
        f"""pgembed.search_several(NULL::{TABLE}, '{{"{SUM}": {{"row": "1"}}}}')""",
        f"pgembed.explain_search(NULL::{TABLE}, '{ONE}'::vector, embedding => '{SUM}')",
    ):
        with pytest.raises(psycopg.errors.UndefinedTable, match=r"that holds the vectors .* is gone"):
            shop.run(f"SELECT {call}")


def test_words_alone_find_rows_of_a_restored_table(shop: Shop) -> None:
    shop.conn.execute("UPDATE pgembed.embedding SET relation = relation::bigint + 1000000")  # as after a restore
    found = shop.run(f"SELECT pgembed.hybrid(NULL::{TABLE}, 'shoe', queries => '{{}}')")
    assert len(found) == 10


def test_the_vector_extension_in_a_schema_with_a_space(bare_database: Connection) -> None:
    bare_database.execute('CREATE SCHEMA "my ext"; CREATE EXTENSION vector SCHEMA "my ext"')
    schema.install(bare_database)
    shop = fill(bare_database, "column", '"my ext".vector')
    bare_database.execute(f'ALTER TABLE {TABLE} ALTER "{SUM}" TYPE "my ext".halfvec(8)'.encode())
    legs = {SUM: json.loads(ONE), CONCAT: json.loads(OTHER)}
    assert len(several(shop, legs)) == 3
    assert len(shop.told(f"explain_several(NULL::{TABLE}, $1, recall => true)", json.dumps(legs))["rows"]) == 10
    term = '$1::"my ext".vector'
    told = shop.told(f"explain_search(NULL::{TABLE}, terms => ARRAY[{term}, {term}], embedding => $2)", ONE, SUM)
    assert [sum(term["share"] for term in row["terms"]) for row in told["rows"]] == pytest.approx(
        [row["score"] for row in told["rows"]], abs=1e-3
    )


def test_who_may_not_distil_is_told_whose_it_is(shop: Shop) -> None:
    with shop.conn.transaction(force_rollback=True):
        shop.conn.execute("CREATE ROLE asker; SELECT pgembed.grant_role('reader', 'asker'); SET LOCAL ROLE asker")
        for call in ("set_distilled('f %s', 'm', 'x', 1, '{}')", "drop_distilled('f %s')"):
            owners = pytest.raises(psycopg.errors.InsufficientPrivilege, match="that is for the owner of pgembed")
            with owners, shop.conn.transaction():
                shop.run(f"SELECT pgembed.{call}")
