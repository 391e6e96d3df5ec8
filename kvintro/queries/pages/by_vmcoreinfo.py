# SPDX-License-Identifier: LGPL-2.1-or-later
"""The layout of ``struct page`` on this kernel, from VMCOREINFO alone: for sources without types.

The kernel exports these keys for programs that omit pages from a dump (kernel/vmcore_info.c, before 6.9
kernel/crash_core.c). They distinguish free, cached, anonymous, slab, hugetlb, offline and broken pages. They
name neither every type of ``page_type`` nor most flags. What remains unknown is listed in
:attr:`~kvintro.queries.pages.format.PageFormat.lacks`, and has its own type in the census.
"""

from __future__ import annotations

import contextlib
import re
import struct
from typing import Dict, Iterator, List, Optional, Tuple

from kvintro.errors import Unavailable
from kvintro.kernels import Kernel
from kvintro.model import ALL, Placement
from kvintro.paging import MAPPED
from kvintro.queries.pages.format import PageFormat, TypeField
from kvintro.queries.pages.meaning import (
    KPF_ANON,
    KPF_BUDDY,
    KPF_COMPOUND_HEAD,
    KPF_COMPOUND_TAIL,
    KPF_HUGE,
    KPF_HWPOISON,
    KPF_KSM,
    KPF_LRU,
    KPF_NAMES,
    KPF_OFFLINE,
    KPF_PRIVATE,
    KPF_RESERVED,
    KPF_SLAB,
    KPF_SWAPBACKED,
    KPF_SWAPCACHE,
    KPF_ZERO_PAGE,
)
from kvintro.readers.structures import USE_TYPES, offset_of, size_of
from kvintro.regions.vmemmap import REGION as VMEMMAP

# mm/mmzone.c, mm/page_alloc.c:zone_names: x86-64 has these, except those that are configured out.
_ZONES = ("DMA", "DMA32", "Normal", "Movable", "Device")
_ZONEREF = 16  # include/linux/mmzone.h: a pointer and an int
_MOST_NODES_SHIFT = 10  # largest CONFIG_NODES_SHIFT of any architecture
_LONGEST_ZONE = 8  # "Movable"
_MOST_OF_IMAGE = 64 << 20  # bytes of a mapped part that are looked at
_TEXT_PAGES = 512  # pages of the kernel's text that are checked for PG_reserved, at most
_TOLD = (
    *(KPF_LRU, KPF_SLAB, KPF_BUDDY, KPF_ANON, KPF_SWAPCACHE, KPF_SWAPBACKED, KPF_COMPOUND_HEAD),
    *(KPF_COMPOUND_TAIL, KPF_HUGE, KPF_HWPOISON, KPF_KSM, KPF_OFFLINE, KPF_ZERO_PAGE, KPF_PRIVATE),
)


def format_by_vmcoreinfo(kernel: Kernel) -> PageFormat:
    """Return the layout on this kernel from the keys of its VMCOREINFO.

    :raises Unavailable: a required key is missing, or keys contradict each other.
    """
    base, size, _ = VMEMMAP.pages(kernel)
    bits = _bits(kernel)
    width = max(bits.values()) + 1
    nodes, zones = _nodes_and_zones(kernel)
    node_bits, zone_bits = (nodes - 1).bit_length(), (zones - 1).bit_length()
    room = 64 - node_bits - zone_bits
    if width > 32 or width > room:
        raise Unavailable(f"VMCOREINFO's page flags take {width} bits, which is invalid")
    types = _types(kernel)
    told = sum(1 << bit for bit in _TOLD)
    lacks = [
        "there are no types, so pages are classified by VMCOREINFO: it does not name page tables and some "
        "other types of page (unnamed_type), most flags, slab caches and cgroups; " + USE_TYPES
    ]
    try:
        bits["reserved"] = _reserved(kernel, base, size, width, bits["private"])
        told |= 1 << KPF_RESERVED
    except Unavailable as error:
        lacks.append(f"reserved pages cannot be distinguished from the kernel's: {error.what}")
    masks, compound = _compound(kernel)
    return PageFormat(
        size=size,
        base=base,
        page_size=kernel.form.page_size,
        flags=offset_of(kernel, "struct page", "flags"),
        compound=compound,
        compound_masks=masks,
        # They are a union: include/linux/mm_types.h:struct page.
        page_type=offset_of(kernel, "struct page", "_mapcount"),
        refcount=offset_of(kernel, "struct page", "_refcount"),
        mapping=offset_of(kernel, "struct page", "mapping"),
        private=offset_of(kernel, "struct page", "private"),
        memcg_data=None,
        slab_cache=None,
        types=types,
        bits=bits,
        width=width,
        large_order=_order(kernel, size),
        large_mapcount=None,
        counts_parts=False,
        large_dtor=_dtor(kernel, size),
        large_hugetlb=1 << bits["hugetlb"] if "hugetlb" in bits else 0,
        large_rmappable=0,
        zone_shift=room,
        zone_bits=zone_bits,
        node_bits=node_bits,
        zones=_zone_names(kernel, zones),
        folio_flags="slab" not in bits,
        folio_types=kernel.find_symbol("snapshot_page") is not None,
        unknown_flags=sum(1 << bit for bit in KPF_NAMES) & ~told,
        lacks=tuple(lacks),
    )


