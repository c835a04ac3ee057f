-- Search by words: which text of a table Postgres' full text search reads, and what it looks for there.

-- The columns that words are looked for in where nobody names any: those of the text inputs of the table's embeddings,
-- else all of text, which the caller may read; by their numbers. Called by _words_documents and hybrid.
CREATE OR REPLACE FUNCTION pgembed._words_columns(relation oid) RETURNS smallint[]
LANGUAGE sql STABLE
BEGIN ATOMIC
    WITH readable AS (
        SELECT a.attnum, pgembed._base_type(a.atttypid) AS type, EXISTS (
            SELECT FROM pgembed.embedding AS e
            CROSS JOIN jsonb_each_text(e.inputs -> 'text' -> 'columns') AS used (name, number)
            WHERE e.relation = _words_columns.relation AND used.number::smallint = a.attnum) AS is_input
        FROM pg_catalog.pg_attribute AS a
        WHERE a.attrelid = relation AND a.attnum > 0 AND NOT a.attisdropped
            AND has_column_privilege(relation, a.attnum, 'SELECT')
    )
    SELECT coalesce(array_agg(r.attnum ORDER BY r.attnum) FILTER (WHERE r.is_input),
        array_agg(r.attnum ORDER BY r.attnum) FILTER (WHERE t.typcategory = 'S'), '{}')
    FROM readable AS r
    JOIN pg_catalog.pg_type AS t ON t.oid = r.type;
END;

-- One column of a table as an expression of type text, its name unqualified. Called by the search functions.
CREATE OR REPLACE FUNCTION pgembed._words_text(attribute pg_catalog.pg_attribute) RETURNS text
LANGUAGE sql STABLE
RETURN format(CASE (SELECT t.typcategory FROM pg_catalog.pg_type AS t
        WHERE t.oid = pgembed._base_type(attribute.atttypid))
    WHEN 'A' THEN 'pg_catalog.array_to_string(%I, '' '')' ELSE '%I::pg_catalog.text' END, attribute.attname);

