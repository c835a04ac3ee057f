-- Search: the nearest rows of a table to a query vector, with a filter that never comes back short.

-- The rows of a table that are nearest to a query vector, best first, each with its score.
--
--     SELECT (item).id, (item).title, score
--     FROM pgembed.search(NULL::product, (SELECT pgembed.encode_text('shop', 'red shoe')),
--                         k => 10, filter => 'price < $1 AND brand = ANY ($2)', params => '[50, ["acme", "zenith"]]');
--
-- prototype  names the table by its row type: NULL::product.
-- query      the vector, never NULL or zero; written as a scalar subquery, so that it is computed once. Where inputs
--            stand side by side (fusion 'concat'), it is put in the place of each; pgembed.padded does so by weights.
-- filter     what could stand after WHERE: one condition on the table's columns, the one place where SQL text is taken.
--            It runs with the caller's rights. Comments and further statements are refused.
-- params     a JSON array with the values of $1, $2 ... in the filter, which are bound, never pasted: a whole number is
--            a bigint, another number numeric, a string text, an array of these an array, an object jsonb. Other types
--            are cast in the filter: created_at > $1::timestamptz.
-- embedding  names the vector column where the table has several.
-- wide       also gives the bytea and vector columns of item, which are NULL otherwise: reading them is what costs.
-- exact      compares every matching row and uses no vector index.
-- score      the higher the nearer, by the encoder's metric: cosine similarity, inner product, or minus the distance;
--            where inputs stand side by side the mean of their cosines, by their weights.
--
-- k rows come back whenever k rows match; a vector that is NULL or zero never matches. With a filter, an index is
-- looked at as far as that should take less time than to compare all matching rows, which is done where it gave too few
-- (69_rounds.sql). Rights and row-level security are the caller's.
CREATE OR REPLACE FUNCTION pgembed.search(
    prototype anyelement,
    query @extschema:vector@.vector,
    k integer DEFAULT 10,
    filter text DEFAULT NULL,
    params jsonb DEFAULT NULL,
    embedding text DEFAULT NULL,
    wide boolean DEFAULT false,
    exact boolean DEFAULT false
) RETURNS TABLE (item anyelement, score float8)
LANGUAGE plpgsql STABLE PARALLEL UNSAFE ROWS 10
AS $$
DECLARE
    row_type CONSTANT regtype := pg_typeof(prototype);
    target record;
    condition text := '';
    keys text;
    scan_before text;
    ef_before text;
    in_rounds boolean;
    filtered boolean;
    candidates integer; -- of the graph, to look at; NULL where the graph is not to be asked
    bounded boolean := false; -- to that number; otherwise the graph is read until k rows match
    part_only boolean := false; -- an index of the matching rows alone is taken
    graph record;
    estimate record;
    ignored text;
    found_rows refcursor;
    number_found bigint;
    nearest record;
    best float8; -- the score at distance 0
    traced CONSTANT boolean := coalesce(current_setting('pgembed.trace', true), '') <> ''; -- by explain_search
    looks jsonb := '[]';
    matching float8;
    asked text; -- the statement
    -- the row's columns in order, then the distance; $1 is the query, $2 is k, $3 holds the params
    statement text :=
        'SELECT %1$s, %2$s AS "pgembed distance" FROM %3$s WHERE %4$s%5$s ORDER BY "pgembed distance"%6$s LIMIT $2';
    -- the matching rows among $4 candidates of the index, which is read in rounds: these give rows out of order, so
    -- that $5, some more than wanted, are taken; where these are found it is read no further
    among text := 'SELECT * FROM (SELECT * FROM (SELECT %1$s, %2$s AS "pgembed distance", %8$s AS "pgembed matches" '
        'FROM %3$s WHERE %4$s ORDER BY "pgembed distance" LIMIT $4) AS looked WHERE "pgembed matches" LIMIT $5) '
        'AS nearest ORDER BY 0 + "pgembed distance"%7$s LIMIT $2';
