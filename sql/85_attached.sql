-- What is attached follows the version that is installed. Every install ends with this.

DROP FUNCTION IF EXISTS pgembed._side_of(integer, oid); -- here nothing uses it any more

-- Make the functions of triggers anew: those that an earlier version made do less, or what was found wrong since. The
-- triggers stay, so that no lock of a user's table is waited for. Left as it is is what doctor finds wrong, for whoever
-- runs sync of that table, and what belongs to an owner for whom this role may not act.
CREATE OR REPLACE FUNCTION pgembed._renew_functions(embedding pgembed.embedding) RETURNS void
LANGUAGE plpgsql
AS $$
BEGIN
    IF (SELECT count(*) FROM pg_catalog.pg_trigger AS t WHERE t.tgrelid = embedding.relation
            AND t.tgname ~ pg_catalog.format('^(zzz_)?pgembed_%s_', embedding.id)) <> pgembed._trigger_count(embedding)
        OR EXISTS (SELECT FROM pgembed._examine_columns(embedding)) THEN
        RETURN;
    END IF;
    IF EXISTS (SELECT FROM pg_catalog.pg_trigger AS t JOIN pg_catalog.pg_proc AS p ON p.oid = t.tgfoid
        WHERE t.tgrelid = embedding.relation AND t.tgname ~ pg_catalog.format('^(zzz_)?pgembed_%s_', embedding.id)
            AND NOT pg_has_role(p.proowner, 'USAGE')) THEN
        RAISE NOTICE USING
            MESSAGE = pg_catalog.format('The triggers of %s are those of an earlier version.',
                embedding.relation::regclass),
            HINT = pg_catalog.format('As owner of the table: SELECT pgembed.sync(%L, requeue => false);',
                embedding.relation::regclass);
        RETURN;
    END IF;
    PERFORM pgembed._create_triggers(embedding.id);
END
$$;

DO $$
DECLARE
    embedding pgembed.embedding;
BEGIN
    PERFORM pgembed.sync();
    FOR embedding IN SELECT e.* FROM pgembed.embedding AS e JOIN pg_catalog.pg_class AS c ON c.oid = e.relation
        ORDER BY e.id LOOP
        PERFORM pgembed._renew_functions(embedding);
    END LOOP;
EXCEPTION -- a catalog is data, and a restore may have ended early: no install fails for either
    WHEN data_exception OR syntax_error_or_access_rule_violation OR object_not_in_prerequisite_state THEN
        RAISE WARNING USING MESSAGE = 'What is attached is as it was: ' || SQLERRM, HINT = 'pgembed doctor tells more.';
END
$$;
