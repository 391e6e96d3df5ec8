# SPDX-License-Identifier: LGPL-2.1-or-later
"""Guests that QEMU saved: `virsh dump` without --memory-only, QMP's migrate into a file, Proxmox's states.

The stream lists the blocks of RAM, but not where RAM ends below 4 GB. The state of the guest's clock, which
follows, says that. If it is missing, the machine type decides, or all usual places are tried.
"""

from __future__ import annotations

import re
from typing import List, Optional, Sequence, Tuple

from kvintro.errors import NotADump
from kvintro.source.content import Content
from kvintro.source.dump import COPY_AGAIN, TRUNCATED, Format, begins
from kvintro.source.formats.memory import MemoryDump
from kvintro.source.formats.raw import FOUR_GB, LOW_ENDS
from kvintro.source.opened import Source
from kvintro.source.physical import Extent, PhysicalMemory
from kvintro.source.stream import (
    CUT,
    MAGIC,
    Block,
    Clock,
    Pages,
    Stream,
    StreamMemory,
    clock_of,
    ram_of,
    read_stream,
)
from kvintro.source.vmcoreinfo import Chosen
from kvintro.text import size_text

_AS_ELF = "virsh dump --memory-only DOMAIN FILE writes ELF, as QEMU's dump-guest-memory does"
_GB = 1 << 30


class QemuDump(MemoryDump):
    """A migration stream.

    :param start: its offset in the content.
    :param form: name of the format of the whole file.
    :param writer: the program that wrote the enclosing file.
    :raises NotADump: it cannot be read, or has no RAM.
    """

    packed = True

    def __init__(
        self, content: Content, path: str, *, start: int = 0, form: str = "QEMU stream", writer: str = ""
    ) -> None:
        stream, index = read_stream(content, start)
        self.stream = stream
        clock = clock_of(content, stream)
        blocks = ram_of(stream.blocks, clock.low + clock.high if clock is not None else None)
        pages = Pages(content, index, blocks)
        _check_pages(path, stream, pages, blocks)
        if clock is not None and clock.low + clock.high != pages.size:
            clock = None
        layouts: List[PhysicalMemory] = [
            StreamMemory(pages, extents, complete=stream.complete)
            for extents in _layouts(stream.machine, pages.size, clock)
        ]
        super().__init__(content, path, form, layouts)
        self.complete = stream.complete
        self.left_out = pages.missing if stream.complete else None
        self._memory = pages.size - pages.missing
        self.writer = ", ".join(filter(None, (writer, _writer(stream))))
        self._others = _left_aside(stream, blocks)

    def opened(self, chosen: Chosen) -> Source:
        source = super().opened(chosen)
        source.writer = self.writer
        source.memory = self._memory
        if self.stream.stopped not in ("", CUT):
            source.warnings.remove(TRUNCATED)
            source.warnings.append(
                f"the stream was read only up to byte {self.stream.end}: {self.stream.stopped}; later pages "
                "are shown as not in the dump"
            )
        source.warnings += self._others
        return source

    def refusal(self, error: NotADump) -> NotADump:
        refused = super().refusal(error)
        if self.stream.stopped in ("", CUT):
            return refused
        where = f"the stream was read only up to byte {self.stream.end}: {self.stream.stopped}"
        return NotADump(refused.what, f"{where}; {_AS_ELF}")


def _writer(stream: Stream) -> str:
    machine = f", machine type {stream.machine}" if stream.machine else ", before 2.4"
    return "QEMU" + machine


def _check_pages(path: str, stream: Stream, pages: Pages, blocks: List[Block]) -> None:
    """Check that there is RAM.

    :raises NotADump: there is none; says why.
    """
    if blocks and pages.missing < pages.size:
        return
    name = blocks[0].name if blocks else "RAM"
    if "x-ignore-shared" in stream.capabilities:
        raise NotADump(
            f"{path} has no pages of {name}: they are in the guest's shared memory file (x-ignore-shared)",
            "give the file of its memory-backend-file as raw memory",
        )
    if stream.multifd or (stream.complete and blocks):
        raise NotADump(
            f"{path} has no pages of {name}: they went through other connections (multifd)",
            f"save the guest without multifd; or {_AS_ELF}",
        )
    if stream.stopped == CUT:
        raise NotADump(f"{path} is truncated before its first page", COPY_AGAIN)
    raise NotADump(f"{path} has no RAM that can be read: {stream.stopped or 'it lists none'}", _AS_ELF)


def _layouts(machine: str, size: int, clock: Optional[Clock]) -> Sequence[List[Extent]]:
    """Possible layouts of RAM of a given size; only one if it is known."""
    if clock is not None:
        return [_split(size, clock.low)]
    low = _low_by_machine(machine, size)
    if low is not None:
        return [_split(size, low)]
    return [[Extent(0, size, 0)], *(_split(size, low) for low in LOW_ENDS if low < size)]


def _split(size: int, low: int) -> List[Extent]:
    if size <= low:
        return [Extent(0, size, 0)]
    return [Extent(0, low, 0), Extent(FOUR_GB, size - low, low)]


#: By machine type: all RAM is below 4 GB if there is less than the first size; otherwise the second size is
#: below 4 GB (hw/i386/pc_q35.c, pc_piix.c, microvm.c; older types did not align to gigabytes).
_MACHINES: Tuple[Tuple[str, int, int], ...] = (
    (r"pc-q35-|q35", 0xB0000000, 0x80000000),
    (r"pc-i440fx-|pc", 0xE0000000, 0xC0000000),
    (r"microvm", 0xC0000000, 0xC0000000),
)


def _low_by_machine(machine: str, size: int) -> Optional[int]:
    for pattern, whole, low in _MACHINES:
        if re.match(pattern, machine):
            return size if size < whole else low
    return None


def _left_aside(stream: Stream, blocks: List[Block]) -> List[str]:
    """Warnings about blocks of memory whose address is not in the stream."""
    known = {block.name for block in blocks}
    found = [
        block
        for block in stream.blocks
        if block.name not in known and block.size >= 64 << 20 and "vram" not in block.name
    ]
    return [
        f"{size_text(block.size)} of memory in {block.name!r} are not shown: their address is unknown"
        for block in found
    ]


def _read(content: Content, path: str) -> QemuDump:
    return QemuDump(content, path)


FORMAT = Format("QEMU's migration stream", begins(MAGIC), form="qemu", read=_read)
