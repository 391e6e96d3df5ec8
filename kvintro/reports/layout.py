# SPDX-License-Identifier: LGPL-2.1-or-later
"""The whole address space: every region at its actual address, and the holes between regions."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Dict, List, Mapping, Optional, Sequence, Tuple

from kvintro.errors import Unavailable
from kvintro.kernels import Kernel, Region
from kvintro.model import (
    ALL,
    Absent,
    Address,
    AddressRange,
    Column,
    Displacement,
    NoExtra,
    Placement,
    Report,
    Root,
    Size,
    Table,
    Unknown,
)
from kvintro.queries.coverage import Coverage, contradiction, count
from kvintro.queries.placements import Placements, only_image_moved, place_regions
from kvintro.queries.roots import process_root
from kvintro.readers.mapped import unread
from kvintro.text import size_text


@dataclass(frozen=True)
class RegionRow:
    """One row of the map; docs/layout.md describes the JSON object of the same fields.

    :ivar parent: key of the region that contains this one; None for regions in no other, which do not overlap
        each other.
    :ivar mapped: bytes; None if none was found and some page tables cannot be read.
    :ivar at_least: whether more may be mapped than ``mapped`` and ``leaves`` say.
    :ivar unreadable: bytes that may or may not be mapped.
    """

    key: str
    name: str
    kind: str
    parent: Optional[str]
    state: str
    start: Optional[Address]
    end: Optional[Address]
    offset: Optional[Displacement]
    size: Optional[Size]
    default_start: Optional[Address]
    slide: Optional[Displacement]
    used_start: Optional[Address]
    used_end: Optional[Address]
    used_note: str
    macro: Optional[str]
    provenance: Optional[str]
    mapped: Optional[Size]
    shared: Optional[Size]
    at_least: bool
    unreadable: Optional[Size]
    leaves: Mapping[str, int]
    roots: Optional[int]
    root_noun: str
    reason: Optional[str]
    note: str


LayoutReport = Report[Tuple[Table[RegionRow]], NoExtra]

COLUMNS = (
    Column("start", "start"),
    Column("end", "end"),
    Column("offset", "offset", "right", 5),
    Column("size", "size", "right"),
    Column("key", "region"),
    Column("name", "name", spare=3),
    Column("mapped", "mapped", "right"),
    Column("leaves", "pages", spare=1),
    Column("slide", "moved by", "right", 2),
    Column("provenance", "read from", spare=4),
)


#: Note of :func:`layout`: in any region, more may be mapped than it counted.
DAMAGED = "the page tables are damaged: they contain more tables than fit in memory"


def layout(kernel: Kernel, *, holes: bool = True, pid: Optional[int] = None) -> LayoutReport:
    """The memory map.

    :param holes: whether to include holes. Without them the rows do not cover all addresses.
    :param pid: process whose mappings are counted in the user half.
    :raises UsageError: there is no such process.
    """
    placements = place_regions(kernel)
    user_root = None if pid is None else process_root(kernel, pid)
    rows: List[RegionRow] = []
    notes: List[str] = []
    partial = damaged = False
    for region, found in _with_holes(placements, kernel.arch.unused_top):
        if region is None:
            if holes:
                rows.append(_hole(found.range, kernel.arch.unused_top))
            continue
        if region.kind == "hole" and not holes:
            continue
        census: Optional[Coverage] = None
        roots: Optional[int] = None
        reason = None
        try:
            under = region.roots(kernel)
            if region is kernel.regions.user and user_root is not None:
                under = (user_root,)
            census = _census(kernel, under, found.range)
            roots = len(under)
            damaged |= census is not None and census.limited
            if census is not None:
                reason = _not_seen(kernel, region, found.range, under, census)
                own = region.own_memory(kernel) if census.mapped else None
                if own is not None:
                    census = replace(census, repeated=max(census.mapped - own, 0))
            if reason is not None:
                partial = True
                notes.append(f"{region.name}: {reason}")
        except Unavailable as error:
            reason = f"how much is mapped is not known: {error.what}"
            partial = True
        rows.append(_present(region, found, census, roots, reason))
    for region, why in placements.missing:
        rows.append(_missing(region, why))
        partial |= isinstance(why, Unknown)
    if damaged:
        notes.append(DAMAGED)
        partial = True
    return Report(
        command="layout",
        kernel=kernel.identity,
        tables=(Table("regions", COLUMNS, rows),),
        head=head(kernel),
        notes=tuple(dict.fromkeys((*kernel.source.warnings, *notes))),
        partial=partial,
    )


def _with_holes(placements: Placements, top: int) -> List[Tuple[Optional[Region], Placement]]:
    """Regions and the holes between them, from 0 to 2^64-1; inner regions follow the one that contains them.

    :param top: first address of the last hole, which has its own row.
    """
    out: List[Tuple[Optional[Region], Placement]] = []

    def hole(start: int, end: int) -> None:
        if start < top <= end:
            hole(start, top - 1)
            start = top
        if start <= end:
            out.append((None, Placement(AddressRange(start, end), "")))

    cursor = 0
    for region, found in placements.nested():
        if found.range.end < cursor:
            out.append((region, found))
            continue
        hole(cursor, found.range.start - 1)
        out.append((region, found))
        cursor = found.range.end + 1
    hole(cursor, ALL)
    return out


def _census(kernel: Kernel, roots: Sequence[Root], where: AddressRange) -> Optional[Coverage]:
    """What all roots together map in a range; None if there are no roots."""
    if not roots:
        return None
    total: Dict[str, int] = {}
    mapped = repeated = unreadable = 0
    limited = False
    for root in roots:
        own = root.table == kernel.root.value
        # A tree counts tables that it has already visited as shared, so each count uses a new tree.
        tree = kernel.tree() if own else kernel.new_tree(root.table)
        ranges = kernel.kernel_ranges if own else tree.ranges(where.start, where.end)
        limited |= tree.limited
        census = count(ranges, kernel.form, where.start, where.end)
        mapped += census.mapped
        repeated += census.repeated
        unreadable += census.unreadable
        for name, number in census.leaves.items():
            total[name] = total.get(name, 0) + number
    return Coverage(mapped, repeated, total, unreadable, limited)


def _not_seen(
    kernel: Kernel, region: Region, where: AddressRange, roots: Sequence[Root], census: Coverage
) -> Optional[str]:
    """Why more may be mapped in a region than was counted; None if the count is complete."""
    own = [root.table for root in roots if root.table == kernel.root.value]
    if census.unreadable or (own and not census.mapped):
        whys = (unread(kernel, where.start, where.end, root.table) for root in roots)
        why = next(filter(None, whys), None)
        if why is not None:
            return why
    return contradiction(kernel, region, census.mapped)


def _offset(start: int) -> Displacement:
    return Displacement(start if start >> 63 == 0 else start - (1 << 64))


def _address(value: Optional[int]) -> Optional[Address]:
    return None if value is None else Address(value)


def _present(
    region: Region, found: Placement, census: Optional[Coverage], roots: Optional[int], reason: Optional[str]
) -> RegionRow:
    noun = region.root_noun[0] if roots == 1 else region.root_noun[1]
    # "Nothing is mapped" is a claim too.
    unknown = census is None or bool(reason and not census.mapped)
    return RegionRow(
        key=region.key,
        name=region.name,
        kind=region.kind,
        parent=found.parent or None,
        state="present",
        start=Address(found.range.start),
        end=Address(found.range.end),
        offset=_offset(found.range.start),
        size=Size(found.range.size),
        default_start=_address(found.default_start),
        slide=None if found.slide is None else Displacement(found.slide),
        used_start=_address(found.used.start if found.used else None),
        used_end=_address(found.used.end if found.used else None),
        used_note=found.used_note,
        macro=region.macro,
        provenance=found.provenance,
        mapped=None if census is None or unknown else Size(census.mapped),
        shared=None if census is None or unknown else Size(census.repeated),
        at_least=not unknown and bool(reason),
        unreadable=None if census is None else Size(census.unreadable),
        leaves={} if census is None else census.leaves,
        roots=roots,
        root_noun=noun,
        reason=reason,
        note=found.note,
    )


def _bare(
    key: str,
    name: str,
    kind: str,
    state: str,
    where: Optional[AddressRange],
    macro: Optional[str],
    reason: Optional[str],
    note: str,
) -> RegionRow:
    return RegionRow(
        key=key,
        name=name,
        kind=kind,
        parent=None,
        state=state,
        start=_address(where.start if where else None),
        end=_address(where.end if where else None),
        offset=_offset(where.start) if where else None,
        size=Size(where.size) if where else None,
        default_start=None,
        slide=None,
        used_start=None,
        used_end=None,
        used_note="",
        macro=macro,
        provenance=None,
        mapped=None,
        shared=None,
        at_least=False,
        unreadable=None,
        leaves={},
        roots=None,
        root_noun="",
        reason=reason,
        note=note,
    )


def _hole(where: AddressRange, top: int) -> RegionRow:
    note = "error pointers and poison values point here" if where.start == top else ""
    return _bare("hole", "unused", "hole", "present", where, None, None, note)


def _missing(region: Region, why: "Absent | Unknown") -> RegionRow:
    state = "absent" if isinstance(why, Absent) else "unknown"
    return _bare(region.key, region.name, region.kind, state, None, region.macro, why.reason, "")


def head(kernel: Kernel) -> Sequence[str]:
    """Two lines: the kernel, and the source that it was read from."""
    source = kernel.source
    who = kernel.identity

    def switch(value: Optional[bool]) -> str:
        return "unknown" if value is None else ("on" if value else "off")

    first = [
        f"Linux {who.release or 'of unknown release'}",
        f"{who.arch}, {who.paging_levels}-level paging",
        "KASLR: image only" if who.kaslr and only_image_moved(kernel) else f"KASLR {switch(who.kaslr)}",
        f"PTI {switch(who.isolation)}",
    ]
    if source.kind == "core":
        parts = [f"{source.format} {source.label}", f"{size_text(source.size or 0)} file"]
        # Both are too large: the end of RAM counts the gap below 4 GB, and dumps may have firmware's memory.
        sizes = [] if source.memory is None else [source.memory + (source.left_out or 0)]
        try:
            sizes.append(kernel.max_pfn.value << kernel.page_shift)
        except Unavailable:
            pass
        if sizes:
            parts.append(f"{size_text(min(sizes))} of memory")
        if source.complete is False:
            parts.append("TRUNCATED")
        elif source.left_out:
            parts.append(f"{size_text(source.left_out)} excluded")
        elif source.complete:
            parts.append("complete")
        what = ", ".join(parts)
    else:
        what = f"{'running kernel' if source.kind == 'live' else 'running guest'} {source.label}"
    return ("   ".join(first), f"{what}   types: {who.types}   symbols: {who.symbols}")
