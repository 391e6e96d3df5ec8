# SPDX-License-Identifier: LGPL-2.1-or-later
"""Rules that compare the types in struct pages with the use of the pages in page tables."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, AbstractSet, Iterator, List, NamedTuple, Sequence, Set, Tuple

from kvintro.arch import part as part_of
from kvintro.errors import Unavailable
from kvintro.kernels import Kernel, Trait
from kvintro.model import ALL, AddressRange, Placement, Unknown
from kvintro.paging import EFFECTIVE_EXEC, MAPPED, OVER_LIMIT, REPEATED, UNREADABLE, Ranges
from kvintro.paging.bulk import MAPPED as FOUND
from kvintro.paging.forest import Forest
from kvintro.paging.tree import read_tables
from kvintro.queries.audit.rights import image_part
from kvintro.queries.audit.verdict import MOST, Finding, Tally, Verdict
from kvintro.queries.pages.census import TYPE_NAMES, TYPE_NUMBERS, FrameTypes, frame_types
from kvintro.queries.pages.runs import distinct
from kvintro.queries.placements import own_parts, without
from kvintro.readers.damage import Damage
from kvintro.readers.processes import SHARED_TABLES, each_mm, foreign_tables, forests, memory_of
from kvintro.readers.structures import TROUBLE

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray

    U64 = NDArray[numpy.uint64]
    I64 = NDArray[numpy.int64]

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
                yield f"pid {process.pid}", memory_of(kernel, process).root
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
    marked in every version, but they must not have another type. At the second lowest level, either all
    tables are marked or none is (5.4).
    """
    judge = _Tables(kernel)
    judge.below(kernel.kernel_root.owner, kernel.root.value, user=False)
    for part, forest in forests(kernel, list(_roots(kernel, judge.tally))):
        if forest is None or not judge.marks(forest):
            for owner, root in part:
                judge.below(owner, root, user=True, foreign=_foreign(kernel, owner, root, judge.tally))
    return judge.verdict()


class _Tables:
    """Checks the struct pages of all tables of some roots.

    :ivar tally: the result so far.
    """

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._types = kernel.once(frame_types)
        self._marked = "table" in self._types.pages.form.types.codes
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

    def marks(self, forest: Forest) -> bool:
        """Check the tables of some processes. If one is not marked as it must be, return False."""
        import numpy

        form = self._kernel.form
        count = 0
        for level in forest.levels:
            if form.table_size(level.level) < form.page_size:
                continue
            kinds = self._types.numbers(level.tables >> numpy.uint64(form.page_shift))
            marked = self._marked and level.level <= 2
            if not self._are(kinds, ("pgtable",) if marked else _OF_KERNEL).all():
                return False
            count += len(kinds)
        self._add(count)
        self._marks_second |= self._marked and any(level.level == 2 for level in forest.levels)
        self.tally.compared("", count, may_be_empty=True)
        return True

    @staticmethod
    def _are(found: "NDArray[numpy.int8]", kinds: Sequence[str]) -> "NDArray[numpy.bool_]":
        import numpy

        return numpy.isin(found, [TYPE_NUMBERS[kind] for kind in kinds])

    def _add(self, count: int) -> None:
        self._count += count
        if self._count > _MOST_TABLES:
            raise Unavailable(f"there are more than {_MOST_TABLES} tables")

    def _judge(self, owner: str, found: U64, level: int, user: bool) -> None:
        import numpy

        self._add(len(found))
        strict = user and self._marked and level == 1
        second = user and self._marked and level == 2
        shift = self._kernel.page_shift
        known = self._types.numbers(found >> numpy.uint64(shift))
        lost = known == TYPE_NUMBERS["not_in_dump"]
        there = (known >= 0) & ~lost
        marked = known == TYPE_NUMBERS["pgtable"]
        usual = self._are(known, ("pgtable",) if strict else _OF_KERNEL)

        def finding(index: int) -> Finding:
            kind = TYPE_NAMES[int(known[index])]
            at = int(found[index]) >> shift << shift  # of the page, if a table is smaller
            return Finding(None, None, f"{owner}: the table of level {level} at physical {at:#x} is {kind}")

        if lost.any():
            self.tally.lacks("some struct pages are not in this source")
        for index in numpy.flatnonzero(there & ~usual)[: max(MOST - len(self.tally.findings), 0)].tolist():
            self.tally.findings.append(finding(index))
        if second:
            self._marks_second |= bool(marked.any())
            unmarked = numpy.flatnonzero(there & usual & ~marked)[: max(MOST - len(self._unmarked), 0)]
            self._unmarked += map(finding, unmarked.tolist())
        self.tally.compared("", int(there.sum()), may_be_empty=True)
        if (known < 0).any():
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
    types = kernel.once(frame_types)
    tally = Tally()
    if types.pages.sections.missing:
        tally.lacks("some tables of memory sections are not in this source")
    looked = 0
    for owners, batch in _pages(kernel, tally):
        _free(kernel, types, owners, batch, tally)
        looked += len(batch.addresses)
        if looked >= _MOST_PAGES:
            tally.lacks(f"only the first {looked} pages were looked at")
            break
    verdict = tally.verdict()
    return replace(verdict, looked=f"{verdict.compared} pages")


