# SPDX-License-Identifier: LGPL-2.1-or-later
"""How this kernel lays out ``struct page``, as its types say.

Everything here is an offset, a mask or a number of an enumerator, taken from the kernel's own types. Only
what the kernel has as macros, which no type information holds, is written down, each with the file it
stands in. Where there are no types, :mod:`kvintro.queries.pages.by_vmcoreinfo` makes the same
:class:`PageFormat`, with less in it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Dict, Mapping, Optional, Tuple

import drgn

from kvintro.arch.x86_64 import PAGE_SHIFT
from kvintro.errors import Unavailable
from kvintro.kernel import Kernel
from kvintro.regions.vmemmap import REGION as VMEMMAP

#: page_type's kinds by our names, which are the kernel's save for pgtable (include/linux/page-flags.h).
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
    """How ``page_type`` tells what a page is.

    :ivar inverted: types are bits that are clear while all of ``base`` is set (before 6.11); otherwise the
        top byte is a number.
    :ivar base: see ``inverted``.
    :ivar shift: by how much to shift the field (or its complement) for :attr:`codes`.
    :ivar codes: what stands there, by the kernel's name of the type; a bit if inverted, else the whole byte.
    :ivar complete: whether ``codes`` has every type of the kernel.
    """

    inverted: bool
    base: int
    shift: int
    codes: Mapping[str, int]
    complete: bool = True

    def is_type(self, code: int, name: str) -> bool:
        """Whether a code found in a page says that type."""
        wanted = self.codes.get(name)
        if wanted is None:
            return False
        return bool(code & wanted) if self.inverted else code == wanted

    @property
    def bits(self) -> int:
        """Of inverted types: the bits of a code that say a type."""
        return sum(set(self.codes.values())) & 0xFF if self.complete else 0xFF

    def is_nameless(self, code: int) -> bool:
        """Whether a code found in a page says a type that is not in ``codes``, though the kernel has it."""
        if self.complete:
            return False
        if self.inverted:
            return bool(code & ~sum(set(self.codes.values())))
        return bool(code) and code not in self.codes.values()


@dataclass(frozen=True)
class PageFormat:
    """Offsets and masks of ``struct page`` on one kernel.

    :ivar size: sizeof(struct page).
    :ivar base: virtual address of page frame 0's.
    :ivar flags: offset of the flags word.
    :ivar compound: offset of ``compound_head`` or ``compound_info``.
    :ivar compound_masks: whether tails may hold a mask for the head's address in place of the address itself.
    :ivar page_type: offset of ``page_type``, which is that of ``_mapcount``.
    :ivar bits: bit numbers of ``enum pageflags`` by name, PG_ left away.
    :ivar width: __NR_PAGEFLAGS.
    :ivar large_order: offset, from a head page, of the byte that holds a compound page's order.
    :ivar large_mapcount: offset, from a head page, of the int that counts how often it is mapped, less one;
        None where nothing says.
    :ivar counts_parts: whether that leaves out pages of it that are mapped one by one (before 6.9).
    :ivar large_dtor: offset, from a head page, of the byte that says hugetlb, and what it then holds; None
        where something else says it.
    :ivar large_hugetlb: mask in the flags of the second page that says it; 0 where something else does.
    :ivar large_rmappable: mask in the flags of the second page of what may be mapped to user space.
    :ivar zone_shift: where zone and node start in the flags.
    :ivar zone_bits: width of the zone; the node lies above it.
    :ivar zones: names of the zones by number.
    :ivar folio_flags: whether /proc/kpageflags shows a tail with the flags of its head (6.10).
    :ivar folio_types: whether it shows the head's type for it as well (7.0).
    :ivar tells_nopage: whether it has a flag for page frames that it knows no page of (until 6.16), not 0.
    :ivar index: offset of what says where in a file or mapping the page belongs; None where nothing says.
    :ivar entire_mapcount: offset, from a head page, of the int that counts the entries that map all of it,
        less one; None where nothing says, or nothing counts.
    :ivar slab_counts: how a slab counts its objects: name (``objects``, ``in_use``), offset, shift and mask.
    :ivar unknown_flags: bits of /proc/kpageflags that cannot be told on this kernel from this source.
    :ivar lacks: what this layout leaves out, a sentence each; empty if it is whole.
    """

    size: int
    base: int
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
        """The bits of flags that this kernel has, of those named."""
        return sum(1 << self.bits[name] for name in dict.fromkeys(names) if name in self.bits)

    def address(self, pfn: int) -> int:
        """Virtual address of a page frame's struct page."""
        return self.base + pfn * self.size

    def zone_name(self, number: int) -> str:
        """The kernel's name of a zone."""
        return self.zones[number] if number < len(self.zones) else f"zone {number}"


