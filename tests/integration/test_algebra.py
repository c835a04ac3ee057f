"""The algebra of vectors in SQL: the same numbers as numpy, errors that help, and functions that inline and dump."""

from __future__ import annotations

import subprocess
from itertools import combinations
from typing import Any

import numpy as np
import psycopg
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from psycopg.conninfo import conninfo_to_dict

from pgembed.algebra import centroid, equalize, mmr, neutralize, reject, rocchio, slerp, swap
from pgembed.embedded import EmbeddedServer
from pgembed.errors import InvalidQuery
from pgembed.inputs import Expression, Input, Text, Vector

Connection = psycopg.Connection[tuple[Any, ...]]
Array = NDArray[np.float64]

ACCURATE = 1e-6
property_test = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
# what is tiny beside the rest only tests the underflow of float4
numbers = st.floats(-10, 10, width=32).map(lambda x: 0.0 if abs(x) < 1e-3 else x)
weights = st.floats(-5, 5).map(lambda x: 0.0 if abs(x) < 1e-3 else x)


def vectors(dim: int) -> st.SearchStrategy[Array]:
    return arrays(np.float64, dim, elements=numbers).filter(lambda v: bool(np.linalg.norm(v) > 0.1))


lists = st.integers(1, 12).flatmap(lambda dim: st.lists(vectors(dim), min_size=1, max_size=5))


def unit(vector: Array) -> Array:
    return vector / np.linalg.norm(vector)


def text(vector: Array) -> str:
    return "[" + ",".join(f"{x:.9g}" for x in vector) + "]"


def ask(conn: Connection, statement: str, *values: object) -> Any:  # noqa: ANN401
    """The one value of a statement; vectors and lists of them go as text, and come back as arrays."""
    row = conn.execute(statement.encode(), [text_or_value(value) for value in values]).fetchone()
    assert row is not None
    return np.array([float(x) for x in row[0][1:-1].split(",")]) if isinstance(row[0], str) else row[0]


def text_or_value(value: object) -> object:
    if isinstance(value, list):
        return [text_or_value(item) for item in value]
    return text(value) if isinstance(value, np.ndarray) else value


def assert_near(found: Array, expected: Array) -> None:
    np.testing.assert_allclose(found, expected, rtol=0, atol=ACCURATE)


@property_test
@given(vectors(7), weights)
def test_scale_is_numpy_s(database: Connection, v: Array, weight: float) -> None:
    found = ask(database, "SELECT pgembed.scale(%s::vector, %s)::text", v, weight)
    np.testing.assert_allclose(found, weight * v, rtol=3e-7, atol=ACCURATE)


@property_test
@given(lists.flatmap(lambda some: st.tuples(st.just(some), st.lists(weights, min_size=len(some), max_size=len(some)))))
def test_compose_is_numpy_s(database: Connection, given_: tuple[list[Array], list[float]]) -> None:
    some, weights = given_
    total = sum((w * unit(v) for v, w in zip(some, weights, strict=True)), np.zeros(len(some[0])))
    assume(np.linalg.norm(total) > 0.2 * sum(map(abs, weights)) > 0)
    found = ask(database, "SELECT pgembed.compose(%s::vector[], %s::float8[])::text", some, weights)
    assert_near(found, unit(total))


def test_compose_is_what_python_resolves(database: Connection) -> None:
    random = np.random.default_rng(1)
    some = {Text(str(n)): random.normal(size=512) for n in range(4)}
    texts = list(some)
    query = texts[0] + 0.8 * texts[1] - 0.8 * texts[2] + 0.001 * texts[3] + Vector(random.normal(size=512))
    expected = query.resolve(some.__getitem__)
    given_ = [some[t.input] if isinstance(t.input, Text) else np.array(t.input.values) for t in query.terms]  # type: ignore[union-attr]
    weights = [term.weight for term in query.terms]
    assert_near(ask(database, "SELECT pgembed.compose(%s::vector[], %s::float8[])::text", given_, weights), expected)


