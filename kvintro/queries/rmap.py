# SPDX-License-Identifier: LGPL-2.1-or-later
"""Finds the processes that map a page.

This is the kernel's own method (mm/rmap.c). An anonymous page has an anon_vma, whose interval tree has every
area that may map the page. A page of a file has an address_space, whose ``i_mmap`` tree has every area that
maps this part of the file. Each area gives the address at which the page would be, and the page tables of its
process show whether it is there. No other process is examined.

:func:`mappings_by_walk` finds the same mappings by searching the page tables of all processes, to check the
first method.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Callable, Dict, Iterator, List, Optional, Sequence, Tuple

import drgn

from kvintro.arch.rights import USER, USER_EXEC, WRITE
from kvintro.errors import Unavailable
from kvintro.kernels import Kernel
from kvintro.model import ALL, Address, Size
from kvintro.paging import Walk
from kvintro.paging.search import FoundFrames, find_frames
from kvintro.queries.pages.one import PageLookup
from kvintro.readers.damage import Damage
from kvintro.readers.lists import chain_entries, interval_entries
from kvintro.readers.processes import Process, each_mm, mm_of, processes, root_of
from kvintro.readers.structures import TROUBLE, number, offset_of, pointer_at, struct_at

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray

    U64 = NDArray[numpy.uint64]

    from kvintro.queries.pages.one import PageState

_ANON, _KSM = 1, 3  # the low bits of page->mapping
_VM_SHARED = 8  # include/linux/mm.h
_MAX_PLACES = 1 << 15  # maximum number of page-table locations of the page frames in a search


@dataclass(frozen=True)
class UserMapping:
    """A mapping of the page in a process.

    :ivar address: start of the page in the process.
    :ivar state: ``mapped``; ``protnone`` (the process has it but may not access it now: PROT_NONE, NUMA
        hints); ``migrating`` (the page is being moved, and this address waits for it).
    :ivar rights: in the format of /proc/PID/maps, but as the page tables grant them.
    :ivar page_size: size that the page-table entry maps.
    :ivar area_start: first address of the area (VMA); None if only page tables were examined.
    :ivar area_end: last address of the area.
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
    """All mappings of a page in processes.

    :ivar way: how they were found: ``anon_vma``, ``i_mmap``, ``ksm``, ``page tables``; None if the page has
        no tree that leads to its mappings.
    :ivar candidates: number of areas that may map the page.
    """

    found: Tuple[UserMapping, ...]
    way: Optional[str]
    candidates: int
    notes: Tuple[str, ...] = ()
    damaged: bool = False


class ReverseMap:
    """Finds mappings in one kernel, and caches the list of processes for the next page."""

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
        """Find the mappings of a page in processes.

        :raises Unavailable: the source has no types.
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
            raise Unavailable("the page's offset in its file or memory is not known")
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
        """Areas of an anon_vma's tree, each with the address that the page would have."""
        root = pointer_at(self.kernel, anon_vma + offset_of(self.kernel, "struct anon_vma", "rb_root"))
        areas: Dict[int, drgn.Object] = {}

        def span(entry: drgn.Object) -> Tuple[int, int]:
            pointer = number(entry, "vma")
            area = areas[pointer] = self._area(pointer)
            start = _anon_start(area)
            return start, start + _pages(area, self.kernel.page_shift) - 1

        for entry in interval_entries(
            self.kernel,
            root,
            "struct anon_vma_chain",
            "rb",
            "rb_subtree_last",
            (first, last),
            span,
            damage,
            "an anon_vma's tree",
        ):
            area = areas[number(entry, "vma")]
            address = place(area)
            if address is not None:
                yield area, address

    def _anon_address(self, area: drgn.Object, offset: int) -> Optional[int]:
        return _address(area, offset - _anon_start(area), self.kernel.page_shift)

    def _file(self, mapping: int, offset: int, damage: Damage) -> Iterator[Tuple[drgn.Object, int]]:
        """Areas of a file's tree, each with the address that the page would have."""
        root = pointer_at(self.kernel, mapping + offset_of(self.kernel, "struct address_space", "i_mmap"))

        def span(area: drgn.Object) -> Tuple[int, int]:
            start = number(area, "vm_pgoff")
            return start, start + _pages(area, self.kernel.page_shift) - 1

        for area in interval_entries(
            self.kernel,
            root,
            "struct vm_area_struct",
            "shared.rb",
            "shared.rb_subtree_last",
            (offset, offset),
            span,
            damage,
            "a file's tree of mappings",
        ):
            address = _address(area, offset - number(area, "vm_pgoff"), self.kernel.page_shift)
            if address is not None:
                yield area, address

    def _ksm(self, node: int, damage: Damage) -> Iterator[Tuple[drgn.Object, int]]:
        """mm/ksm.c:rmap_walk_ksm: the merged addresses, in all processes that have inherited them."""
        kernel = self.kernel
        # 6.2 added the prefix ksm_ to both names.
        new = "struct ksm_stable_node", "struct ksm_rmap_item"
        try:
            offset_of(kernel, new[0], "hlist")
        except Unavailable:
            new = "struct stable_node", "struct rmap_item"
        head = node + offset_of(kernel, new[0], "hlist")
        for _, item in chain_entries(kernel, head, new[1], "hlist", damage, "a list of merged pages"):
            address = number(item, "address") & -kernel.form.page_size

            def place(area: drgn.Object, address: int = address) -> Optional[int]:
                return address if number(area, "vm_start") <= address < number(area, "vm_end") else None

            yield from self._anonymous(number(item, "anon_vma"), 0, ALL, damage, place)

    # The page tables

    def _at(
        self, area: drgn.Object, address: int, pfn: int, by_mm: Dict[int, List[Process]], damage: Damage
    ) -> Iterator[UserMapping]:
        """Yield the mapping if the area's process has the page at the address."""
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
            damage.add(
                "an area belongs to a process that is not in the list of processes", f"mm_struct {mm:016x}"
            )
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


