# SPDX-License-Identifier: LGPL-2.1-or-later
"""Dumps of made-up kernels for ppc64 and s390x, written here.

Places, lines of VMCOREINFO and headers are as in dumps of Debian's kernels 6.1 and 6.12 by QEMU 7.2
(dump-guest-memory) and by makedumpfile 1.7.2 for these machines.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import Dict, Iterable, Optional, Tuple

from tests.synthetic import elf_core, packed_notes

MB = 1 << 20
#: Physical addresses, and the size of memory.
NOTE, BUILD_ID, UTS, RAM = 0x5A000, 0x170000, 0x180AA8, 2 * MB
_ID = bytes(range(20))
_SUB_HEADER = "QiiQQQQQQQQQQQ"


@dataclass(frozen=True)
class MadeUp:
    """A kernel.

    :ivar machine: ``utsname.machine``.
    :ivar order: its byte order, as a character for :mod:`struct`.
    :ivar header: the byte order of the ELF header of its dump.
    :ivar offset: virtual minus physical address of its image.
    :ivar lines: lines of VMCOREINFO of its architecture.
    """

    machine: str
    order: str
    header: str
    elf_machine: int
    page: int
    offset: int
    lines: Tuple[Tuple[str, str], ...]

    @property
    def release(self) -> str:
        """OSRELEASE."""
        return f"6.12.95+deb12-{self.machine}"

    def text(self, more: Iterable[Tuple[str, Optional[str]]] = ()) -> bytes:
        """VMCOREINFO.

        :param more: lines to replace; None removes one.
        """
        lines: Dict[str, Optional[str]] = {
            "OSRELEASE": self.release,
            "BUILD-ID": _ID.hex(),
            "PAGESIZE": str(self.page),
            "SYMBOL(init_uts_ns)": f"{UTS + self.offset:x}",
            "OFFSET(uts_namespace.name)": "0",
            "SYMBOL(swapper_pg_dir)": f"{0x190000 + self.offset:x}",
            "SYMBOL(_stext)": f"{0x100000 + self.offset:x}",
            **dict(self.lines),
            **dict(more),
        }
        return "".join(f"{key}={value}\n" for key, value in lines.items() if value is not None).encode()

    def memory(self, text: Optional[bytes]) -> bytes:
        """Physical memory from 0 on.

        :param text: the VMCOREINFO in it.
        """
        out = bytearray(RAM)

        def put(at: int, data: bytes) -> None:
            out[at : at + len(data)] = data

        if self.machine == "s390x":  # struct lowcore has its address, which libkdumpfile needs
            put(0xE0C, struct.pack(">Q", NOTE))
        if text is not None:
            put(NOTE, packed_notes([("VMCOREINFO", 0, text)], self.order))
        put(BUILD_ID, packed_notes([("GNU", 3, _ID)], self.order))
        put(UTS, self._names)
        return bytes(out)

    @property
    def _names(self) -> bytes:
        """struct new_utsname."""
        names = ("Linux", "(none)", self.release, "#1 SMP Debian 6.12.95-1~bpo12+1", self.machine, "(none)")
        return b"".join(name.encode().ljust(65, b"\0") for name in names)

    def elf(self, memory: bytes, note: Optional[bytes] = None) -> bytes:
        """An ELF core with all memory in one segment.

        :param note: the VMCOREINFO in its notes.
        """
        notes = [("CORE", 1, bytes(336))] + ([("VMCOREINFO", 0, note)] if note is not None else [])
        return elf_core([(0, 0, memory)], notes, machine=self.elf_machine, order=self.header)

    def kdump(
        self, memory: bytes, note: Optional[bytes] = None, *, by_qemu: str = "", status: int = 1
    ) -> bytes:
        """A kdump, compressed with zlib; pages of equal content share their data.

        :param by_qemu: QEMU's name of the machine, which is then the only name in the header.
        """
        order, block = self.order, self.page
        frames = len(memory) // block
        names = bytes(4 * 65) + by_qemu.encode() if by_qemu else self._names
        head = b"KDUMP   " + struct.pack(order + "i", 6) + names
        head = head.ljust(424, b"\0") + struct.pack(order + "IiiII", status, block, 1, 2, frames)
        notes = packed_notes([("VMCOREINFO", 0, note)], order) if note is not None else b""
        at = block + struct.calcsize(order + _SUB_HEADER)
        info = (at + 24, len(note), at, len(notes)) if note is not None else (0, 0, 0, 0)
        sub = struct.pack(order + _SUB_HEADER, 0, 1, 0, 0, 0, *info, *[0] * 4, frames) + notes
        bitmap = (b"\xff" * (frames // 8)).ljust(block, b"\0")
        pages = [memory[i * block : (i + 1) * block] for i in range(frames)]
        first = 4 * block + 24 * frames
        table, data = b"", b""
        known: Dict[bytes, int] = {}
        for page in pages:
            packed = zlib.compress(page)
            if page not in known:
                known[page] = first + len(data)
                data += packed
            table += struct.pack(order + "qIIQ", known[page], len(packed), 1, 0)
        return head.ljust(block, b"\0") + sub.ljust(block, b"\0") + 2 * bitmap + table + data


def _kernel_offset(value: int) -> Tuple[Tuple[str, str], ...]:
    return (("KERNELOFFSET", f"{value:x}"),)


_S390X = (">", ">", 22, 4096)
_MOVED = 0x3FFFE854000 - 0x100000
_PPC64 = (21, 65536, 0xC000000000000000, (("NUMBER(RADIX_MMU)", "1"), ("KERNELOFFSET", "0")))
KERNELS: Dict[str, MadeUp] = {
    "s390x": MadeUp("s390x", *_S390X, _MOVED, (("KERNELOFFSET", "3fffe854000"), ("KERNELOFFPHYS", "100000"))),
    "s390x before 6.10": MadeUp("s390x", *_S390X, 0, _kernel_offset(0)),
    "ppc64le, header by QEMU": MadeUp("ppc64le", "<", ">", *_PPC64),
    "ppc64le, header by kdump": MadeUp("ppc64le", "<", "<", *_PPC64),
    "ppc64": MadeUp("ppc64", ">", ">", *_PPC64),
}
