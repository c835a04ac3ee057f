-- Queries that wait for a worker: who asks puts a request into a table, a worker puts its vector into the query cache
-- and takes the request away. Nobody but the owner may read the two tables; what stands here is all that comes out of
-- them, and only to whoever has the input itself.

-- The workers that take requests for an encoder each hold this lock, shared; what it counts dies with its session.
CREATE OR REPLACE FUNCTION pgembed._serving(encoder text) RETURNS SETOF integer
LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT l.pid FROM pg_catalog.pg_locks AS l
    WHERE l.locktype = 'advisory' AND l.classid = 1885824367 -- 'pgem' in ASCII, plus two
        AND l.objid = (pg_catalog.hashtext(encoder)::bigint & 4294967295)::oid AND l.objsubid = 2
        AND l.mode = 'ShareLock' AND l.granted
        AND l.database = (SELECT d.oid FROM pg_catalog.pg_database AS d WHERE d.datname = current_database());
END;

-- Take that lock, where nobody bars it, or give it back. Called by workers.
CREATE OR REPLACE FUNCTION pgembed._serve(encoder text, on_offer boolean) RETURNS boolean
LANGUAGE sql
RETURN CASE WHEN on_offer THEN pg_try_advisory_lock_shared(1885824367, hashtext(encoder))
    ELSE pg_advisory_unlock_shared(1885824367, hashtext(encoder)) END;

-- Ask for the vector of an input; several who ask for the same share one request. The state is 'asked', 'unknown' where
-- there is no such encoder any more, or 'full' where too many wait. SECURITY DEFINER, because nobody may read the
-- requests. No error is raised, since the server would log the statement, and with it the input. Called by _ask and by
-- _prepare.
CREATE OR REPLACE FUNCTION pgembed._request(
    encoder text,
    modality text,
    input bytea,
    seconds float8,
    OUT state text,
    OUT hash bytea
)
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET lock_timeout = '200ms'
AS $$
DECLARE
    claimed boolean;
    too_many boolean;
BEGIN
    SELECT pgembed.input_hash(e.name, e.fingerprint, _request.modality, _request.input) INTO hash
    FROM pgembed.encoder AS e WHERE e.name = _request.encoder AND _request.modality = ANY (e.modalities);
    IF hash IS NULL THEN
        state := 'unknown';
        RETURN;
    END IF;
    IF octet_length(input) < 100000 THEN
        too_many := EXISTS (SELECT FROM pgembed.request AS r WHERE r.encoder = _request.encoder OFFSET 999);
    ELSE
        too_many := (SELECT count(*) >= 1000 OR sum(octet_length(r.input)) + octet_length(_request.input) > 268435456
            FROM pgembed.request AS r WHERE r.encoder = _request.encoder);
    END IF;
    IF too_many THEN
        state := 'full';
        RETURN;
    END IF;
    INSERT INTO pgembed.request AS r (encoder, input_hash, modality, input, wanted_until)
    VALUES (encoder, hash, modality, input,
        clock_timestamp() + interval '1 second' * least(greatest(coalesce(seconds, 0), 0), 3600))
    ON CONFLICT ON CONSTRAINT request_pkey DO UPDATE SET
        wanted_until = CASE WHEN r.error IS NULL THEN greatest(r.wanted_until, excluded.wanted_until)
            ELSE excluded.wanted_until END,
        input = coalesce(r.input, excluded.input),
        claimed_by = CASE WHEN r.error IS NULL THEN r.claimed_by END,
        attempts = CASE WHEN r.error IS NULL THEN r.attempts ELSE 0 END,
        note = CASE WHEN r.error IS NULL THEN r.note END,
        error = NULL -- what failed is tried again
    RETURNING r.claimed_by IS NOT NULL INTO claimed;
    IF EXISTS (SELECT FROM pgembed.query_cache AS c WHERE c.encoder = _request.encoder AND c.input_hash = hash) THEN
        -- it was answered since the caller looked; the other way round, an answer might come between the two looks
        DELETE FROM pgembed.request AS r WHERE r.encoder = _request.encoder AND r.input_hash = hash;
    ELSIF NOT claimed THEN
        PERFORM pg_notify('pgembed_request', '');
    END IF;
    state := 'asked';
