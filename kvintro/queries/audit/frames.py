# SPDX-License-Identifier: LGPL-2.1-or-later
"""Rules that compare the types in struct pages with the use of the pages in page tables."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, AbstractSet, Iterator, List, Set, Tuple

from kvintro.arch import part as part_of
from kvintro.errors import Unavailable
from kvintro.kernels import Kernel, Trait
from kvintro.model import AddressRange, Placement, Unknown
from kvintro.paging import EFFECTIVE_EXEC, MAPPED, OVER_LIMIT, REPEATED, UNREADABLE, Ranges
from kvintro.paging.bulk import MAPPED as FOUND
from kvintro.paging.bulk import BulkResult
from kvintro.paging.tree import read_tables
from kvintro.queries.audit.rights import image_part
from kvintro.queries.audit.verdict import MOST, Finding, Tally, Verdict
from kvintro.queries.pages.census import FrameTypes, Pages
from kvintro.queries.pages.runs import distinct
from kvintro.queries.placements import own_parts, without
from kvintro.readers.damage import Damage
from kvintro.readers.processes import SHARED_TABLES, each_mm, foreign_tables, mm_of, root_of
from kvintro.readers.structures import TROUBLE

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray

    U64 = NDArray[numpy.uint64]

#: Maximum number of pages to examine in all roots together. A note says if there are more.
_MOST_PAGES = 1 << 26
_MOST_RANGES = 1 << 20
_AT_ONCE = 1 << 20
_MOST_TABLES = 1 << 24
# The kernel's own tables come from memblock or the image at boot. They may be marked later, depending on the
# kernel's version (the constructor runs for them since 6.16).
_OF_KERNEL = ("pgtable", "kernel", "reserved", "unnamed_type", "kernel_or_reserved")


def _roots(kernel: Kernel, tally: Tally) -> Iterator[Tuple[str, int]]:
    """(owner, physical address) of each process's root.

    :param tally: collects roots that cannot be found.
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


def _foreign(kernel: Kernel, owner: str, root: int, tally: Tally) -> Set[int]:
    """Tables of a process that another process has too."""
    foreign = foreign_tables(kernel, root)
    if foreign:
        tally.lacks(f"{SHARED_TABLES}: {owner}")
    return foreign


def tables(kernel: Kernel) -> Verdict:
    """Everything that a walk uses as a table was allocated as one (include/linux/mm.h:pagetable_*_ctor).

    Tables of the lowest level of user memory have always been marked. Those above, and the kernel's, are not
    marked in every version, but they must not have another type. At the level above the lowest, either all
    tables are marked or none (5.4).
    """
    judge = _Tables(kernel)
    judge.below(kernel.kernel_root.owner, kernel.root.value, user=False)
    for owner, root in _roots(kernel, judge.tally):
        judge.below(owner, root, user=True, foreign=_foreign(kernel, owner, root, judge.tally))
    return judge.verdict()


