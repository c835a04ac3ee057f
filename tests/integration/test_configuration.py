"""Encoders and embeddings declared in a file: read, compared, applied, and found to differ."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import pytest

import pgembed
from pgembed import parts
from pgembed.configuration import Configuration, read
from pgembed.errors import CatalogError, InvalidInput
from tests.conftest import Connection
from tests.fakes import use_splitters
from tests.integration.test_parts import Lines

ROOT = Path(__file__).parents[2]
LITE = '[encoders.lite]\nspec = "builtin:lite"\n'
PRODUCT = '[embeddings.product.embedding]\nencoder = "lite"\ntext = "{title}"\n'


@pytest.fixture
def db(database: Connection, database_dsn: str) -> Iterator[pgembed.Pgembed]:
    database.execute(
        'CREATE TABLE product (id int PRIMARY KEY, title text, photo bytea); CREATE SCHEMA "the shop";'
        'CREATE TABLE "the shop"."it\'s 5%" (id int PRIMARY KEY, title text)'
    )
    with pgembed.connect(database_dsn) as made:
        yield made


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "pgembed.toml"


def declared(file: Path, text: str) -> Configuration:
    file.write_text(text)
    return read(file)


def told(db: pgembed.Pgembed, wanted: Configuration, *, prune: bool = False) -> list[tuple[str, str, str, bool]]:
    return [(one.action, one.kind, one.name, one.loses_vectors) for one in db.differences(wanted, prune=prune)]


def test_what_is_declared_is_made_once(db: pgembed.Pgembed, database: Connection, file: Path) -> None:
    name = json.dumps('"the shop"."it\'s 5%"')
    side = f"[embeddings.{name}.'a b']\nencoder = 'lite'\ntext = 'title'\nstorage = 'side'\n"
    wanted = declared(file, LITE + PRODUCT + "index = { m = 8 }\n" + side)
    assert told(db, wanted) == [
        ("add", "encoder", "lite", False),
        ("add", "embedding", "product.embedding", False),
        ("add", "index", "product.embedding", False),
        ("add", "embedding", '"the shop"."it\'s 5%".a b', False),
    ]
    db.apply(wanted, db.differences(wanted))
    assert told(db, wanted) == []
    (index,) = database.execute("SELECT indexdef FROM pg_indexes WHERE indexdef LIKE '%hnsw%'").fetchone() or ("",)
    assert "m='8'" in str(index)
    assert database.execute("SELECT storage FROM pgembed.embedding ORDER BY id").fetchall() == [("column",), ("side",)]


def test_changes_and_what_is_no_longer_named(db: pgembed.Pgembed, database: Connection, file: Path) -> None:
    wanted = declared(file, LITE + PRODUCT)
    db.apply(wanted, db.differences(wanted))
    other = declared(file, LITE + PRODUCT.replace("{title}", "{title}.") + 'fusion = "concat"\nimage = "photo"\n')
    (change,) = db.differences(other)
    assert (change.action, change.loses_vectors) == ("alter", True)
    assert "fusion sum → concat" in change.told
    db.apply(other, [change])
    assert told(db, other) == []
    nothing = declared(file, "")
    assert told(db, nothing) == []
    assert told(db, nothing, prune=True) == [
        ("remove", "embedding", "product.embedding", True),
        ("remove", "encoder", "lite", False),
    ]
    db.apply(nothing, db.differences(nothing, prune=True), prune=True)
    assert database.execute("SELECT count(*) FROM pgembed.encoder").fetchone() == (0,)


def test_a_renamed_input_is_the_one_that_is_declared_by_its_new_name(
    db: pgembed.Pgembed, database: Connection, file: Path
) -> None:
    wanted = declared(file, LITE + PRODUCT)
    db.apply(wanted, db.differences(wanted))
    database.execute("ALTER TABLE product RENAME title TO heading")
    assert told(db, declared(file, LITE + PRODUCT.replace("{title}", "{heading}"))) == []
    assert told(db, wanted) == [("alter", "embedding", "product.embedding", True)]


def test_all_or_nothing(db: pgembed.Pgembed, database: Connection, file: Path) -> None:
    wanted = declared(
        file, LITE + PRODUCT + PRODUCT.replace("product.embedding", "product.other").replace("title", "titel")
    )
    changes = db.differences(wanted)
    with pytest.raises(CatalogError, match="titel"):
        db.apply(wanted, changes)
    assert database.execute("SELECT count(*) FROM pgembed.encoder").fetchone() == (0,)
    wanted = declared(file, LITE + PRODUCT)
    changes = db.differences(wanted)
    db.add_encoder("lite", "builtin:lite")
    with pytest.raises(CatalogError, match="meanwhile"):
        db.apply(wanted, changes)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[encoders", "cannot be read"),
        ("encoder = 3", "unknown key 'encoder'"),
        ("encoders = 3", "encoders is 3, and no table"),
        ("[encoders]\nlite = 3", r"encoders\.lite is 3"),
        ("[encoders.lite]", "encoder lite has no spec"),
        ("[encoders.lite]\nspec = 'builtin:lite'\ndim = 3", "unknown key 'dim'"),
        ("[embeddings.product]\nencoder = 'lite'", r"product\.encoder is 'lite'"),
        ("[embeddings.product.e]\ntext = 'title'", r"product\.e has no encoder"),
        ("[embeddings.product.e]\nencoder = 'lite'", "no input"),
        ("[embeddings.product.e]\nencoder = 'lite'\ntext = 3", "not 3"),
        ("[embeddings.product.e]\nencoder = 'lite'\ntext = 'title'\nindex = 'yes'", "index of product.e is 'yes'"),
        ("[embeddings.product.e]\nencoder = 'lite'\ntext = 'title'\nindex = { m = 1.5 }", "index of product.e is"),
        ("[embeddings.product.e]\nencoder = 'lite'\ntext = 'title'\nmodus = 'x'", "unknown key 'modus'"),
    ],
)
def test_what_a_file_cannot_say(file: Path, text: str, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        declared(file, text)
    with pytest.raises(InvalidInput, match="There is no file"):
        read(file.parent / "other.toml")


def test_what_does_not_fit_the_database(db: pgembed.Pgembed, database: Connection, file: Path) -> None:
    with pytest.raises(CatalogError, match="There is no table thing"):
        db.differences(declared(file, LITE + PRODUCT.replace("product", "thing")))
    with pytest.raises(CatalogError, match="neither there nor declared"):
        db.differences(declared(file, PRODUCT))
    with pytest.raises(InvalidInput, match="declared twice"):
        db.differences(declared(file, LITE + PRODUCT + PRODUCT.replace("product", '"public.product"')))
    database.execute(
        "SELECT pgembed.add_encoder('lite', 'test:x', dim => 3, modalities => '{text}', fingerprint => 'x')"
    )
    with pytest.raises(CatalogError, match="registered as test:x, and declared as builtin:lite"):
        db.differences(declared(file, LITE))


class LongLines(Lines):
    """Lines, with an option."""

    @classmethod
    def load(cls, options: Mapping[str, Any]) -> Self:
        return super().load({name: one for name, one in options.items() if name != "size"})


def test_parts_are_a_splitter_or_a_table_of_its_options(
    db: pgembed.Pgembed, database: Connection, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "splitters", lambda: use_splitters(lines=LongLines))

    def standing() -> list[tuple[object, ...]]:
        return database.execute("SELECT parts, storage FROM pgembed.embedding").fetchall()

    wanted = declared(file, LITE + PRODUCT + 'parts = "lines"\nindex = true\n')
    db.apply(wanted, db.differences(wanted))
    assert standing() == [({"kind": "lines"}, "side")]
    assert told(db, wanted) == []
    assert told(db, declared(file, LITE + PRODUCT + 'parts = { kind = "lines" }\nindex = true\n')) == []
    database.execute("INSERT INTO product VALUES (1, E'a dog\\na cat')")
    db.work(until_idle=True)
    assert database.execute("SELECT count(*) FROM product_embedding").fetchone() == (2,)
    wanted = declared(file, LITE + PRODUCT + 'parts = { kind = "lines", size = 3 }\n')
    (change,) = db.differences(wanted)
    assert (change.action, change.kind, change.loses_vectors) == ("alter", "embedding", True)
    assert change.told == 'parts lines → {"kind": "lines", "size": 3}'
    db.apply(wanted, [change])
    assert standing() == [({"kind": "lines", "size": 3}, "side")]
    assert told(db, wanted) == []
    for given in ("3", "{ size = 3 }", "[]", "{ kind = 2026-01-01 }"):
        with pytest.raises(InvalidInput, match="parts is the name of a splitter, or a mapping with its kind, not"):
            declared(file, LITE + PRODUCT + f"parts = {given}\n")


def run(dsn: str, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pgembed.cli", *words],
        cwd=folder, env={**os.environ, "PGEMBED_DSN": dsn}, stdin=subprocess.DEVNULL,
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_the_page_and_the_exit_codes(db: pgembed.Pgembed, database_dsn: str, file: Path) -> None:
    page = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    blocks = dict(re.findall(r"^```(\w+)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL))
    file.write_text(blocks["toml"])
    assert blocks["bash"].split("\n")[:2] == ["pgembed plan", "pgembed apply"]
    planned = run(database_dsn, file.parent, "plan")
    assert planned.returncode == 3
    assert "+ embedding product.embedding" in planned.stdout
    applied = run(database_dsn, file.parent, "apply", "--json")
    assert applied.returncode == 0, applied.stderr
    assert [one["kind"] for one in json.loads(applied.stdout)] == ["encoder", "embedding", "index"]
    again = run(database_dsn, file.parent, "plan")
    assert (again.returncode, again.stdout) == (0, "Nothing differs from pgembed.toml.\n")
    file.write_text(blocks["toml"].replace("{title}", "{title}!"))
    refused = run(database_dsn, file.parent, "apply")
    assert refused.returncode == 1
    assert "The vectors of product.embedding would be lost" in refused.stderr
    assert run(database_dsn, file.parent, "apply", "--yes").returncode == 0
    assert run(database_dsn, file.parent, "plan", "--json").stdout.strip() == "[]"
