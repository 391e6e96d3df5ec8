# SPDX-License-Identifier: LGPL-2.1-or-later
"""Census of all page frames by use, and the picture of physical memory."""

from __future__ import annotations

import re
import time
from collections import Counter
from dataclasses import dataclass
from typing import Callable, Dict, List, Mapping, Optional, Sequence, Tuple, TypedDict, Union

from kvintro.errors import Unavailable, UsageError
from kvintro.kernels import Kernel
from kvintro.model import ALL, Address, Column, Report, Row, Size, Table
from kvintro.queries.pages.census import Group, PageCensus, Pages
from kvintro.queries.pages.excluded import Excluded, ExclusionCounter, lacks_pages
from kvintro.queries.pages.jobs import census_in_jobs, usual_jobs
from kvintro.queries.pages.meaning import (
    KPF_COMPOUND_HEAD,
    KPF_COMPOUND_TAIL,
    KPF_HUGE,
    TYPES,
    kpf_long,
    kpf_symbols,
)
from kvintro.queries.pages.zones import ZoneFacts, free_pages, zone_facts
from kvintro.readers.structures import TROUBLE, USE_TYPES, number, struct_at, text_at
from kvintro.reports.excluded import excluded_rows, mistake
from kvintro.reports.layout import head

#: Names of the breakdowns.
BREAKDOWNS = ("type", "zone", "node", "order", "cache", "flags", "free")
#: Minimum number of orders of the buddy allocator and of /proc/buddyinfo.
_ORDERS = 11
#: Free pages that a stopped kernel may have been moving.
_IN_MOTION = 2 << _ORDERS - 1


@dataclass(frozen=True)
class TypeRow:
    """Pages of one type; docs/pages.md has the types.

    :ivar share: of all page frames counted, in percent.
    """

    type: str
    pages: int
    size: Size
    share: float
    meaning: str


@dataclass(frozen=True)
class ZoneRow:
    """Pages of a zone.

    :ivar present: pages that exist, by the zone's own count; None if it cannot be read.
    :ivar managed: pages that the kernel gave to the allocator.
    """

    node: Optional[int]
    zone: str
    pages: int
    size: Size
    free: int
    reserved: int
    present: Optional[int]
    managed: Optional[int]


@dataclass(frozen=True)
class NodeRow:
    """Pages of a NUMA node."""

    node: Optional[int]
    pages: int
    size: Size
    free: int


@dataclass(frozen=True)
class OrderRow:
    """Pages by the order of the block or compound page that they belong to.

    :ivar free_blocks: free blocks of that order.
    :ivar compounds: compound pages of that order; with order 0, single pages in use.
    """

    order: int
    free_blocks: int
    free_size: Size
    compounds: int
    compound_size: Size


@dataclass(frozen=True)
class CacheRow:
    """Slab pages of a cache.

    :ivar address: of the ``struct kmem_cache``.
    :ivar objects: None if this kernel's slabs do not count them in struct page.
    :ivar in_use: objects that are not free by the slabs' own count, including those kept for a CPU.
    """

    name: Optional[str]
    address: Address
    slabs: int
    pages: int
    size: Size
    objects: Optional[int]
    in_use: Optional[int]
    object_size: Optional[Size]


@dataclass(frozen=True)
class FlagsRow:
    """Pages with the same flags in /proc/kpageflags.

    :ivar flags: the bits as in that file.
    :ivar symbols: a letter for each bit, as tools/mm/page-types prints them.
    """

    flags: Address
    pages: int
    size: Size
    symbols: str
    names: str


@dataclass(frozen=True)
class FreeRow:
    """Free memory of a zone: blocks by order, as in /proc/buddyinfo."""

    node: Optional[int]
    zone: str
    blocks: Tuple[int, ...]
    pages: int
    size: Size


@dataclass(frozen=True)
class CellRow:
    """A cell of the picture: a fixed number of page frames from the physical address ``start`` on.

    :ivar types: page frames by type, without those that have no struct page.
    """

    start: Address
    types: Mapping[str, int]