class _Tables:
    """Checks the struct pages of all tables of some roots.

    :ivar tally: the result so far.
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

    def below(self, owner: str, root: int, *, user: bool, foreign: "AbstractSet[int]" = frozenset()) -> None:
        """Check the tables of one half of a root's tree.

        :param user: check the lower half.
        :param foreign: tables to skip.
        """
        import numpy

        kernel, form = self._kernel, self._kernel.form
        found = numpy.array([] if root in foreign else [root], numpy.uint64)
        seen = set(foreign)
        for level in range(form.levels, 0, -1):
            if not len(found):
                break
            # A root smaller than a page shares its page with others.
            if form.table_size(level) >= form.page_size:
                self._judge(owner, found, level, user)
            if level == 1:
                break
            data, gone = read_tables(kernel.read_physical, form, found, level)
            if gone.any():
                self.tally.lacks("some page tables are not in this source")
            if level == form.levels:
                data = data[:, form.user_entries() if user else form.kernel_entries()]
            below = distinct(form.table_address(data[form.is_table(data, level)]))
            # KASAN's shadow uses the same tables many times, and a damaged table may point back.
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
        shift = self._kernel.page_shift
        known = self._types.of(found >> numpy.uint64(shift))
        compared = 0
        for frame, kind in known:
            self._marks_second |= second and kind == "pgtable"
            if kind == "not_in_dump":
                self.tally.lacks("some struct pages are not in this source")
                continue
            compared += 1
            what = f"{owner}: the table of level {level} at physical {frame << shift:#x} is {kind}"
            finding = Finding(None, None, what)
            if kind not in (("pgtable",) if strict else _OF_KERNEL):
                if not self.tally.full:
                    self.tally.findings.append(finding)
            elif second and kind != "pgtable" and len(self._unmarked) < MOST:
                self._unmarked.append(finding)
        self.tally.compared("", compared, may_be_empty=True)
        if len(known) < len(found):
            self.tally.lacks("some page tables are in page frames without a struct page")

    def verdict(self) -> Verdict:
        """The verdict over all checked tables."""
        if self._marks_second:
            self.tally.findings += self._unmarked
        return self.tally.verdict()


def free_pages(kernel: Kernel) -> Verdict:
    """A free page may be mapped only in the direct map, where the buddy allocator keeps its lists.

    In the image only executable pages count. The memory of ``__init`` and the gaps between text and data are
    freed, and stay mapped without page-table isolation (free_kernel_image_pages).
    """
    pages = Pages(kernel)
    types = FrameTypes(pages)
    tally = Tally()
    if pages.sections.missing:
        tally.lacks("some tables of memory sections are not in this source")
    looked = 0
    # In a tree that has been walked, everything counts as repeated, so use a new one.
    half = kernel.new_tree(kernel.root.value).ranges(kernel.form.kernel.start, kernel.form.kernel.end)
    for name, root, where, mask in _stretches(kernel, tally):
        if root == kernel.root.value:
            ranges = half
        else:
            tree = kernel.new_tree(root, unusable=_foreign(kernel, name, root, tally))
            ranges = tree.ranges(where.start, where.end)
        ranges = ranges.clip(where.start, where.end)
        if ranges.any(UNREADABLE | OVER_LIMIT):
            tally.lacks("some page tables are not in this source")
        for addresses in _addresses(ranges, mask, kernel.page_shift):
            _free(kernel, types, name, addresses, kernel.bulk(root).translate(addresses), tally)
            looked += len(addresses)
            if looked >= _MOST_PAGES:
                tally.lacks(f"only the first {looked} pages were looked at")
                return _pages_verdict(tally)
    return _pages_verdict(tally)


def _pages_verdict(tally: Tally) -> Verdict:
    verdict = tally.verdict()
    return replace(verdict, looked=f"{verdict.compared} pages")


def _addresses(ranges: Ranges, mask: int, shift: int) -> Iterator[U64]:
    """Addresses of the pages that are mapped with the mask's bits clear, in batches."""
    import numpy

    pieces: List[U64] = []
    count = 0
    # Repeated tables (espfix, KASAN's shadow) have the same pages again.
    for start, end, _ in ranges.matching(((mask | MAPPED | REPEATED, mask | MAPPED),), _MOST_RANGES):
        first = start & -(1 << shift)
        left = (end - first >> shift) + 1
        while left:
            some = min(left, _AT_ONCE - count)
            pages = numpy.arange(some, dtype=numpy.uint64) << numpy.uint64(shift)
            pieces.append(numpy.uint64(first) + pages)
            first, left, count = first + (some << shift), left - some, count + some
            if count == _AT_ONCE:
                yield numpy.concatenate(pieces)
                pieces, count = [], 0
    if pieces:
        yield numpy.concatenate(pieces)


def _stretches(kernel: Kernel, tally: Tally) -> Iterator[Tuple[str, int, AddressRange, int]]:
    """(owner, root, range, right that counts) of all ranges that should contain no free page."""
    user = kernel.locate("user")
    for region in kernel.regions:
        found = kernel.locate(region) if Trait.IN_USE in region.traits else None
        if isinstance(found, Unknown):
            tally.lacks(f"{region.key}: {found.reason}")
        elif isinstance(found, Placement):
            rounded = part_of(kernel.arch, "checks").rounded(kernel, region)
            for own in own_parts(kernel, region):
                for part in without(own, rounded):
                    yield region.key, kernel.root.value, part, 0
    if isinstance(user, Unknown):
        tally.lacks(f"user: {user.reason}")
    _, text = image_part(kernel, "text")
    yield "text", kernel.root.value, text, EFFECTIVE_EXEC
    if isinstance(user, Placement):
        for owner, root in _roots(kernel, tally):
            yield owner, root, user.range, 0


def _free(
    kernel: Kernel, types: FrameTypes, name: str, addresses: U64, found: BulkResult, tally: Tally
) -> None:
    import numpy

    form = kernel.form
    frames = found.physical >> numpy.uint64(form.page_shift)
    mapped = found.states == FOUND
    lost = mapped & types.are(frames, "not_in_dump")
    if lost.any():
        tally.lacks("some struct pages are not in this source")
    if (found.states > FOUND).any():
        tally.lacks("some page tables are not in this source")
    # Memory without a struct page belongs to a device.
    tally.compared(name, int((mapped & types.have(frames) & ~lost).sum()), may_be_empty=True)
    bad = numpy.flatnonzero(mapped & types.are(frames, "free"))
    for at in bad[: max(MOST - len(tally.findings), 0)].tolist():
        address = int(addresses[at])
        what = f"{name}: maps physical {int(frames[at]) << form.page_shift:#x}, which is free"
        tally.findings.append(Finding(address, address + form.page_size - 1, what))
