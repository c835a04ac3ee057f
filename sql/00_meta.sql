-- The version of the functions in this database; doctor compares it with the library's.
CREATE OR REPLACE FUNCTION pgembed.version() RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN '@pgembed:version@';
