"""Typed rows of pgembed's tables and views, and the calls of its SQL functions.

Each call is a plan (plans.py), which the synchronous and the asynchronous client both run.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import datetime, timedelta
from typing import Any, TypeVar, cast

from psycopg import sql
from psycopg.types.json import Jsonb

from pgembed.encoders import Encoder, Metric, Settings, load_encoder, split_spec
from pgembed.encoders.composer import ComposerEncoder
from pgembed.errors import InvalidInput
from pgembed.parts import load_splitter, parts_of
from pgembed.plans import Call, Compute, Plan, Within
from pgembed.static_sides import stored

InputSpec = str | Mapping[str, Any]
T = TypeVar("T")


@dataclass(frozen=True)
class EncoderRow:
    """A registered encoder: a row of ``pgembed.encoder``."""

    name: str
    spec: str
    space: str
    dim: int
    modalities: list[str]
    metric: Metric
    normalized: bool
    fingerprint: str
    settings: dict[str, Any]
    static_text: str | None
    created_at: datetime
    languages: str | None = None  # of its words, where it tells
    distilled: dict[str, Any] | None = None  # of the static side that was distilled from it: how it stands


@dataclass(frozen=True)
class StatusRow:
    """How one embedding stands: a row of the view ``pgembed.status``. ``exact`` is false where rows are estimated.

    Rows are those that the role sees; what it may not read, the queue for one, is None.
    """

    id: int
    schema_name: str
    table_name: str
    target: str
    encoder: str
    state: str
    rows: int | None
    ready: int | None
    exact: bool | None
    queued: int | None
    claimed: int | None
    failed: int
    oldest_wait: timedelta | None
    rows_per_second: float | None
    cut: int = 0


@dataclass(frozen=True)
class CutRow:
    """A row of which not all is in its vectors: a row of the view ``pgembed.cuts``, which tells what is left out."""

    schema_name: str
    table_name: str
    target: str
    key: list[str]
    told: str
    at: datetime


@dataclass(frozen=True)
class FailureRow:
    """A row that was given up: a row of the view ``pgembed.failures``. ``key`` holds the primary key as texts."""

    schema_name: str
    table_name: str
    target: str
    key: list[str]
    error: str
    attempts: int
    failed_at: datetime


@dataclass(frozen=True)
class FailureReason:
    """Why rows were given up, and how many: a row of the view ``pgembed.failure_reasons``.

    What differs from row to row stands as ``%`` in ``reason``, so that ``retry`` takes it.
    """

    schema_name: str
    table_name: str
    target: str
    reason: str
    rows: int
    first_failed_at: datetime
    last_failed_at: datetime
    latest_key: list[str]


@dataclass(frozen=True)
class FailedRow:
    """A row that ``wait`` found without a vector: its embedding, its primary key as texts, and why."""

    embedding: str
    key: list[str]
    error: str


@dataclass(frozen=True)
class LeftOver:
    """A statement that ``grant`` or ``revoke`` may not run itself, and whom to ask to run it."""

    ask: str
    statement: str


@dataclass(frozen=True)
class Finding:
    """One line of ``pgembed.doctor()``: what was looked at, whether it is well, what was found, what to do."""

    subject: str
    ok: bool
    finding: str
    remedy: str | None


def encoders() -> Plan[list[EncoderRow]]:
    """Every registered encoder, by name."""
    rows = yield Call(
        sql.SQL(
            "SELECT e.*, v.languages, v.distilled FROM pgembed.encoder e JOIN pgembed.encoders v USING (name)"
            " ORDER BY name"
        )
    )
    return [_known(EncoderRow, row) for row in rows]


def encoder(name: str) -> Plan[EncoderRow]:
    """One registered encoder; the error for an unknown one names those there are."""
    rows = yield Call(
        sql.SQL(
            "SELECT e.*, v.languages, v.distilled FROM pgembed._encoder(%s) e JOIN pgembed.encoders v USING (name)"
        ),
        [name],
    )
    return _known(EncoderRow, rows[0])


def add_encoder(name: str, spec: str, settings: Settings | None, space: str | None) -> Plan[EncoderRow]:
    """Register an encoder; its model is loaded to learn its facts, unless SQL knows it already."""
    split_spec(spec)
    known = yield Call(sql.SQL("SELECT 1 AS known FROM pgembed.shipped_encoder WHERE spec = %s"), [spec])
    encoder: Encoder | None = None
    if not known or settings:
        encoder = yield Compute(lambda: load_encoder(spec, settings))
        if isinstance(encoder, ComposerEncoder):  # it lives in the space of the encoder that it was trained for
            space = space or encoder.space
    arguments: dict[str, Any] = {
        "name": name,
        "spec": spec,
        "settings": Jsonb(dict(settings or {})),
        **({"space": space} if space else {}),
        **(facts(encoder) if encoder is not None else {}),
    }
    return (yield Within(_registered(arguments, encoder)))


def _registered(arguments: Mapping[str, Any], encoder: Encoder | None) -> Plan[EncoderRow]:
    if encoder is not None:
        yield from stored(encoder)
    named = sql.SQL(", ").join(
        sql.SQL("{} => {}").format(sql.Identifier(key), sql.Placeholder(key)) for key in arguments
    )
    rows = yield Call(sql.SQL("SELECT e.* FROM pgembed.add_encoder({}) e").format(named), arguments)
    return _known(EncoderRow, rows[0])


def remove_encoder(name: str) -> Plan[None]:
    """Remove an encoder that no embedding uses."""
    yield Call(sql.SQL("SELECT pgembed.remove_encoder(%s)"), [name])


def attach(
    table: str,
    target: str,
    encoder: str,
    inputs: Mapping[str, InputSpec | None],
    stale: str,
    storage: str | None,
    mode: str,
    fusion: str,
    parts: str | Mapping[str, Any] | None = None,
) -> Plan[int]:
    """Attach an embedding; returns its id."""
    given = {modality: value for modality, value in inputs.items() if value is not None}
    if not given:
        raise InvalidInput(
            f"Nothing to embed: {table}.{target} was given no input.",
            "Give text='{title}', image='photo' or screenshot='page'.",
        )
    rows = yield Call(
        sql.SQL("SELECT pgembed.attach(%s::regclass, %s, %s, %s, %s, %s, %s, %s, %s) AS id"),
        [table, target, encoder, Jsonb(given), stale, storage, mode, fusion, _parts(parts)],
    )
    return int(rows[0]["id"])


def _parts(parts: str | Mapping[str, Any] | None) -> str | None:
    """How an input is taken apart, as ``pgembed.attach`` takes it. Raises InvalidInput for a splitter that is not
    there, or an option that it does not have."""
    found = parts_of(parts)
    if found is not None:
        load_splitter(json.loads(found) if found.startswith("{") else {"kind": found})
    return found


def _known(kind: type[T], row: Mapping[str, Any]) -> T:
    """A row as this library knows it: a later schema may have more columns."""
    return kind(**{field.name: row[field.name] for field in fields(cast(Any, kind)) if field.name in row})


def detach(table: str, target: str | None) -> Plan[None]:
    """Detach an embedding; the table is as it was before."""
    yield Call(sql.SQL("SELECT pgembed.detach(%s::regclass, %s)"), [table, target])


def status(table: str | None = None) -> Plan[list[StatusRow]]:
    """How every embedding stands, or those of one table."""
    rows = yield Call(
        sql.SQL(
            "SELECT s.*, s.rows_per_second::float8 AS rows_per_second FROM pgembed.status s"
            " JOIN pgembed.embedding e USING (id) WHERE %(table)s::text IS NULL"
            " OR e.relation = %(table)s::regclass"
        ),
        {"table": table},
    )
    return [_known(StatusRow, row) for row in rows]


_OF_TABLE = sql.SQL(
    "(%(table)s::text IS NULL"
    " OR pg_catalog.to_regclass(pg_catalog.format('%%I.%%I', schema_name, table_name)) = %(table)s::regclass)"
)


def failures(table: str | None = None, limit: int = 100) -> Plan[list[FailureRow]]:
    """Rows that were given up, with their errors; the latest first."""
    rows = yield Call(
        sql.SQL("SELECT f.* FROM pgembed.failures f WHERE {} ORDER BY failed_at DESC LIMIT %(limit)s").format(
            _OF_TABLE
        ),
        {"table": table, "limit": limit},
    )
    return [_known(FailureRow, row) for row in rows]


def cuts(table: str | None = None, limit: int = 100) -> Plan[list[CutRow]]:
    """Rows of which not all is in their vectors; the latest first."""
    rows = yield Call(
        sql.SQL("SELECT u.* FROM pgembed.cuts u WHERE {} ORDER BY at DESC LIMIT %(limit)s").format(_OF_TABLE),
        {"table": table, "limit": limit},
    )
    return [_known(CutRow, row) for row in rows]


def failure_reasons(table: str | None = None) -> Plan[list[FailureReason]]:
    """Why rows were given up; the reason that most have first."""
    rows = yield Call(sql.SQL("SELECT f.* FROM pgembed.failure_reasons f WHERE {}").format(_OF_TABLE), {"table": table})
    return [_known(FailureReason, row) for row in rows]


def retry(table: str, target: str | None, reason: str | None, keys: Sequence[Sequence[str]] | None) -> Plan[int]:
    """Put failed rows back into the queue; returns how many."""
    rows = yield Call(
        sql.SQL("SELECT pgembed.retry(%s::regclass, %s, %s, %s) AS n"),
        [table, target, reason, None if keys is None else Jsonb([list(key) for key in keys])],
    )
    return int(rows[0]["n"])


def reconcile(table: str, target: str | None, where: str | None) -> Plan[int]:
    """Queue rows that no trigger saw; returns how many."""
    rows = yield Call(sql.SQL("SELECT pgembed.reconcile(%s::regclass, %s, %s) AS n"), [table, target, where])
    return int(rows[0]["n"])


def requeue(table: str, keys: Sequence[Sequence[str]], target: str | None) -> Plan[int]:
    """Queue rows by their keys; returns how many."""
    rows = yield Call(
        sql.SQL("SELECT pgembed.requeue(%s::regclass, %s, %s) AS n"),
        [table, Jsonb([list(key) for key in keys]), target],
    )
    return int(rows[0]["n"])


def embedding_id(table: str, target: str | None) -> Plan[int]:
    """The id of a table's embedding, or of the one that is named."""
    rows = yield Call(sql.SQL("SELECT id FROM pgembed._embedding(%s::regclass, %s)"), [table, target])
    return int(rows[0]["id"])