def format_by_types(kernel: Kernel) -> PageFormat:
    """The layout on this kernel, by its types.

    :raises Unavailable: they do not have what is needed.
    """
    try:
        return _page_format(kernel)
    except (LookupError, AttributeError, ValueError, TypeError) as error:
        raise Unavailable(f"struct page is not laid out as in any kernel known: {error}") from error


def _page_format(kernel: Kernel) -> PageFormat:
    prog = kernel.prog
    page = prog.type("struct page")
    base, size, _ = VMEMMAP.pages(kernel)
    if page.size != size:
        raise Unavailable(
            f"types say {page.size} bytes for a struct page, the dump {size}: they are of another kernel"
        )
    flags = enumerators(prog.type("enum pageflags"))
    width = flags["__NR_PAGEFLAGS"]
    bits = {name[3:]: value for name, value in flags.items() if name.startswith("PG_") and 0 <= value < width}
    masks = page.has_member("compound_info")
    compound = offset(page, "compound_info" if masks else "compound_head")
    types = _types(kernel)
    nodes, zones = _widths(kernel)
    order, mapcount, parts = _large(prog, page, size)
    dtor = None
    if _has_enumerator(prog, "enum compound_dtor_id", "HUGETLB_PAGE_DTOR"):
        dtors = enumerators(prog.type("enum compound_dtor_id"))
        at = _first_offset(prog, size, ("compound_dtor", page), ("_folio_dtor", None))
        dtor = (at, dtors["HUGETLB_PAGE_DTOR"])
    names = enumerators(prog.type("enum zone_type"))
    zone_names = [""] * names["__MAX_NR_ZONES"]
    for name, number in names.items():
        if name.startswith("ZONE_") and number < len(zone_names):
            zone_names[number] = _zone_name(name[5:])
    room = 64 - nodes - zones
    if width > 32 or width > room:
        raise ValueError(f"{width} page flags and {nodes + zones} bits of node and zone leave no room")
    return PageFormat(
        size=size,
        base=base,
        flags=offset(page, "flags"),
        compound=compound,
        compound_masks=masks,
        page_type=offset(page, "page_type"),
        refcount=offset(page, "_refcount"),
        mapping=offset(page, "mapping"),
        private=offset(page, "private"),
        # 5.11 gave the pointer flags, and another name.
        memcg_data=_maybe_offset(page, "memcg_data", "mem_cgroup"),
        slab_cache=_slab_cache(prog, page),
        types=types,
        bits=bits,
        width=width,
        large_order=order,
        large_mapcount=mapcount,
        counts_parts=parts,
        large_dtor=dtor,
        large_hugetlb=1 << bits["hugetlb"] if "hugetlb" in bits else 0,
        large_rmappable=1 << bits["large_rmappable"] if "large_rmappable" in bits else 0,
        zone_shift=room,
        zone_bits=zones,
        node_bits=nodes,
        zones=tuple(zone_names),
        # PG_slab became a page type in 6.10, in the same merge as fs/proc/page.c's use of folios.
        folio_flags="slab" not in bits,
        folio_types=kernel.find_symbol("snapshot_page") is not None,
        tells_nopage=not _has_enumerator(prog, "enum kpage_operation", "KPAGE_FLAGS"),
        index=_index(prog, page),
        entire_mapcount=mapcount if parts else _entire_mapcount(prog),
        slab_counts=_slab_counts(prog, page),
    )


