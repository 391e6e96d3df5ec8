# SPDX-License-Identifier: LGPL-2.1-or-later
"""aarch64: everything that is specific to this architecture.

``form``, ``entries``, ``slots``, ``space`` and ``address_space`` are pure arithmetic and do not need a
kernel. The other modules may use kernels.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Mapping, Sequence, Tuple

from kvintro.arch.aarch64.image import INNER, PARTS
from kvintro.arch.image import InnerPart, Part

if TYPE_CHECKING:
    from kvintro.arch.aarch64.address_space import Arm64AddressSpace

__all__ = ("ARCHITECTURE", "Arm64Architecture")


@dataclass(frozen=True)
class Arm64Architecture:
    """See :class:`kvintro.arch.Architecture`."""

    name: str = "aarch64"
    package: str = __name__
    drgn_name: str = "AARCH64"
    elf_machine: int = 183
    machine: str = "aarch64"
    ram_from_zero: bool = False
    page_sizes: Sequence[int] = (1 << 12, 1 << 14, 1 << 16)
    #: QEMU's kdumps of aarch64 cannot be read, as their block size and machine are wrong.
    qemu_machine: str = "aarch64"
    vmcoreinfo_keys: Sequence[str] = ("NUMBER(kimage_voffset)", "NUMBER(VA_BITS)")
    vmcoreinfo_last: str = "KERNELOFFSET"
    root_symbol: str = "swapper_pg_dir"
    image_parts: Sequence[Part] = PARTS
    image_inner: Sequence[InnerPart] = INNER
    protected_pages: Sequence[str] = ()
    #: The page of error pointers (MAX_ERRNO).
    unused_top: int = (1 << 64) - (1 << 12)
    marked_variables: Mapping[str, Tuple[bytes, int]] = field(default_factory=dict)
    minimal_vmcoreinfo: bytes = (
        b"OSRELEASE=5.10.0\nPAGESIZE=4096\nSYMBOL(swapper_pg_dir)=ffff800011000000\nNUMBER(VA_BITS)=48\n"
        b"NUMBER(TCR_EL1_T1SZ)=0x10\nNUMBER(kimage_voffset)=0xffff7fffd0000000\nKERNELOFFSET=0\n"
    )

    def address_space(self, lines: Mapping[str, str]) -> Arm64AddressSpace:
        """See :meth:`kvintro.arch.Architecture.address_space`."""
        from kvintro.arch.aarch64.address_space import space_of

        return space_of(lines)


ARCHITECTURE = Arm64Architecture()