EXCEPTION WHEN lock_not_available THEN
    state := 'full'; -- somebody holds the same request in an open transaction
END
$$;
REVOKE ALL ON FUNCTION pgembed._request(text, text, bytea, float8) FROM PUBLIC;

-- How a request stands: 'done' with its vector, 'failed' with the reason, 'waiting', 'unheard' where no worker takes
-- requests for the encoder, 'late' where it is not wanted any more, or 'lost' where it is not there: the server was
-- started again, say. SECURITY DEFINER, because nobody may read the requests and the cache. Called by _ask and by
-- _prepare.
CREATE OR REPLACE FUNCTION pgembed._answer_of(
    encoder text,
    hash bytea,
    OUT state text,
    OUT answer @extschema:vector@.vector,
    OUT message text
)
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    found_request pgembed.request;
BEGIN
    SELECT c.vector INTO answer FROM pgembed.query_cache AS c
    WHERE c.encoder = _answer_of.encoder AND c.input_hash = hash;
    IF FOUND THEN
        state := 'done';
        RETURN;
    END IF;
    SELECT r.* INTO found_request FROM pgembed.request AS r
    WHERE r.encoder = _answer_of.encoder AND r.input_hash = hash;
    state := CASE
        WHEN NOT FOUND THEN 'lost'
        WHEN found_request.error IS NOT NULL THEN 'failed'
        WHEN found_request.wanted_until <= clock_timestamp() THEN 'late'
        ELSE 'waiting' END;
    -- to look for workers takes longer than a quick one takes to answer
    IF state = 'waiting' AND found_request.claimed_by IS NULL
        AND found_request.asked_at < clock_timestamp() - interval '50 ms'
        AND NOT EXISTS (SELECT FROM pgembed._serving(encoder)) THEN
        state := CASE WHEN found_request.note IS NULL THEN 'unheard' ELSE 'failed' END; -- those that did refused it
    END IF;
    message := coalesce(found_request.error, found_request.note);
    IF state = 'late' THEN
        message := coalesce(message, CASE
            WHEN found_request.claimed_by IS NULL THEN 'No worker has taken it up.'
            WHEN found_request.claimed_by IN (SELECT s FROM pgembed._serving(encoder) AS s)
                THEN 'A worker has it in hand.'
            ELSE 'The worker that had it in hand is gone.' END);
    END IF;
    IF state IN ('late', 'failed', 'unheard') AND found_request.input IS NOT NULL THEN
        DELETE FROM pgembed.request AS r WHERE (r.encoder, r.input_hash) IN ( -- unless it was asked for again meanwhile
            SELECT o.encoder, o.input_hash FROM pgembed.request AS o
            WHERE o.encoder = _answer_of.encoder AND o.input_hash = hash
                AND o.wanted_until = found_request.wanted_until
            FOR UPDATE SKIP LOCKED);
    END IF;
END
$$;
REVOKE ALL ON FUNCTION pgembed._answer_of(text, bytea) FROM PUBLIC;

