# SPDX-License-Identifier: LGPL-2.1-or-later
"""Page frames that have a struct page, and reading those struct pages in bulk.

Memory comes in sections (128 MB on x86-64); a section that was plugged in later comes in subsections (2 MB).
The struct pages of a section are usually one large page of the vmemmap, which is read in one piece by its
physical address. Otherwise (huge pages whose tails share struct pages, memory that was plugged in) they are
read piece by piece.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, FrozenSet, Iterator, List, NamedTuple, Optional, Sequence, Set, Tuple

from kvintro.arch.data import UINT64
from kvintro.errors import NotInDump, Unavailable
from kvintro.kernels import Kernel
from kvintro.model import ALL
from kvintro.paging import MAPPED as TABLE_MAPPED
from kvintro.paging.bulk import MAPPED, NOT_IN_DUMP
from kvintro.queries.pages.format import PageFormat
from kvintro.readers.sections import SUBSECTION_SHIFT, SectionForm, section_form, section_table
from kvintro.regions.vmemmap import REGION as VMEMMAP

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray

# include/linux/mmzone.h: macros until 6.1, an enumeration since then; the numbers are the same.
_HAS_MEM_MAP_BIT, _IS_ONLINE_BIT, _IS_EARLY_BIT = 1, 2, 3
_MAX_SECTIONS = 1 << 25  # MAX_PHYSMEM_BITS - SECTION_SIZE_BITS with 5 levels
_BATCH = 32  # sections whose addresses are translated together
_TOGETHER = 1 << 16  # page frames whose struct pages are read together: 4 MB on most kernels


@dataclass(frozen=True)
class Sections:
    """Page frames with struct pages.

    :ivar ranges: (first, last + 1) of each range, ascending; none crosses the end of a section.
    :ivar pages_per_section: page frames of a section.
    :ivar missing: number of tables and sections that are not in the dump.
    :ivar offline: first page frames of the ranges whose section is not online: memory of devices, and memory
        that was plugged in but not put online.
    :ivar mapped_only: why the sections could not be read; then ``ranges`` are the page frames whose struct
        pages are mapped. "" if they could be read.
    :ivar whole: why page frames that are not memory are included, "" if none are.
    """

    ranges: Tuple[Tuple[int, int], ...]
    pages_per_section: int
    missing: int = 0
    offline: FrozenSet[int] = frozenset()
    mapped_only: str = ""
    whole: str = ""

    @property
    def total(self) -> int:
        """Number of page frames."""
        return sum(high - low for low, high in self.ranges)

    @property
    def end(self) -> int:
        """The highest page frame, plus one."""
        return self.ranges[-1][1] if self.ranges else 0

    def clip(self, low: int, high: int) -> Sections:
        """Keep the ranges that overlap page frames ``low`` to ``high`` - 1; ranges are not cut."""
        ranges = tuple(r for r in self.ranges if r[0] < high and low < r[1])
        return dataclasses.replace(self, ranges=ranges)

    def holes(self) -> int:
        """Number of page frames without a struct page below the highest that has one."""
        return self.end - self.total


def sections_of(kernel: Kernel) -> Sections:
    """Find the page frames of this kernel, in subsections: the rule of /proc/kpageflags (pfn_to_online_page).

    Device memory is included. Struct pages of a section beyond its memory are not: they are meaningless.

    :raises Unavailable: the source does not contain them.
    """
    try:
        return _sections_of(kernel)
    except NotInDump as error:
        return _mapped(kernel, error.what)
    except (LookupError, AttributeError, ValueError, TypeError) as error:
        raise Unavailable(f"which page frames exist cannot be read: {error}") from error


def _sections_of(kernel: Kernel) -> Sections:
    import numpy

    form = section_form(kernel)
    size, map_at, usage_at = form.size, form.map, form.usage
    bits = kernel.section_size_bits.value
    if not SUBSECTION_SHIFT <= bits <= 40 or not 0 < size <= kernel.form.page_size:
        raise Unavailable(f"invalid sections: 2^{bits} bytes each, described by {size} bytes")
    pages = 1 << (bits - kernel.page_shift)
    table = section_table(kernel)
    per_root = kernel.form.page_size // size
    roots = kernel.number("LENGTH(mem_section)").value
    if not 0 < roots <= _MAX_SECTIONS:
        raise Unavailable(f"invalid number of tables of sections: {roots}")
    pointers = numpy.frombuffer(kernel.read(table, 8 * roots), UINT64)
    ranges: List[Tuple[int, int]] = []
    missing = 0
    has_map = 1 << _bit(kernel, "SECTION_HAS_MEM_MAP_BIT", _HAS_MEM_MAP_BIT)
    online = 1 << _bit(kernel, "SECTION_IS_ONLINE_BIT", _IS_ONLINE_BIT)
    early = 1 << _bit(kernel, "SECTION_IS_EARLY_BIT", _IS_EARLY_BIT)
    offline: Set[int] = set()
    seen: "set[int]" = set()
    for root in numpy.flatnonzero(pointers).tolist():
        address = int(pointers[root])
        if address in seen:
            continue  # each table has its own page
        seen.add(address)
        try:
            data = kernel.read(address, per_root * size)
        except NotInDump:
            missing += 1
            continue
        for i in range(per_root):
            value = int.from_bytes(data[i * size + map_at : i * size + map_at + 8], "little")
            if not value & has_map:
                continue
            first = (root * per_root + i) * pages
            known = len(ranges)
            usage = int.from_bytes(data[i * size + usage_at : i * size + usage_at + 8], "little")
            try:
                ranges.extend(_subsections(kernel, form, usage, first, pages))
            except NotInDump:
                # Sections present at boot have struct pages for all page frames, memory or not.
                if value & early:
                    ranges.append((first, first + pages))
                else:
                    missing += 1
            if not value & online:
                offline.update(low for low, _ in ranges[known:])
    return Sections(tuple(ranges), pages, missing, frozenset(offline), whole=form.lack)


def _mapped(kernel: Kernel, reason: str) -> Sections:
    """Page frames whose struct pages are mapped; used if the dump lacks the sections."""
    base, size, count = VMEMMAP.pages(kernel)
    where = kernel.place(VMEMMAP).range
    pages = 1 << (kernel.section_size_bits.value - kernel.page_shift)
    ranges: List[Tuple[int, int]] = []
    stretch = kernel.kernel_ranges.clip(where.start, base + size * count - 1 & ALL)
    for start, end, _ in stretch.select(TABLE_MAPPED):
        low, high = -(-(start - base & ALL) // size), ((end - base & ALL) + 1) // size
        while low < high:
            until = min(high, (low // pages + 1) * pages)
            ranges.append((low, until))
            low = until
    if not ranges:
        raise Unavailable(
            f"neither the memory sections nor the page tables of struct pages can be read: {reason}",
            "take or copy the dump again whole",
        )
    return Sections(tuple(ranges), pages, mapped_only=reason)


def _bit(kernel: Kernel, name: str, macro: int) -> int:
    try:
        return int(kernel.prog.constant(name))
    except LookupError:
        return macro


def _subsections(
    kernel: Kernel, form: SectionForm, usage: int, first: int, pages: int
) -> Iterator[Tuple[int, int]]:
    """Ranges of a section that are memory: include/linux/mmzone.h:pfn_section_valid.

    :raises NotInDump: the section's bitmap is not in the source.
    """
    if form.bitmap is None:
        yield first, first + pages
        return
    each = 1 << (SUBSECTION_SHIFT - kernel.page_shift)
    count = pages // each
    bitmap = int.from_bytes(kernel.read(usage + form.bitmap, -(-count // 64) * 8), "little")
    low = None
    for i in range(count + 1):
        if i < count and bitmap >> i & 1:
            low = i if low is None else low
        elif low is not None:
            yield first + low * each, first + i * each
            low = None


@dataclass(frozen=True)
class Piece:
    """Struct pages of consecutive page frames.

    :ivar state: ``read``, ``hole`` (not mapped) or ``missing`` (not in the dump).
    :ivar online: whether their section is online.
    """

    first: int
    count: int
    state: str
    data: bytes = b""
    online: bool = True


class _Part(NamedTuple):
    """The struct pages of a range of page frames.

    :ivar start: offset of the first one in the first page.
    :ivar size: bytes of all.
    :ivar physical: addresses of the pages.
    :ivar states: as :meth:`kvintro.paging.bulk.Bulk.translate` returns them.
    :ivar at: physical address of the first one if the pages are in one piece, else None.
    """

    low: int
    high: int
    start: int
    size: int
    physical: "NDArray[numpy.uint64]"
    states: "NDArray[numpy.uint8]"
    at: Optional[int]


class Reader:
    """Reads struct pages through the page tables of the vmemmap."""

    def __init__(self, kernel: Kernel, form: PageFormat) -> None:
        self._kernel = kernel
        self._form = form
        self._bulk = kernel.bulk(sound=True)
        self._shift, self._page = kernel.page_shift, kernel.form.page_size

    def pieces(self, sections: Sections) -> Iterator[Piece]:
        """All struct pages of the sections, in order; those of neighbours that are in one piece together."""
        for i in range(0, len(sections.ranges), _BATCH):
            batch = sections.ranges[i : i + _BATCH]
            offline = [(low, high) for low, high in batch if low in sections.offline]
            for piece in self._batch(batch, sections.offline):
                online = not any(low <= piece.first < high for low, high in offline)
                yield piece if online else dataclasses.replace(piece, online=False)
                del piece  # see _together()

    def read(self, pfn: int, count: int) -> "bytes | None":
        """Read the struct pages of a few page frames; None if they cannot be read."""
        start, size = self._form.address(pfn), count * self._form.size
        if start % self._page + size <= self._page and not self._kernel.source.broken_tables:
            # A single walk takes less time than a batch.
            physical = self._kernel.walk(start).physical
            try:
                return None if physical is None else self._kernel.read_physical(physical, size)
            except NotInDump:
                return None
        for piece in self._batch([(pfn, pfn + count)]):
            return piece.data if piece.state == "read" and piece.count == count else None
        return None

    def _batch(
        self, ranges: Sequence[Tuple[int, int]], offline: FrozenSet[int] = frozenset()
    ) -> Iterator[Piece]:
        """The struct pages of some ranges.

        :param offline: first page frames of ranges that are not online.
        """
        together: List[_Part] = []
        for part in self._parts(ranges):
            if together:
                first, last = together[0], together[-1]
                follows = last.at is not None and part.at == last.at + last.size and part.low == last.high
                alike = (first.low in offline) == (part.low in offline)
                if not (follows and alike and part.high - first.low <= _TOGETHER):
                    yield from self._together(together)
                    together = []
            together.append(part)
        yield from self._together(together)

    def _parts(self, ranges: Sequence[Tuple[int, int]]) -> Iterator[_Part]:
        import numpy

        form = self._form
        spans = []
        for low, high in ranges:
            start, end = form.address(low), form.address(high)
            first = start & ~(self._page - 1)
            spans.append((start, end, first, (end - first + self._page - 1) >> self._shift))
        addresses = numpy.concatenate(
            [
                numpy.uint64(first) + (numpy.arange(count, dtype=numpy.uint64) << numpy.uint64(self._shift))
                for _, _, first, count in spans
            ]
        )
        result = self._bulk.translate(addresses)
        at = 0
        for (low, high), (start, end, first, count) in zip(ranges, spans):
            physical, states = result.physical[at : at + count], result.states[at : at + count]
            at += count
            whole = (states == MAPPED).all() and (numpy.diff(physical) == numpy.uint64(self._page)).all()
            where = int(physical[0]) + start - first if whole else None
            yield _Part(low, high, start - first, end - start, physical, states, where)

    def _together(self, parts: Sequence[_Part]) -> Iterator[Piece]:
        """Struct pages that follow each other in memory, at once if all of them are available."""
        first, last = parts[0], parts[-1]
        if first.at is not None:
            try:
                data = self._kernel.read_physical(first.at, sum(part.size for part in parts))
                piece = Piece(first.low, last.high - first.low, "read", data)
            except NotInDump:
                if len(parts) > 1:
                    for part in parts:
                        yield from self._together([part])
                    return
            else:
                del data
                yield piece
                # The next piece takes the memory of this one, which is in the processor's cache.
                del piece
                return
        pages = self._pages(first.physical, first.states)
        yield from self._split(first.low, first.high, first.start, pages)

    def _pages(
        self, physical: "NDArray[numpy.uint64]", states: "NDArray[numpy.uint8]"
    ) -> Iterator[Tuple[str, int, bytes]]:
        """(state, number of pages, content) of pages of the vmemmap, adjacent similar ones together."""
        import numpy

        breaks = numpy.flatnonzero(
            (numpy.diff(physical) != numpy.uint64(self._page)) | (states[1:] != states[:-1])
        )
        bounds = [0, *(breaks + 1).tolist(), len(physical)]
        shared: "dict[int, Tuple[str, int, bytes]]" = {}
        for a, b in zip(bounds, bounds[1:]):
            state = int(states[a])
            if state != MAPPED:
                yield ("missing" if state == NOT_IN_DUMP else "hole"), b - a, b""
                continue
            if b - a == 1:
                # Tails of huge pages share a page of struct pages, which is read only once.
                address = int(physical[a])
                if address not in shared:
                    shared[address] = next(self._content(address, 1))
                yield shared[address]
            else:
                yield from self._content(int(physical[a]), b - a)

    def _content(self, address: int, count: int) -> Iterator[Tuple[str, int, bytes]]:
        """Read consecutive physical pages at once if all of them are available, else page by page."""
        try:
            yield "read", count, self._kernel.read_physical(address, count << self._shift)
        except NotInDump:
            if count == 1:
                yield "missing", 1, b""
                return
            for i in range(count):
                yield from self._content(address + (i << self._shift), 1)

    def _split(
        self, low: int, high: int, start: int, pages: Iterator[Tuple[str, int, bytes]]
    ) -> Iterator[Piece]:
        """Split pages of the vmemmap into struct pages; one that spans two pages takes the worse state."""
        size = self._form.size
        content = bytearray()
        marks: List[Tuple[int, str]] = []  # (end in bytes, state)
        for state, count, data in pages:
            content += data if state == "read" else bytes(count << self._shift)
            marks.append((len(content), state))
        rank = {"read": 0, "missing": 1, "hole": 2}
        pieces: List[Tuple[int, int, str]] = []
        mark = 0
        cursor = low
        while cursor < high:
            at = start + (cursor - low) * size
            while marks[mark][0] <= at:
                mark += 1
            end, state = marks[mark]
            whole = min((end - at) // size, high - cursor)
            if whole == 0:
                other = marks[mark + 1][1] if mark + 1 < len(marks) else state
                state, whole = max(state, other, key=rank.__getitem__), 1
            if pieces and pieces[-1][2] == state:
                first, count, _ = pieces.pop()
                pieces.append((first, count + whole, state))
            else:
                pieces.append((cursor, whole, state))
            cursor += whole
        for first, count, state in pieces:
            at = start + (first - low) * size
            yield Piece(
                first, count, state, bytes(content[at : at + count * size]) if state == "read" else b""
            )
