-- Side tables: vectors in a table of their own, <table>_<target>(<key>, vector), which is known by the name of its
-- primary key; where a row has parts, that is the row's key and the part's number (44_parts.sql). Writing a vector
-- leaves the user's row as it is: no trigger of the user's fires, no row version is made, and no writer at REPEATABLE
-- READ fails.
--
-- Triggers take a vector away with its row. A foreign key would cost each vector half as much again as its write, and
-- would have TRUNCATE and DROP TABLE of the user's table fail.

DROP FUNCTION IF EXISTS pgembed._check_side(regclass, text, text);

-- Refuse what cannot have a side table. Called by attach.
CREATE OR REPLACE FUNCTION pgembed._check_side(relation regclass, target text, stale text, parts jsonb) RETURNS void
LANGUAGE plpgsql STABLE
AS $$
DECLARE
    found_class pg_catalog.pg_class;
    taken text;
BEGIN
    SELECT a.attname INTO taken
    FROM pg_catalog.pg_index AS i
    JOIN pg_catalog.pg_attribute AS a ON a.attrelid = relation AND a.attnum = ANY (i.indkey)
    WHERE i.indrelid = relation AND i.indisprimary AND (a.attname = 'vector'
        OR parts IS NOT NULL AND a.attname IN ('part', 'kind', 'location', 'content', 'hash'));
    SELECT * INTO found_class FROM pg_catalog.pg_class WHERE oid = relation;
    IF stale = 'null' THEN
        RAISE EXCEPTION USING ERRCODE = 'feature_not_supported',
            MESSAGE = 'stale => ''null'' clears a vector in the row that changes, which a side table does not have.',
            HINT = 'Leave stale out, or use storage => ''column''.';
    ELSIF NOT pg_has_role(found_class.relowner, 'USAGE') THEN
        RAISE EXCEPTION USING ERRCODE = 'insufficient_privilege',
            MESSAGE = format('Only its owner, %I, may attach an embedding to table %s.',
                pg_get_userbyid(found_class.relowner), relation),
            HINT = 'Run it as that role.';
    ELSIF taken IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'duplicate_column',
            MESSAGE = format('The key of %s has a column ''%s'', as a side table calls one of its own.', relation,
                taken),
            HINT = CASE WHEN parts IS NULL THEN 'Use storage => ''column''.' ELSE 'Rename that column.' END;
    ELSIF to_regclass(pgembed._side_name(found_class, target)) IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'duplicate_table',
            MESSAGE = format('There is a relation %s already, as the side table would be called.',
                pgembed._side_name(found_class, target)),
            HINT = 'Choose another target, or rename that relation.';
    END IF;
END
$$;

-- What a side table is called: <table>_<target>, both cut where that is longer than a name may be.
CREATE OR REPLACE FUNCTION pgembed._side_name(main pg_catalog.pg_class, target text) RETURNS text
LANGUAGE sql STABLE
RETURN (SELECT format('%I.%I', n.nspname, CASE
    WHEN octet_length((main).relname || '_' || target) <= 63 THEN (main).relname || '_' || target
    ELSE left((main).relname, 15) || '_' || left(target, 15) || '_' || md5((main).relname || '_' || target)
END) FROM pg_catalog.pg_namespace AS n WHERE n.oid = (main).relnamespace);

-- Make an embedding's side table: of the table's owner, for whoever may read the table, with the rows that policies
-- let through. Called by attach, which has locked the table.
CREATE OR REPLACE FUNCTION pgembed._create_side(embedding_id integer, dim integer) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    embedding pgembed.embedding;
    main pg_catalog.pg_class;
    side_table text;
    definition text;
    names text;
    grantee oid;
