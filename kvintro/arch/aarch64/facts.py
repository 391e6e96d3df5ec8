# SPDX-License-Identifier: LGPL-2.1-or-later
"""The facts of an aarch64 kernel's address space, with their provenance.

See :class:`kvintro.kernels.Facts`.
"""

from __future__ import annotations

import struct
from dataclasses import replace
from functools import cached_property
from typing import Dict, Optional, Sequence

import drgn

from kvintro.arch.aarch64.address_space import Arm64AddressSpace
from kvintro.arch.aarch64.entries import (
    SWAP_5_19,
    SWAP_6_11,
    SWAP_OLD,
    Arm64Entries,
    Dialect,
    SwapFormat,
)
from kvintro.arch.aarch64.form import (
    INVALID_NG,
    MEMORY_TYPES,
    NG,
    OLD_MEMORY_TYPES,
    PMD_INVALID_59,
    PROT_NONE_58,
    VALID,
    Arm64Form,
)
from kvintro.arch.aarch64.nameless import feature_register
from kvintro.arch.aarch64.places import PLACES, image_end
from kvintro.arch.aarch64.slots import IMAGE_ALIGN, OLD_MODULES_SIZE
from kvintro.arch.aarch64.space import Space, with_vmalloc_end, with_vmemmap
from kvintro.arch.facts import KASAN_SCALE, ToldFacts
from kvintro.errors import KvintroError, Unavailable
from kvintro.kernels import Kernel
from kvintro.model import ALL, AddressRange, Fact, Located
from kvintro.paging import walk
from kvintro.source.variables import KASAN_FUNCTION
from kvintro.swap_types import special_swap_types

#: reserved_pg_dir and tramp_pg_dir are the pages before swapper_pg_dir (arch/arm64/kernel/vmlinux.lds.S).
_TRAMP_BEFORE = 2
#: ID_AA64MMFR0_EL1.PARange (DDI 0487).
_PARANGE = {0: 32, 1: 36, 2: 40, 3: 42, 4: 44, 5: 48, 6: 52, 7: 56}
_SECTION_FLAGS = 0x3F
#: A function of CONFIG_KASAN_SW_TAGS, whose shadow has one byte for 16.
_KASAN_TAGS_FUNCTION = "__hwasan_tag_memory"
_CODE_LOOKED_AT = 512  # instructions of __cpu_setup to examine


