-- Several embeddings of one table in one query: title vectors 0.3, photo vectors 0.7.

-- The rows of a table that are nearest to several queries at once, each of an embedding of its own (or of the same),
-- best first, each with its score.
--
--     SELECT (item).id, score FROM pgembed.search_several(NULL::product,
--         '{"title": {"text": "a red shoe", "weight": 0.3}, "photo": {"row": 7, "weight": 0.7}}');
--
-- prototype  names the table by its row type: NULL::product.
-- queries    by the name of the embedding, or as an array of objects with "embedding", in which it may come twice. A
--            query is a text; an array of numbers; or an object with one of "text", "vector" (numbers, or a vector's
--            text; "space" may stand beside it), "row" (a key, or an array of its values: the vector that the row has
--            there), "view" (its first direction) and "sum" ([[weight, query], ...]), as pgembed.to_json writes them,
--            and beside it "weight" (1) and "filter" (for this query alone). Texts are encoded by pgembed.encode_text
--            with the embedding's encoder.
-- method, filter, params, depth, wide, exact  as of hybrid, which this calls: each query is a leg.
--
-- Each leg uses its own index and gives depth candidates; then every candidate is scored, or ranked, in every leg by
-- its stored vector. A row that has no vector in an embedding (yet) gets nothing from that leg, and is found by the
-- others. Rights and row-level security are the caller's.
CREATE OR REPLACE FUNCTION pgembed.search_several(
    prototype anyelement,
    queries jsonb,
    k integer DEFAULT 10,
    method text DEFAULT 'rank',
    filter text DEFAULT NULL,
    params jsonb DEFAULT NULL,
    depth integer DEFAULT 100,
    wide boolean DEFAULT false,
    exact boolean DEFAULT false
) RETURNS TABLE (item anyelement, score float8)
LANGUAGE plpgsql STABLE PARALLEL UNSAFE ROWS 10
AS $$
DECLARE
    made record;
BEGIN
    made := pgembed._several_legs(pg_typeof(prototype), queries);
    RETURN QUERY SELECT h.item, h.score FROM pgembed.hybrid(prototype, k => search_several.k, queries => made.vectors,
        embeddings => made.embeddings, weights => made.weights, method => search_several.method,
        filter => search_several.filter, params => search_several.params, filters => made.filters,
        depth => search_several.depth, wide => search_several.wide, exact => search_several.exact) AS h;
END
$$;

-- The legs that queries in JSON mean, or why they mean none. Called by search_several and explain_several.
CREATE OR REPLACE FUNCTION pgembed._several_legs(
    row_type regtype,
    queries jsonb,
    OUT vectors @extschema:vector@.vector[],
    OUT embeddings text[],
    OUT weights float8[],
    OUT filters text[]
)
LANGUAGE plpgsql STABLE
AS $$
DECLARE
    leg record;
BEGIN
    IF queries IS NULL OR jsonb_typeof(queries) NOT IN ('object', 'array') OR queries IN ('{}', '[]') THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = format('queries says what to look for in which embedding, which %s does not.',
                coalesce(queries::text, 'NULL')),
            HINT = 'For example: ''{"title": "a red shoe", "photo": {"row": 7, "weight": 0.7}}''.';
    END IF;
    FOR leg IN
        SELECT q.key AS embedding, q.value AS query
        FROM jsonb_each(CASE jsonb_typeof(queries) WHEN 'object' THEN queries ELSE '{}' END) AS q
        UNION ALL
        SELECT q.value ->> 'embedding', CASE jsonb_typeof(q.value) WHEN 'object' THEN q.value - 'embedding' END
        FROM jsonb_array_elements(CASE jsonb_typeof(queries) WHEN 'array' THEN queries ELSE '[]' END) AS q
    LOOP
        IF NOT pgembed._is_float8(leg.query -> 'weight') OR jsonb_typeof(leg.query -> 'filter') <> 'string' THEN
            RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
                MESSAGE = format('"weight" is a number and "filter" a text, which they are not in %s.',
                    left(leg.query::text, 200)),
                HINT = 'For example: {"text": "a red shoe", "weight": 0.3, "filter": "price < 50"}.';
        END IF;
        embeddings := embeddings || (pgembed._search_target(row_type, leg.embedding, false)).target;
        vectors := vectors || pgembed._several_vector(row_type, leg.embedding, CASE jsonb_typeof(leg.query)
            WHEN 'object' THEN leg.query - ARRAY['weight', 'filter'] ELSE leg.query END);
        weights := weights || coalesce(CASE jsonb_typeof(leg.query) WHEN 'object'
            THEN (leg.query ->> 'weight')::float8 END, 1);
        filters := filters || CASE jsonb_typeof(leg.query) WHEN 'object' THEN leg.query ->> 'filter' END;
    END LOOP;
END
$$;

-- Whether a value of JSON is a number that a float8 holds. Called by _several_legs and _several_vector.
CREATE OR REPLACE FUNCTION pgembed._is_float8(value jsonb) RETURNS boolean
LANGUAGE sql IMMUTABLE PARALLEL SAFE STRICT
RETURN CASE jsonb_typeof(value)
    WHEN 'number' THEN value::numeric = 0 OR abs(value::numeric) BETWEEN 1e-300 AND 1e300
    ELSE false
END;

