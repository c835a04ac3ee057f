-- Partitions that came with rows, or whose triggers were off: what changed in them meanwhile nobody has seen.
--
-- The copies of triggers that a partition has are made with those of its root (by attach, sync or a restore), with the
-- partition itself (CREATE TABLE ... PARTITION OF: it began empty), or by ATTACH PARTITION, which makes them anew each
-- time; to switch one off or on writes it anew, too. So the transaction that wrote a copy tells which it was. Only for
-- the last two a partition is to be looked at. A comment on the copy says that it was: it goes with the copy.

-- The comment that says of a partition's trigger, written by a transaction, that all its rows were queued since.
CREATE OR REPLACE FUNCTION pgembed._synced_mark(written_by xid) RETURNS text
LANGUAGE sql IMMUTABLE
RETURN format('Rows were queued by pgembed.sync (%s).', written_by);

-- The partitions of an embedding's table that have rows, and may have changed unseen by its triggers; whether these
-- fire now. Called by doctor and _sync_partition.
CREATE OR REPLACE FUNCTION pgembed._unsure_partitions(embedding pgembed.embedding)
RETURNS TABLE (leaf regclass, fires boolean)
LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT p.relid, bool_and(t.tgenabled IN ('O', 'A'))
    FROM pg_catalog.pg_partition_tree((embedding).relation) AS p
    JOIN pg_catalog.pg_class AS c ON c.oid = p.relid AND c.relkind = 'r'
    JOIN pg_catalog.pg_attribute AS a ON a.attrelid = c.oid AND a.attname = 'ctid' -- written once, with the table
    JOIN pg_catalog.pg_trigger AS r ON r.tgrelid = (embedding).relation AND r.tgtype & 1 = 1 -- of rows
        AND r.tgname ~ format('^(zzz_)?pgembed_%s_', (embedding).id)
    JOIN pg_catalog.pg_trigger AS t ON t.tgrelid = c.oid AND t.tgname = r.tgname AND t.tgfoid = r.tgfoid
    WHERE p.isleaf AND p.relid <> (embedding).relation AND pg_relation_size(c.oid) > 0
        AND (t.tgenabled NOT IN ('O', 'A') OR t.xmin NOT IN (r.xmin, a.xmin)
            AND obj_description(t.oid, 'pg_trigger') IS DISTINCT FROM pgembed._synced_mark(t.xmin))
    GROUP BY p.relid;
END;

-- The table with embeddings that a table is a partition of; NULL where there is none, or it has embeddings of its own.
-- Called by sync.
CREATE OR REPLACE FUNCTION pgembed._covering_root(relation regclass) RETURNS regclass
LANGUAGE sql STABLE
RETURN (SELECT r FROM pg_catalog.pg_partition_root(relation) AS r
    WHERE r <> relation AND EXISTS (SELECT FROM pgembed.embedding AS e WHERE e.relation = r)
        AND NOT EXISTS (SELECT FROM pgembed.embedding AS e WHERE e.relation = _covering_root.relation));

-- Enable the triggers that a partition has of its root's embeddings, and queue its rows. Called by sync.
CREATE OR REPLACE FUNCTION pgembed._sync_partition(relation regclass, root regclass, requeue boolean) RETURNS integer
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    embedding pgembed.embedding;
    copy record;
    synced integer := 0;
BEGIN
    PERFORM pgembed._lock_table(relation);
    FOREACH embedding IN ARRAY pgembed._embeddings(root, NULL) LOOP
        FOR copy IN
            SELECT t.oid, t.tgrelid::regclass AS leaf, t.tgname, t.tgenabled
            FROM pg_partition_tree(relation) AS p
            JOIN pg_trigger AS t ON t.tgrelid = p.relid AND t.tgparentid <> 0
                AND t.tgname ~ format('^(zzz_)?pgembed_%s_', embedding.id)
        LOOP
            IF copy.tgenabled NOT IN ('O', 'A') THEN
                EXECUTE format('ALTER TABLE ONLY %s ENABLE TRIGGER %I', copy.leaf, copy.tgname);
            END IF;
            EXECUTE format('COMMENT ON TRIGGER %I ON %s IS %L', copy.tgname, copy.leaf, (
                SELECT pgembed._synced_mark(t.xmin) FROM pg_trigger AS t WHERE t.oid = copy.oid));
        END LOOP;
        IF requeue THEN
            EXECUTE format('INSERT INTO pgembed.%I (%s) SELECT %s FROM %s AS t', 'change_' || embedding.id,
                pgembed._key_list(embedding, 'key_%s'), pgembed._key_columns_sql(embedding), relation);
            IF embedding.storage = 'side' THEN
                PERFORM pgembed._queue_left_over(embedding);
            END IF;
        END IF;
        synced := synced + 1;
    END LOOP;
    RETURN synced;
END
$$;
