-- Query vectors: encode_text and its kin. They look first in the static text side (a distilled one only where it is
-- preferred: 31_distilled.sql), then in the query cache, and then ask a worker, where dblink is switched on; where it
-- is not, prepare asks before.

DROP FUNCTION IF EXISTS pgembed._cached_vector(pgembed.encoder, text, bytea, text);

-- What the query cache knows an input by: SHA-256 of encoder, fingerprint, modality (each ended by a zero byte) and
-- the input's bytes. Called by _query_vector, and by whoever fills the cache.
CREATE OR REPLACE FUNCTION pgembed.input_hash(encoder text, fingerprint text, modality text, input bytea) RETURNS bytea
LANGUAGE sql STABLE PARALLEL SAFE
RETURN sha256(convert_to(encoder, 'UTF8') || decode('00', 'hex') || convert_to(fingerprint, 'UTF8')
    || decode('00', 'hex') || convert_to(modality, 'UTF8') || decode('00', 'hex') || input);

-- The encoder, or an error where it is unknown, does not take the modality, or the input is null or empty.
-- Called by encode_text, encode_image and encode_screenshot.
CREATE OR REPLACE FUNCTION pgembed._query_encoder(name text, modality text, empty boolean) RETURNS pgembed.encoder
LANGUAGE plpgsql STABLE PARALLEL RESTRICTED
AS $$
DECLARE
    found_encoder pgembed.encoder := pgembed._encoder(name);
BEGIN
    IF modality <> ALL (found_encoder.modalities) THEN
        RAISE EXCEPTION USING ERRCODE = 'feature_not_supported',
            MESSAGE = pg_catalog.format('Encoder ''%s'' takes no %s.', name, modality),
            HINT = pg_catalog.format('It takes: %s.', array_to_string(found_encoder.modalities, ', '));
    END IF;
    IF empty IS NOT FALSE THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = pg_catalog.format('The %s to encode with ''%s'' is %s.', modality, name,
                CASE WHEN empty THEN 'empty' ELSE 'null' END),
            HINT = 'An empty query has no vector; leave its ORDER BY out.';
    END IF;
    RETURN found_encoder;
END
$$;

-- What the query cache has for a hash. SECURITY DEFINER, because nobody may read the cache as a whole: it answers only
-- who knows the input. Called by _query_vector.
CREATE OR REPLACE FUNCTION pgembed._cached(encoder text, hash bytea) RETURNS @extschema:vector@.vector
LANGUAGE sql STABLE SECURITY DEFINER PARALLEL RESTRICTED
SET search_path = pg_catalog, pg_temp
RETURN (SELECT c.vector FROM pgembed.query_cache AS c WHERE c.encoder = _cached.encoder AND c.input_hash = hash);
REVOKE ALL ON FUNCTION pgembed._cached(text, bytea) FROM PUBLIC;

-- How many seconds encode_text and its kin wait for a worker: the setting pgembed.encode_timeout ('10 s', '500 ms'), 10
-- seconds unless told otherwise, and an hour at most. Called by _query_vector.
CREATE OR REPLACE FUNCTION pgembed._encode_timeout() RETURNS float8
LANGUAGE plpgsql STABLE
AS $$
DECLARE
    told text := nullif(current_setting('pgembed.encode_timeout', true), '');
BEGIN
    IF told !~ '^\s*\d{1,7}(\.\d+)?\s*(ms|s|min|h)?\s*$' THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = pg_catalog.format('The setting pgembed.encode_timeout is ''%s'', which is no length of time.',
                told),
            HINT = 'For example: SET pgembed.encode_timeout = ''10 s''; units are ms, s, min and h.';
    END IF;
    RETURN least(coalesce(extract(epoch FROM told::interval), 10), 3600);
END
$$;

-- The vector of an input in the query cache, or from a worker that is asked through dblink, or an error that names the
-- ways out. Errors do not show the input, which may be somebody's secret, and which the server may log.
-- Called by encode_text, encode_image and encode_screenshot.
CREATE OR REPLACE FUNCTION pgembed._query_vector(encoder pgembed.encoder, modality text, input bytea, shown text)
RETURNS @extschema:vector@.vector
LANGUAGE plpgsql STABLE PARALLEL RESTRICTED
AS $$
DECLARE
    hash bytea := pgembed.input_hash(encoder.name, encoder.fingerprint, modality, input);
    result @extschema:vector@.vector := pgembed._cached(encoder.name, hash);
    answer record;
    seconds float8;