def _pages(area: drgn.Object, shift: int) -> int:
    size = number(area, "vm_end") - number(area, "vm_start") >> shift
    if size <= 0:
        raise ValueError("an area ends before it begins")
    return size


def _anon_start(area: drgn.Object) -> int:
    """vma_start_anon_pgoff(): separate members since 7.3, vm_pgoff before that."""
    try:
        return int(area.member_("__vm_anon_pgoff_hi").value_()) << 32 | int(
            area.member_("__vm_anon_pgoff_lo").value_()
        )
    except LookupError:
        return number(area, "vm_pgoff")


def _address(area: drgn.Object, pages: int, shift: int) -> Optional[int]:
    address = number(area, "vm_start") + (pages << shift)
    return address if pages >= 0 and address < number(area, "vm_end") else None


def _vm_flags(area: drgn.Object) -> int:
    return number(area, "vm_flags")


def _state(kernel: Kernel, found: Walk, address: int, pfn: int) -> Optional[Tuple[str, str, int]]:
    """(state, rights, page size) if the entry at an address maps the page frame; otherwise None."""
    if not found.steps or found.steps[-1].value is None:
        return None
    last, form = found.steps[-1], kernel.form
    entry = kernel.entries.decode(last.value or 0, last.level, half="user")
    size = 1 << form.shift(last.level)
    if entry.kind in ("page", "protnone", "invalid") and entry.physical is not None:
        within = address & form.offset_mask(entry.value, last.level)
        if (entry.physical | within) >> form.page_shift != pfn:
            return None
        state = "mapped" if entry.kind == "page" and found.state == "mapped" else "protnone"
        return state, _rights(kernel, found) if state == "mapped" else "---", entry.page_size
    swap = entry.swap
    if swap is None or swap.pfn is None or not (swap.kind or "").startswith("migration"):
        return None
    # The entry of a huge page has the page's first page frame.
    first = swap.pfn + ((address & (size - 1)) >> form.page_shift)
    return ("migrating", "---", size) if first == pfn else None


def _isolated(kernel: Kernel) -> bool:
    try:
        return kernel.isolation.value
    except Unavailable:
        return False


def _rights(kernel: Kernel, found: Walk) -> str:
    """Effective rights of user mode over all levels."""
    form, last = kernel.form, found.steps[-1]
    rights: int = form.rights(last.value or 0, last.level)
    for step in found.steps[:-1]:
        kept: int = form.table_rights(step.value or 0)
        if step.level == form.levels and _isolated(kernel):
            # Kernel mode's copy of the root may forbid user code to run (arch/x86/mm/pti.c:
            # __pti_set_user_pgtbl); user mode's copy allows it.
            kept |= USER_EXEC
        rights &= kept
    if not rights & USER:
        return "---"
    return "r" + ("w" if rights & WRITE else "-") + ("x" if rights & USER_EXEC else "-")


def mappings_by_walk(kernel: Kernel, pfns: Sequence[int]) -> Dict[int, UserMappings]:
    """Find mappings of some page frames in the page tables of all processes.

    :raises Unavailable: the processes cannot be found.
    """
    import numpy

    damage = Damage()
    wanted = numpy.unique(numpy.array(list(pfns), numpy.uint64))
    found: Dict[int, List[UserMapping]] = {int(pfn): [] for pfn in wanted.tolist()}
    sharing: Dict[int, List[Process]] = {}
    left = _MAX_PLACES
    for process in processes(kernel, damage):
        if process.mm:
            sharing.setdefault(process.mm, []).append(process)
    for process in each_mm(kernel, damage):
        try:
            root = root_of(kernel, mm_of(kernel, process))
        except Unavailable as error:
            damage.add("the memory of a process cannot be read", f"{process.pid}: {error.what}")
            continue
        places = find_frames(
            kernel.read_physical,
            kernel.form,
            root,
            wanted,
            table_limit=kernel.table_limit,
            place_limit=left,
        )
        _note_search(places, damage)
        left -= len(places.places)
        for address, pfn in places.places:
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


def _note_search(places: FoundFrames, damage: Damage) -> None:
    """Note which of a process's page tables were not searched."""
    if places.missing:
        damage.add("a page table of a process is not in this dump")
    if places.too_many_tables:
        damage.add("the page tables of a process are damaged: there are more than fit in memory")
    if places.too_many_places:
        damage.add(f"only the first {_MAX_PLACES} places in the page tables of processes were looked at")


def user_mappings(kernel: Kernel, pfn: int) -> UserMappings:
    """Find the mappings of a page frame in processes.

    :raises Unavailable: the source lacks types, or the struct page.
    """
    page = PageLookup(kernel).state(pfn)
    found = ReverseMap(kernel).mappings(page)
    if found.way is None and (page.mapcount or 0) > 0:
        note = "processes map the page, but the page does not lead to them"
        return dataclasses.replace(found, notes=(*found.notes, note))
    return found
