-- Directions of a space: made orthonormal, taken out of vectors, evened out over them, and found in differences.
-- pgembed/algebra.py and the tests do the same in numpy. reject (10_algebra.sql) is for queries, and raises where
-- nothing is left; neutralize is for rows: it raises for none, so that it can stand in an index or a generated column.

-- Directions as an orthonormal basis of what they span (modified Gram-Schmidt, each projection twice); one that depends
-- on those before it is passed over.
CREATE OR REPLACE FUNCTION pgembed.orthonormal(directions @extschema:vector@.vector[])
RETURNS @extschema:vector@.vector[]
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE
AS $$
DECLARE
    basis @extschema:vector@.vector[] := '{}';
    rest @extschema:vector@.vector;
    axis @extschema:vector@.vector;
    n integer := 0;
BEGIN
    IF directions IS NULL THEN
        RETURN NULL;
    END IF;
    FOREACH rest IN ARRAY directions LOOP
        n := n + 1;
        IF rest IS NULL OR @extschema:vector@.vector_norm(rest) = 0 THEN
            RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
                MESSAGE = pg_catalog.format('Direction %s of %s is %s.', n, cardinality(directions),
                    CASE WHEN rest IS NULL THEN 'NULL' ELSE 'zero' END),
                HINT = 'Leave it out.';
        ELSIF @extschema:vector@.vector_dims(rest) <> @extschema:vector@.vector_dims(directions[1]) THEN
            RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
                MESSAGE = pg_catalog.format('The directions have different dimensions: %s and %s.',
                    @extschema:vector@.vector_dims(directions[1]), @extschema:vector@.vector_dims(rest)),
                HINT = 'Directions of one view come from one space.';
        END IF;
        rest := @extschema:vector@.l2_normalize(rest);
        FOR pass IN 1..2 LOOP
            FOREACH axis IN ARRAY basis LOOP
                rest := pgembed._without(rest, axis);
            END LOOP;
        END LOOP;
        IF @extschema:vector@.vector_norm(rest) > 1e-5 THEN
            basis := array_append(basis, @extschema:vector@.l2_normalize(rest));
        END IF;
    END LOOP;
    RETURN basis;
END
$$;

-- What is left of the direction of v without the axes of an orthonormal basis; NULL where that is nothing.
CREATE OR REPLACE FUNCTION pgembed._neutral(v @extschema:vector@.vector, basis @extschema:vector@.vector[])
RETURNS @extschema:vector@.vector
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE
AS $$
DECLARE
    rest @extschema:vector@.vector := @extschema:vector@.l2_normalize(v);
    axis @extschema:vector@.vector;
BEGIN
    IF v IS NULL OR basis IS NULL THEN
        RETURN NULL;
    END IF;
    FOREACH axis IN ARRAY basis LOOP
        rest := pgembed._without(rest, axis);
    END LOOP;
    RETURN CASE WHEN @extschema:vector@.vector_norm(rest) > 1e-6 THEN @extschema:vector@.l2_normalize(rest) END;
END
$$;

-- Neutralize (Bolukbasi et al. 2016): the direction of what v has beside these directions. NULL for a vector that is
-- NULL or zero, or lies in the directions. With directions that are constant their basis is made once, at planning:
--     CREATE INDEX ON product USING hnsw
--         ((pgembed.neutralize(embedding, '{"[...]"}'::vector[])::vector(256)) vector_cosine_ops);
-- pgembed.neutral_index_sql writes that statement for a view.
CREATE OR REPLACE FUNCTION pgembed.neutralize(v @extschema:vector@.vector, directions @extschema:vector@.vector[])
RETURNS @extschema:vector@.vector
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN pgembed._neutral(v, pgembed.orthonormal(directions));

-- Equalize (Bolukbasi et al. 2016): the members of a set ("he", "she") as vectors that differ in the directions alone,
-- and there by the same length: what they share beside the directions, and for each its own side of them. So whatever
-- has nothing of the directions is equally near to all. Unit vectors, in the order of the given ones.
CREATE OR REPLACE FUNCTION pgembed.equalize(vectors @extschema:vector@.vector[], directions @extschema:vector@.vector[])
RETURNS @extschema:vector@.vector[]
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE
AS $$
DECLARE
    basis CONSTANT @extschema:vector@.vector[] := pgembed.orthonormal(directions);
    mean @extschema:vector@.vector;
    shared @extschema:vector@.vector;
    side @extschema:vector@.vector;
    axis @extschema:vector@.vector;
    made @extschema:vector@.vector[] := '{}';
    fault text;
