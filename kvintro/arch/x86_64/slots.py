# SPDX-License-Identifier: LGPL-2.1-or-later
"""x86-64: the number of places that KASLR chooses from. Pure arithmetic.

Mirrors ``arch/x86/boot/compressed/kaslr.c`` (the image) and ``arch/x86/mm/kaslr.c`` (the regions).
"""

from __future__ import annotations

import math
from typing import List, NamedTuple, Sequence, Tuple

from kvintro.arch.x86_64.form import CPU_ENTRY_AREA_BASE, PAGE_SIZE, PUD_SHIFT, X86Form

#: Regions start on a multiple of this (PUD_MASK).
REGION_ALIGN = 1 << PUD_SHIFT
#: Upper bound on the image's first place in physical memory (``choose_random_location``, min_addr).
HIGHEST_MINIMUM = 512 << 20
MODULE_SLOTS = 1024
_TB = 1 << 40
_MINIMUM_ALIGN = 1 << 21  # MIN_KERNEL_ALIGN


def bits(slots: int) -> float:
    """Bits of entropy of a choice from ``slots`` places, to two decimals."""
    return round(math.log2(slots), 2) if slots > 0 else 0.0


def image_slots(window: int, minimum: int, size: int, align: int) -> int:
    """Places for the image in its window (``find_random_virt_addr``).

    :param window: KERNEL_IMAGE_SIZE.
    :param minimum: LOAD_PHYSICAL_ADDR.
    :param size: bytes of the unpacked image, with the space that it needs in addition.
    :param align: CONFIG_PHYSICAL_ALIGN.
    """
    size = -(-size // _MINIMUM_ALIGN) * _MINIMUM_ALIGN
    return max(1 + (window - minimum - size) // align, 1)


def unpacked_at_most(init_size: int) -> int:
    """Upper bound on the size of the unpacked image with its relocations, from the header's ``init_size``.

    ``arch/x86/boot/header.S`` (ZO_z_extra_bytes) adds 1/256 of it and 64 KB (128 KB since 0fe4f4ef8cc8 "x86:
    Bump ZO_z_extra_bytes margin for zstd"), so that unpacking in place is safe. It also adds the size of the
    unpacker, which is unknown afterwards.
    """
    return max((init_size - (64 << 10) - 128) * 256 // 257, 0)


def physical_places(
    ram: Sequence[Tuple[int, int]], taken: Sequence[Tuple[int, int]], minimum: int, size: int, align: int
) -> List[range]:
    """Places for the image in physical memory (``__process_mem_region``).

    :param ram: (start, end) of RAM, ends exclusive.
    :param taken: (start, end) of memory that must not be overwritten, ends exclusive.
    :returns: ranges of addresses in steps of ``align``.
    """
    places = []
    size = -(-size // _MINIMUM_ALIGN) * _MINIMUM_ALIGN
    for start, end in ram:
        cursor = max(start, minimum)
        for low, high in [*sorted(t for t in taken if t[0] < end and start < t[1]), (end, end)]:
            at = -(-cursor // align) * align
            if min(low, end) - at >= size:
                places.append(range(at, min(low, end) - size + 1, align))
            cursor = max(cursor, high)
    return places


def module_slots(align: int) -> int:
    """Number of places of the first piece of module memory: 1 to 1024 pages after the start, rounded up.

    The draw is ``arch/x86/mm/init.c:execmem_arch_setup`` (6.1: ``arch/x86/kernel/module.c:
    get_module_load_offset``); the rounding is ``mm/vmalloc.c:__vmalloc_node_range``.

    :param align: alignment of the piece; the region's start is a multiple of it.
    """
    return len({-(-pages * PAGE_SIZE // align) for pages in range(1, MODULE_SLOTS + 1)})


class Draw(NamedTuple):
    """How the base of a region was chosen.

    :ivar earliest: its lowest possible base, given the regions before it.
    :ivar slots: its number of possible bases, given the regions before it.
    :ivar possible: whether its base is one of them.
    """

    base: int
    earliest: int
    size: int
    slots: int
    possible: bool


def region_sizes(geometry: X86Form, direct_map: int, page_struct: int) -> Tuple[int, int, int]:
    """Bytes reserved for the direct map, vmalloc and vmemmap, each a multiple of 1 TB."""
    vmemmap = -(-(direct_map >> 12) * page_struct // _TB) * _TB
    return direct_map, geometry.vmalloc_size, vmemmap


def region_draws(geometry: X86Form, sizes: Sequence[int], bases: Sequence[int]) -> List[Draw]:
    """Repeat ``kernel_randomize_memory`` for the given bases.

    Each region in turn gets a share of the remaining space, which includes space that earlier regions did not
    use. So the number of places of a region depends on the bases of the regions before it.
    """
    at = geometry.page_offset_base
    remaining = CPU_ENTRY_AREA_BASE - at - sum(sizes)
    draws = []
    for index, (base, size) in enumerate(zip(bases, sizes)):
        share = remaining // (len(sizes) - index) if remaining >= 0 else 0
        slots = share // REGION_ALIGN + 1
        drawn = base - at
        possible = 0 <= drawn <= share and drawn % REGION_ALIGN == 0
        draws.append(Draw(base, at, size, slots, possible))
        remaining -= drawn
        at = -(-(base + size + 1) // REGION_ALIGN) * REGION_ALIGN
    return draws
