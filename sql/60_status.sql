-- How things stand: one row an embedding.

-- Counts of one embedding's queue and table. Rows are counted up to a million and estimated above (exact = false).
-- The oldest wait is counted from a change, and begins anew when a worker makes a job of it.
CREATE OR REPLACE FUNCTION pgembed._counts(embedding pgembed.embedding)
RETURNS TABLE (rows bigint, ready bigint, exact boolean, queued bigint, claimed bigint, oldest_wait interval)
LANGUAGE plpgsql STABLE
AS $$
DECLARE
    estimate real;
    empty_share real;
    side CONSTANT regclass := pgembed._side_of(embedding, embedding.relation); -- NULL where they stand in the rows
BEGIN
    SELECT greatest(c.reltuples, 0) INTO estimate FROM pg_catalog.pg_class AS c WHERE c.oid = embedding.relation;
    exact := estimate < 1000000;
    IF estimate IS NULL THEN
        NULL; -- the table is gone
    ELSIF exact THEN
        EXECUTE pg_catalog.format('SELECT count(*), %s FROM %s', CASE WHEN embedding.storage = 'column'
            THEN pg_catalog.format('count(%I)', embedding.target)
            WHEN side IS NULL THEN '0::bigint'
            ELSE pg_catalog.format('(SELECT count(*) FROM %s)', side) END, embedding.relation::regclass)
        INTO rows, ready;
    ELSIF embedding.storage = 'side' THEN
        rows := estimate;
        ready := (SELECT greatest(c.reltuples, 0) FROM pg_catalog.pg_class AS c WHERE c.oid = side);
    ELSE
        SELECT s.null_frac INTO empty_share FROM pg_catalog.pg_stats AS s
        WHERE s.schemaname = embedding.schema_name AND s.tablename = embedding.table_name
            AND s.attname = embedding.target;
        rows := estimate;
        ready := estimate * (1 - coalesce(empty_share, 1));
    END IF;
    EXECUTE pg_catalog.format('SELECT (SELECT count(*) FROM pgembed.%I) + (SELECT count(*) FROM pgembed.%I), '
        '(SELECT count(*) FROM pgembed.%2$I WHERE claimed_until > now()), '
        'now() - least((SELECT min(changed_at) FROM pgembed.%1$I), '
        '(SELECT min(available_at) FROM pgembed.%2$I WHERE available_at <= now()))',
        'change_' || embedding.id, 'job_' || embedding.id)
    INTO queued, claimed, oldest_wait;
    RETURN NEXT;
END
$$;

-- The state of each embedding: rows and how many have their vector, what waits, what failed, rows a second over the
-- last minute; 'resting' while its encoder's budget for the day is spent. For people, `pgembed status` and monitoring.
CREATE OR REPLACE VIEW pgembed.status AS
SELECT e.id, coalesce(n.nspname, e.schema_name) AS schema_name, coalesce(r.relname, e.table_name) AS table_name,
    e.target, e.encoder,
    CASE WHEN e.paused THEN 'paused'
        WHEN (SELECT b.rows_left = 0 AND b.frees_at > now() FROM pgembed._budget(e.encoder) AS b)
        THEN 'resting' ELSE e.state END AS state,
    c.rows, c.ready, c.exact, c.queued, c.claimed,
    (SELECT count(*) FROM pgembed.failure AS f WHERE f.embedding = e.id) AS failed,
    c.oldest_wait,
    (SELECT round(sum(w.rows) / 60.0, 1) FROM pgembed.written AS w
        WHERE w.embedding = e.id AND w.minute = date_trunc('minute', now()) - interval '1 minute') AS rows_per_second
FROM pgembed.embedding AS e
LEFT JOIN pg_catalog.pg_class AS r ON r.oid = e.relation
LEFT JOIN pg_catalog.pg_namespace AS n ON n.oid = r.relnamespace
CROSS JOIN LATERAL pgembed._counts(e) AS c
ORDER BY e.id;

-- Rows that were given up, with the reason; pgembed.retry('table') puts them back.
CREATE OR REPLACE VIEW pgembed.failures AS
SELECT coalesce(n.nspname, e.schema_name) AS schema_name, coalesce(r.relname, e.table_name) AS table_name,
    e.target, f.key, f.error, f.attempts, f.failed_at
FROM pgembed.failure AS f
JOIN pgembed.embedding AS e ON e.id = f.embedding
LEFT JOIN pg_catalog.pg_class AS r ON r.oid = e.relation
LEFT JOIN pg_catalog.pg_namespace AS n ON n.oid = r.relnamespace
ORDER BY f.failed_at;

-- The statement that builds an embedding's vector index: in psql, SELECT pgembed.index_sql('product') \gexec
-- (CREATE INDEX CONCURRENTLY runs in no function).
CREATE OR REPLACE FUNCTION pgembed.index_sql(
    relation regclass,
    target text DEFAULT NULL,
    m integer DEFAULT 16,
    ef_construction integer DEFAULT 64
) RETURNS text
LANGUAGE plpgsql STABLE
AS $$
DECLARE
    embedding pgembed.embedding := pgembed._embedding(relation, target);
    vectors record := pgembed._vectors_of(embedding);
    partitioned boolean;
BEGIN
    SELECT relkind = 'p' INTO partitioned FROM pg_catalog.pg_class WHERE oid = vectors.relation;
    RETURN pg_catalog.format('CREATE INDEX %s IF NOT EXISTS %I ON %s USING hnsw (%I @extschema:vector@.%s) WITH (m = %s, ef_construction = %s)',
        CASE WHEN partitioned THEN '' ELSE 'CONCURRENTLY' END,
        pgembed._index_name(embedding), vectors.relation::regclass, vectors.column_name,
        pgembed._operator_class(embedding.encoder), m, ef_construction);
END
$$;

-- The name of an embedding's vector index.
CREATE OR REPLACE FUNCTION pgembed._index_name(embedding pgembed.embedding) RETURNS text
LANGUAGE sql IMMUTABLE
RETURN left((embedding).table_name, 24) || '_' || left((embedding).target, 24) || '_hnsw_' || (embedding).id;

-- pgvector's operator class for an encoder's metric.
CREATE OR REPLACE FUNCTION pgembed._operator_class(encoder text) RETURNS text
LANGUAGE sql STABLE
RETURN (SELECT CASE e.metric
    WHEN 'cosine' THEN 'vector_cosine_ops' WHEN 'ip' THEN 'vector_ip_ops' ELSE 'vector_l2_ops' END
    FROM pgembed.encoder AS e WHERE e.name = encoder);