@pytest.mark.parametrize("weights", [[1e300, -0.5e300], [1e-300, -0.5e-300], [4e-310, -2e-310], [1.7e308, -0.85e308]])
def test_compose_takes_weights_of_any_finite_size(database: Connection, weights: list[float]) -> None:
    found = ask(database, 'SELECT pgembed.compose(\'{"[3,0]","[0,2]"}\', %s::float8[])::text', weights)
    assert_near(found, unit(np.array([1, -0.5])))


@pytest.mark.parametrize(
    "weights", ["ARRAY[1, -0.8]", "ARRAY[1.0, -0.8]", "ARRAY[1, -0.8]::real[]", "'{1,-0.8}'", "ARRAY[1, -0.8::float8]"]
)
def test_weights_need_no_cast(database: Connection, weights: str) -> None:
    found = ask(database, f"SELECT pgembed.compose(ARRAY['[2,0]'::vector, '[0,5]'], {weights})::text")
    assert_near(found, unit(np.array([1, -0.8])))


def test_compose_without_weights_is_the_plain_sum(database: Connection) -> None:
    found = ask(database, "SELECT pgembed.compose(ARRAY['[2,0]'::vector, '[0,5]'])::text")
    assert_near(found, unit(np.ones(2)))


@property_test
@given(st.integers(2, 12).flatmap(lambda dim: st.tuples(vectors(dim), vectors(dim))), st.floats(-0.5, 1.5))
def test_slerp_is_numpy_s(database: Connection, pair: tuple[Array, Array], t: float) -> None:
    a, b = map(unit, pair)
    angle = 2 * np.arctan2(np.linalg.norm(a - b), np.linalg.norm(a + b))
    assume(angle < np.pi - 0.1)
    expected = a + t * (b - a) if angle < 1e-6 else np.sin((1 - t) * angle) * a + np.sin(t * angle) * b
    assert_near(ask(database, "SELECT pgembed.slerp(%s::vector, %s::vector, %s)::text", *pair, t), unit(expected))


def python(expression: Expression, vectors: dict[Input, Array]) -> Array:
    return expression.resolve(vectors.__getitem__).astype(np.float64)


A, B, C, D = (Text(name) for name in "abcd")


@property_test
@given(st.integers(2, 12).flatmap(lambda dim: st.lists(vectors(dim), min_size=4, max_size=4)), st.floats(0, 1), weights)
def test_operations_of_python_are_those_of_sql(
    database: Connection, given_: list[Array], t: float, weight: float
) -> None:
    known: dict[Input, Array] = dict(zip((A, B, C, D), given_, strict=True))
    a, b, c, d = given_
    for expression, statement, values in (
        (slerp(A, B, t), "pgembed.slerp(%s::vector, %s, %s)", (a, b, t)),
        (reject(A, B), "pgembed.reject(%s::vector, ARRAY[%s::vector])", (a, b)),
        (reject(A, B, C), "pgembed.reject(%s::vector, ARRAY[%s::vector, %s])", (a, b, c)),
        (neutralize(A, B, C), "pgembed.neutralize(%s::vector, ARRAY[%s::vector, %s])", (a, b, c)),
        (equalize([A, B], C)[0], "(pgembed.equalize(ARRAY[%s::vector, %s], ARRAY[%s::vector]))[1]", (a, b, c)),
        (
            equalize([A, B], C, D)[1],
            "(pgembed.equalize(ARRAY[%s::vector, %s], ARRAY[%s::vector, %s]))[2]",
            (a, b, c, d),
        ),
        (swap(A, B, C, weight), "pgembed.swap(%s::vector, %s, %s, %s)", (a, b, c, weight)),
        (swap(A, B, C), "pgembed.swap(%s::vector, %s, %s)", (a, b, c)),
        (
            rocchio(A, liked=[B, C], disliked=[D], gamma=0.3),
            "pgembed.rocchio(%s::vector, ARRAY[%s::vector, %s], ARRAY[%s::vector], gamma => 0.3)",
            (a, b, c, d),
        ),
        (rocchio(liked=[B], disliked=[D]), "pgembed.rocchio(NULL, ARRAY[%s::vector, NULL], ARRAY[%s::vector])", (b, d)),
    ):
        try:
            expected = python(expression, known)
        except InvalidQuery:
            if "neutralize" in statement:  # what stands in an index raises for no row
                assert ask(database, f"SELECT {statement} IS NULL", *values)
                continue
            with pytest.raises(psycopg.errors.InvalidParameterValue):
                ask(database, f"SELECT {statement}::text", *values)
            continue
        if python(expression, {k: v + 1e-7 * unit(v[::-1]) for k, v in known.items()}) @ expected < 1 - 1e-9:
            continue  # next to a point without direction, where the rounding of float4 turns it
        found = ask(database, f"SELECT {statement}::text", *values)
        alike = max(abs(unit(x) @ unit(y)) for x, y in combinations(given_, 2))
        np.testing.assert_allclose(found, expected, rtol=0, atol=ACCURATE if alike < 0.95 else 1e-4)


