"""What a search compiles to, and what is refused before any database is asked."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from psycopg import sql

from pgembed.errors import InvalidQuery
from pgembed.inputs import Expression, Image, Text, Vector
from pgembed.query import Column, Compiler, SearchRow, Target, compile_search, search_row_factory, to_encode
from pgembed.vectors import PackedVector, pack_one

COLUMNS = (Column("id"), Column("title"), Column("photo", wide=True), Column("embedding", wide=True))
TARGET = Target("public", "product", "embedding", "shop", "clip", 2, COLUMNS, ("id",))
STATIC = replace(TARGET, static_text=True)
RED = Text("red")
NEAR = Vector([3, 4])


def words(statement: str) -> str:
    return " ".join(statement.split())


def test_search_is_one_statement_with_the_vector_in_a_subquery() -> None:
    plan = compile_search(TARGET, NEAR, limit=5)
    assert words(plan.statement.as_string()) == words("""
        SELECT "id", "title", 1 - "distance" AS score
        FROM (
            SELECT "id", "title", "embedding" <=> (SELECT '[3,4]'::vector) AS "distance"
            FROM "public"."product" WHERE "embedding" IS NOT NULL ORDER BY "distance" LIMIT 5
        ) AS nearest
        WHERE "distance" < 'NaN' ORDER BY 0 + "distance", "id"
    """)
    assert not plan.needs_rounds
    assert 'WITH "pgembed query"' in plan.portable.as_string(), "deleted rows may leave too few in an index"


def test_exact_search_orders_by_what_no_index_has() -> None:
    plan = compile_search(TARGET, NEAR)
    assert '0 + ("embedding" <=> (SELECT' in plan.exact.as_string()
    only = compile_search(TARGET, NEAR, where="true", exact=True)
    assert only.statement is only.exact is only.portable
    assert not only.needs_rounds


@pytest.mark.parametrize(
    ("metric", "parts"),
    [
        ("cosine", ["1 - ", "<=>", '"embedding" IS NOT NULL']),
        ("ip", ["-", "<#>", 'vector_norm("embedding") > 0']),
        ("l2", ["-", "<->", 'vector_norm("embedding") > 0']),
    ],
)
def test_metric_decides_operator_and_score(metric: Any, parts: list[str]) -> None:  # noqa: ANN401
    text = compile_search(replace(TARGET, metric=metric), NEAR).statement.as_string()
    score, operator, present = parts
    assert f'"title", {score}"distance" AS score' in text
    assert f'"embedding" {operator} (SELECT' in text
    assert f"WHERE {present}\n" in text


def test_names_of_the_extension_are_qualified_where_asked() -> None:
    target = replace(TARGET, vector_schema="my ext", half=True, metric="ip")
    text = compile_search(target, NEAR).statement.as_string()
    assert """"embedding" OPERATOR("my ext".<#>) (SELECT '[3,4]'::"my ext"."vector")::"my ext"."halfvec\"""" in text
    assert '"my ext"."l2_norm"("embedding") > 0' in text


def test_parameters_stay_parameters() -> None:
    plan = compile_search(TARGET, NEAR, where="price < %s AND title = %s", params=[50, "x'"], limit=3)
    vector = pack_one(np.array([3, 4], dtype=np.float32))
    assert plan.statement.values == (vector, 50, "x'")
    assert plan.statement.params == ("[3,4]", 50, "x'")
    assert plan.portable.params == ("[3,4]", 50, "x'", 50, "x'")
    assert "price < 50 AND title = 'x'''" in plan.statement.as_string()
    for statement in (plan.statement, plan.exact, plan.portable):
        assert statement.text.as_string(None).count("%s") == len(statement.values)


def test_named_parameters_stay_named() -> None:
    plan = compile_search(STATIC, RED - 0.5 * NEAR, where="price < %(top)s OR top = %(top)s", params={"top": 5})
    assert plan.portable.params == {
        "pgembed_1": "shop", "pgembed_2": "red", "pgembed_3": "[3,4]", "pgembed_4": [1.0, -0.5], "top": 5,
    }  # fmt: skip
    assert "price < 5 OR top = 5" in plan.statement.as_string()
    assert "%s" not in plan.portable.text.as_string(None)
    with pytest.raises(InvalidQuery, match="pgembed_1"):
        compile_search(TARGET, NEAR, where="price < %(pgembed_1)s", params={"pgembed_1": 5})


def test_filter_may_be_composed() -> None:
    where = sql.SQL("{} < {} AND {} = %s").format(sql.Identifier("Price"), 5, sql.Identifier("title"))
    plan = compile_search(TARGET, NEAR, where=where, params=["a"])
    assert """("Price" < 5 AND "title" = 'a')""" in plan.statement.as_string()


@pytest.mark.parametrize("where", ["title LIKE '%shoe%'", "title LIKE '%%shoe%%'", "price % 2 = 0", "price %% 2 = 0"])
def test_percent_signs_without_params_are_themselves(where: str) -> None:
    assert where.replace("%%", "%") in compile_search(TARGET, NEAR, where=where).statement.as_string()
    assert (
        where.replace("%%", "%")
        in compile_search(
            TARGET, NEAR, where=where.replace("%%", "%").replace("%", "%%") + " AND id = %s", params=[1]
        ).statement.as_string()
    )


def test_names_with_percent_signs_and_quotes_are_only_names() -> None:
    target = replace(TARGET, columns=(Column('50 %s "off"'), Column("%(id)s")), keys=("%(id)s",), table="a%b")
    text = compile_search(target, NEAR).statement.as_string()
    assert '"50 %s ""off""", "%(id)s"' in text
    assert '"public"."a%b"' in text


def test_columns_are_chosen() -> None:
    assert '"photo"' not in compile_search(TARGET, NEAR).statement.as_string()
    assert '"photo", "embedding"' in compile_search(TARGET, NEAR, wide=True).statement.as_string()
    text = compile_search(TARGET, NEAR, columns=["photo"]).statement.as_string()
    assert text.startswith('SELECT "photo", 1 - "distance" AS score')
    assert 'SELECT "photo", "id", "embedding" <=>' in text, "the key is read to break ties"
    assert compile_search(TARGET, NEAR, columns=[]).statement.as_string().startswith('SELECT 1 - "distance" AS score')
    with pytest.raises(InvalidQuery, match="product has no column 'prise', 'x'") as raised:
        compile_search(TARGET, NEAR, columns=["id", "prise", "x"])
    assert raised.value.hint
    assert raised.value.hint.startswith("Its columns: id, title, photo, embedding. ")
    with pytest.raises(InvalidQuery, match="list of names"):
        compile_search(TARGET, NEAR, columns="id")


def test_columns_named_as_ours_keep_their_values() -> None:
    target = replace(TARGET, columns=(Column("score"), Column("score_"), Column("distance")), keys=("distance",))
    text = compile_search(target, NEAR).statement.as_string()
    assert text.startswith('SELECT "score" AS "score__", "score_", "distance", 1 - "distance_" AS score')
    assert 'ORDER BY 0 + "distance_", "distance"' in text


# The query's vector


def test_what_is_all_vectors_is_summed_here() -> None:
    plan = compile_search(TARGET, RED + NEAR, {RED: np.array([10.0, 0.0])})
    (vector,) = plan.statement.values
    assert isinstance(vector, PackedVector)
    assert [float(x) for x in plan.statement.params[0][1:-1].split(",")] == pytest.approx(  # type: ignore[index]
        [0.8944272, 0.4472136]
    )


def test_texts_that_postgres_encodes_are_composed_there() -> None:
    plan = compile_search(STATIC, RED - 0.8 * Text("blue") + 2 * NEAR)
    assert (
        "(SELECT pgembed.compose(ARRAY[pgembed.encode_text('shop', 'red'), pgembed.encode_text('shop', 'blue'),"
        " '[3,4]'::vector], '{1.0,-0.8,2.0}'::float8[]" in plan.statement.as_string()
    )
    assert "(SELECT pgembed.encode_text('shop', 'red'))" in compile_search(STATIC, RED).statement.as_string()
    negative = compile_search(STATIC, -RED).statement.as_string()
    assert "pgembed.compose(ARRAY[pgembed.encode_text('shop', 'red')], '{-1.0}'" in negative
    known = compile_search(STATIC, RED, {RED: np.array([1, 0])})
    assert known.statement.params == ("[1,0]",), "a vector that is there is used"


def test_what_must_be_encoded_is_told() -> None:
    picture = Image("shoe.png")
    query = RED + picture - NEAR + RED
    assert to_encode(TARGET, query) == (RED, picture)
    assert to_encode(STATIC, query) == (picture,)
    with pytest.raises(InvalidQuery, match=r"Image\('shoe.png'\) has no vector") as raised:
        compile_search(STATIC, query)
    assert raised.value.hint == "Encode it with 'shop'."


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=2, max_size=2).filter(any))
def test_vectors_survive_as_text_and_in_binary(numbers: list[float]) -> None:
    (shown,) = compile_search(TARGET, Vector(numbers)).statement.params
    assert np.array(shown[1:-1].split(","), dtype=np.float32).tolist() == numbers


