# SPDX-License-Identifier: LGPL-2.1-or-later
"""Plugins of other installed packages: the objects that their entry points name.

Each object has an ``interface``: the version of the interface that it is written for. An object that cannot
be imported, or is written for another version, is skipped with one line of warning. A process with root's
rights or capabilities loads no plugins (:mod:`kvintro.isolation`).
"""

from __future__ import annotations

import logging
import os
import sys
from functools import cache
from typing import Any, Dict, Iterator, Mapping, Sequence, Tuple

from kvintro import isolation
from kvintro.text import printable

#: Groups of entry points. The version of the interface is per group.
COMMANDS, REGIONS = "kvintro.commands", "kvintro.regions"
CHECKS, FORMATS = "kvintro.checks", "kvintro.formats"
INTERFACES = {COMMANDS: 1, REGIONS: 1, CHECKS: 1, FORMATS: 1}
#: Packages of plugins by name of the module.
_packages: Dict[str, str] = {}


@cache
def added(group: str, members: Tuple[str, ...], taken: Tuple[str, ...] = ()) -> Mapping[str, Any]:
    """Plugins of a group by name of the entry point.

    :param members: attributes that each object must have.
    :param taken: names that kvintro itself uses.
    """
    if isolation.may_more_than_its_user() or not any(_mentions(entry, group) for entry in sys.path):
        return {}
    found = {}
    for point, package in _entry_points(group):
        try:
            if point.name in taken or point.name in found:
                raise ValueError("the name is taken")
            found[point.name] = _checked(point.load(), INTERFACES[group], members)
            _packages[point.value.partition(":")[0].partition(".")[0]] = package
        except (Exception, SystemExit) as error:
            what = group.rpartition(".")[2].rstrip("s")
            why = printable(" ".join(str(error).split())) or type(error).__name__
            name = f"{what} {printable(point.name)} of {printable(package)}"
            logging.getLogger("kvintro").warning("kvintro: the %s is ignored: %s", name, why[:300])
    return found


def package_of(error: BaseException) -> str:
    """The plugin package whose code an exception passed through, "" if none."""
    trace = error.__traceback__
    while trace is not None:
        package = _packages.get(str(trace.tb_frame.f_globals.get("__name__")).partition(".")[0])
        if package is not None:
            return package
        trace = trace.tb_next
    return ""


def unforeseen(error: BaseException) -> str:
    """One line about an exception that is a bug. It names the plugin package if the bug is in one."""
    package = package_of(error)
    kind = f"error in {printable(package)}" if package else "internal error"
    return f"{kind}: {' '.join(repr(error).split())[:300]}"


def _checked(thing: Any, version: int, members: Sequence[str]) -> Any:
    written_for = getattr(thing, "interface", None)
    if written_for != version:
        raise ValueError(
            f"it is written for version {written_for} of the interface and kvintro has version {version}"
        )
    missing = [member for member in members if not hasattr(thing, member)]
    if missing:
        raise ValueError(f"it has no {', '.join(missing)}")
    return thing


def _mentions(directory: str, group: str) -> bool:
    """Whether a package in a directory has entry points of a group. Much faster than importlib.metadata."""
    try:
        with os.scandir(directory or ".") as entries:
            names = [entry.path for entry in entries if entry.name.endswith((".dist-info", ".egg-info"))]
    except OSError:
        return False
    for name in names:
        try:
            with open(os.path.join(name, "entry_points.txt"), "rb") as file:
                if group.encode() in file.read():
                    return True
        except OSError:
            continue
    return False


def _entry_points(group: str) -> Iterator[Tuple[Any, str]]:
    """Entry points of a group, each with its package's name."""
    from importlib.metadata import distributions

    seen = set()
    for package in distributions():
        name = package.metadata["Name"] or "an unnamed package"
        if name not in seen:  # the first one on the search path is imported
            seen.add(name)
            yield from ((point, name) for point in package.entry_points if point.group == group)
