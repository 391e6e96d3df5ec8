# SPDX-License-Identifier: LGPL-2.1-or-later
"""aarch64: the bounds that the kernel fixes at compile time. Pure arithmetic.

Mirrors ``arch/arm64/include/asm/memory.h``, ``pgtable.h`` and ``fixmap.h``. The layout has changed twice
since the linear map became the lower half (14c127c957c1 "arm64: mm: Flip kernel VA space", 5.4). The end of a
kernel's vmalloc area shows which of the three layouts it has.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Iterator, Optional

from kvintro.arch.aarch64.form import Arm64Form
from kvintro.model import ALL, AddressRange

_MB = 1 << 20
_GB = 1 << 30
PCI_IO_SIZE = 16 * _MB


@dataclass(frozen=True)
class Space:
    """Bounds of one kernel.

    :ivar vmalloc_end: VMALLOC_END, exclusive.
    :ivar vmemmap: VMEMMAP_START to VMEMMAP_END - 1, or the part of it that a processor with fewer bits uses.
    :ivar vmemmap_start: the kernel's VMEMMAP_START, which is for all addresses that it was built for.
    :ivar pci_io: PCI_IO_START to PCI_IO_END - 1.
    :ivar fixaddr_top: FIXADDR_TOP, exclusive.
    :ivar middle: whether KASLR places the image in the middle half of vmalloc (6.9).
    :ivar from_actual: whether ptdump begins at the first address of the processor (6.9), not of the build.
    """

    vmalloc_end: int
    vmemmap: AddressRange
    vmemmap_start: int
    pci_io: AddressRange
    fixaddr_top: int
    middle: bool
    from_actual: bool


def _pages(form: Arm64Form) -> int:
    """Pages of the largest linear map that the build can have."""
    return (form.linear_end - form.page_offset) >> form.page_shift


def since_6_9(form: Arm64Form, page_struct: int) -> Space:
    """031e011d8b22 "arm64: mm: Move PCI I/O emulation region above the vmemmap region" and its series."""
    end = -_GB & ALL
    start = end - _pages(form) * page_struct
    used = start + ((form.upper.start - form.page_offset) >> form.page_shift) * page_struct
    pci = end + 8 * _MB
    return Space(
        used - 8 * _MB,
        AddressRange(used, end - 1),
        start,
        AddressRange(pci, pci + PCI_IO_SIZE - 1),
        -8 * _MB & ALL,
        middle=True,
        from_actual=True,
    )


def since_5_11(form: Arm64Form, page_struct: int) -> Space:
    """8c96400d6a39 "arm64: mm: make vmemmap region a projection of the linear region"."""
    order = (page_struct - 1).bit_length()
    start = -(1 << form.built_bits - form.page_shift + order) & ALL
    size = _pages(form) << order
    pci_end = start - 8 * _MB
    return Space(
        start - 256 * _MB,
        AddressRange(start, start + size - 1),
        start,
        AddressRange(pci_end - PCI_IO_SIZE, pci_end - 1),
        start - 32 * _MB,
        middle=False,
        from_actual=False,
    )


def since_5_4(form: Arm64Form, page_struct: int) -> Space:
    """14c127c957c1 "arm64: mm: Flip kernel VA space"."""
    order = (page_struct - 1).bit_length()
    size = _pages(form) << order
    start = -size - 2 * _MB & ALL
    pci_end = start - 2 * _MB
    # PUD_SIZE; with two or three levels it is folded into the root (asm-generic/pgtable-nopud.h).
    pud = 1 << form.shift(min(3, form.levels))
    return Space(
        -pud - size - (64 << 10) & ALL,
        AddressRange(start, start + size - 1),
        start,
        AddressRange(pci_end - PCI_IO_SIZE, pci_end - 1),
        pci_end - PCI_IO_SIZE - 2 * _MB,
        middle=False,
        from_actual=False,
    )


def with_vmalloc_end(form: Arm64Form, page_struct: int, vmalloc_end: int) -> Optional[Space]:
    """The layout whose vmalloc area ends there; None if there is none.

    :param page_struct: sizeof(struct page).
    """
    return next((space for space in _all(form, page_struct) if space.vmalloc_end == vmalloc_end), None)


def with_vmemmap(form: Arm64Form, page_struct: int, vmemmap_start: int) -> Optional[Space]:
    """The layout with that VMEMMAP_START; None if there is none."""
    return next((space for space in _all(form, page_struct) if space.vmemmap_start == vmemmap_start), None)


def _all(form: Arm64Form, page_struct: int) -> Iterator[Space]:
    return (made(form, page_struct) for made in (since_6_9, since_5_11, since_5_4))
