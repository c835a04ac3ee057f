"""Views of a space: directions that were learnt, by name."""

from alembic import op

revision = "0010"
down_revision = "0009"

# An encoder that has views cannot be removed: what was learnt in its space means nothing in another.
DIRECTION = """
CREATE TABLE pgembed.direction (
    name text PRIMARY KEY CHECK (btrim(name) <> ''),
    encoder text NOT NULL REFERENCES pgembed.encoder (name) ON UPDATE CASCADE,
    vectors @extschema:vector@.vector[] NOT NULL CHECK (cardinality(vectors) > 0),
    method text NOT NULL,
    learnt_from jsonb NOT NULL DEFAULT '{}',
    created_at timestamptz NOT NULL DEFAULT now()
)
"""


def upgrade() -> None:
    op.execute(DIRECTION)
