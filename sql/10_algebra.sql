-- The algebra of vectors: what a composed query is made of. Plain SQL over pgvector's own functions; pgembed/inputs.py
-- and the tests do the same in numpy. Directions are what counts: inputs are normalized first, results at the end.
-- A NULL argument of scale, slerp, reject and maxsim gives NULL, as a row without a vector needs; compose and swap make
-- a query and therefore refuse NULL.

-- Raise an error from a function with an SQL-standard body. Volatile, so that no planner evaluates it beforehand.
CREATE OR REPLACE FUNCTION pgembed._raise(message text, hint text, result anyelement) RETURNS anyelement
LANGUAGE plpgsql VOLATILE PARALLEL SAFE
AS $$
BEGIN
    RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value', MESSAGE = message, HINT = hint;
END
$$;

-- A vector of dim times the same number: the factor of a product by elements. What float4 cannot tell from 0 is 0.
CREATE OR REPLACE FUNCTION pgembed._filled(value float8, dim integer) RETURNS @extschema:vector@.vector
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN array_fill(CASE WHEN abs(value) < 1e-37 THEN 0 ELSE value END::real, ARRAY[dim])::@extschema:vector@.vector;

-- weight times v, not normalized.
CREATE OR REPLACE FUNCTION pgembed.scale(v @extschema:vector@.vector, weight float8) RETURNS @extschema:vector@.vector
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE WHEN v IS NOT NULL AND weight IS NOT NULL THEN
    v OPERATOR(@extschema:vector@.*) pgembed._filled(weight, @extschema:vector@.vector_dims(v))
END;

-- Why these vectors and weights cannot be composed, as an error, or NULL where they can. Called by compose.
CREATE OR REPLACE FUNCTION pgembed._compose_fault(vectors @extschema:vector@.vector[], weights float8[]) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT CASE
        WHEN coalesce(cardinality(vectors), 0) = 0 THEN 'There are no vectors to compose.'
        WHEN cardinality(vectors) <> cardinality(weights)
            THEN format('compose was given %s vectors and %s weights.', cardinality(vectors), cardinality(weights))
        WHEN min(ordinal) FILTER (WHERE v IS NULL) IS NOT NULL
            THEN format('Vector %s of %s is NULL.', min(ordinal) FILTER (WHERE v IS NULL), count(*))
        WHEN count(DISTINCT @extschema:vector@.vector_dims(v)) > 1
            THEN format('The vectors to compose have different dimensions: %s.',
                string_agg(@extschema:vector@.vector_dims(v)::text, ', ' ORDER BY ordinal))
        WHEN min(ordinal) FILTER (WHERE @extschema:vector@.vector_norm(v) = 0) IS NOT NULL
            THEN format('Vector %s of %s is zero, which has no direction.',
                min(ordinal) FILTER (WHERE @extschema:vector@.vector_norm(v) = 0), count(*))
        WHEN bool_or(w IS NULL OR w IN ('NaN', 'Infinity', '-Infinity'))
            THEN format('A weight is not a finite number: %s.', weights)
        WHEN max(abs(w)) = 0 THEN 'All weights are zero.'
    END
    FROM unnest(vectors, weights) WITH ORDINALITY AS term (v, w, ordinal);
END;

-- The direction of a weighted sum: every vector is normalized, then weighted; the sum is normalized. Without weights
-- all are 1. Raises for no vectors, a NULL or zero one, a weight that is not finite, and a sum that cancels.
--     ORDER BY embedding <=> (SELECT pgembed.compose(ARRAY[photo, blue, red], ARRAY[1, -0.8, 0.8]))
CREATE OR REPLACE FUNCTION pgembed.compose(vectors @extschema:vector@.vector[], weights float8[] DEFAULT NULL)
RETURNS @extschema:vector@.vector
LANGUAGE sql IMMUTABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT CASE
        WHEN fault IS NOT NULL THEN pgembed._raise(fault, 'Give one finite weight for each vector. '
            'A vector that is NULL belongs to a row that is not there, or is not encoded yet.',
            NULL::@extschema:vector@.vector)
        ELSE (
            -- divided by the largest weight, so that no finite weight is out of float4's range
            SELECT CASE
                WHEN @extschema:vector@.vector_norm(@extschema:vector@.avg(scaled)) * count(*) <= 1e-6 * sum(abs(share))
                    THEN pgembed._raise(format('The vectors cancel under the weights %s: no direction is left.', given),
                        'Change a weight, or leave a vector out.', NULL::@extschema:vector@.vector)
                ELSE @extschema:vector@.l2_normalize(@extschema:vector@.avg(scaled))
            END
            FROM (
                SELECT share, @extschema:vector@.l2_normalize(v)
                    OPERATOR(@extschema:vector@.*) pgembed._filled(share, @extschema:vector@.vector_dims(v)) AS scaled
                FROM (
                    SELECT v, CASE WHEN w = 0 OR ln(abs(w)) - ln(largest) < -25 THEN 0 ELSE w / largest END AS share
                    FROM unnest(vectors, given) AS term (v, w)
                    CROSS JOIN (SELECT max(abs(w)) AS largest FROM unnest(given) AS w) AS m
                ) AS weighted
            ) AS terms
        )
    END
    FROM (SELECT coalesce(weights, array_fill(1::float8, ARRAY[coalesce(cardinality(vectors), 0)])) AS given) AS g
    CROSS JOIN LATERAL (SELECT pgembed._compose_fault(vectors, given) AS fault) AS f;
