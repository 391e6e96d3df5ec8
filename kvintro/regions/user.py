# SPDX-License-Identifier: LGPL-2.1-or-later
"""User space: the half of the address space that differs from process to process."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Dict, List, Mapping, Optional, Sequence, Tuple

from kvintro.arch.x86_64 import NX, PAGE_SIZE, PRESENT, PROTNONE, RW
from kvintro.arch.x86_64_entry import (
    SOFTW1,
    SWP_OFFSET_FIRST_BIT,
    SWP_TYPE_BITS,
    SpecialSwapTypes,
    marker_names,
)
from kvintro.errors import Unavailable
from kvintro.model import Address, Column, Located, Size, Table
from kvintro.paging import LEVEL_MASK, LEVEL_SHIFT, MAPPED, NONZERO, OVER_LIMIT, UNREADABLE, Tree
from kvintro.readers.mapped import PAGE_NAMES, View
from kvintro.readers.processes import Process, each_mm, find_process, mm_of, root_of
from kvintro.readers.structures import (
    TROUBLE,
    Damage,
    is_table,
    number,
    offset_of,
    optional,
    struct_at,
    xarray_entries,
)
from kvintro.readers.vmas import VM_EXEC, VM_MAYSHARE, VM_READ, VM_WRITE, Vma, vmas_of
from kvintro.regions import Asked, Contents, Region, Root, fixed_place

if TYPE_CHECKING:
    from kvintro.kernel import Kernel

_SPECIAL = SOFTW1  # _PAGE_SPECIAL: no struct page is meant, so the page counts for nobody
_SWAP_TYPE_SHIFT = 64 - SWP_TYPE_BITS


@dataclass(frozen=True)
class VmaRow:
    """A memory area as /proc/PID/maps prints it, and what of it is there.

    ``end`` is inclusive; the kernel's file, and text that follows it, print one more.

    :ivar resident: bytes whose pages are mapped to memory, those of PROT_NONE and NUMA hints among them;
        pages that count for nobody (the zero page, devices) are in :ivar:`special`.
    :ivar swapped: bytes whose entries name a place in a swap file, and those of shared memory whose file has
        them there.
    :ivar moving: bytes whose entries are of another kind: under migration, poisoned, device memory.
    :ivar markers: bytes where nothing is mapped but a marker, by what that says: ``uffd-wp``, ``poisoned``,
        ``guard``. A marker that says several counts in each.
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
    """A process with memory of its own."""

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
    Column("size", "size", "right"),
    Column("resident", "resident", "right"),
    Column("special", "special", "right"),
    Column("swapped", "swapped", "right"),
    _MOVING,
    Column("pages", "pages"),
    Column("name", "what"),
    Column("problem", ""),
)
#: Shown where there are any.
_MARKERS = Column("markers", "markers")
PROCESS_COLUMNS = (
    Column("pid", "pid", "right"),
    Column("comm", "command"),
    Column("areas", "areas", "right"),
    Column("size", "size", "right"),
    Column("resident", "resident", "right"),
    Column("swapped", "swapped", "right"),
    Column("page_tables", "page tables", "right"),
    Column("pages", "pages"),
)


class User(Region):
    """``0 .. TASK_SIZE_MAX``; the kernel keeps the last page empty."""

    key = "user"
    row = 1
    name = "user space, one per process"
    macro = "TASK_SIZE_MAX"
    fixed = True

    def locate(self, kernel: Kernel) -> Located:
        return fixed_place(kernel.geometry.user)

    def roots(self, kernel: Kernel) -> Sequence[Root]:
        # The kernel's own root maps nothing here, and every process something else.
        return ()

    def contents(self, kernel: Kernel, asked: Asked) -> Contents:
        """A process's areas; without a process, a row for each."""
        if asked.pid is None:
            return _all(kernel)
        return _one(kernel, find_process(kernel, asked.pid))


