# SPDX-License-Identifier: LGPL-2.1-or-later
"""Where regions lie: against each other, against VMCOREINFO, against the page tables."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Callable, List, Tuple

from kvintro.arch.x86_64 import ALL, DEFAULT_TEXT, PAGE_SHIFT, PMD_SHIFT, START_KERNEL_MAP
from kvintro.errors import Unavailable
from kvintro.kernel import Kernel
from kvintro.model import AddressRange, Placement, Unknown
from kvintro.paging import MAPPED, OVER_LIMIT, REPEATED, UNREADABLE
from kvintro.paging.bulk import MAPPED as FOUND
from kvintro.queries.audit.verdict import MOST, Finding, Verdict, conclude
from kvintro.readers.mapped import rights_text

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray

#: Of larger stretches one page in each 2 MB is looked up: 16 GB page by page, half a million look-ups a TB.
_EVERY_PAGE = 1 << 34
_MOST_PAGES = 1 << 23


def overlap(kernel: Kernel) -> Verdict:
    """Bounds against bounds, each as it was read."""
    placed = sorted(
        ((region, found) for region in kernel.regions for found in [kernel.locate(region)]
         if isinstance(found, Placement)),
        key=lambda item: item[1].range.start,
    )  # fmt: skip
    findings = []
    for number, (region, found) in enumerate(placed):
        for other, theirs in placed[number + 1 :]:
            if found.range.overlaps(theirs.range):
                findings.append(
                    Finding(
                        theirs.range.start,
                        min(found.range.end, theirs.range.end),
                        f"{region.name} ({_bounds(found)}) and {other.name} ({_bounds(theirs)})",
                    )
                )
    unknown = [r.name for r in kernel.regions if isinstance(kernel.locate(r), Unknown)]
    return conclude(findings, f"not known: {', '.join(unknown)}" if unknown else "", f"{len(placed)} regions")


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
    findings: List[Finding] = []
    compared: List[str] = []
    for key, name, theirs, mask in pairs:
        try:
            wanted, found = kernel.number(key).value & mask, theirs() & mask
        except Unavailable:
            continue
        compared.append(name)
        if wanted != found:
            findings.append(Finding(None, None, f"{name} is {found:#x}, VMCOREINFO's {key} is {wanted:#x}"))
    base = kernel.page_offset_base
    low = kernel.geometry.ldt_remap.end + 1
    for segment in kernel.source.segments:
        # QEMU writes no virtual addresses; /proc/kcore's other segments have no physical ones.
        known = 0 < segment.paddr < 1 << kernel.geometry.max_physmem_bits
        if known and low <= segment.vaddr < base.value + (1 << kernel.geometry.max_physmem_bits):
            compared.append("PT_LOAD")
            if segment.vaddr - segment.paddr != base.value:
                findings.append(
                    Finding(
                        segment.vaddr,
                        segment.vaddr + max(segment.memsz, 1) - 1,
                        f"a segment of physical {segment.paddr:#x}, but the direct map starts at "
                        f"{base.value:016x} by {base.provenance}",
                    )
                )
    if not compared:
        raise Unavailable("this source says it once only")
    return conclude(findings, "", ", ".join(dict.fromkeys(compared)))


def linear(kernel: Kernel) -> Verdict:
    """Regions with a rule of their own for translating: what page tables have there follows the rule."""
    import numpy

    findings: List[Finding] = []
    unread = ""
    looked = 0
    for region in kernel.regions:
        rule = region.linear(kernel)
        if rule is None:
            continue
        addresses = _sample(kernel, rule.range)
        looked += len(addresses)
        physical, states = kernel.translate_array(addresses)
        if (states > FOUND).any():
            unread = "some page tables are not in this source"
        wanted = addresses - numpy.uint64(rule.offset)
        findings += _runs(region.name, addresses, physical, wanted, (states == FOUND) & (physical != wanted))
    return conclude(findings, unread, f"{looked} pages of the direct map and the image")


def _sample(kernel: Kernel, where: AddressRange) -> NDArray[numpy.uint64]:
    """Addresses of mapped pages in a stretch: of all, or of one in each 2 MB where there are many."""
    import numpy

    mapped = kernel.kernel_ranges.clip(where.start, where.end).select(MAPPED)
    total = sum(high - low + 1 for low, high, _ in mapped)
    step = 1 << (PAGE_SHIFT if total <= _EVERY_PAGE else PMD_SHIFT)
    pieces = []
    left = _MOST_PAGES
    for low, high, _ in mapped:
        count = min((high - low) // step + 1, left)
        pieces.append(numpy.uint64(low) + numpy.arange(count, dtype=numpy.uint64) * numpy.uint64(step))
        left -= count
    return numpy.concatenate(pieces) if pieces else numpy.zeros(0, numpy.uint64)


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
    findings: List[Finding] = []
    unread = False
    cursor = half.start
    for part in sorted(taken, key=lambda item: item.start):
        if part.start > cursor:
            unread |= _unclaimed(kernel, cursor, part.start - 1, findings)
        cursor = max(cursor, part.end + 1)
    if cursor <= half.end:
        unread |= _unclaimed(kernel, cursor, half.end, findings)
    text = "some page tables are not in this source" if unread else ""
    return conclude(findings, text, "the kernel half of init_top_pgt")


def _unclaimed(kernel: Kernel, start: int, end: int, findings: List[Finding]) -> bool:
    """Add what is mapped in a stretch; returns whether some of it is not known."""
    ranges = kernel.kernel_ranges.clip(start, end)
    for low, high, key in ranges.select(MAPPED)[:MOST]:
        where = "in the image's window" if low >= START_KERNEL_MAP else "in no region"
        findings.append(Finding(low, high, f"{rights_text(key & ~REPEATED)} {where}"))
    return bool(ranges.select(UNREADABLE | OVER_LIMIT))
