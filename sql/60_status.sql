-- How things stand: one row an embedding.

-- Counts of one embedding's queue and table. Rows are counted up to a million and estimated above (exact = false).
-- The oldest wait is counted from a change, and begins anew when a worker makes a job of it.
--
-- Rows are those that the caller may see; what he may not read, the queue above all, is NULL.
CREATE OR REPLACE FUNCTION pgembed._counts(embedding pgembed.embedding)
RETURNS TABLE (rows bigint, ready bigint, exact boolean, queued bigint, claimed bigint, oldest_wait interval)
LANGUAGE plpgsql STABLE
AS $$
DECLARE
    estimate real;
    empty_share real;
    side CONSTANT regclass := pgembed._side_of(embedding, embedding.relation); -- NULL where they stand in the rows
BEGIN
    SELECT greatest(c.reltuples, 0) INTO estimate FROM pg_catalog.pg_class AS c
    WHERE c.oid = embedding.relation AND pgembed._reads_vectors(embedding);
    exact := estimate < 1000000;
    IF estimate IS NULL THEN
        NULL; -- the table or its vector column is gone, or not the caller's to read
    ELSIF exact THEN
        EXECUTE pg_catalog.format('SELECT count(*), %s FROM %s', CASE WHEN embedding.storage = 'column'
            THEN pg_catalog.format('count(%I)', embedding.target)
            WHEN side IS NULL THEN '0::bigint'
            ELSE pg_catalog.format('(SELECT count(*) FROM %s%s)', side, CASE WHEN embedding.parts IS NULL THEN ''
                ELSE ' WHERE part = 1' END) END, embedding.relation::regclass)
        INTO rows, ready;
    ELSIF row_security_active(embedding.relation) THEN
        NULL; -- what is estimated is of all rows
    ELSIF embedding.storage = 'side' THEN
        rows := estimate;
        ready := (SELECT greatest(c.reltuples, 0) FROM pg_catalog.pg_class AS c WHERE c.oid = side)
            * pgembed._share_of_first_parts(embedding, side);
    ELSE
        SELECT s.null_frac INTO empty_share FROM pg_catalog.pg_stats AS s
        WHERE s.schemaname = embedding.schema_name AND s.tablename = embedding.table_name
            AND s.attname = embedding.target;
        rows := estimate;
        ready := estimate * (1 - coalesce(empty_share, 1));
    END IF;
    IF NOT pgembed._reads_queue(embedding.id) THEN
        RETURN NEXT;
        RETURN;
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

-- Which share of a side table's rows are a row's first part, by the planner's statistics: 1 where none has several.
-- Called by _counts.
CREATE OR REPLACE FUNCTION pgembed._share_of_first_parts(embedding pgembed.embedding, side oid) RETURNS float8
LANGUAGE sql STABLE
RETURN CASE WHEN (embedding).parts IS NULL THEN 1 ELSE coalesce((
    SELECT u.share FROM pg_catalog.pg_class AS c
    JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
    JOIN pg_catalog.pg_stats AS s ON s.schemaname = n.nspname AND s.tablename = c.relname AND s.attname = 'part'
    CROSS JOIN unnest(s.most_common_vals::text::integer[], s.most_common_freqs) AS u (part, share)
    WHERE c.oid = side AND u.part = 1
), 1) END;

-- Whether the caller may read the queue of an embedding, and what is counted of all its rows.
CREATE OR REPLACE FUNCTION pgembed._reads_queue(embedding_id integer) RETURNS boolean
LANGUAGE sql STABLE
RETURN (SELECT count(*) = 2 AND has_table_privilege('pgembed.written', 'SELECT') FROM pg_catalog.pg_class AS c
    WHERE c.relnamespace = 'pgembed'::regnamespace AND c.relname IN ('change_' || embedding_id, 'job_' || embedding_id)
        AND has_table_privilege(c.oid, 'SELECT'));

