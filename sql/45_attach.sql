-- Attach and detach: the vector column, the queue's two tables, the triggers, and the row of the catalog.
-- They are run by owners and superusers, so they pin search_path: nothing that others made is called by mistake.

-- Attach an embedding to a table: add the vector column, keep it true from now on, and let workers fill it for the
-- rows that are there. Returns its id at once. Everybody calls this one: psql, Python, migrations.
CREATE OR REPLACE FUNCTION pgembed.attach(
    relation regclass,
    target text,
    encoder text,
    inputs jsonb,
    stale text DEFAULT 'keep'
) RETURNS integer
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET lock_timeout = '2s' -- waiting behind one long reader would block all readers that come after
AS $$
DECLARE
    model pgembed.encoder := pgembed._encoder(encoder);
    checked jsonb;
    keys jsonb;
    space_name text;
    relation_name text;
    new_id integer;
BEGIN
    SELECT nspname, relname INTO space_name, relation_name
    FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace WHERE c.oid = relation;
    PERFORM pgembed._check_table(relation);
    PERFORM pgembed._check_target(relation, target, model);
    IF stale NOT IN ('keep', 'null') OR stale IS NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = format('stale is ''keep'' or ''null'', not %s.', coalesce(quote_literal(stale), 'NULL')),
            HINT = '''keep'' leaves the old vector until the new one is there; ''null'' clears it at once.';
    END IF;
    checked := pgembed._checked_inputs(relation, model, inputs);
    IF stale = 'null' THEN
        PERFORM pgembed._check_none_generated(relation, checked);
    END IF;
    keys := pgembed._key_columns(relation);
    PERFORM pgembed._lock_table(relation);
    PERFORM pgembed._check_target(relation, target, model); -- again: another attach may have been faster
    INSERT INTO pgembed.embedding (schema_name, table_name, relation, target, encoder, inputs, key_columns, stale)
    VALUES (space_name, relation_name, relation, target, encoder, checked, keys, stale)
    RETURNING id INTO new_id;
    EXECUTE format('ALTER TABLE %s ADD COLUMN %I @extschema:vector@.vector(%s)', relation, target, model.dim);
    PERFORM pgembed._create_queue(new_id, keys);
    PERFORM pgembed._create_triggers(new_id);
    PERFORM pgembed._keep_searches();
    PERFORM pgembed._notice_what_writing_does(relation);
    RETURN new_id;
END
$$;

-- Detach an embedding: its vectors, queue, triggers and failures go, and the table is as it was before.
CREATE OR REPLACE FUNCTION pgembed.detach(relation regclass, target text DEFAULT NULL) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET lock_timeout = '2s'
AS $$
DECLARE
    attached pgembed.embedding := pgembed._embedding(relation, target);
BEGIN
    PERFORM pgembed._detach(attached, relation);
END
$$;

-- Detach an embedding from the table that carries its triggers. Called by detach and uninstall.
CREATE OR REPLACE FUNCTION pgembed._detach(attached pgembed.embedding, relation regclass) RETURNS void
LANGUAGE plpgsql
AS $$
BEGIN
    PERFORM pgembed._lock_table(relation);
    EXECUTE format('ALTER TABLE %s DROP COLUMN IF EXISTS %I', relation, attached.target);
    PERFORM pgembed._drop_queue(attached.id);
    DELETE FROM pgembed.embedding WHERE id = attached.id;
    PERFORM pgembed._keep_searches();
END
$$;

-- The table that carries an embedding's trigger, whatever it is called by now; NULL where it is gone.
CREATE OR REPLACE FUNCTION pgembed._table_of(embedding_id integer) RETURNS regclass
LANGUAGE sql STABLE
RETURN (SELECT t.tgrelid FROM pg_catalog.pg_trigger AS t
    JOIN pg_catalog.pg_proc AS p ON p.oid = t.tgfoid
    WHERE t.tgparentid = 0 AND t.tgname = 'pgembed_' || embedding_id || '_update'
        AND p.pronamespace = 'pgembed'::regnamespace);

-- Forget an embedding whose table is gone; what is left of its queue is dropped.
CREATE OR REPLACE FUNCTION pgembed.forget(embedding_id integer) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    relation regclass := pgembed._table_of(embedding_id);
BEGIN
    IF relation IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'object_in_use',
            MESSAGE = format('Table %s of embedding %s is still there.', relation, embedding_id),
            HINT = format('Detach it: SELECT pgembed.detach(%L, ...);', relation);
    END IF;
    PERFORM pgembed._drop_queue(embedding_id);
    DELETE FROM pgembed.embedding WHERE id = embedding_id;
    PERFORM pgembed._keep_searches();
END
$$;

-- Remove all of pgembed from this database. Called by `pgembed uninstall`.
CREATE OR REPLACE FUNCTION pgembed.uninstall(detach_all boolean DEFAULT false) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    embedding pgembed.embedding;
    names text;
BEGIN
    SELECT string_agg(format('%I.%I.%I', e.schema_name, e.table_name, e.target), ', ' ORDER BY e.id) INTO names
    FROM pgembed.embedding AS e;
    IF names IS NOT NULL AND NOT detach_all THEN
        RAISE EXCEPTION USING ERRCODE = 'dependent_objects_still_exist',
            MESSAGE = format('Embeddings are attached: %s.', names),
            HINT = 'Detach them first, or run it with detach_all (on the command line: --detach-all); their vectors will be dropped.';
    END IF;
    FOR embedding IN SELECT * FROM pgembed.embedding LOOP
        IF pgembed._table_of(embedding.id) IS NULL THEN
            PERFORM pgembed.forget(embedding.id);
        ELSE
            PERFORM pgembed._detach(embedding, pgembed._table_of(embedding.id));
        END IF;
    END LOOP;
    names := pgembed._dependents();
    IF names IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'dependent_objects_still_exist',
            MESSAGE = format('Objects outside the schema pgembed use it: %s.', names),
            HINT = 'Drop or change them first.';
    END IF;
    DROP SCHEMA pgembed CASCADE;
END
$$;

-- What outside the schema pgembed uses something in it, and would go with it. Called by uninstall.
CREATE OR REPLACE FUNCTION pgembed._dependents() RETURNS text
LANGUAGE sql STABLE
BEGIN ATOMIC
    WITH own AS (
        SELECT 'pg_catalog.pg_class'::regclass AS classid, c.oid FROM pg_catalog.pg_class AS c
        WHERE c.relnamespace = 'pgembed'::regnamespace
        UNION ALL
        SELECT 'pg_catalog.pg_proc'::regclass, p.oid FROM pg_catalog.pg_proc AS p
        WHERE p.pronamespace = 'pgembed'::regnamespace
        UNION ALL
        SELECT 'pg_catalog.pg_type'::regclass, t.oid FROM pg_catalog.pg_type AS t
        WHERE t.typnamespace = 'pgembed'::regnamespace
    )
    SELECT string_agg(DISTINCT pg_describe_object(d.classid, d.objid, d.objsubid), ', ')
    FROM pg_catalog.pg_depend AS d
    JOIN own ON own.classid = d.refclassid AND own.oid = d.refobjid
    LEFT JOIN pg_catalog.pg_rewrite AS r ON d.classid = 'pg_catalog.pg_rewrite'::regclass AND r.oid = d.objid
    LEFT JOIN pg_catalog.pg_attrdef AS f ON d.classid = 'pg_catalog.pg_attrdef'::regclass AND f.oid = d.objid
    LEFT JOIN pg_catalog.pg_constraint AS k ON d.classid = 'pg_catalog.pg_constraint'::regclass AND k.oid = d.objid
    LEFT JOIN pg_catalog.pg_proc AS p ON d.classid = 'pg_catalog.pg_proc'::regclass AND p.oid = d.objid
    LEFT JOIN pg_catalog.pg_type AS t ON d.classid = 'pg_catalog.pg_type'::regclass AND t.oid = d.objid
    LEFT JOIN pg_catalog.pg_class AS c
        ON c.oid = coalesce(r.ev_class, f.adrelid, CASE d.classid WHEN 'pg_catalog.pg_class'::regclass THEN d.objid END)
    WHERE d.deptype = 'n'
        AND coalesce(c.relnamespace, k.connamespace, p.pronamespace, t.typnamespace, 0) <> 'pgembed'::regnamespace;
END;

-- The embedding of a table, by target where it has several; an error that says what there is. Called by everything
-- that takes a table's name.
CREATE OR REPLACE FUNCTION pgembed._embedding(relation regclass, target text DEFAULT NULL) RETURNS pgembed.embedding
LANGUAGE plpgsql STABLE
AS $$
DECLARE
    candidates pgembed.embedding[];
BEGIN
    SELECT array_agg(e ORDER BY e.id) INTO candidates FROM pgembed.embedding AS e
    WHERE e.relation = _embedding.relation AND (_embedding.target IS NULL OR e.target = _embedding.target);
    IF cardinality(candidates) = 1 THEN
        RETURN candidates[1];
    ELSIF candidates IS NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'undefined_object',
            MESSAGE = pg_catalog.format('Table %s has no embedding%s.', relation,
                coalesce(' named ''' || target || '''', '')),
            HINT = coalesce('It has: ' || (SELECT string_agg(e.target, ', ' ORDER BY e.id) FROM pgembed.embedding AS e
                WHERE e.relation = _embedding.relation),
                pg_catalog.format('Attach one: SELECT pgembed.attach(''%s'', ''embedding'', encoder => ''...'', inputs => ''...'');', relation));
    END IF;
    RAISE EXCEPTION USING ERRCODE = 'ambiguous_parameter',
        MESSAGE = pg_catalog.format('Table %s has %s embeddings: %s.', relation, cardinality(candidates),
            (SELECT string_agg(c.target, ', ' ORDER BY c.id) FROM unnest(candidates) AS c)),
        HINT = 'Say which: embedding => ''' || candidates[1].target || '''.';
END
$$;

-- Refuse what cannot hold an embedding: views, foreign, temporary and system tables.
CREATE OR REPLACE FUNCTION pgembed._check_table(relation regclass) RETURNS void
LANGUAGE plpgsql STABLE
AS $$
DECLARE
    found_class pg_catalog.pg_class;
    problem text;
BEGIN
    SELECT * INTO found_class FROM pg_catalog.pg_class WHERE oid = relation;
    problem := CASE
        WHEN found_class.relnamespace IN ('pg_catalog'::regnamespace, 'information_schema'::regnamespace,
            'pg_toast'::regnamespace, 'pgembed'::regnamespace) THEN 'a system table'
        WHEN found_class.relkind = 'v' THEN 'a view'
        WHEN found_class.relkind = 'm' THEN 'a materialized view'
        WHEN found_class.relkind = 'f' THEN 'a foreign table'
        WHEN found_class.relkind NOT IN ('r', 'p') THEN 'not a table'
        WHEN found_class.relpersistence = 't' THEN 'a temporary table'
        WHEN found_class.relispartition THEN 'a partition'
        WHEN EXISTS (SELECT FROM pg_catalog.pg_inherits AS i
            WHERE i.inhrelid = relation OR (i.inhparent = relation AND found_class.relkind = 'r'))
            THEN 'part of an inheritance tree'
    END;
    IF problem IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'wrong_object_type',
            MESSAGE = format('%s is %s; an embedding needs an ordinary table.', relation, problem),
            HINT = CASE
            WHEN found_class.relkind IN ('v', 'm') THEN 'Attach to the table under it.'
            WHEN found_class.relispartition THEN 'Attach to the partitioned table that it is part of.'
            ELSE 'Attach to a table that holds the rows itself.'
        END;
    END IF;
END
$$;

-- Refuse generated inputs where a BEFORE trigger would have to compare them: they are computed after it.
CREATE OR REPLACE FUNCTION pgembed._check_none_generated(relation regclass, inputs jsonb) RETURNS void
LANGUAGE plpgsql STABLE
AS $$
DECLARE
    generated text;
BEGIN
    SELECT string_agg(a.attname, ', ' ORDER BY a.attnum) INTO generated
    FROM pg_catalog.pg_attribute AS a
    JOIN pgembed._input_columns(relation, inputs) AS used ON used.column_sql = quote_ident(a.attname)
    WHERE a.attrelid = relation AND a.attgenerated <> '';
    IF generated IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'feature_not_supported',
            MESSAGE = format('Generated columns of %s (%s) cannot be watched with stale => ''null''.', relation,
                generated),
            HINT = 'Use stale => ''keep'', or name the columns that they are made from.';
    END IF;
END
$$;

-- Lock a table for what attach and detach do to it, or say why not.
CREATE OR REPLACE FUNCTION pgembed._lock_table(relation regclass) RETURNS void
LANGUAGE plpgsql
AS $$
BEGIN
    EXECUTE format('LOCK TABLE %s IN ACCESS EXCLUSIVE MODE', relation);
EXCEPTION WHEN lock_not_available THEN
    RAISE EXCEPTION USING ERRCODE = 'lock_not_available',
        MESSAGE = format('Table %s is in use by a transaction that did not end within %s.', relation,
            current_setting('lock_timeout')),
        HINT = 'Nothing was changed; try again. pg_stat_activity shows who uses it.';
END
$$;

-- Refuse a target that is taken or that no index could serve.
CREATE OR REPLACE FUNCTION pgembed._check_target(relation regclass, target text, model pgembed.encoder) RETURNS void
LANGUAGE plpgsql STABLE
AS $$
BEGIN
    IF coalesce(target, '') = '' OR octet_length(target) > 63 THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_name',
            MESSAGE = format('The target is the name of the new vector column, not %s.',
                coalesce(quote_literal(target), 'NULL')),
            HINT = 'For example ''embedding''; at most 63 bytes.';
    END IF;
    IF EXISTS (SELECT FROM pg_catalog.pg_attribute AS a
        WHERE a.attrelid = relation AND a.attname = target AND NOT a.attisdropped) THEN
        RAISE EXCEPTION USING ERRCODE = 'duplicate_column',
            MESSAGE = format('Table %s has a column ''%s'' already.', relation, target),
            HINT = 'Choose another target; attach adds the vector column itself.';
    END IF;
    IF model.dim > 2000 THEN
        RAISE EXCEPTION USING ERRCODE = 'feature_not_supported',
            MESSAGE = format('Encoder ''%s'' has %s dimensions; an HNSW index over vector holds at most 2000.',
                model.name, model.dim),
            HINT = 'Use an encoder of at most 2000 dimensions, or truncate this one in its settings where it was trained for it.';
    END IF;
END
$$;

-- The primary key's columns, in order, with the type and collation that the queue keeps them in.
CREATE OR REPLACE FUNCTION pgembed._key_columns(relation regclass) RETURNS jsonb
LANGUAGE plpgsql STABLE
AS $$
DECLARE
    keys jsonb;
BEGIN
    SELECT jsonb_agg(jsonb_build_object('name', a.attname, 'attnum', a.attnum, 'type', CASE
        WHEN a.atttypid IN ('smallint'::regtype, 'integer'::regtype) THEN 'bigint'
        ELSE pgembed._type_sql(a.atttypid, a.attcollation) END) ORDER BY k.ordinal)
    INTO keys
    FROM pg_catalog.pg_index AS i
    CROSS JOIN unnest(i.indkey::smallint[]) WITH ORDINALITY AS k (attnum, ordinal)
    JOIN pg_catalog.pg_attribute AS a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
    WHERE i.indrelid = relation AND i.indisprimary;
    IF keys IS NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'object_not_in_prerequisite_state',
            MESSAGE = format('Table %s has no primary key, by which its rows could be found again.', relation),
            HINT = format('Add one: ALTER TABLE %s ADD COLUMN id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY;',
                relation);
    END IF;
    RETURN keys;
END
$$;

-- A type and its collation as SQL that means the same under any search_path.
CREATE OR REPLACE FUNCTION pgembed._type_sql(type oid, collation_id oid) RETURNS text
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT format_type(type, -1) || CASE
        WHEN collation_id IN (0, 'pg_catalog."default"'::regcollation) THEN ''
        ELSE ' COLLATE ' || collation_id::regcollation
    END;
END;

-- The two tables of an embedding's queue: the log that triggers append to, and the jobs that workers hold. Keys stand
-- in columns key_1, key_2, ... so that no name of the user's can clash with the queue's own.
CREATE OR REPLACE FUNCTION pgembed._create_queue(embedding_id integer, keys jsonb) RETURNS void
LANGUAGE plpgsql
AS $$
DECLARE
    definition text;
    names text;
BEGIN
    SELECT string_agg(format('key_%s %s NOT NULL', ordinal, key ->> 'type'), ', ' ORDER BY ordinal),
        string_agg('key_' || ordinal, ', ' ORDER BY ordinal)
    INTO definition, names FROM jsonb_array_elements(keys) WITH ORDINALITY AS k (key, ordinal);
    EXECUTE format('CREATE TABLE pgembed.%I (seq bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, %s, '
        'changed_at timestamptz NOT NULL DEFAULT now())', 'change_' || embedding_id, definition);
    EXECUTE format('CREATE INDEX ON pgembed.%I (%s)', 'change_' || embedding_id, names);
    EXECUTE format('CREATE TABLE pgembed.%I (%s, seq bigint NOT NULL GENERATED BY DEFAULT AS IDENTITY, '
        'attempts integer NOT NULL DEFAULT 0, available_at timestamptz NOT NULL DEFAULT now(), '
        'claimed_until timestamptz, error text, PRIMARY KEY (%s)) WITH (fillfactor = 70)',
        'job_' || embedding_id, definition, names);
    EXECUTE format('CREATE UNIQUE INDEX ON pgembed.%I (seq)', 'job_' || embedding_id);
END
$$;

-- Drop the queue of an embedding and the functions of its triggers, and with them the triggers.
CREATE OR REPLACE FUNCTION pgembed._drop_queue(embedding_id integer) RETURNS void
LANGUAGE plpgsql
AS $$
BEGIN
    EXECUTE format('DROP FUNCTION IF EXISTS pgembed.%I() CASCADE', 'append_row_' || embedding_id);
    EXECUTE format('DROP FUNCTION IF EXISTS pgembed.%I() CASCADE', 'append_rows_' || embedding_id);
    EXECUTE format('DROP FUNCTION IF EXISTS pgembed.%I() CASCADE', 'clear_' || embedding_id);
    EXECUTE format('DROP TABLE IF EXISTS pgembed.%I, pgembed.%I', 'change_' || embedding_id, 'job_' || embedding_id);
END
$$;

-- True where OLD and NEW differ in one of the columns, compared as they are stored. Where the server can tell that a
-- large value was not touched by its TOAST pointer, the value itself is not read.
CREATE OR REPLACE FUNCTION pgembed._differs_sql(relation oid, names text[]) RETURNS text
LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT string_agg(
        CASE WHEN t.typlen = -1 AND a.attstorage <> 'p' AND current_setting('server_version_num')::integer >= 170000
            THEN format('CASE WHEN pg_catalog.pg_column_toast_chunk_id(OLD.%1$I) = pg_catalog.pg_column_toast_chunk_id(NEW.%1$I) '
                'THEN false ELSE %2$s END', a.attname, c.comparison)
            ELSE c.comparison
        END, ' OR ' ORDER BY a.attnum)
    FROM pg_catalog.pg_attribute AS a
    JOIN pg_catalog.pg_type AS t ON t.oid = a.atttypid
    CROSS JOIN LATERAL (
        SELECT format(CASE WHEN a.atttypid IN ('bytea'::regtype, 'smallint'::regtype, 'integer'::regtype,
            'bigint'::regtype, 'uuid'::regtype, 'boolean'::regtype) THEN 'OLD.%1$I IS DISTINCT FROM NEW.%1$I'
            ELSE 'OLD.%1$I::text COLLATE "C" IS DISTINCT FROM NEW.%1$I::text COLLATE "C"' END, a.attname) AS comparison
    ) AS c
    WHERE a.attrelid = relation AND quote_ident(a.attname) = ANY (names);
END;

-- Make the trigger functions and triggers of an embedding from the catalog. They only append keys to the log: a plain
-- INSERT, which never waits for a worker or another writer. SECURITY DEFINER, so that an application role needs no
-- grant on pgembed. No DELETE trigger: workers drop the keys that are no longer there.
CREATE OR REPLACE FUNCTION pgembed._create_triggers(embedding_id integer) RETURNS void
LANGUAGE plpgsql
AS $$
DECLARE
    embedding pgembed.embedding;
    partitioned boolean;
    key_names text[];
    input_names text[];
    differs text;
    log_columns text;
    function_head CONSTANT text := 'CREATE FUNCTION pgembed.%I() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER '
        'SET search_path = pg_catalog, pg_temp AS ';
BEGIN
    SELECT * INTO embedding FROM pgembed.embedding WHERE id = embedding_id;
    SELECT relkind = 'p' INTO partitioned FROM pg_catalog.pg_class WHERE oid = embedding.relation;
    SELECT array_agg(quote_ident(key ->> 'name') ORDER BY ordinal), string_agg('key_' || ordinal, ', ' ORDER BY ordinal)
    INTO key_names, log_columns
    FROM jsonb_array_elements(embedding.key_columns) WITH ORDINALITY AS k (key, ordinal);
    SELECT array_agg(column_sql) INTO input_names FROM pgembed._input_columns(embedding.relation, embedding.inputs);
    differs := pgembed._differs_sql(embedding.relation, input_names || key_names);

    -- A new row without inputs is appended too: it may have taken the place of a deleted one that a worker encodes now.
    EXECUTE format(function_head || '%L', 'append_row_' || embedding_id, format(
        'BEGIN INSERT INTO pgembed.%I (%s) VALUES (%s); RETURN NULL; END',
        'change_' || embedding_id, log_columns,
        (SELECT string_agg('NEW.' || name, ', ' ORDER BY o) FROM unnest(key_names) WITH ORDINALITY AS k (name, o))));
    EXECUTE format('REVOKE ALL ON FUNCTION pgembed.%I() FROM PUBLIC', 'append_row_' || embedding_id);
    EXECUTE format('CREATE TRIGGER %I AFTER UPDATE ON %s FOR EACH ROW WHEN (%s) EXECUTE FUNCTION pgembed.%I()',
        'pgembed_' || embedding_id || '_update', embedding.relation::regclass, differs, 'append_row_' || embedding_id);

    IF partitioned THEN -- a statement trigger there does not fire for a statement that names a partition
        EXECUTE format('CREATE TRIGGER %I AFTER INSERT ON %s FOR EACH ROW EXECUTE FUNCTION pgembed.%I()',
            'pgembed_' || embedding_id || '_insert', embedding.relation::regclass, 'append_row_' || embedding_id);
    ELSE
        EXECUTE format(function_head || '%L', 'append_rows_' || embedding_id, format(
            'BEGIN INSERT INTO pgembed.%I (%s) SELECT %s FROM new_rows AS new_row; RETURN NULL; END',
            'change_' || embedding_id, log_columns,
            (SELECT string_agg('new_row.' || name, ', ' ORDER BY o)
                FROM unnest(key_names) WITH ORDINALITY AS k (name, o))));
        EXECUTE format('REVOKE ALL ON FUNCTION pgembed.%I() FROM PUBLIC', 'append_rows_' || embedding_id);
        EXECUTE format('CREATE TRIGGER %I AFTER INSERT ON %s REFERENCING NEW TABLE AS new_rows '
            'FOR EACH STATEMENT EXECUTE FUNCTION pgembed.%I()',
            'pgembed_' || embedding_id || '_insert', embedding.relation::regclass, 'append_rows_' || embedding_id);
    END IF;

    IF embedding.stale = 'null' THEN
        EXECUTE format(function_head || '%L', 'clear_' || embedding_id,
            format('BEGIN NEW.%I := NULL; RETURN NEW; END', embedding.target));
        EXECUTE format('REVOKE ALL ON FUNCTION pgembed.%I() FROM PUBLIC', 'clear_' || embedding_id);
        EXECUTE format('CREATE TRIGGER %I BEFORE UPDATE ON %s FOR EACH ROW WHEN (%s) EXECUTE FUNCTION pgembed.%I()',
            'zzz_pgembed_' || embedding_id || '_clear', embedding.relation::regclass, differs,
            'clear_' || embedding_id);
    END IF;
END
$$;

-- Tell the person who attaches what writing a vector into the row will set off.
CREATE OR REPLACE FUNCTION pgembed._notice_what_writing_does(relation regclass) RETURNS void
LANGUAGE plpgsql STABLE
AS $$
DECLARE
    names text;
BEGIN
    SELECT string_agg(tgname, ', ' ORDER BY tgname) INTO names FROM pg_catalog.pg_trigger AS t
    WHERE t.tgrelid = relation AND NOT t.tgisinternal AND t.tgtype & 16 <> 0 AND t.tgname !~ '^(zzz_)?pgembed_[0-9]+_';
    IF names IS NOT NULL THEN
        RAISE NOTICE 'Writing a vector updates the row of %, which fires its triggers: %.', relation, names;
    END IF;
    IF (SELECT relrowsecurity FROM pg_catalog.pg_class WHERE oid = relation) THEN
        RAISE NOTICE 'Table % has row-level security: the role of the worker needs BYPASSRLS, or must own the table.',
            relation;
    END IF;
END
$$;
