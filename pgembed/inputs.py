"""What is asked or stored: texts, pictures, screenshots and vectors, and their sums. Immutable values, no I/O.

``Image("dress.jpg") + 0.8 * Text("in red") - 0.8 * Text("in blue")`` is an Expression of three weighted terms. It
knows no encoder: ``resolve`` asks the caller for the vector of each input, ``batches`` says which to encode together.
"""

from __future__ import annotations

import hashlib
import math
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, TypeAlias, TypeGuard

import numpy as np
from numpy.typing import NDArray

from pgembed.errors import InvalidInput, InvalidQuery
from pgembed.shown import URL, shortened, shown_source

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

SourceKind = Literal["bytes", "path", "url", "picture"]
InputModality = Literal["text", "image", "screenshot", "vector", "row", "view"]

_LARGEST_BOX = 1e9  # pixels; not a number is not less either
_NUMBERS = "Give a list or an array of finite numbers: Vector([0.1, -0.2])."
_NO_DIRECTION = "Give a vector of finite numbers, not all of them 0."
_CANCELS = 1e-6  # of the sum of the weights: what is left then is the rounding of float32, not a direction


PictureSource: TypeAlias = "str | os.PathLike[str] | bytes | bytearray | memoryview | Picture"


class _HasNumpy(Protocol):
    """What pgvector's Vector, HalfVector and SparseVector have in common."""

    def to_numpy(self) -> NDArray[Any]: ...


class Expression:
    """Something that has one vector: an input, a weighted sum, or an operation on others (pgembed.algebra).

    Sums come from ``+``, ``-``, and from ``*`` and ``/`` with a finite number. Equal expressions have equal terms in
    the same order, hash alike, and print as the Python that makes them.
    """

    __slots__ = ()
    __array_ufunc__: ClassVar[None] = None  # so that numpy's numbers leave ``0.8 * Text(…)`` to us

    @property
    def terms(self) -> tuple[Term, ...]:
        """The weighted operands, in the order in which they were written."""
        raise NotImplementedError

    @property
    def inputs(self) -> tuple[Input, ...]:
        """The inputs that it is made of, in the order in which they were written."""
        return tuple(input for term in self.terms for input in term.input.inputs)

    def resolve(self, encode: Callable[[Input], NDArray[Any]]) -> NDArray[np.float32]:
        """The unit vector of this expression, ``(dim,) float32``: inputs normalized, weighted, summed, normalized.

        ``encode`` gives the vector of one text, image or screenshot; a Vector is its own. Raises InvalidQuery where
        there are no terms, a vector is zero or not finite, dimensions or named spaces differ, or the sum cancels.
        """
        if len(self.spaces) > 1:
            raise InvalidQuery(
                f"The query mixes vectors of the spaces {' and '.join(sorted(self.spaces))}.",
                "Vectors of one query must come from one space.",
            )
        return self.direction(encode).astype(np.float32)

    def direction(self, encode: Callable[[Input], NDArray[Any]]) -> NDArray[np.float64]:
        """What ``resolve`` gives, ``(dim,) float64``, whatever spaces are named."""
        if not self.terms:
            raise InvalidQuery("The query is empty.", "Add a Text, an Image, a Screenshot or a Vector to it.")
        first, *others = [(term, term.input.direction(encode)) for term in self.terms]
        total = first[0].weight * first[1]
        for term, vector in others:
            if vector.size != total.size:
                raise InvalidQuery(
                    f"{first[0].input!r} has {total.size} dimensions, {term.input!r} has {vector.size}.",
                    "Vectors of one query must come from one space.",
                )
            with np.errstate(over="ignore", invalid="ignore"):
                total = total + term.weight * vector
        with np.errstate(over="ignore", invalid="ignore"):
            length = float(np.linalg.norm(total))
        if not math.isfinite(length):
            raise InvalidQuery(f"The weights of {self!r} are too large to be summed.", "Make them smaller.")
        if length <= _CANCELS * sum(abs(term.weight) for term in self.terms):
            raise InvalidQuery(f"The terms of {self!r} cancel: no direction is left.", "Change a weight or a term.")
        return total / length

    @property
    def spaces(self) -> frozenset[str]:
        """The spaces that its Vectors name; the other inputs take the space of the encoder they meet."""
        inputs = self.inputs
        return frozenset(input.space for input in inputs if isinstance(input, Vector) and input.space is not None)

    def __add__(self, other: Expression) -> Expression:
        return _sum(self.terms + _terms_of(other, "+"))

    def __radd__(self, other: object) -> Expression:
        if isinstance(other, int) and other == 0:  # what sum([...]) starts with
            return self
        return _sum(_terms_of(other, "+") + self.terms)

    def __sub__(self, other: Expression) -> Expression:
        return _sum(self.terms + tuple(-term for term in _terms_of(other, "-")))

    def __rsub__(self, other: object) -> Expression:
        return _sum(_terms_of(other, "-") + tuple(-term for term in self.terms))

    def __mul__(self, weight: float) -> Expression:
        factor = _number(weight, "*")
        return _sum(tuple(Term(term.weight * factor, term.input) for term in self.terms))

    def __rmul__(self, weight: float) -> Expression:
        return self * weight

    def __truediv__(self, divisor: float) -> Expression:
        factor = _number(divisor, "/")
        if factor == 0:
            raise InvalidQuery(f"{self!r} is divided by zero.", "Divide by another number.")
        return _sum(tuple(Term(term.weight / factor, term.input) for term in self.terms))

    def __neg__(self) -> Expression:
        return _sum(tuple(-term for term in self.terms))

    def __pos__(self) -> Expression:
        return self


