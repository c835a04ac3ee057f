-- Search of an embedding with parts: rows by their parts, each row once, with the part that answers and its place.

-- The rows of a table whose parts are nearest to a query vector, best first, each with its score and its nearest part.
--
--     SELECT (item).id, score, part, location, content
--     FROM pgembed.search_parts(NULL::document, (SELECT pgembed.encode_text('mini', 'how a wing stalls')), k => 10);
--
-- prototype, query, k, filter, params, embedding, wide and exact are those of pgembed.search; the filter is on the
-- table's columns. part is the part's number in its row, from 1 on; kind, location and content are as the splitter made
-- them: {"start": 120, "end": 480} of a text, {"page": 3}, {"page": 3, "box": [x, y, width, height]}.
-- best       how many of a row's parts count: with 1 the score is that of the nearest part, with m the sum of the m
--            best similarities (under l2 these are 1 / (1 + distance)), which favours rows that speak of it often.
--
-- k rows come back whenever k rows match, whatever parts they have: the index is read until it gave parts of so many
-- rows, as far as that should take less time than to compare all. Rights and row-level security are the caller's.
CREATE OR REPLACE FUNCTION pgembed.search_parts(
    prototype anyelement,
    query @extschema:vector@.vector,
    k integer DEFAULT 10,
    filter text DEFAULT NULL,
    params jsonb DEFAULT NULL,
    embedding text DEFAULT NULL,
    wide boolean DEFAULT false,
    exact boolean DEFAULT false,
    best integer DEFAULT 1
) RETURNS TABLE (item anyelement, score float8, part integer, kind text, location jsonb, content text)
LANGUAGE plpgsql STABLE PARALLEL UNSAFE ROWS 10
AS $$
#variable_conflict use_column
DECLARE
    row_type CONSTANT regtype := pg_typeof(prototype);
    target CONSTANT record := pgembed._search_target(row_type, embedding, wide);
    traced CONSTANT boolean := coalesce(current_setting('pgembed.trace', true), '') <> ''; -- by explain_search
    condition text := '';
    scan_before CONSTANT text := current_setting('hnsw.iterative_scan', true); -- NULL before pgvector 0.8
    ef_before CONSTANT text := current_setting('hnsw.ef_search');
    quantization text; -- of the index
    wanted integer; -- rows that are to be found: some more where several parts of each count, or the index is coarse
    candidates integer; -- parts that the index is to give; NULL where it is not to be asked
    looked integer; -- those that it gave
    graph record;
    estimate record;
    ignored text;
    found_rows refcursor;
    number_found bigint;
    nearest record;
    looks jsonb := '[]';
    matching float8;
    asked text; -- the statement