@property_test
@given(
    st.integers(1, 8).flatmap(lambda dim: st.lists(st.tuples(vectors(dim), st.floats(-1, 1)), min_size=1, max_size=9)),
    st.integers(1, 10),
    st.floats(0, 1),
)
def test_mmr_of_python_is_that_of_sql(
    database: Connection, rows: list[tuple[Array, float]], k: int, lambda_: float
) -> None:
    given_, scores = [v.astype(np.float32).astype(np.float64) for v, _ in rows], [round(score, 2) for _, score in rows]
    found = database.execute(
        "SELECT rank, place, value FROM pgembed.mmr(%s::vector[], %s::float8[], %s, %s)",
        [[text(v) for v in given_], scores, k, lambda_],
    ).fetchall()
    assert [rank for rank, _, _ in found] == list(range(1, min(k, len(rows)) + 1))
    chosen = mmr(given_, scores, k, lambda_)
    units = [unit(v) for v in given_]
    for n, (_, place, value) in enumerate(found):
        before = [place - 1 for _, place, _ in found[:n]]

        def worth(i: int, before: list[int] = before) -> float:
            return lambda_ * scores[i] - (1 - lambda_) * max((units[i] @ units[j] for j in before), default=0.0)

        assert value == pytest.approx(worth(place - 1), abs=1e-6)
        if chosen[n] != place - 1:  # they may differ only where float4 cannot tell
            assert worth(chosen[n]) == pytest.approx(value, abs=1e-6)
            return


def test_mmr_leaves_out_what_is_like_what_was_chosen(database: Connection) -> None:
    rows = ["[1,0]", "[1,0.01]", "[0,1]"]
    for lambda_, expected in ((1, [1, 2, 3]), (0.5, [1, 3, 2]), (0, [1, 3, 2])):
        found = database.execute(
            "SELECT place FROM pgembed.mmr(%s::vector[], ARRAY[0.9, 0.8, 0.7], 3, %s) ORDER BY rank", [rows, lambda_]
        ).fetchall()
        assert [place for (place,) in found] == expected
    assert database.execute("SELECT * FROM pgembed.mmr('{}', '{}', 3)").fetchall() == []


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ("mmr(ARRAY['[1,0]'::vector], ARRAY[0.1, 0.2], 3)", "mmr was given 1 vectors and 2 scores"),
        ("mmr(ARRAY['[1,0]'::vector], ARRAY[0.1], 0)", "k = 0"),
        ("mmr(ARRAY['[1,0]'::vector], ARRAY[0.1], 1, 1.5)", "lambda = 1.5"),
        ("mmr(ARRAY['[1,0]'::vector, '[0,0]'], ARRAY[0.1, 0.2], 1)", "Vector 2 of mmr is NULL or zero"),
        ("mmr(ARRAY['[1,0]'::vector], ARRAY['NaN'::float8], 1)", "its score NaN is not finite"),
        ("rocchio(NULL)", "There are no vectors to compose"),
        ("rocchio('[1,0]', ARRAY['[0,0]'::vector])", "Vector 2 of 2 is zero"),
        ("rocchio('[1,0]', ARRAY['[1,0]'::vector], beta => 'NaN')", "not a finite number"),
        ("swap('[1,0]', '[0,1]', '[0,2]')", "The vectors cancel"),
        ("swap(NULL, '[0,1]', '[1,0]')", "Vector 1 of 2 is NULL"),
        ("swap('[1,0]', NULL, '[1,0]')", "Vector 2 of 2 is NULL"),
        ("swap('[1,0]', '[0,1]', '[1,0]', NULL)", "not a finite number"),
    ],
)
def test_operations_refuse_what_makes_no_sense(database: Connection, call: str, message: str) -> None:
    with pytest.raises(psycopg.errors.InvalidParameterValue, match=message):
        database.execute(f"SELECT pgembed.{call}".encode())


