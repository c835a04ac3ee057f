"""Side tables: the table that holds an embedding's vectors where they do not stand in the user's own."""

from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.execute("ALTER TABLE pgembed.embedding ADD COLUMN side oid")
    op.execute(
        "ALTER TABLE pgembed.embedding ADD CONSTRAINT embedding_stale_storage_check"
        " CHECK (stale = 'keep' OR storage = 'column')"
    )
