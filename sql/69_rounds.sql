-- How a filtered search is run: how much of an index's graph to look at before all matching rows are compared.
--
-- A graph gives the rows nearest to the query whatever the filter says, so that a filter may leave too few of them:
-- what matches may be rare, or lie elsewhere. Then the graph must be read further, or the matching rows compared one by
-- one, which is exact. Which is quicker follows from the planner's estimate of the filter and from what was found.

-- The rows of an embedding's table, or the parts of these (an estimate), whether an HNSW index serves its vectors under
-- the metric, and the names of such indexes that hold a part of the rows only. Called by the search functions, and by
-- Python's.
CREATE OR REPLACE FUNCTION pgembed._graph_of(
    embedding pgembed.embedding,
    metric text,
    OUT rows float8,
    OUT usable boolean,
    OUT partial text[]
)
LANGUAGE plpgsql STABLE -- which keeps its plan
SET plan_cache_mode = 'force_generic_plan'
AS $$
BEGIN
    SELECT coalesce(
            (SELECT sum(greatest(leaf.reltuples, 0)) FROM pg_catalog.pg_partition_tree((embedding).relation) AS tree
                JOIN pg_catalog.pg_class AS leaf ON leaf.oid = tree.relid
                WHERE tree.isleaf AND (embedding).parts IS NULL),
            (SELECT greatest(c.reltuples, 0) FROM pg_catalog.pg_class AS c
                WHERE c.oid = CASE WHEN (embedding).parts IS NULL THEN (embedding).relation ELSE (embedding).side END)),
        coalesce(bool_or(i.of_all), false) OR pgembed._index_quantization(embedding, metric) IS NOT NULL,
        coalesce(array_agg(i.name) FILTER (WHERE NOT i.of_all), '{}')
    INTO rows, usable, partial
    FROM (
        SELECT c.relname::text AS name,
            coalesce(pg_get_expr(x.indpred, x.indrelid) = format('(%I IS NOT NULL)', a.attname), true) AS of_all
        FROM pgembed._vectors_of(embedding) AS place
        JOIN pg_catalog.pg_attribute AS a ON a.attrelid = place.relation AND a.attname = place.column_name
        JOIN pg_catalog.pg_index AS x ON x.indrelid = place.relation AND x.indkey[0] = a.attnum AND x.indisvalid
        JOIN pg_catalog.pg_class AS c ON c.oid = x.indexrelid
        JOIN pg_catalog.pg_am AS m ON m.oid = c.relam AND m.amname = 'hnsw'
        JOIN pg_catalog.pg_opclass AS o ON o.oid = x.indclass[0] AND o.opcname LIKE '%\_' || metric || '\_ops'
    ) AS i;
END
$$;

-- About how long it takes to compare all matching rows, in microseconds of a core of 2024, of which only the ratio to
-- _graph_time matters: the planner's estimates of the rows that match and of the cost of finding them; vectors of about
-- 2 kB and more are kept out of line, and take longer to read. Called by _next_round.
CREATE OR REPLACE FUNCTION pgembed._exact_time(matching float8, cost float8, dim integer, half boolean) RETURNS float8
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN 1.2 * cost
    + matching * (0.2 + dim * CASE WHEN dim * CASE WHEN half THEN 2 ELSE 4 END > 1950 THEN 0.0048 ELSE 0.002 END);

-- About how long the graph takes to give so many candidates, likewise. Called by _next_round.
CREATE OR REPLACE FUNCTION pgembed._graph_time(candidates float8, dim integer) RETURNS float8
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN 100 + candidates * (9 + dim * 0.02);

-- How many candidates of the graph to look at next; NULL: compare all matching rows.
--
-- matching, cost  the planner's estimate of the rows that match, and of the cost of finding them
-- total           the rows there are
-- k               the rows wanted
-- seen, matched   the last look's candidates, and how many of them, too few, match; 0 before the first
--
-- A look is taken where comparing all takes so many times as long: 1.6 where it should give enough rows and is short, 5
-- where it is long or may well give too few, 1.25 where the first look confirmed the estimate. Where that found far
-- fewer than the estimate says, what matches lies elsewhere: there a graph misses the nearest, so all are compared,
-- unless that takes very much longer. Called by the search functions, and by Python's.
CREATE OR REPLACE FUNCTION pgembed._next_round(
    matching float8,
    cost float8,
    total float8,
    dim integer,
    half boolean,
    k integer,
    seen integer DEFAULT 0,
    matched integer DEFAULT 0
) RETURNS integer
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE
AS $$
DECLARE
    believed CONSTANT float8 := 10; -- candidates that the planner's estimate counts as, against those seen
    first CONSTANT integer := greatest(40, k); -- 40 is pgvector's own
    exact CONSTANT float8 := pgembed._exact_time(matching, cost, dim, half);
    share CONSTANT float8 := greatest(matching, 1) / greatest(total, matching, 1);
    wanted CONSTANT float8 := greatest(first, 2 * seen,
        ceil(1.5 * k / ((matched + believed * share) / (seen + believed)))); -- half as many again as should do