BEGIN
    SELECT * INTO embedding FROM pgembed.embedding WHERE id = embedding_id;
    SELECT * INTO main FROM pg_catalog.pg_class WHERE oid = embedding.relation;
    side_table := pgembed._side_name(main, embedding.target);
    SELECT string_agg(format('%I %s%s NOT NULL', a.attname, format_type(a.atttypid, a.atttypmod),
            substring(pgembed._type_sql(a.atttypid, a.attcollation) FROM ' COLLATE .*$')), ', ' ORDER BY ordinal),
        string_agg(quote_ident(a.attname), ', ' ORDER BY ordinal)
    INTO definition, names
    FROM jsonb_array_elements(embedding.key_columns) WITH ORDINALITY AS k (key, ordinal)
    JOIN pg_catalog.pg_attribute AS a ON a.attrelid = main.oid AND a.attnum = (key ->> 'attnum')::smallint;
    IF embedding.parts IS NOT NULL THEN
        -- the hash tells what was encoded, so that a part that stays as it is is not encoded again
        definition := definition || ', part integer NOT NULL CHECK (part > 0), kind text NOT NULL, '
            'location jsonb NOT NULL, content text, hash bytea NOT NULL';
        names := names || ', part';
    END IF;
    EXECUTE format(
        'CREATE %s %s (%s, vector @extschema:vector@.vector(%s) NOT NULL, CONSTRAINT %I PRIMARY KEY (%s))%s',
        CASE main.relpersistence WHEN 'u' THEN 'UNLOGGED TABLE' ELSE 'TABLE' END, side_table, definition, dim,
        pgembed._side_constraint(embedding_id), names,
        CASE WHEN embedding.parts IS NULL AND pgembed._fills_pages(dim) THEN ' WITH (toast_tuple_target = 8160)' END);
    UPDATE pgembed.embedding SET side = to_regclass(side_table) WHERE id = embedding_id;
    EXECUTE format('COMMENT ON TABLE %s IS %L', side_table,
        format('Vectors of %s, kept by pgembed (embedding %s).', main.oid::regclass, embedding.target));
    IF pg_get_userbyid(main.relowner) <> current_user THEN
        EXECUTE format('ALTER TABLE %s OWNER TO %I', side_table, pg_get_userbyid(main.relowner));
    END IF;
    FOR grantee IN
        SELECT acl.grantee FROM aclexplode(main.relacl) AS acl
        WHERE acl.privilege_type = 'SELECT' AND acl.grantee <> main.relowner
    LOOP
        EXECUTE format('GRANT SELECT ON %s TO %s', side_table,
            CASE grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(grantee)) END);
    END LOOP;
    PERFORM pgembed._secure_side(e) FROM pgembed.embedding AS e WHERE e.id = embedding_id;
END
$$;

-- Put the row-level security of the user's table on its side table: where a row is hidden, its vector is. Called by
-- attach, and by sync for what was switched on later; true where something was changed.
CREATE OR REPLACE FUNCTION pgembed._secure_side(embedding pgembed.embedding) RETURNS boolean
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    main pg_class;
    side pg_class;
    same text;
BEGIN
    IF NOT pgembed._side_is_open(embedding) THEN
        RETURN false;
    END IF;
    SELECT * INTO main FROM pg_class WHERE oid = embedding.relation;
    SELECT * INTO side FROM pg_class WHERE oid = embedding.side;
    IF NOT EXISTS (SELECT FROM pg_policy WHERE polrelid = side.oid AND polname = 'pgembed_rows') THEN
        SELECT string_agg(format('t.%I = %s.%I', k.row_name, side.oid::regclass, k.side_name), ' AND '
            ORDER BY k.ordinal)
        INTO same FROM pgembed._side_keys(embedding) AS k;
        EXECUTE format('CREATE POLICY pgembed_rows ON %s USING (EXISTS (SELECT FROM %s AS t WHERE %s))',
            side.oid::regclass, main.oid::regclass, same);
    END IF;
    EXECUTE format('ALTER TABLE %s ENABLE ROW LEVEL SECURITY', side.oid::regclass);
    IF main.relforcerowsecurity THEN
        EXECUTE format('ALTER TABLE %s FORCE ROW LEVEL SECURITY', side.oid::regclass);
    END IF;
    RETURN true;
