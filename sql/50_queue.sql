-- What people do with the queue, and what workers are told of it. A job is a row of pgembed.job_<id>; a failure is a
-- job that was given up. How changes become jobs, are claimed and are written: pgembed/worker/queue.py, and for instant
-- embeddings 52_fill.sql.

DROP FUNCTION IF EXISTS pgembed.retry(regclass, text, text);

-- Put failed rows of a table back into the queue; returns how many. `reason` narrows it, a LIKE pattern on the error
-- (as in pgembed.failure_reasons), and `keys`, each an array of texts as in pgembed.failures:
--
--     SELECT pgembed.retry('product', keys => '[["1"], ["2"]]');
--
-- Like reconcile it appends to the log, as the triggers do: it takes no lock that a worker waits for, so that it can
-- stand in any transaction.
CREATE OR REPLACE FUNCTION pgembed.retry(
    relation regclass,
    target text DEFAULT NULL,
    reason text DEFAULT NULL,
    keys jsonb DEFAULT NULL
) RETURNS bigint
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    embedding pgembed.embedding := pgembed._embedding(relation, target);
    moved bigint;
BEGIN
    IF keys IS NOT NULL THEN
        PERFORM pgembed._check_keys(embedding, keys);
    END IF;
    EXECUTE format('WITH moved AS (DELETE FROM pgembed.failure WHERE embedding = $1 AND ($2 IS NULL OR error LIKE $2) '
        'AND ($3 IS NULL OR (%s) IN (SELECT %s FROM jsonb_array_elements($3) AS k (key))) RETURNING key) '
        'INSERT INTO pgembed.%I (%s) SELECT %1$s FROM moved',
        pgembed._typed_key(embedding, 'key'), pgembed._typed_key(embedding, 'k.key'),
        'change_' || embedding.id, pgembed._key_list(embedding, 'key_%s'))
    USING embedding.id, reason, keys;
    GET DIAGNOSTICS moved = ROW_COUNT;
    RETURN moved;
END
$$;

-- Queue rows that no trigger saw: those that match the condition (over alias t), or without one those that have
-- inputs, no vector, no failure, and do not wait already. Returns how many were queued.
CREATE OR REPLACE FUNCTION pgembed.reconcile(relation regclass, target text DEFAULT NULL, "where" text DEFAULT NULL)
RETURNS bigint
LANGUAGE plpgsql
AS $$
DECLARE
    embedding pgembed.embedding := pgembed._embedding(relation, target);
    row_key text := pgembed._key_columns_sql(embedding);
    queue_key text := pgembed._key_list(embedding, 'key_%s');
    condition text;
    queued bigint;
BEGIN
    PERFORM pgembed._check_place(embedding, relation, 'looked at');
    condition := coalesce('(' || "where" || E'\n)', pgembed._unseen_sql(embedding));
    EXECUTE pg_catalog.format('INSERT INTO pgembed.%I (%s) SELECT %s FROM %s AS t WHERE %s',
        'change_' || embedding.id, queue_key, row_key, relation, condition);
    GET DIAGNOSTICS queued = ROW_COUNT;
    IF "where" IS NOT NULL AND embedding.parts IS NOT NULL THEN
        PERFORM pgembed._doubt_parts(embedding, pg_catalog.format('SELECT %s FROM %s AS t WHERE %s', row_key, relation,
            condition), NULL);
    END IF;
    IF "where" IS NULL AND embedding.storage = 'side' THEN
        queued := queued + pgembed._queue_left_over(embedding);
    END IF;
    RETURN queued;
END
$$;

-- Queue all rows of a table. Called by sync: nobody knows which of them changed, but no vector is doubted, so that
-- parts that are as they were keep theirs.
CREATE OR REPLACE FUNCTION pgembed._queue_all(embedding pgembed.embedding, relation regclass) RETURNS void
LANGUAGE plpgsql
AS $$
BEGIN
    PERFORM pgembed._check_place(embedding, relation, 'looked at');
    EXECUTE pg_catalog.format('INSERT INTO pgembed.%I (%s) SELECT %s FROM %s AS t', 'change_' || embedding.id,
        pgembed._key_list(embedding, 'key_%s'), pgembed._key_columns_sql(embedding), relation);
END
$$;

-- That a row of the user's table, alias t, has inputs, no vector and no failure, and does not wait, as SQL. Called by
-- reconcile and doctor.
CREATE OR REPLACE FUNCTION pgembed._unseen_sql(embedding pgembed.embedding) RETURNS text
LANGUAGE plpgsql STABLE
AS $$
DECLARE
    row_key text := pgembed._key_columns_sql(embedding);
    queue_key text := pgembed._key_list(embedding, 'key_%s');