BEGIN
    -- what is asked most often has a function with a kept plan; where that gives nothing, all that follows is done
    IF filter IS NULL AND params IS NULL AND wide IS NOT TRUE AND exact IS NOT TRUE AND NOT traced
        AND k BETWEEN 1 AND least(current_setting('hnsw.ef_search', true)::integer, 10)
        AND current_setting('hnsw.iterative_scan', true) IS DISTINCT FROM 'relaxed_order' THEN
        BEGIN
            RETURN QUERY SELECT s.item, s.score FROM pgembed._kept_search(query, k, search.embedding, prototype) AS s;
            IF FOUND THEN
                RETURN;
            END IF;
        EXCEPTION WHEN syntax_error_or_access_rule_violation THEN
            NULL; -- there is none, the table is not what it was when it was made, or not all of it may be read
        END;
    END IF;

    target := pgembed._search_target(row_type, embedding, wide);
    IF target.side IS NULL THEN
        PERFORM pgembed._raise_no_side(target.source, target.target);
    ELSIF k IS NULL OR k <= 0 THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = format('k is the number of rows wanted, at least 1, not %s.', coalesce(k::text, 'NULL')),
            HINT = 'For example: k => 10.';
    END IF;
    IF target.parts THEN
        RETURN QUERY SELECT p.item, p.score
        FROM pgembed.search_parts(prototype, query, k, filter, params, embedding, wide, exact) AS p;
        RETURN;
    ELSIF target.shares IS NOT NULL THEN
        query := pgembed._fitted(query, target.dim, target.shares);
    END IF;
    PERFORM pgembed._check_query(query, target.source, target.target, target.encoder, target.dim);
    IF filter IS NOT NULL OR params IS NOT NULL THEN
        condition := pgembed._filter_condition(target.source, filter, params);
    END IF;

    best := CASE target.metric WHEN 'cosine' THEN 1 ELSE 0 END;
    scan_before := current_setting('hnsw.iterative_scan', true); -- NULL before pgvector 0.8
    ef_before := current_setting('hnsw.ef_search');
    filtered := condition <> '' OR row_security_active(target.relation);
    keys := pgembed._search_keys(target.relation, target.key_columns);
    IF exact IS NOT TRUE AND NOT filtered THEN
        candidates := k;
    ELSIF exact IS NOT TRUE THEN
        SELECT g.* INTO graph FROM pgembed.embedding AS e CROSS JOIN LATERAL pgembed._graph_of(e, target.metric) AS g
        WHERE e.relation = target.relation AND e.target = target.target;
        part_only := scan_before IS NOT NULL AND graph.partial && pgembed._planned_indexes(
            format(statement, '1', target.distance, target.source || target.side, target.present, condition, ''),
            query, k, params);
        IF part_only OR graph.usable IS NOT FALSE THEN
            estimate := pgembed._matching(target.source || target.side, target.present || condition, params);
            matching := estimate.matching;
        END IF;
        IF part_only THEN
            candidates := pgembed._partial_candidates(estimate.matching, estimate.cost, target.dim, target.half, k);
        ELSIF graph.usable IS NOT FALSE THEN
            candidates := pgembed._next_round(estimate.matching, estimate.cost, coalesce(graph.rows, 0), target.dim,
                target.half, k);
            bounded := true;
        END IF;
    END IF;
    -- before pgvector 0.8 there is one round
    WHILE candidates <= 1000 OR candidates IS NOT NULL AND (scan_before IS NOT NULL OR NOT bounded) LOOP
        -- one round of the index gives ef_search rows, in order; more than one gives them out of order
        in_rounds := filtered OR k > ef_before::integer OR scan_before = 'relaxed_order';
        IF in_rounds THEN
            ignored := set_config('hnsw.ef_search', least(greatest(ef_before::integer, k,
                CASE WHEN scan_before IS NULL OR part_only THEN candidates ELSE candidates / 4 END), 1000)::text, true);
            IF scan_before IS NOT NULL THEN
                ignored := set_config('hnsw.iterative_scan', 'relaxed_order', true);
            END IF;
        END IF;
        asked := format(
            CASE WHEN bounded THEN among
            -- a sum: Postgres takes the index's order for the distance's, and would sort only what is equally near
            WHEN in_rounds THEN 'SELECT * FROM (' || statement || ') AS nearest ORDER BY 0 + "pgembed distance"%7$s'
            ELSE statement END, target.columns, target.distance, target.source || target.side, target.present,
            condition, '', keys, coalesce(nullif(substr(condition, length(' AND ') + 1), ''), 'true'));
        OPEN found_rows SCROLL FOR EXECUTE asked
            USING query, k, params, candidates, ceil(1.25 * k)::integer; -- 1.25 is also in pgembed/query/texts.py
        MOVE FORWARD ALL FROM found_rows;
        GET DIAGNOSTICS number_found = ROW_COUNT;
        IF in_rounds THEN
            -- an error takes the settings back with the (sub)transaction that it ends
            ignored := set_config('hnsw.ef_search', ef_before, true);
            IF scan_before IS NOT NULL THEN
                ignored := set_config('hnsw.iterative_scan', scan_before, true);
            END IF;
        END IF;
        IF traced THEN
            looks := looks || jsonb_build_object('candidates', CASE WHEN bounded THEN candidates END,
                'found', number_found);
        END IF;
        IF number_found >= k THEN
            IF traced THEN
                PERFORM pgembed._trace(target.relation, target.target, looks, matching, asked, query, k, params,
                    candidates);
            END IF;
            MOVE ABSOLUTE 0 FROM found_rows;
            LOOP
                FETCH found_rows INTO nearest;
                -- NULL and zero vectors come last, and only where all rows were compared
                EXIT WHEN NOT FOUND OR (nearest."pgembed distance" < 'NaN') IS NOT TRUE;
                item := nearest; -- column by column; the distance is one too many
                score := best - nearest."pgembed distance";
                RETURN NEXT;
            END LOOP;
            CLOSE found_rows;
            RETURN;
        END IF;
        CLOSE found_rows;
        EXIT WHEN NOT bounded;
        candidates := pgembed._next_round(estimate.matching, estimate.cost, coalesce(graph.rows, 0), target.dim,
            target.half, k, candidates, number_found::integer);
    END LOOP;
    -- a sum is no order that an index has, which makes this exact
    asked := format(
        'SELECT ROW(%1$s)::%8$s, %9$s - "pgembed distance" FROM (' || statement || ') AS nearest '
        'WHERE "pgembed distance" < ''NaN'' ORDER BY "pgembed distance"%7$s', target.columns,
        '0 + (' || target.distance || ')', target.source || target.side, target.present, condition, keys, keys,
        row_type, best);
    IF traced THEN
        PERFORM pgembed._trace(target.relation, target.target, looks, matching, asked, query, k, params, NULL);
    END IF;
    RETURN QUERY EXECUTE asked USING query, k, params;
