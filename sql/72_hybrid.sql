-- Hybrid search: several searches of one table as one, by vectors and by words.

-- The rows of a table that several searches, its legs, put highest together, best first, each with its score.
--
--     SELECT (item).id, (item).title, score FROM pgembed.hybrid(NULL::product, 'red shoe', k => 10);
--
--     -- title vectors 0.3, photo vectors 0.7, no words
--     SELECT (item).id, score FROM pgembed.hybrid(NULL::product,
--         queries => ARRAY[(SELECT pgembed.encode_text('lite', 'a shoe')),
--                          (SELECT photo_vector FROM product WHERE id = 7)],
--         embeddings => '{title_vector,photo_vector}', weights => '{0.3,0.7}');
--
-- prototype   names the table by its row type: NULL::product.
-- words       what to look for, in words: a leg of full text search (71_words.sql tells what is searched, and how),
--             and unless there are queries, a leg of vectors in each of the embeddings, by pgembed.encode_text.
-- queries     the vectors of the vector legs; '{}' leaves words alone.
-- embeddings  the embedding of each query, which a table with one need not name.
-- weights     one of each leg, in order, words last; by default 1 each.
-- method      'rank': the sum of weight / (60 + rank), rank counted from 1 among the candidates in each leg (reciprocal
--             rank fusion; Cormack, Clarke and Buettcher 2009). 'score': the sum of weight * score; of a vector leg the
--             true similarity, that is the cosine, the inner product, or 1 / (1 + distance); of words their score
--             divided by the best row's. A row without a vector, or without any of the words, gets nothing there.
-- depth       how many rows each leg gives, at least k: these are the candidates, and each counts in every leg.
-- filter, params  as of search, for all legs. filters: one more for each leg, NULL for none, with the same params.
-- columns     what words are looked for in; config: the text search configuration, else detected for each column.
--             '{passages.content}' is the words of an embedding's parts, of which a row's best counts; these are taken
--             too where the table has no column of text.
-- words_function  a function of yours in place of full text search, for a BM25 extension say: it takes (words text,
--             depth integer) and gives rows of the key's columns, in order, and a score, the higher the better.
-- wide, exact as of search.
--
-- Words are ranked by ts_rank with normalization 16 (by the logarithm of distinct words), which did best on
-- Cranfield's queries 1 to 75; where full text search finds nothing and pg_trgm is there, by its word_similarity. Rows
-- of equal score come in the order of their keys. Rights and row-level security are the caller's.
CREATE OR REPLACE FUNCTION pgembed.hybrid(
    prototype anyelement,
    words text DEFAULT NULL,
    k integer DEFAULT 10,
    queries @extschema:vector@.vector[] DEFAULT NULL,
    embeddings text[] DEFAULT NULL,
    weights float8[] DEFAULT NULL,
    method text DEFAULT 'rank',
    filter text DEFAULT NULL,
    params jsonb DEFAULT NULL,
    filters text[] DEFAULT NULL,
    columns text[] DEFAULT NULL,
    config regconfig DEFAULT NULL,
    words_function regproc DEFAULT NULL,
    depth integer DEFAULT 100,
    wide boolean DEFAULT false,
    exact boolean DEFAULT false
) RETURNS TABLE (item anyelement, score float8)
LANGUAGE plpgsql STABLE PARALLEL UNSAFE ROWS 10
AS $$
DECLARE
    row_type CONSTANT regtype := pg_typeof(prototype);
    made record;
BEGIN
    made := pgembed._hybrid_statement(row_type, words, k, queries, embeddings, weights, method, filter, params, filters,
        columns, config, words_function, depth, wide, exact);
    RETURN QUERY EXECUTE format('%1$s SELECT ROW(%2$s)::%3$s, "hybrid score" FROM "hybrid fused" JOIN %4$s ON %5$s '
        'ORDER BY "hybrid score" DESC, %6$s', made.ctes, made.item, row_type, made.source, made.joined, made.names)
        USING made.vectors, k, params, greatest(depth, k), made.shares, words, made.wanted, made.unwanted;
END
$$;