END
$$;

-- Whether rows of vectors of this many dimensions fill a page to three quarters, so that they should stand in it as
-- they are: moved out by TOAST, each costs half as much again to write. Called by _create_side.
CREATE OR REPLACE FUNCTION pgembed._fills_pages(dim integer) RETURNS boolean
LANGUAGE sql IMMUTABLE
RETURN 4 * dim > 1900 AND 4 * (8168 / (4 * dim + 48)) * (4 * dim + 48) >= 3 * 8168;

-- The name of the primary key of an embedding's side table.
CREATE OR REPLACE FUNCTION pgembed._side_constraint(embedding_id integer) RETURNS text
LANGUAGE sql IMMUTABLE
RETURN 'pgembed_' || embedding_id || '_key';

-- The side table of an embedding: the one that the catalog has, or after a restore one of the same owner as the user's
-- table. NULL where there is none.
CREATE OR REPLACE FUNCTION pgembed._side_of(embedding pgembed.embedding, relation oid) RETURNS oid
LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT s.oid
    FROM pg_catalog.pg_constraint AS k
    JOIN pg_catalog.pg_class AS s ON s.oid = k.conrelid
    LEFT JOIN pg_catalog.pg_class AS c ON c.oid = _side_of.relation
    WHERE k.conname = pgembed._side_constraint((embedding).id) AND k.contype = 'p'
        AND (s.oid = (embedding).side OR s.relowner = c.relowner)
    ORDER BY s.oid = (embedding).side DESC, s.oid
    LIMIT 1;
END;

-- See that what the catalog names as the place of an embedding's vectors holds vectors: the catalog is data, and
-- nothing of the user's is dropped or overwritten for its sake. Called by all that drops or writes vectors in SQL.
CREATE OR REPLACE FUNCTION pgembed._check_place(embedding pgembed.embedding, relation regclass, done text)
RETURNS void
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    own_side CONSTANT oid := CASE embedding.storage WHEN 'side' THEN pgembed._side_of(embedding, relation) END;
    type_name text;
BEGIN
    IF embedding.storage = 'side' THEN
        IF own_side IS NULL THEN
            PERFORM pgembed._raise_no_side(relation::text, embedding.target);
        ELSIF embedding.side IS DISTINCT FROM own_side THEN
            RAISE EXCEPTION USING ERRCODE = 'wrong_object_type',
                MESSAGE = format('The vectors of %s.%I stand in %s; %s, which the catalog names, is not %s.',
                    relation, embedding.target, own_side::regclass, embedding.side::regclass, done),
                HINT = format('Run: SELECT pgembed.sync(''%s'')', relation);
        END IF;
        RETURN;
    END IF;
    SELECT format_type(a.atttypid, a.atttypmod) INTO type_name FROM pg_attribute AS a
    WHERE a.attrelid = relation AND a.attname = embedding.target AND a.attnum > 0 AND NOT a.attisdropped
        AND a.atttypid NOT IN ('@extschema:vector@.vector'::regtype, '@extschema:vector@.halfvec'::regtype);
    IF FOUND THEN
        RAISE EXCEPTION USING ERRCODE = 'datatype_mismatch',
            MESSAGE = format('Column %I of %s is %s, and holds no vectors: it is not %s.', embedding.target, relation,
                type_name, done),
            HINT = format('Put the name of the vector column into pgembed.embedding, where id = %s.', embedding.id);
    END IF;
END
$$;

-- Whether a side table shows vectors of rows that row-level security hides. Called by _secure_side and doctor.
CREATE OR REPLACE FUNCTION pgembed._side_is_open(embedding pgembed.embedding) RETURNS boolean
LANGUAGE sql STABLE
RETURN EXISTS (
    SELECT FROM pg_catalog.pg_class AS c
    JOIN pg_catalog.pg_class AS s ON s.oid = pgembed._side_of(embedding, c.oid)
    WHERE c.oid = (embedding).relation AND s.oid = (embedding).side AND c.relrowsecurity
        AND (NOT s.relrowsecurity OR c.relforcerowsecurity AND NOT s.relforcerowsecurity)
);