END
$$;

-- Say that the side table of an embedding is gone. Called by all that reads vectors.
CREATE OR REPLACE FUNCTION pgembed._raise_no_side(source text, target text) RETURNS void
LANGUAGE plpgsql STABLE
AS $$
BEGIN
    RAISE EXCEPTION USING ERRCODE = 'undefined_table',
        MESSAGE = format('The side table that holds the vectors %I of %s is gone.', target, source),
        HINT = 'Detach the embedding and attach it again; pgembed doctor tells more.';
END
$$;

-- Say why a vector is none to search an embedding with. Called by the search functions.
CREATE OR REPLACE FUNCTION pgembed._check_query(
    query @extschema:vector@.vector,
    source text,
    target text,
    encoder text,
    dim integer
) RETURNS void
LANGUAGE plpgsql STABLE
AS $$
BEGIN
    IF query IS NULL OR @extschema:vector@.vector_norm(query) = 0 THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = format('The query vector is %s, to which no row is near.',
                CASE WHEN query IS NULL THEN 'NULL' ELSE 'zero' END),
            HINT = 'If it was read from a table: there is no such row, or it is not encoded yet.';
    ELSIF @extschema:vector@.vector_dims(query) <> dim THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = format('%s.%I holds vectors of encoder ''%s'' with %s dimensions; the query has %s.',
                source, target, encoder, dim, @extschema:vector@.vector_dims(query)),
            HINT = format('Encode the query with ''%s''.', encoder);
    END IF;
