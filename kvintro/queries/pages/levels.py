# SPDX-License-Identifier: LGPL-2.1-or-later
"""Page frames that a level of makedumpfile leaves out (makedumpfile.c:__exclude_unnecessary_pages).

makedumpfile has its own knowledge of a kernel's struct pages; here it comes from the census, which takes it
from the kernel's own types or from VMCOREINFO.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Callable, Dict, Iterator, List, Tuple

from kvintro.errors import Unavailable
from kvintro.kernels import Kernel
from kvintro.queries.pages.census import Pages, Progress
from kvintro.queries.pages.frames import Frames
from kvintro.queries.pages.meaning import Meaning
from kvintro.queries.pages.runs import ANON, NOT_INITIALISED, OFFLINE, Runs, distinct

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray

ZERO, CACHE, CACHE_PRIVATE, USER, FREE = 1, 2, 4, 8, 16
MAX_LEVEL = 31
#: Levels for which the struct pages must be read.
OF_USE = CACHE | CACHE_PRIVATE | USER | FREE
#: Reasons why pages are left out, in display order.
REASONS = ("free", "cache", "cache_private", "user", "hwpoison", "offline")
#: For each of them, the levels that leave such pages out.
_LEVELS = dict(zip(REASONS, (FREE, CACHE | CACHE_PRIVATE, CACHE_PRIVATE, USER, OF_USE, OF_USE)))


#: Is called with a description of the next step and its number of page frames. Returns the function that is
#: then called with the progress.
Watch = Callable[[str, int], Progress]


def unwatched(what: str, total: int) -> Progress:
    """Ignore the progress."""
    return lambda pages: None


class Level:
    """Decides by a page's state whether a level leaves it out."""

    def __init__(self, meaning: Meaning, level: int) -> None:
        form = meaning.form
        self._meaning = meaning
        self._level = level
        self._lru, self._private, self._hwpoison = map(form.mask, ("lru", "private", "hwpoison"))
        self._swap = form.mask("swapcache") | form.mask("swapbacked")

    def reason(self, state: int, head: int) -> str:
        """One of :data:`REASONS` why a page is left out; empty if it is not.

        :param head: state of the compound page's head for a tail, else 0.
        """
        if state & (OFFLINE | NOT_INITIALISED):
            return ""  # this struct page is meaningless
        whole, meaning = head or state, self._meaning
        if meaning.is_free(state):
            return "free" if self._level & FREE else ""
        slab = meaning.is_slab(whole)
        anon = bool(whole & ANON) and not slab
        if not anon and self._is_cache(whole):
            private = bool(whole & self._private)
            if self._level & CACHE_PRIVATE or (self._level & CACHE and not private):
                return "cache_private" if private else "cache"
        hugetlb = meaning.is_head(whole) and meaning.is_hugetlb(whole)
        if self._level & USER and (anon or hugetlb):
            return "user"
        if (state | whole) & self._hwpoison:
            return "hwpoison"
        return "offline" if meaning.is_type(whole, "offline") else ""

    def _is_cache(self, state: int) -> bool:
        return bool(state & self._lru) or state & self._swap == self._swap != 0


def left_out(kernel: Kernel, level: int, watch: Watch) -> Dict[str, Frames]:
    """Find the page frames that a level leaves out, by :data:`REASONS`.

    :param level: level as in makedumpfile's ``-d``. Zero pages are not in the result.
    :raises Unavailable: the source does not say how page frames are used.
    """
    if not level & OF_USE:
        return {}
    pages = Pages(kernel)
    rule = Level(pages.meaning, level)
    progress = watch("looking at page frames", pages.sections.total)
    found: Dict[str, List[Tuple[int, int]]] = {reason: [] for reason in REASONS}
    seen = 0
    for piece in pages.reader.pieces(pages.sections):
        seen += piece.count
        if seen > pages.page_limit:
            raise Unavailable("there are too many struct pages")
        if piece.state == "read":
            runs = pages.decoder.decode(piece.data, piece.first, online=piece.online)
            for reason, first, end in _runs_left_out(runs, rule):
                found[reason].append((first, end))
        progress(piece.count)
    return {reason: Frames.of(ranges) for reason, ranges in found.items() if ranges}


def _runs_left_out(runs: Runs, rule: Level) -> Iterator[Tuple[str, int, int]]:
    """(reason, first frame, last frame plus one) of each range of a block that is left out."""
    import numpy

    kinds, which = kinds_of(runs)
    reasons = [rule.reason(state, head) for state, head in kinds]
    numbers = numpy.array([REASONS.index(r) if r else -1 for r in reasons], numpy.int64)[which]
    # Sequences of runs with the same reason.
    starts = numpy.flatnonzero(numpy.r_[True, numbers[1:] != numbers[:-1]])
    firsts = runs.starts[starts] + runs.first
    ends = numpy.r_[firsts[1:], runs.first + len(runs.rows)]
    for number, first, end in zip(numbers[starts].tolist(), firsts.tolist(), ends.tolist()):
        if number >= 0:
            yield REASONS[number], first, end


def kinds_of(runs: Runs) -> Tuple[List[Tuple[int, int]], NDArray[numpy.int64]]:
    """The distinct pairs (state, state of the head) of a block's runs, and the index of each run's pair."""
    import numpy

    states: NDArray[numpy.uint64] = distinct(runs.states)
    heads: NDArray[numpy.uint64] = distinct(runs.heads)
    pairs = numpy.searchsorted(states, runs.states) * len(heads) + numpy.searchsorted(heads, runs.heads)
    kinds = distinct(pairs)
    found = [(int(states[k // len(heads)]), int(heads[k % len(heads)])) for k in kinds.tolist()]
    return found, numpy.searchsorted(kinds, pairs)


def leaves_out(level: int, reason: str) -> bool:
    """Whether a level leaves out pages with one of :data:`REASONS`."""
    return bool(level & _LEVELS[reason])
