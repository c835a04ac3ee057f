-- Putting an embedding right after its table was altered: what names a column, a type or a table is made anew.

-- Take pgembed's triggers off a table: for a migration that changes a column they name, which Postgres refuses while
-- they are there. What changes until pgembed.sync('the table') puts them back is queued by that:
--
--     BEGIN;
--     SELECT pgembed.unhook('product');
--     ALTER TABLE product ALTER title TYPE varchar(200);
--     SELECT pgembed.sync('product');
--     COMMIT;
CREATE OR REPLACE FUNCTION pgembed.unhook(relation regclass) RETURNS integer
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET lock_timeout = '2s'
AS $$
DECLARE
    embedding pgembed.embedding;
    hooked integer := 0;
BEGIN
    PERFORM pgembed._lock_table(relation);
    FOREACH embedding IN ARRAY pgembed._embeddings(relation, NULL) LOOP
        PERFORM pgembed._drop_triggers(embedding.id);
        hooked := hooked + 1;
    END LOOP;
    RETURN hooked;
END
$$;

-- Make an embedding's parts anew from the catalog, after whatever happened to its table: triggers, the queue where it
-- is gone or its key has another type, the vector column where it was dropped, numbers and names of columns. Also for a
-- table that took the place of the one that was attached to, under the same name. Rows are queued again, unless
-- `requeue` is false: no trigger saw what happened meanwhile. Returns how many embeddings the table has.
--
-- Of a partition, which came with rows or had its triggers off, the rows of this partition alone.
CREATE OR REPLACE FUNCTION pgembed.sync(relation regclass, requeue boolean DEFAULT true) RETURNS integer
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET lock_timeout = '2s'
AS $$
DECLARE
    embedding pgembed.embedding;
    root CONSTANT regclass := pgembed._covering_root(relation);
    synced integer := 0;
BEGIN
    IF root IS NOT NULL THEN
        RETURN pgembed._sync_partition(relation, root, requeue);
    END IF;
    PERFORM pgembed._check_table(relation);
    PERFORM pgembed._lock_table(relation);
    PERFORM pgembed._adopt(relation);
    FOREACH embedding IN ARRAY pgembed._embeddings(relation, NULL) LOOP
        PERFORM pgembed._renew(embedding, requeue);
        synced := synced + 1;
    END LOOP;
    PERFORM pgembed._keep_searches();
    RETURN synced;
END
$$;

-- Give a table the embeddings of the one that had its name before, where that one is gone or has another name now and
-- has no trigger of theirs. Called by sync.
CREATE OR REPLACE FUNCTION pgembed._adopt(relation regclass) RETURNS void
LANGUAGE plpgsql
AS $$
BEGIN
    UPDATE pgembed.embedding AS e
    SET relation = _adopt.relation, inputs = pgembed._renumbered(_adopt.relation, e.inputs)
    FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
    WHERE c.oid = _adopt.relation AND e.schema_name = n.nspname AND e.table_name = c.relname
        AND e.relation IS DISTINCT FROM c.oid AND coalesce(pgembed._table_of(e.id), c.oid) = c.oid;
END
$$;

-- Make one embedding's parts anew. Called by sync, which has locked the table.
CREATE OR REPLACE FUNCTION pgembed._renew(embedding pgembed.embedding, requeue boolean) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    relation CONSTANT regclass := embedding.relation;
    keys CONSTANT jsonb := pgembed._key_columns(relation);
    new_inputs CONSTANT jsonb := pgembed._found_again(relation, embedding.inputs);
    retyped CONSTANT boolean := pgembed._key_types(keys) IS DISTINCT FROM pgembed._key_types(embedding.key_columns);
    queueless CONSTANT boolean := pgembed._queue_is_gone(embedding.id);
    always CONSTANT text := pgembed._always_sql(embedding.id);
    emptied boolean;
    missed boolean;