END
$$;

DROP FUNCTION IF EXISTS pgembed._search_target(regtype, text, boolean);
DROP FUNCTION IF EXISTS pgembed._search_target(regtype, text, boolean, text);

-- What a search of a table needs to know, and the parts of its statement, in which `query` is the query vector: source
-- (the table, as FROM names it), side (what follows it there where vectors stand in a table of their own: with parts,
-- each), nearest (the same, and of a row's parts the nearest alone), columns (the row's, NULL in place of those not
-- given), distance, present (the condition that there is a vector), shares (of a vector in which inputs stand side by
-- side), whether a row has parts, and the query that reads them. Called by the search functions.
CREATE OR REPLACE FUNCTION pgembed._search_target(
    row_type regtype,
    embedding text,
    wide boolean,
    query text DEFAULT '$1',
    OUT relation oid,
    OUT source text,
    OUT side text,
    OUT target text,
    OUT encoder text,
    OUT space text,
    OUT metric text,
    OUT dim integer,
    OUT columns text,
    OUT distance text,
    OUT present text,
    OUT key_columns jsonb,
    OUT half boolean,
    OUT shares float8[],
    OUT nearest text,
    OUT part_rows text,
    OUT parts boolean
)
LANGUAGE plpgsql STABLE
SET plan_cache_mode = 'force_generic_plan' -- planning these small look-ups again costs more than running them
AS $$
#variable_conflict use_column
DECLARE
    embeddings bigint;
    found_embedding pgembed.embedding;
    vector_column text;
