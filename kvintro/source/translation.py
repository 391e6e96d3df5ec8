# SPDX-License-Identifier: LGPL-2.1-or-later
"""Reads of kernel virtual memory where drgn's own would go wrong.

drgn and libkdumpfile follow page tables themselves, and on ordinary kernels nothing is faster. They fail on
kernels that use an address bit of the entries for memory encryption (AMD's C-bit, the shared bit of TDX and
of Hyper-V's vTOM), and where a table is missing from the dump or overwritten. In these cases a translator of
ours is registered with the program as a memory segment. Symbols, types and drgn's helpers then all use it.

Below a broken table only the image and the direct map can be read, whose addresses follow from ``phys_base``
and ``page_offset_base``. Where a table can be used, what it says holds: what it does not map is not read.
"""

from __future__ import annotations

import contextlib
import struct
from typing import Dict, Iterator, List, Optional, Sequence, Tuple, Union

import drgn

from kvintro.arch.x86_64 import ALL, ARCHITECTURE, PRESENT, START_KERNEL_MAP, X86Geometry
from kvintro.errors import NotInDump
from kvintro.paging.broken import (
    DIRECT_MAP,
    IMAGE,
    MEMORY_MAP,
    MISSING,
    BrokenTable,
    Judged,
    Window,
    entries_of,
    find_broken,
    judge,
)
from kvintro.paging.step import TABLE_SIZE, ReadPhysical
from kvintro.source import Source
from kvintro.source.kallsyms import READ_ERRORS

__all__ = ("prepare", "prepare_with_symbols")

_PAGE = 4096
_ENTRY = struct.Struct("<Q")
_WHOLE_MASK = (1 << 52) - 1
_DEFAULT_IMAGE_WINDOW = 1 << 30
_MOST_TABLES = 1 << 13  # looked at when a dump is opened: 32 MB
_CACHED_PAGES, _CACHED_TABLES = 1 << 18, 1 << 12


def prepare(source: Source) -> None:
    """Make the kernel's image readable, before its symbols are read. VMCOREINFO says all that this needs."""
    state = _State.of(source)
    if state is None:
        return
    base = START_KERNEL_MAP - state.phys_base
    size = _number(source, "NUMBER(KERNEL_IMAGE_SIZE)") or _DEFAULT_IMAGE_WINDOW
    end = min(START_KERNEL_MAP + size - 1, ALL)
    state.add(Window(IMAGE, START_KERNEL_MAP, end, base, "phys_base", state.memory_end))
    state.register_if_needed()
    source.translation = state


def prepare_with_symbols(source: Source) -> None:
    """The same for the direct map, and for masks that only a variable tells."""
    state = source.translation
    if not isinstance(state, _State):
        return
    mask = state.variable("physical_mask")
    if mask is not None and mask & 0xFFFFF000 == 0xFFFFF000 and not mask >> 52:
        state.take_mask(mask)
    offset, frames = state.variable("page_offset_base"), state.variable("max_pfn")
    if offset is not None and frames is not None and offset >> 63 and 0 < frames < 1 << 40:
        end = min(offset + (frames << 12) - 1, START_KERNEL_MAP - 1)
        if end > offset:
            state.add(Window(DIRECT_MAP, offset, end, offset, "page_offset_base", frames << 12))
        pages, size = state.variable("vmemmap_base"), _number(source, "SIZE(page)")
        if pages is not None and size and pages >> 63 and pages + frames * size <= START_KERNEL_MAP:
            state.add(Window(MEMORY_MAP, pages, pages + frames * size - 1, memory_end=frames << 12))
    state.register_if_needed()
    source.broken_tables = tuple(state.broken)
    source.warnings += state.notes()


