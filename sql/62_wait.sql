-- Waiting for workers: read your own writes.

DROP FUNCTION IF EXISTS pgembed._wait_for(pgembed.embedding, timestamptz, interval);

-- Wait until every row of the table that was committed before the call has its vector; gives those that could not be
-- encoded, with their reasons, and so no row where all is well:
--
--     SELECT * FROM pgembed.wait('product', timeout => '5 s');
--
-- Raises an error when the time is over. A row that is changed again meanwhile is waited for too. It looks again and
-- again, so it cannot stand in a transaction that sees one snapshot (REPEATABLE READ), nor in one that changed the
-- table itself: no worker sees these rows before it commits.
CREATE OR REPLACE FUNCTION pgembed.wait(
    relation regclass,
    target text DEFAULT NULL,
    timeout interval DEFAULT '1 minute'
) RETURNS TABLE (embedding text, key jsonb, error text)
LANGUAGE plpgsql
AS $$
DECLARE
    ends CONSTANT timestamptz := clock_timestamp() + timeout;
    embeddings CONSTANT pgembed.embedding[] := pgembed._embeddings(relation, target);
    awaited pgembed.embedding;
    outcome text;
BEGIN
    IF current_setting('transaction_isolation') IN ('repeatable read', 'serializable') THEN
        RAISE EXCEPTION USING ERRCODE = 'object_not_in_prerequisite_state',
            MESSAGE = pg_catalog.format('In a transaction at %s nothing can be seen to happen.',
                upper(current_setting('transaction_isolation'))),
            HINT = 'Commit first, and wait outside of it.';
    END IF;
    FOREACH awaited IN ARRAY embeddings LOOP
        outcome := pgembed._wait_for(awaited.id, ends);
        IF outcome = 'own' THEN
            RAISE EXCEPTION USING ERRCODE = 'object_not_in_prerequisite_state',
                MESSAGE = pg_catalog.format('This transaction has changed %s itself, which no worker sees before it commits.',
                    awaited.relation::regclass),
                HINT = 'Commit first, and wait then.';
        ELSIF outcome = 'late' THEN
            RAISE EXCEPTION USING ERRCODE = 'PE001', -- no other error has it: clients know this one by it
                MESSAGE = pg_catalog.format('Rows of %s still wait for their vectors after %s: %s.',
                    awaited.relation::regclass, timeout, pgembed._why_waiting(awaited)),
                HINT = 'Look at SELECT * FROM pgembed.status; is a worker running that can keep up?';
        END IF;
    END LOOP;
    RETURN QUERY SELECT f.target, f.key, f.error
    FROM pgembed._seen_failure AS f
    WHERE f.id IN (SELECT e.id FROM unnest(embeddings) AS e)
    ORDER BY f.id, f.failed_at;
END
$$;

-- Wait until what is in an embedding's queue now is not in it any more: 'done', 'late' where the time is over before,
-- or 'own' where this transaction has put something there. SECURITY DEFINER, so that who waits need not read the queue:
-- no more than a word comes out of it. Called by wait.
CREATE OR REPLACE FUNCTION pgembed._wait_for(embedding_id integer, ends timestamptz) RETURNS text
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    log CONSTANT text := 'pgembed.change_' || embedding_id;
    jobs CONSTANT text := 'pgembed.job_' || embedding_id;
    left_sql text;
    last_change bigint;
    last_job bigint;
    own boolean;
    left_over boolean;
    pause float8 := 0.01;