def enumerators(type_: drgn.Type) -> Dict[str, int]:
    """Names and values of an enumeration."""
    return {e.name: e.value for e in type_.enumerators or ()}


def offset(type_: drgn.Type, member: str) -> int:
    """Offset of a member in bytes, however deep in anonymous unions it lies."""
    found: int = drgn.offsetof(type_, member)
    return found


def _maybe_offset(type_: drgn.Type, *members: str) -> Optional[int]:
    return next((offset(type_, name) for name in members if type_.has_member(name)), None)


def _first_offset(prog: drgn.Program, size: int, *ways: "Tuple[str, Optional[drgn.Type]]") -> int:
    """Offset from a head page of what the second page holds: a member of it, or of the folio (type None)."""
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
    """Where compound pages keep their order and how often they are mapped, and whether parts are left out."""
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
    # mm/page_alloc.c:zone_names: DMA and DMA32 as they are, the others capitalised.
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
        # 6.10: an enumeration of bits from 30 down; PAGE_TYPE_BASE is one of it.
        base = found["PAGE_TYPE_BASE"] & 0xFFFFFFFF
        codes = {name: inverted[name] >> 24 for name in PAGE_TYPES if name in inverted}
        return TypeField(True, base, 24, codes)
    # Before, they were macros of include/linux/page-flags.h, of which VMCOREINFO has two.
    buddy = ~kernel.number("NUMBER(PAGE_BUDDY_MAPCOUNT_VALUE)").value
    if buddy != 0x80:
        raise ValueError(f"PG_buddy is {buddy:#x}")
    codes = {"buddy": 0x80, "offline": 0x100, "table": 0x200, "guard": 0x400}
    if _kmemcg_is_a_type(prog):
        codes.update(kmemcg=0x200, table=0x400, guard=0x800)
    # After the destructors came PG_hugetlb of the second page, and soon this type in place of that (6.9, and
    # many stable kernels of 6.6 and 6.8).
    has_dtors = _has_enumerator(prog, "enum compound_dtor_id", "NULL_COMPOUND_DTOR")
    if not has_dtors and not _has_enumerator(prog, "enum pageflags", "PG_hugetlb"):
        codes["hugetlb"] = 0x800
    return TypeField(True, 0xF0000000, 7, {name: value >> 7 for name, value in codes.items()})


def _kmemcg_is_a_type(prog: drgn.Program) -> bool:
    """Whether PG_kmemcg stands between the types, as up to 5.10, and moves those behind it.

    It went when struct page got memcg_data in place of mem_cgroup. Without CONFIG_MEMCG there was it all the
    same, and neither of these: what tells then is something else that came with 5.11.
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

    MAX_NUMNODES is a macro, but ``struct zonelist`` has a place for each zone of each node, and one more
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
    """The page frame that a variable of the image lies in, None if there is no such symbol."""
    address = kernel.find_symbol(symbol)
    if address is None:
        return None
    found = kernel.walk(address)
    return None if found.physical is None else found.physical >> PAGE_SHIFT


def zero_pages(kernel: Kernel) -> Tuple[Optional[int], Optional[int]]:
    """Page frames of the zero page and of the huge zero page (its head), None where there is none."""
    try:
        small: Optional[int] = kernel.value("zero_pfn").value
    except Unavailable:
        small = pfn_of(kernel, "empty_zero_page")
    try:
        huge: Optional[int] = kernel.value("huge_zero_pfn").value
        # mm/huge_memory.c: ~0UL while there is none.
        if huge is not None and huge >> 52:
            huge = None
    except Unavailable:
        huge = None
    return small, huge


def value_of(obj: Any) -> int:
    """An atomic_t or a plain number as an int."""
    try:
        return int(obj.counter)
    except AttributeError:
        return int(obj)
