"""The algebra of inputs: what a query is, before anything is encoded."""

from __future__ import annotations

import copy
import json
import math
import pickle
import subprocess
import sys
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pgvector import HalfVector, SparseVector
from pgvector import Vector as PgVector

from pgembed import inputs as inputs_module
from pgembed.algebra import View, centroid, changed, equalize, mmr, neutralize, reject, rocchio, slerp, swap, unit
from pgembed.errors import InvalidInput, InvalidQuery
from pgembed.inputs import Expression, Image, Input, Row, Screenshot, Sum, Term, Text, Vector, batches
from pgembed.query.wire import from_json, to_json
from pgembed.regions import blend, cut
from pgembed.shown import shown_source

DIRECTIONS = {Text("x"): np.array([2.0, 0.0]), Text("y"): np.array([0.0, 0.5]), Image("x.png"): np.array([3.0, 0.0])}


def resolve(expression: Expression) -> list[float]:
    return expression.resolve(DIRECTIONS.__getitem__).tolist()


def test_query_prints_as_what_it_means() -> None:
    query = Image("dress.jpg") + 0.8 * Text("in red") - 0.8 * Text("in blue")
    assert repr(query) == "Image('dress.jpg') + 0.8 * Text('in red') - 0.8 * Text('in blue')"


@pytest.mark.parametrize(
    ("expression", "shown"),
    [
        (Text("a") * 1, "Text('a')"),
        (-Text("a"), "-Text('a')"),
        (-0.5 * Text("a") - Text("b"), "-0.5 * Text('a') - Text('b')"),
        (2 * (Text("a") - Text("b") / 4), "2 * Text('a') - 0.5 * Text('b')"),
        (Text("a") - (Text("b") - Text("c")), "Text('a') - Text('b') + Text('c')"),
        (-0.0 * Text("a") + Text("b"), "0 * Text('a') + Text('b')"),
        (Vector([1, 2.5]), "Vector([1.0, 2.5])"),
        (Vector([1, 2, 3, 4, 5], space="shop"), "Vector([1.0, 2.0, 3.0, 4.0, … 5 in all], space='shop')"),
        (Screenshot(b"\x89PNG\r\n\x1a\nabc"), "Screenshot(<11 bytes 89504e470d0a1a0a…>)"),
        (Image(PIL.Image.new("L", (3, 2))), "Image(<PIL image L 3 x 2>)"),
        (Image("https://me:secret@example.org/a.png?key=1#f"), "Image('https://example.org/a.png')"),
        (Image("a.png", box=[1, 2, 3, 4]), "Image('a.png', box=(1.0, 2.0, 3.0, 4.0))"),
        (Screenshot("a.png", mask="b.png"), "Screenshot('a.png', mask=Image('b.png'))"),
    ],
)
def test_repr(expression: Expression, shown: str) -> None:
    assert repr(expression) == shown


inputs = st.one_of(
    st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1).filter(str.strip).map(Text),
    st.text("abc/.", min_size=1).map(Image),
    st.lists(st.floats(-10, 10, width=32), min_size=1, max_size=4).map(Vector),
)
weights = st.floats(-100, 100)
expressions = st.recursive(
    inputs,
    lambda inner: st.one_of(
        st.builds(lambda a, b: a + b, inner, inner),
        st.builds(lambda a, b: a - b, inner, inner),
        st.builds(lambda w, a: w * a, weights, inner),
    ),
    max_leaves=6,
)


keys = st.one_of(st.integers(-(2**63), 2**63 - 1), st.text("ab", min_size=1))
rows = st.lists(keys, min_size=1, max_size=2).map(lambda key: Row(*key))

operations = st.recursive(
    st.one_of(inputs, rows, st.just(View("gender"))),
    lambda inner: st.one_of(
        st.builds(lambda a, b: a - b, inner, inner),
        st.builds(lambda w, a: w * a, weights, inner),
        st.builds(unit, inner),
        st.builds(slerp, inner, inner, st.floats(-1, 2)),
        st.builds(reject, inner, inner, inner),
        st.builds(swap, inner, inner, inner),
        st.builds(lambda a, b, c: equalize([a, b], c)[1], inner, inner, inner),
        st.builds(lambda a, b, c: changed(a, to=b, was=c, by="red"), inner, inner, st.one_of(st.none(), inner)),
        st.builds(lambda a, b, c: rocchio(a, liked=[b], disliked=[c]), inner, inner, inner),
    ),
    max_leaves=6,
)