-- Take up to so many requests for some encoders, the oldest first, and those that a worker had in hand which is gone.
-- One that two workers did not come back from is given up. Called by workers.
CREATE OR REPLACE FUNCTION pgembed._take_requests(encoders text[], most integer)
RETURNS TABLE (encoder text, modality text, input_hash bytea, input bytea)
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
BEGIN
    IF NOT EXISTS (SELECT FROM pgembed.request) THEN
        RETURN; -- as mostly
    END IF;
    UPDATE pgembed.request AS r
    SET input = NULL, claimed_by = NULL, wanted_until = clock_timestamp() + interval '1 minute',
        error = 'Two workers did not come back from it.'
    WHERE (r.encoder, r.input_hash) IN (
        SELECT o.encoder, o.input_hash FROM pgembed.request AS o WHERE o.input IS NOT NULL AND o.attempts >= 2
            AND o.claimed_by NOT IN (SELECT s FROM pgembed._serving(o.encoder) AS s)
        FOR UPDATE SKIP LOCKED);
    RETURN QUERY UPDATE pgembed.request AS r
    SET claimed_by = pg_backend_pid(), attempts = r.attempts + 1
    FROM (
        SELECT f.encoder, f.input_hash FROM pgembed.request AS f
        WHERE f.input IS NOT NULL AND f.encoder = ANY (encoders) AND f.wanted_until > clock_timestamp()
            AND (f.claimed_by IS NULL OR f.claimed_by NOT IN (SELECT s FROM pgembed._serving(f.encoder) AS s))
        ORDER BY f.asked_at LIMIT most
        FOR UPDATE SKIP LOCKED
    ) AS due
    WHERE r.encoder = due.encoder AND r.input_hash = due.input_hash
    RETURNING r.encoder, r.modality, r.input_hash, r.input;
END
$$;
REVOKE ALL ON FUNCTION pgembed._take_requests(text[], integer) FROM PUBLIC;

-- Say why a worker has not encoded yet what it took for an encoder, and where it never will, give that back for others
-- to take. Called by workers.
CREATE OR REPLACE FUNCTION pgembed._note_requests(encoder text, note text, give_back boolean) RETURNS void
LANGUAGE sql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
    UPDATE pgembed.request AS r
    SET note = _note_requests.note, claimed_by = CASE WHEN NOT give_back THEN r.claimed_by END,
        attempts = r.attempts - give_back::integer
    WHERE (r.encoder, r.input_hash) IN (
        SELECT o.encoder, o.input_hash FROM pgembed.request AS o
        WHERE o.encoder = _note_requests.encoder AND o.claimed_by = pg_backend_pid() AND o.error IS NULL
        FOR UPDATE SKIP LOCKED)
$$;
REVOKE ALL ON FUNCTION pgembed._note_requests(text, text, boolean) FROM PUBLIC;

-- Answer a request with a vector, which goes into the query cache, or with an error, which does not. The input is gone
-- from the requests then; of an error they know for a minute, for all who wait. Called by workers.
CREATE OR REPLACE FUNCTION pgembed._answer_request(
    encoder text,
    hash bytea,
    answer @extschema:vector@.vector,
    error text
) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_variable
BEGIN
    IF answer IS NULL THEN
        UPDATE pgembed.request AS r
        SET input = NULL, claimed_by = NULL, error = _answer_request.error,
            wanted_until = clock_timestamp() + interval '1 minute'
        WHERE (r.encoder, r.input_hash) IN (
            SELECT o.encoder, o.input_hash FROM pgembed.request AS o
            WHERE o.encoder = _answer_request.encoder AND o.input_hash = hash FOR UPDATE SKIP LOCKED);
        RETURN;
    END IF;
    INSERT INTO pgembed.query_cache AS c (encoder, input_hash, vector, created_at)
    SELECT e.name, hash, answer, clock_timestamp() FROM pgembed.encoder AS e WHERE e.name = encoder
    ON CONFLICT ON CONSTRAINT query_cache_pkey DO UPDATE
    SET vector = excluded.vector, created_at = excluded.created_at;
    DELETE FROM pgembed.request AS r WHERE (r.encoder, r.input_hash) IN ( -- no worker waits for whoever asks just now
        SELECT o.encoder, o.input_hash FROM pgembed.request AS o
        WHERE o.encoder = _answer_request.encoder AND o.input_hash = hash FOR UPDATE SKIP LOCKED);
EXCEPTION WHEN foreign_key_violation THEN
    NULL; -- the encoder was removed just now
