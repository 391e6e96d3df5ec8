# SPDX-License-Identifier: LGPL-2.1-or-later
"""Imports go one way only (docs/architecture.md), and regions and architectures are found by their files."""

from __future__ import annotations

import ast
import sys
from pathlib import Path
from types import ModuleType
from typing import Dict, Iterator, Tuple

import pytest

import kvintro
from kvintro.regions import regions_of
from tests.imports import Layers, Package

PACKAGE = Path(kvintro.__file__).parent

# Lowest first. A module imports from its own layer and from those before it.
LAYERS = (
    ("version", "errors", "bus_error", "isolation", "text", "model", "entry_points"),
    ("arch",),
    ("paging",),
    ("source", "types", "installation"),
    (
        *("kernels", "swap_types", "arch.facts"),
        *("arch.*.facts", "arch.*.places", "arch.*.nameless", "arch.*.zero_page"),
    ),
    ("readers", "arch.*.boot_params", "arch.*.kaslr"),
    ("regions", "arch.*.regions"),
    ("opening",),
    ("queries", "arch.*.ptdump", "arch.*.checks", "arch.*.roots"),
    ("convert",),
    ("reports",),
    ("render",),
    ("survey",),
    ("commands",),
    ("parser",),
    ("streams", "output", "pager"),
    ("delivery",),
    ("answers",),
    ("methods",),
    ("extensions",),
    ("prompt",),
    ("plugin",),
    ("repl",),
    ("browse",),
    ("cli",),
    ("__main__",),
)
# Imports within functions are for start-up time only: a command must not load modules that only another one
# needs.
LAZY = (
    # Libraries that are slow to import, and optional ones.
    *(("*", name) for name in ("numpy", "tqdm", "ctypes", "unicodedata", "pwd", "drgn", "hashlib")),
    ("entry_points", "importlib.metadata"),
    ("convert", "zstandard"),
    ("source", "tarfile"),
    ("installation", "importlib.metadata"),
    ("installation", "drgn.cli"),
    *(("source", name) for name in ("cramjam", "snappy", "zstandard", "lz4.frame", "lz4.block")),
    # A command loads its report when it runs; --help and completion load all commands.
    ("commands", "*"),
    # drgn imports the plug-in whenever it opens a program.
    ("plugin", "*"),
    # --version and usage errors load no kernel.
    *(("cli", f"kvintro.{name}") for name in ("opening", "source", "repl", "browse")),
    # Textual is optional.
    ("browse.start", "kvintro.browse"),
    # The map must appear soon; physical memory is shown later.
    ("browse.session", "kvintro.reports.pages"),
    # A renderer is loaded for its format, a source for its kind, a report's sections for the report.
    ("render", "kvintro.render"),
    *(("survey", name) for name in ("pyarrow", "pyarrow.parquet", "distributed")),
    # A kernel has one architecture.
    ("arch.*", "kvintro.arch.*.address_space"),
    # Only mistakes need it.
    ("text", "difflib"),
    ("source", "kvintro.source"),
    ("reports", "kvintro.reports"),
)
# Layers that do not import drgn.
NO_DRGN = ("errors", "model", "text", "version", "bus_error", "arch", "paging", "render")


@pytest.fixture(scope="module")
def package() -> Package:
    return Package(PACKAGE)


def test_imports_go_down_only(package: Package) -> None:
    assert Layers(LAYERS, LAZY).problems(package) == []


def test_no_module_imports_itself_through_others(package: Package) -> None:
    assert package.circles() == []


def test_lower_layers_do_not_know_drgn(package: Package) -> None:
    layers = Layers(LAYERS)
    below = {layers.level(f"kvintro.{name}") for name in NO_DRGN}
    for module, imports in package.imports.items():
        if layers.level(module) in below and module != "kvintro":
            assert not [i for i in imports if i.target.split(".")[0] == "drgn"], module


def test_only_entry_points_print(package: Package) -> None:
    for module, path in package.modules.items():
        if module in {"kvintro.cli", "kvintro.repl", "kvintro.plugin"}:
            continue
        calls = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)]
        assert not any(isinstance(c.func, ast.Name) and c.func.id == "print" for c in calls), path


# The checker itself


def _package(tmp_path: Path, files: Dict[str, str]) -> Package:
    for name, text in {"__init__.py": "", **files}.items():
        path = tmp_path / "toy" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return Package(tmp_path / "toy")


@pytest.mark.parametrize(
    "text",
    [
        "import toy.high",
        "import os, toy.high as h",
        "from toy import high",
        "from toy.high import name",
        "from . import high",
        "from .high import name",
        "def f():\n    import toy.high",
        "def f():\n    from toy import high",
        "class C:\n    def f(self):\n        from toy.high import name",
        "async def f():\n    if f:\n        import toy.high",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from toy.high import name",
        "import typing\nif typing.TYPE_CHECKING:\n    import toy.high",
        "if TYPE_CHECKING:\n    pass\nelse:\n    import toy.high",
        "import importlib\nimportlib.import_module('toy.high')",
        "from importlib import import_module\ndef f(): return import_module('toy.high').name",
        "import importlib\nimportlib.import_module('.high', __package__)",
        "__import__('toy.high')",
        "from toy.high.below import name",
    ],
)
def test_each_form_of_import_is_seen(tmp_path: Path, text: str) -> None:
    package = _package(
        tmp_path, {"low.py": text, "high/__init__.py": "name = 1", "high/below.py": "name = 1"}
    )
    layers = (("low",), ("high",))
    assert "toy.low imports toy.high from above" in Layers(layers, [("*", "*")]).problems(package)
    turned = Layers(layers[::-1], [("*", "*")])
    assert turned.problems(package) == []
    assert package.circles() == []
    (tmp_path / "toy/high/below.py").write_text("import toy.low")
    (tmp_path / "toy/high/__init__.py").write_text("from toy.high.below import name")
    circle = next(iter(Package(tmp_path / "toy").circles()))
    assert {"toy.low", "toy.high"} <= set(circle)


