# SPDX-License-Identifier: LGPL-2.1-or-later
"""What may be done where: the kernel's rules for its own page tables.

What is judged is the rights of all levels taken together.
"""

from __future__ import annotations

import struct
from dataclasses import replace
from typing import Iterator, List, Mapping, Optional, Sequence, Tuple

from kvintro.arch.x86_64 import (
    ALL,
    PAGE_SIZE,
    PMD_SHIFT,
    PRESENT,
    PTI_USER_ROOT_BIT,
    PTRS_PER_TABLE,
    VSYSCALL_ADDR,
)
from kvintro.errors import NotInDump, Unavailable
from kvintro.kernel import Kernel
from kvintro.model import Absent, AddressRange, Placement, Unknown
from kvintro.paging import (
    EFFECTIVE_NX,
    EFFECTIVE_RW,
    EFFECTIVE_USER,
    MAPPED,
    OVER_LIMIT,
    UNREADABLE,
    Ranges,
)
from kvintro.queries.audit.verdict import MOST, Finding, Tally, Verdict, not_applicable
from kvintro.queries.modules import module_memory
from kvintro.readers.mapped import ranges_of
from kvintro.regions import Region
from kvintro.regions.ldt_remap import table_of

_RIGHTS = MAPPED | EFFECTIVE_RW | EFFECTIVE_USER | EFFECTIVE_NX | UNREADABLE | OVER_LIMIT
_LOW_MEMORY = 1 << 20
_PMD = 1 << PMD_SHIFT
#: What breaks a rule: key & mask == value for any (mask, value).
Patterns = Sequence[Tuple[int, int]]

_WRITABLE: Patterns = ((MAPPED | EFFECTIVE_RW, MAPPED | EFFECTIVE_RW),)
_EXECUTABLE: Patterns = ((MAPPED | EFFECTIVE_NX, MAPPED),)
_WRITABLE_AND_EXECUTABLE: Patterns = ((MAPPED | EFFECTIVE_RW | EFFECTIVE_NX, MAPPED | EFFECTIVE_RW),)
_USER: Patterns = ((MAPPED | EFFECTIVE_USER, MAPPED | EFFECTIVE_USER),)
_ANY: Patterns = ((MAPPED, MAPPED),)
_HALF = "the kernel half of init_top_pgt"


def _rights(key: int) -> str:
    return " ".join(
        (
            "user" if key & EFFECTIVE_USER else "kernel",
            "RW" if key & EFFECTIVE_RW else "ro",
            "NX" if key & EFFECTIVE_NX else "x",
        )
    )


def _where(ranges: Ranges, part: AddressRange, broken: Patterns) -> List[Finding]:
    """Places of a part whose rights break a rule."""
    found = ranges.clip(part.start, part.end).masked(_RIGHTS).matching(broken, MOST)
    return [Finding(start, end, _rights(key)) for start, end, key in found]


def _look(tally: Tally, name: str, ranges: Ranges, part: AddressRange, *, may_be_empty: bool = False) -> None:
    """Count what is mapped in a part whose rights are judged, and say what cannot be."""
    found = ranges.clip(part.start, part.end)
    tally.compared(name, found.count(MAPPED), may_be_empty=may_be_empty)
    if found.any(UNREADABLE | OVER_LIMIT):
        tally.lacks("some page tables are not in this source")


def _judge(kernel: Kernel, parts: Mapping[str, AddressRange], broken: Patterns) -> Verdict:
    """Verdict over parts of the kernel's own tables."""
    tally = Tally("mapped ranges")
    for name, part in parts.items():
        tally.findings += _where(kernel.kernel_ranges, part, broken)
        _look(tally, name, kernel.kernel_ranges, part)
    return tally.verdict()


def _kernel_half(kernel: Kernel) -> AddressRange:
    return AddressRange(kernel.geometry.guard_hole.end + 1, ALL)


def _between(kernel: Kernel, first: str, last: str) -> AddressRange:
    """From a symbol's address up to but not including another's."""
    start, end = kernel.symbol(first), kernel.symbol(last)
    if not start < end:
        raise Unavailable(f"{first} does not lie before {last}")
    return AddressRange(start, end - 1)