END;

-- The weight of one end of an arc in the point at this share of it from the other end; linear where the arc is tiny.
-- A share too small to count is 0, so that its products do not underflow. Called by slerp.
CREATE OR REPLACE FUNCTION pgembed._arc_share(share float8, angle float8) RETURNS float8
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE
    WHEN abs(share) < 1e-12 THEN 0
    WHEN angle < 1e-6 THEN share
    ELSE sin(share * angle) / sin(angle)
END;

-- The direction at share t of the way from a to b on the great circle: t = 0 is a, t = 1 is b, others extrapolate.
-- The angle comes from the lengths of difference and sum, which is exact where arccos(a . b) is not.
CREATE OR REPLACE FUNCTION pgembed.slerp(a @extschema:vector@.vector, b @extschema:vector@.vector, t float8)
RETURNS @extschema:vector@.vector
LANGUAGE sql IMMUTABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT CASE
        WHEN num_nulls(a, b, t) > 0 THEN NULL::@extschema:vector@.vector
        WHEN t IN ('NaN', 'Infinity', '-Infinity')
            THEN pgembed._raise(format('The share t of slerp is %s.', t), 'Give a number from 0 to 1.',
                NULL::@extschema:vector@.vector)
        WHEN @extschema:vector@.vector_norm(a) = 0 OR @extschema:vector@.vector_norm(b) = 0
            THEN pgembed._raise('slerp was given a zero vector, which has no direction.',
                'Give two vectors that are not zero.', NULL::@extschema:vector@.vector)
        ELSE (
            SELECT CASE
                WHEN pi() - angle < 1e-6
                    THEN pgembed._raise(
                        'The vectors of slerp are opposite to each other: there is no single way between them.',
                        'Go through a third vector, or use compose.', NULL::@extschema:vector@.vector)
                ELSE @extschema:vector@.l2_normalize(
                    pgembed.scale(p, pgembed._arc_share(1 - t, angle))
                    OPERATOR(@extschema:vector@.+) pgembed.scale(q, pgembed._arc_share(t, angle)))
            END
            FROM (SELECT @extschema:vector@.l2_normalize(a) AS p, @extschema:vector@.l2_normalize(b) AS q) AS unit
            CROSS JOIN LATERAL (
                SELECT 2 * atan2(@extschema:vector@.vector_norm(p OPERATOR(@extschema:vector@.-) q),
                    @extschema:vector@.vector_norm(p OPERATOR(@extschema:vector@.+) q)) AS angle
            ) AS between_them
        )
    END;
END;

-- v without its part along the unit vector u.
CREATE OR REPLACE FUNCTION pgembed._without(v @extschema:vector@.vector, u @extschema:vector@.vector)
RETURNS @extschema:vector@.vector
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE
    -- nothing to take away, and its product might underflow
    WHEN abs(@extschema:vector@.inner_product(v, u)) < 1e-12 THEN v
    ELSE v OPERATOR(@extschema:vector@.-) pgembed.scale(u, @extschema:vector@.inner_product(v, u))
END;

