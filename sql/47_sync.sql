-- The catalog follows the tables: after a rename, a move to another schema, or a restore into another database.

-- Every table that carries an embedding's trigger. Called by _table_of and doctor.
CREATE OR REPLACE FUNCTION pgembed._tables_of(embedding_id integer) RETURNS TABLE (relation regclass)
LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT t.tgrelid FROM pg_catalog.pg_trigger AS t
    JOIN pg_catalog.pg_proc AS p ON p.oid = t.tgfoid
    WHERE t.tgparentid = 0 AND t.tgname = 'pgembed_' || embedding_id || '_update'
        AND p.pronamespace = 'pgembed'::regnamespace;
END;

-- The table that carries an embedding's trigger, whatever it is called by now; NULL where it is gone. Where a dump of
-- one table has brought another with such a trigger, the one that the catalog has, or had, comes first.
CREATE OR REPLACE FUNCTION pgembed._table_of(embedding_id integer) RETURNS regclass
LANGUAGE sql STABLE
RETURN (SELECT t.relation FROM pgembed._tables_of(embedding_id) AS t
    LEFT JOIN pgembed.embedding AS e ON e.id = embedding_id
    LEFT JOIN pg_catalog.pg_class AS c ON c.oid = t.relation
    LEFT JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
    ORDER BY coalesce(t.relation = e.relation, false) DESC,
        coalesce((n.nspname, c.relname) = (e.schema_name, e.table_name), false) DESC, t.relation
    LIMIT 1);

-- The table of an embedding whose triggers were taken off, by number and name; NULL where there is none.
CREATE OR REPLACE FUNCTION pgembed._unhooked_table(embedding pgembed.embedding) RETURNS regclass
LANGUAGE sql STABLE
RETURN (SELECT c.oid FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
    WHERE c.oid = (embedding).relation AND c.relname = (embedding).table_name AND n.nspname = (embedding).schema_name);

-- Find each embedding's table again by the trigger that it carries, and put its present name, key and columns into
-- the catalog; returns how many embeddings were out of date. Workers call it when they start; run it after a restore,
-- as the owner of the schema: then what was granted by grant_role is granted again, too.
CREATE OR REPLACE FUNCTION pgembed.sync() RETURNS integer
LANGUAGE plpgsql
AS $$
DECLARE
    embedding pgembed.embedding;
    found_relation oid;
    changed integer := 0;
BEGIN
    FOR embedding IN SELECT * FROM pgembed.embedding ORDER BY id LOOP
        PERFORM pgembed._tune_queue(embedding.id);
        found_relation := pgembed._restored_as(embedding);
        IF found_relation IS NULL THEN
            CONTINUE WHEN pgembed._table_of(embedding.id) IS DISTINCT FROM embedding.relation;
            changed := changed + pgembed._follow_renames(embedding);
        ELSE -- a restored table has other numbers for its columns, and the names that the catalog knows
            UPDATE pgembed.embedding AS e
            SET relation = found_relation, key_columns = pgembed._key_columns(found_relation),
                side = pgembed._side_of(e, found_relation),
                inputs = pgembed._renumbered(found_relation, e.inputs)
            WHERE e.id = embedding.id;
            changed := changed + 1;
        END IF;
    END LOOP;
    IF pg_has_role(pgembed._owner(), 'USAGE') THEN -- what a dump without rights has left out, and what came since
        FOR embedding IN SELECT * FROM pgembed.embedding ORDER BY id LOOP
            PERFORM pgembed._secure_side(embedding)
            FROM pg_catalog.pg_class AS s WHERE s.oid = embedding.side AND pg_has_role(s.relowner, 'USAGE');
            PERFORM pgembed._grant_remembered(embedding);
            PERFORM pgembed._open_log(embedding.id);
        END LOOP;
        PERFORM pgembed._grant_remembered(NULL);
    END IF;
    IF has_function_privilege('pgembed._keep_searches()', 'EXECUTE') THEN
        PERFORM pgembed._keep_searches();
    END IF;
    RETURN changed;
END
$$;

-- The table that carries an embedding's triggers where the catalog has the number of none, or of some other, as after a
-- restore; NULL where the catalog is right. Called by sync and doctor.
CREATE OR REPLACE FUNCTION pgembed._restored_as(embedding pgembed.embedding) RETURNS regclass
LANGUAGE sql STABLE
RETURN (SELECT t.relation FROM (SELECT pgembed._table_of((embedding).id)) AS t (relation)
    WHERE t.relation IS DISTINCT FROM (embedding).relation AND pgembed._unhooked_table(embedding) IS NULL);