def _key(kernel: Kernel, name: str) -> int:
    """Return a number that every kernel's VMCOREINFO should have.

    :raises Unavailable: it does not have the number.
    """
    try:
        return kernel.number(f"NUMBER({name})").value
    except Unavailable as error:
        raise Unavailable(f"there are no types, and {error.what}", USE_TYPES) from error


def _if_built(kernel: Kernel, function: str, *names: str) -> Optional[Tuple[str, int]]:
    """(name, number) of the first of the keys in VMCOREINFO; None if the kernel lacks the feature.

    :param function: function of that feature. A kernel that has it has one of the keys too.
    :raises Unavailable: the kernel has the function, but VMCOREINFO has none of the keys.
    """
    for name in names:
        if f"NUMBER({name})" in kernel.source.vmcoreinfo:
            return name, _key(kernel, name)
    if kernel.find_symbol(function) is None:
        return None
    keys = " or ".join(f"NUMBER({name})" for name in names)
    raise Unavailable(f"there are no types, and VMCOREINFO has no {keys}", USE_TYPES)


def _bits(kernel: Kernel) -> Dict[str, int]:
    """Bit numbers of the flags in VMCOREINFO, by name."""
    bits = {name: _key(kernel, f"PG_{name}") for name in ("lru", "private", "swapcache", "swapbacked")}
    head = _key(kernel, "PG_head_mask")
    bits["head"] = head.bit_length() - 1
    # A flag until it became a page type (6.10), when the other key replaced this one.
    if "NUMBER(PAGE_SLAB_MAPCOUNT_VALUE)" not in kernel.source.vmcoreinfo:
        bits["slab"] = _key(kernel, "PG_slab")
    # Used after the destructors of compound pages and before the page type (6.6 to 6.8).
    if "NUMBER(PG_hugetlb)" in kernel.source.vmcoreinfo:
        bits["hugetlb"] = _key(kernel, "PG_hugetlb")
    poisoned = _if_built(kernel, "memory_failure", "PG_hwpoison")
    if poisoned is not None:
        bits["hwpoison"] = poisoned[1]
    distinct = {number for name, number in bits.items() if name != "hugetlb"}
    if head != 1 << bits["head"] or min(bits.values()) < 0 or len(distinct) < len(bits) - ("hugetlb" in bits):
        raise Unavailable(f"VMCOREINFO's page flags are invalid: {bits}")
    return bits