_NUMBERS = (Column("pages", "pages", "right"), Column("size", "size", "right"))
COLUMNS: Dict[str, Sequence[Column]] = {
    "type": (
        Column("type", "type"),
        *_NUMBERS,
        Column("share", "%", "right", 1),
        Column("meaning", "what it is", spare=2),
    ),
    "zone": (
        Column("node", "node", "right"),
        Column("zone", "zone"),
        *_NUMBERS,
        Column("free", "free", "right"),
        Column("reserved", "reserved", "right"),
        Column("present", "present", "right"),
        Column("managed", "managed", "right"),
    ),
    "node": (Column("node", "node", "right"), *_NUMBERS, Column("free", "free", "right")),
    "order": (
        Column("order", "order", "right"),
        Column("free_blocks", "free blocks", "right"),
        Column("free_size", "free", "right"),
        Column("compounds", "in use", "right"),
        Column("compound_size", "size", "right"),
    ),
    "cache": (
        Column("name", "cache"),
        Column("slabs", "slabs", "right"),
        *_NUMBERS,
        Column("objects", "objects", "right"),
        Column("in_use", "in use", "right"),
        Column("object_size", "object", "right"),
    ),
    "flags": (
        Column("flags", "flags"),
        *_NUMBERS,
        Column("symbols", "symbolic", spare=1),
        Column("names", "names"),
    ),
    "free": (
        Column("node", "node", "right"),
        Column("zone", "zone"),
        Column("blocks", "free blocks of order 0, 1, ..."),
        *_NUMBERS,
    ),
    "excluded": (
        Column("type", "type"),
        *_NUMBERS,
        Column("lost", "truncated", "right"),
        Column("kept", "in the dump", "right"),
        Column("by", "excluded by"),
    ),
    "map": (Column("start", "physical"), Column("types", "pages by type")),
}
_KEYS = {
    "type": "types",
    "zone": "zones",
    "node": "nodes",
    "order": "orders",
    "cache": "caches",
    "flags": "flags",
    "free": "free",
}


def parse_range(text: str, shift: int) -> Tuple[int, int]:
    """Page frames of physical addresses given as ``A-B`` (B exclusive) or ``A+SIZE``, all hexadecimal.

    :param shift: log2 of the size of a page.
    :return: the first page frame, and one more than the last.
    :raises UsageError: the text is neither.
    """
    match = re.fullmatch(r"(?:0x)?([0-9a-f]{1,16})([-+])(?:0x)?([0-9a-f]{1,16})", text.strip().lower())
    if match:
        low, high = int(match[1], 16), int(match[3], 16)
        high += low if match[2] == "+" else 0
        if low < high <= ALL:
            return low >> shift, high + (1 << shift) - 1 >> shift
    raise UsageError(
        f"{text!r} is not a range of physical addresses",
        "give it as 100000000-140000000 or 100000000+40000000",
    )


class PagesExtra(TypedDict):
    """Further values of the report.

    :ivar total: page frames that were counted.
    :ivar holes: page frames in no section, which have no struct page.
    :ivar unmapped: page frames in a section whose struct pages are not mapped.
    :ivar missing: struct pages that are not in the source.
    :ivar rate: page frames counted per second; None if it took no time.
    :ivar by: the requested breakdown, if any.
    :ivar unknown_flags: names of the flags that cannot be read on this kernel.
    :ivar left_out: bytes that were excluded from the dump; None if that is unknown.
    :ivar filter_level: level of makedumpfile that excludes what is missing; None if none does, if it is
        unknown, or if only a range was counted.
    :ivar recorded_level: level that the file records, if it does.
    """

    total: int
    holes: int
    unmapped: int
    missing: int
    seconds: float
    rate: Optional[int]
    by: Optional[str]
    unknown_flags: Tuple[str, ...]
    by_type: Mapping[str, int]
    by_zone: Mapping[str, int]
    by_node: Mapping[str, int]
    cell_size: Size
    left_out: Optional[Size]
    filter_level: Optional[int]
    recorded_level: Optional[int]


PagesReport = Report[Sequence[Table], PagesExtra]


def _tables(
    census: PageCensus, facts: Mapping[Tuple[int, str], ZoneFacts], shift: int
) -> Dict[str, Sequence[Row]]:
    """The breakdowns that need only the census and the zones' own counts."""
    return {
        "type": _types(census, shift),
        "zone": _zones(census, facts, shift),
        "node": _nodes(census, shift),
        "order": _orders(census, shift),
        "free": _free(census, shift),
    }


