# SPDX-License-Identifier: LGPL-2.1-or-later
"""The facts of an x86-64 kernel's address space, with their provenance.

Every architecture has these facts and reads them in its own way. They are members of
:class:`kvintro.kernels.Kernel`.
"""

from __future__ import annotations

from functools import cached_property
from typing import Optional, Sequence, Tuple

from kvintro.arch.x86_64 import ARCHITECTURE
from kvintro.arch.x86_64.entries import Dialect, X86Entries
from kvintro.arch.x86_64.form import (
    CPU_ENTRY_AREA_BASE,
    DEFAULT_TEXT,
    FIXADDR_TOP,
    KASAN_SHADOW_OFFSET,
    PRESENT,
    PTI_USER_ROOT_BIT,
    SECTION_SIZE_BITS,
    START_KERNEL_MAP,
    X86Form,
)
from kvintro.arch.x86_64.places import PLACES, memory_map
from kvintro.arch.x86_64.zero_page import KASLR_FLAG, boot_initrd, boot_param
from kvintro.errors import Unavailable
from kvintro.kernels import Kernel
from kvintro.model import ALL, Absent, AddressRange, Fact, Located
from kvintro.swap_types import special_swap_types


class X86Facts:
    """See :class:`kvintro.kernels.Facts`. Each fact is read once, on first use."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel

    @cached_property
    def levels(self) -> Fact[int]:
        """Levels of paging in use."""
        fact = self._kernel.first_fact(
            lambda: self._kernel.number("NUMBER(pgtable_l5_enabled)"),
            lambda: self._kernel.value("__pgtable_l5_enabled", 4),
        )
        return Fact(5 if fact.value else 4, fact.provenance)

    @cached_property
    def phys_base(self) -> Fact[int]:
        """Physical address that START_KERNEL_MAP would have; signed."""
        return self._kernel.first_fact(
            lambda: self._kernel.number("NUMBER(phys_base)"),
            lambda: self._kernel.value("phys_base", signed=True),
        )

    @cached_property
    def physical_mask(self) -> Fact[int]:
        """Bits that hold an address in a page-table entry (``physical_mask``)."""

        def from_sme() -> Fact[int]:
            sme = self._kernel.number("NUMBER(sme_mask)")
            return Fact(((1 << 52) - 1) & ~sme.value, sme.provenance)

        fact = self._kernel.first_fact(lambda: self._kernel.value("physical_mask"), from_sme)
        # A wrong mask would make every walk wrong, and a damaged dump can have any value there.
        if fact.value & 0xFFFFF000 != 0xFFFFF000 or fact.value >> 52:
            fact = from_sme()
        return fact

    @cached_property
    def form(self) -> X86Form:
        """The form of this kernel's page tables."""
        return ARCHITECTURE.form(self.levels.value, self.physical_mask.value)

    @cached_property
    def entries(self) -> X86Entries:
        """Decodes the entries of the page tables."""
        mask = self.physical_mask
        notes = []
        if mask.value != (1 << 52) - 1:
            notes.append(f"addresses are masked with {self.form.pfn_mask:#x} ({mask.provenance})")
        return X86Entries(self.form, self.entry_dialect, notes)

    root_name = "init_top_pgt"

    @cached_property
    def root(self) -> Fact[int]:
        """Physical address of the kernel's own root table (init_top_pgt)."""
        fact = self._kernel.first_fact(
            lambda: self._kernel.number("SYMBOL(swapper_pg_dir)"),
            lambda: Fact(self._kernel.symbol("init_top_pgt"), "init_top_pgt"),
        )
        return Fact(fact.value - START_KERNEL_MAP + self.phys_base.value & ALL, fact.provenance)

    @cached_property
    def image_offset(self) -> Fact[int]:
        """Virtual minus physical address in the image."""
        return Fact(START_KERNEL_MAP - self.phys_base.value & ALL, self.phys_base.provenance)

    @property
    def image(self) -> AddressRange:
        """All addresses from START_KERNEL_MAP up, as in ``__phys_addr_nodebug``."""
        return AddressRange(START_KERNEL_MAP, ALL)

    @cached_property
    def image_window(self) -> Fact[int]:
        """KERNEL_IMAGE_SIZE in bytes: the window in which the image may lie."""
        return self._kernel.number("NUMBER(KERNEL_IMAGE_SIZE)")

    @cached_property
    def image_slide(self) -> Fact[int]:
        """Bytes by which KASLR moved the image."""

        def from_kerneloffset() -> Fact[int]:
            return self._kernel.number("KERNELOFFSET")

        def from_text() -> Fact[int]:
            return Fact(self._kernel.text.value - DEFAULT_TEXT, self._kernel.text.provenance)

        return self._kernel.first_fact(from_kerneloffset, from_text)

    @cached_property
    def section_size_bits(self) -> Fact[int]:
        """SECTION_SIZE_BITS: log2 of the size of a memory section in bytes."""
        return self._kernel.first_fact(
            lambda: self._kernel.number("NUMBER(SECTION_SIZE_BITS)"),
            # VMCOREINFO has it since 5.8.
            lambda: Fact(SECTION_SIZE_BITS, "constant"),
        )

    @property
    def kaslr(self) -> Fact[bool]:
        """``kaslr_enabled()``."""
        on = bool(boot_param(self._kernel, "loadflags") & KASLR_FLAG)
        return Fact(on, "boot_params.hdr.loadflags")

    @property
    def max_physmem_bits(self) -> Fact[int]:
        """MAX_PHYSMEM_BITS, which depends on the number of levels."""
        return Fact(self.form.max_physmem_bits, self.levels.provenance)

    @property
    def fixmap_top(self) -> int:
        """FIXADDR_TOP."""
        return FIXADDR_TOP

    @cached_property
    def memory_map(self) -> Fact[int]:
        """Address of the struct page of page frame 0."""
        return memory_map(self._kernel)

    @property
    def kasan_shadow_offset(self) -> int:
        """KASAN_SHADOW_OFFSET."""
        return KASAN_SHADOW_OFFSET

    def initrd(self) -> Sequence[Tuple[int, int]]:
        """As the boot loader placed it."""
        return boot_initrd(self._kernel)

    def place(self, key: str) -> Located:
        """See :data:`kvintro.arch.x86_64.places.PLACES`."""
        return PLACES[key](self._kernel)

    @cached_property
    def linear_offset(self) -> Fact[int]:
        """Virtual minus physical address in the direct map, which is also the start of the direct map."""
        return self._kernel.first_fact(
            lambda: self._kernel.value("page_offset_base"),
            self._direct_map_from_segments,
            self._direct_map_from_tables,
        )

    @property
    def linear_window(self) -> AddressRange:
        """The addresses between the LDT's slot and cpu_entry_area."""
        return AddressRange(self.form.ldt_remap.end + 1, CPU_ENTRY_AREA_BASE - 1)

    def _direct_map_from_segments(self) -> Fact[int]:
        """The base from segments: in kexec's dumps and /proc/kcore, those of RAM have both addresses."""
        bases = {
            segment.vaddr - segment.paddr
            for segment in self._kernel.source.segments
            if segment.vaddr in self.linear_window and segment.paddr < 1 << self.form.max_physmem_bits
        }
        if len(bases) != 1:
            raise Unavailable("the source's segments do not give RAM's virtual addresses")
        return Fact(bases.pop(), "PT_LOAD")

    def _direct_map_from_tables(self) -> Fact[int]:
        """The base from the lowest mapping above the LDT slot. Page frame 0 is on a GiB boundary."""
        start, end = self.linear_window.start, self.linear_window.end
        # Use the existing ranges: a second walk would find every table shared.
        for low, _, key in self._kernel.kernel_ranges.clip(start, end):
            if key & PRESENT:
                found = self._kernel.walk(low)
                if found.physical is None:
                    break
                base = low - found.physical
                if base % (1 << 30) == 0 and base >= start:
                    return Fact(base, "page tables: lowest mapping of the kernel half")
                break
        raise Unavailable("the page tables do not show where the direct map starts")

    @cached_property
    def isolation(self) -> Fact[bool]:
        """Whether page-table isolation is on.

        This is read from the tables: only with isolation, the root has a second page, for user mode, into
        which the kernel clones the entry of cpu_entry_area (arch/x86/mm/pti.c:pti_clone_p4d).
        """
        level = self.form.levels
        offset = 8 * self.form.index(CPU_ENTRY_AREA_BASE, level)
        kernel_half = self.root.value & ~PTI_USER_ROOT_BIT
        if self.root.value != kernel_half:
            return Fact(False, "init_top_pgt is not aligned for two roots")
        address = kernel_half + offset
        if level == 5:
            # All five-level roots share the last entry; PTI clones below it, into a separate table.
            user_top = self._entry(kernel_half + PTI_USER_ROOT_BIT + offset)
            kernel_top = self._entry_of_cpus(address)
            if not user_top & PRESENT or user_top == kernel_top:
                return Fact(False, "page tables: no user root")
            index = 8 * self.form.index(CPU_ENTRY_AREA_BASE, 4)
            mask = self.form.pfn_mask
            same = self._entry((user_top & mask) + index) == self._entry((kernel_top & mask) + index)
        else:
            same = self._entry_of_cpus(address) == self._entry(address + PTI_USER_ROOT_BIT)
        return Fact(same, f"page tables: {'a' if same else 'no'} user root")

    def firmware_root(self) -> Absent:
        """Absent, as the region ``efi`` has this root."""
        return Absent("the region efi has it")

    def user_root(self, table: int) -> Optional[int]:
        """The second page of the root; None without page-table isolation."""
        return table | PTI_USER_ROOT_BIT if self.isolation.value else None

    def _entry_of_cpus(self, physical: int) -> int:
        """The entry for cpu_entry_area, which every kernel maps.

        :raises Unavailable: there is none, as memory was overwritten or reads as zeros.
        """
        entry = self._entry(physical)
        if not entry & PRESENT:
            raise Unavailable("init_top_pgt has no entry for cpu_entry_area")
        return entry

    def _entry(self, physical: int) -> int:
        return int.from_bytes(self._kernel.read_physical(physical, 8), "little")

    @cached_property
    def entry_dialect(self) -> Dialect:
        """How this kernel's build affects the meaning of page-table entries; the default if unknown."""
        try:
            return self._entry_dialect()
        except Unavailable:
            return Dialect()

    def _entry_dialect(self) -> Dialect:
        # Shadow stacks (6.6) use bit 58 for SAVED_DIRTY, and moved SOFTW4 to 57. They added this function.
        shadow_stacks = self._kernel.has_symbol("arch_check_zapped_pte", code=True)
        return Dialect(
            57 if shadow_stacks else 58,
            special_swap_types(self._kernel, newest=shadow_stacks),
            # The series of "mm: remove devmap related functions and page table bits" removed both (6.17).
            devmap=self._kernel.find_symbol("devmap_managed_key") is not None,
            # arch/x86/mm/pat/set_memory.c, the only reader of _PAGE_KERNEL_4K.
            kernel_4k=self._kernel.has_symbol("collapse_large_pages", code=True),
            # include/linux/userfaultfd_k.h of 7.3, where _PAGE_UFFD_WP became _PAGE_UFFD.
            uffd="UFFD" if self._kernel.has_symbol("userfaultfd_rwp", code=True) else "UFFD_WP",
        )


def x86_facts(kernel: Kernel) -> X86Facts:
    """The facts of a kernel that is known to be an x86-64 kernel, for code of this package."""
    facts = kernel.facts
    assert isinstance(facts, X86Facts)
    return facts


def x86_form(kernel: Kernel) -> X86Form:
    """The form of an x86-64 kernel's page tables."""
    return x86_facts(kernel).form


FACTS = X86Facts
