# SPDX-License-Identifier: LGPL-2.1-or-later
"""The running kernel's memory, against what its files in /proc say in the same moment.

Each file is read before and after. What changed in between cannot be compared with what was read from memory
meanwhile; the verdict is then unknown, and the rule is asked again (:func:`kvintro.queries.audit.audit`).
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from typing import Any, Callable, Dict, FrozenSet, List, Optional, Set, Tuple, TypeVar

from kvintro.errors import Unavailable
from kvintro.kernel import Kernel
from kvintro.model import Absent, Placement, Unknown
from kvintro.queries.audit.verdict import Finding, Tally, Verdict, not_applicable
from kvintro.readers.mapped import PAGE_NAMES
from kvintro.readers.memory import resources
from kvintro.readers.structures import Damage, need_types
from kvintro.regions import Asked
from kvintro.regions.vmalloc import Areas
from kvintro.source.privileges import open_kernel_file

T = TypeVar("T")

_KERNEL_HALF = 1 << 63
_PAGE_KB = {"4K": 4, "2M": 2048, "1G": 1 << 20}


def _read(path: str) -> List[str]:
    try:
        with open_kernel_file(path) as file:
            return file.read().decode("utf-8", "replace").splitlines()
    except OSError as error:
        raise Unavailable(f"{path}: {error.strerror}") from error


def _twice(path: str, parse: Callable[[List[str]], T], ours: Callable[[], T]) -> Tuple[T, T, T]:
    """(what the file says before, what memory says, what the file says after)."""
    return parse(_read(path)), ours(), parse(_read(path))


def _compared(
    path: str,
    parse: Callable[[List[str]], Set[Any]],
    ours: Callable[[], Set[Any]],
    tell: Callable[[Any], Tuple[Optional[int], Optional[int], str]],
) -> Verdict:
    """A file against what was read from memory, as sets of what can be compared."""
    before, found, after = _twice(path, parse, ours)
    if not before and not after and found:
        # Also a file that another is mounted over, as containers do.
        raise Unavailable(f"{path} is empty")
    tally = Tally()
    for entry in sorted((before & after) - found, key=str):
        start, end, text = tell(entry)
        tally.findings.append(Finding(start, end, f"{text} is in {path} only"))
    for entry in sorted(found - (before | after), key=str):
        start, end, text = tell(entry)
        tally.findings.append(Finding(start, end, f"{text} is not in {path}"))
    if before != after:
        count = len(before ^ after)
        tally.lacks(f"{path} changed while it was read: {count} entries came or went", changing=True)
    tally.compared(f"entries of {path}", len(before & after))
    return tally.verdict(f"{len(before & after)} entries")


def kcore(kernel: Kernel) -> Verdict:
    """fs/proc/kcore.c and arch/x86/mm/init_64.c register what is there by the kernel's own macros."""
    starts: FrozenSet[int] = frozenset(segment.vaddr for segment in kernel.source.segments)
    if not starts:
        raise Unavailable("/proc/kcore has no segments")
    tally = Tally("segments")
    for key in ("vmalloc", "modules", "kernel_image"):
        found = kernel.locate(key)
        if isinstance(found, Unknown):
            tally.lacks(f"{key}: {found.reason}")
        if not isinstance(found, Placement):
            continue
        if key == "kernel_image" and found.used is None:
            tally.lacks("where the image starts and ends is not known")
            continue
        where = found.used if key == "kernel_image" and found.used is not None else found.range
        tally.compared(key, 1)
        if where.start not in starts:
            what = f"no segment of /proc/kcore starts where {key} does"
            tally.findings.append(Finding(where.start, None, what))
    return tally.verdict()