class _State:
    """What is known of how a source's addresses translate."""

    def __init__(self, source: Source, root: int, phys_base: int, levels: int, mask: int) -> None:
        self.source = source
        self.phys_base = phys_base
        self.windows: List[Window] = []
        self.broken: List[BrokenTable] = []
        self.judged: Dict[str, Judged] = {}
        self.memory_end = max((s.paddr + s.memsz for s in source.segments), default=None)
        self._root = root
        self._levels = levels
        self._mask = mask
        self._translator: Optional[Translator] = None

    @classmethod
    def of(cls, source: Source) -> Optional[_State]:
        """None for sources that are read otherwise: /proc/kcore has segments for all that is mapped."""
        root, base = _number(source, "SYMBOL(swapper_pg_dir)", 16), _number(source, "NUMBER(phys_base)")
        if source.kind == "live" or root is None or base is None or root < START_KERNEL_MAP:
            return None
        levels = 5 if _number(source, "NUMBER(pgtable_l5_enabled)") else 4
        mask = _WHOLE_MASK & ~(_number(source, "NUMBER(sme_mask)") or 0)
        return cls(source, root - START_KERNEL_MAP + base & ALL, base, levels, mask)

    @property
    def _geometry(self) -> X86Geometry:
        return ARCHITECTURE.geometry(self._levels, self._mask)

    def add(self, window: Window) -> None:
        """Take a window into account, and look for broken tables in it."""
        self.windows.append(window)
        # The tables of a guest that runs change while they are looked at.
        if not self.source.live:
            read = _physical(self.source.prog)
            found = find_broken(read, self._geometry, self._root, window, _MOST_TABLES)
            self.judged[window.name] = found
            self.broken += found.broken

    def take_mask(self, mask: int) -> None:
        """Take another mask for the right one, as the kernel's own variable has it."""
        if mask != self._mask:
            self._mask = mask
            self._translator = None
            windows, self.windows, self.broken, self.judged = self.windows, [], [], {}
            for window in windows:
                self.add(window)

    def register_if_needed(self) -> None:
        """Register a translator, if drgn's own reads would go wrong."""
        if self._mask == _WHOLE_MASK and not self.broken:
            return
        if self._translator is None:
            self._translator = Translator(
                self.source.prog, self._geometry, self._root, keep=not self.source.live
            )
            for start, end in self._gaps():
                self.source.prog.add_memory_segment(start, end - start + 1, self._translator.segment, False)
        self._translator.windows = tuple(self.windows)
        self._translator.broken = tuple(self.broken)

    def variable(self, name: str) -> Optional[int]:
        """The value of a variable of 64 bits, None if it cannot be read."""
        prog = self.source.prog
        try:
            return int(prog.read_u64(prog.symbol(name).address))
        except (LookupError, *READ_ERRORS):
            return None

    def notes(self) -> Iterator[str]:
        """One line for each window with broken tables."""
        for window in self.windows:
            found = [broken for broken in self.broken if broken.window == window.name]
            if not found:
                continue
            first = found[0]
            more = f", and {len(found) - 1} more" if len(found) > 1 else ""
            if window.offset is None:
                what = "what is mapped there cannot be read"
            elif self._by_rule(first):
                what = f"the kernel's data there is read by arithmetic ({window.by})"
            else:
                what = "the kernel's data there is read by the addresses of the dump's segments"
            yield f"{window.name} {first.start:016x}-{first.end:016x}: {first.text}{more}; {what}"

    def arithmetic(self, address: int) -> str:
        """By what an address is read whose table is broken; empty for others."""
        for broken in self.broken:
            if broken.start <= address <= broken.end and self._by_rule(broken):
                return next(w.by for w in self.windows if w.name == broken.window)
        return ""

    def _by_rule(self, broken: BrokenTable) -> bool:
        """Whether what lies below a broken table is read by arithmetic."""
        window = next(w for w in self.windows if w.name == broken.window)
        if window.offset is None:
            return False
        return any(start <= broken.end and broken.start <= end for start, end in self._gaps())

    def _gaps(self) -> Iterator[Tuple[int, int]]:
        """The kernel half without what segments of the source have by its virtual address."""
        cursor = self._geometry.guard_hole.end + 1
        for segment in sorted(self.source.segments, key=lambda segment: segment.vaddr):
            if segment.vaddr >= cursor and segment.memsz:
                if segment.vaddr > cursor:
                    yield cursor, segment.vaddr - 1
                cursor = segment.vaddr + segment.memsz
        if cursor <= ALL:
            yield cursor, ALL