-- Project directions out of v ("not short", "whatever the colour"): the direction of what is left of v. The directions
-- are made orthonormal first (modified Gram-Schmidt, each projection twice); one that depends on those before it is
-- passed over. Raises where a vector is zero or nothing is left.
CREATE OR REPLACE FUNCTION pgembed.reject(v @extschema:vector@.vector, directions @extschema:vector@.vector[])
RETURNS @extschema:vector@.vector
LANGUAGE sql IMMUTABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT CASE
        WHEN v IS NULL OR directions IS NULL THEN NULL::@extschema:vector@.vector
        WHEN EXISTS (SELECT FROM unnest(directions || v) AS d WHERE d IS NULL OR @extschema:vector@.vector_norm(d) = 0)
            THEN pgembed._raise('reject was given a vector or a direction that is NULL or zero.', 'Leave it out.',
                NULL::@extschema:vector@.vector)
        ELSE (
            WITH RECURSIVE step (i, rest, remaining) AS (
                SELECT 1, @extschema:vector@.l2_normalize(v), ARRAY(
                    SELECT @extschema:vector@.l2_normalize(d)
                    FROM unnest(directions) WITH ORDINALITY AS o (d, n) ORDER BY n)
                UNION ALL
                SELECT step.i + 1,
                    CASE WHEN independent THEN pgembed._without(pgembed._without(rest, u), u) ELSE rest END,
                    CASE WHEN independent THEN ARRAY(
                        SELECT CASE WHEN n <= step.i THEN d ELSE pgembed._without(pgembed._without(d, u), u) END
                        FROM unnest(remaining) WITH ORDINALITY AS o (d, n) ORDER BY n)
                    ELSE remaining END
                FROM step
                CROSS JOIN LATERAL (
                    SELECT @extschema:vector@.l2_normalize(remaining[step.i]) AS u,
                        @extschema:vector@.vector_norm(remaining[step.i]) > 1e-5 AS independent
                ) AS direction
                WHERE step.i <= cardinality(remaining)
            )
            SELECT CASE
                WHEN @extschema:vector@.vector_norm(rest) <= 1e-6
                    THEN pgembed._raise('The vector lies in the directions to reject: nothing is left of it.',
                        'Reject fewer directions.', NULL::@extschema:vector@.vector)
                ELSE @extschema:vector@.l2_normalize(rest)
            END
            FROM step
            WHERE i = cardinality(directions) + 1
        )
    END;
END;

-- This, but "new" in place of "old": v, and weight times the direction from old to new. It refuses NULL, as a query.
--     ORDER BY embedding <=> (SELECT pgembed.swap(photo, blue, red))
CREATE OR REPLACE FUNCTION pgembed.swap(
    v @extschema:vector@.vector,
    old @extschema:vector@.vector,
    new @extschema:vector@.vector,
    weight float8 DEFAULT 1
) RETURNS @extschema:vector@.vector
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN pgembed.compose(ARRAY[v, pgembed.compose(ARRAY[new, old], ARRAY[1, -1])], ARRAY[1, weight]);

-- A query after feedback: alpha of it, beta of the mean of the vectors that were liked, less gamma of the mean of those
-- that were not. Without a query (NULL) it is "more like these, unlike those". NULLs among the vectors are passed over,
-- as rows without a vector. Rocchio 1971; the weights are those of Manning, Raghavan and Schuetze 2008, 9.1.1.
--     ORDER BY embedding <=> (SELECT pgembed.rocchio(NULL, array_agg(embedding)) FROM product WHERE id IN (3, 7))
CREATE OR REPLACE FUNCTION pgembed.rocchio(
    query @extschema:vector@.vector,
    liked @extschema:vector@.vector[] DEFAULT '{}',
    disliked @extschema:vector@.vector[] DEFAULT '{}',
    alpha float8 DEFAULT 1,
    beta float8 DEFAULT 0.75,
    gamma float8 DEFAULT 0.15
) RETURNS @extschema:vector@.vector
LANGUAGE sql IMMUTABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT pgembed.compose(array_agg(v ORDER BY part, n), array_agg(weight ORDER BY part, n))
    FROM (
        SELECT 1 AS part, 1 AS n, query AS v, alpha AS weight WHERE query IS NOT NULL
        UNION ALL
        SELECT 2, n, v, beta / count(*) OVER () FROM unnest(liked) WITH ORDINALITY AS l (v, n) WHERE v IS NOT NULL
        UNION ALL
        SELECT 3, n, v, -gamma / count(*) OVER () FROM unnest(disliked) WITH ORDINALITY AS d (v, n) WHERE v IS NOT NULL
    ) AS terms;
END;

-- The direction of the mean: last step of the aggregate centroid, from pgvector's own state of avg.
CREATE OR REPLACE FUNCTION pgembed._centroid(state float8[]) RETURNS @extschema:vector@.vector
LANGUAGE sql IMMUTABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT CASE
        WHEN @extschema:vector@.vector_norm(mean) <= 1e-6 THEN pgembed._raise(
            'The vectors of centroid cancel: their mean has no direction.',
            'Group them otherwise, or leave some out.', NULL::@extschema:vector@.vector)
        ELSE @extschema:vector@.l2_normalize(mean)
    END
    FROM (SELECT @extschema:vector@.vector_avg(state) AS mean) AS m;
END;

-- centroid(vector): the normalized mean of vectors as they are stored; NULLs are passed over, none at all gives NULL.
CREATE OR REPLACE AGGREGATE pgembed.centroid (@extschema:vector@.vector) (
    SFUNC = @extschema:vector@.vector_accum,
    STYPE = float8[],
    INITCOND = '{0}',
    FINALFUNC = pgembed._centroid,
    COMBINEFUNC = @extschema:vector@.vector_combine,
    PARALLEL = SAFE
);