BEGIN
    IF seen = 0 THEN
        IF wanted <= 20000 -- the bound of an iterative scan, by default
            AND pgembed._graph_time(wanted, dim) * (CASE WHEN wanted <= 2 * first THEN 1.6 ELSE 5 END) <= exact THEN
            RETURN wanted;
        ELSIF pgembed._graph_time(first, dim) * 5 <= exact THEN
            RETURN first;
        END IF;
    ELSIF matched >= 0.5 * seen * share THEN
        IF wanted <= 4000 AND pgembed._graph_time(wanted, dim) * 1.25 <= exact THEN
            RETURN wanted;
        END IF;
    ELSIF seen < 4000 AND pgembed._graph_time(4000, dim) * 10 <= exact THEN
        RETURN 4000;
    END IF;
    RETURN NULL;
END
$$;

-- How many candidates an index of the matching rows alone is asked for, with pgvector's hnsw.ef_search; NULL: compare
-- all matching rows, which takes no longer. Such a graph is small, and where the query lies elsewhere than its rows 40
-- candidates miss a fifth of the nearest, 120 a fortieth. Called by search, and by Python.
CREATE OR REPLACE FUNCTION pgembed._partial_candidates(
    matching float8,
    cost float8,
    dim integer,
    half boolean,
    k integer
) RETURNS integer
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE WHEN pgembed._exact_time(matching, cost, dim, half) > 0.5 * pgembed._graph_time(greatest(120, k), dim)
    THEN greatest(120, k) END;

-- The planner's estimate of a condition on a table: the rows that match, and the cost of finding them. VOLATILE, since
-- Postgres explains nothing in another function. Called by search.
CREATE OR REPLACE FUNCTION pgembed._matching(
    source text,
    condition text,
    params jsonb,
    OUT matching float8,
    OUT cost float8
)
LANGUAGE plpgsql VOLATILE
AS $$
DECLARE
    plan json;
BEGIN
    EXECUTE format('EXPLAIN (FORMAT JSON) SELECT FROM %s WHERE %s', source, condition)
        INTO plan USING NULL::@extschema:vector@.vector, 0, params;
    matching := plan -> 0 -> 'Plan' ->> 'Plan Rows';
    cost := plan -> 0 -> 'Plan' ->> 'Total Cost';
END
$$;

-- The names of the indexes in the plan of a statement. VOLATILE likewise. Called by search.
CREATE OR REPLACE FUNCTION pgembed._planned_indexes(
    statement text,
    query @extschema:vector@.vector,
    k integer,
    params jsonb
) RETURNS text[]
LANGUAGE plpgsql VOLATILE
AS $$
DECLARE
    plan json;
BEGIN
    EXECUTE 'EXPLAIN (FORMAT JSON) ' || statement INTO plan USING query, k, params;
    RETURN ARRAY(SELECT jsonb_path_query(plan::jsonb, 'strict $.**."Index Name"') #>> '{}');
END
$$;

DROP FUNCTION IF EXISTS pgembed._trace(oid, text, jsonb, float8, text, @extschema:vector@.vector, integer, jsonb,
    integer);

-- Add how a search was run to the setting pgembed.trace, a JSON array: the embedding, the looks at its index, the
-- planner's estimate of the matching rows, the table's rows, and Postgres's plan of the statement that answered, by
-- which the plan is called index (with its name), partial index (of some rows only) or exact. VOLATILE likewise. Called
-- by search, where that setting is not empty.
CREATE OR REPLACE FUNCTION pgembed._trace(
    relation oid,
    embedding text,
    looks jsonb,
    matching float8,
    statement text,
    query @extschema:vector@.vector,
    k integer,
    params jsonb,
    candidates integer,
    best integer DEFAULT 1
) RETURNS void
LANGUAGE plpgsql VOLATILE
AS $$
DECLARE
    line text;
    plan text[];
    index text; -- the name of the one that gives the order
    partial text[];
BEGIN
    FOR line IN EXECUTE 'EXPLAIN ' || statement USING query, k, params, candidates, ceil(1.25 * k)::integer,
        best LOOP
        plan := plan || regexp_replace(line, '''\[[-+.,0-9e]{20,}\]''', '''[...]''', 'g'); -- the vector itself
    END LOOP;
    index := substring(array_to_string(plan, E'\n') -- likewise in pgembed/explaining.py
        FROM 'Index Scan using ("(?:[^"]|"")+"|\S+) on [^\n]*\n\s+Order By: ');
    IF index LIKE '"%' THEN
        index := replace(substr(index, 2, length(index) - 2), '""', '"');
    END IF;
    SELECT g.partial INTO partial
    FROM pgembed.embedding AS e
    JOIN pgembed.encoder AS m ON m.name = e.encoder
    CROSS JOIN LATERAL pgembed._graph_of(e, pgembed._metric(m.metric, e.fusion)) AS g
    WHERE e.relation = _trace.relation AND e.target = _trace.embedding;
    PERFORM set_config('pgembed.trace', (current_setting('pgembed.trace')::jsonb || jsonb_build_object(
        'embedding', embedding, 'index', index, 'plan', CASE WHEN index IS NULL THEN 'exact'
            WHEN index = ANY (partial) THEN 'partial index' ELSE 'index' END,
        'looks', looks, 'matching', matching, 'total', coalesce((SELECT sum(greatest(leaf.reltuples, 0))
            FROM pg_catalog.pg_partition_tree(_trace.relation) AS tree
            JOIN pg_catalog.pg_class AS leaf ON leaf.oid = tree.relid WHERE tree.isleaf),
            (SELECT greatest(c.reltuples, 0) FROM pg_catalog.pg_class AS c WHERE c.oid = _trace.relation)),
        'postgres', plan))::text, true);
END
$$;
