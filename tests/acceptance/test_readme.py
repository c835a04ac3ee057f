"""The README, followed as a new user would: every code block of it is run, in order, in one database."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import psycopg
import pytest

from tests.psql import psql

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
HUB_MODEL = "open_clip:ViT-B-32/laion2b_s34b_b79k"  # its weights cannot be had offline: a model made here stands in
PICTURES = sorted((ROOT / "tests/data/photos").glob("*.jpg"))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder below which workers may read weights."""
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def stand_in(models: Path) -> str:
    """The arguments that register an open_clip model of random weights instead of one from the hub."""
    import open_clip
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(5)
    weights = models / "model.safetensors"
    save_file(open_clip.create_model("ViT-S-32-alt").state_dict(), weights)
    return f'open_clip:ViT-S-32-alt --settings \'{{"checkpoint": "{weights}"}}\''


def commands(block: str) -> list[list[str]]:
    lines = block.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def blocks() -> list[tuple[str, str]]:
    return BLOCK.findall(README)


def test_the_first_block_names_targets_of_the_makefile() -> None:
    makefile = (ROOT / "Makefile").read_text()
    kind, first = blocks()[0]
    assert kind == "bash"
    assert [words[0] for words in commands(first)] == ["make", "make"]
    for _, target in commands(first):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)


def test_what_it_says_to_install_is_what_this_project_is_called() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = re.findall(r'pip install "([\w-]+)\[(\w+)\]"', README)
    assert named
    for distribution, extra in named:
        assert distribution == project["name"]
        assert extra in project["optional-dependencies"]


def test_every_block_works_as_printed(database_dsn: str, tmp_path: Path, stand_in: str, models: Path) -> None:
    (tmp_path / "dress.jpg").write_bytes(PICTURES[0].read_bytes())
    environment = {**os.environ, "PGEMBED_DSN": database_dsn, "NO_COLOR": "1", "PGEMBED_MODEL_DIR": str(models)}
    ran = {"bash": 0, "sql": 0, "python": 0}
    with psycopg.connect(database_dsn, autocommit=True) as conn:
        for kind, block in blocks()[1:]:
            if kind == "bash":
                for words in commands(block.replace(HUB_MODEL, stand_in)):
                    if words[0] in ("pip", "export"):
                        continue
                    assert words[0] == "pgembed"
                    done = subprocess.run(
                        [sys.executable, "-m", "pgembed.cli", *words[1:]],
                        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=300,
                    )  # fmt: skip
                    assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout}\n{done.stderr}"
                    ran["bash"] += 1
            elif kind == "sql":
                (tmp_path / "block.sql").write_text(block)
                done = psql(database_dsn, tmp_path / "block.sql", "-v", "ON_ERROR_STOP=1")
                assert done.returncode == 0, done.stderr
                ran["sql"] += 1
                if "CREATE TABLE product" in block:
                    fill(conn)
            elif kind == "python":
                done = subprocess.run(
                    [sys.executable, "-c", block],
                    cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=300,
                )  # fmt: skip
                assert done.returncode == 0, done.stderr
                assert len(done.stdout.splitlines()) == 10
                ran["python"] += 1
            else:
                raise AssertionError(f"nothing runs a block of {kind}")
    assert ran["bash"] >= 8
    assert ran["sql"] >= 4
    assert ran["python"] >= 1
    assert (tmp_path / "found.html").stat().st_size > 10_000


def fill(conn: psycopg.Connection) -> None:
    with conn.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO product VALUES (%s, %s, %s, %s)",
            [(i, picture.stem, i, picture.read_bytes()) for i, picture in enumerate(PICTURES, start=1)],
        )
