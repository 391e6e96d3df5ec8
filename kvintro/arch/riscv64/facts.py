# SPDX-License-Identifier: LGPL-2.1-or-later
"""The facts of a riscv64 kernel's address space, see :class:`kvintro.kernels.Facts`."""

from __future__ import annotations

from functools import cached_property
from typing import Optional, Sequence, Tuple, Union

import drgn

from kvintro.arch.riscv64.address_space import KERNEL_LINK_ADDR, RiscvAddressSpace, space_of
from kvintro.arch.riscv64.entries import Dialect, RiscvEntries
from kvintro.arch.riscv64.form import RiscvForm
from kvintro.arch.riscv64.slots import IMAGE_ALIGN
from kvintro.errors import Unavailable
from kvintro.kernels import MAX_FIXMAP_SLOTS, Kernel
from kvintro.model import ALL, Absent, AddressRange, Fact, Located, Placement, Root
from kvintro.source.variables import KASAN_FUNCTION
from kvintro.swap_types import special_swap_types

_GB = 1 << 30
PCI_IO_SIZE = 16 << 20
#: FIXADDR_SIZE since ef69d2559fe9 "riscv: Move early dtb mapping into the fixmap region" (6.4), and before.
_FIXMAP_SIZE, _OLD_FIXMAP_SIZE = 6 << 20, 2 << 20
_KASAN_SCALE = 3  # KASAN_SHADOW_SCALE_SHIFT
#: MODULES_LOWEST_VADDR.
_MODULES_LOWEST = KERNEL_LINK_ADDR - 2 * _GB