def _place_of(kernel: Kernel, key: str) -> AddressRange:
    found = kernel.locate(key)
    if not isinstance(found, Placement):
        raise Unavailable(found.reason)
    return found.range


def _alias(kernel: Kernel, part: AddressRange) -> AddressRange:
    """A part of the image in the direct map."""
    for region in kernel.regions:
        rule = region.linear(kernel)
        if rule is not None and part.start in rule.range:
            base = kernel.page_offset_base.value - rule.offset
            return AddressRange(part.start + base & ALL, part.end + base & ALL)
    raise Unavailable("where the image lies in the direct map is not known")


def writable_and_executable(kernel: Kernel) -> Verdict:
    """The kernel's own CONFIG_DEBUG_WX, at the time of the dump."""
    return _judge(kernel, {_HALF: _kernel_half(kernel)}, _WRITABLE_AND_EXECUTABLE)


def firmware(kernel: Kernel) -> Verdict:
    """The same of what firmware's runtime services run on (arch/x86/platform/efi/efi_64.c)."""
    region = next(r for r in kernel.regions if r.key == "efi")
    found = kernel.locate(region)
    if isinstance(found, Absent):
        return not_applicable(found.reason)
    part = _place_of(kernel, "efi")
    (root,) = region.roots(kernel)
    ranges = kernel.new_tree(root.table).ranges(part.start, part.end)
    tally = Tally("mapped ranges")
    tally.findings += _where(ranges, part, _WRITABLE_AND_EXECUTABLE)
    _look(tally, "the EFI region of efi_mm", ranges, part)
    return tally.verdict()


def writable_text(kernel: Kernel) -> Verdict:
    """mark_rodata_ro()."""
    text = _between(kernel, "_text", "_etext")
    return _judge(kernel, {"_text to _etext": text, "its direct map": _alias(kernel, text)}, _WRITABLE)


def writable_rodata(kernel: Kernel) -> Verdict:
    """mark_rodata_ro()."""
    rodata = _between(kernel, "__start_rodata", "__end_rodata")
    parts = {"__start_rodata to __end_rodata": rodata, "its direct map": _alias(kernel, rodata)}
    return _judge(kernel, parts, _WRITABLE)


def executable_data(kernel: Kernel) -> Verdict:
    """mark_rodata_ro() again: everything behind the text."""
    found = kernel.locate("kernel_image")
    end = found.used.end if isinstance(found, Placement) and found.used else None
    if end is None:
        raise Unavailable("where the image ends is not known")
    start = kernel.symbol("__start_rodata")
    return _judge(kernel, {"the image from __start_rodata on": AddressRange(start, end)}, _EXECUTABLE)


def executable_direct_map(kernel: Kernel) -> Verdict:
    """All of it, save the first megabyte, where processors start in real mode (realmode/init.c)."""
    place = _place_of(kernel, "direct_map")
    part = AddressRange(place.start + _LOW_MEMORY, place.end)
    return _judge(kernel, {"the direct map above 1 MB": part}, _EXECUTABLE)


def region_rights(kernel: Kernel) -> Verdict:
    """What else the kernel maps for data; and of espfix, that only its alias can be written."""
    tally = Tally("mapped ranges")
    for key in ("vmalloc", "vmemmap", "kasan_shadow", "cpu_entry_area", "espfix", "fixmap", "ldt_remap"):
        region = next((r for r in kernel.regions if r.key == key), None)
        if region is None or isinstance(kernel.locate(region), Absent):
            continue
        try:
            _rights_in(kernel, region, _place_of(kernel, key), tally)
        except Unavailable as error:
            tally.lacks(f"{region.name}: {error.what}")
    return tally.verdict()


