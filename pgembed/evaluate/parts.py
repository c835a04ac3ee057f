"""The vectors of rows, input by input: read where an embedding of the table has them apart, else encoded once."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import psycopg
from psycopg import sql
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from pgembed.catalog import EncoderRow, InputSpec
from pgembed.encoders import Encoder
from pgembed.errors import InvalidInput
from pgembed.evaluate.target import Connection
from pgembed.media import MediaPolicy
from pgembed.told import in_own_words
from pgembed.worker.batch import Batch, Row, encode
from pgembed.worker.decode import Decoder
from pgembed.worker.queue import Work, trusted

if TYPE_CHECKING:
    from numpy.typing import NDArray

PAGE = 64  # rows in hand at once, with their pictures
ORDER = ("text", "image", "screenshot")

_OF_EMBEDDING = sql.SQL(
    "SELECT e.relation, e.encoder, e.inputs, e.fusion, e.target"
    " FROM pgembed._embedding(%s::pg_catalog.regclass, %s) AS e"
)
_OF_ARGUMENTS = sql.SQL(
    "SELECT %(table)s::pg_catalog.regclass::pg_catalog.oid AS relation, o.name AS encoder,"
    " pgembed._checked_inputs(%(table)s::pg_catalog.regclass, o, %(inputs)s) AS inputs"
    " FROM pgembed._encoder(%(encoder)s) AS o"
)
_FACTS = sql.SQL(
    "SELECT n.nspname AS schema_name, c.relname AS table_name, c.oid::pg_catalog.regclass::text AS shown,"
    " (SELECT pg_catalog.jsonb_object_agg(m, pgembed._input_sql(c.oid, %(inputs)s, m))"
    " FROM pg_catalog.jsonb_object_keys(%(inputs)s) AS m) AS input_sql,"
    " (SELECT coalesce(pg_catalog.jsonb_agg(a.attname ORDER BY k.place), '[]') FROM pg_catalog.pg_index i"
    " CROSS JOIN LATERAL pg_catalog.unnest(i.indkey) WITH ORDINALITY AS k(attnum, place)"
    " JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum"
    " WHERE i.indrelid = c.oid AND i.indisprimary) AS keys,"
    " (SELECT coalesce(pg_catalog.jsonb_agg(a.attname), '[]') FROM pg_catalog.pg_attribute a"
    " WHERE a.attrelid = c.oid AND a.attnum > 0) AS names"
    " FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = %(relation)s"
)
_STORED = sql.SQL(
    "SELECT e.target, e.inputs, e.fusion, e.storage, e.encoder, s.relname AS side_table, m.nspname AS side_schema,"
    " (SELECT pg_catalog.jsonb_agg(pg_catalog.jsonb_build_array(k.row_name, k.side_name) ORDER BY k.ordinal)"
    " FROM pgembed._side_keys(e) AS k) AS keys"
    " FROM pgembed.embedding e LEFT JOIN pg_catalog.pg_class s ON e.storage = 'side' AND s.oid = e.side"
    " LEFT JOIN pg_catalog.pg_namespace m ON m.oid = s.relnamespace"
    " WHERE e.relation = %s AND (e.storage = 'column' OR s.oid IS NOT NULL) ORDER BY e.id"
)


@dataclass(frozen=True)
class Stored:
    """Where an embedding holds the vectors of one input: all of its vector, or a part of it."""

    target: str
    join: sql.Composable  # with what it stands in
    column: sql.Composable
    part: int | None  # the number of the part, from 0


@dataclass(frozen=True)
class Fused:
    """Inputs of a table that may become one vector: checked, as the catalog has them, in the order of a vector's parts.

    ``ids`` are the columns whose values the judgments name, ``taken`` the names that a new vector column cannot have,
    ``concat`` the name of the embedding that was asked for, where its vectors have parts already.
    """

    schema: str
    table: str
    shown: str
    encoder: str
    inputs: Mapping[str, Mapping[str, Any]]
    input_sql: Mapping[str, str]
    ids: tuple[str, ...]
    taken: frozenset[str]
    stored: Mapping[str, Stored]
    concat: str | None

    @property
    def modalities(self) -> tuple[str, ...]:
        """The inputs, in their order."""
        return tuple(modality for modality in ORDER if modality in self.inputs)

    def attach(self, weights: Mapping[str, float], fusion: str) -> str:
        """The SQL that attaches these inputs by these weights, under a name that is free."""
        given: dict[str, dict[str, Any]] = {}
        for modality in self.modalities:
            if modality not in weights:
                continue
            facts = self.inputs[modality]
            spec = {name: facts[name] for name in ("template", "column") if name in facts}
            if facts.get("as") in ("path", "url"):
                spec["as"] = facts["as"]
            given[modality] = spec | ({"weight": weights[modality]} if len(weights) > 1 else {})
        name, number = "fused", 2
        while name in self.taken:
            name, number = f"fused_{number}", number + 1
        text = sql.SQL("SELECT pgembed.attach({}, {}, encoder => {}, inputs => {}{});").format(
            self.shown, name, self.encoder, Jsonb(given), sql.SQL(", fusion => 'concat'" if fusion == "concat" else "")
        )
        return text.as_string(None).replace("::jsonb", "")


def fused_inputs(
    conn: Connection,
    table: str,
    embedding: str | None,
    encoder: str | None,
    inputs: Mapping[str, InputSpec | None],
    id_column: str | None,
) -> Fused:
    """The inputs of an embedding, or with an ``encoder`` those that are given.

    Raises InvalidInput where there are fewer than two, or no column of ids, and CatalogError for what attach refuses.
    """
    given = {modality: value for modality, value in inputs.items() if value is not None}
    with in_own_words(), conn.cursor(row_factory=dict_row) as cursor:
        if encoder is None:
            cursor.execute(_OF_EMBEDDING, [table, embedding])
        else:
            cursor.execute(_OF_ARGUMENTS, {"table": table, "encoder": encoder, "inputs": Jsonb(given)})
        found: dict[str, Any] = cursor.fetchall()[0]
        cursor.execute(_FACTS, {"inputs": Jsonb(found["inputs"]), "relation": found["relation"]})
        facts: dict[str, Any] = cursor.fetchall()[0]
        embeddings = cursor.execute(_STORED, [found["relation"]]).fetchall()
    if len(found["inputs"]) < 2:
        raise InvalidInput(
            f"There is nothing to fuse: {', '.join(found['inputs'])} is the only input of {facts['shown']}.",
            "Name several: --encoder NAME --text '{title}' --image photo, or an embedding that has several.",
        )
    ids = (id_column,) if id_column else tuple(facts["keys"])
    if missing := [name for name in ids if name not in facts["names"]]:
        raise InvalidInput(f"{facts['shown']} has no column '{missing[0]}'.", f"It has: {', '.join(facts['names'])}.")
    if not ids:
        raise InvalidInput(f"{facts['shown']} has no primary key.", "Name the column of ids: --id-column NAME")
    return Fused(
        schema=facts["schema_name"],
        table=facts["table_name"],
        shown=facts["shown"],
        encoder=found["encoder"],
        inputs=found["inputs"],
        input_sql=facts["input_sql"],
        ids=ids,
        taken=frozenset([*facts["names"], *(row["target"] for row in embeddings)]),
        stored=_stored([row for row in embeddings if row["encoder"] == found["encoder"]], found["inputs"]),
        concat=found["target"] if found.get("fusion") else None,
    )


def _stored(embeddings: Sequence[Mapping[str, Any]], inputs: Mapping[str, Any]) -> dict[str, Stored]:
    """The inputs that embeddings of the same encoder hold apart."""
    found: dict[str, Stored] = {}
    for number, row in enumerate(embeddings):
        parts: list[str] | None = row["fusion"]["parts"] if row["fusion"] else None
        if parts is None and len(row["inputs"]) > 1:
            continue
        for modality, facts in row["inputs"].items():
            wanted = inputs.get(modality)
            if modality in found or wanted is None or _without_weight(facts) != _without_weight(wanted):
                continue
            join: sql.Composable = sql.SQL("")
            column: sql.Composable = sql.Identifier("t", row["target"])
            if row["storage"] == "side":
                alias = f"side {number}"
                column = sql.Identifier(alias, "vector")
                join = sql.SQL(" LEFT JOIN {} AS {} ON {}").format(
                    sql.Identifier(row["side_schema"], row["side_table"]),
                    sql.Identifier(alias),
                    sql.SQL(" AND ").join(
                        sql.SQL("{} = {}").format(sql.Identifier("t", own), sql.Identifier(alias, other))
                        for own, other in row["keys"]
                    ),
                )
            found[modality] = Stored(row["target"], join, column, None if parts is None else parts.index(modality))
    return found


def _without_weight(facts: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in facts.items() if name != "weight"}


@dataclass
class Parts:
    """The vectors of n rows: ``units`` has for each input ``(n, dim) float32`` of length 1, or 0 where a row lacks it.

    ``read`` counts the vectors that an embedding had, ``encoded`` those made here, ``failed`` the inputs that could not
    be read; ``unread`` has the reasons of the first of these.
    """

    ids: list[str]
    units: dict[str, NDArray[np.float32]]
    read: int = 0
    encoded: int = 0
    failed: int = 0
    unread: list[str] = field(default_factory=list[str])


def read_parts(
    conn: Connection,
    fused: Fused,
    row: EncoderRow,
    encoder: Encoder,
    judged: Sequence[str],
    *,
    others: int,
    seed: int,
    media: MediaPolicy,
    on_progress: Callable[[int, int], None] | None = None,
) -> Parts:
    """The vectors of the judged rows and of so many ``others``, drawn with ``seed``.

    Raises InvalidInput where no judged id is a row's.
    """
    with in_own_words():
        chosen = _chosen(conn, fused, judged, others, seed)
    if not set(chosen).intersection(judged):
        shown = ", ".join(judged[:3])
        raise InvalidInput(
            f"None of the {len(judged):,} judged ids is a row's {' and '.join(fused.ids)} in {fused.shown}: {shown}.",
            "Name the column that holds them: --id-column NAME",
        )
    vectors: dict[str, dict[str, NDArray[np.float32]]] = {modality: {} for modality in fused.modalities}
    made = Parts([], {})
    decoder = Decoder(media, 4)
    try:
        with in_own_words():
            done = 0
            for page in _pages(conn, fused, chosen):
                for number, modality in enumerate(fused.modalities):
                    _fill(made, vectors[modality], fused, row, encoder, decoder, modality, number, page)
                done += len(page)
                if on_progress is not None:
                    on_progress(done, len(chosen))
    finally:
        decoder.close()
    made.ids = [identity for identity in chosen if any(identity in each for each in vectors.values())]
    for modality, by_id in vectors.items():
        none = np.zeros(row.dim, np.float32)
        made.units[modality] = np.array([by_id.get(identity, none) for identity in made.ids], np.float32).reshape(
            len(made.ids), row.dim
        )
    return made


def _id_of(fused: Fused) -> sql.Composable:
    """A row's id as judgments write it, of a row t."""
    parts = [sql.SQL("{}::text").format(sql.Identifier("t", name)) for name in fused.ids]
    if len(parts) == 1:
        return parts[0]
    return sql.SQL("pg_catalog.jsonb_build_array({})::text").format(sql.SQL(", ").join(parts))


