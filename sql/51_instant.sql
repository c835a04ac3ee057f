-- Instant mode: an embedding of text alone, whose encoder has a static text side, is true in the transaction that
-- changes the row. No worker and no Python take part: triggers encode, by row into a column, by statement into a side
-- table.
--
-- At every commit a row with text has the vector of its text, or none (or, in a side table and only at an isolation
-- level above READ COMMITTED, still the one before) and its key in the queue: where a session asks for that, with
-- SET pgembed.instant = 'off', before it loads much, and where a text cannot be encoded. Nothing that goes wrong here
-- fails an application's statement. `CALL pgembed.fill(...)` or a worker empties that queue (52_fill.sql).

DROP FUNCTION IF EXISTS pgembed._instant_row_body(pgembed.embedding, text, text);
DROP FUNCTION IF EXISTS pgembed._instant_rows_body(pgembed.embedding, text, text);

-- Refuse what cannot be true in the same transaction. Called by attach.
CREATE OR REPLACE FUNCTION pgembed._check_instant(
    relation regclass, model pgembed.encoder, inputs jsonb, stale text, storage text
) RETURNS void
LANGUAGE plpgsql STABLE
AS $$
DECLARE
    others text;
    generated text;
BEGIN
    SELECT string_agg(key, ', ' ORDER BY key) INTO others FROM jsonb_object_keys(inputs) AS key WHERE key <> 'text';
    SELECT string_agg(quote_ident(a.attname), ', ' ORDER BY a.attnum) INTO generated
    FROM pg_catalog.pg_attribute AS a
    JOIN pgembed._input_columns(relation, inputs) AS used ON used.column_sql = quote_ident(a.attname)
    WHERE a.attrelid = relation AND a.attgenerated <> '' AND (storage = 'column' OR a.attgenerated = 'v');
    IF others IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'feature_not_supported',
            MESSAGE = format('mode => ''instant'' encodes inside Postgres, which does texts and no other input: %s.',
                others),
            HINT = 'Leave mode out: a worker encodes then. Or attach two embeddings, one for the text.';
    ELSIF model.static_text IS NULL AND EXISTS (SELECT FROM pgembed.distilled AS d WHERE d.encoder = model.name) THEN
        RAISE EXCEPTION USING ERRCODE = 'feature_not_supported',
            MESSAGE = format('mode => ''instant'' keeps vectors exact, and the static side of encoder ''%s'' is distilled: it comes '
                'near its vectors, for queries.', model.name),
            HINT = 'Leave mode out: a worker encodes then. Or use an encoder with a static text side, such as builtin:lite.';
    ELSIF model.static_text IS NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'feature_not_supported',
            MESSAGE = format('mode => ''instant'' encodes inside Postgres, and the texts of encoder ''%s'' (%s) are encoded in '
                'Python.', model.name, model.spec),
            HINT = 'Leave mode out: a worker encodes then. Or use an encoder with a static text side, such as builtin:lite.';
    ELSIF stale <> 'keep' THEN
        RAISE EXCEPTION USING ERRCODE = 'feature_not_supported',
            MESSAGE = 'stale => ''null'' has no meaning with mode => ''instant'', where no vector is older than its row.',
            HINT = 'Leave stale out.';
    ELSIF generated IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'feature_not_supported',
            MESSAGE = format('Generated columns of %s (%s) are computed after mode => ''instant'' would read them.',
                relation, generated),
            HINT = 'Name the columns that they are made from, or leave mode out.';
    END IF;
    PERFORM pgembed.static_vector(model.static_text, 'a photo'); -- where the server cannot, it says why
END
$$;

-- The vector of a row's text; NULL where there is no text or no known word in it. Called by triggers and _fill_rows.
CREATE OR REPLACE FUNCTION pgembed._row_vector(model text, input text) RETURNS @extschema:vector@.vector
LANGUAGE plpgsql STABLE STRICT PARALLEL SAFE
AS $$
DECLARE
    result @extschema:vector@.vector := pgembed.static_vector(model, input);
BEGIN
    RETURN CASE WHEN @extschema:vector@.vector_norm(result) > 0 THEN result END;
END
$$;

