"""Queries as JSON, so that a web client can send one: ``from_json(to_json(query)) == query``.

    {"text": "in red"}                       {"image": "dress.jpg", "kind": "path", "box": [10, 20, 200, 300]}
    {"vector": [0.1, 0.2], "space": "shop"}  {"row": [17]}
    {"sum": [[1, {"image": …}], [0.8, {"unit": {"sum": …}}]]}
    {"slerp": [a, b], "t": 0.3}              {"reject": [a, b, …]}        {"view": "gender"}
    {"equalize": [a, b], "by": [c, …], "place": 0}
    {"changed": [reference, to, was], "by": "recolour"}, also without was

What comes from outside is data: nothing but these forms is read, its size is bounded, and a file is opened only where
``paths`` says that a query may name files.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterator, Mapping, Sequence
from io import BytesIO
from typing import TYPE_CHECKING, Any, cast

from pgembed.algebra import (
    SHIPPED_COMPOSER,
    Changed,
    Equalized,
    Reject,
    Slerp,
    Unit,
    View,
    changed,
    equalize,
    reject,
    slerp,
    unit,
)
from pgembed.errors import InvalidInput, InvalidQuery
from pgembed.inputs import Expression, Image, Input, Operand, Row, Screenshot, Sum, Term, Text, Vector
from pgembed.shown import shortened

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

MOST = 50
DEEPEST = 20
_BIGINT = 2**63
_PNG = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")  # what PNG holds of Pillow's modes
_FORMS = "text, image, screenshot, vector, row, view, sum, unit, slerp, reject, equalize and changed"


def to_json(query: Expression) -> dict[str, Any]:
    """A query as what ``json.dumps`` takes. A picture travels as the path, the URL or the bytes that it was given as; a
    PIL image as PNG, and comes back as these bytes."""
    match query:
        case Text():
            return {"text": query.text}
        case Image() | Screenshot():
            content, kind = _picture_to_json(query)
            box = {} if query.box is None else {"box": [*query.box]}
            mask = {} if query.mask is None else {"mask": to_json(query.mask)}
            return {query.modality: content, "kind": kind, **box, **mask}
        case Vector():
            space = {} if query.space is None else {"space": query.space}
            return {"vector": query.values.tolist(), **space}
        case Row():
            if odd := [part for part in query.key if not _is_key(part)]:
                raise InvalidQuery(
                    f"{query!r} cannot be JSON: {odd[0]!r} is neither text nor a whole number.", "Give its text."
                )
            return {"row": [*query.key]}
        case View():
            return {"view": query.name}
        case Unit():
            return {"unit": to_json(query.operand)}
        case Slerp():
            return {"slerp": [to_json(query.start), to_json(query.end)], "t": query.t}
        case Reject():
            return {"reject": [to_json(operand) for operand in query.operands]}
        case Equalized():
            members, directions = ([to_json(each) for each in some] for some in (query.members, query.directions))
            return {"equalize": members, "by": directions, "place": query.place}
        case Changed():
            return {"changed": [to_json(operand) for operand in query.operands], "by": query.by}
        case _:
            return {"sum": [[term.weight, to_json(term.input)] for term in query.terms]}


def from_json(value: str | bytes | Mapping[str, Any], *, paths: bool = False, most: int = MOST) -> Expression:
    """The query that ``to_json`` wrote: its value, or its text, of at most so many inputs, masks counted too.

    Raises InvalidQuery, with what is wrong and where. How large a body may be is for the server that takes it to say.
    """
    if isinstance(value, str | bytes):
        try:
            value = cast("Mapping[str, Any]", json.loads(value))
        except (ValueError, RecursionError) as error:
            raise InvalidQuery(f"The query is not JSON: {error}.") from None
    try:
        return _Reader(paths=paths, most=most).expression(value, "query", 0)
    except InvalidQuery:
        raise
    except InvalidInput as error:
        raise InvalidQuery(error.message, error.hint) from None


class _Reader:
    def __init__(self, *, paths: bool, most: int) -> None:
        self._paths = paths
        self._most = most
        self._inputs = 0

    def expression(self, value: object, place: str, depth: int) -> Expression:
        """One expression; ``place`` says where it stands: ``query.sum[1]``."""
        if depth > DEEPEST:
            raise InvalidQuery(f"{place} is more than {DEEPEST} levels deep.", "Write the query flatter.")
        if not isinstance(value, Mapping):
            raise InvalidQuery(f"{place} is {_shown(value)}, not an object.", f"Its forms: {_FORMS}.")
        fields = cast("Mapping[str, Any]", value)
        forms = [name for name in fields if name in _READERS]
        if len(forms) != 1:
            raise InvalidQuery(f"{place} has the fields {_shown([*fields])}; one of {_FORMS} says what it is.")
        name = forms[0]
        allowed, read = _READERS[name]
        if other := [field for field in fields if field not in (name, *allowed)]:
            raise InvalidQuery(f"{place} has the field {_shown(other[0])}, which is not one of {name}.")
        if name in _INPUTS:
            self._count()
        return read(self, fields, f"{place}.{name}", depth)

    def _count(self) -> None:
        self._inputs += 1
        if self._inputs > self._most:
            raise InvalidQuery(f"The query has more than {self._most} inputs.", "Ask with fewer.")

    def each(self, value: object, place: str, depth: int, most: int | None = None) -> list[Expression]:
        return [self.expression(item, where, depth + 1) for item, where in _items(value, place, 2, most=most)]

    def text(self, fields: Mapping[str, Any], place: str, _: int) -> Input:
        return Text(_of(fields["text"], str, place))

    def image(self, fields: Mapping[str, Any], place: str, _: int) -> Input:
        return Image(self._source(fields["image"], fields, place), **self._part(fields, place))

    def screenshot(self, fields: Mapping[str, Any], place: str, _: int) -> Input:
        return Screenshot(self._source(fields["screenshot"], fields, place), **self._part(fields, place))

    def vector(self, fields: Mapping[str, Any], place: str, _: int) -> Input:
        space = fields.get("space")
        numbers = [_number(item, where) for item, where in _items(fields["vector"], place, 1)]
        return Vector(numbers, space=None if space is None else _of(space, str, f"{place}'s space"))

    def row(self, fields: Mapping[str, Any], place: str, _: int) -> Input:
        key = [item for item, _ in _items(fields["row"], place, 1)]
        if odd := [part for part in key if not _is_key(part)]:
            raise InvalidQuery(f"{place} holds {_shown(odd[0])}, which is neither text nor a whole number.")
        return Row(*key)

    def view(self, fields: Mapping[str, Any], place: str, _: int) -> Input:
        return View(_of(fields["view"], str, place))

    def sum(self, fields: Mapping[str, Any], place: str, depth: int) -> Expression:
        terms: list[Term] = []
        for item, where in _items(fields["sum"], place, 1):
            (weight, _), (operand, _) = _items(item, where, 2, most=2)
            found = self.expression(operand, where, depth + 1)
            if not isinstance(found, Operand):
                raise InvalidQuery(f"{where} is a sum within a sum.", 'Write it as one, or as {"unit": {"sum": …}}.')
            terms.append(Term(_number(weight, where), found))
        return Sum(tuple(terms))

    def unit(self, fields: Mapping[str, Any], place: str, depth: int) -> Expression:
        return unit(self.expression(fields["unit"], place, depth + 1))

    def slerp(self, fields: Mapping[str, Any], place: str, depth: int) -> Expression:
        start, end = self.each(fields["slerp"], place, depth, most=2)
        return slerp(start, end, _number(fields.get("t"), f"{place}'s t"))

    def reject(self, fields: Mapping[str, Any], place: str, depth: int) -> Expression:
        return reject(*self.each(fields["reject"], place, depth))

    def equalize(self, fields: Mapping[str, Any], place: str, depth: int) -> Expression:
        members = self.each(fields["equalize"], place, depth)
        by = [self.expression(*item, depth + 1) for item in _items(fields.get("by"), f"{place}'s by", 1)]
        number = fields.get("place")
        if type(number) is not int or not 0 <= number < len(members):
            raise InvalidQuery(f"{place}'s place is {_shown(number)}, not that of one of its {len(members)} members.")
        return equalize(members, *by)[number]

    def changed(self, fields: Mapping[str, Any], place: str, depth: int) -> Expression:
        reference, to, *was = self.each(fields["changed"], place, depth, most=3)
        by = _of(fields.get("by", SHIPPED_COMPOSER), str, f"{place}'s by")
        if ":" in by and by != SHIPPED_COMPOSER and not self._paths:
            raise InvalidQuery(f"{place}'s by names a file, which this query may not.", "Name a registered composer.")
        return changed(reference, to=to, was=was[0] if was else None, by=by)

    def _part(self, fields: Mapping[str, Any], place: str) -> dict[str, Any]:
        """The part of a picture that is meant."""
        part: dict[str, Any] = {}
        if "box" in fields:
            part["box"] = [_number(item, where) for item, where in _items(fields["box"], f"{place}'s box", 4, most=4)]
        if "mask" in fields:
            mask = cast("dict[str, Any]", fields["mask"] if isinstance(fields["mask"], dict) else {})
            if "image" not in mask or not set(mask) <= {"image", "kind"}:
                raise InvalidQuery(f"{place}'s mask is not an image.", 'Write {"image": …}, without box and mask.')
            self._count()
            part["mask"] = self.image(mask, f"{place}'s mask", 0)
        return part

    def _source(self, content: object, fields: Mapping[str, Any], place: str) -> str | bytes:
        text, kind = _of(content, str, place), fields.get("kind", "base64")
        if kind == "base64":
            try:
                return base64.b64decode(text, validate=True)
            except (binascii.Error, ValueError):
                raise InvalidQuery(f"{place} is not Base64.", 'Or name its "kind": url.') from None
        if kind not in ("url", "path"):
            raise InvalidQuery(f"{place} has the kind {_shown(kind)}.", "Kinds: base64, url, path.")
        if kind == "path" and not self._paths:
            raise InvalidQuery(f"{place} names a file, which this query may not.", "Send the picture itself: base64.")
        made = Image(text)
        if made.kind != kind:
            raise InvalidQuery(f"{place} is {_shown(text)}, which is no {kind}.")
        return text


_INPUTS = frozenset(("text", "image", "screenshot", "vector", "row", "view"))
_OF_PICTURES = ("kind", "box", "mask")
_READERS = {
    "text": ((), _Reader.text),
    "image": (_OF_PICTURES, _Reader.image),
    "screenshot": (_OF_PICTURES, _Reader.screenshot),
    "vector": (("space",), _Reader.vector),
    "row": ((), _Reader.row),
    "view": ((), _Reader.view),
    "sum": ((), _Reader.sum),
    "unit": ((), _Reader.unit),
    "slerp": (("t",), _Reader.slerp),
    "reject": ((), _Reader.reject),
    "equalize": (("by", "place"), _Reader.equalize),
    "changed": (("by",), _Reader.changed),
}


def _picture_to_json(query: Image | Screenshot) -> tuple[str, str]:
    if query.kind in ("path", "url"):
        return cast(str, query.source), query.kind
    if query.kind == "bytes":
        return base64.b64encode(cast(bytes, query.source)).decode(), "base64"
    file = BytesIO()
    picture = cast("Picture", query.source)
    if picture.mode not in _PNG:
        picture = picture.convert("RGBA" if picture.has_transparency_data else "RGB")
    picture.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode(), "base64"


def _items(value: object, place: str, least: int, most: int | None = None) -> Iterator[tuple[Any, str]]:
    if not isinstance(value, list):
        raise InvalidQuery(f"{place} is {_shown(value)}, not a list.")
    items = cast("Sequence[Any]", value)
    if len(items) < least or (most is not None and len(items) > most):
        wanted = f"at least {least}" if most is None else str(least) if most == least else f"{least} or {most}"
        raise InvalidQuery(f"{place} has {len(items)} entries, and {wanted} are wanted.")
    return ((item, f"{place}[{number}]") for number, item in enumerate(items))


def _of(value: object, kind: type[str], place: str) -> str:
    if not isinstance(value, kind):
        raise InvalidQuery(f"{place} is {_shown(value)}, not text.")
    return value


def _number(value: object, place: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidQuery(f"{place} is {_shown(value)}, not a number.")
    try:
        return float(value)
    except OverflowError:
        raise InvalidQuery(f"{place} is a number that is too large.") from None


def _is_key(value: object) -> bool:
    """Whether a primary key's value travels: text, or a whole number that Postgres has."""
    return isinstance(value, str) or (type(value) is int and -_BIGINT <= value < _BIGINT)


def _shown(value: object) -> str:
    return shortened(repr(value), 60)
