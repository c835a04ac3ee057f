-- What an embedding would come to, before it is attached.

DROP FUNCTION IF EXISTS pgembed.estimate(regclass, text, text, jsonb, integer);

-- Rows and inputs that attach with these arguments would bring to the encoder, one row a modality; nothing is changed,
-- and what attach would refuse is refused. Rows are counted up to a million and estimated above (exact = false);
-- mean_bytes is the mean size of a sample: of texts, and of pictures in bytea. `sample` holds some texts. Called by
-- `pgembed attach --dry-run`.
CREATE OR REPLACE FUNCTION pgembed.estimate(
    relation regclass,
    target text,
    encoder text,
    inputs jsonb,
    sample_rows integer DEFAULT 1000,
    fusion text DEFAULT 'sum'
) RETURNS TABLE (modality text, rows bigint, inputs_present bigint, exact boolean, mean_bytes float8, sample text[])
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    model pgembed.encoder := pgembed._encoder(encoder);
    checked jsonb;
    planned real;
    share float8;
    source text;
    expression text;
    is_text boolean;
BEGIN
    PERFORM pgembed._check_table(relation);
    PERFORM pgembed._check_target(relation, target, model);
    checked := pgembed._checked_inputs(relation, model, inputs);
    PERFORM pgembed._checked_fusion(model, checked, fusion);
    PERFORM pgembed._key_columns(relation);
    SELECT reltuples INTO planned FROM pg_class WHERE oid = relation;
    exact := planned < 1000000;
    IF exact THEN
        EXECUTE format('SELECT count(*) FROM %s', relation) INTO rows;
    ELSE
        rows := planned;
    END IF;
    share := least(100, 100.0 * sample_rows / greatest(rows, 1));
    source := format('%s AS t TABLESAMPLE %s (%s) REPEATABLE (1)', relation,
        CASE WHEN exact THEN 'BERNOULLI' ELSE 'SYSTEM' END, share);
    FOR modality IN SELECT key FROM jsonb_object_keys(checked) AS key ORDER BY key LOOP
        expression := CASE WHEN checked -> modality ->> 'as' = 'large_object' -- they are not read to be counted
            THEN 't.' || quote_ident(checked -> modality ->> 'column')
            ELSE pgembed._input_sql(relation, checked, modality) END;
        is_text := modality = 'text';
        EXECUTE format('SELECT %s, avg(CASE WHEN %s THEN %s(x) END), '
            '(array_agg(x::text) FILTER (WHERE %s AND x IS NOT NULL))[:64] FROM (SELECT %s AS x FROM %s) AS s',
            CASE WHEN exact THEN format('(SELECT count(*) FROM %s AS t WHERE num_nonnulls(%s) > 0)', relation,
                (SELECT string_agg('t.' || quote_ident(a.attname), ', ')
                    FROM jsonb_each_text(checked -> modality -> 'columns') AS used (name, number)
                    JOIN pg_attribute AS a ON a.attrelid = relation AND a.attnum = used.number::smallint))
            ELSE format('(%s * count(x) / greatest(count(*), 1))::bigint', rows) END,
            (is_text OR checked -> modality ->> 'as' = 'bytes')::text,
            CASE WHEN is_text OR checked #>> ARRAY[modality, 'as'] = 'bytes' AND NOT checked -> modality ? 'list'
                THEN 'octet_length' ELSE 'pg_column_size' END,
            is_text::text, expression, source)
        INTO inputs_present, mean_bytes, sample;
        RETURN NEXT;
    END LOOP;
END
$$;

-- Where the vectors of a table had better stand, and why:
--
--     SELECT * FROM pgembed.advise_storage('product');
--
-- A column is the simpler: a search reads one table. But to write a vector there updates the row, which fires the
-- table's triggers, is published, and makes a new entry in each of its indexes.
CREATE OR REPLACE FUNCTION pgembed.advise_storage(relation regclass, OUT storage text, OUT reason text)
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    sets_off CONSTANT record := pgembed._set_off_by_updates(relation);
BEGIN
    storage := CASE WHEN sets_off.triggers IS NULL AND sets_off.publications IS NULL AND sets_off.indexes < 6
        THEN 'column' ELSE 'side' END;
    reason := CASE
        WHEN sets_off.triggers IS NOT NULL
            THEN format('To write a vector in a column updates the row, which fires its triggers: %s.',
                sets_off.triggers)
        WHEN sets_off.publications IS NOT NULL
            THEN format('To write a vector in a column updates the row, which is published: %s.',
                sets_off.publications)
        WHEN sets_off.indexes >= 6
            THEN format('To write a vector in a column updates the row, with an entry in each of its %s indexes.',
                sets_off.indexes)
        ELSE 'No trigger, publication or crowd of indexes sees a row that is updated, and a search reads one table.'
    END;
END
$$;