class Operand(Expression):
    """What stands in a sum as one term: an input, or an operation on others."""

    __slots__ = ()

    @property
    def terms(self) -> tuple[Term, ...]:
        return (Term(1.0, self),)


class Input(Operand):
    """One text, image, screenshot or vector."""

    __slots__ = ()
    modality: ClassVar[InputModality]

    @property
    def inputs(self) -> tuple[Input, ...]:
        return (self,)

    @property
    def spaces(self) -> frozenset[str]:
        """The space that it names, if it is a Vector that names one."""
        return frozenset()

    def direction(self, encode: Callable[[Input], NDArray[Any]]) -> NDArray[np.float64]:
        """Its vector, of unit length, ``(dim,) float64``. Raises InvalidQuery for one that has no direction."""
        return _unit(self, encode)


@dataclass(frozen=True, slots=True)
class Term:
    """An operand and its weight, a finite number. Raises InvalidQuery."""

    weight: float
    input: Operand

    def __post_init__(self) -> None:
        weight = _number(self.weight, "*")
        if not math.isfinite(weight):
            raise InvalidQuery(f"The weight {weight} of {self.input!r} is not a finite number.", "Use a finite number.")
        object.__setattr__(self, "weight", weight + 0.0)  # -0.0 becomes 0.0

    def __neg__(self) -> Term:
        return Term(-self.weight, self.input)

    def __repr__(self) -> str:
        if self.weight == 1:
            return repr(self.input)
        if self.weight == -1:
            return f"-{self.input!r}"
        return f"{repr(self.weight).removesuffix('.0')} * {self.input!r}"


@dataclass(frozen=True, slots=True, repr=False)
class Sum(Expression):
    """A weighted sum. Write it with ``+ - * /``."""

    _terms: tuple[Term, ...]

    @property
    def terms(self) -> tuple[Term, ...]:
        return self._terms

    def __repr__(self) -> str:
        if not self._terms:
            return "Sum(())"
        first, *others = self._terms
        rest = (f" - {-term!r}" if term.weight < 0 else f" + {term!r}" for term in others)
        return repr(first) + "".join(rest)