def pages_report(
    kernel: Kernel,
    *,
    by: Optional[str] = None,
    top: Optional[int] = None,
    where: Optional[Tuple[int, int]] = None,
    raw: bool = False,
    cells: int = 512,
    jobs: Optional[int] = None,
    progress: Optional[Callable[[int], Callable[[int], None]]] = None,
) -> PagesReport:
    """Count page frames.

    :param by: one of :data:`BREAKDOWNS`, which comes first, and is the only one in text and CSV.
    :param top: maximum number of its rows.
    :param where: page frames to count; the second one is exclusive.
    :param raw: show flags unchanged instead of as page-types shows them.
    :param jobs: number of processes that count; None for the usual number.
    :param progress: called with the number of page frames. The function that it returns is called with the
        number of page frames done since the last call.
    :raises UsageError: none of the page frames has a struct page.
    :raises Unavailable: the source lacks the layout of struct pages, the list of existing page frames, or the
        requested breakdown.
    """
    pages, shift = Pages(kernel), kernel.page_shift
    if by == "cache" and pages.form.slab_cache is None:
        raise Unavailable("the slab cache of a page cannot be read without types", USE_TYPES)
    low, high = where if where is not None else (0, 1 << 52)
    lacks = _lacks(pages)
    jobs = usual_jobs(pages) if jobs is None else jobs
    tick = progress(pages.sections.clip(low, high).total) if progress is not None else lambda pages: None
    began = time.perf_counter()
    counter, unknown = _counter(pages) if where is None else (None, [])
    census = census_in_jobs(pages, jobs, low, high, cells=cells, progress=tick, counter=counter)
    seconds = time.perf_counter() - began
    missing = None if counter is None else counter.finish()
    wrong = mistake(kernel, missing) if missing is not None else ""
    alert = [wrong] if wrong else []
    if not census.total:
        raise UsageError(
            f"no page frame from {low:x} to {high - 1:x} has a struct page",
            f"page frames go up to {max(pages.sections.end - 1, 0):x}",
        )
    lacks += _census_lacks(census)
    try:
        facts = zone_facts(kernel, pages.form)
    except Unavailable as error:
        facts = {}
        lacks.append(error.what)
    overwritten = _contradiction(kernel, census) if where is None else None
    lacks += [overwritten] if overwritten is not None else []
    caches, nameless = _caches(kernel, census)
    if nameless:
        lacks.append(f"{nameless} slab caches have no name in this source")
    made: Dict[str, Sequence[Row]] = {
        **_tables(census, facts, shift),
        "cache": caches,
        "flags": _flags(census, raw, pages.form.unknown_flags, shift),
    }
    first = by or "type"
    notes = _census_notes(census)
    if top is not None and len(made[first]) > top:
        notes.append(f"the first {top} of {len(made[first])} are shown")
        made[first] = made[first][:top]
    order = [first, *(name for name in BREAKDOWNS if name != first)]
    return Report(
        command="pages",
        kernel=kernel.identity,
        tables=(
            *(Table(_KEYS[name], COLUMNS[name], made[name]) for name in order),
            Table("map", COLUMNS["map"], _picture(census, shift)),
            Table("excluded", COLUMNS["excluded"], excluded_rows(missing, shift) if missing else []),
        ),
        head=(*head(kernel), *alert),
        notes=tuple(dict.fromkeys((*alert, *kernel.source.warnings, *lacks, *notes, *unknown))),
        partial=bool(lacks),
        extra=_extra(census, by, pages, seconds, missing),
    )


def _counter(pages: Pages) -> Tuple[Optional[ExclusionCounter], List[str]]:
    """Counts what the dump lacks, if it says that it lacks something; and why that is not known."""
    try:
        return (ExclusionCounter(pages) if lacks_pages(pages.kernel) else None), []
    except Unavailable as error:
        return None, [f"what was excluded from the dump is not known: {error.what}"]


