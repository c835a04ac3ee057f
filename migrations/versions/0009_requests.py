"""Query vectors that SQL asks workers for, how many a budget has been charged for, and the age of what is cached."""

from alembic import op

revision = "0009"
down_revision = "0008"

# The input is there until it is encoded, or turns out to be one that cannot be; then an error stands in its place for
# the sessions that wait. Unlogged: nobody waits any more after a crash.
REQUESTS = """
CREATE UNLOGGED TABLE pgembed.request (
    encoder text NOT NULL,
    input_hash bytea NOT NULL,
    modality text NOT NULL,
    input bytea,
    asked_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    wanted_until timestamptz NOT NULL,
    claimed_by integer,
    attempts integer NOT NULL DEFAULT 0,
    note text,
    error text,
    PRIMARY KEY (encoder, input_hash)
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000)

CREATE TABLE pgembed.charged (
    encoder text NOT NULL REFERENCES pgembed.encoder (name) ON UPDATE CASCADE ON DELETE CASCADE,
    minute timestamptz NOT NULL,
    inputs bigint NOT NULL,
    tokens bigint NOT NULL,
    PRIMARY KEY (encoder, minute)
)

CREATE INDEX ON pgembed.query_cache (created_at)
"""


def upgrade() -> None:
    for statement in REQUESTS.strip().split("\n\n"):
        op.execute(statement)
