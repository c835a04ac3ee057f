-- What an embedding reads from a row: templates and columns, checked at attach, rendered as SQL for the worker.

-- A template in its parts, in order: literal text, or the name of a column. '{{' and '}}' stand for braces.
CREATE OR REPLACE FUNCTION pgembed._template_parts(template text)
RETURNS TABLE (ordinal bigint, literal text, column_name text)
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE
AS $$
DECLARE
    part text;
BEGIN
    ordinal := 0;
    FOR part IN SELECT m[1] FROM regexp_matches(template, '(\{\{|\}\}|\{[^{}]+\}|[^{}]+|[{}])', 'g') AS m LOOP
        ordinal := ordinal + 1;
        IF part IN ('{', '}') THEN
            RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
                MESSAGE = format('The template ''%s'' has a brace without its partner.', template),
                HINT = 'Write {column}; a brace that is meant as text is doubled: {{ or }}.';
        END IF;
        literal := CASE part WHEN '{{' THEN '{' WHEN '}}' THEN '}' ELSE part END;
        column_name := NULL;
        IF part ~ '^\{[^{}]+\}$' THEN
            literal := NULL;
            column_name := substr(part, 2, length(part) - 2);
        END IF;
        RETURN NEXT;
    END LOOP;
END
$$;

-- One column of a table by name, or an error that names the columns there are.
CREATE OR REPLACE FUNCTION pgembed._column(relation oid, name text) RETURNS pg_catalog.pg_attribute
LANGUAGE plpgsql STABLE
AS $$
DECLARE
    found_column pg_catalog.pg_attribute;
BEGIN
    SELECT * INTO found_column FROM pg_catalog.pg_attribute AS a
    WHERE a.attrelid = relation AND a.attname = name AND a.attnum > 0 AND NOT a.attisdropped;
    IF NOT FOUND THEN
        RAISE EXCEPTION USING ERRCODE = 'undefined_column',
            MESSAGE = format('Table %s has no column ''%s''.', relation::regclass, name),
            HINT = 'Its columns: ' || (SELECT string_agg(a.attname, ', ' ORDER BY a.attnum)
                FROM pg_catalog.pg_attribute AS a WHERE a.attrelid = relation AND a.attnum > 0 AND NOT a.attisdropped);
    END IF;
    RETURN found_column;
END
$$;

-- The type under a domain, or the type itself.
CREATE OR REPLACE FUNCTION pgembed._base_type(type oid) RETURNS oid
LANGUAGE sql STABLE
BEGIN ATOMIC
    WITH RECURSIVE under AS (
        SELECT type AS oid
        UNION ALL
        SELECT t.typbasetype FROM under JOIN pg_catalog.pg_type AS t ON t.oid = under.oid AND t.typtype = 'd'
    )
    SELECT u.oid FROM under AS u JOIN pg_catalog.pg_type AS t ON t.oid = u.oid WHERE t.typtype <> 'd';
END;

-- What stands in a template's braces, in its two parts: a column's name, and what of the column is meant, where it is
-- a part. {attrs.color.name} is a path into json or jsonb, {doc/item/title} one into xml; a column that has the whole
-- as its name comes first.
CREATE OR REPLACE FUNCTION pgembed._column_and_path(names text[], written text, OUT name text, OUT path text)
LANGUAGE plpgsql IMMUTABLE
AS $$
DECLARE
    parts text[] := regexp_match(written, '^([^./]+)([./].+)$');
BEGIN
    name := written;
    IF written <> ALL (names) AND parts[1] = ANY (names) THEN
        name := parts[1];
        path := parts[2];
    END IF;
END
$$;

-- One column of a row as text over alias t, or a part of it: arrays as their elements with commas between them.
CREATE OR REPLACE FUNCTION pgembed._rendered_sql(attribute pg_catalog.pg_attribute, path text) RETURNS text
LANGUAGE plpgsql STABLE
AS $$
DECLARE
    type regtype := pgembed._base_type(attribute.atttypid);
    category "char" := (SELECT t.typcategory FROM pg_catalog.pg_type AS t WHERE t.oid = type);
