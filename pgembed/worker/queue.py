"""The statements of one embedding's queue: fold, claim, read, write, release. Only the worker runs them.

A claimed job is known by its ``seq``, which changes whenever its row does; keys never leave the database. The rules
that the statements keep, and what goes wrong without them, are told in docs/queue.md. Parameters are written ``$1``
(for ``psycopg.RawCursor``), since a ``%`` may stand in a template or in a column's name.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from psycopg import sql

from pgembed.worker.side import Side

FOLD_LIMIT = 5_000
HELD_WAIT = 0.5  # seconds until a row that somebody held, or that had changed, is looked at again


@dataclass(frozen=True)
class Work:
    """An embedding as the worker sees it: a row of the view ``pgembed._work``."""

    id: int
    schema_name: str
    table_name: str
    target: str
    state: str
    stale: str
    present: bool
    key_columns: list[dict[str, Any]]
    inputs: dict[str, dict[str, Any]]
    input_sql: dict[str, str]
    input_columns: list[str]  # as SQL over alias t; what is computed on reading (and may fail) stands as true
    key_names: list[str]
    encoder: str
    spec: str
    space: str
    dim: int
    metric: str
    normalized: bool
    fingerprint: str
    settings: dict[str, Any]
    vector_type: str
    vector_oid: int
    side: dict[str, Any] | None = None  # the table of its vectors, where they do not stand in the rows
    mode: str = "queue"  # "instant": triggers encode, and SQL what they leave to the queue
    fault: str | None = None  # why it cannot be worked on, where SQL sees that
    fusion: dict[str, Any] | None = None  # how several inputs become one vector; None where they are summed
    parts: dict[str, Any] | None = None  # how its input is taken apart; None where a row has one vector

    @property
    def name(self) -> str:
        """Its name for people: schema.table.target."""
        return f"{self.schema_name}.{self.table_name}.{self.target}"

    def is_named(self, names: Collection[str]) -> bool:
        """Whether it is one of these, tables or table.target; none at all means every one."""
        return not names or not {
            self.table_name, f"{self.schema_name}.{self.table_name}", f"{self.table_name}.{self.target}", self.name,
        }.isdisjoint(names)  # fmt: skip

    @property
    def has_budget(self) -> bool:
        """Whether its encoder may only encode so much a day."""
        return bool(self.settings.get("rows_per_day") or self.settings.get("tokens_per_day"))

    @property
    def has_lists(self) -> bool:
        """Whether a row may have many pictures."""
        return any(facts.get("list") for facts in self.inputs.values())

    @property
    def modalities(self) -> list[str]:
        """The modalities it reads, in a fixed order."""
        return sorted(self.input_sql)

    @property
    def side_by_side(self) -> list[str]:
        """The inputs that stand side by side in a vector, in their order; none where they are summed."""
        return list(self.fusion["parts"]) if self.fusion else []


class Queue:
    """Composes the statements for one embedding."""

    def __init__(self, work: Work) -> None:
        self.work = work
        count = len(work.key_names)
        self._numbers = range(1, count + 1)
        self._table = sql.Identifier(work.schema_name, work.table_name)
        self._change = sql.Identifier("pgembed", f"change_{work.id}")
        self._job = sql.Identifier("pgembed", f"job_{work.id}")
        self._side = Side(work.side, work.key_names) if work.side else None

    def _keys(self, alias: str | None = None) -> sql.Composed:
        """``key_1, key_2`` of the queue's tables."""
        parts = [sql.Identifier(*([alias] if alias else []), f"key_{n}") for n in self._numbers]
        return sql.SQL(", ").join(parts)

    def _row_keys(self) -> sql.Composed:
        """The key's columns in the user's table, alias t."""
        return sql.SQL(", ").join(sql.Identifier("t", name) for name in self.work.key_names)

    def _same_key(self, alias: str) -> sql.Composed:
        """``t.id = w.key_1 AND …``: joins the user's table with a table of the queue."""
        return sql.SQL(" AND ").join(
            sql.SQL("{} = {}").format(sql.Identifier("t", name), sql.Identifier(alias, f"key_{n}"))
            for n, name in zip(self._numbers, self.work.key_names, strict=True)
        )

    def _key_text(self, alias: str) -> sql.Composed:
        """A key as it stands in pgembed.failure: a JSON array of texts."""
        parts = sql.SQL(", ").join(sql.SQL("{}::text").format(sql.Identifier(alias, f"key_{n}")) for n in self._numbers)
        return sql.SQL("pg_catalog.jsonb_build_array({})").format(parts)

    @cached_property
    def _inputs(self) -> sql.Composed:
        return sql.SQL(", ").join(trusted(self.work.input_sql[modality]) for modality in self.work.modalities)

    def _unchanged(self) -> sql.Composed:
        """No change of job j's key waits in the log: what was read is what the row holds."""
        same = sql.SQL(" AND ").join(
            sql.SQL("{} = {}").format(sql.Identifier("c", f"key_{n}"), sql.Identifier("j", f"key_{n}"))
            for n in self._numbers
        )
        return sql.SQL(  # mostly the log is empty, which is asked once, not once a row
            "(NOT EXISTS (SELECT FROM {change}) OR NOT EXISTS (SELECT FROM {change} c WHERE {same}))"
        ).format(change=self._change, same=same)

    def _typed_failure(self) -> sql.Composed:
        """``t.id = (f.key ->> 0)::bigint AND …``: joins the user's table with pgembed.failure, by index."""
        return sql.SQL(" AND ").join(
            sql.SQL("{} = (f.key ->> {})::{}").format(sql.Identifier("t", name), n - 1, trusted(column["type"]))
            for n, name, column in zip(self._numbers, self.work.key_names, self.work.key_columns, strict=True)
        )

    @cached_property
    def lock(self) -> sql.Composed:
        """Held to the end of the transaction by whoever changes the queue."""
        return sql.SQL("SELECT pgembed._lock_queue({})").format(self.work.id)

    @cached_property
    def fold(self) -> sql.Composed:
        """Move changes from the log into jobs: a new seq, so that a vector that is on its way is not written.

        A failure that somebody retries at this moment is left to them: waiting with the lock held could deadlock.
        """
        return sql.SQL(
            "WITH moved AS (DELETE FROM {change} WHERE seq = ANY(ARRAY("
            "SELECT seq FROM {change} ORDER BY seq LIMIT {limit} FOR UPDATE SKIP LOCKED)) RETURNING {keys}),"
            " forgiven AS (DELETE FROM pgembed.failure WHERE embedding = {id} AND key = ANY(ARRAY("
            "SELECT f.key FROM moved m JOIN pgembed.failure f ON f.embedding = {id} AND f.key = {text}"
            " FOR UPDATE OF f SKIP LOCKED))),"
            " whole AS (DELETE FROM pgembed.cut WHERE embedding = {id} AND key = ANY(ARRAY("
            "SELECT u.key FROM moved m JOIN pgembed.cut u ON u.embedding = {id} AND u.key = {text})))"
            " INSERT INTO {job} AS j ({keys}) SELECT DISTINCT {keys} FROM moved ORDER BY {keys}"
            " ON CONFLICT ({keys}) DO UPDATE"
            " SET seq = excluded.seq, first_seq = coalesce(j.first_seq, j.seq),"
            " attempts = 0, available_at = now(), claimed_until = NULL, error = NULL, backfill = false"
        ).format(
            change=self._change,
            job=self._job,
            keys=self._keys(),
            id=self.work.id,
            text=self._key_text("m"),
            limit=FOLD_LIMIT,
        )

    @cached_property
    def claim(self) -> sql.Composed:
        """Parameters: lease in seconds, limit. Returns seq, attempts; changes before the backfill, the oldest first."""
        due = "available_at <= clock_timestamp() AND (claimed_until IS NULL OR claimed_until < clock_timestamp())"
        return sql.SQL(
            "WITH fresh AS MATERIALIZED (SELECT seq FROM {job} WHERE NOT backfill AND {due}"
            " ORDER BY seq LIMIT $2::bigint FOR UPDATE SKIP LOCKED),"
            " late AS MATERIALIZED (SELECT seq FROM {job} WHERE backfill AND {due}"
            " ORDER BY seq LIMIT $2::bigint - (SELECT count(*) FROM fresh) FOR UPDATE SKIP LOCKED)"
            " UPDATE {job} j SET claimed_until = clock_timestamp() + $1::float8 * interval '1 second'"
            " WHERE j.seq = ANY(ARRAY(SELECT seq FROM fresh UNION ALL SELECT seq FROM late))"
            " RETURNING j.seq, j.attempts"
        ).format(job=self._job, due=sql.SQL(due))

    @cached_property
    def lock_budget(self) -> sql.Composed:
        """Held from a look at the budget to the end of the claim, after the queue's lock."""
        return sql.SQL("SELECT pgembed._lock_budget({})").format(self.work.encoder)

    @cached_property
    def budget(self) -> sql.Composed:
        """How many rows may be claimed of its encoder's budget, and in how many seconds there will be more."""
        return sql.SQL(
            "SELECT rows_left, extract(epoch FROM frees_at - now())::float8 FROM pgembed._budget({})"
        ).format(self.work.encoder)

    @cached_property
    def renew(self) -> sql.Composed:
        """Parameters: lease in seconds, seqs. Keeps what is in hand claimed while a slow model runs."""
        return sql.SQL(
            "UPDATE {} SET claimed_until = clock_timestamp() + $1::float8 * interval '1 second'"
            " WHERE seq = ANY($2::bigint[]) AND claimed_until IS NOT NULL"
        ).format(self._job)

    @cached_property
    def sizes(self) -> sql.Composed | None:
        """Parameter: seqs. Returns seq and the bytes of the row's pictures; None where none of them is in the database.

        What is stored beside the row is not read for it, unless it is a list.
        """
        if self._picture_bytes is None:
            return None
        return sql.SQL(
            "SELECT j.seq, {bytes} FROM {table} t JOIN {job} j ON {same} WHERE j.seq = ANY($1::bigint[])"
        ).format(bytes=self._picture_bytes, table=self._table, job=self._job, same=self._same_key("j"))

    @cached_property
    def _picture_bytes(self) -> sql.Composed | None:
        """The bytes of a row's pictures, t being its table; None where none of them is in the database."""
        sizes = [size for modality in self.work.modalities if (size := self._size(modality)) is not None]
        return sql.SQL(" + ").join(sizes) if sizes else None

    def _size(self, modality: str) -> sql.SQL | None:
        """The bytes of one input's pictures, where they are in the database."""
        facts, value = self.work.inputs[modality], self.work.input_sql[modality]
        match facts.get("as"), bool(facts.get("list")):
            case "bytes", False:
                return trusted(f"coalesce(pg_catalog.octet_length({value}), 0)::bigint")
            case "url", False:  # a data: URL is Base64
                return trusted(f"coalesce(pg_catalog.octet_length({value}), 0)::bigint * 3 / 4")
            case (("bytes" | "url"), True):
                return trusted(f"coalesce(pg_catalog.pg_column_size({value}), 0)::bigint")
            case "large_object", listed:
                size = value.replace("pgembed._large_object(", "pgembed._large_object_bytes(", 1)
                total = f"(SELECT pg_catalog.sum(size) FROM pg_catalog.unnest({size}) AS size)" if listed else size
                return trusted(f"coalesce({total}, 0)::bigint")
            case _:
                return None

    @cached_property
    def read(self) -> sql.Composed:
        """Parameter: seqs. Returns seq, whether the row is there, then one column a modality, NULL where absent."""
        return sql.SQL(
            "SELECT j.seq, {first_key} IS NOT NULL, {inputs} FROM {table} t RIGHT JOIN {job} j ON {same}"
            " WHERE j.seq = ANY($1::bigint[])"
        ).format(
            first_key=sql.Identifier("t", self.work.key_names[0]),
            inputs=self._inputs,
            job=self._job,
            table=self._table,
            same=self._same_key("j"),
        )

    @cached_property
    def lock_rows(self) -> sql.Composed:
        """Parameter: seqs. Returns those whose row is locked now, and of these those that have no place for a vector
        yet, each as one array or NULL.

        User rows before queue rows, always; rows that somebody else holds are left for another time. Where vectors
        stand in a side table, it is enough that a row stays.
        """
        return sql.SQL(
            "SELECT pg_catalog.array_agg(seq), pg_catalog.array_agg(seq) FILTER (WHERE placeless) FROM"
            " (SELECT j.seq, {placeless} AS placeless FROM {table} t JOIN {job} j ON {same}"
            " WHERE j.seq = ANY($1::bigint[]) FOR {strength} OF t SKIP LOCKED) AS locked"
        ).format(
            job=self._job,
            table=self._table,
            same=self._same_key("j"),
            placeless=self._side.without if self._side else sql.SQL("false"),
            strength=sql.SQL("KEY SHARE" if self._side else "NO KEY UPDATE"),
        )

    @cached_property
    def write(self) -> sql.Composed:
        """Parameters: seqs whose rows are locked and have a place for a vector, the vectors. Returns those written, as
        one array or NULL.

        A row whose key is in the log again is left as it is, and keeps its job.
        """
        parts = self._parts()
        if self._side is not None:
            parts |= {"table": self._side.table, "target": sql.Identifier("vector"), "same": self._side.same("j", "t")}
        return sql.SQL(
            "WITH written AS (UPDATE {table} t SET {target} = w.vector"
            " FROM (SELECT pg_catalog.unnest($1::bigint[]) AS seq, pg_catalog.unnest($2::{type}[]) AS vector) AS w"
            " JOIN {job} j ON j.seq = w.seq WHERE {same} AND {unchanged} RETURNING w.seq),"
            " finished AS (DELETE FROM {job} WHERE seq = ANY(ARRAY(SELECT seq FROM written)))"
            " SELECT pg_catalog.array_agg(seq) FROM written"
        ).format(type=trusted(self.work.vector_type), **parts)

    @cached_property
    def insert(self) -> sql.Composed:
        """The same for rows that have no place for a vector yet: a side table only.

        No ON CONFLICT, which costs a fifth of the write: nobody else inserts while the queue is locked.
        """
        assert self._side is not None
        return sql.SQL(
            "WITH given AS (SELECT j.seq, {keys}, w.vector"
            " FROM (SELECT pg_catalog.unnest($1::bigint[]) AS seq, pg_catalog.unnest($2::{type}[]) AS vector) AS w"
            " JOIN {job} j ON j.seq = w.seq WHERE {unchanged}),"
            " written AS (INSERT INTO {side} ({side_keys}, vector) SELECT {own_keys}, vector FROM given),"
            " finished AS (DELETE FROM {job} WHERE seq = ANY(ARRAY(SELECT seq FROM given)) RETURNING seq)"
            " SELECT pg_catalog.array_agg(seq) FROM finished"
        ).format(
            type=trusted(self.work.vector_type),
            keys=self._keys("j"),
            own_keys=self._keys(),
            job=self._job,
            side=self._side.table,
            side_keys=self._side.keys(),
            unchanged=self._unchanged(),
        )

    @cached_property
    def clear(self) -> sql.Composed:
        """Parameter: the seqs whose rows are locked and have no input. Returns those that have no vector now."""
        if self._side is not None:
            return sql.SQL(
                "WITH cleared AS (DELETE FROM {side} s USING {job} j"
                " WHERE {same} AND j.seq = ANY($1::bigint[]) AND {unchanged}),"
                " finished AS (DELETE FROM {job} j WHERE j.seq = ANY($1::bigint[]) AND {unchanged} RETURNING j.seq)"
                " SELECT pg_catalog.array_agg(seq) FROM finished"
            ).format(side=self._side.table, job=self._job, same=self._side.same("j"), unchanged=self._unchanged())
        return sql.SQL(
            "WITH cleared AS (UPDATE {table} t SET {target} = NULL FROM {job} j"
            " WHERE {same} AND j.seq = ANY($1::bigint[]) AND t.{target} IS NOT NULL AND {unchanged} RETURNING j.seq),"
            " done AS (SELECT seq FROM cleared UNION ALL SELECT j.seq FROM {table} t JOIN {job} j ON {same}"
            " WHERE j.seq = ANY($1::bigint[]) AND t.{target} IS NULL AND {unchanged}),"
            " finished AS (DELETE FROM {job} f USING done WHERE f.seq = done.seq)"
            " SELECT pg_catalog.array_agg(seq) FROM done"
        ).format(**self._parts())

    def _parts(self) -> dict[str, sql.Composable]:
        return {
            "table": self._table,
            "target": sql.Identifier(self.work.target),
            "job": self._job,
            "same": self._same_key("j"),
            "unchanged": self._unchanged(),
        }

    @cached_property
    def refused(self) -> sql.Composed:
        """Parameter: seqs that were locked and not written. Returns those that had not changed: a trigger kept them."""
        return sql.SQL(
            "SELECT pg_catalog.array_agg(j.seq) FROM {job} j WHERE j.seq = ANY($1::bigint[]) AND {unchanged}"
        ).format(job=self._job, unchanged=self._unchanged())

    @cached_property
    def finish(self) -> sql.Composed:
        """Parameter: the seqs of rows that are gone."""
        if self._side is not None:
            return sql.SQL(
                "WITH finished AS (DELETE FROM {job} WHERE seq = ANY($1::bigint[]) RETURNING {keys}),"
                " left_over AS (SELECT f.* FROM finished f WHERE NOT EXISTS (SELECT FROM {table} t WHERE {row}))"
                " DELETE FROM {side} s USING left_over f WHERE {same}"
            ).format(
                job=self._job,
                keys=self._keys(),
                table=self._table,
                row=self._same_key("f"),
                side=self._side.table,
                same=self._side.same("f"),
            )
        return sql.SQL("DELETE FROM {} WHERE seq = ANY($1::bigint[])").format(self._job)

    @cached_property
    def count_written(self) -> sql.Composed:
        """Parameters: jobs done, their tokens. Keeps the rate that status shows, and what a day's budget is counted by.

        The embedding is locked first: the check of the foreign key would come after the row is there, which detach
        would wait for while this waits for detach.
        """
        return sql.SQL(
            "WITH old AS (DELETE FROM pgembed.written WHERE embedding = {0} AND minute < now() - interval '25 hours')"
            " INSERT INTO pgembed.written AS w (embedding, minute, rows, tokens)"
            " SELECT e.id, date_trunc('minute', now()), $1::bigint, $2::bigint"
            " FROM pgembed.embedding e WHERE e.id = {0} FOR KEY SHARE"
            " ON CONFLICT (embedding, minute)"
            " DO UPDATE SET rows = w.rows + excluded.rows, tokens = w.tokens + excluded.tokens"
        ).format(self.work.id)

    @cached_property
    def release(self) -> sql.Composed:
        """Parameter: seqs. Gives claimed jobs back at once."""
        return sql.SQL("UPDATE {} SET claimed_until = NULL WHERE seq = ANY($1::bigint[])").format(self._job)

    @cached_property
    def put_off(self) -> sql.Composed:
        """Parameter: seqs. Gives back what somebody held; at once, the worker would encode it in a circle."""
        return sql.SQL(
            "UPDATE {} SET claimed_until = NULL, available_at = clock_timestamp() + {} * interval '1 second'"
            " WHERE seq = ANY($1::bigint[])"
        ).format(self._job, HELD_WAIT)

    @cached_property
    def postpone(self) -> sql.Composed:
        """Parameters: error, wait in seconds, seq. A row's own trouble: try it again later."""
        return sql.SQL(
            "UPDATE {} SET claimed_until = NULL, attempts = attempts + 1, error = $1::text,"
            " available_at = clock_timestamp() + $2::float8 * interval '1 second' WHERE seq = $3::bigint"
        ).format(self._job)

    @cached_property
    def give_up(self) -> sql.Composed:
        """Parameters: seq, error. The job becomes a failure; nothing happens where the row has changed meanwhile."""
        return sql.SQL(
            "WITH gone AS (DELETE FROM {job} j WHERE j.seq = $1::bigint RETURNING {keys}, j.attempts)"
            " INSERT INTO pgembed.failure (embedding, key, error, attempts)"
            " SELECT {id}, {text}, $2::text, g.attempts + 1 FROM gone g"
            " ON CONFLICT (embedding, key) DO UPDATE"
            " SET error = excluded.error, attempts = excluded.attempts, failed_at = now()"
        ).format(job=self._job, keys=self._keys("j"), id=self.work.id, text=self._key_text("g"))

    @cached_property
    def note_cuts(self) -> sql.Composed:
        """Parameters: the seqs of rows that are cut, and what to tell of each; what was told before, fold forgets."""
        return sql.SQL(
            "INSERT INTO pgembed.cut (embedding, key, told) SELECT {id}, {text}, t.told"
            " FROM (SELECT pg_catalog.unnest($1::bigint[]) AS seq, pg_catalog.unnest($2::text[]) AS told) t"
            " JOIN {job} j ON j.seq = t.seq ON CONFLICT (embedding, key) DO UPDATE SET told = excluded.told, at = now()"
        ).format(id=self.work.id, text=self._key_text("j"), job=self._job)

    @cached_property
    def forget_gone_failures(self) -> sql.Composed:
        """Failures, and what was cut, of rows that are no longer there; in instant mode also of rows that have their
        vector, or no input: who wrote these may have begun before the failure was there to be seen."""
        still = sql.SQL("")
        if self.work.mode == "instant":
            without = self._side.without if self._side else sql.Identifier("t", self.work.target) + sql.SQL(" IS NULL")
            still = sql.SQL(" AND {} AND pg_catalog.num_nonnulls({}) > 0").format(without, self._inputs)
        return sql.SQL(
            "WITH whole AS (DELETE FROM pgembed.cut f WHERE f.embedding = {id} AND NOT EXISTS"
            " (SELECT FROM {table} t WHERE {same}))"
            " DELETE FROM pgembed.failure f WHERE f.embedding = {id} AND NOT EXISTS"
            " (SELECT FROM {table} t WHERE {same}{still})"
        ).format(id=self.work.id, table=self._table, same=self._typed_failure(), still=still)

    @cached_property
    def depth(self) -> sql.Composed:
        """Changes and jobs that wait, due or not."""
        return sql.SQL("SELECT (SELECT count(*) FROM {}) + (SELECT count(*) FROM {})").format(self._change, self._job)

    @cached_property
    def attached(self) -> sql.Composed:
        """Whether the embedding is still in the catalog."""
        return sql.SQL("SELECT EXISTS (SELECT FROM pgembed.embedding WHERE id = {})").format(self.work.id)

    @cached_property
    def any_due(self) -> sql.Composed:
        """Whether a job is there whose time has come."""
        return sql.SQL("SELECT EXISTS (SELECT FROM {} WHERE available_at <= clock_timestamp())").format(self._job)

    @cached_property
    def any_left(self) -> sql.Composed:
        """Whether a change or a job is there at all."""
        return sql.SQL("SELECT EXISTS (SELECT FROM {}) OR EXISTS (SELECT FROM {})").format(self._change, self._job)


def trusted(text: str) -> sql.SQL:
    """SQL that a function of the schema pgembed composed and quoted: types, and the expressions of inputs."""
    return sql.SQL(text)  # pyright: ignore[reportArgumentType]