def test_slerp_between_almost_equal_vectors_is_linear(database: Connection) -> None:
    assert_near(ask(database, "SELECT pgembed.slerp('[1,0]', '[1,1e-8]', 0.5)::text"), np.array([1, 5e-9]))
    assert_near(ask(database, "SELECT pgembed.slerp('[1,2]', '[1,2]', 0.3)::text"), unit(np.array([1, 2])))


@property_test
@given(st.integers(3, 12).flatmap(lambda dim: st.lists(vectors(dim), min_size=1, max_size=3)), st.data())
def test_reject_is_numpy_s(database: Connection, directions: list[Array], data: st.DataObject) -> None:
    v = data.draw(vectors(len(directions[0])))
    units = np.array([unit(d) for d in directions])
    basis, sizes, _ = np.linalg.svd(units.T, full_matrices=False)
    assume(sizes.min() > 0.2)
    rest = unit(v) - basis @ (basis.T @ unit(v))
    assume(np.linalg.norm(rest) > 0.2)
    found = ask(database, "SELECT pgembed.reject(%s::vector, %s::vector[])::text", v, directions)
    assert_near(found, unit(rest))
    assert_near(units @ found, np.zeros(len(units)))


@property_test
@given(st.integers(3, 12).flatmap(lambda dim: st.lists(vectors(dim), min_size=1, max_size=3)), st.data())
def test_orthonormal_and_neutralize_are_numpy_s(
    database: Connection, directions: list[Array], data: st.DataObject
) -> None:
    v = data.draw(vectors(len(directions[0])))
    basis, sizes, _ = np.linalg.svd(np.array([unit(d) for d in directions]).T, full_matrices=False)
    assume(sizes.min() > 0.2)
    found = database.execute(
        "SELECT d::text FROM unnest(pgembed.orthonormal(%s::vector[])) AS d", [[*map(text, directions)]]
    )
    axes = np.array([[float(x) for x in d[1:-1].split(",")] for (d,) in found])
    assert_near(axes @ axes.T, np.eye(len(directions)))
    assert_near(axes.T @ axes, basis @ basis.T)
    rest = unit(v) - basis @ (basis.T @ unit(v))
    assume(np.linalg.norm(rest) > 0.2)
    assert_near(ask(database, "SELECT pgembed.neutralize(%s::vector, %s::vector[])::text", v, directions), unit(rest))


@property_test
@given(st.integers(3, 12).flatmap(lambda dim: st.lists(vectors(dim), min_size=4, max_size=4)))
def test_what_is_equalized_differs_in_the_directions_alone(database: Connection, given_: list[Array]) -> None:
    he, she, axis, other = map(unit, given_)
    assume(abs((he - she) @ axis) > 0.2)
    rest = other - (other @ axis) * axis
    assume(np.linalg.norm(rest) > 0.2)
    made = [
        ask(
            database, f"SELECT ((pgembed.equalize(ARRAY[%s::vector, %s], ARRAY[%s::vector]))[{n}])::text", he, she, axis
        )
        for n in (1, 2)
    ]
    assert_near(np.array([np.linalg.norm(v) for v in made]), np.ones(2))
    difference = made[0] - made[1]
    np.testing.assert_allclose(difference, (difference @ axis) * axis, atol=1e-5)
    assert made[0] @ unit(rest) == pytest.approx(made[1] @ unit(rest), abs=1e-5)
    assert np.sign(difference @ axis) == np.sign((he - she) @ axis)