def wait(table: str, target: str | None, timeout: float) -> Plan[list[FailedRow]]:
    """Wait for the rows of now; returns those that failed."""
    rows = yield Call(
        sql.SQL("SELECT * FROM pgembed.wait(%s::regclass, %s, %s * interval '1 second')"), [table, target, timeout]
    )
    return [FailedRow(**row) for row in rows]


def prepare(encoder: str, texts: Sequence[str], timeout: float) -> Plan[None]:
    """Have workers encode texts into the query cache; on a connection in autocommit."""
    yield Call(
        sql.SQL("CALL pgembed.prepare(%s, %s::text[], %s * interval '1 second')"), [encoder, list(texts), timeout]
    )


def pause(table: str, target: str | None) -> Plan[int]:
    """Have workers leave embeddings alone; returns how many were not paused before."""
    rows = yield Call(sql.SQL("SELECT pgembed.pause(%s::regclass, %s) AS n"), [table, target])
    return int(rows[0]["n"])


def resume(table: str, target: str | None) -> Plan[int]:
    """Go on with paused embeddings; returns how many had been."""
    rows = yield Call(sql.SQL("SELECT pgembed.resume(%s::regclass, %s) AS n"), [table, target])
    return int(rows[0]["n"])


def unhook(table: str) -> Plan[int]:
    """Take the triggers off a table; returns how many embeddings it has."""
    rows = yield Call(sql.SQL("SELECT pgembed.unhook(%s::regclass) AS n"), [table])
    return int(rows[0]["n"])


