# SPDX-License-Identifier: LGPL-2.1-or-later
"""x86-64: everything that is specific to this architecture.

``form``, ``entries``, ``slots`` and ``address_space`` are pure arithmetic and do not need a kernel.
``regions`` has the regions that only x86-64 has, and may use kernels.
"""

from __future__ import annotations

from kvintro.arch import Architecture
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


class X86Architecture(Architecture):
    """Adds what is known about all kernels of x86-64."""

    def form(self, levels: int, physical_mask: int) -> X86Form:
        """The form with 4 or 5 levels; ``physical_mask`` selects the address bits of entries."""
        if levels not in (4, 5):
            raise ValueError(f"x86-64 has 4 or 5 levels, not {levels}")
        return X86Form(levels, physical_mask)


ARCHITECTURE = X86Architecture(
    name="x86-64",
    package=__name__,
    drgn_name="X86_64",
    elf_machine=62,
    machine="x86_64",
    qemu_machine="",
    vmcoreinfo_keys=("NUMBER(phys_base)",),
    vmcoreinfo_last="KERNELOFFSET",
    minimal_lines=(
        b"OSRELEASE=5.4.0\nKERNELOFFSET=0\n"
        b"NUMBER(pgtable_l5_enabled)=0\nSYMBOL(swapper_pg_dir)=ffffffff81000000\n"
    ),
    image_parts=PARTS,
    image_inner=INNER,
    ram_from_zero=True,
    root_symbol="init_top_pgt",
    # idt_setup_apic_and_irq_gates().
    protected_pages=("idt_table",),
    unused_top=TOP_HOLE,
    # hdr has the marks of a boot sector and of Linux (Documentation/arch/x86/boot.rst).
    marked_variables={"boot_params": (rb"\x55\xaa..HdrS", 0x1FE)},
)
