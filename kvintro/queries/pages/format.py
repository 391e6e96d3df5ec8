# SPDX-License-Identifier: LGPL-2.1-or-later
"""The layout of ``struct page`` on this kernel, from its types.

Everything here is an offset, a mask or an enumerator's value from the kernel's own types. Only macros, which
type information does not contain, are written down, each with the file that defines it. Without types,
:mod:`kvintro.queries.pages.by_vmcoreinfo` makes a less complete :class:`PageFormat`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Dict, Mapping, Optional, Tuple

import drgn

from kvintro.errors import Unavailable
from kvintro.kernels import Kernel
from kvintro.model import ALL
from kvintro.regions.vmemmap import REGION as VMEMMAP

#: Kinds of page_type by our names, which are the kernel's except pgtable (include/linux/page-flags.h).
PAGE_TYPES = (
    "buddy",
    "offline",
    "table",
    "guard",
    "hugetlb",
    "slab",
    "zsmalloc",
    "unaccepted",
    "large_kmalloc",
    "kmemcg",
)


@dataclass(frozen=True)
class TypeField:
    """How ``page_type`` encodes the type of a page.

    :ivar inverted: whether a clear bit means a type if all bits of ``base`` are set (before 6.11); otherwise
        the top byte is a number.
    :ivar base: see ``inverted``.
    :ivar shift: right shift of the field (of its complement if inverted) that gives a code.
    :ivar codes: codes by the kernel's name of the type; a bit if inverted, else the whole byte.
    :ivar complete: whether ``codes`` has every type of the kernel.
    """

    inverted: bool
    base: int
    shift: int
    codes: Mapping[str, int]
    complete: bool = True

    def is_type(self, code: int, name: str) -> bool:
        """Whether the code of a page means this type."""
        wanted = self.codes.get(name)
        if wanted is None:
            return False
        return bool(code & wanted) if self.inverted else code == wanted

    @property
    def bits(self) -> int:
        """The bits of an inverted code that mean a type."""
        return sum(set(self.codes.values())) & 0xFF if self.complete else 0xFF

    def is_nameless(self, code: int) -> bool:
        """Whether the code of a page means a type of this kernel that is not in ``codes``."""
        if self.complete:
            return False
        if self.inverted:
            return bool(code & ~sum(set(self.codes.values())))
        return bool(code) and code not in self.codes.values()


@dataclass(frozen=True)
class PageFormat:
    """Offsets and masks of ``struct page`` on one kernel.

    :ivar size: sizeof(struct page).
    :ivar base: virtual address of page frame 0's struct page, whether or not it exists.
    :ivar page_size: bytes of a page.
    :ivar flags: offset of the flags word.
    :ivar compound: offset of ``compound_head`` or ``compound_info``.
    :ivar compound_masks: whether tails may hold a mask for the head's address instead of the address.
    :ivar page_type: offset of ``page_type``, the same as that of ``_mapcount``.
    :ivar bits: bit numbers of ``enum pageflags`` by name, without PG_.
    :ivar width: __NR_PAGEFLAGS.
    :ivar large_order: offset, from a head page, of the byte with a compound page's order.
    :ivar large_mapcount: offset, from a head page, of an int, the number of its mappings minus one; None if
        unknown.
    :ivar counts_parts: whether that number omits mappings of single pages (before 6.9).
    :ivar large_dtor: offset, from a head page, of the byte that marks hugetlb, and that value; None if
        another field marks it.
    :ivar large_hugetlb: mask in the flags of the second page that marks hugetlb; 0 if another field does.
    :ivar large_rmappable: mask in the flags of the second page that marks pages that user space may map.
    :ivar zone_shift: lowest bit of zone and node in the flags.
    :ivar zone_bits: width of the zone; the node is above it.
    :ivar zones: names of the zones by number.
    :ivar folio_flags: whether /proc/kpageflags shows the head's flags for a tail (6.10).
    :ivar folio_types: whether it also shows the head's type for a tail (7.0).
    :ivar tells_nopage: whether it shows KPF_NOPAGE instead of 0 for page frames without a page (until 6.16).
    :ivar index: offset of the page's position in its file or mapping; None if unknown.
    :ivar entire_mapcount: offset, from a head page, of an int, the number of entries that map all of it
        minus one; None if unknown or not counted.
    :ivar slab_counts: how a slab counts its objects: name (``objects``, ``in_use``), offset, shift and mask.
    :ivar unknown_flags: bits of /proc/kpageflags that this source does not determine on this kernel.
    :ivar lacks: what this layout lacks, one sentence each; empty if it is complete.
    """

    size: int
    base: int
    page_size: int
    flags: int
    compound: int
    compound_masks: bool
    page_type: int
    refcount: int
    mapping: int
    private: int
    memcg_data: Optional[int]
    slab_cache: Optional[int]
    types: TypeField
    bits: Mapping[str, int]
    width: int
    large_order: int
    large_mapcount: Optional[int]
    counts_parts: bool
    large_dtor: Optional[Tuple[int, int]]
    large_hugetlb: int
    large_rmappable: int
    zone_shift: int
    zone_bits: int
    node_bits: int
    zones: Tuple[str, ...]
    folio_flags: bool
    folio_types: bool
    tells_nopage: bool = True
    index: Optional[int] = None
    entire_mapcount: Optional[int] = None
    slab_counts: Tuple[Tuple[str, int, int, int], ...] = ()
    unknown_flags: int = 0
    lacks: Tuple[str, ...] = ()

    def mask(self, *names: str) -> int:
        """Mask of those of the named flags that this kernel has."""
        return sum(1 << self.bits[name] for name in dict.fromkeys(names) if name in self.bits)

    def address(self, pfn: int) -> int:
        """Virtual address of a page frame's struct page."""
        return self.base + pfn * self.size & ALL

    def zone_name(self, number: int) -> str:
        """The kernel's name of a zone."""
        return self.zones[number] if number < len(self.zones) else f"zone {number}"