-- True where a session leaves the encoding to the queue: SET pgembed.instant = 'off', as SQL.
CREATE OR REPLACE FUNCTION pgembed._later_sql() RETURNS text
LANGUAGE sql IMMUTABLE
RETURN 'lower(coalesce(current_setting(''pgembed.instant'', true), '''')) IN (''off'', ''false'', ''no'', ''0'')';

-- What an instant embedding's triggers need to know, as SQL.
CREATE OR REPLACE FUNCTION pgembed._instant_parts(
    embedding pgembed.embedding,
    OUT input text, -- the row's text, over alias t
    OUT vector text, -- its vector, over the same
    OUT present text, -- that alias t may have a text: no more than a look at its columns
    OUT columns text[],
    OUT keys text[],
    OUT queue_keys text
)
LANGUAGE plpgsql STABLE
AS $$
DECLARE
    model text := (SELECT o.static_text FROM pgembed.encoder AS o WHERE o.name = embedding.encoder);
BEGIN
    input := pgembed._input_sql(embedding.relation, embedding.inputs, 'text');
    vector := pg_catalog.format('pgembed._row_vector(%L, %s)', model, input);
    SELECT array_agg(c.column_sql),
        pg_catalog.format('pg_catalog.num_nonnulls(%s) > 0', string_agg('t.' || c.column_sql, ', '))
    INTO columns, present FROM pgembed._input_columns(embedding.relation, embedding.inputs) AS c;
    SELECT array_agg(quote_ident(key ->> 'name') ORDER BY ordinal), string_agg('key_' || ordinal, ', ' ORDER BY ordinal)
    INTO keys, queue_keys
    FROM jsonb_array_elements(embedding.key_columns) WITH ORDINALITY AS k (key, ordinal);
END
$$;

-- The failures of rows that were written anew are forgotten, as a statement of a trigger over `rows`; whoever retries
-- them at this moment is not waited for.
CREATE OR REPLACE FUNCTION pgembed._forgive_sql(embedding pgembed.embedding, rows text) RETURNS text
LANGUAGE sql STABLE
RETURN (
    SELECT format('IF EXISTS (SELECT FROM pgembed.failure AS f WHERE f.embedding = %1$s) THEN '
        'DELETE FROM pgembed.failure AS f WHERE f.embedding = %1$s AND f.key = ANY (ARRAY('
        'SELECT f.key FROM %2$s AS t JOIN pgembed.failure AS f ON f.embedding = %1$s AND f.key = jsonb_build_array(%3$s) '
        'FOR UPDATE OF f SKIP LOCKED)); END IF;', (embedding).id, rows,
        string_agg(format('t.%I::%s::text', key ->> 'name', key ->> 'type'), ', ' ORDER BY ordinal))
    FROM jsonb_array_elements(pgembed._queue_key(embedding)) WITH ORDINALITY AS k (key, ordinal)
);

-- Make the triggers of an instant embedding whose vectors stand in a column. BEFORE triggers give the row its vector,
-- and come last of all, after those that may change it; AFTER triggers queue what these left without.
-- Called by _create_triggers.
CREATE OR REPLACE FUNCTION pgembed._create_instant_triggers(embedding_id integer) RETURNS void
LANGUAGE plpgsql
AS $$
DECLARE
    embedding pgembed.embedding;
    parts record;
    relation regclass;
    names text[];
    empty text;
    keys text;
BEGIN
    SELECT * INTO embedding FROM pgembed.embedding WHERE id = embedding_id;
    relation := embedding.relation;
    parts := pgembed._instant_parts(embedding);
    names := parts.columns || parts.keys || quote_ident(embedding.target);
    empty := pg_catalog.format('NEW.%I IS NULL AND pg_catalog.num_nonnulls(%s) > 0', embedding.target,
        (SELECT string_agg('NEW.' || c, ', ') FROM unnest(parts.columns) AS c));
    keys := (SELECT string_agg('NEW.' || k, ', ' ORDER BY o) FROM unnest(parts.keys) WITH ORDINALITY AS u (k, o));

    PERFORM pgembed._create_trigger_function(embedding, 'instant', names, pg_catalog.format(
        'BEGIN NEW.%1$I := NULL; IF NOT %2$s THEN BEGIN SELECT %3$s INTO NEW.%1$I FROM (SELECT NEW.*) AS t; '
        'EXCEPTION WHEN others THEN NEW.%1$I := NULL; END; END IF; RETURN NEW; END',
        embedding.target, pgembed._later_sql(), parts.vector), renders => true);
    PERFORM pgembed._put_trigger(embedding, 'zzz_pgembed_%s_insert', 'BEFORE INSERT', 'FOR EACH ROW', 'instant');
    PERFORM pgembed._put_trigger(embedding, 'zzz_pgembed_%s_update', 'BEFORE UPDATE',
        pg_catalog.format('FOR EACH ROW WHEN (%s)', pgembed._differs_sql(relation, parts.columns)), 'instant');

    PERFORM pgembed._create_append_triggers(embedding, names,
        pgembed._differs_sql(relation, parts.columns || parts.keys),
        pg_catalog.format('BEGIN IF %s THEN INSERT INTO pgembed.%I (%s) VALUES (%s); ELSE %s END IF; RETURN NULL; END',
            empty, 'change_' || embedding_id, parts.queue_keys, keys,
            pgembed._forgive_sql(embedding, '(SELECT NEW.*)')),
        pg_catalog.format('BEGIN INSERT INTO pgembed.%I (%s) SELECT %s FROM new_rows AS t '
            'WHERE t.%I IS NULL AND %s; %s RETURN NULL; END',
            'change_' || embedding_id, parts.queue_keys,
            (SELECT string_agg('t.' || k, ', ' ORDER BY o) FROM unnest(parts.keys) WITH ORDINALITY AS u (k, o)),
            embedding.target, parts.present, pgembed._forgive_sql(embedding, 'new_rows')),
        renders => true);
END
$$;

-- Find the keys of those `rows` (NEW or new_rows) that changed again before this trigger saw them, as statements of a
-- trigger that put them into `stale`; NULL where there are none. It takes other triggers to change a row within a
-- statement that changes it. What they did was seen by the triggers of their own statement, and must stay. Where a
-- policy hides rows, nobody knows.
CREATE OR REPLACE FUNCTION pgembed._find_stale_sql(embedding pgembed.embedding, columns text[], rows text) RETURNS text
LANGUAGE sql STABLE
RETURN (
    SELECT format('IF EXISTS (SELECT FROM pg_trigger AS g WHERE g.tgrelid = TG_RELID AND (g.tgconstrrelid = TG_RELID '
        'OR NOT g.tgisinternal AND g.tgname !~ ''^pgembed_[0-9]+_'')) AND NOT row_security_active(TG_RELID) THEN '
        'EXECUTE %L || TG_RELID::regclass || %L INTO stale%s; END IF; ',
        format('SELECT array_agg(jsonb_build_array(%s)) FROM %s AS o WHERE NOT EXISTS (SELECT FROM ONLY ',
            string_agg(format('o.%I', k.row_name), ', ' ORDER BY k.ordinal),
            CASE rows WHEN 'NEW' THEN '(SELECT $1.*)' ELSE rows END),
        format(' AS t WHERE %s AND %s)',
            string_agg(format('t.%1$I = o.%1$I', k.row_name), ' AND ' ORDER BY k.ordinal),
            (SELECT string_agg(format('t.%1$s::text COLLATE "C" IS NOT DISTINCT FROM o.%1$s::text COLLATE "C"', c),
                ' AND ') FROM unnest(columns) AS c)),
        CASE rows WHEN 'NEW' THEN ' USING NEW' ELSE '' END)
    FROM pgembed._side_keys(embedding) AS k
);

-- The body of a trigger that writes a row's vector into the side table. A row that gets none loses its old one, unless
-- that could fail: above READ COMMITTED the queue does it.
CREATE OR REPLACE FUNCTION pgembed._instant_row_body(
    embedding pgembed.embedding, vector text, present text, columns text[]
) RETURNS text
LANGUAGE sql STABLE
RETURN (
    SELECT format('DECLARE made @extschema:vector@.vector; stale jsonb[]; BEGIN %1$s'
        'IF NOT %2$s THEN BEGIN %13$sIF stale IS NOT NULL THEN RETURN NULL; END IF; '
        'SELECT %3$s INTO made FROM (SELECT NEW.*) AS t; IF made IS NOT NULL THEN '
        'INSERT INTO %4$s (%5$s, vector) VALUES (%6$s, made) ON CONFLICT (%5$s) DO UPDATE SET vector = excluded.vector; '
        '%11$s RETURN NULL; END IF; EXCEPTION WHEN others THEN NULL; END; END IF; '
        'IF TG_OP = ''UPDATE'' THEN IF %12$s THEN DELETE FROM %4$s AS s WHERE %7$s; '
        'ELSE INSERT INTO pgembed.%8$I (%9$s) VALUES (%6$s); RETURN NULL; END IF; END IF; '
        'INSERT INTO pgembed.%8$I (%9$s) SELECT %6$s FROM (SELECT NEW.*) AS t WHERE %10$s; '
        'IF NOT FOUND THEN %11$s END IF; RETURN NULL; END',
        pgembed._left_behind_sql(embedding), pgembed._later_sql(), vector, (embedding).side::regclass,
        string_agg(quote_ident(k.side_name), ', ' ORDER BY k.ordinal),
        string_agg('NEW.' || quote_ident(k.row_name), ', ' ORDER BY k.ordinal),
        string_agg(format('s.%I = NEW.%I', k.side_name, k.row_name), ' AND ' ORDER BY k.ordinal),
        'change_' || (embedding).id, pgembed._key_list(embedding, 'key_%s'), present,
        pgembed._forgive_sql(embedding, '(SELECT NEW.*)'),
        pgembed._may_take_away_sql((embedding).side::regclass::text),
        pgembed._find_stale_sql(embedding, columns, 'NEW'))
    FROM pgembed._side_keys(embedding) AS k
);

-- The body of a trigger that writes the vectors of all the rows that a statement inserted into the side table.
CREATE OR REPLACE FUNCTION pgembed._instant_rows_body(
    embedding pgembed.embedding, vector text, present text, columns text[]
) RETURNS text
LANGUAGE sql STABLE
RETURN (
    SELECT format('DECLARE stale jsonb[]; BEGIN IF NOT %1$s THEN BEGIN %11$s'
        'WITH made AS MATERIALIZED (SELECT %2$s, %3$s AS made, %4$s AS present FROM new_rows AS t '
        'WHERE stale IS NULL OR pg_catalog.jsonb_build_array(%9$s) <> ALL (stale)), '
        'written AS (INSERT INTO %5$s (%6$s, vector) SELECT %7$s, made FROM made WHERE made IS NOT NULL '
        'ON CONFLICT (%6$s) DO UPDATE SET vector = excluded.vector) '
        'INSERT INTO pgembed.%8$I (%7$s) SELECT %7$s FROM made WHERE made IS NULL AND present; '
        '%10$s RETURN NULL; EXCEPTION WHEN others THEN NULL; END; END IF; '
        'INSERT INTO pgembed.%8$I (%7$s) SELECT %9$s FROM new_rows AS t WHERE %4$s; %10$s RETURN NULL; END',
        pgembed._later_sql(),
        string_agg(format('t.%I AS key_%s', k.row_name, k.ordinal), ', ' ORDER BY k.ordinal), vector, present,
        (embedding).side::regclass, string_agg(quote_ident(k.side_name), ', ' ORDER BY k.ordinal),
        pgembed._key_list(embedding, 'key_%s'), 'change_' || (embedding).id,
        string_agg('t.' || quote_ident(k.row_name), ', ' ORDER BY k.ordinal),
        pgembed._forgive_sql(embedding, 'new_rows'), pgembed._find_stale_sql(embedding, columns, 'new_rows'))
    FROM pgembed._side_keys(embedding) AS k
);

-- Make the triggers of an instant embedding whose vectors stand in a side table: new rows get theirs by statement (by
-- row on a partitioned table), changed rows by row, since only a row's trigger sees what its old values were.
--
-- A vector that somebody wrote since the transaction's snapshot fails the write at the levels above READ COMMITTED:
-- then, as in any trouble, the row goes to the queue. Called by _create_triggers.
CREATE OR REPLACE FUNCTION pgembed._create_instant_side_triggers(embedding_id integer) RETURNS void
LANGUAGE plpgsql
AS $$
DECLARE
    embedding pgembed.embedding;
    parts record;
BEGIN
    SELECT * INTO embedding FROM pgembed.embedding WHERE id = embedding_id;
    parts := pgembed._instant_parts(embedding);
    PERFORM pgembed._create_append_triggers(embedding, parts.columns || parts.keys,
        pgembed._differs_sql(embedding.relation, parts.columns || parts.keys),
        pgembed._instant_row_body(embedding, parts.vector, parts.present, parts.columns),
        pgembed._instant_rows_body(embedding, parts.vector, parts.present, parts.columns), renders => true);
END
$$;
