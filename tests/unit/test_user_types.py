"""What a user's type checker makes of models with embeddings: basedpyright, strict, over a small program."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROGRAM = """
from __future__ import annotations

from typing import assert_type

from sqlalchemy import ColumnElement, Select, Table, select
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from pgembed import Text
from pgembed.sqlalchemy import EmbeddingMapped, EncoderSpec, Vector, embedding_column


class Base(DeclarativeBase):
    pass


class Product(Base):
    __tablename__ = "product"
    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str]
    embedding: EmbeddingMapped[Vector] = embedding_column(encoder=EncoderSpec("lite", "builtin:lite"), text="{title}")


near = Product.embedding.distance(Text("a red shoe"))
assert_type(near, ColumnElement[float])
assert_type(Product.embedding.score([0.5]), ColumnElement[float])
assert_type(Product.embedding.within(Text("a red shoe"), 0.5), ColumnElement[bool])
assert_type(Product.embedding.nearest(Text("a red shoe"), k=3), ColumnElement[bool])
assert_type(Product.embedding.side, Table)
assert_type(select(Product.title, near).order_by(near), Select[str, float])
assert_type(Product().embedding, Vector)
"""


WRONG = """
from program import Product

Product.embedding.within([0.5], "near")
Product.embedding.nearest([0.5], k="3")
Product.embedding.distance()
"""


def test_comparisons_have_their_types(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    (tmp_path / "wrong.py").write_text(WRONG)
    config = {"typeCheckingMode": "strict", "include": ["program.py", "wrong.py"], "extraPaths": [".", str(ROOT)]}
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(config))
    done = subprocess.run(
        [sys.executable, "-m", "basedpyright", "--outputjson", "--pythonpath", sys.executable, "-p", str(tmp_path)],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    told = json.loads(done.stdout)
    assert told["summary"]["filesAnalyzed"] == 2
    found = [(Path(one["file"]).name, one["range"]["start"]["line"], one["rule"]) for one in told["generalDiagnostics"]]
    assert found == [
        ("wrong.py", 3, "reportArgumentType"),
        ("wrong.py", 4, "reportArgumentType"),
        ("wrong.py", 5, "reportCallIssue"),
    ]
