# SPDX-License-Identifier: LGPL-2.1-or-later
"""Rules about access rights in the kernel's own page tables.

They check the effective rights over all levels.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Callable, List, Mapping, Sequence, Tuple

from kvintro.arch import part as part_of
from kvintro.arch.rights import USER, words
from kvintro.errors import Unavailable
from kvintro.kernels import Kernel, Region, Trait
from kvintro.model import ALL, Absent, AddressRange, Placement, Unknown
from kvintro.paging import (
    EFFECTIVE_EXEC,
    EFFECTIVE_SHIFT,
    EFFECTIVE_USER,
    EFFECTIVE_WRITE,
    MAPPED,
    OVER_LIMIT,
    UNREADABLE,
    Ranges,
)
from kvintro.queries.audit.verdict import MOST, Finding, Tally, Verdict, not_applicable
from kvintro.queries.modules import module_memory
from kvintro.queries.placements import own_parts
from kvintro.readers.damage import Damage
from kvintro.readers.mapped import ranges_of
from kvintro.readers.structures import need_types
from kvintro.regions.vmalloc import Areas
from kvintro.text import size_text

RIGHTS = MAPPED | EFFECTIVE_WRITE | EFFECTIVE_USER | EFFECTIVE_EXEC | UNREADABLE | OVER_LIMIT
#: Keys that break a rule: key & mask == value for any (mask, value).
Patterns = Sequence[Tuple[int, int]]
#: Function of an architecture's ``checks`` module that filters findings in a region that should hold data: it
#: removes code that the architecture keeps there.
Unexplained = Callable[[Kernel, Region, Sequence[Finding], Tally], Sequence[Finding]]

_WX = MAPPED | EFFECTIVE_WRITE | EFFECTIVE_EXEC
_WRITABLE: Patterns = ((MAPPED | EFFECTIVE_WRITE, MAPPED | EFFECTIVE_WRITE),)
_EXECUTABLE: Patterns = ((MAPPED | EFFECTIVE_EXEC, MAPPED | EFFECTIVE_EXEC),)
WRITABLE_AND_EXECUTABLE: Patterns = ((_WX, _WX),)
_USER: Patterns = ((MAPPED | EFFECTIVE_USER, MAPPED | EFFECTIVE_USER),)


def half_name(kernel: Kernel) -> str:
    """Name of the kernel's own half of its root."""
    return f"the kernel half of {kernel.kernel_root.owner}"


def rights_of(key: int) -> str:
    """Effective rights of a range over all levels."""
    rights = key >> EFFECTIVE_SHIFT
    return " ".join((*(() if rights & USER else ("kernel",)), *words(rights)))


def broken_in(ranges: Ranges, part: AddressRange, broken: Patterns) -> List[Finding]:
    """Ranges of a part whose rights break a rule."""
    found = ranges.clip(part.start, part.end).masked(RIGHTS).matching(broken, MOST)
    return [Finding(start, end, rights_of(key)) for start, end, key in found]


def look(tally: Tally, name: str, ranges: Ranges, part: AddressRange, *, may_be_empty: bool = False) -> None:
    """Count what is mapped in a checked part, and note what cannot be checked."""
    found = ranges.clip(part.start, part.end)
    tally.compared(name, found.count(MAPPED), may_be_empty=may_be_empty)
    if found.any(UNREADABLE | OVER_LIMIT):
        tally.lacks("some page tables are not in this source")


def _judge(kernel: Kernel, parts: Mapping[str, AddressRange], broken: Patterns) -> Verdict:
    """Check parts of the kernel's own tables."""
    tally = Tally("mapped ranges")
    for name, part in parts.items():
        tally.findings += broken_in(kernel.kernel_ranges, part, broken)
        look(tally, name, kernel.kernel_ranges, part)
    return tally.verdict()


def between(kernel: Kernel, first: str, last: str) -> AddressRange:
    """Range from one symbol's address to another's, exclusive."""
    start, end = kernel.symbol(first), kernel.symbol(last)
    if not start < end:
        raise Unavailable(f"{first} is not before {last}")
    return AddressRange(start, end - 1)


def alias(kernel: Kernel, part: AddressRange) -> AddressRange:
    """Range of a part of the image in the direct map."""
    for region in kernel.regions:
        rule = region.linear(kernel)
        if rule is not None and part.start in rule.range:
            base = kernel.linear_offset.value - rule.offset
            return AddressRange(part.start + base & ALL, part.end + base & ALL)
    raise Unavailable("the image's place in the direct map is not known")


def writable_and_executable(kernel: Kernel) -> Verdict:
    """The kernel's own CONFIG_DEBUG_WX, at the time of the dump."""
    return _judge(kernel, {half_name(kernel): kernel.form.kernel}, WRITABLE_AND_EXECUTABLE)


def image_part(kernel: Kernel, name: str) -> Tuple[str, AddressRange]:
    """(symbols, range) of a main part of the image that every kernel has.

    :raises Unavailable: the source does not say where it is.
    """
    part = next(part for part in kernel.arch.image_parts if part.name == name)
    return f"{part.first} to {part.last}", between(kernel, part.first, part.last)


def writable_text(kernel: Kernel) -> Verdict:
    """mark_rodata_ro(), and for the direct map of arm64 mark_linear_text_alias_ro()."""
    name, text = image_part(kernel, "text")
    return _judge(kernel, {name: text, "its direct map": alias(kernel, text)}, _WRITABLE)


def writable_rodata(kernel: Kernel) -> Verdict:
    """The same functions."""
    name, rodata = image_part(kernel, "rodata")
    return _judge(kernel, {name: rodata, "its direct map": alias(kernel, rodata)}, _WRITABLE)


