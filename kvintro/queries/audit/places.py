# SPDX-License-Identifier: LGPL-2.1-or-later
"""Where regions lie: against each other, against VMCOREINFO, against the page tables."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Callable, List, Tuple

from kvintro.arch.x86_64 import ALL, DEFAULT_TEXT, PAGE_SHIFT, PMD_SHIFT, START_KERNEL_MAP
from kvintro.errors import Unavailable
from kvintro.kernel import Kernel
from kvintro.model import AddressRange, Placement, Unknown
from kvintro.paging import LEVEL_MASK, LEVEL_SHIFT, MAPPED, OVER_LIMIT, REPEATED, UNREADABLE
from kvintro.paging.broken import MISSING, WINDOWS
from kvintro.paging.bulk import MAPPED as FOUND
from kvintro.queries.audit.verdict import MOST, Finding, Tally, Verdict, not_applicable
from kvintro.queries.census import contradiction
from kvintro.readers.mapped import rights_text

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray

#: Mapped pages looked up in each region, of whatever size: 32 GB of pages of 4K, 16 TB of 2M.
_MOST_PAGES = 1 << 23


def tables(kernel: Kernel) -> Verdict:
    """Page tables that the kernel cannot have run on, and sections of memory that no table leads to.

    A table that is missing from the dump is no defect of the kernel's.
    """
    if kernel.source.live:
        return not_applicable("the page tables of a running kernel are in use")
    translation = kernel.source.translation
    if translation is None:
        raise Unavailable("VMCOREINFO does not say where the page tables are")
    tally = Tally("tables")
    for name in WINDOWS:
        if name not in translation.judged:
            tally.lacks(f"{name}: not known where it is")
    for name, judged in translation.judged.items():
        tally.compared(name, judged.looked)
        missing = [broken for broken in judged.broken if broken.why == MISSING]
        if missing:
            tally.lacks(f"not in this source: {len(missing)} tables of {name}")
        if judged.left:
            tally.lacks(f"there are too many: {judged.left} tables of {name} were not looked at")
        tally.findings += [
            Finding(broken.start, broken.end, f"{name}: {broken.text}")
            for broken in judged.broken
            if broken.why != MISSING
        ]
    for region in kernel.regions:
        found = kernel.locate(region)
        if isinstance(found, Placement) and region.key in ("direct_map", "vmemmap"):
            if any(broken.start in found.range for broken in kernel.source.broken_tables):
                continue  # that says it
            mapped = kernel.kernel_ranges.clip(found.range.start, found.range.end).select(MAPPED)
            lost = contradiction(kernel, region.key, sum(high - low + 1 for low, high, _ in mapped))
            if lost:
                tally.findings.append(Finding(found.range.start, found.range.end, f"{region.name}: {lost}"))
    return tally.verdict()


def overlap(kernel: Kernel) -> Verdict:
    """Bounds against bounds, each as it was read."""
    placed = sorted(
        ((region, found) for region in kernel.regions for found in [kernel.locate(region)]
         if isinstance(found, Placement)),
        key=lambda item: item[1].range.start,
    )  # fmt: skip
    tally = Tally()
    for number, (region, found) in enumerate(placed):
        for other, theirs in placed[number + 1 :]:
            if found.range.overlaps(theirs.range):
                tally.findings.append(
                    Finding(
                        theirs.range.start,
                        min(found.range.end, theirs.range.end),
                        f"{region.name} ({_bounds(found)}) and {other.name} ({_bounds(theirs)})",
                    )
                )
    tally.compared("pairs of regions", len(placed) * (len(placed) - 1) // 2)
    unknown = [r.name for r in kernel.regions if isinstance(kernel.locate(r), Unknown)]
    if unknown:
        tally.lacks(f"not known: {', '.join(unknown)}")
    return tally.verdict(f"{len(placed)} regions")


def _bounds(found: Placement) -> str:
    return f"{found.range.start:016x}-{found.range.end:016x} by {found.provenance}"


def vmcoreinfo(kernel: Kernel) -> Verdict:
    """What the kernel wrote down for dumps when it booted, and the segments of a dump that has addresses."""

    def symbol(name: str) -> Callable[[], int]:
        return lambda: kernel.symbol(name)

    pairs: List[Tuple[str, str, Callable[[], int], int]] = [
        ("SYMBOL(swapper_pg_dir)", "init_top_pgt", symbol("init_top_pgt"), ALL),
        ("SYMBOL(_stext)", "_stext", symbol("_stext"), ALL),
        ("SYMBOL(init_uts_ns)", "init_uts_ns", symbol("init_uts_ns"), ALL),
        ("KERNELOFFSET", "_text less its default", lambda: kernel.symbol("_text") - DEFAULT_TEXT, ALL),
        ("NUMBER(phys_base)", "phys_base", lambda: kernel.value("phys_base").value, ALL),
        (
            "NUMBER(pgtable_l5_enabled)",
            "__pgtable_l5_enabled",
            lambda: kernel.value("__pgtable_l5_enabled", 4).value,
            1,
        ),
        ("NUMBER(VMALLOC_START)", "vmalloc_base", lambda: kernel.value("vmalloc_base").value, ALL),
        ("SYMBOL(vmemmap)", "vmemmap_base", lambda: kernel.value("vmemmap_base").value, ALL),
        ("NUMBER(sme_mask)", "sme_me_mask", lambda: kernel.value("sme_me_mask").value, ALL),
    ]
    tally = Tally()
    for key, name, theirs, mask in pairs:
        if key not in kernel.source.vmcoreinfo:
            continue  # said once only
        try:
            wanted, found = kernel.number(key).value & mask, theirs() & mask
        except Unavailable as error:
            if not _never_had(kernel, name):
                tally.lacks(error.what)
            continue
        tally.compared(name, 1)
        if wanted != found:
            tally.findings.append(
                Finding(None, None, f"{name} is {found:#x}, VMCOREINFO's {key} is {wanted:#x}")
            )
    _segments(kernel, tally)
    verdict = tally.verdict(", ".join(tally.parts))
    if not verdict.compared and not verdict.unknown:
        raise Unavailable("this source says it once only")
    return verdict


def _never_had(kernel: Kernel, variable: str) -> bool:
    """Whether this kernel was built without a variable: all its names are known, and this is none of them."""
    known = kernel.source.symbols != "none" and not kernel.code_only
    return known and kernel.find_symbol(variable) is None


def _segments(kernel: Kernel, tally: Tally) -> None:
    """Segments of RAM that have both addresses lie where the direct map's base says."""
    base = kernel.page_offset_base
    low = kernel.geometry.ldt_remap.end + 1
    for segment in kernel.source.segments:
        # QEMU writes no virtual addresses; /proc/kcore's other segments have no physical ones.
        known = 0 < segment.paddr < 1 << kernel.geometry.max_physmem_bits
        if known and low <= segment.vaddr < base.value + (1 << kernel.geometry.max_physmem_bits):
            tally.compared("PT_LOAD", 1)
            if segment.vaddr - segment.paddr != base.value:
                tally.findings.append(
                    Finding(
                        segment.vaddr,
                        segment.vaddr + max(segment.memsz, 1) - 1,
                        f"a segment of physical {segment.paddr:#x}, but the direct map starts at "
                        f"{base.value:016x} by {base.provenance}",
                    )
                )


