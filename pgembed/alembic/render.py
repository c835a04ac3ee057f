"""How operations are written into a migration's file."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, cast

from alembic.autogenerate import renderers
from alembic.autogenerate.api import AutogenContext
from alembic.autogenerate.render import render_op

from pgembed.alembic.compare import ALLOW_DROP
from pgembed.alembic.operations import (
    AddEncoderOp,
    AlterEmbeddingOp,
    AttachEmbeddingOp,
    CreateVectorIndexOp,
    DetachEmbeddingOp,
    DropVectorIndexOp,
    InstallOp,
    PgembedOp,
    Place,
    RemoveEncoderOp,
    UninstallOp,
)
from pgembed.declared import MODALITIES, Declared

_COMMENTED = (
    f"# Vectors would go, and be encoded again. Where that is meant: alembic -x {ALLOW_DROP} revision --autogenerate"
)
Arguments = Callable[[Any], list[str]]


def register() -> None:
    """Have autogenerate write pgembed's operations."""
    for kind, (name, arguments) in _WRITTEN.items():
        renderers.dispatch_for(kind)(_renderer(name, arguments))


def _renderer(name: str, arguments: Arguments) -> Callable[[AutogenContext, PgembedOp], str | list[str]]:
    def render(context: AutogenContext, operation: PgembedOp) -> str | list[str]:
        context.imports.add("import pgembed.alembic")
        prefix = cast(str, context.opts["alembic_module_prefix"]) or ""
        lines = [f"{prefix}{name}({', '.join(arguments(operation))})"]
        if isinstance(operation, AttachEmbeddingOp | AlterEmbeddingOp):
            lines += [line for index in operation.indexes for line in render_op(context, index)]
        if _loses_vectors(operation) and not _is_allowed(context):
            commented = [f"# {line}" for call in lines for line in call.splitlines()]
            return [_COMMENTED, *commented, "pass"]  # a function of comments alone is no Python
        return lines

    return render


def _loses_vectors(operation: PgembedOp) -> bool:
    return isinstance(operation, AlterEmbeddingOp) or (isinstance(operation, DetachEmbeddingOp) and not operation.asked)


def _is_allowed(context: AutogenContext) -> bool:
    migration = context.migration_context
    config = migration.config
    given: list[str] = getattr(getattr(config, "cmd_opts", None), "x", None) or []
    return ALLOW_DROP in given or bool(migration.opts.get("pgembed_allow_drop"))


def _place(place: Place) -> list[str]:
    return [repr(str(place.table)), repr(str(place.target))]


def _schema(place: Place) -> list[str]:
    return [] if place.schema is None else [f"schema={str(place.schema)!r}"]


def _declared(declared: Declared) -> list[str]:
    inputs = declared.given
    written = [f"encoder={declared.encoder!r}"]
    for modality in MODALITIES:
        if modality in inputs:
            given = inputs[modality]
            short = given.get("template" if modality == "text" else "column")
            written.append(f"{modality}={(short if len(given) == 1 else given)!r}")
    options = dict(declared.unusual)
    if declared.parts is not None and declared.parts.startswith("{"):
        options["parts"] = json.loads(declared.parts)
    return written + [f"{name}={value!r}" for name, value in options.items()]


def _encoder(operation: AddEncoderOp) -> list[str]:
    encoder = operation.encoder
    settings = [f"settings={dict(encoder.settings)!r}"] if encoder.settings else []
    return [repr(encoder.name), repr(encoder.spec), *settings]


def _attached(operation: AttachEmbeddingOp | AlterEmbeddingOp) -> list[str]:
    return [*_place(operation.place), *_declared(operation.declared), *_schema(operation.place)]


def _detached(operation: DetachEmbeddingOp | DropVectorIndexOp) -> list[str]:
    return [*_place(operation.place), *_schema(operation.place)]


def _index(operation: CreateVectorIndexOp) -> list[str]:
    index = operation.index
    given = [f"m={index.m}", f"ef_construction={index.ef_construction}"]
    return [*_place(operation.place), *given, *_schema(operation.place)]


def _nothing(_operation: PgembedOp) -> list[str]:
    return []


_WRITTEN: dict[type[PgembedOp], tuple[str, Arguments]] = {
    InstallOp: ("install_pgembed", _nothing),
    UninstallOp: ("uninstall_pgembed", _nothing),
    AddEncoderOp: ("add_encoder", _encoder),
    RemoveEncoderOp: ("remove_encoder", lambda operation: [repr(operation.name)]),
    AttachEmbeddingOp: ("attach_embedding", _attached),
    DetachEmbeddingOp: ("detach_embedding", _detached),
    AlterEmbeddingOp: ("alter_embedding", _attached),
    CreateVectorIndexOp: ("create_vector_index", _index),
    DropVectorIndexOp: ("drop_vector_index", _detached),
}
