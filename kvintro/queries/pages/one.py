# SPDX-License-Identifier: LGPL-2.1-or-later
"""One page frame: its struct page and everything that this refers to."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from functools import cached_property
from typing import List, Optional, Tuple

import drgn

from kvintro.errors import NotInDump, Unavailable
from kvintro.kernels import Kernel
from kvintro.model import ALL
from kvintro.queries.pages.census import Pages
from kvintro.queries.pages.meaning import KPF_SWAPCACHE, Meaning
from kvintro.queries.pages.owner import PageOwner, page_owner
from kvintro.queries.pages.runs import DANGLING, MAPPED, OFFLINE, TAIL, TYPE_MASK, Runs
from kvintro.readers.bounds import bounded
from kvintro.readers.files import FileName, file_of
from kvintro.readers.kfence import KfencePool
from kvintro.readers.names import Names
from kvintro.readers.structures import (
    TROUBLE,
    has_member,
    number,
    optional,
    struct_at,
    text_at,
)

_BLOCKS = 4  # decoded blocks to keep, 2 MB each
_PATH_DEPTH = 64
_SWP_TYPE_SHIFT = 58  # include/linux/swapops.h: BITS_PER_XA_VALUE - MAX_SWAPFILES_SHIFT


@dataclass(frozen=True)
class PageState:
    """A struct page, as far as it can be decoded by itself.

    :ivar state: see :mod:`kvintro.queries.pages.runs`.
    :ivar head: state of the compound page's head for a tail, else 0.
    :ivar head_pfn: page frame of the head for a tail, else its own.
    :ivar free_pfn: first page frame of the free block that contains it, if any.
    :ivar mapping: ``mapping`` of the head: what the page belongs to.
    :ivar offset: position of the page in its mapping, in pages of 4 KB; None if unknown.
    :ivar mapcount: number of page-table entries that map the page, as in /proc/kpagecount; None if unknown.
    :ivar is_typed: whether its kind has no mapping: slab, page table, free...
    """

    pfn: int
    state: int
    head: int
    head_pfn: int
    node: Optional[int]
    zone: str
    free_pfn: Optional[int]
    flags: int
    refcount: int
    mapcount: Optional[int]
    private: int
    mapping: int
    offset: Optional[int]
    memcg_data: int
    is_typed: bool


@dataclass(frozen=True)
class SlabUse:
    """The slab that a page is part of.

    :ivar object_address: the object that contains the given address; None if the address is not in the slab.
    :ivar allocated: whether that object is in use; None if that is unknown.
    """

    cache: Optional[str]
    cache_address: int
    object_size: int
    objects: int
    in_use: int
    object_address: Optional[int] = None
    object_offset: Optional[int] = None
    allocated: Optional[bool] = None


@dataclass(frozen=True)
class MemoryGroup:
    """The cgroup that a page is charged to.

    :ivar path: path of the cgroup.
    :ivar kernel: whether it is charged as kernel memory.
    """

    path: Optional[str]
    address: int
    kernel: bool


@dataclass(frozen=True)
class SwapPlace:
    """Place in swap space of a page in the swap cache.

    :ivar type: number of the swap file or device, as in /proc/PID/pagemap.
    :ivar offset: number of the page in that file or device.
    """

    type: int
    offset: int


def _word(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 8], "little")


class PageLookup:
    """Looks up single pages.

    :raises Unavailable: the layout of struct pages is unknown, or there are none.
    """

    def __init__(self, kernel: Kernel, pages: Optional[Pages] = None) -> None:
        self.kernel = kernel
        self.pages = pages if pages is not None else Pages(kernel)
        self.form = self.pages.form
        self.meaning: Meaning = self.pages.meaning
        self._blocks: "OrderedDict[int, Optional[Runs]]" = OrderedDict()

    def _runs(self, pfn: int) -> Runs:
        """The decoded block of a page frame.

        :raises Unavailable: the page frame has no struct page, or it is not in the source.
        """
        sections = self.pages.sections
        found = next((r for r in sections.ranges if r[0] <= pfn < r[1]), None)
        if found is None:
            raise Unavailable(
                f"page frame {pfn:x} has no struct page: no memory is known there; {self._nearby(pfn)}"
            )
        low = found[0]
        if low not in self._blocks:
            while len(self._blocks) >= _BLOCKS:
                self._blocks.popitem(last=False)
            pieces = list(self.pages.reader.pieces(sections.clip(pfn, pfn + 1)))
            piece = next(p for p in pieces if p.first <= pfn < p.first + p.count)
            if piece.state != "read":
                if piece.state == "missing":
                    raise NotInDump(self.form.address(pfn), self.form.size, physical=False)
                raise Unavailable(
                    f"page frame {pfn:x} has no struct page: nothing is mapped where it would be"
                )
            runs = self.pages.decoder.decode(piece.data, piece.first, online=piece.online)
            if len(pieces) > 1:
                return runs
            self._blocks[low] = runs
        self._blocks.move_to_end(low)
        kept = self._blocks[low]
        assert kept is not None
        return kept

    def _nearby(self, pfn: int) -> str:
        """The nearest page frames that do have a struct page, for an error message."""
        ranges = self.pages.sections.ranges
        above = next((low for low, _ in ranges if low > pfn), None)
        below = next((high - 1 for _, high in reversed(ranges) if high <= pfn), None)
        if above is None:
            return "there are none at all" if below is None else f"the highest that has one is {below:x}"
        if below is None:
            return f"the lowest that has one is {above:x}"
        return f"the next below is {below:x}, the next above {above:x}"

    def state(self, pfn: int) -> PageState:
        """Decode the struct page of a page frame.

        :raises Unavailable: the page frame has no struct page, or it is not in the source.
        """
        import numpy

        runs = self._runs(pfn)
        run = int(numpy.searchsorted(runs.starts, pfn - runs.first, side="right")) - 1
        state, head = int(runs.states[run]), int(runs.heads[run])
        if state & OFFLINE:
            raise Unavailable(
                f"page frame {pfn:x} is in memory that was not put online: its struct page is not valid yet"
            )
        row = runs.rows[pfn - runs.first]
        place = int(runs.places[run])
        head_pfn = int(runs.head_pfns[run]) if head else pfn
        meaning = self.meaning
        free_pfn = None
        if meaning.is_free_head(state):
            free_pfn = pfn
        elif meaning.is_free(state):
            at = run
            while at >= 0 and not meaning.is_free_head(int(runs.states[at])):
                at -= 1
            free_pfn = int(runs.starts[at]) + runs.first if at >= 0 else None
        whole = head or state
        compound = bool(head) or meaning.is_head(state)
        second = self.pages.reader.read(head_pfn, 2) if compound else None
        first = self._read(head_pfn) if second is None else second
        typed = (
            meaning.is_free(state)
            or meaning.is_slab(whole)
            or (bool(whole & TYPE_MASK) and not meaning.is_hugetlb(whole))
        )
        mapping, index = self._mapping(first)
        shift = 0
        if compound and meaning.is_hugetlb(whole) and self._hugetlb_units:
            shift = meaning.order(state, head)
        memcg = 0
        if self.form.memcg_data is not None:
            memcg = _word(first, self.form.memcg_data)
        return PageState(
            pfn=pfn,
            state=state,
            head=head,
            head_pfn=head_pfn,
            node=self.pages.node_of(place),
            zone=self.pages.zone_of(place),
            free_pfn=free_pfn,
            flags=int(row["flags"]),
            refcount=int(row["refcount"]),
            mapcount=self._mapcount(state, whole, int(row["page_type"]), second),
            private=int(row["private"]),
            mapping=mapping,
            offset=None if index is None else (index << shift) + pfn - head_pfn,
            memcg_data=memcg,
            is_typed=typed,
        )

    # Fields of the head

    @cached_property
    def _names(self) -> Names:
        return Names(self.kernel)

    @cached_property
    def _hugetlb_units(self) -> bool:
        """Whether ``index`` of hugetlb pages counts pages of their own size (until 6.7)."""
        return self.kernel.find_symbol("hugetlb_basepage_index") is not None

    def _read(self, pfn: int) -> bytes:
        """The struct page of a page frame.

        :raises NotInDump: it is not in the source.
        """
        data = self.pages.reader.read(pfn, 1)
        if data is None:
            raise NotInDump(self.form.address(pfn), self.form.size, physical=False)
        return data

    def _mapping(self, data: bytes) -> Tuple[int, Optional[int]]:
        index = self.form.index
        return _word(data, self.form.mapping), None if index is None else _word(data, index)

    def _mapcount(self, state: int, whole: int, own: int, head: Optional[bytes]) -> Optional[int]:
        """include/linux/mm.h:folio_precise_page_mapcount, in 6.1 mm/util.c:__page_mapcount."""
        count = own + 1 if state & MAPPED else 0
        if head is None:
            return count
        if self.meaning.is_slab(whole):
            return 0
        if self.form.large_mapcount is None:
            return None
        at = self.form.entire_mapcount
        entire = int.from_bytes(head[at : at + 4], "little", signed=True) + 1 if at is not None else 0
        if self.form.counts_parts and self.meaning.is_hugetlb(whole):
            return entire
        double = self.form.mask("double_map")
        second = int.from_bytes(head[self.form.size + self.form.flags :][:8], "little")
        if double and self.form.counts_parts and second & double and not self.meaning.is_hugetlb(whole):
            count -= 1
        return count + max(entire, 0)

    # What the struct page refers to

    def kind(self, page: PageState) -> str:
        """One of :data:`kvintro.queries.pages.meaning.TYPES`."""
        return self.meaning.type_of(page.state, page.head)

    def order(self, page: PageState) -> int:
        """Order of the compound page or free block that contains the page."""
        if page.free_pfn is not None and page.free_pfn != page.pfn:
            return self.order(self.state(page.free_pfn))
        return self.meaning.order(page.state, page.head)

    def compound(self, page: PageState) -> Optional[str]:
        """``head``, ``tail``, ``tail without a head`` or None."""
        if page.state & TAIL:
            return "tail without a head" if page.state & DANGLING else "tail"
        return "head" if self.meaning.is_head(page.state) else None

    def file(self, page: PageState) -> Optional[FileName]:
        """The file that the page is a cached part of; None if it caches no file.

        :raises Unavailable: the file cannot be read.
        """
        if page.is_typed or not page.mapping or page.mapping & 3:
            return None
        space = struct_at(self.kernel, "struct address_space", page.mapping)
        host = number(space, "host")
        if not host:
            return None  # the swap cache
        return file_of(self.kernel, host)

    def swap(self, page: PageState) -> Optional[SwapPlace]:
        """Place in swap space of a page in the swap cache; None if it is not in the swap cache.

        :raises NotInDump: the struct page of its head is not in the source.
        """
        if not self.meaning.kpageflags(page.state, page.head) >> KPF_SWAPCACHE & 1:
            return None
        entry = _word(self._read(page.head_pfn), self.form.private) + page.pfn - page.head_pfn
        # include/linux/swapops.h:swp_type
        return SwapPlace(entry >> _SWP_TYPE_SHIFT, entry & (1 << _SWP_TYPE_SHIFT) - 1)

    def slab(self, page: PageState, address: Optional[int] = None) -> Optional[SlabUse]:
        """The slab that contains the page; None if it is in no slab.

        :param address: an address in the page, to find its object.
        :raises Unavailable: the slab cannot be read.
        """
        if not self.meaning.is_slab(page.head or page.state):
            return None
        if self.form.slab_cache is None:
            raise Unavailable("the slab's cache is not known: its offset in struct page is not known")
        if self.fenced(page.pfn) is not None:
            return None
        cache_at = _word(self._read(page.head_pfn), self.form.slab_cache)
        cache = struct_at(self.kernel, "struct kmem_cache", cache_at)
        try:
            slab: drgn.Object = struct_at(self.kernel, "struct slab", self.form.address(page.head_pfn))
        except Unavailable:
            slab = struct_at(self.kernel, "struct page", self.form.address(page.head_pfn))
        try:
            name: Optional[str] = text_at(self.kernel, number(cache, "name"), 256)
        except Unavailable:
            name = None
        start = into = allocated = None
        if address is not None:
            start, into, allocated = self._object(page, cache, number(slab, "objects"), address)
        return SlabUse(
            cache=name,
            cache_address=cache_at,
            object_size=number(cache, "object_size"),
            objects=number(slab, "objects"),
            in_use=number(slab, "inuse"),
            object_address=start,
            object_offset=into,
            allocated=allocated,
        )

    def fenced(self, pfn: int) -> Optional[KfencePool]:
        """KFENCE's pool, if it contains the page frame."""
        pool, _ = self.pages.fence
        address = self.kernel.linear_offset.value + (pfn << self.kernel.page_shift) & ALL
        return pool if pool is not None and address in pool else None

    def _object(
        self, page: PageState, cache: drgn.Object, objects: int, address: int
    ) -> "Tuple[Optional[int], Optional[int], Optional[bool]]":
        """(address of the object that contains an address, offset in it, whether it is allocated)."""
        from drgn.helpers.linux.slab import slab_object_info

        base, size = self.direct_address(page.head_pfn), number(cache, "size")
        if base is None or not size:
            return None, None, None
        index, into = divmod(address - base, size)
        # mm/slub.c:fixup_red_left: with red zones, one precedes each object.
        pad = number(cache, "red_left_pad")
        if index >= objects or into < pad:
            return None, None, None
        allocated: Optional[bool] = None
        try:
            with bounded(2):
                found = slab_object_info(self.kernel.prog, address)
            allocated = None if found is None else bool(found.allocated)
        except (*TROUBLE, NotImplementedError):
            pass
        return address - into + pad, into - pad, allocated

    def group(self, page: PageState) -> Optional[MemoryGroup]:
        """The cgroup that the page is charged to, None if none (include/linux/memcontrol.h:page_memcg).

        :raises Unavailable: it cannot be read.
        """
        data = page.memcg_data
        if not data or page.free_pfn is not None:
            return None
        prog = self.kernel.prog
        if has_member(self.kernel, "struct page", "mem_cgroup"):
            # Until 5.11 this is the group itself, except for slabs, which list their objects' groups.
            charged = self.meaning.is_type(page.head or page.state, "kmemcg")
            return None if data & 1 else MemoryGroup(self._cgroup_path(data), data, charged)
        try:
            last = next(n for n in ("__NR_OBJEXTS_FLAGS", "__NR_MEMCG_DATA_FLAGS") if _has(prog, n))
            mask = int(prog.constant(last)) - 1
            charged_kernel = int(prog.constant("MEMCG_DATA_KMEM"))
            vector = next(
                (int(prog.constant(n)) for n in ("MEMCG_DATA_OBJEXTS", "MEMCG_DATA_OBJCGS") if _has(prog, n)),
                0,
            )
        except (LookupError, StopIteration) as error:
            raise Unavailable(f"how memory is charged to cgroups is not known: {error}") from error
        if data & vector or self.meaning.is_slab(page.head or page.state):
            return None  # each object is charged separately
        address = data & ~mask & ALL
        kernel = bool(data & charged_kernel)
        # Kernel memory is charged to an obj_cgroup; since that has is_root (7.1), all memory is.
        if kernel or has_member(self.kernel, "struct obj_cgroup", "is_root"):
            address = number(struct_at(self.kernel, "struct obj_cgroup", address), "memcg")
        return MemoryGroup(self._cgroup_path(address), address, kernel)

    def _cgroup_path(self, memcg: int) -> Optional[str]:
        try:
            found = struct_at(self.kernel, "struct mem_cgroup", memcg)
            group = struct_at(self.kernel, "struct cgroup", int(found.css.cgroup.value_()))
            node = number(group, "kn")
            names: List[str] = []
            for _ in range(_PATH_DEPTH):
                entry = struct_at(self.kernel, "struct kernfs_node", node)
                parent = optional(entry, "parent")
                if parent is None:
                    parent = entry.member_("__parent")  # 6.15
                above = int(parent.value_())
                if not above:
                    return "/" + "/".join(reversed(names))
                names.append(text_at(self.kernel, number(entry, "name"), 256))
                node = above
        except TROUBLE:
            pass
        return None

    def owner(self, page: PageState) -> Optional[PageOwner]:
        """Allocation record of the page; None if this kernel keeps none.

        :raises Unavailable: the record cannot be read.
        """
        return page_owner(self.kernel, self._names, page.pfn)

    def direct_address(self, pfn: int) -> Optional[int]:
        """Address of the page in the direct map; None if it is not mapped there."""
        address = self.kernel.linear_offset.value + (pfn << self.kernel.page_shift) & ALL
        found = self.kernel.walk(address)
        return address if found.physical == pfn << self.kernel.page_shift else None


def _has(prog: drgn.Program, name: str) -> bool:
    try:
        prog.constant(name)
        return True
    except LookupError:
        return False
