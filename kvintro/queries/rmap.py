# SPDX-License-Identifier: LGPL-2.1-or-later
"""From a page to the processes that map it.

The kernel's own way (mm/rmap.c): an anonymous page names its anon_vma, whose interval tree has every area
that may map it; a page of a file names its address_space, whose ``i_mmap`` tree has every area that maps
that part of the file. Each area says at which address the page would be, and the page tables of its process
say whether it is. No other process is looked at.

:func:`mappings_by_walk` finds the same by looking through the page tables of all processes, to check the
first.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Callable, Dict, Iterator, List, Optional, Sequence, Set, Tuple

import drgn

from kvintro.arch.x86_64 import (
    ALL,
    NX,
    PAGE_SHIFT,
    PAGE_SIZE,
    PRESENT,
    PROTNONE,
    PSE,
    PTRS_PER_TABLE,
    RW,
    USER,
)
from kvintro.arch.x86_64_entry import decode
from kvintro.errors import Unavailable
from kvintro.kernel import Kernel
from kvintro.model import Address, Size
from kvintro.paging import Walk
from kvintro.paging.tree import read_tables
from kvintro.readers.processes import Process, each_mm, mm_of, processes, root_of
from kvintro.readers.structures import (
    LIMIT,
    TROUBLE,
    Damage,
    number,
    offset_of,
    pointer_at,
    struct_around,
    struct_at,
)

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray

    U64 = NDArray[numpy.uint64]

    from kvintro.queries.pages.one import PageState

_ANON, _KSM = 1, 3  # the low bits of page->mapping
_VM_SHARED = 8  # include/linux/mm.h
_TABLES = 1 << 10  # tables looked at together: 4 MB


@dataclass(frozen=True)
class UserMapping:
    """A place where a process has the page.

    :ivar address: where the page asked for begins.
    :ivar state: ``mapped``; ``protnone`` (the process has it, but may not touch it now: PROT_NONE, NUMA
        hints); ``migrating`` (the page is being moved, and this address waits for it).
    :ivar rights: as in /proc/PID/maps, but what the page tables allow.
    :ivar page_size: of the page-table entry.
    :ivar area_start: of the area (VMA) that the address is in; None where only page tables were looked at.
    :ivar area_end: its last address.
    """

    pid: int
    comm: str
    address: Address
    state: str
    rights: str
    page_size: Size
    area_start: Optional[Address] = None
    area_end: Optional[Address] = None
    shared: Optional[bool] = None


@dataclass(frozen=True)
class UserMappings:
    """All of them.

    :ivar way: by which tree they were found: ``anon_vma``, ``i_mmap``, ``ksm``, ``page tables``; None if the
        page is in none, so that nothing leads to who maps it.
    :ivar candidates: areas that could have had the page.
    """

    found: Tuple[UserMapping, ...]
    way: Optional[str]
    candidates: int
    notes: Tuple[str, ...] = ()
    damaged: bool = False


class ReverseMap:
    """Answers for one kernel; keeps what it looked up for the next page."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel

    @cached_property
    def _processes(self) -> Tuple[Dict[int, List[Process]], Damage]:
        damage = Damage()
        by_mm: Dict[int, List[Process]] = {}
        for process in processes(self.kernel, damage):
            if process.mm:
                by_mm.setdefault(process.mm, []).append(process)
        return by_mm, damage

    def mappings(self, page: PageState) -> UserMappings:
        """Where processes have a page.

        :raises Unavailable: there are no types.
        """
        damage = Damage()
        mapping = page.mapping
        low = mapping & 3
        if page.is_typed or not mapping or low == 2:
            return UserMappings((), None, 0)
        notes: List[str] = []
        by_mm, process_damage = self._processes
        offset = page.offset
        if offset is None:
            raise Unavailable("nothing says where in its file or memory the page belongs")
        try:
            if low == _KSM:
                way, areas = "ksm", self._ksm(mapping & ~3, damage)
            elif low == _ANON:
                way = "anon_vma"
                areas = self._anonymous(
                    mapping & ~3,
                    offset,
                    offset,
                    damage,
                    lambda a: self._anon_address(a, offset),
                )
            else:
                way, areas = "i_mmap", self._file(mapping, offset, damage)
            found: List[UserMapping] = []
            candidates = 0
            for area, address in areas:
                candidates += 1
                found.extend(self._at(area, address, page.pfn, by_mm, damage))
        except TROUBLE as error:
            damage.add("the reverse map cannot be followed", error)
            return UserMappings((), None, 0, tuple(damage.notes), True)
        notes += [*damage.notes, *process_damage.notes]
        found.sort(key=lambda m: (m.pid, m.address))
        return UserMappings(
            tuple(dict.fromkeys(found)), way, candidates, tuple(notes), bool(damage) or bool(process_damage)
        )

    # The trees

    def _interval(
        self,
        node: int,
        type_name: str,
        member: str,
        last_member: str,
        first: int,
        last: int,
        span: Callable[[drgn.Object], Tuple[int, int]],
        damage: Damage,
        what: str,
    ) -> Iterator[drgn.Object]:
        """Entries of an interval tree (include/linux/interval_tree_generic.h) that overlap a span."""
        offset = offset_of(self.kernel, type_name, member)
        seen: Set[int] = set()
        waiting = [node]
        while waiting:
            node = waiting.pop()
            if not node:
                continue
            if node in seen:
                damage.add(f"{what} runs in a circle", f"back to {node:016x}")
                continue
            if len(seen) > LIMIT:
                damage.add(f"{what} does not end", f"given up after {LIMIT} entries")
                return
            seen.add(node)
            try:
                entry = struct_around(self.kernel, type_name, node, offset)
                links, subtree_last = _members(entry, member), int(_members(entry, last_member).value_())
                if subtree_last < first:
                    continue
                start, end = span(entry)
            except TROUBLE as error:
                damage.add(f"{what} is damaged: what hangs below one pointer is missing", error)
                continue
            # Entries are ordered by where they start; ends are known of whole subtrees only.
            waiting.append(int(links.rb_left.value_()))
            if start <= last:
                waiting.append(int(links.rb_right.value_()))
                if end >= first:
                    yield entry

    def _area(self, address: int) -> drgn.Object:
        return struct_at(self.kernel, "struct vm_area_struct", address)

    def _anonymous(
        self,
        anon_vma: int,
        first: int,
        last: int,
        damage: Damage,
        place: "Callable[[drgn.Object], Optional[int]]",
    ) -> Iterator[Tuple[drgn.Object, int]]:
        """Areas of an anon_vma's tree, and where in each the page would be."""
        root = pointer_at(self.kernel, anon_vma + offset_of(self.kernel, "struct anon_vma", "rb_root"))
        areas: Dict[int, drgn.Object] = {}

        def span(entry: drgn.Object) -> Tuple[int, int]:
            pointer = number(entry, "vma")
            area = areas[pointer] = self._area(pointer)
            start = _anon_start(area)
            return start, start + _pages(area) - 1

        for entry in self._interval(
            root,
            "struct anon_vma_chain",
            "rb",
            "rb_subtree_last",
            first,
            last,
            span,
            damage,
            "an anon_vma's tree",
        ):
            area = areas[number(entry, "vma")]
            address = place(area)
            if address is not None:
                yield area, address

    def _anon_address(self, area: drgn.Object, offset: int) -> Optional[int]:
        return _address(area, offset - _anon_start(area))

    def _file(self, mapping: int, offset: int, damage: Damage) -> Iterator[Tuple[drgn.Object, int]]:
        """Areas of a file's tree, and where in each the page would be."""
        root = pointer_at(self.kernel, mapping + offset_of(self.kernel, "struct address_space", "i_mmap"))

        def span(area: drgn.Object) -> Tuple[int, int]:
            start = number(area, "vm_pgoff")
            return start, start + _pages(area) - 1

        for area in self._interval(
            root,
            "struct vm_area_struct",
            "shared.rb",
            "shared.rb_subtree_last",
            offset,
            offset,
            span,
            damage,
            "a file's tree of mappings",
        ):
            address = _address(area, offset - number(area, "vm_pgoff"))
            if address is not None:
                yield area, address

    def _ksm(self, node: int, damage: Damage) -> Iterator[Tuple[drgn.Object, int]]:
        """mm/ksm.c:rmap_walk_ksm: the addresses that were merged, in whoever inherited them since."""
        kernel = self.kernel
        # 6.2 put ksm_ before both names.
        new = "struct ksm_stable_node", "struct ksm_rmap_item"
        try:
            offset_of(kernel, new[0], "hlist")
        except Unavailable:
            new = "struct stable_node", "struct rmap_item"
        link = offset_of(kernel, new[1], "hlist")
        item_at = pointer_at(kernel, node + offset_of(kernel, new[0], "hlist"))
        seen: Set[int] = set()
        while item_at:
            if item_at in seen or len(seen) > LIMIT:
                damage.add("a list of merged pages runs in a circle", f"back to {item_at:016x}")
                return
            seen.add(item_at)
            item = struct_at(kernel, new[1], item_at - link)
            address = number(item, "address") & ~(PAGE_SIZE - 1)

            def place(area: drgn.Object, address: int = address) -> Optional[int]:
                return address if number(area, "vm_start") <= address < number(area, "vm_end") else None

            yield from self._anonymous(number(item, "anon_vma"), 0, ALL, damage, place)
            item_at = int(item.hlist.next.value_())

    # The page tables

    def _at(
        self, area: drgn.Object, address: int, pfn: int, by_mm: Dict[int, List[Process]], damage: Damage
    ) -> Iterator[UserMapping]:
        """Whether the area's process has the page at the address."""
        mm = number(area, "vm_mm")
        try:
            table = root_of(self.kernel, struct_at(self.kernel, "struct mm_struct", mm))
        except Unavailable as error:
            damage.add("an area belongs to memory that cannot be read", error.what)
            return
        found = self.kernel.walk(address, table)
        if found.state == "not-in-dump":
            damage.add("a page table of a process is not in this dump", f"of {address:016x}")
            return
        said = _state(self.kernel, found, address, pfn)
        if said is None:
            return
        state, rights, size = said
        start, end = number(area, "vm_start"), number(area, "vm_end")
        shared = bool(_vm_flags(area) & _VM_SHARED)
        owners = by_mm.get(mm) or []
        if not owners:
            damage.add("an area belongs to a process that is in no list", f"mm_struct {mm:016x}")
        for process in owners:
            yield UserMapping(
                process.pid,
                process.comm,
                Address(address),
                state,
                rights + ("s" if shared else "p"),
                Size(size),
                Address(start),
                Address(end - 1),
                shared,
            )


