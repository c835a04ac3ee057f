-- Fusion: how the vectors of several inputs of a row become one, and how a query is made to match. 'sum' is a weighted
-- sum, as wide as the encoder's vectors, and leaves the catalog's fusion NULL; 'concat' puts them side by side.
--
-- Under 'concat' the part of input i is its unit vector times sqrt(share i), where shares are the weights over their
-- sum; the whole has length 1. A query stands in every part in the same way. Then the inner product of both is the
-- mean of the cosines of query and inputs, weighted by the shares; a query may change the weights and still get it.
--
-- An input that a row does not have leaves a part of zeros, and the rest is not made longer for it: the row is compared
-- by inner product, whatever the encoder's metric, so that what is missing counts as a cosine of 0. By cosine, or made
-- as long as the others, a row would gain by what it lacks: one without a text, asked by its picture alone, would score
-- the whole cosine of its picture where others score sqrt(share) of theirs.

-- The fusion that a person gave to attach, as the catalog keeps it: NULL for 'sum', for 'concat' its parts in the order
-- in which they stand in a vector. Called by attach and estimate, with inputs that are checked.
CREATE OR REPLACE FUNCTION pgembed._checked_fusion(model pgembed.encoder, inputs jsonb, fusion text) RETURNS jsonb
LANGUAGE plpgsql STABLE
AS $$
DECLARE
    parts CONSTANT jsonb := (SELECT jsonb_agg(p.part ORDER BY p.n)
        FROM unnest(ARRAY['text', 'image', 'screenshot']) WITH ORDINALITY AS p (part, n) WHERE inputs ? p.part);
    wide CONSTANT integer := jsonb_array_length(parts) * model.dim;
    small text;
