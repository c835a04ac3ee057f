-- Distilled static sides: token vectors trained so that their sums come near the vectors of an encoder that runs in a
-- worker or in Python. `pgembed encoder distill` makes them (pgembed/distilling). They are not exact, so that only who
-- asks for them gets them: encode_text(…, prefer => 'static'), or SET pgembed.prefer = 'static'.

-- How a query is encoded where there are two ways: what is preferred, else the setting pgembed.prefer, else exact.
-- Called by encode_text.
CREATE OR REPLACE FUNCTION pgembed._preferred(prefer text) RETURNS text
LANGUAGE plpgsql STABLE PARALLEL SAFE
AS $$
DECLARE
    told text := lower(coalesce(prefer, nullif(current_setting('pgembed.prefer', true), ''), 'exact'));
BEGIN
    IF told NOT IN ('exact', 'static') THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = pg_catalog.format('%s is ''%s'', which is no way to encode a query.',
                CASE WHEN prefer IS NULL THEN 'The setting pgembed.prefer' ELSE 'prefer' END, told),
            HINT = 'Ways: exact, the encoder itself; static, the token vectors that were distilled from it.';
    END IF;
    RETURN told;
END
$$;

-- The distilled static side of an encoder, or an error where it has none, or one of other weights.
-- Called by encode_text.
CREATE OR REPLACE FUNCTION pgembed._distilled_side(encoder pgembed.encoder) RETURNS text
LANGUAGE plpgsql STABLE PARALLEL RESTRICTED
AS $$
DECLARE
    side pgembed.distilled;
