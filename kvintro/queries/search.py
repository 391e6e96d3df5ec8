# SPDX-License-Identifier: LGPL-2.1-or-later
"""Finds values, strings and pointers in memory. drgn compares; this counts what drgn cannot read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Callable, Iterable, Iterator, List, Optional, Sequence, Tuple

import drgn

from kvintro.errors import NotInDump, Unavailable, UsageError
from kvintro.kernels import Kernel, Region
from kvintro.model import ALL, AddressRange, Placement
from kvintro.paging import LEVEL_MASK, LEVEL_SHIFT, MAPPED, NONZERO, REPEATED, Ranges
from kvintro.queries.memory import WORD, Space
from kvintro.queries.names import region_named
from kvintro.queries.placements import own_parts
from kvintro.readers.memory import SYSTEM_RAM, Physical
from kvintro.text import size_text

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray

    U64 = NDArray[numpy.uint64]

#: Number of bytes to search at once.
CHUNK = 4 << 20
#: Longest match of a regular expression, in bytes, that is found at any position.
LONGEST_MATCH = 4 << 10
_LONGEST_STRING = 4 << 10
_MOST_PAGES = 1 << 24  # outside the direct map

#: (first address, last address)
Run = Tuple[int, int]
#: Passes chunks on and may show progress; its arguments are the chunks and their size in bytes.
Watch = Callable[[Iterable[Run], int], Iterable[Run]]


def unseen(chunks: Iterable[Run], size: int) -> Iterable[Run]:
    """Pass chunks on without showing progress."""
    return chunks


@dataclass(frozen=True)
class Pattern:
    """A pattern to search for.

    :ivar text: description to display.
    :ivar iterator: makes drgn's iterator over the matches.
    :ivar overlap: number of bytes before a chunk at which a match that reaches into it can begin.
    :ivar aligned: whether only addresses that are multiples of eight count.
    """

    text: str
    iterator: Callable[[drgn.Program], Any]
    overlap: int
    aligned: bool = False


def value_pattern(kernel: Kernel, value: int, aligned: bool) -> Pattern:
    """A number of eight bytes in the kernel's byte order."""
    if aligned:
        return Pattern(f"{value:016x}", lambda prog: prog.search_memory_u64(value), 0, True)
    data = value.to_bytes(WORD, kernel.form.byte_order)
    return Pattern(f"{value:016x}", lambda prog: prog.search_memory(data), WORD - 1)


def string_pattern(text: str, aligned: bool) -> Pattern:
    """A string in UTF-8.

    :raises UsageError: the string is empty or too long.
    """
    data = text.encode("utf-8", "surrogateescape")
    if not 0 < len(data) <= _LONGEST_STRING:
        raise UsageError(f"a string of {len(data)} bytes cannot be searched for", "give 1 to 4096 bytes")
    return Pattern(f'"{text}"', lambda prog: prog.search_memory(data), len(data) - 1, aligned)


def regex_pattern(prog: drgn.Program, text: str, aligned: bool) -> Pattern:
    """A PCRE2 regular expression over bytes. Matches of more than 4 KB may be split.

    :raises UsageError: the text is not a regular expression, or drgn was built without PCRE2.
    """
    data = text.encode("utf-8", "surrogateescape")
    try:
        prog.search_memory_regex(data)
    except Exception as error:  # drgn raises a plain Exception for errors of PCRE2
        raise UsageError(f"{text!r} cannot be used: {error}", "give a regular expression of PCRE2") from None
    return Pattern(f"/{text}/", lambda prog: prog.search_memory_regex(data), LONGEST_MATCH, aligned)


def pointer_pattern(start: int, size: int) -> Pattern:
    """Aligned words whose value is an address in a range.

    :param size: size of the range in bytes.
    """
    last = min(start + size - 1, ALL)
    text = f"pointers to {start:016x}" + (f"-{last:016x}" if last > start else "")
    return Pattern(text, lambda prog: prog.search_memory_u64((start, last)), 0, True)


@dataclass(frozen=True)
class Match:
    """A match: its address and its bytes."""

    address: int
    data: bytes


@dataclass
class Searched:
    """Progress of a search.

    :ivar done: number of bytes searched.
    :ivar missing: number of bytes that should be searched but are not in the source.
    :ivar stretches: number of ranges that these are in; :ivar:`first` is the first address of the first one.
    """

    done: int = 0
    missing: int = 0
    stretches: int = 0
    first: Optional[int] = None
    _end: Optional[int] = None

    def miss(self, start: int, end: int) -> None:
        """Count a range, both ends inclusive, that is not in the source."""
        self.missing += end - start + 1
        if self._end is None or start != self._end + 1:
            self.stretches += 1
        self.first = start if self.first is None else self.first
        self._end = end


