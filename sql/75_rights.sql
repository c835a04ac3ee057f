-- Roles and what each may do: the owner attaches, workers encode, writers wait for their rows, readers search. Rights
-- are granted to the roles themselves. The table granted remembers whom, for what is attached later, and for a restore.

DROP FUNCTION IF EXISTS pgembed._missing_rights(pgembed.embedding);
DROP FUNCTION IF EXISTS pgembed._worker_rights(pgembed.embedding);

-- Give a role what one of its kind needs, no more, for what is attached now and for what is attached later:
--
--     SELECT * FROM pgembed.grant_role('worker', 'shop_worker');
--
-- owner   attaches and detaches, and grants. There is one: the schema pgembed is handed over to this role.
-- worker  works off queues, reads inputs, writes vectors, records what became of rows.
-- writer  waits for its rows with pgembed.wait. To write rows it needs nothing of pgembed, this neither.
-- reader  searches, in tables and rows that it may read anyway; status and failures show it these.
--
-- Gives what the caller may not grant himself: the statements, and whom to ask to run them. Doing it again changes
-- nothing. Rights to the rows of tables are granted to workers alone; to all others it is for the tables' owners to do.
CREATE OR REPLACE FUNCTION pgembed.grant_role(kind text, role text) RETURNS TABLE (ask text, statement text)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    grantee regrole := pgembed._role(role);
BEGIN
    PERFORM pgembed._check_kind(kind);
    PERFORM pgembed._require_owner();
    IF kind = 'owner' THEN
        PERFORM pgembed._hand_over(grantee);
        RETURN;
    END IF;
    INSERT INTO pgembed.granted AS g (role, kind) VALUES (grant_role.role, grant_role.kind) ON CONFLICT DO NOTHING;
    RETURN QUERY SELECT g.* FROM pgembed._grant(kind, grantee, NULL) AS g;
    RETURN QUERY SELECT g.* FROM (SELECT e FROM pgembed.embedding AS e ORDER BY e.id) AS a (e)
        CROSS JOIN LATERAL pgembed._grant(kind, grantee, a.e) AS g;
END
$$;

-- Take back what grant_role gave to a role as one of this kind; what it has as one of another kind, it keeps. From an
-- owner the schema goes to the caller. Gives what the caller may not take back himself.
CREATE OR REPLACE FUNCTION pgembed.revoke_role(kind text, role text) RETURNS TABLE (ask text, statement text)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    grantee regrole;
BEGIN
    PERFORM pgembed._check_kind(kind);
    PERFORM pgembed._require_owner();
    IF kind = 'owner' THEN
        grantee := pgembed._role(role);
        IF pgembed._owner() <> grantee THEN
            RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
                MESSAGE = format('The owner of pgembed is %s, not %s.', pgembed._owner(), grantee),
                HINT = 'Nothing was changed.';
        END IF;
        PERFORM pgembed._hand_over(quote_ident(current_user)::regrole);
        RETURN;
    END IF;
    DELETE FROM pgembed.granted AS g WHERE g.role = revoke_role.role AND g.kind = revoke_role.kind;
    grantee := to_regrole(quote_ident(role));
    IF grantee IS NULL THEN
        RETURN; -- dropped meanwhile, and what it had with it
    END IF;
    RETURN QUERY SELECT r.* FROM pgembed._revoke(kind, grantee, NULL) AS r;
    RETURN QUERY SELECT r.* FROM (SELECT e FROM pgembed.embedding AS e ORDER BY e.id) AS a (e)
        CROSS JOIN LATERAL pgembed._revoke(kind, grantee, a.e) AS r;
    PERFORM pgembed._grant_remembered(NULL); -- what it needs as one of another kind
    PERFORM pgembed._grant_remembered(e) FROM pgembed.embedding AS e;
END
$$;

-- Refuse what is for the owner of pgembed to do, with more words than Postgres has.
CREATE OR REPLACE FUNCTION pgembed._require_owner() RETURNS void
LANGUAGE plpgsql STABLE
AS $$
BEGIN
    IF NOT pg_has_role(pgembed._owner(), 'USAGE') THEN
        RAISE EXCEPTION USING ERRCODE = 'insufficient_privilege',
            MESSAGE = pg_catalog.format('permission denied: that is for the owner of pgembed, %s, and not for %I.',
                pgembed._owner(), current_user),
            HINT = pg_catalog.format('Run it as that role, or have pgembed handed over: SELECT pgembed.grant_role(''owner'', %L);',
                current_user);
    END IF;