-- Drop the side table of an embedding, whose table may be gone.
CREATE OR REPLACE FUNCTION pgembed._drop_side(embedding pgembed.embedding, relation oid) RETURNS void
LANGUAGE plpgsql
AS $$
DECLARE
    side regclass := pgembed._side_of(embedding, relation);
BEGIN
    IF side IS NOT NULL THEN
        EXECUTE pg_catalog.format('DROP TABLE %s', side);
    END IF;
END
$$;

-- Where an embedding's vectors stand: the table and its column.
CREATE OR REPLACE FUNCTION pgembed._vectors_of(embedding pgembed.embedding, OUT relation oid, OUT column_name text)
LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT CASE (embedding).storage WHEN 'side' THEN (embedding).side ELSE (embedding).relation END,
        CASE (embedding).storage WHEN 'side' THEN 'vector' ELSE (embedding).target END;
END;

-- The columns of an embedding's key, as they are called in the user's table and in the side table, in order.
CREATE OR REPLACE FUNCTION pgembed._side_keys(embedding pgembed.embedding)
RETURNS TABLE (ordinal bigint, row_name name, side_name name)
LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT u.ordinal, r.attname, s.attname
    FROM pg_catalog.pg_constraint AS k
    CROSS JOIN unnest(k.conkey) WITH ORDINALITY AS u (side_number, ordinal)
    JOIN pg_catalog.pg_attribute AS s ON s.attrelid = k.conrelid AND s.attnum = u.side_number
    JOIN pg_catalog.pg_attribute AS r ON r.attrelid = (embedding).relation
        AND r.attnum = ((embedding).key_columns -> (u.ordinal - 1)::integer ->> 'attnum')::smallint
    WHERE k.conrelid = (embedding).side AND k.conname = pgembed._side_constraint((embedding).id) AND k.contype = 'p'
    ORDER BY u.ordinal;
END;

-- True where a row of the user's table (alias t) has no vector, as SQL.
CREATE OR REPLACE FUNCTION pgembed._no_vector_sql(embedding pgembed.embedding) RETURNS text
LANGUAGE sql STABLE
RETURN CASE (embedding).storage
    WHEN 'side' THEN format('NOT EXISTS (SELECT FROM %s AS s WHERE %s)', (embedding).side::regclass,
        (SELECT string_agg(format('s.%I = t.%I', k.side_name, k.row_name), ' AND ' ORDER BY k.ordinal)
        FROM pgembed._side_keys(embedding) AS k))
    ELSE format('t.%I IS NULL', (embedding).target)
END;

-- The rows of an embedding's side table, under names that a filter does not mean. Called by _side_join and
-- _nearest_part_sql.
CREATE OR REPLACE FUNCTION pgembed._side_rows_sql(embedding pgembed.embedding, parts boolean) RETURNS text
LANGUAGE sql STABLE
RETURN (
    SELECT format('SELECT %s, vector AS "pgembed vector"%s FROM %s',
        string_agg(format('%I AS "pgembed key %s"', k.side_name, k.ordinal), ', ' ORDER BY k.ordinal),
        CASE WHEN parts THEN ', part AS "pgembed part", kind AS "pgembed kind", location AS "pgembed location", '
            'content AS "pgembed content"' ELSE '' END,
        (embedding).side::regclass)
    FROM pgembed._side_keys(embedding) AS k
);

DROP FUNCTION IF EXISTS pgembed._side_join(pgembed.embedding);

-- What FROM has after the user's table to read its rows with their vectors, in a column "pgembed vector"; NULL where
-- the side table is gone. With parts a row comes once for each. Called by the search functions.
CREATE OR REPLACE FUNCTION pgembed._side_join(embedding pgembed.embedding, parts boolean) RETURNS text
LANGUAGE sql STABLE
RETURN CASE WHEN (embedding).storage = 'side' THEN (
    SELECT format(' JOIN (%s) AS "pgembed side" ON %s', pgembed._side_rows_sql(embedding, parts),
        string_agg(format('%I = "pgembed key %s"', k.row_name, k.ordinal), ' AND ' ORDER BY k.ordinal))
    FROM pgembed._side_keys(embedding) AS k
    HAVING count(*) > 0
) ELSE '' END;