BEGIN
    IF vectors IS NULL OR basis IS NULL THEN
        RETURN NULL;
    END IF;
    fault := CASE
        WHEN cardinality(vectors) < 2 THEN pg_catalog.format('equalize was given %s vectors, and needs two.',
            cardinality(vectors))
        WHEN cardinality(basis) = 0 THEN 'equalize was given no direction.'
        ELSE pgembed._compose_fault(vectors || basis, array_fill(1::float8, ARRAY[cardinality(vectors || basis)]))
    END;
    IF fault IS NULL THEN
        SELECT @extschema:vector@.avg(@extschema:vector@.l2_normalize(v)) INTO mean FROM unnest(vectors) AS v;
        shared := mean;
        FOREACH axis IN ARRAY basis LOOP
            shared := pgembed._without(shared, axis);
        END LOOP;
        FOR n IN 1..cardinality(vectors) LOOP
            -- its own part of the directions, less that of all
            SELECT @extschema:vector@.sum(pgembed.scale(b, @extschema:vector@.inner_product(
                @extschema:vector@.l2_normalize(vectors[n]) OPERATOR(@extschema:vector@.-) mean, b)))
            INTO side FROM unnest(basis) AS b;
            IF @extschema:vector@.vector_norm(side) <= 1e-6 THEN
                fault := pg_catalog.format('Vector %s of %s does not differ from the others in the directions.', n,
                    cardinality(vectors));
                EXIT;
            END IF;
            side := pgembed.scale(@extschema:vector@.l2_normalize(side),
                sqrt(greatest(0, 1 - @extschema:vector@.vector_norm(shared) ^ 2)));
            made := array_append(made, @extschema:vector@.l2_normalize(shared OPERATOR(@extschema:vector@.+) side));
        END LOOP;
    END IF;
    IF fault IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value', MESSAGE = fault,
            HINT = 'Give vectors of one space that lie on different sides, as those of "he" and "she".';
    END IF;
    RETURN made;
END
$$;

-- The first principal components of differences, about zero and not about their mean: a pair has no first and second.
-- Power iteration with deflation; each points to where the differences' mean does. `shares` tells how much of the
-- differences' squared length each holds. Fewer come back where the differences span less. Called by _learn.
CREATE OR REPLACE FUNCTION pgembed._components(
    differences @extschema:vector@.vector[],
    components integer,
    OUT vectors @extschema:vector@.vector[],
    OUT shares float8[]
)
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE
AS $$
DECLARE
    rest @extschema:vector@.vector[] := differences; -- without the components that were found
    mean @extschema:vector@.vector;
    total float8;
    axis @extschema:vector@.vector;
    following @extschema:vector@.vector;
BEGIN
    vectors := '{}';
    shares := '{}';
    mean := (SELECT @extschema:vector@.avg(d) FROM unnest(differences) AS d);
    total := (SELECT sum(@extschema:vector@.vector_norm(d) ^ 2) FROM unnest(differences) AS d);
    WHILE cardinality(vectors) < components LOOP
        axis := (SELECT @extschema:vector@.l2_normalize(d) FROM unnest(rest) WITH ORDINALITY AS o (d, n)
            WHERE @extschema:vector@.vector_norm(d) > 1e-5 * sqrt(total / cardinality(differences))
            ORDER BY @extschema:vector@.vector_norm(d) DESC, n LIMIT 1);
        EXIT WHEN axis IS NULL;
        FOR step IN 1..300 LOOP
            following := (SELECT @extschema:vector@.l2_normalize(@extschema:vector@.avg(
                pgembed.scale(d, @extschema:vector@.inner_product(d, axis)))) FROM unnest(rest) AS d);
            EXIT WHEN @extschema:vector@.l2_distance(axis, following) < 1e-6;
            axis := following;
        END LOOP;
        IF @extschema:vector@.inner_product(axis, mean) < 0 THEN
            axis := pgembed.scale(axis, -1);
        END IF;
        vectors := array_append(vectors, axis);
        shares := array_append(shares, (SELECT sum(@extschema:vector@.inner_product(d, axis) ^ 2) / total
            FROM unnest(differences) AS d));
        rest := ARRAY(SELECT pgembed._without(d, axis) FROM unnest(rest) WITH ORDINALITY AS o (d, n) ORDER BY n);
    END LOOP;
END
$$;
