# SPDX-License-Identifier: LGPL-2.1-or-later
"""The facts of a riscv64 kernel's address space, see :class:`kvintro.kernels.Facts`."""

from __future__ import annotations

from functools import cached_property
from typing import Optional

from kvintro.arch.facts import KASAN_SCALE, ToldFacts, no_modules, of_nodes, shadow_place
from kvintro.arch.riscv64.address_space import KERNEL_LINK_ADDR, RiscvAddressSpace
from kvintro.arch.riscv64.entries import Dialect, RiscvEntries
from kvintro.arch.riscv64.form import RiscvForm
from kvintro.arch.riscv64.slots import IMAGE_ALIGN
from kvintro.errors import Unavailable
from kvintro.kernels import Kernel
from kvintro.model import ALL, AddressRange, Fact, Located, Placement
from kvintro.source.variables import KASAN_FUNCTION
from kvintro.swap_types import special_swap_types

_GB = 1 << 30
PCI_IO_SIZE = 16 << 20
#: FIXADDR_SIZE since ef69d2559fe9 "riscv: Move early dtb mapping into the fixmap region" (6.4), and before.
_FIXMAP_SIZE, _OLD_FIXMAP_SIZE = 6 << 20, 2 << 20
#: MODULES_LOWEST_VADDR.
_MODULES_LOWEST = KERNEL_LINK_ADDR - 2 * _GB


