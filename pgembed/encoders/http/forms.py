"""The forms of embedding servers: what a request looks like, and where the vectors stand in the answer.

A request is a JSON template. ``{model}``, ``{dimensions}`` and ``{encoding}`` stand for values, and a field whose value
is not given is left out; the one list that holds ``{text}``, ``{data_url}`` or ``{base64}`` is repeated once an input.
``{data_url}`` and ``{base64}`` are the picture itself, as pgembed has read, checked and shrunk it. There is no mark for
the picture's own URL: an encoder is given pictures, not where they lie, and a server that fetched them would do so from
its own network, outside of what ``pgembed.media`` guards.
A path into the answer names fields with dots; ``*`` is the list with one entry an input: ``data.*.embedding``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast

from pgembed.encoders.base import Role

INPUT_MARKS = ("{text}", "{data_url}", "{base64}")
Encoding = Literal["base64", "float"]


@dataclass(frozen=True)
class Form:
    """One kind of server. ``text`` and ``image`` are request templates; None where it takes no such input."""

    path: str
    text: Mapping[str, Any] | None
    image: Mapping[str, Any] | None = None
    vectors: str = "data.*.embedding"
    index: str | None = "data.*.index"
    roles: Mapping[Role, Mapping[str, Any]] = field(default_factory=dict[Role, Mapping[str, Any]])
    max_batch: int = 64
    max_images: int = 8
    max_tokens: int | None = None  # of a request in all
    info: str | None = None  # where the server tells of its model: text-embeddings-inference
    url: str | None = None  # of the service, where there is one
    key_env: str | None = None  # where its users keep the key


_OPENAI = {
    "model": "{model}",
    "input": ["{text}"],
    "dimensions": "{dimensions}",
    "encoding_format": "{encoding}",
}
_QUERY_OR_DOCUMENT: Mapping[Role, Mapping[str, Any]] = {
    "document": {"input_type": "document"},
    "query": {"input_type": "query"},
}

FORMS: Mapping[str, Form] = {
    # POST /embeddings; at most 2,048 inputs and 300,000 tokens a request. vLLM, Ollama, LiteLLM and others follow it.
    "openai": Form(
        "/embeddings",
        _OPENAI,
        max_batch=256,
        max_tokens=250_000,
        url="https://api.openai.com/v1",
        key_env="OPENAI_API_KEY",
    ),
    # text-embeddings-inference, POST /embed: a list of lists; /info tells the model's commit and the largest batch.
    "tei": Form(
        "/embed",
        {"inputs": ["{text}"], "truncate": True, "normalize": True, "dimensions": "{dimensions}"},
        vectors="*",
        index=None,
        max_batch=32,
        info="/info",
    ),
    # infinity-emb: OpenAI's form, and pictures as data URLs where "modality" says so.
    "infinity": Form(
        "/embeddings",
        _OPENAI,
        {**_OPENAI, "input": ["{data_url}"], "modality": "image"},
        max_batch=128,
    ),
    # Cohere v2, embed-v4: at most 96 inputs; pictures as data URLs in "inputs".
    "cohere": Form(
        "/embed",
        {
            "model": "{model}",
            "texts": ["{text}"],
            "embedding_types": ["float"],
            "output_dimension": "{dimensions}",
        },
        {
            "model": "{model}",
            "inputs": [{"content": [{"type": "image_url", "image_url": {"url": "{data_url}"}}]}],
            "embedding_types": ["float"],
            "output_dimension": "{dimensions}",
        },
        vectors="embeddings.float.*",
        index=None,
        roles={"document": {"input_type": "search_document"}, "query": {"input_type": "search_query"}},
        max_batch=96,
        url="https://api.cohere.com/v2",
        key_env="CO_API_KEY",
    ),
    # Voyage: texts alone, and its multimodal models; 120,000 tokens a request is the least of its models' limits.
    "voyage": Form(
        "/embeddings",
        {
            "model": "{model}",
            "input": ["{text}"],
            "output_dimension": "{dimensions}",
            "encoding_format": "{base64_or_nothing}",
        },
        roles=_QUERY_OR_DOCUMENT,
        max_batch=128,
        max_tokens=100_000,
        url="https://api.voyageai.com/v1",
        key_env="VOYAGE_API_KEY",
    ),
    "voyage-multimodal": Form(
        "/multimodalembeddings",
        {
            "model": "{model}",
            "inputs": [{"content": [{"type": "text", "text": "{text}"}]}],
            "output_dimension": "{dimensions}",
            "output_encoding": "{base64_or_nothing}",
        },
        {
            "model": "{model}",
            "inputs": [{"content": [{"type": "image_base64", "image_base64": "{data_url}"}]}],
            "output_dimension": "{dimensions}",
            "output_encoding": "{base64_or_nothing}",
        },
        roles=_QUERY_OR_DOCUMENT,
        max_batch=128,
        max_tokens=250_000,
        url="https://api.voyageai.com/v1",
        key_env="VOYAGE_API_KEY",
    ),
    # Jina: texts and pictures in one list; the task is a setting, since it differs from model to model.
    "jina": Form(
        "/embeddings",
        {
            "model": "{model}",
            "input": [{"text": "{text}"}],
            "dimensions": "{dimensions}",
            "embedding_type": "{encoding}",
        },
        {
            "model": "{model}",
            "input": [{"image": "{base64}"}],
            "dimensions": "{dimensions}",
            "embedding_type": "{encoding}",
        },
        max_batch=128,
        url="https://api.jina.ai/v1",
        key_env="JINA_API_KEY",
    ),
    # Anything else: the settings path, request, image_request, vectors and index say how.
    "custom": Form("", None, None, index=None, max_batch=32),
}


def fill(template: Any, values: Mapping[str, Any], inputs: Sequence[Mapping[str, str]]) -> Any:  # noqa: ANN401
    """A request template with its values; the list that holds an input's mark is repeated, once an input."""
    if isinstance(template, Mapping):
        given = cast(Mapping[str, Any], template)
        filled = {key: fill(value, values, inputs) for key, value in given.items()}
        return {key: value for key, value in filled.items() if value is not None}
    if isinstance(template, list):
        items = cast(list[Any], template)
        if inputs and holds_mark(items):
            return [fill(items[0], {**values, **one}, ()) for one in inputs]
        return [fill(item, values, inputs) for item in items]
    if isinstance(template, str) and template.startswith("{") and template.endswith("}"):
        if template in INPUT_MARKS and inputs:
            return inputs[0][template[1:-1]]
        return values.get(template[1:-1])
    return template


def holds_mark(template: object) -> bool:
    """Whether an input's place is in a template."""
    return any(json.dumps(mark) in json.dumps(template) for mark in INPUT_MARKS)


def repeats(template: Any) -> bool:  # noqa: ANN401
    """Whether a request template takes more than one input: its mark stands in a list."""
    if isinstance(template, Mapping):
        return any(repeats(value) for value in cast(Mapping[str, Any], template).values())
    return isinstance(template, list) and holds_mark(cast(list[Any], template))


def find(answer: Any, path: str) -> list[Any]:  # noqa: ANN401
    """What a path leads to in an answer, one entry an input. Raises LookupError or TypeError where it leads nowhere."""
    before, star, after = path.partition("*")
    found = _walk(answer, before)
    if not star:
        return [found]
    if not isinstance(found, list):
        raise LookupError(before)
    return [_walk(entry, after) for entry in cast(list[Any], found)]


def _walk(value: Any, path: str) -> Any:  # noqa: ANN401
    for name in path.strip(".").split("."):
        if name:
            value = value[int(name) if isinstance(value, list) else name]
    return value