@given(expressions)
def test_repr_evaluates_to_an_equal_expression(expression: Expression) -> None:
    again = eval(repr(expression))
    assert again == expression
    assert hash(again) == hash(expression)


@given(expressions, expressions, weights)
def test_algebra_is_that_of_weighted_terms(a: Expression, b: Expression, weight: float) -> None:
    assert (a + b).terms == a.terms + b.terms
    assert (a - b) == a + -b
    assert (weight * a) == a * weight
    assert (weight * (a + b)).terms == (weight * a + weight * b).terms
    assert -1 * -a == a == +a


def test_sum_builtin_and_numpy_numbers_work() -> None:
    assert sum([Text("a"), Text("b")]) == Text("a") + Text("b")
    assert np.float64(0.5) * Text("a") == 0.5 * Text("a") == Text("a") * np.float32(0.5) == Text("a") / np.int64(2)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: "abc" + Text("a"),
        lambda: Text("a") + "abc",
        lambda: "abc" - Text("a"),
        lambda: Text("a") - Path("a"),
        lambda: np.ones(3) + Text("a"),
        lambda: 1 + Text("a"),
        lambda: Text("a") * "abc",
        lambda: True * Text("a"),
        lambda: Text("a") * Text("b"),
        lambda: np.ones(2) * Text("a"),
    ],
)
def test_nothing_is_guessed(wrong: object) -> None:
    with pytest.raises(TypeError, match=r"takes (two inputs|an input and a number).*not"):
        wrong()  # type: ignore[operator]


@pytest.mark.parametrize("weight", [float("nan"), float("inf"), -float("inf"), 10**400])
def test_weights_are_finite(weight: float) -> None:
    with pytest.raises(InvalidQuery):
        weight * Text("a")
    with pytest.raises(InvalidQuery):
        Text("a") / 0
    with pytest.raises(InvalidQuery):
        1e308 * (10 * Text("a"))


def test_inputs_are_immutable_and_equal_by_content() -> None:
    assert Image("a.png") == Image(Path("a.png")) != Screenshot("a.png")
    assert Image(b"abc") == Image(bytearray(b"abc")) == Image(memoryview(b"abc"))
    assert Vector([1, -0.0]) == Vector(np.array([1.0, 0.0])) != Vector([1, 0], space="s")
    assert len({Text("a"), Text("a"), Image("a"), Screenshot("a"), Vector([1]), Vector((1.0,))}) == 4
    a, b = Text("a"), Text("b")
    for value, name in (
        (a, "text"), (Image("a"), "source"), (Vector([1]), "content"), (-a, "_terms"), (Row(1), "key"),
        (View("v"), "name"), (slerp(a, b, 0.5), "t"), (reject(a, b), "operand"), (changed(a, to=b), "to"),
        (equalize([a, b], View("v"))[0], "place"), (unit(a + b), "operand"),
    ):  # fmt: skip
        before = repr(value)
        with pytest.raises(AttributeError):
            setattr(value, name, None)
        assert repr(value) == before


def test_vector_is_a_read_only_copy() -> None:
    values = np.array([1, 2, 3])
    vector = Vector(values)
    values[0] = 7
    assert vector.values.tolist() == [1, 2, 3]
    assert vector.values.dtype == np.float32
    assert vector.dim == 3
    with pytest.raises(ValueError, match="read-only"):
        vector.values[0] = 5


def test_vector_takes_pgvector_values() -> None:
    for value in (PgVector([1, 0, 2]), HalfVector([1, 0, 2]), SparseVector([1, 0, 2])):
        assert Vector(value) == Vector([1, 0, 2])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([], "not empty"),
        ([[1, 2]], r"\(1, 2\)"),
        ([1, float("nan")], "Number 2 of the vector, nan"),
        ([1e300], r"1e\+300, is not finite in float32"),
        (["a"], "takes numbers"),
        ([True], "takes numbers"),
        ([[1], [1, 2]], "takes numbers"),
        (3, r"shape is \(\)"),
    ],
)
def test_vector_refuses(values: list[float], message: str) -> None:
    with pytest.raises(InvalidQuery, match=message):
        Vector(values)
    with pytest.raises(InvalidInput, match="Words go into Text"):
        Vector("1, 2")  # type: ignore[arg-type]


