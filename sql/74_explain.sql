-- Explanations in SQL: how a search was run, and what gave each row its score, as JSON for jsonb_pretty.

-- What pgembed.search with these arguments does, and what each row's score is made of:
--
--     SELECT jsonb_pretty(pgembed.explain_search(NULL::product, filter => 'price < 50',
--         terms => ARRAY[pgembed.encode_text('lite', 'a shoe'), pgembed.encode_text('lite', 'blue')],
--         weights => '{1,-0.5}', names => '{a shoe,blue}'));
--
-- prototype ... exact  as of search; without a query, the sum of the terms is one.
-- terms, weights, names  what the query is the sum of (pgembed.compose), to be told what each gave.
-- recall  also compares all rows: which share of the k nearest was found.
--
-- plan is index where a vector index answered, exact where all matching rows were compared, after looks at the index
-- (candidates, NULL where it was read until enough were found, and matching rows found) that gave too few, or at once.
-- matching is the planner's estimate of the rows that match, where it was asked; total about the rows of the table.
-- milliseconds is the time of the search alone. rows has each row's key, as text, and score, and for each term its
-- similarity to the row and under cosine its share, which add up to the score. postgres is Postgres's own plan.
CREATE OR REPLACE FUNCTION pgembed.explain_search(
    prototype anyelement,
    query @extschema:vector@.vector DEFAULT NULL,
    k integer DEFAULT 10,
    filter text DEFAULT NULL,
    params jsonb DEFAULT NULL,
    embedding text DEFAULT NULL,
    exact boolean DEFAULT false,
    terms @extschema:vector@.vector[] DEFAULT NULL,
    weights float8[] DEFAULT NULL,
    names text[] DEFAULT NULL,
    recall boolean DEFAULT false
) RETURNS jsonb
LANGUAGE plpgsql VOLATILE
AS $$
DECLARE
    row_type CONSTANT regtype := pg_typeof(prototype);
    target CONSTANT record := pgembed._search_target(row_type, embedding, false);
    keys CONSTANT record := pgembed._explained_keys(target.relation);
    -- whether exact, and a parenthesis, follow
    asked CONSTANT text := format('FROM pgembed.search(NULL::%s, $1, k => $2, filter => $3, params => $4, '
        'embedding => %L, wide => %L, exact => ', row_type, target.target, keys.wide);
    summed @extschema:vector@.vector;
    length float8; -- of the sum
    began timestamptz;
    took float8;
    found jsonb;
    trace jsonb;
    share float8;