END
$$;
REVOKE ALL ON FUNCTION pgembed._answer_request(text, bytea, @extschema:vector@.vector, text) FROM PUBLIC;

-- Charge an encoder's budget for queries. Called by workers where the encoder has one.
CREATE OR REPLACE FUNCTION pgembed._charge(encoder text, inputs bigint, tokens bigint) RETURNS void
LANGUAGE sql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
    DELETE FROM pgembed.charged AS c WHERE c.minute < now() - interval '2 days';
    INSERT INTO pgembed.charged AS c (encoder, minute, inputs, tokens)
    SELECT e.name, date_trunc('minute', now()), _charge.inputs, _charge.tokens
    FROM pgembed.encoder AS e WHERE e.name = _charge.encoder
    ON CONFLICT ON CONSTRAINT charged_pkey DO UPDATE
    SET inputs = c.inputs + excluded.inputs, tokens = c.tokens + excluded.tokens
$$;
REVOKE ALL ON FUNCTION pgembed._charge(text, bigint, bigint) FROM PUBLIC;

-- Forget requests that nobody waits for any more, and what is oldest in the query cache beyond the setting
-- pgembed.query_cache_size: 10,000 vectors unless told otherwise, or where it is no number. Called by workers, once a
-- second while they take requests.
CREATE OR REPLACE FUNCTION pgembed._tidy_requests() RETURNS void
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    told text := current_setting('pgembed.query_cache_size', true);
    most bigint := coalesce(substring(told FROM '^\s*(\d{1,9})\s*$')::bigint, 10000);
BEGIN
    DELETE FROM pgembed.request AS r WHERE (r.encoder, r.input_hash) IN (
        SELECT o.encoder, o.input_hash FROM pgembed.request AS o
        WHERE o.wanted_until < clock_timestamp() FOR UPDATE SKIP LOCKED);
    DELETE FROM pgembed.query_cache AS c WHERE c.created_at <= (
        SELECT o.created_at FROM pgembed.query_cache AS o ORDER BY o.created_at DESC OFFSET most LIMIT 1);
END
$$;
REVOKE ALL ON FUNCTION pgembed._tidy_requests() FROM PUBLIC;

-- Ask for one input, and look for the answer until it is there or `seconds` are over; after `patience` seconds at the
-- latest it returns 'waiting', and may be called again with the hash that it gives. A procedure, because nobody sees
-- the request before it is committed. Called through dblink.
CREATE OR REPLACE PROCEDURE pgembed._ask(
    encoder text,
    modality text,
    input bytea,
    seconds float8,
    patience float8,
    INOUT hash bytea DEFAULT NULL,
    INOUT state text DEFAULT NULL,
    INOUT answer text DEFAULT NULL,
    INOUT message text DEFAULT NULL
)
LANGUAGE plpgsql
AS $$
DECLARE
    ends CONSTANT timestamptz := clock_timestamp() + interval '1 second' * (patience + 0.1::float8); -- it is late
    pause float8 := CASE WHEN hash IS NULL THEN 0.001 ELSE 0.02 END;
BEGIN
    LOOP
        IF hash IS NULL OR state = 'lost' THEN
            SELECT r.state, r.hash INTO state, hash FROM pgembed._request(encoder, modality, input, seconds) AS r;
            COMMIT;
            EXIT WHEN state <> 'asked';
        END IF;
        LOOP
            SELECT a.state, a.answer::text, a.message INTO state, answer, message
            FROM pgembed._answer_of(encoder, hash) AS a;
            COMMIT;
            EXIT WHEN state <> 'waiting' OR clock_timestamp() >= ends;
            PERFORM pg_catalog.pg_sleep(pause);
            pause := least(pause * 1.02::float8, 0.02::float8); -- so that looking takes little where many wait long
        END LOOP;
        EXIT WHEN state <> 'lost' OR clock_timestamp() >= ends;
    END LOOP;
END
$$;