def test_pil_image_is_copied_and_compared_by_its_pixels() -> None:
    picture = PIL.Image.new("RGB", (2, 2), "red")
    before = Image(picture)
    assert before == Image(picture.copy())
    picture.putpixel((0, 0), (0, 0, 0))
    assert before != Image(picture)
    assert before.kind == "picture"
    assert isinstance(before.source, PIL.Image.Image)
    assert before.source.getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize(
    ("source", "kind"),
    [("a.png", "path"), ("https://h/a", "url"), ("s3://b/k", "url"), (Path("https://h"), "path"), (b"x", "bytes")],
)
def test_kind_of_a_picture(source: str | Path | bytes, kind: str) -> None:
    assert Image(source).kind == kind


@pytest.mark.parametrize("wrong", ["", b"", "a\0b", 3, None, np.zeros((2, 2, 3)), ["a.png"]])
def test_image_refuses(wrong: object) -> None:
    with pytest.raises(InvalidInput, match="Image"):
        Image(wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("wrong", "error"), [("", InvalidQuery), (" \n", InvalidQuery), (3, InvalidInput), (b"a", InvalidInput)]
)
def test_text_refuses(wrong: str, error: type[Exception]) -> None:
    with pytest.raises(error, match="Text"):
        Text(wrong)
    with pytest.raises(InvalidInput, match="surrogate"):
        Text("a\ud800")


def test_modalities() -> None:
    inputs: list[Input] = [Text("a"), Image("a"), Screenshot("a"), Vector([1])]
    assert [input.modality for input in inputs] == ["text", "image", "screenshot", "vector"]


def test_inputs_are_normalized_before_they_are_weighted_and_so_is_the_result() -> None:
    assert resolve(Text("x")) == [1, 0]
    assert resolve(-3 * Text("x")) == [-1, 0]
    assert resolve(3 * Text("x") + 4 * Text("y")) == pytest.approx([0.6, 0.8])
    assert resolve(Vector([0, 9]) + Image("x.png")) == pytest.approx([0.5**0.5] * 2)
    assert resolve(Vector([3e38, 3e38])) == pytest.approx([0.5**0.5] * 2)
    assert (Text("x") + Text("y")).resolve(DIRECTIONS.__getitem__).dtype == np.float32


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        (Sum(()), "empty"),
        (Text("x") - Text("x"), "cancel"),
        (Text("x") - Image("x.png"), "cancel"),
        (0 * Text("x"), "cancel"),
        (1e308 * Text("x") + 1e308 * Text("x"), "too large"),
        (Vector([0, 0]), "zero"),
        (Text("x") + Vector([1, 2, 3]), r"Text\('x'\) has 2 dimensions, Vector\(.*\) has 3"),
        (Vector([1, 0], space="a") + Vector([0, 1], space="b"), "spaces a and b"),
    ],
)
def test_what_has_no_direction_is_refused(expression: Expression, message: str) -> None:
    with pytest.raises(InvalidQuery, match=message):
        resolve(expression)


@pytest.mark.parametrize("bad", [[float("nan"), 1], [float("inf"), 1], [0, 0], [[1, 2]], []])
def test_what_an_encoder_may_return_wrongly_is_refused(bad: list[float]) -> None:
    with pytest.raises(InvalidQuery, match=r"The vector of Text\('x'\)"):
        Text("x").resolve(lambda _: np.array(bad))


@given(st.lists(st.tuples(weights, st.lists(st.floats(-1, 1), min_size=3, max_size=3)), min_size=1, max_size=5))
def test_resolve_agrees_with_the_formula(parts: list[tuple[float, list[float]]]) -> None:
    vectors = [np.array(values, dtype=np.float32).astype(np.float64) for _, values in parts]
    if any(np.linalg.norm(vector) < 1e-3 for vector in vectors):
        return
    total = sum(weight * vector / np.linalg.norm(vector) for (weight, _), vector in zip(parts, vectors, strict=True))
    if np.linalg.norm(total) < 1e-3:
        return
    expression = Sum(tuple(Term(weight, Vector(values)) for weight, values in parts))
    got = expression.resolve(lambda _: pytest.fail("a vector needs no encoder"))
    assert got == pytest.approx(total / np.linalg.norm(total), abs=1e-6)


