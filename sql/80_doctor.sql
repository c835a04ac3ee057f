-- What is wrong, and what to do about it.

DROP FUNCTION IF EXISTS pgembed._examine_rights(pgembed.embedding);

-- Run by `pgembed doctor`, which looks before at what can be seen without any function of this schema.
CREATE OR REPLACE FUNCTION pgembed.doctor()
RETURNS TABLE (subject text, ok boolean, finding text, remedy text)
LANGUAGE plpgsql
AS $$
DECLARE
    embedding pgembed.embedding;
    kinds text[];
BEGIN
    RETURN QUERY SELECT 'pgvector', v.* FROM pgembed._examine_pgvector() AS v;
    IF NOT EXISTS (SELECT FROM pg_catalog.pg_constraint AS c
        WHERE c.conrelid = 'pgembed.embedding'::regclass AND c.contype = 'p') THEN
        RETURN QUERY SELECT 'restore', false,
            'The tables of pgembed have no keys: a restore of this database ended before its last section.',
            'Go on with it: pg_restore --section=post-data -d DATABASE DUMP';
        RETURN; -- all else would speak of what that brings
    END IF;
    IF has_table_privilege('pgembed.granted', 'SELECT') THEN
        SELECT array_agg(g.kind) INTO kinds FROM pgembed.granted AS g WHERE g.role = current_user;
    END IF;
    kinds := CASE WHEN 'worker' = ANY (kinds) THEN '{worker}' ELSE coalesce(kinds, '{worker}') END;
    RETURN QUERY SELECT 'rights', r.* FROM unnest(kinds) AS k (kind)
        CROSS JOIN LATERAL pgembed._examine_rights(k.kind, NULL) AS r;
    IF EXISTS (SELECT FROM unnest(kinds) AS k (kind)
        CROSS JOIN LATERAL pgembed._objects_of(k.kind, quote_ident(current_user)::regrole, NULL, true) AS m
        WHERE m.reads) THEN
        RETURN; -- this role sees no more
    END IF;
    IF has_table_privilege('pgembed.encoders', 'SELECT') THEN
        RETURN QUERY SELECT pg_catalog.format('encoder ''%s'' language', e.name), true,
            pg_catalog.format('its words are %s', e.languages), NULL
        FROM pgembed.encoders AS e WHERE e.languages IS NOT NULL;
        RETURN QUERY SELECT pg_catalog.format('encoder ''%s'' in SQL', e.name), x.* FROM pgembed.encoders AS e
        CROSS JOIN LATERAL pgembed._examine_queries(e.name, e.text_in_sql) AS x;
        RETURN QUERY SELECT pg_catalog.format('encoder ''%s'' static side', e.name), x.* FROM pgembed.encoders AS e
        CROSS JOIN LATERAL pgembed._examine_distilled(e.name, e.distilled) AS x WHERE e.distilled IS NOT NULL;
    END IF;
    FOR embedding IN SELECT * FROM pgembed.embedding ORDER BY id LOOP
        CONTINUE WHEN 'worker' <> ALL (kinds);
        subject := pg_catalog.format('%I.%I.%I', embedding.schema_name, embedding.table_name, embedding.target);
        BEGIN
            RETURN QUERY SELECT pg_catalog.concat_ws(' ', subject, x.part), x.ok, x.finding, x.remedy
            FROM pgembed._examine(embedding) AS x;
            SELECT coalesce(w.fault, 'it makes no sense to workers: see their log') INTO finding
            FROM pgembed._work AS w
            WHERE w.id = embedding.id AND w.present AND (w.input_sql IS NULL OR w.fault <> '');
            ok := NOT FOUND;
        EXCEPTION WHEN data_exception OR syntax_error_or_access_rule_violation THEN
            ok := false;
            finding := SQLERRM;
        END;
        IF NOT ok THEN
            subject := subject || ' catalog';
            remedy := 'Detach it and attach it again, or put its row in pgembed.embedding right.';
            RETURN NEXT;
        END IF;
    END LOOP;
    IF pg_has_role(pgembed._owner(), 'USAGE') THEN
        RETURN QUERY SELECT * FROM pgembed._examine_granted();
    END IF;