@dataclass(frozen=True, slots=True, repr=False)
class Text(Input):
    """Words. Raises InvalidInput for what is not a string, InvalidQuery for an empty one."""

    modality: ClassVar[InputModality] = "text"
    text: str

    def __post_init__(self) -> None:
        if not isinstance(self.text, str):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InvalidInput(f"Text takes a str, not {_kind_of(self.text)}.")
        if not self.text.strip():
            raise InvalidQuery(f"Text({self.text!r}) is empty.", "Give it some words, or leave it out of the query.")
        if fault := _not_text(self.text):
            raise InvalidInput(f"Text({shortened(self.text)!r}) holds {fault}.")

    def __repr__(self) -> str:
        return f"Text({self.text!r})"


@dataclass(frozen=True, slots=True, repr=False, init=False)
class _PictureInput(Input):
    """What Image and Screenshot share: where the picture comes from. It is read by pgembed.media, later."""

    kind: SourceKind
    source: str | bytes | Picture = field(compare=False)
    content: str | bytes = field()  # equal content, equal picture
    box: tuple[float, float, float, float] | None
    mask: Image | None

    def __init__(
        self,
        source: PictureSource,
        *,
        box: Sequence[float] | None = None,
        mask: PictureSource | Image | None = None,
    ) -> None:
        """Take a path, a URL with its scheme, the bytes of a picture file, or a PIL image, which is copied.

        ``box`` (left, top, width, height; in pixels, or in shares of the picture where none is above 1) or ``mask``, a
        picture that is light there, say which part of it is meant; see pgembed.regions. Raises InvalidInput for
        anything else.
        """
        kind: SourceKind
        name = type(self).__name__
        if isinstance(source, str | os.PathLike):
            taken = os.fspath(source)
            if not isinstance(taken, str) or not taken or "\0" in taken:  # pyright: ignore[reportUnnecessaryIsInstance]
                raise InvalidInput(f"{name}({taken!r}) names no file.", "Give a path, a URL, bytes or a PIL image.")
            kind = "url" if isinstance(source, str) and URL.match(source) else "path"
            content = taken
        elif isinstance(source, bytes | bytearray | memoryview):
            kind, taken = "bytes", bytes(source)
            if not taken:
                raise InvalidInput(f"{name}(b'') holds no picture.")
            content = taken
        elif _is_picture(source):
            kind, taken, content = "picture", *_copied(source, name)
        else:
            raise InvalidInput(
                f"{name} takes a path, a URL, bytes or a PIL image, not {_kind_of(source)}.",
                "Words go into Text(…), vectors into Vector(…), arrays of pixels through PIL.Image.fromarray.",
            )
        object.__setattr__(self, "kind", kind)
        object.__setattr__(self, "source", taken)
        object.__setattr__(self, "content", content)
        object.__setattr__(self, "box", None if box is None else _box(box))
        made = mask if mask is None or isinstance(mask, Image) else Image(mask)
        if made is not None and (made.box or made.mask):
            raise InvalidQuery(f"The mask {made!r} is a part of a picture.", "Give a whole one.")
        object.__setattr__(self, "mask", made)

    def __repr__(self) -> str:
        shown = [shown_source(self.source, limit=4096)]
        if self.box is not None:
            shown.append(f"box={self.box!r}")
        if self.mask is not None:
            shown.append(f"mask={self.mask!r}")
        return f"{type(self).__name__}({', '.join(shown)})"


@dataclass(frozen=True, slots=True, repr=False, init=False)
class Image(_PictureInput):
    """A picture: ``Image("dress.jpg")``, ``Image(Path(…))``, ``Image("https://…")``, bytes, or a PIL image."""

    modality: ClassVar[InputModality] = "image"


@dataclass(frozen=True, slots=True, repr=False, init=False)
class Screenshot(_PictureInput):
    """A picture of a screen or a page, for encoders that read what is written on it; it takes what Image takes."""

    modality: ClassVar[InputModality] = "screenshot"


