# SPDX-License-Identifier: LGPL-2.1-or-later
"""Blocks of struct pages as runs of pages that are alike.

All that decides what a page is gets packed into one 64-bit state a page, by a handful of array operations;
where the state changes, a run ends. Neighbours are mostly alike (all but the first page of a free block,
all tails of a compound page), so that everything else is done a run at a time, and the meaning of a state
is worked out once for each distinct state (:mod:`kvintro.queries.pages.meaning`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Callable, Dict, Optional, Sequence, Tuple

from kvintro.queries.pages.format import PageFormat

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray

    U64 = NDArray[numpy.uint64]
    I64 = NDArray[numpy.int64]

# The state of a page. Bits 0-31 are its flags as they are.
FLAGS = 0xFFFF_FFFF
TYPE_SHIFT = 32  # what page_type says, see format.TypeField
TYPE_MASK = 0xFF << TYPE_SHIFT
TAIL = 1 << 40  # of a compound page
UNREFERENCED = 1 << 41  # _refcount is 0
MAPPED = 1 << 42  # its own _mapcount counts something
ANON = 1 << 43  # the low bits of mapping
ANON_KSM = 1 << 44
HAS_MAPPING = 1 << 45
# What only heads have; read from their second page.
LARGE_MAPPED = 1 << 46
RMAPPABLE = 1 << 47
ORDER_SHIFT = 48  # of a compound page's head, or of a free block's
ORDER_MASK = 0x3F << ORDER_SHIFT
HUGETLB = 1 << 54
# What its place says.
ZERO = 1 << 55
IN_FREE_BLOCK = 1 << 56
DANGLING = 1 << 57  # a tail whose head is none
NOT_INITIALISED = 1 << 58  # mm/page_alloc.c:page_init_poison
OFFLINE = 1 << 59  # of a section that is not online, and no device's: the struct page means nothing
DEVICE = 1 << 60  # of ZONE_DEVICE

_LOWEST_ZONE_SHIFT = 46
_VMEMMAP_PAGE = 1 << 12
# Tails hold a mask or an address; no compound page is as large as to make the one look like the other.
_LARGEST_MASK = 1 << 40


@dataclass(frozen=True)
class Runs:
    """A block of struct pages cut where what they are changes.

    Heads of compound pages and of free blocks, and pages of a slab cache, are runs of one page.

    :ivar first: page frame number of the block's first page.
    :ivar starts: index in the block of each run's first page, ascending from 0.
    :ivar lengths: pages of each.
    :ivar states: see the constants of this module.
    :ivar heads: state of the head for tails; 0 for all else.
    :ivar head_pfns: page frame number of the head for tails, else of the run's first page.
    :ivar places: node and zone as they lie in the flags.
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
    """numpy's type of a struct page, with the fields that are looked at."""
    import numpy

    fields: Dict[str, Tuple[int, str]] = {
        "flags": (form.flags, "<u8"),
        "compound": (form.compound, "<u8"),
        "compound_low": (form.compound, "u1"),
        "mapping": (form.mapping, "<u8"),
        "mapping_low": (form.mapping, "u1"),
        "private": (form.private, "<u8"),
        "page_type": (form.page_type, "<u4"),
        "page_type_top": (form.page_type + 3, "u1"),
        "refcount": (form.refcount, "<i4"),
    }
    if form.slab_cache is not None:
        fields["slab_cache"] = (form.slab_cache, "<u8")
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
    :param peek: reads the struct pages of a page frame and the next, for compound pages that reach beyond a
        block; returns None if they are not there.
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
        # Words of a struct page that are looked at as a whole, and the same as a mask of their bytes.
        self._words = sorted({at // 8 for at in (form.flags, form.mapping, form.page_type, form.refcount)})
        self._said = numpy.uint64(sum(0xFF << 8 * word for word in self._words if word < 8))
        self._zero = zero
        self._huge_zero = huge_zero
        self._peek = peek
        self._peeked: Dict[int, int] = {}
        top = ((1 << 64) - 1) >> form.zone_shift << form.zone_shift
        self._keep = numpy.uint64(top | (1 << form.width) - 1)
        self._top = top
        # What the top byte of page_type says; -1 is no type, and no mapping either.
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
        """The struct pages in a piece of memory."""
        import numpy

        return numpy.frombuffer(data, self._rows)

    def decode(self, data: bytes, first: int, *, every: int = 0, online: bool = True) -> Runs:
        """The runs of a block.

        :param data: struct pages of consecutive page frames, aligned to the largest free block.
        :param first: page frame of the first.
        :param every: end a run after each so many pages, a power of two; 0 for no such ends.
        :param online: whether the block's section is; if not, only struct pages of devices mean anything.
        """
        import numpy

        u = numpy.uint64
        rows = self.rows(data)
        n = len(rows)
        change = self._changes(rows)
        raw = numpy.flatnonzero(change[:n])
        if len(raw) * 4 > n:
            raw = numpy.arange(n)
        known = self._pack(rows if len(raw) == n else rows[raw])
        tails = bool((known & u(TAIL)).any())
        # What differs in a way that says nothing is alike after all.
        same = known[1:] == known[:-1]
        if tails:
            compound = rows["compound"][raw]
            same &= (compound[1:] == compound[:-1]) | ((known[1:] & u(TAIL)) == u(0))
        change[raw[1:][same]] = False

        def cuts() -> "Tuple[I64, I64, U64]":
            starts = numpy.flatnonzero(change)
            starts, lengths = starts[:-1], numpy.diff(starts)
            return starts, lengths, known[numpy.searchsorted(raw, starts, side="right") - 1]

        if every:
            change[0:n:every] = True
        for special in (self._zero, self._huge_zero):
            if special is not None and first <= special < first + n:
                change[special - first : special - first + 2] = True
        starts, lengths, states = cuts()
        singles = self._singles(states)
        if (lengths[singles] > 1).any():
            change[expand(starts[singles], lengths[singles])] = True
            starts, lengths, states = cuts()
        free = starts[self._is_type(states, "buddy")]
        # An order that cannot be is left to stand for a single page.
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
            is_free = self._is_type(states, "buddy")
            states[is_free] |= orders << u(ORDER_SHIFT)
            before = numpy.searchsorted(free, starts, side="right") - 1
            # mm/page_alloc.c:is_free_buddy_page: page frames without references within a free block.
            inside = (before >= 0) & (starts < ends[before]) & ((states & u(UNREFERENCED)) != u(0)) & ~is_free
            states[inside] |= u(IN_FREE_BLOCK)
        poisoned = rows["flags"][starts] == u((1 << 64) - 1)
        states[poisoned] = u(NOT_INITIALISED)
        places[poisoned] = -1
        for special in (self._zero, self._huge_zero):
            if special is not None and first <= special < first + n:
                states[numpy.searchsorted(starts, special - first)] |= u(ZERO)
        fakes = self._fake_heads(rows, first, starts, states)
        states[fakes] |= u(TAIL)
        heads = numpy.zeros(len(starts), u)
        head_pfns = starts + first
        # Heads first: their tails take over what is said of them.
        self._heads(rows, starts, states)
        if tails:
            self._tails(rows, first, starts, states, heads, head_pfns, fakes)
        if "Device" in self.form.zones:
            zones = places & (1 << self.form.zone_bits) - 1
            device = (places >= 0) & (zones == self.form.zones.index("Device"))
            states[device] |= u(DEVICE)
        if not online:
            offline = (states & u(DEVICE)) == u(0)
            states[offline], heads[offline], places[offline] = OFFLINE, 0, -1
        return Runs(first, starts, lengths, states, heads, head_pfns, places, rows)

    def _changes(self, rows: Any) -> "NDArray[numpy.bool_]":
        """Where a page differs from the one before in anything that a state may hold; True at both ends.

        This is all that is done for every single page, so whole blocks are compared word by word: picking
        words out of a structure of 64 bytes takes numpy as long as reading all of them.
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
        # Only tails say more in that word than that they are some: elsewhere it links lists.
        tail = rows["compound_low"] & numpy.uint8(1)
        if tail.any():
            inner |= tail[1:] != tail[:-1]
            heads = rows["compound"]
            inner |= (heads[1:] != heads[:-1]) & tail[1:].view(bool)
        return change

    def _pack(self, rows: Any) -> U64:
        """The states' part that each page has for itself, with node and zone still in the top bits."""
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
        """Which of the runs are the first page of a slab."""
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
        """Add to the states of heads what is kept in their second page."""
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
            count = numpy.ascontiguousarray(second(form.large_mapcount, 4)).view("<i4")[:, 0]
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
        """Which of the runs are tails that look like heads: include/linux/page-flags.h:page_fixed_fake_head.

        Huge pages whose tails share a page of struct pages share that which the head lies in. Its copies say
        in their second struct page where the head is.
        """
        import numpy

        u = numpy.uint64
        form = self.form
        if form.compound_masks:
            return numpy.zeros(0, numpy.int64)
        mark = u(form.mask("head"))
        own = u(form.base) + (starts + first).astype(u) * u(form.size)
        found = ((states & (mark | u(TAIL | NOT_INITIALISED))) == mark) & (own & u(_VMEMMAP_PAGE - 1) == u(0))
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
        """Give the runs of tails the states of their heads."""
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
        # The run that starts at the head: heads are runs of one page.
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
        """The state of a head that is not in the block; 0 if there is none."""
        if pfn not in self._peeked:
            data = self._peek(pfn) if self._peek is not None else None
            self._peeked[pfn] = int(self.decode(data, pfn).states[0]) if data is not None else 0
        return self._peeked[pfn]


class Interned:
    """Numbers distinct 64-bit values in the order of their first coming, many at a time.

    :param limit: how many distinct values there may be; what comes after is lumped together as one.
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
    """The distinct values, ascending: numpy.unique() without the modules that it loads, which take longer."""
    import numpy

    ordered = numpy.sort(values)
    keep = numpy.ones(len(ordered), bool)
    numpy.not_equal(ordered[1:], ordered[:-1], out=keep[1:])
    return ordered[keep]


def expand(starts: I64, lengths: I64) -> I64:
    """Every index of some runs: ``[3, 9], [2, 1]`` gives ``[3, 4, 9]``."""
    import numpy

    ends = numpy.cumsum(lengths)
    out: I64 = numpy.repeat(starts - (ends - lengths), lengths) + numpy.arange(ends[-1] if len(ends) else 0)
    return out


def cut(runs: Runs, low: int, high: int) -> Sequence[Any]:
    """Which runs have pages between two page frames (the second exclusive), and how many of each."""
    import numpy

    starts = runs.starts + runs.first
    ends = numpy.minimum(starts + runs.lengths, high)
    lengths = ends - numpy.maximum(starts, low)
    at = numpy.flatnonzero(lengths > 0)
    return at, lengths[at]
