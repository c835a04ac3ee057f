"""What docs/django.md says, done as printed, in a project of its own; and the example, as its README says."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import psycopg
from psycopg.conninfo import conninfo_to_dict

from tests.acceptance.test_models_page import side

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "django_shop"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
BLOCKS = BLOCK.findall((ROOT / "docs" / "django.md").read_text(encoding="utf-8"))
README = (ROOT / "README.md").read_text(encoding="utf-8")
DIFFS = [block for kind, block in BLOCK.findall(README) if kind == "diff" and "pgembed.django" in block]
MANAGE = """
import os, sys
os.environ["DJANGO_SETTINGS_MODULE"] = "settings"
from django.core.management import execute_from_command_line
execute_from_command_line(sys.argv)
"""
MORE = """
DATABASES = {{"default": {{"ENGINE": "django.db.backends.postgresql", **{database!r}}}}}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
SECRET_KEY = "page"
ROOT_URLCONF = "urls"
INSTALLED_APPS += ["django.contrib.admin", "django.contrib.messages"]
SILENCED_SYSTEM_CHECKS = ["admin.E403", "admin.E408", "admin.E409", "admin.E410"]  # of templates and middleware
"""
URLS = """
from django.urls import path
from shop.views import search
urlpatterns = [path("search", search)]
"""


class Project:
    """A folder with ``manage.py``."""

    def __init__(self, folder: Path, dsn: str) -> None:
        self.folder, self.dsn = folder, dsn

    def write(self, name: str, text: str) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def run(self, command: str, **environment: str) -> str:
        programs = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        paths = os.pathsep.join([str(self.folder), *sys.path])
        done = subprocess.run(
            ["bash", "-ec", command],
            cwd=self.folder, capture_output=True, text=True, check=False, timeout=300,
            env={**os.environ, "PATH": programs, "PYTHONPATH": paths, "PGEMBED_DSN": self.dsn, **environment},
        )  # fmt: skip
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done.stdout


def test_every_block_of_the_page(tmp_path: Path, bare_dsn: str, bare_database: psycopg.Connection) -> None:
    project = Project(tmp_path, bare_dsn)
    files = {block.splitlines()[0].removeprefix("# "): block for _, block in BLOCKS if block.startswith("# ")}
    assert set(files) == {"settings.py", "shop/models.py", "shop/views.py", "shop/tests.py", "shop/admin.py"}
    (commands,) = (block for kind, block in BLOCKS if kind == "bash")
    (asked,) = (block for kind, block in BLOCKS if kind == "python" and block not in files.values())
    files["settings.py"] += MORE.format(database=database_of(bare_dsn))
    for name, text in {**files, "manage.py": MANAGE, "urls.py": URLS, "shop/__init__.py": ""}.items():
        project.write(name, text)
    made, filled = commands.split("python manage.py embed_worker", 1)
    assert "Create model Product" in project.run(made)
    rows = "('a dog', 5), ('a red shoe', 6), ('a shoe', 90)"
    bare_database.execute(f"INSERT INTO shop_product (title, price) VALUES {rows}".encode())
    told = project.run(f"python manage.py embed_worker{filled}").splitlines()
    assert told[-1].split() == ["public.shop_product.embedding", "3", "3", "0", "0", "ready"]
    project.write("ask.py", asked)
    assert project.run("python manage.py shell -v 0 < ask.py").splitlines()[0].startswith("a red shoe")
    assert "SELECT pgembed.attach(" in project.run("python manage.py sqlmigrate shop 0001")
    project.run("python manage.py test -v 0")


def test_the_diffs_of_the_readme(tmp_path: Path, bare_dsn: str, bare_database: psycopg.Connection) -> None:
    model, installed = DIFFS
    project = Project(tmp_path, bare_dsn)
    more = MORE.format(database=database_of(bare_dsn)).replace("INSTALLED_APPS +=", "_ =")
    for name, text in {"manage.py": MANAGE, "urls.py": "urlpatterns = []", "shop/__init__.py": ""}.items():
        project.write(name, text)
    for mark in "-+":
        project.write("settings.py", side(installed, mark) + more)
        project.write("shop/models.py", side(model, mark))
        project.run("python manage.py makemigrations shop && python manage.py migrate")
        bare_database.execute("INSERT INTO shop_product (title) VALUES ('a dog'), ('a red shoe')")
    project.run("python manage.py embed_worker --until-idle")
    imports = "from shop.models import Product; from pgembed import Text; "
    asked = f"{imports}print(Product.objects.search(Text('a shoe'))[0].title)"
    assert project.run(f'python manage.py shell -v 0 -c "{asked}"').strip() == "a red shoe"


def database_of(dsn: str) -> dict[str, str]:
    """A database as Django's settings name it."""
    parts = conninfo_to_dict(dsn)
    return {key.upper(): str(parts[key]) for key in ("host", "port", "user")} | {"NAME": str(parts["dbname"])}


def test_the_example_works_as_its_readme_says(tmp_path: Path, bare_dsn: str) -> None:
    shutil.copytree(EXAMPLE, tmp_path / "shop", ignore=shutil.ignore_patterns("__pycache__"))
    block = re.search(r"^```bash\n(.*?)^```$", (EXAMPLE / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    assert block is not None
    export, *lines = block[1].splitlines()
    assert export.startswith("export PGEMBED_DSN=")
    project = Project(tmp_path / "shop", bare_dsn)
    told = {line.split()[2]: project.run(line) for line in lines if "runserver" not in line}
    assert "No changes detected" in project.run("python manage.py makemigrations --check")
    assert "60 rows encoded" in told["embed_worker"]
    assert '"Neuschwanstein Castle"' in told["find"]
