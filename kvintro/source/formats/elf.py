# SPDX-License-Identifier: LGPL-2.1-or-later
"""ELF cores: kdump's /proc/vmcore, makedumpfile -E, QEMU's dump-guest-memory. drgn reads their memory."""

from __future__ import annotations

import os
import re
from functools import cached_property
from typing import Iterable, List, Optional, Sequence, Tuple

import drgn

from kvintro.arch import Architecture, by_elf_machine, unsupported
from kvintro.arch.others import OtherArchitecture, other_by_elf_machine
from kvintro.errors import NotADump
from kvintro.source.content import Content, FileContent
from kvintro.source.dump import COPY_AGAIN, Dump, Format, begins, outside
from kvintro.source.elf import ET_CORE, ElfHeaders, read_headers
from kvintro.source.flattened import Flattened
from kvintro.source.note import MAX_TEXT
from kvintro.source.opened import Source
from kvintro.source.physical import Extent, MemoryFile, PhysicalMemory
from kvintro.source.program import empty_program, hide, hide_null, one_line, program_of, without_advice
from kvintro.source.vmcoreinfo import Chosen

MAGIC = b"\x7fELF"
_NT_PRPSINFO = 3
_ERASEINFO = "ERASEINFO"  # makedumpfile.h:ERASEINFO_NOTE_NAME

# libkdumpfile's messages begin with its function and the file, before the actual problem.
_CALL_OF_LIBKDUMPFILE = re.compile(r"^kdump_\w+(\([^()]*\))?: |(?<!\w)file #\d+: ")


class ElfDump(Dump):
    """An ELF core, plain or flattened.

    :raises NotADump: its headers are invalid.
    """

    def __init__(self, content: Content, path: str) -> None:
        flat = isinstance(content, Flattened)
        super().__init__(content, path, "flattened ELF" if flat else "ELF")
        self.headers: ElfHeaders = read_headers(content)
        whole = content.complete if isinstance(content, Flattened) else True
        if not whole and not self.headers.segments:
            raise NotADump(
                f"{path}: the flattened dump is truncated before its program headers, which come last "
                "and contain the addresses of its memory",
                COPY_AGAIN,
            )
        self.complete = whole and not self.headers.truncated and not self.headers.interrupted
        self.left_out = sum(last - first + 1 for first, last in self.headers.left_out())
        self.segments = self.headers.segments
        self.interrupted = self.headers.interrupted
        self.memory = sum(extent.size for extent in extents_of(self.headers))
        ram = sorted((s.paddr, s.paddr + max(s.filesz, s.memsz)) for s in self.segments)
        self._outside = outside(ram)

    @property
    def arch(self) -> Architecture:
        return by_elf_machine(self.headers.machine)

    @property
    def other(self) -> Optional[OtherArchitecture]:
        return other_by_elf_machine(self.headers.machine)

    @property
    def other_machine(self) -> Optional[str]:
        # QEMU 7.2 writes a big-endian header for little-endian guests, too.
        orders = self.other.orders if self.other is not None else {}
        found = [name for name, order in orders.items() if self.headers.order in (order, ">")]
        return found[0] if len(found) == 1 else None

    @property
    def note(self) -> Optional[bytes]:
        return self.headers.note("VMCOREINFO")

    @cached_property
    def layouts(self) -> Sequence[PhysicalMemory]:
        return [MemoryFile(self.content, extents_of(self.headers))]

    def notes(self) -> bytes:
        return b"".join(self.content.at(offset, size) for offset, size in self.headers.note_places)

    def eraseinfo(self) -> bytes:
        return (self.headers.note(_ERASEINFO) or b"")[:MAX_TEXT]

    def lost(self) -> Optional[Iterable[Tuple[int, int]]]:
        if isinstance(self.content, Flattened) and not self.content.complete:
            return None
        return ((first, last + 1) for first, last in self.headers.lost())

    def lacks(self, address: int) -> bool:
        return bool(self.complete) and self._outside(address)

    def check_kernel(self) -> None:
        headers = self.headers
        if self.other is None:
            arch = by_elf_machine(headers.machine)
            if headers.order != "<":
                raise unsupported(f"{arch.name}, big-endian")
        if headers.type != ET_CORE:
            raise NotADump(
                f"{self.path} is an ELF file, but not a core dump",
                "give a vmlinux with -s, and the dump with -c",
            )
        if self.note is not None:
            return
        if any(owner == "CORE" and kind == _NT_PRPSINFO for owner, kind, _ in headers.notes):
            raise NotADump(
                f"{self.path} is the core dump of a program, not of a kernel",
                "kernel dumps are written by kdump, crash, virsh dump or QEMU",
            )

    def opened(self, chosen: Chosen) -> Source:
        prog = self.program(chosen.text)
        if self.left_out:
            # drgn would read zeros there, and a page table of zeros maps nothing.
            why = "left out of the dump"
            hide(prog, self.headers.left_out(), why, physical=True)
            for part in self.segments:
                size = min(part.memsz, (1 << 64) - 1 - part.vaddr) - part.filesz
                if part.vaddr and size > 0:
                    first = part.vaddr + part.filesz
                    hide(prog, [(first, first + size - 1)], why, physical=False)
        hide_null(prog)
        return self.source(prog, chosen)

    def program(self, vmcoreinfo: bytes) -> drgn.Program:
        if not isinstance(self.content, FileContent) or not any(s.paddr or s.vaddr for s in self.segments):
            # drgn does not support flattened ELF. It also treats QEMU's file of a machine with contiguous RAM
            # from 0 on as a file without physical addresses.
            return program_of(self.layouts[0], vmcoreinfo)
        prog = empty_program(vmcoreinfo, self.arch)
        descriptor = self.content.descriptor
        try:
            with without_advice():
                # By descriptor, as this process may not be allowed to open the file again.
                os.lseek(descriptor, 0, os.SEEK_SET)
                prog.set_core_dump(os.dup(descriptor))  # the program closes it
        except Exception as error:
            raise cannot_be_read(self, error) from error
        return prog


def cannot_be_read(dump: Dump, error: Exception) -> NotADump:
    """Convert an error of drgn or libkdumpfile: for a damaged file, ValueError, OSError or FaultError."""
    if dump.complete is False:
        what = f"{dump.path}: the dump is truncated, and the rest does not contain the page tables"
        return NotADump(what, "copy it again whole")
    reason = _CALL_OF_LIBKDUMPFILE.sub("", one_line(error))
    what = f"{dump.path} cannot be read as {dump.format}: {reason}"
    return NotADump(what, "take or copy the dump again")


def extents_of(headers: ElfHeaders) -> List[Extent]:
    """The physical memory in an ELF file."""
    extents: List[Extent] = []
    for part in sorted(headers.segments, key=lambda s: (s.paddr, -s.filesz)):
        # kexec's files have the image's memory twice, with its own addresses and as RAM.
        behind = extents[-1].address + extents[-1].size if extents else 0
        skip = max(0, behind - part.paddr)
        size = min(part.filesz, headers.file_size - part.offset)
        if size > skip:
            extents.append(Extent(part.paddr + skip, size - skip, part.offset + skip))
    return extents


FORMAT = Format("an ELF file", begins(MAGIC), form="elf", read=ElfDump)
