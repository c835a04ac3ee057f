-- What is wrong, and what to do about it. Run by `pgembed doctor`, which adds what only Python can see.
CREATE OR REPLACE FUNCTION pgembed.doctor()
RETURNS TABLE (subject text, ok boolean, finding text, remedy text)
LANGUAGE plpgsql
AS $$
DECLARE
    e pgembed.embedding;
    name text;
    n bigint;
    installed text;
    waiting bigint;
    workers bigint;
    state record;
BEGIN
    SELECT extversion INTO installed FROM pg_catalog.pg_extension WHERE extname = 'vector';
    subject := 'pgvector';
    ok := string_to_array(installed, '.')::integer[] >= ARRAY[0, 7];
    finding := pg_catalog.format('version %s', installed);
    remedy := CASE WHEN string_to_array(installed, '.')::integer[] < ARRAY[0, 8]
        THEN 'Filtered searches are exact, not by index, before 0.8: ALTER EXTENSION vector UPDATE;' END;
    RETURN NEXT;

    FOR state IN SELECT * FROM pgembed.encoders AS m WHERE m.languages IS NOT NULL LOOP
        subject := pg_catalog.format('encoder ''%s'' language', state.name);
        ok := true;
        finding := pg_catalog.format('its words are %s', state.languages);
        remedy := NULL;
        RETURN NEXT;
    END LOOP;

    FOR e IN SELECT * FROM pgembed.embedding ORDER BY id LOOP
        name := pg_catalog.format('%I.%I.%I', e.schema_name, e.table_name, e.target);
        IF NOT EXISTS (SELECT FROM pg_catalog.pg_class WHERE oid = e.relation) THEN
            subject := name; ok := false; finding := 'The table is gone.';
            remedy := pg_catalog.format('SELECT pgembed.forget(%s);', e.id);
            RETURN NEXT;
            CONTINUE;
        END IF;

        SELECT count(*) INTO n FROM pg_catalog.pg_trigger AS t
        WHERE t.tgrelid = e.relation AND t.tgname ~ pg_catalog.format('^(zzz_)?pgembed_%s_', e.id) AND t.tgenabled <> 'D';
        subject := name || ' triggers';
        ok := n = CASE e.stale WHEN 'null' THEN 3 ELSE 2 END;
        finding := pg_catalog.format('%s enabled', n);
        remedy := CASE WHEN NOT ok THEN pg_catalog.format('Enable them: ALTER TABLE %s ENABLE TRIGGER USER; then SELECT pgembed.reconcile(%L, %L);',
            e.relation::regclass, e.relation::regclass, e.target) END;
        RETURN NEXT;

        subject := name || ' rights';
        ok := has_table_privilege(e.relation, 'SELECT') AND has_column_privilege(e.relation, e.target, 'UPDATE')
            AND (NOT row_security_active(e.relation));
        finding := CASE WHEN row_security_active(e.relation) THEN pg_catalog.format('row-level security filters what %I sees', current_user)
            WHEN ok THEN pg_catalog.format('%I may read rows and write vectors', current_user)
            ELSE pg_catalog.format('%I may not read rows or write vectors', current_user) END;
        remedy := CASE WHEN NOT ok THEN pg_catalog.format('A worker run as %I needs SELECT and UPDATE on %s, and BYPASSRLS where there is row-level security.',
            current_user, e.relation::regclass) END;
        RETURN NEXT;

        SELECT * INTO state FROM pgembed.status AS s WHERE s.id = e.id;
        EXECUTE pg_catalog.format(
            'SELECT count(*) FROM pgembed.%I WHERE claimed_until < now() - interval ''5 minutes''', 'job_' || e.id)
        INTO n;
        subject := name || ' queue';
        SELECT count(*) INTO workers FROM pg_catalog.pg_stat_activity
        WHERE datname = current_database() AND application_name = 'pgembed worker';
        ok := n = 0 AND coalesce(state.oldest_wait, '0') < interval '10 minutes'
            AND (workers > 0 OR (state.queued = 0 AND state.state <> 'backfill'));
        finding := pg_catalog.format('%s, %s queued, %s claimed, %s with a lease that ran out, oldest wait %s, %s',
            state.state, state.queued, state.claimed, n,
            coalesce(date_trunc('second', state.oldest_wait)::text, 'none'),
            CASE workers WHEN 0 THEN 'no worker is connected' ELSE 'workers are connected' END);
        remedy := CASE WHEN NOT ok
            THEN 'No worker seems to run: pgembed worker. It takes up stale leases by itself.' END;
        RETURN NEXT;

        subject := name || ' failures';
        ok := state.failed = 0;
        finding := pg_catalog.format('%s failed', state.failed);
        remedy := CASE WHEN NOT ok THEN pg_catalog.format(
            'See SELECT * FROM pgembed.failures; then SELECT pgembed.retry(%L, %L);',
            e.relation::regclass, e.target) END;
        RETURN NEXT;

        subject := name || ' index';
        SELECT count(*) FILTER (WHERE i.indisvalid), count(*) FILTER (WHERE NOT i.indisvalid) INTO n, waiting
        FROM pg_catalog.pg_index AS i
        JOIN pg_catalog.pg_class AS c ON c.oid = i.indexrelid
        JOIN pg_catalog.pg_am AS m ON m.oid = c.relam AND m.amname IN ('hnsw', 'ivfflat')
        JOIN pg_catalog.pg_attribute AS a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]
        WHERE i.indrelid = e.relation AND a.attname = e.target;
        ok := n > 0 OR (state.ready < 1000 AND waiting = 0);
        finding := CASE WHEN n > 0 THEN 'vector index there' WHEN waiting > 0 THEN 'only an invalid vector index'
            ELSE pg_catalog.format('no vector index, %s vectors', state.ready) END;
        remedy := CASE WHEN NOT ok THEN pg_catalog.format(
            'pgembed index %s, or in psql: SELECT pgembed.index_sql(%L, %L) \gexec',
            e.relation::regclass, e.relation::regclass, e.target) END;
        RETURN NEXT;
    END LOOP;
END
$$;