def _chosen(conn: Connection, fused: Fused, judged: Sequence[str], others: int, seed: int) -> list[str]:
    """The judged ids that are rows', and others at random, in the order of the table."""
    statement = sql.SQL(
        "SELECT id FROM (SELECT DISTINCT id, id = ANY($1) AS judged FROM (SELECT {} AS id FROM {} AS t) AS rows"
        " WHERE id IS NOT NULL) AS found ORDER BY judged DESC, pg_catalog.md5(id || $2), id"
        " LIMIT (SELECT count(DISTINCT j) FROM pg_catalog.unnest($1) AS j) + $3"
    ).format(_id_of(fused), sql.Identifier(fused.schema, fused.table))
    with psycopg.RawCursor(conn) as cursor:
        rows = cursor.execute(statement.as_string(None).encode(), [list(judged), str(seed), others]).fetchall()
    return sorted(identity for (identity,) in rows)


def _pages(conn: Connection, fused: Fused, chosen: Sequence[str]) -> Iterator[Sequence[tuple[Any, ...]]]:
    """So many rows at once, each its id, then for each input its vector where one is stored, and its value where none
    is."""
    columns: list[sql.Composable] = []
    joins: dict[str, sql.Composable] = {}
    for modality in fused.modalities:
        value = trusted(fused.input_sql[modality])
        if (stored := fused.stored.get(modality)) is None:
            columns += [sql.SQL("NULL"), value]
            continue
        joins[stored.target] = stored.join
        columns += [
            sql.SQL("{}::pg_catalog.float4[]").format(stored.column),
            sql.SQL("CASE WHEN {} IS NULL THEN {} END").format(stored.column, value),
        ]
    statement = sql.SQL("SELECT {id}, {columns} FROM {table} AS t{joins} WHERE {id} = ANY($1)").format(
        id=_id_of(fused),
        columns=sql.SQL(", ").join(columns),
        table=sql.Identifier(fused.schema, fused.table),
        joins=sql.SQL("").join(joins.values()),
    )
    with conn.transaction(), psycopg.RawServerCursor(conn, "pgembed tune") as cursor:
        cursor.execute(statement.as_string(None).encode(), [list(chosen)], binary=True)
        while page := cursor.fetchmany(PAGE):
            yield page


