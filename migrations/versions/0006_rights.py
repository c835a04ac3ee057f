"""Which roles were granted what; and how far a backfill is, apart from the catalog, which readers may read."""

from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    op.execute(
        "CREATE TABLE pgembed.granted ("
        "role text NOT NULL, kind text NOT NULL CHECK (kind IN ('worker', 'writer', 'reader')),"
        " PRIMARY KEY (role, kind))"
    )
    op.execute("CREATE TABLE pgembed.backfill (embedding integer PRIMARY KEY, after jsonb NOT NULL)")
    op.execute(
        "INSERT INTO pgembed.backfill (embedding, after)"
        " SELECT id, backfill_after FROM pgembed.embedding WHERE backfill_after IS NOT NULL"
    )
    op.execute("ALTER TABLE pgembed.embedding DROP COLUMN backfill_after")