-- Late interaction: for every vector of the query its best inner product with one of the document's, summed. NULL
-- where either is NULL or holds no vector.
CREATE OR REPLACE FUNCTION pgembed.maxsim(query @extschema:vector@.vector[], document @extschema:vector@.vector[])
RETURNS float8
LANGUAGE sql IMMUTABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT sum((SELECT max(@extschema:vector@.inner_product(q, d)) FROM unnest(document) AS d)) FROM unnest(query) AS q;
END;

-- The k of some rows that are relevant and unlike each other, best first, by their places in the arrays, from 1 on.
-- Greedy: each time the largest lambda * relevance - (1 - lambda) * (greatest cosine to one that was chosen before); of
-- equals the first. To re-rank what a search gave:
--     WITH found AS (
--         SELECT s.*, row_number() OVER (ORDER BY score DESC) AS n
--         FROM pgembed.search(NULL::product, (SELECT ...), k => 100, wide => true) AS s)
--     SELECT (item).id, score
--     FROM pgembed.mmr(ARRAY(SELECT (item).embedding FROM found ORDER BY n),
--                      ARRAY(SELECT score FROM found ORDER BY n), 10) AS m
--     JOIN found ON found.n = m.place ORDER BY m.rank;
-- Maximal marginal relevance, Carbonell and Goldstein, SIGIR 1998.
CREATE OR REPLACE FUNCTION pgembed.mmr(
    vectors @extschema:vector@.vector[],
    relevance float8[],
    k integer,
    lambda float8 DEFAULT 0.5
) RETURNS TABLE (rank integer, place integer, value float8)
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE
AS $$
DECLARE
    n CONSTANT integer := coalesce(cardinality(vectors), 0);
    nearest float8[] := array_fill(0::float8, ARRAY[n]);
    is_left boolean[] := array_fill(true, ARRAY[n]);
    own float8;
BEGIN
    rank := 0;
    lambda := CASE WHEN lambda < 1e-150 THEN 0 ELSE lambda END;
    IF coalesce(cardinality(relevance), 0) <> n THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = format('mmr was given %s vectors and %s scores.', n, coalesce(cardinality(relevance), 0)),
            HINT = 'Give one score for each vector.';
    ELSIF k IS NULL OR k < 1 OR lambda IS NULL OR NOT lambda BETWEEN 0 AND 1 THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = format('mmr was given k = %s and lambda = %s.', k, lambda),
            HINT = 'Give a k of 1 at least, and a lambda from 0 (unlike) to 1 (relevant).';
    END IF;
    FOR i IN 1 .. n LOOP
        IF vectors[i] IS NULL OR @extschema:vector@.vector_norm(vectors[i]) = 0
            OR relevance[i] IS NULL OR relevance[i] IN ('NaN', 'Infinity', '-Infinity') THEN
            RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
                MESSAGE = format('Vector %s of mmr is NULL or zero, or its score %s is not finite.', i, relevance[i]),
                HINT = 'Leave it out.';
        END IF;
        vectors[i] := @extschema:vector@.l2_normalize(vectors[i]);
        IF abs(relevance[i]) < 1e-150 THEN
            relevance[i] := 0; -- a product that underflows is an error
        END IF;
    END LOOP;
    WHILE rank < least(k, n) LOOP
        rank := rank + 1;
        place := NULL;
        FOR i IN 1 .. n LOOP
            IF is_left[i] THEN
                own := lambda * relevance[i] - (1 - lambda) * nearest[i];
                IF place IS NULL OR own > value THEN
                    place := i;
                    value := own;
                END IF;
            END IF;
        END LOOP;
        is_left[place] := false;
        FOR i IN 1 .. n LOOP
            IF is_left[i] THEN
                own := @extschema:vector@.inner_product(vectors[i], vectors[place]);
                nearest[i] := CASE WHEN rank = 1 THEN own ELSE greatest(nearest[i], own) END;
            END IF;
        END LOOP;
        RETURN NEXT;
    END LOOP;
END
$$;

-- Reciprocal rank fusion of one row's ranks, counted from 1: the sum of weight / (constant + rank). A NULL rank (the
-- row is not in that list) adds nothing. Cormack, Clarke and Buettcher, SIGIR 2009.
CREATE OR REPLACE FUNCTION pgembed.rrf(ranks bigint[], weights float8[] DEFAULT NULL, constant float8 DEFAULT 60)
RETURNS float8
LANGUAGE sql IMMUTABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT CASE
        WHEN min(rank) < 1 OR cardinality(ranks) <> cardinality(weights) THEN pgembed._raise(
            format('rrf was given the ranks %s%s.', ranks, ' and the weights ' || weights::text),
            'Ranks count from 1, with one weight for each where there are weights.', 0::float8)
        ELSE coalesce(sum(coalesce(weight, 1) / (constant + rank)), 0)
    END
    FROM unnest(ranks, weights) AS list (rank, weight);
END;
