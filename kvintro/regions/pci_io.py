# SPDX-License-Identifier: LGPL-2.1-or-later
"""The region for I/O ports of PCI, for architectures that have no instructions for ports.

Such an architecture has a file in its own ``regions`` that makes it its ``REGION``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvintro.model import Located
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
        return kernel.facts.place(self.key)
