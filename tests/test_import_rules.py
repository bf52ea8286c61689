"""Folder rules that import-linter cannot state: core is pure Python, light modules load nothing heavy."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parent.parent
# Modules through which clocks, randomness, I/O, threads or logging would come in.
IMPURE = {
    *(
        "asyncio",
        "concurrent",
        "datetime",
        "http",
        "io",
        "logging",
        "multiprocessing",
        "os",
        "pathlib",
        "queue",
    ),
    *(
        "random",
        "sched",
        "secrets",
        "selectors",
        "shutil",
        "signal",
        "socket",
        "sqlite3",
        "ssl",
        "subprocess",
    ),
    *("tempfile", "threading", "time", "urllib", "uuid"),
}
# The type of a generator that is passed in may be named.
ALLOWED_NAMES = {("random", "Random")}
HEAVY = ("ray", "torch", "transformers", "vllm")


def imports_of(path: Path) -> Iterator[tuple[str, str]]:
    """(module, imported name or "") of every import statement, wherever it stands in the file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from ((node.module or "", alias.name) for alias in node.names)


@pytest.mark.parametrize("path", sorted((REPO / "llumnix/core").rglob("*.py")), ids=lambda path: path.stem)
def test_core_imports_only_itself_and_the_pure_standard_library(path: Path) -> None:
    for module, name in imports_of(path):
        if module == "llumnix.core" or module.startswith("llumnix.core.") or (module, name) in ALLOWED_NAMES:
            continue
        top = module.partition(".")[0]
        assert top in sys.stdlib_module_names and top not in IMPURE, f"{path.name} imports {module} {name}"


@pytest.mark.parametrize("path", sorted((REPO / "tui").rglob("*.py")), ids=lambda path: path.stem)
def test_terminal_interface_knows_only_the_schema(path: Path) -> None:
    for module, name in imports_of(path):
        if module.partition(".")[0] == "llumnix":
            assert module == "llumnix.admin.schema" or (module, name) == ("llumnix.admin", "schema")


@pytest.mark.parametrize(
    "module",
    [
        *("llumnix", "llumnix.core", "llumnix.config", "llumnix.errors", "llumnix.log", "llumnix.wire"),
        *("llumnix.cli", "llumnix.admin.schema", "llumnix_tui"),
    ],
)
def test_importing_a_light_module_loads_no_engine(module: str) -> None:
    code = f"import sys, {module}; print([name for name in {HEAVY} if name in sys.modules])"
    environment_path = [str(REPO), str(REPO / "tui")]
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {environment_path}; {code}"],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert done.stdout.strip() == "[]"