def test_statements_of_one_shape_are_written_once() -> None:
    compiler = Compiler(STATIC)
    first = compiler.compile(RED, where="price < %s", params=[1]).statement
    again = compiler.compile(Text("blue"), where="price < %s", params=[2]).statement
    assert first.text is again.text
    assert again.params == ("shop", "blue", 2)
    others: list[tuple[Expression, dict[str, Any]]] = [
        (NEAR, {"where": "price < %s", "params": [1]}),
        (RED, {"where": "price > %s", "params": [1]}),
        (RED, {"where": "price < %s", "params": [1], "limit": 11}),
        (RED, {"where": "price < %s", "params": [1], "wide": True}),
        (RED, {"where": "price < %s", "params": [1], "columns": ["id"]}),
        (RED, {"where": "price < %(a)s", "params": {"a": 1}}),
    ]
    texts = [compiler.compile(query, **options).statement.text.as_string(None) for query, options in others]
    assert len({first.text.as_string(None), *texts}) == len(others) + 1


def test_memory_of_statements_is_bounded() -> None:
    compiler = Compiler(TARGET)
    for limit in range(1, 1000):
        compiler.compile(NEAR, limit=limit)
    assert len(compiler._texts) < 500  # pyright: ignore[reportPrivateUsage]


# What is refused


