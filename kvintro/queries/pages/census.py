# SPDX-License-Identifier: LGPL-2.1-or-later
"""Counts page frames by type, zone, order, slab cache and flags."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Callable, Dict, List, Optional, Tuple

from kvintro.arch.data import UINT32
from kvintro.errors import Unavailable
from kvintro.kernels import Kernel
from kvintro.model import ALL
from kvintro.queries.pages.by_vmcoreinfo import format_by_vmcoreinfo
from kvintro.queries.pages.format import PageFormat, format_by_types, zero_pages
from kvintro.queries.pages.meaning import TYPES, Meaning
from kvintro.queries.pages.runs import (
    IN_FREE_BLOCK,
    ORDER_MASK,
    ORDER_SHIFT,
    TAIL,
    Decoder,
    Interned,
    Runs,
    cut,
    distinct,
)
from kvintro.queries.pages.sections import Piece, Reader, Sections, sections_of
from kvintro.readers.kfence import KfencePool, known_pool

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray

#: Called with the number of page frames counted since the last call.
Progress = Callable[[int], None]

_CACHE_LIMIT = 1 << 16  # slab caches; a kernel has a few hundred
_NO_HEAD = 0xFFFFF  # instead of the number of a state
#: A type's number is its index in this.
TYPE_NAMES = tuple(TYPES)
TYPE_NUMBERS = {name: number for number, name in enumerate(TYPE_NAMES)}


@dataclass(frozen=True)
class Group:
    """Pages that do not differ in anything that is counted.

    :ivar node: NUMA node; None if the struct page does not say.
    :ivar order: order of the compound page or free block.
    :ivar first: whether these are first pages of such blocks; single pages are.
    :ivar kpageflags: flags as in /proc/kpageflags.
    """

    type: str
    node: Optional[int]
    zone: str
    order: int
    first: bool
    kpageflags: int


@dataclass
class CacheUse:
    """Pages and objects of a slab cache, summed over its slabs.

    :ivar objects: number of objects that the slabs have room for.
    :ivar in_use: objects that are not free by the slabs' own count, including those kept ready for CPUs.
    """

    slabs: int = 0
    pages: int = 0
    objects: int = 0
    in_use: int = 0


@dataclass
class PageCensus:
    """Counts of page frames.

    :ivar total: page frames with a struct page (``pfn_valid()``), counted or not.
    :ivar holes: page frames below the highest that have none.
    :ivar unmapped: of ``total``, page frames whose struct page is not mapped.
    :ivar missing: of ``total``, page frames whose struct page is not in the dump.
    :ivar groups: pages by all that is counted.
    :ivar caches: by address of the struct kmem_cache.
    :ivar counts_objects: whether slabs count their objects at the place that this kernel's types give.
    :ivar fenced: slab pages of KFENCE, which belong to no cache.
    :ivar cell_pages: page frames per cell of the picture.
    :ivar cells: page frames by cell, and by type in the order of :data:`TYPES`; empty cells are omitted.
    """

    total: int
    holes: int
    unmapped: int = 0
    missing: int = 0
    groups: Counter[Group] = field(default_factory=Counter)
    caches: Dict[int, CacheUse] = field(default_factory=lambda: defaultdict(CacheUse))
    fenced: int = 0
    cell_pages: int = 1
    cells: Dict[int, "NDArray[numpy.int64]"] = field(default_factory=dict)
    limited: bool = False
    counts_objects: bool = True

    def by(self, key: Callable[[Group], Any]) -> Counter[Any]:
        """Page frames by a key computed from each group."""
        out: Counter[Any] = Counter()
        for group, pages in self.groups.items():
            out[key(group)] += pages
        return out

    def cell_types(self, cell: int) -> Dict[str, int]:
        """Pages by type in a cell of the picture."""
        return {TYPE_NAMES[i]: int(n) for i, n in enumerate(self.cells[cell].tolist()) if n}


def page_format(kernel: Kernel) -> PageFormat:
    """Return the layout of ``struct page`` on this kernel, from its types or else from VMCOREINFO.

    :raises Unavailable: neither is sufficient.
    """
    return format_by_vmcoreinfo(kernel) if kernel.source.types == "none" else format_by_types(kernel)


class Pages:
    """All struct pages of a kernel.

    :raises Unavailable: their layout is unknown, or there are none.
    """

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.form: PageFormat = page_format(kernel)
        self.meaning = Meaning(self.form)
        self.reader = Reader(kernel, self.form)
        zero, huge_zero = zero_pages(kernel)
        #: Why zero pages cannot be recognised, "" if they can.
        self.zero_unknown = ""
        if zero is None and (kernel.code_only or kernel.source.symbols == "none"):
            self.zero_unknown = f"the zero pages are not known: {kernel.nameless('zero_pfn').what}"
        self.decoder = Decoder(self.form, zero=zero, huge_zero=huge_zero, peek=self._peek)

    @cached_property
    def sections(self) -> Sections:
        """Which page frames have a struct page.

        :raises Unavailable: the source does not contain it.
        """
        return sections_of(self.kernel)

    def _peek(self, pfn: int) -> Optional[bytes]:
        return self.reader.read(pfn, 2)

    def node_of(self, place: int) -> Optional[int]:
        """The node in a run's ``places``."""
        return None if place < 0 else place >> self.form.zone_bits

    def zone_of(self, place: int) -> str:
        """Name of the zone in a run's ``places``."""
        return "" if place < 0 else self.form.zone_name(place & (1 << self.form.zone_bits) - 1)

    @cached_property
    def fence(self) -> Tuple[Optional[KfencePool], str]:
        """KFENCE's pool, whose pages look like slabs but are not; and why the pool is unknown, or ""."""
        return known_pool(self.kernel)

    @cached_property
    def page_limit(self) -> int:
        """Maximum plausible number of struct pages: they must fit into the machine's own memory."""
        if self.kernel.source.size:
            # A compressed dump is rarely smaller than a hundredth of the memory in it.
            return self.kernel.source.size * 1024 // self.form.size
        try:
            return (self.kernel.max_pfn.value << self.kernel.page_shift) // self.form.size
        except Unavailable:
            return 1 << 40

    def empty_census(self, low: int, high: int, cells: int) -> PageCensus:
        """A census of some page frames before any is counted."""
        sections = self.sections.clip(low, high)
        ranges = [(max(a, low), min(b, high)) for a, b in sections.ranges]
        total = sum(b - a for a, b in ranges)
        span = ranges[-1][1] - ranges[0][0] if ranges else 0
        # Holes below the first page frame of the range do not count; a whole census starts at 0.
        holes = max(0, (ranges[-1][1] - low if ranges else 0) - total)
        counted = PageCensus(total, holes)
        while counted.cell_pages * cells < span:
            counted.cell_pages <<= 1
        return counted

    def census(
        self,
        low: int = 0,
        high: int = 1 << 52,
        *,
        cells: int = 1024,
        progress: Progress = lambda pages: None,
        also: Callable[[Piece, Optional[Runs]], None] = lambda piece, runs: None,
        share: Tuple[int, int] = (0, 1),
    ) -> PageCensus:
        """Count page frames.

        :param low: first page frame to count.
        :param high: last page frame to count, plus one.
        :param cells: approximate number of cells of the picture.
        :param also: called with each piece, and with its runs if it could be read; pieces may extend beyond
            ``low`` and ``high``.
        :param share: number of the first section to count, and the distance to the next one.
        :raises Unavailable: the source does not say which page frames exist.
        """
        sections = self.sections.clip(low, high)
        first, step = share
        sections = replace(sections, ranges=sections.ranges[first::step])
        counted = self.empty_census(low, high, cells)
        counter = _Counter(self, counted, low, high)
        seen = 0
        for piece in self.reader.pieces(sections):
            seen += piece.count
            if seen > self.page_limit:
                counted.limited = True
                break
            runs = None
            if piece.state == "read":
                every = counted.cell_pages if counted.cell_pages < piece.count else 0
                runs = self.decoder.decode(piece.data, piece.first, every=every, online=piece.online)
                counter.add(runs)
            else:
                inside = min(piece.first + piece.count, high) - max(piece.first, low)
                counter.absent(piece.first, max(inside, 0), piece.state)
            also(piece, runs)
            progress(piece.count)
            del piece, runs  # before the next piece is read, see Reader
        counter.finish()
        return counted