-- Grant the triggers of an embedding again what they write the log with. What they missed meanwhile is noted: they may
-- have been unable to do it themselves. Called by sync.
CREATE OR REPLACE FUNCTION pgembed._open_log(embedding_id integer) RETURNS void
LANGUAGE plpgsql
AS $$
DECLARE
    closed_to regrole;
BEGIN
    FOR closed_to IN SELECT DISTINCT a.role FROM pgembed._appending_roles(embedding_id) AS a
        WHERE NOT a.may AND NOT pgembed._queue_is_gone(embedding_id) LOOP
        PERFORM pgembed._let_append(closed_to, embedding_id);
        INSERT INTO pgembed.missed (embedding) VALUES (embedding_id);
    END LOOP;
END
$$;

-- Put the present names of an embedding's table and columns into the catalog; 1 where one had changed, else 0.
CREATE OR REPLACE FUNCTION pgembed._follow_renames(embedding pgembed.embedding) RETURNS integer
LANGUAGE plpgsql
AS $$
DECLARE
    present pgembed.embedding := embedding;
BEGIN
    SELECT n.nspname, c.relname INTO present.schema_name, present.table_name
    FROM pg_catalog.pg_class AS c
    JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
    WHERE c.oid = embedding.relation;
    present.key_columns := pgembed._key_columns(embedding.relation);
    present.side := coalesce(pgembed._side_of(embedding, embedding.relation), embedding.side);
    present.inputs := pgembed._renamed(embedding.relation, embedding.inputs);
    IF present IS NOT DISTINCT FROM embedding THEN
        RETURN 0;
    END IF;
    UPDATE pgembed.embedding AS e
    SET schema_name = present.schema_name, table_name = present.table_name, key_columns = present.key_columns,
        side = present.side, inputs = present.inputs
    WHERE e.id = embedding.id;
    RETURN 1;
END
$$;

-- The inputs of an embedding with its columns' numbers looked up again by name; without those that are not found, of
-- which whoever reads them is told.
CREATE OR REPLACE FUNCTION pgembed._renumbered(relation oid, inputs jsonb) RETURNS jsonb
LANGUAGE sql STABLE
RETURN (
    SELECT jsonb_object_agg(i.key, i.value || jsonb_build_object('columns', coalesce((
        SELECT jsonb_object_agg(c.key, a.attnum)
        FROM jsonb_each(i.value -> 'columns') AS c
        JOIN pg_catalog.pg_attribute AS a ON a.attrelid = relation AND a.attname = c.key
    ), '{}')))
    FROM jsonb_each(inputs) AS i
);

-- The inputs of an embedding by the present names of their columns, which a dump takes along: numbers it does not keep.
CREATE OR REPLACE FUNCTION pgembed._renamed(relation oid, inputs jsonb) RETURNS jsonb
LANGUAGE plpgsql STABLE
AS $$
DECLARE
    modality text;
    facts jsonb;
    present jsonb;
    written text;
    result jsonb := inputs;
BEGIN
    FOR modality, facts IN SELECT i.key, i.value FROM jsonb_each(inputs) AS i
        WHERE jsonb_typeof(i.value -> 'columns') = 'object' LOOP
        SELECT jsonb_object_agg(c.key, coalesce(a.attname, c.key)) INTO present
        FROM jsonb_each_text(facts -> 'columns') AS c
        LEFT JOIN pg_catalog.pg_attribute AS a ON a.attrelid = relation AND a.attnum = c.value::smallint
            AND NOT a.attisdropped;
        CONTINUE WHEN NOT EXISTS (SELECT FROM jsonb_each_text(present) AS p WHERE p.key <> p.value)
            OR EXISTS (SELECT FROM jsonb_each_text(present) AS p WHERE p.value ~ '[{}]'); -- no template can name it
        SELECT string_agg(CASE WHEN p.column_name IS NULL THEN replace(replace(p.literal, '{', '{{'), '}', '}}')
            ELSE '{' || (present ->> m.name) || coalesce(m.path, '') || '}' END, '' ORDER BY p.ordinal) INTO written
        FROM pgembed._template_parts(facts ->> 'template') AS p
        CROSS JOIN LATERAL pgembed._column_and_path(ARRAY(SELECT jsonb_object_keys(present)), p.column_name) AS m;
        result := result || jsonb_build_object(modality, facts
            || jsonb_strip_nulls(jsonb_build_object('template', written, 'column', present ->> (facts ->> 'column')))
            || jsonb_build_object('columns', (SELECT jsonb_object_agg(present ->> c.key, c.value)
                FROM jsonb_each(facts -> 'columns') AS c)));
    END LOOP;
    RETURN result;
EXCEPTION WHEN data_exception THEN
    RETURN inputs; -- the catalog is data: what makes no sense in it is doctor's to tell
END
$$;
