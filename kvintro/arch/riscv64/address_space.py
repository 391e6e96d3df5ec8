# SPDX-License-Identifier: LGPL-2.1-or-later
"""riscv64: a kernel's address space as VMCOREINFO describes it.

Mirrors ``arch/riscv/kernel/vmcore_info.c:arch_crash_save_vmcoreinfo`` (before 6.9 ``crash_core.c``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Mapping, Sequence

from kvintro.arch.address_space import (
    ANY_BASE,
    ToldAddressSpace,
    Variable,
    number,
    optional_number,
    symbol_in,
)
from kvintro.arch.riscv64.form import LEVELS, PHYSICAL_BITS, RiscvForm
from kvintro.arch.riscv64.slots import IMAGE_WINDOW
from kvintro.model import ALL, AddressRange

#: ADDRESS_SPACE_END - SZ_2G + 1.
KERNEL_LINK_ADDR = (1 << 64) - (2 << 30)
#: Maximum distance of modules from the end of the image (MODULES_VADDR).
_MODULE_REACH = 2 << 30


@dataclass(frozen=True)
class RiscvAddressSpace(ToldAddressSpace):
    """See :class:`kvintro.arch.address_space.AddressSpace`."""

    form: RiscvForm
    linear_offset: int

    @property
    def modules(self) -> AddressRange:
        """MODULES_LOWEST_VADDR to the end of the image."""
        return AddressRange(KERNEL_LINK_ADDR - _MODULE_REACH, self.image.end)

    @property
    def drgn_walks(self) -> bool:
        """drgn 0.3 has no walker for these page tables."""
        return False

    def other_forms(self) -> Sequence[RiscvForm]:
        """The other modes: the kernel chooses one when it boots."""
        return tuple(form for form in map(RiscvForm.of, LEVELS) if form != self.form)

    def first_struct(self, variable: Variable, offset: int) -> int:
        """A variable moves the memory map so that the first section is at a round address."""
        first = variable("vmemmap_start_pfn")
        return self.linear.start - offset & ALL if first is None else first << self.form.page_shift


def space_of(lines: Mapping[str, str]) -> RiscvAddressSpace:
    """The address space that the lines of VMCOREINFO describe.

    :raises ValueError: a number is malformed or impossible.
    """
    bits = number(lines, "NUMBER(VA_BITS)")
    if bits not in LEVELS or number(lines, "PAGESIZE") != 1 << 12:
        raise ValueError("its VA_BITS and PAGESIZE are not those of a kernel")
    form = RiscvForm.of(bits)
    offset = number(lines, "NUMBER(va_kernel_pa_offset)", None, ANY_BASE) & ALL
    # There is no KERNELOFFSET. Modules end where the image starts.
    start = number(lines, "NUMBER(MODULES_END)", KERNEL_LINK_ADDR, ANY_BASE) & ALL
    if not KERNEL_LINK_ADDR <= start < ALL - IMAGE_WINDOW:
        raise ValueError("its MODULES_END is not one that a kernel has")
    image = AddressRange(start, start + IMAGE_WINDOW - 1)
    root, stext = symbol_in(lines, "swapper_pg_dir", image), symbol_in(lines, "_stext", image)
    if stext >= root:
        raise ValueError("its swapper_pg_dir does not follow its _stext")
    linear = form.linear_map(number(lines, "NUMBER(PAGE_OFFSET)", form.page_offset, ANY_BASE) & ALL)
    first, size = optional_number(lines, "NUMBER(VMEMMAP_START)"), optional_number(lines, "SIZE(page)")
    return RiscvAddressSpace(
        form=form,
        root=root - offset & ALL,
        image=image,
        image_offset=offset,
        image_by="va_kernel_pa_offset",
        physical_bits=PHYSICAL_BITS,
        constant=AddressRange(stext & -form.page_size, root),
        linear=linear,
        linear_offset=linear.start - number(lines, "NUMBER(phys_ram_base)") & ALL,
        linear_by="phys_ram_base",
        memory_map=None if first is None or not size else (first, size),
    )