def _types(kernel: Kernel) -> TypeField:
    """Encoding of ``page_type``, with the values that VMCOREINFO names."""
    values = {"buddy": _key(kernel, "PAGE_BUDDY_MAPCOUNT_VALUE") & 0xFFFFFFFF}
    for name in ("offline", "slab", "hugetlb", "unaccepted"):
        key = f"NUMBER(PAGE_{name.upper()}_MAPCOUNT_VALUE)"
        if key in kernel.source.vmcoreinfo:
            values[name] = kernel.number(key).value & 0xFFFFFFFF
    if not any(value & 0xFFFFFF for value in values.values()):
        # The top byte is a number (include/linux/page-flags.h:enum pagetype).
        codes = {name: value >> 24 for name, value in values.items()}
        found = TypeField(False, 0, 24, codes, complete=False)
    else:
        # A clear bit means a type. The bits went up from 0x80 at first, later down from 0x40000000.
        masks = {name: ~value & 0xFFFFFFFF for name, value in values.items()}
        base, shift = (0x80000000, 24) if masks["buddy"] >> 24 else (0xF0000000, 7)
        codes = {name: mask >> shift for name, mask in masks.items()}
        found = TypeField(True, base, shift, codes, complete=False)
        if any(bin(mask).count("1") != 1 for mask in masks.values()):
            raise Unavailable(f"VMCOREINFO's types of pages are invalid: {values}")
    if not all(0 < code < 0x100 for code in codes.values()) or len(set(codes.values())) < len(codes):
        raise Unavailable(f"VMCOREINFO's types of pages are invalid: {values}")
    return found


def _compound(kernel: Kernel) -> Tuple[bool, int]:
    """Whether tails hold masks, and the offset of their link to the head (7.0 introduced both)."""
    masks = "OFFSET(page.compound_info)" in kernel.source.vmcoreinfo
    return masks, offset_of(kernel, "struct page", "compound_info" if masks else "compound_head")


def _order(kernel: Kernel, size: int) -> int:
    """Offset of a head's order. VMCOREINFO has it while it was a member of its own.

    Since "mm: free up a word in the first tail page" (ebc1baf5c9b4, 6.6) it is the low byte of the second
    page's flags, without a key.
    """
    keys = kernel.source.vmcoreinfo
    if "OFFSET(page.compound_order)" in keys:
        return size + offset_of(kernel, "struct page", "compound_order")
    if "OFFSET(folio._folio_order)" in keys:
        return offset_of(kernel, "struct folio", "_folio_order")
    return size + offset_of(kernel, "struct page", "flags")


def _dtor(kernel: Kernel, size: int) -> Optional[Tuple[int, int]]:
    """Offset of a head's byte that marks hugetlb, and the value that marks it; None if it is another field.

    :raises Unavailable: the kernel has hugetlb pages, but no key says how to recognise them.
    """
    names = ("PAGE_HUGETLB_MAPCOUNT_VALUE", "PG_hugetlb", "HUGETLB_PAGE_DTOR")
    found = _if_built(kernel, "hugetlb_fault", *names)
    if found is None or found[0] != "HUGETLB_PAGE_DTOR":
        return None
    if "OFFSET(folio._folio_dtor)" in kernel.source.vmcoreinfo:
        return offset_of(kernel, "struct folio", "_folio_dtor"), found[1]
    return size + offset_of(kernel, "struct page", "compound_dtor"), found[1]


def _nodes_and_zones(kernel: Kernel) -> Tuple[int, int]:
    """MAX_NUMNODES and MAX_NR_ZONES, which determine how the flags hold a page's node and zone.

    ``struct pglist_data`` begins with the array of zones, followed by one zonelist (two with CONFIG_NUMA)
    and nr_zones. A zonelist has an entry for every zone of every node, and one more. Only x86-64 gives the
    number of nodes; elsewhere it is the power of two that fits (CONFIG_NODES_SHIFT).

    :raises Unavailable: no number of zones fits, or several do.
    """
    # (nodes, zonelists)
    choices = [(1, 1), *((1 << shift, 2) for shift in range(1, _MOST_NODES_SHIFT + 1))]
    if "LENGTH(node_data)" in kernel.source.vmcoreinfo:
        choices = [(kernel.number("LENGTH(node_data)").value, 2)]
    elif "SYMBOL(contig_page_data)" in kernel.source.vmcoreinfo:  # without CONFIG_NUMA
        choices = [(1, 1)]
    zone = size_of(kernel, "struct zone")
    room = offset_of(kernel, "struct pglist_data", "nr_zones") - offset_of(
        kernel, "struct pglist_data", "node_zones"
    )
    found = [
        (nodes, zones)
        for nodes, lists in choices
        for zones in range(1, 9)
        if room == zones * zone + lists * _ZONEREF * (nodes * zones + 1)
    ]
    if len(found) > 1:
        named = len(_zones_by_content(kernel))
        found = [(nodes, zones) for nodes, zones in found if zones == named] or found
    if len(found) == 1:
        return found[0]
    raise Unavailable(
        f"the number of zones of a node is unknown: {'several numbers fit' if found else 'no number fits'} "
        f"the {room} bytes of struct pglist_data that VMCOREINFO gives"
        + (", and zone_names is not in the dump" if found else ""),
        USE_TYPES,
    )


