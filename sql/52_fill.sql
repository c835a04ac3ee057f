-- Filling an instant embedding: the rows that were there when it was attached, and those that wait in its queue. All of
-- it is SQL; workers call the same functions, and a person with psql calls the procedure.
--
-- A vector is made of the row as it stands, locked, in the statement that writes it: whatever happened to the row
-- since it was queued, what is written is true. So no job is claimed, and none has a lease.

-- Give every waiting row of a table's instant embeddings its vector, and return when none waits:
--
--     CALL pgembed.fill('product');
--
-- It commits after each batch, so it cannot stand in a transaction; stopped, it goes on where it was. A row that
-- another transaction holds is left waiting, and a notice says so.
CREATE OR REPLACE PROCEDURE pgembed.fill(relation regclass, target text DEFAULT NULL, batch integer DEFAULT 1000)
LANGUAGE plpgsql
AS $$
DECLARE
    embeddings CONSTANT pgembed.embedding[] := pgembed._embeddings(relation, target);
    instant pgembed.embedding;
    moved boolean;
    step record;
    waiting bigint;
BEGIN
    IF batch IS NULL OR batch < 1 THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = pg_catalog.format('batch is a number of rows, at least 1, not %s.',
                coalesce(batch::text, 'NULL'));
    ELSIF NOT EXISTS (SELECT FROM unnest(embeddings) AS e WHERE e.mode = 'instant') THEN
        RAISE EXCEPTION USING ERRCODE = 'feature_not_supported',
            MESSAGE = pg_catalog.format('%s of %s is encoded by workers, not in SQL.', embeddings[1].target, relation),
            HINT = 'Run: pgembed worker --until-idle';
    END IF;
    FOREACH instant IN ARRAY embeddings LOOP
        CONTINUE WHEN instant.mode <> 'instant';
        LOOP
            COMMIT;
            moved := pgembed._fill_queue(instant.id);
            COMMIT;
            step := pgembed._fill_rows(instant.id, batch);
            EXIT WHEN NOT moved AND step.written + step.failed + step.gone = 0;
        END LOOP;
        EXECUTE pg_catalog.format('SELECT count(*) FROM pgembed.%I', 'job_' || instant.id) INTO waiting;
        IF waiting > 0 THEN
            RAISE NOTICE USING
                MESSAGE = pg_catalog.format('%s row(s) of %s are held by other transactions and wait for %s still.',
                    waiting, relation, instant.target),
                HINT = 'Call it again when they have ended.';
        END IF;
    END LOOP;
END
$$;

-- Make jobs of what the log holds, and where it holds nothing of the next rows of the backfill; true where it did
-- either. A job whose key was queued twice is one job.
CREATE OR REPLACE FUNCTION pgembed._fill_queue(embedding_id integer) RETURNS boolean
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    embedding pgembed.embedding;
    keys text;
    moved bigint;
    filled regclass;
BEGIN
    -- the user's table before the queue's, as detach locks them: what follows reads it after it has written to these
    SELECT c.oid INTO filled FROM pgembed.embedding AS e JOIN pg_catalog.pg_class AS c ON c.oid = e.relation
    WHERE e.id = embedding_id AND e.state = 'backfill';
    IF FOUND THEN
        EXECUTE format('SELECT FROM %s LIMIT 0', filled); -- which needs the right to some column alone
    END IF;
    PERFORM pgembed._lock_queue(embedding_id);
    SELECT * INTO embedding FROM pgembed.embedding AS e WHERE e.id = embedding_id;
    IF NOT FOUND OR embedding.paused THEN
        RETURN false;
    END IF;
    PERFORM pgembed._check_place(embedding, embedding.relation::regclass, 'written to');
    keys := pgembed._key_list(embedding, 'key_%s');
    EXECUTE format('WITH moved AS (DELETE FROM pgembed.%1$I WHERE seq = ANY (ARRAY('
        'SELECT seq FROM pgembed.%1$I ORDER BY seq LIMIT 5000 FOR UPDATE SKIP LOCKED)) RETURNING %2$s), '
        'forgiven AS (DELETE FROM pgembed.failure WHERE embedding = $1 AND key = ANY (ARRAY('
        'SELECT f.key FROM moved AS m JOIN pgembed.failure AS f ON f.embedding = $1 AND f.key = jsonb_build_array(%3$s) '
        'FOR UPDATE OF f SKIP LOCKED))) '
        'INSERT INTO pgembed.%4$I AS j (%2$s) SELECT DISTINCT %2$s FROM moved ON CONFLICT (%2$s) DO UPDATE '
        'SET seq = excluded.seq, first_seq = coalesce(j.first_seq, j.seq), attempts = 0, available_at = now(), error = NULL, '
        'backfill = false',
        'change_' || embedding_id, keys, pgembed._key_list(embedding, 'm.key_%s::text'), 'job_' || embedding_id)
    USING embedding_id;
    GET DIAGNOSTICS moved = ROW_COUNT;
    RETURN moved > 0 OR (embedding.state = 'backfill' AND pgembed._fill_backfill(embedding));