-- Whether the vectors of an embedding are there, and the caller may read them; row-level security may hide some.
CREATE OR REPLACE FUNCTION pgembed._reads_vectors(embedding pgembed.embedding) RETURNS boolean
LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT coalesce(bool_and(has_schema_privilege(c.relnamespace, 'USAGE') AND has_any_column_privilege(c.oid, 'SELECT')
        AND CASE (embedding).storage WHEN 'side' THEN true
            ELSE coalesce(has_column_privilege(c.oid, a.attname, 'SELECT'), false) END), false)
    FROM pg_catalog.pg_class AS c
    LEFT JOIN pg_catalog.pg_attribute AS a ON a.attrelid = c.oid AND a.attname = (embedding).target
        AND NOT a.attisdropped
    WHERE c.oid = (embedding).relation OR (embedding).storage = 'side' AND c.oid = (embedding).side;
END;

-- Whether the caller may read the keys of an embedding's table.
CREATE OR REPLACE FUNCTION pgembed._reads_keys(embedding pgembed.embedding) RETURNS boolean
LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT coalesce(bool_and(has_schema_privilege(c.relnamespace, 'USAGE')
        AND has_column_privilege(c.oid, a.attnum, 'SELECT')), false)
    FROM pg_catalog.pg_class AS c
    CROSS JOIN jsonb_array_elements((embedding).key_columns) AS k (key)
    JOIN pg_catalog.pg_attribute AS a ON a.attrelid = c.oid AND a.attnum = (key ->> 'attnum')::smallint
    WHERE c.oid = (embedding).relation;
END;

-- Whether the caller may read the keys of an embedding's table, and all of them: no policy hides rows from him. What
-- failed of a table that is gone is seen by the schema's owner.
CREATE OR REPLACE FUNCTION pgembed._sees_all(embedding pgembed.embedding) RETURNS boolean
LANGUAGE sql STABLE
RETURN CASE WHEN EXISTS (SELECT FROM pg_catalog.pg_class AS c WHERE c.oid = (embedding).relation)
    THEN pgembed._reads_keys(embedding) AND NOT row_security_active((embedding).relation)
    ELSE pg_has_role(pgembed._owner(), 'USAGE') END;

-- Whether the caller sees the row with this key. Called where policies hide rows.
CREATE OR REPLACE FUNCTION pgembed._sees_row(embedding pgembed.embedding, key jsonb) RETURNS boolean
LANGUAGE plpgsql STABLE
AS $$
DECLARE
    seen boolean := false;
BEGIN
    IF pgembed._reads_keys(embedding) THEN
        EXECUTE pg_catalog.format('SELECT EXISTS (SELECT FROM %s AS t WHERE (%s) = (%s))', embedding.relation::regclass,
            pgembed._key_columns_sql(embedding), pgembed._typed_key(embedding, '$1')) INTO seen USING key;
    END IF;
    RETURN seen;
END
$$;

-- What failed of the rows that the caller sees. A barrier, so that no function of his is shown the others. Called by
-- failures and wait.
CREATE OR REPLACE VIEW pgembed._seen_failure WITH (security_barrier) AS
SELECT e.id, e.schema_name, e.table_name, e.relation, e.target, f.key, f.error, f.attempts, f.failed_at
FROM (
    SELECT a AS entry, a.id, a.schema_name, a.table_name, a.relation, a.target, pgembed._sees_all(a) AS sees_all
    FROM pgembed.embedding AS a
    OFFSET 0
) AS e
JOIN pgembed.failure AS f ON f.embedding = e.id
WHERE CASE WHEN e.sees_all THEN true ELSE pgembed._sees_row(e.entry, f.key) END;