END
$$;

-- A role by its name, or an error.
CREATE OR REPLACE FUNCTION pgembed._role(role text) RETURNS regrole
LANGUAGE plpgsql STABLE
AS $$
BEGIN
    IF to_regrole(quote_ident(role)) IS NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'undefined_object',
            MESSAGE = pg_catalog.format('There is no role %s.', coalesce(quote_literal(role), 'NULL')),
            HINT = 'Roles are created by CREATE ROLE, or in the console of your provider; PUBLIC is none.';
    END IF;
    RETURN to_regrole(quote_ident(role));
END
$$;

-- Refuse an unknown kind of role.
CREATE OR REPLACE FUNCTION pgembed._check_kind(kind text) RETURNS void
LANGUAGE plpgsql IMMUTABLE
AS $$
BEGIN
    IF kind IN ('owner', 'worker', 'writer', 'reader') IS NOT TRUE THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = pg_catalog.format('There is no kind of role %s.', coalesce(quote_literal(kind), 'NULL')),
            HINT = 'Kinds: owner, worker, writer, reader.';
    END IF;
END
$$;

-- What a role of this kind does: on the schema and the catalog (embedding NULL), or for one embedding. A column is NULL
-- where the right is one on the whole object. FOR UPDATE and FOR KEY SHARE take UPDATE, of any column.
CREATE OR REPLACE FUNCTION pgembed._rights(kind text, role oid, embedding pgembed.embedding)
RETURNS TABLE (type text, object oid, right_name text, column_name text)
LANGUAGE plpgsql STABLE
AS $$
BEGIN
    IF embedding.id IS NULL THEN
        RETURN QUERY SELECT 'SCHEMA', n.oid, 'USAGE', NULL FROM pg_catalog.pg_namespace AS n
            WHERE n.nspname = 'pgembed' OR n.oid IN (SELECT x.extnamespace FROM pg_catalog.pg_extension AS x
                WHERE x.extname = 'vector' AND kind IN ('worker', 'reader'));
        RETURN QUERY SELECT 'TABLE', c.oid, unnest(v.rights), v.of_column
        FROM (VALUES
            ('_work', '{worker}'::text[], '{SELECT}'::text[], NULL::text),
            ('embedding', '{worker,writer,reader}', '{SELECT}', NULL),
            ('embedding', '{worker}', '{UPDATE}', 'state'),
            ('backfill', '{worker}', '{SELECT,INSERT,UPDATE}', NULL),
            ('failure', '{worker}', '{SELECT,INSERT,UPDATE,DELETE}', NULL),
            ('written', '{worker}', '{SELECT,INSERT,UPDATE,DELETE}', NULL),
            ('cut', '{worker}', '{SELECT,INSERT,UPDATE,DELETE}', NULL),
            ('cuts', '{worker,writer,reader}', '{SELECT}', NULL),
            ('encoder', '{worker,reader}', '{SELECT}', NULL),
            ('missed', '{worker}', '{SELECT}', NULL),
            ('static_text', '{worker,reader}', '{SELECT}', NULL),
            ('distilled', '{worker,reader}', '{SELECT}', NULL),
            ('token', '{worker,reader}', '{SELECT}', NULL),
            ('encoders', '{worker,reader}', '{SELECT}', NULL),
            ('direction', '{reader}', '{SELECT}', NULL),
            ('views', '{reader}', '{SELECT}', NULL),
            ('charged', '{worker}', '{SELECT}', NULL),
            ('status', '{worker,writer,reader}', '{SELECT}', NULL),
            ('failures', '{worker,writer,reader}', '{SELECT}', NULL),
            ('failure_reasons', '{worker,writer,reader}', '{SELECT}', NULL),
            ('_seen_failure', '{writer,reader}', '{SELECT}', NULL),
            ('granted', '{worker,writer,reader}', '{SELECT}', NULL),
            ('schema_version', '{worker,writer,reader}', '{SELECT}', NULL)
        ) AS v (name, kinds, rights, of_column)
        JOIN pg_catalog.pg_class AS c ON c.relnamespace = 'pgembed'::regnamespace AND c.relname = v.name
        WHERE kind = ANY (v.kinds);
        RETURN QUERY SELECT 'FUNCTION', p.oid, 'EXECUTE', NULL
        FROM (VALUES
            ('_keep_searches', '{worker}'::text[]),
            ('_cached', '{reader}'),
            ('_request', '{reader}'),
            ('_answer_of', '{reader}'),
            ('_ask_worker', '{reader}'),
            ('_take_requests', '{worker}'),
            ('_note_requests', '{worker}'),
            ('_answer_request', '{worker}'),
            ('_charge', '{worker}'),
            ('_tidy_requests', '{worker}'),
            ('_wait_for', '{writer,reader}')
        ) AS v (name, kinds)
        JOIN pg_catalog.pg_proc AS p ON p.pronamespace = 'pgembed'::regnamespace AND p.proname = v.name
        WHERE kind = ANY (v.kinds);
    ELSIF kind = 'worker' THEN
        BEGIN
            RETURN QUERY SELECT r.* FROM pgembed._worker_rights(embedding) AS r;
        EXCEPTION WHEN data_exception THEN
            NULL; -- workers refuse an entry of the catalog that makes no sense, and need nothing for it
        END;
    ELSIF kind = 'reader' AND has_any_column_privilege(role, embedding.relation, 'SELECT') THEN
        -- whoever may read a table's keys may read its vectors; parts have words of its inputs beside them
        RETURN QUERY SELECT 'TABLE', embedding.side, 'SELECT', NULL
        WHERE pgembed._side_of(embedding, embedding.relation) = embedding.side AND NOT EXISTS (
            SELECT FROM jsonb_array_elements(embedding.key_columns) AS k
            WHERE NOT has_column_privilege(role, embedding.relation, (k ->> 'attnum')::smallint, 'SELECT')
            UNION ALL
            SELECT FROM jsonb_each(embedding.inputs) AS i CROSS JOIN jsonb_each_text(i.value -> 'columns') AS c
            WHERE embedding.parts IS NOT NULL
                AND NOT has_column_privilege(role, embedding.relation, c.value::smallint, 'SELECT'));
    END IF;