@dataclass(frozen=True, slots=True, repr=False, init=False)
class Vector(Input):
    """A vector that is there already: a list, an array, or a value of pgvector; kept as read-only ``(dim,) float32``.

    ``space`` names the space it lives in, so that a query that mixes spaces is refused. Raises InvalidQuery where it is
    empty, not of one dimension, or holds what is not a finite number.
    """

    modality: ClassVar[InputModality] = "vector"
    content: bytes = field()  # the numbers, float32 in the machine's byte order
    space: str | None

    @property
    def spaces(self) -> frozenset[str]:
        """The space that it names."""
        return frozenset() if self.space is None else frozenset((self.space,))

    def __init__(self, values: Sequence[float] | NDArray[Any] | _HasNumpy, *, space: str | None = None) -> None:
        if isinstance(values, str | bytes):
            raise InvalidInput(f"Vector takes numbers, not {_kind_of(values)}.", "Words go into Text(…).")
        plain: Any = values.to_numpy() if _has_numpy(values) else values
        try:
            array: NDArray[Any] = np.asarray(plain)
            if array.dtype.kind not in "fiu" and array.size:
                raise TypeError
            with np.errstate(over="ignore"):
                copied = np.array(array, dtype=np.float32)
        except (TypeError, ValueError):
            raise InvalidQuery(f"Vector takes numbers, not {shortened(repr(plain))}.", _NUMBERS) from None
        if copied.ndim != 1 or not copied.size:
            raise InvalidQuery(
                f"A vector has one dimension and is not empty; this one's shape is {copied.shape}.", _NUMBERS
            )
        bad = np.flatnonzero(~np.isfinite(copied))
        if bad.size:
            raise InvalidQuery(
                f"Number {bad[0] + 1} of the vector, {array[bad[0]]}, is not finite in float32.", _NUMBERS
            )
        copied += 0.0  # -0.0 becomes 0.0, so that equal vectors have equal bytes
        object.__setattr__(self, "content", copied.tobytes())
        object.__setattr__(self, "space", space)

    @property
    def values(self) -> NDArray[np.float32]:
        """The numbers, ``(dim,) float32``, read-only."""
        return np.frombuffer(self.content, dtype=np.float32)

    @property
    def dim(self) -> int:
        return self.values.size

    def __repr__(self) -> str:
        numbers = [str(value) for value in self.values[:4]] + [f"… {self.dim} in all"] * (self.dim > 4)
        space = f", space={self.space!r}" if self.space is not None else ""
        return f"Vector([{', '.join(numbers)}]{space})"


@dataclass(frozen=True, slots=True, repr=False, init=False)
class Row(Input):
    """A row of the table that is searched, by its primary key: ``Row(17)``, ``Row("de", 17)``. Postgres looks its
    vector up, under the rights of whoever asks."""

    modality: ClassVar[InputModality] = "row"
    key: tuple[Any, ...]

    def __init__(self, *key: Any) -> None:  # noqa: ANN401
        if not key or any(part is None for part in key):
            raise InvalidQuery(f"Row{key!r} names no row.", "Give its primary key, one value a column.")
        try:
            hash(key)
        except TypeError:
            raise InvalidInput(f"Row takes the values of a primary key, not {shortened(repr(key))}.") from None
        for part in key:
            if isinstance(part, str) and (fault := _not_text(part)):
                raise InvalidInput(f"Row({shortened(repr(part))}) holds {fault}.")
        object.__setattr__(self, "key", key)

    def direction(self, encode: Callable[[Input], NDArray[Any]]) -> NDArray[np.float64]:
        raise InvalidQuery(f"{self!r} has a vector only in the database.", "Search with it, or give a Vector.")

    def __repr__(self) -> str:
        return f"Row({', '.join(map(repr, self.key))})"


@dataclass(frozen=True, slots=True)
class Batches:
    """The distinct inputs of some expressions, in order of appearance, by what encodes them."""

    texts: tuple[Text, ...]
    images: tuple[Image, ...]
    screenshots: tuple[Screenshot, ...]


