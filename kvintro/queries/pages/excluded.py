# SPDX-License-Identifier: LGPL-2.1-or-later
"""Which kinds of pages are missing from a dump, and the level of makedumpfile that leaves these out.

The file says which page frames were excluded, and the struct pages say what each was used for. An ELF file
does not have zero pages either, and has excluded pages in runs of fewer than 256 (makedumpfile.c:
write_elf_pages_cyclic). A kdump has all zero pages.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import TYPE_CHECKING, Any, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

from kvintro.errors import Unavailable
from kvintro.kernels import Kernel
from kvintro.paging.bulk import MAPPED
from kvintro.queries.pages.census import Pages
from kvintro.queries.pages.frames import Frames, Memory, memory_of
from kvintro.queries.pages.levels import MAX_LEVEL, REASONS, ZERO, Level, kinds_of, leaves_out
from kvintro.queries.pages.runs import Runs
from kvintro.queries.pages.sections import Piece

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray

#: Further reasons why pages are missing: no level leaves out pages of this type; they are zero pages, or no
#: level leaves them out; they have the struct pages of excluded pages (``makedumpfile -e``); their own struct
#: page is missing.
NONE, ZEROS, STRUCT_PAGES, UNKNOWN = "none", "zero", "struct_pages", "unknown"
#: Type and reason of page frames that have no struct page, such as firmware's. No level is about them.
NO_STRUCT_PAGE = "no_struct_page"
_NOT_IN_DUMP = "not_in_dump"
#: Types that lists of the kernel are in, and that no level leaves out.
_NEEDED = {
    "slab": "slab page",
    "large_kmalloc": "kmalloc page",
    "pgtable": "page table",
    "unnamed_type": "page table or similar page",
    "kernel": "kernel page",
}
_RUN = 256  # makedumpfile.c:PFN_EXCLUDED
_SAMPLE = 1 << 19  # page frames; 32 MB of struct pages
_BATCH = 32  # sections whose struct pages are translated together


class Use(NamedTuple):
    """A kind of pages.

    :ivar reason: one of :data:`~kvintro.queries.pages.levels.REASONS`, or of the further ones here.
    :ivar type: as in the census, or :data:`NO_STRUCT_PAGE`.
    """

    reason: str
    type: str


_OUTSIDE = Use(NO_STRUCT_PAGE, NO_STRUCT_PAGE)


@dataclasses.dataclass
class Excluded:
    """Counts of missing pages.

    :ivar excluded: pages that were excluded when the dump was made.
    :ivar lost: pages that should be in the file but are missing; None if they are not known.
    :ivar kept: pages of the same kinds that are in the dump, and all other pages that a level leaves out.
    :ivar looked_at: number of page frames that were counted.
    :ivar total: number of page frames with a struct page.
    :ivar pages: number of all excluded pages, counted or not.
    :ivar lost_pages: the same for lost pages.
    :ivar recorded: the level that the file records; None if it records none.
    :ivar zeros: whether the file leaves out zero pages.
    """

    excluded: Counter[Use]
    lost: Optional[Counter[Use]]
    kept: Counter[Use]
    looked_at: int
    total: int
    pages: int
    lost_pages: int
    recorded: Optional[int]
    zeros: bool

    @property
    def whole(self) -> bool:
        """Whether all page frames were counted, and not a sample."""
        return self.looked_at == self.total

    def of(self, counts: Counter[Use], *reasons: str) -> int:
        """Number of pages with one of these reasons."""
        return sum(pages for use, pages in counts.items() if use.reason in reasons)

    @property
    def level(self) -> Optional[int]:
        """The recorded level if it leaves out everything that is missing, else the lowest that does.

        :return: None if no level does, or if that is unknown.
        """
        if self.of(self.excluded, NONE) or self.mistake or not self.excluded:
            return None
        reasons = [reason for reason in REASONS if self.of(self.excluded, reason)]

        def explains(level: int) -> bool:
            zeros = level & ZERO or not self.of(self.excluded, ZEROS)
            return bool(zeros) and all(leaves_out(level, reason) for reason in reasons)

        if self.recorded is not None and explains(self.recorded):
            return self.recorded
        if self.of(self.excluded, UNKNOWN):
            return None
        return next(filter(explains, range(MAX_LEVEL + 1)))

    @property
    def overlooked(self) -> Counter[Use]:
        """Pages in the dump that the recorded level should have left out."""
        level = self.recorded or 0
        kept = {use: n for use, n in self.kept.items() if use.reason in REASONS}
        return Counter({use: n for use, n in kept.items() if leaves_out(level, use.reason)})

    @property
    def mistake(self) -> str:
        """What shows that the filter did not know this kernel, as "121 slab pages"; "" if nothing does."""
        if self.zeros:
            return ""  # these may be zero pages
        found: Counter[str] = Counter()
        for use, pages in self.excluded.items():
            if use.reason == NONE and use.type in _NEEDED:
                found[_NEEDED[use.type]] += pages
        parts = [f"{pages} {what}{'s' if pages > 1 else ''}" for what, pages in found.most_common()]
        known = self.kept[Use(UNKNOWN, _NOT_IN_DUMP)]
        if known and self.lost is not None and not self.lost:
            # With -e, only those of excluded pages are missing.
            parts.append(f"the struct pages of {known} pages")
        return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def excluded_from(kernel: Kernel) -> Optional[Excluded]:
    """Count missing pages in a sample that takes less than a second: all of up to 2 GB, else whole sections.

    :return: None if the dump is complete and nothing was excluded, or if its format does not say.
    :raises Unavailable: the source does not contain which memory it has, or how its pages are used.
    """
    if not lacks_pages(kernel):
        return None
    pages = Pages(kernel)
    step = -(-pages.sections.total // _SAMPLE) or 1
    sample = dataclasses.replace(pages.sections, ranges=pages.sections.ranges[::step])
    counter = ExclusionCounter(pages)
    for piece in pages.reader.pieces(sample):
        if counter.looked_at + piece.count > pages.page_limit:
            raise Unavailable("there are too many struct pages")
        runs = None
        if piece.state == "read":
            runs = pages.decoder.decode(piece.data, piece.first, online=piece.online)
        counter.add(piece, runs)
    return counter.finish()


def lacks_pages(kernel: Kernel) -> bool:
    """Whether a dump says that it lacks pages of the machine."""
    source = kernel.source
    if source.kind != "core" or source.left_out is None:
        return False
    return source.left_out > 0 or source.complete is False


class ExclusionCounter:
    """Counts missing pages while the struct pages are read.

    :ivar looked_at: number of page frames that were counted.
    :raises Unavailable: the source does not say which memory it has.
    """

    def __init__(self, pages: Pages) -> None:
        source = pages.kernel.source
        self.looked_at = 0
        self._pages = pages
        self._zeros = "kdump" not in source.format
        self._rule = Level(pages.meaning, MAX_LEVEL)
        memory: Memory = memory_of(pages.kernel)
        self._excluded = memory.left_out
        lost, page = source.lost(), pages.kernel.form.page_size
        self._lost_known = lost is not None
        self._lost = Frames.of((start // page, -(-end // page)) for start, end in lost or ())
        self._sets = (self._excluded, self._lost, memory.there - self._lost)
        self._counts: Tuple[Counter[Use], ...] = (Counter(), Counter(), Counter())
        self._struct_pages_missing = False
        # Page frames of kinds that need a second look, by kind.
        self._ranges: Dict[Use, List[Tuple[int, int]]] = {}

    def add(self, piece: Piece, runs: Optional[Runs]) -> None:
        """Count the missing page frames of a piece.

        :param runs: None if its struct pages cannot be read.
        """
        import numpy

        self.looked_at += piece.count
        if runs is None:
            self._struct_pages_missing |= piece.state == "missing"
            use = Use(UNKNOWN, _NOT_IN_DUMP) if piece.state == "missing" else _OUTSIDE
            bounds = numpy.array([piece.first, piece.first + piece.count], numpy.int64)
            self._count([use], bounds, numpy.zeros(1, numpy.int64))
            return
        kinds, which = kinds_of(runs)
        type_of = self._pages.meaning.type_of
        uses = [Use(self._rule.reason(*kind) or NONE, type_of(*kind)) for kind in kinds]
        bounds = numpy.append(runs.starts, len(runs.rows)) + runs.first
        excluded = self._count(uses, bounds, which)
        wanted = [
            use.reason != NONE if self._zeros else bool(use.reason == NONE and excluded[number])
            for number, use in enumerate(uses)
        ]
        for run in numpy.flatnonzero(numpy.array(wanted, bool)[which]).tolist():
            ranges = self._ranges.setdefault(uses[int(which[run])], [])
            first, end = int(bounds[run]), int(bounds[run + 1])
            if ranges and ranges[-1][1] == first:
                ranges[-1] = ranges[-1][0], end
            else:
                ranges.append((first, end))

    def _count(
        self, uses: Sequence[Use], bounds: "NDArray[numpy.int64]", which: "NDArray[numpy.int64]"
    ) -> List[int]:
        """Add runs to the counts, and return the number of excluded pages by use.

        :param bounds: first page frame of each run, and the last page frame plus one.
        :param which: index of each run's use.
        """
        import numpy

        first: List[int] = []
        for frames, counts in zip(self._sets, self._counts):
            inside = numpy.diff(frames.below(bounds))
            sums = numpy.bincount(which, weights=inside, minlength=len(uses)).astype(numpy.int64).tolist()
            first = first or sums
            for use, pages in zip(uses, sums):
                counts[use] += pages
        return first

    def state(self) -> List[Any]:
        """What was counted, in a form that JSON can hold; for :meth:`merge`."""
        counts = [[[*use, pages] for use, pages in found.items()] for found in self._counts]
        ranges = [[*use, found] for use, found in self._ranges.items()]
        return [self.looked_at, self._struct_pages_missing, counts, ranges]

    def merge(self, state: List[Any]) -> None:
        """Add what another counter has counted."""
        looked_at, missing, counts, ranges = state
        self.looked_at += looked_at
        self._struct_pages_missing |= missing
        for found, more in zip(self._counts, counts):
            for *use, pages in more:
                found[Use(*use)] += pages
        for *use, more in ranges:
            self._ranges.setdefault(Use(*use), []).extend((first, end) for first, end in more)

    def finish(self) -> Excluded:
        """Look at what only all pages together show, and return the counts."""
        excluded, lost, kept = self._counts
        if self._zeros:
            self._separate_zeros(excluded)
        elif self._struct_pages_missing:
            self._separate_struct_pages(excluded)
        sections = Frames.of(self._pages.sections.ranges)
        excluded[_OUTSIDE] += (self._excluded - sections).count
        lost[_OUTSIDE] += (self._lost - sections).count
        level = self._pages.kernel.source.level
        return Excluded(
            +excluded,
            +lost if self._lost_known else None,
            +kept,
            self.looked_at,
            self._pages.sections.total,
            self._excluded.count,
            self._lost.count,
            level,
            self._zeros,
        )

    def _separate_zeros(self, excluded: Counter[Use]) -> None:
        """Missing pages are zero pages if no level leaves out their kind, or if others of it were kept."""
        missing = self._excluded | self._lost
        for use in list(excluded):
            if use.reason == NONE or _kept_on_purpose(Frames.of(self._ranges.get(use, ())), missing):
                excluded[Use(ZEROS, use.type)] += excluded.pop(use)

    def _separate_struct_pages(self, excluded: Counter[Use]) -> None:
        """Find the pages that have struct pages among those that no level leaves out."""
        memory_map = Frames.of((frame, frame + 1) for frame in self._memory_map())
        for use, ranges in self._ranges.items():
            found = (Frames.of(ranges) & self._excluded & memory_map).count
            excluded[use] -= found
            excluded[Use(STRUCT_PAGES, use.type)] += found

    def _memory_map(self) -> Iterator[int]:
        """The page frames that struct pages are in."""
        import numpy

        kernel, form, sections = self._pages.kernel, self._pages.form, self._pages.sections
        bulk, shift = kernel.bulk(sound=True), kernel.page_shift
        for at in range(0, len(sections.ranges), _BATCH):
            parts = [
                numpy.arange(form.address(low) >> shift, (form.address(high) - 1 >> shift) + 1, dtype="u8")
                for low, high in sections.ranges[at : at + _BATCH]
            ]
            found = bulk.translate(numpy.concatenate(parts) << numpy.uint64(shift))
            yield from (found.physical[found.states == MAPPED] >> numpy.uint64(shift)).tolist()


def _kept_on_purpose(pages: Frames, missing: Frames) -> bool:
    """Whether the file has pages that it would not have if all of these pages had been excluded.

    An ELF file has excluded pages in short runs. A run ends where a segment of /proc/vmcore does, which may
    be anywhere.
    """
    import numpy

    kept, runs = pages - missing, pages | missing
    at = numpy.searchsorted(runs.starts, kept.starts, side="right") - 1
    before, behind = kept.starts - runs.starts[at], runs.ends[at] - kept.ends
    return bool(((before >= _RUN) & (behind >= _RUN)).any())
