-- Asking workers from within a statement: through dblink, since nobody sees a request before it is committed, and a
-- statement cannot commit.

-- Whether dblink is switched on: the server that enable_dblink makes is there, and belongs to the owner of pgembed or
-- to a superuser; any other is not trusted with queries. Called by _query_vector and doctor.
CREATE OR REPLACE FUNCTION pgembed._asks_workers() RETURNS boolean
LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT EXISTS (
        SELECT FROM pg_catalog.pg_foreign_server AS s
        JOIN pg_catalog.pg_foreign_data_wrapper AS w ON w.oid = s.srvfdw AND w.fdwname = 'dblink_fdw'
        JOIN pg_catalog.pg_roles AS r ON r.oid = s.srvowner
        WHERE s.srvname = 'pgembed_query' AND (r.rolsuper OR r.oid = pgembed._owner())
            AND 'dbname=' || current_database()::text = ANY (s.srvoptions)); -- a copied database's leads elsewhere
END;

-- Ask a worker, on a connection of its own, and wait for the answer: its state, the vector as text, and a message.
-- SECURITY DEFINER, because the connection is the owner's: whoever could use it himself would run SQL as another role.
-- The connection has no name and is closed with the statement, however that ends. Called by _query_vector.
CREATE OR REPLACE FUNCTION pgembed._ask_worker(
    encoder text,
    modality text,
    input bytea,
    seconds float8,
    OUT state text,
    OUT answer text,
    OUT message text
)
LANGUAGE plpgsql SECURITY DEFINER PARALLEL RESTRICTED
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    remaining float8 := least(greatest(coalesce(seconds, 0), 0), 3600);
    ends CONSTANT timestamptz := clock_timestamp() + interval '1 second' * remaining;
    dblink CONSTANT text := pgembed._dblink_schema();
    hash bytea;
    named boolean;
BEGIN
    EXECUTE format('SELECT ''pgembed_query'' = ANY (%s.dblink_get_connections())', dblink) INTO named;
    IF named THEN
        RAISE EXCEPTION USING ERRCODE = 'object_not_in_prerequisite_state',
            MESSAGE = 'This session has a dblink connection named pgembed_query, which would be used in place of the server.',
            HINT = 'SELECT dblink_disconnect(''pgembed_query'');';
    END IF;
    LOOP
        -- a statement cannot be cancelled while dblink waits: so it waits a little, again and again
        EXECUTE format('SELECT a.* FROM %s.dblink($1, $2)'
            ' AS a (hash bytea, state text, answer text, message text)', dblink)
        INTO hash, state, answer, message
        USING 'pgembed_query', format('CALL pgembed._ask(%L, %L, %L, %s, %s, %L)', encoder, modality, input, remaining,
            least(remaining, 0.25), hash);
        remaining := greatest(extract(epoch FROM ends - clock_timestamp()), 0);
        EXIT WHEN state <> 'waiting' OR remaining = 0;
    END LOOP;
END
$$;
REVOKE ALL ON FUNCTION pgembed._ask_worker(text, text, bytea, float8) FROM PUBLIC;

-- The schema of dblink, quoted; NULL where it is not there.
CREATE OR REPLACE FUNCTION pgembed._dblink_schema() RETURNS text
LANGUAGE sql STABLE
RETURN (
    SELECT quote_ident(n.nspname) FROM pg_catalog.pg_extension AS x
    JOIN pg_catalog.pg_namespace AS n ON n.oid = x.extnamespace WHERE x.extname = 'dblink'
);

-- Why dblink does not reach this database under the server's mapping, or NULL where it does. SECURITY DEFINER, because
-- the mapping is the owner's. Called by enable_dblink and doctor.
CREATE OR REPLACE FUNCTION pgembed._dblink_trouble() RETURNS text
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    reached boolean;
    reason text;
BEGIN
    EXECUTE format('SELECT a.reached FROM %s.dblink($1, $2) AS a (reached boolean)', pgembed._dblink_schema())
    INTO reached
    USING 'pgembed_query', format('SELECT current_user = %L AND current_database() = %L AND '
        'has_function_privilege(''pgembed._request(text, text, bytea, float8)'', ''EXECUTE'')',
        pgembed._query_role(), current_database());
    RETURN CASE WHEN NOT reached THEN 'it leads to another database or role, or one without rights' END;
EXCEPTION WHEN OTHERS THEN
    GET STACKED DIAGNOSTICS reason = PG_EXCEPTION_DETAIL;
    RETURN regexp_replace(btrim(concat_ws(': ', SQLERRM, nullif(reason, '')), E' \n.'), E'\\s*\n\\s*', ' ', 'g');