BEGIN
    IF result IS NOT NULL THEN
        RETURN result;
    ELSIF NOT pgembed._asks_workers() THEN
        RAISE EXCEPTION USING ERRCODE = 'object_not_in_prerequisite_state',
            MESSAGE = pg_catalog.format('Encoder ''%s'' (%s) has no vector cached for the %s, and makes none in SQL.',
                encoder.name, encoder.spec, shown),
            HINT = pg_catalog.format('Have a worker make it before: CALL %s; or have workers asked whenever one is missing: CALL '
                'pgembed.enable_dblink(); or encode it in Python and pass its vector, as db.search(...) does.',
                CASE modality WHEN 'text' THEN pg_catalog.format('pgembed.prepare(%L, ARRAY[''…''])', encoder.name)
                    ELSE pg_catalog.format('pgembed.prepare_images(%L, ARRAY[…], %L)', encoder.name, modality) END);
    END IF;
    seconds := pgembed._encode_timeout();
    SELECT a.* INTO answer FROM pgembed._ask_worker(encoder.name, modality, input, seconds) AS a;
    IF answer.state <> 'done' THEN
        PERFORM pgembed._refuse_query(encoder.name, shown, answer.state, answer.message,
            pg_catalog.format('%s s (pgembed.encode_timeout)', seconds));
    END IF;
    RETURN answer.answer::@extschema:vector@.vector;
END
$$;

-- Raise the error for a query that a worker gave no vector: by the state of its request, and what was told of it.
-- Called by _query_vector and _prepare.
CREATE OR REPLACE FUNCTION pgembed._refuse_query(encoder text, shown text, state text, message text, waited text)
RETURNS void
LANGUAGE plpgsql
AS $$
BEGIN
    IF state = 'failed' THEN
        RAISE EXCEPTION USING ERRCODE = 'external_routine_exception',
            MESSAGE = pg_catalog.format('The %s could not be encoded with ''%s'': %s', shown, encoder, message),
            HINT = 'It was not kept; the next time it is tried again.';
    ELSIF state IN ('unheard', 'unknown') THEN
        RAISE EXCEPTION USING ERRCODE = 'object_not_in_prerequisite_state',
            MESSAGE = pg_catalog.format('The %s has no vector yet, and no worker is running that makes some with ''%s''.', shown,
                encoder),
            HINT = 'Start one: pgembed worker. Where one runs, its log tells why it leaves this encoder alone.';
    ELSIF state = 'full' THEN
        RAISE EXCEPTION USING ERRCODE = 'configuration_limit_exceeded',
            MESSAGE = pg_catalog.format('Too many queries wait for workers to encode them; the %s is not added.',
                shown),
            HINT = 'Try again a little later, or start more workers: pgembed worker.';
    END IF;
    RAISE EXCEPTION USING ERRCODE = 'object_not_in_prerequisite_state',
        MESSAGE = pg_catalog.format('The %s got no vector from ''%s'' within %s. %s', shown, encoder, waited,
            coalesce(message, 'A worker may still be at it.')),
        HINT = 'Try again: what a worker has in hand it finishes, and keeps. Where that is not enough, start more workers '
            'or wait longer.';
END
$$;

-- The vector that a static text side makes of a query; never NULL. A notice tells where it knows little of it.
-- Called by encode_text.
CREATE OR REPLACE FUNCTION pgembed._static_query(encoder text, side text, query text, hint text)
RETURNS @extschema:vector@.vector
LANGUAGE plpgsql STABLE PARALLEL RESTRICTED
AS $$
DECLARE
    shown text := CASE WHEN length(query) <= 80 THEN query ELSE left(query, 80) || '…' END;
    tokens text[] := pgembed.static_tokens(side, query);
    languages text;
    result @extschema:vector@.vector := pgembed._sum_of_tokens(side, tokens);