class Translator:
    """Kernel virtual memory by page tables, and by arithmetic where a table is broken.

    :param keep: whether translations may be kept: the source does not change.
    :ivar windows: addresses of which is known what tables have to say.
    :ivar broken: tables that are known to be broken.
    """

    def __init__(self, prog: drgn.Program, geometry: X86Geometry, root: int, *, keep: bool) -> None:
        self.windows: Sequence[Window] = ()
        self.broken: Sequence[BrokenTable] = ()
        self._prog = prog
        self._geometry = geometry
        self._root = root
        self._keep = keep
        self._pages: Dict[int, int] = {}
        self._tables: Dict[Tuple[int, int, int], Union[bytes, str]] = {}

    def segment(self, address: int, count: int, offset: int, physical: bool) -> bytes:
        """What :meth:`drgn.Program.add_memory_segment` wants.

        :raises drgn.FaultError: an address is not mapped, or what it maps is not in the source.
        """
        read = self._prog.read
        try:
            if (address & _PAGE - 1) + count <= _PAGE:
                data: bytes = read(self._physical(address), count, True)
                return data
            return b"".join(read(at, size, True) for at, size in self._runs(address, count))
        except drgn.FaultError as error:
            raise drgn.FaultError(str(error), address) from None

    def _runs(self, address: int, count: int) -> Iterator[Tuple[int, int]]:
        """(physical address, size) of the pieces of a stretch that lie side by side in physical memory."""
        start = size = 0
        end = address + count
        while address < end:
            part = min(_PAGE - address % _PAGE, end - address)
            physical = self._physical(address)
            if size and physical == start + size:
                size += part
            else:
                if size:
                    yield start, size
                start, size = physical, part
            address += part
        yield start, size

    def _physical(self, address: int) -> int:
        page = self._pages.get(address >> 12)
        if page is None:
            page = self._translate(address & -_PAGE)
            if self._keep:
                if len(self._pages) >= _CACHED_PAGES:
                    self._pages.clear()
                self._pages[address >> 12] = page
        return page + address % _PAGE

    def _translate(self, address: int) -> int:
        geometry = self._geometry
        window = next((window for window in self.windows if address in window), None)
        for broken in self.broken:
            if broken.start <= address <= broken.end:
                return _by_rule(address, window, broken.why)
        table = self._root
        for level in range(geometry.levels, 0, -1):
            found = self._table(table, level, address, window)
            if isinstance(found, str):
                return _by_rule(address, window, found)
            entry: int = _ENTRY.unpack_from(found, 8 * geometry.index(address, level))[0]
            large = level > 1 and entry & geometry.large_bit()
            leaf = level == 1 or large
            if not entry & PRESENT or (leaf and entry & geometry.reserved_bits(level)):
                break
            if leaf:
                inside = (1 << geometry.shift(level)) - 1
                return entry & geometry.pfn_mask & ~inside | address & inside
            table = entry & geometry.pfn_mask
        raise drgn.FaultError("the page tables do not map it", address)

    def _table(self, table: int, level: int, address: int, window: Optional[Window]) -> Union[bytes, str]:
        """A table's content, or why it cannot be used."""
        base = address & -(1 << self._geometry.shift(level) + 9) & ALL
        key = (table, level, base)
        known = self._tables.get(key)
        if known is not None:
            return known
        found: Union[bytes, str]
        try:
            data: bytes = self._prog.read(table, TABLE_SIZE, True)
        except READ_ERRORS:
            found = MISSING
        else:
            why = judge(self._geometry, window, entries_of(data), level, base) if window else None
            found = why or data
        if self._keep:
            if len(self._tables) >= _CACHED_TABLES:
                self._tables.clear()
            self._tables[key] = found
        return found


def _by_rule(address: int, window: Optional[Window], why: str) -> int:
    """The physical address that a window's rule gives where a table cannot be used."""
    if window is None or window.offset is None:
        raise drgn.FaultError(f"a page table on the way {why}", address)
    return address - window.offset & ALL


def _physical(prog: drgn.Program) -> ReadPhysical:
    def read(address: int, size: int) -> bytes:
        try:
            data: bytes = prog.read(address, size, True)
            return data
        except READ_ERRORS as error:
            raise NotInDump(address, size, physical=True) from error

    return read


def _number(source: Source, key: str, base: int = 10) -> Optional[int]:
    with contextlib.suppress(ValueError):
        return int(source.vmcoreinfo.get(key, ""), base)
    return None