BEGIN
    SELECT * INTO side FROM pgembed.distilled AS d WHERE d.encoder = (_distilled_side.encoder).name;
    IF NOT FOUND THEN
        RAISE EXCEPTION USING ERRCODE = 'object_not_in_prerequisite_state',
            MESSAGE = pg_catalog.format('Encoder ''%s'' has no static side to prefer.', encoder.name),
            HINT = pg_catalog.format('Make one: pgembed encoder distill %s; or have the query encoded exactly: prefer => '
                '''exact''.', encoder.name);
    ELSIF side.fingerprint <> encoder.fingerprint THEN
        RAISE EXCEPTION USING ERRCODE = 'object_not_in_prerequisite_state',
            MESSAGE = pg_catalog.format('The static side of encoder ''%s'' is stale: it was distilled from fingerprint %s, and the '
                'encoder has %s now.', encoder.name, left(side.fingerprint, 12), left(encoder.fingerprint, 12)),
            HINT = pg_catalog.format('Make it anew: pgembed encoder distill %s; or have the query encoded exactly: prefer => '
                '''exact''.', encoder.name);
    END IF;
    RETURN side.model;
END
$$;

-- Refuse what has no use for a distilled static side. Called by set_distilled, and by Python before it trains one.
CREATE OR REPLACE FUNCTION pgembed._distillable(encoder text) RETURNS pgembed.encoder
LANGUAGE plpgsql STABLE
AS $$
DECLARE
    registered pgembed.encoder := pgembed._encoder(encoder);
BEGIN
    IF 'text' <> ALL (registered.modalities) THEN
        RAISE EXCEPTION USING ERRCODE = 'feature_not_supported',
            MESSAGE = pg_catalog.format('Encoder ''%s'' takes no text, and a static side is made of words.', encoder),
            HINT = pg_catalog.format('It takes: %s.', array_to_string(registered.modalities, ', '));
    ELSIF registered.static_text IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'feature_not_supported',
            MESSAGE = pg_catalog.format('The text side of encoder ''%s'' (%s) is static already, and exact.', encoder,
                registered.spec),
            HINT = 'There is nothing to distill: pgembed.encode_text computes it inside Postgres.';
    END IF;
    RETURN registered;
END
$$;

-- Make a static text side, whose tokens are there, the distilled one of an encoder, in place of the one before.
-- `texts` is how many it was trained on, `agreement` how near it comes to the encoder on others, `fingerprint` that of
-- the encoder it was distilled from. Called by `pgembed encoder distill`.
CREATE OR REPLACE FUNCTION pgembed.set_distilled(
    encoder text,
    model text,
    fingerprint text,
    texts bigint,
    agreement jsonb
) RETURNS void
LANGUAGE plpgsql
AS $$
DECLARE
    registered pgembed.encoder := pgembed._distillable(encoder);
    dim integer := (SELECT s.dim FROM pgembed.static_text AS s WHERE s.model = set_distilled.model COLLATE "C");
    before text := (SELECT d.model FROM pgembed.distilled AS d WHERE d.encoder = registered.name);
BEGIN
    PERFORM pgembed._require_owner();
    IF dim IS NULL OR NOT EXISTS (
        SELECT FROM pgembed.token AS t WHERE t.model = set_distilled.model COLLATE "C") THEN
        RAISE EXCEPTION USING ERRCODE = 'undefined_object',
            MESSAGE = pg_catalog.format('There is no static text side ''%s'', or it has no tokens.', model),
            HINT = pg_catalog.format('Let Python make it: pgembed encoder distill %s', encoder);
    ELSIF dim <> registered.dim THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = pg_catalog.format('The static text side ''%s'' has %s dimensions, and encoder ''%s'' has %s.',
                model, dim, encoder, registered.dim),
            HINT = pg_catalog.format('Let Python make it: pgembed encoder distill %s', encoder);
    ELSIF set_distilled.fingerprint IS DISTINCT FROM registered.fingerprint THEN
        RAISE EXCEPTION USING ERRCODE = 'object_not_in_prerequisite_state',
            MESSAGE = pg_catalog.format('Encoder ''%s'' has fingerprint %s, and the static side was distilled from %s.',
                encoder, left(registered.fingerprint, 12), coalesce(left(set_distilled.fingerprint, 12), 'none')),
            HINT = pg_catalog.format('The encoder was changed meanwhile; make it anew: pgembed encoder distill %s',
                encoder);
    END IF;
    INSERT INTO pgembed.distilled AS d (encoder, model, fingerprint, texts, agreement)
    VALUES (registered.name, set_distilled.model, set_distilled.fingerprint, set_distilled.texts,
        set_distilled.agreement)
    ON CONFLICT ON CONSTRAINT distilled_pkey DO UPDATE
    SET model = excluded.model, fingerprint = excluded.fingerprint, texts = excluded.texts,
        agreement = excluded.agreement, made_at = excluded.made_at;
    PERFORM pgembed._drop_unused_side(before);
END
$$;

-- Take the distilled static side of an encoder away, with its token vectors.
CREATE OR REPLACE FUNCTION pgembed.drop_distilled(encoder text) RETURNS void
LANGUAGE plpgsql
AS $$
DECLARE
    registered pgembed.encoder := pgembed._encoder(encoder);
    side text;
BEGIN
    PERFORM pgembed._require_owner();
    DELETE FROM pgembed.distilled AS d WHERE d.encoder = registered.name RETURNING d.model INTO side;
    IF NOT FOUND THEN
        RAISE EXCEPTION USING ERRCODE = 'undefined_object',
            MESSAGE = pg_catalog.format('Encoder ''%s'' has no distilled static side.', encoder),
            HINT = 'Nothing was changed.';
    END IF;
    PERFORM pgembed._drop_unused_side(side);
END
$$;

-- How a distilled static side stands. Called by doctor with what the view encoders says of it.
CREATE OR REPLACE FUNCTION pgembed._examine_distilled(
    encoder text,
    distilled jsonb,
    OUT ok boolean,
    OUT finding text,
    OUT remedy text
)
LANGUAGE plpgsql STABLE
AS $$
BEGIN
    ok := NOT (distilled ->> 'stale')::boolean;
    finding := pg_catalog.concat_ws(', ',
        CASE WHEN ok THEN 'distilled, for queries that prefer it' ELSE 'distilled from other weights, and refused' END,
        pg_catalog.format('made on %s from %s texts', left(distilled ->> 'made_at', 10), distilled ->> 'texts'),
        pg_catalog.format('mean cosine with the encoder %s on %s others',
            round((distilled -> 'agreement' ->> 'mean_cosine')::numeric, 3), distilled -> 'agreement' ->> 'held_out'));
    remedy := CASE WHEN NOT ok THEN pg_catalog.format('Make it anew: pgembed encoder distill %s; or take it away: SELECT '
        'pgembed.drop_distilled(%L);', encoder, encoder) END;
END
$$;
