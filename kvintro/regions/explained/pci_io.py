# SPDX-License-Identifier: LGPL-2.1-or-later
"""What to know about the window for I/O ports of PCI."""

from kvintro.regions.explained import Explanation, macro, source

EXPLAIN = Explanation(
    also=("pci i/o", "pci_iobase", "i/o ports", "inb", "outb"),
    purpose="""
    The processor has no instructions for I/O ports. A PCI host bridge translates accesses to a part of
    physical memory into accesses to ports, and the kernel maps that part here. inb(), outb() and their like
    add the port's number to the start of this region.
    """,
    users="Drivers of old PCI devices, and whatever reads /dev/port.",
    definitions=(
        macro("PCI_IO_START", "the start, PCI_IOBASE for drivers"),
        macro("PCI_IO_SIZE", "16 MB"),
    ),
    translation="By page tables, as memory of a device. A bridge usually has 64 KB of ports.",
    attacker="Registers of devices. Their place here is the same on every boot.",
    debugger="What is mapped here is never in a dump.",
    changed="""
    On aarch64 it was below vmemmap until 6.8, and is above it since. On riscv64 it is below vmemmap.
    """,
    sources=(
        source(
            "bounds",
            "arch/arm64/include/asm/memory.h:PCI_IO_START",
            "arch/arm64/include/asm/io.h:PCI_IOBASE",
        ),
        source("bounds on riscv64", "arch/riscv/include/asm/pgtable.h:PCI_IO_START", releases=("6.12",)),
        source(
            "it moved",
            "commit 031e011d8b22 arm64: mm: Move PCI I/O emulation region above the vmemmap region",
            releases=(),
        ),
    ),
)
