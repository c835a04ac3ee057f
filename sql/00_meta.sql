-- The version of the functions in this database; doctor compares it with the library's.
CREATE OR REPLACE FUNCTION pgembed.version() RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN '@pgembed:version@';

-- A vector from its numbers as whole bytes, each 128 more than the number, times one scale. Called by the script of
-- `pgembed install --sql`, which carries the token vectors so; `install` itself copies them in binary.
CREATE OR REPLACE FUNCTION pgembed._unpacked(numbers bytea, scale real) RETURNS @extschema:vector@.vector
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
RETURN ARRAY(
    SELECT (get_byte(numbers, i) - 128)::real * scale FROM generate_series(0, length(numbers) - 1) AS i
)::@extschema:vector@.vector;

-- The role that owns the schema pgembed.
CREATE OR REPLACE FUNCTION pgembed._owner() RETURNS regrole
LANGUAGE sql STABLE
RETURN (SELECT n.nspowner::regrole FROM pg_catalog.pg_namespace AS n WHERE n.nspname = 'pgembed');