END
$$;

-- Queue the next rows by key that have text, no vector and no failure; false, and the backfill is over, where there are
-- none. Called by _fill_queue.
CREATE OR REPLACE FUNCTION pgembed._fill_backfill(embedding pgembed.embedding) RETURNS boolean
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    row_keys text := pgembed._key_columns_sql(embedding);
    reached jsonb := (SELECT b.after FROM pgembed.backfill AS b WHERE b.embedding = _fill_backfill.embedding.id);
    last_key jsonb;
BEGIN
    EXECUTE format('WITH step AS MATERIALIZED (SELECT row_number() OVER (ORDER BY %1$s) AS n, %2$s, '
        '%3$s AND num_nonnulls(%4$s) > 0 AS wanted FROM %5$s AS t WHERE %6$s ORDER BY %1$s LIMIT 10000), '
        'queued AS (INSERT INTO pgembed.%7$I (%8$s, backfill) SELECT %8$s, true FROM step WHERE wanted '
            'AND NOT EXISTS (SELECT FROM pgembed.failure AS f WHERE f.embedding = $2 AND f.key = jsonb_build_array(%9$s)) '
            'ON CONFLICT DO NOTHING) '
        'SELECT jsonb_build_array(%9$s) FROM step ORDER BY n DESC LIMIT 1',
        row_keys,
        (SELECT string_agg(format('t.%I AS key_%s', a.attname, k.ordinal), ', ' ORDER BY k.ordinal)
            FROM jsonb_array_elements(embedding.key_columns) WITH ORDINALITY AS k (key, ordinal)
            JOIN pg_catalog.pg_attribute AS a ON a.attrelid = embedding.relation
                AND a.attnum = (k.key ->> 'attnum')::smallint),
        pgembed._no_vector_sql(embedding), pgembed._present_sql(embedding), embedding.relation::regclass,
        CASE WHEN reached IS NULL THEN 'true'
            ELSE format('(%s) > (%s)', row_keys, pgembed._typed_key(embedding, '$1')) END,
        'job_' || embedding.id, pgembed._key_list(embedding, 'key_%s'), pgembed._key_list(embedding, 'key_%s::text'))
    INTO last_key USING reached, embedding.id;
    IF last_key IS NULL THEN
        UPDATE pgembed.embedding AS e SET state = 'ready' WHERE e.id = embedding.id;
    ELSE
        INSERT INTO pgembed.backfill AS b (embedding, after) VALUES (_fill_backfill.embedding.id, last_key)
        ON CONFLICT ON CONSTRAINT backfill_pkey DO UPDATE SET after = excluded.after;
    END IF;
    RETURN last_key IS NOT NULL;
END
$$;

-- Give the next rows that wait their vectors: those that nobody else holds, at most so many. `gone` counts jobs whose
-- row is no longer there. Rows that are held are put off a moment. User rows are locked before the queue, always.
CREATE OR REPLACE FUNCTION pgembed._fill_rows(
    embedding_id integer, batch integer, OUT written bigint, OUT failed bigint, OUT gone bigint
)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET timezone = 'UTC'
SET datestyle = 'ISO, YMD'
SET intervalstyle = 'postgres'
SET extra_float_digits = 1
SET bytea_output = 'hex'
AS $$
DECLARE
    embedding pgembed.embedding;
    same text;
    locked bigint[];
    one bigint;
    done record;
