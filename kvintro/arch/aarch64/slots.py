# SPDX-License-Identifier: LGPL-2.1-or-later
"""aarch64: the number of places that KASLR chooses from. Pure arithmetic.

Mirrors ``arch/arm64/kernel/pi/kaslr_early.c`` (the image), ``arch/arm64/mm/init.c:arm64_memblock_init`` (the
linear map), ``arch/arm64/mm/init.c:module_init_limits`` (modules; before 6.5
``arch/arm64/kernel/kaslr.c:kaslr_init``).
"""

from __future__ import annotations

from kvintro.arch.aarch64.form import Arm64Form

#: MIN_KIMG_ALIGN: the virtual and the physical address of the image are equal modulo 2M.
IMAGE_ALIGN = 2 << 20
#: MODULES_VSIZE before 3e35d303ab7d "arm64: module: rework module VA range selection" (6.5).
OLD_MODULES_SIZE = 128 << 20
#: Bits of the seed for modules before 6.5.
OLD_MODULES_SEED_BITS = 21
#: The reach of code in modules: of a branch, and of a branch by a PLT.
DIRECT_REACH, PLT_REACH = 128 << 20, 2 << 30
#: Bits of the seed (memstart_offset_seed) that are used to randomise the linear map.
LINEAR_SEED_BITS = 16


def image_window(form: Arm64Form, start: int, end: int, *, halves: bool) -> range:
    """Displacements of the image that KASLR chooses from, in steps of :data:`IMAGE_ALIGN`.

    :param start: KIMAGE_VADDR.
    :param end: VMALLOC_END.
    :param halves: whether it uses the middle half of vmalloc (6.9 and later, "arm64: kaslr: Adjust
        randomization range dynamically"), not a quarter of the smallest address space of the build.
    """
    if halves:
        size = (end - start) // 2
        return range(size // 2, size // 2 + size, IMAGE_ALIGN)
    first = 1 << form.least_bits - 3
    return range(first, first + (1 << form.least_bits - 2), IMAGE_ALIGN)


def linear_align(form: Arm64Form) -> int:
    """ARM64_MEMSTART_ALIGN: 1G for pages of 4K (PUD), 1G for 16K (32 PMDs), 512M for 64K (PMD)."""
    return 512 << 20 if form.page_shift == 16 else 1 << 30


def linear_slots(form: Arm64Form, physical_bits: int) -> int:
    """Number of places of the linear map; 1 if it cannot be moved.

    :param physical_bits: address bits of the processor (ID_AA64MMFR0_EL1.PARange).
    """
    size = form.linear_map.end - form.linear_map.start + 1
    room = size - (1 << physical_bits)
    align = linear_align(form)
    if room < align:
        return 1
    return min(room // align, 1 << LINEAR_SEED_BITS)


def physical_align(form: Arm64Form) -> int:
    """EFI_KIMG_ALIGN: steps of the image in physical memory. It depends on the size of kernel stacks."""
    return max(64 << 10, 2 * form.page_size)


def module_window(start: int, end: int, size: int, page_size: int) -> range:
    """Bases of the window for modules that KASLR chooses from (``random_bounding_box()``).

    :param start: start of what the window must contain.
    :param end: end of that, exclusive.
    :param size: size of the window.
    """
    pages = (size - (end - start)) // page_size
    return range(start - pages * page_size, start + page_size, page_size)


def old_module_window(stext: int, end: int, least: int, page_size: int) -> range:
    """The same before 6.5, with RANDOMIZE_MODULE_REGION_FULL.

    :param end: ``_end``.
    :param least: MODULES_VADDR.
    """
    base = max(end - PLT_REACH, least)
    seeds = 1 << OLD_MODULES_SEED_BITS
    last = base + ((PLT_REACH - (end - stext)) * (seeds - 1) >> OLD_MODULES_SEED_BITS)
    return range(base & -page_size, (last & -page_size) + page_size, page_size)
