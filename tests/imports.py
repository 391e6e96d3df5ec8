# SPDX-License-Identifier: LGPL-2.1-or-later
"""Imports between the modules of a package, read from the source in every form.

These forms are recognised: ``import a.b``, ``from a import b``, relative imports, the same within functions
and
under ``if TYPE_CHECKING``, and ``importlib.import_module("a.b")`` with a literal. Imports with a computed
name are not recognised; commands, regions and architectures are discovered in that way.
"""

from __future__ import annotations

import ast
import fnmatch
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, Iterator, List, Optional, Sequence, Set, Tuple

#: When an import happens: with its module, in a function call, or only for type checkers.
WHEN = ("module", "function", "types")


@dataclass(frozen=True)
class Import:
    """One import.

    :ivar target: a module of the package, or the dotted name of an outside module.
    :ivar line: its line in the importing file.
    :ivar when: one of :data:`WHEN`.
    :ivar found: False if the package has no module of that name.
    """

    target: str
    line: int
    when: str
    found: bool = True


class Package:
    """The imports of a package.

    :ivar modules: the file of each module, by dotted name.
    :ivar imports: what each module imports, by dotted name.
    """

    def __init__(self, directory: Path) -> None:
        self.name = directory.name
        self.modules: Dict[str, Path] = {}
        for path in sorted(directory.rglob("*.py")):
            parts = (self.name, *path.relative_to(directory).with_suffix("").parts)
            self.modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
        self.imports: Dict[str, List[Import]] = {
            name: list(self._imports(name, path)) for name, path in self.modules.items()
        }

    def _imports(self, module: str, path: Path) -> Iterator[Import]:
        for node, when in _nodes(ast.parse(path.read_text()), "module"):
            for name, line in self._names(module, path, node):
                inside = name.split(".")[0] == self.name
                if not inside or name in self.modules:
                    yield Import(name, line, when)
                else:
                    yield Import(name, line, when, found=False)

    def _names(self, module: str, path: Path, node: ast.AST) -> Iterator[Tuple[str, int]]:
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = self._absolute(module, path, node.module or "", node.level)
            for alias in node.names:
                below = f"{base}.{alias.name}"
                yield (below if below in self.modules else base), node.lineno
        elif isinstance(node, ast.Call):
            literal = _literal_import(node)
            if literal is not None:
                level = len(literal) - len(literal.lstrip("."))
                yield self._absolute(module, path, literal[level:], level), node.lineno

    @staticmethod
    def _absolute(module: str, path: Path, name: str, level: int) -> str:
        if not level:
            return name
        parts = module.split(".")
        if path.name != "__init__.py":
            level += 1
        base = parts[: len(parts) - (level - 1)]
        return ".".join([*base, name] if name else base)

    def edges(self, module: str) -> Set[str]:
        """Modules of the package that a module imports, whenever it does.

        Importing ``a.b.c`` runs ``a`` and ``a.b`` first, so these count too. Packages that contain the
        importing module do not count, because their import has already begun.
        """
        found = set()
        for imported in self.imports[module]:
            if imported.target in self.modules:
                found.add(imported.target)
                found |= {
                    parent
                    for parent in _parents(imported.target)
                    if parent != module and parent not in _parents(module)
                }
        return found - {module}

    def circles(self) -> List[List[str]]:
        """Groups of modules that import each other in a circle; imports for type checkers count."""
        edges = {module: self.edges(module) for module in self.modules}
        reach = {module: _reached(edges, module) for module in edges}
        groups = {
            tuple(sorted(other for other in reach[module] if module in reach[other]))
            for module in edges
            if module in reach[module]
        }
        return [list(group) for group in sorted(groups)]


def _nodes(node: ast.AST, when: str) -> Iterator[Tuple[ast.AST, str]]:
    """All nodes, each with when it is executed."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
            for part in child.body:
                yield part, "types"
                yield from _nodes(part, "types")
            for part in child.orelse:
                yield part, when
                yield from _nodes(part, when)
            continue
        inner = when
        if when != "types" and isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            inner = "function"
        yield child, when
        yield from _nodes(child, inner)


def _literal_import(call: ast.Call) -> Optional[str]:
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    if name not in ("import_module", "__import__") or not call.args:
        return None
    first = call.args[0]
    return first.value if isinstance(first, ast.Constant) and isinstance(first.value, str) else None


def _parents(module: str) -> List[str]:
    parts = module.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts))]


def _reached(edges: Dict[str, Set[str]], start: str) -> Set[str]:
    seen: Set[str] = set()
    left = list(edges[start])
    while left:
        module = left.pop()
        if module not in seen:
            seen.add(module)
            left.extend(edges[module])
    return seen


@dataclass(frozen=True)
class Layers:
    """The layers of a package, lowest first.

    :ivar layers: patterns of module names, without the package's own, for each layer. A pattern also names
        the modules below it; of several matching patterns, the longest one counts.
    :ivar lazy: pairs of patterns of modules, importing and imported: imports that are allowed within
    functions.
    """

    layers: Sequence[Sequence[str]]
    lazy: Sequence[Tuple[str, str]] = ()

    def level(self, module: str) -> Optional[int]:
        """The number of a module's layer; None if it is in none."""
        name = module.partition(".")[2]
        fitting = [
            (pattern.count("."), len(pattern), level)
            for level, patterns in enumerate(self.layers)
            for pattern in patterns
            if _fits(name, pattern)
        ]
        return max(fitting)[2] if fitting else None

    def problems(self, package: Package) -> List[str]:
        """Problems: imports of upper layers, of missing modules, or within functions without need."""
        found = []
        for module in package.modules:
            level = self.level(module)
            if module == package.name:
                continue  # it offers names of upper layers, and imports them on demand
            if level is None:
                found.append(f"{module} is in no layer")
                continue
            for imported in package.imports[module]:
                where = f"{module}:{imported.line}"
                if not imported.found:
                    found.append(f"{where} imports {imported.target}, which does not exist")
                    continue
                if imported.when == "function" and not self._may_be_lazy(module, imported.target):
                    found.append(f"{where} imports {imported.target} within a function")
            for target in package.edges(module):
                above = self.level(target)
                if target != package.name and above is not None and above > level:
                    found.append(f"{module} imports {target} from above")
        return found

    def _may_be_lazy(self, module: str, target: str) -> bool:
        return any(
            _fits(module.partition(".")[2], importing) and _fits(target, imported)
            for importing, imported in self.lazy
        )


def _fits(name: str, pattern: str) -> bool:
    return fnmatch.fnmatchcase(name, pattern) or fnmatch.fnmatchcase(name, f"{pattern}.*")
