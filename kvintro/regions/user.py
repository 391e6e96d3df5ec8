# SPDX-License-Identifier: LGPL-2.1-or-later
"""User space: the half of the address space that each process has for itself."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Callable, Dict, List, Mapping, Optional, Sequence, Tuple

from kvintro.arch.form import ENTRY_SIZE
from kvintro.arch.rights import USER_EXEC, WRITE
from kvintro.kernels import Trait
from kvintro.model import Address, Asked, Column, Contents, Located, Root, Size, Table
from kvintro.paging import (
    LEVEL_MASK,
    LEVEL_SHIFT,
    MAPPED,
    NONZERO,
    OVER_LIMIT,
    UNREADABLE,
    Ranges,
)
from kvintro.readers.damage import Damage
from kvintro.readers.index_trees import xarray_entries
from kvintro.readers.mapped import View
from kvintro.readers.processes import (
    Memory,
    Process,
    each_mm,
    find_process,
    forests,
    memory_of,
    mm_of,
    user_tree,
)
from kvintro.readers.structures import TROUBLE, is_operations, number, offset_of, struct_at
from kvintro.readers.vmas import VM_EXEC, VM_MAYSHARE, VM_READ, VM_WRITE, Vma, vmas_of
from kvintro.regions import Region, fixed_place

if TYPE_CHECKING:
    from kvintro.arch.entry import EntryFormat, UserRange
    from kvintro.kernels import Kernel


@dataclass(frozen=True)
class VmaRow:
    """A memory area as /proc/PID/maps prints it, with the state of its pages.

    ``end`` is inclusive; the kernel's file, and text in its format, print one more.

    :ivar resident: bytes whose pages are mapped to memory, including PROT_NONE and NUMA hints; uncounted
        pages (the zero page, devices) are in :ivar:`special`.
    :ivar swapped: bytes whose entries refer to a swap file, and bytes of shared memory whose file has them in
        swap.
    :ivar moving: bytes whose entries are of another kind: under migration, poisoned, device memory.
    :ivar markers: bytes with only a marker, by its meaning: ``uffd-wp``, ``poisoned``, ``guard``. A marker
        with several meanings counts in each.
    """

    start: Address
    end: Address
    size: Size
    permissions: str
    offset: Address
    device: str
    inode: int
    name: str
    resident: Size
    special: Size
    swapped: Size
    moving: Size
    markers: Mapping[str, Size]
    pages: Mapping[str, int]
    problem: Optional[str]


@dataclass(frozen=True)
class ProcessRow:
    """A process with its own memory."""

    pid: int
    comm: str
    areas: int
    size: Size
    resident: Size
    swapped: Size
    page_tables: Size
    pages: Mapping[str, int]


_MOVING = Column("moving", "moving", "right")
VMA_COLUMNS = (
    Column("start", "start"),
    Column("end", "end"),
    Column("permissions", "perms"),
    Column("size", "size", "right", 1),
    Column("resident", "resident", "right"),
    Column("special", "special", "right"),
    Column("swapped", "swapped", "right"),
    _MOVING,
    Column("pages", "pages", spare=3),
    Column("name", "what"),
    Column("problem", ""),
)
#: Shown if there are any markers.
_MARKERS = Column("markers", "markers")
PROCESS_COLUMNS = (
    Column("pid", "pid", "right"),
    Column("comm", "command"),
    Column("areas", "areas", "right"),
    Column("size", "size", "right"),
    Column("resident", "resident", "right"),
    Column("swapped", "swapped", "right"),
    Column("page_tables", "page tables", "right"),
    Column("pages", "pages", spare=1),
)


class User(Region):
    """``0 .. TASK_SIZE_MAX``; the kernel keeps the last page empty."""

    key = "user"
    row = 1
    name = "user space, one per process"
    macro = "TASK_SIZE_MAX"
    fixed = True
    traits = Trait.PER_PROCESS

    def locate(self, kernel: Kernel) -> Located:
        return fixed_place(kernel.form.user)

    def roots(self, kernel: Kernel) -> Sequence[Root]:
        # The kernel's own root maps nothing here, and each process maps something else.
        return ()

    def contents(self, kernel: Kernel, asked: Asked) -> Contents:
        """Areas of a process; without a process, one row per process."""
        if asked.pid is None:
            return _all(kernel)
        return _one(kernel, find_process(kernel, asked.pid))


def _one(kernel: Kernel, process: Process) -> Contents:
    damage = Damage()
    mm = mm_of(kernel, process)
    vmas = vmas_of(kernel, process, mm, damage)
    memory = memory_of(kernel, process)
    residency = _Residency(kernel, process, memory.root, damage)
    shared = _SharedSwap(kernel, damage)
    rows = [_vma_row(vma, residency, shared) for vma in vmas]
    notes = [*damage.notes]
    notes += [f"{row.start:016x}: {row.problem}" for row in rows if row.problem][:8]
    stray = residency.outside(vmas)
    if stray and not damage:
        notes.append(
            f"{sum(high - low + 1 for low, high in stray)} bytes are mapped outside areas: {stray[0][0]:016x}"
        )
    if residency.unreadable:
        notes.append(f"page tables of {residency.unreadable} bytes are not in this source")
    totals: Dict[str, object] = {
        "pid": process.pid,
        "command": process.comm,
        "areas": len(rows),
        "size": Size(sum(row.size for row, vma in zip(rows, vmas) if not vma.gate)),
        "resident": Size(sum(row.resident for row in rows)),
        "swapped": Size(sum(row.swapped for row in rows)),
        "page_tables": Size(memory.tables),
    }
    columns: Sequence[Column] = VMA_COLUMNS
    if any(row.markers for row in rows):
        at = columns.index(_MOVING) + 1
        columns = (*columns[:at], _MARKERS, *columns[at:])
    return Contents(
        (Table("vmas", columns, rows),), totals, notes, partial=bool(damage) or bool(residency.unreadable)
    )


def _all(kernel: Kernel) -> Contents:
    damage = Damage()
    found: List[Tuple[Process, Memory]] = []
    for process in each_mm(kernel, damage):
        try:
            found.append((process, memory_of(kernel, process)))
        except TROUBLE as error:
            damage.add("the memory of a process cannot be read", f"pid {process.pid}: {error}")
    rows: List[ProcessRow] = []
    known: Dict[Tuple[int, int], UserRange] = {}
    numbered = iter(found)
    for part, forest in forests(kernel, [(f"pid {process.pid}", memory.root) for process, memory in found]):
        parts = [None] * len(part) if forest is None else forest.ranges()
        for (_, root), ranges, (process, memory) in zip(part, parts, numbered):
            try:
                residency = _Residency(kernel, process, root, damage, ranges, known)
                rows.append(_process_row(kernel, process, memory, residency.whole()))
            except TROUBLE as error:
                damage.add("the memory of a process cannot be read", f"pid {process.pid}: {error}")
                continue
            if residency.unreadable:
                damage.add("page tables are not in this source", f"pid {process.pid}")
    totals = {
        "processes": len(rows),
        "resident": Size(sum(row.resident for row in rows)),
        "swapped": Size(sum(row.swapped for row in rows)),
        "page_tables": Size(sum(row.page_tables for row in rows)),
    }
    notes = [*damage.notes, "memory that processes share counts for each of them"]
    return Contents((Table("processes", PROCESS_COLUMNS, rows),), totals, notes, partial=bool(damage))


def _process_row(kernel: Kernel, process: Process, memory: Memory, found: _Found) -> ProcessRow:
    return ProcessRow(
        pid=process.pid,
        comm=process.comm,
        areas=memory.areas,
        size=Size(memory.pages * kernel.form.page_size),
        resident=Size(found.resident),
        swapped=Size(found.swapped),
        page_tables=Size(memory.tables),
        pages=found.pages,
    )


#: How many tables with markers to read again for one process. On arm64, 16,384 have markers for 32 GB.
_MOST_TABLES = 1 << 14


class _Found:
    """Sums over page-table ranges, added range by range.

    :param known: cache of decoded range keys; new ones are added.
    """

    def __init__(self, entries: EntryFormat, known: Dict[Tuple[int, int], UserRange]) -> None:
        self._entries = entries
        self._known = known
        self._names = entries.form.page_names
        self.resident = self.special = self.swapped = self.moving = 0
        self.markers: Dict[str, int] = {}
        self.writable = self.executable = False
        self._pages: Dict[str, int] = {}

    @property
    def pages(self) -> Dict[str, int]:
        """Number of resident pages by size, the smallest first."""
        return {name: self._pages[name] for name in self._names.values() if name in self._pages}

    def add(
        self, key: int, size: int, pages: int, markers: Optional[Callable[[], Mapping[str, int]]] = None
    ) -> None:
        """Add ranges with the same key.

        :param size: bytes of all these ranges.
        :param pages: number of pages that their entries map, if any.
        :param markers: returns bytes by marker, for keys that do not contain the marker.
        """
        level = (key & LEVEL_MASK) >> LEVEL_SHIFT
        form = self._entries.form
        if key & MAPPED or (key & NONZERO and form.holds_page(key, level)):
            if self._kept(key, level).special:
                self.special += size
                return
            self.resident += size
            name = self._names[level]
            self._pages[name] = self._pages.get(name, 0) + pages
            if key & MAPPED:
                # Rights of the entry itself: with isolation, the root for kernel mode forbids user execution.
                rights = form.rights(key, level)
                self.writable |= bool(rights & WRITE)
                self.executable |= bool(rights & USER_EXEC)
        elif key & NONZERO:
            kept = self._kept(key, level)
            if kept.swap == "swap":
                self.swapped += size
            elif kept.swap != "marker":
                self.moving += size
            else:
                told: Mapping[str, int] = dict.fromkeys(kept.markers or (), size)
                if kept.markers is None:
                    told = {"unknown": size} if markers is None else markers()
                for name, part in told.items():
                    self.markers[name] = self.markers.get(name, 0) + part

    def _kept(self, key: int, level: int) -> UserRange:
        found = self._known.get((key, level))
        if found is None:
            found = self._known[key, level] = self._entries.of_range(key, level)
        return found


class _Residency:
    """Contents of a process's page tables for the user half.

    :param root: physical address of the root table.
    :param ranges: of the user half, if they are known already.
    :param known: cache of decoded range keys, which several processes share.
    """

    def __init__(
        self,
        kernel: Kernel,
        process: Process,
        root: int,
        damage: Damage,
        ranges: Optional[Ranges] = None,
        known: Optional[Dict[Tuple[int, int], UserRange]] = None,
    ) -> None:
        self._root = root
        self._kernel = kernel
        self._form = kernel.form
        self._tables_left = _MOST_TABLES
        if ranges is None:
            tree = user_tree(kernel, root, damage, f"pid {process.pid}")
            ranges = tree.ranges(0, kernel.form.user.end)
        self._ranges = ranges
        missing = self._ranges.select(UNREADABLE | OVER_LIMIT)
        self.unreadable = sum(high - low + 1 for low, high, _ in missing)
        self._entries = kernel.entries
        self._known: Dict[Tuple[int, int], UserRange] = {} if known is None else known

    @cached_property
    def _view(self) -> View:
        return View(self._ranges, self._form)

    def whole(self) -> _Found:
        """Sum over the user half, with a few array operations for any number of ranges."""
        import numpy

        u = numpy.uint64
        found = _Found(self._entries, self._known)
        keys, sizes = self._ranges.keys, self._ranges.sizes()
        levels = (keys & u(LEVEL_MASK)) >> u(LEVEL_SHIFT)
        shifts = numpy.array([0, *map(self._form.shift, range(1, self._form.levels + 1))], u)
        pages = numpy.maximum(sizes >> shifts[levels], u(1))
        order = numpy.argsort(keys, kind="stable")
        alike, heads = numpy.unique(keys[order], return_index=True)
        sums = [numpy.add.reduceat(values[order], heads).tolist() for values in (sizes, pages)]
        for key, size, count in zip(alike.tolist(), *sums):
            found.add(key, size, count)
        return found

    def nothing(self) -> _Found:
        """The result for areas that are not memory of the process."""
        return _Found(self._entries, self._known)

    def of(self, start: int, end: int) -> _Found:
        """Sum between two inclusive addresses."""
        found = _Found(self._entries, self._known)
        for low, high, key in self._view.parts(start, end):
            level = (key & LEVEL_MASK) >> LEVEL_SHIFT
            size = high - low + 1
            found.add(
                *(key, size, size >> self._form.shift(max(level, 1)) or 1),
                markers=partial(self._markers, low, high, level),
            )
        return found

    def _markers(self, start: int, end: int, level: int) -> Dict[str, int]:
        """Bytes by marker between two inclusive addresses, whose entries of a level are markers.

        A key has only those bits of an entry that are flags. On arm64, a marker's bits are higher.
        """
        import numpy

        found: Dict[str, int] = {}
        shift, span = self._form.shift(level), 1 << self._form.shift(level + 1)
        while start <= end:
            last = min(end, start | span - 1)
            step = self._kernel.walk(start, self._root).steps[-1]
            count = (last >> shift) - (start >> shift) + 1
            self._tables_left -= 1
            if self._tables_left < 0 or step.level != level or step.value is None:
                found["unknown"] = found.get("unknown", 0) + end - start + 1
                break
            data = self._kernel.read_physical(step.entry_address, ENTRY_SIZE * count)
            values, counts = numpy.unique(numpy.frombuffer(data, self._form.entry_dtype), return_counts=True)
            for value, number_of in zip(values.tolist(), counts.tolist()):
                swap = self._entries.decode(value, level, half="user").swap
                for name in () if swap is None else swap.markers:
                    found[name] = found.get(name, 0) + (number_of << shift)
            start = last + 1
        return found

    def outside(self, vmas: Sequence[Vma]) -> List[Tuple[int, int]]:
        """Mapped ranges that are in no area."""
        out: List[Tuple[int, int]] = []
        cursor = 0
        for low, high in [*((v.start, v.end) for v in vmas if not v.gate), (self._form.user.end + 1,) * 2]:
            if low > cursor:
                out += [(a, b) for a, b, key in self._view.parts(cursor, low - 1) if key & MAPPED]
            cursor = max(cursor, high + 1)
        return out


_SHMEM = ("shmem_aops", "struct address_space_operations", "write_begin", "shmem_write_begin")


class _SharedSwap:
    """Pages of shared memory in swap. Their page-table entries are empty, but the file records them
    (mm/shmem.c:shmem_partial_swap_usage)."""

    def __init__(self, kernel: Kernel, damage: Damage) -> None:
        self._kernel = kernel
        self._damage = damage
        #: By mapping: (first index, last index) of the pages.
        self._swapped: Dict[int, List[Tuple[int, int]]] = {}

    def of(self, vma: Vma) -> int:
        """Bytes of an area that are in swap."""
        if not vma.mapping:
            return 0
        if vma.mapping not in self._swapped:
            try:
                self._swapped[vma.mapping] = self._pages(vma.mapping)
            except TROUBLE as error:
                self._damage.add("what is swapped out of a file cannot be read", error)
                self._swapped[vma.mapping] = []
        page = self._kernel.form.page_size
        first = vma.offset // page
        last = first + (vma.end - vma.start) // page
        pages = self._swapped[vma.mapping]
        return sum(max(min(b, last) - max(a, first) + 1, 0) for a, b in pages) * page

    def _pages(self, mapping: int) -> List[Tuple[int, int]]:
        space = struct_at(self._kernel, "struct address_space", mapping)
        operations = number(space, "a_ops")
        if not is_operations(self._kernel, operations, *_SHMEM):
            return []
        info = number(space, "host") - offset_of(self._kernel, "struct shmem_inode_info", "vfs_inode")
        if not number(struct_at(self._kernel, "struct shmem_inode_info", info), "swapped"):
            return []
        tree = mapping + offset_of(self._kernel, "struct address_space", "i_pages")
        entries = xarray_entries(self._kernel, tree, self._damage, "the tree of a file's pages")
        return [(first, last) for first, last, entry in entries if entry & 1]


def _vma_row(vma: Vma, residency: _Residency, shared: _SharedSwap) -> VmaRow:
    found = residency.nothing() if vma.gate else residency.of(vma.start, vma.end)
    problem = None
    if found.writable and not vma.flags & VM_WRITE:
        problem = "pages are mapped writable, the area is not"
    elif found.executable and not vma.flags & VM_EXEC:
        problem = "pages are mapped executable, the area is not"
    return VmaRow(
        start=Address(vma.start),
        end=Address(vma.end),
        size=Size(vma.end - vma.start + 1),
        permissions=permissions(vma.flags),
        offset=Address(vma.offset),
        device=f"{vma.device[0]:02x}:{vma.device[1]:02x}",
        inode=vma.inode,
        name=vma.name,
        resident=Size(found.resident),
        special=Size(found.special),
        swapped=Size(found.swapped + shared.of(vma)),
        moving=Size(found.moving),
        markers={name: Size(size) for name, size in found.markers.items()},
        pages=found.pages,
        problem=problem,
    )


def permissions(flags: int) -> str:
    """``rwxp`` for ``vm_flags``."""
    return (
        ("r" if flags & VM_READ else "-")
        + ("w" if flags & VM_WRITE else "-")
        + ("x" if flags & VM_EXEC else "-")
        + ("s" if flags & VM_MAYSHARE else "p")
    )


REGION = User()