BEGIN
    IF path LIKE '.%' AND type IN ('json'::regtype, 'jsonb'::regtype) THEN
        RETURN format('(t.%I OPERATOR(pg_catalog.#>>) %L::text[])', attribute.attname,
            string_to_array(substr(path, 2), '.'));
    ELSIF path LIKE '/%' AND type = 'xml'::regtype THEN
        RETURN format('(SELECT pg_catalog.string_agg(x.part, '' '') FROM XMLTABLE(%L PASSING t.%I '
            'COLUMNS part text PATH ''.'') AS x)', path, attribute.attname);
    ELSIF path IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'datatype_mismatch',
            MESSAGE = format('Column ''%s'' is %s, which has no part ''%s''.', attribute.attname,
                format_type(attribute.atttypid, attribute.atttypmod), path),
            HINT = 'Parts: {column.key} of json and jsonb, {column/path} of xml.';
    ELSIF category = 'A' THEN
        RETURN format('pg_catalog.array_to_string(t.%I, '', '')', attribute.attname);
    END IF;
    RETURN format('t.%I::text', attribute.attname);
END
$$;

-- The inputs that a person gave to attach, checked and completed: each with its weight, its columns by name and
-- number, and for pictures the form they have ('bytes', 'large_object', 'path' or 'url').
CREATE OR REPLACE FUNCTION pgembed._checked_inputs(relation oid, encoder pgembed.encoder, inputs jsonb) RETURNS jsonb
LANGUAGE plpgsql STABLE
AS $$
DECLARE
    modality text;
    given jsonb;
    input jsonb;
    result jsonb := '{}';
    unknown text;
