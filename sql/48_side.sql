-- Side tables: vectors in a table of their own, <table>_<target>(<key>, vector). Its foreign key, by whose name it is
-- known, takes a vector away with its row. Writing one leaves the user's row as it is: no trigger of the user's fires,
-- no row version is made, and no writer at REPEATABLE READ fails.

-- Refuse what cannot have a side table. Called by attach and estimate.
CREATE OR REPLACE FUNCTION pgembed._check_side(relation regclass, target text, stale text) RETURNS void
LANGUAGE plpgsql STABLE
AS $$
DECLARE
    found_class pg_catalog.pg_class;
BEGIN
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
    ELSIF EXISTS (SELECT FROM pg_catalog.pg_index AS i
        JOIN pg_catalog.pg_attribute AS a ON a.attrelid = relation AND a.attnum = ANY (i.indkey)
        WHERE i.indrelid = relation AND i.indisprimary AND a.attname = 'vector') THEN
        RAISE EXCEPTION USING ERRCODE = 'duplicate_column',
            MESSAGE = format('The key of %s has a column ''vector'', as a side table calls its vectors.', relation),
            HINT = 'Use storage => ''column''.';
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
    same text;
    grantee oid;
BEGIN
    SELECT * INTO embedding FROM pgembed.embedding WHERE id = embedding_id;
    SELECT * INTO main FROM pg_catalog.pg_class WHERE oid = embedding.relation;
    side_table := pgembed._side_name(main, embedding.target);
    SELECT string_agg(format('%I %s%s NOT NULL', a.attname, format_type(a.atttypid, a.atttypmod),
            substring(pgembed._type_sql(a.atttypid, a.attcollation) FROM ' COLLATE .*$')), ', ' ORDER BY ordinal),
        string_agg(quote_ident(a.attname), ', ' ORDER BY ordinal),
        string_agg(format('t.%1$I = %2$s.%1$I', a.attname, side_table), ' AND ' ORDER BY ordinal)
    INTO definition, names, same
    FROM jsonb_array_elements(embedding.key_columns) WITH ORDINALITY AS k (key, ordinal)
    JOIN pg_catalog.pg_attribute AS a ON a.attrelid = main.oid AND a.attnum = (key ->> 'attnum')::smallint;
    EXECUTE format('CREATE %1$s %2$s (%3$s, vector @extschema:vector@.vector(%4$s) NOT NULL, PRIMARY KEY (%5$s), '
        'CONSTRAINT %6$I FOREIGN KEY (%5$s) REFERENCES %7$s (%5$s) ON UPDATE CASCADE ON DELETE CASCADE)',
        CASE main.relpersistence WHEN 'u' THEN 'UNLOGGED TABLE' ELSE 'TABLE' END, side_table, definition, dim, names,
        pgembed._side_constraint(embedding_id), main.oid::regclass);
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
    IF main.relrowsecurity THEN
        EXECUTE format('CREATE POLICY pgembed_rows ON %s USING (EXISTS (SELECT FROM %s AS t WHERE %s))', side_table,
            main.oid::regclass, same);
        EXECUTE format('ALTER TABLE %s ENABLE ROW LEVEL SECURITY', side_table);
        IF main.relforcerowsecurity THEN
            EXECUTE format('ALTER TABLE %s FORCE ROW LEVEL SECURITY', side_table);
        END IF;
    END IF;
END
$$;

-- The name of the foreign key of an embedding's side table.
CREATE OR REPLACE FUNCTION pgembed._side_constraint(embedding_id integer) RETURNS text
LANGUAGE sql IMMUTABLE
RETURN 'pgembed_' || embedding_id || '_row';

-- The side table of an embedding, known by its foreign key on the table; NULL where there is none.
CREATE OR REPLACE FUNCTION pgembed._side_of(embedding_id integer, relation oid) RETURNS oid
LANGUAGE sql STABLE
RETURN (SELECT k.conrelid FROM pg_catalog.pg_constraint AS k
    WHERE k.conname = pgembed._side_constraint(embedding_id) AND k.contype = 'f' AND k.confrelid = relation
        AND k.conparentid = 0
    ORDER BY k.conrelid LIMIT 1);

-- Drop the side table of an embedding; also of one whose table is gone, where it bears the name that attach gave it.
CREATE OR REPLACE FUNCTION pgembed._drop_side(embedding pgembed.embedding, relation oid) RETURNS void
LANGUAGE plpgsql
AS $$
DECLARE
    side regclass := pgembed._side_of(embedding.id, relation);
BEGIN
    IF side IS NULL THEN
        SELECT c.oid INTO side FROM pg_catalog.pg_class AS c
        JOIN pg_catalog.pg_attribute AS a ON a.attrelid = c.oid AND a.attname = 'vector'
            AND a.atttypid = '@extschema:vector@.vector'::regtype
        WHERE c.oid = embedding.side AND c.relkind = 'r'
            AND obj_description(c.oid, 'pg_class') LIKE '%, kept by pgembed (embedding ' || embedding.target || ').';
    END IF;
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
    CROSS JOIN unnest(k.confkey, k.conkey) WITH ORDINALITY AS u (row_number, side_number, ordinal)
    JOIN pg_catalog.pg_attribute AS r ON r.attrelid = k.confrelid AND r.attnum = u.row_number
    JOIN pg_catalog.pg_attribute AS s ON s.attrelid = k.conrelid AND s.attnum = u.side_number
    WHERE k.conrelid = (embedding).side AND k.conname = pgembed._side_constraint((embedding).id)
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

-- What FROM has after the user's table to read its rows with their vectors, in a column "pgembed vector". Called by
-- the search functions.
CREATE OR REPLACE FUNCTION pgembed._side_join(embedding pgembed.embedding) RETURNS text
LANGUAGE sql STABLE
RETURN CASE WHEN (embedding).storage = 'side' THEN (
    SELECT format(' JOIN (SELECT %s, vector AS "pgembed vector" FROM %s) AS "pgembed side" ON %s',
        string_agg(format('%I AS "pgembed key %s"', k.side_name, k.ordinal), ', ' ORDER BY k.ordinal),
        (embedding).side::regclass,
        string_agg(format('%I = "pgembed key %s"', k.row_name, k.ordinal), ' AND ' ORDER BY k.ordinal))
    FROM pgembed._side_keys(embedding) AS k
) ELSE '' END;
