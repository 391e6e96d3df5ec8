# SPDX-License-Identifier: LGPL-2.1-or-later
"""Rules that compare the running kernel's memory with its files in /proc at the same moment.

Each file is read before and after. What changed in between cannot be compared with memory; the verdict is
then unknown, and the rule is applied again (:func:`kvintro.queries.audit.audit`).
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from typing import Any, Callable, FrozenSet, List, Optional, Sequence, Set, Tuple, TypeVar

from kvintro.arch import part
from kvintro.errors import Unavailable
from kvintro.kernels import Kernel
from kvintro.model import ALL, Absent, Asked, Unknown
from kvintro.queries.audit.verdict import Finding, Tally, Verdict, not_applicable
from kvintro.readers.damage import Damage
from kvintro.readers.memory import resources
from kvintro.readers.structures import need_types
from kvintro.regions.vmalloc import Areas
from kvintro.source.privileges import open_kernel_file

T = TypeVar("T")

_KERNEL_HALF = 1 << 63


def _read(path: str) -> List[str]:
    try:
        with open_kernel_file(path) as file:
            return file.read().decode("utf-8", "replace").splitlines()
    except OSError as error:
        raise Unavailable(f"{path}: {error.strerror}") from error


def twice(path: str, parse: Callable[[List[str]], T], ours: Callable[[], T]) -> Tuple[T, T, T]:
    """(parsed file before, the same from memory, parsed file after)."""
    return parse(_read(path)), ours(), parse(_read(path))


def _compared(
    path: str,
    parse: Callable[[List[str]], Set[Any]],
    ours: Callable[[], Set[Any]],
    tell: Callable[[Any], Tuple[Optional[int], Optional[int], str]],
) -> Verdict:
    """Compare a file with memory, as sets of comparable items."""
    before, found, after = twice(path, parse, ours)
    if not before and not after and found:
        # The file is also empty if another is mounted over it, as in containers.
        raise Unavailable(f"{path} is empty")
    tally = Tally()
    for entry in sorted((before & after) - found, key=str):
        start, end, text = tell(entry)
        tally.findings.append(Finding(start, end, f"{text} is only in {path}"))
    for entry in sorted(found - (before | after), key=str):
        start, end, text = tell(entry)
        tally.findings.append(Finding(start, end, f"{text} is not in {path}"))
    if before != after:
        count = len(before ^ after)
        tally.lacks(f"{path} changed while it was read: {count} entries came or went", changing=True)
    tally.compared(f"entries of {path}", len(before & after))
    return tally.verdict(f"{len(before & after)} entries")


#: An entry in /proc/kcore's list: its name, and the function that returns its start (None if absent).
KcoreStart = Tuple[str, Callable[[Kernel], Optional[int]]]


def start_of(key: str) -> Callable[[Kernel], Optional[int]]:
    """Return a function that gives the start of a region, or of the part of it that may be mapped."""

    def start(kernel: Kernel) -> Optional[int]:
        found = kernel.locate(key)
        if isinstance(found, Unknown):
            raise Unavailable(f"{key}: {found.reason}")
        if isinstance(found, Absent):
            return None
        region = next(region for region in kernel.regions if region.key == key)
        where = region.claimed(kernel, found)
        if where is None:
            raise Unavailable("the bounds of the image are not known")
        return where.start

    return start


def kcore(kernel: Kernel) -> Verdict:
    """fs/proc/kcore.c registers regions by the kernel's own macros, and RAM with its struct pages."""
    starts: FrozenSet[int] = frozenset(segment.vaddr for segment in kernel.source.segments)
    if not starts:
        raise Unavailable("/proc/kcore has no segments")
    expected: Sequence[KcoreStart] = part(kernel.arch, "checks").KCORE
    tally = Tally("segments")
    for name, first in expected:
        try:
            start = first(kernel)
        except Unavailable as error:
            tally.lacks(error.what)
            continue
        if start is None:
            continue
        tally.compared(name, 1)
        if start not in starts:
            tally.findings.append(Finding(start, None, f"no segment of /proc/kcore starts where {name} does"))
    _memory_map(kernel, starts, tally)
    return tally.verdict()


def _memory_map(kernel: Kernel, starts: FrozenSet[int], tally: Tally) -> None:
    """A segment starts at the struct page of each block of RAM (get_sparsemem_vmemmap_info)."""
    bits, window = kernel.facts.max_physmem_bits.value, kernel.facts.linear_window
    blocks = [s.paddr for s in kernel.source.segments if 0 < s.paddr < 1 << bits and s.vaddr in window]
    if not blocks:
        return
    try:
        base, size = kernel.facts.memory_map.value, kernel.page_struct_size.value
    except Unavailable as error:
        tally.lacks(error.what)
        return
    tally.compared("vmemmap", len(blocks))
    for physical in blocks:
        start = base + (physical >> kernel.page_shift) * size & -kernel.form.page_size & ALL
        if start not in starts:
            what = f"no segment of /proc/kcore starts at the struct page of physical {physical:#x}"
            tally.findings.append(Finding(start, None, what))


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
        # kernel/resource.c:r_show does not indent further.
        return {(min(row.depth, 5), row.start, row.end, row.name) for row in rows if row.depth <= 5}

    return _compared("/proc/iomem", parse, ours, lambda entry: (entry[1], entry[2], f"physical, {entry[3]}"))


def modules(kernel: Kernel) -> Verdict:
    """Compare the names of modules and the addresses of their text."""
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
    """(name, address of its text) of each live module in the kernel's list."""
    need_types(kernel, "modules")
    found = kernel.regions.modules.contents(kernel, Asked())
    if found.partial:
        raise Unavailable(found.notes[0])
    rows = next(table.rows for table in found.tables if table.key == "modules")
    return {(row.name, row.address or 0) for row in rows if row.state == "Live"}


def vmallocinfo(kernel: Kernel) -> Verdict:
    """Compare areas; if the file hides addresses (%p), compare the number of areas of each size."""
    path = "/proc/vmallocinfo"

    def parse(lines: List[str]) -> List[Tuple[int, int, int]]:
        found = [re.match(r"0x([0-9a-f]+)-0x([0-9a-f]+) +(\d+)", line) for line in lines]
        return [(int(m[1], 16), int(m[2], 16), int(m[3])) for m in found if m]

    def ours() -> List[Tuple[int, int, int]]:
        need_types(kernel, "vmalloc areas")
        place = kernel.place("vmalloc")
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
    return _by_sizes(path, *(Counter(size for _, _, size in rows) for rows in twice(path, parse, ours)))


def _by_sizes(path: str, before: Counter[int], found: Counter[int], after: Counter[int]) -> Verdict:
    """Compare numbers of areas by size. For a size whose areas come and go, as many can have come as went."""
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
