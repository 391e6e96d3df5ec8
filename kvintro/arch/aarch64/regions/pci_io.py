# SPDX-License-Identifier: LGPL-2.1-or-later
"""The region for I/O ports of PCI."""

from kvintro.regions.pci_io import PciIo

REGION = PciIo()
