# SPDX-License-Identifier: LGPL-2.1-or-later
"""Memory of an address space in pieces, and the identities of its words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Iterator, Optional, Tuple

from kvintro.errors import NotInDump, Unavailable, UsageError
from kvintro.kernels import Kernel
from kvintro.model import ALL, Address, Size, Thing
from kvintro.queries.identify import Identifier
from kvintro.queries.translate import Input, Translator

#: Size of a word in bytes.
WORD = 8


@dataclass(frozen=True)
class Piece:
    """Consecutive bytes.

    :ivar start: address of the first byte.
    :ivar size: number of bytes.
    :ivar data: the bytes; None if they cannot be read.
    :ivar state: ``mapped`` if they can be read; else ``unmapped``, ``not-in-dump`` or ``non-canonical``.
    :ivar why: why they cannot be read; empty if they can.
    """

    start: int
    size: int
    data: Optional[bytes]
    state: str = "mapped"
    why: str = ""


@dataclass(frozen=True)
class MemoryWord:
    """Eight bytes of memory; fewer at the end of the requested range.

    :ivar value: the bytes as a number in the kernel's byte order; null if they cannot be read.
    :ivar text: the bytes as ASCII, with dots for those that are not printable.
    :ivar identity: the most specific identity of the value; null for plain data.
    :ivar state: ``mapped`` if the word can be read; else ``unmapped``, ``not-in-dump`` or ``non-canonical``.
    :ivar note: why it cannot be read.
    """

    address: Address
    size: Size
    value: Optional[Address]
    text: Optional[str]
    identity: Optional[Thing]
    state: str
    note: Optional[str]


class Space:
    """One address space: the kernel's, a process's, or physical memory.

    :param pid: process whose page tables translate; None for the kernel's own.
    :param physical: whether addresses are physical.
    :ivar translator: translates its addresses, and parses them.
    :ivar end: last address.
    :raises UsageError: there is no such process, or both a process and physical memory are given.
    """

    def __init__(self, kernel: Kernel, *, pid: Optional[int] = None, physical: bool = False) -> None:
        if physical and pid is not None:
            raise UsageError("physical memory does not belong to a process", "give --phys or --pid, not both")
        self.kernel = kernel
        self.pid = pid
        self.physical = physical
        form = "physical" if physical else "virtual"
        self.translator = Translator(kernel, pid=pid, form=form, plain_virtual=True)
        self.end = (1 << 52) - 1 if physical else ALL

    @property
    def name(self) -> str:
        """Name of the space: ``kernel``, ``physical``, ``pid 1``."""
        return "physical" if self.physical else "kernel" if self.pid is None else f"pid {self.pid}"

    def parse(self, text: str) -> Input:
        """Parse an address: a hexadecimal number, a symbol, or a symbol and an offset.

        In physical memory a symbol means its physical address.

        :raises UsageError: the text is none of these, or the address is beyond the end of the space.
        :raises Unavailable: a symbol has no physical address.
        """
        asked = self.translator.parse(text)
        if self.physical and asked.form == "virtual":
            physical = self.kernel.walk(asked.value).physical
            if physical is None:
                raise Unavailable(f"{text} has no physical address: nothing is mapped there")
            asked = Input(text, physical, "physical", asked.note)
        if asked.value > self.end:
            raise UsageError(f"{text} is beyond all physical memory", "omit --phys for a virtual address")
        return asked

    def read(self, address: int, size: int) -> bytes:
        """Read memory, which may span several pages.

        :raises NotInDump: any byte of it is not mapped or not in the source.
        """
        if self.physical:
            return self.kernel.read_physical(address, size)
        if self.pid is None:
            self._refuse_unmapped(address, size)
            return self.kernel.read(address, size)
        out, page = b"", self.kernel.form.page_size
        while len(out) < size:
            at = address + len(out)
            found = self.kernel.walk(at & ALL, self.translator.root.table)
            if found.physical is None:
                found = self.translator.kept(found, at & ALL, [])
            if found.physical is None:
                raise NotInDump(at, size - len(out), physical=False)
            out += self.kernel.read_physical(found.physical, min(page - at % page, size - len(out)))
        return out

    def _refuse_unmapped(self, address: int, size: int) -> None:
        """Check the kernel's page tables. drgn reads the direct map by its rule, including holes in it.

        :raises NotInDump: the page tables map nothing at one of the addresses.
        """
        at, end, broken = address, address + size, self.kernel.source.broken_tables
        while at < end:
            found = self.kernel.walk(at & ALL)
            if found.state == "unmapped" and not any(table.start <= at <= table.end for table in broken):
                raise NotInDump(at, end - at, physical=False)
            step = found.page_size or self.kernel.form.page_size
            at += step - at % step

    def pieces(self, address: int, size: int) -> Iterator[Piece]:
        """Split a range into pieces within one page each. It ends at the end of the space.

        :param size: size of the range in bytes.
        """
        page = self.kernel.form.page_size
        end = min(address + size - 1, self.end)
        while address <= end:
            count = min(page - address % page, end - address + 1)
            try:
                yield Piece(address, count, self.read(address, count))
            except NotInDump:
                yield Piece(address, count, None, *self.why(address))
            address += count

    def why(self, address: int) -> Tuple[str, str]:
        """The state of an address that cannot be read, and the reason as text."""
        if self.physical:
            return "not-in-dump", "not in this source"
        found = self.translator.translate(Input(f"{address:016x}", address, "virtual"))
        if found.state == "mapped":
            return "not-in-dump", "not in this source"
        text = {"unmapped": "not mapped", "not-in-dump": "not in this source"}.get(found.state, found.state)
        return found.state, f"{text}: {found.note}" if found.note else text


class Words:
    """Words of one address space with their identities, which are cached.

    :ivar identifier: identifies addresses of the space.
    """

    def __init__(self, space: Space) -> None:
        self.space = space
        # Words in physical memory are still virtual addresses.
        translator = Translator(space.kernel) if space.physical else space.translator
        self.identifier = Identifier(space.kernel, translator)

    def at(self, address: int, size: int) -> Iterator[MemoryWord]:
        """Yield the words of a range, ascending.

        :param size: size of the range in bytes; if it is not a multiple of eight, the last word is shorter.
        """
        for start, data, bad in self._cells(address, size):
            value = None if bad else int.from_bytes(data, self.space.kernel.form.byte_order)
            yield MemoryWord(
                Address(start),
                Size(len(data)),
                None if value is None else Address(value),
                None if value is None else ascii_text(data),
                self.identifier.of_word(value) if value is not None and len(data) == WORD else None,
                bad.state if bad else "mapped",
                bad.why if bad else None,
            )

    def _cells(self, address: int, size: int) -> Iterator[Tuple[int, bytes, Optional[Piece]]]:
        """(address, bytes, the piece that cannot be read, if any) of each word."""
        held, bad = b"", None
        for piece in self.space.pieces(address, size):
            own = piece if piece.data is None else None
            held += bytes(piece.size) if piece.data is None else piece.data
            bad = bad or own
            whole = len(held) - len(held) % WORD
            for at in range(0, whole, WORD):
                # Only the first of several words can contain bytes of the previous piece.
                yield address, held[at : at + WORD], bad
                address += WORD
                bad = own
            held = held[whole:]
            if whole and not held:
                bad = None
        if held:
            yield address, held, bad


def ascii_text(data: bytes) -> str:
    """Bytes as ASCII, with dots for those that are not printable."""
    return "".join(chr(byte) if 0x20 <= byte < 0x7F else "." for byte in data)