BEGIN
    IF inputs IS NULL OR jsonb_typeof(inputs) <> 'object' OR inputs = '{}' THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = format('The inputs of an embedding are a JSON object with at least one of text, image and screenshot, not %s.',
                coalesce(inputs::text, 'NULL')),
            HINT = 'For example: {"text": {"template": "{title}"}, "image": {"column": "photo"}}';
    END IF;
    IF encoder.spec LIKE 'composer:%' THEN
        RAISE EXCEPTION USING ERRCODE = 'feature_not_supported',
            MESSAGE = format('''%s'' is a composer: it changes the vectors of queries, and encodes no rows.',
                encoder.name),
            HINT = 'Attach with the encoder that it was trained for, and search in Python: changed(…, by=…).';
    END IF;
    FOR modality, given IN SELECT key, value FROM jsonb_each(inputs) LOOP
        IF modality <> ALL (encoder.modalities) THEN
            RAISE EXCEPTION USING ERRCODE = 'feature_not_supported',
                MESSAGE = format('Encoder ''%s'' takes no %s.', encoder.name, modality),
                HINT = format('It takes: %s.', array_to_string(encoder.modalities, ', '));
        END IF;
        input := CASE
            WHEN jsonb_typeof(given) = 'object' THEN given
            WHEN jsonb_typeof(given) = 'string' AND given #>> '{}' ~ '[{}]' THEN jsonb_build_object('template', given)
            WHEN jsonb_typeof(given) = 'string' THEN jsonb_build_object('column', given)
        END;
        IF input IS NULL OR (input ? 'template') = (input ? 'column') THEN
            RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
                MESSAGE = format('The %s input %s names neither one column nor one template.', modality, given),
                HINT = 'Write {"column": "photo"} or {"template": "{title}. {body}"}.';
        END IF;
        SELECT string_agg(key, ', ') INTO unknown FROM jsonb_object_keys(input) AS key
        WHERE key NOT IN ('template', 'column', 'weight') AND (key <> 'as' OR modality = 'text');
        IF unknown IS NOT NULL THEN
            RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
                MESSAGE = format('The %s input has an unknown key: %s.', modality, unknown),
                HINT = 'Known keys: template or column, weight, and as for pictures.';
        END IF;
        IF input ? 'weight' AND (jsonb_typeof(input -> 'weight') <> 'number' OR (input ->> 'weight')::numeric <= 0) THEN
            RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
                MESSAGE = format('The weight of the %s input is %s, not a number above zero.', modality, input -> 'weight'),
                HINT = 'Leave it out for equal weights.';
        END IF;
        input := CASE WHEN modality = 'text' THEN pgembed._checked_text(relation, input)
            ELSE pgembed._checked_picture(relation, modality, input) END;
        result := result || jsonb_build_object(modality,
            input || jsonb_build_object('weight', coalesce(given -> 'weight', '1')));
    END LOOP;
    RETURN result;
END
$$;

-- A text input with its columns looked up; a single column becomes the template that is that column alone.
CREATE OR REPLACE FUNCTION pgembed._checked_text(relation oid, input jsonb) RETURNS jsonb
LANGUAGE plpgsql STABLE
AS $$
DECLARE
    template text := coalesce(input ->> 'template',
        '{' || replace(replace(input ->> 'column', '{', ''), '}', '') || '}');
    names text[] := (SELECT array_agg(a.attname) FROM pg_catalog.pg_attribute AS a
        WHERE a.attrelid = relation AND a.attnum > 0 AND NOT a.attisdropped);
    part record;
    meant record;
    attribute pg_catalog.pg_attribute;
    columns jsonb := '{}';
BEGIN
    FOR part IN SELECT * FROM pgembed._template_parts(template) WHERE column_name IS NOT NULL LOOP
        meant := pgembed._column_and_path(names, part.column_name);
        attribute := pgembed._column(relation, meant.name);
        PERFORM pgembed._rendered_sql(attribute, meant.path);
        IF pgembed._base_type(attribute.atttypid) = 'bytea'::regtype THEN
            RAISE EXCEPTION USING ERRCODE = 'datatype_mismatch',
                MESSAGE = format('Column ''%s'' of %s is bytea, which is not text.', attribute.attname,
                    relation::regclass),
                HINT = 'Give it as {"image": {"column": "' || attribute.attname || '"}}, or name a text column.';
        END IF;
        columns := columns || jsonb_build_object(attribute.attname, attribute.attnum);
    END LOOP;
    IF columns = '{}' THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = format('The template ''%s'' names no column.', template),
            HINT = 'Put a column''s name in braces: {title}.';
    END IF;
    RETURN jsonb_build_object('template', template, 'columns', columns);
END
$$;

-- In which form a column of this type has pictures, NULL where in none, and whether it has lists of them. `wanted` is
-- what a person says of a text column: path or url.
CREATE OR REPLACE FUNCTION pgembed._picture_form(type oid, wanted text, OUT form text, OUT is_list boolean)
LANGUAGE plpgsql STABLE
AS $$
DECLARE
    kind pg_catalog.pg_type;
BEGIN
    SELECT * INTO kind FROM pg_catalog.pg_type AS t WHERE t.oid = pgembed._base_type(_picture_form.type);
    is_list := kind.typcategory = 'A';
    IF is_list THEN
        SELECT * INTO kind FROM pg_catalog.pg_type AS t WHERE t.oid = pgembed._base_type(kind.typelem);
    END IF;
    form := coalesce(wanted,
        CASE kind.oid WHEN 'bytea'::regtype THEN 'bytes' WHEN 'oid'::regtype THEN 'large_object' END);
    IF (kind.oid = 'bytea'::regtype AND form = 'bytes') IS NOT TRUE
        AND (kind.oid = 'oid'::regtype AND form = 'large_object') IS NOT TRUE
        AND (kind.typcategory = 'S' AND form IN ('path', 'url')) IS NOT TRUE THEN
        form := NULL;
    END IF;
END
$$;

-- A picture input with its column looked up: bytea holds the picture itself, oid a large object, a text column needs
-- "as": path or url; an array of any of these is a list of pictures.
CREATE OR REPLACE FUNCTION pgembed._checked_picture(relation oid, modality text, input jsonb) RETURNS jsonb
LANGUAGE plpgsql STABLE
AS $$
DECLARE
    attribute pg_catalog.pg_attribute;
    given record;
BEGIN
    IF input ? 'template' THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = format('The %s input is a template, %s; a picture comes from one column.', modality, input -> 'template'),
            HINT = 'Write {"column": "photo"}.';
    END IF;
    attribute := pgembed._column(relation, input ->> 'column');
    given := pgembed._picture_form(attribute.atttypid, input ->> 'as');
    IF given.form IS NOT NULL THEN
        RETURN jsonb_build_object('column', attribute.attname, 'columns',
            jsonb_build_object(attribute.attname, attribute.attnum), 'as', given.form)
            || CASE WHEN given.is_list THEN '{"list": true}' ELSE '{}' END::jsonb;
    END IF;
    RAISE EXCEPTION USING ERRCODE = 'datatype_mismatch',
        MESSAGE = format('Column ''%s'' of %s is %s%s, which cannot be read as a picture.', attribute.attname,
            relation::regclass, format_type(attribute.atttypid, attribute.atttypmod),
            coalesce(' as ''' || (input ->> 'as') || '''', '')),
        HINT = 'A bytea column holds the picture itself, an oid column names a large object, and a text column needs '
            '"as": "path" or "as": "url"; an array of any of these is a list of pictures.';
END
$$;

-- The columns that an embedding reads, quoted, by their present names.
CREATE OR REPLACE FUNCTION pgembed._input_columns(relation oid, inputs jsonb) RETURNS TABLE (column_sql text, type oid)
LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT DISTINCT quote_ident(a.attname), a.atttypid
    FROM jsonb_each(inputs) AS input (modality, facts)
    CROSS JOIN jsonb_each_text(facts -> 'columns') AS used (name, number)
    JOIN pg_catalog.pg_attribute AS a ON a.attrelid = relation AND a.attnum = used.number::smallint
    ORDER BY 1;
END;

-- One input of a row as an SQL expression over alias t, NULL where the row has no such input: the one place where
-- templates are rendered. A null column renders as ''; what is blank altogether (text, path, URL) counts as absent.
CREATE OR REPLACE FUNCTION pgembed._input_sql(relation oid, inputs jsonb, modality text) RETURNS text
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    facts jsonb := inputs -> modality;
    names jsonb;
    missing text;
    rendered text;
BEGIN
    SELECT jsonb_object_agg(used.name, quote_ident(a.attname)) INTO names
    FROM jsonb_each_text(facts -> 'columns') AS used (name, number)
    JOIN pg_catalog.pg_attribute AS a ON a.attrelid = relation AND a.attnum = used.number::smallint;
    SELECT string_agg(quote_literal(c.name), ', ' ORDER BY c.name) INTO missing
    FROM (
        SELECT DISTINCT m.name FROM pgembed._template_parts(facts ->> 'template') AS p
        CROSS JOIN LATERAL pgembed._column_and_path(
            ARRAY(SELECT jsonb_object_keys(facts -> 'columns')), p.column_name) AS m
        WHERE modality = 'text' AND p.column_name IS NOT NULL
        UNION
        SELECT coalesce(facts ->> 'column', '') WHERE modality <> 'text'
    ) AS c (name)
    WHERE names ->> c.name IS NULL;
    IF missing IS NOT NULL OR names IS NULL
        OR modality = 'text' AND NOT EXISTS (SELECT FROM pgembed._template_parts(facts ->> 'template') AS p
            WHERE p.column_name IS NOT NULL) THEN
        RAISE EXCEPTION USING ERRCODE = 'undefined_column',
            MESSAGE = format(CASE WHEN missing IS NULL THEN 'The %s input of %s reads no column.'
                ELSE 'The %s input reads a column that %s does not have: %s.' END,
                modality, relation::regclass, missing),
            HINT = 'Detach the embedding and attach it again with columns that are there.';
    END IF;
    IF modality <> 'text' THEN
        RETURN pgembed._picture_sql('t.' || (names ->> (facts ->> 'column')), facts ->> 'as', facts ? 'list');
    END IF;
    SELECT string_agg(CASE WHEN p.column_name IS NULL THEN quote_literal(p.literal)
        ELSE pgembed._rendered_sql(a, m.path) END, ', ' ORDER BY p.ordinal)
    INTO rendered
    FROM pgembed._template_parts(facts ->> 'template') AS p
    CROSS JOIN LATERAL pgembed._column_and_path(
        ARRAY(SELECT jsonb_object_keys(facts -> 'columns')), p.column_name) AS m
    LEFT JOIN pg_catalog.pg_attribute AS a
        ON a.attrelid = relation AND a.attnum = (facts -> 'columns' ->> m.name)::smallint;
    RETURN format('CASE WHEN pg_catalog.num_nonnulls(%s) > 0 THEN nullif(pg_catalog.btrim(pg_catalog.concat(%s), E'' \t\r\n''), '''') END',
        (SELECT string_agg('t.' || value, ', ') FROM jsonb_each_text(names)), rendered);
