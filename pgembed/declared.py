"""What a model or a file says of an embedding: immutable values that can be compared, hashed and written as Python."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from pgembed import catalog
from pgembed.catalog import InputSpec
from pgembed.encoders import Metric
from pgembed.errors import CatalogError, InvalidInput
from pgembed.parts import parts_of
from pgembed.plans import Plan

Storage = Literal["column", "side"]
STORAGES: tuple[Storage, ...] = get_args(Storage)
OPERATOR_CLASSES: Mapping[Metric, str] = {"cosine": "vector_cosine_ops", "ip": "vector_ip_ops", "l2": "vector_l2_ops"}
MODALITIES = ("text", "image", "screenshot")
OPTIONS: Mapping[str, Any] = {"mode": "queue", "stale": "keep", "storage": "column", "fusion": "sum", "parts": None}
"""What ``attach`` takes beside the inputs, and what is usual."""


@dataclass(frozen=True)
class EncoderSpec:
    """An encoder and how to register it: ``EncoderSpec("lite", "builtin:lite")``. Where a model names an encoder by a
    ``str`` alone, it must be registered already."""

    name: str
    spec: str
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any], hash=False)


@dataclass(frozen=True)
class VectorIndex:
    """An HNSW index over the vectors: pgvector's ``m`` and ``ef_construction``."""

    m: int = 16
    ef_construction: int = 64


@dataclass(frozen=True)
class Declared:
    """What ``pgembed.attach`` is to be told of an embedding. ``inputs`` is JSON, as ``inputs_of`` gives it, and
    ``parts`` the name of a splitter, or JSON with its options, in the form of ``parts_of``: these stand in a side
    table."""

    encoder: str
    inputs: str
    mode: str = OPTIONS["mode"]
    stale: str = OPTIONS["stale"]
    storage: str = OPTIONS["storage"]
    fusion: str = OPTIONS["fusion"]
    metric: Metric = "cosine"
    index: VectorIndex | None = None
    registered_as: EncoderSpec | None = None
    parts: str | None = OPTIONS["parts"]

    def __post_init__(self) -> None:
        if self.parts is not None:
            object.__setattr__(self, "parts", parts_of(self.parts))
            object.__setattr__(self, "storage", "side")

    @property
    def given(self) -> dict[str, Any]:
        """The inputs, as ``attach`` takes them."""
        return json.loads(self.inputs)

    @property
    def unusual(self) -> dict[str, Any]:
        """The options that are not as usual; without the storage of parts, which stand in a side table in any case."""
        found = {name: value for name, usual in OPTIONS.items() if (value := getattr(self, name)) != usual}
        if self.parts is not None:
            del found["storage"]
        return found

    @property
    def attached(self) -> tuple[str, ...]:
        """What cannot be changed but by attaching anew: two that are alike in this hold the same vectors."""
        return self.encoder, self.inputs, *(getattr(self, name) for name in OPTIONS)


def registered(encoder: EncoderSpec) -> Plan[None]:
    """Register an encoder, unless it is. Raises CatalogError where one of that name is another one."""
    known = {row.name: row for row in (yield from catalog.encoders())}.get(encoder.name)
    if known is None:
        yield from catalog.add_encoder(encoder.name, encoder.spec, encoder.settings, None)
    elif (known.spec, known.settings) != (encoder.spec, dict(encoder.settings)):
        raise CatalogError(
            f"An encoder '{encoder.name}' is there, as {known.spec} or with other settings, not as {encoder.spec}.",
            "Vectors of two encoders do not compare: add the new one under another name, and alter the embedding.",
        )


def inputs_of(given: Mapping[str, InputSpec | None]) -> str:
    """The inputs of an embedding in their one form, as JSON. Raises InvalidInput where there are none, or one is none.

    It is what ``pgembed.attach`` takes, and what the catalog has, without what attach adds to it.
    """
    inputs: dict[str, Any] = {}
    for modality, value in given.items():
        if isinstance(value, str):
            inputs[modality] = _named(modality, value)
        elif isinstance(value, Mapping):
            inputs[modality] = _plain(modality, value)
        elif value is not None:
            raise InvalidInput(
                f"The {modality} input of an embedding is a column, a template or a mapping, not {value!r}.",
                'For example text="{title}. {body}", image="photo", or image={"column": "photo", "as": "path"}.',
            )
    if not inputs:
        raise InvalidInput(
            "An embedding was declared with no input.", 'Give text="{title}", image="photo" or screenshot="page".'
        )
    return json.dumps(inputs, sort_keys=True)


def _named(modality: str, name: str) -> dict[str, Any]:
    if modality == "text":
        return {"template": name if "{" in name or "}" in name else f"{{{name}}}"}
    return {"column": name}


def _plain(modality: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """An input without what says the usual, or what attach has looked up."""
    column = given.get("column")
    named = _named(modality, column) if isinstance(column, str) else {}
    rest = {key: value for key, value in given.items() if key not in ("columns", "list", *named)}
    if modality == "text":
        rest.pop("column", None)
    if rest.get("as") in ("bytes", "large_object"):
        del rest["as"]
    if rest.get("weight") == 1:
        del rest["weight"]
    return {**named, **rest}
