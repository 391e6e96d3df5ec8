# SPDX-License-Identifier: LGPL-2.1-or-later
"""Names of regions, processes and symbols, and suggestions for names that do not exist."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Dict, Iterable, List, Optional, Sequence

from kvintro.errors import Unavailable, UsageError
from kvintro.queries.placements import HOLE
from kvintro.readers.damage import Damage
from kvintro.readers.processes import processes
from kvintro.regions.explained import explanation, explanation_of
from kvintro.text import did_you_mean, printable

if TYPE_CHECKING:
    from kvintro.arch import Architecture
    from kvintro.kernels import Kernel, Region

_SIMILAR_LENGTH = 3  # maximum difference in length of a suggested symbol
_MOST_SYMBOLS = 5000  # maximum number of symbols to compare
_MOST_PIDS = 8  # maximum number of processes to list


def _plain(text: str) -> str:
    return text.lower().replace("-", "_").replace(" ", "_")


def region_names(regions: Sequence[Region], arch: Architecture) -> Dict[str, str]:
    """Keys of regions, and of unused ranges, by all their names: keys, titles, macros, other names."""
    found: Dict[str, str] = {}
    for region in regions:
        text = explanation_of(region, arch)
        for name in (region.name, region.macro, *(text.also if text else ())):
            found.setdefault(_plain(name), region.key)
    holes = explanation(HOLE, arch)
    for name in (HOLE, *(holes.also if holes else ())):
        found.setdefault(_plain(name), HOLE)
    found.update((region.key, region.key) for region in regions)
    return found


def region_key(regions: Sequence[Region], arch: Architecture, name: str) -> Optional[str]:
    """The key of the region with this name; None if there is none."""
    return region_names(regions, arch).get(_plain(name))


def no_region(regions: Sequence[Region], arch: Architecture, name: str, more: str = "") -> UsageError:
    """Return the error about a name that is not a region.

    :param more: what else could be given.
    """
    near = did_you_mean(_plain(name), region_names(regions, arch))
    keys = ", ".join((*(region.key for region in regions), HOLE)) if more else _keys(regions)
    return UsageError(f"there is no region {printable(name)}", f"{near}regions are {keys}{more}")


def _keys(regions: Sequence[Region]) -> str:
    return ", ".join(region.key for region in regions)


def region_named(kernel: Kernel, name: str) -> Region:
    """Look up a region by any of its names.

    :raises UsageError: there is no such region.
    """
    key = region_key(kernel.regions, kernel.arch, name)
    for region in kernel.regions:
        if region.key == key:
            return region
    raise no_region(kernel.regions, kernel.arch, name)


def pid_named(kernel: Kernel, name: str) -> int:
    """Look up the pid of a process by the name of its command.

    :raises UsageError: there is no such process, or more than one.
    :raises Unavailable: the source does not contain the processes.
    """
    damage = Damage()
    found: Dict[str, List[int]] = {}
    for process in processes(kernel, damage):
        found.setdefault(process.comm, []).append(process.pid)
    pids = found.get(name, [])
    if len(pids) == 1:
        return pids[0]
    if pids:
        listed = ", ".join(map(str, pids[:_MOST_PIDS])) + (" and others" if len(pids) > _MOST_PIDS else "")
        raise UsageError(f"{len(pids)} processes are called {printable(name)}", f"give a pid: {listed}")
    if damage:
        raise Unavailable(f"the list of processes is damaged: {damage.notes[0]}")
    near = did_you_mean(name, found)
    raise UsageError(
        f"there is no process {printable(name)}", f"{near}`kvintro user --all` lists those with user memory"
    )


def similar_symbols(kernel: Kernel, name: str) -> str:
    """Beginning of a remedy that suggests symbols similar to a missing one; empty if there are none."""
    near = islice((found for found in _symbols(kernel) if _is_near(found, name)), _MOST_SYMBOLS)
    return did_you_mean(name, near)


def _symbols(kernel: Kernel) -> Iterable[str]:
    return () if kernel.source.kallsyms is None else (symbol.name for symbol in kernel.source.kallsyms)


def _is_near(found: str, name: str) -> bool:
    return found[:1] == name[:1] and abs(len(found) - len(name)) <= _SIMILAR_LENGTH
