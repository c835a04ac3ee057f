-- Explanations in SQL: how a search was run, and what gave each row its score, as JSON for jsonb_pretty.

DROP FUNCTION IF EXISTS pgembed.explain_search(anyelement, @extschema:vector@.vector, integer, text, jsonb, text,
    boolean, @extschema:vector@.vector[], float8[], text[], boolean);

-- What pgembed.search with these arguments does, and what each row's score is made of:
--
--     SELECT jsonb_pretty(pgembed.explain_search(NULL::product, filter => 'price < 50',
--         terms => ARRAY[pgembed.encode_text('lite', 'a shoe'), pgembed.encode_text('lite', 'blue')],
--         weights => '{1,-0.5}', names => '{a shoe,blue}'));
--
-- prototype ... exact  as of search; without a query, the sum of the terms is one.
-- terms, weights, names  what the query is the sum of (pgembed.compose), to be told what each gave.
-- recall  also compares all rows: which share of the k nearest was found.
-- views   for each row, the named views of the space on which it scores high: those on which nine in ten rows of a
--         sample of the table (1,000, or about so many) score less.
--
-- plan is index where a vector index answered (index is its name), partial index where one that holds a part of the
-- rows did, exact where all matching rows were compared, after looks at the index
-- (candidates, NULL where it was read until enough were found, and matching rows found) that gave too few, or at once.
-- matching is the planner's estimate of the rows that match, where it was asked; total about the rows of the table.
-- milliseconds is the time of the search alone. rows has each row's key, as text, and score, and for each term its
-- similarity to the row and under cosine its share, which add up to the score; where inputs stand side by side, for
-- each input of the row its weight, similarity and share, which add up too. postgres is Postgres's own plan.
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
    recall boolean DEFAULT false,
    views boolean DEFAULT false
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
    row_keys jsonb;
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
        target.source || target.nearest, keys.joined)
        INTO found USING query, k, filter, params, terms, weights, names, length;
    trace := current_setting('pgembed.trace')::jsonb -> 0;
    PERFORM set_config('pgembed.trace', '', true);
    IF recall THEN
        EXECUTE format('SELECT (SELECT count(*) FROM jsonb_array_elements($5) AS f '
            'WHERE (f ->> ''score'')::float8 >= min(s.score))::float8 / nullif(count(*), 0) %strue) AS s',
            asked) INTO share USING query, k, filter, params, found;
    END IF;
    row_keys := (SELECT jsonb_agg(r.value -> 'key' ORDER BY r.n)
        FROM jsonb_array_elements(found) WITH ORDINALITY AS r (value, n));
    IF target.shares IS NOT NULL THEN
        found := pgembed._each_with(found, 'inputs', pgembed._part_shares(target.relation, target.target,
            pgembed._fitted(query, target.dim, target.shares), row_keys));
    END IF;
    IF views THEN
        found := pgembed._each_with(found, 'views', pgembed._view_scores(target.relation, target.target, row_keys));
    END IF;
    RETURN trace || jsonb_build_object('milliseconds', round(took::numeric, 3), 'rows', found,
        'recall', CASE WHEN share > 1 THEN 1 ELSE share END);
END
$$;

-- Objects in JSON, each with one more field: of the n-th what `told` has there. Called by explain_search.
CREATE OR REPLACE FUNCTION pgembed._each_with(objects jsonb, field text, told jsonb) RETURNS jsonb
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN (
    SELECT coalesce(jsonb_agg(o.value || jsonb_build_object(field, told -> (o.n - 1)::integer) ORDER BY o.n), '[]')
    FROM jsonb_array_elements(objects) WITH ORDINALITY AS o (value, n)
);

-- That a row's key is "wanted key", an array of texts in JSON. Called by what follows.
CREATE OR REPLACE FUNCTION pgembed._wanted_row_sql(relation oid) RETURNS text
LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT string_agg(format('%I = ("wanted key" ->> %s)::%s', a.attname, c.n - 1,
        format_type(a.atttypid, a.atttypmod)), ' AND ' ORDER BY c.n)
    FROM jsonb_array_elements(pgembed._key_columns(relation)) WITH ORDINALITY AS c (key, n)
    JOIN pg_catalog.pg_attribute AS a ON a.attrelid = relation AND a.attname = c.key ->> 'name';
END;

-- What each input gave to the score of the rows with these keys, where inputs stand side by side: for each key in order
-- an array with input, weight, similarity and share, their product; an input that a row does not have is left out. By
-- the stored vectors, which makes the shares of a row add up to its score. Called by explain_search, and by Python.
CREATE OR REPLACE FUNCTION pgembed._part_shares(
    relation regclass,
    embedding text,
    query @extschema:vector@.vector,
    keys jsonb
) RETURNS jsonb
LANGUAGE plpgsql STABLE
AS $$
DECLARE
    target CONSTANT record := pgembed._vectors_target(relation, embedding);
    parts CONSTANT jsonb := (SELECT e.fusion -> 'parts' -- by name too, as _search_target finds it after a restore
        FROM pg_catalog.pg_class AS c
        JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
        JOIN pgembed.embedding AS e ON e.relation = c.oid OR e.schema_name = n.nspname AND e.table_name = c.relname
        WHERE c.oid = _part_shares.relation AND e.target = target.target
        ORDER BY e.relation = c.oid DESC NULLS LAST LIMIT 1);
    told jsonb;