class Search:
    """One search.

    :param space: address space to search.
    :param runs: addresses to search, ascending and without overlaps; see :func:`runs_of`.
    :param gaps: addresses that are known not to be in the source.
    :ivar searched: progress.
    :ivar live: whether the kernel is running.
    """

    def __init__(self, space: Space, pattern: Pattern, runs: Sequence[Run], gaps: Sequence[Run] = ()) -> None:
        self._space = space
        self._pattern = pattern
        self._runs = runs
        self.total = sum(end - start + 1 for start, end in (*runs, *gaps))
        self.searched = Searched()
        for start, end in gaps:
            self.searched.miss(start, end)
        self.live = space.kernel.source.live
        self._prog = space.kernel.prog if space.physical else _program_of(space)
        # First address of the memory that was read without a gap up to the current position.
        self._from = self._behind = self._last = -1

    def matches(self, watch: Watch = unseen) -> Iterator[Match]:
        """Yield the matches in the order of the runs."""
        held: Optional[Match] = None  # ends at the end of a part, and may continue after it
        for start, end in watch(_chunks(self._runs), self.total):
            for match in self._in_chunk(start, end):
                if held is not None and match.address > held.address:
                    yield held
                held = None
                if match.address + len(match.data) <= end:
                    yield match
                else:
                    held = match
        if held is not None:
            yield held

    def _in_chunk(self, start: int, end: int) -> Iterator[Match]:
        # Matches found before the fault are not yielded again.
        self._last = -1
        try:
            yield from self._in(start, end)
        except drgn.FaultError:
            for low, high in self._readable(start, end):
                yield from self._in_part(low, high)

    def _in_part(self, start: int, end: int) -> Iterator[Match]:
        try:
            yield from self._in(start, end)
        except drgn.FaultError:  # the running kernel unmapped it
            self.searched.miss(start, end)

    def _in(self, start: int, end: int) -> Iterator[Match]:
        """Yield matches that reach into a range and do not extend beyond its end.

        :raises drgn.FaultError: not all of the range can be read.
        """
        first = start if start != self._behind else self._from
        low = max(first, start - self._pattern.overlap)
        iterator = self._pattern.iterator(self._prog)
        iterator.set_address_range(low, end, physical=self._space.physical)
        for match in iterator:
            place, what = match if isinstance(match, tuple) else (match, None)
            data = self._data(place, what)
            if place <= self._last or place + len(data) <= start:
                continue
            self._last = place
            if not (self._pattern.aligned and place % WORD):
                yield Match(place, data)
        self.searched.done += end - start + 1
        self._from, self._behind = first, end + 1

    def _data(self, place: int, what: Any) -> bytes:
        """The bytes of a match: drgn returns the value of a number, and nothing for a string."""
        if isinstance(what, bytes):
            return what
        if isinstance(what, int):
            return what.to_bytes(WORD, self._space.kernel.form.byte_order)
        return self._space.read(place, self._pattern.overlap + 1)

    def _readable(self, start: int, end: int) -> Iterator[Run]:
        """The readable parts of a chunk; counts the others."""
        page = self._space.kernel.form.page_size
        low = None
        for part, last, good in self._halves(start, end, page):
            if good:
                low = part if low is None else low
                continue
            if low is not None:
                yield low, part - 1
                low = None
            self.searched.miss(part, last)
        if low is not None:
            yield low, end

    def _halves(self, start: int, end: int, page: int) -> Iterator[Tuple[int, int, bool]]:
        """Bisect a range into parts: (first address, last address, whether it can be read)."""
        try:
            self._space.read(start, end - start + 1)
        except NotInDump:
            middle = (start + end + 1) // 2 // page * page
            if not start < middle <= end:
                yield start, end, False
                return
            yield from self._halves(start, middle - 1, page)
            yield from self._halves(middle, end, page)
        else:
            yield start, end, True