BEGIN
    IF terms IS NOT NULL THEN
        IF target.shares IS NOT NULL THEN
            query := pgembed._fitted(query, target.dim, target.shares);
            terms := ARRAY(SELECT @extschema:vector@.l2_normalize(pgembed._fitted(t.v, target.dim, target.shares))
                FROM unnest(terms) WITH ORDINALITY AS t (v, n) ORDER BY t.n);
        END IF;
        summed := pgembed.compose(terms, weights);
        weights := coalesce(weights, array_fill(1::float8, ARRAY[cardinality(terms)]));
        query := coalesce(query, summed);
        PERFORM pgembed._check_query(v, target.source, target.target, target.encoder, target.dim)
        FROM unnest(ARRAY[query, summed]) AS v;
        IF query OPERATOR(@extschema:vector@.<=>) summed > 1e-3 THEN
            IF target.metric = 'cosine' THEN
                RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
                    MESSAGE = 'The query is not the sum of the terms with these weights.',
                    HINT = 'Leave the query out, or give the terms that it was composed of.';
            END IF;
        ELSIF cardinality(terms) > 1 AND (target.metric = 'cosine' OR target.shares IS NOT NULL) THEN
            SELECT sqrt(sum(a.w * b.w * (1 - (a.v OPERATOR(@extschema:vector@.<=>) b.v)))) INTO length
            FROM unnest(terms, weights) AS a (v, w) CROSS JOIN unnest(terms, weights) AS b (v, w);
            IF target.metric <> 'cosine' THEN -- the score grows with the query
                length := length / @extschema:vector@.vector_norm(query);
            END IF;
        END IF;
    END IF;
    began := clock_timestamp();
    EXECUTE 'SELECT count(*) ' || asked || (exact IS TRUE) || ')' INTO took USING query, k, filter, params;
    took := extract(epoch FROM clock_timestamp() - began) * 1000;

    PERFORM set_config('pgembed.trace', '[]', true);
    EXECUTE format('WITH "explained" AS MATERIALIZED (SELECT %1$s, s.score AS "explained score", '
        's.n AS "explained place" %2$s WITH ORDINALITY AS s (item, score, n)) '
        'SELECT coalesce(jsonb_agg(jsonb_build_object(''key'', %3$s, ''score'', "explained score", ''terms'', ('
            'SELECT jsonb_agg(jsonb_build_object(''term'', t.name, ''weight'', t.w, ''similarity'', t.similarity, '
                '''share'', t.w * t.similarity / $8) ORDER BY t.n) FROM (SELECT g.*, %4$s AS similarity '
                'FROM unnest($5, $6, $7) WITH ORDINALITY AS g (v, w, name, n) WHERE g.v IS NOT NULL) AS t)) '
        -- LEFT has the search run where the table is empty too
        'ORDER BY "explained place"), ''[]'') FROM "explained" LEFT JOIN %5$s ON %6$s',
        keys.found, asked || (exact IS TRUE) || ')', keys.told,
        format(CASE target.metric WHEN 'cosine' THEN '1 - (%s)' ELSE '-(%s)' END,
            regexp_replace(target.distance, '\$1(::[^$]+)?$', 'g.v\1')),
        target.source || target.side, keys.joined)
        INTO found USING query, k, filter, params, terms, weights, names, length;
    trace := current_setting('pgembed.trace')::jsonb -> 0;
    PERFORM set_config('pgembed.trace', '', true);
    IF recall THEN
        EXECUTE format('SELECT (SELECT count(*) FROM jsonb_array_elements($5) AS f '
            'WHERE (f ->> ''score'')::float8 >= min(s.score))::float8 / nullif(count(*), 0) %strue) AS s',
            asked) INTO share USING query, k, filter, params, found;
    END IF;
    RETURN trace || jsonb_build_object('milliseconds', round(took::numeric, 3), 'rows', found,
        'recall', CASE WHEN share > 1 THEN 1 ELSE share END);
END
$$;

-- What pgembed.hybrid with these arguments does: method, depth, milliseconds and, with recall, the share of the rows
-- that the same search by comparing all rows gives; for each leg (numbered from 1, words last) its weight, how many
-- candidates it gave and, of vectors, the embedding and what explain_search tells of its search; for each row its key,
-- score, what each leg that has it gave (rank among the candidates, score, share of the whole, which add up), and the
-- words, as the text search configuration has them, that it has in common with those asked for.
CREATE OR REPLACE FUNCTION pgembed.explain_hybrid(
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
    exact boolean DEFAULT false,
    recall boolean DEFAULT false
) RETURNS jsonb
LANGUAGE plpgsql VOLATILE
AS $$
DECLARE
    row_type CONSTANT regtype := pg_typeof(prototype);
    relation CONSTANT oid := (SELECT t.typrelid FROM pg_catalog.pg_type AS t WHERE t.oid = row_type);
    made record := pgembed._hybrid_statement(row_type, words, k, queries, embeddings, weights, method, filter, params,
        filters, columns, config, words_function, depth, false, exact);
    told text; -- the key, in JSON
    document text; -- what words are looked for in
    began timestamptz;
    took float8;
    found jsonb;
    candidates integer[];
    trace jsonb;
    share float8;
BEGIN
    began := clock_timestamp();
    EXECUTE made.ctes || ' SELECT count(*) FROM "hybrid fused"' INTO took
        USING made.vectors, k, params, greatest(depth, k), made.shares, words, made.wanted, made.unwanted;
    took := extract(epoch FROM clock_timestamp() - began) * 1000;

    IF words IS NOT NULL AND words_function IS NULL THEN
        SELECT string_agg(format('coalesce(%s, '''')', d.document), ' || ') INTO document
        FROM pgembed._words_documents(relation, columns, config) AS d;
    END IF;
    told := (pgembed._explained_keys(relation)).told;
    PERFORM set_config('pgembed.trace', '[]', true);
    EXECUTE format('%1$s SELECT (SELECT coalesce(jsonb_agg(jsonb_build_object(''key'', %2$s, ''score'', '
            '"hybrid score", ''legs'', "hybrid legs", ''words'', %3$s) ORDER BY "hybrid score" DESC, %4$s), ''[]'') '
        'FROM (SELECT %4$s, "hybrid score", jsonb_agg(jsonb_build_object(''leg'', leg, ''rank'', place, '
                '''score'', similarity, ''share'', part) ORDER BY leg) AS "hybrid legs" '
            'FROM "hybrid fused" JOIN "hybrid part" USING (%4$s) GROUP BY %4$s, "hybrid score") AS fused '
        'JOIN %5$s ON %6$s), ARRAY[%7$s]', made.ctes, replace(told, 'explained key', 'hybrid key'),
        coalesce('ARRAY(SELECT w FROM unnest(tsvector_to_array(' || document
            || ')) AS w WHERE w = ANY ($9) ORDER BY w)', 'NULL'), made.names, made.source, made.joined,
        (SELECT string_agg(format('(SELECT count(*)::integer FROM "hybrid leg %s")', leg), ', ' ORDER BY leg)
            FROM generate_series(1, cardinality(made.shares)) AS leg))
        INTO found, candidates USING made.vectors, k, params, greatest(depth, k), made.shares, words, made.wanted,
            made.unwanted, pgembed._lexemes(made.wanted);
    trace := current_setting('pgembed.trace');
    PERFORM set_config('pgembed.trace', '', true);
    IF recall THEN
        made := pgembed._hybrid_statement(row_type, words, k, made.vectors, made.legs, weights, method, filter, params,
            filters, columns, config, words_function, depth, false, true);
        EXECUTE format('%1$s SELECT avg((%2$s IN (SELECT f -> ''key'' FROM jsonb_array_elements($9) AS f))::integer) '
            'FROM "hybrid fused"', made.ctes, replace(told, 'explained key', 'hybrid key'))
            INTO share USING made.vectors, k, params, greatest(depth, k), made.shares, words, made.wanted,
                made.unwanted, found;
    END IF;
    RETURN jsonb_build_object('method', method, 'depth', greatest(depth, k), 'milliseconds', round(took::numeric, 3),
        'rows', found, 'recall', share, 'legs', (
            SELECT jsonb_agg(jsonb_build_object('leg', leg, 'weight', made.shares[leg], 'candidates', candidates[leg],
                'embedding', made.legs[leg]) || CASE WHEN leg <= cardinality(made.legs) THEN trace -> (leg - 1)
                ELSE jsonb_build_object('words', words) END ORDER BY leg)
            FROM generate_series(1, cardinality(made.shares)) AS leg));
END
$$;

-- The same of search_several, whose arguments these are.
CREATE OR REPLACE FUNCTION pgembed.explain_several(
    prototype anyelement,
    queries jsonb,
    k integer DEFAULT 10,
    method text DEFAULT 'rank',
    filter text DEFAULT NULL,
    params jsonb DEFAULT NULL,
    depth integer DEFAULT 100,
    exact boolean DEFAULT false,
    recall boolean DEFAULT false
) RETURNS jsonb
LANGUAGE plpgsql VOLATILE
AS $$
DECLARE
    made CONSTANT record := pgembed._several_legs(pg_typeof(prototype), queries);
BEGIN
    RETURN pgembed.explain_hybrid(prototype, k => k, queries => made.vectors, embeddings => made.embeddings,
        weights => made.weights, method => method, filter => filter, params => params, filters => made.filters,
        depth => depth, exact => exact, recall => recall);
END
$$;

-- The lexemes that a tsquery names. Called by explain_hybrid.
CREATE OR REPLACE FUNCTION pgembed._lexemes(query tsquery) RETURNS text[]
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN ARRAY(SELECT replace(replace(m[1], '''''', ''''), '\\', '\')
    FROM regexp_matches(query::text, '''((?:[^'']|'''')*)''', 'g') AS m);

-- The key's columns of a table for explanations: found (read from what search gives as s), told (as an array of texts
-- in JSON), joined (equal to the table's), and whether one of them is wide. Called by explain_search and
-- explain_hybrid.
CREATE OR REPLACE FUNCTION pgembed._explained_keys(
    relation oid,
    OUT found text,
    OUT told text,
    OUT joined text,
    OUT wide boolean
)
LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT string_agg(format('(s.item).%I AS "explained key %s"', a.attname, c.n), ', ' ORDER BY c.n),
        format('jsonb_build_array(%s)', string_agg(format('"explained key %s"::text', c.n), ', ' ORDER BY c.n)),
        string_agg(format('%I = "explained key %s"', a.attname, c.n), ' AND ' ORDER BY c.n),
        bool_or(pgembed._is_wide(a.atttypid))
    FROM jsonb_array_elements(pgembed._key_columns(relation)) WITH ORDINALITY AS c (key, n)
    JOIN pg_catalog.pg_attribute AS a ON a.attrelid = relation AND a.attname = c.key ->> 'name';
END;
