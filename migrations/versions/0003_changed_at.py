"""When each change came, in the logs of the embeddings that are there; attach makes later ones with it."""

from alembic import op

revision = "0003"
down_revision = "0002"

# Writers of the users' tables wait for these locks, and whoever holds one may be a long transaction: give up soon.
LOGS = """
DO $$
DECLARE
    log text;
    before text := current_setting('lock_timeout');
BEGIN
    PERFORM set_config('lock_timeout', '2s', true);
    FOR log IN SELECT 'pgembed.change_' || id FROM pgembed.embedding ORDER BY id LOOP
        IF to_regclass(log) IS NOT NULL THEN
            EXECUTE 'ALTER TABLE ' || log || ' ADD COLUMN changed_at timestamptz NOT NULL DEFAULT now()';
        END IF;
    END LOOP;
    PERFORM set_config('lock_timeout', before, true);
END
$$
"""


def upgrade() -> None:
    op.execute(LOGS)
