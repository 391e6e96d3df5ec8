# SPDX-License-Identifier: LGPL-2.1-or-later
"""The running kernel's memory, against what its files in /proc say in the same moment.

Each file is read before and after, and only what is in both, or in none of both, is held against what was
read in between.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import Any, Callable, Dict, FrozenSet, List, Optional, Set, Tuple

from kvintro.errors import Unavailable
from kvintro.kernel import Kernel
from kvintro.model import Placement
from kvintro.queries.audit.verdict import Finding, Verdict, conclude
from kvintro.readers.mapped import PAGE_NAMES
from kvintro.readers.memory import resources
from kvintro.readers.structures import Damage, need_types
from kvintro.regions import Asked
from kvintro.regions.vmalloc import Areas
from kvintro.source.privileges import open_kernel_file

_KERNEL_HALF = 1 << 63
_PAGE_KB = {"4K": 4, "2M": 2048, "1G": 1 << 20}


def _read(path: str) -> List[str]:
    try:
        with open_kernel_file(path) as file:
            return file.read().decode("utf-8", "replace").splitlines()
    except OSError as error:
        raise Unavailable(f"{path}: {error.strerror}") from error


def _compared(
    path: str,
    parse: Callable[[List[str]], Set[Any]],
    ours: Callable[[], Set[Any]],
    tell: Callable[[Any], Tuple[Optional[int], Optional[int], str]],
) -> Verdict:
    """A file against what was read from memory, as sets of what can be compared."""
    before = parse(_read(path))
    found = ours()
    after = parse(_read(path))
    findings = []
    for entry in sorted((before & after) - found, key=str):
        start, end, text = tell(entry)
        findings.append(Finding(start, end, f"{text} is in {path} only"))
    for entry in sorted(found - (before | after), key=str):
        start, end, text = tell(entry)
        findings.append(Finding(start, end, f"{text} is not in {path}"))
    return conclude(findings, "", f"{len(before & after)} entries")


def kcore(kernel: Kernel) -> Verdict:
    """fs/proc/kcore.c and arch/x86/mm/init_64.c register what is there by the kernel's own macros."""
    starts: FrozenSet[int] = frozenset(segment.vaddr for segment in kernel.source.segments)
    findings: List[Finding] = []
    for key in ("vmalloc", "modules", "kernel_image"):
        found = kernel.locate(key)
        if not isinstance(found, Placement):
            continue
        where = found.used if key == "kernel_image" and found.used is not None else found.range
        if where.start not in starts:
            findings.append(Finding(where.start, None, f"no segment of /proc/kcore starts where {key} does"))
    return conclude(findings, "", f"{len(starts)} segments")


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
    hidden = False

    def parse(lines: List[str]) -> Set[Tuple[str, int]]:
        nonlocal hidden
        rows = [line.split() for line in lines]
        out = {(row[0], int(row[5], 16)) for row in rows if len(row) > 5 and row[4] == "Live"}
        hidden = bool(out) and not any(address for _, address in out)
        return {(name, 0 if hidden else address) for name, address in out}

    def ours() -> Set[Tuple[str, int]]:
        need_types(kernel, "modules")
        region = next(r for r in kernel.regions if r.key == "modules")
        if not isinstance(kernel.locate(region), Placement):
            return set()
        found = region.contents(kernel, Asked())
        if found.partial:
            raise Unavailable(found.notes[0])
        rows = next(table.rows for table in found.tables if table.key == "modules")
        return {(row.name, 0 if hidden else row.address or 0) for row in rows if row.state == "Live"}

    return _compared("/proc/modules", parse, ours, lambda entry: (entry[1] or None, None, entry[0]))


def vmallocinfo(kernel: Kernel) -> Verdict:
    """Each area; where the file hides addresses (%p), how many there are of each size."""
    path = "/proc/vmallocinfo"

    def lines() -> List[Tuple[int, int, int]]:
        found = [re.match(r"0x([0-9a-f]+)-0x([0-9a-f]+) +(\d+)", line) for line in _read(path)]
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

    if any(start >= _KERNEL_HALF for start, _, _ in lines()):
        return _compared(
            path,
            lambda _: set(lines()),
            lambda: set(ours()),
            lambda entry: (entry[0], entry[1] - 1, f"an area of {entry[2]} bytes"),
        )
    before = Counter(size for _, _, size in lines())
    found = Counter(size for _, _, size in ours())
    after = Counter(size for _, _, size in lines())
    findings = []
    for size in sorted({*before, *found, *after}):
        low, high = sorted((before[size], after[size]))
        # Where areas come and go, as many can have come as went.
        if before == after and not low <= found[size] <= high:
            findings.append(Finding(None, None, f"{found[size]} areas of {size} bytes, {path} has {low}"))
    return conclude(findings, "", f"{sum(before.values())} areas, by their sizes: {path} hides addresses")


def meminfo(kernel: Kernel) -> Verdict:
    """DirectMap4k and so on: arch/x86/mm/pat/set_memory.c:arch_report_meminfo, against the page tables.

    The kernel counts some large pages twice while it boots, and blocks that it splits in the image, but none
    that it splits for a memory error; see :mod:`kvintro.regions.direct_map`.
    """

    def counts() -> Dict[str, int]:
        out = {}
        for line in _read("/proc/meminfo"):
            match = re.match(r"DirectMap(4k|2M|1G): +(\d+) kB", line)
            if match:
                name = match[1].upper()
                out[name] = int(match[2]) // _PAGE_KB[name]
        return out

    before = counts()
    region = next(r for r in kernel.regions if r.key == "direct_map")
    totals = region.contents(kernel, Asked()).totals
    after = counts()
    findings = []
    split = int(totals.get("blocks_split_in_image", 0)) - int(totals.get("blocks_split_by_hwpoison", 0))
    for name in PAGE_NAMES.values():
        if name not in before or before[name] != after.get(name):
            continue
        expected = int(totals[f"pages_of_{name}"]) + {"4K": 512 * split, "2M": -split}.get(name, 0)
        if before[name] < expected or (name == "4K" and before[name] != expected):
            what = f"/proc/meminfo counts {before[name]} pages of {name}, the page tables have {expected}"
            findings.append(Finding(None, None, what))
    return conclude(findings, "", ", ".join(f"{name}: {count}" for name, count in before.items()))