BEGIN
    EXECUTE pg_catalog.format('SELECT max(seq), coalesce(bool_or(xmin = pg_current_xact_id_if_assigned()::xid), false) FROM %s', log)
    INTO last_change, own;
    IF own THEN
        RETURN 'own';
    END IF;
    -- first what the backfill has not reached and the log holds, then the jobs that came of it
    left_sql := pg_catalog.format('SELECT EXISTS (SELECT FROM pgembed.embedding WHERE id = %s AND state = ''backfill'') '
        'OR EXISTS (SELECT FROM %s WHERE seq <= $1)', embedding_id, log);
    LOOP
        EXECUTE left_sql INTO left_over USING coalesce(last_change, last_job, -1);
        IF NOT left_over THEN
            IF last_job IS NOT NULL THEN
                RETURN 'done';
            END IF;
            EXECUTE pg_catalog.format('SELECT coalesce(max(seq), 0) FROM %s', jobs) INTO last_job;
            last_change := NULL;
            left_sql := pg_catalog.format('SELECT EXISTS (SELECT FROM %s WHERE coalesce(first_seq, seq) <= $1)', jobs);
            CONTINUE;
        END IF;
        IF clock_timestamp() >= ends THEN
            RETURN 'late';
        END IF;
        PERFORM pg_sleep(least(pause, greatest(extract(epoch FROM ends - clock_timestamp()), 0)));
        pause := least(pause * 1.5, 0.25);
    END LOOP;
END
$$;
REVOKE ALL ON FUNCTION pgembed._wait_for(integer, timestamptz) FROM PUBLIC;

-- What an embedding waits for, in words. Called by wait.
CREATE OR REPLACE FUNCTION pgembed._why_waiting(awaited pgembed.embedding) RETURNS text
LANGUAGE plpgsql STABLE
AS $$
DECLARE
    now_is pgembed.status;
BEGIN
    SELECT * INTO now_is FROM pgembed.status AS s WHERE s.id = awaited.id;
    RETURN pg_catalog.format('%s%s%s', now_is.state,
        pg_catalog.format(', %s queued, %s claimed', now_is.queued::text, now_is.claimed::text), CASE
        WHEN NOT EXISTS (SELECT FROM pg_catalog.pg_stat_activity
            WHERE datname = current_database() AND application_name = 'pgembed worker')
            THEN ', no worker is connected' ELSE '' END);
END
$$;

-- The embeddings of a table, or the one of that target; an error where there is none. Called by wait, pause, resume.
CREATE OR REPLACE FUNCTION pgembed._embeddings(relation regclass, target text) RETURNS pgembed.embedding[]
LANGUAGE plpgsql STABLE
AS $$
DECLARE
    found_embeddings pgembed.embedding[];
BEGIN
    SELECT array_agg(e ORDER BY e.id) INTO found_embeddings FROM pgembed.embedding AS e
    WHERE e.relation = _embeddings.relation AND (_embeddings.target IS NULL OR e.target = _embeddings.target);
    IF found_embeddings IS NULL THEN
        PERFORM pgembed._embedding(relation, target); -- says what there is
    END IF;
    RETURN found_embeddings;
END
$$;

-- Mark embeddings as paused or not. Called by pause and resume.
CREATE OR REPLACE FUNCTION pgembed._set_paused(relation regclass, target text, paused boolean) RETURNS integer
LANGUAGE plpgsql
AS $$
DECLARE
    changed integer;
BEGIN
    UPDATE pgembed.embedding AS e SET paused = _set_paused.paused
    WHERE e.id IN (SELECT f.id FROM unnest(pgembed._embeddings(_set_paused.relation, _set_paused.target)) AS f)
        AND e.paused <> _set_paused.paused;
    GET DIAGNOSTICS changed = ROW_COUNT;
    RETURN changed;
END
$$;

-- Leave a table's embeddings alone, or the one of that target: workers take none of their rows until resume, and what
-- changes meanwhile waits. Returns how many were not paused before.
CREATE OR REPLACE FUNCTION pgembed.pause(relation regclass, target text DEFAULT NULL) RETURNS integer
LANGUAGE sql
RETURN pgembed._set_paused(relation, target, true);

-- Go on with what was paused. Returns how many had been.
CREATE OR REPLACE FUNCTION pgembed.resume(relation regclass, target text DEFAULT NULL) RETURNS integer
LANGUAGE sql
RETURN pgembed._set_paused(relation, target, false);