def _lacks(pages: Pages) -> List[str]:
    """What the source lacks, so that types may be wrong or page frames missing."""
    # Without slab caches it does not matter which slabs are KFENCE's.
    fence = "" if pages.form.slab_cache is None else pages.fence[1]
    sections = pages.sections
    lost = f"{sections.missing} tables of memory sections are not in this source: page frames are missing"
    only = f"only page frames whose struct pages are mapped are counted: {sections.mapped_only}"
    return [
        *pages.form.lacks,
        *filter(None, (pages.zero_unknown, fence)),
        *([lost] if sections.missing else []),
        *([sections.whole] if sections.whole else []),
        *([only] if sections.mapped_only else []),
    ]


def _census_lacks(census: PageCensus) -> List[str]:
    """What could not be counted."""
    found = []
    if census.missing:
        found.append(f"{census.missing} struct pages are not in this source; they are counted as not_in_dump")
    if census.limited:
        found.append("struct pages are damaged: they have too many kinds; the rest is not counted")
    return found


def _census_notes(census: PageCensus) -> List[str]:
    """Notes for a reader of the numbers."""
    found = []
    if census.unmapped:
        found.append(
            f"{census.unmapped} page frames have a section but no struct page: nothing is mapped there"
        )
    if census.fenced:
        found.append(f"{census.fenced} pages that look like slabs belong to KFENCE, not to a cache")
    return found


def _picture(census: PageCensus, shift: int) -> List[CellRow]:
    return [
        CellRow(Address(cell * census.cell_pages << shift), census.cell_types(cell))
        for cell in sorted(census.cells)
    ]


def _extra(
    census: PageCensus, by: Optional[str], pages: Pages, seconds: float, missing: Optional[Excluded]
) -> PagesExtra:
    source, shift = pages.kernel.source, pages.kernel.page_shift
    return {
        "total": census.total - census.unmapped,
        "holes": census.holes,
        "unmapped": census.unmapped,
        "missing": census.missing,
        "seconds": seconds,
        "rate": round(census.total / seconds) if seconds > 0 else None,
        "by": by,
        "unknown_flags": tuple(filter(None, kpf_long(pages.form.unknown_flags).split(","))),
        "by_type": {row.type: row.pages for row in _types(census, shift)},
        "by_zone": _plain(census.by(lambda g: g.zone or None)),
        "by_node": _plain(census.by(lambda g: g.node)),
        "cell_size": Size(census.cell_pages << shift),
        "left_out": None if source.left_out is None else Size(source.left_out),
        "filter_level": None if missing is None else missing.level,
        "recorded_level": source.level,
    }


def _contradiction(kernel: Kernel, census: PageCensus) -> Optional[str]:
    """How struct pages contradict the zones; None if they agree, or if the zones cannot be read.

    A kernel that crashed may have been moving a block on each CPU. A running one moves many.
    """
    if kernel.source.live or census.missing or census.limited:
        return None
    try:
        said = free_pages(kernel)
    except Unavailable:
        return None
    found = census.by(lambda group: group.type)["free"]
    if abs(said - found) <= _IN_MOTION + said // 32:
        return None
    return (
        f"struct pages were overwritten: the zones count {said} free pages, but {found} struct pages "
        "are free; do not rely on the types shown"
    )


def _plain(counts: Mapping[Union[str, int, None], int]) -> Dict[str, int]:
    return {
        str(key): pages for key, pages in sorted(counts.items(), key=lambda i: str(i[0])) if key is not None
    }


def _size(pages: int, shift: int) -> Size:
    return Size(pages << shift)


def _types(census: PageCensus, shift: int) -> List[TypeRow]:
    counts = census.by(lambda g: g.type)
    total = sum(counts.values()) or 1
    names = [name for name in TYPES if counts[name]]
    names.sort(key=lambda name: -counts[name])
    return [
        TypeRow(
            name, counts[name], _size(counts[name], shift), round(100 * counts[name] / total, 2), TYPES[name]
        )
        for name in names
    ]


