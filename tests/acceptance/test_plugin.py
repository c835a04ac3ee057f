"""The example package of an encoder of one's own: installed, found by its entry point, and used as its page says."""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "write-an-encoder.md").read_text(encoding="utf-8")
PROGRAM = """
import sys, pgembed
from pgembed_dna import search
with pgembed.connect(sys.argv[1]) as db:
    for row, identity in search(db, "gene", sys.argv[2], limit=3, candidates=20):
        print(row["name"], round(identity, 3))
"""

BY_WORDS = """
import sys, pgembed
with pgembed.connect(sys.argv[1]) as db:
    for row in db.search("gene", pgembed.Text(sys.argv[2])):
        print(row.name)
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the example is installed, as pip does it."""
    folder = tmp_path_factory.mktemp("plugin")
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--target", folder]
    subprocess.run([*pip, ROOT / "examples" / "dna"], check=True, capture_output=True)
    return folder


@pytest.fixture
def run(installed: Path, database_dsn: str):
    """Runs a program with the plugin installed; gives its output."""
    environment = {**os.environ, "PYTHONPATH": str(installed), "PGEMBED_DSN": database_dsn, "COLUMNS": "160"}

    def program(*words: object, status: int = 0) -> str:
        done = subprocess.run(
            [sys.executable, *map(str, words)], env=environment, capture_output=True, text=True, cwd=installed
        )
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout + done.stderr

    return program


def test_a_table_of_genes_is_searched_as_the_page_says(run, database: psycopg.Connection, database_dsn: str) -> None:
    rng = random.Random(0)
    genes = {f"gene {n}": "".join(rng.choices("ACGT", k=600)) for n in range(50)}
    database.execute(
        "CREATE TABLE gene (id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name text, sequence text)"
    )
    with database.cursor() as cursor:
        cursor.executemany("INSERT INTO gene (name, sequence) VALUES (%s, %s)", list(genes.items()))
    database.execute("INSERT INTO gene (name, sequence) VALUES ('no gene', 'hello')")
    commands = re.findall(r"^pgembed (.+)$", PAGE, re.MULTILINE)
    assert len(commands) == 4
    for command in commands:
        run("-m", "pgembed.cli", *command.split())
    written = database.execute("SELECT name FROM gene WHERE embedding IS NULL").fetchall()
    assert written == [("no gene",)]  # fails alone, and says why
    assert database.execute("SELECT error FROM pgembed.failures").fetchall() == [
        ("'hello' has no 4 letters of DNA in a row. Write A, C, G and T.",)
    ]

    copy = list(genes["gene 7"][100:500])
    for place in range(0, 400, 40):
        copy[place] = rng.choice("ACGT".replace(copy[place], ""))
    opposite = "".join(copy).translate(str.maketrans("ACGT", "TGCA"))[::-1]
    (best, *others) = run("-c", PROGRAM, database_dsn, opposite).splitlines()
    assert best == "gene 7 0.975"  # 10 of 400 letters differ
    assert all(float(line.split()[-1]) < 0.6 for line in others)


def test_the_exact_re_ranker_puts_right_what_k_mers_confuse(
    run, database: psycopg.Connection, database_dsn: str
) -> None:
    """A row that has the query's words in another order is as near by k-mers; aligned, it is not."""
    rng = random.Random(3)
    query = "".join(rng.choices("ACGT", k=240))
    blocks = [query[start : start + 12] for start in range(0, 240, 12)]
    rng.shuffle(blocks)
    mutated = "".join(
        rng.choice("ACGT".replace(letter, "")) if n % 12 == 5 else letter for n, letter in enumerate(query)
    )
    database.execute("CREATE TABLE gene (id integer PRIMARY KEY, name text, sequence text)")
    with database.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO gene VALUES (%s, %s, %s)", [(1, "shuffled", "".join(blocks)), (2, "mutated", mutated)]
        )
    for command in re.findall(r"^pgembed (.+)$", PAGE, re.MULTILINE):
        run("-m", "pgembed.cli", *command.split())
    assert run("-c", BY_WORDS, database_dsn, query).split() == ["shuffled", "mutated"]
    assert run("-c", PROGRAM, database_dsn, query).splitlines()[0] == "mutated 0.917"


def test_a_sequence_wrapped_over_lines_is_the_same_sequence(installed: Path) -> None:
    program = "import sys, pgembed_dna; print(pgembed_dna.identity(*sys.argv[1:]))"
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    target = "".join(random.Random(1).choices("ACGT", k=180))
    wrapped = "\n".join(target[start : start + 60] for start in range(0, 180, 60)) + "\r\n"
    for query, row in (
        (target[50:130], wrapped),
        (" " + "\t".join(re.findall(".{1,10}", target[50:130].lower())), target),
    ):
        done = subprocess.run(
            [sys.executable, "-c", program, query, row], env=environment, capture_output=True, text=True, check=True
        )
        assert float(done.stdout) == 1


def test_its_refusals_are_sentences(run) -> None:
    said = run("-m", "pgembed.cli", "encoder", "add", "x", "dna:k9", status=1)
    assert "There is no encoder 'dna:k9'" in said
    said = run("-m", "pgembed.cli", "encoder", "add", "x", "dna:k4", "--settings", '{"k": 4}', status=1)
    assert "'dna:k4' has no setting 'k'" in said


@pytest.mark.parametrize("block", re.findall(r"<!-- (\S+): .+? -->\n```\w+\n(.+?)```", PAGE, re.DOTALL))
def test_the_page_shows_the_package_as_it_is(block: tuple[str, str]) -> None:
    path, shown = block
    assert shown in (ROOT / path).read_text(encoding="utf-8")