BEGIN
    PERFORM pgembed._check_types(relation, new_inputs);
    PERFORM pgembed._drop_triggers(embedding.id);
    UPDATE pgembed.embedding AS e
    SET schema_name = n.nspname, table_name = c.relname, key_columns = keys, inputs = new_inputs,
        side = coalesce(pgembed._side_of(e, c.oid), e.side)
    FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
    WHERE c.oid = embedding.relation AND e.id = embedding.id
    RETURNING e.* INTO embedding;
    emptied := pgembed._renew_place(embedding);
    SELECT * INTO embedding FROM pgembed.embedding AS e WHERE e.id = embedding.id; -- its side table may be another
    IF retyped OR queueless THEN
        PERFORM pgembed._lock_queue(embedding.id);
        EXECUTE format('DROP TABLE IF EXISTS pgembed.%I, pgembed.%I', 'change_' || embedding.id,
            'job_' || embedding.id);
        DELETE FROM pgembed.failure AS f WHERE f.embedding = _renew.embedding.id;
        PERFORM pgembed._create_queue(embedding.id, keys);
    END IF;
    IF retyped OR queueless OR emptied THEN
        PERFORM pgembed._grant_remembered(embedding);
    END IF;
    PERFORM pgembed._create_triggers(embedding.id);
    EXECUTE always;
    WITH gone AS (DELETE FROM pgembed.missed AS m WHERE m.embedding = _renew.embedding.id RETURNING 1)
    SELECT EXISTS (SELECT FROM gone) INTO missed;
    IF requeue OR retyped OR queueless OR emptied OR missed THEN
        PERFORM pgembed._queue_all(embedding, relation);
        IF embedding.storage = 'side' THEN
            PERFORM pgembed._queue_left_over(embedding);
        END IF;
    END IF;
END
$$;

-- Whether one of the two tables of an embedding's queue is gone. Called by _renew and doctor.
CREATE OR REPLACE FUNCTION pgembed._queue_is_gone(embedding_id integer) RETURNS boolean
LANGUAGE sql STABLE
RETURN (SELECT count(*) < 2 FROM pg_catalog.pg_class AS c
    WHERE c.relnamespace = 'pgembed'::regnamespace
        AND c.relname IN ('change_' || embedding_id, 'job_' || embedding_id));

-- The statements that have those triggers of an embedding fire always that do now, as on a logical subscriber that
-- makes vectors of its own. Called by _renew, which makes the triggers anew.
CREATE OR REPLACE FUNCTION pgembed._always_sql(embedding_id integer) RETURNS text
LANGUAGE sql STABLE
RETURN (SELECT coalesce(string_agg(format('ALTER TABLE ONLY %s ENABLE ALWAYS TRIGGER %I', t.tgrelid::regclass,
        t.tgname), '; '), '')
    FROM pg_catalog.pg_trigger AS t
    WHERE t.tgenabled = 'A' AND t.tgname ~ format('^(zzz_)?pgembed_%s_', embedding_id));

-- See that there is a place for an embedding's vectors: its column, or a side table whose key has the types of the
-- table's; true where it is new. Called by _renew.
CREATE OR REPLACE FUNCTION pgembed._renew_place(embedding pgembed.embedding) RETURNS boolean
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    relation CONSTANT regclass := embedding.relation;
    dim CONSTANT integer := pgembed._wide_dim((pgembed._encoder(embedding.encoder)).dim, embedding.fusion);
    retype text;
    renamed text;