BEGIN
    written := 0;
    failed := 0;
    gone := 0;
    SELECT * INTO embedding FROM pgembed.embedding AS e WHERE e.id = embedding_id;
    IF NOT FOUND OR embedding.paused THEN
        RETURN;
    END IF;
    PERFORM pgembed._check_place(embedding, embedding.relation::regclass, 'written to');
    same := pgembed._same_row_sql(embedding);
    EXECUTE format('SELECT array_agg(seq) FROM (SELECT j.seq FROM %s AS t JOIN pgembed.%I AS j ON %s '
        'WHERE j.available_at <= clock_timestamp() ORDER BY j.backfill, j.seq LIMIT $1 FOR NO KEY UPDATE OF t SKIP LOCKED) AS l',
        embedding.relation::regclass, 'job_' || embedding_id, same)
    INTO locked USING batch;
    PERFORM pgembed._lock_queue(embedding_id);
    IF coalesce(cardinality(locked), 0) < batch THEN
        gone := pgembed._fill_gone(embedding, same, batch);
        EXECUTE format('UPDATE pgembed.%I SET available_at = clock_timestamp() + interval ''0.5 s'' '
            'WHERE available_at <= clock_timestamp() AND seq <> ALL ($1)', 'job_' || embedding_id)
        USING coalesce(locked, '{}');
    END IF;
    IF locked IS NULL THEN
        RETURN;
    END IF;
    BEGIN
        done := pgembed._fill_these(embedding, same, locked);
        written := done.written;
        failed := done.failed;
    EXCEPTION WHEN others THEN
        IF SQLSTATE LIKE '40%' OR SQLSTATE LIKE '57%' OR SQLSTATE LIKE '53%' THEN
            RAISE;
        END IF;
        written := NULL;
    END;
    IF written IS NULL THEN -- some row spoils it for the others
        written := 0;
        FOREACH one IN ARRAY locked LOOP
            BEGIN
                done := pgembed._fill_these(embedding, same, ARRAY[one]);
                written := written + done.written;
                failed := failed + done.failed;
            EXCEPTION WHEN others THEN
                IF SQLSTATE LIKE '40%' OR SQLSTATE LIKE '57%' OR SQLSTATE LIKE '53%' THEN
                    RAISE;
                END IF;
                PERFORM pgembed._fill_failed(embedding, one, SQLERRM);
                failed := failed + 1;
            END;
        END LOOP;
    END IF;
    INSERT INTO pgembed.written AS w (embedding, minute, rows, tokens)
    SELECT e.id, date_trunc('minute', now()), _fill_rows.written, 0
    FROM pgembed.embedding AS e WHERE e.id = embedding_id FOR KEY SHARE
    ON CONFLICT ON CONSTRAINT written_pkey DO UPDATE SET rows = w.rows + excluded.rows;
END
$$;

-- Write the vectors of locked rows, and take their jobs off the queue. Called by _fill_rows.
CREATE OR REPLACE FUNCTION pgembed._fill_these(
    embedding pgembed.embedding, same text, seqs bigint[], OUT written bigint, OUT failed bigint
)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    parts record := pgembed._instant_parts(embedding);
    model text := (SELECT o.static_text FROM pgembed.encoder AS o WHERE o.name = embedding.encoder);
    keys text := pgembed._key_list(embedding, 'key_%s');
    writing text;
BEGIN
    IF embedding.storage = 'side' THEN
        SELECT format('vacated AS (DELETE FROM %1$s AS s USING made AS w WHERE %2$s AND w.made IS NULL), '
            'placed AS (INSERT INTO %1$s (%3$s, vector) SELECT %4$s, made FROM made WHERE made IS NOT NULL '
            'ON CONFLICT (%3$s) DO UPDATE SET vector = excluded.vector), '
            'updated AS (SELECT seq FROM made)', embedding.side::regclass,
            string_agg(format('s.%I = w.key_%s', k.side_name, k.ordinal), ' AND ' ORDER BY k.ordinal),
            string_agg(quote_ident(k.side_name), ', ' ORDER BY k.ordinal), keys)
        INTO writing FROM pgembed._side_keys(embedding) AS k;
    ELSE
        writing := format('updated AS (UPDATE %1$s AS t SET %2$I = w.made FROM made AS w WHERE %3$s '
            'AND num_nonnulls(w.made, t.%2$I) > 0 RETURNING w.seq)', -- no row is written for nothing
            embedding.relation::regclass, embedding.target, pgembed._same_row_sql(embedding, 'w'));
    END IF;
    EXECUTE format('WITH made AS MATERIALIZED (SELECT j.seq, %1$s, j.attempts, %2$s AS input, %3$s AS made '
        'FROM %4$s AS t JOIN pgembed.%5$I AS j ON %6$s WHERE j.seq = ANY ($1)), %7$s, '
        'fate AS (SELECT w.*, CASE '
            'WHEN u.seq IS NULL AND w.made IS NOT NULL THEN %8$L '
            'WHEN w.input IS NOT NULL AND w.made IS NULL THEN format(''The text ''''%%s'''' has no word that ''''%%s'''' knows.'', '
                'CASE WHEN length(w.input) <= 80 THEN w.input ELSE left(w.input, 80) || ''…'' END, %9$L::text) END AS error '
            'FROM made AS w LEFT JOIN updated AS u ON u.seq = w.seq), '
        'finished AS (DELETE FROM pgembed.%5$I AS j USING made AS w WHERE j.seq = w.seq), '
        'given_up AS (INSERT INTO pgembed.failure AS f (embedding, key, error, attempts) '
            'SELECT $2, jsonb_build_array(%10$s), error, attempts + 1 FROM fate WHERE error IS NOT NULL '
            'ON CONFLICT (embedding, key) DO UPDATE SET error = excluded.error, attempts = excluded.attempts, failed_at = now()) '
        'SELECT count(*) FILTER (WHERE error IS NULL), count(error) FROM fate',
        pgembed._key_list(embedding, 'j.key_%s'), parts.input, parts.vector, embedding.relation::regclass,
        'job_' || embedding.id, same, writing,
        format('A trigger of %s.%s kept the row as it was.', embedding.schema_name, embedding.table_name), model,
        pgembed._key_list(embedding, 'key_%s::text'))
    INTO written, failed USING seqs, embedding.id;
