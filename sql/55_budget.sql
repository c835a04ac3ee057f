-- Budgets: an encoder's settings rows_per_day and tokens_per_day bound what all workers together encode in 24 hours,
-- rows and the queries that SQL asks them for.

-- How many rows may still be claimed for an encoder, and when more will be (now, where rows are in hand: they may
-- fail); both NULL without a budget. Rows in hand count as spent, each with the mean of tokens so far. Called by
-- workers and by pgembed.status.
CREATE OR REPLACE FUNCTION pgembed._budget(encoder text)
RETURNS TABLE (rows_left bigint, frees_at timestamptz)
LANGUAGE plpgsql STABLE
AS $$
DECLARE
    settings jsonb := (SELECT e.settings FROM pgembed.encoder AS e WHERE e.name = _budget.encoder);
    row_budget numeric := CASE pg_catalog.jsonb_typeof(settings -> 'rows_per_day')
        WHEN 'number' THEN (settings -> 'rows_per_day')::numeric END;
    token_budget numeric := CASE pg_catalog.jsonb_typeof(settings -> 'tokens_per_day')
        WHEN 'number' THEN (settings -> 'tokens_per_day')::numeric END;
    spent_rows numeric;
    spent_tokens numeric;
    in_hand numeric := 0;
    claimed bigint;
    embedding_id integer;
BEGIN
    IF row_budget IS NULL AND token_budget IS NULL THEN
        RETURN QUERY SELECT NULL::bigint, NULL::timestamptz;
        RETURN;
    END IF;
    SELECT coalesce(sum(w.rows), 0), coalesce(sum(w.tokens), 0), min(w.minute) + interval '1 day'
    INTO spent_rows, spent_tokens, frees_at
    FROM pgembed.written AS w JOIN pgembed.embedding AS m ON m.id = w.embedding
    WHERE m.encoder = _budget.encoder AND w.minute > now() - interval '1 day';
    SELECT spent_rows + coalesce(sum(c.inputs), 0), spent_tokens + coalesce(sum(c.tokens), 0),
        least(frees_at, min(c.minute) + interval '1 day')
    INTO spent_rows, spent_tokens, frees_at
    FROM pgembed.charged AS c WHERE c.encoder = _budget.encoder AND c.minute > now() - interval '1 day';
    FOR embedding_id IN SELECT m.id FROM pgembed.embedding AS m WHERE m.encoder = _budget.encoder LOOP
        EXECUTE pg_catalog.format('SELECT count(*) FROM pgembed.%I WHERE claimed_until > pg_catalog.clock_timestamp()',
            'job_' || embedding_id) INTO claimed;
        in_hand := in_hand + claimed;
    END LOOP;
    rows_left := greatest(0, least(
        row_budget - spent_rows - in_hand,
        CASE
            WHEN spent_tokens >= token_budget THEN 0
            WHEN spent_tokens > 0
                THEN ceil((token_budget - spent_tokens) * greatest(spent_rows, 1) / spent_tokens) - in_hand
            WHEN token_budget IS NOT NULL THEN 32 - in_hand -- how long the rows are is not known yet
        END));
    frees_at := CASE WHEN in_hand > 0 THEN now() ELSE coalesce(frees_at, now() + interval '1 minute') END;
    RETURN NEXT;
END
$$;

-- The lock under which workers look at an encoder's budget and claim, one after the other.
CREATE OR REPLACE FUNCTION pgembed._lock_budget(encoder text) RETURNS void
LANGUAGE sql
AS $$ SELECT pg_catalog.pg_advisory_xact_lock(1885824366, pg_catalog.hashtext(encoder)) $$; -- 'pgem' in ASCII, plus one
