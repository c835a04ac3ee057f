-- Filters of searches: SQL text that a person gives, its parameters bound and never pasted.

-- A filter as the end of a WHERE clause, ' AND (filter)', with $1, $2 ... read from the parameter $3 of the statement,
-- or an error that says what is wrong with it. Called by the search functions.
CREATE OR REPLACE FUNCTION pgembed._filter_condition(source text, filter text, params jsonb) RETURNS text
LANGUAGE plpgsql STABLE
AS $$
DECLARE
    plain text := regexp_replace(filter, '''[^'']*''|"[^"]*"', '', 'g');
    bound text := filter;
    refused text;
    place text;
    nothing record;
BEGIN
    IF plain ~ '--|/\*|;' THEN
        RAISE EXCEPTION USING ERRCODE = 'syntax_error',
            MESSAGE = format('The filter %s holds a %s.', quote_literal(filter),
                CASE WHEN plain ~ '--|/\*' THEN 'comment' ELSE 'semicolon' END),
            HINT = 'Give one condition, as it could stand after WHERE.';
    ELSIF params IS NOT NULL OR plain ~ '\$[0-9]' THEN
        bound := pgembed._bound_filter(filter, params);
    END IF;
    -- What parses in both places is one expression: it closes each quote and parenthesis that it opens, and no other.
    -- The loop's cursor takes no second statement.
    BEGIN
        FOREACH place IN ARRAY ARRAY[E'CASE WHEN\n%s\nTHEN true ELSE false END', E'(\n%s\n)'] LOOP
            FOR nothing IN EXECUTE format('SELECT FROM %s WHERE ' || place || ' LIMIT 0', source, bound)
                USING NULL::@extschema:vector@.vector, 0, params LOOP
            END LOOP;
        END LOOP;
    EXCEPTION
        WHEN insufficient_privilege THEN
            RAISE;
        WHEN syntax_error_or_access_rule_violation OR data_exception OR feature_not_supported THEN
            refused := SQLERRM;
    END;
    IF refused IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'syntax_error',
            MESSAGE = format('The filter %s is not one condition on %s: %s.', quote_literal(filter), source, refused),
            HINT = 'Give one condition, as it could stand after WHERE. '
                'A parameter may need a cast to the type of its column: $1::timestamptz.';
    END IF;
    RETURN E' AND (\n' || bound || E'\n)';
END
$$;

-- The SQL type of a scalar of JSON. Called by _bound_value.
CREATE OR REPLACE FUNCTION pgembed._json_type(value jsonb) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE jsonb_typeof(value)
    WHEN 'number' THEN CASE WHEN value::text ~ '^-?[0-9]{1,18}$' THEN 'bigint' ELSE 'numeric' END
    WHEN 'string' THEN 'text'
    WHEN 'boolean' THEN 'boolean'
    ELSE 'jsonb'
END;

-- The expression that reads value n (from 0) of the parameter $3, with the type that JSON says it has. Called by
-- _bound_filter.
CREATE OR REPLACE FUNCTION pgembed._bound_value(n numeric, params jsonb) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT CASE jsonb_typeof(value)
        WHEN 'object' THEN format('($3 -> %s)', n)
        WHEN 'array' THEN CASE
            WHEN value = '[]' THEN '(''{}'')'
            WHEN cardinality(types) = 1 AND types[1] <> 'jsonb' OR types <@ ARRAY['bigint', 'numeric']
                THEN format('(ARRAY(SELECT pg_catalog.jsonb_array_elements_text($3 -> %s)::%s))', n,
                    CASE WHEN cardinality(types) = 1 THEN types[1] ELSE 'numeric' END)
            ELSE format('($3 -> %s)', n)
        END
        WHEN 'null' THEN '(NULL)'
        ELSE format('(($3 ->> %s)::%s)', n, pgembed._json_type(value))
    END
    FROM (SELECT CASE WHEN n BETWEEN 0 AND 65535 THEN params -> n::integer END AS value) AS one
    CROSS JOIN LATERAL (
        SELECT array_agg(DISTINCT pgembed._json_type(element)) AS types
        FROM jsonb_array_elements(CASE jsonb_typeof(value) WHEN 'array' THEN value ELSE '[]' END) AS element
        WHERE element <> 'null'
    ) AS elements;
END;

-- The filter with each $n outside of quotes replaced by an expression that reads value n of the statement's parameter
-- $3: no value becomes part of the text. Called by _filter_condition.
CREATE OR REPLACE FUNCTION pgembed._bound_filter(filter text, params jsonb) RETURNS text
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE
AS $$
DECLARE
    missing text;
    bound text;
BEGIN
    IF jsonb_typeof(params) <> 'array' THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = format('params is a JSON array with the values of $1, $2 ..., not %s.', params),
            HINT = 'For example: filter => ''price < $1'', params => ''[50]''.';
    ELSIF filter IS NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = 'There are params, but no filter that names them.',
            HINT = 'For example: filter => ''price < $1'', params => ''[50]''.';
    END IF;
    SELECT string_agg(CASE
            WHEN token[1] !~ '^\$[0-9]+$' THEN token[1]
            ELSE pgembed._bound_value(substr(token[1], 2)::numeric - 1, params)
        END, '' ORDER BY ordinal),
        min(token[1]) FILTER (WHERE token[1] ~ '^\$[0-9]+$'
            AND substr(token[1], 2)::numeric NOT BETWEEN 1 AND coalesce(jsonb_array_length(params), 0))
    INTO bound, missing
    FROM regexp_matches(filter, '(''[^'']*''|"[^"]*"|[[:alpha:]_][[:alnum:]_$]*|\$[0-9]+|[^''"$[:alpha:]_]+|.)', 'g')
        WITH ORDINALITY AS m (token, ordinal);
    IF missing IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'undefined_parameter',
            MESSAGE = format('The filter names %s; params holds %s values.', missing,
                coalesce(jsonb_array_length(params), 0)),
            HINT = 'params is a JSON array with the values of $1, $2 ...: params => ''[50]''.';
    END IF;
    RETURN bound;
END
$$;
