"""Instant mode: whether workers encode an embedding's rows, or triggers do. And what triggers missed."""

from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    op.execute(
        "ALTER TABLE pgembed.embedding ADD COLUMN mode text NOT NULL DEFAULT 'queue'"
        " CHECK (mode IN ('queue', 'instant'))"
    )
    op.execute("CREATE TABLE pgembed.missed (embedding integer NOT NULL, at timestamptz NOT NULL DEFAULT now())")
    op.execute("CREATE INDEX ON pgembed.missed (embedding)")