END
$$;

-- A picture, or an array of pictures, as an SQL expression: NULL where there is none. In a list what is null keeps its
-- place, so that messages can name that of another.
CREATE OR REPLACE FUNCTION pgembed._picture_sql(column_sql text, form text, is_list boolean) RETURNS text
LANGUAGE sql IMMUTABLE
RETURN pg_catalog.format(CASE
    WHEN NOT is_list THEN CASE form
        WHEN 'bytes' THEN '%s'
        WHEN 'large_object' THEN 'pgembed._large_object(%s)'
        ELSE 'nullif(pg_catalog.btrim(%s::text), '''')'
    END
    WHEN form = 'large_object' THEN '(SELECT pg_catalog.array_agg(pgembed._large_object(u) ORDER BY n) '
        'FROM pg_catalog.unnest(%s) WITH ORDINALITY AS o (u, n) HAVING pg_catalog.count(nullif(u::oid, 0)) > 0)'
    WHEN form = 'bytes'
        THEN 'CASE WHEN EXISTS (SELECT FROM pg_catalog.unnest(%1$s) AS u WHERE u IS NOT NULL) THEN %1$s::bytea[] END'
    ELSE 'CASE WHEN EXISTS (SELECT FROM pg_catalog.unnest(%1$s) AS u WHERE pg_catalog.btrim(u::text) <> '''') '
        'THEN %1$s::text[] END'
END, column_sql);

