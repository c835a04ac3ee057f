"""What each input of a joint row gave to its score: the inputs are read and encoded again, apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, LiteralString, cast

import numpy as np
from psycopg import sql
from psycopg.types.json import Jsonb

from pgembed.catalog import EncoderRow
from pgembed.encoders import Encoder
from pgembed.errors import InvalidQuery
from pgembed.media import MediaPolicy, MediaReader, sources
from pgembed.plans import Call, Compute, Plan
from pgembed.query import SearchPlan, among, quoted
from pgembed.searching import Searcher

if TYPE_CHECKING:
    from numpy.typing import NDArray

_INPUTS = sql.SQL(
    "SELECT o.*, e.inputs, (SELECT pg_catalog.jsonb_object_agg(m, pgembed._input_sql(e.relation, e.inputs, m))"
    " FROM pg_catalog.jsonb_object_keys(e.inputs) AS m) AS input_sql"
    " FROM pgembed._embedding(%s::regclass, %s) e JOIN pgembed.encoder o ON o.name = e.encoder"
)


@dataclass(frozen=True)
class InputShare:
    """What one input of a row gave to its score: its weight in the row's vector, its own similarity to the query, and
    the share of the score that both come to. The shares of a row add up to its score, as far as its vector is that of
    its inputs: see ``pgembed verify``."""

    input: str
    weight: float
    similarity: float
    share: float | None


def input_shares(
    searcher: Searcher, table: str, plan: SearchPlan, keys: Sequence[tuple[str, ...]]
) -> Plan[list[list[InputShare]]]:
    """For the row of each key, as text, what each of its inputs gave; nothing where the embedding has one input.

    Where inputs stand side by side, that is in the stored vectors. Where they are summed, a row's vector has the
    direction of the weighted sum of its inputs' (the mean, where weights are equal), and so is its cosine the weighted
    sum of theirs over the length of that sum. Read under the caller's rights. Raises InvalidQuery where the metric is
    no cosine, and MediaError for a picture that cannot be read here.
    """
    target = plan.target
    if target.parts:
        return (yield from _part_shares(plan, keys))
    if target.metric != "cosine":
        raise InvalidQuery(
            f"{target.name} is searched by {target.metric}: only a cosine is told apart by inputs.", "Leave inputs out."
        )
    found: dict[str, Any] = (yield Call(_INPUTS, [target.relation, target.column]))[0]
    facts: dict[str, Any] = found["inputs"]
    if len(facts) < 2 or not keys:
        return [[] for _ in keys]
    modalities = sorted(facts)
    key_columns = sql.SQL(", ").join(sql.SQL("t.{}::text").format(quoted(name)) for name in target.keys)
    where, params = among(target, keys, sql.SQL("t"))
    read = sql.SQL(", ").join(
        sql.SQL("{} AS {}").format(_trusted(found["input_sql"][modality]), quoted(modality)) for modality in modalities
    )
    text = sql.SQL("SELECT ARRAY[{}] AS pgembed_key, {} FROM {} t WHERE {}").format(
        key_columns,
        read,
        quoted(target.schema, target.table),
        where,
    )
    rows = yield Call(text, params)
    vector = yield Call(
        sql.SQL("SELECT ({})::pg_catalog.float4[] AS query").format(plan.vector.text), plan.vector.values
    )
    query = _unit(np.array(vector[0]["query"], dtype=np.float64))
    encoder = EncoderRow(**{field.name: found[field.name] for field in fields(EncoderRow) if field.name in found})
    by_key: dict[tuple[str, ...], list[InputShare]] = yield Compute(
        lambda: _shares(searcher.load(encoder), replace(searcher.media, any_path=False), facts, rows, query)
    )
    return [by_key.get(key, []) for key in keys]


def _part_shares(plan: SearchPlan, keys: Sequence[tuple[str, ...]]) -> Plan[list[list[InputShare]]]:
    """By ``pgembed._part_shares``, which gives what ``pgembed.explain_search`` tells."""
    if not keys:
        return []
    vector, target = plan.vector, plan.target
    table, column, rows = (
        _trusted(sql.Literal(value).as_string(None))
        for value in (target.relation, target.column, Jsonb([*map(list, keys)]))
    )
    text = sql.SQL("SELECT pgembed._part_shares({}::regclass, {}, {}, {}) AS told").format(
        table, column, vector.text, rows
    )
    found = yield Call(text, vector.values)
    return [[InputShare(**one) for one in row] for row in found[0]["told"]]


def _shares(
    encoder: Encoder,
    media: MediaPolicy,
    facts: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    query: NDArray[np.float64],
) -> dict[tuple[str, ...], list[InputShare]]:
    units: list[dict[str, NDArray[np.float64]]] = [{} for _ in rows]
    with MediaReader(media) as reader:
        for modality in sorted(facts):
            for number, row in enumerate(rows):
                if row[modality] is None:
                    continue
                vectors = _encoded(encoder, reader, modality, row[modality], facts[modality])
                if len(vectors):
                    units[number][modality] = np.mean([_unit(one) for one in vectors], axis=0)
    told: dict[tuple[str, ...], list[InputShare]] = {}
    for row, inputs in zip(rows, units, strict=True):
        weights = {modality: float(facts[modality]["weight"]) for modality in inputs}
        length = (
            float(np.linalg.norm(sum(weights[m] * _unit(vector) for m, vector in inputs.items()))) if inputs else 0.0
        )
        told[tuple(row["pgembed_key"])] = [
            InputShare(m, weights[m], similar, weights[m] * similar / length if length else None)
            for m, vector in inputs.items()
            for similar in [float(_unit(vector) @ query)]
        ]
    return told


def _encoded(
    encoder: Encoder, reader: MediaReader, modality: str, value: object, facts: Mapping[str, Any]
) -> NDArray[np.float32]:
    """The vectors ``(n, dim)`` of an input: one, or one for each picture of a list."""
    if modality == "text":
        return encoder.encode_text([cast("str", value)])
    pictures = [reader.open(source.value, source.kind) for source in sources(value, facts)]
    return encoder.encode_image(pictures) if modality == "image" else encoder.encode_screenshot(pictures)


def _unit(vector: NDArray[Any]) -> NDArray[np.float64]:
    length = float(np.linalg.norm(vector))
    return vector.astype(np.float64) / length if length else vector.astype(np.float64)


def _trusted(text: str) -> sql.SQL:
    """SQL that is no caller's, in which psycopg must not see placeholders."""
    return sql.SQL(cast(LiteralString, text.replace("%", "%%")))
