"""The wheel, installed in an empty environment with no checkout beside it: install, attach, work, search."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import psycopg
import pytest

ROOT = Path(__file__).parents[2]
SHIPPED = {
    "pgembed/py.typed",
    "pgembed/django/templates/pgembed/change_list.html",
    "pgembed/migrations/env.py",
    "pgembed/migrations/versions/0001_catalog.py",
    "pgembed/encoders/lite/picture.onnx",
    "pgembed/encoders/lite/tokens.npy",
    "pgembed/encoders/lite/tokenizer.json",
    "pgembed/encoders/lite_composer/composer.onnx",
    "pgembed/encoders/lite_composer/manifest.json",
}
PROGRAM = """
import sys, pgembed
from pathlib import Path
from pgembed import Text
from pgembed.embedded import EmbeddedServer
db = pgembed.connect(sys.argv[1])
rows = db.search("product", Text("a red apple"), limit=1)
print(rows[0].title, Path(pgembed.__file__).parts[-3], EmbeddedServer.__name__)
"""


def run(*command: object, folder: Path, **environment: str) -> str:
    """Run a program in a folder without anything of the checkout in its environment; gives its output."""
    env = {
        key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "COVERAGE", "PG", "VIRTUAL"))
    }
    words = [str(word) for word in command]
    result = subprocess.run(words, cwd=folder, env=env | environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, f"{' '.join(words)}\n{result.stdout}\n{result.stderr}"
    return result.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout."""
    folder = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT]
    run(*build, folder=folder)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the programs of an empty environment in which only the wheel and what it needs are installed."""
    folder = tmp_path_factory.mktemp("empty")
    run(sys.executable, "-m", "venv", folder / "venv", folder=folder)
    programs = folder / "venv" / "bin"
    run(programs / "python", "-m", "pip", "install", "-qq", "--no-compile", f"{wheel}[embedded]", folder=folder)
    return programs


def test_wheel_holds_all_that_runs_without_a_checkout(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert names >= SHIPPED
    for folder, target in (("sql", "pgembed/sql"), ("migrations/versions", "pgembed/migrations/versions")):
        ours = {f"{target}/{path.name}" for path in (ROOT / folder).glob("*.[sp][qy]*") if path.is_file()}
        assert ours
        assert names >= ours
    assert any(name.startswith("pgembed/demo/data/") for name in names)


def test_wheel_holds_nothing_of_the_workshop(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"pgembed"}
    assert not [name for name in names if "__pycache__" in name or name.endswith(".pyc")]


def test_installed_wheel_installs_attaches_works_and_searches(environment: Path, bare_dsn: str, tmp_path: Path) -> None:
    def pgembed(*arguments: object) -> str:
        return run(environment / "pgembed", "--dsn", bare_dsn, *arguments, folder=tmp_path)

    with psycopg.connect(bare_dsn, autocommit=True) as conn:
        conn.execute("CREATE TABLE product (id integer PRIMARY KEY, title text NOT NULL)")
        titles = ["a red apple on a plate", "a dog in the snow", "a wooden chair", "a train at the station"]
        for number, title in enumerate(titles, start=1):
            conn.execute("INSERT INTO product VALUES (%s, %s)", [number, title])

    pgembed("install")
    pgembed("encoder", "add", "lite", "builtin:lite")
    pgembed("attach", "product", "embedding", "--encoder", "lite", "--text", "{title}")
    pgembed("worker", "--until-idle")

    found = json.loads(pgembed("search", "product", "puppy", "--limit", 2, "--json"))
    assert "dog" in str(found[0])
    assert run(environment / "python", "-c", PROGRAM, bare_dsn, folder=tmp_path).split(" on ")[0] == "a red apple"
    assert json.loads(pgembed("status", "--json"))

    pgembed("uninstall", "--detach-all")
    with psycopg.connect(bare_dsn) as conn:
        query = "SELECT array_agg(attname::text ORDER BY attnum) FROM pg_attribute WHERE attrelid = 'product'::regclass"
        columns = conn.execute(f"{query} AND attnum > 0 AND NOT attisdropped").fetchone()
    assert columns == (["id", "title"],)
