"""The shape of the package: imports go one way, nothing heavy is loaded before it is needed, modules stay small."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "pgembed"
MAX_LINES = 500

# From the bottom up: a module imports from its own layer and those before it, never from a later one.
LAYERS = (
    {"errors", "_distribution"},
    {"shown"},
    {"inputs", "embedded", "media_errors", "fusing"},
    {"algebra", "regions", "vectors", "static_text", "buckets", "decoding", "download", "metering"},
    {"documents"},
    {"media", "encoders", "query", "rerank"},
    {"parts"},
    {"composers"},
    {
        "asked",
        "catalog",
        "compatibility",
        "composing",
        "configuration",
        "connections",
        "declared",
        "distilling",
        "estimate",
        "hybrid",
        "indexing",
        "plans",
        "pooling",
        "rounds",
        "building",
        "calibration",
        "explaining",
        "input_shares",
        "sampling",
        "schema",
        "searching",
        "statements",
        "static_sides",
        "told",
        "view_scores",
        "views",
        "worker",
    },
    {"client"},
    {"client_async"},
    {"sqlalchemy", "django", "alembic", "contact_sheet", "contact_sheet_png"},
    {"demo", "web", "evaluate"},
    {"cli"},
)
INTEGRATIONS = {"sqlalchemy": "sqlalchemy", "django": "django", "alembic": "alembic"}
HEAVY = {
    "torch", "open_clip", "onnxruntime", "tokenizers", "transformers", "sentence_transformers", "alembic", "sqlalchemy",
    "django", "typer", "fsspec", "pypdfium2", "rapidocr", "cv2",
}  # fmt: skip


@dataclass(frozen=True)
class Import:
    """Module ``source`` imports ``target`` (both without the package's name); for the type checker only, or really."""

    source: str
    target: str
    line: int
    typing_only: bool


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imports_of(name: str) -> list[Import]:
    tree = ast.parse(MODULES[name].read_text(encoding="utf-8"))
    guarded = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    found: list[Import] = []
    for node in ast.walk(tree):
        typing_only = id(node) in guarded
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} imports relatively in line {node.lineno}: write the whole name"
            module = node.module or ""
            targets = [
                f"{module}.{alias.name}" if is_module(f"{module}.{alias.name}") else module for alias in node.names
            ]
        else:
            continue
        ours = {target for target in targets if target == "pgembed" or target.startswith("pgembed.")}
        found += [Import(name, target[len("pgembed.") :], node.lineno, typing_only) for target in sorted(ours)]
    return found


def is_module(dotted: str) -> bool:
    return dotted.removeprefix("pgembed.") in MODULES


def layer_of(name: str) -> int:
    first = name.split(".")[0]
    for number, layer in enumerate(LAYERS):
        if first in layer:
            return number
    raise AssertionError(f"pgembed.{name} stands in no layer: give it one in LAYERS, as low as its imports allow")


ALL_IMPORTS = [found for name in MODULES for found in imports_of(name)]


def test_every_module_stands_in_a_layer() -> None:
    for name in MODULES:
        if name:
            layer_of(name)


def test_no_module_imports_from_a_higher_layer() -> None:
    upward = [
        f"pgembed.{found.source}:{found.line} imports pgembed.{found.target}"
        for found in ALL_IMPORTS
        if found.source and layer_of(found.target or "cli") > layer_of(found.source)
    ]
    assert upward == []


def test_no_import_circle() -> None:
    graph: dict[str, set[str]] = {name: set() for name in MODULES}
    for found in ALL_IMPORTS:
        if not found.typing_only and found.source != found.target:
            graph[found.source].add(found.target)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail("circle: " + " <- ".join(f"pgembed.{name}" for name in error.args[1]))


def test_no_integration_imports_another() -> None:
    across = [
        found
        for found in ALL_IMPORTS
        if found.source in INTEGRATIONS and found.target in INTEGRATIONS and found.source != found.target
    ]
    assert across == []


def test_import_of_pgembed_loads_nothing_heavy() -> None:
    program = f"import sys, pgembed; print(*sorted(set(sys.modules) & {HEAVY!r}))"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert loaded.stdout.split() == []


@pytest.mark.parametrize("name", sorted(MODULES), ids=lambda name: name or "pgembed")
def test_module_is_short_or_says_why_not(name: str) -> None:
    text = MODULES[name].read_text(encoding="utf-8")
    lines = text.count("\n")
    reason = re.search(r"\blong because\b", (ast.get_docstring(ast.parse(text)) or ""), re.IGNORECASE)
    assert lines <= MAX_LINES or reason, (
        f"{lines} lines: split it, or say in its docstring that it is 'long because ...'"
    )