def _members(obj: drgn.Object, path: str) -> drgn.Object:
    for name in path.split("."):
        obj = getattr(obj, name)
    return obj


def _pages(area: drgn.Object) -> int:
    size = number(area, "vm_end") - number(area, "vm_start") >> PAGE_SHIFT
    if size <= 0:
        raise ValueError("an area ends before it begins")
    return size


def _anon_start(area: drgn.Object) -> int:
    """vma_start_anon_pgoff(): a number of its own since 7.3, vm_pgoff before."""
    try:
        return int(area.member_("__vm_anon_pgoff_hi").value_()) << 32 | int(
            area.member_("__vm_anon_pgoff_lo").value_()
        )
    except LookupError:
        return number(area, "vm_pgoff")


def _address(area: drgn.Object, pages: int) -> Optional[int]:
    address = number(area, "vm_start") + (pages << PAGE_SHIFT)
    return address if pages >= 0 and address < number(area, "vm_end") else None


def _vm_flags(area: drgn.Object) -> int:
    return number(area, "vm_flags")


def _state(kernel: Kernel, found: Walk, address: int, pfn: int) -> Optional[Tuple[str, str, int]]:
    """(state, rights, page size) if the entry at an address is for the page frame."""
    if not found.steps or found.steps[-1].value is None:
        return None
    last = found.steps[-1]
    entry = decode(last.value or 0, last.level, kernel.geometry, half="user", dialect=kernel.entry_dialect)
    size = 1 << kernel.geometry.shift(last.level)
    if entry.kind in ("page", "protnone", "invalid") and entry.physical is not None:
        if (entry.physical | address & (entry.page_size - 1)) >> PAGE_SHIFT != pfn:
            return None
        state = "mapped" if entry.kind == "page" and found.state == "mapped" else "protnone"
        values = [step.value or 0 for step in found.steps]
        if _isolated(kernel):
            # The kernel's own copy of the root forbids it to run user code (arch/x86/mm/pti.c:
            # __pti_set_user_pgtbl); the process's copy does not.
            values[0] &= ~NX
        return state, _rights(values) if state == "mapped" else "---", entry.page_size
    swap = entry.swap
    if swap is None or swap.pfn is None or not (swap.kind or "").startswith("migration"):
        return None
    # An entry of a huge page has the first page frame of it.
    first = swap.pfn + ((address & (size - 1)) >> PAGE_SHIFT)
    return ("migrating", "---", size) if first == pfn else None