BEGIN
    IF target.side IS NULL THEN
        PERFORM pgembed._raise_no_side(target.source, target.target);
    ELSIF NOT target.parts THEN
        RAISE EXCEPTION USING ERRCODE = 'wrong_object_type',
            MESSAGE = format('%s.%I holds one vector a row, and no parts.', target.source, target.target),
            HINT = 'Use pgembed.search, or attach an embedding with parts: parts => ''chunks''.';
    ELSIF k IS NULL OR k <= 0 OR best IS NULL OR best NOT BETWEEN 1 AND 1000 THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = format(CASE WHEN k > 0 THEN 'best is the number of parts that count, 1 to 1000, not %s.'
                ELSE 'k is the number of rows wanted, at least 1, not %s.' END,
                coalesce(CASE WHEN k > 0 THEN best ELSE k END::text, 'NULL')),
            HINT = 'For example: k => 10, best => 1.';
    END IF;
    PERFORM pgembed._check_query(query, target.source, target.target, target.encoder, target.dim);
    IF filter IS NOT NULL OR params IS NOT NULL THEN
        condition := pgembed._filter_condition(target.source, filter, params);
    END IF;

    SELECT pgembed._index_quantization(e, target.metric) INTO quantization FROM pgembed.embedding AS e
    WHERE e.relation = target.relation AND e.target = target.target;
    wanted := least(k * CASE WHEN quantization = 'binary' THEN 10 WHEN best > 1 THEN 4 WHEN quantization = 'half' THEN 2
        ELSE 1 END::bigint, 100000);
    IF exact IS NOT TRUE THEN
        SELECT g.* INTO graph FROM pgembed.embedding AS e CROSS JOIN LATERAL pgembed._graph_of(e, target.metric) AS g
        WHERE e.relation = target.relation AND e.target = target.target;
        IF graph.usable IS NOT FALSE THEN
            estimate := pgembed._matching(target.source || target.side, target.present || condition, params);
            matching := CASE WHEN condition <> '' THEN estimate.matching END;
            candidates := pgembed._next_round(estimate.matching, estimate.cost, coalesce(graph.rows, 0), target.dim,
                false, least(3 * wanted::bigint, 100000)::integer);
        END IF;
    END IF;
    WHILE candidates <= 1000 OR candidates IS NOT NULL AND scan_before IS NOT NULL LOOP
        ignored := set_config('hnsw.ef_search',
            least(greatest(ef_before::integer, CASE WHEN scan_before IS NULL THEN candidates ELSE candidates / 4 END),
                1000)::text, true);
        IF scan_before IS NOT NULL THEN
            ignored := set_config('hnsw.iterative_scan', 'relaxed_order', true);
        END IF;
        asked := pgembed._parts_sql(target, condition, best, quantization);
        OPEN found_rows SCROLL FOR EXECUTE asked USING query, k, params, candidates, wanted, best;
        MOVE FORWARD ALL FROM found_rows;
        GET DIAGNOSTICS number_found = ROW_COUNT;
        ignored := set_config('hnsw.ef_search', ef_before, true);
        IF scan_before IS NOT NULL THEN
            ignored := set_config('hnsw.iterative_scan', scan_before, true);
        END IF;
        IF traced THEN
            looks := looks || jsonb_build_object('candidates', candidates, 'found', number_found);
        END IF;
        EXIT WHEN number_found >= k;
        CLOSE found_rows;
        -- as many more as the rows found say, each of which may have many parts
        looked := candidates;
        candidates := CASE WHEN looked < graph.rows THEN pgembed._next_round(estimate.matching, estimate.cost,
            graph.rows, target.dim, false,
            least(ceil(2.0 * looked * wanted / greatest(number_found, 1)), 100000)::integer) END;
        EXIT WHEN candidates <= looked;
    END LOOP;
    IF number_found >= k THEN
        MOVE ABSOLUTE 0 FROM found_rows;
    ELSE
        candidates := NULL;
        asked := pgembed._parts_sql(target, condition, best, NULL);
        OPEN found_rows FOR EXECUTE asked USING query, k, params, 0, wanted, best;
    END IF;
    IF traced THEN
        PERFORM pgembed._trace(target.relation, target.target, looks, matching, asked, query, k, params,
            candidates, best);
    END IF;
    LOOP
        FETCH found_rows INTO nearest;
        EXIT WHEN NOT FOUND;
        item := nearest; -- column by column; what follows is too many
        score := nearest."pgembed score";
        part := nearest."pgembed part";
        kind := nearest."pgembed kind";
        location := nearest."pgembed location";
        content := nearest."pgembed content";
        RETURN NEXT;
    END LOOP;
    CLOSE found_rows;
END
$$;

-- The statement of search_parts, with $1 the query, $2 k, $3 the params, $4 how many parts of the index to look at, $5
-- how many rows to find there, and $6 how many parts of a row count. The rows are found by their nearest part, among
-- those that an index gives, with this quantization, or, where that is NULL, among all; then each is read with its
-- nearest part, and compared by full vectors. Called by search_parts.
CREATE OR REPLACE FUNCTION pgembed._parts_sql(target record, condition text, best integer, quantization text)
RETURNS text
LANGUAGE plpgsql STABLE
AS $$
DECLARE
    looked CONSTANT text := CASE WHEN quantization NOT IN ('half', 'binary') THEN target.distance ELSE format(
        '%s OPERATOR(@extschema:vector@.%s) %s', pgembed._coarse_sql('"pgembed vector"', quantization, target.dim),
        CASE WHEN quantization = 'binary' THEN '<~>' WHEN target.metric = 'cosine' THEN '<=>'
            WHEN target.metric = 'ip' THEN '<#>' ELSE '<->' END,
        pgembed._coarse_sql('$1', quantization, target.dim)) END;
    similarity CONSTANT text := format(CASE target.metric WHEN 'cosine' THEN '1 - (%s)' WHEN 'ip' THEN '-(%s)'
        ELSE CASE best WHEN 1 THEN '-(%s)' ELSE '1 / (1 + (%s))' END END, '"pgembed distance"');
    numbered record;
    candidate text;