BEGIN
    SELECT t.typrelid INTO relation FROM pg_catalog.pg_type AS t WHERE t.oid = row_type;
    SELECT e.target, m.name, m.space, pgembed._metric(m.metric, e.fusion), pgembed._wide_dim(m.dim, e.fusion),
        CASE WHEN e.fusion IS NOT NULL THEN pgembed._shares(e.inputs, e.fusion) END, e.key_columns, e.id, e.storage,
        e.side, e.parts IS NOT NULL, count(*) OVER ()
    INTO target, encoder, space, metric, dim, shares, key_columns, found_embedding.id, found_embedding.storage,
        found_embedding.side, parts, embeddings
    FROM pgembed.embedding AS e
    JOIN pgembed.encoder AS m ON m.name = e.encoder
    WHERE e.relation = _search_target.relation
        AND (_search_target.embedding IS NULL OR e.target = _search_target.embedding);
    IF embeddings IS NULL THEN -- restored from a dump, and oids not yet resolved again
        SELECT e.target, m.name, m.space, pgembed._metric(m.metric, e.fusion), pgembed._wide_dim(m.dim, e.fusion),
            CASE WHEN e.fusion IS NOT NULL THEN pgembed._shares(e.inputs, e.fusion) END, e.id, e.storage,
            CASE e.storage WHEN 'side' THEN pgembed._side_of(e, c.oid) END, e.parts IS NOT NULL, count(*) OVER ()
        INTO target, encoder, space, metric, dim, shares, found_embedding.id, found_embedding.storage,
            found_embedding.side, parts, embeddings
        FROM pg_catalog.pg_class AS c
        JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
        JOIN pgembed.embedding AS e ON e.schema_name = n.nspname AND e.table_name = c.relname
        JOIN pgembed.encoder AS m ON m.name = e.encoder
        WHERE c.oid = _search_target.relation
            AND (_search_target.embedding IS NULL OR e.target = _search_target.embedding)
            AND NOT EXISTS (SELECT FROM pg_catalog.pg_class AS present WHERE present.oid = e.relation);
    END IF;
    IF embeddings IS DISTINCT FROM 1 THEN
        PERFORM pgembed._raise_no_target(row_type, _search_target.embedding);
    END IF;

    SELECT string_agg(CASE
            WHEN wide OR NOT pgembed._is_wide(a.atttypid) THEN quote_ident(a.attname)
            ELSE 'NULL'
        END, ', ' ORDER BY a.attnum),
        bool_or(a.attname = target AND found_embedding.storage = 'column'
            AND a.atttypid = '@extschema:vector@.halfvec'::regtype)
    INTO columns, half
    FROM pg_catalog.pg_attribute AS a
    WHERE a.attrelid = _search_target.relation AND a.attnum > 0 AND NOT a.attisdropped;

    source := relation::regclass;
    IF found_embedding.storage = 'side' THEN
        found_embedding.relation := relation;
        found_embedding.key_columns := coalesce(key_columns, pgembed._key_columns(relation));
    END IF;
    side := pgembed._side_join(found_embedding, parts);
    vector_column := CASE found_embedding.storage WHEN 'side' THEN 'pgembed vector' ELSE target END;
    distance := format('%I OPERATOR(@extschema:vector@.%s) %s%s', vector_column,
        CASE metric WHEN 'cosine' THEN '<=>' WHEN 'ip' THEN '<#>' ELSE '<->' END, query,
        CASE WHEN half THEN '::@extschema:vector@.halfvec' END);
    nearest := side;
    IF parts THEN
        part_rows := pgembed._side_rows_sql(found_embedding, true);
        nearest := pgembed._nearest_part_sql(found_embedding, distance);
    END IF;
    -- a zero vector has no cosine distance; under the other metrics it must be told apart
    present := format(CASE WHEN metric = 'cosine' THEN '%I IS NOT NULL' WHEN half THEN '@extschema:vector@.l2_norm(%I) > 0'
        ELSE '@extschema:vector@.vector_norm(%I) > 0' END, vector_column);
END
$$;

-- Whether columns of this type are NULL in the rows of a search that does not ask for them. Called by search
-- functions.
CREATE OR REPLACE FUNCTION pgembed._is_wide(type oid) RETURNS boolean
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN type IN ('bytea'::regtype, '@extschema:vector@.vector'::regtype, '@extschema:vector@.halfvec'::regtype,
    '@extschema:vector@.sparsevec'::regtype, '@extschema:vector@.vector[]'::regtype);

-- What search asks first, the search of the table whose row type is the prototype's: its body is written by
-- _keep_searches, and calls that table's function by name. To call it by a name put together in search would have the
-- call itself planned each time.
CREATE OR REPLACE FUNCTION pgembed._kept_search(
    query @extschema:vector@.vector,
    k integer,
    embedding text,
    prototype anyelement,
    OUT item anyelement,
    OUT score float8
) RETURNS SETOF record
LANGUAGE plpgsql STABLE ROWS 10
AS 'BEGIN END';

