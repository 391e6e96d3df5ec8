# SPDX-License-Identifier: LGPL-2.1-or-later
"""Rules about bounds of regions: against each other, VMCOREINFO and the page tables."""

from __future__ import annotations

from typing import TYPE_CHECKING, List, Sequence, Tuple

from kvintro.arch import part as part_of
from kvintro.arch.address_space import WINDOWS
from kvintro.errors import Unavailable
from kvintro.kernels import Kernel, Trait
from kvintro.model import ALL, AddressRange, Placement, Unknown
from kvintro.paging import LEVEL_MASK, LEVEL_SHIFT, MAPPED, OVER_LIMIT, REPEATED, UNREADABLE
from kvintro.paging.broken import MISSING
from kvintro.paging.bulk import MAPPED as FOUND
from kvintro.queries.audit.rights import half_name
from kvintro.queries.audit.verdict import MOST, Finding, Said, Tally, Verdict, not_applicable
from kvintro.queries.coverage import contradiction
from kvintro.queries.placements import lies_in
from kvintro.readers.mapped import rights_text

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray

    U64 = NDArray[numpy.uint64]

#: Maximum number of mapped pages of any size to look up per region: 32 GB of 4K pages, 16 TB of 2M pages.
_MOST_PAGES = 1 << 23


def tables(kernel: Kernel) -> Verdict:
    """Page tables with which the kernel cannot have run, and sections of memory that no table leads to.

    A table that is missing from the dump is not a defect.
    """
    if kernel.source.live:
        return not_applicable("the page tables of a running kernel are in use")
    translation = kernel.source.translation
    if translation is None:
        raise Unavailable("VMCOREINFO does not say where the page tables are")
    tally = Tally("tables")
    for name in WINDOWS:
        if name not in translation.judged:
            tally.lacks(f"{name}: its address is not known")
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
    for region in (kernel.regions.direct_map, kernel.regions.vmemmap):
        found = kernel.locate(region)
        if isinstance(found, Placement):
            if any(broken.start in found.range for broken in kernel.source.broken_tables):
                continue  # a finding about the table already says so
            mapped = kernel.kernel_ranges.clip(found.range.start, found.range.end).select(MAPPED)
            lost = contradiction(kernel, region, sum(high - low + 1 for low, high, _ in mapped))
            if lost:
                tally.findings.append(Finding(found.range.start, found.range.end, f"{region.name}: {lost}"))
    return tally.verdict()


def overlap(kernel: Kernel) -> Verdict:
    """Compare the bounds that were read with each other."""
    placed = sorted(
        ((region, found) for region in kernel.regions for found in [kernel.locate(region)]
         if isinstance(found, Placement)),
        key=lambda item: item[1].range.start,
    )  # fmt: skip
    tally = Tally()
    for number, (region, found) in enumerate(placed):
        for other, theirs in placed[number + 1 :]:
            if lies_in(kernel, theirs, region) or lies_in(kernel, found, other):
                continue
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


#: Symbols that VMCOREINFO has on every architecture, beside the root table.
_SAID = (
    Said("SYMBOL(_stext)", "_stext", lambda kernel: kernel.symbol("_stext")),
    Said("SYMBOL(init_uts_ns)", "init_uts_ns", lambda kernel: kernel.symbol("init_uts_ns")),
)


def vmcoreinfo(kernel: Kernel) -> Verdict:
    """Compare with VMCOREINFO, written at boot, and with the segments of a dump that has addresses."""
    said: Sequence[Said] = part_of(kernel.arch, "checks").SAID
    root = kernel.facts.root_name
    first = (Said("SYMBOL(swapper_pg_dir)", root, lambda kernel: kernel.symbol(root)), *_SAID)
    tally = Tally()
    for key, name, read, mask in (*first, *said):
        if key not in kernel.source.vmcoreinfo:
            continue  # only the kernel's memory has it
        try:
            wanted, found = kernel.number(key).value & mask, read(kernel) & mask
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
        raise Unavailable("this source contains it only once")
    return verdict


def _never_had(kernel: Kernel, variable: str) -> bool:
    """Whether this kernel was built without a variable: all symbols are known, and it is not among them."""
    known = kernel.source.symbols != "none" and not kernel.code_only
    return known and kernel.find_symbol(variable) is None


def _segments(kernel: Kernel, tally: Tally) -> None:
    """Segments of RAM that have both addresses agree with the base of the direct map."""
    base, window = kernel.linear_offset, kernel.facts.linear_window
    bits = kernel.facts.max_physmem_bits.value
    for segment in kernel.source.segments:
        # QEMU writes no virtual addresses. Other segments of /proc/kcore have no physical addresses.
        if 0 < segment.paddr < 1 << bits and segment.vaddr in window:
            tally.compared("PT_LOAD", 1)
            if segment.vaddr - segment.paddr & ALL != base.value:
                tally.findings.append(
                    Finding(
                        segment.vaddr,
                        segment.vaddr + max(segment.memsz, 1) - 1,
                        f"a segment of physical {segment.paddr:#x}, but the direct map starts at "
                        f"{base.value:016x} by {base.provenance}",
                    )
                )