@pytest.mark.parametrize("limit", [0, -1, 1.5, True, "10", None])
def test_limit_is_a_positive_whole_number(limit: object) -> None:
    with pytest.raises(InvalidQuery, match="at least 1"):
        compile_search(TARGET, NEAR, limit=limit)


def test_mixed_spaces_are_named() -> None:
    with pytest.raises(InvalidQuery, match=r"product.embedding .* 'shop' \(space clip\).* minilm and other") as raised:
        compile_search(STATIC, RED + Vector([1, 2], space="minilm") - Vector([1, 2], space="other"))
    assert raised.value.hint == "Encode them with 'shop'."
    compile_search(STATIC, RED + Vector([1, 2], space="clip"))


@pytest.mark.parametrize(
    ("query", "message"),
    [
        (Vector([1, 2, 3]), "with 2 dimensions; .* has 3"),
        (NEAR + Vector([1, 2, 3]), "with 2 dimensions; .* has 3"),
        (Vector([0, 0]), "zero"),
        (NEAR - NEAR, "cancel"),
        (RED + 0 * NEAR - RED, "no vector|cancel"),
    ],
)
def test_vectors_that_cannot_be_near_anything(query: Expression, message: str) -> None:
    with pytest.raises(InvalidQuery, match=message):
        compile_search(TARGET, query)


@pytest.mark.parametrize("vector", [[np.nan, 1], [np.inf, 1], [0, 0], [[1, 2]], []])
def test_vectors_of_an_encoder_are_checked(vector: list[Any]) -> None:
    with pytest.raises(InvalidQuery):
        compile_search(TARGET, RED, {RED: np.array(vector)})


