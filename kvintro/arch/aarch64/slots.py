# SPDX-License-Identifier: LGPL-2.1-or-later
"""aarch64: the number of places that KASLR chooses from. Pure arithmetic.

Mirrors ``arch/arm64/kernel/pi/kaslr_early.c`` (the image), ``arch/arm64/mm/init.c:arm64_memblock_init`` (the
linear map).
"""

from __future__ import annotations

from kvintro.arch.aarch64.form import Arm64Form

#: MIN_KIMG_ALIGN: the virtual and the physical address of the image are equal modulo 2M.
IMAGE_ALIGN = 2 << 20
#: MODULES_VSIZE before 3e35d303ab7d "arm64: module: rework module VA range selection" (6.5).
OLD_MODULES_SIZE = 128 << 20
#: EFI_KIMG_ALIGN with pages of 4K and 16K, and the default: steps of the image in physical memory.
PHYSICAL_ALIGN = 64 << 10
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