BEGIN
    RETURN pg_catalog.format('%s AND pg_catalog.num_nonnulls(%s) > 0 '
        'AND NOT EXISTS (SELECT FROM pgembed.failure AS f WHERE f.embedding = %s AND (%s) = (%s)) '
        'AND NOT EXISTS (SELECT FROM pgembed.%I WHERE (%s) = (%s)) '
        'AND NOT EXISTS (SELECT FROM pgembed.%I WHERE (%s) = (%s))',
        pgembed._no_vector_sql(embedding), pgembed._present_sql(embedding),
        embedding.id, pgembed._typed_key(embedding, 'f.key'), row_key,
        'job_' || embedding.id, queue_key, row_key,
        'change_' || embedding.id, queue_key, row_key);
END
$$;

-- Queue rows by their keys, each an array of texts as in pgembed.failures, that do not wait already; returns how many
-- were queued. A key without a row is taken too: a worker takes away what is left of it.
--
--     SELECT pgembed.requeue('product', '[["1"], ["2"]]');
--
-- For people, and for `pgembed verify --repair`.
CREATE OR REPLACE FUNCTION pgembed.requeue(relation regclass, keys jsonb, target text DEFAULT NULL) RETURNS bigint
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    embedding pgembed.embedding := pgembed._embedding(relation, target);
    queue_key CONSTANT text := pgembed._key_list(embedding, 'key_%s');
    queued bigint;
BEGIN
    PERFORM pgembed._check_keys(embedding, keys);
    EXECUTE pg_catalog.format('INSERT INTO pgembed.%I (%s) SELECT DISTINCT %s FROM jsonb_array_elements($1) AS k (key) '
        'WHERE (%3$s) NOT IN (SELECT %2$s FROM pgembed.%1$I) AND (%3$s) NOT IN (SELECT %2$s FROM pgembed.%4$I)',
        'change_' || embedding.id, queue_key, pgembed._typed_key(embedding, 'k.key'), 'job_' || embedding.id)
    USING keys;
    GET DIAGNOSTICS queued = ROW_COUNT;
    IF embedding.parts IS NOT NULL THEN
        PERFORM pgembed._doubt_parts(embedding, pg_catalog.format('SELECT %s FROM jsonb_array_elements($1) AS k (key)',
            pgembed._typed_key(embedding, 'k.key')), keys);
    END IF;
    RETURN queued;
END
$$;

