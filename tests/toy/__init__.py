# SPDX-License-Identifier: LGPL-2.1-or-later
"""An architecture that does not exist. It differs from x86-64 wherever shared code could assume x86-64.

Pages are 16K, the root has 8 entries, entries are big-endian, each half has its own root, the image lies
inside the region of modules, which lies inside vmalloc, and the direct map does not begin with physical
address 0.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Mapping, Sequence, Tuple

from kvintro.arch.address_space import AddressSpace
from kvintro.arch.image import InnerPart, Part


@dataclass(frozen=True)
class ToyArchitecture:
    """See :class:`kvintro.arch.Architecture`."""

    name: str = "toy"
    package: str = __name__
    drgn_name: str = "UNKNOWN"
    elf_machine: int = 9999
    machine: str = "toy"
    qemu_machine: str = "toy"
    ram_from_zero: bool = True
    page_sizes: Sequence[int] = (1 << 14,)
    vmcoreinfo_keys: Sequence[str] = ("NUMBER(toy)",)
    vmcoreinfo_last: str = "NUMBER(toy)"
    root_symbol: str = "swapper_pg_dir"
    unused_top: int = (1 << 64) - (1 << 14)
    image_parts: Sequence[Part] = ()
    image_inner: Sequence[InnerPart] = ()
    protected_pages: Sequence[str] = ()
    marked_variables: Mapping[str, Tuple[bytes, int]] = field(default_factory=dict)
    minimal_vmcoreinfo: bytes = b""

    def address_space(self, lines: Mapping[str, str]) -> AddressSpace:
        """No text describes an address space."""
        raise ValueError("its kernels say nothing")


ARCHITECTURE = ToyArchitecture()