def _fill(
    made: Parts,
    vectors: dict[str, NDArray[np.float32]],
    fused: Fused,
    row: EncoderRow,
    encoder: Encoder,
    decoder: Decoder,
    modality: str,
    number: int,
    page: Sequence[tuple[Any, ...]],
) -> None:
    """The vectors of one input of a page of rows; of rows with one id the first counts."""
    work = _work(fused, row, modality)
    batch = Batch(work, [], time.monotonic())
    for place, values in enumerate(page):
        identity, stored, value = values[0], values[1 + 2 * number], values[2 + 2 * number]
        if identity in vectors:
            continue
        if stored is not None:
            part = fused.stored[modality].part
            whole = np.asarray(stored, dtype=np.float32)
            vector = whole if part is None else whole[part * row.dim : (part + 1) * row.dim]
            if vector.any():
                vectors[identity] = _unit(vector)
                made.read += 1
        elif value is not None:
            waiting = Row(place, 0)
            decoder.fill(work, encoder, waiting, [value])
            batch.rows.append(waiting)
    encode(encoder, batch)
    for waiting in batch.rows:
        identity = page[waiting.seq][0]
        if waiting.vector is not None:
            vectors[identity] = _unit(waiting.vector)
            made.encoded += 1
        elif waiting.error is not None:
            made.failed += 1
            if len(made.unread) < 3:
                made.unread.append(f"{modality} of row {identity}: {str(waiting.error).strip()}")


def _work(fused: Fused, row: EncoderRow, modality: str) -> Work:
    """What encoding needs to know of an embedding of this input alone."""
    return Work(
        id=0, schema_name=fused.schema, table_name=fused.table, target="", state="ready", stale="keep", present=True,
        key_columns=[], inputs={modality: dict(fused.inputs[modality])},
        input_sql={modality: fused.input_sql[modality]}, input_columns=[], key_names=[],
        encoder=row.name, spec=row.spec, space=row.space, dim=row.dim, metric=row.metric, normalized=row.normalized,
        fingerprint=row.fingerprint, settings={}, vector_type="vector", vector_oid=0,
    )  # fmt: skip


def _unit(vector: NDArray[np.float32]) -> NDArray[np.float32]:
    wide = vector.astype(np.float64)
    return (wide / (np.linalg.norm(wide) or 1.0)).astype(np.float32)