BEGIN
    IF fusion = 'sum' THEN
        RETURN NULL;
    ELSIF fusion <> 'concat' OR fusion IS NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = format('fusion is ''sum'' or ''concat'', not %s.', coalesce(quote_literal(fusion), 'NULL')),
            HINT = '''sum'' adds the vectors of a row''s inputs; ''concat'' puts them side by side.';
    ELSIF jsonb_array_length(parts) = 1 THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = format('fusion => ''concat'' puts inputs side by side, and there is only %s.', parts ->> 0),
            HINT = 'Leave fusion out, or give another input.';
    ELSIF wide > 2000 THEN
        RAISE EXCEPTION USING ERRCODE = 'feature_not_supported',
            MESSAGE = format('%s inputs of encoder ''%s'' side by side have %s dimensions; an HNSW index over vector '
                'holds at most 2000.', jsonb_array_length(parts), model.name, wide),
            HINT = 'Leave fusion out, which sums them, or attach an embedding for each input and search both.';
    END IF;
    SELECT i.key INTO small FROM jsonb_each(inputs) AS i
    WHERE (i.value ->> 'weight')::numeric
        < (SELECT sum((o.value ->> 'weight')::numeric) FROM jsonb_each(inputs) AS o) / 1000000
    LIMIT 1;
    IF small IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = format('The weight of the %s input, %s, is less than a millionth of all.', small,
                inputs -> small -> 'weight'),
            HINT = 'Leave this input out, or give it more.';
    END IF;
    RETURN jsonb_build_object('method', 'concat', 'parts', parts);
END
$$;

-- The share of each part of a vector, in order; NULL where the vector has no parts. What is no number in the catalog
-- counts as equal.
CREATE OR REPLACE FUNCTION pgembed._shares(inputs jsonb, fusion jsonb) RETURNS float8[]
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE WHEN fusion ->> 'method' = 'concat' AND jsonb_typeof(fusion -> 'parts') = 'array' THEN (
    SELECT array_agg(w.weight / w.total ORDER BY w.n)
    FROM (
        SELECT g.n, g.weight, sum(g.weight) OVER () AS total
        FROM (
            SELECT p.n, CASE WHEN jsonb_typeof(inputs #> ARRAY[p.part, 'weight']) = 'number'
                THEN (inputs #>> ARRAY[p.part, 'weight'])::float8 ELSE 1 END AS weight
            FROM jsonb_array_elements_text(fusion -> 'parts') WITH ORDINALITY AS p (part, n)
        ) AS g
    ) AS w
) END;

-- How many dimensions the vectors of an embedding have: those of its encoder, once for each part.
CREATE OR REPLACE FUNCTION pgembed._wide_dim(dim integer, fusion jsonb) RETURNS integer
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN dim * CASE WHEN fusion ->> 'method' = 'concat' AND jsonb_typeof(fusion -> 'parts') = 'array'
    THEN jsonb_array_length(fusion -> 'parts') ELSE 1 END;

-- The metric by which the vectors of an embedding are compared: the encoder's, or for parts the inner product.
CREATE OR REPLACE FUNCTION pgembed._metric(metric text, fusion jsonb) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE WHEN fusion ->> 'method' = 'concat' THEN 'ip' ELSE metric END;

-- The direction of a vector of the encoder's own dimension in each part, times the square root of the part's share, so
-- that the whole has length 1. Called by padded, search and hybrid, and by statements that Python compiles.
CREATE OR REPLACE FUNCTION pgembed._padded(v @extschema:vector@.vector, shares float8[])
RETURNS @extschema:vector@.vector
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE STRICT
AS $$
DECLARE
    share float8;
    result @extschema:vector@.vector;
    block @extschema:vector@.vector;
BEGIN
    FOREACH share IN ARRAY shares LOOP
        block := pgembed.scale(@extschema:vector@.l2_normalize(v), sqrt(share));
        result := coalesce(result OPERATOR(@extschema:vector@.||) block, block);
    END LOOP;
    RETURN result;
END
$$;

-- A query vector as a search needs it: put into each part where it has the encoder's dimension, else as it is.
-- Called by search and hybrid.
CREATE OR REPLACE FUNCTION pgembed._fitted(query @extschema:vector@.vector, dim integer, shares float8[])
RETURNS @extschema:vector@.vector
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE WHEN @extschema:vector@.vector_dims(query) * cardinality(shares) = dim
    THEN pgembed._padded(query, shares) ELSE query END;

-- A vector with its parts times these factors. Called by padded, and by statements that Python compiles.
CREATE OR REPLACE FUNCTION pgembed._weighted(v @extschema:vector@.vector, factors float8[])
RETURNS @extschema:vector@.vector
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE STRICT
AS $$
DECLARE
    dim CONSTANT integer := @extschema:vector@.vector_dims(v) / cardinality(factors);
    factor float8;
    result @extschema:vector@.vector;
    block @extschema:vector@.vector;
BEGIN
    FOREACH factor IN ARRAY factors LOOP
        block := pgembed._filled(factor, dim);
        result := coalesce(result OPERATOR(@extschema:vector@.||) block, block);
    END LOOP;
    RETURN v OPERATOR(@extschema:vector@.*) result;
END
$$;

-- What a query that counts its inputs by these weights multiplies its parts with: the weight's share of all weights
-- over the part's own share, which makes the inner product with a row the mean of the cosines by these weights.
-- An input that is not named counts nothing. Called by padded; Python has the same in pgembed/fusing.py.
CREATE OR REPLACE FUNCTION pgembed._factors(target text, parts text[], shares float8[], weights jsonb) RETURNS float8[]
LANGUAGE plpgsql IMMUTABLE
AS $$
DECLARE
    unknown CONSTANT text := (SELECT string_agg(k, ', ') FROM jsonb_object_keys(
        CASE jsonb_typeof(weights) WHEN 'object' THEN weights ELSE '{}' END) AS k WHERE k <> ALL (parts));
    wrong text;
    total float8;
BEGIN
    IF jsonb_typeof(weights) <> 'object' OR unknown IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = CASE WHEN unknown IS NULL THEN format('Weights are a JSON object, not %s.', weights)
                ELSE format('%s has no input %s.', target, unknown) END,
            HINT = format('Its inputs: %s. For example: {"%s": 0.3, "%s": 0.7}', array_to_string(parts, ', '), parts[1],
                parts[2]);
    END IF;
    SELECT w.value::text INTO wrong FROM jsonb_each(weights) AS w
    WHERE CASE jsonb_typeof(w.value) WHEN 'number' THEN w.value::numeric NOT BETWEEN 0 AND 1e30 ELSE true END LIMIT 1;
    total := CASE WHEN wrong IS NULL THEN (SELECT sum(w.value::numeric)::float8 FROM jsonb_each(weights) AS w) END;
    IF wrong IS NOT NULL OR coalesce(total, 0) <= 0 THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = CASE WHEN wrong IS NULL THEN format('No input of %s counts by the weights %s.', target, weights)
                ELSE format('The weight of an input is a number from 0 to 1e30, not %s.', wrong) END,
            HINT = format('For example: {"%s": 0.3, "%s": 0.7}', parts[1], parts[2]);
    END IF;
    RETURN ARRAY(SELECT coalesce((weights ->> p.part)::float8, 0) / total / shares[p.n]
        FROM unnest(parts) WITH ORDINALITY AS p (part, n) ORDER BY p.n);
END
$$;

-- A query vector as the vectors of an embedding are: under fusion 'concat' in every part, which `weights` have count as
-- much as they say. A vector that has these dimensions already, a row's for instance, is only weighted.
--
--     SELECT id FROM product ORDER BY embedding <#> (SELECT pgembed.padded('product',
--         pgembed.encode_text('shop', 'red'), '{"text": 0.3, "image": 0.7}')) LIMIT 10;
--     SELECT (item).id, score FROM pgembed.search(NULL::product, (SELECT pgembed.padded('product',
--         pgembed.encode_text('shop', 'red'), '{"image": 1}')));
--
-- The inner product with a row is the mean of the cosines of query and inputs, by these weights or by attach's.
CREATE OR REPLACE FUNCTION pgembed.padded(
    relation regclass,
    v @extschema:vector@.vector,
    weights jsonb DEFAULT NULL,
    embedding text DEFAULT NULL
) RETURNS @extschema:vector@.vector
LANGUAGE plpgsql STABLE
AS $$
DECLARE
    target CONSTANT pgembed.embedding := pgembed._embedding(relation, embedding);
    shares CONSTANT float8[] := pgembed._shares(target.inputs, target.fusion);
    own CONSTANT integer := (pgembed._encoder(target.encoder)).dim;
    parts text[];
    result @extschema:vector@.vector := v;
BEGIN
    IF @extschema:vector@.vector_dims(v) NOT IN (own, own * coalesce(cardinality(shares), 1)) THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = format('Vectors of encoder ''%s'' have %s dimensions, those of %s.%I %s; this one has %s.',
                target.encoder, own, relation, target.target, own * coalesce(cardinality(shares), 1),
                @extschema:vector@.vector_dims(v)),
            HINT = format('Encode the query with ''%s''.', target.encoder);
    ELSIF shares IS NULL AND weights IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'feature_not_supported',
            MESSAGE = format('The inputs of %s.%I cannot be weighted by a query: their vectors are summed.', relation,
                target.target),
            HINT = 'Attach it with fusion => ''concat'', or leave the weights out.';
    ELSIF shares IS NULL THEN
        RETURN v;
    END IF;
    IF @extschema:vector@.vector_dims(v) = own THEN
        result := pgembed._padded(v, shares);
    END IF;
    IF weights IS NOT NULL THEN
        parts := ARRAY(SELECT jsonb_array_elements_text(target.fusion -> 'parts'));
        result := pgembed._weighted(result,
            pgembed._factors(format('%s.%I', relation, target.target), parts, shares, weights));
    END IF;
    RETURN result;
END
$$;