def format_by_types(kernel: Kernel) -> PageFormat:
    """Return the layout on this kernel from its types.

    :raises Unavailable: the types lack something that is needed.
    """
    try:
        return _page_format(kernel)
    except (LookupError, AttributeError, ValueError, TypeError) as error:
        raise Unavailable(f"struct page has an unknown layout: {error}") from error


def _page_format(kernel: Kernel) -> PageFormat:
    prog = kernel.prog
    page = prog.type("struct page")
    base, size, _ = VMEMMAP.pages(kernel)
    if page.size != size:
        raise Unavailable(
            f"struct page has {page.size} bytes in the types and {size} in the dump: the types are from "
            "another kernel"
        )
    flags = enumerators(prog.type("enum pageflags"))
    width = flags["__NR_PAGEFLAGS"]
    bits = {name[3:]: value for name, value in flags.items() if name.startswith("PG_") and 0 <= value < width}
    masks = page.has_member("compound_info")
    compound = offset(page, "compound_info" if masks else "compound_head")
    types = _types(kernel)
    nodes, zones = _widths(kernel)
    order, mapcount, parts = _large(prog, page, size)
    room = 64 - nodes - zones
    if width > 32 or width > room:
        raise ValueError(f"{width} page flags and {nodes + zones} bits of node and zone leave no room")
    return PageFormat(
        size=size,
        base=base,
        page_size=kernel.form.page_size,
        flags=offset(page, "flags"),
        compound=compound,
        compound_masks=masks,
        page_type=offset(page, "page_type"),
        refcount=offset(page, "_refcount"),
        mapping=offset(page, "mapping"),
        private=offset(page, "private"),
        # 5.11 added flags to the pointer and renamed it.
        memcg_data=_maybe_offset(page, "memcg_data", "mem_cgroup"),
        slab_cache=_slab_cache(prog, page),
        types=types,
        bits=bits,
        width=width,
        large_order=order,
        large_mapcount=mapcount,
        counts_parts=parts,
        large_dtor=_hugetlb_dtor(prog, page, size),
        large_hugetlb=1 << bits["hugetlb"] if "hugetlb" in bits else 0,
        large_rmappable=1 << bits["large_rmappable"] if "large_rmappable" in bits else 0,
        zone_shift=room,
        zone_bits=zones,
        node_bits=nodes,
        zones=_zone_names(prog),
        # PG_slab became a page type in 6.10, in the same merge as fs/proc/page.c's use of folios.
        folio_flags="slab" not in bits,
        folio_types=kernel.find_symbol("snapshot_page") is not None,
        tells_nopage=not _has_enumerator(prog, "enum kpage_operation", "KPAGE_FLAGS"),
        index=_index(prog, page),
        entire_mapcount=mapcount if parts else _entire_mapcount(prog),
        slab_counts=_slab_counts(prog, page),
    )


