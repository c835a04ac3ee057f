-- What must hold before the first migration: one install at a time, a database in UTF8, a schema that this version of
-- pgembed knows, and the vector extension, which is made here where it is missing. `pgembed install` runs it, and the
-- script of `pgembed install --sql` begins with it. What follows it runs under the search_path that it sets, and finds
-- the extension's schema, quoted, in the setting pgembed.vector_schema.
DO $prepare$
DECLARE
    first_schema text := coalesce(current_schema(), 'public');
    present text;
    vector_schema text;
    vector_version text;
    owner oid := (SELECT nspowner FROM pg_catalog.pg_namespace WHERE nspname = 'pgembed');
BEGIN
    PERFORM set_config('search_path', 'pg_catalog, pg_temp', true); -- nothing that others made is called by mistake
    PERFORM pg_advisory_xact_lock(hashtext('pgembed.install'));
    IF getdatabaseencoding() <> 'UTF8' THEN
        RAISE EXCEPTION USING ERRCODE = 'feature_not_supported',
            MESSAGE = format('The encoding of database ''%s'' is %s; pgembed needs UTF8.', current_database(),
                getdatabaseencoding()),
            HINT = 'Make a database with ENCODING ''UTF8''.';
    END IF;
    IF to_regclass('pgembed.schema_version') IS NOT NULL THEN
        SELECT version_num INTO present FROM pgembed.schema_version;
        IF NOT FOUND THEN
            RAISE EXCEPTION USING ERRCODE = 'object_not_in_prerequisite_state',
                MESSAGE = format('The tables of pgembed in database ''%s'' are empty: a dump was restored without its '
                    'data.', current_database()),
                HINT = 'Load it, or begin anew: DROP SCHEMA pgembed CASCADE;';
        END IF;
    END IF;
    IF present COLLATE "C" > '@pgembed:head@' THEN
        RAISE EXCEPTION USING ERRCODE = 'object_not_in_prerequisite_state',
            MESSAGE = format('The schema pgembed in this database is version %s; pgembed @pgembed:version@ knows up to '
                '@pgembed:head@.', present),
            HINT = 'Upgrade the library: pip install --upgrade pgembed-multimodal';
    END IF;
    IF NOT EXISTS (SELECT FROM pg_extension WHERE extname = 'vector') THEN
        BEGIN
            EXECUTE format('CREATE EXTENSION vector SCHEMA %I', first_schema);
        EXCEPTION
            WHEN undefined_file OR feature_not_supported THEN
                RAISE EXCEPTION USING ERRCODE = 'undefined_file',
                    MESSAGE = format('The extension vector is not in database ''%s'', and this server does not have '
                        'it.', current_database()),
                    HINT = 'Install pgvector on the server, then run this again.';
            WHEN insufficient_privilege THEN
                RAISE EXCEPTION USING ERRCODE = 'insufficient_privilege',
                    MESSAGE = format('The extension vector is not in database ''%s'', and role ''%s'' may not create '
                        'it.', current_database(), current_user),
                    HINT = 'Ask a superuser (or your provider''s admin role) to run CREATE EXTENSION vector; there '
                        'once.';
        END;
    END IF;
    SELECT n.nspname, e.extversion INTO vector_schema, vector_version
    FROM pg_extension AS e JOIN pg_namespace AS n ON n.oid = e.extnamespace WHERE e.extname = 'vector';
    IF string_to_array(substring(vector_version FROM '^\d+\.\d+'), '.')::integer[] < '@pgembed:pgvector@' THEN
        RAISE EXCEPTION USING ERRCODE = 'object_not_in_prerequisite_state',
            MESSAGE = format('pgvector %s is too old; pgembed needs %s.', vector_version,
                array_to_string('@pgembed:pgvector@'::integer[], '.')),
            HINT = 'ALTER EXTENSION vector UPDATE;';
    END IF;
    IF vector_schema ~ '["$%''\\]' THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_schema_name',
            MESSAGE = format('The extension vector is in schema %I, whose name has a quote, $, %% or \.', vector_schema),
            HINT = 'ALTER EXTENSION vector SET SCHEMA ...; to one with a plainer name.';
    END IF;
    PERFORM set_config('pgembed.vector_schema', quote_ident(vector_schema), true);
    -- what is added belongs to whom the schema was handed over, and nothing of his runs with greater rights
    IF pg_get_userbyid(owner) <> current_user THEN
        PERFORM set_config('role', pg_get_userbyid(owner), true);
    END IF;
END
$prepare$;