-- The content of a large object, NULL for 0, which names none; what goes wrong is the row's error. Called by what
-- reads rows: the worker, verify, and samples.
CREATE OR REPLACE FUNCTION pgembed._large_object(object oid) RETURNS bytea
LANGUAGE plpgsql STABLE STRICT
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN CASE WHEN object <> 0 THEN lo_get(object) END;
EXCEPTION
    WHEN undefined_object THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = format('The large object %s is not there: store it again, or set the column to NULL.', object);
    WHEN insufficient_privilege THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = format('The role %I may not read the large object %s; as its owner: GRANT SELECT ON LARGE OBJECT %s TO %I;',
                current_user, object, object, current_user);
END
$$;

-- How many bytes a large object has, 0 where it cannot be read: _large_object tells why. Called by the worker.
CREATE OR REPLACE FUNCTION pgembed._large_object_bytes(object oid) RETURNS bigint
LANGUAGE plpgsql STABLE STRICT
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    descriptor integer;
    bytes bigint;
BEGIN
    descriptor := lo_open(object, 262144); -- INV_READ
    bytes := lo_lseek64(descriptor, 0, 2);
    PERFORM lo_close(descriptor);
    RETURN bytes;
EXCEPTION WHEN undefined_object OR insufficient_privilege THEN
    RETURN 0;
END
$$;