def _hugetlb_dtor(prog: drgn.Program, page: drgn.Type, size: int) -> Optional[Tuple[int, int]]:
    """Offset of a large page's destructor, and the one of hugetlb pages; None without destructors."""
    if not _has_enumerator(prog, "enum compound_dtor_id", "HUGETLB_PAGE_DTOR"):
        return None
    dtors = enumerators(prog.type("enum compound_dtor_id"))
    at = _first_offset(prog, size, ("compound_dtor", page), ("_folio_dtor", None))
    return at, dtors["HUGETLB_PAGE_DTOR"]


def _zone_names(prog: drgn.Program) -> Tuple[str, ...]:
    """Names of the zones by number."""
    names = enumerators(prog.type("enum zone_type"))
    found = [""] * names["__MAX_NR_ZONES"]
    for name, number in names.items():
        if name.startswith("ZONE_") and number < len(found):
            found[number] = _zone_name(name[5:])
    return tuple(found)


def enumerators(type_: drgn.Type) -> Dict[str, int]:
    """Values of an enumeration by name."""
    return {e.name: e.value for e in type_.enumerators or ()}


def offset(type_: drgn.Type, member: str) -> int:
    """Offset of a member in bytes. The member may be in nested anonymous unions."""
    found: int = drgn.offsetof(type_, member)
    return found


def _maybe_offset(type_: drgn.Type, *members: str) -> Optional[int]:
    return next((offset(type_, name) for name in members if type_.has_member(name)), None)


def _first_offset(prog: drgn.Program, size: int, *ways: "Tuple[str, Optional[drgn.Type]]") -> int:
    """Offset, from a head page, of a member of the second page, or of the folio (type None)."""
    for name, type_ in ways:
        if type_ is not None:
            if type_.has_member(name):
                return size + offset(type_, name)
            continue
        try:
            folio = prog.type("struct folio")
        except LookupError:
            continue
        if folio.has_member(name):
            return offset(folio, name)
    raise LookupError(f"neither struct page nor struct folio has {' or '.join(name for name, _ in ways)}")


def _large(prog: drgn.Program, page: drgn.Type, size: int) -> Tuple[int, int, bool]:
    """Offsets of a compound page's order and mapping count, and whether the count omits single pages."""
    try:
        order = _first_offset(prog, size, ("compound_order", page), ("_folio_order", None))
    except LookupError:
        # include/linux/mm.h:folio_large_order: the low byte of the second page's flags.
        order = _first_offset(prog, size, ("_flags_1", None))
    try:
        return order, _first_offset(prog, size, ("_large_mapcount", None)), False
    except LookupError:
        ways = (("compound_mapcount", page), ("_entire_mapcount", None), ("_total_mapcount", None))
        return order, _first_offset(prog, size, *ways), True


def _entire_mapcount(prog: drgn.Program) -> Optional[int]:
    try:
        return _maybe_offset(prog.type("struct folio"), "_entire_mapcount")
    except LookupError:
        return None


def _index(prog: drgn.Program, page: drgn.Type) -> int:
    found = _maybe_offset(page, "index", "__folio_index")
    return offset(prog.type("struct folio"), "index") if found is None else found


