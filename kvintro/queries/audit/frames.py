# SPDX-License-Identifier: LGPL-2.1-or-later
"""What struct pages say of pages, against what page tables do with them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Iterator, List, Tuple

from kvintro.arch.x86_64 import ALL, PAGE_SHIFT, PAGE_SIZE, PRESENT, PSE, PTRS_PER_TABLE
from kvintro.errors import Unavailable
from kvintro.kernel import Kernel
from kvintro.model import AddressRange, Placement
from kvintro.paging import EFFECTIVE_NX, MAPPED, REPEATED, Ranges
from kvintro.paging.bulk import MAPPED as FOUND
from kvintro.paging.tree import read_tables
from kvintro.queries.audit.verdict import MOST, Finding, Verdict, conclude
from kvintro.queries.pages.census import FrameTypes, Pages
from kvintro.queries.pages.runs import distinct
from kvintro.readers.processes import each_mm, mm_of, root_of
from kvintro.readers.structures import TROUBLE, Damage

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray

    U64 = NDArray[numpy.uint64]

#: Pages looked at, of all roots together; the rest is left out, and that is said.
_MOST_PAGES = 1 << 26
_MOST_RANGES = 1 << 20
_AT_ONCE = 1 << 20
_MOST_TABLES = 1 << 24
# The kernel's own tables: from memblock or in the image when it boots; later marked or not, as the kernel's
# age has it (the constructor runs for them since 6.16).
_OF_KERNEL = ("pgtable", "kernel", "reserved")


def _roots(kernel: Kernel) -> Iterator[Tuple[str, int]]:
    """(whose, physical address) of each process's root.

    :raises Unavailable: processes cannot be listed.
    """
    damage = Damage()
    for process in each_mm(kernel, damage):
        try:
            yield f"pid {process.pid}", root_of(kernel, mm_of(kernel, process))
        except TROUBLE as error:
            damage.add("the memory of a process cannot be read", f"pid {process.pid}: {error}")
    if damage:
        raise Unavailable(damage.notes[0])


def tables(kernel: Kernel) -> Verdict:
    """Whatever a walk takes for a table was allocated for one (include/linux/mm.h:pagetable_*_ctor).

    Tables of the lowest level of user memory have always been marked; those above, and the kernel's, not in
    every version: they must at least be nothing else. Of the level above the lowest, all are or none (5.4).
    """
    import numpy

    pages = Pages(kernel)
    types = FrameTypes(pages)
    marked = "table" in pages.form.types.codes
    first_kernel = PTRS_PER_TABLE // 2
    findings: List[Finding] = []
    unmarked: List[Finding] = []
    marks_second = False
    count = 0
    missing = False
    for owner, root, low, high in (
        ("init_top_pgt", kernel.root.value, first_kernel, PTRS_PER_TABLE),
        *((owner, root, 0, first_kernel) for owner, root in _roots(kernel)),
    ):
        user = low == 0
        level = kernel.geometry.levels
        found = numpy.array([root], numpy.uint64)
        seen: "set[int]" = set()
        while len(found):
            count += len(found)
            if count > _MOST_TABLES:
                raise Unavailable(f"there are more than {_MOST_TABLES} tables")
            strict = user and marked and level == 1
            second = user and marked and level == 2
            for frame, kind in types.of(found >> numpy.uint64(PAGE_SHIFT)):
                marks_second |= second and kind == "pgtable"
                if kind == "not_in_dump":
                    missing = True
                    continue
                finding = Finding(
                    None,
                    None,
                    f"{owner}: the table of level {level} at physical {frame << PAGE_SHIFT:#x} is {kind}",
                )
                if kind not in (("pgtable",) if strict else _OF_KERNEL) and len(findings) < MOST:
                    findings.append(finding)
                elif second and kind != "pgtable" and len(unmarked) < MOST:
                    unmarked.append(finding)
            if level == 1:
                break
            data, gone = read_tables(kernel.read_physical, found)
            missing |= bool(gone.any())
            if level == kernel.geometry.levels:
                data = data[:, low:high]
            below = data[(data & numpy.uint64(PRESENT) != 0) & (data & numpy.uint64(PSE) == 0)]
            below = distinct(below & numpy.uint64(kernel.geometry.pfn_mask))
            # KASAN's shadow has the same tables many times; a damaged one may point back.
            fresh = [table for table in below.tolist() if table not in seen]
            seen.update(fresh)
            found = numpy.array(fresh, numpy.uint64)
            level -= 1
    if marks_second:
        findings += unmarked
    text = "some page tables or struct pages are not in this source" if missing else ""
    return conclude(findings, text, f"{count} tables")


def free_pages(kernel: Kernel) -> Verdict:
    """What the buddy allocator has may be in the direct map, where it writes its lists, and nowhere else.

    Of the image only what can be executed counts: the memory of ``__init`` and of what lies between text and
    data is given away, and without page-table isolation stays mapped there (free_kernel_image_pages).
    """
    types = FrameTypes(Pages(kernel))
    findings: List[Finding] = []
    count = 0
    # A tree that was walked before takes all that it meets again for repeated; this one was not.
    half = kernel.new_tree(kernel.root.value).ranges(kernel.geometry.guard_hole.end + 1, ALL)
    for name, root, where, mask in _stretches(kernel):
        own = root == kernel.root.value
        ranges = half if own else kernel.new_tree(root).ranges(where.start, where.end)
        for addresses in _addresses(ranges.clip(where.start, where.end), mask):
            count += len(addresses)
            _free(types, name, addresses, kernel.bulk(root).translate(addresses), findings)
            if count >= _MOST_PAGES:
                return conclude(findings, "", f"{count} pages, which are not all")
    return conclude(findings, "", f"{count} pages")


def _addresses(ranges: Ranges, mask: int) -> Iterator[U64]:
    """Addresses of the pages that are mapped with the bits of the mask clear, some at a time."""
    import numpy

    pieces: List[U64] = []
    count = 0
    # The same tables again (espfix, KASAN's shadow) have the same pages again.
    for start, end, _ in ranges.matching(((mask | MAPPED | REPEATED, MAPPED),), _MOST_RANGES):
        first = start & -PAGE_SIZE
        left = (end - first >> PAGE_SHIFT) + 1
        while left:
            some = min(left, _AT_ONCE - count)
            pages = numpy.arange(some, dtype=numpy.uint64) << numpy.uint64(PAGE_SHIFT)
            pieces.append(numpy.uint64(first) + pages)
            first, left, count = first + (some << PAGE_SHIFT), left - some, count + some
            if count == _AT_ONCE:
                yield numpy.concatenate(pieces)
                pieces, count = [], 0
    if pieces:
        yield numpy.concatenate(pieces)


def _stretches(kernel: Kernel) -> Iterator[Tuple[str, int, AddressRange, int]]:
    """(whose, root, where, bit that must be clear to count) of all that should hold no free page."""
    for key in ("vmalloc", "cpu_entry_area", "espfix", "modules", "fixmap"):
        found = kernel.locate(key)
        if isinstance(found, Placement):
            yield key, kernel.root.value, found.range, 0
    text, end = kernel.symbol("_text"), kernel.symbol("_etext")
    if text < end:
        yield "text", kernel.root.value, AddressRange(text, end - 1), EFFECTIVE_NX
    user = kernel.locate("user")
    if isinstance(user, Placement):
        for owner, root in _roots(kernel):
            yield owner, root, user.range, 0


def _free(types: FrameTypes, name: str, addresses: U64, found: Any, findings: List[Finding]) -> None:
    import numpy

    frames = found.physical >> numpy.uint64(PAGE_SHIFT)
    bad = numpy.flatnonzero((found.states == FOUND) & types.are(frames, "free"))
    for at in bad[: max(MOST - len(findings), 0)].tolist():
        address = int(addresses[at])
        what = f"{name}: maps physical {int(frames[at]) << PAGE_SHIFT:#x}, which is free"
        findings.append(Finding(address, address + PAGE_SIZE - 1, what))