-- Keep a function search_<oid of the row type> for each table: the search for up to 10 rows, without a filter and
-- without wide columns. Postgres keeps the plan of a statement that stands in a function; to plan it anew takes longer
-- than all else that search does. Called by install, attach, detach, forget and sync, whoever calls these.
CREATE OR REPLACE FUNCTION pgembed._keep_searches() RETURNS void
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    kept record;
BEGIN
    IF NOT pg_try_advisory_xact_lock(hashtext('pgembed._keep_searches')) THEN
        RETURN; -- another does it just now; a table that it does not see yet is searched without until the next sync
    END IF;
    FOR kept IN
        SELECT coalesce(p.proname, w.proname) AS name, w.body
        FROM (
            SELECT DISTINCT 'search_' || c.reltype AS proname, pgembed._search_body(c.oid) AS body
            FROM pgembed.embedding AS e
            JOIN pg_catalog.pg_class AS c ON c.oid = e.relation
            UNION ALL
            SELECT '_kept_search', format(E'BEGIN\n    CASE pg_typeof(prototype)::oid%s\n    ELSE NULL;\n    END CASE;\nEND',
                string_agg(format(E'\n    WHEN %s THEN\n        RETURN QUERY SELECT * FROM pgembed.search_%s($1, $2, $3, $4);',
                    c.reltype, c.reltype), '' ORDER BY c.reltype))
            FROM (SELECT DISTINCT relation FROM pgembed.embedding WHERE parts IS NULL) AS e
            JOIN pg_catalog.pg_class AS c ON c.oid = e.relation
            HAVING count(*) > 0
        ) AS w
        FULL JOIN (
            SELECT * FROM pg_catalog.pg_proc
            WHERE pronamespace = 'pgembed'::regnamespace AND proname ~ '^(search_[0-9]+|_kept_search)$'
        ) AS p USING (proname)
        WHERE p.prosrc IS DISTINCT FROM w.body
            AND (p.oid IS NULL OR pg_has_role(p.proowner, 'USAGE'))
    LOOP
        IF kept.body IS NULL AND kept.name <> '_kept_search' THEN
            -- the table is gone or was detached, or has another number since it was restored
            EXECUTE format('DROP FUNCTION IF EXISTS pgembed.%I', kept.name);
        ELSE
            EXECUTE format('CREATE OR REPLACE FUNCTION pgembed.%I(query @extschema:vector@.vector, k integer, '
                'embedding text, prototype anyelement, OUT item anyelement, OUT score float8) '
                'RETURNS SETOF record LANGUAGE plpgsql STABLE ROWS 10 AS %L', kept.name,
                coalesce(kept.body, 'BEGIN END'));
        END IF;
    END LOOP;
END
$$;
REVOKE ALL ON FUNCTION pgembed._keep_searches() FROM PUBLIC;

-- The body of that function. It gives k rows or, where search must look closer, none. Called by _keep_searches.
--
-- A row is put together by position, so that renamed columns are no matter. Postgres reads the statement again after
-- each change of the table, and then it is an error where a column was added, was dropped, or became or ceased to be
-- wide: its types are compared in what comes after true OR, which is checked and never run.
CREATE OR REPLACE FUNCTION pgembed._search_body(relation oid) RETURNS text
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    names text;
    given text;
    types text;