END
$$;

-- What a worker does with the queue, the table and the vectors of an embedding.
CREATE OR REPLACE FUNCTION pgembed._worker_rights(embedding pgembed.embedding)
RETURNS TABLE (type text, object oid, right_name text, column_name text)
LANGUAGE plpgsql STABLE
AS $$
BEGIN
    RETURN QUERY SELECT 'SCHEMA', c.relnamespace, 'USAGE', NULL
    FROM pg_catalog.pg_class AS c WHERE c.oid IN (embedding.relation, embedding.side);
    RETURN QUERY SELECT 'TABLE', c.oid, unnest(v.rights), NULL
    FROM (VALUES
        ('change_', '{SELECT,UPDATE,DELETE}'::text[]),
        ('job_', '{SELECT,INSERT,UPDATE,DELETE}')
    ) AS v (name, rights)
    JOIN pg_catalog.pg_class AS c ON c.relnamespace = 'pgembed'::regnamespace AND c.relname = v.name || embedding.id;
    RETURN QUERY SELECT 'TABLE', a.attrelid, r.name, a.attname::text
    FROM pg_catalog.pg_attribute AS a
    CROSS JOIN unnest('{SELECT,UPDATE}'::text[]) AS r (name)
    WHERE a.attrelid = embedding.relation AND a.attnum > 0 AND NOT a.attisdropped
        AND (a.attname = CASE embedding.storage WHEN 'side' THEN embedding.key_columns -> 0 ->> 'name'
            ELSE embedding.target END OR (r.name = 'SELECT' AND (
            EXISTS (SELECT FROM jsonb_array_elements(embedding.key_columns) AS k
                WHERE (k ->> 'attnum')::smallint = a.attnum)
            OR quote_ident(a.attname) IN (SELECT u.column_sql
                FROM pgembed._input_columns(embedding.relation, embedding.inputs) AS u))));
    RETURN QUERY SELECT 'TABLE', embedding.side, r.name, NULL
    FROM unnest('{SELECT,INSERT,UPDATE,DELETE}'::text[]) AS r (name)
    WHERE pgembed._side_of(embedding, embedding.relation) = embedding.side;
    RETURN QUERY SELECT 'TABLE', c.oid, 'SELECT', NULL -- a budget is counted over all embeddings of an encoder
    FROM pgembed.encoder AS o
    JOIN pgembed.embedding AS e ON e.encoder = o.name AND e.id <> embedding.id
    JOIN pg_catalog.pg_class AS c ON c.relnamespace = 'pgembed'::regnamespace AND c.relname = 'job_' || e.id
    WHERE o.name = embedding.encoder AND o.settings ?| '{rows_per_day,tokens_per_day}';