END
$$;

-- Whether encode_text and its kin work for an encoder. That dblink is not switched on is no fault. Called by doctor.
CREATE OR REPLACE FUNCTION pgembed._examine_queries(
    encoder text,
    text_in_sql boolean,
    OUT ok boolean,
    OUT finding text,
    OUT remedy text
)
LANGUAGE plpgsql
AS $$
DECLARE
    served CONSTANT boolean := EXISTS (SELECT FROM pgembed._serving(encoder));
    trouble text;
BEGIN
    ok := true;
    IF NOT pgembed._asks_workers() THEN
        finding := CASE WHEN text_in_sql THEN 'texts are encoded inside Postgres'
            ELSE pg_catalog.format('encode_text finds what CALL pgembed.prepare(%L, ARRAY[''…'']); had encoded; it '
                'asks workers itself after CALL pgembed.enable_dblink();', encoder) END;
        RETURN;
    END IF;
    IF has_function_privilege('pgembed._dblink_trouble()', 'EXECUTE') THEN
        trouble := pgembed._dblink_trouble();
    END IF;
    ok := trouble IS NULL AND (served OR text_in_sql);
    finding := pg_catalog.concat_ws(', ',
        CASE WHEN text_in_sql THEN 'texts are encoded inside Postgres' END, CASE
            WHEN trouble IS NOT NULL THEN 'workers cannot be asked through dblink: ' || trouble
            WHEN served THEN 'workers are asked for what is not cached'
            ELSE 'no worker is running that makes vectors of queries with it' END);
    remedy := CASE WHEN trouble IS NOT NULL THEN 'As a superuser, or whoever ran it: CALL pgembed.enable_dblink();'
        WHEN NOT ok THEN 'Start one: pgembed worker. Where one runs, its log tells why it leaves this encoder alone.'
    END;
END
$$;

-- Whether each role that grant_role was told of has what it needs. Called by doctor.
CREATE OR REPLACE FUNCTION pgembed._examine_granted()
RETURNS TABLE (subject text, ok boolean, finding text, remedy text)
LANGUAGE plpgsql STABLE
AS $$
DECLARE
    kept record;
    lacking text;
BEGIN
    FOR kept IN SELECT g.kind, g.role, to_regrole(quote_ident(g.role)) AS known FROM pgembed.granted AS g
        ORDER BY g.role, g.kind LOOP
        subject := pg_catalog.format('%s %I', kept.kind, kept.role);
        IF kept.known IS NULL THEN
            ok := false;
            finding := 'there is no such role any more';
            remedy := pg_catalog.format('SELECT pgembed.revoke_role(%L, %L);', kept.kind, kept.role);
        ELSE
            SELECT string_agg(o.missing, ', '), string_agg(pgembed._asking(o.owner) || o.statement, ' ')
            INTO lacking, remedy
            FROM (
                SELECT e FROM pgembed.embedding AS e UNION ALL SELECT NULL
            ) AS a (e)
            CROSS JOIN LATERAL pgembed._objects_of(kept.kind, kept.known, a.e, true) AS o;
            IF kept.kind = 'worker' THEN
                SELECT pg_catalog.concat_ws(', ', lacking,
                        'sight of all rows of ' || string_agg(e.relation::regclass::text, ', ')),
                    pg_catalog.concat_ws(' ', remedy, 'Ask a superuser to run: ALTER ROLE ' || min(kept.known::text)
                        || ' BYPASSRLS;')
                INTO lacking, remedy
                FROM pgembed.embedding AS e WHERE pgembed._is_filtered(kept.known, e.relation)
                HAVING count(*) > 0 OR lacking IS NOT NULL;
            END IF;
            ok := lacking IS NULL;
            finding := coalesce('lacks ' || lacking, 'has what it needs');
        END IF;
        RETURN NEXT;
    END LOOP;
END
$$;

-- Whether pgvector is new enough, and who may upgrade it where it is not. Called by doctor.
CREATE OR REPLACE FUNCTION pgembed._examine_pgvector(OUT ok boolean, OUT finding text, OUT remedy text)
LANGUAGE plpgsql STABLE
AS $$
DECLARE
    installed record;
    number integer[];