def sync(table: str | None, *, requeue: bool) -> Plan[int]:
    """Put the embeddings of a table right after it was altered, or follow the renames of all tables."""
    if table is None:
        rows = yield Call(sql.SQL("SELECT pgembed.sync() AS n"))
    else:
        rows = yield Call(sql.SQL("SELECT pgembed.sync(%s::regclass, %s) AS n"), [table, requeue])
    return int(rows[0]["n"])


def grant(kind: str, role: str) -> Plan[list[LeftOver]]:
    """Give a role what one of its kind needs; returns what is for others to grant."""
    rows = yield Call(sql.SQL("SELECT * FROM pgembed.grant_role(%s, %s)"), [kind, role])
    return [LeftOver(**row) for row in rows]


def revoke(kind: str, role: str) -> Plan[list[LeftOver]]:
    """Take it back; returns what is for others to take back."""
    rows = yield Call(sql.SQL("SELECT * FROM pgembed.revoke_role(%s, %s)"), [kind, role])
    return [LeftOver(**row) for row in rows]


def doctor() -> Plan[list[Finding]]:
    """What SQL can see of the health of this installation."""
    rows = yield Call(sql.SQL("SELECT * FROM pgembed.doctor()"))
    return [Finding(**row) for row in rows]


def index_statement(
    table: str, target: str | None, m: int, ef_construction: int, quantization: str = "none"
) -> Plan[str]:
    """The statement that builds an embedding's vector index."""
    rows = yield Call(
        sql.SQL("SELECT pgembed.index_sql(%s::regclass, %s, %s, %s, %s) AS statement"),
        [table, target, m, ef_construction, quantization],
    )
    return str(rows[0]["statement"])


def picture_column(table: str, target: str | None) -> Plan[str | None]:
    """The column that an embedding reads pictures from, or None where it reads none."""
    rows = yield Call(
        sql.SQL(
            "SELECT coalesce(inputs->'image'->>'column', inputs->'screenshot'->>'column') AS name"
            " FROM pgembed._embedding(%s::regclass, %s)"
        ),
        [table, target],
    )
    return rows[0]["name"]


def facts(encoder: Encoder) -> dict[str, Any]:
    """What ``pgembed.add_encoder`` is told of an encoder that SQL does not know by itself."""
    return {
        "dim": encoder.dim,
        "modalities": sorted(encoder.modalities),
        "metric": encoder.metric,
        "normalized": encoder.normalized,
        "fingerprint": encoder.fingerprint,
        "static_text": encoder.static_text,
    }