class RiscvFacts(ToldFacts[RiscvAddressSpace]):
    """See :class:`kvintro.kernels.Facts`. Each fact is read once, on first use."""

    @property
    def form(self) -> RiscvForm:
        """The form of this kernel's page tables."""
        return self.address_space.form

    @cached_property
    def levels(self) -> Fact[int]:
        """Levels of paging in use."""
        return Fact(self.form.levels, "VMCOREINFO VA_BITS")

    def user_root(self, table: int) -> Optional[int]:
        """None: there is no isolation."""
        return None

    @cached_property
    def isolation(self) -> Fact[bool]:
        """Processors of riscv64 need none."""
        return Fact(False, "riscv64 has no page-table isolation")

    @property
    def image(self) -> AddressRange:
        """Above the direct map, __pa() uses va_kernel_pa_offset."""
        return AddressRange(_MODULES_LOWEST, ALL)

    @cached_property
    def image_slide(self) -> Fact[int]:
        """Distance of the image from KERNEL_LINK_ADDR. Modules end where it starts."""
        return Fact(self.address_space.image.start - KERNEL_LINK_ADDR, "VMCOREINFO MODULES_END")

    @property
    def kaslr(self) -> Fact[bool]:
        """Whether the image moved."""
        return Fact(self.image_slide.value != 0, self.image_slide.provenance)

    @cached_property
    def image_end(self) -> int:
        """``_end``, rounded up to pages if there is no such symbol: MODULES_VADDR is 2 GB before it."""
        end = self._kernel.find_symbol("_end")
        return self.modules.start + 2 * _GB & ALL if end is None else end

    @cached_property
    def linear_offset(self) -> Fact[int]:
        """va_pa_offset: PAGE_OFFSET minus phys_ram_base."""
        return Fact(self.address_space.linear_offset, "VMCOREINFO phys_ram_base")

    @property
    def linear_window(self) -> AddressRange:
        """PAGE_OFFSET to PAGE_OFFSET + KERN_VIRT_SIZE - 1. Its place is fixed."""
        return self.address_space.linear

    @cached_property
    def max_physmem_bits(self) -> Fact[int]:
        """MAX_PHYSMEM_BITS."""
        return Fact(self.address_space.physical_bits, "constant")

    @cached_property
    def vmemmap(self) -> AddressRange:
        """VMEMMAP_START to VMEMMAP_END - 1."""
        return self.bounds("VMEMMAP_START", "VMEMMAP_END")

    @cached_property
    def vmalloc(self) -> AddressRange:
        """VMALLOC_START to VMALLOC_END - 1. vmemmap ends where it starts."""
        return self.bounds("VMEMMAP_END", "VMALLOC_END")

    @cached_property
    def modules(self) -> AddressRange:
        """MODULES_VADDR to MODULES_END - 1."""
        return self.bounds("MODULES_VADDR", "MODULES_END")

    @property
    def pci_io(self) -> AddressRange:
        """PCI_IO_START to PCI_IO_END - 1, below vmemmap."""
        end = self.vmemmap.start
        return AddressRange(end - PCI_IO_SIZE, end - 1)

    @property
    def fixmap_top(self) -> int:
        """FIXADDR_TOP."""
        return self.pci_io.start

    @cached_property
    def fixmap(self) -> AddressRange:
        """FIXADDR_START to FIXADDR_TOP - 1.

        :raises Unavailable: there are no types.
        """
        size = _FIXMAP_SIZE if self.device_tree.size > _OLD_FIXMAP_SIZE else _OLD_FIXMAP_SIZE
        return AddressRange(self.fixmap_top - size, self.fixmap_top - 1)

    @cached_property
    def shadow(self) -> Optional[AddressRange]:
        """KASAN_SHADOW_START to KASAN_SHADOW_END - 1; None without KASAN.

        :raises Unavailable: it is unknown whether the kernel has KASAN.
        """
        if not self._kernel.has_symbol(KASAN_FUNCTION, code=True):
            return None
        form, end = self.form, _MODULES_LOWEST
        start = end - (1 << form.half_bits - KASAN_SCALE) & -(1 << form.shift(form.levels))
        return AddressRange(start, end - 1)

    @property
    def kasan_shadow_offset(self) -> int:
        """KASAN_SHADOW_OFFSET."""
        return _MODULES_LOWEST - (1 << 64 - KASAN_SCALE) & ALL

    @cached_property
    def memory_map(self) -> Fact[int]:
        """``vmemmap``: VMEMMAP_START, minus the struct pages below the first section of RAM."""
        return self._kernel.number("SYMBOL(vmemmap)")

    def place(self, key: str) -> Located:
        """The rules are those of ``arch/riscv/include/asm/pgtable.h`` and ``kasan.h``."""
        kernel = self._kernel
        if key == "direct_map":
            offset, size = self.linear_offset.value, self.form.page_size
            return of_nodes(kernel, self.linear_window, "VMCOREINFO PAGE_OFFSET", offset, size)
        if key == "kernel_image":
            start, slide = self.address_space.image.start, self.image_slide.value
            # create_kernel_page_table() maps it in blocks of 2M.
            found = AddressRange(start, (self.image_end - 1 | IMAGE_ALIGN - 1))
            return Placement(
                *(found, "MODULES_END, _end"),
                default_start=KERNEL_LINK_ADDR,
                slide=slide,
                used=found,
                used_note="up to _end, rounded up to 2 MB",
            )
        if key == "kasan_shadow":
            return shadow_place(self.shadow)
        if key == "modules":
            note = "BPF programs are in its end"
            return no_modules(kernel) or Placement(self.modules, "MODULES_VADDR, MODULES_END", note=note)
        if key == "fixmap":
            note = f"slots 1 to {kernel.fixmap_slots}, and those of early boot"
            return Placement(self.fixmap, "enum fixed_addresses", note=note)
        if key == "vmemmap":
            base, size = self.memory_map.value, kernel.page_struct_size.value
            return of_nodes(kernel, self.vmemmap, "VMEMMAP_START, VMEMMAP_END", base, size)
        if key == "pci_io":
            return Placement(self.pci_io, "VMEMMAP_START")
        return Placement(self.vmalloc, "VMEMMAP_END, VMALLOC_END")

    @cached_property
    def entries(self) -> RiscvEntries:
        """Decodes the entries of this kernel's page tables."""
        kernel = self._kernel
        try:
            devmap = kernel.find_symbol("devmap_managed_key") is not None
            types = special_swap_types(kernel, newest=False)
        except Unavailable:
            return RiscvEntries(self.form, Dialect())
        return RiscvEntries(self.form, Dialect(types, devmap))


FACTS = RiscvFacts


def riscv_facts(kernel: Kernel) -> RiscvFacts:
    """The facts of a riscv64 kernel."""
    facts = kernel.facts
    assert isinstance(facts, RiscvFacts)
    return facts
