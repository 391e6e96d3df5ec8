# SPDX-License-Identifier: LGPL-2.1-or-later
"""Physical memory made by tests: page tables entry by entry, ELF cores byte by byte. No kernel is needed."""

from __future__ import annotations

import struct
from typing import Dict, Iterable, List, Mapping, Optional, Tuple

import drgn

from kvintro import opening
from kvintro.errors import NotInDump
from kvintro.kernels import Kernel
from kvintro.source import Source, parse_vmcoreinfo

PAGE = 4096
START_KERNEL_MAP = 0xFFFFFFFF80000000


class Memory:
    """Sparse physical memory. Mapping an address makes its tables."""

    def __init__(self, levels: int = 4, root: int = 0x100000) -> None:
        self.levels = levels
        self.root = root
        self.pages: Dict[int, bytearray] = {root: bytearray(PAGE)}
        self._next = root + 0x10000

    def read(self, address: int, size: int) -> bytes:
        """Physical memory; raises NotInDump if it does not exist."""
        out = bytearray()
        while len(out) < size:
            at = address + len(out)
            page = self.pages.get(at & ~(PAGE - 1))
            if page is None:
                raise NotInDump(address, size, physical=True)
            out += page[at % PAGE : at % PAGE + size - len(out)]
        return bytes(out)

    def write(self, address: int, data: bytes) -> None:
        """Write bytes at a physical address, within a page."""
        page = self.pages.setdefault(address & ~(PAGE - 1), bytearray(PAGE))
        page[address % PAGE : address % PAGE + len(data)] = data

    def entry(self, address: int, value: int) -> None:
        """Write one entry."""
        self.write(address, struct.pack("<Q", value))

    def map(self, virtual: int, physical: int, level: int = 1, flags: int = 0x63) -> None:
        """Map one page: 4K at level 1, 2M at 2, 1G at 3."""
        table = self.root
        for at in range(self.levels, level, -1):
            where = table + 8 * (virtual >> (12 + 9 * (at - 1)) & 511)
            value = struct.unpack("<Q", self.read(where, 8))[0]
            if not value & 1:
                self._next += PAGE
                self.pages[self._next] = bytearray(PAGE)
                value = self._next | 0x63
                self.entry(where, value)
            table = value & 0xFFFFFFFFFF000
        large = 0x80 if level > 1 else 0
        self.entry(table + 8 * (virtual >> (12 + 9 * (level - 1)) & 511), physical | flags | large)


def vmcoreinfo(levels: int = 4, root: int = 0x100000, more: Optional[Mapping[str, str]] = None) -> str:
    """VMCOREINFO text of a made-up kernel whose image is at its default place, at physical 0.

    :param more: additional or replacing lines.
    """
    lines = {
        "OSRELEASE": "6.0.0-made-up",
        "PAGESIZE": "4096",
        "SYMBOL(swapper_pg_dir)": f"{START_KERNEL_MAP + root:x}",
        "SYMBOL(_stext)": "ffffffff81000000",
        "NUMBER(phys_base)": "0",
        "NUMBER(pgtable_l5_enabled)": str(int(levels == 5)),
        "NUMBER(KERNEL_IMAGE_SIZE)": str(1 << 30),
        "NUMBER(sme_mask)": "0",
        "SIZE(page)": "64",
        "KERNELOFFSET": "0",
        **(more or {}),
    }
    return "".join(f"{key}={value}\n" for key, value in lines.items())


def kernel_of(memory: Memory, info: str) -> Kernel:
    """A kernel that has neither symbols nor types, only VMCOREINFO and its memory."""
    prog = drgn.Program(drgn.Platform(drgn.Architecture.X86_64))

    def read(address: int, count: int, offset: int, physical: bool) -> bytes:
        try:
            return memory.read(address, count)
        except NotInDump:
            raise drgn.FaultError("no such memory", address) from None

    prog.add_memory_segment(0, 1 << 52, read, True)
    prog.set_linux_kernel_custom(info, False)
    return opening.kernel_of(
        Source(prog, "core", "made-up", "ELF", 0, True, vmcoreinfo=parse_vmcoreinfo(prog))
    )


def packed_notes(notes: Iterable[Tuple[str, int, bytes]], order: str = "<") -> bytes:
    """ELF notes as (owner, type, content)."""
    return b"".join(
        struct.pack(order + "III", len(name) + 1, len(data), number)
        + (name.encode() + b"\0").ljust((len(name) + 4) & ~3, b"\0")
        + data.ljust((len(data) + 3) & ~3, b"\0")
        for name, number, data in notes
    )


def elf_core(
    segments: Iterable[Tuple[int, int, bytes]] = (),
    notes: Iterable[Tuple[str, int, bytes]] = (),
    *,
    left_out: Optional[Mapping[int, int]] = None,
    machine: int = 62,
    kind: int = 4,
    order: str = "<",
) -> bytes:
    """An ELF core: segments as (virtual address, physical address, content).

    :param order: byte order of the headers, as a character for :mod:`struct`.
    :param left_out: by physical address, the bytes that a segment has in memory but not in the file.
    """
    note_data = packed_notes(notes, order)
    loads = list(segments)
    count = len(loads) + 1
    at = 64 + 56 * count
    headers: List[bytes] = [struct.pack(order + "IIQQQQQQ", 4, 0, at, 0, 0, len(note_data), 0, 4)]
    at += len(note_data)
    for virtual, physical, data in loads:
        size = len(data) + (left_out or {}).get(physical, 0)
        headers.append(struct.pack(order + "IIQQQQQQ", 1, 7, at, virtual, physical, len(data), size, 1))
        at += len(data)
    ident = (b"\x7fELF\2" + {"<": b"\1", ">": b"\2"}[order] + b"\1").ljust(16, b"\0")
    head = ident + struct.pack(order + "HHIQQQIHHHHHH", kind, machine, 1, 0, 64, 0, 0, 64, 56, count, 0, 0, 0)
    return head + b"".join(headers) + note_data + b"".join(data for _, _, data in loads)
