# SPDX-License-Identifier: LGPL-2.1-or-later
"""Reads kernel virtual memory where drgn's own reads would fail.

drgn and libkdumpfile walk page tables themselves, and on ordinary kernels nothing is faster. They fail on
kernels that use an address bit of the entries for memory encryption (AMD's C-bit, the shared bit of TDX and
of Hyper-V's vTOM), on forms of page tables that they do not know, and if a table is missing from the dump or
overwritten. In these cases our own translator is registered with the program as a memory segment. Symbols,
types and drgn's helpers then all use it.

Below a broken table, only windows with a rule can be read, such as the image and the direct map. A table that
is usable is authoritative: addresses that it does not map are not read.
"""

from __future__ import annotations

from typing import Dict, Iterable, Iterator, List, Optional, Sequence, Tuple, Union

import drgn

from kvintro.arch import by_vmcoreinfo
from kvintro.arch.address_space import AddressSpace, Window
from kvintro.arch.form import ENTRY_SIZE, PagingForm
from kvintro.errors import NotInDump
from kvintro.model import ALL, AddressRange
from kvintro.paging.broken import MISSING, BrokenTable, Judged, entries_of, find_broken, judge
from kvintro.paging.step import ReadPhysical
from kvintro.source.elf import Segment
from kvintro.source.kallsyms import READ_ERRORS
from kvintro.source.opened import Source

__all__ = ("prepare", "prepare_with_symbols", "space_of", "unreachable")

_MOST_OFFSET = (1 << 63) - 1
_MOST_TABLES = 1 << 13  # checked when a dump is opened: 32 MB of 4 KB each
_CACHED_PAGES, _CACHED_TABLES = 1 << 18, 1 << 12


def space_of(source: Source) -> Optional[AddressSpace]:
    """The address space that VMCOREINFO describes; None if no kernel can have it."""
    arch = by_vmcoreinfo(source.vmcoreinfo)
    try:
        return None if arch is None else arch.address_space(source.vmcoreinfo)
    except ValueError:
        return None


def prepare(source: Source) -> None:
    """Make the kernel's image readable, before its symbols are read. This needs only VMCOREINFO."""
    space = space_of(source)
    if space is None:
        return
    if space.told_offset is not None:
        _tell_offset(source.prog, space.told_offset)
    # /proc/kcore has segments for everything that is mapped. All can be read where drgn has a walker.
    if source.kind == "live" and space.drgn_walks:
        return
    state = _State(source, space)
    for window in space.windows(state.memory):
        state.add(window)
    state.register_if_needed()
    source.translation = state


_OFFSET = "_linux_helper_direct_mapping_offset"


def _tell_offset(prog: drgn.Program, offset: int) -> None:
    """Make drgn's helpers for pages and slabs work: they ask a function that lacks this architecture."""
    from drgn.helpers.linux import mm

    original = getattr(mm, _OFFSET)
    prog.cache[_OFFSET] = offset
    if not hasattr(original, "by_kvintro"):

        def told(asked: drgn.Program) -> int:
            return int(asked.cache[_OFFSET] if _OFFSET in asked.cache else original(asked))

        told.by_kvintro = True  # type: ignore[attr-defined]
        setattr(mm, _OFFSET, told)


def prepare_with_symbols(source: Source) -> None:
    """As :func:`prepare`, for the direct map, and with values that only variables have."""
    state = source.translation
    if not isinstance(state, _State):
        return
    state.take(state.space.corrected(state.variable))
    for window in state.space.more_windows(state.variable, state.memory):
        state.add(window)
    state.register_if_needed()
    source.broken_tables = tuple(state.broken)
    source.warnings += state.notes()


class _State:
    """How a source's addresses translate, as far as it is known."""

    def __init__(self, source: Source, space: AddressSpace) -> None:
        self.source = source
        self.space = space
        self.windows: List[Window] = []
        self.broken: List[BrokenTable] = []
        self.judged: Dict[str, Judged] = {}
        self.memory = _memory(source)
        self._translator: Optional[Translator] = None

    def add(self, window: Window) -> None:
        """Add a window, and check it for broken tables."""
        self.windows.append(window)
        # The tables of a running guest change while they are being checked.
        if not self.source.live:
            read = _physical(self.source.prog)
            found = find_broken(read, self.space.form, self.space.root, window, _MOST_TABLES)
            self.judged[window.name] = found
            self.broken += found.broken

    def take(self, space: AddressSpace) -> None:
        """Use the address space according to the kernel's own variables."""
        if space != self.space:
            self.space = space
            self._translator = None
            windows, self.windows, self.broken, self.judged = self.windows, [], [], {}
            for window in windows:
                self.add(window)

    def register_if_needed(self) -> None:
        """Register a translator, if drgn's own reads would fail."""
        kdump = "kdump" in self.source.format
        walks = self.space.libkdumpfile_walks if kdump else self.space.drgn_walks
        if walks and not self.broken:
            return
        if self._translator is None:
            self._translator = Translator(
                self.source.prog, self.space.form, self.space.root, keep=not self.source.live
            )
            for start, end in self._gaps():
                self.source.prog.add_memory_segment(start, end - start + 1, self._translator.segment, False)
        self._translator.windows = tuple(self.windows)
        self._translator.broken = tuple(self.broken)

    def variable(self, name: str) -> Optional[int]:
        """The value of a 64-bit variable; None if it cannot be read."""
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
        """The rule that translates an address if its table is broken; otherwise empty."""
        for broken in self.broken:
            if broken.start <= address <= broken.end and self._by_rule(broken):
                return next(w.by for w in self.windows if w.name == broken.window)
        return ""

    def _by_rule(self, broken: BrokenTable) -> bool:
        """Whether addresses below a broken table are translated by arithmetic."""
        window = next(w for w in self.windows if w.name == broken.window)
        if window.offset is None:
            return False
        return any(start <= broken.end and broken.start <= end for start, end in self._gaps())

    def _gaps(self) -> Iterator[Tuple[int, int]]:
        """The parts of the kernel half (first, last address) that no segment of the source has."""
        return unreachable(self.source.segments, self.space.form.kernel)


