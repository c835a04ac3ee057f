-- Texts encoded inside Postgres: the static text side (tokenizer, sum of token vectors). pgembed/static_text.py says
-- step by step what the tokenizer does; both give the same tokens.

-- Lower case needs a UTF-8 collation whose rules are known: under lc_ctype = C, lower('É') does nothing.
-- The collation for a server version, or an error where there is none. Called by _normalize_text.
CREATE OR REPLACE FUNCTION pgembed._lowercase_collation(server_version integer) RETURNS regcollation
LANGUAGE plpgsql STABLE PARALLEL SAFE
AS $$
DECLARE
    found_collation regcollation;
BEGIN
    IF server_version >= 170000 THEN
        RETURN 'pg_catalog.pg_c_utf8'::regcollation;
    END IF;
    -- Turkish, Azeri and Lithuanian have lower-case rules of their own: only collations of no language, or English.
    SELECT c.oid INTO found_collation FROM pg_catalog.pg_collation AS c
    WHERE c.collnamespace = 'pg_catalog'::regnamespace
        AND (c.collprovider = 'c' AND c.collname ~* '^(C|en_[A-Z]+)[.]utf-?8$' AND c.collencoding = 6
            OR c.collprovider = 'i' AND c.collname = 'und-x-icu')
    ORDER BY c.collname !~* '^C[.]', c.collprovider, c.collname
    LIMIT 1;
    IF NOT FOUND THEN
        RAISE EXCEPTION USING ERRCODE = 'feature_not_supported',
            MESSAGE = 'This server has no collation that lower-cases UTF-8 text, so texts cannot be encoded in SQL.',
            HINT = 'Install the locale C.UTF-8 and run SELECT pg_import_system_collations(''pg_catalog'');, '
                'use PostgreSQL 17 or later, or encode the query in Python and pass its vector.';
    END IF;
    RETURN found_collation;
END
$$;

-- A text as the tokenizer sees it: cleaned, ideographs apart, accents dropped, lower case. Steps that the settings of
-- the static text side switch off are left out. Called by _words.
CREATE OR REPLACE FUNCTION pgembed._normalize_text(input text, settings jsonb DEFAULT '{}') RETURNS text
LANGUAGE plpgsql STABLE PARALLEL SAFE
AS $$
DECLARE
    result text COLLATE "C" := input;
    ascii boolean := octet_length(input) = length(input);
    lower_case boolean := coalesce((settings ->> 'lowercase')::boolean, true);
BEGIN
    IF getdatabaseencoding() <> 'UTF8' THEN
        RAISE EXCEPTION USING ERRCODE = 'feature_not_supported',
            MESSAGE = pg_catalog.format('The encoding of database ''%s'' is %s; texts can be encoded in SQL only under UTF8.',
                current_database(), getdatabaseencoding()),
            HINT = 'Encode the query in Python and pass its vector.';
    END IF;
    IF coalesce((settings ->> 'clean_text')::boolean, true) THEN
        result := regexp_replace(result, pgembed._dropped_characters(), '', 'g');
        result := regexp_replace(result, pgembed._space_characters(), ' ', 'g');
    END IF;
    IF ascii THEN
        RETURN CASE WHEN lower_case THEN lower(result COLLATE "C") ELSE result END;
    END IF;
    IF coalesce((settings ->> 'split_cjk')::boolean, true) THEN
        result := regexp_replace(result, pgembed._ideographs(), ' \& ', 'g');
    END IF;
    IF coalesce((settings ->> 'strip_accents')::boolean, true) THEN
        result := regexp_replace(normalize(result, NFD), pgembed._accents(), '', 'g');
    END IF;
    IF lower_case THEN
        -- Character by character, as the tokenizer does it: some collations make a Σ at the end of a word a ς.
        EXECUTE pg_catalog.format('SELECT lower(replace($1, ''Σ'', ''σ'') COLLATE %s)',
            pgembed._lowercase_collation(current_setting('server_version_num')::integer))
        INTO result USING result;
    END IF;
    RETURN result;
END
$$;

-- The words of a text, in order; each punctuation character is a word. Called by static_tokens.
CREATE OR REPLACE FUNCTION pgembed._words(input text, settings jsonb DEFAULT '{}') RETURNS text[]
LANGUAGE sql STABLE PARALLEL SAFE
RETURN array_remove(
    string_to_array(
        regexp_replace(pgembed._normalize_text(input, settings) COLLATE "C", pgembed._punctuation(), ' \& ', 'g'), ' '),
    '');

-- A word in pieces that have vectors, longest from the left, with spaces between them; NULL where some part of it has
-- none: the word is unknown then. Called by static_tokens for words that are no token themselves.
CREATE OR REPLACE FUNCTION pgembed._word_pieces(model text, word text, prefix text) RETURNS text
LANGUAGE plpgsql STABLE PARALLEL SAFE
AS $$
DECLARE
    rest text COLLATE "C" := word;
    sought text COLLATE "C" := word;
    shortest integer := 1;
    piece text COLLATE "C";
    pieces text;
    common integer;
