"""Tokens beside the rows that were written: what a budget of tokens a day is counted by."""

from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.execute("ALTER TABLE pgembed.written ADD COLUMN tokens bigint NOT NULL DEFAULT 0")