-- The text search configuration that an expression of type tsvector names, or NULL. Called by _words_documents.
CREATE OR REPLACE FUNCTION pgembed._words_config(expression text) RETURNS regconfig
LANGUAGE sql STABLE
RETURN replace(substring(expression FROM 'to_tsvector\(''((?:[^'']|'''')+)''::regconfig'), '''''', '''')::regconfig;

-- What words are looked for in, as expressions of type tsvector, each with its configuration.
--
-- A stored column of type tsvector is taken where there is one, else what a GIN index holds, so that the index serves;
-- only where there is neither, or `columns` names others, is the text of columns parsed as the search runs. The
-- configuration is the one that a stored column is made with (its generating expression, or the arguments of
-- tsvector_update_trigger) and that an index's expression names, else default_text_search_config. Called by hybrid.
CREATE OR REPLACE FUNCTION pgembed._words_documents(relation oid, columns text[], config regconfig)
RETURNS TABLE (document text, used regconfig)
LANGUAGE plpgsql STABLE
AS $$
DECLARE
    chosen smallint[]; -- by number
    indexed record;
    attribute pg_catalog.pg_attribute;
    from_index boolean := false;
BEGIN
    IF columns IS NULL THEN
        chosen := ARRAY(SELECT a.attnum FROM pg_catalog.pg_attribute AS a
            WHERE a.attrelid = relation AND a.attnum > 0 AND NOT a.attisdropped AND a.atttypid = 'tsvector'::regtype
                AND has_column_privilege(relation, a.attnum, 'SELECT') ORDER BY a.attnum);
        chosen := coalesce(nullif(chosen, '{}'), pgembed._words_columns(relation));
    ELSE
        chosen := ARRAY(SELECT (pgembed._column(relation, c.name)).attnum
            FROM unnest(columns) WITH ORDINALITY AS c (name, n) ORDER BY c.n);
    END IF;
    IF chosen = '{}' THEN
        RAISE EXCEPTION USING ERRCODE = 'undefined_column',
            MESSAGE = format('There is no column of %s to look for words in.', relation::regclass),
            HINT = 'Name some: columns => ''{title,body}''; or leave the words out.';
    END IF;

    FOR attribute IN SELECT a.* FROM pg_catalog.pg_attribute AS a
        WHERE a.attrelid = relation AND a.attnum = ANY (chosen) AND a.atttypid = 'tsvector'::regtype LOOP
        document := quote_ident(attribute.attname);
        used := coalesce(config, (
            SELECT pgembed._words_config(pg_get_expr(d.adbin, d.adrelid)) FROM pg_catalog.pg_attrdef AS d
            WHERE d.adrelid = relation AND d.adnum = attribute.attnum
        ), (
            SELECT split_part(encode(t.tgargs, 'escape'), '\000', 2)::regconfig FROM pg_catalog.pg_trigger AS t
            WHERE t.tgrelid = relation AND t.tgfoid = 'pg_catalog.tsvector_update_trigger()'::regprocedure
                AND split_part(encode(t.tgargs, 'escape'), '\000', 1) = attribute.attname LIMIT 1
        ), get_current_ts_config());
        chosen := array_remove(chosen, attribute.attnum);
        RETURN NEXT;
    END LOOP;

    FOR indexed IN
        SELECT u.numbers, array_agg(pg_get_indexdef(i.indexrelid, n, false) ORDER BY n) AS expressions
        FROM pg_catalog.pg_index AS i
        JOIN pg_catalog.pg_class AS c ON c.oid = i.indexrelid
        JOIN pg_catalog.pg_am AS m ON m.oid = c.relam AND m.amname = 'gin'
        CROSS JOIN generate_series(1, i.indnkeyatts) AS n
        JOIN pg_catalog.pg_opclass AS o ON o.oid = i.indclass[n - 1] AND o.opcintype = 'tsvector'::regtype
        CROSS JOIN LATERAL (
            SELECT array_agg(DISTINCT d.refobjsubid::smallint) AS numbers FROM pg_catalog.pg_depend AS d
            WHERE d.classid = 'pg_class'::regclass AND d.objid = i.indexrelid
                AND d.refclassid = 'pg_class'::regclass AND d.refobjid = relation AND d.refobjsubid > 0
        ) AS u
        WHERE i.indrelid = relation AND i.indkey[n - 1] = 0 AND i.indisvalid AND i.indpred IS NULL
        GROUP BY i.indexrelid, u.numbers
        ORDER BY cardinality(u.numbers) DESC, i.indexrelid
    LOOP
        CONTINUE WHEN (indexed.numbers <@ chosen) IS NOT TRUE OR config IS NOT NULL
            AND config <> ALL (ARRAY(SELECT pgembed._words_config(e) FROM unnest(indexed.expressions) AS e));
        FOREACH document IN ARRAY indexed.expressions LOOP
            used := coalesce(config, pgembed._words_config(document), get_current_ts_config());
            RETURN NEXT;
        END LOOP;
        chosen := ARRAY(SELECT c FROM unnest(chosen) AS c WHERE c <> ALL (indexed.numbers));
        from_index := true;
    END LOOP;

    IF from_index AND columns IS NULL THEN
        RETURN; -- a person made an index of what is to be searched
    END IF;
    used := coalesce(config, get_current_ts_config());
    FOR attribute IN SELECT a.* FROM pg_catalog.pg_attribute AS a
        WHERE a.attrelid = relation AND a.attnum = ANY (chosen) LOOP
        IF pgembed._is_wide(pgembed._base_type(attribute.atttypid)) THEN
            RAISE EXCEPTION USING ERRCODE = 'datatype_mismatch',
                MESSAGE = format('Column ''%s'' of %s is %s, in which there are no words.', attribute.attname,
                    relation::regclass, format_type(attribute.atttypid, attribute.atttypmod)),
                HINT = 'Name columns of text: columns => ''{title}''.';
        END IF;
        document := format('pg_catalog.to_tsvector(%L::pg_catalog.regconfig, %s)', used,
            CASE WHEN pgembed._base_type(attribute.atttypid) IN ('json'::regtype, 'jsonb'::regtype)
                THEN quote_ident(attribute.attname) ELSE pgembed._words_text(attribute) END);
        RETURN NEXT;
    END LOOP;
END
$$;

-- What words ask full text search for. They are read as web searches read them: "…" is a phrase, and what a minus
-- stands before must not be there. A row is found where any of the others is there: for Cranfield's queries 1 to 75,
-- which are sentences, hardly a row has all the words (nDCG@10 0.015 with AND, 0.279 with OR, ranked as hybrid does).
-- NULL where nothing is left but stop words. Called by hybrid.
CREATE OR REPLACE FUNCTION pgembed._words_query(
    words text,
    configs regconfig[],
    OUT wanted tsquery,
    OUT unwanted tsquery
)
LANGUAGE plpgsql STABLE
SET client_min_messages = 'warning' -- Postgres notes each stop word
AS $$
DECLARE
    element text;
    config regconfig;
    meant tsquery;
BEGIN
    FOR element IN SELECT m[1] FROM regexp_matches(words, '(-?"[^"]*"|\S+)', 'g') AS m LOOP
        CONTINUE WHEN lower(element) = 'or';
        FOREACH config IN ARRAY configs LOOP
            meant := websearch_to_tsquery(config, element);
            IF meant::text LIKE '!%' THEN
                unwanted := coalesce(unwanted && meant, meant);
            ELSIF numnode(meant) > 0 THEN
                wanted := coalesce(wanted || meant, meant);
            END IF;
        END LOOP;
    END LOOP;
END
$$;

-- The embedding in whose parts words are looked for: the one that `columns` names as 'target.content', or, where the
-- table has no column to look in, the first of a vector leg, or of any, that has parts; NULL where there is none.
-- Called by hybrid and explain_hybrid.
CREATE OR REPLACE FUNCTION pgembed._words_parts(relation oid, columns text[], legs text[]) RETURNS pgembed.embedding
LANGUAGE sql STABLE
RETURN (
    SELECT e FROM pgembed.embedding AS e
    WHERE e.relation = _words_parts.relation AND e.parts IS NOT NULL AND CASE
        WHEN columns IS NOT NULL THEN columns = ARRAY[e.target || '.content']
        ELSE (e.target = ANY (legs) OR legs = '{}') AND pgembed._words_columns(e.relation) = '{}' AND NOT EXISTS (
            SELECT FROM pg_catalog.pg_attribute AS a
            WHERE a.attrelid = e.relation AND a.atttypid = 'tsvector'::regtype AND NOT a.attisdropped)
    END
    ORDER BY e.id LIMIT 1
);

-- The words of an embedding's parts by the keys of their rows, in a column "pgembed document" of type tsvector, which
-- is `document`. Called by _hybrid_words and explain_hybrid.
CREATE OR REPLACE FUNCTION pgembed._part_words_sql(parts pgembed.embedding, document text) RETURNS text
LANGUAGE sql STABLE
RETURN (
    SELECT format('SELECT %s, %s AS "pgembed document" FROM %s',
        string_agg(format('%I AS "pgembed key %s"', k.side_name, k.ordinal), ', ' ORDER BY k.ordinal), document,
        (parts).side::regclass)
    FROM pgembed._side_keys(parts) AS k
);