def _one(kernel: Kernel, process: Process) -> Contents:
    damage = Damage()
    mm = mm_of(kernel, process)
    vmas = vmas_of(kernel, process, mm, damage)
    tree = _tree(kernel, root_of(kernel, mm))
    residency = _Residency(kernel, tree)
    shared = _SharedSwap(kernel, damage)
    rows = [_vma_row(vma, residency, shared) for vma in vmas]
    notes = [*damage.notes]
    notes += [f"{row.start:016x}: {row.problem}" for row in rows if row.problem][:8]
    stray = residency.outside(vmas)
    if stray and not damage:
        notes.append(
            f"{sum(high - low + 1 for low, high in stray)} bytes are mapped in no area: {stray[0][0]:016x}"
        )
    if residency.unreadable:
        notes.append(f"page tables of {residency.unreadable} bytes are not in this source")
    totals: Dict[str, Any] = {
        "pid": process.pid,
        "command": process.comm,
        "areas": len(rows),
        "size": Size(sum(row.size for row, vma in zip(rows, vmas) if not vma.gate)),
        "resident": Size(sum(row.resident for row in rows)),
        "swapped": Size(sum(row.swapped for row in rows)),
        "page_tables": Size(_page_tables(kernel, mm)),
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
    rows: List[ProcessRow] = []
    for process in each_mm(kernel, damage):
        try:
            mm = mm_of(kernel, process)
            residency = _Residency(kernel, _tree(kernel, root_of(kernel, mm)))
            found = residency.of(0, kernel.geometry.user.end)
            rows.append(
                ProcessRow(
                    pid=process.pid,
                    comm=process.comm,
                    areas=number(mm, "map_count"),
                    size=Size(number(mm, "total_vm") * PAGE_SIZE),
                    resident=Size(found.resident),
                    swapped=Size(found.swapped),
                    page_tables=Size(_page_tables(kernel, mm)),
                    pages=found.pages,
                )
            )
            if residency.unreadable:
                damage.add("page tables are not in this source", f"pid {process.pid}")
        except TROUBLE as error:
            damage.add("the memory of a process cannot be read", f"pid {process.pid}: {error}")
    totals = {
        "processes": len(rows),
        "resident": Size(sum(row.resident for row in rows)),
        "swapped": Size(sum(row.swapped for row in rows)),
        "page_tables": Size(sum(row.page_tables for row in rows)),
    }
    notes = [*damage.notes, "memory that processes share counts for each of them"]
    return Contents((Table("processes", PROCESS_COLUMNS, rows),), totals, notes, partial=bool(damage))


def _tree(kernel: Kernel, root: int) -> Tree:
    """A process's tree, which is not kept: with thousands of processes that would be much."""
    try:
        limit = kernel.max_pfn.value * 2 + (1 << 16)
    except Unavailable:
        limit = 1 << 24
    return Tree(kernel.read_physical, kernel.geometry, root, table_limit=min(limit, 1 << 34))


def _page_tables(kernel: Kernel, mm: Any) -> int:
    """``mm_pgtables_bytes()``."""
    counter = optional(mm, "pgtables_bytes")
    return 0 if counter is None else int(counter.counter.value_())


@dataclass(frozen=True)
class _Found:
    resident: int = 0
    special: int = 0
    swapped: int = 0
    moving: int = 0
    markers: Mapping[str, int] = field(default_factory=dict)
    writable: bool = False
    executable: bool = False
    pages: Mapping[str, int] = field(default_factory=dict)


class _Residency:
    """What a process's tables have in its half."""

    def __init__(self, kernel: Kernel, tree: Tree) -> None:
        ranges = tree.ranges(0, kernel.geometry.user.end)
        self._view = View(ranges)
        self.unreadable = sum(high - low + 1 for low, high, _ in ranges.select(UNREADABLE | OVER_LIMIT))
        dialect = kernel.entry_dialect
        self._special = dialect.swap_types or SpecialSwapTypes({}, 0)
        try:
            # The huge page of zeros counts for nobody either (mm/huge_memory.c).
            self._huge_zero: Optional[int] = kernel.value("huge_zero_pfn").value << 12
        except Unavailable:
            self._huge_zero = None
        self._kernel = kernel
        self._root = tree

    def of(self, start: int, end: int) -> _Found:
        """What is there between two addresses, both inclusive."""
        resident = special = swapped = moving = 0
        writable = executable = False
        pages: Dict[str, int] = {}
        markers: Dict[str, int] = {}
        for low, high, key in self._view.parts(start, end):
            size = high - low + 1
            level = (key & LEVEL_MASK) >> LEVEL_SHIFT
            no_rights = key & NONZERO and key & PROTNONE and not key & PRESENT and level in PAGE_NAMES
            if key & MAPPED or no_rights:
                if key & _SPECIAL:
                    special += size
                    continue
                resident += size
                name = PAGE_NAMES[level]
                pages[name] = pages.get(name, 0) + (size >> 12 + 9 * (level - 1) or 1)
                if key & MAPPED:
                    writable |= bool(key & RW)
                    executable |= not key & NX
            elif key & NONZERO:
                kind = self._special.names.get(key >> _SWAP_TYPE_SHIFT)
                if kind is None:
                    swapped += size
                elif kind != "marker":
                    moving += size
                # Of a swap entry's offset a range keeps what lies below the address.
                for name in marker_names(~key >> SWP_OFFSET_FIRST_BIT & 7, self._special.markers):
                    if kind == "marker":
                        markers[name] = markers.get(name, 0) + size
        ordered = {name: pages[name] for name in PAGE_NAMES.values() if name in pages}
        return _Found(resident, special, swapped, moving, markers, writable, executable, ordered)

    def outside(self, vmas: Sequence[Vma]) -> List[Tuple[int, int]]:
        """Stretches that are mapped in no area."""
        out: List[Tuple[int, int]] = []
        cursor = 0
        for low, high in [*((v.start, v.end) for v in vmas if not v.gate), (1 << 63, 1 << 63)]:
            if low > cursor:
                out += [(a, b) for a, b, key in self._view.parts(cursor, low - 1) if key & MAPPED]
            cursor = max(cursor, high + 1)
        return out


_SHMEM = ("shmem_aops", "struct address_space_operations", "write_begin", "shmem_write_begin")


class _SharedSwap:
    """Pages of shared memory that are swapped out: page tables have nothing for them, the file does
    (mm/shmem.c:shmem_partial_swap_usage)."""

    def __init__(self, kernel: Kernel, damage: Damage) -> None:
        self._kernel = kernel
        self._damage = damage
        #: By mapping: (first index, last index) of the pages.
        self._swapped: Dict[int, List[Tuple[int, int]]] = {}

    def of(self, vma: Vma) -> int:
        """Bytes of an area."""
        if not vma.mapping:
            return 0
        if vma.mapping not in self._swapped:
            try:
                self._swapped[vma.mapping] = self._pages(vma.mapping)
            except TROUBLE as error:
                self._damage.add("what is swapped out of a file cannot be read", error)
                self._swapped[vma.mapping] = []
        first = vma.offset // PAGE_SIZE
        last = first + (vma.end - vma.start) // PAGE_SIZE
        pages = self._swapped[vma.mapping]
        return sum(max(min(b, last) - max(a, first) + 1, 0) for a, b in pages) * PAGE_SIZE

    def _pages(self, mapping: int) -> List[Tuple[int, int]]:
        space = struct_at(self._kernel, "struct address_space", mapping)
        operations = number(space, "a_ops")
        if not is_table(self._kernel, operations, *_SHMEM):
            return []
        info = number(space, "host") - offset_of(self._kernel, "struct shmem_inode_info", "vfs_inode")
        if not number(struct_at(self._kernel, "struct shmem_inode_info", info), "swapped"):
            return []
        tree = mapping + offset_of(self._kernel, "struct address_space", "i_pages")
        entries = xarray_entries(self._kernel, tree, self._damage, "the tree of a file's pages")
        return [(first, last) for first, last, entry in entries if entry & 1]


def _vma_row(vma: Vma, residency: _Residency, shared: _SharedSwap) -> VmaRow:
    found = _Found() if vma.gate else residency.of(vma.start, vma.end)
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
    """``rwxp`` of ``vm_flags``."""
    return (
        ("r" if flags & VM_READ else "-")
        + ("w" if flags & VM_WRITE else "-")
        + ("x" if flags & VM_EXEC else "-")
        + ("s" if flags & VM_MAYSHARE else "p")
    )


REGION = User()
