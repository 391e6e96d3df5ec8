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
        # Words of a struct page that are compared as a whole, and a mask of their bytes.
        self._words = sorted({at // 8 for at in (form.flags, form.mapping, form.page_type, form.refcount)})
        self._said = numpy.uint64(sum(0xFF << 8 * word for word in self._words if word < 8))
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
        change = self._changes(rows)
        raw, known, tails = self._candidates(rows, change)

        def cuts() -> "Tuple[I64, I64, U64]":
            starts = numpy.flatnonzero(change)
            starts, lengths = starts[:-1], numpy.diff(starts)
            if len(known) == n:
                return starts, lengths, known[starts]
            return starts, lengths, known[numpy.searchsorted(raw, starts, side="right") - 1]

        if every:
            change[0:n:every] = True
        zeros = [at - first for at in (self._zero, self._huge_zero) if at is not None and 0 <= at - first < n]
        for zero in zeros:
            change[zero : zero + 2] = True
        starts, lengths, states = cuts()
        singles = self._singles(states)
        if (lengths[singles] > 1).any():
            change[expand(starts[singles], lengths[singles])] = True
            starts, lengths, states = cuts()
        free = starts[self._is_type(states, "buddy")]
        # An impossible order counts as order 0.
        orders = rows["private"][free]
        orders = numpy.where(orders < u(32), orders, u(0))
        ends = free + (numpy.int64(1) << orders.astype(numpy.int64))
        inner = ends[ends < n]
        if not change[inner].all():
            change[inner] = True
            starts, lengths, states = cuts()
        places = (states >> u(self.form.zone_shift)).astype(numpy.int64)
        states &= u(~self._top & (1 << 64) - 1)
        if len(free):
            self._mark_free(starts, states, free, orders, ends)
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

    def _candidates(self, rows: Any, change: "NDArray[numpy.bool_]") -> "Tuple[I64, U64, bool]":
        """Return pages that may begin a run, their states, and whether any is the tail of a large page.

        :param change: from :meth:`_changes`; differences that do not change the state are removed.
        """
        import numpy

        u = numpy.uint64
        n = len(rows)
        raw = numpy.flatnonzero(change[:n])
        if len(raw) * 4 > n:
            raw = numpy.arange(n)
        known = self._pack(rows if len(raw) == n else rows[raw])
        tails = bool((known & u(TAIL)).any())
        same = known[1:] == known[:-1]
        if tails:
            compound = rows["compound"][raw]
            same &= (compound[1:] == compound[:-1]) | ((known[1:] & u(TAIL)) == u(0))
        if len(known) == n:
            change[1:n] &= ~same
        else:
            change[raw[1:][same]] = False
        return raw, known, tails

    def _mark_free(self, starts: I64, states: U64, free: I64, orders: U64, ends: I64) -> None:
        """Add the state of free blocks.

        :param free: first pages of free blocks.
        :param orders: orders of those blocks.
        :param ends: pages after those blocks.
        """
        import numpy

        u = numpy.uint64
        is_free = self._is_type(states, "buddy")
        states[is_free] |= orders << u(ORDER_SHIFT)
        before = numpy.searchsorted(free, starts, side="right") - 1
        # mm/page_alloc.c:is_free_buddy_page: page frames without references within a free block.
        inside = (before >= 0) & (starts < ends[before]) & ((states & u(UNREFERENCED)) != u(0)) & ~is_free
        states[inside] |= u(IN_FREE_BLOCK)

    def _mark_poisoned(self, rows: Any, starts: I64, states: U64, places: I64) -> None:
        """Mark pages whose struct page was never initialised, which has all bits set."""
        import numpy

        poisoned = rows["flags"][starts] == numpy.uint64((1 << 64) - 1)
        states[poisoned] = numpy.uint64(NOT_INITIALISED)
        places[poisoned] = -1

    def _mark_devices(self, states: U64, places: I64) -> None:
        """Mark pages of devices (ZONE_DEVICE)."""
        import numpy

        if "Device" in self.form.zones:
            zones = places & (1 << self.form.zone_bits) - 1
            device = (places >= 0) & (zones == self.form.zones.index("Device"))
            states[device] |= numpy.uint64(DEVICE)

    def _changes(self, rows: Any) -> "NDArray[numpy.bool_]":
        """Mark pages that differ from the page before in anything that a state holds; True at both ends.

        Only this is done for every single page. It compares whole blocks word by word, because numpy takes as
        long to pick words out of a structure of 64 bytes as to read all of them.
        """
        import numpy

        u = numpy.uint64
        n = len(rows)
        change = numpy.empty(n + 1, bool)
        change[0] = change[n] = True
        inner = change[1:n]
        width = self.form.size // 8
        words = rows.view(u)
        differ = (words[width:] != words[:-width]).reshape(-1, width)
        if width == 8:
            marks = differ.view(u)[:, 0]
            marks &= self._said
            numpy.not_equal(marks, u(0), out=inner)
        else:
            numpy.any(differ[:, self._words], axis=1, out=inner)
        # The rest of that word matters only in tails. In other pages it links lists.
        tail = rows["compound_low"] & numpy.uint8(1)
        if tail.any():
            inner |= tail[1:] != tail[:-1]
            heads = rows["compound"]
            inner |= (heads[1:] != heads[:-1]) & tail[1:].view(bool)
        return change

    def _pack(self, rows: Any) -> U64:
        """The part of each state that is the page's own, with node and zone still in the top bits."""
        import numpy

        state: U64 = rows["flags"] & self._keep
        bits = rows["compound_low"] & numpy.uint8(1)
        bits |= (rows["refcount"] == 0).view(numpy.uint8) << 1
        kinds = self._kinds[rows["page_type_top"]]
        bits |= (rows["page_type_top"] < 0x80).view(numpy.uint8) << 2
        bits |= (rows["mapping_low"] & numpy.uint8(3)) << 3
        bits |= (rows["mapping"] != 0).view(numpy.uint8) << 5
        if self.form.types.inverted:
            shift = numpy.uint32(self.form.types.shift)
            kinds &= (~rows["page_type"] >> shift).astype(numpy.uint8)
            kinds &= self._type_bits
        high = bits.astype(numpy.uint16)
        high <<= 8
        high |= kinds
        words = state.view(numpy.uint16).reshape(-1, 4)
        words[:, 2] |= high
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
        flat = rows.view(numpy.uint8).reshape(len(rows), form.size)

        def second(offset: int, size: int) -> "NDArray[numpy.uint8]":
            return flat[where + offset // form.size, offset % form.size : offset % form.size + size]  # type: ignore[no-any-return]

        order = second(form.large_order, 1)[:, 0].astype(u) & u(0x3F)
        extra = order << u(ORDER_SHIFT)
        if form.large_mapcount is not None:
            count = numpy.ascontiguousarray(second(form.large_mapcount, 4)).view(INT32)[:, 0]
            extra |= (count >= 0).astype(u) * u(LARGE_MAPPED)
        flags = rows["flags"][where + 1]
        if form.large_hugetlb:
            extra |= ((flags & u(form.large_hugetlb)) != u(0)).astype(u) * u(HUGETLB)
        if form.large_rmappable:
            extra |= ((flags & u(form.large_rmappable)) != u(0)).astype(u) * u(RMAPPABLE)
        if form.large_dtor is not None:
            offset, value = form.large_dtor
            extra |= (second(offset, 1)[:, 0] == value).astype(u) * u(HUGETLB)
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
        own = u(form.base) + (starts + first).astype(u) * u(form.size)
        found = ((states & (mark | u(TAIL | NOT_INITIALISED))) == mark) & (
            own & u(form.page_size - 1) == u(0)
        )
        found &= starts + 1 < len(rows)
        at = numpy.flatnonzero(found)
        links = rows["compound"][starts[at] + 1]
        fakes: I64 = at[((links & u(1)) != u(0)) & (links - u(1) < own[at])]
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