def _zones(census: PageCensus, facts: Mapping[Tuple[int, str], ZoneFacts], shift: int) -> List[ZoneRow]:
    def count(want: Callable[[Group], bool]) -> "Counter[Tuple[Optional[int], str]]":
        out: Counter[Tuple[Optional[int], str]] = Counter()
        for group, pages in census.groups.items():
            if group.zone and want(group):
                out[group.node, group.zone] += pages
        return out

    all_, free, reserved = (
        count(lambda g: True),
        count(lambda g: g.type == "free"),
        count(lambda g: g.type == "reserved"),
    )
    places = list(facts)

    def place(key: Tuple[Optional[int], str]) -> Tuple[int, int, str]:
        node, zone = key
        known = node is not None and (node, zone) in facts
        return -1 if node is None else node, places.index((node or 0, zone)) if known else len(places), zone

    rows = []
    for node, zone in sorted(all_, key=place):
        fact = facts.get((node, zone)) if node is not None else None
        key = node, zone
        rows.append(
            ZoneRow(
                node,
                zone,
                all_[key],
                _size(all_[key], shift),
                free[key],
                reserved[key],
                None if fact is None else fact.present,
                None if fact is None else fact.managed,
            )
        )
    return rows


def _nodes(census: PageCensus, shift: int) -> List[NodeRow]:
    counts = census.by(lambda g: g.node)
    free = census.by(lambda g: g.node if g.type == "free" else "")
    return [
        NodeRow(node, counts[node], _size(counts[node], shift), free[node])
        for node in sorted(counts, key=lambda n: -1 if n is None else n)
        if node is not None
    ]


def _orders(census: PageCensus, shift: int) -> List[OrderRow]:
    if all(group.type == "not_in_dump" for group in census.groups):
        return []  # rows of zeros would claim that nothing is free
    blocks: Counter[int] = Counter()
    compounds: Counter[int] = Counter()
    for group, pages in census.groups.items():
        if group.first and group.type == "free":
            blocks[group.order] += pages
        elif group.first and group.type not in (
            "not_in_dump",
            "reserved",
            "free_cpu",
            "uninitialised",
            "broken",
        ):
            compounds[group.order] += pages
    highest = max([_ORDERS - 1, *blocks, *compounds])
    return [
        OrderRow(
            order,
            blocks[order],
            _size(blocks[order] << order, shift),
            compounds[order],
            _size(compounds[order] << order, shift),
        )
        for order in range(highest + 1)
        if order < _ORDERS or blocks[order] or compounds[order]
    ]


def _free(census: PageCensus, shift: int) -> List[FreeRow]:
    zones: Dict[Tuple[int, str], Counter[int]] = {}
    for group, pages in census.groups.items():
        if group.type == "free" and group.first and group.node is not None:
            zones.setdefault((group.node, group.zone), Counter())[group.order] += pages
    rows = []
    for (node, zone), orders in sorted(zones.items()):
        blocks = tuple(orders[order] for order in range(max(_ORDERS, max(orders) + 1)))
        pages = sum(count << order for order, count in enumerate(blocks))
        rows.append(FreeRow(node, zone, blocks, pages, _size(pages, shift)))
    return rows


def _flags(census: PageCensus, raw: bool, unknown: int, shift: int) -> List[FlagsRow]:
    compound = 1 << KPF_COMPOUND_HEAD | 1 << KPF_COMPOUND_TAIL
    counts: Counter[int] = Counter()
    for group, pages in census.groups.items():
        if group.type == "not_in_dump":
            continue
        flags = group.kpageflags
        if not raw:
            # tools/mm/page-types.c:well_known_flags
            flags &= (1 << 32) - 1
            if not flags & 1 << KPF_HUGE:
                flags &= ~compound
        counts[flags] += pages
    return [
        FlagsRow(Address(flags), pages, _size(pages, shift), kpf_symbols(flags, unknown), kpf_long(flags))
        for flags, pages in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    ]


def _caches(kernel: Kernel, census: PageCensus) -> Tuple[List[CacheRow], int]:
    rows = []
    nameless = 0
    for address, use in census.caches.items():
        name = size = None
        try:
            cache = struct_at(kernel, "struct kmem_cache", address)
            size = Size(number(cache, "object_size"))
            name = text_at(kernel, number(cache, "name"), 256)
        except TROUBLE:
            nameless += 1
        rows.append(
            CacheRow(
                name,
                Address(address),
                use.slabs,
                use.pages,
                _size(use.pages, kernel.page_shift),
                use.objects if census.counts_objects else None,
                use.in_use if census.counts_objects else None,
                size,
            )
        )
    rows.sort(key=lambda row: (-row.pages, row.name or ""))
    return rows, nameless