def test_neutralize_gives_null_for_what_has_nothing_else(database: Connection) -> None:
    for v in ("'[2,0]'", "'[0,0]'", "NULL"):
        assert ask(database, f"SELECT pgembed.neutralize({v}, ARRAY['[1,0]'::vector]) IS NULL")
    assert ask(database, "SELECT pgembed.neutralize('[1,0]', NULL) IS NULL")
    assert_near(ask(database, "SELECT pgembed.neutralize('[3,0]', '{}')::text"), np.array([1, 0]))
    plan = database.execute(
        "EXPLAIN (VERBOSE) SELECT pgembed.neutralize(v, '{\"[2,0]\"}') FROM (VALUES ('[1,1]'::vector), (NULL)) AS t (v)"
    ).fetchall()
    assert "'{\"[1,0]\"}'" in str(plan).replace("\\'", "'")  # the basis is made once, at planning


def test_reject_passes_over_directions_that_depend_on_others(database: Connection) -> None:
    found = ask(database, 'SELECT pgembed.reject(\'[1,1,1]\', \'{"[1,0,0]","[-2,0,0]","[1,1,0]","[3,1,0]"}\')::text')
    assert_near(found, np.array([0, 0, 1]))
    assert_near(ask(database, "SELECT pgembed.reject('[3,0]', '{}')::text"), np.array([1, 0]))


@property_test
@given(lists)
def test_centroid_is_numpy_s(database: Connection, some: list[Array]) -> None:
    mean = np.mean(some, axis=0)
    assume(np.linalg.norm(mean) > 0.2 * max(np.linalg.norm(v) for v in some))
    found = ask(database, "SELECT pgembed.centroid(v)::text FROM unnest(%s::vector[]) AS v", some)
    assert_near(found, unit(mean))


@property_test
@given(lists)
def test_centroid_of_unit_vectors_is_python_s(database: Connection, some: list[Array]) -> None:
    """Python's takes directions, SQL's vectors as they are."""
    units = [unit(v) for v in some]
    assume(np.linalg.norm(np.mean(units, axis=0)) > 0.2)
    known: dict[Input, Array] = {Text(str(n)): v for n, v in enumerate(some)}
    found = ask(database, "SELECT pgembed.centroid(v)::text FROM unnest(%s::vector[]) AS v", units)
    assert_near(found, python(centroid(*known), known))


def test_centroid_of_groups_passes_over_null(database: Connection) -> None:
    rows = database.execute(
        "SELECT g, pgembed.centroid(v)::text FROM (VALUES (1, '[2,0]'::vector), (1, NULL), (2, NULL)) AS t (g, v)"
        " GROUP BY g ORDER BY g"
    ).fetchall()
    assert rows == [(1, "[1,0]"), (2, None)]


@property_test
@given(st.integers(1, 6).flatmap(lambda dim: st.tuples(*[st.lists(vectors(dim), min_size=1, max_size=4)] * 2)))
def test_maxsim_is_numpy_s(database: Connection, given_: tuple[list[Array], list[Array]]) -> None:
    query, document = given_
    expected = (np.array(query) @ np.array(document).T).max(axis=1).sum()
    found = ask(database, "SELECT pgembed.maxsim(%s::vector[], %s::vector[])", query, document)
    assert found == pytest.approx(expected, rel=1e-5, abs=1e-4)


@property_test
@given(st.lists(st.one_of(st.none(), st.integers(1, 10_000)), min_size=1, max_size=5), st.floats(1, 100))
def test_rrf_is_the_sum_of_reciprocals(database: Connection, ranks: list[int | None], constant: float) -> None:
    weights = [0.5 + n for n in range(len(ranks))]
    expected = sum(w / (constant + r) for w, r in zip(weights, ranks, strict=True) if r is not None)
    found = ask(database, "SELECT pgembed.rrf(%s::bigint[], %s::float8[], %s)", ranks, weights, constant)
    assert found == pytest.approx(expected, rel=1e-12)


