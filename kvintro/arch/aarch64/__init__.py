# SPDX-License-Identifier: LGPL-2.1-or-later
"""aarch64: everything that is specific to this architecture.

``form``, ``entries``, ``slots``, ``space`` and ``address_space`` are pure arithmetic and do not need a
kernel. The other modules may use kernels.
"""

from __future__ import annotations

from kvintro.arch import Architecture
from kvintro.arch.aarch64.image import INNER, PARTS

ARCHITECTURE = Architecture(
    name="aarch64",
    package=__name__,
    drgn_name="AARCH64",
    elf_machine=183,
    machine="aarch64",
    # QEMU's kdumps of aarch64 cannot be read, as their block size and machine are wrong.
    qemu_machine="aarch64",
    vmcoreinfo_keys=("NUMBER(kimage_voffset)", "NUMBER(VA_BITS)"),
    vmcoreinfo_last="KERNELOFFSET",
    minimal_lines=(
        b"OSRELEASE=5.10.0\nSYMBOL(swapper_pg_dir)=ffff800011000000\nNUMBER(VA_BITS)=48\n"
        b"NUMBER(TCR_EL1_T1SZ)=0x10\nNUMBER(kimage_voffset)=0xffff7fffd0000000\nKERNELOFFSET=0\n"
    ),
    image_parts=PARTS,
    image_inner=INNER,
    page_sizes=(1 << 12, 1 << 14, 1 << 16),
)
