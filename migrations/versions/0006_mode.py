"""Instant mode: whether workers encode an embedding's rows, or triggers do."""

from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    op.execute(
        "ALTER TABLE pgembed.embedding ADD COLUMN mode text NOT NULL DEFAULT 'queue'"
        " CHECK (mode IN ('queue', 'instant'))"
    )