-- The vector that a query in JSON means in an embedding, in every part where it has parts. Called by _several_legs.
CREATE OR REPLACE FUNCTION pgembed._several_vector(row_type regtype, embedding text, query jsonb)
RETURNS @extschema:vector@.vector
LANGUAGE plpgsql STABLE
AS $$
DECLARE
    target CONSTANT record := pgembed._search_target(row_type, embedding, false);
    kind text;
    content jsonb;
    given jsonb[];
    vector @extschema:vector@.vector;
    fault text;
BEGIN
    CASE jsonb_typeof(query)
        WHEN 'string' THEN kind := 'text';
            content := query;
        WHEN 'array' THEN kind := 'vector';
            content := query;
        WHEN 'object' THEN
            SELECT min(q.key), (array_agg(q.value))[1] INTO kind, content
            FROM jsonb_each(CASE WHEN query ? 'vector' THEN query - 'space' ELSE query END) AS q HAVING count(*) = 1;
        ELSE NULL;
    END CASE;
    IF kind = 'text' AND jsonb_typeof(content) = 'string' THEN
        RETURN pgembed._fitted(pgembed.encode_text(target.encoder, content #>> '{}'), target.dim, target.shares);
    ELSIF kind = 'view' AND jsonb_typeof(content) = 'string' THEN
        RETURN pgembed._fitted((pgembed._view_in(content #>> '{}', target.source, target.target, target.encoder,
            target.space)).vectors[1], target.dim, target.shares);
    ELSIF kind = 'vector' AND query ->> 'space' <> target.space THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = format('%s.%I holds vectors of ''%s'' (space %s); the query has vectors of space %s.',
                target.source, target.target, target.encoder, target.space, query ->> 'space'),
            HINT = format('Encode them with ''%s''.', target.encoder);
    ELSIF kind = 'vector' AND jsonb_typeof(content) IN ('array', 'string') THEN
        BEGIN
            RETURN pgembed._fitted((content #>> '{}')::@extschema:vector@.vector, target.dim, target.shares);
        EXCEPTION WHEN data_exception THEN
            fault := format('%s is no vector: %s.', left(content::text, 60), SQLERRM);
        END;
    ELSIF kind = 'row' AND jsonb_typeof(content) IN ('array', 'string', 'number') THEN
        given := CASE jsonb_typeof(content) WHEN 'array'
            THEN ARRAY(SELECT e.value FROM jsonb_array_elements(content) WITH ORDINALITY AS e (value, n) ORDER BY e.n)
            ELSE ARRAY[content] END;
        IF target.side IS NULL THEN
            PERFORM pgembed._raise_no_side(target.source, target.target);
        END IF;
        vector := pgembed._stored_vector(target.relation, target.source, target.side, target.target, given);
        IF vector IS NOT NULL THEN
            RETURN vector;
        END IF;
        fault := format('The row %s is not in %s, or has no vector in %I yet.', content, target.source, target.target);
    ELSIF kind = 'sum' AND (SELECT bool_and(coalesce(pgembed._is_float8(term.value -> 0), false))
        FROM jsonb_array_elements(CASE jsonb_typeof(content) WHEN 'array' THEN content ELSE '[]' END) AS term (value))
    THEN
        RETURN pgembed.compose(array_agg(pgembed._several_vector(row_type, embedding, term.value -> 1) ORDER BY term.n),
            array_agg((term.value ->> 0)::float8 ORDER BY term.n))
            FROM jsonb_array_elements(content) WITH ORDINALITY AS term (value, n);
    END IF;
    RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
        MESSAGE = coalesce(fault, format('%s is no query of %I.', coalesce(left(query::text, 60), 'NULL'),
            target.target)),
        HINT = 'A query is a text, an array of numbers, or one of {"text": ...}, {"vector": [...]}, {"row": key}, '
            '{"view": name} and {"sum": [[1, query], ...]}, with "weight" and "filter" beside it.';
END
$$;

-- The vector of the row with this key, NULL where there is none, and of parts their mean; a side table's is read with
-- its row, whose policies hold. Called by _several_vector.
CREATE OR REPLACE FUNCTION pgembed._stored_vector(relation oid, source text, side text, target text, given jsonb[])
RETURNS @extschema:vector@.vector
LANGUAGE plpgsql STABLE
AS $$
DECLARE
    same text;
    columns text[];
    vector @extschema:vector@.vector;
BEGIN
    SELECT string_agg(format('%I = ($1[%s] #>> ''{}'')::%s', c.key ->> 'name', c.n,
            format_type(a.atttypid, -1)), ' AND ' ORDER BY c.n),
        array_agg(c.key ->> 'name' ORDER BY c.n)
    INTO same, columns
    FROM jsonb_array_elements(pgembed._key_columns(relation)) WITH ORDINALITY AS c (key, n)
    JOIN pg_catalog.pg_attribute AS a ON a.attrelid = relation AND a.attname = c.key ->> 'name';
    IF cardinality(columns) <> cardinality(given) THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = format('%s is no key of %s.', to_jsonb(given), source),
            HINT = format('Give a value for each column of its primary key: %s.', array_to_string(columns, ', '));
    END IF;
    BEGIN
        EXECUTE format('SELECT @extschema:vector@.avg(%I::@extschema:vector@.vector) FROM %s WHERE %s', CASE side
            WHEN '' THEN target ELSE 'pgembed vector' END, source || side, same) INTO vector USING given;
    EXCEPTION WHEN data_exception THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = format('%s is no key of %s: %s.', to_jsonb(given), source, SQLERRM),
            HINT = format('Give a value for each column of its primary key: %s.', array_to_string(columns, ', '));
    END;
    RETURN vector;
END
$$;