class _Batch(NamedTuple):
    """Pages: their owners by index, their addresses and page frames."""

    owners: I64
    addresses: U64
    frames: U64


def _pages(kernel: Kernel, tally: Tally) -> Iterator[Tuple[Sequence[str], _Batch]]:
    """All mapped pages that should not be free, with the names of their owners."""
    # In a tree that has been walked, everything counts as repeated, so use a new one.
    half = kernel.new_tree(kernel.root.value).ranges(kernel.form.kernel.start, kernel.form.kernel.end)
    for name, where, mask in _stretches(kernel, tally):
        for batch in _translated(kernel, kernel.root.value, half.clip(where.start, where.end), mask, tally):
            yield (name,), batch
    user = kernel.locate("user")
    if isinstance(user, Unknown):
        tally.lacks(f"user: {user.reason}")
    if not isinstance(user, Placement):
        return
    for part, forest in forests(kernel, list(_roots(kernel, tally))):
        if forest is not None:
            for pages in forest.pages():
                yield [owner for owner, _ in part], _Batch(*pages)
            continue
        for name, root in part:
            tree = kernel.new_tree(root, unusable=_foreign(kernel, name, root, tally))
            ranges = tree.ranges(user.range.start, user.range.end)
            for batch in _translated(kernel, root, ranges, 0, tally):
                yield (name,), batch


def _translated(kernel: Kernel, root: int, ranges: Ranges, mask: int, tally: Tally) -> Iterator[_Batch]:
    """The pages that ranges map with the mask's bits clear."""
    import numpy

    if ranges.any(UNREADABLE | OVER_LIMIT):
        tally.lacks("some page tables are not in this source")
    for addresses in _addresses(ranges, mask, kernel.page_shift):
        found = kernel.bulk(root).translate(addresses)
        if (found.states > FOUND).any():
            tally.lacks("some page tables are not in this source")
        mapped = found.states == FOUND
        frames = found.physical[mapped] >> numpy.uint64(kernel.page_shift)
        yield _Batch(numpy.zeros(len(frames), numpy.int64), addresses[mapped], frames)


def _addresses(ranges: Ranges, mask: int, shift: int) -> Iterator[U64]:
    """Addresses of the pages that are mapped with the mask's bits clear, in batches."""
    import numpy

    u = numpy.uint64
    # Repeated tables (espfix, KASAN's shadow) have the same pages again.
    starts, ends = ranges.bounds(mask | MAPPED | REPEATED, mask | MAPPED, _MOST_RANGES)
    starts &= u(-(1 << shift) & ALL)
    after = numpy.cumsum((ends - starts >> u(shift)) + u(1))
    before = numpy.concatenate((numpy.zeros(1, u), after[:-1]))
    for low in range(0, int(after[-1]) if len(after) else 0, _AT_ONCE):
        high = min(low + _AT_ONCE, int(after[-1]))
        part = slice(
            int(numpy.searchsorted(after, u(low), side="right")), int(numpy.searchsorted(before, u(high)))
        )
        first = numpy.maximum(before[part], u(low))
        counts = (numpy.minimum(after[part], u(high)) - first).astype(numpy.int64)
        # The page with number n in the batch is page n + low - before of its range.
        base = starts[part] - (before[part] << u(shift))
        yield numpy.repeat(base, counts) + (numpy.arange(low, high, dtype=u) << u(shift))


def _stretches(kernel: Kernel, tally: Tally) -> Iterator[Tuple[str, AddressRange, int]]:
    """(owner, range, right that counts) of all ranges of the kernel half that should contain no free page."""
    for region in kernel.regions:
        found = kernel.locate(region) if Trait.IN_USE in region.traits else None
        if isinstance(found, Unknown):
            tally.lacks(f"{region.key}: {found.reason}")
        elif isinstance(found, Placement):
            rounded = part_of(kernel.arch, "checks").rounded(kernel, region)
            for own in own_parts(kernel, region):
                for part in without(own, rounded):
                    yield region.key, part, 0
    _, text = image_part(kernel, "text")
    yield "text", text, EFFECTIVE_EXEC


def _free(kernel: Kernel, types: FrameTypes, names: Sequence[str], batch: _Batch, tally: Tally) -> None:
    import numpy

    form = kernel.form
    kinds = types.numbers(batch.frames)
    lost = kinds == TYPE_NUMBERS["not_in_dump"]
    if lost.any():
        tally.lacks("some struct pages are not in this source")
    # Memory without a struct page belongs to a device.
    tally.compared("", int(((kinds >= 0) & ~lost).sum()), may_be_empty=True)
    bad = numpy.flatnonzero(kinds == TYPE_NUMBERS["free"])
    if len(bad):
        bad = bad[numpy.lexsort((batch.addresses[bad], batch.owners[bad]))]
    for at in bad[: max(MOST - len(tally.findings), 0)].tolist():
        name, address = names[int(batch.owners[at])], int(batch.addresses[at])
        what = f"{name}: maps physical {int(batch.frames[at]) << form.page_shift:#x}, which is free"
        tally.findings.append(Finding(address, address + form.page_size - 1, what))