-- The same for an embedding with parts, of which a row comes with the nearest: `distance` is that of "pgembed vector"
-- to the query. Called by _search_target.
CREATE OR REPLACE FUNCTION pgembed._nearest_part_sql(embedding pgembed.embedding, distance text) RETURNS text
LANGUAGE sql STABLE
RETURN (
    SELECT format(' JOIN LATERAL (SELECT * FROM (%s) AS p WHERE %s ORDER BY %s, "pgembed part" LIMIT 1) '
        'AS "pgembed side" ON true', pgembed._side_rows_sql(embedding, true),
        string_agg(format('%I = "pgembed key %s"', k.row_name, k.ordinal), ' AND ' ORDER BY k.ordinal), distance)
    FROM pgembed._side_keys(embedding) AS k
    HAVING count(*) > 0
);

-- Whether a trigger may delete from the side table itself, as SQL: at READ COMMITTED, and where no policy hides rows of
-- it from the one whose rights it has. Called by _create_side_triggers and _left_behind_sql.
CREATE OR REPLACE FUNCTION pgembed._may_take_away_sql(side text) RETURNS text
LANGUAGE sql IMMUTABLE
RETURN format('current_setting(''transaction_isolation'') LIKE ''read %%'' '
    'AND NOT row_security_active(%L::regclass)', side);

-- Take the vectors of rows away that are gone or have another key now, as a statement of a trigger: `rows` is OLD or a
-- transition table. In queue mode a row that has the key now is in the queue. In instant mode the key may have passed
-- to that row in the same transaction, and its vector been written before this: then the table is asked, by the name
-- that it has at the moment.
CREATE OR REPLACE FUNCTION pgembed._take_away_sql(embedding pgembed.embedding, rows text) RETURNS text
LANGUAGE sql STABLE
RETURN (
    SELECT CASE (embedding).mode WHEN 'queue' THEN format('DELETE FROM %s AS s USING %s AS o WHERE %s', k.side, k.old,
            k.same)
        ELSE format('DELETE FROM %1$s AS s USING %2$s AS o WHERE %3$s AND age(s.xmin) > 0; '
            'IF EXISTS (SELECT FROM %1$s AS s JOIN %2$s AS o ON %3$s) THEN EXECUTE %4$L || TG_RELID::regclass || %5$L%6$s; '
            'END IF', k.side, k.old, k.same,
            format('DELETE FROM %s AS s USING %s AS o WHERE %s AND NOT EXISTS (SELECT FROM ONLY ', k.side,
                replace(k.old, 'OLD', '$1'), k.same),
            format(' AS t WHERE %s)', k.taken), CASE rows WHEN 'OLD' THEN ' USING OLD' ELSE '' END)
    END
    FROM (
        SELECT (embedding).side::regclass AS side,
            CASE rows WHEN 'OLD' THEN '(SELECT OLD.*)' ELSE rows END AS old,
            string_agg(format('s.%I = o.%I', k.side_name, k.row_name), ' AND ' ORDER BY k.ordinal) AS same,
            string_agg(format('t.%1$I = o.%1$I', k.row_name), ' AND ' ORDER BY k.ordinal) AS taken
        FROM pgembed._side_keys(embedding) AS k
    ) AS k
);

DROP FUNCTION IF EXISTS pgembed._create_side_triggers(integer, regrole);

