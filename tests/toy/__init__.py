# SPDX-License-Identifier: LGPL-2.1-or-later
"""An architecture that does not exist. It differs from x86-64 wherever shared code could assume x86-64.

Pages are 16K, the root has 8 entries, entries are big-endian, each half has its own root, the image lies
inside the region of modules, which lies inside vmalloc, and the direct map does not begin with physical
address 0.
"""

from __future__ import annotations

from kvintro.arch import Architecture

ARCHITECTURE = Architecture(
    name="toy",
    package=__name__,
    drgn_name="UNKNOWN",
    elf_machine=9999,
    machine="toy",
    qemu_machine="toy",
    vmcoreinfo_keys=("NUMBER(toy)",),
    vmcoreinfo_last="NUMBER(toy)",
    minimal_lines=b"",
    image_parts=(),
    image_inner=(),
    ram_from_zero=True,
    page_sizes=(1 << 14,),
    unused_top=(1 << 64) - (1 << 14),
)