BEGIN
    IF embedding.storage = 'side' THEN
        IF pgembed._side_of(embedding, relation) IS NOT NULL THEN
            SELECT string_agg(format('ALTER COLUMN %I TYPE %s USING %1$I::%2$s', s.attname,
                format_type(t.atttypid, t.atttypmod)), ', ')
            INTO retype
            FROM pgembed._side_keys(embedding) AS k
            JOIN pg_catalog.pg_attribute AS s ON s.attrelid = embedding.side AND s.attname = k.side_name
            JOIN pg_catalog.pg_attribute AS t ON t.attrelid = relation AND t.attname = k.row_name
            WHERE (s.atttypid, s.atttypmod) IS DISTINCT FROM (t.atttypid, t.atttypmod);
            IF retype IS NULL AND pgembed._side_fits(embedding) THEN
                RETURN false;
            ELSIF pgembed._side_fits(embedding) THEN
                BEGIN
                    EXECUTE format('ALTER TABLE %s %s', embedding.side::regclass, retype);
                    RETURN false;
                EXCEPTION WHEN cannot_coerce OR data_exception OR unique_violation OR undefined_function THEN
                    NULL; -- other keys than those that its vectors have: it is made anew
                END;
            END IF;
            PERFORM pgembed._drop_side(embedding, relation);
        END IF;
        PERFORM pgembed._create_side(embedding.id, dim);
        RETURN true;
    END IF;
    IF EXISTS (SELECT FROM pg_catalog.pg_attribute AS a
        WHERE a.attrelid = relation AND a.attname = embedding.target AND NOT a.attisdropped) THEN
        PERFORM pgembed._check_place(embedding, relation, 'written to');
        RETURN false;
    END IF;
    SELECT string_agg(quote_literal(a.attname), ', ' ORDER BY a.attnum) INTO renamed
    FROM pg_catalog.pg_attribute AS a
    WHERE a.attrelid = relation AND NOT a.attisdropped AND a.atttypid = '@extschema:vector@.vector'::regtype
        AND a.atttypmod = dim
        AND a.attname NOT IN (SELECT e.target FROM pgembed.embedding AS e WHERE e.relation = embedding.relation);
    IF renamed IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'undefined_column',
            MESSAGE = format('Table %s has no column ''%s'' any more; renamed, it may be %s.', relation,
                embedding.target, renamed),
            HINT = 'Rename it back. Or, if its vectors may go: drop it, and call sync again.';
    END IF;
    EXECUTE format('ALTER TABLE %s ADD COLUMN %I @extschema:vector@.vector(%s)', relation, embedding.target, dim);
    RETURN true;
END
$$;

-- Whether a side table has as many key columns as the table. Called by _renew_place.
CREATE OR REPLACE FUNCTION pgembed._side_fits(embedding pgembed.embedding) RETURNS boolean
LANGUAGE sql STABLE
RETURN (SELECT count(*) FROM pgembed._side_keys(embedding)) = jsonb_array_length((embedding).key_columns)
    AND (SELECT cardinality(k.conkey) FROM pg_catalog.pg_constraint AS k WHERE k.conrelid = (embedding).side
        AND k.conname = pgembed._side_constraint((embedding).id))
        = jsonb_array_length((embedding).key_columns) + ((embedding).parts IS NOT NULL)::integer;

-- Refuse inputs whose columns have other types now, of which no such input can be made. Called by _renew and doctor.
CREATE OR REPLACE FUNCTION pgembed._check_types(relation regclass, inputs jsonb) RETURNS void
LANGUAGE plpgsql STABLE
AS $$
DECLARE
    misfit record;
BEGIN
    SELECT a.attname, format_type(a.atttypid, a.atttypmod) AS type, i.key AS modality INTO misfit
    FROM jsonb_each(inputs) AS i
    CROSS JOIN jsonb_each_text(i.value -> 'columns') AS c
    JOIN pg_catalog.pg_attribute AS a ON a.attrelid = relation AND a.attnum = c.value::smallint
    CROSS JOIN LATERAL pgembed._picture_form(a.atttypid, i.value ->> 'as') AS p
    WHERE CASE WHEN i.key = 'text' THEN pgembed._base_type(a.atttypid) = 'bytea'::regtype
        ELSE p.form IS NULL OR p.is_list <> (i.value ? 'list') END
    LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION USING ERRCODE = 'datatype_mismatch',
            MESSAGE = format('Column ''%s'' of %s is %s now, of which no %s can be made as before.', misfit.attname,
                relation, misfit.type, misfit.modality),
            HINT = 'Change its type back, or detach the embedding and attach another.';
    END IF;
    PERFORM pgembed._input_sql(relation, inputs, key) FROM jsonb_object_keys(inputs) AS key; -- parts of json and xml
END
$$;

-- The types and the number of a key's columns, to see whether they changed. Called by _renew.
CREATE OR REPLACE FUNCTION pgembed._key_types(keys jsonb) RETURNS jsonb
LANGUAGE sql IMMUTABLE
RETURN (SELECT jsonb_agg(key -> 'type' ORDER BY ordinal)
    FROM jsonb_array_elements(keys) WITH ORDINALITY AS k (key, ordinal));

