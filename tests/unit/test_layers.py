# SPDX-License-Identifier: LGPL-2.1-or-later
"""Imports go one way only (docs/architecture.md), and regions and architectures are found by being there."""

from __future__ import annotations

import ast
import sys
from pathlib import Path
from types import ModuleType
from typing import Iterator, Set

import pytest

import kvintro

PACKAGE = Path(kvintro.__file__).parent

# Each room with its floor: a module imports from its own floor or from lower ones. A package may use its own
# modules.
FLOORS = {
    "bus_error": 0,
    "errors": 0,
    "isolation": 0,
    "model": 0,
    "text": 0,
    "arch": 1,
    "paging": 2,
    "source": 2,
    "types": 2,
    "kernel": 3,
    "readers": 3,
    "regions": 3,
    "queries": 4,
    "reports": 5,
    "render": 6,
    "commands": 7,
    "cli": 8,
    "output": 8,
    "pager": 8,
    "prompt": 8,
    "plugin": 8,
    "repl": 8,
    "streams": 8,
    "__main__": 9,
}
# The model and the renderers may not know of kernels at all.
NO_DRGN = {"bus_error", "errors", "model", "text", "arch", "paging", "render"}


def _room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def _imports(tree: ast.AST) -> Iterator[str]:
    """Modules imported at run time; what is imported for type checkers only does not count."""
    skipped: Set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            skipped.update(n for child in node.body for n in ast.walk(child))
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


MODULES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_down_only(path: Path) -> None:
    room = _room(path)
    if path == PACKAGE / "__init__.py":
        return
    assert room in FLOORS, f"{room} is on no floor; docs/architecture.md should say where it stands"
    for name in _imports(ast.parse(path.read_text())):
        parts = name.split(".")
        if parts[0] == "drgn" and room in NO_DRGN:
            pytest.fail(f"{path} imports drgn")
        if parts[0] == "kvintro" and len(parts) > 1:
            assert FLOORS[parts[1]] <= FLOORS[room], f"{path} imports {name} from above"


def test_only_the_doors_print() -> None:
    for path in MODULES:
        if _room(path) in {"cli", "repl", "plugin"}:
            continue
        calls = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)]
        assert not any(isinstance(c.func, ast.Name) and c.func.id == "print" for c in calls), path


def _drop_in(monkeypatch: pytest.MonkeyPatch, package: str, directory: Path, text: str) -> ModuleType:
    module = __import__(package, fromlist=["x"])
    (directory / "toy.py").write_text(text)
    monkeypatch.setattr(module, "__path__", [*module.__path__, str(directory)])
    monkeypatch.delitem(sys.modules, f"{package}.toy", raising=False)
    return module


def test_a_region_is_added_by_adding_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from kvintro.arch.x86_64 import ARCHITECTURE

    regions = _drop_in(
        monkeypatch,
        "kvintro.regions",
        tmp_path,
        "from kvintro.model import Absent\n"
        "from kvintro.regions import Region\n"
        "class Toy(Region):\n"
        "    key, name, macro = 'toy', 'toy', 'TOY_BASE'\n"
        "    def locate(self, kernel): return Absent('only a test has it')\n"
        "REGION = Toy()\n",
    )
    regions._modules.cache_clear()
    try:
        assert "toy" in [r.key for r in regions.regions_of(ARCHITECTURE)]
    finally:
        regions._modules.cache_clear()


def test_an_architecture_is_added_by_adding_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    arch = _drop_in(
        monkeypatch,
        "kvintro.arch",
        tmp_path,
        "class Toy:\n"
        "    name, drgn_name, elf_machine, machine, regions = 'toy', 'UNKNOWN', 9999, 'toy', ()\n"
        "ARCHITECTURE = Toy()\n",
    )
    assert arch.by_elf_machine(9999).name == "toy"
    assert arch.by_elf_machine(62).name == "x86-64"
