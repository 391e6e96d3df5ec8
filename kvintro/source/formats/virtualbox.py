# SPDX-License-Identifier: LGPL-2.1-or-later
"""Cores of VirtualBox (`VBoxManage debugvm NAME dumpvmcore`): ELF whose header lacks its version.

VirtualBox's src/VBox/VMM/VMMR3/DBGFCoreWrite.cpp: a segment for each range of RAM, and one without bytes for
each range of devices. Names of notes have no final NUL, and notes are padded to 8 bytes. C libraries for ELF
reject the version 0, so kvintro reads memory itself.
"""

from __future__ import annotations

import struct
from typing import Optional

import drgn

from kvintro.source.content import Content
from kvintro.source.dump import Format
from kvintro.source.elf import PT_NOTE
from kvintro.source.formats.elf import MAGIC, ElfDump
from kvintro.source.opened import Source
from kvintro.source.program import program_of
from kvintro.source.vmcoreinfo import Chosen

_PROGRAM_HEADER = struct.Struct("<IIQQQ")
_OWNER = b"VBCORE"
_CORE = struct.Struct("<IIIIII")  # mark, version of the format, size, VirtualBox's version, revision, CPUs
_MARK = 0xC01AC0DE
_NOTE_AHEAD = 4  # program headers to search for its note, which is the first


class VirtualBoxDump(ElfDump):
    """A core of VirtualBox."""

    def __init__(self, content: Content, path: str) -> None:
        super().__init__(content, path)
        self.format = "VirtualBox core"
        # Segments without bytes are memory of devices.
        self.segments = tuple(segment for segment in self.segments if segment.filesz)
        self.left_out = 0

    def program(self, vmcoreinfo: bytes) -> drgn.Program:
        return program_of(self.layouts[0], vmcoreinfo)

    def source(self, prog: drgn.Program, chosen: Chosen) -> Source:
        source = super().source(prog, chosen)
        source.writer = _writer(self.content)
        return source


def _note(content: Content, head: bytes) -> Optional[int]:
    """Offset of the content of VirtualBox's first note; None if there is none."""
    if not head.startswith(MAGIC + b"\2\1") or len(head) < 64 or head[16:18] != b"\4\0":
        return None
    (at,) = struct.unpack_from("<Q", head, 32)
    (count,) = struct.unpack_from("<H", head, 56)
    for number in range(min(count, _NOTE_AHEAD)):
        data = content.at(at + 56 * number, _PROGRAM_HEADER.size)
        if len(data) < _PROGRAM_HEADER.size:
            return None
        kind, _, offset, _, _ = _PROGRAM_HEADER.unpack(data)
        if kind == PT_NOTE and content.at(offset + 12, len(_OWNER)) == _OWNER:
            return int(offset) + 12 + 8
    return None


def _writer(content: Content) -> str:
    at = _note(content, content.at(0, 64))
    data = content.at(at, _CORE.size) if at is not None else b""
    if len(data) < _CORE.size:
        return "VirtualBox"
    mark, _, _, version, _, _ = _CORE.unpack(data)
    if mark != _MARK or not version >> 24:
        return "VirtualBox"
    return f"VirtualBox {version >> 24}.{version >> 16 & 0xFF}.{version & 0xFFFF}"


def _fits(content: Content, head: bytes) -> bool:
    no_version = head.startswith(MAGIC + b"\2\1\0") and head[16:18] == b"\4\0"
    return no_version or _note(content, head) is not None


FORMAT = Format("a core dump of VirtualBox", _fits, form="virtualbox", read=VirtualBoxDump)