BEGIN
    SELECT string_agg(format('"pgembed key %s"', n), ', ' ORDER BY n) AS keys,
        string_agg(format('%I = "pgembed candidate %s"', key ->> 'name', n), ' AND ' ORDER BY n) AS joined,
        string_agg(format('"pgembed key %s" AS "pgembed candidate %1$s"', n), ', ' ORDER BY n) AS named
    INTO numbered FROM jsonb_array_elements(target.key_columns) WITH ORDINALITY AS k (key, n);
    candidate := CASE
        WHEN quantization IS NOT NULL THEN format(
            'SELECT %1$s FROM (SELECT %2$s, %3$s AS "pgembed distance", %4$s AS "pgembed matches" FROM %5$s WHERE %6$s '
            'ORDER BY "pgembed distance" LIMIT $4) AS looked WHERE "pgembed matches" AND "pgembed distance" < ''NaN'' '
            'GROUP BY %2$s ORDER BY min("pgembed distance"), %2$s LIMIT $5', numbered.named, numbered.keys,
            looked, coalesce(nullif(substr(condition, length(' AND ') + 1), ''), 'true'),
            target.source || target.side, target.present)
        -- a sum is no order that an index has, which makes this exact
        WHEN best = 1 THEN format(
            'SELECT %s FROM (SELECT %s, 0 + (%s) AS "pgembed distance" FROM %s WHERE %s%s) AS every '
            'WHERE "pgembed distance" < ''NaN'' GROUP BY %2$s ORDER BY min("pgembed distance"), %2$s LIMIT $2',
            numbered.named, numbered.keys, target.distance, target.source || target.side, target.present, condition)
        ELSE format(
            'SELECT %s FROM (SELECT %s, "pgembed distance", '
            'row_number() OVER (PARTITION BY %2$s ORDER BY "pgembed distance") AS "pgembed place" '
            'FROM (SELECT %2$s, 0 + (%s) AS "pgembed distance" FROM %s WHERE %s%s) AS every '
            'WHERE "pgembed distance" < ''NaN'') AS placed WHERE "pgembed place" <= $6 '
            'GROUP BY %2$s ORDER BY sum(%7$s) DESC, %2$s LIMIT $2',
            numbered.named, numbered.keys, target.distance, target.source || target.side, target.present, condition,
            similarity)
    END;
    RETURN format('WITH "pgembed candidate" AS MATERIALIZED (%1$s) SELECT %2$s, "pgembed score", "pgembed part", '
        '"pgembed kind", "pgembed location", "pgembed content" FROM "pgembed candidate" JOIN %3$s ON %4$s '
        'CROSS JOIN LATERAL (SELECT "pgembed part", "pgembed kind", "pgembed location", "pgembed content", '
        'sum(%5$s) OVER () AS "pgembed score" FROM (SELECT *, %6$s AS "pgembed distance" FROM (%7$s) AS p '
        'WHERE %8$s ORDER BY 0 + (%6$s), "pgembed part" LIMIT $6) AS counted ORDER BY "pgembed distance", "pgembed part" '
        'LIMIT 1) AS best ORDER BY "pgembed score" DESC, %9$s LIMIT $2',
        candidate, target.columns, target.source, numbered.joined, similarity, target.distance,
        target.part_rows,
        (SELECT string_agg(format('"pgembed key %s" = "pgembed candidate %1$s"', n), ' AND ' ORDER BY n)
            FROM generate_series(1, jsonb_array_length(target.key_columns)) AS n),
        (SELECT string_agg(format('"pgembed candidate %s"', n), ', ' ORDER BY n)
            FROM generate_series(1, jsonb_array_length(target.key_columns)) AS n));
END
$$;