def _isolated(kernel: Kernel) -> bool:
    try:
        return kernel.pti.value
    except Unavailable:
        return False


def _rights(values: Sequence[int]) -> str:
    every = any_ = values[0]
    for value in values:
        every &= value
        any_ |= value
    if not every & USER:
        return "---"
    return "r" + ("w" if every & RW else "-") + ("-" if any_ & NX else "x")


def mappings_by_walk(kernel: Kernel, pfns: Sequence[int]) -> Dict[int, UserMappings]:
    """Where processes have each of some page frames, by looking through all their page tables.

    :raises Unavailable: processes cannot be found.
    """
    import numpy

    damage = Damage()
    wanted = numpy.unique(numpy.array(list(pfns), numpy.uint64))
    found: Dict[int, List[UserMapping]] = {int(pfn): [] for pfn in wanted.tolist()}
    sharing: Dict[int, List[Process]] = {}
    for process in processes(kernel, damage):
        if process.mm:
            sharing.setdefault(process.mm, []).append(process)
    for process in each_mm(kernel, damage):
        try:
            root = root_of(kernel, mm_of(kernel, process))
        except Unavailable as error:
            damage.add("the memory of a process cannot be read", f"{process.pid}: {error.what}")
            continue
        for address, pfn in _search(kernel, root, wanted, damage):
            said = _state(kernel, kernel.walk(address, root), address, pfn)
            if said is None:
                continue
            state, rights, size = said
            found[pfn] += [
                UserMapping(owner.pid, owner.comm, Address(address), state, rights, Size(size))
                for owner in sharing[process.mm]
            ]
    return {
        pfn: UserMappings(
            tuple(sorted(maps, key=lambda m: (m.pid, m.address))),
            "page tables",
            0,
            tuple(damage.notes),
            bool(damage),
        )
        for pfn, maps in found.items()
    }


