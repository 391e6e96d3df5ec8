# SPDX-License-Identifier: LGPL-2.1-or-later
"""Blocks of struct pages as runs of pages that are alike.

All that decides the kind of a page is packed into one 64-bit state per page, by a few array operations.
A run ends where the state changes. Neighbouring pages are mostly alike (all but the first page of a free
block, all tails of a compound page), so everything else is done once per run. The meaning of a state is
computed once for each distinct state (:mod:`kvintro.queries.pages.meaning`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Callable, Dict, Optional, Sequence, Tuple

from kvintro.arch.data import INT32, UINT32, UINT64
from kvintro.queries.pages.format import PageFormat

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray

    U64 = NDArray[numpy.uint64]
    I64 = NDArray[numpy.int64]

# The state of a page. Bits 0-31 are its flags unchanged.
FLAGS = 0xFFFF_FFFF
TYPE_SHIFT = 32  # code of page_type, see format.TypeField
TYPE_MASK = 0xFF << TYPE_SHIFT
TAIL = 1 << 40  # of a compound page
UNREFERENCED = 1 << 41  # _refcount is 0
MAPPED = 1 << 42  # its own _mapcount counts at least one mapping
ANON = 1 << 43  # the low bits of mapping
ANON_KSM = 1 << 44
HAS_MAPPING = 1 << 45
# State of heads only, read from their second page.
LARGE_MAPPED = 1 << 46
RMAPPABLE = 1 << 47
ORDER_SHIFT = 48  # of the head of a compound page or free block
ORDER_MASK = 0x3F << ORDER_SHIFT
HUGETLB = 1 << 54
# State that follows from the page's position.
ZERO = 1 << 55
IN_FREE_BLOCK = 1 << 56
DANGLING = 1 << 57  # a tail without a valid head
NOT_INITIALISED = 1 << 58  # mm/page_alloc.c:page_init_poison
OFFLINE = 1 << 59  # in a section that is not online, and not of a device: the struct page is meaningless
DEVICE = 1 << 60  # in ZONE_DEVICE

_LOWEST_ZONE_SHIFT = 46
# Tails hold a mask or an address. No compound page is large enough to confuse the two.
_LARGEST_MASK = 1 << 40


@dataclass(frozen=True)
class Runs:
    """A block of struct pages, split where the state changes.

    Heads of compound pages and of free blocks, and first pages of slabs, are runs of one page.

    :ivar first: page frame number of the block's first page.
    :ivar starts: index in the block of each run's first page, ascending from 0.
    :ivar lengths: number of pages of each run.
    :ivar states: see the constants of this module.
    :ivar heads: state of the head for tails, else 0.
    :ivar head_pfns: page frame number of the head for tails, else of the run's first page.
    :ivar places: node and zone as stored in the flags.
    :ivar rows: the block itself, with the fields of :func:`row_type`.
    """

    first: int
    starts: I64
    lengths: I64
    states: U64
    heads: U64
    head_pfns: I64
    places: I64
    rows: Any


def row_type(form: PageFormat) -> Any:
    """The numpy type of a struct page, with the fields that are needed."""
    import numpy

    fields: Dict[str, Tuple[int, str]] = {
        "flags": (form.flags, UINT64),
        "compound": (form.compound, UINT64),
        "compound_low": (form.compound, "u1"),
        "mapping": (form.mapping, UINT64),
        "mapping_low": (form.mapping, "u1"),
        "private": (form.private, UINT64),
        "page_type": (form.page_type, UINT32),
        "page_type_top": (form.page_type + 3, "u1"),
        "refcount": (form.refcount, INT32),
    }
    if form.slab_cache is not None:
        fields["slab_cache"] = (form.slab_cache, UINT64)
    return numpy.dtype(
        {
            "names": list(fields),
            "formats": [kind for _, kind in fields.values()],
            "offsets": [at for at, _ in fields.values()],
            "itemsize": form.size,
        }
    )


class Decoder:
    """Turns blocks of struct pages into runs.

    :param zero: page frame of the zero page, if there is one.
    :param huge_zero: page frame of the huge zero page's head, if there is one.
    :param peek: reads the struct pages of a page frame and of the next one, for compound pages that extend
        beyond a block; returns None if they cannot be read.
    """

    def __init__(
        self,
        form: PageFormat,
        *,
        zero: Optional[int] = None,
        huge_zero: Optional[int] = None,
        peek: Optional[Callable[[int], Optional[bytes]]] = None,
    ) -> None:
        import numpy

        if form.zone_shift < _LOWEST_ZONE_SHIFT:
            raise ValueError(f"node and zone take {64 - form.zone_shift} bits of the flags")
        self.form = form
        self._rows = row_type(form)
        # Words of a struct page that are compared as a whole.
        self._whole = sorted({at // 8 for at in (form.flags, form.page_type, form.refcount)})
        self._zero = zero
        self._huge_zero = huge_zero
        self._peek = peek
        self._peeked: Dict[int, int] = {}
        top = ((1 << 64) - 1) >> form.zone_shift << form.zone_shift
        self._keep = numpy.uint64(top | (1 << form.width) - 1)
        self._top = top
        # By the top byte of page_type. -1 means that there is neither a type nor a mapping.
        kinds = numpy.zeros(256, numpy.uint8)
        if form.types.inverted:
            base = form.types.base >> 24
            for byte in range(256):
                kinds[byte] = 0xFF if byte & base == base else 0
            self._type_bits = numpy.uint8(form.types.bits)
        else:
            kinds[0x80:0xFF] = numpy.arange(0x80, 0xFF)
        self._kinds = kinds

    def rows(self, data: bytes) -> Any:
        """View a piece of memory as struct pages."""
        import numpy

        return numpy.frombuffer(data, self._rows)

    def decode(self, data: bytes, first: int, *, every: int = 0, online: bool = True) -> Runs:
        """Split a block into runs.

        :param data: struct pages of consecutive page frames, aligned to the largest free block.
        :param first: page frame of the first.
        :param every: end a run after each ``every`` pages, a power of two; 0 to end none.
        :param online: whether the block's section is online; if not, only struct pages of devices are valid.
        """
        import numpy

        u = numpy.uint64
        rows = self.rows(data)
        n = len(rows)
        change, own = self._own_states(rows)
        begins = change.copy()
        starts = numpy.flatnonzero(change)
        starts, lengths = starts[:-1], numpy.diff(starts)
        singles = self._singles(own) & (lengths > 1)
        change[expand(starts[singles], lengths[singles])] = True
        is_free = self._is_type(own, "buddy")
        free = expand(starts[is_free], lengths[is_free])
        orders = self._orders(rows, free)
        ends = free + (numpy.int64(1) << orders)
        change[ends[ends < n]] = True
        if every:
            change[0:n:every] = True
        zeros = [at - first for at in (self._zero, self._huge_zero) if at is not None and 0 <= at - first < n]
        for zero in zeros:
            change[zero : zero + 2] = True
        starts = numpy.flatnonzero(change)
        starts, lengths = starts[:-1], numpy.diff(starts)
        states = own[numpy.cumsum(begins[starts]) - 1]
        tails = bool((own & u(TAIL)).any())
        places = (states >> u(self.form.zone_shift)).astype(numpy.int64)
        states &= u(~self._top & (1 << 64) - 1)
        if len(free):
            self._mark_free(starts, states, orders, ends)
        self._mark_poisoned(rows, starts, states, places)
        for zero in zeros:
            states[numpy.searchsorted(starts, zero)] |= u(ZERO)
        fakes = self._fake_heads(rows, first, starts, states)
        states[fakes] |= u(TAIL)
        heads = numpy.zeros(len(starts), u)
        head_pfns = starts + first
        # Heads come first, because tails copy their state.
        self._heads(rows, starts, states)
        if tails:
            self._tails(rows, first, starts, states, heads, head_pfns, fakes)
        self._mark_devices(states, places)
        if not online:
            offline = (states & u(DEVICE)) == u(0)
            states[offline], heads[offline], places[offline] = OFFLINE, 0, -1
        return Runs(first, starts, lengths, states, heads, head_pfns, places, rows)

    def _own_states(self, rows: Any) -> "Tuple[NDArray[numpy.bool_], U64]":
        """Find where the pages' own states change.

        :return: whether each page's state differs from that of the page before, True at both ends; and the
            state from each such page on.
        """
        import numpy

        words = rows.view(numpy.uint64).reshape(len(rows), -1)
        change = self._changes(words)
        at = numpy.flatnonzero(change[:-1])
        own = self._pack(words, at)
        keep = numpy.ones(len(at), bool)
        numpy.not_equal(own[1:], own[:-1], out=keep[1:])
        tail = numpy.flatnonzero(own & numpy.uint64(TAIL))
        if len(tail):
            compound = words[:, self.form.compound // 8]
            tail = tail[1:] if tail[0] == 0 else tail
            keep[tail] |= compound[at[tail]] != compound[at[tail - 1]]
        change[at] = keep
        return change, own[keep]

    def _orders(self, rows: Any, free: I64) -> I64:
        """The orders of free blocks. An impossible order counts as order 0."""
        import numpy

        orders = rows["private"][free]
        orders[orders >= numpy.uint64(32)] = 0
        return orders.astype(numpy.int64)  # type: ignore[no-any-return]

    def _mark_free(self, starts: I64, states: U64, orders: I64, ends: I64) -> None:
        """Add the state of free blocks.

        :param orders: orders of those blocks.
        :param ends: pages after those blocks.
        """
        import numpy

        u = numpy.uint64
        is_free = self._is_type(states, "buddy")
        states[is_free] |= orders.astype(u) << u(ORDER_SHIFT)
        before = numpy.cumsum(is_free) - 1
        # mm/page_alloc.c:is_free_buddy_page: page frames without references within a free block.
        inside = (before >= 0) & (starts < ends[before]) & ((states & u(UNREFERENCED)) != u(0)) & ~is_free
        states[inside] |= u(IN_FREE_BLOCK)

    def _mark_poisoned(self, rows: Any, starts: I64, states: U64, places: I64) -> None:
        """Mark pages whose struct page was never initialised, which has all bits set."""
        import numpy

        poisoned = numpy.flatnonzero(places == self._top >> self.form.zone_shift)
        poisoned = poisoned[rows["flags"][starts[poisoned]] == numpy.uint64((1 << 64) - 1)]
        states[poisoned] = numpy.uint64(NOT_INITIALISED)
        places[poisoned] = -1

    def _mark_devices(self, states: U64, places: I64) -> None:
        """Mark pages of devices (ZONE_DEVICE)."""
        import numpy

        if "Device" in self.form.zones:
            zones = places & (1 << self.form.zone_bits) - 1
            device = (places >= 0) & (zones == self.form.zones.index("Device"))
            states[device] |= numpy.uint64(DEVICE)

    def _changes(self, words: U64) -> "NDArray[numpy.bool_]":
        """Mark pages that may differ from the page before in what a state holds; True at both ends.

        Only this is done for every single page. A struct page usually takes a cache line, so the time depends
        on the number of columns that are read more than on what is done with them.
        """
        import numpy

        u1 = numpy.uint8
        change = numpy.empty(len(words) + 1, bool)
        change[0] = change[-1] = True
        inner = change[1:-1]
        inner[:] = False
        for column in self._whole:
            inner |= words[1:, column] != words[:-1, column]
        # Of the mapping, only the low bits matter, and whether there is one. In busy memory, neighbours often
        # belong to different processes or files, but are alike in everything else.
        mapping = words[:, self.form.mapping // 8].copy()
        kind = mapping.astype(u1)
        kind &= u1(3)
        kind |= (mapping != 0).view(u1) * u1(4)
        inner |= kind[1:] != kind[:-1]
        # Tails hold where their head is. In other pages that word links lists.
        tail = words.view(u1)[:, self.form.compound] & u1(1)
        if tail.any():
            compound = words[:, self.form.compound // 8]
            inner |= tail[1:] != tail[:-1]
            inner |= (compound[1:] != compound[:-1]) & tail[1:].view(bool)
        return change

    def _pack(self, words: U64, at: I64) -> U64:
        """The part of pages' states that is their own, with node and zone still in the top bits.

        :param at: which pages.
        """
        import numpy

        form, u1 = self.form, numpy.uint8

        def word(offset: int) -> U64:
            return words[:, offset // 8][at]

        def part(values: U64, offset: int, kind: Any) -> Any:
            """A member of each word."""
            size = numpy.dtype(kind).itemsize
            return values.view(kind)[offset % 8 // size :: 8 // size]

        state: U64 = word(form.flags) & self._keep
        types, mapping = word(form.page_type), word(form.mapping)
        counts = types if form.refcount // 8 == form.page_type // 8 else word(form.refcount)
        bits = part(word(form.compound), form.compound, u1) & u1(1)
        bits |= (part(counts, form.refcount, INT32) == 0).view(u1) << 1
        top = part(types, form.page_type + 3, u1)
        kinds = self._kinds[top]
        bits |= (top < 0x80).view(u1) << 2
        bits |= (part(mapping, form.mapping, u1) & u1(3)) << 3
        bits |= (mapping != 0).view(u1) << 5
        if form.types.inverted:
            shift = numpy.uint32(form.types.shift)
            kinds &= (~part(types, form.page_type, UINT32) >> shift).astype(u1)
            kinds &= self._type_bits
        high = bits.astype(numpy.uint16)
        high <<= 8
        high |= kinds
        state.view(numpy.uint16)[2::4] |= high
        return state

    def _is_type(self, states: U64, name: str) -> "NDArray[numpy.bool_]":
        import numpy

        u = numpy.uint64
        code = self.form.types.codes.get(name)
        if code is None:
            return numpy.zeros(len(states), bool)
        found = states & u(TYPE_MASK)
        if self.form.types.inverted:
            found &= u(code << TYPE_SHIFT)
        same: NDArray[numpy.bool_] = found == u(code << TYPE_SHIFT)
        return same

    def slabs(self, states: U64) -> "NDArray[numpy.bool_]":
        """Mark runs that are the first page of a slab."""
        import numpy

        u = numpy.uint64
        slab = self.form.mask("slab")
        if slab:
            found: NDArray[numpy.bool_] = (states & u(slab | TAIL)) == u(slab)
            return found
        return self._is_type(states, "slab")

    def _singles(self, states: U64) -> "NDArray[numpy.bool_]":
        import numpy

        u = numpy.uint64
        mark = self.form.mask("head")
        head: NDArray[numpy.bool_] = (states & u(mark | TAIL)) == u(mark)
        head |= self._is_type(states, "buddy")
        head |= self.slabs(states)
        return head

    def _heads(self, rows: Any, starts: I64, states: U64) -> None:
        """Add the part of the heads' states that is stored in their second page."""
        import numpy

        u = numpy.uint64
        form = self.form
        is_head = ((states & u(form.mask("head"))) != u(0)) & ((states & u(TAIL | NOT_INITIALISED)) == u(0))
        at = numpy.flatnonzero(is_head)
        if not len(at):
            return
        where = starts[at]
        whole = where + 1 < len(rows)
        at, where = at[whole], where[whole]

        def second(offset: int, kind: Any) -> Any:
            size = numpy.dtype(kind).itemsize
            return rows.view(kind)[(where * form.size + offset) // size]

        order = second(form.large_order, numpy.uint8).astype(u) & u(0x3F)
        extra = order << u(ORDER_SHIFT)
        if form.large_mapcount is not None:
            extra |= (second(form.large_mapcount, INT32) >= 0).astype(u) * u(LARGE_MAPPED)
        flags = rows["flags"][where + 1]
        if form.large_hugetlb:
            extra |= ((flags & u(form.large_hugetlb)) != u(0)).astype(u) * u(HUGETLB)
        if form.large_rmappable:
            extra |= ((flags & u(form.large_rmappable)) != u(0)).astype(u) * u(RMAPPABLE)
        if form.large_dtor is not None:
            offset, value = form.large_dtor
            extra |= (second(offset, numpy.uint8) == value).astype(u) * u(HUGETLB)
        states[at] |= extra

    def _fake_heads(self, rows: Any, first: int, starts: I64, states: U64) -> I64:
        """Find tails that look like heads: include/linux/page-flags.h:page_fixed_fake_head.

        Huge pages with shared struct pages of tails share the page of struct pages that contains the head.
        The second struct page of each copy refers to the real head.
        """
        import numpy

        u = numpy.uint64
        form = self.form
        if form.compound_masks:
            return numpy.zeros(0, numpy.int64)
        mark = u(form.mask("head"))
        at = numpy.flatnonzero((states & (mark | u(TAIL | NOT_INITIALISED))) == mark)
        own = u(form.base) + (starts[at] + first).astype(u) * u(form.size)
        maybe = (own & u(form.page_size - 1) == u(0)) & (starts[at] + 1 < len(rows))
        at, own = at[maybe], own[maybe]
        links = rows["compound"][starts[at] + 1]
        fakes: I64 = at[((links & u(1)) != u(0)) & (links - u(1) < own)]
        return fakes

    def _tails(
        self,
        rows: Any,
        first: int,
        starts: I64,
        states: U64,
        heads: U64,
        head_pfns: I64,
        fakes: I64,
    ) -> None:
        """Copy the states of heads to the runs of their tails."""
        import numpy

        u = numpy.uint64
        form = self.form
        at = numpy.flatnonzero((states & u(TAIL)) != u(0))
        links = starts.copy()
        links[fakes] += 1
        values = rows["compound"][links[at]] & ~u(1)
        if form.compound_masks:
            own = u(form.base) + (starts[at] + first).astype(u) * u(form.size)
            span = ~values + u(1)
            masks = (span & values == span) & (span <= u(_LARGEST_MASK)) & (span != u(0))
            values = numpy.where(masks, own & values, values)
        distance = values - u(form.base)
        pfns = (distance // u(form.size)).astype(numpy.int64)
        good = (values >= u(form.base)) & (distance % u(form.size) == u(0)) & (pfns <= starts[at] + first)
        inside = good & (pfns >= first)
        # The run that starts at the head; a head is a run of one page.
        run = numpy.searchsorted(starts, pfns - first)
        run[~inside] = 0
        exact = inside & (starts[run] == pfns - first)
        is_head = u(form.mask("head"))
        found = numpy.where(exact, states[run], u(0))
        for i in numpy.flatnonzero(good & ~inside).tolist():
            found[i] = self._outside(int(pfns[i]))
        found[((found & is_head) == u(0)) | ((found & u(TAIL)) != u(0))] = 0
        if form.counts_parts:
            parts = exact & ((states[at] & u(MAPPED)) != u(0)) & (found & u(HUGETLB) == u(0))
            if parts.any():
                whole = distinct(run[parts])
                states[whole] |= u(LARGE_MAPPED)
                found = numpy.where(exact & (found != u(0)), states[run], found)
        known = found != u(0)
        heads[at] = found
        head_pfns[at[known]] = pfns[known]
        states[at[~known]] |= u(DANGLING)

    def _outside(self, pfn: int) -> int:
        """The state of a head outside the block; 0 if there is none."""
        if pfn not in self._peeked:
            data = self._peek(pfn) if self._peek is not None else None
            self._peeked[pfn] = int(self.decode(data, pfn).states[0]) if data is not None else 0
        return self._peeked[pfn]


class Interned:
    """Numbers distinct 64-bit values in order of first appearance, many at a time.

    :param limit: maximum number of distinct values; all later ones share one number.
    """

    def __init__(self, limit: int = 1 << 16) -> None:
        import numpy

        self.values: "list[int]" = []
        self._sorted = numpy.zeros(0, numpy.uint64)
        self._ids = numpy.zeros(0, numpy.int64)
        self._limit = limit
        self.full = False

    def ids(self, values: U64) -> I64:
        """The number of each value."""
        import numpy

        if not len(values):
            return numpy.zeros(0, numpy.int64)
        at = self._find(values)
        known = self._sorted[at] == values if len(self._sorted) else numpy.zeros(len(values), bool)
        if not known.all():
            self._add(distinct(values[~known]))
            at = self._find(values)
        ids: I64 = self._ids[at]
        if self.full:
            ids = numpy.where(self._sorted[at] == values, ids, self._limit)
        return ids

    def _find(self, values: U64) -> I64:
        import numpy

        at = numpy.searchsorted(self._sorted, values)
        return numpy.minimum(at, max(len(self._sorted) - 1, 0))

    def _add(self, values: U64) -> None:
        import numpy

        room = self._limit - len(self.values)
        if len(values) > room:
            self.full = True
            values = values[:room]
        ids = numpy.arange(len(self.values), len(self.values) + len(values))
        self.values.extend(values.tolist())
        merged = numpy.concatenate((self._sorted, values))
        order = numpy.argsort(merged, kind="stable")
        self._sorted = merged[order]
        self._ids = numpy.concatenate((self._ids, ids))[order]


def distinct(values: Any) -> Any:
    """The distinct values, ascending. Like numpy.unique(), whose imports take longer."""
    import numpy

    ordered = numpy.sort(values)
    keep = numpy.ones(len(ordered), bool)
    numpy.not_equal(ordered[1:], ordered[:-1], out=keep[1:])
    return ordered[keep]


def expand(starts: I64, lengths: I64) -> I64:
    """Every index in some runs: ``[3, 9], [2, 1]`` gives ``[3, 4, 9]``."""
    import numpy

    ends = numpy.cumsum(lengths)
    out: I64 = numpy.repeat(starts - (ends - lengths), lengths) + numpy.arange(ends[-1] if len(ends) else 0)
    return out


def cut(runs: Runs, low: int, high: int) -> Sequence[Any]:
    """Runs with pages between two page frames (the second exclusive), and how many of those each has."""
    import numpy

    starts = runs.starts + runs.first
    ends = numpy.minimum(starts + runs.lengths, high)
    lengths = ends - numpy.maximum(starts, low)
    at = numpy.flatnonzero(lengths > 0)
    return at, lengths[at]