def batches(*expressions: Expression) -> Batches:
    """What must be encoded for these expressions, each input once, so that each modality is one call of the encoder."""
    inputs = dict.fromkeys(input for expression in expressions for input in expression.inputs)
    return Batches(
        texts=tuple(input for input in inputs if isinstance(input, Text)),
        images=tuple(input for input in inputs if isinstance(input, Image)),
        screenshots=tuple(input for input in inputs if isinstance(input, Screenshot)),
    )


def _unit(input: Input, encode: Callable[[Input], NDArray[Any]]) -> NDArray[np.float64]:
    vector = np.asarray(input.values if isinstance(input, Vector) else encode(input), dtype=np.float64)
    if vector.ndim != 1 or not vector.size:
        raise InvalidQuery(f"The vector of {input!r} has shape {vector.shape}, not (dim,).", _NO_DIRECTION)
    if not np.isfinite(vector).all():
        raise InvalidQuery(f"The vector of {input!r} is not finite.", _NO_DIRECTION)
    length = math.sqrt(float(vector @ vector))
    if length == 0:
        raise InvalidQuery(f"The vector of {input!r} is zero, which has no direction.", _NO_DIRECTION)
    return vector / length


def _not_text(text: str) -> str | None:
    """What Postgres cannot hold as text, in words; None where it can."""
    if "\0" in text:
        return "a NUL, which Postgres has in no text"
    if any("\ud800" <= character <= "\udfff" for character in text):
        return "a lone surrogate, which is not a character"
    return None


def _box(box: Sequence[float]) -> tuple[float, float, float, float]:
    numbers = [float(each) for each in box]
    if len(numbers) != 4 or not all(abs(number) <= _LARGEST_BOX for number in numbers) or min(numbers[2:]) <= 0:
        raise InvalidQuery(f"{tuple(box)!r} is no box.", "Give left, top, width and height, in pixels or in shares.")
    left, top, width, height = numbers
    return left, top, width, height


def _sum(terms: tuple[Term, ...]) -> Expression:
    """The sum of the terms; one input alone is itself, so that ``1 * Text("a")`` equals ``Text("a")``."""
    return terms[0].input if len(terms) == 1 and terms[0].weight == 1 else Sum(terms)


def _terms_of(other: object, operator: str) -> tuple[Term, ...]:
    if not isinstance(other, Expression):
        raise TypeError(
            f"'{operator}' takes two inputs, not {_kind_of(other)}: say what it is with Text(…), Image(…), "
            "Screenshot(…) or Vector(…)."
        )
    return other.terms


def _number(value: object, operator: str) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"'{operator}' takes an input and a number, its weight, not {_kind_of(value)}.")
    try:
        return float(value)
    except OverflowError:
        raise InvalidQuery(f"The weight {shortened(str(value))} is too large.", "Use a finite number.") from None


def _has_numpy(value: object) -> TypeGuard[_HasNumpy]:
    return callable(getattr(value, "to_numpy", None))


def _is_picture(value: object) -> TypeGuard[Picture]:
    module = sys.modules.get("PIL.Image")  # whoever made a PIL image has imported it
    return module is not None and isinstance(value, module.Image)


def _copied(picture: Picture, name: str) -> tuple[Picture, str]:
    """A copy that later changes of the caller's picture do not reach, and the digest that stands for its content."""
    try:
        copy = picture.copy()
        pixels = copy.tobytes()
    except (OSError, ValueError, SyntaxError) as error:
        raise InvalidInput(f"{name}({shown_source(picture)}) cannot be read: {error}.") from error
    palette = repr(copy.getpalette("RGBA")) if copy.mode in {"P", "PA"} else ""
    facts = f"{copy.mode} {copy.size} {palette} {copy.info.get('transparency')!r} {dict(copy.getexif())!r}"
    return copy, hashlib.sha256(facts.encode() + b"\0" + pixels).hexdigest()


def _kind_of(value: object) -> str:
    shown = shortened(repr(value)) if isinstance(value, str | bytes | int | float | bool) else ""
    return f"{type(value).__name__} {shown}".strip()
