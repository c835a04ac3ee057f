-- Views of a space: directions that were learnt from two sets of rows or texts ("gender", "skin tone"), kept by name in
-- pgembed.direction, and projected out or added at query time. Rows are read with the caller's rights.

-- Keep directions of an encoder's space under a name; they are made orthonormal. The first one is what view() gives.
CREATE OR REPLACE FUNCTION pgembed.add_view(
    name text,
    encoder text,
    vectors @extschema:vector@.vector[],
    method text DEFAULT 'given',
    learnt_from jsonb DEFAULT '{}'
) RETURNS pgembed.direction
LANGUAGE plpgsql
AS $$
DECLARE
    registered pgembed.encoder;
    basis @extschema:vector@.vector[];
    made pgembed.direction;
BEGIN
    PERFORM pgembed._check_new_view(name);
    registered := pgembed._encoder(encoder);
    basis := pgembed.orthonormal(vectors);
    IF coalesce(cardinality(basis), 0) = 0 THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = pg_catalog.format('The view ''%s'' was given no direction.', name),
            HINT = 'Give it one vector at least, or learn it: SELECT pgembed.learn_view(...).';
    ELSIF @extschema:vector@.vector_dims(basis[1]) <> registered.dim THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = pg_catalog.format(
                'The view ''%s'' was given directions of %s dimensions; vectors of encoder ''%s'' have %s.', name,
                @extschema:vector@.vector_dims(basis[1]), encoder, registered.dim),
            HINT = 'Learn a view from vectors of the encoder that it is for.';
    END IF;
    INSERT INTO pgembed.direction AS d (name, encoder, vectors, method, learnt_from)
    VALUES (add_view.name, add_view.encoder, basis, add_view.method, coalesce(add_view.learnt_from, '{}'))
    RETURNING d.* INTO made;
    RETURN made;
END
$$;

-- Refuse a name that is none or is taken, and those who may not keep views. Called before anything is learnt.
CREATE OR REPLACE FUNCTION pgembed._check_new_view(name text) RETURNS void
LANGUAGE plpgsql STABLE
AS $$
BEGIN
    PERFORM pgembed._require_owner();
    IF coalesce(btrim(name), '') = '' THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = 'A view needs a name.', HINT = 'For example ''gender''.';
    ELSIF EXISTS (SELECT FROM pgembed.direction AS d WHERE d.name = _check_new_view.name) THEN
        RAISE EXCEPTION USING ERRCODE = 'duplicate_object',
            MESSAGE = pg_catalog.format('There is a view named ''%s'' already.', name),
            HINT = pg_catalog.format('Choose another name, or drop it first: SELECT pgembed.drop_view(%L);', name);
    END IF;
END
$$;

-- The view of this name, or an error that names those there are. Called by the functions of this file, and by Python.
CREATE OR REPLACE FUNCTION pgembed._view(name text) RETURNS pgembed.direction
LANGUAGE plpgsql STABLE
AS $$
DECLARE
    found_view pgembed.direction;
