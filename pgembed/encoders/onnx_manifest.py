"""The manifest of an ``onnx:`` folder: what its files are, and how texts and pictures are made ready for them.

``manifest.json`` stands beside the graphs that it names. ``pgembed encoder export`` writes one; by hand it is short:

    {"format": "pgembed-onnx", "version": 1, "dim": 512, "modalities": ["text", "image", "screenshot"],
     "text": {"file": "text.onnx", "tokenizer": "tokenizer.json", "cleanup": "lower", "trim": true},
     "image": {"file": "image.onnx", "size": [224, 224], "resize": "shortest", "interpolation": "bicubic",
               "mean": [0.48, 0.46, 0.41], "std": [0.27, 0.26, 0.28]}}
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, NoReturn, Self, cast

from pgembed.encoders.base import MODALITIES, Metric, Modality
from pgembed.errors import EncoderError

NAME = "manifest.json"
FORMAT, VERSION = "pgembed-onnx", 1
Cleanup = Literal["lower", "whitespace", "canonicalize", "none"]
Resize = Literal["shortest", "longest", "squash"]
Interpolation = Literal["bicubic", "bilinear"]
_WORDS = {
    "metric": ("cosine", "ip", "l2"),
    "precision": ("fp32", "fp16", "int8"),
    "cleanup": ("lower", "whitespace", "canonicalize", "none"),
    "resize": ("shortest", "longest", "squash"),
    "interpolation": ("bicubic", "bilinear"),
}


@dataclass(frozen=True)
class TextSide:
    """A graph from token ids ``(n, length) int`` to vectors ``(n, dim)``, and its tokenizer.

    ``tokenizer`` is a file of the package tokenizers, which says how texts are cut off and padded. ``cleanup`` is done
    before: open_clip's mending, and lower case or no punctuation. ``replace`` maps ids to others afterwards. With
    ``trim``, what is padding in all texts of a batch is left out: only for graphs to which it makes no difference.
    ``token_output`` names an output ``(n, length, dim)``, of each token, where the graph has one and a text's vector is
    the mean of those that are no padding: texts can then be chunked late.
    """

    file: str
    tokenizer: str
    cleanup: Cleanup = "none"
    replace: Mapping[str, int] = field(default_factory=dict[str, int])
    trim: bool = False
    input: str = "ids"
    output: str = "vectors"
    token_output: str | None = None


@dataclass(frozen=True)
class ImageSide:
    """A graph from pixels ``(n, 3, height, width) float32`` to vectors ``(n, dim)``, and how pictures become pixels.

    ``size`` is (height, width). ``resize`` scales the shorter side to it and cuts out the middle, or the longer one and
    fills up with ``fill``, or squashes. Channels are RGB between 0 and 1, less ``mean``, divided by ``std``.
    """

    file: str
    size: tuple[int, int]
    resize: Resize = "shortest"
    interpolation: Interpolation = "bicubic"
    fill: int = 0
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    input: str = "pixels"
    output: str = "vectors"


@dataclass(frozen=True)
class Source:
    """The encoder that a folder was exported from."""

    spec: str
    fingerprint: str
    space: str


@dataclass(frozen=True)
class Manifest:
    """All of a manifest. ``measured`` is for people: parity and speed, as found when it was made.

    ``same_space`` says that its vectors are those of ``source`` and compare with them.
    """

    dim: int
    modalities: tuple[Modality, ...]
    text: TextSide | None = None
    image: ImageSide | None = None
    metric: Metric = "cosine"
    normalized: bool = True
    precision: Literal["fp32", "fp16", "int8"] = "fp32"
    source: Source | None = None
    same_space: bool = False
    measured: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @classmethod
    def read(cls, spec: str, folder: Path) -> Self:
        """Read and check a folder's manifest. Raises EncoderError with what is wrong in it."""
        path = folder / NAME
        try:
            given: Any = json.loads(path.read_bytes())
        except OSError as error:
            raise EncoderError(
                f"There is no {NAME} in '{folder}' (for '{spec}').",
                "Give the folder that pgembed encoder export made.",
            ) from error
        except ValueError as error:
            raise EncoderError(f"The manifest '{path}' is not JSON: {error}.") from error
        check = _Check(f"The manifest '{path}' of '{spec}'")
        whole = check.mapping(given, "it")
        if whole.get("format") != FORMAT or whole.get("version") != VERSION:
            found = f"format {whole.get('format')!r}, version {whole.get('version')!r}"
            check.fail(f"is of {found}; this pgembed reads {FORMAT!r}, {VERSION}")
        facts = {key: value for key, value in whole.items() if key not in ("format", "version")}
        for key, side in (("text", TextSide), ("image", ImageSide), ("source", Source)):
            if facts.get(key) is not None:
                facts[key] = check.made(side, facts[key], key)
        return cls._checked(check.made(cls, facts, ""), check, folder)

    @classmethod
    def _checked(cls, manifest: Self, check: _Check, folder: Path) -> Self:
        sides = (("text", manifest.text), ("image", manifest.image))
        for name, side in sides:
            if (name in manifest.modalities) != (side is not None):
                check.fail(f"must have '{name}' both among its modalities and beside them, or neither")
        if "screenshot" in manifest.modalities and manifest.image is None:
            check.fail("has the modality screenshot, and no 'image'")
        for side in (manifest.text, manifest.image):
            for file in (side.file, *([side.tokenizer] if isinstance(side, TextSide) else [])) if side else ():
                if Path(file).name != file:
                    check.fail(f"names the file '{file}', which is not a name of the same folder")
                if not (folder / file).is_file():
                    check.fail(f"names the file '{file}', which is not there")
        return manifest

    def write(self, folder: Path) -> None:
        """Write ``manifest.json``."""
        facts = {"format": FORMAT, "version": VERSION, **asdict(self)}
        (folder / NAME).write_text(json.dumps(facts, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


@dataclass(frozen=True)
class _Check:
    """Makes dataclasses of JSON; what is wrong is told as ``{subject} …``."""

    subject: str

    def fail(self, what: str) -> NoReturn:
        raise EncoderError(f"{self.subject} {what}.", "Export the model again, or mend the manifest.")

    def mapping(self, value: Any, name: str) -> dict[str, Any]:  # noqa: ANN401
        if not isinstance(value, dict):
            self.fail(f"is wrong: {name} is not an object")
        return cast("dict[str, Any]", value)

    def made(self, kind: Any, value: Any, name: str) -> Any:  # noqa: ANN401
        """An instance of a dataclass from an object of the same keys."""
        given = self.mapping(value, f"'{name}'")
        known = {one.name: one for one in fields(kind)}
        prefix = f"{name}." if name else ""
        for key, item in given.items():
            if key not in known:
                self.fail(f"has an unknown key '{prefix}{key}'")
            if not _FITS.get(key, _is_text)(item):
                self.fail(f"is wrong: '{prefix}{key}' is {item!r}")
        missing = [
            key for key, one in known.items() if key not in given and one.default is one.default_factory is MISSING
        ]
        if missing:
            self.fail(f"lacks '{prefix}{missing[0]}'")
        return kind(**{key: tuple(item) if (item := _items(given[key])) else given[key] for key in given})


def _items(value: Any) -> list[Any] | None:  # noqa: ANN401
    return list(cast("list[Any]", value)) if isinstance(value, list | tuple) else None


def _list_of(count: int, fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    def check(value: Any) -> bool:  # noqa: ANN401
        items = _items(value)
        return items is not None and len(items) == count and all(map(fits, items))

    return check


def _is_int(value: Any) -> bool:  # noqa: ANN401
    return type(value) is int


def _is_number(value: Any) -> bool:  # noqa: ANN401
    return type(value) in (int, float)


def _is_modalities(value: Any) -> bool:  # noqa: ANN401
    items = _items(value)
    return bool(items) and all(item in MODALITIES for item in items or ())


def _is_replace(value: Any) -> bool:  # noqa: ANN401
    if not isinstance(value, dict):
        return False
    return all(key.isdigit() and _is_int(item) for key, item in cast("dict[str, Any]", value).items())


def _is_text(value: Any) -> bool:  # noqa: ANN401
    return isinstance(value, str) and bool(value)


# What the value of a key must be; of all others, a text.
_FITS: Mapping[str, Callable[[Any], bool]] = {
    **{key: (lambda value, words=words: value in words) for key, words in _WORDS.items()},
    **dict.fromkeys(("normalized", "trim", "same_space"), lambda value: isinstance(value, bool)),
    "token_output": lambda value: value is None or _is_text(value),
    "text": lambda value: value is None or isinstance(value, TextSide),
    "image": lambda value: value is None or isinstance(value, ImageSide),
    "source": lambda value: value is None or isinstance(value, Source),
    "measured": lambda value: isinstance(value, dict),
    "dim": lambda value: _is_int(value) and value > 0,
    "fill": lambda value: _is_int(value) and 0 <= value <= 255,
    "size": _list_of(2, lambda value: _is_int(value) and value > 0),
    "mean": _list_of(3, _is_number),
    "std": _list_of(3, lambda value: _is_number(value) and value > 0),
    "modalities": _is_modalities,
    "replace": _is_replace,
}