def test_rrf_takes_what_rank_gives(database: Connection) -> None:
    found = ask(database, "SELECT pgembed.rrf(ARRAY[row_number() OVER (), NULL])")
    assert found == pytest.approx(1 / 61)
    assert ask(database, "SELECT pgembed.rrf(ARRAY[1, 2])") == pytest.approx(1 / 61 + 1 / 62)


@pytest.mark.parametrize(
    "call",
    [
        "pgembed.scale(NULL, 1)",
        "pgembed.scale('[1]', NULL)",
        "pgembed.slerp(NULL, '[1]', 0)",
        "pgembed.slerp('[1]', '[1]', NULL)",
        "pgembed.reject(NULL, '{}')",
        "pgembed.reject('[1]', NULL)",
        "pgembed.maxsim(NULL, '{\"[1]\"}')",
        "pgembed.maxsim('{\"[1]\"}', '{}')",
    ],
)
def test_null_gives_null_so_that_rows_without_a_vector_pass(database: Connection, call: str) -> None:
    assert ask(database, f"SELECT {call} IS NULL")


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ("compose(NULL)", "no vectors to compose"),
        ("compose('{}')", "no vectors to compose"),
        ("compose('{NULL}')", "Vector 1 of 1 is NULL"),
        ("compose(ARRAY['[1,0]', NULL]::vector[], '{1,1}')", "Vector 2 of 2 is NULL"),
        ("compose(ARRAY['[1,0]', '[0,0]']::vector[], '{1,1}')", "Vector 2 of 2 is zero"),
        ("compose(ARRAY['[1,0]', '[1,0,0]']::vector[], '{1,1}')", "different dimensions: 2, 3"),
        ("compose(ARRAY['[1,0]', '[1,0]']::vector[], '{1}')", "2 vectors and 1 weights"),
        ("compose(ARRAY['[1,0]', '[1,0]']::vector[], '{1,1,1}')", "2 vectors and 3 weights"),
        ("compose(ARRAY['[1,0]', '[1,0]']::vector[], '{1,NaN}')", "not a finite number"),
        ("compose(ARRAY['[1,0]', '[1,0]']::vector[], '{-Infinity,1}')", "not a finite number"),
        ("compose(ARRAY['[1,0]', '[1,0]']::vector[], '{1,NULL}')", "not a finite number"),
        ("compose(ARRAY['[1,0]', '[1,0]']::vector[], '{0,0}')", "All weights are zero"),
        ("compose(ARRAY['[1,0]', '[5,0]']::vector[], '{1,-1}')", "cancel under the weights {1,-1}"),
        ("slerp('[1,0]', '[-2,0]', 0.5)", "opposite"),
        ("slerp('[1,0]', '[0,0]', 0.5)", "zero vector"),
        ("slerp('[1,0]', '[0,1]', 'NaN')", "is NaN"),
        ("reject('[0,0]', '{}')", "NULL or zero"),
        ("reject('[1,0]', '{NULL}')", "NULL or zero"),
        ("reject('[1,1]', ARRAY['[1,0]', '[1,2]']::vector[])", "nothing is left"),
        ("orthonormal(ARRAY['[1,0]', '[0,0]']::vector[])", "Direction 2 of 2 is zero"),
        ("orthonormal('{NULL}')", "Direction 1 of 1 is NULL"),
        ("neutralize('[1,0]', ARRAY['[1,0]', '[1,0,0]']::vector[])", "different dimensions: 2 and 3"),
        ("equalize(ARRAY['[1,0]'::vector], ARRAY['[1,0]'::vector])", "given 1 vectors, and needs two"),
        ("equalize(ARRAY['[1,0]', '[0,1]']::vector[], '{}')", "was given no direction"),
        ("equalize(ARRAY['[1,0]', NULL]::vector[], ARRAY['[1,0]'::vector])", "Vector 2 of 3 is NULL"),
        ("equalize(ARRAY['[1,0]', '[0,0]']::vector[], ARRAY['[1,0]'::vector])", "Vector 2 of 3 is zero"),
        ("equalize(ARRAY['[1,0]', '[2,0]']::vector[], ARRAY['[1,0]'::vector])", "Vector 1 of 2 does not differ"),
        ("centroid(v) FROM (VALUES ('[1,0]'::vector), ('[-1,0]')) AS t (v)", "cancel"),
        ("rrf('{0,1}')", "ranks {0,1}"),
        ("rrf('{1,2}', '{1}')", "ranks {1,2} and the weights {1}"),
    ],
)
def test_what_has_no_direction_is_an_error_with_a_hint(database: Connection, call: str, words: str) -> None:
    with pytest.raises(psycopg.errors.InvalidParameterValue) as raised:
        database.execute(f"SELECT pgembed.{call}".encode())
    assert words in str(raised.value.diag.message_primary)
    assert raised.value.diag.message_hint