def _rights_in(kernel: Kernel, region: Region, place: AddressRange, tally: Tally) -> None:
    broken = (*_EXECUTABLE, *_WRITABLE) if region.key in ("espfix", "ldt_remap") else _EXECUTABLE
    roots = region.roots(kernel)
    if not roots:
        tally.compared(region.name, 0, may_be_empty=True)  # no process has an LDT
    for root in roots:
        ranges = ranges_of(kernel, place.start, place.end, root.table)
        _look(tally, region.name, ranges, place)
        tally.findings += [
            replace(finding, what=f"{region.name}: {finding.what}")
            for finding in _where(ranges, place, broken)
            if not _hypercalls(kernel, finding, tally)
        ]


def _hypercalls(kernel: Kernel, finding: Finding, tally: Tally) -> bool:
    """Whether it is, or may be, the page by which Hyper-V is called (arch/x86/hyperv/hv_init.c)."""
    if finding.start is None or finding.end != finding.start + PAGE_SIZE - 1:
        return False
    if kernel.source.symbols == "none" or not kernel.has_symbol("hyperv_init", code=True):
        return False
    try:
        return kernel.value("hv_hypercall_pg").value == finding.start
    except Unavailable as error:
        tally.lacks(f"whether {finding.start:016x} is Hyper-V's page: {error.what}")
        return True


def user_bit(kernel: Kernel) -> Verdict:
    """Only the vsyscall page may be user mode's."""
    half = _kernel_half(kernel)
    tally = Tally("mapped ranges")
    _look(tally, _HALF, kernel.kernel_ranges, half)
    places = _where(kernel.kernel_ranges, half, _USER)
    found = kernel.locate("vsyscall")
    if not isinstance(found, Absent):
        page = AddressRange(VSYSCALL_ADDR, VSYSCALL_ADDR + PAGE_SIZE - 1)
        others = [place for place in places if not (place.start in page and place.end in page)]
        if others != places and not isinstance(found, Placement):
            tally.lacks(f"user mode can read {page.start:016x}, and {found.reason}")
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
        # Text, read-only and other data in one allocation, before 6.4.
        "core": _WRITABLE_AND_EXECUTABLE,
    }
    tally = Tally()
    for piece in pieces:
        rule = broken.get(piece.kind)
        if rule is None:
            continue
        part = AddressRange(piece.start, piece.end)
        _look(tally, f"{piece.module} {piece.kind}", kernel.kernel_ranges, part)
        tally.findings += [
            Finding(place.start, place.end, f"{piece.module} {piece.kind}: {place.what}")
            for place in _where(kernel.kernel_ranges, part, rule)
        ]
    return tally.verdict(f"{len({piece.module for piece in pieces})} modules")


def user_half(kernel: Kernel) -> Verdict:
    """What arch/x86/mm/pti.c clones, and nothing else."""
    if not kernel.pti.value:
        return not_applicable(f"page-table isolation is off ({kernel.pti.provenance})")
    half = _kernel_half(kernel)
    ranges = kernel.new_tree(kernel.root.value | PTI_USER_ROOT_BIT).ranges(half.start, half.end)
    tally = Tally("mapped ranges")
    _look(tally, f"{_HALF}'s user half", ranges, half)
    allowed = list(_cloned(kernel))
    text = _image_text(kernel)
    for start, end, key in ranges.masked(_RIGHTS).matching(_ANY, MOST):
        if text is not None and start in text and end in text and not key & EFFECTIVE_RW:
            continue
        tally.findings += [Finding(low, high, _rights(key)) for low, high in _outside(start, end, allowed)]
    return tally.verdict()


def _cloned(kernel: Kernel) -> Iterator[AddressRange]:
    """What user mode's tables may have of the kernel's, rights aside."""
    for key in ("cpu_entry_area", "espfix", "vsyscall"):
        found = kernel.locate(key)
        if isinstance(found, Unknown):
            raise Unavailable(found.reason)
        if isinstance(found, Placement):
            yield found.range
    tss = kernel.symbol("cpu_tss_rw")
    count = kernel.value("nr_cpu_ids", 4).value
    if not 0 < count <= 1 << 13:
        raise Unavailable(f"nr_cpu_ids is {count}, which makes no sense")
    for offset in struct.unpack(f"<{count}Q", kernel.read(kernel.symbol("__per_cpu_offset"), 8 * count)):
        address = tss + offset & ALL & -PAGE_SIZE
        yield AddressRange(address, address + PAGE_SIZE - 1)