BEGIN
    SELECT * INTO installed FROM pg_catalog.pg_extension WHERE extname = 'vector';
    number := string_to_array(substring(installed.extversion FROM '^\d+\.\d+'), '.')::integer[];
    ok := number >= ARRAY[0, 7];
    finding := pg_catalog.format('version %s', installed.extversion);
    remedy := CASE WHEN number < ARRAY[0, 8] THEN 'Filtered searches are exact, not by index, before 0.8. '
        || pgembed._asking(installed.extowner) || 'ALTER EXTENSION vector UPDATE;' END;
END
$$;

-- What is said before a statement that only an owner may run, where this role is not one.
CREATE OR REPLACE FUNCTION pgembed._asking(owner oid) RETURNS text
LANGUAGE sql STABLE
RETURN CASE WHEN pg_has_role(owner, 'USAGE') THEN '' ELSE format('Ask %I to run: ', pg_get_userbyid(owner)) END;

-- Whether this role has the rights of a kind: on the catalog (embedding NULL), or on an embedding's queue and table.
-- Called by doctor.
CREATE OR REPLACE FUNCTION pgembed._examine_rights(
    kind text,
    embedding pgembed.embedding,
    OUT ok boolean,
    OUT finding text,
    OUT remedy text
)
LANGUAGE plpgsql STABLE
AS $$
DECLARE
    filtered boolean := kind = 'worker' AND coalesce(row_security_active(embedding.relation), false);
    lacking text;
    grants text;
BEGIN
    SELECT string_agg(m.missing, ', '), string_agg(m.statements, ' ') INTO lacking, grants
    FROM (
        SELECT string_agg(r.missing, ', ' ORDER BY r.place) AS missing,
            pgembed._asking(r.owner) || string_agg(r.statement, ' ' ORDER BY r.place) AS statements
        FROM pgembed._objects_of(kind, quote_ident(current_user)::regrole, embedding, true) AS r
        GROUP BY r.owner
        ORDER BY min(r.place)
    ) AS m;
    ok := lacking IS NULL AND NOT filtered;
    finding := pg_catalog.concat_ws('; ',
        CASE WHEN ok THEN pg_catalog.format(CASE WHEN kind <> 'worker' THEN '%I has what a %s needs'
            WHEN embedding.id IS NULL THEN '%I may read the catalog and record what becomes of rows'
            ELSE '%I may work off the queue, read rows and write vectors' END, current_user, kind) END,
        pg_catalog.format('%I lacks ', current_user) || lacking,
        CASE WHEN filtered THEN pg_catalog.format('row-level security filters what %I sees', current_user) END);
    remedy := pg_catalog.concat_ws(' ',
        pg_catalog.format('A %s run as %I needs that. ', kind, current_user) || grants,
        CASE WHEN filtered THEN pg_catalog.format('Run workers as the owner of the table, or ask a superuser to run: '
            'ALTER ROLE %I BYPASSRLS;', current_user) END);
    remedy := nullif(remedy, '');
END
$$;

-- One embedding: its table, triggers, queue, rights, leases, failures and index; `part` says which. Called by doctor.
CREATE OR REPLACE FUNCTION pgembed._examine(embedding pgembed.embedding)
RETURNS TABLE (part text, ok boolean, finding text, remedy text)
LANGUAGE plpgsql
AS $$
DECLARE
    relation regclass := embedding.relation;
    named text;
    n bigint;
