-- Attach and detach: the vector column, the queue's two tables, the triggers, and the row of the catalog.
-- They are run by owners and superusers, so they pin search_path: nothing that others made is called by mistake.

DROP FUNCTION IF EXISTS pgembed.attach(regclass, text, text, jsonb, text);
DROP FUNCTION IF EXISTS pgembed.attach(regclass, text, text, jsonb, text, text);
DROP FUNCTION IF EXISTS pgembed.attach(regclass, text, text, jsonb, text, text, text);
DROP FUNCTION IF EXISTS pgembed.attach(regclass, text, text, jsonb, text, text, text, text);
DROP FUNCTION IF EXISTS pgembed._notice_what_writing_does(regclass);
DROP FUNCTION IF EXISTS pgembed._notice_what_writing_does(regclass, text);

-- Attach an embedding to a table: make a place for its vectors, keep them true from now on, and let workers fill it
-- for the rows that are there. Returns its id at once. Everybody calls this one: psql, Python, migrations.
--
-- storage  'column' adds a vector column to the table, called target; 'side' makes a table <table>_<target> beside it,
--          which is where parts stand.
-- stale    what becomes of the vector of a row whose inputs change, until it is encoded again: 'keep' or 'null'.
-- mode     'queue' has workers encode; 'instant' encodes texts in the transaction that changes the row, without any.
-- fusion   'sum' adds the vectors of several inputs by their weights; 'concat' puts them side by side (41_fusion.sql).
-- parts    takes the input apart, so that a row has many vectors: 'chunks' of a text, 'pages', 'tiles', or with options
--          '{"kind": "chunks", "tokens": 200}' (44_parts.sql); pgembed.search_parts finds them.
CREATE OR REPLACE FUNCTION pgembed.attach(
    relation regclass,
    target text,
    encoder text,
    inputs jsonb,
    stale text DEFAULT 'keep',
    storage text DEFAULT NULL,
    mode text DEFAULT 'queue',
    fusion text DEFAULT 'sum',
    parts text DEFAULT NULL
) RETURNS integer
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET lock_timeout = '2s' -- waiting behind one long reader would block all readers that come after
AS $$
DECLARE
    model pgembed.encoder := pgembed._encoder(encoder);
    checked jsonb;
    fused jsonb;
    split jsonb;
    keys jsonb;
    space_name text;
    relation_name text;
    new_id integer;
