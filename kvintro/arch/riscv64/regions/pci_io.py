# SPDX-License-Identifier: LGPL-2.1-or-later
"""The region for I/O ports of PCI, which are mapped because riscv64 has no instructions for them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvintro.arch.riscv64.facts import riscv_facts
from kvintro.model import Located, Placement
from kvintro.regions import Region

if TYPE_CHECKING:
    from kvintro.kernels import Kernel


class PciIo(Region):
    """PCI_IO_START to PCI_IO_END - 1."""

    key = "pci_io"
    row = 9
    name = "PCI I/O ports"
    macro = "PCI_IO_START"

    def locate(self, kernel: Kernel) -> Located:
        return Placement(riscv_facts(kernel).pci_io, "VMEMMAP_START")


REGION = PciIo()