def _search(
    kernel: Kernel, root: int, wanted: "NDArray[numpy.uint64]", damage: Damage
) -> Iterator[Tuple[int, int]]:
    """(address, page frame) of entries in the user half that hold one of some page frames."""
    import numpy

    u = numpy.uint64
    geometry = kernel.geometry
    mask = u(geometry.pfn_mask)
    tables, bases = numpy.array([root], u), numpy.zeros(1, u)
    for level in range(geometry.levels, 0, -1):
        shift = geometry.shift(level)
        # Of the root, the lower half is the process's own.
        width = PTRS_PER_TABLE // 2 if level == geometry.levels else PTRS_PER_TABLE
        below: List[Tuple[U64, U64]] = []
        if len(tables) > kernel.table_limit:
            damage.add("the page tables of a process are damaged: there are more than memory has room for")
            return
        for at in range(0, len(tables), _TABLES):
            entries, missing = read_tables(kernel.read_physical, tables[at : at + _TABLES])
            if missing.any():
                damage.add("a page table of a process is not in this dump")
            entries = entries[:, :width]
            places = bases[at : at + _TABLES, None] + (numpy.arange(width, dtype=u) << u(shift))
            present = (entries & u(PRESENT)) != u(0)
            huge = (entries & u(PSE)) != u(0)
            if level == 1 or level in geometry.large_levels():
                # mm/ keeps pages in entries that the processor does not see, with the frame inverted.
                frames = numpy.where(present, entries, ~entries) & mask & u(ALL << shift & ALL)
                kept = ((entries & u(PROTNONE)) != u(0)) | (huge if level > 1 else False)
                leaf = (present & (huge if level > 1 else True)) | (~present & kept)
                first = frames >> u(PAGE_SHIFT)
                low = numpy.searchsorted(wanted, first)
                high = numpy.searchsorted(wanted, first + u(1 << (shift - PAGE_SHIFT)))
                for row, column in numpy.argwhere(leaf & (high > low)).tolist():
                    for i in range(int(low[row, column]), int(high[row, column])):
                        inside = int(wanted[i]) - int(first[row, column])
                        yield int(places[row, column]) + (inside << PAGE_SHIFT), int(wanted[i])
            if level > 1:
                down = present & ~huge
                below.append((entries[down] & mask, places[down]))
        if level > 1:
            tables = numpy.concatenate([t for t, _ in below])
            bases = numpy.concatenate([b for _, b in below])
            order = numpy.argsort(tables, kind="stable")
            tables, bases = tables[order], bases[order]
            if not len(tables):
                return


def user_mappings(kernel: Kernel, pfn: int) -> UserMappings:
    """Where processes have a page frame.

    :raises Unavailable: there are no types, or no struct page is there to say so.
    """
    from kvintro.queries.pages.one import PageLookup

    page = PageLookup(kernel).state(pfn)
    found = ReverseMap(kernel).mappings(page)
    if found.way is None and (page.mapcount or 0) > 0:
        note = "processes map the page, but nothing leads from it to who does"
        return dataclasses.replace(found, notes=(*found.notes, note))
    return found