def linear(kernel: Kernel) -> Verdict:
    """Regions with a rule of their own for translating: what page tables have there follows the rule."""
    import numpy

    tally = Tally("mapped pages")
    for region in kernel.regions:
        rule = region.linear(kernel)
        if rule is None:
            continue
        addresses, whole = _leaves(kernel, rule.range)
        physical, states = kernel.translate_array(addresses)
        if not rule.whole:
            tally.lacks(f"{region.name}: nothing tells where it ends")
        if not whole:
            tally.lacks(f"{region.name} is mapped by more pages than the {_MOST_PAGES} that are looked at")
        ranges = kernel.kernel_ranges.clip(rule.range.start, rule.range.end)
        if (states > FOUND).any() or ranges.any(UNREADABLE | OVER_LIMIT):
            tally.lacks("some page tables are not in this source")
        tally.compared(region.name, int((states == FOUND).sum()))
        wanted = addresses - numpy.uint64(rule.offset)
        wrong = (states == FOUND) & (physical != wanted)
        tally.findings += _runs(region.name, addresses, physical, wanted, wrong)
    return tally.verdict()


def _leaves(kernel: Kernel, where: AddressRange) -> Tuple[NDArray[numpy.uint64], bool]:
    """An address in each page that is mapped in a stretch, of whatever size; and whether those are all."""
    import numpy

    pieces = []
    left = _MOST_PAGES
    whole = True
    for low, high, key in kernel.kernel_ranges.clip(where.start, where.end).select(MAPPED):
        step = 1 << kernel.geometry.shift((key & LEVEL_MASK) >> LEVEL_SHIFT)
        first = low & -step
        count = (high - first) // step + 1
        whole = whole and count <= left
        piece = numpy.uint64(first) + numpy.arange(min(count, left), dtype=numpy.uint64) * numpy.uint64(step)
        piece[:1] = low
        pieces.append(piece)
        left -= len(piece)
    return numpy.concatenate(pieces) if pieces else numpy.zeros(0, numpy.uint64), whole