class RiscvFacts:
    """See :class:`kvintro.kernels.Facts`. Each fact is read once, on first use."""

    root_name = "swapper_pg_dir"

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel

    @cached_property
    def address_space(self) -> RiscvAddressSpace:
        """The address space that VMCOREINFO describes.

        :raises Unavailable: no kernel can have such an address space.
        """
        try:
            return space_of(self._kernel.source.vmcoreinfo)
        except ValueError as error:
            raise Unavailable(f"VMCOREINFO does not describe a kernel of riscv64: {error}") from None

    @property
    def form(self) -> RiscvForm:
        """The form of this kernel's page tables."""
        return self.address_space.form

    @cached_property
    def levels(self) -> Fact[int]:
        """Levels of paging in use."""
        return Fact(self.form.levels, "VMCOREINFO VA_BITS")

    @cached_property
    def root(self) -> Fact[int]:
        """Physical address of the kernel's own root table."""
        return Fact(self.address_space.root, "VMCOREINFO swapper_pg_dir")

    def firmware_root(self) -> Union[Root, Absent]:
        """efi_mm's root (arch/riscv/include/asm/efi.h)."""
        kernel = self._kernel
        if not kernel.has_symbol("efi_mm"):
            return Absent("CONFIG_EFI is off")
        try:
            at = kernel.symbol("efi_mm") + drgn.offsetof(kernel.prog.type("struct mm_struct"), "pgd")
        except LookupError:
            what = "efi_mm cannot be read without types"
            raise Unavailable(what, "give -s VMLINUX or --btf FILE") from None
        pgd = int.from_bytes(kernel.read(at, 8), "little")
        if not pgd:
            return Absent("the kernel was not booted by EFI")
        return Root(pgd - self.linear_offset.value & ALL, "efi_mm")

    def user_root(self, table: int) -> Optional[int]:
        """None: there is no isolation."""
        return None

    @cached_property
    def isolation(self) -> Fact[bool]:
        """Processors of riscv64 need none."""
        return Fact(False, "riscv64 has no page-table isolation")

    @cached_property
    def image_offset(self) -> Fact[int]:
        """va_kernel_pa_offset."""
        return Fact(self.address_space.image_offset, "VMCOREINFO va_kernel_pa_offset")

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
        return self.form.linear_map(self.address_space.page_offset)

    @cached_property
    def section_size_bits(self) -> Fact[int]:
        """SECTION_SIZE_BITS."""
        return self._kernel.number("NUMBER(SECTION_SIZE_BITS)")

    @cached_property
    def max_physmem_bits(self) -> Fact[int]:
        """MAX_PHYSMEM_BITS."""
        return Fact(self.address_space.physical_bits, "constant")

    def _bounds(self, *keys: str) -> AddressRange:
        start, end = (self._kernel.number(f"NUMBER({key})").value & ALL for key in keys)
        return AddressRange(start, end - 1)

    @cached_property
    def vmemmap(self) -> AddressRange:
        """VMEMMAP_START to VMEMMAP_END - 1."""
        return self._bounds("VMEMMAP_START", "VMEMMAP_END")

    @cached_property
    def vmalloc(self) -> AddressRange:
        """VMALLOC_START to VMALLOC_END - 1. vmemmap ends where it starts."""
        return self._bounds("VMEMMAP_END", "VMALLOC_END")

    @cached_property
    def modules(self) -> AddressRange:
        """MODULES_VADDR to MODULES_END - 1."""
        return self._bounds("MODULES_VADDR", "MODULES_END")

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
    def device_tree(self) -> AddressRange:
        """The fixmap's slots for the device tree, FIX_FDT to FIX_FDT_END.

        :raises Unavailable: there are no types, or they are invalid.
        """
        try:
            first, last = (int(self._kernel.prog.constant(f"FIX_FDT{end}").value_()) for end in ("", "_END"))
        except LookupError:
            raise Unavailable("its slots are an enum, which cannot be read without types") from None
        if not 0 <= last <= first < MAX_FIXMAP_SLOTS:
            raise Unavailable(f"FIX_FDT is {first} and FIX_FDT_END {last}, which is invalid")
        top, shift = self.fixmap_top, self.form.page_shift
        return AddressRange(top - (first << shift), top - (last << shift) + self.form.page_size - 1)

    @cached_property
    def shadow(self) -> Optional[AddressRange]:
        """KASAN_SHADOW_START to KASAN_SHADOW_END - 1; None without KASAN.

        :raises Unavailable: it is unknown whether the kernel has KASAN.
        """
        if not self._kernel.has_symbol(KASAN_FUNCTION, code=True):
            return None
        form, end = self.form, _MODULES_LOWEST
        start = end - (1 << form.half_bits - _KASAN_SCALE) & -(1 << form.shift(form.levels))
        return AddressRange(start, end - 1)

    @property
    def kasan_shadow_offset(self) -> int:
        """KASAN_SHADOW_OFFSET."""
        return _MODULES_LOWEST - (1 << 64 - _KASAN_SCALE) & ALL

    @cached_property
    def memory_map(self) -> Fact[int]:
        """``vmemmap``: VMEMMAP_START, minus the struct pages below the first section of RAM."""
        return self._kernel.number("SYMBOL(vmemmap)")

    def initrd(self) -> Sequence[Tuple[int, int]]:
        """Empty: the initrd's memory is freed once it was unpacked, and its place is not recorded."""
        return ()

    def place(self, key: str) -> Located:
        """The rules are those of ``arch/riscv/include/asm/pgtable.h`` and ``kasan.h``."""
        if key == "direct_map":
            offset, size = self.linear_offset.value, self.form.page_size
            return self._of_nodes(self.linear_window, "VMCOREINFO PAGE_OFFSET", offset, size)
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
            if self.shadow is None:
                return Absent("CONFIG_KASAN is off")
            return Placement(self.shadow, "constant", note="maps mostly one shared page of zeros")
        if key == "modules":
            kernel = self._kernel
            if kernel.source.symbols != "none" and not kernel.has_symbol("__module_address", code=True):
                return Absent("CONFIG_MODULES is off")
            return Placement(self.modules, "MODULES_VADDR, MODULES_END", note="BPF programs are in its end")
        if key == "fixmap":
            note = f"slots 1 to {self._kernel.fixmap_slots}, and those of early boot"
            return Placement(self.fixmap, "enum fixed_addresses", note=note)
        if key == "vmemmap":
            base, size = self.memory_map.value, self._kernel.page_struct_size.value
            return self._of_nodes(self.vmemmap, "VMEMMAP_START, VMEMMAP_END", base, size)
        return Placement(self.vmalloc, "VMEMMAP_END, VMALLOC_END")

    def _of_nodes(self, whole: AddressRange, provenance: str, first: int, size: int) -> Placement:
        """A range of which the nodes' page frames use a part.

        :param first: address that belongs to page frame 0, modulo 2^64.
        :param size: bytes for each page frame.
        """
        used, note = None, ""
        try:
            spans = [span for span in self._kernel.node_spans() if span[0] < span[1]]
        except Unavailable:
            spans = []
        if spans:
            low = min(start for start, _ in spans) * size + first & ALL
            high = max(end for _, end in spans) * size + first - 1 & ALL
            if low in whole and high in whole and low <= high:
                used, note = AddressRange(low, high), "from the first page frame of the nodes to the last"
        return Placement(whole, provenance, used=used, used_note=note)

    @cached_property
    def entries(self) -> RiscvEntries:
        """Decodes the entries of this kernel's page tables."""
        kernel = self._kernel
        try:
            devmap = kernel.find_symbol("devmap_managed_key") is not None
            types = special_swap_types(kernel, newest=False)
        except Unavailable:
            return RiscvEntries(self.form, Dialect(physical_bits=self.address_space.physical_bits))
        return RiscvEntries(self.form, Dialect(types, self.address_space.physical_bits, devmap=devmap))


FACTS = RiscvFacts


def riscv_facts(kernel: Kernel) -> RiscvFacts:
    """The facts of a riscv64 kernel."""
    facts = kernel.facts
    assert isinstance(facts, RiscvFacts)
    return facts