BEGIN
    IF pgembed._restored_as(embedding) IS NOT NULL THEN
        ok := false;
        finding := 'The table has another number than in the catalog: it was restored.';
        remedy := 'SELECT pgembed.sync();';
        RETURN NEXT;
        RETURN;
    ELSIF NOT EXISTS (SELECT FROM pg_catalog.pg_class WHERE oid = embedding.relation) THEN
        ok := false;
        finding := 'The table is gone.';
        named := pg_catalog.format('%I.%I', embedding.schema_name, embedding.table_name);
        remedy := pg_catalog.format(CASE WHEN to_regclass(named) IS NOT NULL
            THEN 'Another has its name: SELECT pgembed.sync(%2$L); has it take its place. Or: SELECT pgembed.forget(%1$s);'
            ELSE 'SELECT pgembed.forget(%s);' END, embedding.id, named);
        RETURN NEXT;
        RETURN;
    END IF;

    ok := false;
    part := 'queue';
    FOR finding, remedy IN SELECT q.finding, q.remedy FROM pgembed._examine_log(embedding) AS q LOOP
        RETURN NEXT;
        RETURN;
    END LOOP;

    part := 'columns';
    FOR finding, remedy IN SELECT c.finding, c.remedy FROM pgembed._examine_columns(embedding) AS c LOOP
        RETURN NEXT;
        RETURN;
    END LOOP;

    SELECT count(*) INTO n FROM pg_catalog.pg_trigger AS t
    WHERE t.tgrelid = embedding.relation AND t.tgenabled IN ('O', 'A')
        AND t.tgname ~ pg_catalog.format('^(zzz_)?pgembed_%s_', embedding.id);
    part := 'triggers';
    ok := n = pgembed._trigger_count(embedding);
    finding := pg_catalog.format('%s enabled', n);
    -- whoever only enables them leaves out what changed meanwhile
    remedy := CASE WHEN NOT ok THEN pg_catalog.format('Make them anew: SELECT pgembed.sync(%L);', relation) END;
    RETURN NEXT;
    IF ok THEN
        part := 'partition';
        ok := false;
        FOR finding, remedy IN
            SELECT pg_catalog.format(CASE WHEN u.fires
                    THEN 'partition %s came with rows, or its triggers were off, and changes may have been missed'
                    ELSE 'the triggers of partition %s are off' END, u.leaf),
                pg_catalog.format('SELECT pgembed.sync(%L);', u.leaf)
            FROM pgembed._unsure_partitions(embedding) AS u
        LOOP
            RETURN NEXT;
        END LOOP;
    END IF;

    part := 'copy';
    FOR named, remedy IN
        SELECT o.relation, string_agg(pg_catalog.format('DROP TRIGGER %I ON %s;', t.tgname, o.relation::regclass), ' ')
        FROM pgembed._tables_of(embedding.id) AS o JOIN pg_catalog.pg_trigger AS t ON t.tgrelid = o.relation
            AND t.tgname ~ pg_catalog.format('^(zzz_)?pgembed_%s_', embedding.id)
        WHERE o.relation <> embedding.relation GROUP BY o.relation
    LOOP
        ok := false;
        finding := pg_catalog.format('%s has its triggers too, as a dump of one table brings them along', named);
        RETURN NEXT;
    END LOOP;

    FOR named IN SELECT i.inhparent::regclass::text FROM pg_catalog.pg_class AS c
        JOIN pg_catalog.pg_inherits AS i ON i.inhrelid = c.oid WHERE c.oid = relation AND c.relispartition LOOP
        part := 'partition';
        ok := false;
        finding := pg_catalog.format('it is a partition of %s now, through which rows come unseen', named);
        remedy := pg_catalog.format('Take it out (ALTER TABLE %s DETACH PARTITION %s;), detach it (SELECT '
            'pgembed.detach(%L, %L);), put it back, and attach to %1$s instead.', named, relation, relation,
            embedding.target);
        RETURN NEXT;
    END LOOP;

    IF embedding.storage = 'side'
        AND pgembed._side_of(embedding, embedding.relation) IS DISTINCT FROM embedding.side THEN
        part := 'side table';
        ok := false;
        finding := 'the table of its vectors is not where the catalog has it';
        remedy := CASE WHEN pgembed._side_of(embedding, embedding.relation) IS NULL
            THEN pg_catalog.format('SELECT pgembed.sync(%L);', relation) ELSE 'SELECT pgembed.sync();' END;
        RETURN NEXT;
        RETURN;
    END IF;

    IF EXISTS (SELECT FROM pg_catalog.pg_inherits AS i JOIN pg_catalog.pg_class AS c ON c.oid = i.inhparent
        WHERE i.inhparent = embedding.relation AND c.relkind = 'r') THEN
        part := 'inheritance';
        ok := false;
        finding := 'other tables inherit from it now, whose rows have keys of their own';
        remedy := pg_catalog.format('Take them off (ALTER TABLE ... NO INHERIT %s), or detach it and attach to each of them.',
            relation);
        RETURN NEXT;
    END IF;

    IF pgembed._side_is_open(embedding) THEN
        part := 'side table';
        ok := false;
        finding := 'row-level security was switched on for the table and not for its vectors';
        remedy := pgembed._asking((SELECT c.relowner FROM pg_catalog.pg_class AS c WHERE c.oid = embedding.side))
            || 'SELECT pgembed.sync();';
        RETURN NEXT;
    END IF;

    RETURN QUERY SELECT 'rights', r.* FROM pgembed._examine_rights('worker', embedding) AS r;
    IF NOT EXISTS (SELECT FROM pgembed._objects_of('worker', quote_ident(current_user)::regrole, embedding, true) AS m
        WHERE m.reads) THEN
        RETURN QUERY SELECT * FROM pgembed._examine_progress(embedding);
    END IF;
