"""Static text sides that were distilled from encoders: of which, from what, and how well they agree."""

from alembic import op

revision = "0011"
down_revision = "0010"

# Beside encoder.static_text, not in it: what stands there is the encoder's own text side, and exact.
DISTILLED = """
CREATE TABLE pgembed.distilled (
    encoder text PRIMARY KEY REFERENCES pgembed.encoder (name) ON UPDATE CASCADE ON DELETE CASCADE,
    model text COLLATE "C" NOT NULL UNIQUE REFERENCES pgembed.static_text (model) ON DELETE CASCADE,
    fingerprint text NOT NULL,
    texts bigint NOT NULL CHECK (texts > 0),
    agreement jsonb NOT NULL,
    made_at timestamptz NOT NULL DEFAULT now()
)
"""


def upgrade() -> None:
    op.execute(DISTILLED)