def iomem(kernel: Kernel) -> Verdict:
    """``iomem_resource``, line by line."""

    def parse(lines: List[str]) -> Set[Tuple[int, int, int, str]]:
        out = set()
        for line in lines:
            match = re.match(r"( *)([0-9a-f]+)-([0-9a-f]+) : (.*)", line)
            if match:
                depth, start, end, name = match.groups()
                out.add((len(depth) // 2, int(start, 16), int(end, 16), name))
        if not any(end for _, _, end, _ in out):
            raise Unavailable("/proc/iomem does not show addresses to this user")
        return out

    def ours() -> Set[Tuple[int, int, int, str]]:
        need_types(kernel, "memory resources")
        damage = Damage()
        rows = resources(kernel, damage)
        if damage:
            raise Unavailable(damage.notes[0])
        # kernel/resource.c:r_show indents no further.
        return {(min(row.depth, 5), row.start, row.end, row.name) for row in rows if row.depth <= 5}

    return _compared("/proc/iomem", parse, ours, lambda entry: (entry[1], entry[2], f"physical, {entry[3]}"))


def modules(kernel: Kernel) -> Verdict:
    """Names, and where the text of each lies."""
    place = kernel.locate("modules")
    if isinstance(place, Absent):
        return not_applicable(place.reason)
    if isinstance(place, Unknown):
        raise Unavailable(place.reason)
    rows = _loaded(kernel)
    lines = _read("/proc/modules")
    if not rows and not lines:
        return not_applicable("no module is loaded")
    addresses = [int(words[5], 16) for words in map(str.split, lines) if len(words) > 5]
    hidden = not any(addresses)

    def parse(lines: List[str]) -> Set[Tuple[str, int]]:
        words = [line.split() for line in lines]
        live = [row for row in words if len(row) > 5 and row[4] == "Live"]
        return {(row[0], 0 if hidden else int(row[5], 16)) for row in live}

    def ours() -> Set[Tuple[str, int]]:
        return {(name, 0 if hidden else address) for name, address in _loaded(kernel)}

    verdict = _compared("/proc/modules", parse, ours, lambda entry: (entry[1] or None, None, entry[0]))
    return replace(verdict, looked=f"{verdict.looked}, by their names") if hidden else verdict


def _loaded(kernel: Kernel) -> Set[Tuple[str, int]]:
    """(name, address of its text) of each module that runs, from the kernel's list."""
    need_types(kernel, "modules")
    found = kernel.regions.modules.contents(kernel, Asked())
    if found.partial:
        raise Unavailable(found.notes[0])
    rows = next(table.rows for table in found.tables if table.key == "modules")
    return {(row.name, row.address or 0) for row in rows if row.state == "Live"}


def vmallocinfo(kernel: Kernel) -> Verdict:
    """Each area; where the file hides addresses (%p), how many there are of each size."""
    path = "/proc/vmallocinfo"

    def parse(lines: List[str]) -> List[Tuple[int, int, int]]:
        found = [re.match(r"0x([0-9a-f]+)-0x([0-9a-f]+) +(\d+)", line) for line in lines]
        return [(int(m[1], 16), int(m[2], 16), int(m[3])) for m in found if m]

    def ours() -> List[Tuple[int, int, int]]:
        need_types(kernel, "vmalloc areas")
        place = kernel.locate("vmalloc")
        if not isinstance(place, Placement):
            raise Unavailable(place.reason)
        damage = Damage()
        rows = Areas(kernel, place.range, damage).rows()
        if damage:
            raise Unavailable(damage.notes[0])
        return [(int(row.start), int(row.end) + 1, int(row.size)) for row in rows]

    lines = parse(_read(path))
    if not lines:
        raise Unavailable(f"{path} is empty")
    if any(start >= _KERNEL_HALF for start, _, _ in lines):
        return _compared(
            path,
            lambda lines: set(parse(lines)),
            lambda: set(ours()),
            lambda entry: (entry[0], entry[1] - 1, f"an area of {entry[2]} bytes"),
        )
    return _by_sizes(path, *(Counter(size for _, _, size in rows) for rows in _twice(path, parse, ours)))


def _by_sizes(path: str, before: Counter[int], found: Counter[int], after: Counter[int]) -> Verdict:
    """As many areas of each size; of a size that comes and goes, as many can have come as went."""
    tally = Tally()
    if before != after:
        tally.lacks(f"{path} changed while it was read", changing=True)
    else:
        tally.compared(f"areas of {path}", sum(before.values()))
        for size in sorted({*before, *found}):
            if found[size] != before[size]:
                what = f"{found[size]} areas of {size} bytes, {path} has {before[size]}"
                tally.findings.append(Finding(None, None, what))
    return tally.verdict(f"{sum(before.values())} areas, by their sizes: {path} hides addresses")


def meminfo(kernel: Kernel) -> Verdict:
    """DirectMap4k and so on: arch/x86/mm/pat/set_memory.c:arch_report_meminfo, against the page tables.

    The kernel counts some large pages twice while it boots, and blocks that it splits in the image, but none
    that it splits for a memory error; see :mod:`kvintro.regions.direct_map`.
    """

    def parse(lines: List[str]) -> Dict[str, int]:
        found = [re.match(r"DirectMap(4k|2M|1G): +(\d+) kB", line) for line in lines]
        return {m[1].upper(): int(m[2]) // _PAGE_KB[m[1].upper()] for m in found if m}

    def ours() -> Dict[str, int]:
        found = kernel.regions.direct_map.contents(kernel, Asked())
        if found.partial:
            raise Unavailable(found.notes[0] if found.notes else "the direct map could not be read whole")
        split = int(found.totals["blocks_split_in_image"]) - int(
            found.totals.get("blocks_split_by_hwpoison", 0)
        )
        more = {"4K": 512 * split, "2M": -split}
        return {
            name: int(found.totals[f"pages_of_{name}"]) + more.get(name, 0) for name in PAGE_NAMES.values()
        }

    before, found, after = _twice("/proc/meminfo", parse, ours)
    tally = Tally("pages")
    for name in PAGE_NAMES.values():
        if name not in before and name not in after:
            # DirectMap1G is there on processors that have such pages (arch_report_meminfo).
            if found[name]:
                tally.lacks(f"/proc/meminfo does not count pages of {name}")
        elif before.get(name) != after.get(name):
            tally.lacks(f"/proc/meminfo changed while it was read: pages of {name}", changing=True)
        else:
            tally.compared(name, before[name], may_be_empty=True)
            if before[name] < found[name] or (name == "4K" and before[name] != found[name]):
                what = (
                    f"/proc/meminfo counts {before[name]} pages of {name}, the page tables have {found[name]}"
                )
                tally.findings.append(Finding(None, None, what))
    return tally.verdict()
