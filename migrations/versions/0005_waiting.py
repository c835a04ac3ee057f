"""Pausing an embedding, and since which job a row waits: what pgembed.wait goes by."""

from alembic import op

revision = "0005"
down_revision = "0004"

# Workers wait for these locks, and whoever holds one may be a long transaction: give up soon.
JOBS = """
DO $$
DECLARE
    jobs text;
    before text := current_setting('lock_timeout');
BEGIN
    PERFORM set_config('lock_timeout', '2s', true);
    FOR jobs IN SELECT 'pgembed.job_' || id FROM pgembed.embedding ORDER BY id LOOP
        IF to_regclass(jobs) IS NOT NULL THEN
            EXECUTE 'ALTER TABLE ' || jobs || ' ADD COLUMN first_seq bigint';
        END IF;
    END LOOP;
    PERFORM set_config('lock_timeout', before, true);
END
$$
"""


def upgrade() -> None:
    op.execute("ALTER TABLE pgembed.embedding ADD COLUMN paused boolean NOT NULL DEFAULT false")
    op.execute("UPDATE pgembed.embedding SET paused = true, state = 'backfill' WHERE state = 'paused'")
    op.execute(JOBS)