def _slab_counts(prog: drgn.Program, page: drgn.Type) -> Tuple[Tuple[str, int, int, int], ...]:
    try:
        type_ = prog.type("struct slab")
    except LookupError:
        type_ = page
    counts = []
    for ours, theirs in (("objects", "objects"), ("in_use", "inuse")):
        try:
            member = type_.member(theirs)
        except LookupError:
            return ()
        bits = member.bit_field_size or drgn.sizeof(member.type) * 8
        counts.append((ours, member.bit_offset // 32 * 4, member.bit_offset % 32, (1 << bits) - 1))
    return tuple(counts)


def _slab_cache(prog: drgn.Program, page: drgn.Type) -> Optional[int]:
    try:
        return offset(prog.type("struct slab"), "slab_cache")
    except LookupError:
        return _maybe_offset(page, "slab_cache")


def _zone_name(name: str) -> str:
    # mm/page_alloc.c:zone_names: DMA and DMA32 stay as they are, the others are capitalised.
    return {"HIGHMEM": "HighMem"}.get(name, name if name.startswith("DMA") else name.capitalize())


def _types(kernel: Kernel) -> TypeField:
    prog = kernel.prog
    try:
        found = enumerators(prog.type("enum pagetype"))
    except LookupError:
        found = {}
    numbers = {name[5:]: value for name, value in found.items() if name.startswith("PGTY_")}
    if numbers:
        # include/linux/page-flags.h:PAGE_TYPE_OPS compares the top byte.
        return TypeField(False, 0, 24, {name: numbers[name] for name in PAGE_TYPES if name in numbers})
    inverted = {name[3:]: value for name, value in found.items() if name.startswith("PG_")}
    if inverted:
        # 6.10: an enumeration of bits from 30 down, including PAGE_TYPE_BASE.
        base = found["PAGE_TYPE_BASE"] & 0xFFFFFFFF
        codes = {name: inverted[name] >> 24 for name in PAGE_TYPES if name in inverted}
        return TypeField(True, base, 24, codes)
    # Before that they were macros of include/linux/page-flags.h. VMCOREINFO has two of them.
    buddy = ~kernel.number("NUMBER(PAGE_BUDDY_MAPCOUNT_VALUE)").value
    if buddy != 0x80:
        raise ValueError(f"PG_buddy is {buddy:#x}")
    codes = {"buddy": 0x80, "offline": 0x100, "table": 0x200, "guard": 0x400}
    if _kmemcg_is_a_type(prog):
        codes.update(kmemcg=0x200, table=0x400, guard=0x800)
    # PG_hugetlb of the second page replaced the destructors, and this type soon replaced PG_hugetlb (6.9, and
    # many stable kernels of 6.6 and 6.8).
    has_dtors = _has_enumerator(prog, "enum compound_dtor_id", "NULL_COMPOUND_DTOR")
    if not has_dtors and not _has_enumerator(prog, "enum pageflags", "PG_hugetlb"):
        codes["hugetlb"] = 0x800
    return TypeField(True, 0xF0000000, 7, {name: value >> 7 for name, value in codes.items()})


def _kmemcg_is_a_type(prog: drgn.Program) -> bool:
    """Whether PG_kmemcg is one of the types, as up to 5.10, which shifts the types after it.

    It was removed when memcg_data replaced mem_cgroup in struct page. Without CONFIG_MEMCG, struct page has
    neither member, but the type may exist; then another addition of 5.11 decides.
    """
    page = prog.type("struct page")
    if page.has_member("memcg_data") or page.has_member("mem_cgroup"):
        return bool(page.has_member("mem_cgroup"))
    return not member_type(prog.type("struct mm_struct"), "context").type.has_member("flags")


def _has_enumerator(prog: drgn.Program, type_name: str, name: str) -> bool:
    try:
        return name in enumerators(prog.type(type_name))
    except LookupError:
        return False


def _widths(kernel: Kernel) -> Tuple[int, int]:
    """NODES_WIDTH and ZONES_WIDTH of include/linux/page-flags-layout.h, with SPARSEMEM_VMEMMAP.

    MAX_NUMNODES is a macro, but ``struct zonelist`` has an entry for each zone of each node, and one more
    (include/linux/mmzone.h:MAX_ZONES_PER_ZONELIST).
    """
    prog = kernel.prog
    zones = enumerators(prog.type("enum zone_type"))["__MAX_NR_ZONES"]
    places = drgn.sizeof(member_type(prog.type("struct zonelist"), "_zonerefs")) // drgn.sizeof(
        prog.type("struct zoneref")
    )
    numnodes = (places - 1) // zones
    if numnodes < 1 or places != numnodes * zones + 1:
        raise ValueError(f"a zonelist has {places} places for {zones} zones a node")
    return (numnodes - 1).bit_length(), (zones - 1).bit_length()


def member_type(type_: drgn.Type, name: str) -> drgn.Type:
    """The type of a member."""
    return type_.member(name).type


def pfn_of(kernel: Kernel, symbol: str) -> Optional[int]:
    """Page frame of a variable in the image; None if there is no such symbol."""
    address = kernel.find_symbol(symbol)
    if address is None:
        return None
    found = kernel.walk(address)
    return None if found.physical is None else found.physical >> kernel.page_shift


def zero_pages(kernel: Kernel) -> Tuple[Optional[int], Optional[int]]:
    """Page frames of the zero page and of the huge zero page (its head); None for one that does not exist."""
    try:
        small: Optional[int] = kernel.value("zero_pfn").value
    except Unavailable:
        small = pfn_of(kernel, "empty_zero_page")
    try:
        huge: Optional[int] = kernel.value("huge_zero_pfn").value
        # mm/huge_memory.c: ~0UL while there is no huge zero page.
        if huge is not None and huge >> 52:
            huge = None
    except Unavailable:
        huge = None
    return small, huge


def value_of(obj: drgn.Object) -> int:
    """An atomic_t or a plain number as an int."""
    try:
        return int(obj.counter)
    except AttributeError:
        return int(obj)