-- The inputs of an embedding with each column by the number that it had, or where that column is gone the one that has
-- its name now. Called by _renew.
CREATE OR REPLACE FUNCTION pgembed._found_again(relation regclass, inputs jsonb) RETURNS jsonb
LANGUAGE plpgsql STABLE
AS $$
DECLARE
    lost text;
BEGIN
    SELECT string_agg(DISTINCT quote_literal(c.key), ', ') INTO lost
    FROM jsonb_each(inputs) AS i CROSS JOIN jsonb_each_text(i.value -> 'columns') AS c
    WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_attribute AS a
        WHERE a.attrelid = relation AND NOT a.attisdropped AND (a.attnum = c.value::smallint OR a.attname = c.key));
    IF lost IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'undefined_column',
            MESSAGE = format('Table %s has no column %s any more, from which its vectors are made.', relation, lost),
            HINT = 'Add it again, or detach the embedding and attach another.';
    END IF;
    RETURN (
        SELECT jsonb_object_agg(i.key, i.value || jsonb_build_object('columns', coalesce((
            SELECT jsonb_object_agg(c.key, coalesce(
                (SELECT a.attnum FROM pg_catalog.pg_attribute AS a
                    WHERE a.attrelid = relation AND NOT a.attisdropped AND a.attnum = c.value::smallint),
                (SELECT a.attnum FROM pg_catalog.pg_attribute AS a
                    WHERE a.attrelid = relation AND NOT a.attisdropped AND a.attname = c.key)))
            FROM jsonb_each_text(i.value -> 'columns') AS c), '{}')))
        FROM jsonb_each(inputs) AS i
    );
END
$$;

-- What of a table is not as an embedding of it needs it, and sync cannot or can put right; no row where all is. Called
-- by doctor.
CREATE OR REPLACE FUNCTION pgembed._examine_columns(embedding pgembed.embedding)
RETURNS TABLE (finding text, remedy text)
LANGUAGE plpgsql
AS $$
DECLARE
    keys jsonb;
    missed bigint := 0;
BEGIN
    BEGIN
        keys := pgembed._key_columns(embedding.relation);
        PERFORM pgembed._check_types(embedding.relation, pgembed._found_again(embedding.relation, embedding.inputs));
    EXCEPTION WHEN undefined_column OR datatype_mismatch OR object_not_in_prerequisite_state THEN
        finding := SQLERRM;
        GET STACKED DIAGNOSTICS remedy = PG_EXCEPTION_HINT;
        RETURN NEXT;
        RETURN;
    END;
    IF has_table_privilege('pgembed.missed', 'SELECT') THEN
        missed := (SELECT count(*) FROM pgembed.missed AS m WHERE m.embedding = _examine_columns.embedding.id);
    END IF;
    remedy := pg_catalog.format('SELECT pgembed.sync(%L);', embedding.relation::regclass);
    finding := CASE
        WHEN missed > 0 THEN 'Triggers did not find a column or table that they name, and changes were missed.'
        WHEN pgembed._key_types(keys) IS DISTINCT FROM pgembed._key_types(embedding.key_columns)
            THEN 'The key has another type than its queue.'
        WHEN embedding.storage = 'column' AND NOT EXISTS (SELECT FROM pg_catalog.pg_attribute AS a
            WHERE a.attrelid = embedding.relation AND a.attname = embedding.target AND NOT a.attisdropped)
            THEN pg_catalog.format('The vector column ''%s'' is gone.', embedding.target)
        WHEN embedding.storage = 'side' AND EXISTS (SELECT FROM pgembed._side_keys(embedding) AS k
            JOIN pg_catalog.pg_attribute AS s ON s.attrelid = embedding.side AND s.attname = k.side_name
            JOIN pg_catalog.pg_attribute AS t ON t.attrelid = embedding.relation AND t.attname = k.row_name
            WHERE s.atttypid <> t.atttypid)
            THEN 'The key has another type than that of the side table.'
        WHEN pgembed._found_again(embedding.relation, embedding.inputs) <> embedding.inputs
            THEN 'Columns that it reads were dropped, and added again.'
    END;
    IF finding IS NOT NULL THEN
        RETURN NEXT;
    END IF;
END
$$;
