# SPDX-License-Identifier: LGPL-2.1-or-later
"""riscv64: everything that is specific to this architecture.

``form``, ``entries``, ``slots`` and ``address_space`` are pure arithmetic and do not need a kernel. The other
modules may use kernels.
"""

from __future__ import annotations

from kvintro.arch import Architecture
from kvintro.arch.riscv64.image import INNER, PARTS

ARCHITECTURE = Architecture(
    name="riscv64",
    package=__name__,
    drgn_name="RISCV64",
    elf_machine=243,
    machine="riscv64",
    qemu_machine="riscv64",
    vmcoreinfo_keys=("NUMBER(va_kernel_pa_offset)", "NUMBER(VA_BITS)"),
    vmcoreinfo_last="NUMBER(va_kernel_pa_offset)",
    minimal_lines=(
        b"OSRELEASE=6.12.0\nSYMBOL(swapper_pg_dir)=ffffffff81000000\nNUMBER(VA_BITS)=57\n"
        b"NUMBER(phys_ram_base)=2147483648\nNUMBER(MODULES_END)=0xffffffff80000000\n"
        b"NUMBER(va_kernel_pa_offset)=0xfffffffeffe00000\n"
    ),
    image_parts=PARTS,
    image_inner=INNER,
)