BEGIN
    IF result IS NULL OR @extschema:vector@.vector_norm(result) = 0 THEN
        SELECT s.settings ->> 'language' INTO languages FROM pgembed.static_text AS s WHERE s.model = side COLLATE "C";
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = pg_catalog.format('The text ''%s'' has no word that ''%s'' knows.', shown, side),
            HINT = coalesce(hint, pg_catalog.format('Write it in %s words, or use an encoder for its language.',
                coalesce(languages, 'other')));
    ELSIF pgembed._mostly_unknown(query, tokens) THEN
        SELECT s.settings ->> 'language' INTO languages FROM pgembed.static_text AS s WHERE s.model = side COLLATE "C";
        RAISE NOTICE USING
            MESSAGE = pg_catalog.format(CASE WHEN hint IS NULL THEN 'Encoder ''%s'' does not know most words of this query.'
                ELSE 'The static side of encoder ''%s'' does not know most words of this query.' END, encoder),
            HINT = coalesce(hint, pg_catalog.format('Its words are %s; what it finds may have little to do with the query. For other '
                'languages use a multilingual encoder.', coalesce(languages, 'those of its vocabulary')));
    END IF;
    RETURN result;
END
$$;

-- The vector of a query text; never NULL. Where the encoder has a distilled static side, prefer => 'static' has that
-- make it, inside Postgres, nearly as the encoder would; 'exact', the default, never does. A text side that is static
-- by itself is exact, and used either way. Where `prefer` is NULL the setting pgembed.prefer says it.
CREATE OR REPLACE FUNCTION pgembed.encode_text(encoder text, query text, prefer text) RETURNS @extschema:vector@.vector
LANGUAGE plpgsql STABLE PARALLEL RESTRICTED
AS $$
DECLARE
    registered pgembed.encoder := pgembed._query_encoder(encoder, 'text', btrim(query) = '');
    preferred text := pgembed._preferred(prefer);
BEGIN
    IF registered.static_text IS NOT NULL THEN
        RETURN pgembed._static_query(encoder, registered.static_text, query, NULL);
    ELSIF preferred = 'static' THEN
        RETURN pgembed._static_query(encoder, pgembed._distilled_side(registered), query,
            'Have it encoded exactly: prefer => ''exact''.');
    END IF;
    RETURN pgembed._query_vector(registered, 'text', convert_to(query, 'UTF8'),
        pg_catalog.format('text of %s characters', length(query)));
END
$$;

-- The same, as the setting pgembed.prefer says. Write it as a scalar subquery, so that it runs once:
-- ORDER BY embedding <=> (SELECT pgembed.encode_text('shop', 'a red shoe')) LIMIT 10.
-- A function of its own, so that views that call it outlast an upgrade.
CREATE OR REPLACE FUNCTION pgembed.encode_text(encoder text, query text) RETURNS @extschema:vector@.vector
LANGUAGE plpgsql STABLE PARALLEL RESTRICTED
AS $$
BEGIN
    RETURN pgembed.encode_text(encoder, query, NULL);
END
$$;

-- The vector of a query picture (the bytes of its file), from the query cache or a worker; never NULL.
CREATE OR REPLACE FUNCTION pgembed.encode_image(encoder text, image bytea) RETURNS @extschema:vector@.vector
LANGUAGE plpgsql STABLE PARALLEL RESTRICTED
AS $$
BEGIN
    RETURN pgembed._query_vector(pgembed._query_encoder(encoder, 'image', octet_length(image) = 0), 'image', image,
        pg_catalog.format('picture of %s bytes', octet_length(image)));
END
$$;

-- The vector of a query screenshot (the bytes of its file), from the query cache or a worker; never NULL.
CREATE OR REPLACE FUNCTION pgembed.encode_screenshot(encoder text, image bytea) RETURNS @extschema:vector@.vector
LANGUAGE plpgsql STABLE PARALLEL RESTRICTED
AS $$
BEGIN
    RETURN pgembed._query_vector(pgembed._query_encoder(encoder, 'screenshot', octet_length(image) = 0), 'screenshot',
        image, pg_catalog.format('screenshot of %s bytes', octet_length(image)));
END
$$;

-- Have workers make the vectors of texts, so that encode_text finds them in the cache:
--
--     CALL pgembed.prepare('shop', ARRAY['a red shoe', 'a blue car']);
--
-- Returns when all are there. It commits, so that workers see what they are asked, and cannot stand in a transaction.
-- Raises an error when the time is over, where no worker is running, and for the first text that cannot be encoded.
CREATE OR REPLACE PROCEDURE pgembed.prepare(encoder text, texts text[], timeout interval DEFAULT '1 minute')
LANGUAGE plpgsql
AS $$
DECLARE
    inputs bytea[] := ARRAY(
        SELECT convert_to(nullif(btrim(t.value), ''), 'UTF8') FROM unnest(texts) WITH ORDINALITY AS t (value, n)
        ORDER BY t.n);