END
$$;
REVOKE ALL ON FUNCTION pgembed._dblink_trouble() FROM PUBLIC;

-- The role as which dblink connects: it may ask workers for vectors, and nothing else. Roles are the whole server's, so
-- the database is in its name.
CREATE OR REPLACE FUNCTION pgembed._query_role() RETURNS text
LANGUAGE sql STABLE
RETURN (
    SELECT 'pgembed_query_' || d.oid FROM pg_catalog.pg_database AS d WHERE d.datname = current_database()
);

-- Have encode_text, encode_image and encode_screenshot ask workers for what they do not find in the cache:
--
--     CALL pgembed.enable_dblink();
--
-- Makes the extension dblink where it is missing, a role pgembed_query_<database's oid> that may ask for vectors and
-- nothing else, a foreign server pgembed_query that leads back to this database (by default over 127.0.0.1, or the
-- first Unix socket where the server does not listen there), and a user mapping for the owner of pgembed, and nobody
-- else, to that role. The mapping has a password only where Postgres wants one: a random one, which nobody is shown.
-- Needs a superuser, or the owner of pgembed where he may create roles and use dblink_fdw. Doing it again makes it
-- anew; it commits, and cannot stand in a transaction.
CREATE OR REPLACE PROCEDURE pgembed.enable_dblink(host text DEFAULT NULL, port integer DEFAULT NULL)
LANGUAGE plpgsql
AS $$
DECLARE
    query_role CONSTANT text := pgembed._query_role();
    owner CONSTANT regrole := pgembed._owner();
    place text := host;
    secret text;
    trouble text;
BEGIN
    COMMIT; -- in a transaction it fails here, before anything is done
    PERFORM pgembed._require_owner();
    PERFORM pgembed._make_dblink();
    IF place IS NULL THEN
        place := CASE WHEN current_setting('listen_addresses') ~ '(\*|localhost|127\.0\.0\.1|0\.0\.0\.0)'
            THEN '127.0.0.1' ELSE btrim(split_part(current_setting('unix_socket_directories', true), ',', 1)) END;
    END IF;
    PERFORM pgembed._make_query_role(query_role);
    EXECUTE 'DROP SERVER IF EXISTS pgembed_query CASCADE';
    EXECUTE pg_catalog.format('CREATE SERVER pgembed_query FOREIGN DATA WRAPPER dblink_fdw OPTIONS (host %L, port %L, dbname %L, '
        'connect_timeout ''5'', application_name ''pgembed query'')', place,
        coalesce(port::text, current_setting('port')), current_database());
    EXECUTE pg_catalog.format('GRANT USAGE ON FOREIGN SERVER pgembed_query TO %s', owner);
    EXECUTE pg_catalog.format('CREATE USER MAPPING FOR %s SERVER pgembed_query OPTIONS (user %L)', owner, query_role);
    COMMIT; -- or the role is not there for a second session
    trouble := pgembed._dblink_trouble();
    IF trouble IS NOT NULL THEN
        secret := replace(gen_random_uuid()::text || gen_random_uuid()::text, '-', '');
        PERFORM pgembed._set_query_password(query_role, owner, secret);
        COMMIT;
        trouble := pgembed._dblink_trouble();
    END IF;
    IF trouble IS NOT NULL THEN
        PERFORM pgembed._drop_dblink();
        COMMIT;
        RAISE EXCEPTION USING ERRCODE = 'sqlclient_unable_to_establish_sqlconnection',
            MESSAGE = pg_catalog.format('This server does not let role %s connect to %L at %s: %s.', query_role,
                current_database(), place, trouble),
            HINT = 'Have pg_hba.conf let that role in, by password or otherwise, or name another way: CALL '
                'pgembed.enable_dblink(host => ''…'', port => …); nothing was left behind.';
    END IF;
END
$$;

-- Take it back: what is not in the cache is an error again, and queries of pgembed.prepare work as before.
CREATE OR REPLACE FUNCTION pgembed.disable_dblink() RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM pgembed._require_owner();
    PERFORM pgembed._drop_dblink();
END
$$;

-- The extension dblink, made where it is missing. Called by enable_dblink.
CREATE OR REPLACE FUNCTION pgembed._make_dblink() RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF pgembed._dblink_schema() IS NULL THEN
        CREATE EXTENSION dblink SCHEMA @extschema:vector@;
    END IF;
EXCEPTION
    WHEN undefined_file OR feature_not_supported THEN
        RAISE EXCEPTION USING ERRCODE = 'undefined_file',
            MESSAGE = 'This server does not have the extension dblink.',
            HINT = 'It is in the package of contrib modules. Without it, ask before: CALL pgembed.prepare(''shop'', ARRAY[''…'']);';
    WHEN insufficient_privilege THEN
        RAISE EXCEPTION USING ERRCODE = 'insufficient_privilege',
            MESSAGE = format('Role %I may not create the extension dblink.', current_user),
            HINT = 'Ask a superuser, or your provider''s admin role, to run: CREATE EXTENSION dblink;';
