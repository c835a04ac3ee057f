-- Where settings hold what is named like a secret, at any depth ("headers.X-Api-Key"), or with kind http what looks
-- like one; NULL where nowhere. Names and looks are those of pgembed/encoders/http/config.py. Called by add_encoder.
CREATE OR REPLACE FUNCTION pgembed._secret_in(spec text, settings jsonb) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN (
    WITH RECURSIVE field AS (
        SELECT ''::text AS place, ''::text AS name, settings AS value
        UNION ALL
        SELECT pg_catalog.concat_ws('.', nullif(f.place, ''), i.name), coalesce(i.name, ''), i.value
        FROM field AS f
        CROSS JOIN LATERAL (
            SELECT o.key AS name, o.value
            FROM jsonb_each(CASE jsonb_typeof(f.value) WHEN 'object' THEN f.value END) AS o
            UNION ALL
            SELECT NULL, a.value
            FROM jsonb_array_elements(CASE jsonb_typeof(f.value) WHEN 'array' THEN f.value END) AS a
        ) AS i
    )
    SELECT f.place FROM field AS f
    WHERE f.value <> 'null' AND f.name ~* ('(^|[-_.])(api[-_]?key|apikey|key|token|secret|password|passwd|authorization|'
            'auth|cookie|credentials?|sig|signature)$')
        OR spec LIKE 'http:%' AND jsonb_typeof(f.value) = 'string' AND f.value #>> '{}' ~ ('\y(Bearer|Basic)\s+\S|'
            '^(sk|pk|pa|hf|jina|gsk|xai|nvapi|co|ghp|glpat)[-_][\w-]{12,}|^AIza[\w-]{20,}|^AKIA\w{12,}|'
            '^eyJ[\w-]+\.[\w-]+\.|^[a-zA-Z][\w+.-]*://[^/\s]*@')
    LIMIT 1
);

-- Register an encoder. The built-in one is known by its spec alone; for other kinds Python loads the model and
-- fills in dim, modalities and fingerprint. Doing it again with the same facts changes nothing.
CREATE OR REPLACE FUNCTION pgembed.add_encoder(
    name text,
    spec text,
    space text DEFAULT NULL,
    dim integer DEFAULT NULL,
    modalities text[] DEFAULT NULL,
    metric text DEFAULT NULL,
    normalized boolean DEFAULT NULL,
    fingerprint text DEFAULT NULL,
    settings jsonb DEFAULT '{}',
    static_text text DEFAULT NULL
) RETURNS pgembed.encoder
LANGUAGE plpgsql
AS $$
DECLARE
    shipped pgembed.shipped_encoder;
    present pgembed.encoder;
    wanted pgembed.encoder;
    secret_place text;
BEGIN
    IF coalesce(btrim(name), '') = '' THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = 'An encoder needs a name.',
            HINT = 'For example: SELECT pgembed.add_encoder(''shop'', ''builtin:lite'');';
    END IF;
    secret_place := pgembed._secret_in(spec, settings);
    IF secret_place IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = pg_catalog.format('The settings of encoder ''%s'' hold what looks like a secret, in ''%s''.',
                name, secret_place),
            HINT = 'A catalog is dumped, and read by many. Keep a key in an environment variable or a file, and give '
                'the setting {"key_env": NAME} or {"key_file": PATH}.';
    END IF;
    SELECT * INTO shipped FROM pgembed.shipped_encoder AS s WHERE s.spec = add_encoder.spec;
    wanted.name := name;
    wanted.spec := spec;
    wanted.dim := coalesce(dim, shipped.dim);
    wanted.modalities := coalesce(modalities, shipped.modalities);
    wanted.metric := coalesce(metric, shipped.metric, 'cosine');
    wanted.normalized := coalesce(normalized, shipped.normalized, true);
    wanted.fingerprint := coalesce(fingerprint, shipped.fingerprint);
    wanted.settings := coalesce(settings, '{}');
    wanted.static_text := coalesce(static_text, shipped.static_text);
    wanted.space := coalesce(space, spec || '@' || left(wanted.fingerprint, 12));
    IF wanted.spec IS NULL OR wanted.dim IS NULL OR wanted.modalities IS NULL OR wanted.fingerprint IS NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = pg_catalog.format('Encoder ''%s'' (%s) is not one that SQL knows: dim, modalities and fingerprint are missing.',
                name, coalesce(spec, 'no spec')),
            HINT = pg_catalog.format('Let Python load it: pgembed encoder add %s %s; or give dim, modalities and fingerprint.',
                name, coalesce(spec, 'KIND:NAME'));
    END IF;
    SELECT * INTO present FROM pgembed.encoder AS e WHERE e.name = add_encoder.name;
    IF FOUND THEN
        wanted.created_at := present.created_at;
        IF split_part(wanted.fingerprint, ' ~', 1) = split_part(present.fingerprint, ' ~', 1) THEN
            wanted.fingerprint := present.fingerprint; -- what a server answers is never the same to the last bit
        END IF;
        IF wanted IS DISTINCT FROM present THEN
            RAISE EXCEPTION USING ERRCODE = 'duplicate_object',
                MESSAGE = pg_catalog.format('An encoder named ''%s'' is registered already: %s, fingerprint %s, settings %s.',
                    name, present.spec, left(present.fingerprint, 12), coalesce(
                        (SELECT string_agg(key, ', ' ORDER BY key) FROM jsonb_object_keys(present.settings) AS key),
                        'none')),
                HINT = 'Choose another name, or remove it first: SELECT pgembed.remove_encoder(...).';
        END IF;
        RETURN present;
    END IF;
    wanted.created_at := now();
    INSERT INTO pgembed.encoder SELECT (wanted).*;
    RETURN wanted;
