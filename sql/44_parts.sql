-- Many vectors a row: an input is taken apart by a splitter of the worker's, and each part has a vector of its own in
-- the side table, with its number, its kind, where it stands, and the words that stand there.

-- How an input is taken apart, as the catalog keeps it: the name of a splitter, or a JSON object with its options.
-- NULL where a row has one vector. What options there are, the splitter knows. Called by attach and estimate.
CREATE OR REPLACE FUNCTION pgembed._checked_parts(parts text, inputs jsonb, storage text, mode text) RETURNS jsonb
LANGUAGE plpgsql IMMUTABLE
AS $$
DECLARE
    options jsonb;
    modality CONSTANT text := (SELECT min(key) FROM jsonb_object_keys(inputs) AS key);
BEGIN
    IF parts IS NULL THEN
        RETURN NULL;
    END IF;
    BEGIN
        options := CASE WHEN parts ~ '^\s*\{' THEN parts::jsonb ELSE jsonb_build_object('kind', parts) END;
    EXCEPTION WHEN invalid_text_representation THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = format('parts is not valid JSON: %s', parts),
            HINT = 'For example: parts => ''{"kind": "chunks", "tokens": 200}''.';
    END;
    IF jsonb_typeof(options -> 'kind') IS DISTINCT FROM 'string' OR options ->> 'kind' = '' THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = format('parts is the name of a splitter, or a JSON object with its kind, not %L.', parts),
            HINT = 'For example: parts => ''chunks'', or ''{"kind": "chunks", "tokens": 200}''.';
    ELSIF (SELECT count(*) FROM jsonb_object_keys(inputs)) > 1 THEN
        RAISE EXCEPTION USING ERRCODE = 'feature_not_supported',
            MESSAGE = format('parts takes one input apart, and there are %s: %s.',
                (SELECT count(*) FROM jsonb_object_keys(inputs)),
                (SELECT string_agg(key, ', ' ORDER BY key) FROM jsonb_object_keys(inputs) AS key)),
            HINT = 'Attach an embedding for each; a search may name several.';
    ELSIF inputs #> ARRAY[modality, 'list'] IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'feature_not_supported',
            MESSAGE = format('parts takes one value apart, and the input ''%s'' is a list.', modality),
            HINT = 'Leave parts out, for the mean of the list, or keep one value in a row.';
    ELSIF options ->> 'kind' = 'chunks' AND modality <> 'text'
        OR options ->> 'kind' = 'tiles' AND modality = 'text' THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = format('''%s'' are parts of %s, and the input is ''%s''.', options ->> 'kind',
                CASE options ->> 'kind' WHEN 'chunks' THEN 'a text' ELSE 'a picture' END, modality),
            HINT = CASE modality WHEN 'text' THEN 'For texts: parts => ''chunks''.'
                ELSE 'For pictures: parts => ''tiles'' or ''pages''.' END;
    ELSIF storage = 'column' THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = 'A column holds one vector a row, and there is one for each part.',
            HINT = 'Leave storage out, or use storage => ''side''.';
    ELSIF mode = 'instant' THEN
        RAISE EXCEPTION USING ERRCODE = 'feature_not_supported',
            MESSAGE = 'mode => ''instant'' encodes in Postgres, which takes no input apart.',
            HINT = 'Leave mode out: a worker encodes then.';
    END IF;
    RETURN options;
END
$$;
