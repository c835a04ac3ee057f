"""The examples, followed as their READMEs say, line by line."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pgembed.embedded import binaries

SHOP = Path(__file__).parents[2] / "examples" / "shop"
pytestmark = pytest.mark.slow


def test_shop_works_as_its_readme_says(bare_dsn: str, tmp_path: Path) -> None:
    shutil.copytree(SHOP, tmp_path / "shop")
    block = re.search(r"^```bash\n(.*?)^```$", (SHOP / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    assert block is not None
    export, *lines = block[1].splitlines()
    assert export.startswith("export PGEMBED_DSN=")
    programs = [str(Path(sys.executable).parent), os.environ["PATH"], str(binaries())]
    environment = {**os.environ, "PGEMBED_DSN": bare_dsn, "PATH": os.pathsep.join(programs), "PSQL_PAGER": "cat"}
    told: dict[str, str] = {}
    for line in lines:
        command = line.replace("psql ", "psql --set ON_ERROR_STOP=1 ")
        done = subprocess.run(
            ["bash", "-ec", command],
            cwd=tmp_path / "shop", env=environment, capture_output=True, text=True, check=False, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
        told[line.split()[-1]] = done.stdout
    assert told["search.sql"].count("(5 rows)") == 3
    assert "Neuschwanstein Castle" in told["search.sql"]
    assert len(re.findall(r"^  -?\d\.\d{3}  .+, \d+$", told["search.py"], re.MULTILINE)) == 15
    assert "data:image" in (tmp_path / "shop" / "castles.html").read_text()