BEGIN
    IF array_position(inputs, NULL) IS NOT NULL THEN
        PERFORM pgembed._query_encoder(encoder, 'text', btrim(texts[array_position(inputs, NULL)]) = '');
    END IF;
    inputs := ARRAY(SELECT convert_to(t.value, 'UTF8') FROM unnest(texts) WITH ORDINALITY AS t (value, n) ORDER BY t.n);
    IF (pgembed._query_encoder(encoder, 'text', false)).static_text IS NULL THEN
        CALL pgembed._prepare(encoder, 'text', inputs, timeout);
    END IF;
END
$$;

-- The same for pictures, each the bytes of its file; `modality` is 'image' or 'screenshot'.
CREATE OR REPLACE PROCEDURE pgembed.prepare_images(
    encoder text,
    images bytea[],
    modality text DEFAULT 'image',
    timeout interval DEFAULT '1 minute'
)
LANGUAGE plpgsql
AS $$
DECLARE
    image bytea;
BEGIN
    IF modality IN ('image', 'screenshot') IS NOT TRUE THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = pg_catalog.format('There are no pictures of modality %s.', coalesce(quote_literal(modality), 'NULL')),
            HINT = 'Modalities: image, screenshot.';
    END IF;
    PERFORM pgembed._query_encoder(encoder, modality, false);
    FOREACH image IN ARRAY coalesce(images, '{}') LOOP
        PERFORM pgembed._query_encoder(encoder, modality, octet_length(image) = 0);
    END LOOP;
    CALL pgembed._prepare(encoder, modality, images, timeout);
END
$$;

-- Ask for the vectors of inputs, some hundred at a time, and wait for them. Called by prepare and prepare_images.
CREATE OR REPLACE PROCEDURE pgembed._prepare(encoder text, modality text, inputs bytea[], timeout interval)
LANGUAGE plpgsql
AS $$
DECLARE
    ends CONSTANT timestamptz := clock_timestamp() + timeout;
    total CONSTANT integer := coalesce(cardinality(inputs), 0);
    waiting integer[] := '{}'; -- places of those that were asked for
    hashes bytea[] := '{}'; -- of these
    state text;
    message text;
    hash bytea;
    place integer := 0;
    failed text[]; -- of the first that cannot be encoded: its place, its state and why
    pause float8;
BEGIN
    COMMIT; -- in a transaction it fails here, before anything is done
    WHILE place < total LOOP
        FOR n IN place + 1..least(place + 200, total) LOOP
            SELECT r.state, r.hash INTO state, hash
            FROM pgembed._request(encoder, modality, inputs[n], extract(epoch FROM ends - clock_timestamp())) AS r;
            IF state = 'asked' THEN
                waiting := waiting || n;
                hashes := hashes || hash;
            ELSE
                failed := coalesce(failed, ARRAY[n::text, state, NULL]);
            END IF;
        END LOOP;
        place := least(place + 200, total);
        COMMIT;
        pause := 0.001;
        FOR i IN 1..cardinality(waiting) LOOP
            LOOP
                SELECT a.state, a.message INTO state, message FROM pgembed._answer_of(encoder, hashes[i]) AS a;
                EXIT WHEN state IN ('done', 'failed', 'unheard', 'late');
                IF state = 'lost' THEN
                    SELECT r.state INTO state FROM pgembed._request(encoder, modality, inputs[waiting[i]],
                        extract(epoch FROM ends - clock_timestamp())) AS r;
                    EXIT WHEN state <> 'asked';
                END IF;
                COMMIT;
                PERFORM pg_sleep(pause);
                pause := least(pause * 1.1::float8, 0.02::float8);
            END LOOP;
            COMMIT;
            IF state <> 'done' THEN
                failed := coalesce(failed, ARRAY[waiting[i]::text, state, message]);
            END IF;
        END LOOP;
        EXIT WHEN failed[2] <> 'failed'; -- nobody is there to make the others
        waiting := '{}';
        hashes := '{}';
    END LOOP;
    IF failed IS NOT NULL THEN
        PERFORM pgembed._refuse_query(encoder, pg_catalog.format('%s number %s of %s', modality, failed[1], total),
            failed[2], failed[3], pg_catalog.format('%s s', extract(epoch FROM timeout)));
    END IF;
END
$$;