-- The state of each embedding: rows and how many have their vector, what waits, what failed, rows a second over the
-- last minute, and of how many rows not all is in their vectors (see cuts); 'resting' while its encoder's budget for
-- the day is spent. For people, `pgembed status` and monitoring.
CREATE OR REPLACE VIEW pgembed.status AS
SELECT e.id, coalesce(n.nspname, e.schema_name) AS schema_name, coalesce(r.relname, e.table_name) AS table_name,
    e.target, e.encoder,
    CASE WHEN e.paused THEN 'paused'
        WHEN q.is_read AND (SELECT b.rows_left = 0 AND b.frees_at > now() FROM pgembed._budget(e.encoder) AS b)
        THEN 'resting' ELSE e.state END AS state,
    c.rows, c.ready, c.exact, c.queued, c.claimed,
    CASE WHEN pgembed._sees_all(e) THEN (SELECT count(*) FROM pgembed.failure AS f WHERE f.embedding = e.id)
        ELSE (SELECT count(*) FROM pgembed.failure AS f WHERE f.embedding = e.id AND pgembed._sees_row(e, f.key))
    END AS failed,
    c.oldest_wait,
    CASE WHEN q.is_read THEN (SELECT round(sum(w.rows) / 60.0, 1) FROM pgembed.written AS w
        WHERE w.embedding = e.id AND w.minute = date_trunc('minute', now()) - interval '1 minute')
    END AS rows_per_second,
    CASE WHEN pgembed._sees_all(e) THEN (SELECT count(*) FROM pgembed.cut AS u WHERE u.embedding = e.id)
        ELSE (SELECT count(*) FROM pgembed.cut AS u WHERE u.embedding = e.id AND pgembed._sees_row(e, u.key))
    END AS cut
FROM pgembed.embedding AS e
LEFT JOIN pg_catalog.pg_class AS r ON r.oid = e.relation
LEFT JOIN pg_catalog.pg_namespace AS n ON n.oid = r.relnamespace
CROSS JOIN LATERAL pgembed._counts(e) AS c
CROSS JOIN LATERAL (SELECT pgembed._reads_queue(e.id) AS is_read) AS q
ORDER BY e.id;

-- Rows of which not all is in their vectors, and what is left out: the end of a text that is longer than its encoder
-- reads, or a part that could not be encoded. Rows are those that the caller sees.
CREATE OR REPLACE VIEW pgembed.cuts WITH (security_barrier) AS
SELECT coalesce(n.nspname, e.schema_name) AS schema_name, coalesce(r.relname, e.table_name) AS table_name,
    e.target, u.key, u.told, u.at
FROM (
    SELECT a AS entry, a.id, a.schema_name, a.table_name, a.relation, a.target, pgembed._sees_all(a) AS sees_all
    FROM pgembed.embedding AS a
    OFFSET 0
) AS e
JOIN pgembed.cut AS u ON u.embedding = e.id
LEFT JOIN pg_catalog.pg_class AS r ON r.oid = e.relation
LEFT JOIN pg_catalog.pg_namespace AS n ON n.oid = r.relnamespace
WHERE CASE WHEN e.sees_all THEN true ELSE pgembed._sees_row(e.entry, u.key) END
ORDER BY u.at;

