"""llumnix.core is pure: no clock, randomness, input or output, and no package but the standard library."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import llumnix.core

FOLDER = Path(llumnix.core.__file__).parent
PURE = {
    "__future__",
    "array",
    "bisect",
    "collections",
    "dataclasses",
    "enum",
    "functools",
    "hashlib",
    "heapq",
    "itertools",
    "math",
    "typing",
}
IMPURE_CALLS = {"open", "print", "input", "exec", "eval", "__import__", "hash", "id"}


def imported(tree: ast.AST) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add("." * node.level + (node.module or ""))
    return names


@pytest.mark.parametrize("path", sorted(FOLDER.glob("**/*.py")), ids=lambda path: path.name)
def test_a_core_module_imports_pure_modules_and_core_only(path: Path) -> None:
    tree = ast.parse(path.read_text())
    own = {name for name in imported(tree) if name == "llumnix.core" or name.startswith("llumnix.core.")}
    assert {name.split(".")[0] for name in imported(tree) - own} <= PURE
    called = {
        node.func.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    assert not called & IMPURE_CALLS


def test_importing_core_loads_no_engine_and_no_event_loop() -> None:
    modules = [f"llumnix.core.{path.stem}" for path in FOLDER.glob("*.py") if path.stem != "__init__"]
    code = f"import sys, importlib\nfor m in {modules}: importlib.import_module(m)\nprint(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=FOLDER.parents[1]
    ).stdout.split()
    assert "llumnix.core.scheduler" in loaded
    assert not set(loaded) & {
        "vllm",
        "torch",
        "ray",
        "asyncio",
        "logging",
        "pydantic",
        "msgspec",
        "zmq",
        "random",
    }