BEGIN
    LOOP
        -- The last token that sorts at or before what is sought either begins it, or shares with it all that a
        -- token beginning it can have: one or two index look-ups find the longest, whatever the word's length.
        LOOP
            SELECT t.token INTO piece FROM pgembed.token AS t
            WHERE t.model = _word_pieces.model COLLATE "C" AND t.token <= sought
            ORDER BY t.token DESC LIMIT 1;
            EXIT WHEN starts_with(sought, piece);
            common := 0;
            WHILE left(piece, common + 1) = left(sought, common + 1) LOOP
                common := common + 1;
            END LOOP;
            IF piece IS NULL OR common < shortest THEN
                RETURN NULL;
            END IF;
            sought := left(sought, common);
        END LOOP;
        IF length(piece) < shortest THEN
            RETURN NULL;
        END IF;
        pieces := concat_ws(' ', pieces, piece);
        rest := substr(rest, length(piece) + 2 - shortest);
        IF rest = '' THEN
            RETURN pieces;
        END IF;
        sought := prefix || rest;
        shortest := length(prefix) + 1;
    END LOOP;
END
$$;

-- The known tokens of a text, in order, each as often as it occurs; unknown words are left out. NULL for an unknown
-- model. Called by static_vector, and by people who ask why a text found what it found.
-- The generic plan is set because planning anew for each text takes as long as running.
CREATE OR REPLACE FUNCTION pgembed.static_tokens(model text, input text) RETURNS text[]
LANGUAGE plpgsql STABLE STRICT PARALLEL SAFE SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
    side pgembed.static_text;
    max_word_chars integer;
    words text[] COLLATE "C";
    split text[] COLLATE "C";
    pieces text[] COLLATE "C";
BEGIN
    SELECT * INTO side FROM pgembed.static_text AS s WHERE s.model = static_tokens.model COLLATE "C";
    IF NOT FOUND THEN
        RETURN NULL;
    END IF;
    max_word_chars := coalesce((side.settings ->> 'max_word_chars')::integer, 100);
    words := pgembed._words(input, side.settings);
    SELECT array_agg(DISTINCT w.word) INTO split FROM unnest(words) AS w (word)
    WHERE length(w.word) > max_word_chars OR NOT EXISTS (
        SELECT FROM pgembed.token AS t WHERE t.model = side.model AND t.token = w.word);
    IF split IS NULL THEN
        RETURN words;
    END IF;
    pieces := ARRAY(
        SELECT CASE WHEN length(w.word) <= max_word_chars
            THEN pgembed._word_pieces(side.model, w.word, coalesce(side.settings ->> 'continuing_prefix', '##')) END
        FROM unnest(split) WITH ORDINALITY AS w (word, n) ORDER BY w.n);
    RETURN ARRAY(
        SELECT p.piece
        FROM unnest(words) WITH ORDINALITY AS w (word, n)
        LEFT JOIN unnest(split, pieces) AS s (word, pieces) ON s.word = w.word
        CROSS JOIN LATERAL unnest(CASE WHEN s.word IS NULL THEN ARRAY[w.word] ELSE string_to_array(s.pieces, ' ') END)
            WITH ORDINALITY AS p (piece, n)
        ORDER BY w.n, p.n);
END
$$;

-- The normalized sum of the tokens' vectors; NULL where there is no token. Called by static_vector and encode_text.
CREATE OR REPLACE FUNCTION pgembed._sum_of_tokens(model text, tokens text[]) RETURNS @extschema:vector@.vector
LANGUAGE plpgsql STABLE STRICT PARALLEL SAFE SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
    result @extschema:vector@.vector;
BEGIN
    SELECT @extschema:vector@.l2_normalize(@extschema:vector@.sum(t.vector)) INTO result
    FROM unnest(tokens) AS s (token)
    JOIN pgembed.token AS t ON t.model = _sum_of_tokens.model COLLATE "C" AND t.token = s.token COLLATE "C";
    RETURN result;
END
$$;

-- The vector that a static text side makes of a text; NULL where it knows none of its words.
CREATE OR REPLACE FUNCTION pgembed.static_vector(model text, input text) RETURNS @extschema:vector@.vector
LANGUAGE sql STABLE STRICT PARALLEL SAFE
RETURN pgembed._sum_of_tokens(model, pgembed.static_tokens(model, input));

-- Whether most of a text is made of words that the vocabulary has not, or has only in short pieces: another language,
-- or names. Long pieces are words (fire ##fighter). Called by encode_text.
CREATE OR REPLACE FUNCTION pgembed._mostly_unknown(input text, tokens text[]) RETURNS boolean
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE
AS $$
DECLARE
    whole text := array_to_string(tokens, '');
    total bigint := length(regexp_replace(input, '\s', '', 'g'));
BEGIN
    IF whole NOT LIKE '%##%' THEN  -- no word in pieces, as in most queries
        RETURN 2 * length(whole) < total;
    END IF;
    RETURN 2 * coalesce(sum(letters) FILTER (WHERE pieces = 1 OR letters >= 4 * pieces), 0) < total
    FROM (
        SELECT count(*) AS pieces, sum(length(replace(token, '##', ''))) AS letters
        FROM (
            SELECT token, count(*) FILTER (WHERE token NOT LIKE '##%') OVER (ORDER BY n) AS word
            FROM unnest(tokens) WITH ORDINALITY AS t (token, n)
        ) AS numbered
        GROUP BY word
    ) AS words;
END
$$;