END
$$;

-- The rights of a kind, an object a row: what, whose it is to grant, the statements that grant it and take it back, and
-- whether doctor sees no further without it. With `only_missing` those that the role lacks.
CREATE OR REPLACE FUNCTION pgembed._objects_of(
    kind text,
    role regrole,
    embedding pgembed.embedding,
    only_missing boolean
) RETURNS TABLE (place bigint, missing text, owner oid, statement text, revocation text, reads boolean)
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    WITH lacking AS (
        SELECT r.type, r.object, r.right_name, string_agg(quote_ident(r.column_name), ', ' ORDER BY a.attnum) AS names
        FROM pgembed._rights(kind, role, embedding) AS r
        LEFT JOIN pg_attribute AS a ON r.type = 'TABLE' AND a.attrelid = r.object AND a.attname = r.column_name
        WHERE NOT only_missing OR NOT CASE
            WHEN r.type = 'SCHEMA' THEN has_schema_privilege(role, r.object, r.right_name)
            WHEN r.type = 'FUNCTION' THEN has_function_privilege(role, r.object, r.right_name)
            WHEN r.column_name IS NULL THEN has_table_privilege(role, r.object, r.right_name)
            ELSE has_column_privilege(role, r.object, r.column_name, r.right_name) END
        GROUP BY r.type, r.object, r.right_name
    ), objects (type, name, rights, owner, reads) AS (
        SELECT l.type, CASE l.type
                WHEN 'SCHEMA' THEN 'SCHEMA ' || l.object::regnamespace
                WHEN 'FUNCTION' THEN 'FUNCTION ' || l.object::regprocedure
                ELSE l.object::regclass::text END,
            string_agg(l.right_name || coalesce(' (' || l.names || ')', ''), ', '
                ORDER BY array_position(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE'], l.right_name)),
            coalesce(n.nspowner, c.relowner, p.proowner), bool_or(l.type = 'SCHEMA' OR l.right_name = 'SELECT')
        FROM lacking AS l
        LEFT JOIN pg_namespace AS n ON l.type = 'SCHEMA' AND n.oid = l.object
        LEFT JOIN pg_class AS c ON l.type = 'TABLE' AND c.oid = l.object
        LEFT JOIN pg_proc AS p ON l.type = 'FUNCTION' AND p.oid = l.object
        GROUP BY l.type, l.object, n.nspowner, c.relowner, p.proowner
    )
    SELECT row_number() OVER (ORDER BY o.type <> 'SCHEMA', o.name),
        o.rights || ' on ' || o.name, o.owner, format('GRANT %s ON %s TO %s;', o.rights, o.name, role),
        CASE WHEN o.type <> 'SCHEMA' OR o.name = 'SCHEMA pgembed' THEN
            format('REVOKE %s ON %s FROM %s;', o.rights, o.name, role)
        END,
        o.reads
    FROM objects AS o;
END;

-- Grant a role what it lacks; gives what is for others to grant. Called by grant_role, and for each role by
-- _grant_remembered.
CREATE OR REPLACE FUNCTION pgembed._grant(kind text, role regrole, embedding pgembed.embedding)
RETURNS TABLE (ask text, statement text)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    object record;
BEGIN
    FOR object IN SELECT * FROM pgembed._objects_of(kind, role, embedding, true) AS o ORDER BY o.place LOOP
        IF pg_has_role(object.owner, 'USAGE') THEN
            EXECUTE object.statement;
        ELSE
            ask := object.owner::regrole;
            statement := object.statement;
            RETURN NEXT;
        END IF;
    END LOOP;
    IF kind = 'worker' AND pgembed._is_filtered(role, embedding.relation) THEN
        ask := 'a superuser';
        statement := format('ALTER ROLE %s BYPASSRLS;', role);
        RETURN NEXT;
    END IF;
END
$$;

-- Take back from a role what one of this kind has; gives what is for others to take back. The schemas of tables stay
-- open to it: others may have opened them.
CREATE OR REPLACE FUNCTION pgembed._revoke(kind text, role regrole, embedding pgembed.embedding)
RETURNS TABLE (ask text, statement text)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    object record;
BEGIN
    FOR object IN SELECT * FROM pgembed._objects_of(kind, role, embedding, false) AS o
        WHERE o.revocation IS NOT NULL ORDER BY o.place DESC LOOP
        IF role = object.owner THEN
            CONTINUE;
        ELSIF pg_has_role(object.owner, 'USAGE') THEN
            EXECUTE object.revocation;
        ELSE
            ask := object.owner::regrole;
            statement := object.revocation;
            RETURN NEXT;
        END IF;
    END LOOP;
END
$$;

-- Whether row-level security hides rows of a table from a role.
CREATE OR REPLACE FUNCTION pgembed._is_filtered(role oid, relation oid) RETURNS boolean
LANGUAGE sql STABLE
RETURN EXISTS (
    SELECT FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_roles AS r ON r.oid = role
    WHERE c.oid = relation AND c.relrowsecurity AND NOT r.rolsuper AND NOT r.rolbypassrls
        AND (c.relforcerowsecurity OR NOT pg_has_role(role, c.relowner, 'USAGE'))
);

-- Grant every role that grant_role was told of what it needs for an embedding, or with NULL on the catalog. Called by
-- attach, detach, sync and install; what is for others to grant is told by doctor.
CREATE OR REPLACE FUNCTION pgembed._grant_remembered(embedding pgembed.embedding) RETURNS void
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT count(g) FROM pgembed.granted AS r
    CROSS JOIN LATERAL pgembed._grant(r.kind, to_regrole(quote_ident(r.role)), embedding) AS g
    WHERE to_regrole(quote_ident(r.role)) IS NOT NULL
$$;

-- Take back from every such role what it has on the user's table of an embedding. Called by detach, which grants again
-- what other embeddings of the table need.
CREATE OR REPLACE FUNCTION pgembed._revoke_remembered(embedding pgembed.embedding, relation oid) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    kept record;
BEGIN
    embedding.relation := relation; -- where it is now
    FOR kept IN SELECT r.kind, to_regrole(quote_ident(r.role)) AS role FROM pgembed.granted AS r LOOP
        PERFORM FROM pgembed._revoke(kept.kind, kept.role, embedding) WHERE kept.role IS NOT NULL;
    END LOOP;
END
$$;

-- Hand the schema and what is in it over to a role; trigger functions that run as the owner of a table stay his.
CREATE OR REPLACE FUNCTION pgembed._hand_over(role regrole) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET lock_timeout = '2s'
AS $$
DECLARE
    before CONSTANT regrole := pgembed._owner();
    vector record;
    object text;
BEGIN
    IF role = before THEN
        RETURN;
    ELSIF NOT pg_has_role(role, CASE
        WHEN current_setting('server_version_num')::integer < 160000 THEN 'MEMBER' ELSE 'SET' END) THEN
        RAISE EXCEPTION USING ERRCODE = 'insufficient_privilege',
            MESSAGE = format('%I may not hand pgembed over to %s, since it is no member of it.', current_user, role),
            HINT = format('Run GRANT %s TO %I; before, as whoever may, or this as a superuser.', role, current_user);
    END IF;
    SELECT n.nspname, n.nspowner INTO vector FROM pg_extension AS x JOIN pg_namespace AS n ON n.oid = x.extnamespace
    WHERE x.extname = 'vector' AND NOT has_schema_privilege(role, n.oid, 'USAGE');
    IF FOUND AND pg_has_role(vector.nspowner, 'USAGE') THEN
        EXECUTE format('GRANT USAGE ON SCHEMA %I TO %s', vector.nspname, role);
    END IF;
    EXECUTE format('GRANT USAGE, CREATE ON SCHEMA pgembed TO %s', role); -- which an owner of things in it must have
    FOR object IN
        SELECT format('TABLE %s', c.oid::regclass) FROM pg_class AS c
        WHERE c.relnamespace = 'pgembed'::regnamespace AND c.relkind IN ('r', 'v') AND c.relowner = before
        UNION ALL
        SELECT format('ROUTINE %s', p.oid::regprocedure) FROM pg_proc AS p
        WHERE p.pronamespace = 'pgembed'::regnamespace AND p.proowner = before
        UNION ALL
        SELECT 'SCHEMA pgembed'
    LOOP
        EXECUTE format('ALTER %s OWNER TO %s', object, role);
    END LOOP;
END
$$;

DO $$ BEGIN PERFORM pgembed._grant_remembered(NULL); END $$;
