# SPDX-License-Identifier: LGPL-2.1-or-later
"""Kdumps that end too soon.

libkdumpfile maps the file. What begins before its end and reaches into the page behind that kills the process
that reads it (SIGBUS); what lies behind altogether reads as zeros, which is what an empty table looks like.
So what was cut off is found here and hidden from the reader, and a process that may die opens the
file first.
"""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING, BinaryIO, Callable, Optional

import drgn

from kvintro.errors import NotADump
from kvintro.source.content import Content
from kvintro.source.kdump import PAGE, Kdump, bitmap, bits_of_bytes, descriptors, lost

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray

_COPY_AGAIN = "copy it again whole"
_OWN_READER = "DRGN_PREFER_PGTABLE_READER"  # drgn's variable


def open_cut_kdump(
    prog: drgn.Program, file: BinaryIO, content: Content, kdump: Kdump, vmcoreinfo: Optional[bytes]
) -> None:
    """Have a program read a kdump that ends too soon.

    :param file: a plain kdump.
    :param content: what is there of it; of one that was flattened, what its records have.
    :param vmcoreinfo: what the program was made with.
    :raises NotADump: nothing of it can be read.
    """
    missing = first_lost(content, kdump)
    # Have drgn walk page tables, on memory as it is below, and not libkdumpfile on the file.
    before = os.environ.get(_OWN_READER)
    os.environ[_OWN_READER] = "1"
    try:
        other = drgn.Program(prog.platform, vmcoreinfo=vmcoreinfo)
        try_in_child(lambda: other.set_core_dump(os.dup(file.fileno())))
        prog.set_core_dump(os.dup(file.fileno()))
    finally:
        del os.environ[_OWN_READER]
        if before is not None:
            os.environ[_OWN_READER] = before
    if missing is not None:
        hide_from(prog, missing)


def first_lost(content: Content, kdump: Kdump) -> Optional[int]:
    """Physical address of the first page whose data is not there as a whole; None if there is none.

    :raises NotADump: not even what leads to the pages is there.
    """
    if kdump.layout is None:
        raise NotADump("the dump is truncated within its headers", _COPY_AGAIN)
    start, size = kdump.layout.dumped, kdump.layout.bitmap_size
    known = size if content.has_all(start, size) else _known(content, start, size)
    bits_of = bits_of_bytes()
    count = 0
    for number, data in bitmap(content, start, known, kdump.part):
        in_piece = int(bits_of[data].sum(dtype="int64"))
        rank = _first_lost_rank(content, kdump.layout.table, count, in_piece)
        if rank == 0:
            raise NotADump("the dump is truncated before its first page", _COPY_AGAIN)
        if rank is not None:
            return _frame(data, rank - count, 8 * number) * PAGE
        count += in_piece
    if known == size:
        return None
    if not count:
        raise NotADump("the dump is truncated before its first page", _COPY_AGAIN)
    return 8 * known * PAGE


def _frame(data: NDArray[numpy.uint8], rank: int, first: int) -> int:
    """The number of the page frame whose bit is the one of that rank in a piece of a bitmap."""
    import numpy

    bits = numpy.flatnonzero(numpy.unpackbits(data, bitorder="little"))
    return first + int(bits[rank])


def _first_lost_rank(content: Content, table: int, first: int, count: int) -> Optional[int]:
    """Which of some pages, in the order of their descriptors, is the first that has lost that or its data."""
    end = first + count
    while first < end:
        found = descriptors(content, table, first, end - first)
        missing = lost(content, table, found)
        if len(missing):
            return first + int(missing[0])
        if not len(found):
            return first
        first += len(found)
    return None


def _known(content: Content, start: int, size: int) -> int:
    """How many bytes of a bitmap are there, from its beginning on."""
    low, high = 0, size
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if content.has_all(start, middle) else (low, middle - 1)
    return low


def hide_from(prog: drgn.Program, address: int) -> None:
    """Make physical memory from an address on fault."""

    def fault(at: int, count: int, offset: int, physical: bool) -> bytes:
        raise drgn.FaultError("cut off with the end of the dump", at)

    prog.add_memory_segment(address, (1 << 64) - 1 - address, fault, True)


def try_in_child(attempt: Callable[[], None]) -> None:
    """Do in a child process what may kill the process.

    :raises NotADump: it did. Exceptions of the attempt are not seen here: it will be made again.
    """
    child = os.fork()
    if child == 0:
        try:
            # What libraries complain about, the second attempt says too.
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 2)
            signal.signal(signal.SIGBUS, signal.SIG_DFL)  # kvintro.bus_error would end it as if by itself
            attempt()
        except BaseException:
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        raise NotADump("the dump is truncated within what is needed to read it", _COPY_AGAIN)