BEGIN
    SELECT * INTO found_view FROM pgembed.direction AS d WHERE d.name = _view.name;
    IF NOT FOUND THEN
        RAISE EXCEPTION USING ERRCODE = 'undefined_object',
            MESSAGE = pg_catalog.format('There is no view named %s.', coalesce('''' || name || '''', 'NULL')),
            HINT = 'There are: ' || coalesce(
                (SELECT string_agg(d.name, ', ' ORDER BY d.name) FROM pgembed.direction AS d),
                'none; learn one: SELECT pgembed.learn_view(...);');
    END IF;
    RETURN found_view;
END
$$;

-- Forget a view. An index that pgembed.neutral_index_sql made for it stays until it is dropped.
CREATE OR REPLACE FUNCTION pgembed.drop_view(name text) RETURNS void
LANGUAGE plpgsql
AS $$
BEGIN
    PERFORM pgembed._require_owner();
    PERFORM pgembed._view(name);
    DELETE FROM pgembed.direction AS d WHERE d.name = drop_view.name;
END
$$;

-- The views, for people.
CREATE OR REPLACE VIEW pgembed.views AS
SELECT d.name, d.encoder, e.space, cardinality(d.vectors) AS directions, d.method, d.learnt_from, d.created_at
FROM pgembed.direction AS d
JOIN pgembed.encoder AS e ON e.name = d.encoder;

-- The first direction of a view, of unit length; it points from "those" to "these". To move a query along it:
--     ORDER BY embedding <=> (SELECT pgembed.compose(ARRAY[photo, pgembed.view('gender')], ARRAY[1, 0.4]))
CREATE OR REPLACE FUNCTION pgembed.view(name text) RETURNS @extschema:vector@.vector
LANGUAGE sql STABLE
RETURN (pgembed._view(name)).vectors[1];

-- All directions of a view, orthonormal: what reject, neutralize and equalize take.
CREATE OR REPLACE FUNCTION pgembed.view_directions(name text) RETURNS @extschema:vector@.vector[]
LANGUAGE sql STABLE
RETURN (pgembed._view(name)).vectors;

-- A query vector without what it has of a view; NULL for NULL, an error where nothing is left. Of the query alone: rows
-- keep theirs, and their lengths with it. pgembed.search_neutral takes it out of both.
--     ORDER BY embedding <=> (SELECT pgembed.without(pgembed.encode_text('shop', 'a doctor'), 'gender'))
CREATE OR REPLACE FUNCTION pgembed.without(v @extschema:vector@.vector, view text) RETURNS @extschema:vector@.vector
LANGUAGE sql STABLE
RETURN pgembed.reject(v, pgembed.view_directions(view));

-- Learn a view from two sets of rows, and keep it under a name.
--
--     SELECT pgembed.learn_view('gender', 'emoji', 'gender = ''man''', 'gender = ''woman''');
--     SELECT pgembed.learn_view('gender', 'emoji', 'gender = $1', 'gender = $2', pair => 'role', components => 3,
--                               params => '["man", "woman"]');
--
-- these, those  filters as pgembed.search takes them, with params for both. The direction points from those to these.
-- embedding     names the vector column where the table has several.
-- pair          an SQL expression: rows of both sets for which it is equal make a pair, those of one set by their mean.
-- components    how many directions; several come from pairs alone.
--
-- Without pairs it is the difference of the sets' centroids, the means of their vectors made unit length; with them the
-- first principal components of the differences, of at most 2,000 pairs. Rows without a vector are passed over.
CREATE OR REPLACE FUNCTION pgembed.learn_view(
    name text,
    relation regclass,
    these text,
    those text,
    embedding text DEFAULT NULL,
    pair text DEFAULT NULL,
    components integer DEFAULT 1,
    params jsonb DEFAULT NULL
) RETURNS pgembed.direction
LANGUAGE plpgsql
AS $$
DECLARE
    target CONSTANT record := pgembed._vectors_target(relation, embedding);
    learnt record;
    numbers bigint[];
    means @extschema:vector@.vector[];
    differences @extschema:vector@.vector[];
    source jsonb;
BEGIN
    PERFORM pgembed._check_new_view(name);
    IF pair IS NULL THEN
        SELECT ARRAY[@extschema:vector@.avg(r.vector) FILTER (WHERE r.is_one),
                @extschema:vector@.avg(r.vector) FILTER (WHERE NOT r.is_one)],
            ARRAY[count(*) FILTER (WHERE r.is_one), count(*) FILTER (WHERE NOT r.is_one)]
        INTO means, numbers
        FROM pgembed._view_rows(relation, these, those, embedding, pair, params) AS r;
        differences := ARRAY[means[1] OPERATOR(@extschema:vector@.-) means[2]];
    ELSE
        WITH pairs AS (
            SELECT md5(r.pair_key) AS place, count(*) FILTER (WHERE r.is_one) AS these,
                count(*) FILTER (WHERE NOT r.is_one) AS those,
                @extschema:vector@.avg(r.vector) FILTER (WHERE r.is_one) AS one,
                @extschema:vector@.avg(r.vector) FILTER (WHERE NOT r.is_one) AS other
            FROM pgembed._view_rows(relation, these, those, embedding, pair, params) AS r
            GROUP BY r.pair_key
        ), chosen AS (
            SELECT p.place, p.one OPERATOR(@extschema:vector@.-) p.other AS difference FROM pairs AS p
            WHERE p.these > 0 AND p.those > 0 ORDER BY p.place LIMIT 2000
        )
        SELECT (SELECT array_agg(c.difference ORDER BY c.place) FROM chosen AS c),
            ARRAY[coalesce(sum(p.these), 0), coalesce(sum(p.those), 0)]
        INTO differences, numbers FROM pairs AS p;
    END IF;
    FOR n IN 1..2 LOOP
        IF numbers[n] = 0 THEN
            RAISE EXCEPTION USING ERRCODE = 'no_data_found',
                MESSAGE = pg_catalog.format('No row of %s with a vector matches %s.', relation,
                    quote_literal(CASE n WHEN 1 THEN these ELSE those END)),
                HINT = 'A view is learnt from two sets of rows that have their vectors.';
        END IF;
    END LOOP;
    IF differences IS NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'no_data_found',
            MESSAGE = pg_catalog.format('No value of %s is that of rows of both sets.', quote_literal(pair)),
            HINT = 'Rows for which it is equal make a pair; learn without pairs, or from another expression.';
    END IF;
    learnt := pgembed._learn(differences, pair IS NOT NULL, components);
    source := pg_catalog.jsonb_build_object('table', relation::text, 'embedding', target.target, 'these', these,
        'those', those, 'rows', numbers);
    IF pair IS NOT NULL THEN
        source := source || pg_catalog.jsonb_build_object('pair', pair, 'pairs', cardinality(differences), 'shares',
            learnt.shares);
    END IF;
    IF params IS NOT NULL THEN
        source := source || pg_catalog.jsonb_build_object('params', params);
    END IF;
    RETURN pgembed.add_view(name, target.encoder, learnt.vectors,
        CASE WHEN pair IS NULL THEN 'centroids' ELSE 'pairs' END, source);
END
$$;

-- The same from vectors that are there, those of texts above all; with `paired` the n-th of both make a pair.
--     SELECT pgembed.learn_view_from('gender', 'shop',
--         ARRAY[pgembed.encode_text('shop', 'a man')], ARRAY[pgembed.encode_text('shop', 'a woman')]);
CREATE OR REPLACE FUNCTION pgembed.learn_view_from(
    name text,
    encoder text,
    these @extschema:vector@.vector[],
    those @extschema:vector@.vector[],
    paired boolean DEFAULT false,
    components integer DEFAULT 1,
    learnt_from jsonb DEFAULT '{}'
) RETURNS pgembed.direction
LANGUAGE plpgsql
AS $$
DECLARE
    numbers CONSTANT integer[] := ARRAY[coalesce(cardinality(these), 0), coalesce(cardinality(those), 0)];
    fault text;
    learnt record;
    source jsonb := coalesce(learnt_from, '{}') || pg_catalog.jsonb_build_object('vectors', numbers);
BEGIN
    PERFORM pgembed._check_new_view(name);
    fault := CASE
        WHEN 0 = ANY (numbers) THEN 'One of the two sets of vectors is empty.'
        WHEN paired AND numbers[1] <> numbers[2]
            THEN pg_catalog.format('Pairs need as many of these as of those, not %s and %s.', numbers[1], numbers[2])
        ELSE pgembed._compose_fault(these || those, array_fill(1::float8, ARRAY[numbers[1] + numbers[2]]))
    END;
    IF fault IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value', MESSAGE = fault,
            HINT = 'A view is learnt from two sets of vectors of one space, none of them NULL or zero.';
    END IF;
    learnt := pgembed._learn(CASE
        WHEN paired THEN ARRAY(
            SELECT @extschema:vector@.l2_normalize(a) OPERATOR(@extschema:vector@.-) @extschema:vector@.l2_normalize(b)
            FROM unnest(these, those) WITH ORDINALITY AS pairs (a, b, n) ORDER BY n)
        ELSE ARRAY[
            (SELECT @extschema:vector@.avg(@extschema:vector@.l2_normalize(a)) FROM unnest(these) AS a)
            OPERATOR(@extschema:vector@.-)
            (SELECT @extschema:vector@.avg(@extschema:vector@.l2_normalize(b)) FROM unnest(those) AS b)]
    END, paired, components);
    IF paired THEN
        source := source || pg_catalog.jsonb_build_object('pairs', numbers[1], 'shares', learnt.shares);
    END IF;
    RETURN pgembed.add_view(name, encoder, learnt.vectors, CASE WHEN paired THEN 'pairs' ELSE 'centroids' END, source);
END
$$;

-- The directions in differences between two sets, or an error where there are none. Called by learn_view and
-- learn_view_from.
CREATE OR REPLACE FUNCTION pgembed._learn(
    differences @extschema:vector@.vector[],
    paired boolean,
    components integer,
    OUT vectors @extschema:vector@.vector[],
    OUT shares float8[]
)
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE
AS $$
BEGIN
    IF components IS NULL OR components < 1 THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = pg_catalog.format('components is the number of directions wanted, at least 1, not %s.',
                coalesce(components::text, 'NULL')),
            HINT = 'For example: components => 2.';
    ELSIF components > 1 AND NOT paired THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = pg_catalog.format('The difference of two centroids is one direction, not %s.', components),
            HINT = 'Several come from pairs: say what pairs the rows, pair => ''...'', or that texts are paired.';
    END IF;
    differences := ARRAY(SELECT d FROM unnest(differences) WITH ORDINALITY AS o (d, n)
        WHERE @extschema:vector@.vector_norm(d) > 1e-6 ORDER BY n);
    IF cardinality(differences) = 0 THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = CASE
                WHEN paired THEN 'Both members of every pair have the same vector: there is no direction between them.'
                ELSE 'Both sets have the same centroid: there is no direction between them.' END,
            HINT = 'Give two sets that differ in what the view is to be about.';
    END IF;
    SELECT c.vectors, c.shares INTO vectors, shares FROM pgembed._components(differences, components) AS c;
    IF cardinality(vectors) < components THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = pg_catalog.format('The pairs differ in %s directions only, and %s were wanted.',
                cardinality(vectors), components),
            HINT = pg_catalog.format('Ask for %s, or give more pairs.', cardinality(vectors));
    END IF;
END
$$;

-- The rows of both sets that have a vector: which set, the value of the pairing expression as text, the vector at unit
-- length. A row in both sets comes twice; one whose pairing value is NULL does not come. Called by learn_view and by
-- Python.
CREATE OR REPLACE FUNCTION pgembed._view_rows(
    relation regclass,
    these text,
    those text,
    embedding text DEFAULT NULL,
    pair text DEFAULT NULL,
    params jsonb DEFAULT NULL
) RETURNS TABLE (is_one boolean, pair_key text, vector @extschema:vector@.vector)
LANGUAGE plpgsql STABLE
AS $$
DECLARE
    target CONSTANT record := pgembed._vectors_target(relation, embedding);
    condition text;
BEGIN
    IF these IS NULL OR those IS NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = pg_catalog.format('A view is learnt from two sets of rows, and "%s" is NULL.',
                CASE WHEN these IS NULL THEN 'these' ELSE 'those' END),
            HINT = 'Give a condition for each, as it could stand after WHERE: ''gender = ''''man''''''.';
    ELSIF pair IS NOT NULL THEN
        PERFORM pgembed._check_expression(target.source, pair);
    END IF;
    PERFORM pgembed._refuse_parts(target.source, target.target, target.encoder, target.dim, 'learnt from');
    FOREACH is_one IN ARRAY ARRAY[true, false] LOOP
        condition := pgembed._filter_condition(target.source, CASE WHEN is_one THEN these ELSE those END, params);
        RETURN QUERY EXECUTE format(
            E'SELECT $2, r."pgembed pair", r."pgembed unit" FROM (SELECT (%s\n)::text AS "pgembed pair", '
            '@extschema:vector@.l2_normalize(%s) AS "pgembed unit" FROM %s WHERE %s%s) AS r '
            'WHERE @extschema:vector@.vector_norm(r."pgembed unit") > 0%s',
            coalesce(pair, 'NULL'), target.vector_sql, target.source || target.side, target.present, condition,
            CASE WHEN pair IS NOT NULL THEN ' AND r."pgembed pair" IS NOT NULL' ELSE '' END)
            USING NULL::@extschema:vector@.vector, is_one, params;
    END LOOP;
END
$$;

-- What _search_target gives of a table by its name, and the vector of a row, as SQL. Called by the functions of this
-- file.
CREATE OR REPLACE FUNCTION pgembed._vectors_target(
    relation regclass,
    embedding text,
    OUT source text,
    OUT side text,
    OUT present text,
    OUT vector_sql text,
    OUT target text,
    OUT encoder text,
    OUT space text,
    OUT dim integer,
    OUT half boolean,
    OUT keys text
)
LANGUAGE plpgsql STABLE
AS $$
DECLARE
    found record;
BEGIN
    found := pgembed._search_target((SELECT c.reltype::regtype FROM pg_catalog.pg_class AS c WHERE c.oid = relation),
        embedding, false);
    source := found.source;
    side := found.side;
    present := found.present;
    target := found.target;
    encoder := found.encoder;
    space := found.space;
    dim := found.dim;
    half := found.half;
    keys := pgembed._search_keys(found.relation, found.key_columns);
    IF side IS NULL THEN
        PERFORM pgembed._raise_no_side(source, target);
    END IF;
    vector_sql := CASE WHEN side <> '' THEN '"pgembed vector"' ELSE quote_ident(target) END
        || CASE WHEN half THEN '::@extschema:vector@.vector' ELSE '' END;
END
$$;

-- Refuse rows whose inputs stand side by side: their vectors are of no space that a view is of. Called by what reads
-- rows for views, search_neutral and neutral_index_sql.
CREATE OR REPLACE FUNCTION pgembed._refuse_parts(source text, target text, encoder text, dim integer, what text)
RETURNS void
LANGUAGE plpgsql STABLE
AS $$
BEGIN
    IF dim <> (pgembed._encoder(encoder)).dim THEN
        RAISE EXCEPTION USING ERRCODE = 'feature_not_supported',
            MESSAGE = pg_catalog.format('The inputs of %s.%I stand side by side, and no view is %s such rows.', source,
                target, what),
            HINT = 'Use an embedding that sums its inputs; a query may have views: SELECT pgembed.without(...).';
    END IF;
END
$$;

-- Refuse what is not one SQL expression on a table: it is read with the caller's rights, and this keeps it to what it
-- says. Called for pairing expressions, and by Python for the attribute of a probe.
CREATE OR REPLACE FUNCTION pgembed._check_expression(source text, expression text) RETURNS void
LANGUAGE plpgsql STABLE
AS $$
DECLARE
    refused text;
    place text;
    nothing record;
BEGIN
    IF regexp_replace(expression, '''[^'']*''|"[^"]*"', '', 'g') ~ '--|/\*|;' THEN
        refused := 'it holds a comment or a semicolon';
    ELSE
        -- as in _filter_condition: what parses in both places closes what it opens, and nothing else
        BEGIN
            FOREACH place IN ARRAY ARRAY[E'CASE WHEN true THEN\n%s\nEND', E'(\n%s\n)'] LOOP
                -- where no aggregate may stand
                FOR nothing IN EXECUTE format('SELECT FROM %s WHERE ' || place || '::text IS NULL LIMIT 0', source,
                    expression) LOOP
                END LOOP;
            END LOOP;
        EXCEPTION
            WHEN insufficient_privilege THEN
                RAISE;
            WHEN syntax_error_or_access_rule_violation OR data_exception OR feature_not_supported THEN
                refused := SQLERRM;
        END;
    END IF;
    IF refused IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'syntax_error',
            MESSAGE = format('%s is not one expression on %s: %s.', quote_literal(expression), source, refused),
            HINT = 'Give one expression on its columns: gender, or name || '' '' || vendor.';
    END IF;
END
$$;

-- Rows to probe a view on: the values of expressions as text, and the vector at unit length as numbers. At most
-- `sample` rows that match the filter, in an order that the seed decides. Called by Python.
CREATE OR REPLACE FUNCTION pgembed._view_sample(
    relation regclass,
    expressions text[],
    embedding text DEFAULT NULL,
    filter text DEFAULT NULL,
    params jsonb DEFAULT NULL,
    sample integer DEFAULT 5000,
    seed integer DEFAULT 0
) RETURNS TABLE (told text[], numbers float4[])
LANGUAGE plpgsql STABLE
AS $$
DECLARE
    target CONSTANT record := pgembed._vectors_target(relation, embedding);
    condition text := '';
    read text;
BEGIN
    PERFORM pgembed._refuse_parts(target.source, target.target, target.encoder, target.dim, 'probed on');
    PERFORM pgembed._check_expression(target.source, e) FROM unnest(expressions) AS e;
    read := (SELECT string_agg(E'(' || e || E'\n)::text', ', ' ORDER BY n)
        FROM unnest(expressions) WITH ORDINALITY AS o (e, n));
    IF filter IS NOT NULL OR params IS NOT NULL THEN
        condition := pgembed._filter_condition(target.source, filter, params);
    END IF;
    RETURN QUERY EXECUTE format(
        'SELECT r."pgembed told", r."pgembed unit"::float4[] FROM (SELECT ARRAY[%s]::text[] AS "pgembed told", '
        '@extschema:vector@.l2_normalize(%s) AS "pgembed unit", md5(concat_ws(''|'', $2%s)) AS "pgembed place" '
        'FROM %s WHERE %s%s) AS r WHERE @extschema:vector@.vector_norm(r."pgembed unit") > 0 '
        'ORDER BY r."pgembed place" LIMIT $4', read, target.vector_sql, target.keys,
        target.source || target.side, target.present, condition)
        USING NULL::@extschema:vector@.vector, seed, params, sample;
END
$$;
