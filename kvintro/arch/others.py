# SPDX-License-Identifier: LGPL-2.1-or-later
"""Architectures whose page tables kvintro does not know.

``kvintro info`` shows dumps of :data:`OTHERS`, and no other command reads them. Of the remaining
architectures kvintro knows only the names.
"""

from __future__ import annotations

from typing import Callable, Dict, Mapping, NamedTuple, Optional, Sequence, Tuple

#: By ``e_machine``: names of architectures in messages (include/uapi/linux/elf-em.h).
_ELF_MACHINES: Dict[int, str] = {
    **{2: "sparc", 3: "i386", 4: "m68k", 8: "mips", 15: "parisc", 18: "sparc", 20: "ppc", 21: "ppc64"},
    **{22: "s390x", 40: "arm", 42: "sh", 43: "sparc64", 50: "ia64", 62: "x86-64", 92: "openrisc"},
    **{93: "arc", 94: "xtensa", 164: "hexagon", 183: "aarch64", 189: "microblaze", 195: "arc"},
    **{243: "riscv", 252: "csky", 258: "loongarch", 0x9026: "alpha", 0xA390: "s390x", 0xFEBA: "microblaze"},
}


class OtherArchitecture(NamedTuple):
    """An architecture of which ``info`` shows dumps.

    :ivar name: its name, whatever the byte order.
    :ivar elf_machine: ``e_machine`` of its ELF files.
    :ivar drgn_name: name of drgn's ``Architecture``.
    :ivar orders: by ``utsname.machine``, the byte order of the kernel, as a character for :mod:`struct`.
    :ivar qemu_machine: its name in the headers of kdumps that QEMU writes; None if QEMU does not name it.
    :ivar page_sizes: possible sizes of the smallest page of its kernels, in bytes.
    :ivar physical: physical address of an address in the kernel's image, by the lines of VMCOREINFO; raises
        ValueError if they do not say.
    """

    name: str
    elf_machine: int
    drgn_name: str
    orders: Mapping[str, str]
    qemu_machine: Optional[str]
    page_sizes: Sequence[int]
    physical: Callable[[int, Mapping[str, str]], int]

    def minimal_vmcoreinfo(self, page_size: int) -> bytes:
        """The minimum for drgn and libkdumpfile to read physical memory."""
        return b"OSRELEASE=6.1.0\nPAGESIZE=%d\nSYMBOL(swapper_pg_dir)=1000\nKERNELOFFSET=0\n" % page_size


def _in_image_of_s390x(address: int, lines: Mapping[str, str]) -> int:
    # Up to 6.9 the image has the same virtual and physical addresses (arch/s390/kernel/machine_kexec.c:
    # arch_crash_save_vmcoreinfo).
    if "KERNELOFFPHYS" not in lines:
        return address
    return address - int(lines.get("KERNELOFFSET", ""), 16) + int(lines["KERNELOFFPHYS"], 16)


def _in_image_of_ppc64(address: int, lines: Mapping[str, str]) -> int:
    # The image is in the linear map (arch/powerpc/include/asm/page.h:__pa).
    return address & 0x0FFF_FFFF_FFFF_FFFF


OTHERS: Tuple[OtherArchitecture, ...] = (
    OtherArchitecture("s390x", 22, "S390X", {"s390x": ">"}, "S390X", (1 << 12,), _in_image_of_s390x),
    OtherArchitecture(
        "ppc64", 21, "PPC64", {"ppc64le": "<", "ppc64": ">"}, None, (1 << 12, 1 << 16), _in_image_of_ppc64
    ),
)


def other_by_elf_machine(machine: int) -> Optional[OtherArchitecture]:
    """The architecture of an ELF file's ``e_machine``; None if ``info`` does not show its dumps."""
    return next((other for other in OTHERS if other.elf_machine == machine), None)


def other_by_machine(machine: str) -> Optional[OtherArchitecture]:
    """The architecture of ``utsname.machine`` in a kdump; None if ``info`` does not show its dumps."""
    return next((other for other in OTHERS if machine in (*other.orders, other.qemu_machine)), None)


def elf_machine_name(machine: int) -> str:
    """The name of an ELF file's ``e_machine`` in messages."""
    return _ELF_MACHINES.get(machine, f"ELF machine {machine}")
