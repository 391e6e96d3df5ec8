# SPDX-License-Identifier: LGPL-2.1-or-later
"""The region of vmalloc, vmap, ioremap and kernel stacks: contiguous virtual addresses."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cached_property, lru_cache
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Callable, Dict, Iterator, List, Mapping, Optional, Sequence, Set, Tuple

from kvintro.arch.data import UINT64
from kvintro.errors import Unavailable
from kvintro.kernels import Trait
from kvintro.model import (
    ALL,
    Address,
    AddressRange,
    Asked,
    Column,
    Contents,
    Fact,
    Located,
    Size,
    Table,
)
from kvintro.paging.bulk import MAPPED
from kvintro.readers.damage import Damage
from kvintro.readers.lists import chain_entries, list_nodes, list_words
from kvintro.readers.mapped import Stretch, View
from kvintro.readers.names import Names
from kvintro.readers.structures import (
    USE_TYPES,
    Read,
    has_member,
    member_reader,
    near_reader,
    number,
    offset_of,
    pointer_at,
    size_of,
)
from kvintro.regions import Region
from kvintro.regions.vmemmap import REGION as VMEMMAP

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray

    from kvintro.kernels import Kernel

# include/linux/vmalloc.h. A bit has kept its value since it was introduced.
_VM_IOREMAP, _VM_ALLOC, _VM_MAP, _VM_USERMAP, _VM_DMA_COHERENT = 1, 2, 4, 8, 0x10
_VM_UNINITIALIZED, _VM_NO_GUARD, _VM_FLUSH_RESET_PERMS, _VM_SPARSE = 0x20, 0x40, 0x100, 0x1000
# Kinds of areas as /proc/vmallocinfo names them.
_DEVICE, _PAGES, _MAPPED = "ioremap", "vmalloc", "vmap"
_VPAGES = "vpages"
# In the order in which that file prints them.
_FLAGS = (
    (_VM_IOREMAP, _DEVICE),
    (_VM_SPARSE, "sparse"),
    (_VM_ALLOC, _PAGES),
    (_VM_MAP, _MAPPED),
    (_VM_USERMAP, "user"),
    (_VM_DMA_COHERENT, "dma-coherent"),
)
_VMAP_RAM, _VMAP_BLOCK = 1, 2  # mm/vmalloc.c: struct vmap_area.flags
_MAX_NODES = 256  # mm/vmalloc.c:vmap_init_nodes takes 128 at most; each has 256 pools to read
_MAX_POOL = 1 << 16  # areas held in a pool of one size


@dataclass(frozen=True)
class AreaRow:
    """One area, as in /proc/vmallocinfo and with more fields; docs/show.md describes them.

    ``end`` is inclusive; the kernel's file, and text in its format, print one more.
    """

    start: Address
    end: Address
    size: Size
    caller: Optional[str]
    pages: int
    physical: Optional[Address]
    kind: str
    flags: Tuple[str, ...]
    nodes: Mapping[str, int]
    guard: Size
    requested: Optional[Size]
    region: str
    mapped: Size
    page_sizes: Mapping[str, int]
    rights: Tuple[str, ...]
    caching: Tuple[str, ...]
    problem: Optional[str]


@dataclass(frozen=True)
class SumRow:
    """Sums over the areas of one caller, or of one kind."""

    name: str
    areas: int
    size: Size
    pages: int
    guard: Size
    mapped: Size


@dataclass(frozen=True)
class GapRow:
    """A gap between two areas.

    :ivar behind: caller of the area that ends where the gap starts.
    """

    start: Address
    end: Address
    size: Size
    behind: Optional[str]


AREA_COLUMNS = (
    Column("start", "start"),
    Column("end", "end"),
    Column("size", "size", "right"),
    Column("kind", "kind"),
    Column("caller", "caller"),
    Column("pages", "pages", "right"),
    Column("physical", "physical"),
    Column("mapped", "mapped", "right"),
)
_SUM_COLUMNS = (
    Column("areas", "areas", "right"),
    Column("size", "size", "right"),
    Column("pages", "pages", "right"),
    Column("guard", "guard", "right"),
    Column("mapped", "mapped", "right"),
)
GAP_COLUMNS = (
    Column("start", "start"),
    Column("end", "end"),
    Column("size", "size", "right"),
    Column("behind", "after the area of"),
)


class Vmalloc(Region):
    """``VMALLOC_START .. VMALLOC_END``."""

    key = "vmalloc"
    row = 6
    name = "vmalloc and ioremap"
    macro = "VMALLOC_START"
    traits = Trait.AREAS | Trait.PER_CPU | Trait.IN_USE | Trait.NO_EXEC

    def locate(self, kernel: Kernel) -> Located:
        return kernel.facts.place(self.key)

    def contents(self, kernel: Kernel, asked: Asked) -> Contents:
        """Every area, as ``mm/vmalloc.c:vmalloc_info_show`` lists them: first those in use, then those freed
        but not yet purged.

        Areas of modules are included, because the same allocator serves both regions.
        """
        found = kernel.place(self)
        if kernel.source.types == "none":
            return self._bounds(kernel, found.range, Damage())
        rows, lost = kernel.once(all_areas)
        damage = Damage()
        damage.merge(lost)
        gaps = gaps_between(found.range, rows)
        inside = [row for row in rows if row.region == self.key]
        free, small = sum(gap.size for gap in gaps), kernel.form.page_name(1)
        largest = gaps[0].size if gaps else 0
        totals: Dict[str, object] = {
            "areas": len(rows),
            "size": Size(sum(row.size for row in rows)),
            "mapped": Size(sum(row.mapped for row in rows)),
            "guard_pages": Size(sum(row.guard for row in rows)),
            "lazily_freed": Size(sum(row.size for row in rows if row.kind == "unpurged")),
            "huge_mappings": sum(n for row in rows for name, n in row.page_sizes.items() if name != small),
            "in_region": Size(sum(row.size for row in inside)),
            "free": Size(free),
            "gaps": len(gaps),
            "largest_gap": Size(largest),
            # The part of the free space that remains after the largest request that can be satisfied.
            "fragmentation": round(1 - largest / free, 6) if free else None,
        }
        notes: List[str] = []
        accounted = Areas(kernel, found.range, damage).free_space()
        if accounted is not None:
            totals["free_by_the_kernel"] = Size(accounted[0])
            totals["pooled"] = Size(accounted[1])
            if sum(accounted) != free and not damage:
                notes.append(
                    f"the gaps add up to {free} bytes, but the kernel counts {accounted[0]} free and "
                    f"{accounted[1]} held back for reuse: areas were being freed when this was taken"
                )
        wrong = [row for row in rows if row.problem]
        if wrong:
            notes.append(f"{len(wrong)} areas disagree with the page tables: {_examples(wrong)}")
        return Contents(
            (
                Table("areas", AREA_COLUMNS, rows),
                by_caller(rows, "by caller"),
                Table("by_kind", (Column("name", "kind"), *_SUM_COLUMNS), _sums(rows, _kind), "by kind"),
                Table("gaps", GAP_COLUMNS, gaps, "free gaps"),
            ),
            totals,
            (*damage.notes, *notes),
            partial=bool(damage),
        )

    def _bounds(self, kernel: Kernel, where: AddressRange, damage: Damage) -> Contents:
        """Bounds of the areas in use, which VMCOREINFO gives access to (up to 6.8)."""
        rows = bare_areas(kernel, where, damage, _whole_view(kernel))
        totals: Dict[str, object] = {
            "areas": len(rows),
            "size": Size(sum(row.size for row in rows)),
            "mapped": Size(sum(row.mapped for row in rows)),
            "in_region": Size(sum(row.size for row in rows if row.region == self.key)),
        }
        note = (
            "there are no types: the list of areas has only their bounds; their purposes and callers, and "
            f"recently freed areas, are not known; {USE_TYPES}"
        )
        return Contents((Table("areas", AREA_COLUMNS, rows),), totals, (note, *damage.notes), partial=True)


def all_areas(kernel: Kernel) -> Tuple[Sequence[AreaRow], Damage]:
    """All areas as :meth:`Areas.rows` returns them, and what cannot be read; for :meth:`Kernel.once`.

    :raises Unavailable: the vmalloc region is unknown, or there are no types.
    """
    damage = Damage()
    return Areas(kernel, kernel.place(REGION).range, damage).rows(), damage


def _whole_view(kernel: Kernel) -> View:
    return View.of(kernel, kernel.form.kernel.start, ALL)


def bare_areas(
    kernel: Kernel, where: AddressRange, damage: Damage, view: Optional[View] = None
) -> List[AreaRow]:
    """Areas in use from ``vmap_area_list``, for which VMCOREINFO has the members ``va_start`` and ``list``.

    ``va_end`` has always been the word after ``va_start``. This is checked on all areas of the sorted list:
    each must end on a page boundary, after its own start and not after the next one's.

    :param where: the region.
    :param view: the page tables; None to leave out what they map.
    :raises Unavailable: VMCOREINFO does not have the list (since 6.9), or the words are not ends of areas.
    """
    links = offset_of(kernel, "struct vmap_area", "list")
    at = offset_of(kernel, "struct vmap_area", "va_start")
    head = kernel.first_fact(
        lambda: kernel.number("SYMBOL(vmap_area_list)"),
        lambda: Fact(kernel.symbol("vmap_area_list"), "vmap_area_list"),
    ).value
    bounds: List[Tuple[int, int]] = []
    for node in list_nodes(kernel, head, damage, "vmap_area_list"):
        start, end = (pointer_at(kernel, node - links + at + word & ALL) for word in (0, 8))
        bounds.append((start, end))
    following = [start for start, _ in bounds[1:]] + [ALL]
    page = kernel.form.page_size
    for (start, end), limit in zip(bounds, following):
        if not 1 << 63 <= start < end <= limit or start % page or end % page:
            raise Unavailable(f"the areas' ends cannot be read without types: {start:#x}-{end:#x} is none")
    return [
        _row(where, start, end, "unknown", _NOTHING if view is None else view.stretch(start, end - 1))
        for start, end in bounds
    ]


_NOTHING = Stretch()


def _row(
    where: AddressRange,
    start: int,
    end: int,
    kind: str,
    found: Stretch,
    caller: Optional[str] = None,
    pages: int = 0,
    physical: Optional[Address] = None,
    flags: Tuple[str, ...] = (),
    nodes: Optional[Mapping[str, int]] = None,
    guard: int = 0,
    requested: Optional[Size] = None,
) -> AreaRow:
    """A row with the bounds of an area, what is mapped there, and what else is known.

    :param end: address after its end.
    """
    return AreaRow(
        Address(start),
        Address(end - 1),
        Size(end - start),
        caller,
        pages,
        physical,
        kind,
        flags,
        nodes or {},
        Size(guard),
        requested,
        "vmalloc" if start in where else "modules",
        Size(found.mapped),
        found.pages,
        found.rights,
        found.caching,
        None,
    )


@lru_cache(maxsize=1 << 8)
def _flag_names(flags: int, vpages: bool) -> Tuple[str, ...]:
    """Flags by their names in /proc/vmallocinfo.

    :param vpages: whether the array of the area's pages is in an area, too.
    """
    return (*(name for bit, name in _FLAGS if flags & bit), *((_VPAGES,) if vpages else ()))


class Areas:
    """Reads the kernel's lists of areas in both of their forms.

    Up to 6.8 it is ``vmap_area_list``. Since 6.9 ("mm: vmalloc: remove global vmap_area_root rb-tree") each
    of ``vmap_nodes[]`` has its own lists, each sorted by itself.

    :param where: the vmalloc region.
    :param damage: collects what cannot be read.
    :param within: skip areas that begin outside this range, and do not read their details.
    """

    def __init__(
        self, kernel: Kernel, where: AddressRange, damage: Damage, within: Optional[AddressRange] = None
    ) -> None:
        self._kernel = kernel
        self._where = where
        self._within = within
        self._damage = damage
        self._names = Names(kernel)
        self._nodes: Optional[_Nodes] = None
        #: The page tables; None to leave out what they map.
        self._view: Optional[View] = None
        #: First addresses of areas for which tables are missing.
        self._unread: Set[int] = set()
        self.read = near_reader(kernel)
        #: Array of the pages that should be mapped in an area, by its start: (address, number of pages).
        self.page_arrays: Dict[int, Tuple[int, int]] = {}
        #: First addresses of areas that change the rights of their pages, such as those of code
        #: (VM_FLUSH_RESET_PERMS).
        self.own_rights: Set[int] = set()
        # VMCOREINFO has the single list in every kernel that has it.
        self._per_node = kernel.find_symbol("vmap_area_list") is None
        self._areas = has_member(kernel, "struct vmap_area", "flags")

    def _vmap_nodes(self) -> Iterator[int]:
        kernel = self._kernel
        count = kernel.number_of("nr_vmap_nodes", 4)
        if not 0 < count <= _MAX_NODES:
            self._damage.add("vmap_nodes cannot be read", f"nr_vmap_nodes is {count}")
            return
        base, size = kernel.value("vmap_nodes").value, size_of(kernel, "struct vmap_node")
        for index in range(count):
            yield base + index * size

    def _lists(self, old: str, *members: str) -> Iterator[Tuple[int, str]]:
        """(head, name) of the lists of areas in one state."""
        if not self._per_node:
            yield self._kernel.symbol(old), old
            return
        offset = sum(
            offset_of(self._kernel, type_name, member)
            for type_name, member in zip(("struct vmap_node", "struct rb_list"), members)
        )
        for index, node in enumerate(self._vmap_nodes()):
            yield node + offset, f"vmap_nodes[{index}].{'.'.join(members)}"

    def _entries(self, head: int, what: str) -> Iterator[Tuple[int, ...]]:
        """(start, address after the end, vm, flags) of a list's areas."""
        try:
            yield from list_words(
                self._kernel,
                head,
                "struct vmap_area",
                "list",
                ("va_start", "va_end", "vm", "flags"),
                self._damage,
                what,
                read=self.read,
            )
        except Unavailable as error:
            self._damage.add(f"{what} cannot be read", error.what)

    def rows(self) -> List[AreaRow]:
        """All areas, compared with the page tables: those in use first, each group in order of address."""
        self._view = _whole_view(self._kernel)
        by_start = attrgetter("start")
        rows = [*sorted(self.busy(), key=by_start), *sorted(self.lazy(), key=by_start)]
        problems: Dict[int, str] = {}
        frames = _Frames(self._kernel, self.read, problems)
        for index, row in enumerate(rows):
            if row.start not in self._unread:
                problem = _problem(index, row, frames, self)
                if problem is not None:
                    problems[index] = problem
        frames.compare()
        for index, problem in problems.items():
            rows[index] = dataclasses.replace(rows[index], problem=problem)
        return rows

    def busy(self) -> Iterator[AreaRow]:
        """Areas in use."""
        for head, what in self._lists("vmap_area_list", "busy", "head"):
            for area in self._entries(head, what):
                row = self._busy_row(*area) if self._is_wanted(area[0]) else None
                if row is not None:
                    yield row

    def lazy(self) -> Iterator[AreaRow]:
        """Areas that were freed but whose addresses cannot be reused yet (lazy TLB flush)."""
        try:
            for entries in self._lazy_entries():
                for start, end, *_ in entries:
                    row = self._bare(start, end, "unpurged") if self._is_wanted(start) else None
                    if row is not None:
                        yield row
        except Unavailable as error:
            self._damage.add("recently freed areas cannot be listed", error.what)

    def _is_wanted(self, start: int) -> bool:
        return self._within is None or start in self._within

    def _lazy_entries(self) -> Iterator[Iterator[Tuple[int, ...]]]:
        # Before "mm/vmalloc: rework the drain logic" (5.11) they were chained by a member in a union with vm.
        chain = self._kernel.find_symbol("vmap_purge_list")
        if chain is not None and not self._per_node:
            yield self._chained(chain)
            return
        for head, what in self._lists("purge_vmap_area_list", "lazy", "head"):
            yield self._entries(head, what)

    def _chained(self, head: int) -> Iterator[Tuple[int, ...]]:
        what = "vmap_purge_list"
        try:
            for _, area in chain_entries(
                self._kernel, head, "struct vmap_area", "purge_list", self._damage, what
            ):
                yield number(area, "va_start"), number(area, "va_end")
        except Unavailable as error:
            self._damage.add(f"{what} cannot be read", error.what)

    def free_space(self) -> Optional[Tuple[int, int]]:
        """Bytes of the region that the kernel counts as free, and bytes that it holds in pools of one
        size.
        """
        kernel = self._kernel
        try:
            head = kernel.symbol("free_vmap_area_list")
        except Unavailable:
            return None
        free = pooled = 0
        for start, end, *_ in self._entries(head, "free_vmap_area_list"):
            free += max(min(end, self._where.end + 1) - max(start, self._where.start), 0)
        if self._per_node and has_member(kernel, "struct vmap_node", "pool"):
            pools = offset_of(kernel, "struct vmap_node", "pool")
            size = size_of(kernel, "struct vmap_pool")
            count = kernel.prog.type("struct vmap_node").member("pool").type.length
            for index, node in enumerate(self._vmap_nodes()):
                try:
                    heads = kernel.read(node + pools, count * size)
                except Unavailable as error:
                    self._damage.add("pools of vmap_nodes cannot be read", error.what)
                    continue
                for slot in range(count):
                    pool = node + pools + slot * size
                    # Most pools are empty: their heads point to themselves.
                    if int.from_bytes(heads[slot * size : slot * size + 8], "little") in (pool, 0):
                        continue
                    for start, end, *_ in self._entries(pool, f"vmap_nodes[{index}].pool[{slot}]"):
                        pooled += end - start
        return free, pooled

    def _busy_row(self, area_start: int, area_end: int, address: int, area_flags: int) -> Optional[AreaRow]:
        """The row of an area in use; None if the kernel's own file omits it or it is invalid.

        :param address: address of the ``struct vm_struct``.
        """
        if not address:
            # Before 6.9 the kernel's file also shows an area that is being freed as one of these.
            if self._areas and not area_flags & _VMAP_RAM:
                return None
            return self._bare(area_start, area_end, "vm_map_ram")
        try:
            flags, start, size, count, pages, caller, physical, requested, order = self._vm(address)
        except Unavailable as error:
            self._damage.add("an area's vm_struct is missing", error.what)
            return self._bare(area_start, area_end, "unknown")
        end = start + size
        if flags & _VM_UNINITIALIZED and self._per_node:
            return None
        if not self._are_bounds(start, end):
            return None
        if count > size >> self._kernel.page_shift:
            self._damage.add("an area has more pages than its size allows", f"{start:016x}: {count}")
            count = 0
        if count and pages:
            self.page_arrays[start] = (pages, count)
        if flags & _VM_FLUSH_RESET_PERMS:
            self.own_rights.add(start)
        names = _flag_names(flags, self._where.start <= pages < self._where.end)
        kind = names[0] if names and names[0] != _VPAGES else "other"
        # Chunks of per-CPU memory (pcpu_get_vm_areas) are adjacent and have no guard pages. They are mapped
        # on demand.
        guarded = not flags & _VM_NO_GUARD and not (kind == _PAGES and not count)
        return _row(
            self._where,
            start,
            end,
            kind,
            self._stretch(start, end),
            caller=self._names.code(caller) if caller else None,
            pages=count,
            physical=Address(physical) if physical else None,
            flags=names,
            nodes=None if flags & _VM_UNINITIALIZED else self._node_counts(pages, count, order),
            guard=min(self._kernel.form.page_size, size) if guarded else 0,
            requested=Size(requested) if requested > 0 else None,
        )

    @cached_property
    def _vm(self) -> Callable[[int], Tuple[Any, ...]]:
        members = ("flags", "addr", "size", "nr_pages", "pages", "caller", "phys_addr", "requested_size")
        return member_reader(self._kernel, "struct vm_struct", *members, "page_order", read=self.read)

    def _bare(self, start: int, end: int, kind: str) -> Optional[AreaRow]:
        if not self._are_bounds(start, end):
            return None
        return _row(self._where, start, end, kind, self._stretch(start, end))

    def _stretch(self, start: int, end: int) -> Stretch:
        """What is mapped from one address up to another."""
        if self._view is None:
            return _NOTHING
        found = self._view.stretch(start, end - 1)
        if found.unreadable:
            self._unread.add(start)
        return found

    def _are_bounds(self, start: int, end: int) -> bool:
        page = self._kernel.form.page_size
        if 1 << 63 <= start < end <= ALL and not start % page and not end % page:
            return True
        self._damage.add("an area's bounds are invalid", f"{start:#x}-{end:#x}")
        return False

    def _node_counts(self, pages: int, count: int, order: int) -> Mapping[str, int]:
        """Pages by NUMA node (mm/vmalloc.c:show_numa_info)."""
        if not count or not pages:
            return {}
        if self._nodes is None:
            self._nodes = _Nodes(self._kernel)
        try:
            return self._nodes.count(pages, count, 1 << min(order, 18))
        except Unavailable as error:
            self._damage.add("an area's pages cannot be read", error.what)
            return {}