END
$$;

-- Make a failure of one job, with the database's own words. Called by _fill_rows.
CREATE OR REPLACE FUNCTION pgembed._fill_failed(embedding pgembed.embedding, seq bigint, error text) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    EXECUTE format('WITH gone AS (DELETE FROM pgembed.%I AS j WHERE j.seq = $1 RETURNING %s, j.attempts) '
        'INSERT INTO pgembed.failure (embedding, key, error, attempts) '
        'SELECT $2, jsonb_build_array(%s), left($3, 1000), attempts + 1 FROM gone '
        'ON CONFLICT (embedding, key) DO UPDATE SET error = excluded.error, attempts = excluded.attempts, failed_at = now()',
        'job_' || embedding.id, pgembed._key_list(embedding, 'j.key_%s'), pgembed._key_list(embedding, 'key_%s::text'))
    USING seq, embedding.id, error;
END
$$;

-- Take jobs off the queue whose rows are gone, and what is left of these in a side table: only what is locked when the
-- row is looked for, since a new row of the same key may be writing its vector there. Called by _fill_rows.
CREATE OR REPLACE FUNCTION pgembed._fill_gone(embedding pgembed.embedding, same text, batch integer) RETURNS bigint
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    queue CONSTANT text := 'pgembed.job_' || embedding.id;
    relation CONSTANT regclass := embedding.relation;
    same_side text;
    seqs bigint[];
    locked bigint[];
    gone bigint;
BEGIN
    EXECUTE format('SELECT array_agg(seq) FROM (SELECT j.seq FROM %s AS j '
        'WHERE NOT EXISTS (SELECT FROM %s AS t WHERE %s) LIMIT $1) AS g', queue, relation, same)
    INTO seqs USING batch;
    IF seqs IS NULL THEN
        RETURN 0;
    END IF;
    IF embedding.storage = 'side' THEN
        SELECT string_agg(format('s.%I = j.key_%s', k.side_name, k.ordinal), ' AND ' ORDER BY k.ordinal)
        INTO same_side FROM pgembed._side_keys(embedding) AS k;
        EXECUTE format('SELECT array_agg(seq) FROM (SELECT j.seq FROM %s AS s JOIN %s AS j ON %s '
            'WHERE j.seq = ANY ($1) FOR UPDATE OF s SKIP LOCKED) AS l', embedding.side::regclass, queue, same_side)
        INTO locked USING seqs;
        EXECUTE format('DELETE FROM %s AS s USING %s AS j WHERE %s AND j.seq = ANY ($1) '
            'AND NOT EXISTS (SELECT FROM %s AS t WHERE %s)', embedding.side::regclass, queue, same_side, relation, same)
        USING locked;
    END IF;
    EXECUTE format('DELETE FROM %s AS j WHERE j.seq = ANY ($1) AND NOT EXISTS (SELECT FROM %s AS t WHERE %s)',
        queue, relation, same)
    USING seqs;
    GET DIAGNOSTICS gone = ROW_COUNT;
    RETURN gone;
END
$$;

-- That a row of the user's table, alias t, has the key of a row of the queue, as SQL.
CREATE OR REPLACE FUNCTION pgembed._same_row_sql(embedding pgembed.embedding, alias text DEFAULT 'j') RETURNS text
LANGUAGE sql STABLE
RETURN (SELECT string_agg(format('t.%I = %I.key_%s', a.attname, alias, ordinal), ' AND ' ORDER BY ordinal)
    FROM jsonb_array_elements((embedding).key_columns) WITH ORDINALITY AS k (key, ordinal)
    JOIN pg_catalog.pg_attribute AS a ON a.attrelid = (embedding).relation AND a.attnum = (key ->> 'attnum')::smallint);
