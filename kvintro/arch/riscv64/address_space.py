# SPDX-License-Identifier: LGPL-2.1-or-later
"""riscv64: a kernel's address space as VMCOREINFO describes it.

Mirrors ``arch/riscv/kernel/vmcore_info.c:arch_crash_save_vmcoreinfo`` (before 6.9 ``crash_core.c``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Mapping, Optional, Sequence, Tuple

from kvintro.arch.address_space import (
    DIRECT_MAP,
    IMAGE,
    MEMORY_MAP,
    AddressSpace,
    Variable,
    Window,
    number,
    symbol_in,
)
from kvintro.arch.riscv64.form import LEVELS, RiscvForm
from kvintro.arch.riscv64.slots import IMAGE_WINDOW
from kvintro.model import ALL, AddressRange

#: ADDRESS_SPACE_END - SZ_2G + 1.
KERNEL_LINK_ADDR = (1 << 64) - (2 << 30)
#: Maximum distance of modules from the end of the image (MODULES_VADDR).
_MODULE_REACH = 2 << 30
_ANY_BASE = 0
#: MAX_PHYSMEM_BITS.
_PHYSICAL_BITS = 56


@dataclass(frozen=True)
class RiscvAddressSpace(AddressSpace):
    """See :class:`kvintro.arch.address_space.AddressSpace`.

    :ivar constant: from _stext to the root table, all of which stays mapped.
    :ivar page_offset: PAGE_OFFSET.
    :ivar ram_base: phys_ram_base, the physical address of PAGE_OFFSET.
    :ivar memory_map: VMEMMAP_START, and sizeof(struct page); None if VMCOREINFO does not have them.
    """

    form: RiscvForm
    constant: AddressRange
    page_offset: int
    ram_base: int
    memory_map: Optional[Tuple[int, int]]

    @property
    def linear_offset(self) -> int:
        """va_pa_offset."""
        return self.page_offset - self.ram_base & ALL

    @property
    def modules(self) -> AddressRange:
        """MODULES_LOWEST_VADDR to the end of the image."""
        return AddressRange(KERNEL_LINK_ADDR - _MODULE_REACH, self.image.end)

    @property
    def drgn_walks(self) -> bool:
        """drgn 0.3 has no walker for these page tables."""
        return False

    @property
    def told_offset(self) -> int:
        """The same as linear_offset."""
        return self.linear_offset

    def other_forms(self) -> Sequence[RiscvForm]:
        """The other modes: the kernel chooses one when it boots."""
        return tuple(form for form in map(RiscvForm.of, LEVELS) if form != self.form)

    def windows(self, memory: Optional[AddressRange]) -> Sequence[Window]:
        """The image's constant part."""
        end = None if memory is None else memory.end + 1
        part = self.constant
        return (Window(IMAGE, part.start, part.end, self.image_offset, self.image_by, end),)

    def more_windows(self, variable: Variable, memory: Optional[AddressRange]) -> Sequence[Window]:
        """The direct map and the memory map, from the start to the end of RAM."""
        memory = self._memory(variable) or memory
        if memory is None:
            return ()
        start, end = (at + self.linear_offset & ALL for at in (memory.start, memory.end))
        linear = self.form.linear_map(self.page_offset)
        if not start < end or start not in linear or end not in linear:
            return ()
        found = [Window(DIRECT_MAP, start, end, self.linear_offset, "phys_ram_base", memory.end + 1)]
        if self.memory_map is not None:
            base, size = self.memory_map
            low, high = (
                base + (at >> self.form.page_shift) * size - (self.ram_base >> self.form.page_shift) * size
                for at in (memory.start, memory.end)
            )
            # A variable moves it so that the first section is at a round address.
            first = variable("vmemmap_start_pfn")
            if first is not None:
                moved = ((self.ram_base >> self.form.page_shift) - first) * size
                low, high = low + moved, high + moved
            if base <= low < high + size <= ALL:
                found.append(Window(MEMORY_MAP, low, high + size - 1, memory_end=memory.end + 1))
        return found

    def _memory(self, variable: Variable) -> Optional[AddressRange]:
        """Physical addresses of RAM that the kernel uses (arch/riscv/mm/init.c:setup_bootmem)."""
        first, end = variable("min_low_pfn"), variable("max_pfn")
        if first is None or end is None or not first < end <= 1 << self.physical_bits - self.form.page_shift:
            return None
        return AddressRange(first << self.form.page_shift, (end << self.form.page_shift) - 1)


def space_of(lines: Mapping[str, str]) -> RiscvAddressSpace:
    """The address space that the lines of VMCOREINFO describe.

    :raises ValueError: a number is malformed or impossible.
    """
    bits = number(lines, "NUMBER(VA_BITS)")
    if bits not in LEVELS or number(lines, "PAGESIZE") != 1 << 12:
        raise ValueError("its VA_BITS and PAGESIZE are not those of a kernel")
    form = RiscvForm.of(bits)
    offset = number(lines, "NUMBER(va_kernel_pa_offset)", None, _ANY_BASE) & ALL
    # There is no KERNELOFFSET. Modules end where the image starts.
    start = number(lines, "NUMBER(MODULES_END)", KERNEL_LINK_ADDR, _ANY_BASE) & ALL
    if not KERNEL_LINK_ADDR <= start < ALL - IMAGE_WINDOW:
        raise ValueError("its MODULES_END is not one that a kernel has")
    image = AddressRange(start, start + IMAGE_WINDOW - 1)
    root, stext = symbol_in(lines, "swapper_pg_dir", image), symbol_in(lines, "_stext", image)
    if stext >= root:
        raise ValueError("its swapper_pg_dir does not follow its _stext")
    return RiscvAddressSpace(
        form=form,
        root=root - offset & ALL,
        image=image,
        image_offset=offset,
        image_by="va_kernel_pa_offset",
        physical_bits=_PHYSICAL_BITS,
        constant=AddressRange(stext & -form.page_size, root),
        page_offset=number(lines, "NUMBER(PAGE_OFFSET)", form.page_offset, _ANY_BASE) & ALL,
        ram_base=number(lines, "NUMBER(phys_ram_base)"),
        memory_map=_memory_map(lines),
    )


def _memory_map(lines: Mapping[str, str]) -> Optional[Tuple[int, int]]:
    try:
        start = number(lines, "NUMBER(VMEMMAP_START)", None, _ANY_BASE) & ALL
        return start, number(lines, "SIZE(page)")
    except ValueError:
        return None
