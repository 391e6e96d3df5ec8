# SPDX-License-Identifier: LGPL-2.1-or-later
"""What struct pages say of pages, against what page tables do with them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Iterator, List, Tuple

from kvintro.arch.x86_64 import ALL, PAGE_SHIFT, PAGE_SIZE, PRESENT, PSE, PTRS_PER_TABLE
from kvintro.errors import Unavailable
from kvintro.kernel import Kernel
from kvintro.model import AddressRange, Placement, Unknown
from kvintro.paging import EFFECTIVE_NX, MAPPED, OVER_LIMIT, REPEATED, UNREADABLE, Ranges
from kvintro.paging.bulk import MAPPED as FOUND
from kvintro.paging.tree import read_tables
from kvintro.queries.audit.verdict import MOST, Finding, Tally, Verdict
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
_OF_KERNEL = ("pgtable", "kernel", "reserved", "unnamed_type", "kernel_or_reserved")


def _roots(kernel: Kernel, tally: Tally) -> Iterator[Tuple[str, int]]:
    """(whose, physical address) of each process's root.

    :param tally: told of those that cannot be found.
    """
    damage = Damage()
    try:
        for process in each_mm(kernel, damage):
            try:
                yield f"pid {process.pid}", root_of(kernel, mm_of(kernel, process))
            except TROUBLE as error:
                damage.add("the memory of a process cannot be read", f"pid {process.pid}: {error}")
    except Unavailable as error:
        tally.lacks(error.what)
    if damage:
        tally.lacks(damage.notes[0])


def tables(kernel: Kernel) -> Verdict:
    """Whatever a walk takes for a table was allocated for one (include/linux/mm.h:pagetable_*_ctor).

    Tables of the lowest level of user memory have always been marked; those above, and the kernel's, not in
    every version: they must at least be nothing else. Of the level above the lowest, all are or none (5.4).
    """
    judge = _Tables(kernel)
    judge.below("init_top_pgt", kernel.root.value, user=False)
    for owner, root in _roots(kernel, judge.tally):
        judge.below(owner, root, user=True)
    return judge.verdict()


class _Tables:
    """Looks at the struct pages of all tables of some roots.

    :ivar tally: what comes of it.
    """

    def __init__(self, kernel: Kernel) -> None:
        pages = Pages(kernel)
        self._kernel = kernel
        self._types = FrameTypes(pages)
        self._marked = "table" in pages.form.types.codes
        self._marks_second = False
        self._unmarked: List[Finding] = []
        self.tally = Tally("tables")
        self._count = 0

    def below(self, owner: str, root: int, *, user: bool) -> None:
        """The tables of one half of a root's tree.

        :param user: of the lower half.
        """
        import numpy

        kernel, levels = self._kernel, self._kernel.geometry.levels
        middle = PTRS_PER_TABLE // 2
        found = numpy.array([root], numpy.uint64)
        seen: "set[int]" = set()
        for level in range(levels, 0, -1):
            self._judge(owner, found, level, user)
            if level == 1:
                break
            data, gone = read_tables(kernel.read_physical, found)
            if gone.any():
                self.tally.lacks("some page tables are not in this source")
            if level == levels:
                data = data[:, :middle] if user else data[:, middle:]
            below = data[(data & numpy.uint64(PRESENT) != 0) & (data & numpy.uint64(PSE) == 0)]
            below = distinct(below & numpy.uint64(kernel.geometry.pfn_mask))
            # KASAN's shadow has the same tables many times; a damaged one may point back.
            fresh = [table for table in below.tolist() if table not in seen]
            seen.update(fresh)
            found = numpy.array(fresh, numpy.uint64)
        if not user and not seen:
            self.tally.lacks(f"{owner} has no tables below it")

    def _judge(self, owner: str, found: U64, level: int, user: bool) -> None:
        import numpy

        self._count += len(found)
        if self._count > _MOST_TABLES:
            raise Unavailable(f"there are more than {_MOST_TABLES} tables")
        strict = user and self._marked and level == 1
        second = user and self._marked and level == 2
        known = self._types.of(found >> numpy.uint64(PAGE_SHIFT))
        compared = 0
        for frame, kind in known:
            self._marks_second |= second and kind == "pgtable"
            if kind == "not_in_dump":
                self.tally.lacks("some struct pages are not in this source")
                continue
            compared += 1
            what = f"{owner}: the table of level {level} at physical {frame << PAGE_SHIFT:#x} is {kind}"
            finding = Finding(None, None, what)
            if kind not in (("pgtable",) if strict else _OF_KERNEL):
                if not self.tally.full:
                    self.tally.findings.append(finding)
            elif second and kind != "pgtable" and len(self._unmarked) < MOST:
                self._unmarked.append(finding)
        self.tally.compared("", compared, may_be_empty=True)
        if len(known) < len(found):
            self.tally.lacks("some page tables lie where there are no struct pages")

    def verdict(self) -> Verdict:
        """The verdict over all that was looked at."""
        if self._marks_second:
            self.tally.findings += self._unmarked
        return self.tally.verdict()


def free_pages(kernel: Kernel) -> Verdict:
    """What the buddy allocator has may be in the direct map, where it writes its lists, and nowhere else.

    Of the image only what can be executed counts: the memory of ``__init`` and of what lies between text and
    data is given away, and without page-table isolation stays mapped there (free_kernel_image_pages).
    """
    pages = Pages(kernel)
    types = FrameTypes(pages)
    tally = Tally()
    if pages.sections.missing:
        tally.lacks("some tables of memory sections are not in this source")
    looked = 0
    # A tree that was walked before takes all that it meets again for repeated; this one was not.
    half = kernel.new_tree(kernel.root.value).ranges(kernel.geometry.guard_hole.end + 1, ALL)
    for name, root, where, mask in _stretches(kernel, tally):
        own = root == kernel.root.value
        ranges = half if own else kernel.new_tree(root).ranges(where.start, where.end)
        ranges = ranges.clip(where.start, where.end)
        if ranges.any(UNREADABLE | OVER_LIMIT):
            tally.lacks("some page tables are not in this source")
        for addresses in _addresses(ranges, mask):
            _free(types, name, addresses, kernel.bulk(root).translate(addresses), tally)
            looked += len(addresses)
            if looked >= _MOST_PAGES:
                tally.lacks(f"only the first {looked} pages were looked at")
                return _pages_verdict(tally)
    return _pages_verdict(tally)


def _pages_verdict(tally: Tally) -> Verdict:
    verdict = tally.verdict()
    return replace(verdict, looked=f"{verdict.compared} pages")


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


def _stretches(kernel: Kernel, tally: Tally) -> Iterator[Tuple[str, int, AddressRange, int]]:
    """(whose, root, where, bit that must be clear to count) of all that should hold no free page."""
    for key in ("vmalloc", "cpu_entry_area", "espfix", "modules", "fixmap", "user"):
        found = kernel.locate(key)
        if isinstance(found, Unknown):
            tally.lacks(f"{key}: {found.reason}")
        elif isinstance(found, Placement) and key != "user":
            yield key, kernel.root.value, found.range, 0
    text, end = kernel.symbol("_text"), kernel.symbol("_etext")
    if not text < end:
        raise Unavailable("_text does not lie before _etext")
    yield "text", kernel.root.value, AddressRange(text, end - 1), EFFECTIVE_NX
    user = kernel.locate("user")
    if isinstance(user, Placement):
        for owner, root in _roots(kernel, tally):
            yield owner, root, user.range, 0


def _free(types: FrameTypes, name: str, addresses: U64, found: Any, tally: Tally) -> None:
    import numpy

    frames = found.physical >> numpy.uint64(PAGE_SHIFT)
    mapped = found.states == FOUND
    lost = mapped & types.are(frames, "not_in_dump")
    if lost.any():
        tally.lacks("some struct pages are not in this source")
    if (found.states > FOUND).any():
        tally.lacks("some page tables are not in this source")
    # What has no struct page is a device's memory.
    tally.compared(name, int((mapped & types.have(frames) & ~lost).sum()), may_be_empty=True)
    bad = numpy.flatnonzero(mapped & types.are(frames, "free"))
    for at in bad[: max(MOST - len(tally.findings), 0)].tolist():
        address = int(addresses[at])
        what = f"{name}: maps physical {int(frames[at]) << PAGE_SHIFT:#x}, which is free"
        tally.findings.append(Finding(address, address + PAGE_SIZE - 1, what))
