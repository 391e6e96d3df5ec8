# SPDX-License-Identifier: LGPL-2.1-or-later
"""What struct pages say of pages, against what page tables do with them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Iterator, List, Tuple

from kvintro.arch.x86_64 import ALL, PAGE_SHIFT, PAGE_SIZE, PRESENT, PSE, PTRS_PER_TABLE
from kvintro.errors import Unavailable
from kvintro.kernel import Kernel
from kvintro.model import AddressRange, Placement
from kvintro.paging import EFFECTIVE_NX, MAPPED, REPEATED
from kvintro.paging.bulk import MAPPED as FOUND
from kvintro.paging.tree import read_tables
from kvintro.processes import each_mm, mm_of, root_of
from kvintro.queries.audit.verdict import MOST, Finding, Verdict, conclude
from kvintro.queries.pages.census import FrameTypes, Pages
from kvintro.queries.pages.runs import distinct
from kvintro.structures import TROUBLE, Damage

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray

    U64 = NDArray[numpy.uint64]

#: Pages looked at, tables of all roots together; the rest is left out, and that is said.
_MOST_PAGES = 1 << 24
_MOST_RANGES = 1 << 20
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

    Tables of the two lowest levels of user memory have always been marked; those above, and the kernel's, not
    in every version: they must at least be nothing else.
    """
    import numpy

    pages = Pages(kernel)
    types = FrameTypes(pages)
    marked = "table" in pages.form.types.codes
    first_kernel = PTRS_PER_TABLE // 2
    findings: List[Finding] = []
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
            if count > _MOST_PAGES:
                raise Unavailable(f"there are more than {_MOST_PAGES} tables")
            strict = user and marked and level <= 2
            for frame, kind in types.of(found >> numpy.uint64(PAGE_SHIFT)):
                if kind == "not_in_dump":
                    missing = True
                elif kind not in (("pgtable",) if strict else _OF_KERNEL) and len(findings) < MOST:
                    what = (
                        f"{owner}: the table of level {level} at physical {frame << PAGE_SHIFT:#x} is {kind}"
                    )
                    findings.append(Finding(None, None, what))
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
    text = "some page tables or struct pages are not in this source" if missing else ""
    return conclude(findings, text, f"{count} tables")


def free_pages(kernel: Kernel) -> Verdict:
    """What the buddy allocator has may be in the direct map, where it writes its lists, and nowhere else.

    Of the image only what can be executed counts: the memory of ``__init`` and of what lies between text and
    data is given away, and without page-table isolation stays mapped there (free_kernel_image_pages).
    """
    import numpy

    types = FrameTypes(Pages(kernel))
    findings: List[Finding] = []
    count = 0
    for name, root, where, mask in _stretches(kernel):
        own = root == kernel.root.value
        # A tree that was walked before takes all that it meets again for repeated.
        ranges = (kernel.kernel_ranges if own else kernel.new_tree(root).ranges(where.start, where.end)).clip(
            where.start, where.end
        )
        # The same tables again (espfix, KASAN's shadow) have the same pages again.
        pieces = []
        for start, end, _ in ranges.matching(((mask | MAPPED | REPEATED, MAPPED),), _MOST_RANGES):
            pieces.append(_pages(start, min(end, start + (_MOST_PAGES << PAGE_SHIFT))))
            count += len(pieces[-1])
            if count > _MOST_PAGES:
                break
        if pieces:
            addresses = numpy.concatenate(pieces)
            _free(types, name, addresses, kernel.bulk(root).translate(addresses), findings)
        if count > _MOST_PAGES:
            break
    text = f"no more than {_MOST_PAGES} of them were looked at" if count > _MOST_PAGES else ""
    return conclude(findings, "", f"{count} pages{'; ' + text if text else ''}")


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


def _pages(start: int, end: int) -> U64:
    import numpy

    first = start & -PAGE_SIZE & ALL
    count = (end - first >> PAGE_SHIFT) + 1
    pages: U64 = numpy.uint64(first) + (numpy.arange(count, dtype=numpy.uint64) << numpy.uint64(PAGE_SHIFT))
    return pages


def _free(types: FrameTypes, name: str, addresses: U64, found: Any, findings: List[Finding]) -> None:
    import numpy

    frames = found.physical >> numpy.uint64(PAGE_SHIFT)
    bad = numpy.flatnonzero((found.states == FOUND) & types.are(frames, "free"))
    for at in bad[: max(MOST - len(findings), 0)].tolist():
        address = int(addresses[at])
        what = f"{name}: maps physical {int(frames[at]) << PAGE_SHIFT:#x}, which is free"
        findings.append(Finding(address, address + PAGE_SIZE - 1, what))