@pytest.mark.parametrize(
    ("where", "fault"),
    [
        ("", "is empty"),
        (" \n ", "is empty"),
        ("price < 5 -- and no more", "comment"),
        ("price < 5 /* and no more */", "comment"),
        ("price < 5; DROP TABLE product", "semicolon"),
        ("true) OR (true", "parentheses"),
        ("(true", "parentheses"),
        ("title = ')' AND (true", "parentheses"),
        ("title = 'a", "quotes"),
        ('"title = 1', "quotes"),
        ("title = $$a", "quotes"),
        ("title = $a$ $b$", "quotes"),
        ("title = E'a\\'", "quotes"),
        ("price < %s", "placeholders"),
        ("price < %(top)s", "placeholders"),
    ],
)
def test_filter_that_reaches_beyond_itself_is_refused(where: str, fault: str) -> None:
    with pytest.raises(InvalidQuery, match=fault) as raised:
        compile_search(TARGET, NEAR, where=where)
    assert repr(where) in raised.value.message
    with pytest.raises(InvalidQuery):
        compile_search(TARGET, NEAR, where=sql.SQL(where))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "where",
    [
        "title = '--' AND note <> ';' AND \"a;b\" = '/*'",
        "title = E'\\' OR true --'",
        "title = 'it''s (' AND E'\\'(' = ''",
        "title = $$it's ; ($$ AND title = $a$;$$--$a$",
        "a_$1$b = 1 AND (price < 5) AND ((x) OR (y))",
        "data -> 'a' ->> 'b' = '1' AND a - -1 = 2",
    ],
)
def test_filter_may_hold_quoted_anything(where: str) -> None:
    assert f"AND ({where})" in compile_search(TARGET, NEAR, where=where).statement.as_string()


def test_params_need_a_filter() -> None:
    with pytest.raises(InvalidQuery, match="no filter"):
        compile_search(TARGET, NEAR, params=[1])


# When more than one round of the index is needed


@pytest.mark.parametrize(
    ("options", "rounds"),
    [({}, False), ({"limit": 40}, False), ({"limit": 41}, True), ({"where": "true"}, True)],
)
def test_index_is_told_to_go_on_where_it_must(options: dict[str, Any], rounds: bool) -> None:
    plan = compile_search(TARGET, NEAR, **options)
    assert plan.needs_rounds == rounds
    assert compile_search(replace(TARGET, row_security=True), NEAR, **options).needs_rounds


def test_settings_go_back_to_what_they_were() -> None:
    plan = compile_search(TARGET, NEAR, where="true")
    before = {"iterative_scan": "off", "ef_search": "40"}
    assert not plan.starves(before)
    assert words(plan.restore(before).as_string()) == (
        "SELECT pg_catalog.set_config('hnsw.iterative_scan', 'off', true), "
        "pg_catalog.set_config('hnsw.ef_search', '40', true)"
    )
    older = {"iterative_scan": None, "ef_search": "40"}
    assert plan.starves(older)
    assert plan.starves(older, 1001)
    assert not plan.starves(older, 1000)
    assert "iterative" not in plan.restore(older).as_string()


# Rows


def factory(*names: str) -> Any:  # noqa: ANN401
    """A row factory for a result with these columns."""
    result = SimpleNamespace(nfields=len(names), fname=lambda number: names[number].encode())
    connection = SimpleNamespace(info=SimpleNamespace(encoding="utf-8"))
    return search_row_factory(SimpleNamespace(pgresult=result, connection=connection))  # type: ignore[arg-type]


def rows(names: list[str], *values: tuple[Any, ...]) -> list[SearchRow]:
    return [factory(*names)(row) for row in values]


def test_row_gives_its_columns_by_name() -> None:
    (row,) = rows(["id", "odd name", "keys", "_x", "score"], (1, "a", "b", "c", 0.5))
    assert (row.id, row.score, row["odd name"], row["keys"], row._x) == (1, 0.5, "a", "b", "c")
    assert dict(row) == {"id": 1, "odd name": "a", "keys": "b", "_x": "c", "score": 0.5}
    assert len(row) == 5
    assert "id" in dir(row)
    assert "odd name" not in dir(row)
    assert repr(row) == "SearchRow(id=1, odd name='a', keys='b', _x='c', score=0.5)"
    with pytest.raises(AttributeError, match="no column 'prise'; it has id, odd name"):
        _ = row.prise
    with pytest.raises(KeyError):
        row["prise"]
    with pytest.raises(AttributeError):
        row.id = 2


def test_rows_compare_copy_and_pickle() -> None:
    first, second, third = rows(["id", "score"], (1, 0.5), (1, 0.5), (2, 0.5))
    assert first == second != third
    assert copy.deepcopy(first) == pickle.loads(pickle.dumps(first)) == first


def test_factory_takes_a_statement_without_rows() -> None:
    assert factory()([]) == {}