def test_batches_hold_each_input_once() -> None:
    found = batches(Text("a") + Image("b") - Text("a"), Text("c") + Screenshot("b") + Vector([1]), Text("a"))
    assert found.texts == (Text("a"), Text("c"))
    assert found.images == (Image("b"),)
    assert found.screenshots == (Screenshot("b"),)


def test_values_can_be_copied_and_sent_to_another_process() -> None:
    query = Text("a") + 0.5 * Image(b"x") - Vector([1, 2])
    for again in (copy.deepcopy(query), pickle.loads(pickle.dumps(query))):
        assert again == query
        assert again.terms[2].input.values.tolist() == [1, 2]


def test_a_long_path_is_shortened_in_messages() -> None:
    assert len(shown_source("a" * 500)) < 100
    assert shown_source("me:secret@host/a?key=1", url=True) == "'host/a'"
    assert shown_source("https://me:secret@[broken/a@2.png?key=1") == "'https://[broken/a@2.png'"


def test_the_module_alone_brings_no_pillow() -> None:
    code = """
import sys, types
package = types.ModuleType("pgembed")
package.__path__ = [sys.argv[1]]
sys.modules["pgembed"] = package
import pgembed.inputs
sys.exit("PIL" in sys.modules)
"""
    folder = str(Path(inputs_module.__file__).parent)
    assert subprocess.run([sys.executable, "-c", code, folder], check=False).returncode == 0


# Operations


def test_operations_print_as_what_they_mean() -> None:
    query = swap(Image("dress.jpg"), Text("blue"), Text("red"), 0.8)
    assert repr(query) == "Image('dress.jpg') + 0.8 * unit(Text('red') - Text('blue'))"
    assert repr(slerp(Text("a"), Text("b"), 0.25)) == "slerp(Text('a'), Text('b'), 0.25)"
    assert repr(reject(Text("a") + Text("b"), Text("c"))) == "reject(Text('a') + Text('b'), Text('c'))"
    assert repr(0.5 * reject(Text("a"), Row(17, "de"))) == "0.5 * reject(Text('a'), Row(17, 'de'))"
    query = changed(Row(17), to=Text("in red"), was=Text("in blue"), by="recolour")
    assert repr(query) == "changed(Row(17), to=Text('in red'), was=Text('in blue'), by='recolour')"
    assert repr(changed(Row(17), to=Text("a"))) == "changed(Row(17), to=Text('a'), by='composer:lite')"
    assert repr(centroid(Text("a"), Row(1))) == "0.5 * Text('a') + 0.5 * Row(1)"


@given(operations)
def test_an_operation_is_a_value_and_travels_as_json(expression: Expression) -> None:
    again = eval(repr(expression))
    assert again == expression
    assert hash(again) == hash(expression)
    assert pickle.loads(pickle.dumps(expression)) == expression
    assert from_json(json.dumps(to_json(expression)), paths=True) == expression
    assert batches(expression).texts == tuple(dict.fromkeys(i for i in expression.inputs if isinstance(i, Text)))


def test_pictures_travel_as_their_bytes() -> None:
    picture = PIL.Image.new("RGB", (3, 2), "red")
    assert from_json(to_json(Image(b"\x89PNG..."))) == Image(b"\x89PNG...")
    assert from_json(to_json(Screenshot("https://example.org/a.png"))) == Screenshot("https://example.org/a.png")
    travelled = from_json(to_json(Image(picture)))
    assert isinstance(travelled, Image)
    assert isinstance(travelled.source, bytes)
    assert PIL.Image.open(BytesIO(travelled.source)).convert("RGB").tobytes() == picture.tobytes()


def test_a_part_counts_seven_tenths_and_the_whole_picture_three() -> None:
    one, other = np.eye(4, dtype=np.float32)[:2]
    expected = np.array([0.7, 0.3, 0, 0]) / np.hypot(0.7, 0.3)
    for part, whole in ((one, other), (2 * one, 9 * other)):
        assert blend(part, whole) == pytest.approx(expected, abs=1e-6)