-- What hybrid runs, as common table expressions: "hybrid leg n" (the candidates of a leg, by their keys), "hybrid part"
-- (for each candidate and leg that has it, leg, similarity, place and part, its share of the score) and "hybrid fused"
-- (the k best keys, with "hybrid score"). In it $1 is the vectors, $2 is k, $3 the params, $4 the depth, $5 the shares
-- (weights), $6 the words, $7 and $8 what they ask for; and what else the statement around it needs. Called by hybrid
-- and explain_hybrid.
CREATE OR REPLACE FUNCTION pgembed._hybrid_statement(
    row_type regtype,
    words text,
    k integer,
    queries @extschema:vector@.vector[],
    embeddings text[],
    weights float8[],
    method text,
    filter text,
    params jsonb,
    filters text[],
    columns text[],
    config regconfig,
    words_function regproc,
    depth integer,
    wide boolean,
    exact boolean,
    OUT ctes text,
    OUT item text, -- the row's columns
    OUT source text,
    OUT joined text, -- its key is that of the statement
    OUT names text, -- of the key's columns in the statement
    OUT vectors @extschema:vector@.vector[],
    OUT shares float8[],
    OUT wanted tsquery,
    OUT unwanted tsquery,
    OUT legs text[] -- the embedding of each vector leg
)
LANGUAGE plpgsql STABLE
AS $$
DECLARE
    target record; -- of the leg in hand
    conditions text[];
    keys record;
    parts text[] := '{}';
    matched text; -- the rows that words find