class _Nodes:
    """Finds the NUMA nodes of pages."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._single: Dict[int, Mapping[str, int]] = {}  # counts, shared to save memory
        try:
            # The kernel's memory does not contain MAX_NUMNODES, but this array has an entry for each zone of
            # each node.
            refs = kernel.prog.type("struct zonelist").member("_zonerefs").type.length - 1
            zones = kernel.prog.type("struct pglist_data").member("node_zones").type.length
            self._shift = (refs // zones).bit_length() - 1
            node_states = kernel.symbol("node_states")
        except (LookupError, AttributeError, TypeError, Unavailable):
            self._shift = 0
            return
        # nodemask_t of N_MEMORY: with a single node, the pages need not be read.
        words = max((1 << self._shift) // 64, 1)
        try:
            index = int(kernel.prog.constant("N_MEMORY").value_())
            mask = int.from_bytes(kernel.read(node_states + 8 * words * index, 8 * words), "little")
        except (LookupError, Unavailable):
            mask = 0
        self._with_memory = [n for n in range(1 << self._shift) if mask >> n & 1]

    def count(self, pages: int, count: int, step: int) -> Mapping[str, int]:
        """Count the pages of an array by node; without CONFIG_NUMA the result is empty.

        :raises Unavailable: the array or a page is not in the source.
        """
        if self._shift == 0:
            return {}
        whole = -(-count // step) * step
        if len(self._with_memory) == 1:
            return self._single.setdefault(whole, {str(self._with_memory[0]): whole})
        counts: Dict[int, int] = {}
        data = self._kernel.read(pages, 8 * count)
        for index in range(0, count, step):
            page = int.from_bytes(data[8 * index : 8 * index + 8], "little")
            # include/linux/page-flags-layout.h: with a virtual memory map the node is in the topmost bits.
            node = pointer_at(self._kernel, page) >> (64 - self._shift)
            counts[node] = counts.get(node, 0) + step
        return {str(node): counts[node] for node in sorted(counts)}


def _problem(index: int, row: AreaRow, frames: _Frames, reader: Areas) -> Optional[str]:
    """How the page tables contradict an area; None if they do not, or ``frames`` finds it out.

    Reservations (sparse, vm_map_ram) may be mapped or not. Other areas are mapped up to the guard page.
    """
    room, mapped = row.size - row.guard, row.mapped
    if row.kind == "unpurged":
        return f"freed, but {mapped} bytes are still mapped" if mapped else None
    if row.kind not in (_PAGES, _MAPPED, _DEVICE):
        return None
    shift = frames.page_shift
    expected = row.pages << shift if row.pages else room
    if not row.pages and (row.kind == _PAGES or (row.kind == _MAPPED and not mapped)):
        return None  # reservations that are mapped on demand: per-CPU chunks, get_vm_area()
    if mapped != expected:
        return f"{mapped} bytes are mapped, not {expected}"
    array = reader.page_arrays.get(row.start)
    if array is not None:
        frames.expect(index, row.start, *array)
    elif row.kind == _DEVICE and row.physical is not None:
        frames.expect_linear(index, row.start, row.physical, mapped >> shift)
    return None


class _Frames:
    """Compares expected page frames with those in the page tables, those of many areas at once.

    :param read: reads small parts of memory.
    :param problems: takes a text for each area whose pages are not the expected ones, by the area's index.
    """

    #: Pages that are compared at once.
    _MOST = 1 << 17

    def __init__(self, kernel: Kernel, read: Read, problems: Dict[int, str]) -> None:
        self._kernel = kernel
        self._read = read
        self._problems = problems
        self.page_shift = kernel.page_shift
        #: (index, first address, number of pages) of areas, and for each the addresses of its struct pages.
        self._areas: List[Tuple[int, int, int]] = []
        self._arrays: List[bytes] = []
        #: The same of areas of consecutive pages, and for each its physical addresses.
        self._linear: List[Tuple[int, int, int]] = []
        self._physical: List[NDArray[numpy.uint64]] = []
        self._count = 0
        try:
            self._base, self._size, _ = VMEMMAP.pages(kernel)
        except Unavailable:
            self._base = self._size = 0

    def expect(self, index: int, start: int, pages: int, count: int) -> None:
        """Expect the pages of an array, mapped consecutively from an address."""
        if not self._size:
            return
        try:
            self._arrays.append(self._read(pages, 8 * count))
        except Unavailable:
            return
        self._areas.append((index, start, count))
        self._added(count)

    def expect_linear(self, index: int, start: int, physical: int, count: int) -> None:
        """Expect ``count`` consecutive pages of physical memory."""
        import numpy

        u = numpy.uint64
        wanted = (numpy.arange(count, dtype=u) << u(self.page_shift)) + u(physical & -(1 << self.page_shift))
        self._physical.append(wanted)
        self._linear.append((index, start, count))
        self._added(count)

    def _added(self, count: int) -> None:
        self._count += count
        if self._count >= self._MOST:
            self.compare()

    def _take(self) -> Tuple[List[Tuple[int, int, int]], NDArray[numpy.uint64]]:
        """Areas that wait, and the physical addresses of all their pages."""
        import numpy

        u = numpy.uint64
        structs = numpy.frombuffer(b"".join(self._arrays), UINT64).astype(u, copy=False)
        frames = (structs - u(self._base)) // u(self._size or 1)
        expected = numpy.concatenate([frames << u(self.page_shift), *self._physical])
        areas = self._areas + self._linear
        self._areas, self._arrays, self._linear, self._physical, self._count = [], [], [], [], 0
        return areas, expected

    def compare(self) -> None:
        """Compare what is expected so far."""
        import numpy

        waiting, expected = self._take()
        if not waiting:
            return
        u = numpy.uint64
        lengths = numpy.array([count for _, _, count in waiting])
        ends = numpy.cumsum(lengths)
        starts = numpy.array([start for _, start, _ in waiting], u)
        within = numpy.arange(int(ends[-1])) - numpy.repeat(ends - lengths, lengths)
        addresses = numpy.repeat(starts, lengths) + (within.astype(u) << u(self.page_shift))
        physical, states = self._kernel.translate_array(addresses)
        bad = numpy.flatnonzero((states == MAPPED) & (physical != expected))
        owners = numpy.searchsorted(ends, bad, side="right")
        counts = numpy.bincount(owners, minlength=len(waiting))
        for owner in numpy.flatnonzero(counts).tolist():
            first = int(bad[int(numpy.searchsorted(owners, owner))])
            self._problems[waiting[owner][0]] = (
                f"{counts[owner]} pages are not those of the area: at {int(addresses[first]):016x} "
                f"{int(physical[first]):x}, not {int(expected[first]):x}"
            )


def gaps_between(where: AddressRange, rows: Sequence[AreaRow]) -> List[GapRow]:
    """Gaps between areas, the largest first."""
    gaps = []
    cursor, behind = where.start, None
    inside = sorted((row for row in rows if row.start in where), key=lambda row: row.start)
    for row in inside:
        if row.start > cursor:
            gaps.append(_gap(cursor, row.start - 1, behind))
        if row.end + 1 > cursor:
            cursor, behind = row.end + 1, row.caller or row.kind
    if cursor <= where.end:
        gaps.append(_gap(cursor, where.end, behind))
    gaps.sort(key=lambda gap: (-gap.size, gap.start))
    return gaps


def _gap(start: int, end: int, behind: Optional[str]) -> GapRow:
    return GapRow(Address(start), Address(end), Size(end - start + 1), behind)


def by_caller(rows: Sequence[AreaRow], title: str) -> Table:
    """Sums over the areas of each allocating function."""
    return Table("by_caller", (Column("name", "caller"), *_SUM_COLUMNS), _sums(rows, _function), title)


def _function(row: AreaRow) -> str:
    """The caller without the offset; the kind of area if the caller is unknown."""
    return row.caller.split("+")[0] if row.caller else f"({row.kind})"


def _kind(row: AreaRow) -> str:
    return row.kind


def _sums(rows: Sequence[AreaRow], key: Callable[[AreaRow], str]) -> List[SumRow]:
    """Sums over rows with the same key, the largest first."""
    groups: Dict[str, List[AreaRow]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    sums = [
        SumRow(
            name,
            len(group),
            Size(sum(row.size for row in group)),
            sum(row.pages for row in group),
            Size(sum(row.guard for row in group)),
            Size(sum(row.mapped for row in group)),
        )
        for name, group in groups.items()
    ]
    return sorted(sums, key=lambda row: (-row.size, row.name))


def _examples(rows: Sequence[AreaRow]) -> str:
    shown = "; ".join(f"{row.start:016x}: {row.problem}" for row in rows[:3])
    return shown + ("; ..." if len(rows) > 3 else "")


REGION = Vmalloc()