def test_a_part_of_a_picture_is_another_input_and_travels_with_it() -> None:
    whole, part, masked = Image("a.png"), Image("a.png", box=(0, 0, 0.5, 1)), Image("a.png", mask=b"\x89PNG")
    assert len({whole, part, masked, Image("a.png", box=(0, 0, 0.5, 1)), Image("a.png", mask=Image(b"\x89PNG"))}) == 3
    for each in (whole, part, masked, Screenshot(b"\x89PNG", box=(1, 2, 3, 4), mask="https://example.org/m.png")):
        assert from_json(json.dumps(to_json(each)), paths=True) == each


def test_a_box_is_cut_out_with_a_margin_and_letterboxed() -> None:
    picture = PIL.Image.new("RGB", (100, 60), "white")
    picture.paste("red", (20, 10, 40, 50))
    for box in ((20, 10, 20, 40), (0.2, 10 / 60, 0.2, 40 / 60)):
        part = cut(picture, box, None)
        assert part.size == (48, 48)  # 24 x 48 with its margin
        assert part.getpixel((24, 24)) == (255, 0, 0)
        assert part.getpixel((13, 2)) == (255, 255, 255)
        mean = part.getpixel((0, 0))
        assert mean == part.getpixel((47, 47))
        assert mean[0] == 255
        assert 60 < mean[1] < 120
    assert cut(picture, (0, 0, 100, 60), None).size == (100, 100)
    assert cut(picture, (99.5, 59.5, 50, 50), None).size[0] >= 1
    for outside in ((100, 0, 10, 10), (-10, 0, 10, 10), (2, 60, 5, 5)):
        with pytest.raises(InvalidQuery, match="lies outside of the picture of 100 x 60 pixels"):
            cut(picture, outside, None)


def test_a_mask_leaves_nothing_else() -> None:
    picture = PIL.Image.new("RGB", (100, 60), "white")
    picture.paste("red", (20, 10, 40, 50))
    mask = PIL.Image.new("1", (50, 30))
    mask.paste(1, (10, 5, 20, 15))  # its upper half, at half the size
    part = cut(picture, None, mask)
    assert part.size == (24, 24)
    assert part.getpixel((12, 12)) == (255, 0, 0)
    assert part.getpixel((0, 0)) == (128, 128, 128)
    with pytest.raises(InvalidQuery, match="The mask is dark everywhere"):
        cut(picture, None, PIL.Image.new("L", (5, 5)))


def test_a_strip_becomes_no_huge_square_and_a_share_may_slip_above_one() -> None:
    strip = PIL.Image.new("L", (60_000, 2)).convert("RGB")
    assert cut(strip, (0, 0, 60_000, 2), None).size == (1024, 1024)
    picture = PIL.Image.new("RGB", (100, 60), "white")
    assert cut(picture, (0, 0, 0.6, 1.0000001), None).size == (66, 66)
    mask = PIL.Image.new("1", (100, 60))
    mask.paste(1, (0, 0, 10, 10))
    with pytest.raises(InvalidQuery, match="dark in all of the box"):
        cut(picture, (50, 30, 20, 20), mask)
    with pytest.raises(InvalidQuery, match="is a part of a picture"):
        Image("a.png", mask=Image("b.png", box=(0, 0, 1, 1)))


@pytest.mark.parametrize("mode", ["CMYK", "F", "LAB", "HSV", "PA", "RGBa"])
def test_a_picture_of_any_mode_travels(mode: str) -> None:
    assert isinstance(from_json(to_json(Image(PIL.Image.new(mode, (3, 2))))), Image)


@pytest.mark.parametrize("box", [(1, 2, 3), (1, 2, 0, 4), (1, 2, 3, -4), (1, 2, math.nan, 4)])
def test_what_is_no_box_is_refused(box: tuple[float, ...]) -> None:
    with pytest.raises(InvalidQuery, match="is no box"):
        Image("a.png", box=box)