def unreachable(segments: Iterable[Segment], half: AddressRange) -> Iterator[Tuple[int, int]]:
    """The parts of a half (first, last address) that segments do not have, or not where a file can be read.

    In /proc/kcore the offset of a segment is its distance from PAGE_OFFSET, modulo 2^64
    (fs/proc/kcore.c:kc_vaddr_to_offset). On riscv64, vmalloc and the memory map are below PAGE_OFFSET.
    """
    cursor = half.start
    for segment in sorted(segments, key=lambda segment: segment.vaddr):
        if segment.vaddr >= cursor and segment.memsz and segment.offset + segment.filesz <= _MOST_OFFSET:
            if segment.vaddr > cursor:
                yield cursor, segment.vaddr - 1
            cursor = segment.vaddr + segment.memsz
    if cursor <= half.end:
        yield cursor, half.end


class Translator:
    """Reads kernel virtual memory by page tables, and by arithmetic if a table is broken.

    :param keep: whether translations may be cached, as the source does not change.
    :ivar windows: addresses for which the content of tables can be checked.
    :ivar broken: tables that are known to be broken.
    """

    def __init__(self, prog: drgn.Program, form: PagingForm, root: int, *, keep: bool) -> None:
        self.windows: Sequence[Window] = ()
        self.broken: Sequence[BrokenTable] = ()
        self._prog = prog
        self._form = form
        self._page = form.page_size
        self._root = root
        self._keep = keep
        self._pages: Dict[int, int] = {}
        self._tables: Dict[Tuple[int, int, int], Union[bytes, str]] = {}

    def segment(self, address: int, count: int, offset: int, physical: bool) -> bytes:
        """Callback for :meth:`drgn.Program.add_memory_segment`.

        :raises drgn.FaultError: an address is not mapped, or its memory is not in the source.
        """
        read = self._prog.read
        try:
            if (address & self._page - 1) + count <= self._page:
                data: bytes = read(self._physical(address), count, True)
                return data
            return b"".join(read(at, size, True) for at, size in self._runs(address, count))
        except drgn.FaultError as error:
            raise drgn.FaultError(str(error), address) from None

    def _runs(self, address: int, count: int) -> Iterator[Tuple[int, int]]:
        """(physical address, size) of the physically contiguous pieces of a range."""
        start = size = 0
        end = address + count
        while address < end:
            part = min(self._page - address % self._page, end - address)
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
        within = address & self._page - 1
        start = address - within
        page = self._pages.get(start)
        if page is None:
            page = self._translate(start)
            if self._keep:
                if len(self._pages) >= _CACHED_PAGES:
                    self._pages.clear()
                self._pages[start] = page
        return page + within

    def _translate(self, address: int) -> int:
        form = self._form
        window = next((window for window in self.windows if address in window), None)
        for broken in self.broken:
            if broken.start <= address <= broken.end:
                return _by_rule(address, window, broken.why)
        table = self._root
        for level in range(form.levels, 0, -1):
            found = self._table(table, level, address, window)
            if isinstance(found, str):
                return _by_rule(address, window, found)
            at = ENTRY_SIZE * form.index(address, level)
            entry = int.from_bytes(found[at : at + ENTRY_SIZE], form.byte_order)
            if level > 1 and form.is_table(entry, level):
                table = form.table_address(entry)
            elif form.is_leaf(entry, level):
                physical: int = form.page_address(entry, level)
                return int(physical | address & form.offset_mask(entry, level))
            else:
                break
        raise drgn.FaultError("the page tables do not map it", address)

    def _table(self, table: int, level: int, address: int, window: Optional[Window]) -> Union[bytes, str]:
        """A table's content, or why it cannot be used."""
        form = self._form
        base = address & -(1 << form.shift(level) + form.index_bits(level)) & ALL
        key = (table, level, base)
        known = self._tables.get(key)
        if known is not None:
            return known
        found: Union[bytes, str]
        try:
            data: bytes = self._prog.read(table, form.table_size(level), True)
        except READ_ERRORS:
            found = MISSING
        else:
            found = data
            if window:
                found = judge(form, window, entries_of(form, data), level, base) or data
        if self._keep:
            if len(self._tables) >= _CACHED_TABLES:
                self._tables.clear()
            self._tables[key] = found
        return found


def _memory(source: Source) -> Optional[AddressRange]:
    """Physical addresses from the first to the last RAM in the source; None if it does not say."""
    ram = [(s.paddr, s.paddr + s.memsz - 1) for s in source.segments if s.memsz and s.paddr + s.memsz <= ALL]
    return AddressRange(min(ram)[0], max(end for _, end in ram)) if ram else None


def _by_rule(address: int, window: Optional[Window], why: str) -> int:
    """The physical address according to the window's rule, for addresses whose table cannot be used."""
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
