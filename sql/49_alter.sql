-- An embedding as a model or a file declares it now: attached anew where it is another one, renamed where it is not.

DROP FUNCTION IF EXISTS pgembed.is_attached(regclass, text, text, jsonb, text, text, text, text);
DROP FUNCTION IF EXISTS pgembed.alter(regclass, text, text, jsonb, text, text, text, text);

-- Whether a table has an embedding with this target that `attach` with the same arguments would make: the inputs by the
-- present names of their columns. Called by alter, and by migrations that ask before vectors go.
CREATE OR REPLACE FUNCTION pgembed.is_attached(
    relation regclass,
    target text,
    encoder text,
    inputs jsonb,
    stale text DEFAULT 'keep',
    storage text DEFAULT NULL,
    mode text DEFAULT 'queue',
    fusion text DEFAULT 'sum',
    parts text DEFAULT NULL
) RETURNS boolean
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    model CONSTANT pgembed.encoder := pgembed._encoder(encoder);
    checked CONSTANT jsonb := pgembed._checked_inputs(relation, model, inputs);
    fused CONSTANT jsonb := pgembed._checked_fusion(model, checked, fusion);
    split CONSTANT jsonb := pgembed._checked_parts(parts, checked, storage, mode);
BEGIN
    RETURN EXISTS (SELECT FROM pgembed.embedding AS e
        WHERE e.relation = is_attached.relation AND e.target = is_attached.target
            AND (e.encoder, e.stale, e.storage, e.mode) = (model.name, is_attached.stale,
                coalesce(is_attached.storage, CASE WHEN split IS NULL THEN 'column' ELSE 'side' END), is_attached.mode)
            AND e.parts IS NOT DISTINCT FROM split AND e.fusion IS NOT DISTINCT FROM fused
            AND pgembed._renamed(e.relation, e.inputs) = checked);
END
$$;

-- Have a table's embedding be what these arguments of `attach` say: nothing happens where it is that already, and else
-- it is detached and attached again, so that its vectors and its indexes go, and workers encode all rows. Returns
-- whether it was.
CREATE OR REPLACE FUNCTION pgembed.alter(
    relation regclass,
    target text,
    encoder text,
    inputs jsonb,
    stale text DEFAULT 'keep',
    storage text DEFAULT NULL,
    mode text DEFAULT 'queue',
    fusion text DEFAULT 'sum',
    parts text DEFAULT NULL
) RETURNS boolean
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET lock_timeout = '2s'
AS $$
BEGIN
    IF pgembed.is_attached(relation, target, encoder, inputs, stale, storage, mode, fusion, parts) THEN
        RETURN false;
    END IF;
    PERFORM pgembed.detach(relation, target);
    PERFORM pgembed.attach(relation, target, encoder, inputs, stale, storage, mode, fusion, parts);
    RETURN true;
END
$$;

-- Whether an embedding of a table has a vector yet, that detach would drop.
CREATE OR REPLACE FUNCTION pgembed.has_vectors(relation regclass, target text DEFAULT NULL) RETURNS boolean
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    place record;
    found_one boolean;
BEGIN
    SELECT v.relation, v.column_name INTO place
    FROM pgembed._vectors_of(pgembed._embedding(has_vectors.relation, target)) AS v;
    EXECUTE format('SELECT EXISTS (SELECT FROM %s WHERE %I IS NOT NULL)', place.relation::regclass, place.column_name)
    INTO found_one;
    RETURN found_one;
END
$$;

-- Give the vector column of an embedding another name, here and in the table.
CREATE OR REPLACE FUNCTION pgembed.rename(relation regclass, target text, new_target text) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET lock_timeout = '2s'
AS $$
DECLARE
    embedding CONSTANT pgembed.embedding := pgembed._embedding(relation, target);
BEGIN
    PERFORM pgembed._require_owner();
    IF embedding.storage = 'side' THEN
        RAISE EXCEPTION USING ERRCODE = 'feature_not_supported',
            MESSAGE = format('The vectors of ''%s'' stand in a table of their own, whose name goes with it.', target),
            HINT = 'Detach it, and attach another.';
    END IF;
    PERFORM pgembed._lock_table(relation);
    PERFORM pgembed._check_target(relation, new_target, pgembed._encoder(embedding.encoder));
    EXECUTE format('ALTER TABLE %s RENAME COLUMN %I TO %I', relation, target, new_target);
    UPDATE pgembed.embedding AS e SET target = new_target WHERE e.id = embedding.id;
    PERFORM pgembed.sync(relation, requeue => false);
END
$$;
