"""What is evaluated: an embedding as the catalog has it, the column of ids, and the vector index."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql
from psycopg.rows import dict_row

from pgembed.errors import InvalidInput
from pgembed.told import in_own_words

Connection = psycopg.Connection[Any]

_FACTS = sql.SQL(
    "SELECT e.schema_name, e.table_name, e.target, e.encoder, o.spec, o.fingerprint, o.space,"
    " pgembed._wide_dim(o.dim, e.fusion) AS dim, pgembed._metric(o.metric, e.fusion) AS metric,"
    " (SELECT c.relname FROM pgembed._vectors_of(e) AS place"
    " JOIN pg_catalog.pg_attribute a ON a.attrelid = place.relation AND a.attname = place.column_name"
    " JOIN pg_catalog.pg_index i ON i.indrelid = place.relation AND i.indkey[0] = a.attnum AND i.indisvalid"
    " JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid JOIN pg_catalog.pg_am m ON m.oid = c.relam"
    " WHERE m.amname = 'hnsw' LIMIT 1) AS index,"
    " (SELECT coalesce(pg_catalog.jsonb_agg(a.attname ORDER BY k.place), '[]') FROM pg_catalog.pg_index i"
    " CROSS JOIN LATERAL pg_catalog.unnest(i.indkey) WITH ORDINALITY AS k(attnum, place)"
    " JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum"
    " WHERE i.indrelid = e.relation AND i.indisprimary) AS keys,"
    " pg_catalog.current_setting('server_version') AS postgres,"
    " (SELECT extversion FROM pg_catalog.pg_extension WHERE extname = 'vector') AS pgvector"
    " FROM pgembed._embedding(%s::pg_catalog.regclass, %s) AS e JOIN pgembed.encoder o ON o.name = e.encoder"
)


@dataclass(frozen=True)
class Evaluated:
    """An embedding that is evaluated; ``ids`` are the columns whose values the judgments name."""

    schema: str
    table: str
    embedding: str
    encoder: str
    spec: str
    fingerprint: str
    space: str
    dim: int
    metric: str
    postgres: str
    pgvector: str
    index: str | None
    ids: tuple[str, ...]

    @property
    def facts(self) -> dict[str, Any]:
        """What a run's settings say of it."""
        return {
            "table": f"{self.schema}.{self.table}",
            "embedding": self.embedding,
            "encoder": self.encoder,
            "spec": self.spec,
            "fingerprint": self.fingerprint,
            "space": self.space,
            "dim": self.dim,
            "metric": self.metric,
            "ids": list(self.ids),
            "postgres": self.postgres,
            "pgvector": self.pgvector,
        }

    def id_of(self, row: Mapping[str, Any]) -> str:
        """A row's id as judgments write it: the value, or a JSON array of the values of a key of several columns."""
        values = [str(row["score_" if name == "score" else name]) for name in self.ids]
        return values[0] if len(values) == 1 else json.dumps(values, ensure_ascii=False)


def look_up(conn: Connection, table: str, embedding: str | None, id_column: str | None = None) -> Evaluated:
    """The embedding of a table. Raises CatalogError where there is none, or several and none was named."""
    with in_own_words(), conn.cursor(row_factory=dict_row) as cursor:
        row = cursor.execute(_FACTS, [table, embedding]).fetchone()
    if row is None:
        raise InvalidInput(f"The encoder of {table} is gone.", "pgembed doctor tells more.")
    return Evaluated(
        schema=row["schema_name"],
        table=row["table_name"],
        embedding=row["target"],
        ids=(id_column,) if id_column else tuple(row["keys"]),
        **{name: row[name] for name in ("encoder", "spec", "fingerprint", "space", "dim", "metric")},
        **{name: row[name] for name in ("postgres", "pgvector", "index")},
    )


def unknown_ids(conn: Connection, target: Evaluated, ids: Sequence[str]) -> list[str]:
    """Those of the ids that no row has, in their order. Raises InvalidInput where the column of ids is not there."""
    parts = [sql.SQL("{}::text").format(sql.Identifier(name)) for name in target.ids]
    value = parts[0] if len(parts) == 1 else sql.SQL("jsonb_build_array({})::text").format(sql.SQL(", ").join(parts))
    statement = sql.SQL("SELECT id FROM (SELECT {} AS id FROM {}) AS rows WHERE id = ANY(%s)").format(
        value, sql.Identifier(target.schema, target.table)
    )
    with in_own_words():
        there = {row[0] for row in conn.execute(statement, [list(ids)]).fetchall()}
    return [identity for identity in dict.fromkeys(ids) if identity not in there]


def set_ef_search(conn: Connection, ef_search: int | None) -> None:
    """How many candidates an HNSW index looks at, for this session; None as it is by default."""
    with in_own_words():
        conn.execute("SELECT '[1]'::vector")  # loads pgvector, whose setting it is
        if ef_search is None:
            conn.execute("RESET hnsw.ef_search")
        else:
            conn.execute("SELECT pg_catalog.set_config('hnsw.ef_search', %s, false)", [str(ef_search)])
