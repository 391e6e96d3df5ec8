# SPDX-License-Identifier: LGPL-2.1-or-later
"""Opens truncated kdumps.

libkdumpfile reads data after the end of the file as zeros, which look like an empty table. So the missing
pages are found here and hidden from the reader.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Optional

import drgn

from kvintro.errors import NotADump
from kvintro.source.content import Content
from kvintro.source.kdump import Kdump, bitmap, bits_of_bytes, descriptors, lost
from kvintro.source.libkdumpfile import Killed, set_core_dump

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray

_COPY_AGAIN = "copy it again whole"
_OWN_READER = "DRGN_PREFER_PGTABLE_READER"  # drgn's variable


def open_cut_kdump(prog: drgn.Program, descriptor: int, content: Content, kdump: Kdump) -> None:
    """Make a program read a truncated kdump.

    :param descriptor: descriptor of a plain kdump.
    :param content: the remaining content; if the file was flattened, the content of its records.
    :raises NotADump: nothing of it can be read.
    :raises ValueError: libkdumpfile cannot read the rest.
    """
    missing = first_lost(content, kdump)
    # Make drgn walk page tables, in memory with the parts hidden below, instead of libkdumpfile in the file.
    before = os.environ.get(_OWN_READER)
    os.environ[_OWN_READER] = "1"
    try:
        set_core_dump(prog, descriptor)
    except Killed:
        raise NotADump("the dump is truncated: data needed to read it is missing", _COPY_AGAIN) from None
    finally:
        del os.environ[_OWN_READER]
        if before is not None:
            os.environ[_OWN_READER] = before
    if missing is not None:
        hide_from(prog, missing)


def first_lost(content: Content, kdump: Kdump) -> Optional[int]:
    """Physical address of the first page whose data is not complete; None if there is none.

    :raises NotADump: the headers, or all pages, are missing.
    """
    if kdump.layout is None:
        raise NotADump("the dump is truncated within its headers", _COPY_AGAIN)
    start, size = kdump.layout.dumped, kdump.layout.bitmap_size
    known = size if content.has_all(start, size) else _known(content, start, size)
    bits_of = bits_of_bytes()
    count = 0
    for number, data in bitmap(content, start, known, kdump.part):
        in_piece = int(bits_of[data].sum(dtype="int64"))
        rank = _first_lost_rank(content, kdump, kdump.layout.table, count, in_piece)
        if rank == 0:
            raise NotADump("the dump is truncated before its first page", _COPY_AGAIN)
        if rank is not None:
            return _frame(data, rank - count, 8 * number) * kdump.page
        count += in_piece
    if known == size:
        return None
    if not count:
        raise NotADump("the dump is truncated before its first page", _COPY_AGAIN)
    return 8 * known * kdump.page


def _frame(data: NDArray[numpy.uint8], rank: int, first: int) -> int:
    """The number of the page frame with the given rank among the set bits of a piece of a bitmap."""
    import numpy

    bits = numpy.flatnonzero(numpy.unpackbits(data, bitorder="little"))
    return first + int(bits[rank])


def _first_lost_rank(content: Content, kdump: Kdump, table: int, first: int, count: int) -> Optional[int]:
    """Index of the first page whose descriptor or data is missing; None if there is none."""
    end = first + count
    while first < end:
        found = descriptors(content, table, first, end - first, kdump.order)
        missing = lost(content, table, found)
        if len(missing):
            return first + int(missing[0])
        if not len(found):
            return first
        first += len(found)
    return None


def _known(content: Content, start: int, size: int) -> int:
    """Number of bytes at the beginning of a bitmap that are not missing."""
    low, high = 0, size
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if content.has_all(start, middle) else (low, middle - 1)
    return low


def hide_from(prog: drgn.Program, address: int) -> None:
    """Make reads of physical memory from an address on fault."""

    def fault(at: int, count: int, offset: int, physical: bool) -> bytes:
        raise drgn.FaultError("cut off with the end of the dump", at)

    prog.add_memory_segment(address, (1 << 64) - 1 - address, fault, True)