-- An error without what is its row's own, as a pattern for LIKE: names and values in quotes or angle brackets, and
-- numbers but those of HTTP, are %. Called by failure_reasons.
CREATE OR REPLACE FUNCTION pgembed._reason(error text) RETURNS text
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
RETURN regexp_replace(replace(error, '\', '\\'),
    $$'[^']*'|"[^"]*"|<[^>]*>|(?<!HTTP [0-9]*)[0-9]+(?:[.,][0-9]+)*$$, '%', 'g');

-- Rows that were given up, with the reason; pgembed.retry('table') puts them back.
CREATE OR REPLACE VIEW pgembed.failures AS
SELECT coalesce(n.nspname, f.schema_name) AS schema_name, coalesce(r.relname, f.table_name) AS table_name,
    f.target, f.key, f.error, f.attempts, f.failed_at
FROM pgembed._seen_failure AS f
LEFT JOIN pg_catalog.pg_class AS r ON r.oid = f.relation
LEFT JOIN pg_catalog.pg_namespace AS n ON n.oid = r.relnamespace
ORDER BY f.failed_at;

-- Why rows were given up: each reason once, with how many rows have it and the key of the latest. What differs from
-- row to row stands as % in a reason, so that retry takes it:
--
--     SELECT pgembed.retry('product', reason => 'The picture % is not there.');
CREATE OR REPLACE VIEW pgembed.failure_reasons AS
SELECT f.schema_name, f.table_name, f.target, pgembed._reason(f.error) AS reason, count(*) AS rows,
    min(f.failed_at) AS first_failed_at, max(f.failed_at) AS last_failed_at,
    (array_agg(f.key ORDER BY f.failed_at DESC))[1] AS latest_key
FROM pgembed.failures AS f
GROUP BY f.schema_name, f.table_name, f.target, pgembed._reason(f.error)
ORDER BY rows DESC, last_failed_at DESC;

DROP FUNCTION IF EXISTS pgembed.index_sql(regclass, text, integer, integer);

-- The statement that builds an embedding's vector index: in psql, SELECT pgembed.index_sql('product') \gexec
-- (CREATE INDEX CONCURRENTLY runs in no function). Of an embedding with parts the index may hold these in half
-- precision or as bits, the signs of their numbers: it is smaller, and what it gives is compared by the full vectors.
CREATE OR REPLACE FUNCTION pgembed.index_sql(
    relation regclass,
    target text DEFAULT NULL,
    m integer DEFAULT 16,
    ef_construction integer DEFAULT 64,
    quantization text DEFAULT 'none'
) RETURNS text
LANGUAGE plpgsql STABLE
AS $$
DECLARE
    embedding pgembed.embedding := pgembed._embedding(relation, target);
    vectors record := pgembed._vectors_of(embedding);
    operators CONSTANT text := pgembed._operator_class(embedding);
    partitioned boolean;
BEGIN
    IF quantization IN ('none', 'half', 'binary') IS NOT TRUE THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = pg_catalog.format('quantization is ''none'', ''half'' or ''binary'', not %s.',
                coalesce(quote_literal(quantization), 'NULL')),
            HINT = 'A smaller one makes a smaller index, of an embedding with parts.';
    ELSIF quantization <> 'none'
        AND (embedding.parts IS NULL OR quantization = 'binary' AND operators LIKE '%_l2_ops') THEN
        RAISE EXCEPTION USING ERRCODE = 'feature_not_supported',
            MESSAGE = pg_catalog.format('No search of %s.%I reads an index of quantization ''%s''.', relation,
                embedding.target, quantization),
            HINT = CASE WHEN embedding.parts IS NULL THEN 'It is for embeddings with parts: leave quantization out.'
                ELSE 'Signs tell no lengths, which this encoder''s metric compares: use quantization => ''half''.' END;
    ELSIF quantization <> 'none' THEN
        RETURN pg_catalog.format(
            'CREATE INDEX CONCURRENTLY IF NOT EXISTS %I ON %s USING hnsw ((%s) @extschema:vector@.%s) '
            'WITH (m = %s, ef_construction = %s)', pgembed._index_name(embedding) || '_' || quantization,
            vectors.relation::regclass, pgembed._coarse_sql(quote_ident(vectors.column_name), quantization,
                (SELECT e.dim FROM pgembed.encoder AS e WHERE e.name = embedding.encoder)),
            CASE quantization WHEN 'half' THEN replace(operators, 'vector_', 'halfvec_') ELSE 'bit_hamming_ops' END,
            m, ef_construction);
    END IF;
    SELECT relkind = 'p' INTO partitioned FROM pg_catalog.pg_class WHERE oid = vectors.relation;
    RETURN pg_catalog.format('CREATE INDEX %s IF NOT EXISTS %I ON %s USING hnsw (%I @extschema:vector@.%s) WITH (m = %s, ef_construction = %s)',
        CASE WHEN partitioned THEN '' ELSE 'CONCURRENTLY' END,
        pgembed._index_name(embedding), vectors.relation::regclass, vectors.column_name,
        operators, m, ef_construction);
END
$$;

-- A vector as an index of less than full precision holds it. Called by index_sql and _parts_sql.
CREATE OR REPLACE FUNCTION pgembed._coarse_sql(vector text, quantization text, dim integer) RETURNS text
LANGUAGE sql IMMUTABLE
RETURN format(CASE quantization WHEN 'half' THEN '%s::@extschema:vector@.halfvec(%s)'
    ELSE '@extschema:vector@.binary_quantize(%s)::bit(%s)' END, vector, dim);

-- The quantization of the best HNSW index over an embedding's parts; NULL where there is none. Called by _graph_of, the
-- search of parts, and Python's.
CREATE OR REPLACE FUNCTION pgembed._index_quantization(embedding pgembed.embedding, metric text) RETURNS text
LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT p.quantization
    FROM pg_catalog.pg_index AS x
    JOIN pg_catalog.pg_class AS c ON c.oid = x.indexrelid
    JOIN pg_catalog.pg_am AS m ON m.oid = c.relam AND m.amname = 'hnsw'
    JOIN pg_catalog.pg_opclass AS o ON o.oid = x.indclass[0]
    JOIN pg_catalog.pg_attribute AS a ON a.attrelid = x.indrelid AND a.attname = 'vector'
    CROSS JOIN LATERAL (SELECT CASE
        WHEN x.indkey[0] = a.attnum AND o.opcname = 'vector_' || metric || '_ops' THEN 'none'
        WHEN x.indkey[0] = 0 AND o.opcname = 'halfvec_' || metric || '_ops' THEN 'half'
        WHEN x.indkey[0] = 0 AND o.opcname = 'bit_hamming_ops' THEN 'binary' END) AS p (quantization)
    WHERE x.indrelid = (embedding).side AND (embedding).parts IS NOT NULL AND x.indisvalid AND x.indpred IS NULL
        AND p.quantization IS NOT NULL
    ORDER BY array_position(ARRAY['none', 'half', 'binary'], p.quantization)
    LIMIT 1;
END;

-- The statement that drops an embedding's vector index, where a build that was broken off has left it invalid; NULL
-- where there is none, or somebody is building it. Called around index_sql's statement, and in scripts of Alembic.
CREATE OR REPLACE FUNCTION pgembed._broken_index_sql(relation regclass, target text) RETURNS text
LANGUAGE plpgsql STABLE
AS $$
DECLARE
    embedding pgembed.embedding := pgembed._embedding(relation, target);
BEGIN
    RETURN (SELECT 'DROP INDEX CONCURRENTLY ' || i.indexrelid::regclass
        FROM pgembed._vectors_of(embedding) AS v
        JOIN pg_catalog.pg_index AS i ON i.indrelid = v.relation AND NOT i.indisvalid
        JOIN pg_catalog.pg_class AS c ON c.oid = i.indexrelid AND c.relkind = 'i'
            AND c.relname IN (SELECT (pgembed._index_name(embedding) || suffix)::name
                FROM unnest(ARRAY['', '_half', '_binary']) AS suffix)
        WHERE NOT EXISTS (
            SELECT FROM pg_catalog.pg_stat_progress_create_index AS p WHERE p.index_relid = i.indexrelid
        ));
END
$$;

-- The name of an embedding's vector index.
CREATE OR REPLACE FUNCTION pgembed._index_name(embedding pgembed.embedding) RETURNS text
LANGUAGE sql IMMUTABLE
RETURN left((embedding).table_name, 24) || '_' || left((embedding).target, 24) || '_hnsw_' || (embedding).id;

DROP FUNCTION IF EXISTS pgembed._operator_class(text);

-- pgvector's operator class for an embedding's metric.
CREATE OR REPLACE FUNCTION pgembed._operator_class(embedding pgembed.embedding) RETURNS text
LANGUAGE sql STABLE
RETURN (SELECT CASE pgembed._metric(e.metric, (embedding).fusion)
    WHEN 'cosine' THEN 'vector_cosine_ops' WHEN 'ip' THEN 'vector_ip_ops' ELSE 'vector_l2_ops' END
    FROM pgembed.encoder AS e WHERE e.name = (embedding).encoder);