def executable_data(kernel: Kernel) -> Verdict:
    """mark_rodata_ro() again: everything after the text."""
    region = kernel.regions.kernel_image
    found = kernel.locate(region)
    image = region.claimed(kernel, found) if isinstance(found, Placement) else None
    if image is None:
        raise Unavailable("the end of the image is not known")
    _, rodata = image_part(kernel, "rodata")
    part = AddressRange(rodata.start, image.end)
    return _judge(kernel, {"the image from __start_rodata on": part}, _EXECUTABLE)


def executable_direct_map(kernel: Kernel) -> Verdict:
    """All of the direct map, except what the architecture keeps for code at the start of memory."""
    place = kernel.place("direct_map").range
    low = int(part_of(kernel.arch, "checks").LOW_CODE)
    name = f"the direct map above {size_text(low)}" if low else "the direct map"
    part, ranges = AddressRange(place.start + low, place.end), kernel.kernel_ranges
    unexplained: Unexplained = part_of(kernel.arch, "checks").unexplained
    tally = Tally("mapped ranges")
    found: Sequence[Finding] = broken_in(ranges, part, _EXECUTABLE)
    if found:
        found = unexplained(kernel, kernel.regions.direct_map, found, tally)
    tally.findings += found
    look(tally, name, ranges, part)
    return tally.verdict()


def region_rights(kernel: Kernel) -> Verdict:
    """Other regions that hold data, and regions that are mapped read-only, such as espfix."""
    unexplained: Unexplained = part_of(kernel.arch, "checks").unexplained
    tally = Tally("mapped ranges")
    # Tables other than the kernel's own come last.
    for region in sorted(kernel.regions, key=lambda region: Trait.PER_PROCESS in region.traits):
        if not region.traits & (Trait.NO_EXEC | Trait.NO_WRITE) or isinstance(kernel.locate(region), Absent):
            continue
        try:
            _rights_in(kernel, region, tally, unexplained)
        except Unavailable as error:
            tally.lacks(f"{region.name}: {error.what}")
    return tally.verdict()


def _rights_in(kernel: Kernel, region: Region, tally: Tally, unexplained: Unexplained) -> None:
    broken = (
        *(_EXECUTABLE if Trait.NO_EXEC in region.traits else ()),
        *(_WRITABLE if Trait.NO_WRITE in region.traits else ()),
    )
    parts = own_parts(kernel, region)
    roots = region.roots(kernel)
    if not roots:
        tally.compared(region.name, 0, may_be_empty=True)  # no process has an LDT
    for root in roots:
        for part in parts:
            ranges = ranges_of(kernel, part.start, part.end, root.table)
            look(tally, region.name, ranges, part, may_be_empty=len(parts) > 1)
            found: Sequence[Finding] = broken_in(ranges, part, broken)
            if found:
                found = unexplained(kernel, region, found, tally)
            tally.findings += [replace(finding, what=f"{region.name}: {finding.what}") for finding in found]


def user_bit(kernel: Kernel) -> Verdict:
    """Only regions made for user mode, such as the vsyscall page, may be accessible to it."""
    half = kernel.form.kernel
    tally = Tally("mapped ranges")
    look(tally, half_name(kernel), kernel.kernel_ranges, half)
    places = broken_in(kernel.kernel_ranges, half, _USER)
    for region in kernel.regions:
        found = kernel.locate(region)
        if Trait.FOR_USER not in region.traits or isinstance(found, Absent):
            continue
        page = found.range if isinstance(found, Placement) else region.reserved
        others = [p for p in places if page is None or not (p.start in page and p.end in page)]
        if isinstance(found, Unknown) and (page is None or others != places):
            where = "" if page is None else f"user mode can read {page.start:016x}, and "
            tally.lacks(f"{where}{found.reason}")
        places = others
    tally.findings += places
    return tally.verdict()


def module_rights(kernel: Kernel) -> Verdict:
    """module_enable_rodata_ro(), module_enable_nx()."""
    pieces = module_memory(kernel)
    if not pieces:
        return not_applicable("no module is loaded")
    broken = {
        "text": _WRITABLE,
        "rodata": (*_WRITABLE, *_EXECUTABLE),
        "ro_after_init": (*_WRITABLE, *_EXECUTABLE),
        "data": _EXECUTABLE,
        # Text, read-only and other data share one allocation before 6.4.
        "core": WRITABLE_AND_EXECUTABLE,
    }
    tally = Tally()
    for piece in pieces:
        rule = broken.get(piece.kind)
        if rule is None:
            continue
        part = AddressRange(piece.start, piece.end)
        look(tally, f"{piece.module} {piece.kind}", kernel.kernel_ranges, part)
        tally.findings += [
            Finding(place.start, place.end, f"{piece.module} {piece.kind}: {place.what}")
            for place in broken_in(kernel.kernel_ranges, part, rule)
        ]
    return tally.verdict(f"{len({piece.module for piece in pieces})} modules")


def areas_of_code(kernel: Kernel, where: AddressRange) -> Sequence[AddressRange]:
    """Areas marked as having pages with changed rights; adjacent areas are merged.

    :raises Unavailable: they cannot be listed.
    """
    need_types(kernel, "vmalloc areas")
    damage = Damage()
    reader = Areas(kernel, where, damage, within=where)
    rows = sorted(reader.busy(), key=lambda row: row.start)
    if damage:
        raise Unavailable(damage.notes[0])
    found: List[AddressRange] = []
    for row in rows:
        if int(row.start) in reader.own_rights:
            joined = found and found[-1].end + 1 == row.start
            start = found.pop().start if joined else int(row.start)
            found.append(AddressRange(start, int(row.end)))
    return found