def _runs(name: str, addresses: Any, physical: Any, wanted: Any, bad: Any) -> List[Finding]:
    """Neighbouring addresses that are wrong by the same distance, as one finding each."""
    import numpy

    found: List[List[int]] = []
    for at in numpy.flatnonzero(bad).tolist():
        address, off = int(addresses[at]), int(physical[at]) - int(wanted[at])
        if found and found[-1][2] == off and address - found[-1][1] <= 1 << PMD_SHIFT:
            found[-1][1] = address
        elif len(found) < MOST:
            found.append([address, address, off, int(physical[at]), int(wanted[at])])
    return [
        Finding(start, end + (1 << PAGE_SHIFT) - 1, f"{name}: maps physical {at:#x}, not {rule:#x}")
        for start, end, _, at, rule in found
    ]


def strays(kernel: Kernel) -> Verdict:
    """The stretches between regions, and of the image's window what is not the image (cleanup_highmap)."""
    half = AddressRange(kernel.geometry.guard_hole.end + 1, ALL)
    shift = kernel.geometry.pgdir_shift
    taken: List[AddressRange] = []
    unknown = []
    for region in kernel.regions:
        found = kernel.locate(region)
        if isinstance(found, Unknown):
            unknown.append(region.name)
        elif isinstance(found, Placement):
            if region.key == "kernel_image" and found.used is None:
                unknown.append(region.name)
            part = found.used or found.range if region.key == "kernel_image" else found.range
            if region.key == "kasan_shadow":
                # arch/x86/mm/kasan_init_64.c fills whole entries of the root.
                part = AddressRange(part.start >> shift << shift, part.end)
            taken.append(part)
    if unknown:
        raise Unavailable(f"where these lie is not known: {', '.join(unknown)}")
    tally = Tally()
    cursor = half.start
    for part in sorted(taken, key=lambda item: item.start):
        if part.start > cursor:
            _unclaimed(kernel, cursor, part.start - 1, tally)
        cursor = max(cursor, part.end + 1)
    if cursor <= half.end:
        _unclaimed(kernel, cursor, half.end, tally)
    count = kernel.kernel_ranges.clip(half.start, half.end).count(MAPPED)
    tally.compared("the kernel half of init_top_pgt", count)
    return tally.verdict(f"the kernel half of init_top_pgt, {count} mapped ranges")


def _unclaimed(kernel: Kernel, start: int, end: int, tally: Tally) -> None:
    """Add what is mapped in a stretch."""
    ranges = kernel.kernel_ranges.clip(start, end)
    for low, high, key in ranges.select(MAPPED)[:MOST]:
        where = "in the image's window" if low >= START_KERNEL_MAP else "in no region"
        tally.findings.append(Finding(low, high, f"{rights_text(key & ~REPEATED)} {where}"))
    if ranges.any(UNREADABLE | OVER_LIMIT):
        tally.lacks("some page tables are not in this source")