class _Kinds:
    """Numbers the distinct combinations of state, head and place, and determines the type of each.

    :ivar types: number of the type by number of the combination.
    """

    def __init__(self, pages: Pages) -> None:
        import numpy

        self._pages = pages
        self.states = Interned()
        self.groups = Interned()
        self.types = numpy.zeros(1024, numpy.int64)
        self._known = 0

    def ids(
        self, states: "NDArray[numpy.uint64]", heads: "NDArray[numpy.uint64]", places: "NDArray[numpy.int64]"
    ) -> "NDArray[numpy.int64]":
        """The number of each run's combination."""
        import numpy

        own = self.states.ids(states)
        head = numpy.full(len(own), _NO_HEAD)
        tails = numpy.flatnonzero(heads)
        head[tails] = self.states.ids(heads[tails])
        packed = own << 40 | head << 20 | (places & 0xFFFFF)
        groups = self.groups.ids(packed.astype(numpy.uint64))
        if len(self.groups.values) > self._known:
            self._learn()
        return groups

    def _learn(self) -> None:
        """Determine the type of each new combination."""
        import numpy

        wanted = len(self.groups.values)
        while len(self.types) <= wanted:
            self.types = numpy.concatenate((self.types, numpy.zeros_like(self.types)))
        for i in range(self._known, wanted):
            state, head, _ = self.unpack(self.groups.values[i])
            self.types[i] = TYPE_NUMBERS[self._pages.meaning.type_of(state, head)]
        self._known = wanted

    def unpack(self, packed: int) -> Tuple[int, int, int]:
        """State, state of the head, and place of a combination."""
        values = self.states.values
        own, head, place = packed >> 40, packed >> 20 & 0xFFFFF, packed & 0xFFFFF
        if place == 0xFFFFF:
            place = -1
        return (
            values[own] if own < len(values) else 0,
            values[head] if head < len(values) else 0,
            place,
        )