DEEP: dict[str, object] = {"text": "a"}
for _ in range(60):
    DEEP = {"unit": DEEP}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("[", "is not JSON"),
        ([1], "query is .1., not an object"),
        ({}, "says what it is"),
        ({"text": "a", "row": [1]}, "one of text, image"),
        ({"text": "a", "weight": 2}, "'weight', which is not one of text"),
        ({"text": 7}, "query.text is 7, not text"),
        ({"text": " "}, "is empty"),
        ({"vector": [1, "2"]}, r"query.vector\[1\] is '2', not a number"),
        ({"vector": [1, True]}, "not a number"),
        ({"vector": []}, "has 0 entries, and at least 1 are wanted"),
        ({"row": [[1]]}, "neither text nor a whole number"),
        ({"row": [True]}, "neither text nor a whole number"),
        ({"row": [17.0]}, "neither text nor a whole number"),
        ({"row": [2**63]}, "neither text nor a whole number"),
        ({"row": ["a\0"]}, "holds a NUL"),
        ({"text": "a\0b"}, "holds a NUL"),
        ({"vector": [10**400]}, "a number that is too large"),
        ({"image": "QQ==", "box": [0, 0, 1e300, 1]}, "is no box"),
        ({"image": ""}, "holds no picture"),
        ({"slerp": [{"text": "a"}, {"text": "b"}, {"text": "c"}], "t": 0.5}, "has 3 entries, and 2 are wanted"),
        ({"sum": [[1, {"text": "a"}, 2]]}, r"query.sum\[0\] has 3 entries, and 2 are wanted"),
        ({"sum": [[1, {"sum": [[1, {"text": "a"}]]}]]}, "is a sum within a sum"),
        ({"sum": [["1", {"text": "a"}]]}, "not a number"),
        ({"slerp": [{"text": "a"}, {"text": "b"}]}, "slerp's t is None, not a number"),
        ({"reject": [{"text": "a"}]}, "at least 2 are wanted"),
        ({"image": "/etc/passwd", "kind": "path"}, "names a file, which this query may not"),
        ({"image": "file:///etc/passwd", "kind": "path"}, "names a file"),
        ({"image": "a.png", "kind": "url"}, "'a.png', which is no url"),
        ({"image": "???"}, "is not Base64"),
        ({"changed": [{"text": "a"}]}, "has 1 entries, and 2 or 3 are wanted"),
        ({"changed": [{"text": "a"}] * 4}, "has 4 entries"),
        ({"changed": [{"text": "a"}] * 2, "by": 7}, "changed's by is 7, not text"),
        ({"changed": [{"text": "a"}] * 2, "by": " "}, "names no composer"),
        ({"changed": [{"text": "a"}] * 2, "by": "composer:/models/a"}, "by names a file, which this query may not"),
        ({"image": "QQ==", "box": [1, 2, 3]}, "box has 3 entries, and 4 are wanted"),
        ({"image": "QQ==", "mask": {"text": "a"}}, "mask is not an image"),
        ({"image": "QQ==", "mask": {"image": "/m.png", "kind": "path"}}, "names a file"),
        ({"view": 7}, "query.view is 7, not text"),
        ({"view": " "}, "names no view"),
        ({"equalize": [{"text": "a"}], "by": [{"view": "v"}], "place": 0}, "at least 2 are wanted"),
        ({"equalize": [{"text": "a"}] * 2, "by": [], "place": 0}, "by has 0 entries"),
        ({"equalize": [{"text": "a"}] * 2, "by": [{"view": "v"}], "place": 2}, "place is 2, not that of one of its 2"),
        ({"equalize": [{"text": "a"}] * 2, "by": [{"view": "v"}]}, "place is None"),
        ({"sum": [[1, {"view": str(n)}] for n in range(51)]}, "has more than 50 inputs"),
        ({"image": "a", "kind": "blob"}, "has the kind 'blob'"),
        (DEEP, "is more than 20 levels deep"),
        ({"sum": [[1, {"text": str(n)}] for n in range(51)]}, "has more than 50 inputs"),
        ({"sum": [[1, {"image": "QQ==", "mask": {"image": "QQ=="}}]] * 26}, "has more than 50 inputs"),
        ({"image": "QQ==", "mask": {"image": "QQ==", "mask": {"image": "QQ=="}}}, "mask is not an image"),
    ],
)
def test_json_that_is_no_query_is_refused_with_the_place(value: Any, message: str) -> None:  # noqa: ANN401
    with pytest.raises(InvalidQuery, match=message):
        from_json(value)


