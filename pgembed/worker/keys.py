"""The statements that go over a table by key: those of the backfill, of the sweep and of verify.

Keys travel as JSON arrays of texts, as in pgembed.failure; the types that the queue has are put back here.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from psycopg import sql

from pgembed.worker.queue import Queue, trusted

Key = list[str]
BACKFILL_LIMIT = 2_000  # rows looked at in one step, in which nobody else may claim


class KeyQueue(Queue):
    """Composes the statements for one embedding. ``side`` goes over the side table's keys in place of the rows'."""

    def backfill(self, after: Sequence[str] | None) -> sql.Composed:
        """Queue the next rows by key that have inputs, no vector and no failure; returns the last key looked at, or no
        row.

        Blank texts are left for the worker to find: reading every text here would hold the lock for long.

        ``after`` is the last key of the step before, as texts in the queue's types; None at the start.
        """
        keys = sql.SQL(", ").join(sql.Identifier(f"k{n}") for n in self._numbers)
        beyond = sql.SQL("true")
        if after is not None:
            values = sql.SQL(", ").join(
                sql.SQL("{}::{}").format(sql.Literal(value), trusted(column["type"]))
                for value, column in zip(after, self.work.key_columns, strict=True)
            )
            beyond = sql.SQL("({}) > ({})").format(self._row_keys(), values)
        aliases = sql.SQL(", ").join(
            sql.SQL("{} AS {}").format(sql.Identifier("t", name), sql.Identifier(f"k{n}"))
            for n, name in zip(self._numbers, self.work.key_names, strict=True)
        )
        return sql.SQL(
            "WITH step AS MATERIALIZED (SELECT {aliases},"
            " {empty} AND pg_catalog.num_nonnulls({columns}) > 0 AS wanted FROM {table} t"
            " WHERE {beyond} ORDER BY {row_keys} LIMIT {limit}),"
            " queued AS (INSERT INTO {job} ({queue_keys}, backfill) SELECT {keys}, true FROM step WHERE wanted AND NOT"
            " EXISTS (SELECT FROM pgembed.failure f WHERE f.embedding = {id} AND f.key = {key_text})"
            " ON CONFLICT DO NOTHING)"
            " SELECT {key_text} FROM step ORDER BY {descending} LIMIT 1"
        ).format(
            aliases=aliases,
            empty=self._side.without if self._side else sql.Identifier("t", self.work.target) + sql.SQL(" IS NULL"),
            columns=sql.SQL(", ").join(trusted(column) for column in self.work.input_columns),
            table=self._table,
            beyond=beyond,
            row_keys=self._row_keys(),
            limit=BACKFILL_LIMIT,
            job=self._job,
            queue_keys=self._keys(),
            keys=keys,
            id=self.work.id,
            key_text=sql.SQL("pg_catalog.jsonb_build_array({})").format(
                sql.SQL(", ").join(sql.SQL("{}::text").format(sql.Identifier(f"k{n}")) for n in self._numbers)
            ),
            descending=sql.SQL(", ").join(sql.SQL("{} DESC").format(sql.Identifier(f"k{n}")) for n in self._numbers),
        )

    def next_keys(self, after: Key | None, limit: int, *, side: bool = False) -> sql.Composed:
        """The next keys beyond one, in order."""
        return sql.SQL("SELECT {key} FROM {table} t WHERE {beyond} ORDER BY {order} LIMIT {limit}").format(
            key=self._texts([sql.Identifier("t", name) for name in self._names(side=side)]),
            table=self._place(side=side),
            beyond=self._beyond(after, side=side) + self._once(side=side),
            order=self._order(side=side),
            limit=limit,
        )

    def random_keys(self, limit: int, percent: float | None, *, side: bool = False) -> sql.Composed:
        """So many keys at random, of the whole table, or of a share of its pages where it is large."""
        part = sql.SQL(" TABLESAMPLE SYSTEM ({})").format(percent) if percent is not None else sql.SQL("")
        return sql.SQL(
            "SELECT {key} FROM {table} t{part} WHERE true{once} ORDER BY pg_catalog.random() LIMIT {limit}"
        ).format(
            once=self._once(side=side),
            key=self._texts([sql.Identifier("t", name) for name in self._names(side=side)]),
            table=self._place(side=side),
            part=part,
            limit=limit,
        )

    def estimate(self, *, side: bool = False) -> sql.Composed:
        """How many rows there are, by what was last counted; partitions too."""
        return sql.SQL(
            "SELECT coalesce(sum(greatest(c.reltuples, 0)), 0)::float8 FROM pg_catalog.pg_class c"
            " WHERE c.relkind <> 'p' AND (c.oid = {0}::regclass"
            " OR c.oid IN (SELECT p.relid FROM pg_catalog.pg_partition_tree({0}::regclass) p))"
        ).format(self._place(side=side).as_string())

    @cached_property
    def look(self) -> sql.Composed:
        """Parameter: keys. Returns a row each: its number from 1 on, whether the row is there, waits and has failed,
        its vector as real[] (of parts real[][]), then one column a modality, NULL where absent and where it waits or
        has failed.

        One statement, and so one snapshot: a row that does not wait in it has the vector of these very inputs.
        """
        vector = sql.Identifier("t", self.work.target)
        join = sql.SQL("")
        if self._side is not None and self.work.parts is not None:
            vector = sql.SQL(
                "(SELECT pg_catalog.array_agg(s.vector::real[] ORDER BY s.part) FROM {} s WHERE {})"
            ).format(self._side.table, self._side.same("w"))
        elif self._side is not None:
            vector = sql.Identifier("s", "vector")
            join = sql.SQL(" LEFT JOIN {} s ON {}").format(self._side.table, self._side.same("w"))
        inputs = sql.SQL(", ").join(
            sql.SQL("CASE WHEN NOT w.waits AND NOT w.failed THEN {} END").format(trusted(self.work.input_sql[modality]))
            for modality in self.work.modalities
        )
        return sql.SQL(
            "WITH given AS MATERIALIZED ({given}), w AS MATERIALIZED (SELECT w.*, {waits} AS waits, {failed} AS failed,"
            " {ahead} AS ahead FROM given w)"
            " SELECT w.n, {first_key} IS NOT NULL, w.waits OR (w.ahead AND {vector} IS NULL), w.failed,"
            " {vector}::real[], {inputs} FROM w LEFT JOIN {table} t ON {same}{join} ORDER BY w.n"
        ).format(
            given=self._given(),
            waits=self._waits(),
            failed=self._failed(),
            ahead=self._backfill_ahead(),
            first_key=sql.Identifier("t", self.work.key_names[0]),
            vector=vector,
            inputs=inputs,
            table=self._table,
            same=self._same_key("w"),
            join=join,
        )

    @cached_property
    def sizes_of_keys(self) -> sql.Composed | None:
        """Parameter: keys. Returns the numbers of the rows that are there, from 1 on, and the bytes of their pictures;
        None where none of these is in the database."""
        if self._picture_bytes is None:
            return None
        return sql.SQL("WITH w AS MATERIALIZED ({given}) SELECT w.n, {bytes} FROM w JOIN {table} t ON {same}").format(
            given=self._given(), bytes=self._picture_bytes, table=self._table, same=self._same_key("w")
        )

    @cached_property
    def left_over(self) -> sql.Composed:
        """Parameter: keys. Returns the numbers, from 1 on, of those whose vector has no row, and whether they wait."""
        assert self._side is not None
        return sql.SQL(
            "WITH w AS MATERIALIZED ({given}) SELECT w.n, {waits} FROM w WHERE NOT EXISTS (SELECT FROM {table} t"
            " WHERE {row}) AND EXISTS (SELECT FROM {side} s WHERE {vector}) ORDER BY w.n"
        ).format(
            given=self._given(),
            waits=self._waits(),
            table=self._table,
            row=self._same_key("w"),
            side=self._side.table,
            vector=self._side.same("w"),
        )

    def sweep(self, after: Key | None, limit: int, *, side: bool = False, plain: bool = False) -> sql.Composed:
        """The last key of the next step, NULL at the end, and the keys in it that should be in the queue, or NULL: rows
        with inputs and no vector that neither wait nor have failed; with ``side`` vectors without rows.

        ``plain`` looks at the columns alone, where an input cannot be computed.
        """
        columns = sql.SQL(", ").join(
            sql.SQL("{}::{} AS {}").format(
                sql.Identifier("t", name), trusted(column["type"]), sql.Identifier(f"key_{n}")
            )
            for n, name, column in zip(self._numbers, self._names(side=side), self.work.key_columns, strict=True)
        )
        if side:
            found = sql.SQL(
                "SELECT w.* FROM step w WHERE NOT EXISTS (SELECT FROM {table} t WHERE {row}) AND {free}"
            ).format(table=self._table, row=self._same_key("w"), free=self._has_no_job())
            wanted = sql.SQL("true")
        else:
            inputs = (
                sql.SQL(", ").join(trusted(column) for column in self.work.input_columns) if plain else self._inputs
            )
            found = sql.SQL(
                "SELECT w.*, pg_catalog.num_nonnulls({inputs}) > 0 AS present FROM step w JOIN {table} t ON {row}"
                " WHERE w.empty AND {empty} AND NOT {failed} AND {free}"
            ).format(
                inputs=inputs,
                table=self._table,
                row=self._same_key("w"),
                empty=self._empty(),
                failed=self._failed(),
                free=self._has_no_job(),
            )
            wanted = sql.SQL("w.present")
        return sql.SQL(
            "WITH step AS MATERIALIZED (SELECT {columns}, {empty} AS empty FROM {place} t"
            " WHERE {beyond} ORDER BY {order} LIMIT {limit}), found AS MATERIALIZED ({found})"
            " SELECT (SELECT {key} FROM step w ORDER BY {descending} LIMIT 1), (SELECT pg_catalog.jsonb_agg({key})"
            " FROM found w WHERE CASE WHEN {wanted} THEN NOT {logged} ELSE false END)"
        ).format(
            columns=columns,
            empty=sql.SQL("true") if side or self._side else self._empty(),
            place=self._place(side=side),
            beyond=self._beyond(after, side=side) + self._once(side=side),
            order=self._order(side=side),
            limit=limit,
            found=found,
            key=self._key_text("w"),
            descending=sql.SQL(", ").join(sql.SQL("{} DESC").format(sql.Identifier(f"key_{n}")) for n in self._numbers),
            wanted=wanted,
            logged=self._logged(),
        )

    @cached_property
    def touch(self) -> sql.Composed:
        """Locks the user's table as a reader does, before the side table and the queue: the order of detach."""
        return sql.SQL("SELECT FROM {} LIMIT 0").format(self._table)

    def queue_swept(self, *, side: bool = False) -> sql.Composed:
        """Parameter: keys that the sweep found. Makes jobs of those for which it is still so, under the queue's lock.

        As in the backfill no job is renewed, and changes go before them.
        """
        if side:
            assert self._side is not None
            still = sql.SQL(
                "NOT EXISTS (SELECT FROM {table} t WHERE {row}) AND EXISTS (SELECT FROM {side} s WHERE {vector})"
            ).format(table=self._table, row=self._same_key("w"), side=self._side.table, vector=self._side.same("w"))
        else:
            still = sql.SQL("EXISTS (SELECT FROM {table} t WHERE {row} AND {empty}) AND NOT {failed}").format(
                table=self._table, row=self._same_key("w"), empty=self._empty(), failed=self._failed()
            )
        return sql.SQL(
            "WITH w AS MATERIALIZED ({given}) INSERT INTO {job} ({keys}, backfill)"
            " SELECT {own}, true FROM w WHERE {still} AND NOT {logged} ON CONFLICT DO NOTHING"
        ).format(
            given=self._given(),
            job=self._job,
            keys=self._keys(),
            own=self._keys("w"),
            still=still,
            logged=self._logged(),
        )

    @cached_property
    def requeue(self) -> sql.Composed:
        """Parameter: keys. Puts them into the log, by the function that people call too; returns how many."""
        return sql.SQL("SELECT pgembed.requeue({}::regclass, $1::jsonb, {})").format(
            self._table.as_string(), self.work.target
        )

    def _names(self, *, side: bool) -> Sequence[str]:
        return self.work.side["keys"] if side and self.work.side else self.work.key_names

    def _place(self, *, side: bool) -> sql.Identifier:
        return self._side.table if side and self._side else self._table

    def _once(self, *, side: bool) -> sql.SQL:
        """Of a side table with parts the first of each row, as the rest of a condition."""
        return sql.SQL(" AND t.part = 1" if side and self.work.parts is not None else "")

    def _order(self, *, side: bool) -> sql.Composed:
        return sql.SQL(", ").join(sql.Identifier("t", name) for name in self._names(side=side))

    def _beyond(self, after: Key | None, *, side: bool) -> sql.Composed:
        if after is None:
            return sql.Composed([sql.SQL("true")])
        values = sql.SQL(", ").join(
            sql.SQL("{}::{}").format(sql.Literal(value), trusted(column["type"]))
            for value, column in zip(after, self.work.key_columns, strict=True)
        )
        return sql.SQL("({}) > ({})").format(self._order(side=side), values)

    def _texts(self, columns: Sequence[sql.Composable]) -> sql.Composed:
        """A key as a JSON array of texts, by way of the queue's types."""
        return sql.SQL("pg_catalog.jsonb_build_array({})").format(
            sql.SQL(", ").join(
                sql.SQL("({}::{})::text").format(column, trusted(key["type"]))
                for column, key in zip(columns, self.work.key_columns, strict=True)
            )
        )

    def _given(self) -> sql.Composed:
        """The keys of the first parameter as a table: n from 1 on, key_1, …"""
        columns = sql.SQL(", ").join(
            sql.SQL("(g.key ->> {})::{} AS {}").format(n - 1, trusted(column["type"]), sql.Identifier(f"key_{n}"))
            for n, column in zip(self._numbers, self.work.key_columns, strict=True)
        )
        return sql.SQL(
            "SELECT g.n, {} FROM pg_catalog.jsonb_array_elements($1::jsonb) WITH ORDINALITY AS g (key, n)"
        ).format(columns)

    def _empty(self) -> sql.Composed:
        """A row, alias t, has no vector."""
        if self._side is not None:
            return self._side.without
        return sql.SQL("{} IS NULL").format(sql.Identifier("t", self.work.target))

    def _failed(self) -> sql.Composed:
        """Key w was given up."""
        return sql.SQL("EXISTS (SELECT FROM pgembed.failure f WHERE f.embedding = {} AND f.key = {})").format(
            self.work.id, self._key_text("w")
        )

    def _has_no_job(self) -> sql.Composed:
        return sql.SQL("NOT EXISTS (SELECT FROM {} q WHERE {})").format(self._job, self._same_in_queue())

    def _logged(self) -> sql.Composed:
        """Key w is in the log."""
        return sql.SQL("EXISTS (SELECT FROM {} q WHERE {})").format(self._change, self._same_in_queue())

    def _same_in_queue(self) -> sql.Composed:
        return sql.SQL(" AND ").join(
            sql.SQL("{} = {}").format(sql.Identifier("q", f"key_{n}"), sql.Identifier("w", f"key_{n}"))
            for n in self._numbers
        )

    def _waits(self) -> sql.Composed:
        return sql.SQL("(NOT {} OR {})").format(self._has_no_job(), self._logged())

    def _backfill_ahead(self) -> sql.Composed:
        """The backfill has not come to key w yet."""
        after = sql.SQL(", ").join(
            sql.SQL("(b.after ->> {})::{}").format(n - 1, trusted(column["type"]))
            for n, column in zip(self._numbers, self.work.key_columns, strict=True)
        )
        return sql.SQL(
            "EXISTS (SELECT FROM pgembed.embedding e LEFT JOIN pgembed.backfill b ON b.embedding = e.id"
            " WHERE e.id = {} AND e.state = 'backfill' AND (b.after IS NULL OR ({}) > ({})))"
        ).format(self.work.id, self._keys("w"), after)