BEGIN
    SELECT string_agg('c' || n, ', ' ORDER BY n),
        string_agg(CASE WHEN pgembed._is_wide(type) THEN 'NULL' ELSE 'c' || n END, ', ' ORDER BY n),
        string_agg(format(' OR coalesce(c%s, NULL::%s) IS NULL', n, pgembed._type_sql(type, 0)), '' ORDER BY n)
    INTO names, given, types
    FROM (
        SELECT a.atttypid AS type, row_number() OVER (ORDER BY a.attnum) AS n
        FROM pg_catalog.pg_attribute AS a
        WHERE a.attrelid = _search_body.relation AND a.attnum > 0 AND NOT a.attisdropped
    ) AS columns;
    RETURN (
        SELECT E'\n#variable_conflict use_column\nBEGIN' || string_agg(format($body$
    IF %1$s AND NOT row_security_active(%2$L::regclass)
        AND @extschema:vector@.vector_dims($1) = %3$s AND @extschema:vector@.vector_norm($1) > 0 THEN
        RETURN QUERY
        SELECT ROW(%4$s)::%2$s, %5$s - distance
        FROM (
            SELECT *, count(*) OVER () AS number_found
            FROM (
                SELECT * -- LIMIT 10 is for the planner, which does not know $2
                FROM (SELECT %6$s, t.* FROM %2$s AS t%10$s WHERE %7$s ORDER BY %6$s LIMIT 10)
                    AS ordered (distance, %8$s)
                LIMIT $2
            ) AS nearest
            WHERE distance < 'NaN' AND (true%9$s)
        ) AS counted
        WHERE number_found >= $2
        ORDER BY distance;
    END IF;$body$,
            format(CASE WHEN e.number > 1 THEN '$3 = %L' ELSE 'coalesce($3 = %L, true)' END, e.target),
            s.source, s.dim, given, CASE s.metric WHEN 'cosine' THEN 1 ELSE 0 END, s.distance, s.present, names, types,
            s.side),
            '' ORDER BY e.id) || E'\nEND\n'
        FROM pg_catalog.pg_class AS c
        JOIN (SELECT *, count(*) OVER () AS number FROM pgembed.embedding AS a
            WHERE a.relation = _search_body.relation) AS e ON e.relation = c.oid
        CROSS JOIN LATERAL pgembed._search_target(c.reltype, e.target, false) AS s
        WHERE s.side IS NOT NULL AND NOT s.parts
    );
END
$$;

-- What breaks ties between equal distances: the key's columns, each after a comma. A key that is bytea breaks none,
-- and nor does one whose numbers in the catalog are not those of this table. Called by the search functions.
CREATE OR REPLACE FUNCTION pgembed._search_keys(relation oid, key_columns jsonb) RETURNS text
LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT coalesce(string_agg(', ' || quote_ident(a.attname), '' ORDER BY ordinal), '')
    FROM jsonb_array_elements(key_columns) WITH ORDINALITY AS k (key, ordinal)
    JOIN pg_catalog.pg_attribute AS a ON a.attrelid = relation AND a.attnum = (key ->> 'attnum')::smallint
    WHERE a.attname = key ->> 'name' AND a.atttypid <> 'bytea'::regtype AND NOT a.attisdropped;
END;

-- Say why a row type has not exactly one embedding (of this name). Called by _search_target.
CREATE OR REPLACE FUNCTION pgembed._raise_no_target(row_type regtype, embedding text) RETURNS void
LANGUAGE plpgsql STABLE
AS $$
DECLARE
    table_oid oid := (SELECT typrelid FROM pg_catalog.pg_type WHERE oid = row_type);
    relation_name text := table_oid::regclass;
    names text;
BEGIN
    IF table_oid = 0 THEN
        RAISE EXCEPTION USING ERRCODE = 'datatype_mismatch',
            MESSAGE = format('The first argument of search names a table by its row type, which %s is not.', row_type),
            HINT = 'For example: pgembed.search(NULL::product, ...).';
    END IF;
    SELECT string_agg(e.target, ', ' ORDER BY e.id) INTO names FROM pgembed.embedding AS e WHERE e.relation = table_oid;
    IF names IS NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'undefined_object',
            MESSAGE = format('Table %s has no embedding.', relation_name),
            HINT = format('Attach one: SELECT pgembed.attach(%L, ''embedding'', encoder => ''...'', inputs => ''{}'');',
                relation_name);
    ELSIF embedding IS NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'ambiguous_parameter',
            MESSAGE = format('Table %s has several embeddings: %s.', relation_name, names),
            HINT = format('Say which: embedding => %L.', split_part(names, ', ', 1));
    END IF;
    RAISE EXCEPTION USING ERRCODE = 'undefined_object',
        MESSAGE = format('Table %s has no embedding named ''%s''.', relation_name, embedding),
        HINT = format('It has: %s.', names);
END
$$;

DO $$ BEGIN PERFORM pgembed._keep_searches(); END $$;