def test_operations_resolve_to_directions() -> None:
    x, y = Text("x"), Text("y")
    assert resolve(slerp(x, y, 1 / 3)) == pytest.approx([math.cos(math.pi / 6), math.sin(math.pi / 6)])
    assert resolve(reject(3 * x + 4 * y, x)) == pytest.approx([0, 1])
    assert resolve(reject(y, x, x, 2 * x)) == pytest.approx([0, 1])
    assert resolve(swap(x, x, y)) == pytest.approx(resolve(x + unit(y - x)))
    assert resolve(rocchio(x, liked=[y, y], disliked=[x])) == pytest.approx(resolve(0.85 * x + 0.75 * y))
    assert neutralize(x, y) == reject(x, y)
    he, she = (resolve(each) for each in equalize([3 * x + 4 * y, 4 * y - x], x))
    assert he == pytest.approx([-she[0], she[1]])
    assert resolve(centroid(x, y, 5 * y)) == pytest.approx(resolve(x + 2 * y))
    assert unit(x) is x
    assert reject(x) is x


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: resolve(slerp(Text("x"), -Text("x"), 0.5)), "opposite to each other"),
        (lambda: resolve(reject(Text("x"), Image("x.png"))), "nothing is left of it"),
        (lambda: resolve(slerp(Text("x"), Vector([1, 2, 3]), 0.5)), "has 2 dimensions, .* has 3"),
        (lambda: slerp(Text("x"), Text("y"), math.nan), "The share t of slerp is nan"),
        (lambda: swap(Text("x"), Text("y"), Text("z"), math.inf), "The weight of swap is inf"),
        (lambda: rocchio(), "neither a query nor what was liked"),
        (lambda: centroid(), "was given nothing"),
        (lambda: changed(Text("x"), to=Text("y"), by=""), "names no composer"),
        (lambda: resolve(changed(Text("x"), to=Text("y"))), "has a vector only where its composer is loaded"),
        (lambda: resolve(Row(1) + Text("x")), r"Row\(1\) has a vector only in the database"),
        (lambda: Row(), "names no row"),
        (lambda: View(""), "names no view"),
        (lambda: resolve(reject(Text("x"), View("gender"))), "has its directions only in the database"),
        (lambda: equalize([Text("x")], Text("y")), "given 1 members and 1 directions"),
        (lambda: equalize([Text("x"), Text("y")]), "given 2 members and 0 directions"),
        (lambda: resolve(equalize([Text("x"), 2 * Text("x")], Text("x"))[0]), "does not differ from the others"),
        (lambda: Row(None), "names no row"),
        (lambda: mmr([[1, 0]], [0.5, 0.4], 1), "1 vectors|2 scores"),
        (lambda: mmr([[1, 0]], [0.5], 0), "asked for 0 rows"),
        (lambda: mmr([[1, 0]], [0.5], 1, 2), "The lambda of mmr is 2"),
        (lambda: mmr([[0, 0]], [0.5], 1), "zero or not finite"),
    ],
)
def test_operations_that_make_no_sense_are_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(InvalidQuery, match=message):
        make()


def test_operations_take_expressions() -> None:
    a: Any = "a"
    calls: dict[str, Callable[[], object]] = {
        "unit": lambda: unit(a),
        "slerp": lambda: slerp(Text("a"), a, 1),
        "reject": lambda: reject(Text("a"), a),
        "swap": lambda: swap(Text("a"), a, Text("b")),
        "centroid": lambda: centroid(Text("a"), a),
        "changed": lambda: changed(Text("a"), to=a),
        "rocchio": lambda: rocchio(liked=[a]),
        "equalize": lambda: equalize([Text("a"), Text("b")], a),
    }
    for name, call in calls.items():
        with pytest.raises(TypeError, match=f"{name} takes expressions, not str"):
            call()
    alone: Any = Text("a")
    with pytest.raises(TypeError, match="rocchio takes lists"):
        rocchio(liked=alone)
    assert mmr([], [], 3) == []