class Arm64Facts(ToldFacts[Arm64AddressSpace]):
    """See :class:`kvintro.kernels.Facts`. Each fact is read once, on first use."""

    @cached_property
    def form(self) -> Arm64Form:
        """The form of this kernel's page tables."""
        return replace(self.address_space.form, kept=self._kept, types=self._memory_types)

    @cached_property
    def levels(self) -> Fact[int]:
        """Levels of paging in use."""
        return Fact(self.address_space.form.levels, "VMCOREINFO TCR_EL1_T1SZ")

    def user_root(self, table: int) -> Optional[int]:
        """tramp_pg_dir, which translates the kernel's addresses while user mode runs; None without KPTI.

        User mode's addresses have a root of their own, which is used in both modes.
        """
        return self._tramp if table == self.root.value and self.isolation.value else None

    @property
    def _tramp(self) -> int:
        return self.root.value - _TRAMP_BEFORE * self.form.page_size

    @cached_property
    def image_slide(self) -> Fact[int]:
        """KERNELOFFSET: distance of the image from KIMAGE_VADDR."""
        return self._kernel.number("KERNELOFFSET")

    @cached_property
    def memstart(self) -> Fact[int]:
        """memstart_addr: the physical address of PAGE_OFFSET, modulo 2^64.

        It may be negative: KASLR moves RAM upwards in the linear map, and on a processor with fewer bits than
        the kernel was built for, the linear map begins higher (arch/arm64/mm/init.c:arm64_memblock_init).
        """

        def masked(fact: Fact[int]) -> Fact[int]:
            return Fact(fact.value & ALL, fact.provenance)

        return self._kernel.first_fact(
            lambda: masked(self._kernel.number("NUMBER(PHYS_OFFSET)")),
            lambda: masked(self._kernel.value("memstart_addr")),
        )

    @cached_property
    def linear_offset(self) -> Fact[int]:
        """PAGE_OFFSET - memstart_addr (__phys_to_virt)."""
        offset = self.form.page_offset - self.memstart.value & ALL
        return Fact(offset, self.memstart.provenance)

    @property
    def linear_window(self) -> AddressRange:
        """The lower half of the kernel's addresses; RAM may be anywhere in it."""
        return self.form.linear_map

    @cached_property
    def space(self) -> Space:
        """Bounds that were fixed when the kernel was built.

        :raises Unavailable: they are none of the known ones, or the source does not say.
        """
        size = self._kernel.page_struct_size.value
        if not 0 < size <= 1 << 12:
            raise Unavailable(f"invalid size of struct page: {size} bytes")
        try:
            end = self._kernel.number("NUMBER(VMALLOC_END)").value & ALL
        except Unavailable:
            start = self._vmemmap + self._signed_memstart // self.form.page_size * size & ALL
            found, what = with_vmemmap(self.form, size, start), f"VMEMMAP_START is {start:016x}"
        else:
            found, what = with_vmalloc_end(self.form, size, end), f"VMALLOC_END is {end:016x}"
        if found is None:
            raise Unavailable(f"{what}, which is not a value that kvintro knows")
        return found

    @property
    def _signed_memstart(self) -> int:
        value = self.memstart.value
        return value - (1 << 64) if value >> 63 else value

    @property
    def _vmemmap(self) -> int:
        """``vmemmap``: the map of any section, without the flags (SPARSEMEM_VMEMMAP).

        :raises Unavailable: no section can be read.
        """
        kernel = self._kernel
        frame = min((first for first, end in kernel.node_spans() if end > first), default=0)
        number = frame >> self.section_size_bits.value - self.form.page_shift
        size = kernel.number("SIZE(mem_section)").value
        if not 0 < size <= self.form.page_size:
            raise Unavailable(f"invalid size of struct mem_section: {size} bytes")
        per_root = self.form.page_size // size
        roots = kernel.number("SYMBOL(mem_section)").value
        root = self.word(roots + 8 * (number // per_root))
        offset = kernel.number("OFFSET(mem_section.section_mem_map)").value
        return self.word(root + number % per_root * size + offset) & ~_SECTION_FLAGS

    @cached_property
    def image_place(self) -> int:
        """KIMAGE_VADDR, which equals MODULES_END and VMALLOC_START: a multiple of 2M."""
        stext = self._kernel.number("SYMBOL(_stext)").value
        return (stext - self.image_slide.value & ALL) & -IMAGE_ALIGN

    @cached_property
    def modules(self) -> AddressRange:
        """MODULES_VADDR to MODULES_END - 1.

        :raises Unavailable: VMCOREINFO does not say.
        """
        try:
            return self.bounds("MODULES_VADDR", "MODULES_END")
        except Unavailable:
            # Kernels without these lines have MODULES_VSIZE of 128M.
            return AddressRange(self.image_place - OLD_MODULES_SIZE, self.image_place - 1)

    @cached_property
    def bpf(self) -> Optional[AddressRange]:
        """BPF_JIT_REGION_START to BPF_JIT_REGION_END - 1, below the modules (5.4 to 5.16); otherwise None."""
        start, end = self.form.linear_end, self.modules.start
        return AddressRange(start, end - 1) if start < end else None

    @cached_property
    def vmalloc(self) -> AddressRange:
        """VMALLOC_START to VMALLOC_END - 1.

        :raises Unavailable: the source does not contain it.
        """
        try:
            start = self._kernel.number("NUMBER(VMALLOC_START)").value & ALL
        except Unavailable:
            start = self.image_place
        return AddressRange(start, self.space.vmalloc_end - 1)

    @cached_property
    def shadow(self) -> Optional[AddressRange]:
        """KASAN_SHADOW_START to KASAN_SHADOW_END - 1; None without KASAN.

        :raises Unavailable: it is unknown whether the kernel has KASAN.
        """
        # KASAN_SHADOW_OFFSET is chosen so that the shadow ends where the linear map would end (Kconfig).
        for function, scale in ((KASAN_FUNCTION, KASAN_SCALE), (_KASAN_TAGS_FUNCTION, 4)):
            if self._kernel.has_symbol(function, code=True):
                end = self.form.linear_end
                return AddressRange(end - (1 << self.form.address_bits - scale), end - 1)
        return None

    @cached_property
    def linear_end(self) -> Fact[int]:
        """PAGE_END: one more than the linear map's last address."""
        if self.shadow is not None:
            return Fact(self.shadow.start, "KASAN_SHADOW_START")
        return Fact(self.form.linear_end, "constant")

    def fixmap(self, *, whole: bool) -> AddressRange:
        """FIXADDR_START to FIXADDR_TOP - 1.

        :param whole: start at FIXADDR_TOT_START instead, which includes the slots of early boot.
        :raises Unavailable: there are no types, or they are invalid.
        """
        slots = self.slot("__end_of_fixed_addresses") if whole else self._kernel.fixmap_slots
        top = self.space.fixaddr_top
        return AddressRange(top - (slots << self.form.page_shift), top - 1)

    @property
    def image(self) -> AddressRange:
        """The addresses that __is_lm_address() does not consider part of the linear map."""
        return AddressRange(self.form.linear_end, ALL)

    @property
    def kaslr(self) -> Fact[bool]:
        """Whether the image moved by at least 2 MB, as with KASLR; less follows from its physical address."""
        return Fact(self.image_slide.value >= IMAGE_ALIGN, self.image_slide.provenance)

    @property
    def max_physmem_bits(self) -> Fact[int]:
        """MAX_PHYSMEM_BITS."""
        return Fact(self.address_space.physical_bits, "VMCOREINFO MAX_PHYSMEM_BITS")

    @cached_property
    def memory_map(self) -> Fact[int]:
        """``vmemmap``: VMEMMAP_START minus the size of the struct pages for addresses below memstart_addr."""
        size = self._kernel.page_struct_size.value
        frames = self._signed_memstart // self.form.page_size
        return Fact(self.space.vmemmap_start - frames * size & ALL, self.memstart.provenance)

    @property
    def fixmap_top(self) -> int:
        """FIXADDR_TOP."""
        return self.space.fixaddr_top

    @property
    def kasan_shadow_offset(self) -> int:
        """KASAN_SHADOW_OFFSET, which puts the shadow of the last address at KASAN_SHADOW_END - 1."""
        return self.form.linear_end - (1 << 64 - KASAN_SCALE) & ALL

    def place(self, key: str) -> Located:
        """See :mod:`kvintro.arch.aarch64.places`."""
        return PLACES[key](self._kernel, self)

    @cached_property
    def physical_bits(self) -> Optional[int]:
        """Bits of the processor's physical addresses (ID_AA64MMFR0_EL1.PARange); None if unknown."""
        kernel = self._kernel
        try:
            data = drgn.Object(kernel.prog, "struct cpuinfo_arm64", address=kernel.symbol("boot_cpu_data"))
            return _PARANGE.get(int(data.reg_id_aa64mmfr0) & 15)
        except (LookupError, TypeError, KvintroError, drgn.FaultError):
            pass
        try:
            found = feature_register(kernel, "ID_AA64MMFR0_EL1", image_end(kernel, self)[0] + 1)
        except KvintroError:
            return None
        return None if found is None else _PARANGE.get(found & 15)

    @cached_property
    def isolation(self) -> Fact[bool]:
        """Whether user mode runs on tramp_pg_dir (KPTI).

        If so, all pages of the kernel are nG, and tramp_pg_dir maps something. One alone is not enough:
        before about 6.2, tramp_pg_dir maps something without KPTI too, and pages may be nG if KASLR wanted
        KPTI and ``kpti=off`` forbade it.
        """
        stext = self._kernel.number("SYMBOL(_stext)").value
        found = walk(self._kernel.read_physical, self.form, self.root.value, stext)
        if found.state == "not-in-dump" or not found.steps:
            raise Unavailable("the page tables of the kernel's image are not in the dump")
        leaf = found.steps[-1].value or 0
        if not leaf & VALID or found.physical != stext - self.image_offset.value & ALL:
            raise Unavailable("the page tables do not map the kernel's image")
        if not leaf & NG:
            return Fact(False, "page tables: the kernel's pages are global")
        if not any(self._kernel.read_physical(self._tramp, self.form.table_size(self.form.levels))):
            return Fact(False, "page tables: tramp_pg_dir is empty")
        return Fact(True, "page tables: the kernel's pages are not global, and tramp_pg_dir has entries")

    # The meaning of entries

    @cached_property
    def new_invalid(self) -> Optional[bool]:
        """Whether PTE_PRESENT_INVALID is nG (6.11), according to the kernel's PAGE_NONE; None if unknown."""
        kernel = self._kernel
        try:
            # protection_map[0]: the flags that mmap() gives a page without rights, never 0.
            none = kernel.value("protection_map").value
            if none:
                return not none & PROT_NONE_58
        except KvintroError:
            pass
        try:
            # 6.9 and later have contpte, in all kernels with huge pages.
            if kernel.has_symbol("remove_migration_ptes", code=True) and not kernel.has_symbol(
                "contpte_ptep_get", code=True
            ):
                return False
        except Unavailable:
            pass
        return None

    @property
    def _kept(self) -> int:
        if self.new_invalid is None:
            return PROT_NONE_58 | PMD_INVALID_59
        return INVALID_NG if self.new_invalid else PROT_NONE_58 | PMD_INVALID_59

    @cached_property
    def _memory_types(self) -> Sequence[str]:
        """Names according to the value that the kernel writes to MAIR_EL1 at boot (arch/arm64/mm/proc.S)."""
        mair = self._mair
        # In older kernels, the byte of AttrIndx 3 is that of NORMAL_WT, 0xbb.
        return OLD_MEMORY_TYPES if mair is not None and mair >> 24 & 0xFF == 0xBB else MEMORY_TYPES

    @property
    def _mair(self) -> Optional[int]:
        """The value of the register that __cpu_setup writes to MAIR_EL1 first; None if not found."""
        try:
            data = self._kernel.read(self._kernel.symbol("__cpu_setup"), 4 * _CODE_LOOKED_AT)
        except KvintroError:
            return None
        registers: Dict[int, int] = {}
        for (word,) in struct.iter_unpack("<I", data):
            number = word & 31
            shift = (word >> 21 & 3) * 16
            value = (word >> 5 & 0xFFFF) << shift
            if word >> 23 == 0x1A5:  # movz
                registers[number] = value
            elif word >> 23 == 0x125:  # movn
                registers[number] = ~value & ALL
            elif word >> 23 == 0x1E5 and number in registers:  # movk
                registers[number] = registers[number] & ~(0xFFFF << shift) & ALL | value
            elif word & ~31 == 0xD518A200:  # msr mair_el1, xN
                return registers.get(number)
        return None

    @cached_property
    def entries(self) -> Arm64Entries:
        """Decodes the entries of this kernel's page tables."""
        return Arm64Entries(self.form, self._dialect())

    def _dialect(self) -> Dialect:
        kernel = self._kernel
        try:
            bits: Optional[int] = kernel.number("NUMBER(MAX_PHYSMEM_BITS)").value
        except Unavailable:
            bits = None
        try:
            keys = kernel.has_symbol("arch_set_user_pkey_access", code=True)
            devmap = kernel.find_symbol("devmap_managed_key") is not None
        except Unavailable:
            return Dialect(physical_bits=bits)
        return Dialect(
            self._swap_format,
            # Bit 11 is since 6.11, the last generation of special types since 6.2.
            special_swap_types(kernel, newest=bool(self.new_invalid)),
            bits,
            devmap=devmap,
            uffd=bool(self.new_invalid),
            keys=keys,
        )

    @property
    def _swap_format(self) -> Optional[SwapFormat]:
        if self.new_invalid is None:
            return None
        if self.new_invalid:
            return SWAP_6_11
        try:
            self._kernel.prog.constant("PG_anon_exclusive")
        except LookupError:
            # 78fbe906cc90 "mm/page-flags: reuse PG_mappedtodisk as PG_anon_exclusive for PageAnon() pages"
            # was part of the same series.
            return SWAP_OLD if self._kernel.source.types != "none" else None
        return SWAP_5_19


FACTS = Arm64Facts


def arm64_facts(kernel: Kernel) -> Arm64Facts:
    """The facts of an aarch64 kernel."""
    facts = kernel.facts
    assert isinstance(facts, Arm64Facts)
    return facts
