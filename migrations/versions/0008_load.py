"""Which jobs are of a backfill: workers take the others first."""

from alembic import op

revision = "0008"
down_revision = "0007"

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
            EXECUTE 'ALTER TABLE ' || jobs || ' ADD COLUMN backfill boolean NOT NULL DEFAULT false';
            EXECUTE 'CREATE INDEX ON ' || jobs || ' (seq) WHERE NOT backfill';
        END IF;
    END LOOP;
    PERFORM set_config('lock_timeout', before, true);
END
$$
"""


def upgrade() -> None:
    op.execute(JOBS)