BEGIN
    EXECUTE format('SELECT jsonb_agg(coalesce(t.told, ''[]'') ORDER BY "wanted n") '
        'FROM jsonb_array_elements($1) WITH ORDINALITY AS w ("wanted key", "wanted n") LEFT JOIN LATERAL ('
            'SELECT jsonb_agg(jsonb_build_object(''input'', b.part, ''weight'', b.weight, '
                '''similarity'', coalesce(b.share / nullif(b.weight, 0), 0), ''share'', b.share) ORDER BY b.n) AS told '
            'FROM (SELECT p.part, p.n, @extschema:vector@.vector_norm(s.own) AS length, '
                '@extschema:vector@.vector_norm(s.own) * @extschema:vector@.vector_norm(s.asked) AS weight, '
                '-(s.own OPERATOR(@extschema:vector@.<#>) s.asked) AS share '
                'FROM (SELECT %1$s AS vector FROM %2$s WHERE %3$s AND %4$s) AS r '
                'CROSS JOIN jsonb_array_elements_text($3) WITH ORDINALITY AS p (part, n) CROSS JOIN LATERAL ('
                    'SELECT @extschema:vector@.subvector(r.vector, (p.n::integer - 1) * $4 + 1, $4) AS own, '
                    '@extschema:vector@.subvector($2, (p.n::integer - 1) * $4 + 1, $4) AS asked) AS s) AS b '
            'WHERE b.length > 0) AS t ON true',
        target.vector_sql, target.source || target.side, pgembed._wanted_row_sql(relation), target.present)
        INTO told USING keys, query, parts, target.dim / jsonb_array_length(parts);
    RETURN told;
END
$$;

-- The named views of the space on which the rows with these keys score high, beside a sample of their table: for each
-- key in order an array with view, score (the similarity to the view's first direction) and above (the share of the
-- sample that scores less, 0.9 at least), the highest first. Called by explain_search, and by Python.
CREATE OR REPLACE FUNCTION pgembed._view_scores(relation regclass, embedding text, keys jsonb) RETURNS jsonb
LANGUAGE plpgsql VOLATILE
AS $$
DECLARE
    target CONSTANT record := pgembed._search_target(
        (SELECT c.reltype::regtype FROM pg_catalog.pg_class AS c WHERE c.oid = relation), embedding, false);
    total CONSTANT float8 := (SELECT g.rows FROM pgembed.embedding AS e
        CROSS JOIN LATERAL pgembed._graph_of(e, target.metric) AS g
        WHERE e.relation = _view_scores.relation AND e.target = target.target);
    told jsonb;
BEGIN
    EXECUTE format('WITH named AS (SELECT d.name AS "view name", pgembed._fitted(d.vectors[1], $2, $3) AS "view vector" '
            'FROM pgembed.direction AS d JOIN pgembed.encoder AS e ON e.name = d.encoder WHERE e.space = $4), '
        'drawn AS MATERIALIZED (SELECT %1$I FROM %2$s WHERE %3$s AND random() < $5 LIMIT 2000), '
        'sample AS (SELECT "view name" AS name, %4$s AS score FROM drawn CROSS JOIN named), '
        'scored AS (SELECT "wanted n" AS n, "view name" AS name, max(%4$s) AS score FROM jsonb_array_elements($1) '
            'WITH ORDINALITY AS w ("wanted key", "wanted n") JOIN %2$s ON %5$s CROSS JOIN named WHERE %3$s '
            'GROUP BY 1, 2), '
        'placed AS (SELECT r.*, (SELECT avg((s.score < r.score)::integer) FROM sample AS s '
            'WHERE s.name = r.name AND s.score < ''NaN'') AS above FROM scored AS r WHERE r.score < ''NaN'') '
        'SELECT jsonb_agg(coalesce((SELECT jsonb_agg(jsonb_build_object(''view'', p.name, ''score'', p.score, '
            '''above'', p.above) ORDER BY p.above DESC, p.score DESC, p.name) FROM placed AS p '
            'WHERE p.n = w.n AND p.above >= 0.9), ''[]'') ORDER BY w.n) '
        'FROM jsonb_array_elements($1) WITH ORDINALITY AS w (key, n)',
        CASE target.side WHEN '' THEN target.target ELSE 'pgembed vector' END, target.source || target.side,
        target.present, format(CASE target.metric WHEN 'cosine' THEN '1 - (%s)' ELSE '-(%s)' END,
            regexp_replace(target.distance, '\$1(::[^$]+)?$', '"view vector"\1')),
        pgembed._wanted_row_sql(relation))
        INTO told USING keys, target.dim, target.shares, target.space, least(1, 1000 / greatest(total, 1));
    RETURN told;
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
    parts CONSTANT pgembed.embedding := pgembed._words_parts(relation, columns, made.legs);
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

    IF words IS NOT NULL AND words_function IS NULL AND parts.id IS NOT NULL THEN
        SELECT format('(SELECT array_to_tsvector(array_agg(DISTINCT l)) FROM (%s) AS p '
            'CROSS JOIN unnest(tsvector_to_array("pgembed document")) AS l WHERE %s)',
            pgembed._part_words_sql(parts, w.document), replace(made.joined, 'hybrid key', 'pgembed key'))
        INTO document FROM pgembed._words_documents(parts.side, '{content}', config) AS w LIMIT 1;
    ELSIF words IS NOT NULL AND words_function IS NULL THEN
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
