# SPDX-License-Identifier: LGPL-2.1-or-later
"""What an ELF file's headers say, read with bounds checks: before drgn opens it, and where drgn hides it.

drgn opens ELF cores itself; this reads only what it does not tell: whether the file is whole, which physical
ranges are in it, whether it is a kernel's at all, and the build id of a vmlinux.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from typing import BinaryIO, Iterator, List, Optional, Tuple

from kvintro.errors import NotADump

ET_CORE = 4
PT_LOAD = 1
PT_NOTE = 4
PN_XNUM = 0xFFFF
NT_GNU_BUILD_ID = 3
_MAX_HEADERS = 1 << 20
_MAX_NOTES = 16 << 20
_MAX_ADDRESS = 1 << 52


@dataclass(frozen=True)
class Segment:
    """One PT_LOAD: ``filesz`` bytes at ``offset`` of the file are memory at ``vaddr`` and ``paddr``."""

    offset: int
    vaddr: int
    paddr: int
    filesz: int
    memsz: int


@dataclass(frozen=True)
class ElfHeaders:
    """Headers of a 64-bit little-endian ELF file."""

    type: int
    machine: int
    segments: Tuple[Segment, ...]
    notes: Tuple[Tuple[str, int, bytes], ...]
    file_size: int

    @property
    def truncated(self) -> bool:
        """Whether the headers promise more than the file holds."""
        return any(s.offset + s.filesz > self.file_size for s in self.segments)

    def left_out(self) -> Iterator[Tuple[int, int]]:
        """Physical memory that segments have and the file does not: pages that makedumpfile excluded.

        :return: first and last address of each range, in ascending order. kexec's cores have the image's
            memory in two segments, and it is left out if neither has it.
        """
        borders: List[Tuple[int, int, int]] = []  # address, segments that begin or end, those with bytes
        for part in self.segments:
            end = part.paddr + max(part.filesz, part.memsz)
            borders += [(part.paddr, 1, 1), (part.paddr + part.filesz, 0, -1), (end, -1, 0)]
        here = with_bytes = start = 0
        for address, segments, bytes_too in sorted(borders):
            if here and not with_bytes and start < address <= _MAX_ADDRESS:
                yield start, address - 1
            here += segments
            with_bytes += bytes_too
            start = address

    @property
    def build_id(self) -> Optional[str]:
        """The GNU build id in hex, if there is one."""
        for name, kind, data in self.notes:
            if name == "GNU" and kind == NT_GNU_BUILD_ID:
                return data.hex()
        return None

    def note(self, name: str) -> Optional[bytes]:
        """The content of the first note of that name."""
        for owner, _, data in self.notes:
            if owner == name:
                return data
        return None


def read_headers(file: BinaryIO, *, section_notes: bool = False) -> ElfHeaders:
    """Read an ELF file's program headers and notes.

    :param section_notes: look for notes in sections too (a vmlinux has its build id in one).
    :raises NotADump: the file is no 64-bit little-endian ELF file, or ends within its headers.
    """
    size = os.fstat(file.fileno()).st_size
    head = _exactly(file, 0, 64, "the ELF header")
    if head[:4] != b"\x7fELF":
        raise NotADump("the file is not an ELF file")
    if head[4] != 2 or head[5] != 1:
        raise NotADump("the dump is a 32-bit or big-endian ELF file", "kvintro reads 64-bit x86 kernels")
    e_type, machine = struct.unpack_from("<HH", head, 16)
    phoff, shoff = struct.unpack_from("<QQ", head, 32)
    phentsize, phnum, shentsize, shnum = struct.unpack_from("<HHHH", head, 54)
    if phnum == PN_XNUM and shoff:
        phnum = struct.unpack_from("<I", _exactly(file, shoff, 64, "the section headers"), 44)[0]
    if phnum > _MAX_HEADERS or (phnum and phentsize < 56):
        raise NotADump("the ELF header makes no sense", "take the dump again")
    table = _exactly(file, phoff, phnum * phentsize, "the program headers") if phnum else b""
    segments: List[Segment] = []
    notes: List[Tuple[str, int, bytes]] = []
    for i in range(phnum):
        p_type, _, offset, vaddr, paddr, filesz, memsz, _ = struct.unpack_from(
            "<IIQQQQQQ", table, i * phentsize
        )
        if p_type == PT_LOAD:
            segments.append(Segment(offset, vaddr, paddr, filesz, memsz))
        elif p_type == PT_NOTE and filesz <= _MAX_NOTES and offset < size:
            notes.extend(parse_notes(read_at(file, offset, filesz)))
    if section_notes and shoff and shentsize >= 64:
        sections = read_at(file, shoff, shnum * shentsize)
        for at in range(0, len(sections) - 63, shentsize):
            kind, offset, length = (
                struct.unpack_from("<I", sections, at + 4)[0],
                *struct.unpack_from("<QQ", sections, at + 24),
            )
            if kind == 7 and length <= _MAX_NOTES and offset < size:  # SHT_NOTE
                notes.extend(parse_notes(read_at(file, offset, length)))
    return ElfHeaders(e_type, machine, tuple(segments), tuple(notes), size)


def parse_notes(data: bytes) -> Iterator[Tuple[str, int, bytes]]:
    """(owner, type, content) of each note; stops where the data stops making sense."""
    at = 0
    while at + 12 <= len(data):
        namesz, descsz, kind = struct.unpack_from("<III", data, at)
        name_at = at + 12
        desc_at = name_at + (namesz + 3 & ~3)
        at = desc_at + (descsz + 3 & ~3)
        if namesz > len(data) or desc_at + descsz > len(data):
            return
        name = data[name_at : name_at + namesz].rstrip(b"\0").decode("ascii", "replace")
        yield name, kind, data[desc_at : desc_at + descsz]


def read_at(file: BinaryIO, offset: int, size: int) -> bytes:
    """What the file holds there, less than ``size`` at its end."""
    try:
        file.seek(offset)
        return file.read(size)
    except (OSError, OverflowError, ValueError):  # an offset beyond what a file system can have
        return b""


def _exactly(file: BinaryIO, offset: int, size: int, what: str) -> bytes:
    data = read_at(file, offset, size)
    if len(data) != size:
        raise NotADump(f"the file ends within {what}", "the dump is truncated; copy it again whole")
    return data