-- Make the triggers that take vectors away with their rows. What a transaction sees of the side table is all there is
-- only at READ COMMITTED, since nobody writes the vector of a row that is locked. At another level a vector may have
-- come since, and to delete one that has would fail: the key goes into the log, and a worker takes the vector away.
-- Called by _create_triggers.
CREATE OR REPLACE FUNCTION pgembed._create_side_triggers(embedding_id integer) RETURNS void
LANGUAGE plpgsql
AS $$
DECLARE
    embedding pgembed.embedding;
    by_row boolean; -- a statement that names the parent fires no trigger for statements on this table
    keys text;
    log_columns text;
    key_names text[];
    side text;
    old_rows text;
BEGIN
    SELECT * INTO embedding FROM pgembed.embedding WHERE id = embedding_id;
    SELECT c.relkind = 'p' OR EXISTS (SELECT FROM pg_catalog.pg_inherits AS i WHERE i.inhrelid = c.oid) INTO by_row
    FROM pg_catalog.pg_class AS c WHERE c.oid = embedding.relation;
    SELECT string_agg('o.' || quote_ident(k.row_name), ', ' ORDER BY k.ordinal),
        string_agg('key_' || k.ordinal, ', ' ORDER BY k.ordinal), array_agg(quote_ident(k.row_name))
    INTO keys, log_columns, key_names FROM pgembed._side_keys(embedding) AS k;
    side := embedding.side::regclass;
    old_rows := CASE WHEN by_row THEN '(SELECT OLD.*)' ELSE 'old_rows' END;
    PERFORM pgembed._create_trigger_function(embedding, 'drop', key_names, pg_catalog.format(
        'BEGIN IF %s THEN %s; '
        'ELSE INSERT INTO pgembed.%I (%s) SELECT %s FROM %s AS o; END IF; RETURN NULL; END',
        pgembed._may_take_away_sql(side),
        pgembed._take_away_sql(embedding, CASE WHEN by_row THEN 'OLD' ELSE 'old_rows' END),
        'change_' || embedding_id, log_columns, keys, old_rows));
    PERFORM pgembed._put_trigger(embedding, 'pgembed_%s_delete', 'AFTER DELETE',
        CASE WHEN by_row THEN 'FOR EACH ROW' ELSE 'REFERENCING OLD TABLE AS old_rows FOR EACH STATEMENT' END, 'drop');
    -- to wait for whoever reads the side table could deadlock
    PERFORM pgembed._create_trigger_function(embedding, 'empty', '{}', pg_catalog.format(
        'BEGIN BEGIN LOCK TABLE %1$s IN ACCESS EXCLUSIVE MODE NOWAIT; TRUNCATE %1$s; '
        'EXCEPTION WHEN lock_not_available THEN DELETE FROM %1$s; END; '
        'RETURN NULL; EXCEPTION WHEN serialization_failure THEN RETURN NULL; END', side));
    PERFORM pgembed._put_trigger(embedding, 'pgembed_%s_truncate', 'AFTER TRUNCATE', '', 'empty');
END
$$;

-- A key that changes leaves its vector behind, as the first statements of a trigger that an insert into a partitioned
-- table fires too; '' where vectors stand in rows. Called by _create_triggers and _instant_row_body.
CREATE OR REPLACE FUNCTION pgembed._left_behind_sql(embedding pgembed.embedding) RETURNS text
LANGUAGE sql STABLE
RETURN CASE WHEN (embedding).storage = 'side' THEN (
    SELECT format('IF TG_OP = ''UPDATE'' AND (%s) IS DISTINCT FROM (%s) THEN '
        'IF %s THEN %s; ELSE INSERT INTO pgembed.%I (%s) VALUES (%1$s); END IF; END IF; ',
        string_agg('OLD.' || quote_ident(k.row_name), ', ' ORDER BY k.ordinal),
        string_agg('NEW.' || quote_ident(k.row_name), ', ' ORDER BY k.ordinal),
        pgembed._may_take_away_sql((embedding).side::regclass::text),
        pgembed._take_away_sql(embedding, 'OLD'),
        'change_' || (embedding).id,
        string_agg('key_' || k.ordinal, ', ' ORDER BY k.ordinal))
    FROM pgembed._side_keys(embedding) AS k
) ELSE '' END;