END
$$;

-- Whether an embedding has its queue, and its triggers may write it; no row where they may. Called by _examine.
CREATE OR REPLACE FUNCTION pgembed._examine_log(embedding pgembed.embedding)
RETURNS TABLE (finding text, remedy text)
LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT f.finding, format('SELECT pgembed.sync(%L);', (embedding).relation::regclass)
    FROM (
        SELECT CASE
            WHEN pgembed._queue_is_gone((embedding).id)
                THEN format('pgembed.change_%s and pgembed.job_%1$s are not both there', (embedding).id)
            ELSE (SELECT format('its triggers run as %s, who may not write pgembed.change_%s: changes are missed',
                    string_agg(a.role::text, ', '), (embedding).id)
                FROM pgembed._appending_roles((embedding).id) AS a WHERE NOT a.may HAVING count(*) > 0) END
    ) AS f (finding)
    WHERE f.finding IS NOT NULL;
END;

-- How far an embedding is, and who works on it: its queue, leases, failures and index. Called by doctor.
CREATE OR REPLACE FUNCTION pgembed._examine_progress(embedding pgembed.embedding)
RETURNS TABLE (part text, ok boolean, finding text, remedy text)
LANGUAGE plpgsql
AS $$
DECLARE
    relation regclass := embedding.relation;
    state pgembed.status;
    workers bigint;
    stale bigint;
    since interval;
    unseen bigint;
    valid bigint;
    invalid text;