END
$$;

-- The role as which dblink connects, with the rights that it needs. What a superuser may set besides keeps its queries
-- out of the server's log. Called by enable_dblink.
CREATE OR REPLACE FUNCTION pgembed._make_query_role(query_role text) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    setting text;
BEGIN
    IF to_regrole(quote_ident(query_role)) IS NULL THEN
        EXECUTE format('CREATE ROLE %I LOGIN NOINHERIT', query_role);
    ELSE
        EXECUTE format('ALTER ROLE %I LOGIN', query_role);
    END IF;
    EXECUTE format('GRANT CONNECT ON DATABASE %I TO %I', current_database(), query_role);
    EXECUTE format('GRANT USAGE ON SCHEMA pgembed TO %I', query_role);
    EXECUTE format('GRANT EXECUTE ON FUNCTION pgembed._request(text, text, bytea, float8), '
        'pgembed._answer_of(text, bytea) TO %I', query_role);
    FOREACH setting IN ARRAY ARRAY['search_path = pg_catalog, pg_temp', 'client_connection_check_interval = ''1s''',
        'default_transaction_isolation = ''read committed''', 'default_transaction_read_only = off',
        'statement_timeout = 0', 'lock_timeout = 0', 'log_statement = ''none''', 'log_min_duration_statement = -1',
        'log_min_duration_sample = -1', 'log_transaction_sample_rate = 0', 'log_min_error_statement = ''panic''',
        'track_activities = off', 'pg_stat_statements.track = ''none''', 'auto_explain.log_min_duration = -1'] LOOP
        BEGIN
            EXECUTE format('ALTER ROLE %I IN DATABASE %I SET %s', query_role, current_database(), setting);
        EXCEPTION WHEN insufficient_privilege OR invalid_parameter_value OR undefined_object THEN
            NULL; -- not this role's to set, or nothing that this system has
        END;
    END LOOP;
EXCEPTION WHEN insufficient_privilege THEN
    RAISE EXCEPTION USING ERRCODE = 'insufficient_privilege',
        MESSAGE = format('Role %I may not create or change the role %I: %s.', current_user, query_role, SQLERRM),
        HINT = 'Run CALL pgembed.enable_dblink(); as a superuser.';
END
$$;

-- Give the role a password, and the mapping the same; the role's own is kept as a hash. Called by enable_dblink.
CREATE OR REPLACE FUNCTION pgembed._set_query_password(query_role text, owner regrole, secret text) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF current_setting('server_version_num')::integer >= 160000 THEN
        -- many rounds protect passwords that can be guessed; of a random one they only make each connection slower
        PERFORM set_config('scram_iterations', '1', true);
    END IF;
    EXECUTE format('ALTER ROLE %I PASSWORD %L', query_role, secret);
    EXECUTE format('ALTER USER MAPPING FOR %s SERVER pgembed_query OPTIONS (ADD password %L)', owner, secret);
END
$$;

-- Drop the server with its mapping, and the role. Called by disable_dblink, by enable_dblink where it fails, and by
-- uninstall.
CREATE OR REPLACE FUNCTION pgembed._drop_dblink() RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    query_role CONSTANT text := pgembed._query_role();
BEGIN
    IF EXISTS (SELECT FROM pg_catalog.pg_foreign_server AS s WHERE s.srvname = 'pgembed_query') THEN
        DROP SERVER pgembed_query CASCADE;
    END IF;
    IF to_regrole(query_role) IS NOT NULL THEN
        EXECUTE format('REVOKE ALL ON DATABASE %I FROM %I', current_database(), query_role);
        EXECUTE format('REVOKE ALL ON SCHEMA pgembed FROM %I', query_role);
        EXECUTE format('REVOKE ALL ON FUNCTION pgembed._request(text, text, bytea, float8), '
            'pgembed._answer_of(text, bytea) FROM %I', query_role);
        BEGIN
            EXECUTE format('DROP ROLE %I', query_role);
        EXCEPTION WHEN dependent_objects_still_exist THEN
            EXECUTE format('ALTER ROLE %I NOLOGIN PASSWORD NULL', query_role);
            RAISE NOTICE USING
                MESSAGE = format('Role %I has rights in another database, and stays, without a login.', query_role),
                HINT = 'Perhaps in a copy of this one. There: DROP OWNED BY that role; then drop it.';
        END;
    END IF;
END
$$;
