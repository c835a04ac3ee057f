-- Search without a view: its directions taken out of the query and of every row, both made unit length again. Taking
-- them out of the query alone (pgembed.without) leaves them in the rows' lengths, by which cosine divides.

-- The vector of a row without a view, as SQL with the directions as constants, so that it can be indexed. Called by
-- search_neutral, neutral_index_sql and Python, which must all write the same for an index to be found.
CREATE OR REPLACE FUNCTION pgembed._neutral_sql(
    vector_sql text,
    vectors @extschema:vector@.vector[],
    half boolean
) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN format('(pgembed.neutralize(%s, %L::@extschema:vector@.vector[])::@extschema:vector@.%s(%s))', vector_sql,
    vectors, CASE WHEN half THEN 'halfvec' ELSE 'vector' END, @extschema:vector@.vector_dims(vectors[1]));

-- The view of this name where it is one of the space of a table's vectors, or an error that names both. Called by
-- search_neutral and neutral_index_sql.
CREATE OR REPLACE FUNCTION pgembed._view_in(name text, source text, target text, encoder text, space text)
RETURNS pgembed.direction
LANGUAGE plpgsql STABLE
AS $$
DECLARE
    found_view CONSTANT pgembed.direction := pgembed._view(name);
    own CONSTANT text := (pgembed._encoder(found_view.encoder)).space;
BEGIN
    IF own <> space THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = format('The view ''%s'' is one of space %s; %s.%I holds vectors of ''%s'' (space %s).', name, own,
                source, target, encoder, space),
            HINT = format('Learn a view with ''%s''.', encoder);
    END IF;
    RETURN found_view;
END
$$;

-- The rows of a table that are nearest to a query where a view does not count: "any skin tone", "fair to gender".
--
--     SELECT (item).id, score
--     FROM pgembed.search_neutral(NULL::product, (SELECT pgembed.encode_text('shop', 'a doctor')), 'gender', k => 10);
--
-- The directions are taken out of query and rows, exactly, and both made unit length again: rows that differ in them
-- alone have the same score. All other arguments are those of pgembed.search. Without a filter the index that
-- pgembed.neutral_index_sql writes is used where it is there; otherwise all matching rows are compared.
CREATE OR REPLACE FUNCTION pgembed.search_neutral(
    prototype anyelement,
    query @extschema:vector@.vector,
    view text,
    k integer DEFAULT 10,
    filter text DEFAULT NULL,
    params jsonb DEFAULT NULL,
    embedding text DEFAULT NULL,
    wide boolean DEFAULT false,
    exact boolean DEFAULT false
) RETURNS TABLE (item anyelement, score float8)
LANGUAGE plpgsql STABLE ROWS 10
AS $$
DECLARE
    row_type CONSTANT regtype := pg_typeof(prototype);
    target record;
    vectors @extschema:vector@.vector[];
    condition text := '';
    distance text;
    beside text;
    statement text;
    found_rows refcursor;
    number_found bigint;
    nearest record;
    best float8; -- the score at distance 0