def _image_text(kernel: Kernel) -> Optional[AddressRange]:
    """The part of the image that user mode may see read-only.

    The entry text always, in pages of 2M; without PCID and with pti=auto all text and read-only data, which
    the kernel then says by making them global (pti_kernel_image_global_ok).
    """
    entry = _between(kernel, "__entry_text_start", "__entry_text_end")
    whole = _between(kernel, "_text", "__end_rodata_aligned")
    found = kernel.walk(whole.start)
    last = found.steps[-1].value if found.steps else None
    global_text = last is not None and last & 1 << 8 and last & PRESENT
    entry_part = AddressRange(entry.start & -_PMD, (entry.end | (_PMD - 1)) & ALL)
    if global_text and whole.start not in entry_part:
        return whole
    return entry_part


def _outside(start: int, end: int, allowed: Sequence[AddressRange]) -> List[Tuple[int, int]]:
    """What is left of a range without others."""
    left = [(start, end)]
    for part in allowed:
        left = (
            [
                piece
                for low, high in left
                for piece in (
                    (low, min(high, part.start - 1)),
                    (max(low, part.end + 1), high),
                )
                if piece[0] <= piece[1]
            ]
            if any(low <= part.end and part.start <= high for low, high in left)
            else left
        )
    return left


def process_roots(kernel: Kernel) -> Verdict:
    """Every process has the kernel half that init_top_pgt has (pgd_ctor, and pti.c for the user half)."""
    geometry = kernel.geometry
    first = geometry.index(geometry.guard_hole.end + 1, geometry.levels)
    slot = geometry.index(geometry.ldt_remap.start, geometry.levels)
    own = _entries(kernel, kernel.root.value)
    own_user = _entries(kernel, kernel.root.value | PTI_USER_ROOT_BIT) if kernel.pti.value else None
    tally = Tally("processes")
    if not any(own[first:]):
        tally.lacks("init_top_pgt maps nothing in the kernel half")
    for pid, root in _processes(kernel):
        tally.compared("", 1)
        for ours, theirs, name in (
            (own, root, "kernel"),
            (own_user, root | PTI_USER_ROOT_BIT, "user"),
        ):
            if ours is None:
                continue
            entries = _entries(kernel, theirs)
            for index in range(first, PTRS_PER_TABLE):
                # The LDT is a process's own, and vmalloc's entries come when they are used first.
                if index == slot or entries[index] in (ours[index], 0):
                    continue
                if _same_but_accessed(entries[index], ours[index]):
                    continue
                start = geometry.sign_extend(index << geometry.pgdir_shift)
                what = (
                    f"pid {pid}, {name} half: entry {entries[index]:016x}, the kernel's is {ours[index]:016x}"
                )
                tally.findings.append(Finding(start, start + (1 << geometry.pgdir_shift) - 1, what))
    return tally.verdict()


def _same_but_accessed(one: int, other: int) -> bool:
    return not (one ^ other) & ~0x20


def _entries(kernel: Kernel, table: int) -> Tuple[int, ...]:
    try:
        return struct.unpack("<512Q", kernel.read_physical(table, PAGE_SIZE))
    except NotInDump as error:
        raise Unavailable(error.what) from error


def _processes(kernel: Kernel) -> Iterator[Tuple[int, int]]:
    """(pid, physical address of the root) of each process with memory of its own."""
    from drgn.helpers.linux.pid import for_each_task

    if kernel.source.types == "none":
        raise Unavailable("processes cannot be listed without types")
    seen = set()
    try:
        for count, task in enumerate(for_each_task(kernel.prog)):
            if count > 1 << 22:
                raise Unavailable("the list of tasks does not end")
            mm = task.mm.read_()
            if mm and mm.value_() not in seen:
                seen.add(mm.value_())
                yield task.pid.value_(), table_of(kernel, mm.pgd.value_())
    except (LookupError, AttributeError, ValueError, TypeError) as error:
        raise Unavailable(f"processes cannot be listed: {error}") from error