def _zone_names(kernel: Kernel, count: int) -> Tuple[str, ...]:
    """Names of the zones: all if there are five, otherwise those in zone_names; none if it is not found."""
    if count == len(_ZONES):
        return _ZONES
    names = _zones_by_content(kernel)
    return names if len(names) == count else ()


def _zones_by_content(kernel: Kernel) -> Tuple[str, ...]:
    """``zone_names`` (mm/page_alloc.c), recognised by its pointers to these names; empty if not found.

    All kernels have "Normal" and "Movable" in it.
    """
    pieces = list(_pieces_of_image(kernel))

    def name(pointer: int) -> str:
        for start, data in pieces:
            if start <= pointer < start + len(data):
                at = pointer - start
                return data[at : at + _LONGEST_ZONE].partition(b"\0")[0].decode("latin-1")
        return ""

    word = f"{kernel.form.table_format}Q"
    strings = [start + match.start() for start, data in pieces for match in re.finditer(rb"Movable\0", data)]
    pointers = b"|".join(re.escape(struct.pack(word, string)) for string in strings)
    found = set()
    for _, data in pieces if strings else ():
        for match in re.finditer(pointers, data):
            # Up to three names before this one, and one after it.
            first = max(match.start() - 24, match.start() % 8)
            row = data[first : min(match.end() + 8, first + (len(data) - first) // 8 * 8)]
            names = [name(pointer) for (pointer,) in struct.iter_unpack(word, row)]
            if names[(match.start() - first) // 8 - 1] == "Normal":
                found.add(tuple(zone for zone in _ZONES if zone in names))
    return found.pop() if len(found) == 1 else ()


def _pieces_of_image(kernel: Kernel) -> Iterator[Tuple[int, bytes]]:
    """(address, content) of the mapped parts of the kernel's image that the source contains."""
    image = kernel.locate("kernel_image")
    if isinstance(image, Placement):
        ranges = kernel.kernel_ranges.clip(image.range.start, image.range.end)
        for start, end, _ in ranges.select(MAPPED):
            with contextlib.suppress(Unavailable):
                yield start, kernel.read(start, min(end + 1 - start, _MOST_OF_IMAGE))


def _reserved(kernel: Kernel, base: int, size: int, width: int, private: int) -> int:
    """Bit number of PG_reserved, which VMCOREINFO does not have.

    The kernel's text is reserved memory, and its pages have no other properties, so this is the one flag that
    all of them have (mm/mm_init.c:reserve_bootmem_region). In every kernel it is right before PG_private.

    :raises Unavailable: the two rules disagree, or the text's struct pages cannot be read.
    """
    at = offset_of(kernel, "struct page", "flags")
    first = (kernel.text.value - kernel.image_offset.value & ALL) >> kernel.page_shift
    # What follows the text may have been freed.
    end = kernel.find_symbol("_etext")
    text = _TEXT_PAGES if end is None else (end - kernel.text.value & ALL) >> kernel.page_shift
    pages = min(text, _TEXT_PAGES)
    data = kernel.read(base + first * size & ALL, pages * size)
    mask = (1 << width) - 1
    found: List[int] = [
        int.from_bytes(data[page * size + at : page * size + at + 8], "little") & mask
        for page in range(pages)
    ]
    if set(found) != {1 << private - 1}:
        raise Unavailable("the struct pages of the kernel's text do not show the flag")
    return private - 1