BEGIN
    target := pgembed._search_target(row_type, embedding, wide);
    IF target.side IS NULL THEN
        PERFORM pgembed._raise_no_side(target.source, target.target);
    ELSIF k IS NULL OR k <= 0 THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = format('k is the number of rows wanted, at least 1, not %s.', coalesce(k::text, 'NULL')),
            HINT = 'For example: k => 10.';
    END IF;
    PERFORM pgembed._refuse_parts(target.source, target.target, target.encoder, target.dim, 'taken out of');
    PERFORM pgembed._check_query(query, target.source, target.target, target.encoder, target.dim);
    IF filter IS NOT NULL OR params IS NOT NULL THEN
        condition := pgembed._filter_condition(target.source, filter, params);
    END IF;
    vectors := (pgembed._view_in(view, target.source, target.target, target.encoder, target.space)).vectors;
    query := pgembed.reject(query, vectors);
    best := CASE target.metric WHEN 'cosine' THEN 1 ELSE 0 END;
    distance := format('%s OPERATOR(@extschema:vector@.%s) $1%s', pgembed._neutral_sql(
            CASE WHEN target.side <> '' THEN '"pgembed vector"' ELSE quote_ident(target.target) END
            || CASE WHEN target.half THEN '::@extschema:vector@.vector' ELSE '' END, vectors, target.half),
        CASE target.metric WHEN 'cosine' THEN '<=>' WHEN 'ip' THEN '<#>' ELSE '<->' END,
        CASE WHEN target.half THEN '::@extschema:vector@.halfvec' ELSE '' END);
    beside := target.side;
    IF target.parts THEN -- each row by its nearest part
        SELECT pgembed._nearest_part_sql(e, distance) INTO beside FROM pgembed.embedding AS e
        WHERE e.relation = target.relation AND e.target = target.target;
    END IF;
    statement := format('FROM %s WHERE %s%s', target.source || beside, target.present, condition);
    IF condition = '' AND exact IS NOT TRUE AND NOT target.parts AND NOT row_security_active(target.relation)
        AND k <= current_setting('hnsw.ef_search', true)::integer THEN
        OPEN found_rows SCROLL FOR EXECUTE format(
            'SELECT * FROM (SELECT %s, %s AS "pgembed distance" %s ORDER BY "pgembed distance" LIMIT $2) AS nearest '
            'ORDER BY 0 + "pgembed distance"', -- sorted again: an index that is read on past deleted rows may err
            target.columns, distance, statement) USING query, k, params;
        MOVE FORWARD ALL FROM found_rows;
        GET DIAGNOSTICS number_found = ROW_COUNT;
        IF number_found >= k THEN
            MOVE ABSOLUTE 0 FROM found_rows;
            LOOP
                FETCH found_rows INTO nearest;
                EXIT WHEN NOT FOUND OR (nearest."pgembed distance" < 'NaN') IS NOT TRUE;
                item := nearest; -- column by column; the distance is one too many
                score := best - nearest."pgembed distance";
                RETURN NEXT;
            END LOOP;
            CLOSE found_rows;
            RETURN;
        END IF;
        CLOSE found_rows;
    END IF;
    -- a sum is no order that an index has, which makes this exact
    RETURN QUERY EXECUTE format(
        'SELECT ROW(%1$s)::%2$s, %3$s - "pgembed distance" '
        'FROM (SELECT *, 0 + (%4$s) AS "pgembed distance" %5$s) AS nearest '
        'WHERE "pgembed distance" < ''NaN'' ORDER BY "pgembed distance"%6$s LIMIT $2',
        target.columns, row_type, best, distance, statement,
        pgembed._search_keys(target.relation, target.key_columns)) USING query, k, params;
END
$$;

-- The statement that builds the index for search_neutral with a view, without blocking writers; it holds the directions
-- as they are now, and serves no more once the view is learnt anew.
CREATE OR REPLACE FUNCTION pgembed.neutral_index_sql(
    relation regclass,
    view text,
    embedding text DEFAULT NULL,
    m integer DEFAULT 16,
    ef_construction integer DEFAULT 64
) RETURNS text
LANGUAGE plpgsql STABLE
AS $$
DECLARE
    attached CONSTANT pgembed.embedding := pgembed._embedding(relation, embedding);
    target CONSTANT record := pgembed._vectors_target(relation, attached.target);
    place record;
    vectors @extschema:vector@.vector[];
    operators text;
BEGIN
    PERFORM pgembed._refuse_parts(target.source, target.target, target.encoder, target.dim, 'taken out of');
    place := pgembed._vectors_of(attached);
    vectors := (pgembed._view_in(view, target.source, target.target, target.encoder, target.space)).vectors;
    operators := pgembed._operator_class(attached);
    RETURN format('CREATE INDEX %s ON %s USING hnsw (%s @extschema:vector@.%s) WITH (m = %s, ef_construction = %s)',
        CASE WHEN (SELECT c.relkind = 'p' FROM pg_catalog.pg_class AS c WHERE c.oid = place.relation) THEN ''
            ELSE 'CONCURRENTLY' END,
        place.relation::regclass,
        pgembed._neutral_sql(quote_ident(place.column_name)
            || CASE WHEN target.half THEN '::@extschema:vector@.vector' ELSE '' END, vectors, target.half),
        CASE WHEN target.half THEN replace(operators, 'vector_', 'halfvec_') ELSE operators END, m, ef_construction);
END
$$;
