# SPDX-License-Identifier: LGPL-2.1-or-later
"""x86-64: everything that is specific to this architecture.

``form``, ``entries``, ``slots`` and ``address_space`` are pure arithmetic and do not need a kernel.
``regions`` has the regions that only x86-64 has, and may use kernels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Mapping, Sequence, Tuple

from kvintro.arch.image import InnerPart, Part
from kvintro.arch.x86_64.address_space import X86AddressSpace, space_of
from kvintro.arch.x86_64.form import (
    ACCESSED,
    CPU_ENTRY_AREA_BASE,
    DEFAULT_TEXT,
    DIRTY,
    EFI_VA_END,
    EFI_VA_START,
    ESPFIX_BASE,
    FIXADDR_TOP,
    GLOBAL,
    KASAN_SHADOW_OFFSET,
    LDT_SLOT_STRIDE,
    MODULES_END,
    NX,
    P4D_SHIFT,
    PAGE_SHIFT,
    PAGE_SIZE,
    PAT,
    PAT_LARGE,
    PCD,
    PMD_SHIFT,
    PRESENT,
    PROTNONE,
    PSE,
    PTI_USER_ROOT_BIT,
    PTRS_PER_TABLE,
    PUD_SHIFT,
    PWT,
    RW,
    SECTION_SIZE_BITS,
    START_KERNEL_MAP,
    TOP_HOLE,
    USER,
    VSYSCALL_ADDR,
    X86Form,
)
from kvintro.arch.x86_64.image import INNER, PARTS
from kvintro.model import ALL

__all__ = (
    "ACCESSED",
    "ALL",
    "ARCHITECTURE",
    "CPU_ENTRY_AREA_BASE",
    "DEFAULT_TEXT",
    "DIRTY",
    "EFI_VA_END",
    "EFI_VA_START",
    "ESPFIX_BASE",
    "FIXADDR_TOP",
    "GLOBAL",
    "KASAN_SHADOW_OFFSET",
    "LDT_SLOT_STRIDE",
    "MODULES_END",
    "NX",
    "P4D_SHIFT",
    "PAGE_SHIFT",
    "PAGE_SIZE",
    "PAT",
    "PAT_LARGE",
    "PCD",
    "PMD_SHIFT",
    "PRESENT",
    "PROTNONE",
    "PSE",
    "PTI_USER_ROOT_BIT",
    "PTRS_PER_TABLE",
    "PUD_SHIFT",
    "PWT",
    "RW",
    "SECTION_SIZE_BITS",
    "START_KERNEL_MAP",
    "TOP_HOLE",
    "USER",
    "VSYSCALL_ADDR",
    "X86Architecture",
    "X86Form",
)


@dataclass(frozen=True)
class X86Architecture:
    """See :class:`kvintro.arch.Architecture`."""

    name: str = "x86-64"
    package: str = __name__
    drgn_name: str = "X86_64"
    elf_machine: int = 62
    machine: str = "x86_64"
    ram_from_zero: bool = True
    page_sizes: Sequence[int] = (PAGE_SIZE,)
    qemu_machine: str = ""
    vmcoreinfo_keys: Sequence[str] = ("NUMBER(phys_base)",)
    image_parts: Sequence[Part] = PARTS
    image_inner: Sequence[InnerPart] = INNER
    # idt_setup_apic_and_irq_gates().
    protected_pages: Sequence[str] = ("idt_table",)
    unused_top: int = TOP_HOLE
    vmcoreinfo_last: str = "KERNELOFFSET"
    root_symbol: str = "init_top_pgt"
    minimal_vmcoreinfo: bytes = (
        b"OSRELEASE=5.4.0\nPAGESIZE=4096\nKERNELOFFSET=0\n"
        b"NUMBER(pgtable_l5_enabled)=0\nSYMBOL(swapper_pg_dir)=ffffffff81000000\n"
    )

    @property
    def marked_variables(self) -> Mapping[str, Tuple[bytes, int]]:
        """boot_params: hdr has the marks of a boot sector and of Linux (Documentation/arch/x86/boot.rst)."""
        return {"boot_params": (rb"\x55\xaa..HdrS", 0x1FE)}

    def address_space(self, lines: Mapping[str, str]) -> X86AddressSpace:
        """See :func:`kvintro.arch.x86_64.address_space.space_of`."""
        return space_of(lines)

    def form(self, levels: int, physical_mask: int) -> X86Form:
        """The form with 4 or 5 levels; ``physical_mask`` selects the address bits of entries."""
        if levels not in (4, 5):
            raise ValueError(f"x86-64 has 4 or 5 levels, not {levels}")
        return X86Form(levels, physical_mask)


ARCHITECTURE = X86Architecture()