def _chunks(runs: Iterable[Run]) -> Iterator[Run]:
    for start, end in runs:
        for low in range(start // CHUNK * CHUNK, end + 1, CHUNK):
            yield max(low, start), min(low + CHUNK - 1, end)


def _program_of(space: Space) -> drgn.Program:
    """Return a program whose memory is an address space.

    drgn's own search does not read memory of processes. In a kdump it translates addresses outside the direct
    map by the rule of the direct map.
    """

    def read(address: int, count: int, offset: int, physical: bool) -> bytes:
        try:
            return space.read(address, count)
        except NotInDump as error:
            raise drgn.FaultError(error.what, address) from None

    prog = drgn.Program(space.kernel.prog.platform)
    half = space.kernel.form.kernel if space.pid is None else space.kernel.form.user
    prog.add_memory_segment(half.start, half.size, read, False)
    return prog


# What to search


def runs_of(space: Space, regions: Sequence[str]) -> Tuple[List[Run], List[Run], List[str]]:
    """(addresses to search, addresses that are known not to be in the source, notes).

    In the kernel's own space each page of memory is searched once, at its most informative address: in the
    direct map only pages that are mapped nowhere else.

    :param regions: keys of the regions to search; empty for all.
    :raises Unavailable: the source does not say where they are.
    """
    kernel = space.kernel
    if space.physical:
        return (*_split_by_segments(kernel, _ram(kernel)), [])
    notes: List[str] = []
    pages = _Pages(kernel, space.translator.root.table, _ram(kernel), notes)
    if space.pid is not None:
        user = kernel.form.user
        ranges = kernel.tree(space.translator.root.table).ranges(user.start, user.end)
        runs = pages.once(ranges) + pages.kept(ranges)
    elif regions:
        parts = [part for key in regions for part in own_parts(kernel, region_named(kernel, key))]
        runs = []
        for part in (part for part in parts if part.start in kernel.form.kernel):
            ranges = kernel.kernel_ranges.clip(part.start, part.end)
            linear = kernel.regions.direct_map.claimed(kernel, kernel.place("direct_map"))
            runs += pages.linear(ranges) if linear and part.overlaps(linear) else pages.once(ranges)
    else:
        runs = _everything(kernel, pages, notes)
    if pages.outside:
        size = size_text(pages.outside)
        notes.append(f"{size} mapped outside of RAM (devices, firmware) are not searched")
    return _joined(sorted(runs)), [], notes


def _ram(kernel: Kernel) -> List[Run]:
    found = [r for r in Physical(kernel).resources if r.name == SYSTEM_RAM]
    if found:
        return _joined((r.start, r.end) for r in sorted(found, key=lambda r: r.start))
    try:
        return [(0, (kernel.max_pfn.value << kernel.page_shift) - 1)]
    except Unavailable:
        if kernel.source.held is None:
            raise
        # What the dump has, or excludes.
        return _joined(sorted((one.start, one.end - 1) for one in kernel.source.held()))


def _joined(runs: Iterable[Run]) -> List[Run]:
    """Merge ascending runs that touch or overlap."""
    out: List[Run] = []
    for start, end in runs:
        if out and start <= out[-1][1] + 1:
            out[-1] = out[-1][0], max(end, out[-1][1])
        else:
            out.append((start, end))
    return out


def _split_by_segments(kernel: Kernel, runs: Sequence[Run]) -> Tuple[List[Run], List[Run]]:
    """The parts of runs that are in segments of the source, and the others, which drgn skips silently."""
    places = [(s.paddr, s.memsz) for s in kernel.source.segments if s.memsz]
    have = _joined((start, start + size - 1) for start, size in sorted(places))
    if not have:
        return list(runs), []
    inside: List[Run] = []
    gaps: List[Run] = []
    for start, end in runs:
        cursor = start
        for low, high in have:
            if high < cursor or low > end:
                continue
            if low > cursor:
                gaps.append((cursor, low - 1))
            inside.append((max(low, cursor), min(high, end)))
            cursor = high + 1
        if cursor <= end:
            gaps.append((cursor, end))
    return inside, gaps


def _everything(kernel: Kernel, pages: _Pages, notes: List[str]) -> List[Run]:
    """Addresses that cover each page of memory once."""
    direct = kernel.place("direct_map").range
    shared = [direct]
    for region in kernel.regions:
        place = kernel.locate(region)
        if isinstance(place, Placement) and _shares_memory(kernel, region):
            shared.append(place.range)
            notes.append(f"{region.name}: not searched; --in {region.key} does")
    half = kernel.form.kernel
    runs: List[Run] = []
    for start, end in _without(half.start, half.end, shared):
        runs += pages.once(kernel.kernel_ranges.clip(start, end))
    return runs + pages.linear(kernel.kernel_ranges.clip(direct.start, direct.end))


def _shares_memory(kernel: Kernel, region: Region) -> bool:
    """Whether a region maps the same pages again and again, or may do so."""
    try:
        return region.own_memory(kernel) is not None
    except Unavailable:
        return True


def _without(start: int, end: int, others: Sequence[AddressRange]) -> Iterator[Run]:
    """The parts of a range outside some other ranges, which do not overlap."""
    for other in sorted(others, key=lambda other: other.start):
        if other.end < start or other.start > end:
            continue
        if other.start > start:
            yield start, other.start - 1
        start = other.end + 1
    if start <= end:
        yield start, end


class _Pages:
    """Finds addresses of RAM, once for each page.

    :param ram: runs of physical addresses, ascending.
    :ivar outside: number of mapped bytes that are not RAM.
    """

    def __init__(self, kernel: Kernel, root: int, ram: Sequence[Run], notes: List[str]) -> None:
        import numpy

        self._kernel = kernel
        self._root = root
        self._notes = notes
        self._ram = ram
        self._left = _MOST_PAGES
        self._seen: U64 = numpy.empty(0, numpy.uint64)
        self.outside = 0

    def once(self, ranges: Ranges) -> List[Run]:
        """The mapped parts whose memory was not seen before; marks it as seen."""
        out: List[Run] = []
        for start, end, key in ranges.select(MAPPED):
            # Everything below a table that was seen before was seen too.
            if not key & REPEATED and self._take(start, end):
                addresses = self._pages_of(start, end)
                out += self._new(addresses, self._kernel.translate_array(addresses, self._root)[0])
        return out

    def kept(self, ranges: Ranges) -> List[Run]:
        """As :meth:`once`, for pages that a process has and must not access (PROT_NONE, NUMA hints)."""
        import numpy

        form = self._kernel.form
        out: List[Run] = []
        for start, end, key in ranges.select(NONZERO):
            level = (key & LEVEL_MASK) >> LEVEL_SHIFT
            if key & (MAPPED | REPEATED) or not form.holds_page(key, level) or not self._take(start, end):
                continue
            addresses = self._pages_of(start, end)
            walk = self._kernel.walk_array(addresses, self._root)
            last = numpy.maximum(walk.depths, 1).astype(numpy.intp) - 1
            entries = walk.values[numpy.arange(len(addresses)), last]
            good = form.holds_page(entries, level)
            addresses, entries = addresses[good], entries[good]
            inside = addresses & numpy.uint64((1 << form.shift(level)) - 1)
            out += self._new(addresses, form.held_address(entries, level) + inside)
        return out

    def _take(self, start: int, end: int) -> bool:
        """Whether the pages of a range may still be searched."""
        count = (end - start + 1) >> self._kernel.page_shift
        if count > self._left:
            self._notes.append(f"{start:016x}-{end:016x}: too many pages are mapped, not searched there")
            return False
        self._left -= count
        return True

    def _pages_of(self, start: int, end: int) -> U64:
        """The addresses of the pages of a range."""
        import numpy

        size, count = self._kernel.form.page_size, (end - start + 1) >> self._kernel.page_shift
        addresses: U64 = numpy.uint64(start) + numpy.arange(count, dtype=numpy.uint64) * numpy.uint64(size)
        return addresses

    def _new(self, addresses: U64, physical: U64) -> List[Run]:
        """The pages whose memory was not seen before; marks it as seen."""
        import numpy

        if not len(addresses):
            return []
        size, count = self._kernel.form.page_size, len(addresses)
        starts, ends = (numpy.array(edge, numpy.uint64) for edge in zip(*self._ram))
        at = numpy.searchsorted(starts, physical, "right")
        good = (at > 0) & (physical <= ends[at - 1])
        first = numpy.zeros(count, bool)
        first[numpy.unique(physical, return_index=True)[1]] = True
        new = first & good & ~numpy.isin(physical, self._seen)
        self._seen = numpy.union1d(self._seen, physical)
        self.outside += size * int((~good).sum())
        return _joined((int(a), int(a) + size - 1) for a in addresses[new])

    def linear(self, ranges: Ranges) -> List[Run]:
        """The mapped parts of the direct map whose memory was not seen before."""
        import numpy

        size, offset = self._kernel.form.page_size, self._kernel.linear_offset.value
        places = self._seen + numpy.uint64(offset)
        places.sort()
        ram = [(start + offset & ALL, end + offset & ALL) for start, end in self._ram]
        out: List[Run] = []
        for start, end in _joined((low, high) for low, high, _ in ranges.select(MAPPED)):
            for low, high in ((max(start, a), min(end, b)) for a, b in ram if a <= end and start <= b):
                first, last = numpy.searchsorted(places, numpy.array([low, high], numpy.uint64))
                taken = _joined((int(a), int(a) + size - 1) for a in places[first:last])
                out += _without(low, high, [AddressRange(a, b) for a, b in taken])
        return out
