# SPDX-License-Identifier: LGPL-2.1-or-later
"""Rules that compare the kernel's lists with its page tables."""

from __future__ import annotations

from bisect import bisect_right
from typing import Any, List, Sequence

from kvintro.errors import Unavailable
from kvintro.kernels import Kernel, Region, Trait
from kvintro.model import Address, AddressRange, Asked, Placement, Unknown
from kvintro.paging import MAPPED, OVER_LIMIT, UNREADABLE
from kvintro.queries.audit.verdict import Finding, Tally, Verdict
from kvintro.queries.placements import lies_in
from kvintro.readers.damage import Damage
from kvintro.readers.mapped import ranges_of, rights_text
from kvintro.regions.vmalloc import AreaRow, all_areas, bare_areas


def contents(kernel: Kernel) -> Verdict:
    """Compare every structure that describes a mapping, region by region, with the page tables."""
    tally = Tally()
    for region in kernel.regions:
        # `kvintro user` covers the memory of processes.
        if region is kernel.regions.user:
            continue
        place = kernel.locate(region)
        if isinstance(place, Unknown):
            tally.lacks(f"{region.name}: {place.reason}")
        elif isinstance(place, Placement):
            _contents_of(kernel, region, place.range, tally)
    return tally.verdict()


def _contents_of(kernel: Kernel, region: Region, where: AddressRange, tally: Tally) -> None:
    try:
        found = region.contents(kernel, Asked())
        roots = region.roots(kernel)
    except Unavailable as error:
        tally.lacks(f"{region.name}: {error.what}")
        return
    rows = [row for table in found.tables for row in table.rows if hasattr(row, "problem")]
    if rows:
        tally.compared(region.name, len(rows))
    tally.findings += [_finding(region, row) for row in rows if row.problem]
    if found.partial:
        tally.lacks(f"{region.name}: {found.notes[0] if found.notes else 'not all of it was read'}")
    for root in roots if rows else ():
        # A row whose page tables are missing cannot reveal a problem.
        if ranges_of(kernel, where.start, where.end, root.table).any(UNREADABLE | OVER_LIMIT):
            tally.lacks(f"{region.name}: some page tables are not in this source")


def _finding(region: Region, row: Any) -> Finding:
    start, end = getattr(row, "start", None), getattr(row, "end", None)
    names = [getattr(row, key, None) for key in ("module", "caller", "name", "member", "comm", "kind")]
    name = next((str(text) for text in names if text), "")
    return Finding(
        int(start) if isinstance(start, Address) else None,
        int(end) if isinstance(end, Address) else None,
        f"{region.name}: {name + ': ' if name else ''}{row.problem}",
    )


def _areas(kernel: Kernel) -> "tuple[List[AreaRow], List[AddressRange]]":
    """All areas by address, and the ranges from which they are allocated.

    Without types only areas in use: freed ones map nothing any more.
    """
    found = kernel.place("vmalloc")
    damage = Damage()
    rows: Sequence[AreaRow]
    if kernel.source.types == "none":
        rows = bare_areas(kernel, found.range, damage)
    else:
        rows, damage = kernel.once(all_areas)
    rows = sorted(rows, key=lambda row: row.start)
    if damage:
        raise Unavailable(damage.notes[0])
    parts = [found.range]
    # With KASAN the same allocator maps the shadow of modules (mm/kasan/shadow.c).
    keys = (region.key for region in kernel.regions if Trait.AREAS in region.traits)
    for key in (*keys, "kasan_shadow"):
        other = kernel.locate(key)
        if isinstance(other, Placement) and lies_in(kernel, other, kernel.regions.vmalloc):
            continue
        if isinstance(other, Unknown):
            raise Unavailable(other.reason)
        if isinstance(other, Placement) and other.range not in parts:
            parts.append(other.range)
    return rows, parts


def areas_apart(kernel: Kernel) -> Verdict:
    """Each address is allocated once (mm/vmalloc.c), and from the ranges that serve areas."""
    rows, parts = _areas(kernel)
    tally = Tally("areas")
    tally.compared("", len(rows))
    findings = tally.findings
    last = None
    for row in rows:
        if not any(row.start in part and row.end in part for part in parts):
            findings.append(
                Finding(row.start, row.end, f"{_name(row)} is in a region from which areas are not allocated")
            )
        if last is not None and row.start <= last.end:
            findings.append(
                Finding(row.start, min(row.end, last.end), f"both {_name(last)} and {_name(row)} have this")
            )
        if last is None or row.end > last.end:
            last = row
    if kernel.source.types == "none":
        tally.lacks("recently freed areas cannot be read without types")
    return tally.verdict()


def _name(row: AreaRow) -> str:
    return f"{row.caller or row.kind} ({row.start:016x}-{row.end:016x})"


def outside_areas(kernel: Kernel) -> Verdict:
    """Every mapping in the ranges that serve areas has an area, allocated before it and freed after it."""
    rows, parts = _areas(kernel)
    starts = [int(row.start) for row in rows]
    tally = Tally()
    shadow = kernel.locate("kasan_shadow")
    count = 0
    for part in parts:
        if isinstance(shadow, Placement) and part == shadow.range:
            continue  # most of it is mapped from boot on
        ranges = kernel.kernel_ranges.clip(part.start, part.end)
        if ranges.any(UNREADABLE | OVER_LIMIT):
            tally.lacks("some page tables are not in this source")
        for low, high, key in ranges.select(MAPPED):
            count += 1
            for start, end in _uncovered(low, high, starts, rows):
                if not tally.full:
                    tally.findings.append(Finding(start, end, f"{rights_text(key)}, and it is in no area"))
    tally.compared("mapped ranges", count)
    return tally.verdict(f"{count} mapped ranges and {len(rows)} areas")


def _uncovered(
    low: int, high: int, starts: Sequence[int], rows: Sequence[AreaRow]
) -> "List[tuple[int, int]]":
    """The parts of a range that no row covers; rows ascend by their starts."""
    out = []
    index = max(bisect_right(starts, low) - 1, 0)
    while low <= high:
        if index >= len(rows) or rows[index].start > high:
            out.append((low, high))
            break
        row = rows[index]
        if row.end >= low:
            if row.start > low:
                out.append((low, int(row.start) - 1))
            low = int(row.end) + 1
        index += 1
    return out