-- Have a worker encode all parts of these rows again, as it does not where it finds one's hash: `chosen` gives their
-- keys, from $1. What somebody writes just then is new anyway. Called by reconcile and requeue.
CREATE OR REPLACE FUNCTION pgembed._doubt_parts(embedding pgembed.embedding, chosen text, keys jsonb) RETURNS void
LANGUAGE plpgsql
AS $$
BEGIN
    IF pg_catalog.has_table_privilege(embedding.side, 'UPDATE') THEN
        EXECUTE pg_catalog.format('UPDATE %1$s AS p SET hash = '''' WHERE p.ctid = ANY (ARRAY(SELECT s.ctid '
            'FROM %1$s AS s WHERE (%2$s) IN (%3$s) FOR UPDATE OF s SKIP LOCKED))', embedding.side::regclass,
            (SELECT string_agg('s.' || quote_ident(k.side_name), ', ' ORDER BY k.ordinal)
                FROM pgembed._side_keys(embedding) AS k), chosen) USING keys;
    END IF;
END
$$;

-- Raise an error unless these are keys of the embedding's table. Called by retry and requeue.
CREATE OR REPLACE FUNCTION pgembed._check_keys(embedding pgembed.embedding, keys jsonb) RETURNS void
LANGUAGE plpgsql STABLE
AS $$
DECLARE
    width CONSTANT integer := jsonb_array_length(embedding.key_columns);
    wrong jsonb;
BEGIN
    IF jsonb_typeof(keys) IS DISTINCT FROM 'array' THEN
        wrong := coalesce(keys, 'null');
    ELSE
        SELECT k INTO wrong FROM jsonb_array_elements(keys) AS k
        WHERE CASE WHEN jsonb_typeof(k) = 'array' THEN jsonb_array_length(k) <> width OR k @> '[null]' ELSE true END
        LIMIT 1;
    END IF;
    IF wrong IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = pg_catalog.format('%s is no key of %s, which has %s column(s).',
                wrong, embedding.relation::regclass, width),
            HINT = 'Keys are an array of arrays, as in pgembed.failures: [["1"], ["2"]].';
    END IF;
END
$$;

-- Queue the vectors of a side table whose rows are gone, for a worker to take away; returns how many. Called by
-- reconcile.
CREATE OR REPLACE FUNCTION pgembed._queue_left_over(embedding pgembed.embedding) RETURNS bigint
LANGUAGE plpgsql
AS $$
DECLARE
    queued bigint;
BEGIN
    EXECUTE pg_catalog.format('INSERT INTO pgembed.%I (%s) SELECT %s FROM %s', 'change_' || embedding.id,
        pgembed._key_list(embedding, 'key_%s'),
        (SELECT string_agg('s.' || quote_ident(k.side_name), ', ' ORDER BY k.ordinal)
            FROM pgembed._side_keys(embedding) AS k),
        pgembed._left_over_sql(embedding));
    GET DIAGNOSTICS queued = ROW_COUNT;
    RETURN queued;
END
$$;

-- The lock that orders those who change jobs: workers alone, for a moment each, after the user's rows, never before.
CREATE OR REPLACE FUNCTION pgembed._lock_queue(embedding_id integer) RETURNS void
LANGUAGE sql
AS $$ SELECT pg_catalog.pg_advisory_xact_lock(1885824365, embedding_id) $$; -- 'pgem' in ASCII

-- A list over the key's columns by their number in the queue, e.g. 'key_%s' or 'j.key_%s'.
CREATE OR REPLACE FUNCTION pgembed._key_list(embedding pgembed.embedding, form text) RETURNS text
LANGUAGE sql IMMUTABLE
RETURN (SELECT string_agg(format(form, ordinal), ', ' ORDER BY ordinal)
    FROM jsonb_array_elements((embedding).key_columns) WITH ORDINALITY AS k (key, ordinal));

-- The vectors of a side table, alias s, whose rows are gone and which do not wait, as what follows FROM. Called by
-- _queue_left_over and doctor.
CREATE OR REPLACE FUNCTION pgembed._left_over_sql(embedding pgembed.embedding) RETURNS text
LANGUAGE sql STABLE
RETURN (
    SELECT format('%1$s AS s WHERE NOT EXISTS (SELECT FROM %2$s AS t WHERE %3$s) '
        'AND NOT EXISTS (SELECT FROM pgembed.%4$I WHERE (%5$s) = (%6$s)) '
        'AND NOT EXISTS (SELECT FROM pgembed.%7$I WHERE (%5$s) = (%6$s))',
        (embedding).side::regclass, (embedding).relation::regclass,
        string_agg(format('t.%I = s.%I', k.row_name, k.side_name), ' AND ' ORDER BY k.ordinal),
        'job_' || (embedding).id, pgembed._key_list(embedding, 'key_%s'),
        string_agg('s.' || quote_ident(k.side_name), ', ' ORDER BY k.ordinal), 'change_' || (embedding).id)
    FROM pgembed._side_keys(embedding) AS k
);

-- The key's columns in the user's table, alias t, by their present names.
CREATE OR REPLACE FUNCTION pgembed._key_columns_sql(embedding pgembed.embedding) RETURNS text
LANGUAGE sql STABLE
RETURN (SELECT string_agg('t.' || quote_ident(a.attname), ', ' ORDER BY ordinal)
    FROM jsonb_array_elements((embedding).key_columns) WITH ORDINALITY AS k (key, ordinal)
    JOIN pg_catalog.pg_attribute AS a ON a.attrelid = (embedding).relation AND a.attnum = (key ->> 'attnum')::smallint);

-- The key's columns with the types that the queue's own table has; NULL where that is gone. Types become SQL text,
-- which nothing that a row of the catalog holds may become unquoted.
CREATE OR REPLACE FUNCTION pgembed._queue_key(embedding pgembed.embedding) RETURNS jsonb
LANGUAGE sql STABLE
RETURN (SELECT jsonb_agg(key || jsonb_build_object('type', pgembed._type_sql(a.atttypid, a.attcollation))
        ORDER BY ordinal)
    FROM jsonb_array_elements((embedding).key_columns) WITH ORDINALITY AS k (key, ordinal)
    JOIN pg_catalog.pg_class AS c ON c.relnamespace = 'pgembed'::regnamespace AND c.relname = 'job_' || (embedding).id
    JOIN pg_catalog.pg_attribute AS a ON a.attrelid = c.oid AND a.attname = 'key_' || ordinal);

-- A key of pgembed.failure back in the queue's types.
CREATE OR REPLACE FUNCTION pgembed._typed_key(embedding pgembed.embedding, key_column text) RETURNS text
LANGUAGE sql STABLE
RETURN (SELECT string_agg(format('(%s ->> %s)::%s', key_column, ordinal - 1, key ->> 'type'), ', ' ORDER BY ordinal)
    FROM jsonb_array_elements(pgembed._queue_key(embedding)) WITH ORDINALITY AS k (key, ordinal));

-- The inputs of a row as a list of expressions, NULL where absent.
CREATE OR REPLACE FUNCTION pgembed._present_sql(embedding pgembed.embedding) RETURNS text
LANGUAGE sql STABLE
RETURN (SELECT string_agg(pgembed._input_sql((embedding).relation, (embedding).inputs, modality), ', ')
    FROM jsonb_object_keys((embedding).inputs) AS modality);

-- What a worker needs to know of the embeddings, with the SQL of each input; read at its start and each few seconds.
-- A table is known by the embedding's own trigger on it: an oid alone may belong to another table after a restore.
CREATE OR REPLACE VIEW pgembed._work AS
SELECT e.id, coalesce(n.nspname, e.schema_name) AS schema_name, coalesce(c.relname, e.table_name) AS table_name,
    e.target, CASE WHEN e.paused THEN 'paused' ELSE e.state END AS state, e.stale, c.oid IS NOT NULL AND (e.storage = 'column' OR s.oid IS NOT NULL) AS present,
    pgembed._queue_key(e) AS key_columns, e.inputs,
    (SELECT jsonb_object_agg(modality, pgembed._input_sql(c.oid, e.inputs, modality))
        FROM jsonb_object_keys(e.inputs) AS modality WHERE c.oid IS NOT NULL) AS input_sql,
    (SELECT jsonb_agg(DISTINCT CASE a.attgenerated WHEN 'v' THEN 'true' ELSE 't.' || quote_ident(a.attname) END)
        FROM jsonb_each(e.inputs) AS input (modality, facts)
        CROSS JOIN jsonb_each_text(facts -> 'columns') AS used (name, number)
        JOIN pg_catalog.pg_attribute AS a ON a.attrelid = c.oid AND a.attnum = used.number::smallint) AS input_columns,
    (SELECT jsonb_agg(a.attname ORDER BY ordinal)
        FROM jsonb_array_elements(e.key_columns) WITH ORDINALITY AS k (key, ordinal)
        JOIN pg_catalog.pg_attribute AS a ON a.attrelid = c.oid AND a.attnum = (key ->> 'attnum')::smallint
    ) AS key_names,
    o.name AS encoder, o.spec, o.space, o.dim,
    pgembed._metric(o.metric, e.fusion) AS metric, o.normalized, o.fingerprint, o.settings,
    '@extschema:vector@.vector'::text AS vector_type, '@extschema:vector@.vector'::regtype::oid AS vector_oid,
    CASE WHEN s.oid IS NOT NULL THEN (
        SELECT jsonb_build_object('schema', m.nspname, 'table', s.relname,
            'keys', (SELECT jsonb_agg(k.side_name ORDER BY k.ordinal) FROM pgembed._side_keys(e) AS k))
        FROM pg_catalog.pg_namespace AS m WHERE m.oid = s.relnamespace
    ) END AS side,
    CASE WHEN e.storage = 'column' AND c.oid IS NOT NULL AND NOT EXISTS (
        SELECT FROM pg_catalog.pg_attribute AS a WHERE a.attrelid = c.oid AND a.attname = e.target
            AND a.atttypid IN ('@extschema:vector@.vector'::regtype, '@extschema:vector@.halfvec'::regtype))
    THEN format('Table %s has no vector column ''%s''.', c.oid::regclass, e.target) END AS fault,
    e.mode, e.fusion, e.parts
FROM pgembed.embedding AS e
JOIN pgembed.encoder AS o ON o.name = e.encoder
LEFT JOIN pg_catalog.pg_trigger AS g ON g.tgrelid = e.relation AND g.tgname = format('pgembed_%s_update', e.id)
LEFT JOIN pg_catalog.pg_class AS c ON c.oid = g.tgrelid
LEFT JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
LEFT JOIN pg_catalog.pg_class AS s ON e.storage = 'side' AND s.oid = e.side
    AND s.oid = pgembed._side_of(e, c.oid);