def linear(kernel: Kernel) -> Verdict:
    """In regions with a linear rule, the page tables follow that rule."""
    import numpy

    tally = Tally("mapped pages")
    for region in kernel.regions:
        rule = region.linear(kernel)
        if rule is None:
            continue
        addresses, whole = _leaves(kernel, rule.range)
        physical, states = kernel.translate_array(addresses)
        if not rule.whole:
            tally.lacks(f"{region.name}: its end is not known")
        if not whole:
            tally.lacks(
                f"{region.name} is mapped by more than {_MOST_PAGES} pages, the most that are checked"
            )
        ranges = kernel.kernel_ranges.clip(rule.range.start, rule.range.end)
        if (states > FOUND).any() or ranges.any(UNREADABLE | OVER_LIMIT):
            tally.lacks("some page tables are not in this source")
        tally.compared(region.name, int((states == FOUND).sum()))
        wanted = addresses - numpy.uint64(rule.offset)
        wrong = (states == FOUND) & (physical != wanted)
        tally.findings += _runs(kernel, region.name, addresses, physical, wanted, wrong)
    return tally.verdict()


def _leaves(kernel: Kernel, where: AddressRange) -> Tuple[NDArray[numpy.uint64], bool]:
    """An address in each mapped page of a range, of any page size, and whether all pages are included."""
    import numpy

    pieces = []
    left = _MOST_PAGES
    whole = True
    for low, high, key in kernel.kernel_ranges.clip(where.start, where.end).select(MAPPED):
        step = 1 << kernel.form.shift((key & LEVEL_MASK) >> LEVEL_SHIFT)
        first = low & -step
        count = (high - first) // step + 1
        whole = whole and count <= left
        piece = numpy.uint64(first) + numpy.arange(min(count, left), dtype=numpy.uint64) * numpy.uint64(step)
        piece[:1] = low
        pieces.append(piece)
        left -= len(piece)
    return numpy.concatenate(pieces) if pieces else numpy.zeros(0, numpy.uint64), whole


def _runs(
    kernel: Kernel, name: str, addresses: U64, physical: U64, wanted: U64, bad: "NDArray[numpy.bool_]"
) -> List[Finding]:
    """Merge adjacent addresses that are wrong by the same distance into one finding each."""
    import numpy

    form = kernel.form
    near = 1 << form.shift(2)  # large pages among small ones
    found: List[List[int]] = []
    for at in numpy.flatnonzero(bad).tolist():
        address, off = int(addresses[at]), int(physical[at]) - int(wanted[at])
        if found and found[-1][2] == off and address - found[-1][1] <= near:
            found[-1][1] = address
        elif len(found) < MOST:
            found.append([address, address, off, int(physical[at]), int(wanted[at])])
    return [
        Finding(start, end + form.page_size - 1, f"{name}: maps physical {at:#x}, not {rule:#x}")
        for start, end, _, at, rule in found
    ]


def strays(kernel: Kernel) -> Verdict:
    """Nothing is mapped between regions, or in the image's window outside the image (cleanup_highmap)."""
    half = kernel.form.kernel
    taken: List[AddressRange] = []
    unknown = []
    for region in kernel.regions:
        found = kernel.locate(region)
        if isinstance(found, Unknown):
            unknown.append(region.name)
        elif isinstance(found, Placement) and Trait.UNUSED not in region.traits:
            claimed = region.claimed(kernel, found)
            if claimed is None:
                unknown.append(region.name)
            taken.append(claimed or found.range)
    if unknown:
        raise Unavailable(f"the addresses of these regions are not known: {', '.join(unknown)}")
    tally = Tally()
    cursor = half.start
    for part in sorted(taken, key=lambda item: item.start):
        if part.start > cursor:
            _unclaimed(kernel, cursor, part.start - 1, tally)
        cursor = max(cursor, part.end + 1)
    if cursor <= half.end:
        _unclaimed(kernel, cursor, half.end, tally)
    count = kernel.kernel_ranges.clip(half.start, half.end).count(MAPPED)
    tally.compared(half_name(kernel), count)
    return tally.verdict(f"{half_name(kernel)}, {count} mapped ranges")


def _unclaimed(kernel: Kernel, start: int, end: int, tally: Tally) -> None:
    """Add what is mapped in a range."""
    ranges = kernel.kernel_ranges.clip(start, end)
    image = kernel.locate(kernel.regions.kernel_image)
    window = image.range if isinstance(image, Placement) else None
    unused = [
        (region.name, found.range)
        for region in kernel.regions
        if Trait.UNUSED in region.traits
        for found in [kernel.locate(region)]
        if isinstance(found, Placement)
    ]
    for low, high, key in ranges.select(MAPPED)[:MOST]:
        where = "in the image's window" if window is not None and low in window else "in no region"
        where = next((f"in {name}" for name, part in unused if low in part), where)
        tally.findings.append(Finding(low, high, f"{rights_text(key & ~REPEATED)} {where}"))
    if ranges.any(UNREADABLE | OVER_LIMIT):
        tally.lacks("some page tables are not in this source")