class _Counter:
    """Counts the pages of runs."""

    def __init__(self, pages: Pages, census: PageCensus, low: int, high: int) -> None:
        import numpy

        self._pages = pages
        self._census = census
        self._low = low
        self._high = high
        self._kinds = _Kinds(pages)
        self._counts = numpy.zeros(1024, numpy.int64)
        census.counts_objects = bool(pages.form.slab_counts)

    def add(self, runs: Runs) -> None:
        """Count a block's runs."""
        import numpy

        starts, lengths = runs.starts, runs.lengths
        states, heads, places = runs.states, runs.heads, runs.places
        if runs.first < self._low or runs.first + len(runs.rows) > self._high:
            at, lengths = cut(runs, self._low, self._high)
            starts, states, heads, places = starts[at], states[at], heads[at], places[at]
        groups = self._kinds.ids(states, heads, places)
        if len(self._counts) < len(self._kinds.types):
            more = numpy.zeros(len(self._kinds.types) - len(self._counts), numpy.int64)
            self._counts = numpy.concatenate((self._counts, more))
        if len(groups):
            weights = lengths.astype(float)
            sums = numpy.bincount(groups, weights)
            self._counts[: len(sums)] += sums.astype(numpy.int64)
            self._picture(starts + runs.first, weights, self._kinds.types[groups])
        self._slabs(runs, starts, states)

    def _picture(
        self, pfns: "NDArray[numpy.int64]", lengths: "NDArray[numpy.float64]", types: "NDArray[numpy.int64]"
    ) -> None:
        import numpy

        cells = pfns >> (self._census.cell_pages.bit_length() - 1)
        first = int(cells[0])
        width = len(TYPE_NAMES)
        index = (cells - first) * width + types
        rows = int(cells[-1]) - first + 1
        table = numpy.bincount(index, lengths, rows * width).astype(numpy.int64).reshape(rows, width)
        for i in numpy.flatnonzero(table.any(axis=1)).tolist():
            known = self._census.cells.get(first + i)
            self._census.cells[first + i] = table[i] if known is None else known + table[i]

    def _slabs(self, runs: Runs, starts: "NDArray[numpy.int64]", states: "NDArray[numpy.uint64]") -> None:
        import numpy

        slabs = numpy.flatnonzero(self._pages.decoder.slabs(states))
        if not len(slabs) or self._pages.form.slab_cache is None:
            return
        at = starts[slabs]
        pool, _ = self._pages.fence
        if pool is not None:
            kernel = self._pages.kernel
            low = (pool.start - kernel.linear_offset.value & ALL) >> kernel.page_shift
            low -= runs.first
            others = (at < low) | (at >= low + pool.frames)
            self._census.fenced += len(at) - int(others.sum())
            slabs, at = slabs[others], at[others]
        found = states[slabs]
        orders = (found & numpy.uint64(ORDER_MASK)) >> numpy.uint64(ORDER_SHIFT)
        orders[(found & numpy.uint64(self._pages.form.mask("head"))) == numpy.uint64(0)] = 0
        # A value that cannot be an order (of a damaged head) must not overflow.
        pages = numpy.int64(1) << numpy.minimum(orders, numpy.uint64(32)).astype(numpy.int64)
        caches = runs.rows["slab_cache"][at]
        pointers = distinct(caches)
        which = numpy.searchsorted(pointers, caches)
        sums = {"slabs": numpy.bincount(which), "pages": numpy.bincount(which, weights=pages)}
        words = runs.rows.view(UINT32).reshape(len(runs.rows), -1)
        for name, offset, shift, mask in self._pages.form.slab_counts:
            values = words[:, offset // 4][at] >> numpy.uint32(shift) & numpy.uint32(mask)
            sums[name] = numpy.bincount(which, weights=values)
        columns = {name: column.astype(numpy.int64).tolist() for name, column in sums.items()}
        for i, pointer in enumerate(pointers.tolist()):
            if pointer not in self._census.caches and len(self._census.caches) >= _CACHE_LIMIT:
                self._census.limited = True
                continue
            use = self._census.caches[pointer]
            for name, column in columns.items():
                setattr(use, name, getattr(use, name) + column[i])

    def absent(self, first: int, count: int, state: str) -> None:
        """Count page frames whose struct pages cannot be read."""
        if state == "hole":
            self._census.unmapped += count
            return
        self._census.missing += count
        self._census.groups[Group("not_in_dump", None, "", 0, True, 0)] += count

    def finish(self) -> None:
        """Convert the counted combinations into groups."""
        pages = self._pages
        for i, packed in enumerate(self._kinds.groups.values):
            state, head, place = self._kinds.unpack(packed)
            group = Group(
                type=TYPE_NAMES[int(self._kinds.types[i])],
                node=pages.node_of(place),
                zone=pages.zone_of(place),
                order=pages.meaning.order(state, head),
                first=not state & (TAIL | IN_FREE_BLOCK),
                kpageflags=pages.meaning.kpageflags(state, head),
            )
            self._census.groups[group] += int(self._counts[i])
        self._census.limited |= self._kinds.states.full or self._kinds.groups.full


class FrameTypes:
    """Types of page frames, from a snapshot of all struct pages."""

    def __init__(self, pages: Pages) -> None:
        import numpy

        self.pages = pages
        starts: List[Any] = []
        types: List[Any] = []
        kinds = _Kinds(pages)
        seen = 0
        for piece in pages.reader.pieces(pages.sections):
            seen += piece.count
            if seen > pages.page_limit:
                raise Unavailable("there are too many struct pages")
            if piece.state != "read":
                # Unmapped struct pages are not page frames, nor is anything after the piece.
                kind = TYPE_NUMBERS["not_in_dump"] if piece.state == "missing" else -1
                starts.append(numpy.array([piece.first, piece.first + piece.count], numpy.int64))
                types.append(numpy.array([kind, -1], numpy.int8))
                continue
            runs = pages.decoder.decode(piece.data, piece.first, online=piece.online)
            numbers = kinds.types[kinds.ids(runs.states, runs.heads, runs.places)].astype(numpy.int8)
            # If the next piece follows directly, the search finds its first run instead of this end.
            starts.append(numpy.append(runs.starts + piece.first, piece.first + piece.count))
            types.append(numpy.append(numbers, numpy.int8(-1)))
        self._starts = numpy.concatenate(starts) if starts else numpy.zeros(0, numpy.int64)
        self._types = numpy.concatenate(types) if types else numpy.zeros(0, numpy.int8)

    def numbers(self, frames: "NDArray[numpy.uint64]") -> "NDArray[numpy.int8]":
        """Numbers of the types; -1 for page frames without a struct page."""
        import numpy

        if not len(self._starts):
            return numpy.full(len(frames), -1, numpy.int8)
        wanted = numpy.minimum(frames, numpy.uint64(1 << 52)).astype(numpy.int64)
        at = numpy.searchsorted(self._starts, wanted, side="right") - 1
        found: "NDArray[numpy.int8]" = numpy.where(at >= 0, self._types[numpy.maximum(at, 0)], numpy.int8(-1))
        return found


def frame_types(kernel: Kernel) -> FrameTypes:
    """The types of all page frames of a kernel; for :meth:`Kernel.once`.

    :raises Unavailable: the struct pages cannot be found.
    """
    return FrameTypes(Pages(kernel))