@pytest.mark.parametrize("call", ["scale('[1]', 'NaN')", "scale('[1]', 'Infinity')", "scale('[1]', 1e300)"])
def test_scale_gives_no_vector_that_is_not_finite(database: Connection, call: str) -> None:
    with pytest.raises(psycopg.DataError):
        database.execute(f"SELECT pgembed.{call}".encode())


def test_functions_are_immutable_parallel_safe_and_set_no_search_path(database: Connection) -> None:
    loops = ["equalize", "mmr", "orthonormal"]  # in PL/pgSQL; the others are single expressions, or aggregates
    names = [
        "scale",
        "compose",
        "slerp",
        "reject",
        "swap",
        "rocchio",
        "neutralize",
        "centroid",
        "maxsim",
        "rrf",
        *loops,
    ]
    rows = database.execute(
        "SELECT proname, provolatile, proparallel, proconfig, prosqlbody IS NOT NULL OR prokind = 'a'"
        " FROM pg_proc WHERE pronamespace = 'pgembed'::regnamespace AND proname = ANY (%s)",
        [names],
    ).fetchall()
    assert sorted(rows) == [(name, "i", "s", None, name not in loops) for name in sorted(names)]


def test_scale_inlines(database: Connection) -> None:
    database.execute("CREATE TABLE thing (v vector(2))")
    plan = database.execute("EXPLAIN (VERBOSE) SELECT pgembed.scale(v, 0.5) FROM thing").fetchall()
    assert "scale" not in str(plan)
    assert "array_fill" in str(plan)


def test_functions_work_in_what_a_dump_restores(
    database: Connection, database_dsn: str, bare_dsn: str, embedded_server: EmbeddedServer
) -> None:
    """Generated columns, indexes and materialized views are restored with an empty search path."""
    database.execute(
        "CREATE TABLE thing (id int PRIMARY KEY, v vector(2),"
        " twice vector(2) GENERATED ALWAYS AS (pgembed.scale(v, 2)) STORED);"
        "INSERT INTO thing (id, v) VALUES (1, '[3,0]'), (2, '[0,4]');"
        "CREATE INDEX ON thing USING hnsw ((pgembed.slerp(v, '[1,1]', 0.5)::vector(2)) vector_cosine_ops);"
        "CREATE MATERIALIZED VIEW seen AS SELECT pgembed.centroid(v) AS centre,"
        " pgembed.compose(array_agg(v ORDER BY id), ARRAY[1, -0.8]) AS composed,"
        " pgembed.reject('[1,1]', ARRAY['[1,0]'::vector]) AS rejected FROM thing"
    )
    before = database.execute("TABLE seen").fetchall()
    dump = subprocess.run(
        [embedded_server.bin_dir / "pg_dump", "--exclude-table-data=pgembed.token", database_dsn],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    restored = subprocess.run(
        [embedded_server.bin_dir / "psql", "-v", "ON_ERROR_STOP=1", "-q", "-d", bare_dsn],
        input=dump.stdout, capture_output=True, text=True,
    )  # fmt: skip
    assert restored.returncode == 0, restored.stderr
    with psycopg.connect(bare_dsn, autocommit=True) as again:
        assert again.info.dbname == conninfo_to_dict(bare_dsn)["dbname"]
        again.execute("REFRESH MATERIALIZED VIEW seen")
        assert again.execute("TABLE seen").fetchall() == before
        assert again.execute("SELECT twice::text FROM thing ORDER BY id").fetchall() == [("[6,0]",), ("[0,8]",)]
