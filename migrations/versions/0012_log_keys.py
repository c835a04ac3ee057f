"""The logs' keys have the time too: a load of data may bring numbers that triggers give at that moment."""

from alembic import op

revision = "0012"
down_revision = "0011"

# Writers of the users' tables wait for these locks, and whoever holds one may be a long transaction: give up soon.
LOGS = """
DO $$
DECLARE
    log text;
    named text;
    before text := current_setting('lock_timeout');
BEGIN
    PERFORM set_config('lock_timeout', '2s', true);
    FOR log, named IN SELECT c.conrelid::regclass, c.conname FROM pg_constraint AS c
        JOIN pgembed.embedding AS e ON c.conrelid = to_regclass('pgembed.change_' || e.id)
        WHERE c.contype = 'p' ORDER BY e.id LOOP
        EXECUTE 'ALTER TABLE ' || log || ' DROP CONSTRAINT ' || quote_ident(named)
            || ', ADD PRIMARY KEY (seq, changed_at)';
    END LOOP;
    PERFORM set_config('lock_timeout', before, true);
END
$$
"""


def upgrade() -> None:
    op.execute(LOGS)