BEGIN
    SELECT nspname, relname INTO space_name, relation_name
    FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace WHERE c.oid = relation;
    PERFORM pgembed._require_owner();
    PERFORM pgembed._check_table(relation);
    PERFORM pgembed._check_target(relation, target, model);
    IF stale NOT IN ('keep', 'null') OR stale IS NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = format('stale is ''keep'' or ''null'', not %s.', coalesce(quote_literal(stale), 'NULL')),
            HINT = '''keep'' leaves the old vector until the new one is there; ''null'' clears it at once.';
    ELSIF storage NOT IN ('column', 'side') THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = format('storage is ''column'' or ''side'', not %L.', storage),
            HINT = '''column'' keeps vectors in the rows; ''side'' keeps them in a table of their own.';
    ELSIF mode NOT IN ('queue', 'instant') OR mode IS NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = format('mode is ''queue'' or ''instant'', not %s.', coalesce(quote_literal(mode), 'NULL')),
            HINT = '''queue'' has workers encode; ''instant'' encodes texts in the transaction that changes the row.';
    END IF;
    checked := pgembed._checked_inputs(relation, model, inputs);
    split := pgembed._checked_parts(parts, checked, storage, mode);
    storage := coalesce(storage, CASE WHEN split IS NULL THEN 'column' ELSE 'side' END);
    fused := pgembed._checked_fusion(model, checked, fusion);
    IF mode = 'instant' THEN
        PERFORM pgembed._check_instant(relation, model, checked, stale, storage);
    END IF;
    IF storage = 'side' THEN
        PERFORM pgembed._check_side(relation, target, stale, split);
    END IF;
    IF stale = 'null' THEN
        PERFORM pgembed._check_none_generated(relation, checked);
    END IF;
    keys := pgembed._key_columns(relation);
    PERFORM pgembed._lock_table(relation);
    PERFORM pgembed._check_target(relation, target, model); -- again: another attach may have been faster
    INSERT INTO pgembed.embedding
        (schema_name, table_name, relation, target, encoder, inputs, key_columns, stale, storage, mode, fusion, parts)
    VALUES (space_name, relation_name, relation, target, encoder, checked, keys, stale, storage, mode, fused, split)
    RETURNING id INTO new_id;
    IF storage = 'side' THEN
        PERFORM pgembed._create_side(new_id, pgembed._wide_dim(model.dim, fused));
    ELSE
        EXECUTE format('ALTER TABLE %s ADD COLUMN %I @extschema:vector@.vector(%s)', relation, target,
            pgembed._wide_dim(model.dim, fused));
    END IF;
    PERFORM pgembed._create_queue(new_id, keys);
    PERFORM pgembed._create_triggers(new_id);
    PERFORM pgembed._keep_searches();
    PERFORM pgembed._grant_remembered(e) FROM pgembed.embedding AS e WHERE e.id = new_id;
    PERFORM pgembed._notice_what_writing_does(relation, storage, mode);
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
    attached pgembed.embedding;
BEGIN
    PERFORM pgembed._require_owner();
    attached := pgembed._embedding(relation, target);
    PERFORM pgembed._detach(attached, relation);
END
$$;

-- Detach an embedding from the table that carries its triggers. Called by detach and uninstall.
CREATE OR REPLACE FUNCTION pgembed._detach(attached pgembed.embedding, relation regclass) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM pgembed._lock_table(relation);
    PERFORM pgembed._revoke_remembered(attached, relation);
    IF attached.storage = 'side' THEN
        PERFORM pgembed._drop_side(attached, relation);
    ELSE
        PERFORM pgembed._check_place(attached, relation, 'dropped');
        EXECUTE format('ALTER TABLE %s DROP COLUMN IF EXISTS %I', relation, attached.target);
    END IF;
    PERFORM pgembed._drop_queue(attached.id);
    DELETE FROM pgembed.embedding WHERE id = attached.id;
    PERFORM pgembed._grant_remembered(e) FROM pgembed.embedding AS e WHERE e.relation = _detach.relation;
    PERFORM pgembed._keep_searches();
END
$$;

-- Forget an embedding whose table is gone; what is left of its queue is dropped.
CREATE OR REPLACE FUNCTION pgembed.forget(embedding_id integer) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    relation regclass := pgembed._table_of(embedding_id);
    forgotten pgembed.embedding;
BEGIN
    IF relation IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'object_in_use',
            MESSAGE = format('Table %s of embedding %s is still there.', relation, embedding_id),
            HINT = format('Detach it: SELECT pgembed.detach(%L, ...);', relation);
    END IF;
    PERFORM pgembed._drop_queue(embedding_id);
    DELETE FROM pgembed.embedding WHERE id = embedding_id RETURNING * INTO forgotten;
    IF forgotten.storage = 'side' THEN
        PERFORM pgembed._drop_side(forgotten, NULL);
    END IF;
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
    relation regclass;
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
        relation := coalesce(pgembed._table_of(embedding.id), pgembed._unhooked_table(embedding));
        IF relation IS NULL THEN
            PERFORM pgembed.forget(embedding.id);
        ELSE
            PERFORM pgembed._detach(embedding, relation);
        END IF;
    END LOOP;
    names := pgembed._dependents();
    IF names IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'dependent_objects_still_exist',
            MESSAGE = format('Objects outside the schema pgembed use it: %s.', names),
            HINT = 'Drop or change them first.';
    END IF;
    PERFORM pgembed._drop_dblink();
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
        MESSAGE = pg_catalog.format('Table %s has several embeddings: %s.', relation,
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
        WHEN found_class.relkind = 'r' AND EXISTS (SELECT FROM pg_catalog.pg_inherits WHERE inhparent = relation)
            THEN 'a table that others inherit from'
    END;
    IF problem IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'wrong_object_type',
            MESSAGE = format('%s is %s; an embedding needs an ordinary table.', relation, problem),
            HINT = CASE
            WHEN found_class.relkind IN ('v', 'm') THEN 'Attach to the table under it.'
            WHEN found_class.relispartition THEN 'Attach to the partitioned table that it is part of.'
            WHEN found_class.relkind = 'r' AND found_class.relpersistence <> 't'
                THEN 'Attach to each table that inherits from it, which has a key of its own.'
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
    ELSIF EXISTS (SELECT FROM pgembed.embedding AS e WHERE e.relation = _check_target.relation
        AND e.target = _check_target.target) THEN
        RAISE EXCEPTION USING ERRCODE = 'duplicate_object',
            MESSAGE = format('Table %s has an embedding ''%s'' already.', relation, target),
            HINT = 'Choose another target, or detach that one.';
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
        WHEN b.base IN ('smallint'::regtype, 'integer'::regtype) THEN 'bigint'
        ELSE pgembed._type_sql(b.base, a.attcollation) END) ORDER BY k.ordinal)
    INTO keys
    FROM pg_catalog.pg_index AS i
    CROSS JOIN unnest(i.indkey::smallint[]) WITH ORDINALITY AS k (attnum, ordinal)
    JOIN pg_catalog.pg_attribute AS a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
    CROSS JOIN LATERAL (SELECT pgembed._base_type(a.atttypid) AS base) AS b -- no CHECK of the user's runs in its triggers
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

-- What an update of a row of a table sets off: its triggers and the publications that tell of it, each as a list of
-- names or NULL, and how many indexes have a new entry, those of vectors left out. Called by advise_storage and attach.
CREATE OR REPLACE FUNCTION pgembed._set_off_by_updates(
    relation regclass,
    OUT triggers text,
    OUT publications text,
    OUT indexes bigint
)
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    tables CONSTANT oid[] := ARRAY( -- with its partitions, whose rows are written
        SELECT relation::oid UNION SELECT p.relid FROM pg_partition_tree(relation) AS p);
BEGIN
    SELECT string_agg(DISTINCT tgname, ', ') INTO triggers FROM pg_trigger AS t
    WHERE t.tgrelid = ANY (tables) AND NOT t.tgisinternal AND t.tgtype & 16 <> 0
        AND t.tgname !~ '^(zzz_)?pgembed_[0-9]+_';
    SELECT string_agg(quote_ident(p.pubname), ', ' ORDER BY p.pubname) INTO publications FROM pg_publication AS p
    WHERE p.pubupdate AND EXISTS (SELECT FROM pg_get_publication_tables(p.pubname::text) AS published
        WHERE published.relid = ANY (tables));
    SELECT count(*) INTO indexes FROM pg_index AS i JOIN pg_class AS c ON c.oid = i.indexrelid
    JOIN pg_am AS m ON m.oid = c.relam
    WHERE i.indrelid = relation AND m.amname NOT IN ('hnsw', 'ivfflat');
END
$$;

-- Tell the person who attaches what writing vectors will set off, and what would set off less.
CREATE OR REPLACE FUNCTION pgembed._notice_what_writing_does(relation regclass, storage text, mode text) RETURNS void
LANGUAGE plpgsql STABLE
AS $$
DECLARE
    sets_off record;
    advice record;
BEGIN
    IF mode = 'instant' THEN
        RETURN; -- vectors are part of what the application writes anyway
    ELSIF storage = 'column' THEN
        sets_off := pgembed._set_off_by_updates(relation);
        IF sets_off.triggers IS NOT NULL THEN
            RAISE NOTICE USING
                MESSAGE = format('Writing a vector updates the row of %s, which fires its triggers: %s.', relation,
                    sets_off.triggers),
                HINT = 'A side table fires none: detach, and attach again with storage => ''side''.';
        END IF;
        IF sets_off.publications IS NOT NULL THEN
            RAISE NOTICE USING
                MESSAGE = format('Writing a vector updates the row of %s, which is published: %s.', relation,
                    sets_off.publications),
                HINT = 'Whoever reads changes sees each row twice. With a side table they do not: detach, and attach '
                    'again with storage => ''side''.';
        END IF;
        advice := pgembed.advise_storage(relation);
        IF sets_off.triggers IS NULL AND sets_off.publications IS NULL AND advice.storage = 'side' THEN
            RAISE NOTICE USING
                MESSAGE = format('%s: %s', relation, advice.reason),
                HINT = 'A side table has one: detach, and attach again with storage => ''side''.';
        END IF;
    END IF;
    IF (SELECT relrowsecurity FROM pg_catalog.pg_class WHERE oid = relation) THEN
        RAISE NOTICE 'Table % has row-level security: the role of the worker needs BYPASSRLS, or must own the table.',
            relation;
    END IF;
END
$$;
