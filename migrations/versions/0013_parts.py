"""Many vectors a row: how an embedding's input is taken apart; NULL where a row has one vector."""

from alembic import op

revision = "0013"
down_revision = "0012"


def upgrade() -> None:
    op.execute("ALTER TABLE pgembed.embedding ADD COLUMN parts jsonb CHECK (jsonb_typeof(parts -> 'kind') = 'string')")