BEGIN
    SELECT * INTO state FROM pgembed.status AS s WHERE s.id = embedding.id;
    SELECT count(*) INTO workers FROM pg_catalog.pg_stat_activity
    WHERE datname = current_database() AND application_name = 'pgembed worker';

    part := 'queue';
    finding := pg_catalog.format('%s, %s queued, %s claimed, oldest wait %s, %s',
        state.state, state.queued, state.claimed, coalesce(date_trunc('second', state.oldest_wait)::text, 'none'),
        CASE workers WHEN 0 THEN 'no worker is connected' ELSE 'workers are connected' END);
    remedy := CASE
        WHEN state.queued = 0 AND state.state <> 'backfill' THEN NULL
        WHEN state.state = 'paused' THEN pg_catalog.format('Workers leave it alone while it is paused. It goes on after: '
            'SELECT pgembed.resume(%L, %L);', relation, embedding.target)
        WHEN workers = 0 THEN 'No worker runs. Start one: pgembed worker'
        WHEN state.state <> 'resting' AND state.oldest_wait >= interval '10 minutes' THEN
            'The workers that run do not keep up, were started with --embedding for others, or are in trouble with this '
            'one: their log says so. Start more: pgembed worker'
    END;
    ok := remedy IS NULL;
    RETURN NEXT;

    EXECUTE pg_catalog.format('SELECT count(*), date_trunc(''second'', now() - min(claimed_until)) FROM pgembed.%I '
        'WHERE claimed_until < now() - interval ''5 minutes''', 'job_' || embedding.id)
    INTO stale, since;
    part := 'leases';
    ok := stale = 0 OR state.state = 'paused';
    finding := CASE stale WHEN 0 THEN 'none ran out' ELSE
        pg_catalog.format('%s claimed by a worker that did not finish, the first ran out %s ago', stale, since) END;
    remedy := CASE WHEN ok THEN NULL
        WHEN workers = 0 THEN 'The worker that had them is gone, and the next takes them up: pgembed worker'
        ELSE pg_catalog.format('The workers that are connected do not take them up: they hang, or were started with '
            '--embedding for others. Look at their log and start one for these: pgembed worker --embedding %s',
            embedding.table_name || '.' || embedding.target) END;
    RETURN NEXT;

    part := 'failures';
    ok := state.failed = 0;
    finding := pg_catalog.format('%s failed', state.failed);
    remedy := CASE WHEN NOT ok THEN pg_catalog.format(
        'See SELECT * FROM pgembed.failures; then SELECT pgembed.retry(%L, %L);', relation, embedding.target) END;
    RETURN NEXT;

    IF state.state = 'ready' AND state.exact THEN
        EXECUTE pg_catalog.format('SELECT count(*) FROM (SELECT FROM %s AS t WHERE %s LIMIT 1000) AS u', relation,
            pgembed._unseen_sql(embedding))
        INTO unseen;
        part := 'rows';
        ok := unseen = 0;
        finding := CASE unseen WHEN 0 THEN 'none without a vector that does not wait'
            ELSE pg_catalog.format('%s%s without a vector that do not wait: no trigger saw them', unseen,
                CASE unseen WHEN 1000 THEN ' or more' ELSE '' END) END;
        remedy := CASE WHEN NOT ok THEN pg_catalog.format('SELECT pgembed.reconcile(%L, %L);', relation,
            embedding.target) END;
        RETURN NEXT;
    END IF;

    IF embedding.storage = 'side' AND state.state = 'ready' AND state.exact
        AND (SELECT c.reltuples < 1000000 FROM pg_catalog.pg_class AS c WHERE c.oid = embedding.side) THEN
        EXECUTE pg_catalog.format('SELECT count(*) FROM (SELECT FROM %s LIMIT 1000) AS u',
            pgembed._left_over_sql(embedding))
        INTO unseen;
        part := 'vectors';
        ok := unseen = 0;
        finding := CASE unseen WHEN 0 THEN 'none without a row'
            ELSE pg_catalog.format('%s%s without a row: no trigger saw it go', unseen,
                CASE unseen WHEN 1000 THEN ' or more' ELSE '' END) END;
        remedy := CASE WHEN NOT ok THEN pg_catalog.format('SELECT pgembed.reconcile(%L, %L);', relation,
            embedding.target) END;
        RETURN NEXT;
    END IF;

    SELECT count(*) FILTER (WHERE i.indisvalid),
        string_agg(i.indexrelid::regclass::text, ', ') FILTER (WHERE NOT i.indisvalid AND NOT EXISTS (
            SELECT FROM pg_catalog.pg_stat_progress_create_index AS p WHERE p.index_relid = i.indexrelid))
    INTO valid, invalid
    FROM pg_catalog.pg_index AS i
    JOIN pg_catalog.pg_class AS c ON c.oid = i.indexrelid
    JOIN pg_catalog.pg_am AS m ON m.oid = c.relam AND m.amname IN ('hnsw', 'ivfflat')
    JOIN pg_catalog.pg_attribute AS a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]
    WHERE (i.indrelid, a.attname) IN (SELECT v.relation, v.column_name FROM pgembed._vectors_of(embedding) AS v);
    part := 'index';
    ok := (valid > 0 OR state.ready < 1000) AND invalid IS NULL;
    finding := CASE WHEN invalid IS NOT NULL THEN pg_catalog.format('%s invalid vector index, %s',
            CASE valid WHEN 0 THEN 'only an' ELSE 'an' END, invalid)
        WHEN valid > 0 THEN 'vector index there'
        ELSE pg_catalog.format('no vector index, %s vectors', state.ready) END;
    remedy := CASE WHEN NOT ok THEN pg_catalog.format('pgembed index %s, or in psql: %sSELECT pgembed.index_sql(%L, %L) \gexec',
        relation, 'DROP INDEX ' || invalid || '; ', relation, embedding.target) END;
    RETURN NEXT;
END
$$;