BEGIN
    legs := pgembed._hybrid_embeddings(row_type, words, queries, embeddings);
    target := pgembed._search_target(row_type, coalesce(legs[1], (pgembed._hybrid_targets(row_type))[1]), wide);
    item := target.columns;
    source := target.source;
    shares := pgembed._hybrid_weights(weights, cardinality(legs) + (words IS NOT NULL)::integer, cardinality(legs));
    IF k IS NULL OR k <= 0 OR depth IS NULL OR depth <= 0 THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = format('%s, at least 1, not %s.',
                CASE WHEN k > 0 THEN 'depth is a number of rows' ELSE 'k is the number of rows wanted' END,
                coalesce(CASE WHEN k > 0 THEN depth ELSE k END::text, 'NULL')),
            HINT = 'For example: k => 10, depth => 100.';
    ELSIF method IS NULL OR method NOT IN ('rank', 'score') THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = format('method is ''rank'' or ''score'', not %s.', coalesce(quote_literal(method), 'NULL')),
            HINT = '''rank'' sums weight / (60 + rank); ''score'' sums weight * score.';
    ELSIF words IS NULL AND (columns IS NOT NULL OR config IS NOT NULL OR words_function IS NOT NULL) THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = 'columns, config and words_function are for the words, and there are none.',
            HINT = 'Give words, or leave them out.';
    END IF;
    conditions := pgembed._hybrid_filters(source, filter, filters, params, cardinality(shares));
    SELECT string_agg(format('%I AS "hybrid key %s"', name, n), ', ' ORDER BY n) AS named,
        string_agg(format('"hybrid key %s"', n), ', ' ORDER BY n) AS names,
        string_agg(format('%I = "hybrid key %s"', name, n), ' AND ' ORDER BY n) AS joined,
        string_agg(format('(s.item).%I', name), ', ' ORDER BY n) AS found,
        bool_or(pgembed._is_wide(a.atttypid)) AS wide
    INTO keys
    FROM jsonb_array_elements(pgembed._key_columns(target.relation)) WITH ORDINALITY AS c (key, n)
    CROSS JOIN LATERAL (SELECT c.key ->> 'name' AS name) AS named
    JOIN pg_catalog.pg_attribute AS a ON a.attrelid = target.relation AND a.attname = name;
    joined := keys.joined;
    names := keys.names;
    vectors := queries;

    FOR leg IN 1 .. cardinality(legs) LOOP
        target := pgembed._search_target(row_type, legs[leg], wide, format('$1[%s]', leg));
        IF target.side IS NULL THEN
            PERFORM pgembed._raise_no_side(target.source, target.target);
        END IF;
        IF vectors IS NULL OR cardinality(vectors) < leg THEN
            vectors := vectors || ARRAY[pgembed.encode_text(target.encoder, words)];
        END IF;
        vectors[leg] := pgembed._fitted(vectors[leg], target.dim, target.shares);
        PERFORM pgembed._check_query(vectors[leg], source, target.target, target.encoder, target.dim);
        ctes := concat_ws(', ', ctes, format('"hybrid leg %1$s" (%2$s) AS MATERIALIZED (SELECT %3$s '
            'FROM pgembed.search(NULL::%4$s, $1[%1$s], k => $4, filter => %5$L, params => %6$s, embedding => %7$L, '
            'wide => %8$L, exact => %9$L) AS s)', leg, names, keys.found, row_type, conditions[leg],
            CASE WHEN conditions[leg] IS NULL THEN 'NULL' ELSE '$3' END, target.target, keys.wide, exact IS TRUE));
        parts := parts || format('SELECT %1$s, %2$s, %3$s, row_number() OVER (ORDER BY %4$s, %1$s) '
            'FROM %5$s JOIN "hybrid candidate" ON %6$s WHERE %7$s AND (%4$s) < ''NaN''%8$s', names, leg,
            format(CASE target.metric WHEN 'cosine' THEN '1 - (%s)' WHEN 'ip' THEN '-(%s)' ELSE '1 / (1 + (%s))' END,
                target.distance), target.distance, source || target.nearest, joined, target.present,
            CASE WHEN filters[leg] IS NOT NULL THEN pgembed._filter_condition(source, filters[leg], params) END);
    END LOOP;
    IF words IS NOT NULL THEN
        SELECT w.* INTO matched, wanted, unwanted FROM pgembed._hybrid_words(target.relation, source, words,
            columns, config, words_function, legs, CASE WHEN conditions[cardinality(shares)] IS NULL THEN ''
                ELSE pgembed._filter_condition(source, conditions[cardinality(shares)], params) END,
            keys.named, names, joined) AS w;
        ctes := concat_ws(', ', ctes, matched, format('"hybrid leg %1$s" AS MATERIALIZED (SELECT %2$s '
            'FROM "hybrid matched" ORDER BY "hybrid score" DESC, %2$s LIMIT $4)', cardinality(shares), names));
        parts := parts || format('SELECT %1$s, %2$s, "hybrid share", row_number() OVER (ORDER BY "hybrid score" DESC, '
            '%1$s) FROM (SELECT *, greatest("hybrid score", 0) / nullif(max("hybrid score") OVER (), 0) '
            'AS "hybrid share" FROM "hybrid matched") AS shares JOIN "hybrid candidate" USING (%1$s)', names,
            cardinality(shares));
    END IF;
    ctes := format('WITH %1$s, "hybrid candidate" AS MATERIALIZED (%2$s), "hybrid part" AS (SELECT *, %3$s AS part '
        'FROM (%4$s) AS parts (%5$s, leg, similarity, place)), "hybrid fused" AS (SELECT %5$s, '
        'sum(part ORDER BY leg) AS "hybrid score" FROM "hybrid part" WHERE part IS NOT NULL GROUP BY %5$s '
        'ORDER BY "hybrid score" DESC, %5$s LIMIT $2)', ctes,
        (SELECT string_agg(format('SELECT %s FROM "hybrid leg %s"', names, leg), ' UNION ' ORDER BY leg)
            FROM generate_series(1, cardinality(shares)) AS leg),
        CASE method WHEN 'rank' THEN '$5[leg] / (60 + place)' ELSE '$5[leg] * similarity' END,
        array_to_string(parts, ' UNION ALL '), names);
END
$$;

-- The embeddings of a table, in the order they were attached; of one restored from a dump by its name, until its oid is
-- resolved again. Called by hybrid.
CREATE OR REPLACE FUNCTION pgembed._hybrid_targets(row_type regtype) RETURNS text[]
LANGUAGE sql STABLE
RETURN ARRAY(
    SELECT e.target
    FROM pg_catalog.pg_class AS c
    JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
    JOIN pgembed.embedding AS e ON e.relation = c.oid
        OR (e.schema_name = n.nspname AND e.table_name = c.relname
            AND NOT EXISTS (SELECT FROM pg_catalog.pg_class AS present WHERE present.oid = e.relation))
    WHERE c.reltype = row_type
    ORDER BY e.id);

-- The embedding of each vector leg, or why these arguments of hybrid name none. Called by hybrid.
CREATE OR REPLACE FUNCTION pgembed._hybrid_embeddings(
    row_type regtype,
    words text,
    queries @extschema:vector@.vector[],
    embeddings text[]
) RETURNS text[]
LANGUAGE plpgsql STABLE
AS $$
DECLARE
    present text[];
BEGIN
    IF words IS NULL AND coalesce(cardinality(queries), 0) = 0 THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = 'There are no words and no query vectors to search with.',
            HINT = 'For example: pgembed.hybrid(NULL::product, ''red shoe''), or queries => ARRAY[...].';
    ELSIF words !~ '\S' THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = 'The words to search for are empty.',
            HINT = 'Give words, or NULL and query vectors: queries => ARRAY[...].';
    ELSIF embeddings IS NULL THEN
        present := pgembed._hybrid_targets(row_type);
        IF cardinality(present) > 1 AND queries IS DISTINCT FROM '{}' THEN
            RAISE EXCEPTION USING ERRCODE = 'ambiguous_parameter',
                MESSAGE = format('Table %s has several embeddings: %s.', row_type, array_to_string(present, ', ')),
                HINT = format('Say which: embeddings => %L.', ARRAY[present[1]]);
        END IF;
        RETURN array_fill(present[1], ARRAY[coalesce(cardinality(queries), 1)]);
    ELSIF array_position(embeddings, NULL) IS NOT NULL
        OR cardinality(embeddings) <> cardinality(queries) THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = format('embeddings names %s (%s), and there are %s query vectors.',
                cardinality(embeddings), array_to_string(embeddings, ', ', 'NULL'), coalesce(cardinality(queries), 0)),
            HINT = 'Name the embedding of each query vector, in their order.';
    END IF;
    RETURN embeddings;
END
$$;

-- The weights of so many legs, 1 each where none are given, or why these are none. Called by hybrid.
CREATE OR REPLACE FUNCTION pgembed._hybrid_weights(weights float8[], legs integer, vector_legs integer) RETURNS float8[]
LANGUAGE plpgsql IMMUTABLE
AS $$
BEGIN
    IF weights IS NULL THEN
        RETURN array_fill(1.0::float8, ARRAY[legs]);
    ELSIF cardinality(weights) <> legs THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = format('weights has %s and there are %s legs: %s.', cardinality(weights), legs, concat_ws(' and ',
                nullif(vector_legs, 0) || ' of vectors', CASE WHEN legs > vector_legs THEN '1 of words' END)),
            HINT = 'Give one weight for each leg, in the order of the embeddings, that of the words last.';
    ELSIF EXISTS (SELECT FROM unnest(weights) AS w WHERE w IS NULL OR w IN ('NaN', 'Infinity', '-Infinity')) THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = format('A weight is not a finite number: %s.', weights),
            HINT = 'For example: weights => ''{0.7,0.3}''.';
    END IF;
    RETURN weights;
END
$$;

-- The filter of each leg, that of all and its own, NULL for none; each is checked by itself. Called by hybrid.
CREATE OR REPLACE FUNCTION pgembed._hybrid_filters(
    source text,
    filter text,
    filters text[],
    params jsonb,
    legs integer
) RETURNS text[]
LANGUAGE plpgsql STABLE
AS $$
DECLARE
    own text;
BEGIN
    IF cardinality(filters) <> legs THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = format('There are %s filters, and %s legs.', cardinality(filters), legs),
            HINT = 'Give one for each leg, NULL for none, or one for all: filter => ''price < 50''.';
    ELSIF filter IS NOT NULL OR params IS NOT NULL AND array_remove(filters, NULL) = '{}' IS NOT FALSE THEN
        PERFORM pgembed._filter_condition(source, filter, params);
    END IF;
    FOREACH own IN ARRAY array_remove(coalesce(filters, '{}'), NULL) LOOP
        PERFORM pgembed._filter_condition(source, own, params);
    END LOOP;
    RETURN ARRAY(
        SELECT CASE WHEN filter IS NULL OR filters[n] IS NULL THEN coalesce(filter, filters[n])
            ELSE format(E'(%s\n) AND (%s\n)', filter, filters[n]) END
        FROM generate_series(1, legs) AS n ORDER BY n);
END
$$;

DROP FUNCTION IF EXISTS pgembed._hybrid_words(oid, text, text, text[], regconfig, regproc, text, text, text, text);

-- The rows that words find, as common table expressions of hybrid's statement, the last called "hybrid matched", which
-- has the key's columns and "hybrid score"; there $6 is the words, $7 and $8 what _words_query makes of them, which is
-- given too. Called by hybrid.
CREATE OR REPLACE FUNCTION pgembed._hybrid_words(
    relation oid,
    source text,
    words text,
    columns text[],
    config regconfig,
    words_function regproc,
    legs text[],
    condition text,
    named text,
    names text,
    joined text,
    OUT matched text,
    OUT wanted tsquery,
    OUT unwanted tsquery
)
LANGUAGE plpgsql STABLE
AS $$
DECLARE
    documents text[];
    configs regconfig[];
    trigrams text; -- the schema of pg_trgm
    texts text[];
    parts CONSTANT pgembed.embedding := pgembed._words_parts(relation, columns, legs);
BEGIN
    IF words_function IS NOT NULL THEN
        IF NOT EXISTS (SELECT FROM pg_catalog.pg_proc AS p WHERE p.oid = words_function AND p.proretset
            AND oidvectortypes(p.proargtypes) = 'text, integer') THEN
            RAISE EXCEPTION USING ERRCODE = 'invalid_function_definition',
                MESSAGE = format('The words function %s is not one of (text, integer) that returns rows.',
                    words_function),
                HINT = 'It takes the words and how many rows, and returns the columns of the key and a score.';
        END IF;
        matched := format('"hybrid matched" AS MATERIALIZED (SELECT %1$s, "hybrid score" FROM %2$s($6, $4) '
            'AS f (%1$s, "hybrid score") JOIN %3$s ON %4$s WHERE "hybrid score" < ''NaN''%5$s)', names, words_function,
            source, joined, condition);
        RETURN;
    END IF;
    IF parts.id IS NOT NULL THEN
        SELECT ARRAY[d.document], ARRAY[d.used] INTO documents, configs
        FROM pgembed._words_documents(parts.side, '{content}', config) AS d LIMIT 1;
        SELECT q.wanted, q.unwanted INTO wanted, unwanted FROM pgembed._words_query(words, configs) AS q;
        -- what must not be there is in none of a row's parts
        matched := format('"hybrid matched" AS MATERIALIZED (SELECT %1$s, max(ts_rank(document, $7, 16))::float8 '
            'AS "hybrid score" FROM (SELECT %2$s, "pgembed document" AS document FROM %3$s JOIN (%4$s) AS p ON %5$s '
            'WHERE "pgembed document" @@ $7%6$s) AS found WHERE $8 IS NULL OR NOT EXISTS (SELECT FROM (%4$s) AS p '
            'WHERE %7$s AND NOT "pgembed document" @@ $8) GROUP BY %1$s)',
            names, named, source, pgembed._part_words_sql(parts, documents[1]),
            replace(joined, 'hybrid key', 'pgembed key'), condition,
            (SELECT string_agg(format('"hybrid key %s" = "pgembed key %1$s"', n), ' AND ' ORDER BY n)
                FROM generate_series(1, jsonb_array_length(parts.key_columns)) AS n));
        RETURN;
    END IF;
    SELECT array_agg(d.document), array_agg(DISTINCT d.used) INTO documents, configs
    FROM pgembed._words_documents(relation, columns, config) AS d;
    SELECT q.wanted, q.unwanted INTO wanted, unwanted FROM pgembed._words_query(words, configs) AS q;
    matched := format('"hybrid matched" AS MATERIALIZED (SELECT %1$s, ts_rank(document, $7, 16)::float8 '
        'AS "hybrid score" FROM (SELECT %2$s, %3$s AS document FROM %4$s WHERE (%5$s)%6$s) AS found '
        'WHERE $8 IS NULL OR document @@ $8)', names, named,
        (SELECT string_agg(format('coalesce(%s, '''')', d), ' || ') FROM unnest(documents) AS d), source,
        (SELECT string_agg(format('%s @@ $7', d), ' OR ') FROM unnest(documents) AS d), condition);
    SELECT quote_ident(n.nspname) INTO trigrams FROM pg_catalog.pg_extension AS x
    JOIN pg_catalog.pg_namespace AS n ON n.oid = x.extnamespace
    WHERE x.extname = 'pg_trgm' AND has_schema_privilege(n.oid, 'USAGE');
    texts := ARRAY(SELECT pgembed._words_text(a) FROM pg_catalog.pg_attribute AS a
        WHERE a.attrelid = relation AND a.atttypid <> 'tsvector'::regtype AND NOT a.attisdropped AND CASE
            WHEN columns IS NULL THEN a.attnum = ANY (pgembed._words_columns(relation))
            ELSE a.attname = ANY (columns) END);
    IF trigrams IS NOT NULL AND texts <> '{}' THEN
        matched := format('%1$s, "hybrid matched" AS MATERIALIZED (SELECT * FROM "hybrid full text" UNION ALL '
            'SELECT %2$s, %3$s FROM %4$s WHERE NOT EXISTS (SELECT FROM "hybrid full text") AND (%5$s)%6$s)',
            replace(matched, '"hybrid matched" AS', '"hybrid full text" AS'), named,
            (SELECT format('greatest(%s)::float8', string_agg(format('%s.word_similarity($6, %s)', trigrams, t), ', '))
                FROM unnest(texts) AS t),
            source, (SELECT string_agg(format('%s OPERATOR(%s.%%>) $6', t, trigrams), ' OR ') FROM unnest(texts) AS t),
            condition);
    END IF;
END
$$;