END
$$;

-- Remove an encoder that no embedding and no view uses, and its token vectors where nothing else has them.
CREATE OR REPLACE FUNCTION pgembed.remove_encoder(name text) RETURNS void
LANGUAGE plpgsql
AS $$
DECLARE
    users text;
    registered pgembed.encoder := pgembed._encoder(name);
    distilled text := (SELECT d.model FROM pgembed.distilled AS d WHERE d.encoder = registered.name);
BEGIN
    SELECT string_agg(pg_catalog.format('%I.%I.%I', schema_name, table_name, target), ', ') INTO users
    FROM pgembed.embedding AS e WHERE e.encoder = remove_encoder.name;
    IF users IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'dependent_objects_still_exist',
            MESSAGE = pg_catalog.format('Encoder ''%s'' is used by %s.', name, users),
            HINT = 'Detach them first: SELECT pgembed.detach(''table'', ''target'');';
    END IF;
    SELECT string_agg(d.name, ', ' ORDER BY d.name) INTO users
    FROM pgembed.direction AS d WHERE d.encoder = remove_encoder.name;
    IF users IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'dependent_objects_still_exist',
            MESSAGE = pg_catalog.format('Views were learnt with encoder ''%s'': %s.', name, users),
            HINT = 'Drop them first: SELECT pgembed.drop_view(''view'');';
    END IF;
    DELETE FROM pgembed.encoder AS e WHERE e.name = remove_encoder.name;
    PERFORM pgembed._drop_unused_side(registered.static_text);
    PERFORM pgembed._drop_unused_side(distilled);
END
$$;

-- Remove a static text side with its token vectors where nothing has it. Called by remove_encoder and where a
-- distilled one is replaced or taken away.
CREATE OR REPLACE FUNCTION pgembed._drop_unused_side(model text) RETURNS void
LANGUAGE plpgsql
AS $$
BEGIN
    DELETE FROM pgembed.static_text AS s WHERE s.model = _drop_unused_side.model COLLATE "C"
        AND NOT EXISTS (SELECT FROM pgembed.encoder AS e WHERE e.static_text = s.model)
        AND NOT EXISTS (SELECT FROM pgembed.distilled AS d WHERE d.model = s.model)
        AND NOT EXISTS (SELECT FROM pgembed.shipped_encoder AS h WHERE h.static_text = s.model);
END
$$;

-- The registered encoder of this name, or an error that names those there are. Called by the functions of this schema.
CREATE OR REPLACE FUNCTION pgembed._encoder(name text) RETURNS pgembed.encoder
LANGUAGE plpgsql STABLE
AS $$
DECLARE
    found_encoder pgembed.encoder;
BEGIN
    SELECT * INTO found_encoder FROM pgembed.encoder AS e WHERE e.name = _encoder.name;
    IF NOT FOUND THEN
        RAISE EXCEPTION USING ERRCODE = 'undefined_object',
            MESSAGE = pg_catalog.format('No encoder named ''%s'' is registered.', name),
            HINT = 'Registered: ' || coalesce(
                (SELECT string_agg(e.name, ', ' ORDER BY e.name) FROM pgembed.encoder AS e),
                'none; add one: SELECT pgembed.add_encoder(''shop'', ''builtin:lite'');');
    END IF;
    RETURN found_encoder;
END
$$;

-- The registered encoders, for people. `distilled` tells of the static side that was distilled from it; NULL without.
CREATE OR REPLACE VIEW pgembed.encoders AS
SELECT e.name, e.spec, e.space, e.dim, e.modalities, e.metric, e.static_text IS NOT NULL AS text_in_sql,
    left(e.fingerprint, 12) AS fingerprint, count(m.id) AS embeddings, s.settings ->> 'language' AS languages,
    (SELECT jsonb_build_object('model', d.model, 'stale', d.fingerprint <> e.fingerprint, 'texts', d.texts,
            'agreement', d.agreement, 'made_at', d.made_at)
        FROM pgembed.distilled AS d WHERE d.encoder = e.name) AS distilled
FROM pgembed.encoder AS e
LEFT JOIN pgembed.static_text AS s ON s.model = e.static_text
LEFT JOIN pgembed.embedding AS m ON m.encoder = e.name
GROUP BY e.name, s.model;
