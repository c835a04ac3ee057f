"""The field of an embedding: what it declares, and what a model reads of it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

from django.apps import apps
from django.core import checks
from django.db.models import F, Func, Model
from django.db.models.query_utils import DeferredAttribute
from pgvector.django import VectorField

from pgembed.catalog import InputSpec
from pgembed.declared import MODALITIES, OPERATOR_CLASSES, OPTIONS, Declared, inputs_of
from pgembed.encoders import Metric
from pgembed.errors import InvalidInput
from pgembed.parts import parts_of

_BRACES = re.compile(r"\{\{|\}\}|\{(?P<name>[^{}./]+)(?P<path>[./][^{}]*)?\}")


class EmbeddingAttribute(DeferredAttribute):
    """The attribute of an instance: its vector, read when it is asked for where it was not loaded; None of a row that
    is not saved yet."""

    def __get__(self, instance: Model | None, cls: type[Model] | None = None) -> Any:  # noqa: ANN401
        if instance is not None and instance._state.adding and self.field.attname not in instance.__dict__:
            return None
        return super().__get__(instance, cls)


class EmbeddingField(VectorField):
    """A vector that pgembed keeps true: the encoding of other fields of the row, or NULL until a worker was there.

    ``encoder`` is a name in ``PGEMBED["encoders"]``. ``text``, ``image`` and ``screenshot`` are the inputs, as of
    ``Pgembed.attach``, by the names of fields: ``text="{title}. {body}"``, ``image="photo"``,
    ``image={"column": "photo", "as": "path"}``. ``mode``, ``stale``, ``storage``, ``fusion`` and
    ``parts`` are those of attach.
    ``metric`` is the encoder's, cosine where nothing is said; inputs side by side compare by inner product.

    Django never writes it: it is in no INSERT and no UPDATE, whatever its attribute holds.
    """

    name: str
    attname: str
    model: type[Model]
    description = "Vector that pgembed fills"
    descriptor_class = EmbeddingAttribute
    generated = True  # as far as Django's writes, forms and validation are concerned
    db_persist = True
    referenced_fields: frozenset[Any] = frozenset()  # no save() changes it at once, so that none has to read it again

    def __init__(
        self,
        *,
        encoder: str,
        text: InputSpec | None = None,
        image: InputSpec | None = None,
        screenshot: InputSpec | None = None,
        mode: str = OPTIONS["mode"],
        stale: str = OPTIONS["stale"],
        storage: str = OPTIONS["storage"],
        fusion: str = OPTIONS["fusion"],
        parts: str | Mapping[str, Any] | None = None,
        metric: Metric | None = None,
        **options: Any,  # noqa: ANN401
    ) -> None:
        metric = metric or ("ip" if fusion == "concat" else "cosine")
        if metric not in OPERATOR_CLASSES:
            raise InvalidInput(f"The metric is {metric!r}.", f"It is one of {', '.join(OPERATOR_CLASSES)}.")
        self.inputs: dict[str, InputSpec] = {
            name: given for name, given in zip(MODALITIES, (text, image, screenshot), strict=True) if given is not None
        }
        self.declared = Declared(
            encoder, inputs_of(self.inputs), mode, stale, storage, fusion, metric, parts=parts_of(parts)
        )
        for name in _FIXED:
            if options.pop(name, _FIXED[name]) != _FIXED[name]:
                raise InvalidInput(
                    f"An EmbeddingField has {name}={_FIXED[name]}.", "Its column is pgembed's to make and to fill."
                )
        if taken := sorted(options.keys() & _REFUSED):
            raise InvalidInput(
                f"An EmbeddingField takes no {', '.join(taken)}.",
                "Index it by an EmbeddingIndex in Meta.indexes; its column is pgembed's to make and to fill.",
            )
        super().__init__(**options, **_FIXED)

    def deconstruct(self) -> tuple[Any, Any, Any, Any]:
        name, _, args, kwargs = super().deconstruct()
        for fixed in _FIXED:
            kwargs.pop(fixed, None)
        declared = self.declared
        kwargs |= {"encoder": declared.encoder, **self.inputs, **declared.unusual}
        if declared.metric != ("ip" if declared.fusion == "concat" else "cosine"):
            kwargs["metric"] = declared.metric
        return name, "pgembed.django.EmbeddingField", args, kwargs

    def db_type(self, connection: Any) -> str:  # noqa: ANN401
        """What values are cast to; the column itself is made by ``pgembed.attach``, which knows the dimensions."""
        return "vector"

    def from_db_value(self, value: Any, expression: Any, connection: Any) -> list[float] | None:  # noqa: ANN401
        """The numbers of a vector, ten times as quick as one by one: Postgres writes them as JSON does."""
        return json.loads(value) if isinstance(value, str) else super().from_db_value(value, expression, connection)

    def get_attname_column(self) -> tuple[str, Any]:
        attname, column = super().get_attname_column()
        return cast(str, attname), None if self.declared.storage == "side" else column

    @property
    def target(self) -> str:
        """What pgembed knows the embedding by: its column, or what its side table is named after."""
        return cast(str, self.db_column or self.attname)

    @property
    def output_field(self) -> EmbeddingField:
        """As of a generated field."""
        return self

    @property
    def expression(self) -> Func:
        """The fields that it is made from, by which makemigrations knows what has to be added before."""
        names = set(self.input_names)
        if hasattr(self, "model"):  # those of its table, not what they are called there
            names = {one.name for one in local_fields(self.model) if one.name in names or one.column in names}
        return Func(*(F(name) for name in sorted(names)))

    @property
    def input_names(self) -> Iterator[str]:
        """The names that the inputs give to fields, whether there are such or not."""
        for given in self.declared.given.values():
            if isinstance(column := given.get("column"), str):
                yield column
            for part in _BRACES.finditer(given.get("template", "")):
                if part["name"]:
                    yield part["name"]

    def declared_for(self, model: type[Model]) -> Declared:
        """What ``attach`` is told of the model's table: columns in the place of fields."""
        columns = {field.name: field.column for field in local_fields(model)}

        def renamed(part: re.Match[str]) -> str:
            name = part["name"]
            return part[0] if name is None else f"{{{columns.get(name, name)}{part['path'] or ''}}}"

        inputs: dict[str, Any] = {}
        for modality, given in self.declared.given.items():
            inputs[modality] = dict(given)
            if isinstance(column := given.get("column"), str):
                inputs[modality]["column"] = columns.get(column, column)
            if isinstance(template := given.get("template"), str):
                inputs[modality]["template"] = _BRACES.sub(renamed, template)
        options = {name: getattr(self.declared, name) for name in OPTIONS}
        return Declared(self.declared.encoder, inputs_of(inputs), **options, metric=self.declared.metric)

    def check(self, **options: Any) -> list[checks.CheckMessage]:  # noqa: ANN401
        """What is wrong with the field by itself; the app tells the rest, in checks.py."""
        found: list[checks.CheckMessage] = [*super().check(**options)]
        if not apps.is_installed("pgembed.django"):
            hint = "Add it: without it nothing attaches the embedding."
            found.append(checks.Error("'pgembed.django' is not in INSTALLED_APPS.", hint, self, "pgembed.E001"))
        return found


_FIXED: Mapping[str, bool] = {"null": True, "blank": True, "editable": False, "serialize": False}
_REFUSED = frozenset(
    {
        "db_index",
        "unique",
        "primary_key",
        "default",
        "db_default",
        "choices",
        "db_comment",
        "dimensions",
        "db_tablespace",
    }
)


def embeddings_of(model: type[Model]) -> Sequence[EmbeddingField]:
    """The embeddings of a model's own table."""
    return [field for field in local_fields(model) if isinstance(field, EmbeddingField)]


def local_fields(model: type[Model]) -> Sequence[Any]:
    """The fields whose columns stand in a model's own table, and what belongs to that table beside it."""
    return model._meta.local_fields
