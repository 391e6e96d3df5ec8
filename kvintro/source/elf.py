# SPDX-License-Identifier: LGPL-2.1-or-later
"""What an ELF file's headers say, read with bounds checks: before drgn opens it, and where drgn hides it.

drgn opens ELF cores itself; this reads only what it does not tell: whether the file is whole, which physical
ranges are in it, whether it is a kernel's at all, and the build id of a vmlinux.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import BinaryIO, Iterator, List, NamedTuple, Optional, Sequence, Set, Tuple, Union

from kvintro.errors import NotADump
from kvintro.source.content import Content, FileContent
from kvintro.text import size_text

ET_CORE = 4
PT_LOAD = 1
PT_NOTE = 4
PN_XNUM = 0xFFFF
NT_GNU_BUILD_ID = 3
SHT_NOTE = 7
_HEADER_SIZE = 64
_PROGRAM_HEADER = struct.Struct("<IIQQQQQQ")
_SECTION_HEADER = struct.Struct("<IIQQQQIIQQ")
_NOTE = struct.Struct("<III")  # namesz, descsz, type
_ENTRIES = 1 << 12  # program headers read at once
# makedumpfile begins another segment where a megabyte or more is left out: 256 GB in pieces as small as that.
_MAX_HEADERS = 1 << 18
_MAX_NOTES = 16 << 20  # bytes of all: 400 for each CPU, and VMCOREINFO
_MAX_NOTE_COUNT = 1 << 16  # a few for each CPU
_MAX_KINDS = 64
_MAX_NAME = 64
_MAX_ADDRESS = 1 << 52


class Segment(NamedTuple):
    """One PT_LOAD: ``filesz`` bytes at ``offset`` of the file are memory at ``vaddr`` and ``paddr``."""

    offset: int
    vaddr: int
    paddr: int
    filesz: int
    memsz: int


@dataclass(frozen=True)
class ElfHeaders:
    """Headers of a 64-bit little-endian ELF file.

    :ivar notes: the first of each owner and type.
    :ivar truncated: whether they promise more than the file holds.
    """

    type: int
    machine: int
    segments: Tuple[Segment, ...]
    notes: Sequence[Tuple[str, int, bytes]]
    file_size: int
    truncated: bool

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


def read_headers(file: Union[BinaryIO, Content], *, section_notes: bool = False) -> ElfHeaders:
    """Read an ELF file's program headers and notes.

    :param section_notes: look for notes in sections too (a vmlinux has its build id in one).
    :raises NotADump: the file is no 64-bit little-endian ELF file, ends within its headers, or says that they
        are larger than a real one's.
    """
    content = file if isinstance(file, Content) else FileContent(file)
    head = _exactly(content, 0, _HEADER_SIZE, "the ELF header")
    if head[:4] != b"\x7fELF":
        raise NotADump("the file is not an ELF file")
    if head[4] != 2 or head[5] != 1:
        raise NotADump("the dump is a 32-bit or big-endian ELF file", "kvintro reads 64-bit x86 kernels")
    e_type, machine = struct.unpack_from("<HH", head, 16)
    phoff, shoff = struct.unpack_from("<QQ", head, 32)
    phentsize, phnum, shentsize, shnum = struct.unpack_from("<HHHH", head, 54)
    if phnum == PN_XNUM and shoff:
        phnum = struct.unpack_from("<I", _exactly(content, shoff, 64, "the section headers"), 44)[0]
    if phnum > _MAX_HEADERS or (phnum and phentsize != _PROGRAM_HEADER.size):
        raise NotADump("the ELF header makes no sense", "take the dump again")
    segments: List[Segment] = []
    notes = _Notes(content)
    for p_type, _, offset, vaddr, paddr, filesz, memsz, _ in _program_headers(content, phoff, phnum):
        if p_type == PT_LOAD:
            segments.append(Segment(offset, vaddr, paddr, filesz, memsz))
        elif p_type == PT_NOTE:
            notes.read(offset, filesz)
    if section_notes and shoff and shentsize == _SECTION_HEADER.size:
        sections = content.at(shoff, shnum * shentsize)
        whole = len(sections) // shentsize * shentsize
        for _, kind, _, _, offset, length, *_ in _SECTION_HEADER.iter_unpack(sections[:whole]):
            if kind == SHT_NOTE:
                notes.read(offset, length)
    truncated = not all(content.has_all(s.offset, s.filesz) for s in segments)
    return ElfHeaders(e_type, machine, tuple(segments), notes.found, content.size, truncated)


def _program_headers(content: Content, offset: int, count: int) -> Iterator[Tuple[int, ...]]:
    """The entries of the table, a piece of it at a time."""
    for first in range(0, count, _ENTRIES):
        size = min(_ENTRIES, count - first) * _PROGRAM_HEADER.size
        at = offset + first * _PROGRAM_HEADER.size
        yield from _PROGRAM_HEADER.iter_unpack(_exactly(content, at, size, "the program headers"))


class _Notes:
    """The notes of a file, the first of each kind.

    :ivar found: as (owner, type, content).
    """

    def __init__(self, content: Content) -> None:
        self._content = content
        self._left = _MAX_NOTES
        self._count = 0
        self._known: Set[Tuple[str, int]] = set()
        self.found: List[Tuple[str, int, bytes]] = []

    def read(self, offset: int, size: int) -> None:
        """Read those that lie somewhere in the file.

        :raises NotADump: there are more than in a real file.
        """
        if size > self._left:
            raise NotADump(
                f"its headers say that the notes have {size_text(size)} or more", "take the dump again"
            )
        self._left -= max(size, _NOTE.size)
        for owner, kind, data in parse_notes(self._content.at(offset, size)):
            self._count += 1
            if self._count > _MAX_NOTE_COUNT:
                raise NotADump("it has more notes than any machine has CPUs", "take the dump again")
            if (owner, kind) not in self._known and len(self._known) < _MAX_KINDS:
                self._known.add((owner, kind))
                self.found.append((owner, kind, bytes(data)))


def parse_notes(data: bytes) -> Iterator[Tuple[str, int, memoryview]]:
    """(owner, type, content) of each note; stops where the data stops making sense."""
    view = memoryview(data)
    at = 0
    while at + _NOTE.size <= len(data):
        namesz, descsz, kind = _NOTE.unpack_from(data, at)
        if not namesz and not descsz:
            return  # padding, or a hole
        name_at = at + _NOTE.size
        desc_at = name_at + (namesz + 3 & ~3)
        at = desc_at + (descsz + 3 & ~3)
        if namesz > _MAX_NAME or desc_at + descsz > len(data):
            return
        name = data[name_at : name_at + namesz].rstrip(b"\0").decode("ascii", "replace")
        yield name, kind, view[desc_at : desc_at + descsz]


def _exactly(content: Content, offset: int, size: int, what: str) -> bytes:
    data = content.at(offset, size)
    if len(data) != size:
        raise NotADump(f"the file ends within {what}", "the dump is truncated; copy it again whole")
    return data