def test_a_package_that_is_run_on_the_way_counts(tmp_path: Path) -> None:
    files = {"low.py": "import toy.some.values", "some/__init__.py": "import toy.low", "some/values.py": ""}
    assert _package(tmp_path, files).circles() == [["toy.low", "toy.some"]]


def test_siblings_in_a_package_are_no_circle(tmp_path: Path) -> None:
    files = {"some/__init__.py": "from toy.some.a import x", "some/a.py": "from toy.some.b import x"}
    assert _package(tmp_path, {**files, "some/b.py": "x = 1"}).circles() == []
    assert _package(tmp_path, {**files, "some/b.py": "from toy.some import x"}).circles() == [
        ["toy.some", "toy.some.a", "toy.some.b"]
    ]


def test_modules_of_one_package_may_be_in_several_layers(tmp_path: Path) -> None:
    files = {"arch/__init__.py": "", "arch/toy/__init__.py": "", "kernel.py": "import toy.arch.toy.entries"}
    files |= {"arch/toy/entries.py": "", "arch/toy/regions.py": "import toy.kernel"}
    layers = Layers((("arch",), ("kernel",), ("arch.*.regions",)))
    assert layers.problems(_package(tmp_path, files)) == []
    files["arch/toy/entries.py"] = "import toy.kernel"
    assert layers.problems(_package(tmp_path, files)) == [
        "toy.arch.toy.entries imports toy.kernel from above"
    ]


def test_what_else_is_a_problem(tmp_path: Path) -> None:
    files = {"a.py": "def f():\n    import json\n    import toy.b", "b.py": "import toy.gone", "c.py": ""}
    problems = Layers((("b",), ("a",)), [("a", "json")]).problems(_package(tmp_path, files))
    assert problems == [
        "toy.a:3 imports toy.b within a function",
        "toy.b:1 imports toy.gone, which does not exist",
        "toy.c is in no layer",
    ]


# Modules that are found by their files


def _drop_in(
    monkeypatch: pytest.MonkeyPatch, package: str, directory: Path, file: str, text: str
) -> ModuleType:
    module = __import__(package, fromlist=["x"])
    (directory / file).parent.mkdir(exist_ok=True)
    (directory / file).write_text(text)
    monkeypatch.setattr(module, "__path__", [*module.__path__, str(directory)])
    monkeypatch.delitem(sys.modules, f"{package}.toy", raising=False)
    return module


def test_a_region_is_added_by_adding_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from kvintro.arch.x86_64 import ARCHITECTURE

    text = (
        "from kvintro.model import Absent\n"
        "from kvintro.regions import Region\n"
        "class Toy(Region):\n"
        "    key, name, macro = 'toy', 'toy', 'TOY_BASE'\n"
        "    def locate(self, kernel): return Absent('only a test has it')\n"
        "REGION = Toy()\n"
    )
    regions = _drop_in(monkeypatch, "kvintro.regions", tmp_path, "toy.py", text)
    regions._modules.cache_clear()
    try:
        assert "toy" in [r.key for r in regions.regions_of(ARCHITECTURE)]
    finally:
        regions._modules.cache_clear()


def test_an_architecture_is_added_by_adding_a_package(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    text = (
        "class Toy:\n"
        "    name, package, drgn_name, elf_machine, machine = 'toy', __name__, 'UNKNOWN', 9999, 'toy'\n"
        "ARCHITECTURE = Toy()\n"
    )
    arch = _drop_in(monkeypatch, "kvintro.arch", tmp_path, "toy/__init__.py", text)
    assert arch.by_elf_machine(9999).name == "toy"
    assert arch.by_elf_machine(62).name == "x86-64"
    keys = {region.key for region in regions_of(arch.by_elf_machine(9999))}
    assert "vmalloc" in keys and "espfix" not in keys


def _functions(path: Path) -> Iterator[Tuple[str, int]]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            documented = ast.get_docstring(node) is not None
            first = node.body[1] if documented and len(node.body) > 1 else node.body[0]
            yield node.name, (node.end_lineno or 0) - first.lineno + 1


def test_no_function_is_long() -> None:
    """60 lines of body are as much as a reader can take in at once."""
    root = PACKAGE.parent
    parts = (PACKAGE, *(root / name for name in ("tests", "tools", "vmcores/lab", "examples")))
    files = [path for part in parts for path in part.rglob("*.py")]
    assert len(files) > 300
    assert not [
        f"{path.relative_to(root)}: {name} has {length} lines"
        for path in files
        for name, length in _functions(path)
        if length > 60
    ]
