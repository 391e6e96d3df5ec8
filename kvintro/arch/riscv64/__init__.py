# SPDX-License-Identifier: LGPL-2.1-or-later
"""riscv64: everything that is specific to this architecture.

``form``, ``entries``, ``slots`` and ``address_space`` are pure arithmetic and do not need a kernel. The other
modules may use kernels.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Mapping, Sequence, Tuple

from kvintro.arch.image import InnerPart, Part
from kvintro.arch.riscv64.image import INNER, PARTS

if TYPE_CHECKING:
    from kvintro.arch.riscv64.address_space import RiscvAddressSpace

__all__ = ("ARCHITECTURE", "RiscvArchitecture")


@dataclass(frozen=True)
class RiscvArchitecture:
    """See :class:`kvintro.arch.Architecture`."""

    name: str = "riscv64"
    package: str = __name__
    drgn_name: str = "RISCV64"
    elf_machine: int = 243
    machine: str = "riscv64"
    ram_from_zero: bool = False
    page_sizes: Sequence[int] = (1 << 12,)
    qemu_machine: str = "riscv64"
    vmcoreinfo_keys: Sequence[str] = ("NUMBER(va_kernel_pa_offset)", "NUMBER(VA_BITS)")
    vmcoreinfo_last: str = "NUMBER(va_kernel_pa_offset)"
    root_symbol: str = "swapper_pg_dir"
    image_parts: Sequence[Part] = PARTS
    image_inner: Sequence[InnerPart] = INNER
    protected_pages: Sequence[str] = ()
    #: The page of error pointers (MAX_ERRNO).
    unused_top: int = (1 << 64) - (1 << 12)
    marked_variables: Mapping[str, Tuple[bytes, int]] = field(default_factory=dict)
    minimal_vmcoreinfo: bytes = (
        b"OSRELEASE=6.12.0\nPAGESIZE=4096\nSYMBOL(swapper_pg_dir)=ffffffff81000000\nNUMBER(VA_BITS)=57\n"
        b"NUMBER(phys_ram_base)=2147483648\nNUMBER(MODULES_END)=0xffffffff80000000\n"
        b"NUMBER(va_kernel_pa_offset)=0xfffffffeffe00000\n"
    )

    def address_space(self, lines: Mapping[str, str]) -> RiscvAddressSpace:
        """See :meth:`kvintro.arch.Architecture.address_space`."""
        from kvintro.arch.riscv64.address_space import space_of

        return space_of(lines)


ARCHITECTURE = RiscvArchitecture()
