"""Many vectors a row: how an embedding's input is taken apart; NULL where a row has one vector. And what was cut."""

from alembic import op

revision = "0013"
down_revision = "0012"


def upgrade() -> None:
    op.execute("ALTER TABLE pgembed.embedding ADD COLUMN parts jsonb CHECK (jsonb_typeof(parts -> 'kind') = 'string')")
    op.execute(
        "CREATE TABLE pgembed.cut (embedding integer NOT NULL REFERENCES pgembed.embedding (id) ON DELETE CASCADE,"
        " key jsonb NOT NULL, told text NOT NULL, at timestamptz NOT NULL DEFAULT now(), PRIMARY KEY (embedding, key))"
    )
