"""The statements of a queue whose rows have many vectors, beside those of every queue."""

from __future__ import annotations

from functools import cached_property

from psycopg import sql

from pgembed.worker.queue import Queue, trusted


class PartQueue(Queue):
    """Composes the statements for one embedding with parts."""

    @cached_property
    def known_parts(self) -> sql.Composed:
        """Parameter: seqs. Returns seq and the hashes of the parts that have a vector."""
        assert self._side is not None
        return sql.SQL(
            "SELECT j.seq, pg_catalog.array_agg(s.hash) FROM {job} j JOIN {side} s ON {same}"
            " WHERE j.seq = ANY($1::bigint[]) GROUP BY j.seq"
        ).format(job=self._job, side=self._side.table, same=self._side.same("j"))

    @cached_property
    def write_parts(self) -> sql.Composed:
        """Parameters, each an array with an element a part: seqs whose rows are locked, the parts' numbers, kinds,
        locations, contents, hashes, and vectors. Returns the seqs that are done, as one array or NULL.

        A part without a vector has that of the same hash; a row that has one no more, and one whose key is in the log
        again, is left as it is, and keeps its job. A part that is as it was is not touched.
        """
        assert self._side is not None
        columns = [sql.Identifier(name) for name in ("kind", "location", "content", "hash", "vector")]
        listed = sql.SQL(", ").join(columns)
        return sql.SQL(
            "WITH given AS MATERIALIZED (SELECT *, pg_catalog.bool_and(vector IS NOT NULL) OVER (PARTITION BY seq)"
            " AS whole, pg_catalog.max(part) OVER (PARTITION BY seq) AS last FROM ("
            "SELECT g.seq, {keys}, g.part, g.kind, g.location::pg_catalog.jsonb, g.content, g.hash, coalesce(g.vector,"
            " (SELECT s.vector FROM {side} s WHERE {same} AND s.hash = g.hash LIMIT 1)) AS vector"
            " FROM (SELECT pg_catalog.unnest($1::bigint[]) AS seq, pg_catalog.unnest($2::integer[]) AS part,"
            " pg_catalog.unnest($3::text[]) AS kind, pg_catalog.unnest($4::text[]) AS location,"
            " pg_catalog.unnest($5::text[]) AS content, pg_catalog.unnest($6::bytea[]) AS hash,"
            " pg_catalog.unnest($7::{type}[]) AS vector) AS g"
            " JOIN {job} j ON j.seq = g.seq WHERE {unchanged}) AS g),"
            " written AS (INSERT INTO {side} AS s ({side_keys}, part, {listed})"
            " SELECT {own_keys}, part, {listed} FROM given WHERE whole ON CONFLICT ({side_keys}, part)"
            " DO UPDATE SET ({listed}) = ROW ({excluded}) WHERE (s.kind, s.location, s.hash) IS DISTINCT FROM"
            " (excluded.kind, excluded.location, excluded.hash) OR s.content IS DISTINCT FROM excluded.content),"
            " dropped AS (DELETE FROM {side} s USING given j WHERE j.part = 1 AND j.whole AND {same}"
            " AND s.part > j.last),"
            " finished AS (DELETE FROM {job} WHERE seq = ANY(ARRAY(SELECT seq FROM given WHERE whole AND part = 1))"
            " RETURNING seq)"
            " SELECT pg_catalog.array_agg(seq) FROM finished"
        ).format(
            type=trusted(self.work.vector_type),
            keys=self._keys("j"),
            own_keys=self._keys(),
            job=self._job,
            side=self._side.table,
            side_keys=self._side.keys(),
            same=self._side.same("j"),
            listed=listed,
            excluded=sql.SQL(", ").join(sql.SQL("excluded.") + column for column in columns),
            unchanged=self._unchanged(),
        )
